mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_region" {
    defaults = { name = "eu-central-1" }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
}

variables {
  name = "fleet-commands"
}

run "notices_age_fast_and_dead_letters_stay" {
  command = plan

  assert {
    condition     = aws_cloudwatch_event_target.this["spot-interruption"].retry_policy[0].maximum_event_age_in_seconds == 120
    error_message = "A spot notice may come when its machine is gone."
  }

  assert {
    condition     = aws_sqs_queue.this.message_retention_seconds == 3600 && aws_sqs_queue.dead.message_retention_seconds == 1209600
    error_message = "Commands stay too long, or dead letters too short."
  }

  assert {
    condition     = aws_sqs_queue.this.receive_wait_time_seconds == 20 && aws_sqs_queue.this.sqs_managed_sse_enabled && aws_sqs_queue.dead.sqs_managed_sse_enabled
    error_message = "Polling is short, or messages are in clear."
  }

  assert {
    condition     = toset(keys(aws_cloudwatch_event_rule.this)) == toset(["spot-interruption", "rebalance", "scheduled-change", "terminate-lifecycle"])
    error_message = "Other events are routed."
  }
}

run "hooks_of_named_groups_only" {
  command = plan

  variables {
    autoscaling_group_names = ["nightly"]
    events                  = { rebalance_recommendation = false, state_change = true }
  }

  assert {
    condition     = jsondecode(aws_cloudwatch_event_rule.this["terminate-lifecycle"].event_pattern).detail.AutoScalingGroupName == ["nightly"]
    error_message = "Hooks of other groups count as well."
  }

  assert {
    condition     = contains(keys(aws_cloudwatch_event_rule.this), "state-change") && !contains(keys(aws_cloudwatch_event_rule.this), "rebalance")
    error_message = "The switches do nothing."
  }
}

run "names_of_workers_own_queues_are_refused" {
  command = plan

  variables {
    name = "reprieve-fleet"
  }

  expect_failures = [var.name]
}

run "senders_are_not_everybody" {
  command = plan

  variables {
    sender_arns = ["*"]
  }

  expect_failures = [var.sender_arns]
}

run "old_notices_are_refused" {
  command = plan

  variables {
    notice_age_seconds = 86400
  }

  expect_failures = [var.notice_age_seconds]
}

run "an_alias_would_shut_eventbridge_out" {
  command = plan

  variables {
    kms_key_arn = "alias/aws/sqs"
  }

  expect_failures = [var.kms_key_arn]
}
