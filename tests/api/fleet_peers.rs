//! The instances by their addresses: a rollback that needs no Redis, and nobody else who is listened to.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ring::hmac;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::process::Tidegate;
use crate::support::redis_server::{RedisServer, free_port};
use crate::support::until;

const SECRET: &str = "the fleet's secret, for tests";

pub(super) async fn start(port: u16, peers: &str, more: &[(&str, &str)]) -> Tidegate {
    let admin = format!("127.0.0.1:{port}");
    let name = format!("at-{port}");
    let mut variables = vec![
        ("ADMIN_ADDR", admin.as_str()),
        ("TIDEGATE__FLEET__NAME", &name),
        ("TIDEGATE_PEERS", peers),
        ("TIDEGATE_SECRET", SECRET),
        ("TIDEGATE__FLEET__HEARTBEAT_S", "1"),
        ("REDIS_TIMEOUT_MS", "5000"),
        ("TIDEGATE__LOGGING__REQUESTS", "false"),
    ];
    variables.extend(more);
    Tidegate::start(None, &variables).await
}

fn peers_of(ports: &[u16]) -> String {
    ports.iter().map(|port| format!("127.0.0.1:{port}")).collect::<Vec<_>>().join(",")
}

pub(super) async fn members(tidegate: &Tidegate) -> Vec<Value> {
    tidegate.status().await["fleet"]["members"].as_array().unwrap().clone()
}

#[tokio::test]
async fn with_redis_dead_a_rollback_reaches_the_peers_over_http_and_one_that_is_away_costs_nothing() {
    let mut redis = RedisServer::start();
    let url = redis.url();
    let ports = [free_port(), free_port(), free_port(), free_port()];
    // Nobody is at the last.
    let peers = peers_of(&ports);
    let redis_url = [("REDIS_URL", url.as_str()), ("RATE_LIMIT_CANARY_PERCENT", "25")];
    let mut fleet = Vec::new();
    for port in &ports[..3] {
        fleet.push(start(*port, &peers, &redis_url).await);
    }
    for tidegate in &fleet {
        tidegate.connected().await;
        until("it knows the others, itself, and who is away", async || {
            let status = tidegate.status().await;
            let all = status["fleet"]["members"].as_array().unwrap();
            status["fleet"]["instances"] == 3 && all.len() == 4 && all[3]["trouble"].is_string()
        })
        .await;
    }
    redis.kill();
    for tidegate in &fleet {
        until("Redis is away", async || tidegate.status().await["redis"]["state"] == "open").await;
    }
    let asked = Instant::now();
    let back = fleet[0].admin("POST", "/admin/rollout/rollback").send().await.unwrap();
    let back: Value = back.json().await.unwrap();
    eprintln!("rolled back within {:?}: {back}", asked.elapsed());
    assert_eq!(back["applied"], "3/4", "{back}");
    assert_eq!(back["pending"], json!([format!("http://127.0.0.1:{}", ports[3])]));
    for tidegate in &fleet {
        let status = tidegate.status().await;
        assert_eq!(status["percent_in_force"], 0.0, "before it was answered: {status}");
    }
    // The fourth starts at last, with nothing on its disk and no Redis to ask.
    let fourth = start(ports[3], &peers, &redis_url).await;
    until("it hears of the rollback from its peers", async || fourth.status().await["rollout"]["epoch"] == 1)
        .await;
    assert_eq!(fourth.status().await["percent_in_force"], 0.0);
    until("everybody sees it", async || {
        let others = members(&fleet[1]).await;
        others.len() == 4 && others.iter().all(|member| member["differs"] == false && member["epoch"] == 1)
    })
    .await;
    let sources: Vec<Value> = members(&fourth).await.iter().map(|member| member["source"].clone()).collect();
    assert_eq!(sources, ["self", "peer", "peer", "peer"]);
    // One dies this very moment: whoever asks does not wait for it either.
    drop(fleet.remove(1));
    let asked = Instant::now();
    let back = fleet[0].admin("POST", "/admin/rollout/rollback").send().await.unwrap();
    let back: Value = back.json().await.unwrap();
    assert_eq!(back["applied"], "3/4", "{back}");
    // Less than the 800 ms that it waits for those who may still answer.
    assert!(asked.elapsed() < Duration::from_millis(600), "{:?}: {back}", asked.elapsed());
}

/// A request as an instance signs it.
fn signed(method: &str, secret: &str, to: &str, body: &str, at: u64, nonce: u128) -> String {
    let digest: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
    let (from, nonce) = ("00000000000000aa", format!("{nonce:032x}"));
    let text = format!("tidegate peer v1\n{method}\n{at}\n{nonce}\n{from}\n{to}\n{digest}");
    let key = hmac::Key::new(hmac::HMAC_SHA256, &tidegate::redis::peer_key(secret.as_bytes()));
    let mac: String =
        hmac::sign(&key, text.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("Tidegate-HMAC-SHA256 at={at}, nonce={nonce}, from={from}, to={to}, mac={mac}")
}

#[tokio::test]
async fn who_has_no_signature_of_the_fleet_or_an_old_one_is_refused() {
    let tidegate = start(free_port(), "127.0.0.1:1", &[]).await;
    let id = tidegate.status().await["fleet"]["id"].as_str().unwrap().to_owned();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let page = format!("http://{}/admin/fleet", tidegate.admin);
    let ask = async |method: &str, authorization: Option<String>, body: &str| {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = tidegate.http.request(method, &page).body(body.to_owned());
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let problem: Value = answer.json().await.unwrap_or_default();
        (status, problem["code"].as_str().unwrap_or_default().to_owned())
    };
    let refused = |code: &str| (401, code.to_owned());
    let token = format!("Bearer {}", crate::support::process::ADMIN_TOKEN);
    assert_eq!(ask("GET", None, "").await, refused("unsigned"));
    assert_eq!(ask("GET", Some(token), "").await, refused("unsigned"), "an operator is no instance");
    let other = signed("GET", "another secret of 16 bytes", "", "", now, 1);
    assert_eq!(ask("GET", Some(other), "").await, refused("wrong_signature"));
    let body = signed("POST", SECRET, &id, "{}", now, 2);
    assert_eq!(ask("POST", Some(body), "{ }").await, refused("wrong_signature"), "another body");
    let good = signed("GET", SECRET, &id, "", now, 3);
    assert_eq!(ask("POST", Some(good.clone()), "").await, refused("wrong_signature"), "another method");
    assert_eq!(ask("GET", Some(good.clone()), "").await, (200, String::new()));
    assert_eq!(ask("GET", Some(good), "").await, refused("replayed"));
    let for_none = signed("GET", SECRET, "", "", now, 9);
    assert_eq!(ask("GET", Some(for_none), "").await, (409, String::new()), "it may come to any instance");
    let old = signed("GET", SECRET, &id, "", now - 120_000, 4);
    assert_eq!(ask("GET", Some(old), "").await, refused("clock_skew"));
    let for_another = signed("POST", SECRET, "00000000000000bb", "", now, 5);
    assert_eq!(ask("POST", Some(for_another), "").await, (409, String::new()));
    let nobodys = signed("POST", SECRET, &id, "sealed by nobody", now, 6);
    assert_eq!(ask("POST", Some(nobodys), "sealed by nobody").await.0, 200, "heard, and not done");
    let long = "x".repeat(100_000);
    assert_eq!(ask("POST", None, &long).await, refused("unsigned"), "before its body is read");
    let signed_long = signed("POST", SECRET, &id, &long, now, 8);
    assert_eq!(ask("POST", Some(signed_long), &long).await.0, 413);
    // An instance's signature opens nothing else.
    let elsewhere = format!("http://{}/admin/status", tidegate.admin);
    let as_instance = signed("GET", SECRET, &id, "", now, 7);
    let answer = tidegate.http.get(elsewhere).header("authorization", as_instance).send().await.unwrap();
    assert_eq!(answer.status(), 401);
    tidegate.says("wrong or missing token at the admin listener", 1).await;
}

#[tokio::test]
async fn without_any_redis_peers_hear_of_each_other_and_a_redirect_is_not_followed() {
    let ports = [free_port(), free_port()];
    // Somebody else is at the third address, who sends whoever asks to the first.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let elsewhere = listener.local_addr().unwrap().port();
    let target = format!("http://127.0.0.1:{}/admin/fleet", ports[0]);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer =
                format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: {target}\r\ncontent-length: 0\r\n\r\n");
            tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let peers = peers_of(&[ports[0], ports[1], elsewhere]);
    let fleet = [start(ports[0], &peers, &[]).await, start(ports[1], &peers, &[]).await];
    until("they know each other", async || {
        let all = members(&fleet[1]).await;
        let trouble = |at: usize| all.get(at).and_then(|one| one["trouble"].as_str()).unwrap_or_default();
        all.len() == 3 && all[1]["source"] == "peer" && trouble(2).contains("307")
    })
    .await;
    let all = members(&fleet[1]).await;
    assert_eq!(all[1]["name"], format!("at-{}", ports[0]));
    assert_eq!(all[0]["address"], format!("http://127.0.0.1:{}", ports[1]), "it knows itself in the list");
}
