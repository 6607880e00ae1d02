//! By whom a policy counts: from the facts of a request to an identity.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::net::IpAddr;

use smallvec::SmallVec;

pub use super::identity::{
    FleetKeys, Identity, Ipv6Prefix, Key, PolicyTag, ProcessKey, SubjectHash, counted,
};

/// What a door knows of a request. Every value is what the client sent, not yet believed; only a claim is vouched
/// for. What a door does not know is not there.
pub trait Facts {
    /// The client's address, after trusted proxies; `None` when the door has none.
    fn ip(&self) -> Option<IpAddr> {
        None
    }
    /// The addresses that the client may have when its proxies contradict each other or hide it, [`Facts::ip`] among
    /// them; none where its address is certain. A disputed address is counted and refused, never exempt.
    fn disputed(&self) -> &[IpAddr] {
        &[]
    }
    /// The method, upper case.
    fn method(&self) -> &str {
        ""
    }
    /// The host that was asked for, as written, port and all; empty when there is none.
    fn host(&self) -> &str {
        ""
    }
    /// Whether the request came without a host, so that the upstream chooses one. Where a host is merely not known, it
    /// did not.
    fn lacks_host(&self) -> bool {
        false
    }
    /// The path as written, without the query.
    fn path(&self) -> &str {
        ""
    }
    /// A header's value, when it is there exactly once. Repeated, it names no one: which of them the
    /// upstream believes is not ours to guess.
    fn header(&self, _name: &str) -> Option<&[u8]> {
        None
    }
    /// A parameter of the query, decoded, when it is there exactly once.
    fn query(&self, _name: &str) -> Option<Cow<'_, [u8]>> {
        None
    }
    /// A cookie, when it is there exactly once.
    fn cookie(&self, _name: &str) -> Option<Cow<'_, [u8]>> {
        None
    }
    /// A claim of the request's token, when the token was verified and the claim is a text that is not empty, or a
    /// whole number (in decimal).
    fn claim(&self, _name: &str) -> Option<Cow<'_, [u8]>> {
        None
    }
    /// A value that the application derives from the request, such as the user of a session; `None` when there is none.
    fn custom(&self, _name: &str) -> Option<Cow<'_, [u8]>> {
        None
    }
    /// Whether the request carries this part at all, be it empty or repeated. A claim is there or not: a token that
    /// is not believed carries nothing.
    fn carries(&self, part: &Part) -> bool {
        match part {
            Part::Ip => self.ip().is_some(),
            Part::Header(name) => self.header(name).is_some(),
            Part::Query(name) => self.query(name).is_some(),
            Part::Cookie(name) => self.cookie(name).is_some(),
            Part::Jwt(name) => self.claim(name).is_some(),
            Part::Custom(name) => self.custom(name).is_some(),
            Part::Everyone => true,
        }
    }
}

/// One source of an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The client's address; IPv6 by its network, since a client is handed a whole one.
    Ip,
    /// A request header, its name in lower case.
    Header(Box<str>),
    /// A parameter of the query string.
    Query(Box<str>),
    /// A cookie.
    Cookie(Box<str>),
    /// A claim of a verified token.
    Jwt(Box<str>),
    /// A value that the application derives from the request, by its name. Library only: no policy file names one.
    Custom(Box<str>),
    /// One bucket for all.
    Everyone,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip => f.write_str("ip"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::Jwt(name) => write!(f, "jwt:{name}"),
            Self::Custom(name) => write!(f, "custom:{name}"),
            Self::Everyone => f.write_str("everyone"),
        }
    }
}

/// Whom a policy tells apart: one part, or several taken together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    parts: SmallVec<[Part; 1]>,
    kind: Box<str>,
    /// How each of its identities begins.
    start: Box<[u8]>,
    ipv6_prefix: Ipv6Prefix,
}

impl Subject {
    /// A subject of these parts, in this order. No part at all is [`Part::Everyone`].
    pub fn new(parts: impl IntoIterator<Item = Part>) -> Self {
        let mut parts: SmallVec<[Part; 1]> = parts.into_iter().collect();
        if parts.is_empty() {
            parts.push(Part::Everyone);
        }
        let mut kind = String::new();
        for (index, part) in parts.iter().enumerate() {
            if index > 0 {
                kind.push('+');
            }
            push_escaped(&mut kind, &part.to_string());
        }
        let start = start_of(&kind);
        Self { parts, kind: kind.into(), start, ipv6_prefix: Ipv6Prefix::DEFAULT }
    }

    /// By client address.
    pub fn ip() -> Self {
        Self::new([Part::Ip])
    }

    /// With IPv6 clients of another size, wherever an address is counted. IPv4 clients stay one address each.
    pub fn with_ipv6_prefix(self, ipv6_prefix: Ipv6Prefix) -> Self {
        Self { ipv6_prefix, ..self }
    }

    /// The size of an IPv6 client.
    pub fn ipv6_prefix(&self) -> Ipv6Prefix {
        self.ipv6_prefix
    }

    /// The kind, as in `ip` or `header:x-api-key+ip`: a part of every hash, never of a log line's identity.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// What it is made of.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Whether it takes a claim of the request's token to tell who it is.
    pub fn reads_claims(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Jwt(_)))
    }

    /// Whether all requests share one bucket, which no percentage can split.
    pub fn is_everyone(&self) -> bool {
        matches!(self.parts.as_slice(), [Part::Everyone])
    }

    /// Who this request is, or `None` when a part is missing or empty.
    pub fn identify(&self, facts: &dyn Facts) -> Option<Identity> {
        let mut identity = Identity::starting(&self.start);
        if let [part] = self.parts.as_slice() {
            self.append(&mut identity, part, facts)?;
        } else {
            for part in &self.parts {
                // Each part behind its own length: no two lists of values join to the same bytes.
                identity.push_measured(|identity| self.append(identity, part, facts))?;
            }
        }
        Some(identity)
    }

    /// The client's address where this subject is missing. Without an address either (a unix socket), all such
    /// requests share one bucket.
    pub fn address_instead(&self, facts: &dyn Facts) -> Identity {
        self.at(facts.ip())
    }

    fn at(&self, address: Option<IpAddr>) -> Identity {
        let mut identity = Identity::starting(BY_ADDRESS);
        match address {
            Some(address) => identity.push_address(address, self.ipv6_prefix),
            None => identity.push(b"unknown"),
        }
        identity
    }

    /// Whom an operator means who gives a value for each part, in their order. A single value is one that
    /// [stands in](Self::standing_in) for all of them.
    pub fn meant_by(&self, values: &[&[u8]]) -> Option<Identity> {
        if let [value] = values {
            return Some(self.standing_in(value));
        }
        if values.len() != self.parts.len() {
            return None;
        }
        let mut identity = Identity::starting(&self.start);
        for (part, value) in self.parts.iter().zip(values) {
            identity.push_measured(|identity| {
                match address_in(value).filter(|_| *part == Part::Ip) {
                    Some(address) => identity.push_address(address, self.ipv6_prefix),
                    None => push_value(identity, part, value),
                }
                Some(())
            })?;
        }
        Some(identity)
    }

    /// The values of the parts, from all of them as [`Identity`] joins them; one where there is one.
    pub fn values_in<'v>(&self, joined: &'v [u8]) -> Vec<&'v [u8]> {
        let parts = || {
            let mut rest = joined;
            let values: Option<Vec<&[u8]>> = self
                .parts
                .iter()
                .map(|_| {
                    let (length, behind) = rest.split_first_chunk()?;
                    let (value, behind) = behind.split_at_checked(u32::from_be_bytes(*length) as usize)?;
                    rest = behind;
                    Some(value)
                })
                .collect();
            values.filter(|_| rest.is_empty())
        };
        // An address that was counted instead has no parts.
        if self.parts.len() < 2 { vec![joined] } else { parts().unwrap_or_else(|| vec![joined]) }
    }

    /// Whether a part is not there at all. One that is there and names no one (empty, repeated) is another thing:
    /// otherwise a client could step out of a policy that skips strangers by sending its key twice.
    pub fn is_absent(&self, facts: &dyn Facts) -> bool {
        self.parts.iter().any(|part| !facts.carries(part))
    }

    /// The identity of a request of which nothing is known but a key (the decision API's `key`): the key stands in
    /// for every subject but everyone, which stays one. An address that stands in for a client's is counted as it
    /// would be in a request.
    pub fn standing_in(&self, key: &[u8]) -> Identity {
        let address = || std::str::from_utf8(key).ok()?.parse().ok();
        match self.parts.as_slice() {
            [Part::Everyone] => self.identity_of(b""),
            [Part::Ip] if let Some(address) = address() => {
                let mut identity = Identity::starting(&self.start);
                identity.push_address(address, self.ipv6_prefix);
                identity
            }
            _ => self.identity_of(key),
        }
    }

    /// Who is counted at the address `key` where this subject is missing ([`Subject::address_instead`]). It may also be
    /// written as counted, an IPv6 network. `None` where it is no address, and where no address ever stands in.
    pub fn address_standing_in(&self, key: &[u8]) -> Option<Identity> {
        if matches!(self.parts.as_slice(), [Part::Ip | Part::Everyone]) {
            return None;
        }
        let text = std::str::from_utf8(key).ok()?;
        let mut identity = Identity::starting(BY_ADDRESS);
        match text.parse() {
            Ok(address) => identity.push_address(address, self.ipv6_prefix),
            Err(_) => {
                text.parse::<ipnet::Ipv6Net>().ok()?;
                identity.push(key);
            }
        }
        Some(identity)
    }

    /// The identity whose value is given as it is; of several parts as [`Identity`] joins them.
    pub fn identity_of(&self, value: &[u8]) -> Identity {
        let mut identity = Identity::starting(&self.start);
        match self.parts.as_slice() {
            [part] => push_value(&mut identity, part, value),
            _ => identity.push(value),
        }
        identity
    }

    fn append(&self, identity: &mut Identity, part: &Part, facts: &dyn Facts) -> Option<()> {
        let before = identity.len();
        match part {
            Part::Ip => identity.push_address(facts.ip()?, self.ipv6_prefix),
            Part::Header(name) => push_value(identity, part, facts.header(name)?),
            Part::Query(name) => identity.push(&facts.query(name)?),
            Part::Cookie(name) => identity.push(&facts.cookie(name)?),
            Part::Jwt(name) => identity.push(&facts.claim(name)?),
            Part::Custom(name) => identity.push(&facts.custom(name)?),
            Part::Everyone => return Some(()),
        }
        (identity.len() > before).then_some(())
    }
}

/// Adds a part's value. Credentials are the same in every spelling of their scheme, which has no case (RFC 9110, 11.1) and
/// ends at any number of spaces: it becomes `Bearer`, one space, and the rest.
fn push_value(identity: &mut Identity, part: &Part, value: &[u8]) {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let has_scheme =
        matches!(part, Part::Header(name) if matches!(&**name, "authorization" | "proxy-authorization"));
    let Some(end) = value.iter().position(is_blank).filter(|_| has_scheme) else {
        return identity.push(value);
    };
    let (scheme, credentials) = value.split_at(end);
    let mut begins = true;
    for byte in scheme {
        identity.push(&[if begins { byte.to_ascii_uppercase() } else { byte.to_ascii_lowercase() }]);
        begins = *byte == b'-';
    }
    identity.push(b" ");
    identity.push(credentials.trim_ascii_start());
}

/// An address, or the network of one as identities have it.
fn address_in(value: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(value).ok()?;
    text.split_once('/').map_or(text, |(address, _)| address).parse().ok()
}

/// How the identities of [`Subject::ip`] begin.
const BY_ADDRESS: &[u8] = b"\0\0\0\x02ip";

/// The kind's length, then the kind.
fn start_of(kind: &str) -> Box<[u8]> {
    [&(kind.len() as u32).to_be_bytes(), kind.as_bytes()].concat().into()
}

/// A part's name inside a kind: what joins parts (`+`), and what ends a kind (NUL), does not appear in it.
fn push_escaped(kind: &mut String, part: &str) {
    for character in part.chars() {
        if matches!(character, '+' | '%') || character.is_ascii_control() {
            let _ = write!(kind, "%{:02X}", u32::from(character));
        } else {
            kind.push(character);
        }
    }
}

#[cfg(test)]
#[path = "subject_tests.rs"]
mod tests;
