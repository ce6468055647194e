output "name" {
  description = "The role's name."
  value       = aws_iam_role.this.name
}

output "arn" {
  description = "The role's ARN, with its policy in place."
  value       = aws_iam_role.this.arn
  depends_on  = [aws_iam_role_policy.this, aws_iam_role_policy_attachment.more]
}

output "instance_profile_name" {
  description = "The instance profile's name; null for ecs-tasks."
  value       = one(aws_iam_instance_profile.this[*].name)
  depends_on  = [aws_iam_role_policy.this, aws_iam_role_policy_attachment.more]
}

output "instance_profile_arn" {
  description = "The instance profile's ARN; null for ecs-tasks."
  value       = one(aws_iam_instance_profile.this[*].arn)
  depends_on  = [aws_iam_role_policy.this, aws_iam_role_policy_attachment.more]
}

output "policy" {
  description = "The policy as JSON."
  value       = local.policy
}
