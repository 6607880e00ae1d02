//! The environment as one who writes the record: a deploy that changes a variable changes the rollout, and one that does
//! not leaves it alone.
//!
//! The values are remembered with the record. A variable that is set and differs from the remembered one is a newer change;
//! one that is not set never is. While the environment rules out Redis it is not compared and not remembered: put back, the
//! record stands.

use serde::{Deserialize, Serialize};

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

/// The environment that a record was held against last.
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

    /// What this environment makes of `record`, which was held against `remembered` last; `None`: it stands.
    pub(super) fn change(&self, record: &Record, remembered: RememberedEnv) -> Option<Record> {
        if self.remember(remembered) == remembered {
            return None;
        }
        let backend = self.backend.filter(|_| self.backend != remembered.backend);
        let percent = self.percent.filter(|_| self.percent != remembered.percent);
        let words: Vec<String> = [
            backend.map(|backend| format!("RATE_LIMIT_BACKEND={}", backend.as_str())),
            percent.map(|percent| format!("RATE_LIMIT_CANARY_PERCENT={percent}")),
        ]
        .into_iter()
        .flatten()
        .collect();
        let reason = format!("{} is new", words.join(", "));
        Some(record.followed_by(
            backend.unwrap_or(record.backend),
            percent.unwrap_or(record.percent),
            "env",
            &reason,
        ))
    }
}

mod optional_flag {
    use serde::{Deserialize, Deserializer, Serialize as _, Serializer};

    use super::{Backend, flag};

    #[derive(Deserialize)]
    struct Flag(#[serde(with = "flag")] Backend);

    pub(super) fn serialize<S: Serializer>(backend: &Option<Backend>, to: S) -> Result<S::Ok, S::Error> {
        backend.map(Backend::as_str).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Backend>, D::Error> {
        Ok(Option::<Flag>::deserialize(from)?.map(|Flag(backend)| backend))
    }
}

mod optional_share {
    use serde::{Deserialize, Deserializer, Serialize as _, Serializer};

    use super::{Percent, share};

    #[derive(Deserialize)]
    struct Share(#[serde(with = "share")] Percent);

    pub(super) fn serialize<S: Serializer>(percent: &Option<Percent>, to: S) -> Result<S::Ok, S::Error> {
        percent.map(Percent::as_f64).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Percent>, D::Error> {
        Ok(Option::<Share>::deserialize(from)?.map(|Share(percent)| percent))
    }
}
