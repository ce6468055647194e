//! The facts of the host we run on, as a snapshot records them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, gethostname, sysconf};
use reprieve_core::compat;
use reprieve_core::manifest::HostFacts;

/// Looks the host over.
pub(crate) fn facts(criu: &str) -> HostFacts {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo
            .lines()
            .find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    HostFacts {
        hostname: hostname(),
        arch: std::env::consts::ARCH.to_owned(),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim()
            .to_owned(),
        cpu_model: field("model name"),
        cpu_features: compat::user_features(field("flags").split(' ')),
        page_size: page_size(),
        criu: criu.to_owned(),
        image: image(),
    }
}

pub(crate) fn hostname() -> String {
    gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn page_size() -> u64 {
    sysconf(SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| u64::try_from(size).ok())
        .unwrap_or(0)
}

fn image() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map(|name| name.trim_matches('"').to_owned())
        .unwrap_or_default()
}

/// CLOCK_MONOTONIC, in milliseconds.
pub(crate) fn monotonic_ms() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has this clock");
    u64::try_from(time.tv_sec()).unwrap_or(0) * 1000
        + u64::try_from(time.tv_nsec()).unwrap_or(0) / 1_000_000
}

/// The wall clock, in milliseconds since the Unix epoch.
pub(crate) fn wall_ms() -> u64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A directory of our own for CRIU's small images and our sockets: the one that is set, or the first that lies in
/// memory, so that a checkpoint needs no disk.
pub(crate) fn work_directory(set: Option<&Path>) -> io::Result<PathBuf> {
    if let Some(directory) = set {
        private_directory(directory)?;
        return Ok(directory.to_owned());
    }
    let in_memory = ["/run", "/dev/shm"].into_iter().find(|parent| {
        let is_tmpfs = statfs(*parent).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC);
        is_tmpfs && private_directory(&Path::new(parent).join("reprieve")).is_ok()
    });
    let directory = match in_memory {
        Some(parent) => Path::new(parent).join("reprieve"),
        None => {
            let directory = std::env::temp_dir().join("reprieve");
            private_directory(&directory)?;
            directory
        }
    };
    Ok(directory)
}

fn private_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)?;
    // It holds parts of the app's memory.
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_facts() {
        let facts = facts("4.2");
        assert_eq!(facts.page_size, 4096);
        assert!(
            !facts.kernel.is_empty()
                && !facts.cpu_model.is_empty()
                && !facts.cpu_features.is_empty(),
            "{facts:?}"
        );
    }
}
