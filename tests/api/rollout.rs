//! Which store decides which key, and how an operator moves keys while requests flow.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::StreamExt;
use futures_util::stream;

use crate::support::process::{Tidegate, request_lines};
use crate::support::redis_server::RedisServer;
use crate::support::until;
use crate::support::upstream::Upstream;

const BY_KEY: &str = r#"
[[rule]]
name = "default"
  [[rule.policy]]
  name = "per-client"
  by = "header:x-api-key"
  limit = "1000/minute"
"#;

const KEYS: usize = 10_000;

/// Requests every key once, and returns who decided each, from the request lines.
async fn who_decides(tidegate: &Tidegate) -> HashMap<String, String> {
    static PASSES: AtomicUsize = AtomicUsize::new(0);
    let pass = PASSES.fetch_add(1, Ordering::Relaxed);
    let prefix = format!("/pass/{pass}/");
    let statuses: Vec<u16> = stream::iter(0..KEYS)
        .map(|key| {
            let path = format!("{prefix}{key}");
            async move { tidegate.get_as(&path, &format!("key-{key}")).await.status().as_u16() }
        })
        .buffer_unordered(32)
        .collect()
        .await;
    assert!(statuses.iter().all(|&status| status == 200), "the upstream answered every one");
    let mut decided = HashMap::new();
    until("every key has its line", async || {
        decided = request_lines(&tidegate.output())
            .iter()
            .filter_map(|line| {
                let key = line["path"].as_str()?.strip_prefix(&prefix)?;
                assert_eq!(line["fallback"], false, "{line}");
                let wanted = if line["rl_backend"] == "redis" { "canary" } else { "control" };
                assert_eq!(line["arm"], wanted);
                Some((key.to_owned(), line["rl_backend"].as_str()?.to_owned()))
            })
            .collect();
        decided.len() == KEYS
    })
    .await;
    decided
}

fn share(decided: &HashMap<String, String>) -> f64 {
    assert_eq!(decided.len(), KEYS);
    decided.values().filter(|backend| *backend == "redis").count() as f64 / KEYS as f64 * 100.0
}

/// No key went from Redis to memory.
fn only_towards_redis(before: &HashMap<String, String>, after: &HashMap<String, String>) -> bool {
    before.iter().all(|(path, backend)| backend == "memory" || after[path] == "redis")
}

async fn start(upstream: &Upstream, redis: &RedisServer, percent: &str) -> Tidegate {
    let variables = [
        ("UPSTREAM_URL", upstream.url()),
        ("REDIS_URL", redis.url()),
        ("RATE_LIMIT_CANARY_PERCENT", percent.to_owned()),
        ("TIDEGATE_SECRET", "a fixed secret for tests".to_owned()),
        // A debug build on a busy machine is slow; nothing here is about the deadline.
        ("REDIS_TIMEOUT_MS", "5000".to_owned()),
        // Nor about a fleet: each start is at the percentage that it is told.
        ("TIDEGATE__FLEET__HEARTBEAT_S", "0".to_owned()),
    ];
    let variables: Vec<(&str, &str)> =
        variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let tidegate = Tidegate::start(Some(BY_KEY), &variables).await;
    tidegate.connected().await;
    tidegate
}

#[tokio::test]
async fn the_share_of_keys_in_redis_is_the_percentage_and_no_key_ever_changes_its_store_by_itself() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let mut last: Option<HashMap<String, String>> = None;
    for percent in [0.0, 10.0, 50.0, 100.0] {
        let tidegate = start(&upstream, &redis, &percent.to_string()).await;
        let decided = who_decides(&tidegate).await;
        let share = share(&decided);
        assert!((share - percent).abs() <= 1.0, "{share} % of the keys at {percent} %");
        if percent == 10.0 {
            assert_eq!(
                who_decides(&tidegate).await,
                decided,
                "a key never changes its store between requests"
            );
        }
        if let Some(last) = &last {
            assert!(only_towards_redis(last, &decided), "raising moves keys one way, over restarts as well");
        }
        last = Some(decided);
    }
}

#[tokio::test]
async fn raising_through_the_admin_endpoint_under_load_moves_keys_one_way_and_loses_no_request() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let tidegate = start(&upstream, &redis, "10").await;
    let at_10 = who_decides(&tidegate).await;
    let stop = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..8)
        .map(|task| {
            let (http, url, stop) = (tidegate.http.clone(), tidegate.url("/load"), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut statuses = Vec::new();
                for round in 0.. {
                    if stop.load(Ordering::Relaxed) || round == 20_000 {
                        break;
                    }
                    let key = format!("key-{}", (task * 131 + round * 17) % 400);
                    let answer = http.get(&url).header("x-api-key", key).send().await.unwrap();
                    statuses.push(answer.status().as_u16());
                }
                statuses
            })
        })
        .collect();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let answer = tidegate.set_percent(50.0).await;
    assert_eq!((&answer["percent"], &answer["revision"]), (&50.0.into(), &2.into()));
    let at_50 = who_decides(&tidegate).await;
    tidegate.set_percent(100.0).await;
    let at_100 = who_decides(&tidegate).await;
    let back = tidegate.admin("POST", "/admin/rollout/rollback").send().await.unwrap();
    assert_eq!(back.status(), 200);
    let rolled_back = who_decides(&tidegate).await;
    stop.store(true, Ordering::Relaxed);
    for task in load {
        let statuses = task.await.unwrap();
        assert!(!statuses.is_empty());
        assert!(statuses.iter().all(|&status| status == 200 || status == 429), "{statuses:?}");
    }
    assert!((share(&at_50) - 50.0).abs() <= 1.0 && share(&at_100) == 100.0 && share(&rolled_back) == 0.0);
    assert!(only_towards_redis(&at_10, &at_50) && only_towards_redis(&at_50, &at_100));
    let metrics = tidegate.metrics().await;
    assert!(metrics.contains("\ntidegate_rollout_percent 0.0\n"), "{metrics}");
    assert!(metrics.contains("\ntidegate_rollbacks_total{cause=\"operator\"} 1\n"));
}

#[tokio::test]
async fn unsetting_redis_url_is_a_way_back_whatever_else_is_set() {
    let upstream = Upstream::start();
    let variables = [
        ("UPSTREAM_URL", &*upstream.url()),
        ("REDIS_URL", ""),
        ("RATE_LIMIT_BACKEND", "redis"),
        ("RATE_LIMIT_CANARY_PERCENT", "100"),
    ];
    let tidegate = Tidegate::start(Some(BY_KEY), &variables).await;
    assert_eq!(tidegate.get_as("/", "k").await.status(), 200);
    let line = &tidegate.request_lines(1).await[0];
    assert_eq!((&line["rl_backend"], &line["arm"]), (&"memory".into(), &"control".into()));
    tidegate.says("⚠️  Development: Using in-memory rate limiting. Redis: [", 1).await;
    tidegate.says("RATE_LIMIT_CANARY_PERCENT=100 is passed over", 1).await;
    let answer = tidegate
        .admin("PUT", "/admin/rollout")
        .header("if-match", "*")
        .json(&serde_json::json!({"percent": 5, "reason": "try"}))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 409);
    assert_eq!(answer.json::<serde_json::Value>().await.unwrap()["code"], "disabled_by_env");
}
