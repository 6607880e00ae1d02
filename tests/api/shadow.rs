//! Policies on trial: judged, logged, counted, told apart from those that count, and never enforced.

use serde_json::{Value, json};

use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;
use crate::support::structured::{Bare, list};

/// Five count; three are on trial.
const ON_TRIAL: &str = r#"
[[rule]]
name = "default"
  [[rule.policy]]
  name = "counts"
  by = "header:x-api-key"
  limit = "5/hour"
  [[rule.policy]]
  name = "on-trial"
  by = "header:x-api-key"
  limit = "3/hour"
  mode = "shadow"
"#;

/// What `tidegate_policy_decisions_total` says of a policy.
async fn counted(tidegate: &Tidegate, policy: &str, mode: &str, state: &str, backend: &str) -> u64 {
    let name = "tidegate_policy_decisions_total";
    let series = format!(r#"{name}{{policy="{policy}",mode="{mode}",state="{state}",backend="{backend}"}} "#);
    let metrics = tidegate.metrics().await;
    let line = metrics.lines().find_map(|line| line.strip_prefix(&series));
    line.unwrap_or_else(|| panic!("{series} is not in\n{metrics}")).parse().unwrap()
}

async fn tries_a_limit_out(variables: &[(&str, &str)], backend: &str) {
    let tidegate = Tidegate::start(Some(ON_TRIAL), variables).await;
    if backend == "redis" {
        tidegate.connected().await;
    }
    let mut statuses = Vec::new();
    for hit in 1..=6 {
        let answer = tidegate.get_as("/", "k").await;
        statuses.push(answer.status().as_u16());
        let headers = answer.headers();
        assert_eq!(headers["ratelimit-policy"], r#""counts";q=5;w=3600"#, "the other one does not limit");
        let limits = list(headers["ratelimit"].to_str().unwrap());
        assert_eq!(limits.len(), 1);
        assert_eq!(headers["x-ratelimit-limit"], "5");
        let Some(shadow) = headers.get("x-ratelimit-shadow") else {
            assert!(hit <= 3, "hit {hit}");
            continue;
        };
        assert!(hit > 3, "hit {hit}");
        let [told] = &list(shadow.to_str().unwrap())[..] else { panic!("{shadow:?}") };
        assert_eq!(told.value, Bare::String("on-trial".into()));
        assert_eq!(told.parameters["would"], Bare::Token("throttle".into()));
        assert!((1_190..=1_200).contains(&told.integer("retry-after")), "{shadow:?}");
    }
    assert_eq!(statuses, [404, 404, 404, 404, 404, 429]);

    let lines = tidegate.request_lines(6).await;
    for (line, hit) in lines.iter().zip(1..) {
        assert_eq!((&line["policy"], &line["rl_backend"]), (&json!("counts"), &json!(backend)));
        let state = if hit == 6 { "throttle" } else { "allow" };
        assert_eq!((&line["rate_limit_state"], &line["limit"]), (&json!(state), &json!(5)));
        if hit <= 3 {
            assert_eq!(line.get("shadow"), None, "nothing to say: {line}");
            continue;
        }
        let [shadow] = &line["shadow"].as_array().unwrap()[..] else { panic!("{line}") };
        assert_eq!((&shadow["policy"], &shadow["state"]), (&json!("on-trial"), &json!("throttle")));
        assert!((1_190_000..=1_200_000).contains(&shadow["retry_after_ms"].as_u64().unwrap()), "{line}");
    }

    for (policy, mode, state, times) in [
        ("counts", "enforce", "allow", 5),
        ("counts", "enforce", "throttle", 1),
        ("on-trial", "shadow", "allow", 3),
        ("on-trial", "shadow", "throttle", 3),
        ("on-trial", "shadow", "block", 0),
    ] {
        assert_eq!(counted(&tidegate, policy, mode, state, backend).await, times, "{policy} {state}");
    }
    let requests = format!(
        r#"tidegate_requests_total{{backend="{backend}",state="throttle",policy="counts",arm="{}"}} 1"#,
        if backend == "redis" { "canary" } else { "control" }
    );
    assert!(tidegate.metrics().await.contains(&requests), "of the policy that binds, as before");

    let asked = tidegate.check(json!({"key": "k", "peek": true})).await;
    assert_eq!(
        (&asked["allowed"], &asked["policy"], &asked["limit"]),
        (&json!(false), &json!("counts"), &json!(5))
    );
    assert_eq!(asked["shadow"][0]["policy"], "on-trial");
    let fresh = tidegate.check(json!({"key": "another", "cost": 4})).await;
    assert_eq!((&fresh["allowed"], &fresh["remaining"]), (&json!(true), &json!(1)));
    let never = json!([{"policy": "on-trial", "state": "throttle", "retry_after_ms": null}]);
    assert_eq!(fresh["shadow"], never, "four never fit into three");
    assert_eq!(tidegate.check(json!({"key": "a third"})).await.get("shadow"), None);
}

#[tokio::test]
async fn a_policy_in_shadow_denies_nothing_and_header_line_metric_and_answer_say_what_it_would_have_done() {
    tries_a_limit_out(&[], "memory").await;
}

#[tokio::test]
async fn a_policy_in_shadow_does_the_same_in_redis() {
    let redis = RedisServer::start();
    tries_a_limit_out(&[("REDIS_URL", &redis.url()), ("REDIS_TIMEOUT_MS", "5000")], "redis").await;
}

const ALONE: &str = r#"
[[rule]]
name = "default"
  [[rule.policy]]
  name = "on-trial"
  by = "header:x-api-key"
  limit = "1/hour"
  on_missing = "deny"
  mode = "shadow"
"#;

#[tokio::test]
async fn a_client_is_told_of_no_limit_where_none_is_enforced() {
    let tidegate = Tidegate::start(Some(ALONE), &[("TIDEGATE__HEADERS__SHADOW", "false")]).await;
    for _ in 0..3 {
        let answer = tidegate.get_as("/", "k").await;
        assert_eq!(answer.status(), 404);
        let told = answer.headers().keys().find(|name| name.as_str().contains("ratelimit"));
        assert_eq!(told, None);
    }
    assert_eq!(counted(&tidegate, "on-trial", "shadow", "throttle", "memory").await, 2);
    let answer = tidegate.check(json!({"key": "k"})).await;
    assert_eq!(
        (&answer["allowed"], &answer["policy"], &answer["remaining"]),
        (&json!(true), &Value::Null, &Value::Null)
    );
    assert_eq!(answer["shadow"][0]["state"], "throttle");
}

#[tokio::test]
async fn a_subject_that_a_policy_in_shadow_insists_on_may_be_missing() {
    let tidegate = Tidegate::start(Some(ALONE), &[]).await;
    let answer = tidegate.get("/").await;
    assert_eq!(answer.status(), 404, "it would have been a 403");
    assert_eq!(answer.headers()["x-ratelimit-shadow"], r#""on-trial";would=block"#);
    let line = &tidegate.request_lines(1).await[0];
    assert_eq!(line["shadow"], json!([{"policy": "on-trial", "state": "block", "retry_after_ms": null}]));
    assert_eq!((&line["rate_limit_state"], &line["mixed"]), (&json!("allow"), &Value::Null));
    assert_eq!(counted(&tidegate, "on-trial", "shadow", "block", "memory").await, 1);
}
