//! Hashes that tell whether a page still holds the bytes that it held before.
//!
//! They are keyed: the key is random and secret, so that nobody who feeds data to the app can prepare two pages that
//! look the same, and the store learns nothing from equality. Of a job that is sealed, key and hashes are sealed in the
//! store, and a universal hash will do, which modern processors make three times as fast as any other: the tag of
//! AES-256-GCM over the page, always with the same nonce. What a repeated nonce gives away needs the tags to be seen;
//! two different pages have the same 96 bits of tag with a probability below 2^-87. Of a job that is not sealed, whoever
//! reads the store has the key, so that only a hash that withstands somebody who knows it will do: BLAKE3.

use std::fmt;
use std::io;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::keys::random;
use crate::pages::PAGE;

/// Enough of a keyed hash to tell pages apart: twelve bytes for 4 KiB keep the whole table in memory at 0.3 % of the
/// app's size.
pub(crate) type PageHash = [u8; 12];

/// What stands before a key of AES-256-GCM in an index.
const GCM: u8 = 1;

/// The key of the page hashes of one job.
pub(crate) enum PageKey {
    Blake3([u8; 32]),
    Gcm([u8; 32], Box<LessSafeKey>),
}

impl PageKey {
    /// A key that nobody can guess.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub(crate) fn fresh(is_sealed: bool) -> io::Result<Self> {
        let mut key = [0; 32];
        random(&mut key)?;
        Ok(if is_sealed {
            Self::gcm(key)
        } else {
            Self::Blake3(key)
        })
    }

    fn gcm(key: [u8; 32]) -> Self {
        let unbound = UnboundKey::new(&AES_256_GCM, &key).expect("the length is right");
        Self::Gcm(key, Box::new(LessSafeKey::new(unbound)))
    }

    /// As it stands in an index; nothing if that is no key.
    pub(crate) fn from_index(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [GCM, key @ ..] if key.len() == 32 => Some(Self::gcm(key.try_into().ok()?)),
            key => Some(Self::Blake3(key.try_into().ok()?)),
        }
    }

    /// For the index.
    pub(crate) fn to_index(&self) -> Vec<u8> {
        match self {
            Self::Blake3(key) => key.to_vec(),
            Self::Gcm(key, _) => [&[GCM], &key[..]].concat(),
        }
    }

    /// The hash of a page's bytes.
    pub(crate) fn hash(&self, page: &[u8]) -> PageHash {
        match self {
            Self::Blake3(key) => first(blake3::keyed_hash(key, page).as_bytes()),
            Self::Gcm(_, key) => {
                let mut scratch = [0; PAGE];
                scratch.copy_from_slice(page);
                let nonce = Nonce::assume_unique_for_key([0; 12]);
                let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut scratch);
                first(
                    tag.expect("a page is far below the limit of the cipher")
                        .as_ref(),
                )
            }
        }
    }
}

fn first(whole: &[u8]) -> PageHash {
    *whole.first_chunk().expect("a whole hash is longer")
}

impl Default for PageKey {
    /// For tables that know nothing.
    fn default() -> Self {
        Self::Blake3([0; 32])
    }
}

impl fmt::Debug for PageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Blake3(_) => "PageKey(Blake3)",
            Self::Gcm(..) => "PageKey(Gcm)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: u64) -> Vec<u8> {
        number.to_ne_bytes().repeat(PAGE / 8)
    }

    #[test]
    fn equal_pages_have_equal_hashes_and_others_do_not() {
        for is_sealed in [false, true] {
            let key = PageKey::fresh(is_sealed).expect("random bytes");
            let stored = PageKey::from_index(&key.to_index()).expect("it is a key");
            let other = PageKey::fresh(is_sealed).expect("random bytes");
            let hash = key.hash(&page(1));
            assert_eq!(hash, stored.hash(&page(1)));
            assert_ne!(hash, key.hash(&page(2)));
            assert_ne!(hash, other.hash(&page(1)));
            // Each bit counts.
            for bit in [0, 7, 8 * 2048 + 3, 8 * PAGE - 1] {
                let mut flipped = page(1);
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(hash, key.hash(&flipped), "{bit}");
            }
        }
    }

    #[test]
    fn what_is_no_key_is_none() {
        for bytes in [&[][..], &[1; 16], &[2; 33], &[1; 34]] {
            assert!(PageKey::from_index(bytes).is_none(), "{bytes:?}");
        }
    }
}
