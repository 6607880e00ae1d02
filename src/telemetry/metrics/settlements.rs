//! `tidegate_cost_settlements_total`: what became of the costs that answers told.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::{Labels, one};
use crate::limiter::settle::Outcome;

pub(in crate::telemetry) struct Settlements {
    outcomes: [Counter; 3],
    malformed: Counter,
    returned: [Counter; 3],
}

impl Settlements {
    pub(super) fn registered_in(registry: &mut Registry) -> Self {
        let family = Family::<Labels, Counter>::default();
        registry.register(
            "cost_settlements",
            "Costs that answers told and that differed from what was charged, by where the difference went",
            family.clone(),
        );
        let refunds = Family::<Labels, Counter>::default();
        registry.register(
            "refunds",
            "Charges that were given back because another node of a cluster denied the request, by where they went",
            refunds.clone(),
        );
        let returned = |outcome: Outcome| refunds.get_or_create_owned(&one("outcome", outcome.as_str()));
        let of = |outcome: &str| family.get_or_create_owned(&one("outcome", outcome));
        Self {
            outcomes: Outcome::ALL.map(|outcome| of(outcome.as_str())),
            malformed: of("malformed"),
            returned: Outcome::ALL.map(returned),
        }
    }

    pub(in crate::telemetry) fn settled(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].inc();
    }

    /// A charge was given back.
    pub(in crate::telemetry) fn returned(&self, outcome: Outcome) {
        self.returned[outcome as usize].inc();
    }

    pub(in crate::telemetry) fn malformed(&self) {
        self.malformed.inc();
    }
}
