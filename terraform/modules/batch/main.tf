# AWS Batch: a job that is evicted is started again by Batch, because its exit code says so, and resumes. A job's name
# in the store is its command line's, unless the submission sets REPRIEVE_JOB.

data "aws_partition" "this" {}
data "aws_region" "this" {}
data "aws_caller_identity" "this" {}

locals {
  # docs/exit-codes.md; a test compares the numbers. Batch takes five rules, the first that matches decides, and a job
  # that matches none is started again.
  rules = var.retry_failures ? [
    { on_exit_code = "75", on_status_reason = null, action = "RETRY" }, # checkpointed
    { on_exit_code = "171", on_status_reason = null, action = "EXIT" }, # no valid snapshot
    { on_exit_code = "172", on_status_reason = null, action = "EXIT" }, # another worker owns the job
    { on_exit_code = "174", on_status_reason = null, action = "EXIT" }, # settings invalid
    { on_exit_code = "127", on_status_reason = null, action = "EXIT" }, # not found
    ] : [
    { on_exit_code = "75", on_status_reason = null, action = "RETRY" },        # checkpointed
    { on_exit_code = null, on_status_reason = "Host EC2*", action = "RETRY" }, # the machine went first
    { on_exit_code = "173", on_status_reason = null, action = "RETRY" },       # store unreachable
    { on_exit_code = "137", on_status_reason = null, action = "RETRY" },       # killed when its grace was over
    { on_exit_code = "*", on_status_reason = null, action = "EXIT" },
  ]

  settings = merge(var.settings, {
    REPRIEVE_STORE = var.store
    # What Batch grants between SIGTERM and SIGKILL, and nobody can change.
    REPRIEVE_TERM_GRACE = "30s"
  })
  environment = merge({ AWS_REGION = data.aws_region.this.name }, var.environment, local.settings)
  log_group   = coalesce(var.log_group_name, "/aws/batch/job")

  # Batch gives its machines to ECS; they are to tell their containers of an interruption, by SIGTERM.
  user_data = <<-END
    MIME-Version: 1.0
    Content-Type: multipart/mixed; boundary="==part=="

    --==part==
    Content-Type: text/x-shellscript; charset="us-ascii"

    #!/bin/bash
    echo ECS_ENABLE_SPOT_INSTANCE_DRAINING=true >> /etc/ecs/ecs.config
    --==part==--
  END
}

resource "aws_security_group" "this" {
  # checkov:skip=CKV2_AWS_5:attached by the launch template, which checkov does not follow
  name        = var.name
  description = "Machines of the Batch environment ${var.name}: nothing comes in"
  vpc_id      = var.vpc_id
  tags        = merge(var.tags, { Name = var.name })
}

resource "aws_vpc_security_group_egress_rule" "this" {
  security_group_id = aws_security_group.this.id
  description       = "S3, the registry and the control planes"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  cidr_ipv4         = "0.0.0.0/0"
}

resource "aws_iam_role" "machine" {
  name_prefix          = "reprieve-batch-"
  permissions_boundary = var.permissions_boundary
  tags                 = var.tags
  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Principal = { Service = "ec2.amazonaws.com" }, Action = "sts:AssumeRole" }]
  })
}

resource "aws_iam_role_policy_attachment" "machine" {
  role       = aws_iam_role.machine.name
  policy_arn = "arn:${data.aws_partition.this.partition}:iam::aws:policy/service-role/AmazonEC2ContainerServiceforEC2Role"
}

resource "aws_iam_instance_profile" "machine" {
  name_prefix = "reprieve-batch-"
  role        = aws_iam_role.machine.name
  tags        = var.tags
}

resource "aws_iam_role" "execution" {
  name_prefix          = "reprieve-batch-start-"
  permissions_boundary = var.permissions_boundary
  tags                 = var.tags
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ecs-tasks.amazonaws.com" }
      Action    = "sts:AssumeRole"
      Condition = { StringEquals = { "aws:SourceAccount" = data.aws_caller_identity.this.account_id } }
    }]
  })
}

resource "aws_iam_role_policy_attachment" "execution" {
  role       = aws_iam_role.execution.name
  policy_arn = "arn:${data.aws_partition.this.partition}:iam::aws:policy/service-role/AmazonECSTaskExecutionRolePolicy"
}

resource "aws_iam_role_policy" "secrets" {
  count = length(var.secrets) > 0 ? 1 : 0

  name = "secrets"
  role = aws_iam_role.execution.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect   = "Allow"
      Action   = ["secretsmanager:GetSecretValue", "ssm:GetParameters"]
      Resource = values(var.secrets)
    }]
  })
}

resource "aws_launch_template" "this" {
  # checkov:skip=CKV_AWS_341:a container is one hop further from the metadata service than its host, and without it hears of no eviction
  name                   = var.name
  update_default_version = true
  user_data              = base64encode(local.user_data)
  tags                   = var.tags

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 2
    instance_metadata_tags      = "enabled"
  }

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_type           = "gp3"
      volume_size           = 50
      encrypted             = true
      delete_on_termination = true
    }
  }

  tag_specifications {
    resource_type = "volume"
    tags          = merge(var.tags, { Name = var.name })
  }
}

resource "aws_batch_compute_environment" "this" {
  depends_on               = [aws_iam_role_policy_attachment.machine]
  compute_environment_name = var.name
  type                     = "MANAGED"
  service_role             = var.service_role_arn
  tags                     = var.tags

  compute_resources {
    type                = var.spot ? "SPOT" : "EC2"
    allocation_strategy = var.spot ? "SPOT_PRICE_CAPACITY_OPTIMIZED" : "BEST_FIT_PROGRESSIVE"
    instance_role       = aws_iam_instance_profile.machine.arn
    instance_type       = var.instance_types
    min_vcpus           = 0
    max_vcpus           = var.max_vcpus
    subnets             = var.subnet_ids
    security_group_ids  = concat([aws_security_group.this.id], var.security_group_ids)
    tags                = merge(var.tags, { Name = var.name })

    ec2_configuration {
      image_type = "ECS_AL2023"
    }

    launch_template {
      launch_template_id = aws_launch_template.this.id
      version            = "$Latest"
    }
  }

  update_policy {
    # An update waits for jobs instead of ending them: a job that is ended so gets no SIGTERM in time.
    job_execution_timeout_minutes = 30
    terminate_jobs_on_update      = false
  }
}

resource "aws_batch_job_queue" "this" {
  name     = var.name
  state    = "ENABLED"
  priority = 1
  tags     = var.tags

  compute_environment_order {
    order               = 1
    compute_environment = aws_batch_compute_environment.this.arn
  }
}

resource "aws_batch_job_definition" "this" {
  # checkov:skip=CKV_AWS_210:Batch can neither add single capabilities nor lift the seccomp filter; a privileged container has what CRIU needs
  name                  = var.name
  type                  = "container"
  platform_capabilities = ["EC2"]
  propagate_tags        = true
  tags                  = var.tags

  retry_strategy {
    attempts = var.attempts

    dynamic "evaluate_on_exit" {
      for_each = local.rules

      content {
        action           = evaluate_on_exit.value.action
        on_exit_code     = evaluate_on_exit.value.on_exit_code
        on_status_reason = evaluate_on_exit.value.on_status_reason
      }
    }
  }

  dynamic "timeout" {
    for_each = var.timeout_seconds == null ? [] : [var.timeout_seconds]

    content {
      attempt_duration_seconds = timeout.value
    }
  }

  container_properties = jsonencode({
    image            = var.image
    command          = var.command
    jobRoleArn       = var.job_role_arn
    executionRoleArn = aws_iam_role.execution.arn
    # Reprieve is PID 1; an init of Docker's in front of it would take that place.
    linuxParameters = { initProcessEnabled = false }
    privileged      = true
    resourceRequirements = [
      { type = "VCPU", value = tostring(var.vcpus) },
      { type = "MEMORY", value = tostring(var.memory_mib) },
    ]
    environment = [for name, value in local.environment : { name = name, value = value }]
    secrets     = [for name, arn in var.secrets : { name = name, valueFrom = arn }]
    logConfiguration = {
      logDriver = "awslogs"
      options = {
        "awslogs-group"         = local.log_group
        "awslogs-region"        = data.aws_region.this.name
        "awslogs-stream-prefix" = var.name
      }
    }
  })
}
