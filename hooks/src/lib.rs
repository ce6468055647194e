//! Where the supervisor hears of things: whatever announces that the machine is going, or asks for a checkpoint.
//!
//! A source only sends; it decides nothing, knows nothing of the supervisor and never ends it. Each is a module of its
//! own. Signals are the first; the metadata services, queues and timers join them here.
#![forbid(unsafe_code)]

pub mod signals;
