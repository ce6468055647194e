//! The boundaries between the steps of a boot, a restore, a checkpoint, seeding, a sweep and the end, by name: so that a test
//! can have the worker killed at each of them, in builds for development only.
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

/// `NAME` or `NAME:N`, for the Nth time, counting from 1.
#[cfg(debug_assertions)]
const VARIABLE: &str = "KILL_AT_STEP";

/// Ends this process here as a kill would, if the environment says so.
#[cfg(debug_assertions)]
pub(crate) fn reached(step: Step) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static DOOM: LazyLock<Option<(Step, u32)>> = LazyLock::new(|| {
        let text = std::env::var(VARIABLE).ok()?;
        let (name, times) = text.split_once(':').unwrap_or((&text, "1"));
        let step = Step::from_name(name).expect("the name of a step");
        Some((step, times.parse().expect("a number")))
    });
    static TIMES: AtomicU32 = AtomicU32::new(0);
    let Some((doomed, times)) = *DOOM else { return };
    if step == doomed && TIMES.fetch_add(1, Ordering::SeqCst) + 1 == times {
        crate::sys::vanish();
    }
}

/// Nothing is killed in a release.
#[cfg(not(debug_assertions))]
pub(crate) fn reached(_: Step) {}
