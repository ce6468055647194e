//! What EC2, Auto Scaling and AWS Health say through EventBridge or SNS: from a message's text to an announcement about
//! this machine, to the word that it is about another one, or to why it is not understood.
//!
//! Only reads. Identities are those that the metadata source gives, where both tell of the same: the kind, and what the
//! provider says of the time, never the time of the poll. An event names its instance in `detail`; the ARN beside it
//! has no account in some events and is not looked at.

use reprieve_core::command::{text_of, wall};
use reprieve_core::notice::{Announcement, Fate, Says, Source, WallMs};
use serde_json::Value;

/// From the warning of a spot interruption to the interruption. The event itself has no deadline.
pub const SPOT_LEAD_MS: u64 = 120_000;

/// What a message is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// About this machine.
    Ours(Box<Event>),
    /// About others.
    Others {
        issued: Option<WallMs>,
    },
    /// Nothing follows from it, and this is why.
    Nothing(String),
    NotUnderstood(String),
    /// Neither of EventBridge nor of SNS nor of Auto Scaling.
    NotAnEvent,
}

/// Something that is announced about this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub announcement: Announcement,
    /// When the provider said so.
    pub issued: WallMs,
    /// The lifecycle hook that holds the machine back until it is completed.
    pub hook: Option<Hook>,
}

/// A lifecycle action that waits to be completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    pub group: String,
    pub name: String,
    pub instance: String,
    /// Without one the action is found by its instance.
    pub token: Option<String>,
}

/// Reads a message for the machine called `me`. An unknown name is that of no event.
pub fn read(text: &str, me: Option<&str>) -> Reading {
    match serde_json::from_str(text) {
        Ok(message) => read_message(&message, me, Wrapping::Allowed),
        Err(_) => Reading::NotAnEvent,
    }
}

/// SNS wraps once; whoever wraps again wants to be unwrapped for ever.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrapping {
    Allowed,
    Unwrapped,
}

fn read_message(message: &Value, me: Option<&str>, wrapping: Wrapping) -> Reading {
    if text(message, "Type") == Some("Notification") {
        let inner = text(message, "Message").and_then(|inner| serde_json::from_str(inner).ok());
        return match (inner, wrapping) {
            (Some(inner), Wrapping::Allowed) => match read_message(&inner, me, Wrapping::Unwrapped)
            {
                Reading::NotAnEvent => {
                    Reading::NotUnderstood("SNS wraps something that is no event of AWS".into())
                }
                reading => reading,
            },
            (None, _) => Reading::NotUnderstood("SNS wraps something that is not JSON".into()),
            (Some(_), _) => Reading::NotUnderstood("it is wrapped by SNS more than once".into()),
        };
    }
    if text(message, "Event") == Some("autoscaling:TEST_NOTIFICATION") {
        return Reading::Nothing("the test notification of a new lifecycle hook".into());
    }
    if message.get("LifecycleTransition").is_some() {
        let issued = text(message, "Time").and_then(wall);
        return lifecycle(message, issued, me);
    }
    match (text(message, "source"), text(message, "detail-type")) {
        (Some(source), Some(kind)) => envelope(message, source, kind, me),
        _ => Reading::NotAnEvent,
    }
}

fn envelope(message: &Value, source: &str, kind: &str, me: Option<&str>) -> Reading {
    let Some(issued) = text(message, "time").and_then(wall) else {
        return Reading::NotUnderstood(format!("{kind}: it has no time"));
    };
    let Some(detail) = message.get("detail").filter(|detail| detail.is_object()) else {
        return Reading::NotUnderstood(format!("{kind}: it has no detail"));
    };
    match (source, kind) {
        ("aws.ec2", "EC2 Spot Instance Interruption Warning") => {
            interruption("spot", kind, detail, issued, me)
        }
        ("aws.ec2", "EC2 Capacity Reservation Instance Interruption Warning") => {
            interruption("capacity", kind, detail, issued, me)
        }
        ("aws.ec2", "EC2 Instance Rebalance Recommendation") => {
            of_instance(kind, detail, me, issued, |_| {
                Ok((format!("rebalance:{}", seconds(issued)), Fate::AtRisk, None))
            })
        }
        ("aws.ec2", "EC2 Instance State-change Notification") => {
            state_change(kind, detail, issued, me)
        }
        ("aws.autoscaling", "EC2 Instance-terminate Lifecycle Action") => {
            lifecycle(detail, Some(issued), me)
        }
        ("aws.autoscaling", "EC2 Instance-launch Lifecycle Action") => {
            Reading::Nothing("an instance is launched".into())
        }
        ("aws.health", "AWS Health Event") => health(detail, issued, me),
        _ => Reading::NotUnderstood(format!("an event {} of {}", shown(kind), shown(source))),
    }
}

type Found = Result<(String, Fate, Option<WallMs>), String>;

/// An event that names one instance, and what it says if that is this one.
fn of_instance(
    kind: &str,
    detail: &Value,
    me: Option<&str>,
    issued: WallMs,
    found: impl FnOnce(&Value) -> Found,
) -> Reading {
    let Some(instance) = text(detail, "instance-id") else {
        return Reading::NotUnderstood(format!("{kind}: it names no instance"));
    };
    // Also for another machine: what nobody understands is not handed on for ever.
    match found(detail) {
        Ok(_) if me != Some(instance) => Reading::Others {
            issued: Some(issued),
        },
        Ok(found) => ours(found, issued, None),
        Err(why) => Reading::NotUnderstood(format!("{kind}: {why}")),
    }
}

fn ours(
    (identity, fate, at): (String, Fate, Option<WallMs>),
    issued: WallMs,
    hook: Option<Hook>,
) -> Reading {
    Reading::Ours(Box::new(Event {
        announcement: Announcement {
            source: Source::Sqs,
            identity,
            says: Says::Goes { fate, at },
        },
        issued,
        hook,
    }))
}

fn interruption(
    prefix: &str,
    kind: &str,
    detail: &Value,
    issued: WallMs,
    me: Option<&str>,
) -> Reading {
    of_instance(kind, detail, me, issued, |detail| {
        let action = text(detail, "instance-action").ok_or("it names no action")?;
        let fate = match action {
            "terminate" => Fate::Terminate,
            "stop" => Fate::Stop,
            "hibernate" => Fate::Hibernate,
            other => return Err(format!("it announces {}", shown(other))),
        };
        let at = WallMs(issued.0 + SPOT_LEAD_MS);
        Ok((format!("{prefix}:{action}:{}", seconds(at)), fate, Some(at)))
    })
}

fn state_change(kind: &str, detail: &Value, issued: WallMs, me: Option<&str>) -> Reading {
    let state = text(detail, "state").unwrap_or_default();
    let fate = match state {
        "shutting-down" => Fate::Terminate,
        "stopping" => Fate::Stop,
        "pending" | "running" | "stopped" | "terminated" => {
            return Reading::Nothing(format!("an instance is {state}"));
        }
        other => return Reading::NotUnderstood(format!("{kind}: the state {}", shown(other))),
    };
    of_instance(kind, detail, me, issued, |_| {
        // It happens already.
        Ok((
            format!("state:{state}:{}", seconds(issued)),
            fate,
            Some(issued),
        ))
    })
}

fn lifecycle(detail: &Value, issued: Option<WallMs>, me: Option<&str>) -> Reading {
    let kind = "a lifecycle action";
    match text(detail, "LifecycleTransition") {
        Some("autoscaling:EC2_INSTANCE_TERMINATING") => {}
        Some("autoscaling:EC2_INSTANCE_LAUNCHING") => {
            return Reading::Nothing("an instance is launched".into());
        }
        other => {
            let other = shown(other.unwrap_or_default());
            return Reading::NotUnderstood(format!("{kind}: the transition {other}"));
        }
    }
    let (Some(group), Some(name), Some(instance)) = (
        text(detail, "AutoScalingGroupName"),
        text(detail, "LifecycleHookName"),
        text(detail, "EC2InstanceId"),
    ) else {
        return Reading::NotUnderstood(format!(
            "{kind}: it lacks its group, its hook or its instance"
        ));
    };
    let Some(issued) = issued else {
        return Reading::NotUnderstood(format!("{kind}: it has no time"));
    };
    if me != Some(instance) {
        return Reading::Others {
            issued: Some(issued),
        };
    }
    let token = text(detail, "LifecycleActionToken").map(str::to_owned);
    let hook = Hook {
        group: group.to_owned(),
        name: name.to_owned(),
        instance: instance.to_owned(),
        token,
    };
    let identity = match &hook.token {
        Some(token) => format!("asg:{token}"),
        None => "asg:terminated".to_owned(),
    };
    // How long the hook waits is not said, and it can be extended.
    ours((identity, Fate::Terminate, None), issued, Some(hook))
}

fn health(detail: &Value, issued: WallMs, me: Option<&str>) -> Reading {
    let (service, category) = (
        text(detail, "service").unwrap_or_default(),
        text(detail, "eventTypeCategory").unwrap_or_default(),
    );
    if service != "EC2" || category != "scheduledChange" {
        return Reading::Nothing(format!(
            "AWS Health tells of {} of {}",
            shown(category),
            shown(service)
        ));
    }
    let entities = detail.get("affectedEntities").and_then(Value::as_array);
    let mut named = entities
        .into_iter()
        .flatten()
        .filter_map(|entity| text(entity, "entityValue"));
    let (Some(number), Some(code)) = (text(detail, "eventArn"), text(detail, "eventTypeCode"))
    else {
        return Reading::NotUnderstood("AWS Health Event: it has no ARN or no type".into());
    };
    if !named.any(|entity| Some(entity) == me) {
        return Reading::Others {
            issued: Some(issued),
        };
    }
    let identity = format!("maintenance:{number}");
    if matches!(text(detail, "statusCode"), Some("closed")) {
        return Reading::Ours(Box::new(Event {
            announcement: Announcement {
                source: Source::Sqs,
                identity,
                says: Says::Withdrawn,
            },
            issued,
            hook: None,
        }));
    }
    let fate = match code {
        code if code.contains("RETIREMENT") => Fate::Terminate,
        code if code.contains("STOP") => Fate::Stop,
        _ => Fate::Maintenance,
    };
    let at = text(detail, "startTime").and_then(http_date);
    ours((identity, fate, at), issued, None)
}

/// `Sat, 05 Jun 2016 15:10:09 GMT`. The weekday is not looked at: AWS's own example has a wrong one.
fn http_date(text: &str) -> Option<WallMs> {
    use aws_smithy_types::date_time::{DateTime, Format};
    let date = DateTime::from_str(text, Format::HttpDate).ok()?;
    u64::try_from(date.to_millis().ok()?).ok().map(WallMs)
}

/// As the metadata service writes it.
fn seconds(at: WallMs) -> String {
    let whole = text_of(WallMs(at.0 / 1000 * 1000));
    whole.replace(".000Z", "Z")
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

/// Short and on one line, whatever it holds.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const ME: Option<&str> = Some("i-0abc");

    #[allow(clippy::needless_pass_by_value, reason = "it is made in place")]
    fn envelope(source: &str, kind: &str, detail: Value) -> Value {
        json!({"version": "0", "id": "12345678-1234-1234-1234-123456789012", "detail-type": kind, "source": source,
               "account": "123456789012", "time": "2026-11-21T02:00:00Z", "region": "us-east-2",
               "resources": ["arn:aws:ec2:us-east-2a:instance/i-0abc"], "detail": detail})
    }

    fn hook_fields() -> Value {
        json!({"LifecycleActionToken": "87654321-4321", "AutoScalingGroupName": "fleet", "LifecycleHookName": "drain",
               "EC2InstanceId": "i-0abc", "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING",
               "Origin": "AutoScalingGroup", "Destination": "EC2"})
    }

    #[track_caller]
    fn found(message: &Value) -> Event {
        match read(&message.to_string(), ME) {
            Reading::Ours(event) => *event,
            other => panic!("{other:?}"),
        }
    }

    fn at(text: &str) -> Option<WallMs> {
        Some(wall(text).expect("it is a time"))
    }

    #[test]
    fn each_kind_of_event_about_this_machine_is_announced() {
        let ec2 = |kind: &str, detail| envelope("aws.ec2", kind, detail);
        let spot = "EC2 Spot Instance Interruption Warning";
        let capacity = "EC2 Capacity Reservation Instance Interruption Warning";
        let state = "EC2 Instance State-change Notification";
        let deadline = at("2026-11-21T02:02:00Z");
        let cases = [
            (
                ec2(
                    spot,
                    json!({"instance-id": "i-0abc", "instance-action": "terminate"}),
                ),
                "spot:terminate:2026-11-21T02:02:00Z",
                Fate::Terminate,
                deadline,
            ),
            (
                ec2(
                    spot,
                    json!({"instance-id": "i-0abc", "instance-action": "stop"}),
                ),
                "spot:stop:2026-11-21T02:02:00Z",
                Fate::Stop,
                deadline,
            ),
            (
                ec2(
                    spot,
                    json!({"instance-id": "i-0abc", "instance-action": "hibernate"}),
                ),
                "spot:hibernate:2026-11-21T02:02:00Z",
                Fate::Hibernate,
                deadline,
            ),
            (
                ec2(
                    capacity,
                    json!({"instance-id": "i-0abc", "instance-action": "terminate"}),
                ),
                "capacity:terminate:2026-11-21T02:02:00Z",
                Fate::Terminate,
                deadline,
            ),
            (
                ec2(
                    "EC2 Instance Rebalance Recommendation",
                    json!({"instance-id": "i-0abc"}),
                ),
                "rebalance:2026-11-21T02:00:00Z",
                Fate::AtRisk,
                None,
            ),
            (
                ec2(
                    state,
                    json!({"instance-id": "i-0abc", "state": "shutting-down"}),
                ),
                "state:shutting-down:2026-11-21T02:00:00Z",
                Fate::Terminate,
                at("2026-11-21T02:00:00Z"),
            ),
            (
                envelope(
                    "aws.autoscaling",
                    "EC2 Instance-terminate Lifecycle Action",
                    hook_fields(),
                ),
                "asg:87654321-4321",
                Fate::Terminate,
                None,
            ),
            (
                envelope(
                    "aws.health",
                    "AWS Health Event",
                    json!({"eventArn": "arn:aws:health:us-east-2::event/EC2/X/X_1", "service": "EC2",
                           "eventTypeCode": "AWS_EC2_INSTANCE_REBOOT_MAINTENANCE_SCHEDULED",
                           "eventTypeCategory": "scheduledChange", "startTime": "Sat, 05 Jun 2027 15:10:09 GMT",
                           "affectedEntities": [{"entityValue": "i-1"}, {"entityValue": "i-0abc"}]}),
                ),
                "maintenance:arn:aws:health:us-east-2::event/EC2/X/X_1",
                Fate::Maintenance,
                at("2027-06-05T15:10:09Z"),
            ),
        ];
        for (message, identity, fate, time) in cases {
            let event = found(&message);
            assert_eq!(event.announcement.identity, identity);
            assert_eq!(
                event.announcement.says,
                Says::Goes { fate, at: time },
                "{identity}"
            );
            assert_eq!(Some(event.issued), at("2026-11-21T02:00:00Z"));
            let wrapped =
                json!({"Type": "Notification", "MessageId": "m", "Message": message.to_string()});
            assert_eq!(found(&wrapped), event);
            assert!(
                matches!(
                    read(&message.to_string(), Some("i-0fff")),
                    Reading::Others { .. }
                ),
                "{identity}"
            );
            assert!(matches!(
                read(&message.to_string(), None),
                Reading::Others { .. }
            ));
        }
    }

    #[test]
    fn a_lifecycle_action_brings_what_completes_it_also_straight_from_auto_scaling() {
        let hook = Hook {
            group: "fleet".into(),
            name: "drain".into(),
            instance: "i-0abc".into(),
            token: Some("87654321-4321".into()),
        };
        let mut flat = hook_fields();
        flat["Service"] = "AWS Auto Scaling".into();
        flat["Time"] = "2026-11-21T02:00:00.123Z".into();
        assert_eq!(found(&flat).hook, Some(hook));
    }

    #[test]
    fn what_nothing_follows_from_says_why() {
        let cases = [
            (
                json!({"Service": "AWS Auto Scaling", "Event": "autoscaling:TEST_NOTIFICATION"}),
                "the test notification of a new lifecycle hook",
            ),
            (
                envelope(
                    "aws.ec2",
                    "EC2 Instance State-change Notification",
                    json!({"instance-id": "i-0abc", "state": "running"}),
                ),
                "an instance is running",
            ),
            (
                envelope(
                    "aws.health",
                    "AWS Health Event",
                    json!({"service": "S3", "eventTypeCategory": "issue"}),
                ),
                "AWS Health tells of \"issue\" of \"S3\"",
            ),
        ];
        for (message, why) in cases {
            assert_eq!(read(&message.to_string(), ME), Reading::Nothing(why.into()));
        }
    }

    #[test]
    fn what_is_not_understood_says_why() {
        let spot = "EC2 Spot Instance Interruption Warning";
        let mut timeless = envelope(
            "aws.ec2",
            spot,
            json!({"instance-id": "i-0abc", "instance-action": "stop"}),
        );
        timeless["time"] = "soon".into();
        let cases = [
            (envelope("aws.ec2", spot, json!({})), "names no instance"),
            (
                envelope(
                    "aws.ec2",
                    spot,
                    json!({"instance-id": "i-0abc", "instance-action": "explode"}),
                ),
                "it announces \"explode\"",
            ),
            (
                envelope(
                    "aws.ec2",
                    spot,
                    json!({"instance-id": "i-1", "instance-action": "explode"}),
                ),
                "it announces \"explode\"",
            ),
            (timeless, "it has no time"),
            (envelope("aws.ec2", spot, json!("x")), "it has no detail"),
            (
                envelope("aws.batch", "Batch Job State Change", json!({})),
                "an event \"Batch Job State Change\" of \"aws.batch\"",
            ),
            (
                json!({"Type": "Notification", "Message": "hello"}),
                "SNS wraps something that is not JSON",
            ),
            (
                json!({"Type": "Notification", "Message": "{\"Type\":\"Notification\",\"Message\":\"{}\"}"}),
                "it is wrapped by SNS more than once",
            ),
        ];
        for (message, why) in cases {
            let reading = read(&message.to_string(), ME);
            let Reading::NotUnderstood(said) = &reading else {
                panic!("{message}: {reading:?}");
            };
            assert!(said.contains(why), "{said}");
        }
        for text in ["", "checkpoint", "[]", r#"{"v":1,"id":"1"}"#] {
            assert_eq!(read(text, ME), Reading::NotAnEvent, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_fall(text in "\\PC{0,200}") {
            drop(read(&text, ME));
        }

        #[test]
        fn no_change_of_a_field_makes_the_reader_fall(
            key in proptest::sample::select(vec!["source", "detail-type", "time", "detail", "id"]),
            value in prop_oneof![Just(json!(null)), Just(json!(7)), Just(json!({})), Just(json!([])), Just(json!("x"))],
        ) {
            let mut message = envelope("aws.health", "AWS Health Event", json!({"affectedEntities": [3, null, {"a": 1}]}));
            message[key] = value;
            drop(read(&message.to_string(), ME));
        }
    }
}
