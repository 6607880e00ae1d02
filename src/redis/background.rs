//! Work that no request waits for: refunds, and decisions whose clients disconnected. Each kind has a bound of its own, so
//! that a flood of hang-ups cannot crowd out refunds.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// The most refunds under way at once. Beyond them this process alone notes what is given back.
const MOST_REFUNDS: usize = 1_024;
/// The most decisions without a client at once: as many as the calls that `redis.max_in_flight` allows one server unless
/// it is set, at some two kilobytes each. Each ends within `REDIS_TIMEOUT_MS`.
const MOST_DECISIONS: usize = 1_024;

/// Bounds the work in the background.
pub(super) struct Background {
    /// Refunds of charges that another node of a cluster made useless.
    pub(super) refunds: Bound,
    /// Decisions whose clients disconnected.
    pub(super) decisions: Bound,
}

impl Default for Background {
    fn default() -> Self {
        Self { refunds: Bound::of(MOST_REFUNDS), decisions: Bound::of(MOST_DECISIONS) }
    }
}

/// So many tasks at once.
pub(super) struct Bound(Arc<Semaphore>);

impl Bound {
    fn of(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most)))
    }

    /// Runs `work` on the runtime of this thread. False when the bound is reached, or there is no runtime: a future may be
    /// dropped anywhere. Then `work` is dropped.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> bool {
        let (Ok(permit), Ok(runtime)) = (Arc::clone(&self.0).try_acquire_owned(), Handle::try_current())
        else {
            return false;
        };
        runtime.spawn(async move {
            work.await;
            drop(permit);
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn bound_is_kept_and_freed_when_a_task_ends() {
        let bound = Bound::of(2);
        assert!(bound.spawn(pending()) && bound.spawn(ready(())));
        assert!(!bound.spawn(ready(())));
        tokio::task::yield_now().await;
        assert!(bound.spawn(ready(())), "the second has ended");
    }

    #[test]
    fn work_is_dropped_where_there_is_no_runtime() {
        let bound = Bound::of(1);
        let witness = Arc::new(());
        let held = Arc::clone(&witness);
        assert!(!bound.spawn(async move { drop(held) }));
        assert_eq!((Arc::strong_count(&witness), bound.0.available_permits()), (1, 1));
    }
}
