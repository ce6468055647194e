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
  description = "The container image of the jobs, with Reprieve as its entry point."
  type        = string
}

variable "jobs" {
  description = "The jobs by name, with their command lines."
  type        = map(list(string))
  default = {
    nightly = ["python3", "train.py", "--set", "nightly"]
    weekly  = ["python3", "train.py", "--set", "weekly"]
  }
}

variable "alarm_topic_arns" {
  description = "SNS topics that hear of alarms."
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
