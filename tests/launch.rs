//! What an app is given at its start so that it can be checkpointed, with real apps and real CRIU.

mod harness;
mod job;

use harness::{Builder, Host, LIMIT, wait_until};
use job::{Store, checkpoint, evict, wait_for_log, wait_for_output};

/// Asks for an io_uring again and again, through the C library as libuv does, in a program of its own each time: what was
/// denied stays denied after a resume.
const ASKS: [&str; 3] = [
    "bash",
    "-c",
    "echo ready; n=0; while sleep 0.05; do n=$((n+1)); python3 -c 'import ctypes, os
c = ctypes.CDLL(None, use_errno=True)
print(c.syscall(425, 4, ctypes.create_string_buffer(120)), os.strerror(ctypes.get_errno()), flush=True)'; done",
];

const DENIED: &str = "-1 Function not implemented";

#[track_caller]
fn started(host: &Host) -> String {
    wait_for_log(host, "what the app is given so that it can be checkpointed")
}

#[track_caller]
fn survives_an_eviction(make: impl Fn(&str) -> Builder, said: &str) {
    let host = make("host").start();
    assert!(started(&host).contains(said));
    wait_for_output(&host, DENIED);
    evict(&host);
    for name in ["next", "third"] {
        let next = make(name).start();
        wait_for_log(&next, "the job is resumed");
        // Some of what was said before may come on this host.
        let denied = || next.stdout().text().matches(DENIED).count();
        wait_until(LIMIT, "more of the same", || denied() > 5);
        evict(&next);
    }
}

#[test]
fn a_library_denies_io_uring_and_travels_with_the_job() {
    let store = Store::new();
    survives_an_eviction(|name| store.host(name, &ASKS), "denied by a library");
}

#[test]
fn a_plain_user_is_denied_as_well() {
    let store = Store::new();
    std::fs::set_permissions(
        store.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .expect("it is ours");
    let make = |name: &str| {
        let host = store.host(name, &ASKS).user(1000, 1000).no_new_privileges();
        ["CAP_CHECKPOINT_RESTORE", "CAP_SYS_PTRACE"]
            .into_iter()
            .fold(host, Builder::ambient_capability)
    };
    survives_an_eviction(make, "denied by a library");
}

#[test]
fn a_filter_denies_io_uring_where_criu_may_suspend_it() {
    let store = Store::new();
    let make = |name: &str| {
        let host = store.host_with(name, &["--io-uring", "filter"], &ASKS);
        host.add_capability("CAP_SYS_ADMIN")
    };
    survives_an_eviction(make, "denied by a seccomp filter");
}

#[test]
fn io_uring_is_denied_in_the_full_profile_in_either_way() {
    for (how, said) in [
        ("deny", "denied by a library"),
        ("filter", "denied by a seccomp filter"),
    ] {
        let store = Store::new();
        let make = |name: &str| {
            let options = ["--profile", "full", "--io-uring", how];
            let host = store.host_with(name, &options, &ASKS);
            host.add_capability("CAP_SYS_ADMIN")
                .add_capability("CAP_SYS_TIME")
        };
        survives_an_eviction(make, said);
    }
}

#[test]
fn where_a_filter_cannot_be_stored_the_library_denies_io_uring() {
    let store = Store::new();
    let host = store.host_with("host", &["--io-uring", "filter"], &ASKS);
    let host = host.start();
    wait_for_log(&host, "io_uring cannot be denied by a filter here");
    assert!(started(&host).contains("denied by a library"));
    wait_for_output(&host, DENIED);
}

#[test]
fn with_the_switch_off_it_is_had_and_no_checkpoint_is() {
    let store = Store::new();
    let app = ["python3", "/apps/feature.py", "io_uring"];
    let host = store
        .host_with("host", &["--io-uring", "allow"], &app)
        .start();
    wait_for_output(&host, "ready");
    assert_ne!(checkpoint(&host).code, 0);
    assert!(started(&host).contains("\"allowed\""));
}

#[test]
fn a_variable_that_is_set_is_added_to_and_a_decision_counts() {
    let store = Store::new();
    let app = [
        "python3",
        "/apps/facts.py",
        "JAVA_TOOL_OPTIONS",
        "GODEBUG",
        "LD_PRELOAD",
    ];
    let facts = |name: &str, options: &[&str], set: &[(&str, &str)]| {
        let host = store.host_with(name, options, &app);
        let host = set
            .iter()
            .fold(host, |host, &(name, value)| host.env(name, value));
        let host = host.start();
        let line = host
            .stdout()
            .wait_for_line("the facts", LIMIT, |line| line.starts_with('{'));
        let facts: serde_json::Value = serde_json::from_str(&line).expect("it is JSON");
        host.wait_exit(LIMIT);
        facts["environment"].clone()
    };
    let given = facts("a", &[], &[("JAVA_TOOL_OPTIONS", "-Xmx64m")]);
    assert_eq!(given["JAVA_TOOL_OPTIONS"], "-Xmx64m -XX:-UsePerfData");
    assert_eq!(given["GODEBUG"], "multipathtcp=0");
    assert_eq!(
        given["LD_PRELOAD"],
        "/run/reprieve-lib/clocks-no-io-uring-job.so"
    );
    let decided = [
        ("JAVA_TOOL_OPTIONS", "-XX:+UsePerfData"),
        ("GODEBUG", "multipathtcp=3"),
    ];
    let given = facts("b", &[], &decided);
    assert_eq!(given["JAVA_TOOL_OPTIONS"], "-XX:+UsePerfData");
    assert_eq!(given["GODEBUG"], "multipathtcp=3");
    // The baseline says more in the same variable.
    let baseline = ["--cpu-baseline", "x86-64-v2"];
    let given = facts("f", &baseline, &[("GODEBUG", "gctrace=0")]);
    let debug = given["GODEBUG"].as_str().expect("it is set");
    assert!(
        debug.starts_with("gctrace=0,multipathtcp=0,cpu."),
        "{debug}"
    );
    let denied = facts("d", &["--clocks", "host"], &[]);
    assert_eq!(denied["LD_PRELOAD"], "/run/reprieve-lib/no-io-uring.so");
    let kept = facts("e", &["--io-uring", "allow"], &[]);
    assert_eq!(kept["LD_PRELOAD"], "/run/reprieve-lib/clocks-job.so");
    let off = [
        "--jvm-perf-data",
        "keep",
        "--go-multipath-tcp",
        "keep",
        "--io-uring",
        "allow",
        "--clocks",
        "host",
    ];
    let given = facts("c", &off, &[]);
    assert_eq!(given["JAVA_TOOL_OPTIONS"], serde_json::Value::Null);
    assert_eq!(given["GODEBUG"], serde_json::Value::Null);
    assert_eq!(given["LD_PRELOAD"], serde_json::Value::Null);
}
