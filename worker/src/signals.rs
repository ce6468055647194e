//! Signals received like messages: all are blocked in every thread and read from a descriptor, in the order of arrival.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// Where signals arrive.
#[derive(Debug)]
pub struct Signals {
    descriptor: AsyncFd<SignalFd>,
}

/// Blocks every signal that can be blocked. To be called before the first thread is started, so that all inherit it.
pub fn block_all() -> io::Result<()> {
    let mut blocked = SigSet::all();
    // Faults of our own are not messages; blocked, they would end us without a word.
    for fault in [
        nix::sys::signal::SIGSEGV,
        nix::sys::signal::SIGBUS,
        nix::sys::signal::SIGFPE,
        nix::sys::signal::SIGILL,
        nix::sys::signal::SIGTRAP,
        nix::sys::signal::SIGABRT,
    ] {
        blocked.remove(fault);
    }
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&blocked), None)?)
}

impl Signals {
    /// Starts to receive. The signals must be blocked; must be called inside the runtime.
    pub fn receive() -> io::Result<Self> {
        let descriptor = SignalFd::with_flags(
            &SigSet::all(),
            SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC,
        )?;
        Ok(Self {
            descriptor: sys::watch(descriptor)?,
        })
    }

    /// The next signal's number. Several of one kind may arrive as one.
    pub async fn next(&mut self) -> i32 {
        loop {
            let mut ready = match self.descriptor.readable_mut().await {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!(%error, fd = self.descriptor.as_raw_fd(), "cannot wait for signals");
                    std::future::pending().await
                }
            };
            match ready.get_inner().read_signal() {
                Ok(Some(info)) => return i32::try_from(info.ssi_signo).unwrap_or(0),
                Ok(None) => ready.clear_ready(),
                Err(error) => {
                    tracing::error!(%error, "cannot read a signal");
                    ready.clear_ready();
                }
            }
        }
    }
}
