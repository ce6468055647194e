//! Commands and events through SQS: real hosts, real CRIU, a real queue server, and workers that die in the middle.

mod harness;
mod job;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, SystemTime};

use harness::{Builder, Exit, Host, LIMIT, Lab, Lookalike, wait_for, wait_until};
use job::{COUNTER, Store, assert_counts, wait_for_log, wait_for_output};
use serde_json::{Value, json};

/// One for all tests, since it takes seconds to start; it ends with this program.
static SERVER: LazyLock<Lookalike> = LazyLock::new(Lookalike::start);

/// For what takes several rounds of several workers.
const PATIENCE: Duration = Duration::from_secs(300);

const KNOWN: &str = "a command came through the queue";

const RELEASE: &str = "release-1.4";

/// A queue, its dead letters and its replies.
struct Queues {
    url: String,
    dead: String,
    replies: String,
}

impl Queues {
    fn new(name: &str) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let make = |what: &str| SERVER.make_queue(&format!("{name}-{number}-{what}"));
        Self {
            url: make("commands"),
            dead: make("dead"),
            replies: make("replies"),
        }
    }

    fn send(&self, bodies: &[String]) {
        for batch in bodies.chunks(10) {
            let entries: Vec<Value> = batch
                .iter()
                .enumerate()
                .map(|(id, body)| json!({"Id": id.to_string(), "MessageBody": body}))
                .collect();
            let request = json!({"QueueUrl": self.url, "Entries": entries});
            let sent = SERVER.sqs("SendMessageBatch", &request);
            let count = sent["Successful"].as_array().map_or(0, Vec::len);
            assert_eq!(count, batch.len(), "{sent}");
        }
    }

    /// Waits until nothing is in the queue, seen or unseen.
    #[track_caller]
    fn wait_until_empty(&self) {
        wait_until(PATIENCE, "an empty queue", || self.held() == 0);
    }

    fn held(&self) -> u64 {
        let request = json!({"QueueUrl": self.url, "AttributeNames": ["All"]});
        let answer = SERVER.sqs("GetQueueAttributes", &request);
        let count = |name: &str| -> u64 {
            let text = answer["Attributes"][name].as_str().unwrap_or("0");
            text.parse().expect("it is a number")
        };
        count("ApproximateNumberOfMessages") + count("ApproximateNumberOfMessagesNotVisible")
    }

    fn take_replies(&self) -> Vec<Value> {
        let parse = |message: &Value| {
            let body = message["Body"].as_str().expect("it has a body");
            serde_json::from_str(body).expect("replies are JSON")
        };
        take_all(&self.replies).iter().map(parse).collect()
    }

    /// What was put into the dead-letter queue: the message and the reason. One that was delivered again before it was
    /// deleted is there twice.
    fn take_dead(&self) -> BTreeSet<(String, String)> {
        let read = |message: &Value| {
            let reason = &message["MessageAttributes"]["reprieve.reason"]["StringValue"];
            let text = |value: &Value| value.as_str().expect("it is text").to_owned();
            (text(&message["Body"]), text(reason))
        };
        take_all(&self.dead).iter().map(read).collect()
    }

    fn options(&self, use_: &str) -> Vec<String> {
        let options = [
            "--queue",
            use_,
            "--queue-url",
            &self.url,
            "--dead-letter-queue",
            &self.dead,
            "--reply-queue",
            &self.replies,
            "--queue-lease",
            "3s",
        ];
        options.map(str::to_owned).into()
    }
}

/// Everything in a queue.
fn take_all(url: &str) -> Vec<Value> {
    let mut all = Vec::new();
    loop {
        let request = json!({"QueueUrl": url, "MaxNumberOfMessages": 10, "VisibilityTimeout": 600,
                             "MessageAttributeNames": ["All"]});
        let answer = SERVER.sqs("ReceiveMessage", &request);
        match answer["Messages"].as_array() {
            Some(messages) if !messages.is_empty() => all.extend(messages.iter().cloned()),
            _ => return all,
        }
    }
}

/// A host that reads a queue.
fn host(name: &str, store: &Store, options: &[String], app: &[&str]) -> Builder {
    let always = [
        "--store",
        "file:///snapshots",
        "--job",
        "job",
        "--term-grace",
        "60s",
        "--checkpoint-timeout",
        "60s",
        "--on-other-owner",
        "take-over",
    ];
    let options = always
        .into_iter()
        .map(str::to_owned)
        .chain(options.iter().cloned());
    beside_aws(name, store).reprieve(options, app.iter().copied())
}

/// A host that reaches the look-alike and the store.
fn beside_aws(name: &str, store: &Store) -> Builder {
    Host::builder(name)
        .share_net()
        .bind(store.path(), "/snapshots")
        .env("AWS_ENDPOINT_URL", SERVER.url.as_str())
        .env("AWS_REGION", "us-east-1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_ACCESS_KEY_ID", "AKIDFORTESTS")
        .env("AWS_SECRET_ACCESS_KEY", "a-secret-that-stays-one")
}

fn status(id: &str, worker: &str) -> String {
    json!({"v": 1, "id": id, "command": "status", "target": {"worker": worker}}).to_string()
}

fn checkpoint(id: &str, target: &Value, afterwards: &str) -> String {
    json!({"v": 1, "id": id, "command": "checkpoint", "target": target, "afterwards": afterwards})
        .to_string()
}

fn from_now(seconds: u64) -> String {
    let time = SystemTime::now() + Duration::from_secs(seconds);
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Messages for three workers, some of them twice, some for nobody, some for nobody to understand.
struct Mixture {
    bodies: Vec<String>,
    /// Who has to carry out what.
    right: HashMap<String, String>,
    duplicates: usize,
    wrong: usize,
    garbage: usize,
}

impl Mixture {
    fn for_workers(workers: &[&str]) -> Self {
        let mut right = HashMap::new();
        let mut bodies = Vec::new();
        for worker in workers {
            for number in 0..60 {
                let id = format!("{worker}-{number}");
                bodies.push(match number % 20 {
                    0 => checkpoint(&id, &json!({"worker": worker, "job": "job"}), "continue"),
                    _ => status(&id, worker),
                });
                right.insert(id, (*worker).to_owned());
            }
        }
        let duplicates: Vec<_> = bodies.iter().step_by(5).cloned().collect();
        let wrong = (0..17).map(|number| {
            let mut message: Value =
                serde_json::from_str(&status(&format!("wrong-{number}"), "nobody"))
                    .expect("it is JSON");
            message["not_after"] = from_now(5).into();
            message.to_string()
        });
        let wrong: Vec<_> = wrong.collect();
        let garbage: Vec<_> = (0..17).map(|number| format!("garbage {number}")).collect();
        let counts = (duplicates.len(), wrong.len(), garbage.len());
        bodies.extend(duplicates.into_iter().chain(wrong).chain(garbage));
        // Mixed, and the same each time.
        let mut random = 7_u64;
        for last in (1..bodies.len()).rev() {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let other = usize::try_from(random >> 33).expect("31 bits") % (last + 1);
            bodies.swap(last, other);
        }
        Self {
            bodies,
            right,
            duplicates: counts.0,
            wrong: counts.1,
            garbage: counts.2,
        }
    }
}

/// Each right command is carried out once, by whom it names, and answered; duplicates have the same answer.
#[track_caller]
fn assert_done(mixture: &Mixture, replies: &[Value], hosts: &BTreeMap<&str, Host>) {
    let mut answered: HashMap<&str, u32> = HashMap::new();
    let mut repeated = 0;
    for reply in replies {
        let id = reply["id"].as_str().expect("it has an id");
        assert_eq!(
            reply["from"]["worker"].as_str(),
            mixture.right.get(id).map(String::as_str),
            "{reply}"
        );
        let wanted = match reply["command"].as_str() {
            Some("checkpoint") => "durable",
            _ => "noted",
        };
        assert_eq!(reply["outcome"], wanted, "{reply}");
        match reply["repeated"].as_bool() {
            Some(true) => repeated += 1,
            _ => *answered.entry(id).or_default() += 1,
        }
    }
    assert_eq!(answered.len(), mixture.right.len());
    assert!(answered.values().all(|times| *times == 1), "{answered:?}");
    // A queue may deliver once more what was held for too long on a busy machine; it is answered again, never done again.
    assert!(repeated >= mixture.duplicates, "{repeated}");
    let mut carried: HashMap<String, u32> = HashMap::new();
    for host in hosts.values() {
        for line in host
            .stderr()
            .lines()
            .iter()
            .filter(|line| line.contains(KNOWN))
        {
            let line: Value = serde_json::from_str(line).expect("the log is JSON");
            let id = line["id"].as_str().expect("it names the command");
            *carried.entry(id.to_owned()).or_default() += 1;
        }
    }
    assert_eq!(carried.len(), mixture.right.len());
    assert!(carried.values().all(|times| *times == 1), "{carried:?}");
}

#[test]
fn three_workers_with_queues_of_their_own_do_what_they_are_told_once() {
    let names = ["own-a", "own-b", "own-c"];
    let mut hosts = BTreeMap::new();
    let mut stores = Vec::new();
    let mut queues = BTreeMap::new();
    for name in names {
        let store = Store::new();
        let own = Queues::new(name);
        let host = host(name, &store, &own.options("own"), COUNTER).start();
        hosts.insert(name, host);
        stores.push(store);
        queues.insert(name, own);
    }
    let mut mixtures = BTreeMap::new();
    for name in names {
        wait_for_output(&hosts[name], "line 3");
        let mixture = Mixture::for_workers(&[name]);
        queues[name].send(&mixture.bodies);
        mixtures.insert(name, mixture);
    }
    for name in names {
        queues[name].wait_until_empty();
    }
    for name in names {
        let mixture = &mixtures[name];
        let only = BTreeMap::from([(name, hosts.remove(name).expect("it is there"))]);
        assert_done(mixture, &queues[name].take_replies(), &only);
        let dead = queues[name].take_dead();
        let garbage = dead
            .iter()
            .filter(|(body, why)| body.starts_with("garbage") && why.contains("not JSON"));
        assert!(garbage.count() >= mixture.garbage, "{dead:?}");
        let wrong = dead
            .iter()
            .filter(|(_, why)| why.contains("it is for the worker nobody"));
        assert_eq!(wrong.count(), mixture.wrong, "{dead:?}");
        only[name].destroy();
    }
}

#[test]
fn a_checkpoint_that_is_wanted_with_a_tag_has_it_and_no_other_snapshot_loses_it() {
    let store = Store::new();
    let queues = Queues::new("tag");
    let first = host("tag", &store, &queues.options("own"), COUNTER).start();
    wait_for_output(&first, "line 3");
    let tagged = |id: &str, afterwards: &str, tag: &str| {
        let mut message: Value =
            serde_json::from_str(&checkpoint(id, &json!({"job": "job"}), afterwards))
                .expect("it is JSON");
        message["tag"] = tag.into();
        queues.send(&[message.to_string()]);
        let mut replies = Vec::new();
        wait_until(PATIENCE, "an answer", || {
            replies.extend(queues.take_replies());
            !replies.is_empty()
        });
        replies.remove(0)
    };
    let tags = || {
        let listed = first.exec_ok([
            "reprieve",
            "snapshots",
            "--store",
            "file:///snapshots",
            "--job",
            "job",
            "--json",
        ]);
        let listed: Value = serde_json::from_str(&listed).expect("it is JSON");
        let snapshots = listed["snapshots"].as_array().cloned().expect("a list");
        let tags = snapshots
            .iter()
            .map(|one| (one["generation"].clone(), one["tags"].clone()));
        tags.collect::<Vec<_>>()
    };
    let reply = tagged("one", "continue", RELEASE);
    assert_eq!(
        (&reply["outcome"], &reply["generation"]),
        (&json!("durable"), &json!(1))
    );
    assert_eq!(tags(), [(json!(1), json!([RELEASE]))]);
    let reply = tagged("two", "continue", RELEASE);
    assert_eq!(reply["outcome"], "failed");
    let reason = reply["reason"].as_str().expect("it says why");
    assert!(
        reason.contains("generation 2 is durable") && reason.contains("belongs to generation 1"),
        "{reason}"
    );
    assert_eq!(
        tags(),
        [(json!(2), json!([])), (json!(1), json!([RELEASE]))]
    );
    // The end waits for it.
    let reply = tagged("three", "stop", "last");
    assert_eq!(
        (&reply["outcome"], &reply["generation"]),
        (&json!("durable"), &json!(3))
    );
    assert_eq!(first.wait_exit(LIMIT), Exit::Code(75));
    first.destroy();
    let second = host("tag", &store, &queues.options("own"), COUNTER).start();
    wait_for_log(&second, "the job is resumed");
    let reply = tagged("four", "continue", "last");
    assert!(
        reply["reason"]
            .as_str()
            .is_some_and(|why| why.contains("belongs to generation 3")),
        "{reply}"
    );
    second.destroy();
}

/// Sends a command and waits for its answer.
#[track_caller]
fn answered(queues: &Queues, command: &Value) -> Value {
    queues.send(&[command.to_string()]);
    let mut replies = Vec::new();
    wait_until(PATIENCE, "an answer", || {
        replies.extend(queues.take_replies());
        !replies.is_empty()
    });
    replies.remove(0)
}

#[test]
fn a_rollback_ends_the_job_and_its_next_start_goes_on_from_there_once() {
    let (store, queues) = (Store::new(), Queues::new("rollback"));
    let mut options = queues.options("own");
    // The snapshot that is taken before going back must not push out the one that is gone back to.
    options.extend(["--keep-generations", "2"].map(str::to_owned));
    let told = |id: &str, more: Value| {
        let mut command = json!({"v": 1, "id": id, "target": {"job": "job"}});
        for (name, value) in more.as_object().expect("fields") {
            command[name] = value.clone();
        }
        command
    };
    let checkpoint = |id: &str| {
        told(
            id,
            json!({"command": "checkpoint", "afterwards": "continue"}),
        )
    };
    let tagged = told(
        "tagged",
        json!({"command": "checkpoint", "afterwards": "continue", "tag": "good"}),
    );
    let back = told("back", json!({"command": "rollback", "generation": 1}));
    let first = host("first", &store, &options, COUNTER).start();
    wait_for_output(&first, "line 3");
    assert_eq!(answered(&queues, &checkpoint("one"))["generation"], 1);
    let mark = first.stdout().mark();
    wait_until(LIMIT, "more lines", || first.stdout().mark() > mark + 20);
    assert_eq!(answered(&queues, &tagged)["generation"], 2);
    let nowhere = told("nowhere", json!({"command": "rollback", "tag": "none"}));
    let reply = answered(&queues, &nowhere);
    assert_eq!(reply["outcome"], "refused");
    assert_eq!(reply["reason"], "the job has no snapshot with the tag none");
    let reply = answered(&queues, &back);
    assert_eq!(
        (
            &reply["outcome"],
            &reply["generation"],
            &reply["afterwards"]
        ),
        (&json!("durable"), &json!(1), &json!("stop"))
    );
    assert_eq!(first.wait_exit(LIMIT), Exit::Code(75));
    first.destroy();
    let second = host("second", &store, &options, COUNTER).start();
    let resumed: Value = serde_json::from_str(&wait_for_log(&second, "the job is resumed"))
        .expect("the log is JSON");
    assert_eq!(resumed["generation"], 1);
    // What the first one was told is not done again, though nobody here remembers it.
    let reply = answered(&queues, &back);
    assert_eq!(
        (&reply["outcome"], &reply["generation"]),
        (&json!("durable"), &json!(1))
    );
    let reply = answered(&queues, &tagged);
    assert_eq!(
        (&reply["outcome"], &reply["generation"]),
        (&json!("durable"), &json!(2))
    );
    let mark = second.stdout().mark();
    wait_until(LIMIT, "more lines", || second.stdout().mark() > mark + 20);
    assert!(!second.stderr().text().contains("checkpoint begins"));
    // The way forward is still there: what was stored before going back.
    let forward = told("forward", json!({"command": "rollback", "generation": 3}));
    assert_eq!(answered(&queues, &forward)["generation"], 3);
    assert_eq!(second.wait_exit(LIMIT), Exit::Code(75));
    second.destroy();
    let third = host("third", &store, &options, COUNTER).start();
    let resumed = wait_for_log(&third, "the job is resumed");
    assert!(resumed.contains("\"generation\":3"), "{resumed}");
    let mark = third.stdout().mark();
    wait_until(LIMIT, "more lines", || third.stdout().mark() > mark + 20);
    third.destroy();
    let all = first.stdout().text() + &third.stdout().lines().join("\n");
    assert_counts(&all, None);
}

#[test]
fn tags_that_only_ec2_tells_of_say_store_job_and_queue() {
    let (store, queues) = (Store::new(), Queues::new("tagged"));
    let instance = SERVER.make_instance();
    let escaped = queues.url.replace(':', "%3A").replace('/', "%2F");
    SERVER.ec2(&format!(
        "Action=CreateTags&ResourceId.1={instance}&Tag.1.Key=reprieve%3Ajob&Tag.1.Value=tagged&\
         Tag.2.Key=reprieve%3Astore&Tag.2.Value=file%3A%2F%2F%2Fsnapshots&\
         Tag.3.Key=reprieve%3Aqueue&Tag.3.Value={escaped}"
    ));
    let options = [
        "--defaults-from-tags",
        "on",
        "--instance-id",
        &instance,
        "--reply-queue",
        &queues.replies,
    ];
    let host = beside_aws("tagged", &store)
        .reprieve(options, COUNTER.iter().copied())
        .start();
    wait_for_output(&host, "line 3");
    let asked = checkpoint("1", &json!({"job": "tagged"}), "stop");
    let asked = serde_json::from_str(&asked).expect("it is JSON");
    assert_eq!(answered(&queues, &asked)["outcome"], "durable");
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(75));
    host.destroy();
    assert!(store.path().join("tagged/HEAD").exists());
}

#[test]
fn three_workers_share_a_queue_and_each_command_finds_its_own() {
    let names = ["shared-a", "shared-b", "shared-c"];
    let queues = Queues::new("fleet");
    let stores = names.map(|_| Store::new());
    let mut hosts = BTreeMap::new();
    for (name, store) in names.into_iter().zip(&stores) {
        let host = host(name, store, &queues.options("shared"), COUNTER).start();
        hosts.insert(name, host);
    }
    for name in names {
        wait_for_output(&hosts[name], "line 3");
    }
    let mixture = Mixture::for_workers(&names);
    queues.send(&mixture.bodies);
    queues.wait_until_empty();
    assert_done(&mixture, &queues.take_replies(), &hosts);
    let dead = queues.take_dead();
    let garbage = dead.iter().filter(|(_, why)| why.contains("not JSON"));
    assert!(garbage.count() >= mixture.garbage, "{dead:?}");
    let wrong = dead
        .iter()
        .filter(|(_, why)| why.contains("nobody took it"));
    assert_eq!(wrong.count(), mixture.wrong, "{dead:?}");
    for host in hosts.values() {
        host.destroy();
    }
}

#[test]
fn a_command_whose_worker_dies_in_the_middle_is_carried_out_by_the_next_owner() {
    let store = Store::new();
    let queues = Queues::new("death");
    // Large enough that a checkpoint takes a while.
    let app = ["python3", "/apps/memory.py", "256"];
    let first = host("first", &store, &queues.options("shared"), &app).start();
    wait_for_log(&first, "a source of notices works");
    queues.send(&[checkpoint("only-one", &json!({"job": "job"}), "continue")]);
    wait_for_log(&first, "checkpoint begins");
    first.destroy();
    assert!(
        !first.stderr().text().contains("checkpoint is durable"),
        "it died too late"
    );
    assert_eq!(queues.held(), 1, "it is still there");
    let second = host("second", &store, &queues.options("shared"), &app).start();
    wait_for_log(&second, "checkpoint is durable");
    queues.wait_until_empty();
    let replies = queues.take_replies();
    // Delivered once more, it is answered again and not carried out again.
    let first = replies.iter().filter(|reply| reply["repeated"] == false);
    let [reply] = &first.collect::<Vec<_>>()[..] else {
        panic!("{replies:?}");
    };
    assert_eq!(reply["from"]["worker"], "second");
    assert_eq!(reply["outcome"], "durable");
    second.destroy();
}

#[test]
fn a_queue_is_made_for_the_job_and_goes_when_the_job_is_over() {
    let store = Store::new();
    let tags = |url: &str| SERVER.sqs("ListQueueTags", &json!({"QueueUrl": url}))["Tags"].clone();
    let own = ["--queue", "own", "--job", "over.and-out"].map(str::to_owned);
    let options: Vec<_> = own.into();
    let app = ["python3", "-uc", "print('ready'); input(); print('done')"];
    let mut builder = Host::builder("maker");
    builder = builder
        .share_net()
        .bind(store.path(), "/snapshots")
        .env("AWS_ENDPOINT_URL", SERVER.url.as_str())
        .env("AWS_REGION", "us-east-1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_ACCESS_KEY_ID", "AKIDFORTESTS")
        .env("AWS_SECRET_ACCESS_KEY", "a-secret-that-stays-one")
        .stdin(harness::Stdio::Pipe);
    let store_option = ["--store", "file:///snapshots"].map(str::to_owned);
    let host = builder
        .reprieve(store_option.into_iter().chain(options), app)
        .start();
    let line = wait_for_log(&host, "a queue was made for the job");
    let line: Value = serde_json::from_str(&line).expect("the log is JSON");
    let url = line["url"].as_str().expect("it names the queue").to_owned();
    assert!(url.contains("/reprieve-over-and-out-"), "{url}");
    let tags = tags(&url);
    assert_eq!(tags["reprieve:job"], "over.and-out");
    assert_eq!(tags["reprieve:store"], "file:///snapshots");
    host.write("\n");
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(0));
    let left = SERVER.sqs(
        "ListQueues",
        &json!({"QueueNamePrefix": "reprieve-over-and-out"}),
    );
    assert_eq!(
        left["QueueUrls"].as_array().map_or(0, Vec::len),
        0,
        "{left}"
    );
    host.destroy();
}

/// A queue as a worker would have made it, last seen so many days ago.
fn orphan(job: &str, days: u64) -> String {
    let url = SERVER.make_queue(&format!("reprieve-{job}"));
    let seen = SystemTime::now() - Duration::from_secs(days * 24 * 3_600);
    let seen = seen
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("it is later")
        .as_millis();
    let tags = json!({"reprieve:job": job, "reprieve:store": "s3://gone", "reprieve:seen": seen.to_string()});
    SERVER.sqs("TagQueue", &json!({"QueueUrl": url, "Tags": tags}));
    url
}

#[test]
fn a_queue_that_is_deleted_is_made_again_and_those_of_jobs_that_are_gone_are_swept() {
    let gone = orphan("gone-for-days", 8);
    let away = orphan("away-for-days", 6);
    let wanted = orphan("gone-but-wanted", 8);
    let message = json!({"QueueUrl": wanted, "MessageBody": "somebody waits for the job"});
    SERVER.sqs("SendMessage", &message);
    let foreign = SERVER.make_queue("reprieve-of-somebody-else");
    let store = Store::new();
    let replies = SERVER.make_queue("deleted-replies");
    let host = beside_aws("deleted", &store)
        .reprieve(
            [
                "--store",
                "file:///snapshots",
                "--job",
                "deleted",
                "--queue",
                "own",
                "--reply-queue",
                &replies,
            ],
            COUNTER.iter().copied(),
        )
        .start();
    let made = || {
        let log = host.stderr().lines();
        let lines = log
            .iter()
            .filter(|line| line.contains("a queue was made for the job"));
        lines
            .map(|line| {
                let line: Value = serde_json::from_str(line).expect("the log is JSON");
                line["url"].as_str().expect("it names the queue").to_owned()
            })
            .collect::<Vec<_>>()
    };
    wait_until(LIMIT, "a queue", || made().len() == 1);
    wait_for_log(&host, "a source of notices works");
    SERVER.sqs("DeleteQueue", &json!({"QueueUrl": made()[0]}));
    wait_until(PATIENCE, "another queue", || made().len() == 2);
    let asked = checkpoint("1", &json!({"job": "deleted"}), "continue");
    let request = json!({"QueueUrl": made()[1], "MessageBody": asked});
    SERVER.sqs("SendMessage", &request);
    let mut answers = Vec::new();
    wait_until(PATIENCE, "an answer", || {
        answers.extend(take_all(&replies));
        !answers.is_empty()
    });
    assert!(answers[0].to_string().contains("durable"), "{answers:?}");
    // Workers look for them half a minute after their start.
    let queues = || {
        let listed = SERVER.sqs("ListQueues", &json!({"QueueNamePrefix": "reprieve-"}));
        listed["QueueUrls"].to_string()
    };
    wait_until(PATIENCE, "the orphan to go", || !queues().contains(&gone));
    let left = queues();
    for stays in [&away, &wanted, &foreign, &made()[1]] {
        assert!(left.contains(stays.as_str()), "{stays}: {left}");
    }
    host.destroy();
}

/// The two calls of Auto Scaling that matter, as one instance makes them.
struct Scaling {
    url: String,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Scaling {
    /// It ends with this program.
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is there");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let calls = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&calls);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.expect("it listens"));
                let mut length = 0;
                let mut line = String::new();
                while stream.read_line(&mut line).is_ok_and(|read| read > 2) {
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().expect("it is a number");
                    }
                    line.clear();
                }
                let mut body = vec![0; length];
                stream.read_exact(&mut body).expect("it has this length");
                let body = String::from_utf8(body).expect("forms are text");
                let action = body
                    .split('&')
                    .find_map(|field| field.strip_prefix("Action="))
                    .expect("it names the action")
                    .to_owned();
                let answer = format!("<{action}Response><{action}Result/></{action}Response>");
                seen.lock().expect("nobody panics with it").push(body);
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nConnection: close\r\n";
                let answer = format!("{head}Content-Length: {}\r\n\r\n{answer}", answer.len());
                stream
                    .get_mut()
                    .write_all(answer.as_bytes())
                    .expect("it is read");
            }
        });
        Self { url, calls }
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().expect("nobody panics with it").clone()
    }
}

#[test]
fn a_spot_warning_through_the_queue_is_a_durable_snapshot_and_lets_the_instance_go() {
    let store = Store::new();
    let queues = Queues::new("spot");
    let scaling = Scaling::start();
    let instance = SERVER.make_instance();
    let mut options = queues.options("own");
    let more = ["--instance-id", &instance, "--instance-tags", "on"];
    options.extend(more.map(str::to_owned));
    let first = host("evicted", &store, &options, COUNTER)
        .env("AWS_ENDPOINT_URL_AUTO_SCALING", scaling.url.as_str())
        .start();
    wait_for_log(&first, "a source of notices works");
    wait_for(LIMIT, "the tag of a running job", || {
        (SERVER.tags_of(&instance).get("reprieve:job")? == "job").then_some(())
    });
    let event = |source: &str, kind: &str, detail: Value| {
        json!({"version": "0", "id": "e", "source": source, "detail-type": kind, "time": from_now(0), "detail": detail})
            .to_string()
    };
    let spot = "EC2 Spot Instance Interruption Warning";
    let hook = event(
        "aws.autoscaling",
        "EC2 Instance-terminate Lifecycle Action",
        json!({"LifecycleActionToken": "token-1", "AutoScalingGroupName": "fleet", "LifecycleHookName": "drain",
               "EC2InstanceId": instance, "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING"}),
    );
    queues.send(&[
        event(
            "aws.ec2",
            spot,
            json!({"instance-id": "i-0fff", "instance-action": "terminate"}),
        ),
        hook,
        event(
            "aws.ec2",
            spot,
            json!({"instance-id": instance, "instance-action": "terminate"}),
        ),
    ]);
    assert_eq!(first.wait_exit(LIMIT), Exit::Code(75));
    wait_for_log(&first, "checkpoint is durable");
    queues.wait_until_empty();
    let calls = scaling.calls();
    let last = calls.last().expect("it was called");
    assert!(last.contains("Action=CompleteLifecycleAction"), "{calls:?}");
    assert!(last.contains("LifecycleActionResult=CONTINUE"), "{last}");
    assert!(last.contains("LifecycleActionToken=token-1"), "{last}");
    let tags = SERVER.tags_of(&instance);
    assert_eq!(tags["reprieve:state"], "over", "{tags:?}");
    // The warning alone leaves time to make the job safe first; with the lifecycle action there is none.
    let log = first.stderr().lines();
    let durable = log
        .iter()
        .rev()
        .find(|line| line.contains("checkpoint is durable"));
    let durable: Value = serde_json::from_str(durable.expect("it was")).expect("the log is JSON");
    let tag = format!("{} of 20", durable["generation"]);
    assert!(tags["reprieve:snapshot"].starts_with(&tag), "{tags:?}");
    assert!(queues.take_dead().is_empty());
    first.destroy();
    // What was stored is what runs on.
    let second = host("next", &store, &[], COUNTER).start();
    wait_for_log(&second, "the job is resumed");
    second.destroy();
}

/// Everything that can be said at the end of one machine, each in its own way. Whoever says it after the end says it to
/// nobody, as in life.
fn say(what: usize, host: &Host, lab: &Lab, queues: &Queues, instance: &str) {
    let socket = "import socket,sys\ns = socket.socket(socket.AF_UNIX)\n\
                  s.connect('/run/reprieve/control.sock')\ns.sendall(sys.argv[1].encode() + b'\\n')\n\
                  s.recv(65536)";
    let aws = |kind: &str, detail: Value| {
        let event = json!({"version": "0", "id": "e", "source": "aws.ec2", "detail-type": kind, "time": from_now(0), "detail": detail});
        queues.send(&[event.to_string()]);
    };
    match what {
        0 => drop(lab.notice(json!({ "kind": "spot", "in": 120 }))),
        1 => drop(lab.notice(json!({ "kind": "rebalance" }))),
        2 => drop(lab.notice(json!({ "kind": "asg" }))),
        3 => drop(lab.notice(json!({ "kind": "gcp-preempted" }))),
        4 => drop(lab.notice(json!({ "kind": "azure", "type": "Preempt", "in": 30 }))),
        5 => aws(
            "EC2 Spot Instance Interruption Warning",
            json!({"instance-id": instance, "instance-action": "terminate"}),
        ),
        6 => aws(
            "EC2 Instance Rebalance Recommendation",
            json!({"instance-id": instance}),
        ),
        7 => {
            let id = format!("{instance}-asked");
            queues.send(&[checkpoint(&id, &json!({"instance": instance}), "continue")]);
        }
        8 => {
            let notice = json!({"v": 1, "request": "notice", "fate": "terminate", "in_ms": 60_000, "identity": instance});
            host.exec(["python3", "-c", socket, &notice.to_string()]);
        }
        9 => drop(host.exec(["reprieve", "checkpoint", "--leave-running"])),
        10 => drop(host.exec(["kill", "-TERM", "1"])),
        _ => unreachable!("there are {SAYINGS}"),
    }
}

const SAYINGS: usize = 11;

#[test]
fn all_sources_at_once_in_any_order_lead_to_one_final_checkpoint_each_time() {
    let (store, queues) = (Store::new(), Queues::new("all"));
    let mut told = String::new();
    let mut random = 11_u64;
    for run in 0..20 {
        let lab = Lab::start();
        let instance = format!("i-{run:04}");
        let mut options = queues.options("own");
        let more = [
            "--sources",
            "ec2-metadata,gcp,azure,sqs",
            "--metadata-poll",
            "100ms",
            "--ec2-metadata-endpoint",
            &lab.url,
            "--gcp-metadata-endpoint",
            &lab.url,
            "--azure-metadata-endpoint",
            &lab.url,
            "--instance-id",
            &instance,
        ];
        options.extend(more.map(str::to_owned));
        let host = host(&format!("all-{run}"), &store, &options, COUNTER).start();
        wait_for_output(&host, "line");
        let logged = |message: &str| -> Vec<Value> {
            let lines = host.stderr().lines();
            let found = lines.iter().filter(|line| line.contains(message));
            found
                .map(|line| serde_json::from_str(line).expect("the log is JSON"))
                .collect()
        };
        wait_until(LIMIT, "four sources that work", || {
            logged("a source of notices works").len() == 4
        });
        // Shuffled, and said by three at the same time.
        let mut order: Vec<usize> = (0..SAYINGS).collect();
        for last in (1..order.len()).rev() {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            order.swap(
                last,
                usize::try_from(random >> 33).expect("31 bits") % (last + 1),
            );
        }
        let (host, lab, queues, instance) = (&host, &lab, &queues, instance.as_str());
        std::thread::scope(|scope| {
            for part in order.chunks(SAYINGS.div_ceil(3)) {
                scope.spawn(move || {
                    for what in part {
                        say(*what, host, lab, queues, instance);
                    }
                });
            }
        });
        assert_eq!(
            host.wait_exit(LIMIT),
            Exit::Code(75),
            "run {run}: {order:?}"
        );
        let durable = logged("checkpoint is durable");
        let last = durable.iter().filter(|line| line["afterwards"] == "Stop");
        assert_eq!(last.count(), 1, "run {run}: {order:?}: {durable:?}");
        // Three may be asked for or hinted at, and one makes the job safe first.
        let begun = logged("checkpoint begins").len();
        assert!((1..=5).contains(&begun), "run {run}: {order:?}: {begun}");
        assert_eq!(logged("no checkpoint was taken").len(), 0, "{order:?}");
        told += &host.stdout().text();
        host.destroy();
    }
    // Nothing was done twice or not at all over twenty machines.
    assert_counts(&told, None);
}

/// `reprieve send`, from this machine.
fn send(store: Option<&Store>, arguments: &[&str]) -> (i32, String, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_reprieve"));
    command
        .arg("send")
        .args(arguments)
        .env("AWS_ENDPOINT_URL", SERVER.url.as_str())
        .env("AWS_REGION", "us-east-1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_ACCESS_KEY_ID", "AKIDFORTESTS")
        .env("AWS_SECRET_ACCESS_KEY", "a-secret-that-stays-one");
    if let Some(store) = store {
        let address = format!("file://{}", store.path().display());
        command.args(["--store", &address]);
    }
    let output = command.output().expect("the binary was built");
    (
        output.status.code().expect("it ends by itself"),
        String::from_utf8(output.stdout).expect("it is text"),
        String::from_utf8(output.stderr).expect("it is text"),
    )
}

#[test]
fn a_worker_anywhere_is_told_and_asked_by_a_command() {
    let store = Store::new();
    let queues = Queues::new("send");
    let host = host("far-away", &store, &queues.options("own"), COUNTER).start();
    wait_for_output(&host, "line 3");
    // An answer to somebody else stays for them.
    let other = json!({"QueueUrl": queues.replies, "MessageBody": "not for us"});
    SERVER.sqs("SendMessage", &other);
    let replies = ["--wait", "--json", "--reply-queue", &queues.replies];
    let told = |what: &[&str]| {
        let (code, stdout, stderr) = send(Some(&store), &[what, &replies].concat());
        assert_eq!(code, 0, "{what:?}: {stdout}{stderr}");
        serde_json::from_str::<Value>(&stdout).expect("it is JSON")
    };
    // Its queue is known from its entry in the store.
    let status = told(&["status", "--job", "job"]);
    assert_eq!(status["queue"].as_str(), Some(queues.url.as_str()));
    assert_eq!(status["reply"]["status"]["state"], "running", "{status}");
    let durable = told(&[
        "checkpoint",
        "--leave-running",
        "--tag",
        "asked",
        "--worker",
        "far-away",
    ]);
    assert_eq!(durable["reply"]["outcome"], "durable", "{durable}");
    assert_eq!(durable["reply"]["generation"], 1);
    let (code, _, stderr) = send(Some(&store), &["status", "--worker", "nobody"]);
    assert_eq!(code, 178, "{stderr}");
    for (arguments, word) in [
        (&["status"][..], "whom the command is for"),
        (&["status", "--job", "job", "--wait"], "where answers go"),
        (
            &["stop", "--job", "job", "--leave-running"],
            "about checkpoints",
        ),
    ] {
        let (code, _, stderr) = send(Some(&store), arguments);
        assert_eq!(code, 174, "{stderr}");
        assert!(stderr.contains(word), "{stderr}");
    }
    // Given, it needs no store; nobody of this name reads it.
    let mut to_nobody = vec!["status", "--job", "other", "--queue-url", &queues.url];
    to_nobody.extend(["--timeout", "2s"]);
    to_nobody.extend(replies);
    let (code, _, stderr) = send(None, &to_nobody);
    assert_eq!(code, 183, "{stderr}");
    told(&["checkpoint", "--job", "job"]);
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(75));
    let left = take_all(&queues.replies);
    assert!(
        left.iter().any(|message| message["Body"] == "not for us"),
        "{left:?}"
    );
}
