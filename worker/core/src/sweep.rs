//! Which stored objects may go, and why each of the rest stays.
//!
//! What counts is what the head names: the manifests of its generations, and every part that those manifests name,
//! whichever attempt wrote it. Everything else was dropped, given up, or is on its way to be committed, and only the last
//! of these is dangerous to take away. Two rules make it safe, with no clock and whoever else sweeps, prunes, claims or
//! crashes meanwhile:
//!
//! - The sweeper takes away what nobody can commit any more: an attempt whose manifest has a number or an epoch that the
//!   head has passed, or one that the head *condemns*. It writes the condemnation by compare-and-swap against the very
//!   head that it planned from, and deletes afterwards.
//! - The writer commits by compare-and-swap against a head of which [`may_commit`] holds: its attempt is not condemned,
//!   its number is still free, and the snapshot whose parts it refers to still counts.
//!
//! So an object that a commit adds was either referred to by the head before, which no sweep of that head takes away, or
//! belongs to an attempt that no head had condemned.
//!
//! ```text
//! HEAD                       stays
//! manifests/G-E-ATTEMPT      named by the head: stays     number or epoch passed: goes
//! data/ATTEMPT/...           a part of a live one: stays  attempt passed: goes
//!                            the owner seeds it: stays
//!                            both otherwise: younger than the grace: stays; older: condemned, goes
//! clock/..., probe/...       younger than an hour: stays; older: goes
//! reports/...                the newest 20 stay; older: go
//! anything else              is not ours: stays
//! ```
//!
//! Memory that the owner stored ahead is data of an attempt that the head names for as long as the owner may refer to it. It
//! is named before the first of its objects is written, and an attempt that is named is never condemned, so a snapshot may
//! refer to it as to parts of its own.
//!
//! A manifest goes before its data, and tells that nobody can commit them. A sweep that is given up in between remembers which
//! attempts it had told so ([`Facts::passed`]): a head's numbers and epochs never go back, so that still holds for the next one.
//!
//! The grace is a courtesy to slow writers: one that outlasts it loses its attempt, and neither the job nor a snapshot.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use crate::head::{self, Head};
use crate::manifest::{self, Manifest, Part};
use crate::report;

/// The prefix of short-lived objects by which a sweeper learns the time of the store's clock.
pub const CLOCK_PREFIX: &str = "clock/";

/// The prefix of short-lived objects by which a start finds out whether the store keeps conditions.
pub const PROBE_PREFIX: &str = "probe/";

/// How long such an object stays, whatever the grace: another worker may be about to look at it.
const CLOCK_STAYS_MS: u64 = 60 * 60 * 1000;

/// A stored object of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Relative to the job's prefix.
    pub key: String,
    pub bytes: u64,
    /// When it was stored, by the store's clock.
    pub stored_at_ms: u64,
}

/// A generation that counts, and what a restore of it reads.
#[derive(Clone, Copy, Debug)]
pub struct Live<'a> {
    pub generation: u64,
    pub parts: &'a [Part],
}

/// Everything that the decision follows from.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub head: &'a Head,
    /// One for each generation of the head.
    pub live: &'a [Live<'a>],
    /// Listed after the head was read.
    pub objects: &'a [Object],
    /// Attempts that an earlier plan for this job found passed, and whose manifests it has removed since.
    pub passed: &'a BTreeSet<String>,
    /// By the store's clock.
    pub now_ms: u64,
    pub grace_ms: u64,
}

/// Why an object stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stays {
    Head,
    /// It is the manifest of this generation.
    ManifestOf(u64),
    /// This generation and perhaps others refer to it.
    PartOf(u64),
    /// It was written by the attempt that became this generation, which does not name it.
    WrittenFor(u64),
    /// The owner stored it ahead, for its next snapshot.
    Seeded,
    /// It belongs to an attempt that wrote something this long ago, and may still be committed.
    Young {
        age_ms: u64,
    },
    /// It tells of a failure or an eviction, and is one of the newest.
    Report,
    /// Reprieve has no such key.
    Unknown,
}

/// Why an object goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goes {
    /// Its snapshot was taken out of the head.
    Dropped,
    /// Its attempt was given up.
    Abandoned,
    /// Enough newer reports tell of what happened since.
    Outnumbered,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Stays(Stays),
    Goes(Goes),
}

/// What becomes of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub bytes: u64,
    pub verdict: Verdict,
}

/// Whether a plan that was made from `planned` still holds for `present`: signs of life and condemnations do not matter.
pub fn still_holds(planned: &Head, present: &Head) -> bool {
    let named = |head: &Head| -> Vec<String> {
        let manifests = head.generations.iter();
        manifests.map(|known| known.manifest.clone()).collect()
    };
    (planned.epoch, planned.next_generation, &planned.seeding)
        == (present.epoch, present.next_generation, &present.seeding)
        && named(planned) == named(present)
}

/// What becomes of each object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order of the listing.
    pub entries: Vec<Entry>,
    /// Attempts that the head has to condemn before anything goes.
    pub condemned: Vec<String>,
}

impl Plan {
    /// What goes, in the order in which it has to: each manifest before its data, so that no listing ever finds a manifest
    /// whose data was taken away; and its data right behind it, so that a sweep which is cut short leaves the data of one
    /// attempt at most without the manifest that tells that nobody can commit it. What a sweep before had left so comes first,
    /// or sweeps that are cut short again and again would leave more and more of it; data that never had a manifest comes last.
    pub fn going(&self) -> Vec<&Entry> {
        let mut going: Vec<&Entry> = self
            .entries
            .iter()
            .filter(|entry| matches!(entry.verdict, Verdict::Goes(_)))
            .collect();
        let is_manifest = |entry: &Entry| entry.key.starts_with(manifest::PREFIX);
        let named: BTreeSet<&str> = going
            .iter()
            .filter(|entry| is_manifest(entry))
            .filter_map(|entry| attempt_of(&entry.key))
            .collect();
        going.sort_by_key(|entry| {
            let attempt = attempt_of(&entry.key).filter(|attempt| named.contains(attempt));
            // Of data without a manifest in the listing, only what is remembered counts as dropped.
            let is_left = attempt.is_none() && entry.verdict == Verdict::Goes(Goes::Dropped);
            (!is_left, attempt.is_none(), attempt, !is_manifest(entry))
        });
        going
    }

    /// Bytes of what goes.
    pub fn freed(&self) -> u64 {
        self.going().iter().map(|entry| entry.bytes).sum()
    }
}

/// Whether an attempt may still become a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It is this generation.
    Counts(u64),
    Seeded,
    Passed(Goes),
    /// It may be on its way, and last wrote something at this time.
    Open {
        stored_at_ms: u64,
    },
}

/// Decides about each object.
pub fn plan(facts: &Facts<'_>) -> Plan {
    let Facts {
        head,
        live,
        objects,
        passed,
        now_ms,
        grace_ms,
    } = *facts;
    // The newest generation is the most telling reason, so it is entered last.
    let mut parts: HashMap<&str, u64> = HashMap::new();
    for one in live.iter().rev() {
        parts.extend(
            one.parts
                .iter()
                .map(|part| (part.key.as_str(), one.generation)),
        );
    }
    let standings = standings(head, objects, passed);
    let oldest_report = oldest_report(objects);
    let mut condemned = BTreeSet::new();
    let mut judge = |attempt: &str| match standings[attempt] {
        Standing::Counts(generation) => Verdict::Stays(Stays::WrittenFor(generation)),
        Standing::Seeded => Verdict::Stays(Stays::Seeded),
        Standing::Passed(why) => Verdict::Goes(why),
        Standing::Open { stored_at_ms } => {
            let age_ms = now_ms.saturating_sub(stored_at_ms);
            if age_ms < grace_ms {
                return Verdict::Stays(Stays::Young { age_ms });
            }
            condemned.insert(attempt.to_owned());
            Verdict::Goes(Goes::Abandoned)
        }
    };
    let mut verdict = |object: &Object| {
        let key = object.key.as_str();
        if key == head::KEY {
            return Verdict::Stays(Stays::Head);
        }
        if let Some(named) = head.generations.iter().find(|known| known.manifest == key) {
            return Verdict::Stays(Stays::ManifestOf(named.generation));
        }
        if let Some(generation) = parts.get(key) {
            return Verdict::Stays(Stays::PartOf(*generation));
        }
        if key.starts_with(CLOCK_PREFIX) || key.starts_with(PROBE_PREFIX) {
            let age_ms = now_ms.saturating_sub(object.stored_at_ms);
            return match age_ms < CLOCK_STAYS_MS {
                true => Verdict::Stays(Stays::Young { age_ms }),
                false => Verdict::Goes(Goes::Abandoned),
            };
        }
        if let Some(name) = report::Name::of_key(key) {
            return match oldest_report.as_ref().is_none_or(|oldest| name >= *oldest) {
                true => Verdict::Stays(Stays::Report),
                false => Verdict::Goes(Goes::Outnumbered),
            };
        }
        attempt_of(key).map_or(Verdict::Stays(Stays::Unknown), &mut judge)
    };
    let entries = objects
        .iter()
        .map(|object| Entry {
            key: object.key.clone(),
            bytes: object.bytes,
            verdict: verdict(object),
        })
        .collect();
    Plan {
        entries,
        condemned: condemned.into_iter().collect(),
    }
}

/// The oldest report that stays. None: all of them do.
fn oldest_report(objects: &[Object]) -> Option<report::Name> {
    let names = objects
        .iter()
        .filter_map(|object| report::Name::of_key(&object.key));
    let mut names: Vec<report::Name> = names.collect();
    names.sort_unstable_by(|one, other| other.cmp(one));
    names.into_iter().nth(report::KEPT - 1)
}

/// The attempt that wrote this object of a job.
pub fn attempt_of(key: &str) -> Option<&str> {
    manifest::data_attempt(key).or_else(|| manifest::parse_key(key).map(|(_, _, attempt)| attempt))
}

fn standings<'a>(
    head: &Head,
    objects: &'a [Object],
    passed: &BTreeSet<String>,
) -> BTreeMap<&'a str, Standing> {
    let mut standings: BTreeMap<&str, Standing> = BTreeMap::new();
    for object in objects {
        let Some(attempt) = attempt_of(&object.key) else {
            continue;
        };
        let own = match standing(head, object, attempt) {
            Standing::Open { .. } if passed.contains(attempt) => Standing::Passed(Goes::Dropped),
            own => own,
        };
        standings
            .entry(attempt)
            .and_modify(|known| *known = stronger(*known, own))
            .or_insert(own);
    }
    standings
}

fn standing(head: &Head, object: &Object, attempt: &str) -> Standing {
    let named = head
        .generations
        .iter()
        .find(|known| known.manifest == object.key);
    if let Some(named) = named {
        return Standing::Counts(named.generation);
    }
    if head.seeding.as_deref() == Some(attempt) {
        return Standing::Seeded;
    }
    match manifest::parse_key(&object.key) {
        Some((generation, epoch, _)) if generation < head.next_generation || epoch < head.epoch => {
            Standing::Passed(Goes::Dropped)
        }
        _ if head.condemned.iter().any(|condemned| condemned == attempt) => {
            Standing::Passed(Goes::Abandoned)
        }
        _ => Standing::Open {
            stored_at_ms: object.stored_at_ms,
        },
    }
}

/// A manifest says more than data does, and younger data more than older.
fn stronger(one: Standing, other: Standing) -> Standing {
    match (one, other) {
        (Standing::Counts(_), _) => one,
        (_, Standing::Counts(_)) => other,
        (Standing::Seeded, _) => one,
        (_, Standing::Seeded) => other,
        (Standing::Passed(_), _) => one,
        (_, Standing::Passed(_)) => other,
        (Standing::Open { stored_at_ms: a }, Standing::Open { stored_at_ms: b }) => {
            Standing::Open {
                stored_at_ms: a.max(b),
            }
        }
    }
}

/// Why a snapshot that is complete may not be committed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("a sweep gave this attempt up, because it took longer than the sweep's grace")]
    Condemned,
    #[error("its number {0} was given to another snapshot meanwhile")]
    Taken(u64),
    #[error("it refers to parts of a snapshot that was removed meanwhile")]
    Dropped,
}

/// Whether a snapshot may be committed in front of those that this head names. `base` is the manifest of the one whose
/// parts it may refer to.
pub fn may_commit(head: &Head, manifest: &Manifest, base: Option<&str>) -> Result<(), Refusal> {
    if head.condemned.contains(&manifest.attempt) {
        return Err(Refusal::Condemned);
    }
    if manifest.generation < head.next_generation {
        return Err(Refusal::Taken(manifest.generation));
    }
    let seeded = head.seeding.as_deref();
    let stands_alone = manifest.parts.iter().all(|part| {
        let attempt = manifest::data_attempt(&part.key);
        attempt == Some(manifest.attempt.as_str()) || attempt.is_some() && attempt == seeded
    });
    if stands_alone || base.is_some_and(|base| head.names(base)) {
        Ok(())
    } else {
        Err(Refusal::Dropped)
    }
}

impl fmt::Display for Stays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => f.write_str("it is the head"),
            Self::ManifestOf(generation) => write!(f, "manifest of generation {generation}"),
            Self::PartOf(generation) => write!(f, "referenced by generation {generation}"),
            Self::WrittenFor(generation) => write!(f, "written for generation {generation}"),
            Self::Seeded => f.write_str("stored ahead for the owner's next snapshot"),
            Self::Young { age_ms } => write!(
                f,
                "of somebody who wrote {} s ago and may still be at it",
                age_ms / 1000
            ),
            Self::Report => f.write_str("one of the newest reports"),
            Self::Unknown => f.write_str("not a key of Reprieve's"),
        }
    }
}

impl fmt::Display for Goes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dropped => "its snapshot does not count any more",
            Self::Abandoned => "of an attempt or a sweep that was given up",
            Self::Outnumbered => "a report with enough newer ones",
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stays(why) => write!(f, "stays: {why}"),
            Self::Goes(why) => write!(f, "goes: {why}"),
        }
    }
}

#[cfg(test)]
mod tests;
