//! The look-alike of the metadata services on ports of its own: told what to tell, gone with the test.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

/// The server of `infra/local/reprieve-lab`. It ends when this is dropped, and with this program at the latest.
pub(crate) struct Lab {
    child: Child,
    /// Where all services are.
    pub(crate) url: String,
    admin: String,
}

impl Lab {
    pub(crate) fn start() -> Self {
        Self::start_at("127.0.0.1", 0)
    }

    /// The same, at a port where one was before, for instance.
    pub(crate) fn start_at(host: &str, port: u16) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/local/reprieve-lab");
        let mut child = Command::new(&script)
            .args(["serve", "--host", host, "--port", &port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{} does not start: {e}", script.display()));
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        stdout.read_line(&mut line).expect("its output can be read");
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["ready", url, "admin", admin] = words[..] else {
            panic!("{} ended without getting ready", script.display());
        };
        Self {
            url: url.to_owned(),
            admin: admin.to_owned(),
            child,
        }
    }

    /// Where it listens, without the scheme.
    pub(crate) fn authority(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    pub(crate) fn port(&self) -> u16 {
        let port = self
            .url
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok());
        port.expect("it has a port")
    }

    /// Tells something: `{"kind": "spot", "in": 120}` and the like. Returns it with its number and time.
    #[track_caller]
    pub(crate) fn notice(&self, cue: Value) -> Value {
        self.admin("POST", "/notice", Some(cue))
    }

    /// What a person would type after its name; what it prints.
    #[track_caller]
    pub(crate) fn by_hand(&self, arguments: &[&str]) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/local/reprieve-lab");
        let output = Command::new(script)
            .env("REPRIEVE_LAB_ADMIN", &self.admin)
            .args(arguments)
            .output()
            .expect("it was started before");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("it is text")
    }

    #[track_caller]
    pub(crate) fn clear(&self, kind: &str) {
        self.admin("POST", "/clear", Some(json!({ "kind": kind })));
    }

    /// Misbehaves: `{"name": "throttle", "times": 3}` and the like.
    #[track_caller]
    pub(crate) fn fault(&self, cue: Value) {
        self.admin("POST", "/fault", Some(cue));
    }

    #[track_caller]
    pub(crate) fn mend(&self) {
        self.admin("POST", "/mend", Some(json!({})));
    }

    #[track_caller]
    pub(crate) fn facts(&self, facts: Value) {
        self.admin("POST", "/facts", Some(facts));
    }

    /// Requests after the one with this number, in the order of arrival.
    #[track_caller]
    pub(crate) fn requests(&self, since: u64) -> Vec<Value> {
        let asked = self.admin("GET", &format!("/requests?since={since}"), None);
        asked.as_array().cloned().expect("it is a list")
    }

    /// Calls of Auto Scaling, and acknowledgements to Azure.
    #[track_caller]
    pub(crate) fn actions(&self) -> Vec<Value> {
        let called = self.admin("GET", "/actions", None);
        called.as_array().cloned().expect("it is a list")
    }

    #[track_caller]
    fn admin(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let body = body.map_or_else(String::new, |body| body.to_string());
        let (head, answer) = exchange(&self.admin, method, path, &[], &body);
        assert!(
            head.starts_with("HTTP/1.1 200"),
            "{method} {path} {body}: {head}{answer}"
        );
        serde_json::from_str(&answer).expect("it answers in JSON")
    }

    /// One request as anybody could send it to the services; returns head and body of the answer.
    #[track_caller]
    pub(crate) fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (String, String) {
        exchange(&self.url, method, path, headers, body)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Only our own child; it keeps nothing that a kill could break.
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it was killed");
    }
}

#[track_caller]
fn exchange(
    url: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (String, String) {
    let host = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(host).expect("it listens");
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    for (name, value) in headers {
        write!(request, "{name}: {value}\r\n").expect("strings take everything");
    }
    write!(request, "Content-Length: {}\r\n\r\n{body}", body.len())
        .expect("strings take everything");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .expect("it answers in text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    (head.to_owned(), body.to_owned())
}
