//! The thread of a limiter that an application builds: it removes drained keys and, with Redis, keeps the connection.

use std::io;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use crate::limiter::Limiter;
use crate::limiter::store::Store;

/// Name of the thread, at most 15 bytes: the kernel cuts longer ones.
pub(super) const THREAD: &str = "tidegate";
/// Every shard of the table is swept once in this time.
const ROUND: Duration = Duration::from_secs(10);

/// Starts the thread of a limiter that counts in memory. It ends within a fraction of a second after the limiter is dropped.
pub(super) fn sweep<S: Store>(limiter: &Arc<Limiter<S>>) -> io::Result<()> {
    let pace = pace(limiter);
    let limiter = Arc::downgrade(limiter);
    let body = move || {
        for shard in 0.. {
            thread::sleep(pace);
            if sweep_one(&limiter, shard).is_none() {
                return;
            }
        }
    };
    thread::Builder::new().name(THREAD.to_owned()).spawn(body).map(drop)
}

/// Starts the thread of a limiter that counts in Redis: it runs `connection` and sweeps, until the limiter is dropped. The
/// runtime is its own, so that a limiter may be built outside of one and outlive any.
#[cfg(feature = "redis")]
pub(super) fn connect_and_sweep<S: Store>(
    limiter: &Arc<Limiter<S>>,
    connection: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let pace = pace(limiter);
    let limiter = Arc::downgrade(limiter);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let sweeping = async move {
        for shard in 0.. {
            tokio::time::sleep(pace).await;
            if sweep_one(&limiter, shard).is_none() {
                return;
            }
        }
    };
    let body = move || {
        runtime.block_on(async {
            tokio::select! {
                () = connection => {}
                () = sweeping => {}
            }
        });
    };
    thread::Builder::new().name(THREAD.to_owned()).spawn(body).map(drop)
}

fn pace<S: Store>(limiter: &Limiter<S>) -> Duration {
    ROUND / u32::try_from(limiter.memory().shards()).unwrap_or(1).max(1)
}

/// Sweeps one shard. `None` when the limiter is dropped.
fn sweep_one<S: Store>(limiter: &Weak<Limiter<S>>, shard: usize) -> Option<()> {
    let limiter = limiter.upgrade()?;
    limiter.sweep(shard % limiter.memory().shards());
    Some(())
}
