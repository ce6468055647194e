//! Jobs that have very much of something, and containers that have very little: each is stored and resumed whole, or refused
//! with a word while it runs on.
//!
//! What takes minutes is run by `make stress`; here it is tried in a size that takes seconds.

mod harness;
mod job;

use std::time::Duration;

use harness::{Builder, Exit, Host, LIMIT, Ran, wait_until};
use job::{COUNTER, Store, assert_counts, checkpoint, resumed, wait_for_log, wait_for_output};
use serde_json::json;

/// For what takes long where there is little.
const PATIENCE: Duration = Duration::from_secs(300);

const MIB: u64 = 1 << 20;

/// The whole size under `make stress`.
fn size(usual: u32, whole: u32) -> String {
    let wanted = std::env::var("STRESS").is_ok_and(|all| all == "all");
    match wanted {
        true => whole.to_string(),
        false => usual.to_string(),
    }
}

#[track_caller]
fn wait_long_for(host: &Host, wanted: &str) {
    host.stdout()
        .wait_for_line(wanted, PATIENCE, |line| line == wanted);
}

#[track_caller]
fn evict_slowly(host: &Host) {
    host.signal(libc::SIGTERM);
    assert_eq!(host.wait_exit(PATIENCE), Exit::Code(75));
    host.destroy();
}

const LONG: [&str; 6] = [
    "--term-grace",
    "290s",
    "--checkpoint-timeout",
    "290s",
    "--boot-timeout",
    "290s",
];

/// Runs it, evicts it, resumes it in another such container, and asks whether all is there.
#[track_caller]
fn survives(app: &[&str], make: impl Fn(Builder) -> Builder) {
    let store = Store::new();
    let order = |name: &str| {
        let host = store.host_with(name, &LONG, app);
        make(host).start()
    };
    let host = order("host");
    wait_long_for(&host, "ready");
    evict_slowly(&host);
    let next = order("next");
    next.stderr().wait_for_line("the resume", PATIENCE, |line| {
        line.contains("the job is resumed")
    });
    let root = resumed(&next);
    next.exec_ok(["kill", "-USR1", &root.pid.to_string()]);
    next.stdout().wait_for_line("an answer", PATIENCE, |line| {
        assert_ne!(line, "spoilt");
        line == "sound"
    });
    evict_slowly(&next);
}

#[test]
fn many_descriptors_come_back() {
    let count = size(3_000, 10_000);
    survives(
        &[
            "bash",
            "-c",
            "ulimit -n 20000 && exec python3 /apps/crowd.py descriptors $0",
            &count,
        ],
        |host| host,
    );
}

#[test]
fn many_processes_come_back() {
    let count = size(300, 2_000);
    survives(
        &["python3", "/apps/crowd.py", "processes", &count],
        |host| host,
    );
}

#[test]
fn many_mappings_come_back() {
    let count = size(20_000, 200_000);
    survives(&["python3", "/apps/crowd.py", "mappings", &count], |host| {
        host
    });
}

#[test]
fn what_nobody_has_read_comes_back() {
    let count = size(32, 1024);
    survives(
        &[
            "bash",
            "-c",
            "ulimit -n 20000 && exec python3 /apps/crowd.py buffers $0",
            &count,
        ],
        |host| host,
    );
}

#[test]
fn with_a_twentieth_of_a_processor_it_only_takes_longer() {
    survives(
        &["python3", "/apps/crowd.py", "descriptors", "30"],
        |host| host.limit("cpu", json!({ "quota": 5_000, "period": 100_000 })),
    );
}

#[test]
fn a_job_and_the_budget_are_all_the_memory_that_is_needed() {
    // The job's 128 MiB, the budget's 64, and what Python, CRIU and the supervisor are themselves.
    let limit = (128 + 64 + 64) * MIB;
    let store = Store::new();
    let order = |name: &str| {
        let app = ["python3", "/apps/memory.py", "128", "5"];
        let host = store.host_with(name, &["--memory-budget", "64MiB"], &app);
        host.limit("memory", json!({ "limit": limit, "swap": limit }))
            .start()
    };
    let host = order("host");
    wait_for_output(&host, "ready");
    let digest = host
        .stdout()
        .wait_for_line("the digest", LIMIT, |line| line.starts_with("digest "));
    job::evict(&host);
    let next = order("next");
    let root = resumed(&next);
    next.exec_ok(["kill", "-USR1", &root.pid.to_string()]);
    wait_for_output(&next, &digest);
    job::evict(&next);
}

#[test]
fn with_few_descriptors_a_job_is_stored_and_resumed_and_with_fewer_not_begun() {
    let store = Store::new();
    let order = |name: &str, descriptors: u32| {
        let limit = format!("--nofile={descriptors}:{descriptors}");
        let host = store.host(name, COUNTER);
        host.run_by(["prlimit", &limit]).start()
    };
    let host = order("host", 256);
    wait_for_output(&host, "line 50");
    host.signal(libc::SIGTERM);
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(75));
    let before = host.stdout().text();
    host.destroy();
    let next = order("next", 256);
    resumed(&next);
    wait_for_output(&next, "line 100");
    job::evict(&next);
    assert_counts(&(before + &next.stdout().text()), None);
    let fewer = order("fewer", 64);
    assert_eq!(fewer.wait_exit(LIMIT), Exit::Code(170));
    let told = fewer.stderr().text();
    assert!(told.contains("64 descriptors"), "{told}");
}

/// One that was refused, or failed, with the job alive.
#[track_caller]
fn assert_told(host: &Host, ran: &Ran) {
    assert_ne!(ran.code, 0, "{}", ran.stdout);
    assert!(!ran.stderr.trim().is_empty());
    assert!(
        !host.stderr().text().contains("panicked"),
        "{}",
        host.stderr().text()
    );
}

#[test]
fn where_no_process_can_be_made_that_is_told_and_the_job_runs_on() {
    let store = Store::new();
    let app = ["python3", "/apps/crowd.py", "full"];
    let order = |name: &str| {
        let host = store.host_with(name, &["--on-sigusr2", "checkpoint"], &app);
        host.limit("pids", json!({ "limit": 120 })).start()
    };
    let host = order("host");
    wait_for_output(&host, "ready");
    // By signals, since nothing can be started there.
    host.signal(libc::SIGUSR2);
    let told = wait_for_log(&host, "checkpoint failed");
    assert!(told.contains("cannot") || told.contains("CRIU"), "{told}");
    host.signal(libc::SIGUSR1);
    wait_for_output(&host, "sound");
    host.signal(libc::SIGHUP);
    wait_for_output(&host, "ended");
    host.signal(libc::SIGUSR2);
    wait_for_log(&host, "checkpoint is durable");
    let log = host.stderr().text();
    assert!(!log.contains("panicked"), "{log}");
    job::evict(&host);
    let next = order("next");
    resumed(&next);
    job::evict(&next);
}

#[test]
fn a_job_that_forks_executes_and_maps_all_the_time_is_stored_or_runs_on() {
    let store = Store::new();
    let app = ["python3", "/apps/crowd.py", "storm"];
    let host = store.host("host", &app).start();
    wait_for_output(&host, "ready");
    let mut durable = 0;
    for _ in 0..12 {
        let ran = checkpoint(&host);
        match ran.code {
            0 => durable += 1,
            _ => assert_told(&host, &ran),
        }
        // Whichever it was.
        let ticks = host.stdout().lines().len();
        wait_until(LIMIT, "the job goes on", || {
            host.stdout().lines().len() > ticks
        });
    }
    assert!(durable > 0, "{}", host.stderr().text());
    host.destroy();
    let next = store.host("next", &app).start();
    resumed(&next);
    let ticks = next.stdout().lines().len();
    wait_until(LIMIT, "the job goes on", || {
        next.stdout().lines().len() > ticks
    });
}

#[test]
fn without_a_tmpfs_it_works_on_the_containers_own_layer_and_else_the_start_says_so() {
    let store = Store::new();
    let order = |name: &str| store.host(name, COUNTER).without_tmpfs();
    let host = order("host").start();
    wait_for_output(&host, "line 20");
    job::evict(&host);
    let next = order("next").start();
    resumed(&next);
    job::evict(&next);
    let nowhere = order("nowhere").read_only_root().start();
    assert_ne!(nowhere.wait_exit(LIMIT), Exit::Code(0));
    let told = nowhere.stderr().text();
    assert!(told.contains("the work directory cannot be used"), "{told}");
}
