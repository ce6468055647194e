//! What the user's own programs are told: the moments at which they are run, and the same as a post to a webhook.
//!
//! Starting a program is left to the worker, which alone waits for processes.

use aws_smithy_runtime_api::client::http::{HttpConnector as _, SharedHttpConnector};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use hyper::{Request, StatusCode};
use reprieve_core::command::text_of;
use reprieve_core::notice::WallMs;
use serde_json::{Map, Value, json};

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
pub fn as_notification(document: &Value, id: &str, now: WallMs) -> Value {
    json!({
        "Type": "Notification",
        "MessageId": id,
        "Subject": document["moment"],
        "Message": document.to_string(),
        "Timestamp": text_of(now),
    })
}

/// Why a post was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    #[error("its address cannot be used")]
    Address(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("there is no answer")]
    NoAnswer(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("it answered {0}")]
    Refused(StatusCode),
}

/// Posts through this connection, which has its certificates. The caller sets the time limit.
///
/// # Errors
/// When it was not taken with an answer of 2xx.
pub async fn post(
    http: &SharedHttpConnector,
    address: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> Result<(), PostError> {
    let request = headers
        .iter()
        .fold(Request::post(address), |request, (name, value)| {
            request.header(*name, *value)
        })
        .body(SdkBody::from(body))
        .map_err(|error| PostError::Address(error.into()))?;
    let request =
        HttpRequest::try_from(request).map_err(|error| PostError::Address(error.into()))?;
    let answer = http.call(request).await;
    let answer = answer.map_err(|error| PostError::NoAnswer(error.into()))?;
    match StatusCode::from_u16(answer.status().as_u16()) {
        Ok(status) if status.is_success() => Ok(()),
        Ok(status) => Err(PostError::Refused(status)),
        Err(error) => Err(PostError::NoAnswer(error.into())),
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
        let wrapped = as_notification(&document, "7", WallMs(1_500));
        assert_eq!(wrapped["Timestamp"], "1970-01-01T00:00:01.500Z");
        assert_eq!(wrapped["Type"], "Notification");
        let inner: Value = serde_json::from_str(wrapped["Message"].as_str().expect("a text"))
            .expect("the document");
        assert_eq!(inner, document);
    }
}
