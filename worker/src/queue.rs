//! The queue and the machine's tags, as settings ask for them: makes the parts of `reprieve_hooks` and runs them.

use std::sync::Arc;
use std::time::Duration;

use aws_config::provider_config::ProviderConfig;
use reprieve_core::command::{Me, text_of};
use reprieve_core::notice::{Settled, WallMs};
use reprieve_hooks::Ear;
use reprieve_hooks::autoscaling::AutoScaling;
use reprieve_hooks::ec2;
use reprieve_hooks::sqs::queue::{Options, Queue, Which};
use reprieve_hooks::sqs::{self, MailError, Sharing};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use url::Url;

use crate::aws;
use crate::host;
use crate::machine;
use crate::settings::{InstanceTags, QueueUse, Settings};
use crate::store::s3;

/// A queue of a job's own has this and the job's name.
pub(crate) const PREFIX: &str = "reprieve-";

/// Hooks wait for 30 s at least; several heartbeats may be lost.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// How long the metadata service may take to say which machine this is; there may be none.
const NAME_LIMIT: Duration = Duration::from_secs(5);

/// Between two writes of tags. Accounts share the rate of EC2's calls.
const TAG_PAUSE: Duration = Duration::from_secs(10);

/// How long the last write of tags may hold up the end.
const TAG_LIMIT: Duration = Duration::from_secs(3);

/// How long deleting the job's queue may hold up the end.
const REMOVE_LIMIT: Duration = Duration::from_secs(3);

/// What the machine's tags tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    pub state: &'static str,
    /// The newest durable snapshot, and when it was taken.
    pub snapshot: Option<(u64, WallMs)>,
}

/// Reads the queue until nobody listens any more.
pub(crate) async fn listen(settings: Settings, ear: Ear) {
    let Some((queue, sharing)) = queue(&settings).await else {
        return ear.absent("no queue is set; see --queue".to_owned());
    };
    let shared = aws::shared(region(settings.queue_url.as_ref())).await;
    let instance = tokio::select! {
        () = ear.gone() => return,
        instance = instance(&settings) => instance,
    };
    let options = sqs::Options {
        me: Me {
            job: settings.job.clone(),
            worker: host::hostname(),
            instance,
        },
        sharing,
        lease: settings.queue_lease,
        auto_scaling: Some(AutoScaling::new(&shared, HEARTBEAT)),
    };
    let queue = Arc::new(queue);
    tokio::select! {
        biased;
        () = sqs::listen(Arc::clone(&queue) as _, options, ear) => {}
        () = queue.look_after() => {}
    }
}

/// Holds this instance while its job is being stored, for each time that `told` says that Auto Scaling wants it, and lets it
/// go then. An event of EventBridge says the same and more; completed twice is no failure.
pub(crate) async fn let_go(
    settings: Settings,
    hook: String,
    mut told: mpsc::UnboundedReceiver<oneshot::Receiver<Settled>>,
) {
    while let Some(settled) = told.recv().await {
        let known = async {
            let instance = instance(&settings)
                .await
                .ok_or("which machine this is is not known")?;
            let scaling = AutoScaling::new(&aws::shared(None).await, HEARTBEAT);
            let action = scaling.action(&hook, &instance).await?;
            let action = action.ok_or("this machine is in no group of Auto Scaling")?;
            Ok::<_, String>((scaling, action))
        };
        let (scaling, action) = match known.await {
            Ok(known) => known,
            Err(reason) => {
                tracing::warn!(
                    hook,
                    reason,
                    "the lifecycle action is not completed; the instance is held until its hook's time is over"
                );
                continue;
            }
        };
        // Without an answer the job has ended otherwise, and nothing is left to wait for.
        let settled = scaling.hold(&action, settled).await;
        tracing::info!(hook, ?settled, "the instance may go");
        scaling.complete(&action).await;
    }
}

/// Deletes the job's own queue, when the job is over and nobody will read it.
pub async fn remove(settings: &Settings) {
    if settings.queue != QueueUse::Own || settings.queue_url.is_some() {
        return;
    }
    let removed = async {
        let (queue, _) = queue(settings).await?;
        Some(queue.remove_own().await)
    };
    match timeout(REMOVE_LIMIT, removed).await {
        Ok(Some(Ok(()))) => tracing::info!("the job is over; its queue was deleted"),
        Ok(Some(Err(error))) => {
            tracing::warn!(%error, "the job's queue could not be deleted; another worker removes it after a week");
        }
        Ok(None) => {}
        Err(_) => tracing::warn!(
            error = "no answer in time",
            "the job's queue could not be deleted; another worker removes it after a week"
        ),
    }
}

/// Whether the queue that is set can be read; `None` if none is. Takes nothing from it.
pub(crate) async fn look(settings: &Settings) -> Option<Result<Option<String>, MailError>> {
    let (queue, _) = queue(settings).await?;
    Some(queue.look().await)
}

async fn queue(settings: &Settings) -> Option<(Queue, Sharing)> {
    let sharing = match settings.queue {
        QueueUse::Off => return None,
        QueueUse::Own => Sharing::Own,
        QueueUse::Shared => Sharing::Shared,
    };
    let which = match &settings.queue_url {
        Some(url) => Which::Url(url.to_string()),
        None => Which::Own {
            prefix: PREFIX.to_owned(),
            job: settings.job.clone(),
            store: settings.store.clone().unwrap_or_default(),
        },
    };
    let options = Options {
        which,
        dead_letter: settings.dead_letter_queue.as_ref().map(Url::to_string),
        reply: settings.reply_queue.as_ref().map(Url::to_string),
        lease: settings.queue_lease,
        worker: host::hostname(),
    };
    let shared = aws::shared(region(settings.queue_url.as_ref())).await;
    Some((Queue::new(&shared, options), sharing))
}

/// A queue's URL says where it is; that counts more than where the machine is.
pub(crate) fn region(queue: Option<&Url>) -> Option<String> {
    let host = queue?.host_str()?;
    let mut words = host.split('.');
    (words.next() == Some("sqs")).then(|| words.next().map(str::to_owned))?
}

/// What this machine is called.
pub(crate) async fn instance(settings: &Settings) -> Option<String> {
    if let Some(name) = &settings.instance_id {
        return Some(name.clone());
    }
    if std::env::var("AWS_EC2_METADATA_DISABLED").is_ok_and(|disabled| disabled == "true") {
        return None;
    }
    let settings = ProviderConfig::default().with_http_client(aws::http_client(s3::trust_store()));
    let client = aws_config::imds::Client::builder()
        .configure(&settings)
        .build();
    let asked = client.get("/latest/meta-data/instance-id");
    let name = timeout(NAME_LIMIT, asked).await.ok()?.ok()?;
    Some(String::from(name))
}

/// Writes job, state and newest snapshot to the machine's tags, until `told` ends and its last word is written.
pub async fn tag(settings: Settings, mut told: watch::Receiver<Told>) {
    if settings.instance_tags == InstanceTags::Off {
        return;
    }
    let Some(instance) = instance(&settings).await else {
        tracing::warn!(
            "which machine this is is not known, so that its tags cannot tell of the job; set --instance-id"
        );
        return;
    };
    let Some(ec2) = machine::ec2().await else {
        tracing::warn!("no region is set, so that the machine's tags cannot tell of the job");
        return;
    };
    let mut written = None;
    let mut failing = false;
    loop {
        let now = *told.borrow_and_update();
        if written != Some(now) {
            match timeout(TAG_LIMIT, ec2.tag(&instance, &tags(&settings, now))).await {
                Ok(Ok(())) => (written, failing) = (Some(now), false),
                Ok(Err(error)) if !failing => {
                    failing = true;
                    tracing::warn!(%error, "the machine's tags could not be written");
                    if !error.may_pass() {
                        return;
                    }
                }
                _ => {}
            }
        }
        let over = tokio::select! {
            () = ended(&mut told) => true,
            () = sleep(TAG_PAUSE) => false,
        };
        if over {
            let last = *told.borrow();
            if written != Some(last) {
                drop(timeout(TAG_LIMIT, ec2.tag(&instance, &tags(&settings, last))).await);
            }
            return;
        }
    }
}

async fn ended(told: &mut watch::Receiver<Told>) {
    while told.changed().await.is_ok() {}
}

fn tags(settings: &Settings, now: Told) -> Vec<(&'static str, String)> {
    let mut tags = vec![
        (ec2::TAG_JOB, settings.job.clone()),
        (ec2::TAG_STATE, now.state.to_owned()),
    ];
    if let Some((generation, taken)) = now.snapshot {
        let snapshot = format!("{generation} of {}", text_of(taken));
        tags.push((ec2::TAG_SNAPSHOT, snapshot));
    }
    tags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_of_aws_says_its_region() {
        let at = |url: &str| {
            let url = Url::parse(url).expect("it is one");
            region(Some(&url))
        };
        assert_eq!(
            at("https://sqs.eu-west-1.amazonaws.com/123456789012/q").as_deref(),
            Some("eu-west-1")
        );
        assert_eq!(at("http://127.0.0.1:5000/123456789012/q"), None);
    }
}
