//! `reprieve ps`: all jobs and workers of a store.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::Invocation;
use super::snapshots::Common;
use crate::failure::{ExitCode, Failure};
use crate::operate::{Action, Refresh, Request};
use crate::settings::{About, FlagValue, JobSettings, Layers};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(2);

/// Say which jobs a store has, who runs them, and how much of their work no snapshot holds
///
/// Without --job it tells of all of them. A worker that was not heard of for three minutes is silent; a job is lost
/// if its owner left neither a goodbye nor a trace.
#[derive(Debug, Args)]
#[command(after_long_help = format!("{EXAMPLES}\n{}", super::after_help(Some("ps"))))]
pub(super) struct Ps {
    /// Look again every two seconds; on a terminal
    #[arg(long, conflicts_with = "json")]
    watch: bool,

    /// Serve a page about the store to browsers, live, until a signal ends it; whoever can reach the address can read it
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with_all = ["json", "watch"])]
    serve: Option<SocketAddr>,

    #[command(flatten)]
    common: Common,
}

const EXAMPLES: &str = "\
Examples:
  reprieve ps --store s3://my-bucket/jobs
  reprieve ps --watch --store s3://my-bucket/jobs
  reprieve ps --json --store s3://my-bucket/jobs --job nightly
  reprieve ps --serve 127.0.0.1:8080 --store s3://my-bucket/jobs
";

impl Ps {
    pub(super) fn invocation<'a>(
        self,
        layers: impl FnOnce(Option<PathBuf>, Vec<FlagValue>) -> Layers<'a>,
    ) -> Result<Invocation, Failure> {
        if self.watch && !std::io::stdout().is_terminal() {
            let failure = Failure::new(ExitCode::SettingsInvalid, "--watch needs a terminal");
            return Err(failure.remedy("leave it out, and ask again as often as you like"));
        }
        let Common {
            config,
            place,
            json,
        } = self.common;
        let layers = layers(config, place.given);
        Ok(Invocation::Operate(Box::new(Request {
            settings: JobSettings::load_about(&layers, About::AnyJob)?,
            action: Action::Ps(match (self.serve, self.watch) {
                (Some(address), _) => Refresh::Served(address),
                (None, true) => Refresh::Every(INTERVAL),
                (None, false) => Refresh::Once,
            }),
            format: super::format(json),
        })))
    }
}
