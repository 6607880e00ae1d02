//! Deadlines, limits, aborts and retries of the gateway: nobody waits for ever, and nothing is done twice.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::conformance::before;
use crate::support::process::Tidegate;
use crate::support::raw::{Message, Raw, RawUpstream, Step, ask, send};
use crate::support::until;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n")
}

fn is_problem(answer: &Message, status: u16, kind: &str) {
    assert_eq!(answer.status(), status, "{}", String::from_utf8_lossy(&answer.body));
    assert_eq!(answer.header("content-type").as_deref(), Some("application/problem+json"));
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((&body["type"], &body["status"]), (&kind.into(), &status.into()));
    let text = body.to_string();
    assert!(!text.contains("127.0.0.1") && !text.contains("localhost"), "{text}");
}

async fn counted(tidegate: &Tidegate, origin: &str) -> u64 {
    let metrics = tidegate.metrics().await;
    let wanted = format!(r#"tidegate_http_responses_total{{class="5xx",arm="control",origin="{origin}"}} "#);
    metrics.lines().find_map(|line| line.strip_prefix(&wanted)?.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn a_keep_alive_that_went_stale_is_no_503_for_what_may_be_repeated_and_nothing_else_is_sent_twice() {
    // The second request of each connection meets its end: read, and not answered.
    static ON: [AtomicUsize; 64] = [const { AtomicUsize::new(0) }; 64];
    let upstream = RawUpstream::start(|_, connection| match ON[connection].fetch_add(1, Ordering::SeqCst) {
        0 => vec![send(OK)],
        _ => vec![Step::Close],
    })
    .await;
    let tidegate = before(&upstream.url(), &[("TIDEGATE__SERVER__WORKERS", "1")]).await;
    let mut client = Raw::connect(tidegate.main).await;
    let one = async |client: &mut Raw<_>, request: &str| {
        client.write(request).await;
        client.answer(request.split(' ').next().unwrap()).await.1.status()
    };
    for method in ["GET", "HEAD", "OPTIONS", "DELETE", "PUT"] {
        let request = format!("{method} / HTTP/1.1\r\nHost: h\r\n\r\n");
        let before = upstream.requests();
        // Either is fresh, or goes stale and is repeated.
        assert_eq!(
            (one(&mut client, &request).await, one(&mut client, &request).await),
            (200, 200),
            "{method}"
        );
        assert!(upstream.requests() > before + 2 || method == "GET", "{method}: it was never stale");
    }
    // One that may have been acted on is not repeated.
    let post = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}";
    let before = upstream.requests();
    assert_eq!(one(&mut client, post).await, 502);
    assert_eq!(upstream.requests(), before + 1);
    assert_eq!(one(&mut client, post).await, 200);
    assert_eq!(counted(&tidegate, "gateway").await, 1);
}

#[tokio::test]
async fn an_upstream_that_closes_idle_connections_costs_no_request() {
    let upstream = RawUpstream::start(|_, _| vec![send(OK), Step::Close]).await;
    let tidegate = before(&upstream.url(), &[]).await;
    let mut client = Raw::connect(tidegate.main).await;
    for round in 0..30 {
        // Half of them at once, half when the end has arrived.
        if round % 2 == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for request in [get("/"), "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}".to_owned()] {
            if request.starts_with("POST") {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            client.write(&request).await;
            assert_eq!(client.answer("GET").await.1.status(), 200, "{round}");
        }
    }
    assert_eq!(upstream.requests(), 60);
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_request_with_it() {
    let upstream = RawUpstream::start(|request, _| match request.target().as_str() {
        "/head" => vec![Step::Wait(60_000)],
        _ => {
            vec![send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"), Step::Wait(60_000)]
        }
    })
    .await;
    let tidegate = before(&upstream.url(), &[]).await;
    let closed = || upstream.closed.load(Ordering::SeqCst);
    for (number, target) in ["/head", "/body"].into_iter().enumerate() {
        let mut client = Raw::connect(tidegate.main).await;
        client.write(get(target)).await;
        until("it is there", async || upstream.requests() == number + 1).await;
        if target == "/body" {
            client.head().await.unwrap();
        }
        drop(client);
        until("the upstream is left", async || closed() == number + 1).await;
    }
    // A stream of HTTP/2 that is reset, on a connection that goes on.
    let http = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    for (number, target) in ["/head", "/body"].into_iter().enumerate() {
        let request = http.get(tidegate.url(target)).send();
        let under_way = tokio::spawn(async move {
            let mut answer = request.await.unwrap();
            while answer.chunk().await.unwrap().is_some() {}
        });
        until("it is there", async || upstream.requests() == number + 3).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        under_way.abort();
        until("the upstream is left", async || closed() == number + 3).await;
    }
    let statuses: Vec<_> =
        tidegate.request_lines(4).await.iter().map(|line| line["status"].clone()).collect();
    assert_eq!(statuses, [499, 200, 499, 200]);
    assert_eq!(counted(&tidegate, "gateway").await, 0);
}

#[tokio::test]
async fn every_wait_has_its_end_and_its_status() {
    let upstream = RawUpstream::start(|request, _| match request.target().as_str() {
        "/mute" => vec![Step::Wait(60_000)],
        "/stops" => vec![send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome"), Step::Wait(60_000)],
        "/slow" => (0..40).flat_map(|_| [Step::Wait(100), send("x")]).fold(
            vec![send("HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n")],
            |mut steps, step| {
                steps.push(step);
                steps
            },
        ),
        _ => vec![send(OK)],
    })
    .await;
    let variables = [
        ("TIDEGATE__SERVER__HEAD_TIMEOUT_MS", "400"),
        ("TIDEGATE__SERVER__BODY_TIMEOUT_MS", "400"),
        ("TIDEGATE__SERVER__KEEP_ALIVE_S", "1"),
        ("TIDEGATE__UPSTREAM__TIMEOUT_MS", "400"),
        ("TIDEGATE__UPSTREAM__IDLE_TIMEOUT_MS", "400"),
        ("TIDEGATE__UPSTREAM__TOTAL_TIMEOUT_MS", "2000"),
    ];
    let tidegate = before(&upstream.url(), &variables).await;
    let began = Instant::now();

    is_problem(&ask(tidegate.main, get("/mute")).await.1, 504, "urn:tidegate:upstream-timeout");
    // What had come before the stop came; the rest is missing, and seen to be.
    let stopped = ask(tidegate.main, get("/stops")).await.1;
    assert_eq!((stopped.status(), stopped.complete), (200, false));
    // It moves all the time, and takes too long in all.
    let slow = ask(tidegate.main, get("/slow")).await.1;
    assert_eq!((slow.status(), slow.complete), (200, false));

    // Half a body.
    for head in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
        let half = format!("POST / HTTP/1.1\r\nHost: h\r\n{head}\r\n\r\n5\r\nab");
        is_problem(&ask(tidegate.main, half).await.1, 408, "urn:tidegate:request-timeout");
    }
    // Half a head: of the first request, and of a later one.
    is_problem(&ask(tidegate.main, "GET / HTTP/1.1\r\nHo").await.1, 408, "urn:tidegate:request-timeout");
    let mut client = Raw::connect(tidegate.main).await;
    client.write(get("/")).await;
    assert_eq!(client.answer("GET").await.1.status(), 200);
    client.write("GET / HTTP/1.1\r\nHo").await;
    is_problem(&client.answer("GET").await.1, 408, "urn:tidegate:request-timeout");
    assert!(client.is_closed().await);
    // One that came with the end of the first.
    let mut client = Raw::connect(tidegate.main).await;
    client.write(get("/") + "GET / HT").await;
    assert_eq!(client.answer("GET").await.1.status(), 200);
    assert!(client.is_closed().await);
    // Silence: from the start, and between requests.
    assert!(Raw::connect(tidegate.main).await.is_closed().await);
    let mut client = Raw::connect(tidegate.main).await;
    client.write(get("/")).await;
    assert_eq!(client.answer("GET").await.1.status(), 200);
    assert!(client.is_closed().await);
    assert!(began.elapsed() < Duration::from_secs(25));
    assert_eq!(
        counted(&tidegate, "gateway").await,
        1,
        "the upstream was too slow once; the rest are others' faults"
    );
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_its_answer_is_let_go() {
    let big =
        [b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n".to_vec(), vec![b'x'; 50_000_000]].concat();
    let upstream = RawUpstream::start(move |_, _| vec![send(big.clone())]).await;
    let tidegate = before(&upstream.url(), &[("TIDEGATE__SERVER__SEND_TIMEOUT_MS", "500")]).await;
    let mut client = Raw::connect(tidegate.main).await;
    client.write(get("/")).await;
    until("the upstream is left", async || upstream.closed.load(Ordering::SeqCst) == 1).await;
    // A stream of HTTP/2, while others of its connection are served.
    let http = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let untouched = http.get(tidegate.url("/")).send().await.unwrap();
    until("the upstream is left", async || upstream.closed.load(Ordering::SeqCst) == 2).await;
    assert_eq!(http.get(tidegate.url("/readyz")).send().await.unwrap().status(), 200);
    assert!(untouched.bytes().await.is_err(), "it looks whole");
    assert!(super::gateway::resident_mib(tidegate.pid()) < 60);
}

#[tokio::test]
async fn what_is_larger_than_accepted_is_refused_by_its_own_status_before_the_upstream_hears_of_it() {
    let upstream = RawUpstream::start(|_, _| vec![send(OK)]).await;
    let variables = [
        ("TIDEGATE__SERVER__MAX_TARGET_BYTES", "100"),
        ("TIDEGATE__SERVER__MAX_HEADER_BYTES", "1000"),
        ("TIDEGATE__SERVER__MAX_HEADERS", "10"),
        ("TIDEGATE__SERVER__MAX_BODY_BYTES", "100"),
    ];
    let tidegate = before(&upstream.url(), &variables).await;
    let many: String = (0..10).map(|n| format!("X-{n}: 1\r\n")).collect();
    let (long, longer) = ("x".repeat(99), "x".repeat(100));
    let value = "v".repeat(1_000);
    for (request, status, kind) in [
        (get(&format!("/{long}")), 200, ""),
        (get(&format!("/{longer}")), 414, "urn:tidegate:target-too-long"),
        (format!("GET / HTTP/1.1\r\nHost: h\r\nX: {value}\r\n\r\n"), 431, "urn:tidegate:headers-too-large"),
        (format!("GET / HTTP/1.1\r\nHost: h\r\n{many}\r\n"), 431, "urn:tidegate:headers-too-large"),
        (format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{longer}"), 200, ""),
        (
            format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 101\r\n\r\n{longer}x"),
            413,
            "urn:tidegate:body-too-large",
        ),
        (
            format!(
                "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n65\r\n{longer}x\r\n0\r\n\r\n"
            ),
            413,
            "urn:tidegate:body-too-large",
        ),
    ] {
        let answer = ask(tidegate.main, &request).await.1;
        match status {
            200 => assert_eq!(answer.status(), 200, "{request}"),
            _ => is_problem(&answer, status, kind),
        }
    }
    assert_eq!(upstream.requests(), 2);
    assert_eq!(counted(&tidegate, "gateway").await, 0);
}

#[tokio::test]
async fn an_answer_that_breaks_off_breaks_off_for_the_client_in_each_framing() {
    let upstream = RawUpstream::start(|request, _| match request.target().as_str() {
        "/length" => vec![send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart"), Step::Close],
        "/chunks" => {
            vec![send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n"), Step::Close]
        }
        "/bad" => vec![send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\nzz\r\n")],
        "/head" => vec![send("HTTP/1.1 200 OK\r\nContent-Le"), Step::Close],
        "/own" => vec![send("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")],
        _ => vec![Step::Close],
    })
    .await;
    let tidegate = before(&upstream.url(), &[]).await;
    let http2 = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    for target in ["/length", "/chunks", "/bad"] {
        let mut client = Raw::connect(tidegate.main).await;
        client.write(get(target)).await;
        let mut answer = client.head().await.unwrap();
        assert!(client.body(&mut answer, None).await.is_err(), "{target}: it looks whole");
        assert_eq!(answer.status(), 200);
        let answer = http2.get(tidegate.url(target)).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(answer.bytes().await.is_err(), "{target}: it looks whole by HTTP/2");
    }
    for target in ["/head", "/nothing"] {
        is_problem(&ask(tidegate.main, get(target)).await.1, 502, "urn:tidegate:upstream-invalid");
    }
    assert_eq!(ask(tidegate.main, get("/own")).await.1.status(), 500);
    assert_eq!(counted(&tidegate, "upstream").await, 1);
    assert_eq!(counted(&tidegate, "gateway").await, 2);
    let lines = tidegate.request_lines(9).await;
    let origins: Vec<_> = lines.iter().filter_map(|line| line["origin"].as_str()).collect();
    assert_eq!(origins, ["gateway", "gateway", "upstream"], "of the 5xx, and of nothing else");
}

#[tokio::test]
async fn a_client_that_waits_for_a_word_gets_the_upstreams() {
    const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";
    let upstream = RawUpstream::start(|request, _| match request.target().as_str() {
        "/no" => vec![send("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n"), Step::Close],
        "/mute" => vec![Step::Read, send(OK)],
        _ => vec![Step::Wait(300), send(CONTINUE), Step::Read, send(OK)],
    })
    .await;
    let denied =
        "[[rule]]\nname = \"default\"\n[[rule.policy]]\nname = \"p\"\nby = \"ip\"\nlimit = \"3/hour\"\n";
    let tidegate = Tidegate::start(Some(denied), &[("UPSTREAM_URL", &upstream.url())]).await;
    let request = |target: &str| {
        format!("POST {target} HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
    };
    // It says yes, after a while.
    let mut client = Raw::connect(tidegate.main).await;
    let began = Instant::now();
    client.write(request("/yes")).await;
    assert_eq!(client.head().await.unwrap().line, b"HTTP/1.1 100 Continue");
    assert!(began.elapsed() >= Duration::from_millis(300), "said before the upstream said it");
    client.write("hello").await;
    assert_eq!(client.answer("POST").await.1.body, b"ok");
    assert_eq!(upstream.seen.lock()[0].body, b"hello");
    assert_eq!(upstream.seen.lock()[0].header("expect").as_deref(), Some("100-continue"));
    // On the same connection: it says no, and nobody has sent a body for nothing.
    client.write(request("/no")).await;
    let (interim, answer) = client.answer("POST").await;
    assert_eq!((interim.len(), answer.status()), (0, 417));
    // It says nothing, as servers of HTTP/1.0 do: then the body goes after a second.
    let mut client = Raw::connect(tidegate.main).await;
    client.write(request("/mute")).await;
    assert_eq!(client.head().await.unwrap().line, b"HTTP/1.1 100 Continue");
    client.write("hello").await;
    assert_eq!(client.answer("POST").await.1.body, b"ok");
    // The limiter says no before anybody else is asked.
    let mut client = Raw::connect(tidegate.main).await;
    client.write(request("/yes")).await;
    let (interim, answer) = client.answer("POST").await;
    assert_eq!((interim.len(), answer.status()), (0, 429));
    assert_eq!(upstream.requests(), 3);
    // A page of our own wants its body as well.
    let mut client = Raw::connect(tidegate.main).await;
    client
        .write("POST /v1/check HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: 11\r\n\r\n")
        .await;
    assert_eq!(client.head().await.unwrap().line, b"HTTP/1.1 100 Continue");
    client.write(r#"{"key":"a"}"#).await;
    assert_eq!(client.answer("POST").await.1.status(), 200);
}

#[tokio::test]
async fn an_upstream_that_answers_before_it_has_the_body_is_heard() {
    let upstream = RawUpstream::start(|_, _| {
        vec![send("HTTP/1.1 413 Payload Too Large\r\nContent-Length: 3\r\n\r\nbig"), Step::Close]
    });
    // It reads heads only: whoever expects a word has no body read.
    let upstream = upstream.await;
    let tidegate = before(&upstream.url(), &[]).await;
    let mut client = Raw::connect(tidegate.main).await;
    client.write("POST / HTTP/1.1\r\nHost: h\r\nExpect: 200-ok\r\nContent-Length: 50000000\r\n\r\n").await;
    client.write(vec![b'x'; 100_000]).await;
    let answer = client.answer("POST").await.1;
    assert_eq!((answer.status(), answer.body.as_slice()), (413, &b"big"[..]));
    assert!(client.is_closed().await, "the rest of the body is no request");
}

#[tokio::test]
async fn an_upload_that_goes_on_after_the_answer_has_begun_keeps_it_alive_for_as_long_as_it_moves() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    const PIECES: usize = 12;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // It answers at once, and says the rest when it has heard everything.
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut heard, mut told) = (Vec::new(), false);
        let mut buffer = [0; 1_024];
        while !heard.ends_with(b"0\r\n\r\n") {
            let read = stream.read(&mut buffer).await.unwrap();
            assert!(read > 0, "it was cut off");
            heard.extend_from_slice(&buffer[..read]);
            if !told && heard.windows(4).any(|four| four == b"\r\n\r\n") {
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n";
                stream.write_all(head.as_bytes()).await.unwrap();
                told = true;
            }
        }
        stream.write_all(b"4\r\nlate\r\n0\r\n\r\n").await.unwrap();
    });
    let url = format!("http://{address}");
    let tidegate = before(&url, &[("TIDEGATE__UPSTREAM__IDLE_TIMEOUT_MS", "1000")]).await;
    let mut client = Raw::connect(tidegate.main).await;
    client.write("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    for _ in 0..PIECES {
        client.write("1\r\nx\r\n").await;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    client.write("0\r\n\r\n").await;
    let answer = client.answer("POST").await.1;
    assert_eq!((answer.status(), String::from_utf8_lossy(&answer.body).as_ref()), (200, "earlylate"));
}

#[tokio::test]
async fn sigterm_is_seen_by_a_load_balancer_before_anything_is_refused() {
    let upstream = RawUpstream::start(|request, _| match request.target().as_str() {
        "/slow" => vec![Step::Wait(3_000), send(OK)],
        _ => vec![send(OK)],
    })
    .await;
    let mut tidegate = before(&upstream.url(), &[("TIDEGATE__SERVER__LAME_DUCK_S", "2")]).await;
    let mut kept = Raw::connect(tidegate.main).await;
    kept.write(get("/")).await;
    assert_eq!(kept.answer("GET").await.1.header("connection"), None);
    let http2 = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    assert_eq!(http2.get(tidegate.url("/")).send().await.unwrap().status(), 200);
    assert_eq!(tidegate.get("/readyz").await.status(), 200);
    tidegate.terminate();
    until("it is not ready", async || tidegate.get("/readyz").await.status() == 503).await;
    assert_eq!(tidegate.get("/healthz").await.status(), 200);
    // It serves on, on connections old and new, and says that each is the last.
    kept.write(get("/")).await;
    let answer = kept.answer("GET").await.1;
    assert_eq!((answer.status(), answer.header("connection").as_deref()), (200, Some("close")));
    assert!(kept.is_closed().await);
    assert_eq!(ask(tidegate.main, get("/")).await.1.status(), 200);
    let slow = tokio::spawn(ask(tidegate.main, get("/slow")));
    // The end comes when the slow one is done, long before the grace is over.
    assert_eq!(slow.await.unwrap().1.status(), 200);
    let status =
        tidegate.wait(Duration::from_secs(6)).expect("nobody holds it up: no idle HTTP/2 connection either");
    assert_eq!(status.code(), Some(0));
    tidegate.says("not ready any more, and serving on for 2 s", 1).await;
}
