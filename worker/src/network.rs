//! Keeps the peers of connections from being told that nobody has these any more, while a job goes from host to host.
//!
//! A connection of TCP that is to go on (`--tcp established`) has no socket from the moment in which the job is killed on the
//! one host until CRIU has built it on the other. Whatever its peer sends meanwhile the kernel would answer with a reset,
//! and that would be its end. [`Hush`] drops outgoing resets by a table of nftables that belongs to the socket it was made
//! through: the kernel removes it when that is closed, so it is gone with this process, however this process ends.
//!
//! While CRIU reads connections it drops all of their packets by a table of its own, and removes it when it lets the
//! job go. It stays when CRIU is killed; [`remove_locks`] is for that.
//!
//! What is written here is nftables' netlink protocol (linux/netfilter/nf_tables.h), in the words of which things are named.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket,
};
use nix::sys::time::TimeVal;

use crate::catalog;

/// Tables of CRIU's; a number of the run follows.
const LOCK: &[u8] = b"CRIU-";

/// The kernel answers at once.
const PATIENCE: TimeVal = TimeVal::new(2, 0);

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const GET_TABLE: u16 = SUBSYSTEM << 8 | 1;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;

const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// Kinds of answers.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// IPv4 and IPv6 in one.
const INET: u8 = 1;
const TABLE_IS_OWNED: u32 = 2;

/// As long as it lives, no reset leaves this network namespace.
#[derive(Debug)]
pub(crate) struct Hush {
    /// The table goes when it is closed.
    socket: OwnedFd,
}

impl Hush {
    pub(crate) fn begin() -> io::Result<Self> {
        let socket = open()?;
        // Several may be in one namespace.
        let name = format!("reprieve-{}", catalog::nonce());
        transact(&socket, &hush(name.as_bytes()))?;
        Ok(Self { socket })
    }

    /// It lasts until this process ends.
    pub(crate) fn last(self) {
        std::mem::forget(self.socket);
    }
}

/// Removes what a CRIU that was killed left behind. To be called when none is at work here.
pub(crate) fn remove_locks() -> io::Result<()> {
    let socket = open()?;
    let name =
        |table: &Vec<u8>| message(DELETE_TABLE, REQUEST | ACKNOWLEDGE, INET, &text(1, table));
    let left = tables(&socket)?;
    let left: Vec<_> = left.iter().filter(|name| name.starts_with(LOCK)).collect();
    match left.is_empty() {
        true => Ok(()),
        false => transact(&socket, &left.into_iter().map(name).collect::<Vec<_>>()),
    }
}

fn open() -> io::Result<OwnedFd> {
    let opened = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    setsockopt(&opened, ReceiveTimeout, &PATIENCE)?;
    bind(opened.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(opened)
}

/// All of it is done, or nothing.
fn transact(socket: &OwnedFd, messages: &[Vec<u8>]) -> io::Result<()> {
    let subsystem = |kind| message_about(kind, REQUEST, 0, SUBSYSTEM, &[]);
    let mut batch = subsystem(BATCH_BEGIN);
    batch.extend(messages.iter().flatten());
    batch.extend(subsystem(BATCH_END));
    send(socket.as_raw_fd(), &batch, MsgFlags::empty())?;
    let mut left = messages.len();
    while left > 0 {
        for (kind, contents) in &answers(socket)? {
            if *kind != ERROR {
                continue;
            }
            let code = contents
                .first_chunk()
                .map_or(0, |code| i32::from_ne_bytes(*code));
            if code != 0 {
                return Err(io::Error::from_raw_os_error(-code));
            }
            left = left.saturating_sub(1);
        }
    }
    Ok(())
}

/// The names of those of this network namespace.
fn tables(socket: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let question = message(GET_TABLE, REQUEST | DUMP, INET, &[]);
    send(socket.as_raw_fd(), &question, MsgFlags::empty())?;
    let mut found = Vec::new();
    loop {
        for (kind, contents) in answers(socket)? {
            match kind {
                DONE => return Ok(found),
                ERROR => {
                    let code = contents
                        .first_chunk()
                        .map_or(0, |code| i32::from_ne_bytes(*code));
                    return Err(io::Error::from_raw_os_error(-code));
                }
                // Four bytes say of which family it is.
                NEW_TABLE => found.extend(named(contents.get(4..).unwrap_or_default())),
                _ => {}
            }
        }
    }
}

/// The first attribute of a table is its name, with a zero behind it.
fn named(attributes: &[u8]) -> Option<Vec<u8>> {
    let (length, rest) = attributes.split_first_chunk()?;
    let (kind, rest) = rest.split_first_chunk()?;
    let length = usize::from(u16::from_ne_bytes(*length)).checked_sub(5)?;
    (u16::from_ne_bytes(*kind) == 1).then(|| rest.get(..length).map(<[u8]>::to_vec))?
}

/// Kinds and contents of the messages that come next.
fn answers(socket: &OwnedFd) -> io::Result<Vec<(u16, Vec<u8>)>> {
    let mut buffer = vec![0; 1 << 16];
    let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    Ok(split(&buffer[..length]))
}

fn split(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    const HEAD: usize = 16;
    let mut found = Vec::new();
    while let Some(head) = bytes.first_chunk::<HEAD>() {
        let [a, b, c, d, e, f, ..] = *head;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let Some(contents) = bytes.get(HEAD..length) else {
            break;
        };
        found.push((u16::from_ne_bytes([e, f]), contents.to_vec()));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// The table, its chain and the rule: of TCP, what has the flag RST is dropped.
fn hush(name: &[u8]) -> Vec<Vec<u8>> {
    const CHAIN: &[u8] = b"out";
    const LOCAL_OUT: u32 = 3;
    const TCP: u8 = 6;
    const FLAGS_AT: u32 = 13;
    const RESET: u8 = 4;
    let table = [text(1, name), number(2, TABLE_IS_OWNED)].concat();
    let hook = nested(4, &[number(1, LOCAL_OUT), number(2, 0)]);
    let chain = [text(1, name), text(3, CHAIN), hook, text(7, b"filter")].concat();
    let value = |byte: u8| attribute(1, &[byte]);
    // The first register is where they hand on what they found.
    let register = |attribute| number(attribute, 1);
    let (equal, unequal) = (0, 1);
    let compared = |how, with| {
        expression(
            "cmp",
            &[register(1), number(2, how), nested(3, &[value(with)])],
        )
    };
    let rule = [
        text(1, name),
        text(2, CHAIN),
        nested(
            4,
            &[
                // The protocol behind that of IP.
                expression("meta", &[register(1), number(2, 16)]),
                compared(equal, TCP),
                // One byte of its head.
                expression(
                    "payload",
                    &[register(1), number(2, 2), number(3, FLAGS_AT), number(4, 1)],
                ),
                expression(
                    "bitwise",
                    &[
                        register(1),
                        register(2),
                        number(3, 1),
                        nested(4, &[value(RESET)]),
                        nested(5, &[value(0)]),
                    ],
                ),
                compared(unequal, 0),
                // Register 0 is the verdict, and verdict 0 to drop it.
                expression(
                    "immediate",
                    &[number(1, 0), nested(2, &[nested(2, &[number(1, 0)])])],
                ),
            ],
        ),
    ]
    .concat();
    let made = REQUEST | ACKNOWLEDGE | CREATE;
    vec![
        message(NEW_TABLE, made, INET, &table),
        message(NEW_CHAIN, made, INET, &chain),
        message(NEW_RULE, made | APPEND, INET, &rule),
    ]
}

fn message(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    message_about(kind, flags, family, 0, attributes)
}

fn message_about(kind: u16, flags: u16, family: u8, subsystem: u16, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(20 + attributes.len()).expect("messages are short");
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Neither a number of its own nor a sender.
    bytes.extend([0; 8]);
    bytes.extend([family, 0]);
    bytes.extend(subsystem.to_be_bytes());
    bytes.extend(attributes);
    bytes
}

fn attribute(kind: u16, contents: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + contents.len()).expect("attributes are short");
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(contents);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn text(kind: u16, contents: &[u8]) -> Vec<u8> {
    attribute(kind, &[contents, b"\0"].concat())
}

fn number(kind: u16, number: u32) -> Vec<u8> {
    attribute(kind, &number.to_be_bytes())
}

fn nested(kind: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
    const NESTED: u16 = 0x8000;
    attribute(kind | NESTED, &attributes.concat())
}

fn expression(name: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
    nested(1, &[text(1, name.as_bytes()), nested(2, attributes)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart_however_they_end() {
        let two = [
            message(NEW_TABLE, 0, INET, &text(1, b"CRIU-1")),
            message(DONE, 0, 0, &[]),
        ]
        .concat();
        let found = split(&two);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].0, found[1].0), (NEW_TABLE, DONE));
        assert_eq!(named(&found[0].1[4..]).as_deref(), Some(&b"CRIU-1"[..]));
        for length in 0..two.len() {
            assert!(split(&two[..length]).len() < 2, "{length}");
        }
        for length in 0..found[0].1.len() {
            // Whatever it makes of it, it ends.
            drop(named(&found[0].1[..length]));
        }
        // A message that says it has no length is the last one.
        assert_eq!(split(&[0; 40]), []);
    }
}
