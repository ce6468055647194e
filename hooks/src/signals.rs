//! Signals received like messages: all are blocked in every thread and read from a descriptor, in the order of arrival.
//!
//! A blocked signal is neither lost nor acted upon by the kernel, also for PID 1, for which it would otherwise drop every
//! signal without a handler.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::sync::mpsc;

/// Signals that were read and not yet taken. Several of one kind that are not yet read are one for the kernel, so a
/// burst is bounded anyway; a full queue only leaves them there.
const QUEUE: usize = 64;

/// Faults of our own are not messages; blocked, they would end us without a word.
const FAULTS: [Signal; 6] = [
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGTRAP,
    Signal::SIGABRT,
];

/// Where signals arrive.
#[derive(Debug)]
pub struct Signals {
    arrived: mpsc::Receiver<i32>,
}

/// Blocks every signal that can be blocked, except faults. To be called before the first thread is started, so that
/// all inherit it.
///
/// # Errors
/// When the kernel refuses, which for these arguments it does not.
pub fn block_all() -> io::Result<()> {
    let mut blocked = SigSet::all();
    for fault in FAULTS {
        blocked.remove(fault);
    }
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&blocked), None)?)
}

impl Signals {
    /// Starts to receive, on a thread that ends with the process. The signals must be blocked.
    ///
    /// # Errors
    /// When there is no descriptor or no thread left.
    pub fn receive() -> io::Result<Self> {
        let descriptor = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC)?;
        let (sender, arrived) = mpsc::channel(QUEUE);
        std::thread::Builder::new()
            .name("signals".into())
            .stack_size(64 << 10)
            .spawn(move || pass_on(&descriptor, &sender))?;
        Ok(Self { arrived })
    }

    /// The next signal's number. Several of one kind may arrive as one.
    pub async fn next(&mut self) -> i32 {
        match self.arrived.recv().await {
            Some(signal) => signal,
            // The thread ends only with the receiver.
            None => std::future::pending().await,
        }
    }
}

fn pass_on(descriptor: &SignalFd, sender: &mpsc::Sender<i32>) {
    loop {
        match descriptor.read_signal() {
            Ok(Some(info)) => {
                let signal = i32::try_from(info.ssi_signo).unwrap_or(0);
                if sender.blocking_send(signal).is_err() {
                    return;
                }
            }
            Ok(None) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => tracing::error!(%error, "cannot read a signal"),
        }
    }
}
