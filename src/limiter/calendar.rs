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
#[path = "calendar_tests.rs"]
mod tests;
