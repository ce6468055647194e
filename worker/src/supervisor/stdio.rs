//! The app's standard streams: pipes (or a terminal) that are ours, so that the app never holds anything of the host's.
//!
//! The app's ends stay the same objects for its whole life on a host and are exchanged for new ones, by CRIU, when it is
//! resumed on another. What was written before a freeze and not delivered travels with the snapshot, in both directions,
//! so that no byte is lost or repeated, whatever the new host's own streams look like.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process;
use std::sync::Mutex;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, tee};
use nix::pty::openpty;
use nix::sys::stat::fstat;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{isatty, pipe2};
use reprieve_core::manifest;

use crate::metrics;
use crate::supervisor::pump::{Direction, Pump, Stuck, inode};
use crate::sys;

/// How long a cut waits for a write that is under way.
const CUT_LIMIT: Duration = Duration::from_secs(2);

/// What the streams held at a cut, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Sent to the app, not read by it.
    pub stdin: Vec<u8>,
    pub stdin_ended: bool,
    /// Written by the app, not delivered.
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Whether the app gets a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Pipes,
    Terminal,
}

impl Kind {
    /// A terminal if we have one ourselves.
    pub(crate) fn of_ours() -> Self {
        let both = isatty(io::stdin()).unwrap_or(false) && isatty(io::stdout()).unwrap_or(false);
        if both { Self::Terminal } else { Self::Pipes }
    }
}

/// The ends that the app gets.
#[derive(Debug)]
pub(crate) enum AppEnds {
    Pipes {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    Terminal {
        slave: OwnedFd,
    },
}

impl AppEnds {
    /// As the three standard streams of a new process.
    pub(crate) fn into_streams(self) -> io::Result<([process::Stdio; 3], sys::Terminal)> {
        Ok(match self {
            Self::Pipes {
                stdin,
                stdout,
                stderr,
            } => (
                [stdin.into(), stdout.into(), stderr.into()],
                sys::Terminal::None,
            ),
            Self::Terminal { slave } => {
                let (second, third) = (slave.try_clone()?, slave.try_clone()?);
                (
                    [slave.into(), second.into(), third.into()],
                    sys::Terminal::Controlling,
                )
            }
        })
    }
}

/// Our ends of streams that do not flow yet.
#[derive(Debug)]
pub(crate) struct Streams {
    facts: manifest::Stdio,
    ends: OurEnds,
}

#[derive(Debug)]
enum OurEnds {
    Pipes {
        to_stdin: OwnedFd,
        from_stdout: OwnedFd,
        from_stderr: OwnedFd,
        peek: OwnedFd,
    },
    Terminal {
        master: OwnedFd,
    },
}

/// Our side of the app's streams.
#[derive(Debug)]
pub(crate) struct Stdio {
    facts: manifest::Stdio,
    stdin: Pump,
    stdout: Pump,
    /// A terminal has one stream for both.
    stderr: Option<Pump>,
    /// The reading end of the app's standard input, to look at what the app has not read.
    peek: Option<OwnedFd>,
    terminal: Option<TerminalSide>,
    /// Held by a cut: a cut that somebody gave up on has to end before the streams may flow again.
    cutting: Mutex<()>,
}

#[derive(Debug)]
struct TerminalSide {
    master: OwnedFd,
    /// What our own terminal was set to, when we have one. Behind a lock only because the library's type is not `Sync`.
    ours: Mutex<Option<Termios>>,
}

impl Streams {
    /// Makes the streams. Nothing is read or written before [`Self::flow`].
    pub(crate) fn open(kind: Kind) -> io::Result<(Self, AppEnds)> {
        match kind {
            Kind::Pipes => Self::pipes(),
            Kind::Terminal => Self::terminal(),
        }
    }

    fn pipes() -> io::Result<(Self, AppEnds)> {
        let (stdin, to_stdin) = pipe2(OFlag::O_CLOEXEC)?;
        let (from_stdout, stdout) = pipe2(OFlag::O_CLOEXEC)?;
        let (from_stderr, stderr) = pipe2(OFlag::O_CLOEXEC)?;
        let facts = manifest::Stdio::Pipes {
            stdin: inode(&stdin)?,
            stdout: inode(&stdout)?,
            stderr: inode(&stderr)?,
        };
        let peek = stdin.try_clone()?;
        let ends = OurEnds::Pipes {
            to_stdin,
            from_stdout,
            from_stderr,
            peek,
        };
        Ok((
            Self { facts, ends },
            AppEnds::Pipes {
                stdin,
                stdout,
                stderr,
            },
        ))
    }

    fn terminal() -> io::Result<(Self, AppEnds)> {
        let pair = openpty(None, None)?;
        private(&pair.master)?;
        private(&pair.slave)?;
        let stat = fstat(&pair.slave)?;
        let facts = manifest::Stdio::Terminal {
            rdev: stat.st_rdev,
            dev: stat.st_dev,
        };
        // Programs look at the size as soon as they start. Ours may be no terminal; then there is none to take over.
        drop(sys::copy_window_size(
            io::stdin().as_fd(),
            pair.master.as_fd(),
        ));
        Ok((
            Self {
                facts,
                ends: OurEnds::Terminal {
                    master: pair.master,
                },
            },
            AppEnds::Terminal { slave: pair.slave },
        ))
    }

    /// Starts to carry the streams, beginning with what a snapshot held.
    pub(crate) fn flow(self, held: Held) -> io::Result<Stdio> {
        let ours = |fd: BorrowedFd<'_>| fd.try_clone_to_owned();
        let (to_stdin, from_stdout, from_stderr, peek, terminal, input_ended) = match self.ends {
            OurEnds::Pipes {
                to_stdin,
                from_stdout,
                from_stderr,
                peek,
            } => (
                to_stdin,
                from_stdout,
                Some(from_stderr),
                Some(peek),
                None,
                held.stdin_ended,
            ),
            OurEnds::Terminal { master } => {
                let side = TerminalSide {
                    ours: Mutex::new(raw_mode()?),
                    master: master.try_clone()?,
                };
                // A terminal's input does not end with ours: the person may come back.
                (master.try_clone()?, master, None, None, Some(side), false)
            }
        };
        let input = if input_ended {
            File::open("/dev/null")?.into()
        } else {
            ours(io::stdin().as_fd())?
        };
        let (stdout, stderr) = match from_stderr {
            Some(from_stderr) => {
                let stderr = output(
                    "stderr",
                    from_stderr,
                    ours(io::stderr().as_fd())?,
                    held.stderr,
                )?;
                (
                    output(
                        "stdout",
                        from_stdout,
                        ours(io::stdout().as_fd())?,
                        held.stdout,
                    )?,
                    Some(stderr),
                )
            }
            None => {
                let pending = [held.stdout, held.stderr].concat();
                (
                    output("stdout", from_stdout, ours(io::stdout().as_fd())?, pending)?,
                    None,
                )
            }
        };
        let stdin = Pump::start(
            "stdin",
            Direction::ToApp,
            input,
            to_stdin,
            held.stdin,
            dropped,
        )?;
        Ok(Stdio {
            facts: self.facts,
            stdin,
            stdout,
            stderr,
            peek,
            terminal,
            cutting: Mutex::new(()),
        })
    }
}

impl Stdio {
    /// How CRIU names the app's ends.
    pub(crate) fn facts(&self) -> &manifest::Stdio {
        &self.facts
    }

    /// Gives the app's terminal the size of ours. Without either there is nothing to do.
    pub(crate) fn resize(&self) {
        if let Some(side) = &self.terminal {
            // Our own may be no terminal any more; then the app's keeps its size.
            drop(sys::copy_window_size(
                io::stdin().as_fd(),
                side.master.as_fd(),
            ));
        }
    }

    /// Stops all streams at an exact byte. The app must be frozen. Blocks the calling thread for a moment.
    pub(crate) fn cut(&self) -> Result<Held, CutError> {
        let _cutting = self.cutting.lock().expect("no holder of this lock panics");
        let stdin = self.stdin.cut(CUT_LIMIT)?;
        let stdout = self.stdout.cut(CUT_LIMIT)?;
        let stderr = self
            .stderr
            .as_ref()
            .map(|pump| pump.cut(CUT_LIMIT))
            .transpose()?;
        let unread = self
            .peek
            .as_ref()
            .map(unread)
            .transpose()?
            .unwrap_or_default();
        Ok(Held {
            stdin: [unread, stdin.pending].concat(),
            stdin_ended: stdin.ended,
            stdout: stdout.pending,
            stderr: stderr.map(|cut| cut.pending).unwrap_or_default(),
        })
    }

    fn pumps(&self) -> impl Iterator<Item = &Pump> {
        [&self.stdin, &self.stdout].into_iter().chain(&self.stderr)
    }

    /// Lets the streams flow again after a cut. Waits for the end of a cut, which has a limit.
    pub(crate) fn resume(&self) {
        let _cutting = self.cutting.lock().expect("no holder of this lock panics");
        self.pumps().for_each(Pump::resume);
    }

    /// Gives up what is in hand: it is in a snapshot.
    pub(crate) fn abandon(self) {
        for pump in [Some(self.stdin), Some(self.stdout), self.stderr]
            .into_iter()
            .flatten()
        {
            pump.abandon();
        }
        restore_terminal(self.terminal);
    }

    /// The app has ended: delivers what it wrote, for at most `limit` a stream. Blocks the calling thread.
    pub(crate) fn finish(self, limit: Duration) {
        // Nobody reads it any more; with a terminal, it also holds an end of the stream that is to end.
        self.stdin.abandon();
        for pump in [Some(self.stdout), self.stderr].into_iter().flatten() {
            let left = pump.finish(limit);
            if left > 0 {
                tracing::warn!(
                    bytes = left,
                    "the app's last output was not read in time and is lost"
                );
            }
        }
        restore_terminal(self.terminal);
    }
}

fn restore_terminal(side: Option<TerminalSide>) {
    if let Some(ours) = side.and_then(|side| side.ours.into_inner().ok().flatten()) {
        // The terminal may be gone, and there is nobody left to tell.
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &ours);
    }
}

/// Why the streams could not be cut.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    #[error(transparent)]
    Stuck(#[from] Stuck),
    #[error("cannot look at what the app has not read of its standard input")]
    Unread(#[from] io::Error),
}

fn dropped(_stream: &'static str, bytes: usize) {
    metrics::output_dropped(bytes as u64);
}

fn output(
    stream: &'static str,
    source: OwnedFd,
    sink: OwnedFd,
    pending: Vec<u8>,
) -> io::Result<Pump> {
    Pump::start(stream, Direction::FromApp, source, sink, pending, dropped)
}

fn private(fd: &OwnedFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    Ok(())
}

fn raw_mode() -> io::Result<Option<Termios>> {
    let Ok(before) = tcgetattr(io::stdin()) else {
        // A snapshot of an app with a terminal, resumed where there is none.
        return Ok(None);
    };
    let mut raw = before.clone();
    cfmakeraw(&mut raw);
    tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw)?;
    Ok(Some(before))
}

/// What lies in a pipe, left where it is.
fn unread(pipe: &OwnedFd) -> io::Result<Vec<u8>> {
    let count = sys::readable_bytes(pipe.as_fd())?;
    if count == 0 {
        return Ok(Vec::new());
    }
    let (copy, into) = pipe2(OFlag::O_CLOEXEC)?;
    let capacity = fcntl(pipe, FcntlArg::F_GETPIPE_SZ)?;
    fcntl(&into, FcntlArg::F_SETPIPE_SZ(capacity))?;
    let copied = tee(pipe, &into, count, SpliceFFlags::SPLICE_F_NONBLOCK)?;
    drop(into);
    let mut bytes = Vec::with_capacity(copied);
    File::from(copy).read_to_end(&mut bytes)?;
    if bytes.len() == count {
        Ok(bytes)
    } else {
        Err(io::Error::other("only a part of it could be copied"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn looking_at_a_pipe_takes_nothing_out_of_it() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).expect("pipe");
        let text: Vec<u8> = (0..50_000u32).map(|number| (number % 251) as u8).collect();
        File::from(write.try_clone().expect("clone"))
            .write_all(&text)
            .expect("write");
        assert_eq!(unread(&read).expect("tee"), text);
        assert_eq!(unread(&read).expect("tee"), text);
        drop(write);
        let mut got = Vec::new();
        File::from(read).read_to_end(&mut got).expect("read");
        assert_eq!(got, text);
    }
}
