//! Begins the slowest large upload or fetch a second time, and measures how fast uploads are.
//!
//! Of many connections one may hang, or be many times slower than the others, and everything waits for it. A transfer
//! that takes much longer than those before it ([`Pace`]) is begun anew beside itself; whichever ends first counts. The
//! bytes and the key are the same, so it does not matter which upload the store keeps. Never done for writes under a
//! condition, where the second would fail for the first; and for one at a time each way, so that a way that has become
//! slow is not made slower.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use reprieve_core::pace::Pace;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::{Condition, Entry, Object, Store, StoreError, Tag};
use crate::metrics;

/// Smaller transfers are as fast as the store answers, which says nothing of others.
const MEASURED_FROM: usize = 1 << 20;

/// When nothing is known yet.
const UNKNOWN_AFTER: Duration = Duration::from_secs(5);

/// A store whose large transfers are hedged.
pub struct HedgedStore {
    inner: Arc<dyn Store>,
    up: Way,
    down: Way,
}

/// To the store, or from it.
struct Way {
    pace: Mutex<Pace>,
    second: Semaphore,
}

impl Default for Way {
    fn default() -> Self {
        Self {
            pace: Mutex::default(),
            second: Semaphore::new(1),
        }
    }
}

impl Way {
    fn pace(&self) -> Pace {
        *self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a transfer of so many bytes, twice if the first takes too long.
    async fn take<T, F>(&self, length: u64, begin: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>> + Send,
    {
        let begun = Instant::now();
        let mut first = Box::pin(begin());
        let wait = self.pace().hedge_after(length).unwrap_or(UNKNOWN_AFTER);
        let (done, begun) = match timeout(wait, &mut first).await {
            Ok(done) => (done, begun),
            Err(_) => {
                let Ok(_place) = self.second.try_acquire() else {
                    return first.await;
                };
                metrics::store_hedged();
                let again = Instant::now();
                let second = Box::pin(begin());
                tokio::select! {
                    done = first => (done, begun),
                    done = second => (done, again),
                }
            }
        };
        if done.is_ok() {
            let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
            pace.observe(length, begun.elapsed());
        }
        done
    }
}

impl HedgedStore {
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self {
            inner,
            up: Way::default(),
            down: Way::default(),
        }
    }
}

impl fmt::Debug for HedgedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HedgedStore({:?})", self.inner)
    }
}

#[async_trait]
impl Store for HedgedStore {
    fn address(&self) -> String {
        self.inner.address()
    }

    async fn get(&self, key: &str, limit: u64) -> Result<Object, StoreError> {
        self.inner.get(key, limit).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        match length >= MEASURED_FROM as u64 {
            true => {
                let again = || self.inner.get_range(key, offset, length);
                self.down.take(length, again).await
            }
            false => self.inner.get_range(key, offset, length).await,
        }
    }

    async fn size(&self, key: &str) -> Result<u64, StoreError> {
        self.inner.size(key).await
    }

    async fn put(&self, key: &str, bytes: Bytes, condition: Condition) -> Result<Tag, StoreError> {
        match condition {
            Condition::Always if bytes.len() >= MEASURED_FROM => {
                let again = || self.inner.put(key, bytes.clone(), Condition::Always);
                self.up.take(bytes.len() as u64, again).await
            }
            condition => self.inner.put(key, bytes, condition).await,
        }
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        self.inner.list(prefix, after, limit).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }

    async fn reach(&self) -> Result<(), StoreError> {
        self.inner.reach().await
    }

    fn part_bytes(&self, memory: u64) -> u64 {
        self.up.pace().part_bytes(memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::unreliable::{Fault, Occurrence, Operation, Release, UnreliableStore};
    use crate::store::{DirectoryStore, StoreErrorKind};

    fn stores() -> (tempfile::TempDir, UnreliableStore, HedgedStore) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let inner = UnreliableStore::new(Arc::new(DirectoryStore::new(directory.path())));
        let hedged = HedgedStore::new(Arc::new(inner.clone()));
        (directory, inner, hedged)
    }

    fn part() -> Bytes {
        Bytes::from(vec![7; MEASURED_FROM])
    }

    async fn warm(hedged: &HedgedStore) {
        for number in 0..4 {
            let key = format!("warm/{number}");
            let put = hedged.put(&key, part(), Condition::Always).await;
            put.expect("it is stored");
        }
    }

    #[tokio::test]
    async fn an_upload_that_hangs_is_overtaken_by_its_second() {
        let (_directory, inner, hedged) = stores();
        warm(&hedged).await;
        let never = Release::default();
        inner.fail(
            Operation::Put,
            "slow",
            Occurrence::Nth(1),
            Fault::Hanging(never),
        );
        let put = hedged.put("slow", part(), Condition::Always).await;
        put.expect("the second gets through");
        let calls = inner.calls().into_iter().filter(|call| call.key == "slow");
        assert_eq!(calls.count(), 2);
        let stored = hedged.get("slow", u64::MAX).await.expect("it is there");
        assert_eq!(stored.bytes, part());
    }

    #[tokio::test]
    async fn a_fetch_that_hangs_is_overtaken_by_its_second() {
        let (_directory, inner, hedged) = stores();
        hedged
            .put("part", part(), Condition::Always)
            .await
            .expect("it is stored");
        let fetch = || hedged.get_range("part", 0, MEASURED_FROM as u64);
        for _ in 0..4 {
            fetch().await.expect("it is there");
        }
        let never = Fault::Hanging(Release::default());
        inner.fail(Operation::GetRange, "part", Occurrence::Nth(1), never);
        assert_eq!(fetch().await.expect("the second gets through"), part());
        let calls = inner.calls().into_iter();
        let fetches = calls.filter(|call| call.operation == Operation::GetRange);
        assert_eq!(fetches.count(), 4 + 2);
    }

    #[tokio::test]
    async fn neither_conditions_nor_small_objects_nor_fast_uploads_are_sent_twice() {
        let (_directory, inner, hedged) = stores();
        warm(&hedged).await;
        let late = || Fault::Delayed(Duration::from_secs(2));
        for key in ["conditional", "small"] {
            inner.fail(Operation::Put, key, Occurrence::Every, late());
        }
        let (conditional, small) = tokio::join!(
            hedged.put("conditional", part(), Condition::Absent),
            hedged.put("small", Bytes::from_static(b"x"), Condition::Always),
        );
        conditional.expect("it is stored");
        small.expect("it is stored");
        assert_eq!(inner.calls().len(), 4 + 2);
    }

    #[tokio::test]
    async fn an_upload_that_fails_says_so() {
        let (_directory, inner, hedged) = stores();
        let refused = Fault::Refused(StoreErrorKind::Full);
        inner.fail(Operation::Put, "", Occurrence::Every, refused);
        let error = hedged.put("x", part(), Condition::Always).await;
        assert_eq!(error.expect_err("no room").kind, StoreErrorKind::Full);
    }
}
