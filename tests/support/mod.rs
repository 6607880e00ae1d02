//! What tests start: real redis-servers, the real binary, an upstream, a relay that spoils a connection.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "shared by path, not exported")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper stops its test at the first surprise"
)]

pub mod certificates;
pub mod frames;
pub mod full_disk;
pub mod installed;
pub mod nginx;
pub mod outage;
pub mod process;
pub mod raw;
pub mod recorder;
pub mod redis_cluster;
pub mod redis_server;
pub mod relay;
pub mod schema;
pub mod sentinel;
pub mod shifted_clock;
pub mod shrink;
pub mod slot_endpoint;
pub mod structured;
pub mod upstream;

use std::time::{Duration, Instant};

/// Waits until `done` says so, at most ten seconds.
pub async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done().await {
        assert!(Instant::now() < deadline, "waited twenty seconds in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
