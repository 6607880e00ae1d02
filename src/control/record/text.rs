//! How the parts of a record are written.

/// The flag as text.
pub(super) mod flag {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::limiter::decision::Backend;

    pub(in crate::control) fn serialize<S: Serializer>(backend: &Backend, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(backend.as_str())
    }

    pub(in crate::control) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Backend, D::Error> {
        match String::deserialize(from)?.as_str() {
            "redis" => Ok(Backend::Redis),
            "memory" => Ok(Backend::Memory),
            _ => Err(D::Error::custom("a backend is \"redis\" or \"memory\"")),
        }
    }
}

/// A share as a number from 0 to 100.
pub(super) mod share {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::limiter::rollout::Percent;

    pub(in crate::control) fn serialize<S: Serializer>(percent: &Percent, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(percent.as_f64())
    }

    pub(in crate::control) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Percent, D::Error> {
        Percent::try_from(f64::deserialize(from)?).map_err(D::Error::custom)
    }
}
