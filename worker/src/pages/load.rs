//! Reads a snapshot's manifest and index, verified, and its blocks on demand.
//!
//! Nothing of a snapshot is used before it was verified: the manifest by the digest that the head knows it by (or its
//! own checksum, when the head is lost), the index by the manifest, each block by the index. What cannot be used is an
//! [`Unusable`] with its reason, so that the next older snapshot can be tried.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::StreamExt;
use reprieve_core::compat::{self, Mismatch};
use reprieve_core::document::{self, DocumentError};
use reprieve_core::manifest::{HostFacts, Manifest, Part};
use reprieve_core::selection::Candidate;
use tokio::time::Instant;

use crate::catalog::Catalog;
use crate::images::ImageError;
use crate::keys::{KeyError, MasterKey, OpenError, Opened, Place};
use crate::pages::codec::{self, Damage};
use crate::pages::index::{File, Index, IndexError};
use crate::pages::known;
use crate::pages::seal::PartKeys;
use crate::programs;
use crate::store::{Store, StoreError, StoreErrorKind, retry};

/// Parts whose presence is asked for at once.
const CHECKS: usize = 16;

/// Stored bytes that are fetched in one request, at most.
pub(crate) const FETCH: u64 = 2 << 20;

/// Bytes of small images that are [read at once](Snapshot::read_images), at most.
const IMAGES: u64 = 4 << 20;

/// Unpacked blocks that a reader keeps: enough for two workers' blocks to be read in turn.
pub(crate) const KEPT: usize = 24;

/// Why a snapshot is passed over.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("its manifest is damaged")]
    Manifest(#[source] DocumentError),
    #[error("it is not damaged, and this version of Reprieve does not know its format")]
    Format(#[source] DocumentError),
    #[error("the key of its manifest is not there")]
    Key(#[from] KeyError),
    #[error("its manifest is not the one that was committed: it was altered or replaced")]
    OtherManifest,
    #[error("part {key} is missing")]
    Missing { key: String },
    #[error("part {key} has {found} bytes instead of {expected}: it is truncated or was replaced")]
    Size {
        key: String,
        found: u64,
        expected: u64,
    },
    #[error("part {key} is damaged: its checksum does not match")]
    Digest { key: String },
    #[error("its index is damaged")]
    Index(#[from] IndexError),
    #[error("a block at byte {offset} of part {key} is damaged")]
    Block {
        key: String,
        offset: u64,
        #[source]
        source: Damage,
    },
    #[error("CRIU's image {name} is not understood")]
    Image {
        name: String,
        #[source]
        source: ImageError,
    },
    #[error("this host cannot run it: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Host(Vec<Mismatch>),
    /// The snapshot may be sound; the store is the trouble.
    #[error("the store did not deliver it")]
    Store(#[from] StoreError),
}

impl Unusable {
    /// Whether other keys could open it, so that nothing can be said about the snapshot itself.
    pub fn is_about_keys(&self) -> bool {
        match self {
            Self::Manifest(error) => error.is_about_keys(),
            Self::Key(error) => !error.is_damage(),
            _ => false,
        }
    }

    /// Whether another version of this program can use it.
    pub fn is_about_the_format(&self) -> bool {
        matches!(
            self,
            Self::Format(_) | Self::Manifest(DocumentError::OtherVersion { .. })
        )
    }
}

/// A manifest that was verified.
#[derive(Clone, Debug)]
pub struct Read {
    pub manifest: Manifest,
    /// BLAKE3 of the object, hexadecimal.
    pub digest: String,
    /// What it is sealed with, if it is.
    pub key: Option<Arc<MasterKey>>,
}

/// A snapshot that is complete and may run here, as far as that can be told without reading all of it.
#[derive(Debug)]
pub struct Snapshot {
    pub manifest: Manifest,
    pub index: Index,
    /// What opens its parts.
    pub keys: PartKeys,
    store: Arc<dyn Store>,
    root: String,
    /// Blocks of small images, verified and unpacked, by number.
    images: OnceLock<HashMap<usize, Bytes>>,
}

/// Reads and verifies everything about a snapshot but its blocks, for a host that is to run it.
pub async fn load(
    catalog: &Catalog,
    candidate: &Candidate,
    host: &HostFacts,
    deadline: Instant,
) -> Result<Snapshot, Unusable> {
    let read = manifest(catalog, candidate, deadline).await?;
    let mut mismatches = unfit_blocking(&read.manifest, host).await;
    mismatches.extend(compat::lacks_profile(&read.manifest.app, host));
    if !mismatches.is_empty() {
        return Err(Unusable::Host(mismatches));
    }
    check_parts(catalog.store(), &catalog.root(), &read.manifest, deadline).await?;
    open(catalog, read, deadline).await
}

/// Files may lie on a network.
async fn unfit_blocking(manifest: &Manifest, host: &HostFacts) -> Vec<Mismatch> {
    let (manifest, host) = (manifest.clone(), host.clone());
    let look = move || compat::unfit(&manifest, &host, programs::identity);
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

/// Reads and verifies the index of a snapshot whose manifest was read.
pub async fn open(catalog: &Catalog, read: Read, deadline: Instant) -> Result<Snapshot, Unusable> {
    let Read { manifest, key, .. } = read;
    let keys = match key {
        Some(key) => PartKeys::unwrap(&key, catalog.job(), &manifest.parts, &manifest.keys)?,
        None => PartKeys::default(),
    };
    let index = index(catalog.store(), &catalog.root(), &manifest, &keys, deadline).await?;
    Ok(Snapshot {
        manifest,
        index,
        keys,
        store: Arc::clone(catalog.store()),
        root: catalog.root(),
        images: OnceLock::new(),
    })
}

/// Reads and verifies a manifest.
pub async fn manifest(
    catalog: &Catalog,
    candidate: &Candidate,
    deadline: Instant,
) -> Result<Read, Unusable> {
    let (store, name) = (catalog.store(), candidate.manifest.as_str());
    let full = format!("{}{name}", catalog.root());
    let bytes = whole(store, &full, name, document::SIZE_LIMIT, deadline).await?;
    let digest = document::digest(&bytes);
    let is_committed = candidate.digest.as_ref().map(|known| *known == digest);
    let place = Place {
        store,
        job: catalog.job(),
        name,
    };
    // A head that was opened vouches for what it names: with its digest, also what is not sealed is what was committed.
    let vouched = is_committed == Some(true);
    let opened = match catalog.keys().open(place, &bytes, vouched, deadline).await {
        Ok(Opened { value, key }) => Ok((value, key)),
        // What was put in its place says nothing of keys.
        Err(_) if is_committed == Some(false) && catalog.keys().seals() => {
            Err(Unusable::OtherManifest)
        }
        Err(OpenError::Document(error @ DocumentError::OtherVersion { .. })) if vouched => {
            Err(Unusable::Format(error))
        }
        Err(OpenError::Document(error)) => Err(Unusable::Manifest(error)),
        Err(OpenError::Key(error)) => Err(Unusable::Key(error)),
    };
    let (manifest, key): (Manifest, _) = opened?;
    if is_committed == Some(false) || manifest.key() != *name {
        return Err(Unusable::OtherManifest);
    }
    Ok(Read {
        manifest,
        digest,
        key,
    })
}

/// A whole object of the job, of at most `limit` bytes.
pub(crate) async fn whole(
    store: &Arc<dyn Store>,
    full: &str,
    key: &str,
    limit: u64,
    deadline: Instant,
) -> Result<Bytes, Unusable> {
    match retry::retry(deadline, "get", || store.get(full, limit)).await {
        Ok(object) => Ok(object.bytes),
        Err(error) if error.kind == StoreErrorKind::NotFound => Err(Unusable::Missing {
            key: key.to_owned(),
        }),
        Err(error) => Err(error.into()),
    }
}

async fn check_parts(
    store: &Arc<dyn Store>,
    root: &str,
    manifest: &Manifest,
    deadline: Instant,
) -> Result<(), Unusable> {
    let checks: Vec<_> = manifest
        .parts
        .iter()
        .map(|part| check_part(store, root, part, deadline))
        .collect();
    let mut checks = futures::stream::iter(checks).buffer_unordered(CHECKS);
    while let Some(checked) = checks.next().await {
        checked?;
    }
    Ok(())
}

async fn check_part(
    store: &Arc<dyn Store>,
    root: &str,
    part: &Part,
    deadline: Instant,
) -> Result<(), Unusable> {
    let full = format!("{root}{}", part.key);
    match retry::retry(deadline, "size", || store.size(&full)).await {
        Ok(found) if found == part.bytes => Ok(()),
        Ok(found) => Err(Unusable::Size {
            key: part.key.clone(),
            found,
            expected: part.bytes,
        }),
        Err(error) if error.kind == StoreErrorKind::NotFound => Err(Unusable::Missing {
            key: part.key.clone(),
        }),
        Err(error) => Err(error.into()),
    }
}

async fn index(
    store: &Arc<dyn Store>,
    root: &str,
    manifest: &Manifest,
    keys: &PartKeys,
    deadline: Instant,
) -> Result<Index, Unusable> {
    let mut packed = Vec::new();
    let mut key = None;
    for &number in &manifest.index {
        let Some(part) = manifest.parts.get(number) else {
            continue;
        };
        let bytes = whole(
            store,
            &format!("{root}{}", part.key),
            &part.key,
            part.bytes,
            deadline,
        )
        .await?;
        if document::digest(&bytes) != part.digest {
            return Err(Unusable::Digest {
                key: part.key.clone(),
            });
        }
        packed.extend_from_slice(&bytes);
        key = u32::try_from(number)
            .ok()
            .and_then(|number| keys.of(number));
    }
    Ok(Index::from_bytes(packed, manifest.parts.len(), key)?)
}

impl Snapshot {
    /// One that is not sealed.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn for_tests(
        manifest: Manifest,
        index: Index,
        store: Arc<dyn Store>,
        root: &str,
    ) -> Self {
        Self {
            manifest,
            index,
            keys: PartKeys::default(),
            store,
            root: root.to_owned(),
            images: OnceLock::new(),
        }
    }

    /// Reads CRIU's small images, which a restore needs all of, in as few requests as they take: each process has about
    /// eight, and a request for each would be what a restore of many processes waits for.
    pub(crate) async fn read_images(&self, deadline: Instant) -> Result<(), Unusable> {
        let fetches: Vec<_> = self
            .image_blocks()
            .into_iter()
            .map(|group| async move { self.fetch(&group, deadline).await })
            .collect();
        let mut fetches = futures::stream::iter(fetches).buffer_unordered(CHECKS);
        let mut images = HashMap::new();
        while let Some(fetched) = fetches.next().await {
            images.extend(fetched?);
        }
        drop(fetches);
        // Somebody else's are the same.
        drop(self.images.set(images));
        Ok(())
    }

    /// The blocks of the smallest images, in groups that lie side by side in a part.
    fn image_blocks(&self) -> Vec<Vec<usize>> {
        let all = &self.index.blocks;
        let mut files: Vec<&File> = self
            .index
            .files
            .iter()
            .filter(|file| !known::is_hashes(&file.name))
            .collect();
        files.sort_by_key(|file| file.size);
        let mut left = IMAGES;
        let mut wanted: Vec<usize> = files
            .into_iter()
            .map_while(|file| {
                left = left.checked_sub(file.size)?;
                Some(file.blocks.iter().map(|number| *number as usize))
            })
            .flatten()
            .filter(|number| all[*number].stored > 0)
            .collect();
        wanted.sort_unstable_by_key(|&number| (all[number].part, all[number].offset));
        wanted.dedup();
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for number in wanted {
            let block = &all[number];
            let end = block.offset + u64::from(block.stored);
            let joined = groups.last_mut().filter(|group| {
                let (first, last) = (&all[group[0]], &all[group[group.len() - 1]]);
                block.part == last.part
                    && block.offset == last.offset + u64::from(last.stored)
                    && end - first.offset <= FETCH
            });
            match joined {
                Some(group) => group.push(number),
                None => groups.push(vec![number]),
            }
        }
        groups
    }

    /// The whole contents of one of the small images. Its size is bounded by what CRIU was allowed to put there.
    pub async fn file(&self, file: &File, deadline: Instant) -> Result<Vec<u8>, Unusable> {
        let mut blocks = Blocks::new(self, deadline);
        let mut contents = Vec::with_capacity(usize::try_from(file.size).unwrap_or(0));
        for &number in &file.blocks {
            contents.extend_from_slice(&blocks.get(number as usize).await?);
        }
        Ok(contents)
    }

    /// The verified, unpacked bytes of blocks that lie one behind the other in one part, by number: in one request.
    pub(crate) async fn fetch(
        &self,
        wanted: &[usize],
        deadline: Instant,
    ) -> Result<Vec<(usize, Bytes)>, Unusable> {
        if let Some(images) = self.images.get() {
            let here = wanted
                .iter()
                .map(|number| Some((*number, images.get(number)?.clone())));
            if let Some(here) = here.collect() {
                return Ok(here);
            }
        }
        let all = &self.index.blocks;
        let (first, last) = (&all[wanted[0]], &all[wanted[wanted.len() - 1]]);
        let part = &self.manifest.parts[first.part as usize];
        let key = format!("{}{}", self.root, part.key);
        let length = last.offset + u64::from(last.stored) - first.offset;
        let bytes = retry::retry(deadline, "get_range", || {
            self.store.get_range(&key, first.offset, length)
        })
        .await
        .map_err(|error| match error.kind {
            StoreErrorKind::NotFound => Unusable::Missing {
                key: part.key.clone(),
            },
            _ => error.into(),
        })?;
        // Nobody else has what was fetched just now: each block is opened where it lies.
        let mut rest = bytes
            .try_into_mut()
            .unwrap_or_else(|bytes| bytes[..].into());
        let mut unpacked = Vec::with_capacity(wanted.len());
        for &number in wanted {
            let block = &all[number];
            let stored = rest.split_to(block.stored as usize);
            let key = self.keys.of(block.part);
            let raw = codec::unpack(block, stored, key).map_err(|source| Unusable::Block {
                key: part.key.clone(),
                offset: block.offset,
                source,
            })?;
            unpacked.push((number, raw));
            // Whoever waits for CRIU or the store goes between.
            tokio::task::yield_now().await;
        }
        Ok(unpacked)
    }

    /// The file of this name, if the snapshot has one.
    pub fn find(&self, name: &str) -> Option<&File> {
        self.index.files.iter().find(|file| file.name == name)
    }
}

/// Reads blocks in about the order in which they were stored: fetches neighbours in one request, keeps a few.
pub struct Blocks<'a> {
    snapshot: &'a Snapshot,
    deadline: Instant,
    kept: HashMap<usize, Bytes>,
    /// Numbers in `kept`, oldest first.
    order: VecDeque<usize>,
}

impl<'a> Blocks<'a> {
    pub fn new(snapshot: &'a Snapshot, deadline: Instant) -> Self {
        Self {
            snapshot,
            deadline,
            kept: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Gives what is read from now on more time.
    pub fn extend(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// The verified, unpacked bytes of a block.
    pub async fn get(&mut self, number: usize) -> Result<Bytes, Unusable> {
        if let Some(found) = self.kept.get(&number) {
            return Ok(found.clone());
        }
        self.fetch(number).await?;
        Ok(self.kept.get(&number).cloned().unwrap_or_default())
    }

    async fn fetch(&mut self, number: usize) -> Result<(), Unusable> {
        let wanted = self.neighbours(number);
        let fetched = match self.snapshot.fetch(&wanted, self.deadline).await {
            // The damage may be a neighbour's, which nobody asked for.
            Err(Unusable::Block { .. }) if wanted.len() > 1 => {
                self.snapshot.fetch(&wanted[..1], self.deadline).await?
            }
            fetched => fetched?,
        };
        for (number, raw) in fetched {
            self.keep(number, raw);
        }
        Ok(())
    }

    /// The block and those that lie right behind it in the same part, by number, in the order of their place.
    fn neighbours(&self, number: usize) -> Vec<usize> {
        let all = &self.snapshot.index.blocks;
        let mut found = vec![number];
        let mut length = u64::from(all[number].stored);
        // Blocks are numbered nearly in the order in which they are placed.
        let near = number.saturating_sub(KEPT)..(number + KEPT).min(all.len());
        loop {
            let last = &all[found[found.len() - 1]];
            let end = last.offset + u64::from(last.stored);
            let next = near.clone().find(|&at| {
                all[at].raw > 0
                    && all[at].part == last.part
                    && all[at].offset == end
                    && !self.kept.contains_key(&at)
            });
            match next {
                Some(next)
                    if found.len() < KEPT / 2 && length + u64::from(all[next].stored) <= FETCH =>
                {
                    length += u64::from(all[next].stored);
                    found.push(next);
                }
                _ => return found,
            }
        }
    }

    fn keep(&mut self, number: usize, raw: Bytes) {
        if self.kept.insert(number, raw).is_none() {
            self.order.push_back(number);
        }
        if self.order.len() > KEPT {
            let oldest = self.order.pop_front().expect("it is longer than KEPT");
            self.kept.remove(&oldest);
        }
    }
}
