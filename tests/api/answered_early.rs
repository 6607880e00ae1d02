//! Answers of HTTP/2 that come before the end of their request's body: the client still writes, and a reset of the stream
//! would reach it in the place of the answer.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::frames::{self, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM};
use crate::support::process::Tidegate;
use crate::support::raw::{RawUpstream, send};

const LONGEST: Duration = Duration::from_secs(20);

const POLICIES: &str = r#"
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

async fn front() -> (RawUpstream, Tidegate) {
    let upstream =
        RawUpstream::start(|_, _| vec![send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")]).await;
    let url = upstream.url();
    let tidegate = Tidegate::start(Some(POLICIES), &[("UPSTREAM_URL", &url)]).await;
    (upstream, tidegate)
}

/// The head of a POST and five bytes of its body, without its end.
fn post(stream: u32, path: &str, length: usize) -> Vec<u8> {
    let head = [
        &[0x83, 0x86][..],
        &frames::field(":path", path),
        &frames::field(":authority", "h"),
        &frames::field("content-length", &length.to_string()),
    ]
    .concat();
    [frames::frame(HEADERS, END_HEADERS, stream, &head), frames::frame(DATA, 0, stream, b"hello")].concat()
}

/// Kind, flags, stream and payload.
type Frame = (u8, u8, u32, Vec<u8>);

async fn next(io: &mut TcpStream) -> Frame {
    let mut head = [0; 9];
    timeout(LONGEST, io.read_exact(&mut head)).await.expect("a frame").unwrap();
    let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
    io.read_exact(&mut payload).await.unwrap();
    (head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload)
}

/// All frames of a stream until its end or its reset.
async fn answer(io: &mut TcpStream, stream: u32) -> Vec<Frame> {
    let mut all = Vec::new();
    loop {
        let frame = next(io).await;
        if frame.2 == stream && [DATA, HEADERS, RST_STREAM].contains(&frame.0) {
            let is_last = frame.0 == RST_STREAM || frame.1 & END_STREAM != 0;
            all.push(frame);
            if is_last {
                return all;
            }
        }
    }
}

/// The frames until the answer to a ping: they were on their way before it.
async fn until_pong(io: &mut TcpStream) -> Vec<Frame> {
    io.write_all(&frames::frame(PING, 0, 0, b"12345678")).await.unwrap();
    let mut all = Vec::new();
    loop {
        let frame = next(io).await;
        if frame.0 == PING {
            return all;
        }
        all.push(frame);
    }
}

#[tokio::test]
async fn answered_stream_is_open_until_its_client_ends_it() {
    let (upstream, tidegate) = front().await;
    // The upstream's answer to all that was announced, a denial, a page of ours, and a body that is not read at all.
    for (path, length) in [("/a", 5), ("/denied", 5), ("/denied", 9_000), ("/v1/check", 5), ("/healthz", 5)] {
        let mut io = frames::connect(tidegate.main).await;
        io.write_all(&post(1, path, length)).await.unwrap();
        // /v1/check reads its body to the end.
        if path != "/v1/check" {
            let answer = answer(&mut io, 1).await;
            assert_eq!(answer.first().map(|frame| frame.0), Some(HEADERS), "{path}: {answer:?}");
            assert_ne!(answer.last().map(|frame| frame.0), Some(RST_STREAM), "{path}: {answer:?}");
            let resets = until_pong(&mut io).await.into_iter().filter(|frame| frame.0 == RST_STREAM).count();
            assert_eq!(resets, 0, "{path}: the client still writes");
        }
        let rest = vec![b'x'; length - 5];
        io.write_all(&frames::frame(DATA, END_STREAM, 1, &rest)).await.unwrap();
        io.write_all(&frames::request(3, "/healthz")).await.unwrap();
        let (kind, ..) = answer(&mut io, 3).await.swap_remove(0);
        assert_eq!(kind, HEADERS, "{path}: the connection goes on");
    }
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn answered_stream_that_never_ends_is_reset() {
    let (_upstream, tidegate) = front().await;
    // After a second, and behind 64 KiB.
    for floods in [false, true] {
        let mut io = frames::connect(tidegate.main).await;
        io.write_all(&post(1, "/denied", 900_000)).await.unwrap();
        assert_eq!(answer(&mut io, 1).await[0].0, HEADERS);
        if floods {
            for _ in 0..6 {
                io.write_all(&frames::frame(DATA, 0, 1, &[b'x'; 16_000])).await.unwrap();
            }
        }
        let reset = answer(&mut io, 1).await.swap_remove(0);
        assert_eq!((reset.0, reset.3), (RST_STREAM, vec![0; 4]), "NO_ERROR");
        io.write_all(&frames::request(3, "/healthz")).await.unwrap();
        assert_eq!(answer(&mut io, 3).await[0].0, HEADERS);
    }
}
