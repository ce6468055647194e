//! What a worker tells others of its checkpoints and restores while it works: lines of the log, traces, and a program of
//! the user's that keeps a record.

mod harness;
mod job;

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use harness::{Collector, Exit, Host, LIMIT, self_signed, wait_until};
use job::{COUNTER, Store, checkpoint_ok, resumed, wait_for_log, wait_for_output};
use serde_json::Value;

/// Spans as a collector was told of them.
struct Spans {
    collector: Collector,
    /// As posts have to come.
    encoding: &'static str,
    spans: Vec<Value>,
}

impl Spans {
    fn told_to(collector: Collector, encoding: &'static str) -> Self {
        Self {
            collector,
            encoding,
            spans: Vec::new(),
        }
    }

    /// Waits until a span of this name has come, and `holds` of it.
    #[track_caller]
    fn span(&mut self, name: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let is_it = |span: &&Value| span["name"] == name && holds(span);
        loop {
            if let Some(found) = self.spans.iter().find(is_it) {
                return found.clone();
            }
            let post = self.collector.next();
            assert_eq!(post["path"], "/v1/traces");
            assert_eq!(post["headers"]["content-type"], self.encoding);
            let of = &post["body"]["resourceSpans"][0];
            let resource = of["resource"].to_string();
            for wanted in [
                r#"{"key":"service.name","value":{"stringValue":"reprieve"}}"#,
                r#"{"key":"reprieve.job","value":{"stringValue":"job"}}"#,
            ] {
                assert!(resource.contains(wanted), "{resource}");
            }
            let spans = of["scopeSpans"][0]["spans"].as_array();
            self.spans
                .extend(spans.expect("it is a list").iter().cloned());
        }
    }

    fn children(&self, of: &Value) -> Vec<&str> {
        let children = self
            .spans
            .iter()
            .filter(|span| span["parentSpanId"] == of["spanId"]);
        children.filter_map(|span| span["name"].as_str()).collect()
    }
}

/// The lines of JSON that a host has logged.
fn lines(host: &Host) -> Vec<Value> {
    let text = host.stderr().text();
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    lines.collect()
}

#[track_caller]
fn line(host: &Host, message: &str) -> Value {
    let lines = lines(host);
    let found = lines.iter().find(|line| line["message"] == message);
    found
        .unwrap_or_else(|| panic!("{message:?} is not in {lines:?}"))
        .clone()
}

const STEPS: [&str; 5] = ["prepare", "dump", "drain", "upload", "commit"];

#[test]
fn each_checkpoint_and_restore_is_a_trace_and_lines_of_the_log_belong_to_it() {
    let mut collector = Spans::told_to(Collector::start(None), "application/x-protobuf");
    let url = collector.collector.url.clone();
    let store = Store::new();
    let options = ["--otlp-endpoint", &url, "--sources", "none"];
    let host = store
        .host_with("first", &options, COUNTER)
        .share_net()
        .start();
    wait_for_output(&host, "line 5");
    checkpoint_ok(&host);
    let first = collector.span("checkpoint", |_| true);
    let mut steps = collector.children(&first);
    steps.sort_unstable();
    let mut expected = STEPS;
    expected.sort_unstable();
    assert_eq!(steps, expected);
    assert_eq!(first["status"]["code"], 1, "{first}");
    let attributes = first["attributes"].to_string();
    for wanted in [
        r#"{"key":"generation","value":{"intValue":"1"}}"#,
        r#"{"key":"by","value":{"stringValue":"control"}}"#,
        r#"{"key":"outcome","value":{"stringValue":"durable"}}"#,
    ] {
        assert!(
            attributes.contains(wanted),
            "{wanted} is not in {attributes}"
        );
    }
    host.signal(libc::SIGTERM);
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(75));
    let worker = collector.span("worker", |_| true);
    let second = collector.span("checkpoint", |span| span["traceId"] != first["traceId"]);
    assert_eq!(second["links"][0]["spanId"], worker["spanId"], "{second}");

    // Each line says where it belongs.
    for line in lines(&host) {
        assert_eq!(line["job"], "job", "{line}");
        assert!(
            line["phase"].is_string() || line["message"] == "app",
            "{line}"
        );
        let trace = line["trace_id"].as_str().expect("it has one");
        assert_eq!(trace.len(), 32, "{line}");
        assert!(line.get("generation").is_some(), "{line}");
    }
    let durable = line(&host, "checkpoint is durable");
    assert_eq!(durable["trace_id"], first["traceId"]);
    assert_eq!(durable["generation"], 1);
    assert_eq!(
        line(&host, "this worker owns the job")["trace_id"],
        worker["traceId"]
    );
    let phases: BTreeSet<String> = lines(&host)
        .iter()
        .filter_map(|line| line["phase"].as_str().map(str::to_owned))
        .collect();
    assert!(
        phases.contains("booting") && phases.contains("checkpointing"),
        "{phases:?}"
    );
    host.destroy();

    // As OpenTelemetry's own variables say.
    collector.encoding = "application/json";
    let host = store
        .host_with("second", &["--sources", "none"], COUNTER)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &url)
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
        .share_net()
        .start();
    resumed(&host);
    let restore = collector.span("restore", |_| true);
    let mut steps = collector.children(&restore);
    steps.sort_unstable();
    assert_eq!(steps, ["restore", "select"]);
    assert_eq!(
        line(&host, "this worker owns the job")["trace_id"],
        restore["traceId"]
    );
}

#[test]
fn a_collector_that_takes_and_never_answers_holds_nothing_up() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("there are ports");
    let url = format!("http://{}", silent.local_addr().expect("it is bound"));
    let store = Store::new();
    let options = ["--otlp-endpoint", &url, "--sources", "none"];
    let host = store
        .host_with("host", &options, COUNTER)
        .share_net()
        .start();
    wait_for_output(&host, "line 5");
    for _ in 0..3 {
        checkpoint_ok(&host);
    }
    host.signal(libc::SIGTERM);
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(75));
    wait_for_log(&host, "traces could not be sent");
    // One that cannot be spoken to is no reason not to run.
    let host = store
        .host_with("other", &["--sources", "none"], COUNTER)
        .env(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "http://collector.example:4317",
        )
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        .share_net()
        .start();
    wait_for_log(&host, "no traces are sent");
    resumed(&host);
}

#[test]
fn a_collector_with_tls_is_told_who_sends_if_its_certificate_is_known() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    self_signed(directory.path());
    let collector = Collector::start(Some(directory.path()));
    assert!(collector.url.starts_with("https://"));
    let store = Store::new();
    let host = |name: &str, variable: &str| {
        store
            .host_with(name, &["--sources", "none"], COUNTER)
            .share_net()
            .bind(directory.path(), "/tls")
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url)
            .env("OTEL_EXPORTER_OTLP_HEADERS", "api-key=s%3Decret,x-team=red")
            .env(variable, "/tls/cert.pem")
            .start()
    };
    // The roots of everything, or those of the collector alone.
    for (name, variable) in [
        ("first", "SSL_CERT_FILE"),
        ("second", "OTEL_EXPORTER_OTLP_CERTIFICATE"),
    ] {
        let host = host(name, variable);
        wait_for_output(&host, "line");
        checkpoint_ok(&host);
        let post = collector.next();
        assert_eq!(post["headers"]["api-key"], "s=ecret", "{post}");
        assert_eq!(post["headers"]["x-team"], "red", "{post}");
        host.destroy();
    }
    // Nobody vouches for it here.
    let host = host("third", "NOBODY_READS_THIS");
    let told = wait_for_log(&host, "traces could not be sent");
    assert!(
        told.contains("ertificate") && !told.contains("ecret\""),
        "{told}"
    );
    resumed(&host);
}

#[test]
fn a_program_keeps_a_record_of_each_checkpoint_and_restore() {
    let store = Store::new();
    let records = tempfile::tempdir().expect("a temporary directory");
    let program = records.path().join("record");
    let script = "#!/bin/sh\nread -r line\n[ \"$line\" = \"$1\" ] || exit 1\necho \"$line\" >> /records/told\n";
    fs::write(&program, script).expect("it can be written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let host = |name: &str| {
        let options = ["--metrics-recorder", "/records/record", "--sources", "none"];
        store
            .host_with(name, &options, COUNTER)
            .bind(records.path(), "/records")
            .start()
    };
    let told = || -> Vec<Value> {
        let text = fs::read_to_string(records.path().join("told")).unwrap_or_default();
        let lines = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("it is JSON"));
        lines.collect()
    };
    let first = host("first");
    wait_for_output(&first, "line 5");
    checkpoint_ok(&first);
    first.signal(libc::SIGTERM);
    assert_eq!(first.wait_exit(LIMIT), Exit::Code(75));
    first.destroy();
    let second = host("second");
    resumed(&second);
    wait_until(LIMIT, "the restore is told", || told().len() == 6);
    let told = told();
    let events: Vec<&str> = told
        .iter()
        .filter_map(|event| event["event"].as_str())
        .collect();
    let checkpoint = ["checkpoint_started", "checkpoint_ended"];
    let restore = ["restore_started", "restore_ended"];
    assert_eq!(events, [checkpoint, checkpoint, restore].concat());
    for event in &told {
        assert_eq!(
            (&event["v"], &event["job"]),
            (&1.into(), &"job".into()),
            "{event}"
        );
        assert!(
            event["at_ms"].is_u64() && event["trace_id"].is_string(),
            "{event}"
        );
    }
    assert_eq!(told[1]["outcome"], "durable");
    assert_eq!(told[1]["trace_id"], told[0]["trace_id"]);
    assert_eq!(
        told[1]["steps"].as_array().map(Vec::len),
        Some(5),
        "{}",
        told[1]
    );
    assert_eq!(
        (&told[3]["afterwards"], &told[3]["generation"]),
        (&"stop".into(), &2.into())
    );
    assert_eq!(
        (&told[5]["outcome"], &told[5]["generation"]),
        (&"resumed".into(), &2.into())
    );
}

#[test]
fn a_recorder_that_hangs_is_not_waited_for_while_the_job_stands_still() {
    let store = Store::new();
    let records = tempfile::tempdir().expect("a temporary directory");
    let program = records.path().join("record");
    fs::write(&program, "#!/bin/sh\nexec sleep 100000\n").expect("it can be written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let options = [
        "--metrics-recorder",
        "/records/record",
        "--hook-timeout",
        "5m",
        "--sources",
        "none",
    ];
    let host = store
        .host_with("host", &options, COUNTER)
        .bind(records.path(), "/records")
        .start();
    wait_for_output(&host, "line 5");
    for _ in 0..3 {
        checkpoint_ok(&host);
    }
    host.wait_for_process("sleep 100000", LIMIT);
    // Nor for long at the end: it would sleep for longer than this waits.
    host.signal(libc::SIGTERM);
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(75));
}
