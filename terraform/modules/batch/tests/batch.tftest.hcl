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
  name         = "reprieve"
  store        = "s3://snapshots/jobs"
  image        = "registry.example/team/job:1.4"
  job_role_arn = "arn:aws:iam::123456789012:role/job"
  vpc_id       = "vpc-1"
  subnet_ids   = ["subnet-1"]
}

run "an_evicted_job_is_started_again" {
  command = plan

  assert {
    condition     = aws_batch_job_definition.this.retry_strategy[0].attempts == 10 && output.retry_rules[0] == { on_exit_code = "75", on_status_reason = null, action = "RETRY" }
    error_message = "A checkpointed job stays stopped."
  }

  assert {
    condition     = contains([for r in output.retry_rules : r.on_status_reason if r.action == "RETRY"], "Host EC2*") && output.retry_rules[4] == { on_exit_code = "*", on_status_reason = null, action = "EXIT" }
    error_message = "A job whose machine went stays stopped, or one that failed begins again."
  }

  assert {
    condition     = aws_batch_compute_environment.this.compute_resources[0].type == "SPOT" && aws_batch_compute_environment.this.compute_resources[0].allocation_strategy == "SPOT_PRICE_CAPACITY_OPTIMIZED"
    error_message = "The machines are no spot machines."
  }
}

run "failed_jobs_as_well" {
  command = plan

  variables {
    retry_failures = true
  }

  assert {
    condition     = toset([for r in output.retry_rules : r.on_exit_code if r.action == "EXIT"]) == toset(["127", "171", "172", "174"]) && length(output.retry_rules) == 5
    error_message = "What another attempt would not change is attempted."
  }
}

run "one_attempt_is_refused" {
  command = plan

  variables {
    attempts = 1
  }

  expect_failures = [var.attempts]
}

run "a_mixture_of_processors_is_refused" {
  command = plan

  variables {
    instance_types = ["optimal"]
  }

  expect_failures = [var.instance_types]
}

run "arm_is_refused" {
  command = plan

  variables {
    instance_types = ["m7g"]
  }

  expect_failures = [var.instance_types]
}

run "secrets_are_named_not_told" {
  command = plan

  variables {
    secrets = { PASSWORD = "hunter2" }
  }

  expect_failures = [var.secrets]
}

run "secrets_are_no_variables" {
  command = plan

  variables {
    environment = { API_KEY = "hunter2" }
  }

  expect_failures = [var.environment]
}

run "batchs_grace_is_not_a_setting" {
  command = plan

  variables {
    settings = { REPRIEVE_TERM_GRACE = "120s" }
  }

  expect_failures = [var.settings]
}
