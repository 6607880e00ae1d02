//! The doctor on a cluster.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::run::{Ran, doctor};
use crate::support::redis_cluster::RedisCluster;
use crate::support::redis_server::{FLEET_PERMISSIONS, RedisServer, free_port};
use crate::support::slot_endpoint::{Answers, SlotEndpoint};

/// Some masters, each with a replica if wanted.
struct Cluster {
    nodes: Vec<RedisServer>,
}

impl Cluster {
    fn start(masters: usize, replicas: bool, slots: &[(u16, u16)]) -> Self {
        let count = if replicas { 2 * masters } else { masters };
        let buses: Vec<String> = (0..count).map(|_| free_port().to_string()).collect();
        let node = |bus: &String| {
            RedisServer::start_with(&[
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                bus,
                "--cluster-node-timeout",
                "2000",
                "--repl-diskless-sync-delay",
                "0",
                // A replica that has read nothing yet is not shown.
                "--repl-ping-replica-period",
                "1",
                "--cluster-require-full-coverage",
                "no",
            ])
        };
        let nodes: Vec<RedisServer> = buses.iter().map(node).collect();
        for (node, (first, last)) in nodes.iter().zip(slots) {
            let _: () = node.run(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]);
            let _: () = node.run(&["CLUSTER", "SET-CONFIG-EPOCH", &(node.port % 1_000 + 1).to_string()]);
        }
        // Each pair from one side: two handshakes of the same pair take long to sort out.
        for (at, (node, bus)) in nodes.iter().zip(&buses).enumerate() {
            for other in &nodes[..at] {
                let _: () = other.run(&["CLUSTER", "MEET", "127.0.0.1", &node.port.to_string(), bus]);
            }
        }
        let cluster = Self { nodes };
        cluster.all("they know each other", |node| {
            let told: String = node.run(&["CLUSTER", "NODES"]);
            told.lines().count() == count && !told.contains("handshake")
        });
        for (at, replica) in cluster.nodes.iter().enumerate().skip(masters) {
            let id: String = cluster.nodes[at - masters].run(&["CLUSTER", "MYID"]);
            let _: () = replica.run(&["CLUSTER", "REPLICATE", &id]);
        }
        let shown = if replicas { 4 } else { 3 };
        cluster.all("they agree on the slots and the replicas are in step", |node| {
            let nodes: String = node.run(&["CLUSTER", "NODES"]);
            let (info, link): (String, String) =
                (node.run(&["CLUSTER", "INFO"]), node.run(&["INFO", "replication"]));
            let ranges: redis::Value = node.run(&["CLUSTER", "SLOTS"]);
            let ranges = ranges.as_sequence().unwrap();
            ranges.len() == slots.len()
                && ranges.iter().all(|range| range.as_sequence().unwrap().len() == shown)
                && nodes.matches("slave").count() == count - masters
                && info.contains("cluster_state:ok")
                && !link.contains("master_link_status:down")
        });
        cluster
    }

    fn all(&self, what: &str, done: impl Fn(&RedisServer) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.nodes.iter().all(&done) {
            assert!(Instant::now() < deadline, "waited twenty seconds in vain: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

const THIRDS: [(u16, u16); 3] = [(0, 5_460), (5_461, 10_922), (10_923, 16_383)];

async fn on(server: &RedisServer, user: &str) -> Ran {
    let url = format!("redis://{user}127.0.0.1:{}", server.port);
    doctor(&url, &[("REDIS_TIMEOUT_MS", "5000")]).await
}

#[track_caller]
fn is(ran: &Ran, step: &str, outcome: &str, found: &str, cure: &str) -> Value {
    let seen = ran.step(step);
    assert_eq!(seen["outcome"], outcome, "{seen:#}");
    assert!(seen["found"].as_str().unwrap().contains(found), "{seen:#}");
    assert!(seen["cure"].as_str().unwrap_or_default().contains(cure), "{seen:#}");
    seen
}

#[tokio::test]
async fn a_sound_cluster_is_healthy_node_by_node_for_a_user_with_the_least_permissions_as_well() {
    let cluster = Cluster::start(3, true, &THIRDS);
    let ran = on(&cluster.nodes[0], "").await;
    assert_eq!((ran.code, &ran.json()["verdict"]), (0, &json!("healthy")), "{}", ran.stdout);
    is(&ran, "cluster", "ok", "cluster_state ok, 16384 of 16384 slots on 3 masters", "");
    let seen = is(&ran, "nodes", "ok", "3 of 3 masters decide, 3 replicas", "");
    let details = seen["details"].as_array().unwrap();
    assert_eq!(details.len(), 6);
    for (node, (first, last)) in cluster.nodes.iter().zip(THIRDS) {
        let wanted = format!("127.0.0.1:{}, master of {first}-{last}: ", node.port);
        assert!(
            details.iter().any(|line| line.as_str().unwrap().starts_with(&wanted)
                && line.as_str().unwrap().contains(" ms, Redis ")),
            "{wanted}: {seen:#}"
        );
    }
    is(&ran, "role", "ok", "a primary of a cluster", "");
    let least = ["+evalsha", "+eval", "+get", "+set", "+mget", "+time", "+cluster|slots"];
    for node in &cluster.nodes {
        let mut words = vec!["ACL", "SETUSER", "tide", "on", ">s3cret-word", "~tidegate:*", "+del"];
        words.extend(least.iter().copied().chain(FLEET_PERMISSIONS.split(' ')));
        let _: () = node.run(&words);
    }
    let ran = on(&cluster.nodes[1], "tide:s3cret-word@").await;
    assert_eq!(ran.code, 0, "{}", ran.stdout);
    is(&ran, "cluster", "ok", "cluster_state not told, 16384 of 16384 slots", "");

    // A node that does not know the user, and a replica that is gone.
    let _: () = cluster.nodes[2].run(&["ACL", "DELUSER", "tide"]);
    let ran = on(&cluster.nodes[1], "tide:s3cret-word@").await;
    assert_eq!(ran.code, 1, "{}", ran.stdout);
    let wanted = format!(
        "127.0.0.1:{} (master of 10923-16383): auth (its keys are decided in memory)",
        cluster.nodes[2].port
    );
    is(&ran, "nodes", "warning", &wanted, "ACL are not replicated");
    for node in &cluster.nodes {
        let _: () = node.run(&[
            "ACL",
            "SETUSER",
            "tide",
            "on",
            ">s3cret-word",
            "~tidegate:*",
            "-@all",
            "+cluster|info",
            "+ping",
        ]);
    }
    let ran = on(&cluster.nodes[0], "tide:s3cret-word@").await;
    let failed = ran.failed();
    assert_eq!((&failed["step"], &failed["kind"]), (&json!("cluster"), &json!("permission")), "{failed:#}");
    assert!(failed["cure"].as_str().unwrap().contains("+cluster|slots"));
}

#[tokio::test]
async fn address_that_hides_a_cluster_is_healthy() {
    let cluster = RedisCluster::start(3, false);
    for answers in [Answers::Unknown, Answers::Disabled] {
        let endpoint = SlotEndpoint::to(&cluster, answers).await;
        let ran = doctor(&endpoint.url(), &[("REDIS_TIMEOUT_MS", "5000")]).await;
        is(&ran, "script", "ok", "one address hides a cluster (CROSSSLOT)", "");
        assert_eq!(ran.code, 0, "{}", ran.stdout);
        assert_eq!(endpoint.crossings(), 1, "{answers:?}");
    }
}

#[tokio::test]
async fn slots_that_nobody_serves_and_masters_without_replicas_are_named() {
    let cluster = Cluster::start(2, false, &THIRDS[..2]);
    let ran = on(&cluster.nodes[0], "").await;
    assert_eq!(ran.code, 1, "{}", ran.stdout);
    is(
        &ran,
        "cluster",
        "warning",
        "10923 of 16384 slots on 2 masters; nobody serves 10923-16383",
        "--cluster fix",
    );
    is(&ran, "nodes", "warning", &format!("127.0.0.1:{} has no replica", cluster.nodes[0].port), "add one");
}

#[tokio::test]
async fn a_cluster_that_refuses_every_call_is_unusable() {
    let node =
        RedisServer::start_with(&["--cluster-enabled", "yes", "--cluster-port", &free_port().to_string()]);
    let ran = on(&node, "").await;
    let failed = ran.failed();
    assert_eq!((&failed["step"], &failed["kind"]), (&json!("cluster"), &json!("cluster")), "{failed:#}");
    assert!(failed["found"].as_str().unwrap().contains("nobody serves 0-16383"), "{failed:#}");
    assert_eq!(ran.code, 2);
}

#[tokio::test]
async fn nodes_that_announce_what_this_machine_cannot_reach_are_told_as_such() {
    let (bus, nowhere) = (free_port().to_string(), free_port().to_string());
    let node = RedisServer::start_with(&[
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        &bus,
        "--cluster-announce-ip",
        "127.0.0.1",
        "--cluster-announce-port",
        &nowhere,
    ]);
    let _: () = node.run(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !node.run::<String>(&["CLUSTER", "INFO"]).contains("cluster_state:ok") {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
    let ran = on(&node, "").await;
    let failed = ran.failed();
    assert_eq!((&failed["step"], &failed["kind"]), (&json!("nodes"), &json!("refused")), "{failed:#}");
    assert!(
        failed["found"]
            .as_str()
            .unwrap()
            .contains("none of 1 masters works at the address that it announces"),
        "{failed:#}"
    );
    assert!(failed["cure"].as_str().unwrap().contains("cluster-announce-ip"), "{failed:#}");
    assert!(failed["details"][0].as_str().unwrap().contains(&format!("127.0.0.1:{nowhere}")), "{failed:#}");
    assert_eq!(ran.code, 2);
}
