//! The limit of open files, which idle clients must not exhaust for the admin listener and the upstream.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::frames;
use crate::support::process::{Tidegate, command};
use crate::support::raw::{RawUpstream, Step};
use crate::support::until;
use crate::support::upstream::Upstream;

/// Under these limits, `SOFT:HARD`.
async fn limited(limits: &'static str, variables: &[(&str, &str)]) -> Tidegate {
    let by = move |directory: &Path| {
        let plain = command(directory);
        let mut limited = Command::new("prlimit");
        limited.arg(format!("--nofile={limits}")).arg(plain.get_program()).current_dir(directory).env_clear();
        limited.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        limited
    };
    Tidegate::start_by(by, tempfile::tempdir().unwrap(), variables).await
}

/// Connections on which a request was begun and not ended, so that each is the server's, or waits to be.
async fn idle(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut streams = Vec::with_capacity(count);
    while streams.len() < count {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        streams.push(stream);
    }
    streams
}

fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[tokio::test]
async fn idle_clients_leave_room_for_admin_and_upstream() {
    crate::hostile::raise_own_limit();
    let upstream = Upstream::start();
    let tidegate = limited("1024:1024", &[("UPSTREAM_URL", &*upstream.url())]).await;
    tidegate.says("server.max_connections: 16384 do not fit the limit of open files, 1024", 1).await;
    // Beside them, one that is served already.
    let mut served = TcpStream::connect(tidegate.main).await.unwrap();
    let mut answer = [0; 4096];
    served.write_all(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    assert!(served.read(&mut answer).await.unwrap() > 0);
    let streams = idle(tidegate.main, 1200).await;
    until("it has taken all that it takes", async || open_files(tidegate.pid()) > 400).await;
    for _ in 0..3 {
        let health = tidegate.http.get(format!("http://{}/healthz", tidegate.admin));
        let health =
            health.timeout(Duration::from_secs(20)).header("connection", "close").send().await.unwrap();
        assert_eq!(health.status(), 200, "the admin listener");
        assert!(tidegate.status().await.is_object(), "the admin API");
        served.write_all(b"GET /b HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        let read =
            tokio::time::timeout(Duration::from_secs(20), served.read(&mut answer)).await.unwrap().unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 200"), "the upstream, over a new connection: {answer}");
    }
    assert!(open_files(tidegate.pid()) < 800, "{}", open_files(tidegate.pid()));
    drop(streams);
    until("new clients are served again", async || tidegate.get("/c").await.status() == 200).await;
}

#[tokio::test]
async fn the_soft_limit_is_raised_to_the_hard_one() {
    crate::hostile::raise_own_limit();
    let tidegate = limited("128:8192", &[("TIDEGATE__SERVER__MAX_CONNECTIONS", "2000")]).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", tidegate.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(line.split_whitespace().nth(3), Some("8192"), "{line}");
    let _streams = idle(tidegate.main, 1200).await;
    until("they are all open", async || open_files(tidegate.pid()) > 1200).await;
    assert_eq!(tidegate.get("/").await.status(), 404, "no upstream, and served");
    assert_eq!(tidegate.lines_with("do not fit"), 0);
}

#[tokio::test]
async fn streams_of_a_few_clients_leave_files_for_others() {
    let upstream = RawUpstream::start(|_, _| vec![Step::Wait(60_000)]).await;
    let tidegate = limited("256:256", &[("UPSTREAM_URL", &*upstream.url())]).await;
    tidegate.says("upstream.max_connections: 1024 do not fit the limit of open files, 256", 1).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = frames::connect(tidegate.main).await;
        for stream in 0..100 {
            client.write_all(&frames::request(2 * stream + 1, "/slow")).await.unwrap();
        }
        clients.push(client);
    }
    until("the upstream has all that it gets", async || upstream.requests() >= 50).await;
    // Longer than a request waits for a connection.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let connections = upstream.connections.load(std::sync::atomic::Ordering::SeqCst);
    assert!((50..100).contains(&connections), "{connections}");
    let health = tidegate.http.get(format!("http://{}/healthz", tidegate.admin)).send().await.unwrap();
    assert_eq!(health.status(), 200);
    assert_eq!(tidegate.get("/healthz").await.status(), 200, "a new client");
    assert_eq!(tidegate.lines_with("Too many open files"), 0, "{}", tidegate.output());
}
