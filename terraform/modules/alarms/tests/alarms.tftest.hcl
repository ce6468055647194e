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
  name           = "nightly"
  log_group_name = "/reprieve/nightly"
}

run "each_alarm_has_its_metric" {
  command = plan

  assert {
    condition     = alltrue([for a in aws_cloudwatch_metric_alarm.this : contains(keys(output.metric_names), a.metric_name) && a.namespace == "Reprieve/nightly"])
    error_message = "An alarm is about a metric that nobody makes."
  }

  assert {
    condition     = length(aws_cloudwatch_metric_alarm.no_snapshot) + length(aws_cloudwatch_metric_alarm.machines_missing) + length(aws_cloudwatch_metric_alarm.dead_letters) + length(aws_cloudwatch_metric_alarm.message_waits) == 0
    error_message = "An alarm is raised about what is not there."
  }
}

run "silence_is_an_alarm_if_snapshots_are_due" {
  command = plan

  variables {
    snapshot_every_hours = 4
  }

  assert {
    condition     = aws_cloudwatch_metric_alarm.no_snapshot[0].treat_missing_data == "breaching" && aws_cloudwatch_metric_alarm.no_snapshot[0].evaluation_periods == 4
    error_message = "A dead worker would raise no alarm."
  }
}

run "amazons_namespaces_are_refused" {
  command = plan

  variables {
    namespace = "AWS/SQS"
  }

  expect_failures = [var.namespace]
}

run "hours_are_whole" {
  command = plan

  variables {
    snapshot_every_hours = 0.5
  }

  expect_failures = [var.snapshot_every_hours]
}
