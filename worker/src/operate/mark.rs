//! `reprieve tag`, `untag`, `pin`, `unpin`: what a person says of a snapshot. Pinned and tagged ones stay whatever else
//! is to be kept.

use std::sync::atomic::{AtomicU64, Ordering};

use reprieve_core::head::{Generation, Head};
use serde::Serialize;

use super::{Answer, ExitCode, Failure, Job, SCHEMA, Selector, Tag};
use crate::catalog;

/// A snapshot's marks as they are now.
#[derive(Debug, Serialize)]
pub(super) struct Marked {
    schema: u32,
    job: String,
    generation: u64,
    pinned: bool,
    tags: Vec<String>,
    /// False if it was like this before.
    changed: bool,
}

pub(super) async fn pin(job: &Job, which: &Selector, pinned: bool) -> Result<Marked, Failure> {
    let change = |head: &Head| {
        let number = find(job, head, which)?.generation;
        marked(head, number, |entry| entry.pinned = pinned)
    };
    amend(job, change).await
}

pub(super) async fn tag(job: &Job, which: &Selector, tag: &Tag) -> Result<Marked, Failure> {
    let change = |head: &Head| {
        let number = find(job, head, which)?.generation;
        // Moving it would let the other one go.
        if let Some(other) = head.tagged(&tag.0)
            && other.generation != number
        {
            let what = format!("the tag {tag} belongs to generation {}", other.generation);
            let failure = Failure::new(ExitCode::NotDone, what);
            return Err(NotMarked::Refused(failure.remedy(format!(
                "take another tag, or give that one up first: reprieve untag {tag}"
            ))));
        }
        marked(head, number, |entry| {
            if !entry.tags.contains(&tag.0) {
                entry.tags.push(tag.0.clone());
            }
        })
    };
    amend(job, change).await
}

pub(super) async fn untag(job: &Job, tag: &Tag) -> Result<Marked, Failure> {
    let change = |head: &Head| {
        let number = find(job, head, &Selector::Tag(tag.clone()))?.generation;
        marked(head, number, |entry| {
            entry.tags.retain(|known| *known != tag.0)
        })
    };
    amend(job, change).await
}

/// Why the head stays as it is.
enum NotMarked {
    Already(Box<Generation>),
    Refused(Failure),
}

impl From<Failure> for NotMarked {
    fn from(failure: Failure) -> Self {
        Self::Refused(failure)
    }
}

fn find<'a>(job: &Job, head: &'a Head, which: &Selector) -> Result<&'a Generation, Failure> {
    let found = match which {
        Selector::Newest => head.generations.first(),
        Selector::Number(number) => head.generation(*number),
        Selector::Tag(tag) => head.tagged(&tag.0),
    };
    let numbers = head.generations.iter().map(|known| known.generation);
    found.ok_or_else(|| job.no_such(which, numbers))
}

/// The head with a change of one generation's marks, and that generation's number.
fn marked(
    head: &Head,
    number: u64,
    change: impl Fn(&mut Generation),
) -> Result<(Head, u64), NotMarked> {
    let mut after = Head {
        nonce: catalog::nonce(),
        ..head.clone()
    };
    for entry in &mut after.generations {
        if entry.generation == number {
            let before = entry.clone();
            change(entry);
            if *entry == before {
                return Err(NotMarked::Already(Box::new(before)));
            }
        }
    }
    Ok((after, number))
}

async fn amend(
    job: &Job,
    change: impl Fn(&Head) -> Result<(Head, u64), NotMarked>,
) -> Result<Marked, Failure> {
    let chosen = AtomicU64::new(0);
    let amended = job.catalog.amend(job.deadline(), |head| {
        let (head, number) = change(head)?;
        chosen.store(number, Ordering::Relaxed);
        Ok(head)
    });
    let (entry, changed) = match amended.await.map_err(|error| job.failed(error))? {
        Ok(head) => {
            let entry = head.generation(chosen.load(Ordering::Relaxed)).cloned();
            (entry.expect("it was changed just now"), true)
        }
        Err(NotMarked::Already(entry)) => (*entry, false),
        Err(NotMarked::Refused(failure)) => return Err(failure),
    };
    Ok(Marked {
        schema: SCHEMA,
        job: job.name.clone(),
        generation: entry.generation,
        pinned: entry.pinned,
        tags: entry.tags,
        changed,
    })
}

impl Answer for Marked {
    fn human(&self) -> String {
        let pinned = self.pinned.then_some("pinned".to_owned());
        let tags = self.tags.iter().map(|tag| format!("tagged {tag}"));
        let marks: Vec<String> = pinned.into_iter().chain(tags).collect();
        let marks = match marks.is_empty() {
            true => "neither pinned nor tagged".to_owned(),
            false => marks.join(", "),
        };
        let was = if self.changed { "" } else { " already" };
        format!("generation {} is{was} {marks}\n", self.generation)
    }
}
