//! A decision: made, or waiting for the shared store. One that has begun completes without its client.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::Limiter;
use super::decision::Decision;
use super::store::Store;

/// A decision that is made, or that waits for the shared store.
pub enum Check {
    /// Made; `None` once it was taken.
    Decided(Option<Decision>),
    /// Under way. On the heap, so that the common case stays small.
    Asking(PendingDecision),
}

impl Future for Check {
    type Output = Decision;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Decision> {
        match self.get_mut() {
            // Polled after it was ready, which no future allows: it stays pending.
            Self::Decided(decision) => decision.take().map_or(Poll::Pending, Poll::Ready),
            Self::Asking(pending) => pending.poll(context),
        }
    }
}

/// The steps of a decision, from the charge in memory to the penalty.
pub type DecisionFuture = Pin<Box<dyn Future<Output = Decision> + Send>>;

/// A decision that waits for the shared store. When it is dropped meanwhile, because the client disconnected, the rest of
/// it runs in the background: the store may have charged the request already, and what follows (refund, local debt,
/// traffic share, penalty) would be lost with the client.
#[must_use = "a decision makes progress only when it is polled"]
pub struct PendingDecision {
    /// `None` once it is made.
    steps: Option<DecisionFuture>,
    /// Where the rest runs; `None` for a peek, which leaves nothing behind.
    background: Option<Arc<dyn Background>>,
    begun: bool,
}

impl PendingDecision {
    pub(super) fn new(steps: DecisionFuture, background: Option<Arc<dyn Background>>) -> Self {
        Self { steps: Some(steps), background, begun: false }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Decision> {
        // Taken out meanwhile: after a panic there is nothing to complete.
        let Some(mut steps) = self.steps.take() else { return Poll::Pending };
        self.begun = true;
        let outcome = steps.as_mut().poll(context);
        if outcome.is_pending() {
            self.steps = Some(steps);
        }
        outcome
    }
}

impl Drop for PendingDecision {
    fn drop(&mut self) {
        // Before the first poll nothing is charged and nothing asked.
        if let (Some(steps), Some(background), true) = (self.steps.take(), &self.background, self.begun) {
            background.complete(steps);
        }
    }
}

/// Runs what is left of decisions without their clients.
pub(super) trait Background: Send + Sync {
    fn complete(&self, decision: DecisionFuture);
}

impl<S: Store> Background for Limiter<S> {
    fn complete(&self, decision: DecisionFuture) {
        if let Some(store) = &self.store {
            store.complete(decision);
        }
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
