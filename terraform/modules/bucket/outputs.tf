output "name" {
  description = "The bucket's name. A worker's store is `s3://NAME/PREFIX`."
  value       = aws_s3_bucket.this.id

  # Whoever uses the name gets a bucket that is closed, encrypted and tidy already.
  depends_on = [
    aws_s3_bucket_policy.this,
    aws_s3_bucket_ownership_controls.this,
    aws_s3_bucket_public_access_block.this,
    aws_s3_bucket_server_side_encryption_configuration.this,
  ]
}

output "arn" {
  description = "The bucket's ARN."
  value       = aws_s3_bucket.this.arn
}

output "region" {
  description = "The bucket's region."
  value       = aws_s3_bucket.this.region
}

output "kms_key_arn" {
  description = "The KMS key that the bucket is encrypted with; null with SSE-S3. The module `role` wants it."
  value       = local.encrypted_with
}

output "replication_role_arn" {
  description = "The role that S3 replicates with; null without replication."
  value       = one(aws_iam_role.replication[*].arn)
}
