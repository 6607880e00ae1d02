//! Clients that are slow on purpose or send no end of frames: others are served meanwhile, memory stays where it is, and
//! who is at fault is let go.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::frames::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE,
};
use crate::support::process::{Tidegate, peak_mib};
use crate::support::recorder::Recorder;
use crate::support::upstream::Upstream;

/// What any other client may wait at most, on a machine that is busy with the attack and more.
const BOUND: Duration = Duration::from_secs(5);
/// What the process may hold at most.
const MOST_MIB: u64 = 150;

/// Both ends of each connection are the test's: more than a shell's usual thousand.
pub(super) fn raise_own_limit() {
    let own = std::process::id().to_string();
    let raised = std::process::Command::new("prlimit").args(["--pid", &own, "--nofile=16384:"]).status();
    assert!(
        raised.is_ok_and(|status| status.success()),
        "prlimit (util-linux) raises the limit of open files"
    );
}

async fn before(url: &str, more: &[(&str, &str)]) -> Tidegate {
    let wide = "[[rule]]\nname = \"default\"\n[[rule.policy]]\nname = \"wide\"\nby = \"ip\"\nlimit = \"1000000/second\"\n";
    raise_own_limit();
    let mut variables = vec![("UPSTREAM_URL", url), ("TIDEGATE__LOGGING__REQUESTS", "false")];
    variables.extend_from_slice(more);
    Tidegate::start(Some(wide), &variables).await
}

/// Others ask, one after the other, on connections of their own, until the attack is over: each is served in time.
async fn others_are_served_during<T>(tidegate: &Tidegate, attack: impl Future<Output = T>) -> T {
    let url = tidegate.url("/others");
    let others = async {
        let mut slowest = Duration::ZERO;
        loop {
            let client = reqwest::Client::builder().no_proxy().timeout(BOUND).build().unwrap();
            let started = Instant::now();
            let answer = client.get(&url).send().await.expect("others are served");
            assert_eq!(answer.status(), 200);
            answer.bytes().await.expect("others are served to the end");
            slowest = slowest.max(started.elapsed());
            assert!(slowest < BOUND);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let outcome = tokio::select! {
        outcome = attack => outcome,
        () = others => unreachable!(),
    };
    assert_eq!(tidegate.get("/others").await.status(), 200, "and afterwards");
    let peak = peak_mib(tidegate.pid());
    assert!(peak < MOST_MIB, "{peak} MiB");
    assert_eq!(tidegate.lines_with("panicked"), 0);
    outcome
}

/// All that comes until the other side closes.
async fn rest(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut got = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut got))
        .await
        .expect("it is let go");
    got
}

#[tokio::test]
async fn heads_that_come_by_the_byte_are_let_go_and_keep_nobody_waiting() {
    let upstream = Upstream::start();
    let tidegate = before(&upstream.url(), &[("TIDEGATE__SERVER__HEAD_TIMEOUT_MS", "1500")]).await;
    let slow = async || {
        let (mut reader, mut writer) = TcpStream::connect(tidegate.main).await.unwrap().into_split();
        let drip = async {
            for byte in b"GET / HTTP/1.1\r\nHost: h\r\nX-Slow: ".iter().chain(std::iter::repeat(&b'x')) {
                if writer.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            std::future::pending().await
        };
        tokio::select! {
            got = rest(&mut reader) => got,
            () = drip => unreachable!(),
        }
    };
    let answers = others_are_served_during(&tidegate, join_all((0..400).map(|_| slow()))).await;
    let told = answers.iter().filter(|answer| answer.starts_with(b"HTTP/1.1 408")).count();
    assert_eq!(told, answers.len());
}

#[tokio::test]
async fn bodies_that_stop_are_let_go_and_keep_nobody_waiting() {
    let upstream = Upstream::start();
    let tidegate = before(&upstream.url(), &[("TIDEGATE__SERVER__BODY_TIMEOUT_MS", "1000")]).await;
    let slow = async |framing: &str| {
        let mut stream = TcpStream::connect(tidegate.main).await.unwrap();
        stream.write_all(format!("POST /upload HTTP/1.1\r\nHost: h\r\n{framing}x").as_bytes()).await.unwrap();
        let mut status = [0; 12];
        tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut status)).await.unwrap().unwrap();
        String::from_utf8_lossy(&status).into_owned()
    };
    let lengths = join_all((0..100).map(|_| slow("Content-Length: 1000\r\n\r\n")));
    let chunks = join_all((0..100).map(|_| slow("Transfer-Encoding: chunked\r\n\r\n100\r\n")));
    let (lengths, chunks) =
        others_are_served_during(&tidegate, async { tokio::join!(lengths, chunks) }).await;
    for answer in lengths.iter().chain(&chunks) {
        assert_eq!(answer, "HTTP/1.1 408");
    }
}

#[tokio::test]
async fn a_body_of_nothing_but_chunk_extensions_or_trailers_is_let_go() {
    let upstream = Upstream::start();
    let tidegate = before(
        &upstream.url(),
        &[("TIDEGATE__SERVER__BODY_TIMEOUT_MS", "1000"), ("TIDEGATE__SERVER__HEAD_TIMEOUT_MS", "1500")],
    )
    .await;
    let endless = async |begin: &str| {
        let (mut reader, mut writer) = TcpStream::connect(tidegate.main).await.unwrap().into_split();
        let head = format!("POST /upload HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{begin}");
        writer.write_all(head.as_bytes()).await.unwrap();
        let flood = async {
            while writer.write_all(&[b'x'; 4096]).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            std::future::pending().await
        };
        tokio::select! {
            got = rest(&mut reader) => got,
            () = flood => unreachable!(),
        }
    };
    let attack = async { tokio::join!(endless("5;"), endless("0\r\nX: ")) };
    let (extension, trailer) = others_are_served_during(&tidegate, attack).await;
    for answer in [extension, trailer] {
        assert!(
            answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
}

#[tokio::test]
async fn clients_that_do_not_read_a_large_answer_are_let_go_in_bounded_memory() {
    let recorder = Recorder::start().await;
    let body = vec![b'x'; 8 << 20];
    recorder.answers((
        [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat(),
        false,
    ));
    let tidegate = before(&recorder.url(), &[("TIDEGATE__SERVER__SEND_TIMEOUT_MS", "1500")]).await;
    let attack = async {
        let mut clients = Vec::new();
        for _ in 0..20 {
            let mut stream = TcpStream::connect(tidegate.main).await.unwrap();
            stream.write_all(b"GET /canned HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
            clients.push(stream);
        }
        // A closed connection answers what is sent on it with a reset. An empty line says nothing else.
        let gone = async |stream: &mut TcpStream| {
            let deadline = Instant::now() + Duration::from_secs(20);
            while stream.write_all(b"\r\n").await.is_ok() {
                assert!(Instant::now() < deadline, "it is not let go");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        for stream in &mut clients {
            gone(stream).await;
        }
        let got = join_all(clients.iter_mut().map(rest)).await;
        assert!(got.iter().all(|bytes| bytes.len() < 8 << 20), "none of them gets it all");
    };
    others_are_served_during(&tidegate, attack).await;
}

#[tokio::test]
async fn two_thousand_idle_connections_take_little_and_keep_nobody_waiting() {
    let upstream = Upstream::start();
    let tidegate = before(&upstream.url(), &[]).await;
    let at_first = peak_mib(tidegate.pid());
    let attack = async {
        let mut idle = Vec::new();
        // Some at a time: it is about those that are idle, not about a rush.
        while idle.len() < 2000 {
            let some = (0..50).map(async |_| {
                let mut stream = TcpStream::connect(tidegate.main).await.unwrap();
                stream.write_all(b"GET /idle HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
                let mut status = [0; 12];
                tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut status))
                    .await
                    .unwrap()
                    .unwrap();
                assert_eq!(&status, b"HTTP/1.1 200");
                stream
            });
            idle.extend(join_all(some).await);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        // They are all still there.
        for stream in idle.iter_mut().step_by(100) {
            stream.write_all(b"GET /again HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        }
        idle
    };
    let idle = others_are_served_during(&tidegate, attack).await;
    let taken = peak_mib(tidegate.pid()) - at_first;
    assert!(taken < 80, "{taken} MiB for {} idle connections", idle.len());
}

/// Writes `piece` over and over for `time`, or until the other side closes; reads what comes, or does not.
async fn flood(
    mut stream: TcpStream,
    mut piece: impl FnMut() -> Vec<u8>,
    reads: bool,
    time: Duration,
) -> bool {
    let (mut reader, mut writer) = stream.split();
    let reading = async {
        let mut buffer = vec![0; 64 * 1024];
        while reads && reader.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
        if !reads {
            std::future::pending::<()>().await;
        }
    };
    let writing = async { while writer.write_all(&piece()).await.is_ok() {} };
    tokio::select! {
        () = reading => true,
        () = writing => true,
        () = tokio::time::sleep(time) => false,
    }
}

const LONG: Duration = Duration::from_secs(3);

#[tokio::test]
async fn streams_that_are_reset_at_once_keep_nobody_waiting() {
    let upstream = Upstream::start();
    let tidegate = before(&upstream.url(), &[]).await;
    let attack = join_all((0..4).map(async |_| {
        let stream = frames::connect(tidegate.main).await;
        let mut next = 1;
        let resets = move || {
            let mut piece = Vec::new();
            for _ in 0..100 {
                piece.extend(frames::request(next, "/slow/500"));
                piece.extend(frames::frame(RST_STREAM, 0, next, &8u32.to_be_bytes()));
                next += 2;
            }
            piece
        };
        flood(stream, resets, true, LONG).await
    }));
    let ended = others_are_served_during(&tidegate, attack).await;
    assert!(ended.iter().all(|ended| *ended), "a connection that does nothing else is ended: {ended:?}");
    assert_eq!(
        tidegate.lines_with(" h2::"),
        0,
        "no line of the server library for each: {}",
        tidegate.output()
    );
}

#[tokio::test]
async fn headers_that_go_on_without_end_are_let_go_in_bounded_memory() {
    let upstream = Upstream::start();
    let tidegate = before(&upstream.url(), &[]).await;
    let endless = async |first: Vec<u8>, more: Vec<u8>| {
        let mut stream = frames::connect(tidegate.main).await;
        stream.write_all(&frames::frame(HEADERS, END_STREAM, 1, &first)).await.unwrap();
        flood(stream, move || frames::frame(CONTINUATION, 0, 1, &more), true, LONG).await
    };
    let large = frames::field("x", &"y".repeat(16_000));
    let attack = async {
        tokio::join!(
            endless(frames::get("/"), large),
            endless(frames::get("/"), Vec::new()),
            // Never complete, so that nothing of it can be used.
            endless([frames::get("/"), vec![0, 1, b'x', 127, 0xff, 0xff, 0x7f]].concat(), vec![b'y'; 16_000]),
        )
    };
    let ended = others_are_served_during(&tidegate, attack).await;
    assert_eq!(ended, (true, true, true));
}

#[tokio::test]
async fn frames_that_only_want_an_answer_take_no_memory_where_it_is_not_read() {
    let upstream = Upstream::start();
    let tidegate = before(&upstream.url(), &[]).await;
    let endless = async |piece: Vec<u8>, reads| {
        let stream = frames::connect(tidegate.main).await;
        flood(stream, move || piece.repeat(500), reads, LONG).await
    };
    let ping = frames::frame(PING, 0, 0, &[0; 8]);
    let settings = frames::frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]);
    let window = frames::frame(WINDOW_UPDATE, 0, 0, &0u32.to_be_bytes());
    let unknown = frames::frame(0xbe, 0, 0, &[0; 64]);
    let attack = async {
        tokio::join!(
            endless(ping.clone(), false),
            endless(ping, true),
            endless(settings.clone(), false),
            endless(settings, true),
            endless(window, true),
            endless(unknown, true),
        )
    };
    others_are_served_during(&tidegate, attack).await;
}

#[tokio::test]
async fn many_streams_and_large_lists_of_headers_take_bounded_memory_and_no_panic() {
    let upstream = Upstream::start();
    let tidegate = before(&upstream.url(), &[]).await;
    let many = async {
        let stream = frames::connect(tidegate.main).await;
        let mut next = 1;
        let streams = move || {
            let piece = (0..50).flat_map(|at| frames::request(next + 2 * at, "/slow/3000")).collect();
            next += 100;
            piece
        };
        flood(stream, streams, true, LONG).await
    };
    // One large value in the table of HPACK, named by a byte each, thousands of times.
    let bomb = async {
        let mut stream = frames::connect(tidegate.main).await;
        let large = [&[0x40][..], &frames::text("x"), &frames::text(&"y".repeat(3_900))].concat();
        stream
            .write_all(&frames::frame(
                HEADERS,
                END_STREAM | END_HEADERS,
                1,
                &[frames::get("/"), large].concat(),
            ))
            .await
            .unwrap();
        let mut next = 3;
        let bombs = move || {
            let block = [frames::get("/"), vec![0xbe; 4_000]].concat();
            next += 2;
            frames::frame(HEADERS, END_STREAM | END_HEADERS, next - 2, &block)
        };
        flood(stream, bombs, true, LONG).await
    };
    // More names than a map of headers has room for.
    let names = async {
        let mut stream = frames::connect(tidegate.main).await;
        let mut name = 0;
        stream.write_all(&frames::frame(HEADERS, END_STREAM, 1, &frames::get("/"))).await.unwrap();
        for piece in 0..25 {
            let mut block = Vec::new();
            while block.len() < 16_000 {
                block.extend(frames::field(&format!("x{name:x}"), ""));
                name += 1;
            }
            let flags = if piece == 24 { END_HEADERS } else { 0 };
            if stream.write_all(&frames::frame(CONTINUATION, flags, 1, &block)).await.is_err() {
                break;
            }
        }
        flood(stream, || frames::frame(DATA, 0, 3, &[]), true, Duration::from_secs(1)).await
    };
    others_are_served_during(&tidegate, async { tokio::join!(many, bomb, names) }).await;
}
