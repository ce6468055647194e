//! The sources that ask metadata services, against a look-alike that tells, withdraws and misbehaves on cue: whatever goes
//! wrong, nothing is announced that was not said, nothing that stands is withdrawn, and what was said meanwhile is heard.

#[allow(dead_code)]
#[path = "../../tests/harness/lab.rs"]
mod lab;

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use lab::Lab;
use reprieve_core::notice::{Afterwards, Announcement, Fate, Says, Settled, Source, WallMs};
use reprieve_core::worker::Purchase;
use reprieve_hooks::ec2_metadata::TargetState;
use reprieve_hooks::http::{Endpoint, Limits};
use reprieve_hooks::presence::{Expect, Pace};
use reprieve_hooks::{Condition, Ear, Health, Heard, Listener, azure, ec2_metadata, ecs, gcp};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// For what takes well under a second on an idle machine.
const LIMIT: Duration = Duration::from_secs(30);
/// As fast as a test wants to be.
const PACE: Pace = Pace {
    poll: Duration::from_millis(20),
    retry: Duration::from_millis(20),
    retry_most: Duration::from_millis(40),
    recheck: Duration::from_millis(60),
};
const LIMITS: Limits = Limits {
    connect: Duration::from_secs(1),
    answer: Duration::from_millis(500),
};
/// Looks that have to pass before silence counts.
const LOOKS: usize = 8;

const SPOT: &str = "/latest/meta-data/spot/instance-action";
const EVENTS: &str = "/metadata/scheduledevents";
const PREEMPTED: &str = "/computeMetadata/v1/instance/preempted";

fn endpoint(lab: &Lab) -> Endpoint {
    Endpoint::parse(&lab.url).expect("it is an address")
}

fn ec2_options(lab: &Lab) -> ec2_metadata::Options {
    ec2_metadata::Options {
        pace: PACE,
        limits: LIMITS,
        ..ec2_metadata::Options::new(endpoint(lab))
    }
}

fn gcp_options(lab: &Lab) -> gcp::Options {
    gcp::Options {
        pace: PACE,
        limits: LIMITS,
        hold: Duration::from_secs(1),
        ..gcp::Options::new(endpoint(lab))
    }
}

fn azure_options(lab: &Lab) -> azure::Options {
    azure::Options {
        pace: PACE,
        limits: LIMITS,
        ..azure::Options::new(endpoint(lab))
    }
}

/// A source at work, and who hears it.
struct Listening {
    listener: Listener,
    task: JoinHandle<()>,
    /// A part of the path of its looks.
    looks: &'static str,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listening {
    fn to<F>(source: Source, looks: &'static str, listen: impl FnOnce(Ear) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (ear, listener) = Ear::new(source);
        let task = tokio::spawn(listen(ear));
        Self {
            listener,
            task,
            looks,
        }
    }

    fn to_ec2(options: ec2_metadata::Options) -> Self {
        Self::to(Source::Ec2Metadata, SPOT, |ear| {
            ec2_metadata::listen(options, None, ear)
        })
    }

    fn to_gcp(options: gcp::Options) -> Self {
        Self::to(Source::Gcp, PREEMPTED, |ear| gcp::listen(options, ear))
    }

    fn to_azure(options: azure::Options) -> Self {
        Self::to(Source::Azure, EVENTS, |ear| azure::listen(options, ear))
    }

    async fn heard(&mut self) -> Heard {
        let heard = timeout(LIMIT, self.listener.heard.recv()).await;
        heard
            .expect("something is heard")
            .expect("the source goes on")
    }

    async fn announced(&mut self) -> Announcement {
        self.heard().await.announcement
    }

    /// What was heard is a fate; its identity and time.
    async fn goes(&mut self, wanted: Fate) -> (String, Option<WallMs>) {
        let announced = self.announced().await;
        match announced.says {
            Says::Goes { fate, at } if fate == wanted => (announced.identity, at),
            _ => panic!("{announced:?} instead of {wanted:?}"),
        }
    }

    async fn withdraws(&mut self, identity: &str) {
        let announced = self.announced().await;
        assert_eq!(
            (announced.says, announced.identity.as_str()),
            (Says::Withdrawn, identity)
        );
    }

    async fn health(&mut self, what: &str, is: impl Fn(&Condition) -> bool) -> Health {
        let health = &mut self.listener.health;
        let reached = timeout(LIMIT, health.wait_for(|health| is(&health.condition))).await;
        let reached = reached.map(|reached| reached.expect("the source goes on").clone());
        reached
            .unwrap_or_else(|_| panic!("waited in vain for: {what}; it is {:?}", health.borrow()))
    }

    async fn works(&mut self) {
        self.health("working", |condition| *condition == Condition::Working)
            .await;
    }

    /// Why it does not work.
    async fn degraded(&mut self) -> String {
        let degraded = self
            .health("degraded", |condition| {
                matches!(condition, Condition::Degraded { .. })
            })
            .await;
        let Condition::Degraded { reason, remedy } = degraded.condition else {
            unreachable!()
        };
        assert!(!remedy.is_empty() && degraded.failures > 0);
        reason
    }

    async fn absent(&mut self) {
        self.health("absent", |condition| {
            matches!(condition, Condition::Absent { .. })
        })
        .await;
    }

    /// It has looked a few times more and has nothing to say.
    async fn says_nothing(&mut self, lab: &Lab) {
        let before = looks(lab, self.looks);
        wait_until("further looks", || looks(lab, self.looks) >= before + LOOKS).await;
        if let Ok(heard) = self.listener.heard.try_recv() {
            panic!("{:?} was announced", heard.announcement);
        }
    }
}

fn looks(lab: &Lab, path: &str) -> usize {
    let asked = lab.requests(0);
    asked
        .iter()
        .filter(|request| request["path"] == path)
        .count()
}

async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let met = timeout(LIMIT, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(met.await.is_ok(), "waited in vain for: {what}");
}

/// The time that was told, as the look-alike has it, to the second.
fn told_at(told: &Value) -> Option<WallMs> {
    let at = Duration::from_secs_f64(told["at"].as_f64().expect("it has a time"));
    Some(WallMs(at.as_secs() * 1_000))
}

// ---- EC2

#[tokio::test]
async fn each_action_of_an_interruption_is_announced_once_with_its_time() {
    let lab = Lab::start();
    let mut ec2 = Listening::to_ec2(ec2_options(&lab));
    ec2.works().await;
    let actions = [
        ("terminate", Fate::Terminate),
        ("stop", Fate::Stop),
        ("hibernate", Fate::Hibernate),
    ];
    for (action, fate) in actions {
        let told = lab.notice(json!({ "kind": "spot", "in": 120, "action": action }));
        let (identity, at) = ec2.goes(fate).await;
        assert!(
            identity.starts_with(&format!("spot:{action}:20")),
            "{identity}"
        );
        assert_eq!(at, told_at(&told));
        ec2.says_nothing(&lab).await;
        lab.clear("spot");
        ec2.withdraws(&identity).await;
        ec2.says_nothing(&lab).await;
    }
    ec2.works().await;
}

#[tokio::test]
async fn the_same_notice_is_the_same_to_two_listeners_at_different_times() {
    let lab = Lab::start();
    lab.notice(json!({ "kind": "spot", "in": 120 }));
    lab.notice(json!({ "kind": "rebalance" }));
    lab.notice(json!({ "kind": "maintenance" }));
    let mut heard = Vec::new();
    for _ in 0..2 {
        let mut ec2 = Listening::to_ec2(ec2_options(&lab));
        let mut announced = Vec::new();
        for _ in 0..3 {
            announced.push(ec2.announced().await);
        }
        // The clock shows another second when the second one listens.
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        heard.push(announced);
    }
    assert_eq!(heard[0], heard[1]);
}

#[tokio::test]
async fn an_unknown_action_or_time_is_taken_for_the_worst_and_told_in_health() {
    let lab = Lab::start();
    let mut ec2 = Listening::to_ec2(ec2_options(&lab));
    ec2.works().await;
    lab.notice(json!({ "kind": "spot", "in": 120, "action": "defenestrate" }));
    ec2.goes(Fate::Terminate).await;
    let reason = ec2.degraded().await;
    assert!(reason.contains("defenestrate"), "{reason}");
    ec2.says_nothing(&lab).await;
}

#[tokio::test]
async fn a_notice_that_was_never_carried_out_is_nobodys_deadline() {
    let lab = Lab::start();
    lab.notice(json!({ "kind": "spot", "at": "2015-01-05T18:02:00Z" }));
    let mut ec2 = Listening::to_ec2(ec2_options(&lab));
    ec2.works().await;
    ec2.says_nothing(&lab).await;
    // One that is only just past is a real one.
    let told = lab.notice(json!({ "kind": "spot", "in": -5 }));
    assert_eq!(ec2.goes(Fate::Terminate).await.1, told_at(&told));
}

#[tokio::test]
async fn a_time_that_moves_is_told_when_it_comes_closer_and_not_with_each_poll() {
    let lab = Lab::start();
    let mut ec2 = Listening::to_ec2(ec2_options(&lab));
    lab.notice(json!({ "kind": "spot", "in": 120 }));
    let (identity, _) = ec2.goes(Fate::Terminate).await;
    let closer = lab.notice(json!({ "kind": "spot", "in": 60 }));
    assert_eq!(
        ec2.goes(Fate::Terminate).await,
        (identity.clone(), told_at(&closer))
    );
    // From now on it is counted from each request, as some test servers do.
    lab.fault(json!({ "name": "moving" }));
    let before = looks(&lab, SPOT);
    wait_until("looks over some seconds", || {
        looks(&lab, SPOT) > before + 150
    })
    .await;
    assert!(ec2.listener.heard.try_recv().is_err());
    lab.mend();
    let later = lab.notice(json!({ "kind": "spot", "in": 600 }));
    assert_eq!(ec2.goes(Fate::Terminate).await, (identity, told_at(&later)));
}

#[tokio::test]
async fn a_rebalance_recommendation_is_a_hint_without_a_time() {
    let lab = Lab::start();
    let mut ec2 = Listening::to_ec2(ec2_options(&lab));
    lab.notice(json!({ "kind": "rebalance" }));
    let (identity, at) = ec2.goes(Fate::AtRisk).await;
    assert_eq!(at, None);
    assert!(identity.starts_with("rebalance:20"), "{identity}");
    ec2.says_nothing(&lab).await;
    lab.clear("rebalance");
    ec2.withdraws(&identity).await;
}

#[tokio::test]
async fn maintenance_is_told_by_event_and_withdrawn_when_it_is_over() {
    let lab = Lab::start();
    let mut ec2 = Listening::to_ec2(ec2_options(&lab));
    ec2.works().await;
    let cases = [
        ("system-reboot", Fate::Maintenance, "canceled"),
        ("system-maintenance", Fate::Maintenance, "completed"),
        ("instance-stop", Fate::Stop, "canceled"),
        ("instance-retirement", Fate::Terminate, "canceled"),
    ];
    for (code, fate, end) in cases {
        let told = lab.notice(json!({ "kind": "maintenance", "code": code, "in": 7_200 }));
        let id = told["id"].as_str().expect("it has one");
        assert_eq!(
            ec2.goes(fate).await,
            (format!("maintenance:{id}"), told_at(&told))
        );
        ec2.says_nothing(&lab).await;
        // It stays listed.
        lab.notice(
            json!({ "kind": "maintenance", "code": code, "in": 7_200, "id": id, "state": end }),
        );
        ec2.withdraws(&format!("maintenance:{id}")).await;
        ec2.says_nothing(&lab).await;
    }
    // One that is moved, and one that disappears.
    let told = lab.notice(json!({ "kind": "maintenance", "in": 7_200, "id": "instance-event-1" }));
    assert_eq!(ec2.goes(Fate::Maintenance).await.1, told_at(&told));
    let told = lab.notice(json!({ "kind": "maintenance", "in": 3_600, "id": "instance-event-1" }));
    assert_eq!(ec2.goes(Fate::Maintenance).await.1, told_at(&told));
    lab.clear("maintenance");
    ec2.withdraws("maintenance:instance-event-1").await;
}

#[tokio::test]
async fn only_a_target_state_of_termination_announces_something() {
    let lab = Lab::start();
    let mut ec2 = Listening::to_ec2(ec2_options(&lab));
    ec2.works().await;
    for state in [
        "InService",
        "Standby",
        "Detached",
        "Warmed:Stopped",
        "Warmed:Running",
        "Warmed:Hibernated",
    ] {
        lab.notice(json!({ "kind": "asg", "state": state }));
        ec2.says_nothing(&lab).await;
    }
    for state in ["Terminated", "Warmed:Terminated"] {
        lab.notice(json!({ "kind": "asg", "state": state }));
        assert_eq!(
            ec2.goes(Fate::Terminate).await,
            ("asg:terminated".into(), None)
        );
        lab.notice(json!({ "kind": "asg", "state": "InService" }));
        ec2.withdraws("asg:terminated").await;
    }
    ec2.works().await;
    lab.notice(json!({ "kind": "asg", "state": "Elsewhere" }));
    assert!(ec2.degraded().await.contains("Elsewhere"));
}

#[tokio::test]
async fn tokens_are_kept_and_a_refused_one_is_replaced_within_the_same_look() {
    let lab = Lab::start();
    let mut ec2 = Listening::to_ec2(ec2_options(&lab));
    ec2.says_nothing(&lab).await;
    let puts = |lab: &Lab| {
        lab.requests(0)
            .iter()
            .filter(|request| request["method"] == "PUT")
            .count()
    };
    assert_eq!(puts(&lab), 1);
    ec2.works().await;
    lab.fault(json!({ "name": "expire-tokens" }));
    lab.notice(json!({ "kind": "spot", "in": 120 }));
    ec2.goes(Fate::Terminate).await;
    ec2.says_nothing(&lab).await;
    assert_eq!(puts(&lab), 2);
    // Nobody had to hear of it.
    assert!(
        !ec2.listener
            .health
            .has_changed()
            .expect("the source goes on")
    );
    // All of it over one connection, and never without a token.
    let asked = lab.requests(0);
    let connections: BTreeSet<u64> = asked
        .iter()
        .filter_map(|request| request["connection"].as_u64())
        .collect();
    assert_eq!(connections.len(), 1, "{connections:?}");
    let refused: Vec<usize> = (0..asked.len())
        .filter(|at| asked[*at]["status"] == 401)
        .collect();
    let [refused] = refused[..] else {
        panic!("refused: {refused:?}");
    };
    assert_eq!(asked[refused + 1]["method"], "PUT");
    assert_eq!(asked[refused + 2]["path"], asked[refused]["path"]);
}

/// Each fault, what must be said of it, and whether it needs a new token to be met.
const EC2_FAULTS: &[(&str, Value, &str, bool)] = &[
    ("throttle", Value::Null, "503", false),
    ("throttle", Value::Bool(true), "429", false),
    ("disabled", Value::Null, "403", false),
    ("missing", Value::Null, "", true),
    ("slow", Value::Null, "does not answer within", false),
    ("hang", Value::Null, "does not answer within", false),
    ("reset", Value::Null, "hung up", false),
    ("refuse", Value::Null, "", false),
    (
        "reject-tokens",
        Value::Null,
        "refuses the session token",
        false,
    ),
    ("no-ttl", Value::Null, "is not EC2's metadata service", true),
    ("hop-limit", Value::Null, "hop limit", true),
    ("html", Value::Null, "something unknown", false),
    ("garbage", Value::Null, "something unknown", false),
    ("empty", Value::Null, "something unknown", false),
    ("huge", Value::Null, "longer than", false),
    ("cut", Value::Null, "", false),
];

fn cue(name: &str, detail: &Value) -> Value {
    match detail {
        Value::Bool(true) => json!({ "name": name, "status": 429 }),
        _ => json!({ "name": name }),
    }
}

#[tokio::test]
async fn no_fault_of_ec2s_service_announces_withdraws_or_hides_anything() {
    let lab = Lab::start();
    lab.notice(json!({ "kind": "rebalance" }));
    let mut ec2 = Listening::to_ec2(ec2_options(&lab));
    ec2.goes(Fate::AtRisk).await;
    for (name, detail, reason, new_token) in EC2_FAULTS {
        ec2.works().await;
        lab.fault(cue(name, detail));
        if *new_token {
            lab.fault(json!({ "name": "expire-tokens" }));
        }
        let said = ec2.degraded().await;
        assert!(said.contains(reason), "{name}: {said}");
        // In the middle of it a notice comes, which nobody can see yet.
        let told = lab.notice(json!({ "kind": "spot", "in": 120 }));
        let failures = ec2.listener.health.borrow().failures;
        let lasts = |health: &Health| health.failures >= failures + 3;
        let waited = timeout(LIMIT, async {
            // Equal failures are no news, so they are looked for.
            while !lasts(&ec2.listener.health.borrow()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(
            waited.await.is_ok(),
            "{name}: {:?}",
            ec2.listener.health.borrow()
        );
        assert!(ec2.listener.heard.try_recv().is_err(), "{name}");
        lab.mend();
        let (identity, at) = ec2.goes(Fate::Terminate).await;
        assert_eq!(at, told_at(&told), "{name}");
        ec2.works().await;
        ec2.says_nothing(&lab).await;
        lab.clear("spot");
        ec2.withdraws(&identity).await;
    }
}

#[tokio::test]
async fn a_token_that_claims_to_live_for_ever_is_used_like_any_other() {
    let lab = Lab::start();
    lab.fault(json!({ "name": "endless-ttl" }));
    let mut ec2 = Listening::to_ec2(ec2_options(&lab));
    ec2.works().await;
    lab.notice(json!({ "kind": "spot", "in": 120 }));
    ec2.goes(Fate::Terminate).await;
}

#[tokio::test]
async fn a_fault_while_a_notice_stands_does_not_withdraw_it() {
    let lab = Lab::start();
    lab.notice(json!({ "kind": "spot", "in": 120 }));
    let mut ec2 = Listening::to_ec2(ec2_options(&lab));
    ec2.goes(Fate::Terminate).await;
    for fault in ["missing", "html", "empty", "cut", "throttle", "refuse"] {
        ec2.works().await;
        lab.fault(json!({ "name": fault }));
        ec2.degraded().await;
        lab.mend();
        ec2.works().await;
        ec2.says_nothing(&lab).await;
    }
    // One answer alone that knows nothing of it.
    lab.fault(json!({ "name": "missing", "path": "instance-action", "times": 1 }));
    ec2.says_nothing(&lab).await;
}

#[tokio::test]
async fn a_flood_of_notices_is_bounded_and_hides_no_real_one() {
    let lab = Lab::start();
    for number in 0..150 {
        let id = format!("instance-event-{number}");
        lab.notice(json!({ "kind": "maintenance", "in": 7_200 + number, "id": id }));
    }
    let mut ec2 = Listening::to_ec2(ec2_options(&lab));
    let mut heard = BTreeSet::new();
    for _ in 0..100 {
        assert!(heard.insert(ec2.goes(Fate::Maintenance).await.0));
    }
    ec2.says_nothing(&lab).await;
    let told = lab.notice(json!({ "kind": "spot", "in": 120 }));
    assert_eq!(ec2.goes(Fate::Terminate).await.1, told_at(&told));
    lab.clear("maintenance");
    for _ in 0..100 {
        let withdrawn = ec2.announced().await;
        assert_eq!(withdrawn.says, Says::Withdrawn);
        assert!(heard.remove(&withdrawn.identity), "{withdrawn:?}");
    }
    ec2.says_nothing(&lab).await;
}

#[tokio::test]
async fn a_notice_can_be_given_by_hand() {
    let lab = Lab::start();
    let mut ec2 = Listening::to_ec2(ec2_options(&lab));
    ec2.works().await;
    let before = wall_now();
    assert!(
        lab.by_hand(&["notice", "spot", "--in", "120"])
            .contains("terminate")
    );
    let (identity, at) = ec2.goes(Fate::Terminate).await;
    let left = at.expect("it has a time").0.saturating_sub(before.0);
    assert!((118_000..180_000).contains(&left), "{left}");
    lab.by_hand(&["clear", "spot"]);
    ec2.withdraws(&identity).await;
    lab.by_hand(&["fault", "html"]);
    ec2.degraded().await;
    lab.by_hand(&["fault", "none"]);
    ec2.works().await;
}

fn wall_now() -> WallMs {
    let since = std::time::UNIX_EPOCH.elapsed().expect("it is later");
    WallMs(u64::try_from(since.as_millis()).expect("it fits"))
}

#[tokio::test]
async fn one_topic_that_is_out_of_order_does_not_hide_the_others() {
    let lab = Lab::start();
    lab.fault(json!({ "name": "garbage", "path": "spot" }));
    let mut ec2 = Listening::to_ec2(ec2_options(&lab));
    ec2.degraded().await;
    lab.notice(json!({ "kind": "asg", "state": "Terminated" }));
    ec2.goes(Fate::Terminate).await;
    lab.mend();
    lab.fault(json!({ "name": "throttle", "status": 500, "path": "rebalance" }));
    lab.notice(json!({ "kind": "maintenance", "code": "instance-stop" }));
    ec2.goes(Fate::Stop).await;
}

#[tokio::test]
async fn a_hop_limit_that_is_too_small_is_told_apart_from_a_slow_service() {
    let lab = Lab::start();
    lab.fault(json!({ "name": "hop-limit" }));
    let mut ec2 = Listening::to_ec2(ec2_options(&lab));
    let reason = ec2.degraded().await;
    assert!(reason.contains("hop limit"), "{reason}");
    let Condition::Degraded { remedy, .. } = ec2.listener.health.borrow().condition.clone() else {
        unreachable!()
    };
    assert!(
        remedy.contains("--http-put-response-hop-limit 2"),
        "{remedy}"
    );
    // Nothing was read the old way.
    let unsafely = |request: &Value| request["method"] == "GET" && request["status"] == 200;
    assert!(!lab.requests(0).iter().any(unsafely));
}

#[tokio::test]
async fn a_service_that_comes_late_or_starts_anew_is_found() {
    let port = Lab::start().port();
    let gone = Endpoint::parse(&format!("http://127.0.0.1:{port}")).expect("it is an address");
    let options = ec2_metadata::Options {
        pace: PACE,
        limits: LIMITS,
        ..ec2_metadata::Options::new(gone)
    };
    let mut looked_for = Listening::to_ec2(options.clone());
    let mut expected = Listening::to_ec2(ec2_metadata::Options {
        expect: Expect::Here,
        ..options
    });
    looked_for.absent().await;
    expected.degraded().await;
    for action in ["terminate", "stop"] {
        let lab = Lab::start_at("127.0.0.1", port);
        looked_for.works().await;
        expected.works().await;
        lab.notice(json!({ "kind": "spot", "in": 120, "action": action }));
        for ec2 in [&mut looked_for, &mut expected] {
            // Of the second round, the other action of what is still the same notice.
            let announced = ec2.announced().await;
            assert!(
                matches!(announced.says, Says::Goes { at: Some(_), .. }),
                "{announced:?}"
            );
        }
        drop(lab);
        looked_for.degraded().await;
        expected.degraded().await;
    }
}

#[tokio::test]
async fn what_is_not_the_service_that_is_looked_for_is_absent_and_not_an_error() {
    let lab = Lab::start();
    // 404 to everything is what another cloud's service has to say to this one's questions.
    lab.fault(json!({ "name": "missing" }));
    Listening::to_ec2(ec2_options(&lab)).absent().await;
    Listening::to_gcp(gcp_options(&lab)).absent().await;
    Listening::to_azure(azure_options(&lab)).absent().await;
    let expected = ec2_metadata::Options {
        expect: Expect::Here,
        ..ec2_options(&lab)
    };
    Listening::to_ec2(expected).degraded().await;
}

#[tokio::test]
async fn the_service_is_reached_over_ipv6() {
    let lab = Lab::start_at("::1", 0);
    lab.notice(json!({ "kind": "spot" }));
    Listening::to_ec2(ec2_options(&lab))
        .goes(Fate::Terminate)
        .await;
}

#[tokio::test]
async fn an_instance_knows_what_it_is() {
    let lab = Lab::start();
    lab.notice(json!({ "kind": "asg", "state": "Warmed:Running" }));
    let instance = ec2_metadata::instance(&ec2_options(&lab))
        .await
        .expect("it answers");
    assert_eq!(instance.id, "i-0123456789abcdef0");
    assert_eq!(
        (instance.kind.as_str(), instance.zone.as_str()),
        ("m7i.large", "eu-central-1b")
    );
    assert_eq!(
        (instance.region.as_str(), instance.purchase),
        ("eu-central-1", Some(Purchase::Spot))
    );
    let tags: Vec<(&str, &str)> = instance
        .tags
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    assert_eq!(tags, [("Name", "worker"), ("reprieve:job", "nightly")]);
    assert_eq!(
        instance.target_state.map(TargetState::may_take_a_job),
        Some(false)
    );

    lab.facts(json!({ "tags": {}, "instance-life-cycle": "on-demand" }));
    lab.clear("asg");
    let instance = ec2_metadata::instance(&ec2_options(&lab))
        .await
        .expect("it answers");
    assert!(instance.tags.is_empty() && instance.target_state.is_none());
    assert_eq!(instance.purchase, Some(Purchase::OnDemand));

    lab.fault(json!({ "name": "html" }));
    assert!(ec2_metadata::instance(&ec2_options(&lab)).await.is_err());
}

#[tokio::test]
async fn machines_of_google_and_azure_know_what_they_are() {
    let lab = Lab::start();
    let google = gcp::instance(&gcp_options(&lab)).await;
    let google = google.expect("it answers");
    assert_eq!(
        (
            google.name.as_str(),
            google.kind.as_str(),
            google.zone.as_str()
        ),
        ("worker-1", "n2-standard-4", "europe-west3-a")
    );
    assert_eq!(google.purchase, Some(Purchase::Spot));
    let azure = azure::instance(&azure_options(&lab)).await;
    let azure = azure.expect("it answers");
    assert_eq!(
        (
            azure.name.as_str(),
            azure.kind.as_str(),
            azure.zone.as_str()
        ),
        ("vm_0", "Standard_D4s_v5", "westeurope-2")
    );
    assert_eq!(azure.purchase, Some(Purchase::Spot));

    lab.fault(json!({ "name": "html" }));
    assert!(gcp::instance(&gcp_options(&lab)).await.is_err());
    assert!(azure::instance(&azure_options(&lab)).await.is_err());
}

#[test]
fn the_environment_of_awss_own_tools_is_honoured() {
    let options = |variables: &[(&str, &str)]| {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        ec2_metadata::Options::from_environment(variable)
            .map(|options| options.map(|options| options.endpoint))
    };
    let at = |address: &str| Ok(Some(Endpoint::parse(address).expect("it is one")));
    assert_eq!(options(&[]), at("http://169.254.169.254"));
    assert_eq!(
        options(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "IPv6")]),
        at("http://[fd00:ec2::254]")
    );
    let given = (
        "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        "http://127.0.0.1:1338/",
    );
    assert_eq!(options(&[given]), at("http://127.0.0.1:1338"));
    assert_eq!(
        options(&[given, ("AWS_EC2_METADATA_DISABLED", "True")]),
        Ok(None)
    );
    assert!(options(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", "over there")]).is_err());
}

// ---- Google Cloud

#[tokio::test]
async fn a_preemption_is_waited_for_and_announced_once_with_its_thirty_seconds() {
    let lab = Lab::start();
    let mut gcp = Listening::to_gcp(gcp_options(&lab));
    gcp.works().await;
    wait_until("both are waited for", || lab.requests(0).len() == 4).await;
    let asked = lab.requests(0);
    let waits = asked
        .iter()
        .filter(|request| request["query"]["wait_for_change"] == "true");
    assert_eq!(waits.count(), 2, "{asked:?}");
    let before = now();
    lab.notice(json!({ "kind": "gcp-preempted" }));
    let (identity, at) = gcp.goes(Fate::Terminate).await;
    assert_eq!(identity, "preempted:TRUE");
    let at = at.expect("it has a time").0;
    assert!((before + 30_000..=now() + 30_000).contains(&at), "{at}");
    gcp.says_nothing(&lab).await;
    lab.clear("gcp-preempted");
    gcp.withdraws(&identity).await;
}

#[tokio::test]
async fn maintenance_of_a_host_is_a_move_or_an_end() {
    let lab = Lab::start();
    let mut gcp = Listening::to_gcp(gcp_options(&lab));
    let cases = [
        ("MIGRATE_ON_HOST_MAINTENANCE", Fate::Maintenance),
        ("TERMINATE_ON_HOST_MAINTENANCE", Fate::Terminate),
    ];
    for (event, fate) in cases {
        lab.notice(json!({ "kind": "gcp-maintenance", "event": event }));
        let (identity, at) = gcp.goes(fate).await;
        assert_eq!(identity, format!("maintenance-event:{event}"));
        assert!(at.is_some());
        lab.clear("gcp-maintenance");
        gcp.withdraws(&identity).await;
    }
    // What has come before anybody listened is read, not waited for.
    lab.notice(json!({ "kind": "gcp-preempted" }));
    let mut late = Listening::to_gcp(gcp_options(&lab));
    late.goes(Fate::Terminate).await;
    lab.notice(json!({ "kind": "gcp-maintenance", "event": "SOMETHING_NEW" }));
    assert!(late.degraded().await.contains("SOMETHING_NEW"));
}

#[tokio::test]
async fn no_fault_of_googles_server_announces_withdraws_or_hides_anything() {
    let lab = Lab::start();
    let mut gcp = Listening::to_gcp(gcp_options(&lab));
    for fault in [
        "throttle", "disabled", "missing", "hang", "reset", "refuse", "html", "garbage", "empty",
        "huge", "cut",
    ] {
        gcp.works().await;
        lab.fault(json!({ "name": fault }));
        gcp.degraded().await;
        lab.notice(json!({ "kind": "gcp-preempted" }));
        assert!(gcp.listener.heard.try_recv().is_err(), "{fault}");
        lab.mend();
        let (identity, _) = gcp.goes(Fate::Terminate).await;
        lab.fault(json!({ "name": fault }));
        gcp.degraded().await;
        lab.mend();
        gcp.works().await;
        assert!(gcp.listener.heard.try_recv().is_err(), "{fault}");
        lab.clear("gcp-preempted");
        gcp.withdraws(&identity).await;
    }
}

// ---- Azure

#[tokio::test]
async fn events_are_told_when_they_name_this_machine() {
    let lab = Lab::start();
    let mut azure = Listening::to_azure(azure_options(&lab));
    azure.works().await;
    lab.notice(json!({ "kind": "azure", "resources": ["vm_1", "vm_2"] }));
    azure.says_nothing(&lab).await;
    let kinds = [
        ("Preempt", Fate::Terminate),
        ("Terminate", Fate::Terminate),
        ("Reboot", Fate::Maintenance),
        ("Redeploy", Fate::Maintenance),
        ("Freeze", Fate::Maintenance),
    ];
    for (kind, fate) in kinds {
        let told =
            lab.notice(json!({ "kind": "azure", "type": kind, "in": 900, "resources": ["VM_0"] }));
        let id = told["id"].as_str().expect("it has one");
        assert_eq!(azure.goes(fate).await, (id.to_owned(), told_at(&told)));
        azure.says_nothing(&lab).await;
        // Without a time from now on: it begins.
        lab.notice(json!({ "kind": "azure", "type": kind, "id": id, "status": "Started" }));
        let (same, at) = azure.goes(fate).await;
        assert_eq!(same, id);
        assert!(at < told_at(&told));
        azure.says_nothing(&lab).await;
        lab.clear("azure");
        azure.withdraws(id).await;
    }
    lab.notice(json!({ "kind": "azure", "type": "Ascend" }));
    azure.goes(Fate::Maintenance).await;
    assert!(azure.degraded().await.contains("Ascend"));
}

#[tokio::test]
async fn an_event_is_acknowledged_once_the_job_has_stopped_durably_and_only_for_ourselves() {
    let lab = Lab::start();
    let mut azure = Listening::to_azure(azure_options(&lab));
    let durable = |afterwards| Settled::Durable {
        generation: 1,
        afterwards,
    };
    let refused = Settled::Refused {
        reason: "no time".into(),
    };
    let not_ours_alone = json!({ "kind": "azure", "resources": ["vm_0", "vm_1"] });
    let ours = json!({ "kind": "azure" });
    let cases = [
        (&ours, refused),
        (&ours, durable(Afterwards::Continue)),
        (&not_ours_alone, durable(Afterwards::Stop)),
        (&ours, durable(Afterwards::Stop)),
    ];
    for (notice, settled) in cases {
        assert_eq!(lab.actions(), Vec::<Value>::new());
        let told = lab.notice(notice.clone());
        let heard = azure.heard().await;
        // None waits for a settlement that nobody needs.
        drop(heard.settled.send(settled.clone()));
        if settled == durable(Afterwards::Stop) && notice == &ours {
            wait_until("the acknowledgement", || !lab.actions().is_empty()).await;
            assert_eq!(lab.actions()[0]["events"], json!([told["id"]]));
            return;
        }
        azure.says_nothing(&lab).await;
        lab.clear("azure");
        azure.withdraws(&heard.announcement.identity).await;
    }
    unreachable!("the last case returns");
}

#[tokio::test]
async fn no_fault_of_azures_service_announces_withdraws_or_hides_anything() {
    let lab = Lab::start();
    let mut azure = Listening::to_azure(azure_options(&lab));
    for fault in [
        "throttle", "missing", "hang", "reset", "refuse", "html", "garbage", "empty", "huge", "cut",
    ] {
        azure.works().await;
        lab.fault(json!({ "name": fault }));
        azure.degraded().await;
        lab.notice(json!({ "kind": "azure" }));
        assert!(azure.listener.heard.try_recv().is_err(), "{fault}");
        lab.mend();
        let (identity, _) = azure.goes(Fate::Terminate).await;
        azure.works().await;
        lab.fault(json!({ "name": fault }));
        azure.degraded().await;
        lab.mend();
        azure.works().await;
        azure.says_nothing(&lab).await;
        lab.clear("azure");
        azure.withdraws(&identity).await;
    }
}

// ---- ECS

#[tokio::test]
async fn a_task_knows_what_it_is() {
    let lab = Lab::start();
    let variable =
        |address: String| move |name: &str| (name == ecs::VARIABLE).then(|| address.clone());
    let address = format!("{}/v4/cd189a933e5849daa93386466019ab50-2495160603", lab.url);
    let task = ecs::task(variable(address.clone()))
        .await
        .expect("it answers")
        .expect("this is ECS");
    assert_eq!(
        (
            task.cluster.as_str(),
            task.family.as_str(),
            task.revision.as_str()
        ),
        ("jobs", "nightly", "7")
    );
    assert!(task.arn.contains(":task/jobs/"), "{}", task.arn);
    assert_eq!(task.launch_type.as_deref(), Some("FARGATE"));
    assert_eq!(ecs::task(|_| None).await, Ok(None));
    lab.fault(json!({ "name": "garbage" }));
    assert!(ecs::task(variable(address)).await.is_err());
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(since.expect("clocks are set").as_millis()).expect("it fits")
}

// ---- The look-alike itself

fn status(answer: &(String, String)) -> u16 {
    let code = answer
        .0
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok());
    code.expect("an answer has a status")
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value
        .as_object()
        .expect("it is an object")
        .keys()
        .map(String::as_str)
        .collect()
}

#[test]
fn the_look_alike_keeps_ec2s_rules() {
    let lab = Lab::start();
    let path = "/latest/api/token";
    let ttl = "X-aws-ec2-metadata-token-ttl-seconds";
    for (lifetime, code) in [
        ("0", 400),
        ("21601", 400),
        ("soon", 400),
        ("1", 200),
        ("21600", 200),
    ] {
        assert_eq!(
            status(&lab.ask("PUT", path, &[(ttl, lifetime)], "")),
            code,
            "{lifetime}"
        );
    }
    assert_eq!(status(&lab.ask("PUT", path, &[], "")), 400);
    assert_eq!(
        status(&lab.ask(
            "PUT",
            path,
            &[(ttl, "60"), ("X-Forwarded-For", "10.0.0.1")],
            ""
        )),
        403
    );
    assert_eq!(
        status(&lab.ask("PUT", "/2021-01-03/api/token", &[(ttl, "60")], "")),
        403
    );
    let given = lab.ask("PUT", path, &[(ttl, "60")], "");
    assert!(
        given
            .0
            .to_ascii_lowercase()
            .contains("x-aws-ec2-metadata-token-ttl-seconds: 60"),
        "{}",
        given.0
    );
    let with =
        |path: &str, token: &str| lab.ask("GET", path, &[("X-aws-ec2-metadata-token", token)], "");
    let id = "/latest/meta-data/instance-id";
    assert_eq!(status(&lab.ask("GET", id, &[], "")), 401);
    assert_eq!(status(&with(id, "made-up")), 401);
    assert_eq!(with(id, &given.1).1, "i-0123456789abcdef0");
    assert_eq!(status(&with(SPOT, &given.1)), 404);
    assert_eq!(
        status(&with("/latest/meta-data/nothing/of/the/kind", &given.1)),
        404
    );
    // The first version, where it is allowed.
    lab.facts(json!({ "http-tokens": "optional" }));
    assert_eq!(lab.ask("GET", id, &[], "").1, "i-0123456789abcdef0");

    let read = |path: &str| with(path, &given.1).1;
    lab.notice(json!({ "kind": "spot", "at": "2017-09-18T08:22:00Z" }));
    assert_eq!(
        read(SPOT),
        r#"{"action":"terminate","time":"2017-09-18T08:22:00Z"}"#
    );
    lab.notice(json!({ "kind": "rebalance", "at": "2020-11-05T08:22:00Z" }));
    let rebalance = read("/latest/meta-data/events/recommendations/rebalance");
    assert_eq!(rebalance, r#"{"noticeTime":"2020-11-05T08:22:00Z"}"#);
    let number = "instance-event-0d59937288b749b32";
    lab.notice(json!({ "kind": "maintenance", "at": "2019-01-21T09:00:43Z", "id": number }));
    let scheduled: Value =
        serde_json::from_str(&read("/latest/meta-data/events/maintenance/scheduled"))
            .expect("JSON");
    let recorded = [
        "NotBefore",
        "Code",
        "Description",
        "EventId",
        "NotAfter",
        "State",
    ];
    assert_eq!(keys(&scheduled[0]), BTreeSet::from(recorded));
    assert_eq!(scheduled[0]["NotBefore"], "21 Jan 2019 09:00:43 GMT");
    assert_eq!(
        (&scheduled[0]["EventId"], &scheduled[0]["State"]),
        (&json!(number), &json!("active"))
    );
    lab.notice(json!({ "kind": "asg", "state": "Terminated" }));
    assert_eq!(
        read("/latest/meta-data/autoscaling/target-lifecycle-state"),
        "Terminated"
    );
    let role = read("/latest/meta-data/iam/security-credentials/");
    let credentials = read(&format!(
        "/latest/meta-data/iam/security-credentials/{role}"
    ));
    let credentials: Value = serde_json::from_str(&credentials).expect("JSON");
    let recorded = [
        "Code",
        "LastUpdated",
        "Type",
        "AccessKeyId",
        "SecretAccessKey",
        "Token",
        "Expiration",
    ];
    assert_eq!(keys(&credentials), BTreeSet::from(recorded));
    let document: Value =
        serde_json::from_str(&read("/latest/dynamic/instance-identity/document")).expect("JSON");
    assert!(keys(&document).is_superset(&BTreeSet::from([
        "accountId",
        "instanceId",
        "instanceType",
        "region"
    ])));
}

#[test]
fn the_look_alike_keeps_the_rules_of_the_other_clouds() {
    let lab = Lab::start();
    let google = ("Metadata-Flavor", "Google");
    assert_eq!(status(&lab.ask("GET", PREEMPTED, &[], "")), 403);
    assert_eq!(
        status(&lab.ask(
            "GET",
            PREEMPTED,
            &[google, ("X-Forwarded-For", "10.0.0.1")],
            ""
        )),
        403
    );
    let (head, value) = lab.ask("GET", PREEMPTED, &[google], "");
    assert!(
        head.contains("Metadata-Flavor: Google") && head.contains("ETag: "),
        "{head}"
    );
    assert_eq!(value, "FALSE");
    let waited = lab.ask(
        "GET",
        &format!("{PREEMPTED}?wait_for_change=true&last_etag=0"),
        &[google],
        "",
    );
    assert_eq!(
        waited.1, "FALSE",
        "another tag than the present one is a change"
    );
    lab.notice(json!({ "kind": "gcp-preempted" }));
    assert_eq!(lab.ask("GET", PREEMPTED, &[google], "").1, "TRUE");
    let maintenance = lab.ask(
        "GET",
        "/computeMetadata/v1/instance/maintenance-event",
        &[google],
        "",
    );
    assert_eq!(maintenance.1, "NONE");

    let path = format!("{EVENTS}?api-version=2020-07-01");
    let azure = ("Metadata", "true");
    assert_eq!(status(&lab.ask("GET", &path, &[], "")), 400);
    assert_eq!(status(&lab.ask("GET", EVENTS, &[azure], "")), 400);
    let document = |lab: &Lab| {
        serde_json::from_str::<Value>(&lab.ask("GET", &path, &[azure], "").1).expect("JSON")
    };
    let empty = document(&lab);
    assert_eq!(
        keys(&empty),
        BTreeSet::from(["DocumentIncarnation", "Events"])
    );
    let told = lab.notice(json!({ "kind": "azure", "at": "2016-09-19T18:29:47Z" }));
    let one = document(&lab);
    assert!(one["DocumentIncarnation"].as_u64() > empty["DocumentIncarnation"].as_u64());
    let event = &one["Events"][0];
    let recorded = [
        "EventId",
        "EventType",
        "ResourceType",
        "Resources",
        "EventStatus",
        "NotBefore",
        "Description",
        "EventSource",
        "DurationInSeconds",
    ];
    assert_eq!(keys(event), BTreeSet::from(recorded));
    assert_eq!(event["NotBefore"], "Mon, 19 Sep 2016 18:29:47 GMT");
    assert_eq!(status(&lab.ask("POST", &path, &[azure], "{}")), 400);
    let start = json!({ "StartRequests": [{ "EventId": told["id"] }] }).to_string();
    assert_eq!(status(&lab.ask("POST", &path, &[azure], &start)), 200);
    let started = document(&lab);
    assert_eq!(
        (
            &started["Events"][0]["EventStatus"],
            &started["Events"][0]["NotBefore"]
        ),
        (&json!("Started"), &json!(""))
    );

    let task = lab.ask("GET", "/v4/abc/task", &[], "").1;
    let task: Value = serde_json::from_str(&task).expect("JSON");
    let recorded = [
        "Cluster",
        "TaskARN",
        "Family",
        "Revision",
        "AvailabilityZone",
        "LaunchType",
    ];
    assert!(keys(&task).is_superset(&BTreeSet::from(recorded)));
}

#[test]
fn the_look_alike_has_the_calls_of_auto_scaling_that_moto_lacks() {
    let lab = Lab::start();
    let call = |action: &str, rest: &str| {
        let body = format!(
            "Action={action}&Version=2011-01-01&AutoScalingGroupName=g&LifecycleHookName=h{rest}"
        );
        lab.ask(
            "POST",
            "/",
            &[("Content-Type", "application/x-www-form-urlencoded")],
            &body,
        )
    };
    let beat = call("RecordLifecycleActionHeartbeat", "&InstanceId=i-1");
    assert_eq!(status(&beat), 200);
    assert!(
        beat.1.contains("<RecordLifecycleActionHeartbeatResult/>"),
        "{}",
        beat.1
    );
    assert_eq!(
        status(&call("CompleteLifecycleAction", "&InstanceId=i-1")),
        400
    );
    assert_eq!(
        status(&call(
            "CompleteLifecycleAction",
            "&InstanceId=i-1&LifecycleActionResult=CONTINUE"
        )),
        200
    );
    let late = call("RecordLifecycleActionHeartbeat", "&InstanceId=i-1");
    assert_eq!(status(&late), 400);
    assert!(
        late.1.contains("<Code>ValidationError</Code>")
            && late.1.contains("No active Lifecycle Action"),
        "{}",
        late.1
    );
    let actions: Vec<Value> = lab
        .actions()
        .iter()
        .map(|call| call["Action"].clone())
        .collect();
    assert_eq!(actions.len(), 4);
    assert_eq!(actions[0], "RecordLifecycleActionHeartbeat");
}
