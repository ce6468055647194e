//! What a person reads when something fails, and the number the process ends with.
//!
//! [`ExitCode`] is the one list of our own exit codes; the app's own code, or 128 plus the signal that ended it, passes
//! through and is translated by the supervisor. A [`Failure`] says what failed, the chain of causes, the remedy and the
//! exit code; its printed form is an interface and stored in a test. Nothing here can end in 0, and printing never
//! blocks for longer than [`PRINT_LIMIT`], because a stderr that nobody reads must not keep a container alive.

use std::error::Error;
use std::fmt;
use std::io::Write;
use std::sync::mpsc;
use std::time::Duration;

/// How long printing the last words may take. A full pipe is given up after this; the exit code still tells.
pub const PRINT_LIMIT: Duration = Duration::from_secs(2);

/// Reprieve's own exit codes. They avoid the ranges that shells, `sysexits.h` users and container runtimes assign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExitCode {
    Checkpointed,
    NotExecutable,
    NotFound,
    FailedBeforeReady,
    NoValidSnapshot,
    Fenced,
    StoreUnreachable,
    SettingsInvalid,
    StoreUnfit,
    DamagedSnapshot,
    NoSuchGeneration,
    NotDone,
    Internal,
    CheckpointFailed,
    NoSupervisor,
    Refused,
    TimedOut,
    Warnings,
    Unfit,
    KeyRefused,
}

impl ExitCode {
    /// Every code, in ascending order.
    pub const ALL: &[Self] = &[
        Self::Checkpointed,
        Self::NotExecutable,
        Self::NotFound,
        Self::FailedBeforeReady,
        Self::NoValidSnapshot,
        Self::Fenced,
        Self::StoreUnreachable,
        Self::SettingsInvalid,
        Self::StoreUnfit,
        Self::DamagedSnapshot,
        Self::NoSuchGeneration,
        Self::NotDone,
        Self::Internal,
        Self::CheckpointFailed,
        Self::NoSupervisor,
        Self::Refused,
        Self::TimedOut,
        Self::Warnings,
        Self::Unfit,
        Self::KeyRefused,
    ];

    /// The number, for [`ExitCode::Checkpointed`] the default of the setting `checkpointed-exit-code`.
    pub fn number(self) -> u8 {
        match self {
            Self::Checkpointed => 75,
            Self::NotExecutable => 126,
            Self::NotFound => 127,
            Self::FailedBeforeReady => 170,
            Self::NoValidSnapshot => 171,
            Self::Fenced => 172,
            Self::StoreUnreachable => 173,
            Self::SettingsInvalid => 174,
            Self::StoreUnfit => 175,
            Self::DamagedSnapshot => 176,
            Self::NoSuchGeneration => 177,
            Self::NotDone => 178,
            Self::Internal => 179,
            Self::CheckpointFailed => 180,
            Self::NoSupervisor => 181,
            Self::Refused => 182,
            Self::TimedOut => 183,
            Self::Warnings => 184,
            Self::Unfit => 185,
            Self::KeyRefused => 186,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Checkpointed => "checkpointed",
            Self::NotExecutable => "not executable",
            Self::NotFound => "not found",
            Self::FailedBeforeReady => "failed before ready",
            Self::NoValidSnapshot => "no valid snapshot",
            Self::Fenced => "fenced",
            Self::StoreUnreachable => "store unreachable",
            Self::SettingsInvalid => "settings invalid",
            Self::StoreUnfit => "store unfit",
            Self::DamagedSnapshot => "damaged snapshot",
            Self::NoSuchGeneration => "no such generation",
            Self::NotDone => "not done",
            Self::Internal => "internal",
            Self::CheckpointFailed => "checkpoint failed",
            Self::NoSupervisor => "no supervisor",
            Self::Refused => "refused",
            Self::TimedOut => "timed out",
            Self::Warnings => "warnings",
            Self::Unfit => "unfit",
            Self::KeyRefused => "key refused",
        }
    }

    /// Which commands end with it.
    pub fn commands(self) -> &'static str {
        match self {
            Self::Checkpointed
            | Self::NotExecutable
            | Self::NotFound
            | Self::FailedBeforeReady
            | Self::NoValidSnapshot
            | Self::Fenced
            | Self::StoreUnfit => "run",
            Self::StoreUnreachable => {
                "run, snapshots, show, inspect, diff, verify, extract, tag, untag, pin, unpin, prune, clone, reports, ps, send"
            }
            // `send` looks for a worker and opens nothing of the job.
            Self::KeyRefused => {
                "run, snapshots, show, inspect, diff, verify, extract, tag, untag, pin, unpin, prune, clone, reports, ps"
            }
            Self::DamagedSnapshot => "show, inspect, diff, verify, extract, prune, clone",
            Self::NoSuchGeneration => {
                "run, show, inspect, diff, verify, extract, tag, untag, pin, unpin, prune, clone, reports"
            }
            Self::NotDone => {
                "snapshots, show, inspect, diff, verify, extract, tag, untag, pin, unpin, prune, clone, reports, ps, send"
            }
            Self::SettingsInvalid | Self::Internal => "all",
            Self::CheckpointFailed | Self::TimedOut => "checkpoint, wait, send",
            Self::NoSupervisor => "checkpoint, status, wait",
            Self::Refused => "checkpoint, status, wait, send",
            Self::Warnings | Self::Unfit => "doctor",
        }
    }

    pub fn meaning(self) -> &'static str {
        match self {
            Self::Checkpointed => {
                "The job was checkpointed and stopped; run the same container again and it resumes. \
                 Set `checkpointed-exit-code` to end with another number."
            }
            Self::NotExecutable => "The app was found but cannot be executed, as in a shell.",
            Self::NotFound => "The app was not found, as in a shell.",
            Self::FailedBeforeReady => {
                "Reprieve could not set itself up (a directory, a socket, the kernel's or CRIU's requirements). \
                 The app was not started."
            }
            Self::NoValidSnapshot => {
                "There is a snapshot of this job but none could be restored, and `on-no-valid-snapshot` forbids to \
                 start from scratch. The app was not started; every snapshot is still there."
            }
            Self::Fenced => {
                "Another worker owns this job now; our copy was stopped so that the job does not run twice. \
                 Do not restart this one."
            }
            Self::StoreUnreachable => {
                "The store refused or did not answer at boot (no such bucket, access denied, no connection), so \
                 nobody can know whether there is a snapshot. The app was not started. A store without a snapshot of \
                 this job is not this case: the job then starts from scratch. For the other commands: the store did not \
                 do as asked."
            }
            Self::SettingsInvalid => {
                "A flag, an environment variable or the settings file is not valid. Nothing was started."
            }
            Self::StoreUnfit => {
                "The store does not keep the conditions of conditional writes, so that two workers could run the same job. \
                 The app was not started. Use another store, or set `store-self-test` to `off` where nothing else can run \
                 the job."
            }
            Self::DamagedSnapshot => {
                "A snapshot is not as it was stored; the message says what is wrong with it. `prune` lets nothing go \
                 while it cannot read what a snapshot needs."
            }
            Self::NoSuchGeneration => {
                "The job has no snapshot of this number or tag, or none at all. For `run` it is the one that `--from` names: \
                 nothing was started."
            }
            Self::NotDone => {
                "The command could not do what was asked, and the message says why. The job and its snapshots are as \
                 they were, except for what the message names."
            }
            Self::Internal => {
                "A bug in Reprieve: it panicked, or something failed that has no other code. Please report the message."
            }
            Self::CheckpointFailed => {
                "The requested checkpoint, or the one that was waited for, failed; the job runs on."
            }
            Self::NoSupervisor => {
                "The control socket cannot be reached, what answered is not a Reprieve of this version, or the supervisor ended \
                 before what was waited for."
            }
            Self::Refused => {
                "The supervisor refused the request and said why; nothing was changed."
            }
            Self::TimedOut => {
                "The requested checkpoint was not durable in time. It was given up or its end is not known; \
                 `reprieve status` tells. For `wait`: it was not so in time."
            }
            Self::KeyRefused => {
                "The keys that are set do not open what is stored of the job, there is none and it is sealed, there is one \
                 and it is not, KMS did not give it, or the job's head does not carry the seal of its key. Nothing was \
                 started and nothing was changed: a job never begins anew because a key is wrong."
            }
            Self::Warnings => {
                "Checkpoints work here; something about the place should be looked at."
            }
            Self::Unfit => {
                "Jobs cannot be checkpointed in this container as it is; each reason comes with a remedy."
            }
        }
    }
}

impl fmt::Display for ExitCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.number(), self.name())
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.number())
    }
}

/// The text of docs/exit-codes.md.
pub fn exit_codes_document() -> String {
    let mut text = String::from(
        "# Exit codes\n\n\
         Generated from the list in `worker/src/failure.rs`; do not edit.\n\n\
         While the app decides, its own end passes through: its exit code as it is, or 128 plus the number of the \
         signal that ended it. Every other end is one of these. No failure ends in 0.\n\n\
         | Code | Name | Commands | Meaning |\n|---:|---|---|---|\n",
    );
    for code in ExitCode::ALL {
        text.push_str(&format!(
            "| {} | {} | {} | {} |\n",
            code.number(),
            code.name(),
            code.commands(),
            code.meaning()
        ));
    }
    text.push_str("| 128 + n | | run | The app was ended by signal n. |\n");
    text
}

/// What failed, why, what to do about it, and the exit code it leads to.
#[derive(Debug)]
pub struct Failure {
    what: String,
    details: Vec<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
    remedy: Option<String>,
    code: ExitCode,
}

impl Failure {
    /// `what` completes the sentence "reprieve: ...", without a full stop.
    pub fn new(code: ExitCode, what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            details: Vec::new(),
            source: None,
            remedy: None,
            code,
        }
    }

    /// The cause; its own causes are printed below it.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// One more thing that is wrong, for failures with several equal reasons. Further lines are indented.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.details.push(detail.into());
        self
    }

    /// What the reader can do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    pub fn code(&self) -> ExitCode {
        self.code
    }

    /// What failed and why, for an answer that has one line.
    pub fn on_one_line(&self) -> String {
        let mut text = self.what.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        if let Some(remedy) = &self.remedy {
            text = format!("{text}; {remedy}");
        }
        text
    }

    /// Prints the failure to stderr within [`PRINT_LIMIT`].
    pub fn print(&self) {
        print_to_stderr(self.to_string());
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "reprieve: {}", self.what)?;
        for detail in &self.details {
            writeln!(f, "  - {}", detail.replace('\n', "\n    "))?;
        }
        let mut cause = self.source();
        while let Some(error) = cause {
            writeln!(
                f,
                "  because: {}",
                error.to_string().replace('\n', "\n    ")
            )?;
            cause = error.source();
        }
        if let Some(remedy) = &self.remedy {
            writeln!(f, "  remedy: {}", remedy.replace('\n', "\n    "))?;
        }
        writeln!(f, "  exit code: {}", self.code)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.source {
            Some(source) => Some(source.as_ref()),
            None => None,
        }
    }
}

/// From now on a panic is logged, with the place where it happened, and nothing else: the app of a worker in which one
/// task has a bug must not end for it. Whoever waits for the task treats it as failed.
pub fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(%panic, "a bug in Reprieve; please report it with this message and the lines before it");
    }));
}

/// Runs `what` and turns a panic that nobody caught into a failure with [`ExitCode::Internal`].
pub fn catch<T>(what: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    // Nothing that the closure touched is used after a panic: the process ends.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(what)).unwrap_or_else(|panic| {
        Err(
            Failure::new(ExitCode::Internal, panic_text(&*panic)).remedy(
                "this is a bug in Reprieve; please report it with this message and the lines above",
            ),
        )
    })
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "it panicked".to_owned())
}

/// Writes to stderr from a thread of its own and waits for it no longer than [`PRINT_LIMIT`].
fn print_to_stderr(text: String) {
    let (done, wait) = mpsc::channel();
    let spawned = std::thread::Builder::new()
        .name("last-words".into())
        .spawn(move || {
            // Nobody is left to be told that stderr is closed.
            let _ = std::io::stderr().write_all(text.as_bytes());
            let _ = done.send(());
        });
    if spawned.is_ok() {
        // Timed out: whoever should read stderr does not; the exit code has to do.
        let _ = wait.recv_timeout(PRINT_LIMIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[derive(Debug, thiserror::Error)]
    #[error("get s3://b/p/head: AccessDenied")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn printed_form() {
        let inner = std::io::Error::other("status 403\nrequest id 7");
        let failure = Failure::new(
            ExitCode::StoreUnreachable,
            "the store s3://b/p cannot be read",
        )
        .caused_by(Outer(inner))
        .remedy("allow s3:GetObject on arn:aws:s3:::b/p/* to this machine's role");
        assert_eq!(
            failure.to_string(),
            "reprieve: the store s3://b/p cannot be read\n  \
               because: get s3://b/p/head: AccessDenied\n  \
               because: status 403\n    \
                 request id 7\n  \
               remedy: allow s3:GetObject on arn:aws:s3:::b/p/* to this machine's role\n  \
               exit code: 173 (store unreachable)\n"
        );
    }

    #[test]
    fn printed_form_with_several_reasons() {
        let failure = Failure::new(ExitCode::NoValidSnapshot, "no snapshot can be restored")
            .detail("generation 7: made by CRIU 5\nthis is CRIU 4")
            .detail("generation 6: a part is missing");
        assert_eq!(
            failure.to_string(),
            "reprieve: no snapshot can be restored\n  \
               - generation 7: made by CRIU 5\n    \
                 this is CRIU 4\n  \
               - generation 6: a part is missing\n  \
               exit code: 171 (no valid snapshot)\n"
        );
    }

    #[test]
    fn codes_are_distinct_and_never_success() {
        let numbers: HashSet<u8> = ExitCode::ALL.iter().map(|code| code.number()).collect();
        let names: HashSet<&str> = ExitCode::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(numbers.len(), ExitCode::ALL.len());
        assert_eq!(names.len(), ExitCode::ALL.len());
        assert!(!numbers.contains(&0));
    }

    #[test]
    fn codes_stay_clear_of_signals() {
        // 128 + n with n up to SIGRTMIN-1 (33): an app's death must not look like ours.
        for code in ExitCode::ALL {
            assert!(!(128..=161).contains(&code.number()), "{code}");
        }
    }

    #[test]
    fn document_is_generated() {
        crate::stored::assert_document("exit-codes.md", &exit_codes_document());
    }

    #[test]
    fn a_panic_becomes_a_failure_with_internal() {
        let failure =
            catch::<()>(|| panic!("the reaper lost {}", "count")).expect_err("it panicked");
        assert_eq!(failure.code(), ExitCode::Internal);
        assert!(failure.to_string().contains("the reaper lost count"));
        assert!(matches!(catch(|| Ok(7)), Ok(7)));
    }
}
