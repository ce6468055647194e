output "job_queue_arn" {
  description = "The queue to submit jobs to."
  value       = aws_batch_job_queue.this.arn
}

output "job_queue_name" {
  description = "The job queue's name."
  value       = aws_batch_job_queue.this.name
}

output "job_definition_arn" {
  description = "The job definition, with its revision."
  value       = aws_batch_job_definition.this.arn
}

output "job_definition_name" {
  description = "The job definition's name."
  value       = aws_batch_job_definition.this.name
}

output "compute_environment_arn" {
  description = "The compute environment."
  value       = aws_batch_compute_environment.this.arn
}

output "execution_role_arn" {
  description = "The role that ECS starts containers with: it pulls the image, opens the log and reads secrets."
  value       = aws_iam_role.execution.arn
}

output "security_group_id" {
  description = "The machines' security group."
  value       = aws_security_group.this.id
}

output "environment" {
  description = "The containers' environment."
  value       = local.environment
}

output "retry_rules" {
  description = "What Batch does after each kind of end."
  value       = local.rules
}
