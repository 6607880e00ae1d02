//! Clients whose address is in dispute ([`Facts::disputed`]): refused when any candidate is, exempt by none.

use std::borrow::Cow;
use std::net::IpAddr;

use super::Limiter;
use super::overrides::{Overrides, Terms, Whom};
use super::penalty::Standing;
use super::policy::Policy;
use super::store::Store;
use super::subject::{Facts, Key, Part};

/// A request as it would be from this address.
struct At<'a> {
    facts: &'a dyn Facts,
    address: IpAddr,
}

impl Facts for At<'_> {
    fn ip(&self) -> Option<IpAddr> {
        Some(self.address)
    }
    fn method(&self) -> &str {
        self.facts.method()
    }
    fn host(&self) -> &str {
        self.facts.host()
    }
    fn lacks_host(&self) -> bool {
        self.facts.lacks_host()
    }
    fn path(&self) -> &str {
        self.facts.path()
    }
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.facts.header(name)
    }
    fn query(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.facts.query(name)
    }
    fn cookie(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.facts.cookie(name)
    }
    fn claim(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.facts.claim(name)
    }
    fn carries(&self, part: &Part) -> bool {
        self.facts.carries(part)
    }
}

/// Whether an exemption that this policy's subject has is the request's to use: not when it hangs on an address that is in
/// dispute.
pub(super) fn may_be_exempt(policy: &Policy, facts: &dyn Facts) -> bool {
    let hangs_on_address = || policy.by.parts().contains(&Part::Ip) || policy.by.identify(facts).is_none();
    facts.disputed().is_empty() || !hangs_on_address()
}

impl<S: Store> Limiter<S> {
    /// The place of an override that blocks any candidate under this policy.
    pub(super) fn blocked_candidate(
        &self,
        policy: &Policy,
        facts: &dyn Facts,
        overrides: &Overrides,
    ) -> Option<usize> {
        let wall = self.wall();
        self.candidates(policy, facts).find_map(|key| match overrides.find(key, wall) {
            Some((place, Terms::Block)) => Some(place),
            _ => None,
        })
    }

    /// How long the penalty of any candidate under this policy still lasts.
    pub(super) fn shut_out_candidate(&self, policy: &Policy, facts: &dyn Facts) -> Option<u64> {
        let now = self.clock.now();
        self.candidates(policy, facts).find_map(|key| match self.penalties.standing(key, now) {
            Standing::Blocked(rest) => Some(rest),
            _ => None,
        })
    }

    /// The buckets of the candidates under this policy; none where the address is certain.
    fn candidates<'a>(&'a self, policy: &'a Policy, facts: &'a dyn Facts) -> impl Iterator<Item = Key> + 'a {
        facts.disputed().iter().filter_map(move |&address| {
            let at = At { facts, address };
            match Whom::of(policy, |subject| subject.identify(&at), &at) {
                Whom::One(identity) => Some(self.process_key.hash(&identity).under(policy.tag)),
                Whom::Nobody | Whom::Missing => None,
            }
        })
    }
}
