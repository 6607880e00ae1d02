//! The record under partitions, restarts and redeploys: no acknowledged rollback is undone without a later change.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::process::{Tidegate, command};
use crate::support::redis_server::{RedisServer, free_port, signal};
use crate::support::relay::Relay;
use crate::support::until;

const SECRET: &str = "the fleet's secret, for tests";

/// Starts an instance with a heartbeat of one second in `directory`, with `more` variables.
pub(super) async fn start_in(directory: TempDir, url: &str, name: &str, more: &[(&str, &str)]) -> Tidegate {
    let mut variables = vec![
        ("REDIS_URL", url),
        ("TIDEGATE_SECRET", SECRET),
        ("TIDEGATE__FLEET__NAME", name),
        ("TIDEGATE__FLEET__HEARTBEAT_S", "1"),
        ("TIDEGATE__REDIS__RECONNECT_INTERVAL_S", "1"),
        ("TIDEGATE__REDIS__WARM_UP_S", "0"),
        ("REDIS_TIMEOUT_MS", "5000"),
        ("TIDEGATE__LOGGING__REQUESTS", "false"),
    ];
    variables.extend(more);
    Tidegate::start_by(|place: &Path| command(place), directory, &variables).await
}

pub(super) async fn start(url: &str, name: &str, more: &[(&str, &str)]) -> Tidegate {
    start_in(tempfile::tempdir().unwrap(), url, name, more).await
}

/// Kills the process, and returns its disk.
pub(super) fn killed(mut tidegate: Tidegate) -> TempDir {
    signal(tidegate.pid(), "KILL");
    tidegate.wait(Duration::from_secs(10));
    std::mem::replace(&mut tidegate.directory, tempfile::tempdir().unwrap())
}

pub(super) async fn know(fleet: &[&Tidegate], instances: usize) {
    for tidegate in fleet {
        until("each instance knows of each", async || {
            tidegate.status().await["fleet"]["instances"] == instances
        })
        .await;
    }
}

/// The share in force.
async fn share(tidegate: &Tidegate) -> f64 {
    tidegate.status().await["percent_in_force"].as_f64().unwrap()
}

pub(super) async fn all_at(fleet: &[&Tidegate], percent: f64) {
    for tidegate in fleet {
        until(&format!("{percent} % is in force"), async || share(tidegate).await == percent).await;
    }
}

/// The share stays as it is for a while: three heartbeats.
async fn all_stay_at(fleet: &[&Tidegate], percent: f64) {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        for tidegate in fleet {
            let status = tidegate.status().await;
            assert_eq!(status["percent_in_force"], percent, "{}", status["rollout"]);
            // Nor is another one announced.
            assert_eq!(status["rollout"]["percent"], percent, "{}", status["rollout"]);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(super) async fn put(tidegate: &Tidegate, body: Value, tag: &str) -> (u16, Value) {
    let request = tidegate.admin("PUT", "/admin/rollout").header("if-match", tag).json(&body);
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn set(tidegate: &Tidegate, percent: f64) -> Value {
    let (status, answer) = put(tidegate, json!({"percent": percent, "reason": "a test"}), "*").await;
    assert_eq!(status, 200, "{answer}");
    answer
}

pub(super) async fn tag(tidegate: &Tidegate) -> String {
    let answer = tidegate.admin("GET", "/admin/rollout").send().await.unwrap();
    answer.headers()["etag"].to_str().unwrap().to_owned()
}

pub(super) async fn roll_back(tidegate: &Tidegate) -> Value {
    let answer = tidegate.admin("POST", "/admin/rollout/rollback").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.json().await.unwrap()
}

pub(super) async fn is_cut_off(tidegate: &Tidegate) {
    until("it is cut off", async || tidegate.status().await["redis"]["state"] == "open").await;
}

pub(super) async fn agree(fleet: &[&Tidegate]) {
    until("all have one record", async || {
        let mut records = Vec::new();
        for tidegate in fleet {
            let mut record = tidegate.status().await["rollout"].clone();
            record["effective_at"] = Value::Null;
            records.push(record);
        }
        records.iter().all(|record| *record == records[0])
    })
    .await;
}

pub(super) fn canary(percent: &'static str) -> [(&'static str, &'static str); 1] {
    [("RATE_LIMIT_CANARY_PERCENT", percent)]
}

#[tokio::test]
async fn restart_with_an_old_value_leaves_a_rollback() {
    let redis = RedisServer::start();
    let url = redis.url();
    let one = start(&url, "one", &canary("20")).await;
    one.connected().await;
    let two = start(&url, "two", &canary("20")).await;
    two.connected().await;
    know(&[&one, &two], 2).await;
    // A deploy reaches one of three.
    let three = start(&url, "three", &canary("10")).await;
    three.connected().await;
    all_at(&[&one, &two, &three], 10.0).await;
    assert_eq!(roll_back(&one).await["percent"], 0.0);
    all_at(&[&one, &two, &three], 0.0).await;
    let disk = killed(two);
    let two = start_in(disk, &url, "two", &canary("20")).await;
    two.connected().await;
    all_stay_at(&[&one, &two, &three], 0.0).await;
    // Nor does one that has lost its disk.
    drop(killed(two));
    let two = start(&url, "two", &canary("20")).await;
    two.connected().await;
    all_stay_at(&[&one, &two, &three], 0.0).await;
    two.says("RATE_LIMIT_CANARY_PERCENT=20 is passed over", 1).await;
}

#[tokio::test]
async fn running_process_does_not_apply_its_environment() {
    let redis = RedisServer::start();
    let relay = Relay::to(redis.port).await;
    let url = redis.url_by(relay.address.port());
    let one = start(&url, "one", &canary("10")).await;
    one.connected().await;
    let one = start_in(killed(one), &url, "one", &canary("60")).await;
    until("its record is in Redis", async || {
        let text: Option<String> = redis.run(&["GET", "tidegate:rollout"]);
        text.is_some_and(|text| text.contains("\"percent\":60.0"))
    })
    .await;
    relay.refuse();
    is_cut_off(&one).await;
    let two = start(&redis.url(), "two", &canary("20")).await;
    two.connected().await;
    all_at(&[&two], 20.0).await;
    roll_back(&two).await;
    relay.accept();
    all_at(&[&one], 0.0).await;
    all_stay_at(&[&one, &two], 0.0).await;
}

#[tokio::test]
async fn new_fleet_keeps_its_second_command() {
    let redis = RedisServer::start();
    let (one, two) = (start(&redis.url(), "one", &[]).await, start(&redis.url(), "two", &[]).await);
    know(&[&one, &two], 2).await;
    set(&one, 1.0).await;
    all_at(&[&two], 1.0).await;
    let seen = tag(&two).await;
    let (status, answer) = put(&two, json!({"percent": 5, "reason": "a test"}), &seen).await;
    assert_eq!((status, &answer["durable"]), (200, &json!(true)), "{answer}");
    all_at(&[&one, &two], 5.0).await;
    all_stay_at(&[&one, &two], 5.0).await;
}

/// Three instances, of which the third reaches Redis through a relay.
async fn with_one_behind_a_relay(redis: &RedisServer, relay: &Relay) -> [Tidegate; 3] {
    let third = redis.url_by(relay.address.port());
    let url = redis.url();
    let fleet = [
        start(&url, "one", &canary("50")).await,
        start(&url, "two", &canary("50")).await,
        start(&third, "three", &canary("50")).await,
    ];
    know(&[&fleet[0], &fleet[1], &fleet[2]], 3).await;
    fleet
}

#[tokio::test]
async fn rollback_made_cut_off_survives_raises_elsewhere() {
    // The others have lowered once: the same epoch; or twice: a higher one.
    for lowerings in [&[40.0][..], &[40.0, 30.0]] {
        let redis = RedisServer::start();
        let relay = Relay::to(redis.port).await;
        let [one, two, three] = with_one_behind_a_relay(&redis, &relay).await;
        relay.refuse();
        is_cut_off(&three).await;
        assert_eq!(roll_back(&three).await["durable"], true);
        for lowering in lowerings {
            set(&one, *lowering).await;
        }
        set(&two, 80.0).await;
        // The one that made it ends and starts again before it meets the others.
        let disk = killed(three);
        let url = redis.url_by(relay.address.port());
        let three = start_in(disk, &url, "three", &canary("50")).await;
        relay.accept();
        all_at(&[&one, &two, &three], 0.0).await;
        agree(&[&one, &two, &three]).await;
        all_stay_at(&[&one, &two, &three], 0.0).await;
    }
}

#[tokio::test]
async fn rollback_survives_a_redis_that_lost_everything() {
    let mut redis = RedisServer::start();
    let (others, own) = (Relay::to(redis.port).await, Relay::to(redis.port).await);
    let one = start(&redis.url_by(others.address.port()), "one", &canary("50")).await;
    let two = start(&redis.url_by(own.address.port()), "two", &canary("50")).await;
    know(&[&one, &two], 2).await;
    others.refuse();
    is_cut_off(&one).await;
    // By its disk, at epochs that the other does not know of.
    for percent in [40.0, 30.0, 80.0] {
        set(&one, percent).await;
    }
    roll_back(&two).await;
    redis.kill();
    is_cut_off(&two).await;
    redis.restart();
    until("the empty Redis has the rollback", async || {
        redis.run::<Option<String>>(&["GET", "tidegate:rollout"]).is_some()
    })
    .await;
    others.accept();
    all_at(&[&one, &two], 0.0).await;
    agree(&[&one, &two]).await;
    all_stay_at(&[&one, &two], 0.0).await;
    one.says("rollout.stands", 0).await;
}

#[tokio::test]
async fn rollback_of_two_that_were_cut_off_survives() {
    let redis = RedisServer::start();
    let relay = Relay::to(redis.port).await;
    let ports = [free_port(), free_port()];
    let peers = ports.map(|port| format!("127.0.0.1:{port}")).join(",");
    let url = redis.url_by(relay.address.port());
    let peer = async |port: u16, name: &str| {
        let admin = format!("127.0.0.1:{port}");
        let more = [
            ("ADMIN_ADDR", admin.as_str()),
            ("TIDEGATE_PEERS", peers.as_str()),
            ("RATE_LIMIT_CANARY_PERCENT", "50"),
        ];
        start(&url, name, &more).await
    };
    let (two, three) = (peer(ports[0], "two").await, peer(ports[1], "three").await);
    let one = start(&redis.url(), "one", &canary("50")).await;
    know(&[&one, &two, &three], 3).await;
    relay.refuse();
    is_cut_off(&two).await;
    is_cut_off(&three).await;
    roll_back(&two).await;
    all_at(&[&two, &three], 0.0).await;
    for percent in [40.0, 30.0, 80.0] {
        set(&one, percent).await;
    }
    // The one that made it is gone for good.
    drop(killed(two));
    relay.accept();
    all_at(&[&one, &three], 0.0).await;
    all_stay_at(&[&one, &three], 0.0).await;
}

#[tokio::test]
async fn one_tag_makes_one_change_under_flag_memory() {
    let redis = RedisServer::start();
    let (one, two) =
        (start(&redis.url(), "one", &canary("50")).await, start(&redis.url(), "two", &canary("50")).await);
    know(&[&one, &two], 2).await;
    let off = json!({"percent": 50, "backend": "memory", "reason": "a test"});
    assert_eq!(put(&one, off, "*").await.0, 200);
    agree(&[&one, &two]).await;
    for round in 0..5 {
        let seen = tag(&one).await;
        let to = |percent: u32| json!({"percent": percent, "reason": "a test"});
        let (first, second) =
            tokio::join!(put(&one, to(20 + round), &seen), put(&two, to(30 + round), &seen));
        let mut statuses = [first.0, second.0];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 412], "{first:?} {second:?}");
        agree(&[&one, &two]).await;
    }
    // What lowers is compared as well.
    let on = json!({"percent": 60, "backend": "redis", "reason": "a test"});
    assert_eq!(put(&one, on, &tag(&one).await).await.0, 200);
    all_at(&[&one, &two], 60.0).await;
    let seen = tag(&one).await;
    let to = |percent: u32| json!({"percent": percent, "reason": "a test"});
    let (first, second) = tokio::join!(put(&one, to(20), &seen), put(&two, to(30), &seen));
    let mut statuses = [first.0, second.0];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 412], "{first:?} {second:?}");
    agree(&[&one, &two]).await;
}
