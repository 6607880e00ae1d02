//! Inside: permissions, the real script, and whether the server is one that counters can live in.

use std::time::{Duration, Instant};

use super::info::{Info, bytes};
use super::report::spell;
use super::sentinels::{self, Told};
use super::{Examination, LEAST_PERMISSIONS, Latency, Stop, now};
use crate::limiter::store::{Fault, FaultKind};
use crate::redis::wire::{Probe, Reply, Wire};

/// Calls that the latency is judged by: enough that the 95th percentile is not the slowest one,
const CALLS: usize = 50;
/// and no longer than this in all.
const MEASURE_FOR: Duration = Duration::from_secs(3);
/// Clocks further apart than this deserve a look; no decision depends on it.
const SKEW: Duration = Duration::from_secs(1);
/// Memory in use, percent, from which it is time to act.
const NEARLY_FULL: u64 = 80;
/// The longest REDIS_TIMEOUT_MS that is accepted.
const LONGEST_TIMEOUT: u128 = 10_000;

pub(super) struct Inside<'d, 'a> {
    pub(super) examination: &'d mut Examination<'a>,
    pub(super) wire: Wire,
    /// On which key it is tried.
    pub(super) probe: Probe,
    /// Whether it is a node of a cluster.
    pub(super) is_node: bool,
    /// What the sentinels told, where there are any.
    pub(super) sentinels: Option<Told>,
}

impl Inside<'_, '_> {
    pub(super) async fn look(&mut self) -> Result<(), Stop> {
        self.permissions().await?;
        self.script().await?;
        let info = self.role().await?;
        if let Some(told) = self.sentinels.take() {
            sentinels::replicas(self.examination, &mut self.wire, info.as_ref(), &told).await?;
        }
        self.eviction(info.as_ref()).await?;
        self.memory(info.as_ref());
        self.clock().await?;
        self.latency().await?;
        self.plan();
        Ok(())
    }

    /// Each command that is needed, by itself, on the reserved key.
    async fn permissions(&mut self) -> Result<(), Stop> {
        self.examination.begin("permissions");
        let key = self.probe.key();
        let no_script = "0".repeat(40);
        let commands = [
            vec!["EVALSHA", &no_script, "1", &key],
            vec!["EVAL", "return 1", "1", &key],
            vec!["GET", &key],
            vec!["SET", &key, "0", "PX", "1000"],
            vec!["MGET", &key],
            vec!["TIME"],
        ];
        let (missing, said) = self.missing(&commands).await?;
        match said {
            None if self.sentinels.is_some() && self.may_not_see_role().await? => {
                self.examination.warn(
                    "missing: +role: a replica that takes writes would be taken for the master",
                    "ACL SETUSER … +role, beside what decisions need",
                );
                Ok(())
            }
            None => {
                let (missing, _) = self.missing(&of_the_fleet(&key)).await?;
                if missing.is_empty() {
                    self.examination.good(format!("{LEAST_PERMISSIONS} on {key}, and those of the fleet"));
                } else {
                    self.examination.warn(
                        format!(
                            "missing: {}: decisions do without, but instances do not share the list of members, overrides, or changes",
                            missing.join(" ")
                        ),
                        format!("ACL SETUSER … {}", missing.join(" ")),
                    );
                }
                Ok(())
            }
            Some(said) => {
                let fault =
                    Fault::new(FaultKind::Permission, format!("missing: {} ({said})", missing.join(" ")));
                Err(self.examination.failed(&fault))
            }
        }
    }

    /// Which of these commands the user may not run, and how the server says so.
    async fn missing(&mut self, commands: &[Vec<&str>]) -> Result<(Vec<String>, Option<Box<str>>), Stop> {
        let (mut missing, mut said) = (Vec::new(), None);
        for command in commands {
            match self.wire.ask(command).await {
                Err(fault) if fault.kind == FaultKind::Permission => {
                    missing.push(format!("+{}", command[0].to_ascii_lowercase()));
                    said.get_or_insert(fault.detail);
                }
                Err(fault) if matches!(fault.kind, FaultKind::Lost | FaultKind::Timeout) => {
                    return Err(self.examination.failed(&fault));
                }
                // Whatever else is wrong is wrong with more than the permission: the script will say it.
                _ => {}
            }
        }
        Ok((missing, said))
    }

    async fn may_not_see_role(&mut self) -> Result<bool, Stop> {
        match self.wire.ask(&["ROLE"]).await {
            Err(fault) if fault.kind == FaultKind::Permission => Ok(true),
            Err(fault) if matches!(fault.kind, FaultKind::Lost | FaultKind::Timeout) => {
                Err(self.examination.failed(&fault))
            }
            _ => Ok(false),
        }
    }

    /// What decides in production, on the key that the background proves connections on.
    async fn script(&mut self) -> Result<(), Stop> {
        self.examination.begin("script");
        let ran = match self.wire.run_script(&self.probe, now()).await {
            Ok(ran) => ran,
            Err(fault) if fault.kind == FaultKind::ReadOnly && self.sentinels.is_some() => {
                let cure = "a failover is on its way, or the sentinels do not know of one: run the doctor again in half a minute, then look at SENTINEL MASTER on each of them";
                return Err(self.examination.fail(&fault, Some(cure.into())));
            }
            Err(fault) => return Err(self.examination.failed(&fault)),
        };
        if !ran.allowed {
            let words =
                "the script denied a hit that has room: is something else writing keys of this namespace?";
            return Err(self.examination.failed(&Fault::new(FaultKind::Protocol, words)));
        }
        // Some services isolate every script with one lock unless it says this; real Redis refuses the word.
        let locking = "#!lua flags=allow-key-locking\nreturn 1";
        let locks_keys = match self.wire.ask(&["EVAL", locking, "0"]).await {
            Ok(_) => true,
            Err(fault) if matches!(fault.kind, FaultKind::Lost | FaultKind::Timeout) => {
                return Err(self.examination.failed(&fault));
            }
            Err(_) => false,
        };
        self.examination.report.key_locking = Some(locks_keys);
        let by_slot = match self.hides_a_cluster().await? {
            true => {
                "; one address hides a cluster (CROSSSLOT): a request whose policies count by several subjects is one call for each"
            }
            false => "",
        };
        let taught = if ran.taught { "it was not known yet, and is now" } else { "it was known already" };
        let locks = match locks_keys {
            true => {
                "; this server can lock by key (allow-key-locking), of which this version makes no use: its scripts run one at a time"
            }
            false => "",
        };
        self.examination.good(format!("it judges as it should; {taught}{locks}{by_slot}"));
        Ok(())
    }

    /// Whether this is no node of a cluster, and refuses keys of several slots all the same.
    async fn hides_a_cluster(&mut self) -> Result<bool, Stop> {
        if self.is_node {
            return Ok(false);
        }
        let namespace = self.examination.redis.namespace.clone();
        match self.wire.takes_several_slots(&namespace, now()).await {
            Ok(takes) => Ok(!takes),
            Err(fault) if matches!(fault.kind, FaultKind::Lost | FaultKind::Timeout) => {
                Err(self.examination.failed(&fault))
            }
            Err(_) => Ok(false),
        }
    }

    async fn role(&mut self) -> Result<Option<Info>, Stop> {
        self.examination.begin("role");
        let info = match self.wire.ask(&["INFO"]).await {
            Ok(Reply::Text(text)) => Info(text),
            Ok(_) => return Ok(self.without_info("INFO answers in another form")),
            Err(fault) if matches!(fault.kind, FaultKind::Lost | FaultKind::Timeout) => {
                return Err(self.examination.failed(&fault));
            }
            Err(fault) => return Ok(self.without_info(&format!("INFO: {}", fault.kind))),
        };
        let version = info.field("redis_version").unwrap_or("of unknown version").to_owned();
        let kind = match info.field("cluster_enabled") {
            Some("1") => "a primary of a cluster",
            _ => "a primary, no cluster",
        };
        match info.field("role") {
            Some("master") | None => self.examination.good(format!("Redis {version}, {kind}")),
            Some(role) => self.examination.warn(
                format!(
                    "Redis {version}, a {role} that takes writes: what it counts is lost when it synchronises"
                ),
                "point REDIS_URL at the primary's endpoint",
            ),
        }
        Ok(Some(info))
    }

    fn without_info(&mut self, why: &str) -> Option<Info> {
        self.examination.not_allowed(why);
        None
    }

    async fn eviction(&mut self, info: Option<&Info>) -> Result<(), Stop> {
        self.examination.begin("eviction");
        let mut policy = info.and_then(|info| info.field("maxmemory_policy")).map(str::to_owned);
        if policy.is_none() {
            match self.wire.ask(&["CONFIG", "GET", "maxmemory-policy"]).await {
                Ok(Reply::Text(text)) => policy = Some(text),
                Err(fault) if matches!(fault.kind, FaultKind::Lost | FaultKind::Timeout) => {
                    return Err(self.examination.failed(&fault));
                }
                _ => {}
            }
        }
        match policy.as_deref() {
            None => self.examination.not_allowed("neither INFO nor CONFIG GET tells the policy"),
            Some("noeviction") => self.examination.good(
                "noeviction: no counter is deleted; when memory is full Redis refuses to count and memory decides here",
            ),
            Some(policy) if policy.starts_with("allkeys-") => self.examination.warn(
                format!("{policy}: when memory is full it deletes counters, and the fleet's secret with them: limits start anew"),
                "use noeviction or volatile-lru, or set TIDEGATE_SECRET and see that memory never fills",
            ),
            Some("volatile-ttl") => self.examination.warn(
                "volatile-ttl: when memory is full it deletes the counters that expire first, which are those of the shortest limits",
                "use noeviction, and give it memory; where it has to evict, volatile-lru",
            ),
            Some(policy) => self.examination.good(format!(
                "{policy}: the fleet's secret stays; when memory is full it deletes counters, since each has an expiry"
            )),
        }
        Ok(())
    }

    fn memory(&mut self, info: Option<&Info>) {
        self.examination.begin("memory");
        let figure = |name| info.and_then(|info| info.number(name));
        let (used, most) = (figure("used_memory"), figure("maxmemory"));
        let (Some(used), Some(most)) = (used, most) else {
            return self.examination.not_allowed("INFO does not tell it");
        };
        if most == 0 {
            return self.examination.good(format!("{} in use, no limit of Redis' own", bytes(used)));
        }
        let share = used.saturating_mul(100) / most;
        let found = format!("{} of {} in use, {share} %", bytes(used), bytes(most));
        if share >= NEARLY_FULL {
            self.examination.warn(found, "give it memory; `tidegate cost` tells how much the policies need");
        } else {
            self.examination.good(found);
        }
    }

    async fn clock(&mut self) -> Result<(), Stop> {
        self.examination.begin("clock");
        let sent = now();
        let ran = match self.wire.run_script(&self.probe, sent).await {
            Ok(ran) => ran,
            Err(fault) => return Err(self.examination.failed(&fault)),
        };
        let here = sent + ran.took.as_micros() as u64 / 2;
        let skew = Duration::from_micros(here.abs_diff(ran.server_time));
        let side = if ran.server_time > here { "ahead of" } else { "behind" };
        let found = format!("the server's clock is {} {side} this one", spell(skew));
        if skew > SKEW {
            self.examination.warn(
                format!("{found}; limits go by the server's, log lines by this one"),
                "let NTP set both clocks",
            );
        } else {
            self.examination.good(found);
        }
        Ok(())
    }

    async fn latency(&mut self) -> Result<(), Stop> {
        self.examination.begin("latency");
        let (began, mut took) = (Instant::now(), Vec::with_capacity(CALLS));
        while took.len() < CALLS && began.elapsed() < MEASURE_FOR {
            match self.wire.run_script(&self.probe, now()).await {
                Ok(ran) => took.push(ran.took),
                Err(fault) => return Err(self.examination.failed(&fault)),
            }
        }
        took.sort_unstable();
        let latency = Latency {
            calls: took.len(),
            p50: percentile(&took, 50),
            p95: percentile(&took, 95),
            p99: percentile(&took, 99),
        };
        self.examination.report.latency = Some(latency);
        let Latency { calls, p50, p95, p99 } = latency;
        let found = format!("{calls} calls: P50 {}, P95 {}, P99 {}", spell(p50), spell(p95), spell(p99));
        let most = self.examination.redis.timeout;
        match advice(p95, most) {
            None => self.examination.good(format!("{found}; REDIS_TIMEOUT_MS is {}", most.as_millis())),
            Some(advice) => self.examination.warn(found, advice),
        }
        Ok(())
    }

    fn plan(&mut self) {
        self.examination.begin("plan");
        let redis = self.examination.redis;
        let Some(limit) = redis.commands_per_day else {
            return self.examination.skip(
                "redis.commands_per_day is not set; `tidegate cost` tells what the policies need against each plan",
            );
        };
        let limit = limit.get();
        let a_minute = limit as f64 / 1_440.0 / f64::from(redis.billed_per_call);
        self.examination.good(format!(
            "{limit} commands a day, {} a decision: {a_minute:.1} decisions a minute around the clock",
            redis.billed_per_call
        ));
    }
}

/// What to say of a 95th percentile that requests would not wait for.
fn advice(p95: Duration, timeout: Duration) -> Option<String> {
    if p95 <= timeout {
        return None;
    }
    // Twice the percentile, in steps of 50 ms: 62 makes 150.
    let measured = p95.as_micros().div_ceil(1_000);
    let better = (measured * 2).div_ceil(50) * 50;
    let timeout = timeout.as_millis();
    Some(match better {
        _ if better <= LONGEST_TIMEOUT => {
            format!("measured {measured} ms, REDIS_TIMEOUT_MS is {timeout}: set {better}")
        }
        _ => format!(
            "measured {measured} ms, REDIS_TIMEOUT_MS is {timeout}: no request can wait for that; use a Redis that is nearer"
        ),
    })
}

/// What the list of members, the overrides and the reset of a key need. The key is removed at last, whatever became of it.
fn of_the_fleet(key: &str) -> [Vec<&str>; 12] {
    [
        vec!["HSET", key, "f", "v"],
        vec!["HMGET", key, "f"],
        vec!["HGETALL", key],
        vec!["HLEN", key],
        vec!["HDEL", key, "f"],
        vec!["ZADD", key, "1", "m"],
        vec!["ZREM", key, "m"],
        vec!["ZCARD", key],
        vec!["ZRANGEBYSCORE", key, "0", "1"],
        vec!["GETRANGE", key, "0", "0"],
        vec!["DEL", key],
        vec!["UNLINK", key],
    ]
}

/// By the nearest rank; 0 of nothing.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_measured_latency_above_the_timeout_is_said_with_what_to_set() {
        let said = advice(ms(62), ms(50)).unwrap();
        assert_eq!(said, "measured 62 ms, REDIS_TIMEOUT_MS is 50: set 150");
        assert_eq!(advice(ms(50), ms(50)), None);
        assert!(advice(ms(6_000), ms(50)).unwrap().contains("nearer"));
    }

    #[test]
    fn percentiles_are_by_the_nearest_rank() {
        let hundred: Vec<Duration> = (1..=100).map(ms).collect();
        assert_eq!([50, 95, 99].map(|percent| percentile(&hundred, percent)), [ms(50), ms(95), ms(99)]);
        assert_eq!((percentile(&[ms(7)], 99), percentile(&[], 50)), (ms(7), ms(0)));
    }
}
