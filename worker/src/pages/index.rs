//! The index of a snapshot: where each page of each memory image, and each byte of CRIU's other images, is stored.
//!
//! Stored as one zstd-compressed protobuf message, named and proven by the manifest. Numbers of blocks are positions in
//! `blocks`; numbers of parts are positions in the manifest's list. docs/format.md describes the same for strangers.

use crate::pages::preserved::{self, Preserved};
use crate::pages::seal::{AttemptKey, Broken, TAG};
use crate::pages::{BLOCK, PAGE};

/// The largest index that is read, in bytes before compression: enough for 4 TiB of densely written memory.
pub const SIZE_LIMIT: usize = 1 << 30;

/// How a block's bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Codec {
    Raw = 0,
    Zstd = 1,
}

/// A run of stored bytes that is read, verified and unpacked as a whole. One without bytes is a number left unused.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Block {
    #[prost(uint32, tag = "1")]
    pub part: u32,
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    /// Bytes in the part.
    #[prost(uint32, tag = "3")]
    pub stored: u32,
    /// Bytes after unpacking.
    #[prost(uint32, tag = "4")]
    pub raw: u32,
    #[prost(enumeration = "Codec", tag = "5")]
    pub codec: i32,
    /// BLAKE3 of the stored bytes; empty when they are sealed, which proves more.
    #[prost(bytes = "vec", tag = "6")]
    pub digest: Vec<u8>,
    /// The number that it is sealed with, in the attempt that wrote its part.
    #[prost(uint32, tag = "7")]
    pub number: u32,
}

/// One of CRIU's images other than memory, or one of our own (`reprieve-*`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct File {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint64, tag = "2")]
    pub size: u64,
    #[prost(uint32, repeated, tag = "3")]
    pub blocks: Vec<u32>,
}

/// Whose memory an image holds, in the numbers of CRIU's page server protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum MemoryKind {
    Unknown = 0,
    Process = 1,
    Shared = 2,
}

/// Adjacent pages from one place.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Segment {
    /// Virtual address, or offset in a shared memory object, in bytes.
    #[prost(uint64, tag = "1")]
    pub vaddr: u64,
    #[prost(uint32, tag = "2")]
    pub pages: u32,
    /// 0: the pages hold zeros. Otherwise one more than the number of the block that holds them.
    #[prost(uint32, tag = "3")]
    pub source: u32,
    /// The first page's position in the block, in pages.
    #[prost(uint32, tag = "4")]
    pub first: u32,
}

impl Segment {
    /// The block that holds the pages, unless they are zeros.
    pub fn block(&self) -> Option<usize> {
        self.source.checked_sub(1).map(|block| block as usize)
    }

    pub(crate) fn end(&self) -> u64 {
        self.vaddr + u64::from(self.pages) * PAGE as u64
    }

    /// Whether `next` goes on exactly where this one ends, in memory and in the store.
    pub(crate) fn continues_as(&self, next: &Self) -> bool {
        let same_source = self.source == next.source
            && (self.source == 0 || self.first + self.pages == next.first);
        self.end() == next.vaddr && same_source
    }
}

/// One memory image, in the order in which CRIU wants it back.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Memory {
    #[prost(enumeration = "MemoryKind", tag = "1")]
    pub kind: i32,
    /// CRIU's number: a process id or the number of a shared memory object.
    #[prost(uint64, tag = "2")]
    pub id: u64,
    #[prost(message, repeated, tag = "3")]
    pub segments: Vec<Segment>,
}

/// The whole index.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Index {
    #[prost(message, repeated, tag = "1")]
    pub blocks: Vec<Block>,
    #[prost(message, repeated, tag = "2")]
    pub files: Vec<File>,
    #[prost(message, repeated, tag = "3")]
    pub memories: Vec<Memory>,
    /// The key of the page hashes in `reprieve-hashes-N`, N being a position in `memories`: twelve bytes for each page that
    /// is not zero, in order.
    #[prost(bytes = "vec", tag = "4")]
    pub page_key: Vec<u8>,
    /// The app's own files, by path.
    #[prost(message, repeated, tag = "5")]
    pub preserved: Vec<Preserved>,
}

/// Why an index cannot be used although its digest is right.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error("the index cannot be unpacked")]
    Unpack(#[source] std::io::Error),
    #[error("the index is not understood")]
    Decode(#[from] prost::DecodeError),
    #[error("the index contradicts itself: {0}")]
    Inconsistent(String),
    #[error("the index cannot be opened")]
    Broken(#[from] Broken),
}

impl Index {
    /// Packs the index for storing, and seals it if there is a key.
    ///
    /// # Errors
    /// When the index is larger than [`SIZE_LIMIT`] or the compressor has no memory.
    pub fn to_bytes(&self, key: Option<&AttemptKey>) -> std::io::Result<Vec<u8>> {
        let plain = prost::Message::encode_to_vec(self);
        if plain.len() > SIZE_LIMIT {
            // Committed, it could not be read again.
            return Err(std::io::Error::other(format!(
                "the index would have {} bytes, more than is ever read; the memory is too fragmented",
                plain.len()
            )));
        }
        let mut packed = zstd::bulk::compress(&plain, 1)?;
        if let Some(key) = key {
            key.seal_index(&mut packed);
        }
        Ok(packed)
    }

    /// Opens an index if it is sealed, unpacks it and checks that nothing in it points outside of what it describes.
    pub fn from_bytes(
        mut bytes: Vec<u8>,
        parts: usize,
        key: Option<&AttemptKey>,
    ) -> Result<Self, IndexError> {
        if let Some(key) = key {
            key.open_index(&mut bytes)?;
        }
        let mut decoder =
            zstd::stream::read::Decoder::new(bytes.as_slice()).map_err(IndexError::Unpack)?;
        let mut plain = Vec::new();
        let limit = SIZE_LIMIT as u64;
        std::io::Read::read_to_end(
            &mut std::io::Read::take(&mut decoder, limit + 1),
            &mut plain,
        )
        .map_err(IndexError::Unpack)?;
        if plain.len() > SIZE_LIMIT {
            return Err(IndexError::Inconsistent(format!(
                "it is larger than {SIZE_LIMIT} bytes"
            )));
        }
        let index = <Self as prost::Message>::decode(plain.as_slice())?;
        index
            .check(parts, key.is_some())
            .map_err(IndexError::Inconsistent)?;
        Ok(index)
    }

    fn check(&self, parts: usize, is_sealed: bool) -> Result<(), String> {
        let (longest, digest) = match is_sealed {
            true => (BLOCK + TAG, 0),
            false => (BLOCK, 32),
        };
        for (number, block) in self.blocks.iter().enumerate() {
            if block.raw == 0 {
                // A number that was taken and not used; nothing can refer to any of its bytes.
                continue;
            }
            if block.part as usize >= parts {
                return Err(format!(
                    "block {number} lies in part {}, there are {parts}",
                    block.part
                ));
            }
            if block.raw as usize > BLOCK
                || block.stored as usize > longest
                || block.digest.len() != digest
            {
                return Err(format!("block {number} has impossible sizes"));
            }
        }
        for file in &self.files {
            let raw = self
                .raw_sum(&file.blocks)
                .ok_or_else(|| format!("{} names a missing block", file.name))?;
            if raw != file.size {
                return Err(format!(
                    "{} has {} bytes, its blocks have {raw}",
                    file.name, file.size
                ));
            }
        }
        self.memories
            .iter()
            .try_for_each(|memory| self.check_memory(memory))?;
        preserved::check(&self.preserved, &self.blocks)
    }

    fn raw_sum(&self, blocks: &[u32]) -> Option<u64> {
        blocks
            .iter()
            .map(|&block| {
                self.blocks
                    .get(block as usize)
                    .map(|block| u64::from(block.raw))
            })
            .sum()
    }

    fn check_memory(&self, memory: &Memory) -> Result<(), String> {
        if memory.kind() == MemoryKind::Unknown {
            return Err(format!("memory {} is of an unknown kind", memory.id));
        }
        for segment in &memory.segments {
            let fits = match segment.block() {
                None => true,
                Some(number) => self.blocks.get(number).is_some_and(|block| {
                    (u64::from(segment.first) + u64::from(segment.pages)) * PAGE as u64
                        <= u64::from(block.raw)
                }),
            };
            let in_range = segment
                .vaddr
                .checked_add(u64::from(segment.pages) * PAGE as u64)
                .is_some();
            if !fits
                || !in_range
                || segment.pages == 0
                || !segment.vaddr.is_multiple_of(PAGE as u64)
            {
                return Err(format!(
                    "memory {} has an impossible segment at {:#x}",
                    memory.id, segment.vaddr
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Index {
        Index {
            blocks: vec![Block {
                part: 0,
                offset: 0,
                stored: 100,
                raw: 3 * 4096,
                codec: Codec::Zstd.into(),
                digest: vec![1; 32],
                number: 0,
            }],
            files: vec![File {
                name: "core-1.img".into(),
                size: 3 * PAGE as u64,
                blocks: vec![0],
            }],
            memories: vec![Memory {
                kind: MemoryKind::Process.into(),
                id: 7,
                segments: vec![Segment {
                    vaddr: 4096,
                    pages: 2,
                    source: 1,
                    first: 1,
                }],
            }],
            page_key: vec![3; 32],
            preserved: Vec::new(),
        }
    }

    #[test]
    fn comes_back_as_written() {
        let index = sample();
        assert_eq!(
            Index::from_bytes(index.to_bytes(None).expect("pack"), 1, None).expect("sound"),
            index
        );
    }

    #[test]
    fn nothing_may_point_outside() {
        type Damage = fn(&mut Index);
        let damages: [(&str, Damage); 7] = [
            ("part", |index| index.blocks[0].part = 1),
            ("raw size", |index| index.blocks[0].raw = 64 * 4096 + 1),
            ("digest", |index| index.blocks[0].digest.clear()),
            ("file block", |index| index.files[0].blocks[0] = 1),
            ("file size", |index| index.files[0].size += 1),
            ("segment end", |index| {
                index.memories[0].segments[0].first = 2
            }),
            ("segment block", |index| {
                index.memories[0].segments[0].source = 2
            }),
        ];
        for (what, damage) in damages {
            let mut index = sample();
            damage(&mut index);
            let bytes = index.to_bytes(None).expect("pack");
            assert!(
                matches!(
                    Index::from_bytes(bytes, 1, None),
                    Err(IndexError::Inconsistent(_))
                ),
                "{what}"
            );
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let packed = zstd::bulk::compress(&bytes, 1).expect("pack");
            drop(Index::from_bytes(bytes, 1, None));
            drop(Index::from_bytes(packed, 1, None));
        }
    }
}
