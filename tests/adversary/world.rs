//! The processes of a run: Redis, the relay before it, the upstream, and the instances, which can be killed, frozen and
//! started again.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::limits::{Quota, Rule, policy_file};
use crate::plan::{Act, Plan, Redis, Theme};
use crate::support::process::{Tidegate, command};
use crate::support::redis_cluster::RedisCluster;
use crate::support::redis_server::RedisServer;
use crate::support::relay::Relay;
use crate::support::shifted_clock::ShiftedClock;

/// A fleet and what it depends on.
pub struct World {
    pub plan: Plan,
    /// All nodes of a cluster, or the one server.
    pub redis: Mutex<Vec<RedisServer>>,
    pub relay: Option<Relay>,
    url: String,
    upstream: SocketAddr,
    slots: Vec<Mutex<Slot>>,
    /// The policies in force: an instance that starts later reads the same.
    pub rules: Mutex<Vec<Rule>>,
    open: AtomicBool,
    /// Whether every key of a crowd has been sent.
    crowded: AtomicBool,
    began: Instant,
    pub began_at: DateTime<Utc>,
}

struct Slot {
    process: Option<Arc<Tidegate>>,
    life: usize,
    /// It outlives its processes: the database is in it.
    directory: TempDir,
    /// The wall clock of its processes, where an act steps it.
    clock: Option<ShiftedClock>,
    frozen: bool,
}

impl World {
    /// Starts everything and waits until Redis decides.
    pub async fn start(plan: Plan) -> Arc<Self> {
        let servers = match plan.redis {
            Redis::None => Vec::new(),
            Redis::Plain => vec![RedisServer::start()],
            Redis::Cluster => RedisCluster::start(3, false).nodes,
            Redis::Replicated => RedisCluster::start(3, true).nodes,
        };
        let (mut relay, mut url) = (None, String::new());
        if let Some(first) = servers.first() {
            url = first.url();
            if plan.redis == Redis::Plain {
                let before = Relay::to(first.port).await;
                before.delay(Duration::from_millis(plan.latency));
                url = format!("redis://{}", before.address);
                relay = Some(before);
            }
        }
        for server in &servers {
            // Everything: what is slow is found afterwards.
            server.run::<()>(&["CONFIG", "SET", "slowlog-log-slower-than", "0", "slowlog-max-len", "20000"]);
        }
        let slot = |at| {
            let is_stepped = plan.has(|act| matches!(act, Act::InstanceClock(stepped, _) if *stepped == at));
            let clock = is_stepped.then(|| ShiftedClock::ahead(0));
            Slot { process: None, life: 0, directory: tempfile::tempdir().unwrap(), clock, frozen: false }
        };
        let world = Arc::new(Self {
            slots: (0..plan.most_instances()).map(|at| Mutex::new(slot(at))).collect(),
            rules: Mutex::new(plan.rules.clone()),
            redis: Mutex::new(servers),
            relay,
            url,
            upstream: upstream().await,
            open: AtomicBool::new(true),
            crowded: AtomicBool::new(plan.theme != Theme::Crowd),
            began: Instant::now(),
            began_at: Utc::now(),
            plan,
        });
        let starts = (0..world.plan.instances).map(|at| world.start_instance(at));
        futures_util::future::join_all(starts).await;
        if world.plan.redis != Redis::None {
            for (at, ..) in world.instances() {
                world.process(at).unwrap().connected().await;
            }
        }
        world
    }

    /// Starts an instance, or starts it again.
    pub async fn start_instance(&self, at: usize) {
        let (directory, clock) = {
            let slot = self.slots[at].lock();
            let config = slot.directory.path().join("config");
            std::fs::create_dir_all(&config).unwrap();
            std::fs::write(config.join("policies.toml"), policy_file(&self.rules.lock())).unwrap();
            let clock = slot.clock.as_ref().map(ShiftedClock::variables).unwrap_or_default();
            let clock: Vec<(String, String)> =
                clock.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            (slot.directory.path().to_owned(), clock)
        };
        let fleet = self.plan.instances.to_string();
        // Hang-ups alone: there the counts are compared to the unit, and no request may be decided in Redis' place because
        // this machine is busy.
        let timeout = if self.plan.theme == Theme::HangUps { "2000" } else { "150" };
        let (percent, keys) = (self.plan.percent.to_string(), self.plan.max_keys.to_string());
        let (name, upstream) = (format!("instance-{at}"), format!("http://{}", self.upstream));
        let mut variables = vec![
            ("TIDEGATE_SECRET", "a seed chooses the same canary each time"),
            ("TIDEGATE__MEMORY__MAX_KEYS", &*keys),
            ("TIDEGATE__FLEET__NAME", &*name),
            ("TIDEGATE__FLEET__HEARTBEAT_S", "1"),
            ("TIDEGATE__LOGGING__REQUESTS", "false"),
            ("TIDEGATE__UPSTREAM__COST_HEADER", "x-ratelimit-cost"),
            ("UPSTREAM_URL", &*upstream),
            ("TIDEGATE__SERVER__WORKERS", "2"),
        ];
        if self.plan.redis != Redis::None {
            variables.extend([
                ("REDIS_URL", &*self.url),
                ("RATE_LIMIT_CANARY_PERCENT", &*percent),
                ("REDIS_TIMEOUT_MS", timeout),
                ("TIDEGATE__REDIS__FLEET_SIZE", &*fleet),
                ("TIDEGATE__REDIS__RECONNECT_INTERVAL_S", "1"),
                ("TIDEGATE__REDIS__WARM_UP_S", "1"),
            ]);
        }
        variables.extend(clock.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let here = |_: &Path| binary(&directory);
        let process = Tidegate::start_by(here, tempfile::tempdir().unwrap(), &variables).await;
        let mut slot = self.slots[at].lock();
        slot.process = Some(Arc::new(process));
        slot.life += 1;
    }

    /// Writes the policy files of all instances with another limit. Each reads it by itself, or when it is asked to.
    pub fn change_limit(&self, rule: usize, policy: usize, quota: Quota) {
        let mut rules = self.rules.lock();
        rules[rule].policies[policy].quota = quota;
        let text = policy_file(&rules);
        for slot in &self.slots {
            let config = slot.lock().directory.path().join("config");
            std::fs::create_dir_all(&config).unwrap();
            std::fs::write(config.join("policies.toml.new"), &text).unwrap();
            std::fs::rename(config.join("policies.toml.new"), config.join("policies.toml")).unwrap();
        }
    }

    pub fn process(&self, at: usize) -> Option<Arc<Tidegate>> {
        self.slots[at].lock().process.clone()
    }

    /// Takes an instance out of the fleet. Dropped, it is killed.
    pub fn take(&self, at: usize) -> Option<Arc<Tidegate>> {
        self.slots[at].lock().process.take()
    }

    /// The wall clock of an instance, and of those that take its place, is so many seconds ahead.
    pub fn set_clock(&self, at: usize, seconds: i64) {
        if let Some(clock) = &self.slots[at].lock().clock {
            clock.set_ahead(seconds * 1_000_000);
        }
    }

    pub fn set_frozen(&self, at: usize, frozen: bool) {
        self.slots[at].lock().frozen = frozen;
    }

    /// The instances that run: number, life and address.
    pub fn instances(&self) -> Vec<(usize, usize, SocketAddr)> {
        let slots = self.slots.iter().enumerate();
        slots
            .filter_map(|(at, slot)| {
                let slot = slot.lock();
                slot.process.as_ref().map(|process| (at, slot.life, process.main))
            })
            .collect()
    }

    /// Those of them that answer: an operator asks no frozen one.
    pub fn responsive(&self) -> Vec<Arc<Tidegate>> {
        let there = self.slots.iter().map(|slot| slot.lock());
        there.filter(|slot| !slot.frozen).filter_map(|slot| slot.process.clone()).collect()
    }

    /// A slot that never held an instance.
    pub fn vacant(&self) -> Option<usize> {
        self.slots.iter().position(|slot| slot.lock().life == 0)
    }

    /// Seconds since the run began.
    pub fn now(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    /// Every key of the crowd has been sent.
    pub fn crowd_is_through(&self) {
        self.crowded.store(true, Ordering::SeqCst);
    }

    /// Waits for the crowd, at most ten seconds: a busy machine takes longer for so many keys.
    pub async fn crowd(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.crowded.load(Ordering::SeqCst) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends the traffic.
    pub fn close(&self) {
        self.open.store(false, Ordering::SeqCst);
    }
}

/// The binary under test: TIDEGATE_ADVERSARY_BINARY names another one, to see what an older one does.
fn binary(directory: &Path) -> Command {
    let Some(other) = std::env::var_os("TIDEGATE_ADVERSARY_BINARY") else { return command(directory) };
    let mut command = Command::new(other);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).current_dir(directory);
    command
}

/// An upstream that reports the cost that a request's path ends in.
async fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut held = Vec::new();
                while stream.read_buf(&mut held).await.is_ok_and(|read| read > 0) {
                    while let Some(end) = held.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                        let head = String::from_utf8_lossy(&held[..end]).into_owned();
                        held.drain(..end + 4);
                        let target = head.split(' ').nth(1).unwrap_or_default();
                        let cost = target.rsplit('/').next().unwrap_or_default();
                        let answer = format!(
                            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\nx-ratelimit-cost: {cost}\r\n\r\nyes"
                        );
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}
