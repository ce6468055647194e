# What a worker may do. The actions and their reasons are in infra/policy/worker.iam.json, which the tests compare with
# what the worker calls; this module leaves out what is not used and knows the names.

data "aws_partition" "this" {}
data "aws_region" "this" {}
data "aws_caller_identity" "this" {}

locals {
  arn    = "arn:${data.aws_partition.this.partition}"
  here   = "${data.aws_region.this.name}:${data.aws_caller_identity.this.account_id}"
  own    = "${local.arn}:sqs:${local.here}:reprieve-*"
  group  = var.autoscaling_group_name
  listed = jsondecode(file("${path.module}/../../../infra/policy/worker.iam.json")).actions

  # What the document calls `needs`.
  needed = {
    ""                            = true
    workers                       = var.workers_prefix != null
    bucket-key                    = var.bucket_kms_key_arn != null
    kms-key                       = var.seal_kms_key_arn != null
    queue                         = var.queue != "off"
    reply-queue                   = var.reply_queue_arn != null
    "queue own without queue-url" = var.queue == "own" && var.queue_arn == null
    lifecycle                     = local.group != null
    instance-tags                 = local.group != null
    group-types                   = var.cpu_baseline_from_group && local.group != null
    scale-in                      = var.scale_in
    logs                          = var.log_group_arn != null
    registry                      = length(var.repository_arns) > 0
  }

  # What the document calls `on`: nothing, where there is nothing of the kind.
  resources = {
    bucket                    = ["${local.arn}:s3:::${var.bucket}"]
    objects                   = ["${local.arn}:s3:::${var.bucket}/${var.prefix}*"]
    workers                   = [for prefix in var.workers_prefix[*] : "${local.arn}:s3:::${var.bucket}/${prefix}*"]
    bucket-key                = var.bucket_kms_key_arn[*]
    seal-key                  = var.seal_kms_key_arn[*]
    queue                     = var.queue_arn == null ? [local.own] : [var.queue_arn]
    dead-letter-queue         = var.dead_letter_queue_arn[*]
    reply-queue               = var.reply_queue_arn[*]
    "queues named reprieve-*" = [local.own]
    group                     = [for name in local.group[*] : "${local.arn}:autoscaling:${local.here}:autoScalingGroup:*:autoScalingGroupName/${name}"]
    "own instance"            = ["${local.arn}:ec2:${local.here}:instance/*"]
    log-group                 = [for arn in var.log_group_arn[*] : "${arn}:*"]
    repositories              = var.repository_arns
    "*"                       = ["*"]
  }

  conditions = {
    bucket     = { StringLike = { "s3:prefix" = ["${var.prefix}*"] } }
    bucket-key = { StringEquals = { "kms:ViaService" = "s3.${data.aws_region.this.name}.amazonaws.com" } }
    "own instance" = {
      StringEquals              = { "ec2:ResourceTag/aws:autoscaling:groupName" = local.group }
      "ForAllValues:StringLike" = { "aws:TagKeys" = ["reprieve:*"] }
    }
  }

  used = [for entry in local.listed : entry if local.needed[lookup(entry, "needs", "")] && length(local.resources[entry.on]) > 0]

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      for on, actions in { for entry in local.used : entry.on => entry.action... } : merge(
        {
          Sid      = on == "*" ? "Everywhere" : join("", [for word in regexall("[a-z]+", on) : title(word)])
          Effect   = "Allow"
          Action   = sort(distinct(actions))
          Resource = local.resources[on]
        },
        contains(keys(local.conditions), on) ? { Condition = local.conditions[on] } : {},
      )
    ]
  })
}

resource "aws_iam_role" "this" {
  name                 = var.name
  description          = "A Reprieve worker: snapshots below ${var.prefix} in ${var.bucket}"
  permissions_boundary = var.permissions_boundary
  tags                 = var.tags

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [merge(
      {
        Effect    = "Allow"
        Principal = { Service = "${var.service}.amazonaws.com" }
        Action    = "sts:AssumeRole"
      },
      # ECS says for whom it asks; EC2 does not.
      var.service == "ec2" ? {} : {
        Condition = { StringEquals = { "aws:SourceAccount" = data.aws_caller_identity.this.account_id } }
      },
    )]
  })
}

resource "aws_iam_role_policy" "this" {
  name   = "worker"
  role   = aws_iam_role.this.id
  policy = local.policy
}

resource "aws_iam_role_policy_attachment" "more" {
  for_each = var.policy_arns

  role       = aws_iam_role.this.name
  policy_arn = each.value
}

resource "aws_iam_instance_profile" "this" {
  count = var.service == "ec2" ? 1 : 0

  name = var.name
  role = aws_iam_role.this.name
  tags = var.tags
}
