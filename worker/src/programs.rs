//! Which programs and libraries a job's processes have mapped, and which lie at those paths on this host.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use nix::sys::stat::fstat;

use crate::preserve::Identity;

/// Where CRIU looks for a build id: a longer way into the file it does not go either.
const BUILD_ID_WITHIN: u64 = 1 << 20;

/// Where the headers and notes of a program are.
const HEADERS_WITHIN: u64 = 64 << 10;

/// Kinds of segments (elf(5)).
const INTERPRETER: u32 = 3;
const NOTES: u32 = 4;

/// A manifest is one small document.
const MOST: usize = 512;

/// What has no build id is read whole, if it is not larger.
const HASHED_WITHIN: u64 = 64 << 20;

/// A file that was written to a shorter time ago may be written to again without a sign: its times are no finer than the kernel's
/// ticks.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// What was found in files, so that one that stays as it is is read once in a run and not at every checkpoint.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<HashMap<(What, Identity), Option<String>>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum What {
    Identity,
    Libc,
}

fn is_settled(file: &Identity, now: SystemTime) -> bool {
    let seconds = u64::try_from(file.changed.0).unwrap_or(u64::MAX);
    let changed = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    let age = changed.and_then(|changed| now.duration_since(changed).ok());
    age.is_some_and(|age| age > SETTLED_AFTER)
}

impl Seen {
    /// The programs and libraries of these processes, by path. A file that cannot be read is left out.
    pub(crate) fn mapped(&self, pids: impl Iterator<Item = i32>) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for pid in pids {
            let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
            for path in String::from_utf8_lossy(&maps).lines().filter_map(program) {
                if found.len() < MOST && !found.contains_key(path) {
                    let identity = self.find(What::Identity, path, identity_of);
                    found.extend(identity.map(|identity| (path.to_owned(), identity)));
                }
            }
        }
        found
    }

    /// The C library among them, as in `glibc 2.41`.
    pub(crate) fn libc(&self, programs: &BTreeMap<String, String>) -> String {
        let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        let found = programs.keys().find_map(|path| match name(path) {
            name if name.starts_with("libc.so.6") || name.starts_with("libc-2.") => {
                self.find(What::Libc, path, glibc)
            }
            name if name.starts_with("ld-musl-") || name.starts_with("libc.musl-") => {
                Some("musl".to_owned())
            }
            _ => None,
        });
        found.unwrap_or_default()
    }

    fn find(
        &self,
        what: What,
        path: &str,
        look: impl FnOnce(&mut File) -> Option<String>,
    ) -> Option<String> {
        let seen = || self.0.lock().expect("no holder of this lock panics");
        let mut file = File::open(path).ok()?;
        let state = Identity::of(&fstat(&file).ok()?);
        if let Some(found) = seen().get(&(what, state)) {
            return found.clone();
        }
        let found = look(&mut file);
        if is_settled(&state, SystemTime::now()) {
            let mut seen = seen();
            // Files that came and went; those that are there are read once more.
            if seen.len() >= 2 * MOST {
                seen.clear();
            }
            seen.insert((what, state), found.clone());
        }
        found
    }
}

/// The path of a mapping that may be executed and has a file.
fn program(line: &str) -> Option<&str> {
    let mut words = line.splitn(6, ' ');
    let rights = words.nth(1)?;
    let path = words.nth(3)?.trim_start();
    let is_file = path.starts_with('/') && !path.ends_with(" (deleted)");
    (rights.contains('x') && is_file).then_some(path)
}

/// The build id in hexadecimal, or the hash of the whole.
pub(crate) fn identity(path: &str) -> Option<String> {
    identity_of(&mut File::open(path).ok()?)
}

fn identity_of(file: &mut File) -> Option<String> {
    if let Some(id) = of_program(&beginning(file)?) {
        return Some(id.iter().map(|byte| format!("{byte:02x}")).collect());
    }
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.len() > HASHED_WITHIN {
        return None;
    }
    let mut hasher = blake3::Hasher::new();
    file.rewind().ok()?;
    hasher.update_reader(file).ok()?;
    Some(format!("blake3:{}", hasher.finalize().to_hex()))
}

/// It says its version to whoever runs it, in a text that it holds.
fn glibc(file: &mut File) -> Option<String> {
    const SAYS: &[u8] = b"release version ";
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    let at = bytes
        .windows(SAYS.len())
        .position(|window| window == SAYS)?
        + SAYS.len();
    let version: String = bytes[at..]
        .iter()
        .map(|&byte| char::from(byte))
        .take_while(|c| c.is_ascii_digit() || *c == '.')
        .collect();
    Some(format!("glibc {}", version.trim_end_matches('.')))
}

/// The GNU build id of a 64-bit program, as CRIU keeps it: filled up to whole words.
pub(crate) fn build_id(path: &Path) -> Option<Vec<u8>> {
    of_program(&beginning(&mut File::open(path).ok()?)?)
}

fn beginning(file: &mut File) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    file.take(BUILD_ID_WITHIN).read_to_end(&mut head).ok()?;
    Some(head)
}

pub(crate) fn of_program(head: &[u8]) -> Option<Vec<u8>> {
    const BUILD_ID: u32 = 3;
    let of_segment = |(_, start, length)| {
        let mut all = notes(head, start, length);
        all.find(|(kind, name, _)| *kind == BUILD_ID && *name == b"GNU\0")
    };
    let (_, _, id) = segments(head)
        .filter(|(kind, _, _)| *kind == NOTES)
        .find_map(of_segment)?;
    Some(id.to_vec())
}

/// The segments of a 64-bit little-endian ELF file (elf(5)): kind, where in the file, and how long.
fn segments(head: &[u8]) -> impl Iterator<Item = (u32, usize, usize)> {
    const IDENTITY: &[u8] = b"\x7fELF\x02\x01";
    let is_elf = head.starts_with(IDENTITY);
    let table = long(head, 32).and_then(|table| usize::try_from(table).ok());
    let (size, count) = (short(head, 54), short(head, 56));
    let count = count.filter(|_| is_elf).unwrap_or(0);
    (0..usize::from(count)).map_while(move |number| {
        let at = table?.checked_add(number * usize::from(size?))?;
        let start = usize::try_from(long(head, at + 8)?).ok()?;
        let length = usize::try_from(long(head, at + 32)?).ok()?;
        Some((word(head, at)?, start, length))
    })
}

/// The whole notes of a segment: kind, name, and what it says.
fn notes(head: &[u8], start: usize, length: usize) -> impl Iterator<Item = (u32, &[u8], &[u8])> {
    let end = start.checked_add(length);
    let mut left = end.and_then(|end| head.get(start..end)).unwrap_or_default();
    std::iter::from_fn(move || {
        let (name, size, kind) = (word(left, 0)?, word(left, 4)?, word(left, 8)?);
        let name_end = 12_usize.checked_add(padded(name)?)?;
        let end = name_end.checked_add(padded(size)?)?;
        let note = (kind, left.get(12..name_end)?, left.get(name_end..end)?);
        left = &left[end..];
        Some(note)
    })
}

/// What a program's headers say about how it reads clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// A loader is to start it.
    pub is_dynamic: bool,
    /// Go's linker made it.
    pub is_go: bool,
}

/// What cannot be read has none of it.
pub(crate) fn facts(path: &Path) -> Facts {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(HEADERS_WITHIN).read_to_end(&mut head));
    read.map(|_| facts_of(&head)).unwrap_or_default()
}

fn facts_of(head: &[u8]) -> Facts {
    let mut facts = Facts::default();
    for (kind, start, length) in segments(head) {
        match kind {
            INTERPRETER => facts.is_dynamic = true,
            NOTES => {
                facts.is_go |= notes(head, start, length).any(|(_, name, _)| name == b"Go\0\0")
            }
            _ => {}
        }
    }
    facts
}

/// Whether the bytes before `end` lie in a process where they lie in the file, from where the program begins.
#[cfg(test)]
pub(crate) fn begins_at_its_address(head: &[u8], end: u64) -> bool {
    let table = long(head, 32).and_then(|table| usize::try_from(table).ok());
    let table = table.expect("it has headers");
    (0..usize::from(short(head, 56).expect("it has headers"))).any(|number| {
        let at = table + number * usize::from(short(head, 54).expect("it has headers"));
        word(head, at) == Some(1)
            && long(head, at + 8) == Some(0)
            && long(head, at + 16) == Some(0)
            && long(head, at + 32).is_some_and(|length| length >= end)
    })
}

fn padded(length: u32) -> Option<usize> {
    usize::try_from(length).ok()?.checked_next_multiple_of(4)
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_le_bytes(*bytes))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::stat;

    #[test]
    fn a_file_is_looked_at_again_only_when_it_has_changed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("library");
        let path = path.to_str().expect("it is text");
        fs::write(path, "one").expect("it can be written");
        let seen = Seen::default();
        let mut looks = 0;
        let mut find = |seen: &Seen| {
            let found = seen.find(What::Identity, path, |file| {
                looks += 1;
                identity_of(file)
            });
            (found.expect("it is there"), looks)
        };
        let hash = |text: &str| format!("blake3:{}", blake3::hash(text.as_bytes()).to_hex());
        // It may be written to again within the same tick.
        assert_eq!(find(&seen), (hash("one"), 1));
        assert_eq!(find(&seen), (hash("one"), 2));

        // As if that had been long ago.
        let state = || Identity::of(&stat(path).expect("it is there"));
        let later = SystemTime::now() + 2 * SETTLED_AFTER;
        assert!(!is_settled(&state(), SystemTime::now()) && is_settled(&state(), later));
        let remembered = ((What::Identity, state()), Some(hash("one")));
        seen.0.lock().expect("it is free").extend([remembered]);
        assert_eq!(find(&seen), (hash("one"), 2));

        // As long as before, and with the time of before: the time of its change tells.
        let times = fs::FileTimes::new().set_modified(
            fs::metadata(path)
                .and_then(|metadata| metadata.modified())
                .expect("it has one"),
        );
        let before = state().changed;
        while state().changed == before {
            fs::write(path, "two").expect("it can be written");
            let file = File::options().write(true).open(path).expect("it is there");
            file.set_times(times).expect("they can be set");
        }
        assert_eq!(find(&seen), (hash("two"), 3));
    }

    #[test]
    fn what_this_process_has_mapped_is_found_twice_alike() {
        let seen = Seen::default();
        let own = || std::iter::once(i32::try_from(std::process::id()).expect("a process id"));
        let found = seen.mapped(own());
        assert!(!found.is_empty());
        assert_eq!(seen.mapped(own()), found);
        for (path, known) in &found {
            assert_eq!(identity(path).as_ref(), Some(known), "{path}");
        }
    }
}
