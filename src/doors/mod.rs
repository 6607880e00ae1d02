//! Translates. Each door is two functions: facts in, answer out. All of them ask the same limiter.
//!
//! Forward-auth for other proxies and Envoy's rate limit service will be doors beside these.

#[cfg(feature = "server")]
pub mod body;
#[cfg(feature = "server")]
pub mod check;
pub mod client_ip;
pub mod costs;
#[cfg(feature = "server")]
pub mod exchange;
pub mod facts;
#[cfg(feature = "server")]
pub mod framing;
#[cfg(feature = "server")]
pub mod gateway;
#[cfg(feature = "server")]
pub mod header_names;
pub mod headers;
#[cfg(feature = "server")]
pub mod health;
#[cfg(feature = "server")]
pub mod json;
pub mod judged;
#[cfg(feature = "jwt")]
pub mod jwt;
pub mod middleware;
#[cfg(feature = "server")]
pub mod near;
pub mod problem;
#[cfg(feature = "server")]
pub mod reserved;
#[cfg(feature = "server")]
pub mod trace;
#[cfg(feature = "server")]
pub mod wire;
