//! `reprieve status`: ask the supervisor of this container how things are.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::Invocation;
use crate::control::client::StatusRequest;
use crate::failure::Failure;
use crate::settings::{ClientSettings, FlagValue, Layers};

/// Say what the supervisor does and how old the newest snapshot is.
#[derive(Debug, Args)]
#[command(after_long_help = format!("{EXAMPLES}\n{}", super::after_help(Some("status"))))]
pub(super) struct Status {
    /// The supervisor's socket [default: the setting control-socket, /run/reprieve/control.sock]
    #[arg(long, value_name = "PATH")]
    control_socket: Option<OsString>,

    /// Print the answer as a line of JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  reprieve status
  docker exec CONTAINER reprieve status --json
";

impl Status {
    pub(super) fn invocation<'a>(
        self,
        layers: impl FnOnce(Option<PathBuf>, Vec<FlagValue>) -> Layers<'a>,
    ) -> Result<Invocation, Failure> {
        let settings = ClientSettings::load(&layers(None, client_flags(self.control_socket)))?;
        Ok(Invocation::Status(StatusRequest {
            control_socket: settings.control_socket,
            format: super::format(self.json),
        }))
    }
}

/// The flag that both client commands have.
pub(super) fn client_flags(control_socket: Option<OsString>) -> Vec<FlagValue> {
    control_socket
        .into_iter()
        .map(|value| FlagValue {
            setting: "control-socket",
            flag: "--control-socket".into(),
            value,
        })
        .collect()
}
