//! Costs that are known only with the answer: the upstream tells them in a header, and they are settled after the fact.

use serde_json::json;

use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;
use crate::support::until;
use crate::support::upstream::Upstream;

/// Each request is charged five of a hundred at first.
const FIVE_OF_A_HUNDRED: &str = r#"
[[rule]]
name = "default"
cost = 5
  [[rule.policy]]
  name = "per-client"
  by = "header:x-api-key"
  limit = "100/hour"
  [[rule.policy]]
  name = "on-trial"
  by = "header:x-api-key"
  limit = "500/hour"
  mode = "shadow"
"#;

const BELIEVED: (&str, &str) = ("TIDEGATE__UPSTREAM__COST_HEADER", "X-RateLimit-Cost");

async fn start(upstream: &Upstream, more: &[(&str, &str)]) -> Tidegate {
    let url = upstream.url();
    let mut variables = vec![("UPSTREAM_URL", url.as_str())];
    variables.extend_from_slice(more);
    let tidegate = Tidegate::start(Some(FIVE_OF_A_HUNDRED), &variables).await;
    if more.iter().any(|(name, _)| *name == "REDIS_URL") {
        tidegate.connected().await;
    }
    tidegate
}

/// What the client `key` has left of the hundred.
async fn left(tidegate: &Tidegate, key: &str) -> u64 {
    let peek = tidegate.check(json!({"key": key, "peek": true, "cost": 0})).await;
    assert_eq!(peek["fallback"], false);
    peek["remaining"].as_u64().unwrap()
}

async fn counted(tidegate: &Tidegate, outcome: &str) -> u64 {
    let series = format!(r#"tidegate_cost_settlements_total{{outcome="{outcome}"}} "#);
    let metrics = tidegate.metrics().await;
    metrics.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
}

async fn settles_what_answers_tell(more: &[(&str, &str)], backend: &str) {
    let upstream = Upstream::start();
    let tidegate = start(&upstream, &[&[BELIEVED], more].concat()).await;
    let settled = async |key: &str, cost: &str, wanted: u64| {
        let answer = tidegate.get_as(&format!("/cost/{cost}"), key).await;
        assert_eq!(answer.status(), 200, "{cost}");
        assert!(!answer.headers().contains_key("x-ratelimit-cost"), "it is not for clients");
        assert_eq!(answer.headers()["x-ratelimit-remaining"], wanted.to_string(), "{cost}: as it is now");
        assert_eq!(answer.text().await.unwrap(), "worth it\n");
        until("it is settled", async || left(&tidegate, key).await == wanted).await;
    };
    settled("a", "20", 80).await;
    settled("a", "5", 75).await;
    settled("a", "1", 74).await;
    settled("a", "0", 74).await;
    settled("a", "70", 4).await;
    let denied = tidegate.get_as("/cost/0", "a").await;
    assert_eq!(denied.status(), 429, "five are not left, whatever it would have cost");
    settled("b", "99999999999999999999", 0).await;
    let denied = tidegate.get_as("/cost/0", "b").await;
    let wait: u64 = denied.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(wait <= 180, "above a full bucket nobody owes: {wait} s for five units");
    settled("c", "101", 0).await;

    let on_trial = tidegate.check(json!({"key": "b", "cost": 0, "peek": true})).await;
    assert_eq!(on_trial.get("shadow"), None, "cost 0 is never denied");
    let on_trial = tidegate.check(json!({"key": "b", "peek": true})).await;
    assert_eq!(on_trial["shadow"][0]["policy"], "on-trial", "its five hundred are gone as well");
    assert_eq!(counted(&tidegate, backend).await, 6, "all but the one that cost what it was charged");
}

#[tokio::test]
async fn the_difference_to_what_an_answer_cost_is_charged_or_given_back() {
    settles_what_answers_tell(&[], "memory").await;
}

#[tokio::test]
async fn the_difference_to_what_an_answer_cost_is_charged_or_given_back_in_redis() {
    let redis = RedisServer::start();
    settles_what_answers_tell(&[("REDIS_URL", &redis.url()), ("REDIS_TIMEOUT_MS", "5000")], "redis").await;
}

#[tokio::test]
async fn a_cost_that_is_none_is_passed_over_counted_and_said_once() {
    let upstream = Upstream::start();
    let tidegate = start(&upstream, &[BELIEVED]).await;
    for (cost, wanted) in [("-1", 95), ("1.5", 90), ("many", 85), ("1/2", 80), ("", 75)] {
        let answer = tidegate.get_as(&format!("/cost/{cost}"), "a").await;
        assert_eq!(answer.status(), 200);
        assert!(!answer.headers().contains_key("x-ratelimit-cost"));
        assert_eq!(left(&tidegate, "a").await, wanted, "{cost:?} is charged the rule's cost");
    }
    assert_eq!((counted(&tidegate, "malformed").await, counted(&tidegate, "memory").await), (5, 0));
    tidegate.says("the upstream told a cost that is none", 1).await;
}

#[tokio::test]
async fn nobody_is_believed_about_costs_unless_it_is_asked_for() {
    let upstream = Upstream::start();
    let tidegate = start(&upstream, &[]).await;
    let answer = tidegate.get_as("/cost/90", "a").await;
    assert_eq!(answer.headers()["x-ratelimit-cost"], "90", "a header like any other");
    assert_eq!(left(&tidegate, "a").await, 95);
    assert_eq!(counted(&tidegate, "memory").await, 0);
}

#[tokio::test]
async fn a_client_does_not_name_its_own_price() {
    let upstream = Upstream::start();
    for (variables, reaches) in [(&[BELIEVED][..], false), (&[], true)] {
        let tidegate = start(&upstream, variables).await;
        let request = tidegate.http.get(tidegate.url("/")).header("x-api-key", "a");
        let answer = request.header("x-ratelimit-cost", "0").send().await.unwrap();
        let echo = answer.text().await.unwrap();
        assert_eq!(
            echo.contains("x-ratelimit-cost"),
            reaches,
            "an upstream may hand on what it is sent: {echo}"
        );
        assert_eq!(left(&tidegate, "a").await, 95);
    }
}

#[tokio::test]
async fn a_settlement_outlives_a_redis_that_hangs_in_this_process_note() {
    let redis = RedisServer::start();
    let upstream = Upstream::start();
    let url = redis.url();
    let tidegate = start(&upstream, &[BELIEVED, ("REDIS_URL", &url), ("REDIS_TIMEOUT_MS", "300")]).await;
    let slow = tidegate.http.get(tidegate.url("/cost/40")).header("x-api-key", "a");
    redis.freeze();
    // Decided from memory after the timeout, and settled there.
    assert_eq!(slow.send().await.unwrap().headers()["x-ratelimit-remaining"], "60");
    redis.thaw();
    until("Redis decides again and knows it from the note", async || {
        let peek = tidegate.check(json!({"key": "a", "peek": true, "cost": 0})).await;
        peek["backend"] == "redis" && peek["remaining"].as_u64().is_some_and(|left| left <= 60)
    })
    .await;
}
