//! Where the supervisor hears of things: whatever announces that the machine is going, or asks for a checkpoint.
//!
//! A source only sends; it decides nothing, knows nothing of the supervisor and never ends it. Each is a module of its
//! own that runs as one task: it takes its options, an [`Ear`] to speak into and nothing else, goes on until it is
//! dropped, and when it cannot do its work says so through [`Ear::health`] and tries again later.
#![forbid(unsafe_code)]

pub mod autoscaling;
pub mod azure;
pub mod callout;
pub mod ec2;
pub mod ec2_metadata;
pub mod ecs;
pub mod events;
pub mod gcp;
pub mod http;
#[cfg(test)]
mod lookalike;
#[doc(hidden)]
pub mod parsers;
pub mod presence;
pub mod pressure;
pub mod signals;
pub mod sqs;
mod time;
mod told;

use std::sync::Arc;

use reprieve_core::notice::{Announcement, Order, Reply, Settled, Source, WallMs};
use reprieve_core::worker::Purchase;
use tokio::sync::{mpsc, oneshot, watch};

/// Announcements that were made and not yet heard. A source that meets a full queue waits.
const QUEUE: usize = 64;

/// Something that a source heard.
#[derive(Debug)]
pub struct Heard {
    pub announcement: Announcement,
    /// Where to tell what became of it. A source that does not care drops the other end.
    pub settled: oneshot::Sender<Settled>,
}

/// Something that a source was asked to pass on, by somebody who wants an answer.
#[derive(Debug)]
pub struct Asked {
    pub order: Order,
    /// Where to tell what became of it.
    pub reply: oneshot::Sender<Reply>,
}

/// What a machine of Google's or Azure's knows of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub name: String,
    pub kind: String,
    /// Region and zone, or the region alone where machines are in no zone.
    pub zone: String,
    pub purchase: Option<Purchase>,
}

/// How a source is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    pub source: Source,
    pub condition: Condition,
    /// The last time that it was seen to work.
    pub last_success: Option<WallMs>,
    /// Tries in a row that failed.
    pub failures: u32,
    pub counts: Counts,
}

/// What a source did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Times that it asked and was answered.
    pub answered: u64,
    /// Times that it asked in vain.
    pub failed: u64,
    /// Times that it broke off and was begun again.
    pub restarts: u64,
    /// Messages by what became of them, in the order of [`Message::ALL`].
    pub messages: [u64; Message::ALL.len()],
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A command, carried out or refused.
    Command,
    /// Something that is to happen to the machine.
    Event,
    /// Nothing follows from it.
    NotNeeded,
    /// For somebody else who reads the same queue.
    GivenBack,
    /// Nobody can use it.
    Buried,
}

impl Message {
    pub const ALL: [Self; 5] = [
        Self::Command,
        Self::Event,
        Self::NotNeeded,
        Self::GivenBack,
        Self::Buried,
    ];
}

/// Whether a source can be relied upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It has not had an answer yet.
    Starting,
    Working,
    /// It goes on trying; notices may be missed meanwhile.
    Degraded {
        reason: String,
        /// What a person can do about it.
        remedy: String,
    },
    /// This machine has no such thing, for instance no metadata service of that cloud.
    Absent {
        reason: String,
    },
}

/// What a source speaks into.
#[derive(Clone, Debug)]
pub struct Ear {
    source: Source,
    heard: mpsc::Sender<Heard>,
    asked: mpsc::Sender<Asked>,
    health: Arc<watch::Sender<Health>>,
}

/// The supervisor's end of one ear.
#[derive(Debug)]
pub struct Listener {
    pub heard: mpsc::Receiver<Heard>,
    pub asked: mpsc::Receiver<Asked>,
    pub health: watch::Receiver<Health>,
}

impl Ear {
    /// An ear for this source, and the end where it is heard.
    pub fn new(source: Source) -> (Self, Listener) {
        let (heard, heard_by) = mpsc::channel(QUEUE);
        let (asked, asked_by) = mpsc::channel(QUEUE);
        let (health, watched) = watch::channel(Health {
            source,
            condition: Condition::Starting,
            last_success: None,
            failures: 0,
            counts: Counts::default(),
        });
        let ear = Self {
            source,
            heard,
            asked,
            health: Arc::new(health),
        };
        (
            ear,
            Listener {
                heard: heard_by,
                asked: asked_by,
                health: watched,
            },
        )
    }

    /// Says what was heard; the answer comes when it is known what became of it. None when nobody listens any more.
    pub async fn say(&self, announcement: Announcement) -> Option<oneshot::Receiver<Settled>> {
        let (settled, answer) = oneshot::channel();
        let heard = Heard {
            announcement,
            settled,
        };
        self.heard.send(heard).await.ok().map(|()| answer)
    }

    /// Passes an order on; the answer comes when it was carried out or refused. None when nobody listens any more.
    pub async fn ask(&self, order: Order) -> Option<oneshot::Receiver<Reply>> {
        let (reply, answer) = oneshot::channel();
        let asked = Asked { order, reply };
        self.asked.send(asked).await.ok().map(|()| answer)
    }

    /// Comes to an end when nobody listens any more.
    pub async fn gone(&self) {
        self.asked.closed().await;
    }

    /// It works.
    pub fn works(&self, now: WallMs) {
        self.health.send_if_modified(|health| {
            let news = health.condition != Condition::Working;
            health.condition = Condition::Working;
            health.last_success = Some(now);
            health.failures = 0;
            health.counts.answered += 1;
            news
        });
    }

    /// It does not work for now.
    pub fn fails(&self, reason: String, remedy: &str) {
        let condition = Condition::Degraded {
            reason,
            remedy: remedy.to_owned(),
        };
        self.health.send_if_modified(|health| {
            let news = health.condition != condition;
            health.condition = condition;
            health.failures = health.failures.saturating_add(1);
            health.counts.failed += 1;
            news
        });
    }

    /// It broke off, and is begun again.
    pub fn breaks_off(&self, reason: String, remedy: &str) {
        self.health.send_modify(|health| {
            health.condition = Condition::Degraded {
                reason,
                remedy: remedy.to_owned(),
            };
            health.failures = health.failures.saturating_add(1);
            health.counts.restarts += 1;
        });
    }

    /// Whether there is nothing to go on for: nobody listens any more, or there is no such thing here.
    pub fn is_over(&self) -> bool {
        self.asked.is_closed() || matches!(self.health.borrow().condition, Condition::Absent { .. })
    }

    /// A message was dealt with.
    pub(crate) fn message(&self, what: Message) {
        self.health.send_if_modified(|health| {
            health.counts.messages[what as usize] += 1;
            false
        });
    }

    /// There is no such thing here.
    pub fn absent(&self, reason: String) {
        self.health.send_modify(|health| {
            health.condition = Condition::Absent { reason };
            health.counts.failed += 1;
        });
    }

    /// Whose ear it is.
    pub fn source(&self) -> Source {
        self.source
    }
}
