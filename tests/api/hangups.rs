//! Clients that disconnect while Redis is asked. The decision is made without them: refunds, the traffic share, the penalty
//! box and the denials known here are as if they had waited.

use std::time::{Duration, Instant};

use serde_json::json;
use tidegate::redis::cluster::slot;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::frames::{self, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, field};
use crate::support::process::Tidegate;
use crate::support::redis_cluster::RedisCluster;
use crate::support::redis_server::RedisServer;
use crate::support::relay::Relay;
use crate::support::until;
use crate::support::upstream::Upstream;

/// How far away Redis is.
const DELAY: Duration = Duration::from_millis(8);
/// Longer than a busy machine needs for an answer.
const TIMEOUT: (&str, &str) = ("REDIS_TIMEOUT_MS", "5000");
const ONE_CLIENT_AND_ALL: &str = r#"
[[rule]]
name = "default"
  [[rule.policy]]
  name = "p"
  by = "header:x-api-key"
  limit = "10/hour"
  [[rule.policy]]
  name = "all"
  by = "everyone"
  limit = "300/hour"
"#;

/// A gateway whose Redis answers late.
struct Front {
    tidegate: Tidegate,
    relays: Vec<Relay>,
    _upstream: Upstream,
}

impl Front {
    async fn start(policies: &str, relays: Vec<Relay>, variables: &[(&str, &str)]) -> Self {
        let upstream = Upstream::start();
        let (url, redis) = (upstream.url(), format!("redis://{}", relays[0].address));
        let mut all = vec![("UPSTREAM_URL", url.as_str()), ("REDIS_URL", redis.as_str()), TIMEOUT];
        all.extend_from_slice(variables);
        let tidegate = Tidegate::start(Some(policies), &all).await;
        tidegate.connected().await;
        relays.iter().for_each(|relay| relay.delay(DELAY));
        Self { tidegate, relays, _upstream: upstream }
    }

    /// How often Redis was asked about the policy `p`.
    fn asked(&self) -> usize {
        self.relays.iter().map(Relay::decisions).sum()
    }

    /// Sends `count` requests at once, each on a connection of its own, and resets the connections as soon as every request
    /// is at Redis or was answered without it.
    async fn hang_up(&self, key: &str, count: usize) {
        self.hang_up_after(Duration::ZERO, key, count).await;
    }

    /// The same, so much later.
    async fn hang_up_after(&self, later: Duration, key: &str, count: usize) {
        let asked = self.asked();
        let request = format!("GET / HTTP/1.1\r\nhost: h\r\nx-api-key: {key}\r\n\r\n");
        let mut waiting = Vec::new();
        for _ in 0..count {
            let mut stream = TcpStream::connect(self.tidegate.main).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            waiting.push((stream, false));
        }
        let started = Instant::now();
        loop {
            for (stream, answered) in &mut waiting {
                *answered = *answered || stream.try_read(&mut [0]).is_ok();
            }
            let answered = waiting.iter().filter(|(_, answered)| *answered).count();
            if self.asked() - asked + answered >= count {
                break;
            }
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "{answered} of {count} answered, and not asked"
            );
            // Less than Redis takes.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(later).await;
        waiting.into_iter().for_each(|(stream, _)| reset(stream));
    }

    /// Waits until nothing is asked of Redis any more.
    async fn rests(&self) {
        until("no call is under way", async || self.tidegate.status().await["redis"]["in_flight"] == 0).await;
    }

    /// A client of this name that the rollout gave to Redis.
    async fn in_redis(&self, name: &str) -> String {
        for number in 0.. {
            let key = format!("{name}-{number}");
            let peek = json!({"attributes": {"header:x-api-key": key}, "peek": true, "cost": 0});
            if self.tidegate.check(peek).await["backend"] == "redis" {
                return key;
            }
        }
        unreachable!()
    }

    /// What everybody has left, asked by a client that pays for it.
    async fn left_for_all(&self) -> u32 {
        let answer = self.tidegate.get_as("/", "bystander").await;
        assert_eq!(answer.status(), 200);
        let header = answer.headers()["ratelimit"].to_str().unwrap().to_owned();
        let (_, rest) = header.split_once("\"all\";r=").unwrap_or_else(|| panic!("{header}"));
        rest.split([';', ',']).next().unwrap().parse().unwrap()
    }

    async fn without_client(&self, outcome: &str) -> usize {
        let series = format!(r#"tidegate_decisions_without_client_total{{outcome="{outcome}"}} "#);
        let metrics = self.tidegate.metrics().await;
        metrics.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
    }
}

/// Closes without a farewell, as a client that crashes or gives up.
fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// What everybody has left of 300 after one client sent 400 requests, ten of which its own limit admits.
async fn left_after_400(front: &Front, patient: bool) -> u32 {
    let key = front.in_redis("client").await;
    for _ in 0..10 {
        if patient {
            for _ in 0..40 {
                front.tidegate.get_as("/", &key).await;
            }
        } else {
            front.hang_up(&key, 40).await;
        }
    }
    front.rests().await;
    front.left_for_all().await
}

#[tokio::test]
async fn shared_memory_bucket_survives_400_hangups() {
    let mut left = Vec::new();
    for patient in [true, false] {
        let redis = RedisServer::start();
        let relay = Relay::to(redis.port).await;
        let half = [("RATE_LIMIT_CANARY_PERCENT", "50")];
        let front = Front::start(ONE_CLIENT_AND_ALL, vec![relay], &half).await;
        left.push(left_after_400(&front, patient).await);
    }
    eprintln!("left of 300: {} by a patient client, {} by hang-ups", left[0], left[1]);
    assert!(left[0] >= 285 && left[0].abs_diff(left[1]) <= 5, "{left:?} of 300");
}

/// A relay before each master, which the cluster announces in its place.
async fn relays_before(cluster: &RedisCluster) -> Vec<Relay> {
    let mut relays = Vec::new();
    for master in cluster.masters() {
        let relay = Relay::to(master.port).await;
        let port = relay.address.port().to_string();
        let _: () = master.run(&["CONFIG", "SET", "cluster-announce-port", &port]);
        relays.push(relay);
    }
    until("every master announces the relays", async || {
        cluster.masters().iter().all(|master| {
            let nodes: String = master.run(&["CLUSTER", "NODES"]);
            relays.iter().all(|relay| nodes.contains(&format!(":{}@", relay.address.port())))
        })
    })
    .await;
    relays
}

#[tokio::test]
async fn cross_slot_bucket_survives_400_hangups() {
    let mut left = Vec::new();
    for patient in [true, false] {
        let cluster = RedisCluster::start(3, false);
        let relays = relays_before(&cluster).await;
        let front = Front::start(ONE_CLIENT_AND_ALL, relays, &[]).await;
        left.push(left_after_400(&front, patient).await);
        let slots: Vec<u16> = cluster.buckets().iter().map(|key| slot::of(key.as_bytes())).collect();
        assert!(slots.iter().any(|slot| *slot != slots[0]), "one place holds all: {slots:?}");
    }
    eprintln!("left of 300: {} by a patient client, {} by hang-ups", left[0], left[1]);
    assert!(left[0] >= 285 && left[0].abs_diff(left[1]) <= 5, "{left:?} of 300");
}

const ONE_CLIENT: &str = r#"
[[rule]]
name = "default"
  [[rule.policy]]
  name = "p"
  by = "header:x-api-key"
  limit = "1000/hour"
"#;

#[tokio::test]
async fn traffic_share_is_not_moved_by_240_hangups() {
    let redis = RedisServer::start();
    let relay = Relay::to(redis.port).await;
    let front = Front::start(ONE_CLIENT, vec![relay], &[]).await;
    for _ in 0..60 {
        front.hang_up("client", 4).await;
        front.rests().await;
        assert_eq!(front.tidegate.get_as("/", "client").await.status(), 200);
    }
    let mut share = front.tidegate.status().await["fallback_share"].clone();
    until("the share is learned", async || {
        front.tidegate.get_as("/", "client").await;
        share = front.tidegate.status().await["fallback_share"].clone();
        share["source"] == "learned"
    })
    .await;
    eprintln!("one instance alone learned a share of {}", share["share"]);
    assert!(share["share"].as_f64().unwrap() >= 0.95, "{share}");
}

/// Calls that 500 requests of one client cost, which may have 10 an hour.
async fn calls_of_500(patient: bool) -> usize {
    let redis = RedisServer::start();
    let relay = Relay::to(redis.port).await;
    let front = Front::start(&ONE_CLIENT.replace("1000", "10"), vec![relay], &[]).await;
    for _ in 0..500 {
        match patient {
            true => drop(front.tidegate.get_as("/", "client").await),
            false => front.hang_up_after(Duration::from_millis(3), "client", 1).await,
        }
    }
    front.rests().await;
    front.asked()
}

#[tokio::test]
async fn attack_that_hangs_up_costs_redis_no_more_calls() {
    let (patient, hung_up) = (calls_of_500(true).await, calls_of_500(false).await);
    eprintln!("{patient} calls for a client that waits, {hung_up} for one that hangs up");
    assert!(patient >= 10 && hung_up <= 2 * patient, "{patient} calls and {hung_up}");
}

const WITH_PENALTY: &str = r#"
[[rule]]
name = "default"
  [[rule.policy]]
  name = "p"
  by = "header:x-api-key"
  limit = "10/hour"
  block_after = 40
  block_within = "1m"
  block_for = "1h"
"#;

#[tokio::test]
async fn penalty_box_is_reached_by_hangups() {
    let redis = RedisServer::start();
    let relay = Relay::to(redis.port).await;
    let front = Front::start(WITH_PENALTY, vec![relay], &[]).await;
    // All are at Redis before the first is denied.
    front.relays[0].delay(Duration::from_millis(500));
    front.hang_up("client", 60).await;
    front.rests().await;
    assert_eq!(front.tidegate.get_as("/", "client").await.status(), 403);
    let counted = [front.without_client("allow").await, front.without_client("throttle").await];
    assert_eq!((counted, front.without_client("dropped").await), ([10, 50], 0));
    let metrics = front.tidegate.metrics().await;
    let throttled = r#"tidegate_requests_total{backend="redis",state="throttle",policy="p",arm="canary"} 50"#;
    assert!(metrics.contains(throttled), "{metrics}");
}

#[tokio::test]
async fn penalty_box_is_reached_by_http2_stream_resets() {
    let redis = RedisServer::start();
    let relay = Relay::to(redis.port).await;
    let front = Front::start(WITH_PENALTY, vec![relay], &[]).await;
    front.relays[0].delay(Duration::from_millis(500));
    let mut stream = frames::connect(front.tidegate.main).await;
    let streams = (0..60).map(|number| 2 * number + 1);
    for number in streams.clone() {
        let headers = [frames::get("/"), field("x-api-key", "client")].concat();
        let request = frames::frame(HEADERS, END_STREAM | END_HEADERS, number, &headers);
        stream.write_all(&request).await.unwrap();
    }
    until("every request is at Redis", async || front.asked() == 60).await;
    for number in streams {
        let cancel = 8_u32.to_be_bytes();
        stream.write_all(&frames::frame(RST_STREAM, 0, number, &cancel)).await.unwrap();
    }
    reset(stream);
    front.rests().await;
    assert_eq!(front.tidegate.get_as("/", "client").await.status(), 403);
}

#[tokio::test]
async fn penalty_box_is_reached_by_hangups_on_v1_check() {
    let redis = RedisServer::start();
    let relay = Relay::to(redis.port).await;
    let front = Front::start(WITH_PENALTY, vec![relay], &[]).await;
    front.relays[0].delay(Duration::from_millis(500));
    let body = r#"{"key": "client"}"#;
    let request = format!(
        "POST /v1/check HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut waiting = Vec::new();
    for _ in 0..60 {
        let mut stream = TcpStream::connect(front.tidegate.main).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        waiting.push(stream);
    }
    until("every request is at Redis", async || front.asked() == 60).await;
    waiting.into_iter().for_each(reset);
    front.rests().await;
    assert_eq!(front.tidegate.check(json!({"key": "client"})).await["state"], "block");
}

#[tokio::test]
async fn breaker_opens_on_calls_whose_clients_left() {
    let redis = RedisServer::start();
    let relay = Relay::to(redis.port).await;
    let timeout = [("REDIS_TIMEOUT_MS", "700")];
    let front = Front::start(ONE_CLIENT, vec![relay], &timeout).await;
    // A hung Redis, and clients that never wait for the timeout.
    front.relays[0].delay(Duration::from_secs(600));
    let requests = async {
        loop {
            front.hang_up("client", 1).await;
        }
    };
    let open =
        until("the breaker is open", async || front.tidegate.status().await["redis"]["state"] == "open");
    tokio::select! {
        () = requests => {}
        () = open => {}
    }
    let exposure = front.tidegate.status().await["exposure"].clone();
    assert!(exposure.as_f64().unwrap() < 0.5, "a dead canary does not look healthy: {exposure}");
}

#[tokio::test]
async fn hangups_leave_no_call_connection_or_charge_behind() {
    let redis = RedisServer::start();
    let relay = Relay::to(redis.port).await;
    let front = Front::start(&ONE_CLIENT.replace("1000/hour", "10000/day"), vec![relay], &[]).await;
    front.relays[0].delay(Duration::from_millis(100));
    let files = || std::fs::read_dir(format!("/proc/{}/fd", front.tidegate.pid())).unwrap().count();
    front.hang_up("client", 100).await;
    front.rests().await;
    let before = files();
    for _ in 0..20 {
        front.hang_up("client", 100).await;
        // Of 1 024 calls at once the rest is decided in memory.
        front.rests().await;
    }
    until("its sockets are closed", async || files() <= before + 2).await;
    let (made, dropped) = (front.without_client("allow").await, front.without_client("dropped").await);
    let left =
        front.tidegate.check(json!({"key": "client", "peek": true, "cost": 0})).await["remaining"].clone();
    let left = left.as_u64().unwrap();
    assert!((7_900..=7_920).contains(&left), "2 100 of 10 000 are charged, each once: {left} left");
    // The others were answered before their clients left.
    assert!(made > 1_500 && dropped == 0, "{made} made without a client, {dropped} dropped");
}

#[tokio::test]
async fn shutdown_does_not_wait_for_decisions_without_client() {
    let redis = RedisServer::start();
    let relay = Relay::to(redis.port).await;
    let timeout = [("REDIS_TIMEOUT_MS", "10000")];
    let mut front = Front::start(ONE_CLIENT, vec![relay], &timeout).await;
    front.relays[0].delay(Duration::from_secs(600));
    front.hang_up("client", 50).await;
    until("every client has left", async || front.tidegate.lines_with(r#""status":499"#) == 50).await;
    front.tidegate.terminate();
    let status = front.tidegate.wait(Duration::from_secs(6)).expect("it ends before REDIS_TIMEOUT_MS");
    assert!(status.success(), "{status}");
}
