//! An outage from its beginning to its end: sixteen clients of one key that never stop asking, a watcher of the breaker,
//! and what must hold whatever is wrong with Redis.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::process::Tidegate;
use super::redis_server::RedisServer;
use super::relay::Relay;
use super::until;

pub const DEGRADED: &str =
    "💥 PRODUCTION DEGRADED: Redis unavailable. Using in-memory fallback (single-instance only).";
pub const CONNECTED: &str = "✅ Redis rate limiting backend connected";
pub const BACK: &str = "Redis decides again: it was away for";
pub const REPLACED: &str = "calls to Redis timed out: their connection was replaced by a fresh one";

/// One request a second, twenty at once.
pub const ONE_KEY: &str = r#"
[[rule]]
name = "default"
  [[rule.policy]]
  name = "p"
  by = "header:x-api-key"
  limit = "60/minute"
  burst = 20
"#;
const BURST: f64 = 20.0;
const CLIENTS: usize = 16;
/// How long a request may wait for Redis: longer than a busy machine stands still.
pub const TIMEOUT: Duration = Duration::from_millis(600);

/// A Redis, a relay before it, and tidegate, which knows the relay only.
pub struct World {
    pub redis: RedisServer,
    pub relay: Relay,
    pub tidegate: Arc<Tidegate>,
    pub traffic: Traffic,
    breaker: JoinHandle<()>,
    states: Arc<std::sync::Mutex<Vec<u8>>>,
}

impl World {
    /// With Redis in use and clients that ask. Whoever asks sentinels is told of Redis itself, and the relay carries nothing.
    pub async fn with(redis: RedisServer, variables: &[(&str, &str)]) -> Self {
        let relay = Relay::to(redis.port).await;
        let password = redis.password.as_ref().map_or(String::new(), |password| format!(":{password}@"));
        let url = match redis.is_found() {
            true => redis.url(),
            false => format!("redis://{password}{}", relay.address),
        };
        let timeout = TIMEOUT.as_millis().to_string();
        let mut all = vec![
            ("REDIS_URL", url.as_str()),
            ("APP_ENV", "production"),
            ("REDIS_TIMEOUT_MS", timeout.as_str()),
            ("TIDEGATE__REDIS__CONNECT_TIMEOUT_MS", "2500"),
            ("TIDEGATE__REDIS__RECONNECT_INTERVAL_S", "1"),
            ("TIDEGATE__REDIS__WARM_UP_S", "1"),
        ];
        all.extend_from_slice(variables);
        let tidegate = Arc::new(Tidegate::start(Some(ONE_KEY), &all).await);
        tidegate.connected().await;
        let states = Arc::default();
        let breaker = tokio::spawn(watch_breaker(Arc::clone(&tidegate), Arc::clone(&states)));
        let traffic = Traffic::start(&tidegate, CLIENTS);
        tokio::time::sleep(Duration::from_millis(200)).await;
        Self { redis, relay, tidegate, traffic, breaker, states }
    }

    /// Waits until the breaker is in this state.
    pub async fn is(&self, state: &str) {
        until(state, async || self.tidegate.status().await["redis"]["state"] == state).await;
    }

    /// Waits until the last fault is of this kind.
    pub async fn last_error(&self, kind: &str) {
        until(kind, async || self.tidegate.status().await["redis"]["last_error_kind"] == kind).await;
    }

    /// While the breaker is open, no decision costs any network and no request waits.
    pub async fn nothing_is_asked(&self) {
        // Calls that were under way when it opened end within their deadline.
        tokio::time::sleep(TIMEOUT).await;
        let (decisions, answers) = (self.relay.decisions(), self.traffic.answers());
        let waited = waited(&self.tidegate).await;
        let started = Instant::now();
        // In this order: a connection that is there already may have its probe yet before it.
        let connections = self.relay.connections();
        let there = self.relay.open_connections();
        let probes = self.relay.probes();
        tokio::time::sleep(Duration::from_millis(600)).await;
        let asked = self.relay.decisions() - decisions;
        let waited_at_last = self::waited(&self.tidegate).await;
        let answered = &self.traffic.log.lock().unwrap()[answers..];
        assert!(answered.len() >= CLIENTS, "{} requests in {:?}", answered.len(), started.elapsed());
        assert_eq!(asked, 0, "decisions asked of Redis by {} requests while it is away", answered.len());
        assert!(answered.iter().all(|answer| answer.fallback));
        assert_eq!(waited_at_last, waited, "requests that waited out the timeout while it is away");
        let probes = self.relay.probes() - probes;
        let made = self.relay.connections() - connections;
        // Between two attempts lies half of the reconnect interval at least, however long this machine took to look. An
        // attempt whose connection is lost makes another, without HELLO.
        let most = 2 * (1 + started.elapsed().as_millis() as usize / 500);
        assert!(made <= most, "{made} connections in {:?}", started.elapsed());
        assert!(probes <= 2 * (there + made), "{probes} probes over {there} connections and {made} more");
    }

    /// Ends the traffic and judges all of it. Returns the states of the breaker.
    pub async fn account(self) -> (Arc<Tidegate>, Vec<u8>, Vec<Answer>) {
        let answers = self.traffic.stop().await;
        // The watcher looks every 25 ms: it has seen the last state now.
        tokio::time::sleep(Duration::from_millis(100)).await;
        self.breaker.abort();
        let states = self.states.lock().unwrap().clone();
        assert_eq!(states.first(), Some(&0), "{states:?}");
        let leaps = states.windows(2).filter(|two| *two == [2, 0]).count();
        assert_eq!(leaps, 0, "from open to closed without a warm-up: {states:?}");
        let metrics = self.tidegate.metrics().await;
        for line in metrics.lines().filter(|line| line.starts_with("tidegate_http_responses_total")) {
            assert!(!line.contains(r#"class="5xx""#) || line.ends_with(" 0"), "{line}");
        }
        (self.tidegate, states, answers)
    }
}

/// How many requests waited for Redis as long as a request may, and in vain.
pub async fn waited(tidegate: &Tidegate) -> u32 {
    let metrics = tidegate.metrics().await;
    let name = r#"tidegate_fallbacks_total{reason="timeout"} "#;
    metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
}

/// Requests for one key that never stop.
pub struct Traffic {
    log: Arc<std::sync::Mutex<Vec<Answer>>>,
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

/// What one request was told.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    pub sent: Instant,
    pub took: Duration,
    pub allowed: bool,
    pub by_redis: bool,
    pub fallback: bool,
}

impl Traffic {
    pub fn start(tidegate: &Arc<Tidegate>, clients: usize) -> Self {
        let (log, stop) = (Arc::<std::sync::Mutex<Vec<Answer>>>::default(), Arc::<AtomicBool>::default());
        let clients = (0..clients).map(|_| {
            let (tidegate, log, stop) = (Arc::clone(tidegate), Arc::clone(&log), Arc::clone(&stop));
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let sent = Instant::now();
                    // It insists on a 200.
                    let answer: Value = tidegate.check(json!({"key": "one key"})).await;
                    log.lock().unwrap().push(Answer {
                        sent,
                        took: sent.elapsed(),
                        allowed: answer["allowed"] == true,
                        by_redis: answer["backend"] == "redis" && answer["cached"] != true,
                        fallback: answer["fallback"] == true,
                    });
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
        });
        let clients = clients.collect();
        Self { log, stop, clients }
    }

    /// How many there were so far.
    pub fn answers(&self) -> usize {
        self.log.lock().unwrap().len()
    }

    /// Waits until Redis decides a request that is sent from now on; how long that took.
    pub async fn decided_by_redis(&self, longest: Duration) -> Duration {
        let now = Instant::now();
        loop {
            let log = self.log.lock().unwrap().clone();
            if let Some(first) = log.iter().find(|answer| answer.by_redis && answer.sent >= now) {
                return first.sent.duration_since(now) + first.took;
            }
            assert!(now.elapsed() < longest, "Redis does not decide again within {longest:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// All answers; what was admitted is at most what one limiter admits that never lost anything: the burst and what
    /// the time refilled, to the last request. No slack.
    pub async fn stop(self) -> Vec<Answer> {
        self.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.await.unwrap();
        }
        let log = self.log.lock().unwrap().clone();
        let began = log.iter().map(|answer| answer.sent).min().unwrap();
        let ended = log.iter().map(|answer| answer.sent + answer.took).max().unwrap();
        let most = BURST + ended.duration_since(began).as_secs_f64();
        let admitted = log.iter().filter(|answer| answer.allowed).count();
        assert!(admitted as f64 <= most, "{admitted} of {} admitted, at most {most:.1}", log.len());
        assert!(admitted as f64 >= BURST * 0.9, "{admitted} of {} admitted", log.len());
        log
    }
}

/// Requests that never stop, each for a key of its own: none of them can be decided but by asking.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<(usize, usize)>>,
}

impl Load {
    pub fn start(tidegate: &Arc<Tidegate>, clients: usize) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let clients = (0..clients).map(|client| {
            let (tidegate, stop) = (Arc::clone(tidegate), Arc::clone(&stop));
            tokio::spawn(async move {
                let (mut requests, mut fallbacks) = (0, 0);
                while !stop.load(Ordering::SeqCst) {
                    let key = format!("key {requests} of {client}");
                    let answer: Value = tidegate.check(json!({"key": key})).await;
                    requests += 1;
                    fallbacks += usize::from(answer["fallback"] == true);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                (requests, fallbacks)
            })
        });
        let clients = clients.collect();
        Self { stop, clients }
    }

    /// How many there were, and how many of them were decided without Redis.
    pub async fn stop(self) -> (usize, usize) {
        self.stop.store(true, Ordering::SeqCst);
        let (mut requests, mut fallbacks) = (0, 0);
        for client in self.clients {
            let (of_one, without) = client.await.unwrap();
            requests += of_one;
            fallbacks += without;
        }
        (requests, fallbacks)
    }
}

/// Writes down each change of the gauge.
async fn watch_breaker(tidegate: Arc<Tidegate>, states: Arc<std::sync::Mutex<Vec<u8>>>) {
    loop {
        let metrics = tidegate.metrics().await;
        let line = metrics.lines().find_map(|line| line.strip_prefix("tidegate_breaker_state "));
        let state = line.unwrap().parse().unwrap();
        {
            let mut states = states.lock().unwrap();
            if states.last() != Some(&state) {
                states.push(state);
            }
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}
