//! `reprieve send`: tell a worker something through its queue.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::Invocation;
use super::flags::{Flags, Mail};
use super::snapshots::Common;
use crate::failure::{ExitCode, Failure};
use crate::send::{Request, What};
use crate::settings::{About, FlagValue, JobSettings, Layers};

/// Tell a worker something through its queue: checkpoint, stop, or say how it is
///
/// The queue is that of the worker's entry in the store (`reprieve ps --json`), or the job's own, or the one that is given.
#[derive(Debug, Args)]
#[command(after_long_help = format!("{EXAMPLES}\n{}", super::after_help(Some("send"))))]
pub(super) struct Send {
    /// What to tell it
    #[arg(value_name = "COMMAND")]
    what: Word,

    /// Let the job go on after the checkpoint
    #[arg(long)]
    leave_running: bool,

    /// The tag that the snapshot is to have
    #[arg(long, value_name = "TAG")]
    tag: Option<crate::operate::Tag>,

    /// Only the worker on this host
    #[arg(long, value_name = "HOST")]
    worker: Option<String>,

    /// Only the worker on this machine, as its provider calls it
    #[arg(long, value_name = "NAME")]
    instance: Option<String>,

    /// Wait for the answer in the reply queue
    #[arg(long)]
    wait: bool,

    /// Give up waiting after this time; a command that was not begun by then is not carried out
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    timeout: Duration,

    #[command(flatten)]
    mail: Flags<Mail>,

    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Word {
    /// Take a checkpoint; the job ends then unless --leave-running is given
    Checkpoint,
    /// Tell the app to end, without a checkpoint
    Stop,
    /// Say how things are
    Status,
}

const EXAMPLES: &str = "\
Examples:
  reprieve send checkpoint --leave-running --wait --job nightly --store s3://my-bucket/jobs --reply-queue URL
  reprieve send status --wait --worker host-a --queue-url URL --reply-queue URL
";

impl Send {
    pub(super) fn invocation<'a>(
        self,
        layers: impl FnOnce(Option<PathBuf>, Vec<FlagValue>) -> Layers<'a>,
    ) -> Result<Invocation, Failure> {
        let wrong = |what: &str, remedy: &str| {
            Failure::new(ExitCode::SettingsInvalid, what.to_owned()).remedy(remedy)
        };
        if self.what != Word::Checkpoint && (self.leave_running || self.tag.is_some()) {
            return Err(wrong(
                "--leave-running and --tag are about checkpoints",
                "leave them out, or send checkpoint",
            ));
        }
        let given = self.common.place.given.into_iter().chain(self.mail.given);
        let settings =
            JobSettings::load_about(&layers(self.common.config, given.collect()), About::Queue)?;
        if settings.job.is_empty() && self.worker.is_none() && self.instance.is_none() {
            return Err(wrong(
                "it is not said whom the command is for",
                "give --job, --worker or --instance",
            ));
        }
        if self.wait && settings.reply_queue.is_none() {
            return Err(wrong(
                "--wait needs to know where answers go",
                "give --reply-queue; it has to be that of the worker",
            ));
        }
        Ok(Invocation::Send(Box::new(Request {
            settings,
            what: match self.what {
                Word::Checkpoint => What::Checkpoint {
                    leave_running: self.leave_running,
                    tag: self.tag.map(|tag| tag.to_string()),
                },
                Word::Stop => What::Stop,
                Word::Status => What::Status,
            },
            worker: self.worker,
            instance: self.instance,
            wait: self.wait,
            timeout: self.timeout,
            format: super::format(self.common.json),
        })))
    }
}
