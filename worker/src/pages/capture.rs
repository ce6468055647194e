//! Takes an app's memory over from `criu dump --page-server` and turns it into blocks.
//!
//! One thread reads the socket, because the app stays frozen for as long as that takes; it does nothing else. Workers
//! look at the pages: those that hold nothing but zeros are noted and dropped, the rest is packed into blocks. CRIU's
//! last message is answered only after the last byte before it was read, so that what was sent is the moment of the
//! freeze even if the app goes on right after it: until then the socket holds references to the app's living pages.
//!
//! The protocol is CRIU's own and undocumented; this is its form in 4.2 (criu/page-xfer.c). Whatever is not exactly as
//! expected ends the dump, and with it nothing is lost: CRIU lets the app go on.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tokio::sync::mpsc;

use crate::pages::codec::{self, Packed, Packer};
use crate::pages::fingerprint::PageHash;
use crate::pages::index::{File, Memory, MemoryKind, Segment};
use crate::pages::known::Known;
use crate::pages::parts::{Buffers, Numbered};
use crate::pages::seal::AttemptKey;
use crate::pages::tuning::{self, Spent, Stopwatch, Tuning};
use crate::pages::{BLOCK, BLOCK_PAGES, PAGE};

/// Buffers between the reader and the workers.
const SLABS: usize = 12;

/// A run longer than this is no run: CRIU sends what its pipes hold.
const LONGEST_RUN: u64 = 1 << 30;

/// Why the memory could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("CRIU ended the transfer of memory before it was complete")]
    EndedEarly(#[source] io::Error),
    #[error("CRIU speaks a page server protocol that this program does not know: {0}")]
    Protocol(String),
    #[error("cannot pack memory")]
    Pack(#[source] io::Error),
    /// Whoever stores has the reason.
    #[error("what takes the blocks has ended")]
    Closed,
    #[error("cannot read CRIU's image {name}")]
    Image {
        name: String,
        #[source]
        source: io::Error,
    },
}

/// Memory that was taken over.
#[derive(Debug, Default)]
pub(crate) struct Captured {
    pub memories: Vec<Memory>,
    /// Pages that CRIU sent.
    pub pages: u64,
    /// Of them, pages of zeros.
    pub zero_pages: u64,
    /// Of them, pages that are in the store already.
    pub unchanged_pages: u64,
    /// The hashes of each memory's pages that are not zero, in order.
    pub hashes: Vec<Vec<u8>>,
}

/// A page server that serves one dump.
pub(crate) struct PageServer {
    /// CRIU's end of the socket, to be passed to it.
    pub socket: Option<OwnedFd>,
    hang_up: UnixStream,
    reader: JoinHandle<Result<Vec<(MemoryKind, u64)>, CaptureError>>,
    workers: Vec<JoinHandle<Result<Found, CaptureError>>>,
    known: Arc<Known>,
}

/// What packs blocks and numbers them.
#[derive(Clone)]
pub(crate) struct Blocks {
    next: Arc<AtomicU32>,
    sender: mpsc::Sender<Numbered>,
    spare: Buffers,
    tuning: Arc<Tuning>,
    key: Option<Arc<AttemptKey>>,
}

impl Blocks {
    /// Numbers go on behind the first `known` ones, which are taken. Whoever receives the blocks gives their buffers to
    /// `spare`.
    pub(crate) fn new(
        sender: mpsc::Sender<Numbered>,
        spare: Buffers,
        tuning: Arc<Tuning>,
        key: Option<Arc<AttemptKey>>,
        known: usize,
    ) -> Self {
        let known = u32::try_from(known).expect("blocks have 32-bit numbers");
        Self {
            next: Arc::new(AtomicU32::new(known)),
            sender,
            spare,
            tuning,
            key,
        }
    }

    /// A number that nobody else gets in this attempt: sealing depends on it.
    fn number(&self) -> u32 {
        self.next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |number| {
                number.checked_add(1)
            })
            .expect("a petabyte of blocks is more than any memory")
    }

    /// Packs one of CRIU's images, block by block. Blocks the calling thread.
    pub(crate) fn add(&self, name: &str, mut contents: impl Read) -> Result<File, CaptureError> {
        let mut packers = Packers::default();
        let mut file = File {
            name: name.to_owned(),
            size: 0,
            blocks: Vec::new(),
        };
        let mut block = self.spare.take(codec::room());
        loop {
            let read = contents.by_ref().take(BLOCK as u64).read_to_end(&mut block);
            let filled = read.map_err(|source| CaptureError::Image {
                name: name.to_owned(),
                source,
            })?;
            if filled == 0 {
                return Ok(file);
            }
            let number = self.number();
            let packed = packers.pack(number, &mut block, self);
            let packed = packed.map_err(CaptureError::Pack)?;
            self.sender
                .blocking_send(Numbered { number, packed })
                .map_err(|_| CaptureError::Closed)?;
            file.size += filled as u64;
            file.blocks.push(number);
        }
    }

    /// Packs every image in a directory, in the order of their names. Blocks the calling thread.
    pub(crate) fn add_directory(&self, directory: &Path) -> Result<Vec<File>, CaptureError> {
        let failed = |source| CaptureError::Image {
            name: directory.display().to_string(),
            source,
        };
        let mut names: Vec<String> = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            names.extend(
                name.to_str()
                    .filter(|name| name.ends_with(".img"))
                    .map(str::to_owned),
            );
        }
        names.sort();
        let add = |name: &String| {
            let file = std::fs::File::open(directory.join(name)).map_err(|source| {
                CaptureError::Image {
                    name: name.clone(),
                    source,
                }
            })?;
            self.add(name, file)
        };
        names.iter().map(add).collect()
    }
}

/// Puts pieces that are smaller than a block side by side.
pub(crate) struct Filling<'a> {
    of: &'a Blocks,
    packers: Packers,
    block: Vec<u8>,
    number: u32,
}

impl<'a> Filling<'a> {
    pub(crate) fn new(of: &'a Blocks) -> Self {
        Self {
            of,
            packers: Packers::default(),
            block: of.spare.take(codec::room()),
            number: of.number(),
        }
    }

    /// Where the piece lies: the number of the block, and the byte in it. Blocks the calling thread.
    pub(crate) fn put(&mut self, piece: &[u8]) -> Result<(u32, u32), CaptureError> {
        if self.block.len() + piece.len() > BLOCK {
            self.hand_over()?;
        }
        let first = u32::try_from(self.block.len()).expect("a block is small");
        self.block.extend_from_slice(piece);
        Ok((self.number, first))
    }

    /// Nothing is stored for certain before this.
    pub(crate) fn finish(mut self) -> Result<(), CaptureError> {
        match self.block.is_empty() {
            // Its number stays unused: a block of no bytes.
            true => Ok(()),
            false => self.hand_over(),
        }
    }

    fn hand_over(&mut self) -> Result<(), CaptureError> {
        let number = std::mem::replace(&mut self.number, self.of.number());
        let packed = self.packers.pack(number, &mut self.block, self.of);
        let packed = packed.map_err(CaptureError::Pack)?;
        self.of
            .sender
            .blocking_send(Numbered { number, packed })
            .map_err(|_| CaptureError::Closed)
    }
}

/// One thread's compressors, one for each level that was chosen so far.
#[derive(Default)]
struct Packers([Option<Packer>; 3]);

impl Packers {
    /// Leaves the block's buffer empty.
    fn pack(&mut self, number: u32, block: &mut Vec<u8>, of: &Blocks) -> io::Result<Packed> {
        let level = of.tuning.level_for(block);
        let packer = &mut self.0[level as usize];
        let packer = match packer {
            Some(packer) => packer,
            None => packer.insert(Packer::new(tuning::codec(level), of.key.clone())?),
        };
        let begun = Stopwatch::start();
        let packed = packer.pack(number, block, of.spare.take(codec::room()))?;
        of.tuning.packed(level, &packed, begun.elapsed());
        Ok(packed)
    }
}

impl PageServer {
    /// Starts the reader and `workers` workers, which send blocks to `blocks`, apart from pages that are known.
    pub(crate) fn start(blocks: &Blocks, known: &Arc<Known>, workers: usize) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let hang_up = ours.try_clone()?;
        let (full, filled) = sync_channel(SLABS);
        let (empty, emptied) = sync_channel(SLABS);
        for _ in 0..SLABS {
            empty
                .send(Slab::new())
                .expect("the channel has room for all and its receiver is here");
        }
        let filled = Arc::new(Mutex::new(filled));
        let workers = (0..workers.max(1))
            .map(|number| {
                let worker = Worker::new(
                    blocks.clone(),
                    Arc::clone(known),
                    Arc::clone(&filled),
                    empty.clone(),
                );
                std::thread::Builder::new()
                    .name(format!("pack-{number}"))
                    .spawn(move || worker.run())
            })
            .collect::<io::Result<Vec<_>>>()?;
        let reader = Reader {
            socket: ours,
            emptied,
            full,
            order: Vec::new(),
            slab: None,
        };
        let reader = std::thread::Builder::new()
            .name("page-server".into())
            .spawn(move || reader.run())?;
        Ok(Self {
            socket: Some(theirs.into()),
            hang_up,
            reader,
            workers,
            known: Arc::clone(known),
        })
    }

    /// Ends the transfer: CRIU meets a closed socket, cures the app and lets it go on. Harmless after the end.
    pub(crate) fn hang_up(&self) {
        // It fails only when the other side is gone already.
        drop(self.hang_up.shutdown(std::net::Shutdown::Both));
    }

    /// Waits for the threads. Blocks the calling thread until CRIU closed the transfer, or [`Self::hang_up`].
    pub(crate) fn finish(self) -> Result<Captured, CaptureError> {
        drop(self.socket);
        let read = self.reader.join().expect("the reader does not panic");
        let mut found = Vec::new();
        let mut packed = Ok(());
        for worker in self.workers {
            match worker.join().expect("a worker does not panic") {
                Ok(part) => found.push(part),
                Err(error) => packed = Err(error),
            }
        }
        // A worker that failed starves the reader; its reason is the telling one.
        packed?;
        Ok(assemble(&read?, found, &self.known))
    }
}

/// A page-aligned buffer for [`BLOCK_PAGES`] pages. Alignment matters: kernel copies to anything else are three to
/// five times slower on some processors (measured).
pub(crate) struct Slab {
    memory: Vec<u8>,
    start: usize,
    pages: usize,
    spans: Vec<Span>,
}

/// Pages in a slab that belong together.
#[derive(Clone, Copy)]
struct Span {
    /// Position of the image in the order of opening.
    image: usize,
    memory: (MemoryKind, u64),
    /// Position of the span in the whole transfer.
    sequence: u64,
    vaddr: u64,
    pages: usize,
}

impl Slab {
    pub(crate) fn new() -> Self {
        let memory = vec![0u8; BLOCK + PAGE];
        let start = memory.as_ptr().align_offset(PAGE);
        Self {
            memory,
            start,
            pages: 0,
            spans: Vec::new(),
        }
    }

    pub(crate) fn free(&mut self) -> &mut [u8] {
        let (start, used) = (self.start, self.pages * PAGE);
        &mut self.memory[start + used..start + BLOCK]
    }

    pub(crate) fn page(&self, number: usize) -> &[u8] {
        let at = self.start + number * PAGE;
        &self.memory[at..at + PAGE]
    }
}

/// Commands of the page server protocol, criu/page-xfer.c.
mod command {
    pub(super) const OPEN2: u32 = 4;
    pub(super) const PARENT: u32 = 5;
    pub(super) const ADD_F: u32 = 6;
    pub(super) const CLOSE: u32 = 0x1023;
    pub(super) const FORCE_CLOSE: u32 = 0x1024;
    pub(super) const BITS: u32 = 16;
    pub(super) const FLAG_PRESENT: u32 = 4;
}

/// The fixed part of each message: u32 command, 4 bytes of padding, u64 pages, u64 address, u64 image.
const HEADER: usize = 32;

struct Header {
    command: u32,
    flags: u32,
    pages: u64,
    vaddr: u64,
    image: u64,
}

impl Header {
    fn parse(bytes: &[u8; HEADER]) -> Self {
        let word =
            |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let command = u32::from_ne_bytes(bytes[..4].try_into().expect("four bytes"));
        Self {
            command: command & ((1 << command::BITS) - 1),
            flags: command >> command::BITS,
            pages: word(8),
            vaddr: word(16),
            image: word(24),
        }
    }
}

struct Reader {
    socket: UnixStream,
    emptied: Receiver<Slab>,
    full: SyncSender<Slab>,
    /// The images in the order of their opening.
    order: Vec<(MemoryKind, u64)>,
    slab: Option<Slab>,
}

impl Reader {
    fn run(mut self) -> Result<Vec<(MemoryKind, u64)>, CaptureError> {
        let mut sequence = 0;
        loop {
            let mut bytes = [0; HEADER];
            self.socket
                .read_exact(&mut bytes)
                .map_err(CaptureError::EndedEarly)?;
            let header = Header::parse(&bytes);
            match header.command {
                command::OPEN2 => {
                    self.image(header.image)?;
                    // No parent: CRIU sends everything, and we find out what is new.
                    self.answer(&[0])?;
                }
                command::PARENT => self.answer(&0i32.to_ne_bytes())?,
                command::ADD_F if header.flags & command::FLAG_PRESENT != 0 => {
                    let image = self.image(header.image)?;
                    sequence = self.receive(image, &header, sequence)?;
                }
                command::ADD_F => return Err(unknown("pages that are not present", &header)),
                command::CLOSE | command::FORCE_CLOSE => {
                    self.hand_over()?;
                    self.answer(&0i32.to_ne_bytes())?;
                    return Ok(self.order);
                }
                _ => return Err(unknown("command", &header)),
            }
        }
    }

    fn answer(&mut self, bytes: &[u8]) -> Result<(), CaptureError> {
        self.socket
            .write_all(bytes)
            .map_err(CaptureError::EndedEarly)
    }

    fn image(&mut self, wire: u64) -> Result<usize, CaptureError> {
        let kind = match wire & 0xff {
            1 => MemoryKind::Process,
            2 => MemoryKind::Shared,
            other => return Err(CaptureError::Protocol(format!("memory of kind {other}"))),
        };
        let image = (kind, wire >> 8);
        // The one opened last is nearly always the one meant.
        if let Some(found) = self.order.iter().rposition(|known| *known == image) {
            return Ok(found);
        }
        self.order.push(image);
        Ok(self.order.len() - 1)
    }

    fn receive(
        &mut self,
        image: usize,
        header: &Header,
        mut sequence: u64,
    ) -> Result<u64, CaptureError> {
        if header.pages > LONGEST_RUN || !header.vaddr.is_multiple_of(PAGE as u64) {
            return Err(unknown("run of pages", header));
        }
        let mut left = usize::try_from(header.pages).expect("bounded just now");
        let mut vaddr = header.vaddr;
        while left > 0 {
            let mut slab = match self.slab.take() {
                Some(slab) => slab,
                None => self.emptied.recv().map_err(|_| CaptureError::Closed)?,
            };
            let pages = left.min(BLOCK_PAGES - slab.pages);
            self.socket
                .read_exact(&mut slab.free()[..pages * PAGE])
                .map_err(CaptureError::EndedEarly)?;
            slab.spans.push(Span {
                image,
                memory: self.order[image],
                sequence,
                vaddr,
                pages,
            });
            slab.pages += pages;
            sequence += 1;
            left -= pages;
            vaddr += (pages * PAGE) as u64;
            self.slab = Some(slab);
            if self
                .slab
                .as_ref()
                .is_some_and(|slab| slab.pages == BLOCK_PAGES)
            {
                self.hand_over()?;
            }
        }
        Ok(sequence)
    }

    fn hand_over(&mut self) -> Result<(), CaptureError> {
        match self.slab.take() {
            Some(slab) => self.full.send(slab).map_err(|_| CaptureError::Closed),
            None => Ok(()),
        }
    }
}

fn unknown(what: &str, header: &Header) -> CaptureError {
    CaptureError::Protocol(format!(
        "{what}: command {:#x}, flags {:#x}, {} pages at {:#x} of image {:#x}",
        header.command, header.flags, header.pages, header.vaddr, header.image
    ))
}

/// What a worker found out about adjacent pages.
struct Seen {
    image: usize,
    sequence: u64,
    segment: Segment,
    /// Of the first page, in the worker's hashes; meaningful for pages that it stored.
    hash: usize,
}

/// Everything a worker found out.
#[derive(Default)]
struct Found {
    seen: Vec<Seen>,
    /// Of the pages that it stored, in its order.
    hashes: Vec<PageHash>,
}

struct Worker {
    blocks: Blocks,
    packers: Packers,
    /// Spent on blocks rather than on looking at pages.
    elsewhere: Spent,
    filled: Arc<Mutex<Receiver<Slab>>>,
    empty: SyncSender<Slab>,
    /// The block being filled, and its number.
    block: Vec<u8>,
    number: u32,
    known: Arc<Known>,
    found: Found,
}

impl Worker {
    fn new(
        blocks: Blocks,
        known: Arc<Known>,
        filled: Arc<Mutex<Receiver<Slab>>>,
        empty: SyncSender<Slab>,
    ) -> Self {
        let number = blocks.number();
        let block = blocks.spare.take(codec::room());
        Self {
            blocks,
            packers: Packers::default(),
            elsewhere: Spent::default(),
            filled,
            empty,
            block,
            number,
            known,
            found: Found::default(),
        }
    }

    fn run(mut self) -> Result<Found, CaptureError> {
        loop {
            let next = self
                .filled
                .lock()
                .expect("no holder of this lock panics")
                .recv();
            let Ok(mut slab) = next else { break };
            let begun = Stopwatch::start();
            self.elsewhere = Spent::default();
            self.look_at(&slab)?;
            let took = begun.elapsed() - self.elsewhere;
            self.blocks.tuning.looked_at(slab.pages * PAGE, took);
            slab.pages = 0;
            slab.spans.clear();
            // After the end of the transfer nobody wants it back.
            drop(self.empty.send(slab));
        }
        self.close_block()?;
        Ok(self.found)
    }

    fn look_at(&mut self, slab: &Slab) -> Result<(), CaptureError> {
        let mut at = 0;
        for span in &slab.spans {
            for page in 0..span.pages {
                let vaddr = span.vaddr + (page * PAGE) as u64;
                self.look_at_page(slab.page(at), span, vaddr)?;
                at += 1;
            }
        }
        Ok(())
    }

    fn look_at_page(&mut self, page: &[u8], span: &Span, vaddr: u64) -> Result<(), CaptureError> {
        let hash = self.found.hashes.len();
        let segment = if is_zero(page) {
            Segment {
                vaddr,
                pages: 1,
                source: 0,
                first: 0,
            }
        } else {
            let now = self.known.key.hash(page);
            match self.known.find(span.memory, vaddr, &now) {
                Some(segment) => segment,
                None => self.store(page, vaddr, now),
            }
        };
        match self.found.seen.last_mut() {
            Some(last) if last.sequence == span.sequence && last.segment.continues_as(&segment) => {
                last.segment.pages += 1;
            }
            _ => self.found.seen.push(Seen {
                image: span.image,
                sequence: span.sequence,
                segment,
                hash,
            }),
        }
        if self.block.len() == BLOCK {
            self.close_block()
        } else {
            Ok(())
        }
    }

    fn store(&mut self, page: &[u8], vaddr: u64, hash: PageHash) -> Segment {
        let first = u32::try_from(self.block.len() / PAGE).expect("a block has few pages");
        self.block.extend_from_slice(page);
        self.found.hashes.push(hash);
        Segment {
            vaddr,
            pages: 1,
            source: self.number + 1,
            first,
        }
    }

    fn close_block(&mut self) -> Result<(), CaptureError> {
        if self.block.is_empty() {
            // Its number stays unused: a block of no bytes.
            return Ok(());
        }
        let begun = Stopwatch::start();
        let number = std::mem::replace(&mut self.number, self.blocks.number());
        let packed = self.packers.pack(number, &mut self.block, &self.blocks);
        let packed = packed.map_err(CaptureError::Pack)?;
        let sent = self
            .blocks
            .sender
            .blocking_send(Numbered { number, packed });
        self.elsewhere += begun.elapsed();
        sent.map_err(|_| CaptureError::Closed)
    }
}

pub(crate) fn is_zero(page: &[u8]) -> bool {
    // The second half of the comparison runs over the whole page at the speed of memory.
    page[0] == 0 && page[..PAGE - 1] == page[1..]
}

/// Takes whatever these bytes send, as CRIU's.
#[cfg(any(test, fuzzing))]
pub(crate) fn digest(bytes: &[u8]) -> Result<Captured, CaptureError> {
    use reprieve_core::effort::Level;

    use crate::pages::fingerprint::PageKey;
    use crate::pages::tuning::{Usual, Wanted};

    let (sender, mut packed) = mpsc::channel(4);
    let known = Arc::new(Known::nothing(PageKey::Blake3([1; 32])));
    let level = Wanted::Always(Level::Raw);
    let tuning = Tuning::new(level, 1, 1, 0, Usual::default(), tokio::time::Instant::now);
    let blocks = Blocks::new(sender, Buffers::default(), Arc::new(tuning), None, 0);
    let mut server = PageServer::start(&blocks, &known, 1).map_err(CaptureError::Pack)?;
    drop(blocks);
    let mut socket = UnixStream::from(server.socket.take().expect("it was made just now"));
    let mut answers = socket.try_clone().map_err(CaptureError::Pack)?;
    std::thread::scope(|threads| {
        threads.spawn(move || while packed.blocking_recv().is_some() {});
        threads.spawn(move || io::copy(&mut answers, &mut io::sink()));
        // It hangs up on what it does not understand.
        drop(socket.write_all(bytes));
        drop(socket.shutdown(std::net::Shutdown::Write));
        server.finish()
    })
}

/// Puts what the workers saw back into the order in which CRIU sent it.
fn assemble(order: &[(MemoryKind, u64)], found: Vec<Found>, known: &Known) -> Captured {
    let mut seen: Vec<(usize, Seen)> = Vec::new();
    let mut hashes = Vec::new();
    for (worker, found) in found.into_iter().enumerate() {
        seen.extend(found.seen.into_iter().map(|seen| (worker, seen)));
        hashes.push(found.hashes);
    }
    seen.sort_unstable_by_key(|(_, seen)| (seen.image, seen.sequence, seen.segment.vaddr));
    let mut captured = Captured {
        hashes: vec![Vec::new(); order.len()],
        ..Captured::default()
    };
    let memory = |&(kind, id): &(MemoryKind, u64)| Memory {
        kind: kind.into(),
        id,
        segments: Vec::new(),
    };
    captured.memories = order.iter().map(memory).collect();
    for (worker, seen) in seen {
        let Seen {
            image,
            segment,
            hash,
            ..
        } = seen;
        captured.pages += u64::from(segment.pages);
        let into = &mut captured.hashes[image];
        match segment.block() {
            None => captured.zero_pages += u64::from(segment.pages),
            Some(block) if block < known.blocks.len() => {
                captured.unchanged_pages += u64::from(segment.pages);
                known.copy_hashes(order[image], &segment, into);
            }
            Some(_) => {
                let stored = &hashes[worker][hash..hash + segment.pages as usize];
                into.extend(stored.iter().flatten());
            }
        }
        let segments = &mut captured.memories[image].segments;
        match segments.last_mut() {
            Some(last) if last.continues_as(&segment) => last.pages += segment.pages,
            _ => segments.push(segment),
        }
    }
    captured
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use reprieve_core::effort::Level;

    use crate::pages::codec::unpack;
    use crate::pages::fingerprint::PageKey;
    use crate::pages::tuning::{Usual, Wanted};

    fn header(command: u32, flags: u32, pages: u64, vaddr: u64, image: u64) -> Vec<u8> {
        let mut bytes = (flags << command::BITS | command).to_ne_bytes().to_vec();
        bytes.extend([0; 4]);
        for word in [pages, vaddr, image] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes
    }

    fn page(number: u64) -> Vec<u8> {
        number.to_ne_bytes().repeat(PAGE / 8)
    }

    /// Plays CRIU's side: opens the images and sends runs of pages, then closes.
    fn dump(socket: OwnedFd, runs: &[(u64, u64, Vec<Vec<u8>>)]) -> io::Result<()> {
        let mut socket = UnixStream::from(socket);
        let mut opened = Vec::new();
        for (image, vaddr, pages) in runs {
            if !opened.contains(image) {
                opened.push(*image);
                socket.write_all(&header(command::OPEN2, 0, 0, 0, *image))?;
                socket.read_exact(&mut [0])?;
            }
            socket.write_all(&header(
                command::ADD_F,
                4,
                pages.len() as u64,
                *vaddr,
                *image,
            ))?;
            socket.write_all(&pages.concat())?;
        }
        socket.write_all(&header(command::FORCE_CLOSE, 0, 0, 0, 0))?;
        let mut status = [1; 4];
        socket.read_exact(&mut status)?;
        assert_eq!(status, [0; 4]);
        Ok(())
    }

    fn collect(mut blocks: mpsc::Receiver<Numbered>) -> JoinHandle<BTreeMap<usize, bytes::Bytes>> {
        std::thread::spawn(move || {
            let mut found = BTreeMap::new();
            while let Some(Numbered { number, packed }) = blocks.blocking_recv() {
                let block = packed.placed(0, 0);
                found.insert(
                    number as usize,
                    unpack(&block, packed.bytes[..].into(), None).expect("just packed"),
                );
            }
            found
        })
    }

    fn start() -> (PageServer, JoinHandle<BTreeMap<usize, bytes::Bytes>>) {
        let (sender, receiver) = mpsc::channel(4);
        let known = Arc::new(Known::nothing(PageKey::Blake3([1; 32])));
        let level = Wanted::Always(Level::Strong);
        let tuning = Tuning::new(level, 3, 1, 0, Usual::default(), tokio::time::Instant::now);
        let blocks = Blocks::new(sender, Buffers::default(), Arc::new(tuning), None, 0);
        let server = PageServer::start(&blocks, &known, 3).expect("threads");
        drop(blocks);
        (server, collect(receiver))
    }

    type Runs = Vec<(u64, u64, Vec<Vec<u8>>)>;

    /// The pages of each memory, by address.
    type Expected<'a> = BTreeMap<(MemoryKind, u64), Vec<(u64, &'a [u8])>>;

    /// Sends these runs, and looks up each page where what was captured says.
    fn assert_found(runs: &Runs) -> Captured {
        let (mut server, blocks) = start();
        dump(server.socket.take().expect("still here"), runs).expect("dump");
        let captured = server.finish().expect("complete");
        let blocks = blocks.join().expect("join");
        let mut expected: Expected<'_> = BTreeMap::new();
        for (image, vaddr, pages) in runs {
            let pages = pages.iter().enumerate();
            let pages = pages.map(|(at, page)| (vaddr + (at * PAGE) as u64, &page[..]));
            expected.entry(memory_of(*image)).or_default().extend(pages);
        }
        assert_eq!(captured.memories.len(), expected.len());
        for memory in &captured.memories {
            let mut expected = expected[&(memory.kind(), memory.id)].iter().copied();
            for segment in &memory.segments {
                for at in 0..segment.pages {
                    let contents = match segment.block() {
                        None => &[0; PAGE],
                        Some(block) => {
                            let offset = (segment.first + at) as usize * PAGE;
                            &blocks[&block][offset..offset + PAGE]
                        }
                    };
                    let found = (segment.vaddr + u64::from(at) * PAGE as u64, contents);
                    assert!(
                        expected.next() == Some(found),
                        "page at {:#x}",
                        segment.vaddr
                    );
                }
            }
            assert!(expected.next().is_none());
        }
        captured
    }

    /// As the images below are numbered: a process's number or that of shared memory, and what it is.
    fn memory_of(image: u64) -> (MemoryKind, u64) {
        match image & 0xff {
            1 => (MemoryKind::Process, image >> 8),
            _ => (MemoryKind::Shared, image >> 8),
        }
    }

    #[test]
    fn every_page_is_found_where_the_index_says() {
        let mut number = 0;
        let mut next = |zero: bool| {
            number += 1;
            if zero { vec![0; PAGE] } else { page(number) }
        };
        let runs: Runs = (0..60u64)
            .map(|run| {
                let image = if run < 40 { 0x2101 } else { 0x302 };
                let pages = (0..=run * 3).map(|page| next(page % 7 == 0)).collect();
                (image, run * 0x100_0000, pages)
            })
            .collect();
        let captured = assert_found(&runs);
        assert_eq!(
            (captured.memories[0].kind(), captured.memories[0].id),
            (MemoryKind::Process, 0x21)
        );
        assert_eq!(
            (captured.memories[1].kind(), captured.memories[1].id),
            (MemoryKind::Shared, 3)
        );
    }

    /// Zeros, what packs well, and what does not.
    fn some_page() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            Just(vec![0; PAGE]),
            any::<u64>().prop_map(page),
            any::<[u8; 32]>().prop_map(|seed| {
                let mut bytes = vec![0; PAGE];
                blake3::Hasher::new_keyed(&seed)
                    .finalize_xof()
                    .fill(&mut bytes);
                bytes
            }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn whatever_memory_comes_in_whatever_runs_it_is_found(
            images in prop::collection::vec(
                (prop::sample::select(vec![1u64, 2]),
                 prop::collection::vec((0u64..3, prop::collection::vec(some_page(), 1..120)), 0..12)),
                1..5,
            ),
        ) {
            let mut runs = Runs::new();
            for (number, (kind, of_image)) in images.into_iter().enumerate() {
                let image = (number as u64 + 1) << 8 | kind;
                let mut vaddr = 0x1000;
                for (gap, pages) in of_image {
                    vaddr += gap * PAGE as u64;
                    let next = vaddr + (pages.len() * PAGE) as u64;
                    runs.push((image, vaddr, pages));
                    vaddr = next;
                }
            }
            let captured = assert_found(&runs);
            let pages = runs.iter().flat_map(|(_, _, pages)| pages);
            prop_assert_eq!(captured.pages, pages.clone().count() as u64);
            let zeros = pages.filter(|page| is_zero(page)).count();
            prop_assert_eq!(captured.zero_pages, zeros as u64);
        }
    }

    #[test]
    fn a_transfer_that_ends_early_is_no_capture() {
        let (mut server, _blocks) = start();
        let mut socket = UnixStream::from(server.socket.take().expect("still here"));
        socket
            .write_all(&header(command::OPEN2, 0, 0, 0, 0x101))
            .expect("write");
        socket.read_exact(&mut [0]).expect("read");
        socket
            .write_all(&header(command::ADD_F, 4, 2, 0, 0x101))
            .expect("write");
        socket.write_all(&page(1)).expect("write");
        drop(socket);
        assert!(matches!(server.finish(), Err(CaptureError::EndedEarly(_))));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for bytes in [
            header(0x77, 0, 0, 0, 0x101),
            header(command::OPEN2, 0, 0, 0, 0x10a),
            header(command::ADD_F, 0, 1, 0, 0x101),
            header(command::ADD_F, 4, 1, 17, 0x101),
            header(command::ADD_F, 4, u64::MAX, 0, 0x101),
        ] {
            let (mut server, _blocks) = start();
            let mut socket = UnixStream::from(server.socket.take().expect("still here"));
            socket.write_all(&bytes).expect("write");
            assert!(
                matches!(server.finish(), Err(CaptureError::Protocol(_))),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn zero_pages_are_told_from_others() {
        assert!(is_zero(&[0; PAGE]));
        for at in [0, 1, PAGE / 2, PAGE - 1] {
            let mut page = [0; PAGE];
            page[at] = 1;
            assert!(!is_zero(&page), "{at}");
        }
        assert!(!is_zero(&[1; PAGE]));
    }
}
