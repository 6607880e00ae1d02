//! What crosses the gateway and what does not: headers that belong to one hop, and the traces a proxy leaves.

use std::fmt::Write as _;
use std::net::IpAddr;

use actix_web::http::header as actix_header;
use actix_web::http::{Version, header};
use actix_web::web::{Bytes, BytesMut};
use actix_web::{HttpMessage as _, HttpRequest};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use super::body::OutBody;
use super::{HostPolicy, Upstream};
use crate::doors::client_ip::TrustedProxies;
use crate::doors::problem::{Cause, Problem};
use crate::doors::trace::{TRACEPARENT, TRACESTATE, traceparent};
use crate::doors::wire::Line;
use crate::limiter::event::Trace;

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

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What is written anew for the upstream.
const REWRITTEN: [&str; 6] =
    ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "host", "content-length"];

/// What is told to an upstream besides the client's own words.
pub(super) struct Telling<'a> {
    pub(super) upstream: &'a Upstream,
    pub(super) proxies: &'a TrustedProxies,
    pub(super) line: Option<&'a Line>,
    /// How the chosen address is called.
    pub(super) authority: &'a HeaderValue,
    /// The protocols that the client wants to change to, where it may.
    pub(super) upgrade: Option<&'a [u8]>,
}

/// The request as the upstream gets it.
pub(super) fn request(
    request: &HttpRequest,
    telling: &Telling<'_>,
    body: OutBody,
) -> Result<hyper::Request<OutBody>, Problem> {
    let Telling { upstream, upgrade, .. } = telling;
    let head = request.head();
    let method = hyper::Method::from_bytes(head.method.as_str().as_bytes())
        .map_err(|_| Problem::new(Cause::BadRequest, "The request's method can't be forwarded."))?;
    if method == hyper::Method::CONNECT {
        // A tunnel would carry what nobody judged.
        return Err(Problem::new(Cause::MethodNotAllowed, "CONNECT is not for a gateway."));
    }
    let mut outgoing = hyper::Request::new(body);
    *outgoing.method_mut() = method;
    *outgoing.uri_mut() = target(request, &upstream.base_path)?;
    let headers = outgoing.headers_mut();
    headers.reserve(head.headers.len() + 6);
    // First, as clients write it: some servers look for it there.
    let asked_host = asked_host(request);
    if let Some(host) = host(telling, asked_host) {
        headers.insert(hyper::header::HOST, host);
    }
    let named = named_in_connection(head.headers.get_all(header::CONNECTION).map(|value| value.as_bytes()));
    let peer = head.peer_addr.map(|peer| peer.ip().to_canonical());
    let trusted = peer.is_some_and(|peer| telling.proxies.trusts(peer));
    let mut copies = Copies::of_some(head.headers.len());
    for (name, value) in &head.headers {
        let name_of_costs = upstream.cost_header.as_deref() == Some(name.as_str());
        if stays_here(name.as_str(), &named) || REWRITTEN.contains(&name.as_str()) || name_of_costs {
            continue;
        }
        if !trusted && is_said_by_proxies(name.as_str()) {
            continue;
        }
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name.as_str().as_bytes()),
            HeaderValue::from_maybe_shared(copies.of(value.as_bytes())),
        ) {
            headers.append(name, value);
        }
    }
    if head.version == Version::HTTP_2 {
        join_cookies(headers);
    }
    // A body's length follows from the body; that there is none is told where the client told it.
    if let Some(length) = head.headers.get(header::CONTENT_LENGTH).filter(|length| length.as_bytes() == b"0")
        && let Ok(length) = HeaderValue::from_bytes(length.as_bytes())
    {
        headers.insert(hyper::header::CONTENT_LENGTH, length);
    }
    if let Some(protocols) = upgrade
        && let Ok(protocols) = HeaderValue::from_bytes(protocols)
    {
        headers.insert(hyper::header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(hyper::header::UPGRADE, protocols);
    }
    leave_traces(request, telling, peer.map(|peer| (peer, trusted)), asked_host, headers);
    if let Some(trace) = request.extensions().get::<Trace>() {
        put(headers, HeaderName::from_static(TRACEPARENT), traceparent(trace));
        if trace.parent_id.is_none() {
            // It belongs to what was given, which was no trace.
            headers.remove(TRACESTATE);
        }
    }
    Ok(outgoing)
}

/// The upstream's base, then path and query exactly as the client wrote them.
fn target(request: &HttpRequest, base_path: &str) -> Result<hyper::Uri, Problem> {
    let asked = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let target = match asked.starts_with('/') {
        true if !base_path.is_empty() => [base_path, asked].concat().try_into(),
        // An absolute target without a path: `http://host?query` (RFC 9112, 3.2.2).
        false if asked.starts_with('?') => [base_path, "/", asked].concat().try_into(),
        // The server as a whole: OPTIONS *.
        _ => asked.try_into(),
    };
    target.map_err(|_| Problem::new(Cause::BadRequest, "The request's target can't be forwarded."))
}

/// The host that the client asked for. That of an absolute target goes before the header (RFC 9112, 3.2.2).
fn asked_host(request: &HttpRequest) -> Option<&[u8]> {
    let head = request.head();
    match head.uri.authority() {
        Some(authority) => Some(authority.as_str().as_bytes()),
        None => head.headers.get(header::HOST).map(|host| host.as_bytes()),
    }
}

fn host(telling: &Telling<'_>, asked: Option<&[u8]>) -> Option<HeaderValue> {
    match &telling.upstream.host {
        HostPolicy::Client => asked.and_then(|host| HeaderValue::from_bytes(host).ok()),
        HostPolicy::Upstream => None,
        HostPolicy::Name(name) => Some(name.clone()),
    }
    .or_else(|| Some(telling.authority.clone()))
}

/// HTTP/2 clients may send a cookie in crumbs; HTTP/1.1 wants it in one piece (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> =
        headers.get_all(hyper::header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(hyper::header::COOKIE, whole);
    }
}

/// `X-Forwarded-*`, `Forwarded` and `Via`. What the peer says of clients before it is kept only from a trusted proxy:
/// from anyone else it is a claim. Of `Forwarded` and `X-Forwarded-For` a header that the proxy only passed through is
/// dropped like a stranger's. `peer`: its address, and whether it is trusted.
fn leave_traces(
    request: &HttpRequest,
    telling: &Telling<'_>,
    peer: Option<(IpAddr, bool)>,
    asked_host: Option<&[u8]>,
    headers: &mut HeaderMap,
) {
    let head = request.head();
    let (peer, trusted) = (peer.map(|(peer, _)| peer), peer.is_some_and(|(_, trusted)| trusted));
    let believed = |name: &str| {
        let names_clients = name == FORWARDED.as_str() || name == FORWARDED_FOR.as_str();
        let is_believed = match peer {
            Some(peer) if trusted && names_clients => telling.proxies.believes(name, peer, &head.headers),
            _ => trusted,
        };
        let lines: Vec<&[u8]> = if is_believed {
            head.headers.get_all(name).map(|line| line.as_bytes()).collect()
        } else {
            Vec::new()
        };
        (!lines.is_empty()).then(|| lines.join(&b", "[..]))
    };
    let value = |bytes: &[u8]| HeaderValue::from_bytes(bytes).ok();
    let after = |before: Option<Vec<u8>>, own: &[u8]| match before {
        Some(before) => value(&[&before, &b", "[..], own].concat()),
        None => value(own),
    };
    let secure = telling.line.is_some_and(Line::is_secure);
    let scheme = if secure { "https" } else { "http" };
    if let Some(peer) = peer {
        let named =
            || value(peer.to_string().as_bytes()).unwrap_or_else(|| HeaderValue::from_static("unknown"));
        let own = match telling.line {
            // The same for all requests of a connection.
            Some(line) => line.named.get_or_init(named).clone(),
            None => named(),
        };
        let before = believed(FORWARDED_FOR.as_str());
        let chain = if before.is_some() { after(before, own.as_bytes()) } else { Some(own) };
        put(headers, FORWARDED_FOR, chain);
        let mut element = String::with_capacity(96);
        let _ = match peer {
            IpAddr::V4(_) => write!(element, "for={peer}"),
            IpAddr::V6(_) => write!(element, "for=\"[{peer}]\""),
        };
        let plain = asked_host.and_then(|host| std::str::from_utf8(host).ok());
        if let Some(host) = plain.filter(|host| !host.contains(['"', '\\'])) {
            let _ = write!(element, ";host=\"{host}\"");
        }
        let _ = write!(element, ";proto={scheme}");
        let forwarded = match believed(FORWARDED.as_str()) {
            None => HeaderValue::try_from(element).ok(),
            before => after(before, element.as_bytes()),
        };
        put(headers, FORWARDED, forwarded);
    }
    let proto = believed(FORWARDED_PROTO.as_str()).and_then(|proto| value(&proto));
    put(headers, FORWARDED_PROTO, proto.or(Some(HeaderValue::from_static(scheme))));
    let believed_host = believed(FORWARDED_HOST.as_str());
    let host = match (&believed_host, &telling.upstream.host) {
        // The same bytes as in Host.
        (None, HostPolicy::Client) if asked_host.is_some() => headers.get(hyper::header::HOST).cloned(),
        _ => believed_host.as_deref().or(asked_host).and_then(value),
    };
    put(headers, FORWARDED_HOST, host);
    if let Some(via) = &telling.upstream.via {
        let [one_zero, one_one, two] = via;
        let via = match head.version {
            Version::HTTP_2 => two,
            Version::HTTP_11 => one_one,
            _ => one_zero,
        };
        headers.append(hyper::header::VIA, via.clone());
    }
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    if let Some(value) = value {
        headers.insert(name, value);
    }
}

/// Copies an answer's headers to the client.
pub(super) fn copy_response_headers(from: &HeaderMap, to: &mut actix_header::HeaderMap) {
    let named = named_in_connection(from.get_all("connection").iter().map(|value| value.as_bytes()));
    let mut copies = Copies::of_some(from.len());
    for (name, value) in from {
        // The length is set by the body's kind.
        if stays_here(name.as_str(), &named) || name == "content-length" {
            continue;
        }
        if let (Ok(name), Ok(value)) = (
            actix_header::HeaderName::from_bytes(name.as_str().as_bytes()),
            actix_header::HeaderValue::from_maybe_shared(copies.of(value.as_bytes())),
        ) {
            to.append(name, value);
        }
    }
}

/// Copies of values, many in one allocation: the two sides are of two versions of one crate and share no bytes.
struct Copies(BytesMut);

impl Copies {
    fn of_some(values: usize) -> Self {
        Self(BytesMut::with_capacity(values * 48))
    }

    fn of(&mut self, value: &[u8]) -> Bytes {
        self.0.extend_from_slice(value);
        self.0.split().freeze()
    }
}

/// What upstreams take for a proxy's word of the request as it came in: `X-Forwarded-Port`, `-Prefix`, `-User` and their
/// like, and nginx's `X-Real-IP`. From a stranger they are its own inventions.
fn is_said_by_proxies(name: &str) -> bool {
    name.starts_with("x-forwarded-") || name == "x-real-ip"
}

fn stays_here(name: &str, named: &[&[u8]]) -> bool {
    HOP_BY_HOP.contains(&name) || named.iter().any(|one| one.eq_ignore_ascii_case(name.as_bytes()))
}

/// The headers that `Connection` declares to be for this hop. What a message needs to be understood at all cannot
/// be taken from it this way.
fn named_in_connection<'a>(lines: impl Iterator<Item = &'a [u8]>) -> SmallVec<[&'a [u8]; 4]> {
    let is_header = |name: &&[u8]| {
        let needed: [&[u8]; 5] = [b"", b"close", b"keep-alive", b"host", b"content-length"];
        !needed.iter().any(|one| name.eq_ignore_ascii_case(one))
    };
    lines
        .flat_map(|line| line.split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(is_header)
        .collect()
}

#[cfg(test)]
#[path = "forwarding_tests.rs"]
mod tests;
