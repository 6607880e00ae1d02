//! Redis refused, killed, frozen, slow: the service goes on, and no key gets a fresh budget.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::outage::{BACK, CONNECTED, DEGRADED, ONE_KEY, REPLACED};
use crate::support::process::Tidegate;
use crate::support::redis_server::{RedisServer, free_port};
use crate::support::relay::Relay;
use crate::support::until;

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
    let variables = [
        ("REDIS_URL", url.as_str()),
        ("APP_ENV", "production"),
        ("REDIS_TIMEOUT_MS", "1000"),
        ("TIDEGATE__REDIS__WARM_UP_S", "1"),
    ];
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
    until("the outage is closed", async || tidegate.lines_with(BACK) == 1).await;
    tidegate.says(DEGRADED, 1).await;
    tidegate.says(CONNECTED, 2).await;
}

#[tokio::test]
async fn a_hung_redis_costs_its_timeout_to_a_few_requests_and_nothing_to_the_rest() {
    let redis = RedisServer::start();
    let url = redis.url();
    let variables =
        [("REDIS_URL", url.as_str()), ("REDIS_TIMEOUT_MS", "300"), ("TIDEGATE__REDIS__WARM_UP_S", "1")];
    let tidegate = Tidegate::start(Some(ONE_KEY), &variables).await;
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
                ("TIDEGATE__REDIS__WARM_UP_S", "0"),
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

/// Too few requests to open a breaker: two that wait in a row are enough to look for a better connection.
#[tokio::test]
async fn a_connection_that_froze_on_a_quiet_instance_is_replaced_without_an_outage() {
    let redis = RedisServer::start();
    let relay = Relay::to(redis.port).await;
    let url = format!("redis://{}", relay.address);
    let variables = [("REDIS_URL", url.as_str()), ("REDIS_TIMEOUT_MS", "200"), ("APP_ENV", "production")];
    let tidegate = Tidegate::start(Some(ONE_KEY), &variables).await;
    tidegate.connected().await;
    relay.freeze_those_of_now();
    let mut by_memory = 0;
    for key in 0..10 {
        let answer = check(&tidegate, &format!("key-{key}")).await;
        by_memory += u32::from(answer["backend"] == "memory");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!((2..=3).contains(&by_memory), "{by_memory} requests were decided without Redis");
    tidegate.says(REPLACED, 1).await;
    tidegate.says(DEGRADED, 0).await;
    assert_eq!(relay.connections(), 2);
    assert!(tidegate.metrics().await.contains("tidegate_breaker_state 0"));
}

/// A third of its calls time out: never five in a row, never half of them.
#[tokio::test]
async fn a_connection_that_fails_now_and_then_is_replaced_by_one_that_does_not() {
    let redis = RedisServer::start();
    let relay = Relay::to(redis.port).await;
    let url = format!("redis://{}", relay.address);
    let variables = [("REDIS_URL", url.as_str()), ("REDIS_TIMEOUT_MS", "200"), ("APP_ENV", "production")];
    let tidegate = Tidegate::start(Some(ONE_KEY), &variables).await;
    tidegate.connected().await;
    relay.lame_those_of_now();
    let mut late = Vec::new();
    for key in 0..40 {
        let answer = check(&tidegate, &format!("key-{key}")).await;
        late.extend((answer["backend"] == "memory").then_some(key));
        // By then the answer that came too late has made way for the next.
        tokio::time::sleep(Duration::from_millis(if answer["backend"] == "memory" { 900 } else { 20 })).await;
    }
    assert!((1..=4).contains(&late.len()), "late: {late:?}");
    assert_eq!(relay.connections(), 2);
    tidegate.says(DEGRADED, 0).await;
}

#[tokio::test]
async fn a_redis_that_is_back_takes_over_its_keys_share_by_share_and_keeps_those_it_has() {
    let mut redis = RedisServer::start();
    let url = redis.url();
    let variables = [
        ("REDIS_URL", url.as_str()),
        ("REDIS_TIMEOUT_MS", "1000"),
        ("TIDEGATE__REDIS__RECONNECT_INTERVAL_S", "1"),
        ("TIDEGATE__REDIS__WARM_UP_S", "4"),
    ];
    let tidegate = Tidegate::start(Some(ONE_KEY), &variables).await;
    tidegate.connected().await;
    redis.kill();
    while check(&tidegate, "k").await["fallback"] == false {}
    redis.restart();
    let state = async || tidegate.status().await["redis"]["state"].as_str().unwrap().to_owned();
    until("it warms up", async || state().await == "half_open").await;
    let ready: Value = tidegate.get("/readyz").await.json().await.unwrap();
    assert_eq!((&ready["redis"], &ready["backend"]), (&json!("half_open"), &json!("memory")));
    let mut shares: HashMap<usize, usize> = HashMap::new();
    let mut taken = HashSet::new();
    for round in 0.. {
        let mut now = HashSet::new();
        for key in 0..150 {
            let ask = json!({"key": format!("key-{key}"), "peek": true});
            let answer = tidegate.check(ask).await;
            if answer["backend"] == "redis" {
                now.insert(key);
            } else {
                assert_eq!(answer["fallback"], true);
            }
        }
        assert!(taken.is_subset(&now), "who was with Redis stays there: {:?}", taken.difference(&now));
        taken = now;
        shares.insert(round, taken.len());
        if state().await == "closed" {
            break;
        }
    }
    let first = shares[&0];
    assert!((2..=60).contains(&first), "{first} of 150 keys at the beginning");
    let between = shares.values().filter(|share| (61..=110).contains(*share)).count();
    eprintln!("warm-up: {first} of 150 at first, {between} rounds about half-way, {} at last", taken.len());
    assert!(between > 0, "{shares:?}");
    assert_eq!(taken.len(), 150);
    let metrics = tidegate.metrics().await;
    let warming = metrics.lines().find(|line| line.contains(r#"fallbacks_total{reason="warming"}"#)).unwrap();
    assert!(!warming.ends_with(" 0"), "{warming}");
}

#[tokio::test]
async fn calls_under_way_are_bounded_and_the_rest_is_decided_at_once() {
    let redis = RedisServer::start();
    let relay = Relay::to(redis.port).await;
    let url = format!("redis://{}", relay.address);
    let variables =
        [("REDIS_URL", url.as_str()), ("REDIS_TIMEOUT_MS", "5000"), ("TIDEGATE__REDIS__MAX_IN_FLIGHT", "4")];
    let tidegate = Arc::new(Tidegate::start(Some(ONE_KEY), &variables).await);
    tidegate.connected().await;
    relay.delay(Duration::from_secs(1));
    let calls = (0..40).map(|key| {
        let tidegate = Arc::clone(&tidegate);
        tokio::spawn(async move {
            let started = Instant::now();
            (check(&tidegate, &format!("key-{key}")).await["backend"] == "redis", started.elapsed())
        })
    });
    let mut by_redis = 0;
    for call in calls.collect::<Vec<_>>() {
        let (redis, took) = call.await.unwrap();
        by_redis += u32::from(redis);
        assert_eq!(redis, took >= Duration::from_secs(1), "{took:?}");
    }
    assert_eq!(by_redis, 4);
    let metrics = tidegate.metrics().await;
    assert!(metrics.contains(r#"tidegate_fallbacks_total{reason="saturated"} 36"#), "{metrics}");
    // A decision goes on without its client and holds its permit until Redis has answered, no longer.
    for key in 0..4 {
        let ask = json!({"key": format!("leaving-{key}")});
        let post = tidegate.http.post(tidegate.url("/v1/check")).json(&ask);
        assert!(post.timeout(Duration::from_millis(50)).send().await.is_err());
    }
    let done = r#"tidegate_decisions_without_client_total{outcome="allow"} 4"#;
    until("the four are decided", async || tidegate.metrics().await.contains(done)).await;
    relay.delay(Duration::ZERO);
    assert_eq!(check(&tidegate, "another").await["backend"], "redis", "the permits are free again");
    assert!(tidegate.metrics().await.contains(r#"tidegate_fallbacks_total{reason="saturated"} 36"#));
}

#[tokio::test]
async fn a_user_with_just_the_permissions_that_the_documentation_lists_is_enough() {
    let redis = RedisServer::start();
    let documentation = include_str!("../../docs/when-redis-is-away.md");
    let (_, rest) = documentation.split_once("`ACL SETUSER … ").unwrap();
    let (permissions, _) = rest.split_once('`').unwrap();
    let mut words = vec!["ACL", "SETUSER", "tide", "on", ">s3cret"];
    words.extend(permissions.split_whitespace());
    let _: () = redis.run(&words);
    let url = format!("redis://tide:s3cret@127.0.0.1:{}", redis.port);
    let variables = [("REDIS_URL", url.as_str()), ("REDIS_TIMEOUT_MS", "5000")];
    let tidegate = Tidegate::start(Some(ONE_KEY), &variables).await;
    tidegate.connected().await;
    let _: () = redis.run(&["SCRIPT", "FLUSH"]);
    assert_eq!(check(&tidegate, "k").await["backend"], "redis");
    let forgiven: Value =
        tidegate.admin("DELETE", "/admin/keys?key=k").send().await.unwrap().json().await.unwrap();
    assert_eq!(forgiven["complete"], true, "{forgiven}");
    assert_eq!(redis.buckets(), [""; 0]);
}
