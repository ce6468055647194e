//! Jobs whose snapshots are sealed with a key: what a store gets to see, and what it takes to resume from it.

mod harness;
mod job;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Builder, Exit, Host, LIMIT, Lookalike};
use job::{COUNTER, Store, assert_counts, checkpoint_ok, evict, wait_for_log, wait_for_output};

/// A key of its own each time it is made: two are never the same.
struct Key(tempfile::NamedTempFile);

impl Key {
    fn new(text: &str) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
        fs::write(file.path(), text).expect("it can be written");
        Self(file)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

const FIRST: &str = "a passphrase in one line\n";
const SECOND: &str = "6368616e6765207468652070617373776f726420666f7220746869732121212e";

/// A host with a key at `/key`.
fn host(store: &Store, name: &str, key: &Key, options: &[&str], app: &[&str]) -> Builder {
    let options = [&["--key-file", "/key"], options].concat();
    let builder = store.host_with(name, &options, app);
    builder.bind_read_only(key.path(), "/key")
}

fn contents(store: &Store) -> BTreeMap<PathBuf, Vec<u8>> {
    let read = |path: PathBuf| {
        let bytes = fs::read(&path).expect("it can be read");
        (path, bytes)
    };
    store.objects().into_iter().map(read).collect()
}

/// The host ends with 186 and says why.
#[track_caller]
fn assert_refused(host: &Host, why: &str) {
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(186));
    let said = host.stderr().text();
    assert!(said.contains(why), "{said}");
    assert!(said.contains("remedy: nothing was started"), "{said}");
    assert!(!said.contains("the app is started"), "{said}");
    host.destroy();
}

/// Which key the head is sealed with.
fn sealed_with(store: &Store) -> String {
    let head = fs::read_to_string(store.path().join("job/HEAD")).expect("it is text");
    let first = head.lines().next().expect("it has lines");
    let key = first.strip_prefix("reprieve head 1 sealed-1 ");
    key.expect("it is sealed").to_owned()
}

fn counts_on(host: &Host, text: &mut String) {
    evict(host);
    text.push_str(&host.stdout().text());
    assert_counts(text, None);
}

#[test]
fn a_sealed_job_is_resumed_with_its_key_and_with_no_other() {
    let store = Store::new();
    let (key, other) = (Key::new(FIRST), Key::new(SECOND));
    let first = host(&store, "first", &key, &[], COUNTER).start();
    wait_for_output(&first, "line 20");
    checkpoint_ok(&first);
    let mut text = String::new();
    counts_on(&first, &mut text);

    let before = contents(&store);
    // Not even a start from scratch that was asked for: the work is there and only waits for its key.
    let start = &["--on-no-valid-snapshot", "start"];
    let wrong = host(&store, "wrong", &other, start, COUNTER).start();
    assert_refused(&wrong, "which is none of those that are set");
    let none = store.host_with("none", start, COUNTER).start();
    assert_refused(&none, "and no key is set");
    // Nor without its head: then its manifests are listed.
    let head = store.path().join("job/HEAD");
    let whole = fs::read(&head).expect("it can be read");
    fs::remove_file(&head).expect("it can be removed");
    let wrong = host(&store, "wrong", &other, start, COUNTER).start();
    assert_refused(&wrong, "which is none of those that are set");
    let none = store.host_with("none", start, COUNTER).start();
    assert_refused(&none, "and no key is set");
    // A head that was altered, or whose seal was taken off, is no lost head.
    let other_digit = match whole.ends_with(b"0\n") {
        true => b"1",
        false => b"0",
    };
    for altered in [
        b"nothing\n".to_vec(),
        [&whole[..whole.len() - 2], other_digit, b"\n"].concat(),
    ] {
        fs::write(&head, &altered).expect("it can be written");
        let refused = host(&store, "altered", &key, start, COUNTER).start();
        assert_refused(&refused, "the head of the job at job/HEAD is refused");
    }
    fs::write(&head, &whole).expect("it can be written");
    assert!(contents(&store) == before, "the store was changed");

    let second = host(&store, "second", &key, &[], COUNTER).start();
    wait_for_log(&second, "the job is resumed");
    counts_on(&second, &mut text);
}

#[test]
fn the_store_sees_nothing_of_what_the_job_has() {
    const ARGUMENT: &str = "an-argument-that-is-a-secret";
    const MEMORY: &str = "what-only-the-memory-knows";
    // Its own command line must not hold what only its memory is to know.
    let code = "import sys,time\nmark=bytes(reversed(b'swonk-yromem-eht-ylno-tahw'))\n\
                kept=[mark+b'%d'%n for n in range(1000)]\nprint('ready',flush=True)\ntime.sleep(1000)";
    let app = ["python3", "-c", code, ARGUMENT];
    let found = |store: &Store, what: &str| {
        let holds = |bytes: &Vec<u8>| {
            bytes
                .windows(what.len())
                .any(|part| part == what.as_bytes())
        };
        contents(store).values().any(holds)
    };
    let plain = Store::new();
    // Uncompressed, so that the search is known to be able to find it.
    let low = &["--compression", "low"];
    let first = plain.host_with("first", low, &app).start();
    wait_for_output(&first, "ready");
    evict(&first);
    assert!(found(&plain, ARGUMENT) && found(&plain, MEMORY));

    let sealed = Store::new();
    let key = Key::new(SECOND);
    let second = host(&sealed, "second-host", &key, low, &app).start();
    wait_for_output(&second, "ready");
    evict(&second);
    for what in [ARGUMENT, MEMORY, "python3", "second-host", "core-", "argv"] {
        assert!(!found(&sealed, what), "{what} is in the store");
    }
}

#[test]
fn a_key_from_the_environment_is_nobody_elses() {
    const SECRET: &str = "the secret of this test";
    let store = Store::new();
    let app = [
        "sh",
        "-c",
        "cat /proc/self/environ /proc/1/environ; echo; echo ready; exec sleep 1000",
    ];
    let keyed = |name: &str| store.host(name, &app).env("REPRIEVE_KEY", SECRET);
    let first = keyed("first").start();
    wait_for_output(&first, "ready");
    checkpoint_ok(&first);
    let status = first.exec(["reprieve", "status", "--json"]);
    evict(&first);
    let second = keyed("second").start();
    wait_for_log(&second, "the job is resumed");
    let environment = first.stdout().text();
    assert!(environment.contains("PATH="), "{environment}");
    for said in [
        environment,
        status.stdout,
        first.stderr().text(),
        second.stderr().text(),
    ] {
        assert!(
            !said.contains(SECRET) && !said.contains("the secret"),
            "{said}"
        );
    }
    for (path, bytes) in contents(&store) {
        let holds = bytes
            .windows(SECRET.len())
            .any(|part| part == SECRET.as_bytes());
        assert!(!holds, "{}", path.display());
    }
    evict(&second);
}

#[test]
fn keys_are_changed_from_one_start_to_the_next() {
    let store = Store::new();
    let keys = [FIRST, SECOND, "another passphrase, for the third"].map(Key::new);
    let mut text = String::new();
    let mut ids = Vec::new();
    for (number, key) in keys.iter().enumerate() {
        let old: Vec<String> = (0..number).map(|old| format!("/old-{old}")).collect();
        let flags: Vec<&str> = old
            .iter()
            .flat_map(|path| ["--old-key-file", path])
            .collect();
        let mut builder = host(&store, "rotated", key, &flags, COUNTER);
        for (path, key) in old.iter().zip(&keys) {
            builder = builder.bind_read_only(key.path(), path.as_str());
        }
        let rotated = builder.start();
        match number {
            0 => wait_for_output(&rotated, "line 20"),
            _ => drop(wait_for_log(&rotated, "the job is resumed")),
        }
        checkpoint_ok(&rotated);
        counts_on(&rotated, &mut text);
        ids.push(sealed_with(&store));
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3, "each start had a key of its own");
    // With all keys everything is read, and with the newest what was written since.
    let all = ["--old-key-file", "KEY1", "--old-key-file", "KEY2"];
    let paths = [&keys[0], &keys[1]].map(|key| key.path().to_str().expect("it is text"));
    let all = all.map(|word| match word {
        "KEY1" => paths[0],
        "KEY2" => paths[1],
        other => other,
    });
    let verified = reprieve(&store, &keys[2], &[&["verify", "--all"], &all[..]].concat());
    assert_eq!(verified.0, 0, "{}", verified.1);
    let verified = reprieve(&store, &keys[2], &["verify"]);
    assert_eq!(verified.0, 0, "{}", verified.1);
    let refused = reprieve(&store, &keys[2], &["verify", "--all"]);
    assert_eq!(refused.0, 186, "{}", refused.1);
    let refused = reprieve(&store, &keys[0], &["snapshots"]);
    assert_eq!(refused.0, 186, "{}", refused.1);
}

/// Runs a command on the store's job, from this machine. The code, and what it said.
fn reprieve(store: &Store, key: &Key, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_reprieve"))
        .args(arguments)
        .arg("--store")
        .arg(format!("file://{}", store.path().display()))
        .args(["--job", "job", "--key-file"])
        .arg(key.path())
        .output()
        .expect("the binary was built");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).expect("it is text");
    (output.status.code().expect("it ends by itself"), said)
}

#[test]
fn whatever_of_the_newest_snapshot_was_altered_the_one_before_is_resumed() {
    let store = Store::new();
    let key = Key::new(SECOND);
    let first = host(&store, "first", &key, &[], COUNTER).start();
    wait_for_output(&first, "line 20");
    checkpoint_ok(&first);
    evict(&first);
    let before = contents(&store);
    let newest = store.objects_of_newest();
    assert!(newest.len() >= 3, "{newest:?}");
    for object in &newest {
        let mut bytes = before[object].clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(object, bytes).expect("it can be written");
        let (code, said) = reprieve(&store, &key, &["verify"]);
        assert_eq!(code, 176, "{}: {said}", object.display());
        let second = host(&store, "second", &key, &[], COUNTER).start();
        let passed = wait_for_log(&second, "a snapshot is passed over");
        let resumed = wait_for_log(&second, "the job is resumed");
        assert!(resumed.contains("\"generation\":1"), "{passed} {resumed}");
        second.destroy();
        for (path, bytes) in &before {
            fs::write(path, bytes).expect("it can be written");
        }
    }
    let (code, said) = reprieve(&store, &key, &["verify", "--all"]);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn operators_work_with_the_key_as_without() {
    let store = Store::new();
    let key = Key::new(FIRST);
    let first = host(
        &store,
        "first",
        &key,
        &[],
        &["python3", "/apps/memory.py", "48"],
    )
    .start();
    wait_for_output(&first, "ready");
    for _ in 0..2 {
        checkpoint_ok(&first);
    }
    let out = tempfile::tempdir().expect("a temporary directory can be made");
    let images = out.path().join("images");
    let images = images.to_str().expect("it is text");
    for arguments in [
        &["snapshots"][..],
        &["show", "newest"],
        &["verify", "--all"],
        &["tag", "1", "good"],
        &["pin", "2"],
        &["unpin", "2"],
        &["extract", "good", images],
        &["prune", "--dry-run"],
        &["prune"],
    ] {
        let (code, said) = reprieve(&store, &key, arguments);
        assert_eq!(code, 0, "{arguments:?}: {said}");
    }
    assert!(Path::new(images).join("inventory.img").exists());
    let shown = reprieve(&store, &key, &["show", "2", "--json"]).1;
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("it is JSON");
    let parts = shown["parts"].as_array().expect("it has parts");
    assert!(parts.iter().any(|part| part["reused"] == true), "{shown}");
    // The owner's right to the job has survived it all.
    checkpoint_ok(&first);
    evict(&first);
    let second = host(&store, "second", &key, &[], COUNTER).start();
    wait_for_log(&second, "the job is resumed");
    second.destroy();
}

#[test]
fn a_job_is_sealed_from_some_day_on_when_that_is_asked_for() {
    let store = Store::new();
    let key = Key::new(FIRST);
    let first = store.host("first", COUNTER).start();
    wait_for_output(&first, "line 20");
    let mut text = String::new();
    counts_on(&first, &mut text);
    let refused = host(&store, "second", &key, &[], COUNTER).start();
    assert_refused(&refused, "it is not sealed, although a key is set");
    let once = host(
        &store,
        "second",
        &key,
        &["--on-unsealed", "accept"],
        COUNTER,
    )
    .start();
    wait_for_log(&once, "from now on it is sealed");
    wait_for_log(&once, "the job is resumed");
    // A machine that goes before the first sealed snapshot: the sealed head vouches for the older one.
    once.destroy();
    let third = host(&store, "third", &key, &[], COUNTER).start();
    wait_for_log(&third, "the job is resumed");
    counts_on(&third, &mut text);
    let fourth = host(&store, "fourth", &key, &[], COUNTER).start();
    wait_for_log(&fourth, "the job is resumed");
    evict(&fourth);
    let back = store.host("back", COUNTER).start();
    assert_refused(&back, "and no key is set");
}

#[test]
fn others_who_may_read_the_key_file_are_warned_of() {
    let store = Store::new();
    let key = Key::new(FIRST);
    fs::set_permissions(key.path(), fs::Permissions::from_mode(0o644)).expect("it is ours");
    let first = host(&store, "first", &key, &[], COUNTER).start();
    wait_for_log(&first, "others may read the key file");
    evict(&first);
    let unusable = Key::new("short");
    let refused = host(&store, "second", &unusable, &[], COUNTER).start();
    assert_eq!(refused.wait_exit(LIMIT), Exit::Code(174));
    let said = refused.stderr().text();
    assert!(
        said.contains("the key file /key cannot be used") && !said.contains("\"short\""),
        "{said}"
    );
}

#[test]
fn kms_keeps_the_key_of_a_job_in_s3() {
    let server = Lookalike::start();
    server.make_bucket("bucket");
    let [key, newer, other] = [(); 3].map(|()| server.make_kms_key());
    let start = |name: &str, options: &[&str]| {
        let always = [
            "--store",
            "s3://bucket",
            "--job",
            "job",
            "--s3-endpoint",
            &server.url,
            "--term-grace",
            "60s",
            "--on-other-owner",
            "take-over",
        ];
        Host::builder(name)
            .share_net()
            .env("AWS_ACCESS_KEY_ID", "AKIDFORTESTS")
            .env("AWS_SECRET_ACCESS_KEY", "a-secret-that-stays-one")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ENDPOINT_URL_KMS", &server.url)
            .reprieve(
                always.into_iter().chain(options.iter().copied()),
                COUNTER.iter().copied(),
            )
            .start()
    };
    let mut text = String::new();
    let first = start("first", &["--kms-key", &key]);
    wait_for_output(&first, "line 20");
    counts_on(&first, &mut text);
    let keys = server.keys("bucket");
    let before: Vec<_> = keys
        .iter()
        .map(|key| server.object("bucket", key))
        .collect();
    let wrong = start(
        "wrong",
        &["--kms-key", &other, "--on-no-valid-snapshot", "start"],
    );
    assert_eq!(wrong.wait_exit(LIMIT), Exit::Code(186));
    let said = wrong.stderr().text();
    assert!(said.contains("KMS did not decrypt the job's key"), "{said}");
    wrong.destroy();
    assert_eq!(server.keys("bucket"), keys);
    let after: Vec<_> = keys
        .iter()
        .map(|key| server.object("bucket", key))
        .collect();
    assert!(before == after, "the store was changed");
    let second = start("second", &["--kms-key", &key]);
    wait_for_log(&second, "the job is resumed");
    counts_on(&second, &mut text);
    let third = start("third", &["--kms-key", &newer, "--old-kms-key", &key]);
    wait_for_log(&third, "the job changes its key");
    wait_for_log(&third, "the job is resumed");
    counts_on(&third, &mut text);
    let fourth = start("fourth", &["--kms-key", &newer]);
    wait_for_log(&fourth, "the job is resumed");
    counts_on(&fourth, &mut text);
}
