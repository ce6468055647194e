//! What a live worker says of itself in its store, so that others can see who is there: one small object for each.
//!
//! Information only: nobody owns a job because of it ([`crate::head`] says who does), and it is not in the job's place, so
//! that one short listing finds the workers of all jobs. A worker writes its entry anew when something changes and after
//! [`RENEWED_EVERY_MS`], and removes it at its end; one that was not renewed for [`SILENT_AFTER_MS`] died without a
//! goodbye.

use serde::{Deserialize, Serialize};

use crate::document::{self, DocumentError};

const KIND: &str = "worker";
/// The version this program writes and the only one it reads.
pub const VERSION: u32 = 1;

/// The prefix of all entries of a store. No job's name has this character, and it sorts behind all of them.
pub const PREFIX: &str = "~workers/";

pub const RENEWED_EVERY_MS: u64 = 60_000;
pub const SILENT_AFTER_MS: u64 = 3 * RENEWED_EVERY_MS;

/// An entry that was not renewed for this long is litter.
pub const STALE_AFTER_MS: u64 = 60 * RENEWED_EVERY_MS;

/// The newest snapshot that a worker made or resumed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub generation: u64,
    /// Wall clock, in milliseconds since the Unix epoch.
    pub taken_at_ms: u64,
}

/// How a machine is paid for, which says whether it may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purchase {
    OnDemand,
    Spot,
    /// A reservation that ends, such as a capacity block.
    Scheduled,
}

impl Purchase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OnDemand => "on_demand",
            Self::Spot => "spot",
            Self::Scheduled => "scheduled",
        }
    }
}

/// What a machine is, as far as its cloud says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// `ec2`, `gcp`, `azure`.
    pub cloud: String,
    /// As the cloud calls it: `m7i.large`, `n2-standard-4`, `Standard_D4s_v5`.
    pub kind: Option<String>,
    pub zone: Option<String>,
    #[serde(deserialize_with = "document::if_understood")]
    pub purchase: Option<Purchase>,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// Unique to one run of one supervisor, the same as in the head of a job that it owns.
    pub worker: String,
    pub job: String,
    pub host: String,
    /// The cloud's name of the machine, when it is known.
    pub instance: Option<String>,
    /// What the machine is; none outside of a cloud, and until that has answered.
    pub machine: Option<Machine>,
    /// The URL of the queue by which it can be told something, if there is one.
    pub queue: Option<String>,
    /// `booting`, `running`, `checkpointing`, `over`.
    pub state: String,
    /// Of the head that it wrote as owner; none while it waits for its turn.
    pub epoch: Option<u64>,
    /// Wall clock, in milliseconds since the Unix epoch.
    pub started_ms: u64,
    pub last_snapshot: Option<Snapshot>,
    /// When the machine is to go, as far as that was announced; by this host's clock.
    pub deadline_ms: Option<u64>,
    /// Of Reprieve.
    pub version: String,
    /// The level of x86-64 that a host needs at least to take the job over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_level: Option<String>,
}

impl Worker {
    pub fn key(&self) -> String {
        format!("{PREFIX}{}", self.worker)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        document::seal(KIND, VERSION, self)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DocumentError> {
        document::open(KIND, VERSION..=VERSION, bytes)
    }
}

/// Of these entries, by key and time of writing, those that nobody renews any more. The store's clock is at least at the
/// time of its youngest entry, and nothing else is known of it.
pub fn stale<'a>(entries: &[(&'a str, u64)]) -> Vec<&'a str> {
    let now_ms = entries.iter().map(|(_, at_ms)| *at_ms).max().unwrap_or(0);
    entries
        .iter()
        .filter(|(_, at_ms)| now_ms.saturating_sub(*at_ms) > STALE_AFTER_MS)
        .map(|(key, _)| *key)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_as_written() {
        let worker = Worker {
            worker: "w".into(),
            job: "job".into(),
            host: "h".into(),
            instance: Some("i-1".into()),
            machine: Some(Machine {
                cloud: "ec2".into(),
                kind: Some("m7i.large".into()),
                zone: None,
                purchase: Some(Purchase::OnDemand),
            }),
            queue: None,
            state: "running".into(),
            epoch: Some(3),
            started_ms: 1,
            last_snapshot: Some(Snapshot {
                generation: 7,
                taken_at_ms: 2,
            }),
            deadline_ms: Some(3),
            version: "0".into(),
            cpu_level: None,
        };
        assert_eq!(Worker::from_bytes(&worker.to_bytes()), Ok(worker));
    }

    #[test]
    fn an_entry_of_which_only_what_has_to_be_there_is_there_is_read() {
        let json = r#"{"worker":"w","job":"j","host":"h","state":"booting","started_ms":0,"version":"9","more":1}"#;
        let worker: Worker = serde_json::from_str(json).expect("it is whole");
        assert_eq!((worker.epoch, worker.instance), (None, None));
        assert_eq!((worker.deadline_ms, worker.machine), (None, None));
    }

    #[test]
    fn only_what_is_much_older_than_the_youngest_is_stale() {
        let now = 10 * STALE_AFTER_MS;
        let entries = [
            ("young", now),
            ("silent", now - STALE_AFTER_MS),
            ("dead", now - STALE_AFTER_MS - 1),
        ];
        assert_eq!(stale(&entries), ["dead"]);
        assert_eq!(stale(&entries[2..]), [""; 0], "alone it is the youngest");
        assert_eq!(stale(&[]), [""; 0]);
    }
}
