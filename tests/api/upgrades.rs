//! WebSocket and other upgrades: what is asked for and allowed becomes a tunnel, what is not stays a request.

use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::conformance::before;
use crate::support::raw::{Message, Raw, RawUpstream, Step, send};
use crate::support::until;

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

fn ask_for(protocol: &str) -> String {
    format!(
        "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: {protocol}\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

fn switch(_: &Message, _: usize) -> Vec<Step> {
    vec![send(SWITCH), Step::Echo]
}

#[tokio::test]
async fn a_websocket_is_a_tunnel_for_bytes_of_both_sides() {
    let upstream = RawUpstream::start(switch).await;
    let tidegate = before(&upstream.url(), &[]).await;
    let mut client = Raw::connect(tidegate.main).await;
    client.write(ask_for("websocket")).await;
    let (_, answer) = client.answer("GET").await;
    assert_eq!(answer.line, b"HTTP/1.1 101 Switching Protocols");
    assert_eq!(answer.header("upgrade").as_deref(), Some("websocket"));
    assert_eq!(answer.header("connection").as_deref(), Some("upgrade"));
    assert_eq!(answer.header("sec-websocket-accept").as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    let seen = upstream.seen.lock()[0].clone();
    assert_eq!(seen.header("upgrade").as_deref(), Some("websocket"));
    assert_eq!(seen.header("connection").as_deref(), Some("upgrade"));
    assert_eq!(seen.header("sec-websocket-key").as_deref(), Some("dGhlIHNhbXBsZSBub25jZQ=="));
    for size in [1, 125, 3_000, 200_000] {
        let sent: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        let (mut read, mut write) = client.io.split();
        let (wrote, got) = tokio::join!(write.write_all(&sent), async {
            let mut got = vec![0; size];
            tokio::io::AsyncReadExt::read_exact(&mut read, &mut got).await.unwrap();
            got
        });
        wrote.unwrap();
        assert!(got == sent, "{size} bytes came back changed");
    }
    // The client's end reaches the upstream, whose last words still come back.
    client.write("last").await;
    client.io.shutdown().await.unwrap();
    assert_eq!(client.exactly(4).await.unwrap(), b"last");
    assert!(client.is_closed().await);
    assert_eq!(tidegate.request_lines(1).await[0]["status"], 101);
}

#[tokio::test]
async fn what_either_side_says_at_once_behind_the_head_is_not_lost() {
    let upstream =
        RawUpstream::start(|_, _| vec![Step::Wait(400), send(format!("{SWITCH}hello")), Step::Echo]).await;
    let tidegate = before(&upstream.url(), &[("TIDEGATE__UPSTREAM__UPGRADES", "websocket, custom")]).await;
    for protocol in ["websocket", "custom"] {
        let mut client = Raw::connect(tidegate.main).await;
        // With the head, which of a WebSocket only is kept, then before the answer.
        client
            .write(if protocol == "websocket" { ask_for(protocol) + "early " } else { ask_for(protocol) })
            .await;
        until("it is there", async || upstream.requests() == 1 + usize::from(protocol == "custom")).await;
        client.write("soon ").await;
        assert_eq!(client.answer("GET").await.1.status(), 101);
        client.write("late").await;
        let wanted: &[u8] = if protocol == "websocket" { b"helloearly soon late" } else { b"hellosoon late" };
        assert_eq!(client.exactly(wanted.len()).await.unwrap(), wanted, "{protocol}");
    }
}

#[tokio::test]
async fn an_upgrade_that_is_not_allowed_or_not_granted_is_a_request_like_any_other() {
    let upstream = RawUpstream::start(|request, _| match request.target().as_str() {
        "/unasked" => vec![send(SWITCH), Step::Close],
        _ => vec![send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")],
    })
    .await;
    let tidegate = before(&upstream.url(), &[("TIDEGATE__UPSTREAM__UPGRADES", "websocket, custom")]).await;
    // Not allowed: it does not reach the upstream. Not granted: what the client has sent meanwhile is not taken for a
    // request. Either answer is the last of its connection, and says so.
    for (number, (protocol, wanted)) in [("h2c", None), ("custom", Some("custom"))].into_iter().enumerate() {
        let mut client = Raw::connect(tidegate.main).await;
        client.write(ask_for(protocol)).await;
        let answer = client.answer("GET").await.1;
        assert_eq!(
            (answer.body.as_slice(), answer.header("connection").as_deref()),
            (&b"ok"[..], Some("close"))
        );
        let seen = upstream.seen.lock()[number].clone();
        assert_eq!(seen.header("upgrade").as_deref(), wanted);
        assert_eq!(seen.header("connection").as_deref(), wanted.map(|_| "upgrade"));
        assert!(client.is_closed().await);
    }
    assert_eq!(upstream.requests(), 2);
    // Granted and not asked for.
    let mut client = Raw::connect(tidegate.main).await;
    client.write("GET /unasked HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(client.answer("GET").await.1.status(), 502);
}

#[tokio::test]
async fn only_so_many_connections_are_upgraded_and_an_idle_one_ends() {
    let upstream = RawUpstream::start(switch).await;
    let variables = [("TIDEGATE__UPSTREAM__MAX_UPGRADES", "2"), ("TIDEGATE__UPSTREAM__UPGRADE_IDLE_S", "1")];
    let tidegate = before(&upstream.url(), &variables).await;
    let mut clients = Vec::new();
    for wanted in [101, 101, 503] {
        let mut client = Raw::connect(tidegate.main).await;
        client.write(ask_for("websocket")).await;
        let answer = client.answer("GET").await.1;
        assert_eq!(answer.status(), wanted);
        if wanted == 503 {
            assert_eq!(answer.header("content-type").as_deref(), Some("application/problem+json"));
        }
        clients.push(client);
    }
    for client in &mut clients {
        assert!(client.is_closed().await);
    }
    until("there is room again", async || {
        let mut client = Raw::connect(tidegate.main).await;
        client.write(ask_for("websocket")).await;
        client.answer("GET").await.1.status() == 101
    })
    .await;
}

#[tokio::test]
async fn an_end_of_either_side_is_the_end_of_the_other() {
    let upstream = RawUpstream::start(|request, _| match request.target().as_str() {
        "/chat" => vec![send(SWITCH), Step::Wait(60_000)],
        _ => vec![send(SWITCH), Step::Close],
    })
    .await;
    let tidegate = before(&upstream.url(), &[]).await;
    let mut client = Raw::connect(tidegate.main).await;
    client.write(ask_for("websocket")).await;
    assert_eq!(client.answer("GET").await.1.status(), 101);
    drop(client);
    until("the upstream is left", async || upstream.closed.load(std::sync::atomic::Ordering::SeqCst) == 1)
        .await;
    let mut client = Raw::connect(tidegate.main).await;
    client.write(ask_for("websocket").replace("/chat", "/bye")).await;
    assert_eq!(client.answer("GET").await.1.status(), 101);
    // The upstream's end; ours is the tunnel's.
    let mut byte = [0];
    let read = tokio::io::AsyncReadExt::read(&mut client.io, &mut byte);
    assert_eq!(tokio::time::timeout(Duration::from_secs(5), read).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_thousand_websockets_talk_at_once() {
    let upstream = RawUpstream::start(switch).await;
    let tidegate = before(&upstream.url(), &[]).await;
    let mut clients = Vec::new();
    for _ in 0..1_000 {
        let mut client = Raw::connect(tidegate.main).await;
        client.write(ask_for("websocket")).await;
        clients.push(client);
    }
    for client in &mut clients {
        assert_eq!(client.answer("GET").await.1.status(), 101);
    }
    for round in 0..3 {
        for (number, client) in clients.iter_mut().enumerate() {
            client.write(format!("{round} {number:>6}")).await;
        }
        for (number, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.exactly(8).await.unwrap(), format!("{round} {number:>6}").as_bytes());
        }
    }
    assert!(tidegate.metrics().await.contains("tidegate_upgraded_connections 1000\n"));
    let resident = super::gateway::resident_mib(tidegate.pid());
    assert!(resident < 120, "{resident} MiB resident with 1 000 WebSockets");
    drop(clients);
    assert_eq!(tidegate.request_lines(1_000).await.len(), 1_000);
    assert!(tidegate.metrics().await.contains("tidegate_upgraded_connections 0\n"));
}
