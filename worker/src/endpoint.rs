//! The HTTP endpoint of a worker: its metrics, for whoever can reach it.
//!
//! It serves without authentication, writes nothing, and must never hold up or end the worker: there are at most
//! [`CONNECTIONS`] connections, each with one request, a small head and [`CONNECTION_LIMIT`] to live; what exceeds that is
//! dropped without an answer.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::metrics::Exporter;

/// Connections at a time; a scraper or two and a probe need three.
pub const CONNECTIONS: usize = 16;
/// The life of a connection, from accepting it to the last byte of the answer.
pub const CONNECTION_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a request's head; hyper's smallest allowed buffer.
const HEAD_LIMIT: usize = 8 * 1024;
/// Wait after a failed accept, which mostly means that file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Nobody can be served there.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for metrics")]
pub struct ListenError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// Serves from tasks of its own until the runtime ends, and returns the address it listens on.
pub async fn serve(exporter: Exporter, address: SocketAddr) -> Result<SocketAddr, ListenError> {
    let listen_error = |source| ListenError { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen_error)?;
    let bound = listener.local_addr().map_err(listen_error)?;
    exporter.keep_up();
    tokio::spawn(accept(listener, exporter, CONNECTION_LIMIT));
    Ok(bound)
}

async fn accept(listener: TcpListener, exporter: Exporter, limit: Duration) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Full: dropping closes the connection, which tells the client sooner than silence.
                if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
                    let exporter = exporter.clone();
                    tokio::spawn(async move {
                        // Whatever went wrong is the client's to notice; the worker has nothing to do about it.
                        let _ = tokio::time::timeout(limit, converse(stream, exporter)).await;
                        drop(place);
                    });
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a connection for metrics could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, exporter: Exporter) -> hyper::Result<()> {
    let service = service_fn(|request: Request<Incoming>| {
        let response = answer(&exporter, request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(HEAD_LIMIT)
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION_LIMIT)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn answer(exporter: &Exporter, method: &Method, path: &str) -> Response<Full<Bytes>> {
    let plain = |status: StatusCode, body: String| {
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
        );
        response
    };
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".into());
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/metrics" => plain(StatusCode::OK, exporter.render()),
        "/healthz" => plain(StatusCode::OK, "ok\n".into()),
        _ => plain(StatusCode::NOT_FOUND, "only /metrics and /healthz\n".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::begin_at_zero;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const LOCALHOST: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime for one thread")
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address)
            .await
            .expect("the endpoint listens");
        stream
            .write_all(request.as_bytes())
            .await
            .expect("the request is sent");
        let mut answer = Vec::new();
        // A connection that is dropped may end in a reset instead of an end.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).expect("the answer is text")
    }

    #[test]
    fn endpoint_answers_by_method_and_path() {
        let table = [
            ("GET /metrics HTTP/1.1", "HTTP/1.1 200", "reprieve_state"),
            (
                "GET /metrics?x=1 HTTP/1.1",
                "HTTP/1.1 200",
                "reprieve_state",
            ),
            ("GET /healthz HTTP/1.1", "HTTP/1.1 200", "\r\n\r\nok\n"),
            (
                "HEAD /healthz HTTP/1.1",
                "HTTP/1.1 200",
                "content-length: 3\r\n",
            ),
            ("GET / HTTP/1.1", "HTTP/1.1 404", "only /metrics"),
            ("POST /metrics HTTP/1.1", "HTTP/1.1 405", "allow: GET, HEAD"),
            (
                "DELETE /nowhere HTTP/1.1",
                "HTTP/1.1 405",
                "allow: GET, HEAD",
            ),
        ];
        let (recorder, exporter) = Exporter::build();
        ::metrics::with_local_recorder(&recorder, begin_at_zero);
        runtime().block_on(async {
            let address = serve(exporter, LOCALHOST).await.expect("a free port");
            for (line, status, part) in table {
                let answer = ask(address, &format!("{line}\r\nhost: x\r\n\r\n")).await;
                assert!(answer.starts_with(status), "{line}: {answer}");
                assert!(answer.contains(part), "{line}: {answer}");
                assert!(answer.contains("connection: close"), "{line}: {answer}");
            }
            let head = ask(address, "HEAD /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
            assert!(head.ends_with("\r\n\r\n"), "{head}");
        });
    }

    #[test]
    fn a_head_that_is_too_large_is_refused() {
        let (_, exporter) = Exporter::build();
        runtime().block_on(async {
            let address = serve(exporter, LOCALHOST).await.expect("a free port");
            let long = "x".repeat(2 * HEAD_LIMIT);
            let answer = ask(
                address,
                &format!("GET /metrics HTTP/1.1\r\nx: {long}\r\n\r\n"),
            )
            .await;
            assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
            let answer = ask(address, "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        });
    }

    #[test]
    fn silent_clients_lose_their_places_in_time() {
        let (_, exporter) = Exporter::build();
        runtime().block_on(async {
            let limit = Duration::from_secs(1);
            let listener = TcpListener::bind(LOCALHOST).await.expect("a free port");
            let address = listener.local_addr().expect("a bound socket");
            tokio::spawn(accept(listener, exporter, limit));
            let mut silent = Vec::new();
            for _ in 0..CONNECTIONS {
                let mut stream = TcpStream::connect(address)
                    .await
                    .expect("the endpoint listens");
                stream
                    .write_all(b"GET /healthz HT")
                    .await
                    .expect("the first bytes");
                silent.push(stream);
            }
            let request = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
            assert_eq!(ask(address, request).await, "", "there is no place left");
            for mut stream in silent {
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
            }
            assert!(ask(address, request).await.starts_with("HTTP/1.1 200"));
        });
    }

    #[test]
    fn an_address_in_use_is_an_error() {
        let (_, exporter) = Exporter::build();
        runtime().block_on(async {
            let address = serve(exporter.clone(), LOCALHOST)
                .await
                .expect("a free port");
            let error = serve(exporter, address)
                .await
                .expect_err("the port is taken");
            assert_eq!(
                error.to_string(),
                format!("cannot listen on {address} for metrics")
            );
        });
    }
}
