//! Fixed windows that follow the calendar of a time zone: when the one of a given instant began and when it ends.
//!
//! To a store a window is a bucket whose debt counts from the end of the window instead of from now, a unit of which
//! is a microsecond and which does not drain: at the next window's end all of it lies in the past. So the same state
//! (one instant, *end + count*), the same comparison and the same `max` serve both algorithms.

use std::sync::Arc;

use arc_swap::ArcSwap;
use chrono::{DateTime, Datelike, Days, Months, NaiveDate, NaiveTime, Offset, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;

use super::clock::{Micros, SECOND};

/// How long a calendar window is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// Each second.
    Second,
    /// Each minute.
    Minute,
    /// Each hour of the local clock.
    Hour,
    /// From local midnight to local midnight.
    Day,
    /// From Monday (ISO 8601).
    Week,
    /// From the first of the month.
    Month,
}

impl Unit {
    /// Every unit, the shortest first.
    pub const ALL: [Self; 6] = [Self::Second, Self::Minute, Self::Hour, Self::Day, Self::Week, Self::Month];

    /// The word of the policy file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
        }
    }

    /// Its nominal length; `None` for a month, which has none.
    pub fn length(self) -> Option<Micros> {
        match self {
            Self::Second => Some(SECOND),
            Self::Minute => Some(60 * SECOND),
            Self::Hour => Some(3_600 * SECOND),
            Self::Day => Some(24 * 3_600 * SECOND),
            Self::Week => Some(7 * 24 * 3_600 * SECOND),
            Self::Month => None,
        }
    }

    /// The greatest limit: a count must stay below the microseconds of the shortest such window, so that *end +
    /// count* is never taken for the next one. An hour can be half as long where the clocks move by half an hour.
    pub fn most(self) -> u32 {
        match self {
            Self::Second => 999_999,
            Self::Minute => 59_999_999,
            Self::Hour => 1_799_999_999,
            Self::Day | Self::Week | Self::Month => u32::MAX,
        }
    }
}

/// The windows of one unit in one time zone. Cheap to clone: clones share what they have computed.
#[derive(Clone, Debug)]
pub struct Calendar {
    unit: Unit,
    zone: Tz,
    /// The window that was asked for last. The next request nearly always asks for the same.
    latest: Arc<ArcSwap<Span>>,
}

impl Calendar {
    /// Windows of `unit` in the zone of this IANA name, such as `Europe/Berlin` or `UTC`; `None` when there is no such
    /// zone.
    pub fn new(unit: Unit, zone: &str) -> Option<Self> {
        let zone: Tz = zone.parse().ok()?;
        let nowhere = Span { start: 0, end: 0, next: 0, ahead: 0 };
        Some(Self { unit, zone, latest: Arc::new(ArcSwap::from_pointee(nowhere)) })
    }

    /// The unit.
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// The zone's name.
    pub fn zone(&self) -> &'static str {
        self.zone.name()
    }

    /// The window of the instant `now` on a clock that the wall clock is `ahead` of, in microseconds.
    pub fn span(&self, now: Micros, ahead: i64) -> Span {
        let wall = now.saturating_add_signed(ahead);
        let latest = **self.latest.load();
        if latest.start <= wall && wall < latest.end {
            return Span { ahead, ..latest };
        }
        let span = Span { ahead, ..self.compute(wall) };
        self.latest.store(Arc::new(span));
        span
    }

    fn compute(&self, wall: Micros) -> Span {
        let by_length = |length: Micros| {
            let start = wall - wall % length;
            Span { start, end: start + length, next: start + 2 * length, ahead: 0 }
        };
        match self.unit {
            // Offsets are whole minutes wherever clocks are set today, so these windows are the same in every zone.
            Unit::Second => by_length(SECOND),
            Unit::Minute => by_length(60 * SECOND),
            Unit::Hour => self.hour(wall),
            Unit::Day | Unit::Week | Unit::Month => {
                self.dates(wall).unwrap_or_else(|| by_length(24 * 3_600 * SECOND))
            }
        }
    }

    /// An hour of the local clock. Where the clocks move by a whole hour the one that repeats is a window of its own.
    fn hour(&self, wall: Micros) -> Span {
        let next = |at: Micros| at + 3_600 * SECOND - self.since_the_hour(at);
        let end = next(wall);
        Span { start: wall - self.since_the_hour(wall), end, next: next(end), ahead: 0 }
    }

    fn since_the_hour(&self, at: Micros) -> Micros {
        let Some(utc) = DateTime::<Utc>::from_timestamp_micros(at as i64) else {
            return at % (3_600 * SECOND);
        };
        let seconds = self.zone.offset_from_utc_datetime(&utc.naive_utc()).fix().local_minus_utc();
        (at as i64 + i64::from(seconds) * SECOND as i64).rem_euclid(3_600 * SECOND as i64) as Micros
    }

    /// Windows that begin with a local date. `None` beyond the years that dates can be computed for.
    fn dates(&self, wall: Micros) -> Option<Span> {
        let local = DateTime::<Utc>::from_timestamp_micros(wall as i64)?.with_timezone(&self.zone);
        let today = local.date_naive();
        let first = match self.unit {
            Unit::Month => today.with_day(1)?,
            Unit::Week => today - Days::new(u64::from(today.weekday().num_days_from_monday())),
            _ => today,
        };
        let later = |windows: u32| match self.unit {
            Unit::Month => first.checked_add_months(Months::new(windows)),
            Unit::Week => first.checked_add_days(Days::new(7 * u64::from(windows))),
            _ => first.checked_add_days(Days::new(u64::from(windows))),
        };
        // In the hour that is repeated after a midnight that came twice, today's window is over already: then the
        // first of these ends is past. A date that a zone left out begins and ends at the same instant.
        let mut starts = vec![self.first_instant(first)?];
        for windows in 1..=4 {
            starts.push(self.first_instant(later(windows)?)?);
        }
        let at = starts.iter().position(|&start| start > wall)?;
        let (start, end) = (*starts.get(at.checked_sub(1)?)?, *starts.get(at)?);
        let next = *starts.iter().find(|&&start| start > end)?;
        Some(Span { start, end, next, ahead: 0 })
    }

    /// The first instant at which the local clock shows this date: the earlier midnight where there are two, the
    /// moment after the gap where the clocks jump over midnight.
    fn first_instant(&self, date: NaiveDate) -> Option<Micros> {
        let midnight = date.and_time(NaiveTime::MIN);
        if let Some(instant) = self.zone.from_local_datetime(&midnight).earliest() {
            return micros(&instant.to_utc());
        }
        // Local time only jumps forward around a gap, so the moment can be halved down to. Zones lie within a day of
        // UTC, also those that once left out a whole date.
        let utc = Utc.from_utc_datetime(&midnight);
        let (mut before, mut after) = (utc - TimeDelta::hours(40), utc + TimeDelta::hours(40));
        while after - before > TimeDelta::seconds(1) {
            let middle = before + TimeDelta::seconds((after - before).num_seconds() / 2);
            if middle.with_timezone(&self.zone).naive_local() >= midnight {
                after = middle;
            } else {
                before = middle;
            }
        }
        micros(&after)
    }
}

impl PartialEq for Calendar {
    fn eq(&self, other: &Self) -> bool {
        self.unit == other.unit && self.zone == other.zone
    }
}

impl Eq for Calendar {}

fn micros(instant: &DateTime<Utc>) -> Option<Micros> {
    u64::try_from(instant.timestamp_micros()).ok()
}

/// One window and its neighbours, as instants of the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// When it began, which is the end of the one before.
    pub start: Micros,
    /// When it ends.
    pub end: Micros,
    /// When the one after it ends.
    pub next: Micros,
    /// By how much the wall clock is ahead of the clock of decisions.
    pub ahead: i64,
}

impl Span {
    /// The wall clock's time at `now` on the clock of decisions.
    #[inline]
    pub fn wall(&self, now: Micros) -> Micros {
        now.saturating_add_signed(self.ahead)
    }

    /// The end of the window that a bucket with this state is judged in at `now`. A state of the next window (another
    /// thread came first, or the wall clock went back) is not undone: then the hit counts there.
    pub(super) fn end_for(&self, state: Micros, now: Micros) -> Micros {
        let end = self.end_at(self.wall(now));
        let later = self.end_after(end);
        if state >= later { later } else { end }
    }

    /// The end of the window of an instant of the wall clock; exact for this window and its neighbours, and for
    /// windows of equal lengths everywhere.
    pub(super) fn end_at(&self, wall: Micros) -> Micros {
        if wall < self.start {
            let length = (self.end - self.start).max(1);
            return self.start.saturating_sub((self.start - 1 - wall) / length * length);
        }
        if wall < self.end {
            return self.end;
        }
        let length = (self.next - self.end).max(1);
        self.next.saturating_add((wall - self.end) / length * length)
    }

    /// The end of the window that begins at `end`.
    fn end_after(&self, end: Micros) -> Micros {
        self.end_at(end)
    }

    /// The same windows, seen from the one that ends at `end`.
    pub(super) fn around(self, end: Micros) -> Self {
        if end == self.end {
            return self;
        }
        Self { start: self.end, end, next: self.end_after(end), ahead: self.ahead }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Micros {
        micros(&text.parse::<DateTime<Utc>>().unwrap()).unwrap()
    }

    fn span(unit: Unit, zone: &str, instant: &str) -> (String, String, String) {
        let span = Calendar::new(unit, zone).unwrap().span(at(instant), 0);
        let text = |at: Micros| {
            DateTime::<Utc>::from_timestamp_micros(at as i64).unwrap().format("%Y-%m-%dT%H:%MZ").to_string()
        };
        (text(span.start), text(span.end), text(span.next))
    }

    #[test]
    fn windows_follow_the_local_calendar_through_every_change_of_the_clocks() {
        use Unit::{Day, Hour, Month, Week};
        for (unit, zone, instant, start, end, next) in [
            (
                Day,
                "UTC",
                "2026-11-22T12:00:00Z",
                "2026-11-22T00:00Z",
                "2026-11-23T00:00Z",
                "2026-11-24T00:00Z",
            ),
            (
                Day,
                "Europe/Berlin",
                "2026-11-22T22:59:59.999999Z",
                "2026-11-21T23:00Z",
                "2026-11-22T23:00Z",
                "2026-11-23T23:00Z",
            ),
            (
                Day,
                "Europe/Berlin",
                "2026-11-22T23:00:00Z",
                "2026-11-22T23:00Z",
                "2026-11-23T23:00Z",
                "2026-11-24T23:00Z",
            ),
            // 23 hours in spring, 25 in autumn.
            (
                Day,
                "Europe/Berlin",
                "2026-03-29T12:00:00Z",
                "2026-03-28T23:00Z",
                "2026-03-29T22:00Z",
                "2026-03-30T22:00Z",
            ),
            (
                Day,
                "Europe/Berlin",
                "2026-10-25T12:00:00Z",
                "2026-10-24T22:00Z",
                "2026-10-25T23:00Z",
                "2026-10-26T23:00Z",
            ),
            (
                Day,
                "America/New_York",
                "2026-03-08T12:00:00Z",
                "2026-03-08T05:00Z",
                "2026-03-09T04:00Z",
                "2026-03-10T04:00Z",
            ),
            // The clocks jump from 24:00 to 01:00: the day begins at one.
            (
                Day,
                "Africa/Cairo",
                "2026-04-24T12:00:00Z",
                "2026-04-23T22:00Z",
                "2026-04-24T21:00Z",
                "2026-04-25T21:00Z",
            ),
            (
                Day,
                "Asia/Beirut",
                "2026-03-29T12:00:00Z",
                "2026-03-28T22:00Z",
                "2026-03-29T21:00Z",
                "2026-03-30T21:00Z",
            ),
            // The clocks go back from 24:00 to 23:00: the day before lasts 25 hours.
            (
                Day,
                "Africa/Cairo",
                "2026-10-29T20:30:00Z",
                "2026-10-28T21:00Z",
                "2026-10-29T22:00Z",
                "2026-10-30T22:00Z",
            ),
            // Until 2011 Newfoundland went back at one minute past midnight: the second midnight begins no new day.
            (
                Day,
                "America/St_Johns",
                "2010-11-07T03:00:00Z",
                "2010-11-07T02:30Z",
                "2010-11-08T03:30Z",
                "2010-11-09T03:30Z",
            ),
            // Samoa left out the 30th of December 2011.
            (
                Day,
                "Pacific/Apia",
                "2011-12-30T09:59:00Z",
                "2011-12-29T10:00Z",
                "2011-12-30T10:00Z",
                "2011-12-31T10:00Z",
            ),
            (
                Week,
                "UTC",
                "2026-11-22T12:00:00Z",
                "2026-11-16T00:00Z",
                "2026-11-23T00:00Z",
                "2026-11-30T00:00Z",
            ),
            (
                Week,
                "Asia/Tokyo",
                "2026-11-22T15:00:00Z",
                "2026-11-22T15:00Z",
                "2026-11-29T15:00Z",
                "2026-12-06T15:00Z",
            ),
            (
                Month,
                "UTC",
                "2028-02-29T12:00:00Z",
                "2028-02-01T00:00Z",
                "2028-03-01T00:00Z",
                "2028-04-01T00:00Z",
            ),
            (
                Month,
                "Europe/Berlin",
                "2026-12-31T23:30:00Z",
                "2026-12-31T23:00Z",
                "2027-01-31T23:00Z",
                "2027-02-28T23:00Z",
            ),
            (
                Hour,
                "UTC",
                "2026-11-22T12:34:56Z",
                "2026-11-22T12:00Z",
                "2026-11-22T13:00Z",
                "2026-11-22T14:00Z",
            ),
            (
                Hour,
                "Asia/Kolkata",
                "2026-11-22T12:34:56Z",
                "2026-11-22T12:30Z",
                "2026-11-22T13:30Z",
                "2026-11-22T14:30Z",
            ),
            (
                Hour,
                "Asia/Kathmandu",
                "2026-11-22T12:00:00Z",
                "2026-11-22T11:15Z",
                "2026-11-22T12:15Z",
                "2026-11-22T13:15Z",
            ),
            (
                Hour,
                "Europe/Berlin",
                "2026-10-25T00:30:00Z",
                "2026-10-25T00:00Z",
                "2026-10-25T01:00Z",
                "2026-10-25T02:00Z",
            ),
        ] {
            let wanted = (start.to_owned(), end.to_owned(), next.to_owned());
            assert_eq!(span(unit, zone, instant), wanted, "{unit:?} {zone} {instant}");
        }
    }

    #[test]
    fn a_zone_that_does_not_exist_is_no_calendar() {
        for zone in ["", "Berlin", "Europe/Bielefeld", "europe/berlin", "+01:00"] {
            assert!(Calendar::new(Unit::Day, zone).is_none(), "{zone}");
        }
    }

    #[test]
    fn a_wall_clock_that_is_ahead_moves_the_windows_and_not_their_names() {
        let calendar = Calendar::new(Unit::Day, "UTC").unwrap();
        let now = at("2026-11-22T23:59:58Z");
        let span = calendar.span(now, 5 * SECOND as i64);
        assert_eq!(span.end, at("2026-11-24T00:00:00Z"));
        assert_eq!(span.end_for(0, now), span.end);
        assert_eq!(calendar.span(now, 0).end, at("2026-11-23T00:00:00Z"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        /// No instant without a window, none in two, and no window that begins before the one before it ends.
        #[test]
        fn every_instant_is_in_exactly_one_window_and_windows_follow_each_other(
            zone in proptest::sample::select(&chrono_tz::TZ_VARIANTS[..]),
            unit in proptest::sample::select(&Unit::ALL[..]),
            at in 63_072_000u64 * SECOND..4_102_444_800 * SECOND,
        ) {
            let calendar = Calendar::new(unit, zone.name()).unwrap();
            let span = calendar.compute(at);
            prop_assert!(span.start <= at && at < span.end && span.end < span.next);
            prop_assert!(span.end - span.start > u64::from(unit.most()).min(20 * 3600 * SECOND) || unit > Unit::Hour);
            let following = calendar.compute(span.end);
            prop_assert_eq!((following.start, following.end), (span.end, span.next));
            let last = calendar.compute(span.end - 1);
            prop_assert_eq!((last.start, last.end), (span.start, span.end));
            prop_assert_eq!(span.end_at(at), span.end);
            prop_assert_eq!(span.end_at(span.end), span.next);
            prop_assert_eq!(span.end_at(span.start - 1), span.start);
        }
    }
}
