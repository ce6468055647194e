//! The app's own namespaces, in the full profile: processes, System V IPC, clocks and mounts.
//!
//! ```text
//!  container's namespaces            realm
//!  supervisor ──────────────┬─▶ keeper    PID 1 of it: masks /proc, takes in orphans, else asleep
//!                           ├─▶ CRIU      inside, so that it sees no foreign namespace and needs no further privilege
//!                           └─▶ app       our child all the same, under another number
//! ```
//!
//! A realm is made for each start and each attempt of a restore, and ends with its keeper. Nothing of the keeper is in a
//! snapshot: what is stored are processes without namespaces, as in the minimal profile, so that either profile resumes
//! what the other one stored, and a newer version of this program what an older one did. The exception is System V IPC: as
//! long as the app uses it, CRIU runs outside of the app's IPC namespace and stores it whole; only a realm can resume that.
//!
//! The tempting way is to let CRIU store and make all of these namespaces. It then wants the namespace's first process in
//! the tree, the mounts of the container described one by one, NET_ADMIN, and drops `--unprivileged`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::time::{ClockId, clock_gettime};
use reprieve_core::manifest::Clocks;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::supervisor::pids;
use crate::supervisor::proc;
use crate::supervisor::reaper::Reaper;
use crate::sys::{self, Exit, Terminal};

/// The word by which this binary becomes a keeper.
pub const KEEPER_COMMAND: &str = "keep-realm";

/// A keeper makes its mounts in milliseconds, and is killed at once.
const KEEPER_LIMIT: Duration = Duration::from_secs(10);

const NANOS: i128 = 1_000_000_000;

/// Namespaces for one app.
#[derive(Debug)]
pub(crate) struct Realm {
    /// As we see it.
    pub keeper: i32,
    exit: std::sync::Mutex<Option<oneshot::Receiver<Exit>>>,
    /// Says what the keeper is to do; with its end the keeper ends, and with it all that is in the realm.
    orders: PipeWriter,
    answers: std::sync::Mutex<io::PipeReader>,
    processes: OwnedFd,
    mounts: OwnedFd,
    ipc: OwnedFd,
    clocks: OwnedFd,
    /// Nanoseconds that its clocks are ahead of ours.
    ahead: Ahead,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ahead {
    monotonic: i128,
    boottime: i128,
}

/// Where a process is to be put.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub realm: &'a Realm,
    /// Which System V IPC it sees.
    pub ipc: Option<&'a OwnedFd>,
}

/// The IPC namespace of an app.
#[derive(Debug)]
pub(crate) struct AppIpc {
    namespace: OwnedFd,
    /// There is shared memory, a set of semaphores or a message queue.
    pub used: bool,
}

impl Realm {
    /// Makes one whose clocks go on from `clocks`. `work` is a directory for a moment's mount.
    pub(crate) async fn make(
        reaper: &Reaper,
        work: &Path,
        clocks: Option<Clocks>,
    ) -> io::Result<Self> {
        let (orders_end, orders) = io::pipe()?;
        let (answers, answers_end) = io::pipe()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(KEEPER_COMMAND).arg(work);
        if let Some(clocks) = clocks {
            let numbers = [clocks.monotonic_ns, clocks.boottime_ns];
            command.args(numbers.map(|number| number.to_string()));
        }
        let watched = reaper.spawn(|| {
            on_a_thread_with(
                || Ok(unshare(CloneFlags::CLONE_NEWPID)?),
                || {
                    let streams = [orders_end.into(), answers_end.into(), Stdio::null()];
                    sys::spawn(command, streams, Terminal::None, &[])
                },
            )
        })?;
        let keeper = watched.pid;
        let mut made = Made {
            keeper,
            is_kept: false,
        };
        let (answers, answer) = heard(answers).await?;
        if answer != *b"y" {
            let said = String::from_utf8_lossy(&answer).into_owned();
            return Err(io::Error::other(match said.is_empty() {
                true => "its keeper ended".to_owned(),
                false => said,
            }));
        }
        let namespace = |kind: &str| -> io::Result<OwnedFd> {
            Ok(File::open(format!("/proc/{keeper}/ns/{kind}"))?.into())
        };
        let (own, its) = (Ahead::of("self")?, Ahead::of(&keeper.to_string())?);
        let realm = Self {
            keeper,
            exit: std::sync::Mutex::new(Some(watched.exit)),
            orders,
            answers: std::sync::Mutex::new(answers),
            processes: namespace("pid")?,
            mounts: namespace("mnt")?,
            ipc: namespace("ipc")?,
            clocks: namespace("time_for_children")?,
            ahead: Ahead {
                monotonic: its.monotonic - own.monotonic,
                boottime: its.boottime - own.boottime,
            },
        };
        made.is_kept = true;
        Ok(realm)
    }

    /// For the app itself and for a restore.
    pub(crate) fn entry(&self) -> Entry<'_> {
        Entry {
            realm: self,
            ipc: Some(&self.ipc),
        }
    }

    /// For a dump of an app: within its IPC namespace as long as there is nothing in it, so that no namespace is stored.
    pub(crate) fn dump_entry<'a>(&'a self, ipc: &'a AppIpc) -> Entry<'a> {
        Entry {
            realm: self,
            ipc: (!ipc.used).then_some(&ipc.namespace),
        }
    }

    /// What an app has of System V IPC now. A restored one may have a namespace of its own.
    pub(crate) fn ipc_of(&self, root: i32) -> io::Result<AppIpc> {
        let namespace: OwnedFd = File::open(format!("/proc/{root}/ns/ipc"))?.into();
        let used = on_a_thread_with(
            || Ok(setns(namespace.as_fd(), CloneFlags::CLONE_NEWIPC)?),
            || {
                let mut used = false;
                for kind in ["shm", "sem", "msg"] {
                    // The first line is a heading.
                    let table = fs::read_to_string(format!("/proc/sysvipc/{kind}"))?;
                    used |= table.lines().count() > 1;
                }
                Ok(used)
            },
        )?;
        Ok(AppIpc { namespace, used })
    }

    /// Pushes the realm's process ids past the numbers that its keeper and CRIU have on every host.
    pub(crate) fn leave_reserved_range(&self) -> io::Result<()> {
        (&self.orders).write_all(b"n")?;
        let answers = self.answers.lock().expect("no holder of this lock panics");
        (&*answers).read_exact(&mut [0])
    }

    /// Its clocks, from what ours are.
    pub(crate) fn clocks(&self) -> Clocks {
        let [monotonic, boottime, raw] = now();
        Clocks {
            monotonic_ns: nanos(monotonic + self.ahead.monotonic),
            boottime_ns: nanos(boottime + self.ahead.boottime),
            monotonic_raw_ns: Some(nanos(raw + self.ahead.monotonic)),
        }
    }

    /// Ends everything in it, and waits for that.
    pub(crate) async fn dissolve(&self) {
        drop(sys::kill(self.keeper, nix::libc::SIGKILL));
        let exit = self
            .exit
            .lock()
            .expect("no holder of this lock panics")
            .take();
        if let Some(exit) = exit {
            drop(timeout(KEEPER_LIMIT, exit).await);
        }
    }
}

/// A keeper that is not a realm's yet.
struct Made {
    keeper: i32,
    is_kept: bool,
}

impl Drop for Made {
    fn drop(&mut self) {
        if !self.is_kept {
            drop(sys::kill(self.keeper, nix::libc::SIGKILL));
        }
    }
}

/// The keeper's first word: `y`, or what is the matter.
async fn heard(answers: io::PipeReader) -> io::Result<(io::PipeReader, Vec<u8>)> {
    let (done, result) = oneshot::channel();
    std::thread::Builder::new().spawn(move || {
        let mut answer = vec![0; 4096];
        let heard = (&answers).read(&mut answer).map(|length| {
            answer.truncate(length);
            (answers, answer)
        });
        // Whoever waited may have given up.
        drop(done.send(heard));
    })?;
    match timeout(KEEPER_LIMIT, result).await {
        Ok(Ok(heard)) => heard,
        _ => Err(io::Error::other("its keeper does not answer")),
    }
}

/// Runs `act` on a thread of its own that `prepare` changed: the namespace in which a thread's children begin is its own
/// business.
fn on_a_thread_with<T: Send>(
    prepare: impl FnOnce() -> io::Result<()> + Send,
    act: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || {
            prepare()?;
            act()
        })?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
    })
}

impl Entry<'_> {
    /// Starts a process in the realm. It becomes our child, and this is its number as we see it.
    pub(crate) fn spawn(
        &self,
        mut command: Command,
        start: impl FnOnce(Command) -> io::Result<i32> + Send,
    ) -> io::Result<i32> {
        let realm = self.realm;
        // The mounts last: with them the root and the directory change.
        let joined: Vec<&OwnedFd> = self
            .ipc
            .into_iter()
            .chain([&realm.clocks, &realm.mounts])
            .collect();
        let directory = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        sys::join_namespaces(&mut command, &joined, &directory)?;
        on_a_thread_with(
            || Ok(setns(realm.processes.as_fd(), CloneFlags::CLONE_NEWPID)?),
            || start(command),
        )
    }
}

/// Our clocks, in nanoseconds: CLOCK_MONOTONIC, CLOCK_BOOTTIME and CLOCK_MONOTONIC_RAW.
fn now() -> [i128; 3] {
    [
        ClockId::CLOCK_MONOTONIC,
        ClockId::CLOCK_BOOTTIME,
        ClockId::CLOCK_MONOTONIC_RAW,
    ]
    .map(|clock| {
        let time = clock_gettime(clock).expect("Linux has this clock");
        i128::from(time.tv_sec()) * NANOS + i128::from(time.tv_nsec())
    })
}

fn nanos(time: i128) -> u64 {
    u64::try_from(time.max(0)).unwrap_or(u64::MAX)
}

/// Our clocks, as an app without a realm has them.
pub(crate) fn own_clocks() -> Clocks {
    let [monotonic, boottime, raw] = now();
    Clocks {
        monotonic_ns: nanos(monotonic),
        boottime_ns: nanos(boottime),
        monotonic_raw_ns: Some(nanos(raw)),
    }
}

impl Ahead {
    /// Of the machine's clocks, those that a process's children have.
    fn of(process: &str) -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string(format!(
            "/proc/{process}/timens_offsets"
        ))?))
    }

    fn parse(text: &str) -> Self {
        let offset = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let mut words = line.unwrap_or_default().split_whitespace();
            let mut number = || words.next().and_then(|word| word.parse::<i128>().ok());
            number().unwrap_or(0) * NANOS + number().unwrap_or(0)
        };
        Self {
            monotonic: offset("monotonic"),
            boottime: offset("boottime"),
        }
    }

    fn to_text(self) -> String {
        let line = |name: &str, offset: i128| {
            let (seconds, nanos) = (offset.div_euclid(NANOS), offset.rem_euclid(NANOS));
            format!("{name} {seconds} {nanos}\n")
        };
        line("monotonic", self.monotonic) + &line("boottime", self.boottime)
    }
}

/// Runs as keeper of a realm: makes it, says so, and stays until the supervisor is gone.
pub fn keep(arguments: impl Iterator<Item = OsString>) -> u8 {
    let arguments: Vec<OsString> = arguments.collect();
    let answer = match prepare(&arguments) {
        Ok(()) => "y".to_owned(),
        Err((what, error)) => format!("{what}: {error}"),
    };
    let mut stdout = io::stdout();
    let said = stdout
        .write_all(answer.as_bytes())
        .and_then(|()| stdout.flush());
    if said.is_err() || answer != "y" {
        return 1;
    }
    let mut order = [0];
    while io::stdin().read_exact(&mut order).is_ok() {
        pids::leave_reserved_range();
        let told = stdout.write_all(b"y").and_then(|()| stdout.flush());
        if told.is_err() {
            break;
        }
    }
    0
}

type Trouble = (&'static str, io::Error);

fn prepare(arguments: &[OsString]) -> Result<(), Trouble> {
    // Orphans of the app end here; nobody asks for their exit codes.
    sys::ignore_ended_children();
    let time = CloneFlags::from_bits_retain(nix::libc::CLONE_NEWTIME);
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | time)
        .map_err(|error| ("namespaces cannot be made", error.into()))?;
    let [work, clocks @ ..] = arguments else {
        return Err(("no directory was named", io::ErrorKind::InvalidInput.into()));
    };
    if let [monotonic, boottime] = clocks {
        set_clocks(monotonic, boottime).map_err(|error| ("the clocks cannot be set", error))?;
    }
    mount_proc(&Path::new(work).join("proc")).map_err(|error| ("/proc cannot be mounted", error))
}

fn set_clocks(monotonic: &OsStr, boottime: &OsStr) -> io::Result<()> {
    let wanted = |text: &OsStr| {
        text.to_string_lossy()
            .parse::<i128>()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
    };
    let (monotonic, boottime) = (wanted(monotonic)?, wanted(boottime)?);
    // What we see ours with is in it already.
    let own = Ahead::of("self")?;
    let [monotonic_now, boottime_now, _] = now();
    let offsets = Ahead {
        monotonic: own.monotonic + monotonic - monotonic_now,
        boottime: own.boottime + boottime - boottime_now,
    };
    fs::write("/proc/self/timens_offsets", offsets.to_text())
}

/// Mounts the realm's own /proc over the container's, with everything on it that the container has on its own: what is
/// masked there or may not be written is so here.
fn mount_proc(place: &Path) -> io::Result<()> {
    const NONE: Option<&str> = None;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // What is mounted in the container later is seen here, and what is mounted here is not seen there.
    mount(NONE, "/", NONE, MsFlags::MS_SLAVE | MsFlags::MS_REC, NONE)?;
    fs::create_dir_all(place)?;
    mount(Some("proc"), place, Some("proc"), quiet, NONE)?;
    for cover in covers(&fs::read_to_string("/proc/self/mountinfo")?) {
        let name = cover.path.strip_prefix("/proc/").unwrap_or_default();
        let target = place.join(name);
        let source = match cover.is_proc {
            // The same part of the new one.
            true => target.clone(),
            false => PathBuf::from(&cover.path),
        };
        mount(Some(&source), &target, NONE, MsFlags::MS_BIND, NONE)?;
        if cover.is_read_only {
            let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | quiet;
            mount(NONE, &target, NONE, again, NONE)?;
        }
    }
    mount(Some(place), "/proc", NONE, MsFlags::MS_MOVE, NONE)?;
    // Nobody else needs it; a realm that is made meanwhile may.
    drop(fs::remove_dir(place));
    Ok(())
}

/// One mount somewhere below /proc.
#[derive(Debug, PartialEq, Eq)]
struct Cover {
    path: String,
    is_proc: bool,
    is_read_only: bool,
}

fn covers(mountinfo: &str) -> Vec<Cover> {
    let cover = |line: &str| {
        let (front, back) = line.split_once(" - ")?;
        let mut words = front.split(' ').skip(4);
        let (path, options) = (words.next()?, words.next()?);
        path.starts_with("/proc/").then(|| Cover {
            // As the kernel writes them (proc_pid_mountinfo(5)).
            path: path.replace("\\040", " "),
            is_proc: back.starts_with("proc "),
            is_read_only: options.split(',').any(|option| option == "ro"),
        })
    };
    mountinfo.lines().filter_map(cover).collect()
}

/// Our child that has this number in the realm.
pub(crate) fn child_called(number: i32) -> Option<i32> {
    let own = nix::unistd::getpid().as_raw();
    let all = proc::processes().ok()?;
    let mut children = all
        .iter()
        .filter(|process| process.parent == own && process.state != 'Z');
    children
        .find(|child| {
            proc::levels(child.pid) > proc::levels(own) && proc::innermost(child.pid) == number
        })
        .map(|child| child.pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_as_they_are_written() {
        let second = NANOS;
        for (monotonic, boottime, text) in [
            (0, 0, "monotonic 0 0\nboottime 0 0\n"),
            (
                -second / 2,
                3 * second + 7,
                "monotonic -1 500000000\nboottime 3 7\n",
            ),
        ] {
            let ahead = Ahead {
                monotonic,
                boottime,
            };
            assert_eq!(ahead.to_text(), text);
            assert_eq!(Ahead::parse(text), ahead);
        }
        // As the kernel shows them.
        let shown = "monotonic      -1000         5\nboottime           0         0\n";
        assert_eq!(Ahead::parse(shown).monotonic, -1000 * second + 5);
    }

    #[test]
    fn what_lies_on_proc_is_found() {
        let text = "60 50 0:40 / /proc rw,nosuid - proc proc rw\n\
                    61 60 0:40 /sys /proc/sys ro,nosuid,nodev - proc proc rw\n\
                    62 60 0:41 /null /proc/kcore rw,nosuid - tmpfs tmpfs rw\n\
                    63 50 0:42 / /processes rw - tmpfs tmpfs rw\n";
        let cover = |path: &str, is_proc, is_read_only| Cover {
            path: path.to_owned(),
            is_proc,
            is_read_only,
        };
        assert_eq!(
            covers(text),
            [
                cover("/proc/sys", true, true),
                cover("/proc/kcore", false, false)
            ]
        );
    }
}
