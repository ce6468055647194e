//! Every metric in one table, the functions that record them, and the HTTP endpoint that serves them.
//!
//! [`TABLE`] is the only list of metrics; docs/metrics.md follows from it. Others record through the functions below, so
//! that neither names nor label values can be made up elsewhere, and every label has a closed set of values. Without
//! [`Exporter::install`] recording does nothing. All series but histograms exist from the start, so that a rate over
//! the first failure is not lost.
//!
//! The endpoint serves whoever can reach it, without authentication, and must never hold up or end the worker: there
//! are at most [`CONNECTIONS`] connections, each with one request, a small head and [`CONNECTION_LIMIT`] to live; what
//! exceeds that is dropped without an answer.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::named::named;
use crate::store::StoreErrorKind;

/// Connections at a time; a scraper or two and a probe need three.
pub const CONNECTIONS: usize = 16;
/// The life of a connection, from accepting it to the last byte of the answer.
pub const CONNECTION_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a request's head; hyper's smallest allowed buffer.
const HEAD_LIMIT: usize = 8 * 1024;
/// Wait after a failed accept, which mostly means that file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
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
        Restoring = "restoring",
        Running = "running",
        Checkpointing = "checkpointing",
        Stopping = "stopping",
    }
}

named! {
    /// What made a checkpoint begin.
    pub enum Trigger { Signal = "signal", Control = "control", Notice = "notice", Timer = "timer", }
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
    /// The steps of a checkpoint.
    pub enum CheckpointPhase {
        Prepare = "prepare",
        Dump = "dump",
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
    /// The steps of a restore.
    pub enum RestorePhase { Select = "select", Download = "download", Restore = "restore", }
}

named! {
    /// Which bytes of a snapshot are counted.
    pub enum BytesKind { Logical = "logical", Zero = "zero", Stored = "stored", }
}

named! {
    /// Who announced something.
    pub enum NoticeSource {
        Signal = "signal",
        Control = "control",
        Imds = "imds",
        Sqs = "sqs",
        Gcp = "gcp",
        Azure = "azure",
    }
}

named! {
    /// What was announced.
    pub enum NoticeKind {
        Terminate = "terminate",
        Interruption = "interruption",
        Rebalance = "rebalance",
        Maintenance = "maintenance",
        Checkpoint = "checkpoint",
        Withdrawn = "withdrawn",
    }
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
        label("trigger", Trigger::NAMES),
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
    help: "Bytes of snapshots: of the job's memory and files (logical), of those that were only zeros (zero), and \
           written to the store (stored).",
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
        label("source", NoticeSource::NAMES),
        label("kind", NoticeKind::NAMES),
    ],
    stability: Stability::Stable,
    help: "Announcements that the machine goes, or requests for a checkpoint, each counted once.",
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
    RESTORES,
    RESTORE_PHASE,
    NOTICES,
    APP_STARTS,
    STORE_REQUESTS,
    STORE_RETRIES,
    OUTPUT_BYTES,
    OUTPUT_DROPPED,
    LOG_LINES_DROPPED,
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

pub fn checkpoint_ended(trigger: Trigger, outcome: CheckpointOutcome) {
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

pub fn restore_ended(outcome: RestoreOutcome) {
    ::metrics::counter!(RESTORES.name, "outcome" => outcome.as_str()).increment(1);
}

pub fn restore_phase_lasted(phase: RestorePhase, duration: Duration) {
    ::metrics::histogram!(RESTORE_PHASE.name, "phase" => phase.as_str()).record(duration);
}

pub fn notice(source: NoticeSource, kind: NoticeKind) {
    ::metrics::counter!(NOTICES.name, "source" => source.as_str(), "kind" => kind.as_str())
        .increment(1);
}

pub fn app_started(how: StartedHow) {
    ::metrics::counter!(APP_STARTS.name, "how" => how.as_str()).increment(1);
}

/// One attempt at a store call ended.
pub fn store_request_ended(operation: StoreOperation, outcome: StoreOutcome) {
    ::metrics::counter!(STORE_REQUESTS.name, "operation" => operation.as_str(), "outcome" => outcome.as_str())
        .increment(1);
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

pub fn zombies_reaped(processes: u64) {
    ::metrics::counter!(ZOMBIES.name).increment(processes);
}

/// Why metrics cannot be recorded or served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("metrics are already recorded by another exporter")]
    AlreadyInstalled(#[source] ::metrics::SetRecorderError<PrometheusRecorder>),
    #[error("cannot listen on {address} for metrics")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
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

    fn build() -> (PrometheusRecorder, Self) {
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

    /// Serves from tasks of its own until the runtime ends, and returns the address it listens on.
    pub async fn serve(self, address: SocketAddr) -> Result<SocketAddr, MetricsError> {
        let listen_error = |source| MetricsError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen_error)?;
        let bound = listener.local_addr().map_err(listen_error)?;
        tokio::spawn(upkeep(self.handle.clone()));
        tokio::spawn(accept(listener, self, CONNECTION_LIMIT));
        Ok(bound)
    }
}

/// Describes every metric and creates each series that can ever exist.
fn begin_at_zero() {
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

async fn accept(listener: TcpListener, exporter: Exporter, limit: Duration) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Full: dropping closes the connection, which tells the client sooner than silence.
                if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
                    let exporter = exporter.clone();
                    tokio::spawn(async move {
                        // Whatever went wrong is the client's to notice; the worker has nothing to do about it.
                        let _ = tokio::time::timeout(limit, converse(stream, exporter)).await;
                        drop(place);
                    });
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a connection for metrics could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, exporter: Exporter) -> hyper::Result<()> {
    let service = service_fn(|request: Request<Incoming>| {
        let response = answer(&exporter, request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(HEAD_LIMIT)
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION_LIMIT)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn answer(exporter: &Exporter, method: &Method, path: &str) -> Response<Full<Bytes>> {
    let plain = |status: StatusCode, body: String| {
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
        );
        response
    };
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".into());
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/metrics" => plain(StatusCode::OK, exporter.render()),
        "/healthz" => plain(StatusCode::OK, "ok\n".into()),
        _ => plain(StatusCode::NOT_FOUND, "only /metrics and /healthz\n".into()),
    }
}

/// The text of docs/metrics.md.
pub fn document() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         Generated from the table in `worker/src/metrics.rs`; do not edit.\n\n\
         `metrics-listen` sets the address that answers `GET /metrics` in Prometheus' text format, and `GET /healthz` \
         with 200 while the supervisor runs. Labels have no values other than those listed. Counters and gauges exist \
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
