//! Wraps any store and fails on cue: for tests, and out of reach of any setting.
//!
//! A script of rules says which call fails and how; calls that no rule is for go through untouched. Every call is kept in
//! a log from its beginning, so that a test can wait for one to be under way instead of sleeping.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::{Condition, Entry, Object, Store, StoreError, StoreErrorKind, Tag};

/// The calls of [`Store`] that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    Get,
    GetRange,
    Size,
    Put,
    List,
    Delete,
    Reach,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::GetRange => "get_range",
            Self::Size => "size",
            Self::Put => "put",
            Self::List => "list",
            Self::Delete => "delete",
            Self::Reach => "reach",
        }
    }
}

/// What goes wrong with a call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It fails, and nothing was done.
    Refused(StoreErrorKind),
    /// It is done, and fails all the same: the answer was lost.
    ReplyLost(StoreErrorKind),
    /// It is done after this long.
    Delayed(Duration),
    /// It is done once released, or never.
    Hanging(Release),
    /// The last byte is missing: from what a `get` brings, or from what a `put` stores.
    Short,
    /// The middle byte is another: in what a `get` brings, or in what a `put` stores.
    Altered,
}

/// Lets hanging calls go on. Clones release the same calls.
#[derive(Clone, Debug)]
pub struct Release(Arc<watch::Sender<bool>>);

impl Default for Release {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Release {
    /// Lets go the calls that hang on this, now and later.
    pub fn release(&self) {
        self.0.send_replace(true);
    }

    async fn wait(&self) {
        // The sender is held by self, so the only end of this wait is the release.
        drop(self.0.subscribe().wait_for(|released| *released).await);
    }
}

/// Which of the calls that match fail, counted from 1 for each rule on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occurrence {
    Nth(u32),
    First(u32),
    From(u32),
    Every,
}

impl Occurrence {
    fn covers(self, count: u32) -> bool {
        match self {
            Self::Nth(n) => count == n,
            Self::First(n) => count <= n,
            Self::From(n) => count >= n,
            Self::Every => true,
        }
    }
}

/// One line of the script.
#[derive(Clone, Debug)]
pub struct Rule {
    pub operation: Operation,
    /// A part of the key, or of a listing's prefix; empty for all.
    pub key_part: String,
    pub occurrence: Occurrence,
    pub fault: Fault,
}

/// A call as it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub operation: Operation,
    pub key: String,
    pub outcome: Outcome,
}

/// How far a call has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Under way, or dropped by its caller before it ended.
    Open,
    Done,
    Failed(StoreErrorKind),
}

/// A store with faults in front of another one.
#[derive(Clone)]
pub struct UnreliableStore {
    inner: Arc<dyn Store>,
    /// Each rule with the number of calls that matched it.
    script: Arc<Mutex<Vec<(Rule, u32)>>>,
    log: Arc<watch::Sender<Vec<Call>>>,
}

impl fmt::Debug for UnreliableStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UnreliableStore({:?})", self.inner)
    }
}

impl UnreliableStore {
    /// Without faults as yet.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self {
            inner,
            script: Arc::default(),
            log: Arc::new(watch::Sender::new(Vec::new())),
        }
    }

    /// Adds a rule behind those there are. Of several that cover a call the first decides; all of them count it.
    pub fn fail(&self, operation: Operation, key_part: &str, occurrence: Occurrence, fault: Fault) {
        let rule = Rule {
            operation,
            key_part: key_part.to_owned(),
            occurrence,
            fault,
        };
        self.script().push((rule, 0));
    }

    /// Forgets all rules: from now on everything works.
    pub fn recover(&self) {
        self.script().clear();
    }

    /// All calls so far, in the order in which they began.
    pub fn calls(&self) -> Vec<Call> {
        self.log.borrow().clone()
    }

    /// Waits until this many calls have begun that match.
    pub async fn begun(&self, operation: Operation, key_part: &str, count: usize) {
        let matches = |call: &&Call| call.operation == operation && call.key.contains(key_part);
        // The sender is held by self, so the only end of this wait is the calls.
        let enough = |calls: &Vec<Call>| calls.iter().filter(matches).count() >= count;
        drop(self.log.subscribe().wait_for(enough).await);
    }

    fn script(&self) -> MutexGuard<'_, Vec<(Rule, u32)>> {
        // A test that panicked holding it has failed anyway.
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault(&self, operation: Operation, key: &str) -> Option<Fault> {
        let mut fault = None;
        for (rule, count) in self.script().iter_mut() {
            if rule.operation == operation && key.contains(&rule.key_part) {
                *count += 1;
                if fault.is_none() && rule.occurrence.covers(*count) {
                    fault = Some(rule.fault.clone());
                }
            }
        }
        fault
    }

    /// Makes the call `work` with what befalls it; `work` is told how its bytes are to be spoilt.
    async fn run<T, F>(
        &self,
        operation: Operation,
        key: &str,
        work: impl FnOnce(Spoil) -> F + Send,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>> + Send,
    {
        let fault = self.fault(operation, key);
        let mut place = 0;
        self.log.send_modify(|calls| {
            place = calls.len();
            calls.push(Call {
                operation,
                key: key.to_owned(),
                outcome: Outcome::Open,
            });
        });
        let failure = |kind, message| {
            let address = format!("{}/{key}", self.inner.address());
            StoreError::new(kind, operation.name(), address, message)
        };
        let result = match fault {
            None => work(Spoil::Nothing).await,
            Some(Fault::Refused(kind)) => Err(failure(kind, "fails on cue, not done")),
            Some(Fault::ReplyLost(kind)) => match work(Spoil::Nothing).await {
                Ok(_) => Err(failure(kind, "fails on cue, but done")),
                Err(e) => Err(e),
            },
            Some(Fault::Delayed(time)) => {
                tokio::time::sleep(time).await;
                work(Spoil::Nothing).await
            }
            Some(Fault::Hanging(release)) => {
                release.wait().await;
                work(Spoil::Nothing).await
            }
            Some(Fault::Short) => work(Spoil::Short).await,
            Some(Fault::Altered) => work(Spoil::Altered).await,
        };
        let outcome = match &result {
            Ok(_) => Outcome::Done,
            Err(e) => Outcome::Failed(e.kind),
        };
        self.log.send_modify(|calls| calls[place].outcome = outcome);
        result
    }
}

/// What becomes of a call's bytes.
#[derive(Clone, Copy)]
enum Spoil {
    Nothing,
    Short,
    Altered,
}

impl Spoil {
    fn apply(self, bytes: Bytes) -> Bytes {
        match self {
            Self::Nothing => bytes,
            Self::Short => bytes.slice(..bytes.len().saturating_sub(1)),
            Self::Altered => {
                let mut altered = bytes.to_vec();
                let middle = altered.len() / 2;
                if let Some(byte) = altered.get_mut(middle) {
                    *byte ^= 1;
                }
                Bytes::from(altered)
            }
        }
    }
}

#[async_trait]
impl Store for UnreliableStore {
    fn address(&self) -> String {
        self.inner.address()
    }

    async fn get(&self, key: &str, limit: u64) -> Result<Object, StoreError> {
        self.run(Operation::Get, key, async |spoil| {
            let object = self.inner.get(key, limit).await?;
            Ok(Object {
                bytes: spoil.apply(object.bytes),
                ..object
            })
        })
        .await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        self.run(Operation::GetRange, key, async |spoil| {
            Ok(spoil.apply(self.inner.get_range(key, offset, length).await?))
        })
        .await
    }

    async fn size(&self, key: &str) -> Result<u64, StoreError> {
        self.run(Operation::Size, key, async |_| self.inner.size(key).await)
            .await
    }

    async fn put(&self, key: &str, bytes: Bytes, condition: Condition) -> Result<Tag, StoreError> {
        self.run(Operation::Put, key, async |spoil| {
            self.inner.put(key, spoil.apply(bytes), condition).await
        })
        .await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        self.run(Operation::List, prefix, async |_| {
            self.inner.list(prefix, after, limit).await
        })
        .await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.run(Operation::Delete, key, async |_| {
            self.inner.delete(key).await
        })
        .await
    }

    async fn reach(&self) -> Result<(), StoreError> {
        self.run(Operation::Reach, "", async |_| self.inner.reach().await)
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::DirectoryStore;
    use crate::store::contract::{self, Subject};

    struct Setting {
        store: UnreliableStore,
        inner: Arc<dyn Store>,
        _root: tempfile::TempDir,
    }

    fn setting() -> Setting {
        let root = tempfile::tempdir().expect("a directory");
        let inner: Arc<dyn Store> = Arc::new(DirectoryStore::new(root.path()));
        Setting {
            store: UnreliableStore::new(Arc::clone(&inner)),
            inner,
            _root: root,
        }
    }

    async fn put(store: &UnreliableStore, key: &str) -> Result<Tag, StoreErrorKind> {
        let bytes = Bytes::from_static(b"abcd");
        store
            .put(key, bytes, Condition::Always)
            .await
            .map_err(|e| e.kind)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn keeps_the_contract_while_no_rule_says_otherwise() {
        let Setting { store, _root, .. } = setting();
        let missing = UnreliableStore::new(Arc::new(DirectoryStore::new("/nonexistent/store")));
        let subject = Subject {
            store: Arc::new(store),
            missing: Arc::new(missing),
            many: 120,
        };
        contract::holds_for(&subject).await;
    }

    #[tokio::test]
    async fn a_refused_call_is_not_done_and_a_lost_reply_is() {
        let Setting {
            store,
            inner,
            _root,
        } = setting();
        let kind = StoreErrorKind::Unavailable;
        store.fail(
            Operation::Put,
            "a",
            Occurrence::Nth(1),
            Fault::Refused(kind),
        );
        store.fail(
            Operation::Put,
            "b",
            Occurrence::Nth(1),
            Fault::ReplyLost(kind),
        );
        assert_eq!(put(&store, "a").await, Err(kind));
        assert_eq!(put(&store, "b").await, Err(kind));
        assert_eq!(
            inner.get("a", 9).await.expect_err("not done").kind,
            StoreErrorKind::NotFound
        );
        assert_eq!(inner.get("b", 9).await.expect("done").bytes, "abcd");

        // Its own success, seen as a failed condition: what a caller has to be ready for.
        let again = store
            .put("b", Bytes::from_static(b"abcd"), Condition::Absent)
            .await;
        assert_eq!(
            again.expect_err("it is there").kind,
            StoreErrorKind::ConditionFailed
        );
        let call = |key: &str, outcome| Call {
            operation: Operation::Put,
            key: key.to_owned(),
            outcome,
        };
        let condition_failed = Outcome::Failed(StoreErrorKind::ConditionFailed);
        assert_eq!(
            store.calls(),
            [
                call("a", Outcome::Failed(kind)),
                call("b", Outcome::Failed(kind)),
                call("b", condition_failed)
            ]
        );
    }

    #[tokio::test]
    async fn rules_match_by_operation_key_and_count() {
        let Setting { store, _root, .. } = setting();
        let fail = |part: &str, occurrence, kind| {
            store.fail(Operation::Put, part, occurrence, Fault::Refused(kind));
        };
        fail("data/", Occurrence::Nth(2), StoreErrorKind::Throttled);
        fail("data/", Occurrence::From(4), StoreErrorKind::Full);
        fail("HEAD", Occurrence::First(2), StoreErrorKind::Conflict);
        fail("HEAD", Occurrence::Every, StoreErrorKind::Denied);
        let mut data = Vec::new();
        let mut head = Vec::new();
        for n in 0..5 {
            data.push(put(&store, &format!("data/{n}")).await.err());
            head.push(put(&store, "HEAD").await.err());
        }
        let (throttled, full) = (Some(StoreErrorKind::Throttled), Some(StoreErrorKind::Full));
        assert_eq!(data, [None, throttled, None, full, full]);
        let (conflict, denied) = (Some(StoreErrorKind::Conflict), Some(StoreErrorKind::Denied));
        assert_eq!(head, [conflict, conflict, denied, denied, denied]);
        store.get("data/0", 9).await.expect("only puts fail");
        store.recover();
        put(&store, "HEAD").await.expect("nothing fails any more");
    }

    #[tokio::test]
    async fn bytes_are_spoilt_both_ways() {
        let Setting {
            store,
            inner,
            _root,
        } = setting();
        store.fail(Operation::Put, "short", Occurrence::Every, Fault::Short);
        store.fail(Operation::Put, "altered", Occurrence::Every, Fault::Altered);
        for key in ["whole", "put-short", "put-altered"] {
            put(&store, key).await.expect("it says all is well");
        }
        assert_eq!(inner.get("put-short", 9).await.expect("get").bytes, "abc");
        assert_eq!(
            inner.get("put-altered", 9).await.expect("get").bytes,
            "abbd"
        );

        store.fail(Operation::Get, "whole", Occurrence::Nth(1), Fault::Short);
        store.fail(
            Operation::GetRange,
            "whole",
            Occurrence::Nth(1),
            Fault::Altered,
        );
        assert_eq!(store.get("whole", 9).await.expect("get").bytes, "abc");
        assert_eq!(store.get_range("whole", 1, 3).await.expect("get"), "bbd");
        assert_eq!(store.get("whole", 9).await.expect("get").bytes, "abcd");
    }

    #[tokio::test]
    async fn a_hanging_call_goes_on_when_released() {
        let Setting {
            store,
            inner,
            _root,
        } = setting();
        let release = Release::default();
        store.fail(
            Operation::Put,
            "",
            Occurrence::Nth(1),
            Fault::Hanging(release.clone()),
        );
        let hanging = tokio::spawn({
            let store = store.clone();
            async move { put(&store, "a").await }
        });
        store.begun(Operation::Put, "a", 1).await;
        assert_eq!(store.calls()[0].outcome, Outcome::Open);
        assert_eq!(
            inner.size("a").await.expect_err("not yet").kind,
            StoreErrorKind::NotFound
        );
        release.release();
        hanging.await.expect("it ends").expect("it succeeds");
        assert_eq!(store.calls()[0].outcome, Outcome::Done);
    }

    #[tokio::test]
    async fn a_delayed_call_is_done_late() {
        let Setting { store, _root, .. } = setting();
        let delay = Duration::from_millis(30);
        store.fail(
            Operation::Reach,
            "",
            Occurrence::Nth(1),
            Fault::Delayed(delay),
        );
        let begun = std::time::Instant::now();
        store.reach().await.expect("it is there");
        assert!(begun.elapsed() >= delay);
    }
}
