//! Bodies of any size, in constant memory and as they come.

use std::time::{Duration, Instant};

use super::conformance::before;
use super::gateway::resident_mib;
use crate::support::raw::{Raw, RawUpstream, Step, send};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const SIZE: usize = 500 << 20;
const PIECE: usize = 1 << 20;

/// Reads 500 MB, sends as much, and nothing of it is held by anybody.
async fn five_hundred_megabytes() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut raw = Raw::new(io);
                let request = raw.head().await.unwrap();
                let mut left: usize =
                    request.header("content-length").map_or(0, |length| length.parse().unwrap());
                while left > 0 {
                    left -= raw.some().await.unwrap().len();
                }
                let piece = vec![b'd'; PIECE];
                raw.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n")).await;
                for _ in 0..SIZE / PIECE {
                    raw.write(&piece).await;
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn five_hundred_megabytes_up_and_down_take_no_memory() {
    let upstream = five_hundred_megabytes().await;
    let tidegate = before(&format!("http://{upstream}"), &[]).await;
    let mut client = Raw::connect(tidegate.main).await;
    client.write(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {SIZE}\r\n\r\n")).await;
    let piece = vec![b'u'; PIECE];
    for _ in 0..SIZE / PIECE {
        client.io.write_all(&piece).await.unwrap();
    }
    let answer = client.head().await.unwrap();
    assert_eq!(answer.header("content-length"), Some(SIZE.to_string()));
    let mut got = 0;
    let mut buffer = vec![0; PIECE];
    got += client.some().await.unwrap().len();
    while got < SIZE {
        match client.io.read(&mut buffer).await.unwrap() {
            0 => break,
            read => got += read,
        }
    }
    assert_eq!(got, SIZE);
    // The most that it ever was.
    let resident = resident_mib(tidegate.pid());
    assert!(resident < 60, "{resident} MiB resident");
}

#[tokio::test]
async fn an_upload_and_events_pass_piece_by_piece() {
    // Each piece of the request is answered before the next is sent.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (io, _) = listener.accept().await.unwrap();
        let mut raw = Raw::new(io);
        raw.head().await.unwrap();
        raw.write("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await;
        for _ in 0..5 {
            let piece = raw.exactly(9).await.unwrap();
            assert!(piece.starts_with(b"4\r\n"), "{piece:?}");
            raw.write(piece).await;
        }
        raw.write("0\r\n\r\n").await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    });
    let tidegate = before(&format!("http://{address}"), &[]).await;
    let mut client = Raw::connect(tidegate.main).await;
    client.write("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    assert_eq!(client.head().await.unwrap().header("content-type").as_deref(), Some("text/event-stream"));
    for number in 0..5 {
        let piece = format!("4\r\nno {number}\r\n");
        let began = Instant::now();
        client.write(&piece).await;
        assert_eq!(client.exactly(9).await.unwrap(), piece.as_bytes());
        assert!(began.elapsed() < Duration::from_secs(2));
    }
    assert_eq!(client.exactly(5).await.unwrap(), b"0\r\n\r\n");
}

#[tokio::test]
async fn events_come_one_by_one_to_clients_of_both_protocols() {
    let upstream = RawUpstream::start(|_, _| {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut steps = vec![send(head)];
        steps.extend((0..3).flat_map(|n| [send(format!("9\r\ndata: {n}\n\n\r\n")), Step::Wait(400)]));
        steps.push(send("0\r\n\r\n"));
        steps
    })
    .await;
    let tidegate = before(&upstream.url(), &[]).await;
    let http2 = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    for http in [&tidegate.http, &http2] {
        let mut answer = http.get(tidegate.url("/events")).send().await.unwrap();
        let mut last = Instant::now();
        for number in 0..3 {
            assert_eq!(answer.chunk().await.unwrap().unwrap(), format!("data: {number}\n\n"));
            if number > 0 {
                let pause = last.elapsed();
                assert!(pause > Duration::from_millis(200), "they came together: {pause:?}");
            }
            last = Instant::now();
        }
        assert!(answer.chunk().await.unwrap().is_none_or(|rest| rest.is_empty()));
    }
}
