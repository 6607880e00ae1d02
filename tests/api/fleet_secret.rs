//! The fleet's secret in Redis: one for all instances, whatever happens to the key. Each instance runs with the production
//! interval of its own look at the key, 600 s, so that only heartbeats and messages can repair it in time.

use serde_json::json;

use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;
use crate::support::until;

const POLICIES: &str = r#"
[[rule]]
name = "default"
  [[rule.policy]]
  name = "p"
  by = "header:x-api-key"
  limit = "10/hour"
"#;
const KEY: &str = "tidegate:secret";

async fn start(redis: &RedisServer, more: &[(&str, &str)]) -> Tidegate {
    let url = redis.url();
    let mut variables = vec![
        ("REDIS_URL", url.as_str()),
        ("REDIS_TIMEOUT_MS", "5000"),
        ("TIDEGATE__REDIS__RECONNECT_INTERVAL_S", "1"),
        ("TIDEGATE__REDIS__WARM_UP_S", "0"),
    ];
    variables.extend_from_slice(more);
    let tidegate = Tidegate::start(Some(POLICIES), &variables).await;
    tidegate.connected().await;
    tidegate
}

async fn know_each_other(fleet: &[&Tidegate]) {
    for tidegate in fleet {
        until("each instance knows of each", async || {
            tidegate.status().await["fleet"]["instances"] == fleet.len()
        })
        .await;
    }
}

fn secret(redis: &RedisServer) -> Option<String> {
    redis.run(&["GET", KEY])
}

/// Whether all of them charge one bucket: ten of their requests pass, each decided by Redis, under one key.
async fn share_one_limit(redis: &RedisServer, fleet: &[&Tidegate], key: &str) -> bool {
    let before = redis.buckets().len();
    let mut admitted = 0;
    for _ in 0..10 {
        for tidegate in fleet {
            let answer = tidegate.check(json!({"key": key})).await;
            assert_eq!(
                (&answer["backend"], &answer["fallback"]),
                (&json!("redis"), &json!(false)),
                "{answer}"
            );
            admitted += usize::from(answer["allowed"] == true);
        }
    }
    admitted == 10 && redis.buckets().len() == before + 1
}

/// The third makes a second secret before the others have put theirs back. Its first message, which they cannot open, makes
/// them look: the next heartbeat of either may be ten seconds away.
#[tokio::test]
async fn newcomer_after_a_flush_shares_one_secret_at_once() {
    let redis = RedisServer::start();
    let beats = [("TIDEGATE__FLEET__HEARTBEAT_S", "600")];
    let (one, two) = (start(&redis, &beats).await, start(&redis, &beats).await);
    know_each_other(&[&one, &two]).await;
    let before = secret(&redis);
    let _: () = redis.run(&["FLUSHALL"]);
    let three = start(&redis, &beats).await;
    let after = secret(&redis);
    assert!(after.is_some() && after != before, "the third has made one: {after:?}");
    let mut attempt = 0;
    until("the three share one limit", async || {
        attempt += 1;
        share_one_limit(&redis, &[&one, &two, &three], &format!("client {attempt}")).await
    })
    .await;
    assert_eq!(secret(&redis), after);
    for tidegate in [&one, &two] {
        tidegate.says("Redis holds another secret (tidegate:secret) than this instance used", 1).await;
    }
    three.says("Redis holds another secret", 0).await;
}

/// As an instance that may not use the channel: one heartbeat is all that it has.
#[tokio::test]
async fn secret_lost_by_redis_is_back_within_a_heartbeat() {
    let redis = RedisServer::start();
    let beats = [("TIDEGATE__FLEET__HEARTBEAT_S", "1")];
    let (one, two) = (start(&redis, &beats).await, start(&redis, &beats).await);
    know_each_other(&[&one, &two]).await;
    let before = secret(&redis);
    assert!(before.is_some());
    for _ in 0..3 {
        let _: () = redis.run(&["FLUSHALL"]);
        until("the secret is back", async || secret(&redis).is_some()).await;
        assert_eq!(secret(&redis), before);
    }
    // Its lines name the key, never the secret.
    let said = one.output() + &two.output();
    assert!(said.contains("Redis had lost the fleet's secret (tidegate:secret)"), "{said}");
    assert!(!said.contains(before.as_deref().unwrap()), "the secret is in the log");
    assert!(share_one_limit(&redis, &[&one, &two], "a client").await);
}

/// What may stand in the place of a secret, as arguments of a command of Lua, and how it is logged.
const DAMAGES: [(&str, &str); 6] = [
    ("'LPUSH', KEYS[1], 'x'", "a value that is no string"),
    ("'HSET', KEYS[1], 'a', 'b'", "a value that is no string"),
    (r"'SET', KEYS[1], string.rep('\255', 64)", "not UTF-8"),
    ("'SET', KEYS[1], ''", "an empty string"),
    ("'SET', KEYS[1], 'abc'", "of another length than 64 digits"),
    ("'SET', KEYS[1], string.rep('x', 64)", "not hexadecimal"),
];

fn damage(redis: &RedisServer, value: &str) {
    let script = format!("redis.call('DEL', KEYS[1]) return redis.call({value})");
    let _: redis::Value = redis.run(&["EVAL", &script, "1", KEY]);
}

/// The secret where the key holds one.
fn sound(redis: &RedisServer) -> Option<String> {
    let kind: String = redis.run(&["TYPE", KEY]);
    let value: Vec<u8> = if kind == "string" { redis.run(&["GET", KEY]) } else { Vec::new() };
    let text = String::from_utf8(value).ok()?;
    (text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(text)
}

#[tokio::test]
async fn damaged_secret_is_replaced_by_the_one_in_use() {
    let redis = RedisServer::start();
    let beats = [("TIDEGATE__FLEET__HEARTBEAT_S", "1")];
    let (one, two) = (start(&redis, &beats).await, start(&redis, &beats).await);
    know_each_other(&[&one, &two]).await;
    let before = sound(&redis);
    assert!(before.is_some());
    for (value, what) in DAMAGES {
        let lines = |tidegate: &Tidegate| tidegate.lines_with(&format!("(tidegate:secret) was {what}"));
        let said = lines(&one) + lines(&two);
        damage(&redis, value);
        until(value, async || sound(&redis).is_some()).await;
        assert_eq!(sound(&redis), before, "{value}");
        until("it is logged", async || lines(&one) + lines(&two) > said).await;
        // Three beats later it is still one line, of the instance that repaired the key.
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        assert_eq!(lines(&one) + lines(&two), said + 1, "{value}");
    }
    assert!(share_one_limit(&redis, &[&one, &two], "a client").await);
}

#[tokio::test]
async fn start_with_a_damaged_secret_uses_redis() {
    for (value, what) in DAMAGES {
        let redis = RedisServer::start();
        damage(&redis, value);
        let tidegate = start(&redis, &[]).await;
        assert!(share_one_limit(&redis, &[&tidegate], "a client").await, "{value}");
        assert!(sound(&redis).is_some(), "{value}");
        tidegate.says(&format!("(tidegate:secret) was {what}"), 1).await;
    }
}

#[tokio::test]
async fn instances_with_different_secrets_log_it() {
    let redis = RedisServer::start();
    let one = start(&redis, &[("TIDEGATE_SECRET", "the secret of the first")]).await;
    let two = start(&redis, &[("TIDEGATE_SECRET", "the secret of the second")]).await;
    one.says("does not use the TIDEGATE_SECRET of this instance", 1).await;
    let three = start(&redis, &[]).await;
    one.says("does not use the TIDEGATE_SECRET of this instance", 1).await;
    two.says("a message on the channel tidegate:fleet cannot be opened", 1).await;
    assert!(!three.output().contains("Redis holds another secret"), "{}", three.output());
}
