//! The rollout's record: what is to be in force, since when, by whom, why; and which of two records is the newer.
//!
//! [`merge`] says what two instances come to that know different things, [`environment`] what a start makes of it. [`Steering`]
//! changes the record and puts it in force, a [`Carrier`] takes it to the other instances, and `control/audit.rs` to the disk. A
//! stepwise plan will steer through [`Steering`] as well: its latch belongs into the record, beside what a rollback sets.

mod carrier;
mod change;
mod environment;
mod force;
mod judge;
mod lineage;
mod meet;
mod merge;
mod raise;
mod seen;
mod steering;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use carrier::{Applied, Carrier, CarrierFault, Raised, Source};
pub use change::{Change, Foreseen, Outcome, Refusal};
pub use environment::{Considered, Environment, RememberedEnv};
pub use lineage::{Lineage, Lowering, Mark, Marks, Origin, Stamp};
pub use merge::{Place, Register};
pub use seen::{Seen, Value};
pub use steering::{LostRaise, Since, Steering};

use crate::limiter::clock::Micros;
use crate::limiter::decision::Backend;
use crate::limiter::rollout::Percent;

/// What an operator sees and changes. As it stands on the disk, in Redis, and between instances.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The flag: `memory` switches the whole percentage off.
    #[serde(with = "flag")]
    pub backend: Backend,
    /// Share of the keys that Redis decides when the flag is `redis`.
    #[serde(with = "share")]
    pub percent: Percent,
    /// Counts rollbacks and lowerings, so that they win over raises made elsewhere.
    pub epoch: u64,
    /// Counts changes.
    pub revision: u64,
    /// When it was changed last.
    pub updated_at: DateTime<Utc>,
    /// By whom.
    pub updated_by: String,
    /// Why.
    pub reason: String,
    /// When a raise comes into force, in microseconds of the fleet's clock; `None`: at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective_at: Option<Micros>,
    /// The share in force until then.
    #[serde(default, with = "share")]
    pub previous: Percent,
    /// The changes that it follows; `None`: a version wrote it that kept none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<Lineage>,
}

impl Record {
    /// The last number that a record may have: nobody makes so many changes, and a double holds it.
    pub const LAST: u64 = (1 << 46) - 1;

    /// What is in force where nobody has said anything yet: no change was made, and none is counted.
    pub fn initial(percent: Percent, reason: &str) -> Self {
        Self {
            backend: Backend::Redis,
            percent,
            epoch: 0,
            revision: 1,
            updated_at: now(),
            updated_by: "env".to_owned(),
            reason: reason.to_owned(),
            effective_at: None,
            previous: Percent::NONE,
            lineage: Some(Lineage::default()),
        }
    }

    /// The share that this record asks for.
    pub fn wanted(&self) -> Percent {
        match self.backend {
            Backend::Memory => Percent::NONE,
            Backend::Redis => self.percent,
        }
    }

    /// The share that is to be in force at `now`: a raise may be announced and not have come yet.
    pub fn due(&self, now: Micros) -> Percent {
        match self.effective_at {
            Some(at) if at > now => self.previous.min(self.wanted()),
            _ => self.wanted(),
        }
    }

    /// The entity tag: changes with every revision, and is not that of another change made at once elsewhere.
    pub fn etag(&self) -> String {
        let Self { epoch, revision, updated_by, reason, .. } = self;
        let digest = Sha256::new()
            .chain_update(self.updated_at.timestamp_micros().to_be_bytes())
            .chain_update(updated_by)
            .chain_update([0])
            .chain_update(reason)
            .finalize();
        let [a, b, c, ..] = digest.as_slice() else { return String::new() };
        let points = self.percent.basis_points();
        format!("\"{epoch}-{revision}-{}-{points}-{a:02x}{b:02x}{c:02x}\"", self.backend.as_str())
    }

    /// The number after this one; the last has none. Of two records with the last one the lower share still wins.
    fn after(number: u64) -> u64 {
        number.saturating_add(1).min(Self::LAST.max(number))
    }

    /// When it was changed last, in RFC 3339.
    pub fn updated_at_text(&self) -> String {
        self.updated_at.to_rfc3339_opts(SecondsFormat::Millis, true)
    }

    /// The change after this one: of the next revision, and of the next epoch if it lowers.
    fn followed_by(&self, backend: Backend, percent: Percent, actor: &str, reason: &str) -> Self {
        let next = Self { backend, percent, ..self.clone() };
        Self {
            epoch: if next.wanted() < self.wanted() { Self::after(self.epoch) } else { self.epoch },
            revision: Self::after(self.revision),
            updated_at: now(),
            updated_by: short(actor),
            reason: short(reason),
            effective_at: None,
            previous: self.wanted(),
            ..next
        }
    }
}

/// Now, as exactly as records are compared.
fn now() -> DateTime<Utc> {
    to_the_microsecond(Utc::now())
}

/// A time without what is less than a microsecond.
pub(crate) fn to_the_microsecond(time: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(time.timestamp_micros()).unwrap_or(time)
}

/// As much of a reason as is kept: a rollback is not refused for its words, and a disk is not filled with them. On one line,
/// and nothing in it that moves a terminal's cursor or turns its text around: people read it there.
pub(crate) fn short(reason: &str) -> String {
    const MOST: usize = 500;
    let turns =
        |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    reason.chars().map(|c| if c.is_control() || turns(c) { ' ' } else { c }).take(MOST).collect()
}

/// The flag by the contract's words.
pub(crate) mod flag {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::limiter::decision::Backend;

    pub(crate) fn serialize<S: Serializer>(backend: &Backend, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(backend.as_str())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Backend, D::Error> {
        match String::deserialize(from)?.as_str() {
            "redis" => Ok(Backend::Redis),
            "memory" => Ok(Backend::Memory),
            other => Err(D::Error::custom(format!("\"{other}\" is no backend"))),
        }
    }
}

/// A share as a number from 0 to 100.
pub(crate) mod share {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::limiter::rollout::Percent;

    pub(crate) fn serialize<S: Serializer>(percent: &Percent, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(percent.as_f64())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Percent, D::Error> {
        Percent::try_from(f64::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// A raise that lost, for the admin API.
#[derive(Serialize)]
pub struct LostRaiseView<'a> {
    percent: f64,
    epoch: u64,
    revision: u64,
    updated_at: String,
    updated_by: &'a str,
    reason: &'a str,
    /// The percentage that is in its place.
    won_percent: f64,
    /// Who set that.
    won_by: &'a str,
}

impl<'a> From<&'a LostRaise> for LostRaiseView<'a> {
    fn from(LostRaise { lost, won }: &'a LostRaise) -> Self {
        Self {
            percent: lost.percent.as_f64(),
            epoch: lost.epoch,
            revision: lost.revision,
            updated_at: lost.updated_at_text(),
            updated_by: &lost.updated_by,
            reason: &lost.reason,
            won_percent: won.wanted().as_f64(),
            won_by: &won.updated_by,
        }
    }
}

/// The record for the admin API.
#[derive(Serialize)]
pub struct RecordView<'a> {
    backend: &'static str,
    percent: f64,
    epoch: u64,
    revision: u64,
    updated_at: String,
    updated_by: &'a str,
    reason: &'a str,
    /// When a raise comes into force; `null`: it is in force.
    effective_at: Option<String>,
}

impl<'a> From<&'a Record> for RecordView<'a> {
    fn from(record: &'a Record) -> Self {
        Self {
            backend: record.backend.as_str(),
            percent: record.percent.as_f64(),
            epoch: record.epoch,
            revision: record.revision,
            updated_at: record.updated_at_text(),
            updated_by: &record.updated_by,
            reason: &record.reason,
            effective_at: record.effective_at.map(super::status::time),
        }
    }
}

#[cfg(test)]
mod explore_tests;
#[cfg(test)]
mod explore_world;
#[cfg(test)]
mod fleet_tests;
#[cfg(test)]
mod merge_tests_support;
#[cfg(test)]
mod order_tests;
#[cfg(test)]
mod tests;
