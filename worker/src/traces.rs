//! Traces: what a worker did and how long each step took, sent to a collector that speaks OTLP.
//!
//! Each checkpoint is a trace of its own, with a span for each step. What the worker does before, its restores, belongs to
//! the trace of the worker itself, whose span ends with it and to which those of checkpoints are linked. Spans are made
//! from the journal when what they tell of has ended, and go through a bounded queue: a collector that is slow or gone
//! costs spans and a line of the log, never time.
//!
//! OTLP over HTTP with JSON bodies, a stable encoding, over the client that there is. OpenTelemetry's own crates would
//! bring seven more crates, a thread, and an exporter that does not run on this runtime without an experimental feature.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use reprieve_hooks::http::{Client, Endpoint, HttpError, Limits};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::host;
use crate::settings::Settings;
use crate::supervisor::with_causes;

/// Checkpoints and restores that wait to be sent.
const WAITING: usize = 64;

/// Sent at once.
const BATCH: usize = 16;

/// How long the collector may take.
const LIMITS: Limits = Limits {
    connect: Duration::from_secs(2),
    answer: Duration::from_secs(5),
};

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
pub struct Traces(mpsc::Sender<Vec<Span>>);

/// Sends what was handed in.
#[derive(Debug)]
pub struct Sending(JoinHandle<()>);

/// Why spans were not taken.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("the collector was not reached")]
    Http(#[from] HttpError),
    #[error("the collector answers {0}")]
    Refused(hyper::StatusCode),
}

/// Where to, as settings and the environment say. `None`: nowhere.
fn collector(settings: &Settings, environment: impl Fn(&str) -> Option<String>) -> Option<String> {
    if environment("OTEL_SDK_DISABLED").is_some_and(|value| value == "true") {
        return None;
    }
    let base = |url: String| format!("{}/v1/traces", url.trim_end_matches('/'));
    let given = settings.otlp_endpoint.as_ref();
    given
        .map(|url| base(url.to_string()))
        .or_else(|| environment("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))
        .or_else(|| environment("OTEL_EXPORTER_OTLP_ENDPOINT").map(base))
}

/// Begins to send, if there is a collector. Needs a runtime.
pub fn start(settings: &Settings) -> Option<(Traces, Sending)> {
    let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let url = collector(settings, environment)?;
    let endpoint = match Endpoint::parse(&url) {
        Ok(endpoint) => endpoint,
        Err(error) => {
            // It may be meant for the app alone.
            tracing::warn!(%error, "no traces are sent");
            return None;
        }
    };
    let resource = resource(&settings.job, environment);
    let (sender, spans) = mpsc::channel(WAITING);
    let client = Client::new(endpoint, LIMITS);
    let sending = tokio::spawn(send_all(client, resource, spans));
    Some((Traces(sender), Sending(sending)))
}

impl Traces {
    /// Hands spans in, which are sent together, or lost if there is no room.
    pub fn hand_in(&self, spans: Vec<Span>) {
        drop(self.0.try_send(spans));
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

async fn send_all(mut client: Client, resource: Value, mut spans: mpsc::Receiver<Vec<Span>>) {
    let mut failing = false;
    let mut batch: Vec<Vec<Span>> = Vec::new();
    while spans.recv_many(&mut batch, BATCH).await > 0 {
        let together: Vec<Span> = batch.drain(..).flatten().collect();
        let body = body(&resource, &together);
        match send(&mut client, body).await {
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

async fn send(client: &mut Client, body: Bytes) -> Result<(), SendError> {
    let headers = [("content-type", "application/json")];
    let answer = client.request(Method::POST, "", &headers, body).await?;
    match answer.status.is_success() {
        true => Ok(()),
        false => Err(SendError::Refused(answer.status)),
    }
}

/// Who speaks: names that OpenTelemetry gives, and what the environment adds.
fn resource(job: &str, environment: impl Fn(&str) -> Option<String>) -> Value {
    let service = environment("OTEL_SERVICE_NAME").unwrap_or_else(|| "reprieve".to_owned());
    let mut facts = json!({
        "service.name": service,
        "service.version": env!("CARGO_PKG_VERSION"),
        "host.name": host::hostname(),
        "reprieve.job": job,
    });
    let more = environment("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    for (name, value) in more.split(',').filter_map(|pair| pair.split_once('=')) {
        facts[name.trim()] = value.trim().into();
    }
    json!({ "attributes": attributes(&facts) })
}

/// As OTLP has them.
fn attributes(facts: &Value) -> Vec<Value> {
    let facts = facts.as_object().into_iter().flatten();
    let typed = |value: &Value| match value {
        Value::Null => None,
        Value::Bool(value) => Some(json!({ "boolValue": value })),
        // 64 bits do not fit into JavaScript's numbers: OTLP has them as text.
        Value::Number(number) if number.is_u64() => Some(json!({ "intValue": number.to_string() })),
        Value::String(text) => Some(json!({ "stringValue": text })),
        other => Some(json!({ "stringValue": other.to_string() })),
    };
    facts
        .filter_map(|(name, value)| Some(json!({ "key": name, "value": typed(value)? })))
        .collect()
}

fn body(resource: &Value, spans: &[Span]) -> Bytes {
    let spans: Vec<Value> = spans.iter().map(Span::to_json).collect();
    let scope = json!({ "name": "reprieve", "version": env!("CARGO_PKG_VERSION") });
    let request = json!({
        "resourceSpans": [{
            "resource": resource,
            "scopeSpans": [{ "scope": scope, "spans": spans }],
        }],
    });
    request.to_string().into()
}

impl Span {
    fn to_json(&self) -> Value {
        const INTERNAL: u8 = 1;
        const OK: u8 = 1;
        const ERROR: u8 = 2;
        let nanos = |ms: u64| (u128::from(ms) * 1_000_000).to_string();
        let mut span = json!({
            "traceId": self.trace.to_string(),
            "spanId": self.id.to_string(),
            "name": self.name,
            "kind": INTERNAL,
            "startTimeUnixNano": nanos(self.from_ms),
            "endTimeUnixNano": nanos(self.to_ms),
            "attributes": attributes(&self.attributes),
            "status": match &self.problem {
                None => json!({ "code": OK }),
                Some(problem) => json!({ "code": ERROR, "message": problem }),
            },
        });
        if let Some(parent) = self.parent {
            span["parentSpanId"] = parent.to_string().into();
        }
        if let Some((trace, id)) = self.link {
            span["links"] = json!([{ "traceId": trace.to_string(), "spanId": id.to_string() }]);
        }
        span
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
            span.to_json(),
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
            "OTEL_RESOURCE_ATTRIBUTES" => Some("team=red, zone = a".to_owned()),
            _ => None,
        };
        let resource = resource("nightly", environment).to_string();
        for wanted in [
            r#"{"key":"service.name","value":{"stringValue":"trainer"}}"#,
            r#"{"key":"reprieve.job","value":{"stringValue":"nightly"}}"#,
            r#"{"key":"team","value":{"stringValue":"red"}}"#,
            r#"{"key":"zone","value":{"stringValue":"a"}}"#,
        ] {
            assert!(resource.contains(wanted), "{wanted} is not in {resource}");
        }
    }
}
