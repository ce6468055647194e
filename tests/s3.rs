//! Jobs whose snapshots travel through S3: real hosts, real CRIU, a real HTTP server, and a way to it that fails on cue.

mod harness;
mod job;

use std::collections::HashSet;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use harness::{
    Builder, Exit, Fault, Handout, Host, LIMIT, Lab, Lookalike, Proxy, Ran, Request, wait_until,
};
use job::{COUNTER, assert_counts, checkpoint_ok, evict, wait_for_log, wait_for_output};
use reprieve_core::head::Head;

/// One for all tests, since it takes seconds to start; it ends with this program.
static SERVER: LazyLock<Lookalike> = LazyLock::new(Lookalike::start);

/// A bucket of one's own, and the way to it.
struct Bucket {
    name: String,
    proxy: Proxy,
}

impl Bucket {
    fn new() -> Self {
        let bucket = Self::missing();
        SERVER.make_bucket(&bucket.name);
        bucket
    }

    /// The name of a bucket that is not there.
    fn missing() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        Self {
            name: format!("bucket-{number}"),
            proxy: Proxy::start(&SERVER.url),
        }
    }

    fn host(&self, name: &str, app: &[&str]) -> Builder {
        self.host_with(name, &[], app)
    }

    fn host_with(&self, name: &str, options: &[&str], app: &[&str]) -> Builder {
        let store = format!("s3://{}/deep/prefix", self.name);
        let always = ["--store", &store, "--s3-endpoint", self.proxy.url()];
        let job = match options.contains(&"--job") {
            true => vec![],
            false => vec!["--job", "job"],
        };
        // Hosts are destroyed here without a goodbye; what waiting means is tested with the directory.
        let owner = match options.contains(&"--on-other-owner") {
            true => vec![],
            false => vec!["--on-other-owner", "take-over"],
        };
        let options = always
            .into_iter()
            .chain(job)
            .chain(owner)
            .chain(options.iter().copied());
        Host::builder(name)
            .share_net()
            .env("AWS_ACCESS_KEY_ID", "AKIDFORTESTS")
            .env("AWS_SECRET_ACCESS_KEY", "a-secret-that-stays-one")
            .reprieve(options, app.iter().copied())
    }

    /// The generations that count, newest first.
    fn generations(&self) -> Vec<u64> {
        let head = SERVER.object(&self.name, "deep/prefix/job/HEAD");
        let head = Head::from_bytes(&head).expect("it is whole");
        head.generations
            .iter()
            .map(|known| known.generation)
            .collect()
    }
}

#[test]
fn a_store_that_ignores_conditions_is_refused() {
    let bucket = Bucket::new();
    for forgotten in ["if-none-match", "if-match"] {
        // One of the two: the second create and the stale replacement are the second and the fourth put.
        let counted = match forgotten {
            "if-none-match" => 1,
            _ => 3,
        };
        bucket
            .proxy
            .fail_some(Fault::ForgetConditions, counted, 1, |request| {
                request.is("PUT", "/probe/")
            });
        let host = bucket.host("host", COUNTER).start();
        assert_eq!(host.wait_exit(LIMIT), Exit::Code(175), "{forgotten}");
        let said = host.stderr().text().to_lowercase();
        assert!(
            said.contains(&format!("({forgotten} is ignored)")),
            "{said}"
        );
        assert!(said.contains("remedy: "), "{said}");
        assert_eq!(host.stdout().text(), "", "nothing was started");
        bucket.proxy.pass();
    }
    assert_eq!(SERVER.keys(&bucket.name), [""; 0], "nothing is left");
    // On purpose, and without the right to remove what the test wrote.
    let forget = || {
        bucket
            .proxy
            .fail(Fault::ForgetConditions, |request| request.method == "PUT");
    };
    forget();
    let host = bucket
        .host_with("host", &["--store-self-test", "off"], COUNTER)
        .start();
    assert_runs_on(&host);
    host.destroy();
    bucket.proxy.pass();
    bucket
        .proxy
        .fail(Fault::Denied, |request| request.method == "DELETE");
    let host = bucket.host("host", COUNTER).start();
    assert_runs_on(&host);
    wait_for_log(&host, "self-test wrote could not be removed");
}

/// Grace for evictions that have nothing to do with time, on a machine that may be busy.
const PATIENT: &[&str] = &["--term-grace", "60s"];

fn is_put(request: &Request) -> bool {
    request.method == "PUT"
}

fn checkpoint_within(host: &Host, timeout: &str) -> Ran {
    let command = ["reprieve", "checkpoint", "--leave-running", "--timeout"];
    host.exec(command.into_iter().chain([timeout]))
}

/// The app writes on.
#[track_caller]
fn assert_runs_on(host: &Host) {
    let mark = host.stdout().mark();
    wait_until(LIMIT, "more output", || host.stdout().mark() > mark + 50);
}

/// What a host has written, without a line that its end tore.
fn whole_lines(host: &Host) -> String {
    let lines = host.stdout().lines();
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Waits for the log's next line with `wanted` at or after `mark`.
#[track_caller]
fn wait_for_log_after(host: &Host, mark: usize, wanted: &str) -> String {
    host.stderr()
        .wait_for_line_after(mark, wanted, LIMIT, |line| line.contains(wanted))
}

/// From the line with `begin` to the one with `end`, by the supervisor's own clock.
#[track_caller]
fn took(begin: &str, end: &str) -> Duration {
    let millis = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).expect("the log is JSON");
        let text = line["time"].as_str().expect("every line has its time");
        let time = humantime::parse_rfc3339(text).expect("it is a time");
        time.duration_since(std::time::UNIX_EPOCH)
            .expect("clocks are set")
    };
    millis(end) - millis(begin)
}

#[test]
fn a_job_goes_on_over_three_hosts_and_no_line_is_lost_or_repeated() {
    let bucket = Bucket::new();
    let mut output = String::new();
    for name in ["first", "second"] {
        let host = bucket.host_with(name, PATIENT, COUNTER).start();
        assert_runs_on(&host);
        evict(&host);
        output += &host.stdout().text();
    }
    let last = bucket.host("third", COUNTER).start();
    wait_for_log(&last, "the job is resumed");
    assert_runs_on(&last);
    last.destroy();
    assert_counts(&(output + &whole_lines(&last)), None);
}

#[test]
fn a_missing_bucket_missing_rights_and_an_empty_bucket_are_three_things() {
    let missing = Bucket::missing();
    let host = missing.host("missing", COUNTER).start();
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(173));
    let said = host.stderr().text();
    assert!(said.contains("remedy: create the bucket"), "{said}");
    assert_eq!(host.stdout().text(), "");

    let bucket = Bucket::new();
    let first = bucket.host_with("first", PATIENT, COUNTER).start();
    wait_for_output(&first, "line 10");
    evict(&first);
    // Each step of a boot, from the first look at the store to the last read of a snapshot.
    let steps: [(&str, &str, &str); 4] = [
        ("GET", "list-type=2", "s3:ListBucket"),
        ("GET", "/HEAD", "s3:GetObject"),
        ("PUT", "/HEAD", "s3:PutObject"),
        ("GET", "/data/", "s3:GetObject"),
    ];
    for (method, path, right) in steps {
        bucket
            .proxy
            .fail(Fault::Denied, move |request| request.is(method, path));
        let denied = bucket.host("denied", COUNTER).start();
        assert_eq!(denied.wait_exit(LIMIT), Exit::Code(173), "{method} {path}");
        let said = denied.stderr().text();
        assert!(said.contains(&format!("allow {right}")), "{said}");
        assert!(said.contains("remedy: "), "{said}");
        assert_eq!(denied.stdout().text(), "", "it was started from scratch");
        bucket.proxy.pass();
    }
    // None of this has done any harm.
    let second = bucket.host("second", COUNTER).start();
    wait_for_log(&second, "the job is resumed");
    assert_runs_on(&second);
    second.destroy();
    assert_counts(&(first.stdout().text() + &whole_lines(&second)), None);
}

#[test]
fn a_store_that_goes_away_during_a_checkpoint_stops_neither_the_job_nor_the_next_checkpoint() {
    let bucket = Bucket::new();
    let first = bucket.host("first", COUNTER).start();
    wait_for_output(&first, "line 10");
    checkpoint_ok(&first);
    // A part, the index, the manifest: without the first, the second or the third.
    for fault in [Fault::Hang, Fault::Reset] {
        for reached in 0..3 {
            let timeout = if reached == 0 { "5s" } else { "2s" };
            bucket.proxy.fail_after(fault, reached, is_put);
            let mark = first.stderr().mark();
            let ran = checkpoint_within(&first, timeout);
            assert!([180, 183].contains(&ran.code), "{fault:?} {ran:?}");
            assert!(ran.stderr.contains("the job runs on"), "{}", ran.stderr);
            let begun = wait_for_log_after(&first, mark, "checkpoint begins");
            let failed = wait_for_log_after(&first, mark, "checkpoint failed");
            let limit = humantime::parse_duration(timeout).expect("a duration");
            let took = took(&begun, &failed);
            assert!(took <= limit, "{took:?} of {timeout} after {fault:?}");
            bucket.proxy.pass();
            assert_runs_on(&first);
            assert_eq!(bucket.generations(), [1], "{fault:?} after {reached}");
        }
    }
    // Gone without a notice: what was stored in vain must not look like a snapshot.
    first.destroy();
    let second = bucket.host_with("second", PATIENT, COUNTER).start();
    let resumed = wait_for_log(&second, "the job is resumed");
    assert!(resumed.contains("\"generation\":1"), "{resumed}");
    bucket.proxy.fail_after(Fault::Reset, 1, is_put);
    assert_ne!(checkpoint_within(&second, "2s").code, 0);
    bucket.proxy.pass();
    checkpoint_ok(&second);
    assert_eq!(bucket.generations(), [2, 1]);
    evict(&second);
    let third = bucket.host("third", COUNTER).start();
    wait_for_log(&third, "the job is resumed");
    assert_runs_on(&third);
    third.destroy();
    let again = second.stdout().text() + &whole_lines(&third);
    let begun = job::numbers(&again)[0];
    let before: String = (1..begun)
        .map(|number| format!("line {number}\n"))
        .collect();
    assert_counts(&(before + &again), None);
}

/// The store is all tests' together: one grace may be too short for it, and then the job runs on until it is told again.
#[track_caller]
fn evict_in_the_end(host: &Host) {
    let mut told: Option<Instant> = None;
    wait_until(LIMIT * 2, "the job to be stored", || {
        if host.is_running() && told.is_none_or(|told| told.elapsed() > Duration::from_secs(11)) {
            host.signal(libc::SIGTERM);
            told = Some(Instant::now());
        }
        !host.is_running()
    });
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(75));
}

#[test]
fn an_eviction_without_a_store_lets_the_job_run_on_until_one_with_it() {
    let bucket = Bucket::new();
    let options = ["--term-grace", "3s"];
    let host = bucket.host_with("host", &options, COUNTER).start();
    wait_for_output(&host, "line 10");
    for fault in [Fault::Hang, Fault::Reset] {
        bucket.proxy.fail(fault, |_| true);
        let mark = host.stderr().mark();
        host.signal(libc::SIGTERM);
        let told = wait_for_log_after(&host, mark, "SIGTERM");
        let failed = wait_for_log_after(&host, mark, "checkpoint failed");
        let took = took(&told, &failed);
        assert!(took <= Duration::from_secs(3), "{fault:?}: {took:?}");
        assert_runs_on(&host);
        bucket.proxy.pass();
    }
    evict_in_the_end(&host);
    let next = bucket.host("next", COUNTER).start();
    wait_for_log(&next, "the job is resumed");
    assert_runs_on(&next);
    next.destroy();
    assert_counts(&(host.stdout().text() + &whole_lines(&next)), None);
}

#[test]
fn a_store_that_asks_to_slow_down_is_asked_again() {
    let bucket = Bucket::new();
    bucket.proxy.fail_next(Fault::SlowDown, 3, |_| true);
    let host = bucket.host("host", COUNTER).start();
    wait_for_output(&host, "line 10");
    bucket.proxy.fail_next(Fault::SlowDown, 6, is_put);
    checkpoint_ok(&host);
    let slowed = bucket.proxy.log();
    let slowed = slowed
        .iter()
        .filter(|request| request.fault == Some(Fault::SlowDown));
    assert_eq!(slowed.count(), 9);
    assert_eq!(bucket.generations(), [1]);
}

/// A host that has its credentials from there alone.
fn host_by(bucket: &Bucket, handout: &Handout, name: &str) -> Host {
    bucket
        .host_with(name, PATIENT, COUNTER)
        .without_env("AWS_ACCESS_KEY_ID")
        .without_env("AWS_SECRET_ACCESS_KEY")
        .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", handout.url())
        .start()
}

/// The store takes this key no longer.
fn end_of(bucket: &Bucket, key_id: String) {
    bucket.proxy.fail(Fault::Expired, move |request| {
        request.signed_by.as_ref() == Some(&key_id)
    });
}

#[test]
fn credentials_that_end_before_their_time_are_asked_for_anew() {
    let (bucket, handout) = (Bucket::new(), Handout::start());
    let host = host_by(&bucket, &handout, "first");
    wait_for_output(&host, "line 10");
    checkpoint_ok(&host);
    let first = handout.renew();
    let log = bucket.proxy.log();
    assert!(
        log.iter()
            .all(|request| request.signed_by.as_ref() == Some(&first))
    );
    end_of(&bucket, first);
    checkpoint_ok(&host);
    assert_eq!(bucket.generations(), [2, 1]);
    let log = bucket.proxy.log();
    let last = log.last().expect("there were some");
    assert_eq!(last.signed_by, Some(handout.key_id()));
    // And at an eviction, when nothing else asks the store first.
    let second = handout.renew();
    end_of(&bucket, second);
    evict(&host);
    assert_eq!(bucket.generations(), [3, 2, 1]);
    let output = host.stdout().text();
    let next = host_by(&bucket, &handout, "next");
    wait_for_log(&next, "the job is resumed");
    assert_runs_on(&next);
    next.destroy();
    assert_counts(&(output + &whole_lines(&next)), None);
}

#[test]
fn credentials_that_nobody_renews_are_refused_in_the_end() {
    let bucket = Bucket::new();
    let host = bucket.host_with("host", PATIENT, COUNTER).start();
    wait_for_output(&host, "line 10");
    checkpoint_ok(&host);
    bucket.proxy.fail(Fault::Expired, |_| true);
    let ran = checkpoint_within(&host, "60s");
    assert_ne!(ran.code, 0);
    assert!(
        ran.stderr.contains("the credentials have expired"),
        "{}",
        ran.stderr
    );
    assert_runs_on(&host);
    // Given back, as a clock is set right.
    bucket.proxy.pass();
    checkpoint_ok(&host);
    evict(&host);
}

#[test]
fn credentials_are_renewed_before_they_end() {
    let (bucket, handout) = (Bucket::new(), Handout::start());
    // A little more than what is kept back.
    handout.set_life(Duration::from_secs(12));
    let host = host_by(&bucket, &handout, "host");
    wait_for_output(&host, "line 10");
    let begun = handout.times_asked();
    while handout.times_asked() < begun + 2 {
        checkpoint_ok(&host);
    }
    let keys: HashSet<_> = bucket
        .proxy
        .log()
        .into_iter()
        .filter_map(|one| one.signed_by)
        .collect();
    assert!(keys.len() >= 2, "{keys:?}");
    evict(&host);
}

#[test]
fn a_storm_of_refusals_is_met_with_fewer_uploads_at_once_until_it_is_over() {
    let bucket = Bucket::new();
    // Memory for 16 parts on their way, and as many to store, none of which is quick.
    let options = [
        "--memory-budget",
        "168MiB",
        "--compression",
        "low",
        "--seed",
        "off",
    ];
    let app = ["python3", "/apps/memory.py", "128"];
    let host = bucket.host_with("host", &options, &app).start();
    wait_for_output(&host, "ready");
    bucket.proxy.limit_rate(32 << 20);
    // More than it takes to halve what there may be until one is left: 16 under way, 16 again, 8, 4 and 2.
    let storm = 80;
    let is_part = |request: &Request| request.is("PUT", "/data/");
    bucket.proxy.fail_next(Fault::SlowDown, storm, is_part);
    let ran = checkpoint_within(&host, "90s");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(bucket.generations(), [1]);
    let parts = bucket.proxy.side_by_side(is_part);
    let refused = parts.iter().filter(|(request, _)| request.fault.is_some());
    assert_eq!(refused.count(), storm);
    let beside: Vec<usize> = parts.iter().map(|(_, beside)| *beside).collect();
    let (during, after) = beside.split_at(storm);
    assert_eq!(during[storm - 16..], [0; 16], "{beside:?}");
    assert_eq!(after[0], 0, "{beside:?}");
    assert!(after.iter().any(|beside| *beside > 0), "{beside:?}");
}

#[test]
fn a_reply_that_is_lost_is_not_a_failure() {
    let bucket = Bucket::new();
    let mut output = String::new();
    for object in ["/data/", "/index", "/manifests/", "/HEAD"] {
        let host = bucket.host_with("host", PATIENT, COUNTER).start();
        assert_runs_on(&host);
        let before = bucket.proxy.log().len();
        bucket.proxy.fail_next(Fault::LoseReply, 1, move |request| {
            request.is("PUT", object)
        });
        evict(&host);
        output += &host.stdout().text();
        let log = bucket.proxy.log();
        let lost: Vec<&Request> = log[before..]
            .iter()
            .filter(|request| request.fault.is_some())
            .collect();
        assert!(
            matches!(lost[..], [one] if one.status == Some(200)),
            "{object}: {lost:?}"
        );
    }
    // And the first reply to everything, from the claim to the goodbye.
    let mut seen = HashSet::new();
    bucket.proxy.fail(Fault::LoseReply, move |request| {
        seen.insert((request.method.clone(), request.path.clone()))
    });
    let host = bucket.host_with("all", PATIENT, COUNTER).start();
    wait_for_log(&host, "the job is resumed");
    assert_runs_on(&host);
    evict(&host);
    output += &host.stdout().text();
    bucket.proxy.pass();
    let last = bucket.host("last", COUNTER).start();
    wait_for_log(&last, "the job is resumed");
    assert_runs_on(&last);
    last.destroy();
    assert_counts(&(output + &whole_lines(&last)), None);
}

/// The next write of the head takes place, but its reply is lost, and nothing is heard from the head afterwards.
fn lose_the_commit(bucket: &Bucket) {
    let proxy = &bucket.proxy;
    proxy.fail_next(Fault::LoseReply, 1, |request| request.is("PUT", "/HEAD"));
    proxy.fail(Fault::Reset, |request| request.path.contains("/HEAD"));
}

#[test]
fn a_commit_whose_fate_is_unknown_does_not_fence_its_own_worker() {
    let bucket = Bucket::new();
    let options = ["--term-grace", "10s", "--keep-generations", "3"];
    let first = bucket.host_with("first", &options, COUNTER).start();
    wait_for_output(&first, "line 10");
    lose_the_commit(&bucket);
    let ran = checkpoint_within(&first, "3s");
    assert_eq!(ran.code, 180, "{ran:?}");
    for wanted in ["not known whether the commit took place", "the job runs on"] {
        assert!(ran.stderr.contains(wanted), "{}", ran.stderr);
    }
    assert_runs_on(&first);
    assert_eq!(bucket.generations(), [1], "the server did it");
    bucket.proxy.pass();
    checkpoint_ok(&first);
    assert_eq!(bucket.generations(), [2, 1]);

    // The same for one that should have stopped the job.
    lose_the_commit(&bucket);
    let mark = first.stderr().mark();
    first.signal(libc::SIGTERM);
    let failed = wait_for_log_after(&first, mark, "checkpoint failed");
    assert!(failed.contains("not known whether"), "{failed}");
    assert_runs_on(&first);
    assert_eq!(bucket.generations(), [3, 2, 1], "the server did it");
    bucket.proxy.pass();
    evict_in_the_end(&first);
    assert_eq!(bucket.generations(), [4, 3, 2]);
    let second = bucket.host("second", COUNTER).start();
    let resumed = wait_for_log(&second, "the job is resumed");
    assert!(resumed.contains("\"generation\":4"), "{resumed}");
    assert_runs_on(&second);
    second.destroy();
    assert_counts(&(first.stdout().text() + &whole_lines(&second)), None);
}

#[test]
fn a_job_that_ends_well_after_an_unknown_commit_begins_anew() {
    let bucket = Bucket::new();
    let app = ["bash", "-c", "echo begun; read go; echo ending"];
    let first = bucket
        .host("first", &app)
        .stdin(harness::Stdio::Pipe)
        .start();
    wait_for_output(&first, "begun");
    lose_the_commit(&bucket);
    assert_eq!(checkpoint_within(&first, "3s").code, 180);
    bucket.proxy.pass();
    first.write("go\n");
    assert_eq!(first.wait_exit(LIMIT), Exit::Code(0));
    let second = bucket.host("second", &app).start();
    wait_for_log(&second, "it begins anew");
}

#[test]
fn a_way_too_narrow_is_given_up_within_the_grace() {
    let bucket = Bucket::new();
    // Every page changes all the time, so that nothing of it is in the store already.
    let app = ["python3", "/apps/memory.py", "64", "--fresh"];
    let options = ["--term-grace", "6s"];
    let host = bucket.host_with("host", &options, &app).start();
    let digest = host
        .stdout()
        .wait_for_line("a digest", LIMIT, |line| line.starts_with("digest"));
    wait_for_output(&host, "ready");
    let ran = checkpoint_within(&host, "60s");
    assert_eq!(ran.code, 0, "{ran:?}");
    bucket.proxy.limit_rate(2 << 20);
    let mark = host.stderr().mark();
    host.signal(libc::SIGTERM);
    let told = wait_for_log_after(&host, mark, "SIGTERM");
    let failed = wait_for_log_after(&host, mark, "checkpoint failed");
    let took = took(&told, &failed);
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert!(failed.contains("not done in time"), "{failed}");
    assert!(failed.contains("more time"), "{failed}");
    assert_runs_on(&host);
    // What is left of the grace may be enough for another attempt, beside which there is none.
    let mut ran = checkpoint_within(&host, "3s");
    wait_until(LIMIT, "the end of other attempts", || {
        let is_over = ran.code != 182;
        if !is_over {
            ran = checkpoint_within(&host, "3s");
        }
        is_over
    });
    assert_eq!(ran.code, 183, "{ran:?}");
    assert!(ran.stderr.contains("the job runs on"), "{}", ran.stderr);
    assert_runs_on(&host);
    host.destroy();
    bucket.proxy.pass();
    assert_eq!(bucket.generations(), [1]);
    let next = bucket.host("next", &app).start();
    let app = job::resumed(&next);
    next.signal_process(app.pid, libc::SIGUSR1);
    let found = next
        .stdout()
        .wait_for_line("a digest", LIMIT, |line| line.starts_with("digest"));
    assert_eq!(found, digest);
}

#[test]
fn a_notice_that_is_withdrawn_while_the_final_checkpoint_is_stored_lets_the_job_go_on() {
    let (bucket, lab) = (Bucket::new(), Lab::start());
    let options = [
        "--sources",
        "ec2-metadata",
        "--ec2-metadata-endpoint",
        &lab.url,
        "--metadata-poll",
        "200ms",
        "--term-grace",
        "60s",
    ];
    let host = bucket.host_with("host", &options, COUNTER).start();
    wait_for_output(&host, "line 10");
    wait_for_log(&host, "a source of notices works");
    let app = host.wait_for_process("python3 /apps/counter.py", LIMIT);
    bucket.proxy.limit_rate(16 << 10);
    lab.notice(serde_json::json!({ "kind": "spot", "in": 29 }));
    let begun = wait_for_log(&host, "checkpoint begins");
    assert!(begun.contains("\"afterwards\":\"Stop\""), "{begun}");
    wait_until(LIMIT, "a frozen app whose memory is stored", || {
        let state = host.status_field(app.pid, "State").unwrap_or_default();
        let stored = |request: &Request| request.is("PUT", "/data/");
        state.starts_with('t') && bucket.proxy.log().iter().any(stored)
    });
    lab.clear("spot");
    wait_for_log(&host, "the job is left running");
    let mark = host.stdout().mark();
    wait_until(LIMIT, "more output", || host.stdout().mark() > mark + 50);
    assert!(!host.stderr().text().contains("checkpoint is durable"));
    bucket.proxy.pass();
    let durable = wait_for_log(&host, "checkpoint is durable");
    assert!(durable.contains("\"afterwards\":\"Continue\""), "{durable}");
    assert_runs_on(&host);
    // What was stored counts, and what comes next is built upon it.
    evict(&host);
    assert_eq!(bucket.generations(), [2, 1]);
    let next = bucket.host("next", COUNTER).start();
    job::resumed(&next);
    assert_runs_on(&next);
    next.destroy();
    let all = host.stdout().text() + &next.stdout().lines().join("\n");
    assert_counts(&all, None);
}

#[test]
fn of_two_workers_that_start_at_once_one_can_commit() {
    let bucket = Bucket::new();
    for round in 0..10 {
        // Half of the races are for a job that was never run, half for one with a snapshot.
        let job = format!("job-{}", round / 2);
        let options = ["--job", &job, "--term-grace", "60s"];
        let hosts = std::thread::scope(|scope| {
            let start = |name| bucket.host_with(name, &options, COUNTER).start();
            let other = scope.spawn(move || start("left"));
            [start("right"), other.join().expect("it starts")]
        });
        for host in &hosts {
            wait_until(LIMIT, "it runs or has given up", || {
                !host.is_running() || host.stdout().mark() > 0
            });
        }
        let could_commit = hosts.each_ref().map(|host| {
            // It may end before or while it is asked.
            let asked = host.is_running().then(|| checkpoint_within(host, "30s"));
            asked.is_some_and(|ran| ran.code == 0)
        });
        let [left, right] = could_commit;
        assert!(left != right, "round {round}: {could_commit:?}");
        let (winner, loser) = if left { (0, 1) } else { (1, 0) };
        assert_eq!(hosts[loser].wait_exit(LIMIT), Exit::Code(172));
        assert!(hosts[winner].is_running());
        assert_eq!(checkpoint_within(&hosts[winner], "30s").code, 0);
    }
}

#[test]
fn a_notice_that_is_withdrawn_gives_the_checkpoint_its_time_back() {
    let bucket = Bucket::new();
    let app = ["python3", "/apps/memory.py", "48"];
    let options = ["--checkpoint-timeout", "90s"];
    let host = bucket.host_with("host", &options, &app).start();
    wait_for_output(&host, "ready");
    // It takes ten seconds and more to store the job.
    bucket.proxy.limit_rate(5_000_000);
    let told = |withdrawn: bool| {
        let line = serde_json::json!({
            "v": 1, "request": "notice", "fate": "terminate", "in_ms": 8_000, "identity": "a", "withdrawn": withdrawn,
        });
        job::notice(&host, &line);
    };
    told(false);
    wait_until(LIMIT, "the job's memory is stored", || {
        let stored = |request: &Request| request.is("PUT", "/data/");
        bucket.proxy.log().iter().any(stored)
    });
    told(true);
    host.stderr().wait_for_line("durable", LIMIT * 2, |line| {
        line.contains("checkpoint is durable")
    });
    assert!(!host.stderr().text().contains("checkpoint failed"));
    let mark = host.stdout().mark();
    host.stdout()
        .wait_for_line_after(mark, "more ticks", LIMIT, |line| line.starts_with("tick "));
}

#[test]
fn over_a_network_that_became_slow_the_final_checkpoint_is_begun_in_time() {
    let bucket = Bucket::new();
    // 2 MiB a second.
    let app = ["python3", "/apps/memory.py", "96", "--rewrite", "512"];
    let host = |name| bucket.host_with(name, &["--seed", "off"], &app).start();
    let first = host("first");
    wait_for_output(&first, "ready");
    checkpoint_ok(&first);
    // From now on what changes in two seconds takes one to be stored.
    bucket.proxy.limit_rate(4_000_000);
    let line = serde_json::json!({
        "v": 1, "request": "notice", "fate": "terminate", "in_ms": 50_000, "identity": "a",
    });
    job::notice(&first, &line);
    assert_eq!(
        first.wait_exit(LIMIT * 2),
        Exit::Code(75),
        "{}",
        first.stderr().text()
    );
    let log = first.stderr().text();
    // First it was made safe, and then it worked on.
    let how = |line: &&str| line.contains("checkpoint is durable");
    assert_eq!(log.lines().filter(how).count(), 3, "{log}");
    assert!(
        !log.contains("in danger") && !log.contains("checkpoint failed"),
        "{log}"
    );
    bucket.proxy.pass();
    let second = host("second");
    job::resumed(&second);
}
