//! Reads CRIU's images: which processes there were, and what they held.
//!
//! An image is two magic numbers and a row of entries, each a length and a protobuf message; some entries have bytes of
//! their own behind them, and images of that kind are read up to their first entry only. The messages are those that CRIU
//! publishes with its sources (`images/*.proto`, version 4.2); fields that nothing here asks for are left out, which
//! protobuf allows. Whatever is read comes from a store, so every length is checked before it is believed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use prost::Message;
use reprieve_core::files::Wanted;

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

/// The words of an address are in network order as they lie in memory.
fn address(family: u32, words: &[u32], port: u32) -> String {
    const AF_INET6: u32 = 10;
    let mut bytes = words.iter().flat_map(|word| word.to_le_bytes());
    let ip: IpAddr = if family == AF_INET6 {
        let octets: [u8; 16] = std::array::from_fn(|_| bytes.next().unwrap_or(0));
        Ipv6Addr::from(octets).into()
    } else {
        let octets: [u8; 4] = std::array::from_fn(|_| bytes.next().unwrap_or(0));
        Ipv4Addr::from(octets).into()
    };
    match ip {
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

    proptest! {
        #[test]
        fn no_bytes_upset_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..200), is_image in any::<bool>()) {
            let bytes = if is_image { [image(&[]), bytes].concat() } else { bytes };
            // Whether it is read or refused, it ends.
            drop(entries::<AddressSpace>(&bytes));
            drop(entries::<OpenFile>(&bytes));
            drop(first::<Core>(&bytes));
        }
    }
}
