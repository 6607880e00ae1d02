#[cfg(feature = "server")]
pub mod config;
pub mod limiter;
#[cfg(feature = "redis")]
pub mod redis;
