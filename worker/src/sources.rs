//! The sources of notices that settings ask for: each is made here, runs as a task of its own, and is heard here.
//!
//! A source never holds up the app's start and never ends the worker: the worst that can come of one is that nothing
//! is heard of it. What is heard goes into one queue, in the order of arrival.

mod metadata;

pub(crate) use metadata::{azure_options, ec2_options, gcp_options};

use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reprieve_core::notice::{Source, WallMs};
use reprieve_hooks::pressure;
use reprieve_hooks::{Asked, Condition, Ear, Health, Heard, Listener};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::metrics;
use crate::queue;
use crate::settings::{QueueUse, Settings, Sources as Switched};

/// What was heard and not yet taken; a source that meets a full queue waits.
const QUEUE: usize = 64;

/// Between two renewals of the metrics of health. News are told at once; this is for the time of the last success.
const TELL_EVERY: Duration = Duration::from_secs(5);

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How a source is made.
struct Row {
    source: Source,
    /// Whether `--sources auto` has it.
    auto: fn(&Settings) -> bool,
    /// Its task, which goes on until it is dropped.
    task: fn(&Settings, Ear) -> Task,
    /// How long it may take to finish what it is at, such as an answer, when nobody listens any more. With none it is
    /// dropped.
    last_words: Duration,
}

/// Every source that can be switched on and off, one line each.
const TABLE: &[Row] = &[
    Row {
        source: Source::Ec2Metadata,
        auto: metadata::ec2_wanted,
        task: metadata::ec2,
        last_words: Duration::from_secs(3),
    },
    Row {
        source: Source::Gcp,
        auto: |settings| settings.store.is_some(),
        task: metadata::gcp,
        last_words: Duration::ZERO,
    },
    Row {
        source: Source::Azure,
        auto: |settings| settings.store.is_some(),
        task: metadata::azure,
        last_words: Duration::from_secs(3),
    },
    Row {
        source: Source::MemoryPressure,
        auto: |_| false,
        task: |_, ear| Box::pin(pressure::listen(ear)),
        last_words: Duration::ZERO,
    },
    Row {
        source: Source::Sqs,
        auto: |settings| settings.queue != QueueUse::Off,
        task: |settings, ear| Box::pin(queue::listen(settings.clone(), ear)),
        last_words: Duration::from_secs(3),
    },
];

/// What comes from sources.
#[derive(Debug)]
pub enum News {
    Heard(Heard),
    Asked(Source, Asked),
}

/// The sources of one supervisor. Dropped, all of them end.
#[derive(Debug)]
pub struct Sources {
    news: mpsc::Receiver<News>,
    health: Vec<watch::Receiver<Health>>,
    /// Those that have last words.
    talkers: JoinSet<()>,
    last_words: Duration,
    /// Keeps the others going.
    _tasks: JoinSet<()>,
}

impl Sources {
    /// Starts those that are wanted. Needs a runtime.
    pub fn start(settings: &Settings) -> Self {
        let wanted = |row: &&Row| match &settings.sources {
            Switched::Auto => (row.auto)(settings),
            Switched::Only(named) => named.contains(&row.source),
        };
        let mut tasks = JoinSet::new();
        let mut talkers = JoinSet::new();
        let mut last_words = Duration::ZERO;
        let listeners = TABLE.iter().filter(wanted).map(|row| {
            let (ear, listener) = Ear::new(row.source);
            let task = (row.task)(settings, ear);
            match row.last_words {
                Duration::ZERO => tasks.spawn(task),
                _ => talkers.spawn(task),
            };
            last_words = last_words.max(row.last_words);
            listener
        });
        let listeners = listeners.collect();
        Self {
            talkers,
            last_words,
            ..Self::hear(listeners, tasks)
        }
    }

    fn hear(listeners: Vec<Listener>, mut tasks: JoinSet<()>) -> Self {
        let (sender, news) = mpsc::channel(QUEUE);
        let health = listeners.iter().map(|one| one.health.clone()).collect();
        for listener in listeners {
            tasks.spawn(watch_health(listener.health.clone()));
            tasks.spawn(pass_on(listener, sender.clone()));
        }
        Self {
            news,
            health,
            talkers: JoinSet::new(),
            last_words: Duration::ZERO,
            _tasks: tasks,
        }
    }

    /// The next that is heard. Waits for ever when there is nothing to listen to.
    pub async fn next(&mut self) -> News {
        match self.news.recv().await {
            Some(news) => news,
            None => std::future::pending().await,
        }
    }

    /// Listens no more, and waits for those that have something to finish.
    pub async fn end(self) {
        let Self {
            news,
            mut talkers,
            last_words,
            ..
        } = self;
        drop(news);
        let ended = async { while talkers.join_next().await.is_some() {} };
        if timeout(last_words, ended).await.is_err() {
            tracing::info!("a source was not done in time; what it did not finish comes again");
        }
    }

    /// How long before an end those that work tell of it, at the shortest.
    pub fn shortest_notice(&self) -> Option<Duration> {
        let healths = self.health.iter().map(|one| one.borrow());
        let working = healths.filter(|health| health.condition == Condition::Working);
        let seconds = working.filter_map(|health| match health.source {
            Source::Ec2Metadata => Some(120),
            Source::Gcp | Source::Azure => Some(30),
            _ => None,
        });
        seconds.min().map(Duration::from_secs)
    }

    /// How each of them is.
    pub fn health(&self) -> Vec<Health> {
        self.health.iter().map(|one| one.borrow().clone()).collect()
    }
}

/// The wall clock.
pub fn wall_now() -> WallMs {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    WallMs(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

async fn pass_on(mut listener: Listener, news: mpsc::Sender<News>) {
    let source = listener.health.borrow().source;
    loop {
        let next = tokio::select! {
            Some(heard) = listener.heard.recv() => News::Heard(heard),
            Some(asked) = listener.asked.recv() => News::Asked(source, asked),
            () = news.closed() => return,
            // The source has ended and its ear is gone.
            else => return,
        };
        if news.send(next).await.is_err() {
            return;
        }
    }
}

/// Tells of every change, and renews the metrics.
async fn watch_health(mut health: watch::Receiver<Health>) {
    let mut ticks = interval(TELL_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = Condition::Starting;
    loop {
        let now = health.borrow_and_update().clone();
        metrics::source(&now);
        if now.condition != told {
            tell(&now, &told);
            told = now.condition;
        }
        tokio::select! {
            changed = health.changed() => if changed.is_err() { return },
            _ = ticks.tick() => {}
        }
    }
}

fn tell(now: &Health, before: &Condition) {
    let source = now.source.as_str();
    match &now.condition {
        Condition::Starting => {}
        Condition::Working => tracing::info!(source, "a source of notices works"),
        Condition::Absent { reason } => {
            tracing::info!(source, reason, "a source of notices is not there");
        }
        // The reason may change with each try; once is enough.
        Condition::Degraded { .. } if matches!(before, Condition::Degraded { .. }) => {}
        Condition::Degraded { reason, remedy } => tracing::warn!(
            source,
            reason,
            remedy,
            "a source of notices does not work; it is tried again, and what it says meanwhile may be missed"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reprieve_core::notice::{Announcement, Order, Reply, Says, Settled};

    fn listening(source: Source) -> (Ear, Sources) {
        let (ear, listener) = Ear::new(source);
        (ear, Sources::hear(vec![listener], JoinSet::new()))
    }

    #[tokio::test]
    async fn what_a_source_says_and_asks_arrives_and_is_answered() {
        let (ear, mut sources) = listening(Source::Sqs);
        let announcement = Announcement {
            source: Source::Sqs,
            identity: "1".into(),
            says: Says::Withdrawn,
        };
        let settled = ear.say(announcement.clone()).await.expect("it is heard");
        let News::Heard(heard) = sources.next().await else {
            panic!("it was an announcement");
        };
        assert_eq!(heard.announcement, announcement);
        heard.settled.send(Settled::Noted).expect("it waits");
        assert_eq!(settled.await, Ok(Settled::Noted));

        let reply = ear.ask(Order::Status).await.expect("it is heard");
        let News::Asked(Source::Sqs, asked) = sources.next().await else {
            panic!("it was an order");
        };
        assert_eq!(asked.order, Order::Status);
        asked
            .reply
            .send(Reply::Settled(Settled::Noted))
            .expect("it waits");
        assert_eq!(reply.await, Ok(Reply::Settled(Settled::Noted)));
    }

    #[tokio::test]
    async fn a_source_that_ends_leaves_the_others_heard() {
        let (gone, first) = Ear::new(Source::Gcp);
        let (ear, second) = Ear::new(Source::Azure);
        let mut sources = Sources::hear(vec![first, second], JoinSet::new());
        drop(gone);
        let answer = ear.ask(Order::Stop).await;
        assert!(answer.is_some());
        assert!(matches!(
            sources.next().await,
            News::Asked(Source::Azure, _)
        ));
        let health = sources.health();
        assert_eq!(health[1].condition, Condition::Starting);
        ear.works(WallMs(5));
        assert_eq!(sources.health()[1].last_success, Some(WallMs(5)));
    }
}
