//! The benchmarks: what a checkpoint, the next one and a resume cost, beside what plain CRIU and a pipeline of `criu`,
//! `tar`, `zstd` and an upload cost for the same job on the same machine in the same minutes. `make bench` runs them;
//! docs/benchmarks.md keeps what they said and what was aimed at.
//!
//! Every figure is the median of all rounds, and peers take turns within each round, so that whatever else the machine
//! does at the time falls on all of them. Ratios can be compared between machines, times cannot.
//!
//! BENCH_ROUNDS (5), BENCH_MIB (2048), BENCH_JOBS (`half,dense,many,redis`) and BENCH_OPTIONS (more options for
//! `reprieve run`; a key unless it is set) change what is measured; BENCH_BINARY measures another binary, and BENCH_SEEDING=off leaves out what only
//! seeding can do.

#[path = "bench/reader.rs"]
mod bench_reader;
#[path = "bench/s3.rs"]
#[allow(dead_code)] // shared with the tests of faults
mod bench_s3;
mod harness;
mod job;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bench_reader::Reader;
use bench_s3::Server;
use harness::{Host, Rootfs, wait_until};

/// For what moves gigabytes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// How often memory in use is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// The figures of all rounds, by job and name.
#[derive(Default)]
struct Figures(BTreeMap<(String, String), Vec<f64>>);

impl Figures {
    fn add(&mut self, job: &str, name: impl Into<String>, value: f64) {
        let name = name.into();
        eprintln!("    {job}: {name} {value:.2}");
        self.0
            .entry((job.to_owned(), name))
            .or_default()
            .push(value);
    }

    fn median(&self, job: &str, name: &str) -> Option<f64> {
        let mut values = self.0.get(&(job.to_owned(), name.to_owned()))?.clone();
        values.sort_by(f64::total_cmp);
        Some(values[values.len() / 2])
    }
}

/// A job to measure.
struct Job {
    name: &'static str,
    app: Vec<String>,
    /// The line that says that its memory is filled.
    ready: &'static str,
    /// Whether SIGUSR1 changes a twentieth of it.
    changes: bool,
}

fn jobs() -> Vec<Job> {
    let mib = setting("BENCH_MIB", "2048");
    let eighth = (mib.parse::<u32>().expect("BENCH_MIB is a number") / 8).to_string();
    let bench = |kind: &str, size: &str| -> Vec<String> {
        ["python3", "/apps/bench.py", kind, size]
            .map(Into::into)
            .into()
    };
    let redis = "redis-server --port 0 --unixsocket /run/redis.sock --save '' --logfile /dev/null & \
                 until redis-cli -s /run/redis.sock ping; do sleep 0.1; done; \
                 redis-benchmark -s /run/redis.sock -q -P 16 -t set -n 1000000 -r 400000 -d 300 > /dev/null; \
                 python3 /apps/bench.py writes 2000 & \
                 echo ready; wait";
    let all = [
        ("half", bench("half", &mib), "ready", true),
        ("dense", bench("dense", &eighth), "ready", false),
        ("many", bench("many", "100"), "ready", false),
        (
            "redis",
            ["bash", "-c", redis].map(Into::into).into(),
            "ready",
            false,
        ),
    ];
    let wanted = setting("BENCH_JOBS", "half,dense,many,redis");
    all.into_iter()
        .filter(|(name, ..)| wanted.split(',').any(|wanted| wanted == *name))
        .map(|(name, app, ready, changes)| Job {
            name,
            app,
            ready,
            changes,
        })
        .collect()
}

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn main() {
    let rounds: u32 = setting("BENCH_ROUNDS", "5")
        .parse()
        .expect("BENCH_ROUNDS is a number");
    let server = Server::start();
    let mut figures = Figures::default();
    for job in jobs() {
        for round in 1..=rounds {
            eprintln!("{} {round}/{rounds}, load {}", job.name, load());
            peers(&job, &server, &mut figures);
            for store in [Place::Directory, Place::S3] {
                ours(&job, store, &server, &mut figures);
            }
        }
        // What is known so far, in case the rest is cut short.
        print(&job, &figures);
    }
    idle(&mut figures);
    println!("load at the end: {}", load());
}

fn load() -> String {
    std::fs::read_to_string("/proc/loadavg")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

// ---- The peers

/// Memory that is no disk, for images and stores.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").expect("/dev/shm is there")
}

fn shell(host: &Host, script: &str) -> String {
    let ran = host.spawn(["bash", "-c", script]).wait(PATIENCE);
    assert_eq!(ran.code, 0, "{script}: {}{}", ran.stdout, ran.stderr);
    ran.stdout
}

/// Runs a command inside and returns how long it took by the container's own clock.
fn timed(host: &Host, command: &str) -> f64 {
    let script =
        format!("s=$(date +%s%N); {command} >&2 || exit 1; e=$(date +%s%N); echo $((e - s))");
    let nanoseconds: f64 = shell(host, &script).trim().parse().expect("a number");
    nanoseconds / 1e9
}

/// Plain CRIU to tmpfs and back, and CRIU with the usual tools behind it.
fn peers(job: &Job, server: &Server, figures: &mut Figures) {
    let images = in_memory();
    let idle = ["bash", "-c", "for ((;;)); do sleep 0.1; done"];
    let host = Host::builder("peer")
        .rootfs(Rootfs::Bench)
        .share_net()
        .bind(images.path(), "/images")
        .args(idle)
        .start();
    let app = job
        .app
        .iter()
        .map(|word| format!("'{}'", word.replace('\'', r"'\''")));
    let app = app.collect::<Vec<_>>().join(" ");
    // Above the numbers of whatever comes and goes meanwhile.
    shell(
        &host,
        &format!(
            "for ((i = 0; i < 300; i++)); do /bin/true; done; setsid {app} < /dev/null >> /tmp/out 2>&1 & echo $! > /tmp/pid"
        ),
    );
    let out = host.path("/tmp/out");
    wait_until(PATIENCE, "the job is ready", || {
        std::fs::read_to_string(&out).is_ok_and(|text| text.contains(job.ready))
    });
    let criu = "criu dump -t $(cat /tmp/pid) -D /images -o dump.log --unprivileged --tcp-close --file-locks";
    let pipeline = format!(
        "{criu} --leave-running && tar -C /images -c . | zstd -1 -q | curl -sSf -T - {}/bucket/peer; rm -rf /images/*",
        server.url
    );
    figures.add(job.name, "tar+zstd", timed(&host, &pipeline));
    server.clear();
    shell(&host, "rm -rf /images/*");
    // The same socket as an inherited pair: CRIU sends its pages to whoever is at the other end.
    let reader = Reader::listen(&images.path().join("reader"));
    let connected = "import os, socket; s = socket.socket(socket.AF_UNIX); s.connect('/images/reader'); \
                     os.set_inheritable(s.fileno(), True); \
                     os.execvp('sh', ['sh', '-c', os.environ['DUMP'] + ' --ps-socket %d' % s.fileno()])";
    timed(
        &host,
        &format!("DUMP=\"{criu} --leave-running --page-server\" python3 -c \"{connected}\""),
    );
    assert!(reader.pages() > 0, "CRIU sent nothing");
    let stats = std::fs::read(images.path().join("stats-dump")).expect("CRIU writes it");
    figures.add(
        job.name,
        "criu, reader that hashes: frozen",
        bench_reader::frozen(&stats),
    );
    shell(&host, "rm -rf /images/*");
    figures.add(job.name, "criu dump", timed(&host, criu));
    let restore =
        "criu restore -D /images -o restore.log --unprivileged --tcp-close --file-locks -d";
    figures.add(job.name, "criu restore", timed(&host, restore));
}

// ---- Reprieve

#[derive(Clone, Copy)]
enum Place {
    Directory,
    S3,
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::S3 => "s3",
        }
    }
}

fn start(
    job: &Job,
    place: Place,
    server: &Server,
    directory: &std::path::Path,
    more: &[&str],
) -> Host {
    let store = match place {
        Place::Directory => "file:///store".to_owned(),
        Place::S3 => "s3://bucket/prefix".to_owned(),
    };
    let options = setting("BENCH_OPTIONS", "--key-file /store-key/key");
    let mut all = vec![
        "--store",
        &store,
        "--job",
        "job",
        "--term-grace",
        "5m",
        "--checkpoint-timeout",
        "5m",
    ];
    all.extend(["--log-format", "json", "--on-other-owner", "take-over"]);
    all.extend(options.split_whitespace());
    all.extend(more);
    if matches!(place, Place::S3) {
        all.extend(["--s3-endpoint", &server.url, "--s3-region", "us-east-1"]);
    }
    let mut host = Host::builder("ours")
        .rootfs(Rootfs::Bench)
        .share_net()
        .env("AWS_ACCESS_KEY_ID", "benchmark")
        .env("AWS_SECRET_ACCESS_KEY", "benchmark")
        .bind(directory, "/store")
        .bind_read_only(key_directory(), "/store-key");
    if let Ok(binary) = std::env::var("BENCH_BINARY") {
        host = host.bind_read_only(PathBuf::from(binary), "/usr/local/bin/reprieve");
    }
    host.reprieve(all, job.app.iter().map(String::as_str))
        .start()
}

/// With a key in it, made once.
fn key_directory() -> &'static std::path::Path {
    static DIRECTORY: std::sync::LazyLock<tempfile::TempDir> = std::sync::LazyLock::new(|| {
        let directory = in_memory();
        std::fs::write(directory.path().join("key"), "b".repeat(64)).expect("there is room");
        directory
    });
    DIRECTORY.path()
}

/// Nothing for a binary that cannot seed.
fn seed_off() -> &'static [&'static str] {
    match setting("BENCH_SEEDING", "on").as_str() {
        "on" => &["--seed", "off"],
        _ => &[],
    }
}

/// What the log says of the newest checkpoint or resume.
fn told(host: &Host, message: &str, figure: &str) -> f64 {
    let lines = host.stderr().lines();
    let line = lines
        .iter()
        .rfind(|line| line.contains(message))
        .expect("it was logged");
    let line: serde_json::Value = serde_json::from_str(line).expect("the log is JSON");
    line[figure]
        .as_f64()
        .unwrap_or_else(|| panic!("{figure} in {line}"))
}

const DURABLE: &str = "checkpoint is durable";

fn checkpoint(host: &Host) {
    let command = [
        "reprieve",
        "checkpoint",
        "--leave-running",
        "--timeout",
        "5m",
    ];
    let ran = host.spawn(command).wait(PATIENCE);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
}

fn record(host: &Host, job: &Job, what: &str, figures: &mut Figures) {
    figures.add(
        job.name,
        format!("{what} wall"),
        told(host, DURABLE, "wall_ms") / 1e3,
    );
    figures.add(
        job.name,
        format!("{what} frozen"),
        told(host, DURABLE, "frozen_ms") / 1e3,
    );
    figures.add(
        job.name,
        format!("{what} stored MiB"),
        told(host, DURABLE, "stored_bytes") / 1048576.0,
    );
    figures.add(
        job.name,
        format!("{what} memory MiB"),
        told(host, DURABLE, "memory_bytes") / 1048576.0,
    );
}

fn ours(job: &Job, place: Place, server: &Server, figures: &mut Figures) {
    let directory = in_memory();
    server.clear();
    let host = start(job, place, server, directory.path(), seed_off());
    host.stdout()
        .wait_for_line("the job is ready", PATIENCE, |line| line == job.ready);
    let name = place.name();
    let watch = Watch::start(&host);
    checkpoint(&host);
    record(&host, job, &format!("{name} first"), figures);
    // All that the app has is in the store: what is left is to read it, hash it and compare.
    checkpoint(&host);
    record(&host, job, &format!("{name} unchanged"), figures);
    if job.changes {
        change(&host);
        checkpoint(&host);
        record(&host, job, &format!("{name} changed"), figures);
    }
    figures.add(job.name, format!("{name} peak MiB"), watch.peak());
    host.destroy();
    let resumed = start(job, place, server, directory.path(), seed_off());
    let watch = Watch::start(&resumed);
    wait_for_log(&resumed, "the job is resumed");
    figures.add(
        job.name,
        format!("{name} restore"),
        told(&resumed, "the job is resumed", "restore_ms") / 1e3,
    );
    figures.add(job.name, format!("{name} restore peak MiB"), watch.peak());
    resumed.destroy();
    if job.changes && !seed_off().is_empty() {
        seeded(job, place, server, figures);
    }
}

/// A first checkpoint of a job that was seeded before.
fn seeded(job: &Job, place: Place, server: &Server, figures: &mut Figures) {
    let directory = in_memory();
    server.clear();
    let options = [
        "--seed",
        "on",
        "--seed-interval",
        "1s",
        "--seed-bandwidth",
        "4GiB",
        "--seed-cpu",
        "100",
        // A look that finds nothing to store is told there.
        "--log",
        "info,reprieve::supervisor::seeding=debug",
    ];
    let host = start(job, place, server, directory.path(), &options);
    host.stdout()
        .wait_for_line("the job is ready", PATIENCE, |line| line == job.ready);
    let ready = host.stderr().mark();
    let mut passes = 0;
    host.stderr()
        .wait_for_line_after(ready, "all of it is seeded", PATIENCE, |line| {
            let left = left_unseeded(line);
            passes += usize::from(left.is_some());
            left.is_some_and(|left| left < 0.02)
        });
    figures.add(
        job.name,
        format!("{} passes of seeding after it was ready", place.name()),
        passes as f64,
    );
    checkpoint(&host);
    record(&host, job, &format!("{} seeded", place.name()), figures);
}

/// How much of the memory a look found that is not in the store, if the line is about one.
fn left_unseeded(line: &str) -> Option<f64> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let of = |names: [&str; 2]| names.iter().find_map(|name| line[name].as_f64());
    // Told in full if something was stored.
    let all = of(["memory_bytes", "looked_at"])?;
    Some(of(["unseeded_bytes", "unseeded"])? / all)
}

fn change(host: &Host) {
    let app = host
        .wait_for_process("python3 /apps/bench.py", PATIENCE)
        .pid;
    host.signal_process(app, libc::SIGUSR1);
    host.stdout()
        .wait_for_line("it has changed", PATIENCE, |line| line == "changed 1");
}

fn wait_for_log(host: &Host, wanted: &str) {
    host.stderr()
        .wait_for_line(wanted, PATIENCE, |line| line.contains(wanted));
}

/// The largest memory that all of our processes together had at one moment.
struct Watch {
    ended: std::sync::mpsc::Sender<()>,
    thread: std::thread::JoinHandle<f64>,
}

impl Watch {
    fn start(host: &Host) -> Self {
        let (ended, end) = std::sync::mpsc::channel();
        let supervisor = host.pid1_host_pid();
        let thread = std::thread::spawn(move || {
            let mut peak: f64 = 0.0;
            while end.recv_timeout(LOOK) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                peak = peak.max(in_use(supervisor));
            }
            peak
        });
        Self { ended, thread }
    }

    fn peak(self) -> f64 {
        drop(self.ended);
        self.thread.join().expect("it only reads")
    }
}

/// Numbers below this, in the host, are those of the supervisor, of CRIU and of its helpers, those from here on the job's
/// (ARCHITECTURE.md). CRIU makes each process of the job under the number that it is to have, so that the number tells what
/// a process will be while it still has CRIU's name.
const FIRST_OF_THE_JOB: i32 = 300;

/// MiB that are the supervisor's own and CRIU's: anonymous memory, which no other process shares.
fn in_use(supervisor: i32) -> f64 {
    let mut pids = vec![supervisor];
    let mut kib = 0.0;
    while let Some(pid) = pids.pop() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let inside = field("NSpid:").and_then(|line| line.split_whitespace().last()?.parse().ok());
        if inside.is_none_or(|inside: i32| inside >= FIRST_OF_THE_JOB) {
            continue;
        }
        let anonymous = field("RssAnon:").and_then(|line| line.trim().strip_suffix(" kB"));
        kib += anonymous.map_or(0.0, |kib| kib.parse().expect("a number"));
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let children = std::fs::read_to_string(task.path().join("children"));
            let children = children.unwrap_or_default();
            pids.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<i32>().ok()),
            );
        }
    }
    kib / 1024.0
}

/// A supervisor that has nothing to do.
fn idle(figures: &mut Figures) {
    let directory = in_memory();
    let server = Server::start();
    let job = Job {
        name: "idle",
        app: ["sleep", "1000"].map(Into::into).into(),
        ready: "",
        changes: false,
    };
    let host = start(&job, Place::Directory, &server, directory.path(), &[]);
    wait_for_log(&host, "the app is started");
    let pid = host.pid1_host_pid();
    let ticks = || -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
        let fields: Vec<&str> = stat
            .rsplit(") ")
            .next()
            .expect("it has fields")
            .split(' ')
            .collect();
        fields[11].parse::<f64>().expect("a number") + fields[12].parse::<f64>().expect("a number")
    };
    let (before, begun) = (ticks(), Instant::now());
    // The one place where time itself is what is waited for.
    std::thread::sleep(Duration::from_secs(30));
    let percent = (ticks() - before) / begun.elapsed().as_secs_f64();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let rss = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("it has a line");
    let rss: f64 = rss
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .expect("a number");
    figures.add("idle", "rss MiB", rss / 1024.0);
    println!(
        "| idle | resident memory, 16 MiB at most | {:.1} MiB |",
        rss / 1024.0
    );
    println!(
        "| idle | processor time, none that can be measured | {percent:.2} % of one processor |"
    );
}

// ---- The table

fn print(job: &Job, figures: &Figures) {
    let get = |name: &str| figures.median(job.name, name);
    println!("\n| {} | median |", job.name);
    println!("|---|---|");
    for ((of, name), values) in &figures.0 {
        if of == job.name {
            println!(
                "| {name} | {:.2} ({} rounds) |",
                get(name).unwrap_or(0.0),
                values.len()
            );
        }
    }
    println!("\n| {} | aim | found |", job.name);
    println!("|---|---|---|");
    let row = |what: &str, aim: &str, over: Option<f64>, under: Option<f64>| {
        if let (Some(over), Some(under)) = (over, under) {
            println!("| {what} | {aim} | {:.2} |", over / under);
        }
    };
    for place in [Place::Directory, Place::S3] {
        let name = place.name();
        let ours = |what: &str| get(&format!("{name} {what}"));
        row(
            &format!("{name}: first checkpoint / criu dump"),
            "≤ 1.5",
            ours("first wall"),
            get("criu dump"),
        );
        row(
            &format!("{name}: criu, tar, zstd, upload / first checkpoint"),
            "≥ 3",
            get("tar+zstd"),
            ours("first wall"),
        );
        row(
            &format!("{name}: changed / first checkpoint"),
            "≤ 0.35",
            ours("changed wall"),
            ours("first wall"),
        );
        row(
            &format!(
                "{name}: changed, stored / a twentieth of the memory, compressed to two thirds"
            ),
            "≤ 1.3",
            ours("changed stored MiB"),
            ours("first memory MiB").map(|memory| memory / 20.0 * 2.0 / 3.0),
        );
        row(
            &format!("{name}: frozen, seeded / reader that hashes"),
            "≤ 1.3",
            ours("seeded frozen"),
            get("criu, reader that hashes: frozen"),
        );
        row(
            &format!("{name}: restore / criu restore"),
            "≤ 1.3",
            ours("restore"),
            get("criu restore"),
        );
        let bound = ours("first memory MiB").map(|memory| 64.0 + 0.003 * memory);
        row(
            &format!("{name}: peak memory / bound"),
            "≤ 1",
            ours("peak MiB"),
            bound,
        );
        row(
            &format!("{name}: peak memory of the restore / bound"),
            "≤ 1",
            ours("restore peak MiB"),
            bound,
        );
    }
}
