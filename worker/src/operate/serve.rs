//! `reprieve ps --serve`: a page for people about a whole store, live, and the same as JSON.
//!
//! What `ps` says is looked up while somebody watches, once for all of them, and no more often than a part of the time: a
//! look costs a request or two for each job. What `snapshots` and `reports` say of one job is looked up when it is asked
//! for. Nothing is written, and nothing is served to whom the address is not reachable.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::{Method, Response, StatusCode};
use reprieve_core::report;
use reprieve_hooks::signals::Signals;
use serde_json::{Value, json};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, sleep, timeout};

use super::{Detail, Failure, Job, WhichReport, list, ps, reports};
use crate::failure::ExitCode;
use crate::settings;
use crate::web::{self, Body, Place, STREAMS, Site, full, plain};

/// The page; it fetches nothing but what is served here.
const PAGE: &str = include_str!("../store.html");

/// Between two looks, at least.
const LEAST_PAUSE: Duration = Duration::from_secs(2);

/// The pause after a look, in times of how long that took: a large store is not asked all the time.
const PAUSES: u32 = 4;

/// How long looking one job up may take; the connection lives a little longer.
const ONE_LIMIT: Duration = Duration::from_secs(8);

/// A store as it is shown.
#[derive(Clone)]
struct Window {
    job: Arc<Job>,
    /// The last look. Held while one is taken: whoever else wants to know waits for that one.
    seen: Arc<Mutex<Option<Seen>>>,
    streams: Arc<Semaphore>,
}

/// What was there.
#[derive(Clone)]
struct Seen {
    at: Instant,
    took: Duration,
    text: Arc<str>,
}

impl Seen {
    /// When it is worth looking again.
    fn due(&self) -> Instant {
        self.at + LEAST_PAUSE.max(PAUSES * self.took)
    }
}

/// Serves until a signal says otherwise.
pub(super) async fn serve(
    job: Job,
    address: SocketAddr,
    out: &mut impl std::io::Write,
) -> Result<(), Failure> {
    let failed = |what: String| Failure::new(ExitCode::NotDone, what);
    let window = Window {
        job: Arc::new(job),
        seen: Arc::default(),
        streams: Arc::new(Semaphore::new(STREAMS)),
    };
    let mut signals = Signals::receive()
        .map_err(|error| failed("signals cannot be received".to_owned()).caused_by(error))?;
    let bound = web::serve(address, window).await.map_err(|error| {
        failed(format!("the page cannot be served at {address}"))
            .caused_by(error)
            .remedy("choose another address; port 0 takes any port that is free")
    })?;
    // Whoever does not read it knows the address.
    drop(writeln!(out, "http://{bound}/ shows the store"));
    drop(out.flush());
    loop {
        if ends(signals.next().await) {
            return Ok(());
        }
    }
}

fn ends(signal: i32) -> bool {
    use nix::libc::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    [SIGHUP, SIGINT, SIGQUIT, SIGTERM].contains(&signal)
}

impl Window {
    /// What is there, as it was a moment ago at the latest.
    async fn look(&self) -> Seen {
        let mut seen = self.seen.lock().await;
        if let Some(seen) = seen.as_ref().filter(|seen| Instant::now() < seen.due()) {
            return seen.clone();
        }
        let begun = Instant::now();
        let told = match ps::ps(&self.job).await {
            Ok(processes) => serde_json::to_value(&processes)
                .expect("our own types have string keys and finite numbers"),
            Err(failure) => json!({
                "store": self.job.address,
                "jobs": null,
                "problem": failure.on_one_line(),
            }),
        };
        let at = Instant::now();
        let look = Seen {
            at,
            took: at - begun,
            text: told.to_string().into(),
        };
        *seen = Some(look.clone());
        look
    }

    fn events(&self, place: &Place) -> Response<Body> {
        let Ok(permit) = Arc::clone(&self.streams).try_acquire_owned() else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "too many streams\n");
        };
        // A connection has one request.
        drop(place.set(permit));
        let messages = stream::unfold((self.clone(), None), |(window, last)| async move {
            if let Some(last) = last {
                sleep(Seen::due(&last).saturating_duration_since(Instant::now())).await;
            }
            let seen = window.look().await;
            let text = format!("data: {}\n\n", seen.text);
            Some((Ok(Frame::data(Bytes::from(text))), (window, Some(seen))))
        });
        web::events(BodyExt::boxed_unsync(StreamBody::new(messages)))
    }

    /// One job's snapshots and reports.
    async fn one(&self, name: &str) -> Result<Value, Failure> {
        let job = self.job.beside(name);
        let (snapshots, reports) = tokio::join!(list::list(&job, None), reports::list(&job));
        let value = |answer| serde_json::to_value(answer);
        let snapshots = value(&snapshots?).unwrap_or_default();
        let reports = serde_json::to_value(reports?).unwrap_or_default();
        Ok(json!({ "snapshots": snapshots, "reports": reports["reports"] }))
    }

    /// Only jobs that there may be, and no others than those that were asked for at the start.
    fn may_show(&self, name: &str) -> bool {
        settings::is_job_name(name) && (self.job.name.is_empty() || self.job.name == name)
    }

    async fn below_jobs(&self, path: &str) -> Response<Body> {
        let words: Vec<&str> = path.split('/').collect();
        let asked = async {
            match words[..] {
                [name] if self.may_show(name) => Some(
                    self.one(name)
                        .await
                        .map(|told| ("application/json", told.to_string())),
                ),
                [name, "reports", report] if self.may_show(name) => {
                    let which = WhichReport::Named(report.parse::<report::Name>().ok()?);
                    let job = self.job.beside(name);
                    let told = reports::report(&job, &which, Detail::Whole).await;
                    Some(told.map(|told| ("text/plain; charset=utf-8", told.plain())))
                }
                _ => None,
            }
        };
        match timeout(ONE_LIMIT, asked).await {
            Ok(Some(Ok((kind, text)))) => full(StatusCode::OK, kind, text),
            Ok(Some(Err(failure))) => plain(StatusCode::BAD_GATEWAY, failure.on_one_line() + "\n"),
            Ok(None) => nowhere(),
            Err(_) => plain(StatusCode::GATEWAY_TIMEOUT, "the store takes too long\n"),
        }
    }
}

impl Site for Window {
    async fn answer(&self, method: &Method, path: &str, place: &Place) -> Response<Body> {
        match path {
            "/" => web::page(PAGE),
            "/healthz" => plain(StatusCode::OK, "ok\n"),
            "/ps" => {
                let seen = self.look().await;
                full(StatusCode::OK, "application/json", seen.text.to_string())
            }
            "/events" if *method == Method::GET => self.events(place),
            "/events" => full(StatusCode::OK, "text/event-stream", ""),
            path => match path.strip_prefix("/jobs/") {
                Some(rest) => self.below_jobs(rest).await,
                None => nowhere(),
            },
        }
    }
}

fn nowhere() -> Response<Body> {
    plain(
        StatusCode::NOT_FOUND,
        "only /, /events, /healthz, /ps, /jobs/JOB and /jobs/JOB/reports/REPORT\n",
    )
}
