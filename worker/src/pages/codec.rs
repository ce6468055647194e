//! Packs blocks and unpacks them again, verified.

use std::io;

use crate::pages::BLOCK;
use crate::pages::index::{Block, Codec};

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
    pub digest: [u8; 32],
}

impl Packed {
    /// The block, once it is known where it lies.
    pub fn placed(&self, part: u32, offset: u64) -> Block {
        Block {
            part,
            offset,
            stored: u32::try_from(self.bytes.len()).expect("a block is never larger than BLOCK"),
            raw: self.raw,
            codec: self.codec.into(),
            digest: self.digest.to_vec(),
        }
    }
}

/// A compressor with its own working memory, for one thread.
pub struct Packer {
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Packer {
    /// # Errors
    /// When there is no memory for the compressor.
    pub fn new(effort: Effort) -> io::Result<Self> {
        let zstd = match effort {
            Effort::None => None,
            Effort::Zstd(level) => Some(zstd::bulk::Compressor::new(level)?),
        };
        Ok(Self { zstd })
    }

    /// Packs up to [`BLOCK`] bytes. What does not get smaller by a sixteenth is stored as it is: unpacking it at the
    /// resume would cost more than reading it.
    ///
    /// # Errors
    /// When the compressor fails, which for memory of this size means that it has none.
    pub fn pack(&mut self, raw: &[u8]) -> io::Result<Packed> {
        debug_assert!(raw.len() <= BLOCK, "a block is never larger than BLOCK");
        let compressed = match &mut self.zstd {
            Some(zstd) => Some(zstd.compress(raw)?),
            None => None,
        };
        let (bytes, codec) = match compressed {
            Some(bytes) if bytes.len() + raw.len() / 16 < raw.len() => (bytes, Codec::Zstd),
            _ => (raw.to_vec(), Codec::Raw),
        };
        let digest = *blake3::hash(&bytes).as_bytes();
        let raw = u32::try_from(raw.len()).expect("a block is never larger than BLOCK");
        Ok(Packed {
            bytes,
            raw,
            codec,
            digest,
        })
    }
}

/// Why a block's bytes are not what was stored.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error("its checksum does not match: the stored bytes were altered")]
    Altered,
    #[error("it is stored by an unknown method ({0}); a newer program wrote it")]
    UnknownCodec(i32),
    #[error("it does not unpack to what it should")]
    Unpack,
}

/// Verifies a block's stored bytes and unpacks them.
pub fn unpack(block: &Block, stored: &[u8]) -> Result<Vec<u8>, Damage> {
    if blake3::hash(stored).as_bytes()[..] != block.digest[..] {
        return Err(Damage::Altered);
    }
    let raw = match Codec::try_from(block.codec) {
        Ok(Codec::Raw) => stored.to_vec(),
        Ok(Codec::Zstd) => zstd::bulk::decompress(stored, (block.raw as usize).min(BLOCK))
            .map_err(|_| Damage::Unpack)?,
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
            let packed = Packer::new(Effort::Zstd(1))
                .expect("memory")
                .pack(&raw)
                .expect("pack");
            assert_eq!(packed.codec, codec);
            assert_eq!(
                unpack(&packed.placed(0, 0), &packed.bytes).expect("sound"),
                raw
            );
        }
    }

    #[test]
    fn no_flipped_byte_is_unpacked() {
        let packed = Packer::new(Effort::None)
            .expect("memory")
            .pack(&noise(5000))
            .expect("pack");
        for at in [0, 1, 2500, 4999] {
            let mut bytes = packed.bytes.clone();
            bytes[at] ^= 1;
            assert!(matches!(
                unpack(&packed.placed(0, 0), &bytes),
                Err(Damage::Altered)
            ));
        }
    }
}
