//! `reprieve wait`: for scripts that go on when the job runs, is stored, or is left alone.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::Invocation;
use super::status::client_flags;
use crate::control::client::WaitRequest;
use crate::control::protocol::Until;
use crate::failure::Failure;
use crate::settings::{ClientSettings, FlagValue, Layers};

/// Wait until the job runs, is stored, or nothing is under way
///
/// Ends with 0 when it is so. A supervisor that is not there yet is waited for, too.
#[derive(Debug, Args)]
#[command(after_long_help = format!("{EXAMPLES}\n{}", super::after_help(Some("wait"))))]
pub(super) struct Wait {
    /// What to wait for
    #[arg(long = "for", value_name = "WHAT", default_value = "running")]
    until: What,

    /// Give up after this time
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    timeout: Duration,

    /// The supervisor's socket [default: the setting control-socket, /run/reprieve/control.sock]
    #[arg(long, value_name = "PATH")]
    control_socket: Option<OsString>,

    /// Print the answer as a line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// The job runs, from scratch or resumed
    Running,
    /// The checkpoint that is under way, or else the next one, is durable; 180 if it fails
    Checkpoint,
    /// Neither a start, with its restore, nor a checkpoint is under way
    Over,
}

const EXAMPLES: &str = "\
Examples:
  docker exec CONTAINER reprieve wait --timeout 2m
  reprieve wait --for checkpoint --timeout 15m
  reprieve wait --for over
";

impl Wait {
    pub(super) fn invocation<'a>(
        self,
        layers: impl FnOnce(Option<PathBuf>, Vec<FlagValue>) -> Layers<'a>,
    ) -> Result<Invocation, Failure> {
        let settings = ClientSettings::load(&layers(None, client_flags(self.control_socket)))?;
        Ok(Invocation::Wait(WaitRequest {
            control_socket: settings.control_socket,
            until: match self.until {
                What::Running => Until::Running,
                What::Checkpoint => Until::Checkpoint,
                What::Over => Until::Over,
            },
            timeout: self.timeout,
            format: super::format(self.json),
        }))
    }
}
