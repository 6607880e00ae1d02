//! Header names that applications behind CGI's rules (WSGI, PHP, Rack) read as other names: `X_Api_Key` as `X-Api-Key`. They
//! are dropped before any rule is matched, as nginx drops them.

use actix_web::http::header::{HeaderMap, HeaderName};

/// Which header names pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeaderNames {
    /// Letters, digits and `-`: nginx's `ignore_invalid_headers on` and `underscores_in_headers off`.
    #[default]
    Plain,
    /// Underscores as well: nginx's `underscores_in_headers on`.
    Underscores,
    /// Every name that HTTP allows.
    Any,
}

/// Headers that pass in no other spelling, whatever is chosen: the gateway writes them, or they frame the request.
const NEVER_DISGUISED: [&str; 4] = ["content-length", "transfer-encoding", "forwarded", "x-real-ip"];
/// Nor does any that begins so.
const NEVER_DISGUISED_ALL: &str = "x-forwarded-";

/// Removes headers whose names do not pass.
pub(super) fn drop_others(headers: &mut HeaderMap, names: HeaderNames) {
    if headers.keys().all(|name| is_plain(name.as_str())) {
        return;
    }
    let others: Vec<HeaderName> =
        headers.keys().filter(|name| !passes(name.as_str(), names)).cloned().collect();
    for name in others {
        headers.remove(name);
    }
}

/// Without an early exit, so that it is done many bytes at once: every name of every request is looked at.
fn is_plain(name: &str) -> bool {
    name.bytes().fold(true, |plain, byte| plain & (byte.is_ascii_alphanumeric() | (byte == b'-')))
}

fn passes(name: &str, names: HeaderNames) -> bool {
    if is_plain(name) {
        return true;
    }
    let has_only_underscores = || is_plain(&name.replace('_', "-"));
    // lighttpd makes an underscore of every other character.
    let read = || name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
    let is_disguised = || {
        let read = read();
        read.starts_with(NEVER_DISGUISED_ALL) || NEVER_DISGUISED.contains(&read.as_str())
    };
    match names {
        HeaderNames::Plain => false,
        HeaderNames::Underscores => has_only_underscores() && !is_disguised(),
        HeaderNames::Any => !is_disguised(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    #[test]
    fn names_that_cgi_reads_otherwise_are_dropped_unless_kept() {
        let all = [
            "x_forwarded_for",
            "x-forwarded_proto",
            "x_forwarded-port",
            "x.real.ip",
            "content_length",
            "x_api_key",
            "x.api.key",
            "x~odd",
            "x-forwarded-for",
            "x-1",
        ];
        for (names, wanted) in [
            (HeaderNames::Plain, &["x-1", "x-forwarded-for"][..]),
            (HeaderNames::Underscores, &["x-1", "x-forwarded-for", "x_api_key"]),
            (HeaderNames::Any, &["x-1", "x-forwarded-for", "x.api.key", "x_api_key", "x~odd"]),
        ] {
            let request = TestRequest::default();
            let request = all.iter().fold(request, |request, name| request.insert_header((*name, "1")));
            let mut request = request.to_srv_request();
            drop_others(request.headers_mut(), names);
            let mut left: Vec<&str> = request.headers().keys().map(HeaderName::as_str).collect();
            left.sort_unstable();
            assert_eq!(left, wanted, "{names:?}");
        }
    }
}
