//! The record as instances hand it on: in Redis, through the channel, from peer to peer.

use serde::{Deserialize, Serialize};

use crate::control::record::{Record, RememberedEnv};
use crate::redis::RecordOrder;

/// Nobody makes so many changes: what says so is no record, and the next change would have no number.
const MOST: u64 = 1 << 46;

/// A record, and the environment that it was held against last. What it is ordered by stands in front, for the script.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Shared {
    epoch: u64,
    revision: u64,
    points: u16,
    pub(super) record: Record,
    pub(super) remembered: Option<RememberedEnv>,
}

impl Shared {
    pub(super) fn new(record: Record, remembered: Option<RememberedEnv>) -> Self {
        let RecordOrder { epoch, revision, points } = order(&record);
        Self { epoch, revision, points, record, remembered }
    }

    /// What it is ordered by.
    pub(super) fn order(&self) -> RecordOrder {
        order(&self.record)
    }

    /// As text, one line.
    pub(super) fn text(&self) -> Option<String> {
        serde_json::to_string(self).ok()
    }

    /// Of a text that is one; `None` for what no instance wrote.
    pub(super) fn read(text: &str) -> Option<Self> {
        serde_json::from_str::<Self>(text).ok()?.sound()
    }

    /// Itself, unless it says one thing in front and another behind.
    pub(super) fn sound(self) -> Option<Self> {
        let RecordOrder { epoch, revision, points } = self.order();
        let agrees = (epoch, revision, points) == (self.epoch, self.revision, self.points);
        (agrees && epoch < MOST && revision < MOST).then_some(self)
    }
}

pub(super) fn order(record: &Record) -> RecordOrder {
    RecordOrder { epoch: record.epoch, revision: record.revision, points: record.wanted().basis_points() }
}
