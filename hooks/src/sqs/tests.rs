use std::collections::BTreeMap;

use reprieve_core::notice::{Afterwards, Source};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::{Asked, Listener};

/// A queue in memory that hides what was taken, counts, and has a dead-letter queue if told so.
#[derive(Default)]
struct Memory {
    state: Mutex<State>,
    changed: tokio::sync::Notify,
}

#[derive(Default)]
struct State {
    messages: Vec<Held>,
    taken: u64,
    fails: VecDeque<MailError>,
    no_dead_letters: bool,
    buried: Vec<(String, String)>,
    replies: Vec<command::Reply>,
    hidden: u32,
    /// A reply with this in it meets a bug.
    bug: Option<&'static str>,
}

struct Held {
    id: String,
    body: String,
    sent: WallMs,
    receives: u32,
    /// The receipt of whoever has it.
    taken: Option<String>,
}

impl Memory {
    fn with(bodies: impl IntoIterator<Item = String>) -> Arc<Self> {
        let queue = Arc::new(Self::default());
        for body in bodies {
            queue.put(body);
        }
        queue
    }

    fn put(&self, body: String) {
        let mut state = self.state.lock().expect("tests do not panic with it");
        let id = format!("m{}", state.messages.len());
        state.messages.push(Held {
            id,
            body,
            sent: crate::time::now(),
            receives: 0,
            taken: None,
        });
        self.changed.notify_waiters();
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.state.lock().expect("tests do not panic with it"));
        self.changed.notify_waiters();
        changed
    }

    /// Waits until this holds of the queue.
    async fn until(&self, what: &str, holds: impl Fn(&State) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if holds(&self.state.lock().expect("tests do not panic with it")) {
                    return;
                }
                changed.await;
            }
        };
        let limit = Duration::from_secs(120);
        assert!(
            tokio::time::timeout(limit, wait).await.is_ok(),
            "in vain: {what}"
        );
    }

    async fn until_empty(&self) {
        self.until("an empty queue", |state| state.messages.is_empty())
            .await;
    }
}

#[async_trait]
impl Mail for Memory {
    async fn receive(&self) -> Result<Vec<Message>, MailError> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let found = {
                let mut state = self.state.lock().expect("tests do not panic with it");
                if let Some(error) = state.fails.pop_front() {
                    return Err(error);
                }
                let mut taken = state.taken;
                let found: Vec<_> = state
                    .messages
                    .iter_mut()
                    .filter(|held| held.taken.is_none())
                    .take(BATCH as usize)
                    .map(|held| {
                        taken += 1;
                        held.receives += 1;
                        held.taken = Some(taken.to_string());
                        Message {
                            id: held.id.clone(),
                            body: held.body.clone(),
                            receipt: taken.to_string(),
                            receives: held.receives,
                            sent: Some(held.sent),
                        }
                    })
                    .collect();
                state.taken = taken;
                found
            };
            if !found.is_empty() {
                return Ok(found);
            }
            changed.await;
        }
    }

    async fn delete(&self, message: &Message) -> Result<(), MailError> {
        let receipt = Some(message.receipt.clone());
        self.change(|state| state.messages.retain(|held| held.taken != receipt));
        Ok(())
    }

    async fn hide(&self, message: &Message, time: Duration) -> Result<(), MailError> {
        let receipt = Some(message.receipt.clone());
        self.change(|state| {
            let held = state.messages.iter_mut().find(|held| held.taken == receipt);
            match held {
                None => Err(lapsed()),
                Some(held) if time.is_zero() => {
                    held.taken = None;
                    Ok(())
                }
                Some(_) => {
                    state.hidden += 1;
                    Ok(())
                }
            }
        })
    }

    async fn bury(&self, message: &Message, reason: &str) -> Result<bool, MailError> {
        Ok(self.change(|state| {
            if !state.no_dead_letters {
                state.buried.push((message.body.clone(), reason.to_owned()));
            }
            !state.no_dead_letters
        }))
    }

    async fn reply(&self, text: &str) -> Result<(), MailError> {
        let bug = self.change(|state| state.bug);
        assert!(bug.is_none_or(|bug| !text.contains(bug)), "a bug");
        let reply = serde_json::from_str(text).expect("replies are JSON");
        self.change(|state| state.replies.push(reply));
        Ok(())
    }
}

fn error(kind: MailErrorKind) -> MailError {
    MailError {
        kind,
        reason: format!("{kind:?}"),
        remedy: "none",
    }
}

fn lapsed() -> MailError {
    error(MailErrorKind::Lapsed)
}

fn options(job: &str, sharing: Sharing) -> Options {
    Options {
        me: Me {
            job: job.into(),
            worker: format!("host-of-{job}"),
            instance: Some("i-0abc".into()),
        },
        sharing,
        lease: Duration::from_secs(60),
        auto_scaling: None,
    }
}

fn checkpoint(id: &str, job: &str) -> String {
    json!({"v": 1, "id": id, "command": "checkpoint", "target": {"job": job}, "afterwards": "continue"}).to_string()
}

fn durable(generation: u64) -> Settled {
    Settled::Durable {
        generation,
        afterwards: Afterwards::Continue,
    }
}

fn running() -> Reply {
    Reply::Status(json!({"state": "running"}))
}

/// A worker that runs its job and carries out orders as the closure says.
struct Worker {
    task: tokio::task::JoinHandle<()>,
    health: watch::Receiver<crate::Health>,
    supervisor: tokio::task::JoinHandle<()>,
}

impl Worker {
    fn start(
        mail: &Arc<Memory>,
        options: Options,
        mut carry: impl FnMut(Order, oneshot::Sender<Reply>) + Send + 'static,
    ) -> Self {
        let (ear, listener) = Ear::new(Source::Sqs);
        let Listener {
            mut asked,
            mut heard,
            health,
        } = listener;
        let supervisor = tokio::spawn(async move {
            loop {
                tokio::select! {
                    Some(Asked { order, reply }) = asked.recv() => match order {
                        Order::Status => drop(reply.send(running())),
                        order => carry(order, reply),
                    },
                    Some(heard) = heard.recv() => drop(heard.settled.send(durable(1))),
                    else => return,
                }
            }
        });
        let mail: Arc<dyn Mail> = Arc::clone(mail) as _;
        Self {
            task: tokio::spawn(listen(mail, options, ear)),
            health,
            supervisor,
        }
    }

    /// Everything is carried out at once; says what.
    fn obedient(mail: &Arc<Memory>, options: Options) -> (Self, mpsc::UnboundedReceiver<Order>) {
        let (tell, told) = mpsc::unbounded_channel();
        let mut generation = 0;
        let worker = Self::start(mail, options, move |order, reply| {
            generation += 1;
            drop(tell.send(order));
            drop(reply.send(Reply::Settled(durable(generation))));
        });
        (worker, told)
    }

    /// The supervisor ends, and the source with it.
    async fn end(self) {
        self.supervisor.abort();
        self.task.await.expect("it ends by itself");
    }
}

#[tokio::test]
async fn duplicates_are_carried_out_once_and_answered_with_the_first_outcome() {
    let mail = Memory::with((0..5).map(|_| checkpoint("same", "a")));
    let (worker, mut told) = Worker::obedient(&mail, options("a", Sharing::Own));
    mail.until_empty().await;
    mail.put(checkpoint("same", "a"));
    mail.until_empty().await;
    worker.end().await;
    assert!(told.recv().await.is_some());
    assert!(told.recv().await.is_none(), "it was carried out once");
    let replies = mail.change(|state| std::mem::take(&mut state.replies));
    assert_eq!(replies.len(), 6);
    assert!(replies.iter().all(|reply| reply.settled == durable(1)));
    assert_eq!(replies.iter().filter(|reply| !reply.repeated).count(), 1);
}

#[tokio::test]
async fn an_id_that_another_command_had_is_refused() {
    let mail = Memory::with([checkpoint("same", "a")]);
    let (worker, _told) = Worker::obedient(&mail, options("a", Sharing::Own));
    mail.until_empty().await;
    mail.put(json!({"v": 1, "id": "same", "command": "stop", "target": {"job": "a"}}).to_string());
    mail.until_empty().await;
    worker.end().await;
    mail.change(|state| {
        let Settled::Refused { reason } = &state.replies[1].settled else {
            panic!("{:?}", state.replies);
        };
        assert!(reason.contains("same id"), "{reason}");
    });
}

#[tokio::test]
async fn a_message_is_kept_hidden_while_it_is_worked_on_and_deleted_only_after_that() {
    let mail = Memory::with([checkpoint("1", "a")]);
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut options = options("a", Sharing::Own);
    options.lease = Duration::from_millis(30);
    let worker = Worker::start(&mail, options, move |_, reply| drop(tell.send(reply)));
    let reply = told.recv().await.expect("it is asked");
    mail.until("heartbeats", |state| state.hidden >= 3).await;
    mail.change(|state| assert_eq!(state.messages.len(), 1));
    reply
        .send(Reply::Settled(durable(7)))
        .expect("it is waited for");
    mail.until_empty().await;
    worker.end().await;
    mail.change(|state| assert_eq!(state.replies.len(), 1));
}

#[tokio::test]
async fn a_command_whose_worker_ends_goes_to_the_next_at_once() {
    let mail = Memory::with([checkpoint("1", "a")]);
    let (tell, mut told) = mpsc::unbounded_channel();
    let dying = Worker::start(&mail, options("a", Sharing::Own), move |_, reply| {
        drop(tell.send(reply));
    });
    drop(told.recv().await.expect("it is asked"));
    dying.end().await;
    mail.change(|state| assert!(state.messages[0].taken.is_none(), "it was given back"));
    let (next, mut told) = Worker::obedient(&mail, options("a", Sharing::Own));
    mail.until_empty().await;
    next.end().await;
    assert!(told.recv().await.is_some());
}

#[tokio::test]
async fn workers_of_a_shared_queue_give_back_what_is_for_others() {
    let jobs = ["a", "b", "c"];
    // Each of its own, unlike checkpoints, which may be shared.
    let stop = |id: usize, job: &str| {
        json!({"v": 1, "id": id.to_string(), "command": "stop", "target": {"job": job}}).to_string()
    };
    let bodies = (0..90).map(|number| stop(number, jobs[number % 3]));
    let mail = Memory::with(bodies);
    let mut workers = Vec::new();
    for job in jobs {
        workers.push(Worker::obedient(&mail, options(job, Sharing::Shared)));
    }
    mail.until_empty().await;
    let mut carried = BTreeMap::new();
    for (worker, mut told) in workers {
        let name = carried.len();
        worker.end().await;
        let mut count = 0;
        while told.recv().await.is_some() {
            count += 1;
        }
        carried.insert(name, count);
    }
    assert_eq!(carried.into_values().collect::<Vec<_>>(), [30, 30, 30]);
    mail.change(|state| {
        assert_eq!(state.replies.len(), 90);
        assert!(state.buried.is_empty());
    });
}

#[tokio::test]
async fn what_nobody_can_use_goes_to_the_dead_letters_with_the_reason() {
    let mail = Memory::with([
        "not JSON".to_owned(),
        r#"{"v":2}"#.to_owned(),
        checkpoint("1", "other"),
        "x".repeat(SIZE_LIMIT + 1),
        json!({"source": "aws.ec2", "detail-type": "What", "time": "2026-11-21T02:00:00Z", "detail": {}}).to_string(),
    ]);
    let (worker, mut told) = Worker::obedient(&mail, options("a", Sharing::Own));
    mail.until_empty().await;
    worker.end().await;
    assert!(told.recv().await.is_none());
    let reasons = mail.change(|state| {
        let mut reasons: Vec<_> = state.buried.iter().map(|(_, why)| why.clone()).collect();
        reasons.sort();
        reasons
    });
    let expected = [
        "an event \"What\" of \"aws.ec2\"",
        "it has 262145 bytes, more than the 262144 of any message",
        "it has version 2, this program understands 1",
        "it is for the job other, this is a, and nobody else reads this queue",
        "it is not JSON: expected ident at line 1 column 2",
    ];
    assert_eq!(reasons, expected);
}

#[tokio::test]
async fn poison_without_a_dead_letter_queue_is_deleted_at_its_fifth_receive() {
    let mail = Memory::with(["poison".to_owned()]);
    mail.change(|state| {
        state.no_dead_letters = true;
        state.messages[0].receives = POISON_RECEIVES - 2;
    });
    let (worker, _told) = Worker::obedient(&mail, options("a", Sharing::Own));
    mail.until("it is left to the queue", |state| state.hidden == 1)
        .await;
    // Its time is over.
    mail.change(|state| state.messages[0].taken = None);
    mail.until_empty().await;
    worker.end().await;
}

#[tokio::test]
async fn an_expired_command_is_refused_with_the_reason() {
    let mail = Memory::with([
        json!({"v": 1, "id": "1", "command": "checkpoint", "target": {"job": "a"}, "afterwards": "stop",
               "not_after": "2020-01-01T00:00:00Z"})
        .to_string(),
    ]);
    let (worker, mut told) = Worker::obedient(&mail, options("a", Sharing::Own));
    mail.until_empty().await;
    worker.end().await;
    assert!(told.recv().await.is_none());
    mail.change(|state| {
        let Settled::Refused { reason } = &state.replies[0].settled else {
            panic!("{:?}", state.replies);
        };
        assert!(
            reason.contains("not to be carried out after 2020-01-01"),
            "{reason}"
        );
    });
}

#[tokio::test]
async fn failures_of_the_queue_are_told_and_passed_over() {
    let mail = Memory::with([]);
    mail.change(|state| {
        let kinds = [MailErrorKind::Denied, MailErrorKind::Throttled];
        state.fails.extend(kinds.map(error));
    });
    let (worker, _told) = Worker::obedient(&mail, options("a", Sharing::Own));
    let mut health = worker.health.clone();
    let degraded = |health: &crate::Health| matches!(&health.condition, crate::Condition::Degraded { reason, .. } if reason == "Throttled");
    health.wait_for(degraded).await.expect("it is told");
    mail.put(checkpoint("1", "a"));
    mail.until_empty().await;
    assert_eq!(health.borrow().condition, crate::Condition::Working);
    worker.end().await;
}

#[tokio::test]
async fn nothing_is_taken_before_the_job_runs() {
    let mail = Memory::with([checkpoint("1", "a")]);
    let (ear, mut listener) = Ear::new(Source::Sqs);
    let task = tokio::spawn(listen(
        Arc::clone(&mail) as _,
        options("a", Sharing::Own),
        ear,
    ));
    for _ in 0..2 {
        let asked = listener.asked.recv().await.expect("it asks");
        assert_eq!(asked.order, Order::Status);
        let booting = Reply::Status(json!({"state": "booting"}));
        asked.reply.send(booting).expect("it is waited for");
    }
    mail.change(|state| assert!(state.messages[0].taken.is_none()));
    let asked = listener.asked.recv().await.expect("it asks");
    asked.reply.send(running()).expect("it is waited for");
    let asked = listener.asked.recv().await.expect("it asks");
    assert!(matches!(asked.order, Order::Checkpoint { .. }));
    drop((asked, listener));
    task.await.expect("it ends");
}

#[tokio::test]
async fn a_command_of_before_the_snapshot_that_was_resumed_is_done_already() {
    let stop = json!({"v": 1, "id": "1", "command": "checkpoint", "target": {"job": "a"}, "afterwards": "stop",
                      "issued_at": "2020-01-01T00:00:00Z"});
    let mail = Memory::with([stop.to_string()]);
    let (ear, mut listener) = Ear::new(Source::Sqs);
    let task = tokio::spawn(listen(
        Arc::clone(&mail) as _,
        options("a", Sharing::Own),
        ear,
    ));
    let asked = listener.asked.recv().await.expect("it asks");
    let resumed = json!({"state": "running", "resumed_from": 4, "last_generation": 4, "last_snapshot_age_ms": 5000});
    let answer = Reply::Status(resumed);
    asked.reply.send(answer).expect("it is waited for");
    mail.until_empty().await;
    assert!(
        listener.asked.try_recv().is_err(),
        "it is not carried out again"
    );
    drop(listener);
    task.await.expect("it ends");
    mail.change(|state| {
        let expected = Settled::Durable {
            generation: 4,
            afterwards: Afterwards::Stop,
        };
        assert_eq!(state.replies[0].settled, expected);
    });
}

#[tokio::test]
async fn events_of_this_machine_are_announced_others_and_old_ones_are_not() {
    let spot = |instance: &str, time: &str| {
        json!({"source": "aws.ec2", "detail-type": "EC2 Spot Instance Interruption Warning", "time": time,
               "detail": {"instance-id": instance, "instance-action": "terminate"}})
        .to_string()
    };
    let now = reprieve_core::command::text_of(crate::time::now());
    let mail = Memory::with([
        spot("i-0abc", &now),
        spot("i-1", &now),
        spot("i-0abc", "2020-01-01T00:00:00Z"),
        json!({"Event": "autoscaling:TEST_NOTIFICATION"}).to_string(),
    ]);
    let (ear, mut listener) = Ear::new(Source::Sqs);
    let own = options("a", Sharing::Own);
    let task = tokio::spawn(listen(Arc::clone(&mail) as _, own, ear));
    let asked = listener.asked.recv().await.expect("it asks");
    asked.reply.send(running()).expect("it is waited for");
    let heard = listener.heard.recv().await.expect("it is announced");
    mail.until("only the one that is worked on", |state| {
        state.messages.len() == 1
    })
    .await;
    heard.settled.send(durable(1)).expect("it is waited for");
    mail.until_empty().await;
    assert!(listener.heard.try_recv().is_err());
    drop(listener);
    task.await.expect("it ends");
}

#[tokio::test]
async fn what_this_program_fails_at_is_set_aside_and_the_rest_goes_on() {
    let mail = Memory::with(["1", "bad", "2"].map(|id| checkpoint(id, "a")));
    mail.change(|state| state.bug = Some("bad"));
    let (worker, mut told) = Worker::obedient(&mail, options("a", Sharing::Own));
    mail.until_empty().await;
    mail.change(|state| {
        let [(body, reason)] = &state.buried[..] else {
            panic!("{:?}", state.buried);
        };
        assert_eq!(
            (body.as_str(), reason.as_str()),
            (&*checkpoint("bad", "a"), A_BUG)
        );
        state.bug = None;
    });
    // Sent again, it is not for ever what was given up.
    mail.put(checkpoint("bad", "a"));
    mail.until_empty().await;
    worker.end().await;
    while told.recv().await.is_some() {}
    mail.change(|state| {
        let ids: Vec<_> = state
            .replies
            .iter()
            .map(|reply| reply.id.as_str())
            .collect();
        assert_eq!(ids.len(), 3, "{ids:?}");
        assert_eq!(ids[2], "bad");
    });
}

#[tokio::test]
async fn a_message_that_others_see_in_the_middle_is_carried_out_once() {
    let mail = Memory::with([checkpoint("1", "a")]);
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut options = options("a", Sharing::Own);
    options.lease = Duration::from_millis(30);
    let worker = Worker::start(&mail, options, move |_, reply| drop(tell.send(reply)));
    let reply = told.recv().await.expect("it is asked");
    // The time for which it was hidden is over, for instance because the host stood still; whoever reads gets it.
    mail.change(|state| state.messages[0].taken = None);
    mail.until("it is taken again", |state| state.messages[0].receives == 2)
        .await;
    mail.until("it is kept hidden", |state| state.hidden >= 2)
        .await;
    reply
        .send(Reply::Settled(durable(7)))
        .expect("it is waited for");
    mail.until_empty().await;
    worker.end().await;
    assert!(told.recv().await.is_none(), "it was carried out once");
    mail.change(|state| {
        let repeated: Vec<_> = state.replies.iter().map(|reply| reply.repeated).collect();
        assert_eq!(repeated.iter().filter(|again| !**again).count(), 1);
        assert!(
            state
                .replies
                .iter()
                .all(|reply| reply.settled == durable(7))
        );
    });
}

#[tokio::test]
async fn what_is_far_ahead_keeps_nobody_waiting() {
    let health = |number: u32| {
        json!({"source": "aws.health", "detail-type": "AWS Health Event", "id": number.to_string(),
               "time": reprieve_core::command::text_of(crate::time::now()),
               "detail": {"service": "EC2", "eventTypeCategory": "scheduledChange",
                          "eventTypeCode": "AWS_EC2_SYSTEM_MAINTENANCE_EVENT", "eventArn": format!("arn:{number}"),
                          "statusCode": "upcoming", "startTime": "Fri, 05 Jun 2099 15:10:09 GMT",
                          "affectedEntities": [{"entityValue": "i-0abc"}]}})
        .to_string()
    };
    let mail = Memory::with((0..3 * AT_ONCE).map(health));
    mail.put(checkpoint("1", "a"));
    let (ear, mut listener) = Ear::new(Source::Sqs);
    let own = options("a", Sharing::Own);
    let task = tokio::spawn(listen(Arc::clone(&mail) as _, own, ear));
    let asked = listener.asked.recv().await.expect("it asks");
    asked.reply.send(running()).expect("it is waited for");
    // None of them is settled before its time.
    let mut announced = Vec::new();
    let mut asked = None;
    let heard = async {
        while asked.is_none() || announced.len() < 3 * AT_ONCE as usize {
            tokio::select! {
                Some(heard) = listener.heard.recv() => announced.push(heard),
                Some(order) = listener.asked.recv() => asked = Some(order),
            }
        }
    };
    let limit = Duration::from_secs(120);
    let all = tokio::time::timeout(limit, heard).await;
    all.expect("all of it is heard");
    let asked = asked.expect("it was asked for");
    assert!(matches!(asked.order, Order::Checkpoint { .. }));
    let durable = Reply::Settled(durable(1));
    asked.reply.send(durable).expect("it is waited for");
    mail.until("the events are left, hidden", |state| {
        state.messages.len() == 3 * AT_ONCE as usize && state.hidden == 3 * AT_ONCE
    })
    .await;
    assert!(
        announced
            .iter()
            .all(|heard| matches!(heard.announcement.says, Says::Goes { at: Some(_), .. }))
    );
    drop(listener);
    task.await.expect("it ends");
}

#[tokio::test]
async fn ten_thousand_messages_at_once_are_dealt_with_and_hide_no_warning() {
    let now = reprieve_core::command::text_of(crate::time::now());
    let spot = |instance: &str| {
        json!({"source": "aws.ec2", "detail-type": "EC2 Spot Instance Interruption Warning", "time": now,
               "detail": {"instance-id": instance, "instance-action": "terminate"}})
        .to_string()
    };
    let hostile = [
        "\u{0}\u{1b}[2J\u{202e}".to_owned(),
        "[".repeat(20_000),
        r#"{"v":1,"id":"../../etc","command":"checkpoint","target":{"job":"a"},"afterwards":"rm -rf /"}"#.to_owned(),
        r#"{"v":1,"id":"x","command":"status","target":{"job":"$(reboot)"}}"#.to_owned(),
        format!(r#"{{"v":1e999,"id":"{}"}}"#, "x".repeat(20_000)),
    ];
    let bodies = (0..10_000_usize).map(|number| match number % 10 {
        0..4 => checkpoint(&number.to_string(), "a"),
        // The one before, once more.
        4 => checkpoint(&(number - 1).to_string(), "a"),
        5 => json!({"v": 1, "id": number.to_string(), "command": "status", "target": {"job": "a"}})
            .to_string(),
        6 => hostile[number / 10 % hostile.len()].clone(),
        7 => spot("i-somebody-else"),
        8 => checkpoint(&number.to_string(), "other"),
        _ if number == 9_999 => spot("i-0abc"),
        _ => json!({"Event": "autoscaling:TEST_NOTIFICATION"}).to_string(),
    });
    let mail = Memory::with(bodies);
    // What is sent at the same moment as it is asked for may be later.
    tokio::time::sleep(Duration::from_millis(5)).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut generation = 0;
    let worker = Worker::start(&mail, options("a", Sharing::Own), move |order, reply| {
        generation += 1;
        drop(tell.send(order));
        drop(reply.send(Reply::Settled(durable(generation))));
    });
    mail.until_empty().await;
    let counts = worker.health.borrow().counts;
    worker.end().await;
    let mut checkpoints = 0;
    while told.recv().await.is_some() {
        checkpoints += 1;
    }
    assert!((1..=AT_ONCE).contains(&checkpoints), "{checkpoints}");
    // Commands, events, not needed, given back, buried.
    assert_eq!(counts.messages, [6_000, 1, 1_999, 0, 2_000]);
    mail.change(|state| {
        assert_eq!(state.replies.len(), 6_000);
        let repeated = state.replies.iter().filter(|reply| reply.repeated);
        assert_eq!(repeated.count(), 1_000);
        assert_eq!(state.buried.len(), 2_000);
    });
}

#[test]
fn a_message_that_nobody_wants_is_hidden_for_longer_and_longer() {
    let pauses: Vec<_> = [1, 100, 101, 151, 201, 1000]
        .map(|receives| rounds(receives).as_secs())
        .into();
    assert_eq!(pauses, [0, 0, 2, 4, 8, 32]);
}
