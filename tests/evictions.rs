//! What becomes of a job at an eviction: for each way of being told, each time that is left, each size of the job and
//! each rate of the network, whether the snapshot was durable in time and how long the job worked on. `make evictions`
//! runs it; docs/deadlines.md keeps what it said.
//!
//! Real hosts, real CRIU, a look-alike of the metadata services, an S3 server of our own, and a proxy in front of it that
//! holds uploads to a rate. Each row evicts a job of its own and, where it was stored, resumes it. That what is resumed is
//! exact is for the tests.
//!
//! Small jobs that have the same time left are evicted side by side, large ones alone. A row that cannot be measured says so,
//! and the others go on.
//!
//! EVICTIONS chooses rows: `sources`, `sizes`, `work` (all three by default), and `work:2` the second one of these alone.

#[path = "bench/s3.rs"]
#[allow(dead_code)] // shared with the benchmarks
mod bench_s3;
mod harness;
mod job;

use std::path::Path;
use std::time::Duration;

use bench_s3::Server;
use harness::{Exit, Host, Lab, Proxy, Rootfs};
use serde_json::{Value, json};

/// For whatever takes long on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// 200 Mbit/s.
const SLOW: u32 = 25_000_000;

/// Between two looks at the log.
const LOOK: Duration = Duration::from_millis(20);

const PAGES_PER_MIB: u32 = 256;

const HEADING: &str = "| told by | time, s | job, MiB | changes, MiB/s | upload | seeding | outcome | margin, s | worked on | stored, MiB |";

/// Where docs/deadlines.md has the table.
const BEGIN: &str = "<!-- evictions: begin -->";
const END: &str = "<!-- evictions: end -->";

/// How the job's host is told that it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Sigterm,
    Ec2,
    Gcp,
    Azure,
    Control,
}

/// One eviction.
#[derive(Clone, Debug)]
struct Row {
    told: Told,
    /// Between the notice and the machine's end, in seconds.
    left: u64,
    /// Of the job's memory, which is random.
    mib: u32,
    /// MiB that it changes each second.
    changes: u32,
    /// Bytes per second of all uploads together.
    rate: Option<u32>,
    seed: bool,
}

/// How it went.
#[derive(Debug)]
enum Went {
    /// With this much of the time left, after the job had worked on for so much of it; both in seconds.
    Durable {
        margin: f64,
        worked: f64,
        stored: u64,
    },
    /// As it was told before the machine went.
    Missed { reason: String },
    /// Something else went wrong, on the machine that measures or in the test.
    Unmeasured,
}

/// Jobs of more MiB have the machine to themselves.
const SMALL: u32 = 512;

/// So many small ones are evicted side by side.
const SIDE_BY_SIDE: usize = 4;

fn row(told: Told, left: u64, mib: u32, rate: Option<u32>) -> Row {
    Row {
        told,
        left,
        mib,
        changes: 1,
        rate,
        seed: true,
    }
}

fn rows() -> Vec<Row> {
    let chosen = std::env::var("EVICTIONS").unwrap_or_else(|_| "sources,sizes,work".to_owned());
    chosen.split(',').flat_map(chosen_rows).collect()
}

/// `NAME` or `NAME:N`, counting from 1.
fn chosen_rows(chosen: &str) -> Vec<Row> {
    let (name, number) = match chosen.split_once(':') {
        Some((name, number)) => (name, Some(number.parse::<usize>().expect("a number"))),
        None => (chosen, None),
    };
    let all = named_rows(name);
    match number {
        Some(number) => vec![all[number - 1].clone()],
        None => all,
    }
}

fn named_rows(name: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    match name {
        "sources" => {
            for told in [
                Told::Sigterm,
                Told::Ec2,
                Told::Gcp,
                Told::Azure,
                Told::Control,
            ] {
                rows.push(row(told, 30, 64, None));
            }
        }
        "sizes" => {
            for left in [10, 30, 120] {
                // The small ones first, so that they are side by side.
                for mib in [64, 512, 2048] {
                    for rate in [None, Some(SLOW)] {
                        rows.push(row(Told::Ec2, left, mib, rate));
                    }
                }
            }
        }
        "work" => {
            for seed in [true, false] {
                rows.push(Row {
                    changes: 10,
                    seed,
                    ..row(Told::Ec2, 120, 2048, Some(SLOW))
                });
            }
        }
        _ => panic!("there are no rows {name}"),
    }
    rows
}

fn main() {
    let rows = rows();
    let mut table = String::new();
    let mut say = |line: String| {
        println!("{line}");
        table += &line;
        table.push('\n');
    };
    say(HEADING.to_owned());
    say("|---|---:|---:|---:|---|---|---|---:|---:|---:|".to_owned());
    for (row, went) in groups(&rows).into_iter().flat_map(evict_all) {
        let upload = row.rate.map_or("not held".to_owned(), |rate| {
            format!("{} Mbit/s", rate / 1_000_000 * 8)
        });
        let seeding = if row.seed { "on" } else { "off" };
        let outcome = match &went {
            Went::Durable {
                margin,
                worked,
                stored,
            } => {
                #[allow(clippy::cast_precision_loss)] // far below 2^52
                let share = worked / row.left as f64 * 100.0;
                format!(
                    "durable, resumed | {margin:.1} | {share:.0} % | {}",
                    stored >> 20
                )
            }
            Went::Missed { reason } => format!("missed: {reason} | | |"),
            Went::Unmeasured => "not measured | | |".to_owned(),
        };
        say(format!(
            "| {:?} | {} | {} | {} | {upload} | {seeding} | {outcome} |",
            row.told, row.left, row.mib, row.changes
        ));
    }
    // A part of the table is for whoever looks for something.
    if std::env::var_os("EVICTIONS").is_none() {
        keep(&table);
    }
}

/// Rows that are measured together, in their order.
fn groups(rows: &[Row]) -> Vec<&[Row]> {
    let together =
        |one: &Row, next: &Row| one.left == next.left && one.mib <= SMALL && next.mib <= SMALL;
    let alike = rows.chunk_by(together);
    alike.flat_map(|rows| rows.chunks(SIDE_BY_SIDE)).collect()
}

fn evict_all(rows: &[Row]) -> Vec<(&Row, Went)> {
    std::thread::scope(|scope| {
        let started: Vec<_> = rows
            .iter()
            .map(|row| (row, scope.spawn(|| evict(row))))
            .collect();
        // What was wrong is on standard error already.
        let ended = started
            .into_iter()
            .map(|(row, evicted)| (row, evicted.join().unwrap_or(Went::Unmeasured)));
        ended.collect()
    })
}

/// Puts the table where docs/deadlines.md has it, with the day on which it was made.
fn keep(table: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/deadlines.md");
    let text = std::fs::read_to_string(&path).expect("the document is there");
    let (before, rest) = text.split_once(BEGIN).expect("it says where the table is");
    let (_, after) = rest.split_once(END).expect("it says where the table ends");
    let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    let day = now.split('T').next().expect("a day comes first");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let made = format!("`make evictions` on {day}, {cores} cores:");
    let text = format!("{before}{BEGIN}\n{made}\n\n{table}{END}{after}");
    std::fs::write(&path, text).expect("the document can be written");
}

fn start(row: &Row, name: &str, proxy: &Proxy, lab: &Lab) -> Host {
    let grace = format!("{}s", row.left);
    let mut options = vec![
        "--store",
        "s3://bucket/prefix",
        "--job",
        "job",
        "--s3-endpoint",
        proxy.url(),
        "--s3-region",
        "us-east-1",
        "--term-grace",
        &grace,
        "--on-other-owner",
        "take-over",
        "--checkpoint-timeout",
        "5m",
        "--metadata-poll",
        "1s",
        "--seed-interval",
        "5s",
        "--seed-bandwidth",
        "1GiB",
        "--seed-cpu",
        "50",
    ];
    options.extend(["--seed", if row.seed { "on" } else { "off" }]);
    let sources = match row.told {
        Told::Sigterm | Told::Control => "none",
        Told::Ec2 => "ec2-metadata",
        Told::Gcp => "gcp",
        Told::Azure => "azure",
    };
    options.extend(["--sources", sources]);
    let mib = row.mib.to_string();
    let rewrite = (row.changes * PAGES_PER_MIB).to_string();
    let app = [
        "python3",
        "/apps/memory.py",
        &mib,
        "1",
        "--rewrite",
        &rewrite,
    ];
    Host::builder(name)
        .rootfs(Rootfs::Debian)
        .share_net()
        .env("AWS_ACCESS_KEY_ID", "nobody")
        .env("AWS_SECRET_ACCESS_KEY", "nothing")
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &lab.url)
        .env("GCE_METADATA_HOST", lab.authority())
        .env("REPRIEVE_AZURE_METADATA_ENDPOINT", &lab.url)
        .reprieve(options, app)
        .start()
}

fn evict(row: &Row) -> Went {
    let (server, lab) = (Server::start(), Lab::start());
    let proxy = Proxy::start(&server.url);
    let host = start(row, "first", &proxy, &lab);
    host.stdout()
        .wait_for_line("ready", PATIENCE, |line| line == "ready");
    if row.told != Told::Sigterm && row.told != Told::Control {
        host.stderr().wait_for_line("a source", PATIENCE, |line| {
            line.contains("a source of notices works")
        });
    }
    // A job that has run for a while has been stored, or seeded, before.
    let ran = host.exec([
        "reprieve",
        "checkpoint",
        "--leave-running",
        "--timeout",
        "5m",
    ]);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    if let Some(rate) = row.rate {
        proxy.limit_rate(rate);
    }
    let told_at = std::time::SystemTime::now();
    tell(row, &host, &lab);
    let limit = Duration::from_secs(row.left);
    let line = loop {
        let log = host.stderr().lines();
        let stored =
            |line: &&String| line.contains("checkpoint is durable") && line.contains("\"Stop\"");
        if let Some(line) = log.iter().find(stored) {
            break Some(line.clone());
        }
        if told_at.elapsed().unwrap_or_default() >= limit {
            break None;
        }
        // A miss is an outcome here, so there is nothing to wait for that must come.
        std::thread::sleep(LOOK);
    };
    // The machine is gone now, whatever it was doing.
    let Some(line) = line else {
        let reason = why(&host);
        host.destroy();
        return Went::Missed { reason };
    };
    let went = durable(&host, &line, told_at, row);
    assert_eq!(host.wait_exit(PATIENCE), Exit::Code(75));
    host.destroy();
    proxy.pass();
    // Another machine, of which nothing is announced.
    let lab = Lab::start();
    let next = start(row, "second", &proxy, &lab);
    next.stderr().wait_for_line("resumed", PATIENCE, |line| {
        line.contains("the job is resumed")
    });
    let mark = next.stdout().mark();
    next.stdout()
        .wait_for_line_after(mark, "more ticks", PATIENCE, |line| {
            line.starts_with("tick ")
        });
    next.destroy();
    went
}

fn tell(row: &Row, host: &Host, lab: &Lab) {
    match row.told {
        Told::Sigterm => host.signal(libc::SIGTERM),
        Told::Ec2 => drop(lab.notice(json!({ "kind": "spot", "in": row.left }))),
        Told::Gcp => drop(lab.notice(json!({ "kind": "gcp-preempted" }))),
        Told::Azure => {
            drop(lab.notice(json!({ "kind": "azure", "type": "Preempt", "in": row.left })))
        }
        Told::Control => {
            let line = json!({
                "v": 1, "request": "notice", "fate": "terminate", "in_ms": row.left * 1000, "identity": "a"
            });
            let program = "import socket,sys\ns = socket.socket(socket.AF_UNIX)\n\
                           s.connect('/run/reprieve/control.sock')\ns.sendall(sys.argv[1].encode() + b'\\n')\n\
                           print(s.recv(65536).decode())";
            host.exec_ok(["python3", "-c", program, &line.to_string()]);
        }
    }
}

fn at(line: &Value) -> std::time::SystemTime {
    let time = line["time"].as_str().expect("each line has its time");
    humantime::parse_rfc3339(time).expect("it is RFC 3339")
}

fn seconds(from: std::time::SystemTime, to: std::time::SystemTime) -> f64 {
    to.duration_since(from).unwrap_or_default().as_secs_f64()
}

fn durable(host: &Host, line: &str, told_at: std::time::SystemTime, row: &Row) -> Went {
    let line: Value = serde_json::from_str(line).expect("the log is JSON");
    let log = host.stderr().lines();
    let begun = log
        .iter()
        .rev()
        .find(|line| line.contains("checkpoint begins"));
    let begun: Value = serde_json::from_str(begun.expect("it began")).expect("the log is JSON");
    let end = told_at + Duration::from_secs(row.left);
    Went::Durable {
        margin: seconds(at(&line), end),
        worked: seconds(told_at, at(&begun)),
        stored: line["stored_bytes"].as_u64().unwrap_or(0),
    }
}

/// The last thing that was said about a deadline or a checkpoint.
fn why(host: &Host) -> String {
    let log = host.stderr().lines();
    // For whoever wants to know more than the table says.
    for line in &log {
        if ["it is decided", "checkpoint ", "deadline"]
            .iter()
            .any(|word| line.contains(word))
        {
            eprintln!("    {line}");
        }
    }
    let said = log.iter().rev().find_map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        let reason = line["reason"].as_str()?;
        Some(reason.chars().take(120).collect())
    });
    said.unwrap_or_else(|| "nothing was said".to_owned())
}
