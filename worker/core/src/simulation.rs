//! All sources at once, a virtual clock, and a job whose checkpoints take random times: whatever the order, a job that
//! can be saved is saved once, everybody is answered once, nothing waits for ever and nothing is done all the time.
//!
//! The seed of a schedule that fails is printed with it; `simulate` runs it again.

use std::collections::BTreeMap;

use crate::lifecycle::{
    Effect, Ended, Event, Finish, Lifecycle, OnFailure, Phase, Policy, RequestId,
};
use crate::notice::{Afterwards, Announcement, Fate, Moment, Says, Source, WallMs};
use crate::planner::{Every, KeepPromise, OnTooLate, Rules};
use crate::promise::Measured;

const SCHEDULES: u64 = 1_000;
const WALL: u64 = 1_700_000_000_000;
const SIGTERM: i32 = 15;
const LEAST_INTERVAL_MS: u64 = 30_000;

const POLICY: Policy = Policy {
    can_checkpoint: true,
    term_grace_ms: 20_000,
    on_failed_signal: OnFailure::RunOn,
    rules: Rules {
        margin_ms: 1_000,
        every: Every::Auto {
            lifetime_ms: 6 * 3_600_000,
            max_lost_ms: 600_000,
        },
        least_interval_ms: LEAST_INTERVAL_MS,
        at_risk_ms: 300_000,
        attempt_ms: 25_000,
        on_too_late: OnTooLate::Try,
        keep_promise: KeepPromise::Warn,
    },
};

/// Numbers that a seed determines (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit.max(1)
    }

    fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }
}

/// What is to come, by its time.
#[derive(Default)]
struct Agenda(BTreeMap<(u64, u64), Coming>);

enum Coming {
    Event(Event),
    /// Not before its announcer has an identity to answer.
    Said(Source, String, Says),
    Asked(Afterwards),
    CheckpointEnds,
}

impl Agenda {
    fn add(&mut self, at: u64, coming: Coming) {
        let place = self.0.len() as u64 + at % 7;
        let mut key = (at, place);
        while self.0.contains_key(&key) {
            key.1 += 1;
        }
        self.0.insert(key, coming);
    }
}

/// One eviction, told by everybody, amid everything else that may be said.
fn schedule(dice: &mut Dice, agenda: &mut Agenda) -> u64 {
    let end = dice.between(200_000, 1_200_000);
    let wall = |at: u64| Some(WallMs(WALL + at));
    agenda.add(dice.below(5_000), Coming::Event(Event::AppReady));
    let noticed = end - 120_000;
    let mut say = |at: u64, source: Source, identity: &str, says: Says| {
        agenda.add(at, Coming::Said(source, identity.to_owned(), says));
    };
    let goes = |fate: Fate, at: Option<WallMs>| Says::Goes { fate, at };
    for _ in 0..dice.below(3) {
        let at = dice.below(noticed);
        say(
            at,
            Source::Ec2Metadata,
            "rebalance",
            goes(Fate::AtRisk, None),
        );
    }
    // The metadata service is polled, and tells it again each time.
    for poll in 0..dice.between(1, 5) {
        let says = goes(Fate::Terminate, wall(end));
        say(noticed + poll * 2_000, Source::Ec2Metadata, "spot", says);
    }
    for copy in 0..dice.below(3) {
        let (delay, skew) = (dice.below(20_000), dice.below(4_000));
        let says = goes(Fate::Terminate, wall(end + skew));
        say(noticed + delay, Source::Sqs, &format!("event-{copy}"), says);
    }
    if dice.one_in(2) {
        // Somebody else's, long ago.
        let says = goes(Fate::Stop, Some(WallMs(WALL - 3_600_000)));
        say(dice.below(end), Source::Sqs, "old", says);
    }
    if dice.one_in(3) {
        let at = dice.below(noticed / 2);
        say(
            at,
            Source::Azure,
            "work",
            goes(Fate::Maintenance, wall(end + 900_000)),
        );
        say(
            at + dice.below(50_000),
            Source::Azure,
            "work",
            Says::Withdrawn,
        );
    }
    for _ in 0..dice.below(4) {
        let asked = Coming::Asked(Afterwards::Continue);
        agenda.add(dice.below(end), asked);
    }
    if dice.one_in(2) {
        for _ in 0..dice.between(1, 2) {
            let at = end - dice.between(15_000, 40_000);
            agenda.add(at, Coming::Event(Event::Signal(SIGTERM)));
        }
    }
    end
}

struct Job {
    /// Milliseconds of a whole checkpoint, and of what changes in a minute.
    whole_ms: u64,
    changing_ms: u64,
    /// Of a hundred checkpoints, so many fail.
    failing: u64,
}

#[derive(Default, Debug)]
struct Outcome {
    begun: u64,
    finals: u64,
    durable_finals: u64,
    missed: u64,
    checkpointed_at: Option<u64>,
}

fn simulate(seed: u64) -> (Outcome, u64, u64) {
    let mut dice = Dice(seed);
    let mut agenda = Agenda::default();
    let end = schedule(&mut dice, &mut agenda);
    let whole_ms = dice.between(300, 12_000);
    let job = Job {
        whole_ms,
        changing_ms: dice.between(100, whole_ms),
        failing: if dice.one_in(3) { 30 } else { 0 },
    };
    let mut life = Lifecycle::new(POLICY);
    let mut outcome = Outcome::default();
    let (mut asked, mut answered) = (0, Vec::new());
    let mut under_way: Option<(u64, u64, Afterwards)> = None;
    let mut spared = false;
    let mut whole = true;
    let mut now = 0;
    let mut steps = 0;
    while outcome.checkpointed_at.is_none() {
        steps += 1;
        assert!(steps < 20_000, "seed {seed}: it goes on for ever");
        let woken = life.wake().map(|wake| wake.0);
        let next = agenda.0.first_key_value().map(|((at, _), _)| *at);
        let Some(at) = [woken, next].into_iter().flatten().min() else {
            break;
        };
        if at > end {
            break;
        }
        now = now.max(at);
        let event = match (next == Some(at)).then(|| agenda.0.pop_first()).flatten() {
            None => Event::Woken,
            Some((_, Coming::Event(event))) => event,
            Some((_, Coming::Said(source, identity, says))) => {
                asked += 1;
                Event::Announced {
                    id: RequestId(asked),
                    announcement: Announcement {
                        source,
                        identity,
                        says,
                    },
                    wall_now: WallMs(WALL + now),
                }
            }
            Some((_, Coming::Asked(afterwards))) => {
                asked += 1;
                Event::Request {
                    id: RequestId(asked),
                    by: Source::Control,
                    afterwards,
                    deadline: Moment(now + 25_000),
                }
            }
            Some((_, Coming::CheckpointEnds)) => {
                let (begun, wall_ms, afterwards) =
                    under_way.take().expect("only what was begun ends");
                let fails = dice.below(100) < job.failing;
                // Every other one hears of it too late.
                let spared = spared && begun % 2 == 0;
                if !fails && !spared && afterwards == Afterwards::Stop {
                    outcome.durable_finals += 1;
                }
                let changed = if whole { 1 << 30 } else { 64 << 20 };
                whole &= fails;
                let measured = Measured {
                    frozen_at: Moment(begun + 50),
                    wall_ms,
                    frozen_ms: 50,
                    memory: 1 << 30,
                    changed,
                    stored: changed,
                };
                Event::CheckpointEnded(match (fails, spared) {
                    (true, _) => Ended::Failed,
                    (false, true) => Ended::Spared(measured),
                    (false, false) => Ended::Durable(measured),
                })
            }
        };
        for effect in life.handle(event, Moment(now)) {
            match effect {
                Effect::Begin { notice, .. } => {
                    assert!(under_way.is_none(), "seed {seed}: two at once");
                    outcome.begun += 1;
                    outcome.finals += u64::from(notice.afterwards == Afterwards::Stop);
                    let mean = if whole { job.whole_ms } else { job.changing_ms };
                    let wall_ms = dice.between(mean * 9 / 10, mean * 11 / 10).max(100);
                    under_way = Some((now, wall_ms, notice.afterwards));
                    spared = false;
                    agenda.add(now + wall_ms, Coming::CheckpointEnds);
                }
                Effect::Spare => spared = true,
                Effect::Answer(id) | Effect::Refuse(id, _) | Effect::Note(id) => answered.push(id),
                Effect::Finish(finish) => {
                    assert_eq!(finish, Finish::Checkpointed, "seed {seed}");
                    outcome.checkpointed_at = Some(now);
                }
                Effect::Missed { .. } => outcome.missed += 1,
                _ => {}
            }
        }
    }
    if life.phase() != Phase::Over {
        // The machine is gone with whatever was under way.
        for event in [Event::CheckpointEnded(Ended::Fenced), Event::Fenced] {
            for effect in life.handle(event, Moment(end)) {
                if let Effect::Answer(id) | Effect::Refuse(id, _) | Effect::Note(id) = effect {
                    answered.push(id);
                }
            }
        }
    }
    answered.sort_by_key(|id| id.0);
    let all: Vec<RequestId> = (1..=asked).map(RequestId).collect();
    assert_eq!(answered, all, "seed {seed}: everybody is answered once");
    (outcome, end, job.failing)
}

#[test]
fn a_thousand_schedules_of_all_sources_have_one_final_checkpoint_each() {
    let mut late = 0;
    for seed in 0..SCHEDULES {
        let (outcome, end, failing) = simulate(seed);
        if failing == 0 {
            assert_eq!(outcome.finals, 1, "seed {seed}: {outcome:?}");
            assert_eq!(outcome.durable_finals, 1, "seed {seed}: {outcome:?}");
            assert_eq!(outcome.missed, 0, "seed {seed}: {outcome:?}");
            let at = outcome.checkpointed_at.expect("it is over");
            assert!(at <= end, "seed {seed}");
            late += u64::from(at + 60_000 > end);
            let most = end / LEAST_INTERVAL_MS + 10;
            assert!(outcome.begun <= most, "seed {seed}: a storm, {outcome:?}");
        } else {
            assert!(outcome.durable_finals <= 1, "seed {seed}: {outcome:?}");
            // Pauses bound how often a failing one is tried.
            assert!(outcome.begun < end / 5_000 + 30, "seed {seed}: {outcome:?}");
        }
    }
    // What the notice is for: most jobs work on until its last minute.
    assert!(late > SCHEDULES / 3, "{late}");
}
