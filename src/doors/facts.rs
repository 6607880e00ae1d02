//! From an HTTP request to facts.

use std::borrow::Cow;
use std::net::IpAddr;
use std::rc::Rc;
#[cfg(feature = "jwt")]
use std::sync::Arc;

use actix_web::HttpRequest;
use actix_web::dev::RequestHead;
use actix_web::http::header::{COOKIE, HOST};

use super::client_ip::{ClientAddress, TrustedProxies};
#[cfg(feature = "jwt")]
use super::jwt::{Claims, Lazy, Verifier};
use crate::limiter::subject::{Facts, Part};
use crate::limiter::token::TokenOutcome;

/// What an HTTP request says of itself.
pub struct HttpFacts<'a> {
    head: &'a RequestHead,
    client: Option<ClientAddress>,
    #[cfg(feature = "jwt")]
    claims: Lazy<'a>,
    custom: Option<(&'a HttpRequest, &'a [CustomSubject])>,
}

/// A value that the application derives from a request: its name in [`Part::Custom`] and the function that returns it.
pub type CustomSubject = (Box<str>, Rc<dyn Fn(&HttpRequest) -> Option<Vec<u8>>>);

impl<'a> HttpFacts<'a> {
    /// The facts of this request, its client's address by way of `proxies`.
    pub fn of(request: &'a HttpRequest, proxies: &TrustedProxies) -> Self {
        let head = request.head();
        let client = head.peer_addr.map(|peer| proxies.client(peer.ip(), &head.headers));
        Self {
            head,
            client,
            #[cfg(feature = "jwt")]
            claims: Lazy::default(),
            custom: None,
        }
    }

    /// With values that the application derives from `request`, the request that these facts are of.
    pub fn deriving(self, request: &'a HttpRequest, custom: &'a [CustomSubject]) -> Self {
        Self { custom: Some((request, custom)), ..self }
    }

    /// With the claims of its token, should anybody ask for one.
    #[cfg(feature = "jwt")]
    pub fn verified_by(self, verifier: Option<&'a Verifier>) -> Self {
        Self { claims: Lazy::by(verifier), ..self }
    }
}

impl HttpFacts<'_> {
    /// The token whose signature has to be checked before its claims are known; `None` where they are known already.
    #[cfg(feature = "jwt")]
    pub(super) fn unchecked_token(&self) -> Option<Vec<u8>> {
        self.claims.unchecked(self)
    }

    /// With claims that were verified elsewhere.
    #[cfg(feature = "jwt")]
    pub(super) fn knowing(self, claims: Result<Arc<Claims>, TokenOutcome>) -> Self {
        self.claims.know(claims);
        self
    }

    /// What became of its token; `None` where no claim was asked for.
    pub fn token(&self) -> Option<TokenOutcome> {
        #[cfg(feature = "jwt")]
        return self.claims.outcome();
        #[cfg(not(feature = "jwt"))]
        None
    }

    /// The pairs of all cookies, each still as it was sent.
    fn cookies(&self) -> impl Iterator<Item = &[u8]> {
        self.head.headers.get_all(COOKIE).flat_map(|line| line.as_bytes().split(|&byte| byte == b';'))
    }
}

impl Facts for HttpFacts<'_> {
    fn ip(&self) -> Option<IpAddr> {
        self.client.map(|client| client.address())
    }

    fn disputed(&self) -> &[IpAddr] {
        self.client.as_ref().map_or(&[], ClientAddress::candidates)
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

    fn lacks_host(&self) -> bool {
        self.head.uri.authority().is_none() && !self.head.headers.contains_key(HOST)
    }

    fn path(&self) -> &str {
        self.head.uri.path()
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        only(self.head.headers.get_all(name)).map(|value| value.as_bytes().trim_ascii())
    }

    fn query(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        parameter(self.head.uri.query()?.as_bytes(), name)
    }

    fn cookie(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        only(self.cookies().filter_map(|pair| cookie_of(pair, name)))
    }

    #[cfg(feature = "jwt")]
    fn claim(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.claims.get(name, self)
    }

    fn custom(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let (request, custom) = self.custom?;
        let (_, derive) = custom.iter().find(|(known, _)| **known == *name)?;
        derive(request).filter(|value| !value.is_empty()).map(Cow::Owned)
    }

    fn carries(&self, part: &Part) -> bool {
        let headers = &self.head.headers;
        match part {
            Part::Ip => self.client.is_some(),
            Part::Header(name) => headers.contains_key(&**name),
            Part::Query(name) => {
                self.head.uri.query().is_some_and(|query| has_parameter(query.as_bytes(), name))
            }
            Part::Cookie(name) => self.cookies().any(|pair| cookie_of(pair, name).is_some()),
            Part::Jwt(name) => self.claim(name).is_some(),
            Part::Custom(name) => self.custom(name).is_some(),
            Part::Everyone => true,
        }
    }
}

/// The value of `name` in a query, when it is there exactly once.
pub(crate) fn parameter<'a>(query: &'a [u8], name: &str) -> Option<Cow<'a, [u8]>> {
    only(query.split(|&byte| byte == b'&').filter_map(|pair| value_of(pair, name)))
}

/// Whether `name` is in a query, be it repeated or empty.
pub(crate) fn has_parameter(query: &[u8], name: &str) -> bool {
    query.split(|&byte| byte == b'&').any(|pair| value_of(pair, name).is_some())
}

fn only<T>(mut values: impl Iterator<Item = T>) -> Option<T> {
    let value = values.next()?;
    values.next().is_none().then_some(value)
}

fn value_of<'a>(pair: &'a [u8], name: &str) -> Option<Cow<'a, [u8]>> {
    let (key, value) = key_and_value(pair);
    (*decode_form(key) == *name.as_bytes()).then(|| decode_form(value))
}

fn cookie_of<'a>(pair: &'a [u8], name: &str) -> Option<Cow<'a, [u8]>> {
    let (key, value) = key_and_value(pair);
    (*decode_form(key.trim_ascii()) == *name.as_bytes()).then(|| cookie_value(value))
}

fn key_and_value(pair: &[u8]) -> (&[u8], &[u8]) {
    let cut = pair.iter().position(|&byte| byte == b'=').unwrap_or(pair.len());
    (&pair[..cut], pair.get(cut + 1..).unwrap_or_default())
}

/// A cookie's value with every spelling undone that upstreams undo: the space around it, a pair of quotes (RFC 6265,
/// 4.1.1), percent-encoding. Else one session has a budget for each of its spellings.
pub(crate) fn cookie_value(value: &[u8]) -> Cow<'_, [u8]> {
    let value = value.trim_ascii();
    let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    decode_form(bare.unwrap_or(value))
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
        for spelled in
            ["sid=a b+c", "sid=a%20b%2Bc", "sid=%61+b%2bc", " sid = \"a b%2Bc\" ", "x=1;s%69d=a+b%2Bc"]
        {
            let plus = if spelled.contains("b+c") { "a b c" } else { "a b+c" };
            let one = TestRequest::default().insert_header(("cookie", spelled));
            assert_eq!(cookie(one), Some(plus.into()), "{spelled}");
        }
        let disguised = TestRequest::default().insert_header(("cookie", "sid=1; s%69d=2"));
        assert_eq!(cookie(disguised), None, "either of them may be the one that the upstream reads");
        let two = TestRequest::default().insert_header(("cookie", "sid=1; sid=2"));
        assert_eq!(cookie(two), None);
    }
}
