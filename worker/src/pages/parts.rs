//! Places packed blocks in parts and uploads the parts while more blocks arrive.
//!
//! One task owns the part being filled; a bounded number of full parts is on its way to the store. When all of those
//! are slow, the task stops taking blocks, and everything before it waits in turn: that is how memory stays bounded.
//! The first upload that fails for good ends the task, and whoever sends blocks finds the door closed.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use reprieve_core::manifest::{self, Part};
use reprieve_core::pace::SMALLEST_PART;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::pages::BLOCK;
use crate::pages::codec::Packed;
use crate::pages::index::Block;
use crate::pages::tuning::Tuning;
use crate::store::turns::Turns;
use crate::store::{Condition, Store, StoreError, retry};

/// The size at which a part is sent off, while the store knows no better one.
pub const PART: usize = 8 << 20;

/// Blocks that wait to be placed, at most.
const QUEUE: usize = 8;

/// A packed block and the number it is known by.
pub(crate) struct Numbered {
    pub number: u32,
    pub packed: Packed,
}

/// What was stored.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    pub parts: Vec<Part>,
    /// By block number.
    pub blocks: Vec<Block>,
}

/// A moment that may come closer, or go further away.
#[derive(Clone)]
pub struct Deadline(Arc<dyn Fn() -> Instant + Send + Sync>);

impl Deadline {
    pub(crate) fn new(when: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        Self(Arc::new(when))
    }

    pub(crate) fn now(&self) -> Instant {
        (self.0)()
    }
}

impl From<Instant> for Deadline {
    fn from(at: Instant) -> Self {
        Self::new(move || at)
    }
}

impl std::fmt::Debug for Deadline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Deadline").field(&self.now()).finish()
    }
}

/// Where a snapshot attempt puts its data.
#[derive(Clone, Debug)]
pub struct Destination {
    pub store: Arc<dyn Store>,
    /// The job's prefix, ending in `/`.
    pub root: String,
    pub attempt: String,
    /// Parts of the usual size on their way at once; more if they are smaller, fewer if they are larger.
    pub in_flight: usize,
    /// When every part has to be stored.
    pub deadline: Deadline,
}

impl Destination {
    fn part_bytes(&self, memory: usize) -> usize {
        let wanted = self.store.part_bytes(memory as u64);
        usize::try_from(wanted).map_or(PART, |wanted| wanted.max(1))
    }

    /// Stores one object of the attempt under `data/ATTEMPT/NAME` and describes it, with the digest that its readers need.
    pub(crate) async fn put(
        &self,
        name: &str,
        bytes: Bytes,
        digest: String,
    ) -> Result<Part, StoreError> {
        let begun = OnceLock::new();
        self.put_in_turn(name, bytes, digest, &Turns::new(1), &begun)
            .await
    }

    /// The same for one of many. `begun` is set when it has had its first turn.
    async fn put_in_turn(
        &self,
        name: &str,
        bytes: Bytes,
        digest: String,
        turns: &Turns,
        begun: &OnceLock<Instant>,
    ) -> Result<Part, StoreError> {
        let key = format!("{}{name}", manifest::data_prefix(&self.attempt));
        let part = Part {
            key,
            bytes: bytes.len() as u64,
            digest,
        };
        let full = format!("{}{}", self.root, part.key);
        // Nobody else writes under this attempt, so repeating after a lost reply is harmless.
        retry::retry_in_turn(
            || self.deadline.now(),
            "put",
            turns,
            || {
                begun.get_or_init(Instant::now);
                self.store.put(&full, bytes.clone(), Condition::Always)
            },
        )
        .await?;
        Ok(part)
    }
}

/// Starts the task. It ends when every sender is gone and everything is stored, or with the first failure. The buffers of
/// blocks that were placed go to `spare`.
pub(crate) fn start(
    destination: Destination,
    tuning: Arc<Tuning>,
    spare: Buffers,
) -> (
    mpsc::Sender<Numbered>,
    JoinHandle<Result<Stored, StoreError>>,
) {
    let (sender, blocks) = mpsc::channel(QUEUE);
    (
        sender,
        tokio::spawn(place(destination, tuning, spare, blocks)),
    )
}

/// The same for blocks that nobody wants to keep.
pub(crate) fn throw_away(
    spare: Buffers,
) -> (
    mpsc::Sender<Numbered>,
    JoinHandle<Result<Stored, StoreError>>,
) {
    let (sender, mut blocks) = mpsc::channel::<Numbered>(QUEUE);
    let task = tokio::spawn(async move {
        while let Some(block) = blocks.recv().await {
            spare.give(block.packed.bytes);
        }
        Ok(Stored::default())
    });
    (sender, task)
}

async fn place(
    destination: Destination,
    tuning: Arc<Tuning>,
    spare: Buffers,
    mut blocks: mpsc::Receiver<Numbered>,
) -> Result<Stored, StoreError> {
    let mut stored = Stored::default();
    let buffers = Buffers::default();
    let mut filling: Vec<u8> = Vec::new();
    let mut next_part: u32 = 0;
    // Part sizes may change as the store turns out to be fast or slow; the memory that they take together does not.
    let memory = destination.in_flight.max(1) * (PART + BLOCK);
    // How many there can be if all of them are small.
    let most = memory / usize::try_from(SMALLEST_PART).expect("a few mebibytes");
    let turns = Turns::new(u32::try_from(most).unwrap_or(u32::MAX));
    let mut uploads = FuturesUnordered::new();
    let mut open = true;
    let (mut part, mut uploading) = (PART, 0);
    // Since when something has been on its way that was not told of yet.
    let mut busy: Option<Instant> = None;
    while open || !uploads.is_empty() {
        let has_room = uploading == 0 || uploading + part + BLOCK <= memory;
        tokio::select! {
            Some(done) = uploads.next(), if !uploads.is_empty() => {
                let bytes = stored.accept(done)?;
                turns.want(tuning.streams());
                uploading -= bytes;
                let now = Instant::now();
                if let Some(since) = busy.replace(now) {
                    tuning.carried(bytes, now - since);
                }
                if uploads.is_empty() {
                    busy = None;
                }
            }
            block = blocks.recv(), if open && has_room => {
                match block {
                    Some(block) => {
                        if filling.capacity() == 0 {
                            part = destination.part_bytes(memory);
                            // A block longer than needed rather than grown by doubling.
                            filling = buffers.take(part + BLOCK);
                        }
                        spare.give(stored.place(block, next_part, &mut filling));
                    }
                    None => open = false,
                }
                if filling.len() >= part || (!open && !filling.is_empty()) {
                    let bytes = buffers.lend(std::mem::take(&mut filling));
                    uploading += bytes.len();
                    busy.get_or_insert_with(Instant::now);
                    turns.want(tuning.streams());
                    uploads.push(upload(&destination, &tuning, &turns, next_part, bytes));
                    next_part += 1;
                }
            }
        }
    }
    Ok(stored)
}

/// Buffers that were used, to be filled again: to get new memory from the system, page by page, takes longer than
/// to copy into it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    pub(crate) fn take(&self, capacity: usize) -> Vec<u8> {
        // One that is too small goes, so that there are never more of them than were in use at once.
        match self.lock().pop() {
            Some(buffer) if buffer.capacity() >= capacity => buffer,
            _ => Vec::with_capacity(capacity),
        }
    }

    /// The contents; when they are dropped, the buffer is back.
    fn lend(&self, filled: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent(filled, self.clone()))
    }

    fn give(&self, mut used: Vec<u8>) {
        used.clear();
        self.lock().push(used);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

struct Lent(Vec<u8>, Buffers);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.1.give(std::mem::take(&mut self.0));
    }
}

async fn upload(
    destination: &Destination,
    tuning: &Tuning,
    turns: &Turns,
    number: u32,
    bytes: Bytes,
) -> Result<(u32, Part), StoreError> {
    let (begun, length) = (OnceLock::new(), bytes.len());
    let part = destination
        // Each of its blocks is verified by itself.
        .put_in_turn(&format!("{number:06}"), bytes, String::new(), turns, &begun)
        .await?;
    let took = begun.get().map_or(Duration::ZERO, Instant::elapsed);
    tuning.uploaded(length, took);
    Ok((number, part))
}

impl Stored {
    /// The number of bytes that are on their way no more.
    fn accept(&mut self, done: Result<(u32, Part), StoreError>) -> Result<usize, StoreError> {
        let (number, part) = done?;
        let bytes = usize::try_from(part.bytes).expect("it was in memory");
        let number = number as usize;
        if self.parts.len() <= number {
            let unknown = Part {
                key: String::new(),
                bytes: 0,
                digest: String::new(),
            };
            self.parts.resize(number + 1, unknown);
        }
        self.parts[number] = part;
        Ok(bytes)
    }

    /// Gives the block's buffer back.
    fn place(&mut self, block: Numbered, part: u32, filling: &mut Vec<u8>) -> Vec<u8> {
        let Numbered { number, packed } = block;
        let number = number as usize;
        if self.blocks.len() <= number {
            self.blocks.resize(number + 1, Block::default());
        }
        self.blocks[number] = packed.placed(part, filling.len() as u64);
        filling.extend_from_slice(&packed.bytes);
        packed.bytes
    }
}
