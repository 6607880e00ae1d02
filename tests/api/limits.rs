//! What a client sees: headers, 429, 403, and that a wait that was announced is honest.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::process::Tidegate;

const TIGHT: &str = r#"
[[rule]]
name = "default"
  [[rule.policy]]
  name = "tight"
  by = "ip"
  limit = "2/second"
  burst = 3
"#;

#[tokio::test]
async fn with_no_configuration_a_hundred_a_minute_by_address_are_served_and_the_next_is_throttled() {
    let tidegate = Tidegate::start(None, &[]).await;
    for left in (0..100).rev() {
        let answer = tidegate.get("/anything").await;
        assert_eq!(answer.status(), 404, "no upstream is configured");
        let headers = answer.headers();
        assert_eq!(headers["x-ratelimit-limit"], "100");
        assert_eq!(headers["ratelimit-policy"], r#""default";q=100;w=60"#);
        let remaining: i32 = headers["x-ratelimit-remaining"].to_str().unwrap().parse().unwrap();
        assert!((left..=left + 2).contains(&remaining), "{remaining} left, {left} expected");
        assert!(
            headers["ratelimit"].to_str().unwrap().starts_with(&format!(r#""default";r={remaining};t="#))
        );
    }
    let mut denied = tidegate.get("/anything").await;
    for _ in 0..3 {
        // The bucket gains one each 600 ms, and a slow machine may have used that long.
        if denied.status() != 429 {
            denied = tidegate.get("/anything").await;
        }
    }
    assert_eq!(denied.status(), 429);
    assert_eq!(denied.headers()["content-type"], "application/problem+json");
    let problem: Value = denied.json().await.unwrap();
    assert_eq!(problem["policy"], "default");
    assert!(problem["type"].as_str().unwrap().ends_with("#quota-exceeded"));
    assert!(problem["retry_after_ms"].as_u64().unwrap() <= 600);
}

#[tokio::test]
async fn a_client_that_waits_exactly_as_long_as_it_is_told_is_admitted() {
    let tidegate = Tidegate::start(Some(TIGHT), &[]).await;
    for round in 0..3 {
        let (denied, at) = loop {
            let answer = tidegate.get("/").await;
            let at = Instant::now();
            if answer.status() == 429 {
                break (answer, at);
            }
        };
        let wait: u64 = denied.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert_eq!(wait, 1, "half a second is told as one whole");
        let exact = denied.json::<Value>().await.unwrap()["retry_after_ms"].as_u64().unwrap();
        // In one round by the header's whole seconds, in the others by the body's milliseconds.
        let wait = if round == 0 { Duration::from_secs(wait) } else { Duration::from_millis(exact) };
        tokio::time::sleep_until((at + wait).into()).await;
        assert_ne!(tidegate.get("/").await.status(), 429, "round {round}");
    }
}

#[tokio::test]
async fn each_key_has_a_budget_of_its_own_and_rules_match_in_their_order() {
    let policies = r#"
[[rule]]
name = "free"
match = { path = "/free/**" }

[[rule]]
name = "writes"
match = { methods = ["POST"], path = "/items/{id}" }
cost = 5
  [[rule.policy]]
  name = "writes"
  by = "header:x-api-key"
  limit = "10/hour"
  on_missing = "deny"

[[rule]]
name = "rest"
  [[rule.policy]]
  name = "rest"
  by = ["query:user", "cookie:tenant"]
  limit = "1/hour"
  on_missing = "skip"
"#;
    let tidegate = Tidegate::start(Some(policies), &[]).await;
    for _ in 0..20 {
        let free = tidegate.get("/free/a").await;
        assert_eq!(free.status(), 404);
        assert!(!free.headers().contains_key("x-ratelimit-limit"));
    }
    let post = async |key: Option<&str>| {
        let mut request = tidegate.http.post(tidegate.url("/items/7"));
        if let Some(key) = key {
            request = request.header("x-api-key", key);
        }
        request.send().await.unwrap()
    };
    assert_eq!(post(Some("a")).await.headers()["x-ratelimit-remaining"], "5", "a write costs five");
    assert_eq!(post(Some("a")).await.status(), 404);
    assert_eq!(post(Some("a")).await.status(), 429);
    assert_eq!(post(Some("b")).await.status(), 404);
    let missing = post(None).await;
    assert_eq!(missing.status(), 403);
    assert_eq!(missing.json::<Value>().await.unwrap()["missing"], "header:x-api-key");

    let get = async |path: &str, tenant: &str| {
        let request = tidegate.http.get(tidegate.url(path)).header("cookie", format!("tenant={tenant}"));
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(get("/?user=u", "t").await, 404);
    assert_eq!(get("/?user=u", "t").await, 429);
    assert_eq!(get("/?user=u", "t2").await, 404);
    assert_eq!(get("/", "t").await, 404);
    assert_eq!(get("/", "t").await, 404, "without the subject this policy is skipped");
}

#[tokio::test]
async fn a_key_that_is_sent_twice_or_empty_is_no_way_around_a_policy_that_skips_strangers() {
    let policies = r#"
[[rule]]
name = "default"
  [[rule.policy]]
  name = "keyed"
  by = "header:x-api-key"
  limit = "2/hour"
  on_missing = "skip"
"#;
    let tidegate = Tidegate::start(Some(policies), &[]).await;
    let get = async |keys: &[&str]| {
        let request = tidegate.http.get(tidegate.url("/"));
        let request = keys.iter().fold(request, |request, key| request.header("x-api-key", *key));
        request.send().await.unwrap().status().as_u16()
    };
    for _ in 0..4 {
        assert_eq!(get(&[]).await, 404, "no key at all is skipped");
    }
    let twice = [get(&["k", "k"]).await, get(&["k", "k"]).await, get(&["k", "other"]).await];
    assert_eq!(twice, [404, 404, 429], "two keys name no one: they count by address");
    assert_eq!(get(&[""]).await, 429, "and so does an empty one");
    assert_eq!(get(&["k"]).await, 404);
}

#[tokio::test]
async fn a_forwarded_address_counts_only_from_a_trusted_proxy() {
    let spoof = async |variables: &[(&str, &str)]| {
        let tidegate = Tidegate::start(Some(TIGHT), variables).await;
        let mut statuses = Vec::new();
        for client in 0..8 {
            let request = tidegate.http.get(tidegate.url("/"));
            let request = request.header("x-forwarded-for", format!("203.0.113.{client}"));
            statuses.push(request.send().await.unwrap().status().as_u16());
        }
        statuses
    };
    assert!(spoof(&[]).await.contains(&429), "a stranger cannot make itself many");
    assert!(!spoof(&[("TRUSTED_PROXIES", "127.0.0.0/8")]).await.contains(&429));
}

#[tokio::test]
async fn an_ipv6_client_is_as_large_as_its_policy_says_and_an_ipv4_client_is_one_address() {
    let policies = r#"
[[rule]]
name = "wide"
match = { path = "/wide/**" }
  [[rule.policy]]
  name = "wide"
  by = "ip"
  limit = "100/week"
  ipv6_prefix = 48

[[rule]]
name = "instead"
match = { path = "/instead/**" }
  [[rule.policy]]
  name = "instead"
  by = "header:x-api-key"
  limit = "100/week"
  ipv6_prefix = 128

[[rule]]
name = "rest"
  [[rule.policy]]
  name = "rest"
  by = "ip"
  limit = "100/week"
"#;
    let tidegate = Tidegate::start(Some(policies), &[("TRUSTED_PROXIES", "::ffff:127.0.0.0/104")]).await;
    let left = async |path: &str, client: &str| {
        let request = tidegate.http.get(tidegate.url(path)).header("x-forwarded-for", client);
        let left = request.send().await.unwrap().headers()["x-ratelimit-remaining"].clone();
        left.to_str().unwrap().parse::<u32>().unwrap()
    };
    for (path, clients) in [
        // Each address, and what is left to it when all before it have asked.
        (
            "/",
            [
                ("2001:db8:1:1::1", 99),
                ("2001:db8:1:1::2", 98),
                ("2001:db8:1:2::1", 99),
                ("2001:db8:2::1", 99),
            ],
        ),
        (
            "/wide/",
            [
                ("2001:db8:1:1::1", 99),
                ("2001:db8:1:1::2", 98),
                ("2001:db8:1:2::1", 97),
                ("2001:db8:2::1", 99),
            ],
        ),
        (
            "/instead/",
            [("2001:db8:1:1::1", 99), ("2001:db8:1:1::2", 99), ("2001:db8:1:1::1", 98), ("::1", 99)],
        ),
    ] {
        for (client, wanted) in clients {
            assert_eq!(left(path, client).await, wanted, "{path} {client}");
        }
        for (client, wanted) in [("192.0.2.1", 99), ("::ffff:192.0.2.1", 98), ("192.0.2.2", 99)] {
            assert_eq!(left(path, client).await, wanted, "{path} {client}");
        }
    }
}
