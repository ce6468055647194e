//! SQS itself: the queue that is read, the dead-letter queue and the reply queue behind one port.
//!
//! Limits: a receive may take as long as the queue lets us wait and ten seconds more, so that a connection that is half
//! open is noticed; every other call has a short one. The SDK does not try again by itself. Credentials are asked for at
//! each call, so that expired ones are replaced by whoever hands them out.
//!
//! A queue of one's own is named after the job, not after the machine: the worker that resumes the job finds what the
//! one before it left. It is adopted only if its tags say that it is this job's in this store. Its heartbeat is a tag too,
//! by which others see that it is an orphan.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::{
    MessageAttributeValue, MessageSystemAttributeName, QueueAttributeName as Attribute,
};
use reprieve_core::notice::WallMs;
use tokio::sync::Mutex;

use super::{BATCH, Mail, MailError, MailErrorKind, Message};

/// How long a receive waits for a message, in seconds; the longest that SQS allows.
pub(super) const WAIT_S: i32 = 20;
pub(super) const RECEIVE_LIMIT: Duration = Duration::from_secs(WAIT_S as u64 + 10);
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(10);
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// Commands wait for a day for a job that is not running anywhere, in seconds.
const KEEP_S: &str = "86400";

/// Between two signs of life of a queue of one's own.
const BEAT: Duration = Duration::from_secs(60 * 60);

/// A queue without a sign of life for as long, and without messages, is an orphan.
const ORPHANED_MS: u64 = 7 * 24 * 60 * 60_000;

/// Queues of one listing; without a number SQS gives a thousand and does not say that there are more.
const QUEUES_AT_ONCE: i32 = 1_000;

/// SQS takes no longer ones.
const NAME_LIMIT: usize = 80;

/// Tags of a queue of one's own.
pub const TAG_JOB: &str = "reprieve:job";
pub const TAG_STORE: &str = "reprieve:store";
pub const TAG_SEEN: &str = "reprieve:seen";

/// Which queue is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// One that is there.
    Url(String),
    /// One of the job's own, made when it is not there.
    Own {
        prefix: String,
        job: String,
        store: String,
    },
}

/// The queues, by their URLs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub which: Which,
    /// Without one it is the queue's own, as its redrive policy says.
    pub dead_letter: Option<String>,
    pub reply: Option<String>,
    pub lease: Duration,
    /// Who reads; goes with what is put into the dead-letter queue.
    pub worker: String,
}

/// What was found out about the queue.
#[derive(Clone, Debug)]
struct Found {
    url: String,
    dead_letter: Option<String>,
}

/// A queue of SQS.
#[derive(Debug)]
pub struct Queue {
    client: Client,
    options: Options,
    found: Mutex<Option<Found>>,
}

impl Queue {
    /// Asks nothing yet. A client with the SDK's retries would work past our limits; they are switched off here.
    pub fn new(shared: &aws_config::SdkConfig, options: Options) -> Self {
        Self {
            client: client(shared, CALL_LIMIT),
            options,
            found: Mutex::new(None),
        }
    }

    /// Tags a queue of one's own with the time, and removes orphans, for ever. Nothing for a queue that was given.
    pub async fn look_after(&self) {
        let Which::Own { prefix, .. } = &self.options.which else {
            return std::future::pending().await;
        };
        // Not at the start, when many workers may start together.
        let mut pause = Duration::from_secs(30).mul_f64(0.5 + fastrand::f64());
        loop {
            tokio::time::sleep(pause).await;
            pause = BEAT.mul_f64(0.5 + fastrand::f64() / 2.0);
            if let Err(error) = self.beat().await {
                tracing::debug!(%error, "the queue could not be given a sign of life");
            }
            match self.sweep(prefix, crate::time::now()).await {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "queues of jobs that are gone were deleted"),
                Err(error) => {
                    tracing::debug!(%error, "queues of jobs that are gone were not looked for")
                }
            }
        }
    }

    /// Deletes a queue of one's own: the job is over, and nobody will read it.
    ///
    /// # Errors
    /// When it stays.
    pub async fn remove_own(&self) -> Result<(), MailError> {
        if !matches!(self.options.which, Which::Own { .. }) {
            return Ok(());
        }
        let found = self.found().await?;
        let deleted = self.client.delete_queue().queue_url(&found.url).send();
        deleted
            .await
            .map_err(|error| self.error("DeleteQueue", &error))?;
        Ok(())
    }

    /// Whether the queue can be read, without making it and without taking anything from it. Its URL, or none if it is one
    /// of our own that is not there yet.
    ///
    /// # Errors
    /// When it is somebody else's, or may not be looked at.
    pub async fn look(&self) -> Result<Option<String>, MailError> {
        let url = match &self.options.which {
            Which::Url(url) => url.clone(),
            Which::Own { prefix, job, .. } => {
                let name = name_of(prefix, job);
                let known = self.client.get_queue_url().queue_name(&name).send().await;
                match known.map_err(|error| self.error("GetQueueUrl", &error)) {
                    Ok(known) => known.queue_url.unwrap_or_default(),
                    Err(error) if error.kind == MailErrorKind::Gone => return Ok(None),
                    Err(error) => return Err(error),
                }
            }
        };
        let asked = self
            .client
            .get_queue_attributes()
            .queue_url(&url)
            .attribute_names(Attribute::QueueArn)
            .send()
            .await;
        asked.map_err(|error| self.error("GetQueueAttributes", &error))?;
        Ok(Some(url))
    }

    async fn found(&self) -> Result<Found, MailError> {
        let mut known = self.found.lock().await;
        if let Some(found) = &*known {
            return Ok(found.clone());
        }
        let url = match &self.options.which {
            Which::Url(url) => url.clone(),
            Which::Own { prefix, job, store } => self.own(prefix, job, store).await?,
        };
        let dead_letter = match &self.options.dead_letter {
            Some(url) => Some(url.clone()),
            None => self.redrives_to(&url).await,
        };
        let found = Found { url, dead_letter };
        *known = Some(found.clone());
        Ok(found)
    }

    async fn own(&self, prefix: &str, job: &str, store: &str) -> Result<String, MailError> {
        let name = name_of(prefix, job);
        let known = self.client.get_queue_url().queue_name(&name).send().await;
        match known {
            Ok(known) => {
                let url = known.queue_url.unwrap_or_default();
                let tags = self.tags(&url).await?;
                let says = |tag: &str| tags.get(tag).map_or("", String::as_str);
                if says(TAG_JOB) != job || says(TAG_STORE) != store {
                    return Err(MailError {
                        kind: MailErrorKind::Other,
                        reason: format!("the queue {name} is not this job's, as its tags say"),
                        remedy: "choose another --job, or name the queue with --queue-url",
                    });
                }
                tracing::info!(name, "the job's queue is there already");
                Ok(url)
            }
            Err(error) => {
                let error = self.error("GetQueueUrl", &error);
                match error.kind {
                    MailErrorKind::Gone => self.make(&name, job, store).await,
                    _ => Err(error),
                }
            }
        }
    }

    async fn make(&self, name: &str, job: &str, store: &str) -> Result<String, MailError> {
        let made = self
            .client
            .create_queue()
            .queue_name(name)
            .attributes(
                Attribute::VisibilityTimeout,
                self.options.lease.as_secs().to_string(),
            )
            .attributes(Attribute::ReceiveMessageWaitTimeSeconds, WAIT_S.to_string())
            .attributes(Attribute::MessageRetentionPeriod, KEEP_S)
            .tags(TAG_JOB, job)
            .tags(TAG_STORE, store)
            .tags(TAG_SEEN, crate::time::now().0.to_string())
            .send()
            .await
            .map_err(|error| self.error("CreateQueue", &error))?;
        let url = made.queue_url.unwrap_or_default();
        tracing::info!(name, url, "a queue was made for the job");
        Ok(url)
    }

    async fn tags(&self, url: &str) -> Result<HashMap<String, String>, MailError> {
        let tags = self.client.list_queue_tags().queue_url(url).send().await;
        let tags = tags.map_err(|error| self.error("ListQueueTags", &error))?;
        Ok(tags.tags.unwrap_or_default())
    }

    /// The dead-letter queue that the queue's redrive policy names. None also when we may not ask: then the queue's own
    /// rule has to do.
    async fn redrives_to(&self, url: &str) -> Option<String> {
        let asked = self
            .client
            .get_queue_attributes()
            .queue_url(url)
            .attribute_names(Attribute::RedrivePolicy)
            .send()
            .await;
        let policy = asked.ok()?.attributes?;
        let policy: serde_json::Value =
            serde_json::from_str(policy.get(&Attribute::RedrivePolicy)?).ok()?;
        let name = policy["deadLetterTargetArn"].as_str()?.rsplit(':').next()?;
        let found = self.client.get_queue_url().queue_name(name).send().await;
        found.ok()?.queue_url
    }

    async fn beat(&self) -> Result<(), MailError> {
        let found = self.found().await?;
        let tagged = self
            .client
            .tag_queue()
            .queue_url(&found.url)
            .tags(TAG_SEEN, crate::time::now().0.to_string())
            .send()
            .await;
        tagged.map_err(|error| self.error("TagQueue", &error))?;
        Ok(())
    }

    async fn sweep(&self, prefix: &str, now: WallMs) -> Result<u32, MailError> {
        let own = self.found().await?.url;
        let mut removed = 0;
        let mut from = None;
        loop {
            let page = self
                .client
                .list_queues()
                .queue_name_prefix(prefix)
                .max_results(QUEUES_AT_ONCE)
                .set_next_token(from)
                .send()
                .await
                .map_err(|error| self.error("ListQueues", &error))?;
            for url in page.queue_urls.unwrap_or_default() {
                if url != own && self.is_orphan(&url, now).await? {
                    let deleted = self.client.delete_queue().queue_url(&url).send().await;
                    deleted.map_err(|error| self.error("DeleteQueue", &error))?;
                    removed += 1;
                }
            }
            from = page.next_token;
            if from.is_none() {
                return Ok(removed);
            }
        }
    }

    async fn is_orphan(&self, url: &str, now: WallMs) -> Result<bool, MailError> {
        let tags = match self.tags(url).await {
            // Somebody else was here.
            Err(error) if error.kind == MailErrorKind::Gone => return Ok(false),
            tags => tags?,
        };
        let seen = tags.get(TAG_SEEN).and_then(|seen| seen.parse::<u64>().ok());
        let silent = seen.is_some_and(|seen| now.0.saturating_sub(seen) > ORPHANED_MS);
        if !silent || !tags.contains_key(TAG_JOB) {
            return Ok(false);
        }
        let counts = [
            Attribute::ApproximateNumberOfMessages,
            Attribute::ApproximateNumberOfMessagesNotVisible,
            Attribute::ApproximateNumberOfMessagesDelayed,
        ];
        let asked = self
            .client
            .get_queue_attributes()
            .queue_url(url)
            .set_attribute_names(Some(counts.to_vec()))
            .send()
            .await
            .map_err(|error| self.error("GetQueueAttributes", &error))?;
        let held = asked.attributes.unwrap_or_default();
        Ok(counts
            .iter()
            .all(|count| held.get(count).is_some_and(|held| held == "0")))
    }

    fn error<E>(&self, action: &'static str, error: &SdkError<E, HttpResponse>) -> MailError
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        said(action, error)
    }
}

/// A client whose calls end within a limit, and which does not try again by itself.
pub(super) fn client(shared: &aws_config::SdkConfig, limit: Duration) -> Client {
    let limits = TimeoutConfig::builder()
        .connect_timeout(CONNECT_LIMIT)
        .operation_timeout(limit)
        .build();
    let config = aws_sdk_sqs::config::Builder::from(shared)
        .retry_config(aws_config::retry::RetryConfig::disabled())
        .timeout_config(limits)
        .build();
    Client::from_conf(config)
}

/// In words, with what a person can do about it.
pub(super) fn said<E>(action: &'static str, error: &SdkError<E, HttpResponse>) -> MailError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let (code, reason) = match error {
        SdkError::ServiceError(refusal) => {
            let code = refusal.err().code().unwrap_or_default();
            let text = refusal.err().message().unwrap_or_default();
            let text: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
            (code, format!("{action}: {code} {text}"))
        }
        SdkError::TimeoutError(_) => ("", format!("{action}: no answer in time")),
        other => ("", format!("{action}: {}", innermost(other))),
    };
    let kind = kind_of(code);
    MailError {
        kind,
        reason,
        remedy: match kind {
            MailErrorKind::Gone => {
                "name a queue that is there with --queue-url, or let the worker make one with --queue own"
            }
            MailErrorKind::Denied => {
                "give this worker credentials with the actions of infra/policy/worker.iam.json"
            }
            MailErrorKind::Throttled => "none is needed unless it lasts",
            MailErrorKind::Lapsed => "raise --queue-lease",
            MailErrorKind::Other => "check the queue's address, the region and the network",
        },
    }
}

/// The cause below all causes: the SDK's own words only say that something failed.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let text = cause.to_string();
    match text.is_empty() {
        true => DisplayErrorContext(error).to_string(),
        false => text,
    }
}

fn kind_of(code: &str) -> MailErrorKind {
    // The older protocol puts its name in front.
    let code = code.strip_prefix("AWS.SimpleQueueService.").unwrap_or(code);
    match code {
        "QueueDoesNotExist" | "NonExistentQueue" | "QueueDoesNotExistException" => {
            MailErrorKind::Gone
        }
        "AccessDenied"
        | "AccessDeniedException"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "InvalidClientTokenId"
        | "InvalidSecurity"
        | "SignatureDoesNotMatch"
        | "UnrecognizedClientException" => MailErrorKind::Denied,
        "RequestThrottled"
        | "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "OverLimit" => MailErrorKind::Throttled,
        "MessageNotInflight" | "ReceiptHandleIsInvalid" | "InvalidParameterValue" => {
            MailErrorKind::Lapsed
        }
        _ => MailErrorKind::Other,
    }
}

/// The name of a job's own queue: what SQS does not take is replaced, and a digest keeps such names apart.
pub fn name_of(prefix: &str, job: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let whole = format!("{prefix}{job}");
    if whole.len() <= NAME_LIMIT && whole.chars().all(plain) {
        return whole;
    }
    let digest = &reprieve_core::document::digest(whole.as_bytes())[..8];
    let kept: String = whole
        .chars()
        .map(|c| if plain(c) { c } else { '-' })
        .take(NAME_LIMIT - digest.len() - 1)
        .collect();
    format!("{kept}-{digest}")
}

#[async_trait]
impl Mail for Queue {
    async fn receive(&self) -> Result<Vec<Message>, MailError> {
        // The first answer comes at once, so that it is soon known whether the queue works.
        let wait = match self.found.lock().await.is_none() {
            true => 0,
            false => WAIT_S,
        };
        let found = self.found().await?;
        let limits = TimeoutConfig::builder()
            .connect_timeout(CONNECT_LIMIT)
            .operation_timeout(RECEIVE_LIMIT)
            .build();
        let received = self
            .client
            .receive_message()
            .queue_url(&found.url)
            .max_number_of_messages(i32::try_from(BATCH).unwrap_or(1))
            .wait_time_seconds(wait)
            .visibility_timeout(i32::try_from(self.options.lease.as_secs()).unwrap_or(i32::MAX))
            .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount)
            .message_system_attribute_names(MessageSystemAttributeName::SentTimestamp)
            .customize()
            .config_override(aws_sdk_sqs::config::Builder::new().timeout_config(limits))
            .send()
            .await;
        match received {
            Ok(received) => Ok(received
                .messages
                .unwrap_or_default()
                .into_iter()
                .map(message)
                .collect()),
            Err(error) => {
                let error = self.error("ReceiveMessage", &error);
                if error.kind == MailErrorKind::Gone {
                    // One of our own is made again.
                    *self.found.lock().await = None;
                }
                Err(error)
            }
        }
    }

    async fn delete(&self, message: &Message) -> Result<(), MailError> {
        let found = self.found().await?;
        self.client
            .delete_message()
            .queue_url(&found.url)
            .receipt_handle(&message.receipt)
            .send()
            .await
            .map_err(|error| self.error("DeleteMessage", &error))?;
        Ok(())
    }

    async fn hide(&self, message: &Message, time: Duration) -> Result<(), MailError> {
        let found = self.found().await?;
        self.client
            .change_message_visibility()
            .queue_url(&found.url)
            .receipt_handle(&message.receipt)
            .visibility_timeout(i32::try_from(time.as_secs()).unwrap_or(i32::MAX))
            .send()
            .await
            .map_err(|error| self.error("ChangeMessageVisibility", &error))?;
        Ok(())
    }

    async fn bury(&self, message: &Message, reason: &str) -> Result<bool, MailError> {
        let found = self.found().await?;
        let Some(url) = &found.dead_letter else {
            return Ok(false);
        };
        let attribute = |value: &str| {
            // An attribute must not be empty, and what it may hold is what XML may.
            let value: String = value
                .chars()
                .filter(|c| !c.is_control())
                .take(500)
                .collect();
            MessageAttributeValue::builder()
                .data_type("String")
                .string_value(if value.is_empty() { "-" } else { &value })
                .build()
                .map_err(|error| MailError {
                    kind: MailErrorKind::Other,
                    reason: error.to_string(),
                    remedy: "please report this",
                })
        };
        self.client
            .send_message()
            .queue_url(url)
            .message_body(&message.body)
            .message_attributes("reprieve.reason", attribute(reason)?)
            .message_attributes("reprieve.worker", attribute(&self.options.worker)?)
            .message_attributes("reprieve.queue", attribute(&found.url)?)
            .message_attributes("reprieve.message", attribute(&message.id)?)
            .send()
            .await
            .map_err(|error| self.error("SendMessage", &error))?;
        Ok(true)
    }

    async fn reply(&self, text: &str) -> Result<(), MailError> {
        let Some(url) = &self.options.reply else {
            return Ok(());
        };
        self.client
            .send_message()
            .queue_url(url)
            .message_body(text)
            .send()
            .await
            .map_err(|error| self.error("SendMessage", &error))?;
        Ok(())
    }
}

fn message(raw: aws_sdk_sqs::types::Message) -> Message {
    let attributes = raw.attributes.unwrap_or_default();
    let number = |name| {
        attributes
            .get(&name)
            .and_then(|value: &String| value.parse::<u64>().ok())
    };
    Message {
        id: raw.message_id.unwrap_or_default(),
        body: raw.body.unwrap_or_default(),
        receipt: raw.receipt_handle.unwrap_or_default(),
        receives: number(MessageSystemAttributeName::ApproximateReceiveCount)
            .and_then(|count| u32::try_from(count).ok())
            .unwrap_or(1),
        sent: number(MessageSystemAttributeName::SentTimestamp).map(WallMs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_such_that_the_service_takes_them_and_stay_apart() {
        assert_eq!(name_of("reprieve-", "train-42"), "reprieve-train-42");
        let dotted = name_of("reprieve-", "a.b");
        assert!(dotted.starts_with("reprieve-a-b-"), "{dotted}");
        assert_ne!(dotted, name_of("reprieve-", "a-b"));
        let long = name_of("reprieve-", &"x".repeat(128));
        assert_eq!(long.len(), NAME_LIMIT);
        assert_ne!(long, name_of("reprieve-", &"x".repeat(127)));
    }

    #[test]
    fn both_protocols_names_of_errors_are_known() {
        for code in [
            "QueueDoesNotExist",
            "AWS.SimpleQueueService.NonExistentQueue",
        ] {
            assert_eq!(kind_of(code), MailErrorKind::Gone);
        }
        assert_eq!(kind_of("ExpiredToken"), MailErrorKind::Denied);
        assert_eq!(
            kind_of("AWS.SimpleQueueService.MessageNotInflight"),
            MailErrorKind::Lapsed
        );
        assert_eq!(kind_of(""), MailErrorKind::Other);
    }
}
