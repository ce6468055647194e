//! What the stores that are reached over HTTP have in common: limits, bodies, what a status means, and causes without values.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use aws_smithy_types::byte_stream::ByteStream;
use bytes::{Bytes, BytesMut};

use super::{ATTEMPT_LIMIT, StoreErrorKind};

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
