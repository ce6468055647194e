//! Hands a snapshot to `criu restore --stream`, verified, while it is still being fetched.
//!
//! CRIU asks for images by name over a Unix socket, one connection for all of its processes; each answer is followed by
//! the write end of a pipe for the contents. Several images are read at once and in any order, so each has a feeder of
//! its own. A feeder that meets damage closes its pipe: CRIU sees an image that ends early and gives up, before any
//! restored process was let go. [`ImageServer::verdict`] says afterwards whether everything that was asked for was
//! handed over whole, and with which reason if not.
//!
//! Feeders are tasks, not threads: a thread takes a process id, and ids are what a restore needs to be free.

use std::io::{self, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::pages::ahead::{Ahead, Room};
use crate::pages::index::{MemoryKind, Segment};
use crate::pages::load::{Snapshot, Unusable};
use crate::pages::{BLOCK, PAGE};

/// The name of the socket that CRIU connects to, in its images directory (criu/img-streamer.c).
const SOCKET: &str = "streamer-serve.sock";

/// The image of all open files, sockets included.
pub const OPEN_FILES: &str = "files.img";

/// A request is a file name; a longer one is none.
const LONGEST_REQUEST: usize = 4096;

/// Capacity asked for each pipe; the default limit for anybody without special rights.
const PIPE: i32 = 1 << 20;

/// How long feeders may take to end after CRIU did.
const AFTERMATH: Duration = Duration::from_secs(2);

/// Pieces of an image between its two tasks.
const AHEAD: usize = 8;

/// Why an image could not be handed over.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Unusable(#[from] Unusable),
    #[error("CRIU speaks an image streamer protocol that this program does not know")]
    Protocol(#[source] io::Error),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(string, required, tag = "1")]
    filename: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Reply {
    #[prost(bool, required, tag = "1")]
    exists: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PagemapHead {
    #[prost(uint32, required, tag = "1")]
    pages_id: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PagemapEntry {
    #[prost(uint64, required, tag = "1")]
    vaddr: u64,
    /// Superseded by `nr_pages`, still required.
    #[prost(uint32, required, tag = "2")]
    compat_nr_pages: u32,
    #[prost(uint32, optional, tag = "4")]
    flags: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    nr_pages: Option<u64>,
}

/// The page is in the image, criu/include/pagemap.h.
const PRESENT: u32 = 4;

/// IMG_COMMON_MAGIC and PAGEMAP_MAGIC, criu/include/magic.h.
const PAGEMAP_MAGIC: [u32; 2] = [0x5456_4319, 0x5608_4025];

/// What an image name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Image {
    /// By position in the index.
    File(usize),
    Pagemap(usize),
    Pages(usize),
}

/// Serves one restore.
#[derive(Debug)]
pub struct ImageServer {
    shared: Arc<Shared>,
    socket: PathBuf,
}

impl Drop for ImageServer {
    /// Lets the thread end if CRIU never came.
    fn drop(&mut self) {
        // It fails when the listener is gone, and so is the thread then.
        drop(UnixStream::connect(&self.socket));
    }
}

#[derive(Debug)]
struct Shared {
    snapshot: Arc<Snapshot>,
    deadline: Instant,
    /// `files.img`, if it is to be another one than was stored.
    open_files: Option<Bytes>,
    /// For what is fetched and not handed over yet, of all images together.
    room: Room,
    feeders: Mutex<JoinSet<Result<(), ServeError>>>,
    protocol: Mutex<Option<io::Error>>,
}

impl ImageServer {
    /// Listens in CRIU's images directory. One thread answers requests until CRIU hangs up or the listener's directory
    /// is given up by [`Self::verdict`].
    /// Up to `ahead_bytes` are fetched before CRIU asks for them. With `open_files` it gets these for `files.img`.
    pub fn start(
        snapshot: Arc<Snapshot>,
        open_files: Option<Bytes>,
        directory: &Path,
        ahead_bytes: u64,
        deadline: Instant,
    ) -> io::Result<Self> {
        let socket = directory.join(SOCKET);
        let listener = UnixListener::bind(&socket)?;
        let shared = Arc::new(Shared {
            snapshot,
            deadline,
            open_files,
            room: Room::new(ahead_bytes),
            feeders: Mutex::new(JoinSet::new()),
            protocol: Mutex::new(None),
        });
        let (runtime, server) = (Handle::current(), Arc::clone(&shared));
        std::thread::Builder::new()
            .name("image-server".into())
            .spawn(move || {
                let served = listener
                    .accept()
                    .and_then(|(socket, _)| serve(&server, &socket, &runtime));
                if let Err(error) = served {
                    *server
                        .protocol
                        .lock()
                        .expect("no holder of this lock panics") = Some(error);
                }
            })?;
        Ok(Self { shared, socket })
    }

    /// Whether what CRIU was handed was sound. To be called when CRIU has restored everything and let nothing go yet;
    /// a feeder that still waits then has something that CRIU does not want.
    pub fn verdict(&self) -> Result<(), ServeError> {
        let mut feeders = self
            .shared
            .feeders
            .lock()
            .expect("no holder of this lock panics");
        while let Some(fed) = feeders.try_join_next() {
            fed.expect("a feeder neither panics nor is cancelled")?;
        }
        drop(feeders);
        match self
            .shared
            .protocol
            .lock()
            .expect("no holder of this lock panics")
            .take()
        {
            Some(error) => Err(ServeError::Protocol(error)),
            None => Ok(()),
        }
    }

    /// The reason why the restore failed, if it lies in the snapshot. To be called when CRIU has ended.
    pub async fn damage(&self) -> Option<ServeError> {
        let mut feeders = std::mem::take(
            &mut *self
                .shared
                .feeders
                .lock()
                .expect("no holder of this lock panics"),
        );
        let first = async {
            while let Some(fed) = feeders.join_next().await {
                if let Ok(Err(error)) = fed {
                    return Some(error);
                }
            }
            None
        };
        // With CRIU gone every pipe is broken and every feeder ends; one that waits for the store knows no reason.
        tokio::time::timeout(AFTERMATH, first).await.unwrap_or(None)
    }
}

fn serve(shared: &Arc<Shared>, mut socket: &UnixStream, runtime: &Handle) -> io::Result<()> {
    while let Some(name) = read_request(socket)? {
        let image = shared.snapshot.image(&name);
        let reply = Reply {
            exists: image.is_some(),
        };
        socket.write_all(&framed(&reply))?;
        let Some(image) = image else { continue };
        let pipe = receive_descriptor(socket)?;
        let feeder = feed(Arc::clone(shared), name, image, pipe);
        shared
            .feeders
            .lock()
            .expect("no holder of this lock panics")
            .spawn_on(feeder, runtime);
    }
    Ok(())
}

fn read_request(mut socket: &UnixStream) -> io::Result<Option<String>> {
    let mut length = [0; 4];
    match socket.read_exact(&mut length) {
        Ok(()) => {}
        // CRIU has hung up: it has everything.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > LONGEST_REQUEST {
        return Err(io::Error::other(format!("a request of {length} bytes")));
    }
    let mut request = vec![0; length];
    socket.read_exact(&mut request)?;
    Request::decode(request.as_slice())
        .map(|request| Some(request.filename))
        .map_err(io::Error::other)
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([i32; 1]);
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let [descriptor] = descriptors[..]
        {
            return Ok(crate::sys::own(descriptor));
        }
    }
    Err(io::Error::other("a request without a descriptor"))
}

fn framed(message: &impl Message) -> Vec<u8> {
    let mut bytes = u32::try_from(message.encoded_len())
        .expect("our messages are small")
        .to_le_bytes()
        .to_vec();
    message.encode(&mut bytes).expect("a vector has room");
    bytes
}

/// Answers whatever these bytes ask for, as CRIU's. Nothing is handed over: no descriptor comes with them.
#[cfg(any(test, fuzzing))]
pub(crate) fn digest(snapshot: Arc<Snapshot>, runtime: &Handle, bytes: &[u8]) -> io::Result<()> {
    let (ours, mut theirs) = UnixStream::pair()?;
    theirs.write_all(bytes)?;
    theirs.shutdown(std::net::Shutdown::Write)?;
    // Nobody reads the answers.
    ours.set_write_timeout(Some(std::time::Duration::from_millis(50)))?;
    let shared = Arc::new(Shared {
        snapshot,
        deadline: Instant::now() + AFTERMATH,
        open_files: None,
        room: Room::new(0),
        feeders: Mutex::new(JoinSet::new()),
        protocol: Mutex::new(None),
    });
    serve(&shared, &ours, runtime)
}

async fn feed(
    shared: Arc<Shared>,
    name: String,
    image: Image,
    pipe: OwnedFd,
) -> Result<(), ServeError> {
    let mut pipe = sender(pipe).map_err(ServeError::Protocol)?;
    let (pieces, mut taken) = mpsc::channel::<Bytes>(AHEAD);
    // Unpacking and writing overlap: they are two tasks.
    let source = tokio::spawn(produce(Arc::clone(&shared), image, pieces));
    while let Some(piece) = taken.recv().await {
        if let Err(error) = pipe.write_all(&piece).await {
            tracing::debug!(image = name, %error, "CRIU did not want the rest of an image");
            drop(taken);
            break;
        }
    }
    // The pipe closes after this: whether the source was sound has to be known first.
    Ok(source
        .await
        .expect("a producer neither panics nor is cancelled")?)
}

fn sender(pipe: OwnedFd) -> io::Result<pipe::Sender> {
    // A smaller pipe works as well, only slower.
    let _ = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(PIPE));
    let flags = OFlag::from_bits_retain(fcntl(&pipe, FcntlArg::F_GETFL)?);
    fcntl(&pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    pipe::Sender::from_owned_fd(pipe)
}

async fn produce(
    shared: Arc<Shared>,
    image: Image,
    pieces: mpsc::Sender<Bytes>,
) -> Result<(), Unusable> {
    let snapshot = &*shared.snapshot;
    let read = |needed| {
        let (snapshot, room) = (Arc::clone(&shared.snapshot), shared.room.clone());
        Ahead::new(snapshot, needed, room, shared.deadline)
    };
    match image {
        Image::File(number) => {
            let file = &snapshot.index.files[number];
            if let (OPEN_FILES, Some(image)) = (file.name.as_str(), &shared.open_files) {
                drop(pieces.send(image.clone()).await);
                return Ok(());
            }
            let mut blocks = read(file.blocks.clone());
            while let Some(piece) = blocks.next().await? {
                if pieces.send(piece).await.is_err() {
                    break;
                }
            }
        }
        Image::Pagemap(number) => drop(pieces.send(snapshot.pagemap(number).into()).await),
        Image::Pages(number) => {
            let segments = &snapshot.index.memories[number].segments;
            produce_pages(segments, read(needed(segments)), &pieces).await?;
        }
    }
    Ok(())
}

/// The blocks of these segments in the order in which they are read, each once for as long as it is read from.
fn needed(segments: &[Segment]) -> Vec<u32> {
    let mut needed: Vec<u32> = segments
        .iter()
        .filter(|segment| segment.source > 0)
        .map(|segment| segment.source - 1)
        .collect();
    needed.dedup();
    needed
}

/// Ends early when nobody takes the pieces any more.
async fn produce_pages(
    segments: &[Segment],
    mut blocks: Ahead,
    pieces: &mpsc::Sender<Bytes>,
) -> Result<(), Unusable> {
    static ZEROS: [u8; BLOCK] = [0; BLOCK];
    let mut current = (0, Bytes::new());
    for segment in segments {
        let length = segment.pages as usize * PAGE;
        if segment.source == 0 {
            for at in (0..length).step_by(BLOCK) {
                let piece = Bytes::from_static(&ZEROS[..BLOCK.min(length - at)]);
                if pieces.send(piece).await.is_err() {
                    return Ok(());
                }
            }
            continue;
        }
        if segment.source != current.0 {
            // It may have to go before there is room for the next one.
            drop(std::mem::take(&mut current.1));
            current = (segment.source, blocks.next().await?.unwrap_or_default());
        }
        let start = segment.first as usize * PAGE;
        let piece = current.1.slice(start..start + length);
        if pieces.send(piece).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

impl Snapshot {
    fn image(&self, name: &str) -> Option<Image> {
        if let Some(number) = self.index.files.iter().position(|file| file.name == name) {
            return Some(Image::File(number));
        }
        let stem = name.strip_suffix(".img")?;
        let memory = |kind: MemoryKind, id: &str| {
            let id: u64 = id.parse().ok()?;
            self.index
                .memories
                .iter()
                .position(|memory| memory.kind() == kind && memory.id == id)
        };
        if let Some(number) = stem.strip_prefix("pages-") {
            let number = number.parse::<usize>().ok()?.checked_sub(1)?;
            return (number < self.index.memories.len()).then_some(Image::Pages(number));
        }
        if let Some(id) = stem.strip_prefix("pagemap-shmem-") {
            return memory(MemoryKind::Shared, id).map(Image::Pagemap);
        }
        memory(MemoryKind::Process, stem.strip_prefix("pagemap-")?).map(Image::Pagemap)
    }

    /// The pagemap image of a memory image, as CRIU would have written it: what follows in the pages image.
    pub(crate) fn pagemap(&self, number: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = PAGEMAP_MAGIC
            .iter()
            .flat_map(|magic| magic.to_le_bytes())
            .collect();
        let pages_id = u32::try_from(number + 1).expect("a snapshot has few memory images");
        bytes.extend(framed(&PagemapHead { pages_id }));
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for segment in &self.index.memories[number].segments {
            match runs.last_mut() {
                Some((vaddr, pages)) if *vaddr + *pages * PAGE as u64 == segment.vaddr => {
                    *pages += u64::from(segment.pages);
                }
                _ => runs.push((segment.vaddr, u64::from(segment.pages))),
            }
        }
        for (vaddr, pages) in runs {
            let entry = PagemapEntry {
                vaddr,
                compat_nr_pages: 0,
                flags: Some(PRESENT),
                nr_pages: Some(pages),
            };
            bytes.extend(framed(&entry));
        }
        bytes
    }
}
