//! Throw-away hosts for end-to-end tests: real containers, started with runc, that come and go like spot machines.
//!
//! A [`Host`] has its own mount, pid, ipc, uts and network namespaces, Docker's default capabilities plus the two that
//! CRIU needs, and a writable layer that nobody else sees: whatever a job should find again on the next host has to
//! travel through a store. Root file systems come from `infra/local/setup`, which is run when a test starts the first
//! host; a test never skips because something is missing.
//!
//! What is waited for is an event with a limit: a line of output, the end of a process, or a condition through
//! [`wait_until`], the only place here that polls. Mounts live in the container's own mount namespace, so they go when
//! it goes. A janitor process removes containers that a killed test run left behind (see `janitor.sh`).
//!
//! Left to the tests: everything that knows what Reprieve does.

// Each test file is a program of its own and uses a part of this.
#![allow(dead_code, unused_imports)]

mod browser;
mod bundle;
mod docker;
mod gcs;
mod handout;
mod host;
mod lab;
mod lookalike;
mod output;
mod process;
mod proxy;
mod workshop;

pub(crate) use browser::Browser;
pub(crate) use bundle::{DOCKER_CAPABILITIES, Rootfs};
pub(crate) use docker::{Container, Docker};
pub(crate) use gcs::Gcs;
pub(crate) use handout::Handout;
pub(crate) use host::{Builder, Guest, Host, Ran, Stdio};
pub(crate) use lab::Lab;
pub(crate) use lookalike::{Azurite, Collector, Lookalike, self_signed};
pub(crate) use output::Output;
pub(crate) use process::{Exit, Process};
pub(crate) use proxy::{Fault, Proxy, Request};

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// For what takes well under a second on an idle machine; generous because tests share their processors.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Returns what `attempt` yields once it yields something, and fails the test when `limit` passes first.
#[track_caller]
pub(crate) fn wait_for<T>(
    limit: Duration,
    what: &str,
    mut attempt: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "waited {limit:?} in vain for: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `condition` holds and fails the test when `limit` passes first.
#[track_caller]
pub(crate) fn wait_until(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(limit, what, || condition().then_some(()));
}

/// A path in the checkout, such as `tests/apps`.
pub(crate) fn project_path(relative: &str) -> PathBuf {
    let worker = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    worker
        .parent()
        .expect("the package lies inside the checkout")
        .join(relative)
}
