//! `tidegate_policy_decisions_total`: what each policy that was judged came to by itself, shadow policies included.
//! [`super::Metrics`]' requests are of the policy that binds only.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::{BACKENDS, Labels, STATES};
use crate::limiter::decision::Decision;
use crate::limiter::policy::{Mode, Policy, Rules};

/// Handles by policy, then backend and state. They belong to one [`Rules`].
pub(super) struct PolicyDecisions(Vec<[[Counter; 3]; 2]>);

impl PolicyDecisions {
    pub(super) fn new(family: &Family<Labels, Counter>, rules: &Rules) -> Self {
        Self(rules.policies().iter().map(|policy| handles(family, policy)).collect())
    }

    /// Drops the series of a policy that is gone.
    pub(super) fn forget(family: &Family<Labels, Counter>, policy: &str) {
        for mode in ["enforce", "shadow"] {
            for (backend, state) in BACKENDS.iter().flat_map(|backend| STATES.map(|state| (backend, state))) {
                family.remove(&labels(policy, mode, state.as_str(), backend.as_str()));
            }
        }
    }

    /// Counts every verdict of a decision that was made by these rules.
    pub(super) fn count(&self, decision: &Decision) {
        for (_, verdict) in decision.verdicts() {
            if let Some(table) = self.0.get(verdict.policy) {
                table[verdict.backend as usize][verdict.state() as usize].inc();
            }
        }
        // It ended the request before any verdict.
        if decision.ruling().is_some()
            && let Some(table) = decision.policy_id().and_then(|id| self.0.get(id))
        {
            table[decision.backend() as usize][decision.state as usize].inc();
        }
    }
}

fn handles(family: &Family<Labels, Counter>, policy: &Policy) -> [[Counter; 3]; 2] {
    let mode = match policy.mode {
        Mode::Enforce => "enforce",
        Mode::Shadow => "shadow",
    };
    BACKENDS.map(|backend| {
        STATES.map(|state| {
            family.get_or_create_owned(&labels(&policy.name, mode, state.as_str(), backend.as_str()))
        })
    })
}

fn labels(policy: &str, mode: &str, state: &str, backend: &str) -> Labels {
    vec![
        ("policy", policy.to_owned()),
        ("mode", mode.to_owned()),
        ("state", state.to_owned()),
        ("backend", backend.to_owned()),
    ]
}
