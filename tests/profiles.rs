//! The two profiles of privileges: what the full one adds, and that snapshots go from one to the other.

mod harness;
mod job;

use harness::{Exit, Host, LIMIT, Process, wait_until};
use job::{
    COUNTER, Store, assert_counts, checkpoint, checkpoint_ok, evict, told_of_checkpoint,
    wait_for_log, wait_for_output,
};
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Profile {
    Minimal,
    Full,
}
use Profile::{Full, Minimal};

/// A host whose container has the capabilities of the profile, which is to be found by itself.
fn host(store: &Store, name: &str, profile: Profile, app: &[&str]) -> harness::Builder {
    host_with(store, name, profile, &[], app)
}

fn host_with(
    store: &Store,
    name: &str,
    profile: Profile,
    options: &[&str],
    app: &[&str],
) -> harness::Builder {
    let host = store.host_with(name, options, app);
    match profile {
        Minimal => host,
        Full => host
            .add_capability("CAP_SYS_ADMIN")
            .add_capability("CAP_SYS_TIME"),
    }
}

#[track_caller]
fn chosen(host: &Host) -> String {
    let told = wait_for_log(host, "the profile of privileges is chosen");
    let told: Value = serde_json::from_str(&told).expect("the log is JSON");
    told["profile"].as_str().expect("it is text").to_owned()
}

/// The app, as the container sees it.
#[track_caller]
fn app(host: &Host, name: &str) -> Process {
    let found = host
        .processes()
        .into_iter()
        .find(|process| process.parent == 1 && process.command_line.contains(name));
    found.expect("the app is a child of the supervisor")
}

/// Waits until the app prints again after it was resumed.
#[track_caller]
fn goes_on(host: &Host, wanted: &str) {
    wait_for_log(host, "the job is resumed");
    wait_for_output(host, wanted);
}

/// What clocks.py said: monotonic, boottime and the turns of its four.
#[track_caller]
fn readings(host: &Host) -> Vec<[u64; 6]> {
    let text = host.stdout().text();
    assert!(!text.contains("went back"), "{text}");
    let reading = |line: &str| {
        let numbers: Vec<u64> = line
            .strip_prefix("at ")?
            .split(' ')
            .map(|word| word.parse().expect("it is a number"))
            .collect();
        numbers.try_into().ok()
    };
    // The last line may not be whole.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().filter_map(reading).collect()
}

#[test]
fn in_the_full_profile_the_clocks_go_on_whether_the_next_host_booted_later_or_earlier() {
    the_clocks_go_on(&[
        ("old", Full, 50_000),
        ("young", Full, 0),
        ("older", Full, 200_000),
    ]);
}

#[test]
fn in_the_minimal_profile_the_clocks_go_on_whether_the_next_host_booted_later_or_earlier() {
    the_clocks_go_on(&[
        ("old", Minimal, 50_000),
        ("young", Minimal, 0),
        ("older", Minimal, 200_000),
    ]);
}

#[test]
fn the_clocks_go_on_from_one_profile_to_the_other() {
    the_clocks_go_on(&[
        ("old", Full, 50_000),
        ("young", Minimal, 0),
        ("older", Full, 200_000),
        ("newer", Minimal, 100_000),
    ]);
}

fn the_clocks_go_on(hosts: &[(&str, Profile, u64)]) {
    const SECOND: u64 = 1_000_000_000;
    let store = Store::new();
    let mut last: Option<[u64; 6]> = None;
    for &(name, profile, up_for) in hosts {
        let host = host(&store, name, profile, &["python3", "/apps/clocks.py"])
            .up_for_longer(up_for)
            .start();
        assert_eq!(chosen(&host) == "full", profile == Full);
        let begin = match last {
            None => [0; 6],
            Some(last) => {
                wait_for_log(&host, "the job is resumed");
                last
            }
        };
        // All four ways to sleep go on: one that waits for a time in the far future would not.
        wait_until(LIMIT, "turns of all four", || {
            let now = readings(&host).last().copied().unwrap_or(begin);
            (2..6).all(|way| now[way] >= begin[way] + 10)
        });
        let seen = readings(&host);
        if let Some(last) = last {
            let first = seen[0];
            for clock in [0, 1] {
                let ahead = first[clock].checked_sub(last[clock]);
                let ahead = ahead.unwrap_or_else(|| panic!("{name}: {last:?} {first:?}"));
                // The hosts are hours apart.
                assert!(ahead < 600 * SECOND, "{name}: {last:?} {first:?}");
            }
        }
        assert!(!host.stderr().text().contains("is late by as much"));
        match profile {
            Full => assert_clocks(&host, "namespace", "by a time namespace", &[]),
            Minimal => assert_clocks(&host, "library", "every process has", &[]),
        }
        evict(&host);
        last = readings(&host).last().copied();
    }
}

/// `tests/apps/waits.c`, as a program of this kind.
fn waits(kind: &[&str]) -> tempfile::TempDir {
    let built = tempfile::tempdir().expect("a temporary directory");
    let status = std::process::Command::new("cc")
        .args(["-O1", "-pthread"])
        .args(kind)
        .arg("-o")
        .arg(built.path().join("waits"))
        .arg(harness::project_path("tests/apps/waits.c"))
        .status();
    assert!(status.expect("there is a compiler").success());
    built
}

/// How often each way to wait came back, on the last whole line.
fn turns(host: &Host) -> Vec<u64> {
    let text = host.stdout().text();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let line = whole
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("turns "));
    line.unwrap_or_default()
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect()
}

#[test]
fn in_the_minimal_profile_every_wait_under_way_ends_when_it_should() {
    let store = Store::new();
    let built = waits(&[]);
    let mut before = vec![0; 11];
    for (name, up_for) in [("old", 50_000), ("young", 0), ("older", 200_000)] {
        let host = host(&store, name, Minimal, &["/built/waits"])
            .bind(built.path(), "/built")
            .up_for_longer(up_for)
            .start();
        wait_until(LIMIT, "turns of all", || {
            let now = turns(&host);
            now.len() == before.len()
                && now
                    .iter()
                    .zip(&before)
                    .all(|(now, before)| *now >= before + 10)
        });
        assert_doctor_finds(
            &host,
            "waits",
            &[("clocks", "by a library that every process has")],
        );
        assert_clocks(&host, "library", "every process has", &[]);
        evict(&host);
        before = turns(&host);
        for wrong in ["went back", "early", "late by"] {
            assert!(
                !host.stdout().text().contains(wrong),
                "{name}: {}",
                host.stdout().text()
            );
        }
    }
}

#[test]
fn a_program_that_the_library_does_not_reach_is_named_and_the_policy_decides() {
    let store = Store::new();
    let built = waits(&["-static"]);
    let start = |name: &str, up_for, options: &[&str]| {
        store
            .host_with(name, options, &["/built/waits"])
            .bind(built.path(), "/built")
            .up_for_longer(up_for)
            .start()
    };
    let first = start("first", 50_000, &[]);
    wait_for_output(&first, "turns");
    assert_doctor_finds(&first, "waits", &[("clocks", "they go by the host's")]);
    let named = ["301 waits (a static program)"];
    assert_clocks(&first, "library", "301 waits (a static program)", &named);
    evict(&first);
    wait_for_log(&first, "processes go by the host's clocks");
    let refused = start("refused", 0, &["--on-clock-behind", "refuse"]);
    assert_eq!(refused.wait_exit(LIMIT), Exit::Code(171));
    let said = refused.stderr().text();
    assert!(said.contains("waits (a static program)"), "{said}");
    let warned = start("warned", 0, &[]);
    let said = wait_for_log(&warned, "is late by as much");
    assert!(said.contains("waits (a static program)"), "{said}");
}

#[test]
fn in_the_full_profile_system_v_ipc_goes_on_and_the_minimal_one_takes_the_newest_without_it() {
    let store = Store::new();
    let shared = tempfile::tempdir().expect("a temporary directory");
    let start = |name: &str, profile, options: &[&str]| {
        let app = ["python3", "/apps/sysv.py", "/shared/go"];
        let builder = host_with(&store, name, profile, options, &app);
        builder.bind(shared.path(), "/shared").start()
    };
    let first = start("first", Full, &[]);
    wait_for_output(&first, "waiting");
    checkpoint_ok(&first);
    std::fs::write(shared.path().join("go"), "").expect("the directory is ours");
    wait_for_output(&first, "line 5");
    evict(&first);

    let second = start("second", Full, &[]);
    goes_on(&second, "line");
    // One that was restored is stored as well.
    evict(&second);
    let third = start("third", Full, &[]);
    goes_on(&third, "line");
    let all: String = [&first, &second, &third]
        .iter()
        .map(|host| host.stdout().text())
        .collect();
    let counted: String = all
        .lines()
        .filter(|line| line.starts_with("line "))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_counts(&counted, None);
    third.destroy();

    // Nothing of it is in the first snapshot, which was taken with the same privileges.
    std::fs::remove_file(shared.path().join("go")).expect("it is there");
    let minimal = start("minimal", Minimal, &[]);
    assert_eq!(chosen(&minimal), "minimal");
    let passed = wait_for_log(&minimal, "a snapshot is passed over");
    assert!(passed.contains("need the full profile"), "{passed}");
    goes_on(&minimal, "waiting");
    minimal.destroy();

    let store = Store::new();
    let only = host(&store, "only", Full, &["python3", "/apps/sysv.py"]).start();
    wait_for_output(&only, "line 5");
    evict(&only);
    let refused = host(&store, "refused", Minimal, &["python3", "/apps/sysv.py"]).start();
    assert_eq!(refused.wait_exit(LIMIT), Exit::Code(171));
    let said = refused.stderr().text();
    assert!(said.contains("need the full profile"), "{said}");
}

#[test]
fn system_v_ipc_of_another_user_is_stored_without_ipc_owner() {
    let store = Store::new();
    let as_other = [
        "setpriv",
        "--reuid",
        "33",
        "--regid",
        "33",
        "--clear-groups",
    ];
    let app = [&as_other[..], &["python3", "/apps/sysv.py"]].concat();
    let mut all = String::new();
    // What was restored was made by root, and is the app's again.
    for name in ["first", "second", "third"] {
        let host = host(&store, name, Full, &app).start();
        let mark = host.stdout().mark();
        host.stdout()
            .wait_for_line_after(mark, "line", LIMIT, |line| line.starts_with("line"));
        evict(&host);
        all += &host.stdout().text();
    }
    let all = all.strip_prefix("ready\n").expect("it begins once");
    assert_counts(all, None);
}

/// What kinds.py says of its memory after the signal.
#[track_caller]
fn digests(host: &Host, signal: &str) -> String {
    let mark = host.stdout().mark();
    let pid = app(host, "kinds.py").pid.to_string();
    host.exec_ok(["kill", "-s", signal, &pid]);
    host.stdout()
        .wait_for_line_after(mark, "digests", LIMIT, |line| line.starts_with("digests"))
}

#[test]
fn memory_of_each_kind_is_stored_as_its_changes_and_comes_back_in_either_profile() {
    // Of each kind 16 MiB, three quarters of them written, of which a twentieth changes between two checkpoints. Snapshots
    // that are much smaller would be stored whole.
    const KIND: u64 = 16 << 20;
    // Every host has it.
    const FILE: &str = "/snapshots/mapped";
    for (profile, app, kinds) in [
        (Minimal, &["python3", "/apps/kinds.py", FILE][..], 4),
        (Full, &["python3", "/apps/kinds.py", FILE, "--sysv"], 5),
    ] {
        let store = Store::new();
        let mut before = String::new();
        for (round, name) in ["first", "second", "third"].into_iter().enumerate() {
            let host = host_with(&store, name, profile, &["--seed", "off"], app).start();
            if round == 0 {
                wait_for_output(&host, "digests");
                checkpoint_ok(&host);
            } else {
                wait_for_log(&host, "the job is resumed");
                assert_eq!(digests(&host, "USR1"), before, "{profile:?} {name}");
            }
            // Some of it is in the snapshot before, some in one that another host took.
            let changed = digests(&host, "USR2");
            assert_ne!(changed, before);
            checkpoint_ok(&host);
            let unchanged = told_of_checkpoint(&host, "unchanged_bytes");
            assert!(
                unchanged > kinds * KIND * 3 / 5,
                "{unchanged} bytes of {kinds} kinds, {profile:?} {name}"
            );
            before = digests(&host, "USR2");
            assert!(before.ends_with(" same"), "{profile:?} {name}: {before}");
            assert_eq!(before.split(' ').count() as u64, 2 * kinds + 2, "{before}");
            evict(&host);
        }
    }
}

#[test]
fn each_profile_resumes_what_the_other_one_stored() {
    let store = Store::new();
    let mut text = String::new();
    for (number, profile) in [Minimal, Full, Full, Minimal, Full].into_iter().enumerate() {
        let host = host(&store, &format!("host-{number}"), profile, COUNTER).start();
        let seen = || host.stdout().text().lines().count();
        wait_until(LIMIT, "some lines", || seen() > 20);
        evict(&host);
        text += &host.stdout().text();
    }
    assert_counts(&text, None);
}

/// Has every number from 300 to 400 taken before the worker begins.
const CROWD: &str = "import os, sys\n\
    while os.fork():\n\
    \tif os.getpid() == 1 and int(open('/proc/loadavg').read().split()[4]) >= 400: break\n\
    else:\n\
    \tif os.getpid() < 300: os._exit(0)\n\
    \tos.execvp('sleep', ['sleep', 'infinity'])\n\
    os.execvp(sys.argv[1], sys.argv[1:])";

#[test]
fn in_the_full_profile_no_process_of_the_container_is_in_the_way_of_a_resume() {
    let store = Store::new();
    let first = host(&store, "first", Full, COUNTER).start();
    wait_for_output(&first, "line 5");
    let number = first
        .status_field(app(&first, "counter.py").pid, "NSpid")
        .expect("it runs");
    let inner: i32 = number
        .split_whitespace()
        .last()
        .and_then(|word| word.parse().ok())
        .expect("it has a number");
    assert!((301..400).contains(&inner), "{number}");
    evict(&first);

    let crowded = |name: &str, profile| {
        let host = host(&store, name, profile, COUNTER);
        host.run_by(["python3", "-c", CROWD]).start()
    };
    let minimal = crowded("minimal", Minimal);
    assert_eq!(minimal.wait_exit(LIMIT), Exit::Code(171));
    let said = minimal.stderr().text();
    assert!(said.contains("File exists"), "{said}");

    let full = crowded("full", Full);
    goes_on(&full, "line");
    assert!(full.processes().iter().any(|other| other.pid == inner));
    evict(&full);
    assert_counts(&(first.stdout().text() + &full.stdout().text()), None);
}

#[test]
fn in_the_full_profile_the_app_has_no_more_privileges_and_sees_no_more_of_the_machine() {
    let script = "while :; do grep -E '^Cap(Eff|Prm|Inh|Bnd)' /proc/self/status; \
                  echo self $$ $(cut -d' ' -f1 /proc/self/stat); \
                  cat /proc/keys /proc/timer_list | wc -c; \
                  touch /proc/sys/kernel/hostname && echo hostname > /proc/sys/kernel/hostname; \
                  ls /proc | grep -c '^[0-9]'; cat /proc/1/comm; mount -t tmpfs x /mnt; pwd; echo end; sleep 0.05; done 2>&1";
    let store = Store::new();
    let look = |name: &str, profile| {
        let host = host(&store, name, profile, &["bash", "-c", script])
            .cwd("/var")
            .start();
        wait_for_output(&host, "end");
        host
    };
    let capabilities = |host: &Host| {
        let text = host.stdout().text();
        let lines = text.lines().filter(|line| line.starts_with("Cap"));
        lines.take(4).map(str::to_owned).collect::<Vec<_>>()
    };
    let full = look("full", Full);
    evict(&full);
    let text = full.stdout().text();
    let said = |wanted: &str| text.lines().any(|line| line.contains(wanted));
    assert!(said("reprieve") && said("/var"), "{text}");
    assert!(said("Read-only file system"), "{text}");
    assert!(said("permission denied"), "{text}");
    assert!(
        text.lines().any(|line| line == "0"),
        "what is masked stays so: {text}"
    );
    // The shell knows its number, and is not in the supervisor's sight of things.
    let shell = text
        .lines()
        .find_map(|line| line.strip_prefix("self "))
        .and_then(|numbers| numbers.split(' ').next())
        .and_then(|number| number.parse::<i32>().ok());
    assert!(
        shell.is_some_and(|shell| (301..310).contains(&shell)),
        "{text}"
    );
    assert!(!said("hostname") || said("Read-only"), "{text}");

    let resumed = look("resumed", Full);
    wait_for_log(&resumed, "the job is resumed");
    let store = Store::new();
    let minimal = host(&store, "minimal", Minimal, &["bash", "-c", script]).start();
    wait_for_output(&minimal, "end");
    assert_eq!(capabilities(&full), capabilities(&minimal));
    // What CRIU restored has no more either; its first lines may be cut.
    wait_until(LIMIT, "a whole look", || {
        resumed.stdout().text().matches("end\n").count() > 2
    });
    let text = resumed.stdout().text();
    let whole = text.split_once("end\n").expect("it was waited for").1;
    assert!(
        whole.contains("Read-only file system") && whole.contains("permission denied"),
        "{whole}"
    );
    for line in capabilities(&minimal) {
        assert!(whole.contains(&line), "{line}: {whole}");
    }
}

#[test]
fn in_the_full_profile_a_job_on_a_terminal_resumes_on_one() {
    let store = Store::new();
    let app = [
        "bash",
        "-c",
        "echo ready; while read -r line; do echo got $line on $(tty); done",
    ];
    let first = host(&store, "first", Full, &app).terminal(24, 80).start();
    wait_for_output(&first, "ready");
    evict(&first);
    let second = host(&store, "second", Full, &app).terminal(30, 90).start();
    second.stdout().wait_for_line("the resume", LIMIT, |line| {
        line.contains("the job is resumed")
    });
    second.write("hello\n");
    wait_for_output(&second, "got hello on /dev/pts/");
    evict(&second);
}

#[test]
fn in_the_full_profile_orphans_and_what_is_left_are_seen_to() {
    let store = Store::new();
    let left = host(
        &store,
        "left",
        Full,
        &["python3", "/apps/feature.py", "orphan"],
    )
    .start();
    wait_for_output(&left, "ready");
    let ran = checkpoint(&left);
    assert!(
        ran.code != 0 && ran.stderr.contains("would be left out"),
        "{}",
        ran.stderr
    );
    left.destroy();

    // What the app leaves behind is told to end; then so is everything.
    let store = Store::new();
    let ended = host(
        &store,
        "ended",
        Full,
        &["bash", "-c", "(trap 'echo told; exit' TERM; echo ready; while :; do sleep 0.05; done) & exec sleep 0.3"],
    )
    .start();
    assert_eq!(ended.wait_exit(LIMIT), Exit::Code(0));
    assert!(
        ended.stdout().text().contains("told"),
        "{}",
        ended.stderr().text()
    );
}

#[test]
fn the_profile_is_chosen_by_what_the_container_has_or_refused_when_asked_for() {
    let store = Store::new();
    let ask = |name: &str, profile: &str, capabilities: &[&str]| {
        let mut builder = store.host_with(name, &["--profile", profile], COUNTER);
        for capability in capabilities {
            builder = builder.add_capability(*capability);
        }
        builder.start()
    };
    let both = ["CAP_SYS_ADMIN", "CAP_SYS_TIME"];
    for (asked, capabilities, expected) in [
        ("auto", &both[..], "full"),
        ("auto", &both[..1], "minimal"),
        ("auto", &[], "minimal"),
        ("minimal", &both, "minimal"),
        ("full", &both, "full"),
    ] {
        let host = ask("host", asked, capabilities);
        assert_eq!(chosen(&host), expected, "{asked} {capabilities:?}");
        wait_for_output(&host, "line");
        let shown = host.exec([
            "reprieve",
            "doctor",
            "--json",
            "--no-rehearsal",
            "--profile",
            asked,
        ]);
        let shown: Value = serde_json::from_str(&shown.stdout).expect("it is JSON");
        let findings = shown["findings"].as_array().expect("it is a list");
        let profile = findings.iter().find(|one| one["check"] == "profile");
        let found = profile.expect("it is looked at")["found"].as_str();
        assert!(
            found.is_some_and(|found| found.starts_with(expected)),
            "{found:?}"
        );
        evict(&host);
        let shown = ask("show", "minimal", &[]);
        wait_for_output(&shown, "line");
        let manifest = shown.exec_ok([
            "reprieve",
            "show",
            "newest",
            "--json",
            "--store",
            "file:///snapshots",
            "--job",
            "job",
        ]);
        let manifest: Value = serde_json::from_str(&manifest).expect("it is JSON");
        let stored = manifest["taken_on"]["profile"]
            .as_str()
            .unwrap_or("minimal");
        assert_eq!(stored, expected, "{manifest}");
        shown.destroy();
    }
    let refused = ask("refused", "full", &both[1..]);
    assert_eq!(refused.wait_exit(LIMIT), Exit::Code(170));
    let said = refused.stderr().text();
    assert!(
        said.contains("the full profile cannot be had") && said.contains("SYS_ADMIN is missing"),
        "{said}"
    );
}

/// What a row of the table has for an app, and on what host it goes on.
enum Trial {
    /// Of feature.py, which says `on` again and again.
    Feature(&'static str),
    /// A process of the container has the app's number on the next host.
    Crowd,
    /// The next host's clock is so many seconds ahead of the first one's, or behind.
    Clock(i64),
}
use Trial::{Clock, Crowd, Feature};

/// What, the trial, and why it is as the trials show.
const ROWS: [(&str, Trial, &str); 21] = [
    ("Memory, threads, files, pipes", Feature("nothing"), ""),
    (
        "Other processes in the container have the app's numbers at the resume",
        Crowd,
        "minimal: a process gets its number back or CRIU fails; full: the app has numbers of its own",
    ),
    (
        "The next host booted later: its CLOCK_MONOTONIC is 10 hours behind",
        Clock(-36_000),
        "minimal: by a library, for programs that are [dynamically linked](limits.md#time); full: a time namespace",
    ),
    (
        "The next host booted earlier: its CLOCK_MONOTONIC is 10 hours ahead",
        Clock(36_000),
        "the same",
    ),
    (
        "System V shared memory",
        Feature("shm"),
        "it belongs to an IPC namespace, which CRIU stores only if it is not its own",
    ),
    (
        "POSIX message queues",
        Feature("queue"),
        "CRIU stores no message queue",
    ),
    (
        "A child of another user (`setpriv`, `su`, nginx's workers)",
        Feature("user"),
        "by Docker's default capabilities; CRIU is helped to its limits",
    ),
    ("A child of another group", Feature("group"), "the same"),
    (
        "Established TCP, both ends in the job",
        Feature("tcp-pair"),
        "closed, in either profile: keeping them needs NET_ADMIN, and the same address",
    ),
    (
        "A user namespace inside (a browser's sandbox, rootless containers)",
        Feature("user-namespace"),
        "CRIU stores no user namespace below the first one",
    ),
    (
        "A UTS or IPC namespace inside",
        Feature("uts-namespace"),
        "CRIU stores these only of the first process",
    ),
    (
        "A network namespace inside",
        Feature("net-namespace"),
        "it takes a user namespace to make one",
    ),
    ("io_uring", Feature("io_uring"), "CRIU has no image for it"),
    (
        "inotify",
        Feature("inotify-tmpfs"),
        "needs DAC_READ_SEARCH, whatever the profile",
    ),
    (
        "A seccomp filter of the app's own",
        Feature("seccomp"),
        "the kernel lets only who has SYS_ADMIN suspend it",
    ),
    (
        "Orphans: processes whose parent ended",
        Feature("orphan"),
        "they are not below the app any more",
    ),
    ("An open file of /proc", Feature("proc-file"), ""),
    ("A pseudoterminal of the app's own", Feature("pty"), ""),
    ("A descriptor of a process (pidfd)", Feature("pidfd"), ""),
    ("A descriptor of a namespace", Feature("namespace-file"), ""),
    ("A stopped child, a zombie", Feature("stopped"), ""),
];

fn outcome(trial: &Trial, profile: Profile) -> &'static str {
    let store = Store::new();
    let clocks = ["python3", "/apps/clocks.py"];
    let feature;
    let (app, said, options, up_for): (&[&str], _, &[&str], [i64; 2]) = match trial {
        Feature(thing) => {
            feature = ["python3", "/apps/feature.py", thing];
            (&feature, "on", &[], [0, 0])
        }
        Crowd => (COUNTER, "line", &[], [0, 0]),
        Clock(by) => (
            &clocks,
            "at",
            &["--on-clock-behind", "refuse"],
            [(-by).max(0), (*by).max(0)],
        ),
    };
    let start = |name: &str, up_for: i64, crowd: bool| {
        let builder = host_with(&store, name, profile, options, app);
        let builder = builder.up_for_longer(up_for.unsigned_abs());
        match crowd {
            true => builder.run_by(["python3", "-c", CROWD]),
            false => builder,
        }
        .start()
    };
    let first = start("first", up_for[0], false);
    wait_for_output(&first, said);
    if checkpoint(&first).code != 0 {
        return "no: the checkpoint is refused, and the job runs on";
    }
    evict(&first);
    let next = start("next", up_for[1], matches!(trial, Crowd));
    let told = next
        .stderr()
        .wait_for_line("how the resume ends", LIMIT, |line| {
            line.contains("the job is resumed") || line.contains("exit code: 171")
        });
    if !told.contains("the job is resumed") {
        return "no: the resume is refused";
    }
    wait_for_output(&next, said);
    let jump = |before: &Host, after: &Host| {
        let (last, first) = (readings(before).pop(), readings(after));
        first
            .first()
            .zip(last)
            .map(|(first, last)| first[0] - last[0])
    };
    match trial {
        Clock(_) if jump(&first, &next).is_none_or(|jump| jump > 3_600_000_000_000) => {
            "yes, with a jump ahead"
        }
        _ => "yes",
    }
}

/// The table of docs/profiles.md is what happens. `UPDATE_DOCS=1` writes it anew.
#[test]
fn the_table_of_the_profiles_is_what_happens() {
    const MARKS: [&str; 2] = ["<!-- made by tests/profiles.rs -->\n", "<!-- end -->\n"];
    let mut table = "| | Minimal | Full | Why |\n|---|---|---|---|\n".to_owned();
    for (what, trial, why) in &ROWS {
        let [minimal, full] = [Minimal, Full].map(|profile| outcome(trial, profile));
        table += &format!("| {what} | {minimal} | {full} | {why} |\n");
    }
    let path = harness::project_path("docs/profiles.md");
    let text = std::fs::read_to_string(&path).expect("it is there");
    let (before, rest) = text.split_once(MARKS[0]).expect("it has its marks");
    let (stored, after) = rest.split_once(MARKS[1]).expect("it has its marks");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let [begin, end] = MARKS;
        let renewed = format!("{before}{begin}{table}{end}{after}");
        std::fs::write(&path, renewed).expect("the docs directory can be written");
    } else {
        assert_eq!(
            stored, table,
            "docs/profiles.md; UPDATE_DOCS=1 writes it anew"
        );
    }
}

#[test]
fn processes_of_several_users_go_on_in_either_profile() {
    const NAMES: [&str; 4] = ["root", "user-33", "user-1000", "su"];
    for profile in [Minimal, Full] {
        let store = Store::new();
        let shared = tempfile::tempdir().expect("a temporary directory");
        std::fs::set_permissions(
            shared.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o777),
        )
        .expect("it is ours");
        let mut all = String::new();
        for name in ["first", "second", "third"] {
            let host = host(
                &store,
                name,
                profile,
                &["python3", "/apps/users.py", "/shared"],
            )
            .bind(shared.path(), "/shared")
            .start();
            if name != "first" {
                wait_for_log(&host, "the job is resumed");
            }
            wait_until(LIMIT, "lines of all", || {
                let text = host.stdout().text();
                NAMES.iter().all(|name| {
                    let own = |line: &&str| line.starts_with(&format!("{name} "));
                    text.lines().filter(own).count() > 5
                })
            });
            assert_doctor_knows_no_obstacle(&host);
            evict(&host);
            all += &host.stdout().text();
        }
        for name in NAMES {
            let own = all
                .lines()
                .filter_map(|line| line.strip_prefix(&format!("{name} ")));
            let (mut last, mut who) = (0, None);
            for line in own {
                let (number, is) = line.split_once(' ').expect("both are there");
                let number: u64 = number.parse().expect("it is a number");
                assert_eq!(number, last + 1, "{profile:?} {name}");
                assert_eq!(is, *who.get_or_insert(is), "{profile:?} {name} {number}");
                last = number;
            }
            assert!(last > 15, "{profile:?} {name}: {last}");
        }
    }
}

#[track_caller]
fn assert_doctor_knows_no_obstacle(host: &Host) {
    let wanted = [
        ("job", "nothing known stands in the way"),
        ("users", "as several users, in either profile"),
    ];
    assert_doctor_finds(host, "users.py", &wanted);
}

#[track_caller]
fn assert_doctor_finds(host: &Host, name: &str, wanted: &[(&str, &str)]) {
    let pid = app(host, name).pid.to_string();
    let ran = host.exec([
        "reprieve",
        "doctor",
        "--no-rehearsal",
        "--json",
        "--pid",
        &pid,
    ]);
    let answer: Value = serde_json::from_str(&ran.stdout).expect("it is JSON");
    let findings = answer["findings"].as_array().expect("it is a list");
    for (check, wanted) in wanted {
        let finding = findings.iter().find(|one| one["check"] == *check);
        let found = finding.expect("it is looked at")["found"].as_str();
        assert!(
            found.is_some_and(|found| found.contains(wanted)),
            "{answer}"
        );
    }
}

#[test]
fn daemons_go_on_where_the_app_takes_in_orphans() {
    for profile in [Minimal, Full] {
        let store = Store::new();
        let start = |name| {
            let app = ["python3", "/apps/daemons.py"];
            host_with(&store, name, profile, &["--orphans", "app"], &app).start()
        };
        let say = |host: &Host, daemon: usize| {
            let wanted = format!("daemon {daemon} of 301");
            wait_until(LIMIT, &wanted, || {
                host.stdout().text().matches(&wanted).count() > 5
            });
        };
        for (turn, name) in ["first", "second", "third"].into_iter().enumerate() {
            let host = start(name);
            // Those from before, each a child of the app again, and one that was made here.
            for daemon in 1..=turn {
                say(&host, daemon);
            }
            if turn > 0 {
                host.exec_ok(["touch", "/tmp/more"]);
            }
            say(&host, turn + 1);
            evict(&host);
        }
        let last = start("last");
        say(&last, 3);
        checkpoint_ok(&last);
        // They end as its children.
        last.exec_ok(["touch", "/tmp/end"]);
        wait_for_output(&last, "none left");
    }
}

/// What the status says of the clocks, as JSON and to people.
#[track_caller]
fn assert_clocks(host: &Host, by: &str, said: &str, by_host: &[&str]) {
    let json = || -> Value {
        let text = host.exec_ok(["reprieve", "status", "--json"]);
        serde_json::from_str::<Value>(&text).expect("it is JSON")["clocks"].clone()
    };
    // The first look may be under way.
    wait_until(LIMIT, "a look at the clocks", || !json().is_null());
    let clocks = json();
    assert_eq!(clocks["by"], by, "{clocks}");
    assert_eq!(clocks["by_host"], serde_json::json!(by_host), "{clocks}");
    let text = host.exec_ok(["reprieve", "status"]);
    let line = text.lines().find(|line| line.starts_with("clocks "));
    assert!(line.is_some_and(|line| line.contains(said)), "{text}");
}

#[test]
fn in_the_full_profile_files_travel() {
    let script = "mkdir -p /srv/app; while :; do echo x >> /srv/app/log; \
                  echo $(wc -l < /srv/app/log) written; sleep 0.05; done";
    let store = Store::new();
    let start = |name: &str| {
        store
            .host_with(name, &["--preserve", "auto"], &["bash", "-c", script])
            .add_capability("CAP_SYS_ADMIN")
            .add_capability("CAP_SYS_TIME")
            .start()
    };
    let mut text = String::new();
    for name in ["first", "second", "third"] {
        let host = start(name);
        assert_eq!(chosen(&host), "full");
        wait_until(LIMIT, "ten lines", || {
            host.stdout().text().lines().count() > 10
        });
        evict(&host);
        text += &host.stdout().text();
    }
    for (number, line) in (1..).zip(text.lines()) {
        assert_eq!(line, format!("{number} written"), "{text}");
    }
}

#[test]
fn the_doctor_rehearses_in_the_full_profile_beside_a_job() {
    let store = Store::new();
    let host = host(&store, "host", Full, COUNTER).start();
    wait_for_output(&host, "line 5");
    let ran = host.exec(["reprieve", "doctor", "--json", "--profile", "full"]);
    let answer: Value = serde_json::from_str(&ran.stdout).expect("it is JSON");
    let findings = answer["findings"].as_array().expect("it is a list");
    let held = findings.iter().find(|one| one["check"] == "rehearsal");
    let found = held.expect("it was held")["found"].as_str();
    assert!(
        found.is_some_and(|found| found.contains("resumed")),
        "{answer}"
    );
    evict(&host);
}
