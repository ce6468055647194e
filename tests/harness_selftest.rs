//! The throw-away hosts themselves: nothing here needs the worker, so a failure points at the machine or the harness.

mod harness;

use std::time::Duration;

use harness::{Exit, Host, LIMIT, Rootfs, Stdio, wait_until};

#[test]
fn a_host_runs_its_command_as_pid_1_under_its_own_name() {
    let host = Host::builder("alpha")
        .args(["sh", "-c", "echo $$ $(hostname); echo oops >&2; exit 42"])
        .start();
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(42));
    assert_eq!(host.stdout().text(), "1 alpha\n");
    assert_eq!(host.stderr().text(), "oops\n");
}

#[test]
fn a_first_process_that_kills_itself_is_told_from_one_that_exits_with_137() {
    let exits = Host::builder("exits")
        .args(["sh", "-c", "exit 137"])
        .start();
    assert_eq!(exits.wait_exit(LIMIT), Exit::Code(137));
    let killed = Host::builder("killed").start();
    killed.signal(libc::SIGKILL);
    assert_eq!(killed.wait_exit(LIMIT), Exit::Signal(libc::SIGKILL));
}

#[test]
fn commands_run_inside_with_their_codes_and_output() {
    let host = Host::builder("busy").start();
    let ran = host.exec(["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (7, "out\n", "err\n")
    );
    assert_eq!(host.exec(["sh", "-c", "kill -TERM $$"]).code, 143);
}

#[test]
fn a_host_has_the_capabilities_the_worker_asks_for_and_no_more() {
    // Docker's default set, CHECKPOINT_RESTORE and SYS_PTRACE.
    const CAPABILITIES: &str = "00000100a80c25fb";
    let host = Host::builder("caps").start();
    assert_eq!(
        host.status_field(1, "CapEff").as_deref(),
        Some(CAPABILITIES)
    );
    assert_eq!(
        host.status_field(1, "CapBnd").as_deref(),
        Some(CAPABILITIES)
    );
    assert_eq!(
        host.status_field(1, "CapAmb").as_deref(),
        Some("0000000000000000")
    );
    assert_eq!(host.status_field(1, "Seccomp").as_deref(), Some("0"));
    assert_eq!(host.status_field(1, "NoNewPrivs").as_deref(), Some("0"));

    let strict = Host::builder("strict")
        .no_new_privileges()
        .seccomp()
        .drop_capability("CAP_SYS_PTRACE")
        .start();
    assert_eq!(
        strict.status_field(1, "CapEff").as_deref(),
        Some("00000100a80425fb")
    );
    assert_eq!(strict.status_field(1, "Seccomp").as_deref(), Some("2"));
    assert_eq!(strict.status_field(1, "NoNewPrivs").as_deref(), Some("1"));
}

#[test]
fn proc_sys_is_read_only_and_loopback_is_up() {
    let host = Host::builder("net").start();
    assert_ne!(
        host.exec(["sh", "-c", "echo 1 > /proc/sys/kernel/ns_last_pid"])
            .code,
        0
    );
    host.exec_ok(["python3", "-c", "import socket; s = socket.create_server(('127.0.0.1', 80)); socket.create_connection(s.getsockname())"]);
    let links = host.exec_ok(["ip", "-brief", "link"]);
    assert!(
        !links.contains("eth"),
        "only an own loopback is expected, not:\n{links}"
    );
}

#[test]
fn a_host_that_shares_the_network_reaches_a_server_of_the_test() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has ports to spare");
    let port = server.local_addr().expect("it is bound").port().to_string();
    let host = Host::builder("shared").share_net().start();
    host.exec_ok([
        "python3",
        "-c",
        "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])))",
        &port,
    ]);
    server.accept().expect("the host has connected");
}

#[test]
fn each_host_has_a_fresh_file_system_and_only_the_store_is_shared() {
    let store = tempfile::tempdir().expect("there is room for a directory");
    let first = Host::builder("first")
        .bind(store.path(), "/snapshots")
        .start();
    first.exec_ok([
        "sh",
        "-c",
        "echo one > /root/mine; echo one > /tmp/mine; echo one > /snapshots/shared; rm /bin/socat",
    ]);
    first.destroy();

    let second = Host::builder("second")
        .bind(store.path(), "/snapshots")
        .start();
    assert_eq!(
        second.exec_ok([
            "sh",
            "-c",
            "ls /root /tmp; cat /snapshots/shared; ls /bin/socat"
        ]),
        "/root:\n\n/tmp:\none\n/bin/socat\n"
    );
}

#[test]
fn a_destroyed_host_takes_all_its_processes_and_mounts_with_it() {
    let host = Host::builder("doomed")
        .args([
            "sh",
            "-c",
            "sleep 1234 & setsid sleep 1234 & trap '' TERM; echo up; wait",
        ])
        .start();
    host.stdout()
        .wait_for_line("up", LIMIT, |line| line == "up");
    wait_until(LIMIT, "three processes", || host.processes().len() == 3);
    let pid = host.pid1_host_pid();
    host.destroy();
    assert!(!host.is_running());
    assert!(host.processes().is_empty());
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    host.stdout().wait_for_end(LIMIT);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("proc is mounted");
    assert!(
        !mounts.contains("/run/reprieve-tests"),
        "no mount may be left outside:\n{mounts}"
    );
}

#[test]
fn signals_reach_pid_1_and_processes_inside() {
    let script = "trap 'echo usr1' USR1; trap 'echo term; exit 3' TERM; sleep 1000 & echo up; while :; do wait; done";
    let host = Host::builder("signals")
        .args(["bash", "-c", script])
        .start();
    host.stdout()
        .wait_for_line("up", LIMIT, |line| line == "up");
    host.signal(libc::SIGUSR1);
    host.stdout()
        .wait_for_line("usr1", LIMIT, |line| line == "usr1");
    let sleep = host.wait_for_process("sleep 1000", LIMIT);
    assert_eq!((sleep.parent, sleep.name.as_str()), (1, "sleep"));
    host.signal_process(sleep.pid, libc::SIGKILL);
    wait_until(LIMIT, "the end of sleep", || host.processes().len() == 1);
    host.signal(libc::SIGTERM);
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(3));
}

#[test]
fn stdin_is_a_pipe_with_an_end_a_file_or_nothing() {
    let host = Host::builder("reader")
        .args(["sh", "-c", "cat; echo end"])
        .stdin(Stdio::Pipe)
        .start();
    host.write("one\n");
    host.stdout()
        .wait_for_line("one", LIMIT, |line| line == "one");
    host.close_stdin();
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(0));
    assert_eq!(host.stdout().lines(), ["one", "end"]);

    let directory = tempfile::tempdir().expect("there is room for a directory");
    let (input, output) = (directory.path().join("in"), directory.path().join("out"));
    std::fs::write(&input, "from a file\n").expect("the directory is writable");
    let host = Host::builder("files")
        .args(["cat"])
        .stdin(Stdio::File(input))
        .stdout(Stdio::File(output.clone()))
        .start();
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(0));
    assert_eq!(
        std::fs::read_to_string(output).expect("the host made it"),
        "from a file\n"
    );

    let script = "import os; os.write(2, b''.join(b'%d\\n' % n for n in range(3) if os.path.exists(f'/proc/self/fd/{n}')))";
    let host = Host::builder("closed")
        .args(["python3", "-c", script])
        .stdin(Stdio::Closed)
        .stdout(Stdio::Closed)
        .start();
    host.wait_exit(LIMIT);
    assert_eq!(host.stderr().lines(), ["2"]);

    let host = Host::builder("broken")
        .args(["sh", "-c", "trap '' PIPE; echo lost || exit 9"])
        .stdout(Stdio::BrokenPipe)
        .start();
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(9));
}

#[test]
fn a_terminal_has_its_size_and_passes_control_characters_on() {
    let host = Host::builder("screen")
        .args([
            "bash",
            "-c",
            "stty size; tty; trap 'echo hup; exit 5' INT; echo up; read line; echo got $line; cat",
        ])
        .terminal(33, 99)
        .start();
    host.stdout()
        .wait_for_line("up", LIMIT, |line| line == "up");
    assert_eq!(host.stdout().lines()[..2], ["33 99", "/dev/pts/0"]);
    host.write("hello\n");
    host.stdout()
        .wait_for_line("got hello", LIMIT, |line| line == "got hello");
    host.wait_for_process("cat", LIMIT);
    host.write("\x03");
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(5));
}

#[test]
fn criu_dumps_on_one_host_and_restores_on_the_next_with_these_capabilities() {
    let store = tempfile::tempdir().expect("there is room for a directory");
    let host = |name: &str| {
        // Pids above 300 are not used by a new host's own processes.
        let script = "for i in $(seq 300); do (:); done; echo up; exec sleep infinity";
        let host = Host::builder(name)
            .bind(store.path(), "/snapshots")
            .args(["bash", "-c", script])
            .start();
        host.stdout()
            .wait_for_line("up", LIMIT, |line| line == "up");
        host
    };
    let old = host("old");
    old.exec_ok([
        "sh",
        "-c",
        "setsid sleep 1234 < /dev/null > /dev/null 2>&1 &",
    ]);
    let before = old.wait_for_process("sleep 1234", LIMIT);
    old.exec_ok([
        "criu",
        "dump",
        "--unprivileged",
        "-D",
        "/snapshots",
        "-t",
        &before.pid.to_string(),
    ]);
    assert!(
        old.processes()
            .iter()
            .all(|process| process.pid != before.pid || process.is_zombie())
    );
    old.destroy();

    let new = host("new");
    new.exec_ok([
        "criu",
        "restore",
        "--unprivileged",
        "-D",
        "/snapshots",
        "-d",
    ]);
    let after = new.wait_for_process("sleep 1234", LIMIT);
    assert_eq!((after.pid, after.session), (before.pid, before.session));
}

#[test]
fn the_small_root_has_only_a_static_shell_and_the_smallest_nothing() {
    let small = Host::builder("small")
        .rootfs(Rootfs::Busybox)
        .args(["/bin/sh", "-c", "ls /lib /lib64 /etc; busybox echo $0"])
        .start();
    assert_eq!(
        small.wait_exit(LIMIT),
        Exit::Code(0),
        "busybox's own applets are found without links"
    );
    let bare = Host::builder("bare")
        .rootfs(Rootfs::Nothing)
        .args(["/usr/local/bin/reprieve", "--version"])
        .start();
    assert!(
        matches!(bare.wait_exit(Duration::from_secs(10)), Exit::Code(_)),
        "a static program needs no other file"
    );
}
