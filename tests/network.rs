//! Sockets and connections on another host, and what the job is told of that.

mod harness;
mod job;

use std::fs;
use std::process::Command;

use harness::{Exit, Host, LIMIT, project_path, wait_until};
use job::{Store, assert_counts, checkpoint_ok, evict, wait_for_log, wait_for_output};

/// The job's, and that of the one it talks with.
const ADDRESS: &str = "192.0.2.1";
const PEER: &str = "192.0.2.100";

/// Runs a command of this machine in the network of a host.
#[track_caller]
fn in_network(host: &Host, command: &[&str]) -> String {
    let pid = host.pid1_host_pid().to_string();
    let ran = Command::new("nsenter")
        .args(["--target", &pid, "--net"])
        .args(command)
        .output()
        .expect("nsenter (util-linux) can be started");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{command:?}: {said}");
    String::from_utf8_lossy(&ran.stdout).into_owned()
}

/// The tables of nftables that there are, after one was made, if it has a name.
#[track_caller]
fn tables(host: &Host, made: &[&str]) -> String {
    let program = project_path("tests/apps/tables.py");
    let program = program.to_string_lossy();
    in_network(host, &[&["python3", &*program], made].concat())
}

/// A host that begins when it has its address.
fn with_address(store: &Store, name: &str, app: &[&str]) -> harness::Builder {
    let wait = format!(
        "until ip -4 address show dev eth0 2> /dev/null | grep -qw {ADDRESS}; do sleep 0.01; done; exec \"$@\""
    );
    let host = store.host_with(name, &KEPT, app);
    host.run_by(["bash", "-c", &wait, "bash"])
        .add_capability("CAP_NET_ADMIN")
}

/// Gives a host the address; a cable to the peer hangs from it.
#[track_caller]
fn address(host: &Host, peer: &Host) {
    let peer = peer.pid1_host_pid().to_string();
    let cable = "ip link add eth0 type veth peer name to-job netns";
    in_network(
        host,
        &[&cable.split(' ').collect::<Vec<_>>()[..], &[&peer]].concat(),
    );
    in_network(host, &["ip", "link", "set", "eth0", "up"]);
    let all = format!("{ADDRESS}/24");
    in_network(host, &["ip", "address", "add", &all, "dev", "eth0"]);
}

#[track_caller]
fn plug_in(peer: &Host) {
    in_network(peer, &["ip", "link", "set", "to-job", "up"]);
    in_network(
        peer,
        &["ip", "route", "add", ADDRESS, "dev", "to-job", "src", PEER],
    );
}

fn peer() -> Host {
    let peer = Host::builder("peer").args(["python3", "/apps/talk.py", "peer"]);
    let peer = peer.start();
    peer.add_address(&format!("{PEER}/32"));
    peer
}

/// Waits until so much more was said and answered.
#[track_caller]
fn talks(host: &Host, peer: &Host) {
    let lines = [host, peer].map(|host| host.stdout().lines().len() + 20);
    wait_until(LIMIT, "they talk", || {
        host.stdout().lines().len() >= lines[0] && peer.stdout().lines().len() >= lines[1]
    });
}

const KEPT: [&str; 2] = ["--tcp", "established"];

#[test]
fn an_established_connection_goes_on_where_its_address_is() {
    let store = Store::new();
    let app = ["python3", "/apps/talk.py", "job", PEER];
    let host = |name| with_address(&store, name, &app);
    let peer = peer();
    let first = host("first").start();
    address(&first, &peer);
    plug_in(&peer);
    talks(&first, &peer);
    // A checkpoint after which it goes on here does not disturb it.
    checkpoint_ok(&first);
    talks(&first, &peer);
    assert_eq!(tables(&first, &[]), "");
    evict(&first);

    let second = host("second").start();
    // As a worker leaves it that was killed in the middle of a dump.
    assert_eq!(tables(&second, &["CRIU-left"]), "CRIU-left\n");
    address(&second, &peer);
    wait_for_log(&second, "\"this host\"");
    // From now on the peer's packets come here, where the connection is not yet.
    plug_in(&peer);
    wait_for_log(&second, "connections go on");
    wait_for_log(&second, "the job is resumed");
    talks(&second, &peer);
    assert_eq!(tables(&second, &[]), "");
    // Each line came once, and came back once.
    let said = first.stdout().text() + &second.stdout().text();
    assert_counts(&said[..=said.rfind('\n').expect("there are lines")], None);
    let answered = peer.stdout().text();
    assert_counts(
        &answered[..=answered.rfind('\n').expect("there are lines")],
        None,
    );
    evict(&second);

    // Where the address is not, it is closed as it always was.
    let third = store.host_with("third", &KEPT, &app);
    let third = third.add_capability("CAP_NET_ADMIN").start();
    wait_for_log(
        &third,
        "connections are closed: this host does not have their address",
    );
    wait_for_output(&third, "gone");
}

#[test]
fn a_dump_that_fails_leaves_connections_and_no_rule() {
    let store = Store::new();
    let app = ["python3", "/apps/talk.py", "watching", PEER];
    let peer = peer();
    let host = with_address(&store, "host", &app).start();
    address(&host, &peer);
    plug_in(&peer);
    talks(&host, &peer);
    // As CRIU leaves one when it is killed.
    assert_eq!(tables(&host, &["CRIU-left"]), "CRIU-left\n");
    let ran = host.exec(["reprieve", "checkpoint"]);
    assert_ne!(ran.code, 0, "{}", ran.stdout);
    assert!(ran.stderr.contains("fsnotify"), "{}", ran.stderr);
    assert_eq!(tables(&host, &[]), "");
    talks(&host, &peer);
    let all = host.stdout().text() + &peer.stdout().text();
    assert!(!all.contains("gone"), "{all}");
}

#[test]
fn connections_are_kept_only_where_the_container_may() {
    let store = Store::new();
    let host = store.host_with("host", &KEPT, &["sleep", "1000"]).start();
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(170));
    let said = host.stderr().text();
    for wanted in [
        "established connections cannot be kept",
        "--cap-add NET_ADMIN",
    ] {
        assert!(said.contains(wanted), "{said}");
    }
}

#[test]
fn sockets_of_all_kinds_go_on_and_the_host_is_asked_anew() {
    let store = Store::new();
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let host = |name: &str, server: &str, service: &str| {
        let path = |file: &str| directory.path().join(format!("{name}-{file}"));
        fs::write(path("resolv"), format!("nameserver {server}\n")).expect("it is ours");
        let hosts = format!("127.0.0.1 localhost\n{service} service.test\n");
        fs::write(path("hosts"), hosts).expect("it is ours");
        let host = store.host(name, &["python3", "/apps/sockets.py"]);
        host.bind_read_only(path("resolv"), "/etc/resolv.conf")
            .bind_read_only(path("hosts"), "/etc/hosts")
            .start()
    };
    let first = host("first", "192.0.2.53", "192.0.2.7");
    wait_for_output(&first, "line 5");
    wait_for_output(&first, "host first 192.0.2.53 192.0.2.7");
    evict(&first);
    let second = host("second", "198.51.100.53", "198.51.100.7");
    wait_for_log(&second, "the job is resumed");
    wait_for_output(&second, "host second 198.51.100.53 198.51.100.7");
    let lines = || {
        let all = first.stdout().text() + &second.stdout().text();
        let whole = &all[..=all.rfind('\n').expect("there are lines")];
        let lines = whole.lines().filter(|line| line.starts_with("line "));
        lines.map(|line| format!("{line}\n")).collect::<String>()
    };
    let before = lines().lines().count();
    wait_until(LIMIT, "more turns", || {
        lines().lines().count() > before + 10
    });
    assert_counts(&lines(), None);
    // It asks itself whether all is well, and would be gone.
    assert!(second.is_running());
}
