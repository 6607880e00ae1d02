//! The register that a fleet shares, and its one merge. Each carrier (the disk, the key in Redis, the channel, a peer) only
//! moves registers; what two of them come to is decided here.
//!
//! A register is the newest record by a total order, the lowerings that its author had not seen, and the values of the
//! environment that the fleet has seen. The merge is commutative, associative and idempotent: registers may meet in any
//! order and any number of times, with one outcome. It never raises: a lowering that the newest record does not follow
//! stays in the register until a record follows it, and [`Register::unheard_share`] is what it asks for meanwhile.

use std::cmp::Reverse;

use sha2::{Digest, Sha256};

use super::lineage::{Lineage, Mark, Marks, Origin, Stamp};
use super::seen::Seen;
use super::{Lowering, Record};
use crate::limiter::decision::Backend;
use crate::limiter::rollout::Percent;

/// What an instance knows of the rollout, and what it hands on.
#[derive(Clone, Debug, PartialEq)]
pub struct Register {
    /// The newest record.
    pub record: Record,
    /// Lowerings that the record does not follow.
    pub unheard: Marks,
    /// The values of the environment that the fleet has seen.
    pub seen: Seen,
}

/// The place of a record in the total order. Records that differ in anything but their lineage and their moment differ in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place<'a> {
    epoch: u64,
    revision: u64,
    /// The lower share wins: the share that it asks for, the flag that asks for less, the share beside the flag.
    wanted: Reverse<Percent>,
    memory: bool,
    percent: Reverse<Percent>,
    /// In microseconds since the epoch.
    updated_at: i64,
    updated_by: &'a str,
    reason: &'a str,
}

impl Record {
    /// Its place in the total order.
    pub fn place(&self) -> Place<'_> {
        Place {
            epoch: self.epoch,
            revision: self.revision,
            wanted: Reverse(self.wanted()),
            memory: self.backend == Backend::Memory,
            percent: Reverse(self.percent),
            updated_at: self.updated_at.timestamp_micros(),
            updated_by: &self.updated_by,
            reason: &self.reason,
        }
    }

    /// Whether this one is newer: by epoch, revision, the lower share, the flag, the time, the author, the reason.
    pub fn supersedes(&self, other: &Self) -> bool {
        self.place() > other.place()
    }

    /// Whether both are one change.
    pub fn is_same(&self, other: &Self) -> bool {
        self.place() == other.place()
    }

    /// The change that made it.
    pub fn stamp(&self) -> Stamp {
        Stamp { epoch: self.epoch, revision: self.revision }
    }

    /// The changes that it follows.
    pub fn follows(&self) -> Lineage {
        self.lineage.clone().unwrap_or_else(|| Lineage::of_older_version(self.epoch))
    }

    /// As the change of `origin` that follows everything in `register`. `lowers`: a requested
    /// change that lowers, so no record that does not follow it takes its place in silence.
    pub fn made_by(self, origin: Origin, register: &Register, lowers: bool) -> Self {
        let last = self.stamp();
        let lowered = lowers.then(|| Lowering { at: last, points: self.wanted().basis_points() });
        let lineage = register.record.follows().with(&register.unheard, origin, Mark { last, lowered });
        Self { lineage: Some(lineage), ..self }
    }
}

impl Record {
    /// The same change, which follows these lowerings as well.
    pub fn following(mut self, unheard: &Marks) -> Self {
        if let Some(lineage) = &mut self.lineage {
            lineage.marks.join(unheard);
        }
        self
    }
}

impl Register {
    /// Of a record that has met no other.
    pub fn new(record: Record) -> Self {
        Self { record, unheard: Marks::default(), seen: Seen::default() }
    }

    /// What this register and another come to.
    pub fn merge(&self, other: &Self) -> Self {
        let (newer, older) = match other.record.supersedes(&self.record) {
            true => (other, self),
            false => (self, other),
        };
        let mut record = newer.record.clone();
        if newer.record.is_same(&older.record) {
            // A moment that one of them has reached stays with the other: each reaches it for itself.
            if (older.record.effective_at, older.record.previous) > (record.effective_at, record.previous) {
                (record.effective_at, record.previous) = (older.record.effective_at, older.record.previous);
            }
            let mut lineage = newer.record.follows();
            lineage.join(&older.record.follows());
            record.lineage =
                Some(lineage).filter(|_| record.lineage.is_some() || older.record.lineage.is_some());
        }
        let mut unheard = newer.unheard.clone();
        unheard.join(&older.unheard);
        unheard.join(&older.record.follows().marks);
        unheard.keep_unknown_to(&record.follows());
        Self { record, unheard, seen: self.seen.join(&other.seen) }
    }

    /// The lowest share of a lowering that the record does not follow, if that is below what the record asks for; `None`: the
    /// record is in force as it is.
    pub fn unheard_share(&self) -> Option<Percent> {
        let share = Percent::from_basis_points(self.unheard.lowest()?)?;
        (share < self.record.wanted()).then_some(share)
    }

    /// The record that puts an unheard lowering above the one that does not follow it: the next epoch, at its share. `of` is
    /// a record that asked for that share, whose author and reason it keeps. Instances that come to it from the same
    /// records make the same one.
    pub fn standing(&self, of: &Record) -> Option<Record> {
        let share = self.unheard_share()?;
        let now = &self.record;
        let (actor, reason) = match of.wanted() == share {
            true => (of.updated_by.as_str(), of.reason.clone()),
            false => ("fleet", format!("a lowering to {share} % that the raise did not follow")),
        };
        let backend = if of.wanted() == share { of.backend } else { now.backend };
        let percent = if of.wanted() == share { of.percent } else { share };
        let next = now.followed_by(backend, percent, actor, &reason);
        Some(Record { updated_at: now.updated_at.max(of.updated_at), ..next })
    }

    /// The lowerings that the record does not follow, as a short digest. Empty without any.
    pub fn unheard_text(&self) -> String {
        if self.unheard.is_empty() {
            return String::new();
        }
        let text = serde_json::to_vec(&self.unheard).unwrap_or_default();
        let digest = Sha256::digest(text);
        digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether this register has anything that the other lacks.
    pub fn has_more_than(&self, other: &Self) -> bool {
        let both = other.merge(self);
        !both.record.is_same(&other.record)
            || both.record.follows() != other.record.follows()
            || both.unheard != other.unheard
            || both.seen != other.seen
    }
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
