//! How big a job may be so that it is stored in time: the planner's rules as a formula, for whoever chooses machines.
//!
//! A checkpoint takes a moment to begin, looks at all of the job's memory, and stores what the store does not have yet. The
//! network is the limit for what is stored, and processors are for what is looked at. docs/capacity.md has a table of it.

use crate::deadline;
use crate::notice::Moment;

/// What a checkpoint takes before the first byte and after the last one, in milliseconds.
pub const FIXED_MS: u64 = 500;

/// What the answer follows from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Facts {
    /// From the notice to the end of the machine, and what of it is kept back.
    pub notice_ms: u64,
    pub margin_ms: u64,
    /// Bytes of memory that are read and compared in a second.
    pub look: f64,
    /// Bytes that reach the store in a second.
    pub upload: f64,
    /// The part of the memory that the store does not have yet: 1 for a first checkpoint.
    pub new: f64,
    /// Bytes after packing for each byte before.
    pub shrinks_to: f64,
}

/// The bytes of memory that a job may have. None if no checkpoint fits into the time at all.
pub fn largest(facts: &Facts) -> Option<f64> {
    let start = Moment(0);
    let budget = deadline::budget(start, Moment(facts.notice_ms), facts.margin_ms).ok()?;
    let left_ms = start.ms_until(budget.stored_by).checked_sub(FIXED_MS)?;
    let seconds_per_byte = 1.0 / facts.look + facts.new * facts.shrinks_to / facts.upload;
    Some(left_ms as f64 / 1000.0 / seconds_per_byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts {
        notice_ms: 30_000,
        margin_ms: 1_000,
        look: 1e9,
        upload: 1e9,
        new: 1.0,
        shrinks_to: 1.0,
    };

    #[test]
    fn what_fits_follows_from_time_and_rates() {
        // 30 s less the margin, the commit and the beginning, at half of either rate.
        assert_eq!(largest(&FACTS), Some(26.5 * 0.5e9));
        let seeded = Facts { new: 0.0, ..FACTS };
        assert_eq!(largest(&seeded), Some(26.5e9));
        let packed = Facts {
            shrinks_to: 0.5,
            ..FACTS
        };
        assert!(largest(&packed) > largest(&FACTS));
    }

    #[test]
    fn no_time_is_no_job() {
        for notice_ms in [0, 100, FIXED_MS] {
            assert_eq!(largest(&Facts { notice_ms, ..FACTS }), None, "{notice_ms}");
        }
    }
}
