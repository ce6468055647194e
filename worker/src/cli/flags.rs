//! Rows of the table of settings as flags of a command.

use std::ffi::OsString;
use std::marker::PhantomData;

use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches};

use crate::settings::{FlagValue, JobSettings, Kind, Setting, TABLE, expected};

/// Which rows a command takes.
pub(super) trait Rows {
    fn has(name: &str) -> bool;
}

/// Every row.
#[derive(Debug)]
pub(super) struct All;

/// Those that say where a job is.
#[derive(Debug)]
pub(super) struct Place;

/// Those that say where commands go, and answers come from.
#[derive(Debug)]
pub(super) struct Mail;

impl Rows for Mail {
    fn has(name: &str) -> bool {
        JobSettings::MAIL.contains(&name)
    }
}

/// Those that say what is kept of it.
#[derive(Debug)]
pub(super) struct Keeping;

impl Rows for All {
    fn has(_: &str) -> bool {
        true
    }
}

impl Rows for Place {
    fn has(name: &str) -> bool {
        JobSettings::PLACE.contains(&name)
    }
}

impl Rows for Keeping {
    fn has(name: &str) -> bool {
        JobSettings::KEEPING.contains(&name)
    }
}

/// The settings that were given as flags.
#[derive(Debug)]
pub(super) struct Flags<R> {
    pub given: Vec<FlagValue>,
    rows: PhantomData<R>,
}

fn rows<R: Rows>() -> impl Iterator<Item = &'static Setting> {
    TABLE.iter().filter(|setting| R::has(setting.name))
}

impl<R: Rows> Args for Flags<R> {
    fn augment_args(command: clap::Command) -> clap::Command {
        rows::<R>().fold(command, |command, setting| command.arg(argument(setting)))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl<R: Rows> FromArgMatches for Flags<R> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = rows::<R>().filter_map(|setting| {
            let values: Vec<&OsString> = matches.get_many(setting.name)?.collect();
            let value = values.into_iter().fold(OsString::new(), |mut list, value| {
                if !list.is_empty() {
                    list.push(setting.kind.separator().unwrap_or(',').to_string());
                }
                list.push(value);
                list
            });
            Some(FlagValue {
                setting: setting.name,
                flag: setting.flag(),
                value,
            })
        });
        Ok(Self {
            given: given.collect(),
            rows: PhantomData,
        })
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
        .action(match setting.kind.is_list() {
            true => ArgAction::Append,
            false => ArgAction::Set,
        })
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
        Kind::StoreAddress
        | Kind::Endpoint
        | Kind::PlainEndpoint
        | Kind::WebAddress
        | Kind::QueueUrl => "URL",
        Kind::Region
        | Kind::AzureAccount
        | Kind::JobName
        | Kind::Instance
        | Kind::LifecycleHook => "NAME",
        Kind::Choice(_) => "CHOICE",
        Kind::Sources => "NAMES",
        Kind::Period => "PERIOD",
        Kind::CpuBaseline => "LEVEL|PATH",
        Kind::Duration(..) => "DURATION",
        Kind::Size(..) | Kind::AutoSize(..) => "SIZE",
        Kind::Count(..) | Kind::ExitCode => "NUMBER",
        Kind::Program | Kind::Path(_) | Kind::Paths | Kind::Preserve => "PATH",
        Kind::PreserveExclude => "PATTERN",
        Kind::KmsKey | Kind::KmsKeys => "KEY",
        Kind::Rollback => "GENERATION",
        Kind::ListenAddress => "ADDRESS:PORT",
        Kind::Moves => "OLD:NEW",
        Kind::LogFilter => "FILTER",
        Kind::PlainText(_) => "TEXT",
    }
}
