//! ECS task metadata, version 4: what task this container is part of.
//!
//! It announces nothing. On ECS and Fargate the notice is SIGTERM, for Fargate Spot two minutes before the end; how long
//! the container then has is its `stopTimeout`, which metadata does not tell.

use std::time::Duration;

use hyper::StatusCode;
use serde::Deserialize;

use crate::http::{Client, Endpoint, Limits};
use crate::presence::{Fault, Meaning};

/// Where the agent puts the address of the service.
pub const VARIABLE: &str = "ECS_CONTAINER_METADATA_URI_V4";

const REMEDY: &str =
    "nothing, if the job does not need to know its task; else look at the agent's log";

/// The task as ECS describes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Task {
    pub cluster: String,
    #[serde(rename = "TaskARN")]
    pub arn: String,
    pub family: String,
    pub revision: String,
    #[serde(default)]
    pub availability_zone: Option<String>,
    /// `EC2` or `FARGATE`; older agents do not tell.
    #[serde(default)]
    pub launch_type: Option<String>,
}

/// Asks what task this is, once. None outside of ECS.
///
/// # Errors
/// When there is an address and nothing sensible is said there.
pub async fn task(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Task>, Fault> {
    let Some(address) = variable(VARIABLE).filter(|address| !address.is_empty()) else {
        return Ok(None);
    };
    let fault = |reason: String| Fault::new(Meaning::Trouble, reason, REMEDY);
    let endpoint =
        Endpoint::parse(&address).map_err(|error| fault(format!("{VARIABLE}: {error}")))?;
    let limits = Limits {
        connect: Duration::from_secs(1),
        answer: Duration::from_secs(5),
    };
    let answered = Client::new(endpoint, limits).get("/task", &[]).await;
    let answer = answered.map_err(|error| Fault::unanswered(&error, REMEDY))?;
    if answer.status != StatusCode::OK {
        return Err(fault(format!(
            "the task metadata service answers with {}",
            answer.status
        )));
    }
    let task = serde_json::from_slice(&answer.body);
    task.map(Some).map_err(|error| {
        fault(format!(
            "the task metadata is not what it should be: {error}"
        ))
    })
}
