//! The binary: reads settings, builds the parts, runs, turns the outcome into an exit code.

use std::io;
use std::process::ExitCode;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use reprieve::callouts::Recorder;
use reprieve::cli::{self, AppCommand, Invocation};
use reprieve::control::server::{self, Callers};
use reprieve::doctor;
use reprieve::endpoint::Endpoint;
use reprieve::engine::hook;
use reprieve::failure::{self, Failure};
use reprieve::journal::Journal;
use reprieve::last_push;
use reprieve::logging::{Logging, Surroundings};
use reprieve::machine;
use reprieve::metrics::Exporter;
use reprieve::queue;
use reprieve::settings::{self, ProcessEnvironment, Settings};
use reprieve::sources::Sources;
use reprieve::supervisor::realm;
use reprieve::supervisor::reaper::Reaper;
use reprieve::supervisor::{Clock, Supervisor};
use reprieve::sys;
use reprieve::traces;
use reprieve_hooks::signals::{self, Signals};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Requests that wait for the supervisor, at most.
const REQUESTS: usize = 32;

/// How long the last log lines, and callers that take their answers, may hold up the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long the machine's tags may hold up the end.
const LAST_TAGS: Duration = Duration::from_secs(4);

/// Threads for calls that block. They stay once started: a thread takes a process id, and a restore needs those of its
/// app to be free.
const BLOCKING_THREADS: usize = 8;

/// [`settings::KEY_VARIABLE`] as the C library takes it.
const KEY_VARIABLE: &std::ffi::CStr = c"REPRIEVE_KEY";

fn main() -> ExitCode {
    if let Some(code) = hook::run_if_called(|name| std::env::var_os(name)) {
        return code.into();
    }
    if std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == doctor::CHILD_COMMAND)
    {
        return doctor::rehearsal_child().into();
    }
    if std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == realm::KEEPER_COMMAND)
    {
        return realm::keep(std::env::args_os().skip(2)).into();
    }
    match failure::catch(invoke) {
        Ok(code) => code.into(),
        Err(failure) => {
            failure.print();
            failure.code().into()
        }
    }
}

fn invoke() -> Result<u8, Failure> {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|command| command == "run")
    {
        // First of all: for PID 1 a signal that is neither blocked nor handled is lost. And before the first thread,
        // so that all inherit it.
        signals::block_all().map_err(|error| before_ready("signals cannot be blocked", error))?;
    }
    let invocation = cli::parse(std::env::args_os(), &ProcessEnvironment);
    if std::env::var_os(settings::KEY_VARIABLE).is_some() {
        // The first other thread is started by the runtime.
        sys::wipe_variable(KEY_VARIABLE)
            .map_err(|error| before_ready("REPRIEVE_KEY cannot be wiped", error))?;
    }
    match invocation? {
        Invocation::Run(settings, app) => run(*settings, app),
        Invocation::Checkpoint(request) => request.carry_out(&mut io::stdout()).map(|()| 0),
        Invocation::Status(request) => request.carry_out(&mut io::stdout()).map(|()| 0),
        Invocation::Wait(request) => request.carry_out(&mut io::stdout()).map(|()| 0),
        Invocation::Send(request) => on_runtime(request.carry_out(&mut io::stdout())),
        Invocation::Operate(request) => {
            if request.waits_for_signals() {
                signals::block_all()
                    .map_err(|error| before_ready("signals cannot be blocked", error))?;
            }
            on_runtime(request.carry_out(&mut io::stdout()))
        }
        Invocation::Doctor(request) => on_runtime(request.carry_out(&mut io::stdout())),
        Invocation::Print(text) => {
            // Whoever asked and does not read has nothing to be told.
            let _ = io::Write::write_all(&mut io::stdout(), text.as_bytes());
            Ok(0)
        }
    }
}

fn run(settings: Settings, app: AppCommand) -> Result<u8, Failure> {
    let clock = Clock::start();
    // Before the first thread: what they share with the job is memory.
    sys::bound_memory();
    sys::keep_descriptors_private().map_err(|error| {
        before_ready("inherited descriptors cannot be closed to the app", error)
    })?;
    sys::leave_no_core().map_err(|error| before_ready("core files cannot be turned off", error))?;
    sys::use_capabilities()
        .map_err(|error| before_ready("capabilities cannot be taken into use", error))?;
    nix::sys::prctl::set_child_subreaper(true)
        .map_err(|error| before_ready("orphans cannot be taken in", error.into()))?;
    let surroundings = Surroundings::default();
    surroundings.job(&settings.job);
    let logging = Logging::set_up(&settings.log, surroundings.clone()).map_err(|error| {
        Failure::new(
            failure::ExitCode::FailedBeforeReady,
            "the log cannot be set up",
        )
        .caused_by(error)
    })?;
    failure::report_panics();
    let runtime =
        runtime().map_err(|error| before_ready("the runtime cannot be started", error))?;
    let ended = runtime.block_on(async {
        let settings = Box::pin(machine::complete(settings)).await?;
        let settings = Box::pin(machine::held_to_its_fleet(settings)).await;
        // The machine's tags may have named it.
        surroundings.job(&settings.job);
        for warning in &settings.warnings {
            tracing::warn!("{warning}");
        }
        Box::pin(supervise(settings, app, clock, surroundings)).await
    });
    // A store call that hangs must not hold up the end.
    runtime.shutdown_background();
    logging.flush(LAST_WORDS);
    ended
}

fn on_runtime(command: impl Future<Output = Result<(), Failure>>) -> Result<u8, Failure> {
    let runtime =
        runtime().map_err(|error| before_ready("the runtime cannot be started", error))?;
    let done = runtime.block_on(command);
    // A store call that hangs must not hold up the end.
    runtime.shutdown_background();
    done.map(|()| 0)
}

fn runtime() -> io::Result<Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(Duration::MAX)
        .enable_all()
        .build()?;
    // All of them now, while numbers are low: one that starts during a restore could take the app's for good.
    let all = Arc::new(Barrier::new(BLOCKING_THREADS + 1));
    for _ in 0..BLOCKING_THREADS {
        let all = Arc::clone(&all);
        runtime.spawn_blocking(move || all.wait());
    }
    all.wait();
    Ok(runtime)
}

async fn supervise(
    settings: Settings,
    app: AppCommand,
    clock: Clock,
    surroundings: Surroundings,
) -> Result<u8, Failure> {
    let signals =
        Signals::receive().map_err(|error| before_ready("signals cannot be received", error))?;
    let (traces, sending) = traces::start(&settings).unzip();
    let reaper = Arc::new(Reaper::default());
    let recorder = Recorder::start(&settings, Arc::clone(&reaper));
    let journal = Journal::new(surroundings, traces, recorder);
    let (sender, requests) = mpsc::channel(REQUESTS);
    let exporter = record(&settings)?;
    let endpoint = serve_metrics(&settings, exporter.as_ref(), &journal, &sender).await?;
    let callers = listen(&settings, sender);
    let sources = Sources::start(&settings);
    let argv = std::iter::once(app.program).chain(app.arguments).collect();
    let known = settings.clone();
    let supervisor = Supervisor::new(settings, argv, reaper, clock, journal.clone());
    let tags = tokio::spawn(queue::tag(known.clone(), supervisor.told()));
    let ended = Box::pin(supervisor.run(signals, requests, sources)).await;
    // A job that failed, or was stored, is run again: by whoever reads its queue then.
    if matches!(ended, Ok(0)) && known.checkpointed_exit_code != 0 {
        queue::remove(&known).await;
    }
    journal.end_trace();
    if let Some(sending) = sending {
        sending.finish(LAST_WORDS).await;
    }
    if let Some(exporter) = exporter {
        last_push::push(&known, &exporter.render()).await;
    }
    if let Some(endpoint) = endpoint {
        endpoint.say_goodbye(LAST_WORDS).await;
    }
    drop(timeout(LAST_TAGS, tags).await);
    if let Some(callers) = callers {
        callers.served(LAST_WORDS).await;
    }
    ended
}

/// Metrics, if anybody is to see them.
fn record(settings: &Settings) -> Result<Option<Exporter>, Failure> {
    if settings.metrics_listen.is_none() && !last_push::is_wanted(settings) {
        return Ok(None);
    }
    let failed = |error| {
        let what = "metrics cannot be recorded";
        Failure::new(failure::ExitCode::FailedBeforeReady, what).caused_by(error)
    };
    Exporter::install().map(Some).map_err(failed)
}

async fn serve_metrics(
    settings: &Settings,
    exporter: Option<&Exporter>,
    journal: &Journal,
    supervisor: &mpsc::Sender<reprieve::supervisor::Request>,
) -> Result<Option<Endpoint>, Failure> {
    let (Some(address), Some(exporter)) = (settings.metrics_listen, exporter) else {
        return Ok(None);
    };
    let failed = || {
        Failure::new(
            failure::ExitCode::FailedBeforeReady,
            format!("metrics cannot be served at {address}"),
        )
        .remedy("choose another address with --metrics-listen, or leave it out")
    };
    let endpoint = Endpoint::new(exporter.clone(), journal.clone(), supervisor.clone());
    let bound = endpoint
        .serve(address)
        .await
        .map_err(|error| failed().caused_by(error))?;
    tracing::info!(%bound, "metrics and the status page are served");
    Ok(Some(endpoint))
}

/// Without a control socket the job is as safe as before: it must not fail for that.
fn listen(
    settings: &Settings,
    requests: mpsc::Sender<reprieve::supervisor::Request>,
) -> Option<Callers> {
    match server::listen(&settings.control_socket, requests) {
        Ok(callers) => Some(callers),
        Err(error) => {
            let path = settings.control_socket.display();
            tracing::warn!(%path, %error, "no control socket: `reprieve checkpoint` and `status` will not work here");
            None
        }
    }
}

fn before_ready(what: &str, error: io::Error) -> Failure {
    Failure::new(failure::ExitCode::FailedBeforeReady, what).caused_by(error)
}
