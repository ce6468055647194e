use std::sync::LazyLock;

use jsonschema::Validator;
use proptest::prelude::*;
use serde_json::json;

use super::*;

static SCHEMA: LazyLock<Validator> =
    LazyLock::new(|| schema(include_str!("../../../../docs/command.schema.json")));

fn schema(text: &str) -> Validator {
    let schema = serde_json::from_str(text).expect("the schema is JSON");
    jsonschema::options()
        .should_validate_formats(true)
        .build(&schema)
        .expect("the schema is one")
}

fn parse(value: &Value) -> Result<Command, NotACommand> {
    Command::parse(&value.to_string())
}

fn me() -> Me {
    Me {
        job: "train-42".into(),
        worker: "host-a".into(),
        instance: Some("i-0abc".into()),
    }
}

/// A message that nothing is wrong with, of each kind.
fn examples() -> [(Value, Asks); 5] {
    let at = WallMs(1_795_226_520_000);
    [
        (
            json!({"v": 1, "id": "1", "command": "checkpoint", "target": {"job": "train-42"}, "afterwards": "continue",
                   "tag": "release-1.4", "deadline": "2026-11-21T02:02:00Z"}),
            Asks::Checkpoint {
                afterwards: Afterwards::Continue,
                tag: Some("release-1.4".into()),
                deadline: Some(at),
            },
        ),
        (
            json!({"v": 1, "id": "2", "command": "stop", "target": {"worker": "host-a"}}),
            Asks::Stop,
        ),
        (
            json!({"v": 1, "id": "3", "command": "status", "target": {"instance": "i-0abc"}}),
            Asks::Status,
        ),
        (
            json!({"v": 1, "id": "4", "command": "rollback", "target": {"job": "train-42"}, "generation": 7}),
            Asks::Rollback(Goal::Generation(7)),
        ),
        (
            json!({"v": 1, "id": "5", "command": "rollback", "target": {"job": "train-42"}, "tag": "release-1.4"}),
            Asks::Rollback(Goal::Tag("release-1.4".into())),
        ),
    ]
}

#[test]
fn each_command_is_understood_and_written_as_it_is_read() {
    for (message, asks) in examples() {
        let command = parse(&message).expect("nothing is wrong with it");
        assert_eq!(command.asks, asks, "{message}");
        assert_eq!(Command::parse(&command.to_text()), Ok(command), "{message}");
        assert!(SCHEMA.is_valid(&message), "{message}");
    }
}

#[test]
fn every_fault_is_told_in_words_and_all_of_them_together() {
    let head = r#""v":1,"id":"1","target":{"job":"j"}"#;
    let cases = [
        (
            "",
            "it is not JSON: EOF while parsing a value at line 1 column 0",
        ),
        ("[]", "it is JSON, but no object"),
        ("{}", "it has no version; this program understands \"v\":1"),
        (
            r#"{"v":"1"}"#,
            "it has version \"1\", this program understands 1",
        ),
        (
            r#"{"v":2,"new":true}"#,
            "it has version 2, this program understands 1",
        ),
        (
            r#"{"v":1}"#,
            "id is missing; target is missing; command is missing",
        ),
        (
            &format!(r#"{{{head},"command":"restart"}}"#),
            "command is \"restart\", not one of checkpoint, stop, status, rollback",
        ),
        (
            &format!(r#"{{{head},"command":"checkpoint"}}"#),
            "afterwards is missing",
        ),
        (
            &format!(r#"{{{head},"command":"checkpoint","afterwards":"go"}}"#),
            "afterwards is \"go\", not continue or stop",
        ),
        (
            &format!(r#"{{{head},"command":"checkpoint","afterwards":"stop","deadlin":1}}"#),
            "\"deadlin\" is not known here",
        ),
        (
            &format!(r#"{{{head},"command":"status","tag":"t"}}"#),
            "\"tag\" is not known here",
        ),
        (
            &format!(r#"{{{head},"command":"status","not_after":"tomorrow"}}"#),
            "not_after is \"tomorrow\", not a time like 2026-11-21T02:00:00Z (UTC)",
        ),
        (
            &format!(r#"{{{head},"command":"rollback"}}"#),
            "a rollback needs the generation or the tag of the snapshot to go back to",
        ),
        (
            &format!(r#"{{{head},"command":"rollback","tag":"t","generation":1}}"#),
            "generation and tag are both given; one of them says it",
        ),
        (
            &format!(r#"{{{head},"command":"rollback","generation":0}}"#),
            "generation is 0, not a number from 1 on",
        ),
        (
            r#"{"v":1,"id":"","command":"stop","target":{}}"#,
            "id is \"\", not 1 to 128 printable ASCII characters without spaces; target names nobody; name the job, \
             the worker or the instance that is meant",
        ),
        (
            r#"{"v":1,"id":"a","command":"stop","target":{"pod":"x"}}"#,
            "target names nobody; name the job, the worker or the instance that is meant; target.\"pod\" is not known here",
        ),
        (
            r#"{"v":1,"id":"a","command":"stop","target":"j"}"#,
            "target is no object like {\"job\":\"train-42\"}",
        ),
    ];
    for (text, fault) in cases {
        let error = Command::parse(text).expect_err(text);
        assert_eq!(error.to_string(), fault, "{text}");
        if let Ok(value) = serde_json::from_str::<Value>(text) {
            assert!(!SCHEMA.is_valid(&value), "{text}");
        }
    }
    let long = format!("{}{}", " ".repeat(SIZE_LIMIT), "{}");
    assert_eq!(
        Command::parse(&long),
        Err(NotACommand::TooLong(SIZE_LIMIT + 2))
    );
}

#[test]
fn a_fault_is_short_however_long_the_value() {
    let message =
        json!({"v": 1, "id": "x".repeat(10_000), "command": "stop", "target": {"job": "j"}});
    let error = parse(&message).expect_err("it is too long").to_string();
    assert!(error.len() < 200, "{error}");
}

#[test]
fn a_command_is_for_whoever_is_all_that_it_names() {
    let target = |job: Option<&str>, worker: Option<&str>, instance: Option<&str>| Target {
        job: job.map(str::to_owned),
        worker: worker.map(str::to_owned),
        instance: instance.map(str::to_owned),
    };
    let mine = [
        target(Some("train-42"), None, None),
        target(None, Some("host-a"), None),
        target(Some("train-42"), Some("host-a"), Some("i-0abc")),
    ];
    for target in mine {
        assert_eq!(target.other_than(&me()), None, "{target:?}");
    }
    let others = [
        (
            target(Some("other"), None, None),
            "it is for the job other, this is train-42",
        ),
        (
            target(Some("train-42"), Some("host-b"), None),
            "it is for the worker host-b, this is host-a",
        ),
        (
            target(None, None, Some("i-1")),
            "it is for the instance i-1, this is i-0abc",
        ),
    ];
    for (target, why) in others {
        assert_eq!(target.other_than(&me()).as_deref(), Some(why));
    }
    let nowhere = Me {
        instance: None,
        ..me()
    };
    assert_eq!(
        target(None, None, Some("i-1"))
            .other_than(&nowhere)
            .as_deref(),
        Some("it is for the instance i-1, and it is not known which this is")
    );
}

#[test]
fn a_command_expires() {
    let mut message = examples()[1].0.clone();
    message["not_after"] = "2026-11-21T02:02:00Z".into();
    let command = parse(&message).expect("it is whole");
    let limit = command.not_after.expect("it was given");
    assert_eq!(command.too_late(limit), None);
    assert_eq!(
        command.too_late(WallMs(limit.0 + 2_500)).as_deref(),
        Some("it was not to be carried out after 2026-11-21T02:02:00.000Z, which was 2 s ago")
    );
}

#[test]
fn replies_are_stored_and_fit_their_schema() {
    let schema = schema(include_str!("../../../../docs/reply.schema.json"));
    let command = parse(&examples()[0].0).expect("it is whole");
    let reply = |settled| Reply::new(&command, me(), settled);
    let cases = [
        (
            reply(Settled::Durable {
                generation: 7,
                afterwards: Afterwards::Continue,
            }),
            r#"{"v":1,"id":"1","command":"checkpoint","from":{"job":"train-42","worker":"host-a","instance":"i-0abc"},"outcome":"durable","generation":7,"afterwards":"continue","repeated":false}"#,
        ),
        (
            reply(Settled::Refused { reason: "r".into() }),
            r#"{"v":1,"id":"1","command":"checkpoint","from":{"job":"train-42","worker":"host-a","instance":"i-0abc"},"outcome":"refused","reason":"r","repeated":false}"#,
        ),
        (
            Reply {
                repeated: true,
                status: Some(json!({"state": "running"})),
                ..reply(Settled::Noted)
            },
            r#"{"v":1,"id":"1","command":"checkpoint","from":{"job":"train-42","worker":"host-a","instance":"i-0abc"},"outcome":"noted","repeated":true,"status":{"state":"running"}}"#,
        ),
    ];
    for (reply, line) in cases {
        let written = serde_json::to_string(&reply).expect("it is JSON");
        assert_eq!(written, line);
        let value: Value = serde_json::from_str(line).expect("it is JSON");
        assert!(schema.is_valid(&value), "{line}");
        assert_eq!(
            serde_json::from_value::<Reply>(value).expect("its own line"),
            reply
        );
    }
}

/// A value that a message may hold somewhere, right or wrong.
fn anything() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        Just(json!(1)),
        "[ -~é\u{7f}\n]{0,6}".prop_map(Value::from),
        "[a-z._-]{120,135}".prop_map(Value::from),
        proptest::sample::select(vec![
            "stop",
            "continue",
            "checkpoint",
            "status",
            "rollback",
            "i-0abc",
            "",
            ".hidden",
            "2026-11-21T02:02:00Z",
            "2026-11-21T02:02:00.123Z",
            "2026-13-21T02:02:00Z",
            "2026-11-21 02:02:00Z",
            "2026-11-21T02:02:00+01:00",
        ])
        .prop_map(Value::from),
        Just(json!({"job": "j"})),
        Just(json!({"job": "j", "worker": 7})),
        Just(json!([])),
    ]
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_fall(text in "\\PC{0,200}") {
        drop(Command::parse(&text));
    }

    /// A right message with fields changed, added and removed: parser and schema are of one mind.
    #[test]
    fn the_parser_takes_what_the_schema_takes(
        which in 0usize..5,
        changes in proptest::collection::vec((
            proptest::sample::select(vec![
                "v", "id", "command", "target", "afterwards", "tag", "deadline", "generation", "issued_at", "not_after", "other",
            ]),
            proptest::option::of(anything()),
        ), 0..3),
    ) {
        let mut message = examples()[which].0.clone();
        let fields = message.as_object_mut().expect("messages are objects");
        for (name, value) in changes {
            match value {
                Some(value) => { fields.insert(name.to_owned(), value); }
                None => { fields.remove(name); }
            }
        }
        let parsed = parse(&message);
        prop_assert_eq!(parsed.is_ok(), SCHEMA.is_valid(&message), "{}: {:?}", message, parsed);
        if let Ok(command) = parsed {
            prop_assert_eq!(Command::parse(&command.to_text()), Ok(command));
        }
    }
}
