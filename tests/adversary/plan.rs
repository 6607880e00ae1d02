//! What a seed stands for: the servers, the limits, the clients and the acts of one run.

use std::fmt;

use crate::limits::{Quota, Rule};

/// What a run dwells on. Seeds take turns, so that five in a row cover all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Theme {
    /// Clients that hang up; a slow Redis, no act that disturbs it.
    HangUps,
    /// Redis breaks in every way.
    Storm,
    /// More keys than memory holds.
    Crowd,
    /// Operators change everything while requests flow.
    Operators,
    /// All of it.
    Mixed,
}

/// Which Redis the instances share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redis {
    None,
    /// One server behind a relay.
    Plain,
    /// Three masters.
    Cluster,
    /// Three masters with a replica each.
    Replicated,
}

/// How a client treats its connection and its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Waits for each answer, then for up to so many milliseconds.
    Patient(u64),
    /// Spends its burst, then waits until the bucket is full again: always within its limit.
    Obedient,
    /// Sends the next request at once.
    Hammer,
    /// Resets the connection so many microseconds after the request.
    HangUp(u64),
    /// Waits for the answer and resets the connection then.
    Leave,
    /// Resets the connection before the request is complete.
    Stub,
    /// Sends so many requests before it reads an answer.
    Pipeline(usize),
    /// So many keys, one request each.
    Crowd(usize),
    /// Goes through the gateway to an upstream that reports what the request really cost.
    Costly,
}

/// One client.
#[derive(Clone, Debug)]
pub struct Client {
    pub rule: usize,
    pub key: String,
    pub tenant: String,
    pub style: Style,
    /// Always the same instance; `None`: any, by chance.
    pub sticky: Option<usize>,
}

/// What happens during a run. Durations are in milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    Percent(u8),
    Rollback,
    /// The policy file with another limit in this rule and policy.
    Reload {
        rule: usize,
        policy: usize,
        quota: Quota,
    },
    /// Clears the debts of the key of a client.
    Reset {
        client: usize,
    },
    /// A limit of its own for the key of a client under a policy of its rule.
    Limit {
        client: usize,
        policy: usize,
        quota: Quota,
    },
    Exempt {
        client: usize,
    },
    Block {
        client: usize,
    },
    /// Deletes the override of a client.
    Lift {
        client: usize,
    },
    Flush,
    ScriptFlush,
    FreezeRedis(u64),
    /// Kills a server and starts it again, empty, after so long.
    KillRedis(u64),
    /// Kills a master and promotes its replica.
    Failover,
    /// Resets every connection to Redis.
    Cut,
    /// Resets connections and refuses new ones for so long.
    Refuse(u64),
    /// Swallows everything for so long.
    BlackHole(u64),
    /// Delays each answer of Redis by so much, for so long.
    Delay(u64, u64),
    FreezeInstance(usize, u64),
    /// Kills an instance and starts it again after so long.
    KillInstance(usize, u64),
    /// SIGTERM to an instance, which does not come back.
    Leave(usize),
    /// One more instance.
    Join,
    /// Redis' clock steps forward by so many seconds (negative: back).
    ClockStep(i64),
    /// The wall clock of an instance is ahead of the machine's by so many seconds from now on (negative: behind).
    InstanceClock(usize, i64),
}

/// All that a seed decides.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub theme: Theme,
    pub instances: usize,
    pub redis: Redis,
    pub percent: u8,
    /// Milliseconds that each answer of Redis is late.
    pub latency: u64,
    pub max_keys: usize,
    pub rules: Vec<Rule>,
    /// Each with its number: a shorter plan keeps the numbers of what is left.
    pub clients: Vec<(usize, Client)>,
    /// Each with its number, and milliseconds after the act before it.
    pub acts: Vec<(usize, u64, Act)>,
}

/// Milliseconds that traffic lasts.
pub const LASTS: u64 = 3_600;
/// The same where Redis has to come back: the wait for a connection, the warm-up and the window after it.
pub const STORM_LASTS: u64 = 4_800;

impl Plan {
    /// Instances that there can be, those that join included.
    pub fn most_instances(&self) -> usize {
        self.instances + self.acts.iter().filter(|(_, _, act)| *act == Act::Join).count()
    }

    /// Whether some act matches.
    pub fn has(&self, wanted: impl Fn(&Act) -> bool) -> bool {
        self.acts.iter().any(|(_, _, act)| wanted(act))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, theme, instances, redis, percent, latency, max_keys, .. } = self;
        writeln!(
            to,
            "seed {seed} ({theme:?}): {instances} instances, Redis {redis:?} {latency} ms away, {percent} %, \
             {max_keys} keys"
        )?;
        for rule in &self.rules {
            for policy in &rule.policies {
                let (by, quota, burst) = (policy.by, policy.quota.text(), policy.quota.burst);
                let window = if policy.quota.window { ", window" } else { "" };
                let shadow = if policy.shadow { ", shadow" } else { "" };
                writeln!(
                    to,
                    "  {}: {by:?} {quota} burst {burst}{window}{shadow}, cost {}, blocks after {:?}",
                    policy.name, rule.cost, policy.block_after
                )?;
            }
        }
        for (number, client) in &self.clients {
            let Client { rule, key, tenant, style, sticky } = client;
            writeln!(to, "  c{number}: r{rule} {key} {tenant} {style:?} sticky {sticky:?}")?;
        }
        for (number, after, act) in &self.acts {
            writeln!(to, "  a{number}: after {after} ms {act:?}")?;
        }
        Ok(())
    }
}
