//! The one mutable object of a job: who owns it, and which snapshots of it count.
//!
//! A snapshot exists once it is named here. The object is only ever replaced by compare-and-swap, each time with a fresh
//! nonce, so that its tag changes with every write and a writer whose reply was lost can tell its own success from
//! somebody else's. Whoever writes a new epoch owns the job; everybody with an older tag is fenced from that moment,
//! with no clock involved.

use serde::{Deserialize, Serialize};

use crate::document::{self, DocumentError, Stored, Unknown};
use crate::rollback::{self, Rollback};

const KIND: &str = "head";
/// The version this program writes and the only one it reads.
pub const VERSION: u32 = 1;

/// The key of the object, relative to the job's own prefix.
pub const KEY: &str = "HEAD";

/// Who runs the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Unique to one run of one supervisor.
    pub worker: String,
    pub host: String,
    /// Wall clock of the owner, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// Counts its signs of life. Others watch whether it moves, by their own clock.
    #[serde(default)]
    pub beat: u64,
}

/// One snapshot that counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    pub generation: u64,
    /// Key of the manifest, relative to the job's prefix.
    pub manifest: String,
    /// BLAKE3 of the manifest object, hexadecimal.
    pub digest: String,
    /// Wall clock of the host at the freeze, in milliseconds since the Unix epoch.
    pub taken_at_ms: u64,
    /// Bytes that this snapshot added to the store.
    pub stored_bytes: u64,
    /// A person asked for it to stay.
    #[serde(default)]
    pub pinned: bool,
    /// Names that a person gave it; one with a name stays.
    #[serde(default)]
    pub tags: Vec<String>,
    /// The commands that it answers, or that the job went back to it for, by their ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
    /// What a later program says of it.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// The job ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// The app's exit code, or 128 + signal.
    pub exit_code: u8,
    /// Wall clock of the owner, in milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// What a job began with that was cloned from another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub job: String,
    pub generation: u64,
}

/// The whole object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub job: String,
    /// Counts changes of ownership.
    pub epoch: u64,
    /// Fresh in each write.
    pub nonce: String,
    /// Nobody, after the owner said goodbye.
    pub owner: Option<Owner>,
    /// How the job ended since its last snapshot, if it did.
    pub finished: Option<Finished>,
    /// The first generation of the run that goes on; older ones belong to runs that ended well.
    #[serde(default)]
    pub first_of_run: u64,
    /// The number that the next snapshot gets; never reused, also not after snapshots were removed.
    pub next_generation: u64,
    /// Newest first.
    pub generations: Vec<Generation>,
    /// Attempts of this epoch whose data a sweep takes away; none of them may be committed any more
    /// ([`crate::sweep`]).
    #[serde(default)]
    pub condemned: Vec<String>,
    /// The attempt under which the owner stores memory ahead, for the next snapshot to refer to. Nobody else may take its
    /// data away.
    #[serde(default)]
    pub seeding: Option<String>,
    /// Generations that the job went back behind ([`crate::rollback`]): they stay, and no start resumes them by itself.
    #[serde(default)]
    pub set_aside: Vec<u64>,
    /// The rollback that was done last, as long as each start asks for it.
    #[serde(default)]
    pub rollback: Option<Rollback>,
    /// The snapshot of another job that this one began with.
    #[serde(default)]
    pub cloned_from: Option<Origin>,
    /// What a later program says of the job. Who does not know what it is for must not lose it.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Head {
    /// The head of a job that was never run.
    pub fn new(job: &str) -> Self {
        Self {
            job: job.to_owned(),
            epoch: 0,
            nonce: String::new(),
            owner: None,
            finished: None,
            first_of_run: 0,
            next_generation: 1,
            generations: Vec::new(),
            condemned: Vec::new(),
            seeding: None,
            set_aside: Vec::new(),
            rollback: None,
            cloned_from: None,
            unknown: Unknown::new(),
        }
    }

    /// The generation of this number, if it counts.
    pub fn generation(&self, number: u64) -> Option<&Generation> {
        self.generations
            .iter()
            .find(|known| known.generation == number)
    }

    /// Whether the snapshot with this manifest counts.
    pub fn names(&self, manifest: &str) -> bool {
        self.generations
            .iter()
            .any(|known| known.manifest == manifest)
    }

    /// The snapshot that the job goes on from: the newest one that is not set aside.
    pub fn tip(&self) -> Option<&Generation> {
        self.generations
            .iter()
            .find(|known| !self.set_aside.contains(&known.generation))
    }

    /// Whether a start may resume this one by itself.
    pub fn goes_on_from(&self, known: &Generation) -> bool {
        let is_over = self
            .finished
            .is_some_and(|finished| finished.exit_code == 0);
        !is_over
            && known.generation >= self.first_of_run
            && !self.set_aside.contains(&known.generation)
    }

    /// The generation that carries this tag.
    pub fn tagged(&self, tag: &str) -> Option<&Generation> {
        self.generations
            .iter()
            .find(|known| known.tags.iter().any(|known| known == tag))
    }

    /// The head after `owner` took the job.
    #[must_use]
    pub fn claimed(&self, owner: Owner, nonce: String) -> Self {
        let first_of_run = match self.finished {
            // What begins now is another run; the snapshots of the one before are not its own.
            Some(finished) if finished.exit_code == 0 => self.next_generation,
            _ => self.first_of_run,
        };
        Self {
            epoch: self.epoch + 1,
            nonce,
            owner: Some(owner),
            finished: None,
            first_of_run,
            // Whatever an earlier epoch had begun is fenced by the new one.
            condemned: Vec::new(),
            // Only the owner that stored it knows what is in there.
            seeding: None,
            ..self.clone()
        }
    }

    /// The head without the generations in `dropped`, in the same hands.
    #[must_use]
    pub fn without(&self, dropped: &[u64], nonce: String) -> Self {
        let generations = self
            .generations
            .iter()
            .filter(|known| !dropped.contains(&known.generation));
        Self {
            nonce,
            generations: generations.cloned().collect(),
            ..self.clone()
        }
        .forgetting_what_is_gone()
    }

    /// The head after the job went back to this generation.
    #[must_use]
    pub fn rolled_back(&self, to: u64, request: &rollback::Request, nonce: String) -> Self {
        // Of one that was set aside itself nobody knows here what it came from.
        let is_aside = self.set_aside.contains(&to);
        let set_aside = self.generations.iter().map(|known| known.generation);
        let set_aside = set_aside.filter(|number| {
            *number > to || *number < to && (is_aside || self.set_aside.contains(number))
        });
        Self {
            nonce,
            finished: None,
            first_of_run: self.first_of_run.min(to),
            set_aside: set_aside.collect(),
            rollback: Some(Rollback {
                request: request.to_string(),
                generation: to,
                epoch: self.epoch,
            }),
            ..self.clone()
        }
    }

    /// The snapshot that a command led to, if it is still kept.
    pub fn answer_to(&self, command: &str) -> Option<&Generation> {
        self.generations
            .iter()
            .find(|known| known.commands.iter().any(|id| id == command))
    }

    /// The same head, where this command led to that generation.
    #[must_use]
    pub fn answering(&self, command: &str, generation: u64) -> Self {
        let mut head = self.clone();
        for known in &mut head.generations {
            if known.generation == generation && !known.commands.iter().any(|id| id == command) {
                known.commands.push(command.to_owned());
            }
        }
        head
    }

    /// The head for a start that asks for this, or for nothing: a rollback is remembered as long as every start asks for
    /// it in the same words.
    #[must_use]
    pub fn asked_for(&self, request: Option<&rollback::Request>) -> Self {
        let asked = request.map(ToString::to_string);
        let rollback = self.rollback.clone();
        Self {
            rollback: rollback.filter(|done| Some(&done.request) == asked.as_ref()),
            ..self.clone()
        }
    }

    fn forgetting_what_is_gone(mut self) -> Self {
        let Self {
            generations,
            set_aside,
            ..
        } = &mut self;
        set_aside.retain(|number| generations.iter().any(|known| known.generation == *number));
        self
    }

    /// The head after these attempts were forbidden to commit, in the same hands.
    #[must_use]
    pub fn condemning(&self, attempts: &[String], nonce: String) -> Self {
        let new = attempts
            .iter()
            .filter(|attempt| !self.condemned.contains(attempt));
        Self {
            nonce,
            condemned: self.condemned.iter().chain(new).cloned().collect(),
            ..self.clone()
        }
    }

    /// The head after its owner began to store memory ahead under this attempt, and gave up what it had stored so
    /// under an earlier one.
    #[must_use]
    pub fn seeded(&self, attempt: &str, nonce: String) -> Self {
        Self {
            nonce,
            seeding: Some(attempt.to_owned()),
            ..self.clone()
        }
    }

    /// The head after another snapshot was added in front and the generations in `dropped` were taken out.
    #[must_use]
    pub fn committed(&self, snapshot: Generation, dropped: &[u64], nonce: String) -> Self {
        let next_generation = self.next_generation.max(snapshot.generation + 1);
        let kept = self
            .generations
            .iter()
            .filter(|known| !dropped.contains(&known.generation));
        let generations = std::iter::once(snapshot).chain(kept.cloned()).collect();
        Self {
            nonce,
            next_generation,
            generations,
            ..self.clone()
        }
        .forgetting_what_is_gone()
    }

    /// The head after its owner gave a sign of life.
    #[must_use]
    pub fn beaten(&self, nonce: String) -> Self {
        let beat = |owner: &Owner| Owner {
            beat: owner.beat + 1,
            ..owner.clone()
        };
        Self {
            nonce,
            owner: self.owner.as_ref().map(beat),
            ..self.clone()
        }
    }

    /// Whether both were written by the same owner in the same epoch.
    pub fn has_same_owner(&self, other: &Self) -> bool {
        let worker = |head: &Self| head.owner.as_ref().map(|owner| owner.worker.clone());
        self.epoch == other.epoch && worker(self) == worker(other)
    }

    /// The head after its owner said goodbye, and how the job ended if it did.
    #[must_use]
    pub fn released(&self, finished: Option<Finished>, nonce: String) -> Self {
        Self {
            nonce,
            owner: None,
            finished,
            seeding: None,
            ..self.clone()
        }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        document::seal(Self::KIND, Self::VERSION, self)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DocumentError> {
        document::open(Self::KIND, Self::VERSION..=Self::VERSION, bytes)
    }
}

impl Stored for Head {
    const KIND: &'static str = KIND;
    const VERSION: u32 = VERSION;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(number: u64) -> Generation {
        Generation {
            generation: number,
            manifest: format!("manifests/{number}"),
            digest: "00".repeat(32),
            taken_at_ms: number * 1000,
            stored_bytes: 10,
            pinned: false,
            tags: Vec::new(),
            commands: Vec::new(),
            unknown: Unknown::new(),
        }
    }

    #[test]
    fn a_commit_puts_the_newest_first_and_never_reuses_a_number() {
        let head = Head::new("job")
            .committed(generation(1), &[], "a".into())
            .committed(generation(2), &[1], "b".into());
        assert_eq!(head.generations, vec![generation(2)]);
        assert_eq!(head.next_generation, 3);
    }

    #[test]
    fn a_claim_keeps_every_snapshot_and_raises_the_epoch() {
        let owner = Owner {
            worker: "w".into(),
            host: "h".into(),
            since_ms: 1,
            beat: 0,
        };
        let head = Head::new("job").committed(generation(1), &[], "a".into());
        let claimed = head.claimed(owner.clone(), "b".into());
        assert_eq!((claimed.epoch, claimed.owner), (1, Some(owner)));
        assert_eq!(claimed.generations, head.generations);
    }

    #[test]
    fn a_head_from_before_there_were_pins_and_tags_is_read() {
        let json = r#"{"job":"j","epoch":1,"nonce":"n","owner":null,"finished":null,"next_generation":2,
            "generations":[{"generation":1,"manifest":"m","digest":"d","taken_at_ms":0,"stored_bytes":0}]}"#
            .replace('\n', "");
        let head: Head = serde_json::from_str(&json).expect("it is whole");
        assert!(!head.generations[0].pinned && head.generations[0].tags.is_empty());
        assert!(head.condemned.is_empty() && head.seeding.is_none());
    }

    #[test]
    fn what_a_later_program_says_is_written_again() {
        let json = r#"{"job":"j","epoch":1,"nonce":"n","owner":null,"finished":null,"next_generation":3,"later":{"a":[1,null]},
            "generations":[{"generation":2,"manifest":"m2","digest":"d","taken_at_ms":0,"stored_bytes":0,"colour":"red"},
            {"generation":1,"manifest":"m1","digest":"d","taken_at_ms":0,"stored_bytes":0}]}"#
            .replace('\n', "");
        let head: Head = serde_json::from_str(&json).expect("it is whole");
        let owner = Owner {
            worker: "w".into(),
            host: "h".into(),
            since_ms: 1,
            beat: 0,
        };
        let head = head
            .claimed(owner, "1".into())
            .beaten("2".into())
            .committed(generation(3), &[1], "3".into())
            .released(None, "4".into());
        let bytes = head.to_bytes();
        assert_eq!(Head::from_bytes(&bytes), Ok(head));
        let json = bytes.split(|byte| *byte == b'\n').nth(1).expect("a line");
        let json: serde_json::Value = serde_json::from_slice(json).expect("it is JSON");
        assert_eq!(json["later"], serde_json::json!({"a": [1, null]}));
        let numbers = json["generations"].as_array().expect("it is a list").iter();
        let numbers: Vec<_> = numbers
            .map(|one| (&one["generation"], &one["colour"]))
            .collect();
        let none = serde_json::Value::Null;
        assert_eq!(numbers, [(&3.into(), &none), (&2.into(), &"red".into())]);
    }

    #[test]
    fn what_was_seeded_is_the_owners_alone() {
        let owner = Owner {
            worker: "w".into(),
            host: "h".into(),
            since_ms: 1,
            beat: 0,
        };
        let head = Head::new("job")
            .seeded("a", "1".into())
            .seeded("b", "2".into());
        let head = head.committed(generation(1), &[], "3".into());
        assert_eq!(head.seeding.as_deref(), Some("b"));
        assert_eq!(head.claimed(owner, "4".into()).seeding, None);
        assert_eq!(head.released(None, "4".into()).seeding, None);
    }

    #[test]
    fn what_is_condemned_stays_so_for_the_epoch_and_no_longer() {
        let owner = Owner {
            worker: "w".into(),
            host: "h".into(),
            since_ms: 1,
            beat: 0,
        };
        let head = Head::new("job")
            .condemning(&["a".into(), "b".into()], "1".into())
            .condemning(&["b".into(), "c".into()], "2".into());
        assert_eq!(head.condemned, ["a", "b", "c"]);
        let head = head.committed(generation(1), &[], "3".into());
        assert_eq!(head.condemned, ["a", "b", "c"]);
        assert!(head.claimed(owner, "4".into()).condemned.is_empty());
    }

    #[test]
    fn comes_back_as_written() {
        let head = Head::new("job").committed(generation(7), &[], "n".into());
        assert_eq!(Head::from_bytes(&head.to_bytes()), Ok(head));
    }
}
