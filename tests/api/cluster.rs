//! A real cluster of three masters and three replicas, a master of which dies under load.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidegate::limiter::subject::{Part, Subject};
use tidegate::redis::cluster::slot;
use tokio::task::JoinHandle;

use crate::support::outage::{CONNECTED, DEGRADED};
use crate::support::process::Tidegate;
use crate::support::redis_cluster::RedisCluster;
use crate::support::until;

const SECRET: &str = "it makes the slots of keys known to the test";
/// How long a request may wait for Redis: longer than a busy machine stands still.
const TIMEOUT_MS: &str = "1000";
const RATE: f64 = 5.0;
const BURST: f64 = 10.0;
const POLICIES: &str = r#"
[[rule]]
name = "default"
  [[rule.policy]]
  name = "wide"
  by = "header:x-api-key"
  limit = "1000000/second"
[[rule]]
name = "kept"
  [[rule.policy]]
  name = "kept"
  by = "header:x-api-key"
  limit = "10000/hour"
  burst = 10000
[[rule]]
name = "tight"
  [[rule.policy]]
  name = "tight"
  by = "header:x-api-key"
  limit = "5/second"
  burst = 10
"#;

/// The slot of a client's keys.
fn slot_of(key: &str) -> u16 {
    let by = Subject::new([Part::Header("x-api-key".into())]);
    slot::of_subject(tidegate::redis::derive(SECRET.as_bytes()).subject(&by.standing_in(key.as_bytes())))
}

/// The place of the master that serves a client at first.
fn master_of(key: &str) -> usize {
    usize::from(slot_of(key) / 5_461).min(2)
}

async fn tidegate(cluster: &RedisCluster, variables: &[(&str, &str)]) -> Arc<Tidegate> {
    let url = cluster.url();
    let ca = cluster.nodes[0].certificates.as_ref().map(|certificates| certificates.text("ca.pem"));
    let mut all = vec![
        ("REDIS_URL", url.as_str()),
        ("TIDEGATE_SECRET", SECRET),
        ("APP_ENV", "production"),
        ("REDIS_TIMEOUT_MS", TIMEOUT_MS),
        ("TIDEGATE__LOGGING__REQUESTS", "false"),
    ];
    all.extend(ca.as_ref().map(|ca| ("REDIS_CA_CERT", ca.as_str())));
    all.extend_from_slice(variables);
    let tidegate = Arc::new(Tidegate::start(Some(POLICIES), &all).await);
    tidegate.connected().await;
    tidegate
}

/// What one request was told.
#[derive(Clone, Copy, Debug)]
struct Answer {
    sent: Instant,
    master: usize,
    allowed: bool,
    fallback: bool,
}

/// Sixty tasks, each with a request every ten milliseconds: most for keys that nothing limits, a fifth of them for a tight
/// one of their own.
struct Traffic {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<(Option<String>, Vec<Answer>)>>,
}

const TASKS: usize = 60;

impl Traffic {
    /// By a rule that limits next to nobody, and with so many keys a task.
    fn start(tidegate: &Arc<Tidegate>, (rule, keys): (&'static str, usize)) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let tasks = (0..TASKS).map(|task| {
            let (tidegate, stop) = (Arc::clone(tidegate), Arc::clone(&stop));
            let tight = (task % 5 == 0).then(|| format!("tight {task}"));
            tokio::spawn(async move {
                let mut answers = Vec::new();
                for number in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let (rule, key) = match &tight {
                        Some(key) => ("tight", key.clone()),
                        None => (rule, format!("wide {task} {}", number % keys)),
                    };
                    let sent = Instant::now();
                    // It insists on a 200.
                    let answer = tidegate.check(json!({"rule": rule, "key": key})).await;
                    answers.push(Answer {
                        sent,
                        master: master_of(&key),
                        allowed: answer["allowed"] == true,
                        fallback: answer["fallback"] == true,
                    });
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                (tight, answers)
            })
        });
        let tasks = tasks.collect();
        Self { stop, tasks }
    }

    /// All answers, and those of each tight key.
    async fn stop(self) -> (Vec<Answer>, HashMap<String, Vec<Answer>>) {
        self.stop.store(true, Ordering::SeqCst);
        let (mut all, mut tight) = (Vec::new(), HashMap::new());
        for task in self.tasks {
            let (key, answers) = task.await.unwrap();
            all.extend_from_slice(&answers);
            tight.extend(key.map(|key| (key, answers)));
        }
        (all, tight)
    }
}

/// Which share of them memory decided.
fn fallbacks<'a>(answers: impl Iterator<Item = &'a Answer>) -> (usize, f64) {
    let (mut all, mut fallbacks) = (0, 0);
    for answer in answers {
        all += 1;
        fallbacks += usize::from(answer.fallback);
    }
    (all, fallbacks as f64 / all.max(1) as f64)
}

async fn no_5xx(tidegate: &Tidegate) {
    let metrics = tidegate.metrics().await;
    for line in metrics.lines().filter(|line| line.starts_with("tidegate_http_responses_total")) {
        assert!(!line.contains(r#"class="5xx""#) || line.ends_with(" 0"), "{line}");
    }
}

/// How a master dies.
#[derive(Clone, Copy, PartialEq)]
enum Death {
    Killed,
    Frozen,
}

const VICTIM: usize = 1;

async fn a_failover_under_load(mut cluster: RedisCluster, death: Death) {
    // A busy machine may stand still for longer than a request waits: what that costs is over soon.
    let soon = [("TIDEGATE__REDIS__RECONNECT_INTERVAL_S", "1"), ("TIDEGATE__REDIS__WARM_UP_S", "1")];
    let tidegate = tidegate(&cluster, &soon).await;
    let traffic = Traffic::start(&tidegate, ("default", 50));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let promotion = cluster.promotion_of(cluster.replica_of(VICTIM));
    let died = Instant::now();
    match death {
        Death::Killed => cluster.nodes[VICTIM].kill(),
        Death::Frozen => cluster.nodes[VICTIM].freeze(),
    }
    let address = format!("127.0.0.1:{}", cluster.nodes[VICTIM].port);
    let away = format!("{address}, which serves 33.3 % of the slots, is away");
    tidegate.says(&away, 1).await;
    let nodes = tidegate.status().await["redis"]["nodes"].clone();
    let dead = nodes.as_array().unwrap().iter().find(|node| node["address"] == address.as_str()).unwrap();
    assert_eq!((&dead["state"], &dead["slots_percent"]), (&json!("open"), &json!(33.3)), "{nodes}");
    let ready: Value = tidegate.get("/readyz").await.json().await.unwrap();
    assert_eq!(ready["backend"], "redis", "two of three decide: {ready}");
    assert!(ready["reason"].as_str().unwrap().contains("67 %"), "{ready}");
    let promoted = tokio::task::spawn_blocking(|| promotion.join().unwrap()).await.unwrap();
    tokio::time::sleep((promoted + Duration::from_secs(3)).saturating_duration_since(Instant::now())).await;
    let (answers, tight) = traffic.stop().await;

    no_5xx(&tidegate).await;
    let (others, lost) = fallbacks(answers.iter().filter(|answer| answer.master != VICTIM));
    assert!(others > 1_000 && lost <= 0.01, "{lost} of {others} requests for other slots");
    let of_dead = || answers.iter().filter(|answer| answer.master == VICTIM);
    let back = of_dead().filter(|answer| answer.fallback).map(|answer| answer.sent).max().unwrap();
    let (server, ours) = (promoted - died, back.saturating_duration_since(promoted));
    eprintln!(
        "the server took {server:.2?}, the last fallback was sent {ours:.2?} after that; {lost} of {others} others"
    );
    assert!(ours <= Duration::from_secs(2), "the dead slots are back {ours:?} after the server's failover");
    let (late, lost) = fallbacks(of_dead().filter(|answer| answer.sent > promoted + Duration::from_secs(2)));
    assert!(late > 50 && lost == 0.0, "{lost} of {late} after that");
    for (key, answers) in tight {
        let admitted = answers.iter().filter(|answer| answer.allowed).count() as f64;
        let lasted = answers.last().unwrap().sent.duration_since(answers[0].sent) + Duration::from_secs(1);
        let most = 2.0 * BURST + lasted.as_secs_f64() * RATE;
        assert!(admitted <= most && admitted >= BURST, "{key}: {admitted} admitted, at most {most}");
    }

    tidegate.says(&away, 1).await;
    tidegate
        .says(&format!("the 33.3 % of the slots that {address} served are decided by Redis again"), 1)
        .await;
    tidegate.says(CONNECTED, 1).await;
    tidegate.says(DEGRADED, 0).await;
    let nodes = tidegate.status().await["redis"]["nodes"].clone();
    let gone = nodes.as_array().unwrap().iter().all(|node| node["address"] != address.as_str());
    assert!(gone && nodes.as_array().unwrap().len() == 3, "{nodes}");
    let metrics = tidegate.metrics().await;
    for wanted in [
        "tidegate_breaker_state 0",
        r#"tidegate_redis_nodes{breaker="closed"} 3"#,
        r#"tidegate_redis_connections{state="in_use"} 3"#,
        r#"tidegate_redis_connections{state="connecting"} 0"#,
        r#"tidegate_backend_up{backend="redis"} 1"#,
    ] {
        assert!(metrics.lines().any(|line| line == wanted), "{wanted}\n{metrics}");
    }
    if death == Death::Frozen {
        cluster.nodes[VICTIM].thaw();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_killed_under_load_costs_no_5xx_and_only_its_own_slots_and_those_until_its_replica_serves() {
    a_failover_under_load(RedisCluster::start(3, true), Death::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_frozen_under_load_costs_no_5xx_and_only_its_own_slots_and_those_until_its_replica_serves() {
    a_failover_under_load(RedisCluster::start(3, true), Death::Frozen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_killed_under_load_over_tls_as_an_acl_user_is_replaced_as_well() {
    a_failover_under_load(RedisCluster::secure(3, true), Death::Killed).await;
}

/// No TIDEGATE_SECRET, and a master without a replica that keeps what was made in its place.
#[tokio::test]
async fn start_without_the_secrets_master_is_logged_and_recovers() {
    const KEY: &str = "tidegate:secret";
    let mut cluster = RedisCluster::start(3, false);
    let keeper = cluster.master_of(KEY);
    cluster.nodes[keeper].kill();
    let other = (keeper + 1) % 3;
    let url = cluster.nodes[other].url();
    let variables = [
        ("REDIS_URL", url.as_str()),
        ("APP_ENV", "production"),
        ("REDIS_TIMEOUT_MS", TIMEOUT_MS),
        ("TIDEGATE__REDIS__RECONNECT_INTERVAL_S", "1"),
        ("TIDEGATE__REDIS__WARM_UP_S", "0"),
    ];
    let tidegate = Tidegate::start(Some(POLICIES), &variables).await;
    let address = format!("127.0.0.1:{}", cluster.nodes[keeper].port);
    let missed = format!("the fleet's secret ({KEY}) is kept by {address}, which is away (refused: ");
    tidegate.says(&missed, 1).await;
    assert!(tidegate.output().contains("Set TIDEGATE_SECRET on every instance"), "{}", tidegate.output());
    for key in 0..20 {
        assert_eq!(tidegate.check(json!({"key": key.to_string()})).await["backend"], "memory");
    }
    cluster.nodes[keeper].restart();
    tidegate.connected().await;
    tidegate.says("the fleet's secret is read: Redis decides from now on", 1).await;
    tidegate.says(&missed, 1).await;
    for key in 0..20 {
        assert_eq!(tidegate.check(json!({"key": key.to_string()})).await["backend"], "redis");
    }
}

#[tokio::test]
async fn a_cluster_is_found_out_and_said() {
    let cluster = RedisCluster::start(3, false);
    let tidegate = tidegate(&cluster, &[]).await;
    tidegate.says("Redis is a cluster, in which 3 masters serve", 1).await;
    tidegate.says(CONNECTED, 1).await;
    for number in 0..30 {
        // So much that none of them has drained when the last is there: the server forgets a key without a debt.
        let hit = json!({"rule": "kept", "key": format!("key {number}"), "cost": 1_000});
        let answer = tidegate.check(hit).await;
        assert_eq!((&answer["backend"], &answer["fallback"]), (&json!("redis"), &json!(false)), "{answer}");
    }
    let keys: Vec<usize> = cluster.masters().iter().map(|master| master.buckets().len()).collect();
    assert!(keys.iter().all(|&keys| keys > 0) && keys.iter().sum::<usize>() == 30, "{keys:?}");
    until("nothing is under way", async || tidegate.status().await["redis"]["in_flight"] == 0).await;
}

/// A counter of the server's, by the start of its line.
fn counted(cluster: &RedisCluster, node: usize, section: &str, name: &str) -> u64 {
    let info: String = cluster.nodes[node].run(&["INFO", section]);
    let line = info.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0, |rest| rest.split([',', '\r']).next().unwrap().parse().unwrap())
}

/// One slot after another, with its keys, as `redis-cli --cluster reshard` does it, to a node that nobody knows before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_are_moved_under_load_are_followed_and_hardly_anybody_is_decided_without_redis() {
    const SOURCE: usize = 0;
    const KEYS: usize = 4;
    let mut cluster = RedisCluster::start(3, false);
    let tidegate = tidegate(&cluster, &[]).await;
    let traffic = Traffic::start(&tidegate, ("kept", KEYS));
    let target = cluster.newcomer();
    let keys = (0..TASKS).flat_map(|task| (0..KEYS).map(move |number| format!("wide {task} {number}")));
    let mut slots: Vec<u16> = keys.map(|key| slot_of(&key)).collect();
    slots.retain(|slot| *slot < 5_461);
    slots.sort_unstable();
    slots.dedup();
    slots.truncate(40);
    let id = |node: usize| cluster.nodes[node].run::<String>(&["CLUSTER", "MYID"]);
    let (from, to, port) = (id(SOURCE), id(target), cluster.nodes[target].port.to_string());
    let pause = || tokio::time::sleep(Duration::from_millis(25));
    for slot in slots {
        let slot = slot.to_string();
        let set = |node: usize, words: &[&str]| -> () {
            let mut all = vec!["CLUSTER", "SETSLOT", slot.as_str()];
            all.extend(words);
            cluster.nodes[node].run(&all)
        };
        set(target, &["IMPORTING", &from]);
        set(SOURCE, &["MIGRATING", &to]);
        pause().await;
        loop {
            let keys: Vec<String> = cluster.nodes[SOURCE].run(&["CLUSTER", "GETKEYSINSLOT", &slot, "10"]);
            if keys.is_empty() {
                break;
            }
            let mut words = vec!["MIGRATE", "127.0.0.1", port.as_str(), "", "0", "1000", "KEYS"];
            words.extend(keys.iter().map(String::as_str));
            let _: redis::Value = cluster.nodes[SOURCE].run(&words);
        }
        pause().await;
        set(target, &["NODE", &to]);
        set(SOURCE, &["NODE", &to]);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (answers, _) = traffic.stop().await;
    no_5xx(&tidegate).await;
    let (all, lost) = fallbacks(answers.iter());
    let moved = counted(&cluster, SOURCE, "errorstats", "errorstat_MOVED:count=");
    let asked = counted(&cluster, target, "commandstats", "cmdstat_asking:calls=");
    eprintln!("{lost} of {all} without Redis; {moved} times moved, {asked} times asking");
    assert!(moved > 0 && asked > 0, "{moved} times moved, {asked} times asking");
    assert!(all > 2_000 && lost <= 0.01, "{lost} of {all} requests were decided without Redis");
    let metrics = tidegate.metrics().await;
    for line in metrics.lines().filter(|line| line.starts_with("tidegate_redis_errors_total")) {
        assert!(line.contains(r#"kind="cluster""#) || line.ends_with(" 0"), "{line}");
    }
    until("the newcomer is one of four", async || {
        let nodes = tidegate.status().await["redis"]["nodes"].clone();
        nodes.as_array().unwrap().len() == 4
            && nodes
                .as_array()
                .unwrap()
                .iter()
                .all(|node| node["state"] == "closed" && node["slots_percent"] != 0.0)
    })
    .await;
    tidegate.says("is away", 0).await;
}

/// Where all nodes say that the cluster is down as long as one of them is missing, which is what a server does unless it is
/// told otherwise, all keys are memory's meanwhile; and Redis' again without a warm-up, for nobody was away but one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_down_as_a_whole_meanwhile_is_back_as_soon_as_it_says_so() {
    let mut cluster = RedisCluster::start(3, true);
    for node in &cluster.nodes {
        let _: () = node.run(&["CONFIG", "SET", "cluster-require-full-coverage", "yes"]);
    }
    let tidegate = tidegate(&cluster, &[]).await;
    let traffic = Traffic::start(&tidegate, ("default", 50));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let promotion = cluster.promotion_of(cluster.replica_of(VICTIM));
    cluster.nodes[VICTIM].kill();
    let promoted = tokio::task::spawn_blocking(|| promotion.join().unwrap()).await.unwrap();
    tokio::time::sleep((promoted + Duration::from_secs(3)).saturating_duration_since(Instant::now())).await;
    let (answers, _) = traffic.stop().await;
    no_5xx(&tidegate).await;
    let back = answers.iter().filter(|answer| answer.fallback).map(|answer| answer.sent).max().unwrap();
    let ours = back.saturating_duration_since(promoted);
    eprintln!("the last fallback was sent {ours:.2?} after the failover");
    assert!(ours <= Duration::from_secs(2), "Redis decides again {ours:?} after the server's failover");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_on_a_cluster_forgive_a_key_together_and_log_in_anew_on_every_node() {
    let cluster = RedisCluster::start(3, false);
    cluster.run_on_all(&["ACL", "SETUSER", "tide", "on", ">one", "~tidegate:*", "&tidegate:*", "+@all"]);
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(file("user"), "tide").unwrap();
    std::fs::write(file("password"), "one").unwrap();
    let (user, password) = (file("user"), file("password"));
    let variables = [("REDIS_USERNAME_FILE", user.as_str()), ("REDIS_PASSWORD_FILE", password.as_str())];
    let mut fleet = Vec::new();
    for _ in 0..3 {
        fleet.push(tidegate(&cluster, &variables).await);
    }
    let keeper = &cluster.nodes[cluster.master_of("tidegate:fleet")];
    until("all of them listen to one node", async || {
        keeper.run::<(String, usize)>(&["PUBSUB", "NUMSUB", "tidegate:fleet"]).1 == 3
    })
    .await;
    let ask = json!({"rule": "tight", "key": "somebody"});
    while fleet[1].check(ask.clone()).await["allowed"] == true {}
    let answer = fleet[0].admin("DELETE", "/admin/keys?rule=tight&key=somebody").send().await.unwrap();
    let answer: Value = answer.json().await.unwrap();
    assert_eq!((&answer["applied"], &answer["complete"]), (&json!("3/3"), &json!(true)), "{answer}");
    assert_eq!(fleet[1].check(ask).await["allowed"], true);

    cluster.run_on_all(&["ACL", "SETUSER", "tide", ">two", "<one"]);
    std::fs::write(&password, "two").unwrap();
    fleet[0].hang_up();
    until("each link has logged in anew", async || {
        let metrics = fleet[0].metrics().await;
        metrics.lines().any(|line| line == r#"tidegate_redis_connections_replaced_total{cause="login"} 3"#)
    })
    .await;
    assert_eq!(fleet[0].status().await["redis"]["state"], "closed");
}
