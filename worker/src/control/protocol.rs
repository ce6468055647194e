//! The control protocol: one line of JSON as the request, one line of JSON as the answer, then the connection closes.
//!
//! ```text
//! {"v":1,"request":"checkpoint","leave_running":true,"timeout_ms":25000}
//! {"v":1,"answer":"checkpoint","outcome":"durable","generation":7,...}
//! ```
//!
//! A line is at most [`LINE_LIMIT`] bytes with its newline, on both sides. Requests with unknown fields or another
//! version are refused rather than half understood; answers may gain fields. Who may connect is decided by the socket's
//! permissions, what a request leads to by the supervisor.

use std::time::Duration;

use reprieve_core::checkup::Finding;
use reprieve_core::effort::Storing;
use reprieve_core::notice::{Afterwards, Fate, Settled, WallMs};
use reprieve_core::planner::Decision;
use reprieve_core::worker::Machine;
use reprieve_hooks::{Condition, Health};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clocks::Means;

/// The version this build speaks.
pub const VERSION: u64 = 1;
/// Bytes of a line with its newline.
pub const LINE_LIMIT: usize = 64 * 1024;
/// Bytes of a text about one source: there are eight sources with two texts each, and escaped a byte may take six.
const SOURCE_TEXT_LIMIT: usize = 256;
/// Obstacles in an answer, and bytes of a text about one that is not ours.
pub const OBSTACLES: usize = 8;
const OBSTACLE_TEXT_LIMIT: usize = 160;

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    Checkpoint(Checkpoint),
    Notice(Notice),
    Status(StatusQuery),
    Wait(Wait),
}

/// Take a checkpoint now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Whether the job goes on afterwards; otherwise it ends once the snapshot is durable.
    #[serde(default)]
    pub leave_running: bool,
    /// Without it the supervisor's own setting counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// Something is to happen to this machine, says somebody who knows more than the sources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Notice {
    pub fate: Fate,
    /// Without it the end may come at any moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_ms: Option<u64>,
    /// The same for the same event.
    pub identity: String,
    /// It will not happen after all.
    #[serde(default)]
    pub withdrawn: bool,
}

/// Say how things are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusQuery {}

/// Answer once this is so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    pub until: Until,
    /// Without it the answer comes when it comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// The job runs, from scratch or resumed.
    Running,
    /// The checkpoint that is under way, or else the next one, is durable.
    Checkpoint,
    /// Neither a start nor a checkpoint is under way.
    Over,
}

/// What came of the waiting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Waited {
    Reached {
        /// The state then, by its name in the status.
        state: String,
        /// The newest durable snapshot of the job.
        generation: Option<u64>,
    },
    /// The checkpoint that was waited for failed.
    Failed {
        reason: String,
    },
    TimedOut {},
    /// The supervisor ends, and it will not be so any more.
    Gone {},
    /// Too many wait already.
    Refused {
        reason: String,
    },
}

/// What the supervisor says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    Checkpoint(Outcome),
    Status(Box<Status>),
    /// The notice was taken in; what follows from it is told by the status.
    Noted {},
    Wait(Waited),
    /// The request was not understood.
    Invalid {
        reason: String,
    },
}

/// How a requested checkpoint ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    Durable(Durable),
    Failed {
        reason: String,
        remedy: String,
        job_runs_on: bool,
    },
    /// It was not even begun.
    Refused {
        reason: String,
    },
    /// It was given up at its deadline; the job runs on.
    TimedOut {
        #[serde(default)]
        reason: String,
    },
}

/// A snapshot that will survive this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durable {
    pub generation: u64,
    pub bytes_stored: u64,
    pub bytes_logical: u64,
    /// How long the job stood still.
    pub frozen_ms: u64,
    /// From the request to being durable.
    pub wall_ms: u64,
    pub left_running: bool,
}

/// How things are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The supervisor's version.
    pub version: String,
    /// The name of the state metric's label.
    pub state: String,
    pub job: String,
    /// The cloud's name of the machine, and what it is, when they are known.
    #[serde(default)]
    pub instance: Option<String>,
    #[serde(default)]
    pub machine: Option<Machine>,
    /// The store's address; none if nothing is checkpointed.
    pub store: Option<String>,
    /// The newest durable snapshot of the job.
    pub last_generation: Option<u64>,
    pub last_snapshot_age_ms: Option<u64>,
    pub app_pid: Option<u32>,
    pub checkpoints_durable: u64,
    pub checkpoints_failed: u64,
    /// Why the latest of those failed.
    pub last_failure: Option<String>,
    /// The generation the app was restored from; none if it started from scratch.
    pub resumed_from: Option<u64>,
    /// Counts the owners the job has had; none without a store.
    pub owner_epoch: Option<u64>,
    /// Whatever is listened to besides signals and the control socket.
    #[serde(default)]
    pub sources: Vec<SourceHealth>,
    /// What is planned, in words.
    #[serde(default)]
    pub plan: Option<String>,
    /// The decision behind it, with what it was made from.
    #[serde(default)]
    pub decision: Option<Decision>,
    /// How the newest checkpoint is stored, or was.
    #[serde(default)]
    pub storing: Option<Storing>,
    /// Until the announced end of the machine; none while none is announced, or without a time.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// What a checkpoint would take now, hardly ever more; none before the first one.
    #[serde(default)]
    pub to_safe_ms: Option<u64>,
    /// Whether a checkpoint could be taken now, as far as is known.
    #[serde(default)]
    pub protected: bool,
    /// If not: the verdict of the metric `reprieve_checkpointable`.
    #[serde(default)]
    pub unprotected_because: Option<String>,
    /// What was found in the job's processes that a checkpoint would fail at, the first kind first; at most eight.
    #[serde(default)]
    pub obstacles: Vec<Obstacle>,
    /// How many there are.
    #[serde(default)]
    pub obstacles_total: usize,
    /// The rehearsal of a checkpoint; none before one has ended.
    #[serde(default)]
    pub rehearsal: Option<Rehearsal>,
    /// By what the job's clocks go on at a resume; none before its processes were looked at.
    #[serde(default)]
    pub clocks: Option<JobClocks>,
    pub uptime_ms: u64,
}

/// By what CLOCK_MONOTONIC and CLOCK_BOOTTIME of a job go on at a resume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobClocks {
    /// `namespace`, `library` or `nothing`.
    pub by: String,
    /// The processes that go by the host's all the same, each with the reason; at most as many as a manifest names. With `nothing` all
    /// do, and none is named.
    pub by_host: Vec<String>,
}

impl JobClocks {
    pub(crate) fn of(means: &Means) -> Self {
        let (by, by_host) = match means {
            Means::Namespace => ("namespace", &[][..]),
            Means::Library(others) => ("library", &others[..]),
            Means::Nothing => ("nothing", &[][..]),
        };
        Self {
            by: by.to_owned(),
            by_host: by_host.to_vec(),
        }
    }

    /// As a person reads it.
    pub(crate) fn sentence(&self) -> String {
        match (self.by.as_str(), &self.by_host[..]) {
            ("namespace", _) => "go on at a resume, by a time namespace".to_owned(),
            ("library", []) => "go on at a resume, by a library that every process has".to_owned(),
            ("library", others) => format!(
                "processes go by the host's clocks: {}",
                others.join(", ")
            ),
            _ => "no process has the library with which its clocks would go on at a resume; they go by the host's"
                .to_owned(),
        }
    }
}

/// How a checkpoint that was thrown away went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsal {
    /// The name of the metric's label.
    pub outcome: String,
    /// How long the job stood still, and how long it took in all; none unless it worked.
    pub frozen_ms: Option<u64>,
    pub wall_ms: Option<u64>,
    /// What a first checkpoint would have read.
    pub memory_bytes: Option<u64>,
    pub files_bytes: Option<u64>,
    /// Why it failed, and what to do.
    pub reason: Option<String>,
    pub remedy: Option<String>,
}

/// Something that CRIU cannot store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Obstacle {
    /// The name of the metric's label.
    pub reason: String,
    pub pid: i32,
    /// The kernel's name of the process.
    pub command: String,
    /// The descriptor or mapping that is meant; empty if it is the process itself.
    pub what: String,
    pub cause: String,
    pub remedy: String,
}

impl Obstacle {
    pub fn of(finding: &Finding) -> Self {
        let short = |text: &str| text[..text.floor_char_boundary(OBSTACLE_TEXT_LIMIT)].to_owned();
        Self {
            reason: finding.reason.as_str().to_owned(),
            pid: finding.pid,
            command: short(&finding.command),
            what: short(&finding.what),
            cause: finding.reason.cause().to_owned(),
            remedy: finding.reason.remedy().to_owned(),
        }
    }

    /// As one line for people, without the remedy.
    pub fn sentence(&self) -> String {
        let what = match self.what.as_str() {
            "" => String::new(),
            what => format!(", {what}"),
        };
        format!("{} ({}){what}: {}", self.pid, self.command, self.cause)
    }
}

impl Status {
    /// The answer to a question for it, as an object.
    pub fn to_json(&self) -> Value {
        let line = Answer::Status(Box::new(self.clone())).to_line();
        serde_json::from_str(&line).expect("our own line")
    }

    /// The app runs, and its work is not lost when the machine goes.
    pub fn is_ready(&self) -> bool {
        self.protected && matches!(self.state.as_str(), "running" | "checkpointing")
    }

    /// How much work is lost if the machine goes now.
    pub fn at_risk(&self) -> Duration {
        let ms = match self.state.as_str() {
            "running" | "checkpointing" => self.last_snapshot_age_ms.unwrap_or(self.uptime_ms),
            _ => 0,
        };
        Duration::from_millis(ms)
    }
}

/// How a source of notices is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceHealth {
    /// The name of the metrics' label.
    pub source: String,
    /// `starting`, `working`, `degraded` or `absent`.
    pub condition: String,
    /// Why it is degraded or absent.
    pub reason: Option<String>,
    pub remedy: Option<String>,
    /// Since it was last seen to work.
    pub last_success_age_ms: Option<u64>,
    /// Tries in a row that failed.
    pub failures: u32,
    /// Times that it broke off, by a bug in it, and was begun again.
    #[serde(default)]
    pub restarts: u64,
}

impl SourceHealth {
    pub fn of(health: Health, now: WallMs) -> Self {
        let (condition, reason, remedy) = match health.condition {
            Condition::Starting => ("starting", None, None),
            Condition::Working => ("working", None, None),
            Condition::Degraded { reason, remedy } => ("degraded", Some(reason), Some(remedy)),
            Condition::Absent { reason } => ("absent", Some(reason), None),
        };
        Self {
            source: health.source.as_str().to_owned(),
            condition: condition.to_owned(),
            reason,
            remedy,
            last_success_age_ms: health.last_success.map(|at| now.0.saturating_sub(at.0)),
            failures: health.failures,
            restarts: health.counts.restarts,
        }
    }

    fn shortened(&self) -> Self {
        let short = |text: &String| text[..text.floor_char_boundary(SOURCE_TEXT_LIMIT)].to_owned();
        Self {
            reason: self.reason.as_ref().map(short),
            remedy: self.remedy.as_ref().map(short),
            ..self.clone()
        }
    }
}

impl From<Outcome> for Settled {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Durable(durable) => Self::Durable {
                generation: durable.generation,
                afterwards: match durable.left_running {
                    true => Afterwards::Continue,
                    false => Afterwards::Stop,
                },
            },
            Outcome::Failed { reason, .. } => Self::Failed { reason },
            Outcome::Refused { reason } => Self::Refused { reason },
            Outcome::TimedOut { reason } => Self::Failed { reason },
        }
    }
}

/// Why a line is not a request or an answer.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    #[error("the line has more than {LINE_LIMIT} bytes")]
    TooLong,
    #[error("the line is not JSON")]
    NotJson(#[source] serde_json::Error),
    #[error("the line has no version \"v\"")]
    NoVersion,
    #[error("the other side speaks version {0}, this one {VERSION}")]
    OtherVersion(u64),
    #[error("the line is not of this protocol")]
    NotUnderstood(#[source] serde_json::Error),
}

impl Request {
    /// The line with its newline.
    pub fn to_line(&self) -> String {
        to_line(self)
    }

    /// Reads a line with or without its newline.
    pub fn parse(line: &[u8]) -> Result<Self, ProtocolError> {
        parse(line)
    }
}

impl Answer {
    /// The line with its newline. Reasons that would burst the limit are cut.
    pub fn to_line(&self) -> String {
        to_line(&self.with_short_texts())
    }

    /// Reads a line with or without its newline.
    pub fn parse(line: &[u8]) -> Result<Self, ProtocolError> {
        parse(line)
    }

    /// Texts come from errors of others and have no natural limit. Escaped, a character takes at most six bytes per byte,
    /// and no answer holds more than two such texts.
    fn with_short_texts(&self) -> Self {
        const TEXT_LIMIT: usize = 4096;
        let short = |text: &String| text[..text.floor_char_boundary(TEXT_LIMIT)].to_string();
        match self {
            Self::Checkpoint(Outcome::Failed {
                reason,
                remedy,
                job_runs_on,
            }) => Self::Checkpoint(Outcome::Failed {
                reason: short(reason),
                remedy: short(remedy),
                job_runs_on: *job_runs_on,
            }),
            Self::Checkpoint(Outcome::Refused { reason }) => Self::Checkpoint(Outcome::Refused {
                reason: short(reason),
            }),
            Self::Checkpoint(outcome) => Self::Checkpoint(outcome.clone()),
            Self::Status(status) => Self::Status(Box::new(Status {
                last_failure: status.last_failure.as_ref().map(short),
                store: status.store.as_ref().map(short),
                sources: status.sources.iter().map(SourceHealth::shortened).collect(),
                ..Status::clone(status)
            })),
            Self::Noted {} => Self::Noted {},
            Self::Wait(Waited::Failed { reason }) => Self::Wait(Waited::Failed {
                reason: short(reason),
            }),
            Self::Wait(waited) => Self::Wait(waited.clone()),
            Self::Invalid { reason } => Self::Invalid {
                reason: short(reason),
            },
        }
    }
}

fn to_line<T: Serialize>(body: &T) -> String {
    #[derive(Serialize)]
    struct Versioned<'a, T> {
        v: u64,
        #[serde(flatten)]
        body: &'a T,
    }
    let mut line = serde_json::to_string(&Versioned { v: VERSION, body })
        .expect("strings, numbers and options are JSON");
    line.push('\n');
    line
}

fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T, ProtocolError> {
    if line.len() > LINE_LIMIT {
        return Err(ProtocolError::TooLong);
    }
    let mut value: Value = serde_json::from_slice(line).map_err(ProtocolError::NotJson)?;
    let version = value
        .as_object_mut()
        .and_then(|fields| fields.remove("v"))
        .and_then(|version| version.as_u64());
    match version {
        Some(VERSION) => serde_json::from_value(value).map_err(ProtocolError::NotUnderstood),
        Some(other) => Err(ProtocolError::OtherVersion(other)),
        None => Err(ProtocolError::NoVersion),
    }
}

#[cfg(test)]
mod tests {
    use reprieve_core::checkup::Reason;

    use super::*;

    fn status() -> Status {
        Status {
            version: "0.1.0".into(),
            state: "running".into(),
            job: "nightly".into(),
            instance: None,
            machine: None,
            store: None,
            last_generation: Some(3),
            last_snapshot_age_ms: Some(61_000),
            app_pid: Some(17),
            checkpoints_durable: 2,
            checkpoints_failed: 1,
            last_failure: Some("the store is full".into()),
            resumed_from: None,
            owner_epoch: None,
            sources: vec![SourceHealth {
                source: "sqs".into(),
                condition: "working".into(),
                reason: None,
                remedy: None,
                last_success_age_ms: Some(2),
                failures: 0,
                restarts: 0,
            }],
            plan: None,
            decision: None,
            storing: None,
            deadline_ms: None,
            to_safe_ms: Some(700),
            protected: true,
            unprotected_because: None,
            obstacles: Vec::new(),
            obstacles_total: 0,
            rehearsal: None,
            clocks: None,
            uptime_ms: 1,
        }
    }

    /// The wire format is an interface: other programs may speak it.
    #[test]
    fn lines_are_stored() {
        let requests = [
            (
                Request::Checkpoint(Checkpoint {
                    leave_running: true,
                    timeout_ms: Some(25_000),
                }),
                r#"{"v":1,"request":"checkpoint","leave_running":true,"timeout_ms":25000}"#,
            ),
            (
                Request::Notice(Notice {
                    fate: Fate::Terminate,
                    in_ms: Some(120_000),
                    identity: "reclaim-7".into(),
                    withdrawn: false,
                }),
                r#"{"v":1,"request":"notice","fate":"terminate","in_ms":120000,"identity":"reclaim-7","withdrawn":false}"#,
            ),
            (
                Request::Status(StatusQuery {}),
                r#"{"v":1,"request":"status"}"#,
            ),
            (
                Request::Wait(Wait {
                    until: Until::Running,
                    timeout_ms: Some(5),
                }),
                r#"{"v":1,"request":"wait","until":"running","timeout_ms":5}"#,
            ),
        ];
        for (request, line) in requests {
            assert_eq!(request.to_line(), format!("{line}\n"));
            assert_eq!(
                Request::parse(line.as_bytes()).expect("our own line"),
                request
            );
        }
        let answers = [
            (
                Answer::Checkpoint(Outcome::Durable(Durable {
                    generation: 7,
                    bytes_stored: 10,
                    bytes_logical: 40,
                    frozen_ms: 5,
                    wall_ms: 9,
                    left_running: false,
                })),
                r#"{"v":1,"answer":"checkpoint","outcome":"durable","generation":7,"bytes_stored":10,"bytes_logical":40,"frozen_ms":5,"wall_ms":9,"left_running":false}"#,
            ),
            (
                Answer::Checkpoint(Outcome::Failed {
                    reason: "r".into(),
                    remedy: "m".into(),
                    job_runs_on: true,
                }),
                r#"{"v":1,"answer":"checkpoint","outcome":"failed","reason":"r","remedy":"m","job_runs_on":true}"#,
            ),
            (
                Answer::Checkpoint(Outcome::Refused { reason: "r".into() }),
                r#"{"v":1,"answer":"checkpoint","outcome":"refused","reason":"r"}"#,
            ),
            (
                Answer::Checkpoint(Outcome::TimedOut { reason: "r".into() }),
                r#"{"v":1,"answer":"checkpoint","outcome":"timed_out","reason":"r"}"#,
            ),
            (Answer::Noted {}, r#"{"v":1,"answer":"noted"}"#),
            (
                Answer::Wait(Waited::Reached {
                    state: "running".into(),
                    generation: Some(3),
                }),
                r#"{"v":1,"answer":"wait","outcome":"reached","state":"running","generation":3}"#,
            ),
            (
                Answer::Wait(Waited::TimedOut {}),
                r#"{"v":1,"answer":"wait","outcome":"timed_out"}"#,
            ),
            (
                Answer::Invalid { reason: "r".into() },
                r#"{"v":1,"answer":"invalid","reason":"r"}"#,
            ),
            (
                Answer::Status(Box::new(status())),
                r#"{"v":1,"answer":"status","version":"0.1.0","state":"running","job":"nightly","instance":null,"machine":null,"store":null,"last_generation":3,"last_snapshot_age_ms":61000,"app_pid":17,"checkpoints_durable":2,"checkpoints_failed":1,"last_failure":"the store is full","resumed_from":null,"owner_epoch":null,"sources":[{"source":"sqs","condition":"working","reason":null,"remedy":null,"last_success_age_ms":2,"failures":0,"restarts":0}],"plan":null,"decision":null,"storing":null,"deadline_ms":null,"to_safe_ms":700,"protected":true,"unprotected_because":null,"obstacles":[],"obstacles_total":0,"rehearsal":null,"clocks":null,"uptime_ms":1}"#,
            ),
        ];
        for (answer, line) in answers {
            assert_eq!(answer.to_line(), format!("{line}\n"));
            assert_eq!(
                Answer::parse(line.as_bytes()).expect("our own line"),
                answer
            );
        }
    }

    #[test]
    fn requests_are_understood_whole_or_refused() {
        let refused = [
            ("", "the line is not JSON"),
            ("checkpoint", "the line is not JSON"),
            ("[1]", "the line has no version \"v\""),
            (r#"{"request":"status"}"#, "the line has no version \"v\""),
            (
                r#"{"v":"1","request":"status"}"#,
                "the line has no version \"v\"",
            ),
            (
                r#"{"v":2,"request":"status"}"#,
                "the other side speaks version 2, this one 1",
            ),
            (r#"{"v":1}"#, "the line is not of this protocol"),
            (
                r#"{"v":1,"request":"restore"}"#,
                "the line is not of this protocol",
            ),
            (
                r#"{"v":1,"request":"status","deep":true}"#,
                "the line is not of this protocol",
            ),
            (
                r#"{"v":1,"request":"checkpoint","leave-running":true}"#,
                "the line is not of this protocol",
            ),
            (
                r#"{"v":1,"request":"checkpoint","timeout_ms":-1}"#,
                "the line is not of this protocol",
            ),
        ];
        for (line, problem) in refused {
            let error = Request::parse(line.as_bytes()).expect_err(line);
            assert_eq!(error.to_string(), problem, "{line}");
        }
        assert_eq!(
            Request::parse(b"{\"v\":1,\"request\":\"checkpoint\"}\n")
                .expect("the rest has defaults"),
            Request::Checkpoint(Checkpoint {
                leave_running: false,
                timeout_ms: None
            })
        );
    }

    #[test]
    fn answers_may_gain_fields() {
        let line = r#"{"v":1,"answer":"checkpoint","outcome":"timed_out","weather":"fine"}"#;
        assert_eq!(
            Answer::parse(line.as_bytes()).expect("a later version's answer"),
            Answer::Checkpoint(Outcome::TimedOut {
                reason: String::new()
            })
        );
    }

    #[test]
    fn lines_keep_the_limit() {
        // Control characters take six bytes each.
        let long = "\u{1}".repeat(LINE_LIMIT);
        let answer = Answer::Checkpoint(Outcome::Failed {
            reason: long.clone(),
            remedy: long.clone(),
            job_runs_on: true,
        });
        assert!(answer.to_line().len() <= LINE_LIMIT);
        let finding = Finding {
            reason: Reason::IoUring,
            pid: 301,
            command: "\u{1}".repeat(15),
            what: "\u{1}".repeat(LINE_LIMIT),
        };
        let answer = Answer::Status(Box::new(Status {
            last_failure: Some("ü".repeat(LINE_LIMIT)),
            obstacles: vec![Obstacle::of(&finding); OBSTACLES],
            ..status()
        }));
        assert!(answer.to_line().len() <= LINE_LIMIT);
        assert!(matches!(
            Request::parse(long.as_bytes()),
            Err(ProtocolError::NotJson(_))
        ));
        let longer = format!("{long} ");
        assert!(matches!(
            Request::parse(longer.as_bytes()),
            Err(ProtocolError::TooLong)
        ));
    }
}
