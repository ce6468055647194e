//! Which hosts can go on with a job: what a snapshot records of its host, what a lesser processor says to it, and what an app
//! that is held to a level really does without. The lesser processors are qemu's, which run the same programs.

mod harness;
mod job;

use std::collections::BTreeMap;

use harness::{Builder, Host, LIMIT};
use job::{Store, checkpoint_ok, evict, wait_for_log, wait_for_output};
use serde_json::Value;

/// An emulator without libraries, so that it runs in any user land.
const QEMU: &str = "/usr/bin/qemu-x86_64-static";

const APP: [&str; 3] = ["bash", "-c", "echo ready; while :; do sleep 0.05; done"];

fn with_qemu(host: Builder) -> Builder {
    host.bind_read_only(QEMU, "/usr/local/bin/qemu")
}

/// The newest snapshot as this processor sees it; `native`: the real one.
#[track_caller]
fn seen_from(host: &Host, processor: &str) -> Value {
    asked_from(host, processor)["snapshots"][0].clone()
}

#[track_caller]
fn asked_from(host: &Host, processor: &str) -> Value {
    let program = [
        "/usr/local/bin/qemu",
        "-cpu",
        processor,
        "/usr/local/bin/reprieve",
    ];
    let program = match processor {
        "native" => &program[3..],
        _ => &program[..],
    };
    let asked = [
        "snapshots",
        "--for-host",
        "--json",
        "--store",
        "file:///snapshots",
        "--job",
        "job",
    ];
    let said = host.exec_ok(program.iter().chain(&asked).copied());
    serde_json::from_str(&said).expect("it is JSON")
}

#[track_caller]
fn reasons(snapshot: &Value) -> Vec<String> {
    let all = snapshot["unfit"].as_array().expect("it was asked");
    all.iter()
        .map(|one| one.as_str().expect("it is a text").to_owned())
        .collect()
}

/// The instruction sets that one reason names.
fn lacking(reasons: &[String]) -> Vec<String> {
    let said = reasons
        .iter()
        .find_map(|one| one.split_once(" lacks ")?.1.split_once(" of the snapshot"));
    let names = said.map_or("", |(names, _)| names).split(", ");
    names
        .filter_map(|name| name.split(' ').next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_lesser_processor_says_what_it_lacks_and_a_baseline_is_needed_alone() {
    let free = Store::new();
    let host = with_qemu(free.host("free", &APP)).start();
    wait_for_output(&host, "ready");
    checkpoint_ok(&host);
    assert_eq!(reasons(&seen_from(&host, "native")), [""; 0]);
    let said = reasons(&seen_from(&host, "Nehalem"));
    let lacks = lacking(&said);
    for name in ["avx", "avx2", "bmi1", "fma", "xsave"] {
        assert!(lacks.iter().any(|lack| lack == name), "{name}: {said:?}");
    }
    assert!(said[0].contains("avx2 (CPUID 7.0 EBX bit 5)"), "{said:?}");

    let held = Store::new();
    let options = ["--cpu-baseline", "x86-64-v2"];
    let host = with_qemu(held.host_with("held", &options, &APP)).start();
    wait_for_output(&host, "ready");
    checkpoint_ok(&host);
    let snapshot = seen_from(&host, "Nehalem");
    assert_eq!(snapshot["cpu_level"], "x86-64-v2");
    // What no switch reaches is demanded all the same.
    let beside = ["adx", "aes", "pclmulqdq", "rdrand", "rdseed"];
    let lacks = lacking(&reasons(&snapshot));
    assert!(
        lacks.iter().all(|lack| beside.contains(&lack.as_str())),
        "{lacks:?}"
    );
    // Others of the level's own are not dispensed with.
    let lacks = lacking(&reasons(&seen_from(&host, "qemu64,-ssse3,-popcnt")));
    assert!(lacks.contains(&"ssse3".to_owned()), "{lacks:?}");

    let table = host.exec_ok([
        "reprieve",
        "snapshots",
        "--for-host",
        "--store",
        "file:///snapshots",
        "--job",
        "job",
    ]);
    assert!(
        table.contains("This host: x86_64") && table.contains("RUNS HERE"),
        "{table}"
    );
    assert!(
        table
            .lines()
            .last()
            .is_some_and(|line| line.trim_end().ends_with("yes")),
        "{table}"
    );
    let ps = host.exec_ok(["reprieve", "ps", "--store", "file:///snapshots"]);
    assert!(ps.contains("x86-64-v2"), "{ps}");
    // What was held stays held, whoever resumes it.
    evict(&host);
    let next = with_qemu(held.host("next", &APP)).start();
    wait_for_log(&next, "the job is resumed");
    checkpoint_ok(&next);
    assert_eq!(seen_from(&next, "native")["cpu_level"], "x86-64-v2");
}

#[test]
fn a_file_of_a_fleet_holds_a_job_to_what_its_machines_have() {
    let store = Store::new();
    let host = with_qemu(store.host("asked", &APP)).start();
    wait_for_output(&host, "ready");
    checkpoint_ok(&host);
    // What a lesser processor has, as CPUID tells there.
    let lesser = asked_from(&host, "Nehalem")["this_host"]["cpu_features"].clone();
    let has: Vec<&str> = lesser
        .as_array()
        .map(|all| all.iter().filter_map(Value::as_str).collect())
        .expect("they are listed");
    let fleet = tempfile::tempdir().expect("a temporary directory can be made");
    let text = format!("# two kinds\nnew: x86-64-v3\nold: {}\n", has.join(" "));
    std::fs::write(fleet.path().join("fleet"), text).expect("it is ours");
    let held = Store::new();
    let order = |name: &str, path: &str| {
        let options = ["--cpu-baseline", path];
        with_qemu(held.host_with(name, &options, &APP)).bind_read_only(fleet.path(), "/fleet")
    };
    let host = order("held", "/fleet/fleet").start();
    wait_for_log(&host, "some machines of the fleet lack");
    wait_for_output(&host, "ready");
    checkpoint_ok(&host);
    let snapshot = seen_from(&host, "Nehalem");
    assert_eq!(snapshot["cpu_level"], "x86-64-v2");
    let lacks = lacking(&reasons(&snapshot));
    let beside = ["adx", "aes", "pclmulqdq", "rdrand", "rdseed"];
    assert!(
        lacks.iter().all(|lack| beside.contains(&lack.as_str())),
        "{lacks:?}"
    );
    host.destroy();
    let other = Store::new();
    let missing = other
        .host_with("missing", &["--cpu-baseline", "/fleet/none"], &APP)
        .start();
    assert_eq!(missing.wait_exit(LIMIT), harness::Exit::Code(174));
    let said = missing.stderr().text();
    assert!(
        said.contains("the CPU baseline in /fleet/none cannot be used"),
        "{said}"
    );
}

#[test]
fn a_host_without_the_profile_that_a_snapshot_needs_says_so() {
    let store = Store::new();
    let full = store
        .host("full", &["python3", "/apps/sysv.py"])
        .add_capability("CAP_SYS_ADMIN")
        .add_capability("CAP_SYS_TIME")
        .start();
    wait_for_output(&full, "line 5");
    checkpoint_ok(&full);
    assert_eq!(reasons(&seen_from(&full, "native")), [""; 0]);
    let minimal = Host::builder("minimal")
        .bind(store.path(), "/snapshots")
        .start();
    let said = reasons(&seen_from(&minimal, "native"));
    assert!(
        said.iter().any(|one| one.contains("need the full profile")),
        "{said:?}"
    );
}

#[test]
fn under_a_baseline_the_c_library_chooses_what_runs_on_the_lesser_processor() {
    let chosen = |store: &Store, options: &[&str]| -> String {
        let app = ["python3", "/apps/chosen.py"];
        let host = store.host_with("host", options, &app).start();
        let line = host
            .stdout()
            .wait_for_line("the choice", LIMIT, |line| line.starts_with('{'));
        host.wait_exit(LIMIT);
        line
    };
    let ended = |processor: &str, places: &str| -> BTreeMap<String, i64> {
        let host = with_qemu(Host::builder("lesser"))
            .args(["sleep", "1000"])
            .start();
        let said = host.exec_ok([
            "/usr/local/bin/qemu",
            "-cpu",
            processor,
            "/usr/bin/python3",
            "/apps/chosen.py",
            places,
        ]);
        serde_json::from_str(&said).expect("it is JSON")
    };
    let crashed = |ends: &BTreeMap<String, i64>| ends.values().filter(|end| **end != 0).count();
    let free = chosen(&Store::new(), &[]);
    let held = chosen(&Store::new(), &["--cpu-baseline", "x86-64-v2"]);
    assert_ne!(free, held);
    let ends = ended("Nehalem", &free);
    assert!(crashed(&ends) > 5, "{ends:?}");
    let ends = ended("Nehalem", &held);
    assert_eq!(crashed(&ends), 0, "{ends:?}");
    let ends = ended(
        "Haswell",
        &chosen(&Store::new(), &["--cpu-baseline", "x86-64-v3"]),
    );
    assert_eq!(crashed(&ends), 0, "{ends:?}");
}

#[test]
fn another_library_at_its_path_is_named_and_the_snapshot_passed_over() {
    let store = Store::new();
    let host = store.host("host", &APP).start();
    wait_for_output(&host, "ready");
    checkpoint_ok(&host);
    let manifest = store.path().join("job/manifests");
    let manifest = std::fs::read_dir(manifest)
        .expect("it is there")
        .next()
        .expect("there is one")
        .expect("it can be read");
    let text = std::fs::read_to_string(manifest.path()).expect("it is a text");
    for wanted in [
        "\"programs\":{\"/usr/bin/bash\":",
        "libc.so.6",
        "\"libc\":\"glibc 2.",
        "\"cpuid\":{\"1.0\":",
        "xsave_bytes",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    evict(&host);
    let next = store
        .host("next", &APP)
        .bind_read_only("/bin/true", "/usr/bin/bash")
        .start();
    let said = wait_for_log(&next, "is another one here");
    assert!(
        said.contains("/usr/bin/bash is another one here: it had "),
        "{said}"
    );
}
