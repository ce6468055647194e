//! Traces: what a worker did and how long each step took, sent to a collector that speaks OTLP.
//!
//! Each checkpoint is a trace of its own, with a span for each step. What the worker does before, its restores, belongs to
//! the trace of the worker itself, whose span ends with it and to which those of checkpoints are linked. Spans are made
//! from the journal when what they tell of has ended, and go through a bounded queue: a collector that is slow or gone
//! costs spans and a line of the log, never time.
//!
//! OTLP over HTTP, over the client that there is and its certificates; where to and how is said by OpenTelemetry's own
//! variables. OpenTelemetry's crates would bring seven more crates, a thread, and an exporter that does not run on this
//! runtime without an experimental feature.

pub mod otlp;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use aws_smithy_http_client::tls::TrustStore;
use aws_smithy_runtime_api::client::http::SharedHttpConnector;
use bytes::Bytes;
use prost::Message as _;
use reprieve_hooks::callout::{self, PostError};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use url::Url;

use crate::aws;
use crate::host;
use crate::settings::Settings;
use crate::store::s3;
use crate::supervisor::with_causes;

/// Checkpoints and restores that wait to be sent.
const WAITING: usize = 64;

/// Sent at once.
const BATCH: usize = 16;

/// For a connection, with TLS.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// How long the collector may take, unless OTEL_EXPORTER_OTLP_TIMEOUT says otherwise.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A trace, by a number that nobody else has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(u128);

/// A span in its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanId(u64);

impl TraceId {
    pub fn fresh() -> Self {
        Self(fastrand::u128(1..))
    }
}

impl SpanId {
    pub fn fresh() -> Self {
        Self(fastrand::u64(1..))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Something that took its time and is over.
#[derive(Clone, Debug)]
pub struct Span {
    pub trace: TraceId,
    pub id: SpanId,
    pub parent: Option<SpanId>,
    pub link: Option<(TraceId, SpanId)>,
    pub name: &'static str,
    /// Since the Unix epoch.
    pub from_ms: u64,
    pub to_ms: u64,
    /// Plain values by name; those that are null are left out.
    pub attributes: Value,
    /// Why it did not succeed.
    pub problem: Option<String>,
}

/// Where spans are handed in. Clones hand in to the same.
#[derive(Clone, Debug)]
pub struct Traces {
    queue: mpsc::Sender<Vec<Span>>,
    share: Share,
}

/// Sends what was handed in.
#[derive(Debug)]
pub struct Sending(JoinHandle<()>);

/// Why spans were not taken.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("the collector did not take them")]
    Post(#[from] PostError),
    #[error("the collector does not answer within {0:?}")]
    Silent(Duration),
}

/// Why none can be sent.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
enum Unusable {
    /// The address may have a password in it.
    #[error("{0} is not an address of the form http://HOST:PORT or https://HOST")]
    Address(&'static str),
    #[error("OTLP is spoken over HTTP, with http/protobuf or http/json, not with {0:?}")]
    Protocol(String),
    #[error("{0} is not a list of the form NAME=VALUE,NAME=VALUE")]
    Headers(String),
    #[error("the certificates in {0} cannot be read")]
    Certificates(String),
    #[error("OTEL_EXPORTER_OTLP_TIMEOUT is not a number of milliseconds")]
    Timeout,
}

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Protobuf,
    Json,
}

impl Encoding {
    fn content_type(self) -> &'static str {
        match self {
            Self::Protobuf => "application/x-protobuf",
            Self::Json => "application/json",
        }
    }

    fn encode(self, request: &otlp::Request) -> Bytes {
        match self {
            Self::Protobuf => request.encode_to_vec().into(),
            Self::Json => serde_json::to_vec(request).expect("plain values").into(),
        }
    }
}

/// Of all traces, those with an identity below this are sent: the same ones by every program that goes by this rule.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Share(f64);

impl Share {
    fn has(self, trace: TraceId) -> bool {
        let low = (trace.0 & u128::from(u64::MAX)) as f64;
        low < self.0 * 2_f64.powi(64)
    }
}

/// Where to, and how.
#[derive(Clone, Debug, PartialEq)]
struct Collector {
    url: String,
    encoding: Encoding,
    headers: Vec<(String, String)>,
    /// A file with certificates that are trusted, and no others.
    certificates: Option<String>,
    limit: Duration,
    share: Share,
}

impl Collector {
    /// As settings and OpenTelemetry's variables say. `None`: nowhere.
    fn find(
        given: Option<&Url>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, Unusable> {
        let is = |name: &str, wanted: &str| {
            environment(name).is_some_and(|value| value.eq_ignore_ascii_case(wanted))
        };
        if is("OTEL_SDK_DISABLED", "true") {
            return Ok(None);
        }
        // What is said of traces counts more than what is said of everything.
        let of_exporter = |what: &str| {
            let traces = environment(&format!("OTEL_EXPORTER_OTLP_TRACES_{what}"));
            traces.or_else(|| environment(&format!("OTEL_EXPORTER_OTLP_{what}")))
        };
        let base = |url: String| format!("{}/v1/traces", url.trim_end_matches('/'));
        let (name, url) = if let Some(url) = given {
            ("--otlp-endpoint", base(url.to_string()))
        } else if environment("OTEL_TRACES_EXPORTER")
            .is_some_and(|exporters| !exporters.split(',').any(|one| one.trim() == "otlp"))
        {
            return Ok(None);
        } else if let Some(url) = environment("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", url)
        } else if let Some(url) = environment("OTEL_EXPORTER_OTLP_ENDPOINT") {
            ("OTEL_EXPORTER_OTLP_ENDPOINT", base(url))
        } else {
            return Ok(None);
        };
        let parsed = Url::parse(&url).ok();
        let usable = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
        if !parsed.as_ref().is_some_and(usable) {
            return Err(Unusable::Address(name));
        }
        let encoding = match of_exporter("PROTOCOL").as_deref() {
            None | Some("http/protobuf") => Encoding::Protobuf,
            Some("http/json") => Encoding::Json,
            // The variable is the app's; the address is ours.
            Some("grpc") if given.is_some() => Encoding::Protobuf,
            Some(other) => return Err(Unusable::Protocol(other.to_owned())),
        };
        let limit = match of_exporter("TIMEOUT").map(|limit| limit.parse()) {
            None => ANSWER_LIMIT,
            Some(Ok(limit)) => Duration::from_millis(limit),
            Some(Err(_)) => return Err(Unusable::Timeout),
        };
        let ratio = || {
            let ratio = environment("OTEL_TRACES_SAMPLER_ARG")?
                .parse::<f64>()
                .ok()?;
            (0.0..=1.0).contains(&ratio).then_some(ratio)
        };
        // Nothing of ours has a parent elsewhere.
        let share = match environment("OTEL_TRACES_SAMPLER").as_deref() {
            Some("always_off" | "parentbased_always_off") => return Ok(None),
            Some("traceidratio" | "parentbased_traceidratio") => ratio().unwrap_or(1.0),
            _ => 1.0,
        };
        Ok(Some(Self {
            url,
            encoding,
            headers: headers(&of_exporter("HEADERS").unwrap_or_default())?,
            certificates: of_exporter("CERTIFICATE"),
            limit,
            share: Share(share),
        }))
    }

    fn connector(&self) -> Result<SharedHttpConnector, Unusable> {
        let trusted = match &self.certificates {
            None => s3::trust_store(),
            Some(path) => {
                let unreadable = || Unusable::Certificates(path.clone());
                let pem = std::fs::read(Path::new(path)).map_err(|_| unreadable())?;
                // What is none would be found out by a panic of the client's.
                let found = rustls_native_certs::load_certs_from_paths(Some(Path::new(path)), None);
                if found.certs.is_empty() || !found.errors.is_empty() {
                    return Err(unreadable());
                }
                TrustStore::empty().with_pem_certificate(pem)
            }
        };
        Ok(aws::connector_that_trusts(trusted, CONNECT_LIMIT))
    }
}

/// `NAME=VALUE,NAME=VALUE`, with values as in URLs.
fn headers(list: &str) -> Result<Vec<(String, String)>, Unusable> {
    let pairs = list.split(',').filter(|pair| !pair.trim().is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let (name, value) = (name.trim().to_ascii_lowercase(), unescaped(value.trim())?);
            let sent = |name: &str, value: &str| {
                let header = hyper::header::HeaderName::try_from(name);
                header.is_ok() && hyper::header::HeaderValue::try_from(value).is_ok()
            };
            sent(&name, &value).then_some((name, value))
        })
        .collect::<Option<Vec<_>>>()
        // They are secrets and are not repeated.
        .ok_or_else(|| Unusable::Headers("OTEL_EXPORTER_OTLP_HEADERS".to_owned()))
}

/// A text as it stands in URLs.
fn unescaped(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut found = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        found.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(found).ok()
}

/// Begins to send, if there is a collector. Needs a runtime.
pub fn start(settings: &Settings) -> Option<(Traces, Sending)> {
    let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let found =
        Collector::find(settings.otlp_endpoint.as_ref(), environment).and_then(|collector| {
            let with_connector = |collector: Collector| {
                let http = collector.connector()?;
                Ok((collector, http))
            };
            collector.map(with_connector).transpose()
        });
    let (collector, http) = match found {
        Ok(found) => found?,
        Err(error) => {
            // It may be meant for the app alone.
            tracing::warn!(%error, "no traces are sent");
            return None;
        }
    };
    let resource = resource(&settings.job, environment);
    let (sender, spans) = mpsc::channel(WAITING);
    let share = collector.share;
    let sending = tokio::spawn(send_all(collector, http, resource, spans));
    let traces = Traces {
        queue: sender,
        share,
    };
    Some((traces, Sending(sending)))
}

impl Traces {
    /// Hands spans in, which are sent together, or lost if there is no room.
    pub fn hand_in(&self, mut spans: Vec<Span>) {
        spans.retain(|span| self.share.has(span.trace));
        if !spans.is_empty() {
            drop(self.queue.try_send(spans));
        }
    }
}

impl Sending {
    /// Waits until everything is sent, when all [`Traces`] are gone.
    pub async fn finish(self, limit: Duration) {
        if timeout(limit, self.0).await.is_err() {
            not_sent(&format!("it took longer than {limit:?}"));
        }
    }
}

fn not_sent(reason: &str) {
    tracing::warn!(reason, "traces could not be sent");
}

async fn send_all(
    collector: Collector,
    http: SharedHttpConnector,
    resource: otlp::Resource,
    mut spans: mpsc::Receiver<Vec<Span>>,
) {
    let mut failing = false;
    let mut batch: Vec<Vec<Span>> = Vec::new();
    while spans.recv_many(&mut batch, BATCH).await > 0 {
        let together: Vec<Span> = batch.drain(..).flatten().collect();
        let request = request(&resource, &together);
        match send(&collector, &http, &request).await {
            Ok(()) => failing = false,
            // Once is enough until it works again.
            Err(_) if failing => {}
            Err(error) => {
                failing = true;
                not_sent(&with_causes(&error));
            }
        }
    }
}

async fn send(
    collector: &Collector,
    http: &SharedHttpConnector,
    request: &otlp::Request,
) -> Result<(), SendError> {
    let mut headers: Vec<(&str, &str)> = vec![("content-type", collector.encoding.content_type())];
    let more = collector.headers.iter();
    headers.extend(more.map(|(name, value)| (name.as_str(), value.as_str())));
    let body = collector.encoding.encode(request);
    let posted = callout::post(http, &collector.url, &headers, body);
    match timeout(collector.limit, posted).await {
        Ok(posted) => Ok(posted?),
        Err(_) => Err(SendError::Silent(collector.limit)),
    }
}

/// Who speaks: names that OpenTelemetry gives, and what the environment adds.
fn resource(job: &str, environment: impl Fn(&str) -> Option<String>) -> otlp::Resource {
    let mut facts = json!({
        "service.name": "reprieve",
        "service.version": env!("CARGO_PKG_VERSION"),
        "host.name": host::hostname(),
        "reprieve.job": job,
    });
    let more = environment("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    for (name, value) in more.split(',').filter_map(|pair| pair.split_once('=')) {
        let value = value.trim();
        facts[name.trim()] = unescaped(value).unwrap_or_else(|| value.to_owned()).into();
    }
    if let Some(service) = environment("OTEL_SERVICE_NAME") {
        facts["service.name"] = service.into();
    }
    otlp::Resource {
        attributes: otlp::attributes(&facts),
    }
}

fn request(resource: &otlp::Resource, spans: &[Span]) -> otlp::Request {
    otlp::Request {
        resource_spans: vec![otlp::ResourceSpans {
            resource: Some(resource.clone()),
            scope_spans: vec![otlp::ScopeSpans {
                scope: Some(otlp::Scope {
                    name: "reprieve".to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                }),
                spans: spans.iter().map(Span::to_otlp).collect(),
            }],
        }],
    }
}

impl Span {
    fn to_otlp(&self) -> otlp::Span {
        const INTERNAL: i32 = 1;
        const OK: i32 = 1;
        const ERROR: i32 = 2;
        let trace = |TraceId(number): TraceId| number.to_be_bytes().to_vec();
        let span = |SpanId(number): SpanId| number.to_be_bytes().to_vec();
        let nanos = |ms: u64| ms.saturating_mul(1_000_000);
        otlp::Span {
            trace_id: trace(self.trace),
            span_id: span(self.id),
            parent_span_id: self.parent.map(span).unwrap_or_default(),
            name: self.name.to_owned(),
            kind: INTERNAL,
            start_time_unix_nano: nanos(self.from_ms),
            end_time_unix_nano: nanos(self.to_ms),
            attributes: otlp::attributes(&self.attributes),
            links: self
                .link
                .iter()
                .map(|(of, id)| otlp::Link {
                    trace_id: trace(*of),
                    span_id: span(*id),
                })
                .collect(),
            status: Some(otlp::Status {
                code: if self.problem.is_some() { ERROR } else { OK },
                message: self.problem.clone().unwrap_or_default(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_as_otlp_has_it() {
        let span = Span {
            trace: TraceId(0xabc),
            id: SpanId(2),
            parent: Some(SpanId(1)),
            link: Some((TraceId(5), SpanId(6))),
            name: "dump",
            from_ms: 1_700_000_000_123,
            to_ms: 1_700_000_000_124,
            attributes: json!({ "generation": 7, "outcome": "failed", "parent": null, "whole": false }),
            problem: Some("the store is full".into()),
        };
        assert_eq!(
            serde_json::to_value(span.to_otlp()).expect("plain values"),
            json!({
                "traceId": "00000000000000000000000000000abc",
                "spanId": "0000000000000002",
                "parentSpanId": "0000000000000001",
                "links": [{ "traceId": "00000000000000000000000000000005", "spanId": "0000000000000006" }],
                "name": "dump",
                "kind": 1,
                "startTimeUnixNano": "1700000000123000000",
                "endTimeUnixNano": "1700000000124000000",
                "attributes": [
                    { "key": "generation", "value": { "intValue": "7" } },
                    { "key": "outcome", "value": { "stringValue": "failed" } },
                    { "key": "whole", "value": { "boolValue": false } },
                ],
                "status": { "code": 2, "message": "the store is full" },
            })
        );
    }

    #[test]
    fn the_environment_names_the_service_and_adds_to_it() {
        let environment = |name: &str| match name {
            "OTEL_SERVICE_NAME" => Some("trainer".to_owned()),
            "OTEL_RESOURCE_ATTRIBUTES" => {
                Some("team=red, zone = a%2Cb,service.name=not-this".to_owned())
            }
            _ => None,
        };
        let resource = resource("nightly", environment);
        let resource = serde_json::to_string(&resource).expect("plain values");
        for wanted in [
            r#"{"key":"service.name","value":{"stringValue":"trainer"}}"#,
            r#"{"key":"reprieve.job","value":{"stringValue":"nightly"}}"#,
            r#"{"key":"team","value":{"stringValue":"red"}}"#,
            r#"{"key":"zone","value":{"stringValue":"a,b"}}"#,
        ] {
            assert!(resource.contains(wanted), "{wanted} is not in {resource}");
        }
    }

    fn found(
        variables: &[(&str, &str)],
        flag: Option<&str>,
    ) -> Result<Option<Collector>, Unusable> {
        let flag = flag.map(|url| Url::parse(url).expect("a URL"));
        Collector::find(flag.as_ref(), |name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn opentelemetrys_variables_say_where_to_and_how() {
        const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318/x/");
        assert_eq!(found(&[], None), Ok(None));
        let usual = found(&[ENDPOINT], None).expect("usable").expect("one");
        assert_eq!(usual.url, "https://collector:4318/x/v1/traces");
        assert_eq!(
            (usual.encoding, usual.limit, usual.headers.len()),
            (Encoding::Protobuf, ANSWER_LIMIT, 0)
        );
        let all = [
            ENDPOINT,
            (
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                "http://traces/as-it-is",
            ),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "Authorization=Bearer%20x%3D, api-key = y=z ,",
            ),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1500"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
            ("OTEL_TRACES_EXPORTER", "console, otlp"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ];
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            found(&all, None),
            Ok(Some(Collector {
                url: "http://traces/as-it-is".into(),
                encoding: Encoding::Json,
                headers: vec![
                    header("authorization", "Bearer x="),
                    header("api-key", "y=z")
                ],
                certificates: Some("/ca.pem".into()),
                limit: Duration::from_millis(1500),
                share: Share(0.25),
            }))
        );
        // The address of the flag is ours, whatever the app speaks with its own.
        let ours = found(&[ENDPOINT, all[2]], Some("http://127.0.0.1:4318"));
        let ours = ours.expect("usable").expect("one");
        assert_eq!(
            (ours.url.as_str(), ours.encoding),
            ("http://127.0.0.1:4318/v1/traces", Encoding::Protobuf)
        );
        for off in [
            ("OTEL_SDK_DISABLED", "True"),
            ("OTEL_TRACES_EXPORTER", "none"),
            ("OTEL_TRACES_SAMPLER", "always_off"),
        ] {
            assert_eq!(found(&[ENDPOINT, off], None), Ok(None), "{off:?}");
        }
        for (name, value, said) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "\"grpc\""),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a secret", "NAME=VALUE"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=secret%0a", "NAME=VALUE"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "milliseconds"),
            (
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                "secret:4318",
                "TRACES_ENDPOINT",
            ),
        ] {
            let refused = found(&[ENDPOINT, (name, value)], None);
            let text = refused.expect_err("it cannot be used").to_string();
            assert!(text.contains(said) && !text.contains("secret"), "{text}");
        }
    }

    #[test]
    fn a_share_of_all_traces_is_sent() {
        let of = |share: f64| {
            let traces = (0..2_000).map(|_| TraceId::fresh());
            traces.filter(|trace| Share(share).has(*trace)).count()
        };
        assert_eq!((of(0.0), of(1.0)), (0, 2_000));
        assert!((300..700).contains(&of(0.25)));
    }
}
