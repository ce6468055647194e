variable "region" {
  description = "The AWS region."
  type        = string
  default     = "eu-central-1"
}

variable "bucket" {
  description = "A name for the bucket, unique in all of AWS."
  type        = string
}

variable "image" {
  description = "The container image of the job, with Reprieve as its entry point."
  type        = string
}

variable "command" {
  description = "The job's command line, if not the image's own."
  type        = list(string)
  default     = []
}

variable "vpc_id" {
  description = "The VPC to run in."
  type        = string
}

variable "subnet_ids" {
  description = "Its subnets, with a way to S3 and to the registry."
  type        = list(string)
}

variable "batch_service_role_arn" {
  description = "The role that Batch itself works with, if not its service-linked one."
  type        = string
  default     = null
}
