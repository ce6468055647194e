//! What to do with the time that is left: checkpoint now, later, or not at all, and why.
//!
//! Before an end that is known some time ahead, the job is first made safe by a checkpoint that leaves it running; then
//! it goes on working, and the final checkpoint is taken as late as is safe. With little time, or none that is known, the
//! final one is taken at once. Without an end in sight there are checkpoints for the unannounced end: on a period, and
//! more often while the machine is said to be at risk.
//!
//! A decision is a value with what it was made from; it is logged, shown in the status and kept with the snapshot.

use serde::{Deserialize, Serialize};

use crate::deadline::{LEAST_BUDGET_MS, usable_ms};
use crate::episode::Going;
use crate::notice::{Afterwards, Fate, Moment, Source};
use crate::promise::{Promise, whole};

/// With no more time than this the final checkpoint is taken at once: it is what clouds give that do not give two
/// minutes.
const SHORT_MS: u64 = 30_000;

/// "As late as is safe" keeps back, on top of what a checkpoint hardly ever exceeds, a quarter of it and this.
const SLACK_MS: u64 = 1_000;

/// And this before an end for which the job works on: the way to the store may have become slower since it was measured.
const LAST_SLACK_MS: u64 = 4_000;

/// An end that is further ahead than this is no reason to take one checkpoint after the other.
const NO_HURRY_MS: u64 = 600_000;

/// What is further ahead than a year is not looked at.
const FAR_MS: u64 = 365 * 24 * 3_600_000;

/// After a failure the next try waits this long, twice as long after each further one, and never longer than
/// [`LONGEST_PAUSE_MS`].
const PAUSE_MS: u64 = 500;
const LONGEST_PAUSE_MS: u64 = 5_000;

/// What failed is not tried again with less than this: whoever can still do something about a snapshot that there will not be
/// has to hear of it while the machine is there.
const LAST_TRY_MS: u64 = 1_000;

/// Between two looks at the job's memory that a promise asks for, at least.
const SEED_PAUSE_MS: u64 = 1_000;

/// All periodic checkpoints together take at most this part of the time, unless the bound on lost work asks for more.
const SHARE: u64 = 20;

/// What the settings say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Kept back from every deadline.
    pub margin_ms: u64,
    pub every: Every,
    /// Between two checkpoints that no deadline asks for.
    pub least_interval_ms: u64,
    /// Between checkpoints while the machine is at risk.
    pub at_risk_ms: u64,
    /// The time limit of a checkpoint without a deadline.
    pub attempt_ms: u64,
    pub on_too_late: OnTooLate,
    pub keep_promise: KeepPromise,
}

/// What to do when a checkpoint would not fit into the shortest notice any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepPromise {
    /// Say so.
    Warn,
    /// Store memory ahead more often, so that less is left to do.
    Seed,
    /// That, and take one before it would not fit any more, so that less has changed.
    Checkpoint,
}

/// How often a job is checkpointed that nobody asks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    Never,
    Ms(u64),
    /// From the measured cost of a checkpoint, how long machines live, and how much work may be lost.
    Auto {
        lifetime_ms: u64,
        max_lost_ms: u64,
    },
}

/// What to do when it is known that a checkpoint will not be done in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTooLate {
    /// Try: the estimate may be wrong, and what is not saved is lost anyway.
    Try,
    /// Let the job work until the machine is gone.
    RunOn,
}

/// Everything a decision is made from.
#[derive(Clone, Copy, Debug)]
pub struct Situation {
    pub now: Moment,
    pub going: Option<Going>,
    pub at_risk: Option<(Moment, Source)>,
    /// The shortest time that is given before an end that is announced, as far as that is known.
    pub notice_ms: Option<u64>,
    /// The app could run from then on.
    pub ready: Moment,
    /// The job's state of then is in the store.
    pub safe: Option<Moment>,
    /// The newest attempt began then.
    pub begun: Option<Moment>,
    /// The newest attempt ended then, and so many in a row have failed.
    pub ended: Option<Moment>,
    pub failures: u32,
}

/// Why something is done or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Somebody asked.
    Asked,
    /// Nothing is to be expected.
    Nothing,
    /// The next periodic checkpoint is due.
    Periodic,
    /// Soon it would take longer than the shortest notice.
    Promise,
    /// The machine is at risk.
    AtRisk,
    /// There is time: first make the job safe, then go on.
    SafeFirst,
    /// The newest attempt was a moment ago, and there is much time.
    NoHurry,
    /// It is safe and works on until the last moment that is safe.
    WorksOn,
    /// The last moment that is safe has come.
    LastSafeMoment,
    /// The deadline is near, or the end may come at any moment.
    AtOnce,
    /// There is time for one checkpoint, not for two.
    OnlyOneFits,
    /// Memory stays, but whether the machine comes back is not known.
    Hibernates,
    /// The one before failed, and there is time left.
    Again,
    /// The one before failed a moment ago.
    Pause,
    /// It will hardly be done in time, and is tried.
    TooLateTried,
    /// It would hardly be done in time; the job works on.
    TooLate,
    /// Not even the least checkpoint fits.
    NoTime,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "somebody asked for it",
            Self::Nothing => "nothing is to be expected",
            Self::Periodic => "a periodic checkpoint is due",
            Self::Promise => "soon a checkpoint would not fit into the shortest notice",
            Self::AtRisk => "the machine is at risk",
            Self::SafeFirst => "there is time: the job is made safe first and works on",
            Self::NoHurry => "there is much time, and the newest checkpoint was a moment ago",
            Self::WorksOn => "the job is safe and works on until the last moment that is safe",
            Self::LastSafeMoment => "the last moment that is safe has come",
            Self::AtOnce => "the end is near, or may come at any moment",
            Self::OnlyOneFits => "there is time for one checkpoint, not for two",
            Self::Hibernates => "the machine is suspended, and may not come back",
            Self::Again => "the one before failed, and there is time left",
            Self::Pause => "the one before failed a moment ago",
            Self::TooLateTried => "it will hardly be done in time, and is tried",
            Self::TooLate => "it would hardly be done in time; the job works on",
            Self::NoTime => "not even the least checkpoint fits",
        }
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// Take a checkpoint, and stop the job when it is durable.
    Final,
    /// Take a checkpoint and leave the job running.
    LeaveRunning,
    Wait,
    /// There will be no checkpoint before this deadline.
    GiveUp,
}

/// A decision and what it was made from. Stored with the snapshot that it led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    pub act: Act,
    pub reason: Reason,
    /// Who made it necessary.
    pub source: Source,
    pub fate: Option<Fate>,
    /// Until the deadline, what is kept back included.
    pub left_ms: Option<u64>,
    /// What a checkpoint was expected to take; none if nothing was measured.
    pub needed_ms: Option<u64>,
    /// Bytes that were expected to have changed.
    pub changed_bytes: Option<u64>,
}

/// A decision, what it needs to be carried out, and when to decide again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub decision: Decision,
    pub deadline: Moment,
    /// If nothing happens before.
    pub again: Option<Moment>,
}

impl Decision {
    pub fn afterwards(&self) -> Afterwards {
        match self.act {
            Act::Final => Afterwards::Stop,
            _ => Afterwards::Continue,
        }
    }

    /// What was asked for by name.
    pub fn asked(source: Source, afterwards: Afterwards, left_ms: u64) -> Self {
        Self {
            act: match afterwards {
                Afterwards::Stop => Act::Final,
                Afterwards::Continue => Act::LeaveRunning,
            },
            reason: Reason::Asked,
            source,
            fate: None,
            left_ms: Some(left_ms),
            needed_ms: None,
            changed_bytes: None,
        }
    }
}

/// Decides.
pub fn decide(of: &Situation, rules: &Rules, promise: &Promise) -> Plan {
    let background = background(of, rules, promise);
    let Some(going) = of.going else {
        return background;
    };
    let plan = before_end(of, going, rules, promise);
    if plan.decision.act != Act::Wait || plan.decision.reason == Reason::Pause {
        return plan;
    }
    // While there is time the usual checkpoints go on, if another one fits before the last safe moment.
    let fits = match (plan.again, promise.ms_to_safe(of.now)) {
        (Some(last), Some(needed)) => of.now.plus_ms(needed.saturating_mul(2)) <= last,
        _ => false,
    };
    if background.decision.act == Act::LeaveRunning && fits {
        return Plan {
            deadline: background
                .deadline
                .min(plan.again.unwrap_or(background.deadline)),
            ..background
        };
    }
    let later = background.again.filter(|again| fits && *again > of.now);
    Plan {
        again: plan.again.into_iter().chain(later).min(),
        ..plan
    }
}

fn before_end(of: &Situation, going: Going, rules: &Rules, promise: &Promise) -> Plan {
    let now = of.now;
    let deadline = going
        .deadline
        .unwrap_or_else(|| now.plus_ms(rules.attempt_ms));
    let left = usable_ms(now, deadline, rules.margin_ms);
    let needed = promise.ms_to_safe(now);
    let plan = |act, reason, again| Plan {
        decision: Decision {
            act,
            reason,
            source: going.source,
            fate: Some(going.fate),
            left_ms: Some(now.ms_until(deadline)),
            needed_ms: needed,
            changed_bytes: promise.changed_by(now),
        },
        deadline,
        again,
    };
    let after = |moment: Option<Moment>| moment.filter(|moment| *moment >= going.since);
    let safe = after(of.safe);
    let failures = match after(of.ended) {
        Some(_) => of.failures,
        None => 0,
    };
    if going.fate == Fate::Hibernate && safe.is_some() {
        return plan(Act::Wait, Reason::WorksOn, Some(deadline));
    }
    let least = match failures {
        0 => LEAST_BUDGET_MS,
        _ => LAST_TRY_MS,
    };
    if left < least {
        return plan(Act::GiveUp, Reason::NoTime, None);
    }
    if let Some(ended) = of.ended.filter(|_| failures > 0) {
        let pause = PAUSE_MS.saturating_mul(1 << (failures - 1).min(8));
        // A longer one would take the place of the last attempts.
        let most = usable_ms(ended, deadline, rules.margin_ms) / 2;
        let again = ended.plus_ms(pause.min(LONGEST_PAUSE_MS).min(most));
        if again > now {
            return plan(Act::Wait, Reason::Pause, Some(again.min(deadline)));
        }
    }
    if going.fate == Fate::Hibernate {
        return plan(Act::LeaveRunning, Reason::Hibernates, None);
    }
    if needed.is_some_and(|needed| needed > left) && going.deadline.is_some() {
        return match rules.on_too_late {
            OnTooLate::Try => plan(Act::Final, Reason::TooLateTried, None),
            OnTooLate::RunOn => plan(Act::Wait, Reason::TooLate, Some(deadline)),
        };
    }
    if failures > 0 {
        return plan(Act::Final, Reason::Again, None);
    }
    if going.at_once || (left <= SHORT_MS && safe.is_none()) {
        return plan(Act::Final, Reason::AtOnce, None);
    }
    if safe.is_none() {
        // However often it is told of and taken back.
        let rested = of.begun.map(|begun| begun.plus_ms(rules.least_interval_ms));
        if let Some(rested) = rested.filter(|rested| *rested > now && left > NO_HURRY_MS) {
            return plan(Act::Wait, Reason::NoHurry, Some(rested));
        }
        let two = needed
            .zip(promise.ms_to_safe_again(now))
            .map(|(first, again)| slack(first) + slack(again));
        return match two {
            Some(two) if two > left => plan(Act::Final, Reason::OnlyOneFits, None),
            _ => plan(Act::LeaveRunning, Reason::SafeFirst, None),
        };
    }
    match last_safe_moment(now, now.plus_ms(left), promise) {
        Some(last) if last > now => plan(Act::Wait, Reason::WorksOn, Some(last)),
        _ => plan(Act::Final, Reason::LastSafeMoment, None),
    }
}

fn slack(ms: u64) -> u64 {
    ms + ms / 4 + SLACK_MS
}

/// The latest moment from which a checkpoint will be done by `end`. None if even now is too late.
fn last_safe_moment(now: Moment, end: Moment, promise: &Promise) -> Option<Moment> {
    let done = |begun: Moment| {
        let needed = slack(promise.ms_to_safe(begun)?);
        Some(begun.plus_ms(needed + LAST_SLACK_MS))
    };
    let fits = |begun: Moment| done(begun).is_some_and(|done| done <= end);
    if !fits(now) {
        return None;
    }
    // Whoever waits has no less to store, so what fits later fits earlier.
    let (mut fitting, mut late) = (now.0, end.0.saturating_add(1));
    while late - fitting > 1 {
        let middle = fitting + (late - fitting) / 2;
        match fits(Moment(middle)) {
            true => fitting = middle,
            false => late = middle,
        }
    }
    Some(Moment(fitting))
}

/// Checkpoints against an end that nobody announces.
fn background(of: &Situation, rules: &Rules, promise: &Promise) -> Plan {
    let newest = of.safe.max(of.ended).unwrap_or(of.ready);
    let periodic = interval_ms(rules, promise).map(|ms| (newest.plus_ms(ms), Reason::Periodic));
    let at_risk = of.at_risk.map(|(since, _)| {
        let due = match of.safe {
            Some(safe) if safe >= since => newest.plus_ms(rules.at_risk_ms),
            // A failed one is not repeated at once.
            _ if of.ended.is_some_and(|ended| ended >= since) => {
                newest.plus_ms(rules.at_risk_ms.min(rules.least_interval_ms))
            }
            _ => since,
        };
        (due, Reason::AtRisk)
    });
    let promised = promised(of, rules, promise).map(|due| (due, Reason::Promise));
    let first = periodic
        .into_iter()
        .chain(at_risk)
        .chain(promised)
        .min_by_key(|(due, _)| *due);
    let due = first.map(|(due, reason)| {
        let least = of.begun.map(|begun| begun.plus_ms(rules.least_interval_ms));
        (due.max(least.unwrap_or(due)), reason)
    });
    let (act, reason, again) = match due {
        Some((due, reason)) if due <= of.now => (Act::LeaveRunning, reason, None),
        Some((due, _)) => (Act::Wait, Reason::Nothing, Some(due)),
        None => (Act::Wait, Reason::Nothing, None),
    };
    let source = match (reason, of.at_risk) {
        (Reason::AtRisk, Some((_, source))) => source,
        _ => Source::Timer,
    };
    Plan {
        decision: Decision {
            act,
            reason,
            source,
            fate: (reason == Reason::AtRisk).then_some(Fate::AtRisk),
            left_ms: None,
            needed_ms: promise.ms_to_safe(of.now),
            changed_bytes: promise.changed_by(of.now),
        },
        deadline: of.now.plus_ms(rules.attempt_ms),
        again,
    }
}

/// When a checkpoint is due so that the next one fits into the shortest notice.
fn promised(of: &Situation, rules: &Rules, promise: &Promise) -> Option<Moment> {
    if rules.keep_promise != KeepPromise::Checkpoint {
        return None;
    }
    let notice = of.notice_ms?;
    if promise.least_ms().is_none() {
        // The first one is there to be measured.
        return Some(of.ready.plus_ms(rules.least_interval_ms));
    }
    if !can_be_kept(notice, rules, promise) {
        return None;
    }
    let since = of.safe.unwrap_or(of.ready);
    outgrown_at(since, notice, rules, |then| {
        promise.ms_to_safe(then).map(slack)
    })
}

/// However little has changed, a checkpoint may be too long.
fn can_be_kept(notice_ms: u64, rules: &Rules, promise: &Promise) -> bool {
    let least = promise.least_ms();
    least.is_some_and(|least| slack(least) <= usable_notice_ms(notice_ms, rules))
}

/// When memory is to be stored ahead again at the latest, so that the next checkpoint fits into the shortest notice. None if
/// that makes no difference. So many looks in a row were not enough for that: each doubles the pause.
pub fn seed_by(
    now: Moment,
    notice_ms: u64,
    in_vain: u32,
    rules: &Rules,
    promise: &Promise,
) -> Option<Moment> {
    if rules.keep_promise == KeepPromise::Warn || !can_be_kept(notice_ms, rules, promise) {
        return None;
    }
    let ends = outgrown_at(now, notice_ms, rules, |then| {
        promise.ms_to_safe(then).map(slack)
    })?;
    let Some((looked, took_ms)) = promise.looked() else {
        // Nobody knows how long a look takes: half of the time.
        return Some(now.plus_ms(now.ms_until(ends) / 2));
    };
    let pause = SEED_PAUSE_MS.saturating_mul(1 << in_vain.min(20));
    Some(
        looked
            .plus_ms(pause)
            .max(Moment(ends.0.saturating_sub(took_ms))),
    )
}

/// The same before an end that is announced, while the job is safe and works on: what is in the store by then need not be
/// stored at the end, so one look follows the other.
pub fn seed_before_end(now: Moment, promise: &Promise) -> Moment {
    let looked = promise.looked();
    looked.map_or(now, |(ended, _)| ended.plus_ms(SEED_PAUSE_MS))
}

/// Whether a checkpoint that begins now fits into the shortest notice, as far as it is known.
pub fn promise_holds(now: Moment, notice_ms: u64, rules: &Rules, promise: &Promise) -> bool {
    let needed = promise.ms_to_safe(now).map(slack);
    needed.is_none_or(|needed| needed <= usable_notice_ms(notice_ms, rules))
}

/// From when on a checkpoint hardly fits into the shortest notice. None if that will not come.
pub fn promise_ends(
    now: Moment,
    notice_ms: u64,
    rules: &Rules,
    promise: &Promise,
) -> Option<Moment> {
    outgrown_at(now, notice_ms, rules, |then| promise.ms_to_safe(then))
}

fn usable_notice_ms(notice_ms: u64, rules: &Rules) -> u64 {
    usable_ms(Moment(0), Moment(notice_ms), rules.margin_ms)
}

fn outgrown_at(
    from: Moment,
    notice_ms: u64,
    rules: &Rules,
    needed: impl Fn(Moment) -> Option<u64>,
) -> Option<Moment> {
    let usable = usable_notice_ms(notice_ms, rules);
    let outgrown = |then: Moment| needed(then).is_some_and(|needed| needed > usable);
    if outgrown(from) {
        return Some(from);
    }
    let (mut holds, mut late) = (from.0, from.plus_ms(FAR_MS).0);
    if !outgrown(Moment(late)) {
        return None;
    }
    // Whoever waits has no less to store.
    while late - holds > 1 {
        let middle = holds + (late - holds) / 2;
        match outgrown(Moment(middle)) {
            true => late = middle,
            false => holds = middle,
        }
    }
    Some(Moment(late))
}

/// Between two periodic checkpoints.
///
/// With a cost C and machines that live for M on average, the work lost to checkpoints and to the end of machines
/// together is least at the square root of 2CM (Young's formula, to the first order Daly's).
pub fn interval_ms(rules: &Rules, promise: &Promise) -> Option<u64> {
    let interval = match rules.every {
        Every::Never => return None,
        Every::Ms(ms) => ms,
        Every::Auto {
            lifetime_ms,
            max_lost_ms,
        } => match promise.cost_ms().zip(promise.wall_ms()) {
            // The first one is there to be measured.
            None => rules.least_interval_ms,
            Some((cost, wall)) => {
                let best = whole((2.0 * cost as f64 * lifetime_ms as f64).sqrt());
                best.max(wall.saturating_mul(SHARE))
                    .min(max_lost_ms.saturating_sub(wall))
            }
        },
    };
    Some(interval.max(rules.least_interval_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::promise::{Ahead, Measured};
    use proptest::prelude::*;

    const NOW: Moment = Moment(1_000_000);
    const RULES: Rules = Rules {
        margin_ms: 1_000,
        every: Every::Never,
        least_interval_ms: 30_000,
        at_risk_ms: 600_000,
        attempt_ms: 25_000,
        on_too_late: OnTooLate::Try,
        keep_promise: KeepPromise::Warn,
    };

    const CALM: Situation = Situation {
        now: NOW,
        going: None,
        at_risk: None,
        notice_ms: None,
        ready: Moment(0),
        safe: None,
        begun: None,
        ended: None,
        failures: 0,
    };

    fn going(fate: Fate, in_ms: u64) -> Option<Going> {
        Some(Going {
            fate,
            source: Source::Ec2Metadata,
            deadline: Some(NOW.plus_ms(in_ms)),
            since: NOW,
            at_once: false,
        })
    }

    /// Increments of so many MiB a second, each MiB taking so many milliseconds.
    fn promise(mib_per_second: u64, ms_per_mib: u64) -> Promise {
        let mut promise = Promise::default();
        for number in 0..20 {
            promise.learn(Measured {
                frozen_at: Moment(number * 50_000),
                wall_ms: 50 * mib_per_second * ms_per_mib,
                frozen_ms: 100,
                memory: 2 << 30,
                changed: (50 * mib_per_second) << 20,
                stored: (50 * mib_per_second) << 20,
            });
        }
        promise
    }

    fn chosen(of: &Situation, promise: &Promise) -> (Act, Reason) {
        let Decision { act, reason, .. } = decide(of, &RULES, promise).decision;
        (act, reason)
    }

    #[test]
    fn each_fate_is_met_as_it_deserves() {
        let known = promise(5, 10);
        let nothing = Promise::default();
        let table = [
            (
                Fate::Terminate,
                120_000,
                &nothing,
                (Act::LeaveRunning, Reason::SafeFirst),
            ),
            (
                Fate::Terminate,
                120_000,
                &known,
                (Act::LeaveRunning, Reason::SafeFirst),
            ),
            (
                Fate::Stop,
                120_000,
                &known,
                (Act::LeaveRunning, Reason::SafeFirst),
            ),
            (
                Fate::Terminate,
                30_000,
                &known,
                (Act::Final, Reason::AtOnce),
            ),
            (
                Fate::Terminate,
                30_000,
                &nothing,
                (Act::Final, Reason::AtOnce),
            ),
            (
                Fate::Terminate,
                500,
                &known,
                (Act::Final, Reason::TooLateTried),
            ),
            (Fate::Terminate, 100, &known, (Act::GiveUp, Reason::NoTime)),
            (
                Fate::Hibernate,
                120_000,
                &known,
                (Act::LeaveRunning, Reason::Hibernates),
            ),
            (
                Fate::Maintenance,
                9_000_000,
                &known,
                (Act::LeaveRunning, Reason::SafeFirst),
            ),
        ];
        for (fate, in_ms, promise, expected) in table {
            let of = Situation {
                going: going(fate, in_ms),
                ..CALM
            };
            assert_eq!(chosen(&of, promise), expected, "{fate:?} in {in_ms} ms");
        }
    }

    #[test]
    fn a_job_that_is_suspended_with_its_machine_is_stored_once_and_works_on() {
        let of = Situation {
            going: going(Fate::Hibernate, 120_000),
            safe: Some(NOW),
            ..CALM
        };
        assert_eq!(chosen(&of, &promise(5, 10)), (Act::Wait, Reason::WorksOn));
    }

    #[test]
    fn once_safe_the_job_works_on_to_the_last_safe_moment() {
        let promise = promise(5, 10);
        let mut of = Situation {
            going: going(Fate::Terminate, 120_000),
            safe: Some(NOW),
            ..CALM
        };
        let plan = decide(&of, &RULES, &promise);
        assert_eq!(plan.decision.reason, Reason::WorksOn);
        let last = plan.again.expect("it has an end");
        assert!(last > NOW.plus_ms(72_000), "{last:?}");
        of.now = Moment(last.0 - 1);
        assert_eq!(chosen(&of, &promise).0, Act::Wait);
        of.now = last;
        assert_eq!(chosen(&of, &promise), (Act::Final, Reason::LastSafeMoment));
    }

    #[test]
    fn a_checkpoint_that_only_fits_once_is_the_final_one() {
        let of = Situation {
            going: going(Fate::Terminate, 120_000),
            ..CALM
        };
        // 2 GiB at 40 ms per MiB.
        let slow = promise(40, 40);
        assert_eq!(chosen(&of, &slow), (Act::Final, Reason::OnlyOneFits));
    }

    #[test]
    fn what_failed_is_tried_again_after_a_pause_that_grows() {
        let mut of = Situation {
            going: going(Fate::Terminate, 60_000),
            begun: Some(NOW),
            ended: Some(NOW),
            failures: 1,
            ..CALM
        };
        let promise = promise(1, 1);
        assert_eq!(chosen(&of, &promise), (Act::Wait, Reason::Pause));
        of.now = NOW.plus_ms(PAUSE_MS);
        assert_eq!(chosen(&of, &promise), (Act::Final, Reason::Again));
        of.failures = 30;
        assert_eq!(chosen(&of, &promise), (Act::Wait, Reason::Pause));
        of.now = NOW.plus_ms(LONGEST_PAUSE_MS);
        assert_eq!(chosen(&of, &promise), (Act::Final, Reason::Again));
    }

    #[test]
    fn what_failed_shortly_before_the_end_is_tried_once_more_and_then_told() {
        let mut of = Situation {
            going: going(Fate::Terminate, 4_000),
            begun: Some(NOW),
            ended: Some(NOW),
            failures: 5,
            ..CALM
        };
        let promise = promise(1, 1);
        let rules = &RULES;
        let plan = decide(&of, rules, &promise);
        // Half of what can be used, and not the five seconds that are usual by then.
        assert_eq!(plan.again, Some(NOW.plus_ms(1_500)));
        of.now = NOW.plus_ms(1_500);
        assert_eq!(decide(&of, rules, &promise).decision.act, Act::Final);
        // It hung until its time was over; the end is a second away.
        (of.now, of.ended) = (NOW.plus_ms(3_000), Some(NOW.plus_ms(3_000)));
        assert_eq!(chosen(&of, &promise), (Act::GiveUp, Reason::NoTime));
    }

    #[test]
    fn the_period_follows_from_cost_and_from_what_may_be_lost() {
        let every = |max_lost_ms| Rules {
            every: Every::Auto {
                lifetime_ms: 6 * 3_600_000,
                max_lost_ms,
            },
            ..RULES
        };
        let hour = 3_600_000;
        assert_eq!(interval_ms(&every(hour), &Promise::default()), Some(30_000));
        let cheap = interval_ms(&every(hour), &promise(1, 10)).expect("it is on");
        let dear = interval_ms(&every(hour), &promise(40, 10)).expect("it is on");
        assert!(cheap < dear, "{cheap} and {dear}");
        assert_eq!(
            interval_ms(&every(60_000), &promise(1, 10)),
            Some(60_000 - 500)
        );
    }

    #[test]
    fn a_promise_is_kept_by_checkpoints_before_it_would_end_if_that_helps() {
        // Fifty seconds of 40 MiB, 10 ms for each, are 20 s; and all 2 GiB are about as much.
        let promise = promise(40, 10);
        let keep = Rules {
            keep_promise: KeepPromise::Checkpoint,
            ..RULES
        };
        let of = |notice_ms| Situation {
            notice_ms: Some(notice_ms),
            safe: Some(NOW),
            ..CALM
        };
        let due = |notice_ms| decide(&of(notice_ms), &keep, &promise).again;
        assert_eq!(due(120_000), None, "all of it fits");
        assert_eq!(decide(&of(15_000), &RULES, &promise).again, None);
        assert_eq!(promise_ends(NOW, 15_000, &RULES, &promise), Some(NOW));
        // What changed between the checkpoints before is too much: more often, then.
        let plan = decide(&of(15_000), &keep, &promise);
        assert_eq!(
            (plan.decision.act, plan.decision.reason),
            (Act::LeaveRunning, Reason::Promise)
        );
        let begun = Situation {
            begun: Some(NOW),
            ..of(15_000)
        };
        assert_eq!(
            decide(&begun, &keep, &promise).again,
            Some(NOW.plus_ms(RULES.least_interval_ms))
        );
        assert_eq!(due(600), None, "however often, it would not fit");
        // Before anything was measured, one is taken to know.
        let unknown = decide(
            &Situation {
                safe: None,
                ..of(15_000)
            },
            &keep,
            &Promise::default(),
        );
        assert_eq!(unknown.decision.reason, Reason::Promise);
    }

    #[test]
    fn a_promise_is_kept_by_storing_memory_ahead_before_it_would_end() {
        let newest = Moment(19 * 50_000);
        let notice_ms = 30_000;
        let by = |promise: &Promise, now, in_vain, keep_promise| {
            let rules = Rules {
                keep_promise,
                ..RULES
            };
            seed_by(now, notice_ms, in_vain, &rules, promise)
        };
        let seed = |promise: &Promise, now, in_vain| by(promise, now, in_vain, KeepPromise::Seed);
        // 10 MiB a second at 10 ms each: 2 GiB are 20 s, and always fit.
        assert_eq!(seed(&promise(10, 10), newest, 0), None);
        // At 30 ms each what changes in a minute and a quarter does not.
        let mut known = promise(10, 30);
        let fits = seed(&known, newest, 0).expect("it will be too long");
        assert!(fits > newest && fits < newest.plus_ms(60_000), "{fits:?}");
        assert_eq!(by(&known, newest, 0, KeepPromise::Warn), None);
        assert!(by(&known, newest, 0, KeepPromise::Checkpoint).is_some());
        // A look that left little gives more time, and is repeated before that ends.
        let look = |begun, unseeded| Ahead {
            begun,
            took_ms: 4_000,
            unseeded,
            unseen: 0,
        };
        let looked = newest.plus_ms(40_000);
        known.stored_ahead(look(looked, 50 << 20));
        let after = seed(&known, looked, 0).expect("it will be too long");
        assert!(after > looked.plus_ms(5_000), "{after:?}");
        let rules = Rules {
            keep_promise: KeepPromise::Seed,
            ..RULES
        };
        let done = after.plus_ms(4_000);
        assert!(promise_holds(done, notice_ms, &rules, &known), "{after:?}");
        // One that left too much is repeated soon, and less and less so as that does not help.
        let looked = newest.plus_ms(90_000);
        known.stored_ahead(look(looked, 1 << 30));
        assert!(!promise_holds(looked, notice_ms, &rules, &known));
        let ended = looked.plus_ms(4_000);
        for (in_vain, pause_ms) in [(0, 1_000), (1, 2_000), (5, 32_000)] {
            let again = seed(&known, ended, in_vain);
            assert_eq!(again, Some(ended.plus_ms(pause_ms)), "{in_vain}");
        }
        // What no look makes shorter is not looked at for it.
        let mut large = Promise::default();
        large.learn(Measured {
            frozen_at: NOW,
            wall_ms: 60_000,
            frozen_ms: 60_000,
            memory: 2 << 30,
            changed: 1 << 20,
            stored: 1 << 20,
        });
        assert_eq!(seed(&large, NOW, 0), None);
    }

    #[test]
    fn at_risk_is_answered_once_and_then_at_intervals() {
        let mut of = Situation {
            at_risk: Some((NOW, Source::Sqs)),
            ..CALM
        };
        let promise = Promise::default();
        assert_eq!(chosen(&of, &promise), (Act::LeaveRunning, Reason::AtRisk));
        (of.safe, of.begun, of.ended) = (Some(NOW), Some(NOW), Some(NOW));
        let plan = decide(&of, &RULES, &promise);
        assert_eq!(plan.decision.act, Act::Wait);
        assert_eq!(plan.again, Some(NOW.plus_ms(RULES.at_risk_ms)));
    }

    proptest! {
        /// Whatever the situation: waiting has an end before the deadline, and a final checkpoint that is said to fit
        /// begins while it does.
        #[test]
        fn no_wait_outlasts_the_deadline(
            in_ms in 0u64..400_000, safe in proptest::option::of(0u64..200_000),
            rate in 0u64..40, cost in 1u64..60, failures in 0u32..5, ago in 0u64..20_000,
        ) {
            let promise = promise(rate, cost);
            let now = NOW.plus_ms(200_000);
            let of = Situation {
                now,
                going: Some(Going {
                    fate: Fate::Terminate,
                    source: Source::Sqs,
                    deadline: Some(now.plus_ms(in_ms)),
                    since: NOW,
                    at_once: false,
                }),
                safe: safe.map(|ms| NOW.plus_ms(ms)),
                ended: (failures > 0).then_some(Moment(now.0 - ago)),
                failures,
                ..CALM
            };
            let plan = decide(&of, &RULES, &promise);
            match plan.decision.act {
                Act::Wait => {
                    let again = plan.again.expect("a wait has an end");
                    prop_assert!(again > now && again <= plan.deadline, "{plan:?}");
                }
                Act::GiveUp => prop_assert!(in_ms < 4 * LAST_TRY_MS / 3 + 1),
                Act::Final | Act::LeaveRunning => prop_assert!(plan.deadline > now),
            }
        }
    }
}
