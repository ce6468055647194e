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
  name                  = "nightly"
  store                 = "s3://snapshots/jobs"
  image                 = "registry.example/team/job:1.4"
  instance_profile_name = "nightly"
  vpc_id                = "vpc-1"
  subnet_ids            = ["subnet-1", "subnet-2"]
}

run "spot_machines_of_one_kind_of_processor" {
  command = plan

  assert {
    condition = alltrue([
      for o in aws_autoscaling_group.this.mixed_instances_policy[0].launch_template[0].override : can(regex("^[cmr]6i(d|n)?[.]xlarge$", o.instance_type))
    ]) && length(aws_autoscaling_group.this.mixed_instances_policy[0].launch_template[0].override) == 9
    error_message = "The machines' processors differ."
  }

  assert {
    condition     = aws_autoscaling_group.this.mixed_instances_policy[0].instances_distribution[0].on_demand_percentage_above_base_capacity == 0 && aws_autoscaling_group.this.mixed_instances_policy[0].instances_distribution[0].spot_allocation_strategy == "price-capacity-optimized"
    error_message = "The machines are no spot machines, or of the cheapest pools."
  }

  assert {
    condition     = aws_autoscaling_group.this.capacity_rebalance && contains(aws_autoscaling_group.this.suspended_processes, "AZRebalance")
    error_message = "The group evicts for nothing, or not ahead of EC2."
  }
}

run "metadata_needs_a_token_and_reaches_containers" {
  command = plan

  assert {
    condition     = aws_launch_template.this.metadata_options[0].http_tokens == "required" && aws_launch_template.this.metadata_options[0].http_put_response_hop_limit == 2
    error_message = "The metadata service is open, or out of the container's reach."
  }

  assert {
    condition     = aws_launch_template.this.block_device_mappings[0].ebs[0].encrypted == "true"
    error_message = "The disk is in clear."
  }
}

run "the_hook_waits_for_the_worker" {
  command = plan

  assert {
    condition     = aws_autoscaling_lifecycle_hook.this.lifecycle_transition == "autoscaling:EC2_INSTANCE_TERMINATING" && aws_autoscaling_lifecycle_hook.this.heartbeat_timeout == 300 && aws_autoscaling_lifecycle_hook.this.default_result == "CONTINUE"
    error_message = "The hook is of another kind."
  }

  assert {
    condition     = output.environment.REPRIEVE_LIFECYCLE_HOOK == aws_autoscaling_lifecycle_hook.this.name
    error_message = "The worker is told of another hook."
  }
}

run "the_container_runs_as_documented" {
  command = plan

  variables {
    command           = ["sh", "-c", "echo it's"]
    queue             = "shared"
    queue_url         = "https://sqs.example/q"
    dead_letter_queue = "https://sqs.example/d"
    settings          = { REPRIEVE_KEEP_DAILY = "2" }
    environment       = { SEED = "4" }
  }

  assert {
    condition = output.environment == {
      AWS_REGION                 = "eu-central-1"
      SEED                       = "4"
      REPRIEVE_STORE             = "s3://snapshots/jobs"
      REPRIEVE_JOB               = "nightly"
      REPRIEVE_TERM_GRACE        = "60s"
      REPRIEVE_KEEP_DAILY        = "2"
      REPRIEVE_QUEUE             = "shared"
      REPRIEVE_QUEUE_URL         = "https://sqs.example/q"
      REPRIEVE_DEAD_LETTER_QUEUE = "https://sqs.example/d"
      REPRIEVE_LIFECYCLE_HOOK    = "nightly-goodbye"
      REPRIEVE_INSTANCE_TAGS     = "on"
    }
    error_message = "The environment is another."
  }

  assert {
    condition     = output.docker_run[length(output.docker_run) - 1] == "'echo it'\\''s'"
    error_message = "Quotes in the command get lost."
  }
}

run "types_by_what_they_have_stay_within_the_family" {
  command = plan

  variables {
    cpu_family            = "amd-genoa"
    instance_requirements = { vcpus_min = 4, memory_mib_min = 8192 }
  }

  assert {
    condition     = aws_autoscaling_group.this.mixed_instances_policy[0].launch_template[0].override[0].instance_requirements[0].allowed_instance_types == toset(["c7a.*", "m7a.*", "r7a.*"])
    error_message = "EC2 may choose any processor."
  }
}

run "a_warm_pool_waits_for_its_turn" {
  command = plan

  variables {
    warm_pool            = { min_size = 2 }
    on_demand_percentage = 100
  }

  assert {
    condition     = length(aws_autoscaling_group.this.mixed_instances_policy) == 0 && aws_autoscaling_group.this.warm_pool[0].pool_state == "Stopped" && strcontains(output.user_data, "InService")
    error_message = "A machine that stands by would take the job."
  }
}

run "no_warm_pool_of_spot_machines" {
  command = plan

  variables {
    warm_pool = {}
  }

  expect_failures = [var.warm_pool]
}

run "secrets_are_refused" {
  command = plan

  variables {
    environment = { DB_PASSWORD = "hunter2" }
  }

  expect_failures = [var.environment]
}

run "settings_with_a_variable_are_refused" {
  command = plan

  variables {
    settings = { REPRIEVE_JOB = "other" }
  }

  expect_failures = [var.settings]
}

run "a_directory_is_no_store_here" {
  command = plan

  variables {
    store = "file:///mnt/snapshots"
  }

  expect_failures = [var.store]
}

run "a_heartbeat_that_is_too_short_is_refused" {
  command = plan

  variables {
    heartbeat_timeout_seconds = 60
  }

  expect_failures = [var.heartbeat_timeout_seconds]
}

run "arm_is_refused" {
  command = plan

  variables {
    instance_types = ["m6i.large", "c6gn.large"]
  }

  expect_failures = [var.instance_types]
}

run "hop_limit_one_is_refused" {
  command = plan

  variables {
    imds_hop_limit = 1
  }

  expect_failures = [var.imds_hop_limit]
}

run "the_cheapest_pools_are_refused" {
  command = plan

  variables {
    spot_allocation_strategy = "lowest-price"
  }

  expect_failures = [var.spot_allocation_strategy]
}

run "a_replacement_needs_room" {
  command = plan

  variables {
    max_size = 1
  }

  expect_failures = [aws_autoscaling_group.this]
}

run "only_an_empty_group_can_be_shrunk_to" {
  command = plan

  variables {
    when_done = "scale-in"
    min_size  = 1
  }

  expect_failures = [var.when_done]
}

run "user_data_has_a_limit" {
  command = plan

  variables {
    setup_script = join("", [for i in range(1000) : "echo this is line number ${i}\n"])
  }

  expect_failures = [aws_launch_template.this]
}
