//! The reverse proxy before a real upstream.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::Value;

use crate::support::process::Tidegate;
use crate::support::redis_server::free_port;
use crate::support::until;
use crate::support::upstream::{Upstream, verbatim};

async fn before(upstream: &Upstream, more: &[(&str, &str)]) -> Tidegate {
    let url = upstream.url();
    let mut variables = vec![("UPSTREAM_URL", url.as_str())];
    variables.extend_from_slice(more);
    let wide = "[[rule]]\nname = \"default\"\n[[rule.policy]]\nname = \"wide\"\nby = \"ip\"\nlimit = \"10000/second\"\n";
    Tidegate::start(Some(wide), &variables).await
}

fn header<'a>(echo: &'a Value, name: &str) -> Option<&'a str> {
    let headers = echo["headers"].as_array().unwrap();
    headers.iter().find(|pair| pair[0] == name).and_then(|pair| pair[1].as_str())
}

#[tokio::test]
async fn a_request_reaches_the_upstream_as_it_was_written_with_the_traces_of_a_proxy() {
    let upstream = Upstream::start();
    let tidegate = before(&upstream, &[]).await;
    let answer = tidegate
        .http
        .patch(tidegate.url("/a%2Fb/x?q=%20&r"))
        .header("host", "api.example.com")
        .header("connection", "x-private")
        .header("x-private", "1")
        .header("x-kept", "2")
        .header("x-forwarded-for", "203.0.113.9")
        .body("hello")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["x-ratelimit-limit"], "10000");
    let echo: Value = answer.json().await.unwrap();
    assert_eq!(echo["method"], "PATCH");
    assert_eq!(echo["target"], "/a%2Fb/x?q=%20&r");
    assert_eq!(echo["body"], "hello");
    assert_eq!(header(&echo, "host"), Some("api.example.com"));
    assert_eq!(header(&echo, "content-length"), Some("5"));
    assert_eq!(header(&echo, "x-kept"), Some("2"));
    assert_eq!(header(&echo, "x-private"), None);
    assert_eq!(header(&echo, "x-forwarded-for"), Some("127.0.0.1"), "a stranger's claim is dropped");
    assert_eq!(header(&echo, "x-forwarded-proto"), Some("http"));
    assert_eq!(header(&echo, "forwarded"), Some("for=127.0.0.1;host=\"api.example.com\";proto=http"));
}

#[tokio::test]
async fn an_answer_comes_back_as_it_is_without_what_belonged_to_its_hop() {
    let upstream = Upstream::start();
    let tidegate = before(&upstream, &[]).await;
    for code in [200, 201, 301, 400, 404, 429, 500, 503] {
        let answer = tidegate.get(&format!("/status/{code}")).await;
        assert_eq!(answer.status(), code);
        let cookies: Vec<_> = answer.headers().get_all("set-cookie").iter().collect();
        assert_eq!(cookies, ["a=1", "b=2"]);
        assert_eq!(answer.headers()["x-ratelimit-limit"], "10000", "ours replaces the upstream's");
        assert_eq!(answer.headers()["content-length"], "9");
        assert_eq!(answer.text().await.unwrap(), "as asked\n");
    }
    let head = tidegate.http.head(tidegate.url("/status/200")).send().await.unwrap();
    assert_eq!((head.status().as_u16(), &head.headers()["content-length"]), (200, &"9".parse().unwrap()));
    for code in [204, 304] {
        let empty = tidegate.get(&format!("/status/{code}")).await;
        assert_eq!(empty.status(), code);
        assert_eq!(empty.bytes().await.unwrap().len(), 0);
    }
    // The connection is still in step after answers without a body.
    assert_eq!(tidegate.get("/status/200").await.text().await.unwrap(), "as asked\n");
}

#[tokio::test]
async fn headers_that_the_upstream_declares_to_be_for_its_hop_stay_there() {
    let answer = "HTTP/1.1 200 OK\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
        Proxy-Authenticate: x\r\nX-Kept: 2\r\nContent-Length: 2\r\n\r\nok";
    let url = format!("http://{}", verbatim(answer).await);
    let tidegate = Tidegate::start(None, &[("UPSTREAM_URL", &url)]).await;
    let answer = tidegate.get("/").await;
    assert_eq!(answer.headers()["x-kept"], "2");
    for name in ["x-hop", "keep-alive", "proxy-authenticate", "connection"] {
        assert!(!answer.headers().contains_key(name), "{name}");
    }
    assert_eq!(answer.text().await.unwrap(), "ok");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_passed_on_as_broken_and_garbage_is_502() {
    let cut = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this";
    let url = format!("http://{}", verbatim(cut).await);
    let tidegate = Tidegate::start(None, &[("UPSTREAM_URL", &url)]).await;
    assert!(tidegate.get("/").await.bytes().await.is_err());
    let url = format!("http://{}", verbatim("SSH-2.0-OpenSSH_9.2\r\n").await);
    let tidegate = Tidegate::start(None, &[("UPSTREAM_URL", &url)]).await;
    assert_eq!(tidegate.get("/").await.status(), 502);
}

#[tokio::test]
async fn bodies_flow_both_ways_without_being_gathered() {
    let upstream = Upstream::start();
    let tidegate = before(&upstream, &[]).await;
    let started = Instant::now();
    let mut pieces = tidegate.get("/drip/5").await.bytes_stream();
    let first = pieces.next().await.unwrap().unwrap();
    assert_eq!(first, "piece 0\n");
    assert!(started.elapsed() < Duration::from_millis(900), "the first piece came with the last");
    let rest: Vec<_> = pieces.map(|piece| piece.unwrap()).collect().await;
    assert_eq!(rest.last().unwrap(), "piece 4\n");

    let megabyte = vec![7u8; 1 << 20];
    let chunks = futures_util::stream::iter((0..64).map(move |_| Ok::<_, std::io::Error>(megabyte.clone())));
    let body = reqwest::Body::wrap_stream(chunks);
    let answer = tidegate.http.post(tidegate.url("/upload")).body(body).send().await.unwrap();
    assert_eq!(answer.text().await.unwrap(), format!("{} {}", 64u64 << 20, 7 * (64u64 << 20)));
    let resident = resident_mib(tidegate.pid());
    assert!(resident < 60, "{resident} MiB resident after an upload of 64 MiB");
}

pub(crate) fn resident_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test]
async fn an_upstream_out_of_reach_is_502_and_one_that_is_too_slow_504_without_its_address() {
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let tidegate = Tidegate::start(None, &[("UPSTREAM_URL", &nobody)]).await;
    let answer = tidegate.get("/").await;
    assert_eq!(answer.status(), 502);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    assert!(answer.headers().contains_key("x-ratelimit-limit"));
    assert!(!answer.text().await.unwrap().contains("127.0.0.1"));

    let upstream = Upstream::start();
    let tidegate = before(&upstream, &[("TIDEGATE__UPSTREAM__TIMEOUT_MS", "200")]).await;
    let answer = tidegate.get("/slow/2000").await;
    assert_eq!(answer.status(), 504);
    assert!(!answer.text().await.unwrap().contains("127.0.0.1"));
    let metrics = tidegate.metrics().await;
    assert!(
        metrics.contains(r#"tidegate_http_responses_total{class="5xx",arm="control",origin="gateway"} 1"#)
    );
    assert!(
        metrics.contains(r#"tidegate_http_responses_total{class="5xx",arm="control",origin="limiter"} 0"#)
    );
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request_at_the_upstream() {
    let upstream = Upstream::start();
    let tidegate = before(&upstream, &[]).await;
    let request = tidegate.http.get(tidegate.url("/slow/1500")).timeout(Duration::from_millis(200));
    assert!(request.send().await.unwrap_err().is_timeout());
    let lines = tidegate.request_lines(1).await;
    assert_eq!((&lines[0]["status"], &lines[0]["rate_limit_state"]), (&499.into(), &"allow".into()));
    tokio::time::sleep(Duration::from_millis(2000)).await;
    assert_eq!(upstream.finished.load(Ordering::SeqCst), 0, "the upstream worked for nobody");
    assert_eq!(tidegate.get("/slow/1").await.status(), 200);
    until("the other is done", async || upstream.finished.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_denied_request_never_reaches_the_upstream() {
    let upstream = Upstream::start();
    let url = upstream.url();
    let policies =
        "[[rule]]\nname = \"default\"\n[[rule.policy]]\nname = \"p\"\nby = \"ip\"\nlimit = \"3/hour\"\n";
    let tidegate = Tidegate::start(Some(policies), &[("UPSTREAM_URL", &url)]).await;
    for _ in 0..10 {
        tidegate.get("/").await;
    }
    assert_eq!(upstream.requests.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_head_whose_length_the_upstream_does_not_tell_is_not_told_to_be_empty() {
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let url = format!("http://{}", verbatim(answer).await);
    let tidegate = Tidegate::start(None, &[("UPSTREAM_URL", &url)]).await;
    for _ in 0..2 {
        let head = tidegate.http.head(tidegate.url("/")).send().await.unwrap();
        assert_eq!((head.status().as_u16(), head.headers().get("content-length")), (200, None));
        assert_eq!(head.bytes().await.unwrap().len(), 0);
    }
}

#[tokio::test]
async fn an_answer_that_has_no_body_arrives_whatever_length_it_tells() {
    for answer in [
        "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 9\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nETag: \"a\"\r\nContent-Length: 9\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n",
    ] {
        let url = format!("http://{}", verbatim(answer).await);
        let tidegate = Tidegate::start(None, &[("UPSTREAM_URL", &url)]).await;
        for method in ["GET", "HEAD"] {
            let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
            let empty = tidegate.http.request(method, tidegate.url("/")).send().await.expect(answer);
            assert_eq!(empty.status().as_str(), &answer[9..12]);
            assert_eq!(empty.headers()["etag"], "\"a\"");
            assert_ne!(empty.headers().get("content-length"), Some(&"0".parse().unwrap()), "{answer}");
            assert_eq!(empty.bytes().await.unwrap().len(), 0);
        }
    }
}

#[tokio::test]
async fn a_client_that_does_not_send_its_body_in_time_is_at_fault_itself() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let upstream = Upstream::start();
    let tidegate = before(&upstream, &[("TIDEGATE__SERVER__BODY_TIMEOUT_MS", "300")]).await;
    let mut client = tokio::net::TcpStream::connect(tidegate.main).await.unwrap();
    client
        .write_all(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nonly this")
        .await
        .unwrap();
    let mut answer = [0; 12];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 408");
    drop(client);
    assert_eq!(tidegate.request_lines(1).await[0]["status"], 408);
    let metrics = tidegate.metrics().await;
    assert!(
        metrics.contains(r#"tidegate_http_responses_total{class="5xx",arm="control",origin="gateway"} 0"#)
    );
    assert_eq!(tidegate.lines_with("the upstream failed"), 0, "nobody is to look at the upstream for it");
}

#[tokio::test]
async fn a_client_that_knows_no_chunks_is_sent_none() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let upstream = Upstream::start();
    let tidegate = before(&upstream, &[]).await;
    let mut client = tokio::net::TcpStream::connect(tidegate.main).await.unwrap();
    client.write_all(b"GET /drip/2 HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, "piece 0\npiece 1\n", "{head}");
    assert!(!head.contains("transfer-encoding") && !head.contains("keep-alive"), "{head}");
}
