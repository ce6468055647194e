# Alarms on what the worker says. Its log lines are an interface (docs/events.md), and each counted here is also a metric
# of docs/metrics.md: the metric's name here is that name, a dot, and the value of its label. A test compares both.

locals {
  namespace = coalesce(var.namespace, "Reprieve/${var.name}")

  counted = {
    "reprieve_checkpoints_total.durable"  = "checkpoint is durable"
    "reprieve_checkpoints_total.failed"   = "checkpoint failed; the job runs on and older snapshots stay as they are"
    "reprieve_checkpoints_total.refused"  = "no checkpoint was taken; the newest older snapshot stays as it is"
    "reprieve_checkpoints_total.fenced"   = "another worker owns this job; our copy of it is stopped"
    "reprieve_restores_total.resumed"     = "the job is resumed"
    "reprieve_restores_total.passed_over" = "a snapshot is passed over"
    "reprieve_notices_total.signal"       = "SIGTERM: this host is to stop"
    "reprieve_app_starts_total.scratch"   = "the app is started from scratch"
  }

  # More than `above` in `seconds` is an alarm.
  alarms = {
    checkpoint-failed = {
      metric  = "reprieve_checkpoints_total.failed"
      above   = 0
      seconds = 300
      means   = "A checkpoint failed. The job runs on; its newest older snapshot counts. The reason is in the log: docs/troubleshooting.md."
    }
    checkpoint-refused = {
      metric  = "reprieve_checkpoints_total.refused"
      above   = 0
      seconds = 300
      means   = "A machine went with too little time for a checkpoint. The job resumes from an older snapshot: raise the grace, or checkpoint more often."
    }
    fenced = {
      metric  = "reprieve_checkpoints_total.fenced"
      above   = 0
      seconds = 300
      means   = "Two machines ran one job, and one copy was stopped. Jobs that are not the same need names that are not the same."
    }
    snapshot-passed-over = {
      metric  = "reprieve_restores_total.passed_over"
      above   = 0
      seconds = 300
      means   = "A snapshot could not be used, and an older one was tried. The reason is in the log: `reprieve verify` says more."
    }
    resumed-too-often = {
      metric  = "reprieve_restores_total.resumed"
      above   = var.resumes_per_hour
      seconds = 3600
      means   = "The job is evicted all the time, or ends right after each resume. Allow more instance types and zones, or look at the job's exit code."
    }
  }
}

resource "aws_cloudwatch_log_metric_filter" "this" {
  for_each = local.counted

  name           = "${var.name}-${each.key}"
  log_group_name = var.log_group_name
  pattern        = "{ $.message = \"${each.value}\" }"

  metric_transformation {
    namespace     = local.namespace
    name          = each.key
    value         = "1"
    default_value = "0"
  }
}

resource "aws_cloudwatch_metric_alarm" "this" {
  for_each   = local.alarms
  depends_on = [aws_cloudwatch_log_metric_filter.this]

  alarm_name          = "${var.name}-${each.key}"
  alarm_description   = each.value.means
  namespace           = local.namespace
  metric_name         = each.value.metric
  statistic           = "Sum"
  period              = each.value.seconds
  evaluation_periods  = 1
  threshold           = each.value.above
  comparison_operator = "GreaterThanThreshold"
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions
  tags                = var.tags
}

resource "aws_cloudwatch_metric_alarm" "no_snapshot" {
  count      = var.snapshot_every_hours == null ? 0 : 1
  depends_on = [aws_cloudwatch_log_metric_filter.this]

  alarm_name          = "${var.name}-no-snapshot"
  alarm_description   = "No snapshot became durable for ${coalesce(var.snapshot_every_hours, 0)} h. If the machine goes now, so much work is lost."
  namespace           = local.namespace
  metric_name         = "reprieve_checkpoints_total.durable"
  statistic           = "Sum"
  period              = 3600
  evaluation_periods  = var.snapshot_every_hours
  datapoints_to_alarm = var.snapshot_every_hours
  threshold           = 1
  comparison_operator = "LessThanThreshold"
  # A worker that says nothing takes no snapshots either.
  treat_missing_data = "breaching"
  alarm_actions      = var.alarm_actions
  ok_actions         = var.alarm_actions
  tags               = var.tags
}

resource "aws_cloudwatch_metric_alarm" "machines_missing" {
  count = var.autoscaling_group_name == null ? 0 : 1

  alarm_name          = "${var.name}-machines-missing"
  alarm_description   = "The group has had fewer machines than it wants for half an hour: there is no spot capacity for its types, or machines do not start."
  evaluation_periods  = 6
  threshold           = 0
  comparison_operator = "GreaterThanThreshold"
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions
  tags                = var.tags

  metric_query {
    id          = "missing"
    expression  = "wanted - there"
    label       = "machines that are missing"
    return_data = true
  }

  metric_query {
    id = "wanted"

    metric {
      namespace   = "AWS/AutoScaling"
      metric_name = "GroupDesiredCapacity"
      period      = 300
      stat        = "Minimum"
      dimensions  = { AutoScalingGroupName = var.autoscaling_group_name }
    }
  }

  metric_query {
    id = "there"

    metric {
      namespace   = "AWS/AutoScaling"
      metric_name = "GroupInServiceInstances"
      period      = 300
      stat        = "Maximum"
      dimensions  = { AutoScalingGroupName = var.autoscaling_group_name }
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "message_waits" {
  count = var.queue_name == null ? 0 : 1

  alarm_name          = "${var.name}-message-waits"
  alarm_description   = "A message has waited for its worker for ten minutes: nobody runs that job, or the worker does not reach the queue."
  namespace           = "AWS/SQS"
  metric_name         = "ApproximateAgeOfOldestMessage"
  dimensions          = { QueueName = var.queue_name }
  statistic           = "Maximum"
  period              = 300
  evaluation_periods  = 1
  threshold           = 600
  comparison_operator = "GreaterThanThreshold"
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions
  tags                = var.tags
}

resource "aws_cloudwatch_metric_alarm" "dead_letters" {
  count = var.dead_letter_queue_name == null ? 0 : 1

  alarm_name          = "${var.name}-dead-letters"
  alarm_description   = "There are messages that no worker could read, or events that came too late."
  namespace           = "AWS/SQS"
  metric_name         = "ApproximateNumberOfMessagesVisible"
  dimensions          = { QueueName = var.dead_letter_queue_name }
  statistic           = "Maximum"
  period              = 300
  evaluation_periods  = 1
  threshold           = 0
  comparison_operator = "GreaterThanThreshold"
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions
  tags                = var.tags
}
