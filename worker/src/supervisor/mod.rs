//! The supervisor: the one task that owns a job's state. It takes events in a fixed order of importance, lets
//! `reprieve_core::lifecycle` decide (the states are drawn there) and carries the effects out.
//!
//! Sources only send: signals arrive through a descriptor, requests through the control socket, ends of processes
//! through the reaper, ends of a boot or a checkpoint as finished tasks. What takes time (boot, checkpoint) is a task of
//! its own, so that the loop always listens.

pub mod boot;
pub(crate) mod checkpoint;
mod checkups;
mod child;
mod files;
mod housekeeping;
pub(crate) mod ownership;
mod pids;
mod presence;
pub(crate) mod proc;
mod pump;
pub mod realm;
pub mod reaper;
mod rehearsal;
mod reports;
mod restore;
mod seeding;
pub(crate) mod stdio;

use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::libc;
use reprieve_core::checkup::{Finding, Reason};
use reprieve_core::deadline::Budget;
use reprieve_core::head::Finished;
use reprieve_core::lifecycle::{
    self, Effect, Ended, Event, Finish, Lifecycle, OnFailure, Phase, Policy, RequestId,
};
use reprieve_core::notice::{
    Afterwards, Announcement, Fate, Goal, Moment, Notice, Order, Reply, Says, Settled, Source,
    WallMs,
};
use reprieve_core::planner::{Decision, Every, KeepPromise, OnTooLate, Rules};
use reprieve_core::promise::{self, Measured};
use reprieve_core::report::Cause;
use reprieve_core::way::Way;
use reprieve_core::worker::{self, Worker};
use reprieve_hooks::signals::Signals;
use reprieve_hooks::{Asked, Heard};
use serde_json::json;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

pub use checkpoint::{CheckpointError, Report};

use crate::callouts::{Callouts, Moment as CallMoment};
use crate::catalog::{self, CatalogError};
use crate::control::protocol::{
    self, Durable, JobClocks, OBSTACLES, Obstacle, Outcome, SourceHealth, Status, Until, Waited,
};
use crate::failure::{ExitCode, Failure};
use crate::host;
use crate::journal::Journal;
use crate::machine::{self, Introduced};
use crate::metrics::{
    self, CheckpointOutcome, Checkpointable, DeadlineOutcome, Lease, NoticeKind, RehearsalOutcome,
};
use crate::operate;
use crate::pages::seed::Budgets;
use crate::queue::Told;
use crate::settings::{
    self, OnCheckpointFailure, OnSignal, Period, QueueUse, Rehearse, Seed, Settings, SignalTarget,
};
use crate::sources::{self, News, Sources};
use crate::steps::{self, Step};
use crate::supervisor::boot::{Booted, Gate, Learnt, Origin, Protection};
use crate::supervisor::checkpoint::{Course, Limits, Subject};
use crate::supervisor::checkups::{Checkups, Look};
use crate::supervisor::housekeeping::Housekeeping;
use crate::supervisor::ownership::Ownership;
use crate::supervisor::presence::Presence;
use crate::supervisor::reaper::Reaper;
use crate::supervisor::rehearsal::Rehearsal;
use crate::supervisor::reports::{Reports, Shelf, Unresumed};
use crate::supervisor::seeding::{Ahead, Plan, Seeding};
use crate::supervisor::stdio::Stdio;
use crate::sweeper::{Begun, Sweeper};
use crate::sys::{self, Exit};

/// How long the app's last output may take to be read.
const OUTPUT_LIMIT: Duration = Duration::from_secs(10);

/// How long saying goodbye to the store may take.
const GOODBYE_LIMIT: Duration = Duration::from_secs(3);

/// An announced end that moves by less is told as it was.
const DEADLINE_MOVES_MS: u64 = 2_000;

/// How long reports may take that are not stored yet at the end.
const REPORT_LIMIT: Duration = Duration::from_secs(2);

/// How long the kernel may take to end a process that was killed.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// How long the store may take to tag a snapshot that a command wants tagged.
const TAG_LIMIT: Duration = Duration::from_secs(10);

/// Callers that wait for a state, at most: others must find a place at the control socket.
const WATCHERS: usize = 16;

/// Before it is looked again whether a checkpoint can be rehearsed, at least.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

/// A program before the freeze gets this part of the time for storing at most: one of so many.
const HOOK_SHARE: u64 = 4;

/// Between two looks at processes that were told to end; each end of one makes us look at once.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What somebody asks of the supervisor.
#[derive(Debug)]
pub enum Request {
    Checkpoint {
        afterwards: Afterwards,
        timeout: Option<Duration>,
        answer: oneshot::Sender<Outcome>,
    },
    Status {
        answer: oneshot::Sender<Status>,
    },
    /// Something is to happen to this machine.
    Notice(Heard),
    /// Tell when this is so.
    Wait {
        until: Until,
        answer: oneshot::Sender<Waited>,
    },
}

/// The newest snapshot that this supervisor made or resumed from.
#[derive(Clone, Copy, Debug)]
pub struct LastSnapshot {
    pub generation: u64,
    /// Wall clock, in milliseconds since the Unix epoch.
    pub taken_at_ms: u64,
}

/// Counts time from the supervisor's start.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    fn now(self) -> Moment {
        self.then(Instant::now())
    }

    fn then(self, instant: Instant) -> Moment {
        Moment(millis(instant.saturating_duration_since(self.start)))
    }

    /// When the wall clock will show this, as far as can be told now.
    fn moment(self, at: WallMs) -> Moment {
        let left = at.0.saturating_sub(sources::wall_now().0);
        self.now().plus_ms(left)
    }

    fn instant(self, moment: Moment) -> Instant {
        self.start + Duration::from_millis(moment.0)
    }
}

struct App {
    pid: i32,
    exit: oneshot::Receiver<Exit>,
    stdio: Arc<Stdio>,
}

struct UnderWay {
    notice: Notice,
    begun: Moment,
    thawed: Arc<Notify>,
    after_thaw: JoinHandle<()>,
    limits: watch::Sender<Limits>,
    course: Arc<Course>,
    task: JoinHandle<Result<Report, CheckpointError>>,
}

/// Runs one job from boot to end.
pub struct Supervisor {
    settings: Settings,
    argv: Vec<OsString>,
    clock: Clock,
    reaper: Arc<Reaper>,
    life: Lifecycle,
    app: Option<App>,
    exit: Option<Exit>,
    origin: Option<Origin>,
    protection: Option<Protection>,
    /// Set by the boot as soon as the job is ours.
    owned: Arc<OnceLock<Arc<Ownership>>>,
    presence: Arc<Presence>,
    /// Asks what this machine is. Nothing waits for it.
    introduction: Option<JoinHandle<Option<Introduced>>>,
    housekeeping: Option<Housekeeping>,
    seeding: Option<Seeding>,
    checkups: Option<Checkups>,
    under_way: Option<UnderWay>,
    /// When to rehearse a checkpoint, the one under way, and how the last one went.
    rehearse_at: Option<Instant>,
    rehearsing: Option<Rehearsal>,
    rehearsed: Option<protocol::Rehearsal>,
    /// Set with the protection.
    way: Option<watch::Receiver<Way>>,
    ahead: Option<watch::Receiver<Option<Ahead>>>,
    /// Bytes of the job's files in the newest snapshot: they are not stored ahead.
    files_bytes: u64,
    /// Set when the run begins.
    sources: Option<Sources>,
    callouts: Arc<Callouts>,
    /// The announcement that was told last: one that is repeated is told once.
    announced: Option<Announcement>,
    /// Programs of the user's that are waited for at the end, for as long as they may take.
    last_words: Vec<JoinHandle<()>>,
    /// What to tell those who wait for the checkpoint that just ended.
    last_answer: Option<Outcome>,
    waiting: HashMap<RequestId, Waiter>,
    /// Those who wait for a state.
    watchers: Vec<(Until, oneshot::Sender<Waited>)>,
    next_request: u64,
    last_snapshot: Option<LastSnapshot>,
    told: watch::Sender<Told>,
    durable: u64,
    failed: u64,
    last_failure: Option<String>,
    /// What was in the way of the latest checkpoint.
    obstacle: Option<Checkpointable>,
    /// What was found in its processes when they were looked over.
    findings: Vec<Finding>,
    clocks: Option<JobClocks>,
    lease: Lease,
    journal: Journal,
    reports: Reports,
    /// Filled in by the boot.
    unresumed: Unresumed,
}

enum Happened {
    Signal(i32),
    Booted(Box<Result<Booted, Failure>>),
    AppEnded(Exit),
    CheckpointEnded(Result<Report, CheckpointError>),
    Fenced,
    /// More is known of the way to the store.
    Carried(Way),
    /// The job's memory was stored ahead.
    StoredAhead(Option<Ahead>),
    Asked(Request),
    News(News),
    Looked(Look),
    /// A rehearsal is due.
    ToRehearse,
    Rehearsed(rehearsal::Result),
    Introduced(Option<Introduced>),
    /// The moment for which the lifecycle wanted to be woken.
    Woken,
}

/// Somebody who waits to be told what became of a checkpoint.
#[derive(Debug)]
enum Waiter {
    Control(oneshot::Sender<Outcome>),
    /// A source that announced something.
    Source(oneshot::Sender<Settled>),
    /// Somebody behind a source, with the tags that the snapshot is to have.
    Order {
        reply: oneshot::Sender<Reply>,
        tags: Vec<String>,
        command: String,
    },
    /// Somebody behind a source who wants the job to go on from an older snapshot.
    Rollback {
        reply: oneshot::Sender<Reply>,
        to: u64,
        command: String,
    },
    /// A signal, which cannot be answered.
    Nobody,
}

impl Waiter {
    /// Nothing needs to be done, or nothing more.
    fn note(self) {
        match self {
            Self::Source(sender) => drop(sender.send(Settled::Noted)),
            Self::Order { reply, .. } | Self::Rollback { reply, .. } => {
                drop(reply.send(Reply::Settled(Settled::Noted)));
            }
            // Neither announces anything that could be noted.
            Self::Control(_) | Self::Nobody => {}
        }
    }

    /// Whoever waited may be gone.
    fn tell(self, outcome: Outcome) {
        match self {
            Self::Control(sender) => drop(sender.send(outcome)),
            Self::Source(sender) => drop(sender.send(outcome.into())),
            Self::Order { reply, .. } | Self::Rollback { reply, .. } => {
                drop(reply.send(Reply::Settled(outcome.into())));
            }
            Self::Nobody => {}
        }
    }
}

impl Supervisor {
    pub fn new(
        settings: Settings,
        argv: Vec<OsString>,
        reaper: Arc<Reaper>,
        clock: Clock,
        journal: Journal,
    ) -> Self {
        let policy = Policy {
            can_checkpoint: settings.store.is_some(),
            term_grace_ms: millis(settings.term_grace),
            rules: rules(&settings),
            on_failed_signal: match settings.on_checkpoint_failure {
                OnCheckpointFailure::RunOn => OnFailure::RunOn,
                OnCheckpointFailure::Forward => OnFailure::Forward,
            },
        };
        let presence = Presence::new(Worker {
            worker: catalog::nonce(),
            job: settings.job.clone(),
            host: host::hostname(),
            instance: settings.instance_id.clone(),
            machine: None,
            queue: match settings.queue {
                QueueUse::Off => None,
                _ => settings.queue_url.as_ref().map(ToString::to_string),
            },
            state: Phase::Booting.as_str().to_owned(),
            epoch: None,
            started_ms: host::wall_ms(),
            last_snapshot: None,
            deadline_ms: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cpu_level: None,
        });
        let callouts = Arc::new(Callouts::new(&settings, Arc::clone(&reaper)));
        let reports = Reports::new(&settings.job, &presence.name());
        Self {
            presence,
            introduction: None,
            settings,
            argv,
            clock,
            reaper,
            life: Lifecycle::new(policy),
            app: None,
            exit: None,
            origin: None,
            protection: None,
            owned: Arc::default(),
            housekeeping: None,
            seeding: None,
            checkups: None,
            under_way: None,
            rehearse_at: None,
            rehearsing: None,
            rehearsed: None,
            way: None,
            ahead: None,
            files_bytes: 0,
            sources: None,
            callouts,
            announced: None,
            last_words: Vec::new(),
            last_answer: None,
            waiting: HashMap::new(),
            watchers: Vec::new(),
            next_request: 0,
            last_snapshot: None,
            told: watch::Sender::new(Told {
                state: Phase::Booting.as_str(),
                snapshot: None,
            }),
            durable: 0,
            failed: 0,
            last_failure: None,
            obstacle: None,
            findings: Vec::new(),
            clocks: None,
            lease: Lease::None,
            journal,
            reports,
            unresumed: Unresumed::default(),
        }
    }

    /// State and newest snapshot, as they change.
    pub fn told(&self) -> watch::Receiver<Told> {
        self.told.subscribe()
    }

    /// Runs the job and returns the exit code of the process.
    pub async fn run(
        mut self,
        mut signals: Signals,
        mut requests: mpsc::Receiver<Request>,
        sources: Sources,
    ) -> Result<u8, Failure> {
        self.sources = Some(sources);
        self.introduction = Some(tokio::spawn(machine::introduce(self.settings.clone())));
        self.tell_state();
        let gate = Arc::new(Gate::default());
        let boot = boot::boot(
            self.settings.clone(),
            self.argv.clone(),
            Arc::clone(&self.reaper),
            Arc::clone(&gate),
            Learnt {
                owned: Arc::clone(&self.owned),
                unresumed: self.unresumed.clone(),
            },
            Arc::clone(&self.presence),
            self.journal.clone(),
        );
        let mut boot = Some(tokio::spawn(boot));
        // Signals for an app that the boot has not handed over yet.
        let mut held: Vec<i32> = Vec::new();
        loop {
            let happened = self.next(&mut signals, &mut boot, &mut requests).await;
            let effects = match happened {
                Happened::Signal(libc::SIGCHLD) => {
                    self.reaper.reap();
                    Vec::new()
                }
                Happened::Signal(signal) => {
                    if boot.is_some() && lifecycle::ends_a_boot(signal) && !gate.close() {
                        // The app runs already, or is about to: then this is a signal for a running app.
                        held.push(signal);
                        Vec::new()
                    } else {
                        self.signalled(signal)
                    }
                }
                Happened::Booted(booted) => match *booted {
                    Ok(booted) => {
                        self.report_unresumed();
                        let mut effects = self.booted(booted);
                        self.send_reports();
                        for signal in held.drain(..) {
                            effects.extend(self.signalled(signal));
                        }
                        effects
                    }
                    Err(failure) => {
                        self.report_unresumed();
                        self.say_goodbye(None).await;
                        self.last_reports().await;
                        return Err(failure);
                    }
                },
                Happened::AppEnded(exit) => {
                    self.exit = Some(exit);
                    self.life.handle(Event::AppEnded, self.clock.now())
                }
                Happened::CheckpointEnded(result) => self.checkpoint_ended(&result),
                Happened::Fenced => self.life.handle(Event::Fenced, self.clock.now()),
                Happened::Carried(way) => self.life.handle(Event::Carried(way), self.clock.now()),
                Happened::StoredAhead(ahead) => self.stored_ahead(ahead),
                Happened::Asked(request) => self.asked(request),
                Happened::Looked(look) => {
                    self.clocks = Some(JobClocks::of(&look.clocks));
                    self.looked(look.findings);
                    Vec::new()
                }
                Happened::ToRehearse => {
                    self.rehearse();
                    Vec::new()
                }
                Happened::Rehearsed(result) => {
                    self.rehearsal_ended(&result);
                    Vec::new()
                }
                Happened::Introduced(introduced) => {
                    if let Some(Introduced { instance, machine }) = introduced {
                        self.presence.tell(|worker| {
                            // What a setting calls it counts more.
                            worker.instance.get_or_insert(instance);
                            worker.machine = Some(machine);
                        });
                    }
                    Vec::new()
                }
                Happened::News(News::Heard(heard)) => self.heard(heard),
                Happened::News(News::Asked(source, asked)) => self.ordered(source, asked),
                Happened::Woken => {
                    self.life.expect(millis(self.shortest_notice()));
                    self.life.handle(Event::Woken, self.clock.now())
                }
            };
            self.tell_state();
            self.tell_watchers();
            self.pace_seeding();
            for effect in effects {
                match effect {
                    Effect::Finish(finish) => return Ok(self.finish(finish, &mut signals).await),
                    Effect::AbortBoot(signal) => {
                        if let Some(boot) = boot.take() {
                            boot.abort();
                        }
                        return Ok(self.abort_boot(signal, &mut signals).await);
                    }
                    other => self.carry_out(other),
                }
            }
        }
    }

    /// Signals first: they may carry a deadline.
    async fn next(
        &mut self,
        signals: &mut Signals,
        boot: &mut Option<JoinHandle<Result<Booted, Failure>>>,
        requests: &mut mpsc::Receiver<Request>,
    ) -> Happened {
        tokio::select! {
            biased;
            signal = signals.next() => Happened::Signal(signal),
            ended = ended(&mut self.under_way) => Happened::CheckpointEnded(ended),
            exit = exited(&mut self.app, self.exit) => Happened::AppEnded(exit),
            () = fenced(&self.owned, self.life.phase()) => Happened::Fenced,
            booted = finished(boot) => Happened::Booted(Box::new(booted)),
            Some(request) = requests.recv() => Happened::Asked(request),
            news = news(&mut self.sources) => Happened::News(news),
            way = news_of(&mut self.way) => Happened::Carried(way),
            ahead = news_of(&mut self.ahead) => Happened::StoredAhead(ahead),
            look = looked(&mut self.checkups) => Happened::Looked(look),
            result = rehearsed(&mut self.rehearsing) => Happened::Rehearsed(result),
            () = woken(self.rehearse_at) => Happened::ToRehearse,
            introduced = introduced(&mut self.introduction) => Happened::Introduced(introduced),
            () = woken(self.life.wake().map(|wake| self.clock.instant(wake))) => Happened::Woken,
        }
    }

    /// What is stored ahead need not be stored by the next checkpoint.
    fn stored_ahead(&mut self, ahead: Option<Ahead>) -> Vec<Effect> {
        let ahead = ahead.map(|ahead| promise::Ahead {
            begun: self.clock.then(ahead.begun),
            took_ms: millis(ahead.took),
            unseeded: ahead.unseeded,
            unseen: ahead.unseen + self.files_bytes,
        });
        let now = self.clock.now();
        let effects = self.life.handle(Event::StoredAhead(ahead), now);
        let needed = self.life.promise().ms_to_safe(now);
        metrics::to_safe(needed.map(Duration::from_millis));
        effects
    }

    /// So that the promise holds, if settings want that, or that the job can work on for longer.
    fn pace_seeding(&self) {
        if let (Some(_), Some(protection)) = (&self.seeding, &self.protection) {
            let by = self.life.seed_by(self.clock.now());
            let seeds = &protection.checkpointer.seeds;
            seeds.without_budgets(self.life.works_on());
            seeds.by(by.map(|by| self.clock.instant(by)));
        }
    }

    fn tell_state(&self) {
        let phase = self.life.phase();
        metrics::state(phase.into());
        let announced = self.life.going().and_then(|going| going.deadline);
        let ends_at_ms =
            announced.map(|deadline| host::wall_ms() + self.clock.now().ms_until(deadline));
        self.presence.tell(|worker| {
            // Two clocks are read, a moment apart: that alone is no news.
            let is_news = match (worker.deadline_ms, ends_at_ms) {
                (Some(known), Some(now)) => known.abs_diff(now) > DEADLINE_MOVES_MS,
                (known, now) => known != now,
            };
            if is_news {
                worker.deadline_ms = ends_at_ms;
            }
            worker.state = phase.as_str().to_owned();
            worker.last_snapshot = self.last_snapshot.map(|snapshot| worker::Snapshot {
                generation: snapshot.generation,
                taken_at_ms: snapshot.taken_at_ms,
            });
        });
        let told = Told {
            state: phase.as_str(),
            snapshot: self
                .last_snapshot
                .map(|snapshot| (snapshot.generation, WallMs(snapshot.taken_at_ms))),
        };
        self.told.send_if_modified(|known| {
            let news = *known != told;
            *known = told;
            news
        });
        metrics::checkpointable(self.checkpointable());
        metrics::lease(self.lease());
        self.journal.tell(self.status());
    }

    /// Whether a checkpoint could be taken now.
    fn checkpointable(&self) -> Checkpointable {
        match self.life.phase() {
            Phase::Over => Checkpointable::Over,
            Phase::Booting => Checkpointable::Booting,
            _ if self.protection.is_none() => Checkpointable::NoStore,
            _ => match self.findings.first().map(|first| first.reason) {
                Some(Reason::Orphan) => Checkpointable::Orphans,
                Some(_) => Checkpointable::Obstacle,
                None => self.obstacle.unwrap_or(Checkpointable::Yes),
            },
        }
    }

    /// What a look at the job's processes found; each kind is told once, until it is gone.
    fn looked(&mut self, findings: Vec<Finding>) {
        metrics::obstacles(&findings);
        let known: Vec<Reason> = self.findings.iter().map(|one| one.reason).collect();
        for reason in Reason::ALL {
            let of_kind = || findings.iter().filter(|one| one.reason == reason);
            if let (Some(first), false) = (of_kind().next(), known.contains(&reason)) {
                tracing::warn!(
                    kind = reason.as_str(),
                    pid = first.pid,
                    command = first.command,
                    what = first.what,
                    cause = reason.cause(),
                    remedy = reason.remedy(),
                    count = of_kind().count(),
                    "the job cannot be checkpointed as it is now"
                );
            }
        }
        if findings.is_empty() && !self.findings.is_empty() {
            tracing::info!("what stood in the way of a checkpoint is gone");
        }
        // An orphan that made a checkpoint fail is gone.
        let is_gone = |reason| findings.iter().all(|one| one.reason != reason);
        if self.obstacle == Some(Checkpointable::Orphans) && is_gone(Reason::Orphan) {
            self.obstacle = None;
        }
        self.findings = findings;
    }

    fn lease(&self) -> Lease {
        match self.lease {
            Lease::None if self.owned.get().is_some() => Lease::Held,
            known => known,
        }
    }

    fn signalled(&mut self, signal: i32) -> Vec<Effect> {
        if signal == libc::SIGWINCH
            && let Some(app) = &self.app
        {
            app.stdio.resize();
        }
        let signal = match self.meaning(signal) {
            OnSignal::Forward => signal,
            OnSignal::Stop => libc::SIGTERM,
            OnSignal::Checkpoint => {
                metrics::notice(Source::Signal, NoticeKind::Checkpoint);
                self.journal
                    .notice(Source::Signal, NoticeKind::Checkpoint, None, None);
                tracing::info!(signal, "a signal asks for a checkpoint");
                let deadline = self.deadline(None);
                return self.wanted(
                    Source::Signal,
                    Afterwards::Continue,
                    deadline,
                    Waiter::Nobody,
                );
            }
        };
        if signal == libc::SIGTERM && self.settings.store.is_some() {
            tracing::info!(grace = ?self.settings.term_grace, "SIGTERM: this host is to stop");
            metrics::notice(Source::Signal, NoticeKind::Terminate);
            let grace = millis(self.settings.term_grace);
            self.journal
                .notice(Source::Signal, NoticeKind::Terminate, None, Some(grace));
            self.tell(
                CallMoment::Notice,
                json!({ "source": "signal", "fate": "terminate" }),
            );
        }
        self.life.handle(Event::Signal(signal), self.clock.now())
    }

    /// What settings say that a signal means; without a store, what it always means.
    fn meaning(&self, signal: i32) -> OnSignal {
        match signal {
            _ if self.settings.store.is_none() => OnSignal::Forward,
            libc::SIGINT => self.settings.on_sigint,
            libc::SIGHUP => self.settings.on_sighup,
            libc::SIGUSR1 => self.settings.on_sigusr1,
            libc::SIGUSR2 => self.settings.on_sigusr2,
            _ => OnSignal::Forward,
        }
    }

    /// Runs the user's program for this moment, beside everything else.
    fn tell(&self, moment: CallMoment, facts: serde_json::Value) {
        let (callouts, facts) = (Arc::clone(&self.callouts), self.facts(facts));
        tokio::spawn(async move { callouts.call(moment, &facts, None).await });
    }

    /// What every program is told, and what is of this moment.
    fn facts(&self, more: serde_json::Value) -> serde_json::Value {
        let mut facts = json!({
            "job": self.settings.job,
            "state": self.life.phase().as_str(),
            "generation": self.last_snapshot.map(|snapshot| snapshot.generation),
        });
        if let (Some(facts), serde_json::Value::Object(more)) = (facts.as_object_mut(), more) {
            facts.extend(more);
        }
        facts
    }

    fn booted(&mut self, booted: Booted) -> Vec<Effect> {
        steps::reached(Step::Booted);
        // Beside what is more important now.
        drop(tokio::task::spawn_blocking(sys::give_memory_back));
        let Booted {
            app,
            stdio,
            origin,
            protection,
        } = booted;
        if let Some(snapshot) = origin.snapshot() {
            self.last_snapshot = Some(snapshot);
        }
        self.seeding = protection
            .as_ref()
            .filter(|_| self.settings.seed == Seed::On)
            .map(|protection| {
                let plan = Plan {
                    interval: self.settings.seed_interval,
                    budgets: Budgets {
                        bandwidth: self.settings.seed_bandwidth_bytes,
                        cpu_percent: self.settings.seed_cpu_percent,
                    },
                };
                Seeding::begin(Arc::clone(&protection.checkpointer), app.pid, plan)
            });
        self.checkups = protection.as_ref().map(|protection| {
            Checkups::begin(
                Arc::clone(&protection.checkpointer),
                app.pid,
                self.settings.checkup_interval,
            )
        });
        let rehearses = protection.is_some() && self.settings.rehearse == Rehearse::On;
        self.rehearse_at = rehearses.then(|| Instant::now() + self.settings.rehearse_after);
        // The size may have changed since the streams were made.
        stdio.resize();
        self.app = Some(App {
            pid: app.pid,
            exit: app.exit,
            stdio: Arc::new(stdio),
        });
        self.origin = Some(origin);
        self.housekeeping = protection.as_ref().map(|protection| {
            Housekeeping::begin(Sweeper {
                catalog: protection.checkpointer.catalog.clone(),
                grace: self.settings.sweep_grace,
                limit: self.settings.boot_timeout,
                at_once: 1,
                begun: Begun::default(),
            })
        });
        if let Some(protection) = &protection {
            let needed = protection.checkpointer.needed_level();
            self.presence.tell(|worker| worker.cpu_level = needed);
        }
        self.way = protection
            .as_ref()
            .map(|protection| protection.checkpointer.way.subscribe());
        self.ahead = self
            .seeding
            .as_ref()
            .zip(protection.as_ref())
            .map(|(_, protection)| protection.checkpointer.seeds.ahead());
        self.protection = protection;
        let moment = match self.origin {
            Some(Origin::Resumed { .. }) => CallMoment::AfterResume,
            _ => CallMoment::AppReady,
        };
        if moment == CallMoment::AfterResume {
            self.life.resumed(self.clock.now());
        }
        self.tell(moment, json!({}));
        self.life.expect(millis(self.shortest_notice()));
        self.life.handle(Event::AppReady, self.clock.now())
    }

    fn asked(&mut self, request: Request) -> Vec<Effect> {
        match request {
            Request::Notice(heard) => self.heard(heard),
            Request::Wait { until, answer } => {
                self.watch(until, answer);
                Vec::new()
            }
            Request::Status { answer } => {
                // Whoever asked may be gone.
                drop(answer.send(self.status()));
                Vec::new()
            }
            Request::Checkpoint {
                afterwards,
                timeout,
                answer,
            } => {
                metrics::notice(Source::Control, NoticeKind::Checkpoint);
                self.journal
                    .notice(Source::Control, NoticeKind::Checkpoint, None, None);
                let timeout = timeout.unwrap_or(self.settings.checkpoint_timeout);
                let deadline = self.clock.now().plus_ms(millis(timeout));
                self.wanted(
                    Source::Control,
                    afterwards,
                    deadline,
                    Waiter::Control(answer),
                )
            }
        }
    }

    fn watch(&mut self, until: Until, answer: oneshot::Sender<Waited>) {
        // Those who gave up waiting have no part in the limit.
        self.watchers.retain(|(_, answer)| !answer.is_closed());
        if self.watchers.len() < WATCHERS {
            self.watchers.push((until, answer));
        } else {
            let reason = format!("{WATCHERS} others wait already");
            drop(answer.send(Waited::Refused { reason }));
        }
    }

    /// Answers those for whom it is so now, or will never be.
    fn tell_watchers(&mut self) {
        let phase = self.life.phase();
        let reached = Waited::Reached {
            state: phase.as_str().to_owned(),
            generation: self.last_snapshot.map(|snapshot| snapshot.generation),
        };
        let verdict = |until| match (until, phase) {
            (Until::Running, Phase::Running | Phase::Checkpointing)
            | (Until::Over, Phase::Running | Phase::Over) => Some(reached.clone()),
            (Until::Running | Until::Checkpoint, Phase::Over) => Some(Waited::Gone {}),
            _ => None,
        };
        self.answer_watchers(verdict);
    }

    fn answer_watchers(&mut self, verdict: impl Fn(Until) -> Option<Waited>) {
        for (until, answer) in std::mem::take(&mut self.watchers) {
            match verdict(until) {
                // Whoever waited may be gone.
                Some(waited) => drop(answer.send(waited)),
                None => self.watchers.push((until, answer)),
            }
        }
    }

    fn wanted(
        &mut self,
        by: Source,
        afterwards: Afterwards,
        deadline: Moment,
        waiter: Waiter,
    ) -> Vec<Effect> {
        let id = self.register(waiter);
        let request = Event::Request {
            id,
            by,
            afterwards,
            deadline,
        };
        self.life.handle(request, self.clock.now())
    }

    /// Without a time the setting counts, as for any other request.
    fn deadline(&self, at: Option<WallMs>) -> Moment {
        let unsaid = || {
            self.clock
                .now()
                .plus_ms(millis(self.settings.checkpoint_timeout))
        };
        at.map_or_else(unsaid, |at| self.clock.moment(at))
    }

    fn heard(&mut self, heard: Heard) -> Vec<Effect> {
        let Heard {
            announcement,
            settled,
        } = heard;
        let source = announcement.source;
        match announcement.says {
            Says::Goes { fate, at } => {
                let wall = sources::wall_now();
                let left_ms = at.map(|at| at.0.saturating_sub(wall.0));
                if self.announced.as_ref() != Some(&announcement) {
                    metrics::notice(source, fate.into());
                    let identity = Some(announcement.identity.as_str());
                    self.journal.notice(source, fate.into(), identity, left_ms);
                    tracing::info!(
                        source = source.as_str(),
                        fate = fate.as_str(),
                        identity = announcement.identity,
                        left_ms,
                        "notice: something is to happen to this machine"
                    );
                    let (source, fate) = (source.as_str(), fate.as_str());
                    let facts = json!({ "source": source, "fate": fate, "left_ms": left_ms });
                    self.tell(CallMoment::Notice, facts);
                }
            }
            Says::Withdrawn => {
                metrics::notice(source, NoticeKind::Withdrawn);
                let identity = Some(announcement.identity.as_str());
                self.journal
                    .notice(source, NoticeKind::Withdrawn, identity, None);
                tracing::info!(
                    source = source.as_str(),
                    identity = announcement.identity,
                    "a notice is withdrawn"
                );
            }
        }
        self.announced = Some(announcement.clone());
        let id = self.register(Waiter::Source(settled));
        let announced = Event::Announced {
            id,
            announcement,
            wall_now: sources::wall_now(),
        };
        self.life.handle(announced, self.clock.now())
    }

    fn register(&mut self, waiter: Waiter) -> RequestId {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        self.waiting.insert(id, waiter);
        id
    }

    fn ordered(&mut self, source: Source, asked: Asked) -> Vec<Effect> {
        let Asked { order, reply } = asked;
        metrics::notice(source, NoticeKind::Order);
        self.journal.notice(source, NoticeKind::Order, None, None);
        match order {
            Order::Checkpoint {
                afterwards,
                deadline,
                tags,
                command,
            } => {
                if let Some(generation) = self.answered_before(&command) {
                    // Whoever made it may have had no time to tag it.
                    self.tag_then_answer(generation, afterwards, tags, reply);
                    return Vec::new();
                }
                let deadline = self.deadline(deadline);
                let waiter = Waiter::Order {
                    reply,
                    tags,
                    command,
                };
                self.wanted(source, afterwards, deadline, waiter)
            }
            Order::Rollback { to, command } => self.told_to_go_back(source, &to, command, reply),
            Order::Stop => {
                drop(reply.send(Reply::Settled(Settled::Noted)));
                vec![Effect::Forward(libc::SIGTERM)]
            }
            Order::Status => {
                drop(reply.send(Reply::Status(self.status().to_json())));
                Vec::new()
            }
        }
    }

    /// The snapshot that this command led to, here or with an owner of the job before.
    fn answered_before(&self, command: &str) -> Option<u64> {
        let head = self.owned.get()?.last_head();
        head.answer_to(command).map(|known| known.generation)
    }

    /// The job is stored and stopped first, so that going back is not for good, and its next start goes on from there.
    fn told_to_go_back(
        &mut self,
        source: Source,
        to: &Goal,
        command: String,
        reply: oneshot::Sender<Reply>,
    ) -> Vec<Effect> {
        let settled = if let Some(generation) = self.answered_before(&command) {
            Settled::Durable {
                generation,
                afterwards: Afterwards::Stop,
            }
        } else {
            let head = self.owned.get().map(|ownership| ownership.last_head());
            let known = head.as_ref().and_then(|head| match to {
                Goal::Generation(number) => head.generation(*number),
                Goal::Tag(tag) => head.tagged(tag),
            });
            if let Some(known) = known {
                let to = known.generation;
                let waiter = Waiter::Rollback { reply, to, command };
                let deadline = self.deadline(None);
                return self.wanted(source, Afterwards::Stop, deadline, waiter);
            }
            let what = match to {
                Goal::Generation(number) => format!("generation {number}"),
                Goal::Tag(tag) => format!("snapshot with the tag {tag}"),
            };
            let reason = format!("the job has no {what}");
            Settled::Refused { reason }
        };
        drop(reply.send(Reply::Settled(settled)));
        Vec::new()
    }

    fn status(&self) -> Status {
        let checkpointable = self.checkpointable();
        let protected = checkpointable == Checkpointable::Yes;
        let age = |snapshot: LastSnapshot| host::wall_ms().saturating_sub(snapshot.taken_at_ms);
        let resumed_from = self.origin.and_then(Origin::snapshot);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: self.life.phase().as_str().to_owned(),
            job: self.settings.job.clone(),
            instance: self.presence.said(|worker| worker.instance.clone()),
            machine: self.presence.said(|worker| worker.machine.clone()),
            store: self.settings.store.clone(),
            last_generation: self.last_snapshot.map(|snapshot| snapshot.generation),
            last_snapshot_age_ms: self.last_snapshot.map(age),
            app_pid: self
                .app
                .as_ref()
                .and_then(|app| u32::try_from(app.pid).ok()),
            checkpoints_durable: self.durable,
            checkpoints_failed: self.failed,
            last_failure: self.last_failure.clone(),
            resumed_from: resumed_from.map(|snapshot| snapshot.generation),
            owner_epoch: self.owned.get().map(|ownership| ownership.epoch),
            sources: self.source_health(),
            plan: self
                .life
                .decision()
                .map(|decision| decision.reason.as_str().to_owned()),
            decision: self.life.decision(),
            storing: self
                .protection
                .as_ref()
                .and_then(|protection| protection.checkpointer.storing()),
            deadline_ms: self
                .life
                .going()
                .and_then(|going| going.deadline)
                .map(|deadline| self.clock.now().ms_until(deadline)),
            to_safe_ms: self.life.promise().ms_to_safe(self.clock.now()),
            protected,
            unprotected_because: (!protected).then(|| checkpointable.as_str().to_owned()),
            obstacles: self
                .findings
                .iter()
                .take(OBSTACLES)
                .map(Obstacle::of)
                .collect(),
            obstacles_total: self.findings.len(),
            rehearsal: self.rehearsed.clone(),
            clocks: self.clocks.clone(),
            uptime_ms: millis(self.clock.start.elapsed()),
        }
    }

    fn source_health(&self) -> Vec<SourceHealth> {
        let now = sources::wall_now();
        let all = self.sources.iter().flat_map(Sources::health);
        all.map(|health| SourceHealth::of(health, now)).collect()
    }

    /// Sources come and go, so it is asked again and again.
    fn shortest_notice(&self) -> Duration {
        let given = self.sources.iter().flat_map(Sources::shortest_notice).min();
        let known = self.settings.shortest_notice.or(given);
        known.unwrap_or(self.settings.term_grace)
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Begin {
                notice,
                budget,
                decision,
            } => self.begin(notice, budget, decision),
            Effect::Retime(budget) => {
                if let Some(under_way) = &self.under_way {
                    under_way.limits.send_replace(self.limits(budget));
                }
            }
            Effect::Spare => self.spare(),
            Effect::Forward(signal) => self.forward(signal),
            Effect::Answer(id) => {
                let answer = self.last_answer.clone().unwrap_or(Outcome::Refused {
                    reason: "the checkpoint ended without a result".to_owned(),
                });
                self.answer(id, answer);
            }
            Effect::Refuse(id, reason) => self.answer(id, Outcome::Refused { reason }),
            Effect::Note(id) => {
                if let Some(waiter) = self.waiting.remove(&id) {
                    waiter.note();
                }
            }
            Effect::Decided(decision) => {
                self.journal.decided(&decision);
                tell_decision(&decision);
            }
            Effect::InDanger(decision) => {
                metrics::deadline(DeadlineOutcome::InDanger);
                tracing::warn!(
                    needed_ms = decision.needed_ms,
                    left_ms = decision.left_ms,
                    changed_bytes = decision.changed_bytes,
                    "the deadline is in danger: by what was measured, a checkpoint takes longer than is left"
                );
                let facts = json!({ "needed_ms": decision.needed_ms, "left_ms": decision.left_ms });
                self.tell(CallMoment::InDanger, facts);
            }
            Effect::Outgrown {
                needed_ms,
                notice_ms,
                changed_bytes,
            } => tracing::warn!(
                needed_ms,
                notice_ms,
                changed_bytes,
                "a checkpoint takes longer by now than the shortest notice of this machine's end; what is not stored before it may be lost"
            ),
            Effect::Missed { source, reason } => {
                metrics::checkpoint_ended(source, CheckpointOutcome::Refused);
                self.journal.missed(source, &reason);
                let history = self.journal.to_json();
                self.reports
                    .note(Cause::Missed, Some(reason.clone()), history, None);
                self.send_reports();
                metrics::deadline(DeadlineOutcome::Missed);
                self.tell(CallMoment::Missed, json!({ "reason": reason }));
                tracing::error!(
                    reason,
                    "no checkpoint was taken; the newest older snapshot stays as it is"
                );
            }
            Effect::Finish(_) | Effect::AbortBoot(_) => {
                unreachable!("the loop carries these out itself")
            }
        }
    }

    fn answer(&mut self, id: RequestId, answer: Outcome) {
        let Some(waiter) = self.waiting.remove(&id) else {
            return;
        };
        match (waiter, answer) {
            (Waiter::Order { reply, tags, .. }, Outcome::Durable(durable)) if !tags.is_empty() => {
                let afterwards = match durable.left_running {
                    true => Afterwards::Continue,
                    false => Afterwards::Stop,
                };
                self.tag_then_answer(durable.generation, afterwards, tags, reply);
            }
            (Waiter::Rollback { reply, to, command }, Outcome::Durable(_)) => {
                self.go_back_then_answer(to, command, reply);
            }
            (waiter, answer) => waiter.tell(answer),
        }
    }

    /// The job need not wait for it, and the end does.
    fn tag_then_answer(
        &mut self,
        generation: u64,
        afterwards: Afterwards,
        tags: Vec<String>,
        reply: oneshot::Sender<Reply>,
    ) {
        let catalog = self
            .protection
            .as_ref()
            .map(|protection| protection.checkpointer.catalog.clone());
        let catalog = catalog.expect("nothing is durable without a store");
        let (job, store) = (self.settings.job.clone(), self.settings.store.clone());
        self.last_words.push(tokio::spawn(async move {
            let job = operate::Job::of(catalog, job, store.unwrap_or_default(), TAG_LIMIT);
            for tag in tags {
                if let Err(reason) = job.tag(generation, &tag).await {
                    let reason = format!(
                        "generation {generation} is durable and has not got the tag {tag}: {reason}"
                    );
                    drop(reply.send(Reply::Settled(Settled::Failed { reason })));
                    return;
                }
            }
            let settled = Settled::Durable {
                generation,
                afterwards,
            };
            drop(reply.send(Reply::Settled(settled)));
        }));
    }

    /// The job is stopped, and the end waits for it.
    fn go_back_then_answer(&mut self, to: u64, command: String, reply: oneshot::Sender<Reply>) {
        let ownership = self.owned.get().cloned();
        let ownership = ownership.expect("nothing is durable without a store");
        self.last_words.push(tokio::spawn(async move {
            let request = format!("{to}@{}", catalog::nonce());
            let request = request.parse().expect("it names a snapshot");
            let deadline = Instant::now() + TAG_LIMIT;
            let kept = ownership.last_head().generation(to).is_some();
            let gone = match kept {
                true => ownership
                    .go_back(to, &request, Some(&command), deadline)
                    .await
                    .map_err(|error| with_causes(&error)),
                false => Err(format!("generation {to} is not kept any more")),
            };
            let settled = match gone {
                Ok(()) => {
                    tracing::info!(
                        generation = to,
                        "a command takes the job back; its next start goes on from there"
                    );
                    Settled::Durable {
                        generation: to,
                        afterwards: Afterwards::Stop,
                    }
                }
                Err(reason) => {
                    let reason =
                        format!("the job is stored and stopped, and was not taken back: {reason}");
                    tracing::warn!(
                        reason,
                        "the job is not taken back; its next start goes on from where it is"
                    );
                    Settled::Failed { reason }
                }
            };
            drop(reply.send(Reply::Settled(settled)));
        }));
    }

    fn limits(&self, budget: Budget) -> Limits {
        Limits {
            stored_by: self.clock.instant(budget.stored_by),
            committed_by: self.clock.instant(budget.committed_by),
        }
    }

    /// What the checkpoint under way was the last one for will not come.
    fn spare(&self) {
        let Some(under_way) = &self.under_way else {
            return;
        };
        if under_way.course.spare() {
            tracing::info!(
                "the notice that the final checkpoint is for is withdrawn or put off; the job is left running"
            );
        } else {
            tracing::warn!(
                "the notice that the final checkpoint is for is withdrawn or put off too late; the job is stored and stopped"
            );
        }
    }

    fn forward(&self, signal: i32) {
        let Some(app) = self.app.as_ref().filter(|_| self.exit.is_none()) else {
            return;
        };
        let target = match self.settings.signal_target {
            SignalTarget::Group => -app.pid,
            SignalTarget::Child => app.pid,
        };
        let sent = sys::kill(target, signal);
        tracing::debug!(signal, target, ?sent, "signal passed on");
        if signal == libc::SIGTERM {
            // A stopped process would never see it.
            drop(sys::kill(target, libc::SIGCONT));
        }
    }

    fn begin(&mut self, notice: Notice, budget: Budget, decision: Decision) {
        let (Some(app), Some(protection)) = (&self.app, &self.protection) else {
            unreachable!("checkpoints are wanted only while the app runs, and with a store")
        };
        let subject = self.subject(app, Some(decision), notice.afterwards);
        let thawed = Arc::clone(&subject.thawed);
        let course = Arc::clone(&subject.course);
        let (limits, watched) = watch::channel(self.limits(budget));
        let checkpointer = Arc::clone(&protection.checkpointer);
        let rehearsal = self.rehearsing.take();
        if rehearsal.is_some() {
            metrics::rehearsal_ended(RehearsalOutcome::GivenUp);
            self.rehearsed = Some(rehearsal::told(RehearsalOutcome::GivenUp, None));
            self.rehearse_at = Some(Instant::now() + self.settings.rehearse_after);
            tracing::info!("a checkpoint is wanted; the rehearsal of one is given up");
        }
        if let Some(housekeeping) = &mut self.housekeeping {
            housekeeping.stop();
        }
        self.reports.hold();
        if let Some(checkups) = &mut self.checkups {
            checkups.stop();
        }
        self.journal.checkpoint_begins(json!({
            "by": notice.trigger.as_str(),
            "afterwards": notice.afterwards,
            "why": decision.reason.as_str(),
            "budget_ms": self.clock.now().ms_until(budget.committed_by),
        }));
        tracing::info!(
            trigger = notice.trigger.as_str(),
            afterwards = ?notice.afterwards,
            budget_ms = self.clock.now().ms_until(budget.committed_by),
            "checkpoint begins"
        );
        let left = budget.stored_by.0.saturating_sub(self.clock.now().0);
        let limit = Duration::from_millis(left / HOOK_SHARE);
        let (callouts, facts) = (
            Arc::clone(&self.callouts),
            self.facts(json!({
                "trigger": notice.trigger,
                "afterwards": notice.afterwards,
                "reason": decision.reason,
                "left_ms": left,
            })),
        );
        let (after, told, facts_after) = (
            Arc::clone(&self.callouts),
            Arc::clone(&thawed),
            facts.clone(),
        );
        let after_thaw = tokio::spawn(async move {
            told.notified().await;
            after.call(CallMoment::AfterThaw, &facts_after, None).await;
        });
        let task = tokio::spawn(async move {
            if let Some(rehearsal) = rehearsal {
                rehearsal.give_up().await;
            }
            if let Err(reason) = callouts.before_freeze(&facts, limit).await {
                return Err(CheckpointError::Hook(reason));
            }
            checkpointer.run(&subject, notice, watched).await
        });
        self.under_way = Some(UnderWay {
            notice,
            begun: self.clock.now(),
            thawed,
            after_thaw,
            limits,
            course,
            task,
        });
    }

    fn subject(&self, app: &App, decision: Option<Decision>, afterwards: Afterwards) -> Subject {
        Subject {
            root_pid: app.pid,
            argv: self
                .argv
                .iter()
                .map(|part| part.to_string_lossy().into_owned())
                .collect(),
            stdio: Arc::clone(&app.stdio),
            decision,
            thawed: Arc::default(),
            course: Arc::new(Course::new(afterwards)),
            commands: self.commands_waiting(),
            keeps_all: self
                .waiting
                .values()
                .any(|waiter| matches!(waiter, Waiter::Rollback { .. })),
        }
    }

    /// If it is not superfluous by now, and nothing that matters more is near.
    fn rehearse(&mut self) {
        self.rehearse_at = None;
        let (Some(app), Some(protection)) = (&self.app, &self.protection) else {
            return;
        };
        if self.durable > 0 || self.life.phase() == Phase::Over {
            return;
        }
        if self.life.phase() != Phase::Running || self.life.going().is_some() {
            self.rehearse_at = Some(Instant::now() + self.settings.rehearse_after.max(LEAST_PAUSE));
            return;
        }
        tracing::info!("a checkpoint is rehearsed; nothing of it is kept");
        if let Some(checkups) = &mut self.checkups {
            checkups.stop();
        }
        let limit = self.settings.checkpoint_timeout;
        let facts = self.facts(json!({
            "trigger": "rehearsal",
            "afterwards": Afterwards::Continue,
            "left_ms": millis(limit),
        }));
        self.rehearsing = Some(Rehearsal::begin(
            Arc::clone(&protection.checkpointer),
            self.subject(app, None, Afterwards::Continue),
            Arc::clone(&self.callouts),
            facts,
            limit,
        ));
    }

    fn rehearsal_ended(&mut self, result: &rehearsal::Result) {
        self.rehearsing = None;
        let outcome = match result {
            Ok(worked) => {
                metrics::rehearsal_froze(worked.frozen);
                tracing::info!(
                    frozen_ms = millis(worked.frozen),
                    wall_ms = millis(worked.wall),
                    memory_bytes = worked.memory,
                    files_bytes = worked.files,
                    "a checkpoint of this job works: its rehearsal did"
                );
                self.obstacle = None;
                RehearsalOutcome::Worked
            }
            // Then there is nothing to be stored either.
            Err(CheckpointError::AppEnded) => RehearsalOutcome::GivenUp,
            Err(error) => {
                let (reason, remedy) = (with_causes(error), error.remedy());
                tracing::warn!(
                    reason,
                    remedy,
                    "a checkpoint of this job would fail: its rehearsal did; the job runs on"
                );
                self.obstacle = Some(match error {
                    CheckpointError::Orphans(_) => Checkpointable::Orphans,
                    _ => Checkpointable::Failed,
                });
                let log = self
                    .protection
                    .as_ref()
                    .and_then(|protection| protection.checkpointer.complaint());
                let problem = format!("the rehearsal of a checkpoint failed: {reason}");
                let history = self.journal.to_json();
                self.reports
                    .note(Cause::Failed, Some(problem), history, log);
                RehearsalOutcome::Failed
            }
        };
        metrics::rehearsal_ended(outcome);
        self.rehearsed = Some(rehearsal::told(outcome, Some(result)));
        self.send_reports();
        if let (Phase::Running, Some(checkups)) = (self.life.phase(), &mut self.checkups) {
            checkups.look();
        }
    }

    /// The commands that wait for a checkpoint; those that only begin to wait during one are not among them.
    fn commands_waiting(&self) -> Vec<String> {
        let waiting = self.waiting.values();
        let mut commands: Vec<String> = waiting
            .filter_map(|waiter| match waiter {
                Waiter::Order { command, .. } => Some(command.clone()),
                _ => None,
            })
            .collect();
        commands.sort();
        commands
    }

    fn checkpoint_ended(&mut self, result: &Result<Report, CheckpointError>) -> Vec<Effect> {
        let UnderWay {
            notice,
            begun,
            thawed,
            after_thaw,
            ..
        } = self.under_way.take().expect("it was under way until now");
        let (how, outcome) = match result {
            Ok(report) => self.succeeded(report, notice.afterwards, begun),
            Err(error) => self.not_succeeded(error),
        };
        let afterwards = match result {
            Ok(report) => report.afterwards,
            Err(_) => notice.afterwards,
        };
        if how != Ended::Failed && afterwards == Afterwards::Stop {
            after_thaw.abort();
        } else {
            // If it was not told at the thaw itself.
            thawed.notify_one();
        }
        metrics::checkpoint_ended(notice.trigger, outcome);
        // Before what follows is decided.
        if let Some(way) = &mut self.way {
            let way = *way.borrow_and_update();
            drop(self.life.handle(Event::Carried(way), self.clock.now()));
        }
        self.life.expect(millis(self.shortest_notice()));
        let ended = match result {
            Ok(report) => Waited::Reached {
                state: self.life.phase().as_str().to_owned(),
                generation: Some(report.generation),
            },
            Err(error) => Waited::Failed {
                reason: with_causes(error),
            },
        };
        self.answer_watchers(|until| (until == Until::Checkpoint).then(|| ended.clone()));
        self.note_result(afterwards, outcome, result);
        self.report(afterwards, result);
        let effects = self
            .life
            .handle(Event::CheckpointEnded(how), self.clock.now());
        let needed = self.life.promise().ms_to_safe(self.clock.now());
        metrics::to_safe(needed.map(Duration::from_millis));
        if let (Phase::Running, Some(housekeeping)) = (self.life.phase(), &mut self.housekeeping) {
            housekeeping.look();
        }
        self.send_reports();
        if let (Phase::Running, Some(checkups)) = (self.life.phase(), &mut self.checkups) {
            checkups.look();
        }
        effects
    }

    fn succeeded(
        &mut self,
        report: &Report,
        wanted: Afterwards,
        begun: Moment,
    ) -> (Ended, CheckpointOutcome) {
        let afterwards = report.afterwards;
        self.durable += 1;
        self.last_snapshot = Some(LastSnapshot {
            generation: report.generation,
            taken_at_ms: host::wall_ms(),
        });
        metrics::frozen(report.frozen);
        metrics::snapshot_bytes(metrics::BytesKind::Logical, report.sizes.logical());
        metrics::snapshot_bytes(metrics::BytesKind::Zero, report.sizes.zero);
        metrics::snapshot_bytes(metrics::BytesKind::New, report.sizes.changed());
        metrics::snapshot_bytes(metrics::BytesKind::Stored, report.sizes.stored);
        metrics::last_snapshot(report.generation, std::time::SystemTime::now());
        tracing::info!(
            generation = report.generation,
            memory_bytes = report.sizes.memory,
            zero_bytes = report.sizes.zero,
            unchanged_bytes = report.sizes.unchanged,
            stored_bytes = report.sizes.stored,
            frozen_ms = millis(report.frozen),
            wall_ms = millis(report.wall),
            left_ms = millis(report.left),
            afterwards = ?afterwards,
            "checkpoint is durable"
        );
        self.last_answer = Some(Outcome::Durable(Durable {
            generation: report.generation,
            bytes_stored: report.sizes.stored,
            bytes_logical: report.sizes.logical(),
            frozen_ms: millis(report.frozen),
            wall_ms: millis(report.wall),
            left_running: afterwards == Afterwards::Continue,
        }));
        if self.life.going().is_some() && afterwards == Afterwards::Stop {
            metrics::deadline(DeadlineOutcome::Kept);
        }
        let facts = json!({
            "generation": report.generation,
            "afterwards": afterwards,
            "stored_bytes": report.sizes.stored,
            "frozen_ms": millis(report.frozen),
        });
        let facts = self.facts(facts);
        let callouts = Arc::clone(&self.callouts);
        self.last_words.retain(|word| !word.is_finished());
        self.last_words.push(tokio::spawn(async move {
            callouts.call(CallMoment::Durable, &facts, None).await;
        }));
        self.files_bytes = report.sizes.preserved.map_or(0, |files| files.bytes);
        let measured = Measured {
            // The freeze came later; what changed in between is reckoned as not stored.
            frozen_at: begun,
            wall_ms: millis(report.wall),
            frozen_ms: millis(report.frozen),
            memory: report.sizes.memory + self.files_bytes,
            stored: report.sizes.stored,
            changed: report.sizes.changed(),
        };
        let how = match wanted == afterwards {
            true => Ended::Durable(measured),
            false => Ended::Spared(measured),
        };
        (how, CheckpointOutcome::Durable)
    }

    /// For those who look.
    fn note_result(
        &mut self,
        afterwards: Afterwards,
        outcome: CheckpointOutcome,
        result: &Result<Report, CheckpointError>,
    ) {
        self.obstacle = match outcome {
            CheckpointOutcome::Durable => None,
            CheckpointOutcome::Refused => Some(Checkpointable::Orphans),
            _ => Some(Checkpointable::Failed),
        };
        if outcome == CheckpointOutcome::Fenced {
            self.lease = Lease::Lost;
        }
        let result = match result {
            Ok(report) => {
                self.journal.memory(report.sizes.memory, 0);
                if afterwards == Afterwards::Stop {
                    metrics::deadline_margin(report.left);
                }
                json!({
                    "generation": report.generation,
                    "frozen_ms": millis(report.frozen),
                    "wall_ms": millis(report.wall),
                    "left_ms": millis(report.left),
                    "memory_bytes": report.sizes.memory,
                    "zero_bytes": report.sizes.zero,
                    "unchanged_bytes": report.sizes.unchanged,
                    "stored_bytes": report.sizes.stored,
                    "preserved": report.sizes.preserved,
                })
            }
            Err(error) => json!({ "problem": with_causes(error) }),
        };
        self.journal.checkpoint_ended(outcome, result);
    }

    /// For those who ask later.
    fn report(&mut self, afterwards: Afterwards, result: &Result<Report, CheckpointError>) {
        let log = self
            .protection
            .as_ref()
            .and_then(|protection| protection.checkpointer.complaint());
        let (cause, problem) = match result {
            Err(error) => (Cause::Failed, Some(with_causes(error))),
            Ok(_) if afterwards == Afterwards::Stop => (Cause::Evicted, None),
            Ok(_) => return,
        };
        self.reports
            .note(cause, problem, self.journal.to_json(), log);
    }

    /// What the boot found out about snapshots that it did not resume.
    fn report_unresumed(&mut self) {
        if let Some((problem, log)) = self.unresumed.take() {
            let history = self.journal.to_json();
            self.reports
                .note(Cause::NotResumed, Some(problem), history, log);
        }
    }

    /// None before the job is ours.
    fn shelf(&self) -> Option<Shelf> {
        self.owned.get().map(|ownership| ownership.shelf())
    }

    /// What is left to store, on the way out.
    async fn last_reports(&mut self) {
        if let Some(shelf) = self.shelf() {
            self.reports.finish(shelf, REPORT_LIMIT).await;
        }
    }

    /// Unless a checkpoint is to have all of the way to the store.
    fn send_reports(&mut self) {
        if let (Phase::Running, Some(shelf)) = (self.life.phase(), self.shelf()) {
            self.reports.send(shelf);
        }
    }

    fn not_succeeded(&mut self, error: &CheckpointError) -> (Ended, CheckpointOutcome) {
        self.failed += 1;
        let reason = with_causes(error);
        let remedy = error.remedy();
        let fenced = matches!(error, CheckpointError::Commit(CatalogError::Fenced(_)));
        let late = matches!(error, CheckpointError::Deadline { .. });
        if fenced {
            tracing::error!(
                reason,
                "another worker owns this job; our copy of it is stopped"
            );
        } else {
            tracing::error!(
                reason,
                remedy,
                "checkpoint failed; the job runs on and older snapshots stay as they are"
            );
        }
        self.last_failure = Some(reason.clone());
        self.last_answer = Some(if late {
            Outcome::TimedOut { reason }
        } else {
            Outcome::Failed {
                reason,
                remedy: remedy.to_owned(),
                job_runs_on: !fenced,
            }
        });
        match (fenced, error) {
            (true, _) => (Ended::Fenced, CheckpointOutcome::Fenced),
            (_, CheckpointError::Orphans(_)) => (Ended::Failed, CheckpointOutcome::Refused),
            _ if late => (Ended::Failed, CheckpointOutcome::TimedOut),
            _ => (Ended::Failed, CheckpointOutcome::Failed),
        }
    }

    /// Nothing has run on this host: whatever the boot had built is taken down, and the job is where it was.
    async fn abort_boot(mut self, signal: i32, signals: &mut Signals) -> u8 {
        tracing::info!(
            "told to stop before the app ran; nothing is lost, run the same command again"
        );
        self.end_others(Duration::ZERO, signals).await;
        self.say_goodbye(None).await;
        if self.settings.store.is_some() {
            self.settings.checkpointed_exit_code
        } else {
            Exit::Signal(signal).code()
        }
    }

    async fn finish(mut self, finish: Finish, signals: &mut Signals) -> u8 {
        self.housekeeping = None;
        self.seeding = None;
        self.checkups = None;
        if let Some(rehearsal) = self.rehearsing.take() {
            self.last_words.push(tokio::spawn(rehearsal.give_up()));
            self.await_last_words(signals).await;
        }
        let sources = self.sources.take();
        let code = match finish {
            Finish::AppEnded => self.finish_ended(signals).await,
            Finish::Checkpointed => self.finish_checkpointed(signals).await,
            Finish::Fenced => self.finish_fenced(signals).await,
        };
        // Whoever still waits to be told hears that there is nothing more to come.
        self.waiting.clear();
        if let Some(sources) = sources {
            sources.end().await;
        }
        self.last_reports().await;
        self.tell_state();
        code
    }

    async fn finish_ended(&mut self, signals: &mut Signals) -> u8 {
        let exit = self.exit.unwrap_or(Exit::Code(u8::MAX));
        self.end_others(self.settings.stop_grace, signals).await;
        self.finish_output().await;
        tracing::info!(%exit, "the app ended");
        let finished = Finished {
            exit_code: exit.code(),
            at_ms: host::wall_ms(),
        };
        self.say_goodbye(Some(finished)).await;
        exit.code()
    }

    async fn finish_checkpointed(&mut self, signals: &mut Signals) -> u8 {
        self.await_app(signals).await;
        if let Some(recorder) = self.journal.recorder() {
            self.last_words.push(tokio::spawn(recorder.up_to_date()));
        }
        self.await_last_words(signals).await;
        self.end_others(Duration::ZERO, signals).await;
        if let Some(stdio) = self.app.take().and_then(|app| Arc::into_inner(app.stdio)) {
            stdio.abandon();
        }
        self.say_goodbye(None).await;
        let code = self.settings.checkpointed_exit_code;
        tracing::info!(
            exit_code = code,
            "the job is stored and stopped; run the same command anywhere to resume it"
        );
        code
    }

    async fn finish_fenced(&mut self, signals: &mut Signals) -> u8 {
        self.lease = Lease::Lost;
        if let Some(app) = &self.app {
            drop(sys::kill(-app.pid, libc::SIGKILL));
        }
        self.await_app(signals).await;
        self.end_others(Duration::ZERO, signals).await;
        self.presence.end(Instant::now() + GOODBYE_LIMIT).await;
        ExitCode::Fenced.number()
    }

    /// Gives programs of the user's the time to do what follows.
    async fn await_last_words(&mut self, signals: &mut Signals) {
        let words = std::mem::take(&mut self.last_words);
        let spoken = async {
            for word in words {
                drop(word.await);
            }
        };
        tokio::pin!(spoken);
        loop {
            tokio::select! {
                () = &mut spoken => return,
                signal = signals.next() => if signal == libc::SIGCHLD { self.reaper.reap() },
            }
        }
    }

    async fn say_goodbye(&mut self, finished: Option<Finished>) {
        steps::reached(Step::Over);
        let deadline = Instant::now() + GOODBYE_LIMIT;
        let released = async {
            if let Some(ownership) = self.owned.get() {
                ownership.release(finished, deadline).await;
            }
        };
        tokio::join!(released, self.presence.end(deadline));
        if self.lease() == Lease::Held {
            self.lease = Lease::Released;
        }
        steps::reached(Step::Told);
    }

    async fn finish_output(&mut self) {
        let Some(stdio) = self.app.take().and_then(|app| Arc::into_inner(app.stdio)) else {
            return;
        };
        // It waits for readers that may be slow, off the loop.
        drop(tokio::task::spawn_blocking(move || stdio.finish(OUTPUT_LIMIT)).await);
    }

    /// The app was killed; its exit is ours to hear.
    async fn await_app(&mut self, signals: &mut Signals) {
        let Some(app) = &mut self.app else { return };
        if self.exit.is_some() {
            return;
        }
        let heard = async {
            loop {
                tokio::select! {
                    exit = &mut app.exit => return exit,
                    signal = signals.next() => if signal == libc::SIGCHLD { self.reaper.reap() },
                }
            }
        };
        if timeout(KILL_LIMIT, heard).await.is_err() {
            tracing::error!(pid = app.pid, "the app does not end although it was killed");
        }
    }

    /// Ends what is left of the job: TERM, a grace, then KILL.
    async fn end_others(&mut self, grace: Duration, signals: &mut Signals) {
        let own = nix::unistd::getpid().as_raw();
        let deadline = Instant::now() + grace;
        let mut told: Vec<i32> = Vec::new();
        let mut killing_since = None;
        loop {
            self.reaper.reap();
            let Ok(all) = proc::processes() else { return };
            let realm = self
                .protection
                .as_ref()
                .and_then(|protection| protection.checkpointer.realm.as_ref());
            // The keeper ends with us.
            let keeper: Vec<i32> = realm.iter().map(|realm| realm.keeper).collect();
            let mut roots = proc::other_children(&all, own, &keeper);
            for keeper in keeper {
                roots.extend(proc::other_children(&all, keeper, &[]));
            }
            if roots.is_empty() {
                return;
            }
            let left = roots.iter().flat_map(|root| proc::tree(&all, root.pid));
            let now = Instant::now();
            if now >= deadline {
                let since = *killing_since.get_or_insert(now);
                if now - since > KILL_LIMIT {
                    tracing::error!(
                        left = roots.len(),
                        "processes do not end although they were killed"
                    );
                    return;
                }
                left.for_each(|process| drop(sys::kill(process.pid, libc::SIGKILL)));
            } else {
                for process in left.filter(|process| process.state != 'Z') {
                    if !told.contains(&process.pid) {
                        tracing::info!(
                            pid = process.pid,
                            command = process.command,
                            "left of the job; told to end"
                        );
                        drop(sys::kill(process.pid, libc::SIGTERM));
                        drop(sys::kill(process.pid, libc::SIGCONT));
                        told.push(process.pid);
                    }
                }
            }
            drop(timeout(LOOK_AGAIN, signals.next()).await);
        }
    }
}

fn tell_decision(decision: &Decision) {
    tracing::info!(
        act = ?decision.act,
        reason = decision.reason.as_str(),
        source = decision.source.as_str(),
        fate = decision.fate.map(Fate::as_str),
        left_ms = decision.left_ms,
        needed_ms = decision.needed_ms,
        changed_bytes = decision.changed_bytes,
        "it is decided what to do with the time that is left"
    );
}

fn rules(settings: &Settings) -> Rules {
    Rules {
        margin_ms: millis(settings.deadline_margin),
        every: match settings.every {
            Period::Never => Every::Never,
            Period::Each(each) => Every::Ms(millis(each)),
            Period::Auto => Every::Auto {
                lifetime_ms: millis(settings.machine_lifetime),
                max_lost_ms: millis(settings.max_lost_work),
            },
        },
        // A period that was asked for by name counts.
        least_interval_ms: match settings.every {
            Period::Each(each) => millis(each.min(settings.least_interval)),
            _ => millis(settings.least_interval),
        },
        at_risk_ms: millis(settings.at_risk_interval),
        attempt_ms: millis(settings.checkpoint_timeout),
        on_too_late: match settings.on_too_late {
            settings::OnTooLate::Try => OnTooLate::Try,
            settings::OnTooLate::RunOn => OnTooLate::RunOn,
        },
        keep_promise: match settings.keep_promise {
            settings::KeepPromise::Warn => KeepPromise::Warn,
            settings::KeepPromise::Seed => KeepPromise::Seed,
            settings::KeepPromise::Checkpoint => KeepPromise::Checkpoint,
        },
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// An error and everything underneath it, on one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // A transparent error repeats its cause.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

async fn ended(under_way: &mut Option<UnderWay>) -> Result<Report, CheckpointError> {
    match under_way {
        Some(under_way) => (&mut under_way.task)
            .await
            .unwrap_or(Err(CheckpointError::Panicked)),
        None => std::future::pending().await,
    }
}

/// A boot looks after itself, and what is over cannot be fenced.
async fn fenced(owned: &OnceLock<Arc<Ownership>>, phase: Phase) {
    match owned.get() {
        Some(ownership) if phase == Phase::Running => ownership.fenced().await,
        _ => std::future::pending().await,
    }
}

async fn woken(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn news(sources: &mut Option<Sources>) -> News {
    match sources {
        Some(sources) => sources.next().await,
        None => std::future::pending().await,
    }
}

async fn news_of<T: Copy>(watched: &mut Option<watch::Receiver<T>>) -> T {
    if let Some(watched) = watched
        && watched.changed().await.is_ok()
    {
        return *watched.borrow_and_update();
    }
    std::future::pending().await
}

/// What this machine is, once.
async fn introduced(
    introduction: &mut Option<JoinHandle<Option<Introduced>>>,
) -> Option<Introduced> {
    let Some(asking) = introduction else {
        return std::future::pending().await;
    };
    let introduced = asking.await;
    *introduction = None;
    introduced.ok().flatten()
}

async fn rehearsed(rehearsing: &mut Option<Rehearsal>) -> rehearsal::Result {
    match rehearsing {
        Some(rehearsal) => rehearsal.ended().await,
        None => std::future::pending().await,
    }
}

async fn looked(checkups: &mut Option<Checkups>) -> Look {
    match checkups {
        Some(checkups) => checkups.next().await,
        None => std::future::pending().await,
    }
}

async fn exited(app: &mut Option<App>, known: Option<Exit>) -> Exit {
    match app {
        Some(app) if known.is_none() => (&mut app.exit).await.unwrap_or(Exit::Code(u8::MAX)),
        _ => std::future::pending().await,
    }
}

async fn finished(
    boot: &mut Option<JoinHandle<Result<Booted, Failure>>>,
) -> Result<Booted, Failure> {
    let Some(task) = boot else {
        return std::future::pending().await;
    };
    let booted = task.await;
    *boot = None;
    booted.unwrap_or_else(|error| {
        Err(Failure::new(ExitCode::Internal, "the boot panicked")
            .caused_by(error)
            .remedy("please report this"))
    })
}
