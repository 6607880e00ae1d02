//! On which thread connections live. A call from another thread wakes that one and is woken by it: with the connection where
//! the calls come from it wakes nobody, which is nearly half of what a decision by Redis costs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long a first connection waits for its thread to begin. One that was made elsewhere moves later, and costs as many
/// commands again.
const BEGINS_WITHIN: Duration = Duration::from_secs(1);

/// Where connections live; nowhere in particular until it is told: then it is where the background runs.
#[derive(Default)]
pub(super) struct Home {
    at: Mutex<Option<Handle>>,
    /// Whether it will be told.
    awaited: AtomicBool,
    /// How often it was told another.
    moves: watch::Sender<u64>,
}

impl Home {
    /// Who makes a connection makes it there.
    pub(super) fn at(&self) -> Option<Handle> {
        self.at.lock().clone()
    }

    /// It is going to be told.
    pub(super) fn will_be_told(&self) {
        self.awaited.store(true, Ordering::Relaxed);
    }

    /// From now on connections live there, those in use as well as soon as they are replaced.
    pub(super) fn is(&self, home: Option<Handle>) {
        let mut at = self.at.lock();
        if at.as_ref().map(Handle::id) != home.as_ref().map(Handle::id) {
            *at = home;
            self.moves.send_modify(|moves| *moves += 1);
        }
    }

    /// Waits until it is known, if it is going to be, but not for long.
    pub(super) async fn known(&self) {
        if self.awaited.load(Ordering::Relaxed) {
            let mut moves = self.moves.subscribe();
            // Without it all goes on as well, only dearer.
            let _ = timeout(BEGINS_WITHIN, moves.wait_for(|&moves| moves > 0)).await;
        }
    }

    /// How often it was told, for [`Home::moved`].
    pub(super) fn heard(&self) -> u64 {
        *self.moves.borrow()
    }

    /// Waits until it was told another than `heard`, which each link keeps for itself.
    pub(super) async fn moved(&self, heard: &AtomicU64) {
        let mut moves = self.moves.subscribe();
        let news = moves.wait_for(|&moves| moves != heard.load(Ordering::Relaxed)).await;
        // The sender is ours, and so never gone.
        if let Ok(moves) = news {
            heard.store(*moves, Ordering::Relaxed);
        }
    }
}
