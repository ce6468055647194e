//! The sources of notices that settings ask for: each is made here, runs as a task of its own, and is heard here.
//!
//! A source never holds up the app's start and never ends the worker: the worst that can come of one is that nothing
//! is heard of it for a while. One that breaks off, by a bug in it, is told of and begun again. What is heard goes into
//! one queue, in the order of arrival.

mod metadata;

pub(crate) use metadata::{azure_options, ec2_options, gcp_options};

use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reprieve_core::notice::{Source, WallMs};
use reprieve_hooks::pressure;
use reprieve_hooks::{Asked, Condition, Ear, Health, Heard, Listener};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::failure;
use crate::metrics;
use crate::queue;
use crate::settings::{QueueUse, Settings, Sources as Switched};

/// What was heard and not yet taken; a source that meets a full queue waits.
const QUEUE: usize = 64;

/// Between two renewals of the metrics of health. News are told at once; this is for the time of the last success.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Before a source that broke off is begun again; twice as long each time, and never so long that a notice of half a
/// minute is overslept.
const BEGIN_AGAIN: Duration = Duration::from_millis(250);
const BEGIN_AGAIN_MOST: Duration = Duration::from_secs(10);

/// One that went on for as long before it broke off is begun again as quickly as the first time.
const WENT_WELL: Duration = Duration::from_secs(60);

/// For whoever reads that a source broke off.
const A_BUG: &str =
    "none is needed, it is begun again; it is a bug in Reprieve, please report it with the log";

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
        Self::of(TABLE.iter().filter(wanted), settings)
    }

    fn of(rows: impl Iterator<Item = &'static Row>, settings: &Settings) -> Self {
        let mut tasks = JoinSet::new();
        let mut talkers = JoinSet::new();
        let mut last_words = Duration::ZERO;
        let listeners = rows.map(|row| {
            let (ear, listener) = Ear::new(row.source);
            let task = keep_going(row, settings.clone(), ear);
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

/// Begins a source again each time that it breaks off. What it had announced stands, and it announces it again under the
/// same identity.
async fn keep_going(row: &'static Row, settings: Settings, ear: Ear) {
    let mut times = 0_u32;
    loop {
        let begun = Instant::now();
        // A task of its own, so that a panic ends nothing else; dropped with this one.
        let mut inside = JoinSet::new();
        let (its_settings, its_ear) = (settings.clone(), ear.clone());
        inside.spawn(async move { (row.task)(&its_settings, its_ear).await });
        let ended = inside.join_next().await;
        let reason = match ended {
            Some(Ok(())) | None if ear.is_over() => return,
            Some(Err(error)) if error.is_panic() => {
                let said = failure::panic_text(&*error.into_panic());
                format!("it broke off: {said}")
            }
            _ => "it broke off without a word".to_owned(),
        };
        ear.breaks_off(reason, A_BUG);
        if begun.elapsed() >= WENT_WELL {
            times = 0;
        }
        let pause = BEGIN_AGAIN
            .saturating_mul(1 << times.min(16))
            .min(BEGIN_AGAIN_MOST);
        times = times.saturating_add(1);
        tokio::select! {
            () = ear.gone() => return,
            () = sleep(pause) => {}
        }
    }
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
    use std::sync::atomic::{AtomicU32, Ordering};

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

    /// Times that the source of the next test was begun.
    static BEGUN: AtomicU32 = AtomicU32::new(0);

    /// Falls twice, in each way that a task can, and then does what it should.
    static FALLS: Row = Row {
        source: Source::Azure,
        auto: |_| true,
        task: |_, ear| {
            let time = BEGUN.fetch_add(1, Ordering::SeqCst);
            assert!(time != 0, "it fell while it was made");
            Box::pin(async move {
                let notice = Announcement {
                    source: Source::Azure,
                    identity: "1".into(),
                    says: Says::Withdrawn,
                };
                assert!(ear.say(notice).await.is_some(), "somebody listens");
                assert!(time != 1, "it fell {time} times before");
                ear.works(WallMs(5));
                if time == 3 {
                    ear.gone().await;
                }
            })
        },
        last_words: Duration::from_secs(3),
    };

    #[tokio::test]
    async fn a_source_that_breaks_off_is_told_of_and_begun_again_and_the_others_go_on() {
        static QUIET: Row = Row {
            source: Source::Gcp,
            auto: |_| true,
            task: |_, ear| {
                ear.works(WallMs(1));
                Box::pin(async move { ear.gone().await })
            },
            last_words: Duration::ZERO,
        };
        static ABSENT: Row = Row {
            source: Source::MemoryPressure,
            auto: |_| true,
            task: |_, ear| {
                ear.absent("there is none".to_owned());
                Box::pin(async {})
            },
            last_words: Duration::ZERO,
        };
        let rows = [&FALLS, &QUIET, &ABSENT];
        let mut sources = Sources::of(rows.into_iter(), &Settings::for_tests());
        let told = |health: &Health| match &health.condition {
            Condition::Degraded { reason, .. } => reason.clone(),
            other => panic!("{other:?}"),
        };
        let mut health = sources.health[0].clone();
        for (restarts, reason) in [
            (1, "it broke off: it fell while it was made"),
            (2, "it broke off: it fell 1 times before"),
            (3, "it broke off without a word"),
        ] {
            let seen = health.wait_for(|health| health.counts.restarts == restarts);
            let seen = seen.await.expect("it goes on").clone();
            assert_eq!(told(&seen), reason);
        }
        let works = health.wait_for(|health| health.condition == Condition::Working);
        works.await.expect("it goes on");
        // What it said each time arrived.
        for _ in 0..3 {
            let News::Heard(heard) = sources.next().await else {
                panic!("it was an announcement");
            };
            assert_eq!(heard.announcement.identity, "1");
        }
        let [_, quiet, absent] = &sources.health()[..] else {
            panic!("there are three");
        };
        assert_eq!(
            (&quiet.condition, quiet.counts.restarts),
            (&Condition::Working, 0)
        );
        assert!(matches!(absent.condition, Condition::Absent { .. }));
        assert_eq!(absent.counts.restarts, 0);
        sources.end().await;
        assert_eq!(BEGUN.load(Ordering::SeqCst), 4);
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
