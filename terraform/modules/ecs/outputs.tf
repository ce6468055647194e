output "cluster_name" {
  description = "The cluster's name."
  value       = aws_ecs_cluster.this.name
}

output "cluster_arn" {
  description = "The cluster's ARN."
  value       = aws_ecs_cluster.this.arn
}

output "service_name" {
  description = "The service's name; null without one."
  value       = one(aws_ecs_service.this[*].name)
}

output "task_definition_arn" {
  description = "The task definition, with its revision."
  value       = aws_ecs_task_definition.this.arn
}

output "execution_role_arn" {
  description = "The role that ECS starts containers with: it pulls the image, opens the log and reads secrets."
  value       = aws_iam_role.execution.arn
}

output "autoscaling_group_name" {
  description = "The machines' Auto Scaling group; null on Fargate."
  value       = one(aws_autoscaling_group.this[*].name)
}

output "security_group_id" {
  description = "The security group of the machines, or of the tasks on Fargate."
  value       = aws_security_group.this.id
}

output "environment" {
  description = "The container's environment."
  value       = local.environment
}
