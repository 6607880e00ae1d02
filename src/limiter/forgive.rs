//! One key as an operator sees it: its debts, whether it is shut out, and how it is forgiven.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::clock::Micros;
use super::decision::Backend;
use super::gcra::Reading;
use super::penalty::{Blocked, Standing};
use super::policy::{Policy, Rule, Rules};
use super::store::{FaultKind, Store};
use super::subject::Identity;
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
        for &id in &rule.policies {
            let policy = rules.policy(id);
            let item = self.item(self.rollout.in_force().percent, id, policy, &policy.by.standing_in(key));
            if let Standing::Blocked(rest) = self.penalties.standing(item.key, now) {
                states.push(KeyState {
                    policy: policy.name.clone(),
                    backend: Backend::Memory,
                    fallback: None,
                    reading: None,
                    blocked_for: Some(rest),
                });
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
        let told_apart = |policy: &&Policy| !policy.by.is_everyone();
        let policies: Vec<&Policy> =
            rule.policies.iter().map(|&id| rules.policy(id)).filter(told_apart).collect();
        let identities: Vec<Identity> = policies.iter().map(|policy| policy.by.standing_in(key)).collect();
        let now = self.clock.now();
        let forgive_here = || {
            let mut under_way = false;
            for (policy, identity) in policies.iter().zip(&identities) {
                under_way |= self.memory.forgive(self.process_key.hash(identity).under(policy.tag));
            }
            under_way
        };
        let shut_out = |(policy, identity): &(&&Policy, &Identity)| {
            self.penalties.forgive(self.process_key.hash(identity).under(policy.tag), now)
        };
        let blocks = policies.iter().zip(&identities).filter(shut_out).count();
        forgive_here();
        let untold = self.forget_there(&policies, &identities).await;
        // Whoever set out meanwhile may have met the debt there.
        let under_way = forgive_here();
        self.forgiven.fetch_add(policies.len() as u64, Ordering::Relaxed);
        let policies = policies.iter().map(|policy| policy.name.clone()).collect();
        Forgiven { policies, blocks, untold, under_way }
    }

    async fn forget_there(&self, policies: &[&Policy], identities: &[Identity]) -> Option<FaultKind> {
        let store = self.store.as_ref()?;
        let keys = self.rollout.keys()?;
        let Some(keys) = keys.as_ref() else { return Some(FaultKind::Open) };
        let mut untold = None;
        for (policy, identity) in policies.iter().zip(identities) {
            let forgotten = store.forget(&[&policy.name], keys.subject(identity)).await;
            untold = forgotten.err().map(|fault| fault.kind).or(untold);
        }
        untold
    }

    /// Everybody who is shut out by a penalty, the longest first.
    pub fn blocked(&self) -> Vec<Blocked> {
        self.penalties.blocked(self.clock.now())
    }
}
