//! What a stored snapshot says of itself: the parts it consists of, what made it, and the facts of the host it came from.
//!
//! The manifest is written after every part that it names and before the commit that makes it count
//! ([`crate::head`]). It names everything a restore needs; older snapshots need not be there any more.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::document::{self, DocumentError, Stored};
use crate::effort::Storing;
use crate::notice::{Afterwards, Source};
use crate::planner::Decision;

const KIND: &str = "manifest";
/// The newest version that this program writes and reads: that of snapshots which a reader of the one before would resume without
/// what they need, or fail to for a reason that misleads.
pub const VERSION: u32 = 2;

/// The version of all others, which older programs read as well.
pub const PLAIN_VERSION: u32 = 1;

/// The prefix of all manifests of a job.
pub const PREFIX: &str = "manifests/";

/// The key of a manifest: the newest generation comes first in one listing, and two attempts at the same generation
/// (by two owners, or after a failure) never meet.
pub fn key(generation: u64, epoch: u64, attempt: &str) -> String {
    format!(
        "{PREFIX}{:020}-{:020}-{attempt}",
        u64::MAX - generation,
        u64::MAX - epoch
    )
}

/// What a key made by [`key`] says: generation, epoch and attempt.
pub fn parse_key(key: &str) -> Option<(u64, u64, &str)> {
    let mut words = key.strip_prefix(PREFIX)?.splitn(3, '-');
    let mut number = || {
        let digits = words.next().filter(|digits| digits.len() == 20)?;
        digits.parse().ok().map(|number: u64| u64::MAX - number)
    };
    let (generation, epoch) = (number()?, number()?);
    let attempt = words.next()?;
    is_attempt(attempt).then_some((generation, epoch, attempt))
}

/// The prefix of all data of a job.
pub const DATA_PREFIX: &str = "data/";

/// The key prefix of an attempt's data.
pub fn data_prefix(attempt: &str) -> String {
    format!("{DATA_PREFIX}{attempt}/")
}

/// The attempt that wrote a key below [`DATA_PREFIX`].
pub fn data_attempt(key: &str) -> Option<&str> {
    let (attempt, name) = key.strip_prefix(DATA_PREFIX)?.split_once('/')?;
    (is_attempt(attempt) && !name.is_empty()).then_some(attempt)
}

/// Attempts are ULIDs.
fn is_attempt(word: &str) -> bool {
    word.len() == 26 && word.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// One stored object that holds blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Relative to the job's prefix.
    pub key: String,
    pub bytes: u64,
    /// BLAKE3 of the whole object, hexadecimal.
    pub digest: String,
}

/// Where an app's standard streams lead, as CRIU names the ends that the app holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stdio {
    /// Inode numbers of the three pipes.
    Pipes {
        stdin: u64,
        stdout: u64,
        stderr: u64,
    },
    /// Device numbers of the terminal's slave side, as `stat` gives them for the node and for its file system.
    Terminal { rdev: u64, dev: u64 },
}

/// Which privileges the supervisor has, and so what it can do for the app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// The app lives in the container's namespaces.
    #[default]
    Minimal,
    /// The app has namespaces of its own for processes, System V IPC, clocks and mounts.
    Full,
}

impl Profile {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Minimal => "minimal",
            Self::Full => "full",
        }
    }

    fn is_minimal(&self) -> bool {
        *self == Self::Minimal
    }
}

/// The app's clocks as its kernel told them, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    pub monotonic_ns: u64,
    pub boottime_ns: u64,
    /// CLOCK_MONOTONIC_RAW; older versions do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monotonic_raw_ns: Option<u64>,
}

/// What the restored app needs from its supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppFacts {
    pub argv: Vec<String>,
    /// The process that the tree hangs on.
    pub root_pid: i32,
    pub stdio: Stdio,
    /// The app's standard input had come to its end.
    pub stdin_ended: bool,
    /// Processes in the tree at the freeze.
    pub processes: u32,
    /// The app's CLOCK_MONOTONIC when the snapshot was stored, in milliseconds.
    pub monotonic_ms: u64,
    /// Path of a library of ours that its processes loaded; its bytes are in the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub library: Option<String>,
    /// It was started under a seccomp filter of ours.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub filtered: bool,
    /// Programs and libraries that its processes have mapped, by path, each with its build id in hexadecimal, or the BLAKE3 of
    /// its bytes as `blake3:...` where it has none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub programs: BTreeMap<String, String>,
    /// Its clocks at the freeze; snapshots of older versions do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clocks: Option<Clocks>,
    /// Processes that go by the host's clocks, each with the reason; the others have a library with which theirs go on. Not said if no
    /// such library was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_host_clocks: Option<Vec<String>>,
    /// The profile that it needs to be resumed: full with System V IPC.
    #[serde(default, skip_serializing_if = "Profile::is_minimal")]
    pub needs: Profile,
}

impl AppFacts {
    /// Whether the monotonic clocks of all its processes go on by a library, whatever a host's show.
    pub fn keeps_its_clocks(&self) -> bool {
        self.by_host_clocks.as_ref().is_some_and(Vec::is_empty)
    }
}

/// What decides whether another host can run the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    pub hostname: String,
    /// `x86_64`, `aarch64`.
    pub arch: String,
    pub kernel: String,
    pub cpu_model: String,
    /// The instruction sets a program may use, by their names in `/proc/cpuinfo`, sorted.
    pub cpu_features: Vec<String>,
    /// Bytes.
    pub page_size: u64,
    /// `4.2.1`.
    pub criu: String,
    /// The user land: `PRETTY_NAME` of os-release, empty when there is none.
    pub image: String,
    /// Processes under a seccomp filter can be stored and restored here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_filter: bool,
    /// The level of x86-64 that the job was held to when it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_baseline: Option<String>,
    /// What CPUID says, by leaf and subleaf in hexadecimal as in `7.0`: EAX, EBX, ECX and EDX. Without those bits of leaf 1
    /// that name the processor.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cpuid: BTreeMap<String, String>,
    /// Bytes of the processor's state as XSAVE stores it; 0 if that is not known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub xsave_bytes: u32,
    /// The C library, as in `glibc 2.41`; empty if there is none that is known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub libc: String,
    /// What settings say of the container's image, such as its digest.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image_digest: String,
    /// The profile in force.
    #[serde(default, skip_serializing_if = "Profile::is_minimal")]
    pub profile: Profile,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Sizes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// The app's memory that CRIU handed over.
    pub memory: u64,
    /// Of it, pages that hold nothing but zeros; they are not stored.
    pub zero: u64,
    /// Of it, pages found unchanged since the parent; they are referred to.
    #[serde(default)]
    pub unchanged: u64,
    /// CRIU's other images.
    pub images: u64,
    /// Written to the store by this snapshot.
    pub stored: u64,
    /// The app's files; None if it was not asked for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preserved: Option<Preserved>,
}

impl Sizes {
    /// Bytes that the snapshot stands for.
    pub fn logical(&self) -> u64 {
        self.memory + self.images + self.preserved.map_or(0, |files| files.bytes)
    }

    /// Bytes that had to be stored, before packing: neither zeros nor in the store already.
    pub fn changed(&self) -> u64 {
        let memory = self
            .memory
            .saturating_sub(self.zero)
            .saturating_sub(self.unchanged);
        memory + self.preserved.map_or(0, |files| files.changed)
    }
}

/// The app's files in a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preserved {
    /// Paths, directories and what was deleted included.
    pub files: u64,
    /// Bytes of contents, without holes and zeros.
    pub bytes: u64,
    /// Of them, bytes that were not in the store already.
    pub changed: u64,
}

/// The whole manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub job: String,
    pub generation: u64,
    pub epoch: u64,
    /// Unique to this attempt; part of every key that it wrote.
    pub attempt: String,
    /// The generation that was the newest when this one was taken.
    pub parent: Option<u64>,
    /// Wall clock of the host at the freeze, in milliseconds since the Unix epoch.
    pub taken_at_ms: u64,
    /// What asked for it; none if this program does not know that.
    #[serde(deserialize_with = "document::if_understood")]
    pub trigger: Option<Source>,
    pub afterwards: Afterwards,
    /// Why it was taken; snapshots of older versions do not say.
    #[serde(
        default,
        deserialize_with = "document::if_understood",
        skip_serializing_if = "Option::is_none"
    )]
    pub decision: Option<Decision>,
    /// How it was stored, and why so.
    #[serde(
        default,
        deserialize_with = "document::if_understood",
        skip_serializing_if = "Option::is_none"
    )]
    pub storing: Option<Storing>,
    /// The commands that it answers, by their ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
    pub app: AppFacts,
    pub host: HostFacts,
    /// Every object that a restore reads. Blocks name them by position.
    pub parts: Vec<Part>,
    /// Which of `parts` hold the index, in order.
    pub index: Vec<usize>,
    pub sizes: Sizes,
    /// The data key of each attempt that wrote one of `parts`, wrapped with the key that the manifest is sealed with, in
    /// base64. Empty when nothing is sealed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<String, String>,
}

impl Manifest {
    pub fn key(&self) -> String {
        key(self.generation, self.epoch, &self.attempt)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        document::seal(Self::KIND, self.version(), self)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DocumentError> {
        document::open(Self::KIND, Self::OLDEST..=Self::VERSION, bytes)
    }
}

impl Stored for Manifest {
    const KIND: &'static str = KIND;
    const VERSION: u32 = VERSION;
    const OLDEST: u32 = PLAIN_VERSION;

    fn version(&self) -> u32 {
        let Self { app, sizes, .. } = self;
        // Readers of the first version know of no files, no library that is to be put in place, and no profiles.
        let is_plain = sizes.preserved.is_none()
            && app.library.is_none()
            && !app.filtered
            && app.needs.is_minimal();
        match is_plain {
            true => PLAIN_VERSION,
            false => VERSION,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_what_they_were_made_from_and_other_keys_tell_nothing() {
        let attempt = "01JD0000000000000000000000";
        assert_eq!(parse_key(&key(7, 3, attempt)), Some((7, 3, attempt)));
        let data = data_prefix(attempt) + "000001";
        assert_eq!(data_attempt(&data), Some(attempt));
        for other in [
            "HEAD",
            "manifests/7-3-x",
            "manifests/notes.txt",
            "data/x/000000",
            "data/readme",
            &key(7, 3, "short"),
        ] {
            assert_eq!(
                (parse_key(other), data_attempt(other)),
                (None, None),
                "{other}"
            );
        }
    }

    #[test]
    fn the_newest_generation_and_the_newest_epoch_come_first_in_a_listing() {
        let mut keys = [
            key(9, 1, "A"),
            key(10, 1, "A"),
            key(10, 2, "B"),
            key(100, 1, "A"),
        ];
        keys.sort();
        assert_eq!(
            keys,
            [
                key(100, 1, "A"),
                key(10, 2, "B"),
                key(10, 1, "A"),
                key(9, 1, "A")
            ]
        );
    }
}
