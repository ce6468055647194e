//! What is taken of one directory and put into another makes the two alike: whatever was done to the first.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use reprieve_core::effort::Level;
use reprieve_core::manifest::Part;
use reprieve_core::preserve::{Pattern, Privileged, Refusal};
use tokio::sync::mpsc;

use super::put::{Placed, PutError};
use super::take::Taken;
use super::*;
use crate::pages::capture::Blocks;
use crate::pages::codec::unpack;
use crate::pages::fingerprint::PageKey;
use crate::pages::index::{Block, Index};
use crate::pages::known::Known;
use crate::pages::parts::{Buffers, Numbered};
use crate::pages::preserved::{self, Preserved, Role};
use crate::pages::tuning::{Tuning, Usual, Wanted};

/// The blocks that were stored, by number, and what the newest table says.
struct Stored {
    blocks: Vec<(Block, Vec<u8>)>,
    taken: Taken,
}

impl Stored {
    fn index(&self) -> Index {
        Index {
            blocks: self.blocks.iter().map(|(block, _)| block.clone()).collect(),
            preserved: self.taken.files.clone(),
            page_key: PageKey::Blake3([7; 32]).to_index(),
            ..Index::default()
        }
    }

    fn known(&self) -> Known {
        let part = Part {
            key: "part".into(),
            bytes: self
                .blocks
                .iter()
                .map(|(_, stored)| stored.len() as u64)
                .sum(),
            digest: String::new(),
        };
        Known::new(&self.index(), &[part], Vec::new(), u32::MAX).expect("it is whole")
    }

    fn put(&self, onto: &Arc<Preserver>) -> Result<Placed, PutError> {
        let index = self.index();
        assert_eq!(preserved::check(&index.preserved, &index.blocks), Ok(()));
        let refused = onto.refused(&index.preserved);
        if !refused.is_empty() {
            return Err(PutError::Refused(refused));
        }
        onto.place(&index.preserved, &mut |number| {
            let (block, stored) = &self.blocks[number as usize];
            Ok(unpack(block, stored[..].into(), None).expect("it was just packed"))
        })
    }
}

fn take(from: &Preserver, before: Option<Stored>) -> Stored {
    let known = match &before {
        Some(before) => before.known(),
        None => Known::nothing(PageKey::Blake3([7; 32])),
    };
    let mut blocks = before.map_or(Vec::new(), |before| before.blocks);
    let (sender, mut receiver) = mpsc::channel(4);
    let collecting = std::thread::spawn(move || {
        let mut found: Vec<Numbered> = Vec::new();
        while let Some(block) = receiver.blocking_recv() {
            found.push(block);
        }
        found
    });
    let level = Wanted::Always(Level::Fast);
    let tuning = Tuning::new(level, 3, 1, 0, Usual::default(), tokio::time::Instant::now);
    let packing = Blocks::new(
        sender,
        Buffers::default(),
        Arc::new(tuning),
        None,
        blocks.len(),
    );
    let stop = AtomicBool::new(false);
    let taken = from
        .take(&[], Some(""), &known, &packing, &stop)
        .expect("all of it can be read");
    drop(packing);
    for Numbered { number, packed } in collecting.join().expect("it does not panic") {
        blocks.resize(blocks.len().max(number as usize + 1), Default::default());
        blocks[number as usize] = (packed.placed(0, 0), packed.bytes);
    }
    Stored { blocks, taken }
}

fn preserver(root: &Path, rules: &Rules) -> Arc<Preserver> {
    let tree = Tree::at(root, BTreeMap::new(), &[]).expect("it is there");
    Arc::new(Preserver::with_tree(rules.clone(), tree))
}

fn auto() -> Rules {
    Rules {
        auto: true,
        ..Rules::default()
    }
}

/// What an image has.
fn pristine() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a temporary directory can be made");
    for directory in ["a", "a/b", "c"] {
        fs::create_dir(root.path().join(directory)).expect("the directory is ours");
    }
    for file in ["a/0", "a/b/1", "c/2", "3"] {
        fs::write(root.path().join(file), file.repeat(3000)).expect("the directory is ours");
    }
    root
}

/// Everything that a program can see of a directory, but for the times of what nobody changed.
fn seen(root: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut inodes: HashMap<u64, String> = HashMap::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let mut entries: Vec<PathBuf> = fs::read_dir(&directory)
            .expect("it can be read")
            .map(|entry| entry.expect("it can be read").path())
            .collect();
        entries.sort();
        for path in entries {
            let meta = fs::symlink_metadata(&path).expect("it is there");
            let name = path
                .strip_prefix(root)
                .expect("it is below")
                .display()
                .to_string();
            let first = inodes
                .entry(meta.ino())
                .or_insert_with(|| name.clone())
                .clone();
            let contents = match meta.file_type() {
                kind if kind.is_dir() => {
                    directories.push(path.clone());
                    String::new()
                }
                kind if kind.is_symlink() => format!("{:?}", fs::read_link(&path).expect("a link")),
                kind if kind.is_file() => {
                    let bytes = fs::read(&path).expect("it can be read");
                    format!(
                        "{} {} {}",
                        bytes.len(),
                        blake3::hash(&bytes),
                        meta.mtime_nsec()
                    )
                }
                _ => String::new(),
            };
            all.push(format!("{name} {:o} {first} {contents}", meta.mode()));
        }
    }
    all.sort();
    all
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, u64, u16),
    Shorten(usize, u64),
    Remove(usize),
    Rename(usize, usize),
    Directory(usize),
    Symbolic(usize),
    Name(usize, usize),
    Fifo(usize),
    Mode(usize, u32),
}

const PLACES: [&str; 9] = [
    "a/0", "a/b/1", "c/2", "3", "a/new", "new", "new/4", "a/b", "c",
];

fn change() -> impl Strategy<Value = Change> {
    let place = 0..PLACES.len();
    prop_oneof![
        4 => (place.clone(), 0u64..600_000, 1u16..20_000).prop_map(|(a, b, c)| Change::Write(a, b, c)),
        1 => (place.clone(), 0u64..20_000).prop_map(|(a, b)| Change::Shorten(a, b)),
        2 => place.clone().prop_map(Change::Remove),
        2 => (place.clone(), place.clone()).prop_map(|(a, b)| Change::Rename(a, b)),
        1 => place.clone().prop_map(Change::Directory),
        1 => place.clone().prop_map(Change::Symbolic),
        1 => (place.clone(), place.clone()).prop_map(|(a, b)| Change::Name(a, b)),
        1 => place.clone().prop_map(Change::Fifo),
        1 => (place, 0u32..8).prop_map(|(a, b)| Change::Mode(a, 0o700 | b)),
    ]
}

/// As far as it is possible where things stand.
fn apply(root: &Path, change: &Change, seed: u8) {
    let at = |place: usize| root.join(PLACES[place]);
    let regular = |path: &Path| fs::symlink_metadata(path).map_or(true, |meta| meta.is_file());
    match *change {
        Change::Write(place, offset, length) if regular(&at(place)) => {
            if let Ok(file) = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(at(place))
            {
                let bytes: Vec<u8> = (0..length).map(|at| seed ^ at.to_le_bytes()[1]).collect();
                file.write_all_at(&bytes, offset).expect("there is room");
            }
        }
        Change::Shorten(place, length) if regular(&at(place)) => {
            if let Ok(file) = OpenOptions::new().write(true).open(at(place)) {
                file.set_len(length).expect("it can be");
            }
        }
        Change::Write(..) | Change::Shorten(..) => {}
        Change::Remove(place) => {
            let path = at(place);
            let is_directory = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
            drop(if is_directory {
                fs::remove_dir_all(path)
            } else {
                fs::remove_file(path)
            });
        }
        Change::Rename(from, to) => drop(fs::rename(at(from), at(to))),
        Change::Directory(place) => drop(fs::create_dir(at(place))),
        Change::Symbolic(place) => drop(symlink("../somewhere", at(place))),
        Change::Name(of, name) if regular(&at(of)) => drop(fs::hard_link(at(of), at(name))),
        Change::Name(..) => {}
        Change::Fifo(place) => drop(nix::unistd::mkfifo(
            &at(place),
            nix::sys::stat::Mode::S_IRWXU,
        )),
        Change::Mode(place, mode) => {
            if fs::symlink_metadata(at(place)).is_ok_and(|meta| !meta.is_symlink()) {
                drop(fs::set_permissions(
                    at(place),
                    fs::Permissions::from_mode(mode),
                ));
            }
        }
    }
}

/// What an image and its copies agree on before anybody changes anything.
fn unchanged_times(root: &Path) {
    for place in &PLACES[..4] {
        let file = File::options()
            .write(true)
            .open(root.join(place))
            .expect("it is there");
        file.set_modified(std::time::UNIX_EPOCH)
            .expect("it is ours");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whatever_was_done_is_there_on_another_host_and_again_after_more(
        first in proptest::collection::vec(change(), 0..12),
        more in proptest::collection::vec(change(), 0..6),
    ) {
        let (here, there, later) = (pristine(), pristine(), pristine());
        for root in [&here, &there, &later] {
            unchanged_times(root.path());
        }
        let from = preserver(here.path(), &auto());
        for (seed, change) in (1..).zip(&first) {
            apply(here.path(), change, seed);
        }
        let mut stored = take(&from, None);
        let onto = preserver(there.path(), &auto());
        let before = seen(there.path());
        // Taken back, it never was.
        drop(stored.put(&onto).expect("it can be put"));
        prop_assert_eq!(seen(there.path()), before);
        stored.put(&onto).expect("it can be put").settle();
        prop_assert_eq!(seen(there.path()), seen(here.path()));
        from.saw(std::mem::take(&mut stored.taken.seen));
        for (seed, change) in (100..).zip(&more) {
            apply(here.path(), change, seed);
        }
        let stored = take(&from, Some(stored));
        stored.put(&preserver(later.path(), &auto())).expect("it can be put").settle();
        prop_assert_eq!(seen(later.path()), seen(here.path()));
    }
}

#[test]
fn what_did_not_change_is_not_read_and_what_did_is_stored_by_the_page() {
    let root = pristine();
    let rules = Rules {
        named: vec![Pattern::absolute("/big").expect("a pattern")],
        ..Rules::default()
    };
    let from = preserver(root.path(), &rules);
    let big = root.path().join("big");
    let bytes: Vec<u8> = (0..1u32 << 20).flat_map(u32::to_le_bytes).collect();
    fs::write(&big, &bytes).expect("the directory is ours");
    let mut first = take(&from, None);
    // Zeros at the beginning of the first page only.
    assert_eq!(first.taken.sizes.changed, bytes.len() as u64);
    // As if more time had passed since it was written.
    let identity = Identity::of(&from.tree.stat(b"/big").expect("it is there"));
    first
        .taken
        .seen
        .files
        .insert(b"/big".to_vec(), Some(identity));
    from.saw(std::mem::take(&mut first.taken.seen));
    let mut second = take(&from, Some(first));
    assert_eq!((second.taken.read, second.taken.sizes.changed), (0, 0));
    assert_eq!(second.taken.sizes.bytes, bytes.len() as u64);
    second
        .taken
        .seen
        .files
        .insert(b"/big".to_vec(), Some(identity));
    from.saw(std::mem::take(&mut second.taken.seen));
    let file = OpenOptions::new()
        .write(true)
        .open(&big)
        .expect("it is there");
    file.write_all_at(b"changed", 1 << 20)
        .expect("there is room");
    let third = take(&from, Some(second));
    assert_eq!(third.taken.read, bytes.len() as u64);
    assert_eq!(third.taken.sizes.changed, 4096);
}

#[test]
fn a_hole_takes_no_room_and_comes_back_as_one() {
    let (here, there) = (pristine(), pristine());
    let from = preserver(here.path(), &auto());
    let file = File::create(here.path().join("sparse")).expect("the directory is ours");
    file.write_all_at(b"in the middle", 1 << 30)
        .expect("there is room");
    file.set_len(5 << 30).expect("it can be longer");
    let stored = take(&from, None);
    assert_eq!(stored.taken.sizes.bytes, 4096);
    stored
        .put(&preserver(there.path(), &auto()))
        .expect("it can be put")
        .settle();
    let meta = fs::metadata(there.path().join("sparse")).expect("it is there");
    assert_eq!(meta.len(), 5 << 30);
    assert!(meta.blocks() * 512 <= 64 << 10, "{}", meta.blocks());
}

/// A table of one row.
fn alone(row: Preserved) -> Stored {
    Stored {
        blocks: Vec::new(),
        taken: Taken {
            files: vec![row],
            seen: Seen::default(),
            sizes: reprieve_core::manifest::Preserved::default(),
            read: 0,
        },
    }
}

#[test]
fn what_the_settings_do_not_allow_is_refused_before_anything_is_written() {
    let root = pristine();
    let before = seen(root.path());
    let rules = |privileged| Rules {
        named: vec![Pattern::absolute("/a").expect("a pattern")],
        privileged,
        ..Rules::default()
    };
    let row = |path: &str, mode| Preserved {
        path: path.into(),
        mode,
        ..Preserved::default()
    };
    for (path, mode, expected) in [
        ("/c/2", 0o100_644, Refusal::Outside),
        ("/a/0", 0o104_755, Refusal::Rights),
        ("/a/null", 0o020_666, Refusal::Device),
    ] {
        let refused =
            alone(row(path, mode)).put(&preserver(root.path(), &rules(Privileged::Refuse)));
        match refused {
            Err(PutError::Refused(refused)) => assert_eq!(refused, [(path.into(), expected)]),
            other => panic!("{path}: {other:?}"),
        }
    }
    assert_eq!(seen(root.path()), before);
    let allowed =
        alone(row("/a/0", 0o104_755)).put(&preserver(root.path(), &rules(Privileged::Keep)));
    allowed.expect("it is allowed").settle();
    let mode = fs::metadata(root.path().join("a/0"))
        .expect("it is there")
        .mode();
    assert_eq!(mode, 0o104_755);
}

#[test]
fn a_directory_that_became_a_link_leads_nowhere() {
    let (root, outside) = (pristine(), tempfile::tempdir().expect("one can be made"));
    fs::remove_dir_all(root.path().join("a")).expect("it is ours");
    symlink(outside.path(), root.path().join("a")).expect("the directory is ours");
    let mut gone = Preserved {
        path: b"/a/victim".to_vec(),
        role: Role::Deleted.into(),
        ..Preserved::default()
    };
    fs::write(outside.path().join("victim"), "x").expect("the directory is ours");
    let onto = preserver(root.path(), &auto());
    alone(gone.clone())
        .put(&onto)
        .expect("nothing is put")
        .settle();
    assert!(outside.path().join("victim").exists());
    gone.role = Role::Whole.into();
    gone.mode = 0o100_644;
    assert!(matches!(
        alone(gone).put(&onto),
        Err(PutError::Failed { .. })
    ));
    assert_eq!(
        fs::read(outside.path().join("victim")).expect("it stayed"),
        b"x"
    );
    assert_eq!(
        fs::read_dir(outside.path()).expect("it is there").count(),
        1
    );
}

#[test]
fn a_restore_that_fails_half_way_leaves_everything_as_it_was() {
    let (here, there) = (pristine(), pristine());
    let from = preserver(here.path(), &auto());
    for (number, change) in [
        Change::Write(0, 0, 9000),
        Change::Remove(1),
        Change::Write(5, 9, 99),
    ]
    .iter()
    .enumerate()
    {
        apply(here.path(), change, u8::try_from(number).expect("few"));
    }
    let stored = take(&from, None);
    let before = seen(there.path());
    let onto = preserver(there.path(), &auto());
    let index = stored.index();
    let mut blocks = 0;
    let failed = onto.place(&index.preserved, &mut |_| {
        blocks += 1;
        match blocks {
            1 => {
                let (block, bytes) = &stored.blocks[0];
                Ok(unpack(block, bytes[..].into(), None).expect("it was just packed"))
            }
            _ => Err(crate::pages::load::Unusable::OtherManifest),
        }
    });
    assert!(matches!(failed, Err(PutError::Unusable(_))), "{failed:?}");
    drop(failed);
    assert_eq!(seen(there.path()), before);
}

#[test]
fn what_a_killed_restore_left_is_cleared_and_foreign_files_stay() {
    let (here, there) = (pristine(), pristine());
    let from = preserver(here.path(), &auto());
    fs::remove_dir_all(here.path().join("c")).expect("it is ours");
    fs::write(here.path().join("a/0"), "new").expect("it is ours");
    let stored = take(&from, None);
    let left = there.path().join("a").join(format!(
        "{}{}",
        reprieve_core::preserve::OWN_NAME,
        crate::catalog::nonce()
    ));
    fs::write(&left, "half").expect("it is ours");
    fs::write(there.path().join("c/foreign"), "x").expect("it is ours");
    stored
        .put(&preserver(there.path(), &auto()))
        .expect("it can be put")
        .settle();
    assert!(!left.exists());
    assert!(there.path().join("c/foreign").exists() && !there.path().join("c/2").exists());
    assert_eq!(
        fs::read(there.path().join("a/0")).expect("it is there"),
        b"new"
    );
}
