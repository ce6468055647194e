# The fleet's queue: commands to workers, and what EC2, Auto Scaling and AWS Health say about machines. SQS cannot
# deliver to a chosen worker; each message names whom it is for, and the others give it back.

locals {
  groups = length(var.autoscaling_group_names) == 0 ? {} : {
    detail = { AutoScalingGroupName = var.autoscaling_group_names }
  }

  rules = {
    spot-interruption = {
      wanted  = var.events.spot_interruption
      age     = var.notice_age_seconds
      pattern = { source = ["aws.ec2"], detail-type = ["EC2 Spot Instance Interruption Warning"] }
    }
    rebalance = {
      wanted  = var.events.rebalance_recommendation
      age     = 600
      pattern = { source = ["aws.ec2"], detail-type = ["EC2 Instance Rebalance Recommendation"] }
    }
    state-change = {
      wanted = var.events.state_change
      age    = 120
      pattern = {
        source      = ["aws.ec2"]
        detail-type = ["EC2 Instance State-change Notification"]
        detail      = { state = ["stopping", "shutting-down"] }
      }
    }
    scheduled-change = {
      wanted = var.events.scheduled_change
      # Announced days ahead, but the queue forgets it after its own retention.
      age = 3600
      pattern = {
        source      = ["aws.health"]
        detail-type = ["AWS Health Event"]
        detail      = { service = ["EC2"], eventTypeCategory = ["scheduledChange"] }
      }
    }
    terminate-lifecycle = {
      wanted = var.events.terminate_lifecycle
      age    = 300
      pattern = merge(
        { source = ["aws.autoscaling"], detail-type = ["EC2 Instance-terminate Lifecycle Action"] },
        local.groups,
      )
    }
  }

  wanted = { for kind, rule in local.rules : kind => rule if rule.wanted }
}

resource "aws_sqs_queue" "dead" {
  name                      = "${var.name}-dead"
  message_retention_seconds = var.dead_letter_retention_seconds
  sqs_managed_sse_enabled   = var.kms_key_arn == null ? true : null
  kms_master_key_id         = var.kms_key_arn
  tags                      = var.tags
}

resource "aws_sqs_queue" "this" {
  name                       = var.name
  message_retention_seconds  = var.message_retention_seconds
  visibility_timeout_seconds = var.visibility_timeout_seconds
  receive_wait_time_seconds  = 20
  sqs_managed_sse_enabled    = var.kms_key_arn == null ? true : null
  kms_master_key_id          = var.kms_key_arn
  tags                       = var.tags

  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.dead.arn
    maxReceiveCount     = var.max_receive_count
  })
}

resource "aws_sqs_queue_redrive_allow_policy" "dead" {
  count = var.restrict_redrive ? 1 : 0

  queue_url = aws_sqs_queue.dead.id
  redrive_allow_policy = jsonencode({
    redrivePermission = "byQueue"
    sourceQueueArns   = [aws_sqs_queue.this.arn]
  })
}

resource "aws_cloudwatch_event_rule" "this" {
  for_each = local.wanted

  name          = "${var.name}-${each.key}"
  description   = "Tells the workers behind ${var.name}: ${each.key}"
  event_pattern = jsonencode(each.value.pattern)
  tags          = var.tags
}

resource "aws_cloudwatch_event_target" "this" {
  for_each = local.wanted

  rule      = aws_cloudwatch_event_rule.this[each.key].name
  target_id = "queue"
  arn       = aws_sqs_queue.this.arn

  # A notice that comes late is worse than none: it would be about another machine's past.
  retry_policy {
    maximum_event_age_in_seconds = each.value.age
    maximum_retry_attempts       = 10
  }

  dead_letter_config {
    arn = aws_sqs_queue.dead.arn
  }
}

locals {
  rule_arns = [for rule in aws_cloudwatch_event_rule.this : rule.arn]

  only_over_tls = {
    Sid       = "OnlyOverTls"
    Effect    = "Deny"
    Principal = "*"
    Action    = "sqs:*"
    Condition = { Bool = { "aws:SecureTransport" = "false" } }
  }

  from_rules = length(local.wanted) == 0 ? [] : [{
    Sid       = "EventsOfTheseRules"
    Effect    = "Allow"
    Principal = { Service = "events.amazonaws.com" }
    Action    = "sqs:SendMessage"
    Condition = { ArnEquals = { "aws:SourceArn" = local.rule_arns } }
  }]

  from_senders = length(var.sender_arns) == 0 ? [] : [{
    Sid       = "CommandsOfOtherAccounts"
    Effect    = "Allow"
    Principal = { AWS = var.sender_arns }
    Action    = ["sqs:SendMessage", "sqs:GetQueueUrl"]
  }]
}

resource "aws_sqs_queue_policy" "this" {
  queue_url = aws_sqs_queue.this.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      for statement in concat([local.only_over_tls], local.from_rules, local.from_senders) :
      merge(statement, { Resource = aws_sqs_queue.this.arn })
    ]
  })
}

resource "aws_sqs_queue_policy" "dead" {
  queue_url = aws_sqs_queue.dead.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      for statement in concat([local.only_over_tls], local.from_rules) :
      merge(statement, { Resource = aws_sqs_queue.dead.arn })
    ]
  })
}
