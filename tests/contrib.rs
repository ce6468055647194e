//! The samples in hooks/contrib that need nothing but Python or a shell. Those for Node and Java: contrib_apps.rs.

mod harness;
mod job;
mod told;

use harness::Rootfs;
use told::is_told_and_waited_for;

#[test]
fn a_program_in_python_is_told_and_waited_for() {
    is_told_and_waited_for(Rootfs::Debian, None, &["python3", "/hooks/told.py"]);
}

#[test]
fn a_program_in_shell_is_told_and_waited_for() {
    is_told_and_waited_for(Rootfs::Debian, None, &["sh", "/hooks/told.sh"]);
}
