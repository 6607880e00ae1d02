//! `tidegate_overrides`: how many single subjects' own terms are in force, by what they do.

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Labels, one};

/// In the order of [`crate::limiter::Held::overrides`].
const EFFECTS: [&str; 3] = ["limit", "exempt", "block"];

/// Handles by effect.
pub(super) struct Overrides([Gauge; 3]);

impl Overrides {
    pub(super) fn registered_in(registry: &mut Registry) -> Self {
        let family = Family::<Labels, Gauge>::default();
        registry.register(
            "overrides",
            "Overrides in force on this instance, by what they do",
            family.clone(),
        );
        Self(EFFECTS.map(|effect| family.get_or_create_owned(&one("effect", effect))))
    }

    /// What is in force.
    pub(super) fn set(&self, counts: [usize; 3]) {
        for (gauge, count) in self.0.iter().zip(counts) {
            gauge.set(count as i64);
        }
    }
}
