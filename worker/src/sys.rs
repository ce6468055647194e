//! The few calls that no safe crate offers. The only module with `unsafe`; each block says why it is sound.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

use crate::filter::Filter;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(u8),
    Signal(i32),
}

impl Exit {
    /// The exit code by which a shell would report it: the code itself, or 128 + signal.
    pub fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(out, "exit code {code}"),
            Self::Signal(signal) => write!(out, "signal {signal}"),
        }
    }
}

/// Takes one ended child off the process table, if there is one. Reports deaths by real-time signals too, which
/// `nix::sys::wait` turns into an error after the child is gone.
pub(crate) fn reap_one() -> io::Result<Option<(i32, Exit)>> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for an int for the length of the call.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
    match pid {
        -1 => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ECHILD) => Ok(None),
            error => Err(error),
        },
        0 => Ok(None),
        pid if libc::WIFSIGNALED(status) => Ok(Some((pid, Exit::Signal(libc::WTERMSIG(status))))),
        // Without WUNTRACED and WCONTINUED there is no third case.
        pid => Ok(Some((
            pid,
            Exit::Code(u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(u8::MAX)),
        ))),
    }
}

/// Sends any signal, real-time ones included. A negative pid means a process group, as in kill(2).
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes two integers and touches no memory of ours.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes a variable out of our environment, so that no child gets it, and overwrites its value where the kernel put it, so
/// that `/proc/PID/environ` does not show it either.
/// Refused once there is another thread: it could be reading the environment.
pub fn wipe_variable(name: &std::ffi::CStr) -> io::Result<()> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("there are other threads already"));
    }
    // SAFETY: the name is a C string. This is the only thread, so nobody else touches the environment or starts another one
    // meanwhile. What getenv gives is a C string that stays valid until the variable is changed; its bytes before the NUL
    // are ours to write.
    unsafe {
        let value = libc::getenv(name.as_ptr());
        if value.is_null() {
            return Ok(());
        }
        for at in 0..libc::strlen(value) {
            // Volatile: a plain write before the variable goes may be left out.
            value.add(at).write_volatile(0);
        }
        libc::unsetenv(name.as_ptr());
    }
    Ok(())
}

/// Marks every descriptor from 3 upwards as not to be inherited: what our own parent left open is not the app's.
pub fn keep_descriptors_private() -> io::Result<()> {
    // SAFETY: close_range with CLOEXEC only sets a flag on descriptors; none is closed.
    match unsafe {
        libc::close_range(
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC as libc::c_int,
        )
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The limit of core files as we were started with it: soft and hard, in bytes.
static CORE_LIMIT: OnceLock<(rlim_t, rlim_t)> = OnceLock::new();

/// Leaves no core file of this process, whose memory has keys and credentials. What it starts has the limit that we had.
///
/// One byte, not none: the kernel hands a core to a program (`|` in core_pattern) whatever the limit is, but for that
/// (core(5), fs/coredump.c).
pub fn leave_no_core() -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_CORE)?;
    CORE_LIMIT.get_or_init(|| (soft, hard));
    Ok(setrlimit(Resource::RLIMIT_CORE, soft.min(1), hard)?)
}

/// The kernel's name of a socket's protocol, as in `TCP`, by a path that leads to it; None for what is no socket.
pub(crate) fn socket_protocol(path: &std::path::Path) -> Option<String> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    // Names of protocols have at most 32 bytes (net/sock.h).
    let mut name = [0_u8; 64];
    // SAFETY: both strings are C strings, and at most the given number of bytes is written to `name`, which lives as long as
    // the call.
    let length = unsafe {
        libc::getxattr(
            path.as_ptr(),
            c"system.sockprotoname".as_ptr(),
            name.as_mut_ptr().cast(),
            name.len(),
        )
    };
    let name = name.get(..usize::try_from(length).ok()?)?;
    let name = String::from_utf8_lossy(name);
    Some(name.trim_end_matches('\0').to_owned())
}

/// Bytes that can be read from a pipe right now.
pub(crate) fn readable_bytes(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int to the given place, which lives as long as the call.
    match unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut count) } {
        0 => Ok(usize::try_from(count).unwrap_or(0)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Copies the size of one terminal to another, so that full-screen programs draw right.
pub(crate) fn copy_window_size(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ fills one winsize and TIOCSWINSZ reads one; both point at `size`, which outlives the calls.
    let done = unsafe {
        libc::ioctl(from.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) == 0
            && libc::ioctl(to.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) == 0
    };
    if done {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Takes a descriptor over that was just received in a message and that nothing else knows of.
pub(crate) fn own(received: RawFd) -> OwnedFd {
    // SAFETY: the kernel made this descriptor for us when the message was received, and only the caller has its number.
    unsafe { OwnedFd::from_raw_fd(received) }
}

/// Has the allocator keep a few buffers as large as what a resume fetches, because new memory costs more than to copy into
/// it, and give larger ones back to the system when they are freed. Left to itself it raises the size from which it does so
/// to that of the largest one it ever saw, and each thread's arena keeps its own. [`give_memory_back`] returns what it
/// keeps.
pub fn bound_memory() {
    const KEPT: libc::c_int = 24 << 20;
    // SAFETY: mallopt takes two integers. A refusal costs memory and nothing else.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives what is not used back to the system: to be called when much was done and little comes. That is also the program's own
/// code, most of which only a start or a checkpoint needs: what is needed again comes from the page cache.
pub(crate) fn give_memory_back() {
    // SAFETY: it takes an integer and touches only memory that nobody has.
    unsafe {
        libc::malloc_trim(0);
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let program = std::env::current_exe().unwrap_or_default();
    for range in maps.lines().filter_map(|line| code_of(&program, line)) {
        // SAFETY: of a private mapping of a file that was never written to, pages are dropped, and read again when they are
        // touched; code is not written to (no relocations in it, and nobody else has it mapped for writing).
        unsafe {
            libc::madvise(
                std::ptr::with_exposed_provenance_mut(range.start),
                range.len(),
                libc::MADV_DONTNEED,
            );
        }
    }
}

/// The addresses of a line of `/proc/PID/maps` (proc(5)), if it is of this program's code.
fn code_of(program: &Path, line: &str) -> Option<Range<usize>> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let is_code = words.next()? == "r-xp";
    let is_ours = Path::new(words.nth(3)?.trim_start()) == program;
    let address = |text| usize::from_str_radix(text, 16).ok();
    (is_code && is_ours).then_some(address(start)?..address(end)?)
}

/// Makes the calling thread give way to every other one, for the processor and for disks.
pub(crate) fn yield_to_others() {
    /// linux/ioprio.h: the thread that asks; the idle class.
    const WHO_PROCESS: libc::c_int = 1;
    const IDLE: libc::c_int = 3 << 13;
    // SAFETY: both calls take integers only. A refusal costs nothing but the courtesy.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 19);
        libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, IDLE);
    }
}

/// CAP_SETPCAP, CAP_SYS_PTRACE and CAP_CHECKPOINT_RESTORE, linux/capability.h: what CRIU needs.
const CRIU_CAPABILITIES: [u32; 3] = [8, 19, 40];

/// Version 3 of the kernel's structures: sets of 64 bits, in two halves.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    /// 0 is the calling thread.
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityHalf {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Changes both halves of the calling thread's capabilities. Allocates nothing, so it may run between fork and exec.
fn change_capabilities(change: impl Fn(&mut CapabilityHalf, usize, u32)) -> io::Result<()> {
    let mut header = CapabilityHeader {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    let mut halves = [CapabilityHalf::default(); 2];
    // SAFETY: with this version the kernel reads a header and writes two halves, which live as long as the call.
    let got = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, halves.as_mut_ptr()) };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    for (index, half) in halves.iter_mut().enumerate() {
        let bits = CRIU_CAPABILITIES
            .iter()
            .filter(|number| **number as usize / 32 == index);
        let wanted = bits.fold(0, |mask, number| mask | 1 << (number % 32));
        change(half, index, half.permitted & wanted);
    }
    // SAFETY: the kernel reads a header and two halves, which live as long as the call.
    match unsafe { libc::syscall(libc::SYS_capset, &raw mut header, halves.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets a user other than root use what the file capabilities of this binary permit. Before the first thread, since
/// each thread has its own.
pub fn use_capabilities() -> io::Result<()> {
    change_capabilities(|half, _, wanted| half.effective |= wanted)
}

/// Hands down to `command` what CRIU needs of our capabilities, which users other than root lose at exec.
pub(crate) fn hand_down_capabilities(command: &mut Command) {
    if nix::unistd::geteuid().is_root() {
        return;
    }
    // SAFETY: the closure runs between fork and exec; it makes system calls on integers and on memory of its own stack.
    unsafe {
        command.pre_exec(|| {
            change_capabilities(|half, _, wanted| half.inheritable |= wanted)?;
            for number in CRIU_CAPABILITIES {
                // Fails for what we do not have, which CRIU will say better.
                libc::prctl(
                    libc::PR_CAP_AMBIENT,
                    libc::PR_CAP_AMBIENT_RAISE,
                    number,
                    0,
                    0,
                );
            }
            Ok(())
        });
    }
}

/// Puts `command` and everything that it starts under a seccomp filter, for which SYS_ADMIN is needed at that moment.
pub(crate) fn filter(command: &mut Command, filter: Filter) {
    let mut steps = filter.into_steps();
    let len = libc::c_ushort::try_from(steps.len()).expect("filters are short");
    // SAFETY: the closure runs between fork and exec and makes one system call, which reads the filter; that was made before
    // the fork and is owned by the closure.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog {
                len,
                filter: steps.as_mut_ptr(),
            };
            match libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const program,
            ) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
    }
}

/// Lets `command` take in what becomes an orphan below it, as process 1 of a container does.
pub(crate) fn take_in_orphans(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and makes one system call on integers.
    unsafe {
        command.pre_exec(
            || match libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            },
        );
    }
}

/// CAP_SYS_ADMIN and CAP_SYS_TIME, linux/capability.h: what makes a realm, and no business of the app.
const REALM_CAPABILITIES: [u32; 2] = [21, 25];

/// Makes `command` join these namespaces before it becomes its program, and stand in `directory` there.
pub(crate) fn join_namespaces(
    command: &mut Command,
    namespaces: &[&OwnedFd],
    directory: &std::path::Path,
) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let directory = std::ffi::CString::new(directory.as_os_str().as_bytes())?;
    let namespaces: Vec<RawFd> = namespaces.iter().map(|fd| fd.as_raw_fd()).collect();
    // SAFETY: the closure runs between fork and exec and makes only system calls, on integers and on memory that was allocated
    // before the fork. Whoever starts the command keeps the descriptors open meanwhile.
    unsafe {
        command.pre_exec(move || {
            for namespace in &namespaces {
                if libc::setns(*namespace, 0) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            match libc::chdir(directory.as_ptr()) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
    }
    Ok(())
}

/// Takes from `command`, for good, what the supervisor needs to make a realm and the app could do harm with.
pub(crate) fn keep_realm_capabilities_back(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec; it makes system calls on integers and on memory of its own stack.
    unsafe {
        command.pre_exec(|| {
            for number in REALM_CAPABILITIES {
                // Fails without SETPCAP. Then there is no_new_privs, and what is not permitted any more is not given back.
                libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0);
            }
            change_capabilities(|half, index, _| {
                let bits = REALM_CAPABILITIES
                    .iter()
                    .filter(|number| **number as usize / 32 == index);
                let taken = bits.fold(0, |mask, number| mask | 1 << (number % 32));
                half.effective &= !taken;
                half.permitted &= !taken;
                half.inheritable &= !taken;
            })
        });
    }
}

/// Leaves ended children to the kernel, which takes them off the process table.
pub(crate) fn ignore_ended_children() {
    // SAFETY: it takes integers only, and no handler is installed.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
    }
}

/// What the new process gets of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Terminal {
    None,
    /// Its standard input becomes its controlling terminal.
    Controlling,
}

/// Starts a program in a session of its own, with empty signal mask, default dispositions and nothing inherited but the three standard streams
/// and `passed`: pairs of our descriptor and the number it gets there. Whoever calls is the parent and has to reap.
pub(crate) fn spawn(
    mut command: Command,
    streams: [Stdio; 3],
    terminal: Terminal,
    passed: &[(&OwnedFd, RawFd)],
) -> io::Result<i32> {
    let [stdin, stdout, stderr] = streams;
    command.stdin(stdin).stdout(stdout).stderr(stderr);
    let passed: Vec<(RawFd, RawFd)> = passed
        .iter()
        .map(|(ours, theirs)| (ours.as_raw_fd(), *theirs))
        .collect();
    if let Some((ours, theirs)) = passed
        .iter()
        .find(|(ours, _)| passed.iter().any(|(_, theirs)| ours == theirs))
    {
        return Err(io::Error::other(format!(
            "descriptor {ours} would be overwritten when {theirs} is passed on"
        )));
    }
    // SAFETY: the closure runs between fork and exec and makes only async-signal-safe calls; `passed` was allocated
    // before the fork and is only read.
    unsafe {
        command.pre_exec(move || prepare_child(terminal, &passed));
    }
    let child = command.spawn()?;
    // Dropping a `Child` neither kills nor waits; the reaper does the waiting.
    Ok(i32::try_from(child.id()).expect("Linux process ids fit an i32"))
}

fn prepare_child(terminal: Terminal, passed: &[(RawFd, RawFd)]) -> io::Result<()> {
    if let Some((soft, hard)) = CORE_LIMIT.get() {
        setrlimit(Resource::RLIMIT_CORE, *soft, *hard)?;
    }
    let check = |result: libc::c_int| {
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    };
    // SAFETY: all of these are async-signal-safe system calls on integers and on local memory.
    unsafe {
        check(libc::setsid())?;
        if terminal == Terminal::Controlling {
            check(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
        }
        for (ours, theirs) in passed {
            // dup2 leaves the copy inheritable.
            check(libc::dup2(*ours, *theirs))?;
        }
        for signal in 1..=libc::SIGRTMAX() {
            // Fails for KILL, STOP and the two that the C library keeps to itself; those are as they should be.
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        check(libc::sigprocmask(
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null_mut(),
        ))
    }
}

/// What the processor says of itself; None on other architectures, and for leaves that it does not have.
#[cfg(target_arch = "x86_64")]
pub(crate) fn cpuid((leaf, subleaf): (u32, u32)) -> Option<[u32; 4]> {
    use std::arch::x86_64::__cpuid_count;
    let last = __cpuid_count(leaf & 0x8000_0000, 0).eax;
    let found = (leaf <= last).then(|| __cpuid_count(leaf, subleaf))?;
    Some([found.eax, found.ebx, found.ecx, found.edx])
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn cpuid(_: (u32, u32)) -> Option<[u32; 4]> {
    None
}

/// Ends this process at once as a kill would, with nothing said and nothing closed; the first process of a container
/// cannot kill itself by signal.
#[cfg(debug_assertions)]
pub(crate) fn vanish() -> ! {
    // SAFETY: it does not return, and takes no memory of ours.
    unsafe { libc::_exit(128 + libc::SIGKILL) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_of_this_program_is_what_is_given_back() {
        let program = Path::new("/usr/local/bin/a b");
        let code = "7f00aa000000-7f00ab000000 r-xp 007be000 fe:00 557                    /usr/local/bin/a b";
        assert_eq!(
            code_of(program, code),
            Some(0x7f00_aa00_0000..0x7f00_ab00_0000)
        );
        for other in [
            "7f00aa000000-7f00ab000000 r--p 00000000 fe:00 557                    /usr/local/bin/a b",
            "7f00aa000000-7f00ab000000 rwxp 00000000 fe:00 557                    /usr/local/bin/a b",
            "7f00aa000000-7f00ab000000 r-xp 00000000 fe:00 557                    /usr/lib/libc.so.6",
            "7ffe798ee000-7ffe79922000 r-xp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(code_of(program, other), None, "{other}");
        }
        // Whatever was dropped is there again.
        give_memory_back();
        let maps = std::fs::read_to_string("/proc/self/maps").expect("it is there");
        let own = std::env::current_exe().expect("it is there");
        assert!(maps.lines().any(|line| code_of(&own, line).is_some()));
    }

    #[test]
    fn exits_are_reported_as_a_shell_would() {
        assert_eq!(Exit::Code(7).code(), 7);
        assert_eq!(Exit::Signal(9).code(), 137);
        assert_eq!(Exit::Signal(64).code(), 192);
    }
}
