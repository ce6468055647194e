# A batch job that goes on where it stood when its node is drained, or it is preempted by a job of higher priority.
# docs/nomad.md

job "nightly" {
  type        = "batch"
  datacenters = ["*"]
  priority    = 20

  # Drained and lost nodes: a new allocation resumes. Preempted ones are placed again in the same way.
  group "job" {
    count = 1

    # On the same node: what failed resumes from its newest snapshot; 75 counts as a failure to Nomad.
    restart {
      attempts = 3
      interval = "30m"
      delay    = "15s"
      mode     = "fail"
    }

    # On another one.
    reschedule {
      unlimited      = true
      delay          = "15s"
      delay_function = "exponential"
      max_delay      = "10m"
    }

    network {
      port "status" {
        to = 9184
      }
    }

    service {
      name     = "nightly"
      provider = "nomad"
      port     = "status"

      check {
        type     = "http"
        path     = "/readyz"
        interval = "10s"
        timeout  = "5s"
      }
    }

    task "job" {
      driver = "docker"

      # The same as REPRIEVE_TERM_GRACE; at most the client's max_kill_timeout, which is 30s unless set.
      kill_timeout = "60s"
      kill_signal  = "SIGTERM"

      config {
        image        = "registry.example.net/team/job:1.4"
        args         = ["python3", "train.py"]
        ports        = ["status"]
        init         = false
        cap_add      = ["checkpoint_restore", "sys_ptrace"]
        security_opt = ["seccomp=unconfined"]
      }

      # Credentials of the bucket by Nomad's identity for workloads: AWS takes this token for a role.
      identity {
        name        = "aws"
        aud         = ["sts.amazonaws.com"]
        file        = true
        ttl         = "1h"
        change_mode = "noop"
      }

      env {
        REPRIEVE_STORE          = "s3://my-bucket/jobs"
        REPRIEVE_JOB            = "nightly"
        REPRIEVE_TERM_GRACE     = "60s"
        REPRIEVE_METRICS_LISTEN = "0.0.0.0:9184"
        AWS_REGION              = "eu-central-1"
        AWS_ROLE_ARN            = "arn:aws:iam::123456789012:role/reprieve-nightly"

        AWS_WEB_IDENTITY_TOKEN_FILE = "${NOMAD_SECRETS_DIR}/nomad_aws.jwt"
      }

      resources {
        cpu    = 1000
        memory = 2048
      }
    }
  }
}
