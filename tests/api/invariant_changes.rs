//! The invariant of one process under several attackers at once and with changing limits: clients that wait, that send the
//! next request at once and that hang up; a second subject beside the key; overrides and reloads while they attack.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::overrides::{ask, put};
use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;
use crate::support::relay::Relay;

/// Units a second, and at once.
type Limit = (f64, f64);

const KEY: Limit = (5.0, 10.0);
const TENANT: Limit = (8.0, 30.0);
/// Clients of one key: one that waits, one that does not, one that hangs up.
const STYLES: usize = 3;
/// Keys of one tenant.
const KEYS: usize = 3;

fn policies((rate, burst): Limit) -> String {
    format!(
        "[[rule]]\nname = \"default\"\n[[rule.policy]]\nname = \"key\"\nby = \"header:x-api-key\"\n\
         limit = \"{rate}/second\"\nburst = {burst}\n[[rule.policy]]\nname = \"tenant\"\n\
         by = \"header:x-tenant\"\nlimit = \"{}/second\"\nburst = {}\n",
        TENANT.0, TENANT.1
    )
}

/// The server, its attackers, and what they were admitted: the key, from when to when.
struct Attack {
    _redis: RedisServer,
    relay: Relay,
    tidegate: Arc<Tidegate>,
    stop: Arc<AtomicBool>,
    attackers: Vec<JoinHandle<Vec<(usize, Instant, Instant)>>>,
}

impl Attack {
    async fn start() -> Self {
        let redis = RedisServer::start();
        let relay = Relay::to(redis.port).await;
        relay.delay(Duration::from_millis(5));
        let url = format!("redis://{}", relay.address);
        let variables = [
            ("REDIS_URL", url.as_str()),
            ("TIDEGATE_SECRET", "a seed makes the same canary each time"),
            ("REDIS_TIMEOUT_MS", "2000"),
            ("TIDEGATE__REDIS__RECONNECT_INTERVAL_S", "1"),
            ("TIDEGATE__LOGGING__REQUESTS", "false"),
        ];
        let tidegate = Arc::new(Tidegate::start(Some(&policies(KEY)), &variables).await);
        tidegate.connected().await;
        let stop = Arc::<AtomicBool>::default();
        let attackers = (0..KEYS * STYLES).map(|number| {
            tokio::spawn(attack(Arc::clone(&tidegate), Arc::clone(&stop), number % KEYS, number / KEYS))
        });
        let attackers = attackers.collect();
        Self { _redis: redis, relay, tidegate, stop, attackers }
    }

    async fn stop(self) -> Vec<(usize, Instant, Instant)> {
        self.stop.store(true, Ordering::SeqCst);
        let mut admitted = Vec::new();
        for attacker in self.attackers {
            admitted.extend(attacker.await.unwrap());
        }
        admitted.sort_by_key(|(_, sent, _)| *sent);
        admitted
    }
}

async fn attack(
    tidegate: Arc<Tidegate>,
    stop: Arc<AtomicBool>,
    key: usize,
    style: usize,
) -> Vec<(usize, Instant, Instant)> {
    let mut admitted = Vec::new();
    let attributes = json!({"header:x-api-key": format!("key-{key}"), "header:x-tenant": "tenant"});
    let question = json!({"attributes": attributes});
    while !stop.load(Ordering::SeqCst) {
        if style == 2 {
            hang_up(&tidegate, &question.to_string()).await;
            continue;
        }
        let sent = Instant::now();
        let answer = tidegate.check(question.clone()).await;
        if answer["allowed"] == true {
            admitted.push((key, sent, Instant::now()));
        }
        tokio::time::sleep(Duration::from_millis([30, 1][style])).await;
    }
    admitted
}

/// Sends a question and resets the connection while Redis is asked.
async fn hang_up(tidegate: &Tidegate, question: &str) {
    let mut stream = TcpStream::connect(tidegate.main).await.unwrap();
    let head = "POST /v1/check HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: ";
    let request = format!("{head}{}\r\n\r\n{question}", question.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2)).await;
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Over no interval more was admitted than the bursts of all limits that were in force and the greatest rate.
fn bounded(what: &str, admitted: &[(Instant, Instant)], limits: &[(Instant, Instant, Limit)]) {
    assert!(admitted.len() > 3, "{what}: only {} were admitted", admitted.len());
    for first in 0..admitted.len() {
        let (from, mut to) = (admitted[first].0, admitted[first].1);
        for (count, (_, ended)) in admitted[first..].iter().enumerate() {
            to = to.max(*ended);
            let in_force = limits.iter().filter(|(began, ends, _)| *began <= to && *ends >= from);
            let (rate, burst) = in_force
                .fold((0.0_f64, 0.0), |(rate, burst), (_, _, limit)| (rate.max(limit.0), burst + limit.1));
            let most = burst + rate * to.duration_since(from).as_secs_f64();
            let count = count + 1;
            assert!(count as f64 <= most, "{what}: {count} in {:?}, at most {most:.2}", to - from);
        }
    }
}

/// Attacks while `change` changes the limit of a key, and returns all moments at which a limit began to be in force.
async fn holds(change: impl AsyncFn(&Tidegate, usize) -> Limit, of_all_keys: bool) {
    let attack = Attack::start().await;
    let far = Instant::now() + Duration::from_secs(3_600);
    let began = Instant::now() - Duration::from_secs(1);
    let mut limits = vec![(began, far, KEY)];
    for round in 0..6 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        attack.tidegate.set_percent([100.0, 0.0, 50.0][round % 3]).await;
        if round == 3 {
            attack.relay.cut();
        }
        let begins = Instant::now();
        let limit = change(&attack.tidegate, round).await;
        // Each limit ends when the next one has been confirmed.
        limits.last_mut().unwrap().1 = Instant::now();
        limits.push((begins, far, limit));
    }
    tokio::time::sleep(Duration::from_millis(400)).await;
    let admitted = attack.stop().await;
    let times = |wanted: Option<usize>| -> Vec<(Instant, Instant)> {
        let of_key = admitted.iter().filter(|(key, ..)| wanted.is_none_or(|wanted| *key == wanted));
        of_key.map(|(_, sent, ended)| (*sent, *ended)).collect()
    };
    for key in 0..KEYS {
        let constant = [(began, far, KEY)];
        let limits = if of_all_keys || key == 0 { &limits[..] } else { &constant[..] };
        bounded(&format!("key {key}"), &times(Some(key)), limits);
    }
    // The tenant's limit never changed. What its clients were admitted before the first of these counts as well.
    bounded("tenant", &times(None), &[(began, far, TENANT)]);
}

#[tokio::test]
async fn overrides_under_attack_admit_one_burst_each() {
    let limits = [(20.0, 15.0), (1.0, 2.0), (10.0, 30.0)];
    let change = async |tidegate: &Tidegate, round: usize| {
        if round % 2 == 1 {
            assert_eq!(ask(tidegate, "DELETE", "/admin/overrides/own").await.0, 200);
            return KEY;
        }
        let (rate, burst) = limits[round / 2];
        let effect = json!({"limit": format!("{rate}/second"), "burst": burst as u32});
        let body =
            json!({"rule": "default", "policy": "key", "key": "key-0", "effect": effect, "reason": "a test"});
        assert_eq!(put(tidegate, "own", body, None).await.0, 201);
        (rate, burst)
    };
    holds(change, false).await;
}

#[tokio::test]
async fn reloads_under_attack_admit_one_burst_each() {
    let change = async |tidegate: &Tidegate, round: usize| {
        let limit = [(20.0, 4.0), (1.0, 2.0), KEY][round % 3];
        tidegate.put_policies(&policies(limit));
        assert_eq!(tidegate.reload().await.0, 200);
        limit
    };
    holds(change, true).await;
}
