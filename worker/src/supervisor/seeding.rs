//! Seeds the job's memory in the background while it runs, and hands what is in the store by then to the next checkpoint.
//!
//! Passes follow one another with a pause between them, each on a niced thread of its own. A checkpoint holds them: the
//! pass that is under way ends within milliseconds, and what it had stored by then counts. Nothing here can fail a
//! checkpoint or disturb the job: what could not be seeded is stored by the checkpoint, as without seeding. What is stored
//! ahead lies under an attempt that the head names before the first byte is written, so that no sweep takes it away while
//! it may be referred to; after the next snapshot another attempt takes its place, and what was not referred to is litter.
//! So it is also when twice the job's memory was stored ahead and most of it has changed since: then it begins anew.
//!
//! What each pass left to do is told to the loop, which may ask for the next one before its time ([`Seeds::by`]).

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reprieve_core::effort::Level;
use reprieve_core::way::Carried;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::catalog::{self, CatalogError};
use crate::metrics;
use crate::pages::known::Known;
use crate::pages::parts::Destination;
use crate::pages::seed::{Bed, Budgets, Ended, Pass, Report, SeedError};
use crate::pages::tuning::{self, Wanted};
use crate::steps::{self, Step};
use crate::supervisor::checkpoint::Checkpointer;
use crate::supervisor::{millis, proc, with_causes};
use crate::sys;

/// How long a checkpoint waits for a pass to end; it should take milliseconds.
const HOLD_LIMIT: Duration = Duration::from_millis(500);

/// How long reading the snapshot before, or naming the attempt in the head, may take.
const PREPARE_LIMIT: Duration = Duration::from_secs(60);

/// The pause after a failure, in pauses.
const AFTER_FAILURE: u32 = 5;

/// Between two passes, however soon the next one is wanted.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

/// Two moments that are nearer to each other are the same.
const SAME: Duration = Duration::from_millis(100);

/// How much is seeded, and how fast.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub interval: Duration,
    pub budgets: Budgets,
}

/// Why a pass stored less than it could have.
#[derive(Debug, thiserror::Error)]
enum PassError {
    #[error(transparent)]
    Seed(#[from] SeedError),
    #[error("the attempt cannot be named in the head")]
    Head(#[from] CatalogError),
    #[error("the snapshot before cannot be read: {0}")]
    Base(String),
    #[error("the job's processes cannot be looked at")]
    Processes(#[source] std::io::Error),
    #[error("no thread can be started for it")]
    Thread(#[source] std::io::Error),
    #[error("the system has no random numbers to give")]
    Random(#[source] std::io::Error),
    #[error("a bug: a pass panicked")]
    Panicked,
}

/// What was seeded, for the checkpoint to build upon.
#[derive(Debug)]
pub(crate) struct Seeds {
    planted: Mutex<Option<Planted>>,
    held: watch::Sender<bool>,
    /// What a checkpoint has left to do since the newest pass; none if it has no use of any.
    ahead: watch::Sender<Option<Ahead>>,
    /// When the next pass has to begin at the latest.
    by: watch::Sender<Option<Instant>>,
    /// The machine goes: passes take what they can get.
    without_budgets: AtomicBool,
}

/// A whole look at the job's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ahead {
    pub begun: Instant,
    pub took: Duration,
    /// Bytes that it found and that are not in the store, and bytes that it did not look at.
    pub unseeded: u64,
    pub unseen: u64,
}

#[derive(Debug)]
struct Planted {
    /// The manifest of the snapshot that the table began from.
    base: Option<String>,
    /// The head has it.
    attempt: String,
    bed: Bed,
}

impl Default for Seeds {
    fn default() -> Self {
        Self {
            planted: Mutex::default(),
            held: watch::Sender::new(false),
            ahead: watch::Sender::default(),
            by: watch::Sender::default(),
            without_budgets: AtomicBool::default(),
        }
    }
}

impl Seeds {
    /// What a pass left to do, if it came to its end.
    fn tell(&self, begun: Instant, report: &Report) {
        let ahead = Ahead {
            begun,
            took: begun.elapsed(),
            unseeded: report.unseeded,
            unseen: report.unseen,
        };
        if report.is_used_up() {
            self.ahead.send_replace(None);
        } else if report.ended == Ended::Whole {
            self.ahead.send_replace(Some(ahead));
        }
    }

    /// Whether what was planted is gone.
    fn is_lost(&self) -> bool {
        self.planted.try_lock().is_ok_and(|place| place.is_none())
    }

    /// Stops seeding until [`Self::release`], and gives what was seeded on top of this snapshot, or of none.
    pub(crate) async fn hold(&self, base: Option<&str>) -> Option<Arc<Known>> {
        self.held.send_replace(true);
        let planted = timeout(HOLD_LIMIT, self.planted.lock()).await.ok()?;
        let planted = planted.as_ref()?;
        (planted.base.as_deref() == base).then(|| Arc::clone(&planted.bed.known))
    }

    /// What is stored ahead, as it changes.
    pub(crate) fn ahead(&self) -> watch::Receiver<Option<Ahead>> {
        self.ahead.subscribe()
    }

    /// The next pass is to begin by then at the latest; none: in its own time.
    pub(crate) fn by(&self, moment: Option<Instant>) {
        self.by.send_if_modified(|by| {
            let is_same = match (*by, moment) {
                (Some(one), Some(other)) => one.max(other) - one.min(other) < SAME,
                (one, other) => one == other,
            };
            *by = moment;
            !is_same
        });
    }

    /// Whether passes that begin from now on go without budgets. The thread they are on still yields to the job.
    pub(crate) fn without_budgets(&self, without: bool) {
        self.without_budgets.store(without, Ordering::Relaxed);
    }

    /// Seeding may go on.
    pub(crate) fn release(&self) {
        self.held.send_replace(false);
    }
}

/// Seeding of one job. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Seeding(JoinHandle<()>);

impl Seeding {
    pub(crate) fn begin(checkpointer: Arc<Checkpointer>, root_pid: i32, plan: Plan) -> Self {
        Self(tokio::spawn(tend(checkpointer, root_pid, plan)))
    }
}

impl Drop for Seeding {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn tend(checkpointer: Arc<Checkpointer>, root_pid: i32, plan: Plan) {
    let mut held = checkpointer.seeds.held.subscribe();
    let mut told: Option<String> = None;
    let mut by = checkpointer.seeds.by.subscribe();
    let least = plan.interval.min(LEAST_PAUSE);
    let mut pause = least..plan.interval;
    let mut hurried = false;
    loop {
        // The sender lives as long as the checkpointer.
        drop(held.wait_for(|held| !*held).await);
        let is_early = tokio::select! {
            is_early = next_pass(&pause, &mut by) => is_early,
            _ = held.wait_for(|held| *held) => continue,
        };
        let begun = Instant::now();
        let budgets = match checkpointer.seeds.without_budgets.load(Ordering::Relaxed) {
            true => Budgets::NONE,
            false => plan.budgets,
        };
        let passed = tokio::select! {
            passed = checkpointer.pass(root_pid, budgets) => passed,
            // A pass hears of it by itself; this is for one that hangs.
            () = given_up(&checkpointer) => continue,
        };
        pause = least..plan.interval;
        // What was asked for is done; what follows from it will be asked for.
        checkpointer.seeds.by(None);
        match passed {
            Ok(None) => {}
            Ok(Some(report)) => {
                hurry(&mut hurried, is_early, plan);
                tell(&report);
                checkpointer.seeds.tell(begun, &report);
                checkpointer.carried(|way| {
                    way.carried_alone(Carried {
                        bytes: report.stored,
                        busy_ms: millis(report.storing),
                    });
                });
                checkpointer
                    .journal
                    .memory(report.looked_at, report.unseeded);
                told = None;
            }
            Err(error) => {
                pause.end = plan.interval * AFTER_FAILURE;
                pause.start = pause.end;
                if checkpointer.seeds.is_lost() {
                    checkpointer.seeds.ahead.send_replace(None);
                }
                let reason = with_causes(&error);
                if told.as_ref() != Some(&reason) {
                    tracing::warn!(
                        reason,
                        "the job's memory could not be seeded; the next checkpoint stores more itself"
                    );
                    told = Some(reason);
                }
            }
        }
    }
}

/// Ends when the next pass is due, after a pause from the least to the usual, and says whether that is before its usual time.
async fn next_pass(pause: &Range<Duration>, by: &mut watch::Receiver<Option<Instant>>) -> bool {
    let now = Instant::now();
    let (earliest, usual) = (now + pause.start, now + pause.end);
    loop {
        let wanted = *by.borrow_and_update();
        let due = wanted.map_or(usual, |wanted| wanted.clamp(earliest, usual));
        tokio::select! {
            () = sleep_until(due) => return due < usual,
            // The sender lives as long as the checkpointer.
            _ = by.changed() => {}
        }
    }
}

/// Tells once that passes are made more often, until one is made in its usual time.
fn hurry(hurried: &mut bool, is_early: bool, plan: Plan) {
    if is_early && !*hurried {
        tracing::info!(
            usual = ?plan.interval,
            "the job's memory is stored ahead more often, so that a checkpoint fits into the time that there is"
        );
    }
    *hurried = is_early;
}

/// A checkpoint that still waits for a pass after this long goes on without what it would have known.
async fn given_up(checkpointer: &Checkpointer) {
    let mut held = checkpointer.seeds.held.subscribe();
    drop(held.wait_for(|held| *held).await);
    sleep(HOLD_LIMIT / 2).await;
}

fn tell(report: &Report) {
    metrics::seeded(report.stored, report.unseeded);
    let Report {
        ended,
        looked_at,
        seeded,
        unseeded,
        stored,
        ..
    } = *report;
    if ended == Ended::Whole && seeded > 0 {
        tracing::info!(
            memory_bytes = looked_at,
            seeded_bytes = seeded,
            stored_bytes = stored,
            unseeded_bytes = unseeded,
            "the job's memory was seeded"
        );
    } else {
        tracing::debug!(
            ?ended,
            looked_at,
            seeded,
            unseeded,
            "looked at the job's memory"
        );
    }
}

impl Checkpointer {
    /// Looks at the job's memory once. Nothing if there is too little of it, or somebody else has the table.
    async fn pass(&self, root_pid: i32, budgets: Budgets) -> Result<Option<Report>, PassError> {
        let mut place = self.seeds.planted.lock().await;
        let all = proc::processes().map_err(PassError::Processes)?;
        let tree = proc::tree(&all, root_pid);
        let pids: Vec<i32> = tree.iter().map(|process| process.pid).collect();
        if !Pass::is_worth_it(&pids) {
            return Ok(None);
        }
        let base = self.base();
        let name = base.as_ref().map(|base| base.manifest.clone());
        if place.as_ref().is_none_or(|planted| planted.base != name) {
            *place = None;
            let mut held = self.seeds.held.subscribe();
            *place = tokio::select! {
                planted = self.plant() => Some(planted?),
                _ = held.wait_for(|held| *held) => return Ok(None),
            };
        }
        let Some(planted) = place.take() else {
            return Ok(None);
        };
        let destination = Destination {
            store: Arc::clone(self.catalog.store()),
            root: self.catalog.root(),
            attempt: planted.attempt.clone(),
            in_flight: 1,
            deadline: Instant::now().into(),
        };
        // Nobody waits for it, so that smaller is better.
        let effort = match self.compression {
            Wanted::Always(level) => tuning::codec(level),
            Wanted::Fitting => tuning::codec(Level::Strong),
        };
        let stop = self.seeds.held.subscribe();
        let runtime = Handle::current();
        let (done, result) = oneshot::channel();
        let Planted {
            base,
            attempt,
            mut bed,
        } = planted;
        std::thread::Builder::new()
            .name("seed".into())
            .spawn(move || {
                sys::yield_to_others();
                let pass = Pass::new(&mut bed, &destination, effort, budgets, stop, runtime);
                let passed = match pass {
                    Ok(Some(pass)) => pass.run(&pids).map(Some),
                    Ok(None) => Ok(None),
                    Err(error) => Err(error),
                };
                // Whoever waited may have given up.
                drop(done.send((bed, passed)));
            })
            .map_err(PassError::Thread)?;
        let (bed, passed) = result.await.map_err(|_| PassError::Panicked)?;
        // What is planted anew is stored under another attempt, so that what is of no use any more can be swept.
        let is_used_up = matches!(&passed, Ok(Some(report)) if report.is_used_up());
        *place = (!is_used_up).then_some(Planted { base, attempt, bed });
        steps::reached(Step::Seeded);
        Ok(passed?)
    }

    /// Begins with what the snapshot before has.
    async fn plant(&self) -> Result<Planted, PassError> {
        let deadline = Instant::now() + PREPARE_LIMIT;
        let base = self.base();
        let known = match &base {
            Some(base) => {
                let loaded = self.load(base, deadline).await;
                loaded.map_err(|error| PassError::Base(with_causes(&*error)))?
            }
            None => None,
        };
        let mut known = match known {
            Some(known) => known,
            None => Known::nothing(self.page_key().map_err(PassError::Random)?),
        };
        let attempt = catalog::nonce();
        let seal = self.seal(&attempt).map_err(PassError::Random)?;
        let key = seal.map(|seal| {
            known.keys.insert(attempt.clone(), seal.wrapped);
            seal.key
        });
        self.ownership.seed(&attempt, deadline).await?;
        steps::reached(Step::Planted);
        Ok(Planted {
            base: base.map(|base| base.manifest),
            attempt,
            bed: Bed::new(known, key),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pass_that_is_wanted_sooner_is_made_sooner_and_never_at_once() {
        let pause = Duration::from_secs(1)..Duration::from_secs(60);
        let seconds = Duration::from_secs;
        for (wanted, after) in [(None, 60), (Some(20), 20), (Some(0), 1), (Some(90), 60)] {
            let seeds = Seeds::default();
            let mut by = seeds.by.subscribe();
            let now = Instant::now();
            seeds.by(wanted.map(|wanted| now + seconds(wanted)));
            let is_early = next_pass(&pause, &mut by).await;
            assert_eq!((now.elapsed(), is_early), (seconds(after), after < 60));
        }
        // It may be wanted while it is waited for, and not any more.
        let seeds = Seeds::default();
        let mut by = seeds.by.subscribe();
        let now = Instant::now();
        let later = async {
            sleep(seconds(5)).await;
            seeds.by(Some(now + seconds(30)));
            sleep(seconds(5)).await;
            seeds.by(None);
            sleep(seconds(5)).await;
            seeds.by(Some(now + seconds(10)));
        };
        let (is_early, ()) = tokio::join!(next_pass(&pause, &mut by), later);
        assert_eq!((now.elapsed(), is_early), (seconds(15), true));
    }
}
