//! What is done with the time that is left: notices with and without a deadline, periods, attempts that fail, and the
//! user's own programs, with the real binary and real CRIU.

mod harness;
mod job;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::{Exit, Host, LIMIT, self_signed, wait_until};
use job::{
    COUNTER, Store, assert_counts, checkpoint, checkpoint_ok, notice, resumed, wait_for_log,
    wait_for_output,
};
use serde_json::{Value, json};

fn lines(host: &Host, message: &str) -> Vec<Value> {
    let lines = host.stderr().lines();
    let found = lines.iter().filter(|line| line.contains(message));
    found
        .map(|line| serde_json::from_str(line).expect("the log is JSON"))
        .collect()
}

fn assert_goes_on(store: &Store, before: &Host) {
    before.destroy();
    let second = store.host("second", COUNTER).start();
    wait_until(LIMIT, "more lines", || second.stdout().lines().len() > 20);
    second.destroy();
    let all = before.stdout().text() + &second.stdout().lines().join("\n");
    assert_counts(&all, None);
}

#[test]
fn with_time_the_job_is_made_safe_works_on_and_is_stored_before_the_deadline() {
    let store = Store::new();
    let host = store.host("host", COUNTER).start();
    wait_for_output(&host, "line 10");
    notice(
        &host,
        &json!({ "v": 1, "request": "notice", "fate": "terminate", "in_ms": 34_000, "identity": "a" }),
    );
    // Told again, it is the same.
    notice(
        &host,
        &json!({ "v": 1, "request": "notice", "fate": "terminate", "in_ms": 34_000, "identity": "b" }),
    );
    assert_eq!(host.wait_exit(Duration::from_secs(60)), Exit::Code(75));
    let durable = lines(&host, "checkpoint is durable");
    let how: Vec<&Value> = durable.iter().map(|line| &line["afterwards"]).collect();
    assert_eq!(how, ["Continue", "Stop"]);
    // It worked on for most of the time, and was stored before its end.
    let begun = lines(&host, "checkpoint begins");
    assert!(
        begun[1]["budget_ms"].as_u64() < Some(12_000),
        "{}",
        begun[1]
    );
    let reasons: Vec<Value> = lines(&host, "it is decided what to do")
        .iter()
        .map(|line| line["reason"].clone())
        .collect();
    assert_eq!(
        reasons,
        [
            "there is time: the job is made safe first and works on",
            "the job is safe and works on until the last moment that is safe",
            "the last moment that is safe has come",
        ]
    );
    assert_goes_on(&store, &host);
}

#[test]
fn with_little_time_or_none_that_is_known_the_job_is_stored_at_once() {
    for line in [
        json!({ "v": 1, "request": "notice", "fate": "terminate", "in_ms": 20_000, "identity": "a" }),
        json!({ "v": 1, "request": "notice", "fate": "stop", "identity": "a" }),
    ] {
        let store = Store::new();
        let host = store.host("host", COUNTER).start();
        wait_for_output(&host, "line 10");
        notice(&host, &line);
        assert_eq!(host.wait_exit(LIMIT), Exit::Code(75), "{line}");
        assert_eq!(lines(&host, "checkpoint begins").len(), 1, "{line}");
        assert_goes_on(&store, &host);
    }
}

#[test]
fn a_machine_at_risk_is_answered_by_a_checkpoint_that_leaves_the_job_running() {
    let store = Store::new();
    let host = store.host("host", COUNTER).start();
    wait_for_output(&host, "line 10");
    notice(
        &host,
        &json!({ "v": 1, "request": "notice", "fate": "at_risk", "identity": "a" }),
    );
    wait_for_log(&host, "checkpoint is durable");
    let mark = host.stdout().mark();
    wait_until(LIMIT, "more lines", || host.stdout().mark() > mark + 100);
    assert_eq!(lines(&host, "checkpoint begins").len(), 1);
}

#[test]
fn periodic_checkpoints_save_a_job_whose_machine_goes_without_a_word() {
    let store = Store::new();
    let host = store.host_with("host", &["--every", "1s"], COUNTER).start();
    wait_until(LIMIT, "three checkpoints", || {
        lines(&host, "checkpoint is durable").len() >= 3
    });
    host.destroy();
    let metrics = ["--metrics-listen", "127.0.0.1:9464"];
    let second = store.host_with("second", &metrics, COUNTER).start();
    resumed(&second);
    // What nobody announced is recognised afterwards.
    let read = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9464/metrics').read().decode())";
    let metrics = second.exec_ok(["python3", "-c", read]);
    let died = "\nreprieve_died_without_notice_total 1\n";
    assert!(metrics.contains(died), "{metrics}");
    second.destroy();
    let triggers = lines(&host, "checkpoint begins");
    assert!(triggers.iter().all(|line| line["trigger"] == "timer"));
}

#[test]
fn a_period_that_follows_from_what_a_checkpoint_costs_saves_a_job_whose_machine_goes_without_a_word()
 {
    let store = Store::new();
    let options = [
        "--every",
        "auto",
        "--least-interval",
        "1s",
        "--max-lost-work",
        "2s",
    ];
    let host = store.host_with("host", &options, COUNTER).start();
    // The first is there to be measured, the others follow from it.
    wait_until(LIMIT, "three checkpoints", || {
        lines(&host, "checkpoint is durable").len() >= 3
    });
    host.destroy();
    for line in lines(&host, "it is decided what to do") {
        assert_eq!(line["reason"], "a periodic checkpoint is due", "{line}");
    }
    for line in lines(&host, "checkpoint begins") {
        assert_eq!(
            (&line["trigger"], &line["afterwards"]),
            (&json!("timer"), &json!("Continue")),
            "{line}"
        );
    }
    let newest = lines(&host, "checkpoint is durable").len() as u64;
    let second = store.host("second", COUNTER).start();
    resumed(&second);
    let generation = lines(&second, "the job is resumed")[0]["generation"].as_u64();
    // One more may have been committed when the machine went.
    assert!(generation >= Some(newest), "{generation:?} of {newest}");
    second.destroy();
    // Machines that live for years, and nobody who minds: one in a long time.
    let store = Store::new();
    let options = [
        "--every",
        "auto",
        "--least-interval",
        "1s",
        "--max-lost-work",
        "1d",
        "--machine-lifetime",
        "365d",
    ];
    let host = store.host_with("calm", &options, COUNTER).start();
    wait_for_log(&host, "checkpoint is durable");
    let mark = host.stdout().mark();
    // Three of the least intervals.
    wait_until(LIMIT, "more lines", || host.stdout().mark() > mark + 2_500);
    assert_eq!(lines(&host, "checkpoint begins").len(), 1);
}

#[test]
fn a_checkpoint_that_would_not_fit_into_the_notice_any_more_is_told_of_or_taken_before() {
    // Nothing is promised to fit into this, whatever was measured.
    let short = ["--shortest-notice", "500ms"];
    let store = Store::new();
    let host = store.host_with("warned", &short, COUNTER).start();
    wait_for_output(&host, "line 10");
    let message = "a checkpoint takes longer by now than the shortest notice";
    assert!(lines(&host, message).is_empty());
    checkpoint_ok(&host);
    wait_for_log(&host, message);
    checkpoint_ok(&host);
    assert_eq!(lines(&host, message).len(), 1);
    assert_eq!(lines(&host, "checkpoint begins").len(), 2);
    host.destroy();
    let store = Store::new();
    let keep = ["--keep-promise", "checkpoint", "--least-interval", "1s"];
    let host = store.host_with("keeper", &keep, COUNTER).start();
    // One that is there to be measured.
    wait_for_log(&host, "checkpoint is durable");
    let decided = lines(&host, "it is decided what to do");
    assert_eq!(
        decided[0]["reason"],
        "soon a checkpoint would not fit into the shortest notice"
    );
    assert!(lines(&host, message).is_empty());
    host.destroy();
    let second = store.host("second", COUNTER).start();
    resumed(&second);
}

#[test]
fn how_a_checkpoint_is_stored_is_told_and_kept_with_the_snapshot() {
    for (compression, level, reason) in [("auto", None, None), ("low", Some("raw"), Some("asked"))]
    {
        let store = Store::new();
        let options = ["--compression", compression];
        let host = store.host_with("host", &options, COUNTER).start();
        wait_for_output(&host, "line 10");
        let status = || -> Value {
            let told = host.exec_ok(["reprieve", "status", "--json"]);
            serde_json::from_str(&told).expect("it is JSON")
        };
        assert_eq!(status()["storing"], Value::Null, "there was none yet");
        checkpoint_ok(&host);
        let told = status();
        let storing = &told["storing"];
        assert!(storing["uploads"].as_u64() >= Some(1), "{told}");
        assert!(storing["left_ms"].as_u64() > Some(0), "{told}");
        assert!(
            level.is_none_or(|level| storing["compression"] == level),
            "{told}"
        );
        assert!(
            reason.is_none_or(|reason| storing["reason"] == reason),
            "{told}"
        );
        // What is planned, with what it was made from.
        assert_eq!(told["decision"]["act"], "wait", "{told}");
        let words = host.exec_ok(["reprieve", "status"]);
        assert!(words.contains("storing        compression "), "{words}");
        let objects = store.objects();
        let manifest = objects
            .iter()
            .find(|path| path.to_string_lossy().contains("/manifests/"));
        let manifest = fs::read_to_string(manifest.expect("there is one")).expect("it is text");
        assert!(
            manifest.contains("\"storing\":{\"compression\""),
            "{manifest}"
        );
        assert!(manifest.contains("\"decision\":{"), "{manifest}");
    }
}

/// A job with an orphan, which stands in the way until it has ended, after so many seconds or sooner.
fn with_an_orphan(store: &Store, seconds: &str) -> Host {
    let script = format!("(sleep {seconds} &); echo ready; read go");
    let app = ["bash", "-c", &script];
    let host = store.host("host", &app).stdin(harness::Stdio::Pipe).start();
    wait_for_output(&host, "ready");
    host
}

#[test]
fn what_failed_on_sigterm_is_tried_again_within_the_grace() {
    let store = Store::new();
    let host = with_an_orphan(&store, "3");
    host.signal(libc::SIGTERM);
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(75));
    assert!(!lines(&host, "checkpoint failed").is_empty());
    assert_eq!(lines(&host, "checkpoint is durable").len(), 1);
}

#[test]
fn a_second_sigterm_means_now_and_not_after_the_pause() {
    let store = Store::new();
    let host = with_an_orphan(&store, "1000");
    host.signal(libc::SIGTERM);
    // Each failure makes the pause longer: after this one it is 4 s.
    wait_until(LIMIT, "four failures", || {
        lines(&host, "checkpoint failed").len() == 4
    });
    let at_once = "the end is near, or may come at any moment";
    let again = "the one before failed, and there is time left";
    let reasons = || -> Vec<Value> {
        let lines = lines(&host, "it is decided what to do");
        lines
            .into_iter()
            .map(|line| line["reason"].clone())
            .collect()
    };
    assert_eq!(reasons(), [at_once, again, again, again]);
    host.signal(libc::SIGTERM);
    wait_until(LIMIT, "another attempt", || reasons().len() > 4);
    assert_eq!(reasons()[4], at_once);
    let orphan = host.wait_for_process("sleep 1000", LIMIT).pid;
    host.signal_process(orphan, libc::SIGKILL);
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(75));
    assert_eq!(lines(&host, "checkpoint is durable").len(), 1);
}

#[test]
fn a_signal_may_ask_for_a_checkpoint_or_for_the_end() {
    let store = Store::new();
    let options = [
        "--on-sighup",
        "checkpoint",
        "--on-sigint",
        "checkpoint",
        "--on-sigusr2",
        "stop",
    ];
    let host = store.host_with("host", &options, COUNTER).start();
    wait_for_output(&host, "line 10");
    host.signal(libc::SIGHUP);
    wait_for_log(&host, "checkpoint is durable");
    host.signal(libc::SIGINT);
    wait_until(LIMIT, "another checkpoint", || {
        lines(&host, "checkpoint is durable").len() == 2
    });
    host.signal(libc::SIGUSR2);
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(75));
    assert_goes_on(&store, &host);
}

fn hook(directory: &Path, moment: &str, script: &str) {
    let path = directory.join(moment);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("it can be written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
}

#[test]
fn programs_of_the_users_are_run_at_their_moments_and_are_in_no_snapshot() {
    let store = Store::new();
    let hooks = tempfile::tempdir().expect("a temporary directory");
    for moment in [
        "app-ready",
        "notice",
        "before-freeze",
        "after-thaw",
        "durable",
        "before-restore",
        "after-resume",
    ] {
        // What one leaves behind must not be taken for a part of the job.
        let script = format!(
            "(sleep 1000 &)\ncat >> /hooks/{moment}.json\necho $REPRIEVE_MOMENT >> /hooks/told"
        );
        hook(hooks.path(), moment, &script);
    }
    let told = || fs::read_to_string(hooks.path().join("told")).unwrap_or_default();
    let host = |name: &str| {
        let options = ["--hooks-dir", "/hooks"];
        store
            .host_with(name, &options, COUNTER)
            .bind(hooks.path(), "/hooks")
            .start()
    };
    let first = host("first");
    wait_until(LIMIT, "the app is ready", || told().contains("app-ready"));
    wait_for_output(&first, "line 10");
    checkpoint_ok(&first);
    wait_until(LIMIT, "it is told", || {
        told().contains("after-thaw") && told().contains("durable")
    });
    first.signal(libc::SIGTERM);
    assert_eq!(first.wait_exit(LIMIT), Exit::Code(75));
    first.destroy();
    assert_eq!(told().matches("durable").count(), 2, "{}", told());
    assert_eq!(told().matches("before-freeze").count(), 2, "{}", told());
    assert!(told().contains("notice"), "{}", told());
    let facts = fs::read_to_string(hooks.path().join("notice.json")).expect("it was run");
    let facts: Value = serde_json::from_str(&facts).expect("it is JSON");
    assert_eq!(
        (&facts["job"], &facts["source"]),
        (&json!("job"), &json!("signal"))
    );
    let second = host("second");
    resumed(&second);
    wait_until(LIMIT, "it is told", || told().contains("after-resume"));
    assert_eq!(told().matches("before-restore").count(), 1, "{}", told());
}

#[test]
fn programs_of_the_users_hear_of_a_deadline_in_danger_and_of_one_that_is_missed() {
    let store = Store::new();
    let hooks = tempfile::tempdir().expect("a temporary directory");
    for moment in ["in-danger", "missed"] {
        hook(hooks.path(), moment, "cat > /hooks/$REPRIEVE_MOMENT.json");
    }
    let options = ["--hooks-dir", "/hooks", "--on-too-late", "run-on"];
    let app = ["python3", "/apps/memory.py", "512"];
    let host = store
        .host_with("host", &options, &app)
        .bind(hooks.path(), "/hooks")
        .start();
    wait_for_output(&host, "ready");
    // By this it is known how long one takes, and by the next notice that it will not fit.
    checkpoint_ok(&host);
    notice(
        &host,
        &json!({ "v": 1, "request": "notice", "fate": "terminate", "in_ms": 2_000, "identity": "a" }),
    );
    let told = |moment: &str| {
        let path = hooks.path().join(format!("{moment}.json"));
        let mut facts = Value::Null;
        wait_until(LIMIT, moment, || {
            let text = fs::read_to_string(&path).unwrap_or_default();
            facts = serde_json::from_str(&text).unwrap_or_default();
            facts.is_object()
        });
        facts
    };
    let danger = told("in-danger");
    assert!(
        danger["needed_ms"].as_u64() > danger["left_ms"].as_u64() && danger["job"] == "job",
        "{danger}"
    );
    let missed = told("missed");
    assert!(missed["reason"].is_string(), "{missed}");
    assert_eq!(lines(&host, "checkpoint begins").len(), 1);
    // The job runs on, and can be stored later.
    checkpoint_ok(&host);
}

#[test]
fn the_control_socket_answers_its_own_user_and_root_only() {
    let store = Store::new();
    let host = store.host("host", COUNTER).start();
    wait_for_output(&host, "line 10");
    // As if somebody had opened the file to everybody.
    let ask = "import os, socket, sys
path = '/run/reprieve/control.sock'
os.chmod('/run/reprieve', 0o755)
os.chmod(path, 0o666)
os.setuid(int(sys.argv[1]))
s = socket.socket(socket.AF_UNIX)
s.connect(path)
try:
    s.sendall(b'{\"v\":1,\"request\":\"checkpoint\",\"leave_running\":false,\"timeout_ms\":25000}\\n')
    print(s.recv(65536))
except ConnectionError:
    print(b'')
";
    assert_eq!(host.exec_ok(["python3", "-c", ask, "1234"]), "b''\n");
    wait_for_log(&host, "a caller at the control socket was turned away");
    assert_eq!(lines(&host, "checkpoint begins").len(), 0);
    assert!(
        host.exec_ok(["python3", "-c", ask, "0"])
            .contains("durable")
    );
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(75));
}

#[test]
fn bursts_of_signals_are_no_storm_of_checkpoints_and_end_in_one() {
    let store = Store::new();
    let options = ["--on-sighup", "checkpoint", "--on-sigusr1", "checkpoint"];
    let host = store.host_with("host", &options, COUNTER).start();
    wait_for_output(&host, "line 10");
    let burst = "import os, sys\nfor _ in range(500):\n    for number in sys.argv[1:]:\n        os.kill(1, int(number))";
    let hangup = libc::SIGHUP.to_string();
    let user = libc::SIGUSR1.to_string();
    host.exec_ok(["python3", "-c", burst, &hangup, &user]);
    // All of them, and one more that comes after the last has begun.
    wait_for_log(&host, "checkpoint is durable");
    checkpoint_ok(&host);
    let begun = lines(&host, "checkpoint begins").len();
    assert!((2..20).contains(&begun), "{begun}");
    let terminate = libc::SIGTERM.to_string();
    // Its end may come before that of the burst.
    host.exec(["python3", "-c", burst, &terminate, &hangup]);
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(75));
    let durable = lines(&host, "checkpoint is durable");
    let last = durable.iter().filter(|line| line["afterwards"] == "Stop");
    assert_eq!(last.count(), 1, "{durable:?}");
    assert_goes_on(&store, &host);
}

/// A server that writes what is posted to it to its standard output, one line each.
const RECEIVER: &str = "
import http.server, ssl, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers['content-length']))
        kind = self.headers.get('x-amz-sns-message-type', '-')
        print(self.path, kind, body.decode(), flush=True)
        self.send_response(204)
        self.end_headers()
server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain('cert.pem', 'key.pem')
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
";

#[test]
fn a_webhook_with_tls_is_told_if_its_certificate_is_known() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    self_signed(directory.path());
    let mut receiver = Command::new("python3")
        .args(["-c", RECEIVER])
        .current_dir(directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is installed");
    let mut told = BufReader::new(receiver.stdout.take().expect("it is piped")).lines();
    let mut next = || told.next().expect("it goes on").expect("it is text");
    let url = format!("https://127.0.0.1:{}/told", next());
    let store = Store::new();
    let host = |name: &str, trusted: &str, format: &str| {
        let options = ["--webhook", &url, "--webhook-format", format];
        store
            .host_with(name, &options, COUNTER)
            .share_net()
            .bind(directory.path(), "/tls")
            .env("SSL_CERT_FILE", trusted)
            .start()
    };
    let first = host("first", "/tls/cert.pem", "json");
    let mut told = |kind: &str| -> Value {
        let line = next();
        let document = line.strip_prefix(&format!("/told {kind} "));
        let document = document.unwrap_or_else(|| panic!("{line}"));
        serde_json::from_str(document).expect("it is JSON")
    };
    assert_eq!(told("-")["moment"], "app-ready");
    assert!(!first.stderr().text().contains("the webhook was not told"));
    first.destroy();
    // Nobody vouches for it here.
    let second = host("second", "/etc/ssl/certs/ca-certificates.crt", "json");
    let warned = wait_for_log(&second, "the webhook was not told");
    assert!(warned.contains("ertificate"), "{warned}");
    second.destroy();
    // As SNS would say it.
    let third = host("third", "/tls/cert.pem", "sns");
    let told = told("Notification");
    assert_eq!(told["Type"], "Notification");
    let message = told["Message"].as_str().expect("it has a message");
    let message: Value = serde_json::from_str(message).expect("it is JSON");
    assert_eq!(message["moment"], "app-ready");
    third.destroy();
    receiver.kill().expect("it is ours");
    receiver.wait().expect("it was killed");
}

#[test]
fn a_program_before_the_freeze_may_refuse_it_and_never_holds_it_up_for_long() {
    for (script, options, code) in [
        ("exit 1", &["--on-hook-failure", "refuse"][..], 180),
        ("exit 1", &[], 0),
        ("sleep 1000", &["--hook-timeout", "200ms"], 0),
    ] {
        let store = Store::new();
        let hooks = tempfile::tempdir().expect("a temporary directory");
        hook(hooks.path(), "before-freeze", script);
        let all = [&["--hooks-dir", "/hooks"], options].concat();
        let host = store
            .host_with("host", &all, COUNTER)
            .bind(hooks.path(), "/hooks")
            .start();
        wait_for_output(&host, "line 10");
        let ran = checkpoint(&host);
        assert_eq!(
            ran.code, code,
            "{script} {options:?}: {}{}",
            ran.stdout, ran.stderr
        );
        let mark = host.stdout().mark();
        wait_until(LIMIT, "more lines", || host.stdout().mark() > mark + 100);
    }
}
