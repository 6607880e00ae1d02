//! Requests that could be read in two ways. Whatever a client sends, the upstream gets exactly what was judged or nothing,
//! the client is told that it is its fault, and where the framing is in doubt its connection ends.
//!
//! In the tables `|` is CRLF; every other control character stands as it is. Each malformed request is followed by one for
//! `/smuggled`, and stands beside a legal one that is served.

use crate::support::process::Tidegate;
use crate::support::recorder::{Recorder, speak};

/// A name, what is sent, what reaches the upstream of it, and the last status: 200 leaves the connection open.
type Case = (&'static str, &'static str, &'static [&'static str], u16);

/// Malformed in their framing: where the body ends.
const BODIES: &[Case] = &[
    ("a length", "POST /a HTTP/1.1|Host: h|Content-Length: 5||hello", &["POST /a hello"], 200),
    ("chunks", "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked||5|hello|0||", &["POST /a hello"], 200),
    ("CL.TE", "POST /a HTTP/1.1|Host: h|Content-Length: 6|Transfer-Encoding: chunked||0||G", &[], 400),
    ("TE.CL", "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked|Content-Length: 4||5|hello|0||", &[], 400),
    ("CL: 0 with TE", "POST /a HTTP/1.1|Host: h|Content-Length: 0|Transfer-Encoding: chunked||0||", &[], 400),
    (
        "TE.TE: a second coding that is none",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked|Transfer-Encoding: x||0||",
        &[],
        400,
    ),
    (
        "TE.TE: first one that is none",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding: x|Transfer-Encoding: chunked||0||",
        &[],
        400,
    ),
    (
        "chunked twice",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked|Transfer-Encoding: chunked||0||",
        &[],
        400,
    ),
    ("chunked, chunked", "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked, chunked||0||", &[], 400),
    ("gzip, chunked", "POST /a HTTP/1.1|Host: h|Transfer-Encoding: gzip, chunked||0||", &[], 400),
    ("chunked, gzip", "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked, gzip||0||", &[], 400),
    ("identity", "POST /a HTTP/1.1|Host: h|Transfer-Encoding: identity||", &[], 400),
    (
        "identity with a length",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding: identity|Content-Length: 5||hello",
        &[],
        400,
    ),
    ("xchunked", "POST /a HTTP/1.1|Host: h|Transfer-Encoding: xchunked||0||", &[], 400),
    ("chunkedx", "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunkedx||0||", &[], 400),
    ("\"chunked\"", "POST /a HTTP/1.1|Host: h|Transfer-Encoding: \"chunked\"||0||", &[], 400),
    ("chunked;q=1", "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked;q=1||0||", &[], 400),
    ("chunked,", "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked,||0||", &[], 400),
    ("an empty coding", "POST /a HTTP/1.1|Host: h|Transfer-Encoding:||0||", &[], 400),
    (
        "a vertical tab before chunked",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding: \u{b}chunked||0||",
        &[],
        400,
    ),
    ("a form feed after chunked", "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked\u{c}||0||", &[], 400),
    (
        "a no-break space before chunked",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding: \u{a0}chunked||0||",
        &[],
        400,
    ),
    (
        "Chunked with spaces and capitals",
        "POST /a HTTP/1.1|Host: h|TRANSFER-encoding:\t ChunKED \t||5|hello|0||",
        &["POST /a hello"],
        200,
    ),
    (
        "a space before the colon of TE",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding : chunked|Content-Length: 3||0||",
        &[],
        400,
    ),
    ("a tab before the colon of CL", "POST /a HTTP/1.1|Host: h|Content-Length\t: 5||hello", &[], 400),
    ("TE folded to the next line", "POST /a HTTP/1.1|Host: h|Transfer-Encoding:| chunked||0||", &[], 400),
    (
        "TE hidden in a folded line",
        "POST /a HTTP/1.1|Host: h|X: y| Transfer-Encoding: chunked||0||",
        &[],
        400,
    ),
    (
        "a space before the first header",
        "POST /a HTTP/1.1| Transfer-Encoding: chunked|Host: h||0||",
        &[],
        400,
    ),
    ("TE after a bare CR", "POST /a HTTP/1.1|Host: h|X: y\rTransfer-Encoding: chunked||0||", &[], 400),
    ("a bare CR for the line end", "POST /a HTTP/1.1|Host: h\rContent-Length: 5||hello", &[], 400),
    ("a NUL in the name of TE", "POST /a HTTP/1.1|Host: h|Transfer-Encoding\0: chunked||0||", &[], 400),
    ("a NUL in its value", "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked\0||0||", &[], 400),
    ("TE with HTTP/1.0", "POST /a HTTP/1.0|Host: h|Transfer-Encoding: chunked||0||", &[], 400),
    (
        "TE and CL with HTTP/1.0",
        "POST /a HTTP/1.0|Host: h|Content-Length: 3|Transfer-Encoding: chunked||0||",
        &[],
        400,
    ),
    (
        "TE named in Connection",
        "POST /a HTTP/1.1|Host: h|Connection: Transfer-Encoding|Transfer-Encoding: chunked||5|hello|0||",
        &["POST /a hello"],
        200,
    ),
    (
        "CL named in Connection",
        "POST /a HTTP/1.1|Host: h|Connection: Content-Length|Content-Length: 5||hello",
        &["POST /a hello"],
        200,
    ),
    ("Host named in Connection", "GET /a HTTP/1.1|Host: h|Connection: Host||", &["GET /a"], 200),
    ("two lengths", "POST /a HTTP/1.1|Host: h|Content-Length: 5|Content-Length: 6||hello", &[], 400),
    (
        "twice the same length",
        "POST /a HTTP/1.1|Host: h|Content-Length: 5|Content-Length: 5||hello",
        &[],
        400,
    ),
    ("a list of lengths", "POST /a HTTP/1.1|Host: h|Content-Length: 5, 5||hello", &[], 400),
    ("+5", "POST /a HTTP/1.1|Host: h|Content-Length: +5||hello", &[], 400),
    ("-5", "POST /a HTTP/1.1|Host: h|Content-Length: -5||hello", &[], 400),
    ("-0", "POST /a HTTP/1.1|Host: h|Content-Length: -0||", &[], 400),
    ("005", "POST /a HTTP/1.1|Host: h|Content-Length: 005||hello", &[], 400),
    ("00", "POST /a HTTP/1.1|Host: h|Content-Length: 00||", &[], 400),
    ("0x5", "POST /a HTTP/1.1|Host: h|Content-Length: 0x5||hello", &[], 400),
    ("5.0", "POST /a HTTP/1.1|Host: h|Content-Length: 5.0||hello", &[], 400),
    ("5e0", "POST /a HTTP/1.1|Host: h|Content-Length: 5e0||hello", &[], 400),
    ("5 5", "POST /a HTTP/1.1|Host: h|Content-Length: 5 5||hello", &[], 400),
    ("1_0", "POST /a HTTP/1.1|Host: h|Content-Length: 1_0||hello", &[], 400),
    ("an empty length", "POST /a HTTP/1.1|Host: h|Content-Length:||hello", &[], 400),
    ("a length with a word", "POST /a HTTP/1.1|Host: h|Content-Length: five||hello", &[], 400),
    ("more than 64 bits", "POST /a HTTP/1.1|Host: h|Content-Length: 18446744073709551621||hello", &[], 400),
    ("64 bits", "POST /a HTTP/1.1|Host: h|Content-Length: 18446744073709551615||hello", &[], 400),
    ("arabic digits", "POST /a HTTP/1.1|Host: h|Content-Length: ٥||hello", &[], 400),
    (
        "a length with spaces around it",
        "POST /a HTTP/1.1|Host: h|Content-Length: \t 5 \t||hello",
        &["POST /a hello"],
        200,
    ),
    (
        "a GET with a body, then another",
        "GET /a HTTP/1.1|Host: h|Content-Length: 5||helloGET /b HTTP/1.1|Host: h||",
        &["GET /a hello", "GET /b"],
        200,
    ),
    (
        "a body that looks like a request",
        "POST /a HTTP/1.1|Host: h|Content-Length: 33||GET /smuggled HTTP/1.1|Host: h||||",
        &["POST /a GET /smuggled HTTP/1.1\r\nHost: h"],
        200,
    ),
    (
        "no length with a POST",
        "POST /a HTTP/1.1|Host: h||GET /b HTTP/1.1|Host: h||",
        &["POST /a", "GET /b"],
        200,
    ),
    (
        "chunks with extensions",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked||5;a=b;c=\"d\"|hello|0;x||",
        &["POST /a hello"],
        200,
    ),
    (
        "chunks with trailers",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked||5|hello|0|X-T: 1||",
        &["POST /a hello"],
        200,
    ),
    (
        "trailers that name framing",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked||5|hello|0|Content-Length: 50|Transfer-Encoding: x|Host: i||",
        &["POST /a hello"],
        200,
    ),
    (
        "padded chunk sizes",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked||0005|hello|000||",
        &["POST /a hello"],
        200,
    ),
    ("a chunk's size of 0x5", "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked||0x5|hello|0||", &[], 400),
    ("+5 for a chunk's size", "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked||+5|hello|0||", &[], 400),
    ("-5 for a chunk's size", "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked||-5|hello|0||", &[], 400),
    (
        "a space before a chunk's size",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked|| 5|hello|0||",
        &[],
        400,
    ),
    (
        "a chunk's size with a space in it",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked||0 5|hello|0||",
        &[],
        400,
    ),
    (
        "a chunk's size of 65 bits",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked||10000000000000005|hello|0||",
        &[],
        400,
    ),
    (
        "a chunk's size of 64 bits",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked||fffffffffffffffff|hello|0||",
        &[],
        400,
    ),
    ("no size of a chunk", "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked|||hello|0||", &[], 400),
    (
        "a size of a chunk that is a word",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked||five|hello|0||",
        &[],
        400,
    ),
    (
        "a bare LF after a chunk's size",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked||5\nhello|0||",
        &[],
        400,
    ),
    (
        "a bare CR after a chunk's size",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked||5\rhello|0||",
        &[],
        400,
    ),
    (
        "a bare LF in a chunk's extension",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked||5;a\nb|hello|0||",
        &[],
        400,
    ),
    (
        "a bare LF in the last chunk's extension",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked||0;a\nb||",
        &[],
        400,
    ),
    (
        "a NUL in a chunk's extension",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked||5;a=\0|hello|0||",
        &[],
        400,
    ),
    (
        "a chunk that is longer than its size",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked||4|hello|0||",
        &[],
        400,
    ),
    (
        "a chunk without its line end",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked||5|hello0||",
        &[],
        400,
    ),
    (
        "a chunk that ends in a bare LF",
        "POST /a HTTP/1.1|Host: h|Transfer-Encoding: chunked||5|hello\n0||",
        &[],
        400,
    ),
    (
        "upgrade to WebSocket with a length",
        "GET /a HTTP/1.1|Host: h|Connection: Upgrade|Upgrade: websocket|Content-Length: 5||hello",
        &[],
        400,
    ),
    (
        "upgrade to WebSocket with chunks",
        "GET /a HTTP/1.1|Host: h|Connection: Upgrade|Upgrade: websocket|Transfer-Encoding: chunked||5|hello|0||",
        &[],
        400,
    ),
    (
        "upgrade to h2c",
        "GET /a HTTP/1.1|Host: h|Connection: Upgrade, HTTP2-Settings|Upgrade: h2c|HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA||",
        &["GET /a"],
        200,
    ),
];

/// Malformed in their heads: who is asked for what.
const HEADS: &[Case] = &[
    // httparse takes a bare LF for a line's end, as nginx does; it is written anew as CRLF.
    ("bare LFs", "GET /a HTTP/1.1\nHost: h\n\n", &["GET /a"], 200),
    (
        "a bare LF before TE",
        "POST /a HTTP/1.1|Host: h|X: y\nTransfer-Encoding: chunked||5|hello|0||",
        &["POST /a hello"],
        200,
    ),
    (
        "a bare LF before TE, beside CL",
        "POST /a HTTP/1.1|Host: h|Content-Length: 3|X: y\nTransfer-Encoding: chunked||0||",
        &[],
        400,
    ),
    ("a bare LF before a second Host", "GET /a HTTP/1.1|Host: h\nHost: i||", &[], 400),
    ("plain", "GET /a?b=c HTTP/1.1|Host: h||", &["GET /a?b=c"], 200),
    ("an empty line before", "||GET /a HTTP/1.1|Host: h||", &["GET /a"], 200),
    ("two in one go", "GET /a HTTP/1.1|Host: h||GET /b HTTP/1.1|Host: h||", &["GET /a", "GET /b"], 200),
    // The good one is given up with the other: whether it was one is in doubt.
    ("no Host", "GET /a HTTP/1.1||", &[], 400),
    ("two Hosts", "GET /a HTTP/1.1|Host: h|Host: i||", &[], 400),
    ("twice the same Host", "GET /a HTTP/1.1|Host: h|Host: h||", &[], 400),
    ("an empty Host", "GET /a HTTP/1.1|Host:||", &[], 400),
    ("a list of Hosts", "GET /a HTTP/1.1|Host: h, i||", &[], 400),
    ("Host with a user", "GET /a HTTP/1.1|Host: u@h||", &[], 400),
    ("Host with a path", "GET /a HTTP/1.1|Host: h/x||", &[], 400),
    ("Host with a query", "GET /a HTTP/1.1|Host: h?x||", &[], 400),
    ("Host with a space", "GET /a HTTP/1.1|Host: h i||", &[], 400),
    ("Host with a backslash", "GET /a HTTP/1.1|Host: h\\i||", &[], 400),
    ("Host with two ports", "GET /a HTTP/1.1|Host: h:80:81||", &[], 400),
    ("Host with a port that is a word", "GET /a HTTP/1.1|Host: h:http||", &[], 400),
    ("Host that is not ASCII", "GET /a HTTP/1.1|Host: hä||", &[], 400),
    ("Host with brackets around a name", "GET /a HTTP/1.1|Host: [h]||", &[], 400),
    ("Host with a port", "GET /a HTTP/1.1|Host: h:8080||", &["GET /a"], 200),
    ("Host that is an address", "GET /a HTTP/1.1|Host: [::1]:80||", &["GET /a"], 200),
    ("HTTP/1.0 without Host", "GET /a HTTP/1.0|Connection: keep-alive||", &["GET /a"], 200),
    ("absolute form", "GET http://h/a HTTP/1.1|Host: h||", &["GET /a"], 200),
    ("absolute form against another Host", "GET http://h/a HTTP/1.1|Host: i||", &["GET /a"], 200),
    ("absolute form with a user", "GET http://u:p@h/a HTTP/1.1|Host: h||", &[], 400),
    ("absolute form of another protocol", "GET ftp://h/a HTTP/1.1|Host: h||", &[], 400),
    ("absolute form without a host", "GET http:///a HTTP/1.1|Host: h||", &[], 400),
    ("an authority alone", "GET h:80 HTTP/1.1|Host: h||", &[], 400),
    ("a word for a target", "GET a HTTP/1.1|Host: h||", &[], 400),
    ("a query for a target", "GET ?a HTTP/1.1|Host: h||", &[], 400),
    ("* with GET", "GET * HTTP/1.1|Host: h||", &[], 400),
    ("* with OPTIONS", "OPTIONS * HTTP/1.1|Host: h||", &["OPTIONS *"], 200),
    ("CONNECT", "CONNECT h:80 HTTP/1.1|Host: h:80||", &[], 405),
    ("HTTP/9.9", "GET /a HTTP/9.9|Host: h||", &[], 400),
    ("HTTP/2.0 in HTTP/1.1's clothes", "GET /a HTTP/2.0|Host: h||", &[], 400),
    ("HTTP/1.2", "GET /a HTTP/1.2|Host: h||", &[], 400),
    ("HTTP/1.10", "GET /a HTTP/1.10|Host: h||", &[], 400),
    ("http/1.1", "GET /a http/1.1|Host: h||", &[], 400),
    ("HTTP/1,1", "GET /a HTTP/1,1|Host: h||", &[], 400),
    ("no version", "GET /a|Host: h||", &[], 400),
    ("no target", "GET HTTP/1.1|Host: h||", &[], 400),
    ("a lower-case method", "get /a HTTP/1.1|Host: h||", &[], 400),
    ("a method of one's own", "M-SEARCH /a HTTP/1.1|Host: h||", &["M-SEARCH /a"], 200),
    ("a method with a colon", "GE:T /a HTTP/1.1|Host: h||", &[], 400),
    ("a method with a NUL", "GE\0T /a HTTP/1.1|Host: h||", &[], 400),
    ("a method with brackets", "GE(T) /a HTTP/1.1|Host: h||", &[], 400),
    ("a method that is not ASCII", "GÉT /a HTTP/1.1|Host: h||", &[], 400),
    ("no method", " /a HTTP/1.1|Host: h||", &[], 400),
    ("tabs in the request line", "GET\t/a\tHTTP/1.1|Host: h||", &[], 400),
    ("two spaces before the target", "GET  /a HTTP/1.1|Host: h||", &[], 400),
    ("two spaces before the version", "GET /a  HTTP/1.1|Host: h||", &[], 400),
    ("a space after the version", "GET /a HTTP/1.1 |Host: h||", &[], 400),
    ("a space in the target", "GET /a b HTTP/1.1|Host: h||", &[], 400),
    ("a request in the target", "GET /a HTTP/1.1 GET /smuggled HTTP/1.1|Host: h||", &[], 400),
    ("a NUL in the target", "GET /a\0b HTTP/1.1|Host: h||", &[], 400),
    ("a bare CR in the target", "GET /a\rb HTTP/1.1|Host: h||", &[], 400),
    ("a DEL in the target", "GET /a\u{7f}b HTTP/1.1|Host: h||", &[], 400),
    ("a header without a colon", "GET /a HTTP/1.1|Host: h|Nothing||", &[], 400),
    ("a header without a name", "GET /a HTTP/1.1|Host: h|: x||", &[], 400),
    ("a space in a name", "GET /a HTTP/1.1|Host: h|X Y: z||", &[], 400),
    ("a NUL in a name", "GET /a HTTP/1.1|Host: h|X\0Y: z||", &[], 400),
    ("a name in brackets", "GET /a HTTP/1.1|Host: h|(X): z||", &[], 400),
    ("a name that is not ASCII", "GET /a HTTP/1.1|Host: h|Xä: z||", &[], 400),
    ("a NUL in a value", "GET /a HTTP/1.1|Host: h|X: y\0z||", &[], 400),
    ("a bell in a value", "GET /a HTTP/1.1|Host: h|X: y\u{7}z||", &[], 400),
    ("a DEL in a value", "GET /a HTTP/1.1|Host: h|X: y\u{7f}z||", &[], 400),
    ("a bare CR in a value", "GET /a HTTP/1.1|Host: h|X: y\rz||", &[], 400),
    ("a folded value", "GET /a HTTP/1.1|Host: h|X: y| z||", &[], 400),
    ("a value that is not ASCII", "GET /a HTTP/1.1|Host: h|X: ä||", &["GET /a"], 200),
    ("an empty value", "GET /a HTTP/1.1|Host: h|X:||", &["GET /a"], 200),
    ("TLS", "\u{16}\u{3}\u{1}\u{2}\0\u{1}||", &[], 400),
    ("SSH", "SSH-2.0-OpenSSH_9.2||", &[], 400),
    ("RESP", "*1|$4|PING||", &[], 400),
];

pub(crate) async fn before(recorder: &Recorder) -> Tidegate {
    let wide = "[[rule]]\nname = \"default\"\n[[rule.policy]]\nname = \"wide\"\nby = \"ip\"\nlimit = \"100000/second\"\n";
    Tidegate::start(Some(wide), &[("UPSTREAM_URL", &recorder.url())]).await
}

pub(crate) fn wire(text: &str) -> Vec<u8> {
    text.replace('|', "\r\n").into_bytes()
}

async fn judge(cases: &[Case]) {
    let recorder = Recorder::start().await;
    let tidegate = before(&recorder).await;
    let mut wrong = Vec::new();
    for &(name, text, reaches, last) in cases {
        let seen = recorder.requests().len();
        let mut bytes = wire(text);
        if last != 200 {
            bytes.extend(wire("GET /smuggled HTTP/1.1|Host: h||"));
        }
        let most = if last == 200 { reaches.len() } else { 0 };
        let (answers, rest, closed) = speak(tidegate.main, &bytes, most).await;
        let statuses: Vec<&str> = answers.iter().map(|answer| &answer.line[9..12]).collect();
        let mut wanted: Vec<String> = reaches.iter().map(|_| "200".to_owned()).collect();
        if last != 200 {
            wanted.push(last.to_string());
        }
        let reached: Vec<String> =
            recorder.requests()[seen..].iter().map(|request| request.in_short()).collect();
        if statuses != wanted || !rest.is_empty() || closed != (last != 200) || reached != reaches {
            wrong.push(format!(
                "{name}: {statuses:?} for {wanted:?}, {reached:?} for {reaches:?}, closed: {closed}, {:?}",
                String::from_utf8_lossy(&rest)
            ));
        }
        // Whoever comes next gets its own answer.
        let next = format!("GET /next/{seen} HTTP/1.1\r\nHost: h\r\n\r\n");
        let (answers, ..) = speak(tidegate.main, next.as_bytes(), 1).await;
        if answers.first().is_none_or(|answer| answer.body != format!("GET /next/{seen}").as_bytes()) {
            wrong.push(format!("after {name}: {answers:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    let metrics = tidegate.metrics().await;
    for line in metrics.lines().filter(|line| line.starts_with("tidegate_http_responses_total")) {
        assert!(
            !line.contains(r#"class="5xx""#) || line.ends_with(" 0"),
            "a client's fault is no 5xx: {line}"
        );
    }
}

#[tokio::test]
async fn a_body_whose_end_can_be_read_in_two_ways_reaches_nobody_and_ends_its_connection() {
    judge(BODIES).await;
}

#[tokio::test]
async fn a_head_that_can_be_read_in_two_ways_reaches_nobody_and_ends_its_connection() {
    judge(HEADS).await;
}

#[tokio::test]
async fn what_is_malformed_behind_a_good_request_reaches_nobody_and_ends_the_connection() {
    let recorder = Recorder::start().await;
    let tidegate = before(&recorder).await;
    let bytes = wire("GET /a HTTP/1.1|Host: h||GET /b HTTP/1.1||GET /smuggled HTTP/1.1|Host: h||");
    let (answers, _, closed) = speak(tidegate.main, &bytes, 0).await;
    // The good one may be given up with the other: whether it was one is in doubt.
    let statuses: Vec<&str> = answers.iter().map(|answer| &answer.line[9..12]).collect();
    assert!(closed && matches!(statuses.as_slice(), ["400"] | ["200", "400"]), "{statuses:?}");
    let reached: Vec<String> = recorder.requests().iter().map(|request| request.in_short()).collect();
    assert!(reached.iter().all(|request| request == "GET /a"), "{reached:?}");
}
