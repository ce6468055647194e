# AWS Batch: jobs are submitted, evicted, started again by Batch, and resume.

module "bucket" {
  source = "../../modules/bucket"

  name = var.bucket
}

module "role" {
  source = "../../modules/role"

  name    = "reprieve-batch-job"
  service = "ecs-tasks"
  bucket  = module.bucket.name
  prefix  = "jobs/"
}

module "batch" {
  source = "../../modules/batch"

  name         = "reprieve"
  store        = "s3://${module.bucket.name}/jobs"
  image        = var.image
  command      = var.command
  job_role_arn = module.role.arn
  vpc_id       = var.vpc_id
  subnet_ids   = var.subnet_ids

  service_role_arn = var.batch_service_role_arn
}
