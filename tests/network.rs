//! Sockets and connections on another host, and what the job is told of that.

mod harness;
mod job;

use std::fs;
use std::io::Read as _;
use std::process::{Child, Command, Stdio};

use harness::{Exit, Host, LIMIT, project_path, wait_until};
use job::{Store, assert_counts, checkpoint_ok, evict, wait_for_log, wait_for_output};

/// The job's address, and that of the one it talks with.
#[derive(Clone, Copy)]
struct Ends {
    job: &'static str,
    peer: &'static str,
    /// Bits of the network, and of an address.
    bits: [u8; 2],
}

const IPV4: Ends = Ends {
    job: "192.0.2.1",
    peer: "192.0.2.100",
    bits: [24, 32],
};

const IPV6: Ends = Ends {
    job: "2001:db8::1",
    peer: "2001:db8::100",
    bits: [64, 128],
};

/// What the full profile needs.
const FULL: [&str; 2] = ["CAP_SYS_ADMIN", "CAP_SYS_TIME"];

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
fn with_address(store: &Store, name: &str, ends: Ends, app: &[&str]) -> harness::Builder {
    let wait = format!(
        "until ip address show dev eth0 2> /dev/null | grep -qwF {}; do sleep 0.01; done; exec \"$@\"",
        ends.job
    );
    let host = store.host_with(name, &KEPT, app);
    host.run_by(["bash", "-c", &wait, "bash"])
        .add_capability("CAP_NET_ADMIN")
}

/// Gives a host the address; a cable to the peer hangs from it.
#[track_caller]
fn address(host: &Host, peer: &Host, ends: Ends) {
    let peer = peer.pid1_host_pid().to_string();
    let cable = "ip link add eth0 type veth peer name to-job netns";
    in_network(
        host,
        &[&cable.split(' ').collect::<Vec<_>>()[..], &[&peer]].concat(),
    );
    in_network(host, &["ip", "link", "set", "eth0", "up"]);
    add(host, ends, ends.job, "eth0");
}

#[track_caller]
fn add(host: &Host, ends: Ends, address: &str, interface: &str) {
    let all = format!("{address}/{}", ends.bits[0]);
    let command = ["ip", "address", "add", &all, "dev", interface];
    // Otherwise it is not to be used for a second.
    let at_once = ["nodad"].into_iter().filter(|_| address.contains(':'));
    in_network(
        host,
        &command.into_iter().chain(at_once).collect::<Vec<_>>(),
    );
}

#[track_caller]
fn plug_in(peer: &Host, ends: Ends) {
    in_network(peer, &["ip", "link", "set", "to-job", "up"]);
    // Neighbours of IPv6 are answered for what the interface itself has.
    if ends.peer.contains(':') {
        add(peer, ends, ends.peer, "to-job");
    }
    let route = ["ip", "route", "add", ends.job, "dev", "to-job"];
    in_network(peer, &[&route[..], &["src", ends.peer]].concat());
}

fn peer(ends: Ends) -> Host {
    let peer = Host::builder("peer").args(["python3", "/apps/talk.py", "peer"]);
    let peer = peer.start();
    peer.add_address(&format!("{}/{}", ends.peer, ends.bits[1]));
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

/// A host's network, which stays when the host goes.
struct Network(Child);

impl Network {
    #[track_caller]
    fn of(host: &Host) -> Self {
        let mut holder = Command::new("nsenter")
            .args(["--target", &host.pid1_host_pid().to_string(), "--net"])
            .args(["sh", "-c", "echo here; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("nsenter (util-linux) can be started");
        let mut here = [0; 4];
        let output = holder.stdout.as_mut().expect("it is a pipe");
        output.read_exact(&mut here).expect("it says so");
        Self(holder)
    }

    /// As the kernel shows them, with the peer's port.
    #[track_caller]
    fn connections(&self) -> Vec<String> {
        let ran = Command::new("nsenter")
            .args(["--target", &self.0.id().to_string(), "--net"])
            .args(["cat", "/proc/net/tcp", "/proc/net/tcp6"])
            .output()
            .expect("nsenter (util-linux) can be started");
        assert!(ran.status.success());
        let text = String::from_utf8_lossy(&ran.stdout);
        let those = text.lines().filter(|line| line.contains(":1B58 "));
        those.map(str::to_owned).collect()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

const KEPT: [&str; 2] = ["--tcp", "established"];

#[test]
fn an_established_connection_goes_on_where_its_address_is() {
    goes_on_where_its_address_is(IPV4, &[]);
}

#[test]
fn an_established_connection_goes_on_in_the_full_profile() {
    goes_on_where_its_address_is(IPV4, &FULL);
}

#[test]
fn an_established_connection_of_ipv6_goes_on() {
    goes_on_where_its_address_is(IPV6, &[]);
}

fn goes_on_where_its_address_is(ends: Ends, capabilities: &[&str]) {
    let store = Store::new();
    let app = ["python3", "/apps/talk.py", "job", ends.peer];
    let able = |host: harness::Builder| {
        let all = capabilities.iter();
        all.fold(host, |host, one| host.add_capability(*one))
    };
    let host = |name| able(with_address(&store, name, ends, &app));
    let peer = peer(ends);
    let first = host("first").start();
    address(&first, &peer, ends);
    plug_in(&peer, ends);
    talks(&first, &peer);
    // A checkpoint after which it goes on here does not disturb it.
    checkpoint_ok(&first);
    talks(&first, &peer);
    assert_eq!(tables(&first, &[]), "");
    evict(&first);

    let second = host("second").start();
    // As a worker leaves it that was killed in the middle of a dump.
    assert_eq!(tables(&second, &["CRIU-left"]), "CRIU-left\n");
    address(&second, &peer, ends);
    wait_for_log(&second, "\"this host\"");
    // From now on the peer's packets come here, where the connection is not yet.
    plug_in(&peer, ends);
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
    // Nothing of it is left there that would tell its peer of an end, as it would where the network outlives the container.
    in_network(&peer, &["ip", "link", "set", "to-job", "down"]);
    let network = Network::of(&second);
    evict(&second);
    assert_eq!(network.connections(), Vec::<String>::new());
    drop(network);

    // Where the address is not, it is closed as it always was.
    let third = able(store.host_with("third", &KEPT, &app));
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
    let app = ["python3", "/apps/talk.py", "watching", IPV4.peer];
    let peer = peer(IPV4);
    let host = with_address(&store, "host", IPV4, &app).start();
    address(&host, &peer, IPV4);
    plug_in(&peer, IPV4);
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
