//! Holds what clients received against the bounds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::bound::{Allowance, Bucket, Scope};
use crate::client::{Label, Outcome, Record};
use crate::limits::By;
use crate::plan::{Act, Plan, Redis, Theme};
use crate::run::Run;

/// What is wrong. Shrinking looks for the same kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// More was admitted than one process may.
    ProcessBound,
    /// More was admitted by Redis than one count allows.
    RedisBound,
    /// More was admitted in Redis' place than the shares allow.
    FallbackBound,
    /// A denial that no count justifies.
    Denial,
    /// A block without an override and without enough throttled requests.
    Block,
    /// A blocked client was admitted.
    NotBlocked,
    /// A bucket moved by more than what was admitted.
    Drained,
    /// More calls to Redis than the traffic explains.
    Calls,
    /// A command that holds Redis' thread for too long.
    SlowCall,
    /// Threads, file descriptors or memory.
    Resources,
}

/// One violation, with its evidence.
#[derive(Clone, Debug)]
pub struct Finding {
    pub kind: Kind,
    pub evidence: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{:?}: {}", self.kind, self.evidence)
    }
}

/// The value by which a policy counts a request.
pub fn value(by: By, record: &Record) -> &str {
    match by {
        By::Key => &record.key,
        By::Tenant => &record.tenant,
        By::Everyone => "",
    }
}

/// Every bucket that the requests of a run touched.
pub fn buckets<'a>(plan: &Plan, records: &'a [Record]) -> Vec<(Bucket<'a>, Vec<&'a Record>)> {
    let mut all: BTreeMap<(usize, usize, &str), Vec<&Record>> = BTreeMap::new();
    for record in records {
        for (policy, of_rule) in plan.rules[record.rule].policies.iter().enumerate() {
            all.entry((record.rule, policy, value(of_rule.by, record))).or_default().push(record);
        }
    }
    all.into_iter()
        .map(|((rule, policy, value), records)| (Bucket { rule, policy, value }, records))
        .collect()
}

/// All violations of a run.
pub fn findings(run: &Run) -> Vec<Finding> {
    let mut findings = bounds(run);
    findings.extend(crate::denials::findings(run));
    findings.extend(drained(run));
    findings.extend(run.servers.clone());
    findings.extend(calls(run));
    findings
}

fn bounds(run: &Run) -> Vec<Finding> {
    let plan = &run.plan;
    // Under sticky balancing an instance rightly serves nearly all of its clients' limit.
    let random = plan.clients.iter().all(|(_, client)| client.sticky.is_none());
    let mut findings = Vec::new();
    for (bucket, records) in buckets(plan, &run.records) {
        if plan.rules[bucket.rule].policies[bucket.policy].shadow {
            continue;
        }
        let processes: BTreeSet<(usize, usize)> =
            records.iter().map(|record| (record.instance, record.life)).collect();
        let check = |scope, kind, counts: &dyn Fn(&Record, Label) -> bool| {
            let allowance = Allowance::of(plan, &run.events, bucket, scope, run.began_at);
            excess(plan, &records, &allowance, counts).map(|(units, most, from, to)| {
                let name = &plan.rules[bucket.rule].policies[bucket.policy].name;
                let evidence = format!(
                    "{name} of \"{}\": {units} units admitted from {from:.3} s to {to:.3} s, at most {most:.2}",
                    bucket.value
                );
                Finding { kind, evidence }
            })
        };
        for (instance, life) in processes {
            let of_process = |record: &Record, _| (record.instance, record.life) == (instance, life);
            findings.extend(check(Scope::Process, Kind::ProcessBound, &of_process));
        }
        findings.extend(check(Scope::Redis, Kind::RedisBound, &|_, label| label == Label::Redis));
        // The answer has one label: of a request whose subjects are in two places it may be that of the other one, while
        // memory is the wanted store of this one and each instance has a budget of its own.
        let of_rule = &plan.rules[bucket.rule].policies;
        let is_one_place = of_rule.iter().all(|policy| policy.by == of_rule[0].by)
            || plan.percent == 100 && !plan.has(|act| matches!(act, Act::Percent(_) | Act::Rollback));
        if random && is_one_place {
            findings
                .extend(check(Scope::Fallback, Kind::FallbackBound, &|_, label| label == Label::Fallback));
        }
    }
    findings
}

/// The interval in which most was admitted beyond what is allowed: units, bound, beginning and end.
fn excess(
    plan: &Plan,
    records: &[&Record],
    allowance: &Allowance,
    counts: &dyn Fn(&Record, Label) -> bool,
) -> Option<(f64, f64, f64, f64)> {
    let mut admitted: Vec<(f64, f64, f64)> = records
        .iter()
        .filter_map(|record| {
            let Outcome::Admitted(label) = record.outcome else { return None };
            let cost = plan.rules[record.rule].cost;
            let units = record.actual.unwrap_or(cost).min(cost);
            let counted = counts(record, label) && !allowance.is_free(record.sent, record.ended);
            counted.then_some((record.sent, record.ended, f64::from(units)))
        })
        .collect();
    admitted.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut greatest = None;
    // A microsecond of drain may be missing between two clocks.
    let mut beyond = 1e-3;
    for first in 0..admitted.len() {
        // What was sent after this one was sent was admitted between that moment and its own answer.
        let (from, mut to, mut units) = (admitted[first].0, 0.0_f64, 0.0);
        for &(_, ended, cost) in &admitted[first..] {
            to = to.max(ended);
            units += cost;
            let most = allowance.most(from, to);
            if units > most + beyond {
                beyond = units - most;
                greatest = Some((units, most, from, to));
            }
        }
    }
    greatest
}

/// The buckets that all clients share, at the end: what is missing must have been admitted, or may have been.
fn drained(run: &Run) -> Vec<Finding> {
    let mut findings = Vec::new();
    // In Redis' place a charge stands for those of the other instances as well.
    let comparable = run.fallbacks == 0;
    for (rule, policy, instance, left) in run.left.iter().filter(|_| comparable) {
        let shared = &run.plan.rules[*rule].policies[*policy];
        let bucket = Bucket { rule: *rule, policy: *policy, value: "" };
        if !Allowance::of(&run.plan, &run.events, bucket, Scope::Process, run.began_at).is_constant() {
            continue;
        }
        // In memory each instance has a count of its own; in Redis one counts for all.
        let apart = run.is_calm() && run.plan.percent < 100;
        let mut by_key: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
        let of_rule = run.records.iter().filter(|record| record.rule == *rule);
        for record in of_rule.filter(|record| !apart || record.instance == *instance) {
            by_key.entry(&record.key).or_default().push(record);
        }
        // Each look at it costs one.
        let mut taken = run.plan.most_instances() as f64;
        for (key, records) in by_key {
            taken += possible(run, *rule, key, &records);
        }
        let least = f64::from(shared.quota.burst) - taken * f64::from(run.plan.rules[*rule].cost);
        if *left < least.floor() - 1.0 {
            let evidence = format!(
                "{}: {left} left of {} on instance {instance} at the end, but at most {taken} were admitted",
                shared.name, shared.quota.burst
            );
            findings.push(Finding { kind: Kind::Drained, evidence });
        }
    }
    findings
}

/// How many of these requests of one key may have been admitted: those that were, and of those that were not waited for
/// as many as the key's own bucket had room for.
fn possible(run: &Run, rule: usize, key: &str, records: &[&Record]) -> f64 {
    let count =
        |wanted: fn(&Outcome) -> bool| records.iter().filter(|record| wanted(&record.outcome)).count() as f64;
    let admitted = count(|outcome| matches!(outcome, Outcome::Admitted(_)));
    let unknown = count(|outcome| *outcome == Outcome::Unknown);
    let policies = &run.plan.rules[rule].policies;
    let Some(own) = policies.iter().position(|policy| policy.by == By::Key && !policy.shadow) else {
        return admitted + unknown;
    };
    let bucket = Bucket { rule, policy: own, value: key };
    let allowance = Allowance::of(&run.plan, &run.events, bucket, Scope::Redis, run.began_at);
    let processes: BTreeSet<(usize, usize)> =
        records.iter().map(|record| (record.instance, record.life)).collect();
    // Each memory may have had a budget of its own beside Redis'.
    let budgets = if run.is_calm() { processes.len().max(1) } else { processes.len() + 1 };
    let room = allowance.most(0.0, run.ended) * budgets as f64;
    admitted + unknown.min((room - admitted).max(0.0))
}

/// Redis is asked about what may be admitted, and about little more: attacks are denied by what is known.
fn calls(run: &Run) -> Vec<Finding> {
    let plan = &run.plan;
    if !run.is_calm() || plan.redis == Redis::None || plan.theme != Theme::HangUps {
        return Vec::new();
    }
    let mut keys: BTreeMap<(usize, &str), Vec<&Record>> = BTreeMap::new();
    for record in &run.records {
        keys.entry((record.rule, &record.key)).or_default().push(record);
    }
    let instances = plan.instances as f64;
    let mut most = 0.0;
    for ((rule, key), records) in keys {
        let own = plan.rules[rule].policies.iter().position(|policy| policy.by == By::Key).unwrap_or(0);
        let bucket = Bucket { rule, policy: own, value: key };
        let allowance = Allowance::of(plan, &run.events, bucket, Scope::Redis, run.began_at);
        let of_key = plan.clients.iter().filter(|(_, client)| client.rule == rule && client.key == key);
        // Each instance has to hear of what the others admitted, some calls are under way at once, and a charge in another
        // place may have to be taken back.
        let room = 2.0 * instances * (allowance.most(0.0, run.ended) + 2.0 * of_key.count() as f64);
        most += room.min(2.0 * records.len() as f64);
    }
    // Heartbeats, probes, and what a start asks.
    most += 20.0 + instances * 4.0 * run.ended;
    let made = run.calls as f64;
    let evidence = format!("{made} calls of scripts for {} requests, at most {most:.0}", run.records.len());
    (made > most).then_some(Finding { kind: Kind::Calls, evidence }).into_iter().collect()
}

impl Run {
    /// Whether nothing disturbed Redis or changed a limit.
    pub fn is_calm(&self) -> bool {
        self.events.is_empty()
    }

    /// Whether some act may have blocked this key.
    pub fn may_be_blocked(&self, rule: usize, key: &str) -> bool {
        self.events.iter().any(|event| match event.act {
            Act::Block { client } => self.plan.clients.iter().any(|(number, client_plan)| {
                *number == client && client_plan.rule == rule && client_plan.key == key
            }),
            _ => false,
        })
    }
}
