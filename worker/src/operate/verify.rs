//! `reprieve verify`: reads every byte of snapshots and says what is wrong with them.
//!
//! A part is checked as a whole against the manifest, and each block in it against the index, so that a finding says which
//! block is damaged and not only which object. A store that does not answer is no finding.

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use reprieve_core::document;
use reprieve_core::manifest::{Manifest, Part};
use serde::Serialize;
use tokio::time::Instant;

use super::{Answer, ExitCode, Failure, Job, Known, SCHEMA, Which, damage, text};
use crate::pages::codec;
use crate::pages::index::Block;
use crate::pages::load;
use crate::pages::seal::PartKeys;

/// Parts read and checked at once; each is 8 MiB.
const AT_ONCE: usize = 4;

/// Findings in the message of a failure; the answer has all.
const TOLD: usize = 20;

/// What was verified, and what was found.
#[derive(Debug, Serialize)]
pub(super) struct Verified {
    schema: u32,
    job: String,
    store: String,
    /// In the order in which a start would try them.
    snapshots: Vec<One>,
    damaged: usize,
}

/// One snapshot.
#[derive(Debug, Serialize)]
struct One {
    generation: Option<u64>,
    manifest: String,
    sound: bool,
    parts: usize,
    blocks: u64,
    /// Read from the store.
    bytes: u64,
    findings: Vec<Finding>,
}

/// One thing that is wrong.
#[derive(Debug, Serialize)]
struct Finding {
    /// Relative to the job.
    object: String,
    /// Of the block in the object.
    offset: Option<u64>,
    problem: String,
}

pub(super) async fn verify(job: &Job, which: &Which) -> Result<Verified, Failure> {
    let contained = job.contained().await?;
    let chosen = match which {
        Which::One(which) => vec![job.find(&contained, which)?],
        Which::All if contained.snapshots.is_empty() => return Err(job.no_snapshots()),
        Which::All => contained.snapshots,
    };
    let mut snapshots = Vec::new();
    for known in &chosen {
        snapshots.push(one(job, known).await?);
    }
    Ok(Verified {
        schema: SCHEMA,
        job: job.name.clone(),
        store: job.address.clone(),
        damaged: snapshots.iter().filter(|one| !one.sound).count(),
        snapshots,
    })
}

async fn one(job: &Job, known: &Known) -> Result<One, Failure> {
    let mut one = One {
        generation: known.number,
        manifest: known.candidate.manifest.clone(),
        sound: false,
        parts: 0,
        blocks: 0,
        bytes: 0,
        findings: Vec::new(),
    };
    let finding = |object: &str, problem| Finding {
        object: object.to_owned(),
        offset: None,
        problem,
    };
    let read = match job.read(known).await {
        Ok(read) => read,
        Err(error) => match damage(&error) {
            Some(problem) => {
                one.findings
                    .push(finding(&known.candidate.manifest, problem));
                return Ok(one);
            }
            None => return Err(job.unusable(known, error)),
        },
    };
    let deadline = Instant::now() + job.restore_limit;
    let manifest = read.manifest.clone();
    let mut keys = PartKeys::default();
    let mut blocks: Vec<Vec<Block>> = vec![Vec::new(); manifest.parts.len()];
    match load::open(&job.catalog, read, deadline).await {
        Ok(snapshot) => {
            keys = snapshot.keys;
            for block in snapshot
                .index
                .blocks
                .into_iter()
                .filter(|block| block.raw > 0)
            {
                one.blocks += 1;
                blocks[block.part as usize].push(block);
            }
        }
        Err(error) => match damage(&error) {
            // The parts are read all the same: what else is wrong is of interest.
            Some(problem) => {
                let object = manifest
                    .index
                    .first()
                    .and_then(|&part| manifest.parts.get(part));
                let object = object.map_or("the index", |part| part.key.as_str());
                one.findings.push(finding(object, problem));
            }
            None => return Err(job.unusable(known, error)),
        },
    }
    let checks = Checks { keys, blocks };
    parts(job, known, &manifest, checks, &mut one).await?;
    one.sound = one.findings.is_empty();
    Ok(one)
}

/// What a snapshot's parts are checked against, by part.
struct Checks {
    keys: PartKeys,
    blocks: Vec<Vec<Block>>,
}

async fn parts(
    job: &Job,
    known: &Known,
    manifest: &Manifest,
    checks: Checks,
    one: &mut One,
) -> Result<(), Failure> {
    let total = manifest.parts.iter().map(|part| part.bytes).sum();
    let progress = text::Progress::start("verifying", total);
    let reads: Vec<_> = manifest
        .parts
        .iter()
        .zip(checks.blocks)
        .map(|(part, blocks)| read(job, known, part, blocks, &checks.keys))
        .collect();
    let mut reads = futures::stream::iter(reads).buffered(AT_ONCE);
    while let Some(read) = reads.next().await {
        let (bytes, findings) = read?;
        progress.advance(bytes);
        one.parts += 1;
        one.bytes += bytes;
        for finding in findings {
            // The index was read before.
            if one
                .findings
                .iter()
                .all(|known| known.object != finding.object || known.offset.is_some())
            {
                one.findings.push(finding);
            }
        }
    }
    Ok(())
}

/// How many bytes a part has, and what is wrong with it.
async fn read(
    job: &Job,
    known: &Known,
    part: &Part,
    blocks: Vec<Block>,
    keys: &PartKeys,
) -> Result<(u64, Vec<Finding>), Failure> {
    let full = format!("{}{}", job.catalog.root(), part.key);
    let deadline = Instant::now() + job.limit;
    let bytes = match load::whole(job.store(), &full, &part.key, part.bytes, deadline).await {
        Ok(bytes) => bytes,
        Err(error) => {
            let problem = damage(&error).ok_or_else(|| job.unusable(known, error))?;
            let finding = Finding {
                object: part.key.clone(),
                offset: None,
                problem,
            };
            return Ok((0, vec![finding]));
        }
    };
    let (length, part, keys) = (bytes.len() as u64, part.clone(), keys.clone());
    let checked = tokio::task::spawn_blocking(move || check(&part, &bytes, &blocks, &keys)).await;
    Ok((length, checked.expect("a check does not panic")))
}

fn check(part: &Part, bytes: &Bytes, blocks: &[Block], keys: &PartKeys) -> Vec<Finding> {
    let finding = |offset, problem| Finding {
        object: part.key.clone(),
        offset,
        problem,
    };
    let mut findings = Vec::new();
    for block in blocks {
        let start = usize::try_from(block.offset).ok();
        let stored = start
            .and_then(|start| Some(start..start.checked_add(block.stored as usize)?))
            .and_then(|range| bytes.get(range));
        let problem = match stored {
            None => Some("the block lies outside of the object".to_owned()),
            Some(stored) => codec::unpack(block, BytesMut::from(stored), keys.of(block.part))
                .err()
                .map(|damage| format!("the block is damaged: {damage}")),
        };
        findings.extend(problem.map(|problem| finding(Some(block.offset), problem)));
    }
    if bytes.len() as u64 != part.bytes {
        let problem = format!("it has {} bytes instead of {}", bytes.len(), part.bytes);
        findings.push(finding(None, problem));
    } else if findings.is_empty()
        && !part.digest.is_empty()
        && document::digest(bytes) != part.digest
    {
        let problem = "its checksum does not match: the stored bytes were altered".to_owned();
        findings.push(finding(None, problem));
    }
    findings
}

impl Verified {
    /// A failure if anything is damaged.
    pub(super) fn verdict(&self) -> Result<(), Failure> {
        if self.damaged == 0 {
            return Ok(());
        }
        let what = match self.snapshots.len() {
            1 => format!("the snapshot of job {} is damaged", self.job),
            all => format!(
                "{} of {all} snapshots of job {} are damaged",
                self.damaged, self.job
            ),
        };
        let findings = self.snapshots.iter().flat_map(|one| {
            let name = one
                .generation
                .map_or_else(|| one.manifest.clone(), |number| number.to_string());
            let said = one.findings.iter().map(Finding::say);
            said.map(move |said| format!("generation {name}: {said}"))
        });
        let failure = Failure::new(ExitCode::DamagedSnapshot, what).remedy(
            "a start passes damaged snapshots over for the next older one; take a new checkpoint soon, and look for the \
             cause in the store",
        );
        Err(findings.take(TOLD).fold(failure, Failure::detail))
    }
}

impl Finding {
    fn say(&self) -> String {
        match self.offset {
            Some(offset) => format!("{} at byte {offset}: {}", self.object, self.problem),
            None => format!("{}: {}", self.object, self.problem),
        }
    }
}

impl Answer for Verified {
    fn human(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .snapshots
            .iter()
            .map(|one| {
                vec![
                    one.generation
                        .map_or_else(|| "-".to_owned(), |number| number.to_string()),
                    one.parts.to_string(),
                    one.blocks.to_string(),
                    text::bytes(one.bytes),
                    match one.findings.len() {
                        0 => "sound".to_owned(),
                        1 => "damaged: 1 finding".to_owned(),
                        count => format!("damaged: {count} findings"),
                    },
                ]
            })
            .collect();
        text::table(&["GENERATION", "PARTS", "BLOCKS", "READ", "VERDICT"], &rows)
    }
}
