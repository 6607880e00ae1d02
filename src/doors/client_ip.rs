//! Whose request it is: the peer's address, or the one that trusted proxies vouch for.

use std::net::IpAddr;

use actix_web::http::header::{FORWARDED, HeaderMap, HeaderName};
use ipnet::IpNet;

/// The header in which proxies hand on the client's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientIpHeader {
    /// Whichever is there. When both are and disagree, neither is believed and the peer is the client.
    #[default]
    Auto,
    /// `X-Forwarded-For` only.
    XForwardedFor,
    /// `Forwarded` (RFC 7239) only.
    Forwarded,
}

/// The proxies that are believed.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies {
    networks: Vec<IpNet>,
    header: ClientIpHeader,
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

impl TrustedProxies {
    /// These networks, which hand on the client in `header`.
    pub fn new(networks: Vec<IpNet>, header: ClientIpHeader) -> Self {
        Self { networks, header }
    }

    /// Whether this address is one of ours.
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// The client behind `peer`: the header read from right to left, past every trusted proxy. What stands left of
    /// the first stranger was written by that stranger and says nothing.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        if self.networks.is_empty() || !self.trusts(peer) {
            return peer;
        }
        let x_forwarded_for = || self.behind(peer, headers, X_FORWARDED_FOR);
        let forwarded = || self.behind(peer, headers, FORWARDED);
        match self.header {
            ClientIpHeader::XForwardedFor => x_forwarded_for(),
            ClientIpHeader::Forwarded => forwarded(),
            ClientIpHeader::Auto => {
                match (headers.contains_key(X_FORWARDED_FOR), headers.contains_key(FORWARDED)) {
                    (true, false) => x_forwarded_for(),
                    (false, _) => forwarded(),
                    // A proxy that writes one of them hands on the other as the client sent it. Which is which is
                    // unknown: unless they agree, neither is believed.
                    (true, true) => {
                        let client = x_forwarded_for();
                        if client == forwarded() { client } else { peer }
                    }
                }
            }
        }
    }

    fn behind(&self, peer: IpAddr, headers: &HeaderMap, name: HeaderName) -> IpAddr {
        let mut client = peer;
        let forwarded = name == FORWARDED;
        let lines: Vec<&str> = headers.get_all(name).map(|line| line.to_str().unwrap_or_default()).collect();
        for element in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
            let node = if forwarded { forwarded_for(element) } else { Some(element.trim()) };
            // An unreadable element ("unknown", "_hidden", garbage) hides who stands behind the last proxy
            // that could be read: that one answers for it.
            let Some(address) = node.and_then(address) else { break };
            client = address;
            if !self.trusts(client) {
                break;
            }
        }
        client
    }
}

/// The `for` parameter of one element of `Forwarded`.
fn forwarded_for(element: &str) -> Option<&str> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| value.trim().trim_matches('"'))
    })
}

/// An address, perhaps with a port, brackets or a zone.
fn address(text: &str) -> Option<IpAddr> {
    let bare = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0,
        // One colon is a port, several are IPv6 without one.
        None if text.matches(':').count() == 1 => text.split_once(':')?.0,
        None => text,
    };
    let bare = bare.split_once('%').map_or(bare, |(address, _zone)| address);
    bare.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::HeaderValue;

    fn client(trusted: &[&str], header: ClientIpHeader, peer: &str, lines: &[(&str, &str)]) -> String {
        let networks = trusted.iter().map(|network| network.parse().unwrap()).collect();
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        TrustedProxies::new(networks, header).client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn a_header_is_believed_only_from_trusted_proxies_and_read_from_the_right() {
        let auto = ClientIpHeader::Auto;
        let xff = |value| [("x-forwarded-for", value)];
        for (trusted, peer, value, wanted) in [
            (&[][..], "10.0.0.1", "203.0.113.9", "10.0.0.1"),
            (&["10.0.0.0/8"], "192.0.2.1", "203.0.113.9", "192.0.2.1"),
            (&["10.0.0.0/8"], "10.0.0.1", "203.0.113.9", "203.0.113.9"),
            (&["10.0.0.0/8"], "10.0.0.1", "198.51.100.66, 203.0.113.9", "203.0.113.9"),
            (&["10.0.0.0/8"], "10.0.0.1", "198.51.100.66, 203.0.113.9, 10.0.0.2", "203.0.113.9"),
            (&["10.0.0.0/8"], "10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
            (&["10.0.0.0/8"], "10.0.0.1", "", "10.0.0.1"),
            (&["10.0.0.0/8"], "10.0.0.1", "unknown", "10.0.0.1"),
            (&["10.0.0.0/8"], "10.0.0.1", "203.0.113.9, unknown", "10.0.0.1"),
            (&["10.0.0.0/8"], "10.0.0.1", "203.0.113.9:4711", "203.0.113.9"),
            (&["10.0.0.0/8"], "10.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
            (&["10.0.0.0/8"], "10.0.0.1", "fe80::1%eth0", "fe80::1"),
            (&["10.0.0.0/8"], "10.0.0.1", "::ffff:203.0.113.9", "203.0.113.9"),
            (&["10.0.0.0/8"], "::ffff:10.0.0.1", "203.0.113.9", "203.0.113.9"),
            (&["2001:db8::/32"], "2001:db8::5", "203.0.113.9", "203.0.113.9"),
        ] {
            assert_eq!(client(trusted, auto, peer, &xff(value)), wanted, "{trusted:?} {peer} {value:?}");
        }
    }

    #[test]
    fn several_lines_of_the_header_are_one_list() {
        let lines = [("x-forwarded-for", "198.51.100.66"), ("x-forwarded-for", "203.0.113.9, 10.0.0.2")];
        assert_eq!(client(&["10.0.0.0/8"], ClientIpHeader::Auto, "10.0.0.1", &lines), "203.0.113.9");
    }

    #[test]
    fn the_forwarded_header_is_read_when_it_is_the_one_that_proxies_write() {
        let forwarded =
            ("forwarded", r#"for=198.51.100.66, For="[2001:db8::9]:80";proto=https, for=10.0.0.2"#);
        let spoofed = ("x-forwarded-for", "1.2.3.4");
        let trusted = &["10.0.0.0/8"];
        let auto = ClientIpHeader::Auto;
        assert_eq!(client(trusted, auto, "10.0.0.1", &[forwarded]), "2001:db8::9");
        assert_eq!(client(trusted, auto, "10.0.0.1", &[forwarded, spoofed]), "10.0.0.1");
        let agreeing = ("x-forwarded-for", "2001:db8::9");
        assert_eq!(client(trusted, auto, "10.0.0.1", &[forwarded, agreeing]), "2001:db8::9");
        let only = ClientIpHeader::Forwarded;
        assert_eq!(client(trusted, only, "10.0.0.1", &[forwarded, spoofed]), "2001:db8::9");
        let only = ClientIpHeader::XForwardedFor;
        assert_eq!(client(trusted, only, "10.0.0.1", &[forwarded]), "10.0.0.1");
    }
}
