//! What a host is made of, written as the OCI configuration that runc reads: what Docker gives by default, without a
//! seccomp filter and with the capabilities that the worker asks for. Limits of processes (rlimits) are left out, since setting
//! them needs CAP_SYS_RESOURCE, which test machines often lack.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// Docker's default set.
pub(crate) const DOCKER_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// What checkpoint and restore need on top.
const REPRIEVE_CAPABILITIES: [&str; 2] = ["CAP_CHECKPOINT_RESTORE", "CAP_SYS_PTRACE"];

/// Which user land a host starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rootfs {
    /// Debian with Python, the usual tools and CRIU.
    Debian,
    /// No C library: a static busybox at `/bin/busybox` and `/bin/sh`.
    Busybox,
    /// No file at all, apart from what is mounted.
    Nothing,
    /// Debian with what the benchmarks compare with, made when it is first asked for.
    Bench,
    /// Debian with Slurm, made when it is first asked for.
    Slurm,
    /// Debian with the apps of docs/apps.md, made when it is first asked for.
    Apps,
}

impl Rootfs {
    /// The name `infra/local/setup` has for it.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Debian => "rootfs",
            Self::Busybox => "empty",
            Self::Nothing => "nothing",
            Self::Bench => "bench",
            Self::Slurm => "slurm",
            Self::Apps => "apps",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    ReadOnly,
    ReadWrite,
}

pub(super) struct Bind {
    pub(super) outside: PathBuf,
    pub(super) inside: PathBuf,
    pub(super) access: Access,
}

pub(super) struct Bundle {
    pub(super) hostname: String,
    pub(super) arguments: Vec<String>,
    pub(super) environment: Vec<(String, String)>,
    pub(super) working_directory: String,
    pub(super) user: (u32, u32),
    pub(super) extra_capabilities: Vec<String>,
    pub(super) dropped_capabilities: Vec<String>,
    pub(super) ambient_capabilities: Vec<String>,
    pub(super) binds: Vec<Bind>,
    pub(super) terminal: Option<(u16, u16)>,
    pub(super) own_network: bool,
    pub(super) no_new_privileges: bool,
    pub(super) seccomp: bool,
    pub(super) read_only_root: bool,
    /// `/run`, `/tmp` and `/dev/shm` are what the root has there.
    pub(super) no_tmpfs: bool,
    /// Limits, as runc's configuration has them.
    pub(super) resources: serde_json::Map<String, Value>,
    /// Character devices, by major and minor number, on top of Docker's.
    pub(super) devices: Vec<(u32, u32)>,
}

impl Bundle {
    pub(super) fn config(&self, root: &Path, cgroup: &str) -> Value {
        let capabilities = self.capabilities();
        let environment: Vec<String> = self
            .environment
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let mut config = json!({
            "ociVersion": "1.0.2",
            "hostname": self.hostname,
            "root": { "path": root, "readonly": self.read_only_root },
            "process": {
                "terminal": self.terminal.is_some(),
                "user": { "uid": self.user.0, "gid": self.user.1 },
                "args": self.arguments,
                "env": environment,
                "cwd": self.working_directory,
                "noNewPrivileges": self.no_new_privileges,
                "capabilities": {
                    "bounding": capabilities,
                    "permitted": capabilities,
                    "effective": capabilities,
                    "inheritable": self.ambient_capabilities,
                    "ambient": self.ambient_capabilities,
                },
            },
            "mounts": self.mounts(),
            "linux": {
                "cgroupsPath": cgroup,
                "namespaces": self.namespaces(),
                "maskedPaths": [
                    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware",
                ],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
                "resources": { "devices": self.device_rules() },
            },
        });
        for (name, limits) in &self.resources {
            config["linux"]["resources"][name] = limits.clone();
        }
        if let Some((rows, columns)) = self.terminal {
            config["process"]["consoleSize"] = json!({ "height": rows, "width": columns });
        }
        if self.seccomp {
            config["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": ["kexec_load"], "action": "SCMP_ACT_ERRNO" }],
            });
        }
        config
    }

    fn device_rules(&self) -> Vec<Value> {
        let allowed = self.devices.iter().map(|(major, minor)| {
            json!({ "allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm" })
        });
        let none = json!({ "allow": false, "access": "rwm" });
        std::iter::once(none).chain(allowed).collect()
    }

    fn capabilities(&self) -> Vec<&str> {
        let dropped = |name: &&str| {
            !self
                .dropped_capabilities
                .iter()
                .any(|dropped| dropped == name)
        };
        DOCKER_CAPABILITIES
            .into_iter()
            .chain(REPRIEVE_CAPABILITIES)
            .chain(self.extra_capabilities.iter().map(String::as_str))
            .filter(dropped)
            .collect()
    }

    fn namespaces(&self) -> Vec<Value> {
        let own = ["mount", "pid", "ipc", "uts"]
            .into_iter()
            .chain(self.own_network.then_some("network"));
        own.map(|kind| json!({ "type": kind })).collect()
    }

    fn mounts(&self) -> Vec<Value> {
        let tmpfs = |destination: &str, options: &[&str]| json!({ "destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options });
        let mut mounts = vec![
            json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] }),
            tmpfs(
                "/dev",
                &["nosuid", "strictatime", "mode=755", "size=65536k"],
            ),
            json!({
                "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            }),
            json!({
                "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
                "options": ["nosuid", "noexec", "nodev"],
            }),
            json!({
                "destination": "/sys", "type": "sysfs", "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"],
            }),
            json!({
                "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "relatime", "ro"],
            }),
        ];
        if !self.no_tmpfs {
            mounts.extend([
                tmpfs("/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777"]),
                tmpfs("/run", &["nosuid", "nodev", "mode=755"]),
                tmpfs("/tmp", &["nosuid", "nodev", "mode=1777"]),
            ]);
        }
        mounts.extend(self.binds.iter().map(|bind| {
            let access = match bind.access {
                Access::ReadOnly => "ro",
                Access::ReadWrite => "rw",
            };
            json!({
                "destination": bind.inside, "type": "bind", "source": bind.outside,
                "options": ["bind", "private", access],
            })
        }));
        mounts
    }
}
