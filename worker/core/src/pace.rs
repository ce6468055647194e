//! How to move data to a store whose speed nobody knows beforehand: how long to wait for one attempt, when to send the
//! slowest part a second time, how large parts are, and how many uploads go side by side.
//!
//! What is measured are whole uploads of parts, as time per byte: a mean and the mean deviation from it, both following
//! what comes in, as TCP judges round trips. Everything else follows from that, the time left, and the memory there is.

use std::time::Duration;

const MIB: u64 = 1 << 20;

/// The part size when nothing is known. S3 reaches its full throughput per connection from 8 MiB on (AWS's guidance).
pub const USUAL_PART: u64 = 8 * MIB;
/// Smaller parts cost more requests than they save time.
pub const SMALLEST_PART: u64 = 4 * MIB;
pub const LARGEST_PART: u64 = 16 * MIB;

/// How long a part may be on its way, about, so that a failed one costs little and many go side by side.
const TRANSFER: Duration = Duration::from_secs(1);

/// An upload is not sent a second time before this much longer than it takes usually.
const PATIENCE: Duration = Duration::from_millis(700);

/// With fewer uploads measured nothing is said of the next.
const ENOUGH: u32 = 3;

/// Attempts that should fit into the time left.
const TRIES: u32 = 3;

/// No attempt is given less, unless there is less: a store that is far or busy answers within it.
const SHORTEST_ATTEMPT: Duration = Duration::from_secs(2);

/// What was measured of uploads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    uploads: u32,
    /// Nanoseconds per byte, and how far single uploads are from that.
    mean: f64,
    deviation: f64,
}

impl Pace {
    /// Takes an upload into account that took this long.
    pub fn observe(&mut self, bytes: u64, took: Duration) {
        if bytes == 0 {
            return;
        }
        let sample = took.as_nanos() as f64 / bytes as f64;
        if self.uploads == 0 {
            self.mean = sample;
            self.deviation = sample / 2.0;
        } else {
            self.deviation += ((sample - self.mean).abs() - self.deviation) / 4.0;
            self.mean += (sample - self.mean) / 8.0;
        }
        self.uploads = self.uploads.saturating_add(1);
    }

    fn known(&self) -> Option<&Self> {
        (self.uploads >= ENOUGH).then_some(self)
    }

    /// How long to wait for an upload before it is sent a second time beside the first.
    pub fn hedge_after(&self, bytes: u64) -> Option<Duration> {
        let known = self.known()?;
        let usual = (known.mean + 4.0 * known.deviation) * bytes as f64;
        Some(PATIENCE + Duration::from_secs_f64((usual / 1e9).min(1e6)))
    }

    /// The size of the next part, if parts on their way may take this much memory together.
    pub fn part_bytes(&self, memory: u64) -> u64 {
        // Larger ones are for those who have memory for many of them.
        let most = (memory / 8).clamp(USUAL_PART, LARGEST_PART);
        let Some(known) = self.known() else {
            return USUAL_PART;
        };
        let in_time = |bytes: &u64| known.mean * *bytes as f64 <= TRANSFER.as_nanos() as f64;
        let sizes = (SMALLEST_PART / MIB..=most / MIB).map(|mib| mib * MIB);
        sizes.rev().find(in_time).unwrap_or(SMALLEST_PART)
    }
}

/// How many uploads a store bears side by side: as many as there may be, half as many each time it asks for fewer, and one
/// more after each round that went well (additive increase, multiplicative decrease, as TCP shares lines).
///
/// Uploads that were under way together are told so together. All of them are one answer: only what was begun since the last
/// change says anything about it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    most: f64,
    width: f64,
    round: u64,
}

/// When an upload was begun, in a window's rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round(u64);

/// What a store answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Stored,
    /// Too many requests.
    SlowDown,
    /// Anything else: it says nothing of how much the store bears.
    Other,
}

impl Window {
    /// There may never be more than `most`.
    pub fn new(most: u32) -> Self {
        let most = f64::from(most.max(1));
        Self {
            most,
            width: most,
            round: 0,
        }
    }

    /// Whether another one may be begun beside so many.
    pub fn has_room_beside(&self, under_way: usize) -> bool {
        under_way == 0 || under_way as f64 + 1.0 <= self.width
    }

    /// The round in which an upload is begun.
    pub fn begin(&self) -> Round {
        Round(self.round)
    }

    /// Takes the end of one into account.
    pub fn ended(&mut self, begun: Round, answer: Answer) {
        if begun != Round(self.round) {
            return;
        }
        match answer {
            Answer::Stored => self.width = (self.width + 1.0 / self.width).min(self.most),
            Answer::SlowDown => {
                self.width = (self.width / 2.0).max(1.0);
                self.round += 1;
            }
            Answer::Other => {}
        }
    }
}

/// How long one attempt at a small request may take, when `left` is left and `silent` attempts before it got no answer in
/// their time. Each gets twice as long as the one before, so that a store that is only slow answers one of them.
pub fn attempt_limit(left: Duration, longest: Duration, silent: u32) -> Duration {
    let first = (left / TRIES).clamp(SHORTEST_ATTEMPT, longest);
    first
        .saturating_mul(1 << silent.min(10))
        .min(longest)
        .min(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn after(uploads: &[(u64, u64)]) -> Pace {
        let mut pace = Pace::default();
        for (bytes, millis) in uploads {
            pace.observe(*bytes, Duration::from_millis(*millis));
        }
        pace
    }

    #[test]
    fn nothing_is_said_before_enough_was_measured() {
        let pace = after(&[(USUAL_PART, 100), (USUAL_PART, 100)]);
        assert_eq!(pace.hedge_after(USUAL_PART), None);
        assert_eq!(pace.part_bytes(24 * MIB), USUAL_PART);
    }

    #[test]
    fn slow_ways_get_small_parts_and_fast_ones_large_parts_where_there_is_memory() {
        let slow = after(&[(USUAL_PART, 8000); 10]);
        let fast = after(&[(USUAL_PART, 80); 10]);
        assert_eq!(slow.part_bytes(24 * MIB), SMALLEST_PART);
        assert_eq!(slow.part_bytes(1024 * MIB), SMALLEST_PART);
        assert_eq!(fast.part_bytes(24 * MIB), USUAL_PART);
        assert_eq!(fast.part_bytes(1024 * MIB), LARGEST_PART);
    }

    #[test]
    fn attempts_share_the_time_that_is_left() {
        let seconds = Duration::from_secs;
        for (left, silent, limit) in [
            (600, 0, 60),
            (30, 0, 10),
            (20, 1, 13),
            (9, 0, 3),
            (3, 0, 2),
            (1, 0, 1),
            (1, 5, 1),
        ] {
            let found = attempt_limit(seconds(left), seconds(60), silent);
            assert_eq!(found.as_secs(), limit, "{left} {silent}");
        }
    }

    /// The most that the window has room for.
    fn room(window: &Window) -> usize {
        (0..)
            .find(|beside| !window.has_room_beside(*beside))
            .expect("it is bounded")
    }

    #[test]
    fn a_store_that_asks_for_fewer_gets_half_as_many_and_then_one_more_each_round() {
        let mut window = Window::new(16);
        assert_eq!(room(&window), 16);
        for expected in [8, 4, 2, 1, 1] {
            let begun = window.begin();
            for _ in 0..16 {
                window.ended(begun, Answer::SlowDown);
            }
            assert_eq!(room(&window), expected);
        }
        for expected in [2, 3, 4, 5] {
            let begun = window.begin();
            for _ in 1..expected {
                window.ended(begun, Answer::Stored);
                window.ended(begun, Answer::Other);
            }
            // A round of that width adds almost one; what is missing comes with the next.
            assert!(
                room(&window) >= expected - 1 && room(&window) <= expected,
                "{window:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_window_has_room_for_one_and_never_for_more_than_the_most(
            most in 0u32..100, answers in prop::collection::vec((0u64..3, 0u8..3), 0..200),
        ) {
            let mut window = Window::new(most);
            for (age, answer) in answers {
                let before = room(&window);
                let begun = Round(window.begin().0.saturating_sub(age));
                let is_news = begun == window.begin();
                let answer = [Answer::Stored, Answer::SlowDown, Answer::Other][usize::from(answer)];
                window.ended(begun, answer);
                prop_assert!((1..=most.max(1) as usize).contains(&room(&window)));
                prop_assert!(room(&window) <= before + 1);
                match answer {
                    Answer::SlowDown if is_news => prop_assert!(room(&window) <= (before / 2 + 1).min(before)),
                    Answer::Stored if is_news => prop_assert!(room(&window) >= before),
                    _ => prop_assert_eq!(room(&window), before),
                }
            }
        }

        #[test]
        fn an_attempt_never_outlasts_the_time_nor_its_limit(
            left in 0u64..100_000_000, longest in 2_000u64..1_000_000, silent in 0u32..100,
        ) {
            let (left, longest) = (Duration::from_millis(left), Duration::from_millis(longest));
            let limit = attempt_limit(left, longest, silent);
            prop_assert!(limit <= left && limit <= longest);
            prop_assert!(limit >= left.min(SHORTEST_ATTEMPT));
            prop_assert!(attempt_limit(left, longest, silent + 1) >= limit);
        }

        #[test]
        fn a_hung_attempt_leaves_time_for_others(left in 6_000u64..600_000) {
            let left = Duration::from_millis(left);
            let hung = attempt_limit(left, Duration::from_secs(3600), 0);
            prop_assert!(left - hung >= left / 2);
        }

        #[test]
        fn parts_are_whole_mebibytes_and_at_least_one_fits(
            uploads in prop::collection::vec((1u64..64 * MIB, 0u64..1_000_000), 0..30),
            memory in 8 * MIB..(64 << 30),
        ) {
            let part = after(&uploads).part_bytes(memory);
            prop_assert!((SMALLEST_PART..=LARGEST_PART).contains(&part));
            prop_assert_eq!(part % MIB, 0);
            prop_assert!(part <= memory);
        }

        #[test]
        fn what_takes_as_long_as_all_others_is_not_sent_twice(
            millis in 1u64..100_000, more in 0u64..700, uploads in 3usize..20,
        ) {
            let pace = after(&vec![(USUAL_PART, millis); uploads]);
            let wait = pace.hedge_after(USUAL_PART).expect("it is known");
            prop_assert!(wait >= Duration::from_millis(millis + more));
        }

        #[test]
        fn larger_uploads_are_waited_for_longer(
            uploads in prop::collection::vec((1u64..64 * MIB, 0u64..1_000_000), 3..30),
            small in 0u64..64 * MIB, more in 0u64..64 * MIB,
        ) {
            let pace = after(&uploads);
            prop_assert!(pace.hedge_after(small) <= pace.hedge_after(small + more));
        }
    }
}
