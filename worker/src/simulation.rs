//! The protocol of owners, snapshots and sweeps, in thousands of interleavings: the real catalogue, ownership and sweeper, several
//! workers, sweepers and an operator, against a store in memory whose clock and network are ours.
//!
//! Time is tokio's, paused: it moves on when nobody has anything to do, so a run takes milliseconds. Each call travels to the
//! store and back for a random while; it may be lost on the way there or back, and one whose caller has given up or died may
//! still arrive, much later. Workers are killed and frozen between any two steps; the store's clock jumps. After each change of
//! the store everything that its head names has to be there, whole. All of it follows from one number, which is printed when
//! something does not hold: `SIMULATION=NUMBER cargo test -p reprieve --lib simulation` runs that one again, and
//! `SIMULATIONS=HOW_MANY` more of them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use reprieve_core::document;
use reprieve_core::head::{self, Head};
use reprieve_core::manifest::{self, Manifest, Part};
use reprieve_core::retention::Policy;
use reprieve_core::selection::Candidate;
use reprieve_core::sweep;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::catalog::{self, Catalog, CatalogError};
use crate::pages::load::{self, Unusable};
use crate::store::{Condition, Entry, Object, Store, StoreError, StoreErrorKind, Tag};
use crate::supervisor::ownership::Ownership;
use crate::sweeper::{Begun, Sweeper};

/// Runs that `make test` makes.
const RUNS: u64 = 60;

/// How long a run is under faults.
const COURSE: Duration = Duration::from_secs(60);

/// Of the lease.
const TERM: Duration = Duration::from_secs(3);

/// Nothing that was sent arrives later than this.
const LATEST: Duration = Duration::from_secs(90);

thread_local! {
    static CHANCE: RefCell<Option<fastrand::Rng>> = const { RefCell::new(None) };
    static NONCES: Cell<u64> = const { Cell::new(0) };
}

/// A word that nobody used before, and the same one each time that a run is made. None outside of one.
pub(crate) fn nonce() -> Option<String> {
    let begun = CHANCE.with_borrow(Option::is_some);
    begun.then(|| {
        let number = NONCES.get() + 1;
        NONCES.set(number);
        format!("01SIM{number:021}")
    })
}

fn chance<T>(draw: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
    CHANCE.with_borrow_mut(|chance| draw(chance.as_mut().expect("a run is under way")))
}

fn up_to(limit: Duration) -> Duration {
    limit.mul_f64(chance(|chance| chance.f64()))
}

fn happens(probability: f64) -> bool {
    chance(|chance| chance.f64() < probability)
}

/// What the store holds, and what was ever promised of it.
#[derive(Default)]
struct World {
    objects: BTreeMap<String, Stored>,
    writes: u64,
    /// Of the store's clock, in milliseconds.
    skew_ms: i64,
    /// How often something goes wrong with a call.
    trouble: f64,
    frozen_until: HashMap<String, Instant>,
    /// Every manifest that was ever written.
    manifests: HashMap<String, Manifest>,
    head: Option<Head>,
    named: BTreeSet<String>,
    /// Snapshots that a worker was told are durable.
    durable: Vec<String>,
    commits: u64,
    claims: u64,
    swept: u64,
    fenced: u64,
    refused: u64,
}

struct Stored {
    bytes: Bytes,
    digest: String,
    tag: u64,
    modified_ms: u64,
}

impl World {
    fn now_ms(&self) -> u64 {
        let begun = BEGUN.with(|begun| begun.get().expect("a run is under way"));
        let passed = i64::try_from(begun.elapsed().as_millis()).expect("runs are short");
        (1_000_000_000_000 + passed + self.skew_ms).unsigned_abs()
    }

    fn get(&self, key: &str) -> Result<Object, StoreErrorKind> {
        let found = self.objects.get(key).ok_or(StoreErrorKind::NotFound)?;
        Ok(Object {
            bytes: found.bytes.clone(),
            tag: Tag(found.tag.to_string()),
        })
    }

    fn put(
        &mut self,
        key: &str,
        bytes: &Bytes,
        condition: &Condition,
    ) -> Result<Tag, StoreErrorKind> {
        let present = self.objects.get(key).map(|found| found.tag.to_string());
        let holds = match condition {
            Condition::Always => true,
            Condition::Absent => present.is_none(),
            Condition::Matches(Tag(tag)) => present.as_ref() == Some(tag),
        };
        if !holds {
            return Err(StoreErrorKind::ConditionFailed);
        }
        self.writes += 1;
        let stored = Stored {
            digest: document::digest(bytes),
            bytes: bytes.clone(),
            tag: self.writes,
            modified_ms: self.now_ms(),
        };
        self.objects.insert(key.to_owned(), stored);
        let name = key.strip_prefix("job/").expect("there is one job");
        if name == head::KEY {
            self.follows(Head::from_bytes(bytes).expect("heads are whole"));
        } else if name.starts_with(manifest::PREFIX) {
            let read = Manifest::from_bytes(bytes).expect("manifests are whole");
            self.manifests.insert(name.to_owned(), read);
        }
        self.all_is_there();
        Ok(Tag(self.writes.to_string()))
    }

    /// Whether the new head may come after the one before.
    fn follows(&mut self, new: Head) {
        if let Some(old) = &self.head {
            assert!(
                new.epoch >= old.epoch,
                "a fenced owner wrote: {old:?} {new:?}"
            );
            assert!(
                new.next_generation >= old.next_generation,
                "{old:?} {new:?}"
            );
            let newest = |head: &Head| head.generations.first().map(|known| known.generation);
            assert!(
                newest(&new) >= newest(old),
                "a snapshot was lost: {old:?} {new:?}"
            );
            if new.epoch > old.epoch {
                self.claims += 1;
            }
        }
        let manifests = new.generations.iter().map(|known| known.manifest.clone());
        self.named.extend(manifests);
        self.head = Some(new);
    }

    /// What the head names can be resumed, now.
    fn all_is_there(&self) {
        for known in self.head.iter().flat_map(|head| &head.generations) {
            let stored = self.objects.get(&format!("job/{}", known.manifest));
            let stored = stored.unwrap_or_else(|| panic!("{} is gone", known.manifest));
            assert_eq!(stored.digest, known.digest, "{}", known.manifest);
            for part in &self.manifests[&known.manifest].parts {
                let stored = self.objects.get(&format!("job/{}", part.key));
                let stored =
                    stored.unwrap_or_else(|| panic!("{} needs {}", known.manifest, part.key));
                assert_eq!(stored.digest, part.digest, "{}", part.key);
            }
        }
    }
}

thread_local! {
    static BEGUN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The store as one worker reaches it.
#[derive(Clone)]
struct Reached {
    world: Arc<Mutex<World>>,
    by: String,
}

impl fmt::Debug for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.by)
    }
}

impl Reached {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("a run ends with its first panic")
    }

    /// A frozen worker sends nothing, and hears nothing.
    async fn thawed(&self) {
        loop {
            let until = self.world().frozen_until.get(&self.by).copied();
            match until {
                Some(until) if until > Instant::now() => tokio::time::sleep_until(until).await,
                _ => return,
            }
        }
    }

    async fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &str,
        work: impl FnOnce(&mut World) -> Result<T, StoreErrorKind> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.thawed().await;
        let trouble = self.world().trouble;
        let fails = happens(trouble);
        let way = chance(|chance| chance.u8(0..5));
        let usual = Duration::from_millis(40);
        let (there, back) = match (fails, way) {
            (true, 4) => (up_to(LATEST), up_to(usual)),
            (true, 3) => (up_to(usual), up_to(LATEST)),
            _ => (up_to(usual), up_to(usual)),
        };
        let (answer, answered) = oneshot::channel();
        let world = Arc::clone(&self.world);
        // Not cut off with its caller: what is on its way arrives.
        tokio::spawn(async move {
            sleep(there).await;
            let answered = match (fails, way) {
                (true, 0) => Err(StoreErrorKind::Unavailable),
                (true, 1) => Err(StoreErrorKind::Throttled),
                (true, 2) => Err(StoreErrorKind::Conflict),
                _ => work(&mut world.lock().expect("a run ends with its first panic")),
            };
            sleep(back).await;
            match (fails, way) {
                // Done, or refused, and nobody hears of it.
                (true, 3) => drop(answer),
                _ => drop(answer.send(answered)),
            }
        });
        let answered = answered.await.unwrap_or(Err(StoreErrorKind::Unavailable));
        self.thawed().await;
        answered.map_err(|kind| StoreError::new(kind, operation, key, "in a simulation"))
    }
}

#[async_trait]
impl Store for Reached {
    fn address(&self) -> String {
        "simulation".into()
    }

    async fn get(&self, key: &str, _limit: u64) -> Result<Object, StoreError> {
        let name = key.to_owned();
        self.call("get", key, move |world| world.get(&name)).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let name = key.to_owned();
        let range = move |world: &mut World| {
            let object = world.get(&name)?;
            let first = usize::try_from(offset).map_err(|_| StoreErrorKind::BadSize)?;
            let end = usize::try_from(offset + length).map_err(|_| StoreErrorKind::BadSize)?;
            match end <= object.bytes.len() {
                true => Ok(object.bytes.slice(first..end)),
                false => Err(StoreErrorKind::BadSize),
            }
        };
        self.call("get_range", key, range).await
    }

    async fn size(&self, key: &str) -> Result<u64, StoreError> {
        let name = key.to_owned();
        let size = move |world: &mut World| Ok(world.get(&name)?.bytes.len() as u64);
        self.call("size", key, size).await
    }

    async fn put(&self, key: &str, bytes: Bytes, condition: Condition) -> Result<Tag, StoreError> {
        let name = key.to_owned();
        let put = move |world: &mut World| world.put(&name, &bytes, &condition);
        self.call("put", key, put).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let (begins, after) = (prefix.to_owned(), after.map(str::to_owned));
        let list = move |world: &mut World| {
            let found = world.objects.iter().filter(|(key, _)| {
                key.starts_with(&begins) && after.as_ref().is_none_or(|after| *key > after)
            });
            let entries = found.take(limit).map(|(key, stored)| Entry {
                key: key.clone(),
                size: stored.bytes.len() as u64,
                modified_ms: stored.modified_ms,
            });
            Ok(entries.collect())
        };
        self.call("list", prefix, list).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let name = key.to_owned();
        let delete = move |world: &mut World| {
            if world.objects.remove(&name).is_some() {
                world.swept += 1;
            }
            world.all_is_there();
            Ok(())
        };
        self.call("delete", key, delete).await
    }

    async fn reach(&self) -> Result<(), StoreError> {
        self.call("reach", "", |_| Ok(())).await
    }
}

/// One that runs the job as often as it can.
struct Worker {
    reached: Reached,
    catalog: Catalog,
    policy: Policy,
    /// Parts stored ahead, under the attempt that the head names.
    seeded: Vec<Part>,
    own: Option<Manifest>,
}

/// How long one step may take.
fn soon() -> Instant {
    Instant::now() + up_to(Duration::from_secs(5)) + Duration::from_millis(200)
}

impl Worker {
    fn new(world: &Arc<Mutex<World>>, name: &str) -> Self {
        let reached = Reached {
            world: Arc::clone(world),
            by: name.to_owned(),
        };
        Self {
            catalog: Catalog::new(Arc::new(reached.clone()), "job"),
            reached,
            policy: Policy::last(chance(|chance| chance.usize(2..5))),
            seeded: Vec::new(),
            own: None,
        }
    }

    /// Until it is the owner, as a start does it.
    async fn claim(&self) -> Arc<Ownership> {
        loop {
            let Some(found) = self.free().await else {
                sleep(up_to(TERM)).await;
                continue;
            };
            let owner = catalog::tests::owner(&self.reached.by);
            if let Ok(lease) = self.catalog.claim(&found, owner, Vec::new(), soon()).await {
                return Ownership::begin(self.catalog.clone(), lease, TERM);
            }
        }
    }

    async fn free(&self) -> Option<catalog::Found> {
        let mut found = self.catalog.find(soon()).await.ok()?;
        let mut unchanged_since = Instant::now();
        while found.owner().is_some() && unchanged_since.elapsed() < TERM {
            sleep(TERM / 6).await;
            let before = found.tag.clone();
            found = self.catalog.find(soon()).await.ok()?;
            if found.tag != before {
                unchanged_since = Instant::now();
            }
        }
        Some(found)
    }

    /// Reads the newest snapshot as a restore does. False if it is not the owner any more.
    async fn resume(&mut self, ownership: &Ownership) -> bool {
        loop {
            let Ok(head) = ownership.refresh(soon()).await else {
                match self.is_fenced(ownership).await {
                    true => return false,
                    false => continue,
                }
            };
            let Some(newest) = head.generations.first() else {
                return true;
            };
            match self.read(&Candidate::from(newest)).await {
                Ok(manifest) => {
                    self.own = Some(manifest);
                    return true;
                }
                Err(Unusable::Store(_)) => {}
                Err(error) => match self.is_fenced(ownership).await {
                    true => return false,
                    false => panic!("the newest snapshot cannot be resumed: {error:?}"),
                },
            }
        }
    }

    async fn is_fenced(&self, ownership: &Ownership) -> bool {
        loop {
            match ownership.refresh(soon()).await {
                Ok(_) => return false,
                Err(CatalogError::Fenced(_)) => return true,
                Err(_) => sleep(up_to(TERM)).await,
            }
        }
    }

    async fn read(&self, candidate: &Candidate) -> Result<Manifest, Unusable> {
        let manifest = load::manifest(&self.catalog, candidate, soon())
            .await?
            .manifest;
        for part in &manifest.parts {
            let key = format!("{}{}", self.catalog.root(), part.key);
            match self.reached.get(&key, part.bytes).await {
                Ok(object) if document::digest(&object.bytes) == part.digest => {}
                Ok(_) => return Err(Unusable::Digest { key }),
                Err(error) if error.kind == StoreErrorKind::NotFound => {
                    return Err(Unusable::Missing { key });
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(manifest)
    }

    async fn part(&self, attempt: &str, number: usize) -> Option<Part> {
        let key = format!("{}{number:06}", manifest::data_prefix(attempt));
        let bytes = Bytes::from(key.clone());
        let part = Part {
            digest: document::digest(&bytes),
            bytes: bytes.len() as u64,
            key: key.clone(),
        };
        let full = format!("{}{key}", self.catalog.root());
        let deadline = soon();
        let put = crate::store::retry::retry(deadline, "put", || {
            self.reached.put(&full, bytes.clone(), Condition::Always)
        });
        put.await.ok().map(|_| part)
    }

    async fn seed(&mut self, ownership: &Ownership) -> Option<()> {
        let attempt = catalog::nonce();
        self.seeded.clear();
        ownership.seed(&attempt, soon()).await.ok()?;
        for number in 0..chance(|chance| chance.usize(1..4)) {
            let part = self.part(&attempt, number).await?;
            self.seeded.push(part);
        }
        Some(())
    }

    async fn checkpoint(&mut self, ownership: &Ownership) -> Option<()> {
        let head = ownership.refresh(soon()).await.ok()?;
        let mut made = catalog::tests::manifest(&head, &[]);
        if happens(0.3) && !head.generations.is_empty() {
            // As after a rollback: any may go meanwhile but the newest.
            let one = chance(|chance| chance.usize(0..head.generations.len()));
            let older = &head.generations[one].manifest;
            self.own = self.reached.world().manifests.get(older).cloned();
        }
        let base = self.own.as_ref().filter(|own| head.names(&own.key()));
        for part in base.iter().flat_map(|base| &base.parts) {
            if happens(0.6) {
                made.parts.push(part.clone());
            }
        }
        let base = base.map(Manifest::key);
        for part in &self.seeded {
            if !made.parts.contains(part) && happens(0.8) {
                made.parts.push(part.clone());
            }
        }
        for number in 0..chance(|chance| chance.usize(0..4)) {
            let part = self.part(&made.attempt, number).await?;
            made.parts.push(part);
        }
        if happens(0.2) {
            // A large one.
            sleep(up_to(Duration::from_secs(15))).await;
        }
        let committed = ownership
            .commit(&made, base.as_deref(), self.policy, soon())
            .await;
        if let Err(CatalogError::Refused(_)) = committed {
            self.reached.world().refused += 1;
        }
        committed.ok()?;
        let mut world = self.reached.world();
        assert!(
            world.named.contains(&made.key()),
            "{} was reported saved",
            made.key()
        );
        world.durable.push(made.key());
        world.commits += 1;
        drop(world);
        self.own = Some(made);
        Some(())
    }

    /// Runs the job until another one does, or it ends.
    async fn run(mut self) {
        let ownership = self.claim().await;
        if !self.resume(&ownership).await {
            return;
        }
        let fenced = Arc::clone(&ownership);
        let job = async {
            loop {
                sleep(up_to(Duration::from_secs(1))).await;
                match chance(|chance| chance.u8(0..12)) {
                    0..5 => drop(self.checkpoint(&ownership).await),
                    5..8 => drop(self.seed(&ownership).await),
                    8..11 => {}
                    _ => {
                        self.checkpoint(&ownership).await;
                        return ownership.release(None, soon()).await;
                    }
                }
            }
        };
        tokio::select! {
            () = job => return,
            () = fenced.fenced() => {}
        }
        self.reached.world().fenced += 1;
    }
}

async fn sweep_on(catalog: Catalog) {
    let begun = Begun::default();
    loop {
        sleep(up_to(Duration::from_secs(3))).await;
        let sweeper = Sweeper {
            catalog: catalog.clone(),
            grace: up_to(Duration::from_secs(20)),
            limit: Duration::from_secs(5),
            at_once: 3,
            begun: begun.clone(),
        };
        // It may fail, or be cut short; it must not take away what is needed.
        drop(tokio::time::timeout(up_to(Duration::from_secs(20)), sweeper.sweep(|_, _| {})).await);
    }
}

/// Pins and removes snapshots of a job that runs.
async fn operate(catalog: Catalog) {
    loop {
        sleep(up_to(Duration::from_secs(3))).await;
        let (at, pins) = (chance(|chance| chance.usize(1..4)), happens(0.5));
        let amended = catalog.amend(soon(), |head| {
            let known = head.generations.get(at).ok_or(())?;
            let mut head = match pins {
                true => Head {
                    nonce: catalog::nonce(),
                    ..head.clone()
                },
                false => head.without(&[known.generation], catalog::nonce()),
            };
            if pins {
                head.generations[at].pinned ^= true;
            }
            Ok::<_, ()>(head)
        });
        drop(amended.await);
    }
}

async fn course(world: &Arc<Mutex<World>>) {
    let look = |by: &str| {
        let reached = Reached {
            world: Arc::clone(world),
            by: by.to_owned(),
        };
        Catalog::new(Arc::new(reached), "job")
    };
    let mut others: Vec<JoinHandle<()>> = vec![
        tokio::spawn(sweep_on(look("sweeper"))),
        tokio::spawn(sweep_on(look("another sweeper"))),
        tokio::spawn(operate(look("operator"))),
    ];
    let mut workers: Vec<(String, JoinHandle<()>)> = Vec::new();
    let mut started = 0;
    let begun = Instant::now();
    while begun.elapsed() < COURSE {
        let ended = workers.extract_if(.., |(_, worker)| worker.is_finished());
        for (_, worker) in ended.collect::<Vec<_>>() {
            joined(worker).await;
        }
        while workers.len() < 2 {
            started += 1;
            let name = format!("worker-{started}");
            let worker = Worker::new(world, &name);
            workers.push((name, tokio::spawn(worker.run())));
        }
        sleep(up_to(Duration::from_secs(10))).await;
        let one = chance(|chance| chance.usize(0..workers.len()));
        match chance(|chance| chance.u8(0..8)) {
            // Killed: what it had sent may still arrive.
            0..3 => workers.swap_remove(one).1.abort(),
            3..5 => {
                let until = Instant::now() + up_to(2 * TERM);
                let name = workers[one].0.clone();
                locked(world).frozen_until.insert(name, until);
            }
            5 => {
                let hours = chance(|chance| chance.i64(-3..=3));
                locked(world).skew_ms = hours * 3_600_000;
            }
            _ => locked(world).trouble = chance(|chance| chance.f64()) * 0.25,
        }
    }
    others.extend(workers.into_iter().map(|(_, worker)| worker));
    for one in others {
        one.abort();
        joined(one).await;
    }
}

/// What it found wrong is what the run found wrong.
async fn joined(task: JoinHandle<()>) {
    if let Err(error) = task.await
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

fn locked(world: &Arc<Mutex<World>>) -> MutexGuard<'_, World> {
    world.lock().expect("a run ends with its first panic")
}

/// The faults are over: the job goes on from its newest snapshot, and nothing is left that nothing needs.
async fn aftermath(world: &Arc<Mutex<World>>) {
    {
        let mut world = locked(world);
        (world.trouble, world.skew_ms) = (0.0, 4 * 3_600_000);
    }
    sleep(LATEST).await;
    // Keys count backwards, so that listings begin with the newest.
    let newest_durable = locked(world).durable.iter().min().cloned();
    let mut last = Worker::new(world, "last");
    let ownership = tokio::time::timeout(4 * TERM, last.claim())
        .await
        .expect("a job without an owner can be had");
    assert!(last.resume(&ownership).await, "nobody else is there");
    let resumed = last.own.as_ref().map(Manifest::key);
    assert!(
        newest_durable.is_none() || resumed.is_some() && resumed <= newest_durable,
        "{resumed:?} instead of {newest_durable:?}"
    );
    last.checkpoint(&ownership)
        .await
        .expect("nothing is in its way");
    // Longer than anything stays for being young.
    sleep(Duration::from_secs(2 * 3600)).await;
    let sweeper = Sweeper {
        catalog: last.catalog.clone(),
        grace: Duration::ZERO,
        limit: Duration::from_secs(5),
        at_once: 3,
        begun: Begun::default(),
    };
    sweeper
        .sweep(|_, _| {})
        .await
        .expect("nothing is in its way");
    let world = locked(world);
    let head = world.head.as_ref().expect("there is a job");
    let kept: Vec<&Manifest> = head
        .generations
        .iter()
        .map(|known| &world.manifests[&known.manifest])
        .collect();
    for key in world.objects.keys() {
        let name = key.strip_prefix("job/").expect("there is one job");
        let is_needed = name == head::KEY
            || head.names(name)
            || kept.iter().any(|manifest| {
                sweep::attempt_of(name) == Some(&manifest.attempt)
                    || manifest.parts.iter().any(|part| part.key == name)
            });
        assert!(is_needed, "{name} is left");
    }
}

/// What a run came to: commits, changes of owner, objects removed, owners that were told that they are none, commits
/// that were refused because a sweep or an operator took away what they need.
fn run(seed: u64) -> [u64; 5] {
    fastrand::seed(seed);
    NONCES.set(0);
    CHANCE.set(Some(fastrand::Rng::with_seed(seed)));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let world = Arc::new(Mutex::new(World::default()));
    let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        runtime.block_on(async {
            BEGUN.set(Some(Instant::now()));
            course(&world).await;
            aftermath(&world).await;
        });
    }));
    CHANCE.set(None);
    if let Err(panic) = ran {
        eprintln!("simulation: SIMULATION={seed} shows it");
        std::panic::resume_unwind(panic);
    }
    let world = locked(&world);
    [
        world.commits,
        world.claims,
        world.swept,
        world.fenced,
        world.refused,
    ]
}

#[test]
fn whatever_happens_to_owners_and_sweepers_what_the_head_names_is_there() {
    let asked = |name| {
        std::env::var(name)
            .ok()
            .map(|seed| seed.parse().expect("a number"))
    };
    let runs = match asked("SIMULATION") {
        Some(seed) => seed..seed + 1,
        None => 0..asked("SIMULATIONS").unwrap_or(RUNS),
    };
    let number = runs.end - runs.start;
    let mut sum = [0; 5];
    for seed in runs {
        for (sum, of) in sum.iter_mut().zip(run(seed)) {
            *sum += of;
        }
    }
    println!(
        "{number} runs: {sum:?} commits, changes of owner, objects removed, owners fenced out"
    );
    // Or nothing was tried.
    assert!(
        number == 1 || sum.iter().all(|sum| *sum > number / 50),
        "{sum:?}"
    );
}

#[test]
fn a_run_is_the_same_each_time() {
    assert_eq!(run(7), run(7));
}
