//! The binary: reads settings, builds the parts, runs, turns the outcome into an exit code.
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use reprieve::engine::hook;
use reprieve::settings::{FlagValue, Layers, ProcessEnvironment, Settings};
use reprieve::signals::{self, Signals};
use reprieve::supervisor::reaper::Reaper;
use reprieve::supervisor::{Clock, Supervisor};
use reprieve::sys;

fn main() -> ExitCode {
    if let Some(code) = hook::run_if_called(|name| std::env::var_os(name)) {
        return ExitCode::from(code);
    }
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let mut flags = Vec::new();
    let mut args = std::env::args_os().skip(2);
    let mut argv: Vec<OsString> = Vec::new();
    while let Some(arg) = args.next() {
        if arg == "--" {
            argv = args.collect();
            break;
        }
        let name = arg.to_string_lossy().trim_start_matches("--").to_owned();
        let setting = reprieve::settings::TABLE
            .iter()
            .find(|s| s.name == name)
            .expect("known")
            .name;
        flags.push(FlagValue {
            setting,
            flag: format!("--{name}"),
            value: args.next().expect("value"),
        });
    }
    let layers = Layers {
        flags,
        file: None,
        default_file: Path::new("/etc/reprieve.toml"),
        environment: &ProcessEnvironment,
    };
    let settings = Settings::load(&layers, &argv).unwrap_or_else(|f| panic!("{f:?}"));
    signals::block_all().expect("block");
    sys::keep_descriptors_private().expect("cloexec");
    nix::sys::prctl::set_child_subreaper(true).expect("subreaper");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .thread_keep_alive(std::time::Duration::from_secs(1 << 30))
        .enable_all()
        .build()
        .expect("rt");
    let result = runtime.block_on(async {
        let signals = Signals::receive().expect("signals");
        let (_tx, rx) = tokio::sync::mpsc::channel(8);
        Supervisor::new(settings, argv, Arc::new(Reaper::default()), Clock::start())
            .run(signals, rx)
            .await
    });
    runtime.shutdown_background();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(f) => {
            f.print();
            ExitCode::from(f.code().number())
        }
    }
}
