//! Logging: what was set up, in which form, and that stderr can never hold the worker up.
//!
//! Lines go into a queue of at most [`QUEUE_LINES`] lines and [`QUEUE_BYTES`] bytes, which a thread of its own writes to
//! stderr. If nobody reads stderr the queue fills and further lines are dropped, counted in a metric and mentioned in
//! the log once it flows again: losing a line is better than a worker that stands still at its deadline. [`Logging`]
//! waits for the queue at the end, no longer than it is told.
//!
//! Human lines are for a terminal; JSON lines have `time`, `level`, `message`, `target`, and the fields of the event and of the
//! spans around it at the top level, the inner one counting. Both have what the worker is about ([`Surroundings`]: `job`,
//! `generation`, `phase`, `trace_id`): human lines at their end, without what is not known and what the event says itself.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::metrics;
use crate::settings::{LogFormat, LogSettings};
use crate::traces::TraceId;

/// Lines that wait to be written.
pub const QUEUE_LINES: usize = 4096;
/// Bytes that wait to be written.
pub const QUEUE_BYTES: usize = 1024 * 1024;

/// Why nothing can be logged.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error("the log filter {filter:?} is not valid")]
    Filter {
        filter: String,
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    #[error("the thread that writes the log cannot be started")]
    Thread(#[source] io::Error),
    #[error("logging is set up already")]
    AlreadySetUp(#[source] tracing_subscriber::util::TryInitError),
}

/// What the worker is about, for each line. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Surroundings(Arc<Mutex<Now>>);

#[derive(Debug, Default)]
struct Now {
    job: Option<String>,
    generation: Option<u64>,
    state: Option<String>,
    step: Option<&'static str>,
    trace: Option<TraceId>,
}

impl Surroundings {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.0.lock().expect("no holder of this lock panics")
    }

    pub fn job(&self, job: &str) {
        self.now().job = Some(job.to_owned());
    }

    /// The job's name, if it is known.
    pub fn name(&self) -> Option<String> {
        self.now().job.clone()
    }

    /// The trace that lines belong to from here on.
    pub fn trace(&self, trace: TraceId) {
        self.now().trace = Some(trace);
    }

    /// The supervisor's state, and the newest durable snapshot.
    pub fn state(&self, state: &str, generation: Option<u64>) {
        let mut now = self.now();
        now.generation = generation;
        if now.state.as_deref() != Some(state) {
            now.state = Some(state.to_owned());
        }
    }

    /// The step of a checkpoint or a restore that is under way, if one is.
    pub fn step(&self, step: Option<&'static str>) {
        self.now().step = step;
    }

    fn fields(&self) -> Map<String, Value> {
        let now = self.now();
        let phase = now.step.or(now.state.as_deref());
        let trace = now.trace.map(|trace| trace.to_string());
        Map::from_iter([
            ("job".to_owned(), Value::from(now.job.clone())),
            ("generation".to_owned(), Value::from(now.generation)),
            ("phase".to_owned(), Value::from(phase)),
            ("trace_id".to_owned(), Value::from(trace)),
        ])
    }
}

/// Logging that is set up; kept until the end, to wait for the last lines.
#[derive(Debug)]
pub struct Logging {
    queue: Queue,
}

impl Logging {
    /// Begins to log to stderr, for the whole process.
    pub fn set_up(
        settings: &LogSettings,
        surroundings: Surroundings,
    ) -> Result<Self, LoggingError> {
        let filter = EnvFilter::builder()
            .parse(&settings.filter)
            .map_err(|source| LoggingError::Filter {
                filter: settings.filter.clone(),
                source,
            })?;
        let is_terminal = io::stderr().is_terminal();
        let queue =
            Queue::start(io::stderr(), QUEUE_LINES, QUEUE_BYTES).map_err(LoggingError::Thread)?;
        let registry = tracing_subscriber::registry().with(filter);
        match form(settings.format, is_terminal) {
            Form::Human => registry
                .with(human(queue.clone(), surroundings, is_terminal))
                .try_init(),
            Form::Json => registry
                .with(JsonLayer {
                    queue: queue.clone(),
                    surroundings,
                })
                .try_init(),
        }
        .map_err(LoggingError::AlreadySetUp)?;
        Ok(Self { queue })
    }

    /// Waits until every line logged so far is written, at most for `limit`. Says whether they are.
    pub fn flush(&self, limit: Duration) -> Flushed {
        self.queue.flush(limit)
    }
}

/// Whether every line reached stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    Whole,
    /// Nobody read stderr in time.
    CutShort,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Human,
    Json,
}

fn form(format: LogFormat, is_terminal: bool) -> Form {
    match (format, is_terminal) {
        (LogFormat::Human, _) | (LogFormat::Auto, true) => Form::Human,
        (LogFormat::Json, _) | (LogFormat::Auto, false) => Form::Json,
    }
}

fn human<S>(queue: Queue, surroundings: Surroundings, colours: bool) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    tracing_subscriber::fmt::layer()
        .with_ansi(colours)
        .with_target(false)
        .with_writer(HumanLines {
            queue,
            surroundings,
            colours,
        })
}

enum Message {
    Line(Vec<u8>),
    /// Everything before this is written once the sender hears back.
    Flush(SyncSender<()>),
}

/// The bounded queue in front of a writer that may block.
#[derive(Clone, Debug)]
struct Queue {
    sender: SyncSender<Message>,
    waiting_bytes: Arc<AtomicUsize>,
    dropped_lines: Arc<AtomicU64>,
    limit_bytes: usize,
}

impl Queue {
    fn start(
        writer: impl Write + Send + 'static,
        limit_lines: usize,
        limit_bytes: usize,
    ) -> io::Result<Self> {
        let (sender, receiver) = mpsc::sync_channel(limit_lines);
        let queue = Self {
            sender,
            waiting_bytes: Arc::default(),
            dropped_lines: Arc::default(),
            limit_bytes,
        };
        let waiting_bytes = Arc::clone(&queue.waiting_bytes);
        let dropped_lines = Arc::clone(&queue.dropped_lines);
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_lines(writer, &receiver, &waiting_bytes, &dropped_lines))?;
        Ok(queue)
    }

    /// Takes a line if there is room.
    fn push(&self, line: &[u8]) {
        let length = line.len();
        let before = self.waiting_bytes.fetch_add(length, Ordering::Relaxed);
        let taken = before + length <= self.limit_bytes
            && self.sender.try_send(Message::Line(line.to_vec())).is_ok();
        if !taken {
            self.waiting_bytes.fetch_sub(length, Ordering::Relaxed);
            self.dropped_lines.fetch_add(1, Ordering::Relaxed);
            metrics::log_lines_dropped(1);
        }
    }

    fn flush(&self, limit: Duration) -> Flushed {
        let started = std::time::Instant::now();
        let (done, wait) = mpsc::sync_channel(1);
        let mut message = Message::Flush(done);
        // There is no send with a time limit; a full queue is asked again until it has room.
        while let Err(TrySendError::Full(back)) = self.sender.try_send(message) {
            if started.elapsed() >= limit {
                return Flushed::CutShort;
            }
            message = back;
            std::thread::sleep(Duration::from_millis(5));
        }
        match wait.recv_timeout(limit.saturating_sub(started.elapsed())) {
            Ok(()) => Flushed::Whole,
            Err(_) => Flushed::CutShort,
        }
    }
}

/// The writer thread. A closed stderr is no reason to end: the queue must go on being emptied.
fn write_lines(
    mut writer: impl Write,
    receiver: &Receiver<Message>,
    waiting_bytes: &AtomicUsize,
    dropped_lines: &AtomicU64,
) {
    for message in receiver {
        match message {
            Message::Line(line) => {
                let _ = writer.write_all(&line);
                waiting_bytes.fetch_sub(line.len(), Ordering::Relaxed);
            }
            Message::Flush(done) => {
                let _ = writer.flush();
                // Whoever asked may have given up.
                let _ = done.try_send(());
            }
        }
        let dropped = dropped_lines.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            tracing::warn!(
                lines = dropped,
                "log lines were dropped because nobody read stderr in time"
            );
        }
    }
}

struct HumanLines {
    queue: Queue,
    surroundings: Surroundings,
    colours: bool,
}

impl<'a> MakeWriter<'a> for HumanLines {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter(self)
    }
}

impl HumanLines {
    /// Behind the event's own fields, and darker than they are.
    fn with_surroundings(&self, line: &str) -> String {
        let mut whole = line.trim_end_matches('\n').to_owned();
        let [begin, end] = match self.colours {
            true => ["\u{1b}[2m", "\u{1b}[0m"],
            false => [""; 2],
        };
        for (name, value) in self.surroundings.fields() {
            let value = match value {
                Value::Null => continue,
                Value::String(text) => text,
                other => other.to_string(),
            };
            // With colours there is something between a name and its value.
            let is_said = ["=", "\u{1b}"].map(|next| line.contains(&format!("{name}{next}")));
            if is_said == [false; 2] {
                whole.push_str(&format!(" {begin}{name}={value}{end}"));
            }
        }
        whole + "\n"
    }
}

/// Takes one event's text, which arrives in one piece.
struct LineWriter<'a>(&'a HumanLines);

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let whole = self.0.with_surroundings(&text);
        self.0.queue.push(whole.as_bytes());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes events as flat JSON lines.
struct JsonLayer {
    queue: Queue,
    surroundings: Surroundings,
}

/// The fields of a span, kept while it lives.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl<S> Layer<S> for JsonLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = self.surroundings.fields();
        for span in context
            .event_scope(event)
            .into_iter()
            .flat_map(|scope| scope.from_root())
        {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                fields.extend(of_span.0.clone());
            }
        }
        let mut own = Fields::default();
        event.record(&mut own);
        fields.extend(own.0);
        self.queue.push(json_line(event, fields).as_bytes());
    }
}

/// Time, level, message and target first, so that raw lines can be read; no field can take their place.
fn json_line(event: &Event<'_>, mut fields: Map<String, Value>) -> String {
    let message = fields.remove("message").unwrap_or_default();
    let head = [
        ("time", Value::from(now())),
        (
            "level",
            Value::from(event.metadata().level().as_str().to_ascii_lowercase()),
        ),
        ("message", message),
        ("target", Value::from(event.metadata().target())),
    ];
    let mut line = String::from("{");
    let rest = fields
        .into_iter()
        .filter(|(name, _)| !head.iter().any(|(taken, _)| taken == name));
    let pairs = head
        .iter()
        .map(|(name, value)| ((*name).to_string(), value.clone()));
    for (index, (name, value)) in pairs.chain(rest).enumerate() {
        if index > 0 {
            line.push(',');
        }
        line.push_str(&format!("{}:{value}", Value::from(name)));
    }
    line.push_str("}\n");
    line
}

fn now() -> String {
    humantime::format_rfc3339_micros(SystemTime::now()).to_string()
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().into(), value.into());
    }

    /// The causes belong to the error, and `Display` leaves them out.
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let causes = std::iter::successors(Some(value), |error| error.source());
        let text: Vec<String> = causes.map(ToString::to_string).collect();
        self.0.insert(field.name().into(), text.join(": ").into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0
            .insert(field.name().into(), format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::mpsc::Sender;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Collects what is written; writing waits while `gate` is held.
    #[derive(Clone, Default)]
    struct Sink {
        text: Arc<Mutex<Vec<u8>>>,
        gate: Arc<Mutex<()>>,
    }

    impl Sink {
        fn text(&self) -> String {
            let bytes = self
                .text
                .lock()
                .expect("no test panicked while writing")
                .clone();
            String::from_utf8(bytes).expect("lines are text")
        }
    }

    impl Write for Sink {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _open = self.gate.lock().expect("no test panicked at the gate");
            self.text
                .lock()
                .expect("no test panicked while writing")
                .extend(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_form_follows_setting_and_terminal() {
        for (format, is_terminal, expected) in [
            (LogFormat::Auto, true, Form::Human),
            (LogFormat::Auto, false, Form::Json),
            (LogFormat::Human, false, Form::Human),
            (LogFormat::Json, true, Form::Json),
        ] {
            assert_eq!(form(format, is_terminal), expected);
        }
    }

    #[test]
    fn json_lines_are_flat_and_hold_the_fields_of_spans() {
        let sink = Sink::default();
        let queue = Queue::start(sink.clone(), 16, QUEUE_BYTES).expect("a thread");
        let surroundings = Surroundings::default();
        surroundings.job("hourly");
        surroundings.trace(TraceId::fresh());
        surroundings.state("checkpointing", Some(6));
        surroundings.step(Some("dump"));
        let subscriber = tracing_subscriber::registry().with(JsonLayer {
            queue: queue.clone(),
            surroundings: surroundings.clone(),
        });
        tracing::subscriber::with_default(subscriber, || {
            let job = tracing::info_span!("job", job = "nightly", phase = tracing::field::Empty);
            let _in_job = job.enter();
            job.record("phase", "dump");
            let error = LoggingError::Thread(io::Error::other("too many threads"));
            tracing::warn!(
                generation = 7u64,
                phase = "upload",
                time = "mine",
                error = &error as &(dyn std::error::Error + 'static),
                "a \"quoted\" message"
            );
            surroundings.step(None);
            drop(_in_job);
            tracing::info!("elsewhere");
        });
        assert_eq!(queue.flush(PATIENCE), Flushed::Whole);
        let text = sink.text();
        assert_eq!(text.lines().count(), 2, "{text}");
        let (text, plain) = text.split_once('\n').expect("there are two lines");
        let plain: Map<String, Value> = serde_json::from_str(plain).expect("a line of JSON");
        assert_eq!(plain["job"], "hourly");
        assert_eq!(plain["generation"], 6);
        assert_eq!(plain["phase"], "checkpointing");
        assert_eq!(plain["trace_id"].as_str().map(str::len), Some(32));
        assert!(text.starts_with("{\"time\":\"2"), "{text}");
        let mut line: Map<String, Value> = serde_json::from_str(text).expect("a line of JSON");
        assert_ne!(line.remove("time"), Some("mine".into()));
        assert_eq!(line.remove("trace_id"), plain.get("trace_id").cloned());
        assert_eq!(
            Value::Object(line),
            serde_json::json!({
                "level": "warn",
                "message": "a \"quoted\" message",
                "target": "reprieve::logging::tests",
                "job": "nightly",
                "phase": "upload",
                "generation": 7,
                "error": "the thread that writes the log cannot be started: too many threads",
            })
        );
    }

    #[test]
    fn human_lines_have_level_message_and_fields() {
        let sink = Sink::default();
        let queue = Queue::start(sink.clone(), 16, QUEUE_BYTES).expect("a thread");
        let surroundings = Surroundings::default();
        surroundings.job("nightly");
        surroundings.state("running", Some(6));
        let layer = human(queue.clone(), surroundings, false);
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(generation = 7u64, "durable");
            tracing::info!("on");
        });
        assert_eq!(queue.flush(PATIENCE), Flushed::Whole);
        let text = sink.text();
        let lines: Vec<&str> = text.lines().collect();
        for (line, end) in lines.iter().zip([
            " INFO durable generation=7 job=nightly phase=running",
            " INFO on generation=6 job=nightly phase=running",
        ]) {
            assert!(line.ends_with(end), "{text}");
        }
        assert_eq!(lines.len(), 2, "{text}");
    }

    /// A writer that tells when it was reached and then waits for the gate.
    struct Stuck {
        reached: Sender<()>,
        sink: Sink,
    }

    impl Write for Stuck {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            // The test may have seen enough.
            let _ = self.reached.send(());
            self.sink.write(line)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stuck_reader_costs_lines_and_never_time() {
        for (limit_lines, limit_bytes) in [(3, QUEUE_BYTES), (100, 4 * 5)] {
            let sink = Sink::default();
            let (reached, wait) = mpsc::channel();
            let closed = sink.gate.lock().expect("the gate is new");
            let stuck = Stuck {
                reached,
                sink: sink.clone(),
            };
            let queue = Queue::start(stuck, limit_lines, limit_bytes).expect("a thread");
            queue.push(b"held\n");
            wait.recv_timeout(PATIENCE)
                .expect("the writer got the first line");
            for _ in 0..50 {
                queue.push(b"line\n");
            }
            // One is being written, three wait.
            assert_eq!(queue.dropped_lines.load(Ordering::Relaxed), 47);
            assert_eq!(queue.flush(Duration::from_millis(50)), Flushed::CutShort);
            drop(closed);
            assert_eq!(queue.flush(PATIENCE), Flushed::Whole);
            assert_eq!(sink.text(), "held\nline\nline\nline\n");
            assert_eq!(queue.waiting_bytes.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn a_closed_stderr_ends_nothing() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let queue = Queue::start(Closed, 2, QUEUE_BYTES).expect("a thread");
        for _ in 0..3 {
            queue.push(b"line\n");
            assert_eq!(queue.flush(PATIENCE), Flushed::Whole);
        }
    }
}
