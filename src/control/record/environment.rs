//! The environment as an author of changes: a deploy that changes a variable changes the rollout, once, and a restart with
//! the same variables leaves it alone.
//!
//! An instance keeps on its own disk the values that it was started with last, and a start compares with those alone. Without
//! that memory a start compares with the values that the fleet has seen. A variable that is not set is never a change. While
//! the environment rules out Redis nothing is compared and nothing is kept: put back, the record applies again. Once plans latch a
//! record, [`Environment::consider`] is where a latched one is left alone.

use serde::{Deserialize, Serialize};

use super::merge::Register;
use super::seen::{Seen, Value, values};
use super::{Record, flag, share};
use crate::limiter::decision::Backend;
use crate::limiter::rollout::Percent;

/// What this process was started with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Environment {
    /// Why memory decides whatever the record says.
    pub hard_off: Option<&'static str>,
    /// Whether only the environment may raise.
    pub pinned: bool,
    /// `RATE_LIMIT_BACKEND`, if it is set.
    pub backend: Option<Backend>,
    /// `RATE_LIMIT_CANARY_PERCENT`, if it is set.
    pub percent: Option<Percent>,
}

/// The variables of a start, as the disk keeps them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RememberedEnv {
    /// `RATE_LIMIT_BACKEND`.
    #[serde(default, with = "optional_flag", skip_serializing_if = "Option::is_none")]
    pub backend: Option<Backend>,
    /// `RATE_LIMIT_CANARY_PERCENT`.
    #[serde(default, with = "optional_share", skip_serializing_if = "Option::is_none")]
    pub percent: Option<Percent>,
}

impl Environment {
    /// What to remember, after `remembered`: a variable that is not set leaves its last value.
    pub fn remember(&self, remembered: RememberedEnv) -> RememberedEnv {
        if self.hard_off.is_some() {
            return remembered;
        }
        RememberedEnv {
            backend: self.backend.or(remembered.backend),
            percent: self.percent.or(remembered.percent),
        }
    }

    /// The variables that are set.
    fn set(&self) -> RememberedEnv {
        match self.hard_off {
            Some(_) => RememberedEnv::default(),
            None => RememberedEnv { backend: self.backend, percent: self.percent },
        }
    }

    /// The variables of this start are seen in an epoch.
    pub(super) fn see(&self, seen: &mut Seen, epoch: u64) {
        values(self.set()).for_each(|value| seen.add(value, epoch));
    }

    /// What a start makes of the register: of the disk, or of the first that came from the fleet. `memory`: the values of
    /// the last start of this instance; `None`: its disk keeps none.
    pub fn consider(&self, register: &Register, memory: Option<RememberedEnv>) -> Considered {
        let (record, seen) = (&register.record, &register.seen);
        let is_new = |value: &Value| match memory {
            Some(memory) => !values(memory).any(|known| known == *value),
            None => seen.first(*value).is_none(),
        };
        let fresh: Vec<Value> = values(self.set()).filter(is_new).collect();
        let mut next = change(record, &fresh);
        let mut passed_over = None;
        if next.as_ref().is_some_and(|next| next.wanted() > record.wanted()) {
            // Each lowering begins an epoch: what was seen in an earlier one was there at the lowering.
            let is_old = |value: &Value| seen.first(*value).is_some_and(|first| first < record.epoch);
            let (old, others): (Vec<Value>, Vec<Value>) = fresh.iter().partition(|value| is_old(value));
            if !old.is_empty() {
                next = change(record, &others);
                passed_over = Some(format!(
                    "{} is passed over: the fleet had this value before the rollout was lowered to {} % (epoch {}), and an \
                     environment that is older than a lowering does not raise. To raise, change the rollout itself (tidegate \
                     rollout set), or start with a value that was not used before",
                    words(&old),
                    record.wanted(),
                    record.epoch
                ));
            }
        } else if memory.is_none() {
            let differs = |value: &Value| match value {
                Value::Percent(percent) => *percent != record.percent,
                Value::Redis(redis) => *redis != (record.backend == Backend::Redis),
            };
            let known: Vec<Value> =
                values(self.set()).filter(|value| !is_new(value) && differs(value)).collect();
            passed_over = (!known.is_empty()).then(|| {
                format!(
                    "{} is passed over: the fleet has had this value before, so it is no new deploy. To change the rollout, \
                     change the rollout itself (tidegate rollout set), or start with a value that was not used before",
                    words(&known)
                )
            });
        }
        let mut seen = seen.clone();
        self.see(&mut seen, next.as_ref().map_or(record.epoch, |next| next.epoch));
        Considered { next, seen, passed_over }
    }
}

/// What a start makes of a register.
#[derive(Clone, Debug, PartialEq)]
pub struct Considered {
    /// The record with the variables that are new; `None`: the record is unchanged.
    pub next: Option<Record>,
    /// What the fleet has seen now.
    pub seen: Seen,
    /// Why a variable has no effect, in words for the log.
    pub passed_over: Option<String>,
}

fn change(record: &Record, values: &[Value]) -> Option<Record> {
    let (mut backend, mut percent) = (record.backend, record.percent);
    for value in values {
        match value {
            Value::Percent(new) => percent = *new,
            Value::Redis(true) => backend = Backend::Redis,
            Value::Redis(false) => backend = Backend::Memory,
        }
    }
    let changes = (backend, percent) != (record.backend, record.percent);
    changes.then(|| record.followed_by(backend, percent, "env", &format!("{} is new", words(values))))
}

fn words(values: &[Value]) -> String {
    let word = |value: &Value| match value {
        Value::Percent(percent) => format!("RATE_LIMIT_CANARY_PERCENT={percent}"),
        Value::Redis(redis) => format!("RATE_LIMIT_BACKEND={}", if *redis { "redis" } else { "memory" }),
    };
    values.iter().map(word).collect::<Vec<_>>().join(", ")
}

pub(super) mod optional_flag {
    use serde::{Deserialize, Deserializer, Serialize as _, Serializer};

    use super::{Backend, flag};

    #[derive(Deserialize)]
    struct Flag(#[serde(with = "flag")] Backend);

    pub(in super::super) fn serialize<S: Serializer>(
        backend: &Option<Backend>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        backend.map(Backend::as_str).serialize(to)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Backend>, D::Error> {
        Ok(Option::<Flag>::deserialize(from)?.map(|Flag(backend)| backend))
    }
}

pub(super) mod optional_share {
    use serde::{Deserialize, Deserializer, Serialize as _, Serializer};

    use super::{Percent, share};

    #[derive(Deserialize)]
    struct Share(#[serde(with = "share")] Percent);

    pub(in super::super) fn serialize<S: Serializer>(
        percent: &Option<Percent>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        percent.map(Percent::as_f64).serialize(to)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Percent>, D::Error> {
        Ok(Option::<Share>::deserialize(from)?.map(|Share(percent)| percent))
    }
}
