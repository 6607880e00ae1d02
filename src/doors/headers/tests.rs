//! Against the examples of the drafts, of Envoy and of GitHub, letter by letter.

use std::num::NonZeroU32;

use super::*;
use crate::limiter::decision::Backend;
use crate::limiter::gcra::Reading;
use crate::limiter::rollout::Arm;
use crate::limiter::route::Route;
use crate::limiter::share::Share;
use crate::limiter::subject::Subject;

const NOW: Micros = 1_350_084_794 * SECOND;

/// A policy of so many in so many seconds, so many at once.
fn policy(name: &str, limit: u32, seconds: u64, burst: u32) -> Policy {
    let n = |number| NonZeroU32::new(number).unwrap();
    Policy::new(name, Subject::ip(), Quota::new(n(limit), seconds * SECOND, n(burst)).unwrap())
}

/// What remains, the seconds until the bucket is full, and until a denied hit is admitted.
type Said = (u32, u64, Option<u64>);

/// The headers of one rule with these policies, of which the one at `bound` binds.
fn written(sets: Sets, bound: usize, policies: Vec<(Policy, Said)>) -> Vec<(String, String)> {
    let (policies, said): (Vec<Policy>, Vec<Said>) = policies.into_iter().unzip();
    let mut rules = Rules::none();
    rules.add("rule", Route::any(), 1, policies);
    let rules = Arc::new(rules);
    let verdict = |(policy, &(remaining, reset, denied)): (PolicyId, &Said)| Verdict {
        policy,
        reading: Reading {
            allowed: denied.is_none(),
            remaining,
            debt: reset * SECOND,
            reset_after: reset * SECOND,
            retry_after: Some(denied.unwrap_or(0) * SECOND),
        },
        backend: Backend::Memory,
        arm: Arm::Control,
        fallback: None,
        share: Share::WHOLE,
        own: None,
        missing: false,
        waived: false,
    };
    let verdicts: Vec<Verdict> = said.iter().enumerate().map(verdict).collect();
    let told = Told {
        rules: &rules,
        bound: &verdicts[bound],
        verdicts: verdicts.iter().map(|verdict| (rules.policy(verdict.policy), verdict)),
        wall: || NOW,
    };
    let mut headers = HeaderMap::new();
    told.write(&mut Desk::default(), sets, &mut headers);
    let mut lines: Vec<(String, String)> =
        headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    lines.sort();
    lines
}

fn are(lines: &[(String, String)], wanted: &[(&str, &str)]) {
    let lines: Vec<(&str, &str)> = lines.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(lines, wanted);
}

const IETF: Sets = Sets { ietf: true, ..Sets::NONE };
const DRAFT_03: Sets = Sets { draft_03: true, ..Sets::NONE };
const GITHUB: Sets = Sets { x_ratelimit: Some(XRateLimit::GitHub), ..Sets::NONE };

#[test]
fn the_examples_of_the_current_draft_are_written_as_they_stand_there() {
    // draft-ietf-httpapi-ratelimit-headers-10, 3.2, 4.2, and 3.
    are(
        &written(IETF, 0, vec![(policy("default", 100, 10, 100), (50, 30, None))]),
        &[("ratelimit", r#""default";r=50;t=30"#), ("ratelimit-policy", r#""default";q=100;w=10"#)],
    );
    let burst = (policy("burst", 100, 60, 100), (99, 1, None));
    let daily = (policy("daily", 1_000, 86_400, 1_000), (999, 87, None));
    are(
        &written(IETF, 0, vec![burst, daily]),
        &[
            ("ratelimit", r#""burst";r=99;t=1, "daily";r=999;t=87"#),
            ("ratelimit-policy", r#""burst";q=100;w=60, "daily";q=1000;w=86400"#),
        ],
    );
}

#[test]
fn the_examples_of_draft_03_are_written_as_they_stand_there() {
    // "Throttling window specified via parameter"
    are(
        &written(DRAFT_03, 0, vec![(policy("one", 100, 60, 100), (99, 50, None))]),
        &[("ratelimit-limit", "100, 100;w=60"), ("ratelimit-remaining", "99"), ("ratelimit-reset", "50")],
    );
    // "Use with multiple windows"
    let hourly = (policy("hourly", 1_000, 3_600, 1_000), (1_000, 0, None));
    let daily = (policy("daily", 5_000, 86_400, 5_000), (100, 36_000, None));
    are(
        &written(DRAFT_03, 1, vec![hourly, daily]),
        &[
            ("ratelimit-limit", "5000, 1000;w=3600, 5000;w=86400"),
            ("ratelimit-remaining", "100"),
            ("ratelimit-reset", "36000"),
        ],
    );
    let limit = |policies: Vec<Policy>| {
        let policies = policies.into_iter().map(|policy| (policy, (1, 1, None))).collect();
        written(DRAFT_03, 0, policies)[0].1.clone()
    };
    // "RateLimit-Limit"
    let (second, minute) = (policy("a", 10, 1, 10), policy("b", 50, 60, 50));
    let (hour, day) = (policy("c", 1_000, 3_600, 1_000), policy("d", 5_000, 86_400, 5_000));
    let four = vec![second.clone(), minute, hour.clone(), day];
    assert_eq!(limit(four), "10, 10;w=1, 50;w=60, 1000;w=3600, 5000;w=86400");
    let burst = vec![policy("a", 10, 1, 1_000), hour.clone()];
    assert_eq!(limit(burst), "10, 10;w=1;burst=1000, 1000;w=3600");
    // Envoy's DRAFT_VERSION_03, but for the names, which it appends and puts "X-" before: 10, 10;w=1;name="per-ip", …
    assert_eq!(limit(vec![second, hour]), "10, 10;w=1, 1000;w=3600");
}

#[test]
fn the_example_of_github_is_written_as_it_stands_there() {
    // Ten minutes after the Date of that answer, 1350084794.
    are(
        &written(GITHUB, 0, vec![(policy("core", 5_000, 3_600, 5_000), (4_987, 600, None))]),
        &[
            ("x-ratelimit-limit", "5000"),
            ("x-ratelimit-remaining", "4987"),
            ("x-ratelimit-reset", "1350085394"),
            ("x-ratelimit-resource", "core"),
            ("x-ratelimit-used", "13"),
        ],
    );
}

#[test]
fn with_a_burst_of_its_own_what_is_used_and_what_remains_are_the_burst() {
    let lines = written(GITHUB, 0, vec![(policy("p", 100, 60, 20), (15, 3, None))]);
    are(&lines[..2], &[("x-ratelimit-limit", "100"), ("x-ratelimit-remaining", "15")]);
    are(&lines[4..], &[("x-ratelimit-used", "5")]);
}

#[test]
fn where_a_hit_is_denied_every_set_tells_the_moment_of_retry_after() {
    let denied = || vec![(policy("p", 100, 60, 100), (0, 60, Some(1)))];
    assert_eq!(written(IETF, 0, denied())[0].1, r#""p";r=0;t=1"#);
    assert_eq!(written(DRAFT_03, 0, denied())[2].1, "1");
    assert_eq!(written(GITHUB, 0, denied())[2].1, (1_350_084_794 + 1).to_string());
    assert_eq!(written(Sets::default(), 0, denied())[4], ("x-ratelimit-reset".to_owned(), "1".to_owned()));
}

#[test]
fn a_window_that_is_no_whole_number_of_seconds_is_left_out_rather_than_rounded() {
    let quota = Quota::new(NonZeroU32::MIN, SECOND * 3 / 2, NonZeroU32::MIN).unwrap();
    let odd = || vec![(Policy::new("p", Subject::ip(), quota), (1, 0, None))];
    assert_eq!(written(DRAFT_03, 0, odd())[0].1, "1");
    assert_eq!(written(IETF, 0, odd())[1].1, r#""p";q=1"#);
}

#[test]
fn no_set_writes_no_header() {
    are(&written(Sets::NONE, 0, vec![(policy("p", 1, 1, 1), (0, 1, None))]), &[]);
}

#[test]
fn what_an_upstream_says_of_limits_is_replaced_in_the_sets_that_are_on_and_kept_in_the_others() {
    let names = [RATELIMIT_POLICY, RATELIMIT, LIMIT, REMAINING, RESET];
    let more = [X_LIMIT, X_REMAINING, X_RESET, X_USED, X_RESOURCE, RETRY_AFTER];
    let kept = |sets: Sets, allowed: bool| -> Vec<HeaderName> {
        let mut headers = HeaderMap::new();
        names
            .iter()
            .chain(&more)
            .for_each(|name| headers.append(name.clone(), HeaderValue::from_static("7")));
        assert!(speaks_of_limits(&headers));
        clear(&mut headers, sets, allowed);
        names.iter().chain(&more).filter(|name| headers.contains_key(*name)).cloned().collect()
    };
    assert_eq!(kept(Sets::NONE, true).len(), 11);
    assert_eq!(kept(Sets::NONE, false).len(), 10, "Retry-After is ours on a denial");
    assert_eq!(kept(IETF, true)[..3], [LIMIT, REMAINING, RESET]);
    assert_eq!(kept(DRAFT_03, true)[..3], [RATELIMIT_POLICY, RATELIMIT, X_LIMIT]);
    assert_eq!(kept(Sets::default(), true)[3..], [X_USED, X_RESOURCE, RETRY_AFTER]);
    assert_eq!(kept(GITHUB, true)[5..], [RETRY_AFTER]);
}
