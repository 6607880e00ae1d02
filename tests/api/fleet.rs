//! Two instances and one Redis.

use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;

const POLICIES: &str = r#"
[[rule]]
name = "default"
  [[rule.policy]]
  name = "per-client"
  by = "header:x-api-key"
  limit = "100/hour"
"#;

#[tokio::test]
async fn two_instances_with_one_redis_admit_together_what_one_would_and_use_the_same_keys() {
    let redis = RedisServer::start();
    let url = redis.url();
    let variables = [("REDIS_URL", url.as_str()), ("REDIS_TIMEOUT_MS", "5000")];
    let first = Tidegate::start(Some(POLICIES), &variables).await;
    first.connected().await;
    let mut admitted = 0;
    for _ in 0..30 {
        admitted += usize::from(first.get_as("/", "one client").await.status() != 429);
    }
    assert_eq!(admitted, 30);
    // Started later, with nothing on its disk: what they have in common comes from Redis.
    let second = Tidegate::start(Some(POLICIES), &variables).await;
    second.connected().await;
    for _ in 0..100 {
        admitted += usize::from(second.get_as("/", "one client").await.status() != 429);
        admitted += usize::from(first.get_as("/", "one client").await.status() != 429);
    }
    assert_eq!(admitted, 100);
    assert_eq!(redis.buckets().len(), 1, "{:?}", redis.buckets());
    for tidegate in [&first, &second] {
        let lines = tidegate.request_lines(100).await;
        assert!(lines.iter().all(|line| line["rl_backend"] == "redis" && line["fallback"] == false));
    }
}

#[tokio::test]
async fn instances_agree_on_the_keys_of_the_canary_without_being_given_a_secret() {
    let redis = RedisServer::start();
    let url = redis.url();
    let variables =
        [("REDIS_URL", url.as_str()), ("RATE_LIMIT_CANARY_PERCENT", "50"), ("REDIS_TIMEOUT_MS", "5000")];
    let first = Tidegate::start(Some(POLICIES), &variables).await;
    first.connected().await;
    let second = Tidegate::start(Some(POLICIES), &variables).await;
    second.connected().await;
    let mut redis_decided = 0;
    for key in 0..200 {
        let ask = serde_json::json!({"key": format!("key-{key}")});
        let (one, two) = (first.check(ask.clone()).await, second.check(ask).await);
        assert_eq!(one["backend"], two["backend"], "key-{key}");
        redis_decided += usize::from(one["backend"] == "redis");
    }
    assert!((60..=140).contains(&redis_decided), "{redis_decided} of 200");
}
