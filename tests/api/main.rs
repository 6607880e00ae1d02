//! The real binary over real sockets, as its users meet it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

#[path = "../support/mod.rs"]
mod support;

mod admin;
mod checks;
mod faults;
mod fleet;
mod gateway;
mod life;
mod limits;
mod logs;
mod rollout;
mod rules;
mod secrets;
mod tls;
