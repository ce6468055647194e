//! `reprieve send`: a command into the queue of a worker that may be anywhere, and its answer.
//!
//! Which queue is told by the worker's entry in the registry; a job's own queue has the job's name. A command that nobody
//! began within the time is not carried out later, when nobody expects it any more.

use std::io::Write;
use std::time::Duration;

use reprieve_core::command::{Asks, Command, Reply, Target};
use reprieve_core::notice::{Afterwards, Settled, WallMs};
use reprieve_core::worker::Worker;
use reprieve_hooks::sqs::MailError;
use reprieve_hooks::sqs::post::Post;
use reprieve_hooks::sqs::queue::name_of;
use serde::Serialize;
use tokio::time::Instant;
use url::Url;

use crate::aws;
use crate::control::client::Format;
use crate::failure::{ExitCode, Failure};
use crate::operate::SCHEMA;
use crate::place::{self, unreachable_store};
use crate::queue::{PREFIX, region};
use crate::registry::Registry;
use crate::settings::JobSettings;
use crate::sources;

/// What a worker is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Checkpoint {
        leave_running: bool,
        tag: Option<String>,
    },
    Stop,
    Status,
}

/// A command, ready to be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub settings: JobSettings,
    pub what: What,
    pub worker: Option<String>,
    pub instance: Option<String>,
    pub wait: bool,
    pub timeout: Duration,
    pub format: Format,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Sent {
    schema: u32,
    id: String,
    queue: String,
    reply: Option<Reply>,
}

impl Request {
    /// Sends it, waits if that is wanted, and says on `out` what came of it.
    pub async fn carry_out(self, out: &mut impl Write) -> Result<(), Failure> {
        let (post, queue) = self.queue().await?;
        let now = sources::wall_now();
        let within = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
        let by = WallMs(now.0.saturating_add(within));
        let job = Some(self.settings.job.clone()).filter(|job| !job.is_empty());
        let command = Command {
            id: crate::catalog::nonce(),
            target: Target {
                job,
                worker: self.worker.clone(),
                instance: self.instance.clone(),
            },
            asks: match &self.what {
                What::Checkpoint { leave_running, tag } => Asks::Checkpoint {
                    afterwards: match leave_running {
                        true => Afterwards::Continue,
                        false => Afterwards::Stop,
                    },
                    tag: tag.clone(),
                    deadline: None,
                },
                What::Stop => Asks::Stop,
                What::Status => Asks::Status,
            },
            issued_at: Some(now),
            not_after: Some(by),
        };
        let not_sent = |error| refused("the command could not be sent", error);
        post.send(&queue, &command.to_text())
            .await
            .map_err(not_sent)?;
        let reply = match (&self.settings.reply_queue, self.wait) {
            (Some(replies), true) => {
                let answer = post
                    .answer(replies.as_str(), &command.id, self.timeout)
                    .await;
                let answer =
                    answer.map_err(|error| refused("the answer could not be read", error))?;
                Some(answer.ok_or_else(|| self.no_answer())?)
            }
            _ => None,
        };
        let sent = Sent {
            schema: SCHEMA,
            id: command.id,
            queue,
            reply,
        };
        let text = match self.format {
            Format::Json => serde_json::to_string(&sent).expect("strings and numbers are JSON"),
            Format::Human => sent.human(),
        };
        // Whoever asked and does not read has nothing to be told.
        drop(out.write_all(format!("{text}\n").as_bytes()));
        sent.verdict()
    }

    fn no_answer(&self) -> Failure {
        let within = humantime::format_duration(self.timeout);
        Failure::new(ExitCode::TimedOut, format!("there was no answer within {within}")).remedy(
            "the command is not begun later than that; does the worker run (`reprieve ps`), and has it the same \
             --reply-queue?",
        )
    }

    /// The queue that whoever is meant reads, and the way there: its URL says in which region.
    async fn queue(&self) -> Result<(Post, String), Failure> {
        let post = async |url: Option<&Url>| Post::new(&aws::shared(region(url)).await);
        if let Some(url) = &self.settings.queue_url {
            return Ok((post(Some(url)).await, url.to_string()));
        }
        let address = &self.settings.store.address;
        let store = place::open(&self.settings.store).await?;
        let deadline = Instant::now() + self.settings.store.timeout;
        let present = Registry::new(store).workers(deadline).await;
        let present = present.map_err(|error| unreachable_store(address, error))?;
        let workers = present.into_iter().filter_map(|one| one.worker.ok());
        let mut meant: Vec<Worker> = workers.filter(|worker| self.means(worker)).collect();
        // Its owner, if several run or wait for the job.
        meant.sort_by_key(|worker| worker.epoch);
        if let Some(url) = meant.iter().rev().find_map(|worker| worker.queue.clone()) {
            return Ok((post(Url::parse(&url).ok().as_ref()).await, url));
        }
        let job = meant.last().map(|worker| worker.job.clone());
        let job = job.unwrap_or_else(|| self.settings.job.clone());
        if job.is_empty() {
            let what = format!("no such worker is in {address}");
            return Err(Failure::new(ExitCode::NotDone, what)
                .remedy("`reprieve ps` says who is there; or give --job or --queue-url"));
        }
        let post = post(None).await;
        match post.queue(&name_of(PREFIX, &job)).await {
            Ok(own) => Ok((post, own)),
            Err(error) => Err(refused(&format!("no queue of job {job} is known"), error)),
        }
    }

    fn means(&self, worker: &Worker) -> bool {
        let job = &self.settings.job;
        (job.is_empty() || worker.job == *job)
            && self.worker.as_ref().is_none_or(|host| worker.host == *host)
            && (self.instance.is_none() || worker.instance == self.instance)
    }
}

fn refused(what: &str, error: MailError) -> Failure {
    let remedy = error.remedy;
    Failure::new(ExitCode::NotDone, what)
        .caused_by(error)
        .remedy(remedy)
}

impl Sent {
    fn human(&self) -> String {
        let Some(reply) = &self.reply else {
            return format!("command {} is in {}", self.id, self.queue);
        };
        let by = format!("{} on {}", reply.from.job, reply.from.worker);
        match (&reply.settled, &reply.status) {
            (_, Some(status)) => format!("{by}: {status}"),
            (Settled::Durable { generation, .. }, _) => {
                format!("{by}: generation {generation} is durable")
            }
            (Settled::Refused { reason }, _) => format!("{by} refused: {reason}"),
            (Settled::Failed { reason }, _) => format!("{by} failed: {reason}"),
            (Settled::Noted, _) => format!("{by}: done"),
        }
    }

    fn verdict(&self) -> Result<(), Failure> {
        let Some(reply) = &self.reply else {
            return Ok(());
        };
        match &reply.settled {
            Settled::Durable { .. } | Settled::Noted => Ok(()),
            Settled::Refused { reason } => Err(Failure::new(
                ExitCode::Refused,
                format!("the worker refused the command: {reason}"),
            )),
            Settled::Failed { reason } => Err(Failure::new(
                ExitCode::CheckpointFailed,
                format!("the worker could not do it: {reason}"),
            )),
        }
    }
}
