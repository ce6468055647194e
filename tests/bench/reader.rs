//! The least that takes an app's memory over from `criu dump`: a page server that reads the pages, hashes each, and
//! forgets them. No checkpoint that looks at all of a job's memory can freeze it for a shorter time.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

const PAGE: usize = 4096;
const BUFFER: usize = 64 * PAGE;
/// As many as a worker has, between the thread that reads and those that hash.
const BUFFERS: usize = 12;
const HEADER: usize = 32;

/// A reader that waits for CRIU at a socket.
pub(crate) struct Reader(JoinHandle<u64>);

impl Reader {
    pub(crate) fn listen(path: &Path) -> Self {
        let listener = UnixListener::bind(path).expect("the path is free");
        Self(std::thread::spawn(move || {
            serve(listener.accept().expect("CRIU comes").0)
        }))
    }

    /// The pages that came.
    pub(crate) fn pages(self) -> u64 {
        self.0.join().expect("the reader does not panic")
    }
}

/// The protocol is drawn in worker/src/pages/capture.rs.
fn serve(mut socket: UnixStream) -> u64 {
    let (full, filled) = sync_channel::<(Vec<u8>, usize)>(BUFFERS);
    let (empty, mut emptied) = sync_channel(BUFFERS);
    for _ in 0..BUFFERS {
        empty.send(vec![0; BUFFER + PAGE]).expect("there is room");
    }
    let filled = Arc::new(Mutex::new(filled));
    let hashers: Vec<_> = (0..2)
        .map(|_| {
            let (filled, empty) = (Arc::clone(&filled), empty.clone());
            std::thread::spawn(move || hash(&filled, &empty))
        })
        .collect();
    let mut pages = 0;
    loop {
        let mut header = [0; HEADER];
        socket.read_exact(&mut header).expect("CRIU closes first");
        let word = |at: usize| u64::from_ne_bytes(header[at..at + 8].try_into().expect("eight"));
        match word(0) & 0xffff {
            4 => socket.write_all(&[0]).expect("CRIU listens"),
            5 => socket.write_all(&[0; 4]).expect("CRIU listens"),
            6 => {
                receive(&mut socket, word(8), &mut emptied, &full);
                pages += word(8);
            }
            _ => break,
        }
    }
    drop(full);
    for hasher in hashers {
        hasher.join().expect("hashing does not panic");
    }
    socket.write_all(&[0; 4]).expect("CRIU listens");
    pages
}

fn receive(
    socket: &mut UnixStream,
    pages: u64,
    emptied: &mut Receiver<Vec<u8>>,
    full: &SyncSender<(Vec<u8>, usize)>,
) {
    let mut left = usize::try_from(pages).expect("a run is short") * PAGE;
    while left > 0 {
        let mut buffer = emptied.recv().expect("the hashers live");
        let (start, length) = (buffer.as_ptr().align_offset(PAGE), left.min(BUFFER));
        socket
            .read_exact(&mut buffer[start..start + length])
            .expect("CRIU sends what it announced");
        full.send((buffer, length)).expect("the hashers live");
        left -= length;
    }
}

fn hash(filled: &Mutex<Receiver<(Vec<u8>, usize)>>, empty: &SyncSender<Vec<u8>>) {
    loop {
        let next = filled.lock().expect("nobody panics with it").recv();
        let Ok((buffer, length)) = next else { return };
        let start = buffer.as_ptr().align_offset(PAGE);
        for page in buffer[start..start + length].chunks(PAGE) {
            std::hint::black_box(blake3::keyed_hash(&[7; 32], page));
        }
        // After the end nobody wants it back.
        drop(empty.send(buffer));
    }
}

/// For how many seconds CRIU says that it held the app, in its `stats-dump` (criu/images/stats.proto): freezing and frozen.
pub(crate) fn frozen(stats: &[u8]) -> f64 {
    // Two magic numbers and the length of the message, which has one field, the figures of a dump.
    let message = &stats[12..];
    let mut at = 0;
    let mut number = || {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = message[at];
            at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        value
    };
    assert_eq!(number(), 1 << 3 | 2, "the figures of a dump");
    number();
    let mut microseconds = 0;
    for field in [1, 2] {
        assert_eq!(number(), field << 3, "freezing_time, then frozen_time");
        microseconds += number();
    }
    std::time::Duration::from_micros(microseconds).as_secs_f64()
}
