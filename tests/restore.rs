//! Which snapshot is resumed, and what happens when none can be: damage, missing rights, missing stores, two owners.

mod harness;
mod job;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use harness::{Exit, Host, LIMIT, Rootfs, Stdio, wait_until};
use job::{
    COUNTER, Store, assert_counts, checkpoint, checkpoint_ok, evict, numbers, of_a_later_version,
    resumed, wait_for_log, wait_for_output,
};
use reprieve_core::document;
use reprieve_core::head::Head;

/// Two generations of a counter, the second begun from the first. Returns what the job had written by then, each time.
fn two_generations(store: &Store) -> [String; 2] {
    let first = store.host("first", COUNTER).start();
    wait_for_output(&first, "line 10");
    evict(&first);
    let second = store.host("second", COUNTER).start();
    let mark = second.stdout().mark();
    wait_until(LIMIT, "ten more lines", || {
        second.stdout().mark() > mark + 100
    });
    evict(&second);
    let early = first.stdout().text();
    let late = early.clone() + &second.stdout().text();
    [early, late]
}

/// The first line that a resumed counter writes.
#[track_caller]
fn first_number(host: &Host) -> u64 {
    let line = host.stdout().wait_for_line("a line", LIMIT, |_| true);
    numbers(&line)[0]
}

#[test]
fn damage_to_any_object_of_the_newest_snapshot_leads_to_the_one_before_it() {
    let store = Store::new();
    let [early, late] = two_generations(&store);
    let (first, second) = (
        numbers(&early).len() as u64 + 1,
        numbers(&late).len() as u64 + 1,
    );
    let newest = store.objects_of_newest();
    // A part, the index and the manifest.
    assert!(newest.len() >= 3, "{newest:?}");
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 4] = [
        ("first byte", |bytes| bytes[0] ^= 1),
        ("middle byte", |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x80;
        }),
        ("last byte", |bytes| {
            *bytes.last_mut().expect("it is not empty") ^= 1
        }),
        ("truncated", |bytes| {
            bytes.pop();
        }),
    ];
    for object in &newest {
        let whole = fs::read(object).expect("the store can be read");
        for (what, damage) in damages {
            let mut bytes = whole.clone();
            damage(&mut bytes);
            fs::write(object, bytes).expect("the store can be written");
            let host = store.host("host", COUNTER).start();
            if what == "last byte" && object.ends_with("000000") {
                // Of the page hashes, which no restore reads: that is no reason to lose the newest snapshot.
                assert_eq!(
                    first_number(&host),
                    second,
                    "{what} of {}",
                    object.display()
                );
                host.destroy();
                continue;
            }
            assert_eq!(first_number(&host), first, "{what} of {}", object.display());
            let told = wait_for_log(&host, "a snapshot is passed over");
            assert!(told.contains("reason"), "{told}");
            host.destroy();
        }
        fs::remove_file(object).expect("the store can be written");
        let host = store.host("host", COUNTER).start();
        assert_eq!(first_number(&host), first, "{} deleted", object.display());
        wait_for_log(&host, "a snapshot is passed over");
        host.destroy();
        fs::write(object, whole).expect("the store can be written");
    }
    // Nothing that was tried on the way took the newest one away.
    let host = store.host("host", COUNTER).start();
    assert_eq!(first_number(&host), second);
}

/// The job has files of a volume open; each is changed, and put right again.
#[test]
fn files_that_are_not_as_they_were_are_named_before_criu_is_asked() {
    let store = Store::new();
    let volume = tempfile::tempdir().expect("a temporary directory can be made");
    let script =
        "cp /usr/bin/bash /data/bash; echo 1234567 > /data/read; echo 1234567 > /data/written
        exec 5< /data/read 6<> /data/written 7>> /data/log
        exec /data/bash -c 'echo ready; while :; do sleep 0.05; echo on; done'";
    let app = ["bash", "-c", script];
    let host = |name: &str| store.host(name, &app).bind(volume.path(), "/data").start();
    let first = host("first");
    wait_for_output(&first, "on");
    evict(&first);

    let path = |name: &str| volume.path().join(name);
    let change = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(path(name)).expect("the volume can be read");
        change(&mut bytes);
        fs::write(path(name), bytes).expect("the volume can be written");
    };
    let mode = |name: &str, mode| {
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(path(name), mode).expect("the file is the test's");
    };
    let other_build = |bytes: &mut Vec<u8>| {
        const NOTE: &[u8] = b"\x14\0\0\0\x03\0\0\0GNU\0";
        let found = bytes.windows(NOTE.len()).position(|part| part == NOTE);
        bytes[found.expect("Debian's programs have build ids") + NOTE.len()] ^= 1;
    };
    type Change<'a> = Box<dyn Fn() + 'a>;
    let away = || fs::rename(path("read"), path("away")).expect("it is there");
    let back = || fs::rename(path("away"), path("read")).expect("it is there");
    let cases: [(&str, Change<'_>, Change<'_>); 4] = [
        (
            "1 file is not as the job's processes had them: /data/read is not here: put it on a volume",
            Box::new(away),
            Box::new(back),
        ),
        (
            "/data/written has 9 bytes instead of 8: use the same image",
            Box::new(|| change("written", &|bytes| bytes.push(b'x'))),
            Box::new(|| {
                change("written", &|bytes| {
                    bytes.pop();
                })
            }),
        ),
        (
            "/data/read has the mode 100600 instead of 100644: chmod it back",
            Box::new(|| mode("read", 0o600)),
            Box::new(|| mode("read", 0o644)),
        ),
        (
            "/data/bash is another one here: it had ",
            Box::new(|| change("bash", &other_build)),
            Box::new(|| change("bash", &other_build)),
        ),
    ];
    for (message, change, mend) in cases {
        change();
        let host = host("changed");
        assert_eq!(host.wait_exit(LIMIT), Exit::Code(171), "{message}");
        let said = host.stderr().text();
        assert!(said.contains(message), "{message}: {said}");
        assert!(!said.contains("CRIU's restore"), "{said}");
        mend();
    }
    // What is only appended to may have grown.
    change("log", &|bytes| bytes.extend(b"more"));
    let last = host("last");
    resumed(&last);
    wait_for_output(&last, "on");
}

/// Listens at addresses that only the first host has, and tells each caller where.
const BOUND: &[&str] = &[
    "python3",
    "-c",
    "import socket, time
def bound(family, kind, address, port):
    one = socket.socket(family, kind)
    while True:
        try:
            one.bind((address, port))
            return one
        except OSError:
            time.sleep(0.01)
server = bound(socket.AF_INET, socket.SOCK_STREAM, '192.0.2.1', 7000)
mail = bound(socket.AF_INET, socket.SOCK_DGRAM, '192.0.2.1', 7001)
six = bound(socket.AF_INET6, socket.SOCK_STREAM, 'fd00::1', 7002)
asking = bound(socket.AF_INET, socket.SOCK_DGRAM, '192.0.2.1', 7003)
asking.connect(('127.0.0.1', 9))
server.listen()
six.listen()
print('bound', flush=True)
while True:
    caller, _ = server.accept()
    caller.sendall(' '.join(str(one.getsockname()[:2]) for one in (server, mail, six, asking)).encode())
    caller.close()",
];

/// What it says when it is called from beside it.
#[track_caller]
fn called(host: &Host) -> String {
    // The first one is never accepted, and the next eviction goes by it.
    let call = "import socket
waiting = socket.create_connection(('::1', 7002))
print(socket.create_connection(('127.0.0.1', 7000)).recv(999).decode())";
    host.exec_ok(["python3", "-c", call])
}

#[test]
fn a_listening_socket_is_bound_to_the_address_that_this_host_has() {
    let store = Store::new();
    let host = |name: &str, options: &[&str]| store.host_with(name, options, BOUND).start();
    let first = host("first", &[]);
    first.add_address("192.0.2.1/24");
    first.add_address("fd00::1/64");
    wait_for_output(&first, "bound");
    evict(&first);

    let cases: [(&[&str], &str); 3] = [
        (
            &[],
            "this host has no address 192.0.2.1 (tcp 192.0.2.1:7000 listening), fd00::1 (tcp [fd00::1]:7002 listening)",
        ),
        (
            &["--listen-remap", "192.0.2.1:127.0.0.1"],
            "this host has no address fd00::1 (tcp [fd00::1]:7002 listening)",
        ),
        (
            &["--listen-remap", "192.0.2.1:198.51.100.7,[fd00::1]:[::1]"],
            "this host has no address 198.51.100.7 (tcp 198.51.100.7:7000 listening)",
        ),
    ];
    for (options, message) in cases {
        let host = host("elsewhere", options);
        assert_eq!(host.wait_exit(LIMIT), Exit::Code(171), "{message}");
        let said = host.stderr().text();
        assert!(said.contains(message), "{message}: {said}");
        assert!(said.contains("--listen-remap OLD:NEW"), "{said}");
        // It was not asked.
        assert!(!host.path("/run/reprieve/last-failed-restore.log").exists());
    }

    let rules = [
        ["--listen-remap", "198.51.100.1:127.0.0.2"],
        ["--listen-remap", "192.0.2.1:127.0.0.1"],
        ["--listen-remap", "[fd00::1]:[::1]"],
    ];
    let second = host("second", &rules.concat());
    let idle = wait_for_log(&second, "no socket of the job is bound to the old address");
    assert!(idle.contains("198.51.100.1:127.0.0.2"), "{idle}");
    let told = wait_for_log(&second, "sockets are bound to other addresses");
    assert!(told.contains("\"sockets\":4"), "{told}");
    wait_for_log(&second, "the job is resumed");
    let expected = "('127.0.0.1', 7000) ('127.0.0.1', 7001) ('::1', 7002) ('127.0.0.1', 7003)\n";
    assert_eq!(called(&second), expected);
    // What it is bound to now is what the next snapshot has.
    evict(&second);
    let third = host("third", &[]);
    wait_for_log(&third, "the job is resumed");
    assert_eq!(called(&third), expected);
}

#[test]
fn a_clock_that_is_behind_is_told_waited_for_or_refused() {
    let store = Store::new();
    let host = |name: &str, ahead, options: &[&str]| {
        store
            .host_with(name, options, COUNTER)
            .up_for_longer(ahead)
            .start()
    };
    let first = host("first", 50_000, &["--clocks", "host"]);
    wait_for_output(&first, "line 5");
    checkpoint_ok(&first);
    let taken = Instant::now();
    first.destroy();

    let behind = "this host's CLOCK_MONOTONIC is ";
    for options in [
        ["--on-clock-behind", "refuse", "--clock-wait", "20h"],
        ["--on-clock-behind", "wait", "--clock-wait", "1h"],
    ] {
        let host = host("refused", 0, &options);
        assert_eq!(host.wait_exit(LIMIT), Exit::Code(171));
        let said = host.stderr().text();
        assert!(
            said.contains("whose clock is behind") && said.contains(behind),
            "{said}"
        );
        assert_eq!(host.stdout().text(), "");
    }

    // One that waits can be told to leave, and the job is where it was.
    let waiting = host(
        "waiting",
        0,
        &["--on-clock-behind", "wait", "--clock-wait", "20h"],
    );
    wait_for_log(&waiting, "waiting until it has caught up");
    waiting.signal(libc::SIGTERM);
    assert_eq!(waiting.wait_exit(LIMIT), Exit::Code(75));

    let wait = ["--on-clock-behind", "wait"];
    // Fifteen seconds behind, whatever came before.
    let ahead = 50_000 - 15 - taken.elapsed().as_secs();
    let patient = host("patient", ahead, &wait);
    wait_for_log(&patient, "waiting until it has caught up");
    resumed(&patient);
    wait_for_output(&patient, "line");
    assert!(!patient.stderr().text().contains("is late by as much"));
    patient.destroy();

    let warned = host("warned", 0, &[]);
    wait_for_log(&warned, "is late by as much");
    resumed(&warned);
}

#[test]
fn a_lost_head_does_not_lose_the_snapshots() {
    for damage in ["altered", "truncated", "empty", "deleted"] {
        let store = Store::new();
        let [_, late] = two_generations(&store);
        let head = store.path().join("job/HEAD");
        let mut bytes = fs::read(&head).expect("the store can be read");
        match damage {
            "altered" => bytes[30] ^= 1,
            "truncated" => bytes.truncate(50),
            _ => bytes.clear(),
        }
        match damage {
            "deleted" => fs::remove_file(&head).expect("the store can be written"),
            _ => fs::write(&head, bytes).expect("the store can be written"),
        }
        let host = store.host("host", COUNTER).start();
        assert_eq!(
            first_number(&host),
            numbers(&late).len() as u64 + 1,
            "{damage}"
        );
        wait_for_log(&host, "the head of the job is lost");
        evict(&host);
        let next = store.host("next", COUNTER).start();
        wait_for_log(&next, "the job is resumed");
    }
}

#[test]
fn without_a_valid_snapshot_a_policy_decides_and_the_snapshots_stay() {
    let store = Store::new();
    two_generations(&store);
    let objects = store.objects();
    for object in objects.iter().filter(|path| path.ends_with("000000")) {
        let mut bytes = fs::read(object).expect("the store can be read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(object, bytes).expect("the store can be written");
    }
    let strict = store.host("strict", COUNTER).start();
    assert_eq!(strict.wait_exit(LIMIT), Exit::Code(171));
    assert_eq!(strict.stdout().text(), "");
    let said = strict.stderr().text();
    for wanted in [
        "none of the snapshots of job job can be resumed",
        "damaged",
        "remedy",
    ] {
        assert!(said.contains(wanted), "{said}");
    }
    let lenient = store
        .host_with("lenient", &["--on-no-valid-snapshot", "start"], COUNTER)
        .start();
    assert_eq!(first_number(&lenient), 1);
    evict(&lenient);
    let after = store.objects();
    assert!(
        objects.iter().all(|object| after.contains(object)),
        "an older snapshot is gone"
    );
    // The damage is behind us: there is a newer, valid one.
    let last = store.host("last", COUNTER).start();
    wait_for_log(&last, "the job is resumed");
    assert_counts(
        &(lenient.stdout().text() + &last.stdout().lines().join("\n")),
        None,
    );
}

#[test]
fn a_missing_store_missing_rights_and_no_snapshot_are_three_things() {
    let nowhere = Host::builder("nowhere")
        .reprieve(
            ["--store", "file:///not-mounted", "--boot-timeout", "2s"],
            COUNTER.iter().copied(),
        )
        .start();
    assert_eq!(nowhere.wait_exit(LIMIT), Exit::Code(173));
    assert!(
        nowhere.stderr().text().contains("mount the directory"),
        "{}",
        nowhere.stderr().text()
    );

    let store = Store::new();
    fs::set_permissions(store.path(), fs::Permissions::from_mode(0o000)).expect("it is ours");
    // Root reads whatever it likes, so this one must not be able to.
    let denied = store
        .host("denied", COUNTER)
        .drop_capability("CAP_DAC_OVERRIDE")
        .start();
    assert_eq!(denied.wait_exit(LIMIT), Exit::Code(173));
    assert!(
        denied.stderr().text().contains("rights") || denied.stderr().text().contains("right to")
    );
    assert_eq!(denied.stdout().text(), "");
    fs::set_permissions(store.path(), fs::Permissions::from_mode(0o700)).expect("it is ours");

    let empty = store.host("empty", COUNTER).start();
    assert_eq!(first_number(&empty), 1);
    wait_for_log(&empty, "there is no snapshot of this job yet");
}

#[test]
fn a_store_that_cannot_be_written_leaves_the_job_running_and_the_older_snapshot_whole() {
    let store = Store::new();
    let host = store
        .host("host", COUNTER)
        .drop_capability("CAP_DAC_OVERRIDE")
        .start();
    wait_for_output(&host, "line 10");
    checkpoint_ok(&host);
    let before = store.objects();
    let job = store.path().join("job");
    for directory in ["data", "manifests", ""] {
        fs::set_permissions(job.join(directory), fs::Permissions::from_mode(0o500))
            .expect("it is ours");
    }
    let ran = checkpoint(&host);
    assert_eq!(ran.code, 180, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("could not be stored"), "{}", ran.stderr);
    assert!(ran.stderr.contains("runs on"), "{}", ran.stderr);
    // SIGTERM's checkpoint fails as well, and the job goes on all the same.
    host.signal(libc::SIGTERM);
    wait_for_log(&host, "\"trigger\":\"signal\"");
    let mark = host.stdout().mark();
    wait_until(LIMIT, "more lines", || host.stdout().mark() > mark + 100);
    assert_eq!(store.objects(), before, "something half-written is left");
    for directory in ["", "data", "manifests"] {
        fs::set_permissions(job.join(directory), fs::Permissions::from_mode(0o700))
            .expect("it is ours");
    }
    evict(&host);
    let next = store.host("next", COUNTER).start();
    wait_for_log(&next, "the job is resumed");
    assert_counts(
        &(host.stdout().text() + &next.stdout().lines().join("\n")),
        None,
    );
}

#[test]
fn a_full_store_fails_the_checkpoint_and_nothing_else() {
    let store = Store::new();
    let small = [
        "sh",
        "-c",
        "mkdir /small && mount -t tmpfs -o size=8m none /small && exec \"$@\"",
        "sh",
    ];
    let run = [
        "reprieve",
        "run",
        "--store",
        "file:///small",
        "--job",
        "job",
        "--",
        "python3",
        "/apps/memory.py",
        "64",
    ];
    let host = Host::builder("host")
        .add_capability("CAP_SYS_ADMIN")
        .bind(store.path(), "/snapshots")
        .args(small.iter().chain(&run).copied())
        .start();
    wait_for_output(&host, "ready");
    let ran = checkpoint(&host);
    assert_eq!(ran.code, 180, "{}{}", ran.stdout, ran.stderr);
    assert!(
        ran.stderr.to_lowercase().contains("space"),
        "{}",
        ran.stderr
    );
    let mark = host.stdout().mark();
    wait_until(LIMIT, "the job goes on", || host.stdout().mark() > mark);
    let left = host.exec_ok(["find", "/small/job", "-path", "*manifests*", "-type", "f"]);
    assert_eq!(left, "", "half a snapshot must not look like one");
}

#[test]
fn a_job_that_is_taken_over_is_stopped_where_it_ran() {
    let store = Store::new();
    let first = store
        .host_with("first", &["--lease-term", "1s"], COUNTER)
        .start();
    wait_for_output(&first, "line 10");
    checkpoint_ok(&first);
    let second = store.host("second", COUNTER).start();
    resumed(&second);
    // Nobody asks the first for anything: it finds out by its own sign of life.
    assert_eq!(first.wait_exit(LIMIT), Exit::Code(172));
    let said = first.stderr().text();
    assert!(said.contains("another worker owns the job"), "{said}");
    checkpoint_ok(&second);
    evict(&second);
}

#[test]
fn a_host_that_stood_still_past_its_lease_stores_nothing_more_and_gives_its_copy_up() {
    let store = Store::new();
    let short = ["--lease-term", "1s"];
    let first = store.host_with("first", &short, COUNTER).start();
    wait_for_output(&first, "line 10");
    checkpoint_ok(&first);
    // As a machine does that is moved or suspended: nothing of it hears anything.
    let app = first
        .wait_for_process("python3 /apps/counter.py", LIMIT)
        .pid;
    first.signal(libc::SIGSTOP);
    first.signal_process(app, libc::SIGSTOP);
    let options = ["--on-other-owner", "wait", "--lease-term", "1s"];
    let second = store.host_with("second", &options, COUNTER).start();
    wait_for_log(&second, "the owner of the job is silent");
    resumed(&second);
    checkpoint_ok(&second);
    let newest = store.objects_of_newest();
    // The first thing that it hears is that the machine goes.
    first.signal(libc::SIGTERM);
    first.signal_process(app, libc::SIGCONT);
    first.signal(libc::SIGCONT);
    assert_eq!(first.wait_exit(LIMIT), Exit::Code(172));
    assert_eq!(store.objects_of_newest(), newest);
    let mark = second.stdout().mark();
    wait_until(LIMIT, "more lines", || second.stdout().mark() > mark);
    evict(&second);
    let third = store.host("third", COUNTER).start();
    resumed(&third);
    let [second, third] = [&second, &third].map(|host| host.stdout().text());
    let lines = second + third.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let seen = numbers(&lines);
    assert!(
        seen.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "{lines}"
    );
}

#[test]
fn a_second_worker_waits_for_a_goodbye_and_then_goes_on_at_once() {
    let store = Store::new();
    let first = store.host("first", COUNTER).start();
    wait_for_output(&first, "line 10");
    // Longer than this test: only the goodbye can be what it hears.
    let patient = ["--on-other-owner", "wait", "--lease-term", "2m"];
    let second = store.host_with("second", &patient, COUNTER).start();
    let told = wait_for_log(&second, "another worker owns the job; waiting");
    assert!(told.contains("first"), "{told}");
    evict(&first);
    resumed(&second);
    wait_until(LIMIT, "more lines", || second.stdout().lines().len() > 10);
    second.destroy();
    assert_counts(
        &(first.stdout().text() + &second.stdout().lines().join("\n")),
        None,
    );
}

#[test]
fn an_owner_that_died_without_a_goodbye_is_followed_after_the_term() {
    let store = Store::new();
    let first = store.host("first", COUNTER).start();
    wait_for_output(&first, "line 10");
    checkpoint_ok(&first);
    first.destroy();
    let second = store
        .host_with(
            "second",
            &["--on-other-owner", "wait", "--lease-term", "1s"],
            COUNTER,
        )
        .start();
    wait_for_log(&second, "the owner of the job is silent");
    resumed(&second);
}

#[test]
fn a_worker_may_be_told_to_leave_a_job_that_has_an_owner() {
    let store = Store::new();
    let first = store.host("first", COUNTER).start();
    wait_for_output(&first, "line 10");
    let second = store
        .host_with("second", &["--on-other-owner", "leave"], COUNTER)
        .start();
    assert_eq!(second.wait_exit(LIMIT), Exit::Code(172));
    assert_eq!(second.stdout().text(), "");
    let said = second.stderr().text();
    assert!(said.contains("is owned by worker"), "{said}");
    checkpoint_ok(&first);
}

#[test]
fn a_job_that_ended_well_begins_anew_and_one_that_failed_resumes() {
    let store = Store::new();
    let app = [
        "bash",
        "-c",
        "echo begun; read code; echo ending; exit $code",
    ];
    let first = store.host("first", &app).stdin(Stdio::Pipe).start();
    wait_for_output(&first, "begun");
    checkpoint_ok(&first);
    first.write("9\n");
    assert_eq!(first.wait_exit(LIMIT), Exit::Code(9));
    let second = store.host("second", &app).stdin(Stdio::Pipe).start();
    wait_for_log(&second, "the job is resumed");
    second.write("0\n");
    assert_eq!(second.wait_exit(LIMIT), Exit::Code(0));
    assert_eq!(second.stdout().text(), "ending\n");
    let third = store.host("third", &app).stdin(Stdio::Pipe).start();
    wait_for_output(&third, "begun");
    wait_for_log(&third, "it begins anew");
}

#[test]
fn the_binary_runs_in_an_image_without_a_c_library_and_in_one_without_anything() {
    let empty = Host::builder("empty")
        .rootfs(Rootfs::Busybox)
        .args([
            "/usr/local/bin/reprieve",
            "run",
            "--",
            "/bin/busybox",
            "sh",
            "-c",
            "echo hello; exit 5",
        ])
        .start();
    assert_eq!(empty.wait_exit(LIMIT), Exit::Code(5));
    assert_eq!(empty.stdout().text(), "hello\n");
    let nothing = Host::builder("nothing")
        .rootfs(Rootfs::Nothing)
        .args([
            "/usr/local/bin/reprieve",
            "run",
            "--",
            "/usr/local/bin/reprieve",
            "--version",
        ])
        .start();
    assert_eq!(nothing.wait_exit(LIMIT), Exit::Code(0));
    assert!(
        nothing.stdout().text().starts_with("reprieve "),
        "{}",
        nothing.stdout().text()
    );
}

#[test]
fn a_container_that_allows_no_checkpoint_is_told_at_the_start_and_not_at_the_eviction() {
    let store = Store::new();
    let host = store
        .host("host", COUNTER)
        .seccomp()
        .drop_capability("CAP_CHECKPOINT_RESTORE")
        .start();
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(170));
    assert_eq!(host.stdout().text(), "");
    let said = host.stderr().text();
    for wanted in ["seccomp=unconfined", "--cap-add CHECKPOINT_RESTORE"] {
        assert!(said.contains(wanted), "{said}");
    }
}

#[test]
fn without_criu_the_app_is_not_started_without_protection() {
    let store = Store::new();
    let host = store
        .host_with("host", &["--criu", "/bin/true"], COUNTER)
        .start();
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(170));
    let said = host.stderr().text();
    assert!(
        said.contains("CRIU cannot be used") && said.contains("install CRIU"),
        "{said}"
    );
}

#[test]
fn metrics_and_status_tell_what_happened() {
    let store = Store::new();
    let host = store
        .host_with("host", &["--metrics-listen", "127.0.0.1:9464"], COUNTER)
        .start();
    wait_for_output(&host, "line 10");
    checkpoint_ok(&host);
    let fetch = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9464/metrics').read().decode())";
    let metrics = host.exec_ok(["python3", "-c", fetch]);
    for wanted in [
        "reprieve_state{state=\"running\"} 1",
        "reprieve_checkpoints_total{trigger=\"control\",outcome=\"durable\"} 1",
        "reprieve_last_snapshot_generation 1",
        "reprieve_app_starts_total{how=\"scratch\"} 1",
        "reprieve_frozen_seconds_count 1",
        "reprieve_checkpoint_phase_seconds_count{phase=\"commit\"} 1",
    ] {
        assert!(metrics.contains(wanted), "{wanted} is not in\n{metrics}");
    }
    let status: serde_json::Value =
        serde_json::from_str(&host.exec_ok(["reprieve", "status", "--json"])).expect("it is JSON");
    assert_eq!(status["state"], "running", "{status}");
    assert_eq!(status["last_generation"], 1, "{status}");
    assert_eq!(status["checkpoints_durable"], 1, "{status}");
}

#[test]
fn what_a_later_version_stored_is_left_alone_and_not_gone_back_behind() {
    let store = Store::new();
    let host = store.host("first", COUNTER).start();
    wait_for_output(&host, "line 10");
    checkpoint_ok(&host);
    evict(&host);
    let root = store.path().join("job");
    let place = root.join("HEAD");
    let original = fs::read(&place).expect("it is there");
    let refused = |why: &str| {
        let before = fs::read(&place).expect("it is there");
        let host = store.host("second", COUNTER).start();
        assert_eq!(host.wait_exit(LIMIT), Exit::Code(171), "{why}");
        let said = host.stderr().text();
        assert!(said.contains(why), "{said}");
        assert!(said.contains("run a program of that version"), "{said}");
        before
    };

    fs::write(&place, of_a_later_version(&original, "head")).expect("it can be written");
    let before = refused("the job's place in");
    assert_eq!(fs::read(&place).expect("it is there"), before);

    // The newest manifest, as it was committed.
    let mut head = Head::from_bytes(&original).expect("it is whole");
    let manifest = root.join(&head.generations[0].manifest);
    let whole = fs::read(&manifest).expect("it is there");
    let later = of_a_later_version(&whole, "manifest");
    head.generations[0].digest = document::digest(&later);
    fs::write(&manifest, &later).expect("it can be written");
    fs::write(&place, head.to_bytes()).expect("it can be written");
    refused("is not resumed by this version of Reprieve");
    let known = fs::read(&place).expect("it is there");
    let known = Head::from_bytes(&known).expect("it is whole");
    assert_eq!(known.generations, head.generations);

    // The same without a head, which a start would make anew from what it can read.
    let lost = fs::read(&place).expect("it is there");
    fs::remove_file(&place).expect("it can be removed");
    let host = store.host("third", COUNTER).start();
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(171));
    assert!(!place.exists(), "nothing was claimed");

    // On purpose it can be given up.
    fs::write(&place, lost).expect("it can be written");
    let host = store.host_with("last", &["--from", "1"], COUNTER).start();
    wait_for_log(&host, "the job is resumed");
    assert_eq!(fs::read(&manifest).expect("it stays"), later);
}
