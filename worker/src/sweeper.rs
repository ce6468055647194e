//! Carries out a sweep: looks at everything that a job has in its store, and removes what nothing needs.
//!
//! What may go is decided in `reprieve_core::sweep`, which also says why this is safe beside owners, operators and other
//! sweepers. Here it is kept to: the plan is made from one head; before anything goes, and again before each batch, the
//! head is read and the plan made anew if that has other generations; attempts are condemned first. A sweep that cannot
//! read what it needs to know removes nothing, and one that is cut short has removed less. What a manifest told of its
//! data outlives it here, so that the next sweep finishes what this one had begun, without a grace.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use reprieve_core::head::Head;
use reprieve_core::manifest::{self, Part};
use reprieve_core::selection::Candidate;
use reprieve_core::sweep::{self, Facts, Live, Plan};
use tokio::time::Instant;

use crate::catalog::{self, Catalog, CatalogError};
use crate::pages::load::{self, Unusable};
use crate::steps::{self, Step};
use crate::store::{Condition, StoreError, retry};

/// Objects removed between two looks at the head.
const BATCH: usize = 100;

/// How often a plan is made anew because snapshots came or went meanwhile.
const ROUNDS: u32 = 10;

/// Why nothing, or not everything, was removed.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("what generation {generation} needs is not known, so that nothing may be removed")]
    Manifest {
        generation: u64,
        #[source]
        source: Unusable,
    },
    #[error("an object could not be removed")]
    Delete(#[source] StoreError),
    #[error("the store does not tell the time: an object that was just written is not listed")]
    Clock,
    #[error("snapshots came and went {ROUNDS} times during the sweep")]
    Restless,
}

/// What is swept, and how.
#[derive(Clone, Debug)]
pub struct Sweeper {
    pub catalog: Catalog,
    pub grace: Duration,
    /// How long one answer of the store may take.
    pub limit: Duration,
    /// Objects removed at once.
    pub at_once: usize,
    /// What sweeps that were cut short leave to the next one.
    pub begun: Begun,
}

/// Attempts of whose removal a sweep has begun, with the manifest that told that nobody can commit them.
#[derive(Clone, Debug, Default)]
pub struct Begun(Arc<Mutex<BTreeSet<String>>>);

impl Begun {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This manifest is about to go. Entered before, since nobody may hear how that ends.
    fn enter(&self, key: &str) {
        let attempt = sweep::attempt_of(key).filter(|_| key.starts_with(manifest::PREFIX));
        self.lock().extend(attempt.map(str::to_owned));
    }

    /// Of the rest nothing is left.
    fn keep_those_of(&self, objects: &[sweep::Object]) {
        let left: BTreeSet<&str> = objects
            .iter()
            .filter_map(|object| sweep::attempt_of(&object.key))
            .collect();
        self.lock()
            .retain(|attempt| left.contains(attempt.as_str()));
    }
}

/// What was decided and done.
#[derive(Clone, Debug, Default)]
pub struct Swept {
    /// The plan that was carried out, the last one if it was made anew.
    pub plan: Plan,
    pub removed: u64,
    /// Bytes.
    pub freed: u64,
}

/// Whose clock says how old an object is.
enum Now {
    /// The store's, for which a short-lived object is written.
    Stores,
    /// Ours, if the store's is not known to be ahead: good enough to say what would go.
    Guess(u64),
}

impl Sweeper {
    fn deadline(&self) -> Instant {
        Instant::now() + self.limit
    }

    /// What would go now, without writing anything.
    pub async fn preview(&self, wall_ms: u64) -> Result<Plan, SweepError> {
        let head = self.catalog.head(self.deadline()).await?;
        self.plan(&head, Now::Guess(wall_ms)).await
    }

    /// The same if the head were this one.
    pub async fn preview_of(&self, head: &Head, wall_ms: u64) -> Result<Plan, SweepError> {
        self.plan(head, Now::Guess(wall_ms)).await
    }

    /// Removes what nothing needs. `advanced` is told how many objects are gone, of how many.
    pub async fn sweep(&self, advanced: impl Fn(u64, u64)) -> Result<Swept, SweepError> {
        let mut swept = Swept::default();
        for _ in 0..ROUNDS {
            let head = self.catalog.head(self.deadline()).await?;
            swept.plan = self.plan(&head, Now::Stores).await?;
            let plan = swept.plan.clone();
            steps::reached(Step::Planned);
            if !self.condemn(&head, &plan.condemned).await? {
                continue;
            }
            steps::reached(Step::Condemned);
            if self.remove(&head, &plan, &mut swept, &advanced).await? {
                steps::reached(Step::Swept);
                return Ok(swept);
            }
        }
        Err(SweepError::Restless)
    }

    async fn plan(&self, head: &Head, now: Now) -> Result<Plan, SweepError> {
        let mut parts: Vec<(u64, Vec<Part>)> = Vec::new();
        for known in &head.generations {
            let candidate = Candidate::from(known);
            let read = load::manifest(&self.catalog, &candidate, self.deadline()).await;
            let read = read.map_err(|source| SweepError::Manifest {
                generation: known.generation,
                source,
            })?;
            parts.push((known.generation, read.manifest.parts));
        }
        let live: Vec<Live<'_>> = parts
            .iter()
            .map(|(generation, parts)| Live {
                generation: *generation,
                parts,
            })
            .collect();
        let marker = match now {
            Now::Stores => Some(self.mark_time().await?),
            Now::Guess(_) => None,
        };
        let listed = self.catalog.objects("", self.deadline()).await;
        if let Some(marker) = &marker {
            // One that stays is removed by a later sweep.
            drop(self.delete(marker).await);
        }
        let mut objects = listed?;
        let now_ms = match now {
            Now::Stores => {
                let marked = objects
                    .iter()
                    .find(|object| Some(&object.key) == marker.as_ref());
                marked.ok_or(SweepError::Clock)?.stored_at_ms
            }
            Now::Guess(wall_ms) => {
                let latest = objects.iter().map(|object| object.stored_at_ms).max();
                latest.unwrap_or(0).max(wall_ms)
            }
        };
        objects.retain(|object| Some(&object.key) != marker.as_ref());
        self.begun.keep_those_of(&objects);
        Ok(sweep::plan(&Facts {
            head,
            live: &live,
            objects: &objects,
            passed: &self.begun.lock(),
            now_ms,
            grace_ms: u64::try_from(self.grace.as_millis()).unwrap_or(u64::MAX),
        }))
    }

    async fn mark_time(&self) -> Result<String, SweepError> {
        let marker = format!("{}{}", sweep::CLOCK_PREFIX, catalog::nonce());
        let full = format!("{}{marker}", self.catalog.root());
        retry::retry(self.deadline(), "put", || {
            let bytes = bytes::Bytes::from_static(b"what time is it?\n");
            self.catalog.store().put(&full, bytes, Condition::Always)
        })
        .await
        .map_err(CatalogError::Store)?;
        Ok(marker)
    }

    /// Whether the plan that was made from `planned` still holds, and its attempts are condemned.
    async fn condemn(&self, planned: &Head, attempts: &[String]) -> Result<bool, SweepError> {
        if attempts.is_empty() {
            let present = self.catalog.head(self.deadline()).await?;
            return Ok(sweep::still_holds(planned, &present));
        }
        let amended = self
            .catalog
            .amend(self.deadline(), |head| {
                if sweep::still_holds(planned, head) {
                    Ok(head.condemning(attempts, catalog::nonce()))
                } else {
                    Err(())
                }
            })
            .await?;
        Ok(amended.is_ok())
    }

    /// Whether all that was planned is gone; not when the plan does not hold any more.
    async fn remove(
        &self,
        planned: &Head,
        plan: &Plan,
        swept: &mut Swept,
        advanced: impl Fn(u64, u64),
    ) -> Result<bool, SweepError> {
        let going = plan.going();
        let total = swept.removed + going.len() as u64;
        // Not side by side: no listing may find a manifest whose data is gone.
        let is_data = |entry: &&sweep::Entry| !entry.key.starts_with(manifest::PREFIX);
        let runs = going.chunk_by(|one, next| is_data(one) && is_data(next));
        for batch in runs.flat_map(|run| run.chunks(BATCH)) {
            let present = self.catalog.head(self.deadline()).await?;
            if !sweep::still_holds(planned, &present) {
                return Ok(false);
            }
            let deletions = batch.iter().map(|entry| async {
                self.begun.enter(&entry.key);
                (entry.bytes, self.delete(&entry.key).await)
            });
            let deletions: Vec<_> = deletions.collect();
            let mut deletions = futures::stream::iter(deletions).buffered(self.at_once.max(1));
            while let Some((bytes, deleted)) = deletions.next().await {
                deleted.map_err(SweepError::Delete)?;
                swept.removed += 1;
                swept.freed += bytes;
                advanced(swept.removed, total);
            }
        }
        Ok(true)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let full = format!("{}{key}", self.catalog.root());
        retry::retry(self.deadline(), "delete", || {
            self.catalog.store().delete(&full)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::sync::Arc;

    use reprieve_core::manifest::Manifest;
    use reprieve_core::retention::Policy;
    use reprieve_core::sweep::Refusal;

    use crate::catalog::Lease;
    use crate::catalog::tests::{claim, manifest, soon};
    use crate::store::unreliable::{Fault, Occurrence, Operation, Release};
    use crate::store::{DirectoryStore, Store, StoreErrorKind, UnreliableStore};

    struct Job {
        directory: tempfile::TempDir,
        store: UnreliableStore,
        catalog: Catalog,
        lease: Lease,
        /// Of the sweeps of one worker.
        begun: Begun,
    }

    impl Job {
        async fn new() -> Self {
            let directory = tempfile::tempdir().expect("temporary directory");
            let store = UnreliableStore::new(Arc::new(DirectoryStore::new(directory.path())));
            let catalog = Catalog::new(Arc::new(store.clone()), "job");
            let lease = claim(&catalog, "w").await;
            Self {
                directory,
                store,
                catalog,
                lease,
                begun: Begun::default(),
            }
        }

        fn sweeper(&self, grace: Duration) -> Sweeper {
            Sweeper {
                catalog: self.catalog.clone(),
                grace,
                limit: Duration::from_secs(30),
                at_once: 4,
                begun: self.begun.clone(),
            }
        }

        async fn put(&self, key: &str) {
            let bytes = bytes::Bytes::from_static(b"abc");
            let key = format!("job/{key}");
            let put = self.store.put(&key, bytes, Condition::Always);
            put.await.expect("it is stored");
        }

        /// Stores what an attempt stores before its manifest: two parts of its own, besides some of `base`.
        async fn attempt(&self, base: &[String]) -> Manifest {
            let mut made = manifest(&self.lease.head, &[]);
            let own = ["000000", "index"].map(|name| manifest::data_prefix(&made.attempt) + name);
            for key in &own {
                self.put(key).await;
            }
            let parts: Vec<String> = base.iter().chain(&own).cloned().collect();
            let attempt = std::mem::take(&mut made.attempt);
            made = manifest(&self.lease.head, &parts);
            made.attempt = attempt;
            made
        }

        async fn commit(
            &mut self,
            made: &Manifest,
            base: Option<&str>,
        ) -> Result<(), CatalogError> {
            let policy = Policy::last(2);
            self.catalog
                .commit(&mut self.lease, made, base, policy, soon())
                .await
        }

        /// Five snapshots, each built upon the one before; two of them count.
        async fn history(&mut self) {
            let mut base: Option<Manifest> = None;
            for _ in 0..5 {
                let reused = base
                    .as_ref()
                    .map(|base| base.parts[base.parts.len() - 2].key.clone());
                let made = self.attempt(reused.as_slice()).await;
                let key = base.map(|base| base.key());
                self.commit(&made, key.as_deref())
                    .await
                    .expect("it is ours");
                base = Some(made);
            }
        }

        fn objects(&self) -> Vec<String> {
            files(&self.directory.path().join("job"), "")
        }

        /// Every object that the live generations name.
        async fn needed(&self) -> Vec<String> {
            let head = self.catalog.head(soon()).await.expect("there is one");
            let mut needed = vec!["HEAD".to_owned()];
            for known in &head.generations {
                let store: Arc<dyn Store> = Arc::new(DirectoryStore::new(self.directory.path()));
                let catalog = Catalog::new(store, "job");
                let read = load::manifest(&catalog, &known.into(), soon()).await;
                needed.push(known.manifest.clone());
                needed.extend(
                    read.expect("it is whole")
                        .manifest
                        .parts
                        .into_iter()
                        .map(|part| part.key),
                );
            }
            needed.sort();
            needed.dedup();
            needed
        }
    }

    /// All files below a directory. A directory that a sweep removes while this looks holds none.
    fn files(directory: &Path, prefix: &str) -> Vec<String> {
        let mut found = Vec::new();
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return found,
            Err(error) => panic!("{}: {error}", directory.display()),
        };
        for entry in entries {
            let entry = entry.expect("it can be read");
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            match entry.path().is_dir() {
                true => found.extend(files(&entry.path(), &format!("{name}/"))),
                false => found.push(name),
            }
        }
        found.retain(|name| !name.contains("/.") && !name.starts_with('.'));
        found.sort();
        found
    }

    #[tokio::test]
    async fn what_counts_stays_and_what_was_dropped_goes_at_once() {
        let mut job = Job::new().await;
        job.history().await;
        job.put("notes").await;
        let young = job.attempt(&[]).await;
        let day = Duration::from_secs(24 * 60 * 60);
        let before = job.objects();
        let preview = job.sweeper(day).preview(0).await.expect("it is read");
        assert_eq!(job.objects(), before, "a preview changes nothing");
        let swept = job
            .sweeper(day)
            .sweep(|_, _| ())
            .await
            .expect("it is swept");
        assert_eq!(swept.removed, preview.going().len() as u64);
        let mut expected = job.needed().await;
        assert!(
            expected.len() > 7,
            "parts of dropped ones are in use: {expected:?}"
        );
        expected.extend(young.parts.iter().map(|part| part.key.clone()));
        expected.push("notes".into());
        expected.sort();
        assert_eq!(job.objects(), expected);
        assert!(swept.removed > 0 && swept.freed > 0);
    }

    #[tokio::test]
    async fn an_attempt_that_outlasts_the_grace_loses_itself_and_nothing_else() {
        let mut job = Job::new().await;
        job.history().await;
        let slow = job.attempt(&[]).await;
        let swept = job.sweeper(Duration::ZERO).sweep(|_, _| ()).await;
        assert!(
            swept
                .expect("it is swept")
                .plan
                .condemned
                .contains(&slow.attempt)
        );
        assert_eq!(job.objects(), job.needed().await);
        let refused = job.commit(&slow, None).await;
        assert!(
            matches!(refused, Err(CatalogError::Refused(Refusal::Condemned))),
            "{refused:?}"
        );
        let next = job.attempt(&[]).await;
        job.commit(&next, None).await.expect("it is ours");
    }

    #[tokio::test]
    async fn a_sweep_that_does_not_know_what_is_needed_removes_nothing() {
        let mut job = Job::new().await;
        job.history().await;
        job.attempt(&[]).await;
        let newest = job.lease.head.generations[0].manifest.clone();
        let path = job.directory.path().join("job").join(&newest);
        let whole = std::fs::read(&path).expect("it can be read");
        let mut damaged = whole.clone();
        damaged[40] ^= 1;
        std::fs::write(&path, damaged).expect("it can be written");
        let before = job.objects();
        let refused = job.sweeper(Duration::ZERO).sweep(|_, _| ()).await;
        assert!(
            matches!(refused, Err(SweepError::Manifest { generation: 5, .. })),
            "{refused:?}"
        );
        std::fs::write(&path, whole).expect("it can be written");
        let head = job.directory.path().join("job/HEAD");
        std::fs::rename(&head, head.with_extension("away")).expect("it can be renamed");
        let refused = job.sweeper(Duration::ZERO).sweep(|_, _| ()).await;
        assert!(
            matches!(
                refused,
                Err(SweepError::Catalog(CatalogError::NoHead(None)))
            ),
            "{refused:?}"
        );
        std::fs::rename(head.with_extension("away"), &head).expect("it can be renamed");
        assert_eq!(job.objects(), before);
    }

    #[tokio::test]
    async fn a_sweep_that_is_cut_short_anywhere_is_finished_by_the_next() {
        for nth in 1.. {
            let mut job = Job::new().await;
            job.history().await;
            job.attempt(&[]).await;
            job.store.fail(
                Operation::Delete,
                "",
                Occurrence::From(nth),
                Fault::Refused(StoreErrorKind::Denied),
            );
            let cut = job.sweeper(Duration::ZERO).sweep(|_, _| ()).await;
            let left = job.objects();
            let needed = job.needed().await;
            assert!(
                needed.iter().all(|key| left.contains(key)),
                "{nth}: {left:?}"
            );
            let has_data = |manifest: &String| {
                manifest::parse_key(manifest).is_none_or(|(_, _, attempt)| {
                    left.contains(&(manifest::data_prefix(attempt) + "index"))
                })
            };
            assert!(
                left.iter().all(has_data),
                "{nth}: a manifest without its data"
            );
            job.store.recover();
            job.sweeper(Duration::ZERO)
                .sweep(|_, _| ())
                .await
                .expect("it is swept");
            let mut left = job.objects();
            // The marker of the first one stays for an hour.
            left.retain(|key| !key.starts_with(sweep::CLOCK_PREFIX));
            assert_eq!(left, needed, "{nth}");
            if cut.is_ok() {
                assert!(nth > 5, "only {nth} were removed");
                return;
            }
        }
    }

    #[tokio::test]
    async fn a_sweep_that_is_given_up_anywhere_is_finished_by_the_workers_next_without_a_grace() {
        let day = Duration::from_secs(24 * 60 * 60);
        for nth in 1.. {
            let mut job = Job::new().await;
            job.history().await;
            let all = job.sweeper(day).preview(0).await.expect("it is read");
            job.store.fail(
                Operation::Delete,
                "",
                Occurrence::Nth(nth),
                Fault::Hanging(Release::default()),
            );
            let sweeper = job.sweeper(day);
            let was_cut = tokio::select! {
                biased;
                swept = sweeper.sweep(|_, _| ()) => {
                    swept.expect("it is swept");
                    false
                }
                () = job.store.begun(Operation::Delete, "", nth as usize) => true,
            };
            job.store.recover();
            let rest = job.sweeper(day).sweep(|_, _| ()).await;
            rest.expect("it is swept");
            let mut left = job.objects();
            left.retain(|key| !key.starts_with(sweep::CLOCK_PREFIX));
            assert_eq!(left, job.needed().await, "{nth} of {}", all.going().len());
            if !was_cut {
                assert!(nth as usize > all.going().len(), "only {nth} were removed");
                return;
            }
        }
    }

    #[tokio::test]
    async fn snapshots_that_come_and_go_during_a_sweep_keep_what_they_need() {
        let mut job = Job::new().await;
        job.history().await;
        let sweeper = job.sweeper(Duration::ZERO);
        let sweeping = tokio::spawn(async move {
            for _ in 0..20 {
                match sweeper.sweep(|_, _| ()).await {
                    Ok(_)
                    | Err(
                        SweepError::Restless
                        | SweepError::Manifest { .. }
                        | SweepError::Catalog(CatalogError::Busy(_)),
                    ) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
        });
        let mut commits = 0;
        let mut base: Option<Manifest> = None;
        while !sweeping.is_finished() {
            let reused = base
                .as_ref()
                .map(|base| base.parts[base.parts.len() - 2].key.clone());
            let made = job.attempt(reused.as_slice()).await;
            let key = base.as_ref().map(Manifest::key);
            match job.commit(&made, key.as_deref()).await {
                Ok(()) => {
                    commits += 1;
                    base = Some(made);
                }
                Err(CatalogError::Refused(Refusal::Condemned)) => {}
                Err(error) => panic!("{error:?}"),
            }
            let objects = job.objects();
            let lost: Vec<String> = job
                .needed()
                .await
                .into_iter()
                .filter(|key| !objects.contains(key))
                .collect();
            assert!(lost.is_empty(), "after {commits} commits: {lost:?}");
        }
        sweeping.await.expect("it does not panic");
        assert!(commits > 0);
    }
}
