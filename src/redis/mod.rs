//! Shares. The only room that speaks Redis.

pub mod target;
