# --- the job

variable "name" {
  description = "The fleet's name: of the Auto Scaling group, the launch template and the security group."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", var.name))
    error_message = "A fleet's name has 1 to 64 of A-Z a-z 0-9 . _ - and begins with a letter or digit."
  }
}

variable "job" {
  description = "The job's name in the store (REPRIEVE_JOB); the fleet's name if not set. A fleet runs one job: a second machine waits until the first says goodbye."
  type        = string
  default     = null

  validation {
    condition     = var.job == null || can(regex("^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$", var.job))
    error_message = "A job's name has 1 to 128 of A-Z a-z 0-9 . _ - and does not begin with a dot."
  }
}

variable "store" {
  description = "Where snapshots are kept (REPRIEVE_STORE), s3://BUCKET/PREFIX."
  type        = string

  validation {
    condition     = can(regex("^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._/-]*)?$", var.store))
    error_message = "store is s3://BUCKET/PREFIX: another machine has to reach it, so no directory of this one will do."
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
  description = "The job's command line, if not the image's own. All machines of a job need the same."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for word in var.command : !strcontains(word, "\n")])
    error_message = "A word of the command must not contain a line break; put such text into the image."
  }
}

variable "settings" {
  description = "More settings of Reprieve (docs/settings.md), as REPRIEVE_...; those that have a variable here are refused."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name in keys(var.settings) : can(regex("^REPRIEVE_[A-Z0-9_]+$", name))])
    error_message = "settings are named REPRIEVE_...; what the job itself reads goes into environment."
  }

  validation {
    condition = length(setintersection(keys(var.settings), [
      "REPRIEVE_STORE", "REPRIEVE_JOB", "REPRIEVE_TERM_GRACE", "REPRIEVE_QUEUE", "REPRIEVE_QUEUE_URL",
      "REPRIEVE_DEAD_LETTER_QUEUE", "REPRIEVE_KMS_KEY", "REPRIEVE_LIFECYCLE_HOOK", "REPRIEVE_INSTANCE_TAGS",
    ])) == 0
    error_message = "STORE, JOB, TERM_GRACE, QUEUE, QUEUE_URL, DEAD_LETTER_QUEUE, KMS_KEY, LIFECYCLE_HOOK and INSTANCE_TAGS have variables of their own here."
  }

  validation {
    condition     = alltrue([for value in values(var.settings) : !strcontains(value, "\n")])
    error_message = "A setting must not contain a line break."
  }
}

variable "environment" {
  description = "Environment variables of the job. No secrets: these are in Terraform's state and in the user data, which every process of the machine can read. Let the job fetch them by its role."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name in keys(var.environment) : can(regex("^[A-Za-z_][A-Za-z0-9_]*$", name)) && !startswith(name, "REPRIEVE_")])
    error_message = "Variables have names of A-Z a-z 0-9 _; those that begin with REPRIEVE_ go into settings."
  }

  validation {
    condition     = alltrue([for name in keys(var.environment) : !can(regex("(?i)(passw|secret|token|credential|private_?key|api_?key|access_?key)", name))])
    error_message = "A variable looks like a secret by its name. State and user data are no place for secrets: give the role access to Secrets Manager or SSM, and let the job read it there."
  }

  validation {
    condition     = alltrue([for value in values(var.environment) : !strcontains(value, "\n")])
    error_message = "A value must not contain a line break."
  }
}

variable "volumes" {
  description = "Directories of the machine in the container, as HOST:CONTAINER or HOST:CONTAINER:ro; setup_script can mount a shared one."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for volume in var.volumes : can(regex("^/[^: '\n]*:/[^: '\n]*(:ro)?$", volume))])
    error_message = "A volume is /HOST:/CONTAINER or /HOST:/CONTAINER:ro, with absolute paths without spaces, quotes or colons."
  }
}

variable "setup_script" {
  description = "Shell commands that the machine runs as root before the first container, say to mount a shared file system. No secrets."
  type        = string
  default     = ""
}

variable "term_grace_seconds" {
  description = "How long a container may take from SIGTERM to its end: `--stop-timeout` and REPRIEVE_TERM_GRACE. A checkpoint has to fit in."
  type        = number
  default     = 60

  validation {
    condition     = var.term_grace_seconds >= 10 && var.term_grace_seconds <= 3600 && floor(var.term_grace_seconds) == var.term_grace_seconds
    error_message = "term_grace_seconds is a whole number from 10 to 3600."
  }
}

variable "when_done" {
  description = "What becomes of the machine when the job has ended with 0: `stay`, or `scale-in`: it ends, and the group shrinks by one (needs the AWS command line on the machine, and scale_in of the module `role`)."
  type        = string
  default     = "stay"

  validation {
    condition     = contains(["stay", "scale-in"], var.when_done)
    error_message = "when_done is stay or scale-in."
  }

  validation {
    condition     = var.when_done == "stay" || var.min_size == 0
    error_message = "The group can only shrink to nothing with min_size = 0."
  }
}

# --- what tells the worker, and what it is allowed

variable "instance_profile_name" {
  description = "The instance profile of the machines (output of the module `role`)."
  type        = string
}

variable "queue" {
  description = "Which queue the workers listen to (REPRIEVE_QUEUE): `own` (one that workers make for themselves, unless queue_url says another), `shared` (then queue_url) or `off`."
  type        = string
  default     = "off"

  validation {
    condition     = contains(["own", "shared", "off"], var.queue)
    error_message = "queue is own, shared or off."
  }
}

variable "queue_url" {
  description = "The queue (output `url` of the module `queue`), with queue = shared; with own, if workers are not to make it themselves."
  type        = string
  default     = null

  validation {
    condition     = var.queue == "own" || (var.queue == "shared") == (var.queue_url != null)
    error_message = "A shared queue needs queue_url; without a queue there is none to name."
  }
}

variable "instance_tags" {
  description = "Whether the worker writes job, state and newest snapshot to the machine's tags (REPRIEVE_INSTANCE_TAGS)."
  type        = bool
  default     = true
}

variable "dead_letter_queue" {
  description = "The queue that unreadable messages are put into (REPRIEVE_DEAD_LETTER_QUEUE)."
  type        = string
  default     = null
}

variable "seal_kms_key_arn" {
  description = "The KMS key that snapshots are sealed with (REPRIEVE_KMS_KEY)."
  type        = string
  default     = null
}

variable "heartbeat_timeout_seconds" {
  description = "For how long a machine that is to end waits for a sign of life of its worker, which sends them while a checkpoint runs. A spot machine that is taken back is gone after 120 s whatever this says."
  type        = number
  default     = 300

  validation {
    condition     = var.heartbeat_timeout_seconds >= 30 && var.heartbeat_timeout_seconds <= 7200
    error_message = "heartbeat_timeout_seconds is from 30 to 7200."
  }

  validation {
    condition     = var.heartbeat_timeout_seconds >= var.term_grace_seconds + 30
    error_message = "heartbeat_timeout_seconds has to be at least 30 more than term_grace_seconds: a checkpoint of that length must fit between two signs of life."
  }
}

variable "log_group_name" {
  description = "The CloudWatch log group for the container's output; the machine's journal only, if not set."
  type        = string
  default     = null
}

# --- the machines

variable "cpu_family" {
  description = "Which processors the machines have. A snapshot resumes only where every instruction set of its first machine is there, so one generation of one maker is the default; ignored if instance_types is set."
  type        = string
  default     = "intel-ice-lake"

  validation {
    condition     = contains(["intel-ice-lake", "intel-sapphire-rapids", "amd-milan", "amd-genoa"], var.cpu_family)
    error_message = "cpu_family is intel-ice-lake (6i), intel-sapphire-rapids (7i), amd-milan (6a) or amd-genoa (7a). ARM is not supported by Reprieve."
  }
}

variable "instance_size" {
  description = "The size of the machines, of every family in cpu_family."
  type        = string
  default     = "xlarge"

  validation {
    condition     = can(regex("^([0-9]*x)?large$", var.instance_size))
    error_message = "instance_size is large, xlarge, 2xlarge, 4xlarge and so on; name anything else in instance_types."
  }
}

variable "instance_types" {
  description = "The very instance types, instead of cpu_family and instance_size. Then it is for you to see that their processors fit one another."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for type in var.instance_types : can(regex("^[a-z0-9-]+\\.[a-z0-9-]+$", type))])
    error_message = "An instance type is like m6i.xlarge."
  }

  validation {
    condition     = alltrue([for type in var.instance_types : !can(regex("^([a-z]+[0-9]+g[a-z]*|a1)\\.", type))])
    error_message = "Reprieve runs on x86-64 only; types with a g behind the generation (m7g, c6gn) and a1 are ARM."
  }
}

variable "instance_requirements" {
  description = "Select types by what they have instead of by size: any type of cpu_family with this much. More kinds of machines, fewer interruptions."
  type = object({
    vcpus_min      = number
    vcpus_max      = optional(number)
    memory_mib_min = number
    memory_mib_max = optional(number)
  })
  default = null

  validation {
    condition     = var.instance_requirements == null || length(var.instance_types) == 0
    error_message = "Give either instance_types or instance_requirements, not both."
  }

  validation {
    condition     = var.instance_requirements == null || try(var.instance_requirements.memory_mib_min > 0 && var.instance_requirements.vcpus_min > 0, false)
    error_message = "vcpus_min and memory_mib_min are above 0."
  }
}

variable "ami_id" {
  description = "The machine image: x86-64, systemd, Linux 5.11 or later; Docker is installed if it lacks it. Amazon Linux 2023 if not set."
  type        = string
  default     = null

  validation {
    condition     = var.ami_id == null || can(regex("^(ami-[0-9a-f]+|resolve:ssm:/?[A-Za-z0-9_./-]+)$", var.ami_id))
    error_message = "ami_id is ami-… or resolve:ssm:/PARAMETER, such as resolve:ssm:/aws/service/ecs/optimized-ami/amazon-linux-2023/recommended/image_id, which has Docker already."
  }
}

variable "root_volume_gib" {
  description = "The size of the machine's disk, which is encrypted: for the image and what the job writes into its container."
  type        = number
  default     = 30

  validation {
    condition     = var.root_volume_gib >= 8 && var.root_volume_gib <= 16384
    error_message = "root_volume_gib is from 8 to 16384."
  }
}

variable "root_device_name" {
  description = "The name of the machine image's root disk: /dev/xvda for Amazon Linux and Debian, /dev/sda1 for Ubuntu."
  type        = string
  default     = "/dev/xvda"
}

variable "imds_hop_limit" {
  description = "How many network hops an answer of the metadata service survives. A container behind Docker's bridge is two hops away; with 1 it would hear of no eviction and have no credentials."
  type        = number
  default     = 2

  validation {
    condition     = contains([2, 3], var.imds_hop_limit)
    error_message = "imds_hop_limit is 2, or 3 where the containers' network has one hop more."
  }
}

# --- the group

variable "vpc_id" {
  description = "The VPC of the security group."
  type        = string
}

variable "subnet_ids" {
  description = "The subnets of the machines, which need a way to S3 and to the registry. One for each zone: the more zones, the fewer interruptions."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) > 0
    error_message = "subnet_ids needs at least one subnet."
  }
}

variable "security_group_ids" {
  description = "More security groups for the machines."
  type        = list(string)
  default     = []
}

variable "egress" {
  description = "What the machines may connect to. Nothing can connect to them."
  type = list(object({
    description = string
    protocol    = optional(string, "tcp")
    port        = number
    cidr_blocks = optional(list(string), ["0.0.0.0/0"])
  }))
  default = [{ description = "S3, SQS, the registry and package archives", port = 443 }]
}

variable "desired_capacity" {
  description = "How many machines run. 1 for a job, 0 to rest."
  type        = number
  default     = 1

  validation {
    condition     = var.desired_capacity >= var.min_size && var.desired_capacity <= var.max_size
    error_message = "desired_capacity is from min_size to max_size."
  }
}

variable "min_size" {
  description = "The least number of machines."
  type        = number
  default     = 0

  validation {
    condition     = var.min_size >= 0
    error_message = "min_size is at least 0."
  }
}

variable "max_size" {
  description = "The most machines. One more than run, so that a replacement can start before a machine goes."
  type        = number
  default     = 2
}

variable "on_demand_base_capacity" {
  description = "How many of the machines are on demand."
  type        = number
  default     = 0
}

variable "on_demand_percentage" {
  description = "How many of the others are on demand, in percent. 100 makes it a fleet without spot machines."
  type        = number
  default     = 0

  validation {
    condition     = var.on_demand_percentage >= 0 && var.on_demand_percentage <= 100
    error_message = "on_demand_percentage is from 0 to 100."
  }
}

variable "spot_allocation_strategy" {
  description = "How EC2 chooses among the spot pools."
  type        = string
  default     = "price-capacity-optimized"

  validation {
    condition     = contains(["price-capacity-optimized", "capacity-optimized", "capacity-optimized-prioritized"], var.spot_allocation_strategy)
    error_message = "spot_allocation_strategy is price-capacity-optimized, capacity-optimized or capacity-optimized-prioritized. lowest-price is refused: it chooses the pools that are taken back most often."
  }
}

variable "spot_max_price" {
  description = "The most to pay for an hour of a spot machine, in dollars; the on-demand price if not set. A lower one means more interruptions."
  type        = string
  default     = null

  validation {
    condition     = var.spot_max_price == null || can(regex("^[0-9]+(\\.[0-9]+)?$", var.spot_max_price))
    error_message = "spot_max_price is a number of dollars, like \"0.08\"."
  }
}

variable "capacity_rebalance" {
  description = "Whether the group starts a replacement when EC2 says that a machine is likely to be taken back, and then ends it through the lifecycle hook."
  type        = bool
  default     = true
}

variable "suspended_processes" {
  description = "What the group does not do by itself. Balancing zones would evict jobs for the sake of symmetry."
  type        = list(string)
  default     = ["AZRebalance"]
}

variable "instance_refresh" {
  description = "Whether a change of image, command or settings replaces the machines at once: a new one first, then the old one is evicted through its hook. The job's image may only change in ways that its snapshots survive."
  type        = bool
  default     = true
}

variable "warm_pool" {
  description = "Machines that stand by, started once and stopped. EC2 keeps none for spot machines: only with on_demand_percentage = 100."
  type = object({
    min_size = optional(number, 1)
    max_size = optional(number)
  })
  default = null

  validation {
    condition     = var.warm_pool == null || (var.on_demand_percentage == 100 && var.instance_requirements == null)
    error_message = "EC2 keeps warm pools neither for spot machines nor for mixed types: set on_demand_percentage = 100 and no instance_requirements; the first instance type is then used."
  }
}

variable "tags" {
  description = "Tags for everything that is made, machines and disks included."
  type        = map(string)
  default     = {}
}
