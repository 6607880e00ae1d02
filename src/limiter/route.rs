//! Which requests a rule is for: methods, host and path.

use std::borrow::Cow;

use super::subject::Facts;

/// A rule's conditions. Each is optional; all that are there must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// None: any.
    pub(super) methods: Vec<Box<str>>,
    pub(super) host: Option<Host>,
    pub(super) path: Option<PathPattern>,
    /// The path as it was written, its names included.
    written_path: Option<Box<str>>,
}

/// Lower case, without a dot at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Host {
    Exactly(Box<str>),
    /// `*.example.com`: any name below, not `example.com` itself. Kept with its leading dot.
    Below(Box<str>),
}

/// A path: literal segments, `{name}` for exactly one, and `/**` at the end for any number, none included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PathPattern {
    pub(super) segments: Vec<Segment>,
    pub(super) open: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    Literal(Box<str>),
    /// Not an empty one.
    Any,
}

/// Why a condition makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// Not a method's token.
    #[error("\"{0}\" is not a method; accepted: a token in upper case such as \"GET\"")]
    Method(String),
    /// Not a host name.
    #[error(
        "\"{0}\" is not a host; accepted: a name without port such as \"api.example.com\", or \"*.example.com\""
    )]
    Host(String),
    /// Not a path pattern.
    #[error(
        "\"{path}\": {why}; accepted: \"/exact\", \"/prefix/**\", and \"{{name}}\" for one whole segment"
    )]
    Path {
        /// The pattern.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl Route {
    /// Every request.
    pub fn any() -> Self {
        Self::default()
    }

    /// Requests with one of `methods` (none: any), for `host` and `path`.
    ///
    /// # Errors
    /// When one of them is malformed; the first in the order of the arguments.
    pub fn new(methods: &[String], host: Option<&str>, path: Option<&str>) -> Result<Self, RouteError> {
        for method in methods {
            let token = |byte: u8| byte.is_ascii_uppercase() || byte == b'-' || byte == b'_';
            if method.is_empty() || !method.bytes().all(token) {
                return Err(RouteError::Method(method.clone()));
            }
        }
        Ok(Self {
            methods: methods.iter().map(|method| method.as_str().into()).collect(),
            host: host.map(Host::parse).transpose()?,
            path: path.map(PathPattern::parse).transpose()?,
            written_path: path.map(Box::from),
        })
    }

    /// The methods; none: any.
    pub fn methods(&self) -> &[Box<str>] {
        &self.methods
    }

    /// The host, as in `api.example.com` or `*.example.com`.
    pub fn host(&self) -> Option<String> {
        self.host.as_ref().map(|host| match host {
            Host::Exactly(name) => name.to_string(),
            Host::Below(suffix) => format!("*{suffix}"),
        })
    }

    /// The path, as it was written.
    pub fn path(&self) -> Option<&str> {
        self.written_path.as_deref()
    }

    /// Whether this request is meant, whose path in its normal form is `path`. Asks for no fact that it has no
    /// condition on.
    pub(super) fn matches(&self, facts: &dyn Facts, path: Option<&str>) -> bool {
        self.host.as_ref().is_none_or(|wanted| wanted.matches(facts.host()))
            && self.matches_beside_host(facts, path)
    }

    /// Whether every condition but the one on the host holds.
    pub(super) fn matches_beside_host(&self, facts: &dyn Facts, path: Option<&str>) -> bool {
        (self.methods.is_empty() || self.methods.iter().any(|one| is_for(one, facts.method())))
            && self.path.as_ref().is_none_or(|pattern| path.is_some_and(|path| pattern.matches(path)))
    }
}

/// Whether a rule for `wanted` is for `method`. One for GET is for HEAD as well, which costs the upstream the same work
/// (RFC 9110, 9.3.2); nginx's `limit_except` has it so, too.
fn is_for(wanted: &str, method: &str) -> bool {
    wanted == method || (wanted == "GET" && method == "HEAD")
}

impl Host {
    fn parse(text: &str) -> Result<Self, RouteError> {
        let bare = text.strip_prefix("*.").unwrap_or(text);
        let name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let literal = bare.starts_with('[') && bare.ends_with(']') && bare == text;
        let sound = !bare.is_empty() && !bare.starts_with('.') && bare.bytes().all(name);
        if !sound && !literal {
            return Err(RouteError::Host(text.to_owned()));
        }
        let lower = bare.trim_end_matches('.').to_ascii_lowercase();
        Ok(if bare.len() == text.len() {
            Self::Exactly(lower.into())
        } else {
            Self::Below(format!(".{lower}").into())
        })
    }

    fn matches(&self, host: &str) -> bool {
        let host = bare_host(host);
        match self {
            Self::Exactly(name) => host.eq_ignore_ascii_case(name),
            Self::Below(suffix) => host
                .len()
                .checked_sub(suffix.len())
                .filter(|&cut| cut > 0)
                .and_then(|cut| host.as_bytes().get(cut..))
                .is_some_and(|end| end.eq_ignore_ascii_case(suffix.as_bytes())),
        }
    }
}

/// `host:port` without the port and a dot at the end; `[::1]:80` keeps its brackets.
pub(crate) fn bare_host(host: &str) -> &str {
    let name = match host.rfind(':') {
        Some(colon) if !host[colon..].contains(']') => &host[..colon],
        _ => host,
    };
    name.trim_end_matches('.')
}

impl PathPattern {
    fn parse(text: &str) -> Result<Self, RouteError> {
        let fail = |why| RouteError::Path { path: text.to_owned(), why };
        let rest = text.strip_prefix('/').ok_or_else(|| fail("it does not begin with \"/\""))?;
        let (rest, open) = match rest.strip_suffix("**") {
            Some("") => (None, true),
            Some(before) => {
                let before =
                    before.strip_suffix('/').ok_or_else(|| fail("\"**\" is not a segment of its own"))?;
                (Some(before), true)
            }
            None => (Some(rest), false),
        };
        let mut segments = Vec::new();
        for segment in rest.into_iter().flat_map(|rest| rest.split('/')) {
            segments.push(if segment.contains('*') {
                return Err(fail("\"*\" stands for nothing here, \"**\" only at the end"));
            } else if let Some(name) = segment.strip_prefix('{') {
                match name.strip_suffix('}') {
                    Some(name) if !name.is_empty() && !name.contains(['{', '}']) => Segment::Any,
                    _ => return Err(fail("a \"{\" is not closed, or its name is empty")),
                }
            } else if segment.contains(['{', '}']) {
                return Err(fail("\"{name}\" must be a whole segment"));
            } else if segment.contains(['?', '#']) {
                return Err(fail("a query or fragment is no part of a path"));
            } else {
                let literal = normal_path(segment);
                if matches!(&*literal, "." | "..") {
                    return Err(fail(
                        "\".\" and \"..\" are resolved before a path is matched, so that none has them",
                    ));
                }
                Segment::Literal(literal.into_owned().into())
            });
        }
        // Only a slash at the end leaves an empty segment.
        let inner =
            if open { &segments[..] } else { segments.split_last().map_or(&[][..], |(_, inner)| inner) };
        if inner.contains(&Segment::Literal("".into())) {
            return Err(fail("\"//\" is joined before a path is matched, so that none has it"));
        }
        Ok(Self { segments, open })
    }

    /// `path` is normal and begins with "/".
    fn matches(&self, path: &str) -> bool {
        let mut given = path.strip_prefix('/').unwrap_or(path).split('/');
        for segment in &self.segments {
            match (segment, given.next()) {
                (Segment::Literal(wanted), Some(got)) if **wanted == *got => {}
                (Segment::Any, Some(got)) if !got.is_empty() => {}
                _ => return false,
            }
        }
        self.open || given.next().is_none()
    }
}

/// The path as rules see it: percent-encoding undone once, repeated slashes joined, dot segments resolved.
///
/// Only for matching. The upstream gets the bytes that the client sent; a client that writes `/v1//items`
/// or `/v1/%69tems` must not slip past the rule for `/v1/items`. An encoded slash stays encoded: see
/// [`other_reading`]. The trailing slash stays, letters keep their case.
pub(crate) fn normal_path(path: &str) -> Cow<'_, str> {
    if is_normal(path) {
        return Cow::Borrowed(path);
    }
    let decoded = decode_once(path);
    let decoded = String::from_utf8_lossy(&decoded);
    if !decoded.starts_with('/') {
        return Cow::Owned(decoded.into_owned());
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut ends_in_slash = false;
    for segment in decoded.split('/').skip(1) {
        ends_in_slash = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop();
            }
            name => kept.push(name),
        }
    }
    let mut normal = String::with_capacity(decoded.len());
    for segment in &kept {
        normal.push('/');
        normal.push_str(segment);
    }
    if ends_in_slash || kept.is_empty() {
        normal.push('/');
    }
    Cow::Owned(normal)
}

/// Nothing encoded, no two slashes in a row, no segment that begins with a dot. In one pass: nearly every path is so.
fn is_normal(path: &str) -> bool {
    let mut before = 0;
    path.bytes().all(|byte| {
        let normal = byte != b'%' && !(before == b'/' && matches!(byte, b'/' | b'.'));
        before = byte;
        normal
    })
}

/// The path as a server reads it that takes an encoded slash for a slash, when there is one. Some do (WSGI, Go), some
/// take it for a part of the segment; which of them the upstream is, is not ours to guess.
pub(crate) fn other_reading(path: &str) -> Option<String> {
    let is_slash =
        |&at: &usize| path.as_bytes()[at..].get(1..3).is_some_and(|hex| hex.eq_ignore_ascii_case(b"2f"));
    let mut slashes = path.match_indices('%').map(|(at, _)| at).filter(is_slash).peekable();
    slashes.peek()?;
    let (mut text, mut from) = (String::with_capacity(path.len()), 0);
    for at in slashes {
        text.push_str(&path[from..at]);
        text.push('/');
        from = at + 3;
    }
    text.push_str(&path[from..]);
    Some(normal_path(&text).into_owned())
}

fn decode_once(path: &str) -> Vec<u8> {
    let hex = |byte: Option<&u8>| byte.and_then(|&byte| (byte as char).to_digit(16));
    let bytes = path.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], hex(bytes.get(at + 1)), hex(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) if high * 16 + low != u32::from(b'/') => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request to this host.
    struct To<'a>(&'a str);

    impl Facts for To<'_> {
        fn method(&self) -> &str {
            "GET"
        }
        fn host(&self) -> &str {
            self.0
        }
    }

    fn route(path: &str) -> Route {
        Route::new(&[], None, Some(path)).unwrap()
    }

    fn hits(pattern: &str, path: &str) -> bool {
        route(pattern).matches(&To(""), Some(&normal_path(path)))
    }

    #[test]
    fn a_path_matches_exactly_by_prefix_and_by_segment() {
        for (pattern, path, wanted) in [
            ("/v1/items", "/v1/items", true),
            ("/v1/items", "/v1/items/", false),
            ("/v1/items", "/v1/Items", false),
            ("/v1/items", "/v1/items/7", false),
            ("/v1/items/{id}", "/v1/items/7", true),
            ("/v1/items/{id}", "/v1/items/", false),
            ("/v1/items/{id}", "/v1/items/7/parts", false),
            ("/v1/{kind}/7", "/v1/items/7", true),
            ("/v1/**", "/v1", true),
            ("/v1/**", "/v1/", true),
            ("/v1/**", "/v1/a/b", true),
            ("/v1/**", "/v10", false),
            ("/**", "/", true),
            ("/**", "/anything/at/all", true),
            ("/", "/", true),
            ("/", "/a", false),
            ("/v1/items", "/v1//items", true),
            ("/v1/items", "//v1/items", true),
            ("/v1/items", "/v1/./items", true),
            ("/v1/items", "/v2/../v1/items", true),
            ("/v1/items", "/../v1/items", true),
            ("/v1/items", "/v1/%69tems", true),
            ("/v1/items", "/%2e%2e/v1/items", true),
            ("/v1/items/{id}", "/v1/items/a%2Fb", true),
            ("/v1/items", "/v1%2Fitems", false),
            ("/a%20b", "/a%20b", true),
            ("/100%", "/100%", true),
        ] {
            assert_eq!(hits(pattern, path), wanted, "{pattern} against {path}");
        }
    }

    #[test]
    fn a_host_matches_without_port_and_case() {
        for (pattern, host, wanted) in [
            ("api.example.com", "api.example.com", true),
            ("api.example.com", "API.Example.Com:8443", true),
            ("api.example.com", "api.example.com.", true),
            ("api.example.com", "example.com", false),
            ("*.example.com", "api.example.com", true),
            ("*.example.com", "a.b.example.com:80", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "badexample.com", false),
            ("[::1]", "[::1]:8080", true),
            ("[::1]", "[::1]", true),
        ] {
            let route = Route::new(&[], Some(pattern), None).unwrap();
            assert_eq!(route.matches(&To(host), None), wanted, "{pattern} against {host}");
        }
    }

    #[test]
    fn a_malformed_condition_is_refused_with_what_is_accepted() {
        for path in [
            "v1",
            "/v1**",
            "/v1/*/x",
            "/{",
            "/{}",
            "/a{b}",
            "/v1?x=1",
            "/**/x",
            "//",
            "/a//b",
            "/a//",
            "//**",
            "/a//**",
            "/a/../b",
            "/./a",
            "/a/%2e%2E",
            "/%2e/**",
        ] {
            let error = Route::new(&[], None, Some(path)).unwrap_err().to_string();
            assert!(error.contains(path) && error.contains("accepted"), "{error}");
        }
        for host in ["", "*.", "a b", "http://x", "x:80", "*"] {
            let error = Route::new(&[], Some(host), None).unwrap_err().to_string();
            assert!(error.contains("accepted"), "{error}");
        }
        assert!(Route::new(&["get".into()], None, None).is_err());
        assert!(Route::new(&[String::new()], None, None).is_err());
    }
}
