//! `reprieve prune`: lets go what the settings do not keep, and sweeps what nothing needs any more.

use std::collections::BTreeMap;

use reprieve_core::head::Head;
use reprieve_core::retention::{self, Plan};
use reprieve_core::sweep::{self, Verdict};
use serde::Serialize;

use super::{Answer, ExitCode, Failure, Job, Prune, SCHEMA, text};
use crate::catalog;
use crate::host;
use crate::place::{refused_keys, unreachable_store};
use crate::settings::JobSettings;
use crate::sweeper::{Begun, SweepError, Sweeper};

/// Objects removed at once.
const AT_ONCE: usize = 8;

/// What went, or would go, and why everything else stays.
#[derive(Debug, Serialize)]
pub(super) struct Pruned {
    schema: u32,
    job: String,
    store: String,
    dry_run: bool,
    /// Newest first.
    generations: Vec<GenerationLine>,
    /// In key order.
    objects: Vec<ObjectLine>,
    /// Objects that went, or would go.
    removed: u64,
    freed_bytes: u64,
}

#[derive(Debug, Serialize)]
struct GenerationLine {
    generation: u64,
    goes: bool,
    /// `kept: ...` or `goes: ...`.
    reason: String,
}

#[derive(Debug, Serialize)]
struct ObjectLine {
    key: String,
    bytes: u64,
    goes: bool,
    /// `stays: ...` or `goes: ...`.
    reason: String,
}

pub(super) async fn prune(
    job: &Job,
    settings: &JobSettings,
    how: Prune,
) -> Result<Pruned, Failure> {
    let sweeper = Sweeper {
        catalog: job.catalog.clone(),
        grace: settings.sweep_grace,
        limit: job.limit,
        at_once: AT_ONCE,
        begun: Begun::default(),
    };
    let plan_for = |head: &Head| retention::plan_for(head, settings.retention);
    let (kept, swept) = match how {
        Prune::DryRun => {
            let head = job.catalog.head(job.deadline()).await;
            let head = head.map_err(|error| job.failed(error))?;
            let kept = plan_for(&head);
            let after = head.without(&kept.dropped(), String::new());
            let preview = sweeper.preview_of(&after, host::wall_ms()).await;
            (kept, preview.map_err(|error| unswept(job, error))?)
        }
        Prune::CarryOut => {
            let kept = retain(job, plan_for).await?;
            let swept = {
                let progress = text::Progress::count("removing", 0);
                sweeper.sweep(|done, total| progress.set(done, total)).await
            };
            (kept, swept.map_err(|error| unswept(job, error))?.plan)
        }
    };
    Ok(pruned(job, how, &kept, &swept))
}

/// Takes out of the head what is not kept. Returns what was decided.
async fn retain(job: &Job, plan_for: impl Fn(&Head) -> Plan) -> Result<Plan, Failure> {
    let decided = std::cell::RefCell::new(None);
    let amended = job.catalog.amend(job.deadline(), |head| {
        let plan = plan_for(head);
        let dropped = plan.dropped();
        decided.replace(Some(plan));
        if dropped.is_empty() {
            return Err(());
        }
        Ok(head.without(&dropped, catalog::nonce()))
    });
    // Nothing to change is as good.
    let _ = amended.await.map_err(|error| job.failed(error))?;
    Ok(decided.take().expect("it was decided just now"))
}

fn unswept(job: &Job, error: SweepError) -> Failure {
    match error {
        SweepError::Catalog(error) => job.failed(error),
        SweepError::Delete(error) => unreachable_store(&job.address, error),
        SweepError::Manifest { source, .. } if source.is_about_keys() => {
            refused_keys(&job.name, source)
        }
        error @ SweepError::Manifest { .. } => Failure::new(
            ExitCode::DamagedSnapshot,
            format!("nothing of job {} was swept", job.name),
        )
        .caused_by(error)
        .remedy(
            "`reprieve snapshots` says what is wrong with it; unpin and untag a damaged one so that it goes with the \
             next checkpoints",
        ),
        error => Failure::new(
            ExitCode::NotDone,
            format!("not everything of job {} was swept", job.name),
        )
        .caused_by(error)
        .remedy("what is left does no harm; try again"),
    }
}

fn pruned(job: &Job, how: Prune, kept: &Plan, swept: &sweep::Plan) -> Pruned {
    let generations = kept.entries.iter().map(|entry| GenerationLine {
        generation: entry.generation,
        goes: entry.goes(),
        reason: entry.to_string(),
    });
    let objects = swept.entries.iter().map(|entry| ObjectLine {
        key: entry.key.clone(),
        bytes: entry.bytes,
        goes: matches!(entry.verdict, Verdict::Goes(_)),
        reason: entry.verdict.to_string(),
    });
    Pruned {
        schema: SCHEMA,
        job: job.name.clone(),
        store: job.address.clone(),
        dry_run: how == Prune::DryRun,
        generations: generations.collect(),
        objects: objects.collect(),
        removed: swept.going().len() as u64,
        freed_bytes: swept.freed(),
    }
}

impl Answer for Pruned {
    fn human(&self) -> String {
        let row = |line: &GenerationLine| vec![line.generation.to_string(), line.reason.clone()];
        let generations: Vec<Vec<String>> = self.generations.iter().map(row).collect();
        // Objects by their reason: a large job has tens of thousands.
        let mut reasons: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for object in &self.objects {
            let (count, bytes) = reasons.entry(&object.reason).or_default();
            *count += 1;
            *bytes += object.bytes;
        }
        let row = |(reason, (count, bytes)): (&&str, &(u64, u64))| {
            vec![count.to_string(), text::bytes(*bytes), reason.to_string()]
        };
        let objects: Vec<Vec<String>> = reasons.iter().map(row).collect();
        let done = match self.dry_run {
            true => "would go; nothing was changed",
            false => "removed",
        };
        format!(
            "{}\n{}\n{} objects, {}, {done}\n",
            text::table(&["GENERATION", "DECISION"], &generations),
            text::table(&["OBJECTS", "SIZE", "DECISION"], &objects),
            self.removed,
            text::bytes(self.freed_bytes),
        )
    }
}
