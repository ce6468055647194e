//! What happened lately, kept for those who look: notices, decisions, checkpoints and restores with their steps.
//!
//! Others write through the functions below, beside the metrics; the endpoint shows it, and after an eviction it goes into
//! the store. Memory is bounded: of each kind the newest [`KEPT`] stay, and texts of others are cut. Writing never waits
//! for readers, and nothing is decided by what stands here.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use reprieve_core::effort::Storing;
use reprieve_core::notice::Source;
use reprieve_core::planner::Decision;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::callouts::Recorder;
use crate::control::protocol::Status;
use crate::host;
use crate::logging::Surroundings;
use crate::metrics::{
    self, CheckpointOutcome, CheckpointPhase, NoticeKind, RestoreOutcome, RestorePhase,
};
use crate::traces::{Span, SpanId, TraceId, Traces};

/// Of each kind; an eviction has a handful of each.
const KEPT: usize = 24;
/// Of a checkpoint's or a restore's steps; a restore that collides tries again.
const STEPS_KEPT: usize = 16;
/// Bytes of a text that is not ours.
const TEXT_LIMIT: usize = 1024;

/// What happened lately. Clones write to the same.
#[derive(Clone, Debug)]
pub struct Journal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    history: Mutex<History>,
    /// Counts what was written.
    news: watch::Sender<u64>,
    over: watch::Sender<bool>,
    /// The worker's own span, from when this was made.
    trace: TraceId,
    span: SpanId,
    begun_ms: u64,
    surroundings: Surroundings,
    traces: Mutex<Option<Traces>>,
    recorder: Option<Recorder>,
}

#[derive(Debug, Default)]
struct History {
    notices: VecDeque<Value>,
    decisions: VecDeque<Value>,
    checkpoints: VecDeque<Run>,
    restores: VecDeque<Run>,
    memory: Option<Memory>,
    status: Option<(Status, Instant)>,
}

/// The job's memory when it was last looked at, by seeding or by a checkpoint.
#[derive(Clone, Copy, Debug, Serialize)]
struct Memory {
    at_ms: u64,
    total_bytes: u64,
    /// Not in the store then.
    unsafe_bytes: u64,
}

/// A checkpoint or a restore.
#[derive(Clone, Debug, Serialize)]
struct Run {
    at_ms: u64,
    #[serde(skip)]
    begun: Instant,
    #[serde(serialize_with = "as_text")]
    trace_id: TraceId,
    #[serde(flatten)]
    about: Value,
    steps: Vec<Taken>,
    /// None while it is under way.
    outcome: Option<&'static str>,
    #[serde(flatten)]
    result: Value,
}

/// A step that was begun, in milliseconds since its checkpoint or restore began.
#[derive(Clone, Debug, Serialize)]
struct Taken {
    step: &'static str,
    from_ms: u64,
    to_ms: Option<u64>,
    /// Whether it came to its end.
    whole: bool,
}

/// Which of the two a step belongs to.
#[derive(Clone, Copy, Debug)]
enum Of {
    Checkpoint(CheckpointPhase),
    Restore(RestorePhase),
}

/// A step under way. Dropped before [`Self::done`], it was cut short.
#[derive(Debug)]
pub struct Step {
    journal: Journal,
    of: Of,
    since: Instant,
    whole: bool,
}

impl Default for Journal {
    fn default() -> Self {
        Self::new(Surroundings::default(), None, None)
    }
}

impl Journal {
    /// What it hears of, lines of the log are told as well, and the others when it begins or is over.
    pub fn new(
        surroundings: Surroundings,
        traces: Option<Traces>,
        recorder: Option<Recorder>,
    ) -> Self {
        let trace = TraceId::fresh();
        surroundings.trace(trace);
        Self(Arc::new(Inner {
            history: Mutex::default(),
            news: watch::Sender::new(0),
            over: watch::Sender::new(false),
            trace,
            span: SpanId::fresh(),
            begun_ms: host::wall_ms(),
            surroundings,
            traces: Mutex::new(traces),
            recorder,
        }))
    }

    /// The recorder, if there is one.
    pub fn recorder(&self) -> Option<Recorder> {
        self.0.recorder.clone()
    }

    fn record(&self, event: &str, run: &Run) {
        let Some(recorder) = &self.0.recorder else {
            return;
        };
        let mut told = run.to_json();
        told["v"] = 1.into();
        told["event"] = event.into();
        told["job"] = self.0.surroundings.name().into();
        recorder.record(told);
    }

    /// Hands a run in, whose span is linked to the worker's, or part of it.
    fn trace(&self, name: &'static str, run: &Run) {
        let traces = self.0.traces.lock();
        let traces = traces.expect("no holder of this lock panics");
        if let Some(traces) = &*traces {
            traces.hand_in(run.spans(name, self.0.trace, self.0.span));
        }
    }

    /// The worker ends, and with it its span; nothing is handed in after that.
    pub fn end_trace(&self) {
        let traces = self.0.traces.lock();
        let traces = traces.expect("no holder of this lock panics").take();
        let Some(traces) = traces else { return };
        traces.hand_in(vec![Span {
            trace: self.0.trace,
            id: self.0.span,
            parent: None,
            link: None,
            name: "worker",
            from_ms: self.0.begun_ms,
            to_ms: host::wall_ms(),
            attributes: json!({}),
            problem: None,
        }]);
    }

    fn write(&self, change: impl FnOnce(&mut History)) {
        change(&mut self.history());
        self.0.news.send_modify(|count| *count += 1);
    }

    fn history(&self) -> MutexGuard<'_, History> {
        let history = self.0.history.lock();
        history.expect("no holder of this lock panics")
    }

    pub fn notice(
        &self,
        source: Source,
        kind: NoticeKind,
        identity: Option<&str>,
        left_ms: Option<u64>,
    ) {
        let notice = json!({
            "at_ms": host::wall_ms(),
            "source": source.as_str(),
            "kind": kind.as_str(),
            "identity": identity.map(short),
            "left_ms": left_ms,
        });
        self.write(|history| keep(&mut history.notices, notice));
    }

    /// What was decided, with its reason in words.
    pub fn decided(&self, decided: &Decision) {
        let mut decision = serde_json::to_value(decided).expect("decisions are plain values");
        decision["why"] = decided.reason.as_str().into();
        decision["at_ms"] = host::wall_ms().into();
        self.write(|history| keep(&mut history.decisions, decision));
    }

    /// A deadline passed, or will, without a checkpoint.
    pub fn missed(&self, source: Source, why: &str) {
        let missed = json!({
            "act": "missed",
            "source": source.as_str(),
            "why": why,
            "at_ms": host::wall_ms(),
        });
        self.write(|history| keep(&mut history.decisions, missed));
    }

    /// From here on steps belong to this checkpoint.
    pub fn checkpoint_begins(&self, about: Value) {
        let trace = TraceId::fresh();
        self.0.surroundings.trace(trace);
        let run = Run::begin(trace, about);
        self.record("checkpoint_started", &run);
        self.write(|history| keep(&mut history.checkpoints, run));
    }

    /// It is decided how the checkpoint under way is stored.
    pub fn checkpoint_is_stored(&self, how: &Storing) {
        self.write(|history| {
            if let Some(run) = history.checkpoints.back_mut() {
                run.about["storing"] = how.describe().into();
            }
        });
    }

    pub fn checkpoint_ended(&self, outcome: CheckpointOutcome, result: Value) {
        let mut ended = None;
        self.write(|history| {
            ended = end(&mut history.checkpoints, outcome.as_str(), result);
        });
        self.0.surroundings.trace(self.0.trace);
        if let Some(run) = ended {
            self.record("checkpoint_ended", &run);
            self.trace("checkpoint", &run);
        }
    }

    /// From here on steps belong to this restore.
    pub fn restore_begins(&self, about: Value) {
        let run = Run::begin(self.0.trace, about);
        self.record("restore_started", &run);
        self.write(|history| keep(&mut history.restores, run));
    }

    pub fn restore_ended(
        &self,
        outcome: RestoreOutcome,
        generation: Option<u64>,
        problem: Option<&str>,
    ) {
        let result = json!({ "generation": generation, "problem": problem });
        let mut ended = None;
        self.write(|history| {
            ended = end(&mut history.restores, outcome.as_str(), result);
        });
        if let Some(run) = ended {
            self.record("restore_ended", &run);
            self.trace("restore", &run);
        }
    }

    pub fn checkpoint_step(&self, step: CheckpointPhase) -> Step {
        self.step(Of::Checkpoint(step))
    }

    pub fn restore_step(&self, step: RestorePhase) -> Step {
        self.step(Of::Restore(step))
    }

    fn step(&self, of: Of) -> Step {
        self.0.surroundings.step(Some(of.name()));
        self.write(|history| {
            if let Some(run) = of.runs(history).back_mut()
                && run.steps.len() < STEPS_KEPT
            {
                let from_ms = millis(run.begun.elapsed());
                run.steps.push(Taken {
                    step: of.name(),
                    from_ms,
                    to_ms: None,
                    whole: false,
                });
            }
        });
        Step {
            journal: self.clone(),
            of,
            since: Instant::now(),
            whole: false,
        }
    }

    /// Somebody looked at the job's memory.
    pub fn memory(&self, total_bytes: u64, unsafe_bytes: u64) {
        let memory = Memory {
            at_ms: host::wall_ms(),
            total_bytes,
            unsafe_bytes,
        };
        self.write(|history| history.memory = Some(memory));
    }

    /// How things are now. Only what is more than the passing of time is news.
    pub fn tell(&self, status: Status) {
        let surroundings = &self.0.surroundings;
        surroundings.job(&status.job);
        surroundings.state(&status.state, status.last_generation);
        let mut history = self.history();
        let same = history
            .status
            .as_ref()
            .is_some_and(|(known, _)| timeless(known) == timeless(&status));
        history.status = Some((status, Instant::now()));
        drop(history);
        if !same {
            self.0.news.send_modify(|count| *count += 1);
        }
    }

    /// How things were when that was last told, with times as they are now.
    pub fn told(&self) -> Option<Status> {
        let history = self.history();
        let (status, at) = history.status.as_ref()?;
        let passed = millis(at.elapsed());
        let later = |age: Option<u64>| age.map(|age| age + passed);
        let mut now = status.clone();
        now.uptime_ms += passed;
        now.last_snapshot_age_ms = later(now.last_snapshot_age_ms);
        now.deadline_ms = now.deadline_ms.map(|left| left.saturating_sub(passed));
        for source in &mut now.sources {
            source.last_success_age_ms = later(source.last_success_age_ms);
        }
        Some(now)
    }

    /// The whole of it, as an object.
    pub fn to_json(&self) -> Value {
        let history = self.history();
        let runs = |runs: &VecDeque<Run>| runs.iter().map(Run::to_json).collect::<Vec<_>>();
        json!({
            "now_ms": host::wall_ms(),
            "notices": history.notices,
            "decisions": history.decisions,
            "checkpoints": runs(&history.checkpoints),
            "restores": runs(&history.restores),
            "memory": history.memory,
        })
    }

    /// Changes with everything that is written.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.0.news.subscribe()
    }

    /// Nothing more will be written.
    pub fn close(&self) {
        self.0.over.send_replace(true);
        self.0.news.send_modify(|count| *count += 1);
    }

    pub fn over(&self) -> watch::Receiver<bool> {
        self.0.over.subscribe()
    }
}

impl Run {
    fn begin(trace_id: TraceId, about: Value) -> Self {
        Self {
            at_ms: host::wall_ms(),
            begun: Instant::now(),
            trace_id,
            about,
            steps: Vec::new(),
            outcome: None,
            result: json!({}),
        }
    }

    fn to_json(&self) -> Value {
        let mut value = serde_json::to_value(self).expect("runs are plain values");
        if self.outcome.is_none() {
            value["elapsed_ms"] = millis(self.begun.elapsed()).into();
        }
        value
    }
}

impl Run {
    /// It is over: its span, and one for each step.
    fn spans(&self, name: &'static str, of_worker: TraceId, worker: SpanId) -> Vec<Span> {
        let id = SpanId::fresh();
        let is_part = self.trace_id == of_worker;
        let mut attributes = self.about.clone();
        if let (Some(all), Value::Object(more)) = (attributes.as_object_mut(), &self.result) {
            all.extend(more.clone());
        }
        attributes["outcome"] = self.outcome.into();
        let lasted = self.steps.iter().filter_map(|step| step.to_ms).max();
        let problem = self.result["problem"].as_str().map(str::to_owned);
        let whole = Span {
            trace: self.trace_id,
            id,
            parent: is_part.then_some(worker),
            link: (!is_part).then_some((of_worker, worker)),
            name,
            from_ms: self.at_ms,
            to_ms: (self.at_ms + lasted.unwrap_or(0)).max(host::wall_ms()),
            attributes,
            problem,
        };
        let steps = self.steps.iter().map(|step| Span {
            trace: self.trace_id,
            id: SpanId::fresh(),
            parent: Some(id),
            link: None,
            name: step.step,
            from_ms: self.at_ms + step.from_ms,
            to_ms: self.at_ms + step.to_ms.unwrap_or(step.from_ms),
            attributes: json!({}),
            problem: (!step.whole).then(|| "it was cut short".to_owned()),
        });
        std::iter::once(whole).chain(steps).collect()
    }
}

fn as_text<S: serde::Serializer>(
    value: &impl std::fmt::Display,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

impl Of {
    fn name(self) -> &'static str {
        match self {
            Self::Checkpoint(phase) => phase.as_str(),
            Self::Restore(phase) => phase.as_str(),
        }
    }

    fn runs(self, history: &mut History) -> &mut VecDeque<Run> {
        match self {
            Self::Checkpoint(_) => &mut history.checkpoints,
            Self::Restore(_) => &mut history.restores,
        }
    }
}

impl Step {
    /// It came to its end, which the metrics learn as well.
    pub fn done(mut self) {
        let lasted = self.since.elapsed();
        match self.of {
            Of::Checkpoint(phase) => metrics::checkpoint_phase_lasted(phase, lasted),
            Of::Restore(phase) => metrics::restore_phase_lasted(phase, lasted),
        }
        self.whole = true;
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        let name = self.of.name();
        self.journal.0.surroundings.step(None);
        self.journal.write(|history| {
            if let Some(run) = self.of.runs(history).back_mut() {
                let to_ms = millis(run.begun.elapsed());
                let open = run.steps.iter_mut().rev();
                for step in open.filter(|step| step.step == name && step.to_ms.is_none()) {
                    (step.to_ms, step.whole) = (Some(to_ms), self.whole);
                }
            }
        });
    }
}

fn keep<T>(kept: &mut VecDeque<T>, newest: T) {
    if kept.len() == KEPT {
        kept.pop_front();
    }
    kept.push_back(newest);
}

fn end(runs: &mut VecDeque<Run>, outcome: &'static str, mut result: Value) -> Option<Run> {
    if let Some(problem) = result["problem"].as_str().map(short) {
        result["problem"] = problem.into();
    }
    let run = runs.back_mut()?;
    (run.outcome, run.result) = (Some(outcome), result);
    Some(run.clone())
}

fn short(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_LIMIT)].to_owned()
}

/// A status without what changes by itself.
fn timeless(status: &Status) -> Status {
    let mut still = status.clone();
    still.uptime_ms = 0;
    still.last_snapshot_age_ms = None;
    still.to_safe_ms = None;
    still.deadline_ms = still.deadline_ms.map(|_| 0);
    if let Some(decision) = &mut still.decision {
        (decision.left_ms, decision.needed_ms, decision.changed_bytes) = (None, None, None);
    }
    for source in &mut still.sources {
        source.last_success_age_ms = source.last_success_age_ms.map(|_| 0);
    }
    still
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_belong_to_the_newest_run_and_say_whether_they_were_cut_short() {
        let journal = Journal::default();
        journal.checkpoint_begins(json!({ "by": "signal" }));
        journal.checkpoint_step(CheckpointPhase::Prepare).done();
        let dump = journal.checkpoint_step(CheckpointPhase::Dump);
        let seen = journal.to_json();
        let run = &seen["checkpoints"][0];
        assert_eq!(run["by"], "signal");
        assert_eq!(run["outcome"], Value::Null);
        assert!(run["elapsed_ms"].is_u64(), "{run}");
        assert_eq!(run["steps"][0]["whole"], true);
        assert_eq!(run["steps"][1]["to_ms"], Value::Null);
        drop(dump);
        journal.checkpoint_ended(
            CheckpointOutcome::Failed,
            json!({ "problem": "the store is full" }),
        );
        let seen = journal.to_json();
        let run = &seen["checkpoints"][0];
        assert!(run["steps"][1]["to_ms"].is_u64(), "{run}");
        assert_eq!(run["steps"][1]["whole"], false);
        assert_eq!(run["outcome"], "failed");
        assert_eq!(run["problem"], "the store is full");
        assert_eq!(run["elapsed_ms"], Value::Null);
    }

    #[test]
    fn the_oldest_makes_room_and_texts_are_cut() {
        let journal = Journal::default();
        for left in 0..2 * KEPT as u64 {
            journal.notice(
                Source::Sqs,
                NoticeKind::Terminate,
                Some(&"ü".repeat(TEXT_LIMIT)),
                Some(left),
            );
        }
        let notices = journal.to_json()["notices"].take();
        let notices = notices.as_array().expect("it is a list");
        assert_eq!(notices.len(), KEPT);
        assert_eq!(notices[0]["left_ms"], KEPT as u64);
        let identity = notices[0]["identity"].as_str().expect("it is text");
        assert!(identity.len() <= TEXT_LIMIT);
    }

    #[test]
    fn every_writing_is_news() {
        let journal = Journal::default();
        let mut news = journal.news();
        news.mark_unchanged();
        journal.memory(4096, 0);
        assert!(news.has_changed().expect("the journal lives"));
    }
}
