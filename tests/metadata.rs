//! Jobs on machines that are told of their end by a metadata service: real hosts, real CRIU, and a look-alike of the
//! services that tells, withdraws and misbehaves on cue. What each source makes of each answer is tested in
//! `hooks/tests/metadata.rs`.

mod harness;
mod job;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

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
    assert_stored_in_time_for(store, first, source, "terminate");
}

#[track_caller]
fn assert_stored_in_time_for(store: &Store, first: &Host, source: &str, fate: &str) {
    assert_eq!(first.wait_exit(LIMIT), Exit::Code(75));
    let notice = logged(first, "notice: something is to happen to this machine");
    assert_eq!(
        (&notice["source"], &notice["fate"]),
        (&json!(source), &json!(fate))
    );
    assert_eq!(logged(first, "checkpoint begins")["trigger"], source);
    let durable = logged(first, "checkpoint is durable");
    assert!(durable["left_ms"].as_u64() > Some(0), "{durable}");
    first.destroy();
    assert_goes_on(store, first);
}

/// Another host goes on with the job, where the one before has stopped.
#[track_caller]
fn assert_goes_on(store: &Store, first: &Host) {
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
fn an_instance_that_is_stopped_is_stored_in_time_as_one_that_is_terminated() {
    let (store, lab) = (Store::new(), Lab::start());
    let first = ec2(&store, "first", &lab);
    wait_for_output(&first, "line 10");
    wait_for_log(&first, WORKS);
    lab.notice(json!({ "kind": "spot", "action": "stop", "in": 25 }));
    assert_stored_in_time_for(&store, &first, "ec2_metadata", "stop");
}

#[test]
fn an_instance_that_hibernates_has_its_job_stored_at_once_and_it_runs_on() {
    let (store, lab) = (Store::new(), Lab::start());
    let first = ec2(&store, "first", &lab);
    wait_for_output(&first, "line 10");
    wait_for_log(&first, WORKS);
    // Suspended from now on, whatever the time says; it need not come back.
    lab.notice(json!({ "kind": "spot", "action": "hibernate", "in": 10 }));
    let notice = logged(&first, "notice: something is to happen to this machine");
    assert_eq!(notice["fate"], "hibernate");
    let durable = logged(&first, "checkpoint is durable");
    assert_eq!(durable["afterwards"], "Continue", "{durable}");
    assert_eq!(
        logged(&first, "it is decided what to do")["reason"],
        "the machine is suspended, and may not come back"
    );
    // Woken up after its time it is told the same, and nothing was missed.
    wait_until(LIMIT, "the notice to be over", || {
        let status = first.exec_ok(["reprieve", "status", "--json"]);
        let status: Value = serde_json::from_str(&status).expect("it is JSON");
        status["deadline_ms"].is_null()
    });
    assert_runs_on(&first);
    let log = first.stderr().text();
    assert_eq!(log.matches("checkpoint begins").count(), 1, "{log}");
    assert!(!log.contains("no checkpoint was taken"), "{log}");
    // It is interrupted once more, and stored as any other.
    lab.notice(json!({ "kind": "spot", "in": 25 }));
    assert_eq!(first.wait_exit(LIMIT), Exit::Code(75));
    first.destroy();
    assert_goes_on(&store, &first);
}

#[test]
fn an_instance_that_hibernates_and_does_not_come_back_lost_nothing_from_before_the_notice() {
    let (store, lab) = (Store::new(), Lab::start());
    let first = ec2(&store, "first", &lab);
    wait_for_output(&first, "line 10");
    wait_for_log(&first, WORKS);
    lab.notice(json!({ "kind": "spot", "action": "hibernate" }));
    let heard = first.stdout().lines().len();
    wait_for_log(&first, "checkpoint is durable");
    first.destroy();
    let second = store.host("second", COUNTER).start();
    wait_for_log(&second, "the job is resumed");
    wait_for_output(&second, "line ");
    let begins = second.stdout().lines()[0].clone();
    second.destroy();
    let begins = begins
        .strip_prefix("line ")
        .and_then(|number| number.parse().ok());
    assert!(begins > Some(heard), "{begins:?} and {heard}");
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
    let told = lab.notice(json!({ "kind": "azure", "type": "Preempt", "in": 30 }));
    assert_stored_in_time(&store, &first, "azure");
    // It need not wait for its time, and heard so before the worker was gone.
    let actions = lab.actions();
    let acknowledged = actions.iter().any(|action| {
        action
            .to_string()
            .contains(told["id"].as_str().unwrap_or("it has an id"))
    });
    assert!(acknowledged, "{told}: {actions:?}");
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
fn an_instance_that_auto_scaling_takes_is_held_while_its_job_is_stored_and_let_go_then() {
    let (store, lab) = (Store::new(), Lab::start());
    let options = [
        "--sources",
        "ec2-metadata",
        "--ec2-metadata-endpoint",
        &lab.url,
        "--lifecycle-hook",
        "goodbye",
        "--instance-id",
        "i-0abc",
    ];
    let first = host(&store, "first", &options)
        .env("AWS_ENDPOINT_URL_AUTO_SCALING", &lab.url)
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "AKIDFORTESTS")
        .env("AWS_SECRET_ACCESS_KEY", "a-secret-that-stays-one")
        .start();
    wait_for_output(&first, "line 10");
    wait_for_log(&first, WORKS);
    lab.notice(json!({ "kind": "asg" }));
    assert_stored_in_time(&store, &first, "ec2_metadata");
    let actions = lab.actions();
    let last = actions.last().expect("it was called");
    assert_eq!(
        (
            &last["Action"],
            &last["AutoScalingGroupName"],
            &last["LifecycleHookName"],
            &last["InstanceId"]
        ),
        (
            &json!("CompleteLifecycleAction"),
            &json!("fleet"),
            &json!("goodbye"),
            &json!("i-0abc")
        ),
        "{actions:?}"
    );
    assert_eq!(last["LifecycleActionResult"], "CONTINUE");
    assert_eq!(
        actions[0]["Action"], "RecordLifecycleActionHeartbeat",
        "{actions:?}"
    );
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
fn a_notice_that_a_fault_hides_is_acted_on_when_the_fault_is_over_and_nothing_else_is() {
    let (ec2, gcp, azure) = (
        ("ec2-metadata", json!({ "kind": "spot", "in": 28 })),
        ("gcp", json!({ "kind": "gcp-preempted" })),
        (
            "azure",
            json!({ "kind": "azure", "type": "Preempt", "in": 28 }),
        ),
    );
    let table = [
        (&ec2, "throttle"),
        (&ec2, "hang"),
        (&ec2, "reset"),
        (&ec2, "refuse"),
        (&ec2, "hop-limit"),
        (&ec2, "reject-tokens"),
        (&ec2, "html"),
        (&ec2, "garbage"),
        (&ec2, "huge"),
        (&ec2, "cut"),
        (&gcp, "refuse"),
        (&gcp, "html"),
        (&azure, "throttle"),
        (&azure, "garbage"),
    ];
    let store = Store::new();
    let mut told = String::new();
    for ((source, notice), fault) in table {
        let lab = Lab::start();
        let endpoint = format!(
            "--{}-endpoint",
            source.replace("-metadata", "") + "-metadata"
        );
        let options = ["--sources", *source, &endpoint, &lab.url];
        let host = host(&store, "host", &options).start();
        wait_for_output(&host, "line");
        wait_for_condition(&host, "working");
        lab.fault(json!({ "name": fault }));
        // Whoever has a token, or waits for an answer, may not notice otherwise.
        lab.fault(json!({ "name": "expire-tokens" }));
        let degraded = wait_for_condition(&host, "degraded");
        assert!(
            degraded["remedy"].is_string(),
            "{source} {fault}: {degraded}"
        );
        lab.notice(notice.clone());
        assert_runs_on(&host);
        let begun = || host.stderr().text().matches("checkpoint begins").count();
        assert_eq!(begun(), 0, "{source} {fault}");
        lab.mend();
        assert_eq!(host.wait_exit(LIMIT), Exit::Code(75), "{source} {fault}");
        assert_eq!(begun(), 1, "{source} {fault}");
        let durable = logged(&host, "checkpoint is durable");
        assert!(
            durable["left_ms"].as_u64() > Some(0),
            "{source} {fault}: {durable}"
        );
        told += &host.stdout().text();
        host.destroy();
    }
    assert_counts(&told, None);
}

#[test]
fn the_tags_of_the_machine_say_what_nothing_else_says() {
    let (store, lab) = (Store::new(), Lab::start());
    let start = |name: &str, more: &[&str]| {
        let options = [
            "--defaults-from-tags",
            "on",
            "--ec2-metadata-endpoint",
            &lab.url,
            "--boot-timeout",
            "10s",
        ];
        let options = options.iter().chain(more).copied();
        Host::builder(name)
            .share_net()
            .bind(store.path(), "/snapshots")
            .reprieve(options, COUNTER.iter().copied())
            .start()
    };
    lab.facts(json!({ "tags": { "reprieve:store": "file:///snapshots", "reprieve:job": "tagged", "Name": "x" } }));
    let first = start("first", &[]);
    wait_for_output(&first, "line 10");
    assert!(!first.stderr().text().contains("no store is set"));
    evict(&first);
    assert!(store.path().join("tagged/HEAD").exists());
    let second = start("second", &["--job", "mine"]);
    wait_for_log(&second, "there is no snapshot of this job yet");
    wait_for_output(&second, "line 10");
    evict(&second);
    assert!(store.path().join("mine/HEAD").exists());
    // A tag that cannot be is no reason to start without snapshots, and neither is a service that says nothing.
    lab.facts(json!({ "tags": { "reprieve:store": "ftp://elsewhere" } }));
    let third = start("third", &[]);
    assert_eq!(third.wait_exit(LIMIT), Exit::Code(174));
    let said = third.stderr().text();
    assert!(
        said.contains("tag reprieve:store of this machine"),
        "{said}"
    );
    lab.fault(json!({ "name": "refuse" }));
    let fourth = start("fourth", &[]);
    assert_eq!(fourth.wait_exit(LIMIT), Exit::Code(170));
    let said = fourth.stderr().text();
    assert!(
        said.contains("the tags of this machine cannot be read"),
        "{said}"
    );
    assert_eq!(third.stdout().text() + &fourth.stdout().text(), "");
}

#[test]
fn an_app_is_held_to_what_all_instance_types_of_its_group_have_or_it_is_told_why_not() {
    let app = ["sh", "-c", "echo ready $GLIBC_TUNABLES; exec sleep 1000"];
    for (types, level, told) in [
        ("m7i.large,m6a.large", Some("x86-64-v3"), None),
        (
            "m5.large,r3.large",
            Some("x86-64-v2"),
            Some("adx, rdrand, rdseed"),
        ),
        (
            "m5.large,m99i.large",
            None,
            Some("it is not known what m99i.large can do"),
        ),
        (
            "m5.large,m6g.large",
            None,
            Some("m6g.large have no levels of x86-64"),
        ),
    ] {
        let (store, lab) = (Store::new(), Lab::start());
        lab.facts(json!({ "group-types": types }));
        let options = [
            "--cpu-baseline",
            "auto-from-launch-template",
            "--instance-id",
            "i-0123456789abcdef0",
            "--sources",
            "none",
        ];
        let host = store
            .host_with("host", &options, &app)
            .share_net()
            .env("AWS_ENDPOINT_URL_AUTO_SCALING", &lab.url)
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .start();
        wait_for_output(&host, "ready");
        let ready = host.stdout().lines()[0].clone();
        assert_eq!(
            ready.contains("glibc.cpu.hwcaps"),
            level.is_some(),
            "{ready}"
        );
        if let Some(level) = level {
            let said = logged(&host, "the CPU baseline is what all instance types");
            assert_eq!(
                (&said["baseline"], &said["types"]),
                (&json!(level), &json!(types.replace(',', ", ")))
            );
            assert_eq!(
                logged(
                    &host,
                    "what the app is given so that it can be checkpointed"
                )["baseline"],
                level
            );
            if let Some(lacking) = told {
                let said = logged(&host, "some machines of the fleet lack");
                assert_eq!(said["lacking"], lacking);
            }
        } else {
            let said = logged(&host, "no CPU baseline follows from the launch template");
            assert_eq!(said["reason"].as_str(), told, "{said}");
        }
    }
}

#[test]
fn a_machine_in_a_warm_pool_leaves_the_job_alone_until_it_is_in_service() {
    let (store, lab) = (Store::new(), Lab::start());
    lab.notice(json!({ "kind": "asg", "state": "Warmed:Running" }));
    let first = ec2(&store, "first", &lab);
    wait_for_log(&first, "this machine is being prepared in a warm pool");
    // Asked again and again, it says the same.
    let asked = || lab.requests(0).len();
    let before = asked();
    wait_until(LIMIT, "more questions", || asked() > before + 6);
    assert_eq!(first.stdout().text(), "");
    assert!(
        !store.path().join("job/HEAD").exists(),
        "the job is not taken"
    );
    lab.fault(json!({ "name": "throttle" }));
    let before = asked();
    wait_until(LIMIT, "more questions", || asked() > before + 6);
    assert_eq!(first.stdout().text(), "", "silence changes nothing");
    lab.mend();
    lab.notice(json!({ "kind": "asg", "state": "InService" }));
    wait_for_output(&first, "line 10");
    evict(&first);
    // Who does not want to wait does not.
    lab.notice(json!({ "kind": "asg", "state": "Warmed:Stopped" }));
    let options = [
        "--ec2-metadata-endpoint",
        &lab.url,
        "--on-warm-pool",
        "start",
    ];
    let second = host(&store, "second", &options).start();
    wait_for_log(&second, "the job is resumed");
    second.destroy();
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

#[test]
fn operators_see_which_machine_a_job_runs_on() {
    let lab = Lab::start();
    let store = Store::new();
    let clouds = [
        (
            "ec2",
            "--ec2-metadata-endpoint",
            "i-0123456789abcdef0",
            "m7i.large",
            "eu-central-1b",
        ),
        (
            "gcp",
            "--gcp-metadata-endpoint",
            "worker-1",
            "n2-standard-4",
            "europe-west3-a",
        ),
        (
            "azure",
            "--azure-metadata-endpoint",
            "vm_0",
            "Standard_D4s_v5",
            "westeurope-2",
        ),
    ];
    for (cloud, endpoint, instance, kind, zone) in clouds {
        // Whether it is listened to is another question.
        let options = ["--sources", "none", endpoint, &lab.url];
        let worker = host(&store, cloud, &options).start();
        wait_for_output(&worker, "line 5");
        let machine = json!({ "cloud": cloud, "kind": kind, "zone": zone, "purchase": "spot" });
        wait_until(LIMIT, "the status to tell of the machine", || {
            let status = worker.exec_ok(["reprieve", "status", "--json"]);
            let status: Value = serde_json::from_str(&status).expect("it is JSON");
            status["machine"] == machine && status["instance"] == instance
        });
        let told = logged(&worker, "this is a machine of a cloud");
        assert_eq!((&told["type"], &told["zone"]), (&json!(kind), &json!(zone)));
        let ps = |words: &[&str]| {
            let ps = Command::new(env!("CARGO_BIN_EXE_reprieve"))
                .args(["ps", "--store"])
                .arg(format!("file://{}", store.path().display()))
                .args(words)
                .output()
                .expect("the binary was built");
            String::from_utf8(ps.stdout).expect("it is text")
        };
        wait_until(LIMIT, "ps to tell of the machine", || {
            let told: Value = serde_json::from_str(&ps(&["--json"])).expect("it is JSON");
            let line = &told["jobs"][0];
            (
                &line["cloud"],
                &line["instance_type"],
                &line["zone"],
                &line["purchase"],
            ) == (&json!(cloud), &json!(kind), &json!(zone), &json!("spot"))
        });
        let table = ps(&[]);
        assert!(
            table.contains("TYPE") && table.contains(&format!("{kind} (spot)")),
            "{table}"
        );
        evict(&worker);
    }
}
