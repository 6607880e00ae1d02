//! How long three instances need to agree after a partition, with every setting at its default. A measurement, which
//! `TIDEGATE_MEASURE=rounds` starts.

use std::time::{Duration, Instant};

use rand::RngExt as _;
use serde_json::{Value, json};

use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;
use crate::support::relay::Relay;
use crate::support::until;

async fn start(url: &str, name: &str) -> Tidegate {
    let variables =
        [("REDIS_URL", url), ("TIDEGATE__FLEET__NAME", name), ("TIDEGATE__LOGGING__REQUESTS", "false")];
    let tidegate = Tidegate::start(None, &variables).await;
    tidegate.connected().await;
    tidegate
}

async fn put(tidegate: &Tidegate, percent: u32) {
    let body = json!({"percent": percent, "reason": "a measurement"});
    let request = tidegate.admin("PUT", "/admin/rollout").header("if-match", "*").json(&body);
    assert_eq!(request.send().await.unwrap().status(), 200);
}

async fn agree(fleet: &[Tidegate]) -> bool {
    let mut records: Vec<(Value, Value)> = Vec::new();
    for tidegate in fleet {
        let status = tidegate.status().await;
        let record = &status["rollout"];
        if record["effective_at"] != Value::Null {
            return false;
        }
        records.push((status["etag"].clone(), status["percent_in_force"].clone()));
    }
    records.iter().all(|record| *record == records[0])
}

#[tokio::test]
async fn time_to_agree_after_a_partition_is_measured() {
    let Some(rounds) = std::env::var("TIDEGATE_MEASURE").ok().and_then(|rounds| rounds.parse::<u32>().ok())
    else {
        return;
    };
    let redis = RedisServer::start();
    let relay = Relay::to(redis.port).await;
    let fleet = [
        start(&redis.url(), "one").await,
        start(&redis.url(), "two").await,
        start(&redis.url_by(relay.address.port()), "three").await,
    ];
    until("all agree", async || agree(&fleet).await).await;
    let mut took = Vec::new();
    for round in 0..rounds {
        relay.refuse();
        until("it is cut off", async || fleet[2].status().await["redis"]["state"] == "open").await;
        // Both sides change the record: this one lowers, the others lower and raise.
        put(&fleet[0], 40 + round % 5).await;
        put(&fleet[0], 30).await;
        let back = fleet[2].admin("POST", "/admin/rollout/rollback").send().await.unwrap();
        assert_eq!(back.status(), 200);
        put(&fleet[1], 50 + round % 7).await;
        let lasts = Duration::from_millis(rand::rng().random_range(2_000..20_000));
        tokio::time::sleep(lasts).await;
        relay.accept();
        let healed = Instant::now();
        while !agree(&fleet).await {
            assert!(healed.elapsed() < Duration::from_secs(120), "they do not agree");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        took.push(healed.elapsed());
        eprintln!("cut off for {lasts:.1?}, agreed after {:.1?}", healed.elapsed());
        assert_eq!(fleet[0].status().await["percent_in_force"], 0.0);
        for tidegate in &fleet {
            until("all listen", async || {
                redis.run::<(String, usize)>(&["PUBSUB", "NUMSUB", "tidegate:fleet"]).1 == 3
                    && tidegate.status().await["fleet"]["instances"] == 3
            })
            .await;
        }
        put(&fleet[0], 60).await;
        // Longer where an instance has not said yet that it listens: two heartbeats and a second.
        tokio::time::sleep(Duration::from_secs(3)).await;
        while !agree(&fleet).await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    took.sort_unstable();
    let at = |share: usize| took[(took.len() * share).div_ceil(100).saturating_sub(1)];
    eprintln!("{rounds} partitions: P50 {:.1?}, P90 {:.1?}, longest {:.1?}", at(50), at(90), at(100));
}
