//! Lists of whom to let through without a limit and whom to refuse: addresses by network, others by value.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

use ipnet::IpNet;

use super::subject::{Facts, Identity, Part, Subject};

/// What a list says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// No policy applies.
    Allow,
    /// It is refused, whatever the policies say.
    Deny,
}

impl Access {
    /// The word for logs: on which list it stands.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }

    /// What two lists come to.
    pub(super) fn and(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(Self::Deny), _) | (_, Some(Self::Deny)) => Some(Self::Deny),
            (one, other) => one.or(other),
        }
    }
}

/// Who is let through and who is refused. The most specific entry decides: a subject's value before a network, a
/// narrower network before a wider one; of two that are equally specific the refusal.
#[derive(Clone, Debug, Default)]
pub struct AccessList {
    /// Networks by their mask, the narrowest first.
    v4: Networks<u32>,
    v6: Networks<u128>,
    /// By kind: the bytes of identities.
    subjects: Vec<(Subject, Values)>,
    entries: usize,
    /// Whether any entry is a claim's, and whether one of those exempts.
    reads_claims: bool,
    exempts_by_claim: bool,
}

type Values = HashMap<Box<[u8]>, Access>;
type Networks<B> = Vec<(B, HashMap<B, Access>)>;

impl AccessList {
    /// Adds a network; a single address is one of its full length.
    pub fn add_network(&mut self, network: IpNet, access: Access) {
        self.entries += 1;
        match network {
            IpNet::V4(v4) => {
                let mask = v4.netmask().to_bits();
                insert(with_mask(&mut self.v4, mask), v4.network().to_bits(), access);
            }
            IpNet::V6(v6) => match v6.network().to_ipv4_mapped() {
                // `::ffff:10.0.0.0/104` is `10.0.0.0/8`.
                Some(v4) if v6.prefix_len() >= 96 => {
                    let mask = v6.netmask().to_bits() as u32;
                    insert(with_mask(&mut self.v4, mask), v4.to_bits(), access);
                }
                _ => {
                    let mask = v6.netmask().to_bits();
                    insert(with_mask(&mut self.v6, mask), v6.network().to_bits(), access);
                }
            },
        }
    }

    /// Adds a subject of one part by its value, as a request carries it.
    pub fn add_subject(&mut self, part: Part, value: &[u8], access: Access) {
        let subject = Subject::new([part]);
        self.reads_claims |= subject.reads_claims();
        self.exempts_by_claim |= subject.reads_claims() && access == Access::Allow;
        let identity = subject.identity_of(value);
        let at = self.subjects.iter().position(|(other, _)| *other == subject).unwrap_or_else(|| {
            self.subjects.push((subject, HashMap::new()));
            self.subjects.len() - 1
        });
        self.entries += 1;
        insert(&mut self.subjects[at].1, identity.bytes().into(), access);
    }

    /// By what it knows those who are not known by their address.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        self.subjects.iter().flat_map(|(subject, _)| subject.parts())
    }

    /// How many entries were added.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Whether nobody stands on it.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// What it says of a request; `None` when it says nothing.
    pub fn of(&self, facts: &dyn Facts) -> Option<Access> {
        if self.is_empty() {
            return None;
        }
        self.named(facts, |_| true).or_else(|| self.addressed(facts))
    }

    /// What it says of a request as far as that takes no claim. A refusal is final, unless a claim could exempt.
    pub(super) fn of_without_claims(&self, facts: &dyn Facts) -> Option<Access> {
        let named = self.named(facts, |subject| !subject.reads_claims());
        let addressed = || match self.addressed(facts) {
            Some(Access::Deny) if self.exempts_by_claim => None,
            addressed => addressed,
        };
        named.or_else(addressed)
    }

    /// Whether it takes a claim to tell what it says.
    pub(super) fn reads_claims(&self) -> bool {
        self.reads_claims
    }

    /// Whether it exempts by a claim.
    pub(super) fn exempts_by_claim(&self) -> bool {
        self.exempts_by_claim
    }

    fn named(&self, facts: &dyn Facts, which: impl Fn(&Subject) -> bool) -> Option<Access> {
        let named =
            self.subjects.iter().filter(|(subject, _)| which(subject)).filter_map(|(subject, values)| {
                let identity = subject.identify(facts)?;
                values.get(identity.bytes()).copied()
            });
        named.reduce(|one, other| if one == Access::Deny { one } else { other })
    }

    fn addressed(&self, facts: &dyn Facts) -> Option<Access> {
        match facts.disputed() {
            [] => self.of_address(facts.ip()?),
            candidates => {
                let is_refused = |address: &IpAddr| self.of_address(*address) == Some(Access::Deny);
                candidates.iter().any(is_refused).then_some(Access::Deny)
            }
        }
    }

    /// What it says of a bare key that stands in for the subject of a policy.
    pub(super) fn of_key(&self, by: &Subject, identity: &Identity, key: &[u8]) -> Option<Access> {
        // By parts: how large an IPv6 client is makes no other value.
        let same = |(subject, _): &&(Subject, Values)| subject.parts() == by.parts();
        let values = self.subjects.iter().find(same).map(|(_, values)| values);
        let named = values.and_then(|values| values.get(identity.bytes()).copied());
        let address =
            || matches!(by.parts(), [Part::Ip]).then(|| std::str::from_utf8(key).ok()?.parse().ok());
        named.or_else(|| self.of_address(address()??))
    }

    fn of_address(&self, address: IpAddr) -> Option<Access> {
        match address.to_canonical() {
            IpAddr::V4(v4) => narrowest(&self.v4, |mask| v4.to_bits() & mask),
            IpAddr::V6(v6) => narrowest(&self.v6, |mask| v6.to_bits() & mask),
        }
    }
}

fn narrowest<B: Copy + Eq + Hash>(networks: &Networks<B>, masked: impl Fn(B) -> B) -> Option<Access> {
    networks.iter().find_map(|(mask, networks)| networks.get(&masked(*mask)).copied())
}

/// The networks of this mask. Narrower masks are greater numbers.
fn with_mask<B: Copy + Ord>(networks: &mut Networks<B>, mask: B) -> &mut HashMap<B, Access> {
    let at = networks.partition_point(|(other, _)| *other > mask);
    if networks.get(at).is_none_or(|(other, _)| *other != mask) {
        networks.insert(at, (mask, HashMap::new()));
    }
    &mut networks[at].1
}

fn insert<K: Hash + Eq>(entries: &mut HashMap<K, Access>, key: K, access: Access) {
    let entry = entries.entry(key).or_insert(access);
    if access == Access::Deny {
        *entry = Access::Deny;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct From(&'static str, Option<&'static str>);

    impl Facts for From {
        fn ip(&self) -> Option<IpAddr> {
            self.0.parse().ok()
        }
        fn method(&self) -> &str {
            "GET"
        }
        fn host(&self) -> &str {
            ""
        }
        fn path(&self) -> &str {
            "/"
        }
        fn header(&self, _: &str) -> Option<&[u8]> {
            self.1.map(str::as_bytes)
        }
        fn query(&self, _: &str) -> Option<std::borrow::Cow<'_, [u8]>> {
            None
        }
        fn cookie(&self, _: &str) -> Option<std::borrow::Cow<'_, [u8]>> {
            None
        }
        fn carries(&self, _: &Part) -> bool {
            self.1.is_some()
        }
    }

    #[test]
    fn the_most_specific_entry_decides_and_of_two_alike_the_refusal() {
        use Access::{Allow, Deny};
        let mut list = AccessList::default();
        for (network, access) in [
            ("10.0.0.0/8", Deny),
            ("10.1.0.0/16", Allow),
            ("10.1.2.3/32", Deny),
            ("192.0.2.0/24", Allow),
            ("192.0.2.0/24", Deny),
            ("2001:db8::/32", Deny),
            ("2001:db8:1::/48", Allow),
            ("0.0.0.0/0", Allow),
            ("::ffff:198.51.100.0/120", Deny),
        ] {
            list.add_network(network.parse().unwrap(), access);
        }
        let key = || Part::Header("x-api-key".into());
        list.add_subject(key(), b"partner", Allow);
        list.add_subject(key(), b"thief", Deny);
        list.add_subject(key(), b"both", Allow);
        list.add_subject(key(), b"both", Deny);
        assert_eq!(list.len(), 13);
        for (ip, header, wanted) in [
            ("10.9.9.9", None, Some(Deny)),
            ("10.1.9.9", None, Some(Allow)),
            ("10.1.2.3", None, Some(Deny)),
            ("::ffff:10.1.2.3", None, Some(Deny)),
            ("192.0.2.7", None, Some(Deny)),
            ("203.0.113.1", None, Some(Allow)),
            ("198.51.100.9", None, Some(Deny)),
            ("2001:db8:ffff::1", None, Some(Deny)),
            ("2001:db8:1::1", None, Some(Allow)),
            ("2001:db9::1", None, None),
            ("10.1.2.3", Some("partner"), Some(Allow)),
            ("10.1.9.9", Some("thief"), Some(Deny)),
            ("10.1.9.9", Some("both"), Some(Deny)),
            ("10.1.9.9", Some("somebody"), Some(Allow)),
        ] {
            assert_eq!(list.of(&From(ip, header)), wanted, "{ip} {header:?}");
        }
        assert_eq!(AccessList::default().of(&From("10.0.0.1", None)), None);
    }
}
