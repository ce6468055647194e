//! Holds an instance that Auto Scaling wants to terminate for as long as its job is being stored, and lets it go then.
//!
//! The hook waits for its timeout and each heartbeat starts that anew; a hook that is not completed holds the instance,
//! and what it costs, for the whole timeout. Therefore the action is completed with CONTINUE whatever became of the
//! checkpoint: nothing is won by holding a machine whose job could not be stored, and ABANDON would only leave out the
//! hooks after this one. A hook does not delay a spot interruption; that deadline counts in any case.
//!
//! Both calls are best effort. An answer that the action is not there (any more) ends the heartbeats and is no failure.

use std::time::Duration;

use aws_sdk_autoscaling::Client;
use aws_sdk_autoscaling::config::timeout::TimeoutConfig;
use aws_sdk_autoscaling::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use tokio::time::{Instant, sleep};

use crate::events::Hook;

/// One call, with its answer.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// Between two tries to let the instance go.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// How long is tried to let the instance go.
const COMPLETE_LIMIT: Duration = Duration::from_secs(20);

/// Auto Scaling, as seen from one instance.
#[derive(Clone, Debug)]
pub struct AutoScaling {
    client: Client,
    heartbeat: Duration,
}

/// What the service says to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Done,
    /// There is no such action: it was completed, or its time is over.
    NoSuchAction,
    /// It may work later.
    NotNow,
}

impl AutoScaling {
    /// Hooks wait for at least 30 s, so that a heartbeat every `heartbeat` is in time when it is well below that.
    pub fn new(shared: &aws_config::SdkConfig, heartbeat: Duration) -> Self {
        let config = aws_sdk_autoscaling::config::Builder::from(shared)
            .timeout_config(
                TimeoutConfig::builder()
                    .operation_timeout(CALL_LIMIT)
                    .build(),
            )
            .build();
        Self {
            client: Client::from_conf(config),
            heartbeat,
        }
    }

    /// Sends heartbeats until `settled` is over, and hands its result on. Drop it, and they end.
    pub async fn hold<T>(&self, hook: &Hook, settled: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            result = settled => result,
            never = self.beat(hook) => never,
        }
    }

    async fn beat<T>(&self, hook: &Hook) -> T {
        while self.heartbeat(hook).await != Said::NoSuchAction {
            sleep(self.heartbeat).await;
        }
        tracing::info!(
            hook = hook.name,
            "the lifecycle action is over; no more heartbeats"
        );
        std::future::pending().await
    }

    /// Lets the instance go. True when the service agreed, or had done so already.
    pub async fn complete(&self, hook: &Hook) -> bool {
        let deadline = Instant::now() + COMPLETE_LIMIT;
        loop {
            let answer = self
                .client
                .complete_lifecycle_action()
                .auto_scaling_group_name(&hook.group)
                .lifecycle_hook_name(&hook.name)
                .instance_id(&hook.instance)
                .set_lifecycle_action_token(hook.token.clone())
                .lifecycle_action_result("CONTINUE")
                .send()
                .await;
            match said("complete", answer) {
                Said::Done => {
                    tracing::info!(
                        hook = hook.name,
                        group = hook.group,
                        "the lifecycle action is completed"
                    );
                    return true;
                }
                Said::NoSuchAction => return true,
                Said::NotNow if Instant::now() + TRY_AGAIN > deadline => return false,
                Said::NotNow => sleep(TRY_AGAIN).await,
            }
        }
    }

    async fn heartbeat(&self, hook: &Hook) -> Said {
        let answer = self
            .client
            .record_lifecycle_action_heartbeat()
            .auto_scaling_group_name(&hook.group)
            .lifecycle_hook_name(&hook.name)
            .instance_id(&hook.instance)
            .set_lifecycle_action_token(hook.token.clone())
            .send()
            .await;
        said("heartbeat", answer)
    }
}

fn said<T, E>(what: &str, answer: Result<T, SdkError<E>>) -> Said
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let error = match answer {
        Ok(_) => return Said::Done,
        Err(error) => error,
    };
    if let SdkError::ServiceError(refusal) = &error
        && refusal.err().code() == Some("ValidationError")
    {
        return Said::NoSuchAction;
    }
    tracing::warn!(
        what,
        error = %DisplayErrorContext(&error),
        "Auto Scaling does not take a word on the lifecycle action; it is tried again"
    );
    Said::NotNow
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::lookalike::{Answer, Server};

    fn hook() -> Hook {
        Hook {
            group: "fleet".into(),
            name: "drain".into(),
            instance: "i-0abc".into(),
            token: Some("token".into()),
        }
    }

    fn answer(action: &str) -> Answer {
        Answer::xml(
            200,
            &format!("<{action}Response><{action}Result/><ResponseMetadata/></{action}Response>"),
        )
    }

    fn over() -> Answer {
        Answer::xml(
            400,
            "<ErrorResponse><Error><Type>Sender</Type><Code>ValidationError</Code>\
             <Message>No active Lifecycle Action found</Message></Error></ErrorResponse>",
        )
    }

    #[tokio::test]
    async fn heartbeats_go_on_until_it_is_settled_and_then_the_action_is_completed() {
        let (seen, mut beats) = tokio::sync::mpsc::unbounded_channel();
        let server = Server::start(move |request| {
            let beat = request.contains("Action=RecordLifecycleActionHeartbeat");
            let _ = seen.send(beat);
            assert!(request.contains("LifecycleActionToken=token"), "{request}");
            assert!(request.contains("InstanceId=i-0abc"), "{request}");
            match beat {
                true => answer("RecordLifecycleActionHeartbeat"),
                false => answer("CompleteLifecycleAction"),
            }
        })
        .await;
        let scaling = AutoScaling::new(&server.sdk_config().await, Duration::from_millis(5));
        let three = async {
            for _ in 0..3 {
                assert_eq!(beats.recv().await, Some(true));
            }
        };
        scaling.hold(&hook(), three).await;
        assert!(scaling.complete(&hook()).await);
        let mut last = None;
        while let Ok(beat) = beats.try_recv() {
            last = Some(beat);
        }
        assert_eq!(last, Some(false), "the last word completes");
    }

    #[tokio::test]
    async fn an_action_that_is_over_ends_the_heartbeats_and_is_no_failure() {
        let (seen, mut calls) = tokio::sync::mpsc::unbounded_channel();
        let server = Server::start(move |_| {
            let _ = seen.send(());
            over()
        })
        .await;
        let scaling = AutoScaling::new(&server.sdk_config().await, Duration::ZERO);
        let settled = async { calls.recv().await };
        assert_eq!(scaling.hold(&hook(), settled).await, Some(()));
        assert!(scaling.complete(&hook()).await);
    }

    #[tokio::test]
    async fn a_service_that_fails_once_is_asked_again() {
        let failed = AtomicBool::new(false);
        let server = Server::start(move |_| match failed.swap(true, Ordering::Relaxed) {
            false => Answer::xml(503, "<ErrorResponse/>"),
            true => answer("CompleteLifecycleAction"),
        })
        .await;
        let scaling = AutoScaling::new(&server.sdk_config().await, Duration::from_secs(60));
        assert!(scaling.complete(&hook()).await);
    }
}
