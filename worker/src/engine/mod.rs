//! What dumps and restores a process tree. CRIU is run as a program: every option it has is within reach, its errors are
//! in its log, and whatever happens to it happens to a process of its own.

pub mod criu;
pub mod hook;
