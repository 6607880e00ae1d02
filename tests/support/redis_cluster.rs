//! A real Redis Cluster: processes of redis-server on ports of their own, which end when it is dropped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate::redis::LoginFiles;
use tidegate::redis::cluster::slot;

use super::certificates::Certificates;
use super::redis_server::{RedisServer, free_port};

/// How long a node is silent before the others take it for dead.
pub const NODE_TIMEOUT: Duration = Duration::from_millis(2_000);

/// The masters come first, then a replica of each, in their order.
pub struct RedisCluster {
    pub nodes: Vec<RedisServer>,
    masters: usize,
}

impl RedisCluster {
    /// So many masters, each with a replica if wanted, which anybody may use.
    pub fn start(masters: usize, replicas: bool) -> Self {
        Self::start_with(masters, replicas, None)
    }

    /// The same with TLS between everybody and for the user of [`RedisServer::url`] only.
    pub fn secure(masters: usize, replicas: bool) -> Self {
        Self::start_with(masters, replicas, Some(Arc::new(Certificates::of(&["localhost", "127.0.0.1"]))))
    }

    /// Over TLS with certificates for one name, which all nodes announce, while they send each other's clients to addresses.
    pub fn announcing(masters: usize) -> Self {
        let certificates = Some(Arc::new(Certificates::new()));
        let cluster = Self::start_with(masters, false, certificates);
        for node in &cluster.nodes {
            let _: () = node.run(&["CONFIG", "SET", "cluster-announce-hostname", "localhost"]);
        }
        wait("they know each other's name", || {
            cluster.nodes.iter().all(|node| {
                let nodes: String = node.run(&["CLUSTER", "NODES"]);
                nodes.matches(",localhost").count() == masters
            })
        });
        cluster
    }

    fn start_with(masters: usize, replicas: bool, certificates: Option<Arc<Certificates>>) -> Self {
        let count = if replicas { 2 * masters } else { masters };
        let nodes = (0..count).map(|_| node(certificates.clone())).collect();
        let cluster = Self { nodes, masters };
        cluster.join();
        cluster
    }

    /// A node of which the others know nothing yet.
    pub fn newcomer(&mut self) -> usize {
        let certificates = self.nodes[0].certificates.clone();
        self.nodes.push(node(certificates));
        self.meet();
        wait("it knows the slots", || {
            let info: String = self.nodes[self.nodes.len() - 1].run(&["CLUSTER", "INFO"]);
            info.contains("cluster_state:ok") && info.contains("cluster_slots_assigned:16384")
        });
        self.nodes.len() - 1
    }

    fn join(&self) {
        let each = 16_384 / self.masters;
        for (at, master) in self.nodes[..self.masters].iter().enumerate() {
            let (first, mut last) = (at * each, (at + 1) * each - 1);
            if at + 1 == self.masters {
                last = 16_383;
            }
            let range = [first.to_string(), last.to_string()];
            let _: () = master.run(&["CLUSTER", "ADDSLOTSRANGE", &range[0], &range[1]]);
            let _: () = master.run(&["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()]);
        }
        self.meet();
        for (at, replica) in self.nodes[self.masters..].iter().enumerate() {
            let id: String = self.nodes[at].run(&["CLUSTER", "MYID"]);
            let _: () = replica.run(&["CLUSTER", "REPLICATE", &id]);
        }
        wait("the cluster is whole", || {
            let replicas = &self.nodes[self.masters..];
            self.nodes.iter().all(|node| {
                let info: String = node.run(&["CLUSTER", "INFO"]);
                info.contains("cluster_state:ok") && info.contains("cluster_slots_assigned:16384")
            }) && replicas.iter().all(|replica| {
                let info: String = replica.run(&["INFO", "replication"]);
                info.contains("master_link_status:up")
            }) && self.nodes.iter().all(|node| {
                let nodes: String = node.run(&["CLUSTER", "NODES"]);
                nodes.matches("slave").count() == replicas.len()
            })
        });
    }

    fn meet(&self) {
        let last = &self.nodes[self.nodes.len() - 1];
        for node in &self.nodes {
            for other in &self.nodes {
                if node.port == other.port || (node.port > other.port && other.port != last.port) {
                    continue;
                }
                let (port, bus) = (other.port.to_string(), other.bus_port.to_string());
                let _: () = node.run(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
            }
        }
        let known = format!("cluster_known_nodes:{}\r", self.nodes.len());
        wait("they know each other", || {
            self.nodes.iter().all(|node| {
                let info: String = node.run(&["CLUSTER", "INFO"]);
                let nodes: String = node.run(&["CLUSTER", "NODES"]);
                info.contains(&known) && !nodes.contains("handshake")
            })
        });
    }

    /// One of its nodes, which is enough to find the others.
    pub fn url(&self) -> String {
        self.nodes[0].url()
    }

    /// What a client needs to get in besides the URL.
    pub fn files(&self) -> LoginFiles {
        self.nodes[0].files()
    }

    /// The masters that it began with.
    pub fn masters(&self) -> &[RedisServer] {
        &self.nodes[..self.masters]
    }

    /// The place of the first master to serve this key.
    pub fn master_of(&self, key: &str) -> usize {
        let slot = usize::from(slot::of(key.as_bytes()));
        (slot / (16_384 / self.masters)).min(self.masters - 1)
    }

    /// The replica of a master.
    pub fn replica_of(&self, master: usize) -> usize {
        self.masters + master
    }

    /// Runs it on each of the first masters.
    pub fn run_on_all(&self, words: &[&str]) {
        for master in self.masters() {
            let _: redis::Value = master.run(words);
        }
    }

    /// The keys of buckets on all masters.
    pub fn buckets(&self) -> Vec<String> {
        self.masters().iter().flat_map(RedisServer::buckets).collect()
    }

    /// Calls of EVALSHA on all masters since the last `CONFIG RESETSTAT`, the probes' included.
    pub fn evalshas(&self) -> u64 {
        let calls = |master: &RedisServer| {
            let stats: String = master.run(&["INFO", "commandstats"]);
            let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
            calls.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
        };
        self.masters().iter().map(calls).sum()
    }

    /// Watches a replica, from a thread of its own, until it is a master; when that was.
    pub fn promotion_of(&self, node: usize) -> std::thread::JoinHandle<Instant> {
        let mut connection = self.nodes[node].connection();
        std::thread::spawn(move || {
            let deadline = Instant::now() + Duration::from_secs(30);
            loop {
                let role: Vec<redis::Value> = redis::cmd("ROLE").query(&mut connection).unwrap();
                if role[0] == redis::Value::BulkString(b"master".to_vec()) {
                    return Instant::now();
                }
                assert!(Instant::now() < deadline, "the replica was not promoted");
                std::thread::sleep(Duration::from_millis(5));
            }
        })
    }
}

fn node(certificates: Option<Arc<Certificates>>) -> RedisServer {
    let timeout = NODE_TIMEOUT.as_millis().to_string();
    // Where one node's slots are lost the others go on: without it all say that the cluster is down.
    let arguments = [
        "--cluster-enabled",
        "yes",
        "--cluster-node-timeout",
        &timeout,
        "--cluster-require-full-coverage",
        "no",
        "--repl-diskless-sync-delay",
        "0",
        "--cluster-replica-validity-factor",
        "0",
    ];
    RedisServer::node(&arguments, certificates, free_port())
}

fn wait(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "waited thirty seconds in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
