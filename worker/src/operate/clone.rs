//! `reprieve clone`: a new job that begins with a snapshot of another one.
//!
//! The new job gets copies of every part that the snapshot needs, a manifest and a head of its own, so that from then on
//! neither job knows of the other: the source may drop the snapshot, the clone may be removed. Parts first, manifest,
//! then the head, which is only written where there is none: of two clones with one name one wins. What is cut short is
//! litter under a name that no head makes a job.
//!
//! Sealed blocks name their job and attempt, so each is opened and sealed again, under fresh data keys. Its number and its
//! length stay, and with them the index.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use futures::StreamExt;
use reprieve_core::document;
use reprieve_core::manifest::{self, Manifest, Part};
use serde::Serialize;
use tokio::time::Instant;

use super::{Answer, ExitCode, Failure, Job, Known, SCHEMA, Source, text};
use crate::catalog::{self, CatalogError};
use crate::keys::MasterKey;
use crate::pages::index::Block;
use crate::pages::load::{self, Read, Snapshot, Unusable};
use crate::pages::seal::AttemptKey;
use crate::place::{refused_keys, unreachable_store};
use crate::store::{Condition, retry};

/// Parts on their way at once; each is in memory as a whole.
const AT_ONCE: usize = 4;

/// What was made.
#[derive(Debug, Serialize)]
pub(super) struct Cloned {
    schema: u32,
    job: String,
    store: String,
    /// Of the new job.
    generation: u64,
    source_job: String,
    source_generation: Option<u64>,
    parts: usize,
    bytes: u64,
}

/// Copies a snapshot; `target` is the job that is to be.
pub(super) async fn clone(target: &Job, what: &Source) -> Result<Cloned, Failure> {
    if what.job == target.name {
        return Err(taken(target));
    }
    let source = target.beside(&what.job);
    let found = target.catalog.find(target.deadline()).await;
    let found = found.map_err(|error| target.failed(error))?;
    if found.tag.is_some() || found.contents != reprieve_core::selection::Contents::Nothing {
        return Err(taken(target));
    }
    let contained = source.contained().await?;
    let known = source.find(&contained, &what.which)?;
    let unusable = |error| gone(&source, &known, error);
    let read = source.read(&known).await.map_err(unusable)?;
    if read.key.is_none() && target.catalog.keys().seals() {
        let what = format!(
            "snapshot {} of job {} is not sealed",
            known.name(),
            source.name
        );
        return Err(Failure::new(ExitCode::NotDone, what).remedy(
            "a clone is sealed with the key that is set, or not at all: leave the key out, or let the job take one snapshot \
             with it",
        ));
    }
    let deadline = Instant::now() + source.restore_limit;
    let Read { manifest, .. } = &read;
    let original = manifest.clone();
    let snapshot = load::open(&source.catalog, read, deadline).await;
    let snapshot = snapshot.map_err(unusable)?;
    let master = target
        .catalog
        .keys()
        .newest(target.store(), &target.name, None, target.deadline())
        .await
        .map_err(|error| refused_keys(&target.name, error))?;
    let keys = fresh_keys(target, master.as_deref(), &snapshot)?;
    let parts = copies(&source, target, &known, &snapshot, &keys).await?;
    let bytes = parts.iter().map(|part| part.bytes).sum();
    let count = parts.len();
    let made = Manifest {
        job: target.name.clone(),
        generation: 1,
        epoch: 0,
        attempt: catalog::nonce(),
        parent: None,
        // They were for the other job.
        commands: Vec::new(),
        parts,
        keys: keys
            .into_values()
            .filter_map(|key| key.sealing.map(|(_, wrapped)| (key.attempt, wrapped)))
            .collect(),
        ..original
    };
    let origin = reprieve_core::head::Origin {
        job: source.name.clone(),
        generation: known.number.unwrap_or(0),
    };
    match target
        .catalog
        .found(&made, origin, master, target.deadline())
        .await
    {
        Ok(()) => {}
        Err(CatalogError::Fenced(_)) => return Err(taken(target)),
        Err(error) => return Err(target.failed(error)),
    }
    Ok(Cloned {
        schema: SCHEMA,
        job: target.name.clone(),
        store: target.address.clone(),
        generation: made.generation,
        source_job: source.name.clone(),
        source_generation: known.number,
        parts: count,
        bytes,
    })
}

fn taken(target: &Job) -> Failure {
    let what = format!(
        "there is a job {} in {} already",
        target.name, target.address
    );
    Failure::new(ExitCode::NotDone, what)
        .remedy("nothing was changed; give the clone another name with --job")
}

/// A part that is not there any more was there when the snapshot was looked up: its job let it go meanwhile.
fn gone(source: &Job, known: &Known, error: Unusable) -> Failure {
    match error {
        Unusable::Missing { .. } => {
            let what = format!(
                "snapshot {} of job {} is not whole any more",
                known.name(),
                source.name
            );
            Failure::new(ExitCode::DamagedSnapshot, what)
                .caused_by(error)
                .remedy("if the job let it go meanwhile: pin a newer one first (`reprieve pin`), and clone that")
        }
        error => source.unusable(known, error),
    }
}

/// Where the data of one of the source's attempts goes, and what it is sealed with there.
struct Destination {
    attempt: String,
    sealing: Option<(AttemptKey, String)>,
}

/// By the attempt of the source.
fn fresh_keys(
    target: &Job,
    master: Option<&MasterKey>,
    snapshot: &Snapshot,
) -> Result<BTreeMap<String, Destination>, Failure> {
    let mut destinations = BTreeMap::new();
    for part in &snapshot.manifest.parts {
        let Some(old) = manifest::data_attempt(&part.key) else {
            continue;
        };
        if destinations.contains_key(old) {
            continue;
        }
        let attempt = catalog::nonce();
        let sealing = match master {
            Some(master) => {
                let fresh = AttemptKey::fresh(master, &target.name, &attempt);
                Some(fresh.map_err(|error| target.failed(CatalogError::Random(error)))?)
            }
            None => None,
        };
        destinations.insert(old.to_owned(), Destination { attempt, sealing });
    }
    Ok(destinations)
}

async fn copies(
    source: &Job,
    target: &Job,
    known: &Known,
    snapshot: &Snapshot,
    keys: &BTreeMap<String, Destination>,
) -> Result<Vec<Part>, Failure> {
    let manifest = &snapshot.manifest;
    let mut blocks: Vec<Vec<Block>> = vec![Vec::new(); manifest.parts.len()];
    for block in &snapshot.index.blocks {
        if let Some(of_part) = blocks.get_mut(block.part as usize) {
            of_part.push(block.clone());
        }
    }
    let total = manifest.parts.iter().map(|part| part.bytes).sum();
    let progress = text::Progress::start("cloning", total);
    let copies: Vec<_> = (0..)
        .zip(&manifest.parts)
        .zip(blocks)
        .map(|((number, part), blocks)| async move {
            let Some(to) = manifest::data_attempt(&part.key).and_then(|old| keys.get(old)) else {
                let key = part.key.clone();
                return Err(gone(source, known, Unusable::Missing { key }));
            };
            let bytes = fetch(source, known, part).await?;
            let copied = match (&to.sealing, snapshot.keys.of(number)) {
                (Some((key, _)), Some(from)) => {
                    let is_index = manifest.index.contains(&(number as usize));
                    match is_index {
                        true => resealed_index(&bytes, from, key),
                        false => resealed(&bytes, &blocks, from, key),
                    }
                    .ok_or_else(|| {
                        let key = part.key.clone();
                        source.unusable(known, Unusable::Digest { key })
                    })?
                }
                _ if is_sound(&bytes, &blocks) => bytes,
                _ => {
                    let key = part.key.clone();
                    return Err(source.unusable(known, Unusable::Digest { key }));
                }
            };
            put(target, part, to, copied).await
        })
        .collect();
    let mut copies = futures::stream::iter(copies).buffered(AT_ONCE);
    let mut parts = Vec::new();
    while let Some(copied) = copies.next().await {
        let part: Part = copied?;
        progress.advance(part.bytes);
        parts.push(part);
    }
    Ok(parts)
}

async fn fetch(source: &Job, known: &Known, part: &Part) -> Result<Bytes, Failure> {
    let full = format!("{}{}", source.catalog.root(), part.key);
    let whole = load::whole(
        source.store(),
        &full,
        &part.key,
        part.bytes,
        source.deadline(),
    )
    .await;
    let bytes = whole.map_err(|error| gone(source, known, error))?;
    // Parts of blocks have none: each block is verified by itself.
    if !part.digest.is_empty() && document::digest(&bytes) != part.digest {
        let key = part.key.clone();
        return Err(source.unusable(known, Unusable::Digest { key }));
    }
    Ok(bytes)
}

async fn put(target: &Job, part: &Part, to: &Destination, bytes: Bytes) -> Result<Part, Failure> {
    let name = part.key.rsplit('/').next().unwrap_or_default();
    let key = format!("{}{name}", manifest::data_prefix(&to.attempt));
    let full = format!("{}{key}", target.catalog.root());
    // Nobody else writes under this attempt.
    let put = retry::retry(target.deadline(), "put", || {
        let bytes = bytes.clone();
        target.store().put(&full, bytes, Condition::Always)
    });
    put.await
        .map_err(|error| unreachable_store(&target.address, error))?;
    Ok(Part {
        key,
        bytes: bytes.len() as u64,
        // As of the source: an index has one, parts of blocks have none.
        digest: match part.digest.is_empty() {
            true => String::new(),
            false => document::digest(&bytes),
        },
    })
}

/// Whether every block that the snapshot needs of an unsealed part is as it was stored.
fn is_sound(bytes: &Bytes, blocks: &[Block]) -> bool {
    blocks.iter().filter(|block| block.raw > 0).all(|block| {
        let Ok(start) = usize::try_from(block.offset) else {
            return false;
        };
        let place = start..start.saturating_add(block.stored as usize);
        let stored = bytes.get(place);
        stored.is_some_and(|stored| blake3::hash(stored).as_bytes()[..] == block.digest[..])
    })
}

/// A part with each block that the snapshot needs sealed for its new place. What it does not need stays shut.
fn resealed(bytes: &Bytes, blocks: &[Block], from: &AttemptKey, to: &AttemptKey) -> Option<Bytes> {
    let mut copy = bytes.to_vec();
    let mut done = HashSet::new();
    for block in blocks.iter().filter(|block| block.raw > 0) {
        if !done.insert(block.offset) {
            continue;
        }
        let start = usize::try_from(block.offset).ok()?;
        let place = start..start.checked_add(block.stored as usize)?;
        let mut sealed = bytes.get(place.clone())?.to_vec();
        let length = from.open_block(block.number, &mut sealed).ok()?;
        sealed.truncate(length);
        to.seal_block(block.number, &mut sealed);
        copy[place].copy_from_slice(&sealed);
    }
    Some(copy.into())
}

fn resealed_index(bytes: &Bytes, from: &AttemptKey, to: &AttemptKey) -> Option<Bytes> {
    let mut sealed = bytes.to_vec();
    from.open_index(&mut sealed).ok()?;
    to.seal_index(&mut sealed);
    Some(sealed.into())
}

impl Answer for Cloned {
    fn human(&self) -> String {
        let of = self
            .source_generation
            .map_or_else(String::new, |number| format!(" {number}"));
        format!(
            "job {} begins with snapshot{of} of job {}: {} in {} parts; `reprieve run --job {}` resumes it\n",
            self.job,
            self.source_job,
            text::bytes(self.bytes),
            self.parts,
            self.job
        )
    }
}
