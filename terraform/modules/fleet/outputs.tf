output "name" {
  description = "The Auto Scaling group's name."
  value       = aws_autoscaling_group.this.name
}

output "arn" {
  description = "The Auto Scaling group's ARN."
  value       = aws_autoscaling_group.this.arn
}

output "job" {
  description = "The job's name in the store."
  value       = local.job
}

output "lifecycle_hook_name" {
  description = "The termination hook's name (REPRIEVE_LIFECYCLE_HOOK)."
  value       = aws_autoscaling_lifecycle_hook.this.name
}

output "launch_template_id" {
  description = "The launch template."
  value       = aws_launch_template.this.id
}

output "launch_template_version" {
  description = "The launch template's newest version, which the group uses."
  value       = aws_launch_template.this.latest_version
}

output "security_group_id" {
  description = "The machines' security group."
  value       = aws_security_group.this.id
}

output "instance_types" {
  description = "The instance types that the group may use; with instance_requirements, patterns of them."
  value       = var.instance_requirements == null ? local.types : [for f in local.family : "${f}.*"]
}

output "environment" {
  description = "The container's environment: AWS_REGION, the job's own and all settings of Reprieve."
  value       = local.environment
}

output "docker_run" {
  description = "The command line that starts the container on a machine, in pieces."
  value       = local.docker_run
}

output "user_data" {
  description = "What a machine runs at its first boot."
  value       = local.user_data
}
