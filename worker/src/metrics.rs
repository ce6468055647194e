//! Every metric in one table, and the functions that record them. `endpoint` serves them.
//!
//! [`TABLE`] is the only list of metrics; docs/metrics.md follows from it. Others record through the functions below, so
//! that neither names nor label values can be made up elsewhere, and every label has a closed set of values. Without
//! [`Exporter::install`] recording does nothing. All series but histograms exist from the start, so that a rate over
//! the first failure is not lost.

use std::time::{Duration, SystemTime};

use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use reprieve_core::checkup::{Finding, Reason};
use reprieve_core::lifecycle::Phase;
use reprieve_core::notice::{Fate, Source};
use reprieve_hooks::{Condition, Health};

use crate::named::named;
use crate::store::StoreErrorKind;

/// Histogram samples pile up until somebody scrapes; this folds them when nobody does.
const UPKEEP_PERIOD: Duration = Duration::from_secs(60);

/// Upper bounds of the buckets of every histogram, in seconds.
const BUCKETS: [f64; 18] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    120.0, 300.0, 600.0,
];

named! {
    /// What the supervisor is doing.
    pub enum State {
        Booting = "booting",
        Running = "running",
        Checkpointing = "checkpointing",
        Over = "over",
    }
}

impl From<Phase> for State {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Booting => Self::Booting,
            Phase::Running => Self::Running,
            Phase::Checkpointing => Self::Checkpointing,
            Phase::Over => Self::Over,
        }
    }
}

named! {
    /// How a checkpoint ended.
    pub enum CheckpointOutcome {
        Durable = "durable",
        Failed = "failed",
        Refused = "refused",
        Fenced = "fenced",
        TimedOut = "timed_out",
    }
}

named! {
    /// How a rehearsal of a checkpoint ended.
    pub enum RehearsalOutcome { Worked = "worked", Failed = "failed", GivenUp = "given_up", }
}

named! {
    /// The steps of a checkpoint.
    pub enum CheckpointPhase {
        Prepare = "prepare",
        Dump = "dump",
        Preserve = "preserve",
        Drain = "drain",
        Upload = "upload",
        Commit = "commit",
    }
}

named! {
    /// What became of a snapshot, or of the search for one, at boot.
    pub enum RestoreOutcome {
        Resumed = "resumed",
        PassedOver = "passed_over",
        ColdStart = "cold_start",
        Failed = "failed",
    }
}

named! {
    /// Whether a checkpoint can be taken, and if not, why.
    pub enum Checkpointable {
        Yes = "yes",
        Booting = "booting",
        NoStore = "no_store",
        /// Processes would be left out.
        Orphans = "orphans",
        /// Something in its processes, which `reprieve_checkpoint_obstacles` tells.
        Obstacle = "obstacle",
        /// The latest one failed.
        Failed = "failed",
        Over = "over",
    }
}

named! {
    /// Whether this worker owns the job.
    pub enum Lease {
        None = "none",
        Held = "held",
        /// Another worker owns it.
        Lost = "lost",
        Released = "released",
    }
}

named! {
    /// The steps of a restore.
    pub enum RestorePhase { Select = "select", Restore = "restore", }
}

named! {
    /// Which bytes of a snapshot are counted.
    pub enum BytesKind { Logical = "logical", Zero = "zero", New = "new", Stored = "stored", }
}

named! {
    /// How a source's asking ended.
    pub enum PollOutcome { Answered = "answered", Failed = "failed", }
}

named! {
    /// What became of a message of the queue, in the order of [`reprieve_hooks::Message::ALL`].
    pub enum MessageOutcome {
        Command = "command",
        Event = "event",
        NotNeeded = "not_needed",
        GivenBack = "given_back",
        Buried = "dead_letter",
    }
}

named! {
    /// What was announced or asked.
    pub enum NoticeKind {
        Terminate = "terminate",
        Stop = "stop",
        Hibernate = "hibernate",
        Maintenance = "maintenance",
        AtRisk = "at_risk",
        Withdrawn = "withdrawn",
        Checkpoint = "checkpoint",
        Order = "order",
    }
}

impl From<Fate> for NoticeKind {
    fn from(fate: Fate) -> Self {
        match fate {
            Fate::Terminate => Self::Terminate,
            Fate::Stop => Self::Stop,
            Fate::Hibernate => Self::Hibernate,
            Fate::Maintenance => Self::Maintenance,
            Fate::AtRisk => Self::AtRisk,
        }
    }
}

named! {
    /// What became of an announced end of the machine.
    pub enum DeadlineOutcome { Kept = "kept", InDanger = "in_danger", Missed = "missed", }
}

named! {
    /// How a program of the user's ended.
    pub enum HookOutcome { Ok = "ok", Failed = "failed", TimedOut = "timed_out", }
}

named! {
    /// How the app came to run.
    pub enum StartedHow { Scratch = "scratch", Resume = "resume", }
}

named! {
    /// Calls of the store port.
    pub enum StoreOperation {
        Get = "get",
        GetRange = "get_range",
        Size = "size",
        Put = "put",
        List = "list",
        Delete = "delete",
        Reach = "reach",
    }
}

named! {
    /// How one attempt at a store call ended.
    pub enum StoreOutcome {
        Ok = "ok",
        NotFound = "not_found",
        NoSuchStore = "no_such_store",
        Denied = "denied",
        ConditionFailed = "condition_failed",
        Conflict = "conflict",
        Throttled = "throttled",
        Unavailable = "unavailable",
        Full = "full",
        BadSize = "bad_size",
        Other = "other",
    }
}

named! {
    /// What the store's self-test found out.
    pub enum SelfTest {
        Passed = "passed",
        Failed = "failed",
        Skipped = "skipped",
    }
}

named! {
    /// The app's output streams.
    pub enum Stream { Stdout = "stdout", Stderr = "stderr", }
}

impl From<StoreErrorKind> for StoreOutcome {
    fn from(kind: StoreErrorKind) -> Self {
        match kind {
            StoreErrorKind::NotFound => Self::NotFound,
            StoreErrorKind::NoSuchStore => Self::NoSuchStore,
            StoreErrorKind::Denied => Self::Denied,
            StoreErrorKind::ConditionFailed => Self::ConditionFailed,
            StoreErrorKind::Conflict => Self::Conflict,
            StoreErrorKind::Throttled => Self::Throttled,
            StoreErrorKind::Unavailable => Self::Unavailable,
            StoreErrorKind::Full => Self::Full,
            StoreErrorKind::BadSize => Self::BadSize,
            StoreErrorKind::Other => Self::Other,
        }
    }
}

named! {
    /// Prometheus' kinds of metrics.
    pub enum Kind { Counter = "counter", Gauge = "gauge", Histogram = "histogram", }
}

named! {
    /// What a metric's number counts.
    pub enum Unit { Count = "count", Seconds = "seconds", Bytes = "bytes", Flag = "0 or 1", }
}

named! {
    /// Whether a metric keeps its name, labels and meaning within a major version.
    pub enum Stability { Stable = "stable", Unstable = "may change", }
}

/// The values a label can have.
#[derive(Clone, Copy, Debug)]
pub enum LabelValues {
    Closed(&'static [&'static str]),
    /// This build's version.
    Version,
}

impl LabelValues {
    fn all(self) -> &'static [&'static str] {
        match self {
            Self::Closed(values) => values,
            Self::Version => &[env!("CARGO_PKG_VERSION")],
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Label {
    pub name: &'static str,
    pub values: LabelValues,
}

/// One row of the table of metrics.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    pub labels: &'static [Label],
    pub stability: Stability,
    pub help: &'static str,
}

const fn label(name: &'static str, values: &'static [&'static str]) -> Label {
    Label {
        name,
        values: LabelValues::Closed(values),
    }
}

const STATE: Metric = Metric {
    name: "reprieve_state",
    kind: Kind::Gauge,
    unit: Unit::Flag,
    labels: &[label("state", State::NAMES)],
    stability: Stability::Stable,
    help: "1 for what the supervisor is doing, 0 for the others.",
};

const CHECKPOINTS: Metric = Metric {
    name: "reprieve_checkpoints_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[
        label("trigger", &Source::NAMES),
        label("outcome", CheckpointOutcome::NAMES),
    ],
    stability: Stability::Stable,
    help: "Checkpoints that ended, by what made them begin and how they ended.",
};

const CHECKPOINT_PHASE: Metric = Metric {
    name: "reprieve_checkpoint_phase_seconds",
    kind: Kind::Histogram,
    unit: Unit::Seconds,
    labels: &[label("phase", CheckpointPhase::NAMES)],
    stability: Stability::Unstable,
    help: "How long each step of a checkpoint took.",
};

const FROZEN: Metric = Metric {
    name: "reprieve_frozen_seconds",
    kind: Kind::Histogram,
    unit: Unit::Seconds,
    labels: &[],
    stability: Stability::Stable,
    help: "How long the job stood still for a checkpoint.",
};

const SNAPSHOT_BYTES: Metric = Metric {
    name: "reprieve_snapshot_bytes_total",
    kind: Kind::Counter,
    unit: Unit::Bytes,
    labels: &[label("kind", BytesKind::NAMES)],
    stability: Stability::Stable,
    help: "Bytes of snapshots: of the job's memory and files (logical), of those that were only zeros (zero), of \
           the memory that no earlier snapshot had (new), and written to the store (stored).",
};

const LAST_SNAPSHOT_TIMESTAMP: Metric = Metric {
    name: "reprieve_last_snapshot_timestamp_seconds",
    kind: Kind::Gauge,
    unit: Unit::Seconds,
    labels: &[],
    stability: Stability::Stable,
    help: "When the newest durable snapshot of the job was taken, since the Unix epoch; 0 while there is none. Its age \
           is `time()` minus this.",
};

const LAST_SNAPSHOT_GENERATION: Metric = Metric {
    name: "reprieve_last_snapshot_generation",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &[],
    stability: Stability::Stable,
    help: "The generation of the newest durable snapshot of the job; 0 while there is none.",
};

const WORK_AT_RISK: Metric = Metric {
    name: "reprieve_work_at_risk_seconds",
    kind: Kind::Gauge,
    unit: Unit::Seconds,
    labels: &[],
    stability: Stability::Stable,
    help: "How much work is lost if the machine goes this moment without a checkpoint: the age of the newest durable \
           snapshot, or how long the worker has run without one. 0 when nothing runs.",
};

const CHECKPOINTABLE: Metric = Metric {
    name: "reprieve_checkpointable",
    kind: Kind::Gauge,
    unit: Unit::Flag,
    labels: &[label("verdict", Checkpointable::NAMES)],
    stability: Stability::Stable,
    help: "1 for what is true of the job: it can be checkpointed (yes), or why not, or that the latest checkpoint failed; 0 \
           for the others.",
};

const OBSTACLES: Metric = Metric {
    name: "reprieve_checkpoint_obstacles",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &[label("reason", &REASONS)],
    stability: Stability::Stable,
    help: "What was found in the job's processes that CRIU cannot store, by its kind; docs/checkup.md explains each. \
           Looked for every `--checkup-interval`.",
};

const REHEARSALS: Metric = Metric {
    name: "reprieve_rehearsals_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[label("outcome", RehearsalOutcome::NAMES)],
    stability: Stability::Stable,
    help: "Checkpoints that were thrown away, to see whether one works (`--rehearse`). given_up: a checkpoint was wanted \
           meanwhile.",
};

const REHEARSAL_FROZEN: Metric = Metric {
    name: "reprieve_rehearsal_frozen_seconds",
    kind: Kind::Gauge,
    unit: Unit::Seconds,
    labels: &[],
    stability: Stability::Stable,
    help: "How long the job stood still in the latest rehearsal that worked.",
};

const REASONS: [&str; Reason::ALL.len()] = {
    let mut names = [""; Reason::ALL.len()];
    let mut at = 0;
    while at < names.len() {
        names[at] = Reason::ALL[at].as_str();
        at += 1;
    }
    names
};

const DEADLINE_MARGIN: Metric = Metric {
    name: "reprieve_deadline_margin_seconds",
    kind: Kind::Histogram,
    unit: Unit::Seconds,
    labels: &[],
    stability: Stability::Stable,
    help: "What was left of the time to commit when the snapshot of an eviction was durable.",
};

const LEASE: Metric = Metric {
    name: "reprieve_lease",
    kind: Kind::Gauge,
    unit: Unit::Flag,
    labels: &[label("state", Lease::NAMES)],
    stability: Stability::Stable,
    help: "1 for whether this worker owns the job, 0 for the others.",
};

const RESTORES: Metric = Metric {
    name: "reprieve_restores_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[label("outcome", RestoreOutcome::NAMES)],
    stability: Stability::Stable,
    help: "What became of the snapshots at boot: the job resumed from one, one was passed over for an older one, the \
           app started from scratch, or neither was possible.",
};

const RESTORE_PHASE: Metric = Metric {
    name: "reprieve_restore_phase_seconds",
    kind: Kind::Histogram,
    unit: Unit::Seconds,
    labels: &[label("phase", RestorePhase::NAMES)],
    stability: Stability::Unstable,
    help: "How long each step of a restore took.",
};

const NOTICES: Metric = Metric {
    name: "reprieve_notices_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[
        label("source", &Source::NAMES),
        label("kind", NoticeKind::NAMES),
    ],
    stability: Stability::Stable,
    help: "Announcements that the machine goes, or requests for a checkpoint, each counted once.",
};

const SOURCE_UP: Metric = Metric {
    name: "reprieve_source_up",
    kind: Kind::Gauge,
    unit: Unit::Flag,
    labels: &[label("source", &Source::NAMES)],
    stability: Stability::Stable,
    help: "1 for each source of notices that works; 0 for those that are switched off, not there or out of order.",
};

const SOURCE_SUCCESS: Metric = Metric {
    name: "reprieve_source_last_success_timestamp_seconds",
    kind: Kind::Gauge,
    unit: Unit::Seconds,
    labels: &[label("source", &Source::NAMES)],
    stability: Stability::Stable,
    help: "When each source was last seen to work, since the Unix epoch; 0 if never. Its age is `time()` minus this.",
};

const SOURCE_FAILURES: Metric = Metric {
    name: "reprieve_source_failures",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &[label("source", &Source::NAMES)],
    stability: Stability::Unstable,
    help: "Tries in a row that failed, of each source.",
};

const SOURCE_POLLS: Metric = Metric {
    name: "reprieve_source_polls_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[
        label("source", &Source::NAMES),
        label("outcome", PollOutcome::NAMES),
    ],
    stability: Stability::Unstable,
    help: "Times that each source asked what it listens to, a metadata service or the queue, and whether it was answered.",
};

const SOURCE_RESTARTS: Metric = Metric {
    name: "reprieve_source_restarts_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[label("source", &Source::NAMES)],
    stability: Stability::Unstable,
    help: "Times that each source broke off, by a bug in it, and was begun again.",
};

const QUEUE_MESSAGES: Metric = Metric {
    name: "reprieve_queue_messages_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[label("outcome", MessageOutcome::NAMES)],
    stability: Stability::Unstable,
    help: "Messages that were taken from the queue: a command that was answered, an event that concerns this machine, one \
           from which nothing follows, one for another worker that was given back, or one that nobody can use.",
};

const DEADLINES: Metric = Metric {
    name: "reprieve_deadlines_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[label("outcome", DeadlineOutcome::NAMES)],
    stability: Stability::Stable,
    help: "Announced ends of the machine: the job was stored before (kept), it was not (missed); and those of which it was \
           known beforehand that there would hardly be time (in_danger).",
};

const TO_SAFE: Metric = Metric {
    name: "reprieve_seconds_to_safe",
    kind: Kind::Gauge,
    unit: Unit::Seconds,
    labels: &[],
    stability: Stability::Stable,
    help: "How long a checkpoint would take that began when this was last renewed, by what was measured, hardly ever more; \
           0 before the first one.",
};

const DIED_WITHOUT_NOTICE: Metric = Metric {
    name: "reprieve_died_without_notice_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[],
    stability: Stability::Stable,
    help: "Owners of the job that had not said goodbye when this start took it over from them.",
};

const HOOKS: Metric = Metric {
    name: "reprieve_hooks_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[label("outcome", HookOutcome::NAMES)],
    stability: Stability::Unstable,
    help: "Your own programs and posts to the webhook, by how they ended.",
};

const APP_STARTS: Metric = Metric {
    name: "reprieve_app_starts_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[label("how", StartedHow::NAMES)],
    stability: Stability::Stable,
    help: "How the app came to run.",
};

const STORE_REQUESTS: Metric = Metric {
    name: "reprieve_store_requests_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[
        label("operation", StoreOperation::NAMES),
        label("outcome", StoreOutcome::NAMES),
    ],
    stability: Stability::Unstable,
    help: "Attempts at store calls, by how they ended.",
};

const STORE_RETRIES: Metric = Metric {
    name: "reprieve_store_retries_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[],
    stability: Stability::Unstable,
    help: "Store calls that were tried again.",
};

const STORE_HEDGES: Metric = Metric {
    name: "reprieve_store_hedges_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[],
    stability: Stability::Unstable,
    help: "Uploads and fetches of parts that took so long that they were begun a second time.",
};

const STORE_SELF_TESTS: Metric = Metric {
    name: "reprieve_store_self_tests_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[label("outcome", SelfTest::NAMES)],
    stability: Stability::Unstable,
    help: "Whether the store was found to keep the conditions of writes at the start.",
};

const OUTPUT_BYTES: Metric = Metric {
    name: "reprieve_output_bytes_total",
    kind: Kind::Counter,
    unit: Unit::Bytes,
    labels: &[label("stream", Stream::NAMES)],
    stability: Stability::Stable,
    help: "Bytes of the app's output that were passed on.",
};

const OUTPUT_DROPPED: Metric = Metric {
    name: "reprieve_output_dropped_bytes_total",
    kind: Kind::Counter,
    unit: Unit::Bytes,
    labels: &[],
    stability: Stability::Stable,
    help: "Bytes of the app's output that nobody took in time.",
};

const LOG_LINES_DROPPED: Metric = Metric {
    name: "reprieve_log_lines_dropped_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[],
    stability: Stability::Stable,
    help: "Our own log lines that nobody took in time.",
};

const PRESERVED_FILES: Metric = Metric {
    name: "reprieve_preserved_files",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &[],
    stability: Stability::Unstable,
    help: "Paths in the newest snapshot that travel with the job, directories and deleted ones included.",
};

const PRESERVED_BYTES: Metric = Metric {
    name: "reprieve_preserved_bytes",
    kind: Kind::Gauge,
    unit: Unit::Bytes,
    labels: &[],
    stability: Stability::Unstable,
    help: "Bytes of contents of those files, without holes and zeros.",
};

const PRESERVED_READ: Metric = Metric {
    name: "reprieve_preserved_read_bytes_total",
    kind: Kind::Counter,
    unit: Unit::Bytes,
    labels: &[],
    stability: Stability::Unstable,
    help: "Bytes of files that were read while the job was frozen, to see what changed.",
};

const PRESERVED_CHANGED: Metric = Metric {
    name: "reprieve_preserved_changed_bytes_total",
    kind: Kind::Counter,
    unit: Unit::Bytes,
    labels: &[],
    stability: Stability::Unstable,
    help: "Of them, bytes that were not in the store already, before packing.",
};

const PRESERVED_PUT: Metric = Metric {
    name: "reprieve_preserved_put_bytes_total",
    kind: Kind::Counter,
    unit: Unit::Bytes,
    labels: &[],
    stability: Stability::Unstable,
    help: "Bytes of preserved files that were written before a restore.",
};

const SEEDED: Metric = Metric {
    name: "reprieve_seeded_bytes_total",
    kind: Kind::Counter,
    unit: Unit::Bytes,
    labels: &[],
    stability: Stability::Unstable,
    help: "Bytes that were written to the store ahead of the next snapshot.",
};

const UNSEEDED: Metric = Metric {
    name: "reprieve_unseeded_bytes",
    kind: Kind::Gauge,
    unit: Unit::Bytes,
    labels: &[],
    stability: Stability::Unstable,
    help: "The job's memory that the latest look found changed and not in the store: what the next checkpoint has to store, \
           besides what changes until then.",
};

const ZOMBIES: Metric = Metric {
    name: "reprieve_zombies_reaped_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[],
    stability: Stability::Stable,
    help: "Ended processes other than the app that PID 1 had to wait for.",
};

const BUILD_INFO: Metric = Metric {
    name: "reprieve_build_info",
    kind: Kind::Gauge,
    unit: Unit::Flag,
    labels: &[Label {
        name: "version",
        values: LabelValues::Version,
    }],
    stability: Stability::Stable,
    help: "Always 1; the label says which version runs.",
};

/// Every metric there is.
pub const TABLE: &[Metric] = &[
    STATE,
    CHECKPOINTS,
    CHECKPOINT_PHASE,
    FROZEN,
    SNAPSHOT_BYTES,
    LAST_SNAPSHOT_TIMESTAMP,
    LAST_SNAPSHOT_GENERATION,
    WORK_AT_RISK,
    CHECKPOINTABLE,
    OBSTACLES,
    REHEARSALS,
    REHEARSAL_FROZEN,
    DEADLINE_MARGIN,
    LEASE,
    RESTORES,
    RESTORE_PHASE,
    NOTICES,
    SOURCE_UP,
    SOURCE_SUCCESS,
    SOURCE_FAILURES,
    SOURCE_POLLS,
    SOURCE_RESTARTS,
    QUEUE_MESSAGES,
    DEADLINES,
    TO_SAFE,
    DIED_WITHOUT_NOTICE,
    HOOKS,
    APP_STARTS,
    STORE_REQUESTS,
    STORE_RETRIES,
    STORE_HEDGES,
    STORE_SELF_TESTS,
    OUTPUT_BYTES,
    OUTPUT_DROPPED,
    LOG_LINES_DROPPED,
    PRESERVED_FILES,
    PRESERVED_BYTES,
    PRESERVED_READ,
    PRESERVED_CHANGED,
    PRESERVED_PUT,
    SEEDED,
    UNSEEDED,
    ZOMBIES,
    BUILD_INFO,
];

/// The supervisor is in this state now.
pub fn state(now: State) {
    for state in State::ALL {
        let value = if *state == now { 1.0 } else { 0.0 };
        ::metrics::gauge!(STATE.name, "state" => state.as_str()).set(value);
    }
}

pub fn checkpoint_ended(trigger: Source, outcome: CheckpointOutcome) {
    ::metrics::counter!(CHECKPOINTS.name, "trigger" => trigger.as_str(), "outcome" => outcome.as_str()).increment(1);
}

pub fn checkpoint_phase_lasted(phase: CheckpointPhase, duration: Duration) {
    ::metrics::histogram!(CHECKPOINT_PHASE.name, "phase" => phase.as_str()).record(duration);
}

/// The job stood still for this long.
pub fn frozen(duration: Duration) {
    ::metrics::histogram!(FROZEN.name).record(duration);
}

pub fn snapshot_bytes(kind: BytesKind, bytes: u64) {
    ::metrics::counter!(SNAPSHOT_BYTES.name, "kind" => kind.as_str()).increment(bytes);
}

/// The newest durable snapshot of the job, taken here or found at boot.
pub fn last_snapshot(generation: u64, taken: SystemTime) {
    // A clock before 1970 leaves nothing better to say than "none".
    let since_epoch = taken
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    ::metrics::gauge!(LAST_SNAPSHOT_TIMESTAMP.name).set(since_epoch.as_secs_f64());
    // Exact up to 2^53 generations.
    ::metrics::gauge!(LAST_SNAPSHOT_GENERATION.name).set(generation as f64);
}

pub fn work_at_risk(age: Duration) {
    ::metrics::gauge!(WORK_AT_RISK.name).set(age.as_secs_f64());
}

pub fn checkpointable(now: Checkpointable) {
    for verdict in Checkpointable::ALL {
        let value = if *verdict == now { 1.0 } else { 0.0 };
        ::metrics::gauge!(CHECKPOINTABLE.name, "verdict" => verdict.as_str()).set(value);
    }
}

/// What stands in the way now.
pub fn obstacles(found: &[Finding]) {
    for reason in Reason::ALL {
        let count = found.iter().filter(|one| one.reason == reason).count();
        // Exact up to 2^53 of them.
        ::metrics::gauge!(OBSTACLES.name, "reason" => reason.as_str()).set(count as f64);
    }
}

pub fn rehearsal_ended(outcome: RehearsalOutcome) {
    ::metrics::counter!(REHEARSALS.name, "outcome" => outcome.as_str()).increment(1);
}

/// The job stood still for this long in one that worked.
pub fn rehearsal_froze(duration: Duration) {
    ::metrics::gauge!(REHEARSAL_FROZEN.name).set(duration.as_secs_f64());
}

pub fn lease(now: Lease) {
    for state in Lease::ALL {
        let value = if *state == now { 1.0 } else { 0.0 };
        ::metrics::gauge!(LEASE.name, "state" => state.as_str()).set(value);
    }
}

/// An eviction's snapshot was durable with this much time left.
pub fn deadline_margin(left: Duration) {
    ::metrics::histogram!(DEADLINE_MARGIN.name).record(left);
}

pub fn restore_ended(outcome: RestoreOutcome) {
    ::metrics::counter!(RESTORES.name, "outcome" => outcome.as_str()).increment(1);
}

pub fn restore_phase_lasted(phase: RestorePhase, duration: Duration) {
    ::metrics::histogram!(RESTORE_PHASE.name, "phase" => phase.as_str()).record(duration);
}

pub fn notice(source: Source, kind: NoticeKind) {
    ::metrics::counter!(NOTICES.name, "source" => source.as_str(), "kind" => kind.as_str())
        .increment(1);
}

pub fn deadline(outcome: DeadlineOutcome) {
    ::metrics::counter!(DEADLINES.name, "outcome" => outcome.as_str()).increment(1);
}

/// How long it would take to be safe, if that is known.
pub fn to_safe(needed: Option<Duration>) {
    ::metrics::gauge!(TO_SAFE.name).set(needed.unwrap_or_default().as_secs_f64());
}

pub fn died_without_notice() {
    ::metrics::counter!(DIED_WITHOUT_NOTICE.name).increment(1);
}

pub fn hook_ended(outcome: HookOutcome) {
    ::metrics::counter!(HOOKS.name, "outcome" => outcome.as_str()).increment(1);
}

/// How a source is now.
pub fn source(health: &Health) {
    let name = health.source.as_str();
    let up = health.condition == Condition::Working;
    ::metrics::gauge!(SOURCE_UP.name, "source" => name).set(if up { 1.0 } else { 0.0 });
    // Exact for the next thousands of years.
    let seconds = health.last_success.map_or(0.0, |at| at.0 as f64 / 1000.0);
    ::metrics::gauge!(SOURCE_SUCCESS.name, "source" => name).set(seconds);
    ::metrics::gauge!(SOURCE_FAILURES.name, "source" => name).set(f64::from(health.failures));
    let counts = health.counts;
    let polls = [
        (PollOutcome::Answered, counts.answered),
        (PollOutcome::Failed, counts.failed),
    ];
    for (outcome, count) in polls {
        ::metrics::counter!(SOURCE_POLLS.name, "source" => name, "outcome" => outcome.as_str())
            .absolute(count);
    }
    ::metrics::counter!(SOURCE_RESTARTS.name, "source" => name).absolute(counts.restarts);
    for (outcome, count) in MessageOutcome::NAMES.iter().zip(counts.messages) {
        // Only the queue has messages; the other sources must not put its numbers back to 0, and do not.
        ::metrics::counter!(QUEUE_MESSAGES.name, "outcome" => *outcome).absolute(count);
    }
}

pub fn app_started(how: StartedHow) {
    ::metrics::counter!(APP_STARTS.name, "how" => how.as_str()).increment(1);
}

/// One attempt at a store call ended.
pub fn store_request_ended(operation: StoreOperation, outcome: StoreOutcome) {
    ::metrics::counter!(STORE_REQUESTS.name, "operation" => operation.as_str(), "outcome" => outcome.as_str())
        .increment(1);
}

pub fn store_hedged() {
    ::metrics::counter!(STORE_HEDGES.name).increment(1);
}

pub fn store_self_test(outcome: SelfTest) {
    ::metrics::counter!(STORE_SELF_TESTS.name, "outcome" => outcome.as_str()).increment(1);
}

pub fn store_retried() {
    ::metrics::counter!(STORE_RETRIES.name).increment(1);
}

pub fn output_passed_on(stream: Stream, bytes: u64) {
    ::metrics::counter!(OUTPUT_BYTES.name, "stream" => stream.as_str()).increment(bytes);
}

pub fn output_dropped(bytes: u64) {
    ::metrics::counter!(OUTPUT_DROPPED.name).increment(bytes);
}

pub fn log_lines_dropped(lines: u64) {
    ::metrics::counter!(LOG_LINES_DROPPED.name).increment(lines);
}

pub fn preserved(sizes: &reprieve_core::manifest::Preserved, read: u64) {
    ::metrics::counter!(PRESERVED_READ.name).increment(read);
    ::metrics::counter!(PRESERVED_CHANGED.name).increment(sizes.changed);
    // Exact up to 2^53.
    ::metrics::gauge!(PRESERVED_FILES.name).set(sizes.files as f64);
    ::metrics::gauge!(PRESERVED_BYTES.name).set(sizes.bytes as f64);
}

pub fn put_in_place(bytes: u64) {
    ::metrics::counter!(PRESERVED_PUT.name).increment(bytes);
}

pub fn seeded(stored: u64, unseeded: u64) {
    ::metrics::counter!(SEEDED.name).increment(stored);
    // Exact up to 2^53 bytes.
    ::metrics::gauge!(UNSEEDED.name).set(unseeded as f64);
}

pub fn zombies_reaped(processes: u64) {
    ::metrics::counter!(ZOMBIES.name).increment(processes);
}

/// Why metrics cannot be recorded or served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("metrics are already recorded by another exporter")]
    AlreadyInstalled(#[source] ::metrics::SetRecorderError<PrometheusRecorder>),
}

/// What was recorded, ready to be served.
#[derive(Clone, Debug)]
pub struct Exporter {
    handle: PrometheusHandle,
}

impl Exporter {
    /// Begins to record, for the whole process.
    pub fn install() -> Result<Self, MetricsError> {
        let (recorder, exporter) = Self::build();
        ::metrics::set_global_recorder(recorder).map_err(MetricsError::AlreadyInstalled)?;
        begin_at_zero();
        Ok(exporter)
    }

    pub(crate) fn build() -> (PrometheusRecorder, Self) {
        let builder = TABLE
            .iter()
            .filter(|metric| metric.kind == Kind::Histogram)
            .fold(PrometheusBuilder::new(), |builder, metric| {
                builder
                    .set_buckets_for_metric(Matcher::Full(metric.name.into()), &BUCKETS)
                    .expect("the list of buckets is not empty")
            });
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        (recorder, Self { handle })
    }

    /// Everything recorded so far, in Prometheus' text format.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Folds what piled up, from a task of its own until the runtime ends.
    pub fn keep_up(&self) {
        tokio::spawn(upkeep(self.handle.clone()));
    }
}

/// Describes every metric and creates each series that can ever exist.
pub(crate) fn begin_at_zero() {
    for metric in TABLE {
        match metric.kind {
            Kind::Counter => ::metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => ::metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram => ::metrics::describe_histogram!(metric.name, metric.help),
        }
        for labels in combinations(metric.labels) {
            match metric.kind {
                Kind::Counter => ::metrics::counter!(metric.name, labels).absolute(0),
                Kind::Gauge if metric.name == BUILD_INFO.name => {
                    ::metrics::gauge!(metric.name, labels).set(1.0)
                }
                Kind::Gauge => ::metrics::gauge!(metric.name, labels).set(0.0),
                // A histogram without a sample has nothing to show.
                Kind::Histogram => {}
            }
        }
    }
}

fn combinations(labels: &[Label]) -> Vec<Vec<::metrics::Label>> {
    labels.iter().fold(vec![Vec::new()], |done, label| {
        let with = |before: &Vec<::metrics::Label>, value: &'static str| {
            let mut labels = before.clone();
            labels.push(::metrics::Label::from_static_parts(label.name, value));
            labels
        };
        done.iter()
            .flat_map(|before| {
                label
                    .values
                    .all()
                    .iter()
                    .map(move |value| with(before, value))
            })
            .collect()
    })
}

async fn upkeep(handle: PrometheusHandle) {
    let mut period = tokio::time::interval(UPKEEP_PERIOD);
    loop {
        period.tick().await;
        handle.run_upkeep();
    }
}

/// The text of docs/metrics.md.
pub fn document() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         Generated from the table in `worker/src/metrics.rs`; do not edit.\n\n\
         `metrics-listen` sets the address that answers `GET /metrics` in Prometheus' text format, beside the \
         [status page](status-page.md). Labels have no values other than those listed. Counters and gauges exist \
         from the start, at 0.\n\n\
         A stable metric keeps its name, labels and meaning within a major version; labels may gain values.\n\n\
         | Metric | Kind | Unit | Labels | Stability | Meaning |\n|---|---|---|---|---|---|\n",
    );
    for metric in TABLE {
        let labels: Vec<String> = metric
            .labels
            .iter()
            .map(|label| match label.values {
                LabelValues::Closed(values) => format!("`{}`: {}", label.name, values.join(", ")),
                LabelValues::Version => format!("`{}`: the version", label.name),
            })
            .collect();
        text.push_str(&format!(
            "| `{}` | {} | {} | {} | {} | {} |\n",
            metric.name,
            metric.kind,
            metric.unit,
            labels.join("<br>"),
            metric.stability,
            metric.help
        ));
    }
    let bounds: Vec<String> = BUCKETS.iter().map(f64::to_string).collect();
    text.push_str(&format!(
        "\nThe buckets of every histogram end at {} seconds.\n",
        bounds.join(", ")
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// What is exported after `record` ran with every series at its start.
    fn exported(record: impl FnOnce()) -> String {
        let (recorder, exporter) = Exporter::build();
        ::metrics::with_local_recorder(&recorder, || {
            begin_at_zero();
            record();
        });
        exporter.render()
    }

    fn has_line(text: &str, line: &str) -> bool {
        text.lines().any(|found| found == line)
    }

    #[test]
    fn names_say_kind_and_unit() {
        let names: HashSet<&str> = TABLE.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), TABLE.len());
        for metric in TABLE {
            let name = metric.name;
            assert!(name.starts_with("reprieve_"), "{name}");
            assert_eq!(
                metric.kind == Kind::Counter,
                name.ends_with("_total"),
                "{name}"
            );
            assert_eq!(
                metric.unit == Unit::Seconds,
                name.ends_with("_seconds") || name.contains("_seconds_"),
                "{name}"
            );
            assert_eq!(
                metric.unit == Unit::Bytes,
                name.contains("_bytes"),
                "{name}"
            );
        }
    }

    #[test]
    fn series_exist_before_anything_happened() {
        let text = exported(|| {});
        for line in [
            "reprieve_checkpoints_total{trigger=\"signal\",outcome=\"failed\"} 0",
            "reprieve_store_requests_total{operation=\"get_range\",outcome=\"bad_size\"} 0",
            "reprieve_zombies_reaped_total 0",
            "reprieve_last_snapshot_generation 0",
            concat!(
                "reprieve_build_info{version=\"",
                env!("CARGO_PKG_VERSION"),
                "\"} 1"
            ),
            "# TYPE reprieve_restores_total counter",
        ] {
            assert!(has_line(&text, line), "{line} is missing in\n{text}");
        }
    }

    fn healthy() -> Health {
        let counts = reprieve_hooks::Counts {
            answered: 3,
            failed: 2,
            restarts: 5,
            messages: [0, 1, 2, 3, 4],
        };
        Health {
            source: Source::Sqs,
            condition: Condition::Working,
            last_success: Some(reprieve_core::notice::WallMs(1_500)),
            failures: 2,
            counts,
        }
    }

    /// Every recording function, and the series it must be seen in.
    #[test]
    fn recordings_arrive_under_the_names_of_the_table() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let table: [(fn(), &str); 33] = [
            (
                || deadline(DeadlineOutcome::Missed),
                "reprieve_deadlines_total{outcome=\"missed\"} 1",
            ),
            (
                || to_safe(Some(Duration::from_secs(3))),
                "reprieve_seconds_to_safe 3",
            ),
            (died_without_notice, "reprieve_died_without_notice_total 1"),
            (
                || hook_ended(HookOutcome::TimedOut),
                "reprieve_hooks_total{outcome=\"timed_out\"} 1",
            ),
            (
                || source(&healthy()),
                "reprieve_source_up{source=\"sqs\"} 1",
            ),
            (
                || source(&healthy()),
                "reprieve_source_last_success_timestamp_seconds{source=\"sqs\"} 1.5",
            ),
            (
                || source(&healthy()),
                "reprieve_source_polls_total{source=\"sqs\",outcome=\"failed\"} 2",
            ),
            (
                || source(&healthy()),
                "reprieve_source_restarts_total{source=\"sqs\"} 5",
            ),
            (
                || source(&healthy()),
                "reprieve_queue_messages_total{outcome=\"dead_letter\"} 4",
            ),
            (
                || work_at_risk(Duration::from_secs(90)),
                "reprieve_work_at_risk_seconds 90",
            ),
            (
                || checkpointable(Checkpointable::Orphans),
                "reprieve_checkpointable{verdict=\"orphans\"} 1",
            ),
            (
                || {
                    obstacles(&[Finding {
                        reason: Reason::IoUring,
                        pid: 301,
                        command: "node".into(),
                        what: "descriptor 7".into(),
                    }])
                },
                "reprieve_checkpoint_obstacles{reason=\"io_uring\"} 1",
            ),
            (
                || rehearsal_ended(RehearsalOutcome::GivenUp),
                "reprieve_rehearsals_total{outcome=\"given_up\"} 1",
            ),
            (
                || rehearsal_froze(Duration::from_millis(250)),
                "reprieve_rehearsal_frozen_seconds 0.25",
            ),
            (
                || deadline_margin(Duration::from_secs(20)),
                "reprieve_deadline_margin_seconds_bucket{le=\"30\"} 1",
            ),
            (|| lease(Lease::Lost), "reprieve_lease{state=\"lost\"} 1"),
            (
                || state(State::Running),
                "reprieve_state{state=\"running\"} 1",
            ),
            (
                || {
                    state(State::Running);
                    state(State::Over);
                },
                "reprieve_state{state=\"running\"} 0",
            ),
            (
                || checkpoint_ended(Source::Control, CheckpointOutcome::TimedOut),
                "reprieve_checkpoints_total{trigger=\"control\",outcome=\"timed_out\"} 1",
            ),
            (
                || checkpoint_phase_lasted(CheckpointPhase::Dump, Duration::from_millis(30)),
                "reprieve_checkpoint_phase_seconds_bucket{phase=\"dump\",le=\"0.05\"} 1",
            ),
            (
                || frozen(Duration::from_secs(700)),
                "reprieve_frozen_seconds_bucket{le=\"600\"} 0",
            ),
            (
                || snapshot_bytes(BytesKind::Zero, 4096),
                "reprieve_snapshot_bytes_total{kind=\"zero\"} 4096",
            ),
            (
                || restore_ended(RestoreOutcome::PassedOver),
                "reprieve_restores_total{outcome=\"passed_over\"} 1",
            ),
            (
                || restore_phase_lasted(RestorePhase::Restore, Duration::from_secs(2)),
                "reprieve_restore_phase_seconds_sum{phase=\"restore\"} 2",
            ),
            (
                || notice(Source::Control, NoticeKind::Checkpoint),
                "reprieve_notices_total{source=\"control\",kind=\"checkpoint\"} 1",
            ),
            (
                || app_started(StartedHow::Resume),
                "reprieve_app_starts_total{how=\"resume\"} 1",
            ),
            (
                || store_request_ended(StoreOperation::Put, StoreErrorKind::Throttled.into()),
                "reprieve_store_requests_total{operation=\"put\",outcome=\"throttled\"} 1",
            ),
            (store_retried, "reprieve_store_retries_total 1"),
            (
                || output_passed_on(Stream::Stderr, 12),
                "reprieve_output_bytes_total{stream=\"stderr\"} 12",
            ),
            (
                || output_dropped(7),
                "reprieve_output_dropped_bytes_total 7",
            ),
            (
                || log_lines_dropped(3),
                "reprieve_log_lines_dropped_total 3",
            ),
            (|| zombies_reaped(2), "reprieve_zombies_reaped_total 2"),
            (
                || checkpoint_ended(Source::Signal, CheckpointOutcome::Durable),
                "reprieve_checkpoints_total{trigger=\"signal\",outcome=\"durable\"} 1",
            ),
        ];
        for (record, line) in table {
            let text = exported(record);
            assert!(has_line(&text, line), "{line} is missing in\n{text}");
            let known = |name: &str| {
                TABLE.iter().any(|metric| {
                    name.strip_prefix(metric.name)
                        .is_some_and(|rest| matches!(rest, "" | "_bucket" | "_sum" | "_count"))
                })
            };
            for sample in text
                .lines()
                .filter(|line| !line.starts_with('#') && !line.is_empty())
            {
                let name = sample.split(['{', ' ']).next().unwrap_or_default();
                assert!(known(name), "{name} is not in the table");
            }
        }
        let text = exported(|| last_snapshot(9, at));
        assert!(has_line(&text, "reprieve_last_snapshot_generation 9"));
        assert!(has_line(
            &text,
            "reprieve_last_snapshot_timestamp_seconds 1700000000"
        ));
    }

    #[test]
    fn states_are_those_of_the_lifecycle() {
        for phase in [
            Phase::Booting,
            Phase::Running,
            Phase::Checkpointing,
            Phase::Over,
        ] {
            assert_eq!(State::from(phase).as_str(), phase.as_str());
        }
    }

    #[test]
    fn document_is_generated() {
        crate::stored::assert_document("metrics.md", &document());
    }
}
