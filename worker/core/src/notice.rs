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
    pub trigger: Source,
    pub afterwards: Afterwards,
    /// When the snapshot has to be durable.
    pub deadline: Moment,
}

/// Milliseconds since the Unix epoch, as the world outside tells time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WallMs(pub u64);

/// Who said it. Stored in the manifest and used as a metric label, hence a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    Signal,
    Control,
    /// EC2's instance metadata service.
    Ec2Metadata,
    /// A message of a queue: one of our own commands, or an event that EventBridge put there.
    Sqs,
    /// Google Cloud's metadata server.
    Gcp,
    /// Azure's Scheduled Events.
    Azure,
    /// Our own clock: a periodic checkpoint is due.
    Timer,
    /// The memory limit is near.
    MemoryPressure,
}

impl Source {
    pub const ALL: [Self; 8] = [
        Self::Signal,
        Self::Control,
        Self::Ec2Metadata,
        Self::Sqs,
        Self::Gcp,
        Self::Azure,
        Self::Timer,
        Self::MemoryPressure,
    ];

    /// The names, in the order of [`Self::ALL`].
    pub const NAMES: [&str; 8] = names(Self::ALL);

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::Control => "control",
            Self::Ec2Metadata => "ec2_metadata",
            Self::Sqs => "sqs",
            Self::Gcp => "gcp",
            Self::Azure => "azure",
            Self::Timer => "timer",
            Self::MemoryPressure => "memory_pressure",
        }
    }
}

const fn names<const N: usize>(all: [Source; N]) -> [&'static str; N] {
    let mut names = [""; N];
    let mut at = 0;
    while at < N {
        names[at] = all[at].as_str();
        at += 1;
    }
    names
}

/// What happens to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It is taken away and does not come back.
    Terminate,
    /// It is switched off; memory is lost, disks may come back.
    Stop,
    /// It is suspended, from the moment of the notice on.
    Hibernate,
    /// Its provider reboots it, moves it or works on it.
    Maintenance,
    /// It is more likely than others to be taken: a hint without a deadline.
    AtRisk,
}

impl Fate {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Terminate => "terminate",
            Self::Stop => "stop",
            Self::Hibernate => "hibernate",
            Self::Maintenance => "maintenance",
            Self::AtRisk => "at_risk",
        }
    }
}

/// What one source heard of this machine, in the form that all sources share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    pub source: Source,
    /// The same announcement, told again, carries the same one, whatever the time of the poll: built from what the
    /// provider says (an event's own number, or its kind and time), never from when we heard it.
    pub identity: String,
    pub says: Says,
}

/// What an announcement says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Says {
    /// The machine goes. Without a time where the provider gives none.
    Goes { fate: Fate, at: Option<WallMs> },
    /// What this identity announced before will not happen.
    Withdrawn,
}

/// What became of an announcement or a command; told to the source that brought it, exactly once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Settled {
    /// The job's state is in the store, as of after the announcement.
    Durable {
        generation: u64,
        afterwards: Afterwards,
    },
    /// There will be no checkpoint, and this is why.
    Refused { reason: String },
    /// A checkpoint was tried and is not durable; the job runs on.
    Failed { reason: String },
    /// Nothing needed to be done: a hint, a withdrawal, a question that was answered otherwise.
    Noted,
}

/// What somebody asks of the supervisor by name, through a source that can carry an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    Checkpoint {
        afterwards: Afterwards,
        /// When the snapshot has to be durable; without one the supervisor's own setting counts.
        deadline: Option<WallMs>,
        /// Names that the snapshot is to carry.
        tags: Vec<String>,
        /// What whoever asks calls this; the same again is the same order.
        command: String,
    },
    /// Store the job, end it, and let its next start go on from an older snapshot.
    Rollback { to: Goal, command: String },
    /// End the app, as SIGTERM to it does, without a checkpoint.
    Stop,
    /// Say how things are.
    Status,
}

/// A snapshot by one of its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    Generation(u64),
    Tag(String),
}

/// What became of an order; told to the source that brought it, exactly once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Settled(Settled),
    /// How things are, as `reprieve status --json` says it.
    Status(serde_json::Value),
}
