# One job on machines that may be taken back: an Auto Scaling group that replaces them, and a launch template whose
# user data runs the job's container the way the README does.

data "aws_region" "this" {}

locals {
  # Types whose processors have the same instruction sets, by what EC2 documents of them. Flex types are left out: they
  # promise less than a whole processor.
  families = {
    intel-ice-lake        = ["c6i", "m6i", "r6i", "c6id", "m6id", "r6id", "c6in", "m6in", "r6in"]
    intel-sapphire-rapids = ["c7i", "m7i", "r7i"]
    amd-milan             = ["c6a", "m6a", "r6a"]
    amd-genoa             = ["c7a", "m7a", "r7a"]
  }
  family = local.families[var.cpu_family]
  types  = length(var.instance_types) > 0 ? var.instance_types : [for f in local.family : "${f}.${var.instance_size}"]

  ami = coalesce(var.ami_id, "resolve:ssm:/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64")

  hook = "${var.name}-goodbye"
  job  = coalesce(var.job, var.name)

  # docs/exit-codes.md. A test compares the numbers.
  exit_codes = {
    checkpointed = 75
    hopeless     = [126, 127, 170, 171, 172, 174, 175, 186]
  }

  settings = merge(
    var.settings,
    {
      REPRIEVE_STORE          = var.store
      REPRIEVE_JOB            = local.job
      REPRIEVE_TERM_GRACE     = "${var.term_grace_seconds}s"
      REPRIEVE_QUEUE          = var.queue
      REPRIEVE_LIFECYCLE_HOOK = local.hook
      REPRIEVE_INSTANCE_TAGS  = var.instance_tags ? "on" : "off"
    },
    var.queue_url == null ? {} : { REPRIEVE_QUEUE_URL = var.queue_url },
    var.dead_letter_queue == null ? {} : { REPRIEVE_DEAD_LETTER_QUEUE = var.dead_letter_queue },
    var.seal_kms_key_arn == null ? {} : { REPRIEVE_KMS_KEY = var.seal_kms_key_arn },
  )
  environment = merge({ AWS_REGION = data.aws_region.this.name }, var.environment, local.settings)

  log_options = var.log_group_name == null ? [] : [
    "--log-driver awslogs",
    "--log-opt awslogs-region=${data.aws_region.this.name}",
    "--log-opt awslogs-group=${var.log_group_name}",
  ]

  # The README's flags: two capabilities, no seccomp filter, and time to store a snapshot.
  docker_run = concat(
    [
      "docker run --rm --name reprieve-job",
      "--cap-add CHECKPOINT_RESTORE",
      "--cap-add SYS_PTRACE",
      "--security-opt seccomp=unconfined",
      "--stop-timeout ${var.term_grace_seconds}",
      "--env-file /etc/reprieve/job.env",
    ],
    [for volume in var.volumes : "--volume ${volume}"],
    local.log_options,
    [var.image],
    [for word in var.command : "'${replace(word, "'", "'\\''")}'"],
  )

  user_data = templatefile("${path.module}/user-data.sh.tftpl", {
    environment  = local.environment
    setup_script = var.setup_script
    image        = var.image
    registry     = try(regex("^[0-9]{12}\\.dkr\\.ecr\\.[a-z0-9-]+\\.amazonaws\\.com(?:\\.cn)?", var.image), null)
    region       = data.aws_region.this.name
    docker_run   = local.docker_run
    grace        = var.term_grace_seconds
    when_done    = var.when_done
    warm_pool    = var.warm_pool != null
    exit_codes   = local.exit_codes
  })

  tags = merge(var.tags, { Name = var.name, "reprieve:job" = local.job })
}

resource "aws_security_group" "this" {
  # checkov:skip=CKV2_AWS_5:attached by the launch template, which checkov does not follow
  name        = var.name
  description = "Machines of the fleet ${var.name}: nothing comes in"
  vpc_id      = var.vpc_id
  tags        = local.tags
}

resource "aws_vpc_security_group_egress_rule" "this" {
  for_each = merge([
    for rule in var.egress : {
      for block in rule.cidr_blocks : "${rule.protocol}-${rule.port}-${block}" => merge(rule, { block = block })
    }
  ]...)

  security_group_id = aws_security_group.this.id
  description       = each.value.description
  ip_protocol       = each.value.protocol
  from_port         = each.value.port
  to_port           = each.value.port
  cidr_ipv4         = each.value.block
}

resource "aws_launch_template" "this" {
  # checkov:skip=CKV_AWS_341:a container is one hop further from the metadata service than its host, and without it hears of no eviction
  name                   = var.name
  description            = "Runs the job ${local.job}"
  image_id               = local.ami
  instance_type          = local.types[0]
  update_default_version = true
  user_data              = base64encode(local.user_data)
  ebs_optimized          = true
  tags                   = var.tags

  # Spot is asked for by the group's policy, where a type and a price can vary; a template that asks for it too is refused.

  iam_instance_profile {
    name = var.instance_profile_name
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = var.imds_hop_limit
    instance_metadata_tags      = "enabled"
  }

  network_interfaces {
    device_index          = 0
    delete_on_termination = true
    security_groups       = concat([aws_security_group.this.id], var.security_group_ids)
  }

  block_device_mappings {
    device_name = var.root_device_name

    ebs {
      volume_type           = "gp3"
      volume_size           = var.root_volume_gib
      encrypted             = true
      delete_on_termination = true
    }
  }

  dynamic "tag_specifications" {
    for_each = ["instance", "volume", "network-interface"]

    content {
      resource_type = tag_specifications.value
      tags          = local.tags
    }
  }

  lifecycle {
    precondition {
      condition     = length(base64encode(local.user_data)) <= 21844
      error_message = "The user data has more than EC2's 16 KiB: put long settings, environment or setup_script into the image."
    }
  }
}

resource "aws_autoscaling_group" "this" {
  name                 = var.name
  vpc_zone_identifier  = var.subnet_ids
  min_size             = var.min_size
  max_size             = var.max_size
  desired_capacity     = var.desired_capacity
  capacity_rebalance   = var.capacity_rebalance && var.on_demand_percentage < 100
  suspended_processes  = var.suspended_processes
  health_check_type    = "EC2"
  termination_policies = ["OldestLaunchTemplate", "OldestInstance"]
  # What the module alarms compares.
  enabled_metrics = ["GroupDesiredCapacity", "GroupInServiceInstances"]
  # Spot capacity may take hours to come; an apply does not wait for it.
  wait_for_capacity_timeout = "0"
  # The group's end evicts its machines; Terraform waits for them, and the snapshots are kept.
  force_delete = false

  dynamic "launch_template" {
    for_each = var.warm_pool == null ? [] : [true]

    content {
      id      = aws_launch_template.this.id
      version = aws_launch_template.this.latest_version
    }
  }

  dynamic "mixed_instances_policy" {
    for_each = var.warm_pool == null ? [true] : []

    content {
      instances_distribution {
        on_demand_base_capacity                  = var.on_demand_base_capacity
        on_demand_percentage_above_base_capacity = var.on_demand_percentage
        spot_allocation_strategy                 = var.spot_allocation_strategy
        spot_max_price                           = var.spot_max_price
      }

      launch_template {
        launch_template_specification {
          launch_template_id = aws_launch_template.this.id
          version            = aws_launch_template.this.latest_version
        }

        dynamic "override" {
          for_each = var.instance_requirements == null ? local.types : []

          content {
            instance_type = override.value
          }
        }

        dynamic "override" {
          for_each = var.instance_requirements == null ? [] : [var.instance_requirements]

          content {
            instance_requirements {
              allowed_instance_types = [for f in local.family : "${f}.*"]
              bare_metal             = "excluded"
              burstable_performance  = "excluded"

              vcpu_count {
                min = override.value.vcpus_min
                max = override.value.vcpus_max
              }

              memory_mib {
                min = override.value.memory_mib_min
                max = override.value.memory_mib_max
              }
            }
          }
        }
      }
    }
  }

  # A machine is replaced by one that stands ready: the new one waits in the store's queue for the old one's goodbye.
  instance_maintenance_policy {
    min_healthy_percentage = 100
    max_healthy_percentage = 200
  }

  dynamic "instance_refresh" {
    for_each = var.instance_refresh ? [true] : []

    content {
      strategy = "Rolling"

      preferences {
        min_healthy_percentage = 100
        max_healthy_percentage = 200
        instance_warmup        = 60
        skip_matching          = true
      }
    }
  }

  dynamic "warm_pool" {
    for_each = var.warm_pool == null ? [] : [var.warm_pool]

    content {
      pool_state                  = "Stopped"
      min_size                    = warm_pool.value.min_size
      max_group_prepared_capacity = warm_pool.value.max_size

      instance_reuse_policy {
        reuse_on_scale_in = false
      }
    }
  }

  dynamic "tag" {
    for_each = local.tags

    content {
      key                 = tag.key
      value               = tag.value
      propagate_at_launch = true
    }
  }

  lifecycle {
    precondition {
      condition     = var.max_size > var.desired_capacity || !var.capacity_rebalance || var.on_demand_percentage == 100
      error_message = "capacity_rebalance starts a replacement first, so max_size has to be above desired_capacity."
    }
  }
}

# The machine is kept until the worker says that its snapshot is durable, and goes in any case when nobody speaks.
resource "aws_autoscaling_lifecycle_hook" "this" {
  name                   = local.hook
  autoscaling_group_name = aws_autoscaling_group.this.name
  lifecycle_transition   = "autoscaling:EC2_INSTANCE_TERMINATING"
  heartbeat_timeout      = var.heartbeat_timeout_seconds
  default_result         = "CONTINUE"
}
