//! The control socket: how `reprieve checkpoint` and `reprieve status` talk to the supervisor of the same container.

pub mod client;
pub mod protocol;
pub mod server;
