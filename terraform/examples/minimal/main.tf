# The smallest fleet: one job on one spot machine at a time, and nothing left to chance but the machine.

locals {
  job = "nightly"
}

module "bucket" {
  source = "../../modules/bucket"

  name = var.bucket
}

module "role" {
  source = "../../modules/role"

  name                   = "reprieve-${local.job}"
  bucket                 = module.bucket.name
  prefix                 = "jobs/${local.job}/"
  workers_prefix         = "jobs/~workers/"
  autoscaling_group_name = local.job
}

module "fleet" {
  source = "../../modules/fleet"

  name                  = local.job
  store                 = "s3://${module.bucket.name}/jobs"
  image                 = var.image
  command               = var.command
  instance_profile_name = module.role.instance_profile_name
  vpc_id                = var.vpc_id
  subnet_ids            = var.subnet_ids
}
