//! Finds the app's files and packs what of them is not in the store, while the app is frozen.
//!
//! A file is read unless it is the same as when the snapshot before was taken, by inode, size and times, and nobody could
//! have written to it without these telling. What is read is compared with that snapshot page by page. Files that go while
//! we look are not there; whatever else stands in the way of the whole truth fails the checkpoint.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{FileStat, fstat};
use nix::unistd::{Whence, lseek};
use reprieve_core::manifest;
use reprieve_core::preserve::{self, Privileged, Reason, is_below, kind};

use crate::pages::capture::{Blocks, CaptureError, Filling, is_zero};
use crate::pages::known::Known;
use crate::pages::preserved::{Attribute, Moment, Pages, Preserved, Role, shown};
use crate::pages::{BLOCK, PAGE};
use crate::preserve::tree::{Found, Walked, writable};
use crate::preserve::{Identity, Preserver, Seen};

/// A file that changed so shortly before could change again without its times telling.
const SETTLED_S: i64 = 1;

/// How often a file is read that somebody keeps writing to.
const TRIES: u32 = 3;

/// Why the files cannot be had whole.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    #[error(
        "{} cannot be read and would be left out of the snapshot; give Reprieve the right to, or leave it out on purpose \
         (--preserve-exclude)",
        shown(path)
    )]
    Unreadable {
        path: Vec<u8>,
        #[source]
        source: Errno,
    },
    #[error("{} lies behind a symbolic link: name the path that it leads to", shown(.0))]
    BehindLink(Vec<u8>),
    #[error(transparent)]
    Pack(#[from] CaptureError),
    #[error("nobody waits for the files any more")]
    Stopped,
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Taken {
    pub files: Vec<Preserved>,
    pub seen: Seen,
    pub sizes: manifest::Preserved,
    /// Bytes that were looked at.
    pub read: u64,
}

impl Preserver {
    /// Looks at everything that the rules are about. `known` is the snapshot before, which `self.seen` may be about too.
    /// Blocks the calling thread.
    pub(crate) fn take(
        &self,
        pids: &[i32],
        base: Option<&str>,
        known: &Known,
        blocks: &Blocks,
        stop: &AtomicBool,
    ) -> Result<Taken, TakeError> {
        let walked = self.tree.walk(&self.rules);
        self.mind_what_is_closed(&walked)?;
        let seen = self.seen.lock().expect("no holder of this lock panics");
        let mut taking = Taking {
            of: self,
            seen: &seen,
            is_base: base == Some(seen.manifest.as_str()),
            known,
            writable: writable(pids).into_iter().collect(),
            filling: Filling::new(blocks),
            stop,
            names: HashMap::new(),
            taken: Taken {
                files: Vec::new(),
                seen: Seen::default(),
                sizes: manifest::Preserved::default(),
                read: 0,
            },
            buffer: vec![0; BLOCK],
            now: now(),
        };
        for found in &walked.found {
            if taking.is_wanted(found) {
                taking.add(found)?;
            }
        }
        taking.add_deleted(&walked);
        taking.add_the_way();
        let Taking {
            filling, mut taken, ..
        } = taking;
        filling.finish()?;
        taken
            .files
            .sort_unstable_by(|one, other| one.path.cmp(&other.path));
        taken.sizes.files = taken.files.len() as u64;
        Ok(taken)
    }

    /// What is named has to be looked into. Of the rest, a job writes what its supervisor may read.
    fn mind_what_is_closed(&self, walked: &Walked) -> Result<(), TakeError> {
        for (path, source) in &walked.closed {
            if *source == Errno::ELOOP {
                return Err(TakeError::BehindLink(path.clone()));
            }
            if self.rules.reason(path, self.tree.place(path)) == Some(Reason::Named) {
                let (path, source) = (path.clone(), *source);
                return Err(TakeError::Unreadable { path, source });
            }
        }
        Ok(())
    }
}

fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

struct Taking<'a> {
    of: &'a Preserver,
    seen: &'a Seen,
    /// Whether what was seen is what is known.
    is_base: bool,
    known: &'a Known,
    writable: HashSet<Vec<u8>>,
    filling: Filling<'a>,
    stop: &'a AtomicBool,
    /// The first path of each file that has several.
    names: HashMap<(u64, u64), Vec<u8>>,
    taken: Taken,
    buffer: Vec<u8>,
    now: i64,
}

impl Taking<'_> {
    fn is_wanted(&self, found: &Found) -> bool {
        let path = found.path.as_slice();
        found.reason == Reason::Named
            || self.of.start.get(path) != Some(&Identity::of(&found.stat))
            || self.seen.files.contains_key(path)
            || self.writable.contains(path)
    }

    fn add(&mut self, found: &Found) -> Result<(), TakeError> {
        let failed = |source| TakeError::Unreadable {
            path: found.path.clone(),
            source,
        };
        match self.row(found) {
            Ok(row) => {
                self.taken.files.extend(row);
                Ok(())
            }
            // It went while we came.
            Err(Problem::Errno(Errno::ENOENT | Errno::ENOTDIR)) => Ok(()),
            Err(Problem::Errno(source)) => Err(failed(source)),
            Err(Problem::Pack(error)) => Err(error.into()),
            Err(Problem::Stopped) => Err(TakeError::Stopped),
        }
    }

    fn row(&mut self, found: &Found) -> Result<Option<Preserved>, Problem> {
        let stat = &found.stat;
        let file_kind = stat.st_mode & kind::MASK;
        let privileged = self.of.rules.privileged == Privileged::Keep;
        if matches!(file_kind, kind::BLOCK | kind::CHARACTER) && !privileged {
            tracing::warn!(
                path = shown(&found.path),
                "a device is not preserved; --preserve-privileged keep allows it"
            );
            return Ok(None);
        }
        if file_kind == kind::REGULAR && stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.names.get(&inode) {
                let mut row = row_of(&found.path, stat);
                row.role = Role::Link.into();
                row.size = 0;
                row.target = first.clone();
                self.taken.seen.files.insert(found.path.clone(), None);
                return Ok(Some(row));
            }
            self.names.insert(inode, found.path.clone());
        }
        let mut row = match file_kind {
            kind::REGULAR => return self.regular(found).map(Some),
            _ => row_of(&found.path, stat),
        };
        if file_kind == kind::LINK {
            let (directory, name) = self.of.tree.parent(&found.path)?;
            row.target = readlinkat(directory, name)?.as_bytes().to_vec();
        } else {
            let node = self.of.tree.open_path(&found.path, OFlag::O_PATH)?;
            self.describe(&node, &mut row)?;
        }
        self.taken.seen.files.insert(found.path.clone(), None);
        Ok(Some(row))
    }

    /// Attributes, and rights without those that may not travel.
    fn describe(&self, node: &OwnedFd, row: &mut Preserved) -> Result<(), Problem> {
        let privileged = self.of.rules.privileged;
        let bits = preserve::privileged_bits(row.mode);
        if bits != 0 && privileged == Privileged::Refuse {
            tracing::warn!(
                path = row.name(),
                "a file is preserved without its setuid or setgid bit; --preserve-privileged keep allows it"
            );
            row.mode &= !bits;
        }
        let path = format!("/proc/self/fd/{}", node.as_raw_fd());
        let names = match xattr::list_deref(&path) {
            Ok(names) => names,
            Err(error) if is_unsupported(&error) => return Ok(()),
            Err(error) => return Err(errno(&error).into()),
        };
        for name in names {
            if !preserve::travels(name.as_bytes(), privileged) {
                continue;
            }
            let value = match xattr::get_deref(&path, &name) {
                Ok(Some(value)) => value,
                Ok(None) => continue,
                Err(error) => return Err(errno(&error).into()),
            };
            row.attributes.push(Attribute {
                name: name.as_bytes().to_vec(),
                value,
            });
        }
        row.attributes
            .sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Ok(())
    }

    fn regular(&mut self, found: &Found) -> Result<Preserved, Problem> {
        let path = found.path.as_slice();
        let identity = Identity::of(&found.stat);
        let is_writable = self.writable.contains(path);
        let known = self.known.preserved(path);
        if let Some(known) = known
            && self.is_base
            && !is_writable
            && self.seen.files.get(path) == Some(&Some(identity))
        {
            self.taken.sizes.bytes += known
                .extents
                .iter()
                .map(|extent| u64::from(extent.bytes))
                .sum::<u64>();
            self.taken.seen.files.insert(path.to_vec(), Some(identity));
            return Ok(known.clone());
        }
        let mut tries = 1;
        loop {
            let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOATIME;
            let opened = match self.of.tree.open_path(path, flags) {
                // Only the owner may read without a trace.
                Err(Errno::EPERM) => {
                    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
                    self.of.tree.open_path(path, flags)?
                }
                opened => opened?,
            };
            let before = fstat(&opened)?;
            if before.st_mode & kind::MASK != kind::REGULAR {
                return Err(Errno::ENOENT.into());
            }
            let sizes = self.taken.sizes;
            let mut row = row_of(path, &before);
            self.describe(&opened, &mut row)?;
            let file = File::from(opened);
            self.contents(&file, known, &mut row)?;
            let after = fstat(&file)?;
            if Identity::of(&before) == Identity::of(&after) || tries == TRIES {
                if tries == TRIES {
                    tracing::warn!(
                        path = shown(path),
                        "a file changed each time that it was read; something outside of the job writes it"
                    );
                }
                let is_settled = after.st_ctime.abs_diff(self.now) > SETTLED_S.unsigned_abs();
                let identity =
                    (is_settled && !is_writable && tries < TRIES).then(|| Identity::of(&after));
                self.taken.seen.files.insert(path.to_vec(), identity);
                return Ok(row);
            }
            self.taken.sizes = sizes;
            tries += 1;
        }
    }

    /// Reads what is no hole.
    fn contents(
        &mut self,
        file: &File,
        known: Option<&Preserved>,
        row: &mut Preserved,
    ) -> Result<(), Problem> {
        let pages = known.map(Pages::of);
        let known = known.zip(pages.as_ref());
        let mut at = 0;
        while at < row.size {
            let (start, end) = data(file, at, row.size)?;
            at = start;
            while at < end {
                if self.stop.load(Ordering::Relaxed) {
                    return Err(Problem::Stopped);
                }
                let wanted =
                    usize::try_from((end - at).min(BLOCK as u64)).expect("a block is small");
                let read = read_whole(file, &mut self.buffer[..wanted], at)?;
                self.taken.read += read as u64;
                if read < wanted {
                    // It is shorter than it was.
                    row.size = at + read as u64;
                }
                let buffer = std::mem::take(&mut self.buffer);
                let kept = self.keep(&buffer[..read], at, known, row);
                self.buffer = buffer;
                kept?;
                if read < wanted {
                    return Ok(());
                }
                at += read as u64;
            }
        }
        Ok(())
    }

    fn keep(
        &mut self,
        bytes: &[u8],
        at: u64,
        known: Option<(&Preserved, &Pages)>,
        row: &mut Preserved,
    ) -> Result<(), Problem> {
        let mut padded = [0; PAGE];
        for (number, piece) in bytes.chunks(PAGE).enumerate() {
            let page: &[u8] = match piece.len() {
                PAGE => piece,
                length => {
                    padded[..length].copy_from_slice(piece);
                    &padded
                }
            };
            if is_zero(page) {
                continue;
            }
            let offset = at + (number * PAGE) as u64;
            let length = u32::try_from(piece.len()).expect("a page is small");
            let hash = self.known.key.hash(page);
            let found = known.and_then(|(known, pages)| known.find(pages, offset, length, &hash));
            self.taken.sizes.bytes += piece.len() as u64;
            let place = match found {
                Some(place) => place,
                None => {
                    self.taken.sizes.changed += piece.len() as u64;
                    self.filling.put(piece).map_err(Problem::Pack)?
                }
            };
            row.push(offset, length, place, &hash);
        }
        Ok(())
    }

    /// What was there and is not any more.
    fn add_deleted(&mut self, walked: &Walked) {
        let there: HashSet<&[u8]> = walked
            .found
            .iter()
            .map(|found| found.path.as_slice())
            .collect();
        let is_hidden = |path: &[u8]| {
            walked
                .closed
                .iter()
                .any(|(closed, _)| is_below(path, closed))
        };
        let before = self.of.start.keys().chain(&self.seen.deleted);
        let mut gone: Vec<&Vec<u8>> = before
            .filter(|path| !there.contains(path.as_slice()) && !is_hidden(path))
            .filter(|path| matches!(self.of.tree.stat(path), Err(Errno::ENOENT | Errno::ENOTDIR)))
            .collect();
        gone.sort();
        gone.dedup();
        let files: HashMap<&[u8], u32> = self
            .taken
            .files
            .iter()
            .map(|file| (file.path.as_slice(), file.kind()))
            .collect();
        // What lay in a directory that is something else now went with it.
        gone.retain(|path| {
            let mut above = path.as_slice();
            while let Some(end) = above.iter().rposition(|&byte| byte == b'/') {
                above = &above[..end];
                if files
                    .get(above)
                    .is_some_and(|found| *found != kind::DIRECTORY)
                {
                    return false;
                }
            }
            true
        });
        let rows: Vec<Preserved> = gone
            .iter()
            .map(|path| Preserved {
                path: path.to_vec(),
                role: Role::Deleted.into(),
                ..Preserved::default()
            })
            .collect();
        self.taken.seen.deleted = gone.into_iter().cloned().collect();
        self.taken.files.extend(rows);
    }

    /// The directories on the way to what is kept.
    fn add_the_way(&mut self) {
        let mut there: HashSet<Vec<u8>> = self
            .taken
            .files
            .iter()
            .map(|file| file.path.clone())
            .collect();
        let mut way = Vec::new();
        for file in self
            .taken
            .files
            .iter()
            .filter(|file| file.role() != Role::Deleted)
        {
            let mut above = file.path.as_slice();
            while let Some(end) = above
                .iter()
                .rposition(|&byte| byte == b'/')
                .filter(|end| *end > 0)
            {
                above = &above[..end];
                if there.contains(above) {
                    break;
                }
                let Ok(stat) = self.of.tree.stat(above) else {
                    break;
                };
                let mut row = row_of(above, &stat);
                row.mode &= !preserve::privileged_bits(row.mode);
                row.role = Role::Implied.into();
                there.insert(above.to_vec());
                way.push(row);
            }
        }
        self.taken.files.extend(way);
    }
}

enum Problem {
    Errno(Errno),
    Pack(CaptureError),
    Stopped,
}

impl From<Errno> for Problem {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(errno(error), Errno::ENOTSUP | Errno::ENOSYS | Errno::EPERM)
}

fn row_of(path: &[u8], stat: &FileStat) -> Preserved {
    let moment = |seconds: i64, nanoseconds: i64| Moment {
        seconds,
        nanoseconds: u32::try_from(nanoseconds).unwrap_or(0),
    };
    let size = match stat.st_mode & kind::MASK {
        kind::REGULAR => u64::try_from(stat.st_size).unwrap_or(0),
        _ => 0,
    };
    let device = match stat.st_mode & kind::MASK {
        kind::BLOCK | kind::CHARACTER => stat.st_rdev,
        _ => 0,
    };
    Preserved {
        path: path.to_vec(),
        role: Role::Whole.into(),
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified: Some(moment(stat.st_mtime, stat.st_mtime_nsec)),
        accessed: Some(moment(stat.st_atime, stat.st_atime_nsec)),
        size,
        device,
        ..Preserved::default()
    }
}

/// The next bytes that are no hole, in whole pages; nothing behind the last ones.
fn data(file: &File, at: u64, size: u64) -> Result<(u64, u64), Errno> {
    let from = i64::try_from(at).map_err(|_| Errno::EFBIG)?;
    let start = match lseek(file, from, Whence::SeekData) {
        Ok(start) => u64::try_from(start).unwrap_or(at),
        Err(Errno::ENXIO) => return Ok((size, size)),
        // The file system does not tell.
        Err(Errno::EINVAL) => return Ok((at, size)),
        Err(error) => return Err(error),
    };
    let end = match lseek(
        file,
        i64::try_from(start).map_err(|_| Errno::EFBIG)?,
        Whence::SeekHole,
    ) {
        Ok(end) => u64::try_from(end).unwrap_or(size),
        Err(Errno::ENXIO) => return Ok((size, size)),
        Err(error) => return Err(error),
    };
    let page = PAGE as u64;
    Ok((
        (start / page * page).max(at),
        end.next_multiple_of(page).min(size),
    ))
}

fn read_whole(file: &File, buffer: &mut [u8], at: u64) -> Result<usize, Errno> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(errno(&error)),
        }
    }
    Ok(filled)
}
