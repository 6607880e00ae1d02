//! What a policy file says in vain: rules that no request reaches, limits that deny nothing.

use std::collections::HashMap;

use crate::config::error::Problem;
use crate::limiter::clock::SECOND;
use crate::limiter::gcra::Quota;
use crate::limiter::policy::Rules;
use crate::limiter::rules::lint::{self, Hidden, Idle};

/// The most names that one line lists.
const MOST_NAMES: usize = 3;

/// What is allowed and most likely not meant, one line each; `name` is what they call the file.
pub fn warnings(name: &str, rules: &Rules) -> Vec<String> {
    let hidden = by_what_hides_them(lint::hidden(rules));
    let hidden = hidden.iter().map(|(behind, places)| out_of_reach(rules, behind, places));
    let idle = lint::idle(rules);
    let idle = idle.iter().map(|one| denies_nothing(rules, one));
    hidden.chain(idle).map(|message| Problem::new(name, message).to_string()).collect()
}

/// One rule for everything at the top hides all others: that is one line, not one for each of them.
fn by_what_hides_them(hidden: Vec<Hidden>) -> Vec<(Vec<usize>, Vec<usize>)> {
    let mut groups: Vec<(Vec<usize>, Vec<usize>)> = Vec::new();
    let mut group_of: HashMap<Vec<usize>, usize> = HashMap::new();
    for Hidden { rule, behind } in hidden {
        let group = *group_of.entry(behind).or_insert_with_key(|behind| {
            groups.push((behind.clone(), Vec::new()));
            groups.len() - 1
        });
        groups[group].1.push(rule);
    }
    groups
}

fn out_of_reach(rules: &Rules, behind: &[usize], places: &[usize]) -> String {
    let (they, them, would) = match places {
        [_] => ("rule", "it", "it would"),
        _ => ("rules", "them", "they would"),
    };
    let (earlier, take) = match behind {
        [_] => ("rule", "matches"),
        _ => ("rules", "together match"),
    };
    format!(
        "{they} {}: no request reaches {them}, since {earlier} {} above {take} whatever {would} (only /v1/check can \
         ask for {them} by name); move {them} up or remove {them}",
        listed(rules, places),
        listed(rules, behind),
    )
}

fn listed(rules: &Rules, places: &[usize]) -> String {
    let name =
        |&place: &usize| rules.all().get(place).map_or_else(String::new, |rule| format!("\"{}\"", rule.name));
    let shown: Vec<String> = places.iter().take(MOST_NAMES).map(name).collect();
    match (places.len() - shown.len(), shown.split_last()) {
        (0, Some((last, before))) if !before.is_empty() => format!("{} and {last}", before.join(", ")),
        (0, _) => shown.concat(),
        (more, _) => format!("{} and {more} more", shown.join(", ")),
    }
}

fn denies_nothing(rules: &Rules, &Idle { rule, policy, behind }: &Idle) -> String {
    let (loose, tight) = (rules.policy(policy), rules.policy(behind));
    format!(
        "rule {}, policy \"{}\" ({}): it denies nothing that policy \"{}\" ({}) does not deny, which counts by the same \
         \"{}\"; remove it or make it tighter",
        listed(rules, &[rule]),
        loose.name,
        said(&loose.quota),
        tight.name,
        said(&tight.quota),
        tight.by.kind(),
    )
}

fn said(quota: &Quota) -> String {
    format!("{} in {} s, {} at once", quota.limit(), quota.period() / SECOND, quota.burst())
}
