//! Looks a job's processes over for what a checkpoint would stumble over; the rules are `reprieve_core::checkup`'s.
//!
//! Everything comes from `/proc`, read while the job runs: what changes meanwhile is seen as it is the next time. What
//! cannot be read is left out, so that a finding is never made of not knowing.

use std::collections::{HashMap, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use nix::unistd::{getgid, getuid};
use reprieve_core::checkup::{self, Descriptor, File, Finding, Mapping, Ours, Process, Watches};

use crate::host;
use crate::supervisor::proc;
use crate::sys;
use crate::watched::{Number, Watchable};

/// CRIU was seen to refuse each of these, if it is not the one that the app began in. Others need a user namespace, or SYS_ADMIN.
const NAMESPACES: [&str; 5] = ["user", "ipc", "uts", "time", "time_for_children"];

/// CAP_DAC_READ_SEARCH, linux/capability.h.
const DAC_READ_SEARCH: u32 = 2;

/// What a dump is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given<'a> {
    /// Bytes.
    pub ghost_limit: u64,
    /// Where watched files may be.
    pub watched: &'a [PathBuf],
}

/// What is in the way of a checkpoint of `root` and everything below it, and of processes that were left to us.
pub(crate) fn of_tree(
    root: i32,
    orphans: &[proc::Process],
    given: Given<'_>,
) -> io::Result<Vec<Finding>> {
    let all = proc::processes()?;
    let mut mounts = Mounts::default();
    let own = nix::unistd::getpid().as_raw();
    let has_realm = proc::levels(root) > proc::levels(own);
    // A realm's processes live in its namespaces, as the first of them shows; without one, in ours.
    let home = PathBuf::from(match has_realm {
        true => format!("/proc/{root}"),
        false => "/proc/self".to_owned(),
    });
    let mut watchable = Watchable::new(format!("/proc/{root}/root").into(), given.watched);
    let mut processes = Vec::new();
    for process in proc::tree(&all, root) {
        // The dead hold nothing.
        if !matches!(process.state, 'Z' | 'X') {
            processes.extend(look(&process, &mut mounts, &mut watchable, &home));
        }
    }
    processes.extend(orphans.iter().map(|orphan| Process {
        orphan: true,
        ..bare(orphan)
    }));
    Ok(checkup::examine(
        &processes,
        &ours(given.ghost_limit, has_realm),
    ))
}

fn ours(ghost_limit: u64, has_realm: bool) -> Ours {
    let has = |number: u32| host::capabilities() >> number & 1 == 1;
    Ours {
        user: getuid().as_raw(),
        group: getgid().as_raw(),
        may_store_users: host::lacks_for_users().is_empty(),
        may_open_handles: has(DAC_READ_SEARCH),
        may_suspend_filters: host::may_suspend_filters(),
        may_store_ipc: has_realm,
        gets_short_pipes: host::gets_short_pipes(),
        ghost_limit,
    }
}

/// A process of which nothing is the matter.
fn bare(process: &proc::Process) -> Process {
    Process {
        pid: process.pid,
        command: process.command.clone(),
        users: [getuid().as_raw(); 3],
        groups: [getgid().as_raw(); 3],
        ..Process::default()
    }
}

/// None if it has ended.
fn look(
    process: &proc::Process,
    mounts: &mut Mounts,
    watchable: &mut Watchable,
    home: &Path,
) -> Option<Process> {
    let directory = PathBuf::from(format!("/proc/{}", process.pid));
    let status = fs::read_to_string(directory.join("status")).ok()?;
    Some(Process {
        tracer: number(&status, "TracerPid:").unwrap_or(0),
        filtered: is_filtered(&directory),
        users: identities(&status, "Uid:").unwrap_or([getuid().as_raw(); 3]),
        groups: identities(&status, "Gid:").unwrap_or([getgid().as_raw(); 3]),
        foreign_namespaces: foreign_namespaces(&directory, home),
        descriptors: descriptors(&directory, mounts, watchable),
        mappings: mappings(&directory),
        ..bare(process)
    })
}

fn number(status: &str, name: &str) -> Option<i32> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().parse().ok()
}

/// Real, effective and saved.
fn identities(status: &str, name: &str) -> Option<[u32; 3]> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let mut words = line.split_whitespace().map(str::parse);
    Some([
        words.next()?.ok()?,
        words.next()?.ok()?,
        words.next()?.ok()?,
    ])
}

/// Threads may have filters of their own.
fn is_filtered(directory: &Path) -> bool {
    let threads = fs::read_dir(directory.join("task"))
        .into_iter()
        .flatten()
        .flatten();
    threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok())
        .any(|status| number(&status, "Seccomp:").is_some_and(|mode| mode != 0))
}

fn foreign_namespaces(directory: &Path, home: &Path) -> Vec<String> {
    let link = |process: &Path, kind: &str| fs::read_link(process.join("ns").join(kind)).ok();
    let foreign = NAMESPACES.into_iter().filter(|kind| {
        let expected = match *kind {
            "user" | "uts" => Path::new("/proc/self"),
            _ => home,
        };
        match (link(directory, kind), link(expected, kind)) {
            (Some(its), Some(ours)) => its != ours,
            _ => false,
        }
    });
    foreign.map(str::to_owned).collect()
}

fn descriptors(
    directory: &Path,
    mounts: &mut Mounts,
    watchable: &mut Watchable,
) -> Vec<Descriptor> {
    let links = fs::read_dir(directory.join("fd"))
        .into_iter()
        .flatten()
        .flatten();
    let mut found: Vec<Descriptor> = links
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            let link = fs::read_link(entry.path()).ok()?;
            let link = link.to_string_lossy().into_owned();
            Some(descriptor(directory, number, link, mounts, watchable))
        })
        .collect();
    found.sort_by_key(|descriptor| descriptor.number);
    found
}

fn descriptor(
    directory: &Path,
    number: i32,
    link: String,
    mounts: &mut Mounts,
    watchable: &mut Watchable,
) -> Descriptor {
    let path = directory.join("fd").join(number.to_string());
    let facts = || fs::read_to_string(directory.join("fdinfo").join(number.to_string()));
    let mut found = Descriptor {
        number,
        ..Descriptor::default()
    };
    if link.starts_with("anon_inode:") {
        if link.ends_with("inotify") || link.ends_with("[fanotify]") {
            found.watches = watches(
                &facts().unwrap_or_default(),
                &mounts.overlays(directory).unwrap_or_default(),
                |number| watchable.has(number),
            );
        }
    } else if link.starts_with("socket:") {
        found.protocol = sys::socket_protocol(&path);
    } else if link.starts_with('/') {
        found.file = fs::metadata(&path)
            .ok()
            .map(|metadata| file(directory, &link, &metadata));
        found.unseen_mount = facts()
            .ok()
            .and_then(|facts| number_of_mount(&facts))
            .and_then(|mount| mounts.sees(directory, mount))
            .is_some_and(|sees| !sees);
    }
    found.link = link;
    found
}

fn number_of_mount(facts: &str) -> Option<u64> {
    let line = facts
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))?;
    line.trim().parse().ok()
}

/// What fdinfo says of an inotify or fanotify descriptor: a line for each watch, with the numbers of the file. Those of which a
/// path is found are like none.
fn watches(
    facts: &str,
    overlays: &HashSet<(u64, u64)>,
    mut is_found: impl FnMut(Number) -> bool,
) -> Watches {
    let lines = facts.lines().filter(|line| {
        line.starts_with("inotify wd:")
            || line.starts_with("fanotify ino:")
            || line.starts_with("fanotify mnt_id:")
            || line.starts_with("fanotify sdev:")
    });
    let hexadecimal = |line: &str, name: &str| {
        let word = line.split(' ').find_map(|word| word.strip_prefix(name))?;
        u64::from_str_radix(word, 16).ok()
    };
    let devices = lines.filter_map(|line| {
        // As the kernel keeps it: 12 bits and 20.
        let device = hexadecimal(line, "sdev:").map(|device| (device >> 20, device & 0xf_ffff));
        let number = device
            .zip(hexadecimal(line, "ino:"))
            .map(|((major, minor), inode)| (major, minor, inode));
        match number {
            Some(number) if is_found(number) => None,
            _ => Some(device),
        }
    });
    devices.fold(Watches::Nothing, |known, device| match device {
        Some(device) if overlays.contains(&device) => Watches::Overlay,
        _ if known == Watches::Overlay => known,
        _ => Watches::Files,
    })
}

fn file(directory: &Path, link: &str, metadata: &Metadata) -> File {
    let kind = metadata.file_type();
    File {
        unnamed: link.ends_with(" (deleted)") && !is_named(directory, link, metadata),
        links: metadata.nlink(),
        bytes: metadata.blocks() * 512,
        device: kind.is_char_device().then(|| numbers(metadata.rdev())),
    }
}

fn numbers(device: u64) -> (u32, u32) {
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    (small(major(device)), small(minor(device)))
}

/// A file may really be called `x (deleted)`.
fn is_named(directory: &Path, link: &str, metadata: &Metadata) -> bool {
    let path = directory.join("root").join(link.trim_start_matches('/'));
    fs::symlink_metadata(path)
        .is_ok_and(|there| (there.dev(), there.ino()) == (metadata.dev(), metadata.ino()))
}

fn mappings(directory: &Path) -> Vec<Mapping> {
    let text = fs::read(directory.join("maps")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines()
        .filter_map(|line| mapping(directory, line))
        .collect()
}

/// Only those about which there may be something to say.
fn mapping(directory: &Path, line: &str) -> Option<Mapping> {
    let mut words = line.splitn(6, ' ');
    let range = words.next()?;
    let link = words.nth(4)?.trim_start();
    let is_gone = link.ends_with(" (deleted)");
    if !is_gone && !link.starts_with("anon_inode:") && !checkup::is_gpu(link) {
        return None;
    }
    let behind = || fs::metadata(directory.join("map_files").join(trimmed(range)?)).ok();
    Some(Mapping {
        file: is_gone
            .then(behind)
            .flatten()
            .map(|metadata| file(directory, link, &metadata)),
        range: range.to_owned(),
        link: link.to_owned(),
    })
}

/// `maps` pads addresses with zeros and `map_files` does not.
fn trimmed(range: &str) -> Option<String> {
    let (start, end) = range.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some(format!("{:x}-{:x}", number(start)?, number(end)?))
}

/// What the processes see mounted, read once for each mount namespace.
#[derive(Default)]
struct Mounts(HashMap<PathBuf, Seen>);

#[derive(Default)]
struct Seen {
    numbers: HashSet<u64>,
    overlays: HashSet<(u64, u64)>,
}

impl Mounts {
    fn sees(&mut self, process: &Path, mount: u64) -> Option<bool> {
        Some(self.of(process)?.numbers.contains(&mount))
    }

    fn overlays(&mut self, process: &Path) -> Option<HashSet<(u64, u64)>> {
        Some(self.of(process)?.overlays.clone())
    }

    /// None if it cannot be read, or has nothing.
    fn of(&mut self, process: &Path) -> Option<&Seen> {
        let namespace = fs::read_link(process.join("ns/mnt")).ok()?;
        if !self.0.contains_key(&namespace) {
            let text = fs::read_to_string(process.join("mountinfo")).ok()?;
            self.0.insert(namespace.clone(), Seen::parse(&text));
        }
        self.0
            .get(&namespace)
            .filter(|seen| !seen.numbers.is_empty())
    }
}

impl Seen {
    fn parse(mountinfo: &str) -> Self {
        let mut seen = Self::default();
        for line in mountinfo.lines() {
            let mut words = line.split(' ');
            if let Some(number) = words.next().and_then(|word| word.parse().ok()) {
                seen.numbers.insert(number);
            }
            let device = words.nth(1).and_then(|word| word.split_once(':'));
            let is_overlay = line
                .split_once(" - ")
                .is_some_and(|(_, kind)| kind.starts_with("overlay "));
            if let (true, Some((major, minor))) = (is_overlay, device)
                && let (Ok(major), Ok(minor)) = (major.parse(), minor.parse())
            {
                seen.overlays.insert((major, minor));
            }
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proc_says_is_read() {
        let status = "Name:\tx\nTracerPid:\t9\nUid:\t0\t1\t2\t3\nGid:\t4\t5\t6\t7\nSeccomp:\t2\n";
        assert_eq!(number(status, "TracerPid:"), Some(9));
        assert_eq!(identities(status, "Uid:"), Some([0, 1, 2]));
        assert_eq!(identities(status, "Gid:"), Some([4, 5, 6]));
        assert_eq!(
            number_of_mount("pos:\t0\nflags:\t02\nmnt_id:\t93\nino:\t5\n"),
            Some(93)
        );
        let seen = Seen::parse(
            "41 40 0:35 / / rw - overlay overlay rw,lowerdir=/a\n42 41 0:52 / /proc rw - proc proc rw\n",
        );
        assert_eq!(seen.numbers, HashSet::from([41, 42]));
        assert_eq!(seen.overlays, HashSet::from([(0, 35)]));
        let watch =
            "pos:\t0\ninotify wd:1 ino:2f sdev:23 mask:100 ignored_mask:0 fhandle-bytes:8\n";
        let never = |_| false;
        assert_eq!(watches(watch, &seen.overlays, never), Watches::Overlay);
        assert_eq!(watches(watch, &HashSet::new(), never), Watches::Files);
        assert_eq!(
            watches("pos:\t0\n", &seen.overlays, never),
            Watches::Nothing
        );
        let found = |number| number == (0, 35, 47);
        assert_eq!(watches(watch, &seen.overlays, found), Watches::Nothing);
        let mark = "fanotify ino:2f sdev:23 mflags:0 mask:100 ignored_mask:0 fhandle-bytes:8\n";
        assert_eq!(watches(mark, &seen.overlays, found), Watches::Nothing);
        let mount = "fanotify mnt_id:2f mflags:0 mask:1 ignored_mask:0\n";
        assert_eq!(watches(mount, &seen.overlays, |_| true), Watches::Files);
        assert_eq!(
            trimmed("00400000-00401000").as_deref(),
            Some("400000-401000")
        );
    }

    #[test]
    fn the_document_follows_the_table() {
        crate::stored::assert_document("checkup.md", &checkup::document());
    }

    #[test]
    fn a_file_that_is_called_deleted_is_none_that_was() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let path = directory.path().join("x (deleted)");
        fs::write(&path, "x").expect("the directory is writable");
        let metadata = fs::metadata(&path).expect("it is there");
        let own = Path::new("/proc/self");
        let link = path.to_string_lossy();
        assert!(!file(own, &link, &metadata).unnamed);
        fs::remove_file(&path).expect("it is there");
        assert!(file(own, &link, &metadata).unnamed);
    }

    #[test]
    fn a_socket_says_its_protocol() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("there are ports");
        let number = std::os::fd::AsRawFd::as_raw_fd(&socket);
        let path = PathBuf::from(format!("/proc/self/fd/{number}"));
        assert_eq!(sys::socket_protocol(&path).as_deref(), Some("TCP"));
        assert_eq!(sys::socket_protocol(Path::new("/proc/self/status")), None);
    }
}
