//! How the samples in hooks/contrib are tried: an app is told of freezes and resumes, and is waited for.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::harness::{Exit, Host, LIMIT, Rootfs, project_path, wait_until};
use crate::job::{Store, checkpoint_ok, evict, wait_for_output};

/// `tell-app` under its three names, and the samples.
fn hooks(directory: &Path) {
    let copy = |from: &str, to: &str| {
        let path = directory.join(to);
        fs::copy(project_path("hooks/contrib").join(from), &path).expect("it is there");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    };
    for moment in ["before-freeze", "after-thaw", "after-resume"] {
        copy("tell-app", moment);
    }
    for sample in ["told.py", "told.sh", "told.js", "Told.java"] {
        copy(sample, sample);
    }
}

/// Whether it says so, in a line of its own.
fn said(host: &Host, line: &str) -> bool {
    host.stdout().lines().iter().any(|one| one == line)
}

/// `built` makes the app in /hooks on a host of its own, if it needs to be made.
pub(crate) fn is_told_and_waited_for(rootfs: Rootfs, built: Option<&[&str]>, app: &[&str]) {
    let store = Store::new();
    let directory = tempfile::tempdir().expect("a temporary directory");
    hooks(directory.path());
    if let Some(built) = built {
        let host = Host::builder("builder").rootfs(rootfs);
        let host = host.bind(directory.path(), "/hooks").args(built.to_vec());
        assert_eq!(host.start().wait_exit(LIMIT), Exit::Code(0), "{built:?}");
    }
    let start = |name: &str, job: &str| {
        let place = ["--store", "file:///snapshots", "--job", job];
        let rest = [
            "--term-grace",
            "60s",
            "--hooks-dir",
            "/hooks",
            "--sources",
            "none",
        ];
        Host::builder(name)
            .rootfs(rootfs)
            .bind(store.path(), "/snapshots")
            .reprieve(place.iter().chain(&rest).copied(), app.iter().copied())
            .bind(directory.path(), "/hooks")
            .env("TELL_APP_DIR", "/run/told")
            .start()
    };
    let first = start("first", "job");
    wait_for_output(&first, "ready");
    checkpoint_ok(&first);
    // It had its time, though it takes some; otherwise this would come later, or never.
    wait_until(LIMIT, "it is told of the thaw", || said(&first, "thawed"));
    assert_eq!(first.stdout().lines()[..3], ["ready", "quiet", "thawed"]);
    evict(&first);
    assert_eq!(
        first.stdout().lines().last().map(String::as_str),
        Some("quiet")
    );
    let second = start("second", "job");
    let resumed = "resumed generation 2 on second as the same job";
    wait_until(LIMIT, resumed, || said(&second, resumed));
    // It is waited for on this host as well.
    checkpoint_ok(&second);
    wait_until(LIMIT, "it is told of the thaw", || said(&second, "thawed"));
    assert_eq!(second.stdout().lines(), [resumed, "quiet", "thawed"]);
    evict(&second);
    let cloned = Command::new(env!("CARGO_BIN_EXE_reprieve"))
        .args(["clone", "job/4", "--job", "other", "--store"])
        .arg(format!("file://{}", store.path().display()))
        .output()
        .expect("the binary was built");
    assert!(cloned.status.success(), "{cloned:?}");
    let third = start("third", "other");
    let resumed = "on third as a clone";
    wait_until(LIMIT, resumed, || third.stdout().text().contains(resumed));
}
