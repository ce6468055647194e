//! The store misbehaves while the machine is about to go: at each fault and each deadline the job is durable before it, or
//! that is told as missed, the app works on until the machine goes, and what was stored before is whole and resumes.
//!
//! Real hosts and CRIU, an S3 server of our own with a proxy in front of it that does to requests what networks and overloaded
//! services do, and directories on file systems that are full or fail. That a fault at a given object does no harm has tests of
//! its own in `tests/s3.rs`.
//!
//! `make test` tries those that are marked, with a deadline of 20 s. `make test-faults` tries all with those of 120, 30 and
//! 10 s, and puts what came of it into docs/reliability.md; FAULT_DEADLINES=30 and FAULTS=stalls,resets choose some.

#[path = "bench/s3.rs"]
#[allow(dead_code)] // shared with the benchmarks
mod bench_s3;
mod harness;
mod job;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bench_s3::Server;
use harness::{Builder, Exit, Fault, Handout, Host, LIMIT, Proxy, Request, wait_until};
use job::{address, checkpoint_ok, get, notice, wait_for_output};
use reprieve_core::head::Head;
use serde_json::{Value, json};

/// Every page changes all the time, so that nothing of it is in the store already; its digest says that the rest of it
/// stays.
const APP: &[&str] = &["python3", "/apps/memory.py", "12", "--fresh"];

/// What the quick ones get.
const QUICK: u64 = 20;

/// With less than this it depends on the machine what can be durable.
const ENOUGH: u64 = 20;

/// So many are tried side by side: those that have time wait most of it.
fn side_by_side(seconds: u64) -> usize {
    match seconds {
        60.. => 30,
        20.. => 16,
        _ => 8,
    }
}

const BEGIN: &str = "<!-- faults: begin -->";
const END: &str = "<!-- faults: end -->";

/// What has to come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Durable,
    Missed,
    /// It depends on how fast the machine is.
    Either,
}

use Wanted::{Durable, Either, Missed};

/// What came of it, with the seconds that were left.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Went {
    Durable(f64),
    Missed(f64),
}

struct Case {
    name: &'static str,
    /// As the table says it.
    fault: &'static str,
    place: fn() -> Box<dyn Place>,
    begin: fn(&S3),
    /// With [`ENOUGH`], and with less.
    wanted: (Wanted, Wanted),
    /// `make test` tries it.
    quick: bool,
}

const fn s3(name: &'static str, fault: &'static str, begin: fn(&S3)) -> Case {
    Case {
        name,
        fault,
        place: || Box::new(S3::new()),
        begin,
        wanted: (Durable, Either),
        quick: false,
    }
}

impl Case {
    const fn wanted(mut self, with_time: Wanted, with_little: Wanted) -> Self {
        self.wanted = (with_time, with_little);
        self
    }

    const fn quick(mut self) -> Self {
        self.quick = true;
        self
    }
}

fn is_put(request: &Request) -> bool {
    request.method == "PUT"
}

fn is_part(request: &Request) -> bool {
    request.is("PUT", "/data/")
}

/// True for the first request of each kind for each object.
fn first_of_each() -> impl FnMut(&Request) -> bool + Send + 'static {
    let mut seen = HashSet::new();
    move |request| seen.insert((request.method.clone(), request.path.clone()))
}

/// True for the first, the third and so on.
fn every_other() -> impl FnMut(&Request) -> bool + Send + 'static {
    let mut last = false;
    move |_| {
        last = !last;
        last
    }
}

const CASES: &[Case] = &[
    s3("none", "none", |_| {}),
    s3("latency-1", "each answer takes 1 s", |s3| {
        s3.proxy
            .fail(Fault::Delay(Duration::from_secs(1)), |_| true);
    }),
    s3("latency-3", "each answer takes 3 s", |s3| {
        s3.proxy
            .fail(Fault::Delay(Duration::from_secs(3)), |_| true);
    })
    .wanted(Either, Either),
    s3("narrow", "uploads at 2 MiB/s, all together", |s3| {
        s3.proxy.limit_rate(2 << 20);
    }),
    s3("trickle", "uploads at 32 KiB/s, all together", |s3| {
        s3.proxy.limit_rate(32 << 10);
    })
    .wanted(Missed, Missed),
    s3("resets", "every other connection is reset", |s3| {
        s3.proxy.fail(Fault::Reset, every_other());
    }),
    s3("gone", "every connection is reset", |s3| {
        s3.proxy.fail(Fault::Reset, |_| true);
    })
    .wanted(Missed, Missed),
    s3("stalls", "3 uploads are never answered", |s3| {
        s3.proxy.fail_next(Fault::Hang, 3, is_put);
    }),
    s3("silent", "nothing is ever answered", |s3| {
        s3.proxy.fail(Fault::Hang, |_| true);
    })
    .wanted(Missed, Missed)
    .quick(),
    s3("slow-down", "503 SlowDown, 40 times", |s3| {
        s3.proxy.fail_next(Fault::SlowDown, 40, |_| true);
    })
    .quick(),
    s3("slow-down-always", "503 SlowDown, always", |s3| {
        s3.proxy.fail(Fault::SlowDown, |_| true);
    })
    .wanted(Missed, Missed),
    s3("broken", "500 InternalError, 40 times", |s3| {
        s3.proxy.fail_next(Fault::Broken, 40, |_| true);
    }),
    s3("broken-always", "500 InternalError, always", |s3| {
        s3.proxy.fail(Fault::Broken, |_| true);
    })
    .wanted(Missed, Missed),
    s3(
        "expired",
        "credentials expire; others come after 10 refusals",
        |s3| {
            let handout = Arc::clone(&s3.handout);
            let (before, mut refused) = (handout.key_id(), 0);
            s3.proxy.fail(Fault::Expired, move |request| {
                let refuses = request.signed_by.as_ref() == Some(&before);
                refused += u32::from(refuses);
                if refuses && refused == 10 {
                    handout.renew();
                }
                refuses
            });
        },
    )
    .quick(),
    s3("denied", "403 AccessDenied for 3 uploads", |s3| {
        s3.proxy.fail_next(Fault::Denied, 3, is_put);
    }),
    s3("denied-always", "403 AccessDenied for all uploads", |s3| {
        s3.proxy.fail(Fault::Denied, is_put);
    })
    .wanted(Missed, Missed),
    s3(
        "truncated",
        "the first answer about each object breaks off",
        |s3| {
            s3.proxy.fail(Fault::Truncate, first_of_each());
        },
    )
    .quick(),
    s3(
        "truncated-always",
        "the answers to all GETs break off",
        |s3| {
            s3.proxy
                .fail(Fault::Truncate, |request| request.method == "GET");
        },
    )
    .wanted(Either, Either),
    s3(
        "altered",
        "the first answer about each object is altered",
        |s3| {
            s3.proxy.fail(Fault::Alter, first_of_each());
        },
    )
    .wanted(Either, Either),
    s3(
        "altered-always",
        "the answers to all GETs are altered",
        |s3| {
            s3.proxy
                .fail(Fault::Alter, |request| request.method == "GET");
        },
    )
    .wanted(Either, Either),
    s3("reordered", "every other part is answered 2 s late", |s3| {
        let mut other = every_other();
        let late = move |request: &Request| is_part(request) && other(request);
        s3.proxy.fail(Fault::Delay(Duration::from_secs(2)), late);
    }),
    s3("twice", "each upload is carried out twice", |s3| {
        s3.proxy.fail(Fault::Twice, is_put);
    })
    .quick(),
    s3(
        "late",
        "the first upload of each object is reset, and carried out 1 s later",
        |s3| {
            let mut first = first_of_each();
            let first = move |request: &Request| is_put(request) && first(request);
            s3.proxy.fail(Fault::Later(Duration::from_secs(1)), first);
        },
    )
    .quick(),
    s3(
        "done-but-failed",
        "the first upload of each object is carried out, and 500 is answered",
        |s3| {
            let mut first = first_of_each();
            let first = move |request: &Request| is_put(request) && first(request);
            s3.proxy.fail(Fault::DoneButFailed, first);
        },
    )
    .quick(),
    s3("lost", "the first answer about each object is lost", |s3| {
        s3.proxy.fail(Fault::LoseReply, first_of_each());
    }),
    s3("paginated", "listings have one key in each page", |s3| {
        s3.server.limit_pages(1);
    }),
    s3("skewed", "403 RequestTimeTooSkewed, always", |s3| {
        s3.proxy.fail(Fault::Skewed, |_| true);
    })
    .wanted(Missed, Missed),
    s3(
        "no-bucket",
        "404 NoSuchBucket: the bucket is deleted",
        |s3| {
            s3.proxy.fail(Fault::NoBucket, |_| true);
        },
    )
    .wanted(Missed, Missed),
    Case {
        place: || Box::new(FullDisk::new()),
        ..s3(
            "full",
            "ENOSPC: the disk is full (directory, tmpfs of 20 MiB)",
            |_| {},
        )
    }
    .wanted(Missed, Missed)
    .quick(),
    Case {
        place: || Box::new(BrokenDisk::new()),
        ..s3(
            "eio",
            "EIO: the disk fails (directory, ext4 that is shut down)",
            |_| {},
        )
    }
    .wanted(Missed, Missed)
    .quick(),
];

/// Where snapshots are kept, and what can happen there.
trait Place {
    fn order(&self, host: Builder) -> Builder;
    fn store(&self) -> String;
    fn options(&self) -> Vec<String> {
        Vec::new()
    }
    /// The fault is there from now on.
    fn begin(&self, case: &Case);
    /// It is over. No host runs.
    fn mend(&self);
    fn object(&self, key: &str) -> Vec<u8>;
}

struct S3 {
    server: Server,
    proxy: Proxy,
    handout: Arc<Handout>,
}

impl S3 {
    fn new() -> Self {
        let server = Server::start();
        Self {
            proxy: Proxy::start(&server.url),
            server,
            handout: Arc::new(Handout::start()),
        }
    }
}

impl Place for S3 {
    fn order(&self, host: Builder) -> Builder {
        host.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", self.handout.url())
    }

    fn store(&self) -> String {
        "s3://bucket/prefix".to_owned()
    }

    fn options(&self) -> Vec<String> {
        let options = [
            "--s3-endpoint",
            self.proxy.url(),
            "--s3-region",
            "us-east-1",
        ];
        options.map(str::to_owned).into()
    }

    fn begin(&self, case: &Case) {
        (case.begin)(self);
    }

    fn mend(&self) {
        self.proxy.pass();
        self.server.limit_pages(1000);
    }

    fn object(&self, key: &str) -> Vec<u8> {
        let object = self.server.object(&format!("prefix/{key}"));
        object.expect("it is stored")
    }
}

/// A directory to mount things below, seen by nobody but this thread and the hosts that it starts.
fn mounts() -> tempfile::TempDir {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("tests run as root");
    mount(&["--make-rprivate", "/"]);
    tempfile::tempdir().expect("a temporary directory can be made")
}

#[track_caller]
fn mount(arguments: &[&str]) {
    let mounted = Command::new("mount").args(arguments).output();
    let mounted = mounted.expect("mount (util-linux) can be started");
    assert!(mounted.status.success(), "{arguments:?}: {mounted:?}");
}

fn shown(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

/// Room for one snapshot and not for two.
struct FullDisk {
    directory: tempfile::TempDir,
}

impl FullDisk {
    fn new() -> Self {
        let directory = mounts();
        mount(&[
            "-t",
            "tmpfs",
            "-o",
            "size=20m",
            "store",
            shown(directory.path()),
        ]);
        Self { directory }
    }
}

impl Place for FullDisk {
    fn order(&self, host: Builder) -> Builder {
        host.bind(self.directory.path(), "/snapshots")
    }

    fn store(&self) -> String {
        "file:///snapshots".to_owned()
    }

    fn begin(&self, _: &Case) {}

    fn mend(&self) {
        mount(&["-o", "remount,size=100m", shown(self.directory.path())]);
    }

    fn object(&self, key: &str) -> Vec<u8> {
        fs::read(self.directory.path().join(key)).expect("it is stored")
    }
}

/// What the file system says to everything after EXT4_IOC_SHUTDOWN, as after a disk that went away: EIO. What was synced
/// before is there when it is mounted again.
struct BrokenDisk {
    directory: tempfile::TempDir,
    mounted: PathBuf,
}

impl BrokenDisk {
    fn new() -> Self {
        let directory = mounts();
        let mounted = directory.path().join("mounted");
        fs::create_dir(&mounted).expect("it is ours");
        let disk = Self { directory, mounted };
        let image = fs::File::create(disk.image()).expect("it is ours");
        image.set_len(100 << 20).expect("it is sparse");
        let made = Command::new("mkfs.ext4")
            .args(["-q", shown(&disk.image())])
            .status();
        assert!(made.is_ok_and(|status| status.success()), "mkfs.ext4");
        disk.attach();
        disk
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    fn attach(&self) {
        mount(&["-o", "loop", shown(&self.image()), shown(&self.mounted)]);
    }

    fn detach(&self) {
        let detached = Command::new("umount").arg(&self.mounted).status();
        assert!(detached.is_ok_and(|status| status.success()), "umount");
    }
}

impl Drop for BrokenDisk {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.detach();
        }
    }
}

impl Place for BrokenDisk {
    fn order(&self, host: Builder) -> Builder {
        host.bind(&self.mounted, "/snapshots")
    }

    fn store(&self) -> String {
        "file:///snapshots".to_owned()
    }

    fn begin(&self, _: &Case) {
        let shut_down = "import fcntl, os, struct, sys\n\
             fcntl.ioctl(os.open(sys.argv[1], 0), 0x8004587d, struct.pack('I', 2))";
        let done = Command::new("python3")
            .args(["-c", shut_down])
            .arg(&self.mounted)
            .status();
        assert!(
            done.is_ok_and(|status| status.success()),
            "EXT4_IOC_SHUTDOWN"
        );
    }

    fn mend(&self) {
        self.detach();
        self.attach();
    }

    fn object(&self, key: &str) -> Vec<u8> {
        fs::read(self.mounted.join(key)).expect("it is stored")
    }
}

fn start(place: &dyn Place, name: &str) -> Host {
    start_with(place, name, &[])
}

fn start_with(place: &dyn Place, name: &str, more: &[&str]) -> Host {
    let mut options: Vec<String> = [
        "--job",
        "job",
        "--on-other-owner",
        "take-over",
        "--metrics-listen",
        "127.0.0.1:0",
        "--sources",
        "none",
        "--store",
    ]
    .map(str::to_owned)
    .into();
    options.push(place.store());
    options.extend(place.options());
    options.extend(more.iter().map(|option| (*option).to_owned()));
    let host = Host::builder(name).share_net();
    let app = APP.iter().copied();
    place.order(host).reprieve(options, app).start()
}

const NOTICE: &str = "notice: something is to happen to this machine";
const MISSED: &str = "no checkpoint was taken; the newest older snapshot stays as it is";

fn line_after(host: &Host, mark: usize, wanted: impl Fn(&str) -> bool) -> Option<Value> {
    let log = host.stderr().text();
    let line = log[mark.min(log.len())..].lines().find(|line| wanted(line));
    line.map(|line| serde_json::from_str(line).expect("the log is JSON"))
}

fn at(line: &Value) -> SystemTime {
    let time = line["time"].as_str().expect("each line has its time");
    humantime::parse_rfc3339(time).expect("it is a time")
}

/// The value of one line of the metrics.
#[track_caller]
fn metric(host: &Host, line: &str) -> f64 {
    let (_, metrics) = get(&address(host), "/metrics");
    let found = metrics.lines().find_map(|one| one.strip_prefix(line));
    let found = found.unwrap_or_else(|| panic!("{line} is not in {metrics}"));
    found.trim().parse().expect("it is a number")
}

/// The numbers of complete lines; what a stop tore apart is not counted.
fn ticks(text: &str) -> Vec<u64> {
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let ticks = whole.lines().filter_map(|line| line.strip_prefix("tick "));
    ticks.map(|tick| tick.parse().expect("a number")).collect()
}

#[track_caller]
fn assert_steady(ticks: &[u64]) {
    let gap = ticks.windows(2).find(|two| two[1] != two[0] + 1);
    assert_eq!(gap, None, "a tick is missing or repeated");
}

/// What CRIU dumps goes through pipes of a user who is the same in all of these hosts: more than eight at once have more than
/// the kernel gives a user (docs/limits.md). An eviction tries again; this checkpoint is tried once.
static DUMPING: Mutex<()> = Mutex::new(());

/// Evicts a job in `seconds`, with the fault, and resumes it without.
fn evict(case: &Case, seconds: u64) -> Went {
    let place = (case.place)();
    let first = start(&*place, case.name);
    wait_for_output(&first, "ready");
    let digest = first.stdout().lines()[0].clone();
    {
        let _turn = DUMPING.lock().unwrap_or_else(PoisonError::into_inner);
        checkpoint_ok(&first);
    }
    let mark = first.stderr().mark();
    place.begin(case);
    notice(
        &first,
        &json!({ "v": 1, "request": "notice", "fate": "terminate", "in_ms": seconds * 1000, "identity": "a" }),
    );
    let heard = first
        .stderr()
        .wait_for_line_after(mark, "the notice", LIMIT, |line| line.contains(NOTICE));
    let heard = serde_json::from_str(&heard).expect("the log is JSON");
    let end = at(&heard) + Duration::from_secs(seconds);
    let missed = || line_after(&first, mark, |line| line.contains(MISSED));
    let limit = Duration::from_secs(seconds) + LIMIT;
    wait_until(limit, "a snapshot or the word that there is none", || {
        !first.is_running() || missed().is_some()
    });
    let went = match missed() {
        None => {
            assert_eq!(first.wait_exit(LIMIT), Exit::Code(75));
            let stored = line_after(&first, mark, |line| {
                line.contains("checkpoint is durable") && line.contains("\"Stop\"")
            });
            let left = left(&stored.expect("it says so"), end);
            assert!(left >= 0.0, "a snapshot that counts after the end: {left}");
            Went::Durable(left)
        }
        Some(line) => {
            // The machine is still there, and the app does not know of all this.
            let written = first.stdout().mark();
            wait_until(LIMIT, "more ticks", || first.stdout().mark() > written + 20);
            let count = |outcome| {
                metric(
                    &first,
                    &format!("reprieve_deadlines_total{{outcome=\"{outcome}\"}}"),
                )
            };
            assert_eq!((count("missed"), count("kept")), (1.0, 0.0));
            Went::Missed(left(&line, end))
        }
    };
    first.destroy();
    place.mend();
    resume(&*place, &first, went, &digest);
    went
}

/// What was left until `end`; less than nothing on a machine that is so busy that an attempt cannot be ended in time.
fn left(line: &Value, end: SystemTime) -> f64 {
    match end.duration_since(at(line)) {
        Ok(left) => left.as_secs_f64(),
        Err(late) => -late.duration().as_secs_f64(),
    }
}

/// The newest snapshot that counts is resumed, and has the app's memory.
fn resume(place: &dyn Place, first: &Host, went: Went, digest: &str) {
    let head = Head::from_bytes(&place.object("job/HEAD")).expect("it is whole");
    let newest = head.generations.first().expect("there is one").generation;
    let second = start(place, "second");
    let app = job::resumed(&second);
    let resumed = line_after(&second, 0, |line| line.contains("the job is resumed"));
    assert_eq!(resumed.expect("it was waited for")["generation"], newest);
    second.signal_process(app.pid, libc::SIGUSR1);
    let found = second
        .stdout()
        .wait_for_line("a digest", LIMIT, |line| line.starts_with("digest"));
    assert_eq!(found, digest);
    wait_until(LIMIT, "more ticks", || {
        !ticks(&second.stdout().text()).is_empty()
    });
    second.destroy();
    let (before, after) = (first.stdout().text(), second.stdout().text());
    match went {
        Went::Durable(_) => {
            assert!(newest > 1);
            // It goes on at the byte at which it was stopped.
            assert_steady(&ticks(&(before + &after)));
        }
        Went::Missed(_) => {
            let (before, after) = (ticks(&before), ticks(&after));
            assert_steady(&before);
            assert_steady(&after);
            assert!(after[0] <= before[before.len() - 1] + 1);
        }
    }
}

#[test]
fn a_second_sigterm_during_an_attempt_that_fails_is_carried_out_in_a_time_of_its_own() {
    let place = S3::new();
    let first = start_with(&place, "first", &["--term-grace", "16s"]);
    wait_for_output(&first, "ready");
    let digest = first.stdout().lines()[0].clone();
    checkpoint_ok(&first);
    place.proxy.fail(Fault::Hang, |_| true);
    let mark = first.stderr().mark();
    first.signal(libc::SIGTERM);
    let left = || -> Option<u64> {
        let status = first.exec_ok(["reprieve", "status", "--json"]);
        let status: Value = serde_json::from_str(&status).expect("it is JSON");
        status["deadline_ms"].as_u64()
    };
    wait_until(LIMIT, "most of the grace to be over", || {
        left().is_some_and(|left| left < 6_000)
    });
    let begun = |line: &str| line.contains("checkpoint begins");
    let failed = |line: &str| line.contains("checkpoint failed");
    assert!(
        line_after(&first, mark, begun).is_some() && line_after(&first, mark, failed).is_none()
    );
    first.signal(libc::SIGTERM);
    let missed = first
        .stderr()
        .wait_for_line_after(mark, "the first one's end", LIMIT, |line| {
            line.contains(MISSED)
        });
    assert!(missed.contains("failed"), "{missed}");
    // The store is there again, and nobody says anything any more.
    place.proxy.pass();
    assert_eq!(first.wait_exit(LIMIT), Exit::Code(75));
    first.destroy();
    resume(&place, &first, Went::Durable(0.0), &digest);
}

/// Tries them side by side. Nothing for one that failed, which has told why.
fn evict_all(cases: &[&'static Case], seconds: u64) -> Vec<Option<Went>> {
    let groups = cases.chunks(side_by_side(seconds));
    let went = groups.flat_map(|group| {
        std::thread::scope(|scope| {
            let started: Vec<_> = group
                .iter()
                .map(|case| scope.spawn(|| evict(case, seconds)))
                .collect();
            let ended = started.into_iter().map(|one| one.join().ok());
            ended.collect::<Vec<_>>()
        })
    });
    went.collect()
}

fn is_wanted(case: &Case, seconds: u64, went: Option<Went>) -> bool {
    let wanted = match seconds >= ENOUGH {
        true => case.wanted.0,
        false => case.wanted.1,
    };
    match went {
        None => false,
        Some(Went::Durable(_)) => wanted != Missed,
        Some(Went::Missed(_)) => wanted != Durable,
    }
}

fn told(went: Option<Went>) -> String {
    match went {
        Some(Went::Durable(left)) => format!("durable, {left:.1} s left"),
        Some(Went::Missed(left)) if left >= 0.0 => format!("missed, told {left:.1} s before"),
        Some(Went::Missed(left)) => format!("missed, told {:.1} s after", -left),
        None => "FAILED".to_owned(),
    }
}

fn chosen(name: &str) -> Option<Vec<String>> {
    let words = std::env::var(name).ok()?;
    Some(words.split(',').map(str::to_owned).collect())
}

#[test]
fn whatever_the_store_does_the_job_is_durable_in_time_or_it_is_told_and_the_older_snapshot_resumes()
{
    let names = chosen("FAULTS");
    let deadlines = chosen("FAULT_DEADLINES");
    let is_all = names.is_some() || deadlines.is_some();
    let is_chosen = |case: &&'static Case| match &names {
        Some(names) => names.iter().any(|name| name == case.name || name == "all"),
        None => is_all || case.quick,
    };
    let cases: Vec<&'static Case> = CASES.iter().filter(is_chosen).collect();
    assert!(!cases.is_empty(), "FAULTS names none");
    let deadlines: Vec<u64> = match (deadlines, is_all) {
        (Some(deadlines), _) => deadlines
            .iter()
            .map(|seconds| seconds.parse().expect("FAULT_DEADLINES are seconds"))
            .collect(),
        (None, true) => vec![120, 30, 10],
        (None, false) => vec![QUICK],
    };
    let mut rows: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    let mut unwanted = Vec::new();
    for seconds in &deadlines {
        for (row, went) in evict_all(&cases, *seconds).into_iter().enumerate() {
            rows.entry(row).or_default().push(told(went));
            let case = cases[row];
            println!("{} in {seconds} s: {went:?}", case.name);
            if !is_wanted(case, *seconds, went) {
                unwanted.push(format!("{} in {seconds} s: {went:?}", case.name));
            }
        }
    }
    let heads = deadlines.iter().map(|seconds| format!(" {seconds} s |"));
    let mut table = format!("| The store | {}\n", heads.collect::<String>().trim_start());
    table += &format!("|---|{}\n", "---|".repeat(deadlines.len()));
    for (row, cells) in &rows {
        table += &format!("| {} | {} |\n", cases[*row].fault, cells.join(" | "));
    }
    println!("{table}");
    if names.is_some_and(|names| names == ["all"]) && deadlines.len() == 3 {
        keep(&table);
    }
    assert!(unwanted.is_empty(), "{unwanted:#?}");
}

/// Puts the table where docs/reliability.md has it, with the day on which it was made.
fn keep(table: &str) {
    let path = harness::project_path("docs/reliability.md");
    let text = fs::read_to_string(&path).expect("the document is there");
    let (before, rest) = text.split_once(BEGIN).expect("it says where the table is");
    let (_, after) = rest.split_once(END).expect("it says where the table ends");
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let day = now.split('T').next().expect("a day comes first");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let made = format!("`make test-faults` on {day}, {cores} cores:");
    let text = format!("{before}{BEGIN}\n{made}\n\n{table}{END}{after}");
    fs::write(&path, text).expect("the document can be written");
}
