//! The budget of a checkpoint: from the one deadline to a limit for each step, or the word that there is no time.
//!
//! The limits are absolute and only ever shrink towards the deadline, so whoever carries a step out waits until its
//! limit and not a moment longer. Committing needs two small requests; time for them is kept back from storing, because
//! a snapshot that is stored but not committed is worth nothing.

use crate::notice::Moment;

/// Kept back for the manifest and the commit, in milliseconds, unless the whole budget is shorter than ten times this.
/// Two small PUTs take about 30 ms each at the median and a retry after a lost reply takes about a second
/// (docs of object stores, section on tail latency; the project's research notes, section 5).
const COMMIT_RESERVE_MS: u64 = 2_000;

/// The least time in which an attempt is worth freezing the app for, in milliseconds.
pub const LEAST_BUDGET_MS: u64 = 200;

/// When each step of a checkpoint has to be over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// The memory is out of the app and every part is stored.
    pub stored_by: Moment,
    /// The snapshot is committed.
    pub committed_by: Moment,
}

/// There is no time for a checkpoint: it is known before the app is frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("only {left_ms} ms are left until the deadline, less than the {least} ms that any checkpoint needs", least = LEAST_BUDGET_MS)]
pub struct NoTime {
    pub left_ms: u64,
}

/// The time from `now` to `deadline` without what is kept back.
pub fn usable_ms(now: Moment, deadline: Moment, margin_ms: u64) -> u64 {
    let total = now.ms_until(deadline);
    // A margin of more than a quarter would turn a short grace into no grace at all.
    total - margin_ms.min(total / 4)
}

/// Splits the time from `now` to `deadline`, keeping `margin_ms` back for whatever follows the commit.
pub fn budget(now: Moment, deadline: Moment, margin_ms: u64) -> Result<Budget, NoTime> {
    let left_ms = usable_ms(now, deadline, margin_ms);
    if left_ms < LEAST_BUDGET_MS {
        return Err(NoTime { left_ms });
    }
    let reserve = COMMIT_RESERVE_MS.min(left_ms / 10);
    Ok(Budget {
        stored_by: now.plus_ms(left_ms - reserve),
        committed_by: now.plus_ms(left_ms),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn docker_stop_leaves_eight_seconds_for_storing() {
        let plan = budget(Moment(500), Moment(10_500), 1_000).expect("ten seconds are enough");
        assert_eq!(
            plan,
            Budget {
                stored_by: Moment(8_600),
                committed_by: Moment(9_500)
            }
        );
    }

    #[test]
    fn a_deadline_that_has_passed_is_no_time() {
        assert_eq!(
            budget(Moment(10), Moment(5), 1_000),
            Err(NoTime { left_ms: 0 })
        );
    }

    proptest! {
        #[test]
        fn no_plan_outlasts_its_deadline(now in 0u64..1 << 40, left in 0u64..1 << 32, margin in 0u64..1 << 20) {
            let deadline = Moment(now + left);
            if let Ok(plan) = budget(Moment(now), deadline, margin) {
                prop_assert!(plan.stored_by < plan.committed_by);
                prop_assert!(plan.committed_by <= deadline);
                prop_assert!(plan.stored_by > Moment(now));
            }
        }
    }
}
