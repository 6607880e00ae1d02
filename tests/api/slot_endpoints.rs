//! A cluster behind one address that refuses calls with keys of several slots: Redis decides all the same.

use serde_json::json;

use crate::support::process::Tidegate;
use crate::support::redis_cluster::RedisCluster;
use crate::support::redis_server::RedisServer;
use crate::support::slot_endpoint::{Answers, SlotEndpoint};
use crate::support::{outage, until};

/// A request of the gateway counts by its key and by its address: two subjects, which have different slots.
const POLICIES: &str = r#"
[[rule]]
name = "default"
  [[rule.policy]]
  name = "p"
  by = "header:x-api-key"
  limit = "10/hour"
  [[rule.policy]]
  name = "address"
  by = "ip"
  limit = "1000/hour"
"#;
const SPLIT: &str = "one address hides a cluster (it answers CROSSSLOT)";

async fn start(endpoint: &SlotEndpoint, more: &[(&str, &str)]) -> Tidegate {
    let url = endpoint.url();
    let mut variables =
        vec![("REDIS_URL", url.as_str()), ("APP_ENV", "production"), ("REDIS_TIMEOUT_MS", "5000")];
    variables.extend_from_slice(more);
    let tidegate = Tidegate::start(Some(POLICIES), &variables).await;
    tidegate.connected().await;
    tidegate
}

/// Of 20 requests for each of 10 keys 10 pass. How many of the 200 Redis decided.
async fn exact_limits(tidegate: &Tidegate, round: &str) -> usize {
    let (mut answers, before) = (Vec::new(), tidegate.request_lines(0).await.len());
    for key in 0..10 {
        let mut admitted = 0;
        for _ in 0..20 {
            admitted += usize::from(tidegate.get_as("/", &format!("{round} {key}")).await.status() != 429);
        }
        assert_eq!(admitted, 10, "{round} {key}");
    }
    answers.extend(tidegate.request_lines(before + 200).await.into_iter().skip(before));
    let by_redis = |line: &&serde_json::Value| line["rl_backend"] == "redis" && line["fallback"] == false;
    answers.iter().filter(by_redis).count()
}

async fn breaker_openings(tidegate: &Tidegate) -> usize {
    assert_eq!(tidegate.lines_with(outage::DEGRADED), 0, "{}", tidegate.output());
    assert_eq!(tidegate.status().await["redis"]["state"], "closed");
    tidegate.lines_with(outage::CONNECTED) - 1
}

#[tokio::test]
async fn hidden_cluster_decides_every_request() {
    let cluster = RedisCluster::start(3, false);
    for (answers, setting) in [
        (Answers::Unknown, "auto"),
        (Answers::Disabled, "auto"),
        (Answers::Unknown, "false"),
        (Answers::Itself, "false"),
        // Then it is a cluster of one node.
        (Answers::Itself, "auto"),
    ] {
        let what = format!("{answers:?} with REDIS_CLUSTER={setting}");
        let endpoint = SlotEndpoint::to(&cluster, answers).await;
        let tidegate = start(&endpoint, &[("REDIS_CLUSTER", setting)]).await;
        assert_eq!(exact_limits(&tidegate, &what).await, 200, "{what}");
        assert_eq!(breaker_openings(&tidegate).await, 0, "{what}");
        let is_known = answers == Answers::Itself && setting == "auto";
        assert_eq!(endpoint.crossings(), usize::from(!is_known), "{what}: the first probe");
        tidegate.says(SPLIT, usize::from(!is_known)).await;
    }
}

/// What was one server becomes a cluster behind the same address: a connection that is in use finds out.
#[tokio::test]
async fn address_that_becomes_a_cluster_opens_no_breaker() {
    let server = RedisServer::start();
    let endpoint = SlotEndpoint::to_one(&server).await;
    let tidegate = start(&endpoint, &[]).await;
    assert_eq!(exact_limits(&tidegate, "before").await, 200);
    assert_eq!(endpoint.crossings(), 0);
    endpoint.refuse_crossings();
    // The request that finds out is decided in memory, and no other.
    assert!(exact_limits(&tidegate, "after").await >= 199);
    assert_eq!(endpoint.crossings(), 1);
    assert_eq!(breaker_openings(&tidegate).await, 0);
    tidegate.says(SPLIT, 1).await;
    assert_eq!(exact_limits(&tidegate, "at last").await, 200);
}

/// The fleet's keys, each command of the background has keys of one slot.
#[tokio::test]
async fn fleet_behind_a_hidden_cluster_agrees() {
    let cluster = RedisCluster::start(3, false);
    let endpoint = SlotEndpoint::to(&cluster, Answers::Unknown).await;
    let beats = [("TIDEGATE__FLEET__HEARTBEAT_S", "1")];
    let (one, two) = (start(&endpoint, &beats).await, start(&endpoint, &beats).await);
    for tidegate in [&one, &two] {
        until("they know each other", async || tidegate.status().await["fleet"]["instances"] == 2).await;
    }
    let body =
        json!({"rule": "default", "policy": "p", "key": "a client", "effect": "block", "reason": "a test"});
    let answer = one.admin("PUT", "/admin/overrides/o-1").json(&body).send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    assert_eq!(two.admin("GET", "/admin/overrides/o-1").send().await.unwrap().status(), 200);
    assert_eq!(one.set_percent(100.0).await["applied"], "2/2");
    assert_eq!(exact_limits(&two, "fleet").await, 200);
    // One probe of each instance, and nothing else.
    assert_eq!(endpoint.crossings(), 2);
    assert_eq!(breaker_openings(&one).await + breaker_openings(&two).await, 0);
}
