# A service on ECS: one job that has no end of its own. ECS starts a task that ended again, whatever its exit code, so a
# job that is ever done belongs into Batch or the module fleet.

data "aws_partition" "this" {}
data "aws_region" "this" {}
data "aws_caller_identity" "this" {}

locals {
  fargate = var.capacity == "fargate-spot"
  spot    = var.capacity != "ec2"
  job     = coalesce(var.job, var.name)
  ami     = coalesce(var.ami_id, "resolve:ssm:/aws/service/ecs/optimized-ami/amazon-linux-2023/recommended/image_id")

  settings = merge(
    var.settings,
    { REPRIEVE_JOB = local.job, REPRIEVE_TERM_GRACE = "${var.stop_timeout_seconds}s" },
    var.store == null ? {} : { REPRIEVE_STORE = var.store },
  )
  environment = merge({ AWS_REGION = data.aws_region.this.name }, var.environment, local.settings)

  # The agent passes an interruption on as SIGTERM only if it is told to.
  user_data = join("\n", [
    "#!/bin/bash",
    "echo ECS_CLUSTER=${var.name} >> /etc/ecs/ecs.config",
    "echo ECS_ENABLE_SPOT_INSTANCE_DRAINING=true >> /etc/ecs/ecs.config",
    "echo ECS_CONTAINER_STOP_TIMEOUT=${var.stop_timeout_seconds}s >> /etc/ecs/ecs.config",
    "",
  ])

  container = merge(
    {
      name                   = "job"
      image                  = var.image
      essential              = true
      stopTimeout            = var.stop_timeout_seconds
      readonlyRootFilesystem = false
      environment            = [for name, value in local.environment : { name = name, value = value }]
      secrets                = [for name, arn in var.secrets : { name = name, valueFrom = arn }]
      # Reprieve is PID 1; an init of ECS's in front of it would take that place.
      linuxParameters = { initProcessEnabled = false }
      logConfiguration = {
        logDriver = "awslogs"
        options = {
          "awslogs-group"         = var.log_group_name
          "awslogs-region"        = data.aws_region.this.name
          "awslogs-stream-prefix" = var.name
        }
      }
    },
    length(var.command) > 0 ? { command = var.command } : {},
    # ECS knows no CHECKPOINT_RESTORE and cannot lift the seccomp filter by itself; a privileged container has both.
    local.fargate ? {} : { privileged = true },
  )
}

resource "aws_ecs_cluster" "this" {
  name = var.name
  tags = var.tags

  setting {
    name  = "containerInsights"
    value = "enabled"
  }
}

resource "aws_iam_role" "execution" {
  name_prefix          = "reprieve-ecs-start-"
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

resource "aws_security_group" "this" {
  # checkov:skip=CKV2_AWS_5:attached by the launch template or the service, which checkov does not follow
  name        = var.name
  description = "Machines and tasks of the cluster ${var.name}: nothing comes in"
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

# --- machines, unless Fargate has them

resource "aws_iam_role" "machine" {
  count = local.fargate ? 0 : 1

  name_prefix          = "reprieve-ecs-"
  permissions_boundary = var.permissions_boundary
  tags                 = var.tags
  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Principal = { Service = "ec2.amazonaws.com" }, Action = "sts:AssumeRole" }]
  })
}

resource "aws_iam_role_policy_attachment" "machine" {
  count = local.fargate ? 0 : 1

  role       = aws_iam_role.machine[0].name
  policy_arn = "arn:${data.aws_partition.this.partition}:iam::aws:policy/service-role/AmazonEC2ContainerServiceforEC2Role"
}

resource "aws_iam_instance_profile" "machine" {
  count = local.fargate ? 0 : 1

  name_prefix = "reprieve-ecs-"
  role        = aws_iam_role.machine[0].name
  tags        = var.tags
}

resource "aws_launch_template" "this" {
  # checkov:skip=CKV_AWS_341:a container is one hop further from the metadata service than its host, and without it hears of no eviction
  count = local.fargate ? 0 : 1

  name                   = var.name
  image_id               = local.ami
  instance_type          = var.instance_types[0]
  update_default_version = true
  user_data              = base64encode(local.user_data)
  vpc_security_group_ids = concat([aws_security_group.this.id], var.security_group_ids)
  tags                   = var.tags

  iam_instance_profile {
    arn = aws_iam_instance_profile.machine[0].arn
  }

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
}

resource "aws_autoscaling_group" "this" {
  count = local.fargate ? 0 : 1

  depends_on                = [aws_iam_role_policy_attachment.machine]
  name                      = var.name
  vpc_zone_identifier       = var.subnet_ids
  min_size                  = 0
  max_size                  = var.max_instances
  capacity_rebalance        = local.spot
  suspended_processes       = ["AZRebalance"]
  wait_for_capacity_timeout = "0"

  mixed_instances_policy {
    instances_distribution {
      on_demand_base_capacity                  = 0
      on_demand_percentage_above_base_capacity = local.spot ? 0 : 100
      spot_allocation_strategy                 = "price-capacity-optimized"
    }

    launch_template {
      launch_template_specification {
        launch_template_id = aws_launch_template.this[0].id
        version            = aws_launch_template.this[0].latest_version
      }

      dynamic "override" {
        for_each = var.instance_types

        content {
          instance_type = override.value
        }
      }
    }
  }

  dynamic "tag" {
    # ECS marks the groups that it scales; what Terraform does not know of, it would remove.
    for_each = merge(var.tags, { Name = var.name, AmazonECSManaged = "true" })

    content {
      key                 = tag.key
      value               = tag.value
      propagate_at_launch = true
    }
  }

  lifecycle {
    ignore_changes = [desired_capacity]
  }
}

resource "aws_ecs_capacity_provider" "this" {
  count = local.fargate ? 0 : 1

  name = var.name
  tags = var.tags

  auto_scaling_group_provider {
    auto_scaling_group_arn         = aws_autoscaling_group.this[0].arn
    managed_draining               = "ENABLED"
    managed_termination_protection = "DISABLED"

    managed_scaling {
      status          = "ENABLED"
      target_capacity = 100
    }
  }
}

resource "aws_ecs_cluster_capacity_providers" "this" {
  cluster_name       = aws_ecs_cluster.this.name
  capacity_providers = local.fargate ? ["FARGATE_SPOT"] : [aws_ecs_capacity_provider.this[0].name]
}

# --- the service

resource "aws_ecs_task_definition" "this" {
  # checkov:skip=CKV_AWS_336:CRIU and Reprieve write small files below /run, and what the job writes is the job's affair
  family                   = var.name
  requires_compatibilities = [local.fargate ? "FARGATE" : "EC2"]
  network_mode             = local.fargate ? "awsvpc" : "bridge"
  cpu                      = var.cpu
  memory                   = var.memory_mib
  execution_role_arn       = aws_iam_role.execution.arn
  task_role_arn            = var.task_role_arn
  container_definitions    = jsonencode([local.container])
  tags                     = var.tags

  lifecycle {
    precondition {
      condition     = local.fargate || var.store != null
      error_message = "Without a store nothing is kept when a task is stopped: set store = \"s3://BUCKET/PREFIX\"."
    }
  }
}

resource "aws_ecs_service" "this" {
  count = var.create_service ? 1 : 0

  depends_on      = [aws_ecs_cluster_capacity_providers.this, aws_iam_role_policy_attachment.execution]
  name            = var.name
  cluster         = aws_ecs_cluster.this.arn
  task_definition = aws_ecs_task_definition.this.arn
  desired_count   = var.desired_count
  propagate_tags  = "SERVICE"
  tags            = var.tags

  # The old task is checkpointed and ends, then the new one resumes; side by side, the new one would only wait.
  deployment_minimum_healthy_percent = 0
  deployment_maximum_percent         = 100

  capacity_provider_strategy {
    capacity_provider = local.fargate ? "FARGATE_SPOT" : aws_ecs_capacity_provider.this[0].name
    weight            = 1
  }

  dynamic "network_configuration" {
    for_each = local.fargate ? [true] : []

    content {
      subnets         = var.subnet_ids
      security_groups = concat([aws_security_group.this.id], var.security_group_ids)
    }
  }
}
