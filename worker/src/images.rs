//! Reads CRIU's images: which processes there were, and what they held.
//!
//! An image is two magic numbers and a row of entries, each a length and a protobuf message; some entries have bytes of
//! their own behind them, and images of that kind are read up to their first entry only. The messages are those that CRIU
//! publishes with its sources (`images/*.proto`, version 4.2); fields that nothing here asks for are left out, which
//! protobuf allows. Whatever is read comes from a store, so every length is checked before it is believed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use prost::Message;
use reprieve_core::files::Wanted;
use reprieve_core::moved::Move;

/// The first number of every image but the inventory.
const COMMON_MAGIC: u32 = 0x5456_4319;

/// The largest entry that is believed, in bytes; the memory maps of a process with 65,530 mappings, the kernel's usual
/// limit, take 4 MiB.
const ENTRY_LIMIT: usize = 256 << 20;

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("it is not one of CRIU's images")]
    Foreign,
    #[error("it ends in the middle of an entry")]
    Truncated,
    #[error("an entry of it is not understood")]
    NotUnderstood(#[from] prost::DecodeError),
    #[error("it has no entry")]
    Empty,
}

/// All entries of an image that has nothing between them.
pub fn entries<M: Message + Default>(image: &[u8]) -> Result<Vec<M>, ImageError> {
    let mut rest = body(image)?;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (entry, after) = entry(rest)?;
        found.push(M::decode(entry)?);
        rest = after;
    }
    Ok(found)
}

/// The first entry of an image.
pub fn first<M: Message + Default>(image: &[u8]) -> Result<M, ImageError> {
    let rest = body(image)?;
    if rest.is_empty() {
        return Err(ImageError::Empty);
    }
    Ok(M::decode(entry(rest)?.0)?)
}

/// `files.img` as the next host is to have it.
#[derive(Clone, Debug, PartialEq)]
pub struct Moved {
    pub image: Vec<u8>,
    /// How many sockets are bound to another address than before.
    pub sockets: usize,
    /// The rules that were about no socket.
    pub idle: Vec<Move>,
    /// What the sockets of this image are bound to.
    pub bound: Vec<Bound>,
    /// Our ends of connections of TCP.
    pub connections: Vec<Bound>,
}

/// A socket that needs an address of its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    pub address: IpAddr,
    /// As people know it.
    pub socket: String,
}

/// `files.img` with sockets bound to the addresses that the rules say, but for those of TCP with a peer. Whatever else is
/// in it, known here or not, stays as it is.
pub fn with_moved(image: &[u8], rules: &[Move]) -> Result<Moved, ImageError> {
    let mut rest = body(image)?;
    let mut moved = Moved {
        image: image[..image.len() - rest.len()].to_vec(),
        sockets: 0,
        idle: rules.to_vec(),
        bound: Vec::new(),
        connections: Vec::new(),
    };
    while !rest.is_empty() {
        let (one, after) = entry(rest)?;
        rest = after;
        let file = OpenFile::decode(one)?;
        let socket = file.internet;
        let connection = socket.as_ref().filter(|socket| socket.is_connection());
        moved
            .connections
            .extend(connection.and_then(Internet::bound));
        let socket = socket.filter(Internet::is_bound);
        let rule = socket.as_ref().and_then(|socket| {
            let source = ip(socket.family, &socket.source);
            Some((rules.iter().find(|rule| rule.is_about(source))?, source))
        });
        let (one, socket) = match rule {
            None => (one.to_vec(), socket),
            Some((rule, source)) => {
                moved.sockets += 1;
                moved.idle.retain(|idle| idle != rule);
                let source = words(rule.applied(source));
                let one = with_source(one, &source)?;
                (one, socket.map(|socket| Internet { source, ..socket }))
            }
        };
        moved
            .bound
            .extend(socket.as_ref().and_then(Internet::bound));
        // It was read with such a number in front.
        let length = u32::try_from(one.len()).map_err(|_| ImageError::Truncated)?;
        moved.image.extend(length.to_le_bytes());
        moved.image.extend(one);
    }
    Ok(moved)
}

/// The open file of a socket, with another address that it is bound to.
fn with_source(file: &[u8], words: &[u32]) -> Result<Vec<u8>, ImageError> {
    let mut written = Vec::new();
    for field in fields(file)? {
        if field.number != Internet::TAG {
            written.extend(field.whole);
            continue;
        }
        let others = fields(field.contents)?.into_iter();
        let mut socket: Vec<u8> = others
            .filter(|field| field.number != Internet::SOURCE)
            .flat_map(|field| field.whole)
            .copied()
            .collect();
        let source = Source {
            words: words.to_vec(),
        };
        socket.extend(source.encode_to_vec());
        written.extend(Whole { socket }.encode_to_vec());
    }
    Ok(written)
}

/// The one field of a socket that is written anew.
#[derive(Clone, PartialEq, Message)]
struct Source {
    #[prost(uint32, repeated, packed = "false", tag = "11")]
    words: Vec<u32>,
}

/// The one field of an open file that is written anew.
#[derive(Clone, PartialEq, Message)]
struct Whole {
    #[prost(bytes = "vec", tag = "4")]
    socket: Vec<u8>,
}

/// One field of a message as it lies there.
struct Field<'a> {
    number: u64,
    whole: &'a [u8],
    /// Of one with a length.
    contents: &'a [u8],
}

fn fields(message: &[u8]) -> Result<Vec<Field<'_>>, ImageError> {
    let mut found = Vec::new();
    let mut rest = message;
    while !rest.is_empty() {
        let (key, after) = variable(rest)?;
        // Protobuf's wire types; groups are not used any more.
        let (length, from) = match key & 7 {
            0 => (0, variable(after)?.1),
            1 => (8, after),
            2 => variable(after)?,
            5 => (4, after),
            _ => return Err(ImageError::Truncated),
        };
        let length = usize::try_from(length).map_err(|_| ImageError::Truncated)?;
        let (contents, after) = from.split_at_checked(length).ok_or(ImageError::Truncated)?;
        found.push(Field {
            number: key >> 3,
            whole: &rest[..rest.len() - after.len()],
            contents,
        });
        rest = after;
    }
    Ok(found)
}

/// A number of seven bits in each byte, the lowest first.
fn variable(bytes: &[u8]) -> Result<(u64, &[u8]), ImageError> {
    let mut number = 0;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok((number, &bytes[at + 1..]));
        }
    }
    Err(ImageError::Truncated)
}

fn body(image: &[u8]) -> Result<&[u8], ImageError> {
    let (magic, rest) = number(image).ok_or(ImageError::Foreign)?;
    if magic != COMMON_MAGIC {
        return Err(ImageError::Foreign);
    }
    // The second says which image it is; its name has said so already.
    number(rest)
        .map(|(_, rest)| rest)
        .ok_or(ImageError::Foreign)
}

fn entry(bytes: &[u8]) -> Result<(&[u8], &[u8]), ImageError> {
    let (length, rest) = number(bytes).ok_or(ImageError::Truncated)?;
    let length = length as usize;
    if length > ENTRY_LIMIT || length > rest.len() {
        return Err(ImageError::Truncated);
    }
    Ok(rest.split_at(length))
}

fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*number), rest))
}

/// `pstree.img`: one process.
#[derive(Clone, PartialEq, Message)]
pub struct Process {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    #[prost(uint32, tag = "2")]
    pub parent: u32,
    #[prost(uint32, tag = "3")]
    pub group: u32,
    #[prost(uint32, tag = "4")]
    pub session: u32,
    /// Its own number among them.
    #[prost(uint32, repeated, packed = "false", tag = "5")]
    pub threads: Vec<u32>,
}

/// `core-N.img`: what the kernel keeps of one thread, and of its process if it leads it.
#[derive(Clone, PartialEq, Message)]
pub struct Core {
    #[prost(message, optional, tag = "3")]
    pub task: Option<Task>,
    #[prost(message, optional, tag = "4")]
    pub ids: Option<Ids>,
    #[prost(message, optional, tag = "5")]
    pub thread: Option<Thread>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Task {
    /// 1 alive, 2 dead, 3 stopped.
    #[prost(uint32, tag = "1")]
    pub state: u32,
    #[prost(string, tag = "6")]
    pub command: String,
    #[prost(bool, tag = "18")]
    pub takes_in_orphans: bool,
}

/// Numbers by which processes that share something name it.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Ids {
    #[prost(uint32, tag = "2")]
    pub files: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct Thread {
    #[prost(message, optional, tag = "10")]
    pub credentials: Option<Credentials>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Credentials {
    #[prost(uint32, tag = "3")]
    pub user: u32,
    #[prost(uint32, tag = "4")]
    pub group: u32,
}

/// `mm-N.img`: a process's address space.
#[derive(Clone, PartialEq, Message)]
pub struct AddressSpace {
    #[prost(uint64, tag = "8")]
    pub arguments_start: u64,
    #[prost(uint64, tag = "9")]
    pub arguments_end: u64,
    #[prost(uint64, tag = "10")]
    pub environment_start: u64,
    #[prost(uint64, tag = "11")]
    pub environment_end: u64,
    #[prost(uint32, tag = "12")]
    pub executable: u32,
    #[prost(message, repeated, tag = "14")]
    pub mappings: Vec<Mapping>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Mapping {
    #[prost(uint64, tag = "1")]
    pub start: u64,
    #[prost(uint64, tag = "2")]
    pub end: u64,
    /// In bytes.
    #[prost(uint64, tag = "3")]
    pub file_offset: u64,
    /// A file's number for mapped files, a shared memory object's for shared memory.
    #[prost(uint64, tag = "4")]
    pub object: u64,
    /// As for mmap(2).
    #[prost(uint32, tag = "5")]
    pub protection: u32,
    /// What it is, in CRIU's bits.
    #[prost(uint32, tag = "7")]
    pub status: u32,
}

/// What a mapping holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MappingKind {
    Anonymous,
    Heap,
    Stack,
    /// Anonymous memory that processes share.
    SharedAnonymous,
    /// SysV shared memory.
    SysV,
    Memfd,
    /// A file of which changes stay in memory.
    PrivateFile,
    /// A file of which changes reach the file.
    SharedFile,
    /// The kernel's own pages (vdso, vvar, vsyscall).
    Kernel,
    Other,
}

impl Mapping {
    pub fn kind(&self) -> MappingKind {
        // CRIU's criu/include/image.h, VMA_*.
        let has = |bit: u32| self.status & (1 << bit) != 0;
        match () {
            () if has(2) || has(3) || has(12) => MappingKind::Kernel,
            () if has(10) => MappingKind::SysV,
            () if has(14) => MappingKind::Memfd,
            () if has(1) => MappingKind::Stack,
            () if has(5) => MappingKind::Heap,
            () if has(6) => MappingKind::PrivateFile,
            () if has(7) => MappingKind::SharedFile,
            () if has(8) => MappingKind::SharedAnonymous,
            () if has(9) => MappingKind::Anonymous,
            () => MappingKind::Other,
        }
    }

    /// `rwx`, with a dash for what is not allowed.
    pub fn permissions(&self) -> String {
        let may = |bit: u32, letter| match self.protection & bit {
            0 => '-',
            _ => letter,
        };
        [may(1, 'r'), may(2, 'w'), may(4, 'x')]
            .into_iter()
            .collect()
    }
}

/// `fs-N.img`.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Directories {
    #[prost(uint32, tag = "1")]
    pub working: u32,
}

/// `fdinfo-N.img`: one descriptor.
#[derive(Clone, PartialEq, Message)]
pub struct Descriptor {
    #[prost(uint32, tag = "1")]
    pub file: u32,
    #[prost(uint32, tag = "4")]
    pub number: u32,
}

/// `files.img`: one open file, of whatever kind.
#[derive(Clone, PartialEq, Message)]
pub struct OpenFile {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(uint32, tag = "2")]
    pub number: u32,
    #[prost(message, optional, tag = "3")]
    regular: Option<Regular>,
    #[prost(message, optional, tag = "4")]
    internet: Option<Internet>,
    #[prost(message, optional, tag = "13")]
    inotify: Option<Inotify>,
    #[prost(message, optional, tag = "14")]
    fanotify: Option<Fanotify>,
    #[prost(message, optional, tag = "15")]
    external: Option<Piped>,
    #[prost(message, optional, tag = "16")]
    unix: Option<Unix>,
    #[prost(message, optional, tag = "17")]
    fifo: Option<Piped>,
    #[prost(message, optional, tag = "18")]
    pipe: Option<Piped>,
    #[prost(message, optional, tag = "20")]
    memfd: Option<Memfd>,
}

#[derive(Clone, PartialEq, Message)]
struct Regular {
    #[prost(uint64, tag = "3")]
    position: u64,
    #[prost(string, tag = "6")]
    name: String,
    #[prost(uint64, optional, tag = "8")]
    size: Option<u64>,
    /// Somebody else opens it at a restore.
    #[prost(bool, optional, tag = "9")]
    external: Option<bool>,
    #[prost(uint32, optional, tag = "10")]
    mode: Option<u32>,
    /// In words of four bytes.
    #[prost(uint32, repeated, packed = "false", tag = "11")]
    build_id: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct Inotify {
    #[prost(message, repeated, tag = "5")]
    watches: Vec<Watch>,
}

#[derive(Clone, PartialEq, Message)]
struct Watch {
    #[prost(message, optional, tag = "7")]
    handle: Option<Handle>,
}

#[derive(Clone, PartialEq, Message)]
struct Fanotify {
    #[prost(message, repeated, tag = "6")]
    marks: Vec<Mark>,
}

#[derive(Clone, PartialEq, Message)]
struct Mark {
    /// Of one that is for a file.
    #[prost(message, optional, tag = "7")]
    file: Option<MarkedFile>,
}

#[derive(Clone, PartialEq, Message)]
struct MarkedFile {
    #[prost(message, optional, tag = "2")]
    handle: Option<Handle>,
}

#[derive(Clone, PartialEq, Message)]
struct Handle {
    #[prost(string, optional, tag = "4")]
    path: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Internet {
    #[prost(uint32, tag = "3")]
    family: u32,
    #[prost(uint32, tag = "5")]
    protocol: u32,
    #[prost(uint32, tag = "6")]
    state: u32,
    #[prost(uint32, tag = "7")]
    source_port: u32,
    #[prost(uint32, tag = "8")]
    destination_port: u32,
    #[prost(uint32, repeated, packed = "false", tag = "11")]
    source: Vec<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "12")]
    destination: Vec<u32>,
    #[prost(message, optional, tag = "16")]
    options: Option<InternetOptions>,
    /// For an address that is one only on this interface.
    #[prost(string, tag = "17")]
    interface: String,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct InternetOptions {
    /// It may be bound to what is no address of the host.
    #[prost(bool, tag = "1")]
    freebind: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Unix {
    #[prost(uint32, tag = "4")]
    state: u32,
    #[prost(bytes = "vec", tag = "11")]
    name: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Piped {
    #[prost(uint32, tag = "2")]
    pipe: u32,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Memfd {
    #[prost(uint64, tag = "3")]
    position: u64,
    #[prost(uint32, tag = "5")]
    inode: u32,
}

/// `memfd.img`: one memory file.
#[derive(Clone, PartialEq, Message)]
pub struct MemfdInode {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint64, tag = "4")]
    pub size: u64,
    #[prost(uint64, tag = "7")]
    pub number: u64,
}

/// `remap-fpath.img`: a file whose name was removed while it was open.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Remap {
    /// The number of the file.
    #[prost(uint32, tag = "1")]
    pub file: u32,
    /// The number of what stands for it.
    #[prost(uint32, tag = "2")]
    stand_in: u32,
    /// 1: a ghost file. Older versions set the number's highest bit instead.
    #[prost(uint32, optional, tag = "3")]
    kind: Option<u32>,
}

impl Remap {
    /// The name of the image that the contents are in, if they are.
    pub fn ghost(&self) -> Option<String> {
        const GHOST: u32 = 1 << 31;
        let is_ghost = match self.kind {
            Some(kind) => kind == 1,
            None => self.stand_in & GHOST != 0,
        };
        is_ghost.then(|| format!("ghost-file-{:x}.img", self.stand_in & !GHOST))
    }
}

/// `ghost-file-N.img`: its first entry. The contents follow.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Ghost {
    #[prost(uint32, tag = "1")]
    pub user: u32,
    #[prost(uint32, tag = "2")]
    pub group: u32,
    #[prost(uint32, tag = "3")]
    pub mode: u32,
    #[prost(uint64, optional, tag = "10")]
    pub size: Option<u64>,
}

/// What an open file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    File,
    Pipe,
    Fifo,
    InternetSocket,
    UnixSocket,
    PacketSocket,
    NetlinkSocket,
    Eventfd,
    Epoll,
    Inotify,
    Fanotify,
    Signalfd,
    Timerfd,
    Terminal,
    Memfd,
    Pidfd,
    Namespace,
    External,
    Other,
}

impl OpenFile {
    pub fn kind(&self) -> FileKind {
        // CRIU's images/fdinfo.proto, enum fd_types.
        match self.kind {
            1 => FileKind::File,
            2 => FileKind::Pipe,
            3 => FileKind::Fifo,
            4 => FileKind::InternetSocket,
            5 => FileKind::UnixSocket,
            6 => FileKind::Eventfd,
            7 => FileKind::Epoll,
            8 => FileKind::Inotify,
            9 => FileKind::Signalfd,
            10 => FileKind::PacketSocket,
            11 => FileKind::Terminal,
            12 => FileKind::Fanotify,
            13 => FileKind::NetlinkSocket,
            14 => FileKind::Namespace,
            16 => FileKind::External,
            17 => FileKind::Timerfd,
            18 => FileKind::Memfd,
            20 => FileKind::Pidfd,
            _ => FileKind::Other,
        }
    }

    /// What a restore needs to find at the path that it was opened by.
    pub fn wanted(&self) -> Option<Wanted> {
        let regular = self.regular.as_ref()?;
        if regular.external == Some(true) {
            return None;
        }
        Some(Wanted {
            path: format!("/{}", regular.name.trim_start_matches('/')),
            bytes: regular.size,
            mode: regular.mode,
            build_id: regular
                .build_id
                .iter()
                .flat_map(|word| word.to_le_bytes())
                .collect(),
        })
    }

    /// What a restore needs to find at the paths that it watches.
    pub fn watched(&self) -> Vec<Wanted> {
        let watches = self.inotify.iter().flat_map(|inotify| &inotify.watches);
        let marks = self.fanotify.iter().flat_map(|fanotify| &fanotify.marks);
        let handles = watches
            .filter_map(|watch| watch.handle.as_ref())
            .chain(marks.filter_map(|mark| mark.file.as_ref()?.handle.as_ref()));
        handles
            .filter_map(|handle| handle.path.as_deref())
            .map(|path| Wanted {
                path: format!("/{}", path.trim_start_matches('/')),
                ..Wanted::default()
            })
            .collect()
    }

    /// A path, addresses, the number of a pipe: whatever tells this one from others of its kind.
    pub fn name(&self, memfds: &[MemfdInode]) -> Option<String> {
        if let Some(regular) = &self.regular {
            return Some(regular.name.clone());
        }
        if let Some(internet) = &self.internet {
            return Some(internet.name());
        }
        if let Some(unix) = &self.unix {
            return unix.name();
        }
        if let Some(memfd) = &self.memfd {
            let inode = u64::from(memfd.inode);
            let found = memfds.iter().find(|one| one.number == inode);
            return found.map(|one| one.name.clone());
        }
        let pipe = self.pipe.or(self.fifo);
        pipe.map(|piped| format!("pipe:[{}]", piped.pipe))
    }

    /// Where the next read or write begins, in bytes, for what has such a place.
    pub fn position(&self) -> Option<u64> {
        let regular = self.regular.as_ref().map(|regular| regular.position);
        regular.or(self.memfd.map(|memfd| memfd.position))
    }

    /// Its size at the dump, in bytes, for files that CRIU compares at a restore.
    pub fn size(&self) -> Option<u64> {
        self.regular.as_ref().and_then(|regular| regular.size)
    }
}

impl Internet {
    /// Its field in an open file, and that of the address which it is bound to in itself.
    const TAG: u64 = 4;
    const SOURCE: u64 = 11;

    /// One of TCP. It is about an address that its peer knows.
    fn is_connection(&self) -> bool {
        const TCP: u32 = 6;
        self.protocol == TCP && self.destination_port != 0
    }

    /// Whether CRIU binds it at a restore, whatever becomes of connections.
    fn is_bound(&self) -> bool {
        self.source_port != 0 && !self.is_connection()
    }

    /// What it needs of its host. One that may be bound to an address before that is there needs nothing; nor can be
    /// looked for what is an address on one interface only.
    fn bound(&self) -> Option<Bound> {
        let address = ip(self.family, &self.source).to_canonical();
        let is_free = self.options.is_some_and(|options| options.freebind);
        if address.is_unspecified() || is_free || !self.interface.is_empty() {
            return None;
        }
        Some(Bound {
            address,
            socket: self.name(),
        })
    }

    fn name(&self) -> String {
        let protocol = match self.protocol {
            1 => "icmp",
            6 => "tcp",
            17 => "udp",
            _ => "other",
        };
        let source = address(self.family, &self.source, self.source_port);
        // Linux's numbers for the states of TCP.
        match self.state {
            10 => format!("{protocol} {source} listening"),
            _ if self.destination_port == 0 => format!("{protocol} {source}"),
            _ => {
                let destination = address(self.family, &self.destination, self.destination_port);
                format!("{protocol} {source} to {destination}")
            }
        }
    }
}

/// The words of an address, see [`ip`].
fn words(address: IpAddr) -> Vec<u32> {
    let octets = match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = octets.chunks_exact(4);
    let words = words.map(|word| word.try_into().expect("they are of four bytes"));
    words.map(u32::from_le_bytes).collect()
}

/// The words of an address are in network order as they lie in memory.
fn ip(family: u32, words: &[u32]) -> IpAddr {
    const AF_INET6: u32 = 10;
    let mut bytes = words.iter().flat_map(|word| word.to_le_bytes());
    if family == AF_INET6 {
        let octets: [u8; 16] = std::array::from_fn(|_| bytes.next().unwrap_or(0));
        Ipv6Addr::from(octets).into()
    } else {
        let octets: [u8; 4] = std::array::from_fn(|_| bytes.next().unwrap_or(0));
        Ipv4Addr::from(octets).into()
    }
}

fn address(family: u32, words: &[u32], port: u32) -> String {
    match ip(family, words) {
        IpAddr::V4(ip) => format!("{ip}:{port}"),
        IpAddr::V6(ip) => format!("[{ip}]:{port}"),
    }
}

impl Unix {
    fn name(&self) -> Option<String> {
        let listening = match self.state {
            10 => " listening",
            _ => "",
        };
        let name = match self.name.split_first() {
            None => return (!listening.is_empty()).then(|| listening.trim().to_owned()),
            // A name that is not a path begins with a zero byte; `@` stands for it, as in /proc/net/unix.
            Some((0, name)) => format!("@{}", String::from_utf8_lossy(name)),
            Some(_) => String::from_utf8_lossy(&self.name)
                .trim_end_matches('\0')
                .to_owned(),
        };
        Some(format!("{name}{listening}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image(entries: &[&[u8]]) -> Vec<u8> {
        let mut image = COMMON_MAGIC.to_le_bytes().to_vec();
        image.extend(0x5027_3030_u32.to_le_bytes());
        for entry in entries {
            image.extend(
                u32::try_from(entry.len())
                    .expect("it is small")
                    .to_le_bytes(),
            );
            image.extend_from_slice(entry);
        }
        image
    }

    fn process(pid: u32) -> Process {
        Process {
            pid,
            parent: 1,
            group: pid,
            session: pid,
            threads: vec![pid, pid + 1],
        }
    }

    #[test]
    fn entries_come_back_in_order() {
        let all = [process(301), process(405)];
        let packed: Vec<Vec<u8>> = all.iter().map(Message::encode_to_vec).collect();
        let image = image(&[&packed[0], &packed[1]]);
        assert_eq!(entries::<Process>(&image).expect("it is sound"), all);
        assert_eq!(first::<Process>(&image).expect("it is sound"), all[0]);
    }

    #[test]
    fn what_is_not_an_image_is_refused() {
        let whole = image(&[&process(301).encode_to_vec()]);
        assert!(matches!(entries::<Process>(b""), Err(ImageError::Foreign)));
        assert!(matches!(
            entries::<Process>(b"not an image"),
            Err(ImageError::Foreign)
        ));
        for length in 9..whole.len() {
            assert!(
                matches!(
                    entries::<Process>(&whole[..length]),
                    Err(ImageError::Truncated)
                ),
                "{length}"
            );
        }
        assert!(matches!(
            first::<Process>(&image(&[])),
            Err(ImageError::Empty)
        ));
        let huge = [&whole[..8], &u32::MAX.to_le_bytes()].concat();
        assert!(matches!(
            entries::<Process>(&huge),
            Err(ImageError::Truncated)
        ));
    }

    #[test]
    fn sockets_are_named_as_people_know_them() {
        let socket = |family, state, source: &[u8], destination_port| Internet {
            family,
            protocol: 6,
            state,
            source_port: 80,
            destination_port,
            source: source
                .chunks(4)
                .map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")))
                .collect(),
            destination: vec![u32::from_le_bytes([10, 0, 0, 7])],
            ..Internet::default()
        };
        assert_eq!(
            socket(2, 10, &[127, 0, 0, 1], 0).name(),
            "tcp 127.0.0.1:80 listening"
        );
        assert_eq!(
            socket(2, 1, &[10, 0, 0, 1], 999).name(),
            "tcp 10.0.0.1:80 to 10.0.0.7:999"
        );
        let mut six = [0; 16];
        six[15] = 1;
        assert_eq!(socket(10, 10, &six, 0).name(), "tcp [::1]:80 listening");
        let unix = |name: &[u8], state| Unix {
            state,
            name: name.to_vec(),
        };
        assert_eq!(
            unix(b"/run/x.sock\0", 10).name().as_deref(),
            Some("/run/x.sock listening")
        );
        assert_eq!(unix(b"\0bus", 1).name().as_deref(), Some("@bus"));
        assert_eq!(unix(b"", 1).name(), None);
    }

    #[test]
    fn sockets_move_but_for_connections_and_all_else_stays() {
        let socket = |protocol, source: &str, destination_port| {
            let source: IpAddr = source.parse().expect("it is an address");
            Internet {
                family: if source.is_ipv4() { 2 } else { 10 },
                protocol,
                state: 10,
                source_port: 80,
                destination_port,
                source: words(source),
                destination: words(Ipv4Addr::UNSPECIFIED.into()),
                ..Internet::default()
            }
        };
        let open = |internet| OpenFile {
            kind: 4,
            number: 7,
            internet: Some(internet),
            ..OpenFile::default()
        };
        // A field that nothing here knows, in front of the others: number 99, with a length.
        let unknown = [&[0x9a, 0x06, 2][..], b"xy"].concat();
        let pack = |file: &OpenFile| [&unknown[..], &file.encode_to_vec()].concat();
        let (tcp, udp) = (6, 17);
        let files = |four: &str, mapped: &str, six: &str| {
            let unbound = Internet {
                source_port: 0,
                ..socket(udp, "10.0.0.1", 0)
            };
            let free = Internet {
                options: Some(InternetOptions { freebind: true }),
                ..socket(tcp, "10.0.0.9", 0)
            };
            let on_one = Internet {
                interface: "eth0".to_owned(),
                ..socket(tcp, "fe80::1", 0)
            };
            [
                socket(tcp, four, 0),
                // A connection stays what it was, whatever becomes of it.
                socket(tcp, "10.0.0.1", 999),
                socket(udp, four, 999),
                socket(tcp, "0.0.0.0", 0),
                socket(tcp, mapped, 0),
                socket(udp, six, 0),
                unbound,
                free,
                on_one,
                socket(tcp, "::1", 0),
            ]
            .map(open)
        };
        let stored = files("10.0.0.1", "::ffff:10.0.0.1", "fd00::1").map(|file| pack(&file));
        let stored = image(&stored.each_ref().map(Vec::as_slice));
        let rules = [
            "10.0.0.1:10.0.0.2",
            "[fd00::1]:[fd00::2]",
            "10.0.0.3:10.0.0.2",
        ];
        let rules = rules.map(|rule| rule.parse().expect("it is a rule"));
        let moved = with_moved(&stored, &rules).expect("it is sound");
        assert_eq!(moved.sockets, 4);
        let [connection] = &moved.connections[..] else {
            panic!("{:?}", moved.connections);
        };
        assert_eq!(connection.socket, "tcp 10.0.0.1:80 listening");
        assert_eq!(moved.idle, rules[2..]);
        let expected = files("10.0.0.2", "::ffff:10.0.0.2", "fd00::2");
        let found = entries::<OpenFile>(&moved.image).expect("it is sound");
        assert_eq!(found, expected);
        let known = moved.image.windows(unknown.len());
        let known = known.filter(|part| *part == unknown);
        assert_eq!(known.count(), expected.len(), "what is not known stays");
        let needed: Vec<String> = moved
            .bound
            .iter()
            .map(|bound| format!("{}, {}", bound.address, bound.socket))
            .collect();
        let wanted = [
            "10.0.0.2, tcp 10.0.0.2:80 listening",
            "10.0.0.2, udp 10.0.0.2:80 listening",
            "10.0.0.2, tcp [::ffff:10.0.0.2]:80 listening",
            "fd00::2, udp [fd00::2]:80 listening",
            "::1, tcp [::1]:80 listening",
        ];
        assert_eq!(needed, wanted);
        let same = with_moved(&stored, &[]).expect("it is sound");
        assert_eq!((same.image, same.sockets), (stored, 0));
    }

    proptest! {
        #[test]
        fn no_bytes_upset_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..200), is_image in any::<bool>()) {
            let bytes = if is_image { [image(&[]), bytes].concat() } else { bytes };
            // Whether it is read or refused, it ends.
            drop(entries::<AddressSpace>(&bytes));
            drop(entries::<OpenFile>(&bytes));
            drop(fields(&bytes).map(|fields| fields.len()));
            drop(first::<Core>(&bytes));
        }
    }
}
