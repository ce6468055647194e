//! One checkpoint of the running job that is thrown away, so that whether it can be stored is known before it has to be.
//!
//! It is all that freezes a job in a checkpoint: CRIU's dump, the cut of the standard streams, the reading of files. The store
//! is not asked for anything, and no snapshot is there after it. A checkpoint that begins meanwhile has it given up, and
//! begins when CRIU has let the job go.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::callouts::{Callouts, Moment as CallMoment};
use crate::control::protocol;
use crate::metrics::RehearsalOutcome;
use crate::supervisor::checkpoint::{
    CheckpointError, Checkpointer, Limits, Rehearsed, Subject, expired,
};
use crate::supervisor::{HOOK_SHARE, millis, with_causes};

pub(crate) type Result = std::result::Result<Rehearsed, CheckpointError>;

/// One under way.
#[derive(Debug)]
pub(crate) struct Rehearsal {
    limits: watch::Sender<Limits>,
    task: JoinHandle<Result>,
}

impl Rehearsal {
    /// `facts` are for the user's programs.
    pub(crate) fn begin(
        checkpointer: Arc<Checkpointer>,
        subject: Subject,
        callouts: Arc<Callouts>,
        facts: Value,
        limit: Duration,
    ) -> Self {
        let (limits, watched) = watch::channel(until(Instant::now() + limit));
        let share = limit / u32::try_from(HOOK_SHARE).expect("it is small");
        let task = tokio::spawn(run(checkpointer, subject, callouts, facts, share, watched));
        Self { limits, task }
    }

    /// How it ended.
    pub(crate) async fn ended(&mut self) -> Result {
        let ended = (&mut self.task).await;
        ended.unwrap_or(Err(CheckpointError::Panicked))
    }

    /// Gives it up, and waits until the job runs.
    pub(crate) async fn give_up(mut self) {
        self.limits.send_replace(until(Instant::now()));
        drop(self.ended().await);
    }
}

fn until(moment: Instant) -> Limits {
    Limits {
        stored_by: moment,
        committed_by: moment,
    }
}

async fn run(
    checkpointer: Arc<Checkpointer>,
    subject: Subject,
    callouts: Arc<Callouts>,
    facts: Value,
    share: Duration,
    mut limits: watch::Receiver<Limits>,
) -> Result {
    let (asked, told) = (Arc::clone(&callouts), facts.clone());
    let before = tokio::spawn(async move { asked.before_freeze(&told, share).await });
    tokio::select! {
        // If it is given up, the program may end in its own time.
        () = expired(&mut limits, |limits| limits.stored_by) => {
            return Err(CheckpointError::Deadline { step: "your program for before-freeze was running" });
        }
        agreed = before => match agreed {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => return Err(CheckpointError::Hook(reason)),
            Err(_) => return Err(CheckpointError::Panicked),
        }
    }
    let result = checkpointer.rehearse(&subject, limits.clone()).await;
    let given_up = limits.borrow().stored_by <= Instant::now();
    // One that is given up is followed by a checkpoint, which ends with this moment itself.
    if !given_up {
        tokio::spawn(async move { callouts.call(CallMoment::AfterThaw, &facts, None).await });
    }
    result
}

/// For the status.
pub(crate) fn told(outcome: RehearsalOutcome, result: Option<&Result>) -> protocol::Rehearsal {
    let worked = result.and_then(|result| result.as_ref().ok());
    let failed = result.and_then(|result| result.as_ref().err());
    protocol::Rehearsal {
        outcome: outcome.as_str().to_owned(),
        frozen_ms: worked.map(|worked| millis(worked.frozen)),
        wall_ms: worked.map(|worked| millis(worked.wall)),
        memory_bytes: worked.map(|worked| worked.memory),
        files_bytes: worked.map(|worked| worked.files),
        reason: failed.map(|error| with_causes(error)),
        remedy: failed.map(|error| error.remedy().to_owned()),
    }
}
