//! Overrides on every instance at once, and nowhere lost.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::overrides::{TWO_A_DAY, ask, of, put, status};
use crate::support::process::{Tidegate, command};
use crate::support::redis_server::{RedisServer, free_port};
use crate::support::relay::Relay;
use crate::support::until;

const ENTRIES: &str = "tidegate:{overrides}:entries";
const CHANGES: &str = "tidegate:{overrides}:changes";
const SECRET: &str = "the fleet's secret, for tests";

fn variables<'v>(url: &'v str, name: &'v str) -> Vec<(&'v str, &'v str)> {
    vec![
        ("REDIS_URL", url),
        ("TIDEGATE__FLEET__NAME", name),
        ("TIDEGATE__FLEET__HEARTBEAT_S", "1"),
        ("TIDEGATE__REDIS__RECONNECT_INTERVAL_S", "1"),
        ("TIDEGATE_SECRET", SECRET),
        ("REDIS_TIMEOUT_MS", "5000"),
    ]
}

async fn start(url: &str, name: &str) -> Tidegate {
    let tidegate = Tidegate::start(Some(TWO_A_DAY), &variables(url, name)).await;
    tidegate.connected().await;
    tidegate
}

async fn all_know(fleet: &[Tidegate], instances: usize) {
    for tidegate in fleet {
        until("everybody knows of everybody", async || {
            let status = tidegate.status().await;
            let members = status["fleet"]["members"].as_array().unwrap().clone();
            status["fleet"]["instances"] == instances && members.len() == instances
        })
        .await;
    }
}

#[tokio::test]
async fn a_change_is_in_force_on_three_instances_within_a_second_and_who_was_cut_off_catches_up() {
    let mut redis = RedisServer::start();
    let relay = Relay::to(redis.port).await;
    let (url, third) = (redis.url(), redis.url_by(relay.address.port()));
    let mut fleet = vec![start(&url, "one").await, start(&url, "two").await, start(&third, "three").await];
    all_know(&fleet, 3).await;
    until("everybody listens", async || {
        redis.run::<(String, usize)>(&["PUBSUB", "NUMSUB", "tidegate:fleet"]).1 == 3
    })
    .await;
    let asked = Instant::now();
    let (code, _, made) = put(&fleet[0], "nasty", of("nasty", json!("block")), None).await;
    let took = asked.elapsed();
    eprintln!("on three instances within {took:?}");
    assert_eq!((code, &made["applied"], &made["durable"]), (201, &json!("3/3"), &json!(true)), "{made}");
    for tidegate in &fleet {
        assert_eq!(status(tidegate, "nasty").await, 403, "before it was answered");
    }
    // A loaded machine may be late; it is said within a second or not by all.
    assert!(took < Duration::from_secs(2), "{took:?}");
    let there: Vec<String> = redis.run(&["HGETALL", ENTRIES]);
    for word in ["nasty", "block", "default", "a test"] {
        assert!(!there.iter().any(|text| text.contains(word)), "Redis shows nothing: {there:?}");
    }

    relay.refuse();
    until("it is cut off", async || fleet[2].status().await["redis"]["state"] == "open").await;
    assert_eq!(ask(&fleet[1], "DELETE", "/admin/overrides/nasty").await.0, 200);
    let (_, _, made) = put(&fleet[1], "other", of("other", json!("block")), None).await;
    assert_eq!((&made["applied"], &made["pending"]), (&json!("2/3"), &json!(["three"])), "{made}");
    assert_eq!([status(&fleet[2], "nasty").await, status(&fleet[2], "other").await], [403, 404]);
    // What it is told itself meanwhile is not lost either.
    let (_, _, made) = put(&fleet[2], "mine", of("mine", json!("block")), None).await;
    assert_eq!(made["durable"], true, "its disk keeps it: {made}");
    relay.accept();
    for tidegate in &fleet {
        until("all agree", async || {
            let statuses = [status(tidegate, "other").await, status(tidegate, "mine").await];
            statuses == [403, 403] && ask(tidegate, "GET", "/admin/overrides/nasty").await.0 == 404
        })
        .await;
    }
    // Redis forgets everything: they put it back, and a fresh process takes it from there.
    let _: String = redis.run(&["FLUSHALL"]);
    // With the one that was deleted.
    until("they are back", async || redis.run::<usize>(&["ZCARD", CHANGES]) == 3).await;
    let fourth = start(&url, "four").await;
    until("it adopts them", async || {
        ask(&fourth, "GET", "/admin/overrides").await.1["total"] == 2 && status(&fourth, "mine").await == 403
    })
    .await;

    // Redis is gone for good: what was answered is on the disk, whatever happens to the process.
    redis.kill();
    let first = fleet.remove(0);
    until("Redis is away", async || first.status().await["redis"]["state"] == "open").await;
    let (_, _, made) = put(&first, "late", of("late", json!("block")), None).await;
    assert_eq!(made["durable"], true, "{made}");
    drop(fleet);
    let again = restarted(first, &variables(&url, "one")).await;
    for key in ["late", "other", "mine"] {
        assert_eq!(status(&again, key).await, 403, "{key}: in force from the first request");
    }
    assert_eq!(ask(&again, "GET", "/admin/overrides").await.1["total"], 3);
}

/// The same once more, on its own disk, after kill -9.
async fn restarted(mut tidegate: Tidegate, variables: &[(&str, &str)]) -> Tidegate {
    crate::support::redis_server::signal(tidegate.pid(), "KILL");
    tidegate.wait(Duration::from_secs(10));
    let directory = std::mem::replace(&mut tidegate.directory, tempfile::tempdir().unwrap());
    drop(tidegate);
    Tidegate::start_by(|place: &Path| command(place), directory, variables).await
}

#[tokio::test]
async fn peers_hear_of_a_change_without_redis_and_one_that_was_away_is_told_all() {
    let ports = [free_port(), free_port(), free_port()];
    let peers: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let peers = peers.join(",");
    let start = async |port: u16| {
        let admin = format!("127.0.0.1:{port}");
        let variables =
            [("ADMIN_ADDR", admin.as_str()), ("TIDEGATE_PEERS", &peers), ("TIDEGATE_SECRET", SECRET)];
        Tidegate::start(Some(TWO_A_DAY), &variables).await
    };
    let fleet = [start(ports[0]).await, start(ports[1]).await];
    for tidegate in &fleet {
        until("they know each other", async || tidegate.status().await["fleet"]["instances"] == 2).await;
    }
    let mut bodies: Vec<(String, Value)> = (0..150)
        .map(|number| (format!("k-{number}"), of(&format!("key-{number}"), json!("exempt"))))
        .collect();
    let (id, last) = bodies.pop().unwrap();
    let all = bodies
        .into_iter()
        .map(|(id, body)| fleet[0].admin("PUT", &format!("/admin/overrides/{id}")).json(&body).send());
    for answer in futures_util::future::join_all(all).await {
        assert_eq!(answer.unwrap().status(), 201);
    }
    let (_, _, made) = put(&fleet[0], &id, last, None).await;
    assert_eq!(made["applied"], "2/3", "{made}");
    for _ in 0..3 {
        assert_eq!(status(&fleet[1], "key-149").await, 404, "in force there");
    }
    let third = start(ports[2]).await;
    until("it is told all", async || ask(&third, "GET", "/admin/overrides").await.1["total"] == 150).await;
    for _ in 0..3 {
        assert_eq!(status(&third, "key-0").await, 404);
    }
}
