//! What runs beside the requests: sweeping, telling of lost lines, waiting for signals to stop or to reload.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::control::reload::{Cause, Reloader};
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

/// Operators send SIGHUP to reload. Several that come during one reload are one more.
pub(super) async fn reload_on_hangup(mut hangups: Signal, reloader: Arc<Reloader>) {
    while hangups.recv().await.is_some() {
        reloader.reload(Cause::Signal).await;
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
