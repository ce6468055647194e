//! The snapshots of one job in a store: which there are, who owns the job, and the two steps that make a snapshot count.
//!
//! A snapshot counts once the head names it (`reprieve_core::head`). The head is only ever replaced by compare-and-swap;
//! holding its newest tag is what owning the job means. A reply that is lost leaves it open whether the write took
//! place: then the head is read again, and our own nonce in it tells.

use std::sync::Arc;

use bytes::Bytes;
use reprieve_core::document::{self, DocumentError, Stored};
use reprieve_core::head::{self, Finished, Generation, Head, Owner};
use reprieve_core::manifest::{self, Manifest};
use reprieve_core::report::{self, Report};
use reprieve_core::retention::{self, Policy};
use reprieve_core::rollback;
use reprieve_core::selection::{self, Contents};
use reprieve_core::sweep::{self, Object, Refusal};
use tokio::time::Instant;

use crate::keys::{KeyError, Keyring, MasterKey, OpenError, Opened, Place};
use crate::steps::{self, Step};
use crate::store::{Condition, Store, StoreError, StoreErrorKind, Tag, retry};

/// Objects asked for in one listing; S3 gives no more.
const PAGE: usize = 1000;

/// How often a change of the head is tried again when somebody else was faster. Signs of life come seconds apart and
/// operators later still, so this many are a fault.
const CHANGE_TRIES: u32 = 20;

/// Why a job's catalog could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("the store did not do as asked")]
    Store(#[from] StoreError),
    /// Somebody else replaced the head since we did.
    #[error("another worker owns the job now: {0}")]
    Fenced(String),
    /// The snapshot is complete and must not count.
    #[error("the snapshot cannot be committed any more")]
    Refused(#[from] Refusal),
    /// The job was never checkpointed, or its head is lost.
    #[error("the job has no head{}", .0.as_ref().map_or(String::new(), |damage| format!(" that can be read: {damage}")))]
    NoHead(Option<DocumentError>),
    /// Others replaced the head each time that we wanted to.
    #[error("the head was replaced by others {0} times in a row")]
    Busy(u32),
    /// A lost reply, and no way to find out in time whether the write took place.
    #[error("it is not known whether the commit took place; the next start will tell")]
    Unknown(#[source] StoreError),
    #[error("another request to the store about the job took too long")]
    Slow,
    #[error(
        "the manifest would have {0} bytes, more than is ever read; the snapshot has too many parts"
    )]
    TooLarge(usize),
    /// With other keys it could be read; nothing is known about the job.
    #[error("the head of the job at {key} is refused")]
    Sealing {
        key: String,
        #[source]
        source: DocumentError,
    },
    #[error("a key of the job is not there")]
    Key(#[from] KeyError),
    #[error("the report at {key} cannot be read")]
    Report {
        key: String,
        #[source]
        source: DocumentError,
    },
    #[error("the kernel gives no random bytes")]
    Random(#[source] std::io::Error),
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
    keys: Arc<Keyring>,
}

/// What was found at the start.
#[derive(Debug)]
pub struct Found {
    pub head: Option<Head>,
    pub tag: Option<Tag>,
    /// What the head is sealed with, if it is.
    pub key: Option<Arc<MasterKey>>,
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
    /// What everything is sealed with that its holder writes; `None` if nothing is.
    pub key: Option<Arc<MasterKey>>,
}

impl Catalog {
    /// Without keys: what is sealed is refused.
    pub fn new(store: Arc<dyn Store>, job: &str) -> Self {
        Self::with_keys(store, job, Arc::new(Keyring::none()))
    }

    pub fn with_keys(store: Arc<dyn Store>, job: &str, keys: Arc<Keyring>) -> Self {
        Self {
            store,
            job: job.to_owned(),
            keys,
        }
    }

    /// Another job of the same store, with the same keys.
    #[must_use]
    pub fn of(&self, job: &str) -> Self {
        Self {
            job: job.to_owned(),
            ..self.clone()
        }
    }

    pub fn job(&self) -> &str {
        &self.job
    }

    pub fn keys(&self) -> &Keyring {
        &self.keys
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
        let (head, tag, key, damage) = match object {
            Ok(object) => match self.open(&object.bytes, deadline).await {
                Ok(Opened { value, key }) => (Some(value), Some(object.tag), key, None),
                Err(CatalogError::NoHead(damage)) => (None, Some(object.tag), None, damage),
                Err(error) => return Err(error),
            },
            Err(error) if error.kind == StoreErrorKind::NotFound => (None, None, None, None),
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
            key,
            contents,
            damage,
        })
    }

    /// Opens the head. With a key, one that is not what a holder of the key wrote is refused, and not taken for a lost one:
    /// the job must not begin anew, nor go back, because somebody altered it.
    async fn open(&self, bytes: &[u8], deadline: Instant) -> Result<Opened<Head>, CatalogError> {
        let place = Place {
            store: &self.store,
            job: &self.job,
            name: head::KEY,
        };
        let refused = |source| CatalogError::Sealing {
            key: self.key(head::KEY),
            source,
        };
        match self.keys.open(place, bytes, false, deadline).await {
            Ok(opened) => Ok(opened),
            // Rewriting what a newer program wrote would destroy it.
            Err(OpenError::Document(source @ DocumentError::OtherVersion { .. })) => {
                Err(CatalogError::Head {
                    key: self.key(head::KEY),
                    source,
                })
            }
            Err(OpenError::Document(source)) if self.keys.seals() || source.is_about_keys() => {
                Err(refused(source))
            }
            Err(OpenError::Document(damage)) => Err(CatalogError::NoHead(Some(damage))),
            Err(OpenError::Key(error)) => Err(error.into()),
        }
    }

    /// A document of the job, sealed if there is a key.
    fn seal<T: Stored>(
        &self,
        key: Option<&Arc<MasterKey>>,
        name: &str,
        value: &T,
    ) -> Result<Bytes, CatalogError> {
        let bytes = match key {
            Some(key) => key
                .seal(&self.job, name, value)
                .map_err(CatalogError::Random)?,
            None => document::seal(T::KIND, value.version(), value),
        };
        Ok(bytes.into())
    }

    /// Stores a report, in place of what had its name.
    pub(crate) async fn put_report(
        &self,
        name: &report::Name,
        report: &Report,
        key: Option<&Arc<MasterKey>>,
        deadline: Instant,
    ) -> Result<(), CatalogError> {
        let bytes = self.seal(key, &name.key(), report)?;
        let full = self.key(&name.key());
        retry::retry(deadline, "put", || {
            self.store.put(&full, bytes.clone(), Condition::Always)
        })
        .await?;
        Ok(())
    }

    /// The names of the job's reports, oldest first.
    pub(crate) async fn reports(
        &self,
        deadline: Instant,
    ) -> Result<Vec<report::Name>, CatalogError> {
        let objects = self.objects(report::PREFIX, deadline).await?;
        let names = objects
            .iter()
            .filter_map(|object| report::Name::of_key(&object.key));
        Ok(names.collect())
    }

    /// Reads a report; `None` if it is not there.
    pub(crate) async fn report(
        &self,
        name: &report::Name,
        deadline: Instant,
    ) -> Result<Option<Report>, CatalogError> {
        let key = name.key();
        let full = self.key(&key);
        let read = retry::retry(deadline, "get", || {
            self.store.get(&full, document::SIZE_LIMIT)
        });
        let object = match read.await {
            Ok(object) => object,
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let place = Place {
            store: &self.store,
            job: &self.job,
            name: &key,
        };
        let opened = self.keys.open(place, &object.bytes, false, deadline).await;
        match opened {
            Ok(Opened { value, .. }) => Ok(Some(value)),
            Err(OpenError::Key(error)) => Err(error.into()),
            Err(OpenError::Document(source)) => Err(CatalogError::Report { key: full, source }),
        }
    }

    async fn manifests(&self, deadline: Instant) -> Result<Vec<String>, CatalogError> {
        let objects = self.objects(manifest::PREFIX, deadline).await?;
        Ok(objects.into_iter().map(|object| object.key).collect())
    }

    /// Every object of the job whose key starts with `prefix`, in key order. Each page has as long as `deadline` leaves.
    pub async fn objects(
        &self,
        prefix: &str,
        deadline: Instant,
    ) -> Result<Vec<Object>, CatalogError> {
        let (root, full) = (self.root(), self.key(prefix));
        let mut found: Vec<Object> = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = retry::retry(deadline, "list", || {
                self.store.list(&full, after.as_deref(), PAGE)
            })
            .await?;
            let ended = page.len() < PAGE;
            after = page.last().map(|last| last.key.clone());
            found.extend(page.into_iter().filter_map(|entry| {
                Some(Object {
                    key: entry.key.strip_prefix(&root)?.to_owned(),
                    bytes: entry.size,
                    stored_at_ms: entry.modified_ms,
                })
            }));
            if ended {
                return Ok(found);
            }
        }
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
        let key = self
            .keys
            .newest(&self.store, &self.job, found.key.as_ref(), deadline)
            .await?;
        let head = before.claimed(owner, nonce());
        self.replace(found.tag.clone(), head, key, deadline).await
    }

    /// Writes the manifest and then the head. When this returns, the snapshot counts. `base` is the manifest of the
    /// snapshot whose parts this one may refer to.
    pub async fn commit(
        &self,
        lease: &mut Lease,
        manifest: &Manifest,
        base: Option<&str>,
        policy: Policy,
        deadline: Instant,
    ) -> Result<(), CatalogError> {
        // Before anything is written, so that nothing is left behind for the most likely reason.
        sweep::may_commit(&lease.head, manifest, base)?;
        let bytes = self.seal(lease.key.as_ref(), &manifest.key(), manifest)?;
        if bytes.len() as u64 > document::SIZE_LIMIT {
            // Committed, it could not be read again.
            return Err(CatalogError::TooLarge(bytes.len()));
        }
        let key = self.key(&manifest.key());
        self.put_manifest(&key, &bytes, deadline).await?;
        steps::reached(Step::Manifested);
        let generation = generation(manifest, &bytes);
        let written = self
            .update(lease, deadline, |head| {
                sweep::may_commit(head, manifest, base)?;
                let with = head.committed(generation.clone(), &[], nonce());
                let dropped = retention::plan_for(&with, policy).dropped();
                Ok(with.without(&dropped, with.nonce.clone()))
            })
            .await;
        match written {
            // The reply to our write was lost, and somebody else has replaced it by a change of it since.
            Err(CatalogError::Refused(_)) if lease.head.names(&manifest.key()) => Ok(()),
            written => written,
        }
    }

    /// Makes a job that begins with this snapshot, and that nobody owns. Fails with [`CatalogError::Fenced`] when there is
    /// one of this name already.
    pub async fn found(
        &self,
        manifest: &Manifest,
        origin: head::Origin,
        key: Option<Arc<MasterKey>>,
        deadline: Instant,
    ) -> Result<(), CatalogError> {
        let bytes = self.seal(key.as_ref(), &manifest.key(), manifest)?;
        if bytes.len() as u64 > document::SIZE_LIMIT {
            return Err(CatalogError::TooLarge(bytes.len()));
        }
        self.put_manifest(&self.key(&manifest.key()), &bytes, deadline)
            .await?;
        let head = Head {
            cloned_from: Some(origin),
            ..Head::new(&self.job)
        };
        let head = head.committed(generation(manifest, &bytes), &[], nonce());
        self.replace(None, head, key, deadline).await.map(drop)
    }

    /// Gives a sign of life. Fails with [`CatalogError::Fenced`] when another worker owns the job.
    pub async fn beat(&self, lease: &mut Lease, deadline: Instant) -> Result<(), CatalogError> {
        self.update(lease, deadline, |head| Ok(head.beaten(nonce())))
            .await
    }

    /// Says that the job goes on from an older snapshot.
    pub async fn go_back(
        &self,
        lease: &mut Lease,
        to: u64,
        request: &rollback::Request,
        command: Option<&str>,
        deadline: Instant,
    ) -> Result<(), CatalogError> {
        self.update(lease, deadline, |head| {
            let back = head.rolled_back(to, request, nonce());
            Ok(match command {
                Some(command) => back.answering(command, to),
                None => back,
            })
        })
        .await
    }

    /// Says that the owner stores memory ahead under this attempt from now on, and under no earlier one.
    pub async fn seed(
        &self,
        lease: &mut Lease,
        attempt: &str,
        deadline: Instant,
    ) -> Result<(), CatalogError> {
        self.update(lease, deadline, |head| Ok(head.seeded(attempt, nonce())))
            .await
    }

    /// Replaces the head by a change of it. It may have been replaced under the same ownership: by an earlier write of
    /// ours whose fate was unknown, or by an operator's command; then the change is made to that one.
    async fn update(
        &self,
        lease: &mut Lease,
        deadline: Instant,
        change: impl Fn(&Head) -> Result<Head, CatalogError>,
    ) -> Result<(), CatalogError> {
        for _ in 0..CHANGE_TRIES {
            let written = self
                .replace(
                    Some(lease.tag.clone()),
                    change(&lease.head)?,
                    lease.key.clone(),
                    deadline,
                )
                .await;
            match written {
                Ok(renewed) => {
                    *lease = renewed;
                    return Ok(());
                }
                // It is ours as long as the head says so, however often it was replaced.
                Err(CatalogError::Fenced(_)) => self.refresh(lease, deadline).await?,
                Err(error) => return Err(error),
            }
        }
        Err(CatalogError::Busy(CHANGE_TRIES))
    }

    /// Changes what is kept of the job without owning it: whoever owns it goes on doing so. `change` is asked again
    /// whenever somebody else was faster; it gives a reason not to change anything, or the new head.
    pub async fn amend<E>(
        &self,
        deadline: Instant,
        change: impl Fn(&Head) -> Result<Head, E>,
    ) -> Result<Result<Head, E>, CatalogError> {
        for _ in 0..CHANGE_TRIES {
            let present = self.present(deadline).await?;
            let head = match change(&present.head) {
                Ok(head) => head,
                Err(reason) => return Ok(Err(reason)),
            };
            // With the key that it has: only an owner changes to a newer one.
            let Lease { tag, key, .. } = present;
            match self.replace(Some(tag), head, key, deadline).await {
                Ok(lease) => return Ok(Ok(lease.head)),
                Err(CatalogError::Fenced(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(CatalogError::Busy(CHANGE_TRIES))
    }

    /// The head as it is now.
    pub async fn head(&self, deadline: Instant) -> Result<Head, CatalogError> {
        Ok(self.present(deadline).await?.head)
    }

    /// Looks the head up again: fails with [`CatalogError::Fenced`] when another worker owns the job, and takes over
    /// what an earlier write of ours may have left there.
    pub async fn refresh(&self, lease: &mut Lease, deadline: Instant) -> Result<(), CatalogError> {
        let present = self.present(deadline).await?;
        if !present.head.has_same_owner(&lease.head) {
            let by = describe(present.head.owner.as_ref(), present.head.epoch);
            return Err(CatalogError::Fenced(by));
        }
        if lease.key.is_some() && present.key.is_none() {
            return Err(CatalogError::Sealing {
                key: self.key(head::KEY),
                source: DocumentError::NotSealed,
            });
        }
        *lease = Lease {
            key: lease.key.take(),
            ..present
        };
        Ok(())
    }

    async fn present(&self, deadline: Instant) -> Result<Lease, CatalogError> {
        let key = self.key(head::KEY);
        let present = retry::retry(deadline, "get", || {
            self.store.get(&key, document::SIZE_LIMIT)
        })
        .await;
        let present = match present {
            Ok(present) => present,
            Err(error) if error.kind == StoreErrorKind::NotFound => {
                return Err(CatalogError::NoHead(None));
            }
            Err(error) => return Err(error.into()),
        };
        let Opened { value, key } = self.open(&present.bytes, deadline).await?;
        Ok(Lease {
            head: value,
            tag: present.tag,
            key,
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
        self.update(lease, deadline, |head| Ok(head.released(finished, nonce())))
            .await
    }

    async fn replace(
        &self,
        tag: Option<Tag>,
        head: Head,
        key: Option<Arc<MasterKey>>,
        deadline: Instant,
    ) -> Result<Lease, CatalogError> {
        let name = self.key(head::KEY);
        let bytes = self.seal(key.as_ref(), head::KEY, &head)?;
        let condition = tag.map_or(Condition::Absent, Condition::Matches);
        let put = retry::retry(deadline, "put", || {
            self.store.put(&name, bytes.clone(), condition.clone())
        })
        .await;
        match put {
            Ok(tag) => Ok(Lease { head, tag, key }),
            Err(error) => self.after_failure(head, key, error, deadline).await,
        }
    }

    /// A failed write may have taken place all the same. The head in the store tells, if it can be read.
    async fn after_failure(
        &self,
        head: Head,
        key: Option<Arc<MasterKey>>,
        error: StoreError,
        deadline: Instant,
    ) -> Result<Lease, CatalogError> {
        let name = self.key(head::KEY);
        let refused = error.kind == StoreErrorKind::ConditionFailed;
        if !refused && !error.kind.is_retryable() {
            return Err(error.into());
        }
        let present = match retry::retry(deadline, "get", || {
            self.store.get(&name, document::SIZE_LIMIT)
        })
        .await
        {
            Ok(present) => present,
            Err(_) if refused => return Err(error.into()),
            Err(_) => return Err(CatalogError::Unknown(error)),
        };
        match self.open(&present.bytes, deadline).await {
            Ok(found) if found.value.nonce == head.nonce => Ok(Lease {
                head,
                tag: present.tag,
                key,
            }),
            Ok(found) if refused => Err(CatalogError::Fenced(describe(
                found.value.owner.as_ref(),
                found.value.epoch,
            ))),
            Ok(_) => Err(error.into()),
            Err(CatalogError::NoHead(Some(source))) => {
                Err(CatalogError::Head { key: name, source })
            }
            Err(error) => Err(error),
        }
    }
}

/// What a head says of a manifest that is stored as these bytes.
fn generation(manifest: &Manifest, bytes: &[u8]) -> Generation {
    Generation {
        generation: manifest.generation,
        manifest: manifest.key(),
        digest: document::digest(bytes),
        taken_at_ms: manifest.taken_at_ms,
        stored_bytes: manifest.sizes.stored,
        pinned: false,
        tags: Vec::new(),
        commands: manifest.commands.clone(),
        unknown: reprieve_core::document::Unknown::new(),
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
    #[cfg(test)]
    if let Some(nonce) = crate::simulation::nonce() {
        return nonce;
    }
    ulid::Ulid::generate().to_string()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::time::Duration;

    use reprieve_core::manifest::{AppFacts, HostFacts, Part, Profile, Sizes, Stdio};
    use reprieve_core::notice::{Afterwards, Source};

    use crate::keys::Unsealed;
    use crate::pages::load::Unusable;
    use crate::store::DirectoryStore;

    pub(crate) fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    pub(crate) fn owner(worker: &str) -> Owner {
        Owner {
            worker: worker.into(),
            host: "host".into(),
            since_ms: 1,
            beat: 0,
        }
    }

    /// A manifest of the next generation, for parts that need not exist.
    pub(crate) fn manifest(head: &Head, parts: &[String]) -> Manifest {
        let part = |key: &String| Part {
            key: key.clone(),
            bytes: 3,
            digest: document::digest(b"abc"),
        };
        Manifest {
            job: head.job.clone(),
            generation: head.next_generation,
            epoch: head.epoch,
            attempt: nonce(),
            parent: None,
            taken_at_ms: 1,
            trigger: Some(Source::Control),
            decision: None,
            storing: None,
            commands: Vec::new(),
            afterwards: Afterwards::Continue,
            app: AppFacts {
                argv: vec!["app".into()],
                root_pid: 300,
                stdio: Stdio::Terminal { rdev: 1, dev: 2 },
                stdin_ended: false,
                processes: 1,
                monotonic_ms: 1,
                library: None,
                filtered: false,
                programs: Default::default(),
                by_host_clocks: None,
                clocks: None,
                needs: Profile::Minimal,
            },
            host: HostFacts {
                hostname: "host".into(),
                arch: "x86_64".into(),
                page_size: 4096,
                criu: "4.2".into(),
                ..HostFacts::default()
            },
            parts: parts.iter().map(part).collect(),
            index: Vec::new(),
            sizes: Sizes::default(),
            keys: Default::default(),
        }
    }

    pub(crate) fn catalog() -> (tempfile::TempDir, Catalog) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let store = Arc::new(DirectoryStore::new(directory.path()));
        (directory, Catalog::new(store, "job"))
    }

    pub(crate) async fn claim(catalog: &Catalog, worker: &str) -> Lease {
        let found = catalog.find(soon()).await.expect("it is found");
        let claimed = catalog.claim(&found, owner(worker), Vec::new(), soon());
        claimed.await.expect("it is free")
    }

    /// Commits a snapshot that stands alone.
    pub(crate) async fn snapshot(catalog: &Catalog, lease: &mut Lease, policy: Policy) -> Manifest {
        let made = manifest(&lease.head, &[]);
        let committed = catalog.commit(lease, &made, None, policy, soon());
        committed.await.expect("it is ours");
        made
    }

    fn numbers(head: &Head) -> Vec<u64> {
        let all = head.generations.iter();
        all.map(|known| known.generation).collect()
    }

    #[test]
    fn what_a_reader_of_the_first_version_would_resume_without_has_the_second() {
        use reprieve_core::document::Stored as _;
        let plain = manifest(&Head::new("job"), &[]);
        assert_eq!(plain.version(), 1);
        let changes: [fn(&mut Manifest); 4] = [
            |manifest| manifest.sizes.preserved = Some(Default::default()),
            |manifest| manifest.app.library = Some("/run/library".into()),
            |manifest| manifest.app.filtered = true,
            |manifest| manifest.app.needs = Profile::Full,
        ];
        for change in changes {
            let mut manifest = plain.clone();
            change(&mut manifest);
            assert_eq!(manifest.version(), 2, "{manifest:?}");
            assert_eq!(Manifest::from_bytes(&manifest.to_bytes()), Ok(manifest));
        }
    }

    #[tokio::test]
    async fn what_an_operator_changed_outlives_the_owners_next_commit() {
        let (_directory, catalog) = catalog();
        let mut lease = claim(&catalog, "w").await;
        let policy = Policy::last(3);
        for _ in 0..3 {
            snapshot(&catalog, &mut lease, policy).await;
        }
        let amended = catalog.amend(soon(), |head| {
            let mut head = head.without(&[1], nonce());
            head.generations[1].pinned = true;
            Ok::<_, ()>(head)
        });
        let head = amended.await.expect("the store works").expect("a change");
        assert!(head.has_same_owner(&lease.head), "it changed hands");
        assert_eq!(numbers(&head), [3, 2]);
        for _ in 0..3 {
            snapshot(&catalog, &mut lease, policy).await;
        }
        assert_eq!(numbers(&lease.head), [6, 5, 4, 2], "2 is pinned");
        let finished = Finished {
            exit_code: 0,
            at_ms: 1,
        };
        let amended = catalog.amend(soon(), |head| Ok::<_, ()>(head.without(&[2], nonce())));
        amended.await.expect("the store works").expect("a change");
        let released = catalog.release(&mut lease, Some(finished), soon());
        released.await.expect("it is ours");
        let head = catalog.head(soon()).await.expect("there is one");
        assert_eq!(
            (head.finished, numbers(&head)),
            (Some(finished), vec![6, 5, 4])
        );
    }

    #[tokio::test]
    async fn a_sealed_head_changes_its_key_with_its_owner_and_is_never_taken_for_a_lost_one() {
        let (directory, unsealed) = catalog();
        let with = |numbers: &[u8]| {
            let keys = Keyring::for_tests(numbers, Unsealed::Refuse);
            Catalog::with_keys(Arc::clone(&unsealed.store), "job", Arc::new(keys))
        };
        let id = |key: &Option<Arc<MasterKey>>| key.as_ref().map(|key| key.id().to_owned());
        let first = with(&[1]);
        let mut lease = claim(&first, "v").await;
        let made = snapshot(&first, &mut lease, Policy::last(5)).await;
        let candidate = (&lease.head.generations[0]).into();
        let read = crate::pages::load::manifest(&first, &candidate, soon());
        assert_eq!(read.await.expect("it is ours").manifest, made);

        let second = with(&[2, 1]);
        // An operator who has both keys leaves it as it is; a new owner takes the newer one.
        let amended = second.amend(soon(), |head| Ok::<_, ()>(head.without(&[], nonce())));
        amended.await.expect("the store works").expect("a change");
        first
            .beat(&mut lease, soon())
            .await
            .expect("it is still ours");
        let before = id(&lease.key);
        let mut lease = claim(&second, "w").await;
        assert!(id(&lease.key).is_some() && id(&lease.key) != before);
        for refused in [with(&[1]).find(soon()).await, unsealed.find(soon()).await] {
            let refused = refused.expect_err("it has another key");
            let CatalogError::Sealing { source, .. } = refused else {
                panic!("{refused:?}")
            };
            assert!(source.is_about_keys(), "{source}");
        }
        let key = directory.path().join("job/HEAD");
        let whole = std::fs::read(&key).expect("it can be read");
        let owner = |head: &Head| (head.epoch, head.owner.clone());
        for altered in [lease.head.to_bytes(), Vec::new(), whole[1..].to_vec()] {
            std::fs::write(&key, &altered).expect("it can be written");
            let found = second.find(soon()).await;
            assert!(
                matches!(found, Err(CatalogError::Sealing { .. })),
                "{found:?}"
            );
            let beaten = second.beat(&mut lease, soon()).await;
            assert!(
                matches!(beaten, Err(CatalogError::Sealing { .. })),
                "{beaten:?}"
            );
            let present = std::fs::read(&key).expect("it can be read");
            assert_eq!(present, altered, "what was found was written over");
        }
        std::fs::write(&key, &whole).expect("it can be written");
        second.beat(&mut lease, soon()).await.expect("it is ours");
        let found = second.find(soon()).await.expect("it is sealed");
        assert_eq!(found.head.as_ref().map(owner), Some(owner(&lease.head)));
    }

    #[tokio::test]
    async fn a_manifest_in_the_place_of_another_is_refused() {
        let (directory, unsealed) = catalog();
        let with = |job: &str| {
            let keys = Arc::new(Keyring::for_tests(&[1], Unsealed::Refuse));
            Catalog::with_keys(Arc::clone(&unsealed.store), job, keys)
        };
        let (ours, other) = (with("job"), with("other"));
        let mut lease = claim(&ours, "v").await;
        let first = snapshot(&ours, &mut lease, Policy::last(5)).await;
        let second = snapshot(&ours, &mut lease, Policy::last(5)).await;
        let path = |job: &str, made: &Manifest| directory.path().join(job).join(made.key());
        std::fs::create_dir_all(directory.path().join("other/manifests")).expect("directory");
        for (job, catalog, from, to) in [
            ("job", &ours, &first, &second),
            ("other", &other, &first, &first),
        ] {
            let whole = std::fs::read(path("job", from)).expect("it can be read");
            std::fs::write(path(job, to), whole).expect("it can be written");
            // Found by listing: no digest is known.
            let candidate = selection::Candidate {
                manifest: to.key(),
                digest: None,
            };
            let read = crate::pages::load::manifest(catalog, &candidate, soon()).await;
            let error = read.expect_err("it belongs elsewhere");
            assert!(
                matches!(error, Unusable::Manifest(DocumentError::Forged)),
                "{job}: {error}"
            );
            assert!(!error.is_about_keys());
        }
    }

    #[tokio::test]
    async fn operators_in_a_hurry_do_not_fence_the_owner() {
        let (_directory, catalog) = catalog();
        let mut lease = claim(&catalog, "w").await;
        let hurried = |catalog: Catalog| async move {
            for _ in 0..30 {
                let amended = catalog.amend(soon(), |head| Ok::<_, ()>(head.without(&[], nonce())));
                // Losing twenty times in a row is no fault here.
                match amended.await {
                    Ok(_) | Err(CatalogError::Busy(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        };
        let others = [(); 3].map(|()| tokio::spawn(hurried(catalog.clone())));
        for _ in 0..30 {
            match catalog.beat(&mut lease, soon()).await {
                Ok(()) | Err(CatalogError::Busy(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        for other in others {
            other.await.expect("it does not panic");
        }
        let mut second = claim(&catalog, "v").await;
        let beaten = catalog.beat(&mut lease, soon()).await;
        assert!(matches!(beaten, Err(CatalogError::Fenced(_))), "{beaten:?}");
        catalog.beat(&mut second, soon()).await.expect("it is ours");
    }

    #[tokio::test]
    async fn a_snapshot_whose_base_was_removed_is_refused_and_the_next_one_is_not() {
        let (_directory, catalog) = catalog();
        let mut lease = claim(&catalog, "w").await;
        let policy = Policy::last(5);
        let first = snapshot(&catalog, &mut lease, policy).await;
        snapshot(&catalog, &mut lease, policy).await;
        let part = manifest::data_prefix(&first.attempt) + "000000";
        let upon = manifest(&lease.head, &[part]);
        let base = first.key();
        let drop_first = || catalog.amend(soon(), |head| Ok::<_, ()>(head.without(&[1], nonce())));
        drop_first().await.expect("store").expect("a change");
        let refused = catalog
            .commit(&mut lease, &upon, Some(&base), policy, soon())
            .await;
        assert!(
            matches!(refused, Err(CatalogError::Refused(Refusal::Dropped))),
            "{refused:?}"
        );
        assert_eq!(numbers(&lease.head), [2], "the head is known as it is");
        snapshot(&catalog, &mut lease, policy).await;
        assert_eq!(numbers(&lease.head), [3, 2]);
    }

    #[tokio::test]
    async fn a_condemned_attempt_is_not_committed() {
        let (_directory, catalog) = catalog();
        let mut lease = claim(&catalog, "w").await;
        let slow = manifest(&lease.head, &[]);
        let condemned = [slow.attempt.clone()];
        let amended = catalog.amend(soon(), |head| {
            Ok::<_, ()>(head.condemning(&condemned, nonce()))
        });
        amended.await.expect("store").expect("a change");
        let policy = Policy::last(5);
        let refused = catalog
            .commit(&mut lease, &slow, None, policy, soon())
            .await;
        assert!(
            matches!(refused, Err(CatalogError::Refused(Refusal::Condemned))),
            "{refused:?}"
        );
        snapshot(&catalog, &mut lease, policy).await;
    }

    #[tokio::test]
    async fn a_commit_whose_reply_was_lost_and_whose_head_was_changed_since_is_seen() {
        let (_directory, catalog) = catalog();
        let mut lease = claim(&catalog, "w").await;
        let stale = Lease {
            head: lease.head.clone(),
            tag: lease.tag.clone(),
            key: None,
        };
        let policy = Policy::last(5);
        let made = snapshot(&catalog, &mut lease, policy).await;
        let amended = catalog.amend(soon(), |head| Ok::<_, ()>(head.without(&[], nonce())));
        amended.await.expect("store").expect("a change");
        let mut lease = stale;
        let again = catalog
            .commit(&mut lease, &made, None, policy, soon())
            .await;
        again.expect("it counts already");
        assert_eq!(numbers(&lease.head), [1]);
    }

    #[tokio::test]
    async fn listings_of_any_length_are_read_to_their_end() {
        let (directory, catalog) = catalog();
        let data = directory.path().join("job/data/x");
        std::fs::create_dir_all(&data).expect("directory");
        for number in 0..PAGE + 1 {
            std::fs::write(data.join(format!("{number:06}")), b"").expect("file");
        }
        let objects = catalog.objects("", soon()).await.expect("it is listed");
        assert_eq!(objects.len(), PAGE + 1);
        assert_eq!(objects[PAGE].key, format!("data/x/{PAGE:06}"));
    }
}
