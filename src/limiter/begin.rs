//! The first half of a decision: which rule a request meets, and whether anything refuses it that takes no claim of its
//! token. The check of a signature costs a thousand times what a look at a bucket costs: a client that is over a limit by
//! its address, or on the list of refusals, is refused before it.

use std::sync::Arc;

use super::access::Access;
use super::bill::{Charges, denied};
use super::check::Check;
use super::decision::{Backend, Decision, Ruling};
use super::overrides::Overrides;
use super::policy::{Policy, Rule, Rules};
use super::rollout::Arm;
use super::settle::Tab;
use super::store::Store;
use super::subject::{Facts, Subject};
use super::{Hit, Limiter};

/// A decision that was begun.
pub enum Begun {
    /// Refused, whatever the request's claims are: none was asked for.
    Refused(Decision),
    /// Open: [`Limiter::finish`] decides.
    Open(Open),
}

/// A request whose rule is known, and of which nothing is charged yet.
pub struct Open {
    rules: Arc<Rules>,
    /// The place of its rule.
    rule: Option<usize>,
    overrides: Option<Arc<Overrides>>,
    /// Whether it takes the claims of its token to decide it.
    pub reads_claims: bool,
}

/// Which policies of a rule are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    All,
    WithoutClaims,
}

impl Scope {
    #[inline]
    pub(super) fn covers(self, policy: &Policy) -> bool {
        self == Self::All || !policy.by.reads_claims()
    }
}

impl<S: Store> Limiter<S> {
    /// Finds the rule of a request, and refuses it at once where no claim could change that. Otherwise nothing is charged.
    pub fn begin(&self, facts: &dyn Facts, hit: Hit) -> Begun {
        let rules = self.rules.load_full();
        let place = rules.place_of_matching(facts);
        let rule = place.and_then(|place| rules.all().get(place));
        let overrides = self.overrides_now();
        let reads_claims = rules.reads_claims(rule);
        if reads_claims
            && let Some(decision) = self.refused_without_claims(&rules, rule, facts, overrides.as_ref(), hit)
        {
            return Begun::Refused(decision);
        }
        Begun::Open(Open { rules, rule: place, overrides, reads_claims })
    }

    /// Decides what [`Limiter::begin`] left open, by the same facts, and charges it. What is charged is put on the `tab`.
    pub fn finish(self: &Arc<Self>, open: Open, facts: &dyn Facts, hit: Hit, tab: Option<&mut Tab>) -> Check {
        let Open { rules, rule, overrides, .. } = open;
        let rule = rule.and_then(|place| rules.all().get(place));
        let identify = |subject: &Subject| subject.identify(facts);
        if let Some(access) = rules.listed(rule, |list| list.of(facts)) {
            return self.listed(&rules, access, (rule, &identify, facts), overrides.as_ref());
        }
        let Some(rule) = rule else {
            let revision = self.rollout.in_force().revision;
            return Check::Decided(Some(Decision::unlimited(rules, revision)));
        };
        let bill = self.bill(&rules, rule, identify, facts, overrides.as_ref(), Scope::All);
        let cost = rule.cost.saturating_mul(hit.cost);
        if let Some(tab) = tab {
            tab.open(&bill, cost, &rules, &self.open_tabs, self.clock.now());
        }
        self.decide(rules, bill, cost, hit)
    }

    /// The refusal by a list, a block, a penalty, a missing subject or a bucket that takes no claim, unless a claim could
    /// exempt the request from it. The buckets are looked at as by a peek: a refused request charges none of them.
    fn refused_without_claims(
        &self,
        rules: &Arc<Rules>,
        rule: Option<&Rule>,
        facts: &dyn Facts,
        overrides: Option<&Arc<Overrides>>,
        hit: Hit,
    ) -> Option<Decision> {
        let listed = rules.listed(rule, |list| list.of_without_claims(facts));
        if listed == Some(Access::Deny) {
            let revision = self.rollout.in_force().revision;
            return Some(Decision::ruled(Arc::clone(rules), revision, Ruling::Listed(Access::Deny)));
        }
        let rule = rule?;
        let first = rule.policies.iter().map(|&id| rules.policy(id)).next()?;
        let may_be_exempt = listed.is_some()
            || rules.exempts_by_claim(rule)
            || overrides.is_some_and(|overrides| overrides.exempt_by_claim);
        if may_be_exempt || rule.policies.iter().all(|&id| rules.policy(id).by.reads_claims()) {
            return None;
        }
        let identify = |subject: &Subject| subject.identify(facts);
        let bill = self.bill(rules, rule, identify, facts, overrides, Scope::WithoutClaims);
        let decision = match bill.ruling {
            Some(Ruling::Overridden(Access::Allow)) => return None,
            Some(ruling) => {
                Decision::ruled(Arc::clone(rules), bill.revision, ruling).overridden(bill.overridden)
            }
            None => {
                let (cost, now) = (rule.cost.saturating_mul(hit.cost), self.clock.now());
                let items = bill.items.iter().filter(|item| item.arm == Arm::Control);
                let here: Charges = items.map(|item| self.charge(item, rules, cost, now)).collect();
                let readings = self.memory.charge(&here, true, now);
                if denied(&here, &readings) {
                    let peek = hit.writes_nothing();
                    if !peek {
                        self.memory.mark_denied(&here, &readings);
                    }
                    let verdicts = bill.verdicts(Arm::Control, Backend::Memory, None, &readings);
                    let decision = Decision::of(Arc::clone(rules), bill.revision, verdicts);
                    self.penalise(&bill, &decision, peek, now);
                    decision.overridden(bill.overridden)
                } else if bill.wants_redis() {
                    self.known_denial(rules, &bill, cost, hit)?
                } else {
                    return None;
                }
            }
        };
        // What the preview of a percentage counts, which an ordinary decision counts with its bill.
        if self.store.is_some()
            && Scope::WithoutClaims.covers(first)
            && let Some(identity) = first.by.identify(facts)
        {
            self.rollout.count(first.by.is_everyone(), &identity);
        }
        Some(decision)
    }
}

#[cfg(test)]
#[path = "begin_tests.rs"]
mod tests;
