//! The clocks of a job whose processes loaded our library (`preload/clocks.c`): they go on where they were, whatever this host's
//! show, and waits that were under way at the freeze end when they should.
//!
//! The library's file holds how far the job's clocks are ahead of the host's. It is written anew before a resume, and the processes map it
//! again; programs that the job starts later load it. What a process waits for lies in its memory, as the kernel was told,
//! and is written anew in the restored processes before any of them runs. This module says where both are. A process that
//! does not have the library goes by the host's clocks; such ones are named in the manifest, so that the next host can
//! decide before it reads memory.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use reprieve_core::manifest::Clocks;

use crate::preload::Library;
use crate::programs;
use crate::supervisor::proc::{self, Process};

/// As in `preload/clocks.c`: the head of the numbers, and the alignment of their page.
const MAGIC: &[u8; 16] = b"reprieve clocks1";
const PAGE: usize = 4096;

/// Where the offsets are behind the head, and where the distance to the waits is.
const OFFSETS: usize = 16;
const TO_WAITS: usize = 40;

/// The head of the waits, then the waits.
const WAITS_HEAD: usize = 8;
const WAIT: usize = 48;
/// The library has no more.
const MOST_WAITS: usize = 4096;

/// What the head says of a process: it just began, or it is as it should be.
const NOT_BEGUN: i32 = 0;
const READY: i32 = 1;
const CROWDED_OUT: i32 = 3;

/// Processes that a manifest names.
const NAMED: usize = 16;

const NANOS: i128 = 1_000_000_000;

/// Nanoseconds that a job's clocks are ahead of a host's: CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offsets([i64; 3]);

impl Offsets {
    /// For a host whose clocks are these, so that a job goes on whose host's clocks were those.
    fn carried_over(self, those: Clocks, these: Clocks) -> Self {
        // Snapshots from before that was recorded have no library.
        let raw = |clocks: Clocks| clocks.monotonic_raw_ns.unwrap_or(clocks.monotonic_ns);
        let numbers = |clocks: Clocks| [clocks.monotonic_ns, raw(clocks), clocks.boottime_ns];
        let mut carried = self;
        for ((offset, that), this) in carried.0.iter_mut().zip(numbers(those)).zip(numbers(these)) {
            let sum = i128::from(*offset) + i128::from(that) - i128::from(this);
            *offset = i64::try_from(sum).unwrap_or(*offset);
        }
        carried
    }
}

/// Where the numbers are in a library's file, if it is one that keeps clocks.
fn numbers(bytes: &[u8]) -> Option<usize> {
    (0..bytes.len())
        .step_by(PAGE)
        .find(|&at| bytes[at..].starts_with(MAGIC))
}

/// Whether the job's clocks can be kept with it.
pub(crate) fn keeps(library: &Library) -> bool {
    numbers(&library.bytes).is_some()
}

fn long(bytes: &[u8], at: usize) -> Option<i64> {
    Some(i64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn int(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn offsets(bytes: &[u8]) -> Option<Offsets> {
    let at = numbers(bytes)? + OFFSETS;
    Some(Offsets([
        long(bytes, at)?,
        long(bytes, at + 8)?,
        long(bytes, at + 16)?,
    ]))
}

/// Where the waits of a process begin, from where it has the library.
fn waits(bytes: &[u8]) -> Option<u64> {
    let at = numbers(bytes)?;
    u64::try_from(at)
        .ok()?
        .checked_add_signed(long(bytes, at + TO_WAITS)?)
}

/// Makes the library one with which a job goes on here that stopped where the clocks showed `those`, and here show `these`.
pub(crate) fn carry_over(library: &mut Library, those: Clocks, these: Clocks) {
    let (Some(at), Some(before)) = (numbers(&library.bytes), offsets(&library.bytes)) else {
        return;
    };
    for (number, offset) in before.carried_over(those, these).0.iter().enumerate() {
        let at = at + OFFSETS + 8 * number;
        library.bytes[at..at + 8].copy_from_slice(&offset.to_ne_bytes());
    }
}

/// Where a process has the library.
fn base(maps: &str, path: &str) -> Option<u64> {
    maps.lines().find_map(|line| {
        let mut words = line.splitn(6, ' ');
        let (range, offset) = (words.next()?, words.nth(1)?);
        let its = words.nth(2)?.trim_start();
        let is_start = its == path && offset.bytes().all(|digit| digit == b'0');
        let start = range.split_once('-')?.0;
        is_start
            .then(|| u64::from_str_radix(start, 16).ok())
            .flatten()
    })
}

/// The library in a process.
struct There {
    memory: File,
    waits: u64,
    readiness: i32,
    /// Places of waits that may be taken.
    beyond: usize,
}

impl There {
    /// None if the process does not have it.
    fn find(pid: i32, library: &Library) -> io::Result<Option<Self>> {
        let maps = fs::read(format!("/proc/{pid}/maps"))?;
        let path = library.path.to_string_lossy();
        let Some(base) = base(&String::from_utf8_lossy(&maps), &path) else {
            return Ok(None);
        };
        let Some(waits) = waits(&library.bytes).and_then(|waits| base.checked_add(waits)) else {
            return Ok(None);
        };
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))?;
        let mut head = [0; WAITS_HEAD];
        memory.read_exact_at(&mut head, waits)?;
        let beyond = usize::try_from(int(&head, 4).unwrap_or(0)).unwrap_or(0);
        Ok(Some(Self {
            memory,
            waits,
            readiness: int(&head, 0).unwrap_or(0),
            beyond: beyond.min(MOST_WAITS),
        }))
    }

    /// Writes what the kernel is told anew.
    fn tell(&self, offsets: Offsets) -> io::Result<usize> {
        let mut all = vec![0; self.beyond * WAIT];
        let start = self.waits + WAITS_HEAD as u64;
        self.memory.read_exact_at(&mut all, start)?;
        let mut told = 0;
        for (place, wait) in all.chunks_exact(WAIT).enumerate() {
            if let Some(time) = due(wait, offsets) {
                let at = start + (place * WAIT + 32) as u64;
                self.memory.write_all_at(&time, at)?;
                told += 1;
            }
        }
        Ok(told)
    }
}

/// What the kernel is to be told of a wait, as it lies in memory; None if it is none.
fn due(wait: &[u8], Offsets(offsets): Offsets) -> Option<[u8; 16]> {
    let (owner, kind, is_set) = (int(wait, 0)?, int(wait, 4)?, int(wait, 8)?);
    let offset = offsets.get(usize::try_from(kind).ok()?)?;
    if owner == 0 || is_set == 0 {
        return None;
    }
    let named = i128::from(long(wait, 16)?) * NANOS + i128::from(long(wait, 24)?);
    let told = (named - i128::from(*offset)).max(0);
    // What is further than can be said is as good as never, as it was named.
    let seconds = i64::try_from(told / NANOS).ok()?;
    let rest = i64::try_from(told % NANOS).ok()?;
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&seconds.to_ne_bytes());
    bytes[8..].copy_from_slice(&rest.to_ne_bytes());
    Some(bytes)
}

/// Tells the kernel anew, in these stopped processes, until when they wait. Says how many waits there were.
pub(crate) fn tell_waits(processes: &[Process], library: &Library) -> io::Result<usize> {
    let Some(offsets) = offsets(&library.bytes) else {
        return Ok(0);
    };
    let mut told = 0;
    for process in processes.iter().filter(|process| is_alive(process)) {
        if let Some(there) = There::find(process.pid, library)? {
            told += there.tell(offsets)?;
        }
    }
    Ok(told)
}

fn is_alive(process: &Process) -> bool {
    !matches!(process.state, 'Z' | 'X')
}

/// Those of these processes that go by the host's clocks, each with the reason; at most so many that a manifest holds.
pub(crate) fn by_the_host(processes: &[Process], library: &Library) -> Vec<String> {
    let mut kinds = HashMap::new();
    let reasons = processes
        .iter()
        .filter(|process| is_alive(process))
        .filter_map(|process| {
            let reason = reason(process.pid, library, &mut kinds)?;
            Some(format!("{} {} ({reason})", process.pid, process.command))
        });
    reasons.take(NAMED).collect()
}

/// Why a process goes by the host's clocks; None if it does not, or is gone.
fn reason(
    pid: i32,
    library: &Library,
    kinds: &mut HashMap<(u64, u64), Kind>,
) -> Option<&'static str> {
    let exe = format!("/proc/{pid}/exe");
    let metadata = fs::metadata(&exe).ok()?;
    let key = (metadata.dev(), metadata.ino());
    let kind = *kinds
        .entry(key)
        .or_insert_with(|| Kind::of(Path::new(&exe)));
    let there = There::find(pid, library);
    match (there, kind) {
        (Ok(Some(_)), Kind::Go) | (Ok(None), Kind::Go) => {
            Some("a Go program, which reads the clocks without the C library")
        }
        // One that was started by naming its loader looks static, and has it all the same.
        (Ok(Some(there)), _) => match there.readiness {
            READY | NOT_BEGUN => None,
            CROWDED_OUT => Some("it has more waits or timers at once than are kept"),
            _ => Some("its C library has not what is needed"),
        },
        (Ok(None), Kind::Static) => Some("a static program"),
        (Ok(None), Kind::Dynamic) if is_beginning(pid, library) => None,
        (Ok(None), Kind::Dynamic) => Some(
            "without the library: LD_PRELOAD was taken away, or it has other privileges or another architecture",
        ),
        (Err(_), _) => Some("its memory cannot be read"),
    }
}

/// By what the clocks of a job go on at a resume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Means {
    /// A time namespace.
    Namespace,
    /// A library, but for these processes.
    Library(Vec<String>),
    Nothing,
}

/// As its processes show, for who did not start them.
pub(crate) fn means(root: i32) -> io::Result<Means> {
    if proc::levels(root) > proc::levels(nix::unistd::getpid().as_raw()) {
        return Ok(Means::Namespace);
    }
    let tree = proc::tree(&proc::processes()?, root);
    let library = tree.iter().find_map(|process| loaded(process.pid));
    Ok(library.map_or(Means::Nothing, |library| {
        Means::Library(by_the_host(&tree, &library))
    }))
}

/// The library that a process has.
fn loaded(pid: i32) -> Option<Library> {
    let maps = fs::read(format!("/proc/{pid}/maps")).ok()?;
    let maps = String::from_utf8_lossy(&maps);
    let path = maps
        .lines()
        .filter_map(|line| line.splitn(6, ' ').nth(5))
        .map(str::trim_start)
        .find(|path| path.contains("/reprieve-lib/clocks-"))?;
    let library = Library {
        path: path.into(),
        bytes: fs::read(format!("/proc/{pid}/root{path}")).ok()?,
    };
    keeps(&library).then_some(library)
}

/// What a program is to its clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Static,
    Go,
    Dynamic,
}

impl Kind {
    fn of(path: &Path) -> Self {
        let facts = programs::facts(path);
        match (facts.is_go, facts.is_dynamic) {
            (true, true) => Self::Go,
            (_, false) => Self::Static,
            (false, true) => Self::Dynamic,
        }
    }
}

/// A program that was just started has nothing but itself and its loader, and will load the library that it was told to.
fn is_beginning(pid: i32, library: &Library) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    let path = library.path.to_string_lossy();
    let is_told = environment
        .split(|&byte| byte == 0)
        .filter_map(|variable| variable.strip_prefix(b"LD_PRELOAD="))
        .any(|value| String::from_utf8_lossy(value).contains(&*path));
    let maps = String::from_utf8_lossy(&maps);
    let files: HashSet<&str> = maps
        .lines()
        .filter_map(|line| line.splitn(6, ' ').nth(5))
        .map(str::trim_start)
        .filter(|name| name.starts_with('/'))
        .collect();
    is_told && files.len() <= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn library() -> Library {
        let mut bytes = vec![0; 3 * PAGE];
        bytes[..4].copy_from_slice(b"\x7fELF");
        bytes[PAGE..PAGE + 16].copy_from_slice(MAGIC);
        bytes[PAGE + TO_WAITS..PAGE + TO_WAITS + 8].copy_from_slice(&0x5000_i64.to_ne_bytes());
        Library {
            path: "/l/clocks.so".into(),
            bytes,
        }
    }

    const fn clocks(monotonic_ns: u64, raw: u64, boottime_ns: u64) -> Clocks {
        Clocks {
            monotonic_ns,
            boottime_ns,
            monotonic_raw_ns: Some(raw),
        }
    }

    #[test]
    fn offsets_add_up_from_host_to_host() {
        let mut library = library();
        assert_eq!(offsets(&library.bytes), Some(Offsets::default()));
        carry_over(&mut library, clocks(1000, 900, 1500), clocks(10, 20, 30));
        assert_eq!(offsets(&library.bytes), Some(Offsets([990, 880, 1470])));
        // 50 later, to a host that is ahead.
        carry_over(&mut library, clocks(60, 70, 80), clocks(5000, 5000, 5000));
        assert_eq!(
            offsets(&library.bytes),
            Some(Offsets([-3950, -4050, -3450]))
        );
        assert_eq!(waits(&library.bytes), Some(PAGE as u64 + 0x5000));
        let mut other = Library {
            path: "/l/other.so".into(),
            bytes: b"\x7fELF".to_vec(),
        };
        assert!(keeps(&library) && !keeps(&other));
        carry_over(&mut other, clocks(1, 2, 3), clocks(4, 5, 6));
        assert_eq!(other.bytes, b"\x7fELF");
    }

    #[test]
    fn a_wait_is_told_anew_from_what_was_named() {
        let wait = |owner: i32, kind: i32, is_set: i32, seconds: i64| {
            let mut bytes: Vec<u8> = [owner, kind, is_set, 0]
                .iter()
                .flat_map(|word| word.to_ne_bytes())
                .collect();
            bytes.extend(
                [seconds, 5, 77, 77]
                    .iter()
                    .flat_map(|word| word.to_ne_bytes()),
            );
            bytes
        };
        let told = |wait: &[u8], by: i64| {
            let told = due(wait, Offsets([by, 0, -by]))?;
            Some((long(&told, 0)?, long(&told, 8)?))
        };
        assert_eq!(told(&wait(7, 0, 1, 100), 10), Some((99, 999_999_995)));
        assert_eq!(told(&wait(7, 2, 1, 100), 10), Some((100, 15)));
        assert_eq!(told(&wait(7, 1, 1, 100), 10), Some((100, 5)));
        assert_eq!(told(&wait(7, 0, 1, 1), 2_000_000_000), Some((0, 0)));
        assert_eq!(told(&wait(7, 2, 1, i64::MAX), 2_000_000_000), None);
        assert_eq!(told(&wait(0, 0, 1, 100), 10), None);
        assert_eq!(told(&wait(7, 0, 0, 100), 10), None);
        assert_eq!(told(&wait(7, 9, 1, 100), 10), None);
    }

    #[test]
    fn the_library_is_found_among_the_mappings() {
        let maps = "55a000-55b000 r--p 00000000 00:2a 11 /bin/x\n\
                    7f10000-7f12000 r--p 00000000 00:2a 12                         /l/clocks.so\n\
                    7f12000-7f14000 r-xp 00002000 00:2a 12                         /l/clocks.so\n";
        assert_eq!(base(maps, "/l/clocks.so"), Some(0x7f1_0000));
        assert_eq!(base(maps, "/l/clocks"), None);
        assert_eq!(base("", "/l/clocks.so"), None);
    }

    #[test]
    fn the_libraries_of_this_build_are_as_this_module_reads_them() {
        for library in Library::of_clocks() {
            assert!(keeps(&library), "{library:?}");
            assert_eq!(offsets(&library.bytes), Some(Offsets::default()));
            let at = numbers(&library.bytes).expect("it keeps clocks") as u64;
            assert!(waits(&library.bytes).is_some_and(|waits| waits > at));
            // The page is where it is in the file.
            assert!(programs::begins_at_its_address(
                &library.bytes,
                at + PAGE as u64
            ));
        }
    }

    /// A program with these segments, each a kind and what is in it.
    fn program(segments: &[(u32, &[u8])]) -> Vec<u8> {
        let mut head = b"\x7fELF\x02\x01".to_vec();
        head.resize(64 + 56 * segments.len(), 0);
        head[32] = 64;
        head[54] = 56;
        head[56] = u8::try_from(segments.len()).expect("there are few");
        for (number, (kind, bytes)) in segments.iter().enumerate() {
            let (at, start) = (64 + 56 * number, head.len() as u64);
            head[at..at + 4].copy_from_slice(&kind.to_le_bytes());
            head[at + 8..at + 16].copy_from_slice(&start.to_le_bytes());
            head[at + 32..at + 40].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
            head.extend(*bytes);
        }
        head
    }

    #[test]
    fn static_programs_and_those_of_go_are_told_from_others() {
        let interpreter = (3, &b"/lib/ld.so\0"[..]);
        let note = |name: &[u8; 4]| {
            let mut note: Vec<u8> = [4_u32, 4, 4]
                .iter()
                .flat_map(|word| word.to_le_bytes())
                .collect();
            note.extend(name);
            note.extend(b"body");
            note
        };
        let (gnu, go) = (note(b"GNU\0"), note(b"Go\0\0"));
        let both = [gnu.clone(), go.clone()].concat();
        type Segments<'a> = &'a [(u32, &'a [u8])];
        let cases: [(Segments<'_>, Kind); 5] = [
            (&[interpreter, (4, &gnu[..])], Kind::Dynamic),
            (&[(4, &gnu[..])], Kind::Static),
            (&[(4, &go[..])], Kind::Static),
            (&[interpreter, (4, &go[..])], Kind::Go),
            (&[(4, &gnu[..]), (4, &both[..]), interpreter], Kind::Go),
        ];
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (segments, kind) in cases {
            let path = directory.path().join("program");
            fs::write(&path, program(segments)).expect("it can be written");
            assert_eq!(Kind::of(&path), kind, "{segments:?}");
        }
    }

    #[test]
    fn a_process_without_the_library_goes_by_the_host() {
        let own = Process {
            pid: nix::unistd::getpid().as_raw(),
            parent: 1,
            state: 'R',
            command: "test".to_owned(),
        };
        let named = by_the_host(std::slice::from_ref(&own), &library());
        assert_eq!(named.len(), 1);
        // Tests are static programs where the release is.
        assert!(named[0].contains(" test ("), "{named:?}");
        assert_eq!(tell_waits(&[own], &library()).expect("none has it"), 0);
    }
}
