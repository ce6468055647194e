//! Going back to an older snapshot on purpose: which one a start was told to go on from, and what that means for the rest.
//!
//! The newer snapshots stay, and are *set aside*: the job's line no longer leads through them, so a later start does not
//! resume them by itself. The head remembers what was asked for, in the words that were used. A container that is
//! restarted with the same command line therefore does not go back again: it follows the line that the rollback began.
//!
//! ```text
//! 1 ── 2 ── 3 ── 4        --from 2        1 ── 2 ───────────── 5 ── 6     the line: 6, 5, 2, 1
//!                        ────────▶             └── 3 ── 4                 set aside: 4, 3
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::head::{Generation, Head};

/// What divides the snapshot's name from the name of the request.
const DIVIDER: char = '@';

const LIMIT: usize = 128;

/// The word for the newest snapshot.
const NEWEST: &str = "newest";

/// What a start was told to go on from: `12`, `before-the-merge`, `newest`, and with a name of the request `12@again`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    which: Which,
    text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Which {
    Newest,
    Number(u64),
    Tag(String),
}

/// It does not name a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("does not name a snapshot")]
pub struct NoName;

impl FromStr for Request {
    type Err = NoName;

    fn from_str(text: &str) -> Result<Self, NoName> {
        let (which, name) = text.split_once(DIVIDER).unwrap_or((text, "-"));
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let is_word = |word: &str| !word.is_empty() && word.bytes().all(good);
        if text.len() > LIMIT || !is_word(which) || !is_word(name) {
            return Err(NoName);
        }
        let which = match which.parse() {
            Ok(number) => Which::Number(number),
            Err(_) if which == NEWEST => Which::Newest,
            Err(_) if which.starts_with(|first: char| first.is_ascii_alphabetic()) => {
                Which::Tag(which.to_owned())
            }
            Err(_) => return Err(NoName),
        };
        Ok(Self {
            which,
            text: text.to_owned(),
        })
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The rollback that the job's line began with, as the head remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollback {
    /// In the words of whoever asked.
    pub request: String,
    /// The snapshot that was gone back to.
    pub generation: u64,
    /// Of the owner that did it.
    pub epoch: u64,
}

/// What a start has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Resume the newest snapshot of the line that can be.
    Line,
    /// The same, because this request was carried out before.
    Done(Rollback),
    /// Resume this one or fail.
    Exactly(Box<Generation>),
    /// There is no such snapshot.
    Unknown,
}

/// Decides what a start does, which was or was not told where to go on from.
pub fn choose(head: &Head, request: Option<&Request>) -> Choice {
    let Some(request) = request else {
        return Choice::Line;
    };
    let exactly = |found: Option<&Generation>| match found {
        Some(generation) => Choice::Exactly(Box::new(generation.clone())),
        None => Choice::Unknown,
    };
    let found = match &request.which {
        // It goes back by nothing, however often.
        Which::Newest => return exactly(head.tip()),
        Which::Number(number) => head.generation(*number),
        Which::Tag(tag) => head.tagged(tag),
    };
    let Some(done) = head
        .rollback
        .as_ref()
        .filter(|done| done.request == request.text)
    else {
        return exactly(found);
    };
    // Nothing was stored since, so it was not left: the next older one would still be another one.
    let is_there = head
        .tip()
        .filter(|tip| tip.generation == done.generation && head.goes_on_from(tip));
    match is_there {
        Some(tip) => exactly(Some(tip)),
        None => Choice::Done(done.clone()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::head::{Finished, Owner};
    use crate::selection::{self, Contents};

    fn generation(number: u64) -> Generation {
        Generation {
            generation: number,
            manifest: format!("manifests/{number}"),
            digest: String::new(),
            taken_at_ms: 0,
            stored_bytes: 0,
            pinned: false,
            tags: (number == 2)
                .then(|| "good".to_owned())
                .into_iter()
                .collect(),
            commands: Vec::new(),
            unknown: crate::document::Unknown::new(),
        }
    }

    fn head(numbers: std::ops::RangeInclusive<u64>) -> Head {
        numbers.fold(Head::new("job"), |head, number| {
            head.committed(generation(number), &[], String::new())
        })
    }

    fn request(text: &str) -> Request {
        text.parse().expect("it names a snapshot")
    }

    fn chosen(head: &Head, text: &str) -> Option<u64> {
        match choose(head, Some(&request(text))) {
            Choice::Exactly(generation) => Some(generation.generation),
            _ => None,
        }
    }

    fn line(head: &Head) -> Vec<u64> {
        match selection::contents(Some(head), &[]) {
            Contents::Known(candidates) => candidates
                .iter()
                .map(|one| one.manifest.trim_start_matches("manifests/").parse())
                .collect::<Result<_, _>>()
                .expect("they are numbers"),
            _ => Vec::new(),
        }
    }

    fn back(head: &Head, to: u64, text: &str) -> Head {
        head.rolled_back(to, &request(text), String::new())
    }

    fn claimed(head: &Head) -> Head {
        let owner = Owner {
            worker: "w".into(),
            host: "h".into(),
            since_ms: 0,
            beat: 0,
        };
        head.claimed(owner, String::new())
    }

    fn finished(head: &Head) -> Head {
        let finished = Finished {
            exit_code: 0,
            at_ms: 0,
        };
        head.released(Some(finished), String::new())
    }

    #[test]
    fn requests_are_names_of_snapshots_with_or_without_a_name_of_their_own() {
        for text in [
            "12",
            "newest",
            "before-the-merge",
            "12@again",
            "v1.2@2026-11-21",
        ] {
            assert_eq!(request(text).to_string(), text);
        }
        for text in [
            "",
            "@",
            "12@",
            "@x",
            "-1",
            "a b",
            "12@a@b",
            ".x",
            "12@ü",
            "x/y",
            &"a".repeat(129),
        ] {
            assert_eq!(text.parse::<Request>(), Err(NoName), "{text}");
        }
    }

    #[test]
    fn a_request_names_one_snapshot_and_no_other() {
        let head = head(1..=4);
        assert_eq!(choose(&head, None), Choice::Line);
        for (text, number) in [("2", 2), ("good", 2), ("newest", 4), ("3@x", 3)] {
            assert_eq!(chosen(&head, text), Some(number), "{text}");
        }
        for text in ["5", "0", "bad"] {
            assert_eq!(
                choose(&head, Some(&request(text))),
                Choice::Unknown,
                "{text}"
            );
        }
        assert_eq!(
            choose(&Head::new("job"), Some(&request("newest"))),
            Choice::Unknown
        );
    }

    #[test]
    fn newer_snapshots_stay_and_the_line_leads_past_them() {
        let head = back(&head(1..=4), 2, "2");
        assert_eq!(head.set_aside, [4, 3]);
        assert_eq!(head.generations.len(), 4);
        assert_eq!(line(&head), [2, 1]);
        let head = head.committed(generation(5), &[], String::new());
        assert_eq!(line(&head), [5, 2, 1]);
        assert_eq!(head.next_generation, 6);
        let gone = head.without(&[4], String::new());
        assert_eq!(gone.set_aside, [3]);
    }

    #[test]
    fn one_request_goes_back_once() {
        let head = back(&head(1..=4), 2, "good");
        // Nothing was stored since: exactly this one again, whatever the tag now names.
        assert_eq!(chosen(&claimed(&head), "good"), Some(2));
        let on = head.committed(generation(5), &[], String::new());
        let Choice::Done(done) = choose(&on, Some(&request("good"))) else {
            panic!("it was carried out");
        };
        assert_eq!((done.generation, done.request.as_str()), (2, "good"));
        assert_eq!(chosen(&on, "good@again"), Some(2));
        assert_eq!(chosen(&on, "2"), Some(2), "other words are another request");
        assert_eq!(chosen(&on, "newest"), Some(5));
        // The run that it began ended well: what follows is another one.
        let over = finished(&head);
        assert!(matches!(
            choose(&over, Some(&request("good"))),
            Choice::Done(_)
        ));
        let anew = claimed(&over);
        assert!(matches!(
            choose(&anew, Some(&request("good"))),
            Choice::Done(_)
        ));
    }

    #[test]
    fn a_run_that_ended_well_can_be_gone_back_to() {
        let head = claimed(&finished(&head(1..=2))).committed(generation(3), &[], String::new());
        assert_eq!(line(&head), [3]);
        let head = back(&head, 2, "2");
        assert_eq!(
            line(&head),
            [2],
            "what is older may belong to yet another run"
        );
        let over = back(&claimed(&finished(&head)), 3, "newest");
        assert_eq!(line(&over), [3]);
    }

    #[test]
    fn another_branch_has_no_part_in_what_a_start_falls_back_on() {
        // 1 ─ 2 ─ 3, and from 1: 4; then from 3.
        let head = back(&head(1..=3), 1, "1").committed(generation(4), &[], String::new());
        let head = back(&head, 3, "3");
        assert_eq!(line(&head), [3]);
        let head = head.committed(generation(5), &[], String::new());
        assert_eq!(line(&head), [5, 3]);
        assert_eq!(line(&back(&head, 4, "4")), [4], "3 is not its ancestor");
    }

    proptest! {
        /// Whatever is gone back to and stored: a start that is told nothing resumes only what the job had lived through.
        #[test]
        fn the_line_is_the_jobs_own_past(steps in proptest::collection::vec((proptest::bool::ANY, 0usize..20), 1..40)) {
            let mut head = Head::new("job");
            let mut parents = std::collections::BTreeMap::new();
            for (stores, at) in steps {
                if stores || head.generations.is_empty() {
                    let number = head.next_generation;
                    parents.insert(number, head.tip().map(|tip| tip.generation));
                    head = head.committed(generation(number), &[], String::new());
                } else {
                    let to = head.generations[at % head.generations.len()].generation;
                    head = back(&head, to, "x");
                    prop_assert_eq!(head.tip().map(|tip| tip.generation), Some(to));
                }
                let line = line(&head);
                let mut past = Vec::new();
                let mut next = line.first().copied();
                while let Some(number) = next {
                    past.push(number);
                    next = parents[&number];
                }
                prop_assert!(line.iter().all(|number| past.contains(number)), "{:?} of {:?}", line, past);
            }
        }
    }
}
