//! For tests that need a process of their own.

use std::process::Command;

/// This program of tests, to run one of them alone. `module` is that of the test, as `module_path!` has it.
pub(crate) fn command(module: &str, test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    let (_, module) = module.split_once("::").expect("below the crate's root");
    command.args([&format!("{module}::{test}"), "--exact", "--nocapture"]);
    command
}
