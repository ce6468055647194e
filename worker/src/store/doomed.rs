//! Ends the process at the Nth change of the store: for tests of what is left when a worker is killed, in builds for
//! development only.
//!
//! Changes are counted rather than named, so that a step which somebody adds is killed at like all others. The process
//! ends as if killed, without a goodbye and with everything in its container, right before or right after the change.
//! Entries in the registry do not count: they come at any time, and nothing follows from them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use reprieve_core::worker;

use super::{Condition, Entry, Object, Store, StoreError, Tag};
use crate::sys;

/// `N:before` or `N:after`, N counting from 1.
const VARIABLE: &str = "KILL_AT_STORE_CHANGE";

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Before,
    After,
}

struct DoomedStore {
    inner: Arc<dyn Store>,
    at: u32,
    side: Side,
    changes: AtomicU32,
}

/// The store as it is, unless the environment says when to end.
pub(crate) fn doomed(inner: Arc<dyn Store>) -> Arc<dyn Store> {
    let Ok(text) = std::env::var(VARIABLE) else {
        return inner;
    };
    let (at, side) = text.split_once(':').expect("N:before or N:after");
    Arc::new(DoomedStore {
        inner,
        at: at.parse().expect("a number"),
        side: match side {
            "before" => Side::Before,
            _ => Side::After,
        },
        changes: AtomicU32::new(0),
    })
}

impl fmt::Debug for DoomedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DoomedStore({:?})", self.inner)
    }
}

impl DoomedStore {
    async fn change<T>(&self, key: &str, work: impl Future<Output = T> + Send) -> T {
        if key.starts_with(worker::PREFIX) {
            return work.await;
        }
        let dies = self.changes.fetch_add(1, Ordering::SeqCst) + 1 == self.at;
        if dies && self.side == Side::Before {
            sys::vanish();
        }
        let done = work.await;
        if dies {
            sys::vanish();
        }
        done
    }
}

#[async_trait]
impl Store for DoomedStore {
    fn address(&self) -> String {
        self.inner.address()
    }

    async fn get(&self, key: &str, limit: u64) -> Result<Object, StoreError> {
        self.inner.get(key, limit).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        self.inner.get_range(key, offset, length).await
    }

    async fn size(&self, key: &str) -> Result<u64, StoreError> {
        self.inner.size(key).await
    }

    async fn put(&self, key: &str, bytes: Bytes, condition: Condition) -> Result<Tag, StoreError> {
        let put = self.inner.put(key, bytes, condition);
        self.change(key, put).await
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
        self.change(key, self.inner.delete(key)).await
    }

    async fn reach(&self) -> Result<(), StoreError> {
        self.inner.reach().await
    }

    fn part_bytes(&self, memory: u64) -> u64 {
        self.inner.part_bytes(memory)
    }
}
