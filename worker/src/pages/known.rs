//! What of an app's memory is in the store already: the pages of the snapshot before, with their hashes.
//!
//! A page is the same page when it belongs to the same memory image and has the same address. Whether it still holds the
//! same bytes is told by a keyed hash of 96 bits: the key is random and secret, so that nobody who feeds data to the app
//! can prepare two pages that look the same, and twelve bytes for 4 KiB keep the whole table in memory at 0.3 % of the
//! app's size. References never chain: what is found here names the block that holds the bytes, whichever snapshot wrote
//! it.

use std::collections::HashMap;

use reprieve_core::manifest::Part;

use crate::pages::PAGE;
use crate::pages::index::{Block, File, Index, Memory, MemoryKind, Segment};

/// Our own images that hold the hashes of the memory image of this number.
const HASHES: &str = "reprieve-hashes-";

/// Snapshots smaller than this are stored whole each time: there is little to gain, and each then stands alone, so that
/// damage to one cannot reach the one before.
const WORTH_IT: u64 = 32 << 20;

/// The key of the page hashes of one job.
pub(crate) type PageKey = [u8; 32];

/// Enough of a keyed BLAKE3 to tell pages apart.
pub(crate) type PageHash = [u8; 12];

/// The hash of a page's bytes.
pub(crate) fn hash(key: &PageKey, page: &[u8]) -> PageHash {
    let whole = blake3::keyed_hash(key, page);
    *whole
        .as_bytes()
        .first_chunk()
        .expect("a whole hash is longer")
}

/// A key that nobody can guess.
///
/// # Errors
/// When the kernel gives no random bytes.
pub(crate) fn fresh_key() -> std::io::Result<PageKey> {
    let mut key = PageKey::default();
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut key)?;
    Ok(key)
}

/// The pages of an earlier snapshot, by place.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub key: PageKey,
    pub parts: Vec<Part>,
    pub blocks: Vec<Block>,
    memories: HashMap<(MemoryKind, u64), KnownMemory>,
}

#[derive(Debug, Default)]
struct KnownMemory {
    /// By address; none overlap and none hold zeros.
    runs: Vec<Run>,
    hashes: Vec<PageHash>,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    segment: Segment,
    /// Of the first page, in `hashes`.
    hash: usize,
}

/// Why the table of an earlier snapshot cannot be used. The next snapshot is then stored whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KnownError {
    #[error("it has no page hashes")]
    NoHashes,
    #[error("its page hashes do not fit its index")]
    Inconsistent,
}

impl Known {
    /// Nothing is known: every page is new.
    pub(crate) fn nothing(key: PageKey) -> Self {
        Self {
            key,
            ..Self::default()
        }
    }

    /// Whether a snapshot of which this much is stored is worth comparing with.
    pub(crate) fn is_worth_it(parts: &[Part]) -> bool {
        parts.iter().map(|part| part.bytes).sum::<u64>() >= WORTH_IT
    }

    /// The images that [`Self::new`] wants the contents of, in order.
    pub(crate) fn files(index: &Index) -> Option<Vec<&File>> {
        let file = |number| {
            let name = format!("{HASHES}{number}");
            index.files.iter().find(|file| file.name == name)
        };
        (0..index.memories.len()).map(file).collect()
    }

    /// Builds the table of a snapshot from its index and the contents of [`Self::files`]. The parts that the next one
    /// refers to may be `waste_factor` times as large as what it needs of them: beyond that, pages in the emptiest ones
    /// are not known, so that they are stored anew and those parts can be swept.
    pub(crate) fn new(
        index: &Index,
        parts: &[Part],
        hashes: Vec<Vec<u8>>,
        waste_factor: u32,
    ) -> Result<Self, KnownError> {
        let key = index
            .page_key
            .as_slice()
            .try_into()
            .map_err(|_| KnownError::NoHashes)?;
        if hashes.len() != index.memories.len() {
            return Err(KnownError::NoHashes);
        }
        let wasteful = wasteful_parts(index, parts, waste_factor);
        let mut memories = HashMap::new();
        for (memory, bytes) in index.memories.iter().zip(hashes) {
            let known = KnownMemory::new(memory, &bytes, |segment| {
                let block = segment.block().and_then(|number| index.blocks.get(number));
                block.is_some_and(|block| !wasteful[block.part as usize])
            })?;
            memories.insert((memory.kind(), memory.id), known);
        }
        Ok(Self {
            key,
            parts: parts.to_vec(),
            blocks: index.blocks.clone(),
            memories,
        })
    }

    /// Where the bytes of this page are stored, if they are the ones that this hash was made of.
    pub(crate) fn find(
        &self,
        memory: (MemoryKind, u64),
        vaddr: u64,
        hash: &PageHash,
    ) -> Option<Segment> {
        let (run, at) = self.memories.get(&memory)?.locate(vaddr)?;
        let known = &self.memories[&memory].hashes[run.hash + at];
        (known == hash).then(|| Segment {
            vaddr,
            pages: 1,
            source: run.segment.source,
            first: run.segment.first + u32::try_from(at).expect("within a run"),
        })
    }
}

impl Known {
    /// The hashes of adjacent pages that were [found](Self::find).
    pub(crate) fn copy_hashes(
        &self,
        memory: (MemoryKind, u64),
        segment: &Segment,
        into: &mut Vec<u8>,
    ) {
        let known = &self.memories[&memory];
        let (run, at) = known
            .locate(segment.vaddr)
            .expect("the segment came from here");
        // Adjacent in memory and in a block does not mean that they were one run before.
        let mut hash = run.hash + at;
        let mut left = run.segment.pages as usize - at;
        for page in 0..segment.pages {
            if left == 0 {
                let vaddr = segment.vaddr + u64::from(page) * PAGE as u64;
                let (run, at) = known.locate(vaddr).expect("the segment came from here");
                (hash, left) = (run.hash + at, run.segment.pages as usize - at);
            }
            into.extend_from_slice(&known.hashes[hash]);
            (hash, left) = (hash + 1, left - 1);
        }
    }
}

impl KnownMemory {
    fn new(
        memory: &Memory,
        bytes: &[u8],
        keep: impl Fn(&Segment) -> bool,
    ) -> Result<Self, KnownError> {
        let mut known = Self::default();
        let (hashes, rest) = bytes.as_chunks::<12>();
        let mut next = 0;
        for segment in memory
            .segments
            .iter()
            .filter(|segment| segment.block().is_some())
        {
            let run = Run {
                segment: *segment,
                hash: next,
            };
            next += segment.pages as usize;
            if keep(segment) {
                known.runs.push(run);
            }
        }
        if next != hashes.len() || !rest.is_empty() {
            return Err(KnownError::Inconsistent);
        }
        known.hashes = hashes.to_vec();
        known.runs.sort_by_key(|run| run.segment.vaddr);
        Ok(known)
    }

    fn locate(&self, vaddr: u64) -> Option<(&Run, usize)> {
        let after = self.runs.partition_point(|run| run.segment.vaddr <= vaddr);
        let run = &self.runs[after.checked_sub(1)?];
        let at = usize::try_from((vaddr - run.segment.vaddr) / PAGE as u64).ok()?;
        (vaddr < run.segment.end()).then_some((run, at))
    }
}

/// Which parts hold so little that is still needed that their pages are better stored anew: the emptiest ones, until
/// what is left is within `waste_factor`.
fn wasteful_parts(index: &Index, parts: &[Part], waste_factor: u32) -> Vec<bool> {
    let mut needed = vec![0u64; parts.len()];
    let segments = index.memories.iter().flat_map(|memory| &memory.segments);
    for segment in segments {
        let Some(block) = segment.block().map(|number| &index.blocks[number]) else {
            continue;
        };
        let raw = u64::from(block.raw).max(1);
        // A page's share of the stored block.
        needed[block.part as usize] +=
            u64::from(segment.pages) * PAGE as u64 * u64::from(block.stored) / raw;
    }
    for block in index.files.iter().flat_map(|file| &file.blocks) {
        let block = &index.blocks[*block as usize];
        needed[block.part as usize] += u64::from(block.stored);
    }
    let mut by_use: Vec<usize> = (0..parts.len()).collect();
    by_use.sort_by_key(|&part| needed[part] * 1000 / parts[part].bytes.max(1));
    let mut held: u64 = parts.iter().map(|part| part.bytes).sum();
    let mut used: u64 = needed.iter().sum();
    let mut wasteful = vec![false; parts.len()];
    for part in by_use {
        if held <= u64::from(waste_factor) * used {
            break;
        }
        wasteful[part] = true;
        held -= parts[part].bytes;
        used -= needed[part];
    }
    wasteful
}

/// What a snapshot consists of, renumbered so that it names only what it needs.
#[derive(Debug)]
pub(crate) struct Assembled {
    pub index: Index,
    pub parts: Vec<Part>,
}

/// Puts an index together from what was stored now (`parts` and `blocks`, whose numbers go on behind the known ones) and
/// what is known, and leaves out every block and part that nothing in it refers to.
pub(crate) fn assemble(
    known: &Known,
    new_parts: Vec<Part>,
    new_blocks: Vec<Block>,
    index: Index,
) -> Assembled {
    let known_parts = u32::try_from(known.parts.len()).expect("parts are few");
    let mut blocks = known.blocks.clone();
    // The first numbers are the known ones'; nothing was stored under them.
    let new = new_blocks
        .into_iter()
        .skip(blocks.len())
        .map(|block| Block {
            part: block.part + known_parts,
            ..block
        });
    blocks.extend(new);
    let parts: Vec<Part> = known.parts.iter().cloned().chain(new_parts).collect();
    let Index {
        files,
        memories,
        page_key,
        ..
    } = index;

    let mut renumbered = Renumbered::default();
    let files = files.into_iter().map(|file| File {
        blocks: file
            .blocks
            .iter()
            .map(|&number| renumbered.block(number, &blocks, &parts))
            .collect(),
        ..file
    });
    let files = files.collect();
    let memories = memories.into_iter().map(|memory| Memory {
        segments: memory
            .segments
            .iter()
            .map(|segment| match segment.block() {
                None => *segment,
                Some(_) => Segment {
                    source: renumbered.block(segment.source - 1, &blocks, &parts) + 1,
                    ..*segment
                },
            })
            .collect(),
        ..memory
    });
    let memories = memories.collect();
    let index = Index {
        blocks: renumbered.blocks,
        files,
        memories,
        page_key,
    };
    Assembled {
        index,
        parts: renumbered.parts,
    }
}

#[derive(Debug, Default)]
struct Renumbered {
    block_numbers: HashMap<u32, u32>,
    part_numbers: HashMap<u32, u32>,
    blocks: Vec<Block>,
    parts: Vec<Part>,
}

impl Renumbered {
    fn block(&mut self, old: u32, blocks: &[Block], parts: &[Part]) -> u32 {
        if let Some(&number) = self.block_numbers.get(&old) {
            return number;
        }
        let block = &blocks[old as usize];
        let part = match self.part_numbers.get(&block.part) {
            Some(&number) => number,
            None => {
                let number = u32::try_from(self.parts.len()).expect("parts are few");
                self.parts.push(parts[block.part as usize].clone());
                self.part_numbers.insert(block.part, number);
                number
            }
        };
        let number = u32::try_from(self.blocks.len()).expect("blocks have 32-bit numbers");
        self.blocks.push(Block {
            part,
            ..block.clone()
        });
        self.block_numbers.insert(old, number);
        number
    }
}

/// The hashes in such an image, in order.
pub(crate) fn hashes(image: &[u8]) -> Vec<PageHash> {
    let (hashes, _) = image.as_chunks();
    hashes.to_vec()
}

/// The name of the image that holds a memory image's hashes.
pub(crate) fn hashes_name(memory: usize) -> String {
    format!("{HASHES}{memory}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::index::Codec;

    fn part(name: &str, bytes: u64) -> Part {
        Part {
            key: name.into(),
            bytes,
            digest: name.into(),
        }
    }

    fn block(part: u32, pages: u32) -> Block {
        Block {
            part,
            offset: 0,
            stored: pages * 4096,
            raw: pages * 4096,
            codec: Codec::Raw.into(),
            digest: vec![u8::try_from(part).expect("few"); 32],
        }
    }

    fn segment(vaddr: u64, pages: u32, source: u32, first: u32) -> Segment {
        Segment {
            vaddr: vaddr * 4096,
            pages,
            source,
            first,
        }
    }

    fn memory(segments: Vec<Segment>) -> Memory {
        Memory {
            kind: MemoryKind::Process.into(),
            id: 1,
            segments,
        }
    }

    fn hashes(count: u8) -> Vec<u8> {
        (0..count).flat_map(|number| [number; 12]).collect()
    }

    const PLACE: (MemoryKind, u64) = (MemoryKind::Process, 1);

    #[test]
    fn a_page_is_found_by_its_place_and_its_bytes() {
        let index = Index {
            blocks: vec![block(0, 3)],
            memories: vec![memory(vec![
                segment(10, 2, 1, 0),
                segment(12, 5, 0, 0),
                segment(17, 1, 1, 2),
            ])],
            page_key: vec![7; 32],
            ..Index::default()
        };
        let known =
            Known::new(&index, &[part("a", 3 * 4096)], vec![hashes(3)], 2).expect("it fits");
        assert_eq!(
            known.find(PLACE, 11 * 4096, &[1; 12]),
            Some(segment(11, 1, 1, 1))
        );
        assert_eq!(
            known.find(PLACE, 17 * 4096, &[2; 12]),
            Some(segment(17, 1, 1, 2))
        );
        assert_eq!(known.find(PLACE, 11 * 4096, &[2; 12]), None, "other bytes");
        assert_eq!(
            known.find(PLACE, 12 * 4096, &[2; 12]),
            None,
            "a page of zeros"
        );
        assert_eq!(
            known.find(PLACE, 9 * 4096, &[0; 12]),
            None,
            "before the first"
        );
        assert_eq!(
            known.find((MemoryKind::Process, 2), 10 * 4096, &[0; 12]),
            None,
            "another process"
        );
    }

    #[test]
    fn hashes_that_do_not_fit_are_refused() {
        let index = Index {
            blocks: vec![block(0, 3)],
            memories: vec![memory(vec![segment(10, 2, 1, 0)])],
            page_key: vec![7; 32],
            ..Index::default()
        };
        for count in [1, 3] {
            assert!(
                Known::new(&index, &[part("a", 9)], vec![hashes(count)], 2).is_err(),
                "{count}"
            );
        }
        assert!(Known::new(&index, &[part("a", 9)], vec![], 2).is_err());
    }

    #[test]
    fn an_index_names_only_what_it_needs() {
        let known = Known {
            parts: vec![part("old-0", 1), part("old-1", 1), part("old-2", 1)],
            blocks: vec![block(0, 4), block(1, 4), block(2, 4)],
            ..Known::default()
        };
        let mut new_blocks = vec![Block::default(); 3];
        new_blocks.extend([Block::default(), block(0, 4)]);
        let index = Index {
            files: vec![File {
                name: "f".into(),
                size: 4 * 4096,
                blocks: vec![4],
            }],
            memories: vec![memory(vec![
                segment(0, 4, 3, 0),
                segment(9, 1, 0, 0),
                segment(20, 1, 5, 3),
            ])],
            ..Index::default()
        };
        let Assembled { index, parts } =
            assemble(&known, vec![part("new-0", 1)], new_blocks, index);
        let names: Vec<&str> = parts.iter().map(|part| part.key.as_str()).collect();
        assert_eq!(names, ["new-0", "old-2"]);
        assert_eq!(index.files[0].blocks, [0]);
        assert_eq!(
            index.memories[0].segments,
            [
                segment(0, 4, 2, 0),
                segment(9, 1, 0, 0),
                segment(20, 1, 1, 3)
            ]
        );
        assert_eq!(
            index
                .blocks
                .iter()
                .map(|block| block.part)
                .collect::<Vec<_>>(),
            [0, 1]
        );
    }

    #[test]
    fn pages_in_mostly_dead_parts_are_stored_anew() {
        let index = Index {
            blocks: vec![block(0, 64), block(1, 64)],
            memories: vec![memory(vec![segment(0, 1, 1, 0), segment(100, 60, 2, 0)])],
            page_key: vec![7; 32],
            ..Index::default()
        };
        let parts = [part("dead", 64 * 4096), part("live", 64 * 4096)];
        assert_eq!(wasteful_parts(&index, &parts, 2), [true, false]);
        assert_eq!(wasteful_parts(&index, &parts, 3), [false, false]);
        let known = Known::new(&index, &parts, vec![hashes(61)], 2).expect("it fits");
        assert_eq!(known.find(PLACE, 0, &[0; 12]), None);
        assert_eq!(
            known.find(PLACE, 100 * 4096, &[1; 12]),
            Some(segment(100, 1, 2, 0))
        );
    }
}
