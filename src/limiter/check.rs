//! A decision on its way.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::decision::Decision;

/// A decision that is made, or that waits for the shared store.
pub enum Check {
    /// Made; `None` once it was taken.
    Decided(Option<Decision>),
    /// Under way. On the heap, so that the common case stays small.
    Asking(Pin<Box<dyn Future<Output = Decision> + Send>>),
}

impl Future for Check {
    type Output = Decision;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Decision> {
        match self.get_mut() {
            // Polled after it was ready, which no future allows: it stays pending.
            Self::Decided(decision) => decision.take().map_or(Poll::Pending, Poll::Ready),
            Self::Asking(asking) => asking.as_mut().poll(context),
        }
    }
}
