//! Libraries of ours that other programs load before their own; `build.rs` builds them from `worker/preload`.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::getuid;

/// A name and what is in it: empty if this build has none.
type Built = (&'static str, &'static [u8]);

/// For the app.
const NO_IO_URING: Built = (
    "no-io-uring.so",
    include_bytes!(concat!(env!("OUT_DIR"), "/no_io_uring.so")),
);

/// For the app as well: one that keeps its clocks, and one that does both.
const CLOCKS: Built = (
    "clocks",
    include_bytes!(concat!(env!("OUT_DIR"), "/clocks.so")),
);
const CLOCKS_NO_IO_URING: Built = (
    "clocks-no-io-uring",
    include_bytes!(concat!(env!("OUT_DIR"), "/clocks_no_io_uring.so")),
);

/// For CRIU.
const LIMITS: Built = (
    "limits.so",
    include_bytes!(concat!(env!("OUT_DIR"), "/limits.so")),
);

/// For CRIU as well, in a restore.
const ADOPTS: Built = (
    "adopts.so",
    include_bytes!(concat!(env!("OUT_DIR"), "/adopts.so")),
);

/// Where they may lie: the first that can be written and allows programs. Readable for every user of the job.
const PLACES: [&str; 3] = [
    "/run/reprieve-lib",
    "/tmp/reprieve-lib",
    "/var/tmp/reprieve-lib",
];

/// One that lies at its path, or is to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Library {
    pub path: PathBuf,
    pub bytes: Vec<u8>,
}

impl Library {
    /// With it the app has no io_uring.
    pub(crate) fn no_io_uring() -> io::Result<Self> {
        Self::place(NO_IO_URING.0, NO_IO_URING.1)
    }

    /// With it the app's clocks go on at a resume, and if it is to be denied that it has no io_uring. The file of each job is
    /// another one, since it holds what its clocks are.
    pub(crate) fn clocks(job: &str, denies_io_uring: bool) -> io::Result<Self> {
        let (name, bytes) = match denies_io_uring {
            true => CLOCKS_NO_IO_URING,
            false => CLOCKS,
        };
        Self::place(&format!("{name}-{job}.so"), bytes)
    }

    /// With it CRIU can tell the limits of processes of other users, which without SYS_RESOURCE it may not ask for, and what is
    /// in their System V IPC, for which it would need IPC_OWNER.
    pub(crate) fn limits() -> io::Result<Self> {
        Self::place(LIMITS.0, LIMITS.1)
    }

    /// With it the job's first process takes in orphans again before there are any.
    pub(crate) fn adopts() -> io::Result<Self> {
        Self::place(ADOPTS.0, ADOPTS.1)
    }

    fn place(name: &str, bytes: &[u8]) -> io::Result<Self> {
        if bytes.is_empty() {
            return Err(io::Error::other(
                "this build has no library for this machine",
            ));
        }
        let mut reason = io::Error::other("there is no place for it");
        for place in PLACES {
            let library = Self {
                path: Path::new(place).join(name),
                bytes: bytes.to_vec(),
            };
            match library.write() {
                Ok(()) => return Ok(library),
                Err(error) => reason = io::Error::other(format!("{place}: {error}")),
            }
        }
        Err(reason)
    }

    /// Those that keep clocks, as they are built.
    #[cfg(test)]
    pub(crate) fn of_clocks() -> [Self; 2] {
        [CLOCKS, CLOCKS_NO_IO_URING].map(|(name, bytes)| Self {
            path: name.into(),
            bytes: bytes.to_vec(),
        })
    }

    /// Puts it where it belongs, if it is not there.
    pub(crate) fn write(&self) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)?;
        let found = fs::symlink_metadata(directory)?;
        // In a directory that everybody may write to, somebody may have been there before us.
        if !found.is_dir() || found.uid() != getuid().as_raw() || found.mode() & 0o022 != 0 {
            return Err(io::Error::other("the directory is somebody else's"));
        }
        if statvfs(directory)?.flags().contains(FsFlags::ST_NOEXEC) {
            return Err(io::Error::other("it is mounted noexec"));
        }
        if fs::read(&self.path).is_ok_and(|there| there == self.bytes) {
            return Ok(());
        }
        // Never half a library under its name: whatever starts meanwhile would load it.
        let unfinished = self.path.with_extension("new");
        fs::write(&unfinished, &self.bytes)?;
        fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o644))?;
        fs::rename(&unfinished, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_put_where_it_belongs_and_left_where_it_is() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let library = Library {
            path: directory.path().join("a/b.so"),
            bytes: b"x".to_vec(),
        };
        library.write().expect("it can be written");
        let number = || fs::metadata(&library.path).expect("it is there").ino();
        let before = number();
        library.write().expect("it is there");
        assert_eq!(number(), before);
        fs::write(&library.path, "other").expect("it is ours");
        library.write().expect("it can be written");
        assert_eq!(fs::read(&library.path).expect("it is there"), b"x");
        fs::set_permissions(
            directory.path().join("a"),
            fs::Permissions::from_mode(0o777),
        )
        .expect("it is ours");
        library.write().expect_err("anybody could replace it");
    }

    #[test]
    fn this_build_has_its_libraries() {
        for (name, bytes) in [NO_IO_URING, LIMITS, ADOPTS, CLOCKS, CLOCKS_NO_IO_URING] {
            assert!(bytes.starts_with(b"\x7fELF"), "{name}");
        }
    }
}
