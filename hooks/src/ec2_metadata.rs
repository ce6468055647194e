//! EC2's instance metadata service, version 2: interruption notices of spot instances, rebalance recommendations,
//! scheduled maintenance, and the state that Auto Scaling wants the instance in; and what the instance is.
//!
//! Looks are polls over one kept connection. Version 1 is never used. What is not understood announces nothing, with one
//! exception: an interruption notice with an action or a time that we do not know is one, since missing it costs the job.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use reprieve_core::notice::{Fate, Settled, WallMs};
use reprieve_core::worker::Purchase;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use crate::Ear;
use crate::http::{Answer, BadEndpoint, Client, Endpoint, HttpError, Limits, chain};
use crate::presence::{Expect, Fault, Halt, Meaning, Pace, Presence};
use crate::time;
use crate::told::{Found, Missing, Told};

const IPV4: &str = "http://169.254.169.254";
const IPV6: &str = "http://[fd00:ec2::254]";
/// The longest there is; fewer renewals are fewer chances to fail.
const TOKEN_LIFE: Duration = Duration::from_secs(21_600);
/// Part of a token's life after which a new one is fetched, while the old one still works.
const RENEW_AT: f64 = 0.8;
/// Tokens are about 60 characters.
const LONGEST_TOKEN: usize = 1_024;
/// Maintenance is announced days ahead.
const MAINTENANCE_EVERY: Duration = Duration::from_secs(60);
/// The same in looks, for those who look often.
const MAINTENANCE_LOOKS: u32 = 30;
/// EC2 leaves a notice behind when it fails to carry it out; one so long past is nobody's deadline.
const STALE_MS: u64 = 10 * 60 * 1_000;
/// A notice is given this long before, which is assumed where its time cannot be read.
const SPOT_LEAD_MS: u64 = 120_000;
/// Of the two clocks; less may be rounding, since the other one is told to the second.
const SKEW_MS: u64 = 2_000;

const TOKEN_TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN: &str = "x-aws-ec2-metadata-token";
const INSTANCE_ID: &str = "/latest/meta-data/instance-id";

const ELSEWHERE: &str = "on EC2, let the container reach 169.254.169.254 (network policies, iptables, HTTP proxies); elsewhere leave ec2-metadata out of --sources";
const HOP_LIMIT: &str = "raise the hop limit: aws ec2 modify-instance-metadata-options --instance-id ID --http-put-response-hop-limit 2 (3 behind some \
     container networks), or run the container in the host's network";
const SWITCHED_OFF: &str = "aws ec2 modify-instance-metadata-options --instance-id ID --http-endpoint enabled; or leave ec2-metadata out of --sources";
const ASKS_TOO_OFTEN: &str =
    "nothing, it is asked less often; if it lasts, find what else on this instance asks it";
const NOTHING: &str = "nothing, it is tried again; if it lasts, look at what is between the container and 169.254.169.254";
const GARBLED: &str = "find out what answers in the service's place: a proxy, a login page; nothing of it was believed";
const REPORT: &str = "report it, with the answer; it was taken for the worst it can mean";

/// Where and how often to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub endpoint: Endpoint,
    pub expect: Expect,
    pub pace: Pace,
    pub limits: Limits,
}

/// What is told of Auto Scaling goes by this name.
const AUTO_SCALING: &str = "asg";

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

    /// With what AWS's own tools take from the environment. None when it switches the service off.
    ///
    /// # Errors
    /// When the address in it is none.
    pub fn from_environment(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, BadEndpoint> {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        if set("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
        {
            return Ok(None);
        }
        let mode = set("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE");
        let usual = match mode {
            Some(mode) if mode.eq_ignore_ascii_case("ipv6") => IPV6,
            _ => IPV4,
        };
        let endpoint = set("AWS_EC2_METADATA_SERVICE_ENDPOINT");
        Endpoint::parse(endpoint.as_deref().unwrap_or(usual))
            .map(|endpoint| Some(Self::new(endpoint)))
    }
}

/// Where to tell that Auto Scaling takes this instance out of its group: what becomes of that arrives at each of these.
pub type Leaving = mpsc::UnboundedSender<oneshot::Receiver<Settled>>;

/// Listens for as long as somebody hears. `leaving` is told of what Auto Scaling wants, if anybody wants to know.
pub async fn listen(options: Options, leaving: Option<Leaving>, ear: Ear) {
    tokio::select! {
        biased;
        () = ear.gone() => {}
        () = look_on(options, leaving, &ear) => {}
    }
}

async fn look_on(options: Options, leaving: Option<Leaving>, ear: &Ear) {
    let mut presence = Presence::new(options.expect, options.pace);
    let mut watch = Watch {
        service: Service::new(&options),
        told: Told::new(),
        leaving,
        looks_to_maintenance: 0,
        maintenance_at: Instant::now(),
    };
    loop {
        let fault = match watch.look(ear).await {
            Ok(doubt) => doubt,
            Err(Halt::Fault(fault)) => Some(fault),
            Err(Halt::Nobody) => return,
        };
        let wait = presence.settle(ear, fault.as_ref(), time::now());
        tokio::time::sleep(wait).await;
    }
}

struct Watch {
    service: Service,
    told: Told,
    leaving: Option<Leaving>,
    looks_to_maintenance: u32,
    maintenance_at: Instant,
}

impl Watch {
    /// One look at everything. What could not be understood is returned; the rest was told.
    async fn look(&mut self, ear: &Ear) -> Result<Option<Fault>, Halt> {
        let mut doubt = None;
        let spot = "/latest/meta-data/spot/instance-action";
        self.topic(ear, "spot", spot, read_spot, &mut doubt).await?;
        let rebalance = "/latest/meta-data/events/recommendations/rebalance";
        self.topic(ear, "rebalance", rebalance, read_rebalance, &mut doubt)
            .await?;
        let state = "/latest/meta-data/autoscaling/target-lifecycle-state";
        self.topic(ear, AUTO_SCALING, state, read_target_state, &mut doubt)
            .await?;
        if self.looks_to_maintenance == 0 || self.maintenance_at <= Instant::now() {
            let scheduled = "/latest/meta-data/events/maintenance/scheduled";
            self.topic(ear, "maintenance", scheduled, read_maintenance, &mut doubt)
                .await?;
            self.looks_to_maintenance = MAINTENANCE_LOOKS;
            self.maintenance_at = Instant::now() + MAINTENANCE_EVERY;
        }
        self.looks_to_maintenance -= 1;
        Ok(doubt)
    }

    async fn topic(
        &mut self,
        ear: &Ear,
        scope: &str,
        path: &str,
        read: fn(&str, Clock) -> Reading,
        doubt: &mut Option<Fault>,
    ) -> Result<(), Halt> {
        let answer = match self.service.read(path).await {
            Ok(answer) => answer,
            Err(fault) if fault.meaning == Meaning::Doubt => {
                doubt.get_or_insert(fault);
                return Ok(());
            }
            Err(fault) => return Err(fault.into()),
        };
        let reading = match answer {
            Some(answer) => read(&answer.text(), Clock::of(&answer)),
            None => {
                // A service that knows nothing at all does not withdraw anything either.
                if self.told.stands(scope) && self.service.read(INSTANCE_ID).await?.is_none() {
                    let reason = "the metadata service does not know this instance any more";
                    return Err(Fault::new(Meaning::Trouble, reason, NOTHING).into());
                }
                Reading::found(vec![])
            }
        };
        let missing = match reading.doubt {
            None => Missing::Gone,
            Some(_) => Missing::Unclear,
        };
        if let Some(what) = reading.doubt {
            let reason = format!("{path} said something unknown: {what}");
            let remedy = if reading.found.is_some() {
                REPORT
            } else {
                GARBLED
            };
            doubt.get_or_insert(Fault::new(Meaning::Doubt, reason, remedy));
        }
        if let Some(found) = reading.found {
            let taken = self.told.take(ear, scope, found, missing, Instant::now());
            let said = taken.await?;
            if let Some(leaving) = self.leaving.as_ref().filter(|_| scope == AUTO_SCALING) {
                for one in said {
                    // Whoever wanted to know may be done.
                    drop(leaving.send(one.settled));
                }
            }
        }
        Ok(())
    }
}

/// The service's clock and ours.
#[derive(Clone, Copy, Debug)]
struct Clock {
    ours: WallMs,
    theirs: WallMs,
}

impl Clock {
    fn of(answer: &Answer) -> Self {
        let ours = time::now();
        let theirs = answer
            .date()
            .filter(|theirs| theirs.0.abs_diff(ours.0) > SKEW_MS);
        Self {
            ours,
            theirs: theirs.unwrap_or(ours),
        }
    }

    /// One of their times, by our clock.
    fn ours(self, theirs: WallMs) -> WallMs {
        WallMs((theirs.0 + self.ours.0).saturating_sub(self.theirs.0))
    }
}

/// What a document says.
#[derive(Debug, PartialEq, Eq)]
struct Reading {
    /// None when it says nothing that could be relied upon, so nothing is withdrawn either.
    found: Option<Vec<Found>>,
    doubt: Option<String>,
}

impl Reading {
    fn found(found: Vec<Found>) -> Self {
        Self {
            found: Some(found),
            doubt: None,
        }
    }

    fn nonsense(text: &str) -> Self {
        Self {
            found: None,
            doubt: Some(shown(text)),
        }
    }
}

/// For messages: the beginning of a text, in one line.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    format!("{short:?}")
}

/// Part of an identity: what the provider wrote, if it is of a size and kind to be written in one.
fn plain(text: &str) -> Option<&str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-:._+".contains(c);
    (!text.is_empty() && text.len() <= 64 && text.chars().all(fits)).then_some(text)
}

#[derive(Deserialize)]
struct SpotNotice {
    action: String,
    time: Option<serde_json::Value>,
}

fn read_spot(text: &str, clock: Clock) -> Reading {
    let Ok(notice) = serde_json::from_str::<SpotNotice>(text) else {
        return Reading::nonsense(text);
    };
    let mut doubt = None;
    let fate = match notice.action.as_str() {
        "terminate" => Fate::Terminate,
        "stop" => Fate::Stop,
        "hibernate" => Fate::Hibernate,
        unknown => {
            doubt = Some(format!(
                "the action {}, taken for terminate",
                shown(unknown)
            ));
            Fate::Terminate
        }
    };
    let written = notice
        .time
        .as_ref()
        .and_then(serde_json::Value::as_str)
        .unwrap_or_default();
    let at = match time::rfc3339(written) {
        // It was not carried out.
        Some(at) if at.0 + STALE_MS < clock.theirs.0 => {
            return Reading {
                found: Some(vec![]),
                doubt,
            };
        }
        Some(at) => clock.ours(at),
        None => {
            doubt.get_or_insert_with(|| {
                format!(
                    "the time {}, taken for two minutes from now",
                    shown(written)
                )
            });
            WallMs(clock.ours.0 + SPOT_LEAD_MS)
        }
    };
    let name = plain(&notice.action).unwrap_or("unknown");
    let identity = format!("spot:{name}:{}", plain(written).unwrap_or("unknown"));
    let found = Found {
        key: "spot".into(),
        identity,
        fate: Some(fate),
        at: Some(at),
    };
    Reading {
        found: Some(vec![found]),
        doubt,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rebalance {
    notice_time: String,
}

fn read_rebalance(text: &str, _: Clock) -> Reading {
    let Ok(rebalance) = serde_json::from_str::<Rebalance>(text) else {
        return Reading::nonsense(text);
    };
    let written = plain(&rebalance.notice_time).unwrap_or("unknown");
    Reading::found(vec![Found {
        key: "rebalance".into(),
        identity: format!("rebalance:{written}"),
        fate: Some(Fate::AtRisk),
        at: None,
    }])
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Maintenance {
    event_id: String,
    code: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    not_before: String,
}

fn read_maintenance(text: &str, clock: Clock) -> Reading {
    let Ok(events) = serde_json::from_str::<Vec<serde_json::Value>>(text) else {
        return Reading::nonsense(text);
    };
    let mut reading = Reading::found(vec![]);
    for event in events {
        let shown_event = shown(&event.to_string());
        // An event that is not understood hides no other one. It might be one that was announced, so none is withdrawn.
        let event = serde_json::from_value::<Maintenance>(event)
            .ok()
            .filter(|event| plain(&event.event_id).is_some());
        let (Some(event), Some(found)) = (event, &mut reading.found) else {
            reading.doubt.get_or_insert(shown_event);
            continue;
        };
        let over = matches!(event.state.as_str(), "completed" | "canceled");
        let fate = match event.code.as_str() {
            "instance-stop" => Fate::Stop,
            "instance-retirement" => Fate::Terminate,
            _ => Fate::Maintenance,
        };
        found.push(Found {
            key: format!("maintenance:{}", event.event_id),
            identity: format!("maintenance:{}", event.event_id),
            fate: (!over).then_some(fate),
            at: time::http_date(&event.not_before).map(|at| clock.ours(at)),
        });
    }
    reading
}

/// The state that Auto Scaling wants the instance in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetState {
    InService,
    Standby,
    Detached,
    Terminated,
    /// In a warm pool, to run, to be stopped or to hibernate there.
    Warmed,
    /// To be taken from the warm pool and terminated.
    WarmedTerminated,
}

impl TargetState {
    fn read(text: &str) -> Option<Self> {
        Some(match text.trim() {
            "InService" => Self::InService,
            "Standby" => Self::Standby,
            "Detached" => Self::Detached,
            "Terminated" => Self::Terminated,
            "Warmed:Running" | "Warmed:Stopped" | "Warmed:Hibernated" => Self::Warmed,
            "Warmed:Terminated" => Self::WarmedTerminated,
            _ => return None,
        })
    }

    /// An instance that is only being prepared, or goes, must not claim a job.
    pub fn may_take_a_job(self) -> bool {
        matches!(self, Self::InService | Self::Standby | Self::Detached)
    }

    fn goes(self) -> bool {
        matches!(self, Self::Terminated | Self::WarmedTerminated)
    }
}

fn read_target_state(text: &str, _: Clock) -> Reading {
    let Some(state) = TargetState::read(text) else {
        return Reading::nonsense(text);
    };
    // The hook that holds the instance back has the time, and it can be extended; none is told here.
    let found = Found {
        key: "asg".into(),
        identity: "asg:terminated".into(),
        fate: state.goes().then_some(Fate::Terminate),
        at: None,
    };
    Reading::found(vec![found])
}

/// Reads anything as each of the documents.
pub(crate) fn digest(text: &str, clock: [u64; 2]) {
    let clock = Clock {
        ours: WallMs(clock[0]),
        theirs: WallMs(clock[1]),
    };
    for topic in [
        read_spot,
        read_rebalance,
        read_maintenance,
        read_target_state,
    ] {
        std::hint::black_box(topic(text, clock));
    }
}

// ---- What this instance is

/// What an instance knows of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub id: String,
    pub kind: String,
    pub zone: String,
    pub region: String,
    pub purchase: Option<Purchase>,
    /// Empty too when the instance was started without tags in its metadata.
    pub tags: BTreeMap<String, String>,
    /// None outside of Auto Scaling, and before its first transition.
    pub target_state: Option<TargetState>,
}

/// Tags of an instance; EC2 allows 50.
const MOST_TAGS: usize = 100;

/// Asks for what Auto Scaling wants with this instance, once. None outside of it.
///
/// # Errors
/// When the service does not answer.
pub async fn target_state(options: &Options) -> Result<Option<TargetState>, Fault> {
    let path = "/latest/meta-data/autoscaling/target-lifecycle-state";
    let state = Service::new(options).text(path).await?;
    Ok(state.as_deref().and_then(TargetState::read))
}

/// Asks what this instance is, once. Each wait is limited; the whole should be, too.
///
/// # Errors
/// When the service does not answer, or lacks what every instance has.
pub async fn instance(options: &Options) -> Result<Instance, Fault> {
    let mut service = Service::new(options);
    let purchase = match service
        .text("/latest/meta-data/instance-life-cycle")
        .await?
        .as_deref()
    {
        Some("spot") => Some(Purchase::Spot),
        Some("on-demand") => Some(Purchase::OnDemand),
        Some("scheduled" | "capacity-block") => Some(Purchase::Scheduled),
        _ => None,
    };
    let state = service
        .text("/latest/meta-data/autoscaling/target-lifecycle-state")
        .await?;
    Ok(Instance {
        id: service.needed(INSTANCE_ID).await?,
        kind: service.needed("/latest/meta-data/instance-type").await?,
        zone: service
            .needed("/latest/meta-data/placement/availability-zone")
            .await?,
        region: service.needed("/latest/meta-data/placement/region").await?,
        purchase,
        tags: service.tags().await?,
        target_state: state.as_deref().and_then(TargetState::read),
    })
}

// ---- The service

struct Token {
    text: String,
    renew_at: Instant,
    ends_at: Instant,
}

struct Service {
    client: Client,
    token: Option<Token>,
}

impl Service {
    fn new(options: &Options) -> Self {
        Self {
            client: Client::new(options.endpoint.clone(), options.limits),
            token: None,
        }
    }

    /// The document at this path; None when there is none.
    async fn read(&mut self, path: &str) -> Result<Option<Answer>, Fault> {
        let mut answer = self.read_once(path).await?;
        if answer.status == StatusCode::UNAUTHORIZED {
            // Ended early, or from before a migration of the instance. A new one, at once, and only once.
            self.token = None;
            answer = self.read_once(path).await?;
        }
        match answer.status {
            StatusCode::OK => Ok(Some(answer)),
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::UNAUTHORIZED => {
                self.token = None;
                let reason =
                    "the metadata service refuses the session token that it has just given";
                Err(Fault::new(Meaning::Trouble, reason, NOTHING))
            }
            status => Err(refused(path, status)),
        }
    }

    async fn read_once(&mut self, path: &str) -> Result<Answer, Fault> {
        let token = self.token().await?;
        let answered = self.client.get(path, &[(TOKEN, &token)]).await;
        answered.map_err(|error| match error {
            HttpError::TooLong { .. } => {
                Fault::new(Meaning::Doubt, format!("{path}: {error}"), NOTHING)
            }
            error => Fault::unanswered(&error, ELSEWHERE),
        })
    }

    async fn token(&mut self) -> Result<String, Fault> {
        let now = Instant::now();
        if let Some(token) = self.token.as_ref().filter(|token| now < token.renew_at) {
            return Ok(token.text.clone());
        }
        match self.new_token().await {
            Ok(token) => {
                let text = token.text.clone();
                self.token = Some(token);
                Ok(text)
            }
            Err(fault) => match &self.token {
                Some(token) if now < token.ends_at => Ok(token.text.clone()),
                _ => Err(fault),
            },
        }
    }

    async fn new_token(&mut self) -> Result<Token, Fault> {
        let path = "/latest/api/token";
        let asked_at = Instant::now();
        let life = TOKEN_LIFE.as_secs().to_string();
        let answered = self
            .client
            .request(
                Method::PUT,
                path,
                &[(TOKEN_TTL, &life)],
                bytes::Bytes::new(),
            )
            .await;
        let answer = match answered {
            Ok(answer) => answer,
            Err(error @ HttpError::Silent { .. }) => return Err(self.token_lost(&error).await),
            Err(error) => return Err(Fault::unanswered(&error, ELSEWHERE)),
        };
        let life = answer
            .header(TOKEN_TTL)
            .and_then(|life| life.parse().ok())
            // Whoever answers may claim anything; no token lives longer than it was asked for.
            .map(|life| Duration::from_secs(life).min(TOKEN_LIFE));
        let text = answer.text();
        let usable = text.len() <= LONGEST_TOKEN
            && !text.is_empty()
            && text.chars().all(|c| c.is_ascii_graphic());
        match (answer.status, life) {
            (StatusCode::OK, Some(life)) if usable => Ok(Token {
                text,
                renew_at: asked_at + life.mul_f64(RENEW_AT),
                ends_at: asked_at + life,
            }),
            (StatusCode::FORBIDDEN, _) => Err(refused(path, answer.status)),
            (StatusCode::TOO_MANY_REQUESTS | StatusCode::UNAUTHORIZED, _) => {
                Err(no_token(path, answer.status))
            }
            (status, _) if status.is_server_error() => Err(no_token(path, status)),
            // Other clouds and captive portals have something at this address, too.
            (status, _) => {
                let reason =
                    format!("what answers PUT {path} with {status} is not EC2's metadata service");
                Err(Fault::new(Meaning::NotHere, reason, ELSEWHERE))
            }
        }
    }

    /// The answer that carries a token may not travel further than the hop limit; every other one may.
    async fn token_lost(&mut self, error: &HttpError) -> Fault {
        // With a token, though a wrong one: this is no request of version 1.
        match self.client.get(INSTANCE_ID, &[(TOKEN, "none")]).await {
            Ok(_) => {
                let reason = "the metadata service answers, but its session tokens do not arrive: the instance's hop limit is too \
                              small for a container";
                Fault::new(Meaning::Trouble, reason, HOP_LIMIT)
            }
            Err(_) => Fault::new(Meaning::Trouble, chain(error), NOTHING),
        }
    }

    async fn text(&mut self, path: &str) -> Result<Option<String>, Fault> {
        let answer = self.read(path).await?;
        let text = answer.map(|answer| answer.text().trim().to_owned());
        match text {
            Some(text) if text.contains('<') || text.len() > 1_024 => {
                let reason = format!("{path} said something unknown: {}", shown(&text));
                Err(Fault::new(Meaning::Doubt, reason, NOTHING))
            }
            text => Ok(text.filter(|text| !text.is_empty())),
        }
    }

    async fn needed(&mut self, path: &str) -> Result<String, Fault> {
        self.text(path).await?.ok_or_else(|| {
            let reason = format!("the metadata service has no {path}");
            Fault::new(Meaning::Doubt, reason, NOTHING)
        })
    }

    async fn tags(&mut self) -> Result<BTreeMap<String, String>, Fault> {
        let path = "/latest/meta-data/tags/instance";
        let mut tags = BTreeMap::new();
        let keys = self.text(path).await?.unwrap_or_default();
        for key in keys.lines().take(MOST_TAGS) {
            // What tags in metadata may be called; anything else was not written by EC2.
            if !key
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "+-=.,_:@".contains(c))
            {
                continue;
            }
            if let Some(answer) = self.read(&format!("{path}/{key}")).await? {
                tags.insert(key.to_owned(), answer.text());
            }
        }
        Ok(tags)
    }
}

/// Without a token nothing can be read.
fn no_token(path: &str, status: StatusCode) -> Fault {
    Fault {
        meaning: Meaning::Trouble,
        ..refused(path, status)
    }
}

fn refused(path: &str, status: StatusCode) -> Fault {
    let (meaning, remedy) = match status {
        StatusCode::FORBIDDEN => (Meaning::Off, SWITCHED_OFF),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            (Meaning::Trouble, ASKS_TOO_OFTEN)
        }
        StatusCode::UNAUTHORIZED => (Meaning::Trouble, NOTHING),
        // Of this path only, perhaps; the others are looked at.
        _ => (Meaning::Doubt, NOTHING),
    };
    Fault::new(
        meaning,
        format!("the metadata service answers {path} with {status}"),
        remedy,
    )
}
