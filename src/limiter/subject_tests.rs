//! Whom subjects tell apart: the bytes of identities, before any hash.

use std::collections::HashMap;
use std::net::Ipv6Addr;

use proptest::prelude::*;

use super::super::identity::bucket_message;
use super::*;

/// A request that has a value for each of some parts.
#[derive(Clone, Debug)]
struct Given(Vec<(Part, Vec<u8>)>);

impl Given {
    fn value(&self, part: &Part) -> Option<&[u8]> {
        self.0.iter().find(|(one, _)| one == part).map(|(_, value)| value.as_slice())
    }
}

impl Facts for Given {
    fn ip(&self) -> Option<IpAddr> {
        let value = self.value(&Part::Ip)?;
        // A few addresses: IPv4, the same mapped into IPv6, and IPv6 that differs in late bits only.
        Some(match value.first().copied().unwrap_or(0) % 4 {
            0 => IpAddr::from([192, 0, 2, value.len() as u8]),
            1 => IpAddr::from(std::net::Ipv4Addr::new(192, 0, 2, value.len() as u8).to_ipv6_mapped()),
            2 => IpAddr::from(Ipv6Addr::from_bits(0x2001_0db8 << 96 | (value.len() as u128) << 40)),
            _ => IpAddr::from(Ipv6Addr::from_bits(0x2001_0db8 << 96 | (value.len() as u128) << 70)),
        })
    }
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.value(&Part::Header(name.into()))
    }
    fn query(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.value(&Part::Query(name.into())).map(Cow::Borrowed)
    }
    fn cookie(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.value(&Part::Cookie(name.into())).map(Cow::Borrowed)
    }
    fn claim(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.value(&Part::Jwt(name.into())).map(Cow::Borrowed)
    }
    fn custom(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.value(&Part::Custom(name.into())).map(Cow::Borrowed)
    }
}

/// What an identity should be, told apart by values and not by bytes.
type Meaning = Vec<(Part, Vec<u8>)>;

fn meaning(parts: &[Part], given: &Given, bits: u8) -> Option<Meaning> {
    let mut meaning = Meaning::new();
    for part in parts {
        let value = match part {
            Part::Ip => match given.ip()?.to_canonical() {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => {
                    let network = ipnet::Ipv6Net::new(v6, bits).unwrap().trunc();
                    [&network.addr().octets()[..], &[bits]].concat()
                }
            },
            Part::Everyone => Vec::new(),
            other => Some(given.value(other)?).filter(|value| !value.is_empty())?.to_vec(),
        };
        meaning.push((part.clone(), value));
    }
    Some(meaning)
}

/// Names that would collide if kinds were joined without care: with separators, NULs and escapes in them.
const NAMES: [&str; 14] =
    ["a", "b", "ip", "a+ip", "a+header:b", "a%2Bip", "a%", "a%25", "a\0", "a\0b", "", "a+", ":", "query:a"];

fn part() -> impl Strategy<Value = Part> {
    let named = (0..5, prop::sample::select(&NAMES[..])).prop_map(|(kind, name)| match kind {
        0 => Part::Header(name.into()),
        1 => Part::Query(name.into()),
        2 => Part::Cookie(name.into()),
        3 => Part::Custom(name.into()),
        _ => Part::Jwt(name.into()),
    });
    prop_oneof![8 => named, 2 => Just(Part::Ip), 1 => Just(Part::Everyone)]
}

/// Values that look like lengths, separators and each other.
fn value() -> impl Strategy<Value = Vec<u8>> {
    const PIECES: [&[u8]; 10] =
        [b"a", b"b", b"+", b"+ip", b"\0", b"\x01", b"\0\0\0\0", b"\0\0\0\x01", b"\0\0\0\x05", b"127.0.0.1"];
    prop::collection::vec(prop::sample::select(&PIECES[..]), 0..4).prop_map(|pieces| pieces.concat())
}

fn request() -> impl Strategy<Value = (Vec<Part>, Given, u8)> {
    let any = prop::collection::vec((part(), value()), 1..4);
    let single = (part(), value()).prop_map(|one| vec![one]);
    // One subject again and again, so that its values meet.
    let same = (value(), value()).prop_map(|(query, cookie)| {
        vec![(Part::Query("a".into()), query), (Part::Cookie("b".into()), cookie)]
    });
    let bits = prop::sample::select(&[48u8, 64, 128][..]);
    (prop_oneof![any, single, same], bits)
        .prop_map(|(given, bits)| (given.iter().map(|(part, _)| part.clone()).collect(), Given(given), bits))
}

fn identity((parts, given, bits): &(Vec<Part>, Given, u8)) -> Option<Identity> {
    let subject = Subject::new(parts.clone()).with_ipv6_prefix(Ipv6Prefix::new(*bits).unwrap());
    subject.identify(given)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_two_different_identities_share_a_bucket(
        requests in prop::collection::vec(request(), 60)
    ) {
        let (mut by_bytes, mut by_message) = (HashMap::new(), HashMap::new());
        for request in &requests {
            let (parts, given, bits) = request;
            let meaning = meaning(parts, given, *bits);
            let identity = identity(request);
            prop_assert_eq!(identity.is_some(), meaning.is_some(), "{:?}", request);
            let (Some(identity), Some(meaning)) = (identity, meaning) else { continue };
            let before = by_bytes.entry(identity.bytes().to_vec()).or_insert(meaning.clone());
            prop_assert_eq!(&*before, &meaning, "one hash for two");
            let before = by_message.entry(bucket_message(&identity).to_vec()).or_insert(meaning.clone());
            prop_assert_eq!(&*before, &meaning, "one bucket for two");
        }
        // And the other way: one identity has one sequence of bytes.
        let meanings: std::collections::HashSet<String> =
            by_bytes.values().map(|meaning| format!("{meaning:?}")).collect();
        prop_assert_eq!(meanings.len(), by_bytes.len());
    }
}

/// The same, for every pair of values that can be put together from a few pieces: no luck in it.
#[test]
fn no_two_pairs_of_values_share_a_bucket() {
    const PIECES: [&[u8]; 5] = [b"a", b"+", b"\0\0\0\0", b"\0\0\0\x01", b"\0\0\0\x05"];
    let mut values: Vec<Vec<u8>> = Vec::new();
    for length in 1..=3usize {
        for index in 0..PIECES.len().pow(length as u32) {
            let piece = |place: usize| PIECES[index / PIECES.len().pow(place as u32) % PIECES.len()];
            values.push((0..length).flat_map(|place| piece(place).to_vec()).collect());
        }
    }
    let (query, cookie) = (Part::Query("a".into()), Part::Cookie("b".into()));
    let subject = Subject::new([query.clone(), cookie.clone()]);
    let mut seen = std::collections::HashSet::new();
    for one in &values {
        for other in &values {
            let given = Given(vec![(query.clone(), one.clone()), (cookie.clone(), other.clone())]);
            let identity = subject.identify(&given).unwrap();
            assert!(seen.insert(bucket_message(&identity).to_vec()), "{one:?} {other:?}");
        }
    }
    assert_eq!(seen.len(), values.len().pow(2));
}

#[test]
fn a_value_that_spells_out_a_join_is_not_the_join() {
    let joined = Given(vec![(Part::Query("a".into()), b"x".to_vec()), (Part::Ip, b"".to_vec())]);
    let join = Subject::new([Part::Query("a".into()), Part::Ip]);
    let join = join.identify(&joined).unwrap();
    // A parameter whose name reads like the join's kind, and whose value is the join's.
    let value = b"\0\0\0\x01x\0\0\0\x09192.0.2.0".to_vec();
    let single = Part::Query("a+ip".into());
    let spelled = Subject::new([single.clone()]).identify(&Given(vec![(single, value)])).unwrap();
    assert_ne!(join.bytes(), spelled.bytes());
    assert_ne!(bucket_message(&join), bucket_message(&spelled));
}

#[test]
fn a_kind_names_its_parts() {
    for (parts, kind) in [
        (vec![Part::Ip], "ip"),
        (vec![], "everyone"),
        (vec![Part::Header("x-api-key".into()), Part::Ip], "header:x-api-key+ip"),
        (vec![Part::Jwt("https://example.com/tenant".into())], "jwt:https://example.com/tenant"),
        (vec![Part::Query("naïve".into())], "query:naïve"),
        (vec![Part::Query("a+ip%\0".into())], "query:a%2Bip%25%00"),
    ] {
        assert_eq!(Subject::new(parts).kind(), kind);
    }
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
            ip.standing_in(key.as_bytes()).bytes(),
            ip.identity_of(counted.as_bytes()).bytes(),
            "{key}"
        );
    }
    let header = Subject::new([Part::Header("x-api-key".into())]);
    let key = b"2001:db8:1:2:3:4:5:6";
    assert_eq!(header.standing_in(key).bytes(), header.identity_of(key).bytes());
    let wide = Subject::ip().with_ipv6_prefix(Ipv6Prefix::new(48).unwrap());
    assert_eq!(wide.standing_in(key).bytes(), ip.identity_of(b"2001:db8:1::/48").bytes());
}

#[test]
fn an_address_in_place_of_a_missing_subject_is_the_identity_by_address() {
    let header = Subject::new([Part::Header("x-api-key".into())]);
    for first in 0..4 {
        let client = Given(vec![(Part::Ip, vec![first])]);
        for bits in [48, 64] {
            let prefix = Ipv6Prefix::new(bits).unwrap();
            let by_ip = Subject::ip().with_ipv6_prefix(prefix).identify(&client).unwrap();
            let instead = header.clone().with_ipv6_prefix(prefix).address_instead(&client);
            assert_eq!(instead.bytes(), by_ip.bytes());
        }
    }
    let unknown = header.address_instead(&Given(Vec::new()));
    assert_eq!(unknown.bytes(), Subject::ip().identity_of(b"unknown").bytes());
}

#[test]
fn an_empty_claim_names_no_one_and_no_claim_is_absence() {
    let claim = Part::Jwt("sub".into());
    let subject = Subject::new([claim.clone()]);
    assert!(subject.identify(&Given(vec![(claim.clone(), Vec::new())])).is_none());
    assert!(subject.is_absent(&Given(Vec::new())));
    assert!(!subject.is_absent(&Given(vec![(claim, b"ana".to_vec())])));
}

#[test]
fn an_address_stands_for_whoever_is_counted_by_it_for_want_of_a_subject() {
    struct At(&'static str);
    impl Facts for At {
        fn ip(&self) -> Option<IpAddr> {
            self.0.parse().ok()
        }
    }
    let by_key =
        Subject::new([Part::Header("x-api-key".into())]).with_ipv6_prefix(Ipv6Prefix::new(56).unwrap());
    for (address, key) in [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1", "::ffff:192.0.2.1"),
        ("2001:db8::1", "2001:db8::2"),
        ("2001:db8::1", "2001:db8::/56"),
    ] {
        let counted = by_key.address_instead(&At(address));
        let meant = by_key.address_standing_in(key.as_bytes()).unwrap();
        assert_eq!(meant.bytes(), counted.bytes(), "{key}");
    }
    assert_eq!(by_key.address_instead(&At("2001:db8::1")).value(), b"2001:db8::/56");
    assert!(by_key.address_standing_in(b"some-key").is_none());
    assert!(Subject::ip().address_standing_in(b"192.0.2.1").is_none(), "there it is the subject");
    assert!(Subject::new([]).address_standing_in(b"192.0.2.1").is_none(), "one bucket for all stays one");
}
