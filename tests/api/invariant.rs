//! The invariant of one process: whatever becomes of Redis and of the percentage, no key is admitted more than its burst
//! and what the time refilled, over any interval. Real processes, random schedules.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;

use crate::support::process::Tidegate;
use crate::support::redis_cluster::RedisCluster;
use crate::support::redis_server::RedisServer;

const RATE: f64 = 5.0;
const BURST: f64 = 10.0;
const POLICIES: &str = r#"
[[rule]]
name = "default"
  [[rule.policy]]
  name = "p"
  by = "header:x-api-key"
  limit = "5/second"
  burst = 10
"#;
const KEYS: usize = 6;
const CLIENTS_A_KEY: usize = 3;

/// What can happen.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// Another percentage.
    Percent(u8),
    /// Redis is killed, and started again after so many milliseconds.
    Kill(u64),
    /// Redis is frozen for so many milliseconds.
    Hang(u64),
    /// Redis loses everything.
    Flush,
    /// Redis forgets the script.
    Forget,
}

fn schedule(random: &mut StdRng, acts: usize) -> Vec<(u64, Act)> {
    let act = |random: &mut StdRng| match random.random_range(0..10) {
        0..=3 => Act::Percent([0, 10, 50, 90, 100][random.random_range(0..5)]),
        4 => Act::Kill(random.random_range(0..1_500)),
        5 | 6 => Act::Hang(random.random_range(20..1_500)),
        7 | 8 => Act::Flush,
        _ => Act::Forget,
    };
    (0..acts).map(|_| (random.random_range(0..1_800), act(random))).collect()
}

/// From when to when a request was under way that was admitted.
type Admitted = (Instant, Instant);

async fn holds(seed: u64, acts: usize) {
    holds_on(&mut [RedisServer::start()], seed, acts).await;
}

/// The same on the nodes of a cluster, one of which each act strikes.
async fn holds_on(servers: &mut [RedisServer], seed: u64, acts: usize) {
    let mut random = StdRng::seed_from_u64(seed);
    let schedule = schedule(&mut random, acts);
    let mut strikes = StdRng::seed_from_u64(!seed);
    let variables = [
        ("REDIS_URL", &*servers[0].url()),
        ("TIDEGATE_SECRET", "a seed makes the same canary each time"),
        ("RATE_LIMIT_CANARY_PERCENT", "50"),
        ("TIDEGATE__REDIS__RECONNECT_INTERVAL_S", "1"),
        ("TIDEGATE__REDIS__WARM_UP_S", "1"),
        ("TIDEGATE__LOGGING__REQUESTS", "false"),
    ];
    let tidegate = Arc::new(Tidegate::start(Some(POLICIES), &variables).await);
    tidegate.connected().await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..KEYS * CLIENTS_A_KEY)
        .map(|number| {
            let (tidegate, stop) = (Arc::clone(&tidegate), Arc::clone(&stop));
            let mut random = StdRng::seed_from_u64(seed ^ number as u64);
            tokio::spawn(async move {
                let mut admitted: Vec<Admitted> = Vec::new();
                let mut by_memory = 0;
                while !stop.load(Ordering::SeqCst) {
                    let sent = Instant::now();
                    let answer = tidegate.check(json!({"key": format!("key-{}", number % KEYS)})).await;
                    if answer["allowed"] == true {
                        admitted.push((sent, Instant::now()));
                        by_memory += usize::from(answer["backend"] == "memory");
                    }
                    tokio::time::sleep(Duration::from_millis(random.random_range(0..60))).await;
                }
                (number % KEYS, admitted, by_memory)
            })
        })
        .collect();
    for &(after, act) in &schedule {
        tokio::time::sleep(Duration::from_millis(after)).await;
        let redis = &mut servers[strikes.random_range(0..servers.len())];
        match act {
            Act::Percent(percent) => drop(tidegate.set_percent(f64::from(percent)).await),
            Act::Kill(away) => {
                redis.kill();
                tokio::time::sleep(Duration::from_millis(away)).await;
                redis.restart();
            }
            Act::Hang(hung) => {
                redis.freeze();
                tokio::time::sleep(Duration::from_millis(hung)).await;
                redis.thaw();
            }
            Act::Flush => redis.run(&["FLUSHALL"]),
            Act::Forget => redis.run(&["SCRIPT", "FLUSH"]),
        }
    }
    stop.store(true, Ordering::SeqCst);
    let (mut keys, mut total, mut memory) = (vec![Vec::new(); KEYS], 0, 0);
    for client in clients {
        let (key, admitted, by_memory) = client.await.unwrap();
        total += admitted.len();
        memory += by_memory;
        keys[key].extend(admitted);
    }
    for (key, admitted) in keys.iter_mut().enumerate() {
        admitted.sort();
        assert!(
            admitted.len() as f64 > BURST,
            "seed {seed}: key {key} hardly got anything: {}",
            admitted.len()
        );
        for first in 0..admitted.len() {
            // Whatever was sent after this one was sent was admitted between that moment and its own answer.
            let mut ended = admitted[first].1;
            for last in first..admitted.len() {
                ended = ended.max(admitted[last].1);
                let count = (last - first + 1) as f64;
                let most = BURST + RATE * ended.duration_since(admitted[first].0).as_secs_f64();
                assert!(
                    count <= most,
                    "seed {seed}, key {key}: {count} admitted in {:?}, at most {most:.2}; {schedule:?}",
                    ended.duration_since(admitted[first].0)
                );
            }
        }
    }
    eprintln!("seed {seed}: {total} admitted, {memory} of them by memory; {schedule:?}");
    assert!(memory > 0 && memory < total, "seed {seed}: {memory} of {total} decided by memory");
}

#[tokio::test]
async fn no_schedule_of_percentages_kills_hangs_and_flushes_admits_more_than_burst_and_rate_first() {
    holds(1, 10).await;
}

#[tokio::test]
async fn no_schedule_of_percentages_kills_hangs_and_flushes_admits_more_than_burst_and_rate_second() {
    holds(2, 10).await;
}

#[tokio::test]
async fn no_schedule_of_percentages_kills_hangs_and_flushes_admits_more_than_burst_and_rate_third() {
    holds(3, 10).await;
}

#[tokio::test]
async fn no_schedule_of_percentages_kills_hangs_and_flushes_of_nodes_of_a_cluster_admits_more_than_burst_and_rate()
 {
    holds_on(&mut RedisCluster::start(3, false).nodes, 4, 10).await;
}

mod soak {
    #[tokio::test]
    async fn nor_does_any_of_forty_random_schedules() {
        if std::env::var_os("TIDEGATE_SOAK").is_none() {
            return;
        }
        for _ in 0..5 {
            let mut cluster = crate::support::redis_cluster::RedisCluster::start(3, false);
            super::holds_on(&mut cluster.nodes, rand::random(), 30).await;
        }
        for _ in 0..10 {
            let four = std::array::from_fn::<_, 4, _>(|_| super::holds(rand::random(), 30));
            futures_util::future::join_all(four).await;
        }
    }
}
