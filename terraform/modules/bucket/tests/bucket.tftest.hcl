mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_region" {
    defaults = { name = "eu-central-1" }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
}

variables {
  name = "snapshots"
}

run "closed_encrypted_and_without_versions_by_default" {
  command = plan

  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.this.block_public_acls, aws_s3_bucket_public_access_block.this.block_public_policy,
      aws_s3_bucket_public_access_block.this.ignore_public_acls, aws_s3_bucket_public_access_block.this.restrict_public_buckets,
    ])
    error_message = "The bucket is not closed to the public."
  }

  assert {
    condition     = one(aws_s3_bucket_server_side_encryption_configuration.this.rule).apply_server_side_encryption_by_default[0].sse_algorithm == "AES256"
    error_message = "The bucket is not encrypted."
  }

  assert {
    condition     = aws_s3_bucket_versioning.this.versioning_configuration[0].status == "Disabled"
    error_message = "Versions are kept."
  }

  assert {
    condition     = length(aws_s3_bucket_lifecycle_configuration.this.rule) == 1 && length(aws_s3_bucket_lifecycle_configuration.this.rule[0].expiration) == 0
    error_message = "A rule expires objects, and would expire those that snapshots need."
  }

  assert {
    condition     = !aws_s3_bucket.this.force_destroy && length(aws_kms_key.this) == 0 && length(aws_s3_bucket_replication_configuration.this) == 0
    error_message = "Something is made that nobody asked for."
  }
}

run "a_key_of_its_own" {
  command = plan

  variables {
    create_kms_key = true
  }

  assert {
    condition     = one(aws_s3_bucket_server_side_encryption_configuration.this.rule).apply_server_side_encryption_by_default[0].sse_algorithm == "aws:kms" && aws_kms_key.this[0].enable_key_rotation
    error_message = "The key is not used or not rotated."
  }
}

run "old_versions_go" {
  command = plan

  variables {
    versioning = true
  }

  assert {
    condition     = aws_s3_bucket_lifecycle_configuration.this.rule[1].noncurrent_version_expiration[0].noncurrent_days == 3
    error_message = "Old versions stay for ever."
  }
}

# Not in the apply: moto fails on a log bucket that has a policy for everybody.
run "an_access_log_if_wanted" {
  command = plan

  variables {
    access_log = { bucket = "logs" }
  }

  assert {
    condition     = aws_s3_bucket_logging.this[0].target_bucket == "logs" && aws_s3_bucket_logging.this[0].target_prefix == "snapshots/"
    error_message = "The access log goes elsewhere."
  }
}

run "dots_in_a_name_are_refused" {
  command = plan

  variables {
    name = "my.snapshots"
  }

  expect_failures = [var.name]
}

run "two_keys_are_refused" {
  command = plan

  variables {
    create_kms_key = true
    kms_key_arn    = "arn:aws:kms:eu-central-1:123456789012:key/0a1b"
  }

  expect_failures = [var.create_kms_key]
}

run "an_alias_is_no_key" {
  command = plan

  variables {
    kms_key_arn = "alias/snapshots"
  }

  expect_failures = [var.kms_key_arn]
}

run "replication_needs_versions" {
  command = plan

  variables {
    replication = { bucket_arn = "arn:aws:s3:::copy" }
  }

  expect_failures = [var.replication]
}

run "replication_of_what_is_encrypted_needs_a_key_there" {
  command = plan

  variables {
    versioning     = true
    create_kms_key = true
    replication    = { bucket_arn = "arn:aws:s3:::copy" }
  }

  expect_failures = [var.replication]
}
