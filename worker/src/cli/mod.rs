//! The command line: which command, with which settings, or what is wrong with it.
//!
//! [`parse`] only decides; carrying out is left to `main`, the supervisor, `control::client`
//! and `operate`. Flags of `run` follow from
//! the table of settings. Whatever is wrong, clap's own complaints included, becomes a [`Failure`] with exit code 174:
//! clap's usual 2 could be the app's.

mod checkpoint;
mod doctor;
mod flags;
mod manual;
mod ps;
mod run;
mod send;
mod snapshots;
mod status;
mod version;
mod wait;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::control::client::{CheckpointRequest, Format, StatusRequest, WaitRequest};
use crate::failure::{ExitCode, Failure};
use crate::operate;
use crate::settings::{DEFAULT_FILE, Environment, FlagValue, Layers, Settings};

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Invocation {
    /// Supervise this app.
    Run(Box<Settings>, AppCommand),
    /// Ask the supervisor for a checkpoint.
    Checkpoint(CheckpointRequest),
    /// Ask the supervisor how it is.
    Status(StatusRequest),
    /// Wait until the supervisor is so far.
    Wait(WaitRequest),
    /// Tell a worker something through its queue.
    Send(Box<crate::send::Request>),
    /// List, look at or change a job's snapshots.
    Operate(Box<operate::Request>),
    /// Find out whether jobs can be checkpointed here.
    Doctor(Box<crate::doctor::Request>),
    /// Print this text to stdout and be done.
    Print(String),
}

/// The app and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppCommand {
    /// A path, or a name to look up in PATH.
    pub program: OsString,
    pub arguments: Vec<OsString>,
}

/// Runs an app, checkpoints it before its machine is taken, and resumes it on the next one.
///
/// Reprieve is the entry point of a container. It runs the app as its child, passes signals and exit codes through, and on
/// SIGTERM stores a snapshot of the app's processes with CRIU. The next container with the same store and job goes on
/// from there.
#[derive(Debug, Parser)]
#[command(name = "reprieve", version, after_long_help = after_help(None))]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Checkpoint(checkpoint::Checkpoint),
    Status(status::Status),
    Wait(wait::Wait),
    Send(send::Send),
    Snapshots(snapshots::Snapshots),
    Show(snapshots::Show),
    Inspect(snapshots::Inspect),
    Diff(snapshots::Diff),
    Verify(snapshots::Verify),
    Extract(snapshots::Extract),
    Tag(snapshots::Tag),
    Untag(snapshots::Untag),
    Pin(snapshots::Pin),
    Unpin(snapshots::Unpin),
    Prune(snapshots::Prune),
    Clone(snapshots::Clone),
    Reports(snapshots::Reports),
    Ps(ps::Ps),
    Doctor(doctor::Doctor),
    Completions(manual::Completions),
    Manual(manual::Manual),
    Version(version::Version),
}

/// The whole command line as clap knows it, with every command's own flags.
pub fn definition() -> clap::Command {
    let mut definition = CommandLine::command();
    definition.build();
    definition
}

/// Reads the command line, `args[0]` being our own name, with the environment and the settings file.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    environment: &dyn Environment,
) -> Result<Invocation, Failure> {
    parse_with(args, environment, Path::new(DEFAULT_FILE))
}

fn parse_with(
    args: impl IntoIterator<Item = OsString>,
    environment: &dyn Environment,
    default_file: &Path,
) -> Result<Invocation, Failure> {
    let command_line = match CommandLine::try_parse_from(args) {
        Ok(command_line) => command_line,
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            ) =>
        {
            return Ok(Invocation::Print(error.render().to_string()));
        }
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            return Err(
                Failure::new(ExitCode::SettingsInvalid, "no command is given")
                    .remedy("begin with `reprieve run -- APP`; `reprieve --help` says more"),
            );
        }
        Err(error) => return Err(usage_failure(&error.render().to_string())),
    };
    let layers = |file: Option<PathBuf>, flags: Vec<FlagValue>| Layers {
        flags,
        file,
        default_file,
        environment,
    };
    match command_line.command {
        Command::Run(run) => run.invocation(layers),
        Command::Checkpoint(checkpoint) => checkpoint.invocation(layers),
        Command::Status(status) => status.invocation(layers),
        Command::Wait(wait) => wait.invocation(layers),
        Command::Send(send) => send.invocation(layers),
        Command::Snapshots(command) => command.invocation(layers),
        Command::Show(command) => command.invocation(layers),
        Command::Inspect(command) => command.invocation(layers),
        Command::Diff(command) => command.invocation(layers),
        Command::Verify(command) => command.invocation(layers),
        Command::Extract(command) => command.invocation(layers),
        Command::Tag(command) => command.invocation(layers),
        Command::Untag(command) => command.invocation(layers),
        Command::Pin(command) => command.invocation(layers),
        Command::Unpin(command) => command.invocation(layers),
        Command::Prune(command) => command.invocation(layers),
        Command::Clone(command) => command.invocation(layers),
        Command::Reports(command) => command.invocation(layers),
        Command::Ps(ps) => ps.invocation(layers),
        Command::Doctor(doctor) => doctor.invocation(layers),
        Command::Completions(completions) => Ok(completions.invocation()),
        Command::Manual(manual) => manual.invocation(),
        Command::Version(version) => Ok(version.invocation()),
    }
}

/// Clap's complaint as ours: its first paragraph says what, its tips are details, its usage the remedy.
fn usage_failure(rendered: &str) -> Failure {
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (what, rest) = rendered.split_once("\n\n").unwrap_or((rendered, ""));
    let what = one_line(what);
    let mut failure = Failure::new(
        ExitCode::SettingsInvalid,
        what.strip_prefix("error: ").unwrap_or(&what),
    );
    let mut remedy =
        String::from("`reprieve --help` and `reprieve COMMAND --help` say what can be given");
    for line in rest.lines().map(one_line).filter(|line| !line.is_empty()) {
        if let Some(usage) = line.strip_prefix("Usage: ") {
            remedy = format!("{usage}\n{remedy}");
        } else if !line.starts_with("For more information") {
            failure = failure.detail(line);
        }
    }
    failure.remedy(remedy)
}

/// What stands below the options: the environment and the exit codes of one command or of all.
fn after_help(command: Option<&str>) -> String {
    let mut text = String::from(
        "Environment:\n  \
           REPRIEVE_CONFIG       the settings file (TOML) instead of /etc/reprieve.toml\n  \
           REPRIEVE_<SETTING>    each setting, e.g. REPRIEVE_TERM_GRACE for --term-grace\n\n\
         Exit codes:\n",
    );
    let concerns = |code: &ExitCode| match command {
        None => true,
        Some(command) => code
            .commands()
            .split(", ")
            .any(|other| other == command || other == "all"),
    };
    for code in ExitCode::ALL.iter().filter(|code| concerns(code)) {
        text.push_str(&format!("  {:<8} {}\n", code.number(), code.name()));
    }
    if command.is_none_or(|command| command == "run") {
        text.push_str("  other    the app's own exit code, or 128 + the signal that ended it\n");
    }
    text
}

/// How answers are to be printed.
fn format(json: bool) -> Format {
    match json {
        true => Format::Json,
        false => Format::Human,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::{Action, Prune, Selector, Which};
    use std::time::Duration;

    struct Variables(&'static [(&'static str, &'static str)]);

    impl Environment for Variables {
        fn variables(&self) -> Vec<(OsString, OsString)> {
            self.0
                .iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect()
        }
    }

    fn parse_in(environment: &Variables, line: &str) -> Result<Invocation, Failure> {
        let args = ["reprieve"].into_iter().chain(line.split_whitespace());
        parse_with(
            args.map(OsString::from),
            environment,
            Path::new("/nowhere/reprieve.toml"),
        )
    }

    fn parsed(line: &str) -> Result<Invocation, Failure> {
        parse_in(&Variables(&[]), line)
    }

    #[test]
    fn definitions_are_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn every_command_is_completed_and_has_its_page() {
        let definition = definition();
        let names = || definition.get_subcommands().map(clap::Command::get_name);
        assert!(names().count() > 10);
        for shell in ["bash", "zsh", "fish"] {
            let Ok(Invocation::Print(script)) = parsed(&format!("completions {shell}")) else {
                panic!("there are completions for {shell}");
            };
            for name in names() {
                assert!(script.contains(name), "{name} is not completed by {shell}");
            }
        }
        for name in names().filter(|name| *name != "help") {
            let Ok(Invocation::Print(page)) = parsed(&format!("manual {name}")) else {
                panic!("there is a page about {name}");
            };
            let title = format!(".TH reprieve-{name} 1");
            assert!(page.contains(&title), "{name}: {page}");
        }
        let failure = parsed("manual nothing").expect_err("there is no such command");
        assert_eq!(failure.code(), ExitCode::SettingsInvalid);
    }

    /// The command line, the app's words, and whether a store was set.
    #[test]
    fn the_app_is_everything_behind_the_options() {
        for (line, app, has_store) in [
            ("run app", "app", false),
            ("run -- app", "app", false),
            (
                "run --store file:///s app --store x -h --version",
                "app --store x -h --version",
                true,
            ),
            ("run --store=file:///s -- app -- -x", "app -- -x", true),
            ("run -- --app", "--app", false),
            ("run app run --help", "app run --help", false),
        ] {
            let Ok(Invocation::Run(settings, command)) = parsed(line) else {
                panic!("{line}: {:?}", parsed(line));
            };
            let words: Vec<_> = [command.program]
                .into_iter()
                .chain(command.arguments)
                .collect();
            assert_eq!(
                words,
                app.split(' ').map(OsString::from).collect::<Vec<_>>(),
                "{line}"
            );
            assert_eq!(settings.store.is_some(), has_store, "{line}");
        }
    }

    #[test]
    fn the_derived_job_follows_the_app_alone() {
        let job = |line: &str| match parsed(line) {
            Ok(Invocation::Run(settings, _)) => settings.job,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(job("run app x"), job("run --term-grace 2m -- app x"));
        assert_ne!(job("run app x"), job("run app y"));
    }

    #[test]
    fn clients_take_the_environment_and_their_flags() {
        let environment = Variables(&[
            ("REPRIEVE_CONTROL_SOCKET", "/env.sock"),
            ("REPRIEVE_CHECKPOINT_TIMEOUT", "40s"),
        ]);
        let request = |socket: &str, leave_running, seconds, format| {
            Invocation::Checkpoint(CheckpointRequest {
                control_socket: socket.into(),
                leave_running,
                timeout: Duration::from_secs(seconds),
                format,
            })
        };
        for (line, expected) in [
            ("checkpoint", request("/env.sock", false, 40, Format::Human)),
            (
                "checkpoint --leave-running --timeout 2m --control-socket /flag.sock --json",
                request("/flag.sock", true, 120, Format::Json),
            ),
            (
                "status --json",
                Invocation::Status(StatusRequest {
                    control_socket: "/env.sock".into(),
                    format: Format::Json,
                }),
            ),
        ] {
            assert_eq!(parse_in(&environment, line).expect(line), expected);
        }
    }

    #[test]
    fn commands_on_snapshots_take_the_place_and_what_is_kept_from_every_layer() {
        let environment = Variables(&[
            ("REPRIEVE_STORE", "file:///env"),
            ("REPRIEVE_JOB", "env"),
            ("REPRIEVE_KEEP_DAILY", "7"),
            // What only `run` uses may be wrong.
            ("REPRIEVE_TERM_GRACE", "soon"),
        ]);
        let asked = |line: &str| match parse_in(&environment, line) {
            Ok(Invocation::Operate(request)) => *request,
            other => panic!("{line}: {other:?}"),
        };
        let listed = asked("snapshots");
        assert_eq!(listed.settings.store.address, "file:///env");
        assert_eq!(
            (listed.settings.job.as_str(), listed.format),
            ("env", Format::Human)
        );
        let shown = asked("show --job other 12 --store s3://b/p --s3-region r --json");
        assert_eq!(shown.settings.store.address, "s3://b/p");
        assert_eq!(shown.settings.store.s3_region.as_deref(), Some("r"));
        assert_eq!(
            (shown.settings.job.as_str(), shown.format),
            ("other", Format::Json)
        );
        assert_eq!(shown.action, Action::Show(Selector::Number(12)));
        assert_eq!(
            asked("verify").action,
            Action::Verify(Which::One(Selector::Newest))
        );
        assert_eq!(asked("verify --all").action, Action::Verify(Which::All));
        let pruned = asked("prune --dry-run --keep-generations 3 --sweep-grace 1h");
        assert_eq!(pruned.action, Action::Prune(Prune::DryRun));
        let retention = pruned.settings.retention;
        assert_eq!(
            (retention.last, retention.hourly, retention.daily),
            (3, 0, 7)
        );
        assert_eq!(pruned.settings.sweep_grace, Duration::from_secs(3600));
        assert_eq!(asked("prune").action, Action::Prune(Prune::CarryOut));
    }

    #[test]
    fn help_and_version_are_no_failures() {
        for (line, part) in [
            ("--help", "Usage: reprieve <COMMAND>"),
            ("-h", "Usage: reprieve <COMMAND>"),
            ("help run", "reprieve run [OPTIONS] [--] APP"),
            ("run --help", "[environment: REPRIEVE_DEADLINE_MARGIN]"),
            ("run --help", "171      no valid snapshot"),
            ("run --help", "reprieve run --store s3://"),
            ("run -h", "--metrics-listen <ADDRESS:PORT>"),
            ("checkpoint --help", "183      timed out"),
            ("status --help", "181      no supervisor"),
            (
                "--version",
                concat!("reprieve ", env!("CARGO_PKG_VERSION"), "\n"),
            ),
            ("version", "control protocol 1"),
            ("version --json", "\"control_protocol\":1,"),
        ] {
            match parsed(line) {
                Ok(Invocation::Print(text)) => assert!(text.contains(part), "{line}: {text}"),
                other => panic!("{line}: {other:?}"),
            }
        }
        match parsed("checkpoint --help") {
            Ok(Invocation::Print(text)) => assert!(!text.contains("no valid snapshot"), "{text}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_setting_is_a_flag_with_its_meaning() {
        let Ok(Invocation::Print(text)) = parsed("run --help") else {
            panic!("help is no failure");
        };
        for setting in crate::settings::TABLE {
            assert!(text.contains(&setting.flag()), "{}", setting.name);
            assert!(text.contains(&setting.variable()), "{}", setting.name);
        }
    }

    #[test]
    fn complaints_are_settings_failures_with_suggestions() {
        for (line, part) in [
            ("", "no command is given"),
            (
                "chekpoint",
                "unrecognized subcommand 'chekpoint'\n  - tip: some similar subcommands exist: 'completions', 'checkpoint'",
            ),
            (
                "run",
                "the following required arguments were not provided: <APP>...",
            ),
            (
                "run --stroe file:///s app",
                "tip: a similar argument exists: '--store'",
            ),
            ("run --job a --job b app", "cannot be used multiple times"),
            ("run --job", "a value is required for '--job <NAME>'"),
            (
                "run --term-grace 10 app",
                "term-grace = \"10\" (flag --term-grace): has no unit",
            ),
            (
                "run --config /nowhere.toml app",
                "(flag --config): the settings file cannot be read",
            ),
            (
                "checkpoint --timeout soon",
                "checkpoint-timeout = \"soon\" (flag --timeout)",
            ),
            ("status --control-socket x", "is not an absolute path"),
            (
                "snapshots --store file:///s",
                "job (built-in): is not given",
            ),
            ("show", "required arguments were not provided: <GENERATION>"),
            ("show 1/2", "a tag, or \"newest\""),
            ("tag 1 newest", "\"newest\" is taken"),
            ("pin 1 --keep-daily 3", "unexpected argument '--keep-daily'"),
            ("status extra", "unexpected argument 'extra'"),
        ] {
            let failure = parsed(line).expect_err(line);
            assert_eq!(failure.code(), ExitCode::SettingsInvalid, "{line}");
            assert!(failure.to_string().contains(part), "{line}: {failure}");
        }
    }

    #[test]
    fn a_complaint_is_printed_like_any_failure() {
        assert_eq!(
            parsed("run --stroe file:///s app")
                .expect_err("there is no such flag")
                .to_string(),
            "reprieve: unexpected argument '--stroe' found\n  \
               - tip: a similar argument exists: '--store'\n  \
               - tip: to pass '--stroe' as a value, use '-- --stroe'\n  \
               remedy: reprieve run [OPTIONS] [--] APP [ARGUMENT]...\n    \
                 `reprieve --help` and `reprieve COMMAND --help` say what can be given\n  \
               exit code: 174 (settings invalid)\n"
        );
    }

    #[test]
    fn an_empty_app_is_refused() {
        let args = ["reprieve", "run", "--", ""].map(OsString::from);
        let failure = parse_with(args, &Variables(&[]), Path::new("/nowhere")).expect_err("no app");
        assert!(
            failure.to_string().contains("the name of the app is empty"),
            "{failure}"
        );
    }
}
