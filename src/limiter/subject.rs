//! By whom a policy counts: from the facts of a request to an identity, and from an identity to its hashes.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv6Addr};

use siphasher::sip128::{SipHasher13, SipHasher24};
use smallvec::SmallVec;

/// What a door knows of a request. Every value is what the client sent, not yet believed.
pub trait Facts {
    /// The client's address, after trusted proxies; `None` when the door has none.
    fn ip(&self) -> Option<IpAddr>;
    /// The method, upper case.
    fn method(&self) -> &str;
    /// The host that was asked for, as written, port and all; empty when there is none.
    fn host(&self) -> &str;
    /// The path as written, without the query.
    fn path(&self) -> &str;
    /// A header's value, when it is there exactly once. Repeated, it names no one: which of them the
    /// upstream believes is not ours to guess.
    fn header(&self, name: &str) -> Option<&[u8]>;
    /// A parameter of the query, decoded, when it is there exactly once.
    fn query(&self, name: &str) -> Option<Cow<'_, [u8]>>;
    /// A cookie, when it is there exactly once.
    fn cookie(&self, name: &str) -> Option<Cow<'_, [u8]>>;
    /// Whether the request carries this part at all, be it empty or repeated.
    fn carries(&self, part: &Part) -> bool;
}

/// One source of an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The client's address; IPv6 by /64, since a client is handed a whole one.
    Ip,
    /// A request header, its name in lower case.
    Header(Box<str>),
    /// A parameter of the query string.
    Query(Box<str>),
    /// A cookie.
    Cookie(Box<str>),
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
            let _ = write!(kind, "{part}");
        }
        let start = [&(kind.len() as u32).to_be_bytes(), kind.as_bytes()].concat().into();
        Self { parts, kind: kind.into(), start }
    }

    /// By client address.
    pub fn ip() -> Self {
        Self::new([Part::Ip])
    }

    /// The kind, as in `ip` or `header:x-api-key+ip`: a part of every hash, never of a log line's identity.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// What it is made of.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Whether all requests share one bucket, which no percentage can split.
    pub fn is_everyone(&self) -> bool {
        matches!(self.parts.as_slice(), [Part::Everyone])
    }

    /// Who this request is, or `None` when a part is missing or empty.
    pub fn identify(&self, facts: &dyn Facts) -> Option<Identity> {
        let mut identity = Identity::starting(&self.start);
        if let [part] = self.parts.as_slice() {
            identity.append(part, facts)?;
        } else {
            for part in &self.parts {
                // Each part behind its own length: no two lists of values join to the same bytes.
                let start = identity.bytes.len();
                identity.bytes.extend_from_slice(&[0; 4]);
                identity.append(part, facts)?;
                let length = (identity.bytes.len() - start - 4) as u32;
                identity.bytes[start..start + 4].copy_from_slice(&length.to_be_bytes());
            }
        }
        Some(identity)
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
                write_address(&mut identity.bytes, address);
                identity
            }
            _ => self.identity_of(key),
        }
    }

    /// The identity whose value is given as it is.
    pub fn identity_of(&self, value: &[u8]) -> Identity {
        let mut identity = Identity::starting(&self.start);
        identity.bytes.extend_from_slice(value);
        identity
    }
}

/// Who a request is to one policy: kind and value, before any hash. It lives for one decision and is never logged.
#[derive(Clone)]
pub struct Identity {
    /// The kind's length, the kind, the value.
    bytes: SmallVec<[u8; 96]>,
    value_at: usize,
}

impl Identity {
    fn starting(start: &[u8]) -> Self {
        Self { bytes: SmallVec::from_slice(start), value_at: start.len() }
    }

    fn append(&mut self, part: &Part, facts: &dyn Facts) -> Option<()> {
        let before = self.bytes.len();
        match part {
            Part::Ip => write_address(&mut self.bytes, facts.ip()?),
            Part::Header(name) => self.bytes.extend_from_slice(facts.header(name)?),
            Part::Query(name) => self.bytes.extend_from_slice(&facts.query(name)?),
            Part::Cookie(name) => self.bytes.extend_from_slice(&facts.cookie(name)?),
            Part::Everyone => return Some(()),
        }
        (self.bytes.len() > before).then_some(())
    }

    fn kind(&self) -> &[u8] {
        &self.bytes[4..self.value_at]
    }

    /// Who, without the kind.
    pub(super) fn value(&self) -> &[u8] {
        &self.bytes[self.value_at..]
    }

    /// Kind and value: no two identities have the same.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity([not shown])")
    }
}

/// The address as policies count it: `::ffff:a.b.c.d` is the IPv4 address, IPv6 is cut to its /64.
fn write_address(bytes: &mut SmallVec<[u8; 96]>, address: IpAddr) {
    match address.to_canonical() {
        // By hand: `Display` through `fmt` costs more than the whole rest of an in-memory decision.
        IpAddr::V4(v4) => {
            // Four times three digits and a dot, the last of which is not taken along.
            let (mut text, mut end) = ([b'.'; 16], 0);
            for octet in v4.octets() {
                if octet >= 100 {
                    text[end] = b'0' + octet / 100;
                    end += 1;
                }
                if octet >= 10 {
                    text[end] = b'0' + octet / 10 % 10;
                    end += 1;
                }
                text[end] = b'0' + octet % 10;
                end += 2;
            }
            bytes.extend_from_slice(&text[..end - 1]);
        }
        IpAddr::V6(v6) => {
            let network = Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64));
            let mut text = String::new();
            let _ = write!(text, "{network}/64");
            bytes.extend_from_slice(text.as_bytes());
        }
    }
}

/// The hash of a subject that the shared store sees, keyed from the fleet's secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubjectHash(pub [u8; 16]);

impl fmt::Display for SubjectHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// A bucket's key in this process' memory: a keyed hash of the subject, marked with the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Key(pub(super) u64, pub(super) u64);

impl Key {
    /// The top byte of the second half depends on the subject alone, so that all policies of a subject
    /// live in one shard of the memory store and are charged under one lock.
    const SUBJECT_BITS: u64 = 0xFF << 56;

    /// The same subject under the policy with this tag.
    #[inline]
    pub fn under(self, tag: PolicyTag) -> Self {
        Self(self.0 ^ tag.0, self.1 ^ tag.1)
    }
}

/// A policy's mark on a [`Key`], made from its name: the same name keeps its debts through a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyTag(u64, u64);

impl PolicyTag {
    /// The tag of the policy with this name.
    pub fn of(name: &str) -> Self {
        let hash = SipHasher13::new_with_keys(0, 0).hash(name.as_bytes());
        Self(hash.h1, hash.h2 & !Key::SUBJECT_BITS)
    }
}

/// The secret of this process' memory keys: made at start, known to nobody, gone with the process.
#[derive(Clone)]
pub struct ProcessKey(SipHasher13);

impl ProcessKey {
    /// From sixteen random bytes.
    pub fn new(random: &[u8; 16]) -> Self {
        Self(SipHasher13::new_with_key(random))
    }

    /// The subject's hash in this process.
    #[inline]
    pub fn hash(&self, identity: &Identity) -> Key {
        let hash = self.0.hash(&identity.bytes);
        Key(hash.h1, hash.h2)
    }

    /// A short pseudonym of an address for the request log.
    pub fn pseudonym(&self, address: IpAddr) -> u64 {
        let mut bytes = SmallVec::new();
        bytes.extend_from_slice(b"client\0");
        write_address(&mut bytes, address);
        self.0.hash(&bytes).h1
    }
}

impl fmt::Debug for ProcessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProcessKey([not shown])")
    }
}

/// What the fleet's secret is for: the salt of the canary's buckets and the key of the store's hashes,
/// derived apart, so that whoever reads the store's keys learns nothing of the buckets.
#[derive(Clone, PartialEq, Eq)]
pub struct FleetKeys {
    bucket_salt: [u8; 16],
    subject_key: [u8; 16],
}

impl FleetKeys {
    /// From two independent keys of sixteen bytes.
    pub fn new(bucket_salt: [u8; 16], subject_key: [u8; 16]) -> Self {
        Self { bucket_salt, subject_key }
    }

    /// The subject's hash in the shared store.
    pub fn subject(&self, identity: &Identity) -> SubjectHash {
        let hash = SipHasher24::new_with_key(&self.subject_key).hash(&identity.bytes);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&hash.h1.to_be_bytes());
        bytes[8..].copy_from_slice(&hash.h2.to_be_bytes());
        SubjectHash(bytes)
    }

    /// The subject's bucket, 0…9999: the same on every instance with the same secret.
    ///
    /// `siphash-1-3(salt, "rl-backend\0v1\0" + kind + "\0" + value)`, its upper 32 bits mapped by
    /// multiplication, so that no bucket is favoured. Salt first and a version inside, after the lessons
    /// of flag systems whose unsalted hashes correlated across flags.
    pub fn bucket(&self, identity: &Identity) -> u16 {
        let mut message: SmallVec<[u8; 128]> = SmallVec::new();
        message.extend_from_slice(b"rl-backend\0v1\0");
        message.extend_from_slice(identity.kind());
        message.push(0);
        message.extend_from_slice(identity.value());
        let hash = siphasher::sip::SipHasher13::new_with_key(&self.bucket_salt).hash(&message);
        (((hash >> 32) * 10_000) >> 32) as u16
    }
}

impl fmt::Debug for FleetKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FleetKeys([not shown])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn address(text: &str) -> String {
        let mut bytes = SmallVec::new();
        write_address(&mut bytes, text.parse().unwrap());
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn an_address_is_written_in_its_canonical_form() {
        for bits in [0, u32::MAX, 0x0a00_0001, 0xc0a8_6409, 0x0163_c8ff] {
            let v4 = Ipv4Addr::from_bits(bits);
            assert_eq!(address(&v4.to_string()), v4.to_string());
        }
        assert_eq!(address("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(address("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
        assert_eq!(address("2001:db8:1:2:ffff::1"), "2001:db8:1:2::/64");
    }

    #[test]
    fn an_address_that_stands_in_for_a_client_is_that_client() {
        let ip = Subject::ip();
        for (key, counted) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:2::/64", "2001:db8:1:2::/64"),
            ("somebody", "somebody"),
        ] {
            assert_eq!(
                ip.standing_in(key.as_bytes()).bytes,
                ip.identity_of(counted.as_bytes()).bytes,
                "{key}"
            );
        }
        let header = Subject::new([Part::Header("x-api-key".into())]);
        let key = b"2001:db8:1:2:3:4:5:6";
        assert_eq!(header.standing_in(key).bytes, header.identity_of(key).bytes);
    }

    /// Buckets that every release must keep: a change here would move clients between stores.
    #[test]
    fn the_bucket_formula_is_pinned_by_golden_vectors() {
        let salt: [u8; 16] = *b"0123456789abcdef";
        let keys = FleetKeys::new(salt, [0; 16]);
        let header = Subject::new([Part::Header("x-api-key".into())]);
        let ip = Subject::ip();
        let got: Vec<u16> = ["user-1", "user-2", "user-3", "ak_live_1", ""]
            .iter()
            .map(|value| keys.bucket(&header.identity_of(value.as_bytes())))
            .chain(
                ["192.0.2.1", "192.0.2.2", "2001:db8::/64"]
                    .iter()
                    .map(|value| keys.bucket(&ip.identity_of(value.as_bytes()))),
            )
            .collect();
        assert_eq!(got, GOLDEN);
    }

    /// Computed by an independent implementation of SipHash-1-3.
    const GOLDEN: [u16; 8] = [2533, 8521, 735, 2321, 7977, 4982, 3833, 7315];

    #[test]
    fn buckets_are_spread_evenly() {
        let keys = FleetKeys::new([7; 16], [0; 16]);
        let subject = Subject::new([Part::Header("x-api-key".into())]);
        let mut count = [0u32; 100];
        for key in 0..100_000 {
            let bucket = keys.bucket(&subject.identity_of(format!("user-{key}").as_bytes()));
            count[usize::from(bucket) / 100] += 1;
        }
        // χ² with 99 degrees of freedom: above 161.6 with probability 0.0001.
        let chi2: f64 = count.iter().map(|&seen| (f64::from(seen) - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi2 < 161.6, "{chi2}");
    }

    #[test]
    fn no_debug_print_shows_an_identity_or_a_key() {
        let keys = FleetKeys::new([7; 16], [9; 16]);
        let identity = Subject::ip().identity_of(b"192.0.2.77");
        let printed = format!("{keys:?} {identity:?} {:?}", ProcessKey::new(&[5; 16]));
        assert!(!printed.contains("192.0.2.77") && !printed.contains('7'), "{printed}");
    }
}
