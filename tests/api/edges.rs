//! Clients at the edge of a connection: silent ones, slow ones, heads without measure. On every listener.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

use super::conformance::before;
use crate::support::certificates::Certificates;
use crate::support::frames::{self, DATA, HEADERS, RST_STREAM, SETTINGS, WINDOW_UPDATE};
use crate::support::nginx::Nginx;
use crate::support::process::{ADMIN_TOKEN, Tidegate, peak_mib};
use crate::support::raw::{Message, Raw, RawUpstream, Step, ask, send};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// As our gateway forwards.
const NGINX: &str = "proxy_http_version 1.1; proxy_set_header Connection ''; proxy_buffering off;";
const LONGEST: Duration = Duration::from_secs(20);

fn admin(request: &str) -> String {
    format!("{request} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\n")
}

async fn answer(raw: &mut Raw<TcpStream>, method: &str) -> Message {
    timeout(LONGEST, raw.answer(method)).await.expect("an answer").1
}

const SHORT: [(&str, &str); 1] = [("TIDEGATE__SERVER__HEAD_TIMEOUT_MS", "500")];

#[tokio::test]
async fn admin_events_outlive_the_deadline_of_a_head() {
    let tidegate = Tidegate::start(None, &SHORT).await;
    let mut raw = Raw::connect(tidegate.admin).await;
    raw.write(admin("GET /admin/events") + "\r\n").await;
    assert_eq!(raw.head().await.unwrap().status(), 200);
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2500) {
        let event = timeout(LONGEST, raw.some()).await.expect("an event");
        assert!(!String::from_utf8_lossy(&event.unwrap()).contains("HTTP/1.1 408"));
    }
}

#[tokio::test]
async fn scrapes_share_a_connection_beyond_that_deadline() {
    let tidegate = Tidegate::start(None, &SHORT).await;
    let mut raw = Raw::connect(tidegate.admin).await;
    for _ in 0..3 {
        raw.write("GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n").await;
        assert_eq!(answer(&mut raw, "GET").await.status(), 200);
        sleep(Duration::from_millis(900)).await;
    }
}

#[tokio::test]
async fn a_change_whose_body_comes_late_is_answered_once_made() {
    let tidegate = Tidegate::start(None, &SHORT).await;
    let tag = tidegate.admin("GET", "/admin/rollout").send().await.unwrap().headers()["etag"].clone();
    let body = r#"{"percent":0,"reason":"a test"}"#;
    let mut raw = Raw::connect(tidegate.admin).await;
    let head = admin("PUT /admin/rollout");
    let tag = tag.to_str().unwrap();
    raw.write(format!("{head}If-Match: {tag}\r\nContent-Length: {}\r\n\r\n{{", body.len())).await;
    sleep(Duration::from_millis(1200)).await;
    raw.write(&body[1..]).await;
    let answer = answer(&mut raw, "PUT").await;
    assert_eq!(answer.status(), 200, "{}", String::from_utf8_lossy(&answer.body));
}

#[tokio::test]
async fn bodies_of_our_own_pages_have_a_deadline() {
    let variables = [
        ("TIDEGATE__SERVER__BODY_TIMEOUT_MS", "500"),
        ("TIDEGATE_SECRET", "a-secret-of-at-least-thirty-two-characters"),
        ("TIDEGATE_PEERS", "http://127.0.0.1:1"),
    ];
    let tidegate = Tidegate::start(None, &variables).await;
    // Looks signed, so that its body is read.
    let signed = "Authorization: Tidegate-HMAC-SHA256 x\r\n";
    for (address, head) in [
        (tidegate.main, "POST /v1/check HTTP/1.1\r\nHost: h\r\n".to_owned()),
        (tidegate.admin, admin("PUT /admin/rollout")),
        (tidegate.admin, admin("PUT /admin/rollout") + "Idempotency-Key: x\r\n"),
        (tidegate.admin, admin("PUT /admin/overrides")),
        (tidegate.admin, format!("POST /admin/fleet HTTP/1.1\r\nHost: h\r\n{signed}")),
    ] {
        for rest in ["Content-Length: 10\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"] {
            let mut raw = Raw::connect(address).await;
            raw.write(format!("{head}{rest}")).await;
            let answer = answer(&mut raw, "POST").await;
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            assert_eq!(answer.status(), 408, "{head}{rest}: {body}");
            assert!(body.contains("urn:tidegate:request-timeout"), "{body}");
        }
    }
}

/// Whether the process ends although `_held` is open.
async fn ends_in_time(tidegate: &mut Tidegate) -> Duration {
    sleep(Duration::from_millis(200)).await;
    let began = Instant::now();
    tidegate.terminate();
    let status = tidegate.wait(Duration::from_secs(25)).expect("it ends long before the grace period");
    assert_eq!(status.code(), Some(0));
    began.elapsed()
}

#[tokio::test]
async fn silent_connections_do_not_hold_the_shutdown() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::new();
    let path = directory.path().join("tidegate.sock");
    let (cert, key, socket) =
        (certificates.text("cert.pem"), certificates.text("key.pem"), path.display().to_string());
    let tls = [("TIDEGATE__SERVER__TLS_CERT", &*cert), ("TIDEGATE__SERVER__TLS_KEY", &*key)];
    for variables in [&[("TIDEGATE__SERVER__UNIX_SOCKET", &*socket)][..], &tls] {
        let mut tidegate = Tidegate::start(None, variables).await;
        let mut held = Vec::new();
        for address in [tidegate.main, tidegate.admin] {
            held.push(TcpStream::connect(address).await.unwrap());
            let mut half = TcpStream::connect(address).await.unwrap();
            half.write_all(b"GET / HT").await.unwrap();
            held.push(half);
        }
        let by_socket = UnixStream::connect(&path).await;
        let took = ends_in_time(&mut tidegate).await;
        // The grace period is 30 s.
        assert!(took < Duration::from_secs(15), "{took:?}");
        drop((held, by_socket));
    }
}

#[tokio::test]
async fn a_request_cut_at_shutdown_is_no_fault_of_its_client() {
    let upstream = RawUpstream::start(|_, _| vec![Step::Wait(60_000)]).await;
    let mut tidegate = before(&upstream.url(), &[("TIDEGATE__SERVER__GRACE_S", "1")]).await;
    let mut one = Raw::connect(tidegate.main).await;
    one.write("GET /cut HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let mut two = Raw::connect(tidegate.main).await;
    two.write("GET /left HTTP/1.1\r\nHost: h\r\n\r\n").await;
    crate::support::until("they are there", async || upstream.requests() == 2).await;
    drop(two);
    tidegate.request_lines(1).await;
    tidegate.terminate();
    tidegate.wait(Duration::from_secs(15)).expect("it ends");
    let lines = tidegate.request_lines(2).await;
    let status = |path: &str| lines.iter().find(|line| line["path"] == path).unwrap()["status"].clone();
    assert_eq!((status("/left"), status("/cut")), (499.into(), 503.into()));
}

#[tokio::test]
async fn heads_without_measure_are_refused_on_every_listener() {
    let upstream = RawUpstream::start(|_, _| vec![send(OK)]).await;
    let tidegate = before(&upstream.url(), &[]).await;
    let nginx = Nginx::before(upstream.address, NGINX);
    let long = |count: usize| "X".repeat(count);
    let cases = [
        (format!("{} /a HTTP/1.1\r\nHost: h\r\n\r\n", long(100_000)), 400),
        (format!("GET /a HTTP/1.1\r\nHost: h\r\n{}: 1\r\n\r\n", long(65_536)), 431),
        (format!("GET /a HTTP/1.1\r\nHost: h\r\n{}: 1\r\n\r\n", long(2_000)), 431),
        (format!("GET /a HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", long(100_000)), 431),
        (format!("GET /a HTTP/1.1\r\nHost: h\r\n{}", "X: y\r\n".repeat(30_000)), 431),
        (format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", long(100_000)), 414),
    ];
    for address in [tidegate.main, tidegate.admin] {
        for (request, status) in &cases {
            let answer = ask(address, request).await.1;
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            let shown = &request[..40];
            assert_eq!(answer.status(), *status, "{shown}: {body}");
            assert!(body.contains("urn:tidegate:"), "{shown}: {body}");
        }
    }
    // nginx refuses each of them as well, but for a name that fits into its buffer of 8 KiB.
    for (request, _) in cases.iter().filter(|(request, _)| request.len() > 10_000) {
        assert!(ask(nginx.address, request).await.1.status() >= 400);
    }
    assert_eq!(upstream.requests(), 0);
    assert_eq!(tidegate.lines_with("panicked"), 0, "{}", tidegate.output());
    assert!(tidegate.output().len() < 100_000, "what is refused fills no log");
}

#[tokio::test]
async fn a_long_method_by_http2_is_refused_and_cut_in_the_log() {
    let upstream = RawUpstream::start(|_, _| vec![send(OK)]).await;
    let tidegate = before(&upstream.url(), &[]).await;
    let http = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let method = reqwest::Method::from_bytes("X".repeat(10_000).as_bytes()).unwrap();
    assert_eq!(http.request(method, tidegate.url("/a")).send().await.unwrap().status(), 400);
    let line = tidegate.request_lines(1).await[0].clone();
    assert_eq!((line["method"].as_str().unwrap().len(), upstream.requests()), (64, 0));
}

#[tokio::test]
async fn half_heads_take_little_memory() {
    let upstream = RawUpstream::start(|_, _| vec![send(OK)]).await;
    let tidegate = before(&upstream.url(), &[]).await;
    let at_first = peak_mib(tidegate.pid());
    let half = async |length: usize| {
        let mut held = Vec::new();
        for _ in 0..300 {
            let mut io = TcpStream::connect(tidegate.main).await.unwrap();
            let head = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}", "x".repeat(length));
            // One that is refused may be closed before all of it is written.
            let _ = io.write_all(head.as_bytes()).await;
            held.push(io);
        }
        sleep(Duration::from_millis(500)).await;
        held
    };
    // As long as a head may be, and much longer. Each takes at most 64 KiB, as its buffer doubles, beside the rest of a
    // connection.
    let held = half(30_000).await;
    let mut refused = half(130_000).await;
    assert_eq!(ask(tidegate.main, "GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.1.status(), 200);
    let taken = peak_mib(tidegate.pid()) - at_first;
    assert!(
        taken < 600 * 80 / 1024,
        "{taken} MiB for {} half heads and as many that are refused",
        held.len()
    );
    for io in &mut refused[..10] {
        let mut status = [0; 12];
        timeout(LONGEST, io.read_exact(&mut status)).await.unwrap().unwrap();
        assert_eq!(&status, b"HTTP/1.1 431");
    }
}

#[tokio::test]
async fn an_absolute_target_without_a_path_is_asked_for_as_one() {
    let upstream = RawUpstream::start(|_, _| vec![send(OK)]).await;
    let tidegate = before(&upstream.url(), &[]).await;
    let nginx = Nginx::before(upstream.address, NGINX);
    for target in ["http://x.test?q=1", "http://x.test", "http://x.test/?q=1"] {
        let mut reached = Vec::new();
        for address in [nginx.address, tidegate.main] {
            let request = format!("GET {target} HTTP/1.1\r\nHost: x.test\r\n\r\n");
            assert_eq!(ask(address, request).await.1.status(), 200, "{target}");
            reached.push(upstream.seen.lock().last().unwrap().target());
        }
        assert_eq!(reached[0], reached[1], "{target}");
    }
}

#[tokio::test]
async fn an_answer_reaches_a_client_that_still_sends() {
    let upstream = RawUpstream::start(|_, _| vec![send(OK)]).await;
    let tidegate = before(&upstream.url(), &[]).await;
    let addresses: [SocketAddr; 2] = [tidegate.main, tidegate.admin];
    for address in addresses {
        let (mut reader, mut writer) = TcpStream::connect(address).await.unwrap().into_split();
        // Much more than the buffers of both sides hold: a connection that is closed over it is reset.
        let sending = tokio::spawn(async move {
            let close = "GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
            let _ = writer.write_all(close.as_bytes()).await;
            for _ in 0..200 {
                let _ = writer.write_all(&[b'x'; 10_000]).await;
            }
        });
        let mut got = Vec::new();
        timeout(LONGEST, reader.read_to_end(&mut got)).await.expect("an end").expect("no reset");
        assert!(got.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&got));
        sending.await.unwrap();
    }
}

/// Reads frames until one of this kind comes for this stream; `None` when the connection ends before.
async fn until_frame(io: &mut TcpStream, kind: u8, stream: u32) -> Option<Vec<u8>> {
    loop {
        let mut head = [0; 9];
        io.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        io.read_exact(&mut payload).await.ok()?;
        if head[3] == kind && head[5..] == stream.to_be_bytes() {
            return Some(payload);
        }
    }
}

/// A connection whose streams have no window.
async fn without_a_window(address: SocketAddr) -> TcpStream {
    let mut io = frames::connect(address).await;
    io.write_all(&frames::frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await.unwrap();
    io
}

const DENY: &str = r#"
[[rule]]
name = "denied"
match = { path = "/denied" }
  [[rule.policy]]
  name = "denied"
  by = "header:x-api-key"
  limit = "1/second"
  on_missing = "deny"

[[rule]]
name = "default"
  [[rule.policy]]
  name = "default"
  by = "ip"
  limit = "1000000/second"
"#;

#[tokio::test]
async fn http2_without_a_window_frees_its_connections() {
    let upstream = RawUpstream::start(|_, _| vec![send(OK)]).await;
    let url = upstream.url();
    let variables = [
        ("UPSTREAM_URL", &*url),
        ("TIDEGATE__SERVER__SEND_TIMEOUT_MS", "1000"),
        ("TIDEGATE__SERVER__MAX_CONNECTIONS", "20"),
        ("TIDEGATE__SERVER__WORKERS", "1"),
    ];
    let tidegate = Tidegate::start(Some(DENY), &variables).await;
    let mut held = Vec::new();
    for number in 0..20 {
        let mut io = without_a_window(tidegate.main).await;
        // The upstream's answers, our own pages and denials.
        for (stream, path) in [(1, "/a"), (3, "/healthz"), (5, "/denied")].iter().take(number % 3 + 1) {
            io.write_all(&frames::request(*stream, path)).await.unwrap();
        }
        assert!(timeout(LONGEST, until_frame(&mut io, HEADERS, 1)).await.unwrap().is_some());
        held.push(io);
    }
    // There is no room until they are let go.
    let answer = ask(tidegate.main, "GET /b HTTP/1.1\r\nHost: h\r\n\r\n").await.1;
    assert_eq!(answer.status(), 200);
    for io in &mut held {
        let mut rest = Vec::new();
        timeout(LONGEST, io.read_to_end(&mut rest)).await.expect("it is let go").unwrap();
    }
}

#[tokio::test]
async fn clients_without_a_window_are_let_go_as_nginx_does() {
    let upstream = RawUpstream::start(|_, _| vec![send(OK)]).await;
    let tidegate = before(&upstream.url(), &[("TIDEGATE__SERVER__SEND_TIMEOUT_MS", "1000")]).await;
    let nginx = Nginx::listening(upstream.address, "http2", "send_timeout 1s;");
    for address in [nginx.address, tidegate.main] {
        let mut io = without_a_window(address).await;
        io.write_all(&frames::request(1, "/a")).await.unwrap();
        assert!(timeout(LONGEST, until_frame(&mut io, HEADERS, 1)).await.unwrap().is_some(), "{address}");
        let began = Instant::now();
        // nginx resets the stream; we end a connection that has no other.
        let let_go = timeout(LONGEST, until_frame(&mut io, RST_STREAM, 1)).await;
        assert!(let_go.is_ok(), "{address}");
        assert!(began.elapsed() > Duration::from_millis(500), "{address}: {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_stream_without_a_window_is_reset_beside_others() {
    let upstream = RawUpstream::start(|request, _| match request.target().as_str() {
        "/slow" => vec![Step::Wait(4000), send(OK)],
        _ => vec![send(OK)],
    })
    .await;
    let tidegate = before(&upstream.url(), &[("TIDEGATE__SERVER__SEND_TIMEOUT_MS", "1000")]).await;
    let mut io = without_a_window(tidegate.main).await;
    let window = |stream| frames::frame(WINDOW_UPDATE, 0, stream, &1000_u32.to_be_bytes());
    io.write_all(&[frames::request(1, "/slow"), window(1), frames::request(3, "/stalled")].concat())
        .await
        .unwrap();
    let reset = timeout(LONGEST, until_frame(&mut io, RST_STREAM, 3)).await.expect("a reset");
    assert_eq!(reset.expect("the connection goes on"), 8_u32.to_be_bytes(), "CANCEL");
    // What the client still sends for it is passed over, and others are served.
    io.write_all(&[window(3), frames::request(5, "/more"), window(5)].concat()).await.unwrap();
    for stream in [5, 1] {
        let body = timeout(LONGEST, until_frame(&mut io, DATA, stream)).await.expect("a body");
        assert_eq!(body.expect("the connection goes on"), b"ok");
    }
    // A window that opens now and then is no stall.
    let mut io = without_a_window(tidegate.main).await;
    io.write_all(&frames::request(1, "/dripped")).await.unwrap();
    for _ in 0..2 {
        sleep(Duration::from_millis(700)).await;
        io.write_all(&frames::frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes())).await.unwrap();
        let body = timeout(LONGEST, until_frame(&mut io, DATA, 1)).await.expect("a byte");
        assert_eq!(body.expect("the connection goes on").len(), 1);
    }
}
