//! Processes as `/proc` shows them, and how they end.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// How a process ended. Apart from a shell's 128 + n, this tells an exit code of 137 from a kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
}

/// One process as the container itself would see it.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    /// In the container's pid namespace, as are parent, group and session.
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) session: i32,
    pub(crate) state: char,
    pub(crate) name: String,
    /// Arguments, joined with spaces; empty for a zombie.
    pub(crate) command_line: String,
}

impl Process {
    pub(crate) fn is_zombie(&self) -> bool {
        self.state == 'Z'
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            pid,
            parent,
            group,
            session,
            state,
            name,
            command_line,
        } = self;
        write!(
            f,
            "{pid} parent {parent} group {group} session {session} {state} ({name}) {command_line}"
        )
    }
}

/// All processes that the proc file system at `proc` shows. Those that end while it is read are left out.
pub(super) fn list(proc: &Path) -> Vec<Process> {
    let Ok(entries) = fs::read_dir(proc) else {
        return Vec::new();
    };
    let mut found: Vec<Process> = entries
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .bytes()
                .all(|byte| byte.is_ascii_digit())
        })
        .filter_map(|entry| read(&entry.path()))
        .collect();
    found.sort_by_key(|process| process.pid);
    found
}

fn read(directory: &Path) -> Option<Process> {
    let stat = fs::read_to_string(directory.join("stat")).ok()?;
    // The name is in parentheses and may contain anything, parentheses too.
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let session = fields.next()?.parse().ok()?;
    let arguments = fs::read(directory.join("cmdline")).unwrap_or_default();
    let command_line = String::from_utf8_lossy(&arguments)
        .trim_end_matches('\0')
        .replace('\0', " ");
    Some(Process {
        pid: pid.parse().ok()?,
        parent,
        group,
        session,
        state,
        name: name.to_owned(),
        command_line,
    })
}

/// One field of a `status` file, such as `SigBlk` or `NSpid`.
pub(super) fn status_field(directory: &Path, field: &str) -> Option<String> {
    let status = fs::read_to_string(directory.join("status")).ok()?;
    status.lines().find_map(|line| {
        Some(
            line.strip_prefix(field)?
                .strip_prefix(':')?
                .trim()
                .to_owned(),
        )
    })
}

/// The process that has the id `inner` in the pid namespace of `init`, as this machine numbers it.
pub(super) fn outer_pid(init: i32, inner: i32) -> Option<i32> {
    let namespace = |directory: &Path| fs::read_link(directory.join("ns/pid")).ok();
    let wanted = namespace(&PathBuf::from(format!("/proc/{init}")))?;
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let directory = entry.path();
        let ids = status_field(&directory, "NSpid")?;
        let matches =
            ids.split_whitespace().last()?.parse() == Ok(inner) && namespace(&directory)? == wanted;
        matches.then(|| entry.file_name().to_string_lossy().parse().ok())?
    })
}
