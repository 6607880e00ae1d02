//! `tidegate_tokens_remaining_ratio`: how much of its burst each judged bucket has left.

use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::histogram::Histogram;
use super::{BACKENDS, Labels};
use crate::limiter::decision::Decision;
use crate::limiter::policy::Rules;

/// Nothing left, nearly nothing, quarters, nearly all.
static BUCKETS: [f64; 7] = [0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0];

/// The family of all policies.
pub(super) type Family01 = Family<Labels, Histogram, fn() -> Histogram>;

/// Handles of one set of rules, by policy and backend.
pub(super) struct Remaining(Vec<[Histogram; 2]>);

/// The family, registered.
pub(super) fn registered_in(registry: &mut Registry) -> Family01 {
    let family = Family01::new_with_constructor(|| Histogram::new(&BUCKETS));
    registry.register(
        "tokens_remaining_ratio",
        "Share of its burst that a judged bucket has left after the hit, 0 to 1",
        family.clone(),
    );
    family
}

impl Remaining {
    pub(super) fn new(family: &Family01, rules: &Rules) -> Self {
        let of =
            |name: &str| BACKENDS.map(|backend| family.get_or_create_owned(&labels(name, backend.as_str())));
        Self(rules.policies().iter().map(|policy| of(&policy.name)).collect())
    }

    /// Drops the series of a policy that is gone.
    pub(super) fn forget(family: &Family01, policy: &str) {
        for backend in BACKENDS {
            family.remove(&labels(policy, backend.as_str()));
        }
    }

    /// Observes every bucket that was judged by these rules.
    pub(super) fn observe(&self, decision: &Decision) {
        let policies = decision.rules().policies();
        for (_, verdict) in decision.verdicts().filter(|(_, verdict)| !verdict.missing) {
            if let (Some(handles), Some(policy)) = (self.0.get(verdict.policy), policies.get(verdict.policy))
            {
                let ratio = f64::from(verdict.reading.remaining) / f64::from(policy.quota.burst());
                handles[verdict.backend as usize].observe(ratio.min(1.0));
            }
        }
    }
}

fn labels(policy: &str, backend: &str) -> Labels {
    vec![("policy", policy.to_owned()), ("backend", backend.to_owned())]
}
