//! The app's own files: found and packed while it is frozen, put in place before it is restored.
//!
//! ```text
//!  start ──list──▶ what is there (tree)
//!  frozen ─walk──▶ what is there now ──differs, or is named──▶ rows and blocks       (take)
//!  restore: rows ─▶ files in the making, beside their places ─▶ switched in ─▶ the job runs: what they replaced is dropped
//!                                                                          └▶ it cannot: everything back       (put)
//! ```
//!
//! Which paths are meant is decided in `reprieve_core::preserve`. Paths are followed without any symbolic link, so that
//! nobody can lead us elsewhere by exchanging a directory; files on other mounts are touched only when they are named.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;

use nix::sys::stat::FileStat;
use reprieve_core::preserve::Rules;

use crate::preserve::tree::Tree;

pub(crate) mod put;
pub(crate) mod take;
pub(crate) mod tree;

/// What tells a file from any other and from itself after a change. Only for as long as the machine is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    size: i64,
    /// In seconds and nanoseconds since the Unix epoch.
    modified: (i64, i64),
    pub changed: (i64, i64),
}

impl Identity {
    pub(crate) fn of(stat: &FileStat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

/// The files that are as a snapshot has them, and those that it says are not there.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Of the snapshot.
    pub manifest: String,
    /// Of a file that could change without its identity changing, there is none.
    pub files: HashMap<Vec<u8>, Option<Identity>>,
    pub deleted: Vec<Vec<u8>>,
}

/// Preserves one job's files.
#[derive(Debug)]
pub(crate) struct Preserver {
    pub rules: Rules,
    pub tree: Tree,
    /// What was there before the job had touched anything: inode and time of change.
    start: BTreeMap<Vec<u8>, Identity>,
    seen: Mutex<Seen>,
}

impl Preserver {
    /// Looks at what is there, before the job runs. Blocks the calling thread.
    pub(crate) fn begin(rules: Rules, own: &[PathBuf]) -> io::Result<Self> {
        let tree = Tree::open(own)?;
        Ok(Self::with_tree(rules, tree))
    }

    fn with_tree(rules: Rules, tree: Tree) -> Self {
        let found = tree.walk(&rules).found;
        let start = found
            .into_iter()
            .map(|found| (found.path, Identity::of(&found.stat)));
        Self {
            start: start.collect(),
            rules,
            tree,
            seen: Mutex::default(),
        }
    }

    /// How many files were there at the start.
    pub(crate) fn count(&self) -> usize {
        self.start.len()
    }

    /// From now on, these are known to be as the snapshot has them.
    pub(crate) fn saw(&self, seen: Seen) {
        *self.seen.lock().expect("no holder of this lock panics") = seen;
    }
}

#[cfg(test)]
mod tests;
