//! Which address is the client's, whatever a client writes into the headers that its proxies extend.

use super::*;

const CLIENT: &str = "203.0.113.9";
const XFF: &str = "x-forwarded-for";
const PROXIES: [&str; 2] = ["10.0.0.1", "10.0.0.2"];

type Line = (&'static str, Vec<u8>);

fn reading_of(trusted: &[&str], header: ClientIpHeader, peer: &str, lines: &[Line]) -> ClientAddress {
    let networks = trusted.iter().map(|network| network.parse().unwrap()).collect();
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap());
    }
    TrustedProxies::new(networks, header).client(peer.parse().unwrap(), &headers)
}

fn client_of(trusted: &[&str], header: ClientIpHeader, peer: &str, lines: &[Line]) -> String {
    reading_of(trusted, header, peer, lines).address().to_string()
}

fn client(trusted: &[&str], header: ClientIpHeader, peer: &str, lines: &[(&'static str, &str)]) -> String {
    let lines: Vec<Line> = lines.iter().map(|(name, value)| (*name, value.as_bytes().to_vec())).collect();
    client_of(trusted, header, peer, &lines)
}

/// How a proxy hands on the address of its peer.
#[derive(Clone, Copy, Debug)]
enum Way {
    Appends(&'static str),
    AddsALine,
}

/// The lines that arrive when a client's own went through so many proxies, and the address they arrive from.
fn through(proxies: usize, header: &'static str, way: Way, from: &str, own: &[Line]) -> (Vec<Line>, String) {
    let (mut lines, mut peer) = (own.to_vec(), from.to_owned());
    for proxy in &PROXIES[..proxies] {
        let node = match (header, peer.contains(':')) {
            (XFF, _) => peer.clone(),
            (_, true) => format!("for=\"[{peer}]:4711\";proto=http"),
            (_, false) => format!("proto=http;for={peer}"),
        };
        let last = lines.iter_mut().rfind(|(name, _)| *name == header);
        match (way, last) {
            (Way::Appends(comma), Some((_, line))) => {
                line.extend([comma.as_bytes(), node.as_bytes()].concat());
            }
            _ => lines.push((header, node.into_bytes())),
        }
        peer = (*proxy).to_owned();
    }
    (lines, peer)
}

#[test]
fn client_headers_never_change_the_identity() {
    let claims = [
        "6.6.6.6",
        "10.0.0.2",
        "10.9.9.9",
        "127.0.0.1",
        "::1",
        "::ffff:6.6.6.6",
        "[2001:db8::6]:80",
        "6.6.6.6:80",
        "[6.6.6.6]",
        "fe80::6%eth0",
        "",
        " ",
        ",",
        "unknown",
        "_hidden",
        "-",
        "6.6.6.6 ",
        "6.6.6",
        "a,b;c=\"",
        "for=6.6.6.6",
        "for=\"6.6.6.6",
        "for=\"[2001:db8::6]\"",
        "\"",
        "\\\"",
        "\"\\",
        "for=\"a\\",
        "for=10.0.0.2;by=\"",
        "\u{fffd}",
    ];
    let ways = [Way::Appends(", "), Way::Appends(","), Way::AddsALine];
    let mut cases = 0;
    for from in [CLIENT, "2001:db8::9"] {
        for (header, config) in
            [(XFF, ClientIpHeader::XForwardedFor), ("forwarded", ClientIpHeader::Forwarded)]
        {
            for (way, proxies) in ways.iter().flat_map(|way| [0, 1, 2].map(|proxies| (*way, proxies))) {
                // Each claim in each place among others, in one line and in several.
                for (claim, other) in claims.iter().flat_map(|one| claims.map(|other| (*one, other))) {
                    let raw = [claim.as_bytes(), b"\xff"].concat();
                    for own in [
                        vec![],
                        vec![(header, claim.into())],
                        vec![(header, format!("{claim}, {other}").into_bytes())],
                        vec![(header, format!("{other},{claim},10.0.0.1").into_bytes())],
                        vec![(header, claim.into()), (header, other.into())],
                        vec![(header, raw)],
                    ] {
                        let (lines, peer) = through(proxies, header, way, from, &own);
                        for config in [config, ClientIpHeader::Auto] {
                            let found = client_of(&["10.0.0.0/29"], config, &peer, &lines);
                            assert_eq!(found, from, "{way:?}, {proxies} proxies: {own:?}");
                            cases += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(cases > 100_000, "{cases}");
}

#[test]
fn a_proxy_that_nobody_trusts_is_the_client() {
    for (header, config) in [(XFF, ClientIpHeader::XForwardedFor), ("forwarded", ClientIpHeader::Forwarded)] {
        let (lines, peer) = through(2, header, Way::Appends(", "), CLIENT, &[]);
        for (trusted, wanted) in [
            (&[][..], "10.0.0.2"),
            (&["10.0.0.1/32"], "10.0.0.2"),
            (&["10.0.0.2/32"], "10.0.0.1"),
            (&["10.0.0.1/32", "10.0.0.2/32"], CLIENT),
        ] {
            assert_eq!(client_of(trusted, config, &peer, &lines), wanted, "{trusted:?}");
        }
    }
}

#[test]
fn an_address_is_read_in_every_form_and_nothing_else_is() {
    let proxy = "10.0.0.1";
    for (node, wanted) in [
        ("203.0.113.9", CLIENT),
        (" 203.0.113.9\t", CLIENT),
        ("203.0.113.9:4711", CLIENT),
        ("203.0.113.9:_hidden", CLIENT),
        ("2001:db8::9", "2001:db8::9"),
        ("[2001:db8::9]", "2001:db8::9"),
        ("[2001:db8::9]:4711", "2001:db8::9"),
        ("2001:0DB8:0:0::9", "2001:db8::9"),
        ("fe80::9%eth0", "fe80::9"),
        ("[fe80::9%25eth0]:80", "fe80::9"),
        ("::ffff:203.0.113.9", CLIENT),
        ("[::ffff:203.0.113.9]:80", CLIENT),
        ("::ffff:cb00:7109", CLIENT),
        // A trusted one with nobody before it is the client itself.
        ("10.0.0.3", "10.0.0.3"),
        ("", proxy),
        ("unknown", proxy),
        ("_hidden", proxy),
        ("203.0.113", proxy),
        ("203.0.113.9.1", proxy),
        ("203.0.113.009", proxy),
        ("0xcb.0.113.9", proxy),
        ("3405803785", proxy),
        ("203.0.113.9%eth0", proxy),
        ("203.0.113.9/32", proxy),
        ("203.0.113.9:", proxy),
        ("203.0.113.9:http", proxy),
        ("203.0.113.9:65536", proxy),
        ("203.0.113.9:+80", proxy),
        ("[203.0.113.9]:80", proxy),
        ("[2001:db8::9", proxy),
        ("2001:db8::9]", proxy),
        ("[2001:db8::9]80", proxy),
        ("[2001:db8::9]:", proxy),
        ("[[2001:db8::9]]", proxy),
        ("[2001:db8::9] 80", proxy),
        ("'203.0.113.9'", proxy),
        ("203.0.113.9 198.51.100.6", proxy),
    ] {
        let trusted = &["10.0.0.0/8"];
        let found = client(trusted, ClientIpHeader::Auto, proxy, &[(XFF, node)]);
        assert_eq!(found, wanted, "{node:?}");
        for line in [format!("for=\"{node}\""), format!("proto=https; For = \"{node}\";by=_x")] {
            let found = client(trusted, ClientIpHeader::Auto, proxy, &[("forwarded", &line)]);
            assert_eq!(found, wanted, "{line:?}");
        }
        // Behind a second proxy, which is then the last one that can be told.
        let wanted = if wanted == proxy { "10.0.0.2" } else { wanted };
        let found = client(trusted, ClientIpHeader::Auto, proxy, &[(XFF, &format!("{node}, 10.0.0.2"))]);
        assert_eq!(found, wanted, "{node:?} and a proxy");
    }
}

#[test]
fn quoted_client_words_are_no_element_or_parameter() {
    let trusted = &["10.0.0.0/8"];
    for host in
        ["a,for=6.6.6.6", "a;for=6.6.6.6", "\",for=6.6.6.6", "\\\";for=6.6.6.6", "\\,for=6.6.6.6;a=\""]
    {
        let quoted = host.replace('\\', "\\\\").replace('"', "\\\"");
        for line in [
            format!("for={CLIENT};host=\"{quoted}\""),
            format!("host=\"{quoted}\";for={CLIENT}"),
            format!("for=6.6.6.6, host=\"{quoted}\";for=\"{CLIENT}\";by=10.0.0.1"),
        ] {
            let found = client(trusted, ClientIpHeader::Forwarded, "10.0.0.1", &[("forwarded", &line)]);
            assert_eq!(found, CLIENT, "{line}");
        }
    }
    for unreadable in
        ["for=6.6.6.6;for=203.0.113.9", "by=203.0.113.9", "for", "203.0.113.9", "for=203.0.113.9\""]
    {
        let found = client(trusted, ClientIpHeader::Forwarded, "10.0.0.1", &[("forwarded", unreadable)]);
        assert_eq!(found, "10.0.0.1", "{unreadable}");
    }
}

#[test]
fn disagreeing_headers_count_only_when_one_is_chosen() {
    let trusted = &["10.0.0.0/8"];
    let forwarded = ("forwarded", r#"for=198.51.100.66, For="[2001:db8::9]:80";proto=https, for=10.0.0.2"#);
    for (other, auto) in [
        ("1.2.3.4", "10.0.0.1"),
        ("", "10.0.0.1"),
        ("2001:db8::9", "2001:db8::9"),
        ("1.2.3.4, 2001:db8::9", "2001:db8::9"),
    ] {
        let lines = [forwarded, (XFF, other)];
        assert_eq!(client(trusted, ClientIpHeader::Auto, "10.0.0.1", &lines), auto, "{other:?}");
        assert_eq!(client(trusted, ClientIpHeader::Forwarded, "10.0.0.1", &lines), "2001:db8::9");
    }
    assert_eq!(client(trusted, ClientIpHeader::XForwardedFor, "10.0.0.1", &[forwarded]), "10.0.0.1");
}

#[test]
fn a_network_in_mapped_form_is_the_network_of_ipv4() {
    let behind = |network: &str, peer: &str| client(&[network], ClientIpHeader::Auto, peer, &[(XFF, CLIENT)]);
    for (network, peer, trusted) in [
        ("10.0.0.0/8", "10.1.2.3", true),
        ("10.0.0.0/8", "::ffff:10.1.2.3", true),
        ("::ffff:10.0.0.0/104", "10.1.2.3", true),
        ("::ffff:10.0.0.0/104", "::ffff:10.1.2.3", true),
        ("::ffff:10.0.0.0/104", "11.1.2.3", false),
        ("::ffff:10.1.2.3/128", "10.1.2.3", true),
        ("::ffff:10.1.2.3/128", "10.1.2.4", false),
        ("::ffff:0.0.0.0/96", "192.0.2.1", true),
        ("::ffff:0:0/96", "2001:db8::1", false),
        ("2001:db8::/32", "2001:db8::1", true),
        ("2001:db8::/32", "10.1.2.3", false),
        ("::/0", "2001:db8::1", true),
    ] {
        let wanted = if trusted {
            CLIENT.to_owned()
        } else {
            peer.parse::<IpAddr>().unwrap().to_canonical().to_string()
        };
        assert_eq!(behind(network, peer), wanted, "{network}, {peer}");
    }
}
