//! Whatever a client of HTTP/1.1 sends, and however its bytes are cut: each request that is served is one that was sent, in
//! order and whole; each has its answer, framed by its own method and version; what is malformed gets a 4xx and the end.
//!
//! Shared with fuzz/fuzz_targets/stream.rs.

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use actix_http::body::BoxBody;
use actix_http::{HttpService, KeepAlive, Request, Response, StatusCode};
use actix_service::{
    IntoServiceFactory as _, Service as _, ServiceFactory as _, ServiceFactoryExt as _, fn_service,
};
use futures_util::StreamExt as _;
use tidegate::doors::wire::framer::HeadLimits;
use tidegate::doors::wire::in_flight::CountRequests;
use tidegate::doors::wire::{Patience, Wire, accept};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::LocalSet;

/// Method, target, body, version 1.1, and whether the connection goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    method: String,
    target: String,
    body: Vec<u8>,
    new: bool,
    goes_on: bool,
}

const LINES: [&str; 12] = [
    "Connection: close\r\n",
    "Connection: keep-alive\r\n",
    "X-Content-Length: 9\r\n",
    "Expect: 100-continue\r\n",
    "Upgrade: h2c\r\n",
    "X:\r\n",
    "Accept: a, b;q=0.1\r\n",
    "TE: trailers\r\n",
    "Content-Type: text/plain\r\n",
    "Cookie: GET / HTTP/1.1\r\n",
    "Host2: h\r\n",
    "Keep-Alive: timeout=5\r\n",
];

/// Holds the stream layer against one input. Its first byte says whether all of it is raw, else each request is made of a few
/// bytes; the second how it is cut.
///
/// # Panics
/// When an answer or a request that was served is wrong.
pub(crate) fn hold(data: &[u8]) {
    let [kind, cut, rest @ ..] = data else { return };
    let bytes = if kind % 2 == 0 { rest.to_vec() } else { made(rest) };
    // A tunnel has no next request.
    let lower = bytes.to_ascii_lowercase();
    if lower.windows(9).any(|nine| nine == b"websocket") || lower.windows(7).any(|seven| seven == b"connect")
    {
        return;
    }
    thread_local!(static RUNTIME: (tokio::runtime::Runtime, LocalSet) = (
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"),
        LocalSet::new(),
    ));
    let (seen, answers) =
        RUNTIME.with(|(runtime, set)| set.block_on(runtime, serve(&bytes, usize::from(*cut) + 1)));
    check(&bytes, &seen, &answers);
}

fn made(data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in data.chunks(8).take(12) {
        let byte = |at: usize| piece.get(at).copied().unwrap_or_default();
        let method = ["GET", "HEAD", "POST", "PUT", "OPTIONS", "M-SEARCH"][usize::from(byte(0)) % 6];
        let version = if byte(1) % 5 == 0 { "HTTP/1.0" } else { "HTTP/1.1" };
        let mut head = format!("{method} /{} {version}\r\nHost: h\r\n", byte(2));
        for at in 3..5 {
            head += LINES.get(usize::from(byte(at)) % 40).unwrap_or(&"");
        }
        let body = vec![b'a' + byte(5) % 26; usize::from(byte(5))];
        bytes.extend(head.as_bytes());
        match byte(6) % 4 {
            0 => bytes.extend(b"\r\n"),
            1 => {
                bytes.extend(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
                bytes.extend(&body);
            }
            2 => {
                bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n");
                for chunk in body.chunks(usize::from(byte(7)) + 1) {
                    bytes.extend(format!("{:x};x=y\r\n", chunk.len()).as_bytes());
                    bytes.extend(chunk);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(b"0\r\nX-T: 1\r\n\r\n");
            }
            // Spoilt somewhere.
            _ => {
                bytes.extend(b"\r\n");
                let at = usize::from(byte(7)) % bytes.len();
                bytes[at] ^= byte(5) | 1;
            }
        }
    }
    bytes
}

/// What the service saw, and all that came back.
async fn serve(bytes: &[u8], cut: usize) -> (Vec<Asked>, Vec<u8>) {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let (client, server) = UnixStream::pair().expect("a pair");
    let patience = Patience {
        head: Duration::from_secs(60),
        idle: Duration::from_secs(60),
        body: Duration::from_secs(60),
        write: Duration::from_secs(60),
        heads: HeadLimits { target: 256, headers: 4096 },
    };
    let log = Rc::clone(&seen);
    let echo = move |mut request: Request| {
        let log = Rc::clone(&log);
        async move {
            let (mut payload, mut body) = (request.take_payload(), Vec::new());
            while let Some(piece) = payload.next().await {
                let Ok(piece) = piece else {
                    return Ok::<_, Infallible>(Response::with_body(
                        StatusCode::BAD_REQUEST,
                        BoxBody::new(""),
                    ));
                };
                body.extend_from_slice(&piece);
            }
            let head = request.head();
            log.borrow_mut().push(Asked {
                method: head.method.to_string(),
                target: head.uri.to_string(),
                body: body.clone(),
                new: head.version == actix_http::Version::HTTP_11,
                goes_on: head.connection_type() == actix_http::ConnectionType::KeepAlive,
            });
            Ok(Response::with_body(StatusCode::OK, BoxBody::new(body)))
        }
    };
    let echo = fn_service(echo).map_err(|error: Infallible| match error {});
    let service = HttpService::build()
        .keep_alive(KeepAlive::Os)
        .client_request_timeout(Duration::ZERO)
        .client_disconnect_timeout(Duration::ZERO)
        .h1_allow_half_closed(true)
        .on_connect_ext(|wire: &Wire, data| _ = data.insert(wire.line()))
        .finish(CountRequests(echo.into_factory()));
    let serving = tokio::task::spawn_local(async move {
        let Ok(service) = service.new_service(()).await else { return };
        let Ok((wire, protocol, peer)) = accept::unix(server, patience).await else { return };
        if protocol == actix_http::Protocol::Http1 {
            let _ = service.call((wire.may_half_close(true), protocol, peer)).await;
        }
    });
    let (mut reader, mut writer) = client.into_split();
    let bytes = bytes.to_vec();
    let writing = tokio::task::spawn_local(async move {
        for piece in bytes.chunks(cut) {
            if writer.write_all(piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        let _ = writer.shutdown().await;
    });
    let mut answers = Vec::new();
    let _ = reader.read_to_end(&mut answers).await;
    writing.abort();
    let _ = serving.await;
    let seen = seen.borrow().clone();
    (seen, answers)
}

/// The requests in these bytes, as a reader sees them that has all of them at once.
fn reference(mut bytes: &[u8]) -> Vec<Asked> {
    let mut all = Vec::new();
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 96];
        let mut request = httparse::Request::new(&mut headers);
        let Ok(httparse::Status::Complete(length)) = request.parse(bytes) else { return all };
        bytes = &bytes[length..];
        let values = |name: &str| -> Vec<&[u8]> {
            let named = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
            named.map(|header| header.value.trim_ascii()).collect()
        };
        let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
        let body = match (&lengths[..], &codings[..]) {
            ([], []) => Some((Vec::new(), 0)),
            ([length], []) => std::str::from_utf8(length)
                .ok()
                .and_then(|length| length.parse::<usize>().ok())
                .and_then(|length| Some((bytes.get(..length)?.to_vec(), length))),
            ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") => chunks(bytes),
            _ => None,
        };
        let Some((body, length)) = body else { return all };
        bytes = &bytes[length..];
        all.push(Asked {
            method: request.method.unwrap_or_default().to_owned(),
            // Without what is behind `#`, which is not for servers.
            target: {
                let written = request.path.unwrap_or_default();
                written.parse::<actix_http::Uri>().map_or_else(|_| written.to_owned(), |uri| uri.to_string())
            },
            body,
            new: request.version == Some(1),
            goes_on: true,
        });
    }
}

fn chunks(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut at) = (Vec::new(), 0);
    let line = |at: usize| bytes[at..].windows(2).position(|two| two == b"\r\n").map(|end| at + end);
    loop {
        let end = line(at)?;
        let size = bytes[at..end].split(|&byte| byte == b';').next()?;
        let size =
            usize::from_str_radix(std::str::from_utf8(size).ok()?.trim_end_matches([' ', '\t']), 16).ok()?;
        at = end + 2;
        if size == 0 {
            break;
        }
        body.extend_from_slice(bytes.get(at..at.checked_add(size)?)?);
        at += size;
        (bytes.get(at..at + 2)? == b"\r\n").then_some(())?;
        at += 2;
    }
    while line(at)? != at {
        at = line(at)? + 2;
    }
    Some((body, at + 2))
}

fn check(bytes: &[u8], seen: &[Asked], answers: &[u8]) {
    let sent = reference(bytes);
    let shown =
        || (String::from_utf8_lossy(bytes).into_owned(), String::from_utf8_lossy(answers).into_owned());
    assert!(seen.len() <= sent.len(), "more were served than were sent: {seen:?} {:?}", shown());
    for (one, other) in seen.iter().zip(&sent) {
        assert_eq!(
            (&one.method, &one.target, &one.body, one.new),
            (&other.method, &other.target, &other.body, other.new),
            "{:?}",
            shown()
        );
    }
    // Nothing behind a last answer is served.
    assert!(seen.iter().rev().skip(1).all(|one| one.goes_on), "{seen:?}");
    let mut rest = answers;
    for one in seen {
        while rest.starts_with(b"HTTP/1.1 100 ") {
            rest = &rest[b"HTTP/1.1 100 Continue\r\n\r\n".len()..];
        }
        let (status, version, length, head) =
            answer(rest).unwrap_or_else(|| panic!("no answer: {:?}", shown()));
        assert_eq!((status, version), (200, u8::from(one.new)), "{:?}", shown());
        assert_eq!(length, one.body.len(), "{:?}", shown());
        rest = &rest[head..];
        if one.method != "HEAD" {
            assert!(rest.starts_with(&one.body), "{:?}", shown());
            rest = &rest[length..];
        }
    }
    while rest.starts_with(b"HTTP/1.1 100 ") {
        rest = &rest[b"HTTP/1.1 100 Continue\r\n\r\n".len()..];
    }
    let is_last = seen.last().is_some_and(|one| !one.goes_on);
    if seen.len() < sent.len() && !is_last {
        assert!(!rest.is_empty(), "one that was sent was neither served nor refused: {sent:?} {:?}", shown());
    }
    // Behind them: nothing, or refusals of what is malformed. (The server library writes a second one where the reader of a
    // body wrote the first.)
    while !rest.is_empty() {
        let (status, _, length, head) = answer(rest).unwrap_or_else(|| panic!("no answer: {:?}", shown()));
        assert!((400..500).contains(&status), "{:?}", shown());
        rest = &rest[(head + length).min(rest.len())..];
    }
}

/// Status, minor version, length, and how long its head is.
fn answer(bytes: &[u8]) -> Option<(u16, u8, usize, usize)> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(head)) = response.parse(bytes) else { return None };
    let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok()).unwrap_or(0);
    Some((response.code?, response.version?, length, head))
}
