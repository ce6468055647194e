//! The life of a job under its supervisor: state and event in, next state and effects out.
//!
//! ```text
//!            AppReady              asked for, or planned
//!  Booting ───────────▶ Running ────────────────────▶ Checkpointing
//!     │                  ▲   │                          │  │
//!     │ TERM, INT, QUIT  │   │ AppEnded          failed │  │ durable
//!     ▼                  │   ▼            or left running  │ and stop, or
//!    Over ◀──────────────┼── Over ◀────────────────────────┘ app ended
//!                        └──────────────────────────────┘
//! ```
//!
//! What is announced is gathered in [`crate::episode`]; what to do about it, and about time that passes, is asked of
//! [`crate::planner`] whenever the job runs and something has happened, and again at [`Lifecycle::wake`].
//!
//! Invariants: at most one checkpoint at a time; every request and every announcement gets exactly one answer; no signal
//! reaches the app while it is frozen, because it would become part of the snapshot; a wish to stop that arrives during
//! a checkpoint that leaves the app running is carried out after it, never forgotten; a final checkpoint whose cause is
//! taken back leaves the app running if it can still be told to.

use crate::deadline::{Budget, budget};
use crate::episode::{Episodes, Going, Heard};
use crate::notice::{Afterwards, Announcement, Fate, Moment, Notice, Source, WallMs};
use crate::planner::{self, Act, Decision, Plan, Reason, Rules, Situation};
use crate::promise::{Ahead, Measured, Promise};
use crate::way::Way;

/// Names a request or an announcement that waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(pub u64);

/// What the settings say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Without a store nothing can be checkpointed; signals are simply passed on.
    pub can_checkpoint: bool,
    /// From SIGTERM to SIGKILL, in milliseconds.
    pub term_grace_ms: u64,
    pub on_failed_signal: OnFailure,
    pub rules: Rules,
}

/// What follows when the checkpoint that SIGTERM asked for failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// It is tried again while there is time; the job goes on until the machine is gone.
    RunOn,
    /// The app gets the SIGTERM.
    Forward,
}

/// How a checkpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Durable(Measured),
    /// Durable, and the app goes on although it was to stop: [`Effect::Spare`] came in time.
    Spared(Measured),
    Failed,
    /// Another owner took the job; ours must not go on.
    Fenced,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Signal(i32),
    /// A source announced something.
    Announced {
        id: RequestId,
        announcement: Announcement,
        wall_now: WallMs,
    },
    /// Somebody asked for a checkpoint.
    Request {
        id: RequestId,
        by: Source,
        afterwards: Afterwards,
        deadline: Moment,
    },
    AppReady,
    AppEnded,
    CheckpointEnded(Ended),
    /// Another worker owns the job now.
    Fenced,
    /// More is known of the way to the store.
    Carried(Way),
    /// The job's memory was looked at and stored ahead. None: what was is of no use any more.
    StoredAhead(Option<Ahead>),
    /// The moment of [`Lifecycle::wake`] has come.
    Woken,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Give the boot up because of this signal: nothing has run yet.
    AbortBoot(i32),
    /// Take a checkpoint within this budget and report [`Event::CheckpointEnded`].
    Begin {
        notice: Notice,
        budget: Budget,
        decision: Decision,
    },
    /// The running checkpoint has less time than it was told, or more: what it was in a hurry for is put off or withdrawn.
    Retime(Budget),
    /// The running checkpoint was to stop the app and is to leave it running, if that is still possible; it reports which.
    Spare,
    /// Pass the signal on to the app.
    Forward(i32),
    /// Tell this requester how the checkpoint that just ended went.
    Answer(RequestId),
    /// Tell this requester why there will be no checkpoint.
    Refuse(RequestId, String),
    /// Tell this announcer that nothing needs to be done, or nothing more.
    Note(RequestId),
    /// It was decided otherwise than before.
    Decided(Decision),
    /// It is known beforehand that a deadline will hardly be kept.
    InDanger(Decision),
    /// A checkpoint would take longer by now than the shortest notice that is to be expected. Told once.
    Outgrown {
        needed_ms: u64,
        notice_ms: u64,
        changed_bytes: u64,
    },
    /// A deadline passes without a checkpoint, for this reason.
    Missed { source: Source, reason: String },
    /// It is over.
    Finish(Finish),
}

/// Why it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The app ended by itself.
    AppEnded,
    /// The app is stored and stopped.
    Checkpointed,
    /// Another owner runs the job.
    Fenced,
}

/// Where the job is. The names are those of the state metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Booting,
    Running,
    Checkpointing,
    Over,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Booting => "booting",
            Self::Running => "running",
            Self::Checkpointing => "checkpointing",
            Self::Over => "over",
        }
    }
}

#[derive(Debug)]
struct Run {
    notice: Notice,
    /// The end that was known when it began, or has become known since.
    end: Option<Moment>,
    /// By when somebody who asked for it by name wants it done.
    asked_by: Option<Moment>,
    waiting: Vec<RequestId>,
    /// Signals that arrived meanwhile, in order.
    held: Vec<i32>,
    /// A wish that this run does not satisfy.
    next: Option<(Notice, Vec<RequestId>)>,
    app_ended: bool,
    fenced: bool,
    /// Somebody asked for it by name and wants the app stopped.
    stop_asked: bool,
    /// What it was the last checkpoint for will not come.
    spared: bool,
}

#[derive(Debug)]
enum State {
    Booting { held: Vec<i32> },
    Running,
    Checkpointing(Run),
    Over,
}

/// The state machine of one supervisor.
#[derive(Debug)]
pub struct Lifecycle {
    policy: Policy,
    state: State,
    episodes: Episodes,
    promise: Promise,
    ready: Moment,
    safe: Option<Moment>,
    begun: Option<Moment>,
    ended: Option<Moment>,
    failures: u32,
    /// The newest decision, so that only another one is told.
    decided: Option<Decision>,
    /// The end that was told to be in danger or missed, so that each is told once.
    endangered: Option<Moment>,
    /// The shortest notice that is to be expected, and whether it was told that it is too short.
    notice_ms: Option<u64>,
    outgrown: bool,
    /// Looks in a row after which the promise did not hold.
    in_vain: u32,
    wake: Option<Moment>,
}

/// Linux's numbers, the same on every architecture we build for.
const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;
const SIGTERM: i32 = 15;

/// Whether this signal, before the app runs, means that it need not be started.
pub fn ends_a_boot(signal: i32) -> bool {
    matches!(signal, SIGINT | SIGQUIT | SIGTERM)
}

const NO_STORE: &str =
    "no store is set, so there is nowhere to put a checkpoint; start `reprieve run` with --store";
const OVER: &str = "the job is over";

impl Lifecycle {
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            state: State::Booting { held: Vec::new() },
            episodes: Episodes::default(),
            promise: Promise::default(),
            ready: Moment(0),
            safe: None,
            begun: None,
            ended: None,
            failures: 0,
            decided: None,
            endangered: None,
            notice_ms: None,
            outgrown: false,
            in_vain: 0,
            wake: None,
        }
    }

    pub fn phase(&self) -> Phase {
        match self.state {
            State::Booting { .. } => Phase::Booting,
            State::Running => Phase::Running,
            State::Checkpointing(_) => Phase::Checkpointing,
            State::Over => Phase::Over,
        }
    }

    /// When to come back with [`Event::Woken`], if nothing happens before.
    pub fn wake(&self) -> Option<Moment> {
        self.wake.filter(|_| matches!(self.state, State::Running))
    }

    /// How long it would take to bring the job into safety now.
    pub fn promise(&self) -> &Promise {
        &self.promise
    }

    /// How long before the end it will be announced, at the shortest.
    pub fn expect(&mut self, notice_ms: u64) {
        self.notice_ms = Some(notice_ms);
    }

    /// The job was resumed from a snapshot, which is of this moment for all that it changes.
    pub fn resumed(&mut self, now: Moment) {
        self.promise.begin_from(now);
    }

    /// When memory is to be stored ahead again at the latest: so that the next checkpoint fits into the shortest notice, or
    /// so that the final one can begin later.
    pub fn seed_by(&self, now: Moment) -> Option<Moment> {
        if self.works_on() {
            return Some(planner::seed_before_end(now, &self.promise));
        }
        let rules = &self.policy.rules;
        planner::seed_by(now, self.notice_ms?, self.in_vain, rules, &self.promise)
    }

    /// An end is announced, the job is safe, and it works on until the last moment that is safe.
    pub fn works_on(&self) -> bool {
        let decided = self.decided;
        decided.is_some_and(|of| of.act == Act::Wait && of.reason == Reason::WorksOn)
    }

    /// What is planned.
    pub fn decision(&self) -> Option<Decision> {
        self.decided
    }

    /// The end that is to be expected.
    pub fn going(&self) -> Option<Going> {
        self.episodes.going()
    }

    /// Takes an event in and says what to do about it, in order.
    pub fn handle(&mut self, event: Event, now: Moment) -> Vec<Effect> {
        let mut effects = match event {
            Event::Signal(SIGTERM) if self.policy.can_checkpoint => self.terminated(now),
            Event::Signal(signal) => self.signalled(signal),
            Event::Announced {
                id,
                announcement,
                wall_now,
            } => self.announced(id, announcement, wall_now, now),
            Event::Request {
                id,
                by,
                afterwards,
                deadline,
            } => {
                let notice = Notice {
                    trigger: by,
                    afterwards,
                    deadline,
                };
                self.requested(id, notice, now)
            }
            Event::AppReady => self.ready(now),
            Event::AppEnded => self.app_ended(),
            Event::CheckpointEnded(how) => self.checkpoint_ended(how, now),
            Event::Fenced => self.fenced(),
            Event::Carried(way) => {
                self.promise.goes(way);
                Vec::new()
            }
            Event::StoredAhead(ahead) => {
                self.stored_ahead(ahead, now);
                Vec::new()
            }
            Event::Woken => Vec::new(),
        };
        match &self.state {
            State::Running => self.consider(now, &mut effects),
            State::Over => {
                let waited = self.episodes.close();
                let refusals = waited
                    .into_iter()
                    .map(|id| Effect::Refuse(id, OVER.to_owned()));
                // The end itself comes last: whoever carries it out looks at nothing after it.
                let at = effects
                    .iter()
                    .position(|effect| matches!(effect, Effect::Finish(_) | Effect::AbortBoot(_)));
                let at = at.unwrap_or(effects.len());
                effects.splice(at..at, refusals);
            }
            State::Booting { .. } | State::Checkpointing(_) => {}
        }
        effects
    }

    fn terminated(&mut self, now: Moment) -> Vec<Effect> {
        if let State::Over = self.state {
            return Vec::new();
        }
        if let State::Booting { .. } = self.state {
            return self.abort_boot(SIGTERM);
        }
        let deadline = now.plus_ms(self.policy.term_grace_ms);
        let is_done_about = matches!(self.state, State::Checkpointing(_));
        if !self.episodes.terminated(deadline, now, is_done_about) {
            // A second one means now: no pause after a failure.
            self.failures = 0;
        }
        if let State::Checkpointing(run) = &mut self.state
            && run.afterwards() == Afterwards::Stop
        {
            // A signal's wish outlives a request's: if this run fails it is treated as the signal's.
            run.notice.trigger = Source::Signal;
        }
        self.hurry(now)
    }

    fn announced(
        &mut self,
        id: RequestId,
        announcement: Announcement,
        wall_now: WallMs,
        now: Moment,
    ) -> Vec<Effect> {
        if !self.policy.can_checkpoint {
            return vec![Effect::Refuse(id, NO_STORE.to_owned())];
        }
        if let State::Over = self.state {
            return vec![Effect::Refuse(id, OVER.to_owned())];
        }
        let before = self.episodes.going();
        match self.episodes.hear(announcement, id, now, wall_now) {
            Heard::News { .. } | Heard::Joined { .. } => {
                let spared = self.spare(before, now);
                let retimed = self.hurry(now).into_iter().chain(self.relax(now));
                retimed.chain(spared).collect()
            }
            Heard::Over => vec![Effect::Note(id)],
            Heard::Withdrawn(waited) => {
                let all = waited.into_iter().chain([id]);
                let notes = all.map(Effect::Note).collect::<Vec<_>>();
                let spared = self.spare(before, now);
                let retimed = self.relax(now);
                notes.into_iter().chain(retimed).chain(spared).collect()
            }
            Heard::Stale { by_ms } => {
                let seconds = by_ms / 1000;
                let reason =
                    format!("its time passed {seconds} s ago, and the machine is still there");
                vec![Effect::Refuse(id, reason)]
            }
        }
    }

    /// The last checkpoint before an end that will not come, or not yet, need not be the last.
    fn spare(&mut self, before: Option<Going>, now: Moment) -> Option<Effect> {
        let going = self.episodes.going();
        let later = match (before?.deadline, going.map(|going| going.deadline)) {
            (_, None) => true,
            (Some(before), Some(Some(now))) => now > before,
            (None, Some(now)) => now.is_some(),
            (Some(_), Some(None)) => false,
        };
        let State::Checkpointing(run) = &self.state else {
            return None;
        };
        if !later || run.stop_asked || run.afterwards() == Afterwards::Continue {
            return None;
        }
        let decision = planner::decide(&self.situation(now), &self.policy.rules, &self.promise);
        let needed = match decision.decision.act {
            Act::Final | Act::GiveUp => true,
            // What hardly fits is better had than not.
            Act::Wait => matches!(decision.decision.reason, Reason::TooLate | Reason::Pause),
            Act::LeaveRunning => false,
        };
        let State::Checkpointing(run) = &mut self.state else {
            return None;
        };
        run.spared = !needed;
        run.spared.then_some(Effect::Spare)
    }

    /// A checkpoint under way may have less time now.
    fn hurry(&mut self, now: Moment) -> Vec<Effect> {
        let Some(going) = self.episodes.going() else {
            return Vec::new();
        };
        let State::Checkpointing(run) = &mut self.state else {
            return Vec::new();
        };
        let attempt = now.plus_ms(self.policy.rules.attempt_ms);
        let deadline = going.deadline.unwrap_or(attempt);
        if run.end.is_some_and(|known| known <= deadline) {
            return Vec::new();
        }
        run.end = Some(deadline);
        let limit = run.limit(deadline, now);
        if limit >= run.notice.deadline {
            return Vec::new();
        }
        run.notice.deadline = limit;
        let budget = budget(now, limit, self.policy.rules.margin_ms);
        budget.map(Effect::Retime).into_iter().collect()
    }

    /// A checkpoint under way that was in a hurry for an end has its time back when that end comes later, or not at all.
    fn relax(&mut self, now: Moment) -> Option<Effect> {
        let end = self.episodes.going().map(|going| going.deadline);
        let State::Checkpointing(run) = &mut self.state else {
            return None;
        };
        let known = run.end?;
        let attempt = now.plus_ms(self.policy.rules.attempt_ms);
        let (end, limit) = match end.flatten() {
            Some(end) if end <= known => return None,
            Some(end) => (Some(end), run.limit(end, now).min(attempt)),
            // Nobody is known to be in a hurry, or nobody says how much of one.
            None => (end.map(|_| attempt), attempt),
        };
        run.end = end;
        let limit = run.asked_by.map_or(limit, |asked_by| limit.min(asked_by));
        if limit <= run.notice.deadline {
            return None;
        }
        run.notice.deadline = limit;
        budget(now, limit, self.policy.rules.margin_ms)
            .ok()
            .map(Effect::Retime)
    }

    fn stored_ahead(&mut self, ahead: Option<Ahead>, now: Moment) {
        let Some(ahead) = ahead else {
            self.promise.nothing_is_ahead();
            return;
        };
        self.promise.stored_ahead(ahead);
        let rules = &self.policy.rules;
        let holds = self
            .notice_ms
            .is_none_or(|notice_ms| planner::promise_holds(now, notice_ms, rules, &self.promise));
        self.in_vain = match holds {
            true => 0,
            false => self.in_vain.saturating_add(1),
        };
    }

    fn signalled(&mut self, signal: i32) -> Vec<Effect> {
        match &mut self.state {
            State::Booting { .. } if ends_a_boot(signal) => self.abort_boot(signal),
            State::Booting { held } => {
                held.push(signal);
                Vec::new()
            }
            State::Running => vec![Effect::Forward(signal)],
            State::Checkpointing(run) => {
                run.held.push(signal);
                Vec::new()
            }
            State::Over => Vec::new(),
        }
    }

    fn requested(&mut self, id: RequestId, notice: Notice, now: Moment) -> Vec<Effect> {
        let Notice {
            afterwards,
            deadline,
            ..
        } = notice;
        let refuse = |reason: &str| vec![Effect::Refuse(id, reason.to_owned())];
        if !self.policy.can_checkpoint {
            return refuse(NO_STORE);
        }
        match &mut self.state {
            State::Booting { .. } => {
                refuse("the app is not running yet; `reprieve status` tells when it is")
            }
            State::Running => {
                let decision = Decision::asked(notice.trigger, afterwards, now.ms_until(deadline));
                self.begin(notice, decision, vec![id], now)
            }
            State::Checkpointing(run)
                if afterwards == Afterwards::Stop && run.afterwards() == Afterwards::Stop =>
            {
                // From the freeze on nothing changes any more: this one's outcome is that one's.
                run.stop_asked = true;
                run.waiting.push(id);
                run.asked_by = Some(run.asked_by.map_or(deadline, |by| by.min(deadline)));
                if deadline >= run.notice.deadline {
                    return Vec::new();
                }
                run.notice.deadline = deadline;
                let budget = budget(now, deadline, self.policy.rules.margin_ms);
                budget.map(Effect::Retime).into_iter().collect()
            }
            State::Checkpointing(run) if run.afterwards() == Afterwards::Continue => {
                // What is under way may be of a moment before this was asked for.
                run.queue(notice, Some(id));
                Vec::new()
            }
            State::Checkpointing(_) => refuse(
                "a checkpoint that stops the app is under way; it cannot be left running any more",
            ),
            State::Over => refuse(OVER),
        }
    }

    fn ready(&mut self, now: Moment) -> Vec<Effect> {
        let State::Booting { held } = &mut self.state else {
            return Vec::new();
        };
        let effects = held.drain(..).map(Effect::Forward).collect();
        self.state = State::Running;
        self.ready = now;
        effects
    }

    fn abort_boot(&mut self, signal: i32) -> Vec<Effect> {
        self.state = State::Over;
        vec![Effect::AbortBoot(signal)]
    }

    fn app_ended(&mut self) -> Vec<Effect> {
        match &mut self.state {
            State::Checkpointing(run) => {
                // Whether it ended by itself or because it is stored is known when the checkpoint has ended.
                run.app_ended = true;
                Vec::new()
            }
            State::Over => Vec::new(),
            State::Booting { .. } | State::Running => {
                self.state = State::Over;
                vec![Effect::Finish(Finish::AppEnded)]
            }
        }
    }

    fn fenced(&mut self) -> Vec<Effect> {
        match &mut self.state {
            State::Checkpointing(run) => {
                // It cannot be committed any more; when it has ended, the frozen app is let go and can be stopped.
                run.fenced = true;
                Vec::new()
            }
            State::Running => {
                self.state = State::Over;
                vec![Effect::Finish(Finish::Fenced)]
            }
            State::Booting { .. } | State::Over => Vec::new(),
        }
    }

    fn checkpoint_ended(&mut self, how: Ended, now: Moment) -> Vec<Effect> {
        let State::Checkpointing(run) = std::mem::replace(&mut self.state, State::Running) else {
            return Vec::new();
        };
        self.ended = Some(now);
        let afterwards = run.afterwards();
        let mut effects: Vec<Effect> = run.waiting.into_iter().map(Effect::Answer).collect();
        let stopped = matches!(how, Ended::Durable(_)) && run.notice.afterwards == Afterwards::Stop;
        match how {
            Ended::Durable(measured) | Ended::Spared(measured) => {
                self.failures = 0;
                self.promise.learn(measured);
                self.safe = Some(measured.frozen_at);
                let told = match stopped {
                    true => self.episodes.close(),
                    false => self.episodes.safe(measured.frozen_at),
                };
                effects.extend(told.into_iter().map(Effect::Answer));
            }
            Ended::Failed | Ended::Fenced => self.failures = self.failures.saturating_add(1),
        }
        let fenced = how == Ended::Fenced || (run.fenced && !stopped);
        if let Some(finish) = finish(fenced, stopped, run.app_ended) {
            self.state = State::Over;
            let unserved = run.next.into_iter().flat_map(|(_, waiting)| waiting);
            effects.extend(unserved.map(|id| match stopped {
                // It was to be spared and was not: nothing has changed since what is stored.
                true => Effect::Answer(id),
                false => Effect::Refuse(id, OVER.to_owned()),
            }));
            effects.push(Effect::Finish(finish));
            return effects;
        }
        effects.extend(run.held.into_iter().map(Effect::Forward));
        if let Some((notice, waiting)) = run.next {
            let left_ms = now.ms_until(notice.deadline);
            let decision = Decision::asked(notice.trigger, notice.afterwards, left_ms);
            effects.extend(self.begin(notice, decision, waiting, now));
        } else if run.notice.trigger == Source::Signal && afterwards == Afterwards::Stop && !stopped
        {
            effects.extend(self.pass_on_signal());
        }
        effects
    }

    /// The app is to save itself, if the policy says so.
    fn pass_on_signal(&mut self) -> Option<Effect> {
        if self.policy.on_failed_signal == OnFailure::RunOn {
            return None;
        }
        self.episodes.give_up_signal();
        Some(Effect::Forward(SIGTERM))
    }

    fn begin(
        &mut self,
        notice: Notice,
        decision: Decision,
        waiting: Vec<RequestId>,
        now: Moment,
    ) -> Vec<Effect> {
        let going = self.episodes.going();
        let is_asked = decision.reason == Reason::Asked;
        let stop_asked = is_asked && notice.afterwards == Afterwards::Stop;
        let asked_by = is_asked.then_some(notice.deadline);
        let notice = merged(notice, going);
        match budget(now, notice.deadline, self.policy.rules.margin_ms) {
            Ok(budget) => {
                self.begun = Some(now);
                self.state = State::Checkpointing(Run {
                    notice,
                    end: going.and_then(|going| going.deadline),
                    asked_by,
                    waiting,
                    held: Vec::new(),
                    next: None,
                    app_ended: false,
                    fenced: false,
                    stop_asked,
                    spared: false,
                });
                vec![Effect::Begin {
                    notice,
                    budget,
                    decision,
                }]
            }
            Err(no_time) => {
                let refuse = |id| Effect::Refuse(id, no_time.to_string());
                waiting.into_iter().map(refuse).collect()
            }
        }
    }

    /// The job runs and something has happened: what follows?
    fn consider(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        self.wake = None;
        if !self.policy.can_checkpoint {
            return;
        }
        let going = self.episodes.going();
        self.miss(going, now, effects);
        let Plan {
            decision,
            deadline,
            again,
        } = planner::decide(&self.situation(now), &self.policy.rules, &self.promise);
        let known =
            |before: Decision| (before.act, before.reason) == (decision.act, decision.reason);
        let telling = !matches!(
            decision.reason,
            Reason::Nothing | Reason::Pause | Reason::NoHurry
        );
        if telling && !self.decided.is_some_and(known) {
            effects.push(Effect::Decided(decision));
        }
        self.decided = Some(decision);
        let danger = matches!(decision.reason, Reason::TooLate | Reason::TooLateTried);
        if danger && self.endangered != Some(deadline) {
            self.endangered = Some(deadline);
            effects.push(Effect::InDanger(decision));
        }
        match decision.act {
            Act::Final | Act::LeaveRunning => {
                let notice = Notice {
                    trigger: decision.source,
                    afterwards: decision.afterwards(),
                    deadline,
                };
                let begun = self.begin(notice, decision, Vec::new(), now);
                effects.extend(begun);
            }
            Act::Wait => {
                let doubt = self.doubt(now, effects);
                self.wake = again.into_iter().chain(doubt).min();
            }
            Act::GiveUp => {
                self.give_up(decision.source, deadline, now, effects);
                // What is left has a later deadline.
                self.consider(now, effects);
            }
        }
    }

    fn situation(&self, now: Moment) -> Situation {
        Situation {
            now,
            going: self.episodes.going(),
            at_risk: self.episodes.at_risk(),
            notice_ms: self.notice_ms,
            ready: self.ready,
            safe: self.safe,
            begun: self.begun,
            ended: self.ended,
            failures: self.failures,
        }
    }

    /// Tells once that a checkpoint does not fit into the shortest notice any more, or says when that will be so.
    fn doubt(&mut self, now: Moment, effects: &mut Vec<Effect>) -> Option<Moment> {
        let notice_ms = self.notice_ms.filter(|_| !self.outgrown)?;
        let ends = planner::promise_ends(now, notice_ms, &self.policy.rules, &self.promise)?;
        if ends > now {
            return Some(ends);
        }
        self.outgrown = true;
        effects.push(Effect::Outgrown {
            needed_ms: self.promise.ms_to_safe(now)?,
            notice_ms,
            changed_bytes: self.promise.changed_by(now)?,
        });
        None
    }

    /// Ends what has passed.
    fn miss(&mut self, going: Option<Going>, now: Moment, effects: &mut Vec<Effect>) {
        let Some(going) = going else { return };
        // A provider that gives no time was answered with one attempt after the other for as long as one may take, from
        // when there was an app to be stored.
        let limit = going.deadline.unwrap_or_else(|| {
            let since = going.since.max(self.ready);
            since.plus_ms(self.policy.rules.attempt_ms)
        });
        if limit <= now {
            self.give_up(going.source, limit, now, effects);
        }
    }

    fn give_up(
        &mut self,
        source: Source,
        deadline: Moment,
        now: Moment,
        effects: &mut Vec<Effect>,
    ) {
        let going = self.episodes.going();
        let since = going.map(|going| going.since);
        let after = |moment: Option<Moment>| moment.is_some() && moment >= since;
        let hibernates = going.map(|going| going.fate) == Some(Fate::Hibernate);
        let saved = hibernates && after(self.safe);
        let failed = after(self.ended) && self.failures > 0;
        let reason = match failed {
            true => "every attempt before the deadline failed".to_owned(),
            false => match budget(now, deadline, self.policy.rules.margin_ms) {
                Err(no_time) => no_time.to_string(),
                Ok(_) => "the deadline has passed".to_owned(),
            },
        };
        let terminated = self.episodes.is_terminated();
        let undated = going.is_some_and(|going| going.deadline.is_none());
        let mut waited = self.episodes.pass(deadline.max(now));
        if undated {
            waited.extend(self.episodes.give_up_undated());
        }
        if !saved {
            effects.push(Effect::Missed {
                source,
                reason: reason.clone(),
            });
            if terminated {
                effects.extend(self.pass_on_signal());
            }
        }
        effects.extend(waited.into_iter().map(|id| match (saved, failed) {
            (true, _) => Effect::Note(id),
            (_, true) => Effect::Answer(id),
            _ => Effect::Refuse(id, reason.clone()),
        }));
    }
}

/// What is asked for while the end is at hand: the last checkpoint there will be.
fn merged(notice: Notice, going: Option<Going>) -> Notice {
    let Some(going) = going else { return notice };
    let deadline = going
        .deadline
        .map_or(notice.deadline, |end| end.min(notice.deadline));
    match going.at_once && going.fate != Fate::Hibernate {
        true => Notice {
            trigger: going.source,
            afterwards: Afterwards::Stop,
            deadline,
        },
        false => Notice { deadline, ..notice },
    }
}

impl Run {
    /// What it is to be, as far as is known.
    fn afterwards(&self) -> Afterwards {
        match self.spared {
            true => Afterwards::Continue,
            false => self.notice.afterwards,
        }
    }

    /// When to be done before this end.
    fn limit(&self, end: Moment, now: Moment) -> Moment {
        match self.afterwards() {
            Afterwards::Stop => end,
            // The one after it needs its share of the time, and a miss has to be told before it is too late.
            Afterwards::Continue => now.plus_ms(now.ms_until(end) / 2),
        }
    }

    fn queue(&mut self, notice: Notice, id: Option<RequestId>) {
        let (queued, waiting) = self.next.get_or_insert((notice, Vec::new()));
        queued.deadline = queued.deadline.min(notice.deadline);
        if notice.afterwards == Afterwards::Stop {
            queued.afterwards = Afterwards::Stop;
        }
        waiting.extend(id);
    }
}

fn finish(fenced: bool, stopped: bool, app_ended: bool) -> Option<Finish> {
    match (fenced, stopped, app_ended) {
        (true, ..) => Some(Finish::Fenced),
        (_, true, _) => Some(Finish::Checkpointed),
        (.., true) => Some(Finish::AppEnded),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notice::Says;
    use crate::planner::{Every, KeepPromise, OnTooLate};
    use proptest::prelude::*;

    const POLICY: Policy = Policy {
        can_checkpoint: true,
        term_grace_ms: 10_000,
        on_failed_signal: OnFailure::RunOn,
        rules: Rules {
            margin_ms: 1_000,
            every: Every::Never,
            least_interval_ms: 30_000,
            at_risk_ms: 600_000,
            attempt_ms: 25_000,
            on_too_late: OnTooLate::Try,
            keep_promise: KeepPromise::Warn,
        },
    };
    const MEASURED: Measured = Measured {
        frozen_at: T0,
        wall_ms: 100,
        frozen_ms: 50,
        memory: 1 << 20,
        changed: 1 << 10,
        stored: 1 << 10,
    };
    const DURABLE: Event = Event::CheckpointEnded(Ended::Durable(MEASURED));
    const T0: Moment = Moment(1_000);

    fn running(policy: Policy) -> Lifecycle {
        let mut life = Lifecycle::new(policy);
        life.handle(Event::AppReady, T0);
        life
    }

    fn request(number: u64, afterwards: Afterwards) -> Event {
        Event::Request {
            id: RequestId(number),
            by: Source::Control,
            afterwards,
            deadline: T0.plus_ms(25_000),
        }
    }

    fn begins(effects: &[Effect]) -> usize {
        effects
            .iter()
            .filter(|effect| matches!(effect, Effect::Begin { .. }))
            .count()
    }

    #[test]
    fn sigterm_checkpoints_and_stops() {
        let mut life = running(POLICY);
        assert_eq!(begins(&life.handle(Event::Signal(SIGTERM), T0)), 1);
        assert_eq!(life.phase(), Phase::Checkpointing);
        assert_eq!(life.handle(Event::AppEnded, T0), []);
        assert_eq!(
            life.handle(DURABLE, T0),
            [Effect::Finish(Finish::Checkpointed)]
        );
    }

    #[test]
    fn a_second_sigterm_joins() {
        let mut life = running(POLICY);
        life.handle(Event::Signal(SIGTERM), T0);
        assert_eq!(life.handle(Event::Signal(SIGTERM), T0.plus_ms(5)), []);
    }

    #[test]
    fn a_second_sigterm_during_an_attempt_that_fails_leads_to_another_in_its_own_time() {
        for on_failed_signal in [OnFailure::RunOn, OnFailure::Forward] {
            let mut life = running(Policy {
                on_failed_signal,
                ..POLICY
            });
            assert_eq!(begins(&life.handle(Event::Signal(SIGTERM), T0)), 1);
            assert_eq!(
                life.handle(Event::Signal(SIGTERM), T0.plus_ms(6_000)),
                [],
                "what is under way has the first one's time"
            );
            let mut now = T0.plus_ms(9_900);
            let mut effects = life.handle(Event::CheckpointEnded(Ended::Failed), now);
            if on_failed_signal == OnFailure::Forward {
                assert_eq!(effects, [Effect::Forward(SIGTERM)], "the app saves itself");
                assert_eq!((life.going(), life.wake()), (None, None));
                continue;
            }
            while let Some(wake) = life.wake() {
                assert!(wake > now);
                now = wake;
                effects.extend(life.handle(Event::Woken, now));
            }
            let missed = |effect: &&Effect| matches!(effect, Effect::Missed { .. });
            assert_eq!(effects.iter().filter(missed).count(), 1, "the first one's");
            let begun = effects.iter().find_map(|effect| match effect {
                Effect::Begin { notice, .. } => Some(*notice),
                _ => None,
            });
            let begun = begun.expect("the second one is carried out");
            assert_eq!(
                (begun.afterwards, begun.deadline),
                (Afterwards::Stop, T0.plus_ms(16_000))
            );
            assert!(now <= T0.plus_ms(11_000), "{now:?}: at once");
            assert_eq!(
                life.handle(DURABLE, T0.plus_ms(12_000)),
                [Effect::Finish(Finish::Checkpointed)]
            );
        }
    }

    #[test]
    fn what_sigterm_asked_for_and_failed_is_tried_again_while_there_is_time() {
        let mut life = running(POLICY);
        life.handle(Event::Signal(SIGTERM), T0);
        let mut now = T0;
        let mut begun = 1;
        loop {
            now = now.plus_ms(100);
            let mut effects = life.handle(Event::CheckpointEnded(Ended::Failed), now);
            while let Some(wake) = life.wake() {
                now = wake;
                effects.extend(life.handle(Event::Woken, now));
            }
            begun += begins(&effects);
            if begins(&effects) == 0 {
                let missed = |effect: &Effect| matches!(effect, Effect::Missed { .. });
                assert_eq!(effects.iter().filter(|effect| missed(effect)).count(), 1);
                break;
            }
        }
        assert!(begun > 3, "{begun}");
        assert_eq!(life.phase(), Phase::Running);
        assert_eq!(life.handle(Event::Woken, now.plus_ms(60_000)), []);
    }

    #[test]
    fn a_second_sigterm_ends_the_pause() {
        let mut life = running(POLICY);
        life.handle(Event::Signal(SIGTERM), T0);
        let effects = life.handle(Event::CheckpointEnded(Ended::Failed), T0.plus_ms(10));
        assert_eq!(begins(&effects), 0);
        let effects = life.handle(Event::Signal(SIGTERM), T0.plus_ms(11));
        assert_eq!(begins(&effects), 1);
    }

    #[test]
    fn sigterm_tightens_a_requests_longer_deadline() {
        let mut life = running(POLICY);
        life.handle(request(1, Afterwards::Stop), T0);
        let effects = life.handle(Event::Signal(SIGTERM), T0);
        assert!(
            matches!(effects[..], [Effect::Retime(budget)] if budget.committed_by == Moment(10_000))
        );
    }

    #[test]
    fn without_a_store_sigterm_goes_to_the_app_and_requests_are_refused() {
        let mut life = running(Policy {
            can_checkpoint: false,
            ..POLICY
        });
        assert_eq!(
            life.handle(Event::Signal(SIGTERM), T0),
            [Effect::Forward(SIGTERM)]
        );
        assert!(matches!(
            life.handle(request(1, Afterwards::Stop), T0)[..],
            [Effect::Refuse(RequestId(1), _)]
        ));
    }

    #[test]
    fn a_failed_checkpoint_leaves_the_job_running_and_passes_on_what_was_held() {
        let mut life = running(POLICY);
        life.handle(Event::Signal(SIGTERM), T0);
        assert_eq!(life.handle(Event::Signal(10), T0), []);
        assert_eq!(
            life.handle(Event::CheckpointEnded(Ended::Failed), T0),
            [Effect::Forward(10)]
        );
        assert_eq!(life.phase(), Phase::Running);
    }

    #[test]
    fn a_failed_signal_checkpoint_is_passed_on_if_the_policy_says_so() {
        let mut life = running(Policy {
            on_failed_signal: OnFailure::Forward,
            ..POLICY
        });
        life.handle(Event::Signal(SIGTERM), T0);
        assert_eq!(
            life.handle(Event::CheckpointEnded(Ended::Failed), T0),
            [Effect::Forward(SIGTERM)]
        );
    }

    #[test]
    fn an_app_that_ended_during_a_failed_checkpoint_is_over() {
        let mut life = running(POLICY);
        life.handle(request(1, Afterwards::Continue), T0);
        life.handle(Event::AppEnded, T0);
        assert_eq!(
            life.handle(Event::CheckpointEnded(Ended::Failed), T0),
            [
                Effect::Answer(RequestId(1)),
                Effect::Finish(Finish::AppEnded)
            ]
        );
    }

    #[test]
    fn sigterm_during_a_checkpoint_that_leaves_running_is_carried_out_after_it() {
        let mut life = running(POLICY);
        life.handle(request(1, Afterwards::Continue), T0);
        let effects = life.handle(Event::Signal(SIGTERM), T0);
        assert!(matches!(effects[..], [Effect::Retime(_)]), "{effects:?}");
        let effects = life.handle(DURABLE, T0.plus_ms(100));
        assert_eq!(effects[0], Effect::Answer(RequestId(1)));
        assert_eq!(begins(&effects), 1);
    }

    #[test]
    fn sigterm_before_the_app_runs_gives_the_boot_up() {
        let mut life = Lifecycle::new(POLICY);
        assert_eq!(
            life.handle(Event::Signal(SIGTERM), T0),
            [Effect::AbortBoot(SIGTERM)]
        );
    }

    #[test]
    fn a_fenced_job_ends_at_once_or_when_its_checkpoint_has() {
        let mut life = running(POLICY);
        assert_eq!(
            life.handle(Event::Fenced, T0),
            [Effect::Finish(Finish::Fenced)]
        );
        let mut life = running(POLICY);
        life.handle(request(1, Afterwards::Continue), T0);
        assert_eq!(life.handle(Event::Fenced, T0), []);
        assert_eq!(
            life.handle(Event::CheckpointEnded(Ended::Failed), T0),
            [Effect::Answer(RequestId(1)), Effect::Finish(Finish::Fenced)]
        );
    }

    #[test]
    fn a_deadline_that_leaves_no_time_is_told_and_the_job_runs_on() {
        let mut life = running(Policy {
            term_grace_ms: 100,
            ..POLICY
        });
        let effects = life.handle(Event::Signal(SIGTERM), T0);
        assert!(
            matches!(effects[..], [Effect::Decided(_), Effect::Missed { .. }]),
            "{effects:?}"
        );
        assert_eq!(life.phase(), Phase::Running);
    }

    #[test]
    fn a_promise_that_is_outgrown_is_told_once_and_when_it_is() {
        let mut life = running(POLICY);
        life.expect(10_000);
        let mut now = T0;
        let mut told = 0;
        for _ in 0..6 {
            life.handle(request(1, Afterwards::Continue), now);
            let measured = Measured {
                frozen_at: now,
                wall_ms: 2_000,
                frozen_ms: 50,
                memory: 1 << 30,
                changed: 200 << 20,
                stored: 200 << 20,
            };
            now = now.plus_ms(2_000);
            let mut effects = life.handle(Event::CheckpointEnded(Ended::Durable(measured)), now);
            while let Some(wake) = life.wake() {
                assert!(wake > now);
                now = wake;
                effects.extend(life.handle(Event::Woken, now));
            }
            now = now.plus_ms(20_000);
            let outgrown = |effect: &&Effect| {
                matches!(effect, Effect::Outgrown { needed_ms, notice_ms, .. }
                if needed_ms > &7_000 && *notice_ms == 10_000)
            };
            told += effects.iter().filter(outgrown).count();
        }
        assert_eq!(told, 1);
    }

    #[test]
    fn memory_is_stored_ahead_as_often_as_the_promise_asks_for_and_helps() {
        let mut life = running(Policy {
            rules: Rules {
                keep_promise: KeepPromise::Seed,
                ..POLICY.rules
            },
            ..POLICY
        });
        life.expect(10_000);
        assert_eq!(life.seed_by(T0), None, "nothing was measured");
        let mut now = T0;
        for _ in 0..4 {
            life.handle(request(1, Afterwards::Continue), now);
            let measured = Measured {
                frozen_at: now,
                wall_ms: 3_000,
                frozen_ms: 50,
                memory: 1 << 30,
                changed: 300 << 20,
                stored: 300 << 20,
            };
            now = now.plus_ms(3_000);
            life.handle(Event::CheckpointEnded(Ended::Durable(measured)), now);
            now = now.plus_ms(27_000);
        }
        // A look that leaves little gives time; the promise is of that moment.
        let look = |unseeded| Ahead {
            begun: now,
            took_ms: 500,
            unseeded,
            unseen: 0,
        };
        let before = life.promise().ms_to_safe(now);
        life.handle(Event::StoredAhead(Some(look(1 << 20))), now);
        assert!(life.promise().ms_to_safe(now) < before);
        let calm = life.seed_by(now).map_or(u64::MAX, |by| by.0);
        assert!(calm > now.0 + 10_000, "{calm}");
        // Looks that do not help become rarer, until one does.
        let mut pauses = Vec::new();
        for _ in 0..3 {
            life.handle(Event::StoredAhead(Some(look(1 << 30))), now);
            let by = life.seed_by(now).expect("it does not fit");
            pauses.push(now.plus_ms(500).ms_until(by));
        }
        assert_eq!(pauses, [2_000, 4_000, 8_000]);
        life.handle(Event::StoredAhead(None), now);
        assert_eq!(life.promise().looked(), None);
    }

    #[test]
    fn before_an_end_that_is_announced_one_look_follows_the_other_while_the_job_works_on() {
        let says = |says| Event::Announced {
            id: RequestId(1),
            announcement: Announcement {
                source: Source::Ec2Metadata,
                identity: "spot".to_owned(),
                says,
            },
            wall_now: WallMs(T0.0),
        };
        let goes = || {
            says(Says::Goes {
                fate: Fate::Terminate,
                at: Some(WallMs(T0.0 + 120_000)),
            })
        };
        for is_withdrawn in [false, true] {
            let mut life = running(POLICY);
            assert_eq!(begins(&life.handle(goes(), T0)), 1);
            let measured = Measured {
                memory: 1 << 30,
                changed: 200 << 20,
                wall_ms: 5_000,
                ..MEASURED
            };
            assert!(!life.works_on(), "it is made safe first");
            let now = T0.plus_ms(5_000);
            life.handle(Event::CheckpointEnded(Ended::Durable(measured)), now);
            assert!(life.works_on());
            assert_eq!(life.seed_by(now), Some(now));
            let look = Ahead {
                begun: now,
                took_ms: 3_000,
                unseeded: 10 << 20,
                unseen: 0,
            };
            let mut now = now.plus_ms(3_000);
            let wake = life.wake();
            life.handle(Event::StoredAhead(Some(look)), now);
            assert_eq!(life.seed_by(now), Some(now.plus_ms(1_000)));
            assert!(life.wake() >= wake, "and it works on for longer");
            if is_withdrawn {
                life.handle(says(Says::Withdrawn), now);
                assert!(!life.works_on());
                assert_eq!(life.seed_by(now), None, "then there is no haste");
                continue;
            }
            while let Some(wake) = life.wake() {
                now = wake;
                life.handle(Event::Woken, now);
            }
            assert_eq!(life.phase(), Phase::Checkpointing);
            assert!(now > T0.plus_ms(60_000), "{now:?}");
            assert!(!life.works_on());
        }
    }

    #[test]
    fn a_resumed_job_is_known_to_have_changed_since() {
        let mut life = Lifecycle::new(POLICY);
        life.resumed(T0);
        life.handle(Event::AppReady, T0);
        life.handle(request(1, Afterwards::Continue), T0.plus_ms(10_000));
        let measured = Measured {
            frozen_at: T0.plus_ms(10_000),
            memory: 1 << 30,
            changed: 60 << 20,
            ..MEASURED
        };
        let ended = T0.plus_ms(11_000);
        life.handle(Event::CheckpointEnded(Ended::Durable(measured)), ended);
        let changed = life.promise().changed_by(ended);
        let some = changed.is_some_and(|changed| changed < 100 << 20);
        assert!(some, "not all of it: {changed:?}");
    }

    fn ends_in(identity: &str, in_ms: u64) -> Event {
        goes(identity, Fate::Terminate, Some(in_ms))
    }

    fn goes(identity: &str, fate: Fate, in_ms: Option<u64>) -> Event {
        let at = in_ms.map(|ms| WallMs(T0.0 + ms));
        said(identity, Says::Goes { fate, at })
    }

    fn said(identity: &str, says: Says) -> Event {
        Event::Announced {
            id: RequestId(90),
            announcement: Announcement {
                source: Source::Ec2Metadata,
                identity: identity.to_owned(),
                says,
            },
            wall_now: WallMs(T0.0),
        }
    }

    fn spares(effects: &[Effect]) -> bool {
        effects.contains(&Effect::Spare)
    }

    #[test]
    fn a_notice_that_is_withdrawn_during_its_final_checkpoint_spares_the_app() {
        let mut life = running(POLICY);
        assert_eq!(begins(&life.handle(ends_in("a", 20_000), T0)), 1);
        let effects = life.handle(said("a", Says::Withdrawn), T0.plus_ms(10));
        assert!(spares(&effects), "{effects:?}");
        let effects = life.handle(said("a", Says::Withdrawn), T0.plus_ms(20));
        assert!(!spares(&effects), "once is enough");
        let spared = Event::CheckpointEnded(Ended::Spared(MEASURED));
        let effects = life.handle(spared, T0.plus_ms(100));
        assert!(!effects.contains(&Effect::Finish(Finish::Checkpointed)));
        assert_eq!(life.phase(), Phase::Running);
        assert_eq!(begins(&effects), 0);
    }

    fn retimed(effects: &[Effect]) -> Option<Moment> {
        effects.iter().find_map(|effect| match effect {
            Effect::Retime(budget) => Some(budget.committed_by),
            _ => None,
        })
    }

    /// As [`POLICY`] has it, for an attempt that nobody is in a hurry for.
    fn unhurried(now: Moment) -> Option<Moment> {
        Some(now.plus_ms(POLICY.rules.attempt_ms - POLICY.rules.margin_ms))
    }

    #[test]
    fn a_notice_that_is_withdrawn_gives_the_checkpoint_under_way_its_time_back() {
        let (then, later) = (T0.plus_ms(10), T0.plus_ms(20));
        // The final one for it.
        let mut life = running(POLICY);
        assert_eq!(begins(&life.handle(ends_in("a", 20_000), T0)), 1);
        assert_eq!(
            retimed(&life.handle(said("a", Says::Withdrawn), then)),
            unhurried(then)
        );
        // One that nobody was in a hurry for before.
        let mut life = running(POLICY);
        life.handle(request(1, Afterwards::Continue), T0);
        let asked_by = T0.plus_ms(24_000);
        let hurried = life.handle(ends_in("a", 12_000), then);
        assert!(
            retimed(&hurried).is_some_and(|by| by < T0.plus_ms(6_000)),
            "{hurried:?}"
        );
        let relaxed = retimed(&life.handle(said("a", Says::Withdrawn), later));
        assert!(
            relaxed > retimed(&hurried) && relaxed <= Some(asked_by),
            "{relaxed:?}"
        );
        // What is put off gives the time until then, and what comes nearer again takes it back.
        let mut life = running(POLICY);
        life.handle(ends_in("a", 8_000), T0);
        let put_off = retimed(&life.handle(ends_in("a", 16_000), then));
        assert_eq!(put_off, Some(then.plus_ms(15_000)));
        assert_eq!(
            retimed(&life.handle(ends_in("a", 8_000), later)),
            Some(later.plus_ms(7_000))
        );
        // Another end that is as near takes nothing back.
        let mut life = running(POLICY);
        life.handle(ends_in("a", 8_000), T0);
        life.handle(goes("b", Fate::Stop, Some(7_990)), then);
        assert_eq!(
            retimed(&life.handle(said("a", Says::Withdrawn), later)),
            None
        );
    }

    #[test]
    fn what_comes_too_late_to_spare_the_app_changes_nothing() {
        let mut life = running(POLICY);
        life.handle(ends_in("a", 20_000), T0);
        life.handle(said("a", Says::Withdrawn), T0.plus_ms(10));
        // Who wants it stopped now is answered with what was stored.
        assert_eq!(
            life.handle(request(1, Afterwards::Stop), T0.plus_ms(20)),
            []
        );
        let effects = life.handle(DURABLE, T0.plus_ms(100));
        assert_eq!(
            effects,
            [
                Effect::Answer(RequestId(1)),
                Effect::Finish(Finish::Checkpointed)
            ]
        );
    }

    #[test]
    fn nobody_is_spared_whom_something_else_wants_stopped() {
        let begun = || {
            let mut life = running(POLICY);
            assert_eq!(begins(&life.handle(ends_in("a", 20_000), T0)), 1);
            life
        };
        let withdrawn =
            |life: &mut Lifecycle| spares(&life.handle(said("a", Says::Withdrawn), T0.plus_ms(20)));
        let mut life = begun();
        life.handle(Event::Signal(SIGTERM), T0.plus_ms(10));
        assert!(!withdrawn(&mut life), "SIGTERM");
        let mut life = begun();
        life.handle(request(1, Afterwards::Stop), T0.plus_ms(10));
        assert!(!withdrawn(&mut life), "a request");
        let mut life = begun();
        life.handle(goes("b", Fate::Stop, Some(25_000)), T0.plus_ms(10));
        assert!(!withdrawn(&mut life), "another end that is near");
        let mut life = begun();
        life.handle(
            goes("b", Fate::Maintenance, Some(9_000_000)),
            T0.plus_ms(10),
        );
        assert!(withdrawn(&mut life), "another end that is far");
        let mut life = running(POLICY);
        life.handle(request(1, Afterwards::Stop), T0);
        life.handle(ends_in("a", 20_000), T0.plus_ms(10));
        assert!(!withdrawn(&mut life), "a request from before");
    }

    #[test]
    fn an_end_that_is_put_off_spares_the_app_and_one_that_is_told_again_does_not() {
        let mut life = running(POLICY);
        life.handle(ends_in("a", 20_000), T0);
        assert!(!spares(&life.handle(ends_in("a", 20_000), T0.plus_ms(10))));
        assert!(!spares(&life.handle(ends_in("a", 22_000), T0.plus_ms(20))));
        assert!(spares(&life.handle(ends_in("a", 900_000), T0.plus_ms(30))));
        // It comes near again, and is met when this one has ended.
        life.handle(ends_in("a", 25_000), T0.plus_ms(40));
        let spared = Event::CheckpointEnded(Ended::Spared(MEASURED));
        let effects = life.handle(spared, T0.plus_ms(100));
        let wakes = life.wake().is_some();
        assert!(begins(&effects) == 1 || wakes, "{effects:?}");
        assert!(life.going().is_some());
    }

    #[test]
    fn a_sigterm_after_the_app_was_spared_is_carried_out() {
        let mut life = running(POLICY);
        life.handle(ends_in("a", 20_000), T0);
        life.handle(said("a", Says::Withdrawn), T0.plus_ms(10));
        life.handle(Event::Signal(SIGTERM), T0.plus_ms(20));
        let spared = Event::CheckpointEnded(Ended::Spared(MEASURED));
        let effects = life.handle(spared, T0.plus_ms(100));
        let final_one = |effect: &Effect| matches!(effect, Effect::Begin { notice, .. } if notice.afterwards == Afterwards::Stop);
        assert!(effects.iter().any(final_one), "{effects:?}");
    }

    #[test]
    fn a_flood_of_notices_that_come_and_go_is_no_storm_of_checkpoints() {
        let day = 24 * 3_600_000;
        let kinds = [(Fate::AtRisk, None), (Fate::Maintenance, Some(day))];
        for (fate, in_ms) in kinds {
            let mut life = running(POLICY);
            let (mut begun, mut number) = (0, 0);
            for second in 0..600 {
                let now = T0.plus_ms(second * 1_000);
                let mut wall = |identity: &str, says: Says| {
                    number += 1;
                    life.handle(
                        Event::Announced {
                            id: RequestId(number),
                            announcement: Announcement {
                                source: Source::Ec2Metadata,
                                identity: identity.to_owned(),
                                says,
                            },
                            wall_now: WallMs(now.0),
                        },
                        now,
                    )
                };
                let at = in_ms.map(|in_ms| WallMs(now.0 + in_ms));
                let mut effects = Vec::new();
                for one in 0..20 {
                    let identity = format!("{second}-{one}");
                    effects.extend(wall(&identity, Says::Goes { fate, at }));
                    effects.extend(wall(&identity, Says::Withdrawn));
                }
                effects.extend(wall(&format!("{second}"), Says::Goes { fate, at }));
                effects.extend(life.handle(Event::Woken, now.plus_ms(1)));
                if begins(&effects) > 0 {
                    begun += 1;
                    life.handle(DURABLE, now.plus_ms(100));
                }
                life.handle(
                    Event::Announced {
                        id: RequestId(1_000_000 + second),
                        announcement: Announcement {
                            source: Source::Ec2Metadata,
                            identity: format!("{second}"),
                            says: Says::Withdrawn,
                        },
                        wall_now: WallMs(now.0),
                    },
                    now.plus_ms(200),
                );
            }
            let most = 600_000 / POLICY.rules.least_interval_ms + 1;
            assert!((1..=most).contains(&begun), "{fate:?}: {begun}");
            // A real one in the middle of it is not kept waiting.
            let now = T0.plus_ms(600_000);
            let real = Event::Announced {
                id: RequestId(0),
                announcement: Announcement {
                    source: Source::Ec2Metadata,
                    identity: "spot".to_owned(),
                    says: Says::Goes {
                        fate: Fate::Terminate,
                        at: Some(WallMs(now.0 + 120_000)),
                    },
                },
                wall_now: WallMs(now.0),
            };
            assert_eq!(begins(&life.handle(real, now)), 1, "{fate:?}");
        }
    }

    #[test]
    fn what_is_announced_during_the_boot_is_acted_on_when_the_app_runs() {
        let heard = |kind: u8| {
            let mut life = Lifecycle::new(POLICY);
            let effects = life.handle(announced(RequestId(1), kind, T0), T0);
            assert_eq!(effects, [], "{kind}");
            life
        };
        // The boot may take longer than an attempt.
        for (kind, boot_ms, deadline_ms) in [(11, 500, 3_000), (13, 40_000, 65_000)] {
            let effects = heard(kind).handle(Event::AppReady, T0.plus_ms(boot_ms));
            let begun = effects.iter().find_map(|effect| match effect {
                Effect::Begin { notice, .. } => Some(*notice),
                _ => None,
            });
            let begun = begun.unwrap_or_else(|| panic!("{kind}: {effects:?}"));
            assert_eq!(begun.afterwards, Afterwards::Stop, "{kind}");
            assert_eq!(begun.deadline, T0.plus_ms(deadline_ms), "{kind}");
        }
        assert_eq!(begins(&heard(12).handle(Event::AppReady, T0)), 1);
        // Over before it began is told as a miss.
        let effects = heard(11).handle(Event::AppReady, T0.plus_ms(4_000));
        let missed = |effect: &Effect| matches!(effect, Effect::Missed { .. });
        assert!(effects.iter().any(missed), "{effects:?}");
        assert!(
            effects
                .iter()
                .any(|effect| matches!(effect, Effect::Refuse(RequestId(1), _)))
        );
    }

    fn announced(id: RequestId, kind: u8, now: Moment) -> Event {
        if kind == 14 {
            let announcement = Announcement {
                source: Source::Sqs,
                identity: "11".to_owned(),
                says: Says::Withdrawn,
            };
            return Event::Announced {
                id,
                announcement,
                wall_now: WallMs(now.0),
            };
        }
        let (fate, at) = match kind {
            11 => (Fate::Terminate, Some(WallMs(now.0 + 3_000))),
            12 => (Fate::AtRisk, None),
            _ => (Fate::Stop, None),
        };
        Event::Announced {
            id,
            announcement: Announcement {
                source: Source::Sqs,
                identity: format!("{kind}"),
                says: Says::Goes { fate, at },
            },
            wall_now: WallMs(now.0),
        }
    }

    fn any_event() -> impl Strategy<Value = u8> {
        0u8..15
    }

    proptest! {
        /// Random events against the promises at the head of this module.
        #[test]
        fn one_checkpoint_at_a_time_one_answer_each(script in proptest::collection::vec(any_event(), 1..60)) {
            let mut life = Lifecycle::new(POLICY);
            let mut now = T0;
            let mut asked = Vec::new();
            let mut answered = Vec::new();
            let mut under_way = 0i32;
            let mut spared = false;
            let mut finished = 0;
            for (number, kind) in script.into_iter().enumerate() {
                now = now.plus_ms(10);
                let id = RequestId(number as u64);
                let event = match kind {
                    0 => Event::Signal(SIGTERM),
                    1 => Event::Signal(SIGINT),
                    2 | 3 => {
                        asked.push(id);
                        let afterwards = if kind == 2 { Afterwards::Stop } else { Afterwards::Continue };
                        Event::Request { id, by: Source::Control, afterwards, deadline: now.plus_ms(5_000) }
                    }
                    4 => Event::AppReady,
                    5 => Event::AppEnded,
                    // Too late as often as not.
                    6 if spared && number % 2 == 0 => Event::CheckpointEnded(Ended::Spared(MEASURED)),
                    6 => DURABLE,
                    7 => Event::CheckpointEnded(Ended::Failed),
                    8 => Event::CheckpointEnded(Ended::Fenced),
                    9 => Event::Fenced,
                    10 => Event::Woken,
                    _ => {
                        asked.push(id);
                        announced(id, kind, now)
                    }
                };
                if matches!(event, Event::CheckpointEnded(_)) {
                    if under_way == 0 { continue }
                    under_way -= 1;
                }
                let frozen = under_way > 0;
                for effect in life.handle(event, now) {
                    match effect {
                        Effect::Begin { .. } => (under_way, spared) = (under_way + 1, false),
                        Effect::Spare => {
                            prop_assert!(frozen && !spared);
                            spared = true;
                        }
                        Effect::Answer(id) | Effect::Refuse(id, _) | Effect::Note(id) => answered.push(id),
                        Effect::Forward(_) => prop_assert!(!frozen, "a signal reached a frozen app"),
                        Effect::Finish(_) | Effect::AbortBoot(_) => finished += 1,
                        _ => {}
                    }
                }
                prop_assert!(under_way <= 1);
                prop_assert!(finished <= 1);
            }
            let mut effects = life.handle(Event::AppReady, now);
            if under_way == 1 || begins(&effects) == 1 {
                effects.extend(life.handle(Event::CheckpointEnded(Ended::Fenced), now));
            }
            effects.extend(life.handle(Event::Fenced, now));
            for effect in effects {
                if let Effect::Answer(id) | Effect::Refuse(id, _) | Effect::Note(id) = effect {
                    answered.push(id);
                }
            }
            answered.sort_by_key(|id| id.0);
            prop_assert_eq!(answered, asked);
        }
    }
}
