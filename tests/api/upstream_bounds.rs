//! Bounds of connections to the upstream: how many, how old, and how long a body waits for `100 Continue`.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;

use super::conformance::before;
use crate::support::frames;
use crate::support::raw::{Raw, RawUpstream, Step, send};
use crate::support::upstream::Upstream;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";

/// The statuses of so many simultaneous requests that each take `ms` upstream.
async fn statuses(url: &str, count: usize, ms: u64) -> Vec<u16> {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let asked = (0..count).map(|_| http.get(format!("{url}/slow/{ms}")).send());
    let answers = futures_util::future::join_all(asked).await;
    let mut statuses: Vec<u16> =
        answers.into_iter().map(|answer| answer.unwrap().status().as_u16()).collect();
    statuses.sort_unstable();
    statuses
}

#[tokio::test]
async fn requests_beyond_max_connections_wait_then_get_503() {
    let upstream = Upstream::start();
    let url = format!("http://{}", upstream.address);
    let bounds = [
        ("TIDEGATE__UPSTREAM__MAX_CONNECTIONS", "2"),
        ("TIDEGATE__UPSTREAM__MAX_QUEUE", "1"),
        ("TIDEGATE__UPSTREAM__QUEUE_TIMEOUT_MS", "30000"),
    ];
    let tidegate = before(&url, &bounds).await;
    let front = format!("http://{}", tidegate.main);
    // Two are under way, one waits for either of them, and the queue has no room for the last.
    assert_eq!(statuses(&front, 4, 3_000).await, [200, 200, 200, 503]);
    // Idle connections hold no permit: the next requests need not wait for the upstream's keep-alive.
    assert_eq!(statuses(&front, 2, 1).await, [200, 200]);
    let answer = statuses(&front, 1, 1).await;
    assert_eq!(answer, [200]);
}

#[tokio::test]
async fn request_that_waits_longer_than_queue_timeout_gets_503() {
    let upstream = Upstream::start();
    let url = format!("http://{}", upstream.address);
    let bounds =
        [("TIDEGATE__UPSTREAM__MAX_CONNECTIONS", "1"), ("TIDEGATE__UPSTREAM__QUEUE_TIMEOUT_MS", "100")];
    let tidegate = before(&url, &bounds).await;
    let front = format!("http://{}", tidegate.main);
    assert_eq!(statuses(&front, 3, 3_000).await, [200, 503, 503]);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let slow = tokio::spawn(http.get(format!("{front}/slow/3000")).send());
    crate::support::until("the slow request is under way", async || {
        let answer = http.get(format!("{front}/status/200")).send().await.unwrap();
        if answer.status() != 503 {
            return false;
        }
        let problem: serde_json::Value = answer.json().await.unwrap();
        assert_eq!(problem["type"], "urn:tidegate:overloaded");
        true
    })
    .await;
    assert_eq!(slow.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn client_that_hangs_up_frees_its_upstream_permit() {
    let upstream = Upstream::start();
    let url = format!("http://{}", upstream.address);
    let bounds =
        [("TIDEGATE__UPSTREAM__MAX_CONNECTIONS", "1"), ("TIDEGATE__UPSTREAM__QUEUE_TIMEOUT_MS", "30000")];
    let tidegate = before(&url, &bounds).await;
    for _ in 0..20 {
        let mut client = Raw::connect(tidegate.main).await;
        client.write("GET /slow/600000 HTTP/1.1\r\nHost: h\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(statuses(&format!("http://{}", tidegate.main), 1, 1).await, [200]);
}

#[tokio::test]
async fn clients_that_take_nothing_keep_no_others_out() {
    // More than the buffers of a connection hold.
    let large = "x".repeat(8_000_000);
    let upstream = RawUpstream::start(move |request, _| {
        let body = if request.target() == "/large" { &*large } else { "ok" };
        vec![send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()))]
    })
    .await;
    let bounds = [
        ("TIDEGATE__UPSTREAM__MAX_CONNECTIONS", "8"),
        ("TIDEGATE__UPSTREAM__QUEUE_TIMEOUT_MS", "4000"),
        ("TIDEGATE__SERVER__WORKERS", "1"),
    ];
    let tidegate = before(&upstream.url(), &bounds).await;
    for http2 in [true, false] {
        let (mut streams, mut clients) = (Vec::new(), Vec::new());
        if http2 {
            let mut io = frames::connect(tidegate.main).await;
            io.write_all(&frames::frame(frames::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await.unwrap();
            for stream in 0..8 {
                io.write_all(&frames::request(2 * stream + 1, "/large")).await.unwrap();
            }
            streams.push(io);
        } else {
            for _ in 0..8 {
                let mut client = Raw::connect(tidegate.main).await;
                client.write("GET /large HTTP/1.1\r\nHost: h\r\n\r\n").await;
                clients.push(client);
            }
        }
        let seen = if http2 { 8 } else { 19 };
        crate::support::until("they have it all", async || upstream.requests() >= seen).await;
        for _ in 0..3 {
            // Long before the send timeout of a minute.
            assert_eq!(statuses(&format!("http://{}", tidegate.main), 1, 1).await, [200], "{http2}");
        }
        drop((streams, clients));
    }
}

/// How many connections the upstream saw under three seconds of steady requests over one connection of a client.
async fn connections_of(max_age_s: &str) -> usize {
    let upstream = RawUpstream::start(|_, _| vec![send(OK)]).await;
    let tidegate = before(&upstream.url(), &[("TIDEGATE__UPSTREAM__MAX_AGE_S", max_age_s)]).await;
    let mut client = Raw::connect(tidegate.main).await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        client.write("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
        assert_eq!(client.answer("GET").await.1.status(), 200);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    upstream.connections.load(Ordering::SeqCst)
}

#[tokio::test]
async fn busy_upstream_connection_is_replaced_at_max_age() {
    let (renewed, kept) = tokio::join!(connections_of("1"), connections_of("0"));
    assert!((3..=4).contains(&renewed), "{renewed} connections in three seconds, each at most a second old");
    assert_eq!(kept, 1, "no age: one connection for all requests");
}

#[tokio::test]
async fn body_sent_with_its_head_is_not_held_for_100_continue() {
    let upstream = RawUpstream::start(|_, _| vec![Step::Read, send(OK)]).await;
    let tidegate = before(&upstream.url(), &[]).await;
    let began = Instant::now();
    for _ in 0..3 {
        let mut client = Raw::connect(tidegate.main).await;
        client.write(format!("{POST}hello")).await;
        assert_eq!(client.answer("POST").await.1.body, b"ok");
    }
    assert!(began.elapsed() < Duration::from_secs(1), "one held body alone takes a second");
    assert!(upstream.seen.lock().iter().all(|request| request.body == b"hello"));
}

#[tokio::test]
async fn upstream_silent_on_expect_costs_one_second_once() {
    let upstream = RawUpstream::start(|request, _| match request.target().as_str() {
        "/says" => vec![send(CONTINUE), Step::Read, send(OK)],
        _ => vec![Step::Read, send(OK)],
    })
    .await;
    let tidegate = before(&upstream.url(), &[]).await;
    let mut client = Raw::connect(tidegate.main).await;
    let mut took = Vec::new();
    for _ in 0..10 {
        let began = Instant::now();
        client.write(POST).await;
        assert_eq!(client.head().await.unwrap().line, b"HTTP/1.1 100 Continue");
        client.write("hello").await;
        assert_eq!(client.answer("POST").await.1.body, b"ok");
        took.push(began.elapsed());
    }
    assert!(took[0] >= Duration::from_secs(1), "held for the upstream's word: {took:?}");
    assert!(
        took[1..].iter().sum::<Duration>() < Duration::from_secs(3),
        "nine held bodies take nine: {took:?}"
    );
    // One that speaks again is waited for again.
    let says = POST.replacen("/ ", "/says ", 1);
    client.write(&says).await;
    assert_eq!(client.head().await.unwrap().line, b"HTTP/1.1 100 Continue");
    client.write("hello").await;
    assert_eq!(client.answer("POST").await.1.body, b"ok");
}
