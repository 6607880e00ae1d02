//! Windows of the calendar in every time zone.

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
        (Day, "UTC", "2026-11-22T12:00:00Z", "2026-11-22T00:00Z", "2026-11-23T00:00Z", "2026-11-24T00:00Z"),
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
        (Week, "UTC", "2026-11-22T12:00:00Z", "2026-11-16T00:00Z", "2026-11-23T00:00Z", "2026-11-30T00:00Z"),
        (
            Week,
            "Asia/Tokyo",
            "2026-11-22T15:00:00Z",
            "2026-11-22T15:00Z",
            "2026-11-29T15:00Z",
            "2026-12-06T15:00Z",
        ),
        (Month, "UTC", "2028-02-29T12:00:00Z", "2028-02-01T00:00Z", "2028-03-01T00:00Z", "2028-04-01T00:00Z"),
        (
            Month,
            "Europe/Berlin",
            "2026-12-31T23:30:00Z",
            "2026-12-31T23:00Z",
            "2027-01-31T23:00Z",
            "2027-02-28T23:00Z",
        ),
        (Hour, "UTC", "2026-11-22T12:34:56Z", "2026-11-22T12:00Z", "2026-11-22T13:00Z", "2026-11-22T14:00Z"),
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
