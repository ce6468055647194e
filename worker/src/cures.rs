//! What the app is given at its start from scratch so that it can be checkpointed; `reprieve_core::launch` decides.
//!
//! A resumed app has it in its memory and environment. The library that it loaded has to be where it was, with the bytes it
//! had: they travel with the snapshot, since another build of this program may have others.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::getuid;
use reprieve_core::cpu::{self, Level};
use reprieve_core::launch::{self, Denial};

use crate::failure::{ExitCode, Failure};
use crate::host;
use crate::settings::{CpuBaseline, IoUring, PerfData, Settings};

/// Empty if this build has none.
const NO_IO_URING: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/no_io_uring.so"));

const LIBRARY: &str = "no-io-uring.so";

/// Where it may lie: the first that can be written and allows programs. Readable for every user of the job.
const PLACES: [&str; 3] = [
    "/run/reprieve-lib",
    "/tmp/reprieve-lib",
    "/var/tmp/reprieve-lib",
];

/// A library of ours that the job's processes load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Library {
    pub path: PathBuf,
    pub bytes: Vec<u8>,
}

/// What stays with the app's processes as long as they live, on whatever host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Given {
    pub library: Option<Library>,
    /// They are under a seccomp filter.
    pub filtered: bool,
    /// The level of x86-64 that they are held to.
    pub baseline: Option<String>,
}

/// What the app is started with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cures {
    /// Variables and their new values.
    pub environment: Vec<(&'static str, String)>,
    pub given: Given,
}

impl Cures {
    /// By what settings want and what this container allows. What cannot be had is said, and the app starts without.
    ///
    /// # Errors
    /// When the file of a baseline says nothing that can be used.
    pub(crate) fn prepare(settings: &Settings) -> Result<Self, Failure> {
        let mut cures = Self::default();
        let had = |name: &str| std::env::var(name).ok();
        if settings.jvm_perf_data == PerfData::Off {
            let options = launch::without_perf_data(had("JAVA_TOOL_OPTIONS").as_deref());
            cures.set("JAVA_TOOL_OPTIONS", options);
        }
        if settings.io_uring == IoUring::Deny {
            match launch::denial(host::may_suspend_filters(), host::is_filtered()) {
                Denial::Filter => cures.given.filtered = true,
                Denial::Preload => cures.preload(had("LD_PRELOAD").as_deref()),
            }
        }
        if let Some(level) = baseline(&settings.cpu_baseline)? {
            for (name, value, between) in cpu::held_to(level) {
                let before = cures.environment.iter().find(|(known, _)| *known == name);
                let before = before.map(|(_, value)| value.clone()).or_else(|| had(name));
                cures.environment.retain(|(known, _)| *known != name);
                cures.set(name, launch::added(before.as_deref(), between, &value));
            }
            cures.given.baseline = Some(level.as_str().to_owned());
        }
        tracing::info!(
            baseline = cures.given.baseline,
            environment = ?cures.environment.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            io_uring = match (&cures.given.library, cures.given.filtered) {
                (_, true) => "denied by a seccomp filter",
                (Some(_), _) => "denied by a library",
                _ => "allowed",
            },
            "what the app is given so that it can be checkpointed (docs/checkup.md)"
        );
        Ok(cures)
    }

    fn set(&mut self, name: &'static str, value: Option<String>) {
        self.environment.extend(value.map(|value| (name, value)));
    }

    fn preload(&mut self, had: Option<&str>) {
        let placed = match NO_IO_URING.is_empty() {
            true => Err(io::Error::other(
                "this build has no library for this machine",
            )),
            false => Library::place(NO_IO_URING),
        };
        match placed {
            Ok(library) => {
                let value = launch::preloading(had, &library.path.to_string_lossy());
                self.set("LD_PRELOAD", value);
                self.given.library = Some(library);
            }
            Err(error) => tracing::warn!(
                %error,
                "io_uring cannot be denied to the app; if it uses one, it cannot be checkpointed"
            ),
        }
    }

    /// As variables for a command.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (OsString, OsString)> {
        let all = self.environment.iter();
        all.map(|(name, value)| (OsString::from(name), OsString::from(value)))
    }
}

fn baseline(wanted: &CpuBaseline) -> Result<Option<Level>, Failure> {
    let path = match wanted {
        CpuBaseline::Off => return Ok(None),
        CpuBaseline::Level(level) => return Ok(Some(*level)),
        CpuBaseline::File(path) => path,
    };
    let text = fs::read_to_string(path).map_err(|error| error.to_string());
    let fleet = text.and_then(|text| cpu::fleet(&text)).map_err(|reason| {
        let what = format!("the CPU baseline in {} cannot be used", path.display());
        Failure::new(ExitCode::SettingsInvalid, what)
            .detail(reason)
            .remedy("write a line for each kind of machine as docs/hosts.md says, or name a level")
    })?;
    if !fleet.lacking.is_empty() {
        tracing::warn!(
            lacking = fleet.lacking.join(", "),
            "some machines of the fleet lack what a baseline does not hold back; snapshots from a host that has it need it"
        );
    }
    Ok(Some(fleet.level))
}

impl Library {
    fn place(bytes: &[u8]) -> io::Result<Self> {
        let mut reason = io::Error::other("there is no place for it");
        for place in PLACES {
            let library = Self {
                path: Path::new(place).join(LIBRARY),
                bytes: bytes.to_vec(),
            };
            match library.write() {
                Ok(()) => return Ok(library),
                Err(error) => reason = io::Error::other(format!("{place}: {error}")),
            }
        }
        Err(reason)
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
    fn this_build_has_a_library() {
        assert!(NO_IO_URING.starts_with(b"\x7fELF"));
    }
}
