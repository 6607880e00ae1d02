//! What crosses the gateway, and what does not.

use super::*;
use actix_web::dev::Payload;
use actix_web::test::TestRequest;

fn forwarded(test: TestRequest, base_path: &str, trusted: &[&str]) -> hyper::Request<OutBody> {
    made(test, Upstream { base_path: base_path.to_owned(), ..Upstream::default() }, trusted).unwrap()
}

fn made(test: TestRequest, upstream: Upstream, trusted: &[&str]) -> Result<hyper::Request<OutBody>, Problem> {
    let networks = trusted.iter().map(|network| network.parse().unwrap()).collect();
    let proxies = TrustedProxies::new(networks, Default::default());
    let authority = HeaderValue::from_static("up:1");
    let telling =
        Telling { upstream: &upstream, proxies: &proxies, line: None, authority: &authority, upgrade: None };
    let asked = test.to_http_request();
    let client =
        futures_util::FutureExt::now_or_never(super::super::body::Client::of(&asked, Payload::None, None));
    request(&asked, &telling, client.unwrap().body())
}

fn header(request: &hyper::Request<OutBody>, name: &str) -> String {
    let lines: Vec<_> = request.headers().get_all(name).iter().map(|v| v.to_str().unwrap()).collect();
    lines.join(" | ")
}

#[test]
fn path_and_query_cross_byte_for_byte_behind_the_base() {
    for (base, uri, wanted) in [
        ("", "/a%2Fb//c/../d?x=%20&y", "/a%2Fb//c/../d?x=%20&y"),
        ("", "/a", "/a"),
        ("/base", "/a", "/base/a"),
        ("/base", "*", "*"),
        ("", "http://elsewhere/a?b", "/a?b"),
        ("", "http://elsewhere?b", "/?b"),
        ("/base", "http://elsewhere?b", "/base/?b"),
    ] {
        assert_eq!(forwarded(TestRequest::with_uri(uri), base, &[]).uri(), wanted);
    }
}

#[test]
fn nobody_gets_a_tunnel() {
    let test = TestRequest::default().method(actix_web::http::Method::CONNECT);
    let refused = made(test, Upstream::default(), &[]).err().unwrap();
    assert_eq!(refused.cause(), Cause::MethodNotAllowed);
}

#[test]
fn the_host_is_the_clients_or_the_upstreams_or_the_one_that_is_set() {
    let test = || TestRequest::with_uri("/").insert_header(("host", "api.example.com"));
    for (policy, wanted) in [
        (HostPolicy::Client, "api.example.com"),
        (HostPolicy::Upstream, "up:1"),
        (HostPolicy::Name(HeaderValue::from_static("x.internal")), "x.internal"),
    ] {
        let upstream = Upstream { host: policy, ..Upstream::default() };
        assert_eq!(header(&made(test(), upstream, &[]).unwrap(), "host"), wanted);
    }
    let nameless = forwarded(TestRequest::with_uri("/"), "", &[]);
    assert_eq!(header(&nameless, "host"), "up:1");
    let absolute =
        forwarded(TestRequest::with_uri("http://a.example/").insert_header(("host", "b")), "", &[]);
    assert_eq!(header(&absolute, "host"), "a.example");
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
    let request = forwarded(test, "", &[]);
    for name in ["connection", "x-secret", "te", "proxy-authorization", "upgrade"] {
        assert_eq!(header(&request, name), "", "{name}");
    }
    assert_eq!(header(&request, "x-kept"), "a | b");
    assert_eq!(header(&request, "host"), "api.example.com");
}

#[test]
fn a_cookie_in_crumbs_of_http2_is_made_whole_and_one_of_http1_is_left_alone() {
    let test = |version| {
        let test = TestRequest::default().version(version);
        test.append_header(("cookie", "a=1")).append_header(("cookie", "b=2"))
    };
    assert_eq!(header(&forwarded(test(Version::HTTP_2), "", &[]), "cookie"), "a=1; b=2");
    assert_eq!(header(&forwarded(test(Version::HTTP_11), "", &[]), "cookie"), "a=1 | b=2");
}

#[test]
fn what_only_a_proxy_may_say_of_a_request_is_believed_of_trusted_ones_alone() {
    let told = ["x-real-ip", "x-forwarded-port", "x-forwarded-prefix", "x-forwarded-user"];
    let test = || {
        let test = TestRequest::default().peer_addr("10.0.0.1:999".parse().unwrap());
        told.iter().fold(test, |test, name| test.insert_header((*name, "1")))
    };
    let (stranger, proxy) = (forwarded(test(), "", &[]), forwarded(test(), "", &["10.0.0.0/8"]));
    for name in told {
        assert_eq!(header(&stranger, name), "", "{name}");
        assert_eq!(header(&proxy, name), "1", "{name}");
    }
    // Nobody's address, as over a Unix socket, is no proxy's either.
    let nobody = TestRequest::default().insert_header(("x-real-ip", "1"));
    assert_eq!(header(&forwarded(nobody, "", &["0.0.0.0/0"]), "x-real-ip"), "");
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
            .insert_header(("via", "1.0 other"))
    };
    let stranger = forwarded(test(), "", &[]);
    assert_eq!(header(&stranger, "x-forwarded-for"), "10.0.0.1");
    assert_eq!(header(&stranger, "x-forwarded-proto"), "http");
    assert_eq!(header(&stranger, "forwarded"), "for=10.0.0.1;host=\"api.example.com\";proto=http");
    assert_eq!(header(&stranger, "via"), "1.0 other | 1.1 tidegate");
    let proxy = forwarded(test(), "", &["10.0.0.0/8"]);
    assert_eq!(header(&proxy, "x-forwarded-for"), "203.0.113.9, 10.0.0.1");
    assert_eq!(header(&proxy, "x-forwarded-proto"), "https");
    assert!(header(&proxy, "forwarded").starts_with("for=203.0.113.9, for=10.0.0.1;"));
}
