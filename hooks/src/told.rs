//! What a source has announced: so that it says what is new, says again what has changed, withdraws what is gone, and
//! says nothing twice, however often it looks.
//!
//! A time that moves closer is believed at once. One that moves away is believed once it has stood still for a while: a
//! service that counts it from each request would otherwise announce anew with each, and the earlier one is the safe one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use reprieve_core::notice::{Announcement, Fate, Says, Settled, WallMs};
use tokio::sync::oneshot;

use crate::Ear;
use crate::presence::Halt;

/// Looks in a row that find something gone before it counts as withdrawn; one may be a hiccup of the service.
const GONE: u32 = 2;
/// How long a later time has to stand.
const HOLD: Duration = Duration::from_secs(3);
/// Times are told to the second and corrected by clocks that are told to the second.
const TOLERANCE_MS: u64 = 1_500;
/// More than any provider has for one machine; what exceeds it is not a list of its events.
const MOST: usize = 100;

/// Something that a look has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// What stays the same while times and states change: an event's number, or the kind where there can only be one.
    pub(crate) key: String,
    /// What it is announced as if it is new.
    pub(crate) identity: String,
    /// None when its provider says that it is over.
    pub(crate) fate: Option<Fate>,
    pub(crate) at: Option<WallMs>,
}

/// What it means that something announced is not among what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// It is gone.
    Gone,
    /// Not everything could be read.
    Unclear,
}

#[derive(Debug)]
struct Claim {
    identity: String,
    fate: Fate,
    at: Option<WallMs>,
    /// A later time, and since when it stands.
    later: Option<(WallMs, Instant)>,
    missing: u32,
}

/// An announcement that was made, and where its outcome arrives.
pub(crate) struct Said {
    pub(crate) key: String,
    pub(crate) settled: oneshot::Receiver<Settled>,
}

#[derive(Debug)]
pub(crate) struct Told {
    claims: BTreeMap<String, Claim>,
}

impl Told {
    pub(crate) fn new() -> Self {
        Self {
            claims: BTreeMap::new(),
        }
    }

    /// Whether something whose key begins so is announced and stands.
    pub(crate) fn stands(&self, scope: &str) -> bool {
        self.claims.keys().any(|key| key.starts_with(scope))
    }

    /// Takes in all that a look has found, and says what follows.
    pub(crate) async fn take(
        &mut self,
        ear: &Ear,
        scope: &str,
        found: Vec<Found>,
        missing: Missing,
        now: Instant,
    ) -> Result<Vec<Said>, Halt> {
        let mut said = Vec::new();
        let present: Vec<String> = found.iter().map(|one| one.key.clone()).collect();
        for one in found.into_iter().take(MOST) {
            let key = one.key.clone();
            if let Some(settled) = self.take_one(ear, one, now).await? {
                said.push(Said { key, settled });
            }
        }
        let mut gone = Vec::new();
        for (key, claim) in &mut self.claims {
            if !key.starts_with(scope) || present.contains(key) || missing == Missing::Unclear {
                continue;
            }
            claim.missing += 1;
            if claim.missing >= GONE {
                gone.push(key.clone());
            }
        }
        for key in gone {
            if let Some(claim) = self.claims.remove(&key) {
                say(ear, claim.identity, Says::Withdrawn).await?;
            }
        }
        Ok(said)
    }

    async fn take_one(
        &mut self,
        ear: &Ear,
        one: Found,
        now: Instant,
    ) -> Result<Option<oneshot::Receiver<Settled>>, Halt> {
        let Some(fate) = one.fate else {
            if let Some(claim) = self.claims.remove(&one.key) {
                say(ear, claim.identity, Says::Withdrawn).await?;
            }
            return Ok(None);
        };
        let Some(claim) = self.claims.get_mut(&one.key) else {
            let settled = say(ear, one.identity.clone(), Says::Goes { fate, at: one.at }).await?;
            let claim = Claim {
                identity: one.identity,
                fate,
                at: one.at,
                later: None,
                missing: 0,
            };
            self.claims.insert(one.key, claim);
            return Ok(Some(settled));
        };
        claim.missing = 0;
        let moved = claim.moved(one.at, now);
        if !moved && claim.fate == fate {
            return Ok(None);
        }
        if moved {
            claim.at = one.at;
        }
        claim.fate = fate;
        claim.later = None;
        say(
            ear,
            claim.identity.clone(),
            Says::Goes { fate, at: claim.at },
        )
        .await
        .map(Some)
    }
}

impl Claim {
    /// Whether this time is another one, and to be believed.
    fn moved(&mut self, at: Option<WallMs>, now: Instant) -> bool {
        let (old, new) = match (self.at, at) {
            (_, None) => return false,
            (None, Some(_)) => return true,
            (Some(old), Some(new)) => (old, new),
        };
        if new.0.abs_diff(old.0) <= TOLERANCE_MS {
            self.later = None;
            return false;
        }
        if new < old {
            return true;
        }
        match self.later {
            Some((stands, since)) if stands.0.abs_diff(new.0) <= TOLERANCE_MS => {
                now.duration_since(since) >= HOLD
            }
            _ => {
                self.later = Some((new, now));
                false
            }
        }
    }
}

async fn say(ear: &Ear, identity: String, says: Says) -> Result<oneshot::Receiver<Settled>, Halt> {
    let source = ear.source();
    ear.say(Announcement {
        source,
        identity,
        says,
    })
    .await
    .ok_or(Halt::Nobody)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Listener;
    use reprieve_core::notice::Source;

    fn found(at: u64) -> Vec<Found> {
        vec![Found {
            key: "spot".into(),
            identity: format!("spot:{at}"),
            fate: Some(Fate::Terminate),
            at: Some(WallMs(at)),
        }]
    }

    fn said(listener: &mut Listener) -> Vec<(String, Option<u64>)> {
        std::iter::from_fn(|| listener.heard.try_recv().ok())
            .map(|heard| match heard.announcement.says {
                Says::Goes { at, .. } => (heard.announcement.identity, at.map(|at| at.0)),
                Says::Withdrawn => (heard.announcement.identity, None),
            })
            .collect()
    }

    async fn take(told: &mut Told, ear: &Ear, found: Vec<Found>, now: Instant) {
        let taken = told.take(ear, "spot", found, Missing::Gone, now).await;
        assert!(taken.is_ok());
    }

    #[tokio::test]
    async fn each_thing_is_said_once_and_withdrawn_once() {
        let (ear, mut listener) = Ear::new(Source::Ec2Metadata);
        let (mut told, now) = (Told::new(), Instant::now());
        for _ in 0..5 {
            take(&mut told, &ear, found(120_000), now).await;
        }
        assert_eq!(
            said(&mut listener),
            [("spot:120000".to_owned(), Some(120_000))]
        );
        // One look without it is nothing.
        take(&mut told, &ear, vec![], now).await;
        take(&mut told, &ear, found(120_000), now).await;
        take(&mut told, &ear, vec![], now).await;
        assert_eq!(said(&mut listener), []);
        take(&mut told, &ear, vec![], now).await;
        take(&mut told, &ear, vec![], now).await;
        assert_eq!(said(&mut listener), [("spot:120000".to_owned(), None)]);
    }

    #[tokio::test]
    async fn a_time_that_comes_closer_is_believed_at_once_and_a_later_one_when_it_stands() {
        let (ear, mut listener) = Ear::new(Source::Ec2Metadata);
        let (mut told, mut now) = (Told::new(), Instant::now());
        take(&mut told, &ear, found(120_000), now).await;
        take(&mut told, &ear, found(100_000), now).await;
        take(&mut told, &ear, found(101_000), now).await;
        let first = "spot:120000".to_owned();
        assert_eq!(
            said(&mut listener),
            [
                (first.clone(), Some(120_000)),
                (first.clone(), Some(100_000))
            ]
        );
        // Counted from each request.
        for poll in 0..100 {
            take(&mut told, &ear, found(103_000 + poll * 2_000), now).await;
            now += Duration::from_secs(2);
        }
        assert_eq!(said(&mut listener), []);
        for _ in 0..3 {
            take(&mut told, &ear, found(400_000), now).await;
            now += Duration::from_secs(2);
        }
        assert_eq!(said(&mut listener), [(first, Some(400_000))]);
    }

    #[tokio::test]
    async fn what_its_provider_calls_over_is_withdrawn_at_once() {
        let (ear, mut listener) = Ear::new(Source::Ec2Metadata);
        let (mut told, now) = (Told::new(), Instant::now());
        let over = || {
            vec![Found {
                fate: None,
                ..found(1).remove(0)
            }]
        };
        take(&mut told, &ear, over(), now).await;
        assert_eq!(said(&mut listener), []);
        take(&mut told, &ear, found(1), now).await;
        take(&mut told, &ear, over(), now).await;
        take(&mut told, &ear, over(), now).await;
        assert_eq!(
            said(&mut listener),
            [("spot:1".to_owned(), Some(1)), ("spot:1".to_owned(), None)]
        );
    }
}
