//! One key as an operator sees it: its debts, whether it is shut out, and how it is forgiven.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;

use super::clock::Micros;
use super::decision::Backend;
use super::gcra::Reading;
use super::penalty::{Blocked, Standing};
use super::policy::{OnMissing, Policy, Rule, Rules};
use super::store::{FaultKind, Store};
use super::subject::{Identity, Key};
use super::{Hit, Limiter};

/// How a key stands under one policy.
#[derive(Clone, Debug)]
pub struct KeyState {
    /// The policy's name.
    pub policy: Box<str>,
    /// Who told this.
    pub backend: Backend,
    /// Why memory did although Redis was wanted.
    pub fallback: Option<FaultKind>,
    /// Its bucket; `None` while it is shut out, when no bucket is asked.
    pub reading: Option<Reading>,
    /// For how many microseconds more it is shut out.
    pub blocked_for: Option<Micros>,
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
    /// How `key`, which stands in for the subject of each policy of `rule`, stands. Asks the stores and charges nothing.
    pub async fn key_states(self: &Arc<Self>, rules: &Rules, rule: &Rule, key: &[u8]) -> Vec<KeyState> {
        let now = self.clock.now();
        let mut states = Vec::new();
        let shutting_out =
            rule.policies.iter().map(|&id| rules.policy(id)).filter(|one| one.shuts_out().is_some());
        for policy in shutting_out {
            for identity in identities(policy, key) {
                let key = self.process_key.hash(&identity).under(policy.tag);
                if let Standing::Blocked(rest) = self.penalties.standing(key, now) {
                    states.push(KeyState {
                        policy: policy.name.clone(),
                        backend: Backend::Memory,
                        fallback: None,
                        reading: None,
                        blocked_for: Some(rest),
                    });
                }
            }
        }
        let Some(check) = self.check_key(&rule.name, key, Hit { cost: 0, peek: true }) else { return states };
        let decision = check.await;
        states.extend(decision.verdicts().map(|(policy, verdict)| KeyState {
            policy: policy.name.clone(),
            backend: verdict.backend,
            fallback: verdict.fallback,
            reading: Some(verdict.reading),
            blocked_for: None,
        }));
        states
    }

    /// Forgives `key` under every policy of `rule` that tells keys apart: its debts here and in Redis, and its place in
    /// the penalty box. A bucket that all share is not forgiven for the sake of one.
    pub async fn forgive(&self, rules: &Rules, rule: &Rule, key: &[u8]) -> Forgiven {
        let forgiven = self.forgive_again(rules, rule, key).await;
        self.forgiven.fetch_add(forgiven.policies.len() as u64, Ordering::Relaxed);
        forgiven
    }

    /// The same, for the sake of calls that were under way: it was counted.
    pub async fn forgive_again(&self, rules: &Rules, rule: &Rule, key: &[u8]) -> Forgiven {
        let told_apart = |policy: &&Policy| !policy.by.is_everyone();
        let policies: Vec<&Policy> =
            rule.policies.iter().map(|&id| rules.policy(id)).filter(told_apart).collect();
        let mut all: Vec<(&Policy, Identity)> = Vec::new();
        for policy in &policies {
            all.extend(identities(policy, key).into_iter().map(|identity| (*policy, identity)));
        }
        let keys: Vec<Key> =
            all.iter().map(|(policy, who)| self.process_key.hash(who).under(policy.tag)).collect();
        let now = self.clock.now();
        // Each of them, whatever the others come to.
        let forgive_here = || keys.iter().fold(false, |under_way, &key| self.memory.forgive(key) | under_way);
        let blocks = keys.iter().filter(|&&key| self.penalties.forgive(key, now)).count();
        forgive_here();
        let untold = self.forget_there(&all).await;
        // Whoever set out meanwhile may have met the debt there.
        let under_way = forgive_here();
        let policies = policies.iter().map(|policy| policy.name.clone()).collect();
        Forgiven { policies, blocks, untold, under_way }
    }

    async fn forget_there(&self, all: &[(&Policy, Identity)]) -> Option<FaultKind> {
        let store = self.store.as_ref()?;
        // Not known before Redis was reached once.
        let Some(keys) = self.rollout.keys() else { return Some(FaultKind::Open) };
        let keys = keys.as_ref()?;
        let mut untold = None;
        for (policy, identity) in all {
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

/// Whom `policy` counts under this key: its subject, and where that may be missing whoever is counted by this address.
fn identities(policy: &Policy, key: &[u8]) -> SmallVec<[Identity; 2]> {
    let instead =
        if policy.on_missing == OnMissing::Deny { None } else { policy.by.address_standing_in(key) };
    std::iter::once(policy.by.standing_in(key)).chain(instead).collect()
}
