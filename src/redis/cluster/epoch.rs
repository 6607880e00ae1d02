//! Which maps are out of date: each failover and each move of slots makes a higher epoch, and a node that was cut off tells the
//! map of an epoch before.

use std::time::Duration;

use tokio::time::Instant;

/// When nodes have told lower epochs alone for so long the cluster is another one: it was made again.
const MADE_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// The highest epoch that a node has told.
#[derive(Debug, Default)]
pub(super) struct Epochs {
    highest: u64,
    /// Since when they are lower.
    lower_since: Option<Instant>,
}

impl Epochs {
    /// Whether the map of a node that knows this epoch may be used. One that does not tell its epoch is believed.
    pub(super) fn accept(&mut self, epoch: Option<u64>, now: Instant) -> bool {
        let Some(epoch) = epoch else { return true };
        if epoch < self.highest {
            let since = *self.lower_since.get_or_insert(now);
            if now.duration_since(since) < MADE_AGAIN_AFTER {
                return false;
            }
        }
        (self.highest, self.lower_since) = (epoch, None);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_of_a_lower_epoch_is_refused_until_no_other_is_told() {
        let (mut epochs, start) = (Epochs::default(), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        assert!(epochs.accept(Some(7), at(0)) && epochs.accept(Some(7), at(1)) && epochs.accept(None, at(1)));
        assert!(!epochs.accept(Some(6), at(2)) && !epochs.accept(Some(6), at(61)));
        assert!(epochs.accept(Some(8), at(61)));
        assert!(!epochs.accept(Some(7), at(62)), "the minute begins again");
        assert!(!epochs.accept(Some(1), at(121)) && epochs.accept(Some(1), at(122)), "it was made again");
        assert!(epochs.accept(Some(1), at(123)));
    }
}
