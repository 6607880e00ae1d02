//! Shares. The only room that speaks Redis: one script call decides for all policies of a subject.

pub mod charge;
mod fault;
mod link;
mod offset;
mod secret;
pub mod target;

pub use link::{LinkState, Options, RedisStore};
pub use secret::derive;
