//! Carries out a checkpoint, step by step, within its budget.
//!
//! ```text
//!  prepare ─▶ dump ─────────────▶ cut ─▶ preserve ─▶ drain ─▶ upload ─▶ commit ─▶ the app is ended
//!             (frozen: CRIU reads,       (its files)  (parts, index)  (manifest,   (or went on right
//!              we pack and upload)                                     head)        before the drain)
//! ```
//!
//! CRIU holds the app frozen at its `post-dump` stage until we answer. When the app is to stop, the answer waits for the
//! commit, and the app is killed while it is still frozen: it runs not one instruction that is not in the snapshot.
//! Until it is killed it can be spared ([`Course`]): from the cut on it is let go at once, as if it never was to stop.
//! Whatever fails before the commit, the app goes on: the transfer is hung up, CRIU cures the app and lets it go. CRIU
//! is only ever killed when it does not do so in time; a tracee whose tracer dies goes on by itself.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use nix::unistd::{Pid, getsid};
use reprieve_core::checkup;
use reprieve_core::cpu::Level;
use reprieve_core::document;
use reprieve_core::effort::{self, LOOKING, Storing, leaves_out_comparing};
use reprieve_core::head::Head;
use reprieve_core::manifest::{AppFacts, Clocks, HostFacts, Manifest, Profile, Sizes};
use reprieve_core::notice::{Afterwards, Notice};
use reprieve_core::planner::Decision;
use reprieve_core::report::EngineLog;
use reprieve_core::retention::Policy;
use reprieve_core::selection::Candidate;
use reprieve_core::way::Way;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant as TokioInstant, sleep_until, timeout, timeout_at};

use crate::catalog::{self, Catalog, CatalogError};
use crate::clocks::{self, Means};
use crate::cures::Given;
use crate::engine::criu::{self, Connections, Criu, CriuError, DumpOrder};
use crate::engine::hook::{Asked, Hooks};
use crate::host;
use crate::journal::Journal;
use crate::keys::MasterKey;
use crate::metrics::CheckpointPhase;
use crate::network::{self, Hush};
use crate::pages::capture::{Blocks, CaptureError, Captured, PageServer};
use crate::pages::fingerprint::PageKey;
use crate::pages::index::{File, Index};
use crate::pages::known::{self, Assembled, Known};
use crate::pages::load;
use crate::pages::parts::{self, Buffers, Deadline, Destination, Stored};
use crate::pages::seal::AttemptKey;
use crate::pages::tuning::{Comparing, Tuning, Usual, Wanted};
use crate::preload::Library;
use crate::preserve::Preserver;
use crate::preserve::take::{TakeError, Taken};
use crate::programs::Seen;
use crate::settings::Tcp;
use crate::steps::{self, Step};
use crate::store::StoreError;
use crate::supervisor::ownership::Ownership;
use crate::supervisor::proc::{self, Process};
use crate::supervisor::realm::{self, AppIpc, Realm};
use crate::supervisor::reaper::Reaper;
use crate::supervisor::seeding::Seeds;
use crate::supervisor::stdio::{CutError, Held, Stdio};
use crate::supervisor::{millis, with_causes};
use crate::sys::{self, Exit};

/// How long CRIU may take to let the app go after a transfer was hung up.
const CURE_LIMIT: Duration = Duration::from_secs(5);

/// Bytes of CRIU's log that are kept of a failure: its errors stand at the end.
const LOG_TAIL: u64 = 128 << 10;

/// Our own images in a snapshot: what the standard streams held.
pub(crate) const HELD: [&str; 3] = ["reprieve-stdin", "reprieve-stdout", "reprieve-stderr"];

/// And the library that its processes loaded.
pub(crate) const LIBRARY: &str = "reprieve-library";

/// When to be done; follows the deadlines that become known, and that are withdrawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub stored_by: TokioInstant,
    pub committed_by: TokioInstant,
}

/// What a checkpoint is to do with the app, which may change for the better until it is done.
#[derive(Debug)]
pub(crate) struct Course(watch::Sender<Heading>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heading {
    Open(Afterwards),
    /// It is being killed.
    Taken,
}

impl Course {
    pub(crate) fn new(afterwards: Afterwards) -> Self {
        Self(watch::Sender::new(Heading::Open(afterwards)))
    }

    /// The app is to go on. Whether that was said in time.
    pub(crate) fn spare(&self) -> bool {
        let mut in_time = true;
        self.0.send_modify(|way| match way {
            Heading::Taken => in_time = false,
            Heading::Open(_) => *way = Heading::Open(Afterwards::Continue),
        });
        in_time
    }

    /// From now on it cannot be spared, if it was not before.
    fn take(&self) -> Afterwards {
        let mut afterwards = Afterwards::Stop;
        self.0.send_modify(|way| match way {
            Heading::Open(Afterwards::Continue) => afterwards = Afterwards::Continue,
            _ => *way = Heading::Taken,
        });
        afterwards
    }

    fn now(&self) -> Afterwards {
        match *self.0.borrow() {
            Heading::Open(afterwards) => afterwards,
            Heading::Taken => Afterwards::Stop,
        }
    }

    async fn spared(&self) {
        let spared = |way: &Heading| *way == Heading::Open(Afterwards::Continue);
        // We hold the sender.
        drop(self.0.subscribe().wait_for(spared).await);
    }
}

/// The app to dump.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub root_pid: i32,
    pub argv: Vec<String>,
    pub stdio: Arc<Stdio>,
    /// Why it is dumped; kept with the snapshot. None in a rehearsal.
    pub decision: Option<Decision>,
    /// Told when the app goes on.
    pub thawed: Arc<Notify>,
    pub course: Arc<Course>,
    /// The commands that it answers.
    pub commands: Vec<String>,
    /// None is removed for it: one of the older ones is about to be gone back to.
    pub keeps_all: bool,
}

/// How a checkpoint went that is durable.
#[derive(Clone, Debug)]
pub struct Report {
    pub generation: u64,
    /// What became of the app.
    pub afterwards: Afterwards,
    pub sizes: Sizes,
    pub frozen: Duration,
    pub wall: Duration,
    /// Of the deadline, at the commit.
    pub left: Duration,
}

/// How a rehearsal went that worked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rehearsed {
    pub frozen: Duration,
    pub wall: Duration,
    /// Bytes of memory, and of files that would travel.
    pub memory: u64,
    pub files: u64,
}

/// What becomes of what an attempt reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    Stored,
    ThrownAway,
}

/// Why there is no new snapshot. The app goes on, except when another worker owns the job.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("the checkpoint was not done in time; it was given up while {step}")]
    Deadline { step: &'static str },
    #[error("{} would be left out: their parents ended and they now belong to the supervisor: {}", count(.0), names(.0))]
    Orphans(Vec<Process>),
    #[error("the app has ended")]
    AppEnded,
    #[error("your program for before-freeze did not agree: {0}")]
    Hook(String),
    #[error(transparent)]
    Criu(#[from] CriuError),
    #[error("the app's memory could not be taken over")]
    Capture(#[from] CaptureError),
    #[error("the app's standard streams could not be stopped at an exact byte")]
    Cut(#[from] CutError),
    #[error("the app's files could not be preserved")]
    Preserve(#[from] TakeError),
    #[error("the snapshot could not be stored")]
    Store(#[from] StoreError),
    #[error("the snapshot could not be committed")]
    Commit(#[from] CatalogError),
    #[error("the app began to use System V IPC while it was being stopped")]
    Ipc,
    #[error("cannot use the work directory")]
    Work(#[from] io::Error),
    #[error("a bug: a part of the checkpoint panicked")]
    Panicked,
}

fn count(processes: &[Process]) -> String {
    match processes.len() {
        1 => "1 process".to_owned(),
        count => format!("{count} processes"),
    }
}

fn names(processes: &[Process]) -> String {
    let some: Vec<String> = processes
        .iter()
        .take(8)
        .map(|process| format!("{} ({})", process.pid, process.command))
        .collect();
    some.join(", ")
}

impl CheckpointError {
    /// What a person can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Deadline { .. } => {
                "give it more time (`--term-grace` and the platform's own grace period, or `--timeout`), \
                 or a faster way to the store"
            }
            Self::Orphans(_) => {
                "let the app wait for its own processes, or end them before a checkpoint; a process whose parent \
                 ended cannot be restored into its place"
            }
            Self::Preserve(_) => {
                "see the cause; the job runs on, and nothing was written anywhere but to the store"
            }
            Self::Store(_) => "see the cause; the job runs on and the next checkpoint tries again",
            _ => "see the cause; the job runs on",
        }
    }
}

/// Takes checkpoints of one job.
#[derive(Debug)]
pub(crate) struct Checkpointer {
    pub criu: Criu,
    pub catalog: Catalog,
    pub ownership: Arc<Ownership>,
    pub reaper: Arc<Reaper>,
    pub work: PathBuf,
    pub host: HostFacts,
    pub compression: Wanted,
    /// What the checkpoint before measured of this machine and its way to the store.
    pub usual: Mutex<Usual>,
    /// How long it took last to look up what is in the store already.
    pub looking_ms: Mutex<Option<u64>>,
    /// Of the newest attempt.
    pub storing: Mutex<Option<Arc<Tuning>>>,
    /// What uploads told of the way to the store, those of checkpoints that failed included.
    pub way: watch::Sender<Way>,
    /// Parts on their way at once.
    pub in_flight: usize,
    pub workers: usize,
    /// Bytes; none: what there is room for.
    pub ghost_limit: Option<u64>,
    /// Where watched files may be.
    pub watched: Vec<PathBuf>,
    pub tcp: Tcp,
    pub keep: Policy,
    /// The parts that a snapshot refers to may be this many times as large as what it needs of them.
    pub waste_factor: u32,
    /// Children that we had before there was an app: not the app's.
    pub strangers: Vec<i32>,
    /// The app's own namespaces, in the full profile.
    pub realm: Option<Arc<Realm>>,
    /// The newest snapshot that is known to be sound, because it was resumed or made here: what the next one may refer
    /// to.
    pub base: Mutex<Option<Candidate>>,
    /// What of the app's memory was stored since.
    pub seeds: Seeds,
    /// None if no files travel.
    pub preserver: Option<Arc<Preserver>>,
    pub journal: Journal,
    /// What CRIU said in the latest attempt, if that failed.
    pub complaint: Mutex<Option<EngineLog>>,
    /// What the job's processes were given.
    pub given: OnceLock<Given>,
    /// Of the job's programs and libraries, which are named in each manifest.
    pub seen: Arc<Seen>,
}

/// One attempt: everything it has to give back.
struct Attempt<'a> {
    of: &'a Checkpointer,
    subject: &'a Subject,
    name: String,
    images: PathBuf,
    limits: watch::Receiver<Limits>,
    begun: Instant,
    /// The head that the snapshot is added to.
    head: Head,
    seal: Option<Seal>,
    kept: Kept,
    comparing: Comparing,
    tuning: Option<Arc<Tuning>>,
    /// Mapped before the freeze; which is taken then is found by CRIU.
    programs: BTreeMap<String, String>,
    /// The app's, at the freeze.
    clocks: Option<Clocks>,
    needs: Profile,
    connections: Connections,
}

/// What an attempt seals with.
#[derive(Debug)]
pub(crate) struct Seal {
    pub key: Arc<AttemptKey>,
    /// For the manifest.
    pub wrapped: String,
}

/// A dump that waits at `post-dump`: the app is frozen.
struct Frozen {
    asked: Asked,
    criu: Running,
    transfer: Transfer,
    since: Instant,
}

/// What is to be had of a frozen app beside its memory.
struct Still {
    tree: Vec<Process>,
    held: Held,
    files: Option<Taken>,
    /// As in the manifest.
    by_host_clocks: Option<Vec<String>>,
}

/// The app's memory on its way from CRIU to the store.
struct Transfer {
    server: PageServer,
    blocks: Blocks,
    writer: Writer,
    known: Arc<Known>,
}

/// Stores what it is sent; given up when it is dropped.
struct Writer(JoinHandle<Result<Stored, StoreError>>);

impl Drop for Writer {
    fn drop(&mut self) {
        // After its end this does nothing.
        self.0.abort();
    }
}

struct Running {
    pid: i32,
    exit: oneshot::Receiver<Exit>,
}

impl Checkpointer {
    /// Takes one.
    pub(crate) async fn run(
        &self,
        subject: &Subject,
        notice: Notice,
        limits: watch::Receiver<Limits>,
    ) -> Result<Report, CheckpointError> {
        let mut attempt = self.attempt(subject, limits, Kept::Stored)?;
        let result = attempt.run(notice).await;
        if attempt.connections == Connections::Kept
            && let Err(error) = network::remove_locks()
        {
            tracing::error!(%error, "a table of nftables may be left behind");
        }
        if let Some(tuning) = &attempt.tuning {
            *self.usual.lock().expect("no holder of this lock panics") = tuning.learned();
            self.carried(|way| way.carried(tuning.all_carried()));
        }
        self.seeds.release();
        self.tidy_up(&attempt.images, result.is_err());
        result
    }

    /// Takes one that is thrown away. The store is not asked for anything.
    pub(crate) async fn rehearse(
        &self,
        subject: &Subject,
        limits: watch::Receiver<Limits>,
    ) -> Result<Rehearsed, CheckpointError> {
        let mut attempt = self.attempt(subject, limits, Kept::ThrownAway)?;
        let result = attempt.rehearse().await;
        self.tidy_up(&attempt.images, result.is_err());
        result
    }

    fn attempt<'a>(
        &'a self,
        subject: &'a Subject,
        limits: watch::Receiver<Limits>,
        kept: Kept,
    ) -> Result<Attempt<'a>, CheckpointError> {
        let name = catalog::nonce();
        let seal = match kept {
            Kept::Stored => self.seal(&name)?,
            Kept::ThrownAway => None,
        };
        let images = self.work.join(format!("dump-{name}"));
        std::fs::create_dir(&images)?;
        Ok(Attempt {
            of: self,
            subject,
            name,
            images,
            limits,
            begun: Instant::now(),
            head: self.ownership.last_head(),
            seal,
            kept,
            comparing: Comparing::Done,
            tuning: None,
            programs: BTreeMap::new(),
            clocks: None,
            needs: Profile::Minimal,
            // One that the job survives would bring back connections that went on without it.
            connections: match (self.tcp, kept, subject.course.now()) {
                (Tcp::Established, Kept::Stored, Afterwards::Stop) => Connections::Kept,
                _ => Connections::Closed,
            },
        })
    }

    fn tidy_up(&self, images: &Path, failed: bool) {
        sys::give_memory_back();
        let log = keep_log(&self.work, images, failed);
        *self
            .complaint
            .lock()
            .expect("no holder of this lock panics") = log;
    }

    /// What CRIU said in the latest attempt, if that failed; once.
    pub(crate) fn complaint(&self) -> Option<EngineLog> {
        let mut complaint = self
            .complaint
            .lock()
            .expect("no holder of this lock panics");
        complaint.take()
    }

    /// The job's processes were given this, which goes with them.
    pub(crate) fn carry(&self, given: Given) {
        self.given.set(given).expect("a boot ends once");
    }

    /// The level of x86-64 that a host needs at least to take the job over; None on other architectures.
    pub(crate) fn needed_level(&self) -> Option<String> {
        let baseline = self.given.get().and_then(|given| given.baseline.clone());
        let level = || Level::of(&self.host.cpu_features).map(|level| level.as_str().to_owned());
        baseline.or_else(level)
    }

    /// How the newest checkpoint is stored, or was.
    pub(crate) fn storing(&self) -> Option<Storing> {
        let newest = self.storing.lock().expect("no holder of this lock panics");
        newest.as_ref()?.storing()
    }

    /// More is known of the way to the store.
    pub(crate) fn carried(&self, learn: impl FnOnce(&mut Way)) {
        self.way.send_if_modified(|way| {
            let before = *way;
            learn(way);
            *way != before
        });
    }

    /// This snapshot is sound, and what the app's memory began from.
    pub(crate) fn build_upon(&self, snapshot: Candidate) {
        *self.base.lock().expect("no holder of this lock panics") = Some(snapshot);
    }

    pub(crate) fn base(&self) -> Option<Candidate> {
        let base = self.base.lock().expect("no holder of this lock panics");
        base.clone()
    }

    /// What a snapshot has of the app's memory, if it is worth comparing with.
    pub(crate) async fn load(
        &self,
        base: &Candidate,
        deadline: TokioInstant,
    ) -> Result<Option<Known>, Box<dyn std::error::Error + Send + Sync>> {
        let read = load::manifest(&self.catalog, base, deadline).await?;
        let id = |key: &Arc<MasterKey>| key.id().to_owned();
        // What is sealed with another key, or not at all, is not relied on any further: who has that key could have
        // altered it.
        let is_ours = read.key.as_ref().map(id) == self.ownership.key.as_ref().map(id);
        if !is_ours || !Known::is_worth_it(&read.manifest.parts) {
            return Ok(None);
        }
        // Also makes sure that every part that may be referred to is there.
        let snapshot = load::load(&self.catalog, base, &self.host, deadline).await?;
        let Some(files) = Known::files(&snapshot.index) else {
            return Ok(None);
        };
        let mut hashes = Vec::new();
        for file in files {
            hashes.push(snapshot.file(file, deadline).await?);
        }
        let mut known = Known::new(
            &snapshot.index,
            &snapshot.manifest.parts,
            hashes,
            self.waste_factor,
        )?;
        known.keys = snapshot.manifest.keys;
        Ok(Some(known))
    }

    /// For the page hashes of a job of which nothing is known.
    pub(crate) fn page_key(&self) -> io::Result<PageKey> {
        PageKey::fresh(self.ownership.key.is_some())
    }

    /// What an attempt of this name seals with.
    pub(crate) fn seal(&self, attempt: &str) -> io::Result<Option<Seal>> {
        let Some(master) = &self.ownership.key else {
            return Ok(None);
        };
        let (key, wrapped) = AttemptKey::fresh(master, self.catalog.job(), attempt)?;
        let key = Arc::new(key);
        Ok(Some(Seal { key, wrapped }))
    }

    /// Processes of the job that were left to us, and would be left out of a snapshot.
    /// By what the job's clocks would go on.
    pub(crate) fn clocks(&self, root: i32) -> io::Result<Means> {
        if self.realm.is_some() {
            return Ok(Means::Namespace);
        }
        let library = self.given.get().and_then(|given| given.library.as_ref());
        let Some(library) = library.filter(|library| clocks::keeps(library)) else {
            return Ok(Means::Nothing);
        };
        let tree = proc::tree(&proc::processes()?, root);
        Ok(Means::Library(clocks::by_the_host(&tree, library)))
    }

    /// The largest deleted file that a dump takes now, in bytes.
    pub(crate) fn ghost_limit(&self) -> u64 {
        checkup::ghost_limit(self.ghost_limit, host::room(&self.work))
    }

    pub(crate) fn orphans(&self, root: i32) -> io::Result<Vec<Process>> {
        Ok(self.orphans_of(&proc::processes()?, root))
    }

    fn orphans_of(&self, all: &[Process], root: i32) -> Vec<Process> {
        let watched = self.reaper.watched();
        let mut known = watched.clone();
        known.push(root);
        known.extend(&self.strangers);
        let mut orphans = proc::other_children(all, own_pid(), &known);
        if let Some(realm) = &self.realm {
            orphans.extend(proc::other_children(all, realm.keeper, &known));
        }
        // A program of the user's leads a session of its own; what it left to us is killed when it ends.
        orphans.retain(|orphan| {
            let session = getsid(Some(Pid::from_raw(orphan.pid))).map_or(0, Pid::as_raw);
            session == root || !watched.contains(&session)
        });
        orphans
    }

    fn refuse_orphans(&self, subject: &Subject) -> Result<Vec<Process>, CheckpointError> {
        let all = proc::processes()?;
        let orphans = self.orphans_of(&all, subject.root_pid);
        if orphans.is_empty() {
            Ok(proc::tree(&all, subject.root_pid))
        } else {
            Err(CheckpointError::Orphans(orphans))
        }
    }
}

fn own_pid() -> i32 {
    nix::unistd::getpid().as_raw()
}

/// The work directory lies in memory: only the log of the last failure stays. Returns the end of that.
fn keep_log(work: &Path, images: &Path, failed: bool) -> Option<EngineLog> {
    let log = images.join(criu::LOG);
    let said = failed.then(|| end_of(&log)).flatten();
    if failed {
        drop(std::fs::copy(&log, work.join("last-failed-dump.log")));
    }
    drop(std::fs::remove_dir_all(images));
    said
}

/// The last lines of CRIU's log. None if it wrote none.
pub(crate) fn end_of(log: &Path) -> Option<EngineLog> {
    let mut file = std::fs::File::open(log).ok()?;
    let bytes = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(bytes.saturating_sub(LOG_TAIL)))
        .ok()?;
    let mut tail = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut tail).ok()?;
    // From the beginning of a line on.
    let cut = match bytes > LOG_TAIL {
        true => tail.iter().position(|&byte| byte == b'\n').unwrap_or(0),
        false => 0,
    };
    let tail = String::from_utf8_lossy(&tail[cut..]);
    Some(EngineLog {
        bytes,
        tail: tail.trim_start_matches('\n').to_owned(),
    })
}

/// Runs what blocks on a thread of its own: the runtime's may all be waiting for a store that hangs.
async fn blocking<T: Send + 'static>(
    what: impl FnOnce() -> T + Send + 'static,
) -> Result<T, CheckpointError> {
    let (done, result) = oneshot::channel();
    std::thread::Builder::new()
        .name("checkpoint".into())
        // Whoever waited may have given up.
        .spawn(move || drop(done.send(what())))?;
    result.await.map_err(|_| CheckpointError::Panicked)
}

impl Attempt<'_> {
    async fn run(&mut self, notice: Notice) -> Result<Report, CheckpointError> {
        steps::reached(Step::Begun);
        let step = self.of.journal.checkpoint_step(CheckpointPhase::Prepare);
        self.of.refuse_orphans(self.subject)?;
        let known = self.look().await?;
        let tree = self.of.refuse_orphans(self.subject)?;
        let pids = tree.into_iter().map(|process| process.pid);
        let seen = Arc::clone(&self.of.seen);
        self.programs = blocking(move || seen.mapped(pids)).await?;
        if let Some(library) = self.of.given.get().and_then(|given| given.library.as_ref()) {
            // It is put there before a resume.
            self.programs.remove(&*library.path.to_string_lossy());
        }
        steps::reached(Step::Looked);
        step.done();
        let step = self.of.journal.checkpoint_step(CheckpointPhase::Dump);
        let frozen = self.freeze(&known).await?;
        step.done();
        match self.subject.course.now() {
            Afterwards::Stop => self.store_and_stop(notice, frozen).await,
            Afterwards::Continue => self.thaw_and_store(notice, frozen).await,
        }
    }

    /// All that happens while a job is frozen, and nothing that comes after.
    async fn rehearse(&mut self) -> Result<Rehearsed, CheckpointError> {
        self.of.refuse_orphans(self.subject)?;
        let known = Arc::new(Known::nothing(self.of.page_key()?));
        let Frozen {
            asked,
            criu,
            mut transfer,
            since,
        } = self.freeze(&known).await?;
        let still = self.stand_still(&mut transfer).await;
        let frozen = let_go(self.subject, &mut Some(asked), since).await;
        let Transfer { server, blocks, .. } = transfer;
        let captured = match &still {
            Ok(_) => {
                drop(blocks);
                Some(blocking(move || server.finish()).await)
            }
            Err(_) => {
                server.hang_up();
                None
            }
        };
        wait_for(criu).await;
        let still = still?;
        let pages = captured
            .transpose()?
            .transpose()?
            .map_or(0, |all| all.pages);
        Ok(Rehearsed {
            frozen,
            wall: self.begun.elapsed(),
            memory: pages * crate::pages::PAGE as u64,
            files: still.files.map_or(0, |taken| taken.sizes.bytes),
        })
    }

    fn destination(&self) -> Destination {
        let limits = self.limits.clone();
        Destination {
            store: Arc::clone(self.of.catalog.store()),
            root: self.of.catalog.root(),
            attempt: self.name.clone(),
            in_flight: self.of.in_flight,
            deadline: Deadline::new(move || limits.borrow().stored_by),
        }
    }

    /// What decides how hard to compress.
    fn tuning(&self) -> Tuning {
        let tree = proc::tree(
            &proc::processes().unwrap_or_default(),
            self.subject.root_pid,
        );
        let expected = tree.iter().map(|process| proc::memory(process.pid)).sum();
        let limits = self.limits.clone();
        let deadline = move || limits.borrow().stored_by;
        let Checkpointer {
            workers, in_flight, ..
        } = *self.of;
        let compression = match self.kept {
            Kept::Stored => self.of.compression,
            // What nobody keeps need not be small.
            Kept::ThrownAway => Wanted::Always(effort::Level::Raw),
        };
        let usual = Usual {
            way: *self.of.way.borrow(),
            comparing: self.comparing,
            ..*self.of.usual.lock().expect("no holder of this lock panics")
        };
        Tuning::new(compression, workers, in_flight, expected, usual, deadline)
    }

    /// While the app still runs: whether it is still ours to commit, and what the store has of it already. Apart from the
    /// first, anything in the way of knowing it, time included, costs time later and nothing else.
    async fn look(&mut self) -> Result<Arc<Known>, CheckpointError> {
        let now = TokioInstant::now();
        let left = self
            .limits
            .borrow()
            .stored_by
            .saturating_duration_since(now);
        let deadline = now + left / u32::try_from(LOOKING).expect("it is small");
        match self.of.ownership.refresh(deadline).await {
            Ok(head) => self.head = head,
            Err(error @ CatalogError::Fenced(_)) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(
                    reason = with_causes(&error),
                    "the head could not be read; what is known of it is used"
                );
            }
        }
        // One that was removed meanwhile may lose its parts at any moment.
        let base = self
            .of
            .base()
            .filter(|base| self.head.names(&base.manifest));
        let name = base.as_ref().map(|base| base.manifest.as_str());
        if let Some(known) = self.of.seeds.hold(name).await {
            return Ok(known);
        }
        let looking_ms = *self
            .of
            .looking_ms
            .lock()
            .expect("no holder of this lock panics");
        if base.is_some() && leaves_out_comparing(looking_ms, millis(left)) {
            self.comparing = Comparing::LeftOut;
        } else if let Some(base) = base {
            let loaded = timeout_at(deadline, self.of.load(&base, deadline)).await;
            *self
                .of
                .looking_ms
                .lock()
                .expect("no holder of this lock panics") = Some(millis(now.elapsed()));
            let reason = match loaded {
                Ok(Ok(Some(known))) => return Ok(Arc::new(known)),
                Ok(Ok(None)) => None,
                Ok(Err(error)) => Some(with_causes(&*error)),
                Err(_) => Some("reading it takes too long".to_owned()),
            };
            if let Some(reason) = reason {
                tracing::warn!(
                    snapshot = base.manifest,
                    reason,
                    "the snapshot before cannot be built upon; this one is stored whole"
                );
            }
        }
        Ok(Arc::new(Known::nothing(self.of.page_key()?)))
    }

    fn key(&self) -> Option<Arc<AttemptKey>> {
        self.seal.as_ref().map(|seal| Arc::clone(&seal.key))
    }

    /// Dumps until CRIU asks whether to go on, with the app frozen.
    async fn freeze(&mut self, known: &Arc<Known>) -> Result<Frozen, CheckpointError> {
        let tuning = Arc::new(self.tuning());
        let spare = Buffers::default();
        let (sender, writer) = match self.kept {
            Kept::Stored => {
                self.tell_storing(&tuning);
                parts::start(self.destination(), Arc::clone(&tuning), spare.clone())
            }
            Kept::ThrownAway => parts::throw_away(spare.clone()),
        };
        let mut writer = Writer(writer);
        let blocks = Blocks::new(sender, spare, tuning, self.key(), known.blocks.len());
        let mut server = PageServer::start(&blocks, known, self.of.workers)?;
        let hooks = Hooks::bind(self.images.join("hook.sock"))?;
        let socket = server.socket.take().expect("taken only here");
        let realm = self.of.realm.as_deref();
        let ipc = realm
            .map(|realm| realm.ipc_of(self.subject.root_pid))
            .transpose()?;
        if ipc.as_ref().is_some_and(|ipc| ipc.used) {
            self.needs = Profile::Full;
        }
        let order = DumpOrder {
            connections: self.connections,
            root_pid: proc::innermost(self.subject.root_pid),
            realm: realm
                .zip(ipc.as_ref())
                .map(|(realm, ipc)| realm.dump_entry(ipc)),
            images: &self.images,
            page_server: &socket,
            stdio: self.subject.stdio.facts(),
            ghost_limit: self.of.ghost_limit(),
            watched: &self.of.watched,
            freeze_within: self
                .limits
                .borrow()
                .stored_by
                .saturating_duration_since(TokioInstant::now()),
            hook: &hooks.path,
        };
        let watched = self.of.criu.start_dump(&self.of.reaper, &order)?;
        steps::reached(Step::Dumping);
        // Only CRIU holds its end now, so that its end is the end of the transfer.
        drop(socket);
        let mut criu = Running {
            pid: watched.pid,
            exit: watched.exit,
        };
        let mut since = Instant::now();
        let failure = loop {
            tokio::select! {
                biased;
                asked = hooks.next() => match asked {
                    Ok(asked) if asked.stage == "post-dump" => {
                        self.clocks = Some(self.app_clocks());
                        if self.began_ipc(ipc.as_ref()) {
                            break CheckpointError::Ipc;
                        }
                        steps::reached(Step::Frozen);
                        let transfer = Transfer { server, blocks, writer, known: Arc::clone(known) };
                        return Ok(Frozen { asked, criu, transfer, since });
                    }
                    Ok(asked) => {
                        if asked.stage == "pre-dump" {
                            since = Instant::now();
                        }
                        asked.go_on().await;
                    }
                    Err(error) => break error.into(),
                },
                exit = &mut criu.exit => {
                    let exit = exit.unwrap_or(Exit::Code(u8::MAX));
                    break self.dump_failed(exit);
                }
                stored = &mut writer.0 => {
                    // It ends before everything was sent only when it cannot store.
                    break match stored {
                        Ok(Err(error)) => error.into(),
                        _ => CheckpointError::Panicked,
                    };
                }
                () = expired(&mut self.limits, |limits| limits.stored_by) => {
                    break CheckpointError::Deadline { step: "the app's memory was being read and stored" };
                }
            }
        };
        // Dropping the hooks makes any script that still asks end with a no.
        drop(hooks);
        drop(writer);
        drop(blocks);
        let reason = thaw(criu, server).await;
        Err(prefer(failure, reason))
    }

    fn tell_storing(&mut self, tuning: &Arc<Tuning>) {
        self.tuning = Some(Arc::clone(tuning));
        *self
            .of
            .storing
            .lock()
            .expect("no holder of this lock panics") = Some(Arc::clone(tuning));
        if let Some(storing) = tuning.storing() {
            self.of.journal.checkpoint_is_stored(&storing);
        }
    }

    fn app_clocks(&self) -> Clocks {
        let realm = self.of.realm.as_ref();
        realm.map_or_else(realm::own_clocks, |realm| realm.clocks())
    }

    /// Whether the app has System V IPC now that CRIU was not to look for. What cannot be read is no reason to fail.
    fn began_ipc(&self, before: Option<&AppIpc>) -> bool {
        let Some((realm, before)) = self.of.realm.as_ref().zip(before) else {
            return false;
        };
        !before.used
            && realm
                .ipc_of(self.subject.root_pid)
                .is_ok_and(|now| now.used)
    }

    fn dump_failed(&self, exit: Exit) -> CheckpointError {
        if proc::process(self.subject.root_pid).is_none_or(|root| root.state == 'Z') {
            return CheckpointError::AppEnded;
        }
        criu::complaint("dump", exit, &self.images).into()
    }

    async fn store_and_stop(
        &mut self,
        notice: Notice,
        frozen: Frozen,
    ) -> Result<Report, CheckpointError> {
        let Frozen {
            asked,
            mut criu,
            transfer,
            since,
        } = frozen;
        let (subject, images) = (self.subject, self.images.clone());
        let (mut asked, mut spared_after) = (Some(asked), None);
        let result = {
            let mut transfer = transfer;
            let still = self.stand_still(&mut transfer).await;
            let stored = async {
                let manifest = self.store_and_commit(notice, still?, transfer).await?;
                Ok(manifest)
            };
            tokio::pin!(stored);
            tokio::select! {
                result = &mut stored => result,
                // It should wait for our answer; if it does not, the app is no longer frozen.
                _ = &mut criu.exit => Err(CheckpointError::Criu(criu::complaint("dump", Exit::Code(1), &images))),
                () = subject.course.spared() => {
                    spared_after = Some(let_go(subject, &mut asked, since).await);
                    stored.await
                }
            }
        };
        match result {
            Ok(manifest) => {
                steps::reached(Step::Committed);
                let frozen_for = match (spared_after, subject.course.take()) {
                    (Some(frozen_for), _) => frozen_for,
                    (None, Afterwards::Continue) => let_go(subject, &mut asked, since).await,
                    (None, Afterwards::Stop) => {
                        self.kill();
                        steps::reached(Step::Killed);
                        let frozen_for = since.elapsed();
                        match (self.connections, asked.take()) {
                            (Connections::Kept, _) => leave_connections(&criu),
                            (Connections::Closed, Some(asked)) => asked.go_on().await,
                            (Connections::Closed, None) => {}
                        }
                        frozen_for
                    }
                };
                steps::reached(Step::Thawed);
                wait_for(criu).await;
                steps::reached(Step::Done);
                Ok(self.report(&manifest, frozen_for))
            }
            Err(error) => {
                if matches!(error, CheckpointError::Commit(CatalogError::Fenced(_))) {
                    // It runs elsewhere; here it must not run another instruction.
                    self.kill();
                }
                // No answer is a no: CRIU lets the app go on.
                drop(asked);
                wait_for(criu).await;
                self.subject.stdio.resume();
                Err(error)
            }
        }
    }

    /// Ends the frozen app: as it is, it cannot start anything new meanwhile.
    fn kill(&self) {
        let all = proc::processes().unwrap_or_default();
        for process in proc::tree(&all, self.subject.root_pid) {
            drop(sys::kill(process.pid, nix::libc::SIGKILL));
        }
    }

    async fn thaw_and_store(
        &mut self,
        notice: Notice,
        frozen: Frozen,
    ) -> Result<Report, CheckpointError> {
        let Frozen {
            asked,
            criu,
            mut transfer,
            since,
        } = frozen;
        let still = self.stand_still(&mut transfer).await;
        let frozen_for = let_go(self.subject, &mut Some(asked), since).await;
        steps::reached(Step::Thawed);
        let result = match still {
            Ok(still) => {
                async {
                    let manifest = self.store_and_commit(notice, still, transfer).await?;
                    steps::reached(Step::Committed);
                    Ok(self.report(&manifest, frozen_for))
                }
                .await
            }
            Err(error) => {
                transfer.server.hang_up();
                Err(error)
            }
        };
        wait_for(criu).await;
        steps::reached(Step::Done);
        result
    }

    /// Takes what has to be taken before the app moves again.
    async fn stand_still(&mut self, transfer: &mut Transfer) -> Result<Still, CheckpointError> {
        let tree = self.of.refuse_orphans(self.subject)?;
        let held = self.cut().await?;
        let files = match self.of.preserver.clone() {
            Some(preserver) => Some(self.preserve(preserver, &tree, transfer).await?),
            None => None,
        };
        let by_host_clocks = self.by_host_clocks(&tree).await?;
        Ok(Still {
            tree,
            held,
            files,
            by_host_clocks,
        })
    }

    /// Who would not go on by the library with which the app's clocks do; None if there is no such library.
    async fn by_host_clocks(
        &self,
        tree: &[Process],
    ) -> Result<Option<Vec<String>>, CheckpointError> {
        let library = self.of.given.get().and_then(|given| given.library.clone());
        let Some(library) = library.filter(clocks::keeps) else {
            return Ok(None);
        };
        let tree = tree.to_vec();
        let named = blocking(move || clocks::by_the_host(&tree, &library)).await?;
        if !named.is_empty() {
            tracing::info!(
                processes = named.join(", "),
                "processes go by the host's clocks, and not by the library with which the job's go on"
            );
        }
        Ok(Some(named))
    }

    /// Finds the app's files, and hands over what is not in the store.
    async fn preserve(
        &mut self,
        preserver: Arc<Preserver>,
        tree: &[Process],
        transfer: &mut Transfer,
    ) -> Result<Taken, CheckpointError> {
        let step = match self.kept {
            Kept::Stored => Some(self.of.journal.checkpoint_step(CheckpointPhase::Preserve)),
            // The journal has checkpoints.
            Kept::ThrownAway => None,
        };
        let pids: Vec<i32> = tree.iter().map(|process| process.pid).collect();
        let base = self.of.base().map(|base| base.manifest);
        let (known, blocks) = (Arc::clone(&transfer.known), transfer.blocks.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Stopped(Arc::clone(&stop));
        let taken =
            blocking(move || preserver.take(&pids, base.as_deref(), &known, &blocks, &stop));
        let taken = tokio::select! {
            taken = taken => taken?,
            () = expired(&mut self.limits, |limits| limits.stored_by) => {
                return Err(CheckpointError::Deadline { step: "the app's files were being read and stored" });
            }
        };
        drop(stopped);
        if let Some(step) = step {
            step.done();
        }
        match taken {
            // Who takes the blocks has the reason.
            Err(TakeError::Pack(CaptureError::Closed)) => {
                Err(match (&mut transfer.writer.0).await {
                    Ok(Err(error)) => error.into(),
                    _ => CheckpointError::Panicked,
                })
            }
            taken => Ok(taken?),
        }
    }

    async fn store_and_commit(
        &mut self,
        notice: Notice,
        mut still: Still,
        transfer: Transfer,
    ) -> Result<Manifest, CheckpointError> {
        let seen = still
            .files
            .as_mut()
            .map(|taken| std::mem::take(&mut taken.seen));
        let manifest = self.store(notice, still, transfer).await?;
        self.commit(&manifest).await?;
        if let (Some(preserver), Some(mut seen)) = (&self.of.preserver, seen) {
            seen.manifest = manifest.key();
            preserver.saw(seen);
        }
        Ok(manifest)
    }

    async fn cut(&mut self) -> Result<Held, CheckpointError> {
        let stdio = Arc::clone(&self.subject.stdio);
        tokio::select! {
            held = blocking(move || stdio.cut()) => {
                let held = held??;
                steps::reached(Step::Cut);
                Ok(held)
            }
            () = expired(&mut self.limits, |limits| limits.stored_by) => {
                Err(CheckpointError::Deadline { step: "the standard streams were being stopped" })
            }
        }
    }

    /// Stores everything but the manifest.
    async fn store(
        &mut self,
        notice: Notice,
        still: Still,
        transfer: Transfer,
    ) -> Result<Manifest, CheckpointError> {
        let Still {
            tree,
            held,
            files: taken,
            by_host_clocks,
        } = still;
        let (files_of_app, preserved) = match taken {
            Some(taken) => {
                crate::metrics::preserved(&taken.sizes, taken.read);
                tracing::debug!(
                    files = taken.sizes.files,
                    bytes = taken.sizes.bytes,
                    changed_bytes = taken.sizes.changed,
                    read_bytes = taken.read,
                    "the app's files are in the snapshot"
                );
                (taken.files, Some(taken.sizes))
            }
            None => (Vec::new(), None),
        };
        let Transfer {
            server,
            blocks,
            mut writer,
            known,
        } = transfer;
        let step = self.of.journal.checkpoint_step(CheckpointPhase::Drain);
        let stdin_ended = held.stdin_ended;
        let images = self.images.clone();
        let Given {
            library,
            filtered,
            baseline,
        } = self.of.given.get().cloned().unwrap_or_default();
        let carried = library.clone();
        let gathered = tokio::select! {
            gathered = blocking(move || gather(&images, &held, carried.as_ref(), blocks, server)) => gathered?,
            () = expired(&mut self.limits, |limits| limits.stored_by) => {
                return Err(CheckpointError::Deadline { step: "the app's memory was being packed" });
            }
        };
        step.done();
        steps::reached(Step::Drained);
        let step = self.of.journal.checkpoint_step(CheckpointPhase::Upload);
        // A writer that failed closes the door on those before it, so its reason goes first.
        let stored = tokio::select! {
            stored = &mut writer.0 => stored.map_err(|_| CheckpointError::Panicked)??,
            () = expired(&mut self.limits, |limits| limits.stored_by) => {
                return Err(CheckpointError::Deadline { step: "the snapshot was being stored" });
            }
        };
        steps::reached(Step::Uploaded);
        let (captured, files) = gathered?;
        let Stored { parts, blocks } = stored;
        let pages = |count: u64| count * crate::pages::PAGE as u64;
        let sizes = Sizes {
            memory: pages(captured.pages),
            zero: pages(captured.zero_pages),
            unchanged: pages(captured.unchanged_pages),
            images: files.iter().map(|file| file.size).sum(),
            stored: parts.iter().map(|part| part.bytes).sum(),
            preserved,
        };
        let index = Index {
            blocks: Vec::new(),
            files,
            memories: captured.memories,
            page_key: known.key.to_index(),
            preserved: files_of_app,
        };
        let mut keys = known.keys.clone();
        if let Some(seal) = &self.seal {
            keys.insert(self.name.clone(), seal.wrapped.clone());
        }
        let key = self.key();
        let (index, mut parts) = blocking(move || {
            let Assembled { index, parts } = known::assemble(&known, parts, blocks, index);
            let bytes = index.to_bytes(key.as_deref());
            bytes.map(|bytes| (bytes, parts))
        })
        .await??;
        let digest = document::digest(&index);
        let index = self
            .destination()
            .put("index", index.into(), digest)
            .await?;
        let sizes = Sizes {
            stored: sizes.stored + index.bytes,
            ..sizes
        };
        parts.push(index);
        step.done();
        steps::reached(Step::Indexed);
        let libc = self.of.seen.libc(&self.programs);
        let head = &self.head;
        Ok(Manifest {
            job: head.job.clone(),
            generation: head.next_generation,
            epoch: head.epoch,
            attempt: self.name.clone(),
            parent: head.tip().map(|tip| tip.generation),
            taken_at_ms: host::wall_ms(),
            trigger: Some(notice.trigger),
            afterwards: self.subject.course.now(),
            decision: self.subject.decision,
            storing: self.tuning.as_ref().and_then(|tuning| tuning.storing()),
            commands: self.subject.commands.clone(),
            app: AppFacts {
                argv: self.subject.argv.clone(),
                root_pid: proc::innermost(self.subject.root_pid),
                stdio: self.subject.stdio.facts().clone(),
                stdin_ended,
                processes: u32::try_from(tree.len()).unwrap_or(u32::MAX),
                monotonic_ms: self.app_clocks().monotonic_ns / 1_000_000,
                clocks: self.clocks,
                by_host_clocks,
                needs: self.needs,
                library: library.map(|library| library.path.to_string_lossy().into_owned()),
                filtered,
                programs: std::mem::take(&mut self.programs),
            },
            host: HostFacts {
                cpu_baseline: baseline,
                libc,
                ..self.of.host.clone()
            },
            index: vec![parts.len() - 1],
            keys: known::keys_of(&parts, &keys),
            parts,
            sizes,
        })
    }

    async fn commit(&mut self, manifest: &Manifest) -> Result<(), CheckpointError> {
        let step = self.of.journal.checkpoint_step(CheckpointPhase::Commit);
        let deadline = self.limits.borrow().committed_by;
        let (ownership, base) = (&self.of.ownership, self.of.base());
        let base = base.as_ref().map(|base| base.manifest.as_str());
        let keep = match self.subject.keeps_all {
            true => Policy {
                last: usize::MAX,
                ..self.of.keep
            },
            false => self.of.keep,
        };
        let head = ownership.commit(manifest, base, keep, deadline).await?;
        if let Some(newest) = head.generations.first() {
            self.of.build_upon(newest.into());
        }
        step.done();
        Ok(())
    }

    fn report(&self, manifest: &Manifest, frozen: Duration) -> Report {
        let left = self
            .limits
            .borrow()
            .committed_by
            .saturating_duration_since(TokioInstant::now());
        Report {
            generation: manifest.generation,
            afterwards: self.subject.course.now(),
            sizes: manifest.sizes,
            frozen,
            wall: self.begun.elapsed(),
            left,
        }
    }
}

/// The app goes on. Says how long it stood still.
async fn let_go(subject: &Subject, asked: &mut Option<Asked>, since: Instant) -> Duration {
    if let Some(asked) = asked.take() {
        asked.go_on().await;
    }
    let frozen_for = since.elapsed();
    subject.stdio.resume();
    subject.thawed.notify_one();
    frozen_for
}

/// Waits until a limit that may come closer, or go further away, has passed.
pub(crate) async fn expired(
    limits: &mut watch::Receiver<Limits>,
    which: impl Fn(&Limits) -> TokioInstant,
) {
    loop {
        let limit = which(&limits.borrow_and_update());
        tokio::select! {
            () = sleep_until(limit) => return,
            changed = limits.changed() => if changed.is_err() {
                // Nobody can change it any more.
                return sleep_until(limit).await;
            }
        }
    }
}

type Gathered = Result<(Captured, Vec<File>), CaptureError>;

/// Packs what CRIU left in its directory and what the streams held, and ends the transfer of memory.
fn gather(
    images: &Path,
    held: &Held,
    library: Option<&Library>,
    blocks: Blocks,
    server: PageServer,
) -> Gathered {
    let mut files = blocks.add_directory(images)?;
    for (name, bytes) in HELD
        .into_iter()
        .zip([&held.stdin, &held.stdout, &held.stderr])
    {
        files.push(blocks.add(name, bytes.as_slice())?);
    }
    if let Some(library) = library {
        files.push(blocks.add(LIBRARY, library.bytes.as_slice())?);
    }
    let captured = server.finish()?;
    for (memory, hashes) in captured.hashes.iter().enumerate() {
        files.push(blocks.add(&known::hashes_name(memory), hashes.as_slice())?);
    }
    // With the last sender gone, the writer knows that this was all.
    drop(blocks);
    Ok((captured, files))
}

/// Tells a thread that its work is not wanted any more.
struct Stopped(Arc<AtomicBool>);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Ends a dump that is not wanted any more, so that the app goes on. Returns why the transfer of memory ended.
async fn thaw(criu: Running, server: PageServer) -> Option<CaptureError> {
    server.hang_up();
    wait_for(criu).await;
    blocking(move || server.finish().err()).await.ok().flatten()
}

/// A failure of ours in the transfer explains CRIU's; CRIU's own explains that it ended early.
fn prefer(failure: CheckpointError, transfer: Option<CaptureError>) -> CheckpointError {
    match (failure, transfer) {
        (
            CheckpointError::Criu(_),
            Some(reason @ (CaptureError::Protocol(_) | CaptureError::Pack(_))),
        ) => reason.into(),
        (failure, _) => failure,
    }
}

/// Ends CRIU, which has the last descriptors of the job's connections by now. It would let them go, and the kernel would
/// close them; of one that ends as it is, their peers are told nothing. Nor by resets, as long as we are here.
fn leave_connections(criu: &Running) {
    match Hush::begin() {
        Ok(hush) => hush.last(),
        // They are lost if a packet comes.
        Err(error) => tracing::error!(%error, "connections may be lost"),
    }
    drop(sys::kill(criu.pid, nix::libc::SIGKILL));
}

/// Waits for CRIU's end, with rising insistence.
async fn wait_for(mut criu: Running) {
    if criu.exit.is_terminated() {
        return;
    }
    for signal in [nix::libc::SIGTERM, nix::libc::SIGKILL] {
        if timeout(CURE_LIMIT, &mut criu.exit).await.is_ok() {
            return;
        }
        tracing::error!(
            pid = criu.pid,
            signal,
            "CRIU does not let go of the app; ending CRIU"
        );
        drop(sys::kill(criu.pid, signal));
    }
    drop(timeout(CURE_LIMIT, criu.exit).await);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_log_the_last_lines_are_kept() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let log = directory.path().join(criu::LOG);
        assert_eq!(end_of(&log), None);
        std::fs::write(&log, "(00.1) one\nError two\n").expect("the directory is ours");
        let short = end_of(&log).expect("it is there");
        assert_eq!(
            (short.bytes, short.tail.as_str()),
            (21, "(00.1) one\nError two\n")
        );
        let long = "a line of the log\n".repeat(20_000) + "Error at the end\n";
        std::fs::write(&log, &long).expect("the directory is ours");
        let kept = end_of(&log).expect("it is there");
        assert_eq!(kept.bytes, long.len() as u64);
        assert!(kept.tail.len() as u64 <= LOG_TAIL, "{}", kept.tail.len());
        assert!(kept.tail.starts_with("a line of the log\n"));
        assert!(kept.tail.ends_with("Error at the end\n"));
    }
}
