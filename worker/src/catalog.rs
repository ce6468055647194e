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
    tag: Option<Tag>,
    pub contents: Contents,
    /// Why the head could not be used, when there was one.
    pub damage: Option<DocumentError>,
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

    /// Writes the manifest and then the head. When this returns, the snapshot counts, as the manifest that is returned.
    pub async fn commit(
        &self,
        lease: &mut Lease,
        mut manifest: Manifest,
        keep: usize,
        deadline: Instant,
    ) -> Result<Manifest, CatalogError> {
        let written = match self.add(lease, &manifest, keep, deadline).await {
            Err(CatalogError::Fenced(by)) => {
                let present = self.still_ours(lease, by, deadline).await?;
                // That write took this snapshot's number; the manifest under it is litter.
                let newest = present.head.generations.first();
                manifest.parent = newest.map(|newest| newest.generation);
                manifest.generation = present.head.next_generation;
                self.add(&present, &manifest, keep, deadline).await
            }
            other => other,
        };
        *lease = written?;
        Ok(manifest)
    }

    async fn add(
        &self,
        lease: &Lease,
        manifest: &Manifest,
        keep: usize,
        deadline: Instant,
    ) -> Result<Lease, CatalogError> {
        let bytes = Bytes::from(manifest.to_bytes());
        let key = self.key(&manifest.key());
        self.put_manifest(&key, &bytes, deadline).await?;
        let generation = Generation {
            generation: manifest.generation,
            manifest: manifest.key(),
            digest: document::digest(&bytes),
            taken_at_ms: manifest.taken_at_ms,
            stored_bytes: manifest.sizes.stored,
        };
        let dropped = retention::superseded(&lease.head.generations, keep);
        let head = lease.head.committed(generation, &dropped, nonce());
        self.replace(Some(lease.tag.clone()), head, deadline).await
    }

    /// The head as it is now, if it is one that this owner wrote in this epoch: an earlier write whose fate was unknown
    /// has taken place after all. Else we are fenced.
    async fn still_ours(
        &self,
        lease: &Lease,
        by: String,
        deadline: Instant,
    ) -> Result<Lease, CatalogError> {
        let key = self.key(head::KEY);
        let present = retry::retry(deadline, "get", || {
            self.store.get(&key, document::SIZE_LIMIT)
        })
        .await?;
        let head = Head::from_bytes(&present.bytes)
            .map_err(|source| CatalogError::Head { key, source })?;
        if head.epoch != lease.head.epoch || head.owner != lease.head.owner {
            return Err(CatalogError::Fenced(by));
        }
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
        lease: Lease,
        finished: Option<Finished>,
        deadline: Instant,
    ) -> Result<(), CatalogError> {
        let leave = async |lease: &Lease| {
            let head = lease.head.released(finished, nonce());
            self.replace(Some(lease.tag.clone()), head, deadline).await
        };
        match leave(&lease).await {
            Err(CatalogError::Fenced(by)) => {
                leave(&self.still_ours(&lease, by, deadline).await?).await
            }
            other => other,
        }
        .map(drop)
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
