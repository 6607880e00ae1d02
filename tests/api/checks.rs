//! The decision API.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::support::process::Tidegate;

const POLICIES: &str = r#"
[[rule]]
name = "items"
match = { path = "/items/**", host = "api.example.com" }
  [[rule.policy]]
  name = "items"
  by = "header:x-api-key"
  limit = "3/hour"

[[rule]]
name = "default"
  [[rule.policy]]
  name = "default"
  by = "ip"
  limit = "5/hour"
"#;

#[tokio::test]
async fn a_decision_names_verdict_backend_and_what_is_left() {
    let tidegate = Tidegate::start(Some(POLICIES), &[]).await;
    let answer = tidegate.check(json!({"key": "k"})).await;
    assert_eq!(
        answer,
        json!({
            "allowed": true, "state": "allow", "backend": "memory", "fallback": false, "policy": "default",
            "limit": 5, "remaining": 4, "reset_after_ms": 720_000, "retry_after_ms": 0,
        })
    );
    assert_eq!(tidegate.check(json!({"key": "k", "cost": 4})).await["remaining"], 0);
    let denied = tidegate.check(json!({"key": "k"})).await;
    assert_eq!((&denied["allowed"], &denied["state"]), (&json!(false), &json!("throttle")));
    assert!(denied["retry_after_ms"].as_u64().unwrap() > 719_000);
    assert_eq!(tidegate.check(json!({"key": "k", "cost": 0})).await["allowed"], true, "cost 0 only asks");
    assert_eq!(
        tidegate.check(json!({"key": "k", "peek": true})).await["allowed"],
        false,
        "a peek says what would be"
    );
    assert_eq!(tidegate.check(json!({"key": "other", "peek": true})).await["remaining"], 5);
    assert_eq!(tidegate.check(json!({"key": "other"})).await["remaining"], 4, "the peek took nothing");
}

#[tokio::test]
async fn attributes_are_judged_as_the_request_that_they_describe() {
    let tidegate = Tidegate::start(Some(POLICIES), &[]).await;
    let attributes = json!({"attributes": {
        "method": "GET", "host": "api.example.com", "path": "/items/7?x=1", "header:x-api-key": "k", "ip": "192.0.2.1",
    }});
    assert_eq!(tidegate.check(attributes.clone()).await["policy"], "items");
    assert_eq!(tidegate.check(attributes).await["remaining"], 1);
    // The same key by way of a real request has the same bucket.
    let real = tidegate
        .http
        .get(tidegate.url("/items/8"))
        .header("host", "api.example.com")
        .header("x-api-key", "k");
    assert_eq!(real.send().await.unwrap().headers()["x-ratelimit-remaining"], "0");
    let by_address = json!({"attributes": {"path": "/other", "ip": "127.0.0.1"}});
    assert_eq!(tidegate.check(by_address).await["remaining"], 4);
    assert_eq!(tidegate.get("/other").await.headers()["x-ratelimit-remaining"], "3");
}

#[tokio::test]
async fn what_a_request_counts_as_there_or_missing_counts_as_that_in_attributes_too() {
    let policies = r#"
        [[rule]]
        name = "query"
        match = { path = "/query" }
          [[rule.policy]]
          name = "query"
          by = "query:user"
          limit = "100/day"
          on_missing = "skip"
        [[rule]]
        name = "default"
          [[rule.policy]]
          name = "key"
          by = "header:x-api-key"
          limit = "100/day"
    "#;
    let tidegate = Tidegate::start(Some(policies), &[]).await;
    assert_eq!(tidegate.get_as("/", "k").await.headers()["x-ratelimit-remaining"], "99");
    let check = async |attributes: Value| tidegate.check(json!({ "attributes": attributes })).await;
    let spaced = check(json!({ "header:x-api-key": " k\t" })).await;
    assert_eq!(spaced["remaining"], 98, "the space around a value is none of it");
    // Twice is there, and names nobody: by address, not skipped, however the name is spelled.
    for query in ["user=a&user=b", "us%65r=a&us%65r=b"] {
        let answer = tidegate.get(&format!("/query?{query}")).await;
        assert!(answer.headers().contains_key("ratelimit"), "{query}");
        let answer = check(json!({ "path": format!("/query?{query}"), "ip": "192.0.2.1" })).await;
        assert_eq!(answer["policy"], "query", "{query}");
    }
    assert_eq!(check(json!({ "path": "/query", "ip": "192.0.2.1" })).await["policy"], Value::Null);
}

#[tokio::test]
async fn bad_input_is_a_4xx_that_says_what_is_accepted() {
    let tidegate = Tidegate::start(Some(POLICIES), &[]).await;
    for (body, status, words) in [
        ("", 400, "Accepted"),
        ("{", 400, "Accepted"),
        ("[]", 400, "Accepted"),
        ("{}", 400, "either"),
        (r#"{"key": "k", "attributes": {}}"#, 400, "either"),
        (r#"{"key": 7}"#, 400, "string"),
        (r#"{"key": "k", "cots": 1}"#, 400, "cots"),
        (r#"{"key": "k", "cost": -1}"#, 400, "u32"),
        (r#"{"key": "k", "cost": 1.5}"#, 400, "u32"),
        (r#"{"key": "k", "cost": 6}"#, 422, "burst"),
        (r#"{"key": "k", "cost": 4294967295}"#, 422, "burst"),
        (r#"{"key": "k", "rule": "none"}"#, 422, "none"),
        (r#"{"attributes": {"colour": "red"}}"#, 422, "colour"),
        (r#"{"attributes": {"ip": "1.2.3"}}"#, 422, "1.2.3"),
        (r#"{"attributes": {"header:X-Api-Key": "k"}}"#, 422, "lower case"),
        (r#"{"attributes": {"path": "/"}, "rule": "items"}"#, 400, "either"),
    ] {
        let answer = tidegate.http.post(tidegate.url("/v1/check")).body(body).send().await.unwrap();
        assert_eq!(answer.status(), status, "{body}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        let problem: Value = answer.json().await.unwrap();
        assert!(problem["detail"].as_str().unwrap().contains(words), "{body}: {problem}");
    }
    let huge = format!(r#"{{"key": "{}"}}"#, "k".repeat(100_000));
    let answer = tidegate.http.post(tidegate.url("/v1/check")).body(huge).send().await.unwrap();
    assert_eq!(answer.status(), 413);
    assert_eq!(tidegate.get("/v1/check").await.status(), 405);
    assert_eq!(
        tidegate.check(json!({"key": "k", "peek": true})).await["remaining"],
        5,
        "none of it was charged"
    );
}

#[tokio::test]
async fn a_question_in_many_pieces_is_the_same_question_and_its_length_is_bounded_as_well() {
    let tidegate = Tidegate::start(Some(POLICIES), &[]).await;
    let ask = async |body: &str, pieces_of: usize| {
        // Each alone on the wire: the server can't take several for one.
        let pieces: Vec<Vec<u8>> = body.as_bytes().chunks(pieces_of).map(<[u8]>::to_vec).collect();
        let pieces = futures_util::stream::iter(pieces).then(async |piece| {
            tokio::time::sleep(Duration::from_millis(2)).await;
            std::io::Result::Ok(piece)
        });
        let body = reqwest::Body::wrap_stream(pieces);
        tidegate.http.post(tidegate.url("/v1/check")).body(body).send().await.unwrap()
    };
    let question = r#"{"key": "in pieces", "cost": 1}"#;
    let whole: Value = ask(question, question.len()).await.json().await.unwrap();
    assert_eq!(whole["remaining"], 4);
    for (pieces_of, left) in [(1, 3), (7, 2)] {
        let answer: Value = ask(question, pieces_of).await.json().await.unwrap();
        assert_eq!((&answer["policy"], &answer["remaining"]), (&whole["policy"], &json!(left)));
    }
    let padded = |length: usize| format!("{{\"key\": \"k\"{}}}", " ".repeat(length - 12));
    for pieces_of in [4_096, 65_536] {
        assert_eq!(ask(&padded(65_536), pieces_of).await.status(), 200);
        assert_eq!(ask(&padded(65_537), pieces_of).await.status(), 413);
    }
}

#[tokio::test]
async fn a_cost_that_no_policy_can_ever_admit_is_refused_by_name_and_charges_nothing() {
    let policies = r#"
[[rule]]
name = "default"
cost = 3
  [[rule.policy]]
  name = "wide"
  by = "ip"
  limit = "1000000/second"
  burst = 4294967295
  [[rule.policy]]
  name = "narrow"
  by = "ip"
  limit = "10/hour"
  [[rule.policy]]
  name = "on-trial"
  by = "ip"
  limit = "4/hour"
  mode = "shadow"
"#;
    let tidegate = Tidegate::start(Some(policies), &[]).await;
    let ask = async |cost: u32, peek: bool| {
        let body = json!({"key": "k", "cost": cost, "peek": peek});
        let answer = tidegate.http.post(tidegate.url("/v1/check")).json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    // The rule's cost counts each unit three times: four of them are 12, and the last product does not fit 32 bits.
    for cost in [4, 100, u32::MAX / 3 + 1, u32::MAX] {
        for peek in [false, true] {
            let (status, problem) = ask(cost, peek).await;
            assert_eq!((status, &problem["code"]), (422, &json!("cost_exceeds_burst")), "{cost}: {problem}");
            assert!(problem["detail"].as_str().unwrap().contains("\"narrow\", 10"), "{problem}");
        }
    }
    let (status, answer) = ask(3, true).await;
    assert_eq!(
        (status, &answer["allowed"]),
        (200, &json!(true)),
        "nothing was charged; a policy on trial refuses nothing"
    );
    assert_eq!(answer["shadow"][0]["policy"], "on-trial");
    assert_eq!(ask(3, false).await.1["remaining"], 1);
    let (status, throttled) = ask(1, false).await;
    assert_eq!((status, &throttled["state"]), (200, &json!("throttle")), "what fits later is no mistake");
}

#[tokio::test]
async fn a_call_that_was_handed_on_by_a_stranger_needs_the_token() {
    let tidegate = Tidegate::start(None, &[("TIDEGATE__DOORS__TOKEN", "a-door-token-of-26-letters")]).await;
    let ask = async |headers: &[(&str, &str)]| {
        let mut request = tidegate.http.post(tidegate.url("/v1/check")).json(&json!({"key": "k"}));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap().status().as_u16()
    };
    let handed_on = ("x-forwarded-for", "203.0.113.9");
    assert_eq!(ask(&[]).await, 200);
    assert_eq!(ask(&[handed_on]).await, 401);
    assert_eq!(ask(&[handed_on, ("authorization", "Bearer a-door-token-of-26-lettres")]).await, 401);
    assert_eq!(ask(&[handed_on, ("authorization", "Bearer a-door-token-of-26-letters")]).await, 200);

    let without = Tidegate::start(None, &[("TRUSTED_PROXIES", "127.0.0.1")]).await;
    let ask = async |client: &str| {
        let request = without.http.post(without.url("/v1/check")).json(&json!({"key": "k"}));
        request.header("x-forwarded-for", client).send().await.unwrap().status().as_u16()
    };
    assert_eq!(ask("10.1.2.3").await, 200, "a private client behind a trusted proxy");
    assert_eq!(ask("203.0.113.9").await, 403);
}

#[tokio::test]
async fn a_page_a_proxy_or_a_rebound_name_is_not_near() {
    let tidegate = Tidegate::start(Some(POLICIES), &[("TIDEGATE__DOORS__HOSTS", "limits.example.com")]).await;
    let ask = async |headers: &[(&str, &str)]| {
        let request = tidegate.http.post(tidegate.url("/v1/check")).json(&json!({"key": "k", "peek": true}));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    for (headers, words) in [
        (&[("x-real-ip", "10.0.0.9")][..], "x-real-ip"),
        (&[("via", "1.1 other")], "via"),
        (&[("cf-connecting-ip", "10.0.0.9")], "cf-connecting-ip"),
        (&[("x-forwarded-proto", "https")], "x-forwarded-proto"),
        (&[("origin", "https://evil.example"), ("content-type", "text/plain")], "a web page"),
        (&[("origin", "null")], "a web page"),
        (&[("sec-fetch-site", "cross-site")], "a web page"),
        (&[("host", "evil.example")], "evil.example"),
        (&[("host", "127.0.0.1.evil.example:8080")], "doors.hosts"),
    ] {
        let (status, text) = ask(headers).await;
        assert_eq!(status, 403, "{headers:?}: {text}");
        assert!(text.contains(words) && text.contains("doors.token"), "{headers:?}: {text}");
    }
    for headers in [&[][..], &[("host", "limits.example.com:80")], &[("host", "tidegate.prod.svc")]] {
        assert_eq!(ask(headers).await.0, 200, "{headers:?}");
    }
}

#[tokio::test]
async fn an_array_is_no_object_in_any_body() {
    let tidegate = Tidegate::start(Some(POLICIES), &[]).await;
    let front = |body: &str| tidegate.http.post(tidegate.url("/v1/check")).body(body.to_owned());
    let admin = |method: &str, path: &str, body: &str| {
        tidegate.admin(method, path).header("content-type", "application/json").body(body.to_owned())
    };
    let put = r#"{"rule": "default", "key": "192.0.2.1", "effect": ["1/hour", 1], "reason": "a test"}"#;
    for request in [
        front(r#"["default", "k"]"#),
        front(r#"[null, "k", null, 1, false]"#),
        front("7"),
        front(r#"{"attributes": ["ip"]}"#),
        admin("PUT", "/admin/rollout", r#"[30, null, "why"]"#),
        admin("PUT", "/admin/rollout", "null"),
        admin("PUT", "/admin/rollout", r#"{"percent": [30], "reason": "why"}"#),
        admin("PUT", "/admin/overrides/a", r#"["a", "default"]"#),
        admin("PUT", "/admin/overrides/a", put),
    ] {
        let answer = request.send().await.unwrap();
        assert!([400, 422].contains(&answer.status().as_u16()), "{}", answer.status());
        let text = answer.text().await.unwrap();
        assert!(!["struct", "Question", "PutRollout"].iter().any(|name| text.contains(name)), "{text}");
    }
    assert_eq!(tidegate.status().await["rollout"]["revision"].as_u64().unwrap_or(1), 1);
    // A rollback needs no body that can be read; an array holds no reason.
    let back = admin("POST", "/admin/rollout/rollback", r#"["disguised"]"#).send().await.unwrap();
    assert_eq!(back.status(), 200);
    assert!(!back.text().await.unwrap().contains("disguised"));
}
