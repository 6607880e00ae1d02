//! The register as instances hand it on: in Redis, through the channel, from peer to peer.

use serde::{Deserialize, Serialize};

use crate::control::record::{Marks, Record, Register, RememberedEnv, Seen, short, to_the_microsecond};
use crate::doors::json::object;

/// A register. The fields that order its record come first, for the script and for versions that know no more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Shared {
    epoch: u64,
    revision: u64,
    points: u16,
    /// When the record was made, in microseconds since the epoch.
    #[serde(default)]
    at: i64,
    record: Record,
    /// The last values of the environment, for versions that keep no others.
    remembered: Option<RememberedEnv>,
    #[serde(default, skip_serializing_if = "Marks::is_empty")]
    unheard: Marks,
    #[serde(default)]
    seen: Option<Seen>,
}

impl Shared {
    pub(super) fn new(register: Register) -> Self {
        let Register { record, unheard, seen } = register;
        Self {
            epoch: record.epoch,
            revision: record.revision,
            points: record.wanted().basis_points(),
            at: record.updated_at.timestamp_micros(),
            remembered: Some(seen.last()),
            unheard,
            seen: Some(seen),
            record,
        }
    }

    /// As text, one line.
    pub(super) fn text(&self) -> Option<String> {
        serde_json::to_string(self).ok()
    }

    /// The register of a text that is one; `None` for what no instance wrote.
    pub(super) fn read(text: &[u8]) -> Option<Register> {
        // A letter of a reason that got damaged is no reason to lose the record.
        object::<Self>(String::from_utf8_lossy(text).as_bytes()).ok()?.register()
    }

    /// The register, its words as ours would be, unless it says one thing in front and another behind, or counts what no version
    /// counts to.
    pub(super) fn register(self) -> Option<Register> {
        let Self { epoch, revision, points, record, remembered, unheard, seen, .. } = self;
        let (updated_by, reason) = (short(&record.updated_by), short(&record.reason));
        let updated_at = to_the_microsecond(record.updated_at);
        let record = Record { updated_by, reason, updated_at, ..record };
        let behind = (record.epoch, record.revision, record.wanted().basis_points());
        let sound = behind == (epoch, revision, points) && epoch <= Record::LAST && revision <= Record::LAST;
        let seen = seen.or_else(|| remembered.map(Seen::of_older_version)).unwrap_or_default();
        sound.then_some(Register { record, unheard, seen })
    }
}
