//! Whatever a request's head or an upstream's answer says of itself, the check does not panic; what it passes can be read
//! in one way only.
#![no_main]

use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::http::{Method, Uri, Version};
use actix_web::test::TestRequest;
use libfuzzer_sys::fuzz_target;
use tidegate::doors::framing::{doubtful, doubtful_answer};

const NAMES: [&str; 8] = [
    "content-length",
    "transfer-encoding",
    "host",
    "upgrade",
    "connection",
    "content-length",
    "host",
    "x_forwarded_for",
];

// A method, a target, then headers: the first byte of a line says which name, the rest is the value.
fuzz_target!(|data: &[u8]| {
    let mut lines = data.split(|&byte| byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let Ok(method) = Method::from_bytes(lines.next().unwrap_or_default()) else { return };
    let Ok(uri) = Uri::try_from(lines.next().unwrap_or_default()) else { return };
    let headers: Vec<(HeaderName, HeaderValue)> = lines
        .take(16)
        .filter_map(|line| line.split_first())
        .filter_map(|(&which, value)| {
            let name = HeaderName::from_static(NAMES[usize::from(which) % NAMES.len()]);
            Some((name, HeaderValue::from_bytes(value).ok()?))
        })
        .collect();
    let version = match first.first().copied().unwrap_or_default() % 3 {
        0 => Version::HTTP_10,
        1 => Version::HTTP_11,
        _ => Version::HTTP_2,
    };
    asked(&method, &uri, version, &headers);
    answered(version, &headers);
});

fn asked(method: &Method, uri: &Uri, version: Version, headers: &[(HeaderName, HeaderValue)]) {
    let mut request = TestRequest::default().method(method.clone()).version(version);
    for header in headers {
        request = request.append_header(header.clone());
    }
    let mut request = request.to_srv_request();
    request.head_mut().uri = uri.clone();
    if doubtful(request.head()).is_some() {
        return;
    }
    let values = |name: &str| -> Vec<&[u8]> {
        headers.iter().filter(|(one, _)| one.as_str() == name).map(|(_, value)| value.as_bytes()).collect()
    };
    let (hosts, lengths, codings) = (values("host"), values("content-length"), values("transfer-encoding"));
    assert!(!method.as_str().bytes().any(|byte| byte.is_ascii_lowercase()));
    assert!(hosts.len() <= 1, "one host");
    assert!(hosts.len() == 1 || version == Version::HTTP_10 || uri.authority().is_some(), "a host");
    for host in hosts {
        assert!(!host.is_empty() && !host.iter().any(|byte| b"@/?#\\, \t%".contains(byte)), "a host alone");
        if let Some(authority) = uri.authority().filter(|_| version == Version::HTTP_2) {
            assert!(host.eq_ignore_ascii_case(authority.as_str().as_bytes()), "the same host");
        }
    }
    assert!(lengths.len() + codings.len().min(1) <= 1, "one framing");
    for length in lengths {
        let text = std::str::from_utf8(length).expect("digits");
        assert_eq!(text.parse::<i64>().expect("a signed number").to_string(), text, "read alike by everybody");
    }
}

fn answered(version: Version, headers: &[(HeaderName, HeaderValue)]) {
    let version = match version {
        Version::HTTP_10 => http::Version::HTTP_10,
        Version::HTTP_11 => http::Version::HTTP_11,
        _ => http::Version::HTTP_2,
    };
    let mut map = http::HeaderMap::new();
    for (name, value) in headers {
        let name = http::HeaderName::from_bytes(name.as_str().as_bytes()).expect("a name");
        map.append(name, http::HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
    }
    if doubtful_answer(version, &map).is_some() {
        return;
    }
    let count = |name: &str| map.get_all(name).iter().count();
    assert!(count("content-length") + count("transfer-encoding") <= 1, "one framing");
    if let Some(coding) = map.get("transfer-encoding") {
        assert!(coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") && version >= http::Version::HTTP_11);
    }
    if let Some(length) = map.get("content-length") {
        let text = length.to_str().expect("digits");
        assert_eq!(text.parse::<i64>().expect("a signed number").to_string(), text, "read alike by everybody");
    }
}
