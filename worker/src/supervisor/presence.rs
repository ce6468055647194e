//! Being seen: the worker's entry in the registry of its store.
//!
//! One task writes the entry whenever something in it changed, and from time to time so that others see it is alive. It
//! is information for people and tools; a failure to write it costs one line of the log.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reprieve_core::worker::{self, Worker};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use crate::registry::Registry;
use crate::store::Store;
use crate::supervisor::with_causes;

/// How long one writing may take.
const ENTER_LIMIT: Duration = Duration::from_secs(10);

const RENEWED_EVERY: Duration = Duration::from_millis(worker::RENEWED_EVERY_MS);

/// What is said of this worker, and where.
#[derive(Debug)]
pub(crate) struct Presence {
    said: watch::Sender<Said>,
    registry: OnceLock<Registry>,
    task: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Clone, Debug)]
struct Said {
    worker: Worker,
    leaving: bool,
}

impl Presence {
    pub(crate) fn new(worker: Worker) -> Arc<Self> {
        let leaving = false;
        Arc::new(Self {
            said: watch::Sender::new(Said { worker, leaving }),
            registry: OnceLock::new(),
            task: Mutex::default(),
        })
    }

    /// The name of this worker.
    pub(crate) fn name(&self) -> String {
        self.said(|worker| worker.worker.clone())
    }

    /// What is said.
    pub(crate) fn said<T>(&self, of: impl FnOnce(&Worker) -> T) -> T {
        of(&self.said.borrow().worker)
    }

    /// Enters the worker into the registry of this store, and keeps it there.
    pub(crate) async fn begin(&self, store: Arc<dyn Store>) {
        let registry = Registry::new(store);
        if self.registry.set(registry.clone()).is_ok() {
            let task = tokio::spawn(renew(registry, self.said.subscribe()));
            *self.task.lock().await = Some(task);
        }
    }

    /// Changes what is said.
    pub(crate) fn tell(&self, change: impl FnOnce(&mut Worker)) {
        self.said.send_if_modified(|said| {
            let before = said.worker.clone();
            change(&mut said.worker);
            said.worker != before
        });
    }

    /// Takes the worker out of the registry.
    pub(crate) async fn end(&self, deadline: Instant) {
        self.said.send_modify(|said| said.leaving = true);
        let Some(task) = self.task.lock().await.take() else {
            return;
        };
        // Behind a writing that is under way, which could otherwise come later than the removal. One that stays is swept.
        if timeout_at(deadline, task).await.is_err() {
            tracing::debug!("the worker's entry in the registry stays");
            return;
        }
        if let Some(registry) = self.registry.get() {
            let key = self.said.borrow().worker.key();
            if let Err(error) = registry.leave(&key, deadline).await {
                tracing::debug!(
                    reason = with_causes(&error),
                    "the worker's entry in the registry stays"
                );
            }
        }
    }
}

async fn renew(registry: Registry, mut said: watch::Receiver<Said>) {
    let mut told = false;
    loop {
        let Said { worker, leaving } = said.borrow_and_update().clone();
        if leaving {
            return;
        }
        match registry.enter(&worker, Instant::now() + ENTER_LIMIT).await {
            Ok(()) => told = false,
            Err(error) if !told => {
                told = true;
                tracing::info!(
                    reason = with_causes(&error),
                    "the worker could not be entered into the registry of the store; nothing depends on that"
                );
            }
            Err(_) => {}
        }
        match timeout(RENEWED_EVERY, said.changed()).await {
            Ok(Ok(())) | Err(_) => {}
            // Nobody can change it any more.
            Ok(Err(_)) => return,
        }
    }
}
