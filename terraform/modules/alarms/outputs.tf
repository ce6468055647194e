output "namespace" {
  description = "The namespace of the metrics."
  value       = local.namespace
}

output "metric_names" {
  description = "The metrics that are made from log lines, with the line that each counts."
  value       = local.counted
}

output "alarm_arns" {
  description = "The alarms, by what they are about."
  value = merge(
    { for name, alarm in aws_cloudwatch_metric_alarm.this : name => alarm.arn },
    { for alarm in aws_cloudwatch_metric_alarm.no_snapshot : "no-snapshot" => alarm.arn },
    { for alarm in aws_cloudwatch_metric_alarm.machines_missing : "machines-missing" => alarm.arn },
    { for alarm in aws_cloudwatch_metric_alarm.message_waits : "message-waits" => alarm.arn },
    { for alarm in aws_cloudwatch_metric_alarm.dead_letters : "dead-letters" => alarm.arn },
  )
}
