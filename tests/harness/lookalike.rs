//! Look-alikes of AWS and of Azure's blob storage, each on a port of its own: the real HTTP, the real conditional writes,
//! gone with the test.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use object_store::azure::{AzureAccessKey, AzureAuthorizer, AzureCredential};
use object_store::client::HttpRequestBody;

use super::project_path;

/// The server of `infra/local/aws-lookalike`. It ends when this is dropped, and with this program at the latest.
pub(crate) struct Lookalike {
    /// None for one that somebody else started.
    child: Option<Child>,
    pub(crate) url: String,
    region: String,
}

impl Lookalike {
    pub(crate) fn start() -> Self {
        Self::start_script("infra/local/aws-lookalike")
    }

    fn start_script(script: &str) -> Self {
        let script = project_path(script);
        let mut child = Command::new(&script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{} does not start: {e}", script.display()));
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        stdout.read_line(&mut line).expect("its output can be read");
        match line.trim_end().strip_prefix("ready ") {
            Some(url) => Self {
                url: url.to_owned(),
                child: Some(child),
                region: "us-east-1".to_owned(),
            },
            None => panic!(
                "{} ended without getting ready, see its messages",
                script.display()
            ),
        }
    }

    /// One that somebody else started and ends, with what is in this region.
    pub(crate) fn at(url: &str, region: &str) -> Self {
        Self {
            child: None,
            url: url.to_owned(),
            region: region.to_owned(),
        }
    }

    pub(crate) fn make_bucket(&self, bucket: &str) {
        self.ask("PUT", &format!("/{bucket}"));
    }

    /// The keys in a bucket, in order. No more than a listing's first page, which is more than tests store.
    pub(crate) fn keys(&self, bucket: &str) -> Vec<String> {
        let listing = self.ask("GET", &format!("/{bucket}?list-type=2"));
        let listing = String::from_utf8(listing).expect("listings are text");
        listing
            .split("<Key>")
            .skip(1)
            .filter_map(|rest| rest.split("</Key>").next())
            .map(str::to_owned)
            .collect()
    }

    pub(crate) fn object(&self, bucket: &str, key: &str) -> Vec<u8> {
        self.ask("GET", &format!("/{bucket}/{key}"))
    }

    pub(crate) fn put_object(&self, bucket: &str, key: &str, bytes: &[u8]) {
        self.send("PUT", &format!("/{bucket}/{key}"), "s3", "", bytes);
    }

    /// Makes a key of KMS and returns its id.
    pub(crate) fn make_kms_key(&self) -> String {
        let head =
            "X-Amz-Target: TrentService.CreateKey\r\nContent-Type: application/x-amz-json-1.1\r\n";
        let answer = self.send("POST", "/", "kms", head, b"{}");
        let answer: serde_json::Value = serde_json::from_slice(&answer).expect("it is JSON");
        let id = answer["KeyMetadata"]["KeyId"].as_str();
        id.expect("a key has an id").to_owned()
    }

    /// Calls SQS, which must succeed.
    pub(crate) fn sqs(&self, action: &str, request: &serde_json::Value) -> serde_json::Value {
        let head = format!(
            "X-Amz-Target: AmazonSQS.{action}\r\nContent-Type: application/x-amz-json-1.0\r\n"
        );
        let answer = self.send("POST", "/", "sqs", &head, request.to_string().as_bytes());
        match answer.is_empty() {
            true => serde_json::Value::Null,
            false => serde_json::from_slice(&answer).expect("SQS speaks JSON"),
        }
    }

    /// Makes a queue and returns its URL.
    pub(crate) fn make_queue(&self, name: &str) -> String {
        let made = self.sqs("CreateQueue", &serde_json::json!({"QueueName": name}));
        let url = made["QueueUrl"].as_str().expect("it has a URL");
        // It names itself by the host that asked.
        url.to_owned()
    }

    /// Calls EC2 with a form, which must succeed, and returns the XML.
    pub(crate) fn ec2(&self, form: &str) -> String {
        let head = "Content-Type: application/x-www-form-urlencoded\r\n";
        let answer = self.send(
            "POST",
            "/",
            "ec2",
            head,
            format!("{form}&Version=2016-11-15").as_bytes(),
        );
        String::from_utf8(answer).expect("XML is text")
    }

    /// Starts an instance and returns its id.
    pub(crate) fn make_instance(&self) -> String {
        let made = self.ec2("Action=RunInstances&ImageId=ami-12c6146b&MinCount=1&MaxCount=1");
        between(&made, "instanceId").expect("there is one")
    }

    /// The tags of an instance.
    pub(crate) fn tags_of(&self, instance: &str) -> BTreeMap<String, String> {
        let filter = "Action=DescribeTags&Filter.1.Name=resource-id&Filter.1.Value.1";
        let answer = self.ec2(&format!("{filter}={instance}"));
        let items = answer.split("<item>").skip(1);
        items
            .filter_map(|item| Some((between(item, "key")?, between(item, "value")?)))
            .collect()
    }

    /// Gives EventBridge an event, as the service `source` would.
    pub(crate) fn put_event(&self, source: &str, kind: &str, detail: &serde_json::Value) {
        let entry =
            serde_json::json!({"Source": source, "DetailType": kind, "Detail": detail.to_string()});
        let request = serde_json::json!({ "Entries": [entry] });
        let head =
            "X-Amz-Target: AWSEvents.PutEvents\r\nContent-Type: application/x-amz-json-1.1\r\n";
        let answer = self.send("POST", "/", "events", head, request.to_string().as_bytes());
        let answer: serde_json::Value = serde_json::from_slice(&answer).expect("it is JSON");
        assert_eq!(answer["FailedEntryCount"], 0, "{answer}");
    }

    /// The body of the answer to a request that must succeed.
    fn ask(&self, method: &str, path: &str) -> Vec<u8> {
        self.send(method, path, "s3", "", b"")
    }

    fn send(&self, method: &str, path: &str, service: &str, more: &str, body: &[u8]) -> Vec<u8> {
        let host = self.url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(host).expect("it listens");
        // Any credentials are taken, but without any the objects are private.
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\nConnection: close\r\n{more}\
             Authorization: AWS4-HMAC-SHA256 Credential=a/20260101/{}/{service}/aws4_request, \
             SignedHeaders=host, Signature=0\r\n\r\n",
            body.len(),
            self.region
        );
        let whole = [head.as_bytes(), body].concat();
        stream.write_all(&whole).expect("it reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("it answers");
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
        let end = end.expect("an answer has a head") + 4;
        let head = String::from_utf8_lossy(&answer[..end]);
        assert!(
            head.starts_with("HTTP/1.1 200 "),
            "{method} {path}: {head}{}",
            String::from_utf8_lossy(&answer[end..])
        );
        answer.split_off(end)
    }
}

/// The server of `infra/local/azure-lookalike`, likewise.
pub(crate) struct Azurite {
    server: Lookalike,
}

impl Azurite {
    pub(crate) const ACCOUNT: &str = "devstoreaccount1";
    /// Azurite's own, which is printed in its manual.
    pub(crate) const KEY: &str =
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

    pub(crate) fn start() -> Self {
        Self {
            server: Lookalike::start_script("infra/local/azure-lookalike"),
        }
    }

    /// Below which the containers are.
    pub(crate) fn url(&self) -> &str {
        &self.server.url
    }

    /// Answers to an unsigned request are refused, so the library that signs for the worker signs this as well.
    pub(crate) fn make_container(&self, container: &str) {
        let path = format!("{}/{container}?restype=container", self.url());
        let key = AzureAccessKey::try_new(Self::KEY).expect("it is base64");
        let credential = AzureCredential::AccessKey(key);
        let request = hyper::Request::put(path).header("content-length", "0");
        let mut request = request
            .body(HttpRequestBody::empty())
            .expect("it is well formed");
        AzureAuthorizer::new(&credential, Self::ACCOUNT)
            .try_authorize(&mut request)
            .expect("it can be signed");
        let uri = request.uri();
        let host = uri.authority().expect("it has a host").as_str();
        let path = uri.path_and_query().expect("it has a path");
        let mut head = format!("PUT {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
        for (name, value) in request.headers() {
            head += &format!("{name}: {}\r\n", value.to_str().expect("it is text"));
        }
        let mut stream = TcpStream::connect(host).expect("it listens");
        stream
            .write_all(format!("{head}\r\n").as_bytes())
            .expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    }
}

impl Drop for Lookalike {
    fn drop(&mut self) {
        // Only our own child; it keeps nothing that a kill could break.
        if let Some(child) = &mut self.child {
            child.kill().expect("it is ours");
            child.wait().expect("it was killed");
        }
    }
}

/// The text of the first element of this name.
fn between(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0.to_owned())
}

/// Makes `cert.pem` and `key.pem`, a certificate for this machine that nobody else has signed.
pub(crate) fn self_signed(directory: &std::path::Path) {
    let made = std::process::Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ])
        .args([
            "-subj",
            "/CN=127.0.0.1",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(directory)
        .output()
        .expect("openssl is installed");
    assert!(made.status.success(), "{made:?}");
}

/// The collector of `infra/local/otlp-collector`, which reads traces with OpenTelemetry's own definitions.
pub(crate) struct Collector {
    child: Child,
    pub(crate) url: String,
    told: std::sync::mpsc::Receiver<serde_json::Value>,
}

impl Collector {
    /// With TLS if there is a directory with what [`self_signed`] makes.
    pub(crate) fn start(certificate: Option<&std::path::Path>) -> Self {
        let script = project_path("infra/local/otlp-collector");
        let files =
            certificate.map(|directory| ["cert.pem", "key.pem"].map(|name| directory.join(name)));
        let mut child = Command::new(&script)
            .args(files.into_iter().flatten())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{} does not start: {e}", script.display()));
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let first = lines.next().expect("it says when it is ready");
        let first = first.expect("its output can be read");
        let url = first
            .strip_prefix("ready ")
            .expect("it is ready")
            .to_owned();
        let (sender, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let told = serde_json::from_str(&line).expect("it is JSON");
                // The test may have heard enough.
                drop(sender.send(told));
            }
        });
        Self { child, url, told }
    }

    /// What is posted next: `path`, `headers`, `body`.
    #[track_caller]
    pub(crate) fn next(&self) -> serde_json::Value {
        let told = self.told.recv_timeout(super::LIMIT);
        told.expect("something is posted")
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // Only our own child.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
