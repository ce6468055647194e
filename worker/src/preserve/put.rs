//! Puts a snapshot's files in place before its processes are restored, so that all of it can be taken back until they run.
//!
//! Everything is made beside its place, under a name of ours, and compared with nothing: what the snapshot has of a path
//! goes before what the host has. Once all of it is there it is switched in, each file at once, and what was there before
//! keeps such a name until the job runs ([`Placed::settle`]). If it never does, dropping [`Placed`] brings everything back.
//! What the snapshot says is deleted goes last. Other files are not touched.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, fstatat, mkdirat, mknodat, utimensat};
use nix::sys::statvfs::fstatvfs;
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use reprieve_core::preserve::{self, OWN_NAME, Refusal, kind};
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::catalog;
use crate::pages::ahead::{Ahead, Room};
use crate::pages::load::{Snapshot, Unusable};
use crate::pages::preserved::{Moment, Preserved, Role, shown};
use crate::preserve::{Identity, Preserver, Seen};

/// How many refused files a message names.
const NAMED: usize = 8;

/// Why the files are not in place. Nothing is left of the attempt.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PutError {
    #[error("{} of the snapshot may not be put here: {}", count(.0.len()), listed(.0))]
    Refused(Vec<(Vec<u8>, Refusal)>),
    #[error("{} cannot be put in its place", shown(path))]
    Failed {
        path: Vec<u8>,
        #[source]
        source: Errno,
    },
    #[error("the snapshot's files need {wanted} bytes where {free} are free")]
    NoRoom { wanted: u64, free: u64 },
    #[error(transparent)]
    Unusable(#[from] Unusable),
}

fn count(files: usize) -> String {
    match files {
        1 => "1 file".to_owned(),
        count => format!("{count} files"),
    }
}

fn listed(files: &[(Vec<u8>, Refusal)]) -> String {
    let named = files.iter().take(NAMED);
    let mut named: Vec<String> = named
        .map(|(path, refusal)| format!("{} {refusal}", shown(path)))
        .collect();
    if files.len() > NAMED {
        named.push(format!("and {} more", files.len() - NAMED));
    }
    named.join("; ")
}

/// What was done, to be taken back in the opposite order.
#[derive(Debug)]
enum Done {
    /// A directory that was not there.
    Made(Vec<u8>),
    /// A directory that was, and how.
    Altered(Vec<u8>, Box<FileStat>),
    /// Under a name of ours beside this path.
    Staged(Vec<u8>, OsString),
    /// At its path; what was there before has this name.
    Switched(Vec<u8>, Option<OsString>),
}

/// Files that are in place, and can be taken back.
#[derive(Debug)]
pub(crate) struct Placed {
    of: Arc<Preserver>,
    done: Vec<Done>,
    seen: Seen,
    deleted: Vec<Vec<u8>>,
    /// Paths, and bytes written.
    pub files: u64,
    pub bytes: u64,
    /// Files of the host that were other than the snapshot's.
    pub replaced: u64,
    is_settled: bool,
}

impl Drop for Placed {
    fn drop(&mut self) {
        if !self.is_settled {
            self.take_back();
        }
    }
}

impl Preserver {
    /// Whether the settings let all of a snapshot's files be put here.
    pub(super) fn refused(&self, files: &[Preserved]) -> Vec<(Vec<u8>, Refusal)> {
        let refused = |file: &Preserved| {
            let mode = match file.role() {
                Role::Link | Role::Deleted => 0,
                _ => file.mode,
            };
            let refusal = preserve::refusal(
                &self.rules,
                &file.path,
                self.tree.place(&file.path),
                mode,
                file.role() == Role::Implied,
                file.attributes
                    .iter()
                    .map(|attribute| attribute.name.as_slice()),
            );
            refusal.map(|refusal| (file.path.clone(), refusal))
        };
        files.iter().filter_map(refused).collect()
    }

    /// Puts the snapshot's files in place. Blocks the calling thread, which must not be one of the runtime's.
    pub(crate) fn put(
        self: &Arc<Self>,
        snapshot: &Arc<Snapshot>,
        ahead_bytes: u64,
        runtime: &Handle,
        deadline: Instant,
    ) -> Result<Placed, PutError> {
        let files = &snapshot.index.preserved;
        let refused = self.refused(files);
        if !refused.is_empty() {
            return Err(PutError::Refused(refused));
        }
        let mut needed: Vec<u32> = files
            .iter()
            .flat_map(|file| &file.extents)
            .map(|extent| extent.block)
            .collect();
        needed.dedup();
        let room = Room::new(ahead_bytes);
        let mut blocks = InOrder {
            ahead: Ahead::new(Arc::clone(snapshot), needed, room, deadline),
            runtime,
            current: None,
        };
        self.place(files, &mut |number| blocks.get(number))
    }

    pub(super) fn place(
        self: &Arc<Self>,
        files: &[Preserved],
        blocks: &mut dyn FnMut(u32) -> Result<Bytes, Unusable>,
    ) -> Result<Placed, PutError> {
        let mut placed = Placed {
            of: Arc::clone(self),
            done: Vec::new(),
            seen: Seen::default(),
            deleted: Vec::new(),
            files: files.len() as u64,
            bytes: 0,
            replaced: 0,
            is_settled: false,
        };
        self.mind_the_room(files)?;
        let failed = |file: &Preserved| {
            let path = file.path.clone();
            move |source| PutError::Failed { path, source }
        };
        // Before anything is set aside, whose names look the same.
        let mut swept = HashSet::new();
        for file in files {
            placed.sweep_beside(&file.path, &mut swept);
        }
        let mut staged: HashMap<&[u8], OsString> = HashMap::new();
        for file in files {
            match file.role() {
                Role::Deleted => placed.deleted.push(file.path.clone()),
                Role::Unknown => {}
                Role::Whole | Role::Implied if file.kind() == kind::DIRECTORY => {
                    placed.make_directory(file).map_err(failed(file))?;
                }
                _ => {
                    let name =
                        placed
                            .stage(file, &staged, blocks)
                            .map_err(|problem| match problem {
                                Problem::Errno(source) => failed(file)(source),
                                Problem::Unusable(error) => error.into(),
                            })?;
                    staged.insert(&file.path, name);
                }
            }
        }
        for file in files {
            if let Some(name) = staged.get(file.path.as_slice()) {
                placed.switch(file, name).map_err(failed(file))?;
            }
        }
        // From the innermost on, because what is made in a directory changes its time.
        let directories = files
            .iter()
            .rev()
            .filter(|file| file.kind() == kind::DIRECTORY);
        for file in directories.filter(|file| file.role() == Role::Whole) {
            placed.finish_directory(file).map_err(failed(file))?;
        }
        placed.look_at(files);
        Ok(placed)
    }

    /// Before anything is written, and whatever the rows say of their sizes: where there is no room, nothing is begun.
    fn mind_the_room(&self, files: &[Preserved]) -> Result<(), PutError> {
        let mut wanted: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for file in files.iter().filter(|file| file.is_regular()) {
            let bytes: u64 = file
                .extents
                .iter()
                .map(|extent| u64::from(extent.bytes))
                .sum();
            // The closest directory that is there says which file system it will be.
            let mut path = file.path.as_slice();
            let directory = loop {
                let Some(end) = path.iter().rposition(|&byte| byte == b'/') else {
                    break None;
                };
                path = &path[..end];
                let directory = if end == 0 { b"/" } else { path };
                if let Ok(opened) = self
                    .tree
                    .open_path(directory, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
                {
                    break Some(opened);
                }
            };
            let Some(Ok(system)) = directory.map(fstatvfs) else {
                continue;
            };
            let free = system
                .blocks_available()
                .saturating_mul(system.fragment_size());
            let entry = wanted.entry(system.filesystem_id()).or_insert((0, free));
            entry.0 = entry.0.saturating_add(bytes);
            if entry.0 > entry.1 {
                return Err(PutError::NoRoom {
                    wanted: entry.0,
                    free: entry.1,
                });
            }
        }
        Ok(())
    }
}

/// Blocks in the order in which files have them.
struct InOrder<'a> {
    ahead: Ahead,
    runtime: &'a Handle,
    current: Option<(u32, Bytes)>,
}

impl InOrder<'_> {
    fn get(&mut self, number: u32) -> Result<Bytes, Unusable> {
        if let Some((current, bytes)) = &self.current
            && *current == number
        {
            return Ok(bytes.clone());
        }
        let bytes = self
            .runtime
            .block_on(self.ahead.next())?
            .unwrap_or_default();
        self.current = Some((number, bytes.clone()));
        Ok(bytes)
    }
}

enum Problem {
    Errno(Errno),
    Unusable(Unusable),
}

impl From<Errno> for Problem {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn own_name() -> OsString {
    format!("{OWN_NAME}{}", catalog::nonce()).into()
}

impl Placed {
    /// The job is about to run: what was replaced goes, and what the snapshot says is deleted. What cannot be removed stays,
    /// and is told.
    pub(crate) fn settle(mut self) -> Seen {
        self.is_settled = true;
        for done in std::mem::take(&mut self.done) {
            if let Done::Switched(path, Some(name)) = done {
                let removed = self
                    .of
                    .tree
                    .parent(&path)
                    .and_then(|(directory, _)| remove_replaced(&directory, &name));
                tell_of_failure(
                    removed,
                    &path,
                    "what a preserved file replaced could not be removed",
                );
            }
        }
        // What is in a directory goes before it.
        let mut deleted = std::mem::take(&mut self.deleted);
        deleted.sort_unstable_by(|one, other| other.cmp(one));
        for path in &deleted {
            let removed = self
                .of
                .tree
                .parent(path)
                .and_then(|(directory, name)| remove(&directory, name));
            match removed {
                Ok(()) => tracing::info!(path = shown(path), "removed, as the snapshot says"),
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(Errno::ENOTEMPTY) => tracing::warn!(
                    path = shown(path),
                    "a directory that the job had deleted holds files that it never had; they stay"
                ),
                removed => tell_of_failure(
                    removed,
                    path,
                    "a file that the job had deleted could not be removed",
                ),
            }
        }
        let mut seen = std::mem::take(&mut self.seen);
        seen.deleted = deleted;
        seen
    }

    fn take_back(&mut self) {
        while let Some(done) = self.done.pop() {
            let tree = &self.of.tree;
            let (path, result) = match &done {
                Done::Made(path) => {
                    let removed = tree.parent(path).and_then(|(directory, name)| {
                        unlinkat(directory, name, UnlinkatFlags::RemoveDir)
                    });
                    (path, removed)
                }
                Done::Altered(path, before) => (path, self.put_back(path, before)),
                Done::Staged(path, name) => {
                    let removed = tree
                        .parent(path)
                        .and_then(|(directory, _)| remove(&directory, name));
                    (path, removed)
                }
                Done::Switched(path, before) => {
                    let back = tree
                        .parent(path)
                        .and_then(|(directory, name)| match before {
                            Some(before) => {
                                let back =
                                    || renameat(&directory, before.as_os_str(), &directory, name);
                                match back() {
                                    // It was a directory, and something else is in its place.
                                    Err(Errno::ENOTDIR) => {
                                        remove(&directory, name).and_then(|()| back())
                                    }
                                    back => back,
                                }
                            }
                            None => remove(&directory, name),
                        });
                    (path, back)
                }
            };
            match result {
                // What was staged and switched has its own name no more.
                Err(Errno::ENOENT) => {}
                result => tell_of_failure(result, path, "a preserved file could not be taken back"),
            }
        }
    }

    fn put_back(&self, path: &[u8], before: &FileStat) -> nix::Result<()> {
        let (directory, name) = self.of.tree.parent(path)?;
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        fchownat(
            &directory,
            name,
            Some(Uid::from_raw(before.st_uid)),
            Some(Gid::from_raw(before.st_gid)),
            flags,
        )?;
        set_mode(&directory, name, before.st_mode)?;
        let accessed = TimeSpec::new(before.st_atime, before.st_atime_nsec);
        let modified = TimeSpec::new(before.st_mtime, before.st_mtime_nsec);
        utimensat(
            &directory,
            name,
            &accessed,
            &modified,
            UtimensatFlags::NoFollowSymlink,
        )
    }

    /// What a restore that was killed here left beside a path goes.
    fn sweep_beside(&self, path: &[u8], swept: &mut HashSet<Vec<u8>>) {
        let end = path.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
        let directory = if end == 0 { b"/" } else { &path[..end] };
        if !swept.insert(directory.to_vec()) {
            return;
        }
        let Ok(opened) = self
            .of
            .tree
            .open_path(directory, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
        else {
            return;
        };
        let Ok(mut entries) = opened
            .try_clone()
            .map_err(|_| Errno::EMFILE)
            .and_then(Dir::from_fd)
        else {
            return;
        };
        let ours: Vec<OsString> = entries
            .iter()
            .flatten()
            .map(|entry| OsStr::from_bytes(entry.file_name().to_bytes()).to_owned())
            .filter(|name| name.as_bytes().starts_with(OWN_NAME.as_bytes()))
            .filter(|name| name.len() == OWN_NAME.len() + catalog::nonce().len())
            .collect();
        for name in ours {
            // What stays is in nobody's way.
            let _ = remove(&opened, &name);
        }
    }

    fn make_directory(&mut self, file: &Preserved) -> nix::Result<()> {
        let (parent, name) = self.of.tree.parent(&file.path)?;
        match fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) if found.st_mode & kind::MASK == kind::DIRECTORY => {
                if file.role() == Role::Whole {
                    self.done
                        .push(Done::Altered(file.path.clone(), Box::new(found)));
                }
                return Ok(());
            }
            Ok(_) => {
                let aside = own_name();
                renameat(&parent, name, &parent, aside.as_os_str())?;
                // Taken back after the directory is gone.
                self.done
                    .push(Done::Switched(file.path.clone(), Some(aside)));
                self.replaced += 1;
            }
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(error),
        }
        mkdirat(&parent, name, Mode::S_IRWXU)?;
        self.done.push(Done::Made(file.path.clone()));
        match file.role() {
            Role::Implied => describe(&parent, name, file),
            // Once everything is in it.
            _ => Ok(()),
        }
    }

    fn finish_directory(&mut self, file: &Preserved) -> nix::Result<()> {
        let (parent, name) = self.of.tree.parent(&file.path)?;
        match describe(&parent, name, file) {
            // A directory of the image that is not the job's own, as /tmp for a job that is not root.
            Err(Errno::EPERM) if !self.made(&file.path) => Ok(()),
            described => described,
        }
    }

    fn made(&self, path: &[u8]) -> bool {
        self.done
            .iter()
            .any(|done| matches!(done, Done::Made(made) if made == path))
    }

    /// Makes the file beside its place; returns its name there.
    fn stage(
        &mut self,
        file: &Preserved,
        staged: &HashMap<&[u8], OsString>,
        blocks: &mut dyn FnMut(u32) -> Result<Bytes, Unusable>,
    ) -> Result<OsString, Problem> {
        let (parent, _) = self.of.tree.parent(&file.path)?;
        let name = own_name();
        self.done
            .push(Done::Staged(file.path.clone(), name.clone()));
        let node = |kind| {
            let device = if kind == SFlag::S_IFIFO || kind == SFlag::S_IFSOCK {
                0
            } else {
                file.device
            };
            mknodat(
                &parent,
                name.as_os_str(),
                kind,
                Mode::S_IRUSR | Mode::S_IWUSR,
                device,
            )
        };
        if file.role() == Role::Link {
            let (directory, _) = self.of.tree.parent(&file.target)?;
            let other = staged.get(file.target.as_slice()).ok_or(Errno::ENOENT)?;
            linkat(
                &directory,
                other.as_os_str(),
                &parent,
                name.as_os_str(),
                AtFlags::empty(),
            )?;
            return Ok(name);
        }
        match file.kind() {
            kind::REGULAR => self.write(file, &parent, &name, blocks)?,
            kind::LINK => symlinkat(OsStr::from_bytes(&file.target), &parent, name.as_os_str())?,
            kind::FIFO => node(SFlag::S_IFIFO)?,
            kind::SOCKET => node(SFlag::S_IFSOCK)?,
            kind::CHARACTER => node(SFlag::S_IFCHR)?,
            kind::BLOCK => node(SFlag::S_IFBLK)?,
            _ => return Err(Errno::EINVAL.into()),
        }
        describe(&parent, &name, file)?;
        Ok(name)
    }

    fn write(
        &mut self,
        file: &Preserved,
        parent: &OwnedFd,
        name: &OsStr,
        blocks: &mut dyn FnMut(u32) -> Result<Bytes, Unusable>,
    ) -> Result<(), Problem> {
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = File::from(openat(parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        for extent in &file.extents {
            let block = blocks(extent.block).map_err(Problem::Unusable)?;
            let first = extent.first as usize;
            let bytes = block
                .get(first..first + extent.bytes as usize)
                .ok_or(Errno::EINVAL)?;
            made.write_all_at(bytes, extent.offset)
                .map_err(|error| errno(&error))?;
            self.bytes += bytes.len() as u64;
        }
        made.set_len(file.size).map_err(|error| errno(&error))?;
        Ok(())
    }

    fn switch(&mut self, file: &Preserved, name: &OsStr) -> nix::Result<()> {
        let (parent, wanted) = self.of.tree.parent(&file.path)?;
        let found = match fstatat(&parent, wanted, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => Some(found),
            Err(Errno::ENOENT) => None,
            Err(error) => return Err(error),
        };
        let Some(found) = found else {
            renameat2(
                &parent,
                name,
                &parent,
                wanted,
                RenameFlags::RENAME_NOREPLACE,
            )
            .or_else(|error| plain_instead(error, &parent, name, wanted))?;
            self.done.push(Done::Switched(file.path.clone(), None));
            return Ok(());
        };
        if found.st_mode & kind::MASK == kind::DIRECTORY {
            // With what is in it, which went in the job's own place too. Some layers of containers cannot do that.
            let aside = own_name();
            renameat(&parent, wanted, &parent, aside.as_os_str())?;
            self.done
                .push(Done::Switched(file.path.clone(), Some(aside)));
            self.replaced += 1;
            renameat(&parent, name, &parent, wanted)?;
            return Ok(());
        }
        self.replaced += 1;
        match renameat2(&parent, name, &parent, wanted, RenameFlags::RENAME_EXCHANGE) {
            Ok(()) => {
                self.done
                    .push(Done::Switched(file.path.clone(), Some(name.to_owned())));
            }
            // Not every file system can exchange two names.
            Err(Errno::EINVAL | Errno::ENOSYS) => {
                let aside = own_name();
                renameat(&parent, wanted, &parent, aside.as_os_str())?;
                self.done
                    .push(Done::Switched(file.path.clone(), Some(aside)));
                renameat(&parent, name, &parent, wanted)?;
            }
            Err(error) => return Err(error),
        }
        let is_newer = file.modified.is_some_and(|modified| {
            (found.st_mtime, found.st_mtime_nsec)
                > (modified.seconds, i64::from(modified.nanoseconds))
        });
        if is_newer && found.st_mode & kind::MASK == kind::REGULAR {
            tracing::warn!(
                path = file.name(),
                "the host's file is newer than the snapshot's, which replaces it"
            );
        }
        Ok(())
    }

    /// Remembers how the files are, for the next checkpoint.
    fn look_at(&mut self, files: &[Preserved]) {
        for file in files.iter().filter(|file| file.role() != Role::Deleted) {
            let identity = match file.is_regular() {
                true => self
                    .of
                    .tree
                    .stat(&file.path)
                    .ok()
                    .map(|stat| Identity::of(&stat)),
                false => None,
            };
            self.seen.files.insert(file.path.clone(), identity);
        }
    }
}

fn plain_instead(error: Errno, parent: &OwnedFd, name: &OsStr, wanted: &OsStr) -> nix::Result<()> {
    match error {
        Errno::EINVAL | Errno::ENOSYS => renameat(parent, name, parent, wanted),
        error => Err(error),
    }
}

/// Removes what a file of the snapshot replaced: a directory with all that is in it.
fn remove_replaced(directory: &OwnedFd, name: &OsStr) -> nix::Result<()> {
    match remove(directory, name) {
        Err(Errno::ENOTEMPTY) => {
            let path = PathBuf::from(by_number(directory)).join(name);
            std::fs::remove_dir_all(path).map_err(|error| errno(&error))
        }
        removed => removed,
    }
}

/// Removes what has this name, if that is no directory with something in it.
fn remove(directory: &OwnedFd, name: &OsStr) -> nix::Result<()> {
    match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => unlinkat(directory, name, UnlinkatFlags::RemoveDir),
        removed => removed,
    }
}

fn tell_of_failure(result: nix::Result<()>, path: &[u8], what: &'static str) {
    if let Err(error) = result {
        tracing::warn!(path = shown(path), %error, "{what}");
    }
}

/// Owner, rights, attributes and times, in the order in which the kernel does not undo one for another.
fn describe(parent: &OwnedFd, name: &OsStr, file: &Preserved) -> nix::Result<()> {
    let found = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if (found.st_uid, found.st_gid) != (file.uid, file.gid) {
        let (uid, gid) = (Some(Uid::from_raw(file.uid)), Some(Gid::from_raw(file.gid)));
        fchownat(parent, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    }
    if file.kind() != kind::LINK {
        if found.st_mode & 0o7777 != file.mode & 0o7777 || preserve::privileged_bits(file.mode) != 0
        {
            set_mode(parent, name, file.mode)?;
        }
        let node = node(parent, name)?;
        let path = by_number(&node);
        for attribute in &file.attributes {
            let name = OsStr::from_bytes(&attribute.name);
            if xattr::get_deref(&path, name).ok().flatten().as_ref() != Some(&attribute.value) {
                xattr::set_deref(&path, name, &attribute.value).map_err(|error| errno(&error))?;
            }
        }
    }
    let moment = |moment: Option<Moment>| {
        let Moment {
            seconds,
            nanoseconds,
        } = moment.unwrap_or_default();
        TimeSpec::new(seconds, i64::from(nanoseconds))
    };
    let (accessed, modified) = (moment(file.accessed), moment(file.modified));
    utimensat(
        parent,
        name,
        &accessed,
        &modified,
        UtimensatFlags::NoFollowSymlink,
    )
}

/// Of the node itself, so that nobody can put a link in its place meanwhile.
fn set_mode(parent: &OwnedFd, name: &OsStr, mode: u32) -> nix::Result<()> {
    let node = node(parent, name)?;
    let permissions = std::fs::Permissions::from_mode(mode & 0o7777);
    std::fs::set_permissions(by_number(&node), permissions).map_err(|error| errno(&error))
}

fn node(parent: &OwnedFd, name: &OsStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

fn by_number(node: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", node.as_raw_fd())
}
