//! From a plan that fails to the shortest part of it that still does.

use std::time::Duration;

use crate::check::{Finding, Kind, findings};
use crate::plan::Plan;
use crate::run::run;
use crate::support::shrink::{self, Parts};

/// Runs a plan and returns what is wrong.
pub async fn violations(plan: &Plan) -> Vec<Finding> {
    let run = run(plan.clone()).await;
    if std::env::var_os("TIDEGATE_ADVERSARY_VERBOSE").is_some() {
        eprintln!("{plan}  {}", run.summary());
    }
    findings(&run)
}

/// The shortest part of a plan that fails in the same way, as far as it is found within a time.
pub async fn shortest(plan: Plan, kind: Kind, within: Duration) -> Plan {
    let fails = async |plan: &Plan| violations(plan).await.iter().any(|finding| finding.kind == kind);
    shrink::shortest(plan, within, fails).await
}

/// Acts first, then clients.
impl Parts for Plan {
    fn parts(&self) -> usize {
        self.clients.len() + self.acts.len()
    }

    fn without(&self, at: usize, size: usize) -> Self {
        let gone = |part: usize| (at..at + size).contains(&part);
        let acts = self.acts.iter().enumerate().filter(|(part, _)| !gone(*part));
        let clients = self.clients.iter().enumerate().filter(|(part, _)| !gone(self.acts.len() + part));
        Self {
            acts: acts.map(|(_, act)| act.clone()).collect(),
            clients: clients.map(|(_, client)| client.clone()).collect(),
            ..self.clone()
        }
    }
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
