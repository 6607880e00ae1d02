//! Several instances: with their Redis they admit what one would, to the unit, and learn which share of the traffic each of
//! them sees. When they lose it they keep about one limit together, and a client that keeps to half of it notices nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinHandle;

use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;
use crate::support::until;

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

[[rule]]
name = "teaching"
match = { path = "/teaching" }
  [[rule.policy]]
  name = "teaching"
  by = "header:x-api-key"
  limit = "10000000/day"
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
    fleet_of(INSTANCES, redis, policies, more).await
}

async fn fleet_of(
    instances: usize,
    redis: &RedisServer,
    policies: &str,
    more: &[(&str, &str)],
) -> Arc<Vec<Tidegate>> {
    let url = redis.url();
    let mut variables = vec![("REDIS_URL", url.as_str()), ("TIDEGATE__LOGGING__REQUESTS", "false")];
    variables.extend_from_slice(more);
    let mut fleet = Vec::new();
    for _ in 0..instances {
        fleet.push(Tidegate::start(Some(policies), &variables).await);
    }
    for tidegate in &fleet {
        tidegate.connected().await;
    }
    Arc::new(fleet)
}

/// Charges so many requests that Redis decides, sixteen at a time, until every instance has learned its share of the
/// traffic; returns the shares.
async fn learned_shares(fleet: &Arc<Vec<Tidegate>>, balancing: Balancing, requests: usize) -> Vec<f64> {
    const TASKS: usize = 16;
    let instances = fleet.len();
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let fleet = Arc::clone(fleet);
            tokio::spawn(async move {
                for _ in 0..requests / TASKS {
                    // One hot key for all; behind a sticky balancer each instance has its own.
                    let (instance, key) = match balancing {
                        Balancing::Random => (rand::random_range(0..instances), 0),
                        Balancing::Sticky => (task % instances, task % instances),
                    };
                    let answer =
                        fleet[instance].check(json!({"rule": "teaching", "key": format!("hot-{key}")}));
                    assert_eq!(answer.await["allowed"], true);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let mut shares = Vec::new();
    for tidegate in fleet.iter() {
        let share = tidegate.status().await["fallback_share"].clone();
        assert_eq!(share["source"], "learned", "{share}");
        shares.push(share["share"].as_f64().unwrap());
    }
    shares
}

/// Whether the instances have learned equal shares from one key. It has another tag once in 32 charges, so few requests
/// show little of each share and much of their sum: batches of calls of one instance, for which it takes its own charges
/// too often for the earlier ones, add to it. In a soak the standard error of each is a 35th: a tag stays for a number of
/// charges that is itself left to chance, so that 80 000 charges of an instance are worth 1 250 answers.
async fn equal_shares_are_learned(instances: usize) {
    let soak = std::env::var_os("TIDEGATE_SOAK").is_some();
    let redis = RedisServer::start();
    let fleet = fleet_of(instances, &redis, POLICIES, &[("REDIS_TIMEOUT_MS", "5000")]).await;
    let requests = if soak { 80_000 * (instances - 1) } else { 1_600 * (instances - 1) };
    let shares = learned_shares(&fleet, Balancing::Random, requests).await;
    eprintln!("{instances} instances learned {shares:.4?}");
    let of_truth: Vec<f64> = shares.iter().map(|share| share * instances as f64).collect();
    let most = if soak { 0.1 } else { 0.7 };
    assert!(of_truth.iter().all(|of_truth| (of_truth - 1.0).abs() <= most), "{shares:?}");
    let mean = of_truth.iter().sum::<f64>() / instances as f64;
    assert!((mean - 1.0).abs() <= 0.1, "{mean:.3} of the truth: {shares:?}");
}

#[tokio::test]
async fn two_instances_learn_their_share_from_one_hot_key() {
    equal_shares_are_learned(2).await;
}

#[tokio::test]
async fn four_instances_learn_their_share_from_one_hot_key() {
    equal_shares_are_learned(4).await;
}

mod soak {
    /// Within a tenth of the truth each.
    #[tokio::test]
    async fn share_is_learned_by_2_4_and_16_from_one_hot_key() {
        if std::env::var_os("TIDEGATE_SOAK").is_some() {
            for instances in [2, 4, 16] {
                super::equal_shares_are_learned(instances).await;
            }
        }
    }
}

/// Before anything is learned the members of the fleet count, as the heartbeats name them: also where the burst is smaller
/// than the fleet.
#[tokio::test]
async fn four_instances_without_redis_keep_the_rate_of_any_burst() {
    const BURSTS: [u32; 3] = [1, 2, 20];
    let lasts = Duration::from_secs(10);
    let rule = |burst: u32| {
        format!(
            "[[rule]]\nname = \"burst-{burst}\"\nmatch = {{ path = \"/{burst}\" }}\n[[rule.policy]]\nname = \"burst-{burst}\"\n\
             by = \"header:x-api-key\"\nlimit = \"10/second\"\nburst = {burst}\n"
        )
    };
    let mut redis = RedisServer::start();
    let variables = [("REDIS_TIMEOUT_MS", "1000"), ("TIDEGATE__REDIS__RECONNECT_INTERVAL_S", "60")];
    let fleet = fleet_on(&redis, &BURSTS.map(rule).concat(), &variables).await;
    for tidegate in fleet.iter() {
        until("the members are known", async || {
            tidegate.status().await["fallback_share"] == json!({"share": 0.25, "source": "members"})
        })
        .await;
    }
    redis.kill();
    for tidegate in fleet.iter() {
        until("Redis is lost", async || {
            tidegate.check(json!({"rule": "burst-1", "key": "another"})).await;
            tidegate.status().await["redis"]["state"] == "open"
        })
        .await;
    }
    // Each client asks one instance three times as often as its share is.
    let clients: Vec<_> = BURSTS
        .into_iter()
        .flat_map(|burst| (0..INSTANCES).map(move |instance| (burst, instance)))
        .map(|(burst, instance)| {
            let fleet = Arc::clone(&fleet);
            tokio::spawn(async move {
                let (started, mut admitted, mut last) = (Instant::now(), 0, Duration::ZERO);
                while last < lasts {
                    let question = json!({"rule": format!("burst-{burst}"), "key": "one"});
                    let answer = fleet[instance].check(question).await;
                    last = started.elapsed();
                    assert_eq!(answer["fallback"], true, "{answer}");
                    admitted += u32::from(answer["allowed"] == true);
                    tokio::time::sleep(Duration::from_millis(130)).await;
                }
                (burst, admitted, last.as_secs_f64())
            })
        })
        .collect();
    let mut totals = [(0, 0.0_f64); BURSTS.len()];
    for client in clients {
        let (burst, admitted, lasted) = client.await.unwrap();
        let total = &mut totals[BURSTS.iter().position(|one| *one == burst).unwrap()];
        *total = (total.0 + admitted, total.1.max(lasted));
    }
    for (burst, (admitted, lasted)) in BURSTS.into_iter().zip(totals) {
        let limit = f64::from(burst) + RATE * lasted;
        eprintln!("burst {burst}: {admitted} of {limit:.0} in {lasted:.1} s");
        assert!(f64::from(admitted) <= 1.1 * limit, "burst {burst}: {admitted} of {limit:.0}");
        assert!(f64::from(admitted) >= 0.5 * limit, "burst {burst}: {admitted} of {limit:.0}");
    }
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
    let learned = learned_shares(&fleet, balancing, 3_200).await;
    let (least, most) = match balancing {
        Balancing::Random => (0.08, 0.42),
        // All of the traffic of its keys.
        Balancing::Sticky => (1.0, 1.0),
    };
    assert!(learned.iter().all(|share| (least..=most).contains(share)), "{balancing:?}: {learned:?}");
    let sum: f64 = learned.iter().sum();
    let truth = if matches!(balancing, Balancing::Random) { 1.0 } else { INSTANCES as f64 };
    assert!((sum / truth - 1.0).abs() <= 0.1, "{balancing:?}: {sum} of {truth}: {learned:?}");
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
