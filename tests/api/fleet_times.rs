//! Times in a fleet: announced moments, ends of overrides, and what an instance does before it knows the record.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::overrides::{TWO_A_DAY, put as put_override, status as status_of};
use crate::support::process::{Tidegate, command};
use crate::support::redis_server::{RedisServer, signal};
use crate::support::shifted_clock::ShiftedClock;
use crate::support::until;

const HOUR: i64 = 3_600 * 1_000_000;

fn variables<'v>(url: &'v str, name: &'v str) -> Vec<(&'v str, &'v str)> {
    vec![
        ("REDIS_URL", url),
        ("TIDEGATE_SECRET", "the fleet's secret, for tests"),
        ("TIDEGATE__FLEET__NAME", name),
        ("TIDEGATE__FLEET__HEARTBEAT_S", "1"),
        ("TIDEGATE__REDIS__RECONNECT_INTERVAL_S", "1"),
        ("TIDEGATE__REDIS__WARM_UP_S", "0"),
        ("REDIS_TIMEOUT_MS", "5000"),
    ]
}

async fn start(url: &str, name: &str, more: &[(&str, &str)]) -> Tidegate {
    let mut all = variables(url, name);
    all.extend(more);
    Tidegate::start(Some(TWO_A_DAY), &all).await
}

async fn know(fleet: &[&Tidegate]) {
    for tidegate in fleet {
        until("each instance knows of each", async || {
            tidegate.status().await["fleet"]["instances"] == fleet.len()
        })
        .await;
    }
}

#[tokio::test]
async fn clock_ahead_by_an_hour_ends_no_override() {
    let redis = RedisServer::start();
    let clock = ShiftedClock::ahead(HOUR);
    let one = start(&redis.url(), "one", &[]).await;
    let ahead = start(&redis.url(), "ahead", &clock.variables()).await;
    one.connected().await;
    ahead.connected().await;
    know(&[&one, &ahead]).await;
    let body = json!({"rule": "default", "key": "nasty", "effect": "block", "expires_in": "30m", "reason": "a test"});
    assert_eq!(put_override(&one, "nasty", body, None).await.0, 201);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        for tidegate in [&one, &ahead] {
            assert_eq!(status_of(tidegate, "nasty").await, 403, "after {:?}", began.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // One that it makes itself lasts as long elsewhere.
    let body =
        json!({"rule": "default", "key": "other", "effect": "block", "expires_in": "3s", "reason": "a test"});
    assert_eq!(put_override(&ahead, "other", body, None).await.0, 201);
    assert_eq!(status_of(&one, "other").await, 403);
    until("it ends on both", async || {
        status_of(&one, "other").await != 403 && status_of(&ahead, "other").await != 403
    })
    .await;
}

#[tokio::test]
async fn moment_that_passed_is_dropped_from_the_record() {
    let redis = RedisServer::start();
    let clock = ShiftedClock::ahead(-30 * 1_000_000);
    let canary = ("RATE_LIMIT_CANARY_PERCENT", "10");
    let mut late = clock.variables();
    late.push(canary);
    let one = start(&redis.url(), "one", &[canary]).await;
    let mut two = start(&redis.url(), "two", &late).await;
    one.connected().await;
    two.connected().await;
    know(&[&one, &two]).await;
    assert!(one.set_percent(50.0).await["effective_at"].is_string(), "announced");
    for tidegate in [&one, &two] {
        until("the raise is in force", async || tidegate.status().await["percent_in_force"] == 50.0).await;
        until("its moment is dropped", async || {
            tidegate.status().await["rollout"]["effective_at"] == Value::Null
        })
        .await;
    }
    signal(two.pid(), "KILL");
    two.wait(Duration::from_secs(10));
    let disk = std::mem::replace(&mut two.directory, tempfile::tempdir().unwrap());
    let url = redis.url();
    let mut all = variables(&url, "two");
    all.extend(late);
    let two = Tidegate::start_by(|place: &Path| command(place), disk, &all).await;
    let status = two.status().await;
    assert_eq!(status["percent_in_force"], 50.0, "{}", status["rollout"]);
}

/// Asks for keys of its own without a pause, and returns the answers that Redis decided.
async fn decisions_of_a_start(tidegate: &Tidegate, lasts: Duration) -> Vec<Value> {
    let began = Instant::now();
    let mut by_redis = Vec::new();
    let mut number = 0;
    while began.elapsed() < lasts {
        let answer = tidegate.check(json!({"key": format!("key-{number}")})).await;
        number += 1;
        if answer["backend"] == "redis" && answer["fallback"] == false {
            by_redis.push(answer);
        }
    }
    by_redis
}

#[tokio::test]
async fn start_with_an_empty_disk_reads_the_record_first() {
    let redis = RedisServer::start();
    let one = start(&redis.url(), "one", &[]).await;
    one.connected().await;
    let back = one.admin("POST", "/admin/rollout/rollback").send().await.unwrap();
    assert_eq!(back.status(), 200);
    for round in 0..3 {
        let fresh = start(&redis.url(), &format!("fresh-{round}"), &[]).await;
        let by_redis = decisions_of_a_start(&fresh, Duration::from_millis(1_500)).await;
        assert_eq!(by_redis.len(), 0, "{:?}", by_redis.first());
        assert_eq!(fresh.status().await["redis"]["state"], "closed");
    }
}

#[tokio::test]
async fn start_beside_a_flushed_redis_asks_who_is_there() {
    let redis = RedisServer::start();
    // Alone it looks once a minute.
    let one = start(&redis.url(), "one", &[("TIDEGATE__FLEET__HEARTBEAT_S", "60")]).await;
    one.connected().await;
    let back = one.admin("POST", "/admin/rollout/rollback").send().await.unwrap();
    assert_eq!(back.status(), 200);
    until("it listens", async || {
        redis.run::<(String, usize)>(&["PUBSUB", "NUMSUB", "tidegate:fleet"]).1 == 1
    })
    .await;
    let _: String = redis.run(&["FLUSHALL"]);
    let fresh = start(&redis.url(), "fresh", &[("TIDEGATE__FLEET__HEARTBEAT_S", "60")]).await;
    let by_redis = decisions_of_a_start(&fresh, Duration::from_millis(2_500)).await;
    assert_eq!(by_redis.len(), 0, "{:?}", by_redis.first());
    assert_eq!(fresh.status().await["rollout"]["epoch"], 1);
}
