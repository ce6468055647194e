//! `reprieve checkpoint`: ask the supervisor of this container for a snapshot.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::Invocation;
use super::status::client_flags;
use crate::control::client::CheckpointRequest;
use crate::failure::Failure;
use crate::settings::{ClientSettings, FlagValue, Layers};

/// Take a checkpoint of the running job now.
///
/// Returns once the snapshot is durable. Unless --leave-running is given the job is stopped then, and the container ends.
#[derive(Debug, Args)]
#[command(after_long_help = format!("{EXAMPLES}\n{}", super::after_help(Some("checkpoint"))))]
pub(super) struct Checkpoint {
    /// Let the job go on after the checkpoint
    #[arg(long)]
    leave_running: bool,

    /// Give up if the snapshot is not durable in time [default: the setting checkpoint-timeout, 25s]
    #[arg(long, value_name = "DURATION")]
    timeout: Option<OsString>,

    /// The supervisor's socket [default: the setting control-socket, /run/reprieve/control.sock]
    #[arg(long, value_name = "PATH")]
    control_socket: Option<OsString>,

    /// Print the answer as a line of JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  reprieve checkpoint --leave-running --timeout 2m
  docker exec CONTAINER reprieve checkpoint --json
";

impl Checkpoint {
    pub(super) fn invocation<'a>(
        self,
        layers: impl FnOnce(Option<PathBuf>, Vec<FlagValue>) -> Layers<'a>,
    ) -> Result<Invocation, Failure> {
        let mut flags = client_flags(self.control_socket);
        flags.extend(self.timeout.map(|value| FlagValue {
            setting: "checkpoint-timeout",
            flag: "--timeout".into(),
            value,
        }));
        let settings = ClientSettings::load(&layers(None, flags))?;
        Ok(Invocation::Checkpoint(CheckpointRequest {
            control_socket: settings.control_socket,
            leave_running: self.leave_running,
            timeout: settings.checkpoint_timeout,
            format: super::format(self.json),
        }))
    }
}
