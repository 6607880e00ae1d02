//! The values of the environment that a fleet has seen, each with the epoch of its first sight: a value that the
//! rollout was lowered from is known to be old, whichever instance brings it again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::RememberedEnv;
use crate::limiter::decision::Backend;
use crate::limiter::rollout::Percent;

/// So many values are kept; those first seen longest ago go first.
const MOST: usize = 64;

/// A value of a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// Of `RATE_LIMIT_CANARY_PERCENT`.
    Percent(Percent),
    /// Of `RATE_LIMIT_BACKEND`; true: `redis`.
    Redis(bool),
}

/// Values with the epoch in which each was first seen. Two of them join to one with the earlier epochs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Row>", into = "Vec<Row>")]
pub struct Seen(BTreeMap<Value, u64>);

/// A value as it is written.
#[derive(Serialize, Deserialize)]
struct Row {
    #[serde(default, with = "super::environment::optional_flag", skip_serializing_if = "Option::is_none")]
    backend: Option<Backend>,
    #[serde(default, with = "super::environment::optional_share", skip_serializing_if = "Option::is_none")]
    percent: Option<Percent>,
    epoch: u64,
}

impl Seen {
    /// Those of a record of a version that kept the last values only: seen before everything.
    pub fn of_older_version(remembered: RememberedEnv) -> Self {
        let mut seen = Self::default();
        values(remembered).for_each(|value| seen.add(value, 0));
        seen
    }

    /// The epoch in which a value was first seen.
    pub fn first(&self, value: Value) -> Option<u64> {
        self.0.get(&value).copied()
    }

    /// A value was seen in an epoch, for the first time if that is the earliest.
    pub fn add(&mut self, value: Value, epoch: u64) {
        let first = self.0.entry(value).or_insert(epoch);
        *first = epoch.min(*first);
        while self.0.len() > MOST {
            let oldest =
                self.0.iter().min_by_key(|(value, epoch)| (**epoch, **value)).map(|(value, _)| *value);
            oldest.map(|value| self.0.remove(&value));
        }
    }

    /// What either has seen.
    pub fn join(&self, other: &Self) -> Self {
        let mut both = self.clone();
        other.0.iter().for_each(|(value, epoch)| both.add(*value, *epoch));
        both
    }

    /// The value of each variable that was first seen last, as a version reads it that keeps no more.
    pub fn last(&self) -> RememberedEnv {
        let mut last = RememberedEnv::default();
        let mut by_epoch: Vec<_> = self.0.iter().collect();
        by_epoch.sort_by_key(|(_, epoch)| **epoch);
        for (value, _) in by_epoch {
            match value {
                Value::Percent(percent) => last.percent = Some(*percent),
                Value::Redis(redis) => last.backend = Some(backend(*redis)),
            }
        }
        last
    }
}

/// The values of the variables that are set.
pub(super) fn values(env: RememberedEnv) -> impl Iterator<Item = Value> {
    let backend = env.backend.map(|backend| Value::Redis(backend == Backend::Redis));
    backend.into_iter().chain(env.percent.map(Value::Percent))
}

fn backend(redis: bool) -> Backend {
    if redis { Backend::Redis } else { Backend::Memory }
}

impl From<Vec<Row>> for Seen {
    fn from(rows: Vec<Row>) -> Self {
        let mut seen = Self::default();
        for Row { backend, percent, epoch } in rows {
            values(RememberedEnv { backend, percent }).for_each(|value| seen.add(value, epoch));
        }
        seen
    }
}

impl From<Seen> for Vec<Row> {
    fn from(seen: Seen) -> Self {
        let row = |(value, epoch)| match value {
            Value::Percent(percent) => Row { backend: None, percent: Some(percent), epoch },
            Value::Redis(redis) => Row { backend: Some(backend(redis)), percent: None, epoch },
        };
        seen.0.into_iter().map(row).collect()
    }
}
