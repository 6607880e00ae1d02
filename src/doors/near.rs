//! Whether a caller of the decision API is near: on this machine or its private network, and neither a proxy nor a web
//! page acts for a client that may be anywhere.

use std::net::IpAddr;

use actix_web::HttpRequest;
use actix_web::dev::RequestHead;
use actix_web::http::header::{HOST, HeaderMap, ORIGIN};

use super::client_ip::{TrustedProxies, is_mark_of_proxy};

/// Endings that the public DNS does not delegate (RFC 6761, RFC 6762, RFC 8375, ICANN's reserved names): no page of the
/// internet can rebind such a name to a private address.
const PRIVATE_ENDINGS: [&str; 10] = [
    ".localhost",
    ".local",
    ".internal",
    ".home.arpa",
    ".svc",
    ".lan",
    ".localdomain",
    ".corp",
    ".home",
    ".intranet",
];

/// Why a caller is not near.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Far {
    /// It has no address, or a public one.
    #[error("the caller is not at a loopback or private address")]
    Address,
    /// A proxy handed the request on, and no trusted one names its client beyond doubt.
    #[error(
        "a proxy handed the request on (\"{0}\"), and no proxy of server.trusted_proxies names its client beyond doubt"
    )]
    Proxy(String),
    /// A web page asks.
    #[error("a web page sent the request (\"{0}\")")]
    Page(&'static str),
    /// The request is for a name that the public DNS may resolve to a private address.
    #[error(
        "the request is for the host \"{0}\", which is neither an address nor a private name, nor in doors.hosts"
    )]
    Host(String),
}

/// Whether `request` comes from near; `hosts` are the names beside the private ones by which callers may ask.
///
/// # Errors
/// Why it is not near.
pub fn check(request: &HttpRequest, proxies: &TrustedProxies, hosts: &[Box<str>]) -> Result<(), Far> {
    let peer = request.peer_addr().ok_or(Far::Address)?.ip();
    let headers = request.headers();
    let client = proxies.client(peer, headers);
    let vouched = proxies.names_client(peer, headers);
    if client.is_disputed() || !vouched {
        let mark = headers.keys().find(|name| is_mark_of_proxy(name.as_str()));
        if let Some(mark) = mark {
            return Err(Far::Proxy(mark.as_str().to_owned()));
        }
    }
    if !is_private(client.address()) {
        return Err(Far::Address);
    }
    if let Some(mark) = page(headers) {
        return Err(Far::Page(mark));
    }
    let host = host(request.head());
    if is_private_name(host, hosts) { Ok(()) } else { Err(Far::Host(host.to_owned())) }
}

/// Whether a request is for a host at which no page of the internet can be: an address, a private name, or one of `hosts`. A
/// page whose own name is rebound to a loopback address is of the same origin as what it reads there, but its browser sends
/// that name.
pub fn is_for_private_host(head: &RequestHead, hosts: &[Box<str>]) -> bool {
    is_private_name(host(head), hosts)
}

/// As rules read it: the target's own authority goes before the header (RFC 9112, 3.2.2).
fn host(head: &RequestHead) -> &str {
    match head.uri.authority() {
        Some(authority) => authority.as_str(),
        None => head.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default(),
    }
}

/// What gives a web page away. Browsers send `Origin` with every POST, whatever the page wants (Fetch, 3.2).
fn page(headers: &HeaderMap) -> Option<&'static str> {
    let site = headers.get("sec-fetch-site").is_some_and(|site| site.as_bytes() != b"none");
    if headers.contains_key(ORIGIN) { Some("origin") } else { site.then_some("sec-fetch-site") }
}

/// Whether no page of the internet can be at this host. None at all is HTTP/1.0, which no browser speaks.
fn is_private_name(host: &str, hosts: &[Box<str>]) -> bool {
    let name = match host.rfind(':') {
        Some(colon) if !host[colon..].contains(']') => &host[..colon],
        _ => host,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let ends_with = |ending: &str| {
        let at = name.len().checked_sub(ending.len());
        at.and_then(|at| name.get(at..)).is_some_and(|end| end.eq_ignore_ascii_case(ending))
    };
    name.starts_with('[')
        || !name.contains('.')
        || name.parse::<IpAddr>().is_ok()
        || PRIVATE_ENDINGS.iter().any(|ending| ends_with(ending))
        || hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
}

fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    fn near(peer: &str, headers: &[(&str, &str)], trusted: &[&str]) -> Result<(), Far> {
        let request = TestRequest::post().uri("/v1/check").peer_addr(peer.parse().unwrap());
        let request = headers.iter().fold(request, |request, header| request.append_header(*header));
        let networks = trusted.iter().map(|network| network.parse().unwrap()).collect();
        let proxies = TrustedProxies::new(networks, Default::default());
        check(&request.to_http_request(), &proxies, &["api.example.com".into()])
    }

    #[test]
    fn only_loopback_and_private_addresses_are_near() {
        for (peer, is_near) in [
            ("127.0.0.1:1", true),
            ("10.1.2.3:1", true),
            ("169.254.1.1:1", true),
            ("[::1]:1", true),
            ("[fd00::1]:1", true),
            ("[::ffff:192.168.1.1]:1", true),
            ("203.0.113.9:1", false),
            ("[2001:db8::1]:1", false),
            ("[::ffff:203.0.113.9]:1", false),
        ] {
            assert_eq!(near(peer, &[], &[]).is_ok(), is_near, "{peer}");
        }
    }

    #[test]
    fn marks_of_a_proxy_are_far_unless_it_names_its_client() {
        let marks = [
            "forwarded",
            "x-forwarded-for",
            "X-Forwarded-Proto",
            "x-forwarded-anything",
            "x-real-ip",
            "Via",
            "cf-connecting-ip",
            "true-client-ip",
            "fastly-client-ip",
            "cdn-loop",
            "x-envoy-external-address",
        ];
        for mark in marks {
            let far = Err(Far::Proxy(mark.to_lowercase()));
            assert_eq!(near("127.0.0.1:1", &[(mark, "10.1.1.1")], &[]), far, "{mark}");
            if !mark.ends_with("forwarded-for") && mark != "forwarded" {
                assert_eq!(near("127.0.0.1:1", &[(mark, "10.1.1.1")], &["127.0.0.1/32"]), far, "{mark}");
                let named = [(mark, "203.0.113.9"), ("x-forwarded-for", "10.1.1.1")];
                assert_eq!(near("127.0.0.1:1", &named, &["127.0.0.1/32"]), Ok(()), "{mark}");
            }
        }
        let disputed = [("x-forwarded-for", "10.1.1.1"), ("forwarded", "for=10.1.1.2")];
        assert!(near("127.0.0.1:1", &disputed, &["127.0.0.1/32"]).is_err());
    }

    #[test]
    fn web_pages_are_far_whatever_their_origin() {
        for header in [
            ("origin", "https://evil.example"),
            ("origin", "null"),
            ("origin", "http://127.0.0.1"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-origin"),
        ] {
            assert!(matches!(near("127.0.0.1:1", &[header], &[]), Err(Far::Page(_))), "{header:?}");
        }
        assert_eq!(near("127.0.0.1:1", &[("sec-fetch-mode", "cors")], &[]), Ok(()), "Node sends it");
    }

    #[test]
    fn hosts_that_can_be_rebound_are_far_and_others_are_not() {
        for (host, is_near) in [
            ("127.0.0.1:8080", true),
            ("10.0.0.7", true),
            ("[::1]:8080", true),
            ("localhost:8080", true),
            ("app.localhost", true),
            ("tidegate", true),
            ("tidegate:8080", true),
            ("tidegate.prod.svc", true),
            ("tidegate.prod.svc.cluster.local:80", true),
            ("limits.corp", true),
            ("Tidegate.Internal.", true),
            ("api.example.com:443", true),
            ("API.example.com.", true),
            ("evil.example", false),
            ("evil.example:8080", false),
            ("evil.example.", false),
            ("127.0.0.1.evil.example", false),
            ("localhost.evil.example", false),
            ("x.api.example.com", false),
            ("notlocal", true),
            ("evil.notlocal", false),
        ] {
            assert_eq!(near("127.0.0.1:1", &[("host", host)], &[]).is_ok(), is_near, "{host}");
        }
    }
}
