//! Stores a running app's memory ahead, so that the next dump finds it known and only what changed since is left to do.
//!
//! Nothing is frozen and nothing is tracked: pages are copied out of the living processes, hashed as a dump hashes them,
//! and compared with what is in the store. A page that is new is stored at once; one that changed is only remembered, and
//! stored when it is found the same again, so that what changes all the time is not stored all the time. A copy may be of
//! a page in the middle of a change, or of one that is gone a moment later; that does no harm, because the dump compares
//! every page again and refers only to bytes that are the same.
//!
//! ```text
//!  /proc/PID/pagemap ─▶ copy ─▶ zero? same? ─▶ block ─▶ part ─▶ store        one thread, niced, within its budgets
//!                                 │                        └─▶ known to the next dump, once it is stored
//!                                 └─▶ seen: looked at again in the next pass
//! ```
//!
//! Only private memory of processes is looked at: shared memory has a number that CRIU makes up at the dump. What is
//! swapped out stays there. In memory are one part and the table of hashes.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::pages::capture::{Slab, is_zero};
use crate::pages::codec::{self, Effort, Packer};
use crate::pages::fingerprint::PageHash;
use crate::pages::index::{Block, MemoryKind};
use crate::pages::known::{Known, KnownMemory};
use crate::pages::parts::{Destination, PART};
use crate::pages::seal::AttemptKey;
use crate::pages::tuning::processor_time;
use crate::pages::{BLOCK, BLOCK_PAGES, PAGE};
use crate::store::StoreError;

/// Pages whose presence is asked for at once.
const WINDOW: u64 = 4096;

/// How long storing one part may take before the pass is given up.
const PART_LIMIT: Duration = Duration::from_secs(60);

/// A budget that is behind by less is not waited for.
const LEAST_PAUSE: Duration = Duration::from_millis(5);

/// Before packing, all that is stored ahead for one snapshot may be this many times as large as the memory it is of.
const MOST: u64 = 2;

/// A job with less memory is stored whole each time.
const LEAST: u64 = 32 << 20;

/// /proc/PID/pagemap, Documentation/admin-guide/mm/pagemap.rst.
mod pagemap {
    pub(super) const PRESENT: u64 = 1 << 63;
    /// Of a file, or shared: CRIU does not take it from the process.
    pub(super) const FILE_OR_SHARED: u64 = 1 << 61;
}

/// What one pass may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budgets {
    /// Stored bytes per second.
    pub bandwidth: u64,
    /// Of one processor.
    pub cpu_percent: u32,
}

impl Budgets {
    /// All there is.
    pub(crate) const NONE: Self = Self {
        bandwidth: u64::MAX,
        cpu_percent: 100,
    };
}

/// How far a pass came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Whole,
    /// Something more important is to be done.
    Stopped,
}

/// What a pass found and did, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    pub ended: Ended,
    /// In memory and not zero.
    pub looked_at: u64,
    /// Of it, stored by this pass.
    pub seeded: u64,
    /// Of it, not in the store as it was found.
    pub unseeded: u64,
    /// Of it, left out because [`MOST`] was stored ahead already.
    pub refused: u64,
    /// Written to the store.
    pub stored: u64,
    /// How long that was under way, one part after the other.
    pub storing: Duration,
    /// In the job and not looked at: shared, swapped out, or of a process that could not be looked at.
    pub unseen: u64,
}

/// Why a pass was given up. What it had stored before is known all the same.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeedError {
    #[error("a part could not be stored")]
    Store(#[from] StoreError),
    #[error("cannot pack memory")]
    Pack(#[source] io::Error),
}

impl Report {
    /// Whether no more may be stored ahead for this snapshot while most of what was stored is of no use any more.
    pub(crate) fn is_used_up(&self) -> bool {
        self.ended == Ended::Whole && self.refused > 0 && self.unseeded > self.looked_at / 2
    }
}

/// What is in the store of the app's memory, across passes.
#[derive(Debug)]
pub(crate) struct Bed {
    pub known: Arc<Known>,
    next_part: u32,
    /// Bytes before packing.
    seeded: u64,
    key: Option<Arc<AttemptKey>>,
    /// The number of the next block, as it is sealed. None is given twice, also when its part was never stored: the
    /// position of a block may be, and must not be what it is sealed with ([`crate::pages::seal`]).
    next_block: u32,
}

impl Bed {
    pub(crate) fn new(known: Known, key: Option<Arc<AttemptKey>>) -> Self {
        Self {
            known: Arc::new(known),
            next_part: 0,
            seeded: 0,
            key,
            next_block: 0,
        }
    }
}

/// One look at all of the app's memory. Blocks the calling thread, which should be one that nobody waits for.
pub(crate) struct Pass<'a> {
    known: &'a mut Known,
    next_part: &'a mut u32,
    next_block: &'a mut u32,
    /// Across passes.
    seeded: &'a mut u64,
    /// The memory that the processes had when the pass began.
    resident: u64,
    destination: &'a Destination,
    budgets: Budgets,
    runtime: Handle,
    stop: watch::Receiver<bool>,
    packer: Packer,
    clocks: Clocks,
    /// A part in the making: its bytes and its blocks, whose numbers go on behind the known ones.
    part: Vec<u8>,
    blocks: Vec<Block>,
    /// A block in the making, and a buffer for the packed one.
    block: Vec<u8>,
    spare: Vec<u8>,
    /// What was found out about each process.
    found: Vec<(u64, Looked)>,
    report: Report,
}

/// One process's memory in this pass.
#[derive(Default)]
struct Looked {
    /// Pages that were stored or have to be looked at again.
    fresh: KnownMemory,
    /// What was mapped, if all of it was looked at.
    mapped: Option<Vec<Range<u64>>>,
}

struct Clocks {
    begun: Instant,
    cpu: Duration,
}

/// A reason to end the pass early.
enum Stop {
    Asked,
    Failed(SeedError),
}

impl<'a> Pass<'a> {
    pub(crate) fn new(
        bed: &'a mut Bed,
        destination: &'a Destination,
        effort: Effort,
        budgets: Budgets,
        stop: watch::Receiver<bool>,
        runtime: Handle,
    ) -> Result<Option<Self>, SeedError> {
        let Bed {
            known,
            next_part,
            seeded,
            key,
            next_block,
        } = bed;
        // A checkpoint that was given up may still be about to let go of it.
        let Some(known) = Arc::get_mut(known) else {
            return Ok(None);
        };
        Ok(Some(Self {
            packer: Packer::new(effort, key.clone()).map_err(SeedError::Pack)?,
            clocks: Clocks {
                begun: Instant::now(),
                cpu: processor_time(),
            },
            known,
            next_part,
            next_block,
            seeded,
            resident: LEAST,
            destination,
            budgets,
            runtime,
            stop,
            part: Vec::new(),
            blocks: Vec::new(),
            block: Vec::with_capacity(codec::room()),
            spare: Vec::with_capacity(codec::room()),
            found: Vec::new(),
            report: Report {
                ended: Ended::Whole,
                looked_at: 0,
                seeded: 0,
                unseeded: 0,
                refused: 0,
                stored: 0,
                storing: Duration::ZERO,
                unseen: 0,
            },
        }))
    }

    /// Whether these processes have so much memory that storing it ahead is worth something.
    pub(crate) fn is_worth_it(pids: &[i32]) -> bool {
        resident(pids) >= LEAST
    }

    /// Looks at the memory of these processes; those that end meanwhile are left out.
    pub(crate) fn run(mut self, pids: &[i32]) -> Result<Report, SeedError> {
        self.resident = resident(pids).max(LEAST);
        let done = pids
            .iter()
            .try_for_each(|pid| self.process(*pid))
            .and_then(|()| self.close());
        if let Ok(()) = done {
            let is_left = |&(kind, id): &(MemoryKind, u64)| {
                kind != MemoryKind::Process || pids.iter().any(|pid| u64::try_from(*pid) == Ok(id))
            };
            self.known.retain(is_left);
        }
        let is_seen = |pid: &&i32| {
            let looked = self.found.iter().rev();
            let mut looked = looked.filter(|(id, _)| u64::try_from(**pid) == Ok(*id));
            looked.next().is_some_and(|(_, of)| of.mapped.is_some())
        };
        let (seen, unseen): (Vec<i32>, Vec<i32>) = pids.iter().partition(is_seen);
        self.report.unseen =
            figures(&seen, &OTHERS) + figures(&unseen, &OTHERS) + resident(&unseen);
        // What did not get as far as the store was only seen.
        let stored = self.known.blocks.len();
        for (pid, Looked { fresh, mapped }) in self.found {
            let memory = (MemoryKind::Process, pid);
            let fresh = fresh.stored_below(stored);
            self.known.lay_over(memory, fresh, mapped.as_deref());
        }
        match done {
            Ok(()) => Ok(self.report),
            Err(Stop::Asked) => Ok(Report {
                ended: Ended::Stopped,
                ..self.report
            }),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    fn process(&mut self, pid: i32) -> Result<(), Stop> {
        let Some(mappings) = mappings(pid) else {
            return Ok(());
        };
        let Ok(pagemap) = File::open(format!("/proc/{pid}/pagemap")) else {
            return Ok(());
        };
        let id = u64::try_from(pid).expect("process ids are positive");
        self.found.push((id, Looked::default()));
        let mut slab = Slab::new();
        for mapping in &mappings {
            let mut at = mapping.start;
            while at < mapping.end {
                let end = mapping.end.min(at + WINDOW * PAGE as u64);
                let Some(present) = present(&pagemap, at..end) else {
                    // It has ended.
                    return Ok(());
                };
                for batch in present.chunks(BLOCK_PAGES) {
                    if !self.look_at(pid, batch, &mut slab)? {
                        return Ok(());
                    }
                }
                self.keep_to_the_budget(0)?;
                at = end;
            }
        }
        if let Some((_, looked)) = self.found.last_mut() {
            looked.mapped = Some(mappings);
        }
        Ok(())
    }

    /// Whether the process is still there.
    fn look_at(&mut self, pid: i32, addresses: &[u64], slab: &mut Slab) -> Result<bool, Stop> {
        let mut left = addresses;
        while !left.is_empty() {
            let copied = match copy(pid, left, slab) {
                Ok(copied) => copied,
                Err(Errno::ESRCH) => return Ok(false),
                // This page is not there any more; the ones behind it may be.
                Err(_) => 0,
            };
            for (number, vaddr) in left[..copied].iter().enumerate() {
                self.look_at_page(slab.page(number), *vaddr)?;
            }
            left = &left[copied.max(1)..];
        }
        self.keep_to_the_budget(0)?;
        Ok(true)
    }

    fn look_at_page(&mut self, page: &[u8], vaddr: u64) -> Result<(), Stop> {
        if is_zero(page) {
            return Ok(());
        }
        self.report.looked_at += PAGE as u64;
        let now = self.known.key.hash(page);
        let (pid, _) = self.found.last().expect("a process is looked at");
        let before = self.known.seen((MemoryKind::Process, *pid), vaddr);
        match before {
            Some((hash, true)) if hash == now => Ok(()),
            // It changes; whether it goes on doing so will be seen.
            Some((hash, _)) if hash != now => {
                self.report.unseeded += PAGE as u64;
                self.remember(vaddr, now, 0, 0);
                Ok(())
            }
            _ if *self.seeded >= self.most() => {
                self.report.unseeded += PAGE as u64;
                self.report.refused += PAGE as u64;
                Ok(())
            }
            _ => self.store(page, vaddr, now),
        }
    }

    /// What may be stored before the next snapshot. The job may have grown since the pass began: memory that is there to be
    /// looked at counts.
    fn most(&self) -> u64 {
        MOST * self.resident.max(self.report.looked_at)
    }

    fn remember(&mut self, vaddr: u64, hash: PageHash, source: u32, first: u32) {
        if let Some((_, looked)) = self.found.last_mut() {
            looked.fresh.push(vaddr, hash, source, first);
        }
    }

    fn store(&mut self, page: &[u8], vaddr: u64, hash: PageHash) -> Result<(), Stop> {
        let number = self.known.blocks.len() + self.blocks.len();
        let number = u32::try_from(number).expect("blocks have 32-bit numbers");
        let first = u32::try_from(self.block.len() / PAGE).expect("a block has few pages");
        self.remember(vaddr, hash, number + 1, first);
        self.block.extend_from_slice(page);
        self.report.seeded += PAGE as u64;
        *self.seeded += PAGE as u64;
        if self.block.len() == BLOCK {
            self.close_block()?;
        }
        Ok(())
    }

    /// Stores what is left at the end. Less than a block waits for the next pass: an object of a few bytes is worth its
    /// request only to a checkpoint.
    fn close(&mut self) -> Result<(), Stop> {
        if self.part.is_empty() && self.block.len() < BLOCK {
            let left = self.block.len() as u64;
            self.block.clear();
            *self.seeded -= left;
            self.report.seeded -= left;
            self.report.unseeded += left;
            return Ok(());
        }
        self.close_block()?;
        self.close_part()
    }

    fn close_block(&mut self) -> Result<(), Stop> {
        if self.block.is_empty() {
            return Ok(());
        }
        let number = *self.next_block;
        *self.next_block = number
            .checked_add(1)
            .expect("a petabyte of blocks is more than any memory");
        let spare = std::mem::take(&mut self.spare);
        let packed = self.packer.pack(number, &mut self.block, spare);
        let packed = packed.map_err(|error| Stop::Failed(SeedError::Pack(error)))?;
        let part = u32::try_from(self.known.parts.len()).expect("parts are few");
        if self.part.capacity() == 0 {
            self.part.reserve_exact(PART + BLOCK);
        }
        self.blocks
            .push(packed.placed(part, self.part.len() as u64));
        self.part.extend_from_slice(&packed.bytes);
        self.spare = packed.bytes;
        if self.part.len() >= PART {
            self.close_part()?;
        }
        Ok(())
    }

    fn close_part(&mut self) -> Result<(), Stop> {
        if self.part.is_empty() {
            return Ok(());
        }
        let bytes = Bytes::from(std::mem::take(&mut self.part));
        let length = bytes.len() as u64;
        let destination = Destination {
            deadline: (tokio::time::Instant::now() + PART_LIMIT).into(),
            ..self.destination.clone()
        };
        let name = format!("{:06}", self.next_part);
        // Its name is not used again, whatever becomes of it.
        *self.next_part += 1;
        let stop = &mut self.stop;
        let begun = Instant::now();
        let put = self.runtime.block_on(async {
            tokio::select! {
                put = destination.put(&name, bytes, String::new()) => Some(put),
                _ = stop.wait_for(|stop| *stop) => None,
            }
        });
        let part = put.ok_or(Stop::Asked)?;
        let part = part.map_err(|error| Stop::Failed(error.into()))?;
        self.known.parts.push(part);
        self.known.blocks.append(&mut self.blocks);
        self.report.stored += length;
        self.report.storing += begun.elapsed();
        self.keep_to_the_budget(length)
    }

    /// Waits until what was used so far is within the budgets, and listens whether to stop.
    fn keep_to_the_budget(&mut self, just_stored: u64) -> Result<(), Stop> {
        let cpu = processor_time().saturating_sub(self.clocks.cpu);
        let share = f64::from(self.budgets.cpu_percent.clamp(1, 100)) / 100.0;
        let mut due = cpu.div_f64(share);
        if just_stored > 0 {
            let rate = self.budgets.bandwidth.max(1) as f64;
            due = due.max(Duration::from_secs_f64(self.report.stored as f64 / rate));
        }
        let pause = due.saturating_sub(self.clocks.begun.elapsed());
        if pause > LEAST_PAUSE {
            let stop = &mut self.stop;
            // Whether it is time or the word to stop that comes is looked at below.
            // Made inside the runtime: a timer cannot be made on a thread that has none.
            let paused = async { timeout(pause, stop.wait_for(|stop| *stop)).await.is_ok() };
            self.runtime.block_on(paused);
        }
        // Whoever could say so is gone: then so is the reason to go on.
        if *self.stop.borrow() || self.stop.has_changed().is_err() {
            Err(Stop::Asked)
        } else {
            Ok(())
        }
    }
}

/// Bytes of memory that these processes have for themselves.
fn resident(pids: &[i32]) -> u64 {
    figures(pids, &["RssAnon:"])
}

/// What of their memory a look leaves out.
const OTHERS: [&str; 2] = ["RssShmem:", "VmSwap:"];

/// The sum of these lines of /proc/PID/status, in bytes.
fn figures(pids: &[i32], names: &[&str]) -> u64 {
    let of = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let value = |line: &str| {
            let mut names = names.iter();
            let value = names.find_map(|name| line.strip_prefix(name))?;
            value.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        };
        status.lines().filter_map(value).sum::<u64>()
    };
    pids.iter().map(of).sum::<u64>() * 1024
}

/// A process's private mappings, by address; none if it has ended, or is in a PID namespace of its own, where CRIU
/// knows it by another number.
fn mappings(pid: i32) -> Option<Vec<Range<u64>>> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    if numbers.split_whitespace().count() != 1 {
        return None;
    }
    let maps = std::fs::read(format!("/proc/{pid}/maps")).ok()?;
    Some(
        String::from_utf8_lossy(&maps)
            .lines()
            .filter_map(parse_mapping)
            .collect(),
    )
}

fn parse_mapping(line: &str) -> Option<Range<u64>> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let rights = words.next()?;
    let name = words.nth(3).unwrap_or_default();
    let is_ours =
        rights.ends_with('p') && !matches!(name, "[vvar]" | "[vvar_vclock]" | "[vsyscall]");
    let address = |text| u64::from_str_radix(text, 16).ok();
    is_ours.then_some(address(start)?..address(end)?)
}

/// The addresses of pages in this range that are in memory and the process's own; nothing if it has ended.
fn present(pagemap: &File, range: Range<u64>) -> Option<Vec<u64>> {
    let pages = usize::try_from((range.end - range.start) / PAGE as u64).ok()?;
    let mut bytes = vec![0; pages * 8];
    let mut filled = 0;
    while filled < bytes.len() {
        let from = range.start / PAGE as u64 * 8 + filled as u64;
        match pagemap.read_at(&mut bytes[filled..], from) {
            // A process that has ended has no pages.
            Ok(0) | Err(_) => return None,
            Ok(count) => filled += count,
        }
    }
    let (entries, _) = bytes.as_chunks::<8>();
    let is_present = |(number, entry): (usize, &[u8; 8])| {
        let bits = u64::from_ne_bytes(*entry);
        let wanted = bits & (pagemap::PRESENT | pagemap::FILE_OR_SHARED) == pagemap::PRESENT;
        wanted.then(|| range.start + (number * PAGE) as u64)
    };
    Some(entries.iter().enumerate().filter_map(is_present).collect())
}

/// Copies pages to the beginning of the slab. Fewer than asked for if one of them is not there any more.
fn copy(pid: i32, addresses: &[u64], slab: &mut Slab) -> Result<usize, Errno> {
    let remote: Vec<RemoteIoVec> = addresses
        .iter()
        .map(|address| RemoteIoVec {
            base: usize::try_from(*address).expect("an address fits a word"),
            len: PAGE,
        })
        .collect();
    let length = addresses.len() * PAGE;
    let mut local = [IoSliceMut::new(&mut slab.free()[..length])];
    Ok(process_vm_readv(Pid::from_raw(pid), &mut local, &remote)? / PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::again;
    use crate::keys::MasterKey;
    use crate::pages::fingerprint::PageKey;

    use crate::store::unreliable::{Fault, Occurrence, Operation, Release};
    use crate::store::{DirectoryStore, StoreErrorKind, UnreliableStore};

    /// Memory of this very process that nobody else writes to.
    struct Region(nix::libc::c_int, Vec<u8>);

    impl Region {
        fn new(mib: usize) -> Self {
            let mut region = Self::empty(mib);
            fill(&mut region.1);
            region
        }

        /// Mapped, and not in memory before it is written to.
        fn empty(mib: usize) -> Self {
            Self(nix::unistd::getpid().as_raw(), vec![0; mib << 20])
        }

        fn pages(&self) -> impl Iterator<Item = (u64, &[u8])> {
            let start = self.1.as_ptr() as usize;
            let first = start.next_multiple_of(PAGE) - start;
            let whole = self.1[first..].chunks_exact(PAGE);
            whole
                .enumerate()
                .map(move |(at, page)| ((start + first + at * PAGE) as u64, page))
        }

        /// How many of its pages a dump would find in the store.
        fn found(&self, known: &Known) -> usize {
            let memory = (
                MemoryKind::Process,
                u64::try_from(self.0).expect("positive"),
            );
            self.pages()
                .filter(|(vaddr, page)| known.find(memory, *vaddr, &known.key.hash(page)).is_some())
                .count()
        }
    }

    fn fill(bytes: &mut [u8]) {
        blake3::Hasher::new().finalize_xof().fill(bytes);
    }

    struct Garden {
        directory: tempfile::TempDir,
        store: UnreliableStore,
        runtime: tokio::runtime::Runtime,
        stop: watch::Sender<bool>,
        bed: Bed,
    }

    impl Garden {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("temporary directory");
            let store = UnreliableStore::new(Arc::new(DirectoryStore::new(directory.path())));
            Self {
                directory,
                store,
                runtime: tokio::runtime::Builder::new_multi_thread()
                    .enable_all()
                    .build()
                    .expect("threads"),
                stop: watch::Sender::new(false),
                bed: Bed::new(
                    Known::nothing(PageKey::fresh(true).expect("random bytes")),
                    None,
                ),
            }
        }

        fn pass(&mut self, pids: &[i32]) -> Result<Report, SeedError> {
            let destination = Destination {
                store: Arc::new(self.store.clone()),
                root: "job/".into(),
                attempt: "01J00000000000000000000000".into(),
                in_flight: 1,
                deadline: tokio::time::Instant::now().into(),
            };
            let stop = self.stop.subscribe();
            let runtime = self.runtime.handle().clone();
            let pass = Pass::new(
                &mut self.bed,
                &destination,
                Effort::Zstd(-1),
                Budgets::NONE,
                stop,
                runtime,
            )?;
            pass.expect("nobody else has the table").run(pids)
        }

        fn parts(&self) -> usize {
            let data = self
                .directory
                .path()
                .join("job/data/01J00000000000000000000000");
            std::fs::read_dir(data).map_or(0, Iterator::count)
        }
    }

    /// Runs a test in a process of its own: how much may be stored follows from all the memory of the process, and others have
    /// theirs in this one. Whether this is that process.
    fn is_alone(test: &str) -> bool {
        const ALONE: &str = "REPRIEVE_TEST_ALONE";
        if std::env::var_os(ALONE).is_some() {
            return true;
        }
        let mut command = again::command(module_path!(), test);
        let output = command
            .env(ALONE, "1")
            .output()
            .expect("this binary starts");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        false
    }

    #[test]
    fn a_second_look_stores_what_changed_and_stayed() {
        if !is_alone("a_second_look_stores_what_changed_and_stayed") {
            return;
        }
        let mut region = Region::new(48);
        let mut garden = Garden::new();
        let pids = [region.0];
        let first = garden.pass(&pids).expect("it is stored");
        let all = region.pages().count();
        assert_eq!(first.ended, Ended::Whole);
        assert!(first.seeded >= 48 << 20, "{first:?}");
        // Neighbours in the heap may share the first and the last page.
        assert!(region.found(&garden.bed.known) >= all - 2);
        let middle = region.1.len() / 2;
        region.1[middle..middle + BLOCK].fill(7);
        let changed = BLOCK_PAGES - 1;
        assert!(region.found(&garden.bed.known) <= all - changed);
        let second = garden.pass(&pids).expect("it is stored");
        assert!(second.unseeded > 0, "{second:?}");
        assert!(
            region.found(&garden.bed.known) <= all - changed,
            "it changes"
        );
        let third = garden.pass(&pids).expect("it is stored");
        let found = region.found(&garden.bed.known);
        assert!(found >= all - 2, "it stayed: {found} of {all}, {third:?}");
        assert_eq!(garden.parts(), garden.bed.known.parts.len());
    }

    #[test]
    fn a_job_that_grows_during_the_pass_is_stored_as_a_whole() {
        if !is_alone("a_job_that_grows_during_the_pass_is_stored_as_a_whole") {
            return;
        }
        let mut region = Region::empty(256);
        let mut garden = Garden::new();
        fill(&mut region.1[..48 << 20]);
        let release = Release::default();
        let hanging = Fault::Hanging(release.clone());
        garden
            .store
            .fail(Operation::Put, "", Occurrence::Nth(1), hanging);
        let (store, pid) = (garden.store.clone(), region.0);
        let passed = std::thread::scope(|scope| {
            let pass = scope.spawn(|| garden.pass(&[pid]));
            while store.calls().is_empty() {
                std::thread::yield_now();
            }
            fill(&mut region.1[48 << 20..]);
            release.release();
            pass.join().expect("it does not panic")
        });
        let passed = passed.expect("it is stored");
        assert_eq!(passed.refused, 0, "{passed:?}");
        assert!(region.found(&garden.bed.known) >= region.pages().count() - 2);
    }

    #[test]
    fn what_may_be_stored_is_used_up_once_most_of_it_is_of_no_use() {
        let report = |unseeded, refused| Report {
            ended: Ended::Whole,
            looked_at: 100,
            seeded: 0,
            unseeded,
            refused,
            stored: 0,
            storing: Duration::ZERO,
            unseen: 0,
        };
        for (report, is_used_up) in [
            (report(60, 60), true),
            (report(60, 1), true),
            (report(50, 50), false),
            // It changes all the time, and there is room for more.
            (report(100, 0), false),
            (report(0, 0), false),
        ] {
            assert_eq!(report.is_used_up(), is_used_up, "{report:?}");
        }
        let stopped = Report {
            ended: Ended::Stopped,
            ..report(60, 60)
        };
        assert!(!stopped.is_used_up());
    }

    #[test]
    fn what_a_failing_store_did_not_take_is_not_known() {
        let region = Region::new(64);
        let mut garden = Garden::new();
        let key = AttemptKey::fresh(
            &MasterKey::for_tests(1),
            "job",
            "01J00000000000000000000000",
        );
        garden.bed.key = Some(Arc::new(key.expect("random bytes").0));
        garden.store.fail(
            Operation::Put,
            "",
            Occurrence::From(3),
            Fault::Refused(StoreErrorKind::Denied),
        );
        garden.pass(&[region.0]).expect_err("the store refuses");
        let found = region.found(&garden.bed.known);
        assert!(found > 0 && found < region.pages().count(), "{found}");
        assert_eq!(garden.bed.known.parts.len(), 2);
        let kept = garden.bed.known.blocks.len();
        let used = garden.bed.next_block;
        assert!(
            used as usize > kept,
            "what was sealed and not stored has numbers, too"
        );
        garden.store.recover();
        garden.pass(&[region.0]).expect("it is stored");
        garden.pass(&[region.0]).expect("it is stored");
        assert!(region.found(&garden.bed.known) >= region.pages().count() - 2);
        // A number is never sealed with twice, whatever was not stored in between.
        let numbers: Vec<u32> = garden
            .bed
            .known
            .blocks
            .iter()
            .map(|block| block.number)
            .collect();
        assert!(
            numbers.windows(2).all(|pair| pair[0] < pair[1]),
            "{numbers:?}"
        );
        assert_eq!(numbers[kept], used);
    }

    #[test]
    fn a_pass_ends_when_it_is_told_to_and_what_is_stored_is_known() {
        let region = Region::new(48);
        let mut garden = Garden::new();
        garden.stop.send_replace(true);
        let report = garden.pass(&[region.0]).expect("it is no failure");
        assert_eq!(report.ended, Ended::Stopped);
        assert_eq!(garden.parts(), garden.bed.known.parts.len());
    }

    #[test]
    fn processes_that_are_not_there_are_left_out() {
        let region = Region::new(48);
        let mut garden = Garden::new();
        let mut gone = std::process::Command::new("true")
            .spawn()
            .expect("it starts");
        let pid = i32::try_from(gone.id()).expect("it fits");
        gone.wait().expect("it ends");
        let report = garden.pass(&[pid, region.0, i32::MAX]).expect("no failure");
        assert_eq!(report.ended, Ended::Whole);
        assert!(region.found(&garden.bed.known) > 0);
    }

    #[test]
    fn only_private_mappings_count() {
        let line = "7f00-7f02 rw-p 00000000 00:00 0 ";
        assert_eq!(parse_mapping(line), Some(0x7f00..0x7f02));
        let line = "7f00-7f02 r-xp 00001000 fe:00 1234    /usr/lib/with space.so";
        assert_eq!(parse_mapping(line), Some(0x7f00..0x7f02));
        for line in [
            "7f00-7f02 rw-s 00000000 00:01 5  /dev/zero (deleted)",
            "7f00-7f02 r--p 00000000 00:00 0  [vvar]",
            "nonsense",
        ] {
            assert_eq!(parse_mapping(line), None, "{line}");
        }
    }
}
