//! An S3 server in this process that keeps objects in memory and is faster than what it is to measure: the conditional
//! writes and the calls that a worker makes, and nothing else. No signature is looked at.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// What there is, and how it is told.
struct Kept {
    objects: Mutex<BTreeMap<String, (u64, Contents)>>,
    /// Keys in one page of a listing.
    page: AtomicUsize,
}

/// An object as it arrived, in pieces that are never copied; so it is given away again.
#[derive(Clone, Default)]
struct Contents(VecDeque<Bytes>);

impl Contents {
    fn len(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    /// So many bytes from `first`.
    fn slice(&self, first: usize, length: usize) -> Self {
        let (mut skip, mut left) = (first, length);
        let mut slice = VecDeque::new();
        for piece in &self.0 {
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let end = piece.len().min(skip.saturating_add(left));
            left -= end - skip;
            slice.push_back(piece.slice(skip..end));
            skip = 0;
            if left == 0 {
                break;
            }
        }
        Self(slice)
    }
}

impl From<String> for Contents {
    fn from(text: String) -> Self {
        Self(VecDeque::from([text.into()]))
    }
}

impl Body for Contents {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len() as u64)
    }
}

/// A server with one bucket, whatever that is called.
pub(crate) struct Server {
    pub(crate) url: String,
    kept: Arc<Kept>,
    // It serves for as long as this lives.
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("threads can be started");
        let kept = Arc::new(Kept {
            objects: Mutex::default(),
            page: AtomicUsize::new(1000),
        });
        let listener = runtime
            .block_on(TcpListener::bind("127.0.0.1:0"))
            .expect("loopback is there");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        runtime.spawn(accept(listener, Arc::clone(&kept)));
        Self {
            url,
            kept,
            _runtime: runtime,
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        self.objects().clear();
    }

    fn objects(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, (u64, Contents)>> {
        self.kept.objects.lock().expect("nobody panics with it")
    }

    /// The bytes of an object, if there is one.
    pub(crate) fn object(&self, key: &str) -> Option<Vec<u8>> {
        let (_, contents) = self.objects().get(key)?.clone();
        Some(contents.0.iter().flatten().copied().collect())
    }

    /// From now on a page of a listing has so many keys at most.
    pub(crate) fn limit_pages(&self, keys: usize) {
        self.kept.page.store(keys, Ordering::Relaxed);
    }
}

async fn accept(listener: TcpListener, kept: Arc<Kept>) {
    while let Ok((stream, _)) = listener.accept().await {
        let kept = Arc::clone(&kept);
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, &kept));
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
            // A client that goes away is none of a server's business.
            drop(served);
        });
    }
}

async fn answer(request: Request<Incoming>, kept: &Kept) -> Result<Response<Contents>, Infallible> {
    static WRITES: AtomicU64 = AtomicU64::new(1);
    let lock = || kept.objects.lock().expect("nobody panics with it");
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let key = path.split_once('/').map_or("", |(_, key)| key).to_owned();
    let header = |name: &str| {
        let value = request.headers().get(name)?;
        Some(value.to_str().ok()?.to_owned())
    };
    let (condition, range) = (
        (header("if-none-match"), header("if-match")),
        header("range"),
    );
    Ok(match *request.method() {
        Method::GET if key.is_empty() => {
            let page = kept.page.load(Ordering::Relaxed);
            list(&lock(), request.uri().query().unwrap_or_default(), page)
        }
        Method::PUT => {
            let mut incoming = request.into_body();
            let mut body = Contents::default();
            while let Some(frame) = incoming.frame().await {
                let Ok(frame) = frame else {
                    return Ok(plain(StatusCode::BAD_REQUEST));
                };
                body.0.extend(frame.into_data());
            }
            let mut objects = lock();
            let present = objects.get(&key).map(|(tag, _)| format!("\"{tag}\""));
            let refused = match condition {
                (Some(_), _) => present.is_some(),
                (_, Some(expected)) => present != Some(expected),
                _ => false,
            };
            if refused {
                return Ok(error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed"));
            }
            let tag = WRITES.fetch_add(1, Ordering::Relaxed);
            objects.insert(key, (tag, body));
            tagged(StatusCode::OK, tag).expect("it is well formed")
        }
        Method::DELETE => {
            lock().remove(&key);
            plain(StatusCode::NO_CONTENT)
        }
        _ => match (lock().get(&key).cloned(), range) {
            (None, _) => error(StatusCode::NOT_FOUND, "NoSuchKey"),
            (Some((tag, bytes)), None) => {
                let mut response = tagged(StatusCode::OK, tag).expect("it is well formed");
                *response.body_mut() = bytes;
                response
            }
            (Some((tag, bytes)), Some(range)) => part(tag, &bytes, &range),
        },
    })
}

fn plain(status: StatusCode) -> Response<Contents> {
    let mut response = Response::new(Contents::default());
    *response.status_mut() = status;
    response
}

fn error(status: StatusCode, code: &str) -> Response<Contents> {
    let mut response = plain(status);
    let body = format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>");
    *response.body_mut() = Contents::from(body);
    response
}

fn tagged(status: StatusCode, tag: u64) -> hyper::http::Result<Response<Contents>> {
    Response::builder()
        .status(status)
        .header("etag", format!("\"{tag}\""))
        .body(Contents::default())
}

/// `bytes=FIRST-LAST`, as a worker asks.
fn part(tag: u64, bytes: &Contents, range: &str) -> Response<Contents> {
    let numbers = range
        .strip_prefix("bytes=")
        .and_then(|range| range.split_once('-'));
    let bounds = numbers.and_then(|(first, last)| {
        Some((
            first.parse::<usize>().ok()?,
            last.parse::<usize>().ok()?.min(bytes.len() - 1),
        ))
    });
    let Some((first, last)) = bounds.filter(|(first, last)| first <= last) else {
        return error(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange");
    };
    let mut response = tagged(StatusCode::PARTIAL_CONTENT, tag).expect("it is well formed");
    let range = format!("bytes {first}-{last}/{}", bytes.len());
    response
        .headers_mut()
        .insert("content-range", range.parse().expect("it is well formed"));
    *response.body_mut() = bytes.slice(first, last - first + 1);
    response
}

fn list(
    objects: &BTreeMap<String, (u64, Contents)>,
    query: &str,
    page: usize,
) -> Response<Contents> {
    let asked = |name: &str| {
        url::form_urlencoded::parse(query.as_bytes())
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    };
    let prefix = asked("prefix").unwrap_or_default();
    // A page goes on behind the last key of the one before, which is what its token says.
    let after = asked("continuation-token").or_else(|| asked("start-after"));
    let after = after.unwrap_or_default();
    let most = asked("max-keys").and_then(|keys| keys.parse().ok());
    let most = most.unwrap_or(1000).min(page);
    let mut found = objects
        .iter()
        .filter(|(key, _)| key.starts_with(&prefix) && **key > after);
    let shown: Vec<_> = found.by_ref().take(most).collect();
    let entry = |(key, (tag, bytes)): &(&String, &(u64, Contents))| {
        format!(
            "<Contents><Key>{key}</Key><Size>{}</Size><ETag>\"{tag}\"</ETag>\
             <LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>",
            bytes.len()
        )
    };
    let entries: String = shown.iter().map(entry).collect();
    let rest = match (found.next(), shown.last()) {
        (Some(_), Some((last, _))) => format!(
            "<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>"
        ),
        _ => "<IsTruncated>false</IsTruncated>".to_owned(),
    };
    Response::new(Contents::from(format!(
        "<ListBucketResult>{rest}{entries}</ListBucketResult>"
    )))
}
