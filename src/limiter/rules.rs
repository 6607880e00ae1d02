//! Every rule, and which of them is for a request: the first in the order of the file that matches.

mod index;
pub mod lint;

use std::collections::HashMap;
use std::fmt;

use super::access::{Access, AccessList};
use super::gcra::Quota;
use super::policy::{Policy, PolicyId};
use super::route::{self, Route};
use super::subject::{Facts, Subject};
use index::RuleIndex;

/// So few are looked at one by one: the index hashes, and a look at two rules costs less than that.
const FEW: usize = 2;

/// Requests of one kind and the policies that all must admit them.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Unique in the file.
    pub name: Box<str>,
    /// Which requests.
    pub route: Route,
    /// Units that one such request costs.
    pub cost: u32,
    /// Its policies, by place.
    pub policies: Vec<PolicyId>,
    /// Who is exempt from them, and who is refused.
    pub access: AccessList,
}

impl Rule {
    /// Whether it limits or refuses nobody.
    fn is_open(&self) -> bool {
        self.policies.is_empty() && self.access.is_empty()
    }
}

/// Every rule, in order: the first that matches decides.
#[derive(Clone, Default)]
pub struct Rules {
    rules: Vec<Rule>,
    policies: Vec<Policy>,
    access: AccessList,
    index: RuleIndex,
    /// The place of each name.
    names: HashMap<Box<str>, usize>,
    /// Whether any rule has a condition on the path.
    reads_path: bool,
}

impl Rules {
    /// No rule: nothing is limited.
    pub fn none() -> Self {
        Self::default()
    }

    /// What is in force until a file says otherwise: one rule `default` for every request, with one policy
    /// `default`, by address.
    pub fn by_ip(quota: Quota) -> Self {
        let mut rules = Self::none();
        rules.add("default", Route::any(), 1, [Policy::new("default", Subject::ip(), quota)]);
        rules
    }

    /// Adds a rule behind those already there.
    pub fn add(
        &mut self,
        name: impl Into<Box<str>>,
        route: Route,
        cost: u32,
        policies: impl IntoIterator<Item = Policy>,
    ) {
        let (name, place, first) = (name.into(), self.rules.len(), self.policies.len());
        self.policies.extend(policies);
        self.index.insert(place, &route);
        self.reads_path |= route.path.is_some();
        self.names.entry(name.clone()).or_insert(place);
        let policies = (first..self.policies.len()).collect();
        self.rules.push(Rule { name, route, cost, policies, access: AccessList::default() });
    }

    /// Who is exempt from the rule that was added last, and who is refused there.
    pub fn list_for_the_last(&mut self, access: AccessList) {
        if let Some(rule) = self.rules.last_mut() {
            rule.access = access;
        }
    }

    /// Who is exempt from every rule, and who is refused everywhere, also where no rule matches.
    pub fn list_for_all(&mut self, access: AccessList) {
        self.access = access;
    }

    /// The list of [`Rules::list_for_all`].
    pub fn access(&self) -> &AccessList {
        &self.access
    }

    /// What the lists say of a request that `rule` is for. A refusal on either goes before an exemption.
    pub(super) fn listed(
        &self,
        rule: Option<&Rule>,
        of: impl Fn(&AccessList) -> Option<Access>,
    ) -> Option<Access> {
        let everywhere = if self.access.is_empty() { None } else { of(&self.access) };
        match rule {
            Some(rule) if !rule.access.is_empty() => Access::and(everywhere, of(&rule.access)),
            _ => everywhere,
        }
    }

    /// The first rule that matches. However many there are, it looks at those only whose host and beginning of the
    /// path fit.
    ///
    /// A path with an encoded slash has two readings. Where they meet different rules, one that limits goes before
    /// one that does not, then the earlier: no spelling leads around a limit.
    pub fn matching(&self, facts: &dyn Facts) -> Option<&Rule> {
        self.rules.get(self.place_of_matching(facts)?)
    }

    /// The place of [`Rules::matching`].
    pub(super) fn place_of_matching(&self, facts: &dyn Facts) -> Option<usize> {
        if !self.reads_path {
            return self.first(facts, None);
        }
        let path = facts.path();
        let first = self.first(facts, Some(&route::normal_path(path)));
        let Some(other) = route::other_reading(path) else { return first };
        let other = self.first(facts, Some(&other));
        let rank = |&place: &usize| (self.rules.get(place).is_none_or(Rule::is_open), place);
        [first, other].into_iter().flatten().min_by_key(rank)
    }

    /// Whether it takes a claim to decide a request that `rule` is for.
    pub(super) fn reads_claims(&self, rule: Option<&Rule>) -> bool {
        self.access.reads_claims()
            || rule.is_some_and(|rule| {
                rule.access.reads_claims()
                    || rule.policies.iter().any(|&id| self.policies[id].by.reads_claims())
            })
    }

    /// Whether a list exempts by a claim from a rule's policies.
    pub(super) fn exempts_by_claim(&self, rule: &Rule) -> bool {
        self.access.exempts_by_claim() || rule.access.exempts_by_claim()
    }

    /// The place of the first rule for this reading of the path; the path may be absent if no rule reads it.
    fn first(&self, facts: &dyn Facts, path: Option<&str>) -> Option<usize> {
        if facts.lacks_host() {
            return self.first_of_any_host(facts, path);
        }
        if self.rules.len() <= FEW {
            return self.rules.iter().position(|rule| rule.route.matches(facts, path));
        }
        self.index.first(facts, path.unwrap_or_default())
    }

    /// The place of the first rule that may be for a request without a host: the upstream serves it by a host of its own
    /// choice, so each condition on the host may hold. A rule that limits goes before one that does not. One by one: only
    /// HTTP/1.0 comes without a host.
    fn first_of_any_host(&self, facts: &dyn Facts, path: Option<&str>) -> Option<usize> {
        let decides = |rule: &Rule| !rule.is_open() || rule.route.host.is_none();
        self.rules.iter().position(|rule| decides(rule) && rule.route.matches_beside_host(facts, path))
    }

    /// The rule of this name.
    pub fn named(&self, name: &str) -> Option<&Rule> {
        self.rules.get(*self.names.get(name)?)
    }

    /// Every rule, in order.
    pub fn all(&self) -> &[Rule] {
        &self.rules
    }

    /// Every policy of every rule.
    pub fn policies(&self) -> &[Policy] {
        &self.policies
    }

    /// The policy at `id`, which comes from this same `Rules`.
    pub fn policy(&self, id: PolicyId) -> &Policy {
        &self.policies[id]
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is looked up by is made from these.
        f.debug_struct("Rules")
            .field("rules", &self.rules)
            .field("policies", &self.policies)
            .field("access", &self.access)
            .finish()
    }
}

#[cfg(test)]
#[path = "rules/tests.rs"]
mod tests;
