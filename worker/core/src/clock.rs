//! What to do about a monotonic clock that is behind that of a snapshot: a sleep or a timer until an absolute time would
//! be late by as much, and an app that lives by them seems to hang.

/// What the settings say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Warn,
    /// At most this long, in milliseconds.
    Wait(u64),
    Refuse,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is not behind.
    Fine,
    /// Resume, and tell that the app's timers are late by so many milliseconds.
    Late(u64),
    /// Resume after so many milliseconds.
    Wait(u64),
    /// Do not resume here, so many milliseconds behind.
    Refused(u64),
}

/// By the clock of the snapshot and by ours, both in milliseconds.
pub fn judge(snapshot_ms: u64, ours_ms: u64, policy: Policy) -> Verdict {
    match (snapshot_ms.saturating_sub(ours_ms), policy) {
        (0, _) => Verdict::Fine,
        (behind, Policy::Warn) => Verdict::Late(behind),
        (behind, Policy::Wait(longest)) if behind <= longest => Verdict::Wait(behind),
        (behind, Policy::Wait(_) | Policy::Refuse) => Verdict::Refused(behind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clock_that_is_behind_matters_and_the_policy_decides() {
        let cases = [
            (10, 10, Policy::Refuse, Verdict::Fine),
            (10, 11, Policy::Refuse, Verdict::Fine),
            (10, 4, Policy::Warn, Verdict::Late(6)),
            (10, 4, Policy::Wait(6), Verdict::Wait(6)),
            (10, 4, Policy::Wait(5), Verdict::Refused(6)),
            (10, 4, Policy::Wait(0), Verdict::Refused(6)),
            (10, 4, Policy::Refuse, Verdict::Refused(6)),
        ];
        for (snapshot, ours, policy, expected) in cases {
            assert_eq!(
                judge(snapshot, ours, policy),
                expected,
                "{snapshot} {ours} {policy:?}"
            );
        }
    }
}
