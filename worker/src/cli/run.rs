//! `reprieve run`: its flags are the table of settings.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::flags::{All, Flags};
use super::{AppCommand, Invocation};
use crate::failure::{ExitCode, Failure};
use crate::settings::{FlagValue, Layers, Settings};

/// Run an app, or resume it from its newest snapshot.
///
/// Everything after the options is the app and its arguments; `--` in front of it is optional.
#[derive(Debug, Args)]
#[command(
    override_usage = "reprieve run [OPTIONS] [--] APP [ARGUMENT]...",
    after_long_help = format!("{EXAMPLES}\n{}", super::after_help(Some("run")))
)]
pub(super) struct Run {
    /// The settings file, in TOML [environment: REPRIEVE_CONFIG]
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,

    #[command(flatten)]
    settings: Flags<All>,

    /// The app and its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "APP")]
    app: Vec<OsString>,
}

const EXAMPLES: &str = "\
Examples:
  reprieve run --store s3://my-bucket/jobs --term-grace 2m -- python train.py
  reprieve run --store file:///mnt/snapshots ./simulate --steps 1000000
  reprieve run --store s3://my-bucket/jobs --job nightly --from before-the-merge -- python train.py
  REPRIEVE_STORE=s3://my-bucket/jobs REPRIEVE_JOB=nightly reprieve run ./app
";

impl Run {
    pub(super) fn invocation<'a>(
        self,
        layers: impl FnOnce(Option<PathBuf>, Vec<FlagValue>) -> Layers<'a>,
    ) -> Result<Invocation, Failure> {
        let settings = Settings::load(&layers(self.config, self.settings.given), &self.app)?;
        let mut words = self.app.into_iter();
        let app = AppCommand {
            program: words.next().unwrap_or_default(),
            arguments: words.collect(),
        };
        // An unset variable in a script: `reprieve run -- "$APP"`.
        if app.program.is_empty() {
            return Err(
                Failure::new(ExitCode::SettingsInvalid, "the name of the app is empty").remedy(
                    "write the app after the options: reprieve run [OPTIONS] -- APP [ARGUMENT]...",
                ),
            );
        }
        Ok(Invocation::Run(Box::new(settings), app))
    }
}
