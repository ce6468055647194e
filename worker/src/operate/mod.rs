//! The commands on a job's snapshots: list, show, verify, extract, mark and prune them, from anywhere that reaches the
//! store, whether the job runs or not.
//!
//! None of them owns the job. What only reads changes nothing at all; what changes something changes the head by
//! compare-and-swap and leaves its owner in place. Answers are plain values, printed as a table or as one line of JSON
//! (docs/json.md); what is wrong is a [`Failure`].

mod anatomy;
mod clone;
mod diff;
mod extract;
mod inspect;
mod list;
mod mark;
mod prune;
mod ps;
mod reports;
mod serve;
mod show;
mod text;
mod verify;

use std::collections::HashMap;
use std::fmt;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

pub use anatomy::Values;
use reprieve_core::head::{Generation, Head};
use reprieve_core::manifest::{self, HostFacts, Manifest, Part};
use reprieve_core::report;
use reprieve_core::selection::{Candidate, Contents};
use serde::Serialize;
use tokio::time::Instant;

use crate::catalog::{Catalog, CatalogError};
use crate::control::client::Format;
use crate::failure::{ExitCode, Failure};
use crate::pages::load::{self, Read, Unusable};
use crate::place::{self, refused_keys, unreachable_store};
use crate::settings::{self, JobSettings};
use crate::store::{Store, StoreErrorKind};

/// The version of the answers' form; docs/json.md says what may change without a new one.
pub const SCHEMA: u32 = 1;

/// A command, ready to be carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub settings: JobSettings,
    pub action: Action,
    pub format: Format,
}

/// Which hosts the snapshots are looked at for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hosts {
    Any,
    /// Which of them this one can run.
    This,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    List(Hosts),
    Show(Selector),
    Inspect(Selector, Values),
    /// The earlier one, and the later one.
    Diff(Selector, Selector),
    Verify(Which),
    Extract(Selector, PathBuf),
    Tag(Selector, Tag),
    Untag(Tag),
    Pin(Selector),
    Unpin(Selector),
    Prune(Prune),
    Clone(Source),
    Ps(Refresh),
    Reports,
    Report(WhichReport, Detail),
}

/// The snapshot that a new job begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub job: String,
    pub which: Selector,
}

/// One of a job's reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhichReport {
    Newest,
    Named(report::Name),
}

/// How much of a report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    Whole,
    /// CRIU's log and nothing else.
    Log,
}

/// How often an answer is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refresh {
    Once,
    /// Until somebody ends it.
    Every(Duration),
    /// To browsers, until somebody ends it.
    Served(SocketAddr),
}

/// Which snapshots are verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    One(Selector),
    All,
}

/// Whether a prune is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prune {
    DryRun,
    CarryOut,
}

/// How a person names a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    Newest,
    Number(u64),
    Tag(Tag),
}

/// A name for a snapshot. Not a number, so that it is never taken for a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag(String);

/// The word for the newest snapshot.
const NEWEST: &str = "newest";

const TAG_LIMIT: usize = 64;

/// Why something is not a snapshot's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a tag is 1 to 64 of A-Z a-z 0-9 . _ - and begins with a letter; \"newest\" is taken")]
    Tag,
    #[error("give a generation's number, a tag, or \"newest\"")]
    Selector,
    #[error(
        "give a job and one of its snapshots with a slash between them, as in nightly/12 or nightly/newest"
    )]
    Source,
}

impl FromStr for Tag {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let is_name = text.len() <= TAG_LIMIT
            && text.starts_with(|first: char| first.is_ascii_alphabetic())
            && text.bytes().all(good)
            && text != NEWEST;
        is_name.then(|| Self(text.to_owned())).ok_or(NameError::Tag)
    }
}

impl FromStr for Selector {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text == NEWEST {
            return Ok(Self::Newest);
        }
        if let Ok(number) = text.parse() {
            return Ok(Self::Number(number));
        }
        text.parse().map(Self::Tag).map_err(|_| NameError::Selector)
    }
}

impl FromStr for WhichReport {
    type Err = report::NotAName;

    fn from_str(text: &str) -> Result<Self, report::NotAName> {
        match text {
            NEWEST => Ok(Self::Newest),
            name => name.parse().map(Self::Named),
        }
    }
}

impl FromStr for Source {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (job, which) = text.split_once('/').ok_or(NameError::Source)?;
        if !settings::is_job_name(job) {
            return Err(NameError::Source);
        }
        Ok(Self {
            job: job.to_owned(),
            which: which.parse().map_err(|_| NameError::Source)?,
        })
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => f.write_str(NEWEST),
            Self::Number(number) => write!(f, "{number}"),
            Self::Tag(tag) => write!(f, "{tag}"),
        }
    }
}

/// An answer that can be printed in both forms.
trait Answer: Serialize {
    fn human(&self) -> String;
}

impl Request {
    /// Whether it goes on until a signal ends it; then signals have to be blocked before it is carried out.
    pub fn waits_for_signals(&self) -> bool {
        matches!(self.action, Action::Ps(Refresh::Served(_)))
    }

    /// Carries the command out and prints its answer to `out`.
    pub async fn carry_out(self, out: &mut impl Write) -> Result<(), Failure> {
        let format = self.format;
        let job = Job::open(&self.settings).await?;
        match self.action {
            Action::List(hosts) => {
                let host = (hosts == Hosts::This).then(|| {
                    let criu = crate::doctor::criu_version(None).unwrap_or_default();
                    HostFacts {
                        profile: crate::host::profile(),
                        ..crate::host::facts(&criu)
                    }
                });
                print(out, format, &list::list(&job, host).await?)
            }
            Action::Show(which) => print(out, format, &show::show(&job, &which).await?),
            Action::Inspect(which, values) => {
                print(out, format, &inspect::inspect(&job, &which, values).await?);
            }
            Action::Diff(before, after) => {
                print(out, format, &diff::diff(&job, &before, &after).await?);
            }
            Action::Verify(which) => {
                let verified = verify::verify(&job, &which).await?;
                print(out, format, &verified);
                return verified.verdict();
            }
            Action::Extract(which, directory) => {
                print(
                    out,
                    format,
                    &extract::extract(&job, &which, &directory).await?,
                );
            }
            Action::Tag(which, tag) => print(out, format, &mark::tag(&job, &which, &tag).await?),
            Action::Untag(tag) => print(out, format, &mark::untag(&job, &tag).await?),
            Action::Pin(which) => print(out, format, &mark::pin(&job, &which, true).await?),
            Action::Unpin(which) => print(out, format, &mark::pin(&job, &which, false).await?),
            Action::Prune(how) => {
                print(out, format, &prune::prune(&job, &self.settings, how).await?);
            }
            Action::Clone(source) => print(out, format, &clone::clone(&job, &source).await?),
            Action::Reports => print(out, format, &reports::list(&job).await?),
            Action::Report(which, detail) => {
                print(out, format, &reports::report(&job, &which, detail).await?);
            }
            Action::Ps(Refresh::Once) => print(out, format, &ps::ps(&job).await?),
            Action::Ps(Refresh::Served(address)) => serve::serve(job, address, out).await?,
            Action::Ps(Refresh::Every(interval)) => loop {
                let answer = ps::ps(&job).await?;
                // Begun anew at the top, with whatever was below it gone.
                drop(out.write_all(b"\x1b[H\x1b[2J"));
                print(out, format, &answer);
                drop(out.flush());
                tokio::time::sleep(interval).await;
            },
        }
        Ok(())
    }
}

fn print(out: &mut impl Write, format: Format, answer: &impl Answer) {
    let text = match format {
        Format::Human => answer.human(),
        Format::Json => {
            let json = serde_json::to_string(answer);
            json.expect("our own types have string keys and finite numbers") + "\n"
        }
    };
    // Whoever asked and does not read has nothing to be told.
    drop(out.write_all(text.as_bytes()));
}

/// A job as these commands see it.
pub(crate) struct Job {
    name: String,
    address: String,
    catalog: Catalog,
    /// How long the store may take for one answer.
    limit: Duration,
    /// How long it may take until a snapshot's index is read.
    restore_limit: Duration,
}

/// A snapshot that the head names, or that was found by listing because the head is lost.
#[derive(Clone, Debug)]
struct Known {
    candidate: Candidate,
    /// From the manifest's key if there is no head.
    number: Option<u64>,
    /// What the head says of it.
    entry: Option<Generation>,
    /// The job went back behind it.
    set_aside: bool,
}

/// The state of the job's table of contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum HeadState {
    Whole,
    /// Damaged or missing, while there are manifests.
    Lost,
    /// The job was never started with this store.
    None,
}

/// Everything that is there.
struct Contained {
    state: HeadState,
    head: Option<Head>,
    /// Newest first.
    snapshots: Vec<Known>,
}

impl Job {
    async fn open(settings: &JobSettings) -> Result<Self, Failure> {
        let keys = place::keys(&settings.keys, &settings.store).await?;
        let store = place::open(&settings.store).await?;
        Ok(Self {
            name: settings.job.clone(),
            address: settings.store.address.clone(),
            catalog: Catalog::with_keys(store, &settings.job, keys),
            limit: settings.store.timeout,
            restore_limit: settings.restore_timeout,
        })
    }

    /// Another job of the same store.
    fn beside(&self, job: &str) -> Self {
        Self {
            name: job.to_owned(),
            address: self.address.clone(),
            catalog: self.catalog.of(job),
            ..*self
        }
    }

    /// The job of a worker that runs it. Nothing is restored through it.
    pub(crate) fn of(catalog: Catalog, name: String, address: String, limit: Duration) -> Self {
        Self {
            name,
            address,
            catalog,
            limit,
            restore_limit: limit,
        }
    }

    /// Gives a snapshot a tag, or says on one line why not.
    pub(crate) async fn tag(&self, generation: u64, tag: &str) -> Result<(), String> {
        let tag: Tag = tag.parse().map_err(|error: NameError| error.to_string())?;
        let tagged = mark::tag(self, &Selector::Number(generation), &tag).await;
        tagged.map(drop).map_err(|failure| failure.on_one_line())
    }

    fn store(&self) -> &Arc<dyn Store> {
        self.catalog.store()
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.limit
    }

    async fn contained(&self) -> Result<Contained, Failure> {
        let found = self.catalog.find(self.deadline()).await;
        let found = found.map_err(|error| self.failed(error))?;
        if let Some(head) = found.head {
            let snapshots = head.generations.iter().map(|known| Known {
                candidate: known.into(),
                number: Some(known.generation),
                entry: Some(known.clone()),
                set_aside: head.set_aside.contains(&known.generation),
            });
            return Ok(Contained {
                state: HeadState::Whole,
                snapshots: snapshots.collect(),
                head: Some(head),
            });
        }
        let (state, candidates) = match found.contents {
            Contents::Recovered(candidates) => (HeadState::Lost, candidates),
            _ if found.tag.is_some() => (HeadState::Lost, Vec::new()),
            _ => (HeadState::None, Vec::new()),
        };
        let snapshots = candidates.into_iter().map(|candidate| Known {
            number: manifest::parse_key(&candidate.manifest).map(|(number, _, _)| number),
            candidate,
            entry: None,
            set_aside: false,
        });
        Ok(Contained {
            state,
            head: None,
            snapshots: snapshots.collect(),
        })
    }

    async fn manifest(&self, known: &Known) -> Result<Manifest, Unusable> {
        Ok(self.read(known).await?.manifest)
    }

    /// The manifest with what opens the rest.
    async fn read(&self, known: &Known) -> Result<Read, Unusable> {
        load::manifest(&self.catalog, &known.candidate, self.deadline()).await
    }

    /// The size of each object of data.
    async fn data_sizes(&self) -> Result<HashMap<String, u64>, Failure> {
        let listed = self.catalog.objects(manifest::DATA_PREFIX, self.deadline());
        let objects = listed.await.map_err(|error| self.failed(error))?;
        Ok(objects
            .into_iter()
            .map(|object| (object.key, object.bytes))
            .collect())
    }

    fn find(&self, contained: &Contained, which: &Selector) -> Result<Known, Failure> {
        let matches = |known: &&Known| match which {
            Selector::Newest => true,
            Selector::Number(number) => known.number == Some(*number),
            Selector::Tag(tag) => known
                .entry
                .as_ref()
                .is_some_and(|entry| entry.tags.contains(&tag.0)),
        };
        let found = contained.snapshots.iter().find(matches).cloned();
        found.ok_or_else(|| {
            self.no_such(
                which,
                contained.snapshots.iter().filter_map(|known| known.number),
            )
        })
    }

    fn no_such(&self, which: &Selector, numbers: impl Iterator<Item = u64>) -> Failure {
        let numbers: Vec<String> = numbers.map(|number| number.to_string()).collect();
        if numbers.is_empty() {
            return self.no_snapshots();
        }
        let what = match which {
            Selector::Tag(tag) => format!("job {} has no snapshot with the tag {tag}", self.name),
            which => format!("job {} has no snapshot {which}", self.name),
        };
        Failure::new(ExitCode::NoSuchGeneration, what)
            .detail(format!("it has {}", numbers.join(", ")))
            .remedy("`reprieve snapshots` lists them with their tags")
    }

    fn no_snapshots(&self) -> Failure {
        Failure::new(
            ExitCode::NoSuchGeneration,
            format!("job {} has no snapshots in {}", self.name, self.address),
        )
        .remedy("check --store and --job: they have to be those of `reprieve run`")
    }

    fn failed(&self, error: CatalogError) -> Failure {
        let not_done = |what: String| Failure::new(ExitCode::NotDone, what);
        match error {
            CatalogError::Store(error) => unreachable_store(&self.address, error),
            error @ (CatalogError::Sealing { .. } | CatalogError::Key(_)) => {
                refused_keys(&self.name, error)
            }
            CatalogError::NoHead(None) => self.no_snapshots(),
            error @ CatalogError::Report { .. } => {
                not_done(format!("a report of job {} cannot be read", self.name))
                    .caused_by(error)
                    .remedy("`reprieve reports` lists the others")
            }
            CatalogError::NoHead(Some(damage)) => not_done(format!(
                "the head of job {} is damaged",
                self.name
            ))
            .caused_by(damage)
            .remedy("start the job: it finds its snapshots by listing them and writes a new head"),
            error @ CatalogError::Head { .. } => {
                not_done(format!("the snapshots of job {} cannot be read", self.name))
                    .caused_by(error)
                    .remedy("run the version of Reprieve that wrote them")
            }
            error => not_done(format!(
                "the head of job {} could not be changed",
                self.name
            ))
            .caused_by(error)
            .remedy("nothing was changed that `reprieve snapshots` does not show; try again"),
        }
    }

    /// A snapshot that cannot be used for what was asked: the store's fault, or its own.
    fn unusable(&self, known: &Known, error: Unusable) -> Failure {
        match error {
            Unusable::Store(error) => unreachable_store(&self.address, error),
            error if error.is_about_keys() => refused_keys(&self.name, error),
            damage => Failure::new(
                ExitCode::DamagedSnapshot,
                format!("snapshot {} of job {} is damaged", known.name(), self.name),
            )
            .caused_by(damage)
            .remedy("`reprieve verify --all` says which others are sound"),
        }
    }
}

impl Known {
    /// Its number, as far as it is known.
    fn name(&self) -> String {
        match self.number {
            Some(number) => number.to_string(),
            None => self.candidate.manifest.clone(),
        }
    }
}

/// Whether a failed read is the snapshot's fault: `None` if the store is the trouble.
fn damage(error: &Unusable) -> Option<String> {
    match error {
        Unusable::Store(error) if error.kind != StoreErrorKind::BadSize => None,
        error if error.is_about_keys() => None,
        damage => Some(crate::supervisor::with_causes(damage)),
    }
}

/// The first part that is not there as it should be, by a listing.
fn missing_part<'a>(
    parts: &'a [Part],
    sizes: &HashMap<String, u64>,
) -> Option<(&'a Part, Option<u64>)> {
    parts.iter().find_map(|part| {
        let found = sizes.get(&part.key).copied();
        (found != Some(part.bytes)).then_some((part, found))
    })
}

fn say_missing((part, found): (&Part, Option<u64>)) -> String {
    match found {
        None => format!("{} is missing", part.key),
        Some(found) => format!("{} has {found} bytes instead of {}", part.key, part.bytes),
    }
}

#[cfg(test)]
mod tests;
