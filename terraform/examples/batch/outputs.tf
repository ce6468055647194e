output "submit" {
  description = "How to submit a job: two with the same name in the store are the same job."
  value       = "aws batch submit-job --job-name nightly --job-queue ${module.batch.job_queue_name} --job-definition ${module.batch.job_definition_name} --container-overrides 'environment=[{name=REPRIEVE_JOB,value=nightly}]'"
}

output "store" {
  description = "The jobs' snapshots."
  value       = "s3://${module.bucket.name}/jobs"
}
