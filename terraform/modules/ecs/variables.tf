variable "name" {
  description = "The name of the cluster, the service and the task definition."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$", var.name)) && !can(regex("^(aws|ecs|fargate)", lower(var.name)))
    error_message = "The name has 1 to 64 of A-Z a-z 0-9 _ -, begins with a letter or digit, and not with aws, ecs or fargate."
  }
}

variable "capacity" {
  description = "Where tasks run: `ec2-spot`, `ec2` (on demand) or `fargate-spot`. On Fargate nothing can be checkpointed: Reprieve only passes signals on and reaps there."
  type        = string
  default     = "ec2-spot"

  validation {
    condition     = contains(["ec2-spot", "ec2", "fargate-spot"], var.capacity)
    error_message = "capacity is ec2-spot, ec2 or fargate-spot."
  }

  validation {
    condition     = var.capacity != "fargate-spot" || var.store == null
    error_message = "Fargate cannot checkpoint: it gives containers no CAP_CHECKPOINT_RESTORE, no privileged mode, and no way out of its seccomp filter. Use ec2-spot, or set store = null to run the service on Fargate without snapshots."
  }
}

variable "store" {
  description = "Where snapshots are kept (REPRIEVE_STORE), s3://BUCKET/PREFIX; null with fargate-spot, and only there."
  type        = string

  validation {
    condition     = var.store == null || can(regex("^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._/-]*)?$", var.store))
    error_message = "store is s3://BUCKET/PREFIX: the next task runs on another machine."
  }
}

variable "job" {
  description = "The job's name in the store (REPRIEVE_JOB); the service's name if not set."
  type        = string
  default     = null

  validation {
    condition     = var.job == null || can(regex("^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$", var.job))
    error_message = "A job's name has 1 to 128 of A-Z a-z 0-9 . _ - and does not begin with a dot."
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

variable "cpu" {
  description = "Processor units of the task, 1024 for one processor."
  type        = number
  default     = 1024

  validation {
    condition     = var.cpu >= 128
    error_message = "cpu is at least 128."
  }
}

variable "memory_mib" {
  description = "Memory of the task, with 64 MiB for Reprieve and as much for CRIU in it."
  type        = number
  default     = 2048

  validation {
    condition     = var.memory_mib >= 256
    error_message = "memory_mib is at least 256."
  }
}

variable "stop_timeout_seconds" {
  description = "How long a task may take from SIGTERM to its end, and REPRIEVE_TERM_GRACE: ECS grants at most 120."
  type        = number
  default     = 120

  validation {
    condition     = var.stop_timeout_seconds >= 10 && var.stop_timeout_seconds <= 120
    error_message = "stop_timeout_seconds is from 10 to 120, which is all that ECS grants."
  }
}

variable "settings" {
  description = "More settings of Reprieve (docs/settings.md), as REPRIEVE_...; STORE, JOB and TERM_GRACE have variables here."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name in keys(var.settings) : can(regex("^REPRIEVE_[A-Z0-9_]+$", name))])
    error_message = "settings are named REPRIEVE_...; what the job itself reads goes into environment."
  }

  validation {
    condition     = length(setintersection(keys(var.settings), ["REPRIEVE_STORE", "REPRIEVE_JOB", "REPRIEVE_TERM_GRACE"])) == 0
    error_message = "STORE, JOB and TERM_GRACE have variables of their own here."
  }
}

variable "environment" {
  description = "Environment variables of the job. No secrets: these are in Terraform's state; use secrets."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name in keys(var.environment) : !startswith(name, "REPRIEVE_")])
    error_message = "Variables that begin with REPRIEVE_ go into settings."
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

variable "task_role_arn" {
  description = "The role of the task's containers (module `role` with service = ecs-tasks)."
  type        = string
}

variable "create_service" {
  description = "Whether to make the service; without it, there are cluster and task definition for whoever starts tasks."
  type        = bool
  default     = true
}

variable "desired_count" {
  description = "How many tasks run: 1, or 0 to rest. A service runs one job; a second task would only wait for the first."
  type        = number
  default     = 1

  validation {
    condition     = contains([0, 1], var.desired_count)
    error_message = "desired_count is 0 or 1: two tasks of one service are the same job, and only one of them may run it."
  }
}

variable "instance_types" {
  description = "Instance types with processors that have the same instruction sets; a snapshot resumes only where those of its first machine are."
  type        = list(string)
  default     = ["c6i.xlarge", "m6i.xlarge", "r6i.xlarge", "c6id.xlarge", "m6id.xlarge", "r6id.xlarge"]

  validation {
    condition     = length(var.instance_types) > 0 && alltrue([for type in var.instance_types : !can(regex("^([a-z]+[0-9]+g[a-z]*|a1)\\.", type))])
    error_message = "Name at least one type; Reprieve runs on x86-64 only, and types with a g behind the generation (m7g, c6gn) and a1 are ARM."
  }
}

variable "max_instances" {
  description = "The most machines of the cluster."
  type        = number
  default     = 2

  validation {
    condition     = var.max_instances >= 1
    error_message = "max_instances is at least 1."
  }
}

variable "ami_id" {
  description = "The machine image, an ECS-optimised one; Amazon's for Amazon Linux 2023 if not set."
  type        = string
  default     = null
}

variable "subnet_ids" {
  description = "The subnets of the machines or tasks, which need a way to S3 and to the registry."
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
  description = "More security groups for the machines or tasks."
  type        = list(string)
  default     = []
}

variable "log_group_name" {
  description = "The CloudWatch log group for the container's output. It has to exist."
  type        = string
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
