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
  name   = "nightly"
  bucket = "snapshots"
  prefix = "jobs/nightly/"
}

run "a_worker_reaches_its_snapshots_and_nothing_else" {
  command = plan

  assert {
    condition = toset(flatten([for s in jsondecode(output.policy).Statement : s.Action])) == toset([
      "s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject",
    ])
    error_message = "The role may do more or less than keep snapshots."
  }

  assert {
    condition = toset(flatten([for s in jsondecode(output.policy).Statement : s.Resource])) == toset([
      "arn:aws:s3:::snapshots", "arn:aws:s3:::snapshots/jobs/nightly/*",
    ])
    error_message = "The role reaches other objects."
  }

  assert {
    condition     = one([for s in jsondecode(output.policy).Statement : s.Condition.StringLike["s3:prefix"] if s.Sid == "Bucket"]) == ["jobs/nightly/*"]
    error_message = "The role may list other jobs' snapshots."
  }

  assert {
    condition     = length(aws_iam_instance_profile.this) == 1 && jsondecode(aws_iam_role.this.assume_role_policy).Statement[0].Principal.Service == "ec2.amazonaws.com"
    error_message = "A machine cannot take the role."
  }
}

run "an_entry_among_the_workers_is_written_and_not_read" {
  command = plan

  variables {
    workers_prefix = "jobs/~workers/"
  }

  assert {
    condition = toset(one([for s in jsondecode(output.policy).Statement : s.Action if s.Resource[0] == "arn:aws:s3:::snapshots/jobs/~workers/*"])) == toset([
      "s3:DeleteObject", "s3:PutObject",
    ])
    error_message = "The worker cannot enter itself, or may do more there."
  }
}

run "a_list_of_workers_elsewhere_is_refused" {
  command = plan

  variables {
    workers_prefix = "jobs/"
  }

  expect_failures = [var.workers_prefix]
}

run "everything_is_confined_to_what_is_named" {
  command = plan

  variables {
    bucket_kms_key_arn     = "arn:aws:kms:eu-central-1:123456789012:key/bucket"
    seal_kms_key_arn       = "arn:aws:kms:eu-central-1:123456789012:key/seal"
    queue                  = "shared"
    queue_arn              = "arn:aws:sqs:eu-central-1:123456789012:fleet-commands"
    dead_letter_queue_arn  = "arn:aws:sqs:eu-central-1:123456789012:fleet-commands-dead"
    autoscaling_group_name = "nightly"
    scale_in               = true
    log_group_arn          = "arn:aws:logs:eu-central-1:123456789012:log-group:/reprieve/nightly"
    repository_arns        = ["arn:aws:ecr:eu-central-1:123456789012:repository/a", "arn:aws:ecr:eu-central-1:123456789012:repository/b"]

    cpu_baseline_from_group = true
  }

  # Those whose services know nothing narrower.
  assert {
    condition = toset(flatten([for s in jsondecode(output.policy).Statement : s.Action if contains(flatten([s.Resource]), "*")])) == toset([
      "autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeAutoScalingInstances", "ec2:DescribeInstances",
      "ec2:DescribeLaunchTemplateVersions", "ec2:DescribeTags", "ecr:GetAuthorizationToken",
    ])
    error_message = "An action is allowed on everything."
  }

  assert {
    condition     = length([for s in jsondecode(output.policy).Statement : s if s.Sid == "Repositories" && length(s.Resource) == 2]) == 1
    error_message = "Not every repository is in the policy."
  }

  assert {
    condition     = !contains(flatten([for s in jsondecode(output.policy).Statement : s.Action]), "sqs:CreateQueue")
    error_message = "A worker of a shared queue may make queues."
  }
}

run "own_queues_are_those_of_workers" {
  command = plan

  variables {
    queue = "own"
  }

  assert {
    condition     = alltrue([for s in jsondecode(output.policy).Statement : s.Resource == ["arn:aws:sqs:eu-central-1:123456789012:reprieve-*"] if contains(s.Action, "sqs:DeleteQueue") || contains(s.Action, "sqs:ReceiveMessage")])
    error_message = "A worker may remove queues that are not workers'."
  }
}

run "a_task_has_no_instance_profile" {
  command = plan

  variables {
    service = "ecs-tasks"
  }

  assert {
    condition     = length(aws_iam_instance_profile.this) == 0
    error_message = "There is an instance profile for tasks."
  }
}

run "the_whole_bucket_is_refused" {
  command = plan

  variables {
    prefix = ""
  }

  expect_failures = [var.prefix]
}

run "a_prefix_without_its_slash_is_refused" {
  command = plan

  variables {
    prefix = "jobs/nightly"
  }

  expect_failures = [var.prefix]
}

run "a_shared_queue_has_a_name" {
  command = plan

  variables {
    queue = "shared"
  }

  expect_failures = [var.queue_arn]
}

run "only_a_group_has_instance_types" {
  command = plan

  variables {
    cpu_baseline_from_group = true
  }

  expect_failures = [var.cpu_baseline_from_group]
}

run "a_group_is_not_asked_for_its_instance_types_without_need" {
  command = plan

  variables {
    autoscaling_group_name = "nightly"
  }

  assert {
    condition     = !strcontains(output.policy, "DescribeAutoScalingGroups") && !strcontains(output.policy, "DescribeLaunchTemplateVersions")
    error_message = "What is not used is allowed."
  }
}

run "only_a_group_can_shrink" {
  command = plan

  variables {
    scale_in = true
  }

  expect_failures = [var.scale_in]
}
