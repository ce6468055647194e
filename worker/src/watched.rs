//! Which watched files (inotify, fanotify) CRIU finds a path for: without a capability it goes through directories, and so does this.
//!
//! What CRIU would find is found here and nothing else: by the same numbers, without following links, whatever is mounted below.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

/// Where CRIU looks by itself, with all that is below (criu/irmap.c). Of the root it looks at nothing else.
const KNOWN: [&str; 8] = [
    "/etc",
    "/var/spool",
    "/var/log",
    "/usr/share/dbus-1/services",
    "/usr/share/dbus-1/system-services",
    "/var/lib/polkit-1/localauthority",
    "/usr/share/polkit-1/actions",
    "/lib/udev",
];

/// So many files are looked at; what comes after them is not known.
const MOST: usize = 1_000_000;

/// A file as the kernel numbers it: major and minor number of the device, and inode.
pub(crate) type Number = (u64, u64, u64);

/// The files that CRIU would find, looked up when the first one is asked for.
#[derive(Debug)]
pub(crate) struct Watchable {
    /// What the job sees as `/`.
    root: PathBuf,
    given: Vec<PathBuf>,
    found: Option<HashSet<Number>>,
}

impl Watchable {
    /// `given` are directories and files besides those that CRIU knows.
    pub(crate) fn new(root: PathBuf, given: &[PathBuf]) -> Self {
        Self {
            root,
            given: given.to_vec(),
            found: None,
        }
    }

    pub(crate) fn has(&mut self, number: Number) -> bool {
        let Self { root, given, found } = self;
        let found = found.get_or_insert_with(|| {
            let known = KNOWN.iter().map(Path::new);
            let mut found = HashSet::new();
            found.extend(self::number(root));
            for path in given.iter().map(PathBuf::as_path).chain(known) {
                let below = path.strip_prefix("/").unwrap_or(path);
                gather(&root.join(below), &mut found);
            }
            found
        });
        found.contains(&number)
    }
}

fn number(path: &Path) -> Option<Number> {
    fs::symlink_metadata(path).ok().map(|found| of(&found))
}

fn of(metadata: &fs::Metadata) -> Number {
    let device = metadata.dev();
    (major(device), minor(device), metadata.ino())
}

/// Adds a file and all that is below it.
fn gather(path: &Path, found: &mut HashSet<Number>) {
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        if found.len() >= MOST {
            return;
        }
        // A directory that was gone through already: mounts may go round in circles.
        if !found.insert(of(&metadata)) || !metadata.is_dir() {
            continue;
        }
        let entries = fs::read_dir(&path).into_iter().flatten().flatten();
        left.extend(entries.map(|entry| entry.path()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_a_directory_is_found_and_what_a_link_leads_to_is_not() {
        let root = tempfile::tempdir().expect("a temporary directory can be made");
        let path = |name: &str| root.path().join(name);
        for directory in ["app/deep", "etc", "other"] {
            fs::create_dir_all(path(directory)).expect("the directory is ours");
        }
        for file in ["app/deep/file", "etc/hosts", "other/file"] {
            fs::write(path(file), "").expect("the directory is ours");
        }
        std::os::unix::fs::symlink(path("other"), path("app/link")).expect("the directory is ours");
        let mut given = Watchable::new(root.path().into(), &["/app".into(), "/none".into()]);
        let mut none = Watchable::new(root.path().into(), &[]);
        for (name, with, without) in [
            ("", true, true),
            ("etc/hosts", true, true),
            ("app", true, false),
            ("app/deep/file", true, false),
            ("app/link", true, false),
            ("other", false, false),
            ("other/file", false, false),
        ] {
            let number = number(&path(name)).expect("it is there");
            assert_eq!(given.has(number), with, "{name}");
            assert_eq!(none.has(number), without, "{name}");
        }
    }
}
