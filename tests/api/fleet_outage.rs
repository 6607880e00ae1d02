//! Four instances: with their Redis they admit what one would, to the unit. When they lose it they keep about one limit
//! together, and who keeps to half of it notices nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinHandle;

use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;

const INSTANCES: usize = 4;
/// Units a second of each key.
const RATE: f64 = 10.0;

const POLICIES: &str = r#"
[[rule]]
name = "default"
  [[rule.policy]]
  name = "per-key"
  by = "header:x-api-key"
  limit = "10/second"
  burst = 40
"#;

/// How requests find an instance.
#[derive(Clone, Copy, Debug)]
enum Balancing {
    /// Any, by chance.
    Random,
    /// Always the same one for a key.
    Sticky,
}

/// A client and what became of its requests.
struct Client {
    greedy: bool,
    answers: JoinHandle<Vec<(Instant, bool, bool)>>,
}

/// Sends `per_second` requests a second for `lasts`, at a constant pace whatever the answers, and notes when each was
/// answered, whether it was allowed, and whether memory stood in for Redis.
fn client(
    fleet: &Arc<Vec<Tidegate>>,
    number: usize,
    balancing: Balancing,
    per_second: f64,
    lasts: Duration,
) -> JoinHandle<Vec<(Instant, bool, bool)>> {
    let fleet = Arc::clone(fleet);
    tokio::spawn(async move {
        let started = Instant::now();
        let mut answers = Vec::new();
        let mut sent = 0_u32;
        while started.elapsed() < lasts {
            let instance = match balancing {
                Balancing::Sticky => number % INSTANCES,
                Balancing::Random => rand::random_range(0..INSTANCES),
            };
            let answer = fleet[instance].check(json!({"key": format!("client-{number}")})).await;
            answers.push((Instant::now(), answer["allowed"] == true, answer["fallback"] == true));
            sent += 1;
            let due = started + Duration::from_secs_f64(f64::from(sent) / per_second);
            tokio::time::sleep_until(due.into()).await;
        }
        answers
    })
}

/// The instances, all of them in touch with their Redis.
async fn fleet_on(redis: &RedisServer, policies: &str, more: &[(&str, &str)]) -> Arc<Vec<Tidegate>> {
    let url = redis.url();
    let mut variables = vec![("REDIS_URL", url.as_str()), ("TIDEGATE__LOGGING__REQUESTS", "false")];
    variables.extend_from_slice(more);
    let mut fleet = Vec::new();
    for _ in 0..INSTANCES {
        fleet.push(Tidegate::start(Some(policies), &variables).await);
    }
    for tidegate in &fleet {
        tidegate.connected().await;
    }
    Arc::new(fleet)
}

/// How many of a client's requests were admitted from one instant to another.
fn admitted(answers: &[(Instant, bool, bool)], from: Instant, to: Instant) -> f64 {
    answers.iter().filter(|(at, allowed, _)| *allowed && (from..to).contains(at)).count() as f64
}

async fn keeps_about_one_limit(balancing: Balancing) {
    let (teaching, away, back) = (5, 8, 8);
    let mut redis = RedisServer::start();
    let variables = [
        ("REDIS_TIMEOUT_MS", "1000"),
        ("TIDEGATE__REDIS__RECONNECT_INTERVAL_S", "1"),
        ("TIDEGATE__REDIS__WARM_UP_S", "1"),
    ];
    let fleet = fleet_on(&redis, POLICIES, &variables).await;
    let lasts = Duration::from_secs(teaching + away + back);
    // Four that want three times the limit, and eight that want half of it.
    let clients: Vec<Client> = (0..12)
        .map(|number| {
            let greedy = number < 4;
            let wants = if greedy { 3.0 * RATE } else { RATE / 2.0 };
            Client { greedy, answers: client(&fleet, number, balancing, wants, lasts) }
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(teaching)).await;
    let mut shares = Vec::new();
    for tidegate in fleet.iter() {
        shares.push(tidegate.status().await["fallback_share"].clone());
    }
    redis.kill();
    let lost = Instant::now();
    tokio::time::sleep(Duration::from_secs(away)).await;
    redis.restart();
    let returned = Instant::now();

    let (mut fallbacks, mut report) = (0, Vec::new());
    for Client { greedy, answers } in clients {
        let answers = answers.await.unwrap();
        let ended = answers.last().unwrap().0;
        fallbacks += answers.iter().filter(|(_, _, fallback)| *fallback).count();
        if !greedy {
            let denied = answers.iter().filter(|(_, allowed, _)| !allowed).count();
            assert_eq!(
                denied, 0,
                "a client that keeps to half of its limit was denied, {balancing:?} {shares:?}"
            );
            continue;
        }
        // Its bucket is empty by then: what it gets is the rate.
        let steady =
            admitted(&answers, lost + Duration::from_secs(2), returned) / (RATE * (away as f64 - 2.0));
        let after = ended.duration_since(returned).as_secs_f64();
        // The fleet's first time after the return: no more than what one bucket, empty or not, would give.
        let recovered = admitted(&answers, returned, ended) / (RATE * after);
        report.push((steady, recovered));
        assert!(steady <= 1.25, "{balancing:?}: {steady:.2} of the limit while Redis is away, {shares:?}");
        assert!(recovered <= 1.25, "{balancing:?}: {recovered:.2} of the limit after its return");
        assert!(
            steady >= 0.5,
            "{balancing:?}: {steady:.2} of the limit while Redis is away: too strict, {shares:?}"
        );
    }
    assert!(fallbacks > 100, "{fallbacks} requests were decided by memory in Redis' place");
    eprintln!(
        "{balancing:?}: shares {shares:?}; greedy clients got (while away, after): {report:.2?} of the limit"
    );
}

/// All at once, through all four, and what is asked of Redis is one call a decision.
#[tokio::test]
async fn four_instances_on_one_redis_admit_exactly_the_burst_by_one_call_a_decision() {
    const TASKS: usize = 64;
    const REQUESTS: usize = 40;
    const KEYS: usize = 3;
    // Nothing drains while the test lasts.
    let policies = POLICIES.replace("10/second", "40/day");
    let redis = RedisServer::start();
    // Whoever is late on a busy machine is waited for.
    let variables = [("REDIS_TIMEOUT_MS", "5000"), ("TIDEGATE_SECRET", "0123456789abcdef")];
    let fleet = fleet_on(&redis, &policies, &variables).await;
    let _: String = redis.run(&["CONFIG", "RESETSTAT"]);
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let fleet = Arc::clone(&fleet);
            tokio::spawn(async move {
                let mut answers = Vec::new();
                for request in 0..REQUESTS {
                    let key = (task + request) % KEYS;
                    let answer = fleet[task % INSTANCES].check(json!({"key": format!("key-{key}")})).await;
                    answers.push((key, answer));
                }
                answers
            })
        })
        .collect();
    let (mut admitted, mut asked) = ([0; KEYS], 0);
    for task in tasks {
        for (key, answer) in task.await.unwrap() {
            assert_eq!((&answer["backend"], &answer["fallback"]), (&json!("redis"), &json!(false)));
            admitted[key] += usize::from(answer["allowed"] == true);
            // What is known to be denied is not asked for.
            asked += u64::from(answer["cached"] != true);
        }
    }
    assert_eq!(admitted, [40; KEYS]);
    assert_eq!(redis.calls("evalsha"), asked);
}

#[tokio::test]
async fn four_instances_without_their_redis_keep_about_one_limit_under_random_balancing() {
    keeps_about_one_limit(Balancing::Random).await;
}

#[tokio::test]
async fn four_instances_without_their_redis_keep_about_one_limit_under_sticky_balancing() {
    keeps_about_one_limit(Balancing::Sticky).await;
}
