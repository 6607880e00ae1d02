//! A subject's own limit, exemption, or block.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;
use crate::support::until;

pub(super) const TWO_A_DAY: &str = r#"
allow = ["header:x-api-key=listed"]
deny = ["header:x-api-key=thief"]

[[rule]]
name = "default"
  [[rule.policy]]
  name = "per-key"
  by = "header:x-api-key"
  limit = "2/day"
"#;

const SHUTS_OUT: &str = r#"
  block_after = 3
  block_within = "1m"
  block_for = "1h"
"#;

/// Puts one, and returns the status, the entity tag, and the answer.
pub(super) async fn put(
    tidegate: &Tidegate,
    id: &str,
    body: Value,
    tag: Option<&str>,
) -> (u16, String, Value) {
    let mut request = tidegate.admin("PUT", &format!("/admin/overrides/{id}")).json(&body);
    if let Some(tag) = tag {
        request = request.header("if-match", tag);
    }
    let answer = request.send().await.unwrap();
    let tag = answer.headers().get("etag").map_or("", |tag| tag.to_str().unwrap()).to_owned();
    (answer.status().as_u16(), tag, answer.json().await.unwrap())
}

pub(super) fn of(key: &str, effect: Value) -> Value {
    json!({"rule": "default", "key": key, "effect": effect, "reason": "a test"})
}

pub(super) async fn ask(tidegate: &Tidegate, method: &str, path: &str) -> (u16, Value) {
    let answer = tidegate.admin(method, path).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// 404 is a request that was let through: there is no upstream.
pub(super) async fn status(tidegate: &Tidegate, key: &str) -> u16 {
    tidegate.get_as("/", key).await.status().as_u16()
}

async fn own_terms(tidegate: &Tidegate) {
    // A limit of its own: more, and at once for who is denied.
    assert_eq!([status(tidegate, "busy").await, status(tidegate, "busy").await], [404, 404]);
    assert_eq!(status(tidegate, "busy").await, 429);
    let (code, tag, answer) = put(tidegate, "busy", of("busy", json!({"limit": "1000/second"})), None).await;
    assert_eq!((code, &answer["in_effect"]), (201, &json!(["per-key"])), "{answer}");
    let raised = Instant::now();
    // The debt is kept, and cut to what the new limit may owe: a thousandth of a second later there is room for one.
    until("it is let through", async || status(tidegate, "busy").await == 404).await;
    assert!(raised.elapsed() < Duration::from_secs(1), "{:?}", raised.elapsed());
    tokio::time::sleep(Duration::from_millis(20)).await;
    for _ in 0..3 {
        let answer = tidegate.get_as("/", "busy").await;
        assert_eq!(answer.status(), 404);
        assert_eq!(answer.headers()["x-ratelimit-limit"], "1000");
        assert!(answer.headers()["ratelimit-policy"].to_str().unwrap().contains("q=1000;w=1"));
    }
    let (_, seen) = ask(tidegate, "GET", "/admin/keys?key=busy").await;
    let seen = &seen["policies"][0];
    assert_eq!((&seen["override"], &seen["limit"]), (&json!("busy"), &json!(1000)), "{seen}");
    // Less.
    let less = of("busy", json!({"limit": "1/hour", "burst": 1}));
    assert_eq!(put(tidegate, "busy", less, Some(&tag)).await.0, 200);
    until("it is denied", async || status(tidegate, "busy").await == 429).await;
    let (_, seen) = ask(tidegate, "GET", "/admin/keys?key=busy").await;
    assert_eq!(seen["policies"][0]["limit"], 1, "{seen}");
    assert_eq!(status(tidegate, "another").await, 404, "nobody else has it");

    // An exemption: nothing is charged, also of who was denied.
    assert_eq!([status(tidegate, "partner").await, status(tidegate, "partner").await], [404, 404]);
    assert_eq!(status(tidegate, "partner").await, 429);
    assert_eq!(put(tidegate, "partner", of("partner", json!("exempt")), None).await.0, 201);
    for _ in 0..4 {
        let answer = tidegate.get_as("/", "partner").await;
        assert_eq!(answer.status(), 404);
        assert!(!answer.headers().contains_key("ratelimit"));
    }
    let checked = tidegate.check(json!({"key": "partner"})).await;
    assert_eq!((&checked["state"], &checked["override"]), (&json!("allow"), &json!("partner")), "{checked}");
    let (_, seen) = ask(tidegate, "GET", "/admin/keys?key=partner").await;
    let seen = &seen["policies"][0];
    assert_eq!((&seen["state"], &seen["override"]), (&json!("allow"), &json!("partner")), "{seen}");
    assert_eq!(ask(tidegate, "DELETE", "/admin/overrides/partner").await.0, 200);
    assert_eq!(status(tidegate, "partner").await, 429, "its debt was kept");

    let counted = async |effect: &str, count: usize| {
        let line = format!("tidegate_overrides{{effect=\"{effect}\"}} {count}\n");
        assert!(tidegate.metrics().await.contains(&line), "{line}");
    };
    counted("limit", 1).await;
    counted("exempt", 0).await;

    // A block, which ends by itself.
    let mut block = of("nasty", json!("block"));
    block["expires_in"] = json!("2s");
    let (code, _, answer) = put(tidegate, "nasty", block, None).await;
    assert_eq!(code, 201, "{answer}");
    counted("block", 1).await;
    let blocked = Instant::now();
    let refused = tidegate.get_as("/", "nasty").await;
    assert_eq!(refused.status(), 403);
    assert!(!refused.headers().contains_key("retry-after"));
    let problem: Value = refused.json().await.unwrap();
    assert_eq!((&problem["type"], &problem["policy"]), (&json!("urn:tidegate:blocked"), &Value::Null));
    let (_, seen) = ask(tidegate, "GET", "/admin/keys?key=nasty").await;
    assert_eq!(seen["policies"][0]["state"], "block", "{seen}");
    until("it has run out", async || status(tidegate, "nasty").await == 404).await;
    assert!(blocked.elapsed() > Duration::from_millis(1_900), "{:?}", blocked.elapsed());
    assert_eq!(ask(tidegate, "GET", "/admin/overrides/nasty").await.0, 404);
    counted("block", 0).await;
    for id in ["busy", "partner", "nasty"] {
        until("the log names it", async || tidegate.lines_with(&format!("\"override\":\"{id}\"")) > 0).await;
    }
}

#[tokio::test]
async fn a_subject_has_a_limit_an_exemption_or_a_block_of_its_own_at_once_in_memory() {
    let tidegate = Tidegate::start(Some(TWO_A_DAY), &[]).await;
    own_terms(&tidegate).await;
}

#[tokio::test]
async fn a_subject_has_a_limit_an_exemption_or_a_block_of_its_own_at_once_in_redis() {
    let redis = RedisServer::start();
    let url = redis.url();
    let variables =
        [("REDIS_URL", url.as_str()), ("RATE_LIMIT_CANARY_PERCENT", "100"), ("REDIS_TIMEOUT_MS", "5000")];
    let tidegate = Tidegate::start(Some(TWO_A_DAY), &variables).await;
    tidegate.connected().await;
    until("Redis decides", async || {
        tidegate.check(json!({"key": "probe", "peek": true})).await["backend"] == "redis"
    })
    .await;
    own_terms(&tidegate).await;
    assert!(!redis.buckets().is_empty());
}

#[tokio::test]
async fn the_deny_list_and_a_block_go_before_an_exemption_and_that_before_the_penalty_box_and_the_limits() {
    let tidegate = Tidegate::start(Some(&format!("{TWO_A_DAY}{SHUTS_OUT}")), &[]).await;
    for (id, key, effect) in [
        ("a", "thief", json!("exempt")),
        ("b", "listed", json!("block")),
        ("c", "hammer", json!({"limit": "1/day"})),
    ] {
        assert_eq!(put(&tidegate, id, of(key, effect), None).await.0, 201);
    }
    assert_eq!(status(&tidegate, "thief").await, 403, "the deny list before an exemption");
    assert_eq!(status(&tidegate, "listed").await, 403, "a block before the allow list");
    for expected in [404, 429, 429, 429, 403] {
        assert_eq!(status(&tidegate, "hammer").await, expected, "the penalty box before a limit of its own");
    }
    let answer = tidegate.admin("GET", "/admin/overrides/c").send().await.unwrap();
    let tag = answer.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(put(&tidegate, "c", of("hammer", json!("exempt")), Some(&tag)).await.0, 200);
    assert_eq!(status(&tidegate, "hammer").await, 404, "an exemption before the penalty box");
    // Of two for one subject the stronger.
    let mut under_one = of("hammer", json!("block"));
    under_one["policy"] = json!("per-key");
    assert_eq!(put(&tidegate, "d", under_one, None).await.0, 201);
    assert_eq!(status(&tidegate, "hammer").await, 403);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_in_words_and_nothing_is_changed() {
    let tidegate = Tidegate::start(Some(TWO_A_DAY), &[]).await;
    let sound = || of("somebody", json!("block"));
    let with = |name: &str, value: Value| {
        let mut body = sound();
        body[name] = value;
        body
    };
    for (body, code) in [
        (json!({}), "bad_body"),
        (with("surprise", json!(1)), "bad_body"),
        (with("reason", json!("  ")), "no_reason"),
        (with("key", json!("")), "no_key"),
        (with("keys", json!(["a"])), "no_key"),
        (with("key", json!("x".repeat(2_000))), "no_key"),
        (with("rule", json!("none")), "unknown_rule"),
        (with("policy", json!("none")), "unknown_policy"),
        (with("by", json!("header:other")), "no_such_subject"),
        (with("effect", json!("ban")), "bad_effect"),
        (with("effect", json!({"limit": "many"})), "bad_limit"),
        (with("effect", json!({"limit": "0/minute"})), "bad_limit"),
        (with("effect", json!({"limit": "5/month"})), "bad_limit"),
        (with("effect", json!({"limit": "2/day", "burst": 4_000_000})), "bad_limit"),
        (with("expires_at", json!("yesterday")), "bad_expiry"),
        (with("expires_at", json!("2001-01-01T00:00:00Z")), "bad_expiry"),
        (with("expires_in", json!("soon")), "bad_expiry"),
        (with("id", json!("other")), "bad_id"),
    ] {
        let (status, _, problem) = put(&tidegate, "one", body.clone(), None).await;
        assert_eq!((status, problem["code"].as_str()), (422, Some(code)), "{body} {problem}");
        assert!(problem["detail"].as_str().unwrap().len() > 20, "{problem}");
    }
    assert_eq!(put(&tidegate, "no%20id", sound(), None).await.2["code"], "bad_id");
    let (_, all) = ask(&tidegate, "GET", "/admin/overrides").await;
    assert_eq!(all, json!({"total": 0, "overrides": [], "next": null}));
    assert_eq!(ask(&tidegate, "GET", "/admin/overrides?limit=0").await.1["code"], "bad_query");

    let (status, tag, made) = put(&tidegate, "one", sound(), None).await;
    let actor = made["created_by"].as_str().unwrap();
    assert!(actor.starts_with("token:"), "{made}");
    assert_eq!(
        (status, &made["created_by"], &made["applied"]),
        (201, &json!(actor), &json!("1/1")),
        "{made}"
    );
    let (status, _, problem) = put(&tidegate, "one", sound(), None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("override_exists")), "{problem}");
    let (status, _, problem) = put(&tidegate, "two", sound(), None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("subject_has_override")), "{problem}");
    let (status, _, problem) = put(&tidegate, "one", sound(), Some("\"9-00000000\"")).await;
    assert_eq!((status, &problem["code"]), (412, &json!("stale")), "{problem}");
    let stale =
        tidegate.admin("DELETE", "/admin/overrides/one").header("if-match", "\"9-0\"").send().await.unwrap();
    assert_eq!(stale.status(), 412);
    // What was read can be sent back.
    let (_, mut read) = ask(&tidegate, "GET", "/admin/overrides/one").await;
    read["effect"] = json!("exempt");
    assert_eq!(put(&tidegate, "one", read, Some(&tag)).await.0, 200);
    assert_eq!(ask(&tidegate, "DELETE", "/admin/overrides/one").await.0, 200);
    let (status, problem) = ask(&tidegate, "DELETE", "/admin/overrides/one").await;
    assert_eq!((status, &problem["code"]), (404, &json!("unknown_override")));
    // Without an id one is made.
    let made = tidegate.admin("PUT", "/admin/overrides").json(&sound()).send().await.unwrap();
    let place = made.headers()["location"].to_str().unwrap().to_owned();
    assert_eq!(ask(&tidegate, "GET", &place).await.1["key"], "somebody");
    // The trail says who did what, and not to whom.
    let (_, trail) = ask(&tidegate, "GET", "/admin/audit").await;
    let actions: Vec<&str> =
        trail["rows"].as_array().unwrap().iter().map(|row| row["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["overrides.put", "overrides.delete", "overrides.put", "overrides.put"]);
    assert!(!trail.to_string().contains("somebody"), "{trail}");
}

#[tokio::test]
async fn an_override_of_a_rule_that_a_reload_removes_has_no_effect_until_the_rule_is_back() {
    let tidegate = Tidegate::start(Some(TWO_A_DAY), &[]).await;
    assert_eq!(put(&tidegate, "one", of("nasty", json!("block")), None).await.0, 201);
    assert_eq!(status(&tidegate, "nasty").await, 403);
    tidegate.put_policies(&TWO_A_DAY.replace("\"default\"", "\"other\""));
    assert_eq!(tidegate.reload().await.0, 200);
    assert_eq!(status(&tidegate, "nasty").await, 404);
    let (_, shown) = ask(&tidegate, "GET", "/admin/overrides/one").await;
    assert_eq!(shown["in_effect"], json!([]), "{shown}");
    assert_eq!(shown["no_effect"], "There is no rule \"default\".");
    tidegate.put_policies(TWO_A_DAY);
    assert_eq!(tidegate.reload().await.0, 200);
    assert_eq!(status(&tidegate, "nasty").await, 403);
}

#[tokio::test]
async fn an_address_is_meant_as_an_address_and_nobody_is_exempt_who_writes_it_into_a_header() {
    let tidegate = Tidegate::start(Some(TWO_A_DAY), &[]).await;
    assert_eq!(put(&tidegate, "office", of("127.0.0.1", json!("exempt")), None).await.0, 201);
    for _ in 0..3 {
        assert_eq!(tidegate.get("/").await.status(), 404, "without a key it is counted by its address");
    }
    let statuses = [status(&tidegate, "127.0.0.1").await, status(&tidegate, "127.0.0.1").await];
    assert_eq!(statuses, [404, 404]);
    assert_eq!(status(&tidegate, "127.0.0.1").await, 429);
    let mut by_header = of("127.0.0.1", json!("exempt"));
    by_header["by"] = json!("header:x-api-key");
    assert_eq!(put(&tidegate, "odd", by_header, None).await.0, 201);
    assert_eq!(status(&tidegate, "127.0.0.1").await, 404);
}

#[tokio::test]
async fn the_location_of_an_override_is_where_it_is_found() {
    for (variables, prefix) in [(&[][..], ""), (&[("ADMIN_ADDR", "main")], "/_tidegate")] {
        let tidegate = Tidegate::start(Some(TWO_A_DAY), variables).await;
        for (path, id) in [("/admin/overrides", None), ("/admin/overrides/overrides", Some("overrides"))] {
            let body = of(&format!("client-{id:?}"), json!("exempt"));
            let made = tidegate.admin("PUT", &format!("{prefix}{path}")).json(&body).send().await.unwrap();
            assert_eq!(made.status(), 201);
            let place = made.headers()["location"].to_str().unwrap().to_owned();
            assert!(place.starts_with(&format!("{prefix}/admin/overrides/")), "{place}");
            assert!(id.is_none_or(|id| place.ends_with(&format!("overrides/{id}"))), "{place}");
            assert_eq!(ask(&tidegate, "GET", &place).await.0, 200, "{place}");
        }
    }
}
