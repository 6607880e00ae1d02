//! What a bucket may admit: the exact bound, and what each act adds to it.

use chrono::{DateTime, TimeDelta, Utc};

use crate::acts::Event;
use crate::limits::{By, Quota};
use crate::plan::{Act, Plan};

/// One bucket of a run: a policy and the value of its subject.
#[derive(Clone, Copy, Debug)]
pub struct Bucket<'a> {
    pub rule: usize,
    pub policy: usize,
    pub value: &'a str,
}

/// Which admissions are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of one process, whichever store decided.
    Process,
    /// Those that Redis decided, of all processes.
    Redis,
    /// Those that memory decided in Redis' place, of all processes, under random balancing.
    Fallback,
}

/// The part of the learned shares of a fleet that may be too much in sum: each is an estimate of some hundred samples.
const SHARES_IN_SUM: f64 = 1.5;

/// So many seconds after its wall clock was stepped an instance counts by the other time.
const CLOCK_IS_SEEN_WITHIN: f64 = 2.0;

/// What can have been in force for a bucket, and what was lost, and when.
pub struct Allowance {
    scope: Scope,
    instances: f64,
    began_at: DateTime<Utc>,
    /// From when to when a limit may have been in force; `None` is no limit.
    limits: Vec<(f64, f64, Option<Quota>)>,
    /// When a budget may have been lost, each once.
    losses: Vec<(f64, f64)>,
    /// When the key was being reset.
    resets: Vec<(f64, f64)>,
}

impl Allowance {
    /// The allowance of a bucket for the acts of a run.
    ///
    /// The bound over an interval Δ is `burst + Δ × limit / period`, for a calendar window `limit` for each window that Δ
    /// touches. To it each act adds, where the moment of the act (from its beginning until every instance has heard of
    /// it) meets Δ:
    ///
    /// | act | one process | decisions of Redis | fallback |
    /// |---|---|---|---|
    /// | `Reset` of the key | a burst, and all that is admitted until it is answered: a key with calls under way is cleared again | the same | the same |
    /// | `Limit`, `Reload`, `Lift` | the burst of each limit in force; the greatest rate counts for all of Δ | the same | the same |
    /// | `Exempt` | no bound while it may be in force | the same | the same |
    /// | `Flush`, `KillRedis`, `Failover` | nothing: its notes survive | a burst | nothing |
    /// | `ClockStep` forward | nothing | a burst | nothing |
    /// | `InstanceClock` | a burst, for calendar windows: memory counts in those of its wall clock | nothing | the same as one process |
    /// | `KillInstance`, `Leave`, `Join` | nothing: each process has a bound of its own | nothing | the new process has no estimate of its share |
    /// | `Percent`, `Rollback`, `ScriptFlush`, `Cut`, `Refuse`, `BlackHole`, `Delay`, `FreezeRedis`, `FreezeInstance`, `Block` | nothing | nothing | nothing |
    ///
    /// A move between N memories and one count needs no allowance here: what memory decided for itself counts for its
    /// process alone, and what Redis decided counts in Redis. In fallback each process serves its share of burst and
    /// rate, at least one unit; the shares come to 1, or to [`SHARES_IN_SUM`] as far as they are estimates.
    ///
    /// A client that did not wait for its answer counts as not admitted here, and as admitted where a denial has to be
    /// justified (see `denials.rs`).
    pub fn of(
        plan: &Plan,
        events: &[Event],
        bucket: Bucket<'_>,
        scope: Scope,
        began_at: DateTime<Utc>,
    ) -> Self {
        let policy = &plan.rules[bucket.rule].policies[bucket.policy];
        let is_key = |at: &usize| {
            let client = plan.clients.iter().find(|(number, _)| number == at).map(|(_, client)| client);
            client.is_some_and(|client| client.rule == bucket.rule && client.key == bucket.value)
        };
        let restarts = plan.has(|act| matches!(act, Act::KillInstance(..) | Act::Join));
        // An instance that starts may have missed a change until its next heartbeat.
        let settled = |event: &Event| if restarts { f64::INFINITY } else { event.settled };
        let mut base = vec![(f64::NEG_INFINITY, f64::INFINITY, Some(policy.quota))];
        // A state of its own ends where the next one has settled.
        let mut own: Vec<(f64, f64, Option<Option<Quota>>)> = vec![(f64::NEG_INFINITY, f64::INFINITY, None)];
        let (mut losses, mut resets) = (Vec::new(), Vec::new());
        for event in events {
            let state = match &event.act {
                Act::Reload { rule, policy, quota } if (*rule, *policy) == (bucket.rule, bucket.policy) => {
                    // A file that was written is read by each instance for itself, too.
                    base.last_mut().unwrap().1 = settled(event);
                    base.push((event.began, f64::INFINITY, Some(*quota)));
                    continue;
                }
                Act::Reset { client } if policy.by == By::Key && is_key(client) => {
                    losses.push((event.began, event.settled));
                    resets.push((event.began, event.settled));
                    continue;
                }
                Act::Flush | Act::KillRedis(_) | Act::Failover if scope == Scope::Redis => {
                    losses.push((event.began, event.settled));
                    continue;
                }
                Act::ClockStep(seconds) if scope == Scope::Redis && *seconds > 0 => {
                    losses.push((event.began, event.settled));
                    continue;
                }
                Act::InstanceClock(..) if scope != Scope::Redis && policy.quota.window => {
                    losses.push((event.began, event.settled + CLOCK_IS_SEEN_WITHIN));
                    continue;
                }
                Act::Limit { client, policy: other, quota } if policy.by == By::Key && is_key(client) => {
                    (*other == bucket.policy).then_some(Some(*quota))
                }
                Act::Exempt { client } if is_key(client) || policy.by != By::Key => Some(None),
                Act::Block { client } | Act::Lift { client } if policy.by == By::Key && is_key(client) => {
                    None
                }
                _ => continue,
            };
            own.last_mut().unwrap().1 = settled(event);
            own.push((event.began, f64::INFINITY, state));
        }
        let mut limits = Vec::new();
        for (from, to, state) in own {
            match state {
                Some(quota) => limits.push((from, to, quota)),
                None => limits.extend(
                    base.iter().map(|(begins, ends, quota)| (begins.max(from), ends.min(to), *quota)),
                ),
            }
        }
        limits.retain(|(from, to, _)| from <= to);
        let instances = plan.most_instances() + events.iter().filter(|event| restart(&event.act)).count();
        Self { scope, instances: instances as f64, began_at, limits, losses, resets }
    }

    /// The units that may be admitted between two moments.
    pub fn most(&self, from: f64, to: f64) -> f64 {
        let (mut burst, mut greatest, mut refill) = (0.0, 0.0_f64, 0.0_f64);
        for (begins, ends, quota) in &self.limits {
            if *begins > to || *ends < from {
                continue;
            }
            let Some(quota) = quota else { return f64::INFINITY };
            burst += f64::from(quota.burst);
            greatest = greatest.max(f64::from(quota.burst));
            refill = refill.max(quota.refill(to - from, self.borders(quota, from, to)));
        }
        let losses = self.losses.iter().filter(|(began, ended)| *began <= to && *ended >= from).count();
        let all = burst + losses as f64 * greatest + refill;
        match self.scope {
            Scope::Process | Scope::Redis => all,
            Scope::Fallback => self.instances + SHARES_IN_SUM * all,
        }
    }

    /// Whether a request may have been decided while its key was being reset.
    pub fn is_free(&self, sent: f64, ended: f64) -> bool {
        self.resets.iter().any(|(began, settled)| sent <= *settled && ended >= *began)
    }

    /// Whether the limit was the same all the time.
    pub fn is_constant(&self) -> bool {
        self.limits.len() == 1
    }

    fn borders(&self, quota: &Quota, from: f64, to: f64) -> u32 {
        if !quota.window {
            return 0;
        }
        // The servers' clocks and ours are read at different moments.
        let at = |seconds: f64| self.began_at + TimeDelta::microseconds((seconds * 1e6) as i64);
        (quota.window_at(at(to + 0.1)) - quota.window_at(at(from - 0.1))) as u32
    }
}

fn restart(act: &Act) -> bool {
    matches!(act, Act::KillInstance(..))
}
