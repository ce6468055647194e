//! What a container expects of its first process: the app's end is ours, signals reach the app, nothing is left behind,
//! and the app finds the world as if we were not there. The cases are those of tini's and dumb-init's own test suites,
//! and those that their users had to report. No store is named here, so SIGTERM is a signal like any other.

mod harness;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use harness::{Builder, Exit, Host, LIMIT, Rootfs, Stdio, wait_for, wait_until};
use serde_json::Value;

/// Where the worker runs: most of what it owes to the app must not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// As PID 1, where the kernel gives it all orphans and drops signals it has no handler for.
    First,
    /// Below a shell that is PID 1, where it has to ask for orphans.
    Below,
}

const PLACES: [Place; 2] = [Place::First, Place::Below];

/// A host with the worker in it.
struct Run {
    host: Host,
    place: Place,
}

impl Run {
    #[track_caller]
    fn start(place: Place, name: &str, options: &[&str], app: &[&str]) -> Self {
        Self::start_on(Host::builder(name), place, options, app)
    }

    #[track_caller]
    fn start_on(builder: Builder, place: Place, options: &[&str], app: &[&str]) -> Self {
        let command = ["reprieve", "run"]
            .iter()
            .chain(options)
            .chain(&["--"])
            .chain(app)
            .copied();
        let host = match place {
            Place::First => builder.args(command).start(),
            // The shell passes on neither signals nor its own place: it only waits and repeats the code.
            Place::Below => {
                let shell = ["sh", "-c", "\"$@\"; exit $?", "sh"];
                builder.args(shell.into_iter().chain(command)).start()
            }
        };
        Self { host, place }
    }

    /// The worker's pid inside.
    #[track_caller]
    fn worker(&self) -> i32 {
        match self.place {
            Place::First => 1,
            Place::Below => self.host.wait_for_process("reprieve run", LIMIT).pid,
        }
    }

    /// The app's pid inside: it leads a session and is the worker's child.
    #[track_caller]
    fn app(&self) -> i32 {
        let worker = self.worker();
        wait_for(LIMIT, "the app", || {
            let processes = self.host.processes();
            processes
                .iter()
                .find(|process| process.parent == worker && process.session == process.pid)
                .map(|app| app.pid)
        })
    }

    #[track_caller]
    fn signal(&self, signal: i32) {
        self.host.signal_process(self.worker(), signal);
    }

    #[track_caller]
    fn wait_for(&self, line: &str) {
        self.host
            .stdout()
            .wait_for_line(line, LIMIT, |found| found == line);
    }

    #[track_caller]
    fn code(&self) -> i32 {
        match self.host.wait_exit(LIMIT) {
            Exit::Code(code) => code,
            Exit::Signal(signal) => {
                panic!("{:?}: the worker was killed by signal {signal}", self.place)
            }
        }
    }

    #[track_caller]
    fn no_zombies(&self) {
        wait_until(LIMIT, "no zombie", || {
            !self
                .host
                .processes()
                .iter()
                .any(harness::Process::is_zombie)
        });
    }
}

/// What `facts.py` finds.
#[track_caller]
fn facts(builder: Builder, place: Place) -> Value {
    let run = Run::start_on(builder, place, &[], &["python3", "/apps/facts.py"]);
    assert_eq!(run.code(), 0, "{place:?}");
    let line = run
        .host
        .stdout()
        .wait_for_line("facts", LIMIT, |line| line.starts_with('{'));
    serde_json::from_str(&line).expect("facts.py prints JSON")
}

// --- how the app ends --------------------------------------------------------------------------------------------------

#[test]
fn every_exit_code_passes_through() {
    let host = Host::builder("codes").start();
    let script = "for n in $(seq 0 255); do reprieve run -- sh -c \"exit $n\" 2>> /tmp/log; echo $n $?; done";
    let ran = host
        .spawn(["bash", "-c", script])
        .wait(Duration::from_secs(240));
    let expected: Vec<String> = (0..=255).map(|n| format!("{n} {n}")).collect();
    assert_eq!(
        ran.stdout.lines().collect::<Vec<_>>(),
        expected,
        "{}",
        host.exec_ok(["tail", "/tmp/log"])
    );
}

#[test]
fn exit_codes_pass_through_as_pid_1() {
    for code in ["0", "1", "42", "127", "255"] {
        let run = Run::start(
            Place::First,
            "code",
            &[],
            &["sh", "-c", &format!("exit {code}")],
        );
        assert_eq!(run.code().to_string(), code);
    }
}

#[test]
fn an_app_killed_by_a_signal_gives_128_and_its_number() {
    for place in PLACES {
        for (name, number) in [
            ("HUP", 1),
            ("QUIT", 3),
            ("ABRT", 6),
            ("KILL", 9),
            ("SEGV", 11),
            ("TERM", 15),
        ] {
            let run = Run::start(place, "killed", &[], &["python3", "/apps/die.py", name]);
            assert_eq!(run.code(), 128 + number, "{place:?} {name}");
        }
    }
}

#[test]
fn a_missing_app_gives_127_and_names_it() {
    let directory = tempfile::tempdir().expect("there is room for a directory");
    let script = directory.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").expect("the directory is ours");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))
        .expect("the file is ours");
    for place in PLACES {
        for app in ["/no/such/app", "no-such-app", "/script"] {
            let builder = Host::builder("missing").bind_read_only(&script, "/script");
            let run = Run::start_on(builder, place, &[], &[app]);
            assert_eq!(run.code(), 127, "{place:?} {app}");
            let message = run.host.stderr().text();
            assert!(
                message.contains(app),
                "{place:?}: {app} is not named in:\n{message}"
            );
        }
    }
}

#[test]
fn an_app_that_cannot_be_executed_gives_126_and_is_named() {
    for place in PLACES {
        // No permission, and a directory.
        for app in ["/apps/die.py", "/usr"] {
            let run = Run::start(place, "refused", &[], &[app]);
            assert_eq!(run.code(), 126, "{place:?} {app}");
            let message = run.host.stderr().text();
            assert!(
                message.contains(app),
                "{place:?}: {app} is not named in:\n{message}"
            );
        }
    }
}

#[test]
fn the_worker_starts_where_there_is_no_c_library_and_where_there_is_nothing() {
    let builder = Host::builder("small").rootfs(Rootfs::Busybox);
    assert_eq!(
        Run::start_on(builder, Place::First, &[], &["/bin/sh", "-c", "exit 9"]).code(),
        9
    );
    let bare = Host::builder("bare").rootfs(Rootfs::Nothing);
    let run = Run::start_on(bare, Place::First, &[], &["/no/such/app"]);
    assert_eq!(run.code(), 127);
}

#[test]
fn an_app_of_an_ordinary_user_without_capabilities_runs_as_well() {
    let run = Run::start_on(
        Host::builder("user").user(1000, 1000),
        Place::First,
        &[],
        &["sh", "-c", "id -u; exit 8"],
    );
    assert_eq!(run.code(), 8);
    assert_eq!(run.host.stdout().lines(), ["1000"]);
}

// --- signals -----------------------------------------------------------------------------------------------------------

/// Those that a processor raises stay with the worker, as in tini: a fault of its own must end it with a message.
const FAULTS: [i32; 6] = [
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
];

#[test]
fn every_signal_reaches_the_app_and_its_group() {
    let never = [libc::SIGKILL, libc::SIGSTOP, libc::SIGCHLD];
    for place in PLACES {
        let run = Run::start(place, "signals", &[], &["python3", "/apps/signals.py", "1"]);
        let both = |said: &str| {
            for role in ["main", "child0"] {
                let wanted = format!(" {role} {said}");
                run.host
                    .stdout()
                    .wait_for_line(&wanted, LIMIT, |line| line.ends_with(&wanted));
            }
        };
        both("ready");
        let worker = run.worker();
        // Real-time signals of the lowest, a middle and the highest number as well.
        let signals = (1..=31).chain([34, 50, 64]);
        for signal in signals.filter(|signal| !never.contains(signal) && !FAULTS.contains(signal)) {
            run.host.signal_process(worker, signal);
            both(&format!("got {signal}"));
        }
    }
}

#[test]
fn with_signal_target_child_only_the_app_gets_it() {
    for place in PLACES {
        let run = Run::start(
            place,
            "child",
            &["--signal-target", "child"],
            &["python3", "/apps/signals.py", "1"],
        );
        run.host
            .stdout()
            .wait_for_line("child ready", LIMIT, |line| line.ends_with("child0 ready"));
        run.host
            .stdout()
            .wait_for_line("main ready", LIMIT, |line| line.ends_with("main ready"));
        run.signal(libc::SIGUSR1);
        run.host
            .stdout()
            .wait_for_line("main got 10", LIMIT, |line| line.ends_with("main got 10"));
        // A signal straight to the child comes after whatever was sent to the group before.
        let app = run.app();
        let child = run
            .host
            .processes()
            .into_iter()
            .find(|process| process.parent == app)
            .expect("it is ready")
            .pid;
        run.host.signal_process(child, libc::SIGUSR2);
        run.host
            .stdout()
            .wait_for_line("child0 got 12", LIMIT, |line| {
                line.ends_with("child0 got 12")
            });
        assert!(
            !run.host.stdout().text().contains("child0 got 10"),
            "{place:?}"
        );
    }
}

#[test]
fn suspending_signals_do_not_stop_the_worker() {
    for place in PLACES {
        let run = Run::start(place, "suspend", &[], &["python3", "/apps/signals.py"]);
        run.host
            .stdout()
            .wait_for_line("ready", LIMIT, |line| line.ends_with("main ready"));
        let worker = run.worker();
        for (signal, after) in [
            (libc::SIGTSTP, libc::SIGUSR1),
            (libc::SIGTTIN, libc::SIGUSR2),
            (libc::SIGTTOU, libc::SIGHUP),
        ] {
            run.host.signal_process(worker, signal);
            run.host.signal_process(worker, after);
            let wanted = format!("main got {after}");
            run.host
                .stdout()
                .wait_for_line(&wanted, LIMIT, |line| line.ends_with(&wanted));
            let state = run.host.status_field(worker, "State");
            assert!(
                !state.as_deref().unwrap_or("gone").starts_with('T'),
                "{place:?}: {state:?} after {signal}"
            );
        }
    }
}

#[test]
fn sigterm_without_a_store_is_simply_passed_on() {
    for place in PLACES {
        let run = Run::start(place, "term", &[], &["sleep", "1000"]);
        run.host.wait_for_process("sleep 1000", LIMIT);
        run.signal(libc::SIGTERM);
        assert_eq!(run.code(), 143, "{place:?}");
    }
}

#[test]
fn an_app_that_ignores_sigterm_is_left_alone() {
    for place in PLACES {
        let run = Run::start(
            place,
            "stubborn",
            &["--stop-grace", "0s"],
            &["python3", "/apps/stubborn.py"],
        );
        run.wait_for("ready");
        run.signal(libc::SIGTERM);
        run.signal(libc::SIGUSR1);
        assert_eq!(
            run.code(),
            128 + libc::SIGUSR1,
            "{place:?}: SIGTERM must not have ended it"
        );
    }
}

#[test]
fn a_stopped_app_still_gets_its_sigterm() {
    for place in PLACES {
        let run = Run::start(place, "stopped", &[], &["sleep", "1000"]);
        let app = run.host.wait_for_process("sleep 1000", LIMIT).pid;
        run.host.signal_process(app, libc::SIGSTOP);
        wait_until(LIMIT, "a stopped app", || {
            run.host
                .status_field(app, "State")
                .is_some_and(|state| state.starts_with('T'))
        });
        run.signal(libc::SIGTERM);
        assert_eq!(run.code(), 143, "{place:?}");
    }
}

#[test]
fn a_shell_with_a_trap_runs_it_at_once_since_its_foreground_child_gets_the_signal_too() {
    let script = "trap 'echo trapped; exit 3' TERM; echo ready; sleep 1000; echo not reached";
    for place in PLACES {
        let run = Run::start(place, "trap", &[], &["bash", "-c", script]);
        run.host.wait_for_process("sleep 1000", LIMIT);
        run.signal(libc::SIGTERM);
        assert_eq!(run.code(), 3, "{place:?}");
        assert_eq!(run.host.stdout().lines(), ["ready", "trapped"], "{place:?}");
    }
}

// --- processes ---------------------------------------------------------------------------------------------------------

#[test]
fn orphans_leave_no_zombie() {
    for place in PLACES {
        let run = Run::start(
            place,
            "orphans",
            &[],
            &["python3", "/apps/orphans.py", "120"],
        );
        run.wait_for("orphans ended");
        run.no_zombies();
        run.signal(libc::SIGTERM);
        assert_eq!(run.code(), 0, "{place:?}");
    }
}

#[test]
fn orphans_come_to_the_worker() {
    for place in PLACES {
        let script = "(sleep 1000 &) ; echo ready; exec sleep 2000";
        let run = Run::start(place, "adopt", &[], &["sh", "-c", script]);
        run.wait_for("ready");
        let worker = run.worker();
        wait_until(LIMIT, "an adopted orphan", || {
            run.host.wait_for_process("sleep 1000", LIMIT).parent == worker
        });
        let app = run.host.wait_for_process("sleep 2000", LIMIT);
        assert_eq!(app.parent, worker, "{place:?}");
    }
}

#[test]
fn a_forker_at_full_speed_leaves_no_zombie() {
    for place in PLACES {
        let script = "python3 /apps/forker.py 2 57; echo code $?; exec sleep 1000";
        let run = Run::start(place, "forker", &[], &["sh", "-c", script]);
        run.wait_for("code 57");
        run.no_zombies();
        let worker = run.worker();
        // Apart from the shell above, if there is one.
        wait_until(LIMIT, "only the worker and its app", || {
            run.host
                .processes()
                .iter()
                .all(|process| process.pid == 1 || process.pid == worker || process.name == "sleep")
        });
    }
}

#[test]
fn the_code_of_a_forker_is_not_lost_among_its_childrens() {
    for place in PLACES {
        let run = Run::start(
            place,
            "forker",
            &[],
            &["python3", "/apps/forker.py", "1", "57"],
        );
        assert_eq!(run.code(), 57, "{place:?}");
    }
}

#[test]
fn a_daemon_lives_as_long_as_the_app_and_then_gets_sigterm() {
    for place in PLACES {
        let directory = tempfile::tempdir().expect("there is room for a directory");
        let log =
            || std::fs::read_to_string(directory.path().join("daemon.log")).unwrap_or_default();
        let builder = Host::builder("daemon").bind(directory.path(), "/tmp");
        let run = Run::start_on(builder, place, &[], &["python3", "/apps/daemonizer.py"]);
        run.wait_for("ready");
        let app = run.app();
        let daemon = run.host.processes().into_iter().find(|process| {
            process.session != app && process.command_line == "python3 /apps/daemonizer.py"
        });
        assert_eq!(
            daemon.map(|daemon| daemon.parent),
            Some(run.worker()),
            "{place:?}: daemons are ours"
        );
        let before = log().lines().count();
        wait_until(LIMIT, "more ticks", || log().lines().count() > before + 2);
        run.host.signal_process(app, libc::SIGTERM);
        assert_eq!(run.code(), 0, "{place:?}");
        assert!(
            log().ends_with("daemon got TERM\n"),
            "{place:?}:\n{}",
            log()
        );
    }
}

#[test]
fn a_job_whose_first_process_only_starts_a_daemon_ends_with_its_code() {
    for place in PLACES {
        let directory = tempfile::tempdir().expect("there is room for a directory");
        let builder = Host::builder("daemon").bind(directory.path(), "/tmp");
        let run = Run::start_on(
            builder,
            place,
            &[],
            &["python3", "/apps/daemonizer.py", "7"],
        );
        assert_eq!(run.code(), 7, "{place:?}");
        let log = std::fs::read_to_string(directory.path().join("daemon.log"))
            .expect("the daemon made it");
        assert!(log.ends_with("daemon got TERM\n"), "{place:?}:\n{log}");
    }
}

#[test]
fn what_the_app_leaves_behind_gets_sigterm_a_grace_and_then_sigkill() {
    for place in PLACES {
        let builder = Host::builder("leftover").stdin(Stdio::Pipe);
        let run = Run::start_on(
            builder,
            place,
            &["--stop-grace", "2s"],
            &["python3", "/apps/leftover.py", "21"],
        );
        run.wait_for("ready");
        let asked = Instant::now();
        run.host.write("go\n");
        run.wait_for("leftover got TERM");
        assert_eq!(run.code(), 21, "{place:?}");
        let took = asked.elapsed();
        assert!(
            took >= Duration::from_secs(2),
            "{place:?}: killed after only {took:?}"
        );
        assert!(
            took < Duration::from_secs(12),
            "{place:?}: only after {took:?}"
        );
    }
}

// --- what the app finds ------------------------------------------------------------------------------------------------

#[test]
fn the_app_leads_its_own_session_and_group() {
    for place in PLACES {
        let facts = facts(Host::builder("session"), place);
        assert_eq!(facts["session"], facts["pid"], "{place:?}");
        assert_eq!(facts["group"], facts["pid"], "{place:?}");
        assert_eq!(
            facts["parent_command"][0], "reprieve",
            "{place:?}: nobody stands between us and the app"
        );
    }
}

#[test]
fn the_apps_signals_are_neither_blocked_nor_ignored() {
    // The C library keeps 32 and 33 to itself, so nobody can reset them when a test machine ignores them.
    const RESERVED: u64 = 1 << 31 | 1 << 32;
    for place in PLACES {
        // Not Python, which changes some of them itself.
        let command = [
            "env",
            "--ignore-signal=HUP,USR1,PIPE",
            "--block-signal=INT,TERM,CHLD",
            "reprieve",
            "run",
            "--",
        ];
        let app = ["cat", "/proc/self/status"];
        let builder = Host::builder("mask");
        let host = match place {
            Place::First => builder.args(command.into_iter().chain(app)).start(),
            Place::Below => builder
                .args(
                    ["sh", "-c", "\"$@\"; exit $?", "sh"]
                        .into_iter()
                        .chain(command)
                        .chain(app),
                )
                .start(),
        };
        assert_eq!(host.wait_exit(LIMIT), Exit::Code(0), "{place:?}");
        for field in ["SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd"] {
            let line = host
                .stdout()
                .wait_for_line(field, LIMIT, |line| line.starts_with(field));
            let signals = line.split_whitespace().last().expect("it has two words");
            let signals = u64::from_str_radix(signals, 16).expect("it is a set in hexadecimal");
            assert_eq!(signals & !RESERVED, 0, "{place:?}: {line}");
        }
    }
}

#[test]
fn the_worker_leaves_no_core_file_and_the_app_may() {
    // Blocks of 512 bytes.
    let script = "ulimit -S -c 4096 && exec reprieve run -- cat /proc/1/limits /proc/self/limits";
    let host = Host::builder("core").args(["sh", "-c", script]).start();
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(0));
    let said = host.stdout().text();
    let limits: Vec<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix("Max core file size"))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(limits, ["1", "2097152"], "{said}");
}

#[test]
fn the_app_starts_in_the_working_directory_that_was_asked_for() {
    for place in PLACES {
        let facts = facts(Host::builder("directory").cwd("/usr/share"), place);
        assert_eq!(facts["directory"], "/usr/share", "{place:?}");
    }
}

#[test]
fn no_descriptor_leaks_into_the_app() {
    for place in PLACES {
        let facts = facts(Host::builder("descriptors"), place);
        let found: BTreeSet<&str> = facts["descriptors"]
            .as_object()
            .expect("it is a table")
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(
            found,
            BTreeSet::from(["0", "1", "2"]),
            "{place:?}: {}",
            facts["descriptors"]
        );
    }
}

#[test]
fn the_app_gets_the_environment_without_the_workers_own_part() {
    for place in PLACES {
        let builder = Host::builder("environment")
            .env("GREETING", "hello = world")
            .env("REPRIEVE_STOP_GRACE", "3s");
        let facts = facts(builder, place);
        let environment = facts["environment"].as_object().expect("it is a table");
        assert_eq!(environment["GREETING"], "hello = world", "{place:?}");
        assert_eq!(environment["HOME"], "/root", "{place:?}");
        assert!(
            environment["PATH"]
                .as_str()
                .is_some_and(|path| path.contains("/usr/bin")),
            "{place:?}"
        );
        let ours: Vec<&String> = environment
            .keys()
            .filter(|name| name.starts_with("REPRIEVE_"))
            .collect();
        assert!(ours.is_empty(), "{place:?}: {ours:?}");
    }
}

#[test]
fn arguments_arrive_as_they_are() {
    for place in PLACES {
        let odd = ["", " ", "--store", "a b", "$HOME", "--", "ü"];
        let app: Vec<&str> = ["python3", "/apps/facts.py"]
            .into_iter()
            .chain(odd)
            .collect();
        let run = Run::start(place, "arguments", &[], &app);
        assert_eq!(run.code(), 0, "{place:?}");
        let facts: Value =
            serde_json::from_str(&run.host.stdout().text()).expect("facts.py prints JSON");
        assert_eq!(facts["arguments"], serde_json::json!(odd), "{place:?}");
    }
}

// --- streams -----------------------------------------------------------------------------------------------------------

#[test]
fn stdin_reaches_the_app_and_so_does_its_end() {
    for place in PLACES {
        let run = Run::start_on(
            Host::builder("stdin").stdin(Stdio::Pipe),
            place,
            &[],
            &["cat"],
        );
        run.host.write("first\n");
        run.wait_for("first");
        run.host.write("second\n");
        run.host.close_stdin();
        assert_eq!(run.code(), 0, "{place:?}");
        assert_eq!(run.host.stdout().lines(), ["first", "second"], "{place:?}");
    }
}

#[test]
fn much_input_arrives_whole() {
    for place in PLACES {
        let run = Run::start_on(
            Host::builder("input").stdin(Stdio::Pipe),
            place,
            &[],
            &["wc", "-c"],
        );
        let line = "0123456789abcde\n";
        run.host.write(&line.repeat(4 << 16));
        run.host.close_stdin();
        assert_eq!(run.code(), 0, "{place:?}");
        assert_eq!(run.host.stdout().lines(), ["4194304"], "{place:?}");
    }
}

#[test]
fn the_last_output_before_the_end_is_not_lost() {
    const LINES: usize = 50_000;
    for place in PLACES {
        let count = LINES.to_string();
        let run = Run::start(
            place,
            "output",
            &[],
            &["python3", "/apps/counter.py", "--count", &count],
        );
        assert_eq!(run.code(), 0, "{place:?}");
        let lines = run.host.stdout().lines();
        let wrong = lines
            .iter()
            .enumerate()
            .find(|(index, line)| **line != format!("line {}", index + 1));
        assert_eq!((lines.len(), wrong), (LINES, None), "{place:?}");
    }
}

#[test]
fn output_and_errors_stay_apart() {
    for place in PLACES {
        let run = Run::start(place, "apart", &[], &["sh", "-c", "echo out; echo err >&2"]);
        assert_eq!(run.code(), 0, "{place:?}");
        assert_eq!(run.host.stdout().lines(), ["out"], "{place:?}");
        assert!(
            run.host.stderr().lines().contains(&"err".to_owned()),
            "{place:?}"
        );
    }
}

#[test]
fn output_that_nobody_reads_does_not_end_the_app() {
    for place in PLACES {
        for stdout in [Stdio::BrokenPipe, Stdio::Closed, Stdio::Null] {
            let builder = Host::builder("unread").stdout(stdout.clone());
            let app = [
                "sh",
                "-c",
                "python3 /apps/counter.py --count 20000; echo counter $? >&2",
            ];
            let run = Run::start_on(builder, place, &[], &app);
            assert_eq!(run.code(), 0, "{place:?} {stdout:?}");
            let lines = run.host.stderr().lines();
            assert!(
                lines.contains(&"counter 0".to_owned()),
                "{place:?} {stdout:?}: {lines:#?}"
            );
        }
    }
}

#[test]
fn output_goes_to_a_file_as_well() {
    let directory = tempfile::tempdir().expect("there is room for a directory");
    let path = directory.path().join("out");
    let builder = Host::builder("file").stdout(Stdio::File(path.clone()));
    let run = Run::start_on(builder, Place::First, &[], &["seq", "20000"]);
    assert_eq!(run.code(), 0);
    let text = std::fs::read_to_string(path).expect("the host made it");
    assert_eq!(
        (text.lines().count(), text.lines().last()),
        (20_000, Some("20000"))
    );
}

#[test]
fn closed_standard_streams_are_no_obstacle() {
    let builder = Host::builder("closed")
        .stdin(Stdio::Closed)
        .stdout(Stdio::Closed)
        .stderr(Stdio::Closed);
    let run = Run::start_on(
        builder,
        Place::First,
        &[],
        &["sh", "-c", "read line; echo out; echo err >&2; exit 6"],
    );
    assert_eq!(run.code(), 6);
}

// --- terminals ---------------------------------------------------------------------------------------------------------

#[test]
fn with_a_terminal_the_app_has_one_of_the_same_size_and_controls_it() {
    for place in PLACES {
        let facts = facts(Host::builder("terminal").terminal(41, 123), place);
        assert_eq!(
            facts["ttys"],
            serde_json::json!([true, true, true]),
            "{place:?}"
        );
        let terminal = &facts["terminal"];
        assert_eq!(
            (&terminal["rows"], &terminal["columns"]),
            (&41.into(), &123.into()),
            "{place:?}"
        );
        assert_eq!(terminal["controlling"], true, "{place:?}");
        assert_eq!(terminal["session"], facts["pid"], "{place:?}");
        assert_eq!(terminal["foreground"], facts["group"], "{place:?}");
    }
}

#[test]
fn ctrl_c_interrupts_the_app() {
    for place in PLACES {
        let run = Run::start_on(
            Host::builder("interrupt").terminal(24, 80),
            place,
            &[],
            &["sleep", "1000"],
        );
        run.host.wait_for_process("sleep 1000", LIMIT);
        run.host.write("\u{3}");
        assert_eq!(run.code(), 130, "{place:?}");
    }
}

#[test]
fn what_is_typed_arrives_and_is_echoed_once() {
    for place in PLACES {
        let app = [
            "bash",
            "-c",
            "echo ready; read line; echo \"got $line\"; exit 4",
        ];
        let run = Run::start_on(Host::builder("typing").terminal(24, 80), place, &[], &app);
        run.wait_for("ready");
        run.host.write("hello\n");
        assert_eq!(run.code(), 4, "{place:?}");
        assert_eq!(
            run.host
                .stdout()
                .lines()
                .iter()
                .filter(|line| *line == "hello")
                .count(),
            1,
            "{place:?}"
        );
        assert!(
            run.host.stdout().lines().contains(&"got hello".to_owned()),
            "{place:?}"
        );
    }
}

#[test]
fn a_resized_terminal_is_resized_for_the_app() {
    for place in PLACES {
        let app = [
            "bash",
            "-c",
            "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done",
        ];
        let run = Run::start_on(Host::builder("resize").terminal(24, 80), place, &[], &app);
        run.wait_for("ready");
        run.host.resize(50, 132);
        run.wait_for("50 132");
    }
}
