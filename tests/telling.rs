//! What a worker tells others of its checkpoints and restores while it works: lines of the log, traces, and a program of
//! the user's that keeps a record.

mod harness;
mod job;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::mpsc::{self, Receiver};

use harness::{Exit, Host, LIMIT, wait_until};
use job::{COUNTER, Store, checkpoint_ok, resumed, wait_for_log, wait_for_output};
use serde_json::Value;

/// A collector: an HTTP server that keeps what is posted.
struct Collector {
    url: String,
    posts: Receiver<(String, Value)>,
    spans: Vec<Value>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there are ports");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let (sender, posts) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let sender = sender.clone();
                // Whoever goes away is not waited for.
                std::thread::spawn(move || drop(serve(stream.expect("somebody comes"), &sender)));
            }
        });
        Self {
            url,
            posts,
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
            let post = self.posts.recv_timeout(LIMIT);
            let (line, body) =
                post.unwrap_or_else(|_| panic!("{name} is not among {:?}", self.spans));
            assert_eq!(line, "POST /v1/traces HTTP/1.1");
            let resource = body["resourceSpans"][0]["resource"].to_string();
            assert!(
                resource.contains(r#""key":"service.name","value":{"stringValue":"reprieve"}"#),
                "{resource}"
            );
            assert!(
                resource.contains(r#""key":"reprieve.job","value":{"stringValue":"job"}"#),
                "{resource}"
            );
            let spans = body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array();
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

fn serve(stream: TcpStream, posts: &mpsc::Sender<(String, Value)>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut answers = stream;
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("it is a number");
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body = serde_json::from_slice(&body).expect("it is JSON");
        drop(posts.send((first.trim_end().to_owned(), body)));
        write!(answers, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{{}}")?;
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
    let mut collector = Collector::start();
    let store = Store::new();
    let options = ["--otlp-endpoint", &collector.url, "--sources", "none"];
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
    let host = store
        .host_with("second", &["--sources", "none"], COUNTER)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url)
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
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector.example")
        .share_net()
        .start();
    wait_for_log(&host, "no traces are sent");
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
