//! Who a request is to one policy, as bytes that no other has, and the hashes of it that are kept.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv6Addr};

use siphasher::sip128::{SipHasher13, SipHasher24};
use smallvec::SmallVec;

/// Who a request is to one policy: kind and value, before any hash. It lives for one decision and is never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The kind's length, the kind, the value.
    bytes: SmallVec<[u8; 96]>,
    value_at: usize,
}

impl Identity {
    pub(super) fn starting(start: &[u8]) -> Self {
        Self { bytes: SmallVec::from_slice(start), value_at: start.len() }
    }

    /// Adds bytes of the value.
    #[inline]
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Adds an address to the value.
    #[inline]
    pub(super) fn push_address(&mut self, address: IpAddr, prefix: Ipv6Prefix) {
        write_address(&mut self.bytes, address, prefix);
    }

    /// Adds what `append` adds, behind its length. `None` when it adds nothing of its own.
    pub(super) fn push_measured(&mut self, append: impl FnOnce(&mut Self) -> Option<()>) -> Option<()> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        append(self)?;
        let length = (self.bytes.len() - start - 4) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_be_bytes());
        Some(())
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Everything that tells it from others, as the hashes see it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn kind(&self) -> &[u8] {
        &self.bytes[4..self.value_at]
    }

    /// Who, without the kind.
    pub(super) fn value(&self) -> &[u8] {
        &self.bytes[self.value_at..]
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity([not shown])")
    }
}

/// How many leading bits of an IPv6 address make one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6Prefix(u8);

impl Ipv6Prefix {
    /// 64: what a client is handed at least, and may change addresses within at will.
    pub const DEFAULT: Self = Self(64);

    /// So many bits; `None` unless from 1 to 128.
    pub const fn new(bits: u8) -> Option<Self> {
        if matches!(bits, 1..=128) { Some(Self(bits)) } else { None }
    }

    /// How many.
    pub const fn bits(self) -> u8 {
        self.0
    }
}

/// Whether a translator made this address from an IPv4 one (RFC 6052, 2.1; RFC 8215): all IPv4 clients share one /64 or
/// /48 there, so each address is one client.
fn is_translated(address: Ipv6Addr) -> bool {
    let [one, two, three, four, five, six, ..] = address.segments();
    (one, two) == (0x64, 0xff9b) && ((three, four, five, six) == (0, 0, 0, 0) || three == 1)
}

/// The address of a client as it is counted for want of a name: of IPv6 the network of this prefix.
pub fn counted(address: IpAddr, prefix: Ipv6Prefix) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !is_translated(v6) => {
            Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << (128 - u32::from(prefix.0)))).into()
        }
        other => other,
    }
}

/// The address as policies count it: `::ffff:a.b.c.d` is the IPv4 address, IPv6 is cut to its prefix.
fn write_address(bytes: &mut SmallVec<[u8; 96]>, address: IpAddr, Ipv6Prefix(bits): Ipv6Prefix) {
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
            let bits = if is_translated(v6) { 128 } else { bits };
            let network = Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << (128 - u32::from(bits))));
            let mut text = String::new();
            let _ = write!(text, "{network}/{bits}");
            bytes.extend_from_slice(text.as_bytes());
        }
    }
}

/// The hash of a subject that the shared store sees, keyed from the fleet's secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubjectHash(pub [u8; 16]);

impl SubjectHash {
    /// Its hexadecimal digits, which every call of Redis writes: without the machinery of formatting.
    pub fn digits(self) -> [char; 32] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        std::array::from_fn(|at| {
            let byte = self.0[at / 2];
            char::from(DIGITS[usize::from(if at % 2 == 0 { byte >> 4 } else { byte & 15 })])
        })
    }
}

impl fmt::Display for SubjectHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.digits().iter().try_for_each(|digit| f.write_char(*digit))
    }
}

/// A bucket's key in this process' memory: a keyed hash of the subject, marked with the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Key(pub(super) u64, pub(super) u64);

impl Key {
    /// The top byte of the second half depends on the subject alone, so that all policies of a subject
    /// live in one shard of the memory store and are charged under one lock.
    const SUBJECT_BITS: u64 = 0xFF << 56;
    /// The lowest bits of the second half depend on the policy alone, so that an eviction knows whose keys are how many.
    /// 112 bits of hash are left.
    const POLICY_BITS: u64 = 0xFFFF;

    /// The same subject under the policy with this tag.
    #[inline]
    pub fn under(self, tag: PolicyTag) -> Self {
        Self(self.0 ^ tag.0, self.1 ^ tag.1)
    }

    /// A mark of the policy, the same for all of its keys.
    #[inline]
    pub(super) fn policy(self) -> u16 {
        (self.1 & Self::POLICY_BITS) as u16
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
        Key(hash.h1, hash.h2 & !Key::POLICY_BITS)
    }

    /// A short pseudonym of an address for the request log.
    pub fn pseudonym(&self, address: IpAddr) -> u64 {
        let mut bytes = SmallVec::new();
        bytes.extend_from_slice(b"client\0");
        write_address(&mut bytes, address, Ipv6Prefix::DEFAULT);
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
    seal: [u8; 16],
}

impl FleetKeys {
    /// From two independent keys of sixteen bytes.
    pub fn new(bucket_salt: [u8; 16], subject_key: [u8; 16]) -> Self {
        Self { bucket_salt, subject_key, seal: [0; 16] }
    }

    /// With a third, for what instances tell each other.
    pub fn with_seal(self, seal: [u8; 16]) -> Self {
        Self { seal, ..self }
    }

    /// The key that instances seal with what they tell each other.
    pub fn seal(&self) -> &[u8; 16] {
        &self.seal
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
        let message = bucket_message(identity);
        let hash = siphasher::sip::SipHasher13::new_with_key(&self.bucket_salt).hash(&message);
        (((hash >> 32) * 10_000) >> 32) as u16
    }
}

impl fmt::Debug for FleetKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FleetKeys([not shown])")
    }
}

/// What a bucket is the hash of. A kind holds no NUL, so the first one ends it.
pub(super) fn bucket_message(identity: &Identity) -> SmallVec<[u8; 128]> {
    let mut message = SmallVec::new();
    message.extend_from_slice(b"rl-backend\0v1\0");
    message.extend_from_slice(identity.kind());
    message.push(0);
    message.extend_from_slice(identity.value());
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::subject::{Part, Subject};
    use std::net::Ipv4Addr;

    fn address(text: &str, bits: u8) -> String {
        let mut bytes = SmallVec::new();
        write_address(&mut bytes, text.parse().unwrap(), Ipv6Prefix::new(bits).unwrap());
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn an_address_is_written_in_its_canonical_form() {
        for bits in [0, u32::MAX, 0x0a00_0001, 0xc0a8_6409, 0x0163_c8ff] {
            let v4 = Ipv4Addr::from_bits(bits);
            assert_eq!(address(&v4.to_string(), 64), v4.to_string());
        }
        assert_eq!(address("::ffff:192.0.2.1", 64), "192.0.2.1");
        assert_eq!(address("2001:db8:1:2:3:4:5:6", 64), "2001:db8:1:2::/64");
        assert_eq!(address("2001:db8:1:2:ffff::1", 64), "2001:db8:1:2::/64");
    }

    #[test]
    fn clients_behind_a_translator_are_one_address_each() {
        for (written, counted_as) in [
            ("64:ff9b::192.0.2.7", "64:ff9b::c000:207/128"),
            ("64:ff9b::192.0.2.8", "64:ff9b::c000:208/128"),
            ("64:ff9b:1:c000:2:700::", "64:ff9b:1:c000:2:700::/128"),
            // Beside the prefixes of translators.
            ("64:ff9b:0:0:1::1", "64:ff9b::/64"),
            ("64:ff9b:2::1", "64:ff9b:2::/64"),
            ("64:ff9c::1", "64:ff9c::/64"),
        ] {
            assert_eq!(address(written, 64), counted_as, "{written}");
            let network = counted_as.split_once('/').unwrap().0;
            assert_eq!(counted(written.parse().unwrap(), Ipv6Prefix::DEFAULT).to_string(), network);
        }
    }

    #[test]
    fn an_ipv6_client_is_as_large_as_the_prefix_says_and_an_ipv4_client_is_one_address() {
        for (bits, counted) in [
            (1, "::/1"),
            (32, "2001:db8::/32"),
            (48, "2001:db8:1::/48"),
            (56, "2001:db8:1:200::/56"),
            (64, "2001:db8:1:2ff::/64"),
            (127, "2001:db8:1:2ff:3:4:5:6/127"),
            (128, "2001:db8:1:2ff:3:4:5:7/128"),
        ] {
            assert_eq!(address("2001:db8:1:2ff:3:4:5:7", bits), counted);
            assert_eq!(address("::ffff:192.0.2.1", bits), "192.0.2.1");
            assert_eq!(address("192.0.2.1", bits), "192.0.2.1");
        }
        assert_eq!((Ipv6Prefix::new(0), Ipv6Prefix::new(129)), (None, None));
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
