//! A root directory and what lies below it, without following a symbolic link or entering a mount that is not named.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, Mode, fstatat};
use reprieve_core::preserve::{self, OWN_NAME, Place, Reason, Rules, is_below, kind};

/// File systems that are made of what the kernel knows, and hold no files.
const MADE_UP: &[&str] = &[
    "bpf",
    "binfmt_misc",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "fusectl",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "securityfs",
    "sysfs",
    "tracefs",
];

/// Where everything begins.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    /// Below the root, with the kind of file system.
    mounts: BTreeMap<Vec<u8>, String>,
    /// Ours: never looked at.
    own: Vec<Vec<u8>>,
}

/// Something that is there.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub path: Vec<u8>,
    pub stat: FileStat,
    pub reason: Reason,
}

/// What a walk came by.
#[derive(Debug, Default)]
pub(crate) struct Walked {
    /// By path.
    pub found: Vec<Found>,
    /// Directories into which nobody could look, and why.
    pub closed: Vec<(Vec<u8>, Errno)>,
}

impl Tree {
    /// The root of this process, where `own` are paths that belong to us and not to the job.
    pub(crate) fn open(own: &[PathBuf]) -> io::Result<Self> {
        let mounts = fs::read("/proc/self/mountinfo")?;
        Self::at(Path::new("/"), mounts_in(&mounts), own)
    }

    pub(crate) fn at(
        root: &Path,
        mounts: BTreeMap<Vec<u8>, String>,
        own: &[PathBuf],
    ) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(root, flags, Mode::empty())?;
        let bytes = |path: &PathBuf| path.as_os_str().as_bytes().to_vec();
        Ok(Self {
            root,
            mounts,
            own: own.iter().map(bytes).collect(),
        })
    }

    /// Opens a plain path.
    pub(crate) fn open_path(&self, path: &[u8], flags: OFlag) -> nix::Result<OwnedFd> {
        let relative = match path.strip_prefix(b"/") {
            Some(b"") | None => b".",
            Some(rest) => rest,
        };
        let resolve = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(resolve);
        openat2(self.root.as_fd(), OsStr::from_bytes(relative), how)
    }

    /// The directory that a path lies in, and the name there.
    pub(crate) fn parent<'a>(&self, path: &'a [u8]) -> nix::Result<(OwnedFd, &'a OsStr)> {
        let end = path
            .iter()
            .rposition(|&byte| byte == b'/')
            .ok_or(Errno::EINVAL)?;
        let directory = match end {
            0 => b"/",
            end => &path[..end],
        };
        let directory = self.open_path(directory, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        Ok((directory, OsStr::from_bytes(&path[end + 1..])))
    }

    pub(crate) fn stat(&self, path: &[u8]) -> nix::Result<FileStat> {
        let (directory, name) = self.parent(path)?;
        fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    pub(crate) fn place(&self, path: &[u8]) -> Place {
        let is_mounted = |mount: &Vec<u8>| path == mount.as_slice() || is_below(path, mount);
        match self.mounts.keys().any(is_mounted) {
            true => Place::OtherMount,
            false => Place::OwnLayer,
        }
    }

    fn is_own(&self, path: &[u8]) -> bool {
        self.own
            .iter()
            .any(|own| own == path || is_below(path, own))
    }

    /// Whether a walk may enter this mount.
    fn is_open_to(&self, mount: &[u8], rules: &Rules) -> bool {
        let is_named = |pattern: &preserve::Pattern| {
            let base = pattern.base();
            base == mount || is_below(&base, mount)
        };
        !MADE_UP.contains(&self.mounts[mount].as_str()) && rules.named.iter().any(is_named)
    }

    /// Everything that the rules are about.
    pub(crate) fn walk(&self, rules: &Rules) -> Walked {
        let mut walked = Walked::default();
        let mut directories = Vec::new();
        for root in rules.roots() {
            if root == b"/" {
                directories.push((root, Place::OwnLayer));
                continue;
            }
            match self.stat(&root) {
                Ok(stat) => {
                    let place = self.place(&root);
                    self.look(root, stat, place, rules, &mut walked, &mut directories);
                }
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(error) => walked.closed.push((root, error)),
            }
        }
        while let Some((directory, place)) = directories.pop() {
            if let Err(error) = self.list(&directory, place, rules, &mut walked, &mut directories)
                && error != Errno::ENOENT
            {
                walked.closed.push((directory, error));
            }
        }
        walked
            .found
            .sort_unstable_by(|one, other| one.path.cmp(&other.path));
        walked.found.dedup_by(|one, other| one.path == other.path);
        walked
    }

    fn list(
        &self,
        directory: &[u8],
        place: Place,
        rules: &Rules,
        walked: &mut Walked,
        directories: &mut Vec<(Vec<u8>, Place)>,
    ) -> nix::Result<()> {
        let opened = self.open_path(directory, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let mut entries = Dir::from_fd(opened.try_clone().map_err(|_| Errno::EMFILE)?)?;
        for entry in entries.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") || name.starts_with(OWN_NAME.as_bytes()) {
                continue;
            }
            let mut path = directory.to_vec();
            if directory != b"/" {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            let place = match self.mounts.contains_key(&path) {
                true if !self.is_open_to(&path, rules) => continue,
                true => Place::OtherMount,
                false => place,
            };
            match fstatat(
                opened.as_fd(),
                entry.file_name(),
                AtFlags::AT_SYMLINK_NOFOLLOW,
            ) {
                Ok(stat) => self.look(path, stat, place, rules, walked, directories),
                // It went while we came.
                Err(Errno::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn look(
        &self,
        path: Vec<u8>,
        stat: FileStat,
        place: Place,
        rules: &Rules,
        walked: &mut Walked,
        directories: &mut Vec<(Vec<u8>, Place)>,
    ) {
        if self.is_own(&path) {
            return;
        }
        if stat.st_mode & kind::MASK == kind::DIRECTORY && rules.reaches_into(&path, place) {
            directories.push((path.clone(), place));
        }
        if let Some(reason) = rules.reason(&path, place) {
            walked.found.push(Found { path, stat, reason });
        }
    }
}

/// The mounts below the root, as proc(5) describes them.
fn mounts_in(info: &[u8]) -> BTreeMap<Vec<u8>, String> {
    let mount = |line: &[u8]| {
        let words: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let dash = words.iter().position(|word| *word == b"-")?;
        let kind = String::from_utf8_lossy(words.get(dash + 1)?).into_owned();
        Some((unescaped(words.get(4)?), kind))
    };
    let mounts = info.split(|&byte| byte == b'\n').filter_map(mount);
    mounts.filter(|(path, _)| path != b"/").collect()
}

/// Spaces and the like are written as three octal digits.
fn unescaped(word: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&byte, further)) = rest.split_first() {
        let octal = further
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| {
                let text = std::str::from_utf8(digits).ok()?;
                u8::from_str_radix(text, 8).ok()
            });
        match octal {
            Some(byte) => {
                plain.push(byte);
                rest = &further[3..];
            }
            None => {
                plain.push(byte);
                rest = further;
            }
        }
    }
    plain
}

/// The regular files that these processes can write to without anybody being told: open for writing, or mapped.
pub(crate) fn writable(pids: &[i32]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for pid in pids {
        let process = PathBuf::from(format!("/proc/{pid}"));
        // A process may have gone.
        for entry in fs::read_dir(process.join("fd"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let info = fs::read_to_string(process.join("fdinfo").join(entry.file_name()));
            let flags = info.ok().and_then(|info| {
                let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
                i32::from_str_radix(flags.trim(), 8).ok()
            });
            let is_writable = flags.is_some_and(|flags| {
                let access = flags & nix::libc::O_ACCMODE;
                access == nix::libc::O_WRONLY || access == nix::libc::O_RDWR
            });
            if is_writable && let Ok(path) = fs::read_link(entry.path()) {
                found.push(path.into_os_string().into_vec());
            }
        }
        let maps = fs::read(process.join("maps")).unwrap_or_default();
        for line in maps.split(|&byte| byte == b'\n') {
            let mut words = line.splitn(6, |&byte| byte == b' ');
            let permissions = words.nth(1).unwrap_or_default();
            if matches!(permissions, [_, b'w', _, b's'])
                && let Some(path) = words.nth(3)
            {
                found.push(unescaped(path.trim_ascii_start()));
            }
        }
    }
    found.retain(|path| preserve::is_plain(path));
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_with_their_kinds_and_spaces() {
        let info = b"22 1 0:20 / / rw - overlay overlay rw\n23 22 0:21 / /proc rw,nosuid shared:1 - proc proc rw\n\
                     24 22 8:1 /a /my\\040data rw - ext4 /dev/sda1 rw\nnonsense\n";
        let mounts = mounts_in(info);
        let expected = [("/my data", "ext4"), ("/proc", "proc")];
        assert_eq!(mounts.len(), 2);
        for (path, kind) in expected {
            assert_eq!(mounts.get(path.as_bytes()).map(String::as_str), Some(kind));
        }
    }

    #[test]
    fn a_walk_follows_no_link_and_enters_no_mount_that_is_not_named() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let root = directory.path();
        for path in ["a/b", "volume/c", "other", "own/d"] {
            fs::create_dir_all(root.join(path)).expect("the directory is ours");
        }
        for path in [
            "a/file",
            "a/b/file",
            "volume/c/file",
            "other/file",
            "own/d/file",
            "a/.reprieve-1",
        ] {
            fs::write(root.join(path), "x").expect("the directory is ours");
        }
        std::os::unix::fs::symlink("../other", root.join("a/link")).expect("the directory is ours");
        let mounts = BTreeMap::from([(b"/volume".to_vec(), "ext4".to_owned())]);
        let tree = Tree::at(root, mounts, &["/own".into()]).expect("it is there");
        let walked = |rules: &Rules| {
            let found = tree.walk(rules).found;
            let paths = found
                .into_iter()
                .map(|found| String::from_utf8(found.path).expect("text"));
            paths.collect::<Vec<_>>()
        };
        let pattern = |text| preserve::Pattern::absolute(text).expect("it is a pattern");
        let auto = Rules {
            auto: true,
            ..Rules::default()
        };
        let layer = [
            "/a",
            "/a/b",
            "/a/b/file",
            "/a/file",
            "/a/link",
            "/other",
            "/other/file",
        ];
        assert_eq!(walked(&auto), layer);
        let named = Rules {
            named: vec![pattern("/volume/**/file"), pattern("/a/link")],
            ..Rules::default()
        };
        assert_eq!(walked(&named), ["/a/link", "/volume/c/file"]);
        let through = Rules {
            named: vec![pattern("/a/link/file")],
            ..Rules::default()
        };
        assert_eq!(
            tree.walk(&through).closed,
            [(b"/a/link/file".to_vec(), Errno::ELOOP)]
        );
        assert_eq!(
            tree.open_path(b"/a/link/file", OFlag::O_RDONLY).err(),
            Some(Errno::ELOOP)
        );
        assert!(tree.open_path(b"/a/../other/file", OFlag::O_RDONLY).is_ok());
        assert!(tree.open_path(b"/../etc/passwd", OFlag::O_RDONLY).is_err());
    }
}
