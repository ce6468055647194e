//! The envelope of every small object that we keep in a store: it says what it is, in which version, and proves itself.
//!
//! ```text
//! reprieve KIND VERSION\n
//! {one line of JSON}\n
//! BLAKE3 of the two lines above, 64 hexadecimal digits\n
//! ```
//!
//! A reader refuses a foreign kind, another version, a wrong digest and anything after the third line, in that order, so
//! that the reason is the most telling one. The digest guards against damage, not against forgery.

use serde::Serialize;
use serde::de::DeserializeOwned;

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
}

/// Writes a value as a document of the given kind and version.
///
/// # Panics
/// When the value cannot be expressed as JSON, which for our own types (string keys, finite numbers) cannot happen.
pub fn seal<T: Serialize>(kind: &'static str, version: u32, value: &T) -> Vec<u8> {
    let json =
        serde_json::to_string(value).expect("our own types have string keys and finite numbers");
    let mut bytes = format!("reprieve {kind} {version}\n{json}\n").into_bytes();
    let digest = blake3::hash(&bytes).to_hex();
    bytes.extend_from_slice(digest.as_bytes());
    bytes.push(b'\n');
    bytes
}

/// Reads a document back, refusing whatever is not exactly what [`seal`] wrote.
pub fn open<T: DeserializeOwned>(
    kind: &'static str,
    version: u32,
    bytes: &[u8],
) -> Result<T, DocumentError> {
    let first = line(bytes).ok_or(DocumentError::Damaged)?;
    let found_version = header_version(first, kind)?;
    let second = line(&bytes[first.len() + 1..]).ok_or(DocumentError::Damaged)?;
    let (signed, digest) = bytes.split_at(first.len() + second.len() + 2);
    // The version is believed before the digest: a later format may prove itself in another way.
    if found_version != version {
        return Err(DocumentError::OtherVersion {
            found: found_version,
            supported: version,
        });
    }
    if digest != format!("{}\n", blake3::hash(signed).to_hex()).as_bytes() {
        return Err(DocumentError::Damaged);
    }
    serde_json::from_slice(second).map_err(|error| DocumentError::NotUnderstood(error.to_string()))
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

fn header_version(first: &[u8], kind: &'static str) -> Result<u32, DocumentError> {
    let other = || DocumentError::OtherKind {
        expected: kind,
        found: String::from_utf8_lossy(&first[..first.len().min(40)]).into_owned(),
    };
    let text = std::str::from_utf8(first).map_err(|_| other())?;
    let rest = text
        .strip_prefix("reprieve ")
        .and_then(|rest| rest.strip_prefix(kind))
        .ok_or_else(other)?;
    rest.strip_prefix(' ')
        .and_then(|number| number.parse().ok())
        .ok_or_else(other)
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
            open::<Vec<String>>("sample", 3, &sample()),
            Ok(vec!["one\ntwo".into(), "drei".into()])
        );
    }

    #[test]
    fn another_kind_and_another_version_have_their_own_reasons() {
        assert!(matches!(
            open::<Vec<String>>("other", 3, &sample()),
            Err(DocumentError::OtherKind { .. })
        ));
        assert_eq!(
            open::<Vec<String>>("sample", 2, &sample()),
            Err(DocumentError::OtherVersion {
                found: 3,
                supported: 2
            })
        );
    }

    proptest! {
        #[test]
        fn no_flipped_bit_is_accepted(at in 0usize..100, bit in 0u8..8) {
            let mut bytes = sample();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(open::<Vec<String>>("sample", 3, &bytes).is_err());
        }

        #[test]
        fn no_other_length_is_accepted(keep in 0usize..100, extra in proptest::collection::vec(any::<u8>(), 1..5)) {
            let bytes = sample();
            prop_assert!(open::<Vec<String>>("sample", 3, &bytes[..keep % bytes.len()]).is_err());
            let longer = [bytes, extra].concat();
            prop_assert!(open::<Vec<String>>("sample", 3, &longer).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(open::<Vec<String>>("sample", 3, &bytes).is_err());
        }
    }
}
