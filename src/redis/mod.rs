//! Shares. The only room that speaks Redis: one script call decides for all policies of a subject.

mod backoff;
pub mod charge;
mod connect;
mod fault;
mod fleet;
mod lag;
mod link;
mod offset;
mod secret;
mod supervisor;
pub mod target;

pub use link::{LinkState, Options, RedisStore};
pub use secret::derive;
