//! The strict part of reading a request: what the server below accepts although somebody behind us could read it
//! otherwise than it was judged. Refused here, before anything is judged, with 400, and the connection is closed.
//!
//! The server refuses by itself: two `Content-Length` or `Transfer-Encoding` or `Host`, both framings at once, any coding
//! but `chunked`, obsolete folding, a space before the colon, control characters, HTTP/1.1 without `Host`.

use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use actix_web::Error;
use actix_web::body::{BoxBody, EitherBody, MessageBody};
use actix_web::dev::{RequestHead, Service, ServiceRequest, ServiceResponse, Transform, forward_ready};
use actix_web::http::header::{CONTENT_LENGTH, HOST, HeaderMap, TRANSFER_ENCODING, UPGRADE};
use actix_web::http::{ConnectionType, Method, Version};
use pin_project_lite::pin_project;

use super::header_names::{self, HeaderNames};
use super::problem::{Cause, Problem};
use super::wire::Line;
use super::wire::framer::LONGEST_METHOD;

/// Why a request's head can be read in more than one way; `None` when it can't.
pub fn doubtful(head: &RequestHead) -> Option<&'static str> {
    if head.method.as_str().len() > LONGEST_METHOD {
        return Some("A method has at most 64 bytes.");
    }
    // As nginx: frameworks fold the case of a method, rules do not.
    let upper = |byte: u8| byte.is_ascii_uppercase() || byte == b'-' || byte == b'_';
    if !head.method.as_str().bytes().all(upper) {
        return Some("A method is in upper case.");
    }
    target(head).or_else(|| host(head)).or_else(|| length(&head.headers)).or_else(|| upgrade(&head.headers))
}

fn target(head: &RequestHead) -> Option<&'static str> {
    let uri = &head.uri;
    if head.method == Method::CONNECT {
        // An authority alone; nobody gets a tunnel.
        return None;
    }
    match (uri.scheme_str(), uri.authority()) {
        (Some("http" | "https"), Some(authority)) if is_host(authority.as_str()) => {}
        (None, None) => {}
        (Some(_), Some(_)) => return Some("The request's target names no http host."),
        _ => return Some("The request's target is a path, or an http URL."),
    }
    let path = uri.path();
    let sound = path.starts_with('/') || (path == "*" && head.method == Method::OPTIONS);
    (!sound).then_some("The request's target is a path, or an http URL.")
}

fn host(head: &RequestHead) -> Option<&'static str> {
    let mut lines = head.headers.get_all(HOST);
    let line = lines.next();
    if lines.next().is_some() {
        return Some("There is more than one Host.");
    }
    match (line.map(|line| line.as_bytes()), head.uri.authority()) {
        (Some(line), _) if !std::str::from_utf8(line).is_ok_and(is_host) => {
            Some("Host is not a host's name.")
        }
        // RFC 9113, 8.3.1. With HTTP/1.1 the target goes before, and we write Host anew.
        (Some(line), Some(authority))
            if head.version == Version::HTTP_2
                && !line.eq_ignore_ascii_case(authority.as_str().as_bytes()) =>
        {
            Some("Host and :authority differ.")
        }
        (None, None) if head.version > Version::HTTP_10 => Some("There is no Host."),
        _ => None,
    }
}

/// A name or an address, with or without a port, and nothing else: no user, no list, no path.
fn is_host(text: &str) -> bool {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => {
                let address: Result<std::net::Ipv6Addr, _> = address.parse();
                return address.is_ok() && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
            }
            None => return false,
        },
        None => match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        },
    };
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(fits) && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    text.len() <= 5 && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn length(headers: &HeaderMap) -> Option<&'static str> {
    let mut lines = headers.get_all(CONTENT_LENGTH);
    let line = lines.next()?.as_bytes();
    if lines.next().is_some() || headers.contains_key(TRANSFER_ENCODING) {
        return Some("The length of the body is given twice.");
    }
    (!is_length(line)).then_some("Content-Length is not a plain decimal number.")
}

/// Why an upstream's answer can be read in more than one way; `None` when it can't. As nginx since 1.23.
pub fn doubtful_answer(version: hyper::Version, headers: &hyper::HeaderMap) -> Option<&'static str> {
    let mut codings = headers.get_all(hyper::header::TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(hyper::header::CONTENT_LENGTH).iter();
    let (coding, length) = (codings.next(), lengths.next());
    if coding.is_some() && length.is_some() || codings.next().is_some() || lengths.next().is_some() {
        return Some("it tells the length of its body twice");
    }
    let chunked = |coding: &[u8]| coding.trim_ascii().eq_ignore_ascii_case(b"chunked");
    if coding.is_some_and(|coding| version < hyper::Version::HTTP_11 || !chunked(coding.as_bytes())) {
        return Some("its body has a coding that is not chunked");
    }
    length
        .is_some_and(|length| !is_length(length.as_bytes()))
        .then_some("its Content-Length is no plain number")
}

/// Those who read "010" as eight, or no more than a signed number, would see another body.
fn is_length(text: &[u8]) -> bool {
    let plain = (1..=18).contains(&text.len()) && text.iter().all(u8::is_ascii_digit);
    plain && (text == b"0" || text.first() != Some(&b'0'))
}

/// The server below takes all that follows such a request for its body, whatever length it tells.
fn upgrade(headers: &HeaderMap) -> Option<&'static str> {
    headers.get(UPGRADE)?;
    let body = headers.contains_key(TRANSFER_ENCODING)
        || headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    let websocket =
        headers.get_all(UPGRADE).any(|line| line.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket"));
    (body && websocket).then_some("A request to upgrade to WebSocket has no body.")
}

/// Refuses what is doubtful, passes on what is not, without headers of other names than these.
#[derive(Clone, Copy, Debug)]
pub struct Strict(pub HeaderNames);

impl<T, B> Transform<T, ServiceRequest> for Strict
where
    T: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
    B: MessageBody,
{
    type Response = ServiceResponse<EitherBody<B, BoxBody>>;
    type Error = Error;
    type Transform = StrictService<T>;
    type InitError = ();
    type Future = Ready<Result<Self::Transform, ()>>;

    fn new_transform(&self, service: T) -> Self::Future {
        ready(Ok(StrictService { service, names: self.0 }))
    }
}

/// [`Strict`] around one service.
pub struct StrictService<T> {
    service: T,
    names: HeaderNames,
}

impl<T, B> Service<ServiceRequest> for StrictService<T>
where
    T: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
    B: MessageBody,
{
    type Response = ServiceResponse<EitherBody<B, BoxBody>>;
    type Error = Error;
    type Future = Checked<T::Future>;

    forward_ready!(service);

    fn call(&self, mut request: ServiceRequest) -> Self::Future {
        let line = request.conn_data::<Rc<Line>>();
        if line.is_some_and(|line| line.is_crowded()) {
            let refusal = Problem::new(Cause::TooManyStreams, "Too many requests at once on one connection.");
            return Checked::Refused { refusal: Some(request.into_response(refusal.response())) };
        }
        match doubtful(request.head()) {
            None => {
                header_names::drop_others(request.headers_mut(), self.names);
                Checked::Passed { answer: self.service.call(request) }
            }
            Some(why) => {
                // Nothing that was sent behind it is served: the connection gets one request at a time.
                let mut refusal = Problem::new(Cause::BadRequest, why).response();
                refusal.head_mut().set_connection_type(ConnectionType::Close);
                Checked::Refused { refusal: Some(request.into_response(refusal)) }
            }
        }
    }
}

pin_project! {
    /// An answer under way.
    #[project = CheckedNow]
    #[doc(hidden)]
    pub enum Checked<F> {
        /// From the service.
        Passed { #[pin] answer: F },
        /// Ours.
        Refused { refusal: Option<ServiceResponse<BoxBody>> },
    }
}

impl<F, B> Future for Checked<F>
where
    F: Future<Output = Result<ServiceResponse<B>, Error>>,
{
    type Output = Result<ServiceResponse<EitherBody<B, BoxBody>>, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            CheckedNow::Passed { answer } => {
                Poll::Ready(std::task::ready!(answer.poll(context)).map(ServiceResponse::map_into_left_body))
            }
            CheckedNow::Refused { refusal } => {
                refusal.take().map_or(Poll::Pending, |one| Poll::Ready(Ok(one.map_into_right_body())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_with_or_without_a_port() {
        for good in [
            "a",
            "api.example.com",
            "api.example.com.",
            "a_b:80",
            "192.0.2.1:8080",
            "[::1]",
            "[2001:db8::1]:443",
        ] {
            assert!(is_host(good), "{good}");
        }
        for bad in [
            "", ":80", ".a", "a b", "u@a", "u:p@a", "a/b", "a?b", "a#b", "a\\b", "a,b", "a:80:80", "a:x",
            "a:123456", "[::1", "[::1]x", "[a]", "a%00", "ä",
        ] {
            assert!(!is_host(bad), "{bad}");
        }
    }
}
