//! The envelope of every small object that we keep in a store: it says what it is, in which version, and proves itself.
//!
//! ```text
//! reprieve KIND VERSION\n                          reprieve KIND VERSION sealed-1 KEY\n
//! {one line of JSON}\n                             the same JSON, encrypted, in base64\n
//! BLAKE3 of the two lines above, in hexadecimal\n  a keyed BLAKE3 of them\n
//! ```
//!
//! A reader refuses a foreign kind, another version, a wrong digest and anything after the third line, in that order, so
//! that the reason is the most telling one. The digest guards against damage, not against forgery; what is sealed with a
//! key guards against both. This module knows the form of sealed documents; sealing and opening them is left to whoever
//! has the keys.

use std::ops::RangeInclusive;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

/// How documents are sealed in this version; stands in their first line.
const SCHEME: &str = "sealed-1";

/// A value that is stored as a document.
pub trait Stored: Serialize + DeserializeOwned {
    const KIND: &'static str;
    /// The newest version that is read and written.
    const VERSION: u32;
    /// The oldest version that is read.
    const OLDEST: u32 = Self::VERSION;

    /// The version in which this value is written: the oldest whose readers do not misread it.
    fn version(&self) -> u32 {
        Self::VERSION
    }
}

/// The largest document a reader takes, in bytes; a larger object is refused before it is read.
pub const SIZE_LIMIT: u64 = 16 << 20;

/// Why a document cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    #[error("it is not a {expected} document (it begins with {found:?})")]
    OtherKind {
        expected: &'static str,
        found: String,
    },
    #[error(
        "it has format version {found}, this program reads version {supported}; run a program of that version"
    )]
    OtherVersion { found: u32, supported: u32 },
    #[error("it is truncated or altered (its checksum does not match)")]
    Damaged,
    #[error("its checksum matches but its contents are not understood: {0}")]
    NotUnderstood(String),
    #[error("it is sealed with key {key}, and no key is set")]
    NoKey { key: String },
    #[error("it is sealed with key {key}, which is none of those that are set")]
    OtherKey { key: String },
    #[error("it is not sealed, although a key is set")]
    NotSealed,
    #[error("its seal does not match: it was altered, or made for another place")]
    Forged,
}

impl DocumentError {
    /// Whether other keys, or none, could open it: then nothing is known about its contents.
    pub fn is_about_keys(&self) -> bool {
        matches!(
            self,
            Self::NoKey { .. } | Self::OtherKey { .. } | Self::NotSealed
        )
    }
}

/// A document taken apart, with nothing proven yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// Of the document.
    pub version: u32,
    /// The key that it is sealed with, if it is.
    pub key: Option<&'a str>,
    /// The second line.
    pub body: &'a [u8],
    /// The first two lines with their newlines.
    pub signed: &'a [u8],
    /// The third line.
    pub proof: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Takes a document of this kind, and of one of these versions, apart.
    pub fn parse(
        kind: &'static str,
        versions: RangeInclusive<u32>,
        bytes: &'a [u8],
    ) -> Result<Self, DocumentError> {
        let first = line(bytes).ok_or(DocumentError::Damaged)?;
        let (found, key) = header(first, kind)?;
        let body = line(&bytes[first.len() + 1..]).ok_or(DocumentError::Damaged)?;
        let (signed, rest) = bytes.split_at(first.len() + body.len() + 2);
        // The version is believed before the proof: a later format may prove itself in another way.
        if !versions.contains(&found) {
            return Err(DocumentError::OtherVersion {
                found,
                supported: *versions.end(),
            });
        }
        match rest.split_last() {
            Some((b'\n', proof)) => Ok(Self {
                version: found,
                key,
                body,
                signed,
                proof,
            }),
            _ => Err(DocumentError::Damaged),
        }
    }

    /// Whether this is a document of this kind that is sealed, whatever else it is.
    pub fn is_sealed(kind: &'static str, bytes: &[u8]) -> bool {
        line(bytes)
            .and_then(|first| header(first, kind).ok())
            .is_some_and(|(_, key)| key.is_some())
    }
}

/// Puts a sealed document together. `body` is one line; `prove` is given the first two and makes the third.
pub fn sealed(
    kind: &'static str,
    version: u32,
    key: &str,
    body: &str,
    prove: impl FnOnce(&[u8]) -> String,
) -> Vec<u8> {
    let mut bytes = sealed_header(kind, version, key).into_bytes();
    bytes.extend_from_slice(body.as_bytes());
    bytes.push(b'\n');
    let proof = prove(&bytes);
    bytes.extend_from_slice(proof.as_bytes());
    bytes.push(b'\n');
    bytes
}

/// The first line of a sealed document, with its newline.
pub fn sealed_header(kind: &'static str, version: u32, key: &str) -> String {
    format!("reprieve {kind} {version} {SCHEME} {key}\n")
}

/// The value as one line of JSON.
///
/// # Panics
/// When the value cannot be expressed as JSON, which for our own types (string keys, finite numbers) cannot happen.
pub fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("our own types have string keys and finite numbers")
}

/// Reads the line of JSON of a document that was proven.
pub fn from_json<T: DeserializeOwned>(json: &[u8]) -> Result<T, DocumentError> {
    serde_json::from_slice(json).map_err(|error| DocumentError::NotUnderstood(error.to_string()))
}

/// For a field that only informs: what a later program may write there and this one does not understand counts as nothing, so
/// that it costs nobody the rest of the document.
pub fn if_understood<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).ok())
}

/// The fields of an object that this program does not know. Whoever replaces it writes them again.
pub type Unknown = serde_json::Map<String, serde_json::Value>;

/// Writes a value as a document of the given kind and version, not sealed.
pub fn seal<T: Serialize>(kind: &'static str, version: u32, value: &T) -> Vec<u8> {
    let json = json(value);
    let mut bytes = format!("reprieve {kind} {version}\n{json}\n").into_bytes();
    let digest = blake3::hash(&bytes).to_hex();
    bytes.extend_from_slice(digest.as_bytes());
    bytes.push(b'\n');
    bytes
}

/// Reads a document back, refusing whatever is not exactly what [`seal`] wrote.
pub fn open<T: DeserializeOwned>(
    kind: &'static str,
    versions: RangeInclusive<u32>,
    bytes: &[u8],
) -> Result<T, DocumentError> {
    let envelope = Envelope::parse(kind, versions, bytes)?;
    if let Some(key) = envelope.key {
        return Err(DocumentError::NoKey { key: key.into() });
    }
    if envelope.proof != blake3::hash(envelope.signed).to_hex().as_bytes() {
        return Err(DocumentError::Damaged);
    }
    from_json(envelope.body)
}

/// The BLAKE3 digest of some bytes as 64 hexadecimal digits, the form in which documents name one another.
pub fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

fn line(bytes: &[u8]) -> Option<&[u8]> {
    bytes
        .iter()
        .position(|&byte| byte == b'\n')
        .map(|end| &bytes[..end])
}

/// The version and, if it is sealed, the key that a first line names.
fn header<'a>(
    first: &'a [u8],
    kind: &'static str,
) -> Result<(u32, Option<&'a str>), DocumentError> {
    let other = || DocumentError::OtherKind {
        expected: kind,
        found: String::from_utf8_lossy(&first[..first.len().min(40)]).into_owned(),
    };
    let text = std::str::from_utf8(first).map_err(|_| other())?;
    let mut words = text.split(' ');
    if (words.next(), words.next()) != (Some("reprieve"), Some(kind)) {
        return Err(other());
    }
    let version = words.next().and_then(|number| number.parse().ok());
    let version = version.ok_or_else(other)?;
    match (words.next(), words.next(), words.next()) {
        (None, ..) => Ok((version, None)),
        (Some(SCHEME), Some(key), None) if is_key_id(key) => Ok((version, Some(key))),
        _ => Err(other()),
    }
}

/// Whether this can be the name of a key: it becomes part of an object's name.
fn is_key_id(text: &str) -> bool {
    let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.len() == 16 && text.bytes().all(digit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        seal("sample", 3, &vec!["one\ntwo", "drei"])
    }

    #[test]
    fn comes_back_as_written() {
        assert_eq!(
            open::<Vec<String>>("sample", 3..=3, &sample()),
            Ok(vec!["one\ntwo".into(), "drei".into()])
        );
    }

    #[test]
    fn another_kind_and_another_version_have_their_own_reasons() {
        assert!(matches!(
            open::<Vec<String>>("other", 3..=3, &sample()),
            Err(DocumentError::OtherKind { .. })
        ));
        assert_eq!(
            open::<Vec<String>>("sample", 2..=2, &sample()),
            Err(DocumentError::OtherVersion {
                found: 3,
                supported: 2
            })
        );
    }

    #[test]
    fn sealed_documents_are_told_from_others_and_not_opened_here() {
        let key = "0123456789abcdef";
        let bytes = sealed("sample", 3, key, "body", |signed| {
            assert_eq!(
                signed,
                b"reprieve sample 3 sealed-1 0123456789abcdef\nbody\n"
            );
            "proof".into()
        });
        let envelope = Envelope::parse("sample", 3..=3, &bytes).expect("it is whole");
        assert_eq!(
            (envelope.key, envelope.body, envelope.proof),
            (Some(key), &b"body"[..], &b"proof"[..])
        );
        assert!(Envelope::is_sealed("sample", &bytes) && !Envelope::is_sealed("sample", &sample()));
        assert_eq!(
            open::<Vec<String>>("sample", 3..=3, &bytes),
            Err(DocumentError::NoKey { key: key.into() })
        );
        for line in [
            "sealed-2 0123456789abcdef",
            "sealed-1 ../../x",
            "sealed-1 0123456789abcdef x",
            "sealed-1",
            "x",
        ] {
            let bytes = format!("reprieve sample 3 {line}\nbody\nproof\n");
            let parsed = Envelope::parse("sample", 3..=3, bytes.as_bytes());
            assert!(
                matches!(parsed, Err(DocumentError::OtherKind { .. })),
                "{line}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_flipped_bit_is_accepted(at in 0usize..100, bit in 0u8..8) {
            let mut bytes = sample();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(open::<Vec<String>>("sample", 3..=3, &bytes).is_err());
        }

        #[test]
        fn no_other_length_is_accepted(keep in 0usize..100, extra in proptest::collection::vec(any::<u8>(), 1..5)) {
            let bytes = sample();
            prop_assert!(open::<Vec<String>>("sample", 3..=3, &bytes[..keep % bytes.len()]).is_err());
            let longer = [bytes, extra].concat();
            prop_assert!(open::<Vec<String>>("sample", 3..=3, &longer).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(open::<Vec<String>>("sample", 3..=3, &bytes).is_err());
        }
    }
}
