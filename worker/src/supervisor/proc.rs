//! What `/proc` tells about processes: parents, children, states. Read whole, because only a whole look is a truth.

use std::collections::HashMap;
use std::fs;
use std::io;

/// One process, as `/proc/PID/stat` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    /// `R`, `S`, `D`, `T`, `t`, `Z`, ...
    pub state: char,
    pub command: String,
}

/// All processes of our PID namespace. One that ends while we look is left out.
pub(crate) fn processes() -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if let Some(process) = process(pid) {
            found.push(process);
        }
    }
    Ok(found)
}

/// One process, if it is there.
pub(crate) fn process(pid: i32) -> Option<Process> {
    parse_stat(&String::from_utf8_lossy(
        &fs::read(format!("/proc/{pid}/stat")).ok()?,
    ))
}

/// The numbers of a process, from our PID namespace down to its own; empty if it is gone.
fn numbers(pid: i32) -> Vec<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.unwrap_or_default()
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

/// The number by which a process knows itself; ours for it, if it is gone.
pub(crate) fn innermost(pid: i32) -> i32 {
    numbers(pid).last().copied().unwrap_or(pid)
}

/// PID namespaces that a process is in, from ours on.
pub(crate) fn levels(pid: i32) -> usize {
    numbers(pid).len()
}

/// Bytes of memory that a process has for itself or shares by other means than files; 0 if it has ended.
pub(crate) fn memory(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse().ok()
    };
    let parts = ["RssAnon:", "RssShmem:", "VmSwap:"];
    parts.into_iter().filter_map(kib).sum::<u64>() * 1024
}

fn parse_stat(stat: &str) -> Option<Process> {
    // The command may hold anything, closing parentheses included: the last one ends it.
    let (front, back) = stat.rsplit_once(") ")?;
    let (pid, command) = front.split_once(" (")?;
    let mut fields = back.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some(Process {
        pid: pid.parse().ok()?,
        parent,
        state,
        command: command.to_owned(),
    })
}

/// The processes below and including `root`.
pub(crate) fn tree(all: &[Process], root: i32) -> Vec<Process> {
    let mut children: HashMap<i32, Vec<&Process>> = HashMap::new();
    for process in all {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found: Vec<Process> = all
        .iter()
        .filter(|process| process.pid == root)
        .cloned()
        .collect();
    let mut at = 0;
    while at < found.len() {
        let below = children.get(&found[at].pid).into_iter().flatten();
        found.extend(
            below
                .filter(|process| process.pid != root)
                .map(|process| (*process).clone()),
        );
        at += 1;
    }
    found
}

/// Children of `parent` that still live, other than those named.
pub(crate) fn other_children(all: &[Process], parent: i32, known: &[i32]) -> Vec<Process> {
    let strangers = all.iter().filter(|process| {
        process.parent == parent
            && !matches!(process.state, 'Z' | 'X')
            && !known.contains(&process.pid)
    });
    strangers.cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_may_hold_parentheses_and_spaces() {
        assert_eq!(
            parse_stat("12 (a) b (c)) S 7 12 12 0 -1"),
            Some(Process {
                pid: 12,
                parent: 7,
                state: 'S',
                command: "a) b (c)".into()
            })
        );
        assert_eq!(parse_stat("no stat at all"), None);
    }

    #[test]
    fn a_tree_is_found_whatever_the_order() {
        let one = |pid, parent| Process {
            pid,
            parent,
            state: 'S',
            command: String::new(),
        };
        let all = [one(5, 4), one(4, 3), one(3, 1), one(9, 1), one(1, 0)];
        let mut pids: Vec<i32> = tree(&all, 3).iter().map(|process| process.pid).collect();
        pids.sort_unstable();
        assert_eq!(pids, [3, 4, 5]);
        assert_eq!(other_children(&all, 1, &[3]), [one(9, 1)]);
    }
}
