//! The store port: named immutable objects plus a few small ones that are replaced by compare-and-swap.
//!
//! Keys are relative to the store's root, use `/` as separator and sort in UTF-8 byte order. An implementation makes one
//! attempt per call and says in its error whether another can help; [`retry`] is the one place that tries again, within a
//! deadline. What the objects mean is decided elsewhere (`reprieve_core::manifest`, `crate::catalog`).
//!
//! Invariants every implementation keeps, checked by one contract suite against all of them:
//! - an object is visible whole or not at all, and durable once `put` returned;
//! - of any number of concurrent `put`s with the same satisfied condition exactly one succeeds;
//! - a [`Tag`] changes whenever the object's bytes change.

pub(crate) mod cloud;
#[cfg(test)]
mod contract;
mod directory;
#[cfg(debug_assertions)]
pub(crate) mod doomed;
mod hedged;
mod location;
pub mod retry;
pub(crate) mod s3;
pub mod selftest;
pub mod turns;
pub mod unreliable;
mod wire;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use reprieve_core::pace::Pace;

pub use cloud::{CloudOptions, CloudStore, Variables};
pub use directory::DirectoryStore;
pub use hedged::HedgedStore;
pub use location::{AddressError, StoreAddress};
pub use s3::{Addressing, Encryption, S3Objects, S3Options, S3Store};
pub use unreliable::UnreliableStore;
pub use wire::Limits;

/// What a store knows an object's present bytes by (an S3 ETag, or a digest in a directory).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tag(pub String);

/// When a `put` may take place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Always; the key is one that nobody else writes.
    Always,
    /// Only if there is no object under this key.
    Absent,
    /// Only if the object's present bytes are the ones known by this tag.
    Matches(Tag),
}

/// A whole small object.
#[derive(Clone, Debug)]
pub struct Object {
    pub bytes: Bytes,
    pub tag: Tag,
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// When the store last wrote it, by the store's own clock, in milliseconds since the Unix epoch.
    pub modified_ms: u64,
}

/// Why a store could not do as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreErrorKind {
    /// No object under this key. On a store that hides existence without list permission this arrives as `Denied`.
    NotFound,
    /// The bucket or the directory itself does not exist.
    NoSuchStore,
    /// Credentials are missing, expired or lack the right.
    Denied,
    /// The condition of a `put` does not hold.
    ConditionFailed,
    /// Lost a race in flight; the condition may still hold (S3's 409).
    Conflict,
    /// The store asks for fewer requests (503 SlowDown, 429).
    Throttled,
    /// No answer in time, connection lost, 5xx.
    Unavailable,
    /// No space or quota left.
    Full,
    /// The object is larger than the caller allows, or a range lies outside it.
    BadSize,
    /// Anything else; trying again is not expected to help.
    Other,
}

impl StoreErrorKind {
    /// Whether the same call may succeed when repeated.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Conflict | Self::Throttled | Self::Unavailable)
    }
}

/// A refused or failed store call: what was tried on which key, why, and the cause underneath.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {key}: {message}")]
pub struct StoreError {
    pub kind: StoreErrorKind,
    /// `get`, `put`, `list`, ...
    pub operation: &'static str,
    /// The full address of the object, as a person would look it up (`s3://bucket/prefix/key`, a path).
    pub key: String,
    pub message: String,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StoreError {
    pub fn new(
        kind: StoreErrorKind,
        operation: &'static str,
        key: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            operation,
            key: key.into(),
            message: message.into(),
            source: None,
        }
    }

    /// The same error with its cause.
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

/// The longest key or prefix, in bytes. S3 takes 1024 with the store's own prefix in front.
pub const KEY_LIMIT: usize = 768;

/// What is wrong with a key, if anything: the same rules for every store, so that one store's keys fit in any other.
///
/// Segments do not start with a dot: such names belong to the directory store's temporary and lock files, and `..`
/// would lead out of it.
pub fn check_key(key: &str) -> Result<(), &'static str> {
    check_prefix(key)?;
    match key.rsplit('/').next() {
        None | Some("") => Err("a key ends in a name"),
        Some(_) => Ok(()),
    }
}

/// The same for the beginning of a key, as listings take it: it may be empty, and its last segment incomplete.
pub fn check_prefix(prefix: &str) -> Result<(), &'static str> {
    if prefix.len() > KEY_LIMIT {
        return Err("it is longer than 768 bytes");
    }
    if prefix.chars().any(char::is_control) {
        return Err("it contains a control character");
    }
    let mut segments = prefix.split('/').peekable();
    while let Some(segment) = segments.next() {
        if segment.is_empty() && segments.peek().is_some() {
            return Err("it contains an empty segment or starts with `/`");
        }
        if segment.starts_with('.') {
            return Err("a segment starts with a dot");
        }
        if segment.len() > 255 {
            return Err("a segment is longer than 255 bytes");
        }
    }
    Ok(())
}

/// Where snapshots live.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// The store's address as the user gave it, without secrets.
    fn address(&self) -> String;

    /// The object's bytes, refused with [`StoreErrorKind::BadSize`] before reading when there are more than `limit`.
    async fn get(&self, key: &str, limit: u64) -> Result<Object, StoreError>;

    /// Exactly `length` bytes from `offset`; fewer is [`StoreErrorKind::BadSize`].
    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, StoreError>;

    /// The object's size in bytes.
    async fn size(&self, key: &str) -> Result<u64, StoreError>;

    /// Stores the object; durable when this returns.
    async fn put(&self, key: &str, bytes: Bytes, condition: Condition) -> Result<Tag, StoreError>;

    /// Up to `limit` objects whose key starts with `prefix`, in key order, beginning behind the key `after`.
    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError>;

    /// Removes the object; it is no error if there is none.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;

    /// Whether the store itself is there and may be read. Costs one request.
    async fn reach(&self) -> Result<(), StoreError>;

    /// How large the next part should be, in bytes, if parts on their way may take this much memory together.
    fn part_bytes(&self, memory: u64) -> u64 {
        Pace::default().part_bytes(memory)
    }
}

/// How to talk to the kinds of stores that are reached over a network.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub s3: S3Options,
    pub google: CloudOptions,
    pub azure: CloudOptions,
}

/// The store at an address. Whether it is there and may be used is for [`Store::reach`] to find out.
pub async fn open(address: &StoreAddress, options: &Options) -> Result<Arc<dyn Store>, StoreError> {
    let remote: Arc<dyn Store> = match address {
        StoreAddress::Directory(path) => return Ok(Arc::new(DirectoryStore::new(path))),
        StoreAddress::S3 { bucket, prefix } => {
            Arc::new(S3Store::open(bucket, prefix, &options.s3).await?)
        }
        StoreAddress::Google { bucket, prefix } => {
            Arc::new(CloudStore::google(bucket, prefix, &options.google)?)
        }
        StoreAddress::Azure { container, prefix } => {
            Arc::new(CloudStore::azure(container, prefix, &options.azure)?)
        }
    };
    Ok(Arc::new(HedgedStore::new(remote)))
}

/// The longest that one attempt may take before it is given up and counted as [`StoreErrorKind::Unavailable`].
pub const ATTEMPT_LIMIT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_could_leave_the_store_or_meet_its_own_files_are_refused() {
        for key in ["HEAD", "data/0001/part-7", "a b/c", "ä/ö", "a..b"] {
            assert_eq!(check_key(key), Ok(()), "{key:?}");
        }
        let long = "x".repeat(256);
        for key in [
            "",
            "/etc/passwd",
            "..",
            "a/../b",
            "a//b",
            "a/",
            ".hidden",
            "a/.tmp",
            "a\nb",
            "a\0b",
            long.as_str(),
        ] {
            assert!(check_key(key).is_err(), "{key:?}");
        }
        assert!(check_key(&"x/".repeat(400)).is_err());
    }

    #[test]
    fn a_prefix_may_be_empty_or_end_anywhere() {
        for prefix in ["", "data/", "data/00", "d"] {
            assert_eq!(check_prefix(prefix), Ok(()), "{prefix:?}");
        }
        for prefix in ["/", "..", "a//", "data/.", "../x"] {
            assert!(check_prefix(prefix).is_err(), "{prefix:?}");
        }
    }
}
