//! `reprieve doctor` in containers that can be checkpointed and in ones that cannot.

mod harness;
mod job;

use harness::{Host, Lab, Lookalike, Ran};
use job::{COUNTER, Store, assert_counts, wait_for_output};
use serde_json::Value;

#[track_caller]
fn examine(host: &Host, options: &[&str]) -> (Ran, Value) {
    let ran = host.exec([&["reprieve", "doctor", "--json"], options].concat());
    let answer = serde_json::from_str(&ran.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", ran.stdout, ran.stderr));
    (ran, answer)
}

#[track_caller]
fn finding<'a>(answer: &'a Value, check: &str) -> &'a Value {
    let all = answer["findings"].as_array().expect("it is a list");
    let found = all.iter().find(|one| one["check"] == check);
    found.unwrap_or_else(|| panic!("{check} was not looked at: {answer}"))
}

#[test]
fn a_container_as_documented_is_well_and_its_job_is_not_disturbed() {
    let store = Store::new();
    let host = store.host("host", COUNTER).start();
    wait_for_output(&host, "line 3");
    let (ran, answer) = examine(&host, &["--store", "file:///snapshots", "--job", "job"]);
    assert_eq!(
        (ran.code, &answer["verdict"]),
        (0, &"ok".into()),
        "{answer}"
    );
    for check in [
        "container",
        "kernel",
        "cgroup",
        "processes",
        "memory",
        "pipes",
        "security module",
        "criu",
        "work directory",
        "store",
        "clock",
        "keys",
        "notices",
        "rehearsal",
    ] {
        assert_eq!(finding(&answer, check)["level"], "ok", "{answer}");
    }
    let rehearsal = finding(&answer, "rehearsal")["found"].as_str();
    assert!(
        rehearsal.is_some_and(|found| found.contains("answers there")),
        "{answer}"
    );
    let text = host.exec_ok([
        "reprieve",
        "doctor",
        "--no-rehearsal",
        "--store",
        "file:///snapshots",
    ]);
    assert!(
        text.contains("ok      criu") && !text.contains("rehearsal"),
        "{text}"
    );
    // What it wrote is gone, and the job goes on by itself and elsewhere.
    assert_eq!(
        host.exec_ok(["ls", "/run/reprieve"])
            .matches("rehearsal")
            .count(),
        0
    );
    assert!(
        store
            .objects()
            .iter()
            .all(|path| !path.to_string_lossy().contains("probe"))
    );
    let seen = host.stdout().mark();
    harness::wait_until(harness::LIMIT, "more lines", || host.stdout().mark() > seen);
    job::evict(&host);
    let next = store.host("next", COUNTER).start();
    let mark = next.stdout().mark();
    harness::wait_until(harness::LIMIT, "more lines", || {
        next.stdout().mark() > mark + 100
    });
    assert_counts(
        &(host.stdout().text() + &next.stdout().lines().join("\n")),
        None,
    );
}

#[test]
fn what_is_wrong_is_named_with_its_remedy() {
    // Without a store `run` starts in such containers too.
    let plain =
        |name: &str| Host::builder(name).reprieve(Vec::<&str>::new(), COUNTER.iter().copied());
    let cases = [
        (
            plain("seccomp").seccomp(),
            "container",
            "seccomp=unconfined",
        ),
        (
            plain("capability").drop_capability("CAP_CHECKPOINT_RESTORE"),
            "container",
            "--cap-add CHECKPOINT_RESTORE",
        ),
    ];
    for (builder, check, remedy) in cases {
        let host = builder.start();
        wait_for_output(&host, "line 3");
        let (ran, answer) = examine(&host, &[]);
        assert_eq!(
            (ran.code, &answer["verdict"]),
            (185, &"fatal".into()),
            "{answer}"
        );
        let found = finding(&answer, check);
        assert_eq!(found["level"], "fatal", "{answer}");
        let said = found["remedy"].as_str().unwrap_or_default();
        assert!(said.contains(remedy), "{answer}");
        assert_eq!(
            finding(&answer, "rehearsal")["level"],
            "warning",
            "{answer}"
        );
    }
    let host = plain("well").start();
    wait_for_output(&host, "line 3");
    let (ran, answer) = examine(&host, &[]);
    assert_eq!(
        (ran.code, &answer["verdict"]),
        (184, &"warning".into()),
        "{answer}"
    );
    assert_eq!(finding(&answer, "store")["level"], "warning", "{answer}");
    assert!(ran.stderr.contains("with 1 warnings"), "{}", ran.stderr);
    let (ran, answer) = examine(&host, &["--criu", "/bin/true"]);
    assert_eq!(ran.code, 185, "{answer}");
    assert_eq!(finding(&answer, "criu")["level"], "fatal", "{answer}");
    let (ran, answer) = examine(&host, &["--store", "file:///not-mounted", "--no-rehearsal"]);
    assert_eq!(ran.code, 185, "{answer}");
    assert_eq!(finding(&answer, "store")["level"], "fatal", "{answer}");
}

/// Every finding of this check.
fn findings<'a>(answer: &'a Value, check: &str) -> Vec<&'a Value> {
    let all = answer["findings"].as_array().expect("it is a list");
    all.iter().filter(|one| one["check"] == check).collect()
}

#[test]
fn what_is_outside_of_the_container_is_asked_as_well() {
    let server = Lookalike::start();
    server.make_bucket("bucket");
    let queue = server.make_queue("commands");
    let lab = Lab::start();
    let metadata = format!("http://{}", lab.authority());
    let host = Host::builder("host")
        .share_net()
        .env("AWS_ENDPOINT_URL", server.url.as_str())
        .env("AWS_REGION", "us-east-1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .reprieve(Vec::<&str>::new(), COUNTER.iter().copied())
        .start();
    wait_for_output(&host, "line 3");
    let options = [
        "--no-rehearsal",
        "--store",
        "s3://bucket",
        "--s3-endpoint",
        &server.url,
        "--job",
        "job",
        "--sources",
        "ec2-metadata,sqs",
        "--ec2-metadata-endpoint",
        &metadata,
        "--queue",
        "shared",
    ];
    let asked = |variables: &[&str], more: &[&str]| {
        let words = [
            &["env"],
            variables,
            &["reprieve", "doctor", "--json"],
            &options,
            more,
        ];
        let ran = host.exec(words.concat());
        let answer: Value = serde_json::from_str(&ran.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", ran.stdout, ran.stderr));
        (ran.code, answer)
    };
    let lasting = [
        "AWS_ACCESS_KEY_ID=AKIDFORTESTS",
        "AWS_SECRET_ACCESS_KEY=a-secret-that-stays-one",
    ];
    let (code, answer) = asked(&lasting, &["--queue-url", &queue]);
    for check in ["credentials", "store", "clock", "keys", "notices", "queue"] {
        assert_eq!(finding(&answer, check)["level"], "ok", "{answer}");
    }
    assert_eq!(code, 0, "{answer}");
    let notices = findings(&answer, "notices");
    assert_eq!(notices.len(), 1, "{answer}");
    assert_eq!(notices[0]["found"], "ec2_metadata works");
    let shown = answer.to_string();
    assert!(
        !shown.contains("AKIDFORTESTS") && !shown.contains("stays-one"),
        "{shown}"
    );

    // Temporary ones of which nobody tells the end, and a queue that is not there.
    let temporary = [&lasting[..], &["AWS_SESSION_TOKEN=a-token"]].concat();
    let gone = queue.replace("commands", "nowhere");
    let (code, answer) = asked(&temporary, &["--queue-url", &gone]);
    assert_eq!(
        finding(&answer, "credentials")["level"],
        "warning",
        "{answer}"
    );
    assert_eq!(finding(&answer, "queue")["level"], "fatal", "{answer}");
    assert_eq!(code, 185, "{answer}");

    // None at all, and a key that is none.
    let bad = ["--queue-url", &queue, "--key-file", "/dev/null"];
    let (code, answer) = asked(&[], &bad);
    assert_eq!(
        finding(&answer, "credentials")["level"],
        "fatal",
        "{answer}"
    );
    assert_eq!(code, 185, "{answer}");
    let (code, answer) = asked(&lasting, &bad);
    assert_eq!(finding(&answer, "keys")["level"], "fatal", "{answer}");
    assert_eq!(code, 185, "{answer}");
}
