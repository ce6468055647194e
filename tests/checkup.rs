//! What a look at a job's processes finds, and that CRIU refuses just that: each app here has one thing of its own.
//!
//! A rule is worth as much as these trials: whatever is found must make a real checkpoint fail, and what CRIU stores must
//! not be found.

mod harness;
mod job;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use harness::{Host, LIMIT, wait_until};
use job::{
    COUNTER, Store, assert_counts, checkpoint, checkpoint_ok, evict, resumed, wait_for_log,
    wait_for_output,
};
use serde_json::Value;

/// Larger than `--ghost-limit` below.
const SIZE: &str = "3000000";

/// With io_uring allowed, which an app does not get otherwise.
const OPTIONS: [&str; 6] = [
    "--checkup-interval",
    "100ms",
    "--ghost-limit",
    "2MiB",
    "--io-uring",
    "allow",
];

/// Thing, kind of finding, and what CRIU says of it.
const REFUSED: [(&str, &str, &str); 36] = [
    ("io_uring", "io_uring", "Can't retrieve FDs"),
    ("io_uring-mapping", "io_uring", "anon_inode:[io_uring]"),
    ("inotify-overlay", "watch", "Can't dump that handle"),
    ("inotify-tmpfs", "watch", "Can't dump that handle"),
    ("inotify-proc", "watch", "Can't dump that handle"),
    ("inotify-bind", "watch", "Can't dump that handle"),
    // CRIU compares the device that the file system has with that which its files show, and on an overlay they differ.
    ("inotify-etc-file", "watch", "Can't dump that handle"),
    ("fanotify-tmpfs", "watch", "Can't dump that handle"),
    ("fanotify-overlay", "watch", "Can't dump that handle"),
    ("shm", "shared_memory", "SysVIPC shmem map"),
    ("seccomp", "seccomp", "suspending seccomp failed"),
    ("seccomp-child", "seccomp", "suspending seccomp failed"),
    ("seccomp-thread", "seccomp", "suspending seccomp failed"),
    ("traced", "traced", "Unseizable non-zombie"),
    ("user-namespace", "namespace", "nested user namespace"),
    ("mount-namespace", "namespace", "nested user namespace"),
    ("pid-namespace", "namespace", "nested user namespace"),
    ("net-namespace", "namespace", "nested user namespace"),
    ("cgroup-namespace", "namespace", "nested user namespace"),
    ("ipc-namespace", "namespace", "nested ipc namespace"),
    ("uts-namespace", "namespace", "nested uts namespace"),
    ("time-namespace", "namespace", "nested time_for_children"),
    ("own-user-namespace", "namespace", "Unable to convert uid"),
    ("own-net-namespace", "namespace", "Can't setns"),
    ("ghost", "deleted_file", "increase limit"),
    ("ghost-tmpfs", "deleted_file", "increase limit"),
    ("ghost-mapping", "deleted_file", "increase limit"),
    ("ghost-private", "deleted_file", "increase limit"),
    ("ghost-linked", "lost_name", "Use link-remap option"),
    ("ghost-linked-tmpfs", "lost_name", "Use link-remap option"),
    ("mptcp-listen", "socket", "Unsupported proto 262"),
    ("queue", "mount", "Can't lookup mount"),
    ("userfaultfd", "descriptor", "anon_inode:[userfaultfd]"),
    ("perf", "descriptor", "anon_inode:[perf_event]"),
    ("device-tun", "device", "tun: Net namespace is required"),
    ("orphan", "orphan", "would be left out"),
];

/// What not every kernel or machine has.
const REFUSED_WHERE_THERE_IS: [(&str, &str, &str); 7] = [
    // The name of a GPU's node with another driver behind it: what is tested is that it is found, and CRIU's refusal is
    // that of an unknown device.
    ("gpu", "gpu", "Can't dump file"),
    ("device-fuse", "device", "Can't dump file"),
    ("device-cpuid", "device", "Can't dump file"),
    ("vsock", "socket", "Unknown socket"),
    ("xdp", "socket", "Unknown socket"),
    ("landlock", "descriptor", "anon_inode:[landlock-ruleset]"),
    ("secret", "secret_memory", "/secretmem"),
];

/// What a hasty rule would take for an obstacle. Each is stored and goes on elsewhere.
const STORED: [&str; 38] = [
    "nothing",
    "inotify-etc",
    "user",
    "effective-user",
    "group",
    "inotify",
    "fanotify",
    "thread-user",
    "ghost-sparse",
    "tmpfile",
    "packet",
    "raw",
    "udp",
    "udplite",
    "tcp-unbound",
    "tcp-bound",
    "tcp-pair",
    "tcp6-listen",
    "netlink-route",
    "netlink-uevent",
    "netlink-generic",
    "netlink-diag",
    "unix-unread",
    "in-flight",
    "memfd",
    "aio",
    "device-null",
    "device-urandom",
    "pty",
    "pty-child",
    "proc-file",
    "sys-file",
    "cgroup-file",
    "path-only",
    "namespace-file",
    "pidfd",
    "stopped",
    "zombie",
];

/// Runs the app, or says why there is no such thing on this machine.
fn start(store: &Store, name: &str, thing: &str) -> Result<Host, String> {
    let app = ["python3", "/apps/feature.py", thing, SIZE];
    let host = store
        .host_with(name, &OPTIONS, &app)
        .allow_device(10, 229)
        .allow_device(203, 0)
        .start();
    let first = host
        .stdout()
        .wait_for_line("the first line", LIMIT, |_| true);
    match first.strip_prefix("absent: ") {
        Some(why) => Err(why.to_owned()),
        None => Ok(host),
    }
}

#[track_caller]
fn status(host: &Host) -> Value {
    let said = host.exec_ok(["reprieve", "status", "--json"]);
    serde_json::from_str(&said).expect("it is JSON")
}

#[track_caller]
fn assert_found_and_refused(host: &Host, thing: &str, reason: &str, complaint: &str) {
    let told = wait_for_log(host, "the job cannot be checkpointed as it is now");
    let told: Value = serde_json::from_str(&told).expect("the log is JSON");
    assert_eq!(told["kind"], reason, "{thing}: {told}");
    let status = status(host);
    let first = &status["obstacles"][0];
    assert_eq!(first["reason"], reason, "{thing}: {status}");
    assert_eq!(status["protected"], false, "{thing}: {status}");
    for (field, logged) in [("pid", "pid"), ("command", "command"), ("what", "what")] {
        assert_eq!(first[field], told[logged], "{thing}: {status}");
    }
    let ran = checkpoint(host);
    assert_ne!(ran.code, 0, "{thing} was found and can be stored");
    assert!(ran.stderr.contains(complaint), "{thing}: {}", ran.stderr);
}

#[test]
fn what_is_found_is_what_criu_refuses() {
    for (thing, reason, complaint) in REFUSED {
        let store = Store::new();
        let host = start(&store, "host", thing).unwrap_or_else(|why| panic!("{thing}: {why}"));
        assert_found_and_refused(&host, thing, reason, complaint);
    }
    for (thing, reason, complaint) in REFUSED_WHERE_THERE_IS {
        let store = Store::new();
        if let Ok(host) = start(&store, "host", thing) {
            assert_found_and_refused(&host, thing, reason, complaint);
        }
    }
}

#[test]
fn with_less_than_dockers_capabilities_other_users_are_found_and_refused() {
    for (thing, capability) in [
        ("user", "CAP_KILL"),
        ("effective-user", "CAP_KILL"),
        ("group", "CAP_DAC_OVERRIDE"),
    ] {
        let store = Store::new();
        let app = ["python3", "/apps/feature.py", thing];
        let host = store
            .host_with("host", &OPTIONS, &app)
            .drop_capability(capability)
            .start();
        wait_for_output(&host, "ready");
        assert_found_and_refused(&host, thing, "user", "Can't get rlimit");
        let doctor = host.exec(["reprieve", "doctor", "--no-rehearsal"]);
        let missing = capability.trim_start_matches("CAP_");
        assert!(
            doctor
                .stdout
                .contains(&format!("for several: the capability {missing}")),
            "{}",
            doctor.stdout
        );
    }
}

/// As a user of its own: the limit is one of all that root has on this machine, other tests included.
#[test]
fn a_user_whose_pipes_take_all_there_is_is_found_and_refused() {
    let store = Store::new();
    fs::set_permissions(store.path(), PermissionsExt::from_mode(0o777)).expect("it is ours");
    let app = ["python3", "/apps/feature.py", "pipes"];
    let host = store
        .host_with("host", &OPTIONS, &app)
        .user(4343, 4343)
        .no_new_privileges()
        .env("REPRIEVE_CONTROL_SOCKET", "/tmp/control.sock")
        .ambient_capability("CAP_CHECKPOINT_RESTORE")
        .ambient_capability("CAP_SYS_PTRACE")
        .start();
    let first = host
        .stdout()
        .wait_for_line("the first line", LIMIT, |_| true);
    if first.starts_with("absent: ") {
        return;
    }
    assert_found_and_refused(&host, "pipes", "pipe", "Unable to set a pipe size");
    let doctor = host.exec(["reprieve", "doctor", "--no-rehearsal"]);
    let found = doctor.stdout.contains("fs.pipe-user-pages-soft");
    assert!(found, "{}", doctor.stdout);
}

#[test]
fn what_criu_stores_is_not_found() {
    for thing in STORED {
        let store = Store::new();
        let host = start(&store, "host", thing).unwrap_or_else(|why| panic!("{thing}: {why}"));
        checkpoint_ok(&host);
        // A checkpoint ends with a look; the one before it is over by then.
        let looked = host.exec_ok([
            "reprieve",
            "doctor",
            "--no-rehearsal",
            "--json",
            "--pid",
            "301",
            "--store",
            "file:///snapshots",
            "--ghost-limit",
            "2MiB",
        ]);
        assert!(
            looked.contains("nothing known stands in the way"),
            "{thing}: {looked}"
        );
        let status = status(&host);
        assert_eq!(status["obstacles_total"], 0, "{thing}: {status}");
        assert_eq!(status["protected"], true, "{thing}: {status}");
        evict(&host);
        let next = start(&store, "next", thing).unwrap_or_else(|why| panic!("{thing}: {why}"));
        resumed(&next);
        wait_for_output(&next, "on");
    }
}

/// A dump with less than DAC_READ_SEARCH finds watched files by going through the directories that it is told.
#[test]
fn what_is_watched_below_a_named_directory_goes_on() {
    let all = "/tmp,/var/tmp,/snapshots";
    let named = [&OPTIONS[..2], &["--watched", all]].concat();
    let full = [&named[..], &["--profile", "full"]].concat();
    let things = [
        "inotify-tmpfs",
        "inotify-overlay",
        "inotify-bind",
        "fanotify-tmpfs",
        "fanotify-overlay",
    ];
    let minimal = things.map(|thing| (thing, &named));
    for (thing, options) in minimal.into_iter().chain([("inotify-overlay", &full)]) {
        let store = Store::new();
        let app = ["python3", "/apps/feature.py", thing];
        let start = |name: &str| {
            let host = store.host_with(name, options, &app);
            ["CAP_SYS_ADMIN", "CAP_SYS_TIME"]
                .iter()
                .filter(|_| options.contains(&"full"))
                .fold(host, |host, one| host.add_capability(*one))
                .start()
        };
        let host = start("host");
        wait_for_output(&host, "ready");
        checkpoint_ok(&host);
        assert_eq!(status(&host)["obstacles_total"], 0, "{thing}");
        evict(&host);
        let next = start("next");
        wait_for_log(&next, "the job is resumed");
        wait_for_output(&next, "on");
        checkpoint_ok(&next);
        next.destroy();
    }
}

#[test]
fn a_watch_goes_on_and_needs_what_it_is_for() {
    let store = Store::new();
    let app = ["python3", "/apps/watching.py", "/data/watched"];
    let volume = tempfile::tempdir().expect("a temporary directory can be made");
    let start = |name: &str, volume: &Path| {
        let host = store.host_with(name, &["--watched", "/data"], &app);
        host.bind(volume, "/data").start()
    };
    let host = start("host", volume.path());
    wait_for_output(&host, "saw 10");
    evict(&host);
    let other = tempfile::tempdir().expect("a temporary directory can be made");
    let without = start("without", other.path());
    assert_eq!(without.wait_exit(LIMIT), harness::Exit::Code(171));
    let said = without.stderr().text();
    assert!(said.contains("/data/watched is not here"), "{said}");
    let next = start("next", volume.path());
    resumed(&next);
    // It sees what happens from now on.
    let last = host.stdout().lines().len();
    wait_until(LIMIT, "more of what is seen", || {
        host.stdout().lines().len() + next.stdout().lines().len() > last + 10
    });
}

#[test]
fn a_large_deleted_file_travels_where_there_is_room_for_it() {
    let app = ["python3", "/apps/feature.py", "ghost", "100000000"];
    let store = Store::new();
    let sum = |host: &Host| host.exec_ok(["sha256sum", "/proc/301/fd/3"]);
    let host = store.host_with("host", &OPTIONS[..2], &app).start();
    wait_for_output(&host, "ready");
    let before = sum(&host);
    checkpoint_ok(&host);
    assert_eq!(status(&host)["obstacles_total"], 0);
    evict(&host);
    let next = store.host_with("next", &OPTIONS[..2], &app).start();
    resumed(&next);
    assert_eq!(sum(&next), before);
    next.destroy();

    // What a dump would put into memory that there is not is found, by the same number.
    let store = Store::new();
    let small = store
        .host_with("small", &OPTIONS[..2], &app)
        .limit("memory", serde_json::json!({"limit": 256 << 20}))
        .start();
    wait_for_output(&small, "ready");
    assert_found_and_refused(&small, "ghost", "deleted_file", "increase limit");
}

#[test]
fn the_apps_of_the_other_tests_have_nothing_in_the_way() {
    let apps: [&[&str]; 4] = [
        &["python3", "/apps/job.py", "0.02"],
        &["python3", "/apps/counter.py", "--pace", "0.01"],
        &["python3", "/apps/memory.py", "16", "5"],
        &["bash", "-c", "echo ready; while :; do sleep 0.05; done"],
    ];
    for app in apps {
        let store = Store::new();
        let host = store.host_with("host", &OPTIONS, app).start();
        host.stdout()
            .wait_for_line("the first line", LIMIT, |_| true);
        checkpoint_ok(&host);
        let all = host.stderr().text();
        assert!(!all.contains("cannot be checkpointed as it is"), "{all}");
        assert_eq!(status(&host)["obstacles_total"], 0, "{app:?}");
    }
}

#[test]
fn what_goes_away_is_gone_and_the_doctor_sees_the_same() {
    let store = Store::new();
    let app = [
        "bash",
        "-c",
        "setsid python3 /apps/feature.py inotify-tmpfs & echo started; wait; echo ended; sleep 1000",
    ];
    let host = store.host_with("host", &OPTIONS, &app).start();
    wait_for_output(&host, "ready");
    let told = wait_for_log(&host, "the job cannot be checkpointed as it is now");
    let told: Value = serde_json::from_str(&told).expect("the log is JSON");
    let pid = told["pid"].as_i64().expect("it is a number");
    assert_eq!(told["what"], "descriptor 3 (anon_inode:inotify)");
    let text = host.exec_ok(["reprieve", "status"]);
    let line =
        format!("in the way     {pid} (python3), descriptor 3 (anon_inode:inotify): CRIU cannot");
    assert!(text.contains(&line), "{text}");

    let root = status(&host)["app_pid"].to_string();
    let doctor = [
        "reprieve",
        "doctor",
        "--no-rehearsal",
        "--json",
        "--pid",
        &root,
    ];
    let ran = host.exec(doctor);
    assert_eq!(ran.code, 185, "{}", ran.stdout);
    let answer: Value = serde_json::from_str(&ran.stdout).expect("it is JSON");
    let job = answer["findings"]
        .as_array()
        .and_then(|all| all.iter().find(|one| one["check"] == "job"))
        .unwrap_or_else(|| panic!("the job was not looked at: {answer}"));
    assert_eq!(job["level"], "fatal", "{answer}");
    assert!(
        job["found"]
            .as_str()
            .is_some_and(|found| found.starts_with(&format!("{pid} (python3)"))),
        "{answer}"
    );
    let ran = host.exec(["reprieve", "doctor", "--no-rehearsal", "--pid", "299"]);
    assert!(
        ran.stdout.contains("there is no process 299 here"),
        "{}",
        ran.stdout
    );

    host.exec_ok(["kill", &pid.to_string()]);
    wait_for_log(&host, "what stood in the way of a checkpoint is gone");
    wait_until(LIMIT, "protection", || status(&host)["protected"] == true);
    checkpoint_ok(&host);
}

const REHEARSE: [&str; 4] = ["--rehearse", "on", "--rehearse-after", "0s"];

#[test]
fn a_rehearsal_says_that_a_checkpoint_works_and_keeps_nothing() {
    let store = Store::new();
    let host = store.host_with("host", &REHEARSE, COUNTER).start();
    let told = wait_for_log(&host, "a checkpoint of this job works");
    let told: Value = serde_json::from_str(&told).expect("the log is JSON");
    let status = status(&host);
    let rehearsal = &status["rehearsal"];
    assert_eq!(rehearsal["outcome"], "worked", "{status}");
    assert_eq!(rehearsal["frozen_ms"], told["frozen_ms"], "{status}");
    assert!(
        rehearsal["memory_bytes"].as_u64() > Some(1 << 20),
        "{status}"
    );
    assert_eq!(status["protected"], true, "{status}");
    assert_eq!(status["last_generation"], Value::Null, "{status}");
    let text = host.exec_ok(["reprieve", "status"]);
    let line = text.lines().find(|line| line.starts_with("rehearsal "));
    assert!(
        line.is_some_and(|line| line.contains("worked; the job stood still for")),
        "{text}"
    );
    let kept: Vec<_> = store.objects();
    assert!(
        !kept
            .iter()
            .any(|path| path.to_string_lossy().contains("/manifests/")),
        "{kept:?}"
    );
    wait_for_output(&host, "line 200");
    host.signal(libc::SIGTERM);
    assert_eq!(host.wait_exit(LIMIT), harness::Exit::Code(75));
    let before = host.stdout().text();
    host.destroy();
    let next = store.host_with("next", &REHEARSE, COUNTER).start();
    resumed(&next);
    // The other host, and the resumed app, may be such that it does not work there.
    wait_for_log(&next, "a checkpoint of this job works");
    wait_for_output(&next, "line 400");
    evict(&next);
    assert_counts(&(before + &next.stdout().text()), None);
}

/// Connected to somebody outside of the container, which no look at `/proc` tells.
const CONNECTED: &str = "import itertools, socket, time\n\
    s = socket.socket(socket.AF_UNIX)\n\
    s.connect('/outside/socket')\n\
    open('/outside/connected', 'w').close()\n\
    for number in itertools.count(1):\n    print('line', number, flush=True)\n    time.sleep(0.01)\n";

#[test]
fn a_rehearsal_that_fails_is_told_long_before_an_eviction() {
    let store = Store::new();
    let outside = tempfile::tempdir().expect("a temporary directory can be made");
    let listener = std::os::unix::net::UnixListener::bind(outside.path().join("socket"))
        .expect("the path is short");
    // It is rehearsed when there is something to fail at.
    hook(
        outside.path(),
        "while [ ! -e /outside/connected ]; do sleep 0.05; done",
    );
    let options = [&REHEARSE[..], &["--hooks-dir", "/outside"]].concat();
    let app = ["python3", "-c", CONNECTED];
    let host = store
        .host_with("host", &options, &app)
        .bind(outside.path(), "/outside")
        .start();
    let peer = listener.accept().expect("the app connects");
    let told = wait_for_log(&host, "a checkpoint of this job would fail");
    let told: Value = serde_json::from_str(&told).expect("the log is JSON");
    let reason = told["reason"].as_str().expect("there is one");
    assert!(reason.contains("External socket is used"), "{told}");
    let now = status(&host);
    assert_eq!(now["rehearsal"]["outcome"], "failed", "{now}");
    assert_eq!(now["rehearsal"]["reason"], told["reason"], "{now}");
    assert_eq!(now["obstacles_total"], 0, "{now}");
    assert_eq!(now["protected"], false, "{now}");
    assert_eq!(now["unprotected_because"], "failed", "{now}");
    let ran = checkpoint(&host);
    assert_ne!(ran.code, 0);
    assert!(
        ran.stderr.contains("External socket is used"),
        "{}",
        ran.stderr
    );
    wait_for_output(&host, "line 200");
    let text = host.stdout().text();
    let (whole, _) = text.rsplit_once('\n').expect("there are lines");
    assert_counts(whole, None);
    drop((peer, listener));
}

/// The program that runs before a freeze, a rehearsal's included.
fn hook(directory: &Path, script: &str) {
    let program = directory.join("before-freeze");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("the directory is ours");
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("the file is ours");
}

#[test]
fn a_checkpoint_does_not_wait_for_a_rehearsal() {
    let store = Store::new();
    let hooks = tempfile::tempdir().expect("a temporary directory can be made");
    hook(
        hooks.path(),
        "grep -q '\"trigger\":\"rehearsal\"' || exit 0\ntouch /tmp/rehearses\nexec sleep 1000",
    );
    let options = [
        &REHEARSE[..],
        &["--hooks-dir", "/hooks", "--hook-timeout", "5m"],
    ]
    .concat();
    let host = store
        .host_with("host", &options, COUNTER)
        .bind(hooks.path(), "/hooks")
        .start();
    wait_for_log(&host, "a checkpoint is rehearsed");
    wait_until(LIMIT, "the program's beginning", || {
        host.exec(["test", "-e", "/tmp/rehearses"]).code == 0
    });
    checkpoint_ok(&host);
    wait_for_log(&host, "the rehearsal of one is given up");
    assert_eq!(status(&host)["rehearsal"]["outcome"], "given_up");
    host.signal(libc::SIGTERM);
    assert_eq!(host.wait_exit(LIMIT), harness::Exit::Code(75));
    host.destroy();

    // At any other moment of it, likewise.
    let store = Store::new();
    let app = ["python3", "/apps/memory.py", "256", "5"];
    let host = store.host_with("host", &REHEARSE, &app).start();
    wait_for_log(&host, "a checkpoint is rehearsed");
    evict(&host);
    let next = store.host_with("next", &[], &app).start();
    resumed(&next);
}
