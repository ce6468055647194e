//! Runs CRIU: the option lists that work with the least privileges, and what its log says when it does not.
//!
//! Always `--unprivileged`: with CAP_CHECKPOINT_RESTORE and CAP_SYS_PTRACE over Docker's default capabilities that is
//! enough, and it needs no CAP_SYS_ADMIN, no CAP_NET_ADMIN and no writable /proc/sys. Dumps are always `--leave-running`
//! with the app held at the `post-dump` stage: it is the supervisor that ends the app, after the commit and never
//! otherwise. CRIU's own killing at the end of a dump would also take place when its action script was itself killed,
//! because a script that died of a signal counts as one that returned 0 (criu/cr-dump.c, cr_dump_finish).

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use reprieve_core::compat;
use reprieve_core::launch;
use reprieve_core::manifest;

use crate::engine::hook;
use crate::host;
use crate::preload::Library;
use crate::supervisor::realm::Entry;
use crate::supervisor::reaper::{Reaper, Watched};
use crate::supervisor::stdio::AppEnds;
use crate::sys::{self, Exit, Terminal};

/// Older ones cannot dump an internet socket on kernels from 6.16 on.
const OLDEST: &str = "4.2";

/// The first version whose page server protocol was not looked at.
const UNKNOWN_FROM: &str = "5";

/// `criu --version` answers in milliseconds.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// The descriptors that CRIU finds what we pass at.
mod descriptor {
    use std::os::fd::RawFd;

    pub(super) const PAGE_SERVER: RawFd = 200;
    pub(super) const STDIN: RawFd = 201;
    pub(super) const STDOUT: RawFd = 202;
    pub(super) const STDERR: RawFd = 203;
}

/// Where a CRIU that needs nothing of the user land lies, seen from the directory of this program.
const BUNDLED: &str = "criu/criu";

/// The dynamic loader in the directory of such a CRIU; the libraries are beside it.
const LOADER: &str = "ld.so";

/// Names libraries to the dynamic loader.
const PRELOAD: &str = "LD_PRELOAD";

/// Names the process to the library; see preload/adopts.c.
const ADOPTS: &str = "REPRIEVE_ADOPTS";

/// Lines of CRIU's log that go into a message.
const QUOTED_LINES: usize = 4;

/// Why CRIU cannot be used, or did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum CriuError {
    #[error("cannot run {path}")]
    Start {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("{path} --version says {answer:?}, which is no version of CRIU")]
    NoCriu { path: String, answer: String },
    #[error(
        "CRIU {found} cannot be used: a version from {OLDEST} on and before {UNKNOWN_FROM} is needed"
    )]
    Version { found: String },
    #[error("CRIU's {operation} ended with {exit}{}", quoted(.log))]
    Failed {
        operation: &'static str,
        exit: Exit,
        log: Vec<String>,
    },
    #[error("CRIU did not answer within {0:?}")]
    Silent(Duration),
}

fn quoted(log: &[String]) -> String {
    log.iter().map(|line| format!("\n    {line}")).collect()
}

/// How CRIU is started: by its path or name, or through the loader that was shipped with it. The second works in any
/// user land, with another C library or none.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Program {
    pub path: PathBuf,
    loader: Option<PathBuf>,
}

impl Program {
    /// The one that was asked for, else the one that was shipped with `own`, else the user land's.
    pub(crate) fn find(asked: Option<&Path>, own: &Path) -> Self {
        let bundled = own.with_file_name(BUNDLED);
        let path = match asked {
            Some(path) => path.to_owned(),
            None if bundled.is_file() => bundled,
            None => "criu".into(),
        };
        let loader = Some(path.with_file_name(LOADER))
            .filter(|loader| path.is_absolute() && loader.is_file());
        Self { path, loader }
    }

    /// `first` is a library that it loads before its own.
    pub(crate) fn command(&self, first: Option<&Path>) -> Command {
        let Some(loader) = &self.loader else {
            let mut command = Command::new(&self.path);
            let had = std::env::var(PRELOAD).ok();
            let all = first
                .and_then(|first| launch::preloading(had.as_deref(), &first.to_string_lossy()));
            command.envs(all.map(|all| (PRELOAD, all)));
            return command;
        };
        let libraries = loader.parent().map_or(OsStr::new("/"), Path::as_os_str);
        let mut command = Command::new(loader);
        command
            .args([OsStr::new("--library-path"), libraries])
            .args(["--inhibit-cache", "--argv0", "criu"]);
        if let Some(first) = first {
            command.arg("--preload").arg(first);
        }
        command.arg(&self.path);
        // What the app's image preloads was made for another C library.
        command.env_remove(PRELOAD);
        command
    }
}

/// A CRIU that this program can work with.
#[derive(Clone, Debug)]
pub struct Criu {
    program: Program,
    /// `4.2.1`.
    pub version: String,
    /// This program, as CRIU's action script.
    script: PathBuf,
}

/// What becomes of established connections of TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connections {
    Closed,
    /// They go on. Until CRIU lets the app go, all of their packets are dropped by a table of nftables.
    Kept,
}

impl Connections {
    /// Of a restore. How packets are dropped is CRIU's to know, from the dump.
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Closed => &["--tcp-close"],
            Self::Kept => &["--tcp-established"],
        }
    }
}

/// What a dump needs.
#[derive(Debug)]
pub(crate) struct DumpOrder<'a> {
    pub connections: Connections,
    /// As it knows itself.
    pub root_pid: i32,
    pub realm: Option<Entry<'a>>,
    pub images: &'a Path,
    pub page_server: &'a OwnedFd,
    pub stdio: &'a manifest::Stdio,
    /// Bytes.
    pub ghost_limit: u64,
    /// Where watched files may be.
    pub watched: &'a [PathBuf],
    /// Within which all processes are to be stopped. CRIU's own limit is 10 s, which a machine that is overloaded just then
    /// does not keep, and whoever gives up after that freezes the same processes for the next attempt.
    pub freeze_within: Duration,
    pub hook: &'a Path,
}

/// What a restore needs.
#[derive(Debug)]
pub(crate) struct RestoreOrder<'a> {
    pub connections: Connections,
    pub realm: Option<Entry<'a>>,
    /// Where the image server listens.
    pub images: &'a Path,
    /// How the snapshot names the app's ends.
    pub stdio: &'a manifest::Stdio,
    /// The new ones.
    pub ends: &'a AppEnds,
    /// The first process, as it knows itself, if it takes in orphans.
    pub adopts: Option<i32>,
    pub hook: &'a Path,
}

/// The log of a run, in its images directory.
pub(crate) const LOG: &str = "criu.log";

impl Criu {
    /// Finds out whether there is a CRIU that can be used: the one that was asked for, or the one that was shipped with
    /// this program (`own`), or the user land's. `directory` is for a short-lived file.
    pub async fn probe(
        reaper: &Reaper,
        asked: Option<&Path>,
        own: PathBuf,
        directory: &Path,
    ) -> Result<Self, CriuError> {
        let program = Program::find(asked, &own);
        let start = |source| CriuError::Start {
            path: program.path.display().to_string(),
            source,
        };
        let answer_file = directory.join("criu-version");
        let output = fs::File::create(&answer_file).map_err(start)?;
        let mut command = program.command(None);
        command.arg("--version");
        let watched = reaper
            .spawn(|| {
                let streams = [Stdio::null(), output.into(), Stdio::null()];
                sys::spawn(command, streams, Terminal::None, &[])
            })
            .map_err(start)?;
        let ended = tokio::time::timeout(VERSION_LIMIT, watched.exit).await;
        if ended.is_err() {
            drop(sys::kill(watched.pid, nix::libc::SIGKILL));
            return Err(CriuError::Silent(VERSION_LIMIT));
        }
        let answer = fs::read_to_string(&answer_file).map_err(start)?;
        drop(fs::remove_file(&answer_file));
        let version = answer
            .lines()
            .find_map(|line| line.strip_prefix("Version: "))
            .map(|text| text.trim().to_owned());
        let Some(version) = version else {
            return Err(CriuError::NoCriu {
                path: program.path.display().to_string(),
                answer,
            });
        };
        let number = compat::version(&version);
        if number < compat::version(OLDEST) || number >= compat::version(UNKNOWN_FROM) {
            return Err(CriuError::Version { found: version });
        }
        Ok(Self {
            program,
            version,
            script: own,
        })
    }

    /// Starts a dump that leaves the app running and stops at `post-dump` to ask.
    pub(crate) fn start_dump(
        &self,
        reaper: &Reaper,
        order: &DumpOrder<'_>,
    ) -> Result<Watched, CriuError> {
        let limits = match host::lacks_for_users()[..] {
            [] => Library::limits().ok(),
            _ => None,
        };
        let limits = limits.as_ref().map(|library| library.path.as_path());
        let mut command = self.command("dump", order.images, order.hook, limits);
        if order.connections == Connections::Kept {
            command.args(["--network-lock", "nftables"]);
        }
        command
            .args(order.connections.flags())
            // Those that nobody has accepted yet; they end, and would be in the way of all.
            .arg("--skip-in-flight")
            .args(["--tree", &order.root_pid.to_string(), "--leave-running"])
            .args(["--ghost-limit", &order.ghost_limit.to_string()])
            .args(["--timeout", &whole_seconds(order.freeze_within).to_string()])
            .args([
                "--page-server",
                "--ps-socket",
                &descriptor::PAGE_SERVER.to_string(),
            ]);
        for path in order.watched {
            command.arg("--irmap-scan-path").arg(path);
        }
        if let manifest::Stdio::Terminal { rdev, dev } = order.stdio {
            command.args(["--external", &format!("tty[{rdev:x}:{dev:x}]")]);
        }
        self.start(
            reaper,
            command,
            order.realm.as_ref(),
            order.images,
            &[(order.page_server, descriptor::PAGE_SERVER)],
        )
    }

    /// Starts a restore from an image server in `order.images`. The app becomes our child.
    pub(crate) fn start_restore(
        &self,
        reaper: &Reaper,
        order: &RestoreOrder<'_>,
    ) -> Result<Watched, CriuError> {
        let library = order.adopts.and_then(|_| match Library::adopts() {
            Ok(library) => Some(library.path),
            Err(error) => {
                tracing::warn!(
                    %error,
                    "CRIU cannot be given the library with which orphans go back to the app; some may come to the supervisor, \
                     and no checkpoint works as long as they are there"
                );
                None
            }
        });
        let mut command = self.command("restore", order.images, order.hook, library.as_deref());
        command.envs(order.adopts.map(|root| (ADOPTS, root.to_string())));
        command.args(order.connections.flags()).args([
            "--stream",
            "--restore-detached",
            "--restore-sibling",
        ]);
        let passed = inherited(order.stdio, order.ends);
        for (name, _, number) in &passed {
            command.args(["--inherit-fd", &format!("fd[{number}]:{name}")]);
        }
        let passed: Vec<_> = passed
            .iter()
            .map(|(_, ours, number)| (*ours, *number))
            .collect();
        self.start(reaper, command, order.realm.as_ref(), order.images, &passed)
    }

    fn command(
        &self,
        operation: &str,
        images: &Path,
        hook: &Path,
        first: Option<&Path>,
    ) -> Command {
        let mut command = self.program.command(first);
        sys::hand_down_capabilities(&mut command);
        command
            .arg(operation)
            .arg("--images-dir")
            .arg(images)
            .args(["--log-file", LOG, "-v2", "--unprivileged", "--file-locks"])
            .arg("--action-script")
            .arg(&self.script)
            .env(hook::SOCKET_VARIABLE, hook);
        command
    }

    fn start(
        &self,
        reaper: &Reaper,
        command: Command,
        realm: Option<&Entry<'_>>,
        images: &Path,
        passed: &[(&OwnedFd, i32)],
    ) -> Result<Watched, CriuError> {
        let start = |source| CriuError::Start {
            path: self.program.path.display().to_string(),
            source,
        };
        // What CRIU says before it has its log.
        let early = fs::File::create(images.join("criu.stderr")).map_err(start)?;
        reaper
            .spawn(|| {
                let streams = [Stdio::null(), Stdio::null(), early.into()];
                let spawn = |command| sys::spawn(command, streams, Terminal::None, passed);
                match realm {
                    Some(entry) => entry.spawn(command, spawn),
                    None => spawn(command),
                }
            })
            .map_err(start)
    }
}

type Inherited<'a> = (String, &'a OwnedFd, i32);

fn inherited<'a>(stdio: &manifest::Stdio, ends: &'a AppEnds) -> Vec<Inherited<'a>> {
    match (stdio, ends) {
        (
            manifest::Stdio::Pipes {
                stdin,
                stdout,
                stderr,
            },
            AppEnds::Pipes {
                stdin: i,
                stdout: o,
                stderr: e,
            },
        ) => vec![
            (format!("pipe:[{stdin}]"), i, descriptor::STDIN),
            (format!("pipe:[{stdout}]"), o, descriptor::STDOUT),
            (format!("pipe:[{stderr}]"), e, descriptor::STDERR),
        ],
        (manifest::Stdio::Terminal { rdev, dev }, AppEnds::Terminal { slave }) => {
            vec![(format!("tty[{rdev:x}:{dev:x}]"), slave, descriptor::STDIN)]
        }
        // The kind of the new ends follows the snapshot's.
        _ => unreachable!("the streams are opened as the snapshot has them"),
    }
}

/// Rounded up, and never 0, which would be no limit to CRIU.
fn whole_seconds(limit: Duration) -> u64 {
    limit.as_secs() + 1
}

/// What CRIU complained of: the errors in its log, or what it said before it had one.
pub(crate) fn complaint(operation: &'static str, exit: Exit, images: &Path) -> CriuError {
    let read = |name: &str| fs::read(images.join(name)).unwrap_or_default();
    let text = String::from_utf8_lossy(&read(LOG)).into_owned();
    let mut log: Vec<String> = text
        .lines()
        .filter(|line| line.contains("Error ("))
        .map(shorten)
        .collect();
    if log.is_empty() {
        log = String::from_utf8_lossy(&read("criu.stderr"))
            .lines()
            .map(shorten)
            .collect();
    }
    // The first error is the reason, what follows are its consequences. That the process ended is one which CRIU sees in
    // one attempt and not in the next; the same failure is to read the same.
    let mut lines = 0..;
    log.retain(|line| lines.next() == Some(0) || !line.contains(" exited, status="));
    log.truncate(QUOTED_LINES);
    CriuError::Failed {
        operation,
        exit,
        log,
    }
}

fn shorten(line: &str) -> String {
    line.chars().take(300).collect()
}

/// Whether a restore failed because some process has a number that the app needs; it may be gone the next moment. CRIU
/// says so in one way for a process (criu/cr-restore.c), in another for a thread (criu/pie/restorer.c).
pub(crate) fn is_pid_collision(error: &CriuError) -> bool {
    let CriuError::Failed { log, .. } = error else {
        return false;
    };
    log.iter().any(|line| {
        line.contains("Can't fork") && line.contains("File exists")
            || line.contains("Unable to create a thread: -17")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_goes_before_what_was_shipped_and_that_before_the_user_lands() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let own = directory.path().join("reprieve");
        let found = |asked: Option<&Path>| Program::find(asked, &own);
        let plain = |path: &Path| Program {
            path: path.to_owned(),
            loader: None,
        };
        assert_eq!(found(None), plain(Path::new("criu")));
        let bundled = directory.path().join(BUNDLED);
        let parent = bundled.parent().expect("it has a directory");
        fs::create_dir(parent).expect("temporary directory");
        fs::write(&bundled, "").expect("temporary directory");
        assert_eq!(found(None), plain(&bundled));
        let loader = parent.join(LOADER);
        fs::write(&loader, "").expect("temporary directory");
        let shipped = Program {
            path: bundled.clone(),
            loader: Some(loader.clone()),
        };
        assert_eq!(found(None), shipped);
        assert_eq!(found(Some(&bundled)), shipped);
        let other = Path::new("/usr/sbin/criu");
        assert_eq!(found(Some(other)), plain(other));
        // A bare name is looked up in PATH, wherever this process happens to stand.
        assert_eq!(found(Some(Path::new("criu"))), plain(Path::new("criu")));

        let preloaded = Path::new("/run/first.so");
        let command = shipped.command(Some(preloaded));
        assert_eq!(command.get_program(), loader);
        let arguments: Vec<&OsStr> = command.get_args().collect();
        let libraries = parent.as_os_str();
        let flags = [
            "--inhibit-cache",
            "--argv0",
            "criu",
            "--preload",
            "/run/first.so",
        ];
        let flags = flags.map(OsStr::new);
        let expected: Vec<&OsStr> = [OsStr::new("--library-path"), libraries]
            .into_iter()
            .chain(flags)
            .chain([bundled.as_os_str()])
            .collect();
        assert_eq!(arguments, expected);

        let command = plain(other).command(Some(preloaded));
        let given = command.get_envs().find(|(name, _)| *name == PRELOAD);
        let given = given.and_then(|(_, value)| value?.to_str());
        assert!(given.is_some_and(|given| given.ends_with("/run/first.so")));
    }

    #[test]
    fn criu_has_all_of_the_time_to_stop_the_processes() {
        for (limit_ms, seconds) in [(0, 1), (999, 1), (9_500, 10), (110_001, 111)] {
            assert_eq!(whole_seconds(Duration::from_millis(limit_ms)), seconds);
        }
    }

    #[test]
    fn the_first_errors_of_the_log_are_quoted() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let log = "(00.1) Warn  (criu/x.c:1): so so\n(00.2) Error (criu/a.c:7): Can't fork for 306: File exists\n\
                   (00.2) Error (criu/a.c:9): 306 exited, status=1\n(00.3) Error (criu/b.c:8): Restoring FAILED.\n";
        fs::write(directory.path().join(LOG), log).expect("write");
        let error = complaint("restore", Exit::Code(1), directory.path());
        assert!(is_pid_collision(&error));
        let failed = |line: &str| CriuError::Failed {
            operation: "restore",
            exit: Exit::Code(1),
            log: vec![line.to_owned()],
        };
        let thread = "pie: 301: Error (criu/pie/restorer.c:2185): Unable to create a thread: -17";
        assert!(is_pid_collision(&failed(thread)));
        assert!(!is_pid_collision(&failed(
            "Error (criu/files-reg.c:1): File exists"
        )));
        assert_eq!(
            error.to_string(),
            "CRIU's restore ended with exit code 1\n    (00.2) Error (criu/a.c:7): Can't fork for 306: File exists\n    \
             (00.3) Error (criu/b.c:8): Restoring FAILED."
        );

        // It is told where there is nothing else to tell.
        let log = "Error (criu/a.c:9): 306 exited, status=1\n";
        fs::write(directory.path().join(LOG), log).expect("write");
        let alone = complaint("restore", Exit::Code(1), directory.path());
        assert!(alone.to_string().contains("306 exited, status=1"));
    }
}
