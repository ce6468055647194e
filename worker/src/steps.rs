//! The boundaries between the steps of a boot, a restore, a checkpoint, seeding, a sweep and the end, by name: so that a test
//! can have the worker or CRIU killed, or the machine stopped, at each of them, in builds for development only.
//!
//! What happens between two of them may be cut short anywhere; what a step promises to the next is told here by nothing but
//! its name. A new step is a variant here and a call where it ends. The test goes through all variants, and fails for one
//! that no worker ever reaches.

use crate::named::named;

named! {
    /// What has just been done.
    pub enum Step {
        /// Container, CRIU and keys are fit, the store is open.
        Prepared = "boot-prepared",
        /// What the job has in the store is known.
        Found = "boot-found",
        /// The job is ours.
        Claimed = "boot-claimed",
        /// Nothing was there to resume; the app is about to be started from scratch.
        Starting = "boot-starting",
        /// The app runs from scratch.
        Started = "boot-started",
        /// The app runs, and its supervisor knows.
        Booted = "boot-done",
        /// A snapshot is read as far as is needed to begin.
        Selected = "restore-selected",
        /// CRIU restores.
        Restoring = "restore-begun",
        /// Every process is there, none has run.
        Built = "restore-built",
        /// The app was let run.
        Released = "restore-released",
        /// CRIU is gone, the streams are about to flow.
        Restored = "restore-done",
        /// A checkpoint was asked for.
        Begun = "checkpoint-begun",
        /// It is known what the store has already.
        Looked = "checkpoint-prepared",
        /// CRIU dumps.
        Dumping = "checkpoint-dumping",
        /// Memory is out, the app is frozen.
        Frozen = "checkpoint-dumped",
        /// The streams are stopped at an exact byte.
        Cut = "checkpoint-cut",
        /// All is packed.
        Drained = "checkpoint-drained",
        /// All blocks are stored.
        Uploaded = "checkpoint-uploaded",
        /// The index is stored.
        Indexed = "checkpoint-indexed",
        /// The manifest is stored, and nothing names it.
        Manifested = "checkpoint-manifest-stored",
        /// The snapshot counts.
        Committed = "checkpoint-committed",
        /// The app is gone.
        Killed = "checkpoint-killed",
        /// CRIU was told to let the app go.
        Thawed = "checkpoint-thawed",
        /// CRIU is gone.
        Done = "checkpoint-done",
        /// The head names what is about to be stored ahead.
        Planted = "seeding-named",
        /// Some of it is stored.
        Seeded = "seeding-pass-done",
        /// It is decided what goes.
        Planned = "sweep-planned",
        /// What goes is condemned.
        Condemned = "sweep-condemned",
        /// It is gone.
        Swept = "sweep-done",
        /// The job is over here, and nobody was told.
        Over = "end-begun",
        /// The store was told.
        Told = "end-told",
    }
}

/// Ends somebody at a step.
#[cfg(debug_assertions)]
type Kill = fn(Step);

/// `NAME` or `NAME:N`, for the Nth time, counting from 1: where this process ends as by a kill, or CRIU does, or where the
/// machine stands still.
#[cfg(debug_assertions)]
const VARIABLES: [(&str, Kill); 3] = [
    ("KILL_AT_STEP", |_| crate::sys::vanish()),
    ("KILL_CRIU_AT_STEP", kill_criu),
    ("STAND_STILL_AT_STEP", stand_still),
];

/// Says so, and goes no further until everything was stopped for a while, from outside.
#[cfg(debug_assertions)]
fn stand_still(step: Step) {
    use std::time::{Duration, Instant};
    /// A nap that takes this much longer was one in which nothing ran.
    const STILL: Duration = Duration::from_secs(1);
    eprintln!("at {step} the machine is to stand still");
    loop {
        let begun = Instant::now();
        std::thread::sleep(Duration::from_millis(5));
        if begun.elapsed() > STILL {
            return;
        }
    }
}

/// As the kernel does when memory runs out; says so if there was one.
#[cfg(debug_assertions)]
fn kill_criu(step: Step) {
    let all = crate::supervisor::proc::processes().unwrap_or_default();
    for criu in all.iter().filter(|process| process.command == "criu") {
        if crate::sys::kill(criu.pid, nix::libc::SIGKILL).is_ok() {
            eprintln!("CRIU is killed at {step}");
        }
    }
}

/// Here this process or CRIU ends, or the machine stands still, if the environment says so.
#[cfg(debug_assertions)]
pub(crate) fn reached(step: Step) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Doom {
        step: Step,
        time: u32,
        kill: Kill,
    }
    static DOOM: LazyLock<Option<Doom>> = LazyLock::new(|| {
        VARIABLES.into_iter().find_map(|(variable, kill)| {
            let text = std::env::var(variable).ok()?;
            let (name, time) = text.split_once(':').unwrap_or((&text, "1"));
            Some(Doom {
                step: Step::from_name(name).expect("the name of a step"),
                time: time.parse().expect("a number"),
                kill,
            })
        })
    });
    static TIMES: AtomicU32 = AtomicU32::new(0);
    let Some(doom) = &*DOOM else { return };
    if step == doom.step && TIMES.fetch_add(1, Ordering::SeqCst) + 1 == doom.time {
        (doom.kill)(step);
    }
}

/// Nothing is killed in a release.
#[cfg(not(debug_assertions))]
pub(crate) fn reached(_: Step) {}
