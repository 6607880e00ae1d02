//! One run of a plan: from the first process to all that its clients received.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::acts::{self, Event, STEP_BEGINS};
use crate::check::{Finding, Kind};
use crate::client::{self, Outcome, Record};
use crate::limits::By;
use crate::plan::{LASTS, Plan, STORM_LASTS, Theme};
use crate::support::redis_server::RedisServer;
use crate::wire::{self, Connection};
use crate::world::World;

/// What became of a plan.
pub struct Run {
    pub plan: Plan,
    pub records: Vec<Record>,
    pub events: Vec<Event>,
    pub began_at: DateTime<Utc>,
    /// Seconds that it lasted.
    pub ended: f64,
    /// Of each bucket that all share: rule, policy, the instance that was asked, what is left.
    pub left: Vec<(usize, usize, usize, f64)>,
    /// Requests that memory decided in Redis' place, as the instances count them.
    pub fallbacks: u64,
    /// Calls of scripts that the redis-servers counted.
    pub calls: u64,
    /// Which share of the traffic each instance believes to see, before the traffic and at its end.
    pub shares: Vec<String>,
    /// What is wrong with the processes themselves.
    pub servers: Vec<Finding>,
}

/// What a process holds.
#[derive(Clone, Copy, Debug)]
struct Usage {
    threads: usize,
    files: usize,
    mebibytes: usize,
}

impl Usage {
    /// `None` of a process that is gone.
    fn of(pid: u32) -> Option<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(Self {
            threads: std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.count(),
            files: std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count(),
            mebibytes: kibibytes.split_whitespace().next()?.parse::<usize>().ok()? / 1024,
        })
    }

    /// What grew by more than a run explains: threads of the pools, connections that idle, buckets of some thousand keys.
    fn is_far_above(&self, before: &Self) -> bool {
        self.threads > before.threads + 40
            || self.files > before.files + 150
            || self.mebibytes > before.mebibytes + 200
    }
}

/// Runs a plan.
pub async fn run(plan: Plan) -> Run {
    let world = World::start(plan.clone()).await;
    let before: Vec<(u32, Option<Usage>)> =
        world.responsive().iter().map(|process| (process.pid(), Usage::of(process.pid()))).collect();
    let believed = shares(&world).await;
    let clients = plan
        .clients
        .iter()
        .map(|(number, client)| tokio::spawn(client::run(world.clone(), *number, client.clone())));
    let clients: Vec<_> = clients.collect();
    let ends = tokio::time::Instant::now()
        + Duration::from_millis(if plan.theme == Theme::Storm { STORM_LASTS } else { LASTS });
    let events = acts::perform(&world).await;
    // The clients see some of what the last act leaves.
    tokio::time::sleep(Duration::from_millis(600)).await;
    tokio::time::sleep_until(ends).await;
    world.crowd().await;
    world.close();
    let mut records = Vec::new();
    for client in clients {
        records.extend(client.await.unwrap());
    }
    // What was begun for clients that are gone is finished.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (left, fallbacks) = (look(&world).await, fallbacks(&world).await);
    let (mut servers, mut calls) = (Vec::new(), 0);
    let shares = [believed, shares(&world).await].concat();
    for server in world.redis.lock().iter() {
        calls += calls_of_scripts(server).unwrap_or(0);
        servers.extend(slow_calls(server));
    }
    for (pid, usage) in before {
        if let (Some(before), Some(after)) = (usage, Usage::of(pid))
            && after.is_far_above(&before)
        {
            let evidence = format!("{after:?} after, {before:?} before");
            servers.push(Finding { kind: Kind::Resources, evidence });
        }
    }
    records.sort_by(|one, other| one.sent.total_cmp(&other.sent));
    let (began_at, ended) = (world.began_at, world.now());
    Run { plan, records, events, began_at, ended, left, fallbacks, calls, shares, servers }
}

/// Sends each instance one request of a client that never came before, for each rule with a bucket that all share.
async fn look(world: &World) -> Vec<(usize, usize, usize, f64)> {
    let mut left = Vec::new();
    for (instance, _, address) in world.instances() {
        for (at, rule) in world.plan.rules.iter().enumerate() {
            let shared = rule.policies.iter().position(|policy| policy.by == By::Everyone);
            let Some(policy) = shared else { continue };
            let Ok(mut connection) = Connection::to(address).await else { continue };
            let key = format!("bystander-{instance}");
            if connection.send(&wire::request(&rule.name, &key, &key, rule.cost)).await.is_err() {
                continue;
            }
            if let Ok(answer) = connection.answer().await
                && let Some(units) = answer.left(&rule.policies[policy].name)
            {
                left.push((at, policy, instance, units));
            }
        }
    }
    left
}

async fn shares(world: &World) -> Vec<String> {
    let mut shares = Vec::new();
    for process in world.responsive() {
        shares.push(process.status().await["fallback_share"].to_string());
    }
    shares
}

async fn fallbacks(world: &World) -> u64 {
    let mut all = 0;
    for process in world.responsive() {
        let metrics = process.metrics().await;
        let lines = metrics.lines().filter(|line| line.starts_with("tidegate_fallbacks_total"));
        all += lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>();
    }
    all
}

fn connection(server: &RedisServer) -> Option<redis::Connection> {
    server.client().get_connection_with_timeout(Duration::from_secs(1)).ok()
}

fn calls_of_scripts(server: &RedisServer) -> Option<u64> {
    let stats: String = redis::cmd("INFO").arg("commandstats").query(&mut connection(server)?).ok()?;
    let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="))?;
    line.split(',').next()?.parse().ok()
}

/// An entry of SLOWLOG: number, time, microseconds, words, address and name of the client.
type Entry = (i64, i64, u64, Vec<Vec<u8>>, String, String);

/// The commands of instances: decisions, and what they do in the background.
const OF_INSTANCES: [&str; 17] = [
    "EVALSHA",
    "EVAL",
    "GET",
    "SET",
    "MGET",
    "DEL",
    "PUBLISH",
    "UNLINK",
    "GETRANGE",
    "HSET",
    "HGET",
    "HMGET",
    "HGETALL",
    "HLEN",
    "HDEL",
    "ZRANGEBYSCORE",
    "ZCARD",
];

/// Commands that took a millisecond of Redis' thread in three of four calls: one that another process held up is late
/// once, one that has too much to do is slow each time.
fn slow_calls(server: &RedisServer) -> Vec<Finding> {
    const MOST: u64 = 1_000;
    let Some(mut connection) = connection(server) else { return Vec::new() };
    let entries = redis::cmd("SLOWLOG").arg("GET").arg(-1).query::<Vec<Entry>>(&mut connection);
    let mut kinds = std::collections::BTreeMap::<String, Vec<u64>>::new();
    for (_, _, took, words, ..) in entries.unwrap_or_default() {
        let word = |at: usize| {
            words.get(at).map(|word| String::from_utf8_lossy(word).into_owned()).unwrap_or_default()
        };
        // What the tests ask themselves is none of the instances' calls.
        if !OF_INSTANCES.contains(&word(0).to_uppercase().as_str()) || word(1).starts_with(STEP_BEGINS) {
            continue;
        }
        let key = word(3).split(['{', ':']).nth(1).unwrap_or_default().to_owned();
        let what: String = word(1).chars().take(60).collect();
        kinds.entry(format!("{} {what} {key}", word(0))).or_default().push(took);
    }
    let mut findings = Vec::new();
    for (kind, mut took) in kinds {
        took.sort_unstable();
        let quarter = took[took.len() / 4];
        if took.len() >= 4 && quarter > MOST {
            let evidence = format!("{kind}: {quarter} µs in three of four of {} calls", took.len());
            findings.push(Finding { kind: Kind::SlowCall, evidence });
        }
    }
    findings
}

impl Run {
    /// What the run consisted of, in one line.
    pub fn summary(&self) -> String {
        let mut outcomes = std::collections::BTreeMap::<String, usize>::new();
        for record in &self.records {
            let word = match &record.outcome {
                Outcome::Admitted(label) => format!("admitted by {label:?}"),
                Outcome::Denied(label, _) => format!("denied by {label:?}"),
                other => format!("{other:?}"),
            };
            *outcomes.entry(word).or_default() += 1;
        }
        let outcomes: Vec<String> = outcomes.iter().map(|(word, count)| format!("{count} {word}")).collect();
        let Self { ended, fallbacks, calls, left, shares, .. } = self;
        format!(
            "{ended:.1} s, {}; {fallbacks} fallbacks, {calls} calls, left {left:?}, shares {}",
            outcomes.join(", "),
            shares.join(" ")
        )
    }
}
