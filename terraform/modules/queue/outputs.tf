output "url" {
  description = "The queue's address, for REPRIEVE_QUEUE_URL and for whoever sends commands."
  value       = aws_sqs_queue.this.url
  depends_on  = [aws_sqs_queue_policy.this]
}

output "arn" {
  description = "The queue's ARN."
  value       = aws_sqs_queue.this.arn
}

output "name" {
  description = "The queue's name."
  value       = aws_sqs_queue.this.name
}

output "dead_letter_url" {
  description = "The dead-letter queue's address."
  value       = aws_sqs_queue.dead.url
  depends_on  = [aws_sqs_queue_policy.dead]
}

output "dead_letter_arn" {
  description = "The dead-letter queue's ARN."
  value       = aws_sqs_queue.dead.arn
}

output "dead_letter_name" {
  description = "The dead-letter queue's name, for an alarm on what is in it."
  value       = aws_sqs_queue.dead.name
}

output "rule_arns" {
  description = "The EventBridge rules, by kind."
  value       = { for kind, rule in aws_cloudwatch_event_rule.this : kind => rule.arn }
}
