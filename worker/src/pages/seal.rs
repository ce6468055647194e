//! Seals what an attempt stores, so that only holders of the job's key can read it, and nobody else can make or move it.
//!
//! Each attempt has a data key of its own, 32 random bytes. Its blocks and its index are sealed with it by AES-256-GCM,
//! in place: the tag goes behind the bytes and nothing else is added. The associated data names the job, the attempt, and
//! what is sealed, so that a block in the place of another one, of another attempt or of another job does not open.
//!
//! A nonce must never be used twice with one key. It is what is sealed (blocks or index) and the block's number in the
//! attempt, and that is used once:
//!
//! - numbers come from one atomic counter of the attempt (`capture::Blocks`), which never gives one twice and refuses to
//!   wrap around; each is sealed once, by whoever took it, and uploads that are repeated repeat the sealed bytes;
//! - the index is sealed once, after all blocks;
//! - an attempt that fails is never continued: the next one has another name and another random key, in this process or
//!   in any other. The process that holds the key is not part of the job, so no restore brings an old counter back.
//!
//! The data key is wrapped with the job's key and stands in the manifest of every snapshot that refers to the attempt.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use reprieve_core::manifest::{self, Part};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::keys::{KeyError, MasterKey, random};

/// Bytes that sealing adds.
pub const TAG: usize = 16;

/// What is sealed with a data key; a part of the nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Block = 0,
    Index = 1,
}

/// The sealed bytes are not what this key sealed for this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its seal does not match: the stored bytes were altered, or belong elsewhere")]
pub struct Broken;

/// The data key of one attempt.
pub struct AttemptKey {
    job: String,
    attempt: String,
    aead: LessSafeKey,
}

impl fmt::Debug for AttemptKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AttemptKey({})", self.attempt)
    }
}

impl AttemptKey {
    pub(crate) fn new(job: &str, attempt: &str, key: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("the length is right");
        Self {
            job: job.to_owned(),
            attempt: attempt.to_owned(),
            aead: LessSafeKey::new(key),
        }
    }

    /// A fresh one for an attempt that begins, and its wrapped form for the manifest.
    pub fn fresh(master: &MasterKey, job: &str, attempt: &str) -> std::io::Result<(Self, String)> {
        let mut key = Zeroizing::new([0; 32]);
        random(&mut *key)?;
        Ok((
            Self::new(job, attempt, &key),
            master.wrap(job, attempt, &key),
        ))
    }

    /// Seals a block in place.
    pub fn seal_block(&self, number: u32, bytes: &mut Vec<u8>) {
        self.seal(What::Block, number, bytes);
    }

    /// Opens a block in place; what it held are the first bytes, as many as are returned.
    pub fn open_block(&self, number: u32, bytes: &mut [u8]) -> Result<usize, Broken> {
        self.open(What::Block, number, bytes)
    }

    /// Seals the packed index in place.
    pub fn seal_index(&self, bytes: &mut Vec<u8>) {
        self.seal(What::Index, 0, bytes);
    }

    /// Opens the packed index in place.
    pub fn open_index(&self, bytes: &mut Vec<u8>) -> Result<(), Broken> {
        let length = self.open(What::Index, 0, bytes)?;
        bytes.truncate(length);
        Ok(())
    }

    fn seal(&self, what: What, number: u32, bytes: &mut Vec<u8>) {
        self.aead
            .seal_in_place_append_tag(nonce(what, number), self.place(what, number), bytes)
            .expect("a block is far below the limit of the cipher");
    }

    fn open(&self, what: What, number: u32, bytes: &mut [u8]) -> Result<usize, Broken> {
        let opened = self
            .aead
            .open_in_place(nonce(what, number), self.place(what, number), bytes);
        Ok(opened.map_err(|_| Broken)?.len())
    }

    /// Names of jobs and attempts have no NUL in them.
    fn place(&self, what: What, number: u32) -> Aad<Vec<u8>> {
        let what = match what {
            What::Block => "block",
            What::Index => "index",
        };
        let text = format!(
            "reprieve {what} 1\0{}\0{}\0{number}",
            self.job, self.attempt
        );
        Aad::from(text.into_bytes())
    }
}

/// Twelve bytes, little-endian: 4 of what is sealed, 8 of its number.
fn nonce(what: What, number: u32) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&(what as u32).to_le_bytes());
    bytes[4..].copy_from_slice(&u64::from(number).to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// What opens the parts of one snapshot, by position; none of it is sealed if there are no keys.
#[derive(Clone, Debug, Default)]
pub struct PartKeys(Vec<Option<Arc<AttemptKey>>>);

impl PartKeys {
    /// Unwraps the data keys of a snapshot that is sealed with `master`.
    pub(crate) fn unwrap(
        master: &MasterKey,
        job: &str,
        parts: &[Part],
        wrapped: &BTreeMap<String, String>,
    ) -> Result<Self, KeyError> {
        let mut keys: HashMap<&str, Arc<AttemptKey>> = HashMap::new();
        for (attempt, wrapped) in wrapped {
            let key = master.unwrap(job, attempt, wrapped)?;
            keys.insert(attempt, Arc::new(AttemptKey::new(job, attempt, &key)));
        }
        let of_part = |part: &Part| {
            let attempt = manifest::data_attempt(&part.key).unwrap_or_default();
            keys.get(attempt)
                .map(|key| Some(Arc::clone(key)))
                .ok_or_else(|| KeyError::NoDataKey {
                    part: part.key.clone(),
                })
        };
        parts
            .iter()
            .map(of_part)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The key of a part; `None` if nothing is sealed.
    pub fn of(&self, part: u32) -> Option<&AttemptKey> {
        self.0.get(part as usize)?.as_deref()
    }

    pub fn is_sealed(&self) -> bool {
        !self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const JOB: &str = "job";
    const FIRST: &str = "01JD0000000000000000000001";
    const SECOND: &str = "01JD0000000000000000000002";

    fn key(job: &str, attempt: &str) -> AttemptKey {
        AttemptKey::new(job, attempt, &[7; 32])
    }

    #[test]
    fn a_block_opens_in_its_own_place_only() {
        let ours = key(JOB, FIRST);
        let mut sealed = b"the job's memory".to_vec();
        ours.seal_block(3, &mut sealed);
        assert_eq!(sealed.len(), 16 + TAG);
        let other_key = AttemptKey::new(JOB, FIRST, &[8; 32]);
        for (what, key, number) in [
            ("another number", &ours, 4),
            ("another attempt", &key(JOB, SECOND), 3),
            ("another job", &key("other", FIRST), 3),
            ("another key", &other_key, 3),
        ] {
            let mut bytes = sealed.clone();
            assert_eq!(key.open_block(number, &mut bytes), Err(Broken), "{what}");
        }
        assert_eq!(ours.open_index(&mut sealed.clone()), Err(Broken));
        let mut index = b"index".to_vec();
        ours.seal_index(&mut index);
        assert_eq!(ours.open_block(0, &mut index.clone()), Err(Broken));
        let length = ours.open_block(3, &mut sealed).expect("it is whole");
        assert_eq!(&sealed[..length], b"the job's memory");
    }

    #[test]
    fn a_part_whose_attempt_has_no_key_is_refused() {
        let master = MasterKey::for_tests(1);
        let (ours, wrapped) = AttemptKey::fresh(&master, JOB, FIRST).expect("random bytes");
        let part = |attempt: &str| Part {
            key: manifest::data_prefix(attempt) + "000000",
            bytes: 1,
            digest: String::new(),
        };
        let keys = BTreeMap::from([(FIRST.to_owned(), wrapped.clone())]);
        let known = PartKeys::unwrap(&master, JOB, &[part(FIRST)], &keys).expect("it fits");
        let mut bytes = b"x".to_vec();
        ours.seal_block(0, &mut bytes);
        let opener = known.of(0).expect("it is sealed");
        opener.open_block(0, &mut bytes).expect("the same key");
        let missing = PartKeys::unwrap(&master, JOB, &[part(FIRST), part(SECOND)], &keys);
        assert!(matches!(missing, Err(KeyError::NoDataKey { .. })));
        // A wrapped key is bound to its job, its attempt and the key that wrapped it.
        let moved = BTreeMap::from([(SECOND.to_owned(), wrapped)]);
        for (master, job, parts, keys) in [
            (&master, JOB, part(SECOND), &moved),
            (&master, "other", part(FIRST), &keys),
            (&MasterKey::for_tests(2), JOB, part(FIRST), &keys),
        ] {
            let unwrapped = PartKeys::unwrap(master, job, &[parts], keys);
            assert!(matches!(unwrapped, Err(KeyError::Unwrap { .. })));
        }
    }

    proptest! {
        #[test]
        fn what_was_sealed_comes_back(bytes in proptest::collection::vec(any::<u8>(), 0..3000), number in any::<u32>()) {
            let key = key(JOB, FIRST);
            let mut sealed = bytes.clone();
            key.seal_block(number, &mut sealed);
            prop_assert_eq!(key.open_block(number, &mut sealed), Ok(bytes.len()));
            prop_assert_eq!(&sealed[..bytes.len()], bytes);
        }

        #[test]
        fn nothing_altered_opens(
            bytes in proptest::collection::vec(any::<u8>(), 0..300), at in any::<usize>(), bit in 0u8..8, cut in 1usize..300,
        ) {
            let key = key(JOB, FIRST);
            let mut sealed = bytes;
            key.seal_block(1, &mut sealed);
            let mut flipped = sealed.clone();
            let at = at % flipped.len();
            flipped[at] ^= 1 << bit;
            prop_assert_eq!(key.open_block(1, &mut flipped), Err(Broken));
            sealed.truncate(sealed.len().saturating_sub(cut));
            prop_assert_eq!(key.open_block(1, &mut sealed), Err(Broken), "truncated");
        }

        #[test]
        fn arbitrary_bytes_neither_open_nor_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(key(JOB, FIRST).open_block(1, &mut bytes), Err(Broken));
        }

        #[test]
        fn no_two_nonces_are_the_same(first in any::<u32>(), second in any::<u32>()) {
            let bytes = |what, number| *nonce(what, number).as_ref();
            prop_assert_eq!(first == second, bytes(What::Block, first) == bytes(What::Block, second));
            prop_assert_ne!(bytes(What::Block, first), bytes(What::Index, second));
        }
    }
}
