//! What a quiet cluster costs, counted on real masters against what `tidegate cost` says.

use std::time::{Duration, Instant};

use super::cluster::known;
use super::*;
use tidegate::redis::needs::{Habits, Load, needs};

/// Calls of CLUSTER SLOTS and CLUSTER INFO so far, and all bytes, on all nodes.
fn spent(cluster: &RedisCluster) -> ([u64; 2], f64) {
    let calls = |name: &str| cluster.nodes.iter().map(|node| node.calls(name)).sum();
    let bytes = cluster.nodes.iter().map(|node| {
        let stats: String = node.run(&["INFO", "stats"]);
        let net = |way: &str| -> f64 {
            let line = stats.lines().find_map(|line| line.strip_prefix(&format!("total_net_{way}_bytes:")));
            line.unwrap().trim().parse().unwrap()
        };
        net("input") + net("output")
    });
    (["cluster|slots", "cluster|info"].map(calls), bytes.sum())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn map_of_a_cluster_costs_what_the_cost_command_says() {
    const EVERY: Duration = Duration::from_millis(100);
    let cluster = RedisCluster::start(3, true);
    let rules = || one_policy(quota(100, 3600, 100));
    let limiter = known(&cluster, rules(), |options| options.map_interval = Some(EVERY)).await;
    let store = limiter.store().unwrap();
    support::until("the links are up", async || {
        store.nodes().is_some_and(|nodes| nodes.len() == 3) && store.is_in_use()
    })
    .await;
    // What asking costs here: the second of two looks in a row shows what the first one took.
    let (_, first) = spent(&cluster);
    let ([slots, info], second) = spent(&cluster);
    let (before, asking, began) = (store.spending().today, second - first, Instant::now());
    tokio::time::sleep(Duration::from_secs(4)).await;
    let ([slots_after, info_after], bytes) = spent(&cluster);
    let (lasted, reads) = (began.elapsed().as_secs_f64(), slots_after - slots);
    assert!(reads >= 10, "{reads} readings");
    assert!((info_after - info).abs_diff(reads) <= 1, "each by two commands");
    let today = store.spending().today - before;
    assert!(today.abs_diff(2 * reads) <= 4, "the instance itself counted {today} for {reads} readings");

    let said = |map_interval| {
        let habits = Habits { namespace: 8, secret_in_redis: false, heartbeat: None, map_interval };
        needs(&rules(), habits, Load { rpm: 1.0, percent: 100.0, instances: 1, clients: None }).unwrap()
    };
    let every = Duration::from_secs_f64(lasted / reads as f64);
    let (with, without) = (said(Some(every)), said(None));
    let a_day = 86_400.0 / lasted * (reads + info_after - info) as f64;
    let more = with.commands_a_day - without.commands_a_day;
    assert!((more / a_day - 1.0).abs() < 0.1, "{more} said, {a_day} counted");
    assert_eq!(with.calls_a_day - without.calls_a_day, more);
    let said = (with.bandwidth_bytes_a_month - without.bandwidth_bytes_a_month) / 31.0 / 86_400.0 * lasted;
    let (said, measured) = (said / reads as f64, (bytes - second - asking) / reads as f64);
    eprintln!("bytes a reading: said {said:.0}, measured {measured:.0}");
    assert!((said / 3.0..=said).contains(&measured), "{measured} of {said}");
}
