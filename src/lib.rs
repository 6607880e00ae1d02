//! tidegate
#[cfg(feature = "server")]
pub mod app;
#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod control;
pub mod doors;
pub mod limiter;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "server")]
pub mod telemetry;
