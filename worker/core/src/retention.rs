//! Which snapshots may go, and why each of the rest stays.
//!
//! A snapshot stays if any one rule keeps it; the plan names all of them. The hour and the day of a snapshot are those of
//! the wall clock that it was taken by, in UTC. What becomes of the objects of one that goes is decided in
//! [`crate::sweep`].

use std::collections::BTreeSet;
use std::fmt;

use crate::head::{Generation, Head};

/// How many of the newest snapshots stay at least; an older valid one is what a damaged newest one falls back on.
pub const LEAST_KEPT: usize = 2;

const HOUR_MS: u64 = 60 * 60 * 1000;
const DAY_MS: u64 = 24 * HOUR_MS;

/// What to keep, besides what is pinned or tagged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// So many of the newest; [`LEAST_KEPT`] when it is less.
    pub last: usize,
    /// The last one of each of so many hours, of hours that have any.
    pub hourly: usize,
    /// The last one of each of so many days, of days that have any.
    pub daily: usize,
}

impl Policy {
    /// Only the newest ones.
    pub fn last(last: usize) -> Self {
        Self {
            last,
            hourly: 0,
            daily: 0,
        }
    }
}

/// A rule that keeps a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    Newest,
    /// Its place among the newest, from 1, and how many of them are kept.
    Last {
        place: usize,
        of: usize,
    },
    /// Hours since the Unix epoch.
    LastOfHour(u64),
    /// Days since the Unix epoch.
    LastOfDay(u64),
    Pinned,
    Tagged(String),
    /// Newer ones are set aside, and this is the one that the job goes on from.
    GoneBackTo,
}

/// What becomes of one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub generation: u64,
    /// Empty: it goes.
    pub kept: Vec<Kept>,
}

/// What becomes of each snapshot, newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub policy: Policy,
    pub entries: Vec<Entry>,
}

/// Applies the policy to everything that a head names. What was set aside counts as it did before, but never instead of
/// what the job goes on from.
pub fn plan_for(head: &Head, policy: Policy) -> Plan {
    let mut plan = plan(&head.generations, policy);
    let tip = head.tip().map(|tip| tip.generation);
    let newest = head.generations.first().map(|newest| newest.generation);
    if let Some(entry) = plan
        .entries
        .iter_mut()
        .find(|entry| Some(entry.generation) == tip && tip != newest)
    {
        entry.kept.push(Kept::GoneBackTo);
    }
    plan
}

/// Applies the policy.
pub fn plan(newest_first: &[Generation], policy: Policy) -> Plan {
    let policy = Policy {
        last: policy.last.max(LEAST_KEPT),
        ..policy
    };
    let mut hours = Periods::new(HOUR_MS, policy.hourly);
    let mut days = Periods::new(DAY_MS, policy.daily);
    let entries = newest_first
        .iter()
        .enumerate()
        .map(|(at, generation)| Entry {
            generation: generation.generation,
            kept: place(at, policy.last)
                .into_iter()
                .chain(hours.claim(generation.taken_at_ms).map(Kept::LastOfHour))
                .chain(days.claim(generation.taken_at_ms).map(Kept::LastOfDay))
                .chain(generation.pinned.then_some(Kept::Pinned))
                .chain(generation.tags.iter().cloned().map(Kept::Tagged))
                .collect(),
        })
        .collect();
    Plan { policy, entries }
}

fn place(at: usize, of: usize) -> Option<Kept> {
    match at {
        0 => Some(Kept::Newest),
        _ if at < of => Some(Kept::Last { place: at + 1, of }),
        _ => None,
    }
}

/// The periods that have their snapshot. A set, because clocks that were set back visit a period again.
struct Periods {
    length_ms: u64,
    limit: usize,
    taken: BTreeSet<u64>,
}

impl Periods {
    fn new(length_ms: u64, limit: usize) -> Self {
        Self {
            length_ms,
            limit,
            taken: BTreeSet::new(),
        }
    }

    /// The period of this moment, if it is one of those that count and the snapshot is the first seen of it.
    fn claim(&mut self, at_ms: u64) -> Option<u64> {
        let period = at_ms / self.length_ms;
        (self.taken.len() < self.limit && self.taken.insert(period)).then_some(period)
    }
}

impl Plan {
    /// The generations that go.
    pub fn dropped(&self) -> Vec<u64> {
        self.entries
            .iter()
            .filter(|entry| entry.goes())
            .map(|entry| entry.generation)
            .collect()
    }
}

impl Entry {
    pub fn goes(&self) -> bool {
        self.kept.is_empty()
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => f.write_str("newest"),
            Self::Last { place, of } => write!(f, "number {place} of the last {of}"),
            Self::LastOfHour(hour) => {
                write!(f, "last of hour {} {:02}h", Date(hour / 24), hour % 24)
            }
            Self::LastOfDay(day) => write!(f, "last of day {}", Date(*day)),
            Self::Pinned => f.write_str("pinned"),
            Self::Tagged(tag) => write!(f, "tagged {tag}"),
            Self::GoneBackTo => f.write_str("the job goes on from it"),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.goes() {
            return f.write_str("goes: no rule keeps it");
        }
        let reasons: Vec<String> = self.kept.iter().map(ToString::to_string).collect();
        write!(f, "kept: {}", reasons.join(", "))
    }
}

/// A day since the Unix epoch, as a date in UTC.
struct Date(u64);

impl fmt::Display for Date {
    /// Howard Hinnant's `civil_from_days`, for days after the epoch.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days = self.0 + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Months are counted from March, so that the leap day is the last of its year.
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = (month_from_march + 2) % 12 + 1;
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn generation(number: u64, taken_at_ms: u64) -> Generation {
        Generation {
            generation: number,
            manifest: String::new(),
            digest: String::new(),
            taken_at_ms,
            stored_bytes: 0,
            pinned: false,
            tags: Vec::new(),
            commands: Vec::new(),
            unknown: crate::document::Unknown::new(),
        }
    }

    fn generations(numbers: &[u64]) -> Vec<Generation> {
        numbers
            .iter()
            .map(|&number| generation(number, 0))
            .collect()
    }

    #[test]
    fn the_oldest_go_once_there_are_more_than_are_kept() {
        let dropped =
            |numbers: &[u64], last| plan(&generations(numbers), Policy::last(last)).dropped();
        assert_eq!(dropped(&[9, 8, 7, 6], 2), [7, 6]);
        assert_eq!(dropped(&[9, 8, 7], 3), [0; 0]);
    }

    #[test]
    fn one_to_fall_back_on_stays_whatever_is_asked() {
        let dropped = plan(&generations(&[9, 8, 7]), Policy::last(0)).dropped();
        assert_eq!(dropped, [7]);
    }

    #[test]
    fn every_decision_says_why() {
        // 2026-11-21 05:00 UTC.
        let five = 1_795_237_200_000;
        let mut all = vec![
            generation(9, five + 40 * 60_000),
            generation(8, five + 20 * 60_000),
            generation(7, five + 60_000),
            generation(6, five - 60_000),
            generation(5, five - 2 * 60_000),
            generation(4, five - 24 * HOUR_MS),
            generation(3, five - 25 * HOUR_MS),
            generation(2, five - 26 * HOUR_MS),
        ];
        all[6].pinned = true;
        all[7].tags = vec!["paper".into(), "v1".into()];
        let policy = Policy {
            last: 2,
            hourly: 2,
            daily: 2,
        };
        let said: Vec<String> = plan(&all, policy)
            .entries
            .iter()
            .map(|entry| format!("{} {entry}", entry.generation))
            .collect();
        assert_eq!(
            said,
            [
                "9 kept: newest, last of hour 2026-11-21 05h, last of day 2026-11-21",
                "8 kept: number 2 of the last 2",
                "7 goes: no rule keeps it",
                "6 kept: last of hour 2026-11-21 04h",
                "5 goes: no rule keeps it",
                "4 kept: last of day 2026-11-20",
                "3 kept: pinned",
                "2 kept: tagged paper, tagged v1",
            ]
        );
    }

    #[test]
    fn what_the_job_went_back_to_stays() {
        let request = "1".parse().expect("it names a snapshot");
        let head = (1..=4)
            .fold(Head::new("job"), |head, number| {
                head.committed(generation(number, 0), &[], String::new())
            })
            .rolled_back(1, &request, String::new());
        let plan = plan_for(&head, Policy::last(2));
        assert_eq!(plan.dropped(), [2]);
        let said = plan.entries.last().map(ToString::to_string);
        assert_eq!(said.as_deref(), Some("kept: the job goes on from it"));
        let on = head.committed(generation(5, 0), &[], String::new());
        assert_eq!(plan_for(&on, Policy::last(2)).dropped(), [3, 2, 1]);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (day, date) in [
            (0, "1970-01-01"),
            (59, "1970-03-01"),
            (789, "1972-02-29"),
            (11_016, "2000-02-29"),
            (20_778, "2026-11-21"),
            (47_540, "2100-02-28"),
            (47_541, "2100-03-01"),
        ] {
            assert_eq!(Date(day).to_string(), date);
        }
    }

    prop_compose! {
        fn some_generations()(all in proptest::collection::vec(
            (0..6 * DAY_MS, proptest::bool::weighted(0.1), proptest::bool::weighted(0.1)), 0..40
        )) -> Vec<Generation> {
            let count = all.len() as u64;
            (0..).zip(all).map(|(at, (taken_at_ms, pinned, tagged))| Generation {
                pinned,
                tags: tagged.then(|| "t".to_owned()).into_iter().collect(),
                ..generation(count - at, taken_at_ms)
            }).collect()
        }
    }

    /// The same policy as a person would say it.
    fn stays(all: &[Generation], at: usize, policy: Policy) -> bool {
        let one = &all[at];
        let is_among = |length_ms: u64, limit: usize| {
            let period = |one: &Generation| one.taken_at_ms / length_ms;
            let newer = &all[..at];
            let others: BTreeSet<u64> = newer.iter().map(period).collect();
            !others.contains(&period(one)) && others.len() < limit
        };
        at < policy.last.max(2)
            || one.pinned
            || !one.tags.is_empty()
            || is_among(HOUR_MS, policy.hourly)
            || is_among(DAY_MS, policy.daily)
    }

    proptest! {
        #[test]
        fn the_plan_is_the_policy(
            mut all in some_generations(), sorted: bool, last in 0usize..9, hourly in 0usize..30, daily in 0usize..8
        ) {
            if sorted {
                let mut times: Vec<u64> = all.iter().map(|one| one.taken_at_ms).collect();
                times.sort_unstable_by(|a, b| b.cmp(a));
                all.iter_mut().zip(times).for_each(|(one, time)| one.taken_at_ms = time);
            }
            let policy = Policy { last, hourly, daily };
            let plan = plan(&all, policy);
            prop_assert_eq!(plan.entries.len(), all.len());
            for (at, entry) in plan.entries.iter().enumerate() {
                prop_assert_eq!(!entry.goes(), stays(&all, at, policy), "{}", at);
            }
        }

        #[test]
        fn what_stays_once_stays_when_asked_again(all in some_generations(), last in 0usize..9, hourly in 0usize..30, daily in 0usize..8) {
            let policy = Policy { last, hourly, daily };
            let dropped = plan(&all, policy).dropped();
            let left: Vec<Generation> =
                all.into_iter().filter(|one| !dropped.contains(&one.generation)).collect();
            prop_assert_eq!(plan(&left, policy).dropped(), Vec::<u64>::new());
        }
    }
}
