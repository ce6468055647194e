//! Packs blocks and unpacks them again, verified.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use zstd::zstd_safe::compress_bound;

use crate::pages::BLOCK;
use crate::pages::index::{Block, Codec};
use crate::pages::seal::{AttemptKey, Broken, TAG};

/// How hard to try to make blocks smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Store as is.
    None,
    /// zstd at this level. Levels above 2 cost twice the time for 5 % of the size on real memory (measured).
    Zstd(i32),
}

/// A block that was packed and not yet placed in a part.
#[derive(Debug)]
pub struct Packed {
    pub bytes: Vec<u8>,
    /// Bytes before packing.
    pub raw: u32,
    pub codec: Codec,
    /// Of `bytes`; empty when they are sealed.
    pub digest: Vec<u8>,
    /// Unique in the attempt.
    pub number: u32,
}

impl Packed {
    /// The block, once it is known where it lies.
    pub fn placed(&self, part: u32, offset: u64) -> Block {
        Block {
            part,
            offset,
            stored: u32::try_from(self.bytes.len()).expect("a block is hardly larger than BLOCK"),
            raw: self.raw,
            codec: self.codec.into(),
            digest: self.digest.clone(),
            // What is not sealed does not depend on it.
            number: if self.digest.is_empty() {
                self.number
            } else {
                0
            },
        }
    }
}

/// A compressor with its own working memory, for one thread.
pub struct Packer {
    zstd: Option<zstd::bulk::Compressor<'static>>,
    key: Option<Arc<AttemptKey>>,
}

impl Packer {
    /// # Errors
    /// When there is no memory for the compressor.
    pub fn new(effort: Effort, key: Option<Arc<AttemptKey>>) -> io::Result<Self> {
        let zstd = match effort {
            Effort::None => None,
            Effort::Zstd(level) => Some(zstd::bulk::Compressor::new(level)?),
        };
        Ok(Self { zstd, key })
    }

    /// Packs up to [`BLOCK`] bytes as the block of this number, and seals them if there is a key. What does not get smaller
    /// by a sixteenth is stored as it is: unpacking it at the resume would cost more than reading it.
    ///
    /// Nothing is copied and no memory is taken if it can be avoided, which costs as much as sealing: `raw` is empty
    /// afterwards and has room for the next block, and `spare` is a buffer that is not needed elsewhere, best with [`room`]
    /// for any block; one of the two is what was packed.
    ///
    /// No number may be given twice in one attempt ([`crate::pages::seal`]).
    ///
    /// # Errors
    /// When the compressor fails, which for memory of this size means that it has none.
    pub fn pack(
        &mut self,
        number: u32,
        raw: &mut Vec<u8>,
        mut spare: Vec<u8>,
    ) -> io::Result<Packed> {
        debug_assert!(raw.len() <= BLOCK, "a block is never larger than BLOCK");
        spare.clear();
        let length = raw.len();
        if let Some(zstd) = &mut self.zstd {
            spare.reserve(compress_bound(length) + TAG);
            zstd.compress_to_buffer(raw, &mut spare)?;
        }
        let (mut bytes, codec) = match self.zstd {
            Some(_) if spare.len() + length / 16 < length => {
                raw.clear();
                (spare, Codec::Zstd)
            }
            _ => {
                spare.clear();
                (std::mem::replace(raw, spare), Codec::Raw)
            }
        };
        let digest = match &self.key {
            Some(key) => {
                key.seal_block(number, &mut bytes);
                Vec::new()
            }
            None => blake3::hash(&bytes).as_bytes().to_vec(),
        };
        Ok(Packed {
            bytes,
            raw: u32::try_from(length).expect("a block is never larger than BLOCK"),
            codec,
            digest,
            number,
        })
    }
}

/// The capacity of a buffer in which a block finds room, however it is packed and sealed.
pub(crate) fn room() -> usize {
    compress_bound(BLOCK) + TAG
}

/// Why a block's bytes are not what was stored.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error("its checksum does not match: the stored bytes were altered")]
    Altered,
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error("it is stored by an unknown method ({0}); a newer program wrote it")]
    UnknownCodec(i32),
    #[error("it does not unpack to what it should")]
    Unpack,
}

/// Verifies a block's stored bytes, opens them with `key` if they are sealed, and unpacks them. What it takes is bounded by
/// what the index says of the block, and that by the size of a block.
pub fn unpack(
    block: &Block,
    mut stored: BytesMut,
    key: Option<&AttemptKey>,
) -> Result<Bytes, Damage> {
    match key {
        Some(key) => {
            let length = key.open_block(block.number, &mut stored)?;
            stored.truncate(length);
        }
        None if blake3::hash(&stored).as_bytes()[..] != block.digest[..] => {
            return Err(Damage::Altered);
        }
        None => {}
    }
    let raw = match Codec::try_from(block.codec) {
        Ok(Codec::Raw) => stored.freeze(),
        Ok(Codec::Zstd) => zstd::bulk::decompress(&stored, (block.raw as usize).min(BLOCK))
            .map_err(|_| Damage::Unpack)?
            .into(),
        Err(_) => return Err(Damage::UnknownCodec(block.codec)),
    };
    if raw.len() == block.raw as usize {
        Ok(raw)
    } else {
        Err(Damage::Unpack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::MasterKey;

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn text_shrinks_noise_does_not_and_both_come_back() {
        let text = b"the same line again\n".repeat(BLOCK / 20);
        for (raw, codec) in [
            (text, Codec::Zstd),
            (noise(BLOCK), Codec::Raw),
            (Vec::new(), Codec::Raw),
        ] {
            let packed = Packer::new(Effort::Zstd(1), None)
                .expect("memory")
                .pack(0, &mut raw.clone(), Vec::new())
                .expect("pack");
            assert_eq!(packed.codec, codec);
            assert_eq!(
                unpack(&packed.placed(0, 0), packed.bytes[..].into(), None).expect("sound"),
                raw
            );
        }
    }

    #[test]
    fn sealed_blocks_unpack_in_their_own_place_only() {
        let master = MasterKey::for_tests(1);
        let key = |attempt| {
            let fresh = AttemptKey::fresh(&master, "job", attempt);
            Arc::new(fresh.expect("random bytes").0)
        };
        let (key, other) = (
            key("01JD0000000000000000000001"),
            key("01JD0000000000000000000002"),
        );
        let mut packer = Packer::new(Effort::Zstd(1), Some(Arc::clone(&key))).expect("memory");
        // As large as they get: the tag must find room.
        let contents = [
            noise(BLOCK),
            b"the same line again\n".repeat(100),
            noise(5000),
        ];
        let packed: Vec<Packed> = (5..)
            .zip(&contents)
            .map(|(number, raw)| {
                packer
                    .pack(number, &mut raw.clone(), Vec::new())
                    .expect("pack")
            })
            .collect();
        let open = |at: usize, stored: &[u8], key| {
            unpack(&packed[at].placed(0, 0), stored.into(), Some(key))
        };
        for (at, raw) in contents.iter().enumerate() {
            let stored = &packed[at].bytes;
            assert_eq!(open(at, stored, &*key).expect("sound"), *raw);
            let swapped = &packed[(at + 1) % 3].bytes;
            for (what, opened) in [
                ("swapped", open(at, swapped, &*key)),
                (
                    "truncated tag",
                    open(at, &stored[..stored.len() - 1], &*key),
                ),
                ("nothing", open(at, &[], &*key)),
                ("another attempt", open(at, stored, &*other)),
            ] {
                assert!(matches!(opened, Err(Damage::Broken(_))), "{what}");
            }
            // The seal may not be taken off either.
            let unsealed = unpack(&packed[at].placed(0, 0), stored[..].into(), None);
            assert!(matches!(unsealed, Err(Damage::Altered)));
        }
    }

    #[test]
    fn what_unpacks_to_more_than_it_says_is_refused_before_it_takes_memory() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).expect("pack");
        for raw in [1, 4096, u32::try_from(BLOCK).expect("small"), u32::MAX] {
            let block = Block {
                stored: u32::try_from(bomb.len()).expect("small"),
                raw,
                codec: Codec::Zstd.into(),
                digest: blake3::hash(&bomb).as_bytes().to_vec(),
                ..Block::default()
            };
            assert!(
                matches!(unpack(&block, bomb[..].into(), None), Err(Damage::Unpack)),
                "{raw}"
            );
        }
    }

    #[test]
    fn no_flipped_byte_is_unpacked() {
        let packed = Packer::new(Effort::None, None)
            .expect("memory")
            .pack(0, &mut noise(5000), Vec::new())
            .expect("pack");
        for at in [0, 1, 2500, 4999] {
            let mut bytes = packed.bytes.clone();
            bytes[at] ^= 1;
            assert!(matches!(
                unpack(&packed.placed(0, 0), bytes[..].into(), None),
                Err(Damage::Altered)
            ));
        }
    }
}
