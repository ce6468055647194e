# What tests/fleet.rs evicts: a fleet with a queue of its own, and nothing that only costs time to apply.

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

variable "command" {
  type = list(string)
}

variable "vpc_id" {
  type = string
}

variable "subnet_ids" {
  type = list(string)
}

module "bucket" {
  source = "../../../terraform/modules/bucket"

  name          = var.bucket
  force_destroy = true
}

module "queue" {
  source = "../../../terraform/modules/queue"

  name                    = "eviction-commands"
  autoscaling_group_names = ["eviction"]
}

module "role" {
  source = "../../../terraform/modules/role"

  name                   = "eviction"
  bucket                 = module.bucket.name
  prefix                 = "jobs/eviction/"
  workers_prefix         = "jobs/~workers/"
  queue                  = "shared"
  queue_arn              = module.queue.arn
  dead_letter_queue_arn  = module.queue.dead_letter_arn
  autoscaling_group_name = "eviction"
}

module "fleet" {
  source = "../../../terraform/modules/fleet"

  name                  = "eviction"
  store                 = "s3://${module.bucket.name}/jobs"
  image                 = var.image
  command               = var.command
  queue                 = "shared"
  queue_url             = module.queue.url
  dead_letter_queue     = module.queue.dead_letter_url
  instance_profile_name = module.role.instance_profile_name
  vpc_id                = var.vpc_id
  subnet_ids            = var.subnet_ids
}

output "facts" {
  value = {
    bucket   = module.bucket.name
    job      = module.fleet.job
    queue    = module.queue.url
    dead     = module.queue.dead_letter_url
    group    = module.fleet.name
    hook     = module.fleet.lifecycle_hook_name
    template = module.fleet.launch_template_id
    role     = module.role.name
  }
}
