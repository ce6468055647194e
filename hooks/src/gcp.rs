//! Google Cloud's metadata server: preemption, and maintenance of the host.
//!
//! Both are waited for rather than polled: the server holds a request back until the value has changed. Each is read
//! before it is waited for, so that nothing is missed in between. Waits are short, since a connection that has died
//! silently would otherwise hide a preemption, of which there are thirty seconds of warning.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use reprieve_core::notice::{Fate, WallMs};
use reprieve_core::worker::Purchase;

use crate::http::{Answer, BadEndpoint, Client, Endpoint, Limits};
use crate::presence::{Expect, Fault, Halt, Meaning, Pace, Presence};
use crate::time;
use crate::told::{Found, Missing, Told};
use crate::{Ear, Instance};

/// The address behind metadata.google.internal: no name has to be resolved.
const USUAL: &str = "http://169.254.169.254";
/// From the notice to the end of a preempted machine.
const PREEMPTION_LEAD_MS: u64 = 30_000;
/// From the notice to the maintenance of the host.
const MAINTENANCE_LEAD_MS: u64 = 60_000;
/// An answer that took less was not waited for.
const AT_ONCE: Duration = Duration::from_millis(500);

const FLAVOR: &str = "metadata-flavor";
const ELSEWHERE: &str = "on Google Cloud, let the container reach 169.254.169.254; elsewhere leave gcp out of --sources";
const NOTHING: &str = "nothing, it is tried again; if it lasts, look at what is between the container and 169.254.169.254";
const REPORT: &str = "report it, with the answer";

/// Where and how often to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub endpoint: Endpoint,
    pub expect: Expect,
    pub pace: Pace,
    pub limits: Limits,
    /// How long the server may hold a request back, in whole seconds.
    pub hold: Duration,
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
            hold: Duration::from_secs(10),
        }
    }

    /// With what Google's own tools take from the environment.
    ///
    /// # Errors
    /// When the address in it is none.
    pub fn from_environment(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, BadEndpoint> {
        let host = variable("GCE_METADATA_HOST").filter(|host| !host.is_empty());
        let endpoint = host.map_or_else(|| USUAL.to_owned(), |host| format!("http://{host}"));
        Endpoint::parse(&endpoint).map(Self::new)
    }
}

/// Listens for as long as somebody hears.
pub async fn listen(options: Options, ear: Ear) {
    let both = Mutex::new(Both {
        presence: Presence::new(options.expect, options.pace),
        faults: [None, None],
    });
    let watch = |number, path, read| Watch {
        number,
        path,
        read,
        options: &options,
        ear: &ear,
        both: &both,
        told: Told::new(),
        since: None,
    };
    tokio::join!(
        watch(0, "/computeMetadata/v1/instance/preempted", read_preempted).run(),
        watch(
            1,
            "/computeMetadata/v1/instance/maintenance-event",
            read_maintenance
        )
        .run(),
    );
}

/// Asks what this machine is, once. Each wait is limited; the whole should be, too.
///
/// # Errors
/// When the server does not answer, or lacks what every machine has.
pub async fn instance(options: &Options) -> Result<Instance, Fault> {
    let mut client = Client::new(options.endpoint.clone(), options.limits);
    let mut read = async |what: &str| {
        let path = format!("/computeMetadata/v1/instance/{what}");
        let answer = google(&mut client, &path, &path).await?;
        Ok::<_, Fault>(answer.text().trim().to_owned())
    };
    // Kinds and zones come with the project and what they are in front.
    let last = |text: String| text.rsplit('/').next().unwrap_or_default().to_owned();
    let purchase = match read("scheduling/preemptible").await?.as_str() {
        "TRUE" => Some(Purchase::Spot),
        "FALSE" => Some(Purchase::OnDemand),
        _ => None,
    };
    Ok(Instance {
        name: read("name").await?,
        kind: last(read("machine-type").await?),
        zone: last(read("zone").await?),
        purchase,
    })
}

/// A value, from what is Google's server and no other. `path` is what is meant, for messages.
async fn google(client: &mut Client, target: &str, path: &str) -> Result<Answer, Fault> {
    let answered = client.get(target, &[(FLAVOR, "Google")]).await;
    let answer = answered.map_err(|error| Fault::unanswered(&error, ELSEWHERE))?;
    let status = answer.status;
    if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
        let reason = format!("the metadata server answers {path} with {status}");
        return Err(Fault::new(Meaning::Trouble, reason, NOTHING));
    }
    if status != StatusCode::OK || answer.header(FLAVOR) != Some("Google") {
        let reason = format!("what answers {path} with {status} is not Google's metadata server");
        return Err(Fault::new(Meaning::NotHere, reason, ELSEWHERE));
    }
    Ok(answer)
}

/// The health of two watches that are one source.
struct Both {
    presence: Presence,
    faults: [Option<Fault>; 2],
}

impl Both {
    fn settle(&mut self, ear: &Ear, number: usize, fault: Option<Fault>) -> Duration {
        self.faults[number] = fault;
        let other = self.faults[1 - number]
            .as_ref()
            .filter(|_| self.faults[number].is_none());
        let fault = self.faults[number].as_ref().or(other);
        self.presence.settle(ear, fault, time::now())
    }
}

/// What a value means: a kind of announcement, or none.
type Read = fn(&str) -> Option<Option<(Fate, u64)>>;

fn read_preempted(value: &str) -> Option<Option<(Fate, u64)>> {
    match value {
        "TRUE" => Some(Some((Fate::Terminate, PREEMPTION_LEAD_MS))),
        "FALSE" => Some(None),
        _ => None,
    }
}

fn read_maintenance(value: &str) -> Option<Option<(Fate, u64)>> {
    match value {
        "NONE" => Some(None),
        // It is moved while it runs.
        "MIGRATE_ON_HOST_MAINTENANCE" => Some(Some((Fate::Maintenance, MAINTENANCE_LEAD_MS))),
        "TERMINATE_ON_HOST_MAINTENANCE" => Some(Some((Fate::Terminate, MAINTENANCE_LEAD_MS))),
        _ => None,
    }
}

/// Reads anything as each of the values.
pub(crate) fn digest(value: &str) {
    std::hint::black_box((read_preempted(value), read_maintenance(value)));
}

struct Watch<'a> {
    number: usize,
    path: &'static str,
    read: Read,
    options: &'a Options,
    ear: &'a Ear,
    both: &'a Mutex<Both>,
    told: Told,
    /// Since when the value is what it is.
    since: Option<(String, WallMs)>,
}

impl Watch<'_> {
    async fn run(mut self) {
        let mut client = Client::new(self.options.endpoint.clone(), self.options.limits);
        let mut etag = None;
        loop {
            let asked_at = Instant::now();
            let held = etag.is_some();
            let (fault, next) = match self.ask(&mut client, etag.as_deref()).await {
                Ok(next) => (None, next),
                Err(Halt::Fault(fault)) => (Some(fault), None),
                Err(Halt::Nobody) => return,
            };
            let changed = next != etag;
            etag = next;
            let works = fault.is_none();
            let wait = {
                let mut both = self.both.lock().unwrap_or_else(PoisonError::into_inner);
                both.settle(self.ear, self.number, fault)
            };
            // The server waits for us, unless it cannot, or does not.
            let served =
                works && etag.is_some() && (changed || held && asked_at.elapsed() > AT_ONCE);
            if !served {
                tokio::time::sleep(wait).await;
            }
        }
    }

    /// Reads the value, or waits for another one than that with this tag; tells what follows. Returns its tag.
    async fn ask(
        &mut self,
        client: &mut Client,
        etag: Option<&str>,
    ) -> Result<Option<String>, Halt> {
        let hold = self.options.hold;
        let etag = etag.filter(|etag| etag.chars().all(|c| c.is_ascii_alphanumeric()));
        let path = match etag {
            Some(etag) => {
                format!(
                    "{}?wait_for_change=true&timeout_sec={}&last_etag={etag}",
                    self.path,
                    hold.as_secs().max(1)
                )
            }
            None => self.path.to_owned(),
        };
        client.limits().answer =
            self.options.limits.answer + if etag.is_some() { hold } else { Duration::ZERO };
        let answer = google(client, &path, self.path).await?;
        self.tell(answer.text().trim()).await?;
        Ok(answer.header("etag").map(str::to_owned))
    }

    async fn tell(&mut self, value: &str) -> Result<(), Halt> {
        let Some(meaning) = (self.read)(value) else {
            let short: String = value.chars().take(80).collect();
            let reason = format!("{} said something unknown: {short:?}", self.path);
            return Err(Fault::new(Meaning::Doubt, reason, REPORT).into());
        };
        // These notices have no time of their own: it runs from when they were first seen.
        let since = match &self.since {
            Some((same, since)) if same == value => *since,
            _ => time::now(),
        };
        self.since = Some((value.to_owned(), since));
        let found = Found {
            key: self.path.to_owned(),
            identity: format!(
                "{}:{value}",
                self.path.rsplit('/').next().unwrap_or_default()
            ),
            fate: meaning.map(|(fate, _)| fate),
            at: meaning.map(|(_, lead_ms)| WallMs(since.0 + lead_ms)),
        };
        self.told
            .take(
                self.ear,
                self.path,
                vec![found],
                Missing::Unclear,
                Instant::now(),
            )
            .await?;
        Ok(())
    }
}
