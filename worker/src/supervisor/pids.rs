//! Keeps the app's process ids clear of the supervisor's.
//!
//! A resumed process needs the very number it had. Linux hands numbers out in ascending order and, once past 300 in a
//! PID namespace, never below 300 again (`RESERVED_PIDS` in kernel/pid.c). So the supervisor, its threads and CRIU live
//! below 300 in a fresh container, and before an app may create processes the counter is pushed past 300: by starting
//! threads that end at once, since a thread takes a number like a process does.

use nix::unistd::gettid;

/// The kernel's `RESERVED_PIDS`.
const RESERVED: i32 = 300;

/// More threads than there are reserved numbers would mean that the counter does not move as described.
const TRIES: usize = 2_000;

/// Pushes the counter past the reserved numbers.
pub(crate) fn leave_reserved_range() {
    for _ in 0..TRIES {
        let thread = std::thread::Builder::new()
            .stack_size(64 << 10)
            .spawn(|| gettid().as_raw());
        match thread.map(std::thread::JoinHandle::join) {
            Ok(Ok(id)) if id >= RESERVED => return,
            Ok(_) => {}
            Err(error) => {
                // The next attempt would fail as well; a collision is then found by CRIU and retried.
                tracing::warn!(%error, "cannot start threads to move the process id counter");
                return;
            }
        }
    }
    tracing::warn!(
        "the process id counter does not move past {RESERVED}; a resume may collide with other processes"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn afterwards_new_processes_are_above_the_reserved_numbers() {
        leave_reserved_range();
        let id = std::thread::spawn(|| gettid().as_raw())
            .join()
            .expect("the thread only asks for its number");
        assert!(id >= RESERVED, "{id}");
    }
}
