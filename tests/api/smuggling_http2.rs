//! Requests by HTTP/2 that would be two, or others, when they are written down as HTTP/1.1 for the upstream.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::smuggling::before;
use crate::support::frames::{self, DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, field};
use crate::support::recorder::Recorder;

const GOAWAY: u8 = 7;

/// How a stream ended: a status of the static table, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Ok,
    BadRequest,
    Reset,
}

/// Sends headers and a body on a stream and waits for its answer.
async fn ask(tidegate: std::net::SocketAddr, headers: &[(&str, &str)], body: Option<&str>) -> Told {
    let mut stream = frames::connect(tidegate).await;
    let block: Vec<u8> = headers.iter().flat_map(|(name, value)| field(name, value)).collect();
    let end = if body.is_none() { END_STREAM } else { 0 };
    stream.write_all(&frames::frame(HEADERS, end | END_HEADERS, 1, &block)).await.unwrap();
    if let Some(body) = body {
        let _ = stream.write_all(&frames::frame(DATA, END_STREAM, 1, body.as_bytes())).await;
    }
    let reading = async {
        loop {
            let mut head = [0; 9];
            if stream.read_exact(&mut head).await.is_err() {
                return Told::Reset;
            }
            let mut payload =
                vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
            stream.read_exact(&mut payload).await.unwrap();
            // A change of the table's size may come first.
            let first = payload.iter().find(|&&byte| byte & 0xe0 != 0x20);
            match (head[3], first) {
                (HEADERS, Some(0x88)) => return Told::Ok,
                (HEADERS, Some(0x8c)) => return Told::BadRequest,
                (HEADERS, other) => panic!("another status: {other:x?} of {payload:x?}"),
                (RST_STREAM | GOAWAY, _) => return Told::Reset,
                _ => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), reading).await.expect("an answer")
}

#[tokio::test]
async fn a_request_by_http2_reaches_the_upstream_as_one_or_not_at_all() {
    let recorder = Recorder::start().await;
    let tidegate = before(&recorder).await;
    let get = [(":method", "GET"), (":scheme", "http"), (":path", "/a"), (":authority", "h")];
    let post = [(":method", "POST"), (":scheme", "http"), (":path", "/a"), (":authority", "h")];
    let with =
        |base: &[(&'static str, &'static str)], more: &[(&'static str, &'static str)]| [base, more].concat();
    let but = |name: &str, value: &'static str| {
        get.map(|(one, was)| (one, if one == name { value } else { was })).to_vec()
    };
    let without = |name: &str| get.iter().copied().filter(|(one, _)| *one != name).collect::<Vec<_>>();

    let legal = [
        ("a GET", get.to_vec(), None, "GET /a"),
        ("a body", post.to_vec(), Some("hello"), "POST /a hello"),
        ("a body with its length", with(&post, &[("content-length", "5")]), Some("hello"), "POST /a hello"),
        (
            "a body that looks like a request",
            post.to_vec(),
            Some("0\r\n\r\nGET /s HTTP/1.1"),
            "POST /a 0\r\n\r\nGET /s HTTP/1.1",
        ),
        ("te: trailers", with(&get, &[("te", "trailers")]), None, "GET /a"),
        ("Host as :authority", with(&get, &[("host", "h")]), None, "GET /a"),
    ];
    for (name, headers, body, wanted) in legal {
        assert_eq!(ask(tidegate.main, &headers, body).await, Told::Ok, "{name}");
        assert_eq!(recorder.requests().pop().unwrap().in_short(), wanted, "{name}");
    }
    let reached = recorder.requests().len();

    let malformed = [
        ("transfer-encoding", with(&post, &[("transfer-encoding", "chunked")]), Some("0\r\n\r\n")),
        ("connection", with(&get, &[("connection", "x-a")]), None),
        ("keep-alive", with(&get, &[("keep-alive", "1")]), None),
        ("proxy-connection", with(&get, &[("proxy-connection", "close")]), None),
        ("upgrade", with(&get, &[("upgrade", "websocket")]), None),
        ("te: chunked", with(&get, &[("te", "chunked")]), None),
        ("a name in upper case", with(&get, &[("X-A", "b")]), None),
        ("a name with a colon", with(&get, &[("x:a", "b")]), None),
        ("a name with CRLF", with(&get, &[("x\r\ny", "b")]), None),
        ("a name with a space", with(&get, &[("x y", "b")]), None),
        ("an empty name", with(&get, &[("", "b")]), None),
        ("a value with CRLF", with(&get, &[("x", "a\r\nHost: i\r\n\r\nGET /smuggled HTTP/1.1")]), None),
        ("a value with LF", with(&get, &[("x", "a\ntransfer-encoding: chunked")]), None),
        ("a value with CR", with(&get, &[("x", "a\rb")]), None),
        ("a value with NUL", with(&get, &[("x", "a\0b")]), None),
        ("a pseudo-header after others", [&[("x", "y")][..], &get].concat(), None),
        ("an unknown pseudo-header", with(&get, &[(":x", "y")]), None),
        (":status", with(&get, &[(":status", "200")]), None),
        ("two paths", with(&get, &[(":path", "/b")]), None),
        ("two methods", with(&get, &[(":method", "POST")]), None),
        ("two authorities", with(&get, &[(":authority", "i")]), None),
        ("no path", without(":path"), None),
        ("no method", without(":method"), None),
        ("no scheme", without(":scheme"), None),
        ("no authority", without(":authority"), None),
        ("an empty path", but(":path", ""), None),
        ("a path without a slash", but(":path", "a"), None),
        ("a path with a space", but(":path", "/a HTTP/1.1"), None),
        ("a path with CRLF", but(":path", "/a HTTP/1.1\r\nx: y"), None),
        ("* with GET", but(":path", "*"), None),
        ("a URL for a path", but(":path", "http://i/a"), None),
        ("a method with a space", but(":method", "GET /smuggled HTTP/1.1"), None),
        ("a method with CRLF", but(":method", "GET\r\n"), None),
        ("a method in lower case", but(":method", "get"), None),
        ("an authority with a user", but(":authority", "u@h"), None),
        ("an authority with a path", but(":authority", "h/x"), None),
        ("an authority with CRLF", but(":authority", "h\r\nx: y"), None),
        ("an empty authority", but(":authority", ""), None),
        ("Host against :authority", with(&get, &[("host", "i")]), None),
        ("two Hosts", with(&get, &[("host", "h"), ("host", "h")]), None),
        ("a length that is too long", with(&post, &[("content-length", "6")]), Some("hello")),
        ("a length that is too short", with(&post, &[("content-length", "4")]), Some("hello")),
        ("a length without a body", with(&post, &[("content-length", "5")]), None),
        ("two lengths", with(&post, &[("content-length", "5"), ("content-length", "5")]), Some("hello")),
        ("a length that is a list", with(&post, &[("content-length", "5, 5")]), Some("hello")),
        ("a signed length", with(&post, &[("content-length", "+5")]), Some("hello")),
        ("a padded length", with(&post, &[("content-length", "005")]), Some("hello")),
    ];
    let mut wrong = Vec::new();
    for (name, headers, body) in malformed {
        let told = ask(tidegate.main, &headers, body).await;
        let requests = recorder.requests();
        if told == Told::Ok || requests.len() > reached {
            wrong.push(format!("{name}: {told:?}, {:?}", &requests[reached.min(requests.len())..]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(ask(tidegate.main, &get, None).await, Told::Ok);
    // Whatever came of the others is the beginning of a request at most.
    assert!(!recorder.bytes().concat().windows(8).any(|piece| piece == b"smuggled"));
}
