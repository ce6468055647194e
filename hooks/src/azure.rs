//! Azure's Scheduled Events: eviction of spot machines, and reboots, moves and pauses that are announced.
//!
//! Events of a whole scale set reach every machine in it, so only those are told that name this one. What disappears from
//! the document was withdrawn, or is over. Once an announced end is answered with a durable snapshot and the job has
//! stopped, the event is acknowledged, so that Azure need not wait for its time; never when it names other machines,
//! too, since the acknowledgement would be theirs as well.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::{Method, StatusCode};
use reprieve_core::notice::{Afterwards, Fate, Settled, WallMs};
use reprieve_core::worker::Purchase;
use serde::Deserialize;
use tokio::task::JoinSet;

use crate::http::{Answer, Client, Endpoint, HttpError, Limits, chain};
use crate::presence::{Expect, Fault, Halt, Meaning, Pace, Presence};
use crate::time;
use crate::told::{Found, Missing, Said, Told};
use crate::{Ear, Instance};

const USUAL: &str = "http://169.254.169.254";
const EVENTS: &str = "/metadata/scheduledevents?api-version=2020-07-01";
const NAME: &str = "/metadata/instance/compute/name?api-version=2021-02-01&format=text";
const COMPUTE: &str = "/metadata/instance/compute?api-version=2021-02-01&format=json";
/// The first request switches the service on for this machine, which takes up to two minutes.
const FIRST_ANSWER: Duration = Duration::from_secs(130);

const METADATA: (&str, &str) = ("metadata", "true");
const ELSEWHERE: &str = "on Azure, let the container reach 169.254.169.254, without a proxy; elsewhere leave azure out of --sources";
const NOTHING: &str = "nothing, it is tried again; if it lasts, look at what is between the container and 169.254.169.254";
const REPORT: &str = "report it, with the answer";

/// Where and how often to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub endpoint: Endpoint,
    pub expect: Expect,
    pub pace: Pace,
    pub limits: Limits,
}

impl Options {
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            expect: Expect::Perhaps,
            pace: Pace::default(),
            limits: Limits {
                connect: Duration::from_secs(1),
                answer: Duration::from_secs(5),
            },
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new(Endpoint::parse(USUAL).expect("it is one"))
    }
}

/// Listens for as long as somebody hears, and then acknowledges what is left to acknowledge.
pub async fn listen(options: Options, ear: Ear) {
    let mut presence = Presence::new(options.expect, options.pace);
    let mut watch = Watch {
        client: Client::new(options.endpoint.clone(), options.limits),
        options,
        name: None,
        switched_on: false,
        told: Told::new(),
        started: HashMap::new(),
        acknowledging: JoinSet::new(),
    };
    loop {
        let looked = tokio::select! {
            biased;
            () = ear.gone() => break,
            looked = watch.look(&ear) => looked,
        };
        let fault = match looked {
            Ok(doubt) => doubt,
            Err(Halt::Fault(fault)) => Some(fault),
            Err(Halt::Nobody) => break,
        };
        // Those that are done; what became of them was logged.
        while watch.acknowledging.try_join_next().is_some() {}
        let wait = presence.settle(&ear, fault.as_ref(), time::now());
        tokio::select! {
            biased;
            () = ear.gone() => break,
            () = tokio::time::sleep(wait) => {}
        }
    }
    // The outcome may be the last thing that we hear before the end.
    while watch.acknowledging.join_next().await.is_some() {}
}

/// Asks what this machine is, once. Each wait is limited.
///
/// # Errors
/// When the service does not answer, or with something else.
pub async fn instance(options: &Options) -> Result<Instance, Fault> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Compute {
        name: String,
        vm_size: String,
        location: String,
        #[serde(default)]
        zone: String,
        #[serde(default)]
        priority: String,
    }
    let mut client = Client::new(options.endpoint.clone(), options.limits);
    let answer = read(&mut client, COMPUTE).await?;
    let found: Compute =
        serde_json::from_slice(&answer.body).map_err(|_| nonsense(COMPUTE, &answer.text()))?;
    Ok(Instance {
        name: found.name,
        kind: found.vm_size,
        zone: match found.zone.as_str() {
            "" => found.location,
            zone => format!("{}-{zone}", found.location),
        },
        // Machines that were made without a priority have none, and are not taken.
        purchase: Some(match found.priority.as_str() {
            "Spot" | "Low" => Purchase::Spot,
            _ => Purchase::OnDemand,
        }),
    })
}

async fn read(client: &mut Client, path: &str) -> Result<Answer, Fault> {
    let answer = client
        .get(path, &[METADATA])
        .await
        .map_err(|error| match error {
            HttpError::TooLong { .. } => {
                Fault::new(Meaning::Doubt, format!("{path}: {error}"), NOTHING)
            }
            error => Fault::unanswered(&error, ELSEWHERE),
        })?;
    match answer.status {
        StatusCode::OK => Ok(answer),
        // Gone means that the service restarts.
        status
            if [StatusCode::TOO_MANY_REQUESTS, StatusCode::GONE].contains(&status)
                || status.is_server_error() =>
        {
            let reason = format!("the metadata service answers {path} with {status}");
            Err(Fault::new(Meaning::Trouble, reason, NOTHING))
        }
        status => {
            let reason =
                format!("what answers {path} with {status} is not Azure's metadata service");
            Err(Fault::new(Meaning::NotHere, reason, ELSEWHERE))
        }
    }
}

struct Watch {
    options: Options,
    client: Client,
    /// What this machine is called in events.
    name: Option<String>,
    switched_on: bool,
    told: Told,
    /// When events without a time were first seen.
    started: HashMap<String, WallMs>,
    acknowledging: JoinSet<()>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    events: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    event_id: String,
    event_type: String,
    #[serde(default)]
    event_status: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    not_before: Option<String>,
}

impl Watch {
    /// One look. What could not be understood is returned; the rest was told.
    async fn look(&mut self, ear: &Ear) -> Result<Option<Fault>, Halt> {
        // Without it nobody knows whose the events are.
        let name = match &self.name {
            Some(name) => name.clone(),
            None => self.read_name().await?,
        };
        self.name = Some(name.clone());
        if !self.switched_on {
            self.client.limits().answer = FIRST_ANSWER.max(self.options.limits.answer);
        }
        let answer = read(&mut self.client, EVENTS).await?;
        self.switched_on = true;
        self.client.limits().answer = self.options.limits.answer;
        let Some(events) = read_events(&answer.body) else {
            return Err(nonsense(EVENTS, &answer.text()).into());
        };
        let (mut found, mut alone, mut doubt) = (Vec::new(), Vec::new(), None);
        let mut missing = Missing::Gone;
        for event in events {
            let event = match event {
                Ok(event) => event,
                Err(text) => {
                    // It might be one that was announced.
                    missing = Missing::Unclear;
                    doubt.get_or_insert_with(|| nonsense(EVENTS, &text));
                    continue;
                }
            };
            if !event
                .resources
                .iter()
                .any(|resource| resource.eq_ignore_ascii_case(&name))
            {
                continue;
            }
            let fate = fate(&event.event_type).unwrap_or_else(|| {
                doubt.get_or_insert_with(|| nonsense(EVENTS, &event.event_type));
                Fate::Maintenance
            });
            if event.resources.len() == 1 {
                alone.push(event.event_id.clone());
            }
            let at = event
                .not_before
                .as_deref()
                .and_then(time::http_date)
                .or_else(|| {
                    // Once it has started it has no time any more.
                    let started = event.event_status == "Started";
                    started.then(|| {
                        *self
                            .started
                            .entry(event.event_id.clone())
                            .or_insert_with(time::now)
                    })
                });
            found.push(Found {
                identity: event.event_id.clone(),
                key: event.event_id,
                fate: Some(fate),
                at,
            });
        }
        self.started
            .retain(|id, _| found.iter().any(|found| found.key == *id));
        for said in self
            .told
            .take(ear, "", found, missing, Instant::now())
            .await?
        {
            if alone.contains(&said.key) {
                self.acknowledge_later(said);
            }
        }
        Ok(doubt)
    }

    async fn read_name(&mut self) -> Result<String, Halt> {
        let answer = read(&mut self.client, NAME).await?;
        let name = answer.text().trim().to_owned();
        let sound = |c: char| c.is_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > 256 || !name.chars().all(sound) {
            let reason =
                "what answers for the name of this machine is not Azure's metadata service";
            return Err(Fault::new(Meaning::NotHere, reason, ELSEWHERE).into());
        }
        Ok(name)
    }

    fn acknowledge_later(&mut self, said: Said) {
        let mut client = Client::new(self.options.endpoint.clone(), self.options.limits);
        self.acknowledging.spawn(async move {
            // A job that goes on has use for the time that is left.
            let Ok(Settled::Durable { afterwards: Afterwards::Stop, .. }) = said.settled.await else {
                return;
            };
            let body = serde_json::json!({ "StartRequests": [{ "EventId": said.key }] }).to_string();
            match client.request(Method::POST, EVENTS, &[METADATA], Bytes::from(body)).await {
                Ok(answer) if answer.status.is_success() => {
                    tracing::info!(event = said.key, "the event is acknowledged; Azure need not wait for its time");
                }
                Ok(answer) => tracing::warn!(event = said.key, status = %answer.status, "the event could not be acknowledged"),
                Err(error) => tracing::warn!(event = said.key, error = chain(&error), "the event could not be acknowledged"),
            }
        });
    }
}

/// The events of a document; one that is not understood as its text. None when the document is not understood.
fn read_events(body: &[u8]) -> Option<Vec<Result<Event, String>>> {
    let document = serde_json::from_slice::<Document>(body).ok()?;
    let events = document.events.into_iter().map(|event| {
        let text = event.to_string();
        let event = serde_json::from_value::<Event>(event).ok().filter(sound);
        event.ok_or(text)
    });
    Some(events.collect())
}

/// Reads anything as a document of events.
pub(crate) fn digest(body: &[u8]) {
    for event in read_events(body).into_iter().flatten().flatten() {
        std::hint::black_box((
            fate(&event.event_type),
            event.not_before.as_deref().and_then(time::http_date),
        ));
    }
}

/// Numbers of events go back to Azure as they came.
fn sound(event: &Event) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
    !event.event_id.is_empty() && event.event_id.len() <= 128 && event.event_id.chars().all(fits)
}

fn fate(kind: &str) -> Option<Fate> {
    match kind {
        "Preempt" | "Terminate" => Some(Fate::Terminate),
        // Memory is lost with the first two; all of them come back.
        "Reboot" | "Redeploy" | "Freeze" => Some(Fate::Maintenance),
        _ => None,
    }
}

fn nonsense(path: &str, text: &str) -> Fault {
    let short: String = text.chars().take(80).collect();
    Fault::new(
        Meaning::Doubt,
        format!("{path} said something unknown: {short:?}"),
        REPORT,
    )
}
