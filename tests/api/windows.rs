//! Quotas that follow the calendar, before real clients: in memory, in Redis, and moved from one to the other.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;

/// Ten a day in a zone whose midnight is far from now, beside a bucket that is wide enough.
fn policies() -> String {
    format!(
        r#"
[[rule]]
name = "default"
  [[rule.policy]]
  name = "a-day"
  by = "header:x-api-key"
  algorithm = "fixed_window"
  limit = "10/day"
  time_zone = "{}"
  [[rule.policy]]
  name = "a-second"
  by = "header:x-api-key"
  limit = "100/second"
"#,
        far_from_midnight()
    )
}

/// A zone where it is neither nearly nor just past midnight, so that no test lasts from one day to the next.
fn far_from_midnight() -> &'static str {
    match seconds() / 3_600 % 24 {
        3..=20 => "UTC",
        // There it is eight to thirteen o'clock.
        _ => "Asia/Tokyo",
    }
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Until the next midnight of [`far_from_midnight`], neither of which zones moves its clocks.
fn until_midnight() -> u64 {
    let ahead = if far_from_midnight() == "UTC" { 0 } else { 9 * 3_600 };
    86_400 - (seconds() + ahead) % 86_400
}

fn number(answer: &reqwest::Response, name: &str) -> u64 {
    answer.headers()[name].to_str().unwrap().parse().unwrap()
}

/// Sends so many requests of one key, and returns how many passed.
async fn passed(tidegate: &Tidegate, key: &str, requests: usize) -> usize {
    let mut passed = 0;
    for _ in 0..requests {
        passed += usize::from(tidegate.get_as("/", key).await.status() != 429);
    }
    passed
}

#[tokio::test]
async fn a_daily_quota_is_ten_until_local_midnight_in_memory_and_in_redis_alike() {
    let redis = RedisServer::start();
    let in_memory = Tidegate::start(Some(&policies()), &[]).await;
    let in_redis = Tidegate::start(Some(&policies()), &[("REDIS_URL", &redis.url())]).await;
    in_redis.says("Redis rate limiting backend connected", 1).await;
    for (tidegate, backend) in [(in_memory, "memory"), (in_redis, "redis")] {
        let first = tidegate.get_as("/", "k").await;
        assert_eq!(first.headers()["ratelimit-policy"], r#""a-day";q=10;w=86400, "a-second";q=100;w=1"#);
        assert_eq!((number(&first, "x-ratelimit-limit"), number(&first, "x-ratelimit-remaining")), (10, 9));
        assert!(number(&first, "x-ratelimit-reset").abs_diff(until_midnight()) <= 2, "{backend}");
        assert_eq!(passed(&tidegate, "k", 15).await, 9, "{backend}");
        let denied = tidegate.get_as("/", "k").await;
        assert_eq!(denied.status(), 429);
        assert!(number(&denied, "retry-after").abs_diff(until_midnight()) <= 2, "{backend}");
        let problem: serde_json::Value = denied.json().await.unwrap();
        assert_eq!(problem["policy"], "a-day");
        assert_eq!(passed(&tidegate, "other", 1).await, 1, "each key has its own");
        tidegate.says(&format!(r#""rl_backend":"{backend}""#), 18).await;
    }
}

#[tokio::test]
async fn a_daily_count_moves_between_memory_and_redis_and_survives_a_redis_that_dies_or_forgets() {
    let mut redis = RedisServer::start();
    let variables = [("REDIS_URL", &*redis.url()), ("RATE_LIMIT_CANARY_PERCENT", "0")];
    let tidegate = Tidegate::start(Some(&policies()), &variables).await;
    tidegate.says("Redis rate limiting backend connected", 1).await;
    assert_eq!(passed(&tidegate, "k", 4).await, 4);
    tidegate.set_percent(100.0).await;
    assert_eq!(passed(&tidegate, "k", 3).await, 3);
    // All seven are known there: four came along with the first call.
    let keys = redis.buckets();
    let day = keys.iter().find(|key| key.contains(":a-day:")).unwrap();
    assert!(redis.run::<String>(&["GET", day]).contains(":7."));
    let _: () = redis.run(&["FLUSHALL"]);
    assert_eq!(passed(&tidegate, "k", 1).await, 1);
    assert!(redis.run::<String>(&["GET", day]).contains(":8."), "the note brings it back");
    redis.kill();
    assert_eq!(passed(&tidegate, "k", 5).await, 2, "memory goes on from eight");
}
