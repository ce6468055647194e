//! Reprieve: runs an app as PID 1, checkpoints its process tree before the machine is taken, and resumes it on the next one.
//!
//! The library holds every part; the binary (`main.rs`) only reads settings, builds the parts and turns the outcome
//! into an exit code. Decisions live in `reprieve_core`, event sources in `reprieve_hooks`.

#[cfg(test)]
mod again;
mod aws;
pub mod callouts;
pub mod catalog;
mod checkup;
pub mod cli;
mod clocks;
pub mod control;
mod cures;
pub mod doctor;
pub mod endpoint;
pub mod engine;
pub mod failure;
mod filter;
mod host;
pub mod images;
pub mod journal;
pub mod keys;
pub mod last_push;
pub mod logging;
pub mod machine;
pub mod metrics;
mod named;
mod network;
pub mod operate;
pub mod pages;
#[cfg(any(test, fuzzing))]
pub mod parsers;
mod place;
mod preload;
mod preserve;
mod programs;
pub mod queue;
pub mod registry;
pub mod send;
pub mod settings;
#[cfg(test)]
mod simulation;
pub mod sources;
pub mod steps;
pub mod store;
#[cfg(test)]
mod stored;
pub mod supervisor;
pub mod sweeper;
pub mod sys;
pub mod traces;
mod watched;
mod web;
