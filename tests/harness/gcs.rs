//! A look-alike of Google Cloud Storage and of the metadata server that hands out tokens for it, in this process.
//!
//! What packages offer (gcp-storage-emulator, fake-gcs-server) does not keep the preconditions of the XML interface, so
//! this is ours. It is faithful to what Google documents of the requests that a worker makes: generations that only grow,
//! `x-goog-if-generation-match` with 0 for "none" and 412 where it does not hold, `x-goog-hash` that is checked, ranges,
//! listings in the order of UTF-8 by pages, 404 with a code that says what is missing and a HEAD without a body, and
//! tokens that end. On demand it takes one write per second and object only, as Google does, and ignores preconditions, as
//! Google does not.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Where the metadata service is; all it knows here is the machine's own service account.
const METADATA: &str = "/computeMetadata/";
const TOKEN: &str = "/computeMetadata/v1/instance/service-accounts/default/token";

struct Object {
    generation: u64,
    bytes: Bytes,
    written: SystemTime,
}

#[derive(Default)]
struct State {
    buckets: HashMap<String, BTreeMap<String, Object>>,
    last_generation: u64,
    /// The tokens that are valid, and until when.
    tokens: HashMap<String, Instant>,
    token_life: Duration,
    tokens_given: usize,
    refused: usize,
    slowed: usize,
    one_write_per_second: bool,
    forgotten: BTreeSet<&'static str>,
    last_write: HashMap<String, Instant>,
}

/// The server. It ends when this is dropped.
pub(crate) struct Gcs {
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Gcs {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("threads can be started");
        let state = Arc::new(Mutex::new(State {
            token_life: Duration::from_secs(3600),
            ..State::default()
        }));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback is there");
        let address = listener.local_addr().expect("it is bound");
        listener
            .set_nonblocking(true)
            .expect("a socket can be set so");
        runtime.spawn(accept(listener, Arc::clone(&state)));
        Self {
            url: format!("http://{address}"),
            state,
            runtime: Some(runtime),
        }
    }

    /// As `GCE_METADATA_HOST` wants it.
    pub(crate) fn authority(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with it")
    }

    pub(crate) fn make_bucket(&self, bucket: &str) {
        self.lock()
            .buckets
            .insert(bucket.to_owned(), BTreeMap::new());
    }

    pub(crate) fn keys(&self, bucket: &str) -> Vec<String> {
        self.lock().buckets[bucket].keys().cloned().collect()
    }

    pub(crate) fn object(&self, bucket: &str, key: &str) -> Vec<u8> {
        self.lock().buckets[bucket][key].bytes.to_vec()
    }

    /// A token as the metadata server gives it.
    pub(crate) fn token(&self) -> String {
        self.lock().new_token()
    }

    /// From now on, tokens last this long.
    pub(crate) fn set_token_life(&self, life: Duration) {
        self.lock().token_life = life;
    }

    /// Tokens given, and requests refused because theirs was none.
    pub(crate) fn tokens(&self) -> (usize, usize) {
        let state = self.lock();
        (state.tokens_given, state.refused)
    }

    /// From now on, an object may be written once a second.
    pub(crate) fn limit_writes(&self) {
        self.lock().one_write_per_second = true;
    }

    /// How many writes came too soon.
    pub(crate) fn slowed(&self) -> usize {
        self.lock().slowed
    }

    /// From now on, writes take place whatever the generation is.
    pub(crate) fn forget_conditions(&self) {
        self.lock().forgotten.insert("generation");
    }
}

impl Drop for Gcs {
    fn drop(&mut self) {
        // Also where nobody may wait for it.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: std::net::TcpListener, state: Arc<Mutex<State>>) {
    let listener = TcpListener::from_std(listener).expect("it is a listener");
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, &state));
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
            // A client that goes away is none of a server's business.
            drop(served);
        });
    }
}

type Answer = Response<Full<Bytes>>;

async fn answer(request: Request<Incoming>, state: &Mutex<State>) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        return Ok(plain(StatusCode::BAD_REQUEST, Bytes::new()));
    };
    let body = body.to_bytes();
    let mut state = state.lock().expect("nobody panics with it");
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    if head.uri.path() == TOKEN {
        return Ok(match header("metadata-flavor") {
            Some("Google") => state.give_token(),
            _ => plain(StatusCode::FORBIDDEN, Bytes::new()),
        });
    }
    if head.uri.path().starts_with(METADATA) {
        return Ok(plain(StatusCode::NOT_FOUND, Bytes::new()));
    }
    let token = header("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let valid = token.and_then(|token| state.tokens.get(token));
    if valid.is_none_or(|end| *end < Instant::now()) {
        state.refused += 1;
        return Ok(error(StatusCode::UNAUTHORIZED, "AuthenticationRequired"));
    }
    let path = percent_decoded(head.uri.path().trim_start_matches('/'));
    let (bucket, key) = path.split_once('/').unwrap_or((&path, ""));
    if !state.buckets.contains_key(bucket) {
        return Ok(error(StatusCode::NOT_FOUND, "NoSuchBucket"));
    }
    Ok(match head.method {
        Method::GET if key.is_empty() => {
            list(&state.buckets[bucket], head.uri.query().unwrap_or_default())
        }
        Method::PUT => {
            let condition = header("x-goog-if-generation-match");
            state.put(bucket, key, condition, header("x-goog-hash"), body)
        }
        Method::DELETE => match state.delete(bucket, key) {
            Some(_) => plain(StatusCode::NO_CONTENT, Bytes::new()),
            None => error(StatusCode::NOT_FOUND, "NoSuchKey"),
        },
        Method::GET | Method::HEAD => match state.buckets[bucket].get(key) {
            Some(object) => read(object, &head.method, header("range")),
            // An answer to a HEAD has no body to say more.
            None if head.method == Method::HEAD => plain(StatusCode::NOT_FOUND, Bytes::new()),
            None => error(StatusCode::NOT_FOUND, "NoSuchKey"),
        },
        _ => plain(StatusCode::METHOD_NOT_ALLOWED, Bytes::new()),
    })
}

impl State {
    fn new_token(&mut self) -> String {
        self.tokens_given += 1;
        let token = format!("token-{}", self.tokens_given);
        let end = Instant::now() + self.token_life;
        self.tokens.insert(token.clone(), end);
        token
    }

    fn give_token(&mut self) -> Answer {
        let body = serde_json::json!({
            "access_token": self.new_token(),
            "expires_in": self.token_life.as_secs(),
            "token_type": "Bearer",
        });
        plain(StatusCode::OK, body.to_string())
    }

    fn put(
        &mut self,
        bucket: &str,
        key: &str,
        condition: Option<&str>,
        hash: Option<&str>,
        bytes: Bytes,
    ) -> Answer {
        let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes);
        let sum = u32::try_from(sum).expect("it has 32 bits").to_be_bytes();
        let sum = format!("crc32c={}", aws_smithy_types::base64::encode(sum));
        if hash.is_some_and(|hash| hash != sum) {
            return error(StatusCode::BAD_REQUEST, "BadDigest");
        }
        let expected = match condition.map(str::parse::<u64>) {
            Some(Err(_)) => return error(StatusCode::BAD_REQUEST, "InvalidArgument"),
            Some(Ok(_)) if self.forgotten.contains("generation") => None,
            Some(Ok(generation)) => Some(generation),
            None => None,
        };
        let present = self.buckets[bucket].get(key);
        let present = present.map_or(0, |object| object.generation);
        if expected.is_some_and(|expected| expected != present) {
            return error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
        }
        let place = format!("{bucket}/{key}");
        let last = self.last_write.get(&place).map(Instant::elapsed);
        if self.one_write_per_second && last.is_some_and(|ago| ago < Duration::from_secs(1)) {
            self.slowed += 1;
            return error(StatusCode::TOO_MANY_REQUESTS, "SlowDown");
        }
        self.last_write.insert(place, Instant::now());
        let written = SystemTime::now();
        let micros = written.duration_since(UNIX_EPOCH).expect("clocks are set");
        let micros = u64::try_from(micros.as_micros()).expect("it is not that late");
        self.last_generation = micros.max(self.last_generation + 1);
        let object = Object {
            generation: self.last_generation,
            bytes,
            written,
        };
        let answer = about(&object, StatusCode::OK, Bytes::new());
        let objects = self.buckets.get_mut(bucket).expect("it was looked for");
        objects.insert(key.to_owned(), object);
        answer
    }

    fn delete(&mut self, bucket: &str, key: &str) -> Option<Object> {
        self.buckets.get_mut(bucket)?.remove(key)
    }
}

fn about(object: &Object, status: StatusCode, body: Bytes) -> Answer {
    Response::builder()
        .status(status)
        .header("x-goog-generation", object.generation)
        .header("etag", format!("\"{}\"", object.generation))
        .header(
            "last-modified",
            humantime::format_rfc3339(object.written).to_string(),
        )
        .body(Full::new(body))
        .expect("it is well formed")
}

fn read(object: &Object, method: &Method, range: Option<&str>) -> Answer {
    let size = object.bytes.len();
    if *method == Method::HEAD {
        let mut answer = about(object, StatusCode::OK, Bytes::new());
        let headers = answer.headers_mut();
        headers.insert("content-length", size.into());
        return answer;
    }
    let Some(range) = range else {
        return about(object, StatusCode::OK, object.bytes.clone());
    };
    let numbers = range
        .strip_prefix("bytes=")
        .and_then(|range| range.split_once('-'));
    let bounds = numbers.and_then(|(first, last)| {
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some((first, last.min(size.checked_sub(1)?)))
    });
    let Some((first, last)) = bounds.filter(|(first, last)| first <= last) else {
        return error(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange");
    };
    let part = object.bytes.slice(first..=last);
    let mut answer = about(object, StatusCode::PARTIAL_CONTENT, part);
    let range = format!("bytes {first}-{last}/{size}");
    let headers = answer.headers_mut();
    headers.insert("content-range", range.parse().expect("it is well formed"));
    answer
}

fn list(objects: &BTreeMap<String, Object>, query: &str) -> Answer {
    let asked = |name: &str| {
        url::form_urlencoded::parse(query.as_bytes())
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    };
    let prefix = asked("prefix").unwrap_or_default();
    // The token is the last key of the page before.
    let after = asked("continuation-token")
        .or(asked("start-after"))
        .unwrap_or_default();
    let most = asked("max-keys")
        .and_then(|most| most.parse().ok())
        .unwrap_or(1000);
    let mut found = objects
        .iter()
        .filter(|(key, _)| key.starts_with(&prefix) && **key > after);
    let page: Vec<_> = found.by_ref().take(most).collect();
    let is_whole = found.next().is_none();
    let mut body = String::from("<?xml version='1.0' encoding='UTF-8'?><ListBucketResult>");
    for (key, object) in &page {
        let time = humantime::format_rfc3339_millis(object.written);
        let written = write!(
            body,
            "<Contents><Key>{}</Key><Generation>{}</Generation><LastModified>{time}</LastModified>\
             <ETag>\"{}\"</ETag><Size>{}</Size><Owner><ID>x</ID></Owner></Contents>",
            xml(key),
            object.generation,
            object.generation,
            object.bytes.len()
        );
        written.expect("memory can be written");
    }
    if !is_whole {
        let last = page.last().map_or("", |(key, _)| key.as_str());
        let token = format!(
            "<NextContinuationToken>{}</NextContinuationToken>",
            xml(last)
        );
        body += &token;
    }
    let end = format!(
        "<IsTruncated>{}</IsTruncated></ListBucketResult>",
        !is_whole
    );
    plain(StatusCode::OK, body + &end)
}

fn xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn plain(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

fn error(status: StatusCode, code: &str) -> Answer {
    let body = format!(
        "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>Text of {code}</Message></Error>"
    );
    plain(status, body)
}

fn percent_decoded(path: &str) -> String {
    // In a path, a plus is a plus.
    let path = format!("x={}", path.replace('+', "%2B"));
    let mut pairs = url::form_urlencoded::parse(path.as_bytes());
    let (_, decoded) = pairs.next().expect("there is one");
    decoded.into_owned()
}
