//! `reprieve snapshots`: what there is of a job, newest first.

use std::collections::HashMap;

use futures::StreamExt;
use reprieve_core::compat;
use reprieve_core::cpu::Level;
use reprieve_core::head::Owner;
use reprieve_core::manifest::{HostFacts, Manifest};
use reprieve_core::notice::{Afterwards, Source};
use serde::Serialize;

use super::{
    Answer, Failure, HeadState, Job, Known, SCHEMA, damage, missing_part, say_missing, text,
};
use crate::host;
use crate::programs;
use crate::supervisor::with_causes;

/// Manifests read at once.
const AT_ONCE: usize = 8;

/// The job and its snapshots.
#[derive(Debug, Serialize)]
pub(super) struct Listed {
    schema: u32,
    job: String,
    store: String,
    head: HeadState,
    /// Who runs the job, unless they said goodbye.
    owner: Option<Owner>,
    /// How it ended since its last snapshot, if it did.
    finished_exit_code: Option<u8>,
    snapshots: Vec<Line>,
    /// What this host is, if it was asked.
    this_host: Option<HostFacts>,
}

/// One snapshot. What its manifest says is null when that cannot be read.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    pub generation: Option<u64>,
    pub manifest: String,
    pub taken_at_ms: Option<u64>,
    pub age_ms: Option<u64>,
    /// Of the job: its memory and CRIU's images.
    pub logical_bytes: Option<u64>,
    /// Of every object that a restore reads.
    pub stored_bytes: Option<u64>,
    /// Of those, what this snapshot added.
    pub new_bytes: Option<u64>,
    pub trigger: Option<Source>,
    pub afterwards: Option<Afterwards>,
    pub host: Option<String>,
    pub pinned: bool,
    pub tags: Vec<String>,
    /// The job went back behind it, and goes on from an older one.
    pub set_aside: bool,
    /// Its manifest is sound and every part is there with its size; `verify` reads them as well.
    pub valid: bool,
    pub problem: Option<String>,
    /// The level of x86-64 that a host needs at least.
    pub cpu_level: Option<String>,
    /// Why this host cannot run it; none if it can. Null unless it was asked.
    pub unfit: Option<Vec<String>>,
}

/// With `host`, also which of them that host can run.
pub(super) async fn list(job: &Job, host: Option<HostFacts>) -> Result<Listed, Failure> {
    let contained = job.contained().await?;
    let sizes = match contained.snapshots.is_empty() {
        true => HashMap::new(),
        false => job.data_sizes().await?,
    };
    let reads: Vec<_> = contained
        .snapshots
        .iter()
        .map(|known| async move { (known, job.manifest(known).await) })
        .collect();
    let mut reads = futures::stream::iter(reads).buffered(AT_ONCE);
    let mut snapshots = Vec::new();
    while let Some((known, read)) = reads.next().await {
        snapshots.push(match read {
            Ok(manifest) => Line {
                unfit: host.as_ref().map(|host| unfit(&manifest, host)),
                ..line(known, &manifest, &sizes)
            },
            // The others are listed all the same.
            Err(error) if error.is_about_keys() => unreadable(known, with_causes(&error)),
            Err(error) => match damage(&error) {
                Some(problem) => unreadable(known, problem),
                None => return Err(job.unusable(known, error)),
            },
        });
    }
    let head = contained.head.as_ref();
    Ok(Listed {
        schema: SCHEMA,
        job: job.name.clone(),
        store: job.address.clone(),
        head: contained.state,
        owner: head.and_then(|head| head.owner.clone()),
        finished_exit_code: head.and_then(|head| head.finished).map(|end| end.exit_code),
        snapshots,
        this_host: host,
    })
}

pub(super) fn line(known: &Known, manifest: &Manifest, sizes: &HashMap<String, u64>) -> Line {
    let problem = missing_part(&manifest.parts, sizes).map(say_missing);
    Line {
        taken_at_ms: Some(manifest.taken_at_ms),
        age_ms: Some(host::wall_ms().saturating_sub(manifest.taken_at_ms)),
        logical_bytes: Some(manifest.sizes.logical()),
        stored_bytes: Some(manifest.parts.iter().map(|part| part.bytes).sum()),
        new_bytes: Some(manifest.sizes.stored),
        trigger: manifest.trigger,
        afterwards: Some(manifest.afterwards),
        host: Some(manifest.host.hostname.clone()),
        cpu_level: needed(&manifest.host),
        valid: problem.is_none(),
        problem,
        ..unreadable(known, String::new())
    }
}

fn unreadable(known: &Known, problem: String) -> Line {
    let entry = known.entry.as_ref();
    let taken_at_ms = entry.map(|entry| entry.taken_at_ms);
    Line {
        generation: known.number,
        manifest: known.candidate.manifest.clone(),
        taken_at_ms,
        age_ms: taken_at_ms.map(|taken_at_ms| host::wall_ms().saturating_sub(taken_at_ms)),
        logical_bytes: None,
        stored_bytes: None,
        new_bytes: None,
        trigger: None,
        afterwards: None,
        host: None,
        pinned: entry.is_some_and(|entry| entry.pinned),
        tags: entry.map_or_else(Vec::new, |entry| entry.tags.clone()),
        set_aside: known.set_aside,
        valid: false,
        problem: Some(problem),
        cpu_level: None,
        unfit: None,
    }
}

fn needed(host: &HostFacts) -> Option<String> {
    let level = || Level::of(&host.cpu_features).map(|level| level.as_str().to_owned());
    host.cpu_baseline.clone().or_else(level)
}

fn unfit(manifest: &Manifest, host: &HostFacts) -> Vec<String> {
    let mut found = compat::unfit(manifest, host, programs::identity);
    found.extend(compat::lacks_profile(&manifest.app, host));
    found.iter().map(ToString::to_string).collect()
}

impl Answer for Listed {
    fn human(&self) -> String {
        let mut said = String::new();
        if self.head == HeadState::Lost {
            said.push_str(
                "The head of the job is lost. These were found by listing; some may never have been committed.\n\n",
            );
        }
        if self.snapshots.is_empty() {
            return said + &format!("Job {} has no snapshots in {}.\n", self.job, self.store);
        }
        let mut rows: Vec<Vec<String>> = self.snapshots.iter().map(Line::cells).collect();
        let mut heading = vec![
            "GENERATION",
            "AGE",
            "NEW",
            "STORED",
            "LOGICAL",
            "TRIGGER",
            "HOST",
            "VALID",
            "MARKS",
        ];
        if let Some(host) = &self.this_host {
            said.push_str(&host_line(host));
            heading.extend(["NEEDS", "RUNS HERE"]);
            for (row, line) in rows.iter_mut().zip(&self.snapshots) {
                row.extend(line.cells_for_host());
            }
        }
        said + &text::table(&heading, &rows)
    }
}

fn host_line(host: &HostFacts) -> String {
    let level = Level::of(&host.cpu_features).map_or("no level of x86-64", Level::as_str);
    let criu = match host.criu.as_str() {
        "" => "no CRIU",
        version => &format!("CRIU {version}"),
    };
    format!(
        "This host: {}, {} ({level}), Linux {}, {criu}.\n\n",
        host.arch, host.cpu_model, host.kernel
    )
}

impl Line {
    fn cells_for_host(&self) -> [String; 2] {
        let runs = match &self.unfit {
            None => "-".to_owned(),
            Some(reasons) if reasons.is_empty() => "yes".to_owned(),
            Some(reasons) => format!("no: {}", reasons.join("; ")),
        };
        [
            self.cpu_level.clone().unwrap_or_else(|| "-".to_owned()),
            runs,
        ]
    }

    fn cells(&self) -> Vec<String> {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let marks: Vec<&str> = self
            .pinned
            .then_some("pinned")
            .into_iter()
            .chain(self.set_aside.then_some("(set aside)"))
            .chain(self.tags.iter().map(String::as_str))
            .collect();
        vec![
            or_dash(self.generation.map(|number| number.to_string())),
            or_dash(self.age_ms.map(text::age)),
            or_dash(self.new_bytes.map(text::bytes)),
            or_dash(self.stored_bytes.map(text::bytes)),
            or_dash(self.logical_bytes.map(text::bytes)),
            or_dash(self.trigger.map(|trigger| trigger.as_str().to_owned())),
            or_dash(self.host.clone()),
            match &self.problem {
                None => "yes".to_owned(),
                Some(problem) => format!("no: {problem}"),
            },
            marks.join(" "),
        ]
    }
}
