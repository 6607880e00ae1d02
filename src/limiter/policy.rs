//! What is limited and how much: rules match requests, policies say by whom and how many.
//!
//! The next parts of the policy language (allow and deny lists, the penalty box, fixed windows) join
//! [`Policy`] and [`Subject`] here.

use super::access::{Access, AccessList};
use super::calendar::Calendar;
use super::gcra::Quota;
use super::penalty::Penalty;
use super::route::Route;
use super::subject::{Facts, PolicyTag, Subject};

/// A policy's place among all policies of a [`Rules`].
pub type PolicyId = usize;

/// What happens when the subject of a policy is absent from a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnMissing {
    /// The client's address stands in for it.
    Ip,
    /// The policy does not apply.
    Skip,
    /// The request is refused.
    Deny,
}

/// What a policy comes to when Redis was to decide and cannot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnRedisError {
    /// Memory decides, at this instance's share.
    #[default]
    Local,
    /// It admits. What it admits is counted as far as there is room.
    Open,
    /// It refuses.
    Deny,
}

/// Whether a policy's denial counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It denies the request.
    Enforce,
    /// It is judged, logged and counted, and denies nothing.
    Shadow,
}

/// By whom, how many, and what else.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Unique in the file: the label in metrics, logs and headers.
    pub name: Box<str>,
    /// Whom it tells apart.
    pub by: Subject,
    /// How many each of them gets.
    pub quota: Quota,
    /// The calendar whose windows the quota is for ([`Quota::each`]); `None` for GCRA.
    pub calendar: Option<Calendar>,
    /// What happens to a request without the subject.
    pub on_missing: OnMissing,
    /// Whether its denial counts.
    pub mode: Mode,
    /// What happens when Redis was to decide and cannot.
    pub on_redis_error: OnRedisError,
    /// Who keeps on hammering is shut out, if this says so.
    pub penalty: Option<Penalty>,
    /// Its mark on keys, made from the name.
    pub tag: PolicyTag,
}

impl Policy {
    /// An enforced policy; a missing subject is counted by address.
    pub fn new(name: impl Into<Box<str>>, by: Subject, quota: Quota) -> Self {
        let name = name.into();
        Self {
            tag: PolicyTag::of(&name),
            name,
            by,
            quota,
            calendar: None,
            on_missing: OnMissing::Ip,
            mode: Mode::Enforce,
            on_redis_error: OnRedisError::Local,
            penalty: None,
        }
    }

    /// Counting in the windows of this calendar. What was counted by another algorithm, or in windows of another kind,
    /// means something else: the count begins at 0 then.
    pub fn in_windows_of(self, calendar: Calendar) -> Self {
        let tag = PolicyTag::of(&format!("{}\0{}\0{}", self.name, calendar.unit().as_str(), calendar.zone()));
        Self { tag, calendar: Some(calendar), ..self }
    }
}

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

/// Every rule, in order: the first that matches decides.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    rules: Vec<Rule>,
    policies: Vec<Policy>,
    access: AccessList,
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
        let first = self.policies.len();
        self.policies.extend(policies);
        self.rules.push(Rule {
            name: name.into(),
            route,
            cost,
            policies: (first..self.policies.len()).collect(),
            access: AccessList::default(),
        });
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

    /// The first rule that matches.
    ///
    /// A path with an encoded slash has two readings. Where they meet different rules, one that limits goes before
    /// one that does not, then the earlier: no spelling leads around a limit.
    pub fn matching(&self, facts: &dyn Facts) -> Option<&Rule> {
        if !self.rules.iter().any(|rule| rule.route.reads_path()) {
            return self.first(facts, None);
        }
        let path = facts.path();
        let first = self.first(facts, Some(&super::route::normal_path(path)));
        let Some(other) = super::route::other_reading(path) else { return first };
        let other = self.first(facts, Some(&other));
        let place = |rule: &Rule| self.rules.iter().position(|one| std::ptr::eq(one, rule));
        let rank = |rule: &&Rule| (rule.policies.is_empty(), place(rule));
        [first, other].into_iter().flatten().min_by_key(rank)
    }

    fn first(&self, facts: &dyn Facts, path: Option<&str>) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.route.matches(facts, path))
    }

    /// The rule of this name.
    pub fn named(&self, name: &str) -> Option<&Rule> {
        self.rules.iter().find(|rule| &*rule.name == name)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::clock::SECOND;
    use std::num::NonZeroU32;

    struct At(&'static str);

    impl Facts for At {
        fn method(&self) -> &str {
            "GET"
        }
        fn path(&self) -> &str {
            self.0
        }
    }

    #[test]
    fn no_spelling_of_a_path_leads_around_a_limit() {
        let path = |pattern| Route::new(&[], None, Some(pattern)).unwrap();
        let quota = Quota::new(NonZeroU32::MIN, SECOND, NonZeroU32::MIN).unwrap();
        let limit = |name: &str| [Policy::new(name, Subject::ip(), quota)];
        let mut rules = Rules::none();
        rules.add("assets", path("/assets/**"), 1, []);
        rules.add("item", path("/v1/items/{id}"), 1, limit("item"));
        rules.add("items", path("/v1/items"), 1, limit("items"));
        for (path, rule) in [
            ("/v1/items", Some("items")),
            ("/v1%2Fitems", Some("items")),
            ("/v1%2fitems%2F7", Some("item")),
            ("/v1/items/a%2Fb", Some("item")),
            ("/assets/..%2fv1/items", Some("items")),
            ("/assets%2F..%2Fv1%2Fitems", Some("items")),
            ("/assets/a%2Fb", Some("assets")),
            ("/other%2Fpath", None),
        ] {
            assert_eq!(rules.matching(&At(path)).map(|rule| &*rule.name), rule, "{path}");
        }
    }
}
