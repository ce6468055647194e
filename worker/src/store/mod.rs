//! The store port: named immutable objects plus a few small ones that are replaced by compare-and-swap.
//!
//! Keys are relative to the store's root, use `/` as separator and sort in UTF-8 byte order. An implementation makes one
//! attempt per call and says in its error whether another can help; [`retry`] is the one place that tries again, within a
//! deadline. What the objects mean is decided elsewhere (`reprieve_core::manifest`, `crate::snapshot`).
//!
//! Invariants every implementation keeps, checked by one contract suite against all of them:
//! - an object is visible whole or not at all, and durable once `put` returned;
//! - of any number of concurrent `put`s with the same satisfied condition exactly one succeeds;
//! - a [`Tag`] changes whenever the object's bytes change.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

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
}

/// The longest that one attempt may take before it is given up and counted as [`StoreErrorKind::Unavailable`].
pub const ATTEMPT_LIMIT: Duration = Duration::from_secs(60);
