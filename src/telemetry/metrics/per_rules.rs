//! The handles of one set of rules, by place: a request looks up no label.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::policy_decisions::PolicyDecisions;
use super::remaining::{Family01, Remaining};
use super::{ARMS, BACKENDS, Labels, STATES};
use crate::limiter::decision::{Backend, State};
use crate::limiter::policy::Rules;
use crate::limiter::rollout::Arm;

/// Handles of one policy, by backend, state and arm.
pub(super) type PerPolicy = [[[Counter; 2]; 3]; 2];

/// Handles for one set of rules.
pub(super) struct PerRules {
    pub(super) names: Vec<Box<str>>,
    pub(super) policies: Vec<PerPolicy>,
    pub(super) unlimited: PerPolicy,
    pub(super) decisions: PolicyDecisions,
    pub(super) remaining: Remaining,
}

impl PerRules {
    pub(super) fn new(
        requests: &Family<Labels, Counter>,
        policy_decisions: &Family<Labels, Counter>,
        remaining: &Family01,
        rules: &Rules,
    ) -> Self {
        let of = |policy: &str| {
            BACKENDS.map(|backend| {
                STATES.map(|state| {
                    ARMS.map(|arm| requests.get_or_create_owned(&labels(backend, state, policy, arm)))
                })
            })
        };
        let names: Vec<Box<str>> = rules.policies().iter().map(|policy| policy.name.clone()).collect();
        Self {
            policies: names.iter().map(|name| of(name)).collect(),
            // No policy can be called so: names begin with a letter or digit.
            unlimited: of("-"),
            decisions: PolicyDecisions::new(policy_decisions, rules),
            remaining: Remaining::new(remaining, rules),
            names,
        }
    }
}

pub(super) fn labels(backend: Backend, state: State, policy: &str, arm: Arm) -> Labels {
    vec![
        ("backend", backend.as_str().to_owned()),
        ("state", state.as_str().to_owned()),
        ("policy", policy.to_owned()),
        ("arm", arm.as_str().to_owned()),
    ]
}

pub(super) fn for_each_label(mut job: impl FnMut(Backend, State, Arm)) {
    for backend in BACKENDS {
        for state in STATES {
            ARMS.into_iter().for_each(|arm| job(backend, state, arm));
        }
    }
}
