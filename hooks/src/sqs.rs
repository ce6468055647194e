//! Commands and events from a queue of SQS.
//!
//! A message is taken for a while, kept hidden from others as long as somebody works on it, and deleted only after what
//! it asked for is settled and answered. A worker that dies in between leaves it to whoever takes it next. Duplicates are
//! answered with the first outcome. What nobody can understand goes to the dead-letter queue with the reason, and so does
//! what this program fails at.
//!
//! ```text
//!            ┌─ a command for us ──▶ supervisor ──▶ reply ──▶ delete
//!  receive ──┼─ an event of ours ──▶ supervisor ──▶ (complete the lifecycle action) ──▶ delete
//!            ├─ for somebody else ─▶ shared queue: give it back at once and stand back; own queue: dead letter
//!            ├─ too old, no news ──▶ delete
//!            └─ not understood ────▶ dead letter
//! ```
//!
//! Nothing routes a message of a shared queue to a chosen reader: any may get it. Whoever gets what is not its own gives
//! it back visible and then leaves the queue alone for a moment, so that the others come first. Giving it back hidden
//! would hide it from its owner as well; that is done only with what has gone round many times, so that a message that
//! nobody wants does not keep everybody busy.
//!
//! Nothing is taken before the job runs: a worker that waits for another owner must not take that one's commands.
//! Failures of the queue make this source degraded and are tried again, for ever, with growing pauses.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use reprieve_core::command::{self, Asks, Command, Me};
use reprieve_core::notice::{Afterwards, Order, Reply, Says, Settled, WallMs};
use serde_json::Value;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::Ear;
use crate::autoscaling::AutoScaling;
use crate::events::{self, Event, Reading};

pub mod post;
pub mod queue;

/// Messages that are worked on at the same time. Those that wait for the same checkpoint share it.
const AT_ONCE: u32 = 40;

/// Messages of one receive, the most that SQS gives.
const BATCH: u32 = 10;

/// Bytes of a message that is looked at; an event that names hundreds of instances has less.
const SIZE_LIMIT: usize = 256 * 1024;

/// Outcomes that are remembered, to answer duplicates with.
const REMEMBERED: usize = 1000;

/// An event is about a machine that is long gone when it is older than this. The longest time that AWS gives is two
/// minutes, and a lifecycle hook's first timeout may be an hour, during which it is told only once.
const NOTICE_LIFE_MS: u64 = 10 * 60_000;
const HOOK_LIFE_MS: u64 = 60 * 60_000;

/// An event that is further ahead is not held until it comes, since it would keep others waiting: it is hidden for half
/// of the time, or as long as SQS lets one be, and read again then.
const NEAR_MS: u64 = 60 * 60_000;
const HIDDEN_MOST: Duration = Duration::from_secs(11 * 60 * 60);

/// Receives after which a message for somebody else is hidden for a while when it is given back. Well above what the
/// way to its owner takes among dozens of readers, since it is hidden from the owner as well.
const ROUNDS_AT_ONCE: u32 = 100;

/// Receives after which a poison message is deleted where there is no dead-letter queue.
const POISON_RECEIVES: u32 = 5;

/// How long we leave the queue alone after a message for somebody else, and at most after many of them.
const STAND_BACK: Duration = Duration::from_millis(50);
const STAND_BACK_MOST: Duration = Duration::from_secs(2);

/// Between two tries of a queue that fails.
const TRY_AGAIN: Duration = Duration::from_secs(1);
const TRY_AGAIN_MOST: Duration = Duration::from_secs(30);

/// Between two looks at whether the job runs.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Why a message at which this program fails is set aside; the log has the place.
const A_BUG: &str = "this program fails at it, which is a bug in it; please report it";

/// Whose queue it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody else reads it.
    Own,
    /// Workers of other jobs read it as well.
    Shared,
}

/// How messages are treated.
#[derive(Clone, Debug)]
pub struct Options {
    pub me: Me,
    pub sharing: Sharing,
    /// How long a message stays hidden when the worker that took it falls silent.
    pub lease: Duration,
    pub auto_scaling: Option<AutoScaling>,
}

/// A message that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub id: String,
    pub body: String,
    /// Names this taking of it.
    pub receipt: String,
    /// How often it was taken, this time included.
    pub receives: u32,
    pub sent: Option<WallMs>,
}

/// Why a call to the queue did not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct MailError {
    pub kind: MailErrorKind,
    pub reason: String,
    pub remedy: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailErrorKind {
    /// The queue is not there (any more).
    Gone,
    Denied,
    Throttled,
    /// This taking of the message has lapsed; somebody else may have it.
    Lapsed,
    Other,
}

/// A queue and those that belong to it.
#[async_trait]
pub trait Mail: Send + Sync {
    /// Waits for messages, as long as the queue lets us, and returns none if none came.
    async fn receive(&self) -> Result<Vec<Message>, MailError>;
    async fn delete(&self, message: &Message) -> Result<(), MailError>;
    /// Shows the message to others after this time and not before.
    async fn hide(&self, message: &Message, time: Duration) -> Result<(), MailError>;
    /// Copies it to the dead-letter queue. False when there is none.
    async fn bury(&self, message: &Message, reason: &str) -> Result<bool, MailError>;
    /// Sends an answer to the reply queue, if there is one.
    async fn reply(&self, text: &str) -> Result<(), MailError>;
}

/// Listens until nobody listens to us any more. Messages that are being worked on then go back.
pub async fn listen(mail: Arc<dyn Mail>, options: Options, ear: Ear) {
    let Some(resumed) = runs(&ear).await else {
        return;
    };
    let desk = Arc::new(Desk {
        mail,
        options,
        ear,
        resumed,
        made: Mutex::default(),
        outcomes: Mutex::default(),
    });
    let places = Arc::new(Semaphore::new(AT_ONCE as usize));
    let mut work = JoinSet::new();
    let mut failures = 0_u32;
    let mut strangers = 0_u32;
    loop {
        while work.try_join_next().is_some() {}
        let received = tokio::select! {
            biased;
            () = desk.ear.gone() => break,
            received = receive(&desk, &places) => received,
        };
        let pause = match received {
            Ok(messages) => {
                failures = 0;
                desk.ear.works(crate::time::now());
                let mut own = 0_u32;
                let mut others = 0_u32;
                for message in messages {
                    let judged = || desk.judge(&message, crate::time::now());
                    let verdict = catch_unwind(AssertUnwindSafe(judged))
                        .unwrap_or_else(|_| Verdict::Bury(A_BUG.to_owned()));
                    match verdict {
                        Verdict::GiveBack => others += 1,
                        _ => own += 1,
                    }
                    let place = Arc::clone(&places).try_acquire_owned();
                    let desk = Arc::clone(&desk);
                    work.spawn(async move {
                        let _place = place;
                        let treated = AssertUnwindSafe(Box::pin(desk.treat(&message, verdict)));
                        if treated.catch_unwind().await.is_err() {
                            desk.bury(&message, A_BUG).await;
                        }
                    });
                }
                strangers = match (own, others) {
                    (_, 0) => 0,
                    // Some are ours: there may be more.
                    (1.., _) => 1,
                    (0, _) => strangers + 1,
                };
                pause(strangers, STAND_BACK, STAND_BACK_MOST)
            }
            Err(error) => {
                failures += 1;
                desk.ear.fails(error.reason, error.remedy);
                pause(failures, TRY_AGAIN, TRY_AGAIN_MOST)
            }
        };
        tokio::select! {
            biased;
            () = desk.ear.gone() => break,
            () = sleep(pause) => {}
        }
    }
    // Whoever waits for an answer learns now that none comes, and hands its message back.
    while work.join_next().await.is_some() {}
}

async fn receive(desk: &Desk, places: &Semaphore) -> Result<Vec<Message>, MailError> {
    // As many as we could be given; they are taken again, one by one, by those who work on them.
    let free = places.acquire_many(BATCH).await;
    drop(free);
    desk.mail.receive().await
}

/// Doubles each time, with a random share, so that workers that failed together do not come back together.
fn pause(times: u32, first: Duration, most: Duration) -> Duration {
    if times == 0 {
        return Duration::ZERO;
    }
    let longest = first.saturating_mul(1 << (times - 1).min(16)).min(most);
    longest.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// The snapshot that the job was resumed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Resumed {
    generation: u64,
    taken: WallMs,
}

/// Waits until the job runs here. None when nobody listens any more.
async fn runs(ear: &Ear) -> Option<Option<Resumed>> {
    loop {
        let answer = ear.ask(Order::Status).await?;
        if let Ok(Reply::Status(status)) = answer.await
            && matches!(status["state"].as_str(), Some("running" | "checkpointing"))
        {
            return Some(resumed(&status, crate::time::now()));
        }
        tokio::select! {
            () = ear.gone() => return None,
            () = sleep(LOOK_AGAIN) => {}
        }
    }
}

fn resumed(status: &Value, now: WallMs) -> Option<Resumed> {
    let generation = status["resumed_from"].as_u64()?;
    // A newer one was made here since; then nothing of before is told.
    if status["last_generation"].as_u64()? != generation {
        return None;
    }
    let age = status["last_snapshot_age_ms"].as_u64()?;
    Some(Resumed {
        generation,
        taken: WallMs(now.0.checked_sub(age)?),
    })
}

/// What is to be done with a message.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Carry(Box<Command>),
    Announce(Box<Event>),
    /// It is for somebody else who reads here.
    GiveBack,
    /// Nothing follows from it, and this is why.
    Remove(String),
    Bury(String),
}

/// What became of a command, or that it is not known yet.
type Outcome = watch::Receiver<Option<command::Reply>>;

#[derive(Default)]
struct Outcomes {
    order: VecDeque<String>,
    known: HashMap<String, (Command, Outcome)>,
}

enum Turn {
    /// Nobody has seen this command before.
    First(watch::Sender<Option<command::Reply>>),
    Again(Outcome),
    /// The id belongs to another command.
    Taken,
}

impl Outcomes {
    fn turn(&mut self, command: &Command) -> Turn {
        // What was given up before there was an outcome may be taken up again.
        let is_given_up =
            |outcome: &Outcome| outcome.has_changed().is_err() && outcome.borrow().is_none();
        match self.known.get(&command.id) {
            Some((known, _)) if known != command => return Turn::Taken,
            Some((_, outcome)) if !is_given_up(outcome) => return Turn::Again(outcome.clone()),
            Some(_) => {}
            None => self.order.push_back(command.id.clone()),
        }
        let (sender, outcome) = watch::channel(None);
        self.known
            .insert(command.id.clone(), (command.clone(), outcome));
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        Turn::First(sender)
    }
}

/// Where messages are worked on.
struct Desk {
    mail: Arc<dyn Mail>,
    options: Options,
    ear: Ear,
    resumed: Option<Resumed>,
    /// The newest snapshot that was made here because a command asked for it.
    made: Mutex<Option<Made>>,
    outcomes: Mutex<Outcomes>,
}

/// A snapshot of the job as it was at this time or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Made {
    generation: u64,
    asked: WallMs,
}

impl Desk {
    fn judge(&self, message: &Message, now: WallMs) -> Verdict {
        if message.body.len() > SIZE_LIMIT {
            return Verdict::Bury(format!(
                "it has {} bytes, more than the {SIZE_LIMIT} of any message",
                message.body.len()
            ));
        }
        let me = &self.options.me;
        match events::read(&message.body, me.instance.as_deref()) {
            Reading::Ours(event) => match too_old(event.issued, event.hook.is_some(), now) {
                Some(why) => Verdict::Remove(why),
                None => Verdict::Announce(event),
            },
            Reading::Others { issued } => {
                let old = issued.and_then(|issued| too_old(issued, true, now));
                match (old, self.options.sharing) {
                    (Some(why), _) => Verdict::Remove(why),
                    (None, Sharing::Shared) => Verdict::GiveBack,
                    // A rule that tells every queue of every machine is no mistake.
                    (None, Sharing::Own) => Verdict::Remove("it is about another machine".into()),
                }
            }
            Reading::Nothing(why) => Verdict::Remove(why),
            Reading::NotUnderstood(why) => Verdict::Bury(why),
            Reading::NotAnEvent => self.judge_command(message, now),
        }
    }

    fn judge_command(&self, message: &Message, now: WallMs) -> Verdict {
        let command = match Command::parse(&message.body) {
            Ok(command) => command,
            Err(error) => return Verdict::Bury(error.to_string()),
        };
        let Some(other) = command.target.other_than(&self.options.me) else {
            return Verdict::Carry(Box::new(command));
        };
        match (self.options.sharing, command.too_late(now)) {
            (Sharing::Own, _) => {
                Verdict::Bury(format!("{other}, and nobody else reads this queue"))
            }
            (Sharing::Shared, Some(late)) => Verdict::Bury(format!("nobody took it: {late}")),
            (Sharing::Shared, None) => Verdict::GiveBack,
        }
    }

    async fn treat(&self, message: &Message, verdict: Verdict) {
        self.ear.message(match verdict {
            Verdict::Carry(_) => crate::Message::Command,
            Verdict::Announce(_) => crate::Message::Event,
            Verdict::GiveBack => crate::Message::GivenBack,
            Verdict::Remove(_) => crate::Message::NotNeeded,
            Verdict::Bury(_) => crate::Message::Buried,
        });
        match verdict {
            Verdict::Carry(command) => self.carry(message, &command).await,
            Verdict::Announce(event) => self.announce(message, *event).await,
            Verdict::GiveBack => self.hand_back(message, rounds(message.receives)).await,
            Verdict::Remove(why) => {
                tracing::info!(id = message.id, why, "a message of the queue is not needed");
                self.delete(message).await;
            }
            Verdict::Bury(why) => self.bury(message, &why).await,
        }
    }

    async fn carry(&self, message: &Message, command: &Command) {
        let reply = |settled| command::Reply::new(command, self.options.me.clone(), settled);
        let refuse = |reason: String| reply(Settled::Refused { reason });
        if let Some(late) = command.too_late(crate::time::now()) {
            return self.answer(message, &refuse(late)).await;
        }
        let turn = self
            .outcomes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .turn(command);
        match turn {
            Turn::Taken => {
                let reason = "another command had the same id; give each its own".to_owned();
                self.answer(message, &refuse(reason)).await;
            }
            Turn::Again(mut outcome) => {
                let known = self.hold(message, outcome.wait_for(Option::is_some)).await;
                let known = known.ok().and_then(|known| known.clone());
                match known {
                    Some(first) => {
                        let repeated = true;
                        self.answer(message, &command::Reply { repeated, ..first })
                            .await;
                    }
                    None => self.hand_back(message, Duration::ZERO).await,
                }
            }
            Turn::First(tell) => {
                tracing::info!(
                    id = command.id,
                    command = command.asks.as_str(),
                    "a command came through the queue"
                );
                let asked = crate::time::now();
                let done = match self.done_before(message, command) {
                    Some(settled) => Some(reply(settled)),
                    None => self.carry_out(message, command, reply).await,
                };
                match done {
                    Some(reply) => {
                        self.learn(command, asked, &reply.settled);
                        tell.send_replace(Some(reply.clone()));
                        self.answer(message, &reply).await;
                    }
                    None => self.hand_back(message, Duration::ZERO).await,
                }
            }
        }
    }

    /// Remembers what a later command may be answered with. A checkpoint that was asked for begins after that, however
    /// busy the worker is.
    fn learn(&self, command: &Command, asked: WallMs, settled: &Settled) {
        let (Asks::Checkpoint { .. }, Settled::Durable { generation, .. }) =
            (&command.asks, settled)
        else {
            return;
        };
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.is_none_or(|made| made.generation < *generation) {
            *made = Some(Made {
                generation: *generation,
                asked,
            });
        }
    }

    /// A command that stops the job may come again to the worker that resumes it, when its first reader had no time to
    /// delete it. The snapshot that was taken since is what it asked for. So it is with a command that leaves the job
    /// running and had to wait behind others while a snapshot was taken: thousands that come at once lead to a few.
    fn done_before(&self, message: &Message, command: &Command) -> Option<Settled> {
        let Asks::Checkpoint {
            afterwards,
            tag: None,
            ..
        } = command.asks
        else {
            return None;
        };
        let asked = command.issued_at.or(message.sent)?;
        let resumed = self.resumed.filter(|resumed| asked < resumed.taken);
        let made = *self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let made = made.filter(|made| asked < made.asked && afterwards == Afterwards::Continue);
        let made = made.map(|made| made.generation);
        Some(Settled::Durable {
            generation: made.or(resumed.map(|resumed| resumed.generation))?,
            afterwards,
        })
    }

    /// None when there is nobody who could.
    async fn carry_out(
        &self,
        message: &Message,
        command: &Command,
        reply: impl Fn(Settled) -> command::Reply,
    ) -> Option<command::Reply> {
        let order = order(command);
        let answer = self.ear.ask(order).await?;
        Some(match self.hold(message, answer).await.ok()? {
            Reply::Settled(settled) => reply(settled),
            Reply::Status(status) => command::Reply {
                status: Some(status),
                ..reply(Settled::Noted)
            },
        })
    }

    async fn announce(&self, message: &Message, event: Event) {
        let Event {
            announcement, hook, ..
        } = event;
        let ahead = match announcement.says {
            Says::Goes { at: Some(at), .. } => at.0.saturating_sub(crate::time::now().0),
            _ => 0,
        };
        let Some(answer) = self.ear.say(announcement).await else {
            return self.hand_back(message, Duration::ZERO).await;
        };
        if ahead > NEAR_MS && hook.is_none() {
            let half = Duration::from_millis(ahead / 2);
            return self.hand_back(message, half.min(HIDDEN_MOST)).await;
        }
        let settled = match (&hook, &self.options.auto_scaling) {
            (Some(hook), Some(scaling)) => self.hold(message, scaling.hold(hook, answer)).await,
            _ => self.hold(message, answer).await,
        };
        let Ok(settled) = settled else {
            return self.hand_back(message, Duration::ZERO).await;
        };
        if let (Some(hook), Some(scaling)) = (&hook, &self.options.auto_scaling) {
            tracing::info!(hook = hook.name, ?settled, "the instance may go");
            if !self.hold(message, scaling.complete(hook)).await {
                // Whoever reads it next, which is us, tries again.
                return self.hand_back(message, Duration::from_secs(1)).await;
            }
        }
        self.delete(message).await;
    }

    /// Keeps the message hidden from others until this is over.
    async fn hold<T>(&self, message: &Message, work: impl Future<Output = T>) -> T {
        let keep = async {
            loop {
                sleep(self.options.lease / 3).await;
                if let Err(error) = self.mail.hide(message, self.options.lease).await
                    && error.kind == MailErrorKind::Lapsed
                {
                    // A copy may be read meanwhile; it is answered with the same outcome.
                    tracing::warn!(id = message.id, %error, "a message could not be kept hidden; others may see it");
                    return std::future::pending().await;
                }
            }
        };
        tokio::select! {
            biased;
            done = work => done,
            never = keep => never,
        }
    }

    async fn answer(&self, message: &Message, reply: &command::Reply) {
        let text = serde_json::to_string(reply).expect("it has string keys and finite numbers");
        tracing::info!(id = reply.id, command = reply.command, outcome = ?reply.settled, repeated = reply.repeated,
                       "a command of the queue is answered");
        if let Err(error) = self.persist(|| self.mail.reply(&text)).await {
            tracing::warn!(id = reply.id, %error, "an answer could not be sent to the reply queue");
        }
        self.delete(message).await;
    }

    async fn delete(&self, message: &Message) {
        if let Err(error) = self.persist(|| self.mail.delete(message)).await {
            tracing::warn!(id = message.id, %error, "a message that is done could not be deleted; it will come again");
        }
    }

    async fn hand_back(&self, message: &Message, after: Duration) {
        if let Err(error) = self.mail.hide(message, after).await {
            tracing::debug!(id = message.id, %error, "a message comes back by itself only");
        }
    }

    async fn bury(&self, message: &Message, why: &str) {
        let buried = self.persist(|| self.mail.bury(message, why)).await;
        match buried {
            Ok(true) => {
                tracing::warn!(
                    id = message.id,
                    why,
                    "a message was put into the dead-letter queue"
                );
                self.delete(message).await;
            }
            Ok(false) if message.receives >= POISON_RECEIVES => {
                let begin: String = message.body.chars().take(200).collect();
                tracing::error!(
                    id = message.id,
                    why,
                    begin,
                    "a message that nobody can use was deleted; there is no dead-letter queue"
                );
                self.delete(message).await;
            }
            // The queue's own rule may move it, or it is tried again.
            Ok(false) | Err(_) => {
                tracing::warn!(
                    id = message.id,
                    why,
                    "a message cannot be used; it is left to the queue"
                );
                self.hand_back(message, self.options.lease).await;
            }
        }
    }

    /// Three times: what is asked for here is not worth more, because the message comes again.
    async fn persist<T, F>(&self, call: impl Fn() -> F) -> Result<T, MailError>
    where
        F: Future<Output = Result<T, MailError>>,
    {
        for time in 1..3 {
            match call().await {
                Err(error)
                    if matches!(error.kind, MailErrorKind::Throttled | MailErrorKind::Other) =>
                {
                    sleep(pause(time, Duration::from_millis(100), TRY_AGAIN)).await;
                }
                done => return done,
            }
        }
        call().await
    }
}

fn order(command: &Command) -> Order {
    match &command.asks {
        Asks::Checkpoint {
            afterwards,
            tag,
            deadline,
        } => Order::Checkpoint {
            afterwards: *afterwards,
            deadline: *deadline,
            tags: tag.iter().cloned().collect(),
            command: command.id.clone(),
        },
        Asks::Stop => Order::Stop,
        Asks::Status => Order::Status,
        Asks::Rollback(to) => Order::Rollback {
            to: to.clone(),
            command: command.id.clone(),
        },
    }
}

fn too_old(issued: WallMs, hook: bool, now: WallMs) -> Option<String> {
    let life = match hook {
        true => HOOK_LIFE_MS,
        false => NOTICE_LIFE_MS,
    };
    let age = now.0.saturating_sub(issued.0);
    (age > life).then(|| {
        format!(
            "it is {} s old, too old to be about what is to come",
            age / 1000
        )
    })
}

/// How long a message for somebody else stays hidden when it is given back.
fn rounds(receives: u32) -> Duration {
    match receives.saturating_sub(ROUNDS_AT_ONCE) {
        0 => Duration::ZERO,
        more => Duration::from_secs(1 << more.div_ceil(50).min(5)),
    }
}

#[cfg(test)]
mod tests;
