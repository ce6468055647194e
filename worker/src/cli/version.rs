//! `reprieve version`: what this build is and which formats it speaks.

use std::env::consts::{ARCH, OS};

use clap::Args;
use reprieve_core::manifest;

use super::Invocation;
use crate::control::protocol;

/// Print the version, the platform and the formats of this build.
#[derive(Debug, Args)]
pub(super) struct Version {}

impl Version {
    pub(super) fn invocation(&self) -> Invocation {
        Invocation::Print(format!(
            "reprieve {}\nplatform {ARCH}-{OS}\nsnapshot format {}\ncontrol protocol {}\n",
            env!("CARGO_PKG_VERSION"),
            manifest::VERSION,
            protocol::VERSION
        ))
    }
}
