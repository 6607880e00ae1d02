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
            family.get_or_create_owned(&vec![
                ("policy", policy.name.to_string()),
                ("mode", mode.to_owned()),
                ("state", state.as_str().to_owned()),
                ("backend", backend.as_str().to_owned()),
            ])
        })
    })
}
