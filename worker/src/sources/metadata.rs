//! The metadata services of the clouds, with options from settings and from what each cloud's own tools take from the
//! environment. One that is named in `--sources` has to be there; with `auto` each is looked for.

use reprieve_hooks::Ear;
use reprieve_hooks::http::{BadEndpoint, Endpoint};
use reprieve_hooks::presence::{Expect, Pace};
use reprieve_hooks::{azure, ec2_metadata, gcp};
use tokio::sync::mpsc;
use url::Url;

use super::Task;
use crate::queue;
use crate::settings::{Settings, Sources as Switched};

/// For whoever wrote an address that is none.
const ADDRESS: &str = "correct the address, or leave the source out of --sources";

pub(super) fn ec2_wanted(settings: &Settings) -> bool {
    settings.store.is_some() && !matches!(ec2_options(settings), Ok(None))
}

pub(super) fn ec2(settings: &Settings, ear: Ear) -> Task {
    let options = match ec2_options(settings) {
        Ok(Some(options)) => Ok(ec2_metadata::Options {
            expect: expect(settings),
            pace: pace(settings),
            ..options
        }),
        Ok(None) => {
            ear.absent("it is switched off by AWS_EC2_METADATA_DISABLED".to_owned());
            return idle(ear);
        }
        Err(error) => Err(error),
    };
    let Some(hook) = settings.lifecycle_hook.clone() else {
        let listen = |options, ear| ec2_metadata::listen(options, None, ear);
        return start(ear, options, listen);
    };
    let settings = settings.clone();
    let listen = |options, ear| async move {
        let (leaving, told) = mpsc::unbounded_channel();
        let listening = ec2_metadata::listen(options, Some(leaving), ear);
        tokio::join!(listening, queue::let_go(settings, hook, told));
    };
    start(ear, options, listen)
}

pub(super) fn gcp(settings: &Settings, ear: Ear) -> Task {
    let options = gcp_options(settings).map(|options| gcp::Options {
        expect: expect(settings),
        pace: pace(settings),
        ..options
    });
    start(ear, options, gcp::listen)
}

pub(super) fn azure(settings: &Settings, ear: Ear) -> Task {
    let options = azure_options(settings).map(|options| azure::Options {
        expect: expect(settings),
        pace: pace(settings),
        ..options
    });
    start(ear, options, azure::listen)
}

/// None when the environment switches the service off.
pub(crate) fn ec2_options(
    settings: &Settings,
) -> Result<Option<ec2_metadata::Options>, BadEndpoint> {
    match given(settings.ec2_metadata_endpoint.as_ref()) {
        Some(endpoint) => endpoint.map(|endpoint| Some(ec2_metadata::Options::new(endpoint))),
        None => ec2_metadata::Options::from_environment(environment),
    }
}

pub(crate) fn gcp_options(settings: &Settings) -> Result<gcp::Options, BadEndpoint> {
    match given(settings.gcp_metadata_endpoint.as_ref()) {
        Some(endpoint) => endpoint.map(gcp::Options::new),
        None => gcp::Options::from_environment(environment),
    }
}

pub(crate) fn azure_options(settings: &Settings) -> Result<azure::Options, BadEndpoint> {
    match given(settings.azure_metadata_endpoint.as_ref()) {
        Some(endpoint) => endpoint.map(azure::Options::new),
        None => Ok(azure::Options::default()),
    }
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn given(endpoint: Option<&Url>) -> Option<Result<Endpoint, BadEndpoint>> {
    endpoint.map(|endpoint| Endpoint::parse(endpoint.as_str()))
}

fn expect(settings: &Settings) -> Expect {
    match settings.sources {
        Switched::Auto => Expect::Perhaps,
        Switched::Only(_) => Expect::Here,
    }
}

fn pace(settings: &Settings) -> Pace {
    let usual = Pace::default();
    Pace {
        poll: settings.metadata_poll,
        retry: settings.metadata_poll.min(usual.retry),
        ..usual
    }
}

/// A source that cannot begin says so, and no more.
fn start<O, F>(ear: Ear, options: Result<O, BadEndpoint>, listen: impl FnOnce(O, Ear) -> F) -> Task
where
    F: Future<Output = ()> + Send + 'static,
{
    match options {
        Ok(options) => Box::pin(listen(options, ear)),
        Err(error) => {
            ear.fails(error.to_string(), ADDRESS);
            idle(ear)
        }
    }
}

/// Its health is asked for as long as the worker runs.
fn idle(ear: Ear) -> Task {
    Box::pin(async move { ear.gone().await })
}
