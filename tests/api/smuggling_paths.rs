//! Paths that an upstream may take for another than they look like: by whichever spelling it is reached, the limit of a
//! page holds. nginx judges as we do: decoded once, slashes joined, dot segments resolved; and sends what was written.

use crate::support::process::Tidegate;
use crate::support::recorder::{Recorder, speak};

/// One an hour for the guarded page, ever so many for the rest.
const POLICIES: &str = r#"
[[rule]]
name = "guarded"
match = { methods = ["POST"], host = "api.example.com", path = "/v1/login" }
[[rule.policy]]
name = "tight"
by = "ip"
limit = "1/hour"

[[rule]]
name = "rest"
[[rule.policy]]
name = "wide"
by = "ip"
limit = "100000/second"
"#;

/// Ways to write the guarded page that some upstream resolves to it.
const SAME: &[&str] = &[
    "/v1/login",
    "/v1/login?x=1",
    "/v1/login#x",
    "//v1/login",
    "/v1//login",
    "/v1///login",
    "/./v1/login",
    "/v1/./login",
    "/v1/x/../login",
    "/x/../v1/login",
    "/../v1/login",
    "/../../v1/login",
    "/v1/x/y/../../login",
    "/%76%31/login",
    "/v1/%6cogin",
    "/v1/%6Cogin",
    "/v1/log%69n",
    "/v1/%2e/login",
    "/v1/x/%2e%2e/login",
    "/v1/x/%2E./login",
    "/v1/x/.%2e/login",
    "/v1%2Flogin",
    "/v1%2flogin",
    "/%2Fv1/login",
    "/v1/%2Flogin",
    "/v1/x%2F..%2Flogin",
    "/v1/x/..%2Flogin",
    "/v1%2F%2Flogin",
    "/v1/%2e%2Flogin",
];

/// Ways to write the host of the guarded page.
const HOSTS: &[&str] =
    &["api.example.com", "API.Example.COM", "api.example.com.", "api.example.com:80", "api.example.com:8080"];

async fn before(recorder: &Recorder) -> Tidegate {
    before_with(recorder, &[]).await
}

async fn before_with(recorder: &Recorder, more: &[(&str, &str)]) -> Tidegate {
    let url = recorder.url();
    Tidegate::start(Some(POLICIES), &[&[("UPSTREAM_URL", &*url)], more].concat()).await
}

async fn status(tidegate: &Tidegate, request: &str) -> String {
    let (answers, rest, _) = speak(tidegate.main, request.as_bytes(), 1).await;
    let answer = answers.first().unwrap_or_else(|| panic!("{request}: {:?}", String::from_utf8_lossy(&rest)));
    answer.line[9..12].to_owned()
}

#[tokio::test]
async fn no_spelling_of_a_path_or_host_slips_past_the_limit_of_its_page() {
    let recorder = Recorder::start().await;
    let tidegate = before(&recorder).await;
    let post = |target: &str, host: &str| {
        format!("POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n")
    };
    assert_eq!(status(&tidegate, &post("/v1/login", "api.example.com")).await, "200");
    let reached = recorder.requests().len();
    let mut slipped = Vec::new();
    for target in SAME {
        if status(&tidegate, &post(target, "api.example.com")).await != "429" {
            slipped.push(*target);
        }
    }
    for host in HOSTS {
        if status(&tidegate, &post("/v1/login", host)).await != "429" {
            slipped.push(host);
        }
    }
    for absolute in ["http://api.example.com/v1/login", "HTTP://API.example.com:80/v1/login"] {
        if status(&tidegate, &post(absolute, "other.example.com")).await != "429" {
            slipped.push(absolute);
        }
    }
    assert_eq!(slipped, [""; 0]);
    // Neither by a method in other letters nor by a host that is not one.
    for (request, wanted) in [
        ("post /v1/login HTTP/1.1\r\nHost: api.example.com\r\n\r\n", "400"),
        ("POST http://u@api.example.com/v1/login HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", "400"),
        ("POST /v1/login HTTP/1.1\r\nHost: api.example.com, h\r\nContent-Length: 0\r\n\r\n", "400"),
        ("POST /v1/login HTTP/1.1\r\nHost: h@api.example.com\r\nContent-Length: 0\r\n\r\n", "400"),
    ] {
        assert_eq!(status(&tidegate, request).await, wanted, "{request}");
    }
    assert_eq!(recorder.requests().len(), reached, "none of them reached the upstream");
}

#[tokio::test]
async fn what_is_another_page_to_most_upstreams_is_judged_as_one_and_sent_as_it_was_written() {
    let recorder = Recorder::start().await;
    let tidegate = before(&recorder).await;
    // As with nginx: letters have their case, "%25" is decoded once, ";" and "\" are letters as any other. An upstream
    // that knows no such difference wants a rule of its own (docs/gateway.md).
    for target in [
        "/v1/Login",
        "/v1/login/",
        "/v1/%256cogin",
        "/v1%252Flogin",
        "/v1/x/%252e%252e/login",
        "/v1/login;a=b",
        "/v1;x/login",
        "/v1\\login",
        "/v1/login%00",
        "/v1/login%20",
        "/v1/login.",
        "/v1/login.json",
        "/v1/...",
        "/v1/lo%gin",
        "/v1/%c3%a4",
    ] {
        let request = format!("POST {target} HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 0\r\n\r\n");
        for _ in 0..2 {
            assert_eq!(status(&tidegate, &request).await, "200", "{target}");
        }
        assert_eq!(recorder.requests().last().unwrap().line, format!("POST {target} HTTP/1.1"));
    }
}

#[tokio::test]
async fn headers_that_an_application_behind_cgi_reads_as_ours_do_not_reach_it() {
    for (kept, wanted) in [("plain", &[][..]), ("underscores", &["x_kept"])] {
        let recorder = Recorder::start().await;
        let tidegate = before_with(&recorder, &[("TIDEGATE__SERVER__HEADER_NAMES", kept)]).await;
        let request = "GET /a HTTP/1.1\r\nHost: h\r\nX_Forwarded_For: 203.0.113.9\r\nX-Forwarded_Proto: https\r\n\
            Content_Length: 5\r\nTransfer_Encoding: chunked\r\nX_Kept: 1\r\nConnection: X-Forwarded-For\r\n\r\n";
        assert_eq!(status(&tidegate, request).await, "200");
        let seen = recorder.requests().pop().unwrap();
        let mut names: Vec<&str> =
            seen.headers.iter().map(|(name, _)| name.as_str()).filter(|name| name.contains('_')).collect();
        names.sort_unstable();
        assert_eq!(names, wanted);
        assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    }
}
