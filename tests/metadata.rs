//! Jobs on machines that are told of their end by a metadata service: real hosts, real CRIU, and a look-alike of the
//! services that tells, withdraws and misbehaves on cue. What each source makes of each answer is tested in
//! `hooks/tests/metadata.rs`.

mod harness;
mod job;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use harness::{Builder, Exit, Host, LIMIT, Lab, wait_for, wait_until};
use job::{COUNTER, Store, assert_counts, evict, wait_for_log, wait_for_output};
use serde_json::{Value, json};

const WORKS: &str = "a source of notices works";

/// A host that asks the look-alike often.
fn host(store: &Store, name: &str, options: &[&str]) -> Builder {
    let always = ["--metadata-poll", "200ms"];
    let options: Vec<&str> = always.iter().chain(options).copied().collect();
    store.host_with(name, &options, COUNTER).share_net()
}

/// One that only listens to EC2's service.
fn ec2(store: &Store, name: &str, lab: &Lab) -> Host {
    let options = [
        "--sources",
        "ec2-metadata",
        "--ec2-metadata-endpoint",
        &lab.url,
    ];
    host(store, name, &options).start()
}

/// The first line of the log with this message, as an object.
#[track_caller]
fn logged(host: &Host, message: &str) -> Value {
    serde_json::from_str(&wait_for_log(host, message)).expect("the log is JSON")
}

/// How the one source is, as `reprieve status` says it.
#[track_caller]
fn health(host: &Host) -> Value {
    let status = host.exec_ok(["reprieve", "status", "--json"]);
    let status: Value = serde_json::from_str(&status).expect("it is JSON");
    status["sources"][0].clone()
}

#[track_caller]
fn wait_for_condition(host: &Host, wanted: &str) -> Value {
    let what = format!("a source that is {wanted}");
    wait_for(LIMIT, &what, || {
        Some(health(host)).filter(|health| health["condition"] == wanted)
    })
}

#[track_caller]
fn assert_runs_on(host: &Host) {
    let mark = host.stdout().mark();
    wait_until(LIMIT, "more output", || host.stdout().mark() > mark + 50);
}

/// The host stores its job before the time it was given, and another one goes on with it.
#[track_caller]
fn assert_stored_in_time(store: &Store, first: &Host, source: &str) {
    assert_eq!(first.wait_exit(LIMIT), Exit::Code(75));
    let notice = logged(first, "notice: something is to happen to this machine");
    assert_eq!(
        (&notice["source"], &notice["fate"]),
        (&json!(source), &json!("terminate"))
    );
    assert_eq!(logged(first, "checkpoint begins")["trigger"], source);
    let durable = logged(first, "checkpoint is durable");
    assert!(durable["left_ms"].as_u64() > Some(0), "{durable}");
    first.destroy();
    let second = store.host("second", COUNTER).start();
    wait_for_log(&second, "the job is resumed");
    assert_runs_on(&second);
    second.destroy();
    let lines = second.stdout().lines();
    let whole: String = lines.iter().map(|line| format!("{line}\n")).collect();
    assert_counts(&(first.stdout().text() + &whole), None);
}

#[test]
fn an_interruption_notice_leads_to_a_durable_snapshot_before_its_time() {
    let (store, lab) = (Store::new(), Lab::start());
    let first = host(&store, "first", &["--sources", "ec2-metadata"])
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &lab.url)
        .start();
    wait_for_output(&first, "line 10");
    wait_for_log(&first, WORKS);
    lab.notice(json!({ "kind": "spot", "in": 25 }));
    assert_stored_in_time(&store, &first, "ec2_metadata");
}

#[test]
fn a_preemption_by_google_leads_to_a_durable_snapshot_before_its_time() {
    let (store, lab) = (Store::new(), Lab::start());
    let first = host(&store, "first", &["--sources", "gcp"])
        .env("GCE_METADATA_HOST", lab.authority())
        .start();
    wait_for_output(&first, "line 10");
    wait_for_log(&first, WORKS);
    lab.notice(json!({ "kind": "gcp-preempted" }));
    assert_stored_in_time(&store, &first, "gcp");
}

#[test]
fn an_eviction_by_azure_leads_to_a_durable_snapshot_before_its_time() {
    let (store, lab) = (Store::new(), Lab::start());
    let options = ["--sources", "azure", "--azure-metadata-endpoint", &lab.url];
    let first = host(&store, "first", &options).start();
    wait_for_output(&first, "line 10");
    wait_for_log(&first, WORKS);
    lab.notice(json!({ "kind": "azure", "type": "Preempt", "in": 30 }));
    assert_stored_in_time(&store, &first, "azure");
}

#[test]
fn a_notice_that_comes_while_the_job_is_resumed_is_acted_on_when_it_runs() {
    let (store, lab) = (Store::new(), Lab::start());
    let before = ec2(&store, "before", &lab);
    wait_for_output(&before, "line 10");
    evict(&before);
    // The boot goes on when we say so.
    let hooks = tempfile::tempdir().expect("a temporary directory");
    let script = hooks.path().join("before-restore");
    fs::write(&script, "#!/bin/sh\nread go < /hooks/go\n").expect("it can be written");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let go = hooks.path().join("go");
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).expect("it is ours");
    let options = [
        "--sources",
        "ec2-metadata",
        "--ec2-metadata-endpoint",
        &lab.url,
        "--hooks-dir",
        "/hooks",
        "--hook-timeout",
        "60s",
    ];
    let first = host(&store, "first", &options)
        .bind(hooks.path(), "/hooks")
        .start();
    wait_for_log(&first, WORKS);
    lab.notice(json!({ "kind": "spot", "in": 25 }));
    wait_for_log(&first, "notice: something is to happen to this machine");
    assert!(!first.stderr().text().contains("the job is resumed"));
    fs::write(&go, "go\n").expect("somebody reads it");
    wait_for_log(&first, "the job is resumed");
    assert_eq!(first.wait_exit(LIMIT), Exit::Code(75));
    let durable = logged(&first, "checkpoint is durable");
    assert!(durable["left_ms"].as_u64() > Some(0), "{durable}");
    let begun = logged(&first, "checkpoint begins");
    assert_eq!(begun["trigger"], "ec2_metadata");
    assert!(begun["budget_ms"].as_u64() < Some(25_000), "{begun}");
    first.destroy();
    lab.clear("spot");
    let second = store.host("second", COUNTER).start();
    wait_for_log(&second, "the job is resumed");
    assert_runs_on(&second);
    second.destroy();
    let all = before.stdout().text() + &first.stdout().text() + &second.stdout().lines().join("\n");
    assert_counts(&all, None);
}

#[test]
fn a_rebalance_recommendation_is_used_and_the_job_runs_on() {
    let (store, lab) = (Store::new(), Lab::start());
    let first = ec2(&store, "first", &lab);
    wait_for_output(&first, "line 10");
    lab.notice(json!({ "kind": "rebalance" }));
    let durable = logged(&first, "checkpoint is durable");
    assert_eq!(durable["afterwards"], "Continue");
    assert_runs_on(&first);
    // Withdrawn or not: what comes later is heard as well.
    lab.clear("rebalance");
    assert_runs_on(&first);
    lab.notice(json!({ "kind": "spot", "in": 25 }));
    assert_eq!(first.wait_exit(LIMIT), Exit::Code(75));
}

#[test]
fn a_service_that_is_out_of_order_disturbs_neither_the_job_nor_the_notice_after_it() {
    let (store, lab) = (Store::new(), Lab::start());
    lab.fault(json!({ "name": "hop-limit" }));
    let first = ec2(&store, "first", &lab);
    // The app does not wait for it.
    wait_for_output(&first, "line 10");
    let degraded = wait_for_condition(&first, "degraded");
    assert_eq!(degraded["source"], "ec2_metadata");
    let text = |field: &str| degraded[field].as_str().unwrap_or_default().to_owned();
    assert!(text("reason").contains("hop limit"), "{degraded}");
    assert!(
        text("remedy").contains("--http-put-response-hop-limit 2"),
        "{degraded}"
    );
    lab.mend();
    wait_for_condition(&first, "working");
    for fault in ["throttle", "html", "garbage", "reset", "refuse"] {
        lab.fault(json!({ "name": fault }));
        lab.fault(json!({ "name": "expire-tokens" }));
        wait_for_condition(&first, "degraded");
        assert_runs_on(&first);
        lab.mend();
        wait_for_condition(&first, "working");
    }
    let begun = first
        .stderr()
        .lines()
        .iter()
        .filter(|line| line.contains("checkpoint begins"))
        .count();
    assert_eq!(begun, 0);
    lab.notice(json!({ "kind": "spot", "in": 25 }));
    assert_stored_in_time(&store, &first, "ec2_metadata");
}

#[test]
fn where_there_is_no_cloud_that_is_told_once_and_the_job_runs() {
    let store = Store::new();
    let host = store
        .host_with("nowhere", &["--metadata-poll", "100ms"], COUNTER)
        .start();
    wait_for_output(&host, "line 10");
    let told = || {
        let lines = host.stderr().lines();
        lines
            .iter()
            .filter(|line| line.contains("a source of notices is not there"))
            .count()
    };
    wait_until(LIMIT, "all three services to be missed", || told() >= 3);
    assert_runs_on(&host);
    assert_eq!(told(), 3);
    assert!(
        !host.stderr().text().contains("does not work"),
        "it is no fault to be nowhere"
    );
    host.signal(libc::SIGTERM);
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(75));
}
