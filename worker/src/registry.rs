//! The live workers of a store, and its jobs: who is there, without knowing any of them by name.
//!
//! The entries are small objects of their own (`reprieve_core::worker`), so that one listing of few lines finds the
//! workers of all jobs. Jobs are found by looking at the first key of each: a listing of one line per job, however many
//! objects it has.

use std::sync::Arc;

use bytes::Bytes;
use reprieve_core::document::{self, DocumentError};
use reprieve_core::worker::{self, Worker};
use tokio::time::Instant;

use crate::store::{Condition, Entry, Store, StoreError, StoreErrorKind, retry};

/// Objects asked for in one listing; S3 gives no more.
const PAGE: usize = 1000;

/// A worker as its entry tells.
#[derive(Debug)]
pub struct Present {
    pub key: String,
    /// When it was last written, by the store's clock, in milliseconds since the Unix epoch.
    pub renewed_at_ms: u64,
    pub worker: Result<Worker, DocumentError>,
}

/// The entries of one store.
#[derive(Clone, Debug)]
pub struct Registry {
    store: Arc<dyn Store>,
}

impl Registry {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// Writes a worker's entry, or writes it anew.
    pub async fn enter(&self, worker: &Worker, deadline: Instant) -> Result<(), StoreError> {
        let (key, bytes) = (worker.key(), Bytes::from(worker.to_bytes()));
        // Nobody else writes this one.
        retry::retry(deadline, "put", || {
            self.store.put(&key, bytes.clone(), Condition::Always)
        })
        .await
        .map(drop)
    }

    /// Removes an entry.
    pub async fn leave(&self, key: &str, deadline: Instant) -> Result<(), StoreError> {
        retry::retry(deadline, "delete", || self.store.delete(key)).await
    }

    async fn entries(&self, deadline: Instant) -> Result<Vec<Entry>, StoreError> {
        let mut found: Vec<Entry> = Vec::new();
        loop {
            let after = found.last().map(|last| last.key.clone());
            let page = retry::retry(deadline, "list", || {
                self.store.list(worker::PREFIX, after.as_deref(), PAGE)
            })
            .await?;
            let ended = page.len() < PAGE;
            found.extend(page);
            if ended {
                return Ok(found);
            }
        }
    }

    /// Every worker that is there, or was until a while ago, in the order of their starts.
    pub async fn workers(&self, deadline: Instant) -> Result<Vec<Present>, StoreError> {
        let mut present = Vec::new();
        for entry in self.entries(deadline).await? {
            let got = retry::retry(deadline, "get", || {
                self.store.get(&entry.key, document::SIZE_LIMIT)
            })
            .await;
            match got {
                Ok(object) => present.push(Present {
                    key: entry.key,
                    renewed_at_ms: entry.modified_ms,
                    worker: Worker::from_bytes(&object.bytes),
                }),
                // It left since it was listed.
                Err(error) if error.kind == StoreErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(present)
    }

    /// The names of the jobs that have anything in the store, in order.
    pub async fn jobs(&self, deadline: Instant) -> Result<Vec<String>, StoreError> {
        let mut jobs: Vec<String> = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let next = retry::retry(deadline, "list", || {
                self.store.list("", after.as_deref(), 1)
            })
            .await?;
            let Some(entry) = next.into_iter().next() else {
                return Ok(jobs);
            };
            let (first, rest) = entry.key.split_once('/').unwrap_or((&entry.key, ""));
            if first.starts_with('~') {
                return Ok(jobs);
            }
            after = Some(match rest {
                "" => entry.key.clone(),
                // The character behind `/`: behind every key of this job, and before every other.
                _ => format!("{first}0"),
            });
            if !rest.is_empty() {
                jobs.push(first.to_owned());
            }
        }
    }

    /// Removes the entries of workers that died without a goodbye a while ago. How many there were.
    pub async fn sweep(&self, deadline: Instant) -> Result<usize, StoreError> {
        let entries = self.entries(deadline).await?;
        let ages: Vec<(&str, u64)> = entries
            .iter()
            .map(|entry| (entry.key.as_str(), entry.modified_ms))
            .collect();
        let stale = worker::stale(&ages);
        for key in &stale {
            // A worker that was only paused enters itself again.
            self.leave(key, deadline).await?;
        }
        Ok(stale.len())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::store::DirectoryStore;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    fn worker(name: &str) -> Worker {
        Worker {
            worker: name.into(),
            job: "job".into(),
            host: "h".into(),
            instance: None,
            machine: None,
            queue: None,
            state: "running".into(),
            epoch: None,
            started_ms: 1,
            last_snapshot: None,
            deadline_ms: None,
            version: "0".into(),
            cpu_level: None,
        }
    }

    fn names(present: &[Present]) -> Vec<String> {
        let names = present.iter().map(|present| match &present.worker {
            Ok(worker) => worker.worker.clone(),
            Err(damage) => damage.to_string(),
        });
        names.collect()
    }

    #[tokio::test]
    async fn workers_come_go_and_are_swept_when_they_died() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let registry = Registry::new(Arc::new(DirectoryStore::new(directory.path())));
        for name in ["a", "b", "c"] {
            registry
                .enter(&worker(name), soon())
                .await
                .expect("it is stored");
        }
        let mut changed = worker("b");
        changed.epoch = Some(4);
        registry
            .enter(&changed, soon())
            .await
            .expect("it is stored");
        let present = registry.workers(soon()).await.expect("they are listed");
        assert_eq!(names(&present), ["a", "b", "c"]);
        assert_eq!(present[1].worker, Ok(changed));
        assert_eq!(registry.sweep(soon()).await.expect("it is swept"), 0);
        registry
            .leave(&worker("a").key(), soon())
            .await
            .expect("it leaves");
        let dead = directory.path().join(worker("b").key());
        let long_ago = SystemTime::now() - Duration::from_millis(2 * worker::STALE_AFTER_MS);
        let file = std::fs::File::options().write(true).open(dead);
        file.and_then(|file| file.set_modified(long_ago))
            .expect("its time can be set");
        assert_eq!(registry.sweep(soon()).await.expect("it is swept"), 1);
        let present = registry.workers(soon()).await.expect("they are listed");
        assert_eq!(names(&present), ["c"]);
    }

    #[tokio::test]
    async fn jobs_are_found_with_one_line_each_and_workers_are_none() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let store: Arc<dyn Store> = Arc::new(DirectoryStore::new(directory.path()));
        let keys = [
            "a/HEAD",
            "a/data/x",
            "a-b/HEAD",
            "a.c/HEAD",
            "a0/HEAD",
            "a0/z",
            "no-job",
            "zz/data/q/1",
            "~workers/w",
        ];
        for key in keys {
            let put = store.put(key, Bytes::from_static(b"x"), Condition::Always);
            put.await.expect("it is stored");
        }
        let jobs = Registry::new(store).jobs(soon()).await;
        assert_eq!(
            jobs.expect("they are listed"),
            ["a-b", "a.c", "a", "a0", "zz"]
        );
    }
}
