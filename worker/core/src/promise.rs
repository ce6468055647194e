//! How long it takes to bring the job into safety: what was measured, and what follows from it.
//!
//! A checkpoint costs time for looking at all of the job's memory and time for storing what changed since the snapshot
//! before. Both are learned from the checkpoints that were taken, as a mean and a mean deviation that weigh recent ones
//! more; an estimate is the mean plus twice the deviation, because one that is too short loses the job's work, and one
//! that is too long only some of its time. Storing takes no less than the way to the store needs, as it was seen last
//! ([`Way`]): what checkpoints took as a whole tells of that late, and hardly at all when little changes.

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
    /// From when on changes are counted.
    since: Option<Moment>,
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
        self.since = Some(of.frozen_at.plus_ms(of.frozen_ms));
    }

    /// What is known of the way to the store.
    pub fn goes(&mut self, way: Way) {
        self.way = way;
    }

    /// What is in the store is of this moment, though nothing was measured: the job was resumed from it, or its memory was
    /// stored ahead of a checkpoint.
    pub fn begin_from(&mut self, moment: Moment) {
        self.since = Some(moment);
    }

    /// Bytes that will have changed by then, at most. None before anything was measured.
    pub fn changed_by(&self, then: Moment) -> Option<u64> {
        let since = self.since.filter(|_| self.memory > 0)?;
        let (Some(increment), Some(rate)) = (self.increment.at_most(), self.rate.at_most()) else {
            return Some(self.memory);
        };
        // What a program works on is touched again soon, so a short while changes hardly less than a longer one.
        let changed = increment.max(rate * since.ms_until(then) as f64);
        Some(whole(changed).min(self.memory))
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
        fn waiting_never_makes_it_shorter(
            samples in proptest::collection::vec((1u64..100_000, 1u64..60_000, 0u64..MEMORY), 1..10),
            from in 0u64..1 << 30, later in 0u64..1 << 30,
        ) {
            let mut promise = Promise::default();
            let mut at = 0;
            for (pause, wall, changed) in samples {
                at += pause;
                promise.learn(measured(at, wall, changed));
            }
            let now = promise.ms_to_safe(Moment(at + from));
            prop_assert!(now <= promise.ms_to_safe(Moment(at + from + later)));
        }
    }
}
