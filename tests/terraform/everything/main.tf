# What the examples leave out: every module with the options that change which resources there are.

terraform {
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }
}

variable "bucket" {
  type = string
}

variable "image" {
  type = string
}

variable "vpc_id" {
  type = string
}

variable "subnet_ids" {
  type = list(string)
}

module "copy" {
  source = "../../../terraform/modules/bucket"

  name       = "${var.bucket}-copy"
  versioning = true
}

module "bucket" {
  source = "../../../terraform/modules/bucket"

  name           = var.bucket
  versioning     = true
  create_kms_key = true
  force_destroy  = true

  replication = {
    bucket_arn  = module.copy.arn
    kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/0a1b2c3d"
  }
}

module "queue" {
  source = "../../../terraform/modules/queue"

  name                    = "everything"
  autoscaling_group_names = ["everything"]
  sender_arns             = ["arn:aws:iam::123456789012:role/operator"]
  events                  = { state_change = true }
}

resource "aws_cloudwatch_log_group" "this" {
  name = "/reprieve/everything"
}

module "machine_role" {
  source = "../../../terraform/modules/role"

  name                   = "everything-machine"
  bucket                 = module.bucket.name
  bucket_kms_key_arn     = module.bucket.kms_key_arn
  prefix                 = "jobs/everything/"
  seal_kms_key_arn       = module.bucket.kms_key_arn
  queue                  = "own"
  dead_letter_queue_arn  = module.queue.dead_letter_arn
  autoscaling_group_name = "everything"
  scale_in               = true
  log_group_arn          = aws_cloudwatch_log_group.this.arn
  repository_arns        = ["arn:aws:ecr:eu-central-1:123456789012:repository/job"]
  policy_arns            = { session = "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore" }
}

module "task_role" {
  source = "../../../terraform/modules/role"

  name    = "everything-task"
  service = "ecs-tasks"
  bucket  = module.bucket.name
  prefix  = "jobs/everything-ecs/"
}

# On demand, with a warm pool, an image from ECR, every setting, quotes in the command.
module "fleet" {
  source = "../../../terraform/modules/fleet"

  name                  = "everything"
  job                   = "everything.1"
  store                 = "s3://${module.bucket.name}/jobs"
  image                 = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/job:1"
  command               = ["sh", "-c", "echo \"it's $HOME\" && exec ./work 'two words'"]
  settings              = { REPRIEVE_KEEP_HOURLY = "3", REPRIEVE_LOG_FORMAT = "json" }
  environment           = { SEED = "4 %d $HOME" }
  volumes               = ["/mnt/data:/data", "/etc/ssl:/etc/ssl:ro"]
  setup_script          = "mkdir -p /mnt/data"
  term_grace_seconds    = 100
  queue                 = "own"
  dead_letter_queue     = module.queue.dead_letter_url
  seal_kms_key_arn      = module.bucket.kms_key_arn
  instance_profile_name = module.machine_role.instance_profile_name
  log_group_name        = aws_cloudwatch_log_group.this.name
  instance_types        = ["m6i.large"]
  on_demand_percentage  = 100
  when_done             = "scale-in"
  warm_pool             = {}
  vpc_id                = var.vpc_id
  subnet_ids            = var.subnet_ids
  tags                  = { team = "night" }
}

module "ecs" {
  source = "../../../terraform/modules/ecs"

  name = "everything-on-machines"
  # moto's answer about a service without a network of its own makes the provider crash.
  create_service = false
  store          = "s3://${module.bucket.name}/jobs"
  job            = "everything-ecs"
  image          = var.image
  command        = ["serve"]
  secrets        = { PASSWORD = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:db" }
  task_role_arn  = module.task_role.arn
  log_group_name = aws_cloudwatch_log_group.this.name
  vpc_id         = var.vpc_id
  subnet_ids     = var.subnet_ids
}

module "without_checkpoints" {
  source = "../../../terraform/modules/ecs"

  name           = "everything-on-serverless"
  capacity       = "fargate-spot"
  store          = null
  image          = var.image
  task_role_arn  = module.task_role.arn
  log_group_name = aws_cloudwatch_log_group.this.name
  vpc_id         = var.vpc_id
  subnet_ids     = var.subnet_ids
}

module "alarms" {
  source = "../../../terraform/modules/alarms"

  name                   = "everything"
  log_group_name         = aws_cloudwatch_log_group.this.name
  autoscaling_group_name = module.fleet.name
  queue_name             = module.queue.name
  dead_letter_queue_name = module.queue.dead_letter_name
  snapshot_every_hours   = 4
  alarm_actions          = ["arn:aws:sns:eu-central-1:123456789012:oncall"]
}

output "queue_url" {
  value = module.queue.url
}
