//! The shipped example (deploy/fastapi) before a real FastAPI application under uvicorn, as docs/fastapi.md has it.

use std::net::TcpStream as Probe;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::installed::tool;
use crate::support::process::Tidegate;
use crate::support::redis_server::free_port;

/// uvicorn on a port of its own. Killed when it is dropped.
struct Uvicorn {
    child: Child,
    port: u16,
}

impl Uvicorn {
    fn start() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let port = free_port();
        let child = Command::new(tool("uvicorn"))
            .args(["app:app", "--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["--proxy-headers", "--forwarded-allow-ips", "127.0.0.1", "--no-access-log"])
            .arg("--app-dir")
            .arg(root.join("tests/fixtures/fastapi"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while Probe::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "uvicorn does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { child, port }
    }
}

impl Drop for Uvicorn {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The shipped files, with the application's port.
async fn before(application: &Uvicorn, more: &[(&str, &str)]) -> Tidegate {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/fastapi/config");
    let text = |name: &str| std::fs::read_to_string(example.join(name)).unwrap();
    let url = format!("http://127.0.0.1:{}", application.port);
    let mut variables = vec![("APP_ENV", "production"), ("UPSTREAM_URL", url.as_str())];
    variables.extend_from_slice(more);
    let files = [("config/production.toml", text("production.toml"))];
    let files = files.each_ref().map(|(name, text)| (*name, text.as_str()));
    Tidegate::start_with_files(&text("policies.toml"), &files, &variables).await
}

fn header<'a>(echo: &'a Value, name: &str) -> Vec<&'a str> {
    let headers = echo["headers"].as_array().unwrap().iter();
    headers.filter(|pair| pair[0] == name).filter_map(|pair| pair[1].as_str()).collect()
}

#[tokio::test]
async fn a_fastapi_application_sees_its_clients_and_they_see_their_limits_and_its_errors() {
    let application = Uvicorn::start();
    let tidegate = before(&application, &[]).await;
    let answer = tidegate
        .http
        .get(tidegate.url("/items/7?q=a%20b"))
        .header("host", "api.example.com")
        .header("x-api-key", "k1")
        .header("x-forwarded-for", "203.0.113.9")
        .header("x-forwarded-proto", "https")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["x-ratelimit-limit"], "100");
    assert_eq!(answer.headers()["x-ratelimit-remaining"], "19");
    assert_eq!(answer.headers()["content-type"], "application/json");
    let echo: Value = answer.json().await.unwrap();
    assert_eq!(
        (&echo["item"], &echo["client"], &echo["scheme"]),
        (&7.into(), &"127.0.0.1".into(), &"http".into())
    );
    assert_eq!(echo["url"], "http://api.example.com/items/7?q=a%20b");
    assert_eq!(header(&echo, "x-forwarded-for"), ["127.0.0.1"], "a stranger's claim is dropped");

    // Its own errors pass as they are.
    let missing = tidegate.get_as("/items/404", "k1").await;
    assert_eq!(missing.status(), 404);
    assert_eq!(missing.text().await.unwrap(), r#"{"detail":"Item not found"}"#);
    let invalid = tidegate.get_as("/items/seven", "k1").await;
    assert_eq!(invalid.status(), 422);
    assert_eq!(invalid.headers()["x-ratelimit-remaining"], "17");
    assert!(invalid.json::<Value>().await.unwrap()["detail"].is_array());
    let health = tidegate.get("/health").await;
    assert_eq!((health.status().as_u16(), health.headers().contains_key("x-ratelimit-limit")), (200, false));
}

#[tokio::test]
async fn behind_a_trusted_balancer_a_fastapi_application_sees_the_client_and_that_it_came_by_https() {
    let application = Uvicorn::start();
    let tidegate = before(&application, &[("TRUSTED_PROXIES", "127.0.0.0/8")]).await;
    let ask = async |from: &str| -> Value {
        let request = tidegate.http.get(tidegate.url("/items/1"));
        let request = request.header("x-forwarded-for", from).header("x-forwarded-proto", "https");
        request.send().await.unwrap().json().await.unwrap()
    };
    // What the balancer's own client claimed stands on the left, and is nobody's word.
    let echo = ask("198.51.100.1, 203.0.113.9").await;
    assert_eq!((&echo["client"], &echo["scheme"]), (&"203.0.113.9".into(), &"https".into()));
}

#[tokio::test]
async fn who_is_over_a_limit_never_reaches_the_fastapi_application_and_learns_when_to_come_back() {
    let application = Uvicorn::start();
    let tidegate = before(&application, &[]).await;
    let login = async || tidegate.http.post(tidegate.url("/token")).send().await.unwrap();
    for call in 1..=5 {
        assert_eq!(login().await.json::<Value>().await.unwrap()["login"], call);
    }
    let denied = login().await;
    assert_eq!(denied.status(), 429);
    assert_eq!(denied.headers()["content-type"], "application/problem+json");
    let wait: u32 = denied.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=12).contains(&wait), "{wait}");
    let problem: Value = denied.json().await.unwrap();
    assert_eq!(problem["policy"], "login-by-address");
    // Where a page of the application's shows `detail`, it shows this.
    assert_eq!(problem["detail"], format!("Too many requests. Try again in {wait} s."));
    let direct = reqwest::Client::builder().no_proxy().build().unwrap();
    let direct = direct.post(format!("http://127.0.0.1:{}/token", application.port)).send().await.unwrap();
    assert_eq!(direct.json::<Value>().await.unwrap()["login"], 6, "the denied one did not reach it");
}

#[tokio::test]
async fn streams_uploads_and_websockets_of_a_fastapi_application_pass() {
    let application = Uvicorn::start();
    let tidegate = before(&application, &[]).await;
    let started = Instant::now();
    let mut events = tidegate.get("/events").await.bytes_stream();
    assert_eq!(events.next().await.unwrap().unwrap(), "data: 0\n\n");
    assert!(started.elapsed() < Duration::from_millis(800), "the first event came with the last");
    let rest: Vec<u8> = events.map(|event| event.unwrap().to_vec()).collect::<Vec<_>>().await.concat();
    assert!(rest.ends_with(b"data: 4\n\n"));

    let upload =
        async |size: usize| tidegate.http.post(tidegate.url("/upload")).body(vec![7; size]).send().await;
    assert_eq!(upload(5 << 20).await.unwrap().text().await.unwrap(), r#"{"size":5242880}"#);
    assert_eq!(upload(11 << 20).await.map(|answer| answer.status().as_u16()).unwrap_or(413), 413);

    let mut socket = TcpStream::connect(tidegate.main).await.unwrap();
    let handshake = "GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.write_all(handshake.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"), "{head}");
    // A text of five letters, its mask all zeros.
    socket.write_all(&[&[0x81, 0x85, 0, 0, 0, 0], &b"hello"[..]].concat()).await.unwrap();
    let mut frame = [0; 13];
    tokio::time::timeout(Duration::from_secs(10), socket.read_exact(&mut frame)).await.unwrap().unwrap();
    assert_eq!(frame[..], [&[0x81, 11][..], b"echo: hello"].concat());
}
