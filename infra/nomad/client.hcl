# What a Nomad client needs for jobs under Reprieve; the rest of its settings is yours. docs/nomad.md

client {
  enabled = true
  # A task's kill_timeout counts up to this; 30s unless set.
  max_kill_timeout = "2m"
}

plugin "docker" {
  config {
    # Nomad's own list, and the two that Reprieve needs.
    allow_caps = [
      "audit_write", "chown", "dac_override", "fowner", "fsetid", "kill", "mknod", "net_bind_service", "setfcap",
      "setgid", "setpcap", "setuid", "sys_chroot", "checkpoint_restore", "sys_ptrace",
    ]
  }
}

# On a machine that is taken back: `nomad node drain -self -enable -deadline 60s` from its notice. The server preempts
# batch jobs only where its scheduler is told to (`nomad operator scheduler set-config -preempt-batch-scheduler=true`).
