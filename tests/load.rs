//! Many small jobs are evicted at the same moment against one store: whether all are durable in time or told as missed, what
//! each asks of the store, and how those fare that are told to slow down. `make load` runs it; docs/scale.md keeps what it said
//! and reckons from it.
//!
//! Real hosts, real CRIU, an S3 server of our own, and a proxy that counts. LOAD_WORKERS (200), LOAD_SECONDS (120), and
//! LOAD_PUTS, above which in a second the store answers 503 SlowDown to all of them together (no limit), as S3 does for a prefix.

#[path = "bench/s3.rs"]
#[allow(dead_code)] // shared with the benchmarks
mod bench_s3;
mod harness;
mod job;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use bench_s3::Server;
use harness::{Exit, Fault, Host, Proxy, Request, wait_until};
use serde_json::Value;

/// For whatever takes long on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// So many hosts are started side by side.
const SIDE_BY_SIDE: usize = 6;

/// So many of the jobs are resumed in the end.
const RESUMED: usize = 10;

fn setting(name: &str, default: u32) -> u32 {
    std::env::var(name).map_or(default, |text| text.parse().expect("it is a number"))
}

fn name_of(number: usize) -> String {
    format!("job-{number:05}")
}

fn start(number: usize, proxy: &Proxy, seconds: u32) -> Host {
    let (job, grace) = (name_of(number), format!("{seconds}s"));
    let options = [
        "--store",
        "s3://bucket/jobs",
        "--job",
        &job,
        "--s3-endpoint",
        proxy.url(),
        "--s3-region",
        "us-east-1",
        "--term-grace",
        &grace,
        "--sources",
        "none",
        "--on-other-owner",
        "take-over",
    ];
    let app = [
        "bash",
        "-c",
        "echo ready; while :; do sleep 1000 & wait; done",
    ];
    Host::builder("worker")
        .share_net()
        .env("AWS_ACCESS_KEY_ID", "nobody")
        .env("AWS_SECRET_ACCESS_KEY", "nothing")
        .reprieve(options, app)
        .start()
}

/// All of them, a few at a time.
fn start_all(numbers: std::ops::Range<usize>, proxy: &Proxy, seconds: u32) -> Vec<Host> {
    let left = Mutex::new(numbers);
    let hosts = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                loop {
                    let next = left.lock().expect("nobody panics with it").next();
                    let Some(number) = next else { break };
                    let host = start(number, proxy, seconds);
                    host.stdout()
                        .wait_for_line("ready", PATIENCE, |line| line == "ready");
                    let mut hosts = hosts.lock().expect("nobody panics with it");
                    hosts.insert(number, host);
                }
            });
        }
    });
    let hosts = hosts.into_inner().expect("nobody panics with it");
    hosts.into_values().collect()
}

/// Takes at most so many uploads in a second, and as many at once after a pause.
fn limit(proxy: &Proxy, per_second: u32) {
    let rate = f64::from(per_second);
    let (mut tokens, mut looked) = (rate, Instant::now());
    proxy.fail(Fault::SlowDown, move |request| {
        if request.method != "PUT" {
            return false;
        }
        tokens = (tokens + rate * looked.elapsed().as_secs_f64()).min(rate);
        looked = Instant::now();
        let refused = tokens < 1.0;
        if !refused {
            tokens -= 1.0;
        }
        refused
    });
}

/// What a request is about.
fn kind(request: &Request) -> &'static str {
    let kinds = [
        ("list-type=2", "listing"),
        ("/index", "index"),
        ("/data/", "part"),
        ("/manifests/", "manifest"),
        ("/HEAD", "HEAD"),
        ("/~workers/", "~workers"),
        ("/reports/", "report"),
        ("/probe/", "probe"),
        ("/clock/", "clock"),
    ];
    let found = kinds.iter().find(|(part, _)| request.path.contains(part));
    found.map_or("other", |(_, kind)| kind)
}

/// The job that it is about, if it is about one.
fn job_of(request: &Request) -> Option<String> {
    let (_, rest) = request.path.split_once("/jobs/")?;
    let job = rest.split('/').next()?;
    job.starts_with("job-").then(|| job.to_owned())
}

/// Requests of one phase, for each worker.
struct Phase {
    name: &'static str,
    requests: Vec<Request>,
    workers: usize,
}

#[allow(clippy::cast_precision_loss)] // far below 2^52
fn each(count: usize, workers: usize) -> f64 {
    count as f64 / workers as f64
}

fn print_requests(phases: &[Phase]) {
    let mut kinds = BTreeSet::new();
    for request in phases.iter().flat_map(|phase| &phase.requests) {
        kinds.insert((request.method.clone(), kind(request)));
    }
    let heads: String = phases
        .iter()
        .map(|phase| format!(" {} |", phase.name))
        .collect();
    println!("\n| Requests for each worker |{heads}");
    println!("|---|{}", "---:|".repeat(phases.len()));
    let row = |name: String, of: &dyn Fn(&Phase) -> f64| {
        let cells: String = phases
            .iter()
            .map(|phase| format!(" {:.2} |", of(phase)))
            .collect();
        println!("| {name} |{cells}");
    };
    // Those that were refused are told apart: without a limit there are none.
    let answered = |phase: &Phase, which: &dyn Fn(&Request) -> bool| {
        let found = phase
            .requests
            .iter()
            .filter(|one| one.fault.is_none() && which(one));
        each(found.count(), phase.workers)
    };
    for (method, about) in &kinds {
        row(format!("{method} {about}"), &|phase| {
            answered(phase, &|one| one.method == *method && kind(one) == *about)
        });
    }
    row("all PUT and LIST".to_owned(), &|phase| {
        answered(phase, &|one| one.method == "PUT" || kind(one) == "listing")
    });
    row("all other GET and HEAD".to_owned(), &|phase| {
        answered(phase, &|one| {
            ["GET", "HEAD"].contains(&one.method.as_str()) && kind(one) != "listing"
        })
    });
    row("uploaded, KiB".to_owned(), &|phase| {
        let uploaded = phase.requests.iter().filter(|one| one.fault.is_none());
        each(uploaded.map(|one| one.bytes).sum::<usize>(), phase.workers) / 1024.0
    });
    row("503 SlowDown".to_owned(), &|phase| {
        let refused = phase.requests.iter().filter(|one| one.fault.is_some());
        each(refused.count(), phase.workers)
    });
}

/// The smallest, the middle and the largest.
fn spread<T: Copy + PartialOrd>(mut values: Vec<T>) -> Option<(T, T, T)> {
    values.sort_by(|one, other| one.partial_cmp(other).expect("they can be compared"));
    Some((*values.first()?, values[values.len() / 2], *values.last()?))
}

/// How the eviction went on this host: how many seconds after it was told, or what stood in the way of the last attempt.
fn went(host: &Host, told_at: SystemTime) -> Result<f64, String> {
    let line = |wanted: &str| -> Option<Value> {
        let log = host.stderr().lines();
        let line = log.iter().rev().find(|line| line.contains(wanted))?;
        serde_json::from_str(line).ok()
    };
    let missed = || line("no checkpoint was taken").is_some();
    wait_until(
        PATIENCE,
        "a snapshot or the word that there is none",
        || !host.is_running() || missed(),
    );
    if missed() {
        let last = line("checkpoint failed").map(|line| line["reason"].to_string());
        return Err(last.unwrap_or_else(|| "it was not tried".to_owned()));
    }
    assert_eq!(host.wait_exit(PATIENCE), Exit::Code(75));
    let line = line("checkpoint is durable").expect("it says so");
    let time = line["time"].as_str().expect("each line has its time");
    let time = humantime::parse_rfc3339(time).expect("it is a time");
    let after = time.duration_since(told_at).unwrap_or_default();
    Ok(after.as_secs_f64())
}

fn print_pace(phase: &Phase) {
    let mut seconds: BTreeMap<u64, usize> = BTreeMap::new();
    let begun = phase.requests.first().expect("there are some").at;
    for request in &phase.requests {
        let second = request.at.saturating_duration_since(begun).as_secs();
        *seconds.entry(second).or_default() += usize::from(request.method == "PUT");
    }
    let most = seconds.values().max().expect("there are some");
    println!("PUTs in the second with most of them, refused ones included: {most}");
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    for request in &phase.requests {
        if let Some(job) = job_of(request) {
            *refused.entry(job).or_default() += usize::from(request.fault.is_some());
        }
    }
    let (least, middle, most) = spread(refused.into_values().collect()).expect("there are some");
    println!("refusals of one job: {least} to {most}, median {middle}");
}

fn main() {
    let workers = setting("LOAD_WORKERS", 200) as usize;
    let seconds = setting("LOAD_SECONDS", 120);
    let server = Server::start();
    let proxy = Proxy::start(&server.url);
    let begun = Instant::now();
    let hosts = start_all(0..workers, &proxy, seconds);
    println!(
        "{workers} workers run after {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    let mut logged = 0;
    let mut phase = |name, workers| {
        let log = proxy.log();
        let requests = log[logged..].to_vec();
        logged = log.len();
        Phase {
            name,
            requests,
            workers,
        }
    };
    let started = phase("start", workers);
    if let Some(per_second) = std::env::var_os("LOAD_PUTS").map(|_| setting("LOAD_PUTS", 0)) {
        limit(&proxy, per_second);
    }
    let told_at = SystemTime::now();
    for host in &hosts {
        host.signal(libc::SIGTERM);
    }
    let went: Vec<Result<f64, String>> = hosts.iter().map(|host| went(host, told_at)).collect();
    let evicted = phase("eviction", workers);
    hosts.iter().for_each(Host::destroy);
    proxy.pass();
    let durable: Vec<f64> = went.iter().filter_map(|one| one.clone().ok()).collect();
    let missed: BTreeSet<&String> = went.iter().filter_map(|one| one.as_ref().err()).collect();
    println!(
        "{} of {workers} durable within {seconds} s, {} told as missed {missed:?}",
        durable.len(),
        workers - durable.len()
    );
    if let Some((first, middle, last)) = spread(durable) {
        println!("durable after {first:.1} to {last:.1} s, median {middle:.1} s");
    }
    print_pace(&evicted);
    // Those that were stored go on.
    let stored = went.iter().enumerate().filter(|(_, one)| one.is_ok());
    let stored: Vec<usize> = stored.map(|(number, _)| number).take(RESUMED).collect();
    for number in &stored {
        let host = start(*number, &proxy, seconds);
        host.stderr().wait_for_line("resumed", PATIENCE, |line| {
            line.contains("the job is resumed")
        });
        host.destroy();
    }
    let resumed = phase("resume", stored.len().max(1));
    print_requests(&[started, evicted, resumed]);
}
