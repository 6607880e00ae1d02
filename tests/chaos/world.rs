//! The processes of a run: Redis, the instances, a relay for each way between them, and for each instance a disk and a wall
//! clock of its own. What is done to them is written down.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::history::{Life, Trouble, Victim};
use crate::plan::{Plan, Spoil, Way};
use crate::support::full_disk::FullDisk;
use crate::support::process::{Tidegate, command};
use crate::support::redis_server::{RedisServer, free_port, signal};
use crate::support::relay::Relay;
use crate::support::shifted_clock::ShiftedClock;

/// A bucket that no run empties.
const POLICIES: &str = r#"
[[rule]]
name = "default"
  [[rule.policy]]
  name = "p"
  by = "header:x-api-key"
  limit = "1000000/second"
"#;

/// A fleet and what it depends on.
pub struct World {
    pub plan: Plan,
    redis: Mutex<RedisServer>,
    slots: Vec<Slot>,
    to_redis: Vec<Relay>,
    /// By from and to; `None` from an instance to itself.
    between: Vec<Vec<Option<Relay>>>,
    began: Instant,
    pub began_at: DateTime<Utc>,
    pub log: Mutex<Log>,
    pub http: reqwest::Client,
}

/// What was done.
#[derive(Default)]
pub struct Log {
    pub troubles: Vec<Trouble>,
    pub lives: Vec<Life>,
    pub losses: Vec<f64>,
    pub steps: Vec<(usize, f64)>,
}

struct Slot {
    state: Mutex<State>,
    /// It outlives its processes: the database is in it.
    directory: TempDir,
    port: u16,
    clock: ShiftedClock,
    disk: FullDisk,
}

struct State {
    process: Option<Arc<Tidegate>>,
    life: usize,
    percent: u8,
    fresh: bool,
    stopped: bool,
    full: bool,
}

impl World {
    /// Starts everything and waits until the instances know Redis and one another.
    pub async fn start(plan: Plan) -> Arc<Self> {
        let redis = RedisServer::start();
        let instances = plan.instances();
        let mut slots = Vec::new();
        for &percent in &plan.percents {
            let directory = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(directory.path().join("config")).unwrap();
            std::fs::write(directory.path().join("config/policies.toml"), POLICIES).unwrap();
            let state = State { process: None, life: 0, percent, fresh: true, stopped: false, full: false };
            let (clock, disk) = (ShiftedClock::ahead(0), FullDisk::with_room());
            slots.push(Slot { state: Mutex::new(state), directory, port: free_port(), clock, disk });
        }
        let (mut to_redis, mut between) = (Vec::new(), Vec::new());
        for from in 0..instances {
            to_redis.push(Relay::to(redis.port).await);
            let mut ways = Vec::new();
            for (to, slot) in slots.iter().enumerate() {
                ways.push(if from == to { None } else { Some(Relay::to(slot.port).await) });
            }
            between.push(ways);
        }
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(8).build().unwrap();
        let running = plan.running;
        let world = Arc::new(Self {
            plan,
            redis: Mutex::new(redis),
            slots,
            to_redis,
            between,
            began: Instant::now(),
            began_at: Utc::now(),
            log: Mutex::default(),
            http,
        });
        // The first alone: at once on an empty Redis all of them would be the first.
        for at in 0..running {
            world.start_instance(at).await;
            world.process(at).unwrap().connected().await;
        }
        for at in 0..running {
            let process = world.process(at).unwrap();
            crate::support::until("every instance knows all", async || {
                process.status().await["fleet"]["instances"] == running
            })
            .await;
        }
        world
    }

    /// Starts an instance that does not run.
    pub async fn start_instance(&self, at: usize) {
        let slot = &self.slots[at];
        let (percent, fresh) = {
            let state = slot.state.lock();
            if state.process.is_some() {
                return;
            }
            (state.percent.to_string(), state.fresh)
        };
        let peers = self.between[at].iter().flatten().map(|relay| relay.address.to_string());
        let peers = peers.collect::<Vec<_>>().join(",");
        let (admin, name) = (format!("127.0.0.1:{}", slot.port), format!("instance-{at}"));
        let url = format!("redis://{}", self.to_redis[at].address);
        let (clock, disk) = (slot.clock.variables(), slot.disk.variables());
        let preload = format!("{}:{}", clock[0].1, disk[0].1);
        let variables = [
            ("ADMIN_ADDR", &*admin),
            ("TIDEGATE__FLEET__NAME", &*name),
            ("TIDEGATE_PEERS", &*peers),
            ("TIDEGATE_SECRET", "the secret of a fleet in chaos"),
            ("TIDEGATE__FLEET__HEARTBEAT_S", "1"),
            ("TIDEGATE__LOGGING__REQUESTS", "false"),
            ("TIDEGATE__SERVER__WORKERS", "1"),
            ("REDIS_URL", &*url),
            // Longer than a busy machine holds a process up.
            ("REDIS_TIMEOUT_MS", "2000"),
            ("TIDEGATE__REDIS__RECONNECT_INTERVAL_S", "1"),
            ("TIDEGATE__REDIS__WARM_UP_S", "0"),
            ("RATE_LIMIT_CANARY_PERCENT", &*percent),
            ("LD_PRELOAD", &*preload),
            (clock[1].0, clock[1].1),
            (disk[1].0, disk[1].1),
        ];
        let directory = slot.directory.path().to_owned();
        let from = self.now();
        let here = |_: &Path| binary(&directory);
        let process = Tidegate::start_by(here, tempfile::tempdir().unwrap(), &variables).await;
        let mut state = slot.state.lock();
        state.process = Some(Arc::new(process));
        state.life += 1;
        state.fresh = false;
        let (life, percent, to) = (state.life, state.percent, f64::INFINITY);
        drop(state);
        self.log.lock().lives.push(Life { at, life, from, to, percent, fresh });
    }

    /// Ends an instance by SIGKILL or SIGTERM and waits for its end.
    pub async fn end_instance(&self, at: usize, name: &str) {
        self.resume(at);
        let (process, life) = {
            let mut state = self.slots[at].state.lock();
            (state.process.take(), state.life)
        };
        let Some(process) = process else { return };
        {
            let (mut log, now) = (self.log.lock(), self.now());
            log.lives.iter_mut().filter(|one| (one.at, one.life) == (at, life)).for_each(|one| one.to = now);
        }
        let pid = process.pid();
        signal(pid, name);
        // One that ends in an orderly way finishes what it was asked, for longer than the next start waits.
        for end in [5, 5] {
            let deadline = Instant::now() + Duration::from_secs(end);
            while !is_over(pid) && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            if is_over(pid) {
                break;
            }
            signal(pid, "KILL");
        }
        // A watcher that asks it at this moment drops it last.
        drop(process);
    }

    /// From now on an instance starts with this percentage.
    pub fn set_percent(&self, at: usize, percent: u8) {
        self.slots[at].state.lock().percent = percent;
    }

    pub fn process(&self, at: usize) -> Option<Arc<Tidegate>> {
        self.slots[at].state.lock().process.clone()
    }

    /// The process, and which of its instance it is.
    pub fn alive(&self, at: usize) -> Option<(Arc<Tidegate>, usize)> {
        let state = self.slots[at].state.lock();
        state.process.clone().map(|process| (process, state.life))
    }

    pub fn stop(&self, at: usize) {
        let mut state = self.slots[at].state.lock();
        let Some(process) = state.process.clone() else { return };
        if !std::mem::replace(&mut state.stopped, true) {
            self.begins(Victim::Process(at));
            signal(process.pid(), "STOP");
        }
    }

    pub fn resume(&self, at: usize) {
        let mut state = self.slots[at].state.lock();
        if std::mem::replace(&mut state.stopped, false) {
            if let Some(process) = &state.process {
                signal(process.pid(), "CONT");
            }
            self.ends(Victim::Process(at));
        }
    }

    fn relay(&self, way: Way) -> (Option<&Relay>, Victim) {
        match way {
            Way::Redis(at) => (self.to_redis.get(at), Victim::ToRedis(at)),
            Way::Peer(from, to) => (self.between[from][to].as_ref(), Victim::Between(from, to)),
        }
    }

    pub fn spoil(&self, way: Way, how: Spoil) {
        let (Some(relay), victim) = self.relay(way) else { return };
        self.begins(victim);
        match how {
            Spoil::Cut => relay.refuse(),
            Spoil::Freeze => relay.black_hole(),
            Spoil::Delay(by) => relay.delay(Duration::from_millis(by)),
        }
    }

    pub fn mend(&self, way: Way) {
        let (Some(relay), victim) = self.relay(way) else { return };
        relay.accept();
        relay.thaw();
        relay.delay(Duration::ZERO);
        self.ends(victim);
    }

    /// All ways from and to an instance.
    pub fn ways(&self, at: usize) -> Vec<Way> {
        let others = (0..self.slots.len()).filter(|other| *other != at);
        let peers = others.flat_map(|other| [Way::Peer(at, other), Way::Peer(other, at)]);
        peers.chain([Way::Redis(at)]).collect()
    }

    pub fn flush(&self) {
        self.log.lock().losses.push(self.now());
        let redis = self.redis.lock();
        if let Ok(mut connection) = redis.client().get_connection_with_timeout(Duration::from_millis(500)) {
            let _ = redis::cmd("FLUSHALL").query::<redis::Value>(&mut connection);
        }
        self.log.lock().losses.push(self.now());
    }

    pub fn kill_redis(&self) {
        let open = self.log.lock().troubles.iter().any(|one| is_open(one, Victim::Redis));
        if !open {
            self.begins(Victim::Redis);
            self.log.lock().losses.push(self.now());
            self.redis.lock().kill();
        }
    }

    pub fn start_redis(&self) {
        let open = self.log.lock().troubles.iter().any(|one| is_open(one, Victim::Redis));
        if open {
            self.redis.lock().restart();
            self.log.lock().losses.push(self.now());
            self.ends(Victim::Redis);
        }
    }

    pub fn set_clock(&self, at: usize, seconds: i64) {
        self.slots[at].clock.set_ahead(seconds * 1_000_000);
        let now = self.now();
        self.log.lock().steps.push((at, now));
    }

    pub fn remove_disk(&self, at: usize) {
        self.begins(Victim::Disk(at));
        let slot = &self.slots[at];
        let _ = std::fs::remove_dir_all(slot.directory.path().join("data"));
        slot.state.lock().fresh = true;
        self.ends(Victim::Disk(at));
    }

    pub fn fill_disk(&self, at: usize, is_full: bool) {
        let slot = &self.slots[at];
        if std::mem::replace(&mut slot.state.lock().full, is_full) == is_full {
            return;
        }
        slot.disk.set_full(is_full);
        match is_full {
            true => self.begins(Victim::Disk(at)),
            false => self.ends(Victim::Disk(at)),
        }
    }

    /// Seconds since the run began.
    pub fn now(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// A moment of the machine's wall clock as seconds since the run began.
    pub fn since_began(&self, moment: &str) -> Option<f64> {
        let moment = DateTime::parse_from_rfc3339(moment).ok()?;
        Some((moment.with_timezone(&Utc) - self.began_at).as_seconds_f64())
    }

    fn begins(&self, victim: Victim) {
        let (mut log, from) = (self.log.lock(), self.now());
        log.troubles.push(Trouble { victim, from, to: f64::INFINITY });
    }

    fn ends(&self, victim: Victim) {
        let (mut log, now) = (self.log.lock(), self.now());
        log.troubles.iter_mut().filter(|one| is_open(one, victim)).for_each(|one| one.to = now);
    }
}

fn is_open(trouble: &Trouble, victim: Victim) -> bool {
    trouble.victim == victim && trouble.to.is_infinite()
}

/// Whether a process has ended, with all its threads: until then they hold its ports. Its parent may not have looked yet.
fn is_over(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    threads <= 1 && stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim().starts_with('Z'))
}

/// The binary under test: TIDEGATE_CHAOS_BINARY names another one, to see what an older one does.
fn binary(directory: &Path) -> Command {
    let Some(other) = std::env::var_os("TIDEGATE_CHAOS_BINARY") else { return command(directory) };
    let mut command = Command::new(other);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).current_dir(directory);
    command
}
