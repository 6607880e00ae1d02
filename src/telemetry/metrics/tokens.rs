//! `tidegate_tokens_total`, by what became of the token, and `tidegate_token_signature_checks_total`: what that cost.

use std::sync::atomic::Ordering;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::{Labels, one};
use crate::limiter::token::TokenOutcome;

/// Handles by outcome, in the order of [`TokenOutcome::ALL`].
pub(super) struct Tokens {
    outcomes: [Counter; TokenOutcome::ALL.len()],
    signature_checks: Counter,
}

impl Tokens {
    pub(super) fn registered_in(registry: &mut Registry) -> Self {
        let family = Family::<Labels, Counter>::default();
        registry.register(
            "tokens",
            "Requests whose token was looked at because deciding took a claim, by outcome",
            family.clone(),
        );
        let signature_checks = Counter::default();
        registry.register(
            "token_signature_checks",
            "Signatures of tokens that were checked; a token whose outcome is known is not checked again",
            signature_checks.clone(),
        );
        let outcomes =
            TokenOutcome::ALL.map(|one_of| family.get_or_create_owned(&one("outcome", one_of.as_str())));
        Self { outcomes, signature_checks }
    }

    /// Counts the token of one request.
    pub(super) fn count(&self, outcome: TokenOutcome) {
        self.outcomes[outcome as usize].inc();
    }

    /// How many signatures were checked since the start.
    pub(super) fn checked(&self, checks: u64) {
        self.signature_checks.inner().store(checks, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcome_is_counted_under_its_own_name() {
        let mut registry = Registry::default();
        let tokens = Tokens::registered_in(&mut registry);
        for (times, outcome) in TokenOutcome::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| tokens.count(outcome));
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for (times, outcome) in TokenOutcome::ALL.into_iter().enumerate() {
            let line = format!("tokens_total{{outcome=\"{}\"}} {times}", outcome.as_str());
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
    }
}
