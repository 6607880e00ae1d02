//! The record as instances hand it on: in Redis, through the channel, from peer to peer.

use serde::{Deserialize, Serialize};

use crate::control::record::{Record, RememberedEnv, short};
use crate::doors::json::object;
use crate::redis::RecordOrder;

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
    pub(super) fn read(text: &[u8]) -> Option<Self> {
        // A letter of a reason that got damaged is no reason to lose the record.
        object::<Self>(String::from_utf8_lossy(text).as_bytes()).ok()?.sound()
    }

    /// Itself, its words as ours would be, unless it says one thing in front and another behind, or counts what nobody
    /// counts to.
    pub(super) fn sound(self) -> Option<Self> {
        let RecordOrder { epoch, revision, points } = self.order();
        let agrees = (epoch, revision, points) == (self.epoch, self.revision, self.points);
        let (updated_by, reason) = (short(&self.record.updated_by), short(&self.record.reason));
        let record = Record { updated_by, reason, ..self.record };
        (agrees && epoch <= Record::LAST && revision <= Record::LAST).then_some(Self { record, ..self })
    }
}

pub(super) fn order(record: &Record) -> RecordOrder {
    RecordOrder { epoch: record.epoch, revision: record.revision, points: record.wanted().basis_points() }
}
