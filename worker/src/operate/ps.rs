//! `reprieve ps`: every job and every worker of a store, and how much work would be lost if the machine went now.
//!
//! The registry says who is there, the heads say who owns what. A worker whose entry was not renewed for three minutes is
//! told as silent; an owner without an entry died so long ago that its entry was swept, or could not write one.

use std::collections::BTreeMap;

use futures::StreamExt;
use reprieve_core::head::Head;
use reprieve_core::worker::{Purchase, SILENT_AFTER_MS, Worker};
use serde::Serialize;

use super::text::{self, Colour};
use super::{Answer, Failure, Job, SCHEMA};
use crate::catalog::CatalogError;
use crate::host;
use crate::place::unreachable_store;
use crate::registry::{Present, Registry};
use crate::supervisor::with_causes;

/// Heads read at once.
const AT_ONCE: usize = 8;

/// What is there.
#[derive(Debug, Serialize)]
pub(super) struct Processes {
    schema: u32,
    store: String,
    jobs: Vec<Line>,
}

/// A job with its owner, or a worker that waits for its turn.
#[derive(Debug, Serialize)]
struct Line {
    job: String,
    state: String,
    /// Whether this worker owns the job; null if nobody runs it or waits for it.
    owner: Option<bool>,
    worker: Option<String>,
    host: Option<String>,
    instance: Option<String>,
    cloud: Option<String>,
    instance_type: Option<String>,
    zone: Option<String>,
    purchase: Option<Purchase>,
    queue: Option<String>,
    version: Option<String>,
    started_ms: Option<u64>,
    /// How long ago its entry was renewed.
    seen_ms_ago: Option<u64>,
    silent: bool,
    snapshots: Option<usize>,
    last_snapshot: Option<u64>,
    last_snapshot_age_ms: Option<u64>,
    /// How much of the job's work no snapshot holds.
    work_at_risk_ms: Option<u64>,
    /// Until the announced end of the machine.
    deadline_in_ms: Option<u64>,
    finished_exit_code: Option<u8>,
    /// A host of this level of x86-64, or a higher one, can take the job over, as far as levels tell.
    cpu_level: Option<String>,
    problem: Option<String>,
}

pub(super) async fn ps(job: &Job) -> Result<Processes, Failure> {
    let registry = Registry::new(std::sync::Arc::clone(job.store()));
    let failed = |error| unreachable_store(&job.address, error);
    let workers = registry.workers(job.deadline()).await.map_err(failed)?;
    let names = registry.jobs(job.deadline()).await.map_err(failed)?;
    let wanted = |name: &str| job.name.is_empty() || job.name == name;
    let mut heads = BTreeMap::new();
    let names: Vec<String> = names.into_iter().filter(|name| wanted(name)).collect();
    let finds: Vec<_> = names
        .into_iter()
        .map(|name| async {
            let catalog = job.catalog.of(&name);
            let found = catalog.head(job.deadline()).await;
            (name, found)
        })
        .collect();
    let mut finds = futures::stream::iter(finds).buffered(AT_ONCE);
    while let Some((name, found)) = finds.next().await {
        let found = match found {
            Err(CatalogError::Store(error)) => return Err(failed(error)),
            found => found.map_err(|error| with_causes(&error)),
        };
        heads.insert(name, found);
    }
    let youngest = workers.iter().map(|present| present.renewed_at_ms).max();
    let now_ms = host::wall_ms().max(youngest.unwrap_or(0));
    Ok(Processes {
        schema: SCHEMA,
        store: job.address.clone(),
        jobs: lines(&heads, &workers, wanted, now_ms),
    })
}

fn lines(
    heads: &BTreeMap<String, Result<Head, String>>,
    workers: &[Present],
    wanted: impl Fn(&str) -> bool,
    now_ms: u64,
) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for present in workers {
        let Ok(worker) = &present.worker else {
            continue;
        };
        if !wanted(&worker.job) {
            continue;
        }
        let head = heads.get(&worker.job).and_then(|head| head.as_ref().ok());
        let owner = head.and_then(|head| head.owner.as_ref());
        if owner.is_some_and(|owner| owner.worker == worker.worker) {
            seen.push(&worker.job);
        }
        lines.push(of_worker(worker, head, present.renewed_at_ms, now_ms));
    }
    for (job, head) in heads {
        if !seen.contains(&job.as_str()) {
            let is_waited_for = lines.iter().any(|line| line.job == *job);
            let is_owned = matches!(head, Ok(head) if head.owner.is_some());
            if is_owned || !is_waited_for {
                lines.push(of_job(job, head, now_ms));
            }
        }
    }
    lines.sort_by(|one, other| (&one.job, &one.worker).cmp(&(&other.job, &other.worker)));
    lines
}

fn of_worker(worker: &Worker, head: Option<&Head>, renewed_at_ms: u64, now_ms: u64) -> Line {
    let owns = head
        .and_then(|head| head.owner.as_ref())
        .is_some_and(|owner| owner.worker == worker.worker);
    let seen_ms_ago = now_ms.saturating_sub(renewed_at_ms);
    let silent = seen_ms_ago > SILENT_AFTER_MS;
    let taken_at_ms = worker.last_snapshot.map(|snapshot| snapshot.taken_at_ms);
    let runs = matches!(worker.state.as_str(), "running" | "checkpointing");
    // What it resumed was taken before it started.
    let safe_until_ms = taken_at_ms.unwrap_or(0).max(worker.started_ms);
    let machine = worker.machine.as_ref();
    Line {
        job: worker.job.clone(),
        state: match owns || head.is_none() || worker.state != "booting" {
            true => worker.state.clone(),
            false => "waiting".to_owned(),
        },
        owner: Some(owns),
        worker: Some(worker.worker.clone()),
        host: Some(worker.host.clone()),
        instance: worker.instance.clone(),
        cloud: machine.map(|machine| machine.cloud.clone()),
        instance_type: machine.and_then(|machine| machine.kind.clone()),
        zone: machine.and_then(|machine| machine.zone.clone()),
        purchase: machine.and_then(|machine| machine.purchase),
        queue: worker.queue.clone(),
        version: Some(worker.version.clone()),
        started_ms: Some(worker.started_ms),
        seen_ms_ago: Some(seen_ms_ago),
        silent,
        snapshots: head.map(|head| head.generations.len()),
        last_snapshot: worker.last_snapshot.map(|snapshot| snapshot.generation),
        last_snapshot_age_ms: taken_at_ms.map(|at_ms| now_ms.saturating_sub(at_ms)),
        work_at_risk_ms: (runs && !silent).then(|| now_ms.saturating_sub(safe_until_ms)),
        deadline_in_ms: worker
            .deadline_ms
            .map(|ends_at_ms| ends_at_ms.saturating_sub(now_ms)),
        finished_exit_code: None,
        cpu_level: worker.cpu_level.clone(),
        problem: None,
    }
}

/// A job of which no worker says that it runs it.
fn of_job(job: &str, head: &Result<Head, String>, now_ms: u64) -> Line {
    let (head, problem) = match head {
        Ok(head) => (Some(head), None),
        Err(problem) => (None, Some(problem.clone())),
    };
    let owner = head.and_then(|head| head.owner.as_ref());
    let finished = head.and_then(|head| head.finished).map(|end| end.exit_code);
    let tip = head.and_then(Head::tip);
    Line {
        job: job.to_owned(),
        state: match (head, owner, finished) {
            (None, _, _) => "unknown",
            // Its entry is gone, its claim is not.
            (_, Some(_), _) => "lost",
            (_, _, Some(_)) => "finished",
            _ => "stopped",
        }
        .to_owned(),
        owner: owner.map(|_| true),
        worker: owner.map(|owner| owner.worker.clone()),
        host: owner.map(|owner| owner.host.clone()),
        instance: None,
        cloud: None,
        instance_type: None,
        zone: None,
        purchase: None,
        queue: None,
        version: None,
        started_ms: owner.map(|owner| owner.since_ms),
        seen_ms_ago: None,
        silent: owner.is_some(),
        snapshots: head.map(|head| head.generations.len()),
        last_snapshot: tip.map(|tip| tip.generation),
        last_snapshot_age_ms: tip.map(|tip| now_ms.saturating_sub(tip.taken_at_ms)),
        work_at_risk_ms: None,
        deadline_in_ms: None,
        finished_exit_code: finished,
        cpu_level: None,
        problem,
    }
}

impl Answer for Processes {
    fn human(&self) -> String {
        if self.jobs.is_empty() {
            return format!("There are no jobs in {}.\n", self.store);
        }
        let rows: Vec<Vec<String>> = self.jobs.iter().map(Line::cells).collect();
        let heading = [
            "JOB", "STATE", "HOST", "INSTANCE", "TYPE", "SNAPSHOT", "AGE", "AT RISK", "ENDS IN",
            "SEEN", "NEEDS",
        ];
        text::table(&heading, &rows)
    }
}

impl Line {
    /// With what says that it may be taken.
    fn kind(&self) -> Option<String> {
        let kind = self.instance_type.clone()?;
        Some(match self.purchase {
            Some(Purchase::Spot) => format!("{kind} (spot)"),
            _ => kind,
        })
    }

    fn cells(&self) -> Vec<String> {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let state = match (&self.problem, self.finished_exit_code) {
            (Some(problem), _) => format!("{}: {problem}", self.state),
            (_, Some(code)) => format!("{} ({code})", self.state),
            _ => self.state.clone(),
        };
        let state = match self.silent || self.problem.is_some() {
            true => text::coloured(&state, Colour::Bad),
            false => state,
        };
        let seen = self.seen_ms_ago.map(|ago| match self.silent {
            true => text::coloured(&format!("silent for {}", text::age(ago)), Colour::Bad),
            false => format!("{} ago", text::age(ago)),
        });
        vec![
            self.job.clone(),
            state,
            or_dash(self.host.clone()),
            or_dash(self.instance.clone()),
            or_dash(self.kind()),
            or_dash(self.last_snapshot.map(|number| number.to_string())),
            or_dash(self.last_snapshot_age_ms.map(text::age)),
            or_dash(self.work_at_risk_ms.map(text::age)),
            or_dash(self.deadline_in_ms.map(text::age)),
            or_dash(seen),
            or_dash(self.cpu_level.clone()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reprieve_core::head::{Finished, Owner};
    use reprieve_core::worker::{Machine, Snapshot};

    const NOW_MS: u64 = 10_000_000;

    fn worker(name: &str, job: &str, state: &str) -> Worker {
        Worker {
            worker: name.into(),
            job: job.into(),
            host: format!("host-of-{name}"),
            instance: Some("i-1".into()),
            machine: Some(Machine {
                cloud: "ec2".into(),
                kind: Some("m7i.large".into()),
                zone: Some("eu-central-1b".into()),
                purchase: (name == "a").then_some(Purchase::Spot),
            }),
            queue: None,
            state: state.into(),
            epoch: None,
            started_ms: NOW_MS - 60_000,
            last_snapshot: Some(Snapshot {
                generation: 7,
                taken_at_ms: NOW_MS - 600_000,
            }),
            deadline_ms: (state == "running").then_some(NOW_MS + 30_000),
            version: "0".into(),
            cpu_level: None,
        }
    }

    fn present(worker: Worker, ago_ms: u64) -> Present {
        Present {
            key: worker.key(),
            renewed_at_ms: NOW_MS - ago_ms,
            worker: Ok(worker),
        }
    }

    fn head(job: &str, owner: Option<&str>) -> Head {
        Head {
            owner: owner.map(|worker| Owner {
                worker: worker.into(),
                host: "h".into(),
                since_ms: 1,
                beat: 0,
            }),
            ..Head::new(job)
        }
    }

    #[test]
    fn each_job_and_each_worker_has_its_state() {
        let finished = Some(Finished {
            exit_code: 3,
            at_ms: 1,
        });
        let heads = [
            ("dead", Ok(head("dead", Some("gone")))),
            (
                "done",
                Ok(Head {
                    finished,
                    ..head("done", None)
                }),
            ),
            ("live", Ok(head("live", Some("a")))),
            ("mute", Ok(head("mute", Some("c")))),
            ("stopped", Ok(head("stopped", None))),
            ("torn", Err("it is damaged".to_owned())),
        ];
        let heads = heads
            .into_iter()
            .map(|(job, head)| (job.to_owned(), head))
            .collect();
        let workers = [
            present(worker("a", "live", "running"), 1000),
            present(worker("b", "live", "booting"), 1000),
            present(worker("c", "mute", "running"), SILENT_AFTER_MS + 1),
            present(worker("d", "new", "booting"), 0),
        ];
        let said: Vec<_> = lines(&heads, &workers, |_| true, NOW_MS)
            .into_iter()
            .map(|line| {
                let text = format!(
                    "{} {} {} {}",
                    line.job,
                    line.worker.unwrap_or_default(),
                    line.state,
                    line.silent
                );
                (text, line.work_at_risk_ms)
            })
            .collect();
        let expected = [
            // It resumed an old snapshot a minute ago.
            ("dead gone lost true", None),
            ("done  finished false", None),
            ("live a running false", Some(60_000)),
            ("live b waiting false", None),
            ("mute c running true", None),
            ("new d booting false", None),
            ("stopped  stopped false", None),
            ("torn  unknown false", None),
        ];
        assert_eq!(said, expected.map(|(text, risk)| (text.to_owned(), risk)));
        let all = lines(&heads, &workers, |_| true, NOW_MS + 10_000);
        let ends: Vec<_> = all.iter().map(|line| line.deadline_in_ms).collect();
        let soon = Some(20_000);
        assert_eq!(ends, [None, None, soon, None, soon, None, None, None]);
        let kinds: Vec<_> = all.iter().map(Line::kind).collect();
        let (spot, other) = (Some("m7i.large (spot)".into()), Some("m7i.large".into()));
        assert_eq!(kinds[2..5], [spot, other.clone(), other]);
        assert_eq!(kinds[0], None);
        let one = lines(&heads, &workers, |job| job == "live", NOW_MS);
        assert_eq!(one.iter().filter(|line| line.job == "live").count(), 2);
    }
}
