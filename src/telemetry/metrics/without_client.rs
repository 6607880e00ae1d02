//! `tidegate_decisions_without_client_total`: what became of decisions whose clients disconnected while Redis was asked.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::{Labels, STATES, one};
use crate::limiter::decision::Decision;

pub(super) struct WithoutClient {
    states: [Counter; STATES.len()],
    dropped: Counter,
}

impl WithoutClient {
    pub(super) fn registered_in(registry: &mut Registry) -> Self {
        let family = Family::<Labels, Counter>::default();
        registry.register(
            "decisions_without_client",
            "Decisions whose client disconnected while Redis was asked, by outcome; dropped: too many at once",
            family.clone(),
        );
        let of = |outcome: &str| family.get_or_create_owned(&one("outcome", outcome));
        Self { states: STATES.map(|state| of(state.as_str())), dropped: of("dropped") }
    }

    pub(super) fn count(&self, decision: Option<&Decision>) {
        match decision {
            Some(decision) => self.states[decision.state as usize].inc(),
            None => self.dropped.inc(),
        };
    }
}
