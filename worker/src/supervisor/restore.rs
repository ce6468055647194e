//! Carries out the restore order: the newest snapshot first, the next older one when it cannot be used.
//!
//! CRIU builds the process tree while the snapshot is still being fetched and verified, and stops at its `post-restore`
//! stage: every process is there, none has run. Only when every byte it was handed was sound does it go on. A snapshot
//! that fails before that leaves nothing behind, so that the next one can be tried.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reprieve_core::clock::{self, Verdict};
use reprieve_core::files::Mismatch;
use reprieve_core::manifest::{self, Clocks, HostFacts, Manifest, Profile};
use reprieve_core::moved::Move;
use reprieve_core::rollback;
use reprieve_core::selection::Candidate;
use tokio::runtime::Handle;
use tokio::time::{Instant as TokioInstant, sleep, timeout, timeout_at};

use crate::catalog::{self, Catalog, CatalogError};
use crate::clocks;
use crate::engine::criu::{self, Connections, Criu, CriuError, RestoreOrder};
use crate::engine::hook::Hooks;
use crate::host;
use crate::images::{self, Bound, Core};
use crate::journal::Journal;
use crate::metrics::RestorePhase;
use crate::pages::index::File;
use crate::pages::load::{self, Snapshot, Unusable};
use crate::pages::serve::{ImageServer, OPEN_FILES, ServeError};
use crate::preload::Library;
use crate::preserve::Preserver;
use crate::preserve::put::{Placed, PutError};
use crate::settings::Tcp;
use crate::steps::{self, Step};
use crate::supervisor::boot::Gate;
use crate::supervisor::checkpoint::{self, HELD, LIBRARY};
use crate::supervisor::files;
use crate::supervisor::ownership::Ownership;
use crate::supervisor::pids;
use crate::supervisor::proc;
use crate::supervisor::realm::{self, Realm};
use crate::supervisor::reaper::{Reaper, Watched};
use crate::supervisor::reports::Unresumed;
use crate::supervisor::stdio::{Held, Kind, Stdio, Streams};
use crate::supervisor::with_causes;
use crate::sys::{self, Exit};

/// A process of somebody else that has a number which the app needs is usually gone a moment later.
const COLLISION_TRIES: u32 = 20;

/// What is killed is killed by a person or by the kernel where memory runs out, which says nothing about the snapshot.
const KILL_TRIES: u32 = 3;

/// How long CRIU may take to let the app go once it was told to.
const RELEASE_LIMIT: Duration = Duration::from_secs(60);

/// Between two of those tries.
const COLLISION_PAUSE: Duration = Duration::from_millis(50);

/// How long CRIU may take to end after it was told to.
const END_LIMIT: Duration = Duration::from_secs(5);

/// Why one snapshot could not be resumed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RestoreError {
    #[error(transparent)]
    Unusable(#[from] Unusable),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Criu(#[from] CriuError),
    #[error("the job's files cannot be put in place")]
    Put(#[from] PutError),
    #[error(
        "the snapshot has files of the job, and this worker is to preserve none: give it the --preserve that it was taken with"
    )]
    NotPreserving,
    #[error("{} as the job's processes had them: {}", count(.0), listed(.0))]
    Files(Vec<Mismatch>),
    #[error("this host has no address {}", addresses(.0))]
    Addresses(Vec<Bound>),
    #[error("this host's CLOCK_MONOTONIC is {} behind the snapshot's{processes}", seconds(*.behind_ms))]
    Clock {
        behind_ms: u64,
        /// Who goes by it.
        processes: String,
    },
    #[error("the waits of the restored processes could not be set to this host's clock")]
    Waits(#[source] io::Error),
    #[error("it was not restored within the limit")]
    Deadline,
    #[error("this host has no room for it")]
    Work(#[from] io::Error),
    /// The job was not let run, because nobody would know later that it went back.
    #[error("the app's own namespaces could not be made")]
    Realm(#[source] io::Error),
    #[error("that the job goes back could not be stored")]
    NotNoted(#[source] CatalogError),
    /// The app was let run; nothing else may be started beside it or after it.
    #[error("the app was let run and was lost before it could be supervised")]
    Lost(#[source] Box<RestoreError>),
}

/// Who goes by a host's clocks, if that is known.
fn by_the_host(manifest: &Manifest) -> String {
    let named = manifest.app.by_host_clocks.as_deref().unwrap_or_default();
    match named.is_empty() {
        true => String::new(),
        false => format!(", and so are those of {}", named.join(", ")),
    }
}

fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

fn addresses(missing: &[Bound]) -> String {
    let named = missing
        .iter()
        .map(|bound| format!("{} ({})", bound.address, bound.socket));
    named.collect::<Vec<_>>().join(", ")
}

/// Files that are named in a message.
const NAMED: usize = 8;

fn count(files: &[Mismatch]) -> String {
    match files.len() {
        1 => "1 file is not".to_owned(),
        count => format!("{count} files are not"),
    }
}

fn listed(files: &[Mismatch]) -> String {
    let mut named: Vec<String> = files.iter().take(NAMED).map(Mismatch::to_string).collect();
    if files.len() > NAMED {
        named.push(format!("and {} more", files.len() - NAMED));
    }
    named.join("; ")
}

/// What becomes of the snapshot's sockets on this host.
#[derive(Debug)]
struct Sockets {
    /// The image of open files, if it is another one than was stored.
    instead: Option<Bytes>,
    connections: Connections,
}

/// Connections go on together or not at all: CRIU knows no more than that.
fn goes_on(connections: &[Bound]) -> Connections {
    let stranger = connections
        .iter()
        .find(|bound| !host::has_address(bound.address));
    match stranger {
        Some(Bound { address, socket }) => {
            tracing::warn!(
                %address,
                socket,
                "connections are closed: this host does not have their address"
            );
            Connections::Closed
        }
        None => {
            tracing::info!(connections = connections.len(), "connections go on");
            Connections::Kept
        }
    }
}

impl RestoreError {
    /// Whether the trouble is the store's, so that nothing can be said about the snapshot.
    pub(crate) fn is_stores(&self) -> bool {
        matches!(
            self,
            Self::Unusable(Unusable::Store(_))
                | Self::Put(PutError::Unusable(Unusable::Store(_)))
                | Self::Serve(ServeError::Unusable(Unusable::Store(_)))
        )
    }
}

impl RestoreError {
    /// Whether no other snapshot is to be tried: an older one, or a start from scratch, would undo work that only waits for its key,
    /// its store, another host or another version of this program.
    pub(crate) fn is_the_last_word(&self) -> bool {
        matches!(self, Self::Lost(_))
            || self.is_stores()
            || self.is_about_keys()
            || self.is_about_the_clock()
            || self.is_about_addresses()
            || self.is_about_settings()
            // What is not known to be whole is damaged.
            || matches!(self, Self::Unusable(Unusable::Format(_)))
    }

    /// Whether only this host's clock is in the way: an older snapshot would undo work for nothing.
    pub(crate) fn is_about_the_clock(&self) -> bool {
        matches!(self, Self::Clock { .. })
    }

    /// Whether only this host's addresses are in the way, likewise.
    pub(crate) fn is_about_addresses(&self) -> bool {
        matches!(self, Self::Addresses(_))
    }

    /// Whether only this worker's settings keep the job's files out: an older snapshot would undo work for nothing.
    pub(crate) fn is_about_settings(&self) -> bool {
        matches!(self, Self::NotPreserving | Self::Put(PutError::Refused(_)))
    }

    /// Whether another version of this program can use it.
    pub(crate) fn is_about_the_format(&self) -> bool {
        matches!(self, Self::Unusable(error) if error.is_about_the_format())
    }

    /// Whether other keys could open it: then no other snapshot may be taken for the job's newest.
    pub(crate) fn is_about_keys(&self) -> bool {
        matches!(self, Self::Unusable(error) | Self::Serve(ServeError::Unusable(error)) if error.is_about_keys())
    }
}

impl RestoreError {
    /// Whether somebody ended CRIU, so that nothing can be said about the snapshot.
    fn is_a_kill(&self) -> bool {
        match self {
            Self::Criu(CriuError::Failed { exit, .. }) => *exit == Exit::Signal(nix::libc::SIGKILL),
            Self::Lost(error) => error.is_a_kill(),
            _ => false,
        }
    }
}

/// An app that runs again.
#[derive(Debug)]
pub(crate) struct Resumed {
    pub watched: Watched,
    pub stdio: Stdio,
    pub manifest: Manifest,
    pub candidate: Candidate,
    pub library: Option<Library>,
    pub took: Duration,
    pub realm: Option<Arc<Realm>>,
}

/// Restores snapshots of one job.
#[derive(Debug)]
pub(crate) struct Restorer {
    pub criu: Criu,
    pub catalog: Catalog,
    pub reaper: Arc<Reaper>,
    pub gate: Arc<Gate>,
    pub work: PathBuf,
    pub host: HostFacts,
    /// What may be fetched and not restored yet.
    pub ahead_bytes: u64,
    pub journal: Journal,
    /// What to do when the monotonic clock went back.
    pub clock: clock::Policy,
    /// What is stored about the restore before the app may run.
    pub going_back: Option<GoingBack>,
    pub unresumed: Unresumed,
    /// Where sockets are bound on this host.
    pub moves: Vec<Move>,
    pub tcp: Tcp,
    /// None if no files travel.
    pub preserver: Option<Arc<Preserver>>,
    /// The job's files, until it runs.
    pub placed: Mutex<Option<Placed>>,
}

/// The job goes on from an older snapshot, on purpose.
#[derive(Debug)]
pub(crate) struct GoingBack {
    pub ownership: Arc<Ownership>,
    pub generation: u64,
    pub request: rollback::Request,
}

impl Restorer {
    /// Resumes one snapshot, or leaves this host as it was.
    pub(crate) async fn resume(
        &self,
        candidate: &Candidate,
        deadline: TokioInstant,
    ) -> Result<Resumed, RestoreError> {
        for attempt in 1.. {
            let resumed = self.try_to(candidate, deadline).await;
            if let Some(placed) = self.take_placed() {
                // It was not let run.
                drop(tokio::task::spawn_blocking(move || drop(placed)).await);
            }
            match resumed {
                // If it was let run, nothing of it got out; what a new start would do is done here.
                Err(error) if error.is_a_kill() && attempt < KILL_TRIES => tracing::warn!(
                    reason = with_causes(&error),
                    attempt,
                    "CRIU was killed during the resume, as where memory runs out; trying again"
                ),
                ended => return ended,
            }
        }
        unreachable!("the loop ends by returning")
    }

    fn take_placed(&self) -> Option<Placed> {
        self.placed
            .lock()
            .expect("no holder of this lock panics")
            .take()
    }

    /// Puts the job's files where its processes will look for them.
    async fn put_files(
        &self,
        snapshot: &Arc<Snapshot>,
        deadline: TokioInstant,
    ) -> Result<(), RestoreError> {
        let Some(preserver) = self.preserver.clone() else {
            return match snapshot.index.preserved.is_empty() {
                true => Ok(()),
                false => Err(RestoreError::NotPreserving),
            };
        };
        let begun = Instant::now();
        let (snapshot, ahead, runtime) =
            (Arc::clone(snapshot), self.ahead_bytes, Handle::current());
        let putting = tokio::task::spawn_blocking(move || {
            preserver.put(&snapshot, ahead, &runtime, deadline)
        });
        let placed = putting.await.map_err(|_| RestoreError::Deadline)??;
        if placed.files > 0 {
            crate::metrics::put_in_place(placed.bytes);
            tracing::info!(
                files = placed.files,
                bytes = placed.bytes,
                replaced = placed.replaced,
                took = ?begun.elapsed(),
                "the job's files are in place; what the snapshot has of them goes before what was here"
            );
        }
        *self.placed.lock().expect("no holder of this lock panics") = Some(placed);
        Ok(())
    }

    /// The job is about to run with its files as they are.
    async fn settle_files(&self, manifest: &Manifest) {
        let (Some(preserver), Some(placed)) = (&self.preserver, self.take_placed()) else {
            return;
        };
        if let Ok(mut seen) = tokio::task::spawn_blocking(move || placed.settle()).await {
            seen.manifest = manifest.key();
            preserver.saw(seen);
        }
    }

    async fn try_to(
        &self,
        candidate: &Candidate,
        deadline: TokioInstant,
    ) -> Result<Resumed, RestoreError> {
        let begun = Instant::now();
        let step = self.journal.restore_step(RestorePhase::Select);
        let snapshot = Arc::new(load::load(&self.catalog, candidate, &self.host, deadline).await?);
        // What is waited for the clock is no part of the time that a restore may take.
        let deadline = deadline + self.mind_the_clock(&snapshot.manifest).await?;
        snapshot.read_images(deadline).await?;
        let mut library = library(&snapshot, deadline).await?;
        self.put_files(&snapshot, deadline).await?;
        if let Some(library) = &mut library {
            // After them: with what the host before had of it, the clocks would be that host's.
            self.carry_clocks_over(library, &snapshot.manifest);
            library.write()?;
        }
        let mismatches = files::mismatches(&snapshot, deadline).await?;
        if !mismatches.is_empty() {
            return Err(RestoreError::Files(mismatches));
        }
        let sockets = self.sockets(&snapshot, deadline).await?;
        let held = held(&snapshot, deadline).await?;
        step.done();
        steps::reached(Step::Selected);
        for attempt in 1.. {
            let step = self.journal.restore_step(RestorePhase::Restore);
            match self
                .attempt(&snapshot, library.as_ref(), &sockets, deadline)
                .await
            {
                Ok((watched, streams, realm)) => {
                    step.done();
                    steps::reached(Step::Restored);
                    let stdio = match streams.flow(held) {
                        Ok(stdio) => stdio,
                        Err(error) => {
                            drop(sys::kill(-watched.pid, nix::libc::SIGKILL));
                            return Err(RestoreError::Lost(Box::new(error.into())));
                        }
                    };
                    let manifest = snapshot.manifest.clone();
                    return Ok(Resumed {
                        watched,
                        stdio,
                        manifest,
                        candidate: candidate.clone(),
                        library,
                        took: begun.elapsed(),
                        realm,
                    });
                }
                Err(RestoreError::Criu(error))
                    if criu::is_pid_collision(&error) && attempt < COLLISION_TRIES =>
                {
                    tracing::warn!(%error, attempt, "another process has a number that the app needs; trying again");
                    sleep(COLLISION_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// The job's clocks go on from where they were, where no namespace does that.
    fn carry_clocks_over(&self, library: &mut Library, manifest: &Manifest) {
        if let (Profile::Minimal, Some(those)) = (self.host.profile, manifest.app.clocks) {
            clocks::carry_over(library, those, realm::own_clocks());
        }
    }

    /// Waits for this host's monotonic clock, if it is behind and the settings say so. Returns how long that took.
    async fn mind_the_clock(&self, manifest: &Manifest) -> Result<Duration, RestoreError> {
        let begun = Instant::now();
        if self.host.profile == Profile::Full {
            // The app's clocks go on from where they were.
            return Ok(Duration::ZERO);
        }
        if manifest.app.keeps_its_clocks() {
            return Ok(Duration::ZERO);
        }
        let mut told = false;
        loop {
            let verdict = clock::judge(manifest.app.monotonic_ms, host::monotonic_ms(), self.clock);
            match verdict {
                // What is late is told once the app runs.
                Verdict::Fine | Verdict::Late(_) => return Ok(begun.elapsed()),
                Verdict::Refused(behind_ms) => {
                    return Err(RestoreError::Clock {
                        behind_ms,
                        processes: by_the_host(manifest),
                    });
                }
                Verdict::Wait(behind_ms) => {
                    if !told {
                        tracing::warn!(
                            behind_ms,
                            processes = manifest
                                .app
                                .by_host_clocks
                                .as_ref()
                                .map(|named| named.join(", ")),
                            "CLOCK_MONOTONIC is behind that of the host where the snapshot was taken; waiting until it has caught up"
                        );
                        told = true;
                    }
                    sleep(Duration::from_millis(behind_ms)).await;
                }
            }
        }
    }

    /// Looks at what the job's sockets are to be here, and sees that this host has those that
    /// sockets are bound to. CRIU would find out when all memory has been read, and not at all of IPv6.
    async fn sockets(
        &self,
        snapshot: &Snapshot,
        deadline: TokioInstant,
    ) -> Result<Sockets, RestoreError> {
        let mut sockets = Sockets {
            instead: None,
            connections: Connections::Closed,
        };
        let Some(file) = snapshot.find(OPEN_FILES) else {
            return Ok(sockets);
        };
        let stored = snapshot.file(file, deadline).await?;
        let moved = images::with_moved(&stored, &self.moves);
        let moved = moved.map_err(|source| Unusable::Image {
            name: OPEN_FILES.to_owned(),
            source,
        })?;
        for rule in &moved.idle {
            tracing::warn!(%rule, "no socket of the job is bound to the old address of this rule");
        }
        let mut missing: Vec<Bound> = Vec::new();
        for bound in moved.bound {
            let is_known = missing.iter().any(|one| one.address == bound.address);
            if !is_known && !host::has_address(bound.address) {
                missing.push(bound);
            }
        }
        if !missing.is_empty() {
            return Err(RestoreError::Addresses(missing));
        }
        // Else they were closed in it already.
        let is_stream = |file: &File| file.name.starts_with("tcp-stream-");
        if self.tcp == Tcp::Established && snapshot.index.files.iter().any(is_stream) {
            sockets.connections = goes_on(&moved.connections);
        }
        if moved.sockets > 0 {
            let sockets = moved.sockets;
            tracing::info!(sockets, "sockets are bound to other addresses than before");
        }
        sockets.instead = (moved.sockets > 0).then(|| moved.image.into());
        Ok(sockets)
    }

    async fn attempt(
        &self,
        snapshot: &Arc<Snapshot>,
        library: Option<&Library>,
        sockets: &Sockets,
        deadline: TokioInstant,
    ) -> Result<Restored, RestoreError> {
        let images = self.work.join(format!("restore-{}", catalog::nonce()));
        std::fs::create_dir(&images)?;
        let result = self
            .run_criu(snapshot, library, sockets, &images, deadline)
            .await;
        if result.is_err() {
            let log = images.join(criu::LOG);
            drop(std::fs::copy(
                &log,
                self.work.join("last-failed-restore.log"),
            ));
            self.unresumed.said(checkpoint::end_of(&log));
        }
        drop(std::fs::remove_dir_all(&images));
        result
    }

    async fn run_criu(
        &self,
        snapshot: &Arc<Snapshot>,
        library: Option<&Library>,
        sockets: &Sockets,
        images: &std::path::Path,
        deadline: TokioInstant,
    ) -> Result<Restored, RestoreError> {
        let app = &snapshot.manifest.app;
        let kind = match app.stdio {
            manifest::Stdio::Pipes { .. } => Kind::Pipes,
            manifest::Stdio::Terminal { .. } => Kind::Terminal,
        };
        let (streams, ends) = Streams::open(kind)?;
        let (instead, ahead) = (sockets.instead.clone(), self.ahead_bytes);
        let server = ImageServer::start(Arc::clone(snapshot), instead, images, ahead, deadline)?;
        let hooks = Hooks::bind(images.join("hook.sock"))?;
        let realm = self.realm(&snapshot.manifest).await?;
        // Who has the number already is nobody of ours, and stays when CRIU has failed for it.
        let is_taken = realm.is_none() && proc::process(app.root_pid).is_some();
        let ours = (!is_taken).then_some(app.root_pid);
        let adopts = takes_in_orphans(snapshot, app.root_pid, deadline).await?;
        let order = RestoreOrder {
            adopts: adopts.then_some(app.root_pid),
            connections: sockets.connections,
            realm: realm.as_ref().map(Realm::entry),
            images,
            stdio: &app.stdio,
            ends: &ends,
            hook: &hooks.path,
        };
        let mut criu = self.criu.start_restore(&self.reaper, &order)?;
        steps::reached(Step::Restoring);
        // CRIU has its own copies; with ours gone, the app's end will be seen as the end of its streams.
        drop(ends);
        let built = timeout_at(
            deadline,
            self.build(
                &mut criu,
                &hooks,
                &server,
                (&snapshot.manifest, realm.as_ref(), library),
                deadline,
            ),
        )
        .await;
        let failure = match built {
            Ok(Ok(watched)) => {
                // From here on the app runs, whatever CRIU still does and says.
                let ended = timeout(RELEASE_LIMIT, release(&mut criu, &hooks)).await;
                let failure = match ended {
                    Ok(Ok(Exit::Code(0))) => return Ok((watched, streams, realm.map(Arc::new))),
                    Ok(Ok(exit)) => criu::complaint("restore", exit, images).into(),
                    Ok(Err(error)) => error,
                    Err(_) => RestoreError::Deadline,
                };
                drop(hooks);
                self.clean_up(criu, ours, realm.as_ref()).await;
                return Err(RestoreError::Lost(Box::new(failure)));
            }
            Ok(Err(Unbuilt::Ended(exit))) => criu::complaint("restore", exit, images).into(),
            Ok(Err(Unbuilt::Failed(error))) => error,
            Err(_) => RestoreError::Deadline,
        };
        // A script that still asks ends with a no.
        drop(hooks);
        self.clean_up(criu, ours, realm.as_ref()).await;
        Err(server.damage().await.map_or(failure, Into::into))
    }

    /// Namespaces for one attempt, whose clocks go on from where the snapshot's were.
    async fn realm(&self, manifest: &Manifest) -> Result<Option<Realm>, RestoreError> {
        if self.host.profile == Profile::Minimal {
            return Ok(None);
        }
        let app = &manifest.app;
        let clocks = app.clocks.unwrap_or(Clocks {
            monotonic_ns: app.monotonic_ms * 1_000_000,
            boottime_ns: app.monotonic_ms * 1_000_000,
            monotonic_raw_ns: None,
        });
        let made = Realm::make(&self.reaper, &self.work, Some(clocks)).await;
        made.map(Some).map_err(RestoreError::Realm)
    }

    /// Answers CRIU's questions until every process is there and none has run, and then lets them.
    async fn build(
        &self,
        criu: &mut Watched,
        hooks: &Hooks,
        server: &ImageServer,
        (manifest, realm, library): (&Manifest, Option<&Realm>, Option<&Library>),
        deadline: TokioInstant,
    ) -> Result<Watched, Unbuilt> {
        loop {
            let asked = tokio::select! {
                biased;
                asked = hooks.next() => asked.map_err(|error| Unbuilt::Failed(error.into()))?,
                exit = &mut criu.exit => {
                    return Err(Unbuilt::Ended(exit.unwrap_or(Exit::Code(u8::MAX))));
                }
            };
            if asked.stage != "post-restore" {
                asked.go_on().await;
                continue;
            }
            server
                .verdict()
                .map_err(|error| Unbuilt::Failed(error.into()))?;
            steps::reached(Step::Built);
            // With a realm they are right as they are.
            if let (None, Some(library)) = (realm, library) {
                let tree = proc::tree(&proc::processes().map_err(waits)?, manifest.app.root_pid);
                let told = clocks::tell_waits(&tree, library).map_err(waits)?;
                tracing::debug!(told, "waits under way are set to this host's clock");
            }
            // Before it runs: what it stores from now on follows from this one. After everything that can fail.
            if let Some(back) = &self.going_back {
                let noted = back
                    .ownership
                    .go_back(back.generation, &back.request, None, deadline);
                noted
                    .await
                    .map_err(|error| Unbuilt::Failed(RestoreError::NotNoted(error)))?;
            }
            let failed = |error: io::Error| Unbuilt::Failed(RestoreError::Realm(error));
            let root_pid = manifest.app.root_pid;
            // The app's next processes must not get numbers that the next host's supervisor will have.
            let root = match realm {
                Some(realm) => {
                    realm.leave_reserved_range().map_err(failed)?;
                    realm::child_called(root_pid)
                        .ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?
                }
                None => {
                    pids::leave_reserved_range();
                    root_pid
                }
            };
            if !self.gate.open() {
                // Whoever closed it ends this task, and with it CRIU; the host's files come back.
                std::future::pending::<()>().await;
            }
            self.settle_files(manifest).await;
            // The app is our child now, under the number it had; its end must not go unheard.
            let watched = self.reaper.expect(root);
            asked.go_on().await;
            steps::reached(Step::Released);
            return Ok(watched);
        }
    }

    /// Ends CRIU and whatever it had built so far.
    async fn clean_up(&self, criu: Watched, root_pid: Option<i32>, realm: Option<&Realm>) {
        if !criu.exit.is_terminated() {
            drop(sys::kill(criu.pid, nix::libc::SIGKILL));
            drop(timeout(END_LIMIT, criu.exit).await);
        }
        if let Some(realm) = realm {
            return realm.dissolve().await;
        }
        let (Ok(all), Some(root_pid)) = (proc::processes(), root_pid) else {
            return;
        };
        let own = nix::unistd::getpid().as_raw();
        let is_ours = all
            .iter()
            .any(|process| process.pid == root_pid && process.parent == own);
        if is_ours {
            let gone = self.reaper.expect(root_pid);
            for process in proc::tree(&all, root_pid) {
                drop(sys::kill(process.pid, nix::libc::SIGKILL));
            }
            // A zombie under the number that the next attempt needs would be in its way.
            drop(timeout(END_LIMIT, gone.exit).await);
        }
    }
}

type Restored = (Watched, Streams, Option<Arc<Realm>>);

/// Whether this process did, whoever told it to.
async fn takes_in_orphans(
    snapshot: &Snapshot,
    pid: i32,
    deadline: TokioInstant,
) -> Result<bool, Unusable> {
    let name = format!("core-{pid}.img");
    let Some(file) = snapshot.find(&name) else {
        return Ok(false);
    };
    let stored = snapshot.file(file, deadline).await?;
    let cores: Vec<Core> =
        images::entries(&stored).map_err(|source| Unusable::Image { name, source })?;
    let mut tasks = cores.iter().filter_map(|core| core.task.as_ref());
    Ok(tasks.any(|task| task.takes_in_orphans))
}

fn waits(error: io::Error) -> Unbuilt {
    Unbuilt::Failed(RestoreError::Waits(error))
}

/// Why there is no process tree.
enum Unbuilt {
    /// CRIU ended first.
    Ended(Exit),
    Failed(RestoreError),
}

/// Lets CRIU end after the app was let run.
async fn release(criu: &mut Watched, hooks: &Hooks) -> Result<Exit, RestoreError> {
    loop {
        tokio::select! {
            biased;
            asked = hooks.next() => asked?.go_on().await,
            exit = &mut criu.exit => return Ok(exit.unwrap_or(Exit::Code(u8::MAX))),
        }
    }
}

/// The library of ours that its processes loaded.
async fn library(snapshot: &Snapshot, deadline: TokioInstant) -> Result<Option<Library>, Unusable> {
    let path = snapshot.manifest.app.library.as_ref();
    let (Some(path), Some(file)) = (path, snapshot.find(LIBRARY)) else {
        return Ok(None);
    };
    Ok(Some(Library {
        path: path.into(),
        bytes: snapshot.file(file, deadline).await?,
    }))
}

/// What the standard streams held at the freeze.
async fn held(snapshot: &Snapshot, deadline: TokioInstant) -> Result<Held, Unusable> {
    let mut streams = [const { Vec::new() }; 3];
    for (name, bytes) in HELD.into_iter().zip(&mut streams) {
        if let Some(file) = snapshot.find(name) {
            *bytes = snapshot.file(file, deadline).await?;
        }
    }
    let [stdin, stdout, stderr] = streams;
    Ok(Held {
        stdin,
        stdin_ended: snapshot.manifest.app.stdin_ended,
        stdout,
        stderr,
    })
}
