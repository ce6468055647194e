//! Snapshots that were stored by earlier versions, and are read by this one.
//!
//! Each directory below `tests/fixtures/` is a store with one job of one snapshot, and the list of what is extracted from it.
//! They stay as they are for as long as their format is read. `UPDATE_FIXTURES=1 cargo test -p reprieve --test fixtures`
//! makes those that are named below and missing, with the present program. That their page hashes are those of their pages
//! is looked at beside the code that reads them, in worker/src/operate/diff.rs.

mod harness;
mod job;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{project_path, wait_until};
use job::{Store, evict};
use reprieve_core::document;
use reprieve_core::head::Head;

/// The beginning of the names of the present format.
const NEWEST: &str = "2-";

const PASSPHRASE: &str = "the passphrase of the fixtures";

fn fixture(name: &str) -> PathBuf {
    project_path(&format!("tests/fixtures/{name}"))
}

/// Runs a command on a fixture; it must succeed.
fn reprieve(store: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reprieve"));
    command
        .args(arguments)
        .arg("--store")
        .arg(format!("file://{}", store.display()));
    if store.to_string_lossy().contains("sealed") {
        command.env("REPRIEVE_KEY", PASSPHRASE);
    }
    let output = command
        .args(["--job", "job"])
        .output()
        .expect("the binary was built");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}: {arguments:?}: {said}",
        store.display()
    );
    String::from_utf8(output.stdout).expect("it is text")
}

/// Every file that is extracted, with its BLAKE3.
fn extracted(store: &Path) -> String {
    let out = tempfile::tempdir().expect("a temporary directory can be made");
    let images = out.path().join("images");
    reprieve(
        store,
        &["extract", "newest", images.to_str().expect("it is text")],
    );
    let mut names: Vec<_> = fs::read_dir(&images)
        .expect("it is there")
        .map(|entry| entry.expect("it is there").file_name())
        .collect();
    names.sort();
    names.iter().fold(String::new(), |mut list, name| {
        let bytes = fs::read(images.join(name)).expect("it can be read");
        let digest = blake3::hash(&bytes).to_hex();
        writeln!(list, "{digest} {} {}", bytes.len(), name.to_string_lossy())
            .expect("a string has room");
        list
    })
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory can be made");
    for entry in fs::read_dir(from).expect("it is there") {
        let path = entry.expect("it is there").path();
        let to = to.join(path.file_name().expect("it has a name"));
        match path.is_dir() {
            true if path.ends_with("clock") => {}
            // A lock of the directory store.
            false if path.extension().is_some_and(|end| end == "lock") => {}
            true => copy(&path, &to),
            false => drop(fs::copy(&path, to).expect("it can be copied")),
        }
    }
}

/// The smallest job there is, stored once.
fn make(name: &str) {
    let store = Store::new();
    let script =
        "mkdir /srv/kept; echo of the job > /srv/kept/file; rm /etc/issue; exec sleep infinity";
    let (options, app): (&[&str], &[&str]) = match name.starts_with("2-") {
        true => (
            &["--compression", "high", "--preserve", "/srv:/etc/issue"],
            &["bash", "-c", script],
        ),
        false => (&["--compression", "high"], &["sleep", "infinity"]),
    };
    let mut builder = store.host_with("fixture", options, app);
    if name.contains("sealed") {
        builder = builder.env("REPRIEVE_KEY", PASSPHRASE);
    }
    let host = builder.start();
    wait_until(harness::LIMIT, "the app", || {
        host.processes().iter().any(|process| {
            process.parent == 1 && process.pid > 300 && process.command_line.starts_with("sleep")
        })
    });
    evict(&host);
    let directory = fixture(name);
    copy(store.path(), &directory);
    fs::write(directory.join("extracted"), extracted(&directory)).expect("it can be written");
}

#[test]
fn snapshots_of_every_format_are_read() {
    // Sealed jobs had BLAKE3 for their page hashes before they had AES-GCM.
    let names = ["1-plain", "1-sealed", "1-sealed-gcm", "2-plain"];
    for name in names {
        if std::env::var_os("UPDATE_FIXTURES").is_some() && !fixture(name).exists() {
            make(name);
        }
        // A copy: reading must not depend on being able to write, and nothing here may alter them.
        let store = tempfile::tempdir().expect("a temporary directory can be made");
        let store = store.path().join(name);
        copy(&fixture(name), &store);
        let listed: serde_json::Value =
            serde_json::from_str(&reprieve(&store, &["snapshots", "--json"])).expect("it is JSON");
        assert_eq!(listed["snapshots"][0]["valid"], true, "{name}: {listed}");
        assert!(
            reprieve(&store, &["verify", "--all"]).contains("sound"),
            "{name}"
        );
        let expected = fs::read_to_string(fixture(name).join("extracted")).expect("it is text");
        assert_eq!(extracted(&store), expected, "{name}");
        assert_eq!(
            expected.contains("reprieve-preserved.json"),
            name.starts_with(NEWEST),
            "{expected}"
        );
        assert!(
            expected.contains("inventory.img") && expected.contains("pages-1.img"),
            "{expected}"
        );
    }
    let all = fs::read_dir(project_path("tests/fixtures"))
        .expect("it is there")
        .count();
    assert_eq!(all, names.len(), "there is one that no test reads");
}

/// What only informs may be of a kind that only a later program knows: the snapshot is as good as before.
#[test]
fn a_snapshot_whose_information_is_of_a_later_program_is_read() {
    let store = tempfile::tempdir().expect("a temporary directory can be made");
    let store = store.path().join("1-plain");
    copy(&fixture("1-plain"), &store);
    let listed = || {
        let listed = reprieve(&store, &["snapshots", "--json"]);
        let listed: serde_json::Value = serde_json::from_str(&listed).expect("it is JSON");
        let one = &listed["snapshots"][0];
        (one["valid"].clone(), one["trigger"].clone())
    };
    assert_eq!(listed(), (true.into(), "signal".into()));

    let root = store.join("job");
    let head = fs::read(root.join("HEAD")).expect("it is there");
    let mut head = Head::from_bytes(&head).expect("it is whole");
    let path = root.join(&head.generations[0].manifest);
    let bytes = fs::read_to_string(&path).expect("documents are text");
    let json = bytes.lines().nth(1).expect("it has three lines");
    let mut json: serde_json::Value = serde_json::from_str(json).expect("the second is JSON");
    for field in ["trigger", "decision", "storing"] {
        json[field] = "of a later program".into();
    }
    let bytes = document::seal("manifest", 1, &json);
    head.generations[0].digest = document::digest(&bytes);
    fs::write(&path, bytes).expect("it can be written");
    fs::write(root.join("HEAD"), head.to_bytes()).expect("it can be written");
    assert_eq!(listed(), (true.into(), serde_json::Value::Null));
    assert!(reprieve(&store, &["verify", "--all"]).contains("sound"));
    reprieve(&store, &["show", "newest"]);
}
