//! What runs beside the requests: sweeping, telling of lost lines, waiting for signals.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::limiter::Limiter;
use crate::redis::RedisStore;
use crate::telemetry::Telemetry;

/// Forgets drained keys, a shard at a time: every shard once in ten seconds.
pub(super) async fn sweep(limiter: Arc<Limiter<RedisStore>>) {
    let shards = limiter.memory().shards();
    let mut pace = tokio::time::interval(Duration::from_secs(10) / shards as u32);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for shard in (0..shards).cycle() {
        pace.tick().await;
        limiter.sweep(shard);
    }
}

pub(super) async fn tell_of_dropped_lines(telemetry: Arc<Telemetry>) {
    let mut told = 0;
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        telemetry.tell_of_dropped_lines(&mut told);
    }
}

/// SIGHUP would end the process, and operators send it to reload: so it is heard, and told what it does not do yet.
pub(super) async fn tell_of_hangups(telemetry: Arc<Telemetry>) {
    let Ok(mut hangups) = signal(SignalKind::hangup()) else { return };
    while hangups.recv().await.is_some() {
        telemetry.warn(
            "SIGHUP: this version reads its configuration at the start only; restart it to change policies",
        );
    }
}

/// The next signal to stop.
pub(super) async fn signalled() -> std::io::Result<&'static str> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    })
}
