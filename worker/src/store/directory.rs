//! Keeps objects as files in a directory: a mounted disk, NFS, or a volume that several containers share.
//!
//! A key is a path below the root. An object is written under a temporary name beside its place, synced, and only then
//! given its name; then the directories on the way are synced. A crash at any point leaves the old object or the new one,
//! and at worst a temporary file, which a later listing removes.
//!
//! ```text
//! write .reprieve-*.tmp → sync it → [lock, compare] → rename or link → [unlock] → sync directories up to the root
//! ```
//!
//! Conditional puts and deletions hold a file lock from the comparison to the change, so they exclude each other between
//! processes, containers and, as far as it honours `flock`, NFS clients. Unconditional puts take no lock: by the port's
//! contract nobody else writes their key, and data must not wait for a lock near a deadline. The tempting way without
//! locks, comparing and then renaming, lets two writers both find the old tag.
//!
//! The root is never created: a missing one usually is a mount that was forgotten, and a store made in its place would
//! vanish with the container. File system calls run off the async threads. One that hangs (a dead NFS server) is given up
//! after [`ATTEMPT_LIMIT`] and then changes nothing more, but its thread stays until the kernel lets it go.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use nix::errno::Errno;
use tempfile::NamedTempFile;

use super::{
    ATTEMPT_LIMIT, Condition, Entry, Object, Store, StoreError, StoreErrorKind, Tag, check_key,
    check_prefix,
};

/// Temporary files are named `.reprieve-` + random + `.tmp`; keys cannot be, so they are recognised and never listed.
const TEMPORARY_START: &str = ".reprieve-";
const TEMPORARY_END: &str = ".tmp";
/// A temporary file older than this belongs to nobody: an attempt takes [`ATTEMPT_LIMIT`] at most, and clocks of
/// machines that share a directory do not differ by a day.
const TEMPORARY_AGE_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a change may wait for another one under the same lock, which holds it for a few syscalls. Longer, and its
/// holder is frozen or its machine is gone.
const LOCK_LIMIT: Duration = Duration::from_secs(20);
/// `flock` cannot wait with a limit, so it is asked again after this long.
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// Making a directory may lose against another process that removes it because it is empty; not this often in a row.
const DIRECTORY_ATTEMPTS: usize = 8;

/// What a process's memory holds is nobody else's business.
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// A store in an existing directory.
#[derive(Clone)]
pub struct DirectoryStore {
    root: Arc<Path>,
}

impl DirectoryStore {
    /// Looks at nothing yet; a missing root is reported by each call as [`StoreErrorKind::NoSuchStore`].
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: Arc::from(root.into()),
        }
    }

    /// Runs blocking `work` off the async threads, for as long as one attempt may take.
    async fn run<T, W>(&self, operation: &'static str, key: &str, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: FnOnce(&Call) -> Result<T, StoreError> + Send + 'static,
    {
        let given_up = Arc::new(AtomicBool::new(false));
        let _give_up_when_dropped = GiveUp(Arc::clone(&given_up));
        let call = Call {
            root: Arc::clone(&self.root),
            operation,
            path: self.root.join(key),
            key: key.to_owned(),
            given_up,
        };
        let shown = call.shown();
        let failed = |kind, message: &str| StoreError::new(kind, operation, shown.clone(), message);
        match tokio::time::timeout(
            ATTEMPT_LIMIT,
            tokio::task::spawn_blocking(move || work(&call)),
        )
        .await
        {
            Ok(Ok(result)) => result,
            Ok(Err(lost)) => Err(failed(
                StoreErrorKind::Other,
                "the file system call did not finish",
            )
            .because(lost)),
            Err(_) => Err(failed(
                StoreErrorKind::Unavailable,
                "the file system does not answer",
            )),
        }
    }
}

impl fmt::Debug for DirectoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DirectoryStore({})", self.root.display())
    }
}

#[async_trait]
impl Store for DirectoryStore {
    fn address(&self) -> String {
        format!("file://{}", self.root.display())
    }

    async fn get(&self, key: &str, limit: u64) -> Result<Object, StoreError> {
        self.run("get", key, move |call| call.get(limit)).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        self.run("get_range", key, move |call| call.get_range(offset, length))
            .await
    }

    async fn size(&self, key: &str) -> Result<u64, StoreError> {
        self.run("size", key, |call| Ok(call.open()?.1)).await
    }

    async fn put(&self, key: &str, bytes: Bytes, condition: Condition) -> Result<Tag, StoreError> {
        self.run("put", key, move |call| call.put(&bytes, &condition))
            .await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let after = after.map(str::to_owned);
        self.run("list", prefix, move |call| {
            call.list(after.as_deref(), limit)
        })
        .await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.run("delete", key, Call::delete).await
    }

    async fn reach(&self) -> Result<(), StoreError> {
        self.run("reach", "", Call::reach).await
    }
}

/// Tells the blocking half of a call that nobody waits for it any more.
struct GiveUp(Arc<AtomicBool>);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One call, in the blocking half.
struct Call {
    root: Arc<Path>,
    operation: &'static str,
    key: String,
    path: PathBuf,
    given_up: Arc<AtomicBool>,
}

impl Call {
    fn get(&self, limit: u64) -> Result<Object, StoreError> {
        let (file, size) = self.open()?;
        if size > limit {
            return Err(self.error(
                StoreErrorKind::BadSize,
                format!("it has {size} bytes, more than the {limit} allowed"),
            ));
        }
        let bytes = self.read(&file, 0, size)?;
        Ok(Object {
            tag: tag_of(&bytes),
            bytes,
        })
    }

    fn get_range(&self, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let (file, size) = self.open()?;
        match offset.checked_add(length) {
            Some(end) if end <= size => self.read(&file, offset, length),
            _ => {
                let message = format!("{length} bytes from {offset} are outside its {size} bytes");
                Err(self.error(StoreErrorKind::BadSize, message))
            }
        }
    }

    fn put(&self, bytes: &[u8], condition: &Condition) -> Result<Tag, StoreError> {
        self.check_key()?;
        let tag = tag_of(bytes);
        let temporary = self.write_temporary(bytes)?;
        match condition {
            Condition::Always => self.replace(temporary)?,
            Condition::Absent => {
                let _lock = self.lock()?;
                self.create(temporary)?;
            }
            Condition::Matches(expected) => {
                let _lock = self.lock()?;
                match self.present_tag()? {
                    Some(present) if present == *expected => self.replace(temporary)?,
                    Some(_) => {
                        return Err(self.error(
                            StoreErrorKind::ConditionFailed,
                            "it has changed since it was read",
                        ));
                    }
                    None => {
                        return Err(
                            self.error(StoreErrorKind::ConditionFailed, "it is no longer there")
                        );
                    }
                }
            }
        }
        self.sync_directories()
            .map_err(|e| self.failed(e, "it is stored, but not known to survive a crash"))?;
        Ok(tag)
    }

    fn delete(&self) -> Result<(), StoreError> {
        self.check_key()?;
        let directory = self.parent();
        // Before the lock, which would otherwise be made in a root that is not there, or cannot be written.
        match fs::symlink_metadata(&self.path) {
            Ok(_) => {}
            Err(e) if is_missing(&e) => return self.check_root(),
            Err(e) => return Err(self.failed(e, "cannot look for it")),
        }
        let _lock = self.lock()?;
        self.check_given_up()?;
        match fs::remove_file(&self.path) {
            Ok(()) => {}
            Err(e) if is_missing(&e) || e.kind() == ErrorKind::IsADirectory => {
                return self.check_root();
            }
            Err(e) => return Err(self.failed(e, "cannot remove it")),
        }
        self.sync_directories()
            .map_err(|e| self.failed(e, "it is removed, but may be back after a crash"))?;
        self.remove_empty_directories(directory);
        Ok(())
    }

    fn reach(&self) -> Result<(), StoreError> {
        self.check_root()?;
        let mut entries =
            fs::read_dir(&*self.root).map_err(|e| self.failed(e, "cannot read the directory"))?;
        match entries.next() {
            Some(Err(e)) => Err(self.failed(e, "cannot read the directory")),
            Some(Ok(_)) | None => Ok(()),
        }
    }

    // ---- Reading

    /// The object's file and size.
    fn open(&self) -> Result<(File, u64), StoreError> {
        self.check_key()?;
        // Not blocking: a pipe under this name must not hold us up. Regular files do not care.
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&self.path);
        let file = match opened {
            Ok(file) => file,
            Err(e) if is_missing(&e) => return Err(self.missing()),
            Err(e) => return Err(self.failed(e, "cannot open it")),
        };
        let metadata = file
            .metadata()
            .map_err(|e| self.failed(e, "cannot look at it"))?;
        if metadata.is_file() {
            Ok((file, metadata.len()))
        } else {
            Err(self.missing())
        }
    }

    fn read(&self, file: &File, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let length = usize::try_from(length).map_err(|e| {
            self.error(StoreErrorKind::BadSize, "too large for memory")
                .because(e)
        })?;
        let (mut buffer, start) = aligned_buffer(length);
        // Objects are replaced, never changed in place, so the size seen before still holds; if not, the disk is at fault.
        file.read_exact_at(&mut buffer[start..start + length], offset)
            .map_err(|e| match e.kind() {
                ErrorKind::UnexpectedEof => self
                    .error(StoreErrorKind::BadSize, "the file ends early")
                    .because(e),
                _ => self.failed(e, "cannot read it"),
            })?;
        Ok(Bytes::from(buffer).slice(start..start + length))
    }

    fn present_tag(&self) -> Result<Option<Tag>, StoreError> {
        let (file, size) = match self.open() {
            Ok(opened) => opened,
            Err(e) if e.kind == StoreErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        Ok(Some(tag_of(&self.read(&file, 0, size)?)))
    }

    // ---- Writing

    /// The bytes under a temporary name in the object's directory, synced. Dropping it removes the file.
    fn write_temporary(&self, bytes: &[u8]) -> Result<NamedTempFile, StoreError> {
        let mut temporary = self.make_temporary()?;
        let file = temporary.as_file_mut();
        file.write_all(bytes)
            .map_err(|e| self.failed(e, "cannot write it"))?;
        file.sync_all()
            .map_err(|e| self.failed(e, "cannot write it to the disk"))?;
        Ok(temporary)
    }

    fn make_temporary(&self) -> Result<NamedTempFile, StoreError> {
        let mut builder = tempfile::Builder::new();
        builder
            .prefix(TEMPORARY_START)
            .suffix(TEMPORARY_END)
            .rand_bytes(16);
        // Opened by ourselves: tempfile's own way wraps the error and loses the errno.
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create_new(true)
            .mode(FILE_MODE);
        for _ in 0..DIRECTORY_ATTEMPTS {
            match builder.make_in(self.parent(), |path| options.open(path)) {
                Ok(temporary) => return Ok(temporary),
                Err(e) if e.kind() == ErrorKind::NotFound => self.make_directories()?,
                Err(e) => {
                    self.check_root()?;
                    return Err(self.failed(e, "cannot create a file for it"));
                }
            }
        }
        let message = "its directory is removed as often as it is made";
        Err(self.error(StoreErrorKind::Unavailable, message))
    }

    /// Makes what is missing between the root, which must be there, and the object. They are synced with the object.
    fn make_directories(&self) -> Result<(), StoreError> {
        self.check_root()?;
        let mut directory = self.root.to_path_buf();
        let mut segments: Vec<&str> = self.key.split('/').collect();
        segments.pop();
        for segment in segments {
            directory.push(segment);
            match DirBuilder::new().mode(DIRECTORY_MODE).create(&directory) {
                Ok(()) => {}
                // NotFound: an empty one above was just removed by another process; the caller comes back.
                Err(e) if matches!(e.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) => {}
                Err(e) => return Err(self.failed(e, "cannot make its directory")),
            }
        }
        Ok(())
    }

    /// Gives the file the object's name, whatever had it before.
    fn replace(&self, temporary: NamedTempFile) -> Result<(), StoreError> {
        self.check_given_up()?;
        match temporary.persist(&self.path) {
            Ok(_) => Ok(()),
            // The temporary name is gone: over NFS the rename may have happened and its reply been lost.
            Err(e) if e.error.kind() == ErrorKind::NotFound => Err(self
                .error(
                    StoreErrorKind::Unavailable,
                    "its outcome is unknown: the temporary file is gone",
                )
                .because(e.error)),
            Err(e) => Err(self.failed(e.error, "cannot give it its name")),
        }
    }

    /// Gives the file the object's name if that is free. The lock is held, but a link is exclusive even if a server lost it.
    fn create(&self, temporary: NamedTempFile) -> Result<(), StoreError> {
        self.check_given_up()?;
        let taken = || self.error(StoreErrorKind::ConditionFailed, "it is already there");
        match fs::hard_link(temporary.path(), &self.path) {
            Ok(()) => Ok(()),
            // Over NFS a link whose reply was lost is sent again and then finds itself; two names are the proof.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                match temporary.as_file().metadata() {
                    Ok(metadata) if metadata.nlink() > 1 => Ok(()),
                    _ => Err(taken()),
                }
            }
            // A file system without hard links: the lock has to be enough.
            Err(e)
                if matches!(
                    errno_of(&e),
                    Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EMLINK
                ) =>
            {
                match fs::symlink_metadata(&self.path) {
                    Ok(_) => Err(taken()),
                    Err(e) if e.kind() == ErrorKind::NotFound => self.replace(temporary),
                    Err(e) => Err(self.failed(e, "cannot look for it")),
                }
            }
            Err(e) => Err(self.failed(e, "cannot give it its name")),
        }
    }

    /// From the object's directory up to the root: another process may have made one of them and not synced it yet.
    /// A directory without changes costs next to nothing.
    fn sync_directories(&self) -> io::Result<()> {
        for directory in self.parent().ancestors() {
            if directory == &*self.root {
                break;
            }
            match sync_directory(directory) {
                // Emptied and removed by others since; then it is the one above that has changed.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                result => result?,
            }
        }
        sync_directory(&self.root)
    }

    /// So that deleted snapshots leave nothing, as in a bucket. Whoever needs a directory makes it again.
    fn remove_empty_directories(&self, directory: &Path) {
        for directory in directory.ancestors() {
            // Not empty, or not ours to remove: either way it stays.
            if directory == &*self.root || fs::remove_dir(directory).is_err() {
                break;
            }
        }
    }

    /// Excludes every other conditional change of this key until dropped.
    ///
    /// The lock files lie in the root and stay: one that is removed could be locked by one process and made anew by
    /// another. There are 256 of them, so that writers of different keys seldom meet.
    fn lock(&self) -> Result<File, StoreError> {
        let stripe = blake3::hash(self.key.as_bytes()).as_bytes()[0];
        let path = self
            .root
            .join(format!("{TEMPORARY_START}{stripe:02x}.lock"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(&path)
            .map_err(|e| self.failed(e, "cannot open its lock file"))?;
        let started = Instant::now();
        loop {
            self.check_given_up()?;
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_LIMIT => {
                    std::thread::sleep(LOCK_PAUSE)
                }
                Err(TryLockError::WouldBlock) => {
                    let message = format!("another process holds its lock, {}", path.display());
                    return Err(self.error(StoreErrorKind::Unavailable, message));
                }
                Err(TryLockError::Error(e)) => {
                    return Err(self.failed(e, "the file system does not lock"));
                }
            }
        }
    }

    // ---- Listing

    fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        if let Err(fault) = check_prefix(&self.key) {
            return Err(self.error(
                StoreErrorKind::Other,
                format!("not a usable prefix: {fault}"),
            ));
        }
        self.check_root()?;
        let mut entries = Vec::new();
        let start = self.key.rfind('/').map_or("", |slash| &self.key[..=slash]);
        // Directories yet to be read and files yet to be listed, the next one last.
        let mut ahead = vec![start.to_owned()];
        while entries.len() < limit {
            let Some(name) = ahead.pop() else { break };
            if name.is_empty() || name.ends_with('/') {
                let mut below = self.read_directory(&name, after)?;
                below.sort_unstable_by(|a, b| b.cmp(a));
                ahead.append(&mut below);
            } else if let Some(entry) = self.entry(name)? {
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    /// What may contribute to the listing: keys of files, and keys of directories with a `/` behind, which also makes them
    /// sort as the keys below them do (`a-b` before `a/b` before `a0`).
    fn read_directory(
        &self,
        directory: &str,
        after: Option<&str>,
    ) -> Result<Vec<String>, StoreError> {
        let path = self.root.join(directory);
        let unreadable = |e| self.failed(e, "cannot read the directory");
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            // Removed meanwhile, or never there.
            Err(e) if is_missing(&e) => {
                self.check_root()?;
                return Ok(Vec::new());
            }
            // Made by mkfs in the root of every ext file system, readable by root only, and never ours.
            Err(_) if directory == "lost+found/" => return Ok(Vec::new()),
            Err(e) => return Err(unreadable(e)),
        };
        let mut names = Vec::new();
        let mut removed = false;
        for entry in entries {
            let entry = entry.map_err(unreadable)?;
            // A name that is not UTF-8, or not a key's, was not made by this store.
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.starts_with(TEMPORARY_START) {
                removed |= name.ends_with(TEMPORARY_END) && remove_if_stale(&entry.path());
                continue;
            }
            let file_type = match entry.file_type() {
                Ok(file_type) => file_type,
                Err(e) if is_missing(&e) => continue,
                Err(e) => return Err(unreadable(e)),
            };
            let mut key = format!("{directory}{name}");
            if check_key(&key).is_err() || !(file_type.is_file() || file_type.is_dir()) {
                continue;
            }
            if file_type.is_dir() {
                key.push('/');
            }
            let behind = after.is_none_or(|after| {
                key.as_str() > after || (file_type.is_dir() && after.starts_with(&key))
            });
            if key.starts_with(&self.key) && behind {
                names.push(key);
            }
        }
        if removed {
            self.remove_empty_directories(&path);
        }
        Ok(names)
    }

    fn entry(&self, key: String) -> Result<Option<Entry>, StoreError> {
        match fs::symlink_metadata(self.root.join(&key)) {
            Ok(metadata) => Ok(Some(Entry {
                key,
                size: metadata.len(),
                modified_ms: modified_ms(&metadata),
            })),
            Err(e) if is_missing(&e) => Ok(None),
            Err(e) => Err(self.failed(e, "cannot look at an object in it")),
        }
    }

    // ---- Checks and errors

    fn check_key(&self) -> Result<(), StoreError> {
        check_key(&self.key).map_err(|fault| {
            self.error(StoreErrorKind::Other, format!("not a usable key: {fault}"))
        })
    }

    fn check_root(&self) -> Result<(), StoreError> {
        let no_store = |message: &str| {
            StoreError::new(
                StoreErrorKind::NoSuchStore,
                self.operation,
                self.root.display().to_string(),
                message,
            )
        };
        match fs::metadata(&*self.root) {
            Ok(metadata) if metadata.is_dir() => Ok(()),
            Ok(_) => Err(no_store("the store's root is not a directory")),
            Err(e) if is_missing(&e) => {
                Err(no_store("the store's directory does not exist; is it mounted?").because(e))
            }
            Err(e) => Err(self.failed(e, "cannot look at the store's directory")),
        }
    }

    /// A change that nobody waits for any more must not come as a surprise later.
    fn check_given_up(&self) -> Result<(), StoreError> {
        if self.given_up.load(Ordering::Relaxed) {
            return Err(self.error(
                StoreErrorKind::Unavailable,
                "it took too long and was given up",
            ));
        }
        Ok(())
    }

    /// The object is not there; or nothing is, because the root is not.
    fn missing(&self) -> StoreError {
        match self.check_root() {
            Ok(()) => self.error(StoreErrorKind::NotFound, "there is no such object"),
            Err(e) => e,
        }
    }

    fn failed(&self, error: io::Error, what: &str) -> StoreError {
        let kind = kind_of(&error);
        self.error(kind, format!("{what}: {error}")).because(error)
    }

    fn error(&self, kind: StoreErrorKind, message: impl Into<String>) -> StoreError {
        StoreError::new(kind, self.operation, self.shown(), message)
    }

    /// Control characters in a refused key must not reach a terminal.
    fn shown(&self) -> String {
        self.path
            .display()
            .to_string()
            .chars()
            .map(|c| if c.is_control() { '\u{fffd}' } else { c })
            .collect()
    }

    fn parent(&self) -> &Path {
        self.path.parent().unwrap_or(&self.root)
    }
}

/// Objects from this size on are data, which is never replaced under a condition: no more than a checksum is spent on them.
const LARGE: usize = 1 << 20;

fn tag_of(bytes: &[u8]) -> Tag {
    if bytes.len() < LARGE {
        return Tag(blake3::hash(bytes).to_hex().to_string());
    }
    let checksum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes);
    Tag(format!("{:x}-{checksum:016x}", bytes.len()))
}

/// A buffer, and where in it to begin so that `length` bytes are page-aligned: the kernel copies into those several
/// times faster than to where a large `Vec` starts.
fn aligned_buffer(length: usize) -> (Vec<u8>, usize) {
    const PAGE: usize = 4096;
    if length < PAGE {
        return (vec![0; length], 0);
    }
    let buffer = vec![0; length + PAGE];
    let start = buffer.as_ptr().align_offset(PAGE).min(PAGE);
    (buffer, start)
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    match File::open(directory)?.sync_all() {
        // Some network and user-space file systems have nothing to sync in a directory and say so this way.
        Err(e)
            if matches!(
                errno_of(&e),
                Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP
            ) =>
        {
            Ok(())
        }
        result => result,
    }
}

/// Whether it was removed. Failing is fine: the next listing tries again.
fn remove_if_stale(path: &Path) -> bool {
    let age = fs::symlink_metadata(path)
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|modified| SystemTime::now().duration_since(modified).ok());
    age.is_some_and(|age| age > TEMPORARY_AGE_LIMIT) && fs::remove_file(path).is_ok()
}

fn modified_ms(metadata: &fs::Metadata) -> u64 {
    let millis = metadata
        .mtime()
        .saturating_mul(1000)
        .saturating_add(metadata.mtime_nsec() / 1_000_000);
    u64::try_from(millis).unwrap_or(0)
}

fn errno_of(error: &io::Error) -> Errno {
    error
        .raw_os_error()
        .map_or(Errno::UnknownErrno, Errno::from_raw)
}

/// No file there: it does not exist, or what should be a directory above it is an object.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn kind_of(error: &io::Error) -> StoreErrorKind {
    match errno_of(error) {
        Errno::ENOENT => StoreErrorKind::NotFound,
        Errno::ENOSPC | Errno::EDQUOT => StoreErrorKind::Full,
        Errno::EACCES | Errno::EPERM | Errno::EROFS => StoreErrorKind::Denied,
        // A disk or a server that may answer another time: a later write starts over with a new file, so trying again is
        // safe even after a failed sync.
        Errno::EIO
        | Errno::EREMOTEIO
        | Errno::ESTALE
        | Errno::ETIMEDOUT
        | Errno::ENOTCONN
        | Errno::ECONNREFUSED
        | Errno::ECONNRESET
        | Errno::ECONNABORTED
        | Errno::EHOSTDOWN
        | Errno::EHOSTUNREACH
        | Errno::ENETDOWN
        | Errno::ENETUNREACH
        | Errno::EAGAIN
        | Errno::EINTR
        | Errno::EBUSY => StoreErrorKind::Unavailable,
        // Short of something that others may give back.
        Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE | Errno::ENOLCK => {
            StoreErrorKind::Unavailable
        }
        _ => StoreErrorKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::again;
    use crate::store::contract::{self, Subject};

    fn store_in(root: &Path) -> Arc<dyn Store> {
        Arc::new(DirectoryStore::new(root))
    }

    fn files_below(root: &Path) -> Vec<String> {
        let mut files = Vec::new();
        let mut ahead = vec![root.to_path_buf()];
        while let Some(directory) = ahead.pop() {
            for entry in fs::read_dir(directory)
                .expect("read")
                .map(|entry| entry.expect("read").path())
            {
                let lock = entry.extension().is_some_and(|end| end == "lock");
                if entry.is_dir() {
                    ahead.push(entry);
                } else if !lock {
                    files.push(
                        entry
                            .strip_prefix(root)
                            .expect("below")
                            .display()
                            .to_string(),
                    );
                }
            }
        }
        files.sort();
        files
    }

    /// This test again, alone in a process of its own that is told its part in it.
    fn again(test: &str, part: &Path) -> Command {
        let mut command = again::command(module_path!(), test);
        command.env("STORE_TEST_PART", part).stdout(Stdio::null());
        command
    }

    fn part() -> Option<PathBuf> {
        std::env::var_os("STORE_TEST_PART").map(PathBuf::from)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn keeps_the_contract() {
        let root = tempfile::tempdir().expect("a directory");
        let subject = Subject {
            store: store_in(root.path()),
            missing: store_in(Path::new("/nonexistent/store")),
            many: 1_250,
        };
        contract::holds_for(&subject).await;
        let temporary = files_below(root.path())
            .into_iter()
            .filter(|name| name.contains(TEMPORARY_START))
            .count();
        assert_eq!(temporary, 0, "temporary files are left");
    }

    #[tokio::test]
    async fn a_file_in_the_roots_place_is_no_store() {
        let file = NamedTempFile::new().expect("a file");
        let store = store_in(file.path());
        assert_eq!(
            store.reach().await.expect_err("a file").kind,
            StoreErrorKind::NoSuchStore
        );
        assert_eq!(
            store.get("x", 1).await.expect_err("a file").kind,
            StoreErrorKind::NoSuchStore
        );
        let put = store.put("x", Bytes::new(), Condition::Absent).await;
        assert_eq!(put.expect_err("a file").kind, StoreErrorKind::NoSuchStore);
    }

    #[tokio::test]
    async fn files_are_for_their_owner_only() {
        let root = tempfile::tempdir().expect("a directory");
        store_in(root.path())
            .put("a/x", Bytes::new(), Condition::Absent)
            .await
            .expect("put");
        let mode = |path: &str| fs::metadata(root.path().join(path)).expect(path).mode() & 0o777;
        assert_eq!((mode("a"), mode("a/x")), (0o700, 0o600));
    }

    #[tokio::test]
    async fn what_others_left_in_the_directory_is_not_listed() {
        let root = tempfile::tempdir().expect("a directory");
        let store = store_in(root.path());
        store
            .put("a/x", Bytes::new(), Condition::Absent)
            .await
            .expect("put");
        fs::write(root.path().join("a/.reprieve-0123.tmp"), "").expect("write");
        fs::write(root.path().join("a/.nfs0001"), "").expect("write");
        std::os::unix::fs::symlink("x", root.path().join("a/link")).expect("link");
        nix::unistd::mkfifo(&root.path().join("a/pipe"), nix::sys::stat::Mode::S_IRWXU)
            .expect("pipe");
        let name = std::os::unix::ffi::OsStrExt::from_bytes(b"a/\xff");
        fs::write(root.path().join::<&std::ffi::OsStr>(name), "").expect("write");

        let listed = store.list("", None, 100).await.expect("list");
        assert_eq!(
            listed
                .iter()
                .map(|entry| entry.key.as_str())
                .collect::<Vec<_>>(),
            ["a/x"]
        );
        assert_eq!(
            store.get("a/pipe", 1).await.expect_err("no object").kind,
            StoreErrorKind::NotFound
        );
    }

    #[tokio::test]
    async fn temporary_files_of_the_dead_go_after_a_day() {
        let root = tempfile::tempdir().expect("a directory");
        let store = store_in(root.path());
        fs::create_dir(root.path().join("a")).expect("make");
        let aged = |name: &str, hours: u64| {
            let file = File::create(root.path().join(name)).expect("create");
            file.set_modified(SystemTime::now() - Duration::from_secs(hours * 3600))
                .expect("age");
        };
        aged("a/.reprieve-old.tmp", 25);
        aged(".reprieve-old.tmp", 25);
        aged(".reprieve-young.tmp", 23);
        aged(".reprieve-07.lock", 2500);
        aged(".another-program.tmp", 2500);
        assert_eq!(store.list("", None, 100).await.expect("list"), []);
        assert_eq!(
            files_below(root.path()),
            [".another-program.tmp", ".reprieve-young.tmp"]
        );
        assert!(root.path().join(".reprieve-07.lock").exists(), "locks stay");
        assert!(
            !root.path().join("a").exists(),
            "nor does its empty directory stay"
        );
    }

    #[tokio::test]
    async fn deleting_leaves_no_empty_directories() {
        let root = tempfile::tempdir().expect("a directory");
        let store = store_in(root.path());
        store
            .put("a/b/c/x", Bytes::new(), Condition::Absent)
            .await
            .expect("put");
        store
            .put("a/y", Bytes::new(), Condition::Absent)
            .await
            .expect("put");
        store.delete("a/b/c/x").await.expect("delete");
        assert!(!root.path().join("a/b").exists());
        assert_eq!(files_below(root.path()), ["a/y"]);
        store.delete("a/y").await.expect("delete");
        assert!(root.path().exists(), "the root stays");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn directories_that_come_and_go_under_a_put_do_not_fail_it() {
        let root = tempfile::tempdir().expect("a directory");
        let store = store_in(root.path());
        let busy = (0..8).map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for _ in 0..50 {
                    let key = format!("a/b/{n}");
                    store
                        .put(&key, Bytes::new(), Condition::Always)
                        .await
                        .expect("put");
                    store.delete(&key).await.expect("delete");
                }
            })
        });
        futures::future::try_join_all(busy)
            .await
            .expect("all finish");
        assert_eq!(files_below(root.path()), [""; 0]);
    }

    #[tokio::test]
    async fn a_held_lock_delays_only_changes_that_need_it() {
        let root = tempfile::tempdir().expect("a directory");
        let store = store_in(root.path());
        store
            .put("x", Bytes::new(), Condition::Always)
            .await
            .expect("put");
        let call = Call {
            root: Arc::from(root.path()),
            operation: "test",
            key: "x".to_owned(),
            path: root.path().join("x"),
            given_up: Arc::default(),
        };
        let lock = call.lock().expect("free");

        // Given up by its caller, a change stops waiting while the lock is still held, and takes its file with it.
        let late = Bytes::from_static(b"late");
        let waiting = store.put("x", late.clone(), Condition::Matches(tag_of(b"")));
        tokio::time::timeout(Duration::from_millis(50), waiting)
            .await
            .expect_err("the lock is held");
        let deadline = Instant::now() + LOCK_LIMIT / 2;
        while files_below(root.path()) != ["x"] {
            assert!(Instant::now() < deadline, "it still waits");
            tokio::task::yield_now().await;
        }

        store
            .put("x", Bytes::from_static(b"a"), Condition::Always)
            .await
            .expect("needs no lock");
        drop(lock);
        let matches = Condition::Matches(tag_of(b"a"));
        store
            .put("x", Bytes::from_static(b"b"), matches)
            .await
            .expect("the lock is free");

        // Nor does it happen when it is given up at the last moment, with or without a lock.
        call.given_up.store(true, Ordering::Relaxed);
        for condition in [
            Condition::Always,
            Condition::Absent,
            Condition::Matches(tag_of(b"b")),
        ] {
            let error = call
                .put(&late, &condition)
                .expect_err("nobody waits for it");
            assert_eq!(error.kind, StoreErrorKind::Unavailable);
        }
        assert_eq!(store.get("x", 10).await.expect("get").bytes, "b");
    }

    /// Two processes add to one number; a lost update would show in the sum.
    #[tokio::test]
    async fn changes_exclude_each_other_between_processes() {
        const STEPS: u32 = 100;
        if let Some(root) = part() {
            let store = store_in(&root);
            for _ in 0..STEPS {
                loop {
                    let object = store.get("number", 100).await.expect("get");
                    let number: u32 = std::str::from_utf8(&object.bytes)
                        .expect("text")
                        .parse()
                        .expect("a number");
                    let next = Bytes::from((number + 1).to_string());
                    match store
                        .put("number", next, Condition::Matches(object.tag))
                        .await
                    {
                        Ok(_) => break,
                        Err(e) => assert_eq!(e.kind, StoreErrorKind::ConditionFailed, "{e}"),
                    }
                }
            }
            return;
        }
        let root = tempfile::tempdir().expect("a directory");
        let store = store_in(root.path());
        store
            .put("number", Bytes::from_static(b"0"), Condition::Absent)
            .await
            .expect("put");
        let name = "changes_exclude_each_other_between_processes";
        let mut adders: Vec<_> = (0..2)
            .map(|_| again(name, root.path()).spawn().expect("start"))
            .collect();
        for adder in &mut adders {
            assert!(adder.wait().expect("wait").success());
        }
        assert_eq!(
            store.get("number", 100).await.expect("get").bytes,
            (2 * STEPS).to_string()
        );
    }

    /// A process is killed over and over while it replaces an object: what is found is always one whole version.
    #[tokio::test]
    async fn a_killed_writer_leaves_a_whole_object() {
        const LENGTH: usize = 1 << 20;
        if let Some(root) = part() {
            let store = store_in(&root);
            for version in 1_u8.. {
                store
                    .put("a/x", Bytes::from(vec![version; LENGTH]), Condition::Always)
                    .await
                    .expect("put");
            }
            return;
        }
        let root = tempfile::tempdir().expect("a directory");
        let store = store_in(root.path());
        store
            .put("a/x", Bytes::from(vec![0; LENGTH]), Condition::Always)
            .await
            .expect("put");
        for _ in 0..10 {
            let before = store.get("a/x", LENGTH as u64).await.expect("get").tag;
            let mut writer = again("a_killed_writer_leaves_a_whole_object", root.path())
                .spawn()
                .expect("start");
            while store.get("a/x", LENGTH as u64).await.expect("get").tag == before {
                assert!(
                    writer.try_wait().expect("wait").is_none(),
                    "the writer ended by itself"
                );
                tokio::task::yield_now().await;
            }
            writer.kill().expect("kill");
            writer.wait().expect("wait");
            let bytes = store.get("a/x", LENGTH as u64).await.expect("get").bytes;
            assert!(
                bytes.len() == LENGTH && bytes.iter().all(|byte| *byte == bytes[0]),
                "a torn object"
            );
        }
        let listed = store.list("", None, 100).await.expect("list");
        assert_eq!(listed.len(), 1, "leftovers are listed: {listed:?}");
    }

    /// On a file system of 256 KiB, mounted in a mount namespace of the part's own.
    #[tokio::test]
    async fn a_full_disk_keeps_the_old_object_and_no_half_of_the_new() {
        if let Some(root) = part() {
            let store = store_in(&root);
            let old = Bytes::from(vec![1; 100_000]);
            let tag = store
                .put("a/x", old.clone(), Condition::Absent)
                .await
                .expect("it fits");
            for condition in [
                Condition::Always,
                Condition::Absent,
                Condition::Matches(tag),
            ] {
                let error = store
                    .put("a/x", Bytes::from(vec![2; 1_000_000]), condition)
                    .await
                    .expect_err("it does not fit");
                assert_eq!(error.kind, StoreErrorKind::Full, "{error}");
            }
            let error = store
                .put("b/c/y", Bytes::from(vec![2; 1_000_000]), Condition::Absent)
                .await
                .expect_err("nor here");
            assert_eq!(error.kind, StoreErrorKind::Full, "{error}");
            assert_eq!(files_below(&root), ["a/x"]);
            assert!(store.get("a/x", 1_000_000).await.expect("get").bytes == old);
            store
                .put("y", Bytes::from(vec![2; 50_000]), Condition::Absent)
                .await
                .expect("the space is free again");
            return;
        }
        let root = tempfile::tempdir().expect("a directory");
        let inner = again(
            "a_full_disk_keeps_the_old_object_and_no_half_of_the_new",
            root.path(),
        );
        let ended = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-ec"])
            .arg("mount -t tmpfs -o size=256k tmpfs \"$STORE_TEST_PART\"; exec \"$@\"")
            .arg("sh")
            .arg(inner.get_program())
            .args(inner.get_args())
            .env("STORE_TEST_PART", root.path())
            .stdout(Stdio::null())
            .status();
        assert!(ended.expect("unshare is there").success());
    }

    #[tokio::test]
    async fn a_refusal_by_the_kernel_is_denied() {
        // Nobody may make files here, not even root.
        let store = store_in(Path::new("/sys/kernel"));
        for condition in [Condition::Always, Condition::Absent] {
            let error = store
                .put("x", Bytes::new(), condition)
                .await
                .expect_err("not here");
            assert_eq!(error.kind, StoreErrorKind::Denied, "{error}");
        }
        assert!(
            !store
                .get("x", 1)
                .await
                .expect_err("nothing")
                .to_string()
                .is_empty()
        );
    }

    #[test]
    fn each_errno_has_its_kind() {
        for (errno, kind) in [
            (Errno::ENOSPC, StoreErrorKind::Full),
            (Errno::EDQUOT, StoreErrorKind::Full),
            (Errno::EACCES, StoreErrorKind::Denied),
            (Errno::EPERM, StoreErrorKind::Denied),
            (Errno::EROFS, StoreErrorKind::Denied),
            (Errno::ENOENT, StoreErrorKind::NotFound),
            (Errno::EIO, StoreErrorKind::Unavailable),
            (Errno::ESTALE, StoreErrorKind::Unavailable),
            (Errno::ENAMETOOLONG, StoreErrorKind::Other),
            (Errno::ENOTDIR, StoreErrorKind::Other),
        ] {
            assert_eq!(kind_of(&io::Error::from(errno)), kind, "{errno}");
        }
    }

    #[tokio::test]
    async fn control_characters_of_a_key_stay_out_of_messages() {
        let store = store_in(Path::new("/tmp"));
        let error = store.get("a\x1b[2Jb", 1).await.expect_err("refused");
        assert!(!error.to_string().contains('\x1b'), "{error}");
    }
}
