//! The table of the files that travel with a snapshot, as it stands in the index.
//!
//! A file's bytes lie in the same blocks and parts as memory does, in pieces of up to a page. What is not in any piece is
//! zero, and becomes a hole. A table that says anything else than the one place for each byte of each file is refused as a
//! whole, before any of it is used.

use std::collections::HashMap;

use reprieve_core::preserve::{self, kind};

use crate::pages::PAGE;
use crate::pages::fingerprint::PageHash;
use crate::pages::index::Block;

/// Values of extended attributes: what the kernel takes.
const ATTRIBUTE_LIMIT: usize = 64 << 10;

/// Of one file.
const ATTRIBUTES: usize = 4096;

/// What a row of the table is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Role {
    /// A file or directory as it is to be.
    Whole = 0,
    /// A directory that is made if it is not there, and otherwise left alone.
    Implied = 1,
    /// Nothing is to be there.
    Deleted = 2,
    /// Another name of the file at `target`.
    Link = 3,
    Unknown = 4,
}

/// A moment, as the kernel has it.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Moment {
    #[prost(sint64, tag = "1")]
    pub seconds: i64,
    #[prost(uint32, tag = "2")]
    pub nanoseconds: u32,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Attribute {
    #[prost(bytes = "vec", tag = "1")]
    pub name: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// Adjacent bytes of a file that are adjacent in a block.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Extent {
    /// In the file; a multiple of a page.
    #[prost(uint64, tag = "1")]
    pub offset: u64,
    /// A multiple of a page, but for the end of the file.
    #[prost(uint32, tag = "2")]
    pub bytes: u32,
    #[prost(uint32, tag = "3")]
    pub block: u32,
    /// In the unpacked block.
    #[prost(uint32, tag = "4")]
    pub first: u32,
}

impl Extent {
    fn end(&self) -> u64 {
        self.offset + u64::from(self.bytes)
    }

    fn pages(&self) -> usize {
        (self.bytes as usize).div_ceil(PAGE)
    }
}

/// One path.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Preserved {
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    #[prost(enumeration = "Role", tag = "2")]
    pub role: i32,
    /// With the kind of file, as `st_mode` has it.
    #[prost(uint32, tag = "3")]
    pub mode: u32,
    #[prost(uint32, tag = "4")]
    pub uid: u32,
    #[prost(uint32, tag = "5")]
    pub gid: u32,
    #[prost(message, optional, tag = "6")]
    pub modified: Option<Moment>,
    #[prost(message, optional, tag = "7")]
    pub accessed: Option<Moment>,
    /// Of a regular file.
    #[prost(uint64, tag = "8")]
    pub size: u64,
    /// What a symbolic link says, or the path whose file this is another name of.
    #[prost(bytes = "vec", tag = "9")]
    pub target: Vec<u8>,
    /// Of a device node.
    #[prost(uint64, tag = "10")]
    pub device: u64,
    #[prost(message, repeated, tag = "11")]
    pub attributes: Vec<Attribute>,
    #[prost(message, repeated, tag = "12")]
    pub extents: Vec<Extent>,
    /// Twelve bytes for each page of the extents, in order.
    #[prost(bytes = "vec", tag = "13")]
    pub hashes: Vec<u8>,
}

impl Preserved {
    pub(crate) fn kind(&self) -> u32 {
        self.mode & kind::MASK
    }

    pub(crate) fn is_regular(&self) -> bool {
        self.role() == Role::Whole && self.kind() == kind::REGULAR
    }

    /// For messages.
    pub(crate) fn name(&self) -> String {
        shown(&self.path)
    }

    /// Adds a page, or the end of the file, that is stored at this place.
    pub(crate) fn push(&mut self, offset: u64, bytes: u32, place: (u32, u32), hash: &PageHash) {
        let (block, first) = place;
        self.hashes.extend_from_slice(hash);
        match self.extents.last_mut() {
            Some(last)
                if last.end() == offset
                    && last.block == block
                    && last.first + last.bytes == first =>
            {
                last.bytes += bytes;
            }
            _ => self.extents.push(Extent {
                offset,
                bytes,
                block,
                first,
            }),
        }
    }

    /// Where these bytes are stored, if the ones at this offset had the same hash.
    pub(crate) fn find(
        &self,
        pages: &Pages,
        offset: u64,
        bytes: u32,
        hash: &PageHash,
    ) -> Option<(u32, u32)> {
        let at = self
            .extents
            .partition_point(|extent| extent.offset <= offset)
            .checked_sub(1)?;
        let extent = &self.extents[at];
        let inside = offset - extent.offset;
        let length = u64::from(extent.bytes)
            .checked_sub(inside)?
            .min(PAGE as u64);
        let page = pages.0[at] + usize::try_from(inside).ok()? / PAGE;
        let known = self
            .hashes
            .get(page * hash.len()..(page + 1) * hash.len())?;
        (length == u64::from(bytes) && known == hash).then(|| {
            (
                extent.block,
                extent.first + u32::try_from(inside).expect("within an extent"),
            )
        })
    }
}

/// The position of each extent's first page among a file's hashes.
pub(crate) struct Pages(Vec<usize>);

impl Pages {
    pub(crate) fn of(file: &Preserved) -> Self {
        let mut next = 0;
        let first = |extent: &Extent| {
            let first = next;
            next += extent.pages();
            first
        };
        Self(file.extents.iter().map(first).collect())
    }
}

/// A path for messages.
pub(crate) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path)
        .chars()
        .flat_map(char::escape_debug)
        .collect()
}

/// What is wrong with a table, if anything is.
pub(crate) fn check(files: &[Preserved], blocks: &[Block]) -> Result<(), String> {
    let mut rows: HashMap<&[u8], &Preserved> = HashMap::with_capacity(files.len());
    let mut before: &[u8] = b"";
    for file in files {
        let wrong = |what: &str| Err(format!("the preserved file {} {what}", file.name()));
        if !preserve::is_plain(&file.path) {
            return wrong("has an impossible path");
        }
        if file.path.as_slice() <= before {
            return wrong("is not in its place in the table");
        }
        // A directory stands before what is in it.
        if let Some(above) = above(&file.path, &rows)
            && !(above.kind() == kind::DIRECTORY
                && matches!(above.role(), Role::Whole | Role::Implied))
            && !(above.role() == Role::Deleted && file.role() == Role::Deleted)
        {
            return wrong("lies in something that is no directory");
        }
        if let Some(what) = wrong_with(file, &rows, blocks) {
            return wrong(what);
        }
        before = &file.path;
        rows.insert(&file.path, file);
    }
    Ok(())
}

/// The closest row on the way to a path.
fn above<'a>(path: &[u8], rows: &HashMap<&[u8], &'a Preserved>) -> Option<&'a Preserved> {
    let mut path = path;
    while let Some(end) = path.iter().rposition(|&byte| byte == b'/') {
        path = &path[..end];
        if let Some(found) = rows.get(path) {
            return Some(found);
        }
    }
    None
}

fn wrong_with(
    file: &Preserved,
    rows: &HashMap<&[u8], &Preserved>,
    blocks: &[Block],
) -> Option<&'static str> {
    let is_empty = file.extents.is_empty() && file.size == 0 && file.attributes.is_empty();
    match file.role() {
        Role::Unknown => return Some("is of an unknown kind"),
        Role::Deleted => return (!is_empty).then_some("is deleted and has contents"),
        Role::Link => {
            let is_there = rows
                .get(file.target.as_slice())
                .is_some_and(|target| target.is_regular());
            return (!is_empty || !is_there).then_some("is another name of nothing");
        }
        Role::Implied if file.kind() != kind::DIRECTORY => return Some("is no directory"),
        Role::Whole | Role::Implied => {}
    }
    match file.kind() {
        kind::REGULAR => {}
        kind::LINK
            if file.target.is_empty()
                || file.target.len() > preserve::PATH_LIMIT
                || file.target.contains(&0) =>
        {
            return Some("is a link to nothing");
        }
        kind::LINK
        | kind::DIRECTORY
        | kind::FIFO
        | kind::SOCKET
        | kind::BLOCK
        | kind::CHARACTER
            if file.extents.is_empty() => {}
        _ => return Some("is of an unknown kind"),
    }
    let attribute = |attribute: &Attribute| {
        !attribute.name.is_empty()
            && attribute.name.len() <= 255
            && !attribute.name.contains(&0)
            && attribute.value.len() <= ATTRIBUTE_LIMIT
    };
    if file.attributes.len() > ATTRIBUTES || !file.attributes.iter().all(attribute) {
        return Some("has impossible attributes");
    }
    let times = [file.modified, file.accessed];
    if times
        .iter()
        .flatten()
        .any(|time| time.nanoseconds >= 1_000_000_000)
    {
        return Some("has an impossible time");
    }
    wrong_with_contents(file, blocks).then_some("has impossible contents")
}

fn wrong_with_contents(file: &Preserved, blocks: &[Block]) -> bool {
    let mut end = 0;
    let mut pages = 0;
    for extent in &file.extents {
        let in_block = blocks.get(extent.block as usize).is_some_and(|block| {
            u64::from(extent.first) + u64::from(extent.bytes) <= u64::from(block.raw)
        });
        let fits = extent
            .offset
            .checked_add(u64::from(extent.bytes))
            .is_some_and(|end| end <= file.size);
        if !in_block || !fits || extent.bytes == 0 || extent.offset < end {
            return true;
        }
        let is_whole = |bytes: u64| bytes.is_multiple_of(PAGE as u64);
        if !is_whole(extent.offset) || !(is_whole(extent.end()) || extent.end() == file.size) {
            return true;
        }
        end = extent.end();
        pages += extent.pages();
    }
    i64::try_from(file.size).is_err() || file.hashes.len() != pages * size_of::<PageHash>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block() -> Block {
        Block {
            raw: 64 * 4096,
            ..Block::default()
        }
    }

    fn row(path: &str, mode: u32) -> Preserved {
        Preserved {
            path: path.into(),
            mode,
            ..Preserved::default()
        }
    }

    fn file(path: &str) -> Preserved {
        let mut file = row(path, kind::REGULAR | 0o644);
        file.size = 4096 + 10;
        file.push(0, 4096, (0, 5), &[1; 12]);
        file.push(4096, 10, (0, 5 + 4096), &[2; 12]);
        file
    }

    fn table() -> Vec<Preserved> {
        let mut link = row("/d/name", 0);
        link.role = Role::Link.into();
        link.target = b"/d/file".to_vec();
        let mut symbolic = row("/d/symbolic", kind::LINK | 0o777);
        symbolic.target = b"../../anywhere".to_vec();
        let mut gone = row("/gone", 0);
        gone.role = Role::Deleted.into();
        let mut gone_too = row("/gone/too", 0);
        gone_too.role = Role::Deleted.into();
        vec![
            row("/d", kind::DIRECTORY | 0o755),
            row("/d/fifo", kind::FIFO | 0o600),
            file("/d/file"),
            link,
            symbolic,
            gone,
            gone_too,
        ]
    }

    #[test]
    fn a_table_is_taken_and_one_that_contradicts_itself_is_refused() {
        assert_eq!(check(&table(), &[block()]), Ok(()));
        type Damage = fn(&mut Vec<Preserved>);
        let damages: [(&str, Damage); 19] = [
            ("relative", |table| table[0].path = b"d".to_vec()),
            ("traversal", |table| {
                table[6].path = b"/gone/../etc/passwd".to_vec()
            }),
            ("order", |table| table.swap(0, 1)),
            ("twice", |table| table[1].path = b"/d".to_vec()),
            ("in a file", |table| table[0].mode = kind::REGULAR),
            ("in a link", |table| {
                table[0].mode = kind::LINK;
                table[0].target = b"/etc".to_vec();
            }),
            ("in what is gone", |table| {
                table[0].role = Role::Deleted.into()
            }),
            ("kind", |table| table[1].mode = 0),
            ("role", |table| table[1].role = Role::Unknown.into()),
            ("other name of a directory", |table| {
                table[3].target = b"/d".to_vec()
            }),
            ("other name of nothing", |table| {
                table[3].target = b"/etc/shadow".to_vec()
            }),
            ("empty link", |table| table[4].target.clear()),
            ("block", |table| table[2].extents[0].block = 1),
            ("end of the block", |table| {
                table[2].extents[0].first = 64 * 4096 - 5
            }),
            ("end of the file", |table| table[2].size = 4096),
            ("overlap", |table| {
                let extent = table[2].extents[0];
                table[2].extents.push(extent);
                table[2].hashes.extend([0; 24]);
            }),
            ("hashes", |table| table[2].hashes.truncate(12)),
            ("contents of a fifo", |table| {
                table[1].extents = table[2].extents.clone()
            }),
            ("attribute", |table| {
                table[0].attributes.push(Attribute {
                    name: b"user.a".to_vec(),
                    value: vec![0; ATTRIBUTE_LIMIT + 1],
                });
            }),
        ];
        for (what, damage) in damages {
            let mut table = table();
            damage(&mut table);
            assert!(check(&table, &[block()]).is_err(), "{what}");
        }
    }

    proptest! {
        /// Against a map from page to place.
        #[test]
        fn every_page_is_found_where_it_was_put_and_no_other(
            pages in proptest::collection::btree_map(0u64..200, (0u32..3, 0u32..60), 0..80),
            tail in 1u32..4096,
        ) {
            let mut file = row("/f", kind::REGULAR);
            let last = pages.keys().next_back().copied();
            for (&page, &(block, first)) in &pages {
                let bytes = if Some(page) == last { tail } else { 4096 };
                file.size = page * 4096 + u64::from(bytes);
                file.push(page * 4096, bytes, (block, first * 4096), &[u8::try_from(page).expect("small"); 12]);
            }
            let blocks = [block(), block(), block()];
            prop_assert_eq!(check(&[file.clone()], &blocks), Ok(()));
            let index = Pages::of(&file);
            for page in 0..200 {
                let bytes = if Some(page) == last { tail } else { 4096 };
                let hash = [u8::try_from(page).expect("small"); 12];
                let expected = pages.get(&page).map(|&(block, first)| (block, first * 4096));
                prop_assert_eq!(file.find(&index, page * 4096, bytes, &hash), expected);
                prop_assert_eq!(file.find(&index, page * 4096, bytes, &[255; 12]), None);
                if page < 199 && bytes > 1 {
                    prop_assert_eq!(file.find(&index, page * 4096, bytes - 1, &hash), None);
                }
            }
        }
    }
}
