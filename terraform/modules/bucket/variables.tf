variable "name" {
  description = "The bucket's name, unique in all of AWS."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.name))
    error_message = "A bucket's name has 3 to 63 of a-z, 0-9 and -, and begins and ends with a letter or digit. Dots are refused: they break TLS."
  }
}

variable "kms_key_arn" {
  description = "The KMS key that S3 encrypts objects with. Without one, and without create_kms_key, S3 uses its own keys (SSE-S3)."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key_arn == null || can(regex("^arn:[^:]+:kms:[^:]+:[0-9]{12}:key/.+", var.kms_key_arn))
    error_message = "kms_key_arn is the ARN of a key, arn:aws:kms:REGION:ACCOUNT:key/ID: policies cannot name an alias."
  }
}

variable "create_kms_key" {
  description = "Whether to make a KMS key for this bucket. Removing the key makes every snapshot unreadable for good, so KMS waits for 30 days."
  type        = bool
  default     = false

  validation {
    condition     = !(var.create_kms_key && var.kms_key_arn != null)
    error_message = "Give either kms_key_arn or create_kms_key, not both."
  }
}

variable "versioning" {
  description = "Whether S3 keeps what was overwritten or removed. Off, because HEAD is replaced at each sign of life of a worker, and swept memory would stay. Replication needs it."
  type        = bool
  default     = false
}

variable "noncurrent_days" {
  description = "With versioning: for how many days S3 keeps what was overwritten or removed."
  type        = number
  default     = 3

  validation {
    condition     = var.noncurrent_days >= 1 && floor(var.noncurrent_days) == var.noncurrent_days
    error_message = "noncurrent_days is a whole number of at least 1."
  }
}

variable "abort_incomplete_days" {
  description = "After how many days S3 removes the pieces of an upload that was never completed."
  type        = number
  default     = 1

  validation {
    condition     = var.abort_incomplete_days >= 1 && floor(var.abort_incomplete_days) == var.abort_incomplete_days
    error_message = "abort_incomplete_days is a whole number of at least 1."
  }
}

variable "replication" {
  description = "Copy every object to a bucket in another region (which must exist, with versioning). A copy lags behind, and a job may only be resumed there after its workers here have ended."
  type = object({
    bucket_arn  = string
    kms_key_arn = optional(string)
  })
  default = null

  validation {
    condition     = var.replication == null || var.versioning
    error_message = "S3 replicates only versioned buckets: set versioning = true as well."
  }

  validation {
    condition     = var.replication == null || can(regex("^arn:[^:]+:s3:::[a-z0-9.-]+$", var.replication.bucket_arn))
    error_message = "replication.bucket_arn is the ARN of a bucket, arn:aws:s3:::NAME."
  }

  validation {
    condition     = var.replication == null || !(var.create_kms_key || var.kms_key_arn != null) || try(var.replication.kms_key_arn, null) != null
    error_message = "What is encrypted with a KMS key here needs one there: set replication.kms_key_arn."
  }
}

variable "access_log" {
  description = "The bucket that gets S3's access log, if wanted."
  type        = object({ bucket = string })
  default     = null
}

variable "force_destroy" {
  description = "Whether `terraform destroy` may remove the bucket with all snapshots in it."
  type        = bool
  default     = false
}

variable "tags" {
  description = "Tags for everything that is made."
  type        = map(string)
  default     = {}
}
