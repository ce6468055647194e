//! Fetches an image's blocks before they are needed: several requests are on their way while one block is being read.
//!
//! The order in which an image needs its blocks is known beforehand. What is needed soon and lies side by side in a part
//! is fetched in one request, verified, opened and unpacked by a task of its own, so that requests overlap with each other
//! and with the unpacking of those before. How much may be in memory until CRIU has taken it is bounded for all images together
//! by one [room](Ahead::new). An image that finds no room still gets the block it waits for, once the one before has gone, and
//! nothing beyond: CRIU reads the images of many processes at once, and must not wait for one that it does not read.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::pages::load::{FETCH, KEPT, Snapshot, Unusable};

/// How far ahead is looked, in blocks that are needed.
const WINDOW: usize = 1024;

/// Of them, those that are fetched in the same request if they lie side by side.
const NEAR: usize = 64;

/// Room is counted in these.
const KIB: u64 = 1024;

/// Requests that are under way at once, of all images together: each takes buffers of its own on the way.
const REQUESTS: usize = 8;

/// What all images of a restore share.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    memory: Arc<Semaphore>,
    requests: Arc<Semaphore>,
}

impl Room {
    /// For so many bytes.
    pub(crate) fn new(bytes: u64) -> Self {
        let kib = usize::try_from(bytes / KIB).unwrap_or(usize::MAX);
        Self {
            memory: Arc::new(Semaphore::new(kib.min(Semaphore::MAX_PERMITS))),
            requests: Arc::new(Semaphore::new(REQUESTS)),
        }
    }
}

/// The blocks of one image, in the order in which they are needed.
pub(crate) struct Ahead {
    snapshot: Arc<Snapshot>,
    deadline: Instant,
    room: Room,
    /// For the one block that is fetched without room.
    last_resort: Arc<Semaphore>,
    alone: Option<u32>,
    needed: Vec<u32>,
    /// The first of `needed` that was not asked for yet.
    at: usize,
    /// The first of `needed` that was not looked at yet.
    looked: usize,
    fetches: HashMap<usize, Fetch>,
    /// Numbers the fetches.
    begun: usize,
    held: HashMap<u32, Held>,
    /// Blocks that were used, oldest first. Neighbours are often read in turn.
    used: VecDeque<u32>,
}

struct Fetch {
    task: JoinHandle<Result<Vec<(usize, Bytes)>, Unusable>>,
    room: OwnedSemaphorePermit,
}

enum Held {
    /// By this fetch.
    Coming(usize),
    Here(Bytes),
}

/// A block in the room of its fetch, whose blocks may lie in one piece of memory: it is free when the last one has gone.
struct Housed {
    bytes: Bytes,
    _room: Arc<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Housed {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        for fetch in self.fetches.values() {
            fetch.task.abort();
        }
    }
}

impl Ahead {
    /// `needed` are positions in the index, each of which is then asked for once and in this order.
    pub(crate) fn new(
        snapshot: Arc<Snapshot>,
        needed: Vec<u32>,
        room: Room,
        deadline: Instant,
    ) -> Self {
        Self {
            snapshot,
            deadline,
            room,
            last_resort: Arc::new(Semaphore::new(1)),
            alone: None,
            needed,
            at: 0,
            looked: 0,
            fetches: HashMap::new(),
            begun: 0,
            held: HashMap::new(),
            used: VecDeque::new(),
        }
    }

    /// The verified, unpacked bytes of the next block; nothing behind the last one. Whoever asks for it has let go of the
    /// one before, or will without asking again.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Unusable> {
        let Some(&number) = self.needed.get(self.at) else {
            self.held.clear();
            return Ok(None);
        };
        self.look_ahead();
        if !self.held.contains_key(&number) {
            self.forget_alone();
            let room = match self.make_room(number) {
                Some(room) => room,
                None => self.find_room(number).await,
            };
            self.start(&VecDeque::from([number]), room);
        }
        if let Some(Held::Coming(fetch)) = self.held.get(&number) {
            let fetch = *fetch;
            self.arrive(fetch).await?;
        }
        let bytes = self.use_up(number);
        self.at += 1;
        self.looked = self.looked.max(self.at);
        self.look_ahead();
        Ok(Some(bytes))
    }

    /// Begins fetches for as long as there is room.
    fn look_ahead(&mut self) {
        let end = self.needed.len().min(self.at + WINDOW);
        while self.looked < end {
            if self.held.contains_key(&self.needed[self.looked]) {
                self.looked += 1;
                continue;
            }
            let group = self.group(self.looked);
            let room = group
                .iter()
                .map(|number| self.takes(*number))
                .try_fold(0u32, u32::checked_add)
                .and_then(|wanted| {
                    Arc::clone(&self.room.memory)
                        .try_acquire_many_owned(wanted)
                        .ok()
                });
            let Some(room) = room else { break };
            self.start(&group, room);
        }
    }

    /// Room for this block, if need be that of used ones that are not needed again soon.
    fn make_room(&mut self, number: u32) -> Option<OwnedSemaphorePermit> {
        let soon = self.at..self.needed.len().min(self.at + NEAR);
        loop {
            let wanted = self.takes(number);
            if let Ok(room) = Arc::clone(&self.room.memory).try_acquire_many_owned(wanted) {
                return Some(room);
            }
            let soon = &self.needed[soon.clone()];
            let idle = self.used.iter().position(|used| !soon.contains(used))?;
            let idle = self.used.remove(idle).expect("it was found there");
            self.held.remove(&idle);
        }
    }

    /// Waits for room for this block alone, or for the one before to be gone.
    async fn find_room(&mut self, number: u32) -> OwnedSemaphorePermit {
        let room = Arc::clone(&self.room.memory).acquire_many_owned(self.takes(number));
        let alone = Arc::clone(&self.last_resort).acquire_owned();
        let (found, is_alone) = tokio::select! {
            biased;
            room = room => (room, false),
            alone = alone => (alone, true),
        };
        self.alone = is_alone.then_some(number);
        found.expect("neither is ever closed")
    }

    /// The block without room makes way for the next one; the others may be needed again.
    fn forget_alone(&mut self) {
        if let Some(number) = self.alone.take() {
            self.used.retain(|used| *used != number);
            self.held.remove(&number);
        }
    }

    /// The KiB that a block takes until it is used, as stored and unpacked.
    fn takes(&self, number: u32) -> u32 {
        let block = &self.snapshot.index.blocks[number as usize];
        let bytes = u64::from(block.stored) + u64::from(block.raw);
        u32::try_from(bytes.div_ceil(KIB)).expect("a block is small")
    }

    /// The block that is needed at this point, and those needed soon after it that lie beside it and are not held, in the
    /// order of their place.
    fn group(&self, from: usize) -> VecDeque<u32> {
        let all = &self.snapshot.index.blocks;
        let end_of = |number: u32| {
            let block = &all[number as usize];
            (block.part, block.offset + u64::from(block.stored))
        };
        let start_of = |number: u32| (all[number as usize].part, all[number as usize].offset);
        let near = &self.needed[from..self.needed.len().min(from + NEAR)];
        let near = near
            .iter()
            .filter(|number| !self.held.contains_key(number) && all[**number as usize].stored > 0);
        let (mut by_start, mut by_end) = (HashMap::new(), HashMap::new());
        for &number in near {
            by_start.insert(start_of(number), number);
            by_end.insert(end_of(number), number);
        }
        let number = self.needed[from];
        let mut group = VecDeque::from([number]);
        let mut length = u64::from(all[number as usize].stored);
        loop {
            let (first, last) = (group[0], group[group.len() - 1]);
            let (next, before) = (by_start.get(&end_of(last)), by_end.get(&start_of(first)));
            let (is_behind, found) = match (next, before) {
                (Some(&next), _) => (true, next),
                (None, Some(&before)) => (false, before),
                (None, None) => return group,
            };
            length += u64::from(all[found as usize].stored);
            // No two blocks overlap, unless somebody made them so.
            if length > FETCH || group.contains(&found) {
                return group;
            }
            match is_behind {
                true => group.push_back(found),
                false => group.push_front(found),
            }
        }
    }

    fn start(&mut self, group: &VecDeque<u32>, room: OwnedSemaphorePermit) {
        let wanted: Vec<usize> = group.iter().map(|number| *number as usize).collect();
        let (snapshot, deadline) = (Arc::clone(&self.snapshot), self.deadline);
        let requests = Arc::clone(&self.room.requests);
        let task = tokio::spawn(async move {
            let _turn = requests.acquire().await.expect("it is never closed");
            snapshot.fetch(&wanted, deadline).await
        });
        self.fetches.insert(self.begun, Fetch { task, room });
        for &number in group {
            self.held.insert(number, Held::Coming(self.begun));
        }
        self.begun += 1;
    }

    async fn arrive(&mut self, fetch: usize) -> Result<(), Unusable> {
        let coming = self.fetches.get_mut(&fetch);
        let coming = coming.expect("whoever asks for it is the only one that waits for it");
        let fetched = (&mut coming.task).await;
        let fetch = self.fetches.remove(&fetch).expect("it was there just now");
        let room = Arc::new(fetch.room);
        for (number, bytes) in fetched.expect("a fetch neither panics nor is cancelled")? {
            let number = u32::try_from(number).expect("it came from 32 bits");
            let bytes = Bytes::from_owner(Housed {
                bytes,
                _room: Arc::clone(&room),
            });
            self.held.insert(number, Held::Here(bytes));
        }
        Ok(())
    }

    fn use_up(&mut self, number: u32) -> Bytes {
        let Some(Held::Here(bytes)) = self.held.get(&number) else {
            unreachable!("it has arrived");
        };
        let bytes = bytes.clone();
        if !self.used.contains(&number) {
            self.used.push_back(number);
        }
        if self.used.len() > KEPT {
            let oldest = self.used.pop_front().expect("it is longer than KEPT");
            self.held.remove(&oldest);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;
    use crate::catalog::tests::manifest;
    use crate::pages::BLOCK;
    use crate::pages::codec::{Effort, Packer};
    use crate::pages::index::{File, Index};
    use crate::store::unreliable::{Fault, Occurrence, Operation, Release, UnreliableStore};
    use crate::store::{Condition, DirectoryStore, Store};
    use reprieve_core::head::Head;

    const BLOCKS: u32 = 40;

    fn contents(number: u32) -> Vec<u8> {
        vec![u8::try_from(number).expect("few blocks") + 1; BLOCK]
    }

    /// A snapshot of blocks in two parts, the even ones in the first.
    async fn snapshot() -> (tempfile::TempDir, UnreliableStore, Arc<Snapshot>) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let store = UnreliableStore::new(Arc::new(DirectoryStore::new(directory.path())));
        let mut packer = Packer::new(Effort::None, None).expect("memory");
        let (mut parts, mut index) = ([Vec::new(), Vec::new()], Index::default());
        for number in 0..BLOCKS {
            let packed = packer
                .pack(number, &mut contents(number), Vec::new())
                .expect("memory");
            let part = &mut parts[number as usize % 2];
            index
                .blocks
                .push(packed.placed(number % 2, part.len() as u64));
            part.extend(packed.bytes);
            index.files.push(File {
                name: format!("{number}.img"),
                size: BLOCK as u64,
                blocks: vec![number],
            });
        }
        let names = ["data/a/0".to_owned(), "data/a/1".to_owned()];
        for (name, part) in names.iter().zip(parts) {
            let key = format!("job/{name}");
            let put = store.put(&key, part.into(), Condition::Always).await;
            put.expect("it is stored");
        }
        let manifest = manifest(&Head::new("job"), &names);
        let snapshot = Snapshot::for_tests(manifest, index, Arc::new(store.clone()), "job/");
        (directory, store, Arc::new(snapshot))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn gets(store: &UnreliableStore) -> usize {
        let calls = store.calls().into_iter();
        calls
            .filter(|call| call.operation == Operation::GetRange)
            .count()
    }

    #[tokio::test]
    async fn several_requests_are_on_their_way_while_the_first_hangs() {
        let (_directory, store, snapshot) = snapshot().await;
        let release = Release::default();
        let hanging = Fault::Hanging(release.clone());
        store.fail(
            Operation::GetRange,
            "job/data/a/0",
            Occurrence::Nth(1),
            hanging,
        );
        let room = Room::new(16 << 20);
        let mut blocks = Ahead::new(snapshot, (0..BLOCKS).collect(), room.clone(), soon());
        {
            let mut first = std::pin::pin!(blocks.next());
            while gets(&store) < 3 {
                assert!(first.as_mut().now_or_never().is_none(), "it hangs");
                tokio::task::yield_now().await;
            }
            release.release();
            assert_eq!(first.await.expect("sound").expect("a block"), contents(0));
        }
        for number in 1..BLOCKS {
            let block = blocks.next().await.expect("sound").expect("a block");
            assert_eq!(block, contents(number));
        }
        assert!(blocks.next().await.expect("sound").is_none());
        assert_eq!(
            room.memory.available_permits(),
            16 << 10,
            "all room is given back"
        );
    }

    #[tokio::test]
    async fn small_images_are_read_in_one_request_for_each_run_of_blocks() {
        let (_directory, store, snapshot) = snapshot().await;
        snapshot.read_images(soon()).await.expect("sound");
        // 4 MiB, the even ones side by side in one part, and the odd ones in the other.
        assert_eq!(gets(&store), 2);
        let read = |from, to| {
            Ahead::new(
                Arc::clone(&snapshot),
                (from..to).collect(),
                Room::new(0),
                soon(),
            )
        };
        let mut blocks = read(0, 16);
        for number in 0..16 {
            let block = blocks.next().await.expect("sound").expect("a block");
            assert_eq!(block, contents(number));
        }
        assert_eq!(gets(&store), 2, "they are at hand");
        let block = read(16, 17).next().await.expect("sound");
        assert_eq!(block.expect("a block"), contents(16));
        assert_eq!(
            gets(&store),
            3,
            "what is more than that is read when it is needed"
        );
    }

    #[tokio::test]
    async fn blocks_that_are_needed_in_turn_are_fetched_once_however_little_room_there_is_ahead() {
        let (_directory, store, snapshot) = snapshot().await;
        // Room for six, and more than that is looked at ahead.
        let room = Room::new(6 * 2 * BLOCK as u64);
        let turns = (0..BLOCKS - 2).flat_map(|number| [number, number + 1, number, number + 1]);
        let needed: Vec<u32> = turns.collect();
        let mut blocks = Ahead::new(snapshot, needed.clone(), room, soon());
        for &number in &needed {
            let block = blocks.next().await.expect("sound").expect("a block");
            assert_eq!(block, contents(number));
        }
        let requests = gets(&store);
        assert!(
            requests <= BLOCKS as usize,
            "{requests} for {BLOCKS} blocks"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn whatever_the_order_and_the_room_each_block_comes_in_its_turn(
            needed in proptest::collection::vec(0..BLOCKS, 0..200), kib in 0u64..16_384,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let (_directory, _store, snapshot) = snapshot().await;
                let room = Room::new(kib * KIB);
                let before = room.memory.available_permits();
                let mut blocks = Ahead::new(snapshot, needed.clone(), room.clone(), soon());
                for &number in &needed {
                    let block = blocks.next().await.expect("sound").expect("a block");
                    assert_eq!(block, contents(number));
                }
                assert!(blocks.next().await.expect("sound").is_none());
                assert_eq!(room.memory.available_permits(), before, "all room is given back");
            });
        }
    }
}
