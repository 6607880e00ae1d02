//! Checks signatures off the serving threads, a few at a time over the whole process.
//!
//! A signature by a P-384 key takes 1.9 ms. On a serving thread, each check would delay every client of that thread: 64
//! connections of forged tokens took the median of others to 59 ms. Half of the processor's cores are left to serve.

use std::sync::Arc;
use std::thread::available_parallelism;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::{Claims, Verifier};
use crate::limiter::token::TokenOutcome;

/// Bounds how many signatures are checked at once.
pub(super) struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        Self(Arc::new(Semaphore::new((cores / 2).max(1))))
    }
}

impl Verifier {
    /// The claims of `token`, checked on another thread when it is this token's turn. Without a runtime it is checked here.
    ///
    /// # Errors
    /// The reason of a refusal.
    pub(in crate::doors) async fn verify_offloaded(
        self: Arc<Self>,
        token: Vec<u8>,
    ) -> Result<Arc<Claims>, TokenOutcome> {
        // Never closed.
        let turn = Arc::clone(&self.turns.0).acquire_owned().await;
        // A request that waited before this one may have had the same token.
        if let Some(known) = self.look_up(&token, false) {
            return known.map_err(TokenOutcome::from);
        }
        let check = move || {
            let outcome = self.verify(&token).map_err(TokenOutcome::from);
            // The turn is over when the check is, also where its client is gone.
            drop(turn);
            outcome
        };
        match Handle::try_current() {
            // A check that did not finish proves nothing.
            Ok(runtime) => runtime.spawn_blocking(check).await.unwrap_or(Err(TokenOutcome::Signature)),
            Err(_) => check(),
        }
    }
}
