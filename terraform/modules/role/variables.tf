variable "name" {
  description = "The role's name, and the instance profile's."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9+=,.@_-]{1,64}$", var.name))
    error_message = "A role's name has 1 to 64 of A-Z a-z 0-9 and + = , . @ _ -."
  }
}

variable "service" {
  description = "Who takes the role: `ec2` machines (modules fleet, and the machines of batch and ecs) or `ecs-tasks` (tasks of ecs, jobs of batch)."
  type        = string
  default     = "ec2"

  validation {
    condition     = contains(["ec2", "ecs-tasks"], var.service)
    error_message = "service is ec2 or ecs-tasks."
  }
}

variable "bucket" {
  description = "The name of the bucket with the snapshots."
  type        = string
}

variable "prefix" {
  description = "The keys that the role may reach begin with this: the store's prefix, and the job's name if the role is for one job. Ends with a slash."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*/$", var.prefix))
    error_message = "prefix is like jobs/ or jobs/nightly/: it ends with a slash, so that nightly/ does not open nightly-2/ too, and is not empty, because whoever may write a job's snapshots may run code in it."
  }
}

variable "workers_prefix" {
  description = "Where the store keeps its list of live workers, if the worker may enter itself: `jobs/~workers/` for the store s3://…/jobs. `reprieve ps` shows what is there, and nothing else depends on it. Whoever may write there may alter the entries of other jobs' workers."
  type        = string
  default     = null

  validation {
    condition     = var.workers_prefix == null || can(regex("(^|/)~workers/$", var.workers_prefix))
    error_message = "workers_prefix ends with ~workers/."
  }
}

variable "bucket_kms_key_arn" {
  description = "The KMS key that the bucket is encrypted with, if it is (output of the module `bucket`)."
  type        = string
  default     = null
}

variable "seal_kms_key_arn" {
  description = "The KMS key that workers seal snapshots with (REPRIEVE_KMS_KEY), if they do."
  type        = string
  default     = null
}

variable "queue" {
  description = "Which queue workers listen to (REPRIEVE_QUEUE): `own` (one that workers make for themselves, unless queue_arn says another), `shared` (then queue_arn) or `off`."
  type        = string
  default     = "off"

  validation {
    condition     = contains(["own", "shared", "off"], var.queue)
    error_message = "queue is own, shared or off."
  }
}

variable "queue_arn" {
  description = "The queue, with queue = shared; with own, if workers are not to make it themselves."
  type        = string
  default     = null

  validation {
    condition     = var.queue == "own" || (var.queue == "shared") == (var.queue_arn != null)
    error_message = "A shared queue needs queue_arn; without a queue there is none to name."
  }
}

variable "reply_queue_arn" {
  description = "The queue that commands are answered in (REPRIEVE_REPLY_QUEUE), if there is one."
  type        = string
  default     = null
}

variable "dead_letter_queue_arn" {
  description = "The queue that unreadable messages are put into (REPRIEVE_DEAD_LETTER_QUEUE), if there is one."
  type        = string
  default     = null
}

variable "autoscaling_group_name" {
  description = "The Auto Scaling group of the workers: they may keep and complete its lifecycle actions, and tag its instances."
  type        = string
  default     = null
}

variable "cpu_baseline_from_group" {
  description = "Whether workers may ask which instance types their group may have (REPRIEVE_CPU_BASELINE=auto-from-launch-template)."
  type        = bool
  default     = false

  validation {
    condition     = !var.cpu_baseline_from_group || var.autoscaling_group_name != null
    error_message = "cpu_baseline_from_group needs autoscaling_group_name: it is that group's instance types."
  }
}

variable "scale_in" {
  description = "Whether a machine may end itself when its job is done (module fleet, when_done = scale-in)."
  type        = bool
  default     = false

  validation {
    condition     = !var.scale_in || var.autoscaling_group_name != null
    error_message = "scale_in needs autoscaling_group_name: a machine may only shrink its own group."
  }
}

variable "log_group_arn" {
  description = "The CloudWatch log group that the container engine writes to, if it does. Without the `:*` at the end."
  type        = string
  default     = null
}

variable "repository_arns" {
  description = "ECR repositories to pull images from."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.repository_arns : can(regex("^arn:[^:]+:ecr:[^:]+:[0-9]{12}:repository/.+", arn))])
    error_message = "repository_arns are like arn:aws:ecr:REGION:ACCOUNT:repository/NAME."
  }
}

variable "policy_arns" {
  description = "More policies for the role, for what the job itself needs; by any name."
  type        = map(string)
  default     = {}
}

variable "permissions_boundary" {
  description = "The ARN of a permissions boundary, where an organisation asks for one."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags for everything that is made."
  type        = map(string)
  default     = {}
}
