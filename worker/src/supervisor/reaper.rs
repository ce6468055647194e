//! The only place that waits for processes; tells the others what ended and how.
//!
//! Every child of ours ends here, whether we started it or it was orphaned and given to us. Nobody else may call wait:
//! it would steal an exit code. Starting a process and announcing interest in it happen under one lock, so that an exit
//! cannot slip through between them.

use std::collections::HashMap;
use std::io;
use std::sync::Mutex;

use tokio::sync::oneshot;

use crate::metrics;
use crate::sys::{self, Exit};

/// Knows who waits for which process.
#[derive(Debug, Default)]
pub struct Reaper {
    waiting: Mutex<HashMap<i32, oneshot::Sender<Exit>>>,
}

/// A process that we will hear of.
#[derive(Debug)]
pub struct Watched {
    pub pid: i32,
    pub exit: oneshot::Receiver<Exit>,
}

impl Reaper {
    /// Starts a process with `start` and promises its exit.
    pub fn spawn(&self, start: impl FnOnce() -> io::Result<i32>) -> io::Result<Watched> {
        let mut waiting = self.waiting.lock().expect("no holder of this lock panics");
        let pid = start()?;
        let (sender, exit) = oneshot::channel();
        waiting.insert(pid, sender);
        Ok(Watched { pid, exit })
    }

    /// Promises the exit of a process that is about to become our child under a number known beforehand.
    pub fn expect(&self, pid: i32) -> Watched {
        let (sender, exit) = oneshot::channel();
        self.waiting
            .lock()
            .expect("no holder of this lock panics")
            .insert(pid, sender);
        Watched { pid, exit }
    }

    /// The processes that somebody waits for.
    pub fn watched(&self) -> Vec<i32> {
        self.waiting
            .lock()
            .expect("no holder of this lock panics")
            .keys()
            .copied()
            .collect()
    }

    /// Takes every ended child off the process table. To be called whenever SIGCHLD arrived.
    pub fn reap(&self) {
        loop {
            let mut waiting = self.waiting.lock().expect("no holder of this lock panics");
            match sys::reap_one() {
                Ok(Some((pid, exit))) => match waiting.remove(&pid) {
                    // Whoever waited may have given up; then nobody needs to know.
                    Some(sender) => drop(sender.send(exit)),
                    None => metrics::zombies_reaped(1),
                },
                Ok(None) => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::error!(%error, "cannot wait for processes; ended ones may stay as zombies");
                    return;
                }
            }
        }
    }
}
