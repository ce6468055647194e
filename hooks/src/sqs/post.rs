//! The other end of a worker's queue: puts a command in, and looks for its answer in the reply queue.
//!
//! A reply queue may have many readers. What answers somebody else is given back at once; SQS routes nothing, so an
//! answer may take as many receives as there are readers.

use std::time::{Duration, Instant};

use aws_sdk_sqs::Client;
use reprieve_core::command::Reply;

use super::MailError;
use super::queue::{CALL_LIMIT, RECEIVE_LIMIT, WAIT_S, client, said};

/// Messages taken in one receive.
const BATCH: i32 = 10;

/// How long a message that we look at is hidden from others, in seconds.
const LOOK_S: i32 = 10;

/// Queues that somebody writes to.
#[derive(Debug)]
pub struct Post {
    calls: Client,
    receives: Client,
}

impl Post {
    pub fn new(shared: &aws_config::SdkConfig) -> Self {
        Self {
            calls: client(shared, CALL_LIMIT),
            receives: client(shared, RECEIVE_LIMIT),
        }
    }

    /// The URL of the queue of this name.
    ///
    /// # Errors
    /// When there is none, or nobody says.
    pub async fn queue(&self, name: &str) -> Result<String, MailError> {
        let found = self.calls.get_queue_url().queue_name(name).send().await;
        let found = found.map_err(|error| said("GetQueueUrl", &error))?;
        Ok(found.queue_url.unwrap_or_default())
    }

    /// Puts a message into a queue.
    ///
    /// # Errors
    /// When it may not be there.
    pub async fn send(&self, url: &str, text: &str) -> Result<(), MailError> {
        let sent = self.calls.send_message().queue_url(url).message_body(text);
        let sent = sent.send().await;
        sent.map(drop).map_err(|error| said("SendMessage", &error))
    }

    /// Takes the answer to the command of this id from a reply queue. None if there is none within the limit.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub async fn answer(
        &self,
        url: &str,
        id: &str,
        limit: Duration,
    ) -> Result<Option<Reply>, MailError> {
        let begun = Instant::now();
        loop {
            let left = limit.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            let seconds = i32::try_from(left.as_secs()).unwrap_or(WAIT_S);
            let received = self
                .receives
                .receive_message()
                .queue_url(url)
                .max_number_of_messages(BATCH)
                .visibility_timeout(LOOK_S)
                .wait_time_seconds(seconds.clamp(1, WAIT_S))
                .send()
                .await
                .map_err(|error| said("ReceiveMessage", &error))?;
            let mut answer = None;
            for message in received.messages.unwrap_or_default() {
                let reply: Option<Reply> = message
                    .body
                    .as_deref()
                    .and_then(|body| serde_json::from_str(body).ok());
                let receipt = message.receipt_handle.unwrap_or_default();
                match reply.filter(|reply| reply.id == id) {
                    Some(reply) => {
                        answer = Some(reply);
                        let gone = self.calls.delete_message().queue_url(url);
                        // One that stays expires.
                        drop(gone.receipt_handle(receipt).send().await);
                    }
                    None => {
                        let back = self.calls.change_message_visibility().queue_url(url);
                        let back = back.receipt_handle(receipt).visibility_timeout(0);
                        // It is seen again after a while in any case.
                        drop(back.send().await);
                    }
                }
            }
            if answer.is_some() {
                return Ok(answer);
            }
        }
    }
}
