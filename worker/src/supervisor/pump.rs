//! Carries the bytes of one standard stream, and can be cut at an exact byte.
//!
//! ```text
//!            cut()                     resume()
//!  Flowing ─────────▶ Cutting ──▶ Cut ──────────▶ Flowing
//!     │                                              │
//!     └────────────── source ended ──────────────────┴──▶ Done (what is left was delivered or counted as dropped)
//! ```
//!
//! A pump is one thread that owns both ends. It never has more than [`LIMIT`] bytes in hand while flowing: a slow reader
//! slows the writer down, as a pipe would. A reader that is gone does not: what comes is read, counted and dropped.
//! A cut takes everything out of the source, hands over what the sink would not take at once, and then nothing moves
//! until the pump is told to go on. The source must be quiet (its writers frozen) for the cut to mean anything.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::metrics;

/// Bytes in hand, at most, while flowing.
const LIMIT: usize = 256 << 10;

/// The most that is written at once: a pipe that polls writable has room for this much, so the write cannot block
/// (POSIX's PIPE_BUF on Linux).
const STEP: usize = 4096;

/// What a cut found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Taken from the source, not yet delivered, in order.
    pub pending: Vec<u8>,
    /// The source had come to its end.
    pub ended: bool,
}

/// A pump could not be stopped in time: its sink holds a write up.
#[derive(Debug, thiserror::Error)]
#[error("the reader of {stream} holds up a write for longer than {limit:?}")]
pub struct Stuck {
    pub stream: &'static str,
    pub limit: Duration,
}

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// The source is the app's; a cut drains it.
    FromApp,
    /// The source is somebody else's; what its sender still holds is not ours yet, and a cut leaves it there.
    ToApp,
}

/// What happens to bytes that nobody reads.
pub(super) type OnDropped = fn(stream: &'static str, bytes: usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Flowing,
    Cutting,
    Cut,
    /// What is in hand is given up.
    Abandoned,
    Done,
}

#[derive(Debug)]
struct Shared {
    mode: Mode,
    buffer: VecDeque<u8>,
    source_ended: bool,
}

#[derive(Debug)]
struct Hub {
    stream: &'static str,
    direction: Direction,
    shared: Mutex<Shared>,
    changed: Condvar,
    wake: EventFd,
}

/// The handle to one running pump. Dropping it does not stop the pump.
#[derive(Debug)]
pub(super) struct Pump {
    hub: Arc<Hub>,
    thread: JoinHandle<()>,
    on_dropped: OnDropped,
}

impl Pump {
    /// Starts to carry `initial` and then everything from `source` to `sink`.
    ///
    /// # Errors
    /// When the thread or its wake-up descriptor cannot be made.
    pub(super) fn start(
        stream: &'static str,
        direction: Direction,
        source: OwnedFd,
        sink: OwnedFd,
        initial: Vec<u8>,
        on_dropped: OnDropped,
    ) -> io::Result<Self> {
        let hub = Arc::new(Hub {
            stream,
            direction,
            shared: Mutex::new(Shared {
                mode: Mode::Flowing,
                buffer: initial.into(),
                source_ended: false,
            }),
            changed: Condvar::new(),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        });
        let worker = Arc::clone(&hub);
        let thread = std::thread::Builder::new()
            .name(format!("pump-{stream}"))
            .stack_size(256 << 10)
            .spawn(move || {
                Carrier {
                    hub: &worker,
                    source: Some(source),
                    sink: Some(sink),
                    on_dropped,
                }
                .run()
            })?;
        Ok(Self {
            hub,
            thread,
            on_dropped,
        })
    }

    /// Stops the stream at an exact byte. Returns what is still to be delivered; the pump keeps it in hand as well and
    /// delivers it if it is told to [`resume`](Self::resume).
    pub(super) fn cut(&self, limit: Duration) -> Result<Cut, Stuck> {
        let deadline = Instant::now() + limit;
        let mut shared = self.hub.lock();
        if shared.mode == Mode::Flowing {
            shared.mode = Mode::Cutting;
            self.hub.wake();
        }
        while shared.mode == Mode::Cutting {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                shared.mode = Mode::Flowing;
                return Err(Stuck {
                    stream: self.hub.stream,
                    limit,
                });
            }
            shared = self
                .hub
                .changed
                .wait_timeout(shared, left)
                .expect("no holder of this lock panics")
                .0;
        }
        Ok(Cut {
            pending: shared.buffer.iter().copied().collect(),
            ended: shared.source_ended,
        })
    }

    /// Lets the stream flow again after a cut.
    pub(super) fn resume(&self) {
        let mut shared = self.hub.lock();
        if shared.mode == Mode::Cut {
            shared.mode = Mode::Flowing;
            self.hub.wake();
        }
    }

    /// Waits until the source has ended and everything was delivered; after `limit` what is left is dropped.
    /// Returns how many bytes were dropped for that reason.
    pub(super) fn finish(self, limit: Duration) -> usize {
        let deadline = Instant::now() + limit;
        let mut shared = self.hub.lock();
        if shared.mode == Mode::Cut {
            shared.mode = Mode::Flowing;
            self.hub.wake();
        }
        while shared.mode != Mode::Done {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let held = shared.buffer.len();
                shared.mode = Mode::Abandoned;
                drop(shared);
                self.hub.wake();
                (self.on_dropped)(self.hub.stream, held);
                return held;
            }
            shared = self
                .hub
                .changed
                .wait_timeout(shared, left)
                .expect("no holder of this lock panics")
                .0;
        }
        drop(shared);
        // It has nothing left to do but return.
        drop(self.thread.join());
        0
    }

    /// Gives up what is in hand: it belongs to a snapshot now.
    pub(super) fn abandon(self) {
        self.hub.lock().mode = Mode::Abandoned;
        self.hub.wake();
    }
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("no holder of this lock panics")
    }

    fn wake(&self) {
        // It can only fail by overflow of a counter that is reset each time the thread wakes.
        let _ = self.wake.write(1);
    }

    fn set(&self, mode: Mode) {
        self.lock().mode = mode;
        self.changed.notify_all();
    }
}

struct Carrier<'a> {
    hub: &'a Hub,
    /// Gone once it ended.
    source: Option<OwnedFd>,
    /// Gone once it broke.
    sink: Option<OwnedFd>,
    on_dropped: OnDropped,
}

impl Carrier<'_> {
    fn run(mut self) {
        loop {
            let mode = self.hub.lock().mode;
            match mode {
                Mode::Flowing => {
                    if self.is_done() {
                        break;
                    }
                    self.step();
                }
                Mode::Cutting => {
                    self.drain();
                    self.hub.set(Mode::Cut);
                }
                Mode::Cut => self.wait(&[]),
                Mode::Abandoned | Mode::Done => break,
            }
        }
        // Closing the sink is what tells an app that its standard input has ended.
        drop(self.sink.take());
        self.hub.set(Mode::Done);
    }

    fn is_done(&self) -> bool {
        self.source.is_none() && self.hub.lock().buffer.is_empty()
    }

    /// Waits until something can be done and does a bit of it.
    fn step(&mut self) {
        let held = self.hub.lock().buffer.len();
        let mut interest = Vec::with_capacity(2);
        if let Some(source) = self.source.as_ref().filter(|_| held < LIMIT) {
            interest.push((source.as_fd(), PollFlags::POLLIN));
        }
        if let Some(sink) = self.sink.as_ref().filter(|_| held > 0) {
            interest.push((sink.as_fd(), PollFlags::POLLOUT));
        }
        self.wait(&interest);
        if held < LIMIT {
            self.take_in(LIMIT - held);
        }
        self.give_out();
    }

    fn wait(&self, interest: &[(BorrowedFd<'_>, PollFlags)]) {
        let mut fds: Vec<PollFd<'_>> = interest
            .iter()
            .map(|(fd, flags)| PollFd::new(*fd, *flags))
            .collect();
        fds.push(PollFd::new(self.hub.wake.as_fd(), PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                tracing::error!(stream = self.hub.stream, %error, "cannot wait for a standard stream")
            }
        }
        // Empty it; that there was nothing in it is the usual case.
        let _ = self.hub.wake.read();
    }

    /// Reads once, at most `room` bytes, if the source has something. Returns whether it had.
    fn take_in(&mut self, room: usize) -> bool {
        let Some(source) = self
            .source
            .as_ref()
            .filter(|source| is_ready(source.as_fd(), PollFlags::POLLIN))
        else {
            return false;
        };
        let mut bytes = vec![0; room.min(64 << 10)];
        match nix::unistd::read(source, &mut bytes) {
            Ok(0) => self.source_ended(),
            Ok(count) => self.accept(&bytes[..count]),
            Err(Errno::EAGAIN | Errno::EINTR) => return false,
            // A terminal whose other side is closed, or one that we may not read from the background.
            Err(_) => self.source_ended(),
        }
        true
    }

    fn source_ended(&mut self) {
        self.source = None;
        self.hub.lock().source_ended = true;
    }

    fn accept(&mut self, bytes: &[u8]) {
        if self.sink.is_some() {
            self.hub.lock().buffer.extend(bytes);
        } else {
            (self.on_dropped)(self.hub.stream, bytes.len());
        }
    }

    /// Writes until the sink would block or nothing is in hand. Returns whether anything was written.
    fn give_out(&mut self) -> bool {
        let mut wrote = false;
        while let Some(sink) = self.sink.as_ref() {
            let step: Vec<u8> = self.hub.lock().buffer.iter().take(STEP).copied().collect();
            // Asked again for each step: the answer holds for one only.
            if step.is_empty() || !is_ready(sink.as_fd(), PollFlags::POLLOUT) {
                break;
            }
            match nix::unistd::write(sink, &step) {
                Ok(count) => {
                    self.hub.lock().buffer.drain(..count);
                    if let Some(stream) = metrics::Stream::from_name(self.hub.stream) {
                        metrics::output_passed_on(stream, count as u64);
                    }
                    wrote = true;
                }
                Err(Errno::EAGAIN | Errno::EINTR) => break,
                Err(error) => self.sink_broke(error),
            }
        }
        wrote
    }

    fn sink_broke(&mut self, error: Errno) {
        tracing::warn!(stream = self.hub.stream, %error, "nobody reads this stream any more; what comes is dropped");
        self.sink = None;
        let mut shared = self.hub.lock();
        let held = shared.buffer.len();
        shared.buffer.clear();
        drop(shared);
        (self.on_dropped)(self.hub.stream, held);
    }

    /// Takes everything out of the source and gives the sink what it takes at once.
    fn drain(&mut self) {
        if self.hub.direction == Direction::FromApp {
            while self.take_in(usize::MAX) {}
        }
        self.give_out();
    }
}

fn is_ready(fd: BorrowedFd<'_>, what: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd, what)];
    // An error or a hang-up counts: the read or write that follows tells what it is.
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
}

/// The inode by which `/proc/PID/fd` and CRIU name a pipe.
pub(crate) fn inode(fd: &OwnedFd) -> io::Result<u64> {
    Ok(nix::sys::stat::fstat(fd.as_fd()).map(|stat| stat.st_ino)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    use nix::unistd::pipe;

    const SOON: Duration = Duration::from_secs(5);

    fn ignore(_: &'static str, _: usize) {}

    fn file(fd: OwnedFd) -> std::fs::File {
        std::fs::File::from(fd)
    }

    #[test]
    fn carries_everything_and_ends_with_its_source() {
        let (source, input) = pipe().expect("pipe");
        let (output, sink) = pipe().expect("pipe");
        let pump = Pump::start(
            "stdout",
            Direction::FromApp,
            source,
            sink,
            b"first ".to_vec(),
            ignore,
        )
        .expect("pump");
        let text = "second".repeat(100_000);
        let writer = std::thread::spawn({
            let text = text.clone();
            move || file(input).write_all(text.as_bytes())
        });
        let mut got = String::new();
        file(output).read_to_string(&mut got).expect("read");
        writer.join().expect("join").expect("write");
        assert_eq!(got, format!("first {text}"));
        assert_eq!(pump.finish(SOON), 0);
    }

    #[test]
    fn a_cut_hands_over_exactly_what_was_not_delivered() {
        let (source, input) = pipe().expect("pipe");
        let (output, sink) = pipe().expect("pipe");
        let mut input = file(input);
        // The sink takes 64 KiB, the pump 256 KiB, the source's pipe 64 KiB: all of it is somewhere.
        let text: Vec<u8> = (0..300_000u32)
            .flat_map(|number| [(number % 251) as u8])
            .collect();
        input.write_all(&text[..40_000]).expect("write");
        let pump = Pump::start(
            "stdout",
            Direction::FromApp,
            source,
            sink,
            Vec::new(),
            ignore,
        )
        .expect("pump");
        input.write_all(&text[40_000..]).expect("write");
        let cut = pump.cut(SOON).expect("nothing holds the sink up");
        assert!(!cut.ended);
        assert!(!cut.pending.is_empty());
        pump.abandon();
        let mut delivered = Vec::new();
        file(output).read_to_end(&mut delivered).expect("read");
        assert_eq!([delivered, cut.pending].concat(), text);
    }

    #[test]
    fn after_a_cut_the_stream_goes_on_without_loss() {
        let (source, input) = pipe().expect("pipe");
        let (output, sink) = pipe().expect("pipe");
        let mut input = file(input);
        let pump = Pump::start(
            "stdout",
            Direction::FromApp,
            source,
            sink,
            Vec::new(),
            ignore,
        )
        .expect("pump");
        input.write_all(b"one ").expect("write");
        pump.cut(SOON).expect("cut");
        input.write_all(b"two").expect("write");
        pump.resume();
        drop(input);
        let mut got = String::new();
        file(output).read_to_string(&mut got).expect("read");
        assert_eq!(got, "one two");
        assert_eq!(pump.finish(SOON), 0);
    }

    #[test]
    fn a_reader_that_is_gone_does_not_stop_the_writer() {
        static DROPPED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let count: OnDropped = |_, bytes| {
            DROPPED.fetch_add(bytes, std::sync::atomic::Ordering::SeqCst);
        };
        let (source, input) = pipe().expect("pipe");
        let (output, sink) = pipe().expect("pipe");
        drop(output);
        let pump = Pump::start(
            "stdout",
            Direction::FromApp,
            source,
            sink,
            Vec::new(),
            count,
        )
        .expect("pump");
        let mut input = file(input);
        for _ in 0..100 {
            input
                .write_all(&[7; 10_000])
                .expect("the pump goes on reading");
        }
        drop(input);
        assert_eq!(pump.finish(SOON), 0);
        assert_eq!(DROPPED.load(std::sync::atomic::Ordering::SeqCst), 1_000_000);
    }

    #[test]
    fn a_reader_that_does_not_read_is_given_up_at_the_end() {
        let (source, input) = pipe().expect("pipe");
        let (_output, sink) = pipe().expect("pipe");
        let pump = Pump::start(
            "stdout",
            Direction::FromApp,
            source,
            sink,
            Vec::new(),
            ignore,
        )
        .expect("pump");
        let mut input = file(input);
        input.write_all(&vec![1; 100_000]).expect("write");
        drop(input);
        assert!(pump.finish(Duration::from_millis(200)) > 0);
    }
}
