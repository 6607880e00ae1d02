//! `tidegate_budget_resets_total`: how many keys may have got a fresh budget, and why.

use std::sync::atomic::Ordering;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::Labels;

/// The causes that are counted elsewhere and read at a scrape, in the order of [`BudgetResets::set`].
const CAUSES: [&str; 4] = ["restart", "eviction", "fallback", "operator"];
/// The causes of the contract that notes prevent: their counters stay at 0.
const PREVENTED: [&str; 2] = ["move", "recovery"];

/// Handles by cause.
pub(super) struct BudgetResets([Counter; 4]);

impl BudgetResets {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let family = Family::<Labels, Counter>::default();
        registry.register(
            "budget_resets",
            "Keys that may have got a fresh budget, by cause: restart counts the process, fallback the keys of Redis \
             that were decided here while nothing was known of them; debts are carried through move and recovery",
            family.clone(),
        );
        let of = |cause: &str| family.get_or_create_owned(&vec![("cause", cause.to_owned())]);
        PREVENTED.into_iter().for_each(|cause| drop(of(cause)));
        Self(CAUSES.map(of))
    }

    /// What was counted so far, by cause: restarts, evictions, fallbacks, forgiven keys.
    pub(super) fn set(&self, counts: [u64; 4]) {
        for (counter, count) in self.0.iter().zip(counts) {
            counter.inner().store(count, Ordering::Relaxed);
        }
    }
}
