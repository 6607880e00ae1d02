//! Clocks that differ and clocks that are set: calendar windows end by the clock that decides, and a client that waits as
//! long as `Retry-After` says is admitted.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;
use crate::support::shifted_clock::{ShiftedClock, machine_time};
use crate::support::until;

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;
/// How much further ahead Redis' clock is than ours.
const SKEWS: [i64; 6] = [-50_000, 50_000, -SECOND, 5 * SECOND, -5 * SECOND, 40 * SECOND];

fn windows(limit: &str) -> String {
    format!(
        "[[rule]]\nname = \"default\"\n[[rule.policy]]\nname = \"p\"\nby = \"header:x-api-key\"\n\
         algorithm = \"fixed_window\"\nlimit = \"{limit}\"\n"
    )
}

/// A Redis by the first clock, and an instance by the second.
async fn start(redis: &ShiftedClock, ours: &ShiftedClock, policies: &str) -> (RedisServer, Tidegate) {
    let redis = RedisServer::start_by(redis);
    let url = redis.url();
    let mut variables = ours.variables();
    variables.extend([("REDIS_URL", &*url), ("REDIS_TIMEOUT_MS", "5000")]);
    let tidegate = Tidegate::start(Some(policies), &variables).await;
    tidegate.connected().await;
    (redis, tidegate)
}

async fn hit(tidegate: &Tidegate) -> Value {
    let answer = tidegate.check(json!({"key": "k"})).await;
    assert_eq!((&answer["backend"], &answer["fallback"]), (&json!("redis"), &json!(false)), "{answer}");
    answer
}

/// Hits until a denial: what it says, when it was there, and how many were admitted before.
async fn exhaust(tidegate: &Tidegate) -> (u64, Instant, u32) {
    let mut admitted = 0;
    loop {
        let answer = hit(tidegate).await;
        if answer["allowed"] == false {
            return (answer["retry_after_ms"].as_u64().unwrap(), Instant::now(), admitted);
        }
        admitted += 1;
    }
}

/// Two a second, denied by Redis in the one round and by what is known of it in the other.
async fn second_windows(skew: i64) {
    let (theirs, ours) = (ShiftedClock::ahead(skew), ShiftedClock::ahead(0));
    let (_redis, tidegate) = start(&theirs, &ours, &windows("2/second")).await;
    exhaust(&tidegate).await;
    for round in 0..10 {
        let (mut wait, mut at, _) = exhaust(&tidegate).await;
        if round % 2 == 1 {
            (wait, at, _) = exhaust(&tidegate).await;
        }
        assert!((1..=1_000).contains(&wait), "skew {skew}: {wait} ms");
        tokio::time::sleep_until((at + Duration::from_millis(wait)).into()).await;
        let first = hit(&tidegate).await;
        assert_eq!(first["allowed"], true, "skew {skew}, round {round}: waited {wait} ms: {first}");
        assert_eq!(first["remaining"], 1, "skew {skew}: the limit is whole: {first}");
    }
}

#[tokio::test]
async fn waits_of_second_windows_are_exact_under_skew() {
    tokio::join!(
        second_windows(SKEWS[0]),
        second_windows(SKEWS[1]),
        second_windows(SKEWS[2]),
        second_windows(SKEWS[3]),
        second_windows(SKEWS[4]),
        second_windows(SKEWS[5]),
    );
}

/// Ten a minute, of which Redis' clock shows the last quarter.
async fn minute_window(skew: i64) {
    let shift = 45 * SECOND - machine_time() % (60 * SECOND);
    let (theirs, ours) = (ShiftedClock::ahead(shift), ShiftedClock::ahead(shift - skew));
    let rest_ms = || (60 * SECOND - (machine_time() + shift) % (60 * SECOND)) as u64 / 1_000;
    let (_redis, tidegate) = start(&theirs, &ours, &windows("10/minute")).await;
    let (_, _, admitted) = exhaust(&tidegate).await;
    assert!(admitted >= 10, "skew {skew}: {admitted}");
    let (wait, at) = loop {
        let before = rest_ms();
        let (wait, at, _) = exhaust(&tidegate).await;
        // Unless the minute ended in between.
        if rest_ms() <= before {
            // The server's clock is known to the time that its answer took.
            assert!((rest_ms()..before + 2_000).contains(&wait), "skew {skew}: {wait} ms of {before}");
            break (wait, at);
        }
    };
    tokio::time::sleep_until((at + Duration::from_millis(wait)).into()).await;
    assert_eq!(hit(&tidegate).await["allowed"], true, "skew {skew}: waited {wait} ms");
    let (_, _, admitted) = exhaust(&tidegate).await;
    assert_eq!(admitted, 9, "skew {skew}");
}

#[tokio::test]
async fn wait_of_a_minute_window_is_redis_own_under_skew() {
    tokio::join!(minute_window(40 * SECOND), minute_window(-40 * SECOND), minute_window(5 * SECOND));
}

/// Until midnight UTC by a clock that is ahead of the machine's by so much.
fn until_midnight(ahead: i64) -> i64 {
    DAY - (machine_time() + ahead).rem_euclid(DAY)
}

async fn daily_reset(in_redis: bool) {
    for _ in 0..5 {
        // Twelve seconds before midnight.
        let ahead = until_midnight(0) - 12 * SECOND;
        let clock = ShiftedClock::ahead(ahead);
        let redis = RedisServer::start_by(&clock);
        let url = redis.url();
        let mut variables = clock.variables();
        if in_redis {
            variables.extend([("REDIS_URL", &*url), ("REDIS_TIMEOUT_MS", "5000")]);
        }
        let tidegate = Tidegate::start(Some(&windows("10/day")), &variables).await;
        if in_redis {
            tidegate.connected().await;
        }
        let backend = if in_redis { "redis" } else { "memory" };
        let statuses = async |count: usize| {
            let mut passed = 0;
            for _ in 0..count {
                passed += usize::from(tidegate.get_as("/", "k").await.status() != 429);
            }
            passed
        };
        let passed = statuses(15).await;
        let denied = tidegate.get_as("/", "k").await;
        let at = Instant::now();
        let rest = until_midnight(ahead) / SECOND;
        if rest > 60 {
            // The start took more than twelve seconds: the day is over already.
            continue;
        }
        assert_eq!((passed, denied.status().as_u16()), (10, 429), "{backend}");
        let wait: u64 = denied.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((rest as u64..=rest as u64 + 2).contains(&wait), "{backend}: {wait} of {rest}");
        tokio::time::sleep_until((at + Duration::from_secs(wait)).into()).await;
        assert!(until_midnight(ahead) > DAY / 2, "midnight is past");
        assert_eq!(statuses(15).await, 10, "{backend}: the next day has ten of its own");
        let denied = tidegate.get_as("/", "k").await;
        let wait: u64 = denied.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!(wait.abs_diff(until_midnight(ahead) as u64 / 1_000_000) <= 2, "{backend}: {wait}");
        return;
    }
    panic!("five starts took more than twelve seconds each");
}

#[tokio::test]
async fn daily_quota_is_whole_again_after_midnight() {
    tokio::join!(daily_reset(false), daily_reset(true));
}

#[tokio::test]
async fn redis_clock_set_back_a_day_is_logged_and_recovers() {
    let policies = format!(
        "[[rule]]\nname = \"bucket\"\nmatch = {{ path = \"/bucket\" }}\n[[rule.policy]]\nname = \"b\"\n\
         by = \"header:x-api-key\"\nlimit = \"20/second\"\nburst = 10\n{}",
        windows("10/day")
    );
    // Noon, so that a day earlier is the day before.
    let noon = DAY / 2 - machine_time().rem_euclid(DAY);
    let (theirs, ours) = (ShiftedClock::ahead(noon), ShiftedClock::ahead(noon));
    let (redis, tidegate) = start(&theirs, &ours, &policies).await;
    let left = |answer: &reqwest::Response| -> u64 {
        answer.headers()["x-ratelimit-remaining"].to_str().unwrap().parse().unwrap()
    };
    for remaining in (6..10).rev() {
        assert_eq!(left(&tidegate.get_as("/", "k").await), remaining);
    }
    // A debt of a day that another instance may have left, before the clock was set back.
    tidegate.get_as("/bucket", "k").await;
    let bucket = redis.buckets().into_iter().find(|key| key.contains(":b:"));
    theirs.set_ahead(noon - DAY);
    let last = tidegate.get_as("/", "k").await;
    assert_eq!(left(&last), 5, "four of this day are counted in the day that the clock shows now");
    assert_eq!(left(&tidegate.get_as("/", "k").await), 4);
    let reset: u64 = last.headers()["x-ratelimit-reset"].to_str().unwrap().parse().unwrap();
    assert!(reset.abs_diff(43_200) <= 60, "{reset} s until the end of the day that the clock shows");
    let redis_now: Vec<i64> = redis.run(&["TIME"]);
    let debt = (redis_now[0] * SECOND + DAY).to_string();
    if let Some(bucket) = bucket {
        let _: () = redis.run(&["SET", &bucket, &debt]);
    }
    until("the bucket recovers", async || tidegate.get_as("/bucket", "k").await.status() != 429).await;
    tidegate.says("Redis' clock was set back", 1).await;
}
