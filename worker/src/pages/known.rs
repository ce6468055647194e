//! What of an app's memory is in the store already: the pages of the snapshot before, with their hashes.
//!
//! A page is the same page when it belongs to the same memory image and has the same address. Whether it still holds the
//! same bytes is told by its [hash](crate::pages::fingerprint). References never chain: what is found here names the block
//! that holds the bytes, whichever snapshot wrote it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use reprieve_core::manifest::{self, Part};

use crate::pages::PAGE;
use crate::pages::fingerprint::{PageHash, PageKey};
use crate::pages::index::{Block, File, Index, Memory, MemoryKind, Segment};
use crate::pages::preserved::{Extent, Preserved};

/// Our own images that hold the hashes of the memory image of this number.
const HASHES: &str = "reprieve-hashes-";

/// Snapshots smaller than this are stored whole each time: there is little to gain, and each then stands alone, so that
/// damage to one cannot reach the one before.
const WORTH_IT: u64 = 32 << 20;

/// The pages of an earlier snapshot, by place.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub key: PageKey,
    pub parts: Vec<Part>,
    pub blocks: Vec<Block>,
    /// Of the attempts that wrote the parts, wrapped as in their manifest.
    pub keys: BTreeMap<String, String>,
    memories: HashMap<(MemoryKind, u64), KnownMemory>,
    /// The app's files, but for those whose contents had better be stored anew.
    files: HashMap<Vec<u8>, Preserved>,
}

#[derive(Debug, Default)]
pub(crate) struct KnownMemory {
    /// By address; none overlap. Those without a source were seen and are not stored.
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
        let key = PageKey::from_index(&index.page_key).ok_or(KnownError::NoHashes)?;
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
            keys: BTreeMap::new(),
            memories,
            files: known_files(index, &wasteful),
        })
    }

    /// The app's file at this path, as it is in the store.
    pub(crate) fn preserved(&self, path: &[u8]) -> Option<&Preserved> {
        self.files.get(path)
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
        (known == hash && run.segment.source > 0).then(|| Segment {
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

/// What seeding adds between two snapshots.
impl Known {
    /// The hash of the page as it was last seen, and whether that is in the store.
    pub(crate) fn seen(&self, memory: (MemoryKind, u64), vaddr: u64) -> Option<(PageHash, bool)> {
        let memory = self.memories.get(&memory)?;
        let (run, at) = memory.locate(vaddr)?;
        Some((memory.hashes[run.hash + at], run.segment.source > 0))
    }

    /// Forgets memories that are not there any more.
    pub(crate) fn retain(&mut self, is_there: impl Fn(&(MemoryKind, u64)) -> bool) {
        self.memories.retain(|memory, _| is_there(memory));
    }

    /// Takes over what was newly seen of a memory, and forgets what is not in `mapped` any more.
    pub(crate) fn lay_over(
        &mut self,
        memory: (MemoryKind, u64),
        fresh: KnownMemory,
        mapped: Option<&[Range<u64>]>,
    ) {
        let before = self.memories.remove(&memory).unwrap_or_default();
        self.memories.insert(memory, before.overlaid(fresh, mapped));
    }
}

impl KnownMemory {
    /// Adds a page behind all others.
    pub(crate) fn push(&mut self, vaddr: u64, hash: PageHash, source: u32, first: u32) {
        let segment = Segment {
            vaddr,
            pages: 1,
            source,
            first,
        };
        match self.runs.last_mut() {
            Some(last) if last.segment.continues_as(&segment) => last.segment.pages += 1,
            _ => self.runs.push(Run {
                segment,
                hash: self.hashes.len(),
            }),
        }
        self.hashes.push(hash);
    }

    /// The same, with pages in blocks from this number on counting as seen only.
    pub(crate) fn stored_below(mut self, blocks: usize) -> Self {
        for run in &mut self.runs {
            if run.segment.block().is_some_and(|block| block >= blocks) {
                (run.segment.source, run.segment.first) = (0, 0);
            }
        }
        self
    }

    /// Address, hash, source and place of each page, by address.
    fn pages(&self) -> impl Iterator<Item = (u64, PageHash, u32, u32)> {
        self.runs.iter().flat_map(|run| {
            (0..run.segment.pages).map(|page| {
                let first = match run.segment.source {
                    0 => 0,
                    _ => run.segment.first + page,
                };
                let vaddr = run.segment.vaddr + u64::from(page) * PAGE as u64;
                let hash = self.hashes[run.hash + page as usize];
                (vaddr, hash, run.segment.source, first)
            })
        })
    }

    fn overlaid(self, fresh: Self, mapped: Option<&[Range<u64>]>) -> Self {
        if self.runs.is_empty() {
            return fresh;
        }
        let mut merged = Self::default();
        let mut new = fresh.pages().peekable();
        let mut mapped = mapped.map(|ranges| ranges.iter().peekable());
        for old in self.pages() {
            if let Some(ranges) = &mut mapped {
                while ranges.next_if(|range| range.end <= old.0).is_some() {}
                if ranges.peek().is_none_or(|range| old.0 < range.start) {
                    continue;
                }
            }
            while let Some((vaddr, hash, source, first)) = new.next_if(|new| new.0 < old.0) {
                merged.push(vaddr, hash, source, first);
            }
            let (vaddr, hash, source, first) = new.next_if(|new| new.0 == old.0).unwrap_or(old);
            merged.push(vaddr, hash, source, first);
        }
        for (vaddr, hash, source, first) in new {
            merged.push(vaddr, hash, source, first);
        }
        merged
    }

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

fn known_files(index: &Index, wasteful: &[bool]) -> HashMap<Vec<u8>, Preserved> {
    let is_kept = |file: &&Preserved| {
        let part = |extent: &Extent| index.blocks[extent.block as usize].part as usize;
        file.is_regular() && !file.extents.iter().any(|extent| wasteful[part(extent)])
    };
    let kept = index.preserved.iter().filter(is_kept);
    kept.map(|file| (file.path.clone(), file.clone())).collect()
}

/// Which parts hold so little that is still needed that their pages are better stored anew: the emptiest ones, until
/// what is left is within `waste_factor`, with an eighth to spare for what changes until the next one is taken.
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
    for extent in index.preserved.iter().flat_map(|file| &file.extents) {
        let block = &index.blocks[extent.block as usize];
        needed[block.part as usize] +=
            u64::from(extent.bytes) * u64::from(block.stored) / u64::from(block.raw).max(1);
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
        if 8 * held <= 7 * u64::from(waste_factor) * used {
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

/// The wrapped data keys of the attempts that wrote these parts.
pub(crate) fn keys_of(parts: &[Part], all: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let attempts = parts
        .iter()
        .filter_map(|part| manifest::data_attempt(&part.key));
    attempts
        .filter_map(|attempt| Some((attempt.to_owned(), all.get(attempt)?.clone())))
        .collect()
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
        mut preserved,
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
    for extent in preserved.iter_mut().flat_map(|file| &mut file.extents) {
        extent.block = renumbered.block(extent.block, &blocks, &parts);
    }
    let index = Index {
        blocks: renumbered.blocks,
        files,
        memories,
        page_key,
        preserved,
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

/// Whether an image of this name holds hashes.
pub(crate) fn is_hashes(name: &str) -> bool {
    name.starts_with(HASHES)
}

/// The name of the image that holds a memory image's hashes.
pub(crate) fn hashes_name(memory: usize) -> String {
    format!("{HASHES}{memory}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use proptest::prelude::*;

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
            number: 0,
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

    /// A page of the model: its hash, and where it is stored if it is.
    type Page = (u8, u32, u32);

    fn layer() -> impl Strategy<Value = BTreeMap<u64, Page>> {
        let page =
            (any::<u8>(), 0u32..4, 0u32..64).prop_map(|(hash, source, first)| match source {
                0 => (hash, 0, 0),
                _ => (hash, source, first),
            });
        proptest::collection::btree_map(0u64..200, page, 0..120)
    }

    fn laid(layer: &BTreeMap<u64, Page>) -> KnownMemory {
        let mut memory = KnownMemory::default();
        for (page, (hash, source, first)) in layer {
            memory.push(page * PAGE as u64, [*hash; 12], *source, *first);
        }
        memory
    }

    proptest! {
        /// Layers of seeding against a map from page to page.
        #[test]
        fn the_table_is_the_newest_of_its_layers(
            layers in proptest::collection::vec((layer(), proptest::option::of(0u64..200)), 1..5),
            stored in 0usize..4,
        ) {
            let mut known = Known::nothing(PageKey::Blake3([1; 32]));
            let mut model: BTreeMap<u64, Page> = BTreeMap::new();
            for (layer, unmapped_from) in layers {
                let mapped = unmapped_from.map(|from| {
                    let end = from * PAGE as u64;
                    vec![0..end / 2 / PAGE as u64 * PAGE as u64, end / 2 / PAGE as u64 * PAGE as u64..end]
                });
                if let Some(from) = unmapped_from && !model.is_empty() {
                    model.retain(|page, _| *page < from);
                }
                for (page, (hash, source, first)) in &layer {
                    let is_stored = *source > 0 && (*source as usize) <= stored;
                    let place = if is_stored { (*source, *first) } else { (0, 0) };
                    model.insert(*page, (*hash, place.0, place.1));
                }
                known.lay_over(PLACE, laid(&layer).stored_below(stored), mapped.as_deref());
            }
            for page in 0..200u64 {
                let vaddr = page * PAGE as u64;
                let expected = model.get(&page);
                let seen = known.seen(PLACE, vaddr);
                prop_assert_eq!(seen, expected.map(|(hash, source, _)| ([*hash; 12], *source > 0)));
                let Some((hash, source, first)) = expected else { continue };
                let found = known.find(PLACE, vaddr, &[*hash; 12]);
                let is_stored = *source > 0;
                let place = is_stored.then_some(Segment { vaddr, pages: 1, source: *source, first: *first });
                prop_assert_eq!(found, place);
                prop_assert_eq!(known.find(PLACE, vaddr, &[hash.wrapping_add(1); 12]), None);
                if let Some(segment) = found {
                    let mut hashes = Vec::new();
                    known.copy_hashes(PLACE, &segment, &mut hashes);
                    prop_assert_eq!(hashes, vec![*hash; 12]);
                }
            }
        }
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
