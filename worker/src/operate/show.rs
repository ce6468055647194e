//! `reprieve show`: everything that is known of one snapshot without reading its data.

use reprieve_core::manifest::{AppFacts, HostFacts, Sizes, Stdio};
use serde::Serialize;

use super::list::{self, Line};
use super::{Answer, Failure, Job, SCHEMA, Selector, text};

/// One snapshot.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    schema: u32,
    job: String,
    store: String,
    #[serde(flatten)]
    line: Line,
    epoch: u64,
    attempt: String,
    /// The newest generation when this one was taken.
    parent: Option<u64>,
    app: AppFacts,
    taken_on: HostFacts,
    sizes: Sizes,
    parts: Vec<PartLine>,
}

/// One object that a restore reads.
#[derive(Debug, Serialize)]
struct PartLine {
    key: String,
    bytes: u64,
    digest: String,
    /// Null: it is missing.
    found_bytes: Option<u64>,
    /// An earlier snapshot stored it.
    reused: bool,
}

pub(super) async fn show(job: &Job, which: &Selector) -> Result<Shown, Failure> {
    let contained = job.contained().await?;
    let known = job.find(&contained, which)?;
    let manifest = job.manifest(&known).await;
    let manifest = manifest.map_err(|error| job.unusable(&known, error))?;
    let sizes = job.data_sizes().await?;
    let line = list::line(&known, &manifest, &sizes);
    let own = reprieve_core::manifest::data_prefix(&manifest.attempt);
    let parts = manifest.parts.into_iter().map(|part| PartLine {
        found_bytes: sizes.get(&part.key).copied(),
        reused: !part.key.starts_with(&own),
        key: part.key,
        bytes: part.bytes,
        digest: part.digest,
    });
    Ok(Shown {
        schema: SCHEMA,
        job: job.name.clone(),
        store: job.address.clone(),
        line,
        epoch: manifest.epoch,
        attempt: manifest.attempt,
        parent: manifest.parent,
        app: manifest.app,
        taken_on: manifest.host,
        sizes: manifest.sizes,
        parts: parts.collect(),
    })
}

impl Answer for Shown {
    fn human(&self) -> String {
        let reused = self.parts.iter().filter(|part| part.reused);
        let reused_bytes = reused.clone().map(|part| part.bytes).sum();
        let line = &self.line;
        let marks = match (line.pinned, &line.tags[..]) {
            (false, []) => "none".to_owned(),
            (pinned, tags) => {
                let pinned = pinned.then_some("pinned".to_owned());
                let tags = tags.iter().map(|tag| format!("tag {tag}"));
                pinned
                    .into_iter()
                    .chain(tags)
                    .collect::<Vec<_>>()
                    .join(", ")
            }
        };
        let size = |bytes: u64| text::bytes(bytes);
        text::fields(&[
            (
                "generation",
                line.generation
                    .map_or_else(String::new, |number| number.to_string()),
            ),
            ("age", line.age_ms.map_or_else(String::new, text::age)),
            (
                "trigger",
                line.trigger
                    .map_or("", |trigger| trigger.as_str())
                    .to_owned(),
            ),
            (
                "valid",
                line.problem
                    .as_ref()
                    .map_or("yes".to_owned(), |problem| format!("no: {problem}")),
            ),
            ("marks", marks),
            ("app", self.app.argv.join(" ")),
            ("processes", self.app.processes.to_string()),
            ("root process", self.app.root_pid.to_string()),
            (
                "streams",
                match self.app.stdio {
                    Stdio::Pipes { .. } => "pipes".to_owned(),
                    Stdio::Terminal { .. } => "a terminal".to_owned(),
                },
            ),
            ("memory", size(self.sizes.memory)),
            ("  zeros", size(self.sizes.zero)),
            ("  unchanged", size(self.sizes.unchanged)),
            ("images", size(self.sizes.images)),
            (
                "files",
                self.sizes.preserved.map_or("none".to_owned(), |files| {
                    format!(
                        "{} in {} paths, {} new",
                        size(files.bytes),
                        files.files,
                        size(files.changed)
                    )
                }),
            ),
            (
                "stored",
                size(self.parts.iter().map(|part| part.bytes).sum()),
            ),
            ("  new", size(self.sizes.stored)),
            (
                "  reused",
                format!("{} in {} parts", size(reused_bytes), reused.count()),
            ),
            ("parts", self.parts.len().to_string()),
            (
                "taken on",
                format!(
                    "{}, {}, Linux {}",
                    self.taken_on.hostname, self.taken_on.arch, self.taken_on.kernel
                ),
            ),
            ("image", self.taken_on.image.clone()),
            ("cpu", self.taken_on.cpu_model.clone()),
            ("criu", self.taken_on.criu.clone()),
            ("epoch", self.epoch.to_string()),
            ("manifest", line.manifest.clone()),
        ])
    }
}
