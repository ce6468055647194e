//! Can this job be checkpointed? Rules from what `/proc` shows of a job's processes to findings, each with its cause and
//! its remedy.
//!
//! A rule stands here only if a real `criu dump` was seen to refuse the thing (`tests/checkup.rs` shows it again for each
//! of them); what CRIU was not seen to refuse is no finding. So no finding means that nothing known is in the way, not
//! that a checkpoint must succeed. The worker gathers the facts.

/// What may stand in the way of a checkpoint. Each is one spelling: a metric's label, a field, a line of the manual.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    Orphan,
    Seccomp,
    Traced,
    Namespace,
    User,
    IoUring,
    Watch,
    SharedMemory,
    SecretMemory,
    Socket,
    Pipe,
    Gpu,
    Device,
    Descriptor,
    Mount,
    DeletedFile,
    LostName,
}

impl Reason {
    pub const ALL: [Self; 17] = [
        Self::Orphan,
        Self::Seccomp,
        Self::Traced,
        Self::Namespace,
        Self::User,
        Self::IoUring,
        Self::Watch,
        Self::SharedMemory,
        Self::SecretMemory,
        Self::Socket,
        Self::Pipe,
        Self::Gpu,
        Self::Device,
        Self::Descriptor,
        Self::Mount,
        Self::DeletedFile,
        Self::LostName,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Orphan => "orphan",
            Self::Seccomp => "seccomp",
            Self::Traced => "traced",
            Self::Namespace => "namespace",
            Self::User => "user",
            Self::IoUring => "io_uring",
            Self::Watch => "watch",
            Self::SharedMemory => "shared_memory",
            Self::SecretMemory => "secret_memory",
            Self::Socket => "socket",
            Self::Pipe => "pipe",
            Self::Gpu => "gpu",
            Self::Device => "device",
            Self::Descriptor => "descriptor",
            Self::Mount => "mount",
            Self::DeletedFile => "deleted_file",
            Self::LostName => "lost_name",
        }
    }

    /// Why a checkpoint fails.
    pub const fn cause(self) -> &'static str {
        match self {
            Self::Orphan => {
                "its parent ended and it now belongs to the supervisor, so it would be left out"
            }
            Self::Seccomp => {
                "it is under a seccomp filter, which CRIU cannot suspend without SYS_ADMIN"
            }
            Self::Traced => {
                "it is traced by another process, and the kernel allows one tracer, which CRIU has to be"
            }
            Self::Namespace => "CRIU does not store nested namespaces of this kind",
            Self::User => {
                "its user or group is not the supervisor's, and there is not what CRIU needs to store it and to become it again"
            }
            Self::IoUring => "CRIU cannot store an io_uring",
            Self::Watch => "CRIU cannot find out which file a watch is for",
            Self::SharedMemory => {
                "System V shared memory can be stored only with an IPC namespace of its own, in the full profile"
            }
            Self::SecretMemory => "memory of memfd_secret is hidden from CRIU as well",
            Self::Socket => "CRIU cannot store sockets of this protocol",
            Self::Pipe => {
                "the pipes of this user take all that the kernel gives one (pipe-user-pages-soft, of all containers of this machine together), so that CRIU gets none as large as this one"
            }
            Self::Gpu => "it uses a GPU, whose memory and state CRIU cannot store by itself",
            Self::Device => "CRIU cannot store an open device of this kind",
            Self::Descriptor => "CRIU cannot store what this descriptor stands for",
            Self::Mount => {
                "the file is on a mount that its process does not see: a POSIX message queue, or one that is detached"
            }
            Self::DeletedFile => {
                "the file was deleted, is still open, and is larger than --ghost-limit, or than half of the room in --work-dir"
            }
            Self::LostName => {
                "the name by which the file was opened is gone, and it has another one that CRIU does not know"
            }
        }
    }

    /// What a person can do.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Orphan => {
                "let the app wait for its own processes; do not daemonise; or start it with --orphans app, if it waits for those that come to it"
            }
            Self::Seccomp => "switch the app's own sandbox off for this job",
            Self::Traced => "end the tracer (strace, gdb, a profiler)",
            Self::Namespace => {
                "switch off the app's sandbox, or what starts containers in this one"
            }
            Self::User => {
                "run the container as root with Docker's default capabilities, or all of the job as one user; `reprieve doctor` says what is missing (`users`)"
            }
            Self::IoUring => {
                "start it with --io-uring deny; if it makes the system call itself, --io-uring filter, its own setting or the sysctl kernel.io_uring_disabled=2"
            }
            Self::Watch => {
                "name the directory that is watched (--watched PATH); else let the app poll, or switch watching files off (hot reload, tail -f)"
            }
            Self::SharedMemory => {
                "use the full profile (profiles.md), or another kind of shared memory, if the app has a choice"
            }
            Self::SecretMemory => "switch the use of memfd_secret off",
            Self::Socket => {
                "make the app use TCP, UDP or unix sockets; Go: do not ask for multipath TCP (`--go-multipath-tcp off` does the rest)"
            }
            Self::Pipe => {
                "raise the machine's sysctl fs.pipe-user-pages-soft (0: no limit), or give the container SYS_RESOURCE, or each job a user of its own"
            }
            Self::Gpu => "run this job without a GPU, or without --store; see docs/gpu.md",
            Self::Device => "close it before a checkpoint",
            Self::Descriptor => "close it before a checkpoint, or switch off what uses it",
            Self::Mount => {
                "use another means between processes, or close the file before a checkpoint"
            }
            Self::DeletedFile => {
                "close the file; set --ghost-limit above the file's size, or give --work-dir and the container's memory more room"
            }
            Self::LostName => "close the file, or do not delete it while it is open",
        }
    }
}

/// The text of docs/checkup.md.
pub fn document() -> String {
    let mut text = String::from(INTRODUCTION);
    for reason in Reason::ALL {
        text.push_str(&format!(
            "| `{}` | {} | {} |\n",
            reason.as_str(),
            reason.cause(),
            reason.remedy()
        ));
    }
    text.push_str(CURES);
    text
}

const CURES: &str = "
## A rehearsal

With `--rehearse on`, and after `--rehearse-after` (1 minute) of the app's life, the running job is really dumped once: frozen, read by CRIU, \
its streams cut and its preserved files read, as in a checkpoint. Nothing of it is kept, the store is not asked for anything, and the job runs on. \
The log says `a checkpoint of this job works: its rehearsal did`, with the time that the job stood still, or `a checkpoint of this job would fail: its \
rehearsal did; the job runs on`, with CRIU's reason; `reprieve status` has it as `rehearsal`, the [metrics](metrics.md) as `reprieve_rehearsals_total` \
and `reprieve_rehearsal_frozen_seconds`. After one that failed the job is not protected and not ready until a checkpoint works.

The freeze is that of a first checkpoint whose store takes everything at once: a slow store makes a real one longer, memory that was stored \
ahead makes it shorter. The programs for `before-freeze` and `after-thaw` run as in a checkpoint, with the trigger `rehearsal`. A checkpoint that is wanted meanwhile \
has the rehearsal given up and begins once CRIU has let the job go. While a checkpoint is under way, or an end of the machine is announced, it \
is put off; once a checkpoint of the running app has worked, it is left out.

## What is cured when the app starts

An app that is started from scratch, with a store, is given what takes the commonest obstacles away; the log says what \
(`what the app is given so that it can be checkpointed`). A resumed app keeps what it was started with.

| Obstacle | Given | Switched off by |
|---|---|---|
| io_uring (Node.js from 20 on with its file operations, some databases) | `io_uring_setup` answers ENOSYS, and the app does \
without as on an older kernel: by a library in `LD_PRELOAD`, after those that are there; with `--io-uring filter` by a seccomp filter, \
for whatever program it is | `--io-uring allow` |
| a host whose CLOCK_MONOTONIC and CLOCK_BOOTTIME show less than the last one's | the same library lets them go on \
([what it reaches](limits.md#time)) | `--clocks host` |
| a JVM's `/tmp/hsperfdata_*`, which the next host does not have | `-XX:-UsePerfData` at the end of `JAVA_TOOL_OPTIONS`, unless \
something about it is there; every JVM says on its standard error that it picked that up | `--jvm-perf-data keep` |
| listeners of Go 1.24 and later, which are of multipath TCP | `multipathtcp=0` at the end of `GODEBUG`, unless something about it is there; \
a program that asks for multipath TCP itself (`SetMultipathTCP`) has it all the same, and is found by the rule `socket` | `--go-multipath-tcp keep` |
| file locks | CRIU is told to store them, always | |

CRIU can store a process under a seccomp filter only with SYS_ADMIN and if it is under none itself; so a job that has the filter \
needs SYS_ADMIN at its start, else it gets the library, and resumes only on hosts with SYS_ADMIN; others pass its snapshots over. The library reaches programs that are dynamically linked \
(glibc or musl) and ask through `syscall()` or liburing's shared library; a static program, one that makes the system call itself, \
and one that runs with other privileges than its caller (setuid) are not reached, and found by the rule `io_uring`. It lies in \
`/run/reprieve-lib`, `/tmp/reprieve-lib` or `/var/tmp/reprieve-lib`, whichever can be written and is not mounted noexec, and travels \
with the snapshot. A program of another architecture (32 bit) says that it cannot be preloaded, and runs.
";

const INTRODUCTION: &str = "\
# Can this job be checkpointed?

Generated from the table in `worker/core/src/checkup.rs`; do not edit.

The job's processes are looked over at the start, every `--checkup-interval` (1 minute) and after each checkpoint, while the job \
runs. What CRIU would refuse is named with process, descriptor or mapping, cause and remedy: in the log (`the job cannot be \
checkpointed as it is now`, once for each kind until it is gone), in `reprieve status`, on the [status page](status-page.md), \
as `reprieve_checkpoint_obstacles` and `reprieve_checkpointable` in the [metrics](metrics.md), and by `reprieve doctor --pid PID`. \
A job with a finding is not protected and not ready; it runs on, and a checkpoint is still tried when one is due.

Each rule was seen to be CRIU's (4.2, with the privileges of [docker.md](docker.md)): `tests/checkup.rs` makes every one of these things, finds \
it, and has a real checkpoint refused. It does the same with things that look alike and are stored, and must not be found. No finding \
therefore means that nothing known stands in the way; `--rehearse on` (below) shows that nothing unknown does. Not looked for: unix sockets that are connected to a process outside of the job, \
files that the next host will not have, and whatever is opened and closed between two looks. That a GPU is a device of the \
refused kind is known from its driver's node ([gpu.md](gpu.md)); it was not tried with one.

| Kind | Cause | Remedy |
|---|---|---|
";

/// One thing that is in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub reason: Reason,
    pub pid: i32,
    /// The kernel's name of the process.
    pub command: String,
    /// The descriptor, mapping or number that is meant; empty if it is the process itself.
    pub what: String,
}

/// The largest deleted file that is always taken, and the largest number that CRIU takes, in bytes.
const LEAST_GHOST: u64 = 64 << 20;
const MOST_GHOST: u64 = u32::MAX as u64;

/// The largest deleted file that goes into a snapshot: what is set, or half of the room that there is where CRIU puts it, since it
/// is not the only thing there.
pub fn ghost_limit(set: Option<u64>, room: u64) -> u64 {
    set.unwrap_or_else(|| (room / 2).clamp(LEAST_GHOST, MOST_GHOST))
}

/// What the supervisor has, and CRIU with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ours {
    pub user: u32,
    pub group: u32,
    /// Capabilities over processes of other users, and a way to tell their limits.
    pub may_store_users: bool,
    /// CAP_DAC_READ_SEARCH.
    pub may_open_handles: bool,
    /// CAP_SYS_ADMIN.
    pub may_suspend_filters: bool,
    /// The app has an IPC namespace of its own.
    pub may_store_ipc: bool,
    /// A pipe that is made now is smaller than pipes are.
    pub gets_short_pipes: bool,
    /// Bytes.
    pub ghost_limit: u64,
}

/// A process of the job, as `/proc/PID` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub command: String,
    /// It belongs to the supervisor and is not the app.
    pub orphan: bool,
    /// 0: none.
    pub tracer: i32,
    /// Any of its threads is under a filter.
    pub filtered: bool,
    /// Real, effective and saved.
    pub users: [u32; 3],
    pub groups: [u32; 3],
    /// Kinds of namespaces that are not the supervisor's.
    pub foreign_namespaces: Vec<String>,
    pub descriptors: Vec<Descriptor>,
    pub mappings: Vec<Mapping>,
}

/// What `/proc/PID/fd/NUMBER` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    pub number: i32,
    /// Where the link points to.
    pub link: String,
    pub watches: Watches,
    /// Of a socket.
    pub protocol: Option<String>,
    pub file: Option<File>,
    /// Its mount is not among those that the process sees.
    pub unseen_mount: bool,
}

/// What an inotify or fanotify descriptor watches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Watches {
    #[default]
    Nothing,
    /// Files, none of them on an overlay.
    Files,
    Overlay,
}

/// What `/proc/PID/maps` shows of one mapping.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// As in `7f00-7f10`.
    pub range: String,
    pub link: String,
    /// Of those whose name is gone.
    pub file: Option<File>,
}

/// A file that has a path, or had one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct File {
    /// The path leads to another file or nowhere.
    pub unnamed: bool,
    pub links: u64,
    /// That it takes, not those that it seems to have.
    pub bytes: u64,
    /// Major and minor number of a character device.
    pub device: Option<(u32, u32)>,
}

/// What is in the way of a checkpoint of these processes, the first kind first.
pub fn examine(processes: &[Process], ours: &Ours) -> Vec<Finding> {
    let mut found: Vec<Finding> = processes
        .iter()
        .flat_map(|process| of_process(process, ours))
        .collect();
    found.sort_by_key(|finding| (finding.reason, finding.pid));
    found
}

fn of_process(process: &Process, ours: &Ours) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut add = |reason: Reason, what: String| {
        found.push(Finding {
            reason,
            pid: process.pid,
            command: process.command.clone(),
            what,
        });
    };
    if process.orphan {
        add(Reason::Orphan, String::new());
    }
    if process.filtered && !ours.may_suspend_filters {
        add(Reason::Seccomp, String::new());
    }
    if process.tracer != 0 {
        add(Reason::Traced, format!("tracer {}", process.tracer));
    }
    if !process.foreign_namespaces.is_empty() {
        add(Reason::Namespace, process.foreign_namespaces.join(", "));
    }
    let is_foreign = process.users != [ours.user; 3] || process.groups != [ours.group; 3];
    if is_foreign && !ours.may_store_users {
        let [user, group] = [process.users[1], process.groups[1]];
        add(Reason::User, format!("user {user}, group {group}"));
    }
    for descriptor in &process.descriptors {
        if let Some(reason) = of_descriptor(descriptor, ours) {
            let Descriptor { number, link, .. } = descriptor;
            let what = match &descriptor.protocol {
                Some(protocol) => format!("descriptor {number} ({protocol})"),
                None => format!("descriptor {number} ({link})"),
            };
            add(reason, what);
        }
    }
    for mapping in &process.mappings {
        if let Some(reason) = of_mapping(mapping, ours) {
            add(
                reason,
                format!("mapping {} ({})", mapping.range, mapping.link),
            );
        }
    }
    found
}

/// The protocols that CRIU was seen to refuse, by their names in the kernel.
const REFUSED_PROTOCOLS: [&str; 4] = ["MPTCP", "MPTCPv6", "AF_VSOCK", "XDP"];

/// The anonymous inodes for which CRIU has images: with any other it stops.
const STORED_INODES: [&str; 8] = [
    "[eventfd]",
    "[eventpoll]",
    "inotify",
    "[fanotify]",
    "[signalfd]",
    "[timerfd]",
    "bpf-map",
    "[pidfd]",
];

/// Memory by another name, which CRIU stores as such.
const NO_FILES: [&str; 5] = [
    "/memfd:",
    "/dev/zero (",
    "/SYSV",
    "/anon_hugepage",
    "/[aio]",
];

const SECRET: &str = "/secretmem";

/// Devices of NVIDIA's and AMD's drivers, by how their nodes are called: some of their numbers differ from machine to machine.
const GPUS: [&str; 3] = ["/dev/nvidia", "/dev/kfd", "/dev/dri/"];

/// Whether this path is a GPU's.
pub fn is_gpu(path: &str) -> bool {
    GPUS.iter().any(|prefix| path.starts_with(prefix))
}

fn of_descriptor(descriptor: &Descriptor, ours: &Ours) -> Option<Reason> {
    let link = descriptor.link.as_str();
    match descriptor.watches {
        Watches::Overlay => return Some(Reason::Watch),
        Watches::Files if !ours.may_open_handles => return Some(Reason::Watch),
        Watches::Files | Watches::Nothing => {}
    }
    if let Some(inode) = link.strip_prefix("anon_inode:") {
        return match inode {
            "[io_uring]" => Some(Reason::IoUring),
            inode if STORED_INODES.contains(&inode) => None,
            _ => Some(Reason::Descriptor),
        };
    }
    if link.starts_with("pipe:[") {
        return ours.gets_short_pipes.then_some(Reason::Pipe);
    }
    if is_gpu(link) {
        return Some(Reason::Gpu);
    }
    if let Some(protocol) = &descriptor.protocol {
        return REFUSED_PROTOCOLS
            .contains(&protocol.as_str())
            .then_some(Reason::Socket);
    }
    if link.starts_with(SECRET) {
        return Some(Reason::SecretMemory);
    }
    if NO_FILES.iter().any(|prefix| link.starts_with(prefix)) {
        return None;
    }
    if descriptor.unseen_mount {
        return Some(Reason::Mount);
    }
    descriptor.file.and_then(|file| of_file(file, ours))
}

fn of_mapping(mapping: &Mapping, ours: &Ours) -> Option<Reason> {
    let link = mapping.link.as_str();
    match link {
        "anon_inode:[io_uring]" => Some(Reason::IoUring),
        _ if is_gpu(link) => Some(Reason::Gpu),
        _ if link.starts_with("/SYSV") => (!ours.may_store_ipc).then_some(Reason::SharedMemory),
        _ if link.starts_with(SECRET) => Some(Reason::SecretMemory),
        _ if NO_FILES.iter().any(|prefix| link.starts_with(prefix)) => None,
        _ => mapping.file.and_then(|file| of_file(file, ours)),
    }
}

/// Major numbers from linux/major.h: memory, the terminals of the console, /dev/tty and /dev/ptmx, pseudo-terminals.
fn is_stored(major: u32) -> bool {
    matches!(major, 1 | 4 | 5 | 136..=143)
}

fn of_file(file: File, ours: &Ours) -> Option<Reason> {
    match file {
        File {
            device: Some((major, _)),
            ..
        } => (!is_stored(major)).then_some(Reason::Device),
        File { unnamed: false, .. } => None,
        File {
            links: 0, bytes, ..
        } => (bytes > ours.ghost_limit).then_some(Reason::DeletedFile),
        File { .. } => Some(Reason::LostName),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Ours = Ours {
        user: 0,
        group: 0,
        may_store_users: false,
        may_open_handles: false,
        may_suspend_filters: false,
        may_store_ipc: false,
        gets_short_pipes: false,
        ghost_limit: 1 << 20,
    };

    fn with(descriptor: Descriptor) -> Process {
        Process {
            pid: 301,
            command: "app".into(),
            descriptors: vec![descriptor],
            ..Process::default()
        }
    }

    fn open(link: &str) -> Descriptor {
        Descriptor {
            number: 3,
            link: link.into(),
            ..Descriptor::default()
        }
    }

    fn mapped(link: &str, file: Option<File>) -> Process {
        Process {
            mappings: vec![Mapping {
                range: "7f00-7f10".into(),
                link: link.into(),
                file,
            }],
            ..Process::default()
        }
    }

    fn file(unnamed: bool, links: u64, bytes: u64) -> Option<File> {
        Some(File {
            unnamed,
            links,
            bytes,
            device: None,
        })
    }

    #[test]
    fn each_rule_has_what_it_finds_and_what_it_lets_pass() {
        let device = |major, minor| {
            let device = Some((major, minor));
            let file = Some(File {
                device,
                links: 1,
                ..File::default()
            });
            with(Descriptor {
                file,
                ..open("/dev/thing")
            })
        };
        let socket = |protocol: &str| {
            with(Descriptor {
                protocol: Some(protocol.into()),
                ..open("socket:[7]")
            })
        };
        let watching = |watches| {
            with(Descriptor {
                watches,
                ..open("anon_inode:inotify")
            })
        };
        let opened = |link: &str, file| with(Descriptor { file, ..open(link) });
        let process = Process::default;
        let cases: Vec<(Process, Option<Reason>)> = vec![
            (process(), None),
            (
                Process {
                    orphan: true,
                    ..process()
                },
                Some(Reason::Orphan),
            ),
            (
                Process {
                    filtered: true,
                    ..process()
                },
                Some(Reason::Seccomp),
            ),
            (
                Process {
                    tracer: 9,
                    ..process()
                },
                Some(Reason::Traced),
            ),
            (
                Process {
                    foreign_namespaces: vec!["uts".into()],
                    ..process()
                },
                Some(Reason::Namespace),
            ),
            (
                Process {
                    users: [0, 1, 0],
                    ..process()
                },
                Some(Reason::User),
            ),
            (
                Process {
                    groups: [1, 1, 1],
                    ..process()
                },
                Some(Reason::User),
            ),
            (with(open("anon_inode:[io_uring]")), Some(Reason::IoUring)),
            (with(open("anon_inode:[eventpoll]")), None),
            (
                with(open("anon_inode:[perf_event]")),
                Some(Reason::Descriptor),
            ),
            (with(open("pipe:[8]")), None),
            (with(open("pidfd:[8]")), None),
            (watching(Watches::Nothing), None),
            (watching(Watches::Files), Some(Reason::Watch)),
            (watching(Watches::Overlay), Some(Reason::Watch)),
            (socket("TCP"), None),
            (socket("UNIX-STREAM"), None),
            (socket("MPTCP"), Some(Reason::Socket)),
            (device(1, 3), None),
            (device(136, 0), None),
            (device(10, 229), Some(Reason::Device)),
            (device(195, 255), Some(Reason::Device)),
            (with(open("/dev/nvidia-uvm")), Some(Reason::Gpu)),
            (mapped("/dev/dri/renderD128", None), Some(Reason::Gpu)),
            (opened("/a", file(false, 1, 1 << 30)), None),
            (opened("/a (deleted)", file(true, 0, 1 << 20)), None),
            (
                opened("/a (deleted)", file(true, 0, 2 << 20)),
                Some(Reason::DeletedFile),
            ),
            (
                opened("/a (deleted)", file(true, 1, 1)),
                Some(Reason::LostName),
            ),
            (opened("/memfd:x (deleted)", file(true, 0, 2 << 20)), None),
            (
                opened("/secretmem (deleted)", file(true, 0, 1)),
                Some(Reason::SecretMemory),
            ),
            (
                with(Descriptor {
                    unseen_mount: true,
                    ..open("/queue")
                }),
                Some(Reason::Mount),
            ),
            (
                with(Descriptor {
                    unseen_mount: true,
                    ..open("/memfd:x (deleted)")
                }),
                None,
            ),
            (mapped("anon_inode:[io_uring]", None), Some(Reason::IoUring)),
            (
                mapped("/SYSV00000000 (deleted)", file(true, 0, 0)),
                Some(Reason::SharedMemory),
            ),
            (
                mapped("/secretmem (deleted)", None),
                Some(Reason::SecretMemory),
            ),
            (mapped("/dev/zero (deleted)", file(true, 0, 2 << 20)), None),
            (
                mapped("/a (deleted)", file(true, 0, 2 << 20)),
                Some(Reason::DeletedFile),
            ),
            (mapped("/a (deleted)", file(true, 0, 1 << 20)), None),
            (mapped("/lib/a.so", None), None),
        ];
        let mut seen = Vec::new();
        for (process, expected) in cases {
            let found = examine(std::slice::from_ref(&process), &OURS);
            let reasons: Vec<Reason> = found.iter().map(|finding| finding.reason).collect();
            assert_eq!(reasons, Vec::from_iter(expected), "{process:?}");
            seen.extend(reasons);
        }
        let crowded = Ours {
            gets_short_pipes: true,
            ..OURS
        };
        let pipe = [with(open("pipe:[8]")), with(open("/a/pipe:[8]"))];
        let found = examine(&pipe, &crowded);
        let reasons: Vec<Reason> = found.iter().map(|finding| finding.reason).collect();
        assert_eq!(reasons, [Reason::Pipe]);
        seen.extend(reasons);
        assert!(Reason::ALL.iter().all(|reason| seen.contains(reason)));
    }

    #[test]
    fn deleted_files_may_take_half_of_the_room_there_is() {
        assert_eq!(ghost_limit(Some(0), 1 << 40), 0);
        assert_eq!(ghost_limit(None, 0), 64 << 20);
        assert_eq!(ghost_limit(None, 1 << 30), 512 << 20);
        assert_eq!(ghost_limit(None, 1 << 40), u64::from(u32::MAX));
    }

    #[test]
    fn a_privilege_takes_away_what_it_cures() {
        let able = Ours {
            may_store_users: true,
            may_open_handles: true,
            may_suspend_filters: true,
            ..OURS
        };
        let process = Process {
            filtered: true,
            users: [7; 3],
            ..with(Descriptor {
                watches: Watches::Files,
                ..open("anon_inode:inotify")
            })
        };
        assert_eq!(examine(std::slice::from_ref(&process), &OURS).len(), 3);
        assert_eq!(examine(&[process], &able), []);
    }

    #[test]
    fn a_finding_names_what_it_is_about_and_all_are_in_order() {
        let seccomp = Process {
            pid: 400,
            filtered: true,
            ..Process::default()
        };
        let found = examine(&[with(open("anon_inode:[io_uring]")), seccomp], &OURS);
        assert_eq!(found[0].reason, Reason::Seccomp);
        assert_eq!(
            (
                found[1].pid,
                found[1].command.as_str(),
                found[1].what.as_str()
            ),
            (301, "app", "descriptor 3 (anon_inode:[io_uring])")
        );
    }

    #[test]
    fn reasons_have_spellings_of_their_own() {
        let mut names = Reason::ALL.map(Reason::as_str).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::ALL.len());
        assert!(Reason::ALL.is_sorted());
    }
}
