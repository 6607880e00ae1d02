//! What the policies in force need of a Redis: commands, memory, connections.
//!
//! One decision is one script call, whatever the number of its policies; the script runs TIME, MGET, and a SET for each
//! policy that it charges. `tests/cli/cost.rs` counts them on a real server, and measures the bytes below.

use std::time::Duration;

use serde::Serialize;

use crate::limiter::clock::SECOND;
use crate::limiter::policy::{Policy, Rule, Rules};

/// What a bucket takes in Redis beside its name, expiry and the table's room included: at most this, measured on 7.0.
const BYTES_A_KEY: f64 = 230.0;
/// What a call takes on the wire beside its keys' names, both ways: at most this, measured.
const BYTES_A_CALL: f64 = 190.0;
/// What each policy adds to that beside its name.
const BYTES_A_POLICY: f64 = 140.0;
/// The keyed hash in a key, its braces and the colons.
const REST_OF_A_KEY: usize = 36;
/// The fleet's secret is looked at every ten minutes where Redis keeps it.
const SECRET_LOOKS: f64 = 144.0;
/// A heartbeat writes a row and reads all rows, the rollout's record, and one field about overrides, without a script.
const CALLS_A_BEAT: f64 = 4.0;
const COMMANDS_A_BEAT: f64 = 4.0;
/// Where Redis keeps the fleet's secret each heartbeat looks at it as well: one GET,
const SECRET_CALLS_A_BEAT: f64 = 1.0;
/// which takes this many bytes on the wire, both ways, beside the namespace: at most this, measured.
const SECRET_BYTES_A_BEAT: f64 = 130.0;
/// What a beat takes on the wire, both ways, and what each instance adds to that by its row: at most this, measured.
const BYTES_A_BEAT: f64 = 1_400.0;
const BYTES_A_ROW: f64 = 450.0;
/// Where there are more rows a beat reads so many on average.
const ROWS_A_BEAT: f64 = 100.0;
/// How often each instance of a quiet fleet reads the map of a cluster.
pub const MAP_INTERVAL: Duration = Duration::from_secs(60);
/// CLUSTER SLOTS and CLUSTER INFO, in one way there and back,
const CALLS_A_MAP: f64 = 2.0;
/// which take this many bytes, both ways, of a cluster of six nodes: at most this, measured.
const BYTES_A_MAP: f64 = 2_800.0;
/// Who knows of no other instance beats once a minute at most.
const SECONDS_ALONE: f64 = 60.0;
const SECONDS_A_DAY: f64 = 86_400.0;
/// The connection in use, the one that listens to the fleet, and for a moment one that takes the place of either.
const CONNECTIONS_AN_INSTANCE: u32 = 3;
/// A month that is reckoned with: the longest.
pub const DAYS_A_MONTH: f64 = 31.0;
/// Minutes of a day.
pub const MINUTES_A_DAY: f64 = 1_440.0;

/// How much traffic is reckoned with.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Load {
    /// Requests a minute, of the whole fleet.
    pub rpm: f64,
    /// Share of the keys that Redis decides, in percent.
    pub percent: f64,
    /// Instances.
    pub instances: u32,
    /// Different clients in the longest window of a policy; `None`: not known, so each request may be of another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clients: Option<u32>,
}

/// What that needs of a Redis, at most: each figure as if all requests met the rule that needs most of it.
#[derive(Clone, Debug, Serialize)]
pub struct Needs {
    /// The rule that needs most commands.
    pub rule: String,
    /// Script calls a decision, which are its round trips.
    pub calls_a_decision: u32,
    /// Commands a decision, those inside the script included.
    pub commands_a_decision: u32,
    /// Calls a day, the background's included.
    pub calls_a_day: f64,
    /// Commands a day, those inside scripts included.
    pub commands_a_day: f64,
    /// Calls in a second of even traffic.
    pub calls_a_second: f64,
    /// Keys alive at once.
    pub keys: f64,
    /// Their bytes.
    pub memory_bytes: f64,
    /// Connections.
    pub connections: u32,
    /// Bytes in and out a month.
    pub bandwidth_bytes_a_month: f64,
}

/// What instances ask of Redis besides decisions, and how their keys begin.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// The length of the namespace, in bytes.
    pub namespace: usize,
    /// Whether Redis keeps the fleet's secret.
    pub secret_in_redis: bool,
    /// From one heartbeat to the next; `None`: there are none.
    pub heartbeat: Option<Duration>,
    /// From one reading of the cluster's map to the next; `None`: it is not known to be a cluster.
    pub map_interval: Option<Duration>,
}

impl Needs {
    /// The greater of each figure.
    fn at_most(self, other: Self) -> Self {
        let rule = if other.commands_a_day > self.commands_a_day { other.rule } else { self.rule };
        Self {
            rule,
            calls_a_decision: self.calls_a_decision.max(other.calls_a_decision),
            commands_a_decision: self.commands_a_decision.max(other.commands_a_decision),
            calls_a_day: self.calls_a_day.max(other.calls_a_day),
            commands_a_day: self.commands_a_day.max(other.commands_a_day),
            calls_a_second: self.calls_a_second.max(other.calls_a_second),
            keys: self.keys.max(other.keys),
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
            connections: self.connections.max(other.connections),
            bandwidth_bytes_a_month: self.bandwidth_bytes_a_month.max(other.bandwidth_bytes_a_month),
        }
    }
}

/// What these rules need under this load, each figure by the rule that needs most of it; `None` when nothing is limited.
pub fn needs(rules: &Rules, habits: Habits, load: Load) -> Option<Needs> {
    let looks = if habits.secret_in_redis { SECRET_LOOKS } else { 0.0 };
    let (more_calls, more_bytes) = match habits.secret_in_redis {
        true => (SECRET_CALLS_A_BEAT, SECRET_BYTES_A_BEAT),
        false => (0.0, 0.0),
    };
    let background = Background {
        looks,
        maps: habits.map_interval.map_or(0.0, |every| SECONDS_A_DAY / every.as_secs_f64()),
        beats: beats_a_day(habits.heartbeat, load.instances),
        calls_a_beat: CALLS_A_BEAT + more_calls,
        commands_a_beat: COMMANDS_A_BEAT + more_calls,
        bytes_a_beat: BYTES_A_BEAT + more_bytes,
    };
    let of = |rule: &Rule| {
        let policies: Vec<&Policy> = rule.policies.iter().map(|&id| rules.policy(id)).collect();
        needs_of(rule, &policies, habits.namespace, background, load)
    };
    let limited = rules.all().iter().filter(|rule| !rule.policies.is_empty());
    limited.map(of).reduce(Needs::at_most)
}

/// What an instance asks of Redis a day besides decisions.
#[derive(Clone, Copy)]
struct Background {
    looks: f64,
    maps: f64,
    beats: f64,
    calls_a_beat: f64,
    commands_a_beat: f64,
    bytes_a_beat: f64,
}

fn beats_a_day(heartbeat: Option<Duration>, instances: u32) -> f64 {
    let Some(every) = heartbeat else { return 0.0 };
    let seconds = every.as_secs_f64();
    SECONDS_A_DAY / if instances > 1 { seconds } else { seconds.max(SECONDS_ALONE) }
}

fn needs_of(
    rule: &Rule,
    policies: &[&Policy],
    namespace: usize,
    background: Background,
    load: Load,
) -> Needs {
    // A bucket that all share moves last: below 100 % Redis has no part of it.
    let is_there = |policy: &&&Policy| load.percent >= 100.0 || !policy.by.is_everyone();
    let policies: Vec<&Policy> = policies.iter().filter(is_there).copied().collect();
    let count = policies.len() as f64;
    let mut subjects: Vec<String> =
        policies.iter().map(|policy| format!("{:?}", policy.by.parts())).collect();
    subjects.sort();
    subjects.dedup();
    // A request asks Redis when any of its subjects is decided there.
    let share = (load.percent / 100.0 * subjects.len() as f64).min(1.0);
    let Background { looks, maps, beats, calls_a_beat, commands_a_beat, bytes_a_beat } = background;
    // At 0 % as well: an instance that is ready for a percentage is connected, and there for its fleet.
    let instances = f64::from(load.instances);
    let of_background = |a_beat: f64| instances * (looks + maps * CALLS_A_MAP + beats * a_beat);
    let calls = load.rpm * MINUTES_A_DAY * share;
    let inside = 2.0 + count;
    let names: usize = policies.iter().map(|policy| policy.name.len() + namespace + REST_OF_A_KEY).sum();
    let keys_of = |policy: &&Policy| {
        // Little's law: a hit keeps its key alive as long as its debt lasts, and no longer.
        let lives = match &policy.calendar {
            None => policy.quota.charge(rule.cost),
            Some(calendar) => calendar.unit().length().unwrap_or(31 * 24 * 3_600 * SECOND),
        };
        let share = load.percent / 100.0;
        let of_requests = load.rpm / 60.0 * share * (lives as f64 / SECOND as f64);
        let of_clients = load.clients.map_or(f64::INFINITY, |clients| f64::from(clients) * share);
        let most = if policy.by.is_everyone() { 1.0 } else { of_clients };
        of_requests.min(most)
    };
    let alive: Vec<f64> = policies.iter().map(|policy| keys_of(policy).ceil()).collect();
    let memory = alive
        .iter()
        .zip(&policies)
        .map(|(keys, policy)| keys * (BYTES_A_KEY + (policy.name.len() + namespace + REST_OF_A_KEY) as f64));
    let wire = BYTES_A_CALL + BYTES_A_POLICY * count + names as f64;
    Needs {
        rule: rule.name.to_string(),
        calls_a_decision: 1,
        commands_a_decision: 1 + inside as u32,
        calls_a_day: calls + of_background(calls_a_beat),
        commands_a_day: calls * (1.0 + inside) + of_background(commands_a_beat),
        calls_a_second: load.rpm / 60.0 * share,
        keys: alive.iter().sum(),
        memory_bytes: memory.sum(),
        connections: CONNECTIONS_AN_INSTANCE * load.instances,
        bandwidth_bytes_a_month: DAYS_A_MONTH
            * (calls * wire
                + instances
                    * (beats * (bytes_a_beat + BYTES_A_ROW * instances.min(ROWS_A_BEAT))
                        + maps * BYTES_A_MAP)),
    }
}

#[cfg(test)]
#[path = "needs_tests.rs"]
mod tests;
