//! How long it takes to bring the job into safety: what was measured, and what follows from it.
//!
//! A checkpoint costs time for looking at all of the job's memory and time for storing what changed since the snapshot
//! before. Both are learned from the checkpoints that were taken, as a mean and a mean deviation that weigh recent ones
//! more; an estimate is the mean plus twice the deviation, because one that is too short loses the job's work, and one
//! that is too long only some of its time. Storing takes no less than the way to the store needs, as it was seen last
//! ([`Way`]): what checkpoints took as a whole tells of that late, and hardly at all when little changes.
//!
//! Changes count from the newest snapshot, or from the newest look at the job's memory that stored it ahead ([`Ahead`]),
//! whichever promises less.

use crate::notice::Moment;
use crate::way::Way;

const MIB: f64 = (1 << 20) as f64;

/// The weight of the newest of many samples.
const NEWEST: f64 = 0.3;

/// What any checkpoint takes at least, in milliseconds: starting CRIU, the manifest and the commit.
const LEAST_MS: u64 = 500;

/// A checkpoint that changed less than this part of the memory tells what looking costs; one that changed more, what
/// storing costs.
const FEW: f64 = 0.1;

/// Of one that changed few, but no fewer MiB than this, what followed the freeze was storing.
const TELLING: f64 = 16.0;

/// What does not shrink grows by little: the index, and the page hashes. Of a checkpoint with few changes those are most of it
/// and say nothing of one with many.
const MOST_STORED: f64 = 1.05;

/// A mean that forgets, and how far samples lie from it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    mean: f64,
    deviation: f64,
    samples: u32,
}

impl Estimate {
    pub fn add(&mut self, sample: f64) {
        self.samples = self.samples.saturating_add(1);
        if self.samples == 1 {
            self.mean = sample;
            // One sample says nothing of its spread.
            self.deviation = sample / 4.0;
            return;
        }
        let weight = NEWEST.max(1.0 / f64::from(self.samples));
        let error = sample - self.mean;
        self.mean += weight * error;
        self.deviation += weight * (error.abs() - self.deviation);
    }

    /// None before the first sample.
    pub fn mean(&self) -> Option<f64> {
        (self.samples > 0).then_some(self.mean)
    }

    /// What is hardly exceeded.
    pub fn at_most(&self) -> Option<f64> {
        self.mean().map(|mean| mean + 2.0 * self.deviation)
    }
}

/// A checkpoint that is durable, as far as it tells what the next one will take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// When the app's memory was read.
    pub frozen_at: Moment,
    /// The whole checkpoint.
    pub wall_ms: u64,
    pub frozen_ms: u64,
    /// Bytes of the job.
    pub memory: u64,
    /// Bytes of them that had to be stored: neither zeros nor in the store already.
    pub changed: u64,
    /// Bytes that were written to the store for it.
    pub stored: u64,
}

/// A look at all of the job's memory, after which what it found is in the store but for this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// What changed from then on it may have missed.
    pub begun: Moment,
    pub took_ms: u64,
    /// Bytes that it found and that are not in the store: they change all the time, or did just now.
    pub unseeded: u64,
    /// Bytes that it did not look at: memory that is shared or swapped out, and the job's files.
    pub unseen: u64,
}

/// What is known of the cost of safety.
#[derive(Clone, Copy, Debug, Default)]
pub struct Promise {
    /// Milliseconds per MiB of memory.
    looking: Estimate,
    /// Milliseconds per MiB that changed.
    storing: Estimate,
    /// Bytes stored for each that changed.
    shrinks_to: Estimate,
    way: Way,
    /// Bytes that changed from one snapshot to the next.
    increment: Estimate,
    /// Bytes that changed, per millisecond between snapshots.
    rate: Estimate,
    frozen_ms: Estimate,
    wall_ms: Estimate,
    memory: u64,
    /// When the newest snapshot was taken.
    since: Option<Moment>,
    ahead: Option<Ahead>,
    /// Bytes that a look leaves unseeded.
    leaves: Estimate,
    /// Bytes that were found changed, per millisecond between looks.
    touched: Estimate,
    look_ms: Estimate,
}

impl Promise {
    /// Learns from a checkpoint.
    pub fn learn(&mut self, of: Measured) {
        let memory = (of.memory as f64 / MIB).max(1.0);
        let changed = of.changed as f64 / MIB;
        let wall = of.wall_ms as f64;
        if changed < memory * FEW {
            // A job that goes on is let go when its memory was looked at; over a slow way to the store most of the time
            // comes after that, and grows with what changes.
            let looked = (of.frozen_ms.saturating_add(LEAST_MS) as f64).min(wall);
            if changed >= TELLING {
                self.storing.add((wall - looked) / changed);
                self.looking.add(looked / memory);
            } else {
                self.looking.add(wall / memory);
            }
        } else {
            let looking = self.looking.mean().unwrap_or(0.0) * memory;
            self.storing.add((wall - looking).max(0.0) / changed);
        }
        if of.changed > 0 {
            self.shrinks_to.add(of.stored as f64 / of.changed as f64);
        }
        if let Some(before) = self.since {
            let elapsed = before.ms_until(of.frozen_at).max(LEAST_MS) as f64;
            self.increment.add(of.changed as f64);
            self.rate.add(of.changed as f64 / elapsed);
        }
        self.frozen_ms.add(of.frozen_ms as f64);
        self.wall_ms.add(wall);
        self.memory = of.memory;
        // It changed nothing while it stood still.
        self.begin_from(of.frozen_at.plus_ms(of.frozen_ms));
    }

    /// What is known of the way to the store.
    pub fn goes(&mut self, way: Way) {
        self.way = way;
    }

    /// A snapshot is of this moment: one that was taken, or the one from which the job was resumed.
    pub fn begin_from(&mut self, moment: Moment) {
        self.since = Some(moment);
        self.ahead = None;
    }

    /// The job's memory was stored ahead, but for what this says.
    pub fn stored_ahead(&mut self, ahead: Ahead) {
        // A snapshot that was taken meanwhile has all of it.
        if self.since.is_some_and(|since| since > ahead.begun) {
            return;
        }
        let before = self.ahead.map(|before| before.begun).or(self.since);
        if let Some(before) = before {
            let elapsed = before.ms_until(ahead.begun).max(LEAST_MS) as f64;
            self.touched.add(ahead.unseeded as f64 / elapsed);
        }
        self.leaves.add(ahead.unseeded as f64);
        self.look_ms.add(ahead.took_ms as f64);
        self.ahead = Some(ahead);
    }

    /// What was stored ahead is of no use any more: the next checkpoint stores what changed since the snapshot.
    pub fn nothing_is_ahead(&mut self) {
        self.ahead = None;
    }

    /// Bytes that a checkpoint begun by then will have to store, at most. None before anything was measured.
    pub fn changed_by(&self, then: Moment) -> Option<u64> {
        let since = self.since.filter(|_| self.memory > 0)?;
        let of_snapshot = match (self.increment.at_most(), self.rate.at_most()) {
            // What a program works on is touched again soon, so a short while changes hardly less than a longer one.
            (Some(increment), Some(rate)) => {
                whole(increment.max(rate * since.ms_until(then) as f64)).min(self.memory)
            }
            _ => self.memory,
        };
        let of_ahead = self.ahead.zip(self.touched.at_most());
        let of_ahead = of_ahead.map(|(ahead, touched)| {
            let left = ahead.unseeded as f64 + touched * ahead.begun.ms_until(then) as f64;
            let left = left.max(self.leaves.at_most().unwrap_or(0.0));
            // What nobody looked at has changed since the snapshot.
            whole(left).saturating_add(ahead.unseen.min(of_snapshot))
        });
        Some(of_ahead.map_or(of_snapshot, |bytes| bytes.min(of_snapshot)))
    }

    /// When the newest look that stored memory ahead ended, and how long one takes, hardly ever longer.
    pub fn looked(&self) -> Option<(Moment, u64)> {
        let ahead = self.ahead?;
        let took_ms = whole(self.look_ms.at_most()?);
        Some((ahead.begun.plus_ms(ahead.took_ms), took_ms))
    }

    /// Milliseconds that a checkpoint begun at `then` takes, hardly ever more. None before anything was measured.
    pub fn ms_to_safe(&self, then: Moment) -> Option<u64> {
        self.changed_by(then).map(|changed| self.ms_for(changed))
    }

    /// Milliseconds that a second checkpoint takes which is begun when a first one, begun now, is durable.
    pub fn ms_to_safe_again(&self, now: Moment) -> Option<u64> {
        let first = self.ms_to_safe(now)?;
        let again = Self {
            since: Some(now),
            ahead: None,
            ..*self
        };
        again.ms_to_safe(now.plus_ms(first))
    }

    /// What a checkpoint takes that has nothing to store, hardly ever more. None before anything was measured.
    pub fn least_ms(&self) -> Option<u64> {
        (self.memory > 0).then(|| self.ms_for(0))
    }

    fn ms_for(&self, changed: u64) -> u64 {
        let looking = self.looking.at_most().unwrap_or(0.0) * (self.memory as f64 / MIB);
        // Where storing was never measured apart, looking included it.
        let storing = self.storing.at_most().unwrap_or(0.0);
        let shrinks_to = self
            .shrinks_to
            .at_most()
            .map_or(1.0, |ratio| ratio.min(MOST_STORED));
        let carrying = self.way.ms_per_mib_at_most().unwrap_or(0.0) * shrinks_to;
        let storing = storing.max(carrying) * (changed as f64 / MIB);
        whole(looking + storing).max(LEAST_MS)
    }

    /// What a checkpoint costs the job: how long it stands still, and a tenth of the time in which it has company.
    pub fn cost_ms(&self) -> Option<u64> {
        let (frozen, wall) = (self.frozen_ms.mean()?, self.wall_ms.mean()?);
        Some(whole(frozen + wall / 10.0))
    }

    /// How long a checkpoint takes on average.
    pub fn wall_ms(&self) -> Option<u64> {
        self.wall_ms.mean().map(whole)
    }
}

/// Without its fraction; what is less than zero is zero, and what is too large is the largest.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` from a float saturates, as the comment says"
)]
pub fn whole(number: f64) -> u64 {
    number as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::way::Carried;
    use proptest::prelude::*;

    const MEMORY: u64 = 1 << 30;

    fn measured(at: u64, wall_ms: u64, changed: u64) -> Measured {
        Measured {
            frozen_at: Moment(at),
            wall_ms,
            frozen_ms: 300,
            memory: MEMORY,
            changed,
            stored: changed,
        }
    }

    #[test]
    fn nothing_is_promised_before_anything_was_measured() {
        let promise = Promise::default();
        assert_eq!(promise.ms_to_safe(Moment(5)), None);
        assert_eq!(promise.cost_ms(), None);
    }

    #[test]
    fn the_first_measurement_promises_the_whole_and_increments_promise_less() {
        let mut promise = Promise::default();
        promise.learn(measured(0, 40_000, MEMORY));
        let whole = promise.ms_to_safe(Moment(1)).expect("it was measured");
        assert!(whole >= 40_000, "{whole}");
        for number in 1..=6 {
            promise.learn(measured(number * 60_000, 3_000, 50 << 20));
        }
        let little = promise
            .ms_to_safe(Moment(370_000))
            .expect("it was measured");
        assert!((3_000..10_000).contains(&little), "{little}");
        let much_later = promise
            .ms_to_safe(Moment(100_000_000))
            .expect("it was measured");
        // The first one alone is trusted less than many that agree.
        assert!(
            (40_000..=whole).contains(&much_later),
            "{much_later} and {whole}"
        );
    }

    #[test]
    fn over_a_way_that_became_slow_the_promise_grows_with_what_changes() {
        // 2 GiB over a fast way; then 150 MiB at 25 MiB a second, and the job changes 10 MiB a second.
        let of = |at, wall_ms, frozen_ms, changed| Measured {
            frozen_at: Moment(at),
            wall_ms,
            frozen_ms,
            memory: 2 << 30,
            changed,
            stored: changed,
        };
        let mut promise = Promise::default();
        promise.learn(of(0, 8_000, 7_000, 2 << 30));
        promise.learn(of(15_000, 8_000, 1_500, 150 << 20));
        let keeps = |promise: &Promise, from: u64| {
            for later_s in [30, 60, 85] {
                let promised = promise.ms_to_safe(Moment(from + later_s * 1_000));
                let takes = 2_000 + later_s * 10 * 1_000 / 25;
                assert!(promised >= Some(takes), "{promised:?} for {takes} ms");
            }
        };
        keeps(&promise, 15_000);
        // The same with so little stored that looking at memory took half of the time.
        let mut promise = Promise::default();
        promise.learn(of(0, 8_000, 7_000, 2 << 30));
        promise.learn(of(5_000, 3_000, 1_000, 50 << 20));
        keeps(&promise, 5_000);
    }

    /// A look that left so many MiB.
    fn ahead(begun: u64, mib: u64) -> Ahead {
        Ahead {
            begun: Moment(begun),
            took_ms: 2_000,
            unseeded: mib << 20,
            unseen: 0,
        }
    }

    /// A job that changes 1 MiB a second, stored at 100 ms per MiB: one of ten minutes at a time.
    fn steady() -> Promise {
        let mut promise = Promise::default();
        for number in 0..20 {
            promise.learn(measured(number * 600_000, 60_000, 600 << 20));
        }
        promise
    }

    #[test]
    fn changes_count_from_the_newest_look_that_stored_memory_ahead() {
        let mut promise = steady();
        let last = 19 * 600_000;
        let at = |promise: &Promise, ms| promise.ms_to_safe(Moment(last + ms)).expect("measured");
        let before = at(&promise, 300_000);
        assert!(before >= 60_000, "{before}");
        // What changes in a minute is found changed by each look, and stored by the next.
        for minute in 1..=4 {
            promise.stored_ahead(ahead(last + minute * 60_000, 60));
        }
        let seeded = at(&promise, 300_000);
        // 60 MiB that were left, and those of the minute since.
        assert!((12_000..before / 2).contains(&seeded), "{seeded}");
        assert!(at(&promise, 360_000) > seeded, "it grows meanwhile");
        assert!(
            at(&promise, 60_000_000) >= before,
            "as long as nobody looks"
        );
        let changed = promise.changed_by(Moment(last + 300_000));
        assert!(changed >= Some(120 << 20), "{changed:?}");
        // A look that finds much says so at once.
        promise.stored_ahead(ahead(last + 300_000, 500));
        assert!(at(&promise, 300_000) > 50_000);
    }

    #[test]
    fn what_nobody_looked_at_has_changed_since_the_snapshot() {
        let last = 19 * 600_000;
        let then = Moment(last + 300_000);
        let before = steady().changed_by(then).expect("it was measured");
        let look = |unseen| {
            let mut promise = steady();
            promise.stored_ahead(Ahead {
                unseen,
                ..ahead(last + 250_000, 1)
            });
            promise.changed_by(then).expect("it was measured")
        };
        let seen = look(0);
        assert!(seen < 20 << 20, "{seen}");
        assert_eq!(look(100 << 20), seen + (100 << 20));
        assert_eq!(look(u64::MAX), before);
    }

    #[test]
    fn what_was_stored_ahead_counts_until_the_next_snapshot_or_until_it_is_of_no_use() {
        let mut promise = steady();
        let last = 19 * 600_000;
        let then = Moment(last + 300_000);
        let before = promise.changed_by(then);
        promise.stored_ahead(ahead(last + 280_000, 1));
        assert!(promise.changed_by(then) < before);
        assert_eq!(
            promise.looked(),
            Some((Moment(last + 282_000), 3_000)),
            "a quarter of one is its spread"
        );
        let again = promise.ms_to_safe_again(then);
        promise.nothing_is_ahead();
        assert_eq!(promise.changed_by(then), before);
        assert!(again <= promise.ms_to_safe_again(then));
        promise.stored_ahead(ahead(last + 280_000, 1));
        promise.learn(measured(last + 600_000, 60_000, 600 << 20));
        assert_eq!(promise.looked(), None);
        // A look from before that is only told of now.
        promise.stored_ahead(ahead(last + 590_000, 1));
        assert_eq!(promise.looked(), None);
    }

    #[test]
    fn a_resumed_job_has_changed_since_it_was_resumed() {
        let mut promise = Promise::default();
        promise.begin_from(Moment(1_000));
        promise.learn(measured(61_000, 6_000, 60 << 20));
        // Without the moment of the resume nothing would be known of how fast it changes.
        let changed = promise.changed_by(Moment(121_000)).expect("measured");
        assert!(((60 << 20)..(120 << 20)).contains(&changed), "{changed}");
    }

    #[test]
    fn few_bytes_over_a_way_that_became_slow_tell_what_many_will_take() {
        // What `make evictions` found: 2 GiB over a fast way while the job stood still, and 15 MiB of a job that changes
        // 10 MiB a second, stored mostly while it stood still, too.
        let of = |at, frozen_ms, wall_ms, mib: u64| Measured {
            frozen_ms,
            memory: 2 << 30,
            ..measured(at, wall_ms, mib << 20)
        };
        let (mut promise, mut way) = (Promise::default(), Way::default());
        promise.learn(of(0, 7_500, 8_000, 2048));
        way.carried(Carried {
            bytes: 2 << 30,
            busy_ms: 7_000,
        });
        promise.learn(of(9_000, 1_800, 2_300, 15));
        way.carried(Carried {
            bytes: 15 << 20,
            busy_ms: 630,
        });
        promise.goes(way);
        let promised = promise.ms_to_safe(Moment(10_800 + 60_000));
        // 500 MiB at 25 MB a second, and the look at memory.
        assert!(promised >= Some(21_000 + 1_800), "{promised:?}");
        assert!(promised <= Some(60_000), "{promised:?}");
    }

    proptest! {
        #[test]
        fn however_the_way_was_a_slow_one_counts_at_once(
            before in proptest::collection::vec((1u64 << 20..1 << 32, 1u64..100_000), 1..10),
            mib in 2u64..200, pace in 1u64..200, changed in 1u64..900,
        ) {
            let (mut promise, mut way) = (Promise::default(), Way::default());
            promise.learn(measured(0, 1_000, MEMORY));
            promise.learn(measured(100_000, 1_000, changed << 20));
            for (bytes, busy_ms) in before {
                way.carried(Carried { bytes, busy_ms });
            }
            way.carried(Carried { bytes: mib << 20, busy_ms: mib * pace });
            promise.goes(way);
            let promised = promise.ms_to_safe(Moment(200_000)).expect("it was measured");
            prop_assert!(promised >= changed * pace, "{promised} for {} ms", changed * pace);
        }

        #[test]
        fn steady_jobs_keep_the_promise(
            changed in 120u64..900, rate in 1u64..50, looking in 1u64..5, noise in 0u64..20,
        ) {
            let mut promise = Promise::default();
            let wall = |number: u64| looking * 1024 + rate * changed * (100 + number * 7 % (noise + 1)) / 100;
            for number in 0..20 {
                promise.learn(measured(number * 600_000, wall(number), changed << 20));
            }
            let promised = promise.ms_to_safe(Moment(20 * 600_000)).expect("it was measured");
            prop_assert!(promised >= wall(20) * 9 / 10, "{promised} for {}", wall(20));
        }

        #[test]
        fn waiting_never_makes_it_shorter_and_what_is_stored_ahead_never_longer(
            samples in proptest::collection::vec((1u64..100_000, 1u64..60_000, 0u64..MEMORY), 1..10),
            looks in proptest::collection::vec((1u64..100_000, 0u64..1024, 0u64..MEMORY), 0..5),
            from in 0u64..1 << 30, later in 0u64..1 << 30,
        ) {
            let mut promise = Promise::default();
            let mut at = 0;
            for (pause, wall, changed) in samples {
                at += pause;
                promise.learn(measured(at, wall, changed));
            }
            let without = promise;
            for (pause, mib, unseen) in looks {
                at += pause;
                promise.stored_ahead(Ahead { unseen, ..ahead(at, mib) });
                let left = promise.changed_by(Moment(at));
                prop_assert!(left >= Some((mib << 20).min(without.changed_by(Moment(at)).expect("measured"))));
            }
            prop_assert!(promise.ms_to_safe(Moment(at + from)) <= without.ms_to_safe(Moment(at + from)));
            let now = promise.ms_to_safe(Moment(at + from));
            prop_assert!(now <= promise.ms_to_safe(Moment(at + from + later)));
        }
    }
}
