//! The last metrics of a worker, pushed on its way out: what happened in its last seconds is scraped by nobody.
//!
//! To a push gateway, to StatsD, or as a line of CloudWatch's embedded metric format, whichever is set. The job is safe by
//! then, or as safe as it will be: a failure costs a line of the log, and all of it together [`LIMIT`].

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::Method;
use reprieve_hooks::http::{Client, Endpoint, HttpError, Limits};
use serde_json::{Map, Value, json};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::host;
use crate::settings::{Emf, Settings};
use crate::supervisor::with_causes;

/// Of the end of a worker, on a machine that goes.
const LIMIT: Duration = Duration::from_secs(2);
/// Bytes of a datagram; more may not fit into a frame of Ethernet.
const DATAGRAM: usize = 1400;
/// Metrics of one line in CloudWatch's format.
const EMF_METRICS: usize = 100;

#[derive(Debug, thiserror::Error)]
enum PushError {
    #[error("{0:?} is not a URL of a push gateway")]
    Address(String),
    #[error("the push gateway was not reached")]
    Http(#[from] HttpError),
    #[error("the push gateway answers {0}")]
    Refused(hyper::StatusCode),
    #[error("no datagrams can be sent to {0}")]
    Datagram(SocketAddr, #[source] std::io::Error),
}

/// Whether there is anybody to push to.
pub fn is_wanted(settings: &Settings) -> bool {
    settings.push_gateway.is_some() || settings.statsd.is_some() || settings.emf != Emf::Off
}

/// Pushes what was rendered for Prometheus.
pub async fn push(settings: &Settings, rendered: &str) {
    let samples = samples(rendered);
    match settings.emf {
        Emf::Off => {}
        // Nobody who reads it is left to be told of a failure.
        Emf::Stdout => drop(writeln!(
            std::io::stdout(),
            "{}",
            emf(&settings.job, &samples)
        )),
        Emf::Stderr => drop(writeln!(
            std::io::stderr(),
            "{}",
            emf(&settings.job, &samples)
        )),
    }
    let gateway = async {
        match &settings.push_gateway {
            Some(url) => to_gateway(url.as_str(), &settings.job, rendered).await,
            None => Ok(()),
        }
    };
    let statsd = async {
        match settings.statsd {
            Some(address) => to_statsd(address, &settings.job, &samples).await,
            None => Ok(()),
        }
    };
    let reasons: Vec<String> = match timeout(LIMIT, async { tokio::join!(gateway, statsd) }).await {
        Ok((gateway, statsd)) => [gateway.err(), statsd.err()]
            .iter()
            .flatten()
            .map(|error| with_causes(error))
            .collect(),
        Err(_) => vec![format!("it took longer than {LIMIT:?}")],
    };
    for reason in reasons {
        tracing::warn!(reason, "the last metrics could not be pushed");
    }
}

/// Replaces what the group of this job had.
async fn to_gateway(url: &str, job: &str, rendered: &str) -> Result<(), PushError> {
    let endpoint = Endpoint::parse(url).map_err(|_| PushError::Address(url.to_owned()))?;
    let limits = Limits {
        connect: LIMIT,
        answer: LIMIT,
    };
    let path = format!("/metrics/job/reprieve/reprieve_job/{}", percent(job));
    let headers = [("content-type", "text/plain; version=0.0.4")];
    let body = format!("{rendered}\n").into();
    let answer = Client::new(endpoint, limits)
        .request(Method::PUT, &path, &headers, body)
        .await?;
    match answer.status.is_success() {
        true => Ok(()),
        false => Err(PushError::Refused(answer.status)),
    }
}

fn percent(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            true => encoded.push(char::from(byte)),
            false => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    encoded
}

/// One number of what is rendered for Prometheus, buckets left out.
#[derive(Debug, PartialEq)]
struct Sample<'a> {
    name: &'a str,
    /// As in `outcome="durable",trigger="signal"`.
    labels: &'a str,
    value: f64,
    counts: bool,
}

fn samples(rendered: &str) -> Vec<Sample<'_>> {
    let lines = rendered.lines().filter(|line| !line.starts_with('#'));
    let sample = |line| {
        let (series, value): (&str, &str) = str::rsplit_once(line, ' ')?;
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}')?),
            None => (series, ""),
        };
        let counts = ["_total", "_sum", "_count"]
            .iter()
            .any(|end| name.ends_with(end));
        let value = value.parse().ok()?;
        (!name.ends_with("_bucket")).then_some(Sample {
            name,
            labels,
            value,
            counts,
        })
    };
    lines.filter_map(sample).collect()
}

/// With labels as tags, as DogStatsD, Telegraf and the CloudWatch agent read them. Counters that are still at 0 say nothing.
async fn to_statsd(
    address: SocketAddr,
    job: &str,
    samples: &[Sample<'_>],
) -> Result<(), PushError> {
    let failed = |error| PushError::Datagram(address, error);
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any).await.map_err(failed)?;
    let mut datagram = String::new();
    for line in statsd(job, samples) {
        if !datagram.is_empty() && datagram.len() + line.len() > DATAGRAM {
            let sent = socket.send_to(datagram.as_bytes(), address).await;
            sent.map_err(failed)?;
            datagram.clear();
        }
        datagram.push_str(&line);
    }
    let sent = socket.send_to(datagram.as_bytes(), address).await;
    sent.map(|_| ()).map_err(failed)
}

fn statsd(job: &str, samples: &[Sample<'_>]) -> Vec<String> {
    let told = samples
        .iter()
        .filter(|sample| !sample.counts || sample.value > 0.0);
    told.map(|sample| {
        let kind = if sample.counts { "c" } else { "g" };
        let tags: String = sample
            .labels
            .split(',')
            .filter_map(|label| label.split_once('='))
            .map(|(name, value)| format!(",{name}:{}", value.trim_matches('"')))
            .collect();
        format!(
            "{}:{}|{kind}|#reprieve_job:{job}{tags}\n",
            sample.name, sample.value
        )
    })
    .collect()
}

/// Numbers other than 0, with the values of labels in their names.
fn emf(job: &str, samples: &[Sample<'_>]) -> Value {
    let mut values = Map::new();
    let mut units = Vec::new();
    let told = samples.iter().filter(|sample| sample.value != 0.0);
    for sample in told.take(EMF_METRICS) {
        let labels = sample
            .labels
            .split(',')
            .filter_map(|label| label.split_once('='));
        let name = labels.fold(sample.name.to_owned(), |name, (_, value)| {
            format!("{name}.{}", value.trim_matches('"'))
        });
        let unit = match sample.name {
            name if name.contains("_bytes") => "Bytes",
            name if name.contains("_seconds") && !name.ends_with("_count") => "Seconds",
            _ => "Count",
        };
        units.push(json!({ "Name": name, "Unit": unit }));
        values.insert(name, sample.value.into());
    }
    let mut line = json!({
        "_aws": {
            "Timestamp": host::wall_ms(),
            "CloudWatchMetrics": [{ "Namespace": "Reprieve", "Dimensions": [["job"]], "Metrics": units }],
        },
        "job": job,
    });
    if let Some(line) = line.as_object_mut() {
        line.extend(values);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const RENDERED: &str = "# TYPE reprieve_state gauge\n\
        reprieve_state{state=\"over\"} 1\n\
        reprieve_state{state=\"running\"} 0\n\
        reprieve_checkpoints_total{trigger=\"signal\",outcome=\"durable\"} 2\n\
        reprieve_zombies_reaped_total 0\n\
        reprieve_frozen_seconds_bucket{le=\"0.5\"} 1\n\
        reprieve_frozen_seconds_sum 0.25\n\
        reprieve_frozen_seconds_count 1\n";

    #[test]
    fn statsd_gets_numbers_with_tags() {
        let lines = statsd("nightly", &samples(RENDERED)).concat();
        assert_eq!(
            lines,
            "reprieve_state:1|g|#reprieve_job:nightly,state:over\n\
             reprieve_state:0|g|#reprieve_job:nightly,state:running\n\
             reprieve_checkpoints_total:2|c|#reprieve_job:nightly,trigger:signal,outcome:durable\n\
             reprieve_frozen_seconds_sum:0.25|c|#reprieve_job:nightly\n\
             reprieve_frozen_seconds_count:1|c|#reprieve_job:nightly\n"
        );
    }

    #[test]
    fn cloudwatch_gets_one_line_that_names_what_is_in_it() {
        let line = emf("nightly", &samples(RENDERED));
        assert_eq!(line["job"], "nightly");
        assert_eq!(line["reprieve_checkpoints_total.signal.durable"], 2.0);
        let metrics = &line["_aws"]["CloudWatchMetrics"][0]["Metrics"];
        let metrics = metrics.as_array().expect("it is a list");
        assert_eq!(metrics.len(), 4, "{line}");
        assert!(
            metrics.contains(&json!({ "Name": "reprieve_frozen_seconds_sum", "Unit": "Seconds" }))
        );
        for metric in metrics {
            let name = metric["Name"].as_str().expect("it is text");
            assert!(line[name].is_number(), "{name} is not in {line}");
        }
    }

    #[test]
    fn a_jobs_name_fits_into_a_path() {
        assert_eq!(percent("team/a b.1"), "team%2Fa%20b.1");
    }
}
