//! From nothing to a running app: reach the store, take the job over, resume its newest valid snapshot or start afresh.
//!
//! Nothing the app has done is ever redone in silence: a store that cannot be read is an error and not an empty store,
//! and when there are snapshots but none can be restored, a policy decides.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures::future::{Either, select};
use reprieve_core::clock;
use reprieve_core::cpu;
use reprieve_core::effort::Level;
use reprieve_core::head::{Generation, Head, Owner};
use reprieve_core::manifest::{HostFacts, Profile};
use reprieve_core::rollback::{self, Choice};
use reprieve_core::selection::{Candidate, Contents};
use reprieve_core::sweep::PROBE_PREFIX;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::callouts::{Callouts, Moment};
use crate::catalog::{self, Catalog, CatalogError, Found, Lease};
use crate::cures::{Cures, Given};
use crate::engine::criu::Criu;
use crate::failure::{ExitCode, Failure};
use crate::host;
use crate::journal::Journal;
use crate::keys::MasterKey;
use crate::machine;
use crate::metrics::{self, RestoreOutcome, SelfTest, StartedHow};
use crate::network::{self, Hush};
use crate::pages::load::{self, Read, Unusable};
use crate::pages::parts::PART;
use crate::pages::tuning::Wanted;
use crate::place::{self, refused_keys, unreachable_store};
use crate::preserve::Preserver;
use crate::settings::{
    Compression, OnClockBehind, OnNoValidSnapshot, OnOtherOwner, OnUnsealed, ProfileChoice,
    Settings, StoreSelfTest, Tcp,
};
use crate::steps::{self, Step};
use crate::store::selftest::{self, SelfTestError};
use crate::supervisor::checkpoint::Checkpointer;
use crate::supervisor::child;
use crate::supervisor::ownership::Ownership;
use crate::supervisor::presence::Presence;
use crate::supervisor::realm::Realm;
use crate::supervisor::reaper::{Reaper, Watched};
use crate::supervisor::reports::Unresumed;
use crate::supervisor::restore::{GoingBack, RestoreError, Restorer, Resumed};
use crate::supervisor::seeding::Seeds;
use crate::supervisor::stdio::{Held, Kind, Stdio, Streams};
use crate::supervisor::{LastSnapshot, millis, with_causes};
use crate::supervisor::{pids, proc};

/// What of the memory budget is not for parts on their way: buffers between the threads, the part being filled, CRIU
/// itself (11 MiB) and the program.
const FIXED_BYTES: u64 = 40 << 20;

/// What a resume may fetch ahead, however small the budget: a few requests at once.
const LEAST_AHEAD_BYTES: u64 = 16 << 20;

/// Signs of life in a lease's term.
pub(crate) const BEATS: u32 = 3;

/// How the app came to run.
#[derive(Clone, Copy, Debug)]
pub enum Origin {
    Scratch,
    Resumed {
        snapshot: LastSnapshot,
        took: Duration,
    },
}

impl Origin {
    pub(crate) fn snapshot(self) -> Option<LastSnapshot> {
        match self {
            Self::Scratch => None,
            Self::Resumed { snapshot, .. } => Some(snapshot),
        }
    }
}

/// The point of no return of a boot: either the app is let run, or the boot is given up before it, never both.
#[derive(Debug, Default)]
pub(crate) struct Gate(OnceLock<Passage>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passage {
    Opened,
    Closed,
}

impl Gate {
    /// To be asked right before the app's first instruction. Whether it may be.
    pub(crate) fn open(&self) -> bool {
        *self.0.get_or_init(|| Passage::Opened) == Passage::Opened
    }

    /// Whether the boot can still be given up; from then on the app will not run.
    pub(crate) fn close(&self) -> bool {
        *self.0.get_or_init(|| Passage::Closed) == Passage::Closed
    }
}

/// What checkpoints of the job need.
#[derive(Clone, Debug)]
pub struct Protection {
    pub(crate) checkpointer: Arc<Checkpointer>,
}

/// A running app.
#[derive(Debug)]
pub struct Booted {
    pub(crate) app: Watched,
    pub(crate) stdio: Stdio,
    pub(crate) origin: Origin,
    pub(crate) protection: Option<Protection>,
}

/// What the supervisor learns of a boot before it is over, and of one that fails.
#[derive(Debug)]
pub(crate) struct Learnt {
    /// Set as soon as the job is ours.
    pub(crate) owned: Arc<OnceLock<Arc<Ownership>>>,
    pub(crate) unresumed: Unresumed,
}

/// Boots.
pub(crate) async fn boot(
    settings: Settings,
    argv: Vec<OsString>,
    reaper: Arc<Reaper>,
    gate: Arc<Gate>,
    learnt: Learnt,
    presence: Arc<Presence>,
    journal: Journal,
) -> Result<Booted, Failure> {
    let Learnt { owned, unresumed } = learnt;
    machine::wait_for_service(&settings).await;
    let Some(address) = settings.store.clone() else {
        tracing::warn!("no store is set: the app runs without checkpoints");
        return start(&reaper, &gate, &argv, &Cures::default(), None, None).await;
    };
    let mut prepared = prepare(&settings, &address, &reaper).await?;
    presence.begin(Arc::clone(prepared.catalog.store())).await;
    steps::reached(Step::Prepared);
    let (resume_from, ownership) = own(&prepared, &settings, &address, &presence.name()).await?;
    steps::reached(Step::Claimed);
    presence.tell(|worker| worker.epoch = Some(ownership.epoch));
    owned.set(Arc::clone(&ownership)).expect("a boot owns once");
    let snapshots = match &resume_from {
        From::Line(candidates) => candidates.len(),
        From::Exactly(..) => 1,
    };
    if snapshots > 0 {
        let facts = json!({ "job": settings.job, "snapshots": snapshots });
        let callouts = Callouts::new(&settings, Arc::clone(&reaper));
        callouts.call(Moment::BeforeRestore, &facts, None).await;
    }
    let mut restorer = prepared.restorer(&settings, &reaper, &gate, &journal, unresumed);
    let resumed = match resume_from {
        From::Line(candidates) => resume(&restorer, &candidates, &settings).await?,
        From::Exactly(generation, request) => {
            restorer.going_back = Some(GoingBack {
                ownership: Arc::clone(&ownership),
                generation: generation.generation,
                request,
            });
            Some(resume_exactly(&restorer, &generation, &settings, &address).await?)
        }
    };
    let fresh = prepared.realm.take();
    let realm = match &resumed {
        Some(resumed) => resumed.realm.clone(),
        None => fresh,
    };
    let protection =
        Some(prepared.protection(&settings, &reaper, ownership, journal, realm.clone()));
    match resumed {
        Some(resumed) => Ok(running(resumed, protection)),
        None => {
            let cures = Cures::prepare(&settings)?;
            start(&reaper, &gate, &argv, &cures, protection, realm).await
        }
    }
}

/// What there is to resume.
enum From {
    /// The newest of these that can be.
    Line(Vec<Candidate>),
    /// This one and no other, as was asked.
    Exactly(Box<Generation>, rollback::Request),
}

/// Takes the job over when its turn has come, and says what there is to resume.
async fn own(
    prepared: &Prepared,
    settings: &Settings,
    address: &str,
    worker: &str,
) -> Result<(From, Arc<Ownership>), Failure> {
    let mut untested = true;
    loop {
        // Beside waiting for our turn, of which it takes nothing. Once begun it goes on to its end, where it removes what
        // it wrote.
        let test = std::pin::pin!(async {
            match std::mem::take(&mut untested) {
                true => self_test(&prepared.catalog, settings, address).await,
                false => Ok(()),
            }
        });
        let turn = std::pin::pin!(turn(&prepared.catalog, settings, address));
        let found = match select(test, turn).await {
            Either::Left((tested, turn)) => {
                tested?;
                turn.await?
            }
            Either::Right((found, test)) => {
                let tested = test.await;
                let found = found?;
                tested?;
                found
            }
        };
        steps::reached(Step::Found);
        let found = Found {
            head: found
                .head
                .map(|head| head.asked_for(settings.from.as_ref())),
            ..found
        };
        let deadline = Instant::now() + settings.boot_timeout;
        let candidates = candidates(&found.contents);
        let listed = match &found.contents {
            Contents::Recovered(candidates) => {
                recovered(prepared, settings, candidates, deadline).await?
            }
            _ => Vec::new(),
        };
        // Before the claim: a wrong word changes nothing.
        let from = choose(&found, &listed, candidates, settings, address)?;
        match prepared
            .catalog
            .claim(&found, owner(worker), listed, deadline)
            .await
        {
            Ok(lease) => {
                if found.owner().is_some() {
                    // It is silent, or the settings say not to ask.
                    metrics::died_without_notice();
                }
                tell(&found);
                tracing::info!(
                    job = settings.job,
                    epoch = lease.head.epoch,
                    sealed_with = lease.key.as_ref().map_or("no key", |key| key.id()),
                    "this worker owns the job"
                );
                tell_of_keys(&found, &lease, settings);
                let ownership =
                    Ownership::begin(prepared.catalog.clone(), lease, settings.lease_term);
                return Ok((from, ownership));
            }
            // Its sign of life came between our look and our claim, or a third worker did.
            Err(CatalogError::Fenced(by)) if settings.on_other_owner != OnOtherOwner::Leave => {
                tracing::info!(by, "another worker took the job at the same moment");
            }
            Err(error) => return Err(unclaimed(address, &settings.job, error)),
        }
    }
}

/// What is to be resumed, as the settings say.
fn choose(
    found: &Found,
    listed: &[Generation],
    candidates: Vec<Candidate>,
    settings: &Settings,
    address: &str,
) -> Result<From, Failure> {
    let head = found.head.clone().unwrap_or_else(|| Head {
        generations: listed.to_vec(),
        ..Head::new(&settings.job)
    });
    let request = settings.from.as_ref();
    match (rollback::choose(&head, request), request) {
        (Choice::Exactly(generation), Some(request)) => {
            Ok(From::Exactly(generation, request.clone()))
        }
        (Choice::Unknown, Some(request)) => Err(no_such(&head, request, settings, address)),
        (Choice::Done(done), _) => {
            tracing::warn!(
                from = done.request,
                generation = done.generation,
                epoch = done.epoch,
                "the job went back already when it was started with this --from, and goes on from where it is now; to go \
                 back again, add a word to it, as in --from 12@again"
            );
            Ok(From::Line(candidates))
        }
        _ => Ok(From::Line(candidates)),
    }
}

fn no_such(
    head: &Head,
    request: &rollback::Request,
    settings: &Settings,
    address: &str,
) -> Failure {
    let numbers: Vec<String> = head
        .generations
        .iter()
        .map(|known| known.generation.to_string())
        .collect();
    if numbers.is_empty() {
        let what = format!("job {} has no snapshots in {address}", settings.job);
        return Failure::new(ExitCode::NoSuchGeneration, what)
            .remedy("nothing was started; check --store and --job, or leave --from out");
    }
    let what = format!("job {} has no snapshot {request}", settings.job);
    Failure::new(ExitCode::NoSuchGeneration, what)
        .detail(format!("it has {}", numbers.join(", ")))
        .remedy("nothing was started; `reprieve snapshots` lists them with their tags")
}

/// Makes sure that the store can keep two workers apart.
async fn self_test(catalog: &Catalog, settings: &Settings, address: &str) -> Result<(), Failure> {
    if settings.store_self_test == StoreSelfTest::Off {
        metrics::store_self_test(SelfTest::Skipped);
        return Ok(());
    }
    let begun = Instant::now();
    let key = format!("{}{PROBE_PREFIX}{}", catalog.root(), catalog::nonce());
    let deadline = begun + settings.boot_timeout;
    match selftest::check(catalog.store().as_ref(), &key, deadline).await {
        Ok(()) => {
            metrics::store_self_test(SelfTest::Passed);
            tracing::debug!(took = ?begun.elapsed(), "the store keeps the conditions of writes");
            Ok(())
        }
        Err(SelfTestError::Store(error)) => Err(unreachable_store(address, error)),
        Err(error) => {
            metrics::store_self_test(SelfTest::Failed);
            let what =
                format!("the store {address} cannot keep two workers from running the same job");
            Err(Failure::new(ExitCode::StoreUnfit, what).caused_by(error).remedy(
                "nothing was started; use a store that keeps conditional writes (a server that speaks S3 may have them \
                 in a later version). Where nothing else can ever run this job, --store-self-test off starts all the same",
            ))
        }
    }
}

/// Waits until the job may be claimed: it has no owner, or one that is silent, or the settings say not to wait.
///
/// Whether an owner is silent is judged by our own clock only: its sign of life does not change for as long as it
/// should have given three.
async fn turn(catalog: &Catalog, settings: &Settings, address: &str) -> Result<Found, Failure> {
    let find = async || {
        let deadline = Instant::now() + settings.boot_timeout;
        let found = catalog.find(deadline).await;
        found.map_err(|error| unreadable(address, &settings.job, error))
    };
    let mut found = find().await?;
    let mut unchanged_since = Instant::now();
    let mut told = false;
    while let Some(owner) = found.owner() {
        match settings.on_other_owner {
            OnOtherOwner::TakeOver => {
                tracing::warn!(
                    owner = owner.worker,
                    host = owner.host,
                    "the job is taken over from its owner"
                );
                break;
            }
            OnOtherOwner::Leave => return Err(has_owner(settings, owner)),
            OnOtherOwner::Wait => {}
        }
        if unchanged_since.elapsed() >= settings.lease_term {
            tracing::warn!(
                owner = owner.worker,
                host = owner.host,
                "the owner of the job is silent; it died without a goodbye, and the job is taken over"
            );
            break;
        }
        if !told {
            let age_ms = host::wall_ms().saturating_sub(owner.since_ms);
            tracing::info!(
                owner = owner.worker,
                host = owner.host,
                since_ms_ago = age_ms,
                term = ?settings.lease_term,
                "another worker owns the job; waiting until it says goodbye or is silent"
            );
            told = true;
        }
        sleep(settings.lease_term / BEATS / 2).await;
        let before = found.tag.clone();
        found = find().await?;
        if found.tag != before {
            unchanged_since = Instant::now();
        }
    }
    Ok(found)
}

fn has_owner(settings: &Settings, owner: &Owner) -> Failure {
    let what = format!(
        "job {} is owned by worker {} on {}",
        settings.job, owner.worker, owner.host
    );
    Failure::new(ExitCode::Fenced, what).remedy(
        "nothing was started; wait for it (--on-other-owner wait), take the job over (--on-other-owner take-over), or \
         give this one another name (--job)",
    )
}

fn running(resumed: Resumed, protection: Option<Protection>) -> Booted {
    let Resumed {
        watched,
        stdio,
        manifest,
        candidate,
        library,
        took,
        realm,
    } = resumed;
    if let Some(protection) = &protection {
        protection.checkpointer.carry(Given {
            library,
            filtered: manifest.app.filtered,
            baseline: manifest.host.cpu_baseline.clone(),
        });
        protection.checkpointer.build_upon(candidate);
    }
    metrics::restore_ended(RestoreOutcome::Resumed);
    metrics::app_started(StartedHow::Resume);
    tracing::info!(
        generation = manifest.generation,
        taken_on = manifest.host.hostname,
        age_ms = host::wall_ms().saturating_sub(manifest.taken_at_ms),
        restore_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        pid = watched.pid,
        "the job is resumed"
    );
    let behind_ms = match realm {
        Some(_) => 0,
        None if manifest.app.keeps_its_clocks() => 0,
        None => manifest
            .app
            .monotonic_ms
            .saturating_sub(host::monotonic_ms()),
    };
    if behind_ms > 0 {
        tracing::warn!(
            behind_ms,
            processes = manifest
                .app
                .by_host_clocks
                .as_ref()
                .map(|named| named.join(", ")),
            "CLOCK_MONOTONIC is behind that of the host where the snapshot was taken; what the app does by that clock, \
             sleeping included, is late by as much"
        );
    }
    let snapshot = LastSnapshot {
        generation: manifest.generation,
        taken_at_ms: manifest.taken_at_ms,
    };
    Booted {
        app: watched,
        stdio,
        origin: Origin::Resumed { snapshot, took },
        protection,
    }
}

async fn start(
    reaper: &Reaper,
    gate: &Gate,
    argv: &[OsString],
    cures: &Cures,
    protection: Option<Protection>,
    realm: Option<Arc<Realm>>,
) -> Result<Booted, Failure> {
    // Before the first process of the app: every one of them will need its number again.
    match &realm {
        Some(realm) => realm.leave_reserved_range().map_err(no_realm)?,
        None => pids::leave_reserved_range(),
    }
    let failed = |error: std::io::Error| {
        Failure::new(
            ExitCode::FailedBeforeReady,
            "the app's standard streams could not be made",
        )
        .caused_by(error)
    };
    let (streams, ends) = Streams::open(Kind::of_ours()).map_err(failed)?;
    if !gate.open() {
        // Whoever closed it ends this task.
        std::future::pending::<()>().await;
    }
    steps::reached(Step::Starting);
    let app = child::start(reaper, argv, ends, cures, realm.as_deref())?;
    if let Some(protection) = &protection {
        protection.checkpointer.carry(cures.given.clone());
    }
    let stdio = streams.flow(Held::default()).map_err(failed)?;
    steps::reached(Step::Started);
    metrics::app_started(StartedHow::Scratch);
    tracing::info!(pid = app.pid, "the app is started from scratch");
    Ok(Booted {
        app,
        stdio,
        origin: Origin::Scratch,
        protection,
    })
}

struct Prepared {
    catalog: Catalog,
    criu: Criu,
    work: PathBuf,
    host: HostFacts,
    strangers: Vec<i32>,
    /// For a start from scratch; each restore makes its own.
    realm: Option<Arc<Realm>>,
    preserver: Option<Arc<Preserver>>,
    /// Until the app runs: its peers may be heard of before its connections are there.
    _hush: Option<Hush>,
}

async fn prepare(settings: &Settings, address: &str, reaper: &Reaper) -> Result<Prepared, Failure> {
    let before = |what: &str| Failure::new(ExitCode::FailedBeforeReady, what.to_owned());
    let obstacles = host::obstacles();
    if !obstacles.is_empty() {
        let failure = before("no checkpoint can be taken in this container");
        let failure =
            failure.remedy("see above; or leave --store out to run the app without checkpoints");
        return Err(obstacles.into_iter().fold(failure, Failure::detail));
    }
    let hush = hush(settings)?;
    let work = host::work_directory(settings.work_dir.as_deref()).map_err(|error| {
        before("the work directory cannot be used")
            .caused_by(error)
            .remedy("give the container a tmpfs at /run, or set --work-dir to a directory that can be written")
    })?;
    let own = std::env::current_exe().map_err(|error| {
        before("the path of this program is not known")
            .caused_by(error)
            .remedy("mount /proc in the container")
    })?;
    let criu = Criu::probe(reaper, settings.criu.as_deref(), own, &work)
        .await
        .map_err(|error| {
            before("CRIU cannot be used")
                .caused_by(error)
                .remedy("copy /reprieve of the project's image, install CRIU 4.2 or later, or set --criu to its path")
        })?;
    // An entry point may have started something of its own before it became us.
    let strangers = proc::processes()
        .map(|all| proc::other_children(&all, nix::unistd::getpid().as_raw(), &[]))
        .unwrap_or_default();
    let strangers = strangers.iter().map(|process| process.pid).collect();
    let realm = realm(settings, reaper, &work).await?;
    let store_settings = settings.store_settings(address);
    let keys = place::keys(&settings.keys, &store_settings).await?;
    let store = place::open(&store_settings).await?;
    let host = HostFacts {
        image_digest: settings.image_digest.clone().unwrap_or_default(),
        profile: match &realm {
            Some(_) => Profile::Full,
            None => Profile::Minimal,
        },
        ..host::facts(&criu.version)
    };
    tracing::info!(
        cpu = host.cpu_model,
        level = cpu::Level::of(&host.cpu_features).map(cpu::Level::as_str),
        kernel = host.kernel,
        criu = host.criu,
        "this host"
    );
    let catalog = Catalog::with_keys(store, &settings.job, keys);
    Ok(Prepared {
        catalog,
        criu,
        host,
        strangers,
        realm,
        preserver: preserver(settings, address, &work).await?,
        work,
        _hush: hush,
    })
}

/// For connections that go on, and that they can is found out so.
fn hush(settings: &Settings) -> Result<Option<Hush>, Failure> {
    if settings.tcp == Tcp::Close {
        return Ok(None);
    }
    // Of a worker that was killed in the middle of a dump.
    let begun = network::remove_locks().and_then(|()| Hush::begin());
    let begun = begun.map_err(|error| {
        Failure::new(
            ExitCode::FailedBeforeReady,
            "established connections cannot be kept in this container",
        )
        .caused_by(error)
        .remedy(
            "nothing was started; give the container NET_ADMIN (--cap-add NET_ADMIN) on a kernel with nftables, 5.12 or \
             later, or leave --tcp at close",
        )
    });
    begun.map(Some)
}

/// Namespaces for the app, if there are to be any.
async fn realm(
    settings: &Settings,
    reaper: &Reaper,
    work: &Path,
) -> Result<Option<Arc<Realm>>, Failure> {
    let (realm, reason) = match settings.profile {
        ProfileChoice::Minimal => (None, "the settings say so".to_owned()),
        choice => match make_realm(reaper, work).await {
            Ok(realm) => {
                let reason = "the app can have namespaces of its own";
                (Some(Arc::new(realm)), reason.to_owned())
            }
            Err(error) if choice == ProfileChoice::Full => return Err(no_realm(error)),
            Err(error) => (None, error.to_string()),
        },
    };
    let profile = match realm {
        Some(_) => Profile::Full,
        None => Profile::Minimal,
    };
    tracing::info!(
        profile = profile.as_str(),
        reason,
        "the profile of privileges is chosen"
    );
    Ok(realm)
}

async fn make_realm(reaper: &Reaper, work: &Path) -> std::io::Result<Realm> {
    let lacks = host::lacks_for_full();
    match lacks.is_empty() {
        true => Realm::make(reaper, work, None).await,
        false => Err(std::io::Error::other(lacks.join(", "))),
    }
}

fn no_realm(error: std::io::Error) -> Failure {
    Failure::new(
        ExitCode::FailedBeforeReady,
        "the full profile cannot be had in this container",
    )
    .caused_by(error)
    .remedy(
        "nothing was started; run the container as root with --cap-add SYS_ADMIN and --cap-add SYS_TIME (and, where AppArmor \
         forbids mounts, --security-opt apparmor=unconfined), or leave --profile at auto",
    )
}

/// Looks at the files that are here before the app is.
async fn preserver(
    settings: &Settings,
    address: &str,
    work: &Path,
) -> Result<Option<Arc<Preserver>>, Failure> {
    let rules = settings.preserve.clone();
    if rules.is_empty() {
        return Ok(None);
    }
    let mut own = vec![
        work.to_owned(),
        settings.control_socket.clone(),
        // CRIU's notes of what the kernel can do.
        "/run/criu.kdat".into(),
    ];
    own.extend(settings.metrics_recorder.clone());
    own.extend(address.strip_prefix("file://").map(PathBuf::from));
    let begun = std::time::Instant::now();
    let looking = tokio::task::spawn_blocking(move || Preserver::begin(rules, &own));
    let looked = looking
        .await
        .map_err(std::io::Error::other)
        .and_then(|looked| looked);
    let preserver = looked.map_err(|error| {
        Failure::new(
            ExitCode::FailedBeforeReady,
            "the files that are to be preserved cannot be looked at",
        )
        .caused_by(error)
        .remedy("mount /proc in the container, or leave --preserve out")
    })?;
    tracing::debug!(took = ?begun.elapsed(), files = preserver.count(), "looked at the files that are here");
    Ok(Some(Arc::new(preserver)))
}

impl Prepared {
    fn restorer(
        &self,
        settings: &Settings,
        reaper: &Arc<Reaper>,
        gate: &Arc<Gate>,
        journal: &Journal,
        unresumed: Unresumed,
    ) -> Restorer {
        let ahead_bytes = settings.memory_budget_bytes.saturating_sub(FIXED_BYTES);
        Restorer {
            criu: self.criu.clone(),
            catalog: self.catalog.clone(),
            reaper: Arc::clone(reaper),
            gate: Arc::clone(gate),
            work: self.work.clone(),
            host: self.host.clone(),
            going_back: None,
            unresumed,
            preserver: self.preserver.clone(),
            placed: Mutex::default(),
            moves: settings.listen_remap.clone(),
            tcp: settings.tcp,
            clock: match settings.on_clock_behind {
                OnClockBehind::Warn => clock::Policy::Warn,
                OnClockBehind::Wait => clock::Policy::Wait(millis(settings.clock_wait)),
                OnClockBehind::Refuse => clock::Policy::Refuse,
            },
            journal: journal.clone(),
            ahead_bytes: ahead_bytes.max(LEAST_AHEAD_BYTES),
        }
    }

    fn protection(
        self,
        settings: &Settings,
        reaper: &Arc<Reaper>,
        ownership: Arc<Ownership>,
        journal: Journal,
        realm: Option<Arc<Realm>>,
    ) -> Protection {
        let for_parts = settings.memory_budget_bytes.saturating_sub(FIXED_BYTES) / PART as u64;
        let workers = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(8);
        Protection {
            checkpointer: Arc::new(Checkpointer {
                criu: self.criu,
                catalog: self.catalog,
                ownership,
                reaper: Arc::clone(reaper),
                work: self.work,
                host: self.host,
                usual: Mutex::default(),
                looking_ms: Mutex::default(),
                storing: Mutex::default(),
                way: watch::Sender::default(),
                compression: match settings.compression {
                    Compression::Auto => Wanted::Fitting,
                    Compression::Low => Wanted::Always(Level::Raw),
                    Compression::Medium => Wanted::Always(Level::Fast),
                    Compression::High => Wanted::Always(Level::Strong),
                },
                in_flight: usize::try_from(for_parts)
                    .unwrap_or(usize::MAX)
                    .clamp(2, 64),
                workers,
                ghost_limit: settings.ghost_limit_bytes,
                watched: settings.watched.clone(),
                tcp: settings.tcp,
                keep: settings.retention(),
                waste_factor: settings.waste_factor,
                strangers: self.strangers,
                realm,
                base: Mutex::new(None),
                seeds: Seeds::default(),
                preserver: self.preserver,
                journal,
                complaint: Mutex::default(),
                given: OnceLock::new(),
                seen: Arc::default(),
            }),
        }
    }
}

fn owner(worker: &str) -> Owner {
    Owner {
        worker: worker.to_owned(),
        host: host::hostname(),
        since_ms: host::wall_ms(),
        beat: 0,
    }
}

fn tell(found: &Found) {
    match (&found.contents, &found.damage) {
        (Contents::Nothing, None) => tracing::info!("there is no snapshot of this job yet"),
        (Contents::Nothing, Some(damage)) => {
            tracing::warn!(%damage, "the head of the job is damaged, and there are no snapshots");
        }
        (Contents::Completed, _) => tracing::info!(
            "the job ended successfully when it last ran; it begins anew, and its older snapshots stay"
        ),
        (Contents::Known(candidates), _) => {
            tracing::info!(snapshots = candidates.len(), "the job has snapshots");
        }
        (Contents::Recovered(candidates), damage) => tracing::error!(
            damage = damage
                .as_ref()
                .map_or("it is missing".to_owned(), ToString::to_string),
            snapshots = candidates.len(),
            "the head of the job is lost; snapshots were found by listing them"
        ),
    }
}

/// What the person who sets keys has to know.
fn tell_of_keys(found: &Found, lease: &Lease, settings: &Settings) {
    let id = |key: &Arc<MasterKey>| key.id().to_owned();
    let (before, now) = (found.key.as_ref().map(id), lease.key.as_ref().map(id));
    match (&before, &now) {
        (_, None) => tracing::info!(
            "no key is set: whoever reads the store reads the job's memory, and whoever writes it decides what runs here"
        ),
        (None, Some(_)) if found.head.is_some() => tracing::warn!(
            "what was stored so far is not sealed, and was accepted once; from now on it is sealed"
        ),
        (Some(before), Some(now)) if before != now => {
            tracing::info!(
                before,
                now,
                "the job changes its key; the next snapshot is stored whole"
            );
        }
        _ => {}
    }
    if before.is_some() && settings.keys.on_unsealed == OnUnsealed::Accept {
        tracing::warn!(
            "on-unsealed is \"accept\" and the job is sealed already; leave the setting out from now on"
        );
    }
}

fn candidates(contents: &Contents) -> Vec<Candidate> {
    match contents {
        Contents::Nothing | Contents::Completed => Vec::new(),
        Contents::Known(candidates) | Contents::Recovered(candidates) => candidates.clone(),
    }
}

/// What a new head says of the snapshots that were found by listing.
async fn recovered(
    prepared: &Prepared,
    settings: &Settings,
    candidates: &[Candidate],
    deadline: Instant,
) -> Result<Vec<Generation>, Failure> {
    let mut found: Vec<Generation> = Vec::new();
    for candidate in candidates {
        let read = load::manifest(&prepared.catalog, candidate, deadline).await;
        match read {
            Ok(Read {
                manifest, digest, ..
            }) if found
                .iter()
                .all(|known| known.generation != manifest.generation) =>
            {
                found.push(Generation {
                    generation: manifest.generation,
                    manifest: candidate.manifest.clone(),
                    digest,
                    taken_at_ms: manifest.taken_at_ms,
                    stored_bytes: manifest.sizes.stored,
                    pinned: false,
                    tags: Vec::new(),
                    commands: Vec::new(),
                    unknown: reprieve_core::document::Unknown::new(),
                });
            }
            Ok(_) => {}
            // It may be sound: a head without it would lose it.
            Err(error @ Unusable::Store(_)) => return Err(undelivered(settings, error.into())),
            Err(error) if error.is_about_keys() => return Err(refused_keys(&settings.job, error)),
            // Likewise, and the version that stored it may be started next.
            Err(error) if error.is_about_the_format() => {
                return Err(unresumed(settings, error.into()));
            }
            Err(error) => {
                tracing::warn!(
                    manifest = candidate.manifest,
                    reason = with_causes(&error),
                    "left out of the new head"
                );
            }
        }
    }
    Ok(found)
}

/// Tries the candidates in turn. `None` means to start from scratch.
async fn resume(
    restorer: &Restorer,
    candidates: &[Candidate],
    settings: &Settings,
) -> Result<Option<Resumed>, Failure> {
    let mut reasons: Vec<String> = Vec::new();
    for candidate in candidates {
        let deadline = Instant::now() + settings.restore_timeout;
        let journal = &restorer.journal;
        journal.restore_begins(json!({ "snapshot": candidate.manifest }));
        match restorer.resume(candidate, deadline).await {
            Ok(resumed) => {
                journal.restore_ended(
                    RestoreOutcome::Resumed,
                    Some(resumed.manifest.generation),
                    None,
                );
                return Ok(Some(resumed));
            }
            Err(error) if error.is_the_last_word() => {
                failed(restorer, candidate, &error);
                return Err(unresumed(settings, error));
            }
            Err(error) => {
                metrics::restore_ended(RestoreOutcome::PassedOver);
                let reason = with_causes(&error);
                journal.restore_ended(RestoreOutcome::PassedOver, None, Some(&reason));
                restorer.unresumed.add(&candidate.manifest, &reason);
                tracing::error!(
                    snapshot = candidate.manifest,
                    reason,
                    "a snapshot is passed over"
                );
                reasons.push(format!("{}: {reason}", candidate.manifest));
            }
        }
    }
    if reasons.is_empty() {
        return Ok(None);
    }
    match settings.on_no_valid_snapshot {
        OnNoValidSnapshot::Start => {
            metrics::restore_ended(RestoreOutcome::ColdStart);
            tracing::warn!(
                "no snapshot could be resumed; the app starts from scratch, the snapshots stay"
            );
            Ok(None)
        }
        OnNoValidSnapshot::Fail => {
            metrics::restore_ended(RestoreOutcome::Failed);
            Err(none_valid(settings, reasons))
        }
    }
}

/// Resumes the one that was asked for, or says why not.
async fn resume_exactly(
    restorer: &Restorer,
    generation: &Generation,
    settings: &Settings,
    address: &str,
) -> Result<Resumed, Failure> {
    let deadline = Instant::now() + settings.restore_timeout;
    let journal = &restorer.journal;
    journal.restore_begins(json!({ "snapshot": generation.manifest }));
    let resumed = restorer.resume(&generation.into(), deadline).await;
    match &resumed {
        Ok(resumed) => {
            let generation = Some(resumed.manifest.generation);
            journal.restore_ended(RestoreOutcome::Resumed, generation, None);
        }
        Err(error) => failed(restorer, &generation.into(), error),
    }
    let failure = match resumed {
        Ok(resumed) => {
            tracing::info!(
                generation = generation.generation,
                "the job goes on from the snapshot that was asked for; newer ones stay, set aside"
            );
            return Ok(resumed);
        }
        Err(RestoreError::NotNoted(error)) => unclaimed(address, &settings.job, error),
        Err(error) if error.is_the_last_word() => unresumed(settings, error),
        Err(error) => {
            let number = generation.generation;
            let what = format!(
                "snapshot {number} of job {} cannot be resumed",
                settings.job
            );
            Failure::new(ExitCode::NoValidSnapshot, what)
                .caused_by(error)
                .remedy(
                    "nothing was started and nothing was changed; choose another one with --from, or leave --from out to \
                     resume the newest one that can be",
                )
        }
    };
    Err(failure)
}

/// A restore after which nothing else is tried.
fn failed(restorer: &Restorer, candidate: &Candidate, error: &RestoreError) {
    metrics::restore_ended(RestoreOutcome::Failed);
    let reason = with_causes(error);
    let journal = &restorer.journal;
    journal.restore_ended(RestoreOutcome::Failed, None, Some(&reason));
    restorer.unresumed.add(&candidate.manifest, &reason);
}

/// What to say of an error after which no other snapshot is tried.
fn unresumed(settings: &Settings, error: RestoreError) -> Failure {
    match error {
        error @ RestoreError::Lost(_) => lost(settings, error),
        error if error.is_stores() => undelivered(settings, error),
        error if error.is_about_keys() => refused_keys(&settings.job, error),
        error if error.is_about_the_clock() => held_back(
            settings,
            error,
            "is not resumed on a host whose clock is behind",
            "start it on a host that has been up for longer, wait for the clock (--on-clock-behind wait, --clock-wait), or \
             resume all the same (--on-clock-behind warn): the app's timers are late then by as much",
        ),
        error if error.is_about_the_format() => held_back(
            settings,
            error,
            "is not resumed by this version of Reprieve",
            "start it with the version that stored the snapshot, or a later one; to give up what was done since an older \
             snapshot, name that one with --from",
        ),
        error if error.is_about_addresses() => held_back(
            settings,
            error,
            "is not resumed on a host without the addresses that it is bound to",
            "say which address of this host stands for the old one (--listen-remap OLD:NEW), give this host the old one, or \
             let the app bind to 0.0.0.0 or ::",
        ),
        error => held_back(
            settings,
            error,
            "is not resumed: its files may not be put on this host",
            "start it with the --preserve and --preserve-privileged that the snapshot was taken with. If you did not expect \
             these files, find out who wrote the snapshot before you allow them",
        ),
    }
}

/// Only this host, or what it was told, is in the way.
fn held_back(settings: &Settings, error: RestoreError, why: &str, remedy: &str) -> Failure {
    let what = format!("job {} {why}", settings.job);
    Failure::new(ExitCode::NoValidSnapshot, what)
        .caused_by(error)
        .remedy(format!("nothing was started and nothing is lost; {remedy}"))
}

fn none_valid(settings: &Settings, reasons: Vec<String>) -> Failure {
    let what = format!(
        "none of the snapshots of job {} can be resumed",
        settings.job
    );
    let failure = Failure::new(ExitCode::NoValidSnapshot, what).remedy(
        "remove what is in the way and start again, or start from scratch on purpose with \
         --on-no-valid-snapshot start; the snapshots stay in either case",
    );
    reasons.into_iter().fold(failure, Failure::detail)
}

fn lost(settings: &Settings, error: RestoreError) -> Failure {
    let what = format!("job {} was resumed and lost at once", settings.job);
    Failure::new(ExitCode::FailedBeforeReady, what)
        .caused_by(error)
        .remedy("start again: the snapshots stay, and the newest one is resumed")
}

fn undelivered(settings: &Settings, error: RestoreError) -> Failure {
    let what = format!(
        "a snapshot of job {} cannot be read from the store",
        settings.job
    );
    Failure::new(ExitCode::StoreUnreachable, what)
        .caused_by(error)
        .remedy("nothing was started and nothing is lost; start again when the store answers")
}

fn unreadable(address: &str, job: &str, error: CatalogError) -> Failure {
    match error {
        CatalogError::Store(error) => unreachable_store(address, error),
        error @ (CatalogError::Sealing { .. } | CatalogError::Key(_)) => refused_keys(job, error),
        other => Failure::new(
            ExitCode::NoValidSnapshot,
            format!("the job's place in {address} cannot be read"),
        )
        .caused_by(other)
        .remedy("run the version of Reprieve that wrote it"),
    }
}

fn unclaimed(address: &str, job: &str, error: CatalogError) -> Failure {
    match error {
        CatalogError::Store(error) => unreachable_store(address, error),
        error @ (CatalogError::Sealing { .. } | CatalogError::Key(_)) => refused_keys(job, error),
        CatalogError::Fenced(_) => Failure::new(
            ExitCode::Fenced,
            "another worker took the job at the same moment",
        )
        .caused_by(error)
        .remedy("nothing to do here: the other one runs it"),
        other => Failure::new(
            ExitCode::StoreUnreachable,
            format!("the job could not be claimed in {address}"),
        )
        .caused_by(other)
        .remedy("start again; nothing was started here"),
    }
}
