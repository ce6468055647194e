//! Starts the app from scratch, and says in its own words what a shell would say with 126 and 127.

use std::ffi::OsString;
use std::io;
use std::process::Command;

use crate::cures::Cures;
use crate::failure::{ExitCode, Failure};
use crate::supervisor::realm::Realm;
use crate::supervisor::reaper::{Reaper, Watched};
use crate::supervisor::stdio::AppEnds;
use crate::sys::{self};

/// What the app's environment does not get: it is our own.
const OURS: &str = "REPRIEVE_";

/// Starts the app in a session of its own.
pub(crate) fn start(
    reaper: &Reaper,
    argv: &[OsString],
    ends: AppEnds,
    cures: &Cures,
    realm: Option<&Realm>,
) -> Result<Watched, Failure> {
    let (program, arguments) = argv
        .split_first()
        .expect("settings refuse an empty command");
    let mut command = Command::new(program);
    command.args(arguments);
    for (name, _) in
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with(OURS))
    {
        command.env_remove(name);
    }
    command.envs(cures.variables());
    if cures.takes_in_orphans {
        sys::take_in_orphans(&mut command);
    }
    let failed = |error: io::Error| failure(&program.to_string_lossy(), error);
    let filter = |command: &mut Command| {
        if let Some(filter) = cures.filter.clone() {
            sys::filter(command, filter);
        }
    };
    let (streams, terminal) = ends.into_streams().map_err(failed)?;
    reaper
        .spawn(|| match realm {
            Some(realm) => {
                let entry = realm.entry();
                entry.spawn(command, |mut command| {
                    // With the capabilities that the realm is made with, and after it was entered.
                    filter(&mut command);
                    sys::keep_realm_capabilities_back(&mut command);
                    sys::spawn(command, streams, terminal, &[])
                })
            }
            None => {
                filter(&mut command);
                sys::spawn(command, streams, terminal, &[])
            }
        })
        .map_err(failed)
}

fn failure(program: &str, error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::NotFound => Failure::new(ExitCode::NotFound, format!("the app {program} was not found"))
            .caused_by(error)
            .remedy("check the command behind `--`, and that it or its interpreter is in the image and in PATH"),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ExecutableFileBusy => {
            Failure::new(ExitCode::NotExecutable, format!("the app {program} cannot be executed"))
                .caused_by(error)
                .remedy("make it executable (chmod +x) and check that its file system is not mounted noexec")
        }
        _ if error.raw_os_error() == Some(nix::libc::ENOEXEC) => {
            Failure::new(ExitCode::NotExecutable, format!("the app {program} is not a program"))
                .caused_by(error)
                .remedy("it is neither a binary for this machine nor a script with a `#!` line")
        }
        _ => Failure::new(ExitCode::FailedBeforeReady, format!("the app {program} could not be started"))
            .caused_by(error),
    }
}
