//! Redis refused, killed, frozen, slow: the service goes on, and no key gets a fresh budget.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::process::Tidegate;
use crate::support::redis_server::{RedisServer, free_port};
use crate::support::relay::Relay;
use crate::support::until;

const DEGRADED: &str =
    "💥 PRODUCTION DEGRADED: Redis unavailable. Using in-memory fallback (single-instance only).";
const CONNECTED: &str = "✅ Redis rate limiting backend connected";

const ONE_KEY: &str = r#"
[[rule]]
name = "default"
  [[rule.policy]]
  name = "p"
  by = "header:x-api-key"
  limit = "60/minute"
  burst = 20
"#;

async fn check(tidegate: &Tidegate, key: &str) -> Value {
    tidegate.check(json!({"key": key})).await
}

#[tokio::test]
async fn redis_refused_at_start_stops_nothing_and_is_said_once() {
    let url = format!("redis://127.0.0.1:{}", free_port());
    let tidegate = Tidegate::start(Some(ONE_KEY), &[("REDIS_URL", &url), ("APP_ENV", "production")]).await;
    for _ in 0..50 {
        assert_eq!(tidegate.get_as("/", "k").await.status().as_u16() / 100, 4);
    }
    let lines = tidegate.request_lines(50).await;
    for line in &lines {
        assert_eq!((&line["rl_backend"], &line["arm"]), (&json!("memory"), &json!("canary")));
        assert_eq!(line["fallback"], true);
    }
    let ready = tidegate.get("/readyz").await;
    assert_eq!(ready.status(), 200);
    let ready: Value = ready.json().await.unwrap();
    assert_eq!(ready["backend"], "memory");
    assert!(ready["reason"].as_str().unwrap().contains("refused"), "{ready}");
    // Several attempts to connect later it is still one line.
    until("it has tried three times", async || {
        let metrics = tidegate.metrics().await;
        let line =
            metrics.lines().find(|line| line.contains(r#"redis_errors_total{kind="refused"}"#)).unwrap();
        line.rsplit_once(' ').unwrap().1.parse::<u32>().unwrap() >= 3
    })
    .await;
    tidegate.says(DEGRADED, 1).await;
    assert!(
        tidegate
            .output()
            .lines()
            .any(|line| line.contains(DEGRADED) && line.contains("ERROR") && line.contains("refused"))
    );
    let metrics = tidegate.metrics().await;
    assert!(metrics.contains(r#"tidegate_fallbacks_total{reason="open"} 50"#), "{metrics}");
    assert!(metrics.contains(r#"tidegate_backend_up{backend="redis"} 0"#));
}

#[tokio::test]
async fn redis_killed_and_restarted_costs_no_5xx_and_no_restart_of_ours() {
    let mut redis = RedisServer::start();
    let url = redis.url();
    let variables = [("REDIS_URL", url.as_str()), ("APP_ENV", "production"), ("REDIS_TIMEOUT_MS", "1000")];
    let tidegate = Tidegate::start(Some(ONE_KEY), &variables).await;
    tidegate.connected().await;
    assert_eq!(check(&tidegate, "k").await["backend"], "redis");
    redis.kill();
    for key in 0..50 {
        let answer = check(&tidegate, &format!("key-{key}")).await;
        assert_eq!(
            (&answer["allowed"], &answer["backend"], &answer["fallback"]),
            (&json!(true), &json!("memory"), &json!(true))
        );
    }
    redis.restart();
    until("Redis decides again", async || check(&tidegate, "another").await["backend"] == "redis").await;
    until("the outage is closed", async || tidegate.lines_with("Redis decides again: it was away for") == 1)
        .await;
    tidegate.says(DEGRADED, 1).await;
    tidegate.says(CONNECTED, 2).await;
}

#[tokio::test]
async fn a_hung_redis_costs_its_timeout_to_a_few_requests_and_nothing_to_the_rest() {
    let redis = RedisServer::start();
    let url = redis.url();
    let tidegate = Tidegate::start(Some(ONE_KEY), &[("REDIS_URL", &url), ("REDIS_TIMEOUT_MS", "300")]).await;
    tidegate.connected().await;
    redis.freeze();
    let mut waited = 0;
    for key in 0..40 {
        let started = Instant::now();
        let answer = check(&tidegate, &format!("key-{key}")).await;
        assert_eq!((&answer["allowed"], &answer["backend"]), (&json!(true), &json!("memory")));
        waited += usize::from(started.elapsed() >= Duration::from_millis(300));
    }
    redis.thaw();
    assert_eq!(waited, 5, "five in a row open the breaker");
    until("Redis decides again", async || check(&tidegate, "another").await["backend"] == "redis").await;
}

/// Sixteen clients of ONE key, over a Redis whose answers come late as often as not: some are decided there, some
/// here, many by both at once.
#[tokio::test]
async fn calls_that_time_out_under_16_concurrent_requests_on_one_key_admit_no_more_than_the_limit() {
    let redis = RedisServer::start();
    let relay = Relay::to(redis.port).await;
    let url = format!("redis://{}", relay.address);
    let tidegate = Arc::new(
        Tidegate::start(
            Some(ONE_KEY),
            &[
                ("REDIS_URL", &url),
                ("REDIS_TIMEOUT_MS", "40"),
                ("TIDEGATE__REDIS__RECONNECT_INTERVAL_S", "1"),
            ],
        )
        .await,
    );
    tidegate.connected().await;
    let (mut by_redis, mut timed_out) = (0, 0);
    for round in 0..6 {
        relay.hold(Duration::from_millis(55));
        let key = format!("key-{round}");
        let started = Instant::now();
        let clients = (0..16).map(|_| {
            let (tidegate, key) = (Arc::clone(&tidegate), key.clone());
            tokio::spawn(async move {
                let mut answers = Vec::new();
                while started.elapsed() < Duration::from_secs(2) {
                    answers.push(check(&tidegate, &key).await);
                }
                answers
            })
        });
        let mut answers = Vec::new();
        for client in clients.collect::<Vec<_>>() {
            answers.extend(client.await.unwrap());
        }
        let most = 20.0 + started.elapsed().as_secs_f64();
        let admitted = answers.iter().filter(|answer| answer["allowed"] == true).count();
        assert!(admitted as f64 <= most, "round {round}: {admitted} admitted, {most:.1} allowed");
        assert!(admitted >= 10, "round {round}: {admitted} admitted of a burst of 20");
        by_redis += answers.iter().filter(|answer| answer["backend"] == "redis").count();
        timed_out += answers.iter().filter(|answer| answer["fallback"] == true).count();
        relay.hold(Duration::ZERO);
        tidegate.connected().await;
    }
    assert!(by_redis > 20 && timed_out > 20, "both stores decided: {by_redis} there, {timed_out} here");
}

#[tokio::test]
async fn a_wrong_password_is_told_as_what_it_is() {
    let redis = RedisServer::with_password("the right one");
    let url = format!("redis://:wrong@127.0.0.1:{}", redis.port);
    let tidegate = Tidegate::start(Some(ONE_KEY), &[("REDIS_URL", &url)]).await;
    until("the cause is known", async || tidegate.status().await["redis"]["last_error_kind"] == "auth").await;
    assert_eq!(check(&tidegate, "k").await["fallback"], true);
    tidegate.says("⚠️  Development: Using in-memory rate limiting. Redis: [auth: ", 1).await;
}
