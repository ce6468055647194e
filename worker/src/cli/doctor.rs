//! `reprieve doctor`: find out whether jobs can be checkpointed in this container.

use std::path::PathBuf;

use clap::Args;

use super::Invocation;
use super::flags::{All, Flags};
use crate::doctor::{Rehearsal, Request};
use crate::failure::Failure;
use crate::settings::{FlagValue, Layers, Settings};

/// Find out whether jobs can be checkpointed here, by trying
///
/// Looks at the container, CRIU, the store and the clock, and ends with a rehearsal: a small child is checkpointed and
/// resumed. Takes the settings of `reprieve run`. Ends with 0, or by the worst finding with 184 (warnings) or 185.
#[derive(Debug, Args)]
#[command(after_long_help = format!("{EXAMPLES}\n{}", super::after_help(Some("doctor"))))]
pub(super) struct Doctor {
    /// The settings file, in TOML [environment: REPRIEVE_CONFIG]
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,

    #[command(flatten)]
    settings: Flags<All>,

    /// Only look; checkpoint nothing
    #[arg(long)]
    no_rehearsal: bool,

    /// Look this process over as well, with all below it, for what a checkpoint would fail at
    #[arg(long, value_name = "PID")]
    pid: Option<i32>,

    /// Print the answer as a line of JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  reprieve doctor
  docker exec CONTAINER reprieve doctor --json
  reprieve doctor --no-rehearsal --pid 301
  reprieve doctor --store s3://my-bucket/jobs --job nightly
";

impl Doctor {
    pub(super) fn invocation<'a>(
        self,
        layers: impl FnOnce(Option<PathBuf>, Vec<FlagValue>) -> Layers<'a>,
    ) -> Result<Invocation, Failure> {
        let settings = Settings::load(
            &layers(self.config, self.settings.given),
            &["doctor".into()],
        )?;
        Ok(Invocation::Doctor(Box::new(Request {
            settings,
            rehearsal: match self.no_rehearsal {
                true => Rehearsal::LeftOut,
                false => Rehearsal::Held,
            },
            pid: self.pid,
            format: super::format(self.json),
        })))
    }
}
