//! What the stores that are reached over HTTP have in common: keys below a prefix, limits, bodies, what a status means, and
//! errors with causes that have no values.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use aws_smithy_types::byte_stream::ByteStream;
use bytes::{Bytes, BytesMut};

use super::{ATTEMPT_LIMIT, Entry, StoreError, StoreErrorKind, check_key, check_prefix};

/// An upload slower than this many bytes per second is taken for stalled, so that a small one is not waited for as long
/// as a large one.
const SLOWEST_UPLOAD: u64 = 256 * 1024;

/// How long each wait may be, and how much one request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A whole attempt.
    pub attempt: Duration,
    /// A connection, with TLS.
    pub connect: Duration,
    /// The beginning of an answer, credentials included, and then each further piece. Uploads get the time that
    /// [`Limits::upload`] allows on top.
    pub answer: Duration,
    /// Keys in one page of a listing. S3 gives 1000 at most.
    pub page: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            attempt: ATTEMPT_LIMIT,
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(15),
            page: 1000,
        }
    }
}

impl Limits {
    /// How long the answer to an upload of this many bytes may take.
    pub(super) fn upload(&self, bytes: u64) -> Duration {
        let slack = Duration::from_secs(bytes / SLOWEST_UPLOAD);
        (self.answer + slack).min(self.attempt)
    }
}

/// A bucket or container, or what is below a prefix in one.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Without a prefix.
    bucket: String,
    /// With a `/` at the end, or empty.
    prefix: String,
}

impl Place {
    /// `bucket` is the whole one's address.
    pub(super) fn new(bucket: String, prefix: &str) -> Self {
        let prefix = match prefix {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        Self { bucket, prefix }
    }

    pub(super) fn address(&self) -> String {
        match self.prefix.trim_end_matches('/') {
            "" => self.bucket.clone(),
            prefix => format!("{}/{prefix}", self.bucket),
        }
    }

    /// The key as the bucket has it.
    pub(super) fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The key without the prefix.
    pub(super) fn inside<'k>(&self, full: &'k str) -> Option<&'k str> {
        full.strip_prefix(&self.prefix)
    }

    pub(super) fn call(&self, operation: &'static str, key: &str) -> Call {
        Call {
            bucket: self.bucket.clone(),
            operation,
            full_key: self.full(key),
        }
    }

    /// A call on one object.
    pub(super) fn call_on(&self, operation: &'static str, key: &str) -> Result<Call, StoreError> {
        let call = self.call(operation, key);
        match check_key(key) {
            Ok(()) => Ok(call),
            Err(fault) => {
                Err(call.error(StoreErrorKind::Other, format!("not a usable key: {fault}")))
            }
        }
    }

    /// A listing of what begins so.
    pub(super) fn call_below(&self, prefix: &str) -> Result<Call, StoreError> {
        let call = self.call("list", prefix);
        match check_prefix(prefix) {
            Ok(()) => Ok(call),
            Err(fault) => {
                let message = format!("not a usable prefix: {fault}");
                Err(call.error(StoreErrorKind::Other, message))
            }
        }
    }
}

/// What the errors of one call have in common.
pub(super) struct Call {
    bucket: String,
    pub(super) operation: &'static str,
    pub(super) full_key: String,
}

impl Call {
    pub(super) fn error(&self, kind: StoreErrorKind, message: impl Into<String>) -> StoreError {
        // Control characters in a refused key must not reach a terminal.
        let key: String = self
            .full_key
            .chars()
            .map(|c| if c.is_control() { '\u{fffd}' } else { c })
            .collect();
        StoreError::new(
            kind,
            self.operation,
            format!("{}/{key}", self.bucket),
            message,
        )
    }

    pub(super) fn no_answer(&self, limit: Duration) -> StoreError {
        self.error(
            StoreErrorKind::Unavailable,
            format!("no answer within {:.1} s", limit.as_secs_f64()),
        )
    }

    /// The whole of it under a limit.
    pub(super) async fn within<T, F>(&self, limit: Duration, work: F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>> + Send,
    {
        match tokio::time::timeout(limit, Box::pin(work)).await {
            Ok(result) => result,
            Err(_) => Err(self.no_answer(limit)),
        }
    }

    /// All of a body; [`read`] says how.
    pub(super) async fn read(
        &self,
        body: ByteStream,
        expected: u64,
        limit: u64,
        wait: Duration,
    ) -> Result<Bytes, StoreError> {
        let read = read(body, expected, limit, wait).await;
        read.map_err(|fault| match fault {
            BodyFault::TooLarge => self.error(
                StoreErrorKind::BadSize,
                format!("more than the {limit} bytes allowed"),
            ),
            BodyFault::Broken(error) => self
                .error(StoreErrorKind::Unavailable, BODY_BROKEN)
                .because(Cause::of(&*error)),
            BodyFault::Silent => self.no_answer(wait),
        })
    }

    /// What a listing gave, in order and no more than was asked for.
    pub(super) fn listed(
        &self,
        mut entries: Vec<Entry>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        entries.truncate(limit);
        match entries.windows(2).find(|pair| pair[0].key >= pair[1].key) {
            None => Ok(entries),
            Some(pair) => {
                let message = format!(
                    "the store lists `{}` behind `{}`: it keeps no order",
                    pair[1].key, pair[0].key
                );
                Err(self.error(StoreErrorKind::Other, message))
            }
        }
    }
}

/// Why a body could not be read. Another attempt may go well, unless it is too large.
pub(super) enum BodyFault {
    TooLarge,
    /// Cut off, or not what its checksum says.
    Broken(Box<dyn Error + Send + Sync>),
    Silent,
}

/// What is told of [`BodyFault::Broken`].
pub(super) const BODY_BROKEN: &str = "the answer broke off or is damaged";

/// All of a body, refused when it turns out to have more than `limit` bytes; each piece has `wait`.
pub(super) async fn read(
    mut body: ByteStream,
    expected: u64,
    limit: u64,
    wait: Duration,
) -> Result<Bytes, BodyFault> {
    let capacity = usize::try_from(expected.min(limit)).map_err(|_| BodyFault::TooLarge)?;
    let mut bytes = BytesMut::with_capacity(capacity);
    loop {
        match tokio::time::timeout(wait, body.try_next()).await {
            Ok(Ok(Some(piece))) if (bytes.len() + piece.len()) as u64 > limit => {
                return Err(BodyFault::TooLarge);
            }
            Ok(Ok(Some(piece))) => bytes.extend_from_slice(&piece),
            Ok(Ok(None)) => return Ok(bytes.freeze()),
            Ok(Err(error)) => return Err(BodyFault::Broken(error.into())),
            Err(_) => return Err(BodyFault::Silent),
        }
    }
}

/// What a status means where nothing else says more.
pub(super) fn kind_of_status(status: u16) -> StoreErrorKind {
    match status {
        401 | 403 => StoreErrorKind::Denied,
        404 => StoreErrorKind::NotFound,
        409 => StoreErrorKind::Conflict,
        412 => StoreErrorKind::ConditionFailed,
        416 => StoreErrorKind::BadSize,
        429 | 503 => StoreErrorKind::Throttled,
        507 => StoreErrorKind::Full,
        408 | 500..=599 => StoreErrorKind::Unavailable,
        _ => StoreErrorKind::Other,
    }
}

/// The text of an error and of what caused it, without their values.
#[derive(Debug)]
pub(crate) struct Cause {
    text: String,
    source: Option<Box<Cause>>,
}

impl Cause {
    pub(super) fn of(error: &(dyn Error + 'static)) -> Self {
        Self {
            text: error.to_string(),
            source: error.source().map(|source| Box::new(Self::of(source))),
        }
    }

    pub(super) fn innermost(&self) -> &str {
        self.source
            .as_ref()
            .map_or(&self.text, |source| source.innermost())
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as _)
    }
}
