# What a worker may do. The actions and their reasons are in infra/policy/worker.iam.json, which the tests compare with
# what the worker calls; this module only leaves out what is not used and fills in the names.

data "aws_partition" "this" {}
data "aws_region" "this" {}
data "aws_caller_identity" "this" {}

locals {
  used = {
    store             = true
    bucket-key        = var.bucket_kms_key_arn != null
    seal-key          = var.seal_kms_key_arn != null
    own-queue         = var.queue == "own"
    shared-queue      = var.queue == "shared"
    dead-letter-queue = var.dead_letter_queue_arn != null
    lifecycle         = var.autoscaling_group_name != null
    tags              = var.autoscaling_group_name != null
    scale-in          = var.scale_in
    logs              = var.log_group_arn != null
    registry          = length(var.repository_arns) > 0
  }

  document = jsondecode(templatefile("${path.module}/../../../infra/policy/worker.iam.json", {
    partition         = data.aws_partition.this.partition
    region            = data.aws_region.this.name
    account           = data.aws_caller_identity.this.account_id
    bucket            = var.bucket
    prefix            = var.prefix
    bucket_key        = var.bucket_kms_key_arn == null ? "" : var.bucket_kms_key_arn
    seal_key          = var.seal_kms_key_arn == null ? "" : var.seal_kms_key_arn
    queue             = var.queue_arn == null ? "" : var.queue_arn
    dead_letter_queue = var.dead_letter_queue_arn == null ? "" : var.dead_letter_queue_arn
    group             = var.autoscaling_group_name == null ? "" : var.autoscaling_group_name
    log_group         = var.log_group_arn == null ? "" : var.log_group_arn
    # Filled in below: one placeholder stands for a list.
    repository = "REPOSITORIES"
  }))

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      for statement in local.document.statements : merge(
        {
          Sid      = statement.sid
          Effect   = "Allow"
          Action   = sort(keys(statement.actions))
          Resource = flatten([for r in statement.resources : r == "REPOSITORIES" ? var.repository_arns : [r]])
        },
        try({ Condition = statement.condition }, {}),
      ) if local.used[statement.feature]
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
