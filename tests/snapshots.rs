//! The commands on a job's snapshots, run beside real jobs and on what those left in their stores.

mod harness;
mod job;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Exit, Host, LIMIT, Output, wait_until};
use job::{
    COUNTER, Store, assert_counts, checkpoint_ok, evict, numbers, wait_for_log, wait_for_output,
};
use serde_json::Value;

/// Enough memory that snapshots build upon one another.
const MEMORY: &[&str] = &["python3", "/apps/memory.py", "48"];

struct Said {
    code: i32,
    stdout: String,
    stderr: String,
}

/// Runs a command on the store's job, from this machine.
fn reprieve(store: &Store, arguments: &[&str]) -> Said {
    let output = Command::new(env!("CARGO_BIN_EXE_reprieve"))
        .args(arguments)
        .arg("--store")
        .arg(format!("file://{}", store.path().display()))
        .args(["--job", "job"])
        .output()
        .expect("the binary was built");
    Said {
        code: output.status.code().expect("it ends by itself"),
        stdout: String::from_utf8(output.stdout).expect("it is text"),
        stderr: String::from_utf8(output.stderr).expect("it is text"),
    }
}

#[track_caller]
fn ok(store: &Store, arguments: &[&str]) -> String {
    let said = reprieve(store, arguments);
    assert_eq!(
        said.code, 0,
        "{arguments:?}: {}{}",
        said.stdout, said.stderr
    );
    assert_eq!(said.stderr, "", "{arguments:?}");
    said.stdout
}

/// The answer as JSON, which is one line of the documented form.
#[track_caller]
fn json(store: &Store, arguments: &[&str]) -> Value {
    let line = ok(store, &[arguments, &["--json"]].concat());
    let value: Value = serde_json::from_str(&line).expect("it is JSON");
    assert_eq!(line.lines().count(), 1, "{line}");
    assert_documented(arguments[0], &value);
    value
}

/// Each field of an answer stands in the command's section of docs/json.md.
#[track_caller]
fn assert_documented(command: &str, value: &Value) {
    let text = fs::read_to_string(harness::project_path("docs/json.md")).expect("it is there");
    let sections = text.split("\n## ").filter(|section| {
        let heading = section.lines().next().unwrap_or_default();
        heading.contains(&format!("`{command}`")) || heading == "Every answer"
    });
    let section: String = sections.collect();
    let mut ahead = vec![value];
    while let Some(next) = ahead.pop() {
        match next {
            Value::Object(fields) => {
                for (name, field) in fields {
                    assert!(
                        section.contains(&format!("`{name}`")),
                        "docs/json.md does not say what {name} is in the answer of {command}"
                    );
                    // Theirs are paths and leaves, and no names of ours.
                    if !["programs", "cpuid"].contains(&name.as_str()) {
                        ahead.push(field);
                    }
                }
            }
            Value::Array(elements) => ahead.extend(elements),
            _ => {}
        }
    }
}

fn generations(answer: &Value, list: &str) -> Vec<u64> {
    let all = answer[list].as_array().expect("it is a list");
    all.iter()
        .map(|one| one["generation"].as_u64().expect("it has a number"))
        .collect()
}

/// A part that only this generation stored.
fn own_part(store: &Store, generation: &str) -> PathBuf {
    let shown = json(store, &["show", generation]);
    let parts = shown["parts"].as_array().expect("it has parts");
    let own = parts.iter().find(|part| part["reused"] == false);
    let key = own.expect("it stored something")["key"].as_str();
    store.path().join("job").join(key.expect("it has a key"))
}

fn flip_middle(path: &Path) -> u64 {
    let mut bytes = fs::read(path).expect("it can be read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).expect("it can be written");
    middle as u64
}

#[test]
fn a_running_jobs_snapshots_are_listed_shown_and_verified() {
    let store = Store::new();
    let empty = json(&store, &["snapshots"]);
    assert_eq!(
        (&empty["head"], generations(&empty, "snapshots")),
        (&"none".into(), vec![])
    );
    assert!(ok(&store, &["snapshots"]).contains("no snapshots"));
    assert_eq!(reprieve(&store, &["show", "newest"]).code, 177);

    let host = store.host("machine", MEMORY).start();
    wait_for_output(&host, "ready");
    for _ in 0..3 {
        checkpoint_ok(&host);
    }
    let listed = json(&store, &["snapshots"]);
    assert_eq!(generations(&listed, "snapshots"), [3, 2, 1]);
    assert_eq!(listed["head"], "whole");
    assert_eq!(listed["owner"]["host"], "machine");
    for one in listed["snapshots"].as_array().expect("it is a list") {
        assert_eq!(
            (&one["valid"], &one["problem"]),
            (&true.into(), &Value::Null),
            "{one}"
        );
        assert_eq!(
            (&one["host"], &one["trigger"]),
            (&"machine".into(), &"control".into())
        );
        let (logical, stored) = (one["logical_bytes"].as_u64(), one["stored_bytes"].as_u64());
        assert!(logical > Some(48 << 20) && stored > Some(48 << 20), "{one}");
    }
    let new = |at: usize| {
        listed["snapshots"][at]["new_bytes"]
            .as_u64()
            .expect("it is known")
    };
    assert!(new(0) * 10 < new(2), "{} after {}", new(0), new(2));
    let table = ok(&store, &["snapshots"]);
    assert!(
        table.starts_with("GENERATION") && table.lines().count() == 4,
        "{table}"
    );

    let shown = json(&store, &["show", "2"]);
    assert_eq!(
        (&shown["generation"], &shown["parent"]),
        (&2.into(), &1.into())
    );
    assert_eq!(shown["app"]["argv"][0], "python3");
    let parts = shown["parts"].as_array().expect("it has parts");
    assert!(parts.iter().any(|part| part["reused"] == true), "{shown}");
    assert!(
        parts
            .iter()
            .all(|part| part["found_bytes"] == part["bytes"])
    );
    assert!(ok(&store, &["show", "newest"]).contains("python3 /apps/memory.py 48"));

    let verified = json(&store, &["verify", "--all"]);
    assert_eq!(generations(&verified, "snapshots"), [3, 2, 1]);
    assert_eq!(verified["damaged"], 0);
    for one in verified["snapshots"].as_array().expect("it is a list") {
        assert!(
            one["sound"] == true && one["bytes"].as_u64() > Some(48 << 20),
            "{one}"
        );
        assert!(one["blocks"].as_u64() > Some(100), "{one}");
    }
    assert!(ok(&store, &["verify"]).contains("sound"));
    // None of it disturbed the job.
    checkpoint_ok(&host);
    evict(&host);
}

#[test]
fn damage_is_found_wherever_it_is() {
    let store = Store::new();
    let host = store.host("host", MEMORY).start();
    wait_for_output(&host, "ready");
    checkpoint_ok(&host);
    checkpoint_ok(&host);
    evict(&host);

    let part = own_part(&store, "1");
    let name = part
        .strip_prefix(store.path().join("job"))
        .expect("it is below");
    let name = name.to_str().expect("it is text");
    let whole = fs::read(&part).expect("it can be read");
    let altered_at = flip_middle(&part);
    let verify = |what: &[&str]| {
        let said = reprieve(&store, &[&["verify", "--json"], what].concat());
        let answer: Value = serde_json::from_str(&said.stdout).expect("it is JSON");
        assert_documented("verify", &answer);
        (said, answer)
    };
    // All three refer to it; a listing does not read it.
    let (said, answer) = verify(&["--all"]);
    assert_eq!(
        (said.code, &answer["damaged"]),
        (176, &3.into()),
        "{answer}"
    );
    assert!(
        said.stderr.contains("altered") && said.stderr.contains(name),
        "{}",
        said.stderr
    );
    let finding = &answer["snapshots"][2]["findings"][0];
    let offset = finding["offset"].as_u64().expect("a block was found");
    assert!(finding["object"] == *name, "{finding}");
    assert!(
        (altered_at.saturating_sub(300_000)..=altered_at).contains(&offset),
        "{finding}"
    );
    assert_eq!(json(&store, &["snapshots"])["snapshots"][2]["valid"], true);
    let out = tempfile::tempdir().expect("a temporary directory can be made");
    let images = out.path().join("images");
    let refused = reprieve(
        &store,
        &["extract", "1", images.to_str().expect("it is text")],
    );
    assert_eq!(refused.code, 176, "{}", refused.stderr);
    assert!(!images.exists(), "a part of a snapshot is left");

    fs::write(&part, &whole[1..]).expect("it can be written");
    let listed = json(&store, &["snapshots"]);
    let problem = listed["snapshots"][2]["problem"]
        .as_str()
        .expect("there is one");
    assert!(
        problem.contains(name) && problem.contains("bytes instead of"),
        "{problem}"
    );
    assert_eq!(verify(&["1"]).0.code, 176);
    fs::remove_file(&part).expect("it can be removed");
    let (said, answer) = verify(&["1"]);
    let problem = answer["snapshots"][0]["findings"][0]["problem"].as_str();
    assert!(
        said.code == 176 && problem.is_some_and(|said| said.contains("missing")),
        "{answer}"
    );
    fs::write(&part, &whole).expect("it can be written");
    assert_eq!(verify(&["--all"]).0.code, 0);

    // The index and the manifest of the newest.
    for object in store.objects_of_newest() {
        let whole = fs::read(&object).expect("it can be read");
        flip_middle(&object);
        let (said, answer) = verify(&[]);
        assert_eq!(
            (said.code, &answer["damaged"]),
            (176, &1.into()),
            "{}",
            object.display()
        );
        fs::write(&object, whole).expect("it can be written");
    }
    // Without a head the listing has to do.
    let head = store.path().join("job/HEAD");
    let whole = fs::read(&head).expect("it can be read");
    fs::write(&head, b"").expect("it can be written");
    let listed = json(&store, &["snapshots"]);
    assert_eq!(
        (&listed["head"], generations(&listed, "snapshots")),
        (&"lost".into(), vec![3, 2, 1])
    );
    assert_eq!(verify(&["--all"]).0.code, 0);
    let refused = reprieve(&store, &["pin", "1"]);
    assert_eq!(refused.code, 178, "{}", refused.stderr);
    assert_eq!(reprieve(&store, &["prune"]).code, 178);
    fs::write(&head, whole).expect("it can be written");
}

#[test]
fn stock_criu_restores_what_was_extracted() {
    let store = Store::new();
    let first = store.host("first", MEMORY).start();
    wait_for_output(&first, "ready");
    let digest = first
        .stdout()
        .wait_for_line("a digest", LIMIT, |line| line.starts_with("digest"));
    checkpoint_ok(&first);
    evict(&first);

    let out = tempfile::tempdir().expect("a temporary directory can be made");
    let images = out.path().join("images");
    let extracted = json(
        &store,
        &["extract", "newest", images.to_str().expect("it is text")],
    );
    assert_eq!(extracted["generation"], 2);
    let files = extracted["files"].as_array().expect("it is a list");
    let found = fs::read_dir(&images).expect("it is there").count();
    assert!(files.len() == found && found > 10, "{extracted}");
    let again = reprieve(
        &store,
        &["extract", "newest", images.to_str().expect("it is text")],
    );
    assert_eq!(again.code, 178, "{}", again.stderr);

    // As the answer says, but for the place of the images; what it wrote before goes where the test can read it.
    let command = extracted["restore"].as_str().expect("it is a command");
    let command = command.replace(images.to_str().expect("it is text"), "/images");
    let second = Host::builder("second")
        .bind(&images, "/images")
        .args([
            "sh",
            "-c",
            &format!("sleep 1000 | ({command} --log-file /tmp/log) || cat /tmp/log"),
        ])
        .start();
    let app = second.wait_for_process("python3 /apps/memory.py", LIMIT);
    assert_eq!(
        Some(u64::try_from(app.pid).expect("it is positive")),
        extracted["root_pid"].as_u64()
    );
    second
        .stdout()
        .wait_for_line("it goes on", LIMIT, |line| line.starts_with("tick"));
    second.signal_process(app.pid, libc::SIGUSR1);
    let after = second
        .stdout()
        .wait_for_line("a digest", LIMIT, |line| line.starts_with("digest"));
    assert_eq!(after, digest);
}

#[test]
fn pinned_and_tagged_snapshots_stay_while_others_come_and_go() {
    let store = Store::new();
    let host = store
        .host_with("host", &["--keep-generations", "2"], COUNTER)
        .start();
    wait_for_output(&host, "line 10");
    checkpoint_ok(&host);
    let pinned = json(&store, &["pin", "1"]);
    assert_eq!(
        (&pinned["pinned"], &pinned["changed"]),
        (&true.into(), &true.into())
    );
    assert_eq!(json(&store, &["pin", "newest"])["changed"], false);
    checkpoint_ok(&host);
    let tagged = json(&store, &["tag", "2", "paper"]);
    assert_eq!(tagged["tags"], serde_json::json!(["paper"]));
    for _ in 0..3 {
        checkpoint_ok(&host);
    }
    assert_eq!(
        generations(&json(&store, &["snapshots"]), "snapshots"),
        [5, 4, 2, 1]
    );
    assert!(ok(&store, &["snapshots"]).contains("paper"));
    assert_eq!(json(&store, &["show", "paper"])["generation"], 2);
    assert_eq!(json(&store, &["verify", "--all"])["damaged"], 0);

    let taken = reprieve(&store, &["tag", "5", "paper"]);
    assert!(
        taken.code == 178 && taken.stderr.contains("generation 2"),
        "{}",
        taken.stderr
    );
    for unknown in [
        vec!["show", "3"],
        vec!["untag", "other"],
        vec!["unpin", "9"],
    ] {
        let said = reprieve(&store, &unknown);
        assert_eq!(said.code, 177, "{unknown:?}: {}", said.stderr);
        assert!(said.stderr.contains("it has 5, 4, 2, 1"), "{}", said.stderr);
    }
    for wrong in [
        vec!["tag", "5", "7"],
        vec!["show", "a/b"],
        vec!["verify", "1", "--all"],
    ] {
        let said = reprieve(&store, &wrong);
        assert_eq!(said.code, 174, "{wrong:?}: {}", said.stderr);
    }
    assert_eq!(
        json(&store, &["untag", "paper"])["tags"],
        serde_json::json!([])
    );
    assert_eq!(json(&store, &["unpin", "1"])["pinned"], false);
    checkpoint_ok(&host);
    assert_eq!(
        generations(&json(&store, &["snapshots"]), "snapshots"),
        [6, 5]
    );
    evict(&host);
    let next = store.host("next", COUNTER).start();
    wait_for_log(&next, "the job is resumed");
}

#[test]
fn a_prune_says_what_it_would_do_and_takes_nothing_that_counts() {
    let store = Store::new();
    let host = store.host("host", MEMORY).start();
    wait_for_output(&host, "ready");
    for _ in 0..4 {
        checkpoint_ok(&host);
    }
    // An attempt that was given up: data without a manifest.
    let litter = store.path().join("job/data/01JD0000000000000000000000");
    fs::create_dir(&litter).expect("it can be made");
    fs::write(litter.join("000000"), b"some").expect("it can be written");
    fs::write(store.path().join("job/notes"), b"mine").expect("it can be written");

    let lenient = json(&store, &["prune", "--dry-run"]);
    assert_eq!(
        lenient["removed"], 0,
        "it is younger than the grace: {lenient}"
    );
    let before: Vec<PathBuf> = store.objects();
    let arguments = ["prune", "--keep-generations", "2", "--sweep-grace", "0s"];
    let dry = json(&store, &[&arguments[..], &["--dry-run"]].concat());
    assert_eq!(dry["dry_run"], true);
    let reasons: Vec<&str> = dry["generations"]
        .as_array()
        .expect("it is a list")
        .iter()
        .map(|one| one["reason"].as_str().expect("it has a reason"))
        .collect();
    assert_eq!(
        reasons,
        [
            "kept: newest",
            "kept: number 2 of the last 2",
            "goes: no rule keeps it",
            "goes: no rule keeps it",
        ]
    );
    assert_eq!(store.objects(), before, "a dry run changed something");
    let table = ok(&store, &[&arguments[..], &["--dry-run"]].concat());
    assert!(table.contains("nothing was changed"), "{table}");

    let done = json(&store, &arguments);
    assert_eq!(done["removed"], dry["removed"]);
    assert!(!litter.exists(), "litter is left");
    let goes = |answer: &Value| -> Vec<String> {
        let objects = answer["objects"].as_array().expect("it is a list").iter();
        objects
            .filter(|object| object["goes"] == true)
            .map(|object| object["key"].as_str().expect("it has a key").to_owned())
            .collect()
    };
    assert_eq!(goes(&done), goes(&dry));
    let after = store.objects();
    let left: Vec<PathBuf> = before
        .into_iter()
        .filter(|path| {
            let key = path
                .strip_prefix(store.path().join("job"))
                .expect("it is below");
            !goes(&done).iter().any(|gone| Path::new(gone) == key)
        })
        .collect();
    assert_eq!(after, left);
    assert!(after.iter().any(|path| path.ends_with("job/notes")));
    assert_eq!(
        generations(&json(&store, &["snapshots"]), "snapshots"),
        [4, 3]
    );
    assert_eq!(json(&store, &["verify", "--all"])["damaged"], 0);
    assert_eq!(
        json(&store, &arguments)["removed"],
        0,
        "a second one found more"
    );

    // The job did not notice, and goes on elsewhere.
    checkpoint_ok(&host);
    evict(&host);
    assert_eq!(json(&store, &["verify", "--all"])["damaged"], 0);
    let next = store.host("next", MEMORY).start();
    wait_for_log(&next, "the job is resumed");
}

#[test]
fn prunes_and_verifies_beside_a_job_that_checkpoints_never_hurt_it() {
    let store = Store::new();
    let host = store
        .host_with("host", &["--keep-generations", "2"], COUNTER)
        .start();
    wait_for_output(&host, "line 10");
    let mut durable = 0;
    for round in 0..20 {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..round % 4 {
                    // With this grace attempts on their way are given up; those fail, and nothing else.
                    let said = reprieve(&store, &["prune", "--sweep-grace", "0s"]);
                    assert!([0, 176, 177, 178].contains(&said.code), "{}", said.stderr);
                }
            });
            let ran = job::checkpoint(&host);
            match ran.code {
                0 => durable += 1,
                180 => assert!(
                    ran.stderr.contains("gave this attempt up"),
                    "{}",
                    ran.stderr
                ),
                _ => panic!("{}{}", ran.stdout, ran.stderr),
            }
        });
    }
    assert!(
        durable >= 5,
        "the {durable} with no prune beside them at the least"
    );
    checkpoint_ok(&host);
    assert_eq!(json(&store, &["verify", "--all"])["damaged"], 0);
    evict(&host);
    let next = store.host("next", COUNTER).start();
    wait_for_log(&next, "the job is resumed");
    let mark = next.stdout().mark();
    wait_until(LIMIT, "more lines", || next.stdout().mark() > mark + 100);
    let all = host.stdout().text() + &next.stdout().lines().join("\n");
    assert!(!numbers(&all).is_empty());
    assert_counts(&all, None);
}

#[test]
fn a_snapshot_says_what_the_job_was() {
    let store = Store::new();
    let app = ["python3", "/apps/job.py"];
    let host = store.host("host", &app).env("SECRET", "value").start();
    wait_for_output(&host, "round 3 ok");
    checkpoint_ok(&host);
    let inspected = json(&store, &["inspect"]);
    let processes = inspected["processes"].as_array().expect("it is a list");
    // What the kernel said of the same processes, which none of them changes.
    let live: Vec<_> = host
        .processes()
        .into_iter()
        .filter(|process| process.pid > 300)
        .collect();
    assert_eq!(processes.len(), live.len(), "{inspected}");
    for process in &live {
        let one = processes.iter().find(|one| one["pid"] == process.pid);
        let one = one.unwrap_or_else(|| panic!("{} is not in {inspected}", process.pid));
        assert_eq!(
            one["parent"],
            if process.parent == 1 {
                0
            } else {
                process.parent
            }
        );
        assert_eq!(
            (&one["group"], &one["session"]),
            (&process.group.into(), &process.session.into())
        );
        let words = one["arguments"].as_array().expect("they are in memory");
        let words: Vec<_> = words
            .iter()
            .map(|word| word.as_str().expect("a word"))
            .collect();
        assert_eq!(words.join(" "), process.command_line);
        let executable = host.exec_ok(["readlink", &format!("/proc/{}/exe", process.pid)]);
        assert_eq!(one["executable"], executable.trim());
        let links = host.exec_ok(["ls", &format!("/proc/{}/fd", process.pid)]);
        let descriptors = one["descriptors"].as_array().expect("it is a list");
        let number = |descriptor: &Value| descriptor["number"].as_u64().expect("it has one");
        // The app connects to itself now and then: those of the moment come and go, two at a time.
        let is_of_the_moment = |name: &Value| {
            name.as_str()
                .is_some_and(|name| name.starts_with("tcp ") && name.contains(" to "))
        };
        let open: Vec<u64> = links
            .lines()
            .filter_map(|line| line.trim().parse().ok())
            .collect();
        let known: Vec<u64> = descriptors.iter().map(number).collect();
        for descriptor in descriptors
            .iter()
            .filter(|one| !is_of_the_moment(&one["name"]))
        {
            assert!(
                open.contains(&number(descriptor)),
                "{descriptor} of {open:?}"
            );
        }
        let unknown = open.iter().filter(|number| !known.contains(number)).count();
        assert!(unknown <= 2, "{open:?} beside {known:?}");
    }
    let root = processes
        .iter()
        .find(|one| one["parent"] == 0)
        .expect("there is a root");
    assert!(root["threads"].as_u64() > Some(3), "{root}");
    let all: Vec<&Value> = root["descriptors"]
        .as_array()
        .expect("it is a list")
        .iter()
        .collect();
    let of = |kind: &str| -> Vec<&str> {
        let those = all.iter().filter(|one| one["kind"] == kind);
        those.filter_map(|one| one["name"].as_str()).collect()
    };
    let contains = |kind: &str, part: &str| of(kind).iter().any(|name| name.contains(part));
    assert!(
        contains("internet_socket", "tcp 127.0.0.1:") && contains("internet_socket", "listening")
    );
    assert!(contains("unix_socket", "/run/job-"), "{root}");
    assert!(contains("memfd", "job"), "{root}");
    for kind in ["eventfd", "timerfd", "epoll", "pipe", "file"] {
        assert!(
            all.iter().any(|one| one["kind"] == kind),
            "no {kind} in {root}"
        );
    }
    assert_eq!(
        inspected["removed_files"].as_array().map(Vec::len),
        Some(1),
        "{inspected}"
    );
    // The job keeps 8 MiB of its own.
    let held = |one: &Value| one["memory"]["held_bytes"].as_u64().expect("it is known");
    assert!(held(root) > 8 << 20, "{root}");
    let mappings = root["mappings"].as_array().expect("it is a list");
    assert_eq!(mappings.iter().map(held).sum::<u64>(), held(root), "{root}");

    let secret = |answer: &Value| {
        let variables = answer["processes"][0]["environment"].as_array().cloned();
        let variables = variables.expect("it is in memory").into_iter();
        let mut found = variables.filter(|variable| variable["name"] == "SECRET");
        found.next().expect("it was set")["value"].clone()
    };
    assert_eq!(secret(&inspected), Value::Null);
    assert_eq!(
        secret(&json(&store, &["inspect", "1", "--show-environment"])),
        "value"
    );
    let text = ok(&store, &["inspect"]);
    assert!(
        text.contains("python3 /apps/job.py") && text.contains("SECRET") && !text.contains("value"),
        "{text}"
    );
}

#[test]
fn what_changed_between_two_snapshots_is_told() {
    let store = Store::new();
    let app = ["python3", "/apps/memory.py", "48"];
    let host = store.host("host", &app).start();
    wait_for_output(&host, "ready");
    checkpoint_ok(&host);
    checkpoint_ok(&host);
    let little = json(&store, &["diff", "1", "2"]);
    let changed = |answer: &Value| answer["changed_bytes"].as_u64().expect("it is known");
    assert!(changed(&little) < 4 << 20, "{little}");
    assert_eq!(json(&store, &["diff", "2", "2"])["changed_bytes"], 0);
    evict(&host);

    // Of a small job nothing is built upon, so that each snapshot's hashes are made with a key of its own.
    let store = Store::new();
    let host = store.host("host", COUNTER).start();
    wait_for_output(&host, "line 3");
    checkpoint_ok(&host);
    checkpoint_ok(&host);
    let all = json(&store, &["inspect"])["processes"][0]["memory"]["held_bytes"].as_u64();
    let little = json(&store, &["diff", "1"]);
    assert!(
        Some(changed(&little) * 2) < all && changed(&little) > 0,
        "{little}, of {all:?}"
    );
    let stayed = little["stayed"].as_array().expect("it is a list");
    assert_eq!(stayed.len(), 1, "{little}");
    assert_eq!(
        stayed[0]["memory"]["changed_bytes"].as_u64(),
        Some(changed(&little))
    );
    let text = ok(&store, &["diff", "1"]);
    assert!(text.starts_with("from generation 1 to "), "{text}");
}

#[test]
fn commands_need_to_be_told_where_the_job_is() {
    let output = Command::new(env!("CARGO_BIN_EXE_reprieve"))
        .arg("snapshots")
        .env_remove("REPRIEVE_STORE")
        .output()
        .expect("the binary was built");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(174), "{said}");
    assert!(
        said.contains("REPRIEVE_STORE") && said.contains("--job"),
        "{said}"
    );
    let nowhere = Command::new(env!("CARGO_BIN_EXE_reprieve"))
        .args(["snapshots", "--boot-timeout", "1s"])
        .env("REPRIEVE_STORE", "file:///not-mounted")
        .env("REPRIEVE_JOB", "job")
        .output()
        .expect("the binary was built");
    assert_eq!(nowhere.status.code(), Some(173));
}

/// The generation that a host resumed.
#[track_caller]
fn resumed_generation(host: &Host) -> u64 {
    let line = wait_for_log(host, "the job is resumed");
    let line: Value = serde_json::from_str(&line).expect("it is JSON");
    line["generation"].as_u64().expect("it has a number")
}

#[test]
fn a_job_goes_back_to_the_snapshot_that_was_asked_for_once_and_to_no_other() {
    let store = Store::new();
    let from = |words: &'static str| store.host_with("host", &["--from", words], COUNTER);
    let empty = from("newest").start();
    assert_eq!(empty.wait_exit(LIMIT), Exit::Code(177));

    let host = store.host("host", COUNTER).start();
    for line in ["line 5", "line 60", "line 120"] {
        wait_for_output(&host, line);
        checkpoint_ok(&host);
    }
    evict(&host);
    let last = *numbers(&host.stdout().text()).last().expect("it counted");
    assert_eq!(from("77").start().wait_exit(LIMIT), Exit::Code(177));
    ok(&store, &["tag", "2", "good"]);

    let back = from("good").start();
    assert_eq!(resumed_generation(&back), 2);
    wait_for_output(&back, "line 100");
    evict(&back);
    let counted = numbers(&back.stdout().text());
    assert!(
        (60..120).contains(&counted[0]) && counted[0] < last,
        "{}",
        counted[0]
    );
    let listed = json(&store, &["snapshots"]);
    assert_eq!(generations(&listed, "snapshots"), [5, 4, 3, 2, 1]);
    let aside = |at: usize| listed["snapshots"][at]["set_aside"] == true;
    assert_eq!(
        [0, 1, 2, 3, 4].map(aside),
        [false, true, true, false, false]
    );
    assert_eq!(json(&store, &["show", "5"])["parent"], 2);
    assert!(ok(&store, &["snapshots"]).contains("(set aside)"));

    // The same command line, as a platform restarts it.
    let again = from("good").start();
    assert_eq!(resumed_generation(&again), 5);
    wait_for_log(&again, "went back already");
    evict(&again);
    // What cannot be resumed is said, and nothing else is taken for it.
    let manifest = json(&store, &["show", "3"])["manifest"].clone();
    let manifest = manifest.as_str().expect("it is text").to_owned();
    flip_middle(&store.path().join("job").join(manifest));
    let refused = store
        .host_with(
            "host",
            &["--from", "3", "--on-no-valid-snapshot", "start"],
            COUNTER,
        )
        .start();
    assert_eq!(refused.wait_exit(LIMIT), Exit::Code(171));
    assert!(refused.stdout().text().is_empty());
    let plain = store.host("host", COUNTER).start();
    assert_eq!(resumed_generation(&plain), 6);
    evict(&plain);

    // Nothing was stored since the return and the machine is lost: the same snapshot again, also without a word.
    let lost = from("4").start();
    assert_eq!(resumed_generation(&lost), 4);
    lost.destroy();
    for builder in [from("4"), store.host("host", COUNTER)] {
        let host = builder.start();
        assert_eq!(resumed_generation(&host), 4);
        host.destroy();
    }
}

/// Runs a command about another job than `job`, or about none.
fn of_store(store: &Store, arguments: &[&str]) -> Said {
    let output = Command::new(env!("CARGO_BIN_EXE_reprieve"))
        .args(arguments)
        .arg("--store")
        .arg(format!("file://{}", store.path().display()))
        .output()
        .expect("the binary was built");
    Said {
        code: output.status.code().expect("it ends by itself"),
        stdout: String::from_utf8(output.stdout).expect("it is text"),
        stderr: String::from_utf8(output.stderr).expect("it is text"),
    }
}

#[track_caller]
fn json_of_store(store: &Store, arguments: &[&str]) -> Value {
    let said = of_store(store, &[arguments, &["--json"]].concat());
    assert_eq!(said.code, 0, "{arguments:?}: {}", said.stderr);
    let value: Value = serde_json::from_str(&said.stdout).expect("it is JSON");
    assert_documented(arguments[0], &value);
    value
}

/// A host that runs a job of the store under a name of its own.
fn host_of(store: &Store, job: &str, options: &[&str]) -> Host {
    let mut all = vec!["--store", "file:///snapshots", "--job", job];
    all.extend(["--term-grace", "60s", "--on-other-owner", "take-over"]);
    all.extend(options);
    Host::builder(job)
        .bind(store.path(), "/snapshots")
        .reprieve(all, COUNTER.iter().copied())
        .start()
}

#[test]
fn ten_clones_of_one_snapshot_go_on_side_by_side() {
    let store = Store::new();
    let host = store.host("host", COUNTER).start();
    wait_for_output(&host, "line 5");
    checkpoint_ok(&host);
    wait_for_output(&host, "line 60");
    checkpoint_ok(&host);
    ok(&store, &["tag", "2", "warm"]);
    // The source runs on meanwhile.
    let names: Vec<String> = (0..10).map(|number| format!("clone-{number}")).collect();
    for name in &names {
        let made = json_of_store(&store, &["clone", "job/warm", "--job", name]);
        assert_eq!(
            (
                &made["source_generation"],
                &made["generation"],
                &made["job"]
            ),
            (&2.into(), &1.into(), &name.as_str().into())
        );
        assert!(made["bytes"].as_u64() > Some(100_000), "{made}");
    }
    for (source, name, code, word) in [
        ("job/warm", "clone-3", 178, "already"),
        ("job/1", "job", 178, "already"),
        ("job/77", "other", 177, "no snapshot 77"),
        ("nobody/newest", "other", 177, "no snapshots"),
        ("job", "other", 174, "with a slash between them"),
    ] {
        let refused = of_store(&store, &["clone", source, "--job", name]);
        assert_eq!(refused.code, code, "{source}: {}", refused.stderr);
        assert!(
            refused.stderr.contains(word),
            "{source}: {}",
            refused.stderr
        );
    }
    assert!(!store.path().join("other").exists());
    evict(&host);
    // Neither job knows of the other.
    fs::remove_dir_all(store.path().join("job")).expect("it can be removed");

    let hosts: Vec<Host> = names
        .iter()
        .map(|name| host_of(&store, name, &[]))
        .collect();
    for host in &hosts {
        assert_eq!(resumed_generation(host), 1);
    }
    for host in &hosts {
        wait_for_output(host, "line 150");
        checkpoint_ok(host);
    }
    for (name, host) in names.iter().zip(&hosts) {
        let counted = numbers(&host.stdout().text());
        assert!((60..150).contains(&counted[0]), "{name}: {}", counted[0]);
        let whole = (counted[0]..)
            .zip(&counted)
            .all(|(wanted, found)| wanted == *found);
        assert!(whole, "{name} lost or repeated a line");
        let verified = json_of_store(&store, &["verify", "--all", "--job", name]);
        assert_eq!(generations(&verified, "snapshots"), [2, 1]);
        assert_eq!(verified["damaged"], 0);
    }
}

#[test]
fn a_sealed_snapshot_is_cloned_under_keys_of_the_new_job() {
    let store = Store::new();
    let secrets = tempfile::tempdir().expect("a temporary directory can be made");
    let key = secrets.path().join("key");
    fs::write(&key, "correct horse battery staple").expect("it can be written");
    let key = key.to_str().expect("it is text");
    let options = ["--key-file", "/secrets/key"];
    let sealed = |job: &str| {
        let mut all = vec!["--store", "file:///snapshots", "--job", job];
        all.extend(["--term-grace", "60s"]);
        all.extend(options);
        Host::builder(job)
            .bind(store.path(), "/snapshots")
            .bind(secrets.path(), "/secrets")
            .reprieve(all, COUNTER.iter().copied())
            .start()
    };
    let host = sealed("job");
    for line in ["line 5", "line 30"] {
        wait_for_output(&host, line);
        checkpoint_ok(&host);
    }
    evict(&host);
    let without = of_store(&store, &["clone", "job/2", "--job", "twin"]);
    assert_eq!(without.code, 186, "{}", without.stderr);
    let made = ["clone", "job/2", "--job", "twin", "--key-file", key];
    json_of_store(&store, &made);
    fs::remove_dir_all(store.path().join("job")).expect("it can be removed");
    let verified = json_of_store(&store, &["verify", "--job", "twin", "--key-file", key]);
    assert_eq!(verified["damaged"], 0);
    let twin = sealed("twin");
    assert_eq!(resumed_generation(&twin), 1);
    wait_for_output(&twin, "line 60");
    evict(&twin);
    assert!(numbers(&twin.stdout().text())[0] >= 30);
}

#[test]
fn the_jobs_and_workers_of_a_store_are_told_with_what_is_at_risk() {
    let store = Store::new();
    let empty = of_store(&store, &["ps"]);
    assert!(
        empty.stdout.contains("There are no jobs"),
        "{}",
        empty.stdout
    );
    let line = |job: &str| {
        let told = json_of_store(&store, &["ps"]);
        let all = told["jobs"].as_array().expect("it is a list").clone();
        let mut of_job = all.into_iter().filter(|line| line["job"] == job);
        let found = of_job.next().expect("it is listed");
        assert!(of_job.next().is_none(), "{told}");
        found
    };
    let (first, second) = (
        host_of(&store, "first", &[]),
        host_of(&store, "second", &[]),
    );
    wait_for_output(&first, "line 5");
    wait_for_output(&second, "line 5");
    checkpoint_ok(&second);
    wait_until(LIMIT, "both are told as running", || {
        ["first", "second"]
            .map(line)
            .iter()
            .all(|line| line["state"] == "running")
    });
    let told = line("first");
    assert_eq!(
        (&told["host"], &told["owner"]),
        (&"first".into(), &true.into())
    );
    assert_eq!(
        (&told["silent"], &told["last_snapshot"]),
        (&false.into(), &Value::Null)
    );
    assert!(told["work_at_risk_ms"].as_u64() > Some(0), "{told}");
    wait_until(LIMIT, "the snapshot is told", || {
        line("second")["last_snapshot"] == 1
    });
    let told = line("second");
    assert!(
        told["work_at_risk_ms"].as_u64() < line("first")["work_at_risk_ms"].as_u64(),
        "{told}"
    );
    let table = of_store(&store, &["ps"]).stdout;
    assert!(
        table.starts_with("JOB") && table.lines().count() == 3,
        "{table}"
    );
    assert!(!table.contains('\x1b'), "{table}");
    assert_eq!(
        of_store(&store, &["ps", "--job", "first"])
            .stdout
            .lines()
            .count(),
        2
    );
    assert_eq!(of_store(&store, &["ps", "--watch"]).code, 174);

    evict(&second);
    let told = line("second");
    assert_eq!(
        (&told["state"], &told["work_at_risk_ms"]),
        (&"stopped".into(), &Value::Null)
    );
    // A machine that is gone leaves its entry; one that was swept leaves the claim.
    first.destroy();
    assert_eq!(line("first")["state"], "running");
    fs::remove_dir_all(store.path().join("~workers")).expect("it can be removed");
    let told = line("first");
    assert_eq!(
        (&told["state"], &told["silent"]),
        (&"lost".into(), &true.into())
    );
}

/// On a terminal: colours, unless NO_COLOR says otherwise, and bars of progress.
#[test]
fn colours_and_bars_are_for_terminals() {
    let store = Store::new();
    let host = store.host("host", MEMORY).start();
    wait_for_output(&host, "ready");
    checkpoint_ok(&host);
    evict(&host);
    let on_terminal = |arguments: &str, variables: &str| {
        let command = format!(
            "{variables} {} {arguments} --store file://{} --job job",
            env!("CARGO_BIN_EXE_reprieve"),
            store.path().display()
        );
        let output = Command::new("script")
            .args(["--quiet", "--return", "--command", &command, "/dev/null"])
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .output()
            .expect("script is there");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let listed = on_terminal("snapshots", "");
    assert!(listed.contains("\x1b[1mGENERATION"), "{listed:?}");
    let plain = on_terminal("snapshots", "NO_COLOR=1");
    assert!(
        !plain.contains('\x1b') && plain.contains("GENERATION"),
        "{plain:?}"
    );
    let verified = on_terminal("verify", "");
    assert!(
        verified.contains("verifying") && verified.contains("sound"),
        "{verified:?}"
    );
    assert_eq!(reprieve(&store, &["verify"]).stderr, "");
}

/// A command on a terminal, ended with the value.
struct Watched(std::process::Child);

impl Drop for Watched {
    fn drop(&mut self) {
        // After its end this does nothing.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn a_watched_store_is_looked_at_again_and_again() {
    let store = Store::new();
    let host = store.host("host", COUNTER).start();
    wait_for_output(&host, "line 3");
    let command = format!(
        "{} ps --watch --store file://{}",
        env!("CARGO_BIN_EXE_reprieve"),
        store.path().display()
    );
    let mut watched = Watched(
        Command::new("script")
            .args(["--quiet", "--flush", "--command", &command, "/dev/null"])
            .env("TERM", "xterm")
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("script is there"),
    );
    let told = Output::capture(watched.0.stdout.take().expect("it is a pipe"));
    let job =
        |state: &'static str| move |line: &str| line.starts_with("job ") && line.contains(state);
    told.wait_for_line("the running job", LIMIT, job("running"));
    evict(&host);
    told.wait_for_line("the stopped job", LIMIT, job("stopped"));
}
