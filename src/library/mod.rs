//! Builds. The face of the library: from a few lines of an application to a limiter that maintains itself.

mod background;
mod builder;
pub mod by;
#[cfg(feature = "redis")]
mod redis;

pub use builder::{BuildError, InMemory, LimiterBuilder};
pub use by::By;
#[cfg(feature = "redis")]
pub use redis::Redis;
