//! The HTTP endpoint of a worker: its metrics, how it is, and a page for people, for whoever can reach it.
//!
//! It must never hold up or end the worker, which `web` sees to. What is shown comes from the supervisor and its journal; a
//! supervisor that is busy or gone is shown as it was.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::{Method, Response, StatusCode};
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::control::protocol::Status;
use crate::journal::Journal;
use crate::metrics::{self, Exporter};
use crate::supervisor;
use crate::web::{self, Body, ListenError, Place, STREAMS, Site, full, plain};

/// The page for people; it fetches nothing but [`Endpoint::events`].
const PAGE: &str = include_str!("page.html");

/// A stream says how things are at least this often.
const REFRESHED_EVERY: Duration = Duration::from_secs(2);
/// What happens together is told together.
const SETTLES_IN: Duration = Duration::from_millis(50);
/// How long the supervisor may take to say how things are.
const ASK_LIMIT: Duration = Duration::from_millis(500);

/// What is served.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub exporter: Exporter,
    pub journal: Journal,
    pub supervisor: mpsc::Sender<supervisor::Request>,
    streams: Arc<Semaphore>,
}

impl Endpoint {
    pub fn new(
        exporter: Exporter,
        journal: Journal,
        supervisor: mpsc::Sender<supervisor::Request>,
    ) -> Self {
        Self {
            exporter,
            journal,
            supervisor,
            streams: Arc::new(Semaphore::new(STREAMS)),
        }
    }

    /// Serves from tasks of its own until the runtime ends, and returns the address it listens on.
    pub async fn serve(&self, address: SocketAddr) -> Result<SocketAddr, ListenError> {
        let bound = web::serve(address, self.clone()).await?;
        self.exporter.keep_up();
        Ok(bound)
    }

    /// Lets those who look see how it ended.
    pub async fn say_goodbye(&self, limit: Duration) {
        self.journal.close();
        let all = u32::try_from(STREAMS).unwrap_or(u32::MAX);
        // Too late is not worth a word: the supervisor is ending.
        drop(timeout(limit, self.streams.acquire_many(all)).await);
    }

    async fn status(&self) -> Option<Status> {
        if !*self.journal.over().borrow() {
            let (answer, status) = oneshot::channel();
            let asked = async {
                let request = supervisor::Request::Status { answer };
                self.supervisor.send(request).await.ok()?;
                status.await.ok()
            };
            if let Ok(Some(status)) = timeout(ASK_LIMIT, asked).await {
                return Some(status);
            }
        }
        self.journal.told()
    }

    /// How things are and what happened, as an object.
    async fn tell(&self) -> Option<Value> {
        let mut told = self.status().await?.to_json();
        told["history"] = self.journal.to_json();
        Some(told)
    }

    /// Everything recorded, with what changes by itself as it is now.
    fn metrics(&self) -> String {
        if let Some(status) = self.journal.told() {
            metrics::work_at_risk(status.at_risk());
        }
        self.exporter.render()
    }

    /// A stream of what [`Self::tell`] says, whenever it is news and from time to time; the last one is called `over`.
    fn events(&self, place: &Place) -> Response<Body> {
        let Ok(permit) = Arc::clone(&self.streams).try_acquire_owned() else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "too many streams\n");
        };
        // A connection has one request.
        drop(place.set(permit));
        let watching = Watching {
            endpoint: self.clone(),
            news: self.journal.news(),
            over: self.journal.over(),
            begun: false,
        };
        let messages = stream::unfold(Some(watching), |watching| async move {
            let (text, watching) = watching?.next().await;
            Some((Ok(Frame::data(Bytes::from(text))), watching))
        });
        web::events(BodyExt::boxed_unsync(StreamBody::new(messages)))
    }
}

impl Site for Endpoint {
    async fn answer(&self, method: &Method, path: &str, place: &Place) -> Response<Body> {
        match path {
            "/" => web::page(PAGE),
            "/metrics" => plain(StatusCode::OK, self.metrics()),
            "/healthz" => plain(StatusCode::OK, "ok\n"),
            "/readyz" => match self.status().await {
                Some(status) if status.is_ready() => plain(StatusCode::OK, "ready\n"),
                status => plain(StatusCode::SERVICE_UNAVAILABLE, not_ready(status.as_ref())),
            },
            "/status" => match self.tell().await {
                Some(told) => full(StatusCode::OK, "application/json", format!("{told}\n")),
                None => plain(StatusCode::SERVICE_UNAVAILABLE, "not yet known\n"),
            },
            "/events" if *method == Method::GET => self.events(place),
            "/events" => full(StatusCode::OK, "text/event-stream", ""),
            _ => plain(
                StatusCode::NOT_FOUND,
                "only /, /events, /healthz, /metrics, /readyz and /status\n",
            ),
        }
    }
}

/// Somebody who looks.
struct Watching {
    endpoint: Endpoint,
    news: watch::Receiver<u64>,
    over: watch::Receiver<bool>,
    begun: bool,
}

impl Watching {
    async fn next(mut self) -> (String, Option<Self>) {
        if self.begun {
            tokio::select! {
                // The sender lives as long as the journal, which we hold.
                _ = self.news.changed() => sleep(SETTLES_IN).await,
                () = sleep(REFRESHED_EVERY) => {}
            }
        }
        self.begun = true;
        self.news.mark_unchanged();
        let over = *self.over.borrow();
        let Some(told) = self.endpoint.tell().await else {
            return (": not yet known\n\n".to_owned(), Some(self));
        };
        match over {
            true => (format!("event: over\ndata: {told}\n\n"), None),
            false => (format!("data: {told}\n\n"), Some(self)),
        }
    }
}

fn not_ready(status: Option<&Status>) -> String {
    let Some(status) = status else {
        return "not yet known\n".to_owned();
    };
    let why = status.unprotected_because.as_deref().unwrap_or("protected");
    format!("not ready: {}, {why}\n", status.state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::begin_at_zero;
    use crate::web::{CONNECTIONS, HEAD_LIMIT, accept};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    const LOCALHOST: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    /// With a supervisor that does not answer.
    fn endpoint(exporter: Exporter) -> Endpoint {
        Endpoint::new(exporter, Journal::default(), mpsc::channel(1).0)
    }

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
            ("GET / HTTP/1.1", "HTTP/1.1 200", "frame-ancestors 'none'"),
            ("GET /nowhere HTTP/1.1", "HTTP/1.1 404", "only /, /events"),
            ("GET /readyz HTTP/1.1", "HTTP/1.1 503", "not yet known"),
            ("GET /status HTTP/1.1", "HTTP/1.1 503", "not yet known"),
            ("POST /metrics HTTP/1.1", "HTTP/1.1 405", "allow: GET, HEAD"),
            (
                "DELETE /nowhere HTTP/1.1",
                "HTTP/1.1 405",
                "allow: GET, HEAD",
            ),
        ];
        let (recorder, exporter) = Exporter::build();
        ::metrics::with_local_recorder(&recorder, begin_at_zero);
        let endpoint = endpoint(exporter);
        runtime().block_on(async {
            let address = endpoint.serve(LOCALHOST).await.expect("a free port");
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
        let endpoint = endpoint(Exporter::build().1);
        runtime().block_on(async {
            let address = endpoint.serve(LOCALHOST).await.expect("a free port");
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
        let endpoint = endpoint(Exporter::build().1);
        runtime().block_on(async {
            let limit = Duration::from_secs(1);
            let listener = TcpListener::bind(LOCALHOST).await.expect("a free port");
            let address = listener.local_addr().expect("a bound socket");
            tokio::spawn(accept(listener, endpoint, limit));
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
        let endpoint = endpoint(Exporter::build().1);
        runtime().block_on(async {
            let address = endpoint.serve(LOCALHOST).await.expect("a free port");
            let error = endpoint
                .serve(address)
                .await
                .expect_err("the port is taken");
            assert_eq!(error.to_string(), format!("cannot listen on {address}"));
        });
    }
}
