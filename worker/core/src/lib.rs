//! The decisions of Reprieve: plain functions from facts to values, with their reasons inside.
//!
//! Nothing here reads a clock, the environment, a file or a socket (`clippy.toml` bans them); the worker brings the facts
//! and carries the decisions out.
#![forbid(unsafe_code)]

pub mod capacity;
pub mod checkup;
pub mod clock;
pub mod command;
pub mod compat;
pub mod cpu;
pub mod deadline;
pub mod document;
pub mod effort;
pub mod episode;
pub mod files;
pub mod head;
pub mod instances;
pub mod launch;
pub mod lifecycle;
pub mod manifest;
pub mod moved;
pub mod notice;
pub mod pace;
pub mod planner;
pub mod preserve;
pub mod promise;
pub mod report;
pub mod retention;
pub mod rollback;
pub mod selection;
#[cfg(test)]
mod simulation;
pub mod sweep;
pub mod way;
pub mod worker;
