//! What the end-to-end tests know of Reprieve: how a job is run from a store, evicted and looked at.

// Each test file is a program of its own and uses a part of this.
#![allow(dead_code)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use reprieve_core::document;

use crate::harness::{self, Builder, Exit, Host, LIMIT, Stdio, wait_until};

/// Holds a directory while it runs, and says so if another one does.
pub(crate) const ALONE: &[&str] = &[
    "bash",
    "-c",
    "mkdir /snapshots/busy && echo alone || echo beside; read go; rmdir /snapshots/busy",
];

/// Two hosts of one job, whose app is [`ALONE`], are started at once: one runs it to its end, and the other leaves. Returns which
/// of them ran it.
#[track_caller]
pub(crate) fn race(hosts: [Builder; 2]) -> usize {
    let [one, other] = hosts.map(|host| host.stdin(Stdio::Pipe));
    let hosts = std::thread::scope(|scope| {
        let other = scope.spawn(|| other.start());
        [one.start(), other.join().expect("it starts")]
    });
    for host in &hosts {
        wait_until(LIMIT, "it runs or has left", || {
            !host.is_running() || host.stdout().mark() > 0
        });
    }
    let said = hosts.each_ref().map(|host| host.stdout().text());
    let winner = match said.each_ref().map(String::as_str) {
        ["alone\n", ""] => 0,
        ["", "alone\n"] => 1,
        _ => panic!("{said:?}"),
    };
    assert_eq!(hosts[1 - winner].wait_exit(LIMIT), Exit::Code(172));
    hosts[winner].write("go\n");
    assert_eq!(hosts[winner].wait_exit(LIMIT), Exit::Code(0));
    winner
}

/// A directory for snapshots, removed with the test.
pub(crate) struct Store {
    directory: tempfile::TempDir,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().expect("a temporary directory can be made"),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A host that runs `app` from this store, as the machine called `name`.
    pub(crate) fn host(&self, name: &str, app: &[&str]) -> harness::Builder {
        self.host_with(name, &[], app)
    }

    pub(crate) fn host_with(&self, name: &str, options: &[&str], app: &[&str]) -> harness::Builder {
        let mut all = vec!["--store", "file:///snapshots", "--job", "job"];
        let defaults = [
            ["--term-grace", "60s"],
            // Hosts are destroyed here without a goodbye; what waiting means has tests of its own.
            ["--on-other-owner", "take-over"],
        ];
        let not_given = defaults.iter().filter(|[name, _]| !options.contains(name));
        all.extend(not_given.flatten().copied());
        all.extend(options);
        Host::builder(name)
            .bind(self.path(), "/snapshots")
            .reprieve(all, app.iter().copied())
    }

    /// Every object of the job, but for those by which a sweep that happens to run learns the time, and reports.
    pub(crate) fn objects(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut directories = vec![self.path().join("job")];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).expect("the store can be read") {
                let path = entry.expect("the store can be read").path();
                match path.is_dir() {
                    true if ["clock", "probe", "reports"]
                        .iter()
                        .any(|name| path.ends_with(format!("job/{name}"))) => {}
                    true => directories.push(path),
                    false => found.push(path),
                }
            }
        }
        found.sort();
        found
    }

    /// The objects that only the newest snapshot consists of: its manifest and its data.
    pub(crate) fn objects_of_newest(&self) -> Vec<PathBuf> {
        let all = self.objects();
        // Newest first is how manifests sort; the attempt is the end of the name.
        let newest = all
            .iter()
            .find(|path| path.to_string_lossy().contains("/manifests/"))
            .expect("there is a snapshot");
        let name = newest.file_name().expect("it is a file").to_string_lossy();
        let attempt = name.rsplit('-').next().expect("it has parts");
        let belongs = |path: &&PathBuf| path.to_string_lossy().contains(attempt);
        all.iter().filter(belongs).cloned().collect()
    }
}

pub(crate) const COUNTER: &[&str] = &["python3", "/apps/counter.py", "--pace", "0.01"];

/// Evicts a host: SIGTERM, as a platform sends it, and then the machine is gone.
#[track_caller]
pub(crate) fn evict(host: &Host) {
    host.signal(libc::SIGTERM);
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(75));
    host.destroy();
}

#[track_caller]
pub(crate) fn wait_for_output(host: &Host, wanted: &str) {
    host.stdout()
        .wait_for_line(wanted, LIMIT, |line| line.contains(wanted));
}

/// The numbers of complete `line N` lines, which have to be the whole text.
#[track_caller]
pub(crate) fn numbers(text: &str) -> Vec<u64> {
    text.lines()
        .map(|line| {
            let number = line
                .strip_prefix("line ")
                .and_then(|number| number.parse().ok());
            number.unwrap_or_else(|| panic!("{line:?} is no line of the counter"))
        })
        .collect()
}

#[track_caller]
pub(crate) fn assert_counts(text: &str, last: Option<u64>) {
    let found = numbers(text);
    let expected = (1..)
        .zip(&found)
        .find(|(expected, found)| expected != *found);
    assert_eq!(expected, None, "a line is missing or repeated");
    if let Some(last) = last {
        assert_eq!(found.last(), Some(&last));
    }
}

/// A number from the newest log line with this message.
#[track_caller]
pub(crate) fn told(host: &Host, message: &str, figure: &str) -> u64 {
    let lines = host.stderr().lines();
    let line = lines.iter().rfind(|line| line.contains(message));
    let line: serde_json::Value =
        serde_json::from_str(line.expect("it was logged")).expect("the log is JSON");
    line[figure].as_u64().expect("it is a number")
}

/// What the newest checkpoint says of itself.
#[track_caller]
pub(crate) fn told_of_checkpoint(host: &Host, figure: &str) -> u64 {
    told(host, "checkpoint is durable", figure)
}

/// Waits until the app runs again, and returns it.
#[track_caller]
pub(crate) fn resumed(host: &Host) -> harness::Process {
    wait_for_log(host, "the job is resumed");
    host.processes()
        .into_iter()
        .find(|process| process.parent == 1 && process.pid > 300)
        .expect("the app is a child of the supervisor")
}

#[track_caller]
pub(crate) fn wait_for_log(host: &Host, wanted: &str) -> String {
    host.stderr()
        .wait_for_line(wanted, LIMIT, |line| line.contains(wanted))
}

#[track_caller]
pub(crate) fn checkpoint(host: &Host) -> harness::Ran {
    host.exec(["reprieve", "checkpoint", "--leave-running"])
}

#[track_caller]
pub(crate) fn checkpoint_ok(host: &Host) {
    let ran = checkpoint(host);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
}

/// Tells the supervisor through its socket, as a script on the machine may.
#[track_caller]
pub(crate) fn notice(host: &Host, line: &serde_json::Value) {
    let program = "import socket,sys\ns = socket.socket(socket.AF_UNIX)\n\
                   s.connect('/run/reprieve/control.sock')\ns.sendall(sys.argv[1].encode() + b'\\n')\n\
                   print(s.recv(65536).decode())";
    let answer = host.exec_ok(["python3", "-c", program, &line.to_string()]);
    assert!(answer.contains("noted"), "{answer}");
}

/// What `memory.py` says of its memory when it gets this signal.
#[track_caller]
pub(crate) fn digest(host: &Host, signal: i32) -> String {
    let mark = host.stdout().mark();
    let app = host
        .processes()
        .into_iter()
        .find(|process| process.parent == 1 && process.pid > 300);
    host.signal_process(app.expect("the app runs").pid, signal);
    host.stdout()
        .wait_for_line_after(mark, "a digest", LIMIT, |line| line.starts_with("digest"))
}

/// The document as a later version may write it.
pub(crate) fn of_a_later_version(bytes: &[u8], kind: &'static str) -> Vec<u8> {
    let text = std::str::from_utf8(bytes).expect("documents are text");
    let json = text.lines().nth(1).expect("it has three lines");
    let json: serde_json::Value = serde_json::from_str(json).expect("the second is JSON");
    document::seal(kind, 99, &json)
}

/// Where the host serves, which is on the test's own network.
#[track_caller]
pub(crate) fn address(host: &Host) -> String {
    let line = wait_for_log(host, "metrics and the status page are served");
    let line: serde_json::Value = serde_json::from_str(&line).expect("the log is JSON");
    line["bound"].as_str().expect("it is an address").to_owned()
}

/// Status line, head and body of an answer.
#[track_caller]
pub(crate) fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("it has a head");
    (head.to_owned(), body.to_owned())
}
