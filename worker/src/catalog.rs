//! The snapshots of one job in a store: which there are, who owns the job, and the two steps that make a snapshot count.
//!
//! A snapshot counts once the head names it (`reprieve_core::head`). The head is only ever replaced by compare-and-swap;
//! holding its newest tag is what owning the job means. A reply that is lost leaves it open whether the write took
//! place: then the head is read again, and our own nonce in it tells.

use std::sync::Arc;

use bytes::Bytes;
use reprieve_core::document::{self, DocumentError};
use reprieve_core::head::{self, Finished, Generation, Head, Owner};
use reprieve_core::manifest::{self, Manifest};
use reprieve_core::retention;
use reprieve_core::selection::{self, Contents};
use tokio::time::Instant;

use crate::store::{Condition, Store, StoreError, StoreErrorKind, Tag, retry};

/// Manifests looked at when the head is lost.
const LISTING_LIMIT: usize = 1000;

/// Why a job's catalog could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("the store did not do as asked")]
    Store(#[from] StoreError),
    /// Somebody else replaced the head since we did.
    #[error("another worker owns the job now: {0}")]
    Fenced(String),
    /// A lost reply, and no way to find out in time whether the write took place.
    #[error("it is not known whether the commit took place; the next start will tell")]
    Unknown(#[source] StoreError),
    #[error("another request to the store about the job took too long")]
    Busy,
    #[error(
        "the manifest would have {0} bytes, more than is ever read; the snapshot has too many parts"
    )]
    TooLarge(usize),
    /// The head belongs to another job or to a newer program.
    #[error("the head of the job at {key} cannot be used")]
    Head {
        key: String,
        #[source]
        source: DocumentError,
    },
}

/// One job's place in a store.
#[derive(Clone, Debug)]
pub struct Catalog {
    store: Arc<dyn Store>,
    job: String,
}

/// What was found at the start.
#[derive(Debug)]
pub struct Found {
    head: Option<Head>,
    pub tag: Option<Tag>,
    pub contents: Contents,
    /// Why the head could not be used, when there was one.
    pub damage: Option<DocumentError>,
}

impl Found {
    /// Who owns the job, unless they said goodbye.
    pub fn owner(&self) -> Option<&Owner> {
        self.head.as_ref().and_then(|head| head.owner.as_ref())
    }
}

/// The right to commit: the head as we last wrote it.
#[derive(Debug)]
pub struct Lease {
    pub head: Head,
    tag: Tag,
}

impl Catalog {
    pub fn new(store: Arc<dyn Store>, job: &str) -> Self {
        Self {
            store,
            job: job.to_owned(),
        }
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// What every key of the job starts with, `JOB/`.
    pub fn root(&self) -> String {
        format!("{}/", self.job)
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.root())
    }

    /// Reads what there is.
    pub async fn find(&self, deadline: Instant) -> Result<Found, CatalogError> {
        let key = self.key(head::KEY);
        let object = retry::retry(deadline, "get", || {
            self.store.get(&key, document::SIZE_LIMIT)
        })
        .await;
        let (head, tag, damage) = match object {
            Ok(object) => match Head::from_bytes(&object.bytes) {
                Ok(head) => (Some(head), Some(object.tag), None),
                // Rewriting what a newer program wrote would destroy it.
                Err(source @ DocumentError::OtherVersion { .. }) => {
                    return Err(CatalogError::Head { key, source });
                }
                Err(damage) => (None, Some(object.tag), Some(damage)),
            },
            Err(error) if error.kind == StoreErrorKind::NotFound => (None, None, None),
            Err(error) => return Err(error.into()),
        };
        let manifests = if head.is_none() {
            self.manifests(deadline).await?
        } else {
            Vec::new()
        };
        let contents = selection::contents(head.as_ref(), &manifests);
        Ok(Found {
            head,
            tag,
            contents,
            damage,
        })
    }

    async fn manifests(&self, deadline: Instant) -> Result<Vec<String>, CatalogError> {
        let prefix = self.key(manifest::PREFIX);
        let entries = retry::retry(deadline, "list", || {
            self.store.list(&prefix, None, LISTING_LIMIT)
        })
        .await?;
        let root = self.root();
        Ok(entries
            .iter()
            .filter_map(|entry| entry.key.strip_prefix(&root))
            .map(str::to_owned)
            .collect())
    }

    /// Takes the job: from now on nobody else can commit to it. `listed` are the generations to keep when the head was
    /// lost and its contents were found by listing, newest first.
    pub async fn claim(
        &self,
        found: &Found,
        owner: Owner,
        listed: Vec<Generation>,
        deadline: Instant,
    ) -> Result<Lease, CatalogError> {
        let before = found.head.clone().unwrap_or_else(|| {
            let next_generation = listed.first().map_or(1, |newest| newest.generation + 1);
            Head {
                next_generation,
                generations: listed,
                ..Head::new(&self.job)
            }
        });
        self.replace(found.tag.clone(), before.claimed(owner, nonce()), deadline)
            .await
    }

    /// Writes the manifest and then the head. When this returns, the snapshot counts.
    pub async fn commit(
        &self,
        lease: &mut Lease,
        manifest: &Manifest,
        keep: usize,
        deadline: Instant,
    ) -> Result<(), CatalogError> {
        let bytes = Bytes::from(manifest.to_bytes());
        if bytes.len() as u64 > document::SIZE_LIMIT {
            // Committed, it could not be read again.
            return Err(CatalogError::TooLarge(bytes.len()));
        }
        let key = self.key(&manifest.key());
        self.put_manifest(&key, &bytes, deadline).await?;
        let generation = Generation {
            generation: manifest.generation,
            manifest: manifest.key(),
            digest: document::digest(&bytes),
            taken_at_ms: manifest.taken_at_ms,
            stored_bytes: manifest.sizes.stored,
        };
        self.update(lease, deadline, |head| {
            let dropped = retention::superseded(&head.generations, keep);
            head.committed(generation.clone(), &dropped, nonce())
        })
        .await
    }

    /// Gives a sign of life. Fails with [`CatalogError::Fenced`] when another worker owns the job.
    pub async fn beat(&self, lease: &mut Lease, deadline: Instant) -> Result<(), CatalogError> {
        self.update(lease, deadline, |head| head.beaten(nonce()))
            .await
    }

    /// Replaces the head by a change of it. It may have been replaced under the same ownership: by an earlier write of
    /// ours whose fate was unknown, or by an operator's command; then the change is made to that one.
    async fn update(
        &self,
        lease: &mut Lease,
        deadline: Instant,
        change: impl Fn(&Head) -> Head,
    ) -> Result<(), CatalogError> {
        loop {
            let written = self
                .replace(Some(lease.tag.clone()), change(&lease.head), deadline)
                .await;
            match written {
                Err(CatalogError::Fenced(_)) => self.refresh(lease, deadline).await?,
                other => {
                    *lease = other?;
                    return Ok(());
                }
            }
        }
    }

    /// Looks the head up again: fails with [`CatalogError::Fenced`] when another worker owns the job, and takes over
    /// what an earlier write of ours may have left there.
    pub async fn refresh(&self, lease: &mut Lease, deadline: Instant) -> Result<(), CatalogError> {
        let present = self.present(deadline).await?;
        if !present.head.has_same_owner(&lease.head) {
            let by = describe(present.head.owner.as_ref(), present.head.epoch);
            return Err(CatalogError::Fenced(by));
        }
        *lease = present;
        Ok(())
    }

    async fn present(&self, deadline: Instant) -> Result<Lease, CatalogError> {
        let key = self.key(head::KEY);
        let present = retry::retry(deadline, "get", || {
            self.store.get(&key, document::SIZE_LIMIT)
        })
        .await?;
        let head = Head::from_bytes(&present.bytes)
            .map_err(|source| CatalogError::Head { key, source })?;
        Ok(Lease {
            head,
            tag: present.tag,
        })
    }

    async fn put_manifest(
        &self,
        key: &str,
        bytes: &Bytes,
        deadline: Instant,
    ) -> Result<(), CatalogError> {
        let put = retry::retry(deadline, "put", || {
            self.store.put(key, bytes.clone(), Condition::Absent)
        })
        .await;
        match put {
            Ok(_) => Ok(()),
            // The attempt's name is in the key, so it can only be our own whose reply was lost.
            Err(error) if error.kind == StoreErrorKind::ConditionFailed => {
                let present = retry::retry(deadline, "get", || {
                    self.store.get(key, document::SIZE_LIMIT)
                })
                .await?;
                if present.bytes == *bytes {
                    Ok(())
                } else {
                    Err(error.into())
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Says goodbye, and how the job ended if it did, so that the next owner need not wonder.
    pub async fn release(
        &self,
        lease: &mut Lease,
        finished: Option<Finished>,
        deadline: Instant,
    ) -> Result<(), CatalogError> {
        self.update(lease, deadline, |head| head.released(finished, nonce()))
            .await
    }

    async fn replace(
        &self,
        tag: Option<Tag>,
        head: Head,
        deadline: Instant,
    ) -> Result<Lease, CatalogError> {
        let key = self.key(head::KEY);
        let bytes = Bytes::from(head.to_bytes());
        let condition = tag.map_or(Condition::Absent, Condition::Matches);
        let put = retry::retry(deadline, "put", || {
            self.store.put(&key, bytes.clone(), condition.clone())
        })
        .await;
        match put {
            Ok(tag) => Ok(Lease { head, tag }),
            Err(error) => self.after_failure(&key, head, error, deadline).await,
        }
    }

    /// A failed write may have taken place all the same. The head in the store tells, if it can be read.
    async fn after_failure(
        &self,
        key: &str,
        head: Head,
        error: StoreError,
        deadline: Instant,
    ) -> Result<Lease, CatalogError> {
        let refused = error.kind == StoreErrorKind::ConditionFailed;
        if !refused && !error.kind.is_retryable() {
            return Err(error.into());
        }
        let present = match retry::retry(deadline, "get", || {
            self.store.get(key, document::SIZE_LIMIT)
        })
        .await
        {
            Ok(present) => present,
            Err(_) if refused => return Err(error.into()),
            Err(_) => return Err(CatalogError::Unknown(error)),
        };
        match Head::from_bytes(&present.bytes) {
            Ok(found) if found.nonce == head.nonce => Ok(Lease {
                head,
                tag: present.tag,
            }),
            Ok(found) if refused => Err(CatalogError::Fenced(describe(
                found.owner.as_ref(),
                found.epoch,
            ))),
            Ok(_) => Err(error.into()),
            Err(source) => Err(CatalogError::Head {
                key: key.to_owned(),
                source,
            }),
        }
    }
}

fn describe(owner: Option<&Owner>, epoch: u64) -> String {
    match owner {
        Some(owner) => format!("{} on {} (epoch {epoch})", owner.worker, owner.host),
        None => format!("a worker that has left again (epoch {epoch})"),
    }
}

/// A word that nobody used before.
pub(crate) fn nonce() -> String {
    ulid::Ulid::generate().to_string()
}
