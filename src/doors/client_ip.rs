//! Whose request it is: the peer's address, or the one that trusted proxies vouch for.

use std::net::{IpAddr, Ipv6Addr};

use actix_web::http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use ipnet::{IpNet, Ipv4Net};

/// The header in which proxies hand on the client's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientIpHeader {
    /// Whichever is there. When both are and disagree, neither is believed: see [`ClientAddress::is_disputed`].
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

/// The header in which most proxies name the client.
pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

impl TrustedProxies {
    /// These networks, which hand on the client in `header`.
    pub fn new(networks: Vec<IpNet>, header: ClientIpHeader) -> Self {
        Self { networks: networks.into_iter().map(canonical).collect(), header }
    }

    /// Whether this address is one of ours.
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// The client behind `peer`: the header is read from right to left, past every trusted proxy. Elements left of the
    /// first address that is not trusted were written by that client and are ignored.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> ClientAddress {
        let peer = peer.to_canonical();
        if self.networks.is_empty() || !self.trusts(peer) {
            return ClientAddress::certain(peer);
        }
        let header = match self.header {
            ClientIpHeader::XForwardedFor => X_FORWARDED_FOR,
            ClientIpHeader::Forwarded => FORWARDED,
            ClientIpHeader::Auto => {
                match (headers.contains_key(X_FORWARDED_FOR), headers.contains_key(FORWARDED)) {
                    (true, false) => X_FORWARDED_FOR,
                    (false, _) => FORWARDED,
                    (true, true) => return self.of_both(peer, headers),
                }
            }
        };
        match self.behind(peer, headers, header) {
            Reading { last, is_whole: true } => ClientAddress::certain(last),
            // The proxies hand on a request of a client that none of them names.
            Reading { last, is_whole: false } => ClientAddress::disputed([last, peer, last]),
        }
    }

    /// The client when both headers are there. A proxy that writes one of them hands on the other as the client sent
    /// it (nginx does), and which is which is unknown: unless they agree, neither is believed.
    fn of_both(&self, peer: IpAddr, headers: &HeaderMap) -> ClientAddress {
        let one = self.behind(peer, headers, X_FORWARDED_FOR);
        let other = self.behind(peer, headers, FORWARDED);
        if one.is_whole && other.is_whole && one.last == other.last {
            ClientAddress::certain(one.last)
        } else {
            ClientAddress::disputed([peer, one.last, other.last])
        }
    }

    /// Whether a trusted `peer` sends the header that names clients.
    #[cfg(feature = "server")]
    pub(super) fn names_client(&self, peer: IpAddr, headers: &HeaderMap) -> bool {
        let has = |name: &HeaderName| headers.contains_key(name);
        self.trusts(peer)
            && match self.header {
                ClientIpHeader::Auto => has(&X_FORWARDED_FOR) || has(&FORWARDED),
                ClientIpHeader::XForwardedFor => has(&X_FORWARDED_FOR),
                ClientIpHeader::Forwarded => has(&FORWARDED),
            }
    }

    /// Whether what a trusted `peer` sends in this header, `forwarded` or `x-forwarded-for`, is its own word: it is not
    /// when another header is the one that is read, nor when both are there and contradict each other.
    #[cfg(feature = "server")]
    pub(super) fn believes(&self, name: &str, peer: IpAddr, headers: &HeaderMap) -> bool {
        match self.header {
            ClientIpHeader::XForwardedFor => name != FORWARDED.as_str(),
            ClientIpHeader::Forwarded => name != X_FORWARDED_FOR.as_str(),
            ClientIpHeader::Auto => {
                let are_both = headers.contains_key(X_FORWARDED_FOR) && headers.contains_key(FORWARDED);
                !are_both || !self.of_both(peer, headers).is_disputed()
            }
        }
    }

    fn behind(&self, peer: IpAddr, headers: &HeaderMap, name: HeaderName) -> Reading {
        let mut last = peer;
        let forwarded = name == FORWARDED;
        let lines: Vec<&[u8]> = headers.get_all(name).map(HeaderValue::as_bytes).collect();
        for line in lines.into_iter().rev() {
            let mut rest = Some(line);
            while let Some(list) = rest {
                let (before, element) =
                    if forwarded { split_last(list, b',') } else { split_last_plain(list) };
                rest = before;
                let node = if forwarded { forwarded_for(element) } else { Some(element) };
                // An unreadable element ("unknown", "_hidden", garbage) hides the client of the last proxy that could
                // be read.
                let Some(address) = node.and_then(address) else { return Reading { last, is_whole: false } };
                last = address;
                if !self.trusts(last) {
                    return Reading { last, is_whole: true };
                }
            }
        }
        Reading { last, is_whole: true }
    }
}

/// Whether proxies write this header and direct clients do not. `X-Amzn-Trace-Id` and `X-Cloud-Trace-Context` are left out:
/// instrumented clients send them as well.
#[cfg(feature = "server")]
pub(super) fn is_mark_of_proxy(name: &str) -> bool {
    name.starts_with("x-forwarded-")
        || matches!(
            name,
            "forwarded"
                | "via"
                | "x-forwarded"
                | "forwarded-for"
                | "x-real-ip"
                | "x-client-ip"
                | "client-ip"
                | "true-client-ip"
                | "x-cluster-client-ip"
                | "x-original-forwarded-for"
                | "x-envoy-external-address"
                | "cf-connecting-ip"
                | "cf-connecting-ipv6"
                | "cf-pseudo-ipv4"
                | "cf-ray"
                | "cdn-loop"
                | "fastly-client-ip"
                | "fly-client-ip"
                | "do-connecting-ip"
                | "incap-client-ip"
                | "x-sucuri-clientip"
                | "x-nf-client-connection-ip"
                | "x-vercel-forwarded-for"
                | "x-appengine-user-ip"
                | "x-azure-clientip"
                | "x-azure-socketip"
                | "x-amz-cf-id"
                | "akamai-origin-hop"
                | "wl-proxy-client-ip"
                | "proxy-client-ip"
        )
}

/// What one header says of the client.
struct Reading {
    /// The leftmost address that is vouched for.
    last: IpAddr,
    /// Whether that is the client; else an element before it could not be read.
    is_whole: bool,
}

/// The address by which a client is counted, and whether it is known to be the client's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress {
    address: IpAddr,
    disputed: Option<[IpAddr; 3]>,
}

impl ClientAddress {
    fn certain(address: IpAddr) -> Self {
        Self { address, disputed: None }
    }

    /// Counted by the first of these.
    fn disputed(candidates: [IpAddr; 3]) -> Self {
        Self { address: candidates[0], disputed: Some(candidates) }
    }

    /// The address to count by. Of a disputed client it is a proxy's.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Whether the headers of the proxies contradict each other or hide the client. Nothing that an address is granted
    /// (an exemption, the decision API) may be granted to such a client.
    pub fn is_disputed(&self) -> bool {
        self.disputed.is_some()
    }

    /// The addresses that a disputed client may have, the counted one among them; none where the address is certain.
    pub fn candidates(&self) -> &[IpAddr] {
        self.disputed.as_ref().map_or(&[], |candidates| candidates)
    }
}

/// A network of IPv4 addresses that is written as one of IPv6 (`::ffff:10.0.0.0/104`), as the network that addresses
/// are compared with.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let v4 = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    v4.and_then(|(address, bits)| Ipv4Net::new(address, bits).ok()).map_or(network, IpNet::V4)
}

/// What stands before the last comma, if there is one, and what behind it.
fn split_last_plain(list: &[u8]) -> (Option<&[u8]>, &[u8]) {
    match list.iter().rposition(|&byte| byte == b',') {
        Some(at) => (Some(&list[..at]), &list[at + 1..]),
        None => (None, list),
    }
}

/// The same at the last `separator` outside of quotes. Read from the right: what the nearest proxy wrote is well-formed,
/// whatever quotes a client has left open before it, and whatever a client had it quote (its `host`).
fn split_last(list: &[u8], separator: u8) -> (Option<&[u8]>, &[u8]) {
    let mut quoted = false;
    for (at, &byte) in list.iter().enumerate().rev() {
        let escaped = || list[..at].iter().rev().take_while(|&&byte| byte == b'\\').count() % 2 == 1;
        if byte == b'"' && !(quoted && escaped()) {
            quoted = !quoted;
        } else if byte == separator && !quoted {
            return (Some(&list[..at]), &list[at + 1..]);
        }
    }
    (None, list)
}

/// The `for` parameter of one element of `Forwarded`, when it is there once.
fn forwarded_for(element: &[u8]) -> Option<&[u8]> {
    let (mut rest, mut node) = (Some(element), None);
    while let Some(list) = rest {
        let (before, pair) = split_last(list, b';');
        rest = before;
        let Some(equals) = pair.iter().position(|&byte| byte == b'=') else { continue };
        if pair[..equals].trim_ascii().eq_ignore_ascii_case(b"for") {
            let value = pair[equals + 1..].trim_ascii();
            let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
            if node.replace(bare.unwrap_or(value)).is_some() {
                return None;
            }
        }
    }
    node
}

/// An address, perhaps with a port; IPv6 perhaps in brackets, which a port needs, and with a zone.
fn address(node: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(node).ok()?.trim();
    let (host, port, bracketed) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) };
            (host, port, true)
        }
        // One colon is a port, several are IPv6 without one.
        None => match text.split_once(':') {
            Some((host, port)) if !port.contains(':') => (host, Some(port), false),
            _ => (text, None, false),
        },
    };
    // RFC 7239, 6: a number, or a name that hides it.
    let is_port = |port: &str| {
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        port.starts_with('_') || (digits && port.parse::<u16>().is_ok())
    };
    if !port.is_none_or(is_port) {
        return None;
    }
    let v6 = || host.split_once('%').map_or(host, |(address, _zone)| address).parse::<Ipv6Addr>();
    let address =
        if bracketed { v6().ok()?.into() } else { host.parse().or_else(|_| v6().map(IpAddr::V6)).ok()? };
    Some(address.to_canonical())
}

#[cfg(test)]
#[path = "client_ip_tests.rs"]
mod tests;
