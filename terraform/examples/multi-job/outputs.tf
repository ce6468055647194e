output "store" {
  description = "The jobs' snapshots."
  value       = "s3://${module.bucket.name}/jobs"
}

output "queue_url" {
  description = "Where commands to workers are sent."
  value       = module.queue.url
}

output "autoscaling_groups" {
  description = "The machines, by job."
  value       = { for job, fleet in module.fleet : job => fleet.name }
}
