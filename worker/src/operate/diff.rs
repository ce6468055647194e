//! `reprieve diff`: what changed in a job between two of its snapshots.
//!
//! Processes are matched by number, mappings by where they begin, descriptors by number; memory is compared page by page.
//! Two snapshots of which the later was built upon the earlier have the hashes of their pages made with one key, and
//! those are compared; otherwise both are read.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use tokio::time::Instant;

use super::anatomy::{Anatomy, OneDescriptor, OneMapping, OneProcess, Values};
use super::inspect::word;
use super::{Answer, Failure, Job, SCHEMA, Selector, text};
use crate::images::MappingKind;
use crate::pages::PAGE;
use crate::pages::fingerprint::{PageHash, PageKey};
use crate::pages::index::MemoryKind;
use crate::pages::known;
use crate::pages::load::{Blocks, Unusable};

/// Two snapshots compared.
#[derive(Debug, Serialize)]
pub(super) struct Compared {
    schema: u32,
    job: String,
    before: u64,
    after: u64,
    elapsed_ms: u64,
    started: Vec<Named>,
    ended: Vec<Named>,
    stayed: Vec<Stayed>,
    shared_memory: Vec<SharedChange>,
    changed_bytes: u64,
}

/// A process that only one of the two has.
#[derive(Debug, Serialize)]
struct Named {
    pid: u32,
    command: String,
    held_bytes: u64,
}

/// A process that both have.
#[derive(Debug, Serialize)]
struct Stayed {
    pid: u32,
    command: String,
    mappings: Vec<MappingChange>,
    descriptors: Vec<DescriptorChange>,
    memory: Change,
}

/// A mapping that is not the same in both.
#[derive(Debug, Serialize)]
struct MappingChange {
    start: u64,
    /// Null: it was not there.
    end_before: Option<u64>,
    /// Null: it is gone.
    end_after: Option<u64>,
    kind: MappingKind,
    name: Option<String>,
    #[serde(flatten)]
    memory: Change,
}

/// Memory that one object of shared memory changed.
#[derive(Debug, Serialize)]
struct SharedChange {
    id: u64,
    #[serde(flatten)]
    memory: Change,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct DescriptorChange {
    number: u32,
    before: Option<OneDescriptor>,
    after: Option<OneDescriptor>,
}

/// Bytes of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Change {
    /// Other contents than before.
    changed_bytes: u64,
    /// Held now and not before.
    added_bytes: u64,
    /// Held before and not now.
    removed_bytes: u64,
}

impl Change {
    fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// The pages of one memory image, by address; a page of zeros has no hash.
type Table = Vec<(u64, Option<PageHash>)>;

/// Both snapshots' memory in the same terms.
struct Tables {
    before: BTreeMap<(MemoryKind, u64), Table>,
    after: BTreeMap<(MemoryKind, u64), Table>,
}

pub(super) async fn diff(
    job: &Job,
    before: &Selector,
    after: &Selector,
) -> Result<Compared, Failure> {
    let contained = job.contained().await?;
    let (known_before, known_after) = (job.find(&contained, before)?, job.find(&contained, after)?);
    let before = Anatomy::read(job, &known_before, Values::Masked).await?;
    let after = Anatomy::read(job, &known_after, Values::Masked).await?;
    let (old, new) = (
        &before.snapshot.index.page_key,
        &after.snapshot.index.page_key,
    );
    // Hashes made with different keys say nothing about one another.
    let key = (old != new).then(|| PageKey::fresh(true)).transpose();
    let key = key.map_err(|error| {
        Failure::new(
            super::ExitCode::NotDone,
            "the system has no random numbers to give",
        )
        .caused_by(error)
        .remedy("see the cause")
    })?;
    let tables = Tables {
        before: tables(job, &before, key.as_ref())
            .await
            .map_err(|error| job.unusable(&known_before, error))?,
        after: tables(job, &after, key.as_ref())
            .await
            .map_err(|error| job.unusable(&known_after, error))?,
    };
    Ok(compare(job, &before, &after, &tables))
}

async fn tables(
    job: &Job,
    anatomy: &Anatomy,
    key: Option<&PageKey>,
) -> Result<BTreeMap<(MemoryKind, u64), Table>, Unusable> {
    let snapshot = &anatomy.snapshot;
    let mut found = BTreeMap::new();
    for (number, memory) in snapshot.index.memories.iter().enumerate() {
        let stored = snapshot.find(&known::hashes_name(number));
        let hashes = match (key, stored) {
            (None, Some(file)) => {
                let bytes = snapshot
                    .file(file, Instant::now() + job.restore_limit)
                    .await?;
                known::hashes(&bytes)
            }
            _ => read_hashes(job, anatomy, number, key).await?,
        };
        let mut hashes = hashes.into_iter();
        let mut table = Table::new();
        for segment in &memory.segments {
            for page in 0..u64::from(segment.pages) {
                let hash = segment.block().and_then(|_| hashes.next());
                table.push((segment.vaddr + page * PAGE as u64, hash));
            }
        }
        table.sort_unstable_by_key(|(address, _)| *address);
        found.insert((memory.kind(), memory.id), table);
    }
    Ok(found)
}

/// The hashes of a memory image's pages that are not zeros, from the pages themselves.
async fn read_hashes(
    job: &Job,
    anatomy: &Anatomy,
    number: usize,
    key: Option<&PageKey>,
) -> Result<Vec<PageHash>, Unusable> {
    let snapshot = &anatomy.snapshot;
    let own = PageKey::from_index(&snapshot.index.page_key).unwrap_or_default();
    let key = key.unwrap_or(&own);
    let mut blocks = Blocks::new(snapshot, Instant::now() + job.limit);
    let mut found = Vec::new();
    for segment in &snapshot.index.memories[number].segments {
        let Some(block) = segment.block() else {
            continue;
        };
        blocks.extend(Instant::now() + job.limit);
        let bytes = blocks.get(block).await?;
        let first = segment.first as usize * PAGE;
        let pages = &bytes[first..first + segment.pages as usize * PAGE];
        found.extend(pages.chunks(PAGE).map(|page| key.hash(page)));
    }
    Ok(found)
}

fn compare(job: &Job, before: &Anatomy, after: &Anatomy, tables: &Tables) -> Compared {
    let by_pid = |anatomy: &Anatomy| -> BTreeMap<u32, OneProcess> {
        let all = anatomy.processes.iter().cloned();
        all.map(|process| (process.pid, process)).collect()
    };
    let (old, new) = (by_pid(before), by_pid(after));
    let only = |ours: &BTreeMap<u32, OneProcess>, theirs: &BTreeMap<u32, OneProcess>| {
        let alone = ours.values().filter(|one| !theirs.contains_key(&one.pid));
        alone
            .map(|process| Named {
                pid: process.pid,
                command: process.command.clone(),
                held_bytes: process.memory.held_bytes,
            })
            .collect::<Vec<_>>()
    };
    let both = old
        .values()
        .filter_map(|old| Some((old, new.get(&old.pid)?)));
    let stayed: Vec<Stayed> = both.map(|(old, new)| stayed(old, new, tables)).collect();
    let shared_memory = shared(tables);
    let changed: u64 = stayed
        .iter()
        .map(|process| process.memory)
        .chain(shared_memory.iter().map(|object| object.memory))
        .map(|change| change.changed_bytes + change.added_bytes)
        .sum();
    let started = only(&new, &old);
    let begun: u64 = started.iter().map(|process| process.held_bytes).sum();
    let (earlier, later) = (&before.snapshot.manifest, &after.snapshot.manifest);
    Compared {
        schema: SCHEMA,
        job: job.name.clone(),
        before: earlier.generation,
        after: later.generation,
        elapsed_ms: later.taken_at_ms.saturating_sub(earlier.taken_at_ms),
        ended: only(&old, &new),
        started,
        stayed,
        shared_memory,
        changed_bytes: changed + begun,
    }
}

fn stayed(old: &OneProcess, new: &OneProcess, tables: &Tables) -> Stayed {
    let id = (MemoryKind::Process, u64::from(old.pid));
    let empty = Table::new();
    let (before, after) = (
        tables.before.get(&id).unwrap_or(&empty),
        tables.after.get(&id).unwrap_or(&empty),
    );
    Stayed {
        pid: new.pid,
        command: new.command.clone(),
        mappings: mappings(old, new, before, after),
        descriptors: descriptors(&old.descriptors, &new.descriptors),
        memory: changes(before, after, 0, u64::MAX),
    }
}

fn mappings(
    old: &OneProcess,
    new: &OneProcess,
    before: &Table,
    after: &Table,
) -> Vec<MappingChange> {
    let by_start = |process: &OneProcess| -> BTreeMap<u64, OneMapping> {
        let all = process.mappings.iter().cloned();
        all.map(|mapping| (mapping.start, mapping)).collect()
    };
    let (old, new) = (by_start(old), by_start(new));
    let starts: BTreeSet<u64> = old.keys().chain(new.keys()).copied().collect();
    let all = starts.into_iter().filter_map(|start| {
        let (old, new) = (old.get(&start), new.get(&start));
        let shown = new.or(old)?;
        let end = |mapping: Option<&OneMapping>| mapping.map(|mapping| mapping.end);
        let (end_before, end_after) = (end(old), end(new));
        let memory = changes(before, after, start, end_before.max(end_after)?);
        let is_same = end_before == end_after && memory.is_none();
        (!is_same).then(|| MappingChange {
            start,
            end_before,
            end_after,
            kind: shown.kind,
            name: shown.name.clone(),
            memory,
        })
    });
    all.collect()
}

fn descriptors(old: &[OneDescriptor], new: &[OneDescriptor]) -> Vec<DescriptorChange> {
    let numbers: BTreeSet<u32> = old.iter().chain(new).map(|one| one.number).collect();
    let of = |all: &[OneDescriptor], number| all.iter().find(|one| one.number == number).cloned();
    numbers
        .into_iter()
        .map(|number| DescriptorChange {
            number,
            before: of(old, number),
            after: of(new, number),
        })
        .filter(|change| change.before != change.after)
        .collect()
}

fn shared(tables: &Tables) -> Vec<SharedChange> {
    let empty = Table::new();
    let ids: BTreeSet<_> = tables.before.keys().chain(tables.after.keys()).collect();
    let objects = ids
        .into_iter()
        .filter(|(kind, _)| *kind == MemoryKind::Shared);
    let changed = objects.map(|id| SharedChange {
        id: id.1,
        memory: changes(
            tables.before.get(id).unwrap_or(&empty),
            tables.after.get(id).unwrap_or(&empty),
            0,
            u64::MAX,
        ),
    });
    changed.filter(|change| !change.memory.is_none()).collect()
}

/// Compares the pages between two addresses.
fn changes(before: &Table, after: &Table, start: u64, end: u64) -> Change {
    let range = |table: &Table| {
        let from = table.partition_point(|(address, _)| *address < start);
        let to = table.partition_point(|(address, _)| *address < end);
        from..to
    };
    let (mut old, mut new) = (&before[range(before)], &after[range(after)]);
    let mut change = Change::default();
    let page = PAGE as u64;
    while let (Some(((old_at, old_hash), old_rest)), Some(((new_at, new_hash), new_rest))) =
        (old.split_first(), new.split_first())
    {
        match old_at.cmp(new_at) {
            Ordering::Less => {
                change.removed_bytes += page;
                old = old_rest;
            }
            Ordering::Greater => {
                change.added_bytes += page;
                new = new_rest;
            }
            Ordering::Equal => {
                if old_hash != new_hash {
                    change.changed_bytes += page;
                }
                (old, new) = (old_rest, new_rest);
            }
        }
    }
    change.removed_bytes += old.len() as u64 * page;
    change.added_bytes += new.len() as u64 * page;
    change
}

impl Answer for Compared {
    fn human(&self) -> String {
        let mut text = format!(
            "from generation {} to {}, {} later: {} of memory changed or were added\n",
            self.before,
            self.after,
            text::age(self.elapsed_ms),
            text::bytes(self.changed_bytes)
        );
        for (what, all) in [("started", &self.started), ("ended", &self.ended)] {
            for process in all {
                text.push_str(&format!(
                    "process {} ({}) {what}, {}\n",
                    process.pid,
                    process.command,
                    text::bytes(process.held_bytes)
                ));
            }
        }
        for process in &self.stayed {
            text.push_str(&describe(process));
        }
        for object in &self.shared_memory {
            text.push_str(&format!(
                "shared memory {:x}: {}\n",
                object.id,
                amounts(object.memory)
            ));
        }
        text
    }
}

fn describe(process: &Stayed) -> String {
    if process.memory.is_none() && process.mappings.is_empty() && process.descriptors.is_empty() {
        return format!(
            "process {} ({}): nothing changed\n",
            process.pid, process.command
        );
    }
    let mut text = format!(
        "process {} ({}): {}\n",
        process.pid,
        process.command,
        amounts(process.memory)
    );
    for mapping in &process.mappings {
        let how = match (mapping.end_before, mapping.end_after) {
            (None, _) => ", new",
            (_, None) => ", gone",
            (before, after) if before < after => ", grown",
            (before, after) if before > after => ", shrunk",
            _ => "",
        };
        let end = mapping
            .end_after
            .or(mapping.end_before)
            .unwrap_or(mapping.start);
        text.push_str(&format!(
            "  {:x}-{end:x} {}: {}{how}\n",
            mapping.start,
            mapping.name.clone().unwrap_or_else(|| word(mapping.kind)),
            amounts(mapping.memory)
        ));
    }
    for descriptor in &process.descriptors {
        let say = |one: &Option<OneDescriptor>| match one {
            None => "closed".to_owned(),
            Some(one) => {
                let position = one.position.map(|position| format!(" at {position}"));
                let name = one.name.as_deref().unwrap_or_default();
                format!("{} {name}{}", word(one.kind), position.unwrap_or_default())
            }
        };
        text.push_str(&format!(
            "  descriptor {}: {} -> {}\n",
            descriptor.number,
            say(&descriptor.before),
            say(&descriptor.after)
        ));
    }
    text
}

fn amounts(change: Change) -> String {
    let parts = [
        (change.changed_bytes, "changed"),
        (change.added_bytes, "added"),
        (change.removed_bytes, "removed"),
    ];
    let words: Vec<String> = parts
        .iter()
        .filter(|(bytes, _)| *bytes > 0)
        .map(|(bytes, what)| format!("{} {what}", text::bytes(*bytes)))
        .collect();
    match words.is_empty() {
        true => "no memory changed".to_owned(),
        false => words.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::catalog::Catalog;
    use crate::keys::{Keyring, Secret, Source, Unsealed};
    use crate::store::DirectoryStore;

    /// The snapshots that earlier versions stored, tests/fixtures.rs.
    fn fixtures() -> Vec<PathBuf> {
        let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
        let all = std::fs::read_dir(all).expect("it is there");
        all.map(|one| one.expect("it is there").path()).collect()
    }

    fn job(store: &Path) -> Job {
        let sources = match store.to_string_lossy().contains("sealed") {
            true => vec![Source::Environment(Secret::new(
                b"the passphrase of the fixtures".to_vec(),
            ))],
            false => Vec::new(),
        };
        let keys = Keyring::read(&sources, Unsealed::Accept, None).expect("it is a passphrase");
        let catalog =
            Catalog::with_keys(Arc::new(DirectoryStore::new(store)), "job", Arc::new(keys));
        let limit = Duration::from_secs(60);
        Job::of(catalog, "job".into(), store.display().to_string(), limit)
    }

    #[tokio::test]
    async fn page_hashes_of_every_fixture_are_those_of_its_pages() {
        let mut kinds = BTreeSet::new();
        for store in fixtures() {
            let job = job(&store);
            let contained = job.contained().await.expect("it has a head");
            let newest = job.find(&contained, &Selector::Newest);
            let newest = newest.expect("it has a snapshot");
            let anatomy = Anatomy::read(&job, &newest, Values::Masked).await;
            let anatomy = anatomy.expect("it is sound");
            let index = &anatomy.snapshot.index;
            let key = PageKey::from_index(&index.page_key).expect("its kind is known");
            kinds.insert((index.page_key.len(), anatomy.snapshot.keys.of(0).is_some()));
            // What is stored, and what the pages give.
            let stored = tables(&job, &anatomy, None).await.expect("it is sound");
            let read = tables(&job, &anatomy, Some(&key)).await;
            assert_eq!(stored, read.expect("it is sound"), "{}", store.display());
            let hashes = stored.values().flatten();
            let hashes = hashes.filter(|(_, hash)| hash.is_some()).count();
            assert!(hashes > 10, "{}: {hashes}", store.display());
            assert!(
                (0..index.memories.len())
                    .all(|number| anatomy.snapshot.find(&known::hashes_name(number)).is_some()),
                "{}: they are stored",
                store.display()
            );
        }
        // BLAKE3 without and with a seal, and the tag of AES-GCM, which only sealed jobs have.
        assert_eq!(kinds, BTreeSet::from([(32, false), (32, true), (33, true)]));
    }

    fn table(pages: &[(u64, Option<u8>)]) -> Table {
        pages
            .iter()
            .map(|(page, hash)| (page * PAGE as u64, hash.map(|byte| [byte; 12])))
            .collect()
    }

    #[test]
    fn pages_are_compared_where_they_are() {
        let before = table(&[(1, Some(1)), (2, Some(2)), (3, None), (5, Some(5))]);
        let after = table(&[
            (1, Some(1)),
            (2, Some(9)),
            (3, Some(3)),
            (4, None),
            (9, None),
        ]);
        let pages = |count: u64| count * PAGE as u64;
        assert_eq!(
            changes(&before, &after, 0, u64::MAX),
            Change {
                changed_bytes: pages(2),
                added_bytes: pages(2),
                removed_bytes: pages(1),
            }
        );
        assert!(changes(&before, &after, 0, pages(2)).is_none());
        assert!(changes(&before, &before, 0, u64::MAX).is_none());
    }

    #[test]
    fn descriptors_that_differ_are_told() {
        let file = |number, position| OneDescriptor {
            number,
            kind: crate::images::FileKind::File,
            name: Some("/tmp/log".into()),
            position: Some(position),
        };
        assert_eq!(descriptors(&[file(3, 7)], &[file(3, 7)]), []);
        assert_eq!(
            descriptors(&[file(3, 7), file(4, 0)], &[file(3, 9), file(5, 0)]),
            [
                DescriptorChange {
                    number: 3,
                    before: Some(file(3, 7)),
                    after: Some(file(3, 9)),
                },
                DescriptorChange {
                    number: 4,
                    before: Some(file(4, 0)),
                    after: None,
                },
                DescriptorChange {
                    number: 5,
                    before: None,
                    after: Some(file(5, 0)),
                },
            ]
        );
    }
}
