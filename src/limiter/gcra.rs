//! The arithmetic of one bucket: GCRA in integer microseconds. Pure functions, no clock, no store.
//!
//! GCRA is the Generic Cell Rate Algorithm of ITU-T I.371 (annex A) in its virtual scheduling form. A key's
//! whole state is its theoretical arrival time; here it travels as *debt*, how far that time lies ahead of now.
//! Debt drains one second a second and never exceeds the tolerance `τ`. The Lua script of the shared store
//! runs the same arithmetic; `tests/differential.rs` holds the two together.

use std::num::NonZeroU32;
use std::time::Duration;

use super::calendar::Unit;
use super::clock::{Micros, SECOND};

/// Longest tolerance (`interval × burst`) of a quota: one year.
pub const LONGEST_TOLERANCE: Micros = 365 * 24 * 3600 * SECOND;

/// So many units a period, so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    limit: NonZeroU32,
    burst: NonZeroU32,
    period: Micros,
    interval: Micros,
    tolerance: Micros,
}

/// Why a quota cannot be kept exactly enough to be honest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuotaError {
    /// The limit or the burst is zero.
    #[error("{0} is zero; accepted: one unit and more")]
    NoUnits(&'static str),
    /// The period is zero.
    #[error("the period is zero; accepted: one microsecond and more")]
    NoPeriod,
    /// One unit takes less than about a microsecond, the resolution of the counters.
    #[error(
        "{limit} in {period_us} µs is one unit every {:.3} µs; the counters know whole microseconds, and {interval_us} µs is \
         more than 1 % off; accepted in that time: {}",
        *.period_us as f64 / f64::from(*.limit),
        accepted_near(*.limit, *.period_us)
    )]
    TooFine {
        /// Units a period.
        limit: u32,
        /// The period in microseconds; 0 for a calendar month, whose length varies.
        period_us: Micros,
        /// The interval after rounding up.
        interval_us: Micros,
    },
    /// A quota of calendar windows was given a burst.
    #[error("a calendar window has no burst of its own; all of its limit may come at once")]
    WindowBurst,
    /// Filling the burst again would take more than a year.
    #[error(
        "a burst of {burst} at one unit every {interval_us} µs takes {days} days to refill; accepted: at most 365"
    )]
    TooLong {
        /// The burst asked for.
        burst: u32,
        /// Microseconds a unit.
        interval_us: Micros,
        /// Days until an empty bucket is full.
        days: u64,
    },
}

/// The accepted limits next to one that is too fine: at most 1 % of rounding below it, a shorter interval above it.
fn accepted_near(limit: u32, period: Micros) -> String {
    let interval = u128::from(period.div_ceil(u64::from(limit)));
    let below = u128::from(period) * 101 / (100 * interval);
    if interval == 1 {
        return format!("at most {below}");
    }
    let above = u128::from(period).div_ceil(interval - 1);
    format!("at most {below}, or from {above} on")
}

impl Quota {
    /// `limit` units every `period` microseconds, at most `burst` of them at once.
    ///
    /// # Errors
    /// When the emission interval, rounded up to a microsecond, is more than 1 % off, or when the burst
    /// takes longer than [`LONGEST_TOLERANCE`] to refill.
    pub fn new(limit: NonZeroU32, period: Micros, burst: NonZeroU32) -> Result<Self, QuotaError> {
        if period == 0 {
            return Err(QuotaError::NoPeriod);
        }
        let units = u64::from(limit.get());
        // Rounded up: a limit is never exceeded for the sake of rounding.
        let interval = period.div_ceil(units);
        let excess = u128::from(interval) * u128::from(units) - u128::from(period);
        if excess * 100 > u128::from(period) {
            return Err(QuotaError::TooFine { limit: limit.get(), period_us: period, interval_us: interval });
        }
        let tolerance = u128::from(interval) * u128::from(burst.get());
        if tolerance > u128::from(LONGEST_TOLERANCE) {
            return Err(QuotaError::TooLong {
                burst: burst.get(),
                interval_us: interval,
                days: (tolerance / u128::from(24 * 3600 * SECOND)) as u64,
            });
        }
        Ok(Self { limit, burst, period, interval, tolerance: tolerance as Micros })
    }

    /// `limit` units every second, all of them at once if need be. See [`Quota::per`].
    ///
    /// # Errors
    /// As [`Quota::per`].
    pub fn per_second(limit: u32) -> Result<Self, QuotaError> {
        Self::per(Duration::from_secs(1), limit)
    }

    /// `limit` units every minute, all of them at once if need be. See [`Quota::per`].
    ///
    /// # Errors
    /// As [`Quota::per`].
    pub fn per_minute(limit: u32) -> Result<Self, QuotaError> {
        Self::per(Duration::from_secs(60), limit)
    }

    /// `limit` units every hour, all of them at once if need be. See [`Quota::per`].
    ///
    /// # Errors
    /// As [`Quota::per`].
    pub fn per_hour(limit: u32) -> Result<Self, QuotaError> {
        Self::per(Duration::from_secs(3_600), limit)
    }

    /// `limit` units every day, all of them at once if need be. See [`Quota::per`].
    ///
    /// # Errors
    /// As [`Quota::per`].
    pub fn per_day(limit: u32) -> Result<Self, QuotaError> {
        Self::per(Duration::from_secs(86_400), limit)
    }

    /// `limit` units every `period`, all of them at once if need be: the burst is the limit.
    ///
    /// # Errors
    /// When the limit is 0, and as [`Quota::new`].
    pub fn per(period: Duration, limit: u32) -> Result<Self, QuotaError> {
        let limit = NonZeroU32::new(limit).ok_or(QuotaError::NoUnits("the limit"))?;
        Self::new(limit, period.as_micros().try_into().unwrap_or(Micros::MAX), limit)
    }

    /// The same rate with at most `burst` units at once.
    ///
    /// # Errors
    /// When the burst is 0, or takes longer than [`LONGEST_TOLERANCE`] to refill. Of a quota of calendar windows
    /// ([`Quota::each`]) the burst is the limit, and another is an error.
    pub fn with_burst(self, burst: u32) -> Result<Self, QuotaError> {
        let burst = NonZeroU32::new(burst).ok_or(QuotaError::NoUnits("the burst"))?;
        if self.is_windowed() && burst != self.burst {
            return Err(QuotaError::WindowBurst);
        }
        if burst == self.burst {
            return Ok(self);
        }
        Self::new(self.limit, self.period, burst)
    }

    /// Whether it counts in calendar windows: then one unit is one microsecond of debt.
    fn is_windowed(&self) -> bool {
        // A bucket of this interval has at least one unit a microsecond, a window fewer; a month has no fixed length.
        self.interval == 1 && (self.period == 0 || u64::from(self.limit.get()) < self.period)
    }

    /// `limit` units in each calendar window, all of them at once if need be. One unit is one microsecond of debt,
    /// which counts from the window's end (see [`super::calendar`]); so its tolerance is the limit.
    ///
    /// # Errors
    /// The greatest limit that such a window can hold.
    pub fn each(limit: NonZeroU32, unit: Unit) -> Result<Self, u32> {
        if limit.get() > unit.most() {
            return Err(unit.most());
        }
        let tolerance = u64::from(limit.get());
        Ok(Self { limit, burst: limit, period: unit.length().unwrap_or(0), interval: 1, tolerance })
    }

    /// Units a period.
    pub fn limit(&self) -> u32 {
        self.limit.get()
    }

    /// Units at once.
    pub fn burst(&self) -> u32 {
        self.burst.get()
    }

    /// The period in microseconds.
    pub fn period(&self) -> Micros {
        self.period
    }

    /// `T`, microseconds a unit.
    pub fn interval(&self) -> Micros {
        self.interval
    }

    /// `τ = T × burst`: the greatest debt.
    pub fn tolerance(&self) -> Micros {
        self.tolerance
    }

    /// The charge of `cost` units, `cost × T`. A cost above the burst gives `τ + 1`: it can never be
    /// admitted, and the figure stays small enough for Lua's doubles.
    #[inline]
    pub fn charge(&self, cost: u32) -> Micros {
        if cost > self.burst.get() { self.tolerance + 1 } else { u64::from(cost) * self.interval }
    }

    /// What a bucket says of itself at `debt` about a hit of `cost` that was `allowed` or not.
    #[inline]
    pub fn reading(&self, debt: Micros, cost: u32, allowed: bool) -> Reading {
        let debt = debt.min(self.tolerance);
        let retry_after = if allowed {
            Some(0)
        } else if cost > self.burst.get() {
            None
        } else {
            Some((debt + self.charge(cost)).saturating_sub(self.tolerance))
        };
        let remaining = ((self.tolerance - debt) / self.interval) as u32;
        Reading { allowed, remaining, debt, reset_after: debt, retry_after }
    }
}

/// What a store says of one bucket after a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Whether this bucket had room for the hit.
    pub allowed: bool,
    /// Whole units left: `⌊(τ − debt) / T⌋`.
    pub remaining: u32,
    /// The debt after the hit: in microseconds, of a calendar window in units.
    pub debt: Micros,
    /// Microseconds until the bucket is full again, or until the calendar window ends.
    pub reset_after: Micros,
    /// Microseconds until the same hit is admitted if nothing else is charged; 0 when it was allowed;
    /// `None` when its cost exceeds the burst, so that it never will be.
    pub retry_after: Option<Micros>,
}

impl Reading {
    /// The same, of a bucket whose debt goes all at once in `rest` microseconds.
    pub fn ending_in(self, rest: Micros) -> Self {
        let retry_after = self.retry_after.map(|wait| if wait > 0 { rest } else { 0 });
        Self { reset_after: rest, retry_after, ..self }
    }
}

/// Whether a bucket at `debt` has room for `charge`.
#[inline]
pub fn admits(debt: Micros, charge: Micros, tolerance: Micros) -> bool {
    debt + charge <= tolerance
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quota_of_nothing_is_refused() {
        for quota in [Quota::per_minute(0), Quota::per(Duration::ZERO, 5), Quota::per(Duration::MAX, 5)] {
            assert!(quota.is_err(), "{quota:?}");
        }
        let quota = Quota::per_minute(5).expect("sound");
        assert!(quota.with_burst(0).is_err());
        assert_eq!(quota.with_burst(9).map(|quota| (quota.limit(), quota.burst())), Ok((5, 9)));
    }

    #[test]
    fn windowed_quota_refuses_a_burst_of_its_own() {
        let limit = NonZeroU32::new(999_999).expect("not zero");
        for unit in Unit::ALL {
            let window = Quota::each(limit, unit).expect("sound");
            assert_eq!(window.with_burst(5), Err(QuotaError::WindowBurst), "{unit:?}");
            assert_eq!(window.with_burst(999_999), Ok(window));
        }
        let finest = Quota::per_second(1_000_000).expect("one unit a microsecond");
        assert!(finest.with_burst(5).is_ok());
    }
    use proptest::prelude::*;

    fn n(value: u32) -> NonZeroU32 {
        NonZeroU32::new(value).unwrap()
    }

    #[test]
    fn a_rate_that_is_too_fine_names_the_nearest_that_are_not() {
        let quota = |limit: u32, period: Micros| {
            let limit = NonZeroU32::new(limit).unwrap();
            Quota::new(limit, period, NonZeroU32::MIN).map_err(|error| error.to_string())
        };
        let said = quota(1_000_000_000, 60 * SECOND).unwrap_err();
        assert!(said.contains("every 0.060 µs") && said.ends_with("at most 60600000"), "{said}");
        for (limit, period) in [
            (1_000_000_000, 60 * SECOND),
            (4_294_967_295, SECOND),
            (700_000, SECOND),
            (35_000_000, 60 * SECOND),
        ] {
            let said = quota(limit, period).unwrap_err();
            let numbers: Vec<u32> = said
                .split("accepted in that time: ")
                .nth(1)
                .unwrap()
                .split(|letter: char| !letter.is_ascii_digit())
                .filter_map(|number| number.parse().ok())
                .collect();
            assert!(numbers[0] < limit && quota(numbers[0], period).is_ok(), "{said}");
            assert!(quota(numbers[0] + 1, period).is_err(), "{said}");
            if let Some(&above) = numbers.get(1) {
                assert!(
                    above > limit && quota(above, period).is_ok() && quota(above - 1, period).is_err(),
                    "{said}"
                );
            }
        }
    }

    #[test]
    fn a_hundred_a_minute_is_one_every_600_milliseconds() {
        let quota = Quota::new(n(100), 60 * SECOND, n(20)).unwrap();
        assert_eq!(quota.interval(), 600_000);
        assert_eq!(quota.tolerance(), 12_000_000);
    }

    #[test]
    fn a_rate_that_a_microsecond_cannot_hold_is_refused_with_the_figures() {
        let error = Quota::new(n(1_500_000), SECOND, n(1)).unwrap_err();
        assert!(error.to_string().contains("1500000 in 1000000 µs"), "{error}");
        assert!(Quota::new(n(1_000_000), SECOND, n(1)).is_ok());
        assert!(Quota::new(n(9_990), SECOND, n(1)).is_ok(), "0.9 % off is kept");
    }

    #[test]
    fn a_burst_that_takes_more_than_a_year_to_refill_is_refused() {
        let week = 7 * 24 * 3600 * SECOND;
        assert!(Quota::new(n(1), week, n(52)).is_ok());
        let error = Quota::new(n(1), week, n(53)).unwrap_err();
        assert!(matches!(error, QuotaError::TooLong { days: 371, .. }), "{error}");
    }

    #[test]
    fn a_cost_above_the_burst_says_that_it_never_will_be_admitted() {
        let quota = Quota::new(n(60), 60 * SECOND, n(5)).unwrap();
        assert!(!admits(0, quota.charge(6), quota.tolerance()));
        assert!(!admits(0, quota.charge(u32::MAX), quota.tolerance()));
        assert_eq!(quota.reading(0, 6, false).retry_after, None);
        assert_eq!(quota.reading(0, 6, false).remaining, 5);
    }

    proptest! {
        #[test]
        fn a_denied_hit_is_admitted_exactly_when_it_was_told_to_come_back(
            limit in 1u32..10_000, period in 1_000_000u64..86_400_000_000, burst in 1u32..1_000,
            fill in 0.0f64..1.0, cost in 1u32..1_000,
        ) {
            let Ok(quota) = Quota::new(n(limit), period, n(burst)) else { return Ok(()) };
            let debt = (quota.tolerance() as f64 * fill) as Micros;
            let charge = quota.charge(cost);
            let allowed = admits(debt, charge, quota.tolerance());
            let reading = quota.reading(debt, cost, allowed);
            match reading.retry_after {
                Some(0) => prop_assert!(allowed),
                Some(wait) => {
                    prop_assert!(!admits(debt.saturating_sub(wait - 1), charge, quota.tolerance()));
                    prop_assert!(admits(debt.saturating_sub(wait), charge, quota.tolerance()));
                }
                None => prop_assert!(cost > burst),
            }
        }

        #[test]
        fn remaining_units_are_exactly_those_that_would_still_be_admitted(
            limit in 1u32..10_000, burst in 1u32..1_000, fill in 0.0f64..1.0,
        ) {
            let quota = Quota::new(n(limit), 60 * SECOND, n(burst)).unwrap();
            let debt = (quota.tolerance() as f64 * fill) as Micros;
            let left = quota.reading(debt, 0, true).remaining;
            prop_assert!(admits(debt, quota.charge(left), quota.tolerance()));
            prop_assert!(!admits(debt, quota.charge(left + 1), quota.tolerance()));
        }
    }
}
