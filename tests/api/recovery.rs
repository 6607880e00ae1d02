//! A Redis that is back: for a while each hit passes the share of this instance as well, and that invents no denial.

use serde_json::{Value, json};

use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;
use crate::support::until;

/// Hardly anything drains while the test lasts.
const POLICIES: &str = r#"
[[rule]]
name = "three"
match = { path = "/three" }
  [[rule.policy]]
  name = "three"
  by = "header:x-api-key"
  limit = "3/day"

[[rule]]
name = "eight"
match = { path = "/eight" }
  [[rule.policy]]
  name = "eight"
  by = "header:x-api-key"
  limit = "8/day"
  block_after = 2
  block_within = "1m"
  block_for = "1h"
"#;

/// One of four instances by its configuration, and the Redis that it loses and finds again.
async fn one_of_four(redis: &RedisServer) -> Tidegate {
    let variables = [
        ("REDIS_URL", &*redis.url()),
        ("REDIS_TIMEOUT_MS", "2000"),
        ("TIDEGATE__REDIS__RECONNECT_INTERVAL_S", "60"),
        ("TIDEGATE__REDIS__WARM_UP_S", "0"),
        ("TIDEGATE__REDIS__FLEET_SIZE", "4"),
        ("TIDEGATE__FLEET__HEARTBEAT_S", "0"),
    ];
    let tidegate = Tidegate::start(Some(POLICIES), &variables).await;
    tidegate.connected().await;
    let share = tidegate.status().await["fallback_share"].clone();
    assert_eq!(share, json!({"share": 0.25, "source": "fleet_size"}));
    tidegate
}

async fn lost(tidegate: &Tidegate) {
    until("Redis is lost", async || {
        tidegate.check(json!({"rule": "three", "key": "a watcher"})).await;
        tidegate.status().await["redis"]["state"] == "open"
    })
    .await;
}

async fn check(tidegate: &Tidegate, rule: &str, key: &str) -> Value {
    tidegate.check(json!({"rule": rule, "key": key})).await
}

#[tokio::test]
async fn a_burst_after_an_outage_is_decided_by_redis_alone() {
    let mut redis = RedisServer::start();
    let tidegate = one_of_four(&redis).await;
    // One was charged before the outage, none in it.
    assert_eq!(check(&tidegate, "three", "before").await["allowed"], true);
    redis.kill();
    lost(&tidegate).await;
    redis.restart();
    tidegate.connected().await;
    for (key, admitted) in [("fresh", 3), ("before", 2)] {
        for hit in 1..=4 {
            let answer = check(&tidegate, "three", key).await;
            let wanted = (json!(hit <= admitted), json!("redis"), json!(false));
            let told = (answer["allowed"].clone(), answer["backend"].clone(), answer["fallback"].clone());
            assert_eq!(told, wanted, "hit {hit} of {key}: {answer}");
        }
    }
}

/// Two units of eight are the share. What is used up in the outage is denied after it, by its own name, until Redis has
/// answered for the key.
#[tokio::test]
async fn a_share_used_up_in_an_outage_is_denied_by_its_name() {
    let mut redis = RedisServer::start();
    let tidegate = one_of_four(&redis).await;
    redis.kill();
    lost(&tidegate).await;
    for allowed in [true, true, false] {
        let answer = check(&tidegate, "eight", "busy").await;
        assert_eq!((&answer["allowed"], &answer["fallback"]), (&json!(allowed), &json!(true)), "{answer}");
    }
    redis.restart();
    tidegate.connected().await;
    for _ in 0..5 {
        let answer = check(&tidegate, "eight", "busy").await;
        let told = [&answer["allowed"], &answer["state"], &answer["backend"], &answer["fallback"]];
        assert_eq!(told, [&json!(false), &json!("throttle"), &json!("memory"), &json!(true)], "{answer}");
        assert_eq!(answer["by_share"], true, "{answer}");
        assert!(answer["retry_after_ms"].as_u64().unwrap() > 3_600_000, "{answer}");
    }
    let stored: i64 = redis.run(&["DBSIZE"]);
    assert!(stored <= 2, "nothing was asked about it: {stored} keys");
    let metrics = tidegate.metrics().await;
    assert!(metrics.contains(r#"tidegate_fallbacks_total{reason="share"} 5"#), "{metrics}");
    let blocked = tidegate.status().await["blocked_keys"].clone();
    assert_eq!(blocked, 0, "a share is a guess: no client is blocked by it");
    // A peek asks Redis, which knows nothing of it and is told nothing by a peek.
    let peek = tidegate.check(json!({"rule": "eight", "key": "busy", "peek": true})).await;
    assert_eq!((&peek["backend"], &peek["by_share"]), (&json!("redis"), &Value::Null), "{peek}");
    let lines = tidegate.request_lines(5).await;
    let by_share = lines.iter().filter(|line| line["by_share"] == true);
    assert_eq!(by_share.clone().count(), 5);
    assert!(by_share.into_iter().all(|line| line["rl_backend"] == "memory" && line["fallback"] == true));
}

/// What memory has admitted rides on the first call, and the denials of Redis are those of its own count.
#[tokio::test]
async fn a_denial_by_redis_after_an_outage_is_its_own_count() {
    let mut redis = RedisServer::start();
    let url = redis.url();
    let variables = [
        ("REDIS_URL", &*url),
        ("REDIS_TIMEOUT_MS", "2000"),
        ("TIDEGATE__REDIS__WARM_UP_S", "0"),
        ("TIDEGATE__FLEET__HEARTBEAT_S", "0"),
        ("TIDEGATE_SECRET", "0123456789abcdef"),
    ];
    let tidegate = Tidegate::start(Some(POLICIES), &variables).await;
    tidegate.connected().await;
    redis.kill();
    lost(&tidegate).await;
    for allowed in [true, true, true, false] {
        assert_eq!(check(&tidegate, "three", "greedy").await["allowed"], allowed);
    }
    redis.restart();
    tidegate.connected().await;
    let asked = check(&tidegate, "three", "greedy").await;
    let told = [&asked["allowed"], &asked["backend"], &asked["cached"]];
    assert_eq!(told, [&json!(false), &json!("redis"), &Value::Null], "Redis has been asked: {asked}");
    let known = check(&tidegate, "three", "greedy").await;
    assert_eq!([&known["allowed"], &known["cached"]], [&json!(false), &json!(true)], "{known}");
}
