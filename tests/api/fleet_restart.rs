//! A fleet of two whose second instance is killed and started again at its place: whatever is rolled back counts two, never
//! the one that is dead as well.

use std::time::Duration;

use serde_json::Value;

use crate::support::process::Tidegate;
use crate::support::redis_server::{RedisServer, free_port};
use crate::support::until;

const SECRET: &str = "the fleet's secret, for tests";

/// The heartbeat is the default: a row counts for thirty seconds after its last.
async fn start(url: &str, place: &(u16, String), peers: &str) -> Tidegate {
    let admin = format!("127.0.0.1:{}", place.0);
    let mut variables = vec![
        ("REDIS_URL", url),
        ("ADMIN_ADDR", admin.as_str()),
        ("TIDEGATE__FLEET__NAME", &*place.1),
        ("TIDEGATE_SECRET", SECRET),
        ("REDIS_TIMEOUT_MS", "5000"),
        ("TIDEGATE__LOGGING__REQUESTS", "false"),
    ];
    if !peers.is_empty() {
        variables.push(("TIDEGATE_PEERS", peers));
    }
    Tidegate::start(None, &variables).await
}

fn places() -> [(u16, String); 2] {
    ["one", "two"].map(|name| (free_port(), name.to_owned()))
}

async fn knows_the_other(tidegate: &Tidegate) {
    until("it knows the other", async || tidegate.status().await["fleet"]["instances"] == 2).await;
}

async fn roll_back(tidegate: &Tidegate) -> String {
    let answer = tidegate.admin("POST", "/admin/rollout/rollback").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let answer: Value = answer.json().await.unwrap();
    eprintln!("{}, pending {}", answer["applied"], answer["pending"]);
    answer["applied"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn rollback_of_two_counts_no_killed_predecessor() {
    let redis = RedisServer::start();
    let (url, places) = (redis.url(), places());
    let one = start(&url, &places[0], "").await;
    let mut two = start(&url, &places[1], "").await;
    for tidegate in [&one, &two] {
        tidegate.connected().await;
        knows_the_other(tidegate).await;
    }
    assert_eq!(roll_back(&one).await, "2/2");
    for killed in 1..=2 {
        // Dropped, a process is killed: it says no word.
        drop(two);
        assert_eq!(roll_back(&one).await, "1/2", "it may be cut off from Redis, and alive");
        two = start(&url, &places[1], "").await;
        two.connected().await;
        // The restarted one speaks as soon as it can, and before anything has become silent for long enough.
        until("it listens", async || {
            redis.run::<(String, usize)>(&["PUBSUB", "NUMSUB", "tidegate:fleet"]).1 == 2
        })
        .await;
        until("it has spoken", async || redis.run::<usize>(&["HLEN", "tidegate:members"]) >= 2 + killed)
            .await;
        for tidegate in [&two, &one] {
            let applied = roll_back(tidegate).await;
            assert!(["1/2", "2/2"].contains(&&*applied), "{applied} of a fleet of two");
        }
        assert_eq!([roll_back(&two).await, roll_back(&one).await], ["2/2", "2/2"]);
        assert_eq!(one.status().await["fleet"]["instances"], 2);
    }
}

#[tokio::test]
async fn rollback_over_peers_counts_no_killed_predecessor() {
    let mut redis = RedisServer::start();
    let (url, places) = (redis.url(), places());
    let peers = places.iter().map(|(port, _)| format!("127.0.0.1:{port}")).collect::<Vec<_>>().join(",");
    let one = start(&url, &places[0], &peers).await;
    let two = start(&url, &places[1], &peers).await;
    for tidegate in [&one, &two] {
        tidegate.connected().await;
        knows_the_other(tidegate).await;
    }
    redis.kill();
    for tidegate in [&one, &two] {
        until("Redis is away", async || tidegate.status().await["redis"]["state"] == "open").await;
    }
    drop(two);
    let two = start(&url, &places[1], &peers).await;
    for tidegate in [&one, &two] {
        let applied = roll_back(tidegate).await;
        assert!(["1/2", "2/2"].contains(&&*applied), "{applied} of a fleet of two");
    }
    tokio::time::timeout(Duration::from_secs(20), async { while roll_back(&one).await != "2/2" {} })
        .await
        .unwrap();
}
