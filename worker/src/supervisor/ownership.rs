//! Owning a job: the lease in the store, and the signs of life that keep others from taking it for dead.
//!
//! One task gives a sign of life every third of the term, from the claim on, also while a restore or a checkpoint takes
//! its time. When it finds that another worker owns the job it says so, once. Correctness does not hang on it: whoever
//! holds an older lease cannot commit.

use std::sync::{Arc, Weak};
use std::time::Duration;

use reprieve_core::head::{Finished, Head};
use reprieve_core::manifest::Manifest;
use reprieve_core::retention::Policy;
use reprieve_core::rollback;
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use crate::catalog::{Catalog, CatalogError, Lease};
use crate::keys::MasterKey;
use crate::supervisor::boot::BEATS;
use crate::supervisor::reports::Shelf;
use crate::supervisor::with_causes;

/// How long one sign of life may take: a commit waits for it.
const BEAT_LIMIT: Duration = Duration::from_secs(2);

/// The right to run a job and to commit its snapshots.
#[derive(Debug)]
pub(crate) struct Ownership {
    catalog: Catalog,
    pub(crate) epoch: u64,
    /// What snapshots are sealed with; `None` if they are not.
    pub(crate) key: Option<Arc<MasterKey>>,
    lease: Mutex<Lease>,
    /// A copy that can be had without waiting.
    last_head: std::sync::Mutex<Head>,
    /// Set once another worker was found to own the job.
    fenced: watch::Sender<bool>,
}

impl Ownership {
    /// Starts to give signs of life for a lease that was just claimed. They end when the ownership is dropped.
    pub(crate) fn begin(catalog: Catalog, lease: Lease, term: Duration) -> Arc<Self> {
        let ownership = Arc::new(Self {
            catalog,
            epoch: lease.head.epoch,
            key: lease.key.clone(),
            last_head: std::sync::Mutex::new(lease.head.clone()),
            lease: Mutex::new(lease),
            fenced: watch::Sender::new(false),
        });
        tokio::spawn(beat(Arc::downgrade(&ownership), term / BEATS));
        ownership
    }

    /// Where the job's reports go.
    pub(crate) fn shelf(&self) -> Shelf {
        Shelf {
            catalog: self.catalog.clone(),
            key: self.key.clone(),
        }
    }

    /// The head as it was last read or written for a checkpoint.
    pub(crate) fn last_head(&self) -> Head {
        self.last_head
            .lock()
            .expect("no holder of this lock panics")
            .clone()
    }

    fn remember(&self, head: &Head) -> Head {
        *self
            .last_head
            .lock()
            .expect("no holder of this lock panics") = head.clone();
        head.clone()
    }

    /// Looks the head up again, so that what follows begins from what is there.
    pub(crate) async fn refresh(&self, deadline: Instant) -> Result<Head, CatalogError> {
        let mut lease = self.lock(deadline).await?;
        self.noticing(self.catalog.refresh(&mut lease, deadline).await)?;
        Ok(self.remember(&lease.head))
    }

    /// Makes a snapshot count.
    pub(crate) async fn commit(
        &self,
        manifest: &Manifest,
        base: Option<&str>,
        policy: Policy,
        deadline: Instant,
    ) -> Result<Head, CatalogError> {
        let mut lease = self.lock(deadline).await?;
        self.noticing(
            self.catalog
                .commit(&mut lease, manifest, base, policy, deadline)
                .await,
        )?;
        Ok(self.remember(&lease.head))
    }

    /// Says that the job goes on from an older snapshot.
    pub(crate) async fn go_back(
        &self,
        to: u64,
        request: &rollback::Request,
        command: Option<&str>,
        deadline: Instant,
    ) -> Result<(), CatalogError> {
        let mut lease = self.lock(deadline).await?;
        let gone = self
            .catalog
            .go_back(&mut lease, to, request, command, deadline)
            .await;
        self.noticing(gone)?;
        self.remember(&lease.head);
        Ok(())
    }

    /// Names the attempt under which memory is stored ahead, so that nobody else takes that away.
    pub(crate) async fn seed(&self, attempt: &str, deadline: Instant) -> Result<(), CatalogError> {
        let mut lease = self.lock(deadline).await?;
        self.noticing(self.catalog.seed(&mut lease, attempt, deadline).await)?;
        self.remember(&lease.head);
        Ok(())
    }

    /// Says goodbye.
    pub(crate) async fn release(&self, finished: Option<Finished>, deadline: Instant) {
        let released = async {
            let mut lease = self.lease.lock().await;
            self.catalog.release(&mut lease, finished, deadline).await
        };
        match timeout_at(deadline, released).await {
            Ok(Ok(())) => {}
            Ok(Err(CatalogError::Fenced(_))) => {
                tracing::debug!("the job has another owner already")
            }
            Ok(Err(error)) => tracing::warn!(
                reason = with_causes(&error),
                "could not say goodbye in the store; the next owner has to wait for the lease to end"
            ),
            Err(_) => tracing::warn!(
                "no time was left to say goodbye in the store; the next owner has to wait for the lease to end"
            ),
        }
    }

    /// Waits until another worker owns the job.
    pub(crate) async fn fenced(&self) {
        let mut fenced = self.fenced.subscribe();
        // The sender lives as long as we do.
        drop(fenced.wait_for(|fenced| *fenced).await);
    }

    /// A sign of life may be on its way; it has a limit of its own, and so has this.
    async fn lock(&self, deadline: Instant) -> Result<MutexGuard<'_, Lease>, CatalogError> {
        timeout_at(deadline, self.lease.lock())
            .await
            .map_err(|_| CatalogError::Slow)
    }

    fn noticing<T>(&self, result: Result<T, CatalogError>) -> Result<T, CatalogError> {
        if matches!(result, Err(CatalogError::Fenced(_))) {
            self.fenced.send_replace(true);
        }
        result
    }
}

async fn beat(ownership: Weak<Ownership>, every: Duration) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first is due at once, and the claim was a sign of life.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let Some(ownership) = ownership.upgrade() else {
            return;
        };
        let mut lease = ownership.lease.lock().await;
        let beaten = ownership
            .catalog
            .beat(&mut lease, Instant::now() + every.min(BEAT_LIMIT))
            .await;
        drop(lease);
        match ownership.noticing(beaten) {
            Ok(()) => {}
            Err(CatalogError::Fenced(by)) => {
                tracing::error!(by, "another worker owns the job");
                return;
            }
            // The job goes on: nobody can tell from here whether it has another owner.
            Err(error) => tracing::warn!(
                reason = with_causes(&error),
                "no sign of life could be given in the store"
            ),
        }
    }
}
