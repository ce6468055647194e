//! What is left when a worker is killed, when two start at once, and after many generations: the newest snapshot that
//! counts, exactly, and no more in the store than that takes.

mod harness;
mod job;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use harness::{Builder, Exit, Host, LIMIT, Lookalike, wait_until};
use job::{
    ALONE, COUNTER, Store, checkpoint_ok, digest, evict, numbers, race, wait_for_log,
    wait_for_output,
};
use reprieve::steps::Step;
use reprieve_core::head::Head;
use reprieve_core::worker::Worker;

/// Hosts that are killed side by side.
const AT_ONCE: usize = 4;

fn head(store: &Store) -> Option<Head> {
    let bytes = fs::read(store.path().join("job/HEAD")).ok()?;
    Some(Head::from_bytes(&bytes).expect("it is whole"))
}

fn newest(store: &Store) -> u64 {
    let head = head(store);
    head.and_then(|head| head.generations.first().map(|newest| newest.generation))
        .unwrap_or(0)
}

#[track_caller]
fn reprieve(store: &Store, arguments: &[&str]) -> String {
    let store = format!("file://{}", store.path().display());
    run(Command::new(env!("CARGO_BIN_EXE_reprieve"))
        .args(arguments)
        .args(["--store", &store, "--job", "job"]))
}

#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().expect("the binary was built");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).expect("it is text")
}

/// Bytes of the job's objects.
fn stored(store: &Store) -> u64 {
    let sizes = store.objects().into_iter();
    // A sweep may run.
    sizes
        .filter_map(|path| fs::metadata(path).ok())
        .map(|object| object.len())
        .sum()
}

/// What a worker does that resumes, takes a checkpoint, sweeps, and stops at an eviction; killed on the way, or not.
fn live(host: &Host) -> Exit {
    let gone = || !host.is_running();
    wait_until(LIMIT, "it runs or is gone", || {
        gone() || host.stdout().mark() > 0
    });
    if gone() {
        return host.wait_exit(LIMIT);
    }
    let ran = job::checkpoint(host);
    if ran.code == 0 {
        wait_until(LIMIT, "a sweep, or the end", || {
            gone() || host.stderr().text().contains("the store was swept")
        });
    }
    if !gone() {
        host.signal(libc::SIGTERM);
    }
    host.wait_exit(LIMIT)
}

/// Kills at every change of the store, of which there are those of a start, of a checkpoint that lets the job go on, of
/// a sweep, of one that stops it, and of the goodbye; until there are no more.
fn killed_at_every_change(side: &str) {
    let store = Store::new();
    let options = [
        "--keep-generations",
        "2",
        "--sweep-grace",
        "0s",
        "--lease-term",
        "1h",
    ];
    let whole = store.host_with("whole", &options, COUNTER).start();
    wait_for_output(&whole, "line 10");
    checkpoint_ok(&whole);
    checkpoint_ok(&whole);
    evict(&whole);
    let mut output = whole.stdout().text();
    let mut kills = 0;
    for at in 1.. {
        assert!(at < 100, "there is no end");
        let killed = store
            .host_with("killed", &options, COUNTER)
            .env("KILL_AT_STORE_CHANGE", format!("{at}:{side}"))
            .start();
        let exit = live(&killed);
        killed.destroy();
        keep_until_resumed(&mut output, &killed);
        // What counts is whole, whatever was going on.
        reprieve(&store, &["verify", "--all"]);
        let counts = newest(&store);
        let next = store.host_with("next", &options, COUNTER).start();
        let resumed = wait_for_log(&next, "the job is resumed");
        assert!(
            resumed.contains(&format!("\"generation\":{counts},")),
            "{side} {at}: {counts} of {resumed}"
        );
        let mark = next.stdout().mark();
        wait_until(LIMIT, "more lines", || next.stdout().mark() > mark + 20);
        evict(&next);
        keep_until_resumed(&mut output, &next);
        if exit == Exit::Code(75) {
            break;
        }
        kills += 1;
    }
    // A start has 6, a checkpoint 4, and there are two; a sweep and a goodbye have some.
    assert!(kills >= 16, "only {kills} changes {side}");
}

/// Pages of 4 KiB.
const SEVERAL: &str = "200";

/// More memory than what is worth storing ahead, a digest of it on request, and numbered lines.
const MEMORY: &[&str] = &["python3", "/apps/memory.py", "40", "--churn", SEVERAL];

/// For all tests of this program.
static SERVER: LazyLock<Lookalike> = LazyLock::new(Lookalike::start);

/// Where snapshots are, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Directory,
    /// In a directory, sealed with a key.
    Sealed,
    S3,
}

/// One such place.
struct Site {
    kind: Kind,
    /// Empty with S3.
    store: Store,
    key: tempfile::NamedTempFile,
    bucket: String,
}

impl Site {
    fn new(kind: Kind) -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let site = Self {
            kind,
            store: Store::new(),
            key: tempfile::NamedTempFile::new().expect("a temporary file can be made"),
            bucket: format!("bucket-{}", MADE.fetch_add(1, Ordering::Relaxed)),
        };
        fs::write(site.key.path(), "a passphrase in one line\n").expect("it can be written");
        if kind == Kind::S3 {
            SERVER.make_bucket(&site.bucket);
        }
        site
    }

    /// Another with what is in this one of the job.
    fn copied(&self) -> Self {
        let copied = Self::new(self.kind);
        if self.kind == Kind::S3 {
            let keys = SERVER.keys(&self.bucket).into_iter();
            for key in keys.filter(|key| key.starts_with("job/")) {
                let bytes = SERVER.object(&self.bucket, &key);
                SERVER.put_object(&copied.bucket, &key, &bytes);
            }
            return copied;
        }
        let [from, to] = [&self.store, &copied.store].map(|store| store.path().join("job"));
        copy(&from, &to);
        copied
    }

    fn address(&self) -> String {
        format!("s3://{}", self.bucket)
    }

    fn host_with(&self, name: &str, options: &[&str], app: &[&str]) -> Builder {
        match self.kind {
            Kind::Directory => self.store.host_with(name, options, app),
            Kind::Sealed => {
                let options = [&["--key-file", "/key"], options].concat();
                let host = self.store.host_with(name, &options, app);
                host.bind_read_only(self.key.path(), "/key")
            }
            Kind::S3 => {
                let address = self.address();
                let always = ["--store", &address, "--s3-endpoint", &SERVER.url];
                let job = ["--job", "job", "--term-grace", "60s"];
                let options = always.into_iter().chain(job).chain(options.iter().copied());
                Host::builder(name)
                    .share_net()
                    .env("AWS_ACCESS_KEY_ID", "AKIDFORTESTS")
                    .env("AWS_SECRET_ACCESS_KEY", "a-secret-that-stays-one")
                    .reprieve(
                        options.chain(["--on-other-owner", "take-over"]),
                        app.iter().copied(),
                    )
            }
        }
    }

    /// A command on the job's snapshots, which must succeed.
    #[track_caller]
    fn command(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reprieve"));
        command.args(arguments).args(["--job", "job"]);
        let path = format!("file://{}", self.store.path().display());
        match self.kind {
            Kind::Directory => command.args(["--store", &path]),
            Kind::Sealed => command
                .args(["--store", &path, "--key-file"])
                .arg(self.key.path()),
            Kind::S3 => command
                .args(["--store", &self.address(), "--s3-endpoint", &SERVER.url])
                .env("AWS_ACCESS_KEY_ID", "AKIDFORTESTS")
                .env("AWS_SECRET_ACCESS_KEY", "a-secret-that-stays-one"),
        };
        run(&mut command)
    }

    /// The newest generation, by what people are told.
    fn newest(&self) -> u64 {
        let told = self.command(&["snapshots", "--json"]);
        let told: serde_json::Value = serde_json::from_str(&told).expect("it is JSON");
        let newest = &told["snapshots"][0]["generation"];
        newest.as_u64().expect("there is one, and it has a number")
    }
}

/// A job with two generations that was evicted: its store, what it has written, and the digest of its memory.
struct Template {
    site: Site,
    text: String,
    digest: String,
}

impl Template {
    fn new(kind: Kind) -> Self {
        let site = Site::new(kind);
        let host = site.host_with("whole", &[], MEMORY).start();
        wait_for_output(&host, "ready");
        checkpoint_ok(&host);
        let digest = digest(&host, libc::SIGUSR2);
        evict(&host);
        assert_eq!(site.newest(), 2);
        Self {
            site,
            text: host.stdout().text(),
            digest,
        }
    }
}

/// As a worker is that is killed at a step, the first time it is there or the second.
#[derive(Clone, Copy, Debug)]
struct Death {
    step: Step,
    time: u32,
}

impl Death {
    /// Each step once. A worker takes two checkpoints: one lets the job go on, the next stops it.
    fn all() -> Vec<Self> {
        let once = Step::ALL.iter().map(|step| Self {
            step: *step,
            time: 1,
        });
        let again = once
            .clone()
            .filter(|death| death.is_during("checkpoint") && death.step != Step::Killed);
        once.clone()
            .chain(again.map(|death| Self { time: 2, ..death }))
            .collect()
    }

    /// Some of those at which the store or the key have a part, for the places that are slower.
    fn some() -> Vec<Self> {
        [
            (Step::Claimed, 1),
            (Step::Seeded, 1),
            (Step::Uploaded, 1),
            (Step::Manifested, 2),
            (Step::Committed, 2),
            (Step::Condemned, 1),
        ]
        .map(|(step, time)| Self { step, time })
        .to_vec()
    }

    fn is_during(self, what: &str) -> bool {
        self.step.as_str().starts_with(what)
    }

    /// Two more snapshots, a sweep, and the end; killed on the way. Returns the digests of what was to be stored.
    fn live(self, host: &Host) -> Vec<String> {
        let gone = || !host.is_running();
        let mut digests = Vec::new();
        if ["boot", "restore", "seeding"]
            .iter()
            .any(|what| self.is_during(what))
        {
            return digests;
        }
        wait_for_output(host, "tick");
        digests.push(digest(host, libc::SIGUSR2));
        job::checkpoint(host);
        wait_until(LIMIT, "a sweep, or the end", || {
            gone() || host.stderr().text().contains("the store was swept")
        });
        if !gone() && !self.is_during("sweep") {
            digests.push(digest(host, libc::SIGUSR2));
            host.signal(libc::SIGTERM);
        }
        digests
    }

    /// Whether this is the way of a job that begins, and a place that such a worker finds: a copy of the store, or a new one.
    fn site(self, template: &Template) -> (bool, Site) {
        let is_new = [Step::Starting, Step::Started].contains(&self.step);
        let site = match is_new {
            true => Site::new(template.site.kind),
            false => template.site.copied(),
        };
        (is_new, site)
    }

    /// Dies of it in a copy of the store, and goes on with what is left there.
    fn die(self, template: &Template) {
        let (is_new, site) = self.site(template);
        let mut options = vec!["--keep-generations", "2", "--lease-term", "1h"];
        if self.is_during("seeding") {
            options.extend(["--seed-interval", "100ms"]);
        }
        let killed = site
            .host_with("killed", &options, MEMORY)
            .env("KILL_AT_STEP", format!("{}:{}", self.step, self.time))
            .start();
        let digests = self.live(&killed);
        assert_eq!(
            killed.wait_exit(LIMIT),
            Exit::Code(137),
            "{self:?} was never there"
        );
        killed.destroy();
        let next = || site.host_with("next", &options[..4], MEMORY).start();
        if is_new {
            let next = next();
            wait_for_log(&next, "the app is started from scratch");
            return;
        }
        site.command(&["verify", "--all"]);
        let counts = site.newest();
        let next = next();
        let resumed = wait_for_log(&next, "the job is resumed");
        let is_newest = resumed.contains(&format!("\"generation\":{counts},"));
        assert!(is_newest, "{self:?}: {counts} of {resumed}");
        wait_for_output(&next, "tick");
        let found = digest(&next, libc::SIGUSR1);
        let expected = match counts {
            2 => &template.digest,
            later => &digests[usize::try_from(later).expect("few") - 3],
        };
        assert_eq!(found, *expected, "{self:?} {counts}");
        wait_until(LIMIT, "more lines", || {
            ticks(&next.stdout().text()).len() > 3
        });
        next.destroy();
        let [killed, next] = [killed, next].map(|host| host.stdout().text());
        let before = &template.text;
        match counts {
            2 => assert_goes_on(&[before, &next]),
            // It ran on after this one.
            3 => assert_goes_on_within(&(before.clone() + &killed), &next),
            4 => assert_goes_on(&[before, &killed, &next]),
            _ => panic!("{self:?}: {counts}"),
        }
    }
}

impl Death {
    /// Stands still there for longer than its lease, while another host takes the job over: it gives its copy up, and
    /// neither what is stored nor the other one's copy suffers.
    fn stand_still(self, template: &Template) {
        let (is_new, site) = self.site(template);
        let mut options = vec!["--keep-generations", "2", "--lease-term", "1s"];
        options.extend(["--on-other-owner", "leave"]);
        if self.is_during("seeding") {
            options.extend(["--seed-interval", "100ms"]);
        }
        let still = site
            .host_with("still", &options, MEMORY)
            .env(
                "STAND_STILL_AT_STEP",
                format!("{}:{}", self.step, self.time),
            )
            .start();
        let other = |name| {
            let options = ["--lease-term", "1s", "--on-other-owner", "wait"];
            site.host_with(name, &options, MEMORY).start()
        };
        std::thread::scope(|scope| {
            let living = scope.spawn(|| self.live(&still));
            wait_for_log(&still, "the machine is to stand still");
            let stopped = still.stand_still();
            let since = Instant::now();
            let second = other("second");
            let (counts, found) = match is_new {
                true => {
                    wait_for_log(&second, "the app is started from scratch");
                    wait_for_output(&second, "ready");
                    (0, String::new())
                }
                false => {
                    let line = wait_for_log(&second, "the job is resumed");
                    let line: serde_json::Value = serde_json::from_str(&line).expect("it is JSON");
                    wait_for_output(&second, "tick");
                    let counts = line["generation"].as_u64().expect("a number");
                    (counts, digest(&second, libc::SIGUSR1))
                }
            };
            // Where there is no lease to wait for, the other one was there at once.
            wait_until(LIMIT, "longer than the lease", || {
                since.elapsed() > Duration::from_secs(2)
            });
            still.go_on(&stopped);
            let exit = still.wait_exit(LIMIT);
            let digests = living.join().expect("it lived as long as it was to");
            // Who says that the job was stored is followed by somebody who resumed just that.
            let ended = match counts {
                4 => [Exit::Code(172), Exit::Code(75)].contains(&exit),
                _ => exit == Exit::Code(172),
            };
            assert!(ended, "{self:?}: {exit:?} after {counts}");
            if !is_new {
                let expected = match counts {
                    2 => &template.digest,
                    later => &digests[usize::try_from(later).expect("few") - 3],
                };
                assert_eq!(found, *expected, "{self:?} {counts}");
            }
            checkpoint_ok(&second);
            let changed = digest(&second, libc::SIGUSR2);
            evict(&second);
            site.command(&["verify", "--all"]);
            let third = other("third");
            wait_for_log(&third, "the job is resumed");
            wait_for_output(&third, "tick");
            assert_eq!(digest(&third, libc::SIGUSR1), changed, "{self:?}");
        });
    }
}

#[test]
fn a_host_that_stands_still_at_a_step_past_its_lease_gives_its_copy_up_and_harms_nothing() {
    let template = Template::new(Kind::Directory);
    let deaths = match std::env::var_os("SOAK_STEPS") {
        Some(_) => Death::all(),
        None => Death::some(),
    };
    each(&deaths, |death| death.stand_still(&template));
}

fn ticks(text: &str) -> Vec<u64> {
    let ticks = text.lines().filter_map(|line| line.strip_prefix("tick "));
    ticks
        .map(|number| number.parse().expect("a number"))
        .collect()
}

/// Taken together, no line is missing, repeated or torn; the last one may be.
#[track_caller]
fn assert_goes_on(texts: &[&str]) {
    let text = texts.concat();
    let (whole, _) = text.rsplit_once('\n').expect("it has lines");
    let known = |line: &str| {
        ["tick ", "digest ", "ready"]
            .iter()
            .any(|begin| line.starts_with(begin))
    };
    let unknown = whole.lines().find(|line| !known(line));
    assert_eq!(unknown, None);
    let found = ticks(whole);
    let expected: Vec<u64> = (1..).take(found.len()).collect();
    assert_eq!(found, expected);
}

/// The second goes on where the first was at some time, at a line's end or within a line.
#[track_caller]
fn assert_goes_on_within(first: &str, second: &str) {
    let whole = |text: &str| {
        text.rsplit_once('\n')
            .map(|(whole, _)| whole.to_owned())
            .unwrap_or_default()
    };
    // Its first line may be the rest of one.
    let (_, rest) = second.split_once('\n').expect("it has lines");
    let (before, after) = (ticks(&whole(first)), ticks(&whole(rest)));
    let begun = after[0];
    let last = *before.last().expect("it ran");
    assert!(begun <= last + 2, "{begun} comes after {last}");
    let expected: Vec<u64> = (begun..).take(after.len()).collect();
    assert_eq!(after, expected);
}

fn killed_at(deaths: &[Death], kind: Kind) {
    let template = Template::new(kind);
    each(deaths, |death| death.die(&template));
}

/// Some at a time; what came of each, in their order.
fn each<T: Send>(deaths: &[Death], die: impl Fn(Death) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let ended = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(deaths.len() / 2) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    let Some(death) = deaths.get(number) else {
                        return;
                    };
                    let end = die(*death);
                    ended
                        .lock()
                        .expect("none panics with it")
                        .insert(number, end);
                }
            });
        }
    });
    let ended = ended.into_inner().expect("none panicked");
    ended.into_values().collect()
}

/// Goes on where CRIU is killed at the step, as the kernel may when memory runs out: the job loses nothing, is stored at the
/// next attempt, and what is stored is exact. Returns whether CRIU was there.
fn outlives_its_criu(death: Death, template: &Template) -> bool {
    let site = template.site.copied();
    let host = site
        .host_with("host", &[], MEMORY)
        .env(
            "KILL_CRIU_AT_STEP",
            format!("{}:{}", death.step, death.time),
        )
        .start();
    let resumed = wait_for_log(&host, "the job is resumed");
    assert!(
        resumed.contains("\"generation\":2,"),
        "{death:?}: {resumed}"
    );
    wait_for_output(&host, "tick");
    assert_eq!(digest(&host, libc::SIGUSR1), template.digest, "{death:?}");
    // The first checkpoint is the one that CRIU may die in; whatever it says, the job goes on.
    let first = job::checkpoint(&host);
    let died_in_it = death.is_during("checkpoint") && death.time == 1;
    assert!(first.code == 0 || died_in_it, "{death:?}: {}", first.stderr);
    let changed = digest(&host, libc::SIGUSR2);
    checkpoint_ok(&host);
    // The last one has the time of the notice to be tried again.
    evict(&host);
    let next = site.host_with("next", &[], MEMORY).start();
    wait_for_log(&next, "the job is resumed");
    wait_for_output(&next, "tick");
    assert_eq!(digest(&next, libc::SIGUSR1), changed, "{death:?}");
    next.destroy();
    assert_goes_on(&[&template.text, &host.stdout().text(), &next.stdout().text()]);
    host.stderr().text().contains("CRIU is killed at")
}

#[test]
fn a_job_outlives_its_criu_at_any_step_of_a_checkpoint_or_resume() {
    let template = Template::new(Kind::Directory);
    let steps = Step::ALL.iter().filter(|step| {
        let name = step.as_str();
        name.starts_with("restore") || name.starts_with("checkpoint")
    });
    // A checkpoint that lets the job go on, and the last one.
    let deaths: Vec<Death> = steps
        .flat_map(|step| [1, 3].map(|time| Death { step: *step, time }))
        .filter(|death| death.time == 1 || death.is_during("checkpoint"))
        .collect();
    let struck = each(&deaths, |death| outlives_its_criu(death, &template));
    for (death, struck) in deaths.iter().zip(struck) {
        let runs_then = [
            Step::Restoring,
            Step::Built,
            Step::Dumping,
            Step::Frozen,
            Step::Cut,
        ];
        assert!(
            struck || !runs_then.contains(&death.step),
            "{death:?}: there was no CRIU"
        );
    }
}

/// `make soak` goes through all steps in each place.
fn killed_at_some_in(kind: Kind) {
    match std::env::var_os("SOAK_STEPS") {
        Some(_) => killed_at(&Death::all(), kind),
        None => killed_at(&Death::some(), kind),
    }
}

#[test]
fn a_worker_killed_at_any_step_leaves_the_newest_snapshot_exactly() {
    killed_at(&Death::all(), Kind::Directory);
}

#[test]
fn a_worker_with_a_key_killed_at_a_step_leaves_the_newest_snapshot_exactly() {
    killed_at_some_in(Kind::Sealed);
}

#[test]
fn a_worker_with_s3_killed_at_a_step_leaves_the_newest_snapshot_exactly() {
    killed_at_some_in(Kind::S3);
}

/// The lines so far go on with those of a host that resumed at one of them.
#[track_caller]
fn keep_until_resumed(output: &mut String, host: &Host) {
    let lines = host.stdout().lines().join("\n") + "\n";
    let text: String = lines
        .lines()
        .filter(|line| line.starts_with("line "))
        .fold(String::new(), |text, line| text + line + "\n");
    let (before, after) = (numbers(output), numbers(&text));
    let Some(first) = after.first() else { return };
    let last = before.last().copied().unwrap_or(0);
    assert!(*first <= last + 1, "{first} comes after {last}");
    let in_order = after.windows(2).all(|pair| pair[1] == pair[0] + 1);
    // The last line may be torn by the kill.
    assert!(in_order || after.len() < 3, "{text}");
    let kept = before.iter().filter(|number| *number < first);
    *output = kept
        .chain(&after)
        .map(|number| format!("line {number}\n"))
        .collect();
}

#[test]
fn a_worker_killed_before_any_change_of_the_store_leaves_the_newest_snapshot() {
    killed_at_every_change("before");
}

#[test]
fn a_worker_killed_after_any_change_of_the_store_leaves_the_newest_snapshot() {
    killed_at_every_change("after");
}

#[test]
fn of_two_workers_that_start_at_once_one_runs_the_job_a_hundred_times() {
    let store = Store::new();
    let options = ["--on-other-owner", "leave"];
    for _ in 0..100 {
        race(["right", "left"].map(|name| store.host_with(name, &options, ALONE)));
    }
}

fn entries(store: &Store) -> Vec<Worker> {
    let Ok(directory) = fs::read_dir(store.path().join("~workers")) else {
        return Vec::new();
    };
    let objects = directory.filter_map(|entry| {
        let path = entry.expect("it can be read").path();
        let hidden = path.file_name()?.to_string_lossy().starts_with('.');
        // It may have left since it was listed.
        (!hidden).then(|| fs::read(path).ok())?
    });
    objects
        .map(|bytes| Worker::from_bytes(&bytes).expect("it is whole"))
        .collect()
}

#[test]
fn a_live_worker_is_in_the_registry_and_one_that_left_is_not() {
    let store = Store::new();
    let host = store.host("machine", COUNTER).start();
    wait_for_output(&host, "line 10");
    checkpoint_ok(&host);
    wait_until(LIMIT, "its entry", || {
        matches!(&entries(&store)[..], [one] if one.state == "running"
            && one.last_snapshot.is_some_and(|snapshot| snapshot.generation == 1))
    });
    let [one] = &entries(&store)[..] else {
        panic!("it was there just now")
    };
    let owner = head(&store)
        .and_then(|head| head.owner)
        .expect("it has one");
    assert_eq!((&one.worker, &one.host), (&owner.worker, &owner.host));
    assert_eq!((one.job.as_str(), one.epoch), ("job", Some(1)));
    let waiting = store
        .host_with("waiting", &["--on-other-owner", "wait"], COUNTER)
        .start();
    wait_until(LIMIT, "two entries", || entries(&store).len() == 2);
    let other = entries(&store);
    let other = other.iter().find(|other| other.host == "waiting");
    let other = other.expect("it waits").clone();
    assert_eq!((other.state.as_str(), other.epoch), ("booting", None));
    evict(&host);
    wait_for_log(&waiting, "the job is resumed");
    evict(&waiting);
    assert_eq!(entries(&store), [], "both said goodbye");
}

#[test]
fn a_running_job_removes_what_retention_lets_go() {
    let store = Store::new();
    let host = store
        .host_with("host", &["--keep-generations", "2"], COUNTER)
        .start();
    wait_for_output(&host, "line 10");
    let young = store
        .path()
        .join("job/data/01M7Y81N6F4VPA5D16QW77B56M/000000");
    fs::create_dir_all(young.parent().expect("it has one")).expect("it can be made");
    fs::write(&young, "of an attempt that may be on its way").expect("it can be written");
    for _ in 0..4 {
        checkpoint_ok(&host);
    }
    let manifests = || {
        let objects = store.objects().into_iter();
        objects
            .filter(|path| path.to_string_lossy().contains("/manifests/"))
            .count()
    };
    wait_until(LIMIT, "a sweep", || manifests() == 2);
    wait_for_log(&host, "the store was swept");
    assert!(young.exists());
    reprieve(&store, &["verify", "--all"]);
    wait_until(LIMIT, "the end of the sweep", || {
        let preview = reprieve(
            &store,
            &["prune", "--dry-run", "--keep-generations", "2", "--json"],
        );
        preview.contains("\"removed\":0,")
    });
    // Of a worker that died long ago.
    evict(&host);
}

/// Pages of 4 KiB that change between two snapshots, of the job's 12288.
const CHURN: u64 = 1000;

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.expect("cp is there").success());
}

/// Leaves only this generation in the head, as if the job had never gone on from it.
fn go_back(store: &Store, generation: u64) {
    let mut head = head(store).expect("it has a head");
    head.generations.retain(|one| one.generation == generation);
    fs::write(store.path().join("job/HEAD"), head.to_bytes()).expect("it can be written");
}

/// `make soak` has more generations and prints what it measures.
#[test]
fn many_generations_of_a_job_that_churns_stay_exact_and_within_the_factor() {
    let asked = std::env::var("SOAK_GENERATIONS");
    let generations: u64 = asked.map_or(20, |number| number.parse().expect("a number"));
    let store = Store::new();
    let churn = CHURN.to_string();
    let app = ["python3", "/apps/memory.py", "48", "--churn", &churn];
    let host = store
        .host_with("host", &["--keep-generations", "3"], &app)
        .start();
    wait_for_output(&host, "ready");
    let mut digests = vec![String::new()];
    let mut pinned: Vec<u64> = Vec::new();
    let (mut first, mut largest) = (0, 0);
    for generation in 1..=generations {
        digests.push(digest(&host, libc::SIGUSR2));
        checkpoint_ok(&host);
        if generation == 1 {
            first = stored(&store);
        }
        if generation % (generations / 4).max(1) == generations / 8 + 1 {
            reprieve(&store, &["pin", "newest"]);
            pinned.push(generation);
        }
        largest = largest.max(stored(&store));
    }
    // The newest and each pinned one have little in common; the last few differ by what changed between them.
    let live = first * (1 + pinned.len() as u64) + 2 * CHURN * 4096;
    let allowed = 2 * live;
    evict(&host);
    reprieve(&store, &["prune", "--keep-generations", "3"]);
    let left = stored(&store);
    let litter: serde_json::Value = serde_json::from_str(&reprieve(
        &store,
        &[
            "prune",
            "--dry-run",
            "--keep-generations",
            "3",
            "--sweep-grace",
            "0s",
            "--json",
        ],
    ))
    .expect("it is JSON");
    let litter = &litter["freed_bytes"];
    let written: u64 = first + (generations - 1) * CHURN * 4096;
    println!(
        "generations {generations}, pinned {pinned:?}, first {first}, written about {written}, largest {largest}, left {left}, \
         of it {litter} of a sweep that was cut short, live about {live}: factor {:.2}",
        left as f64 / live as f64
    );
    assert!(left <= allowed, "{left} of {allowed}");
    let at_random = pinned[usize::from(fastrand_byte()) % pinned.len()];
    for generation in [at_random, generations] {
        let old = Store::new();
        copy(&store.path().join("job"), &old.path().join("job"));
        go_back(&old, generation);
        let host = old.host("old", &app).start();
        let resumed = wait_for_log(&host, "the job is resumed");
        assert!(
            resumed.contains(&format!("\"generation\":{generation},")),
            "{resumed}"
        );
        let found = digest(&host, libc::SIGUSR1);
        assert_eq!(found, digests[usize::try_from(generation).expect("few")]);
    }
}

fn fastrand_byte() -> u8 {
    fs::read("/proc/sys/kernel/random/uuid")
        .expect("it is there")
        .iter()
        .fold(0, |sum, byte| sum ^ byte.rotate_left(u32::from(sum % 8)))
}

/// What a worker and its job hold.
#[derive(Clone, Copy, Debug)]
struct Held {
    descriptors: usize,
    threads: usize,
    resident_kib: u64,
    processes: usize,
    /// Of the app.
    its_descriptors: usize,
    objects: usize,
}

impl Held {
    fn by(host: &Host, store: &Store) -> Self {
        let pid = host.pid1_host_pid();
        let entries = |of: &str| fs::read_dir(of).expect("it is running").count();
        let processes = host.processes();
        let app = processes
            .iter()
            .find(|process| process.parent == 1 && process.pid > 300);
        let app = format!("/proc/{}/fd", app.expect("the app runs").pid);
        // Its code comes and goes with what it does.
        let resident = host.status_field(1, "RssAnon").expect("it is running");
        Self {
            descriptors: entries(&format!("/proc/{pid}/fd")),
            threads: entries(&format!("/proc/{pid}/task")),
            resident_kib: resident.trim_end_matches(" kB").parse().expect("a number"),
            processes: processes.len(),
            its_descriptors: host.exec_ok(["ls", &app]).lines().count(),
            objects: store.objects().len(),
        }
    }

    /// The least of each: what is only used for a moment is in none of them all the time.
    fn least(of: &[Self]) -> Self {
        let least = |one: fn(&Self) -> usize| of.iter().map(one).min().expect("there are some");
        Self {
            descriptors: least(|held| held.descriptors),
            threads: least(|held| held.threads),
            resident_kib: of.iter().map(|held| held.resident_kib).min().expect("some"),
            processes: least(|held| held.processes),
            its_descriptors: least(|held| held.its_descriptors),
            objects: least(|held| held.objects),
        }
    }

    /// What leaks at each checkpoint is more than two after half of them; a sweep that goes on all the time is not.
    fn assert_no_more_than(&self, before: &Self) {
        let told = format!("{self:?} after {before:?}");
        assert!(self.descriptors <= before.descriptors + 2, "{told}");
        assert!(self.threads <= before.threads + 2, "{told}");
        assert!(
            self.resident_kib <= before.resident_kib + 8 * 1024,
            "{told}"
        );
        assert!(self.processes <= before.processes, "{told}");
        assert!(self.its_descriptors <= before.its_descriptors, "{told}");
    }
}

/// `make soak` goes on for half an hour and prints what it measures.
#[test]
fn a_job_that_moves_between_two_hosts_for_long_stays_exact_and_leaks_nothing() {
    let asked = std::env::var("SOAK_MINUTES").ok();
    let asked: Option<u64> = asked.map(|minutes| minutes.parse().expect("a number"));
    let (rounds, checkpoints) = asked.map_or((3, 6), |minutes| (minutes, 20));
    let store = Store::new();
    let app = ["python3", "/apps/memory.py", "16", "--churn", "200"];
    let options = ["--keep-generations", "3", "--sweep-grace", "1s"];
    let mut last = None;
    let mut each: Vec<Held> = Vec::new();
    for round in 0..rounds {
        let name = if round % 2 == 0 { "one" } else { "other" };
        let host = store.host_with(name, &options, &app).start();
        match &last {
            None => wait_for_output(&host, "ready"),
            Some(before) => {
                wait_for_log(&host, "the job is resumed");
                assert_eq!(digest(&host, libc::SIGUSR1), *before, "round {round}");
            }
        }
        let mut held = Vec::new();
        for _ in 0..checkpoints {
            last = Some(digest(&host, libc::SIGUSR2));
            checkpoint_ok(&host);
            held.push(Held::by(&host, &store));
            if asked.is_some() {
                // The pace of the soak, and nothing that is waited for.
                std::thread::sleep(std::time::Duration::from_millis(2500));
            }
        }
        let (first, second) = held.split_at(held.len() / 2);
        let (first, second) = (Held::least(first), Held::least(second));
        second.assert_no_more_than(&first);
        println!("round {round}: {second:?}, {} bytes stored", stored(&store));
        // From the second on, each is a resumed one.
        if round > 1 {
            second.assert_no_more_than(&each[1]);
        }
        each.push(second);
        evict(&host);
    }
    let prune = ["prune", "--keep-generations", "3", "--sweep-grace", "0s"];
    reprieve(&store, &prune);
    let most = each.iter().map(|held| held.objects).max();
    let left = store.objects().len();
    println!("objects: at most {most:?} while it ran, {left} left");
    let again: serde_json::Value = serde_json::from_str(&reprieve(
        &store,
        &[&prune[..], &["--dry-run", "--json"]].concat(),
    ))
    .expect("it is JSON");
    assert_eq!(again["freed_bytes"], 0, "{again}");
    assert!(
        each.iter().all(|held| held.objects < 10 * left),
        "{each:?} {left}"
    );
}
