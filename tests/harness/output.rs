//! What a process has written so far, taken in by a thread as it comes, so that a pipe never fills up.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

#[derive(Clone, Default)]
pub(crate) struct Output {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    taken: Mutex<Taken>,
    more: Condvar,
}

#[derive(Default)]
struct Taken {
    bytes: Vec<u8>,
    ended: bool,
}

impl Output {
    /// An output that has ended, for streams that are not captured.
    pub(super) fn absent() -> Self {
        let output = Self::default();
        output.lock().ended = true;
        output
    }

    /// Takes in everything `source` has until its end. A terminal ends with an error (EIO), which is an end like any
    /// other here.
    pub(crate) fn capture(mut source: impl Read + Send + 'static) -> Self {
        let output = Self::default();
        let writer = output.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let count = source.read(&mut buffer).unwrap_or(0);
                let mut taken = writer.lock();
                taken.bytes.extend_from_slice(&buffer[..count]);
                taken.ended = count == 0;
                writer.shared.more.notify_all();
                if taken.ended {
                    return;
                }
            }
        });
        output
    }

    /// Everything so far.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().bytes).into_owned()
    }

    /// All complete lines so far, without their ends.
    pub(crate) fn lines(&self) -> Vec<String> {
        complete_lines(&self.lock().bytes, 0)
            .map(|(_, line)| line)
            .collect()
    }

    /// How much has come so far, for [`Output::wait_for_line_after`].
    pub(crate) fn mark(&self) -> usize {
        self.lock().bytes.len()
    }

    /// The first complete line that `wanted` accepts, as soon as there is one.
    #[track_caller]
    pub(crate) fn wait_for_line(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl FnMut(&str) -> bool,
    ) -> String {
        self.wait_for_line_after(0, what, limit, wanted)
    }

    /// The same, among the lines that begin at or after `mark`.
    #[track_caller]
    pub(crate) fn wait_for_line_after(
        &self,
        mark: usize,
        what: &str,
        limit: Duration,
        mut wanted: impl FnMut(&str) -> bool,
    ) -> String {
        let deadline = Instant::now() + limit;
        let mut from = mark;
        let mut taken = self.lock();
        loop {
            for (end, line) in complete_lines(&taken.bytes, from) {
                from = end;
                if wanted(&line) {
                    return line;
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if taken.ended || left.is_zero() {
                let reason = if taken.ended {
                    "the output ended"
                } else {
                    "time ran out"
                };
                let text = String::from_utf8_lossy(&taken.bytes).into_owned();
                drop(taken);
                panic!(
                    "no line with {what} ({reason}, limit {limit:?}) in:\n{}",
                    tail(&text)
                );
            }
            taken = self
                .shared
                .more
                .wait_timeout(taken, left)
                .expect("no reader panics while it holds the lock")
                .0;
        }
    }

    /// Waits until the last writer is gone.
    #[track_caller]
    pub(crate) fn wait_for_end(&self, limit: Duration) {
        let taken = self.lock();
        let (taken, timeout) = self
            .shared
            .more
            .wait_timeout_while(taken, limit, |taken| !taken.ended)
            .expect("no reader panics while it holds the lock");
        let text = String::from_utf8_lossy(&taken.bytes).into_owned();
        drop(taken);
        assert!(
            !timeout.timed_out(),
            "the output did not end within {limit:?}; so far:\n{}",
            tail(&text)
        );
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.shared
            .taken
            .lock()
            .expect("no reader panics while it holds the lock")
    }
}

/// The last lines, enough to see what went wrong without drowning it.
pub(super) fn tail(text: &str) -> String {
    const LINES: usize = 60;
    let lines: Vec<&str> = text.lines().collect();
    let left_out = lines.len().saturating_sub(LINES);
    let mut shown = if left_out > 0 {
        format!("[{left_out} lines before]\n")
    } else {
        String::new()
    };
    shown.push_str(&lines[left_out..].join("\n"));
    shown
}

/// The complete lines that begin at `from`, each with the offset after its end.
fn complete_lines(bytes: &[u8], from: usize) -> impl Iterator<Item = (usize, String)> + '_ {
    let mut start = from.min(bytes.len());
    std::iter::from_fn(move || {
        let length = bytes[start..].iter().position(|byte| *byte == b'\n')?;
        let line = String::from_utf8_lossy(&bytes[start..start + length]);
        start += length + 1;
        Some((start, line.trim_end_matches('\r').to_owned()))
    })
}
