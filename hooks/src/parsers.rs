//! Whatever here reads what others wrote, in one table, for those who feed it anything: the fuzzers, and the test that
//! replays what they found.

use crate::{azure, ec2_metadata, events, gcp, http};

/// Takes any bytes, and has to end without a panic.
pub type Parser = fn(&[u8]);

/// By name.
pub const PARSERS: &[(&str, Parser)] = &[
    ("event", |bytes| {
        let text = String::from_utf8_lossy(bytes);
        drop(events::read(&text, None));
        drop(events::read(&text, Some("i-0123456789abcdef0")));
    }),
    ("ec2-metadata", |bytes| {
        // Clocks that differ by anything up to the age of Unix.
        let (clocks, text) = bytes.split_at(bytes.len().min(12));
        let clock = |at: usize| {
            let bytes = clocks.iter().skip(at).take(6);
            bytes.fold(0, |number, byte| number << 8 | u64::from(*byte)) & 0x7ff_ffff_ffff
        };
        ec2_metadata::digest(&String::from_utf8_lossy(text), [clock(0), clock(6)]);
    }),
    ("gcp-metadata", |bytes| {
        gcp::digest(&String::from_utf8_lossy(bytes));
    }),
    ("azure-metadata", azure::digest),
    ("endpoint", |bytes| {
        drop(http::Endpoint::parse(&String::from_utf8_lossy(bytes)));
    }),
];
