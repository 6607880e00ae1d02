//! Bounds how many requests hold a connection to the upstream at once, over all workers.
//!
//! Without a bound, 200 clients with 100 HTTP/2 streams each opened 11 015 connections and took 473 MB. A request beyond the
//! bound waits in a short queue, in the order of arrival; a request beyond the queue, or that waits too long, gets 503.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// How many connections to the upstream may carry a request, and how many requests may wait for one.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections that carry a request, over all workers and addresses. Idle ones are bounded per worker and address.
    pub connections: usize,
    /// Requests that wait for one.
    pub queue: usize,
    /// The longest that a request waits.
    pub queue_timeout: Duration,
}

/// A client whose packet is lost twice takes nothing for 0.6 s with Linux' shortest retransmission time (0.2 s, doubled): the
/// second retransmission is under way by then. A shorter patience would cut clients of slow networks.
const LEAST_PATIENCE: Duration = Duration::from_millis(500);

impl Default for Bounds {
    fn default() -> Self {
        Self { connections: 1024, queue: 1024, queue_timeout: Duration::from_secs(1) }
    }
}

/// The permits of one upstream.
pub(super) struct Capacity {
    connections: Arc<Semaphore>,
    queue: Semaphore,
    queue_timeout: Duration,
}

/// The right to hold one connection. Dropping it admits the next request.
pub(super) type Permit = OwnedSemaphorePermit;

impl Capacity {
    pub(super) fn new(bounds: Bounds) -> Self {
        let permits = |count: usize| Semaphore::new(count.min(Semaphore::MAX_PERMITS));
        Self {
            connections: Arc::new(permits(bounds.connections)),
            queue: permits(bounds.queue),
            queue_timeout: bounds.queue_timeout,
        }
    }

    /// Whether all connections are in use, so that requests wait or are refused.
    pub(super) fn is_full(&self) -> bool {
        self.connections.available_permits() == 0
    }

    /// For how long a client may take nothing of its answer while others wait for its connection: half of the time that they
    /// wait, so that they get it; at least [`LEAST_PATIENCE`].
    pub(super) fn patience_when_full(&self) -> Duration {
        (self.queue_timeout / 2).max(LEAST_PATIENCE)
    }

    /// A permit, after a wait where all are in use; `None` when the queue is full or the wait was too long.
    pub(super) async fn acquire(&self) -> Option<Permit> {
        if let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() {
            return Some(permit);
        }
        let _waiting = self.queue.try_acquire().ok()?;
        timeout(self.queue_timeout, Arc::clone(&self.connections).acquire_owned()).await.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_when_full_has_a_floor() {
        for (queue_ms, patience_ms) in [(0, 500), (1_000, 500), (10_000, 5_000)] {
            let queue_timeout = Duration::from_millis(queue_ms);
            let capacity = Capacity::new(Bounds { connections: 1, queue: 1, queue_timeout });
            assert_eq!(capacity.patience_when_full(), Duration::from_millis(patience_ms));
        }
    }

    #[tokio::test]
    async fn request_beyond_the_bound_waits_and_beyond_the_queue_fails() {
        let capacity =
            Capacity::new(Bounds { connections: 1, queue: 1, queue_timeout: Duration::from_secs(1) });
        let first = capacity.acquire().await.unwrap();
        let waits = capacity.acquire();
        tokio::pin!(waits);
        assert!(futures_util::poll!(waits.as_mut()).is_pending());
        assert!(futures_util::poll!(Box::pin(capacity.acquire())).is_ready(), "the queue is full");
        drop(first);
        let second = waits.await.unwrap();
        let began = tokio::time::Instant::now();
        assert!(capacity.acquire().await.is_none());
        assert!(began.elapsed() >= Duration::from_secs(1));
        drop(second);
        assert!(capacity.acquire().await.is_some());
    }
}
