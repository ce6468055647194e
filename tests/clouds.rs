//! Snapshots in Google Cloud Storage and in Azure's blob storage, against look-alikes that keep the conditions of writes:
//! Azurite for the one, for the other a server of our own (see `harness/gcs.rs`).

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use reprieve::store::{
    self, CloudOptions, Condition, Limits, Options, Store, StoreAddress, StoreErrorKind, Variables,
};

#[path = "../worker/src/store/contract.rs"]
mod contract;
mod harness;
mod job;

use harness::{Azurite, Builder, Exit, Gcs, Host, LIMIT, wait_until};
use job::{COUNTER, assert_counts, checkpoint_ok, evict, wait_for_log, wait_for_output};
use reprieve_core::head::Head;

static AZURITE: LazyLock<Azurite> = LazyLock::new(Azurite::start);

/// Small pages, so that the pages themselves are tested.
fn small_pages() -> Limits {
    Limits {
        page: 7,
        ..Limits::default()
    }
}

fn google(gcs: &Gcs) -> Options {
    google_with(gcs, &[("GOOGLE_BEARER_TOKEN", &gcs.token())])
}

fn google_with(gcs: &Gcs, variables: &[(&str, &str)]) -> Options {
    Options {
        google: CloudOptions {
            endpoint: Some(gcs.url.clone()),
            variables: Variables::given(variables),
            limits: small_pages(),
            ..CloudOptions::default()
        },
        ..Options::default()
    }
}

fn azure() -> Options {
    azure_with(&[("AZURE_STORAGE_KEY", Azurite::KEY)])
}

fn azure_with(variables: &[(&str, &str)]) -> Options {
    Options {
        azure: CloudOptions {
            endpoint: Some(AZURITE.url().to_owned()),
            account: Some(Azurite::ACCOUNT.to_owned()),
            variables: Variables::given(variables),
            limits: small_pages(),
        },
        ..Options::default()
    }
}

async fn open(address: &str, options: &Options) -> Arc<dyn Store> {
    let address = StoreAddress::parse(address).expect("an address");
    store::open(&address, options)
        .await
        .expect("nothing to fail yet")
}

/// The contract at the root of one bucket and, with neighbours that are none of its business, below a prefix of another.
async fn keeps_the_contract(scheme: &str, options: &Options) {
    let at = |place: &str| format!("{scheme}://{place}");
    let missing = open(&at("missing-bucket/deep/prefix"), options).await;
    contract::holds_for(&contract::Subject {
        store: open(&at("whole-bucket"), options).await,
        missing: missing.clone(),
        many: 120,
    })
    .await;
    for beside in ["shared-bucket/a", "shared-bucket/a-b"] {
        let beside = open(&at(beside), options).await;
        let put = beside.put("in-the-way", Bytes::from_static(b"x"), Condition::Absent);
        put.await.expect("it can be stored");
    }
    contract::holds_for(&contract::Subject {
        store: open(&at("shared-bucket/a/b"), options).await,
        missing,
        many: 30,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn google_keeps_the_contract() {
    let gcs = Gcs::start();
    gcs.make_bucket("whole-bucket");
    gcs.make_bucket("shared-bucket");
    keeps_the_contract("gs", &google(&gcs)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn azure_keeps_the_contract() {
    AZURITE.make_container("whole-bucket");
    AZURITE.make_container("shared-bucket");
    keeps_the_contract("az", &azure()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_denied_and_what_is_not_told_are_not_taken_for_missing() {
    let gcs = Gcs::start();
    gcs.make_bucket("snapshots");
    AZURITE.make_container("denied");
    let wrong_key = "bm90IHRoZSBrZXkgb2YgdGhpcyBhY2NvdW50";
    let google = google_with(&gcs, &[("GOOGLE_BEARER_TOKEN", "no-token")]);
    let azure = azure_with(&[("AZURE_STORAGE_KEY", wrong_key)]);
    for (address, options, secret) in [
        ("gs://snapshots/x", &google, "no-token"),
        ("az://denied/x", &azure, wrong_key),
    ] {
        let store = open(address, options).await;
        let put = store.put("job/HEAD", Bytes::new(), Condition::Absent);
        for error in [
            store.get("job/HEAD", 10).await.map(drop),
            store.size("job/HEAD").await.map(drop),
            put.await.map(drop),
            store.list("", None, 10).await.map(drop),
            store.delete("job/HEAD").await,
            store.reach().await,
        ] {
            let error = error.expect_err("nobody may");
            assert_eq!(error.kind, StoreErrorKind::Denied, "{error}");
            assert!(error.message.contains("; allow "), "{error}");
            assert!(!format!("{error} {error:?}").contains(secret), "{error:?}");
        }
    }
    // Nobody listens where these are.
    let nowhere = CloudOptions {
        endpoint: Some("http://127.0.0.1:1/x".to_owned()),
        account: Some(Azurite::ACCOUNT.to_owned()),
        variables: Variables::given(&[
            ("GOOGLE_BEARER_TOKEN", "x"),
            ("AZURE_STORAGE_KEY", Azurite::KEY),
        ]),
        ..CloudOptions::default()
    };
    let nowhere = Options {
        google: nowhere.clone(),
        azure: nowhere,
        ..Options::default()
    };
    for address in ["gs://snapshots", "az://snapshots"] {
        let store = open(address, &nowhere).await;
        let error = store.get("HEAD", 10).await.expect_err("nobody listens");
        assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}");
    }
}

#[tokio::test]
async fn credentials_that_cannot_be_used_are_told_at_once() {
    let gcs = Gcs::start();
    let missing = google_with(&gcs, &[("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")]);
    let odd = azure_with(&[("AZURE_STORAGE_KEY", "this is not base64!")]);
    for (address, options, kind) in [
        ("gs://snapshots", missing, StoreErrorKind::Denied),
        ("az://snapshots", odd, StoreErrorKind::Denied),
        ("az://snapshots", Options::default(), StoreErrorKind::Other),
    ] {
        let parsed = StoreAddress::parse(address).expect("an address");
        let error = store::open(&parsed, &options).await.expect_err(address);
        assert_eq!(error.kind, kind, "{error}");
    }
}

// ---- Jobs

/// Where a job's snapshots are, and how a host is told.
trait Place {
    fn flags(&self) -> Vec<String>;
    fn environment(&self, host: Builder) -> Builder;

    fn host(&self, name: &str, options: &[&str], app: &[&str]) -> Builder {
        let owned = self.flags();
        // Hosts are destroyed here without a goodbye; what waiting means is tested with the directory.
        let always = ["--job", "job", "--on-other-owner", "take-over"];
        let flags = owned.iter().map(String::as_str).chain(always);
        let flags = flags
            .chain(["--term-grace", "60s"])
            .chain(options.iter().copied());
        let host = Host::builder(name).share_net();
        self.environment(host).reprieve(flags, app.iter().copied())
    }
}

impl Place for Gcs {
    fn flags(&self) -> Vec<String> {
        let flags = [
            "--store",
            "gs://snapshots/deep/prefix",
            "--gs-endpoint",
            &self.url,
        ];
        flags.map(str::to_owned).to_vec()
    }

    /// With the machine's own credentials, and nobody else's.
    fn environment(&self, host: Builder) -> Builder {
        host.env("GCE_METADATA_HOST", self.authority())
    }
}

impl Place for Azurite {
    fn flags(&self) -> Vec<String> {
        let flags = [
            "--store",
            "az://snapshots/deep/prefix",
            "--azure-endpoint",
            self.url(),
        ];
        flags.map(str::to_owned).to_vec()
    }

    fn environment(&self, host: Builder) -> Builder {
        host.env("AZURE_STORAGE_ACCOUNT", Self::ACCOUNT)
            .env("AZURE_STORAGE_KEY", Self::KEY)
    }
}

/// The app writes on.
#[track_caller]
fn assert_runs_on(host: &Host) {
    let mark = host.stdout().mark();
    wait_until(LIMIT, "more output", || host.stdout().mark() > mark + 50);
}

/// What a host has written, without a line that its end tore.
fn whole_lines(host: &Host) -> String {
    let lines = host.stdout().lines();
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Two evictions and a checkpoint in between.
fn goes_on_over_three_hosts(place: &dyn Place) {
    let mut output = String::new();
    for name in ["first", "second"] {
        let host = place.host(name, &[], COUNTER).start();
        assert_runs_on(&host);
        if name == "second" {
            checkpoint_ok(&host);
        }
        evict(&host);
        output += &host.stdout().text();
    }
    let last = place.host("third", &[], COUNTER).start();
    let resumed = wait_for_log(&last, "the job is resumed");
    assert!(resumed.contains("\"generation\":3,"), "{resumed}");
    assert_runs_on(&last);
    last.destroy();
    assert_counts(&(output + &whole_lines(&last)), None);
}

#[test]
fn a_job_in_google_goes_on_over_three_hosts_although_tokens_end_and_writes_are_few() {
    let gcs = Gcs::start();
    gcs.make_bucket("snapshots");
    // As short as can be told: each is asked for anew when it is needed.
    gcs.set_token_life(Duration::from_secs(2));
    gcs.limit_writes();
    goes_on_over_three_hosts(&gcs);
    let (given, refused) = gcs.tokens();
    assert!(given > 10, "{given}");
    assert_eq!(refused, 0, "with a token that had ended");
    assert!(gcs.slowed() > 0, "the self-test writes faster");
    let head = gcs.object("snapshots", "deep/prefix/job/HEAD");
    let head = Head::from_bytes(&head).expect("it is whole");
    let generations: Vec<u64> = head.generations.iter().map(|one| one.generation).collect();
    assert_eq!(generations, [3, 2, 1]);
    let probes = gcs.keys("snapshots");
    assert!(
        !probes.iter().any(|key| key.contains("/probe/")),
        "{probes:?}"
    );
}

#[test]
fn a_job_in_azure_goes_on_over_three_hosts() {
    AZURITE.make_container("snapshots");
    goes_on_over_three_hosts(&*AZURITE);
}

#[test]
fn parts_go_side_by_side_and_come_back_as_they_were() {
    let gcs = Gcs::start();
    gcs.make_bucket("snapshots");
    let app = ["python3", "/apps/memory.py", "96"];
    let options = ["--compression", "low", "--seed", "off"];
    let first = gcs.host("first", &options, &app).start();
    wait_for_output(&first, "ready");
    evict(&first);
    let parts = gcs.keys("snapshots");
    let parts = parts.iter().filter(|key| key.contains("/data/"));
    assert!(parts.count() > 6, "of 8 to 16 MiB, and an index");
    let second = gcs.host("second", &options, &app).start();
    wait_for_log(&second, "the job is resumed");
    let mark = second.stdout().mark();
    let resumed = second.wait_for_process("python3", LIMIT);
    second.signal_process(resumed.pid, libc::SIGUSR1);
    let is_digest = |line: &str| line.starts_with("digest");
    let found = second
        .stdout()
        .wait_for_line_after(mark, "a digest", LIMIT, is_digest);
    let before = first.stdout().lines();
    assert_eq!(before.iter().find(|line| is_digest(line)), Some(&found));
}

#[test]
fn a_google_that_ignores_generations_is_refused() {
    let gcs = Gcs::start();
    gcs.make_bucket("snapshots");
    gcs.forget_conditions();
    let host = gcs.host("host", &[], COUNTER).start();
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(175));
    let said = host.stderr().text();
    assert!(
        said.contains("creates an object that is already there"),
        "{said}"
    );
    assert_eq!(host.stdout().text(), "", "nothing was started");
    assert_eq!(gcs.keys("snapshots"), [""; 0], "nothing is left");
}

#[test]
fn without_credentials_or_a_bucket_nothing_is_started() {
    let gcs = Gcs::start();
    let host = gcs.host("no-bucket", &[], COUNTER).start();
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(173));
    let said = host.stderr().text();
    assert!(
        said.contains("remedy: create the bucket or container"),
        "{said}"
    );
    // The address of a metadata service that is not there is the harness's.
    let options = [
        "--gs-endpoint",
        &gcs.url,
        "--boot-timeout",
        "2s",
        "--job",
        "job",
    ];
    let flags = ["--store", "gs://snapshots"].into_iter().chain(options);
    let host = Host::builder("no-credentials").share_net();
    let host = host.reprieve(flags, COUNTER.iter().copied()).start();
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(173));
    let said = host.stderr().text();
    assert!(
        said.contains("set GOOGLE_APPLICATION_CREDENTIALS"),
        "{said}"
    );
    let flags = ["--store", "az://snapshots", "--job", "job"];
    let host = Host::builder("no-account").share_net();
    let host = host.reprieve(flags, COUNTER.iter().copied()).start();
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(173));
    let said = host.stderr().text();
    assert!(said.contains("--azure-account"), "{said}");
}
