//! Memory that is stored ahead: real jobs that are looked at while they run, and checkpoints that find most of it done.

mod harness;
mod job;

use std::fs;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use harness::{Host, LIMIT, wait_until};
use job::{
    Store, address, checkpoint, checkpoint_ok, get, resumed, told_of_checkpoint, wait_for_log,
    wait_for_output,
};
use reprieve_core::head::Head;
use serde_json::Value;

/// As fast as it goes.
const EAGER: &[&str] = &[
    "--seed-interval",
    "100ms",
    "--seed-bandwidth",
    "1GiB",
    "--seed-cpu",
    "100",
];

const STILL: &[&str] = &["python3", "/apps/churn.py", "64", "--still"];
const CHURN: &[&str] = &["python3", "/apps/churn.py", "64"];
const VERIFY: [&str; 6] = [
    "reprieve",
    "verify",
    "--store",
    "file:///snapshots",
    "--job",
    "job",
];
const PRUNE: [&str; 8] = [
    "reprieve",
    "prune",
    "--store",
    "file:///snapshots",
    "--job",
    "job",
    "--sweep-grace",
    "0s",
];
const SEEDED: &str = "the job's memory was seeded";

/// Of all that was seeded.
fn sum(host: &Host, figure: &str) -> u64 {
    let lines = host.stderr().lines();
    let told = lines.iter().filter(|line| line.contains(SEEDED));
    told.filter_map(|line| serde_json::from_str::<Value>(line).ok()?[figure].as_u64())
        .sum()
}

#[track_caller]
fn stored(host: &Host) -> u64 {
    told_of_checkpoint(host, "stored_bytes")
}

fn head(store: &Store) -> Head {
    let bytes = fs::read(store.path().join("job/HEAD")).expect("it is there");
    Head::from_bytes(&bytes).expect("it is whole")
}

/// The objects that were stored ahead, as far as the head knows.
fn seeds(store: &Store) -> Vec<PathBuf> {
    let Some(attempt) = head(store).seeding else {
        return Vec::new();
    };
    let objects = store.objects().into_iter();
    objects
        .filter(|path| {
            path.to_string_lossy().contains(&attempt) && !path.to_string_lossy().ends_with(".tmp")
        })
        .collect()
}

/// Asks the app what its memory holds.
#[track_caller]
fn digest(host: &Host, pid: i32) -> String {
    let mark = host.stdout().mark();
    host.signal_process(pid, libc::SIGUSR1);
    let line = |line: &str| line.starts_with("digest") && line.contains("torn");
    host.stdout()
        .wait_for_line_after(mark, "digest", LIMIT, line)
}

fn app(host: &Host) -> i32 {
    host.wait_for_process("python3 /apps/churn.py", LIMIT).pid
}

/// Has the app change a mebibyte.
#[track_caller]
fn rewrite(host: &Host) {
    let mark = host.stdout().mark();
    host.signal_process(app(host), libc::SIGUSR2);
    host.stdout()
        .wait_for_line_after(mark, "rewritten", LIMIT, |line| line == "rewritten");
}

/// Lets the machine go without a word, and resumes elsewhere.
#[track_caller]
fn moved(store: &Store, host: &Host, options: &[&str], app: &[&str]) -> Host {
    host.destroy();
    store.host_with("next", options, app).start()
}

#[test]
fn a_checkpoint_after_seeding_stores_what_changed_since() {
    let store = Store::new();
    let host = store.host_with("first", EAGER, STILL).start();
    wait_for_output(&host, "ready");
    wait_until(LIMIT, "all of it is seeded", || {
        sum(&host, "seeded_bytes") > 64 << 20
    });
    checkpoint_ok(&host);
    assert!(stored(&host) < 8 << 20, "{} stored", stored(&host));
    // Also on top of a snapshot, and of what changed and stayed since.
    let before = sum(&host, "seeded_bytes");
    rewrite(&host);
    wait_until(LIMIT, "what changed is seeded", || {
        sum(&host, "seeded_bytes") >= before + (1 << 20)
    });
    checkpoint_ok(&host);
    assert!(stored(&host) < 1 << 20, "{} stored", stored(&host));
    let before = digest(&host, app(&host));
    let next = moved(&store, &host, &["--seed", "off"], STILL);
    assert_eq!(digest(&next, resumed(&next).pid), before);
}

/// What a checkpoint would take now, by what was measured.
fn to_safe_ms(host: &Host) -> u64 {
    let status = host.exec_ok(["reprieve", "status", "--json"]);
    let status: Value = serde_json::from_str(&status).expect("it is JSON");
    status["to_safe_ms"].as_u64().expect("it was measured")
}

#[test]
fn memory_is_stored_ahead_before_its_time_if_a_checkpoint_would_not_fit_into_the_notice() {
    // Between what any checkpoint takes at least and what storing all of this takes; all of it may change in an hour.
    let app = ["python3", "/apps/churn.py", "256", "--still"];
    let host = |store: &Store, keep: &str| {
        let options = [
            "--seed-interval",
            "1h",
            "--seed-cpu",
            "100",
            "--shortest-notice",
            "2300ms",
            "--least-interval",
            "10m",
            "--keep-promise",
            keep,
        ];
        let host = store.host_with(keep, &options, &app).start();
        wait_for_output(&host, "ready");
        checkpoint_ok(&host);
        host
    };
    let often = "the job's memory is stored ahead more often";
    let stores = [Store::new(), Store::new(), Store::new()];
    let told = host(&stores[0], "warn");
    // What fits into the notice, with a quarter of the notice, a second, and a quarter of itself kept back.
    let fits = |host: &Host| to_safe_ms(host) <= 580;
    assert!(!fits(&told), "{} ms", to_safe_ms(&told));
    for (store, keep) in stores[1..].iter().zip(["seed", "checkpoint"]) {
        let kept = host(store, keep);
        wait_for_log(&kept, often);
        wait_until(LIMIT, "the promise to hold", || fits(&kept));
        // Nothing was frozen for it.
        assert_eq!(kept.stderr().text().matches("checkpoint begins").count(), 1);
    }
    assert!(!told.stderr().text().contains(often));
    assert!(!fits(&told), "nobody looked at it");
}

#[test]
fn before_an_end_that_is_announced_memory_is_stored_ahead_at_once_and_without_budgets() {
    let store = Store::new();
    // By these, the first look would come in an hour and take one.
    let options = [
        "--seed-interval",
        "1h",
        "--seed-cpu",
        "1",
        "--seed-bandwidth",
        "64KiB",
    ];
    let host = store.host_with("first", &options, STILL).start();
    wait_for_output(&host, "ready");
    checkpoint_ok(&host);
    let line = serde_json::json!({
        "v": 1, "request": "notice", "fate": "terminate", "in_ms": 300_000, "identity": "a",
    });
    job::notice(&host, &line);
    wait_for_log(&host, "works on until the last moment that is safe");
    rewrite(&host);
    wait_until(LIMIT, "what changed is seeded", || {
        sum(&host, "seeded_bytes") >= 1 << 20
    });
    checkpoint_ok(&host);
    assert!(stored(&host) < 1 << 20, "{} stored", stored(&host));
}

#[test]
fn memory_that_changes_while_it_is_seeded_comes_back_exactly() {
    let store = Store::new();
    let mut host = store.host_with("first", EAGER, CHURN).start();
    wait_for_output(&host, "ready");
    for _ in 0..3 {
        // It forks and changes its pages all the time.
        wait_until(LIMIT, "something is stored ahead", || {
            !seeds(&store).is_empty()
        });
        checkpoint_ok(&host);
        host = moved(&store, &host, EAGER, CHURN);
        let answer = digest(&host, resumed(&host).pid);
        assert!(answer.ends_with("torn 0"), "{answer}");
    }
}

#[test]
fn a_snapshot_of_a_job_that_was_seeded_is_the_moment_of_the_freeze() {
    let store = Store::new();
    let app = ["python3", "/apps/stamps.py", "64"];
    let mut host = store.host_with("host-0", EAGER, &app).start();
    wait_for_output(&host, "ready");
    for round in 1..=3 {
        wait_until(LIMIT, "something is stored ahead", || {
            !seeds(&store).is_empty()
        });
        checkpoint_ok(&host);
        host.destroy();
        host = store
            .host_with(&format!("host-{round}"), EAGER, &app)
            .start();
        let app = resumed(&host);
        host.signal_process(app.pid, libc::SIGUSR1);
        let verdict = host.stdout().wait_for_line("a verdict", LIMIT, |_| true);
        assert!(verdict.starts_with("whole"), "{verdict}");
    }
}

#[test]
fn a_store_that_does_not_take_it_disturbs_nobody() {
    let store = Store::new();
    // No directory can be made where the data would go.
    fs::create_dir(store.path().join("job")).expect("the directory is ours");
    fs::write(store.path().join("job/data"), "in the way").expect("the directory is ours");
    let host = store.host_with("first", EAGER, STILL).start();
    wait_for_output(&host, "ready");
    wait_for_log(&host, "the job's memory could not be seeded");
    let before = digest(&host, app(&host));
    assert_ne!(checkpoint(&host).code, 0, "nor does a checkpoint go there");
    fs::remove_file(store.path().join("job/data")).expect("the directory is ours");
    checkpoint_ok(&host);
    let next = moved(&store, &host, EAGER, STILL);
    assert_eq!(digest(&next, resumed(&next).pid), before);
}

#[test]
fn a_worker_that_is_killed_while_it_seeds_leaves_only_litter() {
    let store = Store::new();
    let host = store.host_with("first", EAGER, STILL).start();
    wait_for_output(&host, "ready");
    checkpoint_ok(&host);
    let before = digest(&host, app(&host));
    let mark = host.stderr().mark();
    host.signal_process(app(&host), libc::SIGUSR2);
    host.stderr()
        .wait_for_line_after(mark, SEEDED, LIMIT, |line| line.contains(SEEDED));
    let litter = seeds(&store);
    let next = moved(&store, &host, &["--seed", "off"], STILL);
    assert_eq!(digest(&next, resumed(&next).pid), before);
    assert_eq!(head(&store).seeding, None, "it was the other one's");
    next.exec_ok(PRUNE);
    assert!(litter.iter().all(|path| !path.exists()), "{litter:?}");
    next.exec_ok(VERIFY);
}

#[test]
fn a_prune_takes_nothing_that_was_stored_ahead() {
    let store = Store::new();
    let host = store.host_with("first", EAGER, STILL).start();
    wait_for_output(&host, "ready");
    for _ in 0..3 {
        wait_until(LIMIT, "something is stored ahead", || {
            !seeds(&store).is_empty()
        });
        let ahead = seeds(&store);
        host.exec_ok(PRUNE);
        assert!(ahead.iter().all(|path| path.exists()), "{ahead:?}");
        checkpoint_ok(&host);
        host.exec_ok(VERIFY);
        host.exec_ok(PRUNE);
        host.exec_ok(VERIFY);
        rewrite(&host);
    }
    let before = digest(&host, app(&host));
    checkpoint_ok(&host);
    let next = moved(&store, &host, EAGER, STILL);
    assert_eq!(digest(&next, resumed(&next).pid), before);
}

#[test]
fn a_job_that_changes_again_and_again_without_a_checkpoint_is_still_stored_ahead() {
    let store = Store::new();
    // Nearly all of its 10240 pages, each time.
    let app = ["python3", "/apps/memory.py", "40", "--churn", "30000"];
    let options = [EAGER, &["--metrics-listen", "127.0.0.1:0"]].concat();
    let host = store.host_with("first", &options, &app).share_net().start();
    wait_for_output(&host, "ready");
    wait_until(LIMIT, "all of it is seeded", || {
        sum(&host, "seeded_bytes") > 40 << 20
    });
    let (first, litter) = (head(&store).seeding, seeds(&store));
    let is_anew = || head(&store).seeding != first;
    let pid = host.wait_for_process("python3 /apps/memory.py", LIMIT).pid;
    let ask = |signal| {
        let mark = host.stdout().mark();
        host.signal_process(pid, signal);
        host.stdout()
            .wait_for_line_after(mark, "digest", LIMIT, |line| line.starts_with("digest"))
    };
    for turn in 0.. {
        assert!(turn < 20, "there is no end");
        let before = sum(&host, "seeded_bytes");
        ask(libc::SIGUSR2);
        wait_until(LIMIT, "what changed is seeded, or it begins anew", || {
            sum(&host, "seeded_bytes") > before + (1 << 20) || is_anew()
        });
        if is_anew() {
            break;
        }
    }
    // What it had stored until then is nobody's any more.
    host.exec_ok(PRUNE);
    assert!(litter.iter().all(|path| !path.exists()), "{litter:?}");
    // A look that was under way while it changed leaves some of it for the next one.
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since = u64::try_from(since.expect("it is later").as_millis()).expect("for long");
    let address = address(&host);
    let looked = || {
        let (_, told) = get(&address, "/status");
        let told: Value = serde_json::from_str(&told).expect("it is JSON");
        let memory = &told["history"]["memory"];
        [&memory["at_ms"], &memory["unsafe_bytes"]].map(Value::as_u64)
    };
    wait_until(LIMIT, "the end of that look", || looked()[0] > Some(since));
    let [ended, _] = looked();
    wait_until(LIMIT, "all of it is seeded again", || {
        let [at, left] = looked();
        at > ended && left < Some(1 << 20)
    });
    checkpoint_ok(&host);
    assert!(stored(&host) < 8 << 20, "{} stored", stored(&host));
    host.exec_ok(VERIFY);
    let before = ask(libc::SIGUSR1);
    host.destroy();
    let next = store.host_with("next", &["--seed", "off"], &app).start();
    let pid = resumed(&next).pid;
    let mark = next.stdout().mark();
    next.signal_process(pid, libc::SIGUSR1);
    let after = next
        .stdout()
        .wait_for_line_after(mark, "digest", LIMIT, |line| line.starts_with("digest"));
    assert_eq!(after, before);
}
