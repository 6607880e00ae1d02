//! One key as an operator sees it: its debts, whether it is shut out, and how it is forgiven.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;

use super::access::Access;
use super::bill::Bill;
use super::clock::Micros;
use super::decision::Backend;
use super::gcra::{Quota, Reading};
use super::overrides::Terms;
use super::penalty::{Blocked, Standing};
use super::policy::{OnMissing, Policy, Rule, Rules};
use super::store::{FaultKind, Store};
use super::subject::{Identity, Key, Subject};
use super::{Hit, Limiter};

/// How a key stands under one policy.
#[derive(Clone, Debug)]
pub struct KeyState {
    /// The policy's name.
    pub policy: Box<str>,
    /// As whom it is counted: the policy's subject, or `ip` for clients without it.
    pub by: Box<str>,
    /// The list on which it stands: then no bucket is asked about its requests.
    pub listed: Option<Access>,
    /// The override in force for it.
    pub own: Option<Own>,
    /// What it is judged by.
    pub quota: Quota,
    /// Who told this.
    pub backend: Backend,
    /// Why memory did although Redis was wanted.
    pub fallback: Option<FaultKind>,
    /// Its bucket; `None` while it is shut out, when no bucket is asked, and while the policy goes by no other count than
    /// that of a Redis which is away.
    pub reading: Option<Reading>,
    /// For how many microseconds more it is shut out.
    pub blocked_for: Option<Micros>,
}

/// The override in force for one bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// What it is called.
    pub id: Box<str>,
    /// Whether requests are let through or refused by it; `None`: it gives another limit.
    pub rules: Option<Access>,
}

/// What a forgiveness came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forgiven {
    /// Under which policies.
    pub policies: Vec<Box<str>>,
    /// How many of them had shut the key out.
    pub blocks: usize,
    /// Why Redis, where the key's debts are, could not be told. They come back with it.
    pub untold: Option<FaultKind>,
    /// Whether calls to Redis are under way that carry the debt there once more: then forgive it again when they are
    /// over, which takes no longer than the store's deadline. What they tell is not believed.
    pub under_way: bool,
}

impl<S: Store> Limiter<S> {
    /// How `key` stands under each policy of `rule`: a value for each part of the subject, or one in the place of all, as
    /// in [`Limiter::check_key`]. An address is also looked for among the clients without that subject. Asks the stores
    /// and charges nothing.
    pub async fn key_states(
        self: &Arc<Self>,
        rules: &Arc<Rules>,
        rule: &Rule,
        key: &[&[u8]],
    ) -> Vec<KeyState> {
        let mut states = Vec::new();
        for &id in &rule.policies {
            let policy = rules.policy(id);
            for (by, identity) in meant(policy, key) {
                let listed = rules.listed(Some(rule), |list| {
                    let each = list_questions(&by, key).into_iter();
                    each.map(|(by, value)| list.of_key(&by, &by.standing_in(value), value))
                        .reduce(Access::and)
                        .flatten()
                });
                let in_force = self.rollout.in_force();
                let mut item = self.item(in_force.percent, id, policy, &identity);
                let own = self.own_terms(item.key).map(|(id, terms)| {
                    let rules = match terms {
                        Terms::Block => Some(Access::Deny),
                        Terms::Exempt | Terms::ExemptFromAll => Some(Access::Allow),
                        Terms::Limit(quota) => {
                            item.own = Some(quota);
                            None
                        }
                    };
                    Own { id, rules }
                });
                let mut state = KeyState {
                    quota: item.own.unwrap_or(policy.quota),
                    own,
                    policy: policy.name.clone(),
                    by: by.kind().into(),
                    listed,
                    backend: Backend::Memory,
                    fallback: None,
                    reading: None,
                    blocked_for: None,
                };
                let standing = self.penalties.standing(item.key, self.clock.now());
                if let (Some(_), Standing::Blocked(rest)) = (policy.shuts_out(), standing) {
                    state.blocked_for = Some(rest);
                } else {
                    let bill = Bill {
                        items: smallvec::smallvec![item],
                        revision: in_force.revision,
                        ruling: None,
                        missing_in_shadow: SmallVec::new(),
                        overridden: None,
                    };
                    let decision = self.decide(Arc::clone(rules), bill, 0, Hit { cost: 0, peek: true }).await;
                    state.fallback = decision.fallback();
                    if let Some((_, verdict)) = decision.verdicts().next() {
                        (state.backend, state.reading) = (verdict.backend, Some(verdict.reading));
                    }
                }
                states.push(state);
            }
        }
        // What an operator looks for comes first.
        states.sort_by_key(|state| state.blocked_for.is_none());
        states
    }

    /// Forgives `key`, given as to [`Limiter::key_states`], under every policy of `rule` that tells keys apart: its debts
    /// here and in Redis, and its place in the penalty box. A bucket that all share is not forgiven for the sake of one.
    pub async fn forgive(&self, rules: &Rules, rule: &Rule, key: &[&[u8]]) -> Forgiven {
        let forgiven = self.forgive_again(rules, rule, key).await;
        self.forgiven.fetch_add(forgiven.policies.len() as u64, Ordering::Relaxed);
        forgiven
    }

    /// The same, for the sake of calls that were under way: it was counted.
    pub async fn forgive_again(&self, rules: &Rules, rule: &Rule, key: &[&[u8]]) -> Forgiven {
        let told_apart = |policy: &&Policy| !policy.by.is_everyone();
        let policies = rule.policies.iter().map(|&id| rules.policy(id)).filter(told_apart);
        let meant: Vec<(&Policy, Identity)> = policies
            .flat_map(|policy| meant(policy, key).into_iter().map(move |(_, identity)| (policy, identity)))
            .collect();
        let keys: Vec<Key> = meant
            .iter()
            .map(|(policy, identity)| self.process_key.hash(identity).under(policy.tag))
            .collect();
        let now = self.clock.now();
        // Each of them, whatever the others come to.
        let forgive_here = || keys.iter().fold(false, |under_way, &key| self.memory.forgive(key) | under_way);
        let blocks = keys.iter().filter(|&&key| self.penalties.forgive(key, now)).count();
        forgive_here();
        let untold = self.forget_there(&meant).await;
        // Whoever set out meanwhile may have met the debt there.
        let under_way = forgive_here();
        let mut policies: Vec<Box<str>> = meant.iter().map(|(policy, _)| policy.name.clone()).collect();
        policies.dedup();
        Forgiven { policies, blocks, untold, under_way }
    }

    async fn forget_there(&self, meant: &[(&Policy, Identity)]) -> Option<FaultKind> {
        let store = self.store.as_ref()?;
        // Not known before Redis was reached once.
        let Some(keys) = self.rollout.keys() else { return Some(FaultKind::Open) };
        let keys = keys.as_ref()?;
        let mut untold = None;
        for (policy, identity) in meant {
            let forgotten = store.forget(&[&policy.name], keys.subject(identity)).await;
            untold = forgotten.err().map(|fault| fault.kind).or(untold);
        }
        untold
    }

    /// Everybody who is shut out by a penalty, the longest first.
    pub fn blocked(&self) -> Vec<Blocked> {
        let mut blocked = self.penalties.blocked(self.clock.now());
        if !blocked.is_empty() {
            // Who was shut out by a penalty that is gone is let in.
            let rules = self.rules.load();
            let in_force = rules.policies().iter().filter(|policy| policy.shuts_out().is_some());
            let in_force: HashSet<&str> = in_force.map(|policy| &*policy.name).collect();
            blocked.retain(|blocked| in_force.contains(&*blocked.policy));
        }
        blocked
    }
}

/// Whom `key` means to a policy, and by which subject each of them is counted.
pub(super) fn meant(policy: &Policy, key: &[&[u8]]) -> SmallVec<[(Subject, Identity); 2]> {
    let mut meant: SmallVec<[(Subject, Identity); 2]> = SmallVec::new();
    meant.extend(policy.by.meant_by(key).map(|identity| (policy.by.clone(), identity)));
    // Whoever comes without the subject, or sends it twice, is counted by address.
    if let ([value], OnMissing::Ip | OnMissing::Skip) = (key, policy.on_missing) {
        meant.extend(policy.by.address_standing_in(value).map(|identity| (Subject::ip(), identity)));
    }
    meant
}

/// What lists are asked about a key: its subject with its value, or each part with its own.
fn list_questions<'k>(by: &Subject, key: &[&'k [u8]]) -> Vec<(Subject, &'k [u8])> {
    match key {
        [value] => vec![(by.clone(), value)],
        several => {
            by.parts().iter().map(|part| Subject::new([part.clone()])).zip(several.iter().copied()).collect()
        }
    }
}
