//! The data path: an app's memory in from CRIU, blocks out to the store, and back again. Memory in use is bounded by
//! the settings, never by the size of the app.
//!
//! ```text
//!  criu dump ──page server──▶ reader ──slabs──▶ workers ──blocks──▶ part writer ──parts──▶ store
//!                             (capture)         zero? keep?         (parts)
//!                                               compress, seal or digest
//!
//!  the living app ──copies──▶ one niced thread ──parts──▶ store, known to the next dump      (seed)
//!
//!  store ══ranges══▶ tasks ══blocks══▶ feeder ──pages──▶ criu restore --stream
//!           several  open, verify, unpack        (serve)
//!                    (ahead)
//! ```
//!
//! The unit of comparison is the page, the unit of compression and of verification is the block of up to
//! [`BLOCK_PAGES`] pages, the unit of storage is the part. docs/format.md describes the result for strangers.

pub(crate) mod ahead;
pub mod capture;
pub mod codec;
pub(crate) mod fingerprint;
pub mod index;
pub(crate) mod known;
pub mod load;
pub mod parts;
pub mod preserved;
pub mod seal;
pub(crate) mod seed;
pub mod serve;
pub(crate) mod tuning;

/// Bytes of a page; CRIU's images, and so ours, are tied to it. Checked against the host at start.
pub const PAGE: usize = 4096;

/// Pages in a full block.
pub const BLOCK_PAGES: usize = 64;

/// Bytes in a full block before compression.
pub const BLOCK: usize = PAGE * BLOCK_PAGES;
