//! The samples in hooks/contrib that need what `make test-apps` installs.

mod harness;
mod job;
mod told;

use harness::Rootfs;
use told::is_told_and_waited_for;

#[test]
fn a_program_in_node_is_told_and_waited_for() {
    is_told_and_waited_for(Rootfs::Apps, None, &["node", "/hooks/told.js"]);
}

#[test]
fn a_program_in_java_is_told_and_waited_for() {
    let built = ["javac", "-d", "/hooks", "/hooks/Told.java"];
    let app = ["java", "-cp", "/hooks", "Told"];
    is_told_and_waited_for(Rootfs::Apps, Some(&built), &app);
}
