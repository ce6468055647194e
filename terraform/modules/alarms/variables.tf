variable "name" {
  description = "What the alarms' names begin with: the job's or the fleet's name."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", var.name))
    error_message = "The name has 1 to 128 of A-Z a-z 0-9 . _ - and begins with a letter or digit."
  }
}

variable "log_group_name" {
  description = "The log group with the container's output, one for each job: the worker's JSON lines in it become metrics."
  type        = string
}

variable "namespace" {
  description = "The CloudWatch namespace of the metrics; `Reprieve/` and the name if not set."
  type        = string
  default     = null

  validation {
    condition     = var.namespace == null || !startswith(coalesce(var.namespace, "-"), "AWS/")
    error_message = "Namespaces that begin with AWS/ are Amazon's own."
  }
}

variable "alarm_actions" {
  description = "Who is told of an alarm and of its end: ARNs of SNS topics, say."
  type        = list(string)
  default     = []
}

variable "snapshot_every_hours" {
  description = "Raise an alarm if no snapshot became durable for so many hours. Only for jobs that are checkpointed from time to time, and never rest."
  type        = number
  default     = null

  validation {
    condition     = var.snapshot_every_hours == null || try(var.snapshot_every_hours >= 1 && var.snapshot_every_hours <= 24 && floor(var.snapshot_every_hours) == var.snapshot_every_hours, false)
    error_message = "snapshot_every_hours is a whole number from 1 to 24."
  }
}

variable "resumes_per_hour" {
  description = "Raise an alarm if the job is resumed more often than this in an hour: it is evicted all the time, or ends right after each resume."
  type        = number
  default     = 6

  validation {
    condition     = var.resumes_per_hour >= 1
    error_message = "resumes_per_hour is at least 1."
  }
}

variable "autoscaling_group_name" {
  description = "The fleet's Auto Scaling group: raise an alarm if machines are missing for half an hour."
  type        = string
  default     = null
}

variable "queue_name" {
  description = "The fleet's queue: raise an alarm if a message waits in it for ten minutes."
  type        = string
  default     = null
}

variable "dead_letter_queue_name" {
  description = "The dead-letter queue: raise an alarm if anything is in it."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags for the alarms."
  type        = map(string)
  default     = {}
}
