//! What can be said of rules before any request comes: which of them none will reach, and which limits deny nothing.
//!
//! Both are exact. No rule is named here that some request reaches, and no limit that some request meets first.

use std::collections::{BTreeSet, HashSet};

use super::{Rule, Rules};
use crate::limiter::gcra::Quota;
use crate::limiter::policy::{Mode, OnMissing, OnRedisError, Policy, PolicyId};
use crate::limiter::route::{Host, Route, Segment};

/// A rule that no request reaches. `/v1/check` can still ask for it by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// Its place.
    pub rule: usize,
    /// The places of the earlier rules that decide whatever it matches: one, or several with different methods (or
    /// one for "/" and one for all other paths); in order.
    pub behind: Vec<usize>,
}

/// A limit that denies nothing which another one of the same rule does not deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idle {
    /// The place of its rule.
    pub rule: usize,
    /// The policy.
    pub policy: PolicyId,
    /// The tighter one.
    pub behind: PolicyId,
}

/// The rules that no request reaches, in order.
///
/// One kind is missed: a rule whose path has an encoded slash in it may be out of reach because of that path's other
/// reading.
pub fn hidden(rules: &Rules) -> Vec<Hidden> {
    let stranger = Stranger::to(rules);
    let behind = |place: usize, route: &Route| {
        let (host, paths) = (stranger.host(route), stranger.paths(route));
        let any = route.methods.is_empty().then_some(METHOD);
        let methods = || route.methods.iter().map(|method| &**method).chain(any);
        let requests = paths.iter().flat_map(|path| methods().map(move |method| (method, path)));
        let first = requests.map(|(method, path)| rules.index.first_of(method, &host, path));
        first.map(|first| first.filter(|&first| first < place)).collect::<Option<BTreeSet<usize>>>()
    };
    let hidden = |(place, rule): (usize, &Rule)| {
        Some(Hidden { rule: place, behind: behind(place, &rule.route)?.into_iter().collect() })
    };
    rules.rules.iter().enumerate().filter_map(hidden).collect()
}

/// The limits that deny nothing by themselves, in order.
///
/// Only limits within one rule are compared: no request is counted by the policies of two rules.
pub fn idle(rules: &Rules) -> Vec<Idle> {
    let mut found = Vec::new();
    for (place, rule) in rules.rules.iter().enumerate() {
        for &policy in &rule.policies {
            let is_in_front = |&other: &PolicyId| {
                let (tight, loose) = (rules.policy(other), rules.policy(policy));
                // Of two that are alike the first stays.
                other != policy && hides(tight, loose) && (other < policy || !hides(loose, tight))
            };
            if let Some(behind) = rule.policies.iter().copied().find(is_in_front) {
                found.push(Idle { rule: place, policy, behind });
            }
        }
    }
    found
}

/// Whether `loose` has room for whatever is admitted beside `tight`.
///
/// Take what is left in units, `(τ − debt) / T`. It begins no lower in `loose` (the burst is no smaller), both lose the
/// same units at the same moments, and it grows no slower there, up to no lower a top (`T` is no longer): so it is
/// never lower, as long as both counts are kept. `tight` must deny in earnest: otherwise `loose` would be charged for
/// what `tight` has no room for.
fn hides(tight: &Policy, loose: &Policy) -> bool {
    let (Some(narrow), Some(wide)) = (token_bucket(tight), token_bucket(loose)) else { return false };
    // Whoever `loose` counts, `tight` counts as the same one, or refuses.
    let counts_all = tight.on_missing == loose.on_missing
        || loose.on_missing == OnMissing::Skip
        || tight.on_missing == OnMissing::Deny;
    tight.mode == Mode::Enforce
        && wide.interval() <= narrow.interval()
        && wide.burst() >= narrow.burst()
        && counts_all
        && tight.by == loose.by
}

/// The quota of a policy that counts by it alone. Where there is more to a policy (another way of counting, a denial that
/// has consequences, an answer of its own while the store is away), two of them do not compare like this.
fn token_bucket(policy: &Policy) -> Option<&Quota> {
    let alone =
        policy.calendar.is_none() && policy.penalty.is_none() && policy.on_redis_error == OnRedisError::Local;
    alone.then_some(&policy.quota)
}

/// Makes, for any rule, a request that is for it and for as few other rules as can be: whatever the rule leaves open is
/// filled with what no rule mentions. A rule that does not decide it decides none.
struct Stranger {
    segment: String,
    label: String,
}

/// A method that no rule names, for theirs are in upper case.
const METHOD: &str = "other";

impl Stranger {
    fn to(rules: &Rules) -> Self {
        let (mut segments, mut labels) = (HashSet::new(), HashSet::new());
        for Route { host, path, .. } in rules.rules.iter().map(|rule| &rule.route) {
            if let Some(Host::Exactly(name)) = host {
                labels.extend(name.split('.').next());
            }
            for segment in path.iter().flat_map(|path| &path.segments) {
                if let Segment::Literal(name) = segment {
                    segments.insert(&**name);
                }
            }
        }
        Self { segment: unheard_of(&segments), label: unheard_of(&labels) }
    }

    /// A host name that only those rules match that match all of this rule's.
    fn host(&self, route: &Route) -> String {
        match &route.host {
            None => String::new(),
            Some(Host::Exactly(name)) => name.to_string(),
            Some(Host::Below(suffix)) => format!("{}{suffix}", self.label),
        }
    }

    /// The same of a path. For a rule for every path it takes two: "/" is the only one without a first segment.
    fn paths(&self, route: &Route) -> Vec<String> {
        let (segments, open) =
            route.path.as_ref().map_or((&[][..], true), |path| (&path.segments, path.open));
        let mut path = String::new();
        for segment in segments {
            path.push('/');
            path.push_str(match segment {
                Segment::Literal(name) => name,
                Segment::Any => &self.segment,
            });
        }
        let stranger = &self.segment;
        match (open, segments.is_empty()) {
            (false, _) => vec![path],
            // No segment of a pattern is for an empty one with more behind it: whatever matches is open by then.
            (true, false) => vec![format!("{path}//{stranger}")],
            (true, true) => vec!["/".to_owned(), format!("/{stranger}//{stranger}")],
        }
    }
}

/// A name that is not among `known`.
fn unheard_of(known: &HashSet<&str>) -> String {
    let mut name = String::from("x");
    let mut number = 0;
    while known.contains(&*name) {
        number += 1;
        name = format!("x{number}");
    }
    name
}
