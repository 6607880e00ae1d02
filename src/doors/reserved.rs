//! What is tidegate's own on the main listener: whatever stands under `server.prefix`, and whatever is asked of
//! `admin.host`. None of it is forwarded: it may carry an operator's token, and the upstream must not share the page's
//! origin.

use actix_web::dev::RequestHead;
use actix_web::http::header::HOST;

use crate::limiter::route::{bare_host, normal_path, other_reading};

/// A prefix of paths and a host.
#[derive(Clone, Debug, Default)]
pub struct Reserved {
    /// Empty, or `/…` without a slash at its end.
    prefix: Box<str>,
    host: Option<Box<str>>,
}

impl Reserved {
    /// The paths under `prefix`, which may be empty for none, and every path at `host`.
    pub fn new(prefix: &str, host: Option<&str>) -> Self {
        Self { prefix: prefix.into(), host: host.map(Box::from) }
    }

    /// Whether this request is for one of them, in any spelling of its path that some server reads so.
    pub fn holds(&self, head: &RequestHead) -> bool {
        if self.is_for_host(head) {
            return true;
        }
        if self.prefix.is_empty() {
            return false;
        }
        let path = head.uri.path();
        self.is_above(&normal_path(path)) || other_reading(path).is_some_and(|path| self.is_above(&path))
    }

    /// Whether there is such a host.
    pub fn has_host(&self) -> bool {
        self.host.is_some()
    }

    /// Whether this request is for the host.
    pub fn is_for_host(&self, head: &RequestHead) -> bool {
        let Some(wanted) = &self.host else { return false };
        // The target's own authority goes before the header (RFC 9112, 3.2.2).
        let asked = match head.uri.authority() {
            Some(authority) => Some(authority.as_str()),
            None => head.headers.get(HOST).and_then(|host| host.to_str().ok()),
        };
        asked.is_some_and(|asked| bare_host(asked).eq_ignore_ascii_case(wanted))
    }

    /// Letters of either case: an upstream may fold it, and a slip of the operator's must not show it the token.
    fn is_above(&self, path: &str) -> bool {
        let (begin, rest) = match path.split_at_checked(self.prefix.len()) {
            Some(parts) => parts,
            None => return false,
        };
        begin.eq_ignore_ascii_case(&self.prefix) && (rest.is_empty() || rest.starts_with('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    fn holds(reserved: &Reserved, uri: &str, host: &str) -> bool {
        let request = TestRequest::with_uri(uri).insert_header(("host", host)).to_srv_request();
        reserved.holds(request.head())
    }

    #[test]
    fn every_spelling_under_the_prefix_is_reserved() {
        let reserved = Reserved::new("/_tidegate", None);
        for (uri, wanted) in [
            ("/_tidegate", true),
            ("/_tidegate/", true),
            ("/_tidegate/anything/at/all?x=1", true),
            ("//_tidegate/admin/x", true),
            ("/%5ftidegate/admin/x", true),
            ("/_tidegate%2fadmin", true),
            ("/x/../_tidegate/admin", true),
            ("/x/%2e%2e/_tidegate/admin", true),
            ("/./_tidegate", true),
            ("/_Tidegate/admin", true),
            ("http://other.example/_tidegate/admin", true),
            ("/_tidegates", false),
            ("/_tidegate.html", false),
            ("/x/_tidegate", false),
            ("/_tidegate/../x", false),
            ("/", false),
        ] {
            assert_eq!(holds(&reserved, uri, "a"), wanted, "{uri}");
            assert!(!holds(&Reserved::default(), uri, "a"), "{uri}: no prefix");
        }
    }

    #[test]
    fn every_path_at_the_host_is_reserved() {
        let reserved = Reserved::new("", Some("tidegate.example.com"));
        for (uri, host, wanted) in [
            ("/anything", "tidegate.example.com", true),
            ("/", "TIDEGATE.example.com.:8443", true),
            ("http://tidegate.example.com/x", "other", true),
            ("http://other/x", "tidegate.example.com", false),
            ("/", "api.example.com", false),
            ("/", "x.tidegate.example.com", false),
        ] {
            assert_eq!(holds(&reserved, uri, host), wanted, "{uri} {host}");
        }
    }
}
