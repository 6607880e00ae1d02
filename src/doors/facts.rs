//! From an HTTP request to facts.

use std::borrow::Cow;
use std::net::IpAddr;

use actix_web::HttpRequest;
use actix_web::dev::RequestHead;
use actix_web::http::header::{COOKIE, HOST};

use super::client_ip::TrustedProxies;
#[cfg(feature = "jwt")]
use super::jwt::{Lazy, Verifier};
use crate::limiter::subject::{Facts, Part};

/// What an HTTP request says of itself.
pub struct HttpFacts<'a> {
    head: &'a RequestHead,
    ip: Option<IpAddr>,
    #[cfg(feature = "jwt")]
    claims: Lazy<'a>,
}

impl<'a> HttpFacts<'a> {
    /// The facts of this request, its client's address by way of `proxies`.
    pub fn of(request: &'a HttpRequest, proxies: &TrustedProxies) -> Self {
        let head = request.head();
        let ip = head.peer_addr.map(|peer| proxies.client(peer.ip(), &head.headers));
        Self {
            head,
            ip,
            #[cfg(feature = "jwt")]
            claims: Lazy::default(),
        }
    }

    /// With the claims of its token, should anybody ask for one.
    #[cfg(feature = "jwt")]
    pub fn verified_by(self, verifier: Option<&'a Verifier>) -> Self {
        Self { claims: Lazy::by(verifier), ..self }
    }
}

impl Facts for HttpFacts<'_> {
    fn ip(&self) -> Option<IpAddr> {
        self.ip
    }

    fn method(&self) -> &str {
        self.head.method.as_str()
    }

    fn host(&self) -> &str {
        // The target's own authority (absolute form, HTTP/2) goes before the header: RFC 9112, 3.2.2.
        match self.head.uri.authority() {
            Some(authority) => authority.as_str(),
            None => self.head.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default(),
        }
    }

    fn path(&self) -> &str {
        self.head.uri.path()
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        only(self.head.headers.get_all(name)).map(|value| value.as_bytes().trim_ascii())
    }

    fn query(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        parameter(self.head.uri.query()?.as_bytes(), b'&', name, true)
    }

    fn cookie(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let mut found = self
            .head
            .headers
            .get_all(COOKIE)
            .flat_map(|line| line.as_bytes().split(|&byte| byte == b';'))
            .filter_map(|pair| value_of(pair.trim_ascii(), name, false));
        let value = found.next()?;
        found.next().is_none().then_some(value)
    }

    #[cfg(feature = "jwt")]
    fn claim(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.claims.get(name, self)
    }

    fn carries(&self, part: &Part) -> bool {
        let headers = &self.head.headers;
        let cookies = || headers.get_all(COOKIE).flat_map(|line| line.as_bytes().split(|&byte| byte == b';'));
        match part {
            Part::Ip => self.ip.is_some(),
            Part::Header(name) => headers.contains_key(&**name),
            Part::Query(name) => {
                self.head.uri.query().is_some_and(|query| has_parameter(query.as_bytes(), b'&', name, true))
            }
            Part::Cookie(name) => cookies().any(|pair| value_of(pair.trim_ascii(), name, false).is_some()),
            Part::Jwt(name) => self.claim(name).is_some(),
            Part::Everyone => true,
        }
    }
}

/// The value of `name` in a list of pairs, when it is there exactly once.
pub(crate) fn parameter<'a>(
    list: &'a [u8],
    separator: u8,
    name: &str,
    encoded: bool,
) -> Option<Cow<'a, [u8]>> {
    let pairs = list.split(|&byte| byte == separator);
    only(pairs.filter_map(|pair| value_of(pair, name, encoded)))
}

/// Whether `name` is in a list of pairs, be it repeated or empty.
pub(crate) fn has_parameter(list: &[u8], separator: u8, name: &str, encoded: bool) -> bool {
    list.split(|&byte| byte == separator).any(|pair| value_of(pair, name, encoded).is_some())
}

fn only<T>(mut values: impl Iterator<Item = T>) -> Option<T> {
    let value = values.next()?;
    values.next().is_none().then_some(value)
}

fn value_of<'a>(pair: &'a [u8], name: &str, encoded: bool) -> Option<Cow<'a, [u8]>> {
    let cut = pair.iter().position(|&byte| byte == b'=').unwrap_or(pair.len());
    let (key, value) = (&pair[..cut], pair.get(cut + 1..).unwrap_or_default());
    let decode = |bytes: &'a [u8]| if encoded { decode_form(bytes) } else { Cow::Borrowed(bytes) };
    (*decode(key) == *name.as_bytes()).then(|| decode(value))
}

/// Undoes `+` and percent-encoding, as forms write them.
fn decode_form(bytes: &[u8]) -> Cow<'_, [u8]> {
    if !bytes.iter().any(|&byte| byte == b'%' || byte == b'+') {
        return Cow::Borrowed(bytes);
    }
    let spaced: Vec<u8> = bytes.iter().map(|&byte| if byte == b'+' { b' ' } else { byte }).collect();
    Cow::Owned(percent_encoding::percent_decode(&spaced).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    fn fact(request: TestRequest, read: impl Fn(&HttpFacts<'_>) -> Option<String>) -> Option<String> {
        let request = request.to_http_request();
        let proxies = TrustedProxies::default();
        read(&HttpFacts::of(&request, &proxies))
    }

    fn text(value: Option<Cow<'_, [u8]>>) -> Option<String> {
        value.map(|value| String::from_utf8_lossy(&value).into_owned())
    }

    #[test]
    fn a_query_parameter_is_decoded_and_must_be_there_once() {
        let query = |uri: &str| fact(TestRequest::with_uri(uri), |facts| text(facts.query("user")));
        assert_eq!(query("/?user=ana"), Some("ana".into()));
        assert_eq!(query("/?a=b&us%65r=a%20n+a&c"), Some("a n a".into()));
        assert_eq!(query("/?user"), Some(String::new()));
        assert_eq!(query("/?user=a&user=b"), None);
        assert_eq!(query("/?users=a"), None);
        assert_eq!(query("/"), None);
    }

    #[test]
    fn a_header_or_cookie_that_is_repeated_names_no_one() {
        let header = |request| fact(request, |facts| text(facts.header("x-api-key").map(Cow::Borrowed)));
        let one = TestRequest::default().insert_header(("X-Api-Key", " k1 "));
        assert_eq!(header(one), Some("k1".into()));
        let two =
            TestRequest::default().append_header(("x-api-key", "k1")).append_header(("x-api-key", "k2"));
        assert_eq!(header(two), None);

        let cookie = |request| fact(request, |facts| text(facts.cookie("sid")));
        let one = TestRequest::default().insert_header(("cookie", "a=b; sid=s=1; c=d"));
        assert_eq!(cookie(one), Some("s=1".into()));
        let two = TestRequest::default().insert_header(("cookie", "sid=1; sid=2"));
        assert_eq!(cookie(two), None);
    }
}
