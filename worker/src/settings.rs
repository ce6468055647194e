//! Settings: built-in values < file < environment < flags, checked in every layer, as one value.
//!
//! [`TABLE`] is the only list of settings; flags, environment names, file keys, defaults, checks and docs/settings.md
//! follow from it. [`Settings::load`] reports every fault of every layer at once, each with where it came from and what
//! to write instead, so that a container is corrected in one round. Values are shown except where they may hold
//! credentials. What a setting leads to is decided by those who read it; opening stores and sockets is left to them.
//!
//! Unknown keys and unknown `REPRIEVE_*` variables are refused: a mistyped setting that is silently ignored is noticed
//! only at the eviction. The one exception are the variables Kubernetes injects for a service whose name starts with
//! "reprieve" (`REPRIEVE_SERVICE_HOST`, `REPRIEVE_PORT_80_TCP`, ...), which the user can hardly avoid.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Config, ConfigError, File, FileFormat, Map, Value, ValueKind};
use reprieve_core::cpu::Level;
use reprieve_core::moved::Move;
use reprieve_core::notice::Source;
use reprieve_core::preserve::{Pattern, Privileged, Rules};
use reprieve_core::retention::Policy;
use reprieve_core::rollback;
use tracing_subscriber::EnvFilter;
use url::Url;

use crate::failure::{ExitCode, Failure};
use crate::keys::{Secret, Source as KeySource};
use crate::named::named;

/// Read when it exists and no other file is named.
pub const DEFAULT_FILE: &str = "/etc/reprieve.toml";
/// Names the settings file; not a setting itself, as a file cannot name itself.
pub const FILE_VARIABLE: &str = "REPRIEVE_CONFIG";
/// Holds a key or passphrase; not a setting itself, since a secret has no place in a file of settings or on a command
/// line, which everybody can read.
pub const KEY_VARIABLE: &str = "REPRIEVE_KEY";

const VARIABLE_PREFIX: &str = "REPRIEVE_";
/// A settings file is a page; whatever is larger is some other file.
const FILE_LIMIT: u64 = 256 * 1024;
/// Longer values are cut when shown.
const SHOWN_LIMIT: usize = 120;
/// `sun_path` holds 108 bytes with its final NUL.
const SOCKET_PATH_LIMIT: usize = 107;
const JOB_NAME_LIMIT: usize = 128;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const MIB: u64 = 1024 * 1024;

/// The environment as settings read it.
pub trait Environment {
    fn variables(&self) -> Vec<(OsString, OsString)>;
}

/// The environment this process was started with.
#[derive(Clone, Copy, Debug)]
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    fn variables(&self) -> Vec<(OsString, OsString)> {
        std::env::vars_os().collect()
    }
}

/// What a value has to look like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    StoreAddress,
    Endpoint,
    /// One that is spoken to without TLS.
    PlainEndpoint,
    /// A URL that may have TLS and is not a service of ours.
    WebAddress,
    LifecycleHook,
    Region,
    AzureAccount,
    /// Of a queue of SQS.
    QueueUrl,
    JobName,
    /// A snapshot of the job, and perhaps a name of the request.
    Rollback,
    /// A machine, as its provider calls it.
    Instance,
    Choice(&'static [&'static str]),
    /// `auto`, `none`, or sources of notices by name.
    Sources,
    /// `never`, `auto`, or a duration.
    Period,
    /// `off`, a level, or a file.
    CpuBaseline,
    /// Lower and upper limit.
    Duration(Duration, Duration),
    /// Lower and upper limit in bytes.
    Size(u64, u64),
    /// The same, or `auto`.
    AutoSize(u64, u64),
    /// Lower and upper limit.
    Count(u32, u32),
    ExitCode,
    Program,
    /// An absolute path and the largest number of bytes it may have.
    Path(usize),
    /// Absolute paths with commas between them.
    Paths,
    /// Patterns of paths with colons between them, or `auto` for one.
    Preserve,
    /// The same without `auto`, and with names that may be anywhere.
    PreserveExclude,
    KmsKey,
    /// Several with commas between them.
    KmsKeys,
    ListenAddress,
    /// Rules for addresses with commas between them.
    Moves,
    LogFilter,
    /// Printable ASCII without spaces, and its greatest length.
    PlainText(usize),
}

/// One row of the table of settings.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// As the flag spells it, without the dashes.
    pub name: &'static str,
    pub section: &'static str,
    pub kind: Kind,
    pub default: Option<&'static str>,
    /// What holds while there is no value; empty when there is a default.
    pub unset: &'static str,
    pub meaning: &'static str,
}

impl Kind {
    /// Whether a flag of it may be given several times, for a list.
    pub(crate) fn is_list(self) -> bool {
        self.separator().is_some()
    }

    /// What stands between the values of a list.
    pub(crate) fn separator(self) -> Option<char> {
        match self {
            Self::Paths | Self::KmsKeys | Self::Moves => Some(','),
            Self::Preserve | Self::PreserveExclude => Some(':'),
            _ => None,
        }
    }
}

impl Setting {
    pub fn flag(&self) -> String {
        format!("--{}", self.name)
    }

    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.key().to_ascii_uppercase())
    }

    /// The key in the file, which also accepts `-` for `_`.
    pub fn key(&self) -> String {
        self.name.replace('-', "_")
    }

    /// The row with this name; names are literals in this crate, so a missing one is a bug that the tests meet.
    fn named(name: &str) -> &'static Self {
        TABLE
            .iter()
            .find(|setting| setting.name == name)
            .expect("the name of a row of the table of settings")
    }
}

const STORE: &str = "Store";
const KEYS: &str = "Keys";
const EVICTION: &str = "Eviction and checkpoint";
const NOTICES: &str = "Notices";
const CALLOUTS: &str = "Your own programs";
const BOOT: &str = "Boot and restore";
const HOST: &str = "Host";
const OBSERVE: &str = "Observation";

/// Every setting there is.
pub const TABLE: &[Setting] = &[
    Setting {
        name: "store",
        section: STORE,
        kind: Kind::StoreAddress,
        default: None,
        unset: "nothing is checkpointed",
        meaning: "Where snapshots are kept: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX` or \
                  `file:///DIRECTORY`.",
    },
    Setting {
        name: "job",
        section: STORE,
        kind: Kind::JobName,
        default: None,
        unset: "derived from the app: its base name, `-`, and 8 hexadecimal digits of the command line's BLAKE3",
        meaning: "The name under which the store knows this job. Two workers with the same store and job are the same \
                  job: the later one takes it over.",
    },
    Setting {
        name: "s3-endpoint",
        section: STORE,
        kind: Kind::Endpoint,
        default: None,
        unset: "AWS, as the region says",
        meaning: "The address of an S3 that is not AWS.",
    },
    Setting {
        name: "s3-region",
        section: STORE,
        kind: Kind::Region,
        default: None,
        unset: "as the AWS configuration or the machine's metadata says",
        meaning: "The region of the bucket.",
    },
    Setting {
        name: "s3-path-style",
        section: STORE,
        kind: Kind::Choice(PathStyle::NAMES),
        default: Some("auto"),
        unset: "",
        meaning: "Whether the bucket is named in the path instead of the host name; `auto` does so when `s3-endpoint` \
                  is set.",
    },
    Setting {
        name: "s3-sse",
        section: STORE,
        kind: Kind::Choice(S3Encryption::NAMES),
        default: Some("bucket"),
        unset: "",
        meaning: "Encryption by S3 itself: as the bucket says (`bucket`), with keys of S3's own (`aes256`), or with a key \
                  in KMS (`aws:kms`, `aws:kms:dsse`).",
    },
    Setting {
        name: "s3-sse-key",
        section: STORE,
        kind: Kind::PlainText(2048),
        default: None,
        unset: "the account's own key for S3",
        meaning: "The key in KMS: its id, ARN or alias. Only with `s3-sse` `aws:kms` or `aws:kms:dsse`. Writing needs \
                  `kms:GenerateDataKey` on it, reading `kms:Decrypt`.",
    },
    Setting {
        name: "s3-storage-class",
        section: STORE,
        kind: Kind::Choice(S3StorageClass::NAMES),
        default: Some("bucket"),
        unset: "",
        meaning: "The storage class of parts: `bucket` names none, which is S3 Standard on AWS. Manifests and HEAD are always \
                  stored so: they are small and short-lived. Other classes than `standard` bill removed objects for 30 or 90 \
                  days.",
    },
    Setting {
        name: "s3-request-payer",
        section: STORE,
        kind: Kind::Choice(S3RequestPayer::NAMES),
        default: Some("owner"),
        unset: "",
        meaning: "Who pays for requests: the owner of the bucket, or whoever makes them (`requester`), which buckets of that \
                  kind ask for.",
    },
    Setting {
        name: "gs-endpoint",
        section: STORE,
        kind: Kind::Endpoint,
        default: None,
        unset: "https://storage.googleapis.com",
        meaning: "The address of Google Cloud Storage, or of what speaks its XML interface.",
    },
    Setting {
        name: "azure-account",
        section: STORE,
        kind: Kind::AzureAccount,
        default: None,
        unset: "as `AZURE_STORAGE_ACCOUNT` or `AZURE_STORAGE_CONNECTION_STRING` says",
        meaning: "The storage account that has the container of an `az://` store.",
    },
    Setting {
        name: "azure-endpoint",
        section: STORE,
        kind: Kind::Endpoint,
        default: None,
        unset: "https://ACCOUNT.blob.core.windows.net",
        meaning: "The address of the account's blob storage, below which the containers are.",
    },
    Setting {
        name: "store-self-test",
        section: STORE,
        kind: Kind::Choice(StoreSelfTest::NAMES),
        default: Some("on"),
        unset: "",
        meaning: "Whether the start makes sure, with a few small requests, that the store keeps the conditions of conditional \
                  writes. Without them two workers can run the same job; some servers that speak S3 ignore them without a \
                  word. A store that does is refused with exit code 175.",
    },
    Setting {
        name: "keep-generations",
        section: STORE,
        kind: Kind::Count(2, 1000),
        default: Some("5"),
        unset: "",
        meaning: "How many of the newest snapshots of the job are kept. At least two, so that a bad one has a \
                  predecessor. Snapshots that are pinned or tagged are kept as well.",
    },
    Setting {
        name: "keep-hourly",
        section: STORE,
        kind: Kind::Count(0, 1000),
        default: Some("0"),
        unset: "",
        meaning: "Of how many hours the last snapshot is kept as well: of the latest hours (UTC) in which there was one.",
    },
    Setting {
        name: "keep-daily",
        section: STORE,
        kind: Kind::Count(0, 1000),
        default: Some("0"),
        unset: "",
        meaning: "Of how many days the last snapshot is kept as well: of the latest days (UTC) on which there was one.",
    },
    Setting {
        name: "sweep-grace",
        section: STORE,
        kind: Kind::Duration(Duration::ZERO, Duration::from_secs(365 * 24 * 60 * 60)),
        default: Some("24h"),
        unset: "",
        meaning: "What an attempt at a checkpoint has stored and no snapshot needs is removed this long after the attempt \
                  last stored something. Longer than any checkpoint takes; one that takes longer fails, and the job \
                  runs on.",
    },
    Setting {
        name: "waste-factor",
        section: STORE,
        kind: Kind::Count(2, 100),
        default: Some("2"),
        unset: "",
        meaning: "A snapshot may keep this many times as many bytes in the store as it needs, because parts of earlier ones \
                  are kept for the few pages that are still needed of them. Beyond that, those pages are stored anew and the \
                  emptiest parts are let go.",
    },
    Setting {
        name: "compression",
        section: STORE,
        kind: Kind::Choice(Compression::NAMES),
        default: Some("auto"),
        unset: "",
        meaning: "How much processor time goes into smaller snapshots: `low` none, `medium` zstd's fast level -1, `high` \
                  its level 1. `auto` takes whichever the processors, the store and the deadline leave time for, and \
                  changes it as they do. Blocks that would not shrink are not tried.",
    },
    Setting {
        name: "memory-budget",
        section: STORE,
        kind: Kind::Size(32 * MIB, 1024 * 1024 * MIB),
        default: Some("64MiB"),
        unset: "",
        meaning: "Memory for data on its way between the job and the store.",
    },
    Setting {
        name: "key-file",
        section: KEYS,
        kind: Kind::Path(usize::MAX),
        default: None,
        unset: "nothing is sealed, unless `kms-key` or the environment variable `REPRIEVE_KEY` is set",
        meaning: "A file with the key that snapshots are encrypted and signed with: 32 bytes as they are, in hexadecimal \
                  or in base64, or a passphrase in one line.",
    },
    Setting {
        name: "kms-key",
        section: KEYS,
        kind: Kind::KmsKey,
        default: None,
        unset: "nothing is sealed, unless `key-file` or the environment variable `REPRIEVE_KEY` is set",
        meaning: "The key of AWS KMS that encrypts the job's key. Reprieve asks for `kms:GenerateDataKey` once for each job \
                  and for `kms:Decrypt` at each start, with the job's name as encryption context (`reprieve-job`).",
    },
    Setting {
        name: "old-key-file",
        section: KEYS,
        kind: Kind::Paths,
        default: None,
        unset: "snapshots are opened with the newest key only",
        meaning: "Files with keys that older snapshots were sealed with. They only open; new snapshots are sealed with the \
                  key of `key-file`, `kms-key` or `REPRIEVE_KEY`. The flag can be repeated.",
    },
    Setting {
        name: "old-kms-key",
        section: KEYS,
        kind: Kind::KmsKeys,
        default: None,
        unset: "snapshots are opened with the newest key only",
        meaning: "The same for keys of AWS KMS. The flag can be repeated.",
    },
    Setting {
        name: "on-unsealed",
        section: KEYS,
        kind: Kind::Choice(OnUnsealed::NAMES),
        default: Some("refuse"),
        unset: "",
        meaning: "When a key is set and the job was stored without one: end with exit code 186 (`refuse`), or go on from what \
                  is there and seal everything from now on (`accept`). Anybody who may write the store can put something there \
                  that is not sealed, so `accept` is for one start, right after a key was first set.",
    },
    Setting {
        name: "seed",
        section: STORE,
        kind: Kind::Choice(Seed::NAMES),
        default: Some("on"),
        unset: "",
        meaning: "Whether memory is stored ahead while the job runs, so that a checkpoint has only to store what changed \
                  since. Nothing is frozen for it.",
    },
    Setting {
        name: "seed-interval",
        section: STORE,
        kind: Kind::Duration(Duration::from_millis(100), DAY),
        default: Some("1m"),
        unset: "",
        meaning: "The pause before each look at the job's memory. What changed is stored once it was found the same in \
                  two looks. Before an end that is announced, while the job is safe and works on, one look follows the \
                  other.",
    },
    Setting {
        name: "seed-bandwidth",
        section: STORE,
        kind: Kind::Size(64 * 1024, 1024 * 1024 * MIB),
        default: Some("32MiB"),
        unset: "",
        meaning: "How much is stored ahead in a second, at most; as much as there is before an end that is announced.",
    },
    Setting {
        name: "seed-cpu",
        section: STORE,
        kind: Kind::Count(1, 100),
        default: Some("10"),
        unset: "",
        meaning: "The share of one processor, in percent, that looking at memory and packing it may take; all of one \
                  before an end that is announced. It yields to the job in any case.",
    },
    Setting {
        name: "term-grace",
        section: EVICTION,
        kind: Kind::Duration(Duration::from_secs(1), DAY),
        default: None,
        unset: "as `platform` says",
        meaning: "How long the platform waits between SIGTERM and SIGKILL. A checkpoint on SIGTERM has to fit in here. \
                  `docker stop` waits 10s unless told otherwise, Kubernetes `terminationGracePeriodSeconds`, ECS \
                  `stopTimeout`.",
    },
    Setting {
        name: "deadline-margin",
        section: EVICTION,
        kind: Kind::Duration(Duration::ZERO, DAY),
        default: Some("1s"),
        unset: "",
        meaning: "Kept back from every deadline, for clocks that differ and for our own end.",
    },
    Setting {
        name: "stop-grace",
        section: EVICTION,
        kind: Kind::Duration(Duration::ZERO, DAY),
        default: Some("5s"),
        unset: "",
        meaning: "When the app has ended, what is left of its processes gets SIGTERM, this long, and then SIGKILL.",
    },
    Setting {
        name: "checkpoint-timeout",
        section: EVICTION,
        kind: Kind::Duration(Duration::from_secs(1), DAY),
        default: Some("25s"),
        unset: "",
        meaning: "The time limit of a checkpoint that was asked for without a deadline; `reprieve checkpoint --timeout` \
                  goes before it.",
    },
    Setting {
        name: "on-checkpoint-failure",
        section: EVICTION,
        kind: Kind::Choice(OnCheckpointFailure::NAMES),
        default: Some("run-on"),
        unset: "",
        meaning: "When the checkpoint on SIGTERM failed: the job runs on until the platform kills it (`run-on`), or it \
                  gets the SIGTERM to save itself (`forward`).",
    },
    Setting {
        name: "checkpointed-exit-code",
        section: EVICTION,
        kind: Kind::ExitCode,
        default: Some("75"),
        unset: "",
        meaning: "The exit code for \"checkpointed and stopped, run me again\". 0 is accepted only as a flag, with a \
                  warning: most platforms take it for a finished job and never run it again.",
    },
    Setting {
        name: "ghost-limit",
        section: EVICTION,
        // CRIU takes it as a 32-bit number.
        kind: Kind::AutoSize(0, u32::MAX as u64),
        default: Some("auto"),
        unset: "",
        meaning: "The largest file that is deleted but still open and goes into a snapshot; a larger one fails the \
                  checkpoint. `auto`: half of the room that there is in `work-dir` at that moment, where CRIU puts such files \
                  during a dump, and of the memory that is left, if that directory is in memory; no less than 64 MiB and no more \
                  than 4 GiB.",
    },
    Setting {
        name: "watched",
        section: EVICTION,
        kind: Kind::Paths,
        default: None,
        unset: "a checkpoint fails while the job watches anything but what is below /etc and /var/log, and a few more",
        meaning: "Directories and files of which the job watches some (inotify, fanotify), with all that is below. CRIU goes through \
                  them to find out what a watch is for, while the job stands still (docs/limits.md). The flag can be repeated.",
    },
    Setting {
        name: "orphans",
        section: EVICTION,
        kind: Kind::Choice(Orphans::NAMES),
        default: Some("refuse"),
        unset: "",
        meaning: "Who takes in processes whose parent has ended (daemons), of an app that is started from scratch. `refuse`: the supervisor, \
                  and a checkpoint is refused while there are any. `app`: the app's first process, as in a container where it is process 1; \
                  they are stored and resumed with it, and it has to wait for them (docs/limits.md).",
    },
    Setting {
        name: "io-uring",
        section: EVICTION,
        kind: Kind::Choice(IoUring::NAMES),
        default: Some("deny"),
        unset: "",
        meaning: "Whether an app that is started from scratch may make an io_uring, which CRIU cannot store. `deny` lets \
                  io_uring_setup answer ENOSYS, so that Node.js and others do without, by a library in LD_PRELOAD. `filter` \
                  does so by a seccomp filter, which reaches every program; it needs SYS_ADMIN, here and wherever the job \
                  is resumed (docs/checkup.md).",
    },
    Setting {
        name: "seccomp",
        section: EVICTION,
        kind: Kind::Choice(Seccomp::NAMES),
        default: Some("off"),
        unset: "",
        meaning: "Whether an app that is started from scratch gets a seccomp filter of its own (`job`), which refuses what \
                  Docker's default one does: mounts, namespaces, keys, modules, handles, io_uring and the like \
                  (infra/policy/job.seccomp.json). It needs SYS_ADMIN, here and wherever the job is resumed, and no filter on \
                  the container; 32-bit programs do not run under it. A resumed app has what it was started with.",
    },
    Setting {
        name: "clocks",
        section: EVICTION,
        kind: Kind::Choice(Clocks::NAMES),
        default: Some("keep"),
        unset: "",
        meaning: "Whether CLOCK_MONOTONIC and CLOCK_BOOTTIME of an app that is started from scratch go on at a resume where the \
                  host's do not (minimal profile). `keep`: by a library in LD_PRELOAD, for programs that are dynamically linked; \
                  others are named in the snapshot, and on-clock-behind decides for them. `host`: they are the host's \
                  (docs/limits.md).",
    },
    Setting {
        name: "jvm-perf-data",
        section: EVICTION,
        kind: Kind::Choice(PerfData::NAMES),
        default: Some("off"),
        unset: "",
        meaning: "Whether a JVM keeps its file of performance data (/tmp/hsperfdata_*), which a resume on another host would \
                  need. `off` adds -XX:-UsePerfData to JAVA_TOOL_OPTIONS, unless that says something about it.",
    },
    Setting {
        name: "go-multipath-tcp",
        section: EVICTION,
        kind: Kind::Choice(GoMultipathTcp::NAMES),
        default: Some("off"),
        unset: "",
        meaning: "Whether listeners of Go programs (1.24 and later) are of multipath TCP, which CRIU cannot store. `off` adds \
                  multipathtcp=0 to GODEBUG, unless that says something about it.",
    },
    Setting {
        name: "cpu-baseline",
        section: EVICTION,
        kind: Kind::CpuBaseline,
        default: Some("off"),
        unset: "",
        meaning: "The level of x86-64 that an app which is started from scratch is held to, a file that says what the machines of a \
                  fleet have, or `auto-from-launch-template` for what all instance types have that this machine's group of Auto Scaling \
                  may have (docs/hosts.md), so that its snapshots resume on every \
                  host that has it: the C library, OpenBLAS, MKL, NumPy and JVMs are told by variables of the environment \
                  (docs/hosts.md says what that reaches). With `off`, a snapshot needs every instruction set of the host \
                  that it was taken on.",
    },
    Setting {
        name: "image-digest",
        section: EVICTION,
        kind: Kind::PlainText(256),
        default: None,
        unset: "not recorded",
        meaning: "Which image the container was made from, such as its digest; recorded in each snapshot.",
    },
    Setting {
        name: "preserve",
        section: EVICTION,
        kind: Kind::Preserve,
        default: None,
        unset: "no files of the app travel with a snapshot, but for deleted ones that are open",
        meaning: "What of the app's files travels with each snapshot: files, directories with all that is in them, patterns \
                  (`*`, `?`, `[abc]`, and `**` for any directories), or `auto` for what changed on the container's own layer \
                  since Reprieve started. The flag can be repeated. Other mounts travel only when they are named.",
    },
    Setting {
        name: "preserve-exclude",
        section: EVICTION,
        kind: Kind::PreserveExclude,
        default: None,
        unset: "nothing of it is left out",
        meaning: "What of that stays behind all the same. A pattern without a slash is a name that may be anywhere. The flag \
                  can be repeated.",
    },
    Setting {
        name: "preserve-privileged",
        section: EVICTION,
        kind: Kind::Choice(PreservePrivileged::NAMES),
        default: Some("refuse"),
        unset: "",
        meaning: "Whether device nodes, setuid and setgid bits and file capabilities travel with preserved files (`keep`), or \
                  are left out of new snapshots and refused in others (`refuse`).",
    },
    Setting {
        name: "checkup-interval",
        section: EVICTION,
        kind: Kind::Duration(Duration::from_millis(100), DAY),
        default: Some("1m"),
        unset: "",
        meaning: "The pause before each look at the job's processes for what a checkpoint would fail at (docs/checkup.md). \
                  There is a look at the start and after each checkpoint as well.",
    },
    Setting {
        name: "rehearse",
        section: EVICTION,
        kind: Kind::Choice(Rehearse::NAMES),
        default: Some("off"),
        unset: "",
        meaning: "Whether a checkpoint is rehearsed once: the running job is really dumped, nothing of it is kept, and the job runs on. Whether it worked and how long the job stood still is in the log, in `status` and in the metrics (docs/checkup.md).",
    },
    Setting {
        name: "rehearse-after",
        section: EVICTION,
        kind: Kind::Duration(Duration::ZERO, DAY),
        default: Some("1m"),
        unset: "",
        meaning: "How long the app runs before the rehearsal. It is put off for as long again while a checkpoint is under way or the machine's end is announced, and left out if a checkpoint of the running app has worked by then.",
    },
    Setting {
        name: "signal-target",
        section: EVICTION,
        kind: Kind::Choice(SignalTarget::NAMES),
        default: Some("group"),
        unset: "",
        meaning: "Who gets the signals that are passed on: the app's process group, or the app alone (`child`).",
    },
    Setting {
        name: "platform",
        section: EVICTION,
        kind: Kind::Choice(Platform::NAMES),
        default: Some("auto"),
        unset: "",
        meaning: "What runs the container, which says how long it waits between SIGTERM and SIGKILL unless term-grace does: docker 10s, kubernetes, ecs and slurm 30s. `auto` looks at the variables that the last three set.",
    },
    Setting {
        name: "on-sigint",
        section: EVICTION,
        kind: Kind::Choice(OnSignal::NAMES),
        default: Some("forward"),
        unset: "",
        meaning: "What SIGINT to Reprieve means: it is passed on to the app (`forward`), a checkpoint that leaves the job running (`checkpoint`), or what SIGTERM means (`stop`).",
    },
    Setting {
        name: "on-sighup",
        section: EVICTION,
        kind: Kind::Choice(OnSignal::NAMES),
        default: Some("forward"),
        unset: "",
        meaning: "The same for SIGHUP.",
    },
    Setting {
        name: "on-sigusr1",
        section: EVICTION,
        kind: Kind::Choice(OnSignal::NAMES),
        default: Some("forward"),
        unset: "",
        meaning: "The same for SIGUSR1.",
    },
    Setting {
        name: "on-sigusr2",
        section: EVICTION,
        kind: Kind::Choice(OnSignal::NAMES),
        default: Some("forward"),
        unset: "",
        meaning: "The same for SIGUSR2.",
    },
    Setting {
        name: "on-too-late",
        section: EVICTION,
        kind: Kind::Choice(OnTooLate::NAMES),
        default: Some("try"),
        unset: "",
        meaning: "When what was measured says that a final checkpoint will not be durable before the deadline: it is tried all the same (`try`), or the job works on until the machine is gone (`run-on`). The newest older snapshot stays in either case.",
    },
    Setting {
        name: "shortest-notice",
        section: EVICTION,
        kind: Kind::Duration(Duration::from_millis(100), DAY),
        default: None,
        unset: "the shortest that sources give which work here: `2m` by EC2's metadata service, `30s` by Google Cloud's and Azure's; with none of them `term-grace`",
        meaning: "How long before its end this machine is announced to go, at the shortest: what a checkpoint has to fit into.",
    },
    Setting {
        name: "keep-promise",
        section: EVICTION,
        kind: Kind::Choice(KeepPromise::NAMES),
        default: Some("warn"),
        unset: "",
        meaning: "Before so much has changed that a checkpoint would not fit into shortest-notice any more: it is only told once when it is so (`warn`); memory is stored ahead sooner than seed-interval says, so that less is left to do (`seed`); or that, and where it is not enough checkpoints are taken that leave the job running, as often as least-interval lets them (`checkpoint`).",
    },
    Setting {
        name: "every",
        section: EVICTION,
        kind: Kind::Period,
        default: Some("never"),
        unset: "",
        meaning: "How often a checkpoint is taken that leaves the job running and that nobody asks for: `never`, a duration, or `auto`, which follows from what a checkpoint was measured to cost, machine-lifetime and max-lost-work. Notices are best effort; this is what the job falls back to.",
    },
    Setting {
        name: "max-lost-work",
        section: EVICTION,
        kind: Kind::Duration(Duration::from_secs(1), DAY),
        default: Some("15m"),
        unset: "",
        meaning: "With `every = auto`: how much work may be lost when the machine goes without a notice.",
    },
    Setting {
        name: "machine-lifetime",
        section: EVICTION,
        kind: Kind::Duration(
            Duration::from_secs(60),
            Duration::from_secs(365 * 24 * 60 * 60),
        ),
        default: Some("6h"),
        unset: "",
        meaning: "With `every = auto`: how long a machine lives on average.",
    },
    Setting {
        name: "least-interval",
        section: EVICTION,
        kind: Kind::Duration(Duration::from_secs(1), DAY),
        default: Some("30s"),
        unset: "",
        meaning: "Between two checkpoints that neither a deadline nor a person asks for, at least.",
    },
    Setting {
        name: "at-risk-interval",
        section: EVICTION,
        kind: Kind::Duration(Duration::from_secs(1), DAY),
        default: Some("10m"),
        unset: "",
        meaning: "While a source says that the machine is at risk: a checkpoint at once and then this often, all of them leave the job running.",
    },
    Setting {
        name: "sources",
        section: NOTICES,
        kind: Kind::Sources,
        default: Some("auto"),
        unset: "",
        meaning: "What is listened to besides signals and the control socket: names with commas between them, `none`, or \
                  `auto` for whatever needs no more than other settings say. One that this machine does not have, or \
                  that is out of order, costs a line of the log and nothing else.",
    },
    Setting {
        name: "metadata-poll",
        section: NOTICES,
        kind: Kind::Duration(Duration::from_millis(100), Duration::from_secs(60)),
        default: Some("2s"),
        unset: "",
        meaning: "How often the metadata services of EC2 and Azure are asked. Google Cloud's is waited for.",
    },
    Setting {
        name: "ec2-metadata-endpoint",
        section: NOTICES,
        kind: Kind::PlainEndpoint,
        default: None,
        unset: "`AWS_EC2_METADATA_SERVICE_ENDPOINT`, or `http://169.254.169.254`",
        meaning: "Where EC2's instance metadata service is.",
    },
    Setting {
        name: "gcp-metadata-endpoint",
        section: NOTICES,
        kind: Kind::PlainEndpoint,
        default: None,
        unset: "`GCE_METADATA_HOST`, or `http://169.254.169.254`",
        meaning: "Where Google Cloud's metadata server is.",
    },
    Setting {
        name: "azure-metadata-endpoint",
        section: NOTICES,
        kind: Kind::PlainEndpoint,
        default: None,
        unset: "`http://169.254.169.254`",
        meaning: "Where Azure's metadata service is.",
    },
    Setting {
        name: "queue",
        section: NOTICES,
        kind: Kind::Choice(QueueUse::NAMES),
        default: Some("off"),
        unset: "",
        meaning: "Whether commands and events are read from a queue of SQS: `own` for one that only this job's worker \
                  reads, `shared` for one that others read as well, where what is for them is given back.",
    },
    Setting {
        name: "queue-url",
        section: NOTICES,
        kind: Kind::QueueUrl,
        default: None,
        unset: "with `queue` `own`: one named `reprieve-` and the job is made, and deleted when the job is over",
        meaning: "The queue that is read.",
    },
    Setting {
        name: "queue-lease",
        section: NOTICES,
        kind: Kind::Duration(Duration::from_secs(3), Duration::from_secs(12 * 60 * 60)),
        default: Some("1m"),
        unset: "",
        meaning: "How long a message that a worker took stays hidden from others when that worker falls silent. It is \
                  renewed three times in this time while the worker is at it.",
    },
    Setting {
        name: "dead-letter-queue",
        section: NOTICES,
        kind: Kind::QueueUrl,
        default: None,
        unset: "as the queue's redrive policy says",
        meaning: "Where messages go that nobody can use, with the reason as an attribute.",
    },
    Setting {
        name: "reply-queue",
        section: NOTICES,
        kind: Kind::QueueUrl,
        default: None,
        unset: "commands are answered in the log only",
        meaning: "Where commands that came through the queue are answered.",
    },
    Setting {
        name: "instance-id",
        section: NOTICES,
        kind: Kind::Instance,
        default: None,
        unset: "as EC2's metadata service says, if there is one",
        meaning: "What the provider calls this machine; events of the queue are for the machine that they name.",
    },
    Setting {
        name: "lifecycle-hook",
        section: NOTICES,
        kind: Kind::LifecycleHook,
        default: None,
        unset: "only the hooks that events of the queue name are held and completed",
        meaning: "The name of the Auto Scaling lifecycle hook that waits before this instance is terminated: it is held while the job is being stored and completed then, when the metadata service of EC2 says that the instance is to go.",
    },
    Setting {
        name: "instance-tags",
        section: NOTICES,
        kind: Kind::Choice(InstanceTags::NAMES),
        default: Some("off"),
        unset: "",
        meaning: "Whether job, state and newest snapshot are written to the tags of this EC2 instance, where its \
                  console shows them.",
    },
    Setting {
        name: "defaults-from-tags",
        section: NOTICES,
        kind: Kind::Choice(DefaultsFromTags::NAMES),
        default: Some("off"),
        unset: "",
        meaning: "Whether the tags of this EC2 instance say what nothing else does: `reprieve:store` and `reprieve:job` as \
                  `store` and `job`, and `reprieve:queue`, which is `own` or the URL of a queue that is shared. They are read \
                  from the metadata service, or else with `ec2:DescribeTags`; if neither answers nothing is started.",
    },
    Setting {
        name: "hooks-dir",
        section: CALLOUTS,
        kind: Kind::Path(usize::MAX),
        default: None,
        unset: "no program is run",
        meaning: "A directory of your own programs, each named after the moment at which it is run: [docs/hooks.md](hooks.md).",
    },
    Setting {
        name: "hook-timeout",
        section: CALLOUTS,
        kind: Kind::Duration(Duration::from_millis(100), DAY),
        default: Some("5s"),
        unset: "",
        meaning: "How long one of them, or the webhook, may take; before a freeze it counts against the deadline.",
    },
    Setting {
        name: "on-hook-failure",
        section: CALLOUTS,
        kind: Kind::Choice(OnHookFailure::NAMES),
        default: Some("ignore"),
        unset: "",
        meaning: "When the program for `before-freeze` fails or takes too long: the checkpoint is taken all the same (`ignore`), or given up (`refuse`), and the job runs on.",
    },
    Setting {
        name: "webhook",
        section: CALLOUTS,
        kind: Kind::WebAddress,
        default: None,
        unset: "nothing is posted",
        meaning: "A URL of `https://` or `http://` to which each moment is posted as JSON. Certificates are checked with those \
                  of the system, or of the file that `SSL_CERT_FILE` names.",
    },
    Setting {
        name: "webhook-format",
        section: CALLOUTS,
        kind: Kind::Choice(WebhookFormat::NAMES),
        default: Some("json"),
        unset: "",
        meaning: "The form of what is posted: the JSON itself (`json`), or wrapped as a notification of SNS (`sns`).",
    },
    Setting {
        name: "boot-timeout",
        section: BOOT,
        kind: Kind::Duration(Duration::from_secs(1), DAY),
        default: Some("1m"),
        unset: "",
        meaning: "How long the store may take to become reachable at boot.",
    },
    Setting {
        name: "on-warm-pool",
        section: BOOT,
        kind: Kind::Choice(OnWarmPool::NAMES),
        default: Some("wait"),
        unset: "",
        meaning: "On an EC2 instance that is only being prepared in a warm pool of Auto Scaling (`Warmed:...`): wait until it is \
                  to be in service, or start the job all the same.",
    },
    Setting {
        name: "restore-timeout",
        section: BOOT,
        kind: Kind::Duration(Duration::from_secs(1), DAY),
        default: Some("10m"),
        unset: "",
        meaning: "How long restoring one snapshot may take before the next older one is tried.",
    },
    Setting {
        name: "from",
        section: BOOT,
        kind: Kind::Rollback,
        default: None,
        unset: "the newest snapshot that can be resumed",
        meaning: "Go on from this snapshot and no other, or fail: a generation's number, a tag, or `newest`. Newer snapshots \
                  stay, but no start resumes them by itself. A container that is started again with the same words does \
                  not go back again; for that, add a word: `12@again`.",
    },
    Setting {
        name: "on-other-owner",
        section: BOOT,
        kind: Kind::Choice(OnOtherOwner::NAMES),
        default: Some("wait"),
        unset: "",
        meaning: "When another worker runs the job: wait until it says goodbye or is silent for lease-term, take the job \
                  over at once (the other one then stops its copy), or leave with exit code 172.",
    },
    Setting {
        name: "on-clock-behind",
        section: BOOT,
        kind: Kind::Choice(OnClockBehind::NAMES),
        default: Some("warn"),
        unset: "",
        meaning: "When this host's CLOCK_MONOTONIC is behind what it was in the snapshot, so that the timers and sleeps of what \
                  goes by it would be late by as much: resume all the same with a warning, wait until it has caught up (at most clock-wait), or \
                  end with exit code 171. No older snapshot is tried instead.",
    },
    Setting {
        name: "clock-wait",
        section: BOOT,
        kind: Kind::Duration(Duration::ZERO, DAY),
        default: Some("10m"),
        unset: "",
        meaning: "With on-clock-behind \"wait\": the longest wait. A clock that is further behind ends the start at once, with 171.",
    },
    Setting {
        name: "listen-remap",
        section: BOOT,
        kind: Kind::Moves,
        default: None,
        unset: "each is bound to the address that it was bound to, which this host has to have",
        meaning: "Which address of the host where the snapshot was taken stands for which one of this host, as `OLD:NEW` or \
                  `[OLD]:[NEW]` for IPv6: what listens at the one listens at the other when it is resumed, and so do sockets of UDP \
                  that are not connected. The flag can be repeated.",
    },
    Setting {
        name: "tcp",
        section: BOOT,
        kind: Kind::Choice(Tcp::NAMES),
        default: Some("close"),
        unset: "",
        meaning: "What becomes of established connections of TCP: `close` ends them at a resume, so that clients come again. \
                  `established` keeps them over an eviction, on hosts that have their address; it needs NET_ADMIN and nftables.",
    },
    Setting {
        name: "lease-term",
        section: BOOT,
        kind: Kind::Duration(Duration::from_secs(1), DAY),
        default: Some("30s"),
        unset: "",
        meaning: "An owner of the job gives a sign of life in the store three times in this time; one that is silent for \
                  as long is taken for dead.",
    },
    Setting {
        name: "on-no-valid-snapshot",
        section: BOOT,
        kind: Kind::Choice(OnNoValidSnapshot::NAMES),
        default: Some("fail"),
        unset: "",
        meaning: "When there are snapshots of the job but none can be restored: end with exit code 171 (`fail`), or \
                  start the app from scratch (`start`). The default is `fail`, because a start from scratch silently \
                  repeats days of work and may overwrite its results. A job that has no snapshot at all always starts.",
    },
    Setting {
        name: "profile",
        section: HOST,
        kind: Kind::Choice(ProfileChoice::NAMES),
        default: Some("auto"),
        unset: "",
        meaning: "Whether the app gets namespaces of its own for processes, System V IPC, clocks and mounts (`full`), or lives in the \
                  container's (`minimal`). Full needs root, SYS_ADMIN and SYS_TIME, and ends the start if they are missing; `auto` \
                  takes full where it can be had. What works in which: profiles.md.",
    },
    Setting {
        name: "criu",
        section: HOST,
        kind: Kind::Program,
        default: None,
        unset: "`criu/criu` in the directory of this program if it is there (as in the image), else `criu` in PATH",
        meaning: "The CRIU program: an absolute path, or a name that is looked up in PATH. With a dynamic loader called \
                  `ld.so` in its directory it is started through that one, with the libraries beside it.",
    },
    Setting {
        name: "work-dir",
        section: HOST,
        kind: Kind::Path(usize::MAX),
        default: None,
        unset: "`/run/reprieve` if that is on a tmpfs, else `/dev/shm/reprieve` likewise, else below the temporary \
                directory",
        meaning: "A directory for the small files of a dump or restore in progress. Memory pages never go there.",
    },
    Setting {
        name: "control-socket",
        section: HOST,
        kind: Kind::Path(SOCKET_PATH_LIMIT),
        default: Some("/run/reprieve/control.sock"),
        unset: "",
        meaning: "The socket through which `reprieve checkpoint` and `reprieve status` reach the supervisor.",
    },
    Setting {
        name: "metrics-listen",
        section: OBSERVE,
        kind: Kind::ListenAddress,
        default: None,
        unset: "metrics are not served",
        meaning: "The address and port of the status page, `/status`, `/readyz`, `/healthz` and `/metrics`: to be read by \
                  whoever can reach it, and by nobody else than you mean.",
    },
    Setting {
        name: "push-gateway",
        section: OBSERVE,
        kind: Kind::Endpoint,
        default: None,
        unset: "nothing is pushed there",
        meaning: "A push gateway of Prometheus (`http://`) that gets the metrics when the worker ends, as the group \
                  `job=\"reprieve\"`, `reprieve_job` the name of the job.",
    },
    Setting {
        name: "statsd",
        section: OBSERVE,
        kind: Kind::ListenAddress,
        default: None,
        unset: "nothing is pushed there",
        meaning: "Address and port of a StatsD server that reads tags, which gets the metrics when the worker ends.",
    },
    Setting {
        name: "emf",
        section: OBSERVE,
        kind: Kind::Choice(Emf::NAMES),
        default: Some("off"),
        unset: "",
        meaning: "Where the metrics are written when the worker ends, as a line in CloudWatch's embedded metric format.",
    },
    Setting {
        name: "metrics-recorder",
        section: OBSERVE,
        kind: Kind::Path(usize::MAX),
        default: None,
        unset: "no program is run",
        meaning: "A program that is run at the start and the end of each checkpoint and restore, with what is known of it as \
                  JSON: [docs/hooks.md](hooks.md#a-record-of-every-checkpoint-and-restore). Nothing waits for it.",
    },
    Setting {
        name: "otlp-endpoint",
        section: OBSERVE,
        kind: Kind::Endpoint,
        default: None,
        unset: "`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, or `OTEL_EXPORTER_OTLP_ENDPOINT`; without those no traces are sent",
        meaning: "A collector of OpenTelemetry that gets a trace of each checkpoint and restore, by OTLP over HTTP, with \
                  what OpenTelemetry's own variables say of headers, encoding and certificates: [docs/traces.md](traces.md).",
    },
    Setting {
        name: "log",
        section: OBSERVE,
        kind: Kind::LogFilter,
        default: Some("info"),
        unset: "",
        meaning: "What is logged: `error`, `warn`, `info`, `debug`, `trace` or `off`, also by module \
                  (`info,reprieve::store=debug`).",
    },
    Setting {
        name: "log-format",
        section: OBSERVE,
        kind: Kind::Choice(LogFormat::NAMES),
        default: Some("auto"),
        unset: "",
        meaning: "How log lines look; `auto` is `human` when stderr is a terminal and `json` otherwise.",
    },
];

named! {
    /// Where the bucket is named in requests.
    pub enum PathStyle { Auto = "auto", On = "on", Off = "off", }
}

named! {
    /// What S3 itself encrypts objects with.
    pub enum S3Encryption { Bucket = "bucket", Aes256 = "aes256", Kms = "aws:kms", KmsTwice = "aws:kms:dsse", }
}

named! {
    /// The storage class of parts.
    pub enum S3StorageClass {
        Bucket = "bucket",
        Standard = "standard",
        StandardIa = "standard-ia",
        OnezoneIa = "onezone-ia",
        IntelligentTiering = "intelligent-tiering",
        GlacierInstantRetrieval = "glacier-ir",
    }
}

named! {
    /// Who pays for requests.
    pub enum S3RequestPayer { Owner = "owner", Requester = "requester", }
}

named! {
    /// Whether the store's conditions are tried out.
    pub enum StoreSelfTest { On = "on", Off = "off", }
}

named! {
    /// How hard snapshots are compressed.
    pub enum Compression { Auto = "auto", Low = "low", Medium = "medium", High = "high", }
}

named! {
    /// Whether memory is stored ahead.
    pub enum Seed { On = "on", Off = "off", }
}

named! {
    /// What the app's monotonic clocks do at a resume.
    pub enum Clocks { Keep = "keep", Host = "host", }
}

named! {
    /// Who takes in processes whose parent has ended.
    pub enum Orphans { Refuse = "refuse", App = "app", }
}

named! {
    /// Whether the app may make an io_uring.
    pub enum IoUring { Deny = "deny", Filter = "filter", Allow = "allow", }
}

named! {
    /// Whether the app gets a seccomp filter of its own.
    pub enum Seccomp { Off = "off", Job = "job", }
}

/// What the app is held to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuBaseline {
    Off,
    Level(Level),
    /// What this file says that all machines of a fleet have.
    File(PathBuf),
    /// What all instance types have that this machine's group of Auto Scaling may have.
    LaunchTemplate,
}

impl CpuBaseline {
    fn from_text(text: &str) -> Option<Self> {
        match text {
            "off" => Some(Self::Off),
            "auto-from-launch-template" => Some(Self::LaunchTemplate),
            path if path.starts_with('/') => Some(Self::File(path.into())),
            level => Level::from_text(level)
                .filter(|level| *level > Level::V1)
                .map(Self::Level),
        }
    }
}

named! {
    /// Whether a JVM keeps its file of performance data.
    pub enum PerfData { Off = "off", Keep = "keep", }
}

named! {
    /// Whether Go programs listen by multipath TCP.
    pub enum GoMultipathTcp { Off = "off", Keep = "keep", }
}

named! {
    /// What to do when snapshots exist but none can be restored.
    pub enum OnNoValidSnapshot { Fail = "fail", Start = "start", }
}

named! {
    /// What to do with what is not sealed although a key is set.
    pub enum OnUnsealed { Refuse = "refuse", Accept = "accept", }
}

named! {
    /// What to do when this host's monotonic clock is behind that of the snapshot.
    pub enum OnClockBehind { Warn = "warn", Wait = "wait", Refuse = "refuse", }
}

named! {
    /// What becomes of established connections of TCP.
    pub enum Tcp { Close = "close", Established = "established", }
}

named! {
    /// Whether the app gets namespaces of its own.
    pub enum ProfileChoice { Auto = "auto", Minimal = "minimal", Full = "full", }
}

named! {
    /// What to do when another worker owns the job.
    pub enum OnOtherOwner { Wait = "wait", TakeOver = "take-over", Leave = "leave", }
}

named! {
    /// What becomes of a SIGTERM whose checkpoint failed.
    pub enum OnCheckpointFailure { RunOn = "run-on", Forward = "forward", }
}

named! {
    /// What runs the container.
    pub enum Platform {
        Auto = "auto",
        Docker = "docker",
        Kubernetes = "kubernetes",
        Ecs = "ecs",
        Slurm = "slurm",
    }
}

impl Platform {
    /// Variables that tell a platform from others.
    const MARKS: [&str; 3] = [
        "KUBERNETES_SERVICE_HOST",
        "ECS_CONTAINER_METADATA_URI_V4",
        "SLURM_JOB_ID",
    ];

    /// How long it waits between SIGTERM and SIGKILL unless told otherwise.
    fn grace(self, environment: &dyn Environment) -> Duration {
        let marked = || {
            let mut variables = environment.variables().into_iter();
            variables.any(|(name, _)| Self::MARKS.iter().any(|mark| name == *mark))
        };
        let patient = match self {
            Self::Auto => marked(),
            Self::Docker => false,
            Self::Kubernetes | Self::Ecs | Self::Slurm => true,
        };
        Duration::from_secs(if patient { 30 } else { 10 })
    }
}

named! {
    /// What a signal to the supervisor means.
    pub enum OnSignal { Forward = "forward", Checkpoint = "checkpoint", Stop = "stop", }
}

named! {
    /// What to do when a final checkpoint will hardly be done in time.
    pub enum OnTooLate { Try = "try", RunOn = "run-on", }
}

named! {
    /// What to do when a checkpoint would not fit into the shortest notice any more.
    pub enum KeepPromise { Warn = "warn", Seed = "seed", Checkpoint = "checkpoint", }
}

named! {
    /// What the failure of a program before a freeze leads to.
    pub enum OnHookFailure { Ignore = "ignore", Refuse = "refuse", }
}

named! {
    /// The form of what is posted.
    pub enum WebhookFormat { Json = "json", Sns = "sns", }
}

named! {
    /// Where CloudWatch's embedded metric format goes.
    pub enum Emf { Off = "off", Stdout = "stdout", Stderr = "stderr", }
}

/// How often checkpoints are taken that nobody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    Never,
    Auto,
    Each(Duration),
}

impl Period {
    fn from_text(text: &str) -> Option<Self> {
        match text {
            "never" => Some(Self::Never),
            "auto" => Some(Self::Auto),
            text => {
                let each = humantime::parse_duration(text).ok()?;
                (Duration::from_secs(1)..=DAY)
                    .contains(&each)
                    .then_some(Self::Each(each))
            }
        }
    }
}

named! {
    /// Whether preserved files may give rights.
    pub enum PreservePrivileged { Refuse = "refuse", Keep = "keep", }
}

named! {
    /// Whether a checkpoint is tried out.
    pub enum Rehearse { Off = "off", On = "on", }
}

named! {
    /// Who gets the signals that are passed on.
    pub enum SignalTarget { Group = "group", Child = "child", }
}

named! {
    /// How log lines look.
    pub enum LogFormat { Auto = "auto", Human = "human", Json = "json", }
}

named! {
    /// Whether a queue is read, and whose it is.
    pub enum QueueUse { Off = "off", Own = "own", Shared = "shared", }
}

named! {
    /// Whether the machine's tags tell of the job.
    pub enum InstanceTags { Off = "off", On = "on", }
}

named! {
    /// Whether the machine's tags say what settings do not.
    pub enum DefaultsFromTags { Off = "off", On = "on", }
}

named! {
    /// What to do on a machine that is only being prepared.
    pub enum OnWarmPool { Wait = "wait", Start = "start", }
}

/// What is listened to besides signals and the control socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sources {
    Auto,
    /// These and no others.
    Only(Vec<Source>),
}

impl Sources {
    /// Those that can be switched on and off, as settings spell them.
    fn names() -> impl Iterator<Item = (String, Source)> {
        let switched =
            |source: &Source| !matches!(source, Source::Signal | Source::Control | Source::Timer);
        let named = |source: Source| (source.as_str().replace('_', "-"), source);
        Source::ALL.into_iter().filter(switched).map(named)
    }

    fn from_names(text: &str) -> Option<Self> {
        let source = |name: &str| {
            let known = Self::names().find(|(known, _)| known == name.trim());
            known.map(|(_, source)| source)
        };
        match text {
            "auto" => Some(Self::Auto),
            "none" => Some(Self::Only(Vec::new())),
            names => names
                .split(',')
                .map(source)
                .collect::<Option<_>>()
                .map(Self::Only),
        }
    }
}

/// How the job got its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobNameOrigin {
    Given,
    Derived,
}

/// All settings of `reprieve run`, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// An address whose scheme and shape were checked; `None` means that nothing is checkpointed.
    pub store: Option<String>,
    pub job: String,
    pub job_name_origin: JobNameOrigin,
    pub s3_endpoint: Option<Url>,
    pub s3_region: Option<String>,
    pub s3_path_style: PathStyle,
    pub s3_objects: S3Objects,
    pub gs_endpoint: Option<Url>,
    pub azure_account: Option<String>,
    pub azure_endpoint: Option<Url>,
    pub store_self_test: StoreSelfTest,
    pub keep_generations: u32,
    pub keep_hourly: u32,
    pub keep_daily: u32,
    pub sweep_grace: Duration,
    pub waste_factor: u32,
    pub compression: Compression,
    pub memory_budget_bytes: u64,
    pub keys: KeySettings,
    pub seed: Seed,
    pub seed_interval: Duration,
    /// Per second.
    pub seed_bandwidth_bytes: u64,
    pub seed_cpu_percent: u32,
    pub term_grace: Duration,
    pub deadline_margin: Duration,
    pub stop_grace: Duration,
    pub checkpoint_timeout: Duration,
    pub on_checkpoint_failure: OnCheckpointFailure,
    pub checkpointed_exit_code: u8,
    /// None: what there is room for.
    pub ghost_limit_bytes: Option<u64>,
    pub watched: Vec<PathBuf>,
    pub orphans: Orphans,
    pub io_uring: IoUring,
    pub seccomp: Seccomp,
    pub clocks: Clocks,
    pub jvm_perf_data: PerfData,
    pub go_multipath_tcp: GoMultipathTcp,
    pub cpu_baseline: CpuBaseline,
    pub image_digest: Option<String>,
    pub preserve: Rules,
    pub checkup_interval: Duration,
    pub rehearse: Rehearse,
    pub rehearse_after: Duration,
    pub signal_target: SignalTarget,
    pub on_sigint: OnSignal,
    pub on_sighup: OnSignal,
    pub on_sigusr1: OnSignal,
    pub on_sigusr2: OnSignal,
    pub on_too_late: OnTooLate,
    pub shortest_notice: Option<Duration>,
    pub keep_promise: KeepPromise,
    pub every: Period,
    pub max_lost_work: Duration,
    pub machine_lifetime: Duration,
    pub least_interval: Duration,
    pub at_risk_interval: Duration,
    pub hooks_dir: Option<PathBuf>,
    pub hook_timeout: Duration,
    pub on_hook_failure: OnHookFailure,
    pub webhook: Option<Url>,
    pub webhook_format: WebhookFormat,
    pub sources: Sources,
    pub metadata_poll: Duration,
    pub ec2_metadata_endpoint: Option<Url>,
    pub gcp_metadata_endpoint: Option<Url>,
    pub azure_metadata_endpoint: Option<Url>,
    pub queue: QueueUse,
    pub queue_url: Option<Url>,
    pub queue_lease: Duration,
    pub dead_letter_queue: Option<Url>,
    pub reply_queue: Option<Url>,
    pub instance_id: Option<String>,
    pub lifecycle_hook: Option<String>,
    pub defaults_from_tags: DefaultsFromTags,
    /// Of the settings that tags may say, those that nothing else does.
    pub unsaid: Vec<&'static str>,
    pub on_warm_pool: OnWarmPool,
    pub instance_tags: InstanceTags,
    pub boot_timeout: Duration,
    pub restore_timeout: Duration,
    pub from: Option<rollback::Request>,
    pub on_other_owner: OnOtherOwner,
    pub on_clock_behind: OnClockBehind,
    /// The first one that fits counts.
    pub listen_remap: Vec<Move>,
    pub tcp: Tcp,
    pub clock_wait: Duration,
    pub lease_term: Duration,
    pub on_no_valid_snapshot: OnNoValidSnapshot,
    pub profile: ProfileChoice,
    /// Absolute, or a bare name to look up in PATH.
    pub criu: Option<PathBuf>,
    pub work_dir: Option<PathBuf>,
    pub control_socket: PathBuf,
    pub metrics_listen: Option<SocketAddr>,
    pub metrics_recorder: Option<PathBuf>,
    pub otlp_endpoint: Option<Url>,
    pub push_gateway: Option<Url>,
    pub statsd: Option<SocketAddr>,
    pub emf: Emf,
    pub log: LogSettings,
    /// What is allowed but dangerous, to be logged once logging works.
    pub warnings: Vec<String>,
}

/// Where keys come from.
#[derive(Clone, Debug, PartialEq)]
pub struct KeySettings {
    /// The newest first; older ones only open.
    pub sources: Vec<KeySource>,
    pub on_unsealed: OnUnsealed,
}

impl KeySettings {
    fn typed(merged: &Merged, environment: &dyn Environment) -> Self {
        let list = |name: &str| -> Vec<String> {
            let text = merged.text(name).unwrap_or_default();
            text.split(',')
                .filter(|one| !one.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let newest = newest_sources(merged, environment);
        let old_files = list("old-key-file")
            .into_iter()
            .map(|path| KeySource::File(path.into()));
        let old_kms = list("old-kms-key").into_iter().map(KeySource::Kms);
        Self {
            sources: newest
                .into_iter()
                .map(|(_, source)| source)
                .chain(old_files)
                .chain(old_kms)
                .collect(),
            on_unsealed: merged.need("on-unsealed", Checked::choice(OnUnsealed::from_name)),
        }
    }

    /// There is one newest key at most, and older ones only beside it.
    fn contradictions(merged: &Merged, environment: &dyn Environment) -> Vec<Fault> {
        let newest = newest_sources(merged, environment);
        let fault = |name: &str, origin, problem: String, remedy: &str| Fault {
            name: name.into(),
            origin,
            value: None,
            problem,
            remedy: remedy.into(),
        };
        if let [(first, _), (second, _), ..] = &newest[..] {
            let problem = format!(
                "is set beside {first}; there is one key that new snapshots are sealed with"
            );
            let remedy = "leave one out; keys that are only to open older snapshots go to old-key-file or old-kms-key";
            let origin = match *second {
                KEY_VARIABLE => Origin::Variable(KEY_VARIABLE.into()),
                name => merged.origin(name),
            };
            return vec![fault(second, origin, problem, remedy)];
        }
        let old = ["old-key-file", "old-kms-key"]
            .into_iter()
            .filter(|name| merged.text(name).is_some());
        let faults = old.filter(|_| newest.is_empty()).map(|name| {
            let problem = "is set, and no key that new snapshots are to be sealed with".to_owned();
            fault(
                name,
                merged.origin(name),
                problem,
                "set key-file, kms-key or REPRIEVE_KEY as well; it may be the same key",
            )
        });
        faults.collect()
    }
}

/// What of the app's files travels.
fn preserve_rules(merged: &Merged) -> Rules {
    let list = |name: &str| {
        let text = merged.text(name).unwrap_or_default();
        let one = |one: &str| one.to_owned();
        text.split(':')
            .filter(|one| !one.is_empty())
            .map(one)
            .collect::<Vec<_>>()
    };
    let wanted = list("preserve");
    let is_pattern = |text: &&String| text.as_str() != "auto";
    // Each was checked when it was read.
    let named = wanted
        .iter()
        .filter(is_pattern)
        .filter_map(|text| Pattern::absolute(text).ok());
    let excluded = list("preserve-exclude");
    let kept = merged.need(
        "preserve-privileged",
        Checked::choice(PreservePrivileged::from_name),
    );
    Rules {
        auto: wanted.iter().any(|text| text == "auto"),
        named: named.collect(),
        excluded: excluded
            .iter()
            .filter_map(|text| Pattern::anywhere(text).ok())
            .collect(),
        privileged: match kept {
            PreservePrivileged::Refuse => Privileged::Refuse,
            PreservePrivileged::Keep => Privileged::Keep,
        },
    }
}

/// The keys that are set for new snapshots, by the names of their settings.
fn newest_sources(
    merged: &Merged,
    environment: &dyn Environment,
) -> Vec<(&'static str, KeySource)> {
    let variables = environment.variables();
    let secret = variables
        .into_iter()
        .find(|(name, value)| name == KEY_VARIABLE && !value.is_empty())
        .map(|(_, value)| KeySource::Environment(Secret::new(value.into_vec())));
    let file = merged.get("key-file", Checked::path).map(KeySource::File);
    let kms = merged.text("kms-key").map(KeySource::Kms);
    [("key-file", file), (KEY_VARIABLE, secret), ("kms-key", kms)]
        .into_iter()
        .filter_map(|(name, source)| Some((name, source?)))
        .collect()
}

/// What logging needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct LogSettings {
    /// A filter that was parsed once without fault.
    pub filter: String,
    pub format: LogFormat,
}

/// How objects are kept in S3, and who pays.
#[derive(Clone, Debug, PartialEq)]
pub struct S3Objects {
    pub encryption: S3Encryption,
    pub key: Option<String>,
    pub storage_class: S3StorageClass,
    pub request_payer: S3RequestPayer,
}

impl S3Objects {
    fn typed(merged: &Merged) -> Self {
        Self {
            encryption: merged.need("s3-sse", Checked::choice(S3Encryption::from_name)),
            key: merged.text("s3-sse-key"),
            storage_class: merged.need(
                "s3-storage-class",
                Checked::choice(S3StorageClass::from_name),
            ),
            request_payer: merged.need(
                "s3-request-payer",
                Checked::choice(S3RequestPayer::from_name),
            ),
        }
    }
}

/// How a store is reached.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreSettings {
    /// Its scheme and shape were checked.
    pub address: String,
    pub s3_endpoint: Option<Url>,
    pub s3_region: Option<String>,
    pub s3_path_style: PathStyle,
    pub s3_objects: S3Objects,
    pub gs_endpoint: Option<Url>,
    pub azure_account: Option<String>,
    pub azure_endpoint: Option<Url>,
    /// How long it may take to become reachable.
    pub timeout: Duration,
}

/// What the commands on a job's snapshots need to know.
#[derive(Clone, Debug, PartialEq)]
pub struct JobSettings {
    pub store: StoreSettings,
    pub keys: KeySettings,
    pub job: String,
    pub retention: Policy,
    pub sweep_grace: Duration,
    /// How long reading one snapshot may take before its first byte is used.
    pub restore_timeout: Duration,
    pub queue_url: Option<Url>,
    pub reply_queue: Option<Url>,
}

/// What the client commands need to know.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientSettings {
    pub control_socket: PathBuf,
    pub checkpoint_timeout: Duration,
}

/// A setting that was given on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlagValue {
    /// The name of a row.
    pub setting: &'static str,
    /// As the user wrote it, with its dashes: a client command may call a setting by a shorter name.
    pub flag: String,
    pub value: OsString,
}

/// Where the layers above the built-in values come from.
pub struct Layers<'a> {
    pub flags: Vec<FlagValue>,
    /// `--config`, which goes before [`FILE_VARIABLE`].
    pub file: Option<PathBuf>,
    /// Read when neither names a file, if it exists.
    pub default_file: &'a Path,
    pub environment: &'a dyn Environment,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    BuiltIn,
    File(PathBuf),
    Variable(String),
    Flag(String),
    /// Of the machine.
    Tag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
            Self::Tag(name) => write!(f, "tag {name} of this machine"),
        }
    }
}

/// One thing that is wrong with the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The name of a row, or what was written instead of one.
    pub name: String,
    pub origin: Origin,
    /// As far as it may be shown.
    pub value: Option<String>,
    pub problem: String,
    pub remedy: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        write!(f, " ({}): {}\n{}", self.origin, self.problem, self.remedy)
    }
}

/// Everything that is wrong with the settings; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} settings are not valid", .0.len())]
pub struct Faults(pub Vec<Fault>);

impl From<Faults> for Failure {
    fn from(Faults(faults): Faults) -> Self {
        let what = match faults.len() {
            1 => "a setting is not valid".into(),
            n => format!("{n} settings are not valid"),
        };
        faults
            .iter()
            .fold(
                Self::new(ExitCode::SettingsInvalid, what),
                |failure, fault| failure.detail(fault.to_string()),
            )
            .remedy("nothing was started; `reprieve run --help` lists every setting")
    }
}

impl Settings {
    /// Reads and checks every layer. `argv` is the app and its arguments, from which the job's name is derived if it has
    /// none.
    pub fn load(layers: &Layers<'_>, argv: &[OsString]) -> Result<Self, Faults> {
        let mut faults = Vec::new();
        let merged = collect(layers, &mut faults, |_| true);
        if !faults.is_empty() {
            return Err(Faults(faults));
        }
        let settings = Self::typed(&merged, layers.environment, argv);
        let mut faults = settings.contradictions(&merged);
        faults.extend(KeySettings::contradictions(&merged, layers.environment));
        if !faults.is_empty() {
            return Err(Faults(faults));
        }
        Ok(settings)
    }

    fn typed(merged: &Merged, environment: &dyn Environment, argv: &[OsString]) -> Self {
        let given = merged.text("job");
        let mut settings = Self {
            store: merged.text("store"),
            job_name_origin: match given {
                Some(_) => JobNameOrigin::Given,
                None => JobNameOrigin::Derived,
            },
            job: given.unwrap_or_else(|| derived_job_name(argv)),
            s3_endpoint: merged.get("s3-endpoint", Checked::url),
            s3_region: merged.text("s3-region"),
            s3_path_style: merged.need("s3-path-style", Checked::choice(PathStyle::from_name)),
            s3_objects: S3Objects::typed(merged),
            gs_endpoint: merged.get("gs-endpoint", Checked::url),
            azure_account: merged.text("azure-account"),
            azure_endpoint: merged.get("azure-endpoint", Checked::url),
            store_self_test: merged
                .need("store-self-test", Checked::choice(StoreSelfTest::from_name)),
            keep_generations: merged.need("keep-generations", Checked::count),
            keep_hourly: merged.need("keep-hourly", Checked::count),
            keep_daily: merged.need("keep-daily", Checked::count),
            sweep_grace: merged.need("sweep-grace", Checked::duration),
            waste_factor: merged.need("waste-factor", Checked::count),
            compression: merged.need("compression", Checked::choice(Compression::from_name)),
            memory_budget_bytes: merged.need("memory-budget", Checked::bytes),
            keys: KeySettings::typed(merged, environment),
            seed: merged.need("seed", Checked::choice(Seed::from_name)),
            seed_interval: merged.need("seed-interval", Checked::duration),
            seed_bandwidth_bytes: merged.need("seed-bandwidth", Checked::bytes),
            seed_cpu_percent: merged.need("seed-cpu", Checked::count),
            term_grace: merged
                .get("term-grace", Checked::duration)
                .unwrap_or_else(|| {
                    merged
                        .need("platform", Checked::choice(Platform::from_name))
                        .grace(environment)
                }),
            deadline_margin: merged.need("deadline-margin", Checked::duration),
            stop_grace: merged.need("stop-grace", Checked::duration),
            checkpoint_timeout: merged.need("checkpoint-timeout", Checked::duration),
            on_checkpoint_failure: merged.need(
                "on-checkpoint-failure",
                Checked::choice(OnCheckpointFailure::from_name),
            ),
            checkpointed_exit_code: merged.need("checkpointed-exit-code", Checked::exit_code),
            ghost_limit_bytes: merged.need("ghost-limit", |checked| match checked {
                Checked::Bytes(bytes) => Some(Some(bytes)),
                Checked::Text(_) => Some(None),
                _ => None,
            }),
            watched: merged
                .get("watched", Checked::text)
                .map(|paths| paths.split(',').map(PathBuf::from).collect())
                .unwrap_or_default(),
            orphans: merged.need("orphans", Checked::choice(Orphans::from_name)),
            io_uring: merged.need("io-uring", Checked::choice(IoUring::from_name)),
            seccomp: merged.need("seccomp", Checked::choice(Seccomp::from_name)),
            clocks: merged.need("clocks", Checked::choice(Clocks::from_name)),
            jvm_perf_data: merged.need("jvm-perf-data", Checked::choice(PerfData::from_name)),
            go_multipath_tcp: merged.need(
                "go-multipath-tcp",
                Checked::choice(GoMultipathTcp::from_name),
            ),
            cpu_baseline: merged.need("cpu-baseline", Checked::choice(CpuBaseline::from_text)),
            image_digest: merged.get("image-digest", Checked::text),
            preserve: preserve_rules(merged),
            checkup_interval: merged.need("checkup-interval", Checked::duration),
            rehearse: merged.need("rehearse", Checked::choice(Rehearse::from_name)),
            rehearse_after: merged.need("rehearse-after", Checked::duration),
            signal_target: merged.need("signal-target", Checked::choice(SignalTarget::from_name)),
            on_sigint: merged.need("on-sigint", Checked::choice(OnSignal::from_name)),
            on_sighup: merged.need("on-sighup", Checked::choice(OnSignal::from_name)),
            on_sigusr1: merged.need("on-sigusr1", Checked::choice(OnSignal::from_name)),
            on_sigusr2: merged.need("on-sigusr2", Checked::choice(OnSignal::from_name)),
            on_too_late: merged.need("on-too-late", Checked::choice(OnTooLate::from_name)),
            shortest_notice: merged.get("shortest-notice", Checked::duration),
            keep_promise: merged.need("keep-promise", Checked::choice(KeepPromise::from_name)),
            every: merged.need("every", Checked::choice(Period::from_text)),
            max_lost_work: merged.need("max-lost-work", Checked::duration),
            machine_lifetime: merged.need("machine-lifetime", Checked::duration),
            least_interval: merged.need("least-interval", Checked::duration),
            at_risk_interval: merged.need("at-risk-interval", Checked::duration),
            hooks_dir: merged.get("hooks-dir", Checked::path),
            hook_timeout: merged.need("hook-timeout", Checked::duration),
            on_hook_failure: merged
                .need("on-hook-failure", Checked::choice(OnHookFailure::from_name)),
            webhook: merged.get("webhook", Checked::url),
            webhook_format: merged
                .need("webhook-format", Checked::choice(WebhookFormat::from_name)),
            sources: merged.need("sources", Checked::choice(Sources::from_names)),
            metadata_poll: merged.need("metadata-poll", Checked::duration),
            ec2_metadata_endpoint: merged.get("ec2-metadata-endpoint", Checked::url),
            gcp_metadata_endpoint: merged.get("gcp-metadata-endpoint", Checked::url),
            azure_metadata_endpoint: merged.get("azure-metadata-endpoint", Checked::url),
            queue: merged.need("queue", Checked::choice(QueueUse::from_name)),
            queue_url: merged.get("queue-url", Checked::url),
            queue_lease: merged.need("queue-lease", Checked::duration),
            dead_letter_queue: merged.get("dead-letter-queue", Checked::url),
            reply_queue: merged.get("reply-queue", Checked::url),
            instance_id: merged.text("instance-id"),
            lifecycle_hook: merged.text("lifecycle-hook"),
            defaults_from_tags: merged.need(
                "defaults-from-tags",
                Checked::choice(DefaultsFromTags::from_name),
            ),
            unsaid: ["store", "job", "queue"]
                .into_iter()
                .filter(|name| merged.origin(name) == Origin::BuiltIn)
                .collect(),
            on_warm_pool: merged.need("on-warm-pool", Checked::choice(OnWarmPool::from_name)),
            instance_tags: merged.need("instance-tags", Checked::choice(InstanceTags::from_name)),
            boot_timeout: merged.need("boot-timeout", Checked::duration),
            restore_timeout: merged.need("restore-timeout", Checked::duration),
            from: merged.text("from").map(|text| {
                let request = text.parse();
                request.expect("every layer was checked")
            }),
            on_other_owner: merged.need("on-other-owner", Checked::choice(OnOtherOwner::from_name)),
            listen_remap: merged
                .text("listen-remap")
                .unwrap_or_default()
                .split(',')
                // Each was checked when it was read.
                .filter_map(|rule| rule.parse().ok())
                .collect(),
            tcp: merged.need("tcp", Checked::choice(Tcp::from_name)),
            on_clock_behind: merged
                .need("on-clock-behind", Checked::choice(OnClockBehind::from_name)),
            clock_wait: merged.need("clock-wait", Checked::duration),
            lease_term: merged.need("lease-term", Checked::duration),
            on_no_valid_snapshot: merged.need(
                "on-no-valid-snapshot",
                Checked::choice(OnNoValidSnapshot::from_name),
            ),
            profile: merged.need("profile", Checked::choice(ProfileChoice::from_name)),
            criu: merged.get("criu", Checked::path),
            work_dir: merged.get("work-dir", Checked::path),
            control_socket: merged.need("control-socket", Checked::path),
            metrics_listen: merged.get("metrics-listen", Checked::address),
            metrics_recorder: merged.get("metrics-recorder", Checked::path),
            otlp_endpoint: merged.get("otlp-endpoint", Checked::url),
            push_gateway: merged.get("push-gateway", Checked::url),
            statsd: merged.get("statsd", Checked::address),
            emf: merged.need("emf", Checked::choice(Emf::from_name)),
            log: LogSettings {
                filter: merged.need("log", Checked::text),
                format: merged.need("log-format", Checked::choice(LogFormat::from_name)),
            },
            warnings: Vec::new(),
        };
        settings.warnings = settings.dangers();
        settings
    }

    /// With what the machine's tags say of the settings that nothing else says: each by the setting's name.
    ///
    /// # Errors
    /// When a tag's value is not one that its setting can have, or what was given does not go with it.
    pub fn with_tags(mut self, tags: &BTreeMap<&'static str, String>) -> Result<Self, Faults> {
        let mut faults = Vec::new();
        for name in std::mem::take(&mut self.unsaid) {
            let Some(text) = tags.get(name).filter(|text| !text.is_empty()) else {
                self.unsaid.push(name);
                continue;
            };
            let kind = match name {
                "queue" if text != "own" => Kind::QueueUrl,
                _ => Setting::named(name).kind,
            };
            let checked = match check(kind, text) {
                Ok(checked) => checked,
                Err(problem) => {
                    faults.push(problem.of(Entry {
                        setting: Setting::named(name),
                        text: text.clone(),
                        origin: Origin::Tag(format!("reprieve:{name}")),
                    }));
                    continue;
                }
            };
            match name {
                "store" => self.store = Some(text.clone()),
                "job" => {
                    self.job.clone_from(text);
                    self.job_name_origin = JobNameOrigin::Given;
                }
                _ => match checked.url() {
                    Some(url) => (self.queue, self.queue_url) = (QueueUse::Shared, Some(url)),
                    None => self.queue = QueueUse::Own,
                },
            }
        }
        if self.store.is_none() {
            faults.extend(self.needed_from_nowhere(Origin::BuiltIn));
        }
        if !faults.is_empty() {
            return Err(Faults(faults));
        }
        self.warnings = self.dangers();
        Ok(self)
    }

    /// How the store at this address is reached.
    pub fn store_settings(&self, address: &str) -> StoreSettings {
        StoreSettings {
            address: address.to_owned(),
            s3_endpoint: self.s3_endpoint.clone(),
            s3_region: self.s3_region.clone(),
            s3_path_style: self.s3_path_style,
            s3_objects: self.s3_objects.clone(),
            gs_endpoint: self.gs_endpoint.clone(),
            azure_account: self.azure_account.clone(),
            azure_endpoint: self.azure_endpoint.clone(),
            timeout: self.boot_timeout,
        }
    }

    /// Which snapshots of the job stay.
    pub fn retention(&self) -> Policy {
        Policy {
            last: self.keep_generations as usize,
            hourly: self.keep_hourly as usize,
            daily: self.keep_daily as usize,
        }
    }

    /// Values that are each fine but leave no time for a checkpoint together.
    fn contradictions(&self, merged: &Merged) -> Vec<Fault> {
        let mut faults: Vec<Fault> = self.queue_contradiction(merged).into_iter().collect();
        if self.store.is_none() && self.defaults_from_tags == DefaultsFromTags::Off {
            return faults
                .into_iter()
                .chain(self.needed_from_nowhere(merged.origin("from")))
                .collect();
        }
        let key_for_nothing = self.s3_objects.key.is_some()
            && matches!(
                self.s3_objects.encryption,
                S3Encryption::Bucket | S3Encryption::Aes256
            );
        let key_for_nothing = key_for_nothing.then(|| Fault {
            name: "s3-sse-key".into(),
            origin: merged.origin("s3-sse-key"),
            value: self.s3_objects.key.clone(),
            problem: format!(
                "no key of KMS is used with s3-sse = {} ({})",
                self.s3_objects.encryption,
                merged.origin("s3-sse")
            ),
            remedy: "set s3-sse to aws:kms, or leave s3-sse-key out".into(),
        });
        let margins = [
            ("term-grace", self.term_grace),
            ("checkpoint-timeout", self.checkpoint_timeout),
        ]
        .into_iter()
        .filter(|(_, limit)| self.deadline_margin >= *limit)
        .map(|(name, limit)| Fault {
            name: "deadline-margin".into(),
            origin: merged.origin("deadline-margin"),
            value: Some(humantime::format_duration(self.deadline_margin).to_string()),
            problem: format!(
                "leaves no time for a checkpoint within {name} = {} ({})",
                humantime::format_duration(limit),
                merged.origin(name)
            ),
            remedy: format!("make deadline-margin smaller than {name}, by several seconds"),
        });
        let nothing_ahead = self.keep_promise == KeepPromise::Seed && self.seed == Seed::Off;
        let nothing_ahead = nothing_ahead.then(|| Fault {
            name: "keep-promise".into(),
            origin: merged.origin("keep-promise"),
            value: Some("seed".into()),
            problem: format!(
                "nothing is stored ahead with seed = off ({})",
                merged.origin("seed")
            ),
            remedy: "set seed to on, or keep-promise to checkpoint".into(),
        });
        faults.extend(margins);
        faults.extend(nothing_ahead);
        faults.extend(key_for_nothing);
        faults
    }

    fn queue_contradiction(&self, merged: &Merged) -> Option<Fault> {
        let (name, problem, remedy) = match (self.queue, &self.queue_url) {
            (QueueUse::Shared, None) => (
                "queue",
                "a queue that others share has to be named",
                "add queue-url",
            ),
            (QueueUse::Off, Some(_)) => (
                "queue-url",
                "is not read while queue is off",
                "set queue to own or shared, or leave queue-url out",
            ),
            _ => return None,
        };
        Some(Fault {
            name: name.into(),
            origin: merged.origin(name),
            value: None,
            problem: problem.into(),
            remedy: remedy.into(),
        })
    }

    /// A start that were told where to go on from would begin from scratch.
    fn needed_from_nowhere(&self, origin: Origin) -> Option<Fault> {
        self.from.as_ref().map(|from| Fault {
            name: "from".into(),
            origin,
            value: Some(from.to_string()),
            problem: "there are no snapshots without a store".into(),
            remedy: "set store, or leave from out".into(),
        })
    }

    fn dangers(&self) -> Vec<String> {
        let mut dangers = Vec::new();
        if self.checkpointed_exit_code == 0 {
            dangers.push(
                "checkpointed-exit-code is 0: a platform that takes 0 for a finished job will not run it again, and \
                 the rest of its work is lost"
                    .into(),
            );
        }
        if self.store.is_some() && self.on_no_valid_snapshot == OnNoValidSnapshot::Start {
            dangers.push(
                "on-no-valid-snapshot is \"start\": if no snapshot can be restored the app starts from scratch and \
                 repeats all of its work"
                    .into(),
            );
        }
        if self.store.is_none() {
            dangers.push(
                "no store is set: nothing is checkpointed and an eviction loses the job's work"
                    .into(),
            );
        }
        if self.store.is_some() && self.store_self_test == StoreSelfTest::Off {
            dangers.push(
                "store-self-test is \"off\": a store that ignores the conditions of writes is not noticed, and on such a \
                 store two workers can run the same job"
                    .into(),
            );
        }
        if self.store.is_none() && !self.keys.sources.is_empty() {
            dangers.push("a key is set but no store; it has no effect".into());
        }
        let store = self.store.as_deref().unwrap_or_default();
        for (name, is_set, scheme, service) in [
            ("s3-endpoint", self.s3_endpoint.is_some(), "s3:", "S3"),
            (
                "gs-endpoint",
                self.gs_endpoint.is_some(),
                "gs:",
                "Google Cloud Storage",
            ),
            (
                "azure-endpoint",
                self.azure_endpoint.is_some(),
                "az:",
                "Azure",
            ),
        ] {
            if is_set && !store.starts_with(scheme) {
                dangers.push(format!(
                    "{name} is set but the store is not in {service}; it has no effect"
                ));
            }
        }
        dangers
    }
}

impl ClientSettings {
    /// Reads the few settings that the client commands use. Faults of others are left to `reprieve run` to report: they
    /// must not keep anyone from asking a running supervisor.
    pub fn load(layers: &Layers<'_>) -> Result<Self, Faults> {
        let mut faults = Vec::new();
        let merged = collect(layers, &mut faults, |name| {
            matches!(name, "control-socket" | "checkpoint-timeout")
        });
        if !faults.is_empty() {
            return Err(Faults(faults));
        }
        Ok(Self {
            control_socket: merged.need("control-socket", Checked::path),
            checkpoint_timeout: merged.need("checkpoint-timeout", Checked::duration),
        })
    }
}

impl JobSettings {
    /// The settings that the commands on a job's snapshots use: where the job is, and what is kept of it.
    pub const PLACE: &[&str] = &[
        "store",
        "job",
        "s3-endpoint",
        "s3-region",
        "s3-path-style",
        "s3-sse",
        "s3-sse-key",
        "s3-storage-class",
        "s3-request-payer",
        "gs-endpoint",
        "azure-account",
        "azure-endpoint",
        "key-file",
        "kms-key",
        "old-key-file",
        "old-kms-key",
        "on-unsealed",
        "boot-timeout",
        "restore-timeout",
    ];
    pub const MAIL: &[&str] = &["queue-url", "reply-queue"];
    pub const KEEPING: &[&str] = &[
        "keep-generations",
        "keep-hourly",
        "keep-daily",
        "sweep-grace",
    ];

    /// Reads them. Faults of others are left to `reprieve run` to report. Without an app there is no name to derive, so
    /// the job has to be given.
    pub fn load(layers: &Layers<'_>) -> Result<Self, Faults> {
        Self::load_about(layers, About::OneJob)
    }

    /// The same for a command that may be about all jobs of a store.
    pub fn load_about(layers: &Layers<'_>, about: About) -> Result<Self, Faults> {
        let mut faults = Vec::new();
        let merged = collect(layers, &mut faults, |name| {
            Self::PLACE.contains(&name)
                || Self::KEEPING.contains(&name)
                || (about == About::Queue && Self::MAIL.contains(&name))
        });
        let (store, mut job) = (merged.text("store"), merged.text("job"));
        if about != About::OneJob {
            job = Some(job.unwrap_or_default());
        }
        let has_queue = merged.text("queue-url").is_some() && about == About::Queue;
        let store = store.or_else(|| has_queue.then(String::new));
        for (name, value) in [("store", &store), ("job", &job)] {
            if value.is_none() && !faults.iter().any(|fault| fault.name == name) {
                faults.push(not_given(name));
            }
        }
        faults.extend(KeySettings::contradictions(&merged, layers.environment));
        let (Some(address), Some(job), []) = (store, job, &faults[..]) else {
            return Err(Faults(faults));
        };
        let count = |name| merged.need(name, Checked::count) as usize;
        Ok(Self {
            store: StoreSettings {
                address,
                s3_endpoint: merged.get("s3-endpoint", Checked::url),
                s3_region: merged.text("s3-region"),
                s3_path_style: merged.need("s3-path-style", Checked::choice(PathStyle::from_name)),
                s3_objects: S3Objects::typed(&merged),
                gs_endpoint: merged.get("gs-endpoint", Checked::url),
                azure_account: merged.text("azure-account"),
                azure_endpoint: merged.get("azure-endpoint", Checked::url),
                timeout: merged.need("boot-timeout", Checked::duration),
            },
            keys: KeySettings::typed(&merged, layers.environment),
            job,
            retention: Policy {
                last: count("keep-generations"),
                hourly: count("keep-hourly"),
                daily: count("keep-daily"),
            },
            sweep_grace: merged.need("sweep-grace", Checked::duration),
            restore_timeout: merged.need("restore-timeout", Checked::duration),
            queue_url: merged.get("queue-url", Checked::url),
            reply_queue: merged.get("reply-queue", Checked::url),
        })
    }
}

/// Whether every store can hold a job of this name.
pub fn is_job_name(text: &str) -> bool {
    is_name(text, b"._-", JOB_NAME_LIMIT) && !text.starts_with('.')
}

/// Whether a command is about one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    OneJob,
    /// About all of them if none is given; its name is empty then.
    AnyJob,
    /// About whoever reads a queue; where that is given, no store is needed either.
    Queue,
}

fn not_given(name: &str) -> Fault {
    let setting = Setting::named(name);
    Fault {
        name: name.into(),
        origin: Origin::BuiltIn,
        value: None,
        problem: "is not given, and this command needs it".into(),
        remedy: format!(
            "give {} or set {}: {}",
            setting.flag(),
            setting.variable(),
            expected(setting.kind)
        ),
    }
}

/// One layer's values for known settings.
#[derive(Clone, Debug)]
struct Layer(Vec<Entry>);

#[derive(Clone, Debug)]
struct Entry {
    setting: &'static Setting,
    text: String,
    origin: Origin,
}

impl config::Source for Layer {
    fn clone_into_box(&self) -> Box<dyn config::Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self
            .0
            .iter()
            .map(|entry| {
                let origin = entry.origin.to_string();
                (
                    entry.setting.key(),
                    Value::new(Some(&origin), entry.text.as_str()),
                )
            })
            .collect())
    }
}

/// The value that counts for each setting, all of them checked.
struct Merged {
    config: Config,
    layers: Vec<Layer>,
}

impl Merged {
    fn text(&self, name: &str) -> Option<String> {
        self.config.get_string(&Setting::named(name).key()).ok()
    }

    fn get<T>(&self, name: &str, take: impl FnOnce(Checked) -> Option<T>) -> Option<T> {
        let text = self.text(name)?;
        let checked = check(Setting::named(name).kind, &text).expect("every layer was checked");
        Some(take(checked).expect("the kind in the table is the field's type"))
    }

    fn need<T>(&self, name: &str, take: impl FnOnce(Checked) -> Option<T>) -> T {
        self.get(name, take).expect("the table has a default")
    }

    fn origin(&self, name: &str) -> Origin {
        self.layers
            .iter()
            .rev()
            .flat_map(|layer| &layer.0)
            .find(|entry| entry.setting.name == name)
            .map_or(Origin::BuiltIn, |entry| entry.origin.clone())
    }
}

/// Reads all layers, checks each value in each of them, and merges them. Only faults of settings that `counts` accepts
/// are reported, and only their values are merged.
fn collect(layers: &Layers<'_>, faults: &mut Vec<Fault>, counts: impl Fn(&str) -> bool) -> Merged {
    let mut found = Vec::new();
    let built_in = built_in_layer();
    let (environment, file_variable) = environment_layer(layers.environment, &mut found);
    let file = file_layer(layers, file_variable, &mut found);
    let flags = flags_layer(&layers.flags, &mut found);

    let mut checked = Vec::new();
    for layer in [built_in, file, environment, flags] {
        let mut good = Vec::new();
        for entry in layer {
            match check_in_layer(&entry) {
                Ok(_) if counts(entry.setting.name) => good.push(entry),
                Ok(_) => {}
                Err(problem) => found.push(problem.of(entry)),
            }
        }
        checked.push(Layer(good));
    }
    // The client commands look away from what is wrong with other settings, but not from a broken file.
    found.retain(|fault| counts(&fault.name) || fault.name == FILE_FAULT);
    faults.extend(found);

    let config = checked
        .iter()
        .fold(Config::builder(), |builder, layer| {
            builder.add_source(layer.clone())
        })
        .build()
        .expect("layers in memory give plain strings under plain keys");
    Merged {
        config,
        layers: checked,
    }
}

fn built_in_layer() -> Vec<Entry> {
    TABLE
        .iter()
        .filter_map(|setting| {
            setting.default.map(|text| Entry {
                setting,
                text: text.into(),
                origin: Origin::BuiltIn,
            })
        })
        .collect()
}

fn flags_layer(flags: &[FlagValue], faults: &mut Vec<Fault>) -> Vec<Entry> {
    let mut entries = Vec::new();
    for given in flags {
        let origin = Origin::Flag(given.flag.clone());
        match given.value.to_str() {
            Some(text) => entries.push(Entry {
                setting: Setting::named(given.setting),
                text: text.into(),
                origin,
            }),
            None => faults.push(not_utf8(given.setting, origin)),
        }
    }
    entries
}

/// The settings in the environment, and the settings file it names. An empty variable counts as not set: templates that
/// always write every variable would otherwise have no way to leave one out.
fn environment_layer(
    environment: &dyn Environment,
    faults: &mut Vec<Fault>,
) -> (Vec<Entry>, Option<PathBuf>) {
    let mut variables = environment.variables();
    variables.sort();
    let mut entries = Vec::new();
    let mut file = None;
    for (name, value) in variables {
        if !name.as_bytes().starts_with(VARIABLE_PREFIX.as_bytes()) || value.is_empty() {
            continue;
        }
        let shown = name.to_string_lossy().into_owned();
        if shown == FILE_VARIABLE {
            file = Some(PathBuf::from(value));
            continue;
        }
        if shown == KEY_VARIABLE {
            continue;
        }
        match TABLE.iter().find(|setting| setting.variable() == shown) {
            Some(setting) => match value.to_str() {
                Some(text) => entries.push(Entry {
                    setting,
                    text: text.into(),
                    origin: Origin::Variable(shown),
                }),
                None => faults.push(not_utf8(setting.name, Origin::Variable(shown))),
            },
            None if is_service_variable(&shown, &value) => {}
            None => faults.push(unknown(
                &shown,
                Origin::Variable(shown.clone()),
                TABLE
                    .iter()
                    .map(Setting::variable)
                    .chain([FILE_VARIABLE, KEY_VARIABLE].map(str::to_owned)),
            )),
        }
    }
    (entries, file)
}

/// Whether this is what Kubernetes sets for a service whose name starts with "reprieve".
fn is_service_variable(name: &str, value: &OsStr) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // What follows PORT: nothing, _80_TCP, _80_TCP_ADDR, ... A bare PORT may also be a slip of the user's; theirs is
    // not a URL.
    let is_port = |rest: &str| match rest.split('_').collect::<Vec<_>>().as_slice() {
        [""] => value.to_string_lossy().contains("://"),
        ["", port, "TCP" | "UDP" | "SCTP"]
        | ["", port, "TCP" | "UDP" | "SCTP", "PROTO" | "PORT" | "ADDR"] => is_number(port),
        _ => false,
    };
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name
            .match_indices("_PORT")
            .any(|(at, marker)| is_port(&name[at + marker.len()..]))
}

/// The name that faults of the file as a whole carry.
const FILE_FAULT: &str = "config";

fn file_layer(
    layers: &Layers<'_>,
    variable: Option<PathBuf>,
    faults: &mut Vec<Fault>,
) -> Vec<Entry> {
    let (path, origin, required) = match (&layers.file, variable) {
        (Some(path), _) => (path.clone(), Origin::Flag("--config".into()), true),
        (None, Some(path)) => (path, Origin::Variable(FILE_VARIABLE.into()), true),
        (None, None) => (layers.default_file.to_path_buf(), Origin::BuiltIn, false),
    };
    let fault = |problem: String, remedy: &str| Fault {
        name: FILE_FAULT.into(),
        origin: origin.clone(),
        value: Some(shown_text(&path.to_string_lossy())),
        problem,
        remedy: remedy.into(),
    };
    let text = match read_limited(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => {
            return Vec::new();
        }
        Err(error) => {
            faults.push(fault(
                format!("the settings file cannot be read: {error}"),
                "name a readable text file of at most 256 KiB, or leave it out",
            ));
            return Vec::new();
        }
    };
    match config::Source::collect(&File::from_str(&text, FileFormat::Toml)) {
        Ok(table) => file_entries(table, &path, faults),
        Err(error) => {
            faults.push(fault(
                format!("the settings file is not TOML: {}", toml_problem(&error)),
                "write one `key = \"value\"` a line",
            ));
            Vec::new()
        }
    }
}

fn file_entries(table: Map<String, Value>, path: &Path, faults: &mut Vec<Fault>) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    // Sorted, so that the same file gives the same message.
    for (written, value) in table.into_iter().collect::<BTreeMap<_, _>>() {
        let origin = Origin::File(path.to_path_buf());
        let key = written.replace('-', "_");
        let Some(setting) = TABLE.iter().find(|setting| setting.key() == key) else {
            faults.push(unknown(
                &written,
                origin,
                TABLE.iter().map(|setting| setting.name.to_string()),
            ));
            continue;
        };
        let fault = |problem: &str, remedy: String| Fault {
            name: setting.name.into(),
            origin: origin.clone(),
            value: None,
            problem: problem.into(),
            remedy,
        };
        if entries
            .iter()
            .any(|entry| entry.setting.name == setting.name)
        {
            faults.push(fault(
                "is there twice, once with \"-\" and once with \"_\"",
                "remove one of the two".into(),
            ));
            continue;
        }
        match value.kind {
            ValueKind::Table(_) | ValueKind::Array(_) | ValueKind::Nil => faults.push(fault(
                "is a table or a list",
                format!("write a single value: {}", expected(setting.kind)),
            )),
            plain => entries.push(Entry {
                setting,
                text: plain.to_string(),
                origin,
            }),
        }
    }
    entries
}

fn read_limited(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let read = std::fs::File::open(path)?
        .take(FILE_LIMIT + 1)
        .read_to_string(&mut text)?;
    if read as u64 > FILE_LIMIT {
        return Err(std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            "it is larger than 256 KiB",
        ));
    }
    Ok(text)
}

/// Where and what, without the excerpt of the file that the parser prints: the line may hold anything.
fn toml_problem(error: &ConfigError) -> String {
    let text = error.to_string();
    text.lines()
        .filter(|line| !line.contains('|') && !line.trim().is_empty())
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(": ")
}

/// A value of the type its kind stands for.
#[derive(Debug)]
enum Checked {
    Text(String),
    Url(Url),
    Duration(Duration),
    Bytes(u64),
    Count(u32),
    ExitCode(u8),
    Path(PathBuf),
    Address(SocketAddr),
}

impl Checked {
    fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    fn choice<T>(from_name: impl Fn(&str) -> Option<T>) -> impl Fn(Self) -> Option<T> {
        move |checked| checked.text().and_then(|text| from_name(&text))
    }

    fn url(self) -> Option<Url> {
        match self {
            Self::Url(url) => Some(url),
            _ => None,
        }
    }

    fn duration(self) -> Option<Duration> {
        match self {
            Self::Duration(duration) => Some(duration),
            _ => None,
        }
    }

    fn bytes(self) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    fn count(self) -> Option<u32> {
        match self {
            Self::Count(count) => Some(count),
            _ => None,
        }
    }

    fn exit_code(self) -> Option<u8> {
        match self {
            Self::ExitCode(code) => Some(code),
            _ => None,
        }
    }

    fn path(self) -> Option<PathBuf> {
        match self {
            Self::Path(path) => Some(path),
            _ => None,
        }
    }

    fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Address(address) => Some(address),
            _ => None,
        }
    }
}

/// What is wrong with one value.
#[derive(Debug)]
struct Problem {
    problem: String,
    remedy: String,
}

impl Problem {
    fn new(kind: Kind, problem: impl Into<String>) -> Self {
        Self {
            problem: problem.into(),
            remedy: format!("write {}", expected(kind)),
        }
    }

    fn of(self, entry: Entry) -> Fault {
        Fault {
            name: entry.setting.name.into(),
            value: Some(shown(entry.setting.kind, &entry.text)),
            origin: entry.origin,
            problem: self.problem,
            remedy: self.remedy,
        }
    }
}

/// The one check that depends on the layer: 0 for "checkpointed" must have been asked for on purpose.
fn check_in_layer(entry: &Entry) -> Result<Checked, Problem> {
    let checked = check(entry.setting.kind, &entry.text)?;
    match (&checked, &entry.origin) {
        (Checked::ExitCode(0), Origin::File(_) | Origin::Variable(_) | Origin::BuiltIn) => Err(Problem {
            problem: "0 would make an unfinished job look finished".into(),
            remedy: "write a number from 1 to 255, or give `--checkpointed-exit-code 0` as a flag if this platform \
                     runs the job again after 0"
                .into(),
        }),
        _ => Ok(checked),
    }
}

fn check(kind: Kind, text: &str) -> Result<Checked, Problem> {
    match kind {
        Kind::StoreAddress => check_store(text),
        Kind::Endpoint => check_endpoint(kind, text, &["http", "https"]),
        Kind::PlainEndpoint => check_endpoint(kind, text, &["http"]),
        Kind::WebAddress => check_endpoint(kind, text, &["http", "https"]),
        // As the API has it.
        Kind::LifecycleHook => match is_name(text, b"-_/", 255) {
            true => Ok(Checked::Text(text.into())),
            false => Err(Problem::new(kind, "is not the name of a lifecycle hook")),
        },
        Kind::QueueUrl => check_endpoint(kind, text, &["http", "https"]),
        Kind::Instance => match is_name(text, b"._-", JOB_NAME_LIMIT) {
            true => Ok(Checked::Text(text.into())),
            false => Err(Problem::new(kind, "is not the name of a machine")),
        },
        Kind::AzureAccount => {
            let is_small = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            match (3..=24).contains(&text.len()) && text.bytes().all(is_small) {
                true => Ok(Checked::Text(text.into())),
                false => Err(Problem::new(
                    kind,
                    "is not 3 to 24 of the characters a-z and 0-9",
                )),
            }
        }
        Kind::Region => match is_name(text, b"-", 64) {
            true => Ok(Checked::Text(text.into())),
            false => Err(Problem::new(kind, "is not the name of a region")),
        },
        Kind::JobName => match is_job_name(text) {
            true => Ok(Checked::Text(text.into())),
            false => Err(Problem::new(
                kind,
                "is not a name that every store can hold",
            )),
        },
        Kind::Choice(names) => match names.contains(&text) {
            true => Ok(Checked::Text(text.into())),
            false => Err(Problem::new(
                kind,
                format!(
                    "is not one of the choices{}",
                    did_you_mean(text, names.iter().map(ToString::to_string))
                ),
            )),
        },
        Kind::Period => match Period::from_text(text) {
            Some(_) => Ok(Checked::Text(text.into())),
            None => Err(Problem::new(kind, "is no period")),
        },
        Kind::CpuBaseline => match CpuBaseline::from_text(text) {
            Some(_) => Ok(Checked::Text(text.into())),
            None => Err(Problem::new(
                kind,
                "is neither a level nor an absolute path",
            )),
        },
        Kind::Sources => match Sources::from_names(text) {
            Some(_) => Ok(Checked::Text(text.into())),
            None => Err(Problem::new(kind, "names a source that there is not")),
        },
        Kind::Duration(least, most) => check_duration(kind, text, least, most),
        Kind::Size(least, most) => check_size(kind, text, least, most),
        Kind::AutoSize(_, _) if text == "auto" => Ok(Checked::Text(text.into())),
        Kind::AutoSize(least, most) => check_size(kind, text, least, most),
        Kind::Count(least, most) => match text.parse() {
            Ok(count) if (least..=most).contains(&count) => Ok(Checked::Count(count)),
            _ => Err(Problem::new(kind, "is not a whole number in these limits")),
        },
        Kind::ExitCode => check_exit_code(text),
        Kind::Program => match text.starts_with('/') || (!text.is_empty() && !text.contains('/')) {
            true => Ok(Checked::Path(text.into())),
            false => Err(Problem::new(kind, "depends on the current directory")),
        },
        Kind::Path(limit) => match text {
            _ if !text.starts_with('/') => Err(Problem::new(kind, "is not an absolute path")),
            _ if text.len() > limit => Err(Problem::new(
                kind,
                format!(
                    "has {} bytes; the kernel takes at most {limit} here",
                    text.len()
                ),
            )),
            _ => Ok(Checked::Path(text.into())),
        },
        Kind::Paths => match text.split(',').all(|path| path.starts_with('/')) {
            true => Ok(Checked::Text(text.into())),
            false => Err(Problem::new(kind, "is not a list of absolute paths")),
        },
        Kind::Preserve => check_patterns(kind, text, |one| match one {
            "auto" => Ok(()),
            one => Pattern::absolute(one).map(drop),
        }),
        Kind::PreserveExclude => check_patterns(kind, text, |one| Pattern::anywhere(one).map(drop)),
        Kind::KmsKey => match is_kms_key(text) {
            true => Ok(Checked::Text(text.into())),
            false => Err(Problem::new(kind, "is not the name of a key of KMS")),
        },
        Kind::KmsKeys => match text.split(',').all(is_kms_key) {
            true => Ok(Checked::Text(text.into())),
            false => Err(Problem::new(kind, "is not a list of names of keys of KMS")),
        },
        Kind::Moves => {
            let mut rules = text.split(',').map(str::parse::<Move>);
            match rules.find_map(Result::err) {
                None => Ok(Checked::Text(text.into())),
                Some(error) => Err(Problem::new(kind, error.to_string())),
            }
        }
        Kind::ListenAddress => match text.parse() {
            Ok(address) => Ok(Checked::Address(address)),
            Err(_) => Err(Problem::new(kind, "is not an IP address and a port")),
        },
        Kind::LogFilter => check_log_filter(text),
        Kind::Rollback => match text.parse::<rollback::Request>() {
            Ok(_) => Ok(Checked::Text(text.into())),
            Err(error) => Err(Problem::new(kind, error.to_string())),
        },
        Kind::PlainText(limit) => {
            match (1..=limit).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_graphic())
            {
                true => Ok(Checked::Text(text.into())),
                false => Err(Problem::new(
                    kind,
                    "is empty, too long, or has other characters",
                )),
            }
        }
    }
}

/// Only what every store address has in common; the store's own module knows the rest.
fn check_store(text: &str) -> Result<Checked, Problem> {
    let kind = Kind::StoreAddress;
    let url =
        Url::parse(text).map_err(|error| Problem::new(kind, format!("is not a URL: {error}")))?;
    refuse_credentials(kind, &url)?;
    let host = url.host_str().unwrap_or_default();
    match url.scheme() {
        "s3" | "gs" | "az" if host.is_empty() => Err(Problem::new(kind, "names no bucket")),
        "file" if !host.is_empty() && host != "localhost" => Err(Problem::new(
            kind,
            format!("names \"{host}\" as a host; a directory needs three slashes"),
        )),
        "file" if url.path() == "/" => Err(Problem::new(kind, "names no directory")),
        "s3" | "gs" | "az" | "file" => Ok(Checked::Text(text.into())),
        scheme => Err(Problem::new(
            kind,
            format!("there is no kind of store called \"{scheme}\""),
        )),
    }
}

fn check_endpoint(kind: Kind, text: &str, schemes: &[&str]) -> Result<Checked, Problem> {
    let url =
        Url::parse(text).map_err(|error| Problem::new(kind, format!("is not a URL: {error}")))?;
    refuse_credentials(kind, &url)?;
    match url.scheme() {
        scheme if schemes.contains(&scheme) => Ok(Checked::Url(url)),
        scheme => Err(Problem::new(
            kind,
            format!("an endpoint is not reached by \"{scheme}\""),
        )),
    }
}

fn refuse_credentials(kind: Kind, url: &Url) -> Result<(), Problem> {
    if url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none()
    {
        return Ok(());
    }
    Err(Problem {
        problem: "holds more than an address; credentials in it would end up in logs".into(),
        remedy: format!(
            "write {}; credentials come from the machine's role or the usual variables",
            expected(kind)
        ),
    })
}

fn is_name(text: &str, punctuation: &[u8], limit: usize) -> bool {
    (1..=limit).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || punctuation.contains(&byte))
}

fn is_kms_key(text: &str) -> bool {
    is_name(text, b"-_/:", 2048)
}

fn check_patterns(
    kind: Kind,
    text: &str,
    check: impl Fn(&str) -> Result<(), &'static str>,
) -> Result<Checked, Problem> {
    for one in text.split(':').filter(|one| !one.is_empty()) {
        if let Err(problem) = check(one) {
            return Err(Problem::new(kind, format!("{problem}: {one}")));
        }
    }
    Ok(Checked::Text(text.into()))
}

fn check_duration(
    kind: Kind,
    text: &str,
    least: Duration,
    most: Duration,
) -> Result<Checked, Problem> {
    match humantime::parse_duration(text) {
        Ok(duration) if (least..=most).contains(&duration) => Ok(Checked::Duration(duration)),
        Ok(_) => Err(Problem::new(kind, "is outside these limits")),
        Err(_) if text.parse::<f64>().is_ok() => Err(Problem {
            problem: "has no unit".into(),
            remedy: format!("write \"{text}s\" if seconds are meant"),
        }),
        Err(error) => Err(Problem::new(kind, format!("is not a duration: {error}"))),
    }
}

fn check_size(kind: Kind, text: &str, least: u64, most: u64) -> Result<Checked, Problem> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor = match text[digits.len()..].trim_start() {
        "B" => Some(1),
        "KiB" => Some(1024),
        "MiB" => Some(MIB),
        "GiB" => Some(1024 * MIB),
        _ => None,
    };
    let (Ok(number), Some(factor)) = (digits.parse::<u64>(), factor) else {
        return Err(Problem::new(
            kind,
            "is not a whole number with one of the units B, KiB, MiB, GiB",
        ));
    };
    match number.checked_mul(factor) {
        Some(bytes) if (least..=most).contains(&bytes) => Ok(Checked::Bytes(bytes)),
        _ => Err(Problem::new(kind, "is outside these limits")),
    }
}

/// A number that already means something else in our list would make the list useless.
fn check_exit_code(text: &str) -> Result<Checked, Problem> {
    let kind = Kind::ExitCode;
    let number = text
        .parse::<u8>()
        .map_err(|_| Problem::new(kind, "is not a number from 0 to 255"))?;
    let taken = ExitCode::ALL
        .iter()
        .find(|code| code.number() == number && **code != ExitCode::Checkpointed);
    match taken {
        Some(code) => Err(Problem::new(
            kind,
            format!("already means \"{}\"", code.name()),
        )),
        None => Ok(Checked::ExitCode(number)),
    }
}

/// Stricter than the parser of filters, which takes a mistyped level for the name of a module and then logs nothing.
fn check_log_filter(text: &str) -> Result<Checked, Problem> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let kind = Kind::LogFilter;
    let bare = text.split(',').map(str::trim).find(|part| {
        !part.contains(['=', '[']) && !LEVELS.contains(&part.to_ascii_lowercase().as_str())
    });
    if let Some(word) = bare {
        return Err(Problem::new(
            kind,
            format!(
                "\"{word}\" is not a level{}",
                did_you_mean(word, LEVELS.iter().map(ToString::to_string))
            ),
        ));
    }
    match EnvFilter::builder().parse(text) {
        Ok(_) => Ok(Checked::Text(text.into())),
        Err(error) => Err(Problem::new(kind, format!("is not a filter: {error}"))),
    }
}

/// What a value of this kind looks like, to complete "write ...".
pub(crate) fn expected(kind: Kind) -> String {
    let duration = |duration: Duration| match duration {
        Duration::ZERO => "0s".to_string(),
        DAY => "24h".to_string(),
        _ => humantime::format_duration(duration).to_string(),
    };
    match kind {
        Kind::StoreAddress => {
            "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///DIRECTORY"
                .into()
        }
        Kind::Endpoint => "a URL like https://s3.example.net:9000".into(),
        Kind::PlainEndpoint => "a URL like http://127.0.0.1:8000, without TLS".into(),
        Kind::Region => "a region like eu-central-1".into(),
        Kind::AzureAccount => "the name of a storage account like mysnapshots".into(),
        Kind::QueueUrl => {
            "a URL like https://sqs.eu-central-1.amazonaws.com/123456789012/my-queue".into()
        }
        Kind::Instance => "a name like i-0abc1234def567890".into(),
        Kind::WebAddress => "a URL like https://hooks.example.net/told".into(),
        Kind::LifecycleHook => "1 to 255 of A-Z a-z 0-9 - _ /".into(),
        Kind::JobName => {
            format!("1 to {JOB_NAME_LIMIT} of A-Z a-z 0-9 . _ -, not starting with a dot")
        }
        Kind::Choice(names) => format!("one of {}", names.join(", ")),
        Kind::CpuBaseline => {
            "off, x86-64-v2, x86-64-v3, x86-64-v4, auto-from-launch-template, or the absolute path of a file".into()
        }
        Kind::Period => "never, auto, or a duration with its unit like 10m, from 1s to 24h".into(),
        Kind::Sources => {
            let names: Vec<String> = Sources::names().map(|(name, _)| name).collect();
            format!("auto, none, or some of {}", names.join(","))
        }
        Kind::Duration(least, most) => format!(
            "a duration with its unit like 25s or 2m, from {} to {}",
            duration(least),
            duration(most)
        ),
        Kind::Size(least, most) => {
            format!("a size like 64MiB, from {} to {}", size(least), size(most))
        }
        Kind::AutoSize(least, most) => format!(
            "auto, or a size like 64MiB, from {} to {}",
            size(least),
            size(most)
        ),
        Kind::Count(least, most) => format!("a whole number from {least} to {most}"),
        Kind::ExitCode => {
            "a number from 1 to 255 that is not one of Reprieve's other exit codes".into()
        }
        Kind::Program => "a name without slashes or an absolute path".into(),
        Kind::Path(usize::MAX) => "an absolute path".into(),
        Kind::Path(limit) => format!("an absolute path of at most {limit} bytes"),
        Kind::Paths => "absolute paths with commas between them".into(),
        Kind::Preserve => "auto, or absolute paths or patterns, with colons between them".into(),
        Kind::PreserveExclude => {
            "absolute paths or patterns, or names without slashes, with colons between them".into()
        }
        Kind::KmsKey => "the id, the ARN or the alias (alias/NAME) of a key".into(),
        Kind::KmsKeys => {
            "ids, ARNs or aliases (alias/NAME) of keys with commas between them".into()
        }
        Kind::ListenAddress => "an IP address and a port like 0.0.0.0:9184 or [::]:9184".into(),
        Kind::Moves => {
            "two IP addresses like 10.0.0.1:10.0.0.2 or [fd00::1]:[fd00::2]; several with commas between them".into()
        }
        Kind::LogFilter => "a level or a list like info,reprieve::store=debug".into(),
        Kind::Rollback => {
            "a generation's number, a tag, or newest; behind it, if you like, @ and a word of A-Z a-z 0-9 . _ -".into()
        }
        Kind::PlainText(limit) => format!("1 to {limit} printable ASCII characters without spaces"),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0 => "0B".into(),
        _ if bytes.is_multiple_of(1024 * MIB) => format!("{}GiB", bytes / (1024 * MIB)),
        _ if bytes.is_multiple_of(MIB) => format!("{}MiB", bytes / MIB),
        _ => format!("{bytes}B"),
    }
}

/// A value as it may appear in a message. Of a URL everything that could hold credentials is left out.
fn shown(kind: Kind, text: &str) -> String {
    if !matches!(
        kind,
        Kind::StoreAddress | Kind::Endpoint | Kind::PlainEndpoint | Kind::QueueUrl
    ) {
        return shown_text(text);
    }
    let text = text.split(['?', '#']).next().unwrap_or_default();
    match text.rsplit_once('@') {
        Some((before, host)) => {
            let scheme = before.split_once("://").map_or("", |(scheme, _)| scheme);
            shown_text(&format!("{scheme}://[hidden]@{host}"))
        }
        None => shown_text(text),
    }
}

fn shown_text(text: &str) -> String {
    match text.char_indices().nth(SHOWN_LIMIT) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

fn not_utf8(name: &str, origin: Origin) -> Fault {
    Fault {
        name: name.into(),
        origin,
        value: None,
        problem: "is not UTF-8".into(),
        remedy: "write it in UTF-8".into(),
    }
}

/// The value stays hidden: whoever mistypes a name may mistype that of a secret.
fn unknown(written: &str, origin: Origin, known: impl Iterator<Item = String>) -> Fault {
    Fault {
        name: written.into(),
        origin,
        value: None,
        problem: format!("there is no such setting{}", did_you_mean(written, known)),
        remedy: "correct the name or remove it".into(),
    }
}

/// ": did you mean ...?" if something known is close enough to be a slip of the hand, otherwise nothing.
pub(crate) fn did_you_mean(written: &str, known: impl Iterator<Item = String>) -> String {
    let folded = |text: &str| text.to_ascii_lowercase().replace('_', "-");
    let written = folded(written);
    known
        .map(|name| (edit_distance(&written, &folded(&name)), name))
        .min()
        // A third of the letters: "stor" and "deadline-marign" are slips, "foo" for "job" is not.
        .filter(|(distance, name)| *distance <= name.len().div_ceil(4).max(1))
        .map(|(_, name)| format!(": did you mean \"{name}\"?"))
        .unwrap_or_default()
}

/// Levenshtein's distance with exchanged neighbours counted once.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = match (i, j) {
                (0, _) => j,
                (_, 0) => i,
                _ => {
                    let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let shorter = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                    let exchanged = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                    match exchanged {
                        true => replaced.min(shorter).min(rows[i - 2][j - 2] + 1),
                        false => replaced.min(shorter),
                    }
                }
            };
        }
    }
    rows[a.len()][b.len()]
}

/// The name of a job that was given none: the same command line on another machine is the same job.
fn derived_job_name(argv: &[OsString]) -> String {
    const DIGITS: usize = 8;
    let app = argv.first().map_or(OsStr::new(""), OsString::as_os_str);
    let base = Path::new(app)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    let mut name: String = base
        .chars()
        .map(|c| match c {
            'A'..='Z' | 'a'..='z' | '0'..='9' | '.' | '_' | '-' => c,
            _ => '_',
        })
        .skip_while(|c| *c == '.')
        .take(JOB_NAME_LIMIT - DIGITS - 1)
        .collect();
    if name.is_empty() {
        name.push_str("app");
    }
    let joined = argv
        .iter()
        .map(|argument| argument.as_bytes())
        .collect::<Vec<_>>()
        .join(&0);
    let hash = blake3::hash(&joined).to_hex();
    format!("{name}-{}", &hash[..DIGITS])
}

/// The text of docs/settings.md.
pub fn document() -> String {
    let mut text = String::from(
        "# Settings\n\n\
         Generated from the table in `worker/src/settings.rs`; do not edit.\n\n\
         Each setting can be given in four places; a later one goes before an earlier one:\n\n\
         1. the built-in default;\n\
         2. a TOML file: `--config PATH`, else `REPRIEVE_CONFIG`, else `/etc/reprieve.toml` if it exists. The key is the \
         setting's name, with `-` or `_`;\n\
         3. an environment variable; an empty one counts as not set;\n\
         4. a flag of `reprieve run`.\n\n\
         Every value of every place is checked, and everything that is wrong is reported at once, with exit code 174. \
         Unknown keys and unknown `REPRIEVE_*` variables are refused, except those that Kubernetes sets for a service \
         called `reprieve...` (`REPRIEVE_SERVICE_HOST`, `REPRIEVE_PORT_80_TCP` and so on). `reprieve checkpoint` and \
         `reprieve status` read only `control-socket` and `checkpoint-timeout`.\n\n\
         No setting holds a secret. Credentials for S3 and KMS come from the usual AWS sources, those for Google and Azure likewise from theirs; a key comes from a file, from \
         KMS, or from the environment variable `REPRIEVE_KEY`, which holds what a key file would hold and is neither a flag \
         nor a key of the settings file. Reprieve wipes it from its own environment and gives it to nobody.\n",
    );
    let mut section = "";
    for setting in TABLE {
        if setting.section != section {
            section = setting.section;
            text.push_str(&format!("\n## {section}\n"));
        }
        let default = match setting.default {
            Some(default) => format!("`{default}`"),
            None => format!("none: {}", setting.unset),
        };
        text.push_str(&format!(
            "\n### `{}`\n\n{}\n\n- Flag `{}`, environment `{}`\n- Value: {}\n- Default: {default}\n",
            setting.name,
            setting.meaning,
            setting.flag(),
            setting.variable(),
            expected(setting.kind),
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Variables(Vec<(&'static str, &'static str)>);

    impl Environment for Variables {
        fn variables(&self) -> Vec<(OsString, OsString)> {
            self.0
                .iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect()
        }
    }

    struct Given {
        flags: Vec<(&'static str, &'static str)>,
        variables: Vec<(&'static str, &'static str)>,
        file: Option<&'static str>,
    }

    const NOTHING: Given = Given {
        flags: Vec::new(),
        variables: Vec::new(),
        file: None,
    };

    impl Settings {
        /// The built-in ones, for tests elsewhere.
        pub(crate) fn for_tests() -> Self {
            NOTHING.load().expect("the built-in values are valid")
        }
    }

    const ARGV: [&str; 3] = ["/opt/bin/train", "--epochs", "90"];

    impl Given {
        /// Loads with a settings file that is named by `--config`, and shows its directory as `DIR` in faults.
        fn with<T>(self, load: impl FnOnce(&Layers<'_>) -> Result<T, Faults>) -> Result<T, String> {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let file = self.file.map(|text| {
                let path = dir.path().join("reprieve.toml");
                std::fs::write(&path, text).expect("the directory is ours");
                path
            });
            let environment = Variables(self.variables);
            let flags = self
                .flags
                .iter()
                .map(|(setting, value)| FlagValue {
                    setting,
                    flag: Setting::named(setting).flag(),
                    value: value.into(),
                })
                .collect();
            let layers = Layers {
                flags,
                file,
                default_file: &dir.path().join("absent.toml"),
                environment: &environment,
            };
            load(&layers).map_err(|faults| {
                Failure::from(faults)
                    .to_string()
                    .replace(&dir.path().display().to_string(), "DIR")
            })
        }

        fn load(self) -> Result<Settings, String> {
            self.with(|layers| Settings::load(layers, &ARGV.map(OsString::from)))
        }
    }

    fn flags(flags: &[(&'static str, &'static str)]) -> Given {
        Given {
            flags: flags.to_vec(),
            ..NOTHING
        }
    }

    fn variables(variables: &[(&'static str, &'static str)]) -> Given {
        Given {
            variables: variables.to_vec(),
            ..NOTHING
        }
    }

    fn file(text: &'static str) -> Given {
        Given {
            file: Some(text),
            ..NOTHING
        }
    }

    fn queue(name: &str) -> Url {
        let url = format!("https://sqs.eu-central-1.amazonaws.com/123456789012/{name}");
        Url::parse(&url).expect("it is one")
    }

    #[test]
    fn tags_say_what_nothing_else_says() {
        let url = "https://sqs.eu-central-1.amazonaws.com/123456789012/fleet";
        let said = |store: &str, job: &str, queue: &str| {
            BTreeMap::from([("store", store), ("job", job), ("queue", queue)])
                .into_iter()
                .map(|(name, text)| (name, text.to_owned()))
                .collect()
        };
        let all = said("s3://bucket/jobs", "tagged", url);
        let on = |more: &[(&'static str, &'static str)]| {
            let given = [&[("defaults-from-tags", "on")], more].concat();
            flags(&given).load().expect("valid settings")
        };
        let settings = on(&[]).with_tags(&all).expect("they are valid");
        assert_eq!(settings.store.as_deref(), Some("s3://bucket/jobs"));
        assert_eq!(settings.job, "tagged");
        assert_eq!(settings.job_name_origin, JobNameOrigin::Given);
        assert_eq!(
            (settings.queue, settings.queue_url),
            (QueueUse::Shared, Some(queue("fleet")))
        );
        assert!(!settings.warnings.join("\n").contains("no store"));
        let own = on(&[]).with_tags(&said("s3://b", "", "own"));
        let own = own.expect("they are valid");
        assert_eq!((own.queue, own.queue_url), (QueueUse::Own, None));
        assert_ne!(own.job, "", "an empty tag says nothing");
        // Whatever is said otherwise counts, also that there is to be none.
        let given = [("store", "file:///mine"), ("job", "mine"), ("queue", "off")];
        let settings = on(&given).with_tags(&all).expect("they are valid");
        assert_eq!(settings.store.as_deref(), Some("file:///mine"));
        assert_eq!(
            (settings.job.as_str(), settings.queue),
            ("mine", QueueUse::Off)
        );
        // What is wrong says where it comes from.
        let wrong = on(&[]).with_tags(&said("ftp://b", "a b", "elsewhere"));
        let said_of_it = Failure::from(wrong.expect_err("nothing of it is valid")).to_string();
        for tag in ["reprieve:store", "reprieve:job", "reprieve:queue"] {
            let origin = format!("(tag {tag} of this machine)");
            assert!(said_of_it.contains(&origin), "{said_of_it}");
        }
        // A rollback needs a store from somewhere.
        let back = on(&[("from", "3")]);
        assert!(back.clone().with_tags(&all).is_ok());
        assert!(back.with_tags(&BTreeMap::new()).is_err());
    }

    #[test]
    fn a_queue_that_is_named_is_read_and_one_that_is_shared_is_named() {
        let url = "https://sqs.eu-central-1.amazonaws.com/123456789012/fleet";
        let named = flags(&[("queue", "shared"), ("queue-url", url)]).load();
        assert!(named.is_ok());
        assert!(flags(&[("queue", "own")]).load().is_ok());
        let message = flags(&[("queue", "shared")])
            .load()
            .expect_err("which one?");
        assert!(message.contains("has to be named"), "{message}");
        let message = flags(&[("queue-url", url)])
            .load()
            .expect_err("it is not read");
        assert!(message.contains("is not read while"), "{message}");
    }

    #[test]
    fn defaults_are_complete() {
        let settings = NOTHING.load().expect("the defaults are valid");
        assert_eq!(
            settings,
            Settings {
                store: None,
                // A stored answer: another derivation would lose every snapshot of an unnamed job.
                job: "train-6b8da3e1".into(),
                job_name_origin: JobNameOrigin::Derived,
                s3_endpoint: None,
                s3_region: None,
                s3_path_style: PathStyle::Auto,
                s3_objects: S3Objects {
                    encryption: S3Encryption::Bucket,
                    key: None,
                    storage_class: S3StorageClass::Bucket,
                    request_payer: S3RequestPayer::Owner,
                },
                gs_endpoint: None,
                azure_account: None,
                azure_endpoint: None,
                store_self_test: StoreSelfTest::On,
                keep_generations: 5,
                keep_hourly: 0,
                keep_daily: 0,
                sweep_grace: DAY,
                waste_factor: 2,
                compression: Compression::Auto,
                memory_budget_bytes: 64 * MIB,
                keys: KeySettings {
                    sources: Vec::new(),
                    on_unsealed: OnUnsealed::Refuse,
                },
                seed: Seed::On,
                seed_interval: Duration::from_secs(60),
                seed_bandwidth_bytes: 32 * MIB,
                seed_cpu_percent: 10,
                term_grace: Duration::from_secs(10),
                deadline_margin: Duration::from_secs(1),
                stop_grace: Duration::from_secs(5),
                checkpoint_timeout: Duration::from_secs(25),
                on_checkpoint_failure: OnCheckpointFailure::RunOn,
                checkpointed_exit_code: 75,
                ghost_limit_bytes: None,
                watched: vec![],
                orphans: Orphans::Refuse,
                io_uring: IoUring::Deny,
                seccomp: Seccomp::Off,
                clocks: Clocks::Keep,
                jvm_perf_data: PerfData::Off,
                go_multipath_tcp: GoMultipathTcp::Off,
                cpu_baseline: CpuBaseline::Off,
                image_digest: None,
                preserve: Rules::default(),
                checkup_interval: Duration::from_secs(60),
                rehearse: Rehearse::Off,
                rehearse_after: Duration::from_secs(60),
                signal_target: SignalTarget::Group,
                on_sigint: OnSignal::Forward,
                on_sighup: OnSignal::Forward,
                on_sigusr1: OnSignal::Forward,
                on_sigusr2: OnSignal::Forward,
                on_too_late: OnTooLate::Try,
                shortest_notice: None,
                keep_promise: KeepPromise::Warn,
                every: Period::Never,
                max_lost_work: Duration::from_secs(900),
                machine_lifetime: Duration::from_secs(6 * 3600),
                least_interval: Duration::from_secs(30),
                at_risk_interval: Duration::from_secs(600),
                hooks_dir: None,
                hook_timeout: Duration::from_secs(5),
                on_hook_failure: OnHookFailure::Ignore,
                webhook: None,
                webhook_format: WebhookFormat::Json,
                sources: Sources::Auto,
                metadata_poll: Duration::from_secs(2),
                ec2_metadata_endpoint: None,
                gcp_metadata_endpoint: None,
                azure_metadata_endpoint: None,
                queue: QueueUse::Off,
                queue_url: None,
                queue_lease: Duration::from_secs(60),
                dead_letter_queue: None,
                reply_queue: None,
                instance_id: None,
                lifecycle_hook: None,
                defaults_from_tags: DefaultsFromTags::Off,
                unsaid: vec!["store", "job", "queue"],
                on_warm_pool: OnWarmPool::Wait,
                instance_tags: InstanceTags::Off,
                boot_timeout: Duration::from_secs(60),
                restore_timeout: Duration::from_secs(600),
                from: None,
                on_other_owner: OnOtherOwner::Wait,
                on_clock_behind: OnClockBehind::Warn,
                listen_remap: Vec::new(),
                tcp: Tcp::Close,
                clock_wait: Duration::from_secs(600),
                lease_term: Duration::from_secs(30),
                on_no_valid_snapshot: OnNoValidSnapshot::Fail,
                profile: ProfileChoice::Auto,
                criu: None,
                work_dir: None,
                control_socket: "/run/reprieve/control.sock".into(),
                metrics_listen: None,
                metrics_recorder: None,
                otlp_endpoint: None,
                push_gateway: None,
                statsd: None,
                emf: Emf::Off,
                log: LogSettings {
                    filter: "info".into(),
                    format: LogFormat::Auto,
                },
                warnings: vec![
                    "no store is set: nothing is checkpointed and an eviction loses the job's work"
                        .into()
                ],
            }
        );
    }

    /// A valid value other than the default for every row, so that no row is left out of `Settings`; but for `kms-key`,
    /// which goes not with `key-file` and has a test of its own.
    const OTHERS: &[(&str, &str)] = &[
        ("store", "s3://bucket/pre/fix"),
        ("job", "nightly"),
        ("s3-endpoint", "http://127.0.0.1:9000"),
        ("s3-region", "eu-central-1"),
        ("s3-path-style", "on"),
        ("s3-sse", "aws:kms"),
        ("s3-sse-key", "alias/snapshots"),
        ("s3-storage-class", "glacier-ir"),
        ("s3-request-payer", "requester"),
        ("gs-endpoint", "http://127.0.0.1:9001"),
        ("azure-account", "account1"),
        ("azure-endpoint", "http://127.0.0.1:9002/account1"),
        ("store-self-test", "off"),
        ("keep-generations", "2"),
        ("keep-hourly", "24"),
        ("keep-daily", "7"),
        ("sweep-grace", "2h"),
        ("waste-factor", "3"),
        ("compression", "high"),
        ("memory-budget", "1GiB"),
        ("key-file", "/secrets/key"),
        ("old-key-file", "/secrets/a,/secrets/b"),
        ("old-kms-key", "alias/old"),
        ("on-unsealed", "accept"),
        ("seed", "off"),
        ("seed-interval", "5m"),
        ("seed-bandwidth", "8MiB"),
        ("seed-cpu", "25"),
        ("term-grace", "2m"),
        ("deadline-margin", "500ms"),
        ("stop-grace", "0s"),
        ("checkpoint-timeout", "1m 30s"),
        ("on-checkpoint-failure", "forward"),
        ("checkpointed-exit-code", "143"),
        ("ghost-limit", "0B"),
        ("watched", "/app,/data/in"),
        ("orphans", "app"),
        ("io-uring", "allow"),
        ("seccomp", "job"),
        ("clocks", "host"),
        ("jvm-perf-data", "keep"),
        ("go-multipath-tcp", "keep"),
        ("cpu-baseline", "x86-64-v3"),
        ("image-digest", "sha256:1"),
        ("preserve", "auto:/data/*.db"),
        ("preserve-exclude", "*.tmp:/cache"),
        ("preserve-privileged", "keep"),
        ("checkup-interval", "10s"),
        ("rehearse", "on"),
        ("rehearse-after", "5s"),
        ("signal-target", "child"),
        ("platform", "ecs"),
        ("on-sigint", "stop"),
        ("on-sighup", "checkpoint"),
        ("on-sigusr1", "checkpoint"),
        ("on-sigusr2", "stop"),
        ("on-too-late", "run-on"),
        ("shortest-notice", "45s"),
        ("keep-promise", "checkpoint"),
        ("every", "10m"),
        ("max-lost-work", "1m"),
        ("machine-lifetime", "1h"),
        ("least-interval", "5s"),
        ("at-risk-interval", "5m"),
        ("sources", "sqs,memory-pressure"),
        ("metadata-poll", "500ms"),
        ("ec2-metadata-endpoint", "http://[fd00:ec2::254]"),
        ("gcp-metadata-endpoint", "http://127.0.0.1:1338"),
        ("azure-metadata-endpoint", "http://127.0.0.1:1339"),
        ("queue", "shared"),
        (
            "queue-url",
            "https://sqs.eu-central-1.amazonaws.com/123456789012/fleet",
        ),
        ("queue-lease", "30s"),
        (
            "dead-letter-queue",
            "https://sqs.eu-central-1.amazonaws.com/123456789012/dead",
        ),
        (
            "reply-queue",
            "https://sqs.eu-central-1.amazonaws.com/123456789012/replies",
        ),
        ("instance-id", "i-0abc"),
        ("lifecycle-hook", "fleet/nightly_goodbye"),
        ("instance-tags", "on"),
        ("defaults-from-tags", "on"),
        ("hooks-dir", "/hooks"),
        ("hook-timeout", "2s"),
        ("on-hook-failure", "refuse"),
        ("webhook", "http://127.0.0.1:8000/told"),
        ("webhook-format", "sns"),
        ("boot-timeout", "10s"),
        ("on-warm-pool", "start"),
        ("restore-timeout", "1h"),
        ("from", "12@again"),
        ("on-other-owner", "leave"),
        ("on-clock-behind", "refuse"),
        ("clock-wait", "30s"),
        ("listen-remap", "10.0.0.1:10.0.0.2"),
        ("tcp", "established"),
        ("lease-term", "1m"),
        ("on-no-valid-snapshot", "start"),
        ("profile", "minimal"),
        ("criu", "/opt/criu"),
        ("work-dir", "/scratch"),
        ("control-socket", "/tmp/c.sock"),
        ("metrics-listen", "[::]:9184"),
        ("push-gateway", "http://127.0.0.1:9091"),
        ("statsd", "127.0.0.1:8125"),
        ("emf", "stderr"),
        ("metrics-recorder", "/usr/local/bin/record"),
        ("otlp-endpoint", "http://127.0.0.1:4318"),
        ("log", "warn,reprieve::store=debug"),
        ("log-format", "human"),
    ];

    #[test]
    fn each_row_is_read_in_every_layer() {
        assert_eq!(
            OTHERS.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            TABLE
                .iter()
                .map(|setting| setting.name)
                .filter(|name| *name != "kms-key")
                .collect::<Vec<_>>()
        );
        let leak = |text: String| -> &'static str { text.leak() };
        let by_flags = flags(OTHERS).load().expect("valid flags");
        let by_variables = Given {
            variables: OTHERS
                .iter()
                .map(|(name, value)| (leak(Setting::named(name).variable()), *value))
                .collect(),
            ..NOTHING
        };
        let toml = |key: fn(&str) -> String| -> String {
            OTHERS
                .iter()
                .map(|(name, value)| format!("{} = {value:?}\n", key(name)))
                .collect()
        };
        assert_eq!(by_variables.load().expect("valid variables"), by_flags);
        assert_eq!(
            file(leak(toml(str::to_string)))
                .load()
                .expect("a valid file"),
            by_flags
        );
        assert_eq!(
            file(leak(toml(|name| name.replace('-', "_"))))
                .load()
                .expect("a valid file"),
            by_flags
        );
        let expected = Settings {
            store: Some("s3://bucket/pre/fix".into()),
            job: "nightly".into(),
            job_name_origin: JobNameOrigin::Given,
            s3_endpoint: Url::parse("http://127.0.0.1:9000").ok(),
            s3_region: Some("eu-central-1".into()),
            s3_path_style: PathStyle::On,
            s3_objects: S3Objects {
                encryption: S3Encryption::Kms,
                key: Some("alias/snapshots".into()),
                storage_class: S3StorageClass::GlacierInstantRetrieval,
                request_payer: S3RequestPayer::Requester,
            },
            gs_endpoint: Url::parse("http://127.0.0.1:9001").ok(),
            azure_account: Some("account1".into()),
            azure_endpoint: Url::parse("http://127.0.0.1:9002/account1").ok(),
            store_self_test: StoreSelfTest::Off,
            keep_generations: 2,
            keep_hourly: 24,
            keep_daily: 7,
            sweep_grace: Duration::from_secs(7200),
            waste_factor: 3,
            compression: Compression::High,
            memory_budget_bytes: 1024 * MIB,
            keys: KeySettings {
                sources: vec![
                    KeySource::File("/secrets/key".into()),
                    KeySource::File("/secrets/a".into()),
                    KeySource::File("/secrets/b".into()),
                    KeySource::Kms("alias/old".into()),
                ],
                on_unsealed: OnUnsealed::Accept,
            },
            seed: Seed::Off,
            seed_interval: Duration::from_secs(300),
            seed_bandwidth_bytes: 8 * MIB,
            seed_cpu_percent: 25,
            term_grace: Duration::from_secs(120),
            deadline_margin: Duration::from_millis(500),
            stop_grace: Duration::ZERO,
            checkpoint_timeout: Duration::from_secs(90),
            on_checkpoint_failure: OnCheckpointFailure::Forward,
            checkpointed_exit_code: 143,
            ghost_limit_bytes: Some(0),
            watched: vec!["/app".into(), "/data/in".into()],
            orphans: Orphans::App,
            io_uring: IoUring::Allow,
            seccomp: Seccomp::Job,
            clocks: Clocks::Host,
            jvm_perf_data: PerfData::Keep,
            go_multipath_tcp: GoMultipathTcp::Keep,
            cpu_baseline: CpuBaseline::Level(Level::V3),
            image_digest: Some("sha256:1".into()),
            preserve: Rules {
                auto: true,
                named: vec![Pattern::absolute("/data/*.db").expect("a pattern")],
                excluded: vec![
                    Pattern::anywhere("*.tmp").expect("a pattern"),
                    Pattern::anywhere("/cache").expect("a pattern"),
                ],
                privileged: Privileged::Keep,
            },
            checkup_interval: Duration::from_secs(10),
            rehearse: Rehearse::On,
            rehearse_after: Duration::from_secs(5),
            signal_target: SignalTarget::Child,
            on_sigint: OnSignal::Stop,
            on_sighup: OnSignal::Checkpoint,
            on_sigusr1: OnSignal::Checkpoint,
            on_sigusr2: OnSignal::Stop,
            on_too_late: OnTooLate::RunOn,
            shortest_notice: Some(Duration::from_secs(45)),
            keep_promise: KeepPromise::Checkpoint,
            every: Period::Each(Duration::from_secs(600)),
            max_lost_work: Duration::from_secs(60),
            machine_lifetime: Duration::from_secs(3600),
            least_interval: Duration::from_secs(5),
            at_risk_interval: Duration::from_secs(300),
            hooks_dir: Some("/hooks".into()),
            hook_timeout: Duration::from_secs(2),
            on_hook_failure: OnHookFailure::Refuse,
            webhook: Url::parse("http://127.0.0.1:8000/told").ok(),
            webhook_format: WebhookFormat::Sns,
            sources: Sources::Only(vec![Source::Sqs, Source::MemoryPressure]),
            metadata_poll: Duration::from_millis(500),
            ec2_metadata_endpoint: Url::parse("http://[fd00:ec2::254]").ok(),
            gcp_metadata_endpoint: Url::parse("http://127.0.0.1:1338").ok(),
            azure_metadata_endpoint: Url::parse("http://127.0.0.1:1339").ok(),
            queue: QueueUse::Shared,
            queue_url: Some(queue("fleet")),
            queue_lease: Duration::from_secs(30),
            dead_letter_queue: Some(queue("dead")),
            reply_queue: Some(queue("replies")),
            instance_id: Some("i-0abc".into()),
            lifecycle_hook: Some("fleet/nightly_goodbye".into()),
            defaults_from_tags: DefaultsFromTags::On,
            unsaid: Vec::new(),
            on_warm_pool: OnWarmPool::Start,
            instance_tags: InstanceTags::On,
            boot_timeout: Duration::from_secs(10),
            restore_timeout: Duration::from_secs(3600),
            from: "12@again".parse().ok(),
            on_other_owner: OnOtherOwner::Leave,
            on_clock_behind: OnClockBehind::Refuse,
            listen_remap: vec!["10.0.0.1:10.0.0.2".parse().expect("it is a rule")],
            tcp: Tcp::Established,
            clock_wait: Duration::from_secs(30),
            lease_term: Duration::from_secs(60),
            on_no_valid_snapshot: OnNoValidSnapshot::Start,
            profile: ProfileChoice::Minimal,
            criu: Some("/opt/criu".into()),
            work_dir: Some("/scratch".into()),
            control_socket: "/tmp/c.sock".into(),
            metrics_listen: "[::]:9184".parse().ok(),
            metrics_recorder: Some("/usr/local/bin/record".into()),
            otlp_endpoint: Url::parse("http://127.0.0.1:4318").ok(),
            push_gateway: Url::parse("http://127.0.0.1:9091").ok(),
            statsd: "127.0.0.1:8125".parse().ok(),
            emf: Emf::Stderr,
            log: LogSettings {
                filter: "warn,reprieve::store=debug".into(),
                format: LogFormat::Human,
            },
            warnings: by_flags.warnings.clone(),
        };
        assert_eq!(by_flags, expected);
    }

    #[test]
    fn there_is_one_newest_key_and_no_secret_is_shown() {
        let store = ("store", "file:///s");
        let given = |flags: &[(&'static str, &'static str)], secret: Option<&'static str>| Given {
            flags: [&[store], flags].concat(),
            variables: secret
                .map(|secret| (KEY_VARIABLE, secret))
                .into_iter()
                .collect(),
            ..NOTHING
        };
        let loaded = given(&[("kms-key", "alias/job")], None).load();
        let sources = loaded.expect("valid settings").keys.sources;
        assert_eq!(sources, [KeySource::Kms("alias/job".into())]);
        let loaded = given(&[("old-key-file", "/a")], Some("correct horse"))
            .load()
            .expect("valid settings");
        assert_eq!(
            loaded.keys.sources[1..],
            [KeySource::File("/a".into())],
            "the newest goes first"
        );
        let shown = format!("{loaded:?}");
        assert!(
            shown.contains("[hidden]") && !shown.contains("horse"),
            "{shown}"
        );
        for (flags, secret, problem) in [
            (
                &[("key-file", "/a"), ("kms-key", "k")][..],
                None,
                "is set beside key-file",
            ),
            (
                &[("key-file", "/a")],
                Some("correct horse"),
                "REPRIEVE_KEY (environment variable REPRIEVE_KEY): is set beside key-file",
            ),
            (
                &[("old-key-file", "/a")],
                None,
                "no key that new snapshots are to be sealed with",
            ),
            (
                &[("old-key-file", "/a,b")],
                Some("correct horse"),
                "absolute paths",
            ),
            (&[("kms-key", "a b")], None, "not the name of a key"),
        ] {
            let faults = given(flags, secret).load().expect_err(problem);
            let text = faults;
            assert!(text.contains(problem) && !text.contains("horse"), "{text}");
        }
    }

    #[test]
    fn later_layers_go_first() {
        let layers = |flag: bool, variable: bool| Given {
            flags: if flag {
                vec![("job", "from-flag")]
            } else {
                Vec::new()
            },
            variables: if variable {
                vec![("REPRIEVE_JOB", "from-variable")]
            } else {
                Vec::new()
            },
            file: Some("job = \"from-file\"\nkeep-generations = 7"),
        };
        for (flag, variable, job) in [
            (true, true, "from-flag"),
            (false, true, "from-variable"),
            (false, false, "from-file"),
            (true, false, "from-flag"),
        ] {
            let settings = layers(flag, variable).load().expect("valid settings");
            assert_eq!(settings.job, job);
            assert_eq!(settings.keep_generations, 7);
            assert_eq!(settings.job_name_origin, JobNameOrigin::Given);
        }
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        let given = Given {
            flags: vec![
                ("memory-budget", "16MiB"),
                ("metrics-listen", "localhost:9184"),
            ],
            variables: vec![
                ("REPRIEVE_TERM_GRACE", "10"),
                ("REPRIEVE_DEADLINE_MARIGN", "secret"),
                ("REPRIEVE_STORE", "s3://key:hush@bucket/x?token=hush"),
                ("PATH", "/bin"),
            ],
            // Overridden by nothing valid, but wrong all the same.
            file: Some(
                "stroe = \"hush\"\nterm-grace = \"1 fortnight\"\ncompression = [\"low\"]\ncriu = \"./criu\"",
            ),
        };
        assert_eq!(
            given.load().expect_err("nothing here is valid"),
            "\
reprieve: 9 settings are not valid
  - REPRIEVE_DEADLINE_MARIGN (environment variable REPRIEVE_DEADLINE_MARIGN): there is no such setting: did you mean \"REPRIEVE_DEADLINE_MARGIN\"?
    correct the name or remove it
  - compression (file DIR/reprieve.toml): is a table or a list
    write a single value: one of auto, low, medium, high
  - stroe (file DIR/reprieve.toml): there is no such setting: did you mean \"store\"?
    correct the name or remove it
  - criu = \"./criu\" (file DIR/reprieve.toml): depends on the current directory
    write a name without slashes or an absolute path
  - term-grace = \"1 fortnight\" (file DIR/reprieve.toml): is not a duration: unknown time unit \"fortnight\", supported units: ns, us/µs, ms, sec, min, hours, days, weeks, months, years (and few variations)
    write a duration with its unit like 25s or 2m, from 1s to 24h
  - store = \"s3://[hidden]@bucket/x\" (environment variable REPRIEVE_STORE): holds more than an address; credentials in it would end up in logs
    write s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///DIRECTORY; credentials come from the machine's role or the usual variables
  - term-grace = \"10\" (environment variable REPRIEVE_TERM_GRACE): has no unit
    write \"10s\" if seconds are meant
  - memory-budget = \"16MiB\" (flag --memory-budget): is outside these limits
    write a size like 64MiB, from 32MiB to 1024GiB
  - metrics-listen = \"localhost:9184\" (flag --metrics-listen): is not an IP address and a port
    write an IP address and a port like 0.0.0.0:9184 or [::]:9184
  remedy: nothing was started; `reprieve run --help` lists every setting
  exit code: 174 (settings invalid)
"
        );
    }

    /// A value of a setting, and the part of the message that it leads to; no part for a valid one.
    #[test]
    fn values_by_kind() {
        let table: &[(&str, &str, Option<&str>)] = &[
            ("store", "file:///var/snapshots", None),
            ("store", "s3://bucket", None),
            ("store", "s3:///prefix", Some("names no bucket")),
            ("store", "gs://bucket/prefix", None),
            ("store", "az://container/prefix", None),
            ("store", "az:///prefix", Some("names no bucket")),
            ("azure-account", "account1", None),
            ("azure-account", "Account", Some("3 to 24")),
            (
                "store",
                "file://var/snapshots",
                Some("a directory needs three slashes"),
            ),
            ("store", "file:///", Some("names no directory")),
            (
                "store",
                "gcs://bucket",
                Some("no kind of store called \"gcs\""),
            ),
            ("store", "/var/snapshots", Some("is not a URL")),
            ("store", "s3://a@bucket", Some("\"s3://[hidden]@bucket\"")),
            ("s3-endpoint", "https://minio:9000", None),
            ("webhook", "http://127.0.0.1:8000/told", None),
            ("webhook", "https://example.net/told", None),
            (
                "webhook",
                "ftp://example.net/told",
                Some("is not reached by \"ftp\""),
            ),
            ("lifecycle-hook", "a/b_c-9", None),
            (
                "lifecycle-hook",
                "a.b",
                Some("is not the name of a lifecycle hook"),
            ),
            (
                "s3-endpoint",
                "minio:9000",
                Some("is not reached by \"minio\""),
            ),
            (
                "s3-endpoint",
                "http://u:p@minio",
                Some("\"http://[hidden]@minio\""),
            ),
            ("s3-region", "eu central", Some("not the name of a region")),
            ("job", "a.b_c-9", None),
            ("job", ".hidden", Some("not starting with a dot")),
            ("job", "a/b", Some("1 to 128 of")),
            ("job", "", Some("1 to 128 of")),
            ("keep-generations", "1", Some("from 2 to 1000")),
            ("keep-generations", "-3", Some("from 2 to 1000")),
            ("compression", "hihg", Some("did you mean \"high\"?")),
            ("compression", "LOW", Some("did you mean \"low\"?")),
            ("stop-grace", "0s", None),
            ("term-grace", "0s", Some("outside these limits")),
            ("term-grace", "25h", Some("outside these limits")),
            ("term-grace", "1.5", Some("write \"1.5s\"")),
            ("term-grace", "soon", Some("is not a duration")),
            ("memory-budget", "32MiB", None),
            ("memory-budget", "67108864B", None),
            ("memory-budget", "64MB", Some("units B, KiB, MiB, GiB")),
            ("memory-budget", "67108864", Some("units B, KiB, MiB, GiB")),
            (
                "memory-budget",
                "99999999999GiB",
                Some("outside these limits"),
            ),
            ("memory-budget", "MiB", Some("units B, KiB, MiB, GiB")),
            ("ghost-limit", "4GiB", Some("outside these limits")),
            (
                "preserve",
                "/data:data",
                Some("is not an absolute path: data"),
            ),
            ("preserve", "/a/../b", Some("has a segment . or ..")),
            ("preserve-exclude", "a//b", Some("is not an absolute path")),
            ("listen-remap", "10.0.0.1", Some("is not two addresses")),
            (
                "listen-remap",
                "10.0.0.1:10.0.0.2,[::1]:10.0.0.2",
                Some("cannot stand for one another"),
            ),
            ("checkpointed-exit-code", "0", None),
            (
                "checkpointed-exit-code",
                "256",
                Some("not a number from 0 to 255"),
            ),
            (
                "checkpointed-exit-code",
                "171",
                Some("already means \"no valid snapshot\""),
            ),
            ("criu", "criu-4.2", None),
            ("criu", "bin/criu", Some("depends on the current directory")),
            ("work-dir", "scratch", Some("not an absolute path")),
            ("metrics-listen", "0.0.0.0:9184", None),
            (
                "metrics-listen",
                ":9184",
                Some("not an IP address and a port"),
            ),
            ("log", "off", None),
            ("log", "INFO", None),
            (
                "log",
                "inof",
                Some("\"inof\" is not a level: did you mean \"info\"?"),
            ),
            ("log", "info,reprieve=loud", Some("is not a filter")),
        ];
        for (name, value, part) in table {
            let result = flags(&[(name, value)]).load();
            match (result, part) {
                (Ok(_), None) => {}
                (Err(message), Some(part)) => {
                    assert!(message.contains(part), "{name}={value}: {message}")
                }
                (result, _) => panic!("{name}={value}: {result:?}"),
            }
        }
    }

    #[test]
    fn a_socket_path_must_fit_the_kernel() {
        let long: &'static str = format!("/{}", "x".repeat(SOCKET_PATH_LIMIT)).leak();
        assert!(
            flags(&[("control-socket", &long[..SOCKET_PATH_LIMIT])])
                .load()
                .is_ok()
        );
        let message = flags(&[("control-socket", long)])
            .load()
            .expect_err("one byte too many");
        assert!(
            message.contains("the kernel takes at most 107"),
            "{message}"
        );
    }

    #[test]
    fn zero_for_checkpointed_needs_the_flag() {
        let remedy = "give `--checkpointed-exit-code 0` as a flag";
        for given in [
            file("checkpointed-exit-code = 0"),
            variables(&[("REPRIEVE_CHECKPOINTED_EXIT_CODE", "0")]),
        ] {
            let message = given.load().expect_err("0 was not asked for on purpose");
            assert!(message.contains(remedy), "{message}");
        }
        let settings = flags(&[("checkpointed-exit-code", "0")])
            .load()
            .expect("on purpose");
        assert_eq!(settings.checkpointed_exit_code, 0);
        assert!(
            settings.warnings[0].starts_with("checkpointed-exit-code is 0"),
            "{:?}",
            settings.warnings
        );
    }

    #[test]
    fn dangerous_settings_warn() {
        let warnings = |given: Given| given.load().expect("valid settings").warnings.join("\n");
        let store = ("store", "file:///s");
        assert_eq!(warnings(flags(&[store])), "");
        assert!(
            warnings(flags(&[store, ("on-no-valid-snapshot", "start")]))
                .contains("repeats all of its work")
        );
        assert!(warnings(flags(&[store, ("s3-endpoint", "http://m:1")])).contains("has no effect"));
    }

    #[test]
    fn a_margin_must_leave_time() {
        let settings = &[("store", "file:///s"), ("deadline-margin", "10s")];
        let message = flags(settings)
            .load()
            .expect_err("nothing is left of term-grace");
        assert!(
            message.contains(
                "deadline-margin = 10s (flag --deadline-margin): leaves no time for a checkpoint within \
                 term-grace = 10s (built-in)"
            ),
            "{message}"
        );
        // Without a store nothing has to fit.
        assert!(flags(&settings[1..]).load().is_ok());
    }

    #[test]
    fn a_promise_that_is_kept_by_seeding_needs_seeding() {
        let with = |keep, seed| {
            let settings = [
                ("store", "file:///s"),
                ("keep-promise", keep),
                ("seed", seed),
            ];
            flags(&settings).load()
        };
        let message = with("seed", "off").expect_err("nothing would be done");
        assert!(
            message.contains("nothing is stored ahead with seed = off (flag --seed)"),
            "{message}"
        );
        for (keep, seed) in [("seed", "on"), ("checkpoint", "off"), ("warn", "off")] {
            assert!(with(keep, seed).is_ok(), "{keep} {seed}");
        }
    }

    #[test]
    fn what_follows_from_a_launch_template_is_a_baseline_by_its_name() {
        let template = CpuBaseline::from_text("auto-from-launch-template");
        assert_eq!(template, Some(CpuBaseline::LaunchTemplate));
        assert_eq!(CpuBaseline::from_text("auto"), None);
    }

    #[test]
    fn empty_variables_count_as_not_set() {
        let settings = variables(&[
            ("REPRIEVE_JOB", ""),
            ("REPRIEVE_CONFIG", ""),
            ("REPRIEVE_TYPO", ""),
        ])
        .load();
        assert_eq!(
            settings.expect("nothing is set").job_name_origin,
            JobNameOrigin::Derived
        );
    }

    #[test]
    fn kubernetes_services_are_not_settings() {
        let service = &[
            ("REPRIEVE_SERVICE_HOST", "10.0.0.1"),
            ("REPRIEVE_SERVICE_PORT", "80"),
            ("REPRIEVE_METRICS_SERVICE_PORT_HTTP", "80"),
            ("REPRIEVE_PORT", "tcp://10.0.0.1:80"),
            ("REPRIEVE_METRICS_PORT", "tcp://10.0.0.1:80"),
            ("REPRIEVE_PORT_80_TCP", "tcp://10.0.0.1:80"),
            ("REPRIEVE_PORT_80_TCP_ADDR", "10.0.0.1"),
        ];
        variables(service)
            .load()
            .expect("none of them is meant for us");
        for (name, value) in [
            ("REPRIEVE_METRICS_PORT", "9184"),
            ("REPRIEVE_PORT_80", "tcp://10.0.0.1:80"),
            ("REPRIEVE_PORTS", "80"),
        ] {
            assert!(
                variables(&[(name, value)]).load().is_err(),
                "{name}={value} is a slip of the user's"
            );
        }
    }

    #[test]
    fn a_named_file_must_be_good() {
        for (text, part) in [
            ("job = ", "is not TOML"),
            ("job = \"a\"\njob = \"b\"", "is not TOML"),
            (
                "term-grace = \"1s\"\nterm_grace = \"2s\"",
                "is there twice, once with \"-\" and once with \"_\"",
            ),
            ("s3-path-style = true", "s3-path-style = \"true\""),
        ] {
            let message = file(text).load().expect_err(text);
            assert!(message.contains(part), "{message}");
            assert!(message.contains("reprieve.toml"), "{message}");
        }
        let message = variables(&[("REPRIEVE_CONFIG", "/nowhere.toml")])
            .load()
            .expect_err("the file is missing");
        assert!(
            message.contains(
                "config = \"/nowhere.toml\" (environment variable REPRIEVE_CONFIG): the settings file cannot be read"
            ),
            "{message}"
        );
    }

    #[test]
    fn a_broken_file_is_not_quoted() {
        let message = file("password = hush hush").load().expect_err("no quotes");
        assert!(!message.contains("hush"), "{message}");
        assert!(message.contains("line 1"), "{message}");
    }

    #[test]
    fn a_huge_file_is_refused_unread() {
        let text: &'static str = "#".repeat(256 * 1024 + 1).leak();
        let message = file(text).load().expect_err("one byte too many");
        assert!(message.contains("larger than 256 KiB"), "{message}");
    }

    #[test]
    fn clients_look_away_from_settings_they_do_not_use() {
        let client = |given: Given| given.with(ClientSettings::load);
        let settings = client(variables(&[
            ("REPRIEVE_CONTROL_SOCKET", "/c.sock"),
            ("REPRIEVE_TERM_GRACE", "never"),
            ("REPRIEVE_TYPO", "x"),
        ]));
        assert_eq!(
            settings.expect("both are valid").control_socket,
            Path::new("/c.sock")
        );
        assert!(client(variables(&[("REPRIEVE_CHECKPOINT_TIMEOUT", "never")])).is_err());
        assert!(client(file("job = ")).is_err());
    }

    #[test]
    fn derived_names_are_valid_and_follow_the_command_line() {
        let derived =
            |argv: &[&str]| derived_job_name(&argv.iter().map(OsString::from).collect::<Vec<_>>());
        for app in ["python", "/a b/ü", "..", "/", ".hidden", &"x".repeat(300)] {
            let name = derived(&[app]);
            assert!(check(Kind::JobName, &name).is_ok(), "{app}: {name}");
        }
        assert_eq!(derived(&["a", "b"]), derived(&["a", "b"]));
        assert_ne!(derived(&["a", "b"]), derived(&["a", "c"]));
        assert_ne!(derived(&["a", "b c"]), derived(&["a", "b", "c"]));
        assert!(derived(&["/usr/bin/python3", "x"]).starts_with("python3-"));
    }

    #[test]
    fn slips_are_recognised_and_strangers_are_not() {
        let hint = |written: &str| {
            did_you_mean(
                written,
                TABLE.iter().map(|setting| setting.name.to_string()),
            )
        };
        for (written, meant) in [
            ("stor", "store"),
            ("jbo", "job"),
            ("deadline_margin", "deadline-margin"),
            ("Term-Grace", "term-grace"),
            ("keep-generation", "keep-generations"),
        ] {
            assert_eq!(hint(written), format!(": did you mean \"{meant}\"?"));
        }
        assert_eq!(hint("aws-secret-access-key"), "");
        assert_eq!(hint("port"), "");
    }

    #[test]
    fn document_is_generated() {
        crate::stored::assert_document("settings.md", &document());
    }
}
