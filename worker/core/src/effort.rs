//! How hard to compress what is still to be stored: from measured rates and the time left to one of a few levels.
//!
//! Packing and uploading overlap, so what is left takes as long as the slower of the two. Compressing harder costs
//! processor time and saves upload; which of them is short differs between machines and changes during one checkpoint,
//! so the choice is made again and again. It is made in two steps: the fastest way sets the pace, because the job may be
//! frozen for as long as this takes; then the strongest level that is not noticeably slower, and that still meets the
//! deadline if any does, is taken for the sake of the store. Of uploads there are as many side by side as keep up with packing,
//! and all there may be when time is short or the store is what everything waits for.
//!
//! When time is short, what only serves later checkpoints is left out. Nothing that the snapshot consists of ever is.

use serde::{Deserialize, Serialize};

use crate::promise::whole;

/// How hard to try, from least to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Stored as it is.
    Raw,
    /// zstd's fast level -1.
    Fast,
    /// zstd's level 1. Levels above 2 cost twice the time for 5 % of the size on real memory (measured).
    Strong,
}

impl Level {
    pub const ALL: [Self; 3] = [Self::Raw, Self::Fast, Self::Strong];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Fast => "fast",
            Self::Strong => "strong",
        }
    }
}

/// Why a level was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The setting says so.
    Asked,
    /// It is the strongest that costs no noticeable time.
    CostsNothing,
    /// A stronger one would not meet the deadline.
    Deadline,
    /// None meets the deadline; this is the fastest.
    LeastLate,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "the setting says so",
            Self::CostsNothing => "it is the strongest that costs no noticeable time",
            Self::Deadline => "a stronger one would not meet the deadline",
            Self::LeastLate => "none meets the deadline, and this is the fastest",
        }
    }
}

/// How what is left is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    pub level: Level,
    pub reason: Reason,
    /// Side by side.
    pub uploads: u32,
    /// How long it takes like this.
    pub takes_ms: f64,
}

/// How long looking at what is in the store already may take, as a part of the time for storing.
pub const LOOKING: u64 = 4;

/// Whether to leave out looking at what is in the store already: it took so long when it was looked at last that it would be
/// given up for lack of time, and its share of the time with it.
pub fn leaves_out_comparing(looking_ms: Option<u64>, left_ms: u64) -> bool {
    looking_ms.is_some_and(|ms| ms > left_ms / LOOKING)
}

/// What is left out of a checkpoint when time is short. The snapshot is as whole without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftOut {
    /// What the snapshot before has is not looked up: it is stored again.
    Comparing,
    /// No block is packed harder than the rest to find out what that would save.
    Probing,
}

impl LeftOut {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Comparing => "comparing with the snapshot before",
            Self::Probing => "trying stronger compression",
        }
    }
}

/// How a checkpoint is stored, and what that was decided from when its memory began to be read. Kept with the snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storing {
    pub compression: Level,
    pub reason: Reason,
    /// Side by side.
    pub uploads: u32,
    pub leaves_out: Vec<LeftOut>,
    /// How long it was expected to take, and how long it may.
    pub expected_ms: u64,
    pub left_ms: u64,
    /// Bytes of memory that were expected, before packing.
    pub bytes: u64,
    /// Bytes that the store was expected to take in a second.
    pub upload_rate: u64,
    /// How often it was decided otherwise since.
    pub changes: u32,
}

impl Storing {
    /// In words.
    pub fn describe(&self) -> String {
        let uploads = match self.uploads {
            1 => "1 upload".to_owned(),
            many => format!("{many} uploads side by side"),
        };
        let left_out: Vec<&str> = self
            .leaves_out
            .iter()
            .map(|left_out| left_out.as_str())
            .collect();
        let without = match left_out.is_empty() {
            true => String::new(),
            false => format!("; without {}", left_out.join(" and ")),
        };
        let (compression, reason) = (self.compression.as_str(), self.reason.as_str());
        format!("compression {compression} ({reason}), {uploads}{without}")
    }
}

/// What a level does with this job's memory on this machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Bytes before packing that all packers together take in a second.
    pub pack: f64,
    /// Bytes after packing for each byte before; at most 1.
    pub shrinks_to: f64,
}

/// What the choice follows from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Facts {
    /// Bytes that are still to be packed, and those that are packed and on their way.
    pub left: u64,
    pub under_way: u64,
    pub left_ms: u64,
    /// Bytes that the store takes in a second.
    pub upload: f64,
    /// And a single upload.
    pub one_upload: f64,
    pub most_uploads: u32,
    /// For each of [`Level::ALL`].
    pub rates: [Rate; 3],
}

/// A level may take this much longer than the fastest one: a twentieth more, or less than anybody notices.
const SLOWER: f64 = 1.05;
const SLOWER_BY_MS: f64 = 50.0;

impl Facts {
    /// How long what is left takes at this level, in milliseconds.
    pub fn takes_ms(&self, level: Level) -> f64 {
        let rate = self.rates[level as usize];
        let pack = self.left as f64 / rate.pack.max(1.0);
        let upload =
            (self.under_way as f64 + self.left as f64 * rate.shrinks_to) / self.upload.max(1.0);
        pack.max(upload) * 1000.0
    }
}

/// How to store what comes next.
pub fn plan(facts: &Facts) -> Plan {
    let fastest = Level::ALL
        .into_iter()
        .map(|level| facts.takes_ms(level))
        .fold(f64::INFINITY, f64::min);
    let unnoticed = (fastest * SLOWER).max(fastest + SLOWER_BY_MS);
    let left_ms = facts.left_ms as f64;
    let strongest = |limit: f64| {
        let mut levels = Level::ALL.into_iter().rev();
        let found = levels.find(|level| facts.takes_ms(*level) <= limit);
        found.unwrap_or(Level::Raw)
    };
    // Near the deadline nothing is given away; past it, the fastest is the least late.
    let level = strongest(unnoticed.min(left_ms.max(fastest)));
    let reason = if fastest > left_ms {
        Reason::LeastLate
    } else if level == strongest(unnoticed) {
        Reason::CostsNothing
    } else {
        Reason::Deadline
    };
    Plan {
        level,
        reason,
        uploads: uploads(facts, level, reason),
        takes_ms: facts.takes_ms(level),
    }
}

/// How many uploads go side by side at this level.
pub fn uploads(facts: &Facts, level: Level, reason: Reason) -> u32 {
    let most = facts.most_uploads.max(1);
    let rate = facts.rates[level as usize];
    let packed = rate.pack * rate.shrinks_to;
    // What waits for the store is not made faster by fewer.
    if matches!(reason, Reason::Deadline | Reason::LeastLate) || packed >= facts.upload {
        return most;
    }
    // One more, since none is as fast as the next.
    let enough = whole((packed / facts.one_upload.max(1.0)).ceil()) + 1;
    u32::try_from(enough).unwrap_or(most).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: f64 = 1048576.0;

    fn facts(left_mib: u64, left_ms: u64, upload_mib: f64) -> Facts {
        let rate = |pack: f64, shrinks_to| Rate {
            pack: pack * MIB,
            shrinks_to,
        };
        Facts {
            left: left_mib << 20,
            under_way: 0,
            left_ms,
            upload: upload_mib * MIB,
            one_upload: upload_mib * MIB / 16.0,
            most_uploads: 16,
            rates: [rate(1500.0, 1.0), rate(700.0, 0.33), rate(500.0, 0.3)],
        }
    }

    #[test]
    fn what_is_short_decides() {
        use Reason::{CostsNothing, Deadline, LeastLate};
        for (what, facts, level, reason) in [
            (
                "a fast network",
                facts(4096, 60_000, 3000.0),
                Level::Raw,
                CostsNothing,
            ),
            (
                "a middling one",
                facts(4096, 60_000, 250.0),
                Level::Fast,
                CostsNothing,
            ),
            (
                "a slow one",
                facts(4096, 600_000, 20.0),
                Level::Strong,
                CostsNothing,
            ),
            (
                "little to store",
                facts(16, 60_000, 3000.0),
                Level::Strong,
                CostsNothing,
            ),
            (
                "a near deadline",
                facts(64, 50, 3000.0),
                Level::Raw,
                Deadline,
            ),
            (
                "nothing can be met",
                facts(4096, 1, 3000.0),
                Level::Raw,
                LeastLate,
            ),
        ] {
            let plan = plan(&facts);
            assert_eq!((plan.level, plan.reason), (level, reason), "{what}");
        }
    }

    fn any_facts() -> impl Strategy<Value = Facts> {
        let rate =
            (1.0f64..1e10, 0.0f64..=1.0).prop_map(|(pack, shrinks_to)| Rate { pack, shrinks_to });
        (
            0u64..1 << 40,
            0u64..1 << 30,
            0u64..10_000_000,
            1.0f64..1e10,
            (1.0f64..1e10, 0u32..64),
            [rate.clone(), rate.clone(), rate],
        )
            .prop_map(
                |(left, under_way, left_ms, upload, (one_upload, most_uploads), rates)| Facts {
                    left,
                    under_way,
                    left_ms,
                    upload,
                    one_upload,
                    most_uploads,
                    rates,
                },
            )
    }

    #[test]
    fn there_are_as_many_uploads_as_keep_up_and_all_when_it_matters() {
        for (what, facts, uploads) in [
            ("packing is slower", facts(4096, 60_000, 3000.0), 9),
            ("the network is slower", facts(4096, 600_000, 20.0), 16),
            ("a near deadline", facts(64, 50, 3000.0), 16),
            ("nothing can be met", facts(4096, 1, 3000.0), 16),
        ] {
            assert_eq!(plan(&facts).uploads, uploads, "{what}");
        }
    }

    #[test]
    fn what_took_long_to_look_up_is_not_looked_up_when_time_is_short() {
        assert!(!leaves_out_comparing(None, 0));
        assert!(!leaves_out_comparing(Some(2_000), 8_000));
        assert!(leaves_out_comparing(Some(2_001), 8_000));
    }

    #[test]
    fn a_way_of_storing_says_what_it_is_and_why() {
        let storing = Storing {
            compression: Level::Raw,
            reason: Reason::Deadline,
            uploads: 8,
            leaves_out: vec![LeftOut::Comparing, LeftOut::Probing],
            expected_ms: 900,
            left_ms: 1_000,
            bytes: 1 << 30,
            upload_rate: 1 << 20,
            changes: 0,
        };
        assert_eq!(
            storing.describe(),
            "compression raw (a stronger one would not meet the deadline), 8 uploads side by side; without comparing with the \
             snapshot before and trying stronger compression"
        );
    }

    proptest! {
        #[test]
        fn there_is_always_an_upload_and_never_one_too_many(facts in any_facts()) {
            prop_assert!((1..=facts.most_uploads.max(1)).contains(&plan(&facts).uploads));
        }

        #[test]
        fn no_deadline_is_missed_that_another_level_would_meet(facts in any_facts()) {
            let left_ms = facts.left_ms as f64;
            let chosen = plan(&facts).takes_ms;
            for level in Level::ALL {
                if facts.takes_ms(level) <= left_ms {
                    prop_assert!(chosen <= left_ms, "{:?} takes {} ms", level, facts.takes_ms(level));
                }
            }
        }

        #[test]
        fn nothing_is_noticeably_slower_than_the_fastest(facts in any_facts()) {
            let fastest = Level::ALL.map(|level| facts.takes_ms(level)).into_iter().fold(f64::INFINITY, f64::min);
            prop_assert!(plan(&facts).takes_ms <= (fastest * SLOWER).max(fastest + SLOWER_BY_MS));
        }
    }
}
