//! `reprieve run`: its flags are the table of settings.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, FromArgMatches};

use super::{AppCommand, Invocation};
use crate::failure::{ExitCode, Failure};
use crate::settings::{FlagValue, Kind, Layers, Setting, Settings, TABLE, expected};

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
    settings: SettingFlags,

    /// The app and its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "APP")]
    app: Vec<OsString>,
}

const EXAMPLES: &str = "\
Examples:
  reprieve run --store s3://my-bucket/jobs --term-grace 2m -- python train.py
  reprieve run --store file:///mnt/snapshots ./simulate --steps 1000000
  REPRIEVE_STORE=s3://my-bucket/jobs REPRIEVE_JOB=nightly reprieve run ./app
";

impl Run {
    pub(super) fn invocation<'a>(
        self,
        layers: impl FnOnce(Option<PathBuf>, Vec<FlagValue>) -> Layers<'a>,
    ) -> Result<Invocation, Failure> {
        let settings = Settings::load(&layers(self.config, self.settings.0), &self.app)?;
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

/// The settings that were given as flags.
#[derive(Debug)]
struct SettingFlags(Vec<FlagValue>);

impl Args for SettingFlags {
    fn augment_args(command: clap::Command) -> clap::Command {
        TABLE
            .iter()
            .fold(command, |command, setting| command.arg(argument(setting)))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = TABLE.iter().filter_map(|setting| {
            let value = matches.get_one::<OsString>(setting.name)?;
            Some(FlagValue {
                setting: setting.name,
                flag: setting.flag(),
                value: value.clone(),
            })
        });
        Ok(Self(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Clap takes every value as it is: the settings check it together with all others.
fn argument(setting: &'static Setting) -> Arg {
    let default = match setting.default {
        Some(default) => format!("[default: {default}]"),
        None => format!("[default: {}]", setting.unset),
    };
    let first_sentence = setting
        .meaning
        .split_once(". ")
        .map_or(setting.meaning.trim_end_matches('.'), |(first, _)| first);
    Arg::new(setting.name)
        .long(setting.name)
        .value_name(value_name(setting.kind))
        .value_parser(clap::value_parser!(OsString))
        .help_heading(setting.section)
        .help(format!("{first_sentence} {default}"))
        .long_help(format!(
            "{}\n\nGive {}.\n{default} [environment: {}]",
            setting.meaning,
            expected(setting.kind),
            setting.variable()
        ))
}

fn value_name(kind: Kind) -> &'static str {
    match kind {
        Kind::StoreAddress | Kind::Endpoint => "URL",
        Kind::Region | Kind::JobName => "NAME",
        Kind::Choice(_) => "CHOICE",
        Kind::Duration(..) => "DURATION",
        Kind::Size(..) => "SIZE",
        Kind::Count(..) | Kind::ExitCode => "NUMBER",
        Kind::Program | Kind::Path(_) => "PATH",
        Kind::ListenAddress => "ADDRESS:PORT",
        Kind::LogFilter => "FILTER",
    }
}
