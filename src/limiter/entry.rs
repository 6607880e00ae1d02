//! An entry of the memory store: a key, and one word that holds when its bucket is full again and what an eviction has to
//! know of it.
//!
//! The time takes 53 bits, microseconds since the epoch until the year 2255, as in the script of the shared store. The
//! eleven bits above it cost the entry nothing: it stays at 24 bytes, five of them in two cache lines.

use super::charge::Charge;
use super::clock::Micros;
use super::subject::Key;

const TIME_BITS: u32 = 53;
const TIME: u64 = (1 << TIME_BITS) - 1;
const MEASURE_BITS: u32 = 10;
const DENIED: u64 = 1 << (TIME_BITS + MEASURE_BITS);
/// The measure of a calendar window.
const WINDOW: u16 = 1 << (MEASURE_BITS - 1);
/// Steps of a logarithm to the base of two. Nine bits hold it up to the longest tolerance, 2^45 µs.
const STEPS_PER_OCTAVE: u16 = 8;

/// A key, when its bucket is full again, its measure, and whether it is being denied.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Entry {
    pub(super) key: Key,
    /// 0: a free place.
    word: u64,
}

/// What turns an entry's time into its fill: of a bucket its tolerance; of a calendar window, whose count does not drain,
/// the fill itself. Both as a logarithm in eighths of an octave, so that a fill is known to within 16 %.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Measure(u16);

impl Measure {
    /// That of a charge which leaves its bucket at `debt`.
    #[inline]
    pub(super) fn of(charge: &Charge, debt: Micros) -> Self {
        let whole = logarithm(charge.quota.tolerance());
        match charge.span {
            None => Self(whole),
            Some(_) => Self(WINDOW | whole.saturating_sub(logarithm(debt))),
        }
    }
}

/// `log2` in eighths, linear within an octave.
#[inline]
fn logarithm(value: u64) -> u16 {
    let value = value.max(1);
    let leading = value.leading_zeros();
    let eighths = (value << leading) >> 60 & 7;
    (63 - leading) as u16 * STEPS_PER_OCTAVE + eighths as u16
}

impl Entry {
    #[inline]
    pub(super) fn new(key: Key, full_at: Micros, measure: Measure) -> Self {
        Self { key, word: word(full_at, measure) }
    }

    #[inline]
    pub(super) fn is_free(&self) -> bool {
        self.word == 0
    }

    /// When the bucket is full again; of a calendar window its end plus the count.
    #[inline]
    pub(super) fn full_at(&self) -> Micros {
        self.word & TIME
    }

    /// Writes a new time. An entry that is less than half full afterwards is no longer being denied: a client that is
    /// denied again and again is charged again as soon as it fits.
    #[inline]
    pub(super) fn set(&mut self, full_at: Micros, measure: Measure, debt: Micros) {
        let mut new = word(full_at, measure);
        if self.is_denied() && !is_under_half(measure, debt) {
            new |= DENIED;
        }
        self.word = new;
    }

    /// Gives the debt back.
    pub(super) fn drain(&mut self) {
        // Long past, and not the 0 of a free place.
        self.word = 1;
    }

    /// A hit on this key was denied.
    #[inline]
    pub(super) fn mark_denied(&mut self) {
        self.word |= DENIED;
    }

    /// Whether a hit on this key was denied, and it has been half full since.
    #[inline]
    pub(super) fn is_denied(&self) -> bool {
        self.word & DENIED != 0
    }

    fn measure(&self) -> Measure {
        Measure((self.word >> TIME_BITS) as u16 & ((1 << MEASURE_BITS) - 1))
    }

    /// Whether nothing is owed: `wall` is the earliest time that a clock of calendar windows may show.
    #[inline]
    pub(super) fn is_drained(&self, now: Micros, wall: Micros) -> bool {
        let now = if self.measure().0 & WINDOW == 0 { now } else { wall };
        self.full_at() <= now
    }

    /// How full it is: the logarithm of debt ÷ τ, or of count ÷ limit, in eighths of an octave; 0 when it is full.
    #[inline]
    pub(super) fn fill(&self, now: Micros) -> i16 {
        fill(self.measure(), self.full_at().saturating_sub(now))
    }
}

#[inline]
fn word(full_at: Micros, Measure(measure): Measure) -> u64 {
    full_at.clamp(1, TIME) | u64::from(measure) << TIME_BITS
}

#[inline]
fn fill(Measure(measure): Measure, debt: Micros) -> i16 {
    match measure & WINDOW {
        0 => (logarithm(debt) as i16 - measure as i16).min(0),
        _ => -((measure & !WINDOW) as i16),
    }
}

fn is_under_half(measure: Measure, debt: Micros) -> bool {
    fill(measure, debt) < -(STEPS_PER_OCTAVE as i16)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;
    use crate::limiter::calendar::{Span, Unit};
    use crate::limiter::clock::SECOND;
    use crate::limiter::gcra::{LONGEST_TOLERANCE, Quota};
    use crate::limiter::share::Share;

    const NOW: Micros = 1_800_000_000 * SECOND;

    fn charge(quota: Quota, span: Option<Span>) -> Charge {
        Charge { key: Key::default(), quota, span, cost: 1, share: Share::WHOLE, enforce: true }
    }

    fn of_bucket(period: Micros, burst: u32) -> Charge {
        charge(Quota::new(NonZeroU32::MIN, period, NonZeroU32::new(burst).unwrap()).unwrap(), None)
    }

    fn of_window(limit: u32) -> Charge {
        let span = Span { start: NOW, end: NOW + SECOND, next: NOW + 2 * SECOND, ahead: 0 };
        charge(Quota::each(NonZeroU32::new(limit).unwrap(), Unit::Month).unwrap(), Some(span))
    }

    fn entry(charge: &Charge, debt: Micros) -> Entry {
        let from = charge.span.map_or(NOW, |span| span.end);
        Entry::new(Key::default(), from + debt, Measure::of(charge, debt))
    }

    /// As [`Entry::fill`] has it.
    fn log(fill: f64) -> f64 {
        fill.log2() * f64::from(STEPS_PER_OCTAVE)
    }

    #[test]
    fn longest_tolerance_and_largest_count_fit() {
        assert!(logarithm(LONGEST_TOLERANCE) < WINDOW && logarithm(u64::from(u32::MAX)) < WINDOW);
        assert_eq!([0, 1, 2, 3, 4, 1 << 45].map(logarithm), [0, 0, 8, 12, 16, 360]);
    }

    #[test]
    fn denied_entry_is_marked_until_under_half() {
        let bucket = of_bucket(SECOND, 10);
        let mut entry = entry(&bucket, 10 * SECOND);
        entry.mark_denied();
        for (debt, denied) in [(10, true), (6, true), (5, true), (4, false), (10, false)] {
            let debt = debt * SECOND;
            entry.set(NOW + debt, Measure::of(&bucket, debt), debt);
            assert_eq!((entry.is_denied(), entry.full_at()), (denied, NOW + debt));
        }
    }

    #[test]
    fn window_drains_by_the_wall_clock_alone() {
        let (bucket, window) = (entry(&of_bucket(SECOND, 10), SECOND), entry(&of_window(10), 5));
        assert!(bucket.is_drained(NOW + SECOND, NOW) && !bucket.is_drained(NOW + SECOND - 1, NOW + SECOND));
        let end = NOW + SECOND + 5;
        assert!(window.is_drained(NOW, end) && !window.is_drained(end, end - 1));
    }

    proptest! {
        #[test]
        fn fill_is_known_to_within_16_percent(
            period in 1_000u64..365 * 24 * 3_600 * SECOND, fill in 0.001f64..1.0,
            limit in 1_000u32..u32::MAX,
        ) {
            let bucket = of_bucket(period, 1);
            let debt = (period as f64 * fill).ceil() as Micros;
            let known = f64::from(entry(&bucket, debt).fill(NOW));
            prop_assert!((known - log(debt as f64 / period as f64)).abs() <= 1.7, "{known} for {fill}");
            let window = of_window(limit);
            let count = (f64::from(limit) * fill).ceil() as Micros;
            let known = f64::from(entry(&window, count).fill(NOW));
            prop_assert!((known - log(count as f64 / f64::from(limit))).abs() <= 1.7, "{known} for {fill}");
        }
    }
}
