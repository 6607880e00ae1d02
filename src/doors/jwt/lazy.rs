//! The claims of one request: verified when the first of them is asked for, and only then.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::sync::Arc;

use super::{Claims, Found, Verifier};
use crate::limiter::subject::Facts;
use crate::limiter::token::TokenOutcome;

/// The claims of the request that some facts describe: always the same facts.
#[derive(Default)]
pub(in crate::doors) struct Lazy<'a> {
    verifier: Option<&'a Verifier>,
    claims: OnceCell<Result<Arc<Claims>, TokenOutcome>>,
}

impl<'a> Lazy<'a> {
    /// By this verifier; without one there are no claims.
    pub(in crate::doors) fn by(verifier: Option<&'a Verifier>) -> Self {
        Self { verifier, claims: OnceCell::new() }
    }

    /// A claim of the token.
    pub(in crate::doors) fn get(&self, name: &str, facts: &dyn Facts) -> Option<Cow<'_, [u8]>> {
        let verifier = self.verifier?;
        let verified = || verifier.of_request(facts, true).unwrap_or(Err(TokenOutcome::Signature));
        self.claims.get_or_init(verified).as_ref().ok()?.get(name)
    }

    /// The token whose signature has to be checked before the claims are known; `None` where they are known already.
    pub(in crate::doors) fn unchecked(&self, facts: &dyn Facts) -> Option<Vec<u8>> {
        let verifier = self.verifier?;
        if self.claims.get().is_some() {
            return None;
        }
        if let Some(known) = verifier.of_request(facts, false) {
            let _ = self.claims.set(known);
            return None;
        }
        match verifier.find(facts) {
            Found::Token(token) => Some(token.into_owned()),
            Found::Nowhere | Found::Repeated => None,
        }
    }

    /// Takes over the claims that were verified elsewhere.
    pub(in crate::doors) fn know(&self, claims: Result<Arc<Claims>, TokenOutcome>) {
        let _ = self.claims.set(claims);
    }

    /// What became of the token; `None` where no claim was asked for.
    pub(in crate::doors) fn outcome(&self) -> Option<TokenOutcome> {
        let claims = self.claims.get()?;
        Some(claims.as_ref().err().copied().unwrap_or(TokenOutcome::Valid))
    }
}
