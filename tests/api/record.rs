//! The rollout's record over restarts: what was answered durable is there, and a deploy is a writer.

use std::path::Path;
use std::time::Duration;

use rand::RngExt as _;
use serde_json::{Value, json};

use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;

/// Nobody listens there: what is raised is kept by the disk alone.
const NO_REDIS: &str = "redis://127.0.0.1:1";

async fn start(directory: &Path, variables: &[(&str, &str)]) -> Tidegate {
    let database = format!("sqlite://{}/data/t.db", directory.display());
    let mut all = vec![("DATABASE_URL", database.as_str()), ("TIDEGATE__SERVER__WORKERS", "1")];
    all.extend(variables);
    Tidegate::start(None, &all).await
}

async fn record(tidegate: &Tidegate) -> Value {
    tidegate.admin("GET", "/admin/rollout").send().await.unwrap().json().await.unwrap()
}

async fn put(tidegate: &Tidegate, percent: f64, reason: &str) -> Option<Value> {
    let request = tidegate.admin("PUT", "/admin/rollout").header("if-match", "*");
    let answer = request.json(&json!({"percent": percent, "reason": reason})).send().await.ok()?;
    assert_eq!(answer.status(), 200);
    answer.json().await.ok()
}

async fn roll_back(tidegate: &Tidegate) -> Value {
    let answer = tidegate.admin("POST", "/admin/rollout/rollback").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.json().await.unwrap()
}

async fn audit(tidegate: &Tidegate, query: &str) -> Value {
    let answer = tidegate.admin("GET", &format!("/admin/audit{query}")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.json().await.unwrap()
}

/// The share that change number `n` sets, up and down.
fn share(n: u64) -> f64 {
    ((n * 3_701) % 10_001) as f64 / 100.0
}

/// Changes without a pause, and kills at a random moment, so many times. What was answered durable must be there.
async fn killed(times: u32) {
    let directory = tempfile::tempdir().unwrap();
    // The newest that was answered, and the newest that was asked for.
    let (mut kept, mut asked) = ((0, 0), 0);
    let mut unanswered = 0;
    for round in 0..times {
        let tidegate = start(directory.path(), &[("REDIS_URL", NO_REDIS)]).await;
        let found = record(&tidegate).await;
        let revision = found["revision"].as_u64().unwrap();
        if round > 0 && kept.1 > 0 {
            assert!(revision >= kept.0, "revision {} was answered durable, {found} is there", kept.0);
            let reason = found["reason"].as_str().unwrap();
            let number: u64 = reason.strip_prefix("change ").unwrap().parse().unwrap();
            assert!((kept.1..=asked).contains(&number), "{found}: not one of {} to {asked}", kept.1);
            assert_eq!(found["percent"].as_f64(), Some(share(number)), "no torn record: {found}");
            unanswered += u32::from(number > kept.1);
        }
        let wait = Duration::from_micros(rand::rng().random_range(2_000..25_000));
        let changes = async {
            loop {
                asked += 1;
                let Some(answer) = put(&tidegate, share(asked), &format!("change {asked}")).await else {
                    return;
                };
                assert_eq!(answer["durable"], true, "{answer}");
                kept = (answer["revision"].as_u64().unwrap(), asked);
            }
        };
        let kill = async {
            tokio::time::sleep(wait).await;
            crate::support::redis_server::signal(tidegate.pid(), "KILL");
        };
        tokio::join!(changes, kill);
    }
    eprintln!("{asked} changes, {} kept by an answer, {unanswered} kept before their answer was out", kept.1);
    assert!(kept.1 > 0);
}

#[tokio::test]
async fn kill_9_between_request_and_answer_two_hundred_times_loses_no_change_that_was_answered_durable() {
    killed(200).await;
}

#[tokio::test]
async fn a_crash_or_a_redeploy_in_the_middle_of_a_rollout_does_not_undo_it_and_a_changed_variable_does() {
    let directory = tempfile::tempdir().unwrap();
    let with = |percent: &'static str| [("REDIS_URL", NO_REDIS), ("RATE_LIMIT_CANARY_PERCENT", percent)];
    {
        let first = start(directory.path(), &with("10")).await;
        assert_eq!(
            (&record(&first).await["percent"], &record(&first).await["revision"]),
            (&json!(10.0), &json!(1))
        );
        assert_eq!(first.set_percent(25.0).await["durable"], true);
        // Dropped: killed.
    }
    {
        let same = start(directory.path(), &with("10")).await;
        let found = record(&same).await;
        assert_eq!((&found["percent"], &found["percent_in_force"]), (&json!(25.0), &json!(25.0)));
        assert_eq!((&found["reason"], &found["source"]), (&json!("a test"), &json!("disk")));
        same.says("rollout: 25 % of the keys in Redis, from the disk (revision 2 of epoch 0 by token:", 1)
            .await;
        same.says("RATE_LIMIT_CANARY_PERCENT=10 is passed over, because it has not changed since", 1).await;
    }
    {
        let unset = start(directory.path(), &[("REDIS_URL", NO_REDIS)]).await;
        assert_eq!(record(&unset).await["percent"], 25.0, "a variable that is not set is no change");
        assert_eq!(roll_back(&unset).await["durable"], true);
    }
    {
        let same = start(directory.path(), &with("10")).await;
        assert_eq!(record(&same).await["percent"], 0.0, "a restart does not undo a rollback");
    }
    {
        let changed = start(directory.path(), &with("50")).await;
        let found = record(&changed).await;
        assert_eq!((&found["percent"], &found["updated_by"]), (&json!(50.0), &json!("env")));
        assert_eq!(found["reason"], "RATE_LIMIT_CANARY_PERCENT=50 is new");
        changed
            .says("rollout: 50 % of the keys in Redis, from the environment, newer than the disk", 1)
            .await;
        let trail = audit(&changed, "").await;
        let done: Vec<&str> =
            trail["rows"].as_array().unwrap().iter().map(|row| row["action"].as_str().unwrap()).collect();
        assert_eq!(done, ["rollout.env", "rollout.rollback", "rollout.set"]);
        assert_eq!(changed.set_percent(60.0).await["durable"], true);
    }
    let pinned = [with("50")[0], with("50")[1], ("RATE_LIMIT_CANARY_PIN", "true")];
    let pinned = start(directory.path(), &pinned).await;
    assert_eq!(record(&pinned).await["percent"], 60.0);
    pinned.says("pinned: only the environment raises it", 1).await;
}

#[tokio::test]
async fn the_guides_rollout_by_its_own_words() {
    let (directory, redis) = (tempfile::tempdir().unwrap(), RedisServer::start());
    let url = redis.url();
    let deploy = async |variables: &[(&str, &str)]| start(directory.path(), variables).await;
    {
        // "System automatically falls back to in-memory": nothing is set yet.
        let before = deploy(&[]).await;
        assert_eq!(record(&before).await["effective_backend"], "memory");
        before.says("rollout: every key in memory, because REDIS_URL is not set", 1).await;
    }
    {
        let canary =
            [("REDIS_URL", &*url), ("RATE_LIMIT_BACKEND", "redis"), ("RATE_LIMIT_CANARY_PERCENT", "10")];
        let canary = deploy(&canary).await;
        canary.connected().await;
        canary.says("✅ Redis rate limiting backend connected", 1).await;
        assert_eq!(record(&canary).await["percent_in_force"], 10.0);
    }
    {
        let all =
            [("REDIS_URL", &*url), ("RATE_LIMIT_BACKEND", "redis"), ("RATE_LIMIT_CANARY_PERCENT", "100")];
        let all = deploy(&all).await;
        all.connected().await;
        let found = record(&all).await;
        assert_eq!((&found["percent_in_force"], &found["updated_by"]), (&json!(100.0), &json!("env")));
        assert_eq!(found["effective_backend"], "redis");
    }
    {
        // "Remove REDIS_URL from secrets, restart app".
        let off = deploy(&[("RATE_LIMIT_BACKEND", "redis"), ("RATE_LIMIT_CANARY_PERCENT", "100")]).await;
        let found = record(&off).await;
        assert_eq!(
            (&found["percent_in_force"], &found["disabled_by_env"]),
            (&json!(0.0), &json!("REDIS_URL is not set"))
        );
        off.says(
            "rollout: every key in memory, because REDIS_URL is not set; the record stands for later: 100 %",
            1,
        )
        .await;
        off.says("Using in-memory rate limiting", 1).await;
    }
    {
        // RATE_LIMIT_BACKEND=memory is the other way to switch it off, and the record is kept as well.
        let off = deploy(&[("REDIS_URL", &*url), ("RATE_LIMIT_BACKEND", "memory")]).await;
        assert_eq!(record(&off).await["percent_in_force"], 0.0);
        off.says("rollout: every key in memory, because RATE_LIMIT_BACKEND is memory", 1).await;
    }
    let back = deploy(&[("REDIS_URL", &*url), ("RATE_LIMIT_CANARY_PERCENT", "100")]).await;
    assert_eq!(record(&back).await["percent_in_force"], 100.0, "put back, the record stands");
}

#[tokio::test]
async fn the_audit_trail_tells_who_changed_what_newest_first_over_restarts_page_by_page() {
    let directory = tempfile::tempdir().unwrap();
    {
        let tidegate = start(directory.path(), &[("REDIS_URL", NO_REDIS)]).await;
        for percent in [40.0, 30.0, 20.0] {
            put(&tidegate, percent, &format!("to {percent}")).await.unwrap();
        }
        roll_back(&tidegate).await;
    }
    let tidegate = start(directory.path(), &[("REDIS_URL", NO_REDIS)]).await;
    let first = audit(&tidegate, "?limit=3").await;
    let rows = first["rows"].as_array().unwrap();
    assert_eq!((rows.len(), &first["complete"]), (3, &json!(true)));
    let row = &rows[0];
    assert_eq!(
        (&row["action"], &row["durable"], &row["result"]),
        (&json!("rollout.rollback"), &json!(true), &json!("done"))
    );
    assert_eq!(row["from"], json!({"backend": "redis", "percent": 20.0}));
    assert_eq!(row["to"], json!({"backend": "redis", "percent": 0.0}));
    assert_eq!(
        (&row["reason"], &row["revision"], &row["epoch"]),
        (&json!("no reason given"), &json!(5), &json!(4))
    );
    assert!(
        row["actor"].as_str().unwrap().starts_with("token:")
            && row["request_id"].as_str().unwrap().len() >= 32
    );
    assert_eq!(rows[1]["reason"], "to 20");
    let rest = audit(&tidegate, &format!("?limit=3&cursor={}", first["next"].as_str().unwrap())).await;
    assert_eq!((rest["rows"].as_array().unwrap().len(), &rest["next"]), (1, &Value::Null));
    assert_eq!(rest["rows"][0]["reason"], "to 40");
    for bad in ["?limit=0", "?limit=501", "?cursor=x", "?page=2"] {
        let answer = tidegate.admin("GET", &format!("/admin/audit{bad}")).send().await.unwrap();
        assert_eq!(answer.status(), 422, "{bad}");
    }
    let none = tidegate.http.get(format!("http://{}/admin/audit", tidegate.admin)).send().await.unwrap();
    assert_eq!(none.status(), 401);
}
