//! The commands that a person runs, by the real binary: what they say, and their exit codes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

#[path = "../support/mod.rs"]
mod support;

mod cost;
mod doctor;
mod one_cause;
mod rollout;
mod run;
mod servers;
