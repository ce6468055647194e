//! Sweeps the job's store in the background while the job runs and nothing else is to be done.
//!
//! A sweep begins a while after the job did and after each checkpoint, and is given up when a checkpoint begins or the
//! process ends: whatever it has not removed by then, a later one does. One that took long is not repeated soon, so that
//! all of them together take a small part of the time. A sweep that fails costs a line of the log.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::registry::Registry;
use crate::supervisor::with_causes;
use crate::sweeper::Sweeper;

/// How long a start has the store to itself.
const AFTER_START: Duration = Duration::from_secs(60);

/// Between two sweeps, at least.
const LEAST_PAUSE: Duration = Duration::from_secs(5);

/// The pause after a sweep, in times of how long that took.
const PAUSES: u32 = 20;

/// One that takes longer is given up; the next one goes on.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// The sweeps of one job.
#[derive(Debug)]
pub(crate) struct Housekeeping {
    sweeper: Arc<Sweeper>,
    history: Arc<Mutex<History>>,
    task: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct History {
    not_before: Option<Instant>,
    /// The last failure, which is not told twice.
    told: Option<String>,
}

impl Housekeeping {
    /// Begins with a sweep that is due a while from now.
    pub(crate) fn begin(sweeper: Sweeper) -> Self {
        let mut housekeeping = Self {
            sweeper: Arc::new(sweeper),
            history: Arc::default(),
            task: None,
        };
        housekeeping.schedule(Instant::now() + AFTER_START);
        housekeeping
    }

    /// There may be something to remove.
    pub(crate) fn look(&mut self) {
        self.schedule(Instant::now());
    }

    /// Something more important is to be done.
    pub(crate) fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }

    fn schedule(&mut self, at: Instant) {
        self.stop();
        let history = Arc::clone(&self.history);
        self.task = Some(tokio::spawn(sweep(Arc::clone(&self.sweeper), history, at)));
    }
}

impl Drop for Housekeeping {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn sweep(sweeper: Arc<Sweeper>, history: Arc<Mutex<History>>, at: Instant) {
    let lock = || history.lock().expect("no holder of this lock panics");
    let not_before = lock().not_before;
    sleep_until(not_before.map_or(at, |not_before| not_before.max(at))).await;
    let begun = Instant::now();
    // In case it is given up: one that never gets far must not begin again all the time.
    lock().not_before = Some(begun + LEAST_PAUSE);
    let swept = timeout(LIMIT, sweeper.sweep(|_, _| ())).await;
    let registry = Registry::new(Arc::clone(sweeper.catalog.store()));
    // Entries of dead workers are in nobody's way: a later sweep finds them again.
    if let Err(error) = registry.sweep(Instant::now() + sweeper.limit).await {
        tracing::debug!(reason = with_causes(&error), "the registry was not swept");
    }
    let mut history = lock();
    history.not_before = Some(Instant::now() + (begun.elapsed() * PAUSES).max(LEAST_PAUSE));
    let reason = match swept {
        Ok(Ok(swept)) => {
            if swept.removed > 0 {
                tracing::info!(
                    removed = swept.removed,
                    freed_bytes = swept.freed,
                    "the store was swept"
                );
            }
            history.told = None;
            return;
        }
        Ok(Err(error)) => with_causes(&error),
        Err(_) => format!("it took longer than {LIMIT:?}"),
    };
    if history.told.as_ref() != Some(&reason) {
        tracing::warn!(
            reason,
            "the store was not swept to the end; what nothing needs stays there for now"
        );
        history.told = Some(reason);
    }
}
