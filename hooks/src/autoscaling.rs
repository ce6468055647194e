//! Holds an instance that Auto Scaling wants to terminate for as long as its job is being stored, and lets it go then.
//!
//! The hook waits for its timeout and each heartbeat starts that anew; a hook that is not completed holds the instance,
//! and what it costs, for the whole timeout. Therefore the action is completed with CONTINUE whatever became of the
//! checkpoint: nothing is won by holding a machine whose job could not be stored, and ABANDON would only leave out the
//! hooks after this one. A hook does not delay a spot interruption; that deadline counts in any case.
//!
//! Both calls are best effort. An answer that the action is not there (any more) ends the heartbeats and is no failure.
//!
//! It also says which types of instances the group of this one may have.

use std::time::Duration;

use aws_sdk_autoscaling::Client;
use aws_sdk_autoscaling::config::timeout::TimeoutConfig;
use aws_sdk_autoscaling::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_autoscaling::types::LaunchTemplateSpecification;
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

/// Which machines a group may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kinds {
    Types(Vec<String>),
    /// The one that a launch template says.
    Of(Template),
}

/// A launch template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    pub id: Option<String>,
    pub name: Option<String>,
    pub version: Option<String>,
}

impl From<&LaunchTemplateSpecification> for Template {
    fn from(template: &LaunchTemplateSpecification) -> Self {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Self {
            id: owned(template.launch_template_id()),
            name: owned(template.launch_template_name()),
            version: owned(template.version()),
        }
    }
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

    /// The action of the hook called `name` on this instance, by asking which group it is in. None if it is in none.
    ///
    /// # Errors
    /// When the service does not say, in words.
    pub async fn action(&self, name: &str, instance: &str) -> Result<Option<Hook>, String> {
        let group = self.group(instance).await?;
        Ok(group.map(|group| Hook {
            group,
            name: name.to_owned(),
            instance: instance.to_owned(),
            token: None,
        }))
    }

    /// The machines that the group of this instance may have.
    ///
    /// # Errors
    /// When the service does not say, or the group does not, in words.
    pub async fn kinds(&self, instance: &str) -> Result<Kinds, String> {
        let group = self.group(instance).await?;
        let group = group.ok_or("this machine is in no group of Auto Scaling")?;
        let asked = self
            .client
            .describe_auto_scaling_groups()
            .auto_scaling_group_names(&group)
            .send()
            .await;
        let answer = asked.map_err(|error| DisplayErrorContext(&error).to_string())?;
        let found = answer.auto_scaling_groups().first();
        let found = found.ok_or_else(|| format!("there is no group {group}"))?;
        let policy = found.mixed_instances_policy();
        let mixed = policy.and_then(|policy| policy.launch_template());
        let overrides = mixed.map_or(&[][..], |mixed| mixed.overrides());
        if overrides
            .iter()
            .any(|one| one.instance_requirements().is_some())
        {
            return Err(format!(
                "the group {group} names no instance types but attributes"
            ));
        }
        let types = overrides.iter().filter_map(|one| one.instance_type());
        let types: Vec<String> = types.map(str::to_owned).collect();
        if !types.is_empty() {
            return Ok(Kinds::Types(types));
        }
        let template = mixed.and_then(|mixed| mixed.launch_template_specification());
        let template = template.or_else(|| found.launch_template());
        let template =
            template.ok_or_else(|| format!("the group {group} has no launch template"))?;
        Ok(Kinds::Of(template.into()))
    }

    async fn group(&self, instance: &str) -> Result<Option<String>, String> {
        let asked = self
            .client
            .describe_auto_scaling_instances()
            .instance_ids(instance)
            .send()
            .await;
        let answer = asked.map_err(|error| DisplayErrorContext(&error).to_string())?;
        let mut found = answer.auto_scaling_instances().iter();
        let group = found.find_map(|found| found.auto_scaling_group_name());
        Ok(group.map(str::to_owned))
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
    async fn a_group_says_which_machines_it_may_have() {
        let instances = "<DescribeAutoScalingInstancesResponse><DescribeAutoScalingInstancesResult>\
             <AutoScalingInstances><member><InstanceId>i-0abc</InstanceId>\
             <AutoScalingGroupName>fleet</AutoScalingGroupName></member></AutoScalingInstances>\
             </DescribeAutoScalingInstancesResult></DescribeAutoScalingInstancesResponse>";
        let template = |name: &str| {
            format!(
                "<{name}><LaunchTemplateId>lt-1</LaunchTemplateId><Version>7</Version></{name}>"
            )
        };
        let of = Kinds::Of(Template {
            id: Some("lt-1".into()),
            name: None,
            version: Some("7".into()),
        });
        let mixed = |overrides: &str| {
            format!(
                "<MixedInstancesPolicy><LaunchTemplate>{}<Overrides>{overrides}</Overrides></LaunchTemplate></MixedInstancesPolicy>",
                template("LaunchTemplateSpecification")
            )
        };
        let types = ["m5.large", "m6a.large"].map(str::to_owned).to_vec();
        let named = "<member><InstanceType>m5.large</InstanceType></member>\
             <member><InstanceType>m6a.large</InstanceType></member>";
        let by_attributes = "<member><InstanceRequirements><VCpuCount><Min>2</Min></VCpuCount></InstanceRequirements></member>";
        for (group, expected) in [
            (mixed(named), Ok(Kinds::Types(types))),
            (mixed(""), Ok(of.clone())),
            (template("LaunchTemplate"), Ok(of)),
            (
                mixed(by_attributes),
                Err("the group fleet names no instance types but attributes".to_owned()),
            ),
            (
                "<LaunchConfigurationName>old</LaunchConfigurationName>".to_owned(),
                Err("the group fleet has no launch template".to_owned()),
            ),
        ] {
            let server = Server::start(move |request| {
                if request.contains("Action=DescribeAutoScalingInstances") {
                    return Answer::xml(200, instances);
                }
                assert!(
                    request.contains("AutoScalingGroupNames.member.1=fleet"),
                    "{request}"
                );
                Answer::xml(
                    200,
                    &format!(
                        "<DescribeAutoScalingGroupsResponse><DescribeAutoScalingGroupsResult><AutoScalingGroups>\
                         <member><AutoScalingGroupName>fleet</AutoScalingGroupName>{group}</member>\
                         </AutoScalingGroups></DescribeAutoScalingGroupsResult></DescribeAutoScalingGroupsResponse>"
                    ),
                )
            })
            .await;
            let scaling = AutoScaling::new(&server.sdk_config().await, Duration::ZERO);
            assert_eq!(scaling.kinds("i-0abc").await, expected);
        }
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
