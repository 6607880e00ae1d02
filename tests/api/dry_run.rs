//! `?dry_run=1`: what a change of the rollout would come to, before it is made.

use serde_json::{Value, json};

use crate::support::process::Tidegate;
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

/// The answer to `method` at `path`, and its status.
async fn ask(
    tidegate: &Tidegate,
    (method, path): (&str, &str),
    body: &Value,
    headers: &[(&str, &str)],
) -> (u16, Value) {
    let request = tidegate.admin(method, path).json(body);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

const DRY: (&str, &str) = ("PUT", "/admin/rollout?dry_run=1");
const REAL: (&str, &str) = ("PUT", "/admin/rollout");

fn codes(answer: &Value) -> Vec<&str> {
    answer["blockers"].as_array().unwrap().iter().map(|one| one["code"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn it_says_which_keys_and_requests_would_move_and_what_a_day_would_cost_and_changes_nothing() {
    let (redis, upstream) = (RedisServer::start(), Upstream::start());
    let (redis_url, upstream_url) = (redis.url(), upstream.url());
    let tidegate = Tidegate::start(
        Some(BY_KEY),
        &[
            ("REDIS_URL", &redis_url),
            ("UPSTREAM_URL", &upstream_url),
            ("RATE_LIMIT_CANARY_PERCENT", "10"),
            ("TIDEGATE__REDIS__COMMANDS_PER_DAY", "100"),
        ],
    )
    .await;
    tidegate.connected().await;
    let read = tidegate.admin("GET", "/admin/rollout").send().await.unwrap();
    let tag = read.headers()["etag"].to_str().unwrap().to_owned();
    let before: Value = read.json().await.unwrap();
    for key in 0..400 {
        tidegate.get_as("/x", &format!("key-{key}")).await;
    }
    let body = json!({"percent": 60, "reason": "what if"});
    let mut answer = Value::Null;
    until("the clock was looked at", async || {
        let (status, said) = ask(&tidegate, DRY, &body, &[("if-match", &tag)]).await;
        assert_eq!(status, 200, "{said}");
        answer = said;
        answer["requests"]["minutes"].as_f64().unwrap() > 0.0
    })
    .await;
    assert_eq!(answer["dry_run"], true);
    assert_eq!(
        answer["would"]["from"],
        json!({"backend": "redis", "percent": 10.0, "percent_in_force": 10.0})
    );
    assert_eq!(answer["would"]["to"], json!({"backend": "redis", "percent": 60.0, "percent_in_force": 60.0}));
    assert_eq!(answer["keys"], json!({"share_moving": 0.5, "moving_to": "redis"}));
    assert_eq!(answer["requests"]["samples"], 400);
    // A key a request: half of them, but for chance. Five standard deviations of 400 are 0.125.
    let moving = answer["requests"]["share_moving"].as_f64().unwrap();
    assert!((moving - 0.5).abs() < 0.13, "{moving}");
    let commands = &answer["commands_a_day"];
    let (now, then) = (commands["now"].as_f64().unwrap(), commands["then"].as_f64().unwrap());
    assert!(
        now > 0.0 && then > 3.0 * now,
        "six times the decisions, and the background as before: {commands}"
    );
    assert_eq!(commands["per_day"], 100);
    assert!(answer["warnings"].to_string().contains("redis.commands_per_day"), "{answer}");
    assert_eq!(codes(&answer), [""; 0]);

    let down = ask(&tidegate, ("POST", "/admin/rollout/rollback?dry_run=1"), &json!({}), &[]).await.1;
    assert_eq!(down["keys"], json!({"share_moving": 0.1, "moving_to": "memory"}));
    assert_eq!((&down["would"]["to"]["percent"], codes(&down)), (&json!(0.0), vec![]));
    let after: Value = tidegate.admin("GET", "/admin/rollout").send().await.unwrap().json().await.unwrap();
    assert_eq!((&after["revision"], &after["percent"]), (&before["revision"], &before["percent"]));
    let trail: Value = tidegate.admin("GET", "/admin/audit").send().await.unwrap().json().await.unwrap();
    assert!(!trail.to_string().contains("what if"), "{trail}");
}

#[tokio::test]
async fn what_stands_in_the_way_is_what_the_change_itself_would_be_refused_for() {
    let (tidegate, redis) = {
        let redis = RedisServer::start();
        let url = redis.url();
        let variables = [
            ("REDIS_URL", url.as_str()),
            ("RATE_LIMIT_CANARY_PERCENT", "10"),
            ("RATE_LIMIT_CANARY_PIN", "true"),
        ];
        (Tidegate::start(None, &variables).await, redis)
    };
    let up = json!({"percent": 20, "reason": "r"});
    for (headers, all) in [
        (&[][..], &["pinned_by_env", "if_match_required"][..]),
        (&[("if-match", "\"9-9\"")], &["pinned_by_env", "stale"]),
        (&[("if-match", "*")], &["pinned_by_env"]),
    ] {
        let (status, said) = ask(&tidegate, DRY, &up, headers).await;
        assert_eq!((status, codes(&said)), (200, all.to_vec()), "{said}");
        let (status, refused) = ask(&tidegate, REAL, &up, headers).await;
        assert_eq!(
            (status, &refused["code"], &refused["detail"]),
            (409, &json!(all[0]), &said["blockers"][0]["detail"])
        );
    }
    let down = json!({"percent": 5, "reason": "r"});
    assert_eq!(codes(&ask(&tidegate, DRY, &down, &[]).await.1), [""; 0], "lowering is never pinned");
    let (status, problem) = ask(&tidegate, ("PUT", "/admin/rollout?dry_run=yes"), &down, &[]).await;
    assert_eq!((status, &problem["code"]), (422, &json!("bad_query")));
    let (status, _) = ask(&tidegate, ("POST", "/admin/rollout/rollback?dry_run=maybe"), &down, &[]).await;
    assert_eq!(status, 422, "who may only have asked is not rolled back");
    let (status, problem) = ask(&tidegate, DRY, &json!({"percent": 101, "reason": "r"}), &[]).await;
    assert_eq!((status, &problem["code"]), (422, &json!("bad_percent")));
    // A key that only asks is not used up.
    let key = [("idempotency-key", "k")];
    assert_eq!(ask(&tidegate, DRY, &down, &key).await.1["would"]["to"]["percent"], 5.0);
    assert_eq!(ask(&tidegate, REAL, &down, &key).await.1["percent"], 5.0);
    let off =
        ask(&tidegate, ("PUT", "/admin/rollout?dry_run=0"), &json!({"percent": 4, "reason": "r"}), &[]).await;
    assert_eq!(off.1["percent"], 4.0, "0 is no dry run");
    drop(redis);
}

#[tokio::test]
async fn without_redis_with_a_narrow_token_or_with_nobody_to_keep_it_that_is_what_stands_in_the_way() {
    let up = json!({"percent": 20, "reason": "r"});
    let tokens = "operate on-call a-token-that-may-operate\nadmin ana a-test-token-of-32-characters-xx\nread r a-token-that-may-only-read\n";
    let variables = [
        ("ADMIN_TOKEN", ""),
        ("ADMIN_TOKEN_FILE", "tokens"),
        ("REDIS_URL", "redis://127.0.0.1:1"),
        ("RATE_LIMIT_CANARY_PERCENT", "10"),
        ("DATABASE_URL", "sqlite::memory:"),
    ];
    let tidegate = Tidegate::start_with_files(BY_KEY, &[("tokens", tokens)], &variables).await;
    let as_ = async |token: &str| {
        let url = format!("http://{}/admin/rollout?dry_run=1", tidegate.admin);
        let request = tidegate.http.put(url).bearer_auth(token).header("if-match", "*").json(&up);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    assert_eq!(as_("a-token-that-may-only-read").await.0, 403);
    let (_, narrow) = as_("a-token-that-may-operate").await;
    assert_eq!(codes(&narrow), ["scope_too_narrow", "not_durable"], "{narrow}");
    let (_, wide) = as_("a-test-token-of-32-characters-xx").await;
    assert_eq!(codes(&wide), ["not_durable"], "{wide}");
    assert!(wide["warnings"].to_string().contains("Redis is not in use at the moment"), "{wide}");
    let (status, refused) = ask(&tidegate, REAL, &up, &[("if-match", "*")]).await;
    assert_eq!((status, &refused["code"]), (409, &json!("not_durable")));

    let alone = Tidegate::start(None, &[]).await;
    let (_, said) = ask(&alone, DRY, &up, &[("if-match", "*")]).await;
    assert_eq!(codes(&said)[0], "disabled_by_env", "{said}");
    assert_eq!((&said["keys"]["share_moving"], &said["commands_a_day"]), (&json!(0.0), &Value::Null));
    assert_eq!(said["requests"]["share_moving"], Value::Null, "without a store nothing is counted");
}

#[tokio::test]
async fn a_change_that_nobody_can_foresee_is_refused_and_not_made_when_it_is_only_asked_about() {
    let tidegate = Tidegate::start(None, &[]).await;
    let body = json!({"rule": "default", "key": "192.0.2.1", "effect": "block", "reason": "a test"});
    assert_eq!(ask(&tidegate, ("PUT", "/admin/overrides/there?dry_run=0"), &body, &[]).await.0, 201);
    let other = json!({"rule": "default", "key": "192.0.2.2", "effect": "block", "reason": "a test"});
    for query in ["dry_run=1", "dry_run=true", "dry_run", "dry_run=please"] {
        for (method, path) in [
            ("PUT", "/admin/overrides"),
            ("PUT", "/admin/overrides/new"),
            ("DELETE", "/admin/overrides/there"),
            ("POST", "/admin/reload"),
            ("DELETE", "/admin/keys"),
        ] {
            let path = format!("{path}?{query}");
            let (status, problem) = ask(&tidegate, (method, &path), &other, &[]).await;
            assert_eq!((status, &problem["code"]), (422, &json!("bad_query")), "{method} {path}: {problem}");
            assert!(problem["detail"].as_str().unwrap().contains("dry_run"), "{problem}");
        }
    }
    let listed = ask(&tidegate, ("GET", "/admin/overrides"), &Value::Null, &[]).await.1;
    assert_eq!((&listed["total"], &listed["overrides"][0]["id"]), (&json!(1), &json!("there")));
    assert_eq!(tidegate.status().await["policies"]["last_reload"], Value::Null);
}
