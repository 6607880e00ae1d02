//! A limit, a burst, a time and a time zone are refused with words, or make a quota whose arithmetic holds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::config::policies::parse;
use tidegate::limiter::gcra::{LONGEST_TOLERANCE, admits};

fuzz_target!(|text: &str| {
    let mut lines = text.split('\n');
    let mut next = || lines.next().unwrap_or_default().replace(['\'', '\r'], "");
    let (limit, burst, time, zone) = (next(), next(), next(), next());
    let mut policy = format!("[[rule]]\nname = 'r'\n[[rule.policy]]\nname = 'p'\nby = 'ip'\nlimit = '{limit}'\n");
    if !burst.is_empty() {
        policy.push_str(&format!("burst = {}\n", burst.parse::<i64>().unwrap_or(-1)));
    }
    if !time.is_empty() {
        policy.push_str(&format!("block_after = 3\nblock_within = '{time}'\nblock_for = '{time}'\n"));
    }
    if !zone.is_empty() {
        policy.push_str(&format!("algorithm = 'fixed_window'\ntime_zone = '{zone}'\n"));
    }
    let Ok(rules) = parse("p", &policy) else { return };
    let [policy] = rules.policies() else { panic!("one policy") };
    let quota = &policy.quota;
    assert!(quota.tolerance() <= LONGEST_TOLERANCE && quota.tolerance() > 0 && quota.interval() > 0);
    assert!(admits(0, quota.charge(quota.burst()), quota.tolerance()), "a full bucket admits its burst");
    assert!(!admits(0, quota.charge(quota.burst().saturating_add(1)), quota.tolerance()) || quota.burst() == u32::MAX);
    if let Some(calendar) = &policy.calendar {
        // The year 2026, its summer and its winter.
        for now in [1_767_225_600_000_000, 1_782_864_000_000_000, 1_798_761_599_999_999] {
            let span = calendar.span(now, 0);
            assert!(span.start <= now && now < span.end && span.end < span.next);
            assert!(u64::from(quota.limit()) < span.end - span.start);
        }
    }
});
