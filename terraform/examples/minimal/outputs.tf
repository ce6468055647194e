output "store" {
  description = "The job's snapshots: `reprieve snapshots --store … --job …` lists them."
  value       = "s3://${module.bucket.name}/jobs"
}

output "job" {
  description = "The job's name."
  value       = module.fleet.job
}

output "autoscaling_group" {
  description = "The machines."
  value       = module.fleet.name
}
