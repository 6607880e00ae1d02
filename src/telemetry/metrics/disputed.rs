//! `tidegate_disputed_clients_total`: how many requests had a client whose address is in dispute.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

pub(super) fn registered_in(registry: &mut Registry) -> Counter {
    let counter = Counter::default();
    registry.register(
        "disputed_clients",
        "Requests of clients whose address is in dispute: trusted proxies name different ones, or hide it",
        counter.clone(),
    );
    counter
}
