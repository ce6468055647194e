//! A message that asks something of a running job: from its text to a typed command, or to what is wrong with it.
//!
//! ```text
//! {"v":1,"id":"4b4f1f0e","command":"checkpoint","target":{"job":"train-42"},"afterwards":"continue","tag":"release-1.4"}
//! ```
//!
//! Messages come from elsewhere and are written by hand as often as by programs. They are therefore understood whole or
//! refused: a mistyped `deadlin` that is ignored would only be noticed at the eviction. All faults of a message are told
//! together. `docs/command.schema.json` says the same for other programs, and a test holds the two together.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use crate::notice::Goal;
use crate::notice::{Afterwards, Settled, WallMs};

/// The version this build speaks.
pub const VERSION: u64 = 1;

/// Bytes of a command's text. The longest that makes sense has about 1 KiB.
pub const SIZE_LIMIT: usize = 16 * 1024;

/// Characters of an id or of a name.
const NAME_LIMIT: usize = 128;

/// A wish, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Two messages with the same one are the same command, which is carried out once.
    pub id: String,
    pub target: Target,
    pub asks: Asks,
    /// When it was written.
    pub issued_at: Option<WallMs>,
    /// Not to be carried out later than this.
    pub not_after: Option<WallMs>,
}

/// Whom a command is for: all that is named has to be so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    pub job: Option<String>,
    /// The host name of the worker.
    pub worker: Option<String>,
    /// The machine, as its provider calls it.
    pub instance: Option<String>,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asks {
    Checkpoint {
        afterwards: Afterwards,
        /// The snapshot's tag, which also keeps it.
        tag: Option<String>,
        /// When it has to be durable.
        deadline: Option<WallMs>,
    },
    /// The app is told to end, without a checkpoint.
    Stop,
    Status,
    /// The job goes on from an older snapshot.
    Rollback(Goal),
}

/// Who reads commands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Me {
    pub job: String,
    /// The host name.
    pub worker: String,
    /// None where it is not known, for instance outside of a cloud.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
}

impl Asks {
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Checkpoint { .. } => "checkpoint",
            Self::Stop => "stop",
            Self::Status => "status",
            Self::Rollback(_) => "rollback",
        }
    }
}

impl Target {
    /// Why this is not for `me`; none if it is.
    pub fn other_than(&self, me: &Me) -> Option<String> {
        let differs = |what: &str, wanted: &Option<String>, own: Option<&str>| match (wanted, own) {
            (Some(wanted), Some(own)) if wanted != own => {
                Some(format!("it is for the {what} {wanted}, this is {own}"))
            }
            (Some(wanted), None) => Some(format!(
                "it is for the {what} {wanted}, and it is not known which this is"
            )),
            _ => None,
        };
        differs("job", &self.job, Some(&me.job))
            .or_else(|| differs("worker", &self.worker, Some(&me.worker)))
            .or_else(|| differs("instance", &self.instance, me.instance.as_deref()))
    }
}

impl Command {
    /// Why it comes too late to be carried out.
    pub fn too_late(&self, now: WallMs) -> Option<String> {
        let not_after = self.not_after.filter(|limit| *limit < now)?;
        Some(format!(
            "it was not to be carried out after {}, which was {} s ago",
            text_of(not_after),
            (now.0 - not_after.0) / 1000
        ))
    }

    /// Reads a message.
    ///
    /// # Errors
    /// Everything that is wrong with it, for whoever wrote it.
    pub fn parse(text: &str) -> Result<Self, NotACommand> {
        if text.len() > SIZE_LIMIT {
            return Err(NotACommand::TooLong(text.len()));
        }
        let value: Value =
            serde_json::from_str(text).map_err(|error| NotACommand::NotJson(error.to_string()))?;
        let Value::Object(fields) = value else {
            return Err(NotACommand::NotAnObject);
        };
        // First of all: another version may mean everything else differently.
        match fields.get("v").map(|version| (version, version.as_u64())) {
            Some((_, Some(VERSION))) => {}
            Some((version, _)) => return Err(NotACommand::OtherVersion(shown(version))),
            None => return Err(NotACommand::NoVersion),
        }
        let mut reader = Fields::of(fields, "");
        reader.fields.remove("v");
        let command = read(&mut reader);
        let faults = reader.finish();
        match (command, faults.is_empty()) {
            (Some(command), true) => Ok(command),
            (_, _) => Err(NotACommand::Faults(faults)),
        }
    }

    /// The message as [`Self::parse`] reads it.
    pub fn to_text(&self) -> String {
        let mut fields = Map::new();
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                fields.insert(name.to_owned(), value);
            }
        };
        put("v", Some(VERSION.into()));
        put("id", Some(self.id.clone().into()));
        put("command", Some(self.asks.as_str().into()));
        let target: Map<_, _> = [
            ("job", &self.target.job),
            ("worker", &self.target.worker),
            ("instance", &self.target.instance),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value.clone()?.into())))
        .collect();
        put("target", Some(target.into()));
        put("issued_at", self.issued_at.map(|at| text_of(at).into()));
        put("not_after", self.not_after.map(|at| text_of(at).into()));
        match &self.asks {
            Asks::Checkpoint {
                afterwards,
                tag,
                deadline,
            } => {
                let afterwards = match afterwards {
                    Afterwards::Stop => "stop",
                    Afterwards::Continue => "continue",
                };
                put("afterwards", Some(afterwards.into()));
                put("tag", tag.clone().map(Value::from));
                put("deadline", deadline.map(|at| text_of(at).into()));
            }
            Asks::Rollback(Goal::Generation(number)) => put("generation", Some((*number).into())),
            Asks::Rollback(Goal::Tag(tag)) => put("tag", Some(tag.clone().into())),
            Asks::Stop | Asks::Status => {}
        }
        Value::Object(fields).to_string()
    }
}

fn read(fields: &mut Fields) -> Option<Command> {
    let id = fields.required("id", |value| name(value, |c| c.is_ascii_graphic(), ID_RULE));
    let target = fields.required("target", |value| match value {
        Value::Object(_) => Ok(value),
        _ => Err("is no object like {\"job\":\"train-42\"}".to_owned()),
    });
    let target = match target {
        Some(Value::Object(named)) => fields.inside("target.", named, read_target),
        _ => None,
    };
    let issued_at = fields.optional("issued_at", time);
    let not_after = fields.optional("not_after", time);
    let asks = fields.required("command", |value| match value.as_str() {
        Some(known @ ("checkpoint" | "stop" | "status" | "rollback")) => Ok(known.to_owned()),
        _ => Err(format!(
            "is {}, not one of checkpoint, stop, status, rollback",
            shown(&value)
        )),
    });
    let asks = match asks.as_deref() {
        Some("checkpoint") => read_checkpoint(fields),
        Some("rollback") => read_rollback(fields),
        Some("stop") => Some(Asks::Stop),
        Some(_) => Some(Asks::Status),
        None => {
            // Which fields may be there is not known then.
            fields.fields.clear();
            None
        }
    };
    Some(Command {
        id: id?,
        target: target?,
        asks: asks?,
        issued_at,
        not_after,
    })
}

fn read_target(fields: &mut Fields) -> Option<Target> {
    let target = Target {
        job: fields.optional("job", anybody),
        worker: fields.optional("worker", anybody),
        instance: fields.optional("instance", anybody),
    };
    if target == Target::default() && fields.faults.is_empty() {
        fields.faults.push(
            "target names nobody; name the job, the worker or the instance that is meant"
                .to_owned(),
        );
    }
    Some(target)
}

fn read_checkpoint(fields: &mut Fields) -> Option<Asks> {
    let afterwards = fields.required("afterwards", |value| match value.as_str() {
        Some("stop") => Ok(Afterwards::Stop),
        Some("continue") => Ok(Afterwards::Continue),
        _ => Err(format!("is {}, not continue or stop", shown(&value))),
    });
    Some(Asks::Checkpoint {
        tag: fields.optional("tag", tag),
        deadline: fields.optional("deadline", time),
        afterwards: afterwards?,
    })
}

fn read_rollback(fields: &mut Fields) -> Option<Asks> {
    let generation = fields.optional("generation", |value| {
        value
            .as_u64()
            .filter(|number| *number > 0)
            .ok_or_else(|| format!("is {}, not a number from 1 on", shown(&value)))
    });
    let tag = fields.optional("tag", tag);
    match (generation, tag) {
        (Some(number), None) => Some(Asks::Rollback(Goal::Generation(number))),
        (None, Some(tag)) => Some(Asks::Rollback(Goal::Tag(tag))),
        (Some(_), Some(_)) => {
            fields
                .faults
                .push("generation and tag are both given; one of them says it".to_owned());
            None
        }
        (None, None) => {
            if fields.faults.is_empty() {
                fields.faults.push(
                    "a rollback needs the generation or the tag of the snapshot to go back to"
                        .to_owned(),
                );
            }
            None
        }
    }
}

const ID_RULE: &str = "1 to 128 printable ASCII characters without spaces";
const NAME_RULE: &str = "1 to 128 characters, none of them a control character";
const TAG_RULE: &str = "1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter; \"newest\" is taken";
const TAG_LIMIT: usize = 64;

fn name(value: Value, may_hold: fn(char) -> bool, rule: &str) -> Result<String, String> {
    match value {
        Value::String(text)
            if (1..=NAME_LIMIT).contains(&text.chars().count()) && text.chars().all(may_hold) =>
        {
            Ok(text)
        }
        value => Err(format!("is {}, not {rule}", shown(&value))),
    }
}

fn anybody(value: Value) -> Result<String, String> {
    name(value, |c| !c.is_control(), NAME_RULE)
}

fn tag(value: Value) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    // As `reprieve tag` has it: a number would be taken for a generation.
    let is_tag = |text: &str| {
        text.starts_with(|first: char| first.is_ascii_alphabetic())
            && text.len() <= TAG_LIMIT
            && text != "newest"
    };
    match value.as_str().is_some_and(is_tag) {
        false => Err(format!("is {}, not {TAG_RULE}", shown(&value))),
        true => name(value, plain, TAG_RULE),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "one shape for all readers")]
fn time(value: Value) -> Result<WallMs, String> {
    let read = value.as_str().and_then(wall);
    read.ok_or_else(|| {
        format!(
            "is {}, not a time like 2026-11-21T02:00:00Z (UTC)",
            shown(&value)
        )
    })
}

/// Reads a time as commands and EventBridge write it: RFC 3339, UTC, with a `Z`.
pub fn wall(text: &str) -> Option<WallMs> {
    // The library also takes a space for the T, which no schema does.
    if text.as_bytes().get(10) != Some(&b'T') {
        return None;
    }
    let time = humantime::parse_rfc3339(text).ok()?;
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok().map(WallMs)
}

/// The time as [`wall`] reads it.
pub fn text_of(time: WallMs) -> String {
    // 9999-12-31: what the notation can hold.
    let shown = Duration::from_millis(time.0.min(253_402_300_799_999));
    let time: SystemTime = UNIX_EPOCH + shown;
    humantime::format_rfc3339_millis(time).to_string()
}

/// Short, and on one line.
fn shown(value: &Value) -> String {
    const LIMIT: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// The fields of an object, each taken once; what is left over is a fault.
struct Fields {
    fields: Map<String, Value>,
    prefix: &'static str,
    faults: Vec<String>,
}

impl Fields {
    fn of(fields: Map<String, Value>, prefix: &'static str) -> Self {
        Self {
            fields,
            prefix,
            faults: Vec::new(),
        }
    }

    fn optional<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(Value) -> Result<T, String>,
    ) -> Option<T> {
        match read(self.fields.remove(name)?) {
            Ok(value) => Some(value),
            Err(fault) => {
                self.faults.push(format!("{}{name} {fault}", self.prefix));
                None
            }
        }
    }

    fn required<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(Value) -> Result<T, String>,
    ) -> Option<T> {
        if !self.fields.contains_key(name) {
            self.faults
                .push(format!("{}{name} is missing", self.prefix));
        }
        self.optional(name, read)
    }

    fn inside<T>(
        &mut self,
        prefix: &'static str,
        fields: Map<String, Value>,
        read: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<T> {
        let mut inner = Self::of(fields, prefix);
        let value = read(&mut inner);
        self.faults.extend(inner.finish());
        value
    }

    fn finish(self) -> Vec<String> {
        let mut faults = self.faults;
        faults.extend(self.fields.keys().map(|name| {
            format!(
                "{}{} is not known here",
                self.prefix,
                shown(&name.clone().into())
            )
        }));
        faults
    }
}

/// Why a text is no command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotACommand {
    #[error("it has {0} bytes, more than the {SIZE_LIMIT} of any command")]
    TooLong(usize),
    #[error("it is not JSON: {0}")]
    NotJson(String),
    #[error("it is JSON, but no object")]
    NotAnObject,
    #[error("it has no version; this program understands \"v\":{VERSION}")]
    NoVersion,
    #[error("it has version {0}, this program understands {VERSION}")]
    OtherVersion(String),
    #[error("{}", .0.join("; "))]
    Faults(Vec<String>),
}

/// The answer to a command, as it goes into a reply queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    pub v: u64,
    /// Of the command.
    pub id: String,
    pub command: String,
    /// Who answers.
    pub from: Me,
    #[serde(flatten)]
    pub settled: Settled,
    /// The command came again, and this is what was answered the first time.
    #[serde(default)]
    pub repeated: bool,
    /// For `status`: the answer as the control socket gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Value>,
}

impl Reply {
    pub fn new(command: &Command, from: Me, settled: Settled) -> Self {
        Self {
            v: VERSION,
            id: command.id.clone(),
            command: command.asks.as_str().to_owned(),
            from,
            settled,
            repeated: false,
            status: None,
        }
    }
}

#[cfg(test)]
#[path = "command/tests.rs"]
mod tests;
