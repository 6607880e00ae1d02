//! Holds every denial and every block against what clients can have spent.

use crate::bound::{Allowance, Bucket, Scope};
use crate::check::{Finding, Kind, buckets};
use crate::client::{Label, Outcome, Record};
use crate::plan::Act;
use crate::run::Run;

/// Within so many seconds a decision whose client has gone is finished: Redis' timeout, and a busy machine.
const FINISHED_WITHIN: f64 = 1.5;

/// A charge that may have been made: when at the earliest, from when on it drains at the latest, and how much.
struct Charge {
    sent: f64,
    drains: f64,
    units: f64,
}

/// Denials and blocks that nothing justifies.
pub fn findings(run: &Run) -> Vec<Finding> {
    let mut findings = blocks(run);
    for (bucket, records) in buckets(&run.plan, &run.records) {
        let policy = &run.plan.rules[bucket.rule].policies[bucket.policy];
        let allowance = Allowance::of(&run.plan, &run.events, bucket, Scope::Process, run.began_at);
        // Where a limit changed it is not known to the moment which one was in force.
        if policy.shadow || !allowance.is_constant() {
            continue;
        }
        let charges = charges(run, bucket, &records);
        let cost = f64::from(run.plan.rules[bucket.rule].cost);
        let burst = f64::from(policy.quota.burst);
        // Stored arrival times of before the step lie ahead: a documented case.
        let stepped = run.events.iter().find(|event| matches!(event.act, Act::ClockStep(..0)));
        for record in &records {
            let Outcome::Denied(label, by) = &record.outcome else { continue };
            // The gateway's answers do not say whether memory stood in for Redis.
            let excused = matches!(label, Label::Fallback | Label::Share)
                || (*label == Label::Unsaid && run.fallbacks > 0)
                || stepped.is_some_and(|event| record.ended >= event.began);
            if *by != policy.name || excused {
                continue;
            }
            let spent = spent(&charges, record, policy.quota.rate(), burst, policy.quota.window, cost);
            // Less than a thousandth of a unit is the difference between our clock and theirs.
            if spent + cost < burst - 0.01 {
                let evidence = format!(
                    "{} denied \"{}\" at {:.3} s on instance {} ({label:?}): at most {spent:.2} of {burst} were spent",
                    policy.name, bucket.value, record.sent, record.instance
                );
                findings.push(Finding { kind: Kind::Denial, evidence });
                break;
            }
        }
    }
    findings
}

/// All that may have been charged to a bucket, in the order in which it drains.
fn charges(run: &Run, bucket: Bucket<'_>, records: &[&Record]) -> Vec<Charge> {
    let rule = &run.plan.rules[bucket.rule];
    let (cost, burst) = (rule.cost, f64::from(rule.policies[bucket.policy].quota.burst));
    let losses = |record: &Record| {
        run.events.iter().any(|event| {
            matches!(
                event.act,
                Act::Flush | Act::KillRedis(_) | Act::Failover | Act::ClockStep(_) | Act::Reset { .. }
            ) && record.sent < event.settled + 1.0
                && record.ended > event.began
        })
    };
    // What Redis has not confirmed rides along with what is in flight, and may meet it there: documented as too strict by
    // what is in flight. A client of a key of its own that waits for its answers has nothing in flight.
    let mut latest = f64::NEG_INFINITY;
    let overlap: Vec<bool> = records
        .iter()
        .enumerate()
        .map(|(at, record)| {
            let before = latest;
            latest = latest.max(record.ended);
            before > record.sent || records.get(at + 1).is_some_and(|next| next.sent < record.ended)
        })
        .collect();
    let mut charges: Vec<Charge> = records
        .iter()
        .enumerate()
        .filter_map(|(at, record)| {
            let twice = record.outcome == Outcome::Unknown || overlap[at];
            let most = f64::from(record.actual.unwrap_or(cost).max(cost)) * if twice { 2.0 } else { 1.0 };
            let (units, drains) = match &record.outcome {
                // In fallback a charge stands for those of the other instances as well.
                Outcome::Admitted(Label::Fallback) => (burst, record.ended),
                // The difference to the real cost follows.
                Outcome::Admitted(_) if record.actual.is_some() => (most, record.ended + FINISHED_WITHIN),
                Outcome::Admitted(_) => (most, record.ended),
                Outcome::Unknown => {
                    // It may have been decided in fallback.
                    (if run.fallbacks == 0 { most } else { burst }, record.ended + FINISHED_WITHIN)
                }
                // The call that timed out may have been granted; what a denial in another store gives back may be under way.
                Outcome::Denied(Label::Fallback, _) => (most, record.ended + FINISHED_WITHIN),
                Outcome::Denied(..) if rule.policies.len() > 1 || losses(record) => {
                    (most, record.ended + FINISHED_WITHIN)
                }
                Outcome::Denied(..) | Outcome::Blocked | Outcome::Incomplete => return None,
            };
            Some(Charge { sent: record.sent, drains, units })
        })
        .collect();
    charges.sort_by(|one, other| one.drains.total_cmp(&other.drains));
    charges
}

/// The most that can be missing in a bucket when a request was denied, its own charge left out.
fn spent(charges: &[Charge], denied: &Record, rate: f64, burst: f64, window: bool, cost: f64) -> f64 {
    let (mut debt, mut at) = (0.0_f64, f64::NEG_INFINITY);
    let mut own = cost;
    for charge in charges.iter().filter(|charge| charge.sent < denied.ended) {
        let drains = charge.drains.min(denied.sent);
        if at.is_finite() && !window {
            debt = (debt - (drains - at).max(0.0) * rate).max(0.0);
        }
        at = drains.max(at);
        debt = (debt + charge.units).min(burst + own);
    }
    // A denied request of a rule with several policies is among the charges itself.
    if !charges.iter().any(|charge| charge.sent == denied.sent) {
        own = 0.0;
    }
    if at.is_finite() && !window {
        debt = (debt - (denied.sent - at).max(0.0) * rate).max(0.0);
    }
    (debt - own).min(burst).max(0.0)
}

fn blocks(run: &Run) -> Vec<Finding> {
    let mut findings = Vec::new();
    for record in run.records.iter().filter(|record| record.outcome == Outcome::Blocked) {
        if run.may_be_blocked(record.rule, &record.key) {
            continue;
        }
        let needed =
            run.plan.rules[record.rule].policies.iter().filter_map(|policy| policy.block_after).min();
        let throttled = run.records.iter().filter(|other| {
            (other.rule, &other.key, other.instance, other.life)
                == (record.rule, &record.key, record.instance, record.life)
                && other.sent < record.ended
                && matches!(other.outcome, Outcome::Denied(..) | Outcome::Unknown)
        });
        let throttled = throttled.count();
        if needed.is_none_or(|needed| throttled < needed as usize) {
            let evidence = format!(
                "\"{}\" blocked at {:.3} s on instance {} after {throttled} throttled requests of {needed:?}",
                record.key, record.sent, record.instance
            );
            findings.push(Finding { kind: Kind::Block, evidence });
            break;
        }
    }
    findings.extend(not_blocked(run));
    findings
}

/// Requests that were admitted although every instance had confirmed that their key is blocked.
fn not_blocked(run: &Run) -> Option<Finding> {
    let restarts = run.plan.has(|act| matches!(act, Act::KillInstance(..) | Act::Join));
    let of = |act: &Act| match act {
        Act::Block { client } | Act::Lift { client } | Act::Exempt { client } | Act::Limit { client, .. } => {
            run.plan.clients.iter().find(|(number, _)| number == client).map(|(_, client)| client)
        }
        _ => None,
    };
    for event in run.events.iter().filter(|event| matches!(event.act, Act::Block { .. }) && !restarts) {
        let client = of(&event.act)?;
        let same = |other: &Act| {
            of(other).is_some_and(|other| (other.rule, &other.key) == (client.rule, &client.key))
        };
        let next = run.events.iter().find(|other| other.began > event.began && same(&other.act));
        let ends = next.map_or(f64::INFINITY, |next| next.began);
        let admitted = run.records.iter().find(|record| {
            (record.rule, &record.key) == (client.rule, &client.key)
                && record.sent > event.settled
                && record.ended < ends
                && matches!(record.outcome, Outcome::Admitted(_))
        });
        if let Some(record) = admitted {
            let evidence = format!(
                "\"{}\" admitted at {:.3} s, blocked since {:.3} s",
                record.key, record.sent, event.settled
            );
            return Some(Finding { kind: Kind::NotBlocked, evidence });
        }
    }
    None
}
