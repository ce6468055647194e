//! Files that the app wrote on its own layer, and finds again on a host that never had them.

mod harness;
mod job;

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use harness::{Builder, Exit, Host, LIMIT, Lookalike, wait_until};
use job::{Store, checkpoint, checkpoint_ok, evict, wait_for_log, wait_for_output};
use reprieve_core::head::Head;
use reprieve_core::manifest::Manifest;

/// Keeps a log and a database of pages open, changes files of the image, and checks all of it when it is told to. What a
/// program can see of its files is what it prints.
const APP: &str = r#"
import fcntl, hashlib, os, sys, time
def say(text):
    print(text, flush=True)
os.makedirs('/srv/app/empty', exist_ok=True)
log = open('/srv/app/log', 'a')
db = open('/srv/app/db', 'w+b')
db.write(os.urandom(40 << 20)); db.flush()
with open('/srv/app/sparse', 'wb') as sparse:
    sparse.truncate(3 << 30); sparse.seek(1 << 30); sparse.write(b'in the middle')
os.link('/srv/app/db', '/srv/app/db-too')
os.symlink('../app/log', '/srv/app/link')
os.mkfifo('/srv/app/fifo', 0o600)
fifo = os.open('/srv/app/fifo', os.O_RDWR | os.O_NONBLOCK)
with open('/srv/app/private', 'w') as private:
    private.write('a note')
os.chmod('/srv/app/private', 0o640); os.chown('/srv/app/private', 12, 34)
os.setxattr('/srv/app/private', 'user.colour', b'blue')
os.utime('/srv/app/private', ns=(1, 1_500_000_000_123_456_789))
os.remove('/etc/issue')
with open('/etc/hostname.of.app', 'w') as other: other.write('x')
with open('/etc/debian_version', 'a') as changed: changed.write('changed\n')
with open('/srv/app/cache.tmp', 'w') as cache: cache.write('not needed')
with open('/srv/app/kept-open', 'w+') as once: once.write('x')
say('ready')
def digest():
    db.flush(); db.seek(0)
    return hashlib.sha256(db.read()).hexdigest()
number = 0
while True:
    time.sleep(0.05)
    number += 1
    log.write(f'{number}\n'); log.flush()
    page = os.urandom(4096)
    db.seek(4096 * (number % 8)); db.write(page); db.flush()
    if os.path.exists('/run/look'):
        stat = os.stat('/srv/app/private'); sparse = os.stat('/srv/app/sparse')
        same = os.stat('/srv/app/db').st_ino == os.stat('/srv/app/db-too').st_ino == os.fstat(db.fileno()).st_ino
        seen = [
            len(open('/srv/app/log').read().split()) == number, same, os.readlink('/srv/app/link'),
            oct(stat.st_mode), stat.st_uid, stat.st_gid, stat.st_mtime_ns, os.getxattr('/srv/app/private', 'user.colour'),
            sparse.st_size, sparse.st_blocks * 512 < 1 << 20, open('/srv/app/sparse', 'rb').read(1) == b'\0',
            os.path.isdir('/srv/app/empty'), oct(os.stat('/srv/app/fifo').st_mode),
            os.stat('/srv/app/fifo').st_ino == os.fstat(fifo).st_ino,
            os.path.exists('/etc/issue'), open('/etc/debian_version').read().endswith('changed\n'),
            os.path.exists('/srv/app/cache.tmp'), hashlib.sha256(open('/srv/app/db', 'rb').read()).hexdigest() == digest(),
        ]
        os.remove('/run/look')
        say(f'seen {seen}')
"#;

/// What the app is to see, wherever it looks.
const SEEN: &str = "[True, True, '../app/log', '0o100640', 12, 34, 1500000000123456789, b'blue', 3221225472, True, \
                    True, True, '0o10600', True, False, True, CACHE, True]";

const SLOW: std::time::Duration = std::time::Duration::from_secs(60);

static SERVER: LazyLock<Lookalike> = LazyLock::new(Lookalike::start);

#[track_caller]
fn assert_sees_all(host: &Host, cache: bool) {
    let mark = host.stdout().mark();
    host.exec_ok(["touch", "/run/look"]);
    let line = host
        .stdout()
        .wait_for_line_after(mark, "what it sees", SLOW, |line| line.contains("seen"));
    let cache = if cache { "True" } else { "False" };
    assert_eq!(
        line.trim(),
        format!("seen {}", SEEN.replace("CACHE", cache))
    );
}

fn manifests(store: &Store) -> Vec<Manifest> {
    let head = fs::read(store.path().join("job/HEAD")).expect("there is one");
    let head = Head::from_bytes(&head).expect("it is whole");
    let read = |manifest: &str| {
        let bytes = fs::read(store.path().join("job").join(manifest)).expect("it is there");
        Manifest::from_bytes(&bytes).expect("it is whole")
    };
    head.generations
        .iter()
        .map(|known| read(&known.manifest))
        .collect()
}

fn app() -> [&'static str; 3] {
    ["python3", "-c", APP]
}

#[test]
fn what_the_app_wrote_is_there_on_a_host_that_never_had_it_and_only_changes_are_stored() {
    let store = Store::new();
    let options = ["--preserve", "auto", "--preserve-exclude", "*.tmp"];
    let first = store.host_with("first", &options, &app()).start();
    first
        .stdout()
        .wait_for_line("ready", SLOW, |line| line.contains("ready"));
    assert_sees_all(&first, true);
    checkpoint_ok(&first);
    evict(&first);
    let [newest, before] = &manifests(&store)[..] else {
        panic!("two snapshots")
    };
    let (files, all) = (
        newest.sizes.preserved.expect("some"),
        before.sizes.preserved.expect("some"),
    );
    assert!(all.changed > 40 << 20 && all.files > 10, "{all:?}");
    // The pages that the app touched, and those of the interpreter's own files.
    assert!(
        files.bytes >= 40 << 20 && files.changed < 1 << 20,
        "{files:?}"
    );
    assert!(newest.sizes.stored < 4 << 20, "{:?}", newest.sizes);

    let second = store.host_with("second", &options, &app()).start();
    wait_for_log(&second, "the job is resumed");
    assert_sees_all(&second, false);
    assert!(!second.path("/srv/app/cache.tmp").exists());
    let names = fs::read_dir(second.path("/srv/app")).expect("it is there");
    let ours = names.filter(|name| {
        name.as_ref()
            .expect("it is there")
            .file_name()
            .to_string_lossy()
            .starts_with(".reprieve")
    });
    assert_eq!(ours.count(), 0);
    evict(&second);
    let third = manifests(&store)[0].sizes.preserved.expect("some");
    assert!(third.changed < 1 << 20, "{third:?}");

    let last = store.host_with("last", &options, &app()).start();
    wait_for_log(&last, "the job is resumed");
    assert_sees_all(&last, false);
    let verified = last.exec_ok([
        "reprieve",
        "verify",
        "--all",
        "--store",
        "file:///snapshots",
        "--job",
        "job",
    ]);
    assert!(verified.contains("sound"), "{verified}");
    checkpoint_ok(&last);
    // What only older snapshots needed goes, and no more.
    last.exec_ok([
        "reprieve",
        "prune",
        "--store",
        "file:///snapshots",
        "--job",
        "job",
        "--keep-generations",
        "2",
    ]);
    last.destroy();
    let after = store.host_with("after", &options, &app()).start();
    wait_for_log(&after, "the job is resumed");
    assert_sees_all(&after, false);
}

/// Sealed, through S3, with a list instead of `auto`.
#[test]
fn named_files_travel_sealed_through_s3() {
    SERVER.make_bucket("preserve");
    let key = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    fs::write(key.path(), "a passphrase in one line\n").expect("it can be written");
    let app = "mkdir -p /data/deep/er; exec 7>>/data/deep/er/log; echo secret-of-the-app >&7; echo no > /data/no.log
        echo ready; while :; do sleep 0.05; echo on; test -e /run/look && { cat /data/deep/er/log; ls /data; rm /run/look; }; done";
    let host = |name: &str| -> Host {
        let options = [
            "--store",
            "s3://preserve/jobs",
            "--s3-endpoint",
            &SERVER.url,
            "--job",
            "job",
            "--on-other-owner",
            "take-over",
            "--key-file",
            "/key",
            "--preserve",
            "/data/**/er/*:/nothing",
            "--preserve",
            "/data/*.txt",
        ];
        Host::builder(name)
            .share_net()
            .env("AWS_ACCESS_KEY_ID", "AKIDFORTESTS")
            .env("AWS_SECRET_ACCESS_KEY", "a-secret-that-stays-one")
            .bind_read_only(key.path(), "/key")
            .reprieve(options, ["bash", "-c", app])
            .start()
    };
    let first = host("first");
    wait_for_output(&first, "on");
    evict(&first);
    for key in SERVER.keys("preserve") {
        let bytes = SERVER.object("preserve", &key);
        assert!(
            !bytes.windows(17).any(|part| part == b"secret-of-the-app"),
            "{key}"
        );
    }
    let second = host("second");
    wait_for_log(&second, "the job is resumed");
    second.exec_ok(["touch", "/run/look"]);
    wait_for_output(&second, "secret-of-the-app");
    wait_for_output(&second, "deep");
    assert!(!second.stdout().text().contains("no.log"));
}

#[test]
fn without_it_the_missing_file_is_named_with_this_remedy_and_with_a_setting_taken_away_nothing_is_lost()
 {
    let store = Store::new();
    let app = [
        "bash",
        "-c",
        "exec 7>/srv/log; echo ready; while :; do sleep 0.05; echo on; echo on >&7; done",
    ];
    let first = store.host("first", &app).start();
    wait_for_output(&first, "on");
    evict(&first);
    let second = store.host("second", &app).start();
    assert_eq!(second.wait_exit(LIMIT), Exit::Code(171));
    let said = second.stderr().text();
    assert!(
        said.contains("/srv/log is not here") && said.contains("(--preserve)"),
        "{said}"
    );
}

#[test]
fn a_snapshot_whose_files_this_worker_may_not_write_is_refused_and_no_older_one_is_taken() {
    let store = Store::new();
    let app = [
        "bash",
        "-c",
        "echo 1 > /srv/a; echo ready; while :; do sleep 0.05; echo on; done",
    ];
    let first = store
        .host_with("first", &["--preserve", "/srv"], &app)
        .start();
    wait_for_output(&first, "on");
    checkpoint_ok(&first);
    evict(&first);
    for (options, why) in [
        (
            &["--preserve", "/other"][..],
            "/srv/a is not what this worker was told to preserve",
        ),
        (&[], "this worker is to preserve none"),
    ] {
        let host = store.host_with("refused", options, &app).start();
        let exit = host.wait_exit(LIMIT);
        let said = host.stderr().text();
        assert!(exit == Exit::Code(171), "{exit:?} {said}");
        assert!(
            said.contains(why) && said.contains("nothing was started and nothing is lost"),
            "{said}"
        );
        assert!(!said.contains("passed over"), "{said}");
        assert!(!host.path("/srv/a").exists());
        host.destroy();
    }
    let allowed = store
        .host_with("allowed", &["--preserve", "/srv"], &app)
        .start();
    wait_for_log(&allowed, "the job is resumed");
    assert_eq!(
        fs::read(allowed.path("/srv/a")).expect("it is there"),
        b"1\n"
    );
}

#[test]
fn a_checkpoint_that_fails_writes_nothing_and_the_job_runs_on() {
    let store = Store::new();
    let script = "mkdir -p /real/in; ln -s /real /srv/link; echo ready; while :; do sleep 0.05; echo on; done";
    let host = store
        .host_with(
            "host",
            &["--preserve", "/srv/link/in"],
            &["bash", "-c", script],
        )
        .start();
    wait_for_output(&host, "on");
    let ran = checkpoint(&host);
    assert_ne!(ran.code, 0, "{}", ran.stdout);
    let said = ran.stderr + &host.stderr().text();
    assert!(said.contains("lies behind a symbolic link"), "{said}");
    let mark = host.stdout().mark();
    wait_until(LIMIT, "it to run on", || host.stdout().mark() > mark + 10);
    assert!(
        !store.path().join("job/manifests").is_dir()
            || is_empty(&store.path().join("job/manifests"))
    );
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_none())
}

/// The newest one has a file of a volume open that only one host has: its own files go as they came, and those of the
/// snapshot before are there.
#[test]
fn an_older_snapshot_comes_with_its_own_files() {
    let store = Store::new();
    let volume = tempfile::tempdir().expect("a temporary directory can be made");
    fs::write(volume.path().join("open"), "x").expect("it is ours");
    let app =
        "echo one > /srv/state; echo ready; until test -e /run/two; do sleep 0.05; echo on; done
        exec 7< /volume/open; echo two > /srv/state; echo more > /srv/more; rm /etc/issue
        echo second; while :; do sleep 0.05; echo two; done";
    let app = ["bash", "-c", app];
    let host = |name: &str, options: &[&str]| -> Builder {
        store.host_with(name, &[&["--preserve", "auto"], options].concat(), &app)
    };
    let first = host("first", &[]).bind(volume.path(), "/volume").start();
    wait_for_output(&first, "on");
    checkpoint_ok(&first);
    first.exec_ok(["touch", "/run/two"]);
    wait_for_output(&first, "second");
    evict(&first);
    let has = |host: &Host, state: &str, more: bool| {
        assert_eq!(
            fs::read_to_string(host.path("/srv/state")).expect("it is there"),
            state
        );
        assert_eq!(host.path("/srv/more").exists(), more);
        assert_eq!(host.path("/etc/issue").exists(), !more);
    };
    let newest = host("newest", &[]).bind(volume.path(), "/volume").start();
    wait_for_log(&newest, "the job is resumed");
    has(&newest, "two\n", true);
    newest.destroy();
    let without = host("without", &[]).start();
    wait_for_log(&without, "a snapshot is passed over");
    wait_for_log(&without, "the job is resumed");
    has(&without, "one\n", false);
    without.destroy();
    let back = host("back", &["--from", "1"])
        .bind(volume.path(), "/volume")
        .start();
    wait_for_log(&back, "the job is resumed");
    has(&back, "one\n", false);
}
