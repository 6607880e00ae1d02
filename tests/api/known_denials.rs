//! What Redis told before is enough to deny: an attack costs no commands, and nobody is denied for it whom Redis would
//! have admitted.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;

fn policies(limit: &str, burst: u32) -> String {
    format!(
        "[[rule]]\nname = \"default\"\n[[rule.policy]]\nname = \"p\"\nby = \"header:x-api-key\"\nlimit = \"{limit}\"\n\
         burst = {burst}\n"
    )
}

#[tokio::test]
async fn an_abuser_at_200_a_second_against_60_a_minute_for_30_seconds_costs_fewer_than_100_calls() {
    let redis = RedisServer::start();
    let variables = [("REDIS_URL", &*redis.url()), ("REDIS_TIMEOUT_MS", "2000")];
    let tidegate = Tidegate::start(Some(&policies("60/minute", 60)), &variables).await;
    tidegate.connected().await;
    let before = redis.calls("evalsha");
    let (started, mut asked, mut admitted) = (Instant::now(), 0_u32, 0);
    while started.elapsed() < Duration::from_secs(30) {
        let answer = tidegate.check(json!({"key": "abuser"})).await;
        assert_eq!((&answer["backend"], &answer["fallback"]), (&json!("redis"), &json!(false)));
        admitted += usize::from(answer["allowed"] == true);
        asked += 1;
        tokio::time::sleep_until((started + Duration::from_millis(5) * asked).into()).await;
    }
    let calls = redis.calls("evalsha") - before;
    eprintln!("{asked} requests, {admitted} admitted, {calls} calls");
    assert!(asked > 2_000, "{asked} requests are no attack");
    assert!((88..=91).contains(&admitted), "{admitted} admitted of 60 and one a second");
    assert!(calls < 100, "{calls} calls for {asked} requests");
    let lines = tidegate.request_lines(2_000).await;
    let denied = lines.iter().filter(|line| line["rate_limit_state"] == "throttle");
    let cached = denied.clone().filter(|line| line["cached"] == true).count();
    assert!(cached * 10 > denied.count() * 9, "{cached} denials without asking");
    assert!(
        lines.iter().filter(|line| line["rate_limit_state"] == "allow").all(|line| line["cached"].is_null())
    );
}

#[tokio::test]
async fn whoever_was_denied_without_asking_is_admitted_when_it_was_told_to_come_back() {
    let redis = RedisServer::start();
    let variables = [("REDIS_URL", &*redis.url()), ("REDIS_TIMEOUT_MS", "2000")];
    let tidegate = Tidegate::start(Some(&policies("2/second", 3)), &variables).await;
    tidegate.connected().await;
    for round in 0..6 {
        let (denied, at) = loop {
            let answer = tidegate.check(json!({"key": "k"})).await;
            if answer["cached"] == true {
                break (answer, Instant::now());
            }
        };
        let wait = denied["retry_after_ms"].as_u64().unwrap();
        assert!((1..=500).contains(&wait), "{denied}");
        tokio::time::sleep_until((at + Duration::from_millis(wait)).into()).await;
        assert_eq!(
            tidegate.check(json!({"key": "k"})).await["allowed"],
            true,
            "round {round}: told {wait} ms"
        );
    }
}

#[tokio::test]
async fn a_hit_that_costs_nothing_a_peek_and_another_key_are_never_denied_by_what_is_known() {
    let redis = RedisServer::start();
    let variables = [("REDIS_URL", &*redis.url()), ("REDIS_TIMEOUT_MS", "2000")];
    let tidegate = Tidegate::start(Some(&policies("2/hour", 2)), &variables).await;
    tidegate.connected().await;
    for allowed in [true, true, false, false] {
        assert_eq!(tidegate.check(json!({"key": "k"})).await["allowed"], allowed);
    }
    for question in [json!({"key": "k", "cost": 0}), json!({"key": "other"})] {
        assert_eq!(tidegate.check(question.clone()).await["allowed"], true, "{question}");
    }
    let peek = tidegate.check(json!({"key": "k", "peek": true})).await;
    assert_eq!((&peek["allowed"], &peek["cached"]), (&json!(false), &json!(null)), "a peek asks");
}

#[tokio::test]
async fn a_policy_says_whether_it_admits_or_refuses_while_redis_is_away() {
    let policies = ["local", "open", "deny"].map(|word| {
        format!(
            "[[rule]]\nname = \"{word}\"\nmatch = {{ path = \"/{word}\" }}\n[[rule.policy]]\nname = \"{word}\"\n\
             by = \"header:x-api-key\"\nlimit = \"2/hour\"\non_redis_error = \"{word}\"\n"
        )
    });
    let mut redis = RedisServer::start();
    let variables = [
        ("REDIS_URL", &*redis.url()),
        ("REDIS_TIMEOUT_MS", "2000"),
        ("TIDEGATE__REDIS__RECONNECT_INTERVAL_S", "1"),
        ("TIDEGATE__REDIS__WARM_UP_S", "0"),
    ];
    let tidegate = Tidegate::start(Some(&policies.concat()), &variables).await;
    tidegate.connected().await;
    let statuses = async |path: &str, count: usize| {
        let mut statuses = Vec::new();
        for _ in 0..count {
            statuses.push(tidegate.get_as(path, "k").await.status().as_u16());
        }
        statuses
    };
    for path in ["/local", "/open", "/deny"] {
        assert_eq!(statuses(path, 1).await, [404], "Redis admits, and there is no upstream");
    }
    redis.kill();
    assert_eq!(statuses("/local", 3).await, [404, 429, 429], "the debt that Redis told, then memory's own");
    assert_eq!(statuses("/open", 4).await, [404, 404, 404, 404]);
    let refused = tidegate.get_as("/deny", "k").await;
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"5".parse().unwrap()));
    let problem: serde_json::Value = refused.json().await.unwrap();
    assert_eq!(
        (&problem["type"], &problem["policy"]),
        (&json!("urn:tidegate:limiter-degraded"), &json!("deny"))
    );
    let lines = tidegate.request_lines(11).await;
    let line = lines.last().unwrap();
    assert_eq!((&line["rate_limit_state"], &line["fallback"]), (&json!("throttle"), &json!(true)));
    assert_eq!((&line["arm"], &line["rl_backend"]), (&json!("canary"), &json!("memory")));
    redis.restart();
    tidegate.connected().await;
    // A refusal charged nothing; what was admitted openly was counted as far as there was room, and came along.
    assert_eq!(statuses("/deny", 2).await, [404, 429]);
    assert_eq!(statuses("/open", 1).await, [429]);
}
