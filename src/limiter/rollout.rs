//! Which store decides a subject: the percentage in force, and the choice itself.
//!
//! This is the part of the rollout that every request reads. Who changes it, and whether they may, is the
//! business of `control/`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;

use super::recent::Recent;
use super::subject::{FleetKeys, Identity};

/// A share of the keys, 0 to 100 percent in hundredths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u16);

/// Why a percentage is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a percentage; accepted: 0 to 100 with at most two decimals")]
pub struct PercentError(pub String);

impl Percent {
    /// Nobody.
    pub const NONE: Self = Self(0);
    /// Everybody.
    pub const ALL: Self = Self(10_000);

    /// From hundredths of a percent, at most 10 000.
    pub fn from_basis_points(points: u16) -> Option<Self> {
        (points <= 10_000).then_some(Self(points))
    }

    /// In hundredths of a percent.
    pub fn basis_points(self) -> u16 {
        self.0
    }

    /// As a number from 0 to 100.
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

impl TryFrom<f64> for Percent {
    type Error = PercentError;

    fn try_from(value: f64) -> Result<Self, PercentError> {
        let points = value * 100.0;
        // 0.07 × 100 is not exactly 7: a thousandth of a point is rounding, more is a third decimal.
        let whole = points.round();
        if (0.0..=10_000.0).contains(&whole) && (points - whole).abs() < 1e-6 {
            Ok(Self(whole as u16))
        } else {
            Err(PercentError(value.to_string()))
        }
    }
}

impl std::str::FromStr for Percent {
    type Err = PercentError;

    fn from_str(text: &str) -> Result<Self, PercentError> {
        let plain = |byte: u8| byte.is_ascii_digit() || byte == b'.';
        let error = || PercentError(text.to_owned());
        if !text.bytes().all(plain) {
            return Err(error());
        }
        let value: f64 = text.parse().map_err(|_| error())?;
        Self::try_from(value).map_err(|_| error())
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_f64())
    }
}

/// What the rollout wants for a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arm {
    /// Redis.
    Canary,
    /// Memory.
    Control,
}

impl Arm {
    /// The word of the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Canary => "canary",
            Self::Control => "control",
        }
    }
}

/// The percentage in force and its revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InForce {
    /// Share of the keys that Redis decides.
    pub percent: Percent,
    /// The revision of the record that says so.
    pub revision: u64,
}

/// The rollout as requests see it.
#[derive(Debug, Default)]
pub struct Rollout {
    /// Revision and basis points in one word, so that no request sees one without the other.
    in_force: AtomicU64,
    keys: ArcSwapOption<FleetKeys>,
    recent: Recent,
}

impl Rollout {
    /// Puts a percentage in force: the next request is decided by it.
    pub fn put(&self, in_force: InForce) {
        let word = in_force.revision << 16 | u64::from(in_force.percent.0);
        self.in_force.store(word, Ordering::Release);
    }

    /// What is in force.
    #[inline]
    pub fn in_force(&self) -> InForce {
        let word = self.in_force.load(Ordering::Acquire);
        InForce { percent: Percent(word as u16), revision: word >> 16 }
    }

    /// Makes the fleet's keys known, or others.
    pub fn learn_keys(&self, keys: FleetKeys) {
        self.keys.store(Some(Arc::new(keys)));
    }

    /// The fleet's keys, once known.
    pub fn keys(&self) -> Option<arc_swap::Guard<Option<Arc<FleetKeys>>>> {
        let keys = self.keys.load();
        keys.is_some().then_some(keys)
    }

    /// The arm of a subject at `percent`. A bucket for everyone can't be split: it moves last, at 100 %. So
    /// does every subject while the fleet's salt is not known, since then nobody can tell its bucket.
    pub fn arm(&self, percent: Percent, everyone: bool, identity: &Identity) -> Arm {
        let canary = match percent {
            Percent::NONE => false,
            Percent::ALL => true,
            _ if everyone => false,
            Percent(points) => self.keys.load().as_ref().is_some_and(|keys| keys.bucket(identity) < points),
        };
        if canary { Arm::Canary } else { Arm::Control }
    }

    /// Counts a request by its subject, for [`Rollout::recent`]. Not before the fleet's salt is known.
    #[inline]
    pub(super) fn count(&self, everyone: bool, identity: &Identity) {
        if everyone {
            self.recent.count(None);
        } else if let Some(keys) = self.keys.load().as_ref() {
            self.recent.count(Some(keys.bucket(identity)));
        }
    }

    /// The requests of the last minutes, by what a percentage would do with them.
    pub fn recent(&self) -> &Recent {
        &self.recent
    }
}

#[cfg(test)]
mod tests {
    use super::super::subject::{Part, Subject};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_percentage_has_at_most_two_decimals_and_lies_between_0_and_100() {
        for (text, points) in
            [("0", 0), ("100", 10_000), ("10", 1_000), ("0.01", 1), ("33.33", 3_333), ("0.07", 7)]
        {
            assert_eq!(text.parse::<Percent>().unwrap().basis_points(), points);
        }
        for text in
            ["", "-1", "101", "100.01", "0.001", "ten", "1e1", "NaN", "inf", "10%", " 10", "1.2.3", "."]
        {
            let error = text.parse::<Percent>().unwrap_err().to_string();
            assert!(error.contains("0 to 100"), "{error}");
        }
    }

    #[test]
    fn every_percentage_survives_the_way_through_text_and_number() {
        for points in 0..=10_000 {
            let percent = Percent::from_basis_points(points).unwrap();
            assert_eq!(percent.to_string().parse(), Ok(percent));
            assert_eq!(Percent::try_from(percent.as_f64()), Ok(percent));
        }
    }

    #[test]
    fn percentage_and_revision_change_together() {
        let rollout = Rollout::default();
        let in_force = InForce { percent: Percent::ALL, revision: u64::from(u32::MAX) + 7 };
        rollout.put(in_force);
        assert_eq!(rollout.in_force(), in_force);
    }

    #[test]
    fn a_bucket_for_everyone_moves_last() {
        let rollout = Rollout::default();
        rollout.learn_keys(FleetKeys::new([1; 16], [2; 16]));
        let everyone = Subject::new([]).identity_of(b"");
        let nearly = Percent::from_basis_points(9_999).unwrap();
        assert_eq!(rollout.arm(nearly, true, &everyone), Arm::Control);
        assert_eq!(rollout.arm(Percent::ALL, true, &everyone), Arm::Canary);
    }

    proptest! {
        #[test]
        fn raising_the_percentage_moves_subjects_to_redis_only(
            salt: [u8; 16], value: Vec<u8>, low in 0u16..=10_000, high in 0u16..=10_000,
        ) {
            let (low, high) = (low.min(high), low.max(high));
            let rollout = Rollout::default();
            rollout.learn_keys(FleetKeys::new(salt, [0; 16]));
            let identity = Subject::new([Part::Cookie("id".into())]).identity_of(&value);
            let arm = |points| rollout.arm(Percent::from_basis_points(points).unwrap(), false, &identity);
            prop_assert!(arm(low) == Arm::Control || arm(high) == Arm::Canary);
        }
    }
}
