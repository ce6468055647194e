//! The life of a job under its supervisor: state and event in, next state and effects out.
//!
//! ```text
//!            AppReady              checkpoint wanted
//!  Booting ───────────▶ Running ────────────────────▶ Checkpointing
//!     │                  ▲   │                          │  │
//!     │ TERM, INT, QUIT  │   │ AppEnded          failed │  │ durable
//!     ▼                  │   ▼            or left running  │ and stop, or
//!    Over ◀──────────────┼── Over ◀────────────────────────┘ app ended
//!                        └──────────────────────────────┘
//! ```
//!
//! Invariants: at most one checkpoint at a time; every request gets exactly one answer; no signal reaches the app while
//! it is frozen, because it would become part of the snapshot; a wish to stop that arrives during a checkpoint that
//! leaves the app running is carried out after it, never forgotten.

use crate::deadline::{Budget, budget};
use crate::notice::{Afterwards, Moment, Notice, Source};

/// Names a request that waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(pub u64);

/// What the settings say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Without a store nothing can be checkpointed; signals are simply passed on.
    pub can_checkpoint: bool,
    /// From SIGTERM to SIGKILL, in milliseconds.
    pub term_grace_ms: u64,
    /// Kept back from every deadline, in milliseconds.
    pub margin_ms: u64,
    pub on_failed_signal: OnFailure,
}

/// What follows when the checkpoint that SIGTERM asked for failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// The job goes on until the machine is gone.
    RunOn,
    /// The app gets the SIGTERM.
    Forward,
}

/// How a checkpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Durable,
    Failed,
    /// Another owner took the job; ours must not go on.
    Fenced,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Signal(i32),
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
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Give the boot up because of this signal: nothing has run yet.
    AbortBoot(i32),
    /// Take a checkpoint within this budget and report [`Event::CheckpointEnded`].
    Begin { notice: Notice, budget: Budget },
    /// The running checkpoint has less time than it was told.
    Tighten(Budget),
    /// Pass the signal on to the app.
    Forward(i32),
    /// Tell this requester how the checkpoint that just ended went.
    Answer(RequestId),
    /// Tell this requester why there will be no checkpoint.
    Refuse(RequestId, String),
    /// The checkpoint that a signal asked for cannot be.
    Missed(String),
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
    waiting: Vec<RequestId>,
    /// Signals that arrived meanwhile, in order.
    held: Vec<i32>,
    /// A wish that this run does not satisfy.
    next: Option<(Notice, Vec<RequestId>)>,
    app_ended: bool,
    fenced: bool,
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
}

/// Linux's numbers, the same on every architecture we build for.
const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;
const SIGTERM: i32 = 15;

/// Whether this signal, before the app runs, means that it need not be started.
pub fn ends_a_boot(signal: i32) -> bool {
    matches!(signal, SIGINT | SIGQUIT | SIGTERM)
}

impl Lifecycle {
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            state: State::Booting { held: Vec::new() },
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

    /// Takes an event in and says what to do about it, in order.
    pub fn handle(&mut self, event: Event, now: Moment) -> Vec<Effect> {
        match event {
            Event::Signal(SIGTERM) if self.policy.can_checkpoint => self.terminated(now),
            Event::Signal(signal) => self.signalled(signal),
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
            Event::AppReady => self.ready(),
            Event::AppEnded => self.app_ended(),
            Event::CheckpointEnded(how) => self.checkpoint_ended(how, now),
            Event::Fenced => self.fenced(),
        }
    }

    fn terminated(&mut self, now: Moment) -> Vec<Effect> {
        let deadline = now.plus_ms(self.policy.term_grace_ms);
        let notice = Notice {
            trigger: Source::Signal,
            afterwards: Afterwards::Stop,
            deadline,
        };
        match &mut self.state {
            State::Booting { .. } => self.abort_boot(SIGTERM),
            State::Running => self.begin(notice, Vec::new(), now),
            State::Checkpointing(run) if run.notice.afterwards == Afterwards::Stop => {
                // A signal's wish outlives a request's: if this run fails it is treated as the signal's.
                run.notice.trigger = Source::Signal;
                if deadline >= run.notice.deadline {
                    return Vec::new();
                }
                run.notice.deadline = deadline;
                budget(now, deadline, self.policy.margin_ms)
                    .map(Effect::Tighten)
                    .into_iter()
                    .collect()
            }
            State::Checkpointing(run) => {
                run.queue(notice, None);
                // The queued one needs its share of the time, and a miss has to be told before it is too late.
                let half = now.plus_ms(now.ms_until(deadline) / 2);
                if half >= run.notice.deadline {
                    return Vec::new();
                }
                run.notice.deadline = half;
                let budget = budget(now, half, self.policy.margin_ms);
                budget.map(Effect::Tighten).into_iter().collect()
            }
            State::Over => Vec::new(),
        }
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
            return refuse(
                "no store is set, so there is nowhere to put a checkpoint; start `reprieve run` with --store",
            );
        }
        match &mut self.state {
            State::Booting { .. } => {
                refuse("the app is not running yet; `reprieve status` tells when it is")
            }
            State::Running => self.begin(notice, vec![id], now),
            State::Checkpointing(run)
                if afterwards == Afterwards::Stop && run.notice.afterwards == Afterwards::Stop =>
            {
                // From the freeze on nothing changes any more: this one's outcome is that one's.
                run.waiting.push(id);
                if deadline >= run.notice.deadline {
                    return Vec::new();
                }
                run.notice.deadline = deadline;
                let budget = budget(now, deadline, self.policy.margin_ms);
                budget.map(Effect::Tighten).into_iter().collect()
            }
            State::Checkpointing(run) if run.notice.afterwards == Afterwards::Continue => {
                // What is under way may be of a moment before this was asked for.
                run.queue(notice, Some(id));
                Vec::new()
            }
            State::Checkpointing(_) => refuse(
                "a checkpoint that stops the app is under way; it cannot be left running any more",
            ),
            State::Over => refuse("the job is over"),
        }
    }

    fn ready(&mut self) -> Vec<Effect> {
        let State::Booting { held } = &mut self.state else {
            return Vec::new();
        };
        let effects = held.drain(..).map(Effect::Forward).collect();
        self.state = State::Running;
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
        let mut effects: Vec<Effect> = run.waiting.into_iter().map(Effect::Answer).collect();
        let stopped = how == Ended::Durable && run.notice.afterwards == Afterwards::Stop;
        let how = if run.fenced && !stopped {
            Ended::Fenced
        } else {
            how
        };
        if let Some(finish) = finish(how, stopped, run.app_ended) {
            self.state = State::Over;
            let unserved = run.next.into_iter().flat_map(|(_, waiting)| waiting);
            effects.extend(unserved.map(|id| Effect::Refuse(id, "the job is over".to_owned())));
            effects.push(Effect::Finish(finish));
            return effects;
        }
        effects.extend(run.held.into_iter().map(Effect::Forward));
        match run.next {
            Some((notice, waiting)) => effects.extend(self.begin(notice, waiting, now)),
            None if how == Ended::Failed && run.notice.trigger == Source::Signal => {
                effects.extend(self.missed())
            }
            None => {}
        }
        effects
    }

    fn missed(&self) -> Option<Effect> {
        (self.policy.on_failed_signal == OnFailure::Forward).then_some(Effect::Forward(SIGTERM))
    }

    fn begin(&mut self, notice: Notice, waiting: Vec<RequestId>, now: Moment) -> Vec<Effect> {
        match budget(now, notice.deadline, self.policy.margin_ms) {
            Ok(budget) => {
                self.state = State::Checkpointing(Run {
                    notice,
                    waiting,
                    held: Vec::new(),
                    next: None,
                    app_ended: false,
                    fenced: false,
                });
                vec![Effect::Begin { notice, budget }]
            }
            Err(no_time) => {
                let mut effects: Vec<Effect> = waiting
                    .into_iter()
                    .map(|id| Effect::Refuse(id, no_time.to_string()))
                    .collect();
                if notice.trigger == Source::Signal {
                    effects.push(Effect::Missed(no_time.to_string()));
                    effects.extend(self.missed());
                }
                effects
            }
        }
    }
}

impl Run {
    fn queue(&mut self, notice: Notice, id: Option<RequestId>) {
        let (queued, waiting) = self.next.get_or_insert((notice, Vec::new()));
        queued.deadline = queued.deadline.min(notice.deadline);
        if notice.trigger == Source::Signal {
            queued.trigger = Source::Signal;
        }
        if notice.afterwards == Afterwards::Stop {
            queued.afterwards = Afterwards::Stop;
        }
        waiting.extend(id);
    }
}

fn finish(how: Ended, stopped: bool, app_ended: bool) -> Option<Finish> {
    match how {
        Ended::Fenced => Some(Finish::Fenced),
        _ if stopped => Some(Finish::Checkpointed),
        _ if app_ended => Some(Finish::AppEnded),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POLICY: Policy = Policy {
        can_checkpoint: true,
        term_grace_ms: 10_000,
        margin_ms: 1_000,
        on_failed_signal: OnFailure::RunOn,
    };
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
            life.handle(Event::CheckpointEnded(Ended::Durable), T0),
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
    fn sigterm_tightens_a_requests_longer_deadline() {
        let mut life = running(POLICY);
        life.handle(request(1, Afterwards::Stop), T0);
        let effects = life.handle(Event::Signal(SIGTERM), T0);
        assert!(
            matches!(effects[..], [Effect::Tighten(budget)] if budget.committed_by == Moment(10_000))
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
        assert!(matches!(effects[..], [Effect::Tighten(_)]), "{effects:?}");
        let effects = life.handle(Event::CheckpointEnded(Ended::Durable), T0.plus_ms(100));
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
        assert!(matches!(
            life.handle(Event::Signal(SIGTERM), T0)[..],
            [Effect::Missed(_)]
        ));
        assert_eq!(life.phase(), Phase::Running);
    }

    fn any_event() -> impl Strategy<Value = u8> {
        0u8..10
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
                    6 => Event::CheckpointEnded(Ended::Durable),
                    7 => Event::CheckpointEnded(Ended::Failed),
                    8 => Event::CheckpointEnded(Ended::Fenced),
                    _ => Event::Fenced,
                };
                if matches!(event, Event::CheckpointEnded(_)) {
                    if under_way == 0 { continue }
                    under_way -= 1;
                }
                let frozen = under_way > 0;
                for effect in life.handle(event, now) {
                    match effect {
                        Effect::Begin { .. } => under_way += 1,
                        Effect::Answer(id) | Effect::Refuse(id, _) => answered.push(id),
                        Effect::Forward(_) => prop_assert!(!frozen, "a signal reached a frozen app"),
                        Effect::Finish(_) | Effect::AbortBoot(_) => finished += 1,
                        Effect::Tighten(_) | Effect::Missed(_) => {}
                    }
                }
                prop_assert!(under_way <= 1);
                prop_assert!(finished <= 1);
            }
            if under_way == 1 {
                for effect in life.handle(Event::CheckpointEnded(Ended::Fenced), now) {
                    if let Effect::Answer(id) | Effect::Refuse(id, _) = effect { answered.push(id) }
                }
            }
            answered.sort_by_key(|id| id.0);
            prop_assert_eq!(answered, asked);
        }
    }
}
