variable "name" {
  description = "The name of the compute environment, the queue and the job definition."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$", var.name))
    error_message = "The name has 1 to 100 of A-Z a-z 0-9 _ - and begins with a letter or digit."
  }
}

variable "store" {
  description = "Where snapshots are kept (REPRIEVE_STORE), s3://BUCKET/PREFIX."
  type        = string

  validation {
    condition     = can(regex("^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._/-]*)?$", var.store))
    error_message = "store is s3://BUCKET/PREFIX: the next attempt runs on another machine."
  }
}

variable "image" {
  description = "The container image of the job, with Reprieve as its entry point."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9][A-Za-z0-9._:/@-]+$", var.image))
    error_message = "image is like registry.example/team/job:1.4 or …@sha256:…"
  }
}

variable "command" {
  description = "The job's command line, if not the image's own."
  type        = list(string)
  default     = []
}

variable "vcpus" {
  description = "Processors of a job."
  type        = number
  default     = 2

  validation {
    condition     = var.vcpus >= 1 && floor(var.vcpus) == var.vcpus
    error_message = "vcpus is a whole number of at least 1."
  }
}

variable "memory_mib" {
  description = "Memory of a job, with 64 MiB for Reprieve and as much for CRIU in it."
  type        = number
  default     = 4096

  validation {
    condition     = var.memory_mib >= 256
    error_message = "memory_mib is at least 256."
  }
}

variable "settings" {
  description = "More settings of Reprieve (docs/settings.md), as REPRIEVE_... STORE, JOB and TERM_GRACE are refused: the first has a variable, the second differs from job to job, and Batch grants 30 s."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name in keys(var.settings) : can(regex("^REPRIEVE_[A-Z0-9_]+$", name))])
    error_message = "settings are named REPRIEVE_...; what the job itself reads goes into environment."
  }

  validation {
    condition     = length(setintersection(keys(var.settings), ["REPRIEVE_STORE", "REPRIEVE_JOB", "REPRIEVE_TERM_GRACE", "REPRIEVE_CHECKPOINTED_EXIT_CODE"])) == 0
    error_message = "STORE, JOB, TERM_GRACE and CHECKPOINTED_EXIT_CODE are decided by this module."
  }
}

variable "environment" {
  description = "Environment variables of the job. No secrets: these are in Terraform's state; use secrets."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name in keys(var.environment) : !startswith(name, "REPRIEVE_") && !startswith(name, "AWS_BATCH")])
    error_message = "Variables that begin with REPRIEVE_ go into settings; AWS_BATCH... is Batch's own."
  }

  validation {
    condition     = alltrue([for name in keys(var.environment) : !can(regex("(?i)(passw|secret|token|credential|private_?key|api_?key|access_?key)", name))])
    error_message = "A variable looks like a secret by its name. State is no place for secrets: put its ARN into secrets."
  }
}

variable "secrets" {
  description = "Secrets of the job: variable name to the ARN of a Secrets Manager secret or SSM parameter, which the execution role reads. They become part of every snapshot."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for arn in values(var.secrets) : can(regex("^arn:[^:]+:(secretsmanager|ssm):", arn))])
    error_message = "secrets are ARNs, arn:aws:secretsmanager:… or arn:aws:ssm:…, never the secrets themselves."
  }
}

variable "job_role_arn" {
  description = "The role of the job's containers (module `role` with service = ecs-tasks)."
  type        = string
}

variable "attempts" {
  description = "How often Batch starts a job at most, evictions included; 10 is the most that Batch has. After that, submit it again: it resumes all the same."
  type        = number
  default     = 10

  validation {
    condition     = var.attempts >= 2 && var.attempts <= 10
    error_message = "attempts is from 2 to 10: with 1, Batch never runs an evicted job again."
  }
}

variable "retry_failures" {
  description = "Whether a job that failed by itself is started again too, and resumes from its newest snapshot. Evicted ones are in any case."
  type        = bool
  default     = false
}

variable "timeout_seconds" {
  description = "How long one attempt may take, if it is limited. A job that is ended by it is checkpointed like one that is evicted."
  type        = number
  default     = null

  validation {
    condition     = var.timeout_seconds == null || try(var.timeout_seconds >= 60, false)
    error_message = "timeout_seconds is at least 60, Batch's least."
  }
}

variable "instance_types" {
  description = "Instance types or families, with processors that have the same instruction sets; a snapshot resumes only where those of its first machine are."
  type        = list(string)
  default     = ["c6i", "m6i", "r6i"]

  validation {
    condition     = length(var.instance_types) > 0 && !contains(var.instance_types, "optimal")
    error_message = "Name families or types. \"optimal\" mixes processors of several makers and years, and a snapshot of one may not resume on another."
  }

  validation {
    condition     = alltrue([for type in var.instance_types : !can(regex("^([a-z]+[0-9]+g[a-z]*|a1)(\\.|$)", type))])
    error_message = "Reprieve runs on x86-64 only; families with a g behind the generation (m7g, c6gn) and a1 are ARM."
  }
}

variable "max_vcpus" {
  description = "The most processors that the compute environment may have."
  type        = number
  default     = 64
}

variable "spot" {
  description = "Whether the machines are spot machines."
  type        = bool
  default     = true
}

variable "subnet_ids" {
  description = "The subnets of the machines, which need a way to S3 and to the registry."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) > 0
    error_message = "subnet_ids needs at least one subnet."
  }
}

variable "vpc_id" {
  description = "The VPC of the security group."
  type        = string
}

variable "security_group_ids" {
  description = "More security groups for the machines."
  type        = list(string)
  default     = []
}

variable "log_group_name" {
  description = "The CloudWatch log group for the jobs' output; Batch's own /aws/batch/job if not set."
  type        = string
  default     = null
}

variable "service_role_arn" {
  description = "The role that Batch itself works with; its service-linked role, which it makes when needed, if not set."
  type        = string
  default     = null
}

variable "permissions_boundary" {
  description = "The ARN of a permissions boundary for the roles that are made, where an organisation asks for one."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags for everything that is made."
  type        = map(string)
  default     = {}
}
