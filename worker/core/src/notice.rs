//! What can happen to a job from outside: who said it, what is asked, and by when.
//!
//! Sources (`reprieve_hooks`) turn what they hear into a [`Notice`]; [`crate::lifecycle`] decides what follows.

use serde::{Deserialize, Serialize};

/// Milliseconds on the supervisor's monotonic clock, counted from its start. Deadlines are absolute in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Moment(pub u64);

impl Moment {
    /// The moment `ms` milliseconds later.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds until `later`, zero if it has passed.
    pub fn ms_until(self, later: Self) -> u64 {
        later.0.saturating_sub(self.0)
    }
}

/// Who asked for a checkpoint. Stored in the manifest and used as a metric label, hence a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// SIGTERM to the supervisor.
    Signal,
    /// `reprieve checkpoint` through the control socket.
    Control,
}

impl Trigger {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::Control => "control",
        }
    }
}

/// What becomes of the app once its snapshot is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Afterwards {
    /// It ends here, to be resumed elsewhere.
    Stop,
    /// It goes on running.
    Continue,
}

/// A wish for a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    pub trigger: Trigger,
    pub afterwards: Afterwards,
    /// When the snapshot has to be durable.
    pub deadline: Moment,
}
