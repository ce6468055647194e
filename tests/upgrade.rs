//! Two versions of Reprieve in one fleet: jobs that move between them, workers of both that want one job, sweeps and commands of
//! one on what the other stored, and what an older one says of a format that it does not know.
//!
//! `make test-upgrade` builds earlier commits of this repository and runs this for each; the binary is named in `OLDER_REPRIEVE`.
//! What the older version cannot do is not a failure: it has to say so, and nothing may be lost by it. What it did is printed.

mod harness;
mod job;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::LazyLock;

use harness::{Builder, Exit, Host, LIMIT, Lookalike, Stdio, wait_until};
use job::{
    ALONE, COUNTER, Store, digest, evict, numbers, of_a_later_version, race, wait_for_output,
};
use reprieve_core::head::Head;
use reprieve_core::{document, head};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Older,
    Newer,
}

use Version::{Newer, Older};

impl Version {
    fn binary(self) -> PathBuf {
        match self {
            Older => std::env::var_os("OLDER_REPRIEVE")
                .expect("`make test-upgrade` names it")
                .into(),
            Newer => env!("CARGO_BIN_EXE_reprieve").into(),
        }
    }

    fn other(self) -> Self {
        match self {
            Older => Newer,
            Newer => Older,
        }
    }
}

/// For all tests of this program.
static SERVER: LazyLock<Lookalike> = LazyLock::new(Lookalike::start);

const BUCKET: &str = "fleet";

/// The store of a fleet.
struct Place {
    /// Empty with S3.
    store: Store,
    is_s3: bool,
}

impl Place {
    fn directory() -> Self {
        Self {
            store: Store::new(),
            is_s3: false,
        }
    }

    fn s3() -> Self {
        SERVER.make_bucket(BUCKET);
        Self {
            store: Store::new(),
            is_s3: true,
        }
    }

    fn options(&self, directory: &str) -> Vec<String> {
        match self.is_s3 {
            true => [
                "--store",
                &format!("s3://{BUCKET}"),
                "--s3-endpoint",
                &SERVER.url,
            ]
            .map(str::to_owned)
            .to_vec(),
            false => ["--store", &format!("file://{directory}")]
                .map(str::to_owned)
                .to_vec(),
        }
    }

    /// A machine of the fleet with this version. Hosts are destroyed here without a goodbye.
    fn host(&self, version: Version, job: &str, options: &[&str], app: &[&str]) -> Builder {
        let mut all = self.options("/snapshots");
        let always = ["--job", job, "--term-grace", "60s"].into_iter();
        all.extend(always.chain(options.iter().copied()).map(str::to_owned));
        if !options.contains(&"--on-other-owner") {
            all.extend(["--on-other-owner", "take-over"].map(str::to_owned));
        }
        let host = Host::builder(&format!("{version:?}").to_lowercase())
            .worker(version.binary())
            .bind_read_only(version.other().binary(), "/usr/local/bin/other")
            .reprieve(all, app.iter().copied());
        // A setting that a version does not know is refused.
        let known = |host: Builder| match version {
            Older => host.without_env("REPRIEVE_AZURE_METADATA_ENDPOINT"),
            Newer => host,
        };
        match self.is_s3 {
            true => known(host.share_net())
                .env("AWS_ACCESS_KEY_ID", "AKIDFORTESTS")
                .env("AWS_SECRET_ACCESS_KEY", "a-secret-that-stays-one"),
            false => host.bind(self.store.path(), "/snapshots"),
        }
    }

    /// A command of this version on the snapshots of a job.
    fn command(&self, version: Version, job: &str, arguments: &[&str]) -> Output {
        let output = Command::new(version.binary())
            .args(arguments)
            .args(self.options(&self.store.path().display().to_string()))
            .args(["--job", job])
            .env("AWS_ACCESS_KEY_ID", "AKIDFORTESTS")
            .env("AWS_SECRET_ACCESS_KEY", "a-secret-that-stays-one")
            .output();
        output.expect("the binary is there")
    }

    #[track_caller]
    fn command_ok(&self, version: Version, job: &str, arguments: &[&str]) -> String {
        let output = self.command(version, job, arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{version:?} {arguments:?}: {said}");
        String::from_utf8(output.stdout).expect("it is text")
    }

    /// The snapshots that count, newest first. The newer version can read each of them.
    #[track_caller]
    fn generations(&self, job: &str) -> Vec<u64> {
        let told = self.command_ok(Newer, job, &["snapshots", "--json"]);
        let told: serde_json::Value = serde_json::from_str(&told).expect("it is JSON");
        let snapshots = told["snapshots"].as_array().expect("it is a list").iter();
        snapshots
            .map(|one| {
                assert_eq!(one["valid"], true, "{one}");
                one["generation"].as_u64().expect("it has a number")
            })
            .collect()
    }

    fn newest(&self, job: &str) -> u64 {
        self.generations(job)[0]
    }
}

/// What came of a start where there are snapshots.
#[derive(Debug)]
enum Came {
    Resumed(u64),
    /// The last word of a worker that started nothing.
    Refused(Exit, String),
}

#[track_caller]
fn came(host: &Host) -> Came {
    let resumed = || {
        let lines = host.stderr().lines();
        lines
            .into_iter()
            .find(|line| line.contains("the job is resumed"))
    };
    wait_until(2 * LIMIT, "a resume, or the end", || {
        resumed().is_some() || !host.is_running()
    });
    let Some(line) = resumed() else {
        let exit = host.wait_exit(LIMIT);
        return Came::Refused(exit, last_word(host));
    };
    let line: serde_json::Value = serde_json::from_str(&line).expect("the log is JSON");
    Came::Resumed(line["generation"].as_u64().expect("it has a number"))
}

/// What it says at its end: what failed, why, and what to do.
fn last_word(host: &Host) -> String {
    let lines = host.stderr().lines();
    let word = lines
        .iter()
        .skip_while(|line| !line.starts_with("reprieve: "));
    let word: Vec<&str> = word.map(|line| line.trim()).collect();
    word.join(" ")
}

/// Ours are from 170 on; 179 is a fault of the program.
#[track_caller]
fn assert_is_a_clear_word(exit: Exit, word: &str) {
    let Exit::Code(code) = exit else {
        panic!("it was killed: {exit:?} {word}")
    };
    assert!((170..179).contains(&code), "{code}: {word}");
    assert!(word.contains("remedy: "), "{code}: {word:?}");
}

/// How often jobs change their hosts; the figures of docs/reliability.md have more.
fn moves() -> usize {
    std::env::var("MOVES").map_or(6, |number| number.parse().expect("a number"))
}

/// A job on its way between hosts of both versions.
struct Traveller<'a> {
    place: &'a Place,
    job: &'a str,
    mib: &'a str,
    /// The version that it began with.
    version: Version,
    /// Of its memory, by the generation that has it.
    digests: BTreeMap<u64, String>,
    told: Vec<String>,
}

impl Traveller<'_> {
    fn travels(mut self) -> Vec<String> {
        let app = ["python3", "/apps/memory.py", self.mib, "--churn", "200"];
        let mut version = self.version;
        for number in 0..=moves() {
            let host = self
                .place
                .host(version, self.job, &["--keep-generations", "4"], &app)
                .start();
            match number {
                0 => wait_for_output(&host, "ready"),
                _ if !self.arrives(version, &host) => {
                    version = version.other();
                    continue;
                }
                _ => {}
            }
            self.works(&host);
            version = version.other();
        }
        self.told
    }

    /// Whether the job goes on, exactly; the newer version has no excuse.
    fn arrives(&mut self, version: Version, host: &Host) -> bool {
        let known = self.place.generations(self.job);
        match came(host) {
            Came::Resumed(generation) => {
                wait_for_output(host, "tick");
                let expected = &self.digests[&generation];
                assert_eq!(digest(host, libc::SIGUSR1), *expected, "{version:?}");
                let is_newest = generation == known[0];
                assert!(is_newest || version == Older, "{generation} of {known:?}");
                self.told.push(match is_newest {
                    true => format!("{version:?}: exact"),
                    false => format!("{version:?}: exact, from {generation} of {known:?}"),
                });
                true
            }
            Came::Refused(exit, word) => {
                assert_eq!(version, Older, "{exit:?} {word}");
                assert_is_a_clear_word(exit, &word);
                assert_eq!(
                    self.place.generations(self.job),
                    known,
                    "all are still there"
                );
                self.told.push(format!("{version:?}: {exit:?}, {word}"));
                false
            }
        }
    }

    /// A snapshot that lets it go on, and one that stops it.
    fn works(&mut self, host: &Host) {
        let changed = digest(host, libc::SIGUSR2);
        job::checkpoint_ok(host);
        self.digests.insert(self.place.newest(self.job), changed);
        let changed = digest(host, libc::SIGUSR2);
        evict(host);
        self.digests.insert(self.place.newest(self.job), changed);
    }
}

fn jobs_travel(place: &Place, jobs: &[(&str, &str, Version)]) {
    let told: Vec<(String, Vec<String>)> = std::thread::scope(|scope| {
        let travels = jobs.iter().map(|(job, mib, version)| {
            let traveller = Traveller {
                place,
                job,
                mib,
                version: *version,
                digests: BTreeMap::new(),
                told: Vec::new(),
            };
            (*job, scope.spawn(|| traveller.travels()))
        });
        let travels: Vec<_> = travels.collect();
        let ended = travels
            .into_iter()
            .map(|(job, thread)| (job.to_owned(), thread.join().expect("it arrives")));
        ended.collect()
    });
    for (job, told) in told {
        for (number, told) in told.iter().enumerate() {
            println!("{job}, move {}: {told}", number + 1);
        }
        place.command_ok(Newer, &job, &["verify", "--all"]);
    }
}

#[test]
fn jobs_move_between_both_versions_over_one_directory() {
    // One is large enough for its memory to be stored ahead.
    let jobs = [
        ("one", "8", Older),
        ("large", "40", Older),
        ("began-newer", "8", Newer),
    ];
    jobs_travel(&Place::directory(), &jobs);
}

#[test]
fn jobs_move_between_both_versions_over_s3() {
    let jobs = [("one", "8", Older), ("began-newer", "8", Newer)];
    jobs_travel(&Place::s3(), &jobs);
}

#[test]
fn of_both_versions_that_start_at_once_one_runs_the_job() {
    let place = Place::directory();
    let options = ["--on-other-owner", "leave"];
    let rounds = 4 * moves();
    let mut won_by_older = 0;
    for round in 0..rounds {
        let first = if round % 2 == 0 { Older } else { Newer };
        let versions = [first, first.other()];
        let winner = race(versions.map(|version| place.host(version, "job", &options, ALONE)));
        won_by_older += usize::from(versions[winner] == Older);
    }
    println!("{rounds} races, {won_by_older} of them won by the older version");
}

/// Whoever takes a job over leaves the other one nothing to commit, and one that died without a word is waited for.
fn is_taken_over(by: Version) {
    let place = Place::directory();
    let owner = place.host(by.other(), "job", &[], COUNTER).start();
    wait_for_output(&owner, "line 10");
    job::checkpoint_ok(&owner);
    let next = place
        .host(by, "job", &["--lease-term", "3s"], COUNTER)
        .start();
    let came = came(&next);
    assert_eq!(owner.wait_exit(LIMIT), Exit::Code(172));
    match came {
        Came::Resumed(generation) => {
            assert_eq!(generation, 1);
            wait_until(LIMIT, "it goes on", || next.stdout().mark() > 100);
            job::checkpoint_ok(&next);
        }
        Came::Refused(exit, word) => {
            assert_eq!(by, Older, "{exit:?} {word}");
            assert_is_a_clear_word(exit, &word);
            println!("taken over by the older version: {exit:?}, {word}");
        }
    }
    next.destroy();
    let newest = place.newest("job");
    let term = ["--lease-term", "3s", "--on-other-owner", "wait"];
    let last = place.host(Newer, "job", &term, COUNTER).start();
    assert!(matches!(self::came(&last), Came::Resumed(found) if found == newest));
    assert!(
        newest == 1
            || last
                .stderr()
                .text()
                .contains("is silent; it died without a goodbye")
    );
    wait_until(LIMIT, "it goes on", || last.stdout().mark() > 100);
    evict(&last);
    // It goes on from within what was written before, or just behind it.
    let before = match newest {
        1 => &owner,
        _ => &next,
    };
    let last_before = numbers(&(before.stdout().lines().join("\n") + "\n"));
    // The first line may be the rest of one.
    let second = numbers(&(last.stdout().lines()[1].clone() + "\n"))[0];
    let furthest = last_before.last().expect("it ran") + 2;
    assert!((2..=furthest).contains(&second), "{second}, {furthest}");
}

#[test]
fn a_job_is_taken_over_from_the_older_version() {
    is_taken_over(Newer);
}

#[test]
fn a_job_is_taken_over_by_the_older_version() {
    is_taken_over(Older);
}

/// One version sweeps what the other stores, without any grace, between its checkpoints and while it takes them.
fn is_swept(by: Version) {
    let place = Place::directory();
    let writer = by.other();
    let prune = ["prune", "--keep-generations", "2", "--sweep-grace", "0s"];
    if place.command(by, "job", &["prune", "--help"]).status.code() != Some(0) {
        println!("the {by:?} version does not sweep");
        return;
    }
    let app = ["python3", "/apps/memory.py", "40", "--churn", "200"];
    let options = ["--keep-generations", "4"];
    // Begun with the older one, so that both know the format of what is stored.
    let began = place.host(Older, "job", &options, &app).start();
    wait_for_output(&began, "ready");
    evict(&began);
    let mut host = place.host(writer, "job", &options, &app).start();
    assert!(matches!(came(&host), Came::Resumed(1)));
    let mut refused = 0;
    for round in 0..moves() {
        let changed = digest(&host, libc::SIGUSR2);
        // One whose data was swept while it was stored is not committed, which is told.
        std::thread::scope(|scope| {
            let sweep = scope.spawn(|| place.command(by, "job", &prune));
            let ran = job::checkpoint(&host);
            assert!([0, 180].contains(&ran.code), "{}", ran.stderr);
            refused += usize::from(ran.code != 0);
            sweep.join().expect("it ends");
        });
        job::checkpoint_ok(&host);
        place.command_ok(by, "job", &prune);
        place.command_ok(Newer, "job", &["verify", "--all"]);
        if round % 3 == 2 {
            evict(&host);
            place.command_ok(by, "job", &prune);
            host = place.host(writer, "job", &options, &app).start();
            assert!(
                matches!(came(&host), Came::Resumed(_)),
                "{}",
                last_word(&host)
            );
            assert_eq!(digest(&host, libc::SIGUSR1), changed);
        }
    }
    println!(
        "{} sweeps by the {by:?} version, {refused} checkpoints refused for one",
        2 * moves()
    );
}

#[test]
fn the_newer_version_sweeps_what_the_older_one_stores() {
    is_swept(Newer);
}

#[test]
fn the_older_version_sweeps_what_the_newer_one_stores() {
    is_swept(Older);
}

/// Commands of one version on a job of the other: they answer, or say why they do not.
fn is_asked(by: Version) {
    let place = Place::directory();
    let host = place.host(by.other(), "job", &[], COUNTER).start();
    wait_for_output(&host, "line 10");
    job::checkpoint_ok(&host);
    job::checkpoint_ok(&host);
    let out = tempfile::tempdir().expect("a temporary directory can be made");
    let out = out.path().join("images").display().to_string();
    let asked: [&[&str]; 8] = [
        &["snapshots"],
        &["snapshots", "--json"],
        &["show", "newest"],
        &["inspect", "newest"],
        &["diff", "1", "newest"],
        &["verify", "--all"],
        &["extract", "newest", &out],
        &["pin", "1"],
    ];
    let check = |arguments: &[&str], code: i32, said: &str| {
        println!("{by:?} {arguments:?}: {code}");
        // 174 is a command that the older version does not have.
        assert!(code == 0 || by == Older, "{arguments:?}: {code} {said}");
        assert!(
            code == 0 || (172..190).contains(&code) && code != 179,
            "{arguments:?}: {code} {said}"
        );
        assert!(
            code == 0 || !said.trim().is_empty(),
            "{arguments:?}: {code}"
        );
    };
    for arguments in asked {
        let output = place.command(by, "job", arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        check(
            arguments,
            output.status.code().expect("it ends by itself"),
            &said,
        );
    }
    // At the supervisor's own socket.
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["checkpoint", "--leave-running"],
    ] {
        let ran = host.exec([&["other"], arguments].concat());
        check(arguments, ran.code, &ran.stderr);
    }
    // Whatever was asked, the job is as it was.
    evict(&host);
    place.command_ok(Newer, "job", &["verify", "--all"]);
    let next = place.host(by.other(), "job", &[], COUNTER).start();
    let newest = place.newest("job");
    assert!(matches!(came(&next), Came::Resumed(found) if found == newest));
}

#[test]
fn the_newer_version_is_asked_about_what_the_older_one_stored() {
    is_asked(Newer);
}

#[test]
fn the_older_version_is_asked_about_what_the_newer_one_stored() {
    is_asked(Older);
}

/// What the present version does then is tested in tests/restore.rs.
#[test]
fn the_older_version_leaves_a_later_format_alone() {
    let version = Older;
    let place = Place::directory();
    let keep = ["--keep-generations", "8"];
    let host = place.host(version, "job", &keep, COUNTER).start();
    wait_for_output(&host, "line 10");
    job::checkpoint_ok(&host);
    evict(&host);
    let root = place.store.path().join("job");
    let path = root.join(head::KEY);
    let original = fs::read(&path).expect("it is there");

    fs::write(&path, of_a_later_version(&original, "head")).expect("it can be written");
    let later = fs::read(&path).expect("it is there");
    let host = place.host(version, "job", &keep, COUNTER).start();
    let Came::Refused(exit, word) = came(&host) else {
        panic!("{version:?} resumed what it cannot know")
    };
    assert_is_a_clear_word(exit, &word);
    assert!(
        host.stderr()
            .text()
            .contains("run a program of that version"),
        "{word}"
    );
    println!("{version:?}, a later head: {exit:?}, {word}");
    assert_eq!(
        fs::read(&path).expect("it is there"),
        later,
        "it is as it was"
    );

    // Only the newest manifest is of a later version: it is not gone back behind, unless by a version that had not learnt
    // that.
    let mut known: Head = Head::from_bytes(&original).expect("it is whole");
    let manifest = root.join(&known.generations[0].manifest);
    let bytes = fs::read(&manifest).expect("it is there");
    let bytes = of_a_later_version(&bytes, "manifest");
    known.generations[0].digest = document::digest(&bytes);
    fs::write(&manifest, &bytes).expect("it can be written");
    fs::write(&path, known.to_bytes()).expect("it can be written");
    let host = place.host(version, "job", &keep, COUNTER).start();
    match came(&host) {
        Came::Refused(exit, word) => {
            assert_is_a_clear_word(exit, &word);
            println!("{version:?}, a later manifest: {exit:?}, {word}");
        }
        Came::Resumed(generation) => {
            assert_eq!(generation, 1);
            println!("{version:?}, a later manifest: passed over");
            evict(&host);
        }
    }
    assert!(
        host.stderr()
            .text()
            .contains("run a program of that version")
    );
    let head = Head::from_bytes(&fs::read(&path).expect("it is there")).expect("it is whole");
    assert!(head.generation(1).is_some() && head.generation(2).is_some());
    assert_eq!(fs::read(&manifest).expect("it is there"), bytes);
}

#[test]
fn a_snapshot_with_files_is_not_resumed_without_them() {
    let place = Place::directory();
    let script = "echo of the job > /srv/file; exec python3 /apps/counter.py --pace 0.01";
    let app = ["bash", "-c", script];
    let host = place
        .host(Newer, "job", &["--preserve", "/srv"], &app)
        .start();
    wait_for_output(&host, "line 10");
    evict(&host);
    let host = place.host(Older, "job", &[], &app).start();
    let Came::Refused(exit, word) = came(&host) else {
        panic!("the older version resumed a job without its files")
    };
    assert_is_a_clear_word(exit, &word);
    println!("the older version, of files: {exit:?}, {word}");
    // Nor does it sweep what it does not know.
    let prune = ["prune", "--keep-generations", "2", "--sweep-grace", "0s"];
    let pruned = place.command(Older, "job", &prune).status.code();
    println!("the older version, told to sweep: {pruned:?}");
    place.command_ok(Newer, "job", &["verify", "--all"]);
    let host = place
        .host(Newer, "job", &["--preserve", "/srv"], &app)
        .start();
    assert!(matches!(came(&host), Came::Resumed(1)));
    assert_eq!(host.exec_ok(["cat", "/srv/file"]), "of the job\n");
}
