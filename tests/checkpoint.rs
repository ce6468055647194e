//! Checkpoints of real processes by the real binary with real CRIU, each in a container that is thrown away, and resumes
//! of them in other containers that share nothing with the first but the store.

mod harness;
mod job;

use std::fs;

use harness::{Exit, Host, LIMIT, Stdio, wait_until};
use job::{
    COUNTER, Store, assert_counts, checkpoint, checkpoint_ok, evict, numbers, resumed,
    told_of_checkpoint, wait_for_log, wait_for_output,
};

#[test]
fn three_evictions_over_four_hosts_lose_and_repeat_no_line() {
    let store = Store::new();
    // At full speed: whatever is on its way in a pipe or a buffer would show.
    let app = ["python3", "/apps/counter.py", "--count", "1500000"];
    let mut output = String::new();
    for name in ["first", "second", "third"] {
        let host = store.host(name, &app).start();
        let begun = host.stdout().mark();
        wait_until(LIMIT, "ten thousand more lines", || {
            host.stdout().mark() > begun + 100_000
        });
        evict(&host);
        output.push_str(&host.stdout().text());
    }
    let host = store.host("fourth", &app).start();
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(0));
    output.push_str(&host.stdout().text());
    assert_counts(&output, Some(1_500_000));
}

#[test]
fn a_job_of_many_parts_goes_on_working() {
    let store = Store::new();
    let app = ["python3", "/apps/job.py", "0.02"];
    let first = store.host("first", &app).start();
    wait_for_output(&first, "round 10 ok");
    evict(&first);
    let second = store.host("second", &app).start();
    second
        .stdout()
        .wait_for_line("fifty rounds", LIMIT, |line| line == "round 50 ok");
    evict(&second);
    let third = store.host("third", &app).start();
    wait_for_output(&third, "round 80 ok");
    let all = [first, second, third]
        .map(|host| host.stdout().text())
        .concat();
    for (expected, line) in (1..).zip(all.lines().filter(|line| line.starts_with("round"))) {
        assert_eq!(line, format!("round {expected} ok"));
    }
}

#[test]
fn the_apps_own_end_arrives_after_a_resume_as_it_would_have_without() {
    for (script, expected) in [
        ("read go; exit 42", Exit::Code(42)),
        ("read go; exit 0", Exit::Code(0)),
        ("read go; kill -SEGV $$", Exit::Code(139)),
        ("read go; kill -KILL $$", Exit::Code(137)),
        ("read go; kill -s 34 $$", Exit::Code(162)),
    ] {
        let store = Store::new();
        let app = ["bash", "-c", &format!("echo ready; {script}")];
        let first = store.host("first", &app).stdin(Stdio::Pipe).start();
        wait_for_output(&first, "ready");
        evict(&first);
        let second = store.host("second", &app).stdin(Stdio::Pipe).start();
        second.write("go\n");
        assert_eq!(second.wait_exit(LIMIT), expected, "{script}");
        assert_eq!(second.stdout().text(), "", "{script}");
    }
}

#[test]
fn input_that_was_not_read_yet_is_read_after_the_resume() {
    let store = Store::new();
    let app = [
        "bash",
        "-c",
        "echo ready; read a; echo got $a; read b; read c; echo got $b $c; cat",
    ];
    let first = store.host("first", &app).stdin(Stdio::Pipe).start();
    wait_for_output(&first, "ready");
    first.write("one\n");
    wait_for_output(&first, "got one");
    // Bash reads byte by byte from a pipe, so this stays where it is until the line is complete.
    first.write("two");
    evict(&first);
    let second = store.host("second", &app).stdin(Stdio::Pipe).start();
    second.write(" and more\nthree\nrest\n");
    wait_for_output(&second, "got two and more three");
    second.close_stdin();
    assert_eq!(second.wait_exit(LIMIT), Exit::Code(0));
    assert_eq!(second.stdout().text(), "got two and more three\nrest\n");
}

#[test]
fn a_snapshot_that_leaves_the_app_running_is_the_moment_of_the_freeze() {
    let store = Store::new();
    let app = ["python3", "/apps/stamps.py", "64"];
    let mut host = store.host("host-0", &app).start();
    wait_for_output(&host, "ready");
    for round in 1..=3 {
        checkpoint_ok(&host);
        // The job went on, and its machine goes without a notice: the snapshot is all there is.
        host.destroy();
        host = store.host(&format!("host-{round}"), &app).start();
        let app = resumed(&host);
        host.signal_process(app.pid, libc::SIGUSR1);
        let verdict = host.stdout().wait_for_line("a verdict", LIMIT, |_| true);
        assert!(verdict.starts_with("whole"), "{verdict}");
    }
}

#[test]
fn a_job_that_was_left_running_goes_on_and_its_snapshot_goes_back_to_the_freeze() {
    let store = Store::new();
    let first = store.host("first", COUNTER).start();
    wait_for_output(&first, "line 20");
    checkpoint_ok(&first);
    let after = first.stdout().lines().len();
    wait_until(LIMIT, "twenty more lines", || {
        first.stdout().lines().len() > after + 20
    });
    first.destroy();
    assert_counts(&first.stdout().text(), None);
    let second = store.host("second", COUNTER).start();
    wait_until(LIMIT, "thirty lines", || {
        second.stdout().lines().len() >= 30
    });
    second.destroy();
    let resumed = numbers(&second.stdout().lines().join("\n"));
    assert!(
        (20..=after as u64 + 1).contains(&resumed[0]),
        "{}",
        resumed[0]
    );
    assert!(
        resumed.windows(2).all(|pair| pair[0] + 1 == pair[1]),
        "{resumed:?}"
    );
}

#[test]
fn only_pages_that_changed_are_stored_again_and_every_byte_comes_back() {
    let store = Store::new();
    let app = ["python3", "/apps/memory.py", "96", "5"];
    let mut host = store.host("host-0", &app).start();
    let digest = host
        .stdout()
        .wait_for_line("digest", LIMIT, |line| line.starts_with("digest"));
    wait_for_output(&host, "ready");
    checkpoint_ok(&host);
    let whole = told_of_checkpoint(&host, "stored_bytes");
    assert_eq!(told_of_checkpoint(&host, "unchanged_bytes"), 0);
    assert!(whole > 96 << 20, "{whole}");
    // Several generations, each begun from the one before, on a host of its own or on the same.
    for round in 1..=4 {
        checkpoint_ok(&host);
        assert!(
            told_of_checkpoint(&host, "stored_bytes") < whole / 10,
            "{}",
            told_of_checkpoint(&host, "stored_bytes")
        );
        assert!(told_of_checkpoint(&host, "unchanged_bytes") > 96 << 20);
        host.destroy();
        host = store.host(&format!("host-{round}"), &app).start();
        let app = resumed(&host);
        host.signal_process(app.pid, libc::SIGUSR1);
        let found = host
            .stdout()
            .wait_for_line("digest", LIMIT, |line| line.starts_with("digest"));
        assert_eq!(found, digest, "round {round}");
    }
    // The first snapshot has gone from the head by now; what later ones need of it has not.
    let first = fs::read_dir(store.path().join("job/data"))
        .expect("it is there")
        .count();
    assert!(first > 1);
}

#[test]
fn the_kind_of_the_standard_streams_may_change_with_the_host() {
    let store = Store::new();
    let app = [
        "python3",
        "/apps/counter.py",
        "--pace",
        "0.005",
        "--count",
        "400",
    ];
    let piped = store.host("piped", &app).start();
    wait_for_output(&piped, "line 50");
    evict(&piped);
    let file = store.path().join("output");
    let filed = store
        .host("filed", &app)
        .stdout(Stdio::File(file.clone()))
        .start();
    wait_until(LIMIT, "some lines in the file", || {
        fs::read_to_string(&file).is_ok_and(|text| text.lines().count() > 50)
    });
    evict(&filed);
    let screen = store.host("screen", &app).terminal(24, 80).start();
    // A terminal shows our log as well.
    screen
        .stdout()
        .wait_for_line("a line", LIMIT, |line| line.starts_with("line "));
    evict(&screen);
    let shown = screen.stdout().text().replace('\r', "");
    let shown: Vec<&str> = shown
        .lines()
        .filter(|line| line.starts_with("line "))
        .collect();
    let unread = store.host("unread", &app).stdin(Stdio::Closed).start();
    assert_eq!(unread.wait_exit(LIMIT), Exit::Code(0));
    let filed = fs::read_to_string(&file).expect("it was read before");
    let all = [
        piped.stdout().text(),
        filed,
        shown.join("\n") + "\n",
        unread.stdout().text(),
    ]
    .concat();
    assert_counts(&all, Some(400));
}

#[test]
fn a_job_on_a_terminal_resumes_on_a_terminal_and_without_one() {
    let store = Store::new();
    let app = [
        "bash",
        "-c",
        "echo ready; while read -r line; do echo got $line on $(tty); done",
    ];
    let first = store.host("first", &app).terminal(24, 80).start();
    wait_for_output(&first, "ready");
    evict(&first);
    let second = store.host("second", &app).terminal(30, 90).start();
    resumed_on_terminal(&second);
    second.write("hello\n");
    wait_for_output(&second, "got hello on /dev/pts/");
    evict(&second);
    let third = store.host("third", &app).stdin(Stdio::Pipe).start();
    third.write("again\n");
    wait_for_output(&third, "got again on /dev/pts/");
}

#[track_caller]
fn resumed_on_terminal(host: &Host) {
    wait_for_output(host, "the job is resumed");
}

#[test]
fn a_reader_that_does_not_read_neither_freezes_a_checkpoint_nor_loses_a_byte() {
    let store = Store::new();
    let fifo = store.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("the directory is ours");
    // Both ends are held here, so that it is open and full before anybody reads.
    let reader = fs::File::options()
        .read(true)
        .write(true)
        .open(&fifo)
        .expect("just made");
    let app = ["python3", "/apps/counter.py", "--count", "200000"];
    let first = store.host("first", &app).stdout(Stdio::File(fifo)).start();
    wait_for_log(&first, "the app is started");
    let python = first.wait_for_process("python3", LIMIT).pid;
    wait_until(LIMIT, "the app waits for its reader", || {
        let wchan = fs::read_to_string(first.path(&format!("/proc/{python}/wchan")));
        wchan.is_ok_and(|place| place.contains("pipe_write"))
    });
    evict(&first);
    let delivered = drain(&reader);
    let second = store.host("second", &app).start();
    assert_eq!(second.wait_exit(LIMIT), Exit::Code(0));
    assert_counts(&(delivered + &second.stdout().text()), Some(200_000));
}

/// Everything that lies in a pipe that nobody writes to any more.
fn drain(pipe: &fs::File) -> String {
    use std::io::Read;
    nix::fcntl::fcntl(
        pipe,
        nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
    )
    .expect("flags can be set");
    let mut bytes = Vec::new();
    let mut source = pipe;
    let mut buffer = [0; 65536];
    while let Ok(count) = source.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8(bytes).expect("the counter writes text")
}

#[test]
fn an_app_whose_output_nobody_takes_is_still_checkpointed() {
    let store = Store::new();
    let first = store
        .host(
            "first",
            &[
                "bash",
                "-c",
                "python3 /apps/counter.py --count 100000; read go; exit 3",
            ],
        )
        .stdin(Stdio::Pipe)
        .stdout(Stdio::BrokenPipe)
        .start();
    wait_for_log(&first, "nobody reads this stream any more");
    evict(&first);
    let second = store.host("second", &["unused"]).stdin(Stdio::Pipe).start();
    second.write("go\n");
    assert_eq!(second.wait_exit(LIMIT), Exit::Code(3));
}

#[test]
fn an_orphan_is_named_in_a_refusal_and_not_left_out() {
    let store = Store::new();
    // The subshell ends at once, so that `sleep` becomes the supervisor's.
    let app = [
        "bash",
        "-c",
        "(sleep 1000 &); echo ready; read go; echo went on",
    ];
    let host = store.host("host", &app).stdin(Stdio::Pipe).start();
    wait_for_output(&host, "ready");
    let ran = checkpoint(&host);
    assert_eq!(ran.code, 180, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("(sleep)"), "{}", ran.stderr);
    host.write("go\n");
    wait_for_output(&host, "went on");
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(0));
    assert_eq!(host.processes().len(), 0);
}

#[test]
fn signals_that_arrive_during_a_checkpoint_reach_the_app_after_it() {
    let store = Store::new();
    let app = [
        "python3",
        "-c",
        "import signal,time\nsignal.signal(signal.SIGUSR1, lambda *_: print('got it', flush=True))\n\
         data = bytearray(__import__('os').urandom(1 << 20) * 300)\nprint('ready', flush=True)\n\
         while True: time.sleep(1)",
    ];
    let host = store.host("host", &app).start();
    wait_for_output(&host, "ready");
    let request = host.spawn(["reprieve", "checkpoint", "--leave-running"]);
    wait_for_log(&host, "checkpoint begins");
    host.signal(libc::SIGUSR1);
    wait_for_output(&host, "got it");
    assert_eq!(request.wait(LIMIT).code, 0);
}

#[test]
fn sigterm_twice_is_one_checkpoint() {
    let store = Store::new();
    let host = store.host("host", COUNTER).start();
    wait_for_output(&host, "line 10");
    host.signal(libc::SIGTERM);
    host.signal(libc::SIGTERM);
    host.signal(libc::SIGTERM);
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(75));
    let begun = host
        .stderr()
        .lines()
        .iter()
        .filter(|line| line.contains("checkpoint begins"))
        .count();
    assert_eq!(begun, 1);
    let second = store.host("second", COUNTER).start();
    wait_until(LIMIT, "more lines", || second.stdout().lines().len() > 20);
    second.destroy();
    let all = host.stdout().text() + &second.stdout().lines().join("\n");
    assert_counts(&all, None);
}

#[test]
fn sigterm_during_a_checkpoint_that_leaves_running_is_carried_out_after_it() {
    let store = Store::new();
    let app = ["python3", "/apps/memory.py", "200"];
    let host = store.host("host", &app).start();
    wait_for_output(&host, "ready");
    let request = host.spawn(["reprieve", "checkpoint", "--leave-running"]);
    wait_for_log(&host, "checkpoint begins");
    host.signal(libc::SIGTERM);
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(75));
    assert_eq!(request.wait(LIMIT).code, 0);
    let durable = host
        .stderr()
        .lines()
        .iter()
        .filter(|line| line.contains("checkpoint is durable"))
        .count();
    assert_eq!(durable, 2);
}

#[test]
fn sigterm_during_the_start_and_during_a_restore_loses_nothing() {
    let store = Store::new();
    let app = ["python3", "/apps/memory.py", "300"];
    let early = store.host("early", &app).start();
    // Before that, the kernel itself drops what is sent to PID 1.
    wait_until(LIMIT, "it can hear", || {
        early
            .status_field(1, "SigBlk")
            .is_some_and(|mask| mask != "0000000000000000")
    });
    early.signal(libc::SIGTERM);
    let end = early.wait_exit(LIMIT);
    assert_eq!(end, Exit::Code(75));
    early.destroy();
    let first = store.host("first", &app).start();
    let digest = first
        .stdout()
        .wait_for_line("digest", LIMIT, |line| line.starts_with("digest"));
    wait_for_output(&first, "ready");
    evict(&first);
    let interrupted = store.host("interrupted", &app).start();
    wait_for_log(&interrupted, "this worker owns the job");
    interrupted.signal(libc::SIGTERM);
    assert_eq!(interrupted.wait_exit(LIMIT), Exit::Code(75));
    assert_eq!(interrupted.stdout().text(), "");
    interrupted.destroy();
    let last = store.host("last", &app).start();
    let app = resumed(&last);
    last.signal_process(app.pid, libc::SIGUSR1);
    let found = last
        .stdout()
        .wait_for_line("digest", LIMIT, |line| line.starts_with("digest"));
    assert_eq!(found, digest);
}

#[test]
fn other_processes_that_fork_without_pause_do_not_stand_in_the_way() {
    let store = Store::new();
    let app = ["python3", "/apps/job.py", "0.02"];
    let mut host = store.host("host-0", &app).start();
    wait_for_output(&host, "round 5 ok");
    for round in 1..=3 {
        evict(&host);
        host = Host::builder(&format!("host-{round}"))
            .bind(store.path(), "/snapshots")
            .args([
                "sh",
                "-c",
                "(while :; do /bin/true; done) & (while :; do /bin/true; done) & \
                 exec reprieve run --store file:///snapshots --job job --term-grace 60s -- unused",
            ])
            .start();
        let wanted = format!("round {} ok", 5 + 20 * round);
        host.stdout().wait_for_line(&wanted, LIMIT, |line| {
            line.starts_with("round") && line.ends_with("5 ok")
        });
    }
}

#[test]
fn the_app_that_is_no_child_of_pid_1_is_checkpointed_too() {
    let store = Store::new();
    let run = "reprieve run --store file:///snapshots --job job --term-grace 60s -- \
               python3 /apps/counter.py --pace 0.01 & echo started $!; wait $!; echo ended with $?";
    let mut all = String::new();
    for name in ["first", "second"] {
        let host = Host::builder(name)
            .bind(store.path(), "/snapshots")
            .args(["bash", "-c", run])
            .start();
        let started = host
            .stdout()
            .wait_for_line("started", LIMIT, |line| line.starts_with("started"));
        let supervisor: i32 = started["started ".len()..].parse().expect("a process id");
        let mark = host.stdout().mark();
        wait_until(LIMIT, "some lines", || host.stdout().mark() > mark + 200);
        host.signal_process(supervisor, libc::SIGTERM);
        assert_eq!(host.wait_exit(LIMIT), Exit::Code(0));
        let text = host.stdout().text();
        assert!(text.contains("ended with 75"), "{text}");
        all.extend(
            text.lines()
                .filter(|line| line.starts_with("line"))
                .map(|line| format!("{line}\n")),
        );
    }
    assert_counts(&all, None);
}

#[test]
fn scripts_wait_until_the_job_runs_is_stored_or_is_left_alone() {
    let store = Store::new();
    let host = store.host("host", COUNTER).start();
    // The supervisor may not listen yet.
    let ran = host.exec(["reprieve", "wait", "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stdout.contains("\"state\":\"running\""),
        "{}",
        ran.stdout
    );
    assert!(
        !host.stderr().text().is_empty(),
        "it did not wait for the start"
    );
    let ran = host.exec(["reprieve", "wait", "--for", "over"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (0, "running; there is no snapshot yet\n")
    );
    let late = host.exec([
        "reprieve",
        "wait",
        "--for",
        "checkpoint",
        "--timeout",
        "100ms",
    ]);
    assert_eq!(late.code, 183, "{}", late.stderr);
    let nobody = [
        "reprieve",
        "wait",
        "--timeout",
        "100ms",
        "--control-socket",
        "/nowhere",
    ];
    assert_eq!(host.exec(nobody).code, 181);

    let waiting = host.spawn(["reprieve", "wait", "--for", "checkpoint"]);
    for _ in 0..50 {
        // One of them comes after it has begun to wait.
        checkpoint_ok(&host);
        if !waiting.stdout.text().is_empty() {
            break;
        }
    }
    let ran = waiting.wait(LIMIT);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stdout.contains("the newest snapshot is generation"),
        "{}",
        ran.stdout
    );

    evict(&host);

    // The subshell ends at once, so that `sleep` becomes the supervisor's, and no checkpoint can be taken.
    let app = ["bash", "-c", "(sleep 1000 &); echo ready; read go"];
    let store = Store::new();
    let host = store.host("orphans", &app).stdin(Stdio::Pipe).start();
    wait_for_output(&host, "ready");
    let waiting = host.spawn(["reprieve", "wait", "--for", "checkpoint"]);
    for _ in 0..50 {
        assert_eq!(checkpoint(&host).code, 180);
        if !waiting.stderr.text().is_empty() {
            break;
        }
    }
    let ran = waiting.wait(LIMIT);
    assert_eq!(ran.code, 180, "{}", ran.stderr);
    assert!(ran.stderr.contains("(sleep)"), "{}", ran.stderr);
}
