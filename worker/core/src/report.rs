//! What a worker leaves in its store of a checkpoint or a resume that failed and of an eviction, for whoever asks afterwards why.
//!
//! Nothing is decided by a report, and a job is as safe without it. It is sealed like a manifest if the job has a key: it
//! names files and processes of the job.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::document::Stored;

/// The prefix of reports in a job's place.
pub const PREFIX: &str = "reports/";

/// So many stay; a sweep removes the oldest of the others.
pub const KEPT: usize = 20;

/// Letters of a report's name.
const NAME_LENGTH: usize = 26;

/// Why there is a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A checkpoint did not become durable.
    Failed,
    /// None was tried before an end that was announced.
    Missed,
    /// The job was stored and stopped; this is how that was decided.
    Evicted,
    /// A snapshot could not be resumed.
    NotResumed,
}

impl Cause {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Missed => "missed",
            Self::Evicted => "evicted",
            Self::NotResumed => "not_resumed",
        }
    }
}

/// The last of what CRIU said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineLog {
    /// Of the whole log.
    pub bytes: u64,
    pub tail: String,
}

/// One report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub job: String,
    pub worker: String,
    pub host: String,
    pub version: String,
    pub at_ms: u64,
    pub cause: Cause,
    /// How often it happened in a row.
    pub times: u32,
    /// What went wrong, if anything did.
    #[serde(default)]
    pub problem: Option<String>,
    /// Notices, decisions, checkpoints and restores, as the worker's `/status` has them.
    pub history: Value,
    #[serde(default)]
    pub criu_log: Option<EngineLog>,
}

impl Stored for Report {
    const KIND: &'static str = "report";
    const VERSION: u32 = 1;
}

/// A report's name in its job; later ones are greater.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

/// Why something is not the name of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name of a report has 26 of A-Z 0-9; \"newest\" is the newest one")]
pub struct NotAName;

impl FromStr for Name {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        let good = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit();
        let is_name = text.len() == NAME_LENGTH && text.bytes().all(good);
        is_name.then(|| Self(text.to_owned())).ok_or(NotAName)
    }
}

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Relative to the job's prefix.
    pub fn key(&self) -> String {
        format!("{PREFIX}{}", self.0)
    }

    pub fn of_key(key: &str) -> Option<Self> {
        key.strip_prefix(PREFIX)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document;

    #[test]
    fn a_report_comes_back_as_written() {
        let report = Report {
            job: "nightly".into(),
            worker: "w".into(),
            host: "h".into(),
            version: "0".into(),
            at_ms: 5,
            cause: Cause::Failed,
            times: 2,
            problem: Some("the store is full".into()),
            history: serde_json::json!({ "decisions": [] }),
            criu_log: Some(EngineLog {
                bytes: 10_000,
                tail: "Error (criu/x.c:1): no".into(),
            }),
        };
        let bytes = document::seal(Report::KIND, Report::VERSION, &report);
        let back = document::open(Report::KIND, Report::VERSION..=Report::VERSION, &bytes);
        assert_eq!(back, Ok(report));
    }

    #[test]
    fn only_what_a_worker_could_have_named_is_a_name() {
        let name = "01M7Y81N6F4VPA5D16QW77B56M";
        let key = format!("reports/{name}");
        let parsed: Name = name.parse().expect("it is one");
        assert_eq!(parsed.key(), key);
        assert_eq!(Name::of_key(&key), Some(parsed));
        for other in ["", "newest", "../HEAD", "01M7Y81N6F4VPA5D16QW77B56/"] {
            assert_eq!(other.parse::<Name>(), Err(NotAName), "{other:?}");
        }
    }
}
