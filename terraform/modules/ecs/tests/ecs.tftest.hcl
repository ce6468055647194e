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
  name           = "service"
  store          = "s3://snapshots/jobs"
  image          = "registry.example/team/job:1.4"
  task_role_arn  = "arn:aws:iam::123456789012:role/job"
  log_group_name = "/reprieve/service"
  vpc_id         = "vpc-1"
  subnet_ids     = ["subnet-1"]
}

run "one_task_with_two_minutes_to_stop" {
  command = plan

  assert {
    condition     = output.environment.REPRIEVE_TERM_GRACE == "120s" && jsondecode(aws_ecs_task_definition.this.container_definitions)[0].stopTimeout == 120
    error_message = "ECS and Reprieve count on different graces."
  }

  assert {
    condition     = aws_ecs_service.this[0].deployment_maximum_percent == 100 && aws_ecs_service.this[0].deployment_minimum_healthy_percent == 0
    error_message = "Two tasks of one job would run."
  }

  assert {
    condition     = aws_launch_template.this[0].metadata_options[0].http_tokens == "required" && strcontains(base64decode(aws_launch_template.this[0].user_data), "ECS_ENABLE_SPOT_INSTANCE_DRAINING=true")
    error_message = "The machines hear of no eviction, or the metadata service is open."
  }
}

run "fargate_cannot_checkpoint" {
  command = plan

  variables {
    capacity = "fargate-spot"
  }

  expect_failures = [var.capacity]
}

run "fargate_without_a_store_is_what_it_is" {
  command = plan

  variables {
    capacity = "fargate-spot"
    store    = null
  }

  assert {
    condition     = !contains(keys(output.environment), "REPRIEVE_STORE") && !can(jsondecode(aws_ecs_task_definition.this.container_definitions)[0].privileged) && length(aws_launch_template.this) == 0
    error_message = "A task on Fargate asks for what Fargate does not have."
  }
}

run "machines_without_a_store_are_refused" {
  command = plan

  variables {
    store = null
  }

  expect_failures = [aws_ecs_task_definition.this]
}

run "two_tasks_of_one_job_are_refused" {
  command = plan

  variables {
    desired_count = 2
  }

  expect_failures = [var.desired_count]
}

run "ecs_grants_two_minutes" {
  command = plan

  variables {
    stop_timeout_seconds = 300
  }

  expect_failures = [var.stop_timeout_seconds]
}
