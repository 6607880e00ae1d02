//! Who is let through whatever the limits say, who is refused, and who is shut out for a while.

use serde_json::{Value, json};

use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;

const LISTS: &str = r#"
allow = ["header:x-api-key=partner"]
deny_files = ["blocked.txt"]

[[rule]]
name = "open"
match = { path = "/open" }

[[rule]]
name = "default"
deny = ["query:token=leaked"]
  [[rule.policy]]
  name = "tight"
  by = "ip"
  limit = "1/day"
"#;

async fn with_lists() -> Tidegate {
    Tidegate::start_with_files(
        LISTS,
        &[("config/blocked.txt", "# found in March\nheader:x-api-key = thief\n203.0.113.0/24\n")],
        &[("TRUSTED_PROXIES", "127.0.0.1")],
    )
    .await
}

#[tokio::test]
async fn the_listed_are_exempt_or_refused_and_the_log_says_on_which_list_they_stand() {
    let tidegate = with_lists().await;
    for _ in 0..3 {
        let exempt = tidegate.get_as("/", "partner").await;
        assert_eq!(exempt.status(), 404, "no limit, and no upstream");
        assert!(!exempt.headers().contains_key("ratelimit"));
    }
    assert_eq!(tidegate.get("/").await.status(), 404);
    assert_eq!(tidegate.get("/").await.status(), 429);
    // Also where a rule limits nothing.
    for path in ["/", "/open"] {
        let refused = tidegate.get_as(path, "thief").await;
        assert_eq!(refused.status(), 403, "{path}");
        assert!(!refused.headers().contains_key("retry-after"));
        let problem: Value = refused.json().await.unwrap();
        assert_eq!((&problem["type"], &problem["policy"]), (&json!("urn:tidegate:blocked"), &Value::Null));
    }
    assert_eq!(tidegate.get("/?token=leaked").await.status(), 403);
    assert_eq!(tidegate.get("/open?token=leaked").await.status(), 404, "of that rule alone");
    let from = |address: &'static str| {
        tidegate.http.get(tidegate.url("/")).header("x-forwarded-for", address).send()
    };
    assert_eq!(from("203.0.113.9").await.unwrap().status(), 403);
    assert_eq!(from("203.0.114.9").await.unwrap().status(), 404);
    let lines = tidegate.request_lines(11).await;
    let count = |list: &str| lines.iter().filter(|line| line["listed"] == list).count();
    assert_eq!((count("allow"), count("deny")), (3, 4));
    let refused = lines.iter().find(|line| line["listed"] == "deny").unwrap();
    assert_eq!((&refused["rate_limit_state"], &refused["policy"]), (&json!("block"), &Value::Null));
}

#[tokio::test]
async fn the_decision_api_knows_the_lists_by_attributes_and_by_key() {
    let tidegate = with_lists().await;
    for (question, state) in [
        (json!({"attributes": {"header:x-api-key": "thief"}}), "block"),
        (json!({"attributes": {"ip": "203.0.113.9"}}), "block"),
        (json!({"attributes": {"ip": "203.0.113.9", "header:x-api-key": "partner"}}), "allow"),
        (json!({"key": "203.0.113.9"}), "block"),
        (json!({"key": "203.0.112.9"}), "allow"),
    ] {
        let answer = tidegate.http.post(tidegate.url("/v1/check")).json(&question).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        assert_eq!(answer["state"], state, "{question}");
    }
}

#[tokio::test]
async fn the_decision_api_knows_who_is_listed_by_value_whatever_the_size_of_an_ipv6_client() {
    let policies = r#"
deny = ["header:x-api-key=thief"]

[[rule]]
name = "default"
  [[rule.policy]]
  name = "by-key"
  by = "header:x-api-key"
  ipv6_prefix = 56
  limit = "10/day"
"#;
    let tidegate = Tidegate::start(Some(policies), &[]).await;
    assert_eq!(tidegate.get_as("/", "thief").await.status(), 403);
    let question = json!({"key": "thief"});
    let answer = tidegate.http.post(tidegate.url("/v1/check")).json(&question).send().await.unwrap();
    assert_eq!(answer.json::<Value>().await.unwrap()["state"], "block");
}

const PENALTY: &str = r#"
[[rule]]
name = "default"
  [[rule.policy]]
  name = "strict"
  by = "header:x-api-key"
  limit = "2/day"
  block_after = 3
  block_within = "1m"
  block_for = "1h"
"#;

#[tokio::test]
async fn who_keeps_hammering_is_shut_out_seen_and_forgiven_in_memory_and_in_redis() {
    let redis = RedisServer::start();
    let url = redis.url();
    for variables in [&[][..], &[("REDIS_URL", &*url), ("REDIS_TIMEOUT_MS", "5000")]] {
        let tidegate = Tidegate::start(Some(PENALTY), variables).await;
        if !variables.is_empty() {
            tidegate.says("Redis rate limiting backend connected", 1).await;
        }
        for wanted in [404, 404, 429, 429, 429, 403, 403] {
            assert_eq!(tidegate.get_as("/", "hammer").await.status(), wanted);
        }
        let blocked = tidegate.get_as("/", "hammer").await;
        let wait: u64 = blocked.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((3_590..=3_600).contains(&wait), "{wait}");
        let problem: Value = blocked.json().await.unwrap();
        assert_eq!((&problem["policy"], &problem["status"]), (&json!("strict"), &json!(403)));
        assert!(problem["blocked_until"].as_str().unwrap().ends_with('Z'));
        assert_eq!(tidegate.get_as("/", "other").await.status(), 404);

        let shut_out = tidegate.admin("GET", "/admin/keys?blocked=true").send().await.unwrap();
        let shut_out: Value = shut_out.json().await.unwrap();
        assert_eq!((&shut_out["total"], &shut_out["blocked"][0]["key"]), (&json!(1), &json!("hammer")));
        let status: Value =
            tidegate.admin("GET", "/admin/status").send().await.unwrap().json().await.unwrap();
        assert_eq!(status["blocked_keys"], 1);
        let state = async |key: &str| -> Value {
            let answer = tidegate.admin("GET", &format!("/admin/keys?key={key}")).send().await.unwrap();
            answer.json::<Value>().await.unwrap()["policies"][0].clone()
        };
        assert_eq!(state("hammer").await["state"], "block");
        assert_eq!(state("other").await["remaining"], 1);
        let backend = if variables.is_empty() { "memory" } else { "redis" };
        assert_eq!(state("other").await["backend"], backend);

        let forgiven = tidegate.admin("DELETE", "/admin/keys?key=hammer").send().await.unwrap();
        let forgiven: Value = forgiven.json().await.unwrap();
        assert_eq!(
            forgiven,
            json!({"policies": ["strict"], "blocks": 1, "applied": "1/1", "complete": true})
        );
        for wanted in [404, 404, 429] {
            assert_eq!(tidegate.get_as("/", "hammer").await.status(), wanted, "a fresh start");
        }
        let lines = tidegate.request_lines(12).await;
        let blocked = lines.iter().filter(|line| line["rate_limit_state"] == "block").count();
        assert_eq!(blocked, 3);
    }
}

const BY_SEVERAL: &str = r#"
deny = ["header:x-api-key=thief"]
[[rule]]
name = "by-pair"
match = { path = "/pair" }
  [[rule.policy]]
  name = "pair"
  by = ["header:x-api-key", "ip"]
  limit = "1/day"
  block_after = 1
  block_within = "1m"
  block_for = "1h"
  ipv6_prefix = 56
[[rule]]
name = "default"
  [[rule.policy]]
  name = "keys"
  by = "header:x-api-key"
  limit = "1/day"
  block_after = 1
  block_within = "1m"
  block_for = "1h"
"#;

#[tokio::test]
async fn whoever_is_shut_out_is_named_and_forgiven_by_that_name_also_an_address_without_key_and_a_pair() {
    let redis = RedisServer::start();
    let url = redis.url();
    for variables in [
        &[("TRUSTED_PROXIES", "127.0.0.1")][..],
        &[("TRUSTED_PROXIES", "127.0.0.1"), ("REDIS_URL", &*url), ("REDIS_TIMEOUT_MS", "5000")],
    ] {
        let tidegate = Tidegate::start(Some(BY_SEVERAL), variables).await;
        if variables.len() > 1 {
            tidegate.connected().await;
        }
        let ask = async |path: &str, key: &str| {
            let mut request =
                tidegate.http.get(tidegate.url(path)).header("x-forwarded-for", "2001:db8:1:2ff::1");
            if !key.is_empty() {
                request = request.header("x-api-key", key);
            }
            request.send().await.unwrap().status().as_u16()
        };
        let admin = async |method: &str, query: &str| -> Value {
            let answer = tidegate.admin(method, &format!("/admin/keys?{query}")).send().await.unwrap();
            answer.json().await.unwrap()
        };
        for (path, key, named, query) in [
            ("/", "solo", json!("solo"), "key=solo"),
            ("/", "", json!("2001:db8:1:2ff::/64"), "key=2001:db8:1:2ff::/64"),
            ("/", "", json!("2001:db8:1:2ff::/64"), "key=2001:db8:1:2ff::9"),
            ("/pair", "one", json!(["one", "2001:db8:1:200::/56"]), "key=one&key=2001:db8:1:2aa::5"),
        ] {
            for wanted in [404, 429, 403] {
                assert_eq!(ask(path, key).await, wanted, "{query}");
            }
            assert_eq!(admin("GET", "blocked=true").await["blocked"][0]["key"], named);
            let seen = admin("GET", query).await;
            let states: Vec<&Value> =
                seen["policies"].as_array().unwrap().iter().map(|one| &one["state"]).collect();
            assert!(states.contains(&&json!("block")), "{query}: {seen}");
            let forgiven = admin("DELETE", query).await;
            assert_eq!(
                (&forgiven["blocks"], &forgiven["complete"]),
                (&json!(1), &json!(true)),
                "{query}: {forgiven}"
            );
            assert_eq!(ask(path, key).await, 404, "{query}: forgiven");
            admin("DELETE", query).await;
            assert_eq!(admin("GET", "blocked=true").await["total"], 0);
        }
        // Who stands on a list is told of it.
        for (query, rule, listed, state) in [
            ("key=thief", "default", json!("deny"), "block"),
            ("key=thief&key=192.0.2.1", "by-pair", json!("deny"), "block"),
            ("key=other", "default", Value::Null, "allow"),
        ] {
            let seen = admin("GET", &format!("{query}&rule={rule}")).await;
            let first = &seen["policies"][0];
            assert_eq!((&first["listed"], &first["state"]), (&listed, &json!(state)), "{query}: {seen}");
        }
        let nobody = tidegate.admin("DELETE", "/admin/keys?key=a&key=b&key=c").send().await.unwrap();
        assert_eq!(nobody.status(), 422, "three parts are nobody's");
    }
}

#[tokio::test]
async fn nobody_is_said_to_be_shut_out_by_a_penalty_that_was_taken_away() {
    let tidegate = Tidegate::start(Some(PENALTY), &[]).await;
    for wanted in [404, 404, 429, 429, 429, 403] {
        assert_eq!(tidegate.get_as("/", "hammer").await.status(), wanted);
    }
    let keys: Vec<&str> = PENALTY.lines().filter(|line| !line.trim().starts_with("block_")).collect();
    tidegate.put_policies(&keys.join("\n"));
    assert_eq!(tidegate.reload().await.0, 200);
    assert_eq!(tidegate.get_as("/", "hammer").await.status(), 429, "throttled, no longer shut out");
    let ask = async |query: &str| -> Value {
        tidegate.admin("GET", &format!("/admin/{query}")).send().await.unwrap().json().await.unwrap()
    };
    assert_eq!(ask("keys?blocked=true").await["total"], 0);
    assert_eq!(ask("status").await["blocked_keys"], 0);
    assert_eq!(ask("keys?key=hammer").await["policies"][0]["state"], "throttle");
}

#[tokio::test]
async fn whoever_is_counted_by_address_for_want_of_a_key_is_forgiven_by_that_address() {
    let redis = RedisServer::start();
    let url = redis.url();
    for variables in [&[][..], &[("REDIS_URL", &*url)]] {
        let tidegate = Tidegate::start(Some(PENALTY), variables).await;
        if !variables.is_empty() {
            tidegate.connected().await;
        }
        for wanted in [404, 404, 429, 429, 429, 403] {
            assert_eq!(tidegate.get("/").await.status(), wanted);
        }
        let seen: Value =
            tidegate.admin("GET", "/admin/keys?blocked=true").send().await.unwrap().json().await.unwrap();
        assert_eq!(seen["blocked"][0]["key"], "127.0.0.1");
        let key = "/admin/keys?key=127.0.0.1";
        let state: Value = tidegate.admin("GET", key).send().await.unwrap().json().await.unwrap();
        assert_eq!(state["policies"][0]["state"], "block");
        let forgiven: Value = tidegate.admin("DELETE", key).send().await.unwrap().json().await.unwrap();
        assert_eq!(
            forgiven,
            json!({"policies": ["strict"], "blocks": 1, "applied": "1/1", "complete": true})
        );
        for wanted in [404, 404, 429] {
            assert_eq!(tidegate.get("/").await.status(), wanted, "a fresh start");
        }
    }
}

#[tokio::test]
async fn a_key_is_forgiven_only_when_it_is_said_which_and_by_whoever_has_the_token() {
    let tidegate = Tidegate::start(Some(PENALTY), &[]).await;
    for query in ["", "?key=", "?key=a&key=b", "?key=a&rule=none", "?kee=a"] {
        for method in ["GET", "DELETE"] {
            let answer = tidegate.admin(method, &format!("/admin/keys{query}")).send().await.unwrap();
            assert_eq!(answer.status(), 422, "{method} {query}");
        }
    }
    let bare =
        tidegate.http.delete(format!("http://{}/admin/keys?key=a", tidegate.admin)).send().await.unwrap();
    assert_eq!(bare.status(), 401);
}

#[tokio::test]
async fn a_redis_that_was_never_reached_is_not_said_to_have_forgiven() {
    let tidegate = Tidegate::start(Some(PENALTY), &[("REDIS_URL", "redis://127.0.0.1:1")]).await;
    let forgiven = tidegate.admin("DELETE", "/admin/keys?key=somebody").send().await.unwrap();
    let forgiven: Value = forgiven.json().await.unwrap();
    assert_eq!((&forgiven["complete"], &forgiven["redis"]), (&json!(false), &json!("open")));
}

#[tokio::test]
async fn no_call_under_way_brings_a_forgiven_debt_back() {
    let redis = RedisServer::start();
    let policies = PENALTY.replace("2/day", "100000/day").replace("block_after = 3", "block_after = 1000000");
    // On a busy machine Redis is slow and has to stay in use: what a call that times out brings back is another matter.
    let variables = [("REDIS_URL", &*redis.url()), ("REDIS_TIMEOUT_MS", "5000")];
    let tidegate = Tidegate::start(Some(&policies), &variables).await;
    tidegate.says("Redis rate limiting backend connected", 1).await;
    for round in 0..5 {
        // A debt that is told from what comes in meanwhile.
        for _ in 0..300 {
            tidegate.get_as("/", "busy").await;
        }
        let hammering: Vec<_> = (0..8)
            .map(|_| {
                let (http, url) = (tidegate.http.clone(), tidegate.url("/"));
                tokio::spawn(async move {
                    for _ in 0..40 {
                        http.get(&url).header("x-api-key", "busy").send().await.unwrap();
                    }
                })
            })
            .collect();
        let answer = tidegate.admin("DELETE", "/admin/keys?key=busy").send().await.unwrap();
        assert_eq!(answer.json::<Value>().await.unwrap()["complete"], true);
        for one in hammering {
            one.await.unwrap();
        }
        let answer = tidegate.admin("GET", "/admin/keys?key=busy").send().await.unwrap();
        let remaining = answer.json::<Value>().await.unwrap()["policies"][0]["remaining"].as_u64().unwrap();
        assert!(remaining > 100_000 - 400, "round {round}: {remaining} left of 100000");
    }
    let metrics = tidegate.metrics().await;
    assert!(
        metrics.contains("\ntidegate_budget_resets_total{cause=\"operator\"} 5\n"),
        "one key, five times: {metrics}"
    );
}
