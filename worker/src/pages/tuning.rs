//! Measures a checkpoint while it goes on, and says for each block how hard to compress it.
//!
//! The choice itself is `reprieve_core::effort`; here are its facts: how fast pages are looked at and blocks are packed,
//! by how much they shrink, how fast the store takes parts, and how much is still to come. A level that was not tried
//! is known from the others by what is usual, and now and then a block is packed harder than the rest to find out.
//!
//! Packing is measured in processor time, and uploads are taken to be as fast as they would be if they had the
//! processors to themselves: where packing has to share them, uploads seem slow because of it, and packing harder would
//! make them no faster.

use std::ops::{AddAssign, Sub};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use reprieve_core::effort::{self, Facts, LeftOut, Level, Rate, Storing};
use reprieve_core::promise::whole;
use reprieve_core::way::{Carried, Way};
use tokio::time::Instant;

use crate::pages::codec::{Effort, Packed};

/// One block in so many is packed to find out what that does.
const PROBE: u64 = 32;

/// Blocks between two choices.
const CHOOSE: u64 = 8;

/// What is usual, before anything was measured: seconds of one processor for a GiB, and what is left of it (measured on
/// the memory of Python, of a JVM and of Redis).
const USUAL: [(f64, f64); 3] = [(0.4, 1.0), (2.2, 0.4), (2.9, 0.37)];
const USUAL_LOOK: f64 = 0.7;
/// Bytes per second of one upload.
const USUAL_UPLOAD: f64 = 100e6;
/// Seconds of one processor to hand a GiB to a store (measured with TLS).
const USUAL_SEND: f64 = 0.8;

/// Uploads are never taken to be more than this many times as fast as they were seen to be.
const MOST_CONTENDED: f64 = 8.0;

const GIB: f64 = (1u64 << 30) as f64;

/// Samples of a block that is tested; a power of two.
const SAMPLES: usize = 4096;

/// How hard to compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Always(Level),
    Fitting,
}

/// What something took of the calling thread: time that passed, and time that it had a processor for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    pub wall: Duration,
    pub processor: Duration,
}

impl AddAssign for Spent {
    fn add_assign(&mut self, other: Self) {
        self.wall += other.wall;
        self.processor += other.processor;
    }
}

impl Sub for Spent {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            wall: self.wall.saturating_sub(other.wall),
            processor: self.processor.saturating_sub(other.processor),
        }
    }
}

/// Measures one thread's work, on that thread.
pub(crate) struct Stopwatch(Instant, Duration);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(Instant::now(), processor_time())
    }

    pub(crate) fn elapsed(&self) -> Spent {
        Spent {
            wall: self.0.elapsed(),
            processor: processor_time().saturating_sub(self.1),
        }
    }
}

/// Of the calling thread.
pub(crate) fn processor_time() -> Duration {
    // It cannot fail for one's own thread.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// The facts of one checkpoint, shared by everybody who works on it.
pub(crate) struct Tuning {
    wanted: Wanted,
    workers: f64,
    uploads: u32,
    /// Whether the snapshot before is not compared with, for lack of time.
    comparing: Comparing,
    /// Bytes of memory that are about to come.
    expected: u64,
    /// What is taken for true until it is measured.
    usual: Usual,
    deadline: Box<dyn Fn() -> Instant + Send + Sync>,
    measured: Mutex<Measured>,
    /// Position in [`Level::ALL`].
    level: AtomicUsize,
    /// Side by side.
    streams: AtomicU32,
    /// Blocks are tried with stronger compression.
    probes: AtomicBool,
    storing: Mutex<Option<Storing>>,
}

/// Whether what is in the store already was looked up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Comparing {
    #[default]
    Done,
    LeftOut,
}

/// What holds before anything was measured: as a rule, or as the checkpoint before had it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usual {
    /// As [`USUAL`].
    pub costs: [(f64, f64); 3],
    pub look: f64,
    pub upload: f64,
    /// What uploads together were seen to do.
    pub way: Way,
    pub comparing: Comparing,
}

impl Default for Usual {
    fn default() -> Self {
        Self {
            costs: USUAL,
            look: USUAL_LOOK,
            upload: USUAL_UPLOAD,
            way: Way::default(),
            comparing: Comparing::Done,
        }
    }
}

/// Less than this tells of latency, not of speed.
const TELLING: u64 = 4 << 20;

#[derive(Clone, Copy, Debug, Default)]
struct Amount {
    raw: u64,
    packed: u64,
    took: Duration,
}

#[derive(Debug, Default)]
struct Measured {
    blocks: u64,
    looked_at: Amount,
    /// Blocks that may shrink, by level.
    tried: [Amount; 3],
    /// Blocks that would not.
    random: u64,
    uploaded: Amount,
    /// And how long at least one upload was under way.
    carried: (u64, Duration),
    packed: u64,
    /// Looking and packing, together.
    busy: Spent,
}

impl std::fmt::Debug for Tuning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tuning")
            .field("wanted", &self.wanted)
            .field("measured", &self.measured)
            .finish_non_exhaustive()
    }
}

/// The codec's word for a level.
pub(crate) fn codec(level: Level) -> Effort {
    match level {
        Level::Raw => Effort::None,
        Level::Fast => Effort::Zstd(-1),
        Level::Strong => Effort::Zstd(1),
    }
}

impl Tuning {
    pub(crate) fn new(
        wanted: Wanted,
        workers: usize,
        uploads: usize,
        expected: u64,
        usual: Usual,
        deadline: impl Fn() -> Instant + Send + Sync + 'static,
    ) -> Self {
        let tuning = Self {
            wanted,
            workers: workers.max(1) as f64,
            uploads: u32::try_from(uploads).unwrap_or(u32::MAX).max(1),
            comparing: usual.comparing,
            expected,
            usual,
            deadline: Box::new(deadline),
            measured: Mutex::default(),
            level: AtomicUsize::new(0),
            streams: AtomicU32::new(1),
            probes: AtomicBool::new(true),
            storing: Mutex::default(),
        };
        tuning.choose(&tuning.lock());
        tuning
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Measured> {
        self.measured.lock().expect("no holder of this lock panics")
    }

    /// How hard to try with this block.
    pub(crate) fn level_for(&self, block: &[u8]) -> Level {
        let wanted = match self.wanted {
            Wanted::Always(Level::Raw) => return Level::Raw,
            Wanted::Always(level) => level,
            Wanted::Fitting => Level::ALL[self.level.load(Ordering::Relaxed)],
        };
        let is_random = looks_random(block);
        let mut measured = self.lock();
        measured.blocks += 1;
        if is_random {
            measured.random += block.len() as u64;
            Level::Raw
        } else if self.wanted == Wanted::Fitting
            && self.probes.load(Ordering::Relaxed)
            && measured.blocks.is_multiple_of(PROBE)
        {
            wanted.max(Level::Fast)
        } else {
            wanted
        }
    }

    /// So much was looked at, in this time, not counting what was packed of it meanwhile.
    pub(crate) fn looked_at(&self, bytes: usize, took: Spent) {
        let mut measured = self.lock();
        measured.busy += took;
        let looked_at = &mut measured.looked_at;
        looked_at.raw += bytes as u64;
        looked_at.took += took.processor;
    }

    pub(crate) fn packed(&self, level: Level, packed: &Packed, took: Spent) {
        self.made(level, packed.raw as usize, packed.bytes.len(), took);
    }

    fn made(&self, level: Level, raw: usize, packed: usize, took: Spent) {
        let mut measured = self.lock();
        measured.busy += took;
        measured.packed += packed as u64;
        let tried = &mut measured.tried[level as usize];
        tried.raw += raw as u64;
        tried.packed += packed as u64;
        tried.took += took.processor;
        if measured.blocks.is_multiple_of(CHOOSE) {
            self.choose(&measured);
        }
    }

    pub(crate) fn uploaded(&self, bytes: usize, took: Duration) {
        let uploaded = &mut self.lock().uploaded;
        uploaded.packed += bytes as u64;
        uploaded.took += took;
    }

    /// So much reached the store in this time, in which something was on its way all the while.
    pub(crate) fn carried(&self, bytes: usize, took: Duration) {
        let carried = &mut self.lock().carried;
        carried.0 += bytes as u64;
        carried.1 += took;
    }

    /// All that was carried so far.
    pub(crate) fn all_carried(&self) -> Carried {
        let (bytes, took) = self.lock().carried;
        Carried {
            bytes,
            busy_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn choose(&self, measured: &Measured) {
        let left = (self.deadline)().saturating_duration_since(Instant::now());
        let facts = self.facts(measured, left);
        let mut plan = effort::plan(&facts);
        if let Wanted::Always(level) = self.wanted {
            plan.uploads = effort::uploads(&facts, level, plan.reason);
            plan = effort::Plan {
                level,
                reason: effort::Reason::Asked,
                takes_ms: facts.takes_ms(level),
                ..plan
            };
        }
        let hurried = matches!(
            plan.reason,
            effort::Reason::Deadline | effort::Reason::LeastLate
        );
        self.probes.store(!hurried, Ordering::Relaxed);
        self.level.store(plan.level as usize, Ordering::Relaxed);
        self.streams.store(plan.uploads, Ordering::Relaxed);
        self.keep(plan, &facts, hurried);
    }

    /// For those who look, and for the snapshot.
    fn keep(&self, plan: effort::Plan, facts: &Facts, hurried: bool) {
        let mut storing = self.storing.lock().expect("no holder of this lock panics");
        if let Some(storing) = storing.as_mut() {
            let now = (plan.level, plan.uploads);
            if (storing.compression, storing.uploads) != now {
                (storing.compression, storing.uploads) = now;
                storing.reason = plan.reason;
                storing.changes = storing.changes.saturating_add(1);
                tracing::debug!(?plan, ?facts, "what is left is stored otherwise");
            }
            return;
        }
        let comparing = (self.comparing == Comparing::LeftOut).then_some(LeftOut::Comparing);
        let probing = (hurried && self.wanted == Wanted::Fitting).then_some(LeftOut::Probing);
        let made = Storing {
            compression: plan.level,
            reason: plan.reason,
            uploads: plan.uploads,
            leaves_out: comparing.into_iter().chain(probing).collect(),
            expected_ms: whole(plan.takes_ms),
            left_ms: facts.left_ms,
            bytes: facts.left,
            upload_rate: whole(facts.upload),
            changes: 0,
        };
        tracing::info!(
            level = made.compression.as_str(),
            reason = made.reason.as_str(),
            uploads = made.uploads,
            leaves_out = ?made.leaves_out,
            takes_ms = made.expected_ms,
            left_ms = made.left_ms,
            left_bytes = made.bytes,
            upload_rate = made.upload_rate,
            "it is decided how the job's memory is stored"
        );
        *storing = Some(made);
    }

    /// How many uploads go side by side now.
    pub(crate) fn streams(&self) -> u32 {
        self.streams.load(Ordering::Relaxed).max(1)
    }

    /// How it is stored, and why so.
    pub(crate) fn storing(&self) -> Option<Storing> {
        let storing = self.storing.lock().expect("no holder of this lock panics");
        storing.clone()
    }

    /// What the next checkpoint may begin from.
    pub(crate) fn learned(&self) -> Usual {
        let measured = self.lock();
        let tried = measured.tried.iter().any(|tried| tried.raw >= TELLING);
        let uploaded = measured.uploaded;
        Usual {
            costs: match tried {
                true => costs(&measured, &self.usual),
                false => self.usual.costs,
            },
            look: match measured.looked_at.raw >= TELLING {
                true => per_gib(measured.looked_at).unwrap_or(self.usual.look),
                false => self.usual.look,
            },
            upload: match uploaded.packed >= TELLING && !uploaded.took.is_zero() {
                true => {
                    uploaded.packed as f64 / uploaded.took.as_secs_f64() * contention(measured.busy)
                }
                false => self.usual.upload,
            },
            way: self.usual.way,
            comparing: Comparing::Done,
        }
    }

    fn facts(&self, measured: &Measured, left: Duration) -> Facts {
        let stored: u64 = measured.tried.iter().map(|tried| tried.raw).sum();
        let looked_at = measured.looked_at.raw;
        let to_come = self.expected.saturating_sub(looked_at) as f64;
        // What was known or zero so far stands for what is to come.
        let new = if looked_at == 0 {
            1.0
        } else {
            (stored as f64 / looked_at as f64).min(1.0)
        };
        let shrinkable = if stored == 0 {
            1.0
        } else {
            1.0 - (measured.random as f64 / stored as f64).min(1.0)
        };
        let look = per_gib(measured.looked_at).unwrap_or(self.usual.look) / new.max(0.001);
        let costs = costs(measured, &self.usual);
        let rates = costs.map(|(seconds, ratio)| {
            let pack = shrinkable * seconds + (1.0 - shrinkable) * costs[0].0;
            let shrinks_to = 1.0 - shrinkable * (1.0 - ratio);
            Rate {
                // What is sent takes processors, too.
                pack: self.workers * GIB / (look + pack + shrinks_to * USUAL_SEND),
                shrinks_to,
            }
        });
        let Amount { packed, took, .. } = measured.uploaded;
        let one = match took.as_secs_f64() {
            0.0 => self.usual.upload,
            seconds => packed as f64 / seconds * contention(measured.busy),
        };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        // far below 2^64, and not negative
        let left_bytes = (to_come * new) as u64;
        Facts {
            left: left_bytes,
            under_way: measured.packed.saturating_sub(packed),
            left_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            upload: match (took.is_zero(), self.usual.way.bytes_per_second()) {
                (true, Some(seen)) => seen,
                _ => one * f64::from(self.uploads),
            },
            one_upload: one,
            most_uploads: self.uploads,
            rates,
        }
    }
}

/// How many times longer everything takes than it would with the processors to itself.
fn contention(busy: Spent) -> f64 {
    let processor = busy.processor.as_secs_f64();
    if processor == 0.0 {
        return 1.0;
    }
    (busy.wall.as_secs_f64() / processor).clamp(1.0, MOST_CONTENDED)
}

/// Seconds of one processor for a GiB.
fn per_gib(amount: Amount) -> Option<f64> {
    (amount.raw > 0).then(|| amount.took.as_secs_f64() * GIB / amount.raw as f64)
}

/// Seconds for a GiB that may shrink, and what it shrinks to, for each level: measured, or as usual beside a measured one.
fn costs(measured: &Measured, usual: &Usual) -> [(f64, f64); 3] {
    let usual = usual.costs;
    let [raw, fast, strong] = measured.tried;
    let found = |amount: Amount| {
        let ratio = amount.packed as f64 / amount.raw.max(1) as f64;
        per_gib(amount).map(|seconds| (seconds, ratio.min(1.0)))
    };
    let beside = |(seconds, ratio): (f64, f64), own: usize, other: usize| {
        (
            seconds * usual[own].0 / usual[other].0,
            (ratio * usual[own].1 / usual[other].1).min(1.0),
        )
    };
    let (fast, strong) = match (found(fast), found(strong)) {
        (Some(fast), Some(strong)) => (fast, strong),
        (Some(fast), None) => (fast, beside(fast, 2, 1)),
        (None, Some(strong)) => (beside(strong, 1, 2), strong),
        (None, None) => (usual[1], usual[2]),
    };
    // Blocks that would not shrink are in there, too: raw is raw.
    let raw = per_gib(raw).unwrap_or(usual[0].0);
    [(raw, 1.0), fast, strong]
}

/// Whether a block's bytes are so evenly spread that no compressor of ours would make it smaller by a sixteenth: from one
/// byte in each 64, in a hundredth of the time that trying takes.
fn looks_random(block: &[u8]) -> bool {
    if block.len() < SAMPLES {
        return false;
    }
    let mut counts = [0u32; 256];
    // An odd step meets every position within a word.
    let step = (block.len() / SAMPLES).max(1) | 1;
    let mut samples = 0u64;
    for byte in block.iter().step_by(step) {
        counts[usize::from(*byte)] += 1;
        samples += 1;
    }
    // Each byte is as likely as any other in about n²/256 + n of n² pairs.
    let pairs: u64 = counts.iter().map(|count| u64::from(*count).pow(2)).sum();
    pairs * 100 < (samples * samples / 256 + samples) * 112
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    fn tuning(expected: usize, deadline: Duration) -> Tuning {
        let deadline = Instant::now() + deadline;
        let usual = Usual::default();
        Tuning::new(Wanted::Fitting, 2, 4, expected as u64, usual, move || {
            deadline
        })
    }

    /// Lets the clock show a job of text of which a half was stored at this upload rate, per upload.
    /// Everything takes `contention` times as long as its share of a processor.
    fn half_done(tuning: &Tuning, upload_mib: u64, contention: u32) -> Level {
        let text = b"the same line again\n".repeat(256 * 1024 / 20);
        let seconds = |gib: f64, bytes: usize| {
            let processor = Duration::from_secs_f64(gib * bytes as f64 / GIB);
            Spent {
                wall: processor * contention,
                processor,
            }
        };
        for _ in 0..2048 {
            let level = tuning.level_for(&text);
            let (cost, ratio) = USUAL[level as usize];
            tuning.looked_at(MIB / 4, seconds(USUAL_LOOK, MIB / 4));
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let packed = (MIB as f64 / 4.0 * ratio) as usize;
            tuning.made(level, MIB / 4, packed, seconds(cost, MIB / 4));
            let took = Duration::from_secs_f64(packed as f64 / (upload_mib as f64 * MIB as f64));
            tuning.uploaded(packed, took * contention);
        }
        tuning.level_for(&text)
    }

    #[test]
    fn a_fast_store_gets_it_raw_and_a_slow_one_compressed() {
        let hour = Duration::from_secs(3600);
        assert_eq!(half_done(&tuning(16 << 30, hour), 1000, 1), Level::Raw);
        assert_eq!(half_done(&tuning(16 << 30, hour), 10, 1), Level::Strong);
    }

    #[test]
    fn the_next_checkpoint_begins_with_what_this_one_measured() {
        let minute = Duration::from_secs(60);
        let level = |usual: Usual| {
            let deadline = Instant::now() + minute;
            let next = Tuning::new(Wanted::Fitting, 2, 4, 4 << 30, usual, move || deadline);
            next.level_for(&b"the same line again\n".repeat(256 * 1024 / 20))
        };
        for (upload_mib, expected) in [(1000, Level::Raw), (5, Level::Strong)] {
            let this = tuning(16 << 30, minute);
            half_done(&this, upload_mib, 1);
            assert_eq!(level(this.learned()), expected, "{upload_mib} MiB/s");
        }
        // A few bytes tell nothing.
        let this = tuning(16 << 30, minute);
        this.uploaded(1000, minute);
        assert!((this.learned().upload - USUAL_UPLOAD).abs() < 1.0);
    }

    #[test]
    fn little_that_is_left_is_compressed() {
        let hour = Duration::from_secs(3600);
        let little = tuning(520 << 20, hour);
        assert_eq!(half_done(&little, 1000, 1), Level::Strong);
    }

    #[test]
    fn uploads_that_wait_for_a_processor_do_not_make_packing_harder() {
        let hour = Duration::from_secs(3600);
        assert_eq!(half_done(&tuning(16 << 30, hour), 400, 4), Level::Raw);
    }

    #[test]
    fn noise_is_told_from_everything_else() {
        assert!(looks_random(&noise(256 * 1024)));
        assert!(looks_random(&noise(64 * 1024)));
        let text = b"the same line again\n".repeat(256 * 1024 / 20);
        assert!(!looks_random(&text));
        assert!(!looks_random(&vec![0; 256 * 1024]));
        // Numbers whose upper bytes are alike shrink by a quarter.
        let mut numbers = noise(256 * 1024);
        for at in (0..numbers.len()).step_by(4) {
            numbers[at] = 0x3f;
        }
        assert!(!looks_random(&numbers));
        assert_eq!(
            tuning(1 << 30, Duration::ZERO).level_for(&noise(256 * 1024)),
            Level::Raw
        );
    }

    #[test]
    fn what_was_asked_for_is_done() {
        let text = b"the same line again\n".repeat(256 * 1024 / 20);
        for level in Level::ALL {
            let tuning = Tuning::new(
                Wanted::Always(level),
                1,
                1,
                0,
                Usual::default(),
                Instant::now,
            );
            assert_eq!(tuning.level_for(&text), level);
        }
    }
}
