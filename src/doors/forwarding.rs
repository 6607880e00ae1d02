//! What crosses the gateway and what does not: headers that belong to one hop, and the traces a proxy leaves.

use std::fmt::Write as _;
use std::net::IpAddr;

use actix_web::HttpRequest;
use actix_web::http::header as actix_header;

use super::client_ip::TrustedProxies;
use super::gateway::{OutBody, Upstream, no_body};
use super::problem::{Cause, Problem};

/// Headers that concern one connection only (RFC 9110, 7.6.1, and their older kin).
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What is written anew for the upstream.
const REWRITTEN: [&str; 5] =
    ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "host"];

/// The request as the upstream gets it, still without a body.
pub(super) fn request(
    request: &HttpRequest,
    upstream: &Upstream,
    proxies: &TrustedProxies,
) -> Result<hyper::Request<OutBody>, Problem> {
    let unfit = |_| Problem::new(Cause::BadRequest, "The request's target or a header can't be forwarded.");
    let head = request.head();
    let method = hyper::Method::from_bytes(head.method.as_str().as_bytes())
        .map_err(|_| Problem::new(Cause::BadRequest, "The request's method can't be forwarded."))?;
    if method == hyper::Method::CONNECT {
        // A tunnel would carry what nobody judged.
        return Err(Problem::new(Cause::MethodNotAllowed, "CONNECT is not for a gateway."));
    }
    let mut outgoing = hyper::Request::builder().method(method).uri(target(request, &upstream.base)?);
    let named = named_in_connection(head.headers.get_all("connection").map(|value| value.as_bytes()));
    if let Some(headers) = outgoing.headers_mut() {
        for (name, value) in &head.headers {
            let name_of_costs = upstream.cost_header.as_deref() == Some(name.as_str());
            if stays_here(name.as_str(), &named) || REWRITTEN.contains(&name.as_str()) || name_of_costs {
                continue;
            }
            if let (Ok(name), Ok(value)) = (
                hyper::header::HeaderName::from_bytes(name.as_str().as_bytes()),
                hyper::header::HeaderValue::from_bytes(value.as_bytes()),
            ) {
                headers.append(name, value);
            }
        }
        // Their own framing: a body whose length nobody announced goes on in chunks.
        if head.headers.contains_key("transfer-encoding") {
            headers.remove("content-length");
        }
    }
    for (name, value) in traces(request, upstream, proxies) {
        outgoing = outgoing.header(name, value);
    }
    outgoing.body(no_body()).map_err(unfit)
}

/// The upstream's base, then path and query exactly as the client wrote them.
fn target(request: &HttpRequest, base: &hyper::Uri) -> Result<hyper::Uri, Problem> {
    let asked = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let before = base.path().trim_end_matches('/');
    let path = if before.is_empty() { asked.to_owned() } else { format!("{before}{asked}") };
    let mut uri = hyper::Uri::builder().path_and_query(path);
    if let (Some(scheme), Some(authority)) = (base.scheme(), base.authority()) {
        uri = uri.scheme(scheme.clone()).authority(authority.clone());
    }
    uri.build().map_err(|_| Problem::new(Cause::BadRequest, "The request's target can't be forwarded."))
}

/// `Host`, `X-Forwarded-*` and `Forwarded`. What the peer says of clients before it is kept only from a trusted
/// proxy: from anyone else it is a claim.
fn traces(
    request: &HttpRequest,
    upstream: &Upstream,
    proxies: &TrustedProxies,
) -> Vec<(&'static str, String)> {
    let head = request.head();
    let text = |name: &str| {
        let lines: Vec<&str> = head.headers.get_all(name).filter_map(|line| line.to_str().ok()).collect();
        (!lines.is_empty()).then(|| lines.join(", "))
    };
    let peer = head.peer_addr.map(|peer| peer.ip().to_canonical());
    let trusted = peer.is_some_and(|peer| proxies.trusts(peer));
    let believed = |name: &str| if trusted { text(name) } else { None };
    let asked_host = match head.uri.authority() {
        Some(authority) => Some(authority.as_str().to_owned()),
        None => text("host"),
    };
    let own_scheme = if request.app_config().secure() { "https" } else { "http" };

    let mut traces = Vec::with_capacity(5);
    let host = match upstream.preserve_host {
        true => asked_host.clone(),
        false => None,
    };
    if let Some(host) = host.or_else(|| upstream.base.authority().map(|authority| authority.to_string())) {
        traces.push(("host", host));
    }
    if let Some(peer) = peer {
        let after = |before: Option<String>, own: String| match before {
            Some(before) => format!("{before}, {own}"),
            None => own,
        };
        traces.push(("x-forwarded-for", after(believed("x-forwarded-for"), peer.to_string())));
        let mut element = match peer {
            IpAddr::V4(_) => format!("for={peer}"),
            IpAddr::V6(_) => format!("for=\"[{peer}]\""),
        };
        if let Some(host) = asked_host.as_deref().filter(|host| !host.contains(['"', '\\'])) {
            let _ = write!(element, ";host=\"{host}\"");
        }
        let _ = write!(element, ";proto={own_scheme}");
        traces.push(("forwarded", after(believed("forwarded"), element)));
    }
    traces
        .push(("x-forwarded-proto", believed("x-forwarded-proto").unwrap_or_else(|| own_scheme.to_owned())));
    if let Some(host) = believed("x-forwarded-host").or(asked_host) {
        traces.push(("x-forwarded-host", host));
    }
    traces
}

/// Copies an answer's headers to the client.
pub(super) fn copy_response_headers(from: &hyper::HeaderMap, to: &mut actix_header::HeaderMap) {
    let named = named_in_connection(from.get_all("connection").iter().map(|value| value.as_bytes()));
    for (name, value) in from {
        // The length is set by the body's kind.
        if stays_here(name.as_str(), &named) || name == "content-length" {
            continue;
        }
        if let (Ok(name), Ok(value)) = (
            actix_header::HeaderName::from_bytes(name.as_str().as_bytes()),
            actix_header::HeaderValue::from_bytes(value.as_bytes()),
        ) {
            to.append(name, value);
        }
    }
}

fn stays_here(name: &str, named: &[String]) -> bool {
    HOP_BY_HOP.contains(&name) || named.iter().any(|one| one == name)
}

/// The headers that `Connection` declares to be for this hop. What a message needs to be understood at all cannot
/// be taken from it this way.
fn named_in_connection<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    lines
        .flat_map(|line| line.split(|&byte| byte == b','))
        .map(|name| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase())
        .filter(|name| !matches!(name.as_str(), "" | "close" | "keep-alive" | "host" | "content-length"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;
    use std::time::Duration;

    fn upstream(base: &str) -> Upstream {
        Upstream {
            base: base.parse().unwrap(),
            timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
            preserve_host: true,
            cost_header: Some("x-ratelimit-cost".to_owned()),
        }
    }

    fn forwarded(test: TestRequest, base: &str, trusted: &[&str]) -> hyper::Request<OutBody> {
        let networks = trusted.iter().map(|network| network.parse().unwrap()).collect();
        let proxies = TrustedProxies::new(networks, Default::default());
        request(&test.to_http_request(), &upstream(base), &proxies).unwrap()
    }

    fn header(request: &hyper::Request<OutBody>, name: &str) -> String {
        let lines: Vec<_> = request.headers().get_all(name).iter().map(|v| v.to_str().unwrap()).collect();
        lines.join(" | ")
    }

    #[test]
    fn path_and_query_cross_byte_for_byte_behind_the_base() {
        for (base, uri, wanted) in [
            ("http://up:1", "/a%2Fb//c/../d?x=%20&y", "http://up:1/a%2Fb//c/../d?x=%20&y"),
            ("http://up:1/", "/a", "http://up:1/a"),
            ("http://up:1/base/", "/a", "http://up:1/base/a"),
        ] {
            assert_eq!(forwarded(TestRequest::with_uri(uri), base, &[]).uri(), wanted);
        }
    }

    #[test]
    fn nobody_gets_a_tunnel() {
        let test = TestRequest::default().method(actix_web::http::Method::CONNECT).to_http_request();
        let refused = request(&test, &upstream("http://up:1"), &TrustedProxies::default()).unwrap_err();
        assert_eq!(refused.cause(), Cause::MethodNotAllowed);
    }

    #[test]
    fn headers_of_this_hop_and_those_named_in_connection_stay_here() {
        let test = TestRequest::default()
            .insert_header(("connection", "close, X-Secret, host"))
            .insert_header(("x-secret", "1"))
            .insert_header(("te", "trailers"))
            .insert_header(("proxy-authorization", "x"))
            .insert_header(("upgrade", "h2c"))
            .insert_header(("host", "api.example.com"))
            .append_header(("x-kept", "a"))
            .append_header(("x-kept", "b"));
        let request = forwarded(test, "http://up:1", &[]);
        for name in ["connection", "x-secret", "te", "proxy-authorization", "upgrade"] {
            assert_eq!(header(&request, name), "", "{name}");
        }
        assert_eq!(header(&request, "x-kept"), "a | b");
        assert_eq!(header(&request, "host"), "api.example.com");
    }

    #[test]
    fn the_traces_of_strangers_are_dropped_and_those_of_trusted_proxies_extended() {
        let test = || {
            TestRequest::default()
                .peer_addr("10.0.0.1:999".parse().unwrap())
                .insert_header(("host", "api.example.com"))
                .insert_header(("x-forwarded-for", "203.0.113.9"))
                .insert_header(("x-forwarded-proto", "https"))
                .insert_header(("forwarded", "for=203.0.113.9"))
        };
        let stranger = forwarded(test(), "http://up:1", &[]);
        assert_eq!(header(&stranger, "x-forwarded-for"), "10.0.0.1");
        assert_eq!(header(&stranger, "x-forwarded-proto"), "http");
        assert_eq!(header(&stranger, "forwarded"), "for=10.0.0.1;host=\"api.example.com\";proto=http");
        let proxy = forwarded(test(), "http://up:1", &["10.0.0.0/8"]);
        assert_eq!(header(&proxy, "x-forwarded-for"), "203.0.113.9, 10.0.0.1");
        assert_eq!(header(&proxy, "x-forwarded-proto"), "https");
        assert!(header(&proxy, "forwarded").starts_with("for=203.0.113.9, for=10.0.0.1;"));
    }
}
