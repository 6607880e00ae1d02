//! The commands that a person runs, by the real binary: what they say, and their exit codes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

#[path = "../support/mod.rs"]
mod support;

mod clusters;
mod cost;
mod doctor;
mod load_test;
mod one_cause;
mod output;
mod rollout;
mod run;
mod sentinels;
mod servers;
