//! Leaves reports in the store: of checkpoints that failed, of ends that were missed, of evictions
//! (`reprieve_core::report`).
//!
//! None costs a checkpoint anything: they are stored between checkpoints and after the last one, and one that is on its
//! way when a checkpoint begins is given up and sent again later. What goes wrong time after time in the same way is one
//! report, written anew. What cannot be stored costs a line of the log.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use reprieve_core::report::{Cause, EngineLog, Name, Report};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::catalog::{self, Catalog};
use crate::host;
use crate::keys::MasterKey;
use crate::supervisor::with_causes;

/// Reports that wait for the store; more than these are not worth their memory.
const WAITING: usize = 4;

/// How long the store may take for one, while the job runs.
const LIMIT: Duration = Duration::from_secs(30);

/// Where reports go, and what they are sealed with.
#[derive(Clone, Debug)]
pub(crate) struct Shelf {
    pub catalog: Catalog,
    pub key: Option<Arc<MasterKey>>,
}

/// Texts of a report that names several snapshots.
const NAMED: usize = 4;

/// Why snapshots were not resumed, as a boot finds out. Clones gather the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unresumed(Arc<Mutex<Gathered>>);

#[derive(Debug, Default)]
struct Gathered {
    problems: Vec<String>,
    /// Of the attempt under way.
    said: Option<EngineLog>,
    /// Of the first snapshot that came as far as CRIU: it is the newest.
    log: Option<EngineLog>,
}

impl Unresumed {
    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.0.lock().expect("no holder of this lock panics")
    }

    /// CRIU failed, which may not be the end of it.
    pub(crate) fn said(&self, log: Option<EngineLog>) {
        self.gathered().said = log;
    }

    /// This snapshot is not resumed.
    pub(crate) fn add(&self, snapshot: &str, reason: &str) {
        let mut gathered = self.gathered();
        gathered.problems.push(format!("{snapshot}: {reason}"));
        let said = gathered.said.take();
        gathered.log = gathered.log.take().or(said);
    }

    /// What went wrong, and what CRIU said; `None` if nothing did.
    pub(crate) fn take(&self) -> Option<(String, Option<EngineLog>)> {
        let Gathered { problems, log, .. } = std::mem::take(&mut *self.gathered());
        let more = problems.len().saturating_sub(NAMED);
        let mut text = problems
            .into_iter()
            .take(NAMED)
            .collect::<Vec<_>>()
            .join("; ");
        if more > 0 {
            text.push_str(&format!("; and {more} more"));
        }
        (!text.is_empty()).then_some((text, log))
    }
}

/// The reports of one worker.
#[derive(Debug)]
pub(crate) struct Reports {
    job: String,
    worker: String,
    waiting: Arc<Mutex<VecDeque<(Name, Report)>>>,
    /// The latest one, to tell whether the same happens again.
    latest: Option<(Name, Report)>,
    task: Option<JoinHandle<()>>,
}

impl Reports {
    pub(crate) fn new(job: &str, worker: &str) -> Self {
        Self {
            job: job.to_owned(),
            worker: worker.to_owned(),
            waiting: Arc::default(),
            latest: None,
            task: None,
        }
    }

    /// Something happened that is worth a report. It is stored later.
    pub(crate) fn note(
        &mut self,
        cause: Cause,
        problem: Option<String>,
        history: Value,
        criu_log: Option<EngineLog>,
    ) {
        let again = self
            .latest
            .as_ref()
            .filter(|(_, known)| (known.cause, &known.problem) == (cause, &problem));
        let (name, times) = match again {
            Some((name, known)) => (name.clone(), known.times.saturating_add(1)),
            None => {
                let name = catalog::nonce().parse();
                (name.expect("a nonce is the name of a report"), 1)
            }
        };
        let report = Report {
            job: self.job.clone(),
            worker: self.worker.clone(),
            host: host::hostname(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            at_ms: host::wall_ms(),
            cause,
            times,
            problem,
            history,
            criu_log,
        };
        let mut waiting = lock(&self.waiting);
        waiting.retain(|(known, _)| *known != name);
        if waiting.len() == WAITING {
            waiting.pop_front();
        }
        waiting.push_back((name.clone(), report.clone()));
        drop(waiting);
        self.latest = Some((name, report));
    }

    /// A checkpoint needs the way to the store.
    pub(crate) fn hold(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }

    /// Nothing more important is to be done.
    pub(crate) fn send(&mut self, shelf: Shelf) {
        self.hold();
        if lock(&self.waiting).is_empty() {
            return;
        }
        let waiting = Arc::clone(&self.waiting);
        self.task = Some(tokio::spawn(send(shelf, waiting, LIMIT)));
    }

    /// Sends what is left, on the way out.
    pub(crate) async fn finish(&mut self, shelf: Shelf, limit: Duration) {
        self.hold();
        if timeout(limit, send(shelf, Arc::clone(&self.waiting), limit))
            .await
            .is_err()
        {
            not_stored(&format!("it took longer than {limit:?}"));
        }
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        self.hold();
    }
}

fn lock(waiting: &Mutex<VecDeque<(Name, Report)>>) -> MutexGuard<'_, VecDeque<(Name, Report)>> {
    waiting.lock().expect("no holder of this lock panics")
}

async fn send(shelf: Shelf, waiting: Arc<Mutex<VecDeque<(Name, Report)>>>, limit: Duration) {
    loop {
        let Some((name, report)) = lock(&waiting).front().cloned() else {
            return;
        };
        let deadline = Instant::now() + limit;
        let known = name.clone();
        let (name, written) = again(&shelf, name, report.clone(), deadline).await;
        let stored = shelf
            .catalog
            .put_report(&name, &written, shelf.key.as_ref(), deadline);
        match stored.await {
            Ok(()) => tracing::info!(
                report = name.as_str(),
                cause = report.cause.as_str(),
                "a report was stored; `reprieve reports` shows it"
            ),
            Err(error) => {
                // It is tried again after the next checkpoint, and at the end: the store may be what has failed.
                not_stored(&with_causes(&error));
                return;
            }
        }
        // It may have been written anew meanwhile; then that one is sent as well.
        lock(&waiting).retain(|other| *other != (known.clone(), report.clone()));
    }
}

/// A start that fails is tried again by another worker, which finds the same: one report, and not one for each of them.
async fn again(shelf: &Shelf, name: Name, report: Report, deadline: Instant) -> (Name, Report) {
    if report.cause != Cause::NotResumed {
        return (name, report);
    }
    let newest = async {
        let newest = shelf.catalog.reports(deadline).await.ok()?.pop()?;
        let known = shelf.catalog.report(&newest, deadline).await.ok()??;
        Some((newest, known))
    };
    match newest.await {
        Some((newest, known))
            if newest != name
                && (known.cause, &known.problem) == (report.cause, &report.problem) =>
        {
            let times = known.times.saturating_add(1);
            (newest, Report { times, ..report })
        }
        _ => (name, report),
    }
}

fn not_stored(reason: &str) {
    tracing::warn!(reason, "a report could not be stored");
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    use crate::catalog::tests::{catalog, soon};

    fn notes(reports: &mut Reports, cause: Cause, problem: &str) {
        reports.note(cause, Some(problem.to_owned()), json!({}), None);
    }

    #[test]
    fn of_many_snapshots_the_newest_are_named_with_what_criu_said_first() {
        let unresumed = Unresumed::default();
        assert_eq!(unresumed.take(), None);
        let log = |text: &str| EngineLog {
            bytes: 1,
            tail: text.to_owned(),
        };
        unresumed.add("6", "it is damaged");
        for number in (0..6).rev() {
            unresumed.said(Some(log(&number.to_string())));
            unresumed.add(&number.to_string(), "no");
        }
        let text = "6: it is damaged; 5: no; 4: no; 3: no; and 3 more".to_owned();
        assert_eq!(unresumed.take(), Some((text, Some(log("5")))));
        assert_eq!(unresumed.take(), None);
    }

    #[tokio::test]
    async fn what_the_store_does_not_take_is_sent_again() {
        let (directory, catalog) = catalog();
        let mut reports = Reports::new("job", "w");
        notes(&mut reports, Cause::Failed, "the store is away");
        let shelf = Shelf {
            catalog: catalog.clone(),
            key: None,
        };
        let away = directory.path().with_extension("away");
        std::fs::rename(directory.path(), &away).expect("it is ours");
        reports
            .finish(shelf.clone(), Duration::from_millis(50))
            .await;
        std::fs::rename(&away, directory.path()).expect("it is ours");
        assert_eq!(catalog.reports(soon()).await.expect("they are listed"), []);
        reports.finish(shelf, LIMIT).await;
        let names = catalog.reports(soon()).await.expect("they are listed");
        assert_eq!(names.len(), 1);
    }

    #[tokio::test]
    async fn what_happens_again_is_one_report_and_too_many_push_out_the_oldest() {
        let (_directory, catalog) = catalog();
        let mut reports = Reports::new("job", "w");
        notes(&mut reports, Cause::Failed, "orphans");
        notes(&mut reports, Cause::Failed, "orphans");
        notes(&mut reports, Cause::Missed, "orphans");
        for number in 0..WAITING - 1 {
            notes(&mut reports, Cause::Failed, &number.to_string());
        }
        let shelf = Shelf {
            catalog: catalog.clone(),
            key: None,
        };
        reports.finish(shelf.clone(), LIMIT).await;
        let names = catalog.reports(soon()).await.expect("they are listed");
        let mut told = Vec::new();
        for name in &names {
            let read = catalog.report(name, soon()).await.expect("it is read");
            let read = read.expect("it is there");
            told.push((read.cause, read.problem.unwrap_or_default(), read.times));
        }
        // Names of the same millisecond are in no order.
        told.sort_by(|one, other| one.1.cmp(&other.1));
        let failed = |problem: &str, times| (Cause::Failed, problem.to_owned(), times);
        let missed = (Cause::Missed, "orphans".to_owned(), 1);
        assert_eq!(
            told,
            [failed("0", 1), failed("1", 1), failed("2", 1), missed]
        );
        // Now the newest happens again, before and after it is stored.
        notes(&mut reports, Cause::Failed, "2");
        notes(&mut reports, Cause::Failed, "2");
        reports.finish(shelf, LIMIT).await;
        let (name, latest) = reports.latest.clone().expect("there is one");
        assert_eq!(latest.times, 3);
        assert_eq!(
            catalog.reports(soon()).await.expect("they are listed"),
            names
        );
        let newest = catalog.report(&name, soon()).await.expect("it is read");
        assert_eq!(newest, Some(latest));
    }
}
