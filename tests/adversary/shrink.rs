//! From a plan that fails to the shortest part of it that still does, by delta debugging.

use std::time::{Duration, Instant};

use crate::check::{Finding, Kind, findings};
use crate::plan::Plan;
use crate::run::run;

/// Runs a plan and returns what is wrong.
pub async fn violations(plan: &Plan) -> Vec<Finding> {
    let run = run(plan.clone()).await;
    if std::env::var_os("TIDEGATE_ADVERSARY_VERBOSE").is_some() {
        eprintln!("{plan}  {}", run.summary());
    }
    findings(&run)
}

/// Drops acts and clients for as long as the plan fails in the same way, within a time. The machine's own timing takes
/// part: a part is given two runs before it counts as sound.
pub async fn shortest(mut plan: Plan, kind: Kind, within: Duration) -> Plan {
    let ends = Instant::now() + within;
    let mut size = (plan.clients.len() + plan.acts.len()).div_ceil(2);
    while size > 0 && Instant::now() < ends {
        let mut at = 0;
        while at < plan.clients.len() + plan.acts.len() && Instant::now() < ends {
            let less = without(&plan, at, size);
            if fails(&less, kind, ends).await {
                plan = less;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    plan
}

/// The plan without `size` of its parts, acts first.
fn without(plan: &Plan, at: usize, size: usize) -> Plan {
    let mut less = plan.clone();
    let gone = |part: usize| (at..at + size).contains(&part);
    let acts = plan.acts.len();
    less.acts =
        plan.acts.iter().enumerate().filter(|(part, _)| !gone(*part)).map(|(_, act)| act.clone()).collect();
    let clients = plan.clients.iter().enumerate().filter(|(part, _)| !gone(acts + part));
    less.clients = clients.map(|(_, client)| client.clone()).collect();
    less
}

async fn fails(plan: &Plan, kind: Kind, ends: Instant) -> bool {
    for _ in 0..2 {
        if Instant::now() > ends {
            return false;
        }
        if violations(plan).await.iter().any(|finding| finding.kind == kind) {
            return true;
        }
    }
    false
}

/// The parts of a plan as TIDEGATE_ADVERSARY_KEEP names them: `c0,c3,a1`.
pub fn names(plan: &Plan) -> String {
    let clients = plan.clients.iter().map(|(number, _)| format!("c{number}"));
    let acts = plan.acts.iter().map(|(number, ..)| format!("a{number}"));
    clients.chain(acts).collect::<Vec<_>>().join(",")
}

/// The plan reduced to the parts that are named.
pub fn keep(mut plan: Plan, names: &str) -> Plan {
    let named =
        |kind: char, number: usize| names.split(',').any(|name| name.trim() == format!("{kind}{number}"));
    plan.clients.retain(|(number, _)| named('c', *number));
    plan.acts.retain(|(number, ..)| named('a', *number));
    plan
}
