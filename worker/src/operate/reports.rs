//! `reprieve reports`: what workers left in the store of checkpoints that failed and of evictions.

use futures::StreamExt;
use reprieve_core::command::text_of;
use reprieve_core::notice::WallMs;
use reprieve_core::report::{Cause, EngineLog, Name, Report};
use serde::Serialize;
use serde_json::Value;

use super::text::{self, Colour};
use super::{Answer, Detail, Failure, Job, SCHEMA, WhichReport};
use crate::catalog::CatalogError;
use crate::failure::ExitCode;
use crate::host;
use crate::supervisor::with_causes;

/// Reports read at once.
const AT_ONCE: usize = 8;

/// Lines of CRIU's log that stand in a report for people.
const LOG_LINES: usize = 30;

/// How something stands out.
type Paint = fn(&str, Colour) -> String;

/// What there is.
#[derive(Debug, Serialize)]
pub(super) struct Listed {
    schema: u32,
    job: String,
    store: String,
    reports: Vec<Line>,
}

/// One report in the list. What it says is null when it cannot be read.
#[derive(Debug, Serialize)]
struct Line {
    report: String,
    at_ms: Option<u64>,
    age_ms: Option<u64>,
    cause: Option<Cause>,
    times: Option<u32>,
    host: Option<String>,
    worker: Option<String>,
    /// What the report tells of, or why it cannot be read.
    problem: Option<String>,
}

/// One report, whole.
#[derive(Debug, Serialize)]
pub(super) struct Told {
    schema: u32,
    store: String,
    report: String,
    #[serde(flatten)]
    told: Report,
    #[serde(skip)]
    detail: Detail,
}

pub(super) async fn list(job: &Job) -> Result<Listed, Failure> {
    let names = names(job).await?;
    let reads = names.into_iter().map(|name| async move {
        let read = job.catalog.report(&name, job.deadline()).await;
        (name, read)
    });
    let mut reads = futures::stream::iter(reads.collect::<Vec<_>>()).buffered(AT_ONCE);
    let mut reports = Vec::new();
    while let Some((name, read)) = reads.next().await {
        match read {
            Ok(Some(report)) => reports.push(line(&name, &report)),
            // Swept since it was listed.
            Ok(None) => {}
            Err(error @ CatalogError::Report { .. }) => {
                reports.push(unreadable(&name, with_causes(&error)));
            }
            Err(error) => return Err(job.failed(error)),
        }
    }
    Ok(Listed {
        schema: SCHEMA,
        job: job.name.clone(),
        store: job.address.clone(),
        reports,
    })
}

pub(super) async fn report(
    job: &Job,
    which: &WhichReport,
    detail: Detail,
) -> Result<Told, Failure> {
    let name = match which {
        WhichReport::Named(name) => Some(name.clone()),
        WhichReport::Newest => names(job).await?.pop(),
    };
    let found = match &name {
        Some(name) => job.catalog.report(name, job.deadline()).await,
        None => Ok(None),
    };
    let found = found.map_err(|error| job.failed(error))?;
    let (Some(name), Some(told)) = (name, found) else {
        let what = format!("job {} has no such report in {}", job.name, job.address);
        return Err(Failure::new(ExitCode::NoSuchGeneration, what)
            .remedy("`reprieve reports` lists those that there are"));
    };
    Ok(Told {
        schema: SCHEMA,
        store: job.address.clone(),
        report: name.as_str().to_owned(),
        told,
        detail,
    })
}

async fn names(job: &Job) -> Result<Vec<Name>, Failure> {
    let names = job.catalog.reports(job.deadline()).await;
    names.map_err(|error| job.failed(error))
}

fn line(name: &Name, report: &Report) -> Line {
    Line {
        at_ms: Some(report.at_ms),
        age_ms: Some(host::wall_ms().saturating_sub(report.at_ms)),
        cause: Some(report.cause),
        times: Some(report.times),
        host: Some(report.host.clone()),
        worker: Some(report.worker.clone()),
        problem: report.problem.clone(),
        report: name.as_str().to_owned(),
    }
}

fn unreadable(name: &Name, problem: String) -> Line {
    Line {
        report: name.as_str().to_owned(),
        at_ms: None,
        age_ms: None,
        cause: None,
        times: None,
        host: None,
        worker: None,
        problem: Some(problem),
    }
}

impl Answer for Listed {
    fn human(&self) -> String {
        if self.reports.is_empty() {
            return format!("Job {} has no reports in {}.\n", self.job, self.store);
        }
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let cells = |line: &Line| {
            let cause = line.cause.map(|cause| match line.times {
                Some(times) if times > 1 => format!("{} ({times} times)", cause.as_str()),
                _ => cause.as_str().to_owned(),
            });
            vec![
                line.report.clone(),
                or_dash(line.age_ms.map(text::age)),
                or_dash(cause),
                or_dash(line.host.clone()),
                or_dash(line.problem.clone()),
            ]
        };
        let rows: Vec<Vec<String>> = self.reports.iter().map(cells).collect();
        text::table(&["REPORT", "AGE", "CAUSE", "HOST", "PROBLEM"], &rows)
    }
}

impl Answer for Told {
    fn human(&self) -> String {
        self.text(text::coloured)
    }
}

impl Told {
    /// For others than a terminal.
    pub(super) fn plain(&self) -> String {
        self.text(|text, _| text.to_owned())
    }

    fn text(&self, coloured: Paint) -> String {
        let report = &self.told;
        let log = report.criu_log.as_ref();
        if self.detail == Detail::Log {
            return log.map_or_else(String::new, |log| log.tail.clone());
        }
        let problem = match &report.problem {
            Some(problem) => coloured(problem, Colour::Bad),
            None => "none".to_owned(),
        };
        let mut said = text::fields(&[
            ("report", self.report.clone()),
            ("when", text_of(WallMs(report.at_ms))),
            ("job", report.job.clone()),
            ("worker", format!("{} on {}", report.worker, report.host)),
            ("version", report.version.clone()),
            (
                "cause",
                match report.times {
                    1 => report.cause.as_str().to_owned(),
                    times => format!("{}, {times} times in a row", report.cause.as_str()),
                },
            ),
            ("problem", problem),
        ]);
        said.push_str(&format!(
            "\n{}\n",
            coloured("What happened", Colour::Heading)
        ));
        for (_, line) in timeline(&report.history) {
            said.push_str(&line);
        }
        if let Some(log) = log {
            said.push_str(&end_of_log(log, coloured));
        }
        said
    }
}

fn end_of_log(log: &EngineLog, coloured: Paint) -> String {
    let lines: Vec<&str> = log.tail.lines().collect();
    let shown = &lines[lines.len().saturating_sub(LOG_LINES)..];
    let heading = format!(
        "The end of CRIU's log ({}; more of it with --criu-log)",
        text::bytes(log.bytes)
    );
    let mut said = format!("\n{}\n", coloured(&heading, Colour::Heading));
    for line in shown {
        let line = match line.contains("Error (") {
            true => coloured(line, Colour::Bad),
            false => (*line).to_owned(),
        };
        said.push_str(&format!("{line}\n"));
    }
    said
}

/// Everything in the order in which it happened, each as its lines of text.
fn timeline(history: &Value) -> Vec<(u64, String)> {
    let events = |of: &str| history[of].as_array().cloned().unwrap_or_default();
    let mut all: Vec<(u64, String)> = Vec::new();
    let mut add = |event: &Value, text: String| {
        let at_ms = event["at_ms"].as_u64().unwrap_or(0);
        all.push((at_ms, format!("{}  {text}\n", text_of(WallMs(at_ms)))));
    };
    for event in events("notices") {
        add(&event, notice(&event));
    }
    for event in events("decisions") {
        add(&event, decision(&event));
    }
    for event in events("checkpoints") {
        add(&event, format!("checkpoint {}", run(&event)));
    }
    for event in events("restores") {
        add(&event, format!("restore {}", run(&event)));
    }
    all.sort_by_key(|(at_ms, _)| *at_ms);
    all
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or("?").replace('_', " ")
}

/// Seconds, if there is a number of milliseconds.
fn seconds(value: &Value) -> Option<String> {
    let ms = value.as_u64()?;
    Some(format!("{}.{:03} s", ms / 1000, ms % 1000))
}

fn notice(event: &Value) -> String {
    let mut text = format!(
        "notice: {} from {}",
        word(&event["kind"]),
        word(&event["source"])
    );
    if let Some(left) = seconds(&event["left_ms"]) {
        text.push_str(&format!(", in {left}"));
    }
    if let Some(identity) = event["identity"].as_str() {
        text.push_str(&format!(" ({identity})"));
    }
    text
}

fn decision(event: &Value) -> String {
    let mut text = format!(
        "decision: {}, because {}",
        word(&event["act"]),
        word(&event["why"])
    );
    let facts = [("left_ms", "left"), ("needed_ms", "needed")];
    for (name, what) in facts {
        if let Some(time) = seconds(&event[name]) {
            text.push_str(&format!("; {time} {what}"));
        }
    }
    if let Some(changed) = event["changed_bytes"].as_u64() {
        text.push_str(&format!("; {} changed", text::bytes(changed)));
    }
    text
}

/// A checkpoint or a restore, with its steps on a line of their own.
fn run(event: &Value) -> String {
    let mut text = match event["outcome"].as_str() {
        Some(outcome) => outcome.replace('_', " "),
        None => "under way".to_owned(),
    };
    if let Some(by) = event["by"].as_str() {
        let budget = seconds(&event["budget_ms"]).unwrap_or_default();
        let then = word(&event["afterwards"]);
        text.push_str(&format!(" (by {by}, then {then}, {budget} for it)"));
    }
    if let Some(generation) = event["generation"].as_u64() {
        text.push_str(&format!(", generation {generation}"));
    }
    if let Some(problem) = event["problem"].as_str() {
        text.push_str(&format!(": {problem}"));
    }
    let steps = event["steps"].as_array().cloned().unwrap_or_default();
    let steps = steps.iter().map(|step| {
        let lasted = step["to_ms"].as_u64().zip(step["from_ms"].as_u64());
        let lasted = lasted.map(|(to, from)| Value::from(to.saturating_sub(from)));
        let lasted = lasted.as_ref().and_then(seconds);
        let cut = match step["whole"].as_bool() {
            Some(true) => "",
            _ => ", cut short",
        };
        format!(
            "{} {}{cut}",
            word(&step["step"]),
            lasted.unwrap_or_default()
        )
    });
    let steps: Vec<String> = steps.collect();
    if !steps.is_empty() {
        text.push_str(&format!("\n{:26}{}", "", steps.join("; ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_report_tells_what_happened_in_its_order() {
        let history = json!({
            "notices": [
                { "at_ms": 1000, "source": "signal", "kind": "terminate", "identity": null, "left_ms": 30000 },
            ],
            "decisions": [
                { "at_ms": 1001, "act": "checkpoint", "why": "the end is near", "left_ms": 30000, "needed_ms": null,
                  "changed_bytes": 4096 },
                { "at_ms": 4000, "act": "missed", "source": "signal", "why": "there was no time left" },
            ],
            "checkpoints": [
                { "at_ms": 1002, "by": "signal", "afterwards": "stop", "budget_ms": 27000, "outcome": "failed",
                  "problem": "the store is full", "steps": [
                    { "step": "prepare", "from_ms": 0, "to_ms": 12, "whole": true },
                    { "step": "dump", "from_ms": 12, "to_ms": 2512, "whole": false } ] },
            ],
            "restores": [ { "at_ms": 5, "outcome": "resumed", "generation": 4, "steps": [] } ],
        });
        let text: String = timeline(&history)
            .into_iter()
            .map(|(_, line)| line)
            .collect();
        assert_eq!(
            text,
            "1970-01-01T00:00:00.005Z  restore resumed, generation 4\n\
             1970-01-01T00:00:01.000Z  notice: terminate from signal, in 30.000 s\n\
             1970-01-01T00:00:01.001Z  decision: checkpoint, because the end is near; 30.000 s left; 4.00 KiB changed\n\
             1970-01-01T00:00:01.002Z  checkpoint failed (by signal, then stop, 27.000 s for it): the store is full\n\
             \x20                         prepare 0.012 s; dump 2.500 s, cut short\n\
             1970-01-01T00:00:04.000Z  decision: missed, because there was no time left\n"
        );
    }

    #[test]
    fn of_a_log_the_last_lines_are_shown() {
        let lines: Vec<String> = (0..100).map(|number| format!("line {number}")).collect();
        let log = EngineLog {
            bytes: 1 << 20,
            tail: lines.join("\n"),
        };
        let text = end_of_log(&log, |text, _| text.to_owned());
        assert_eq!(text.lines().count(), 2 + LOG_LINES);
        assert!(text.ends_with("line 98\nline 99\n"), "{text}");
        assert!(text.contains("1.00 MiB"), "{text}");
    }
}
