//! A small HTTP server for those who look: what the worker's endpoint and `reprieve ps --serve` have in common.
//!
//! It serves without authentication, writes nothing, and must never hold up or end whom it is part of: there are at most
//! [`CONNECTIONS`] connections, each with one request, a small head and [`CONNECTION_LIMIT`] to live; what exceeds that is
//! dropped without an answer. [`STREAMS`] of them may be streams of events, which live longer. Pages may load nothing from
//! elsewhere.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

/// What a page may do: run its own script, and ask this server.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; \
                           connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Connections at a time; a scraper or two and a probe need three.
pub(crate) const CONNECTIONS: usize = 16;
/// The life of a connection, from accepting it to the last byte of the answer.
pub(crate) const CONNECTION_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a request's head; hyper's smallest allowed buffer.
pub(crate) const HEAD_LIMIT: usize = 8 * 1024;
/// Wait after a failed accept, which mostly means that file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Streams of events at a time, among the connections.
pub(crate) const STREAMS: usize = 8;
/// The life of a stream. Browsers come back by themselves; one that is gone without a word holds its place no longer.
const STREAM_LIMIT: Duration = Duration::from_secs(600);

/// Nobody can be served there.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct ListenError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Held by a connection that became a stream, until its last byte is out.
pub(crate) type Place = Arc<OnceLock<OwnedSemaphorePermit>>;

/// What is served.
pub(crate) trait Site: Clone + Send + Sync + 'static {
    /// Answers a GET or a HEAD, of which the body is left out later.
    fn answer(
        &self,
        method: &Method,
        path: &str,
        place: &Place,
    ) -> impl Future<Output = Response<Body>> + Send;
}

/// Serves from tasks of its own until the runtime ends, and returns the address it listens on.
pub(crate) async fn serve(address: SocketAddr, site: impl Site) -> Result<SocketAddr, ListenError> {
    let listen_error = |source| ListenError { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen_error)?;
    let bound = listener.local_addr().map_err(listen_error)?;
    tokio::spawn(accept(listener, site, CONNECTION_LIMIT));
    Ok(bound)
}

pub(crate) async fn accept(listener: TcpListener, site: impl Site, limit: Duration) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Full: dropping closes the connection, which tells the client sooner than silence.
                if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
                    let site = site.clone();
                    tokio::spawn(async move {
                        attend(stream, site, limit).await;
                        drop(place);
                    });
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a connection for metrics could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whatever goes wrong is the client's to notice; the worker has nothing to do about it.
async fn attend(stream: TcpStream, site: impl Site, limit: Duration) {
    let place = Place::default();
    let mut conversation = std::pin::pin!(converse(stream, site, Arc::clone(&place)));
    if timeout(limit, &mut conversation).await.is_err() && place.get().is_some() {
        drop(timeout(STREAM_LIMIT, conversation).await);
    }
}

async fn converse(stream: TcpStream, site: impl Site, place: Place) -> hyper::Result<()> {
    let service = service_fn(|request: Request<Incoming>| {
        let (site, place) = (&site, &place);
        async move {
            let (method, path) = (request.method(), request.uri().path());
            Ok::<_, Infallible>(match *method {
                Method::GET | Method::HEAD => site.answer(method, path, place).await,
                _ => only_reading(),
            })
        }
    });
    hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(HEAD_LIMIT)
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION_LIMIT)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn only_reading() -> Response<Body> {
    let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

pub(crate) fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    full(status, "text/plain; version=0.0.4; charset=utf-8", text)
}

/// A page for people, with what it may do.
pub(crate) fn page(text: &'static str) -> Response<Body> {
    let mut response = full(StatusCode::OK, "text/html; charset=utf-8", text);
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(PAGE_POLICY),
    );
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// A stream of events.
pub(crate) fn events(body: Body) -> Response<Body> {
    with_type("text/event-stream", Response::new(body))
}

pub(crate) fn full(
    status: StatusCode,
    kind: &'static str,
    text: impl Into<Bytes>,
) -> Response<Body> {
    let mut response = Response::new(Full::new(text.into()).boxed_unsync());
    *response.status_mut() = status;
    with_type(kind, response)
}

fn with_type(kind: &'static str, mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
