//! What the app is given at its start from scratch so that it can be checkpointed; `reprieve_core::launch` decides.
//!
//! A resumed app has it in its memory and environment. The library that it loaded has to be where it was, with the bytes it
//! had: they travel with the snapshot, since another build of this program may have others.

use std::ffi::OsString;
use std::fs;
use std::io;

use reprieve_core::cpu::{self, Fleet, Level};
use reprieve_core::launch::{self, Denial};

use crate::failure::{ExitCode, Failure};
use crate::filter::Filter;
use crate::host;
use crate::preload::Library;
use crate::settings::{
    Clocks, CpuBaseline, GoMultipathTcp, IoUring, Orphans, PerfData, Seccomp, Settings,
};

/// What stays with the app's processes as long as they live, on whatever host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Given {
    pub library: Option<Library>,
    /// They are under a seccomp filter.
    pub filtered: bool,
    /// The level of x86-64 that they are held to.
    pub baseline: Option<String>,
}

/// What the app is started with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cures {
    /// Variables and their new values.
    pub environment: Vec<(&'static str, String)>,
    pub filter: Option<Filter>,
    /// Its first process takes in orphans.
    pub takes_in_orphans: bool,
    pub given: Given,
}

impl Cures {
    /// By what settings want and what this container allows. What cannot be had is said, and the app starts without.
    ///
    /// # Errors
    /// When the file of a baseline says nothing that can be used, or the job's filter would keep it from being stored.
    pub(crate) fn prepare(settings: &Settings) -> Result<Self, Failure> {
        let mut cures = Self {
            takes_in_orphans: settings.orphans == Orphans::App,
            ..Self::default()
        };
        let had = |name: &str| std::env::var(name).ok();
        if settings.jvm_perf_data == PerfData::Off {
            let options = launch::without_perf_data(had("JAVA_TOOL_OPTIONS").as_deref());
            cures.set("JAVA_TOOL_OPTIONS", options);
        }
        if settings.go_multipath_tcp == GoMultipathTcp::Off {
            let debug = launch::without_multipath_tcp(had("GODEBUG").as_deref());
            cures.set("GODEBUG", debug);
        }
        let can_filter =
            launch::denial(host::may_suspend_filters(), host::is_filtered()) == Denial::Filter;
        if settings.seccomp == Seccomp::Job {
            if !can_filter {
                return Err(not_filtered());
            }
            cures.filter = Some(Filter::job());
        }
        let denies = match settings.io_uring {
            // The job's filter does so for every program.
            _ if cures.filter.is_some() => false,
            IoUring::Allow => false,
            IoUring::Deny => true,
            IoUring::Filter if can_filter => {
                cures.filter = Some(Filter::no_io_uring());
                false
            }
            IoUring::Filter => {
                tracing::warn!(
                    "io_uring cannot be denied by a filter here: CRIU could not store it; a library does it instead"
                );
                true
            }
        };
        cures.given.filtered = cures.filter.is_some();
        let keeps = settings.clocks == Clocks::Keep;
        let library = match (keeps, denies) {
            (true, _) => Some(Library::clocks(&settings.job, denies)),
            (false, true) => Some(Library::no_io_uring()),
            (false, false) => None,
        };
        let is_had =
            library.is_some_and(|library| cures.preload(library, had("LD_PRELOAD").as_deref()));
        if let Some(level) = baseline(&settings.cpu_baseline)? {
            for (name, value, between) in cpu::held_to(level) {
                let before = cures.environment.iter().find(|(known, _)| *known == name);
                let before = before.map(|(_, value)| value.clone()).or_else(|| had(name));
                cures.environment.retain(|(known, _)| *known != name);
                cures.set(name, launch::added(before.as_deref(), between, &value));
            }
            cures.given.baseline = Some(level.as_str().to_owned());
        }
        tracing::info!(
            baseline = cures.given.baseline,
            environment = ?cures.environment.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            io_uring = match (denies && is_had, cures.given.filtered) {
                (_, true) => "denied by a seccomp filter",
                (true, _) => "denied by a library",
                _ => "allowed",
            },
            clocks = match keeps && is_had {
                true => "kept by a library",
                false => "the host's",
            },
            "what the app is given so that it can be checkpointed (docs/checkup.md)"
        );
        Ok(cures)
    }

    fn set(&mut self, name: &'static str, value: Option<String>) {
        self.environment.extend(value.map(|value| (name, value)));
    }

    /// Whether the app will have it.
    fn preload(&mut self, library: io::Result<Library>, had: Option<&str>) -> bool {
        match library {
            Ok(library) => {
                let value = launch::preloading(had, &library.path.to_string_lossy());
                self.set("LD_PRELOAD", value);
                self.given.library = Some(library);
                true
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    "the app cannot be given the library that keeps its clocks and denies io_uring; its clocks will be the host's, and if it uses \
                     an io_uring, it cannot be checkpointed"
                );
                false
            }
        }
    }

    /// As variables for a command.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (OsString, OsString)> {
        let all = self.environment.iter();
        all.map(|(name, value)| (OsString::from(name), OsString::from(value)))
    }
}

fn not_filtered() -> Failure {
    let what = "a job under a seccomp filter cannot be stored in this container";
    Failure::new(ExitCode::FailedBeforeReady, what)
        .detail("CRIU suspends the job's filter only with SYS_ADMIN, and if the container has none itself")
        .remedy("run the container with --cap-add SYS_ADMIN --security-opt seccomp=unconfined, or leave --seccomp out")
}

fn baseline(wanted: &CpuBaseline) -> Result<Option<Level>, Failure> {
    let path = match wanted {
        // What follows from a launch template was found out before, or cannot be.
        CpuBaseline::Off | CpuBaseline::LaunchTemplate => return Ok(None),
        CpuBaseline::Level(level) => return Ok(Some(*level)),
        CpuBaseline::File(path) => path,
    };
    let text = fs::read_to_string(path).map_err(|error| error.to_string());
    let fleet = text.and_then(|text| cpu::fleet(&text)).map_err(|reason| {
        let what = format!("the CPU baseline in {} cannot be used", path.display());
        Failure::new(ExitCode::SettingsInvalid, what)
            .detail(reason)
            .remedy("write a line for each kind of machine as docs/hosts.md says, or name a level")
    })?;
    tell_lacking(&fleet);
    Ok(Some(fleet.level))
}

pub(crate) fn tell_lacking(fleet: &Fleet) {
    if !fleet.lacking.is_empty() {
        tracing::warn!(
            lacking = fleet.lacking.join(", "),
            "some machines of the fleet lack what a baseline does not hold back; snapshots from a host that has it need it"
        );
    }
}
