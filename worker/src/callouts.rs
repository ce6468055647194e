//! Runs the user's own programs and posts to the webhook, at the moments of `reprieve_hooks::callout`; and the program
//! that keeps a record of checkpoints and restores, one event after the other.
//!
//! A program is a child of the supervisor in a session of its own, outside the job's tree, so that no snapshot contains
//! it. When it has ended or its time is over, everything that is left in its process group is killed: an orphan of it
//! would be taken for one of the job's. What a program does can be in the way of a freeze, if settings say so, and of
//! nothing else.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_smithy_runtime_api::client::http::SharedHttpConnector;
use nix::libc::SIGKILL;
use reprieve_hooks::callout;
pub use reprieve_hooks::callout::Moment;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::aws;
use crate::catalog;
use crate::metrics::{self, HookOutcome};
use crate::settings::{OnHookFailure, Settings, WebhookFormat};
use crate::sources;
use crate::supervisor::reaper::Reaper;
use crate::supervisor::with_causes;
use crate::sys::{self, Exit, Terminal};

/// How long the kernel may take to end what was killed, and between two looks whether it has.
const KILL_LIMIT: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How long the recorder may hold up the end of a worker whose job is stored.
const LAST_RECORDS: Duration = Duration::from_secs(2);

/// Events that wait for the recorder.
const RECORDS: usize = 64;

/// What is run, and within which limits.
#[derive(Debug)]
pub struct Callouts {
    directory: Option<PathBuf>,
    webhook: Option<(String, SharedHttpConnector)>,
    format: WebhookFormat,
    limit: Duration,
    on_failure: OnHookFailure,
    reaper: Arc<Reaper>,
}

/// Why a program did not do what it was run for.
#[derive(Debug, thiserror::Error)]
enum HookError {
    #[error("it cannot be started")]
    Start(#[source] std::io::Error),
    #[error("it ended with {0}")]
    Failed(Exit),
    #[error("it took longer than {0:?}")]
    Slow(Duration),
}

impl Callouts {
    pub fn new(settings: &Settings, reaper: Arc<Reaper>) -> Self {
        Self {
            directory: settings.hooks_dir.clone(),
            webhook: settings
                .webhook
                .as_ref()
                .map(|address| (address.to_string(), aws::connector())),
            format: settings.webhook_format,
            limit: settings.hook_timeout,
            on_failure: settings.on_hook_failure,
            reaper,
        }
    }

    /// Runs and posts what is to be at this moment, and waits for the program.
    pub async fn call(&self, moment: Moment, facts: &Value, limit: Option<Duration>) {
        // It is told in the log and in the metrics.
        drop(self.try_call(moment, facts, limit).await);
    }

    /// Whether the app may be frozen; if not, why.
    pub async fn before_freeze(&self, facts: &Value, limit: Duration) -> Result<(), String> {
        let called = self
            .try_call(Moment::BeforeFreeze, facts, Some(limit))
            .await;
        match self.on_failure {
            OnHookFailure::Ignore => Ok(()),
            OnHookFailure::Refuse => called,
        }
    }

    async fn try_call(
        &self,
        moment: Moment,
        facts: &Value,
        limit: Option<Duration>,
    ) -> Result<(), String> {
        let document = callout::document(moment, facts);
        if let Some((address, http)) = &self.webhook {
            tokio::spawn(post(
                http.clone(),
                address.clone(),
                self.format,
                document.clone(),
                self.limit,
            ));
        }
        let program = self
            .directory
            .as_ref()
            .map(|path| path.join(moment.as_str()));
        let Some(program) = program.filter(|program| program.exists()) else {
            return Ok(());
        };
        let limit = limit.map_or(self.limit, |limit| limit.min(self.limit));
        let result = run(&self.reaper, Command::new(&program), &document, limit).await;
        metrics::hook_ended(match &result {
            Ok(()) => HookOutcome::Ok,
            Err(HookError::Slow(_)) => HookOutcome::TimedOut,
            Err(_) => HookOutcome::Failed,
        });
        result.map_err(|error| {
            let reason = with_causes(&error);
            let program = program.display().to_string();
            tracing::warn!(program, reason, "a program of yours failed");
            reason
        })
    }
}

/// Runs a program with this document on its standard input and in its environment.
async fn run(
    reaper: &Reaper,
    mut command: Command,
    document: &Value,
    limit: Duration,
) -> Result<(), HookError> {
    command.envs(callout::variables(document));
    let (reader, writer) = std::io::pipe().map_err(HookError::Start)?;
    let mut exit = reaper
        .spawn(|| {
            let streams = [reader.into(), Stdio::null(), Stdio::inherit()];
            sys::spawn(command, streams, Terminal::None, &[])
        })
        .map_err(HookError::Start)?;
    // A document fits into the pipe; a program that does not read it does not hold us up.
    drop(std::io::Write::write_all(
        &mut &writer,
        document.to_string().as_bytes(),
    ));
    drop(writer);
    let ended = timeout(limit, &mut exit.exit).await;
    // It leads its group. What it left behind belongs to nobody.
    let gone = async {
        while sys::kill(-exit.pid, SIGKILL).is_ok() {
            sleep(LOOK_AGAIN).await;
        }
    };
    drop(timeout(KILL_LIMIT, gone).await);
    match ended {
        Ok(Ok(Exit::Code(0))) => Ok(()),
        Ok(Ok(exit)) => Err(HookError::Failed(exit)),
        Ok(Err(_)) => Err(HookError::Failed(Exit::Code(u8::MAX))),
        Err(_) => Err(HookError::Slow(limit)),
    }
}

/// Tells a program of the user's of each checkpoint and restore, in their order, beside everything else. Clones tell the
/// same one.
#[derive(Clone, Debug)]
pub struct Recorder {
    events: mpsc::Sender<Value>,
    /// How many events it was told of, or failed to be.
    told: watch::Receiver<u64>,
    handed_in: Arc<AtomicU64>,
}

impl Recorder {
    /// Needs a runtime. `None` if there is no such program.
    pub fn start(settings: &Settings, reaper: Arc<Reaper>) -> Option<Self> {
        let program = settings.metrics_recorder.clone()?;
        let limit = settings.hook_timeout;
        let (events, waiting) = mpsc::channel(RECORDS);
        let (tell, told) = watch::channel(0);
        tokio::spawn(record(program, limit, reaper, waiting, tell));
        Some(Self {
            events,
            told,
            handed_in: Arc::default(),
        })
    }

    /// Hands an event in. One for which there is no room, because the program hangs, is lost.
    pub fn record(&self, event: Value) {
        if self.events.try_send(event).is_ok() {
            self.handed_in.fetch_add(1, Ordering::Relaxed);
        } else {
            tracing::warn!("the metrics recorder is too slow; an event was left out");
        }
    }

    /// Comes when it was told of everything that was handed in so far, or took too long over it.
    pub async fn up_to_date(mut self) {
        let wanted = self.handed_in.load(Ordering::Relaxed);
        drop(timeout(LAST_RECORDS, self.told.wait_for(|told| *told >= wanted)).await);
    }
}

async fn record(
    program: PathBuf,
    limit: Duration,
    reaper: Arc<Reaper>,
    mut events: mpsc::Receiver<Value>,
    told: watch::Sender<u64>,
) {
    while let Some(event) = events.recv().await {
        let mut command = Command::new(&program);
        // As FastFreeze tells its own.
        command.arg(event.to_string());
        if let Err(error) = run(&reaper, command, &event, limit).await {
            let reason = with_causes(&error);
            let program = program.display().to_string();
            tracing::warn!(program, reason, "the metrics recorder failed");
        }
        told.send_modify(|count| *count += 1);
    }
}

async fn post(
    http: SharedHttpConnector,
    address: String,
    format: WebhookFormat,
    document: Value,
    limit: Duration,
) {
    let id = catalog::nonce();
    // Receivers that are made for SNS look at its headers first.
    let (body, headers) = match format {
        WebhookFormat::Json => (document, vec![("content-type", "application/json")]),
        WebhookFormat::Sns => (
            callout::as_notification(&document, &id, sources::wall_now()),
            vec![
                ("content-type", "text/plain; charset=UTF-8"),
                ("x-amz-sns-message-type", "Notification"),
                ("x-amz-sns-message-id", &id),
            ],
        ),
    };
    let posted = callout::post(&http, &address, &headers, body.to_string().into());
    let (outcome, reason) = match timeout(limit, posted).await {
        Ok(Ok(())) => (HookOutcome::Ok, None),
        Ok(Err(error)) => (HookOutcome::Failed, Some(with_causes(&error))),
        Err(_) => (
            HookOutcome::TimedOut,
            Some(format!("it took longer than {limit:?}")),
        ),
    };
    metrics::hook_ended(outcome);
    if let Some(reason) = reason {
        tracing::warn!(reason, "the webhook was not told");
    }
}
