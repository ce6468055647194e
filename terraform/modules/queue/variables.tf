variable "name" {
  description = "The queue's name; the dead-letter queue gets `-dead` behind it, the rules their kind."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]{1,48}$", var.name))
    error_message = "A queue's name has 1 to 48 of A-Z a-z 0-9 _ and - here, so that the names made from it fit as well."
  }

  validation {
    condition     = !startswith(var.name, "reprieve-")
    error_message = "Names that begin with reprieve- belong to the workers' own queues, and a worker may remove those that look orphaned. Choose another name."
  }
}

variable "events" {
  description = "Which events of EC2, Auto Scaling and AWS Health go to the queue. All spot machines of the account are in them; a worker leaves alone what is not about its own machine."
  type = object({
    spot_interruption        = optional(bool, true)
    rebalance_recommendation = optional(bool, true)
    state_change             = optional(bool, false)
    scheduled_change         = optional(bool, true)
    terminate_lifecycle      = optional(bool, true)
  })
  default = {}
}

variable "autoscaling_group_names" {
  description = "The Auto Scaling groups whose termination hooks count; empty: all of the account."
  type        = list(string)
  default     = []
}

variable "notice_age_seconds" {
  description = "How old a spot notice may be when it is delivered. The machine is gone after 120 s, and a later notice is about nobody."
  type        = number
  default     = 120

  validation {
    condition     = var.notice_age_seconds >= 60 && var.notice_age_seconds <= 300
    error_message = "notice_age_seconds is from 60 (EventBridge's least) to 300: a spot notice is of no use after 120."
  }
}

variable "visibility_timeout_seconds" {
  description = "For how long a received message is hidden from others. A worker extends it while a checkpoint runs."
  type        = number
  default     = 60

  validation {
    condition     = var.visibility_timeout_seconds >= 20 && var.visibility_timeout_seconds <= 43200
    error_message = "visibility_timeout_seconds is from 20 to 43200."
  }
}

variable "message_retention_seconds" {
  description = "For how long a message waits for its worker. Short, because commands and notices age fast."
  type        = number
  default     = 3600

  validation {
    condition     = var.message_retention_seconds >= 300 && var.message_retention_seconds <= 86400
    error_message = "message_retention_seconds is from 300 to 86400: an older notice or command is about a machine that is gone."
  }
}

variable "max_receive_count" {
  description = "How often a message is received before it goes to the dead-letter queue. High, because in a shared queue each worker that is not meant receives it too."
  type        = number
  default     = 1000

  validation {
    condition     = var.max_receive_count >= 5 && var.max_receive_count <= 1000
    error_message = "max_receive_count is from 5 to 1000 (SQS's most). Every worker that gives a message back counts as a receive; 5 will do for a queue that only one worker reads."
  }
}

variable "dead_letter_retention_seconds" {
  description = "For how long the dead-letter queue keeps messages; they count from when they were first sent."
  type        = number
  default     = 1209600

  validation {
    condition     = var.dead_letter_retention_seconds >= 86400 && var.dead_letter_retention_seconds <= 1209600
    error_message = "dead_letter_retention_seconds is from 86400 (a day) to 1209600 (14 days)."
  }
}

variable "sender_arns" {
  description = "Roles and users of other accounts that may send commands. Whoever may send can stop any job of the fleet. Those of this account need only a policy of their own."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.sender_arns : can(regex("^arn:[^:]+:iam::[0-9]{12}:(role|user)/.+", arn))])
    error_message = "sender_arns are ARNs of roles or users, arn:aws:iam::ACCOUNT:role/NAME; * would let everybody stop your jobs."
  }
}

variable "kms_key_arn" {
  description = "A KMS key for the messages; its policy must let events.amazonaws.com use it. Without one SQS uses its own keys."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key_arn == null || can(regex("^arn:[^:]+:kms:[^:]+:[0-9]{12}:key/.+", var.kms_key_arn))
    error_message = "kms_key_arn is the ARN of a key, arn:aws:kms:REGION:ACCOUNT:key/ID. SQS's own alias/aws/sqs would shut EventBridge out."
  }
}

variable "restrict_redrive" {
  description = "Whether only this queue may use the dead-letter queue as one. Workers' own queues need it as well: then say false."
  type        = bool
  default     = false
}

variable "tags" {
  description = "Tags for everything that is made."
  type        = map(string)
  default     = {}
}
