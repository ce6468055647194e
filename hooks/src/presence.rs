//! What sources that ask a service have in common: how often they ask, what a failure means for their health, and when to
//! try again. A service that was never there is no failure where it is not expected; one that was there once is.

use std::time::Duration;

use reprieve_core::notice::WallMs;

use crate::Ear;
use crate::http::{HttpError, chain};

/// Whether a source's service has to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Without it something is wrong.
    Here,
    /// It is looked for; this may be another cloud, or none.
    Perhaps,
}

/// How often a service is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// From one look to the next.
    pub poll: Duration,
    /// After the first failure; doubled by each further one.
    pub retry: Duration,
    /// The longest wait after a failure.
    pub retry_most: Duration,
    /// Where there is no such service, or it is switched off.
    pub recheck: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(2),
            retry: Duration::from_secs(1),
            // A notice of two minutes must not be overslept.
            retry_most: Duration::from_secs(5),
            // One packet that nobody answers; a service that comes late costs an eighth of a notice at most.
            recheck: Duration::from_secs(15),
        }
    }
}

/// What a failure says of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Nothing, or something else, is at its address.
    NotHere,
    /// It is there and refuses to be used.
    Off,
    /// It is there and does not work for now.
    Trouble,
    /// It works; something that it said was not understood.
    Doubt,
}

/// Why a look has failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Fault {
    pub meaning: Meaning,
    pub reason: String,
    /// What a person can do about it.
    pub remedy: &'static str,
}

impl Fault {
    pub(crate) fn new(meaning: Meaning, reason: impl Into<String>, remedy: &'static str) -> Self {
        Self {
            meaning,
            reason: reason.into(),
            remedy,
        }
    }

    /// No answer at all.
    pub(crate) fn unanswered(error: &HttpError, remedy: &'static str) -> Self {
        let meaning = match error {
            HttpError::Connect { .. } => Meaning::NotHere,
            _ => Meaning::Trouble,
        };
        Self::new(meaning, chain(error), remedy)
    }
}

/// Why a source stops looking for now.
pub(crate) enum Halt {
    Fault(Fault),
    /// Nobody listens any more: the source ends.
    Nobody,
}

impl From<Fault> for Halt {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Tries before a service that was never seen counts as absent: long enough for one that starts with the machine.
const TRIES: u32 = 4;
/// A wait varies by a tenth to both sides, so that a fleet does not ask in step.
const JITTER: f64 = 0.1;

/// Keeps the health of one source.
#[derive(Debug)]
pub(crate) struct Presence {
    expect: Expect,
    pace: Pace,
    /// It has answered once.
    seen: bool,
    failures: u32,
}

impl Presence {
    pub(crate) fn new(expect: Expect, pace: Pace) -> Self {
        Self {
            expect,
            pace,
            seen: false,
            failures: 0,
        }
    }

    /// Tells the ear how a look went; returns how long to wait for the next one.
    pub(crate) fn settle(&mut self, ear: &Ear, fault: Option<&Fault>, now: WallMs) -> Duration {
        let wait = match fault {
            None => {
                self.seen = true;
                self.failures = 0;
                ear.works(now);
                self.pace.poll
            }
            Some(fault) => self.failed(ear, fault),
        };
        wait.mul_f64(1.0 - JITTER + 2.0 * JITTER * fastrand::f64())
    }

    fn failed(&mut self, ear: &Ear, fault: &Fault) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let doubled = self
            .pace
            .retry
            .saturating_mul(1 << (self.failures - 1).min(10));
        let retry = doubled.min(self.pace.retry_most);
        let missing =
            fault.meaning == Meaning::NotHere && !self.seen && self.expect == Expect::Perhaps;
        if !missing {
            ear.fails(fault.reason.clone(), fault.remedy);
        } else if self.failures >= TRIES {
            ear.absent(fault.reason.clone());
            return self.pace.recheck;
        }
        match fault.meaning {
            Meaning::NotHere | Meaning::Trouble => retry,
            Meaning::Off => self.pace.recheck,
            Meaning::Doubt => {
                self.seen = true;
                self.pace.poll
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Condition, Listener};
    use reprieve_core::notice::Source;

    fn fault(meaning: Meaning) -> Fault {
        Fault::new(meaning, "why", "what to do")
    }

    fn presence(expect: Expect) -> (Presence, Ear, Listener) {
        let (ear, listener) = Ear::new(Source::Ec2Metadata);
        (Presence::new(expect, Pace::default()), ear, listener)
    }

    #[track_caller]
    fn assert_about(wait: Duration, seconds: f64) {
        let wait = wait.as_secs_f64();
        assert!(
            (seconds * 0.899..=seconds * 1.101).contains(&wait),
            "{wait}"
        );
    }

    #[test]
    fn what_is_not_expected_and_never_there_is_absent_and_looked_for_slowly() {
        let (mut presence, ear, listener) = presence(Expect::Perhaps);
        let missing = fault(Meaning::NotHere);
        for _ in 1..TRIES {
            assert!(presence.settle(&ear, Some(&missing), WallMs(0)) < Duration::from_secs(6));
            assert_eq!(listener.health.borrow().condition, Condition::Starting);
        }
        let wait = presence.settle(&ear, Some(&missing), WallMs(0));
        assert!(wait > Duration::from_secs(13), "{wait:?}");
        assert_eq!(
            listener.health.borrow().condition,
            Condition::Absent {
                reason: "why".into()
            }
        );
        // Once it was there, it is missed.
        presence.settle(&ear, None, WallMs(7));
        assert_eq!(listener.health.borrow().condition, Condition::Working);
        presence.settle(&ear, Some(&missing), WallMs(8));
        assert!(matches!(
            listener.health.borrow().condition,
            Condition::Degraded { .. }
        ));
        assert_eq!(listener.health.borrow().last_success, Some(WallMs(7)));
    }

    #[test]
    fn what_is_expected_is_missed_from_the_first_try_on() {
        let (mut presence, ear, listener) = presence(Expect::Here);
        presence.settle(&ear, Some(&fault(Meaning::NotHere)), WallMs(0));
        let degraded = Condition::Degraded {
            reason: "why".into(),
            remedy: "what to do".into(),
        };
        assert_eq!(listener.health.borrow().condition, degraded);
    }

    #[test]
    fn tries_get_rarer_and_never_rare() {
        let (mut presence, ear, _listener) = presence(Expect::Here);
        let trouble = fault(Meaning::Trouble);
        for expected in [1.0, 2.0, 4.0, 5.0].into_iter().chain([5.0; 40]) {
            assert_about(presence.settle(&ear, Some(&trouble), WallMs(0)), expected);
        }
        assert_about(presence.settle(&ear, None, WallMs(0)), 2.0);
        assert_about(presence.settle(&ear, Some(&trouble), WallMs(0)), 1.0);
        let off = fault(Meaning::Off);
        assert_about(presence.settle(&ear, Some(&off), WallMs(0)), 15.0);
    }
}
