//! Whatever a request carries, the client's address, keys, cookies and rules are found without a panic, and no stranger's
//! header is believed.
#![no_main]

use std::net::IpAddr;
use std::sync::OnceLock;

use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::test::TestRequest;
use libfuzzer_sys::fuzz_target;
use tidegate::doors::client_ip::{ClientIpHeader, TrustedProxies};
use tidegate::doors::facts::HttpFacts;
use tidegate::limiter::policy::Rules;
use tidegate::limiter::subject::{Facts, Part, Subject};

const NAMES: [&str; 8] =
    ["x-forwarded-for", "forwarded", "cookie", "host", "x-api-key", "authorization", "x-forwarded-for", "forwarded"];

fn rules() -> &'static Rules {
    static RULES: OnceLock<Rules> = OnceLock::new();
    RULES.get_or_init(|| {
        let text = "[[rule]]\nname = 'a'\nmatch = { methods = ['GET'], host = '*.example.com', path = '/v1/{x}/**' }\n\
                    [[rule]]\nname = 'b'\nmatch = { path = '/v1/items' }\n[[rule]]\nname = 'c'\n";
        tidegate::config::policies::parse("p", text).unwrap()
    })
}

fuzz_target!(|data: &[u8]| {
    let mut lines = data.split(|&byte| byte == b'\n');
    let path = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let Ok(uri) = format!("/{path}").parse::<actix_web::http::Uri>() else { return };
    let peer: IpAddr = "192.0.2.1".parse().unwrap();
    let mut request = TestRequest::default().uri(&uri.to_string()).peer_addr((peer, 1234).into());
    for line in lines.take(16) {
        let Some((&which, value)) = line.split_first() else { continue };
        if let Ok(value) = HeaderValue::from_bytes(value) {
            request = request.append_header((HeaderName::from_static(NAMES[usize::from(which) % 8]), value));
        }
    }
    let request = request.to_http_request();
    let strangers = TrustedProxies::new(vec!["198.51.100.0/24".parse().unwrap()], ClientIpHeader::Auto);
    assert_eq!(strangers.client(peer, request.headers()), peer, "nobody who is not trusted is believed");
    let trusting = TrustedProxies::new(vec!["192.0.2.0/24".parse().unwrap()], ClientIpHeader::Auto);
    let facts = HttpFacts::of(&request, &trusting);
    let subject = Subject::new([
        Part::Ip,
        Part::Header("x-api-key".into()),
        Part::Cookie("session".into()),
        Part::Query("key".into()),
    ]);
    let _ = (subject.identify(&facts), subject.is_absent(&facts), facts.path(), facts.host());
    assert!(rules().matching(&facts).is_some(), "the last rule is for every request");
});
