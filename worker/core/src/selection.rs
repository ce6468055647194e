//! Which snapshots to try, in which order, and what follows when none is left.
//!
//! Candidates come from the head, newest first. When the head itself is damaged or gone while manifests are there, they
//! come from a listing: losing the table of contents must not lose the book. Whether a candidate is really valid is only
//! known after every byte of it was verified, which happens while it is restored and before the app may run.

use std::cmp::Reverse;

use crate::head::{Generation, Head};
use crate::manifest;

/// A snapshot that may be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub manifest: String,
    /// BLAKE3 that the head knows the manifest by; unknown when it was found by listing.
    pub digest: Option<String>,
}

/// What the store holds of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Neither a head nor a manifest: the job was never checkpointed.
    Nothing,
    /// There are snapshots, but the job went on from the last of them to its successful end: what is started now is
    /// another run of it.
    Completed,
    /// The head is whole; its snapshots count and no others.
    Known(Vec<Candidate>),
    /// The head is damaged or gone, but there are manifests.
    Recovered(Vec<Candidate>),
}

/// Reads the contents from the head (`None`: missing or unreadable) and, only needed then, a listing of manifest keys.
pub fn contents(head: Option<&Head>, manifest_keys: &[String]) -> Contents {
    match head {
        Some(head) if head.generations.is_empty() => Contents::Nothing,
        Some(head)
            if head
                .finished
                .is_some_and(|finished| finished.exit_code == 0) =>
        {
            Contents::Completed
        }
        Some(head) => {
            let own = |known: &&Generation| head.goes_on_from(known);
            let candidates: Vec<_> = head
                .generations
                .iter()
                .filter(own)
                .map(Candidate::from)
                .collect();
            match candidates.is_empty() {
                true => Contents::Completed,
                false => Contents::Known(candidates),
            }
        }
        None if manifest_keys.is_empty() => Contents::Nothing,
        None => Contents::Recovered(listed(manifest_keys)),
    }
}

impl From<&Generation> for Candidate {
    fn from(generation: &Generation) -> Self {
        Self {
            manifest: generation.manifest.clone(),
            digest: Some(generation.digest.clone()),
        }
    }
}

/// Newest first. Within a generation the highest epoch goes first: it belongs to the last owner. Within an epoch the
/// youngest attempt goes first: the others of the same number were not committed.
fn listed(manifest_keys: &[String]) -> Vec<Candidate> {
    let mut keys: Vec<&String> = manifest_keys
        .iter()
        .filter(|key| key.starts_with(manifest::PREFIX))
        .collect();
    keys.sort_by_key(|key| match manifest::parse_key(key) {
        Some((generation, epoch, attempt)) => {
            (Reverse(generation), Reverse(epoch), Reverse(attempt))
        }
        // Not written by us; tried all the same, last.
        None => (Reverse(0), Reverse(0), Reverse(key.as_str())),
    });
    keys.into_iter()
        .map(|key| Candidate {
            manifest: key.clone(),
            digest: None,
        })
        .collect()
}

/// What to do when no snapshot could be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoValidSnapshot {
    /// Begin from scratch; the snapshots stay where they are.
    Start,
    /// End with an error, for a person to look at.
    Fail,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::{Finished, Owner};

    #[test]
    fn a_whole_head_decides_alone() {
        let mut head = Head::new("job");
        assert_eq!(
            contents(Some(&head), &["manifests/uncommitted".into()]),
            Contents::Nothing
        );
        for number in [1, 2] {
            let generation = Generation {
                generation: number,
                manifest: format!("manifests/{number}"),
                digest: format!("d{number}"),
                taken_at_ms: 0,
                stored_bytes: 0,
                pinned: false,
                tags: Vec::new(),
                commands: Vec::new(),
                unknown: crate::document::Unknown::new(),
            };
            head = head.committed(generation, &[], String::new());
        }
        let order: Vec<String> = match contents(Some(&head), &[]) {
            Contents::Known(candidates) => candidates
                .into_iter()
                .map(|candidate| candidate.manifest)
                .collect(),
            other => panic!("{other:?}"),
        };
        assert_eq!(order, ["manifests/2", "manifests/1"]);
    }

    #[test]
    fn a_job_that_ended_well_begins_anew_and_one_that_failed_goes_on() {
        let generation = Generation {
            generation: 1,
            manifest: "manifests/1".into(),
            digest: "d".into(),
            taken_at_ms: 0,
            stored_bytes: 0,
            pinned: false,
            tags: Vec::new(),
            commands: Vec::new(),
            unknown: crate::document::Unknown::new(),
        };
        let head = Head::new("job").committed(generation, &[], String::new());
        let ended = |exit_code| {
            head.released(
                Some(Finished {
                    exit_code,
                    at_ms: 1,
                }),
                String::new(),
            )
        };
        assert_eq!(contents(Some(&ended(0)), &[]), Contents::Completed);
        assert!(matches!(contents(Some(&ended(1)), &[]), Contents::Known(_)));
        // The run that then begins does not go back behind its own beginning, whatever becomes of it.
        let owner = Owner {
            worker: "w".into(),
            host: "h".into(),
            since_ms: 0,
            beat: 0,
        };
        let again = ended(0).claimed(owner, String::new());
        let given_up = again.released(None, String::new());
        assert_eq!(contents(Some(&given_up), &[]), Contents::Completed);
        let failed = again.released(
            Some(Finished {
                exit_code: 1,
                at_ms: 2,
            }),
            String::new(),
        );
        assert_eq!(contents(Some(&failed), &[]), Contents::Completed);
        let stopped = head.released(None, String::new());
        assert!(matches!(contents(Some(&stopped), &[]), Contents::Known(_)));
    }

    #[test]
    fn without_a_head_the_listing_decides_newest_first() {
        let [a, b] = ["A", "B"].map(|letter| letter.repeat(26));
        let keys = vec![
            manifest::key(3, 1, &a),
            manifest::key(4, 1, &a),
            manifest::key(4, 2, &a),
            manifest::key(4, 2, &b),
            "manifests/other".to_owned(),
        ];
        let Contents::Recovered(candidates) = contents(None, &keys) else {
            panic!("there are manifests")
        };
        let order: Vec<&str> = candidates
            .iter()
            .map(|candidate| candidate.manifest.as_str())
            .collect();
        assert_eq!(
            order,
            [&keys[3], &keys[2], &keys[1], &keys[0], "manifests/other"]
        );
        assert_eq!(contents(None, &[]), Contents::Nothing);
    }
}
