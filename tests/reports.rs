//! What a worker leaves in its store of a checkpoint that failed and of an eviction, and how a person reads it.

mod harness;
mod job;

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use harness::{Exit, Fault, Host, LIMIT, Lookalike, Proxy, wait_until};
use job::{COUNTER, Store, checkpoint, checkpoint_ok, evict, wait_for_log, wait_for_output};
use serde_json::Value;

/// Holds a deleted file that is larger than CRIU may store, until it is told to let go.
const HOLDER: &[&str] = &[
    "python3",
    "-c",
    "import os, time
held = open('/tmp/held', 'wb')
held.write(bytes(1 << 20))
held.flush()
os.unlink('/tmp/held')
print('holding', flush=True)
while not os.path.exists('/tmp/let-go'):
    time.sleep(0.01)
held.close()
print('let go', flush=True)
time.sleep(100000)",
];

const SMALL_GHOSTS: [&str; 2] = ["--ghost-limit", "4KiB"];

/// `reprieve reports` about `job` in this directory, with further words.
fn reports(store: &Store, words: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_reprieve"))
        .arg("reports")
        .args(words)
        .args(["--job", "job", "--store"])
        .arg(format!("file://{}", store.path().display()))
        .output()
        .expect("the binary was built");
    let said = [output.stdout, output.stderr].concat();
    let code = output.status.code().expect("it ends by itself");
    (code, String::from_utf8(said).expect("it is text"))
}

#[track_caller]
fn listed(store: &Store, words: &[&str]) -> Vec<Value> {
    let (code, text) = reports(store, &[words, &["--json"]].concat());
    assert_eq!(code, 0, "{text}");
    let told: Value = serde_json::from_str(&text).expect("it is JSON");
    told["reports"].as_array().cloned().expect("it is a list")
}

fn stored(store: &Store) -> Vec<PathBuf> {
    let directory = fs::read_dir(store.path().join("job/reports"));
    let entries = directory.into_iter().flatten();
    entries
        .map(|entry| entry.expect("it is read").path())
        .collect()
}

#[test]
fn a_checkpoint_that_fails_leaves_its_reason_and_what_criu_said() {
    let store = Store::new();
    let key = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    fs::write(key.path(), "a passphrase in one line\n").expect("it can be written");
    let path = key.path().to_str().expect("it is text");
    let options = [
        &SMALL_GHOSTS[..],
        &["--key-file", "/key", "--sources", "none"],
    ]
    .concat();
    let host = store
        .host_with("host", &options, HOLDER)
        .bind_read_only(key.path(), "/key")
        .start();
    wait_for_output(&host, "holding");
    assert_eq!(reports(&store, &["newest", "--key-file", path]).0, 177);
    for times in [1, 2] {
        assert_eq!(checkpoint(&host).code, 180);
        wait_until(LIMIT, "a report", || {
            let told = listed(&store, &["--key-file", path]);
            told.len() == 1 && told[0]["times"] == times
        });
    }
    let told = listed(&store, &["--key-file", path]);
    assert_eq!(
        (&told[0]["cause"], &told[0]["host"]),
        (&"failed".into(), &"host".into())
    );
    let (code, text) = reports(&store, &["newest", "--key-file", path]);
    assert_eq!(code, 0, "{text}");
    for wanted in [
        "failed, 2 times in a row",
        "notice: checkpoint from control",
        "checkpoint failed (by control, then continue",
        "dump ",
        "cut short",
        "The end of CRIU's log",
        "Can't dump ghost file",
    ] {
        assert!(text.contains(wanted), "{wanted:?} is not in {text}");
    }
    let (_, log) = reports(&store, &["newest", "--criu-log", "--key-file", path]);
    assert!(
        log.contains("Error (") && !log.contains("notice: "),
        "{log}"
    );
    // Nobody without the key reads it, neither through us nor in the store.
    let (code, text) = reports(&store, &[]);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("no key is set") && !text.contains("ghost"),
        "{text}"
    );
    for path in stored(&store) {
        let bytes = fs::read(path).expect("it is read");
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("reprieve report 1 sealed-1 "), "{text}");
        assert!(!text.contains("ghost"), "{text}");
    }
}

#[test]
fn an_eviction_leaves_how_it_was_decided() {
    let store = Store::new();
    let host = store.host("host", COUNTER).start();
    wait_for_output(&host, "line 5");
    // One that succeeds and goes on is worth no report.
    checkpoint_ok(&host);
    evict(&host);
    let told = listed(&store, &[]);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(
        (&told[0]["cause"], &told[0]["problem"]),
        (&"evicted".into(), &Value::Null)
    );
    let name = told[0]["report"].as_str().expect("it has a name");
    let (_, text) = reports(&store, &[name]);
    for wanted in [
        "cause    evicted",
        "notice: terminate from signal, in 60.000 s",
        "decision: ",
        "checkpoint durable (by signal, then stop",
        "generation 2",
        "commit ",
    ] {
        assert!(text.contains(wanted), "{wanted:?} is not in {text}");
    }
    assert!(!text.contains("CRIU's log"), "{text}");
    let (code, text) = reports(&store, &["01ARZ3NDEKTSV4RRFFQ69G5FAV"]);
    assert_eq!(code, 177, "{text}");
}

#[test]
fn a_report_that_the_store_does_not_take_is_in_no_checkpoints_way() {
    let server = Lookalike::start();
    server.make_bucket("bucket");
    let proxy = Proxy::start(&server.url);
    let is_report = |request: &harness::Request| request.is("PUT", "/reports/");
    // The first one, and a second that may be sent beside it.
    proxy.fail_next(Fault::Hang, 2, is_report);
    let options = [
        "--store",
        "s3://bucket",
        "--job",
        "job",
        "--sources",
        "none",
    ];
    let endpoint = ["--s3-endpoint", proxy.url(), "--term-grace", "60s"];
    let all = [&options[..], &endpoint[..], &SMALL_GHOSTS[..]].concat();
    let host = Host::builder("host")
        .share_net()
        .env("AWS_ACCESS_KEY_ID", "AKIDFORTESTS")
        .env("AWS_SECRET_ACCESS_KEY", "a-secret-that-stays-one")
        .reprieve(all, HOLDER.iter().copied())
        .start();
    wait_for_output(&host, "holding");
    assert_eq!(checkpoint(&host).code, 180);
    wait_until(LIMIT, "the report hangs", || {
        proxy.log().iter().any(is_report)
    });
    host.exec_ok(["touch", "/tmp/let-go"]);
    wait_for_output(&host, "let go");
    checkpoint_ok(&host);
    assert!(!host.stderr().text().contains("a report was stored"));
    wait_for_log(&host, "a report was stored");
    assert!(
        server
            .keys("bucket")
            .iter()
            .any(|key| key.contains("/reports/"))
    );
}

/// Listens where it is told to, which nobody else may when it is resumed.
fn listener(port: u16) -> [String; 3] {
    let program = format!(
        "import socket, time
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(('127.0.0.1', {port}))
server.listen()
print('listening', flush=True)
time.sleep(100000)"
    );
    ["python3".into(), "-c".into(), program]
}

#[test]
fn a_resume_that_fails_leaves_its_reason_and_what_criu_said() {
    let store = Store::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("there are ports");
    let port = taken.local_addr().expect("it is bound").port();
    let app = listener(port);
    let app: Vec<&str> = app.iter().map(String::as_str).collect();
    let start = |name: &str| {
        let options = ["--sources", "none"];
        store.host_with(name, &options, &app).share_net().start()
    };
    drop(taken);
    let host = start("first");
    wait_for_output(&host, "listening");
    checkpoint_ok(&host);
    evict(&host);
    let taken = TcpListener::bind(("127.0.0.1", port)).expect("it was let go");
    for times in [1, 2] {
        // Each start is another worker, and finds the same.
        let host = start(&format!("start-{times}"));
        assert_eq!(host.wait_exit(LIMIT), Exit::Code(171));
        let told = listed(&store, &[]);
        let of_starts: Vec<&Value> = told
            .iter()
            .filter(|report| report["cause"] == "not_resumed")
            .collect();
        assert_eq!(of_starts.len(), 1, "{told:?}");
        assert_eq!(of_starts[0]["times"], times, "{told:?}");
    }
    let (code, text) = reports(&store, &["newest"]);
    assert_eq!(code, 0, "{text}");
    for wanted in [
        "not_resumed, 2 times in a row",
        "worker   ",
        "on start-2",
        "restore passed over: ",
        "The end of CRIU's log",
        "Address already in use",
    ] {
        assert!(text.contains(wanted), "{wanted:?} is not in {text}");
    }
    drop(taken);
    // One that an older snapshot is resumed after is told of while the job runs.
    let newest = fs::read_dir(store.path().join("job/manifests"))
        .expect("there are some")
        .map(|entry| entry.expect("it is read").path())
        .min()
        .expect("there are two");
    fs::remove_file(&newest).expect("it is ours");
    let host = start("last");
    wait_for_log(&host, "the job is resumed");
    wait_until(
        LIMIT,
        "a report of the snapshot that was passed over",
        || {
            listed(&store, &[]).iter().any(|report| {
                report["cause"] == "not_resumed" && report["host"] == "last" && report["times"] == 1
            })
        },
    );
}
