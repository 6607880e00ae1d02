//! One bucket that a request owes, and what the state of a bucket means at an instant: GCRA's debt drains from now on,
//! that of a calendar window stands until the window ends.

use super::calendar::Span;
use super::clock::{Micros, SECOND};
use super::entry::{Entry, Measure};
use super::gcra::{Quota, Reading};
use super::share::Share;
use super::subject::Key;

/// A debt that exceeds the tolerance by more than this is that of a greater limit; less may be a thread that was held
/// up on its way here and knows an older time than the one before it.
const HELD_UP: Micros = 5 * SECOND;

/// A count of a calendar window that begins later than this is no sign of two clocks that differ: the clock of windows was
/// set back. The script of the shared store has the same bound.
pub(super) const SET_BACK: Micros = 60 * SECOND;

/// One bucket that a request owes.
#[derive(Clone, Copy, Debug)]
pub struct Charge {
    /// The bucket.
    pub key: Key,
    /// Its quota.
    pub quota: Quota,
    /// The calendar window that it is in, and its neighbours; `None` for GCRA.
    pub span: Option<Span>,
    /// Units to charge.
    pub cost: u32,
    /// The part of the quota that is served: the whole, but for an instance that decides alone what a fleet shares.
    pub share: Share,
    /// Whether a denial here denies the request; `false` for a shadow policy.
    pub enforce: bool,
}

impl Charge {
    #[inline]
    pub(super) fn amount(&self) -> Micros {
        self.share.stretch(self.quota.charge(self.cost), self.quota.tolerance())
    }

    /// From when the debt of this bucket counts, which is in `state`: now, or the end of the calendar window.
    #[inline]
    pub(super) fn from(&self, state: Micros, now: Micros) -> Micros {
        match &self.span {
            None => now,
            Some(span) => span.end_for(state, now),
        }
    }

    /// What is said of a bucket at `debt`, which counts from `from`.
    #[inline]
    pub(super) fn reading(&self, debt: Micros, allowed: bool, from: Micros, now: Micros) -> Reading {
        let mut reading = self.quota.reading(debt, self.cost, allowed);
        if self.share != Share::WHOLE {
            reading.remaining = self.share.part_of(reading.remaining);
            // Also where the whole quota had room.
            if !allowed && reading.retry_after.is_some() {
                reading.retry_after = Some((debt + self.amount()).saturating_sub(self.quota.tolerance()));
            }
        }
        match &self.span {
            None => reading,
            Some(span) => reading.ending_in(from.saturating_sub(span.wall(now))),
        }
    }

    /// The same of a bucket in `state` that has no room. A debt above the tolerance that was not cut (see [`HELD_UP`])
    /// drains down to it first, and whoever is told to wait is told of that time as well.
    #[inline]
    pub(super) fn denial(&self, debt: Micros, state: Micros, from: Micros, now: Micros) -> Reading {
        let reading = self.reading(debt, false, from, now);
        let above = match &self.span {
            None => state.saturating_sub(from + self.quota.tolerance()),
            Some(_) => 0,
        };
        // More than that is cut by the next hit that is no peek.
        let above = if above > HELD_UP { 0 } else { above };
        Reading { retry_after: reading.retry_after.map(|wait| wait + above), ..reading }
    }

    /// What is known of a bucket in `state`, calls under way left out.
    pub(super) fn known(&self, state: Micros, now: Micros) -> Reading {
        let from = self.from(state, now);
        let debt = state.saturating_sub(from).min(self.quota.tolerance());
        match debt + self.amount() <= self.quota.tolerance() {
            true => self.reading(debt, true, from, now),
            false => self.denial(debt, state, from, now),
        }
    }

    /// When the bucket is full again; 0 when it is. A debt that was made under a greater limit is cut to the present
    /// one for good: it would otherwise stand at the tolerance, undrained, and a client that comes back at the reported
    /// time would be denied again.
    #[inline]
    pub(super) fn settle(&self, entry: &mut Entry, peek: bool, now: Micros) -> Micros {
        let full_at = entry.full_at();
        if let Some(span) = &self.span {
            let end = span.end_at(span.wall(now));
            if full_at >= span.end_at(end) {
                return self.settle_later(span, end, entry, (peek, now));
            }
        }
        let from = self.from(full_at, now);
        let held_up = if self.span.is_none() { HELD_UP } else { 0 };
        let tolerance = self.quota.tolerance();
        if full_at > from + tolerance + held_up && !peek {
            entry.set(from + tolerance, Measure::of(self, tolerance), tolerance);
            return from + tolerance;
        }
        full_at
    }

    /// The same of a count that belongs to a later window than the present one, which ends at `end`.
    fn settle_later(
        &self,
        span: &Span,
        end: Micros,
        entry: &mut Entry,
        (peek, now): (bool, Micros),
    ) -> Micros {
        let (full_at, next) = (entry.full_at(), span.end_at(end));
        if let Some(further) = full_at.checked_sub(span.end_at(next)) {
            // Of a window that is neither this one nor the next. This thread may have been held up, and such a window has
            // begun; else the clock of windows was far ahead, and its count says nothing about ours.
            if further < HELD_UP {
                return full_at;
            }
            if !peek {
                entry.drain();
            }
            return 0;
        }
        let (count, tolerance) = ((full_at - next).min(self.quota.tolerance()), self.quota.tolerance());
        if end - span.wall(now) <= SET_BACK {
            // The next window has begun on another thread, or by another server's clock: the hit counts there.
            if full_at > next + tolerance && !peek {
                entry.set(next + count, Measure::of(self, count), count);
                return next + count;
            }
            return full_at;
        }
        // The clock of windows was set back. Left in the next window, the count would deny until the end of that one,
        // which may be two months away: it is carried into the present one.
        if !peek {
            entry.set(end + count, Measure::of(self, count), count);
        }
        end + count
    }
}
