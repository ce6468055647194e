//! Finds out whether a store keeps the conditions of writes, on which it rests that a job never runs twice.
//!
//! Some servers that speak S3 take `If-None-Match` and `If-Match` and ignore them without a word. With such a one every
//! claim and every commit succeeds, whoever made it. Nothing that a store says of itself tells; so a start writes one
//! object of its own, tries what must fail, and removes it. That is six small requests, made beside the boot.
//!
//! An attempt whose reply was lost is tried again by [`retry`], and may then fail for its own first success; what is
//! stored afterwards tells. What cannot be removed, for want of the right, is left to a sweep.

use bytes::Bytes;
use tokio::time::Instant;

use super::{Condition, Store, StoreError, StoreErrorKind, Tag, retry};

/// More than any of the objects written here.
const SIZE_LIMIT: u64 = 1024;

/// A condition that a store does not keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("it creates an object that is already there (If-None-Match is ignored)")]
    CreatesTwice,
    #[error("it replaces an object that was replaced since (If-Match is ignored)")]
    ReplacesStale,
    #[error(
        "it refuses to replace an object that is as it was (If-Match with the present ETag fails)"
    )]
    RefusesFitting,
    #[error("it does not give back what was written last")]
    ForgetsWrites,
}

/// Why a store was not found to be fit.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    #[error(transparent)]
    Broken(#[from] Broken),
    /// It does not know such writes at all, or something else about them is not to its taste.
    #[error("it refuses conditional writes")]
    Refused(#[source] StoreError),
    #[error(transparent)]
    Store(StoreError),
}

/// Tries the conditions out on an object of this key, which nobody else may use.
pub async fn check(store: &dyn Store, key: &str, deadline: Instant) -> Result<(), SelfTestError> {
    let found = conditions(store, key, deadline).await;
    let deleted = retry::retry(deadline, "delete", || store.delete(key)).await;
    if let Err(error) = deleted {
        tracing::warn!(
            key,
            reason = error.to_string(),
            "what the store's self-test wrote could not be removed; nor will sweeps remove anything while that is so"
        );
    }
    found
}

async fn conditions(store: &dyn Store, key: &str, deadline: Instant) -> Result<(), SelfTestError> {
    let test = Test {
        store,
        key,
        deadline,
    };
    let [first, second, third, fourth] = [
        &b"created\n"[..],
        b"created again\n",
        b"replaced\n",
        b"replaced again\n",
    ];
    let created = match test.put(first, Condition::Absent).await? {
        Some(tag) => tag,
        // Our own success, whose reply was lost.
        None => test.tag_of(first).await?.ok_or(Broken::ForgetsWrites)?,
    };
    if test.put(second, Condition::Absent).await?.is_some() {
        return Err(Broken::CreatesTwice.into());
    }
    let fits = Condition::Matches(created.clone());
    if test.put(third, fits).await?.is_none() && test.tag_of(third).await?.is_none() {
        return Err(Broken::RefusesFitting.into());
    }
    let stale = Condition::Matches(created);
    if test.put(fourth, stale).await?.is_some() {
        return Err(Broken::ReplacesStale.into());
    }
    // One that answers as it should and writes all the same.
    test.tag_of(third).await?.ok_or(Broken::ForgetsWrites)?;
    Ok(())
}

struct Test<'a> {
    store: &'a dyn Store,
    key: &'a str,
    deadline: Instant,
}

impl Test<'_> {
    /// The new tag, or nothing when the condition is said not to hold.
    async fn put(
        &self,
        bytes: &'static [u8],
        condition: Condition,
    ) -> Result<Option<Tag>, SelfTestError> {
        let put = retry::retry(self.deadline, "put", || {
            let bytes = Bytes::from_static(bytes);
            self.store.put(self.key, bytes, condition.clone())
        })
        .await;
        match put {
            Ok(tag) => Ok(Some(tag)),
            Err(error) if error.kind == StoreErrorKind::ConditionFailed => Ok(None),
            Err(error) if error.kind == StoreErrorKind::Other => Err(SelfTestError::Refused(error)),
            Err(error) => Err(SelfTestError::Store(error)),
        }
    }

    /// The tag of what is stored, if it is this.
    async fn tag_of(&self, bytes: &[u8]) -> Result<Option<Tag>, SelfTestError> {
        let got = retry::retry(self.deadline, "get", || {
            self.store.get(self.key, SIZE_LIMIT)
        })
        .await;
        match got {
            Ok(object) => Ok((object.bytes == bytes).then_some(object.tag)),
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(None),
            Err(error) => Err(SelfTestError::Store(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use async_trait::async_trait;

    use super::*;
    use crate::store::unreliable::{Fault, Occurrence, Operation, UnreliableStore};
    use crate::store::{DirectoryStore, Entry, Object};

    const KEY: &str = "job/probe/x";

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    /// A store that lies about conditions in one way.
    #[derive(Debug)]
    struct Liar(DirectoryStore, Lie);

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Lie {
        IgnoresAbsent,
        IgnoresMatches,
        NeverMatches,
        WritesAndRefuses,
        KnowsNoConditions,
    }

    #[async_trait]
    impl Store for Liar {
        fn address(&self) -> String {
            self.0.address()
        }

        async fn get(&self, key: &str, limit: u64) -> Result<Object, StoreError> {
            self.0.get(key, limit).await
        }

        async fn get_range(
            &self,
            key: &str,
            offset: u64,
            length: u64,
        ) -> Result<Bytes, StoreError> {
            self.0.get_range(key, offset, length).await
        }

        async fn size(&self, key: &str) -> Result<u64, StoreError> {
            self.0.size(key).await
        }

        async fn put(
            &self,
            key: &str,
            bytes: Bytes,
            condition: Condition,
        ) -> Result<Tag, StoreError> {
            let refused = |kind| StoreError::new(kind, "put", key, "simulated");
            let condition = match (self.1, condition) {
                (Lie::IgnoresAbsent, Condition::Absent) => Condition::Always,
                (Lie::IgnoresMatches, Condition::Matches(_)) => Condition::Always,
                (Lie::NeverMatches, Condition::Matches(_)) => {
                    return Err(refused(StoreErrorKind::ConditionFailed));
                }
                (Lie::WritesAndRefuses, condition) => {
                    let answer = self.0.put(key, bytes.clone(), condition).await;
                    if answer.is_err() {
                        self.0.put(key, bytes, Condition::Always).await?;
                    }
                    return answer;
                }
                (Lie::KnowsNoConditions, Condition::Absent) => {
                    return Err(refused(StoreErrorKind::Other));
                }
                (_, condition) => condition,
            };
            self.0.put(key, bytes, condition).await
        }

        async fn list(
            &self,
            prefix: &str,
            after: Option<&str>,
            limit: usize,
        ) -> Result<Vec<Entry>, StoreError> {
            self.0.list(prefix, after, limit).await
        }

        async fn delete(&self, key: &str) -> Result<(), StoreError> {
            self.0.delete(key).await
        }

        async fn reach(&self) -> Result<(), StoreError> {
            self.0.reach().await
        }
    }

    #[tokio::test]
    async fn each_lie_is_found_out_and_nothing_is_left() {
        for (lie, broken) in [
            (Lie::IgnoresAbsent, Some(Broken::CreatesTwice)),
            (Lie::IgnoresMatches, Some(Broken::ReplacesStale)),
            (Lie::NeverMatches, Some(Broken::RefusesFitting)),
            (Lie::WritesAndRefuses, Some(Broken::ForgetsWrites)),
            (Lie::KnowsNoConditions, None),
        ] {
            let directory = tempfile::tempdir().expect("temporary directory");
            let store = Liar(DirectoryStore::new(directory.path()), lie);
            let error = check(&store, KEY, soon()).await.expect_err("it lies");
            match (&error, broken) {
                (SelfTestError::Broken(found), Some(broken)) => {
                    assert_eq!(*found, broken, "{lie:?}")
                }
                (SelfTestError::Refused(_), None) => {}
                _ => panic!("{lie:?}: {error:?}"),
            }
            let left = store.list("", None, 10).await.expect("it is listed");
            assert_eq!(left, [], "{lie:?}");
        }
    }

    fn honest() -> (tempfile::TempDir, UnreliableStore) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let store = UnreliableStore::new(Arc::new(DirectoryStore::new(directory.path())));
        (directory, store)
    }

    #[tokio::test]
    async fn an_honest_store_passes_whichever_reply_is_lost() {
        for lost in 0..7 {
            let (_directory, store) = honest();
            if lost > 0 {
                store.fail(
                    Operation::Put,
                    "",
                    Occurrence::Nth(lost),
                    Fault::ReplyLost(StoreErrorKind::Unavailable),
                );
            }
            check(&store, KEY, soon()).await.expect("it is honest");
            assert_eq!(store.list("", None, 10).await.expect("it is listed"), []);
        }
    }

    #[tokio::test]
    async fn a_store_without_the_right_to_remove_is_fit_all_the_same() {
        let (_directory, store) = honest();
        store.fail(
            Operation::Delete,
            "",
            Occurrence::Every,
            Fault::Refused(StoreErrorKind::Denied),
        );
        check(&store, KEY, soon()).await.expect("it is honest");
    }
}
