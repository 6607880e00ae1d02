//! A subject's own terms: another limit, an exemption, a block. Found by the hash that the subject's bucket has, so that
//! a request pays one look-up in a table for each of its policies, and where there are no overrides nothing but the look
//! whether there are any.
//!
//! What was given is kept beside what it comes to under the rules in force: an override of a rule or a policy that is gone
//! has no effect, and has it again when they are back.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use foldhash::HashMap;
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::Limiter;
use super::access::Access;
use super::begin::Scope;
use super::calendar::Unit;
use super::clock::Micros;
use super::decision::Ruling;
use super::disputed::may_be_exempt;
use super::forgive::meant;
use super::gcra::Quota;
use super::policy::{OnMissing, Policy, Rule, Rules};
use super::store::Store;
use super::subject::{Facts, Identity, Key, Part, ProcessKey, Subject};

/// What one subject is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// What it is called.
    pub id: Box<str>,
    /// Under this rule,
    pub rule: Box<str>,
    /// and this policy of it; `None`: under all that count the subject.
    pub policy: Option<Box<str>>,
    /// As whom it is counted, a [`Subject::kind`]. `None`: an address by its address, anything else by the policy's
    /// subject: else whoever writes an address that is exempt into a header would be exempt.
    pub by: Option<Box<str>>,
    /// A value for each part of the subject, or one in the place of all.
    pub key: Vec<Box<[u8]>>,
    /// What it comes to.
    pub effect: Effect,
    /// When it ends, in microseconds since the epoch, by [`Limiter::wall`].
    pub expires_at: Option<Micros>,
}

/// What an override does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Another limit in the place of the policy's.
    Limit(OwnLimit),
    /// Nothing is charged: under one policy, or under the whole rule.
    Exempt,
    /// Every request of the rule is refused.
    Block,
}

/// So many in such a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnLimit {
    /// How many.
    pub limit: NonZeroU32,
    /// In how many microseconds; `None`: a calendar month, which only a policy that counts in such windows knows.
    pub period: Option<Micros>,
    /// The unit that was written, for policies that count in its windows.
    pub unit: Option<Unit>,
    /// How many at once; `None`: the limit.
    pub burst: Option<NonZeroU32>,
}

impl OwnLimit {
    /// What it is under this policy.
    ///
    /// # Errors
    /// In words, when the policy counts otherwise or the figures make no quota.
    pub fn under(&self, policy: &Policy) -> Result<Quota, String> {
        let Some(calendar) = &policy.calendar else {
            let period = self.period.ok_or("only a policy that counts in calendar windows knows a month")?;
            let burst = self.burst.unwrap_or(self.limit);
            return Quota::new(self.limit, period, burst).map_err(|error| error.to_string());
        };
        let unit = calendar.unit();
        if self.unit != Some(unit) {
            return Err(format!(
                "policy \"{}\" counts in calendar windows; accepted: N/{}",
                policy.name,
                unit.as_str()
            ));
        }
        if self.burst.is_some() {
            return Err(format!(
                "policy \"{}\" counts in calendar windows, which have no burst",
                policy.name
            ));
        }
        Quota::each(self.limit, unit).map_err(|most| format!("at most {most}/{}", unit.as_str()))
    }
}

/// Every override as the rules in force have it.
#[derive(Debug, Default)]
pub struct Overrides {
    given: Arc<[Override]>,
    /// By the key of a bucket; of several the strongest first.
    found: HashMap<Key, SmallVec<[Found; 1]>>,
    /// For each that was given the policies under which it has an effect.
    policies: Vec<Vec<Box<str>>>,
    /// Whether any exempts a subject that is known by a claim from a whole rule.
    pub(super) exempt_by_claim: bool,
}

#[derive(Clone, Copy, Debug)]
struct Found {
    place: usize,
    terms: Terms,
    expires_at: Micros,
}

/// What an override comes to under one policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Terms {
    Block,
    /// From the whole rule.
    ExemptFromAll,
    /// From the policy.
    Exempt,
    Limit(Quota),
}

impl Terms {
    /// Of several overrides of one subject the lowest is in force.
    fn rank(self) -> u8 {
        match self {
            Self::Block => 0,
            Self::ExemptFromAll => 1,
            Self::Exempt => 2,
            Self::Limit(_) => 3,
        }
    }
}

impl Overrides {
    fn of(given: Arc<[Override]>, rules: &Rules, process_key: &ProcessKey) -> Self {
        let mut found: HashMap<Key, SmallVec<[Found; 1]>> = HashMap::default();
        let mut policies = vec![Vec::new(); given.len()];
        let mut exempt_by_claim = false;
        for (place, one) in given.iter().enumerate() {
            let Some(rule) = rules.named(&one.rule) else { continue };
            for (policy, identity) in one.meant(rules, rule) {
                let terms = match one.effect {
                    Effect::Block => Terms::Block,
                    Effect::Exempt if one.policy.is_none() => Terms::ExemptFromAll,
                    Effect::Exempt => Terms::Exempt,
                    Effect::Limit(own) => match own.under(policy) {
                        Ok(quota) => Terms::Limit(quota),
                        Err(_) => continue,
                    },
                };
                exempt_by_claim |= terms == Terms::ExemptFromAll && policy.by.reads_claims();
                let at = found.entry(process_key.hash(&identity).under(policy.tag)).or_default();
                at.push(Found { place, terms, expires_at: one.expires_at.unwrap_or(Micros::MAX) });
                at.sort_by_key(|found| (found.terms.rank(), found.place));
                let names: &mut Vec<Box<str>> = &mut policies[place];
                if !names.contains(&policy.name) {
                    names.push(policy.name.clone());
                }
            }
        }
        Self { given, found, policies, exempt_by_claim }
    }

    /// What is in force for a bucket at `wall`, and the place of its override.
    pub(super) fn find(&self, key: Key, wall: Micros) -> Option<(usize, Terms)> {
        let found = self.found.get(&key)?.iter().find(|found| found.expires_at > wall)?;
        Some((found.place, found.terms))
    }

    /// How many have not ended at `wall`: other limits, exemptions, blocks.
    fn in_force(&self, wall: Micros) -> [usize; 3] {
        let mut counts = [0; 3];
        for one in self.given.iter().filter(|one| one.expires_at.is_none_or(|at| at > wall)) {
            counts[match one.effect {
                Effect::Limit(_) => 0,
                Effect::Exempt => 1,
                Effect::Block => 2,
            }] += 1;
        }
        counts
    }

    /// What was given at this place.
    pub(super) fn at(&self, place: usize) -> &Override {
        &self.given[place]
    }

    /// Under which policies the override with this id has an effect.
    pub fn policies_of(&self, id: &str) -> &[Box<str>] {
        let place = self.given.iter().position(|one| &*one.id == id);
        place.map_or(&[], |place| &self.policies[place])
    }
}

impl Override {
    /// Whether both are for the same subject in the same place, however it is spelled: an address has many spellings, and of
    /// an IPv6 address only its network counts.
    pub fn meets(&self, other: &Self, rules: &Rules) -> bool {
        if (&self.rule, &self.policy) != (&other.rule, &other.policy) {
            return false;
        }
        if (&self.by, &self.key) == (&other.by, &other.key) {
            return true;
        }
        let Some(rule) = rules.named(&self.rule) else { return false };
        let others = other.meant(rules, rule);
        self.meant(rules, rule).iter().any(|(policy, who)| {
            others.iter().any(|(theirs, other)| std::ptr::eq(*policy, *theirs) && who == other)
        })
    }

    /// Whom it means, under each policy of the rule that tells subjects apart.
    pub fn meant<'r>(&self, rules: &'r Rules, rule: &Rule) -> Vec<(&'r Policy, Identity)> {
        let key: SmallVec<[&[u8]; 2]> = self.key.iter().map(|value| &**value).collect();
        let is_address = matches!(key.as_slice(), [value] if is_address(value));
        let counts = |by: &Subject| match &self.by {
            Some(kind) => by.kind() == &**kind,
            None => !is_address || by.parts() == [Part::Ip],
        };
        let named = |policy: &&Policy| self.policy.as_ref().is_none_or(|name| policy.name == *name);
        let policies = rule.policies.iter().map(|&id| rules.policy(id)).filter(named);
        policies
            .filter(|policy| !policy.by.is_everyone())
            .flat_map(|policy| meant(policy, &key).into_iter().map(move |(by, who)| (policy, by, who)))
            .filter(|(_, by, _)| counts(by))
            .map(|(policy, _, who)| (policy, who))
            .collect()
    }
}

/// An address, or the network of one as it is counted.
fn is_address(value: &[u8]) -> bool {
    let text = std::str::from_utf8(value).unwrap_or_default();
    text.split_once('/').map_or(text, |(address, _)| address).parse::<std::net::IpAddr>().is_ok()
}

/// Those in force.
#[derive(Default)]
pub(super) struct InForce {
    any: AtomicBool,
    now: ArcSwap<Overrides>,
    /// One at a time puts others in force.
    given: Mutex<Arc<[Override]>>,
}

impl InForce {
    /// Those that a decision has to look at; `None`, at the price of a relaxed load, where there are none.
    #[inline]
    fn now(&self) -> Option<Arc<Overrides>> {
        self.any.load(Ordering::Relaxed).then(|| self.now.load_full())
    }
}

/// By which override a decision was made.
#[derive(Clone, Debug)]
pub(super) struct Overridden {
    pub(super) overrides: Arc<Overrides>,
    pub(super) place: usize,
}

/// Who a request is to a policy.
pub(super) enum Whom {
    /// This subject.
    One(Identity),
    /// Nobody: the policy does not apply.
    Nobody,
    /// Nobody, and that is not accepted.
    Missing,
}

impl Whom {
    #[inline]
    pub(super) fn of(
        policy: &Policy,
        identify: impl FnOnce(&Subject) -> Option<Identity>,
        facts: &dyn Facts,
    ) -> Self {
        match (identify(&policy.by), policy.on_missing) {
            (Some(identity), _) => Self::One(identity),
            (None, OnMissing::Skip) if policy.by.is_absent(facts) => Self::Nobody,
            (None, OnMissing::Ip | OnMissing::Skip) => Self::One(policy.by.address_instead(facts)),
            (None, OnMissing::Deny) => Self::Missing,
        }
    }
}

impl<S: Store> Limiter<S> {
    /// Puts these overrides in force in the place of all others: the next request is judged by them. Debts stay; what a
    /// new limit has no room for is cut.
    pub fn put_overrides(&self, overrides: impl Into<Arc<[Override]>>) {
        let mut given = self.overrides.given.lock();
        *given = overrides.into();
        self.apply(&given);
    }

    /// Puts other rules in force: the next request is judged by them. Debts stay, under the policies' names.
    pub fn replace_rules(&self, rules: impl Into<Arc<Rules>>) {
        let given = self.overrides.given.lock();
        self.rules.store(rules.into());
        self.apply(&given);
    }

    fn apply(&self, given: &Arc<[Override]>) {
        let overrides = Overrides::of(Arc::clone(given), &self.rules.load(), &self.process_key);
        let any = !overrides.found.is_empty();
        self.overrides.now.store(Arc::new(overrides));
        self.overrides.any.store(any, Ordering::Release);
    }

    /// Every override, and under which policies it has an effect.
    pub fn overrides(&self) -> Arc<Overrides> {
        self.overrides.now.load_full()
    }

    /// How many are in force: other limits, exemptions, blocks.
    pub(super) fn overrides_in_force(&self) -> [usize; 3] {
        self.overrides().in_force(self.wall())
    }

    #[inline]
    pub(super) fn overrides_now(&self) -> Option<Arc<Overrides>> {
        self.overrides.now()
    }

    /// Now by the clock by which overrides end: that of the shared store as last known, which is the same for a whole fleet;
    /// else this machine's.
    pub fn wall(&self) -> Micros {
        let store = self.store.as_ref().and_then(Store::least_ahead);
        self.clock.now().saturating_add_signed(store.unwrap_or_else(|| self.clock.behind_the_wall()))
    }

    /// Whether that is the clock of the shared store, or there is none.
    pub fn knows_wall(&self) -> bool {
        self.store.as_ref().is_none_or(|store| store.least_ahead().is_some())
    }

    /// What overrides rule about a request without a bucket: a block before an exemption, whichever of the rule's
    /// subjects has it.
    pub(super) fn overruled(
        &self,
        rules: &Rules,
        rule: &Rule,
        identify: impl Fn(&Subject) -> Option<Identity>,
        facts: &dyn Facts,
        overrides: &Arc<Overrides>,
        scope: Scope,
    ) -> Option<(Ruling, Overridden)> {
        let wall = self.wall();
        let mut ruled = None;
        for policy in rule.policies.iter().map(|&id| rules.policy(id)).filter(|policy| scope.covers(policy)) {
            if let Some(place) = self.blocked_candidate(policy, facts, overrides) {
                let overridden = Overridden { overrides: Arc::clone(overrides), place };
                return Some((Ruling::Overridden(Access::Deny), overridden));
            }
            let Whom::One(identity) = Whom::of(policy, &identify, facts) else { continue };
            let key = self.process_key.hash(&identity).under(policy.tag);
            let overridden = |place| Overridden { overrides: Arc::clone(overrides), place };
            match overrides.find(key, wall) {
                Some((place, Terms::Block)) => {
                    return Some((Ruling::Overridden(Access::Deny), overridden(place)));
                }
                Some((place, Terms::ExemptFromAll)) if ruled.is_none() && may_be_exempt(policy, facts) => {
                    ruled = Some((Ruling::Overridden(Access::Allow), overridden(place)));
                }
                _ => {}
            }
        }
        ruled
    }

    /// The ids of overrides in force for one bucket, and what the strongest comes to.
    pub(super) fn own_terms(&self, key: Key) -> Option<(Box<str>, Terms)> {
        let overrides = self.overrides.now()?;
        let (place, terms) = overrides.find(key, self.wall())?;
        Some((overrides.at(place).id.clone(), terms))
    }
}

#[cfg(test)]
#[path = "overrides_tests.rs"]
mod tests;
