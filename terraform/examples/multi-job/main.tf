# Several jobs: a fleet and a role for each, which may reach its own snapshots only; one bucket, encrypted with a key of
# its own; one queue for commands and notices; logs and alarms.

module "bucket" {
  source = "../../modules/bucket"

  name           = var.bucket
  create_kms_key = true
}

module "queue" {
  source = "../../modules/queue"

  name                    = "fleet-commands"
  autoscaling_group_names = keys(var.jobs)
}

resource "aws_cloudwatch_log_group" "job" {
  # checkov:skip=CKV_AWS_158:CloudWatch encrypts by itself; a key of one's own is a choice that costs money
  # checkov:skip=CKV_AWS_338:output of jobs is looked at within days
  for_each = var.jobs

  name              = "/reprieve/${each.key}"
  retention_in_days = 30
}

module "role" {
  source   = "../../modules/role"
  for_each = var.jobs

  name                   = "reprieve-${each.key}"
  bucket                 = module.bucket.name
  bucket_kms_key_arn     = module.bucket.kms_key_arn
  prefix                 = "jobs/${each.key}/"
  queue                  = "shared"
  queue_arn              = module.queue.arn
  dead_letter_queue_arn  = module.queue.dead_letter_arn
  autoscaling_group_name = each.key
  log_group_arn          = aws_cloudwatch_log_group.job[each.key].arn
  scale_in               = true
}

module "fleet" {
  source   = "../../modules/fleet"
  for_each = var.jobs

  name                  = each.key
  store                 = "s3://${module.bucket.name}/jobs"
  image                 = var.image
  command               = each.value
  queue                 = "shared"
  queue_url             = module.queue.url
  dead_letter_queue     = module.queue.dead_letter_url
  instance_profile_name = module.role[each.key].instance_profile_name
  log_group_name        = aws_cloudwatch_log_group.job[each.key].name
  when_done             = "scale-in"
  vpc_id                = var.vpc_id
  subnet_ids            = var.subnet_ids

  instance_requirements = {
    vcpus_min      = 4
    vcpus_max      = 8
    memory_mib_min = 16384
  }
}

module "alarms" {
  source   = "../../modules/alarms"
  for_each = var.jobs

  name                   = each.key
  log_group_name         = aws_cloudwatch_log_group.job[each.key].name
  autoscaling_group_name = module.fleet[each.key].name
  queue_name             = module.queue.name
  dead_letter_queue_name = module.queue.dead_letter_name
  alarm_actions          = var.alarm_topic_arns
}
