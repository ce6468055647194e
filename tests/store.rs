//! The S3 store against a server that keeps conditional writes, and against answers that no honest server gives.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_sdk_s3::config::Credentials;
use bytes::Bytes;
use reprieve::store::{
    self, Condition, Encryption, Limits, Options, S3Objects, S3Options, Store, StoreAddress,
    StoreError, StoreErrorKind, Tag,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[path = "../worker/src/store/contract.rs"]
mod contract;
mod harness;

use harness::Lookalike;

/// In no message, not even in debug form.
const SECRET: &str = "a-secret-that-stays-one";

fn options(endpoint: &str) -> S3Options {
    let credentials = Credentials::new(
        "AKIDFORTESTS",
        SECRET,
        Some(format!("{SECRET}-token")),
        None,
        "test",
    );
    S3Options {
        endpoint: Some(endpoint.to_owned()),
        credentials: Some(credentials),
        ..S3Options::default()
    }
}

fn with_s3(options: &S3Options) -> Options {
    Options {
        s3: options.clone(),
        ..Options::default()
    }
}

async fn open(address: &str, options: &S3Options) -> Arc<dyn Store> {
    let address = StoreAddress::parse(address).expect("an address");
    store::open(&address, &with_s3(options))
        .await
        .expect("nothing to fail yet")
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_keeps_the_contract() {
    let server = Lookalike::start();
    server.make_bucket("whole-bucket");
    server.make_bucket("shared-bucket");
    let mut options = options(&server.url);
    // Small pages, so that the pages themselves are tested.
    options.limits.page = 7;
    let missing = open("s3://missing-bucket/deep/prefix", &options).await;
    let store = open("s3://whole-bucket", &options).await;
    contract::holds_for(&contract::Subject {
        store,
        missing: missing.clone(),
        many: 120,
    })
    .await;

    let beside = open("s3://shared-bucket/a", &options).await;
    let put = beside
        .put("in-the-way", Bytes::from_static(b"x"), Condition::Absent)
        .await;
    put.expect("it can be stored");
    let other = open("s3://shared-bucket/a-b", &options).await;
    let put = other
        .put("in-the-way", Bytes::from_static(b"x"), Condition::Absent)
        .await;
    put.expect("it can be stored");
    let store = open("s3://shared-bucket/a/b", &options).await;
    contract::holds_for(&contract::Subject {
        store,
        missing,
        many: 30,
    })
    .await;
}

#[tokio::test]
async fn what_is_sent_is_unsigned_and_has_our_checksum() {
    let server = Canned::start(Answer::Text(answer("200 OK", "ETag: \"e\"\r\n", ""))).await;
    let store = server.store().await;
    for condition in [
        Condition::Always,
        Condition::Absent,
        Condition::Matches(Tag("\"old\"".to_owned())),
    ] {
        let tag = store
            .put("x", Bytes::from_static(b"123456789"), condition)
            .await
            .expect("put");
        assert_eq!(
            tag,
            Tag("\"e\"".to_owned()),
            "an ETag is kept with its quotes"
        );
    }
    let heads = server.heads();
    for head in &heads {
        // The check value of CRC-64/NVME for these bytes is 0xAE8B14860A799888.
        assert!(
            head.contains("x-amz-checksum-crc64nvme: rosUhgp5mIg="),
            "{head}"
        );
        assert!(
            head.contains("x-amz-content-sha256: UNSIGNED-PAYLOAD"),
            "{head}"
        );
        assert!(head.contains("content-length: 9"), "{head}");
        for unwanted in ["aws-chunked", "x-amz-trailer", "x-amz-checksum-crc32"] {
            assert!(!head.contains(unwanted), "{unwanted} in {head}");
        }
    }
    assert!(
        !heads[0].contains("if-match") && !heads[0].contains("if-none-match"),
        "{}",
        heads[0]
    );
    assert!(heads[1].contains("if-none-match: *"), "{}", heads[1]);
    assert!(heads[2].contains("if-match: \"old\""), "{}", heads[2]);
}

#[tokio::test]
async fn objects_are_kept_and_paid_for_as_was_said() {
    let server = Canned::start(Answer::Text(answer("200 OK", "ETag: \"e\"\r\n", ""))).await;
    let mut options = quick(&server.url);
    options.objects = S3Objects {
        encryption: Encryption::Kms {
            key: Some("alias/snapshots".to_owned()),
            twice: false,
        },
        storage_class: Some("STANDARD_IA"),
        requester_pays: true,
    };
    let store = open("s3://bucket", &options).await;
    let large = Bytes::from(vec![7; 128 * 1024]);
    for (bytes, condition) in [
        (large.clone(), Condition::Always),
        (large, Condition::Absent),
        (Bytes::from_static(b"small"), Condition::Always),
    ] {
        store.put("x", bytes, condition).await.expect("put");
    }
    store.get("x", 10).await.expect("get");
    store.delete("x").await.expect("delete");
    let heads = server.heads();
    for head in &heads {
        assert!(head.contains("x-amz-request-payer: requester"), "{head}");
    }
    for head in &heads[..3] {
        assert!(
            head.contains("x-amz-server-side-encryption: aws:kms"),
            "{head}"
        );
        let key = "x-amz-server-side-encryption-aws-kms-key-id: alias/snapshots";
        assert!(head.contains(key), "{head}");
    }
    let classes = heads
        .iter()
        .map(|head| head.contains("x-amz-storage-class: STANDARD_IA"));
    assert_eq!(
        classes.collect::<Vec<_>>(),
        [true, false, false, false, false]
    );
}

// ---- Canned answers

#[derive(Clone)]
enum Answer {
    Text(String),
    /// This much, then silence.
    Stall(String),
    /// This much, then the connection is cut.
    Cut(String),
    /// The first is for objects, the second for listings of the bucket.
    ByRequest(Box<Answer>, Box<Answer>),
}

/// A server that gives one answer to everything.
struct Canned {
    url: String,
    heads: Arc<Mutex<Vec<String>>>,
    _accepting: tokio::task::JoinHandle<()>,
}

impl Canned {
    async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let heads = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&heads);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(reply(stream, answer.clone(), Arc::clone(&kept)));
            }
        });
        Self {
            url,
            heads,
            _accepting: accepting,
        }
    }

    /// Patient: these answers come, however busy the machine is.
    async fn store(&self) -> Arc<dyn Store> {
        open("s3://bucket/prefix", &options(&self.url)).await
    }

    /// Where it is the answer that does not come.
    async fn quick_store(&self) -> Arc<dyn Store> {
        open("s3://bucket/prefix", &quick(&self.url)).await
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("nobody panicked").clone()
    }
}

/// With limits that a test can wait for.
fn quick(url: &str) -> S3Options {
    let limits = Limits {
        attempt: Duration::from_secs(2),
        connect: Duration::from_millis(500),
        answer: Duration::from_millis(500),
        ..Limits::default()
    };
    S3Options {
        limits,
        ..options(url)
    }
}

async fn reply(mut stream: TcpStream, answer: Answer, heads: Arc<Mutex<Vec<String>>>) {
    let mut request = Vec::new();
    let end = loop {
        if let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    };
    let head = String::from_utf8_lossy(&request[..end]).into_owned();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.map_or(0, |length| length.parse().expect("a number"));
    while request.len() < end + length {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let listing = head.contains("list-type=2");
    heads.lock().expect("nobody panicked").push(head);
    let mut answer = answer;
    while let Answer::ByRequest(objects, listings) = answer {
        answer = if listing { *listings } else { *objects };
    }
    let (text, silent) = match answer {
        Answer::Text(text) | Answer::Cut(text) => (text, false),
        Answer::Stall(text) => (text, true),
        Answer::ByRequest(..) => unreachable!("it was taken apart above"),
    };
    // The client may have gone; then nobody misses the rest.
    if stream.write_all(text.as_bytes()).await.is_ok() && silent {
        // Silent, but there, until the client goes.
        while stream
            .read_buf(&mut request)
            .await
            .is_ok_and(|more| more > 0)
        {}
    }
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

fn refusal(status: &str, code: &str) -> Answer {
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>Text of {code}</Message>\
         <AWSAccessKeyId>AKIDFORTESTS</AWSAccessKeyId><Token-0>{SECRET}-token</Token-0></Error>"
    );
    Answer::Text(answer(status, "Content-Type: application/xml\r\n", &body))
}

fn empty_listing() -> Answer {
    let body = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
    Answer::Text(answer("200 OK", "Content-Type: application/xml\r\n", body))
}

/// The kinds of all calls' errors in this order: get, get_range, size, put, put if absent, put if matching, list, delete,
/// reach; `None` for success.
async fn outcomes(answer: Answer) -> [Option<StoreErrorKind>; 9] {
    outcomes_in(Canned::start(answer).await.store().await).await
}

/// The same where no whole answer comes, with limits to find that out soon.
async fn outcomes_without(answer: Answer) -> [Option<StoreErrorKind>; 9] {
    outcomes_at(&Canned::start(answer).await.url).await
}

async fn outcomes_at(url: &str) -> [Option<StoreErrorKind>; 9] {
    let begun = Instant::now();
    let kinds = outcomes_in(open("s3://bucket/prefix", &quick(url)).await).await;
    // Nine calls of two seconds at most; the rest is the machine being busy.
    assert!(
        begun.elapsed() < Duration::from_secs(60),
        "it took {:?}",
        begun.elapsed()
    );
    kinds
}

async fn outcomes_in(store: Arc<dyn Store>) -> [Option<StoreErrorKind>; 9] {
    let x = Bytes::from_static(b"x");
    let matches = Condition::Matches(Tag("\"0\"".to_owned()));
    [
        kind(store.get("k", 10).await),
        kind(store.get_range("k", 0, 4).await),
        kind(store.size("k").await),
        kind(store.put("k", x.clone(), Condition::Always).await),
        kind(store.put("k", x.clone(), Condition::Absent).await),
        kind(store.put("k", x, matches).await),
        kind(store.list("", None, 10).await),
        kind(store.delete("k").await),
        kind(store.reach().await),
    ]
}

/// The kind of an error, which must not tell secrets.
fn kind<T>(result: Result<T, StoreError>) -> Option<StoreErrorKind> {
    let error = result.err()?;
    let mut shown = format!("{error} {error:?} {error:#?}");
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        shown += &format!(" {cause} {cause:?}");
        source = cause.source();
    }
    assert!(!shown.contains(SECRET), "{shown}");
    Some(error.kind)
}

#[tokio::test]
async fn refusals_have_their_kind_in_every_call() {
    use StoreErrorKind as Kind;
    for (status, code, expected) in [
        ("403 Forbidden", "AccessDenied", Kind::Denied),
        ("403 Forbidden", "InvalidAccessKeyId", Kind::Denied),
        ("403 Forbidden", "SignatureDoesNotMatch", Kind::Denied),
        ("403 Forbidden", "RequestTimeTooSkewed", Kind::Denied),
        ("403 Forbidden", "SomethingNew", Kind::Denied),
        ("401 Unauthorized", "SomethingNew", Kind::Denied),
        ("404 Not Found", "NoSuchBucket", Kind::NoSuchStore),
        ("409 Conflict", "ConditionalRequestConflict", Kind::Conflict),
        (
            "412 Precondition Failed",
            "PreconditionFailed",
            Kind::ConditionFailed,
        ),
        ("416 Range Not Satisfiable", "InvalidRange", Kind::BadSize),
        ("429 Too Many Requests", "TooManyRequests", Kind::Throttled),
        ("503 Slow Down", "SlowDown", Kind::Throttled),
        (
            "503 Service Unavailable",
            "ServiceUnavailable",
            Kind::Throttled,
        ),
        (
            "500 Internal Server Error",
            "InternalError",
            Kind::Unavailable,
        ),
        ("502 Bad Gateway", "SomethingNew", Kind::Unavailable),
        ("507 Insufficient Storage", "XMinioStorageFull", Kind::Full),
        ("301 Moved Permanently", "PermanentRedirect", Kind::Other),
        ("400 Bad Request", "InvalidRequest", Kind::Other),
    ] {
        assert_eq!(
            outcomes(refusal(status, code)).await,
            [Some(expected); 9],
            "{status} {code}"
        );
    }
}

/// A HEAD has no body, so for `size` these are plain 400s and 403s.
#[tokio::test]
async fn codes_count_for_more_than_the_status() {
    use StoreErrorKind as Kind;
    for (status, code, expected) in [
        ("400 Bad Request", "ExpiredToken", Kind::Denied),
        ("400 Bad Request", "InvalidToken", Kind::Denied),
        ("400 Bad Request", "RequestTimeout", Kind::Unavailable),
        ("400 Bad Request", "BadDigest", Kind::Unavailable),
        ("403 Forbidden", "InvalidObjectState", Kind::Other),
    ] {
        let outcomes = outcomes(refusal(status, code)).await;
        for index in [0, 1, 3, 4, 5, 6, 7, 8] {
            assert_eq!(
                outcomes[index],
                Some(expected),
                "{status} {code}, call {index}"
            );
        }
    }
}

#[tokio::test]
async fn a_404_is_the_keys_only_where_the_bucket_is_there() {
    use StoreErrorKind as Kind;
    let silent = Answer::Text(answer("404 Not Found", "", ""));
    let page = Answer::Text(answer(
        "404 Not Found",
        "Content-Type: text/html\r\n",
        "<html>no</html>",
    ));
    let (missing, failed) = (Some(Kind::NotFound), Some(Kind::ConditionFailed));
    let other = Some(Kind::Other);
    let key_only = [
        missing, missing, missing, other, other, failed, None, None, None,
    ];
    for object in [
        &silent,
        &page,
        &refusal("404 Not Found", "NoSuchKey"),
        &refusal("404 Not Found", "Odd"),
    ] {
        let both = Answer::ByRequest(Box::new(object.clone()), Box::new(empty_listing()));
        assert_eq!(outcomes(both).await, key_only);
        // Forbidden to list: the bucket is there all the same.
        let denied = refusal("403 Forbidden", "AccessDenied");
        let kinds = outcomes(Answer::ByRequest(
            Box::new(object.clone()),
            Box::new(denied),
        ))
        .await;
        assert_eq!(kinds[..6], key_only[..6]);
    }
    for object in [&silent, &page, &refusal("404 Not Found", "Odd")] {
        assert_eq!(outcomes(object.clone()).await, [Some(Kind::NoSuchStore); 9]);
        // The bucket cannot be asked for: then nothing is known of the key.
        let slow = refusal("503 Slow Down", "SlowDown");
        let both = Answer::ByRequest(Box::new(object.clone()), Box::new(slow));
        assert_eq!(outcomes(both).await, [Some(Kind::Throttled); 9]);
    }
}

#[tokio::test]
async fn no_answer_is_waited_for_for_ever() {
    let unavailable = [Some(StoreErrorKind::Unavailable); 9];
    assert_eq!(
        outcomes_without(Answer::Stall(String::new())).await,
        unavailable,
        "silence"
    );
    assert_eq!(
        outcomes_without(Answer::Stall("HTTP/1.1 200 OK\r\n".to_owned())).await,
        unavailable,
        "half a head"
    );
    assert_eq!(
        outcomes_without(Answer::Cut(String::new())).await,
        unavailable,
        "cut"
    );
    assert_eq!(
        outcomes_without(Answer::Cut("HTTP/1.1 200 OK\r\nContent-".to_owned())).await,
        unavailable,
        "cut head"
    );
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", closed.local_addr().expect("bound"));
    drop(closed);
    assert_eq!(outcomes_at(&url).await, unavailable, "nobody listens");
    assert_eq!(
        outcomes_at("http://nowhere.invalid").await,
        unavailable,
        "no such host"
    );
}

#[tokio::test]
async fn a_body_that_stalls_or_ends_early_is_no_object() {
    let whole = "HTTP/1.1 200 OK\r\nETag: \"e\"\r\nContent-Length: 10\r\n\r\n12345";
    let part =
        "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-3/9\r\nContent-Length: 4\r\n\r\n12";
    let list = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n<ListBucketResult><IsTruncated>";
    for make in [Answer::Stall, Answer::Cut] {
        let store = Canned::start(make(whole.to_owned()))
            .await
            .quick_store()
            .await;
        assert_eq!(
            kind(store.get("k", 10).await),
            Some(StoreErrorKind::Unavailable)
        );
        let store = Canned::start(make(part.to_owned()))
            .await
            .quick_store()
            .await;
        assert_eq!(
            kind(store.get_range("k", 0, 4).await),
            Some(StoreErrorKind::Unavailable)
        );
        let store = Canned::start(make(list.to_owned()))
            .await
            .quick_store()
            .await;
        assert_eq!(
            kind(store.list("", None, 10).await),
            Some(StoreErrorKind::Unavailable)
        );
    }
}

#[tokio::test]
async fn answers_that_are_not_what_was_asked_for_are_refused() {
    let headers = "ETag: \"e\"\r\nx-amz-checksum-crc64nvme: AAAAAAAAAAA=\r\n";
    let damaged = Canned::start(Answer::Text(answer("200 OK", headers, "12345")))
        .await
        .store()
        .await;
    assert_eq!(
        kind(damaged.get("k", 10).await),
        Some(StoreErrorKind::Unavailable),
        "wrong checksum"
    );
    // The whole object although a part was asked for, and less than that part.
    let whole = Canned::start(Answer::Text(answer("200 OK", "ETag: \"e\"\r\n", "1234")))
        .await
        .store()
        .await;
    assert_eq!(
        kind(whole.get_range("k", 0, 4).await),
        Some(StoreErrorKind::BadSize)
    );
    let less = answer(
        "206 Partial Content",
        "Content-Range: bytes 0-1/2\r\n",
        "12",
    );
    let less = Canned::start(Answer::Text(less)).await.store().await;
    assert_eq!(
        kind(less.get_range("k", 0, 4).await),
        Some(StoreErrorKind::BadSize)
    );
    // Without the means for compare-and-swap.
    let untagged = Canned::start(Answer::Text(answer("200 OK", "", "")))
        .await
        .store()
        .await;
    assert_eq!(
        kind(untagged.get("k", 10).await),
        Some(StoreErrorKind::Other)
    );
    assert_eq!(
        kind(untagged.put("k", Bytes::new(), Condition::Absent).await),
        Some(StoreErrorKind::Other)
    );
}

#[tokio::test]
async fn a_listing_that_cannot_be_trusted_is_refused() {
    let object = |key: &str| {
        format!(
            "<Contents><Key>{key}</Key><Size>1</Size><LastModified>2026-01-02T03:04:05.678Z</LastModified></Contents>"
        )
    };
    let listing = |truncated: bool, keys: &[&str]| {
        let objects: String = keys.iter().map(|key| object(key)).collect();
        let body = format!(
            "<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{objects}</ListBucketResult>"
        );
        Canned::start(Answer::Text(answer(
            "200 OK",
            "Content-Type: application/xml\r\n",
            &body,
        )))
    };
    let good = listing(
        false,
        &["prefix/", "prefix/a", "prefix/folder/", "prefix/z"],
    )
    .await
    .store()
    .await;
    let entries = good.list("", None, 10).await.expect("a listing");
    let keys: Vec<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(keys, ["a", "z"], "what consoles show as folders is skipped");
    assert_eq!(entries[0].modified_ms, 1_767_323_045_678);

    let unordered = listing(false, &["prefix/b", "prefix/a"])
        .await
        .store()
        .await;
    assert_eq!(
        kind(unordered.list("", None, 10).await),
        Some(StoreErrorKind::Other)
    );
    let foreign = listing(false, &["elsewhere/a"]).await.store().await;
    assert_eq!(
        kind(foreign.list("", None, 10).await),
        Some(StoreErrorKind::Other)
    );
    let cut_off = listing(true, &["prefix/a"]).await.store().await;
    assert_eq!(
        kind(cut_off.list("", None, 10).await),
        Some(StoreErrorKind::Other)
    );
}

#[tokio::test]
async fn a_denial_names_the_right_that_is_missing() {
    let server = Canned::start(refusal("403 Forbidden", "AccessDenied")).await;
    let store = server.store().await;
    let message = |result: Result<(), StoreError>| result.expect_err("denied").to_string();
    assert_eq!(
        message(store.reach().await),
        "reach s3://bucket/prefix/: 403 AccessDenied: Text of AccessDenied; allow s3:ListBucket"
    );
    let put = store
        .put("HEAD", Bytes::new(), Condition::Absent)
        .await
        .map(drop);
    assert!(message(put).ends_with("; allow s3:PutObject"));
    assert!(message(store.delete("HEAD").await).ends_with("; allow s3:DeleteObject"));
    let get = message(store.get("HEAD", 1).await.map(drop));
    assert!(
        get.contains("s3:GetObject") && get.contains("s3:ListBucket"),
        "{get}"
    );
}

#[tokio::test]
async fn a_wrong_region_is_named() {
    let headers = "x-amz-bucket-region: eu-west-3\r\n";
    let server = Canned::start(Answer::Text(answer("301 Moved Permanently", headers, ""))).await;
    let error = server.store().await.reach().await.expect_err("elsewhere");
    assert!(
        error.message.contains("the bucket is in eu-west-3"),
        "{error}"
    );
}

#[tokio::test]
async fn secrets_are_in_no_debug_form() {
    let options = S3Options {
        endpoint: Some(format!("http://user:{SECRET}@host:9000")),
        ..options("")
    };
    assert!(!format!("{options:?} {options:#?}").contains(SECRET));
    let address = StoreAddress::parse("s3://bucket/prefix").expect("an address");
    let error = store::open(&address, &with_s3(&options))
        .await
        .expect_err("credentials in the endpoint");
    assert!(!format!("{error} {error:?}").contains(SECRET), "{error}");

    let store = open("s3://bucket/prefix", &quick("http://127.0.0.1:9")).await;
    assert_eq!(
        format!("{store:?}"),
        "HedgedStore(S3Store(s3://bucket/prefix))"
    );
}

#[tokio::test]
async fn an_endpoint_that_is_no_url_is_refused() {
    let address = StoreAddress::parse("s3://bucket").expect("an address");
    for endpoint in ["localhost:9000", "ftp://host", "nonsense", ""] {
        let error = store::open(&address, &with_s3(&options(endpoint)))
            .await
            .expect_err(endpoint);
        assert_eq!(error.kind, StoreErrorKind::Other);
        assert!(error.message.contains("the endpoint is not"), "{error}");
    }
}
