//! The facts of the host we run on, as a snapshot records them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statfs::{Statfs, TMPFS_MAGIC, statfs};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, geteuid, gethostname, pipe2, sysconf};
use reprieve_core::compat;
use reprieve_core::cpu::{self, Registers};
use reprieve_core::manifest::{HostFacts, Profile};

use crate::preload::Library;
use crate::sys;

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
    let cpuid = cpuid();
    let answer = |leaf, subleaf| cpuid.get(&(leaf, subleaf)).copied();
    let mut cpu_features = compat::user_features(field("flags").split(' '));
    // What is emulated or masked differs from what the kernel found at its start.
    cpu_features.retain(|feature| cpu::says(feature, answer) != Some(false));
    HostFacts {
        hostname: hostname(),
        arch: std::env::consts::ARCH.to_owned(),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim()
            .to_owned(),
        cpu_model: field("model name"),
        cpu_features,
        page_size: page_size(),
        criu: criu.to_owned(),
        image: image(),
        may_filter: may_suspend_filters() && !is_filtered(),
        cpu_baseline: None,
        // EBX: what is in use at present, which is what a process has.
        xsave_bytes: answer(0xd, 0).map_or(0, |registers| registers[1]),
        cpuid: cpuid.into_iter().map(recorded).collect(),
        libc: String::new(),
        image_digest: String::new(),
        profile: Profile::Minimal,
    }
}

/// What CPUID says, by leaf and subleaf. Empty where there is none.
fn cpuid() -> BTreeMap<(u32, u32), Registers> {
    let answers = cpu::LEAVES
        .into_iter()
        .filter_map(|at| sys::cpuid(at).map(|registers| (at, registers)));
    answers.collect()
}

fn recorded(((leaf, subleaf), mut registers): ((u32, u32), Registers)) -> (String, String) {
    if leaf == 1 {
        // The number of the processor that was asked.
        registers[1] = 0;
    }
    let [a, b, c, d] = registers;
    let text = format!("{a:08x} {b:08x} {c:08x} {d:08x}");
    (format!("{leaf:x}.{subleaf}"), text)
}

pub(crate) fn hostname() -> String {
    gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Whether sockets can be bound to this address here.
pub(crate) fn has_address(address: IpAddr) -> bool {
    match UdpSocket::bind((address, 0)) {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => is_coming(address),
        // Whatever else is the matter is no question of the address.
        _ => true,
    }
}

/// One of IPv6 cannot be bound to for a second after the host was given it, but by who is patient, as CRIU is.
fn is_coming(address: IpAddr) -> bool {
    let IpAddr::V6(address) = address else {
        return false;
    };
    let listed = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let digits = format!("{:032x}", address.to_bits());
    listed.lines().any(|line| line.starts_with(&digits))
}

/// CAP_SETPCAP, CAP_SYS_PTRACE, CAP_SYS_ADMIN and CAP_CHECKPOINT_RESTORE, linux/capability.h.
const SETPCAP: u32 = 8;
const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;
const CHECKPOINT_RESTORE: u32 = 40;

/// Everything about this container that would make every checkpoint fail, each with its remedy. Better known now than
/// at the eviction.
pub(crate) fn obstacles() -> Vec<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ptrace_scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let mut found = find_obstacles(&status, &ptrace_scope, page_size());
    found.extend(too_few_descriptors());
    found
}

/// What is handed to CRIU has descriptors around 200 there, and CRIU has some of its own.
const DESCRIPTORS: u64 = 256;

fn too_few_descriptors() -> Option<String> {
    let (may, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    (may < DESCRIPTORS).then(|| {
        format!(
            "a process may have {may} descriptors open, and CRIU needs {DESCRIPTORS}; raise the limit (ulimit -n, \
             --ulimit nofile=1024)"
        )
    })
}

fn find_obstacles(status: &str, ptrace_scope: &str, page_size: u64) -> Vec<String> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.strip_prefix(':')).map(str::trim)
    };
    let capabilities = field("CapEff").and_then(|mask| u64::from_str_radix(mask, 16).ok());
    let has = |number: u32| capabilities.is_none_or(|mask| mask >> number & 1 == 1);
    let is_restricted = ptrace_scope
        .trim()
        .parse::<u32>()
        .is_ok_and(|scope| scope > 0);
    let mut found = Vec::new();
    if field("Seccomp").is_some_and(|mode| mode != "0") {
        found.push("a seccomp filter is in force, and the kernel lets nobody checkpoint a process under one; run the \
                    container with --security-opt seccomp=unconfined".to_owned());
    }
    if !has(CHECKPOINT_RESTORE) && !has(SYS_ADMIN) {
        found.push("the capability CHECKPOINT_RESTORE is missing; run the container with --cap-add CHECKPOINT_RESTORE".to_owned());
    }
    if is_restricted && !has(SYS_PTRACE) {
        found.push("the capability SYS_PTRACE is missing and kernel.yama.ptrace_scope is not 0; run the container with \
                    --cap-add SYS_PTRACE".to_owned());
    }
    if !has(SETPCAP) && field("NoNewPrivs") != Some("1") {
        found.push("the capability SETPCAP is missing, without which CRIU can restore only under no_new_privs; keep it, \
                    or run the container with --security-opt no-new-privileges".to_owned());
    }
    if page_size != crate::pages::PAGE as u64 {
        found.push(format!(
            "pages have {page_size} bytes here; only pages of {} bytes are supported",
            crate::pages::PAGE
        ));
    }
    found
}

/// CAP_SYS_RESOURCE and CAP_SYS_TIME, linux/capability.h.
const SYS_RESOURCE: u32 = 24;
const SYS_TIME: u32 = 25;

/// What this container lacks for the full profile, each in words for a person; empty if nothing is known to be lacking.
pub(crate) fn lacks_for_full() -> Vec<&'static str> {
    find_lacks(
        capabilities(),
        geteuid().is_root(),
        Path::new("/proc/self/ns/time").exists(),
    )
}

/// The profile that a job would have here, as far as this process's rights say.
pub(crate) fn profile() -> Profile {
    match lacks_for_full().is_empty() {
        true => Profile::Full,
        false => Profile::Minimal,
    }
}

fn find_lacks(capabilities: u64, is_root: bool, has_time: bool) -> Vec<&'static str> {
    let has = |number: u32| capabilities >> number & 1 == 1;
    let lacks = [
        (is_root, "it does not run as root"),
        (has(SYS_ADMIN), "the capability SYS_ADMIN is missing"),
        (has(SYS_TIME), "the capability SYS_TIME is missing"),
        (has_time, "the kernel has no time namespaces"),
    ];
    let missing = lacks.into_iter().filter(|(there, _)| !there);
    missing.map(|(_, what)| what).collect()
}

/// What CRIU lacks here to store processes of several users or groups and to make them again, in words for a person. It is
/// all that Docker gives by default.
pub(crate) fn lacks_for_users() -> Vec<String> {
    let mut lacks = missing_for_users(capabilities());
    if capabilities() >> SYS_RESOURCE & 1 == 0
        && let Err(error) = Library::limits()
    {
        lacks.push(format!("the library by which CRIU reads limits: {error}"));
    }
    lacks
}

fn missing_for_users(capabilities: u64) -> Vec<String> {
    /// linux/capability.h. A restore as root opens their files and becomes them; what is stored is killed.
    const NEEDED: [(u32, &str); 4] = [
        (1, "DAC_OVERRIDE"),
        (5, "KILL"),
        (6, "SETGID"),
        (7, "SETUID"),
    ];
    let missing = NEEDED
        .into_iter()
        .filter(|(number, _)| capabilities >> number & 1 == 0);
    missing
        .map(|(_, name)| format!("the capability {name}"))
        .collect()
}

/// Our effective capabilities, as a mask.
pub(crate) fn capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

/// Whether CRIU may store processes that are under a seccomp filter, as far as our capabilities say.
pub(crate) fn may_suspend_filters() -> bool {
    capabilities() >> SYS_ADMIN & 1 == 1
}

/// Whether a pipe that is made now is smaller than pipes are: once the pipes of a user hold more pages than
/// /proc/sys/fs/pipe-user-pages-soft (16384: 1024 pipes, those of all containers of the machine together), those without
/// SYS_RESOURCE and SYS_ADMIN get short ones, and may not enlarge any (pipe(7)).
pub(crate) fn gets_short_pipes() -> bool {
    const USUAL: i32 = 64 << 10;
    let size = |pipe: &OwnedFd| fcntl(pipe, FcntlArg::F_GETPIPE_SZ);
    pipe2(OFlag::O_CLOEXEC)
        .and_then(|(reader, _)| size(&reader))
        .is_ok_and(|size| size < USUAL)
}

/// Whether this process is under a seccomp filter itself.
pub(crate) fn is_filtered() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mode = status
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp:"));
    mode.is_some_and(|mode| mode.trim() != "0")
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

/// How many bytes fit into a directory of ours. One that lies in memory holds no more than the container and the machine have left.
pub(crate) fn room(directory: &Path) -> u64 {
    let Ok(stat) = statfs(directory) else {
        return 0;
    };
    let free = free(&stat);
    if stat.filesystem_type() != TMPFS_MAGIC {
        return free;
    }
    let Limit { most, used } = Limits::read(Path::new(CGROUP)).memory;
    let of_container = most.map(|most| most.saturating_sub(used));
    let of_machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| available(&text));
    [of_container, of_machine]
        .into_iter()
        .flatten()
        .fold(free, u64::min)
}

/// Bytes that are free in a file system.
pub(crate) fn free(of: &Statfs) -> u64 {
    of.blocks_available() * u64::try_from(of.block_size()).unwrap_or(0)
}

/// In bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib << 10)
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

/// Where the container's limits are: those of version 2 themselves, or a directory for each kind of version 1.
pub(crate) const CGROUP: &str = "/sys/fs/cgroup";

/// From here on a limit of version 1 stands for none: it says so with the largest number of pages.
const NO_LIMIT: u64 = 1 << 62;

pub(crate) fn number(path: impl AsRef<Path>) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A limit of the container, if there is one, and what is used of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub most: Option<u64>,
    pub used: u64,
}

/// The container's limits, as its cgroup says them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// None: it is not seen, and so are its limits.
    pub version: Option<u8>,
    pub processes: Limit,
    pub memory: Limit,
}

impl Limits {
    pub(crate) fn read(root: &Path) -> Self {
        let is_there = |name: &str| root.join(name).exists();
        let version = match is_there("cgroup.controllers") {
            true => Some(2),
            false if is_there("memory") || is_there("pids") => Some(1),
            false => None,
        };
        let limit = |most: &str, used: &str| Limit {
            most: number(root.join(most)).filter(|most| *most < NO_LIMIT),
            used: number(root.join(used)).unwrap_or(0),
        };
        let (processes, memory) = match version {
            Some(1) => (
                limit("pids/pids.max", "pids/pids.current"),
                limit(
                    "memory/memory.limit_in_bytes",
                    "memory/memory.usage_in_bytes",
                ),
            ),
            _ => (
                limit("pids.max", "pids.current"),
                limit("memory.max", "memory.current"),
            ),
        };
        Self {
            version,
            processes,
            memory,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_in_memory_has_no_more_room_than_there_is_memory() {
        let meminfo = "MemTotal:  8000 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(available(meminfo), Some(2 << 20));
        assert_eq!(available("MemAvailable: x kB\n"), None);
        let whole = fs::read_to_string("/proc/meminfo").expect("proc is mounted");
        let of_machine = available(&whole).expect("every kernel says it");
        // It changes meanwhile, but not that much.
        assert!(room(Path::new("/dev/shm")) < 2 * of_machine);
        assert_eq!(room(Path::new("/no such")), 0);
    }

    #[test]
    fn dockers_default_capabilities_are_enough_for_several_users() {
        let defaults = 0x0000_0000_a804_25fb;
        assert_eq!(missing_for_users(defaults), [""; 0]);
        let less = defaults & !(1 << 5 | 1 << 7);
        assert_eq!(
            missing_for_users(less),
            ["the capability KILL", "the capability SETUID"]
        );
    }

    #[test]
    fn each_obstacle_is_found_and_none_where_there_is_none() {
        let status = |seccomp: u32, capabilities: u64, no_new_privs: u32| {
            format!(
                "Name:\tx\nCapEff:\t{capabilities:016x}\nNoNewPrivs:\t{no_new_privs}\nSeccomp:\t{seccomp}\n"
            )
        };
        // Docker's default set with CHECKPOINT_RESTORE and SYS_PTRACE.
        let full = 0x0000_0100_a80c_25fb;
        let cases: [(String, &str, u64, &[&str]); 7] = [
            (status(0, full, 0), "1", 4096, &[]),
            (status(2, full, 0), "", 4096, &["seccomp"]),
            (
                status(0, full & !(1 << 40), 0),
                "",
                4096,
                &["CHECKPOINT_RESTORE"],
            ),
            (status(0, full & !(1 << 40) | 1 << 21, 0), "", 4096, &[]),
            (status(0, full & !(1 << 19), 0), "1", 4096, &["SYS_PTRACE"]),
            (status(0, full & !(1 << 8), 0), "0", 4096, &["SETPCAP"]),
            (
                status(0, full & !(1 << 8 | 1 << 19), 1),
                "0",
                16384,
                &["pages of"],
            ),
        ];
        for (status, ptrace_scope, page_size, expected) in cases {
            let found = find_obstacles(&status, ptrace_scope, page_size);
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.contains(expected), "{found}");
            }
        }
    }

    #[test]
    fn what_is_missing_for_the_full_profile_is_named() {
        let all = 1 << SYS_ADMIN | 1 << SYS_TIME;
        assert!(find_lacks(all, true, true).is_empty());
        let cases = [
            (all & !(1 << SYS_TIME), true, true, "SYS_TIME"),
            (all & !(1 << SYS_ADMIN), true, true, "SYS_ADMIN"),
            (all, false, true, "root"),
            (all, true, false, "time namespaces"),
        ];
        for (capabilities, is_root, has_time, expected) in cases {
            let found = find_lacks(capabilities, is_root, has_time);
            assert!(
                matches!(found[..], [one] if one.contains(expected)),
                "{found:?}"
            );
        }
    }

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
