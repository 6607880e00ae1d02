//! What two instances come to that have changed the record at the same time, and records of the version before.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};

use super::fleet_partitions::{
    agree, all_at, canary, is_cut_off, killed, know, put, roll_back, start, start_in, tag,
};
use crate::support::process::{Tidegate, command};
use crate::support::redis_server::RedisServer;
use crate::support::relay::Relay;
use crate::support::shifted_clock::ShiftedClock;
use crate::support::until;

async fn trail(tidegate: &Tidegate) -> Vec<Value> {
    let answer = tidegate.admin("GET", "/admin/audit").send().await.unwrap();
    answer.json::<Value>().await.unwrap()["rows"].as_array().unwrap().clone()
}

#[tokio::test]
async fn losing_raise_of_a_partition_is_shown_where_made() {
    let redis = RedisServer::start();
    let relay = Relay::to(redis.port).await;
    let one = start(&redis.url(), "one", &canary("10")).await;
    let two = start(&redis.url_by(relay.address.port()), "two", &canary("10")).await;
    know(&[&one, &two], 2).await;
    agree(&[&one, &two]).await;
    relay.refuse();
    is_cut_off(&two).await;
    let seen = tag(&one).await;
    assert_eq!(seen, tag(&two).await);
    // Both succeed: Redis is out of reach of one.
    let to = |percent: u32| json!({"percent": percent, "reason": "a test"});
    assert_eq!(put(&one, to(30), &seen).await.0, 200);
    assert_eq!(put(&two, to(60), &seen).await.0, 200);
    relay.accept();
    agree(&[&one, &two]).await;
    all_at(&[&one, &two], 30.0).await;
    let lost = two.status().await["lost_raise"].clone();
    assert_eq!((&lost["percent"], &lost["won_percent"]), (&json!(60.0), &json!(30.0)), "{lost}");
    assert_eq!(one.status().await["lost_raise"], Value::Null);
    two.says("rollout: the raise to 60 %", 1).await;
    let rows = trail(&two).await;
    let row = rows.iter().find(|row| row["action"] == "rollout.lost").unwrap();
    assert_eq!((&row["from"]["percent"], &row["to"]["percent"]), (&json!(60.0), &json!(30.0)));
    assert_eq!(row["result"], "lost");
    assert_eq!(trail(&one).await.iter().filter(|row| row["action"] == "rollout.lost").count(), 0);
}

#[tokio::test]
async fn repeated_rollback_changes_nothing() {
    let redis = RedisServer::start();
    let (one, two) =
        (start(&redis.url(), "one", &canary("50")).await, start(&redis.url(), "two", &canary("50")).await);
    know(&[&one, &two], 2).await;
    let first = roll_back(&one).await;
    all_at(&[&one, &two], 0.0).await;
    for tidegate in [&one, &two, &one] {
        let again = roll_back(tidegate).await;
        for field in ["epoch", "revision", "updated_at", "updated_by", "reason"] {
            assert_eq!(again[field], first[field], "{field}: {again}");
        }
        assert_eq!((&again["applied"], &again["durable"]), (&json!("2/2"), &json!(true)));
    }
    let done = trail(&one).await.iter().filter(|row| row["action"] == "rollout.rollback").count();
    assert_eq!(done, 1);
}

#[tokio::test]
async fn rollbacks_at_once_have_one_author_everywhere() {
    let redis = RedisServer::start();
    let fleet = [
        start(&redis.url(), "one", &canary("50")).await,
        start(&redis.url(), "two", &canary("50")).await,
        start(&redis.url(), "three", &canary("50")).await,
    ];
    let all = [&fleet[0], &fleet[1], &fleet[2]];
    know(&all, 3).await;
    for round in 0..3 {
        let back = async |tidegate: &Tidegate, why: &str| {
            let request = tidegate.admin("POST", "/admin/rollout/rollback");
            request.json(&json!({"reason": why})).send().await.unwrap().status()
        };
        let (one, two) = tokio::join!(back(all[0], "first"), back(all[1], "second"));
        assert_eq!((one.as_u16(), two.as_u16()), (200, 200));
        agree(&all).await;
        all_at(&all, 0.0).await;
        let seen = tag(all[2]).await;
        assert_eq!(put(all[2], json!({"percent": 20 + round, "reason": "up"}), &seen).await.0, 200);
        all_at(&all, f64::from(20 + round)).await;
    }
}

#[tokio::test]
async fn trail_is_newest_first_after_the_clock_was_set_back() {
    let clock = ShiftedClock::ahead(0);
    let directory = tempfile::tempdir().unwrap();
    let mut variables = clock.variables();
    variables.push(("REDIS_URL", "redis://127.0.0.1:1"));
    let first = Tidegate::start_by(|place: &Path| command(place), directory, &variables).await;
    for percent in [50, 40] {
        assert_eq!(put(&first, json!({"percent": percent, "reason": "before"}), "*").await.0, 200);
    }
    let disk = killed(first);
    clock.set_ahead(-3_600 * 1_000_000);
    let second = Tidegate::start_by(|place: &Path| command(place), disk, &variables).await;
    for percent in [30, 20] {
        assert_eq!(put(&second, json!({"percent": percent, "reason": "after"}), "*").await.0, 200);
    }
    let percents: Vec<f64> =
        trail(&second).await.iter().map(|row| row["to"]["percent"].as_f64().unwrap()).collect();
    assert_eq!(percents, [20.0, 30.0, 40.0, 50.0]);
}

/// A record as the version before wrote it.
fn older_record(percent: f64) -> Value {
    json!({
        "backend": "redis", "percent": percent, "epoch": 3, "revision": 9, "previous": 0.0,
        "updated_at": "2026-11-23T03:00:00.123456789Z", "updated_by": "token:ana", "reason": "P95 is fine",
    })
}

async fn is_the_older_record(tidegate: &Tidegate, percent: f64) {
    until("the older record is in force", async || {
        let record = tidegate.status().await["rollout"].clone();
        record["percent"] == percent
            && record["epoch"] == 3
            && record["revision"] == 9
            && record["updated_by"] == "token:ana"
            && record["reason"] == "P95 is fine"
    })
    .await;
}

#[tokio::test]
async fn record_of_the_version_before_is_read_from_redis() {
    let redis = RedisServer::start();
    let text = json!({
        "epoch": 3, "revision": 9, "points": 2_500, "record": older_record(25.0), "remembered": {"percent": 10.0},
    });
    let _: String = redis.run(&["SET", "tidegate:rollout", &text.to_string()]);
    // Its variable is the one that the fleet was started with.
    let one = start(&redis.url(), "one", &canary("10")).await;
    is_the_older_record(&one, 25.0).await;
    let seen = tag(&one).await;
    assert_eq!(put(&one, json!({"percent": 40, "reason": "up"}), &seen).await.0, 200);
    assert_eq!(roll_back(&one).await["epoch"], 4);
    // An instance of that version puts its own record there, above: it counted epochs alone.
    let later = json!({"epoch": 5, "revision": 12, "points": 3_000, "remembered": {"percent": 10.0}, "record": {
        "backend": "redis", "percent": 30.0, "epoch": 5, "revision": 12, "previous": 0.0,
        "updated_at": "2026-12-01T00:00:00Z", "updated_by": "token:ben", "reason": "up",
    }});
    let _: String = redis.run(&["SET", "tidegate:rollout", &later.to_string()]);
    all_at(&[&one], 30.0).await;
}

#[tokio::test]
async fn record_of_the_version_before_is_read_from_the_disk() {
    let redis = RedisServer::start();
    let made = start(&redis.url(), "one", &canary("10")).await;
    let disk = killed(made);
    let _: String = redis.run(&["FLUSHALL"]);
    let file = disk.path().join("data/tidegate.db");
    let mut database = SqliteConnectOptions::new().filename(&file).connect().await.unwrap();
    sqlx::query("DELETE FROM rollout").execute(&mut database).await.unwrap();
    sqlx::query("INSERT INTO rollout (epoch, revision, points, body, remembered) VALUES (3, 9, 2500, ?, ?)")
        .bind(older_record(25.0).to_string())
        .bind(r#"{"percent":10.0}"#)
        .execute(&mut database)
        .await
        .unwrap();
    database.close().await.unwrap();
    let again = start_in(disk, &redis.url(), "one", &canary("10")).await;
    is_the_older_record(&again, 25.0).await;
    again.says("RATE_LIMIT_CANARY_PERCENT=10 is passed over, because it has not changed since", 1).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    is_the_older_record(&again, 25.0).await;
}
