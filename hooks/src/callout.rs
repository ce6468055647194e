//! What the user's own programs are told: the moments at which they are run, and the same as a post to a webhook.
//!
//! Starting a program is left to the worker, which alone waits for processes.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;

/// When something of the user's is run. The name is that of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The app runs, from scratch.
    AppReady,
    /// Something is to happen to the machine.
    Notice,
    /// The app is about to be frozen.
    BeforeFreeze,
    /// The app runs again after a freeze.
    AfterThaw,
    /// A snapshot counts.
    Durable,
    /// A deadline will hardly be kept.
    InDanger,
    /// A deadline passed without a snapshot.
    Missed,
    /// A snapshot is about to be resumed.
    BeforeRestore,
    /// The app runs, resumed.
    AfterResume,
}

impl Moment {
    pub const ALL: [Self; 9] = [
        Self::AppReady,
        Self::Notice,
        Self::BeforeFreeze,
        Self::AfterThaw,
        Self::Durable,
        Self::InDanger,
        Self::Missed,
        Self::BeforeRestore,
        Self::AfterResume,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::AppReady => "app-ready",
            Self::Notice => "notice",
            Self::BeforeFreeze => "before-freeze",
            Self::AfterThaw => "after-thaw",
            Self::Durable => "durable",
            Self::InDanger => "in-danger",
            Self::Missed => "missed",
            Self::BeforeRestore => "before-restore",
            Self::AfterResume => "after-resume",
        }
    }
}

/// The JSON that a program reads from its standard input and a webhook gets: the facts of the moment.
pub fn document(moment: Moment, facts: &Value) -> Value {
    let mut all = Map::new();
    all.insert("v".to_owned(), json!(1));
    all.insert("moment".to_owned(), json!(moment.as_str()));
    if let Value::Object(facts) = facts {
        all.extend(facts.clone());
    }
    Value::Object(all)
}

/// The same as variables: `REPRIEVE_` and the name in capitals. What is null is left out.
pub fn variables(document: &Value) -> Vec<(String, String)> {
    let fields = document.as_object().into_iter().flatten();
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    fields
        .filter_map(|(name, value)| {
            let variable = format!("REPRIEVE_{}", name.to_ascii_uppercase());
            text(value).map(|value| (variable, value))
        })
        .collect()
}

/// The document as a notification of SNS has it, for receivers that are made for those.
pub fn as_notification(document: &Value, id: &str) -> Value {
    json!({
        "Type": "Notification",
        "MessageId": id,
        "Subject": document["moment"],
        "Message": document.to_string(),
    })
}

/// Why a post was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    #[error("the address of the webhook cannot be used")]
    Address,
    #[error("the webhook cannot be reached")]
    Unreachable(#[from] std::io::Error),
    #[error("the webhook does not speak HTTP")]
    Http(#[from] hyper::Error),
    #[error("the webhook answered {0}")]
    Refused(hyper::StatusCode),
}

/// Posts a document. The caller sets the time limit.
///
/// # Errors
/// When it was not taken with an answer of 2xx.
pub async fn post(address: &str, document: &Value) -> Result<(), PostError> {
    let uri: Uri = address.parse().map_err(|_| PostError::Address)?;
    let authority = uri.authority().cloned().ok_or(PostError::Address)?;
    let host = authority.host().trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(HOST, authority.as_str())
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .body(Full::new(Bytes::from(document.to_string())))
        .map_err(|_| PostError::Address)?;
    let answer = sender.send_request(request).await;
    connection.abort();
    match answer?.status() {
        status if status.is_success() => Ok(()),
        status => Err(PostError::Refused(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_becomes_variables_and_a_notification() {
        let facts = json!({ "job": "nightly", "generation": null, "left_ms": 5 });
        let document = document(Moment::BeforeFreeze, &facts);
        assert_eq!(
            variables(&document),
            [
                ("REPRIEVE_V", "1"),
                ("REPRIEVE_MOMENT", "before-freeze"),
                ("REPRIEVE_JOB", "nightly"),
                ("REPRIEVE_LEFT_MS", "5"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into_iter()
            .collect::<std::collections::BTreeMap<_, _>>()
            .into_iter()
            .collect::<Vec<_>>()
        );
        let wrapped = as_notification(&document, "7");
        assert_eq!(wrapped["Type"], "Notification");
        let inner: Value = serde_json::from_str(wrapped["Message"].as_str().expect("a text"))
            .expect("the document");
        assert_eq!(inner, document);
    }
}
