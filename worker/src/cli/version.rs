//! `reprieve version`: what this build is and which formats it speaks.

use std::env::consts::{ARCH, OS};

use clap::Args;
use reprieve_core::manifest;
use serde_json::json;

use super::Invocation;
use crate::control::protocol;

/// Print the version, the platform and the formats of this build.
#[derive(Debug, Args)]
pub(super) struct Version {
    /// Print the answer as a line of JSON
    #[arg(long)]
    json: bool,
}

impl Version {
    pub(super) fn invocation(&self) -> Invocation {
        if self.json {
            let version = json!({
                "schema": 1,
                "version": env!("CARGO_PKG_VERSION"),
                "platform": format!("{ARCH}-{OS}"),
                "snapshot_format": manifest::VERSION,
                "control_protocol": protocol::VERSION,
            });
            return Invocation::Print(format!("{version}\n"));
        }
        Invocation::Print(format!(
            "reprieve {}\nplatform {ARCH}-{OS}\nsnapshot format {}\ncontrol protocol {}\n",
            env!("CARGO_PKG_VERSION"),
            manifest::VERSION,
            protocol::VERSION
        ))
    }
}
