//! The gateway held against direct access: whatever a client sends and an upstream answers arrives as if nobody stood
//! between them, byte for byte but for what belongs to a hop.

use crate::support::process::Tidegate;
use crate::support::raw::{Message, RawUpstream, Step, ask, send};

/// One hop's own (RFC 9110, 7.6.1), and the length that follows from the body.
const HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
];
/// What the gateway adds for the upstream.
const TRACES: [&str; 5] = ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "via"];
/// What it adds for the client.
const TOLD: [&str; 6] = [
    "date",
    "ratelimit",
    "ratelimit-policy",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
];

const WIDE: &str =
    "[[rule]]\nname = \"default\"\n[[rule.policy]]\nname = \"wide\"\nby = \"ip\"\nlimit = \"10000/second\"\n";

pub(crate) async fn before(url: &str, more: &[(&str, &str)]) -> Tidegate {
    let mut variables = vec![("UPSTREAM_URL", url)];
    variables.extend_from_slice(more);
    Tidegate::start(Some(WIDE), &variables).await
}

/// Headers by name, in the order of their lines; names in any order, since none means anything across names.
fn comparable(message: &Message, without: &[&[&str]]) -> Vec<(String, Vec<u8>)> {
    let mut headers = message.headers.clone();
    headers.retain(|(name, _)| !without.iter().any(|names| names.contains(&name.as_str())));
    headers.sort_by(|one, other| one.0.cmp(&other.0));
    headers
}

fn head(lines: &[&str]) -> Vec<u8> {
    let mut head = lines.join("\r\n").into_bytes();
    head.extend_from_slice(b"\r\n\r\n");
    head
}

fn requests() -> Vec<(&'static str, Vec<u8>)> {
    let get = |target: &str| head(&[&format!("GET {target} HTTP/1.1"), "Host: api.example.com:8080"]);
    let with = |lines: &[&str]| head(&[&["GET /h HTTP/1.1", "Host: h"], lines].concat());
    let body = |head: Vec<u8>, body: &[u8]| [head, body.to_vec()].concat();
    let mut many = vec!["GET /many HTTP/1.1".to_owned(), "Host: h".to_owned()];
    many.extend((0..90).map(|n| format!("X-Many-{n}: {n}")));
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let long = format!("X-Long: {}", "v".repeat(8_000));
    let cookies = format!("Cookie: {}", "a=b; ".repeat(500));
    let long_target = format!("/{}?{}", "p".repeat(3_000), "q".repeat(3_000));
    let every_byte: Vec<u8> = (0u8..=255).collect();
    vec![
        ("a plain request", get("/")),
        (
            "a place in a distributed trace",
            with(&[
                "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                "tracestate: a=b,c=d",
            ]),
        ),
        ("percent-encoding in a path", get("/a%2Fb/%41%zz%/caf%C3%A9")),
        ("percent-encoding in a query", get("/?x=%20&&y==1&%26=+&a[]=1&b")),
        ("an empty query", get("/a?")),
        ("two question marks", get("/a?b?c=/?")),
        ("repeated slashes", get("//a///b//")),
        ("dot segments", get("/a/../b/./c/..")),
        ("encoded dot segments", get("/a/%2e%2E/b/%2e")),
        ("a backslash, a pipe and brackets", get("/a\\b|c[d]^e'g;h=1,i@j:k!l$m*n(o)~")),
        ("quotes and braces as JSON has them", get("/{\"a\":1}?{b:2}")),
        ("a long target", get(&long_target)),
        ("a method of one's own", head(&["PURGE /x HTTP/1.1", "Host: h"])),
        ("HEAD", head(&["HEAD /x HTTP/1.1", "Host: h"])),
        ("OPTIONS of a resource", head(&["OPTIONS /x HTTP/1.1", "Host: h"])),
        ("OPTIONS of the server", head(&["OPTIONS * HTTP/1.1", "Host: h"])),
        ("TRACE", head(&["TRACE /x HTTP/1.1", "Host: h"])),
        ("DELETE without a body", head(&["DELETE /x HTTP/1.1", "Host: h"])),
        ("repeated headers", with(&["X-A: 1", "X-B: 2", "X-A: 3", "x-a: 1"])),
        ("an empty header", with(&["X-Empty:", "X-Blank:   "])),
        ("spaces around and inside a value", with(&["X-A:  a  b\tc \t "])),
        ("odd names", with(&["X_Under: 1", "X.Dot: 2", "!#$%&'*+-.^_`|~0: 3"])),
        ("a list with commas and quotes", with(&["Accept: a;q=\"1,2\", b ,, c"])),
        (
            "what a cache asks",
            with(&["If-None-Match: W/\"a\", \"b\"", "If-Modified-Since: Sat, 29 Oct 1994 19:43:31 GMT"]),
        ),
        ("a range", with(&["Range: bytes=0-1,4-", "If-Range: \"e\""])),
        ("codings", with(&["Accept-Encoding: gzip, br;q=0, *"])),
        ("credentials", with(&["Authorization: Basic dTpw", "Cookie: a=1; b=\"2\"", "Cookie: c=3"])),
        ("a long header", with(&[&long])),
        ("long cookies", with(&[&cookies])),
        ("90 headers", head(&many)),
        ("an origin", with(&["Origin: null", "Access-Control-Request-Method: PUT", "Sec-Fetch-Mode: cors"])),
        ("Via and Max-Forwards", with(&["Max-Forwards: 10"])),
        ("UTF-8 in a header", with(&["X-Utf8: grüße ✓"])),
        ("bytes beyond ASCII in a header", {
            let mut request = b"GET /h HTTP/1.1\r\nHost: h\r\nX-Latin: a\xe9\xff\x80b\r\n\r\n".to_vec();
            request.extend_from_slice(b"");
            request
        }),
        ("a header named in Connection", with(&["X-Kept: 1"])),
        (
            "a body with its length",
            body(head(&["POST /b HTTP/1.1", "Host: h", "Content-Length: 5"]), b"hello"),
        ),
        (
            "every byte in a body",
            body(head(&["PUT /b HTTP/1.1", "Host: h", "Content-Length: 256"]), &every_byte),
        ),
        ("a body of GET", body(head(&["GET /b HTTP/1.1", "Host: h", "Content-Length: 2"]), b"{}")),
        ("a body of DELETE", body(head(&["DELETE /b HTTP/1.1", "Host: h", "Content-Length: 2"]), b"{}")),
        ("an empty body", head(&["POST /b HTTP/1.1", "Host: h", "Content-Length: 0"])),
        ("no body at all of POST", head(&["POST /b HTTP/1.1", "Host: h"])),
        (
            "a body in chunks",
            body(
                head(&["POST /b HTTP/1.1", "Host: h", "Transfer-Encoding: chunked"]),
                b"5\r\nhello\r\n1;x=\"y\"\r\n!\r\n0\r\n\r\n",
            ),
        ),
        (
            "chunks with trailers",
            body(
                head(&["POST /b HTTP/1.1", "Host: h", "Transfer-Encoding: chunked", "Trailer: X-T"]),
                b"A\r\n0123456789\r\n0\r\nX-T: 1\r\n\r\n",
            ),
        ),
        (
            "an empty body in chunks",
            body(head(&["POST /b HTTP/1.1", "Host: h", "Transfer-Encoding: chunked"]), b"0\r\n\r\n"),
        ),
        (
            "a compressed body",
            body(
                head(&["POST /b HTTP/1.1", "Host: h", "Content-Encoding: gzip", "Content-Length: 4"]),
                b"\x1f\x8b\x08\x00",
            ),
        ),
        (
            "a form of several parts",
            body(
                head(&[
                    "POST /b HTTP/1.1",
                    "Host: h",
                    "Content-Type: multipart/form-data; boundary=\"x y\"",
                    "Content-Length: 9",
                ]),
                b"--x y--\r\n",
            ),
        ),
        ("a client of HTTP/1.0", head(&["GET /old HTTP/1.0", "Host: h"])),
    ]
}

/// What an upstream was asked, told back.
fn echo(request: &Message) -> Vec<Step> {
    let mut body = request.line.clone();
    for (name, value) in &request.headers {
        body.extend_from_slice(b"\n");
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(b": ");
        body.extend_from_slice(value);
    }
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nX-Served: 1\r\n\r\n", body.len());
    let whole =
        if request.line.starts_with(b"HEAD") { answer.into() } else { [answer.into_bytes(), body].concat() };
    vec![send(whole)]
}

#[tokio::test]
async fn a_request_reaches_the_upstream_as_it_would_without_the_gateway() {
    let upstream = RawUpstream::start(|request, _| echo(request)).await;
    // Names that other applications read otherwise are dropped unless they are asked for (tests/api/spellings.rs).
    let tidegate = before(&upstream.url(), &[("TIDEGATE__SERVER__HEADER_NAMES", "any")]).await;
    let mut faults = Vec::new();
    for (name, request) in requests() {
        let (_, direct) = ask(upstream.address, &request).await;
        let (_, through) = ask(tidegate.main, &request).await;
        let seen = upstream.seen.lock().clone();
        let [.., by_itself, by_us] = &*seen else { panic!("{name}: it did not arrive") };
        if seen.len() % 2 != 0 {
            panic!("{name}: it did not arrive: {}", String::from_utf8_lossy(&through.line));
        }
        let version =
            |message: &Message| String::from_utf8_lossy(&message.line).replace("HTTP/1.0", "HTTP/1.1");
        let mut check = |what: &str, same: bool, one: &dyn std::fmt::Debug, other: &dyn std::fmt::Debug| {
            if !same {
                faults.push(format!("{name}: {what}\n  direct:  {one:?}\n  through: {other:?}"));
            }
        };
        check("the line", version(by_itself) == version(by_us), &version(by_itself), &version(by_us));
        let (one, other) = (comparable(by_itself, &[&HOP]), comparable(by_us, &[&HOP, &TRACES]));
        check("the headers", one == other, &one, &other);
        check("the body", by_itself.body == by_us.body, &by_itself.body.len(), &by_us.body.len());
        check("the framing", by_itself.chunked == by_us.chunked, &by_itself.chunked, &by_us.chunked);
        check("the answer", direct.status() == through.status(), &direct.status(), &through.status());
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The path tells which.
fn answers() -> Vec<(&'static str, Vec<Step>)> {
    let of = |text: &str| vec![send(text.replace('\n', "\r\n"))];
    let big =
        [b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n".to_vec(), vec![b'x'; 1_000_000]].concat();
    let gzip = [
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nVary: Accept-Encoding\r\nContent-Length: 6\r\n\r\n"
            .to_vec(),
        vec![0x1f, 0x8b, 8, 0, 0xff, 0],
    ]
    .concat();
    let latin = b"HTTP/1.1 200 OK\r\nX-Latin: a\xe9\xff\r\nContent-Length: 0\r\n\r\n".to_vec();
    let many: String = (0..80).map(|n| format!("X-{n}: {n}\r\n")).collect();
    vec![
        ("a length", of("HTTP/1.1 200 OK\nContent-Length: 2\nContent-Type: text/plain\n\nok")),
        ("no type, no date, no server", of("HTTP/1.1 200 OK\nContent-Length: 2\n\nok")),
        (
            "a date of its own",
            of("HTTP/1.1 200 OK\nDate: Sat, 29 Oct 1994 19:43:31 GMT\nServer: x\nContent-Length: 2\n\nok"),
        ),
        ("an empty body", of("HTTP/1.1 200 OK\nContent-Length: 0\n\n")),
        ("chunks", of("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n2\nok\n3\n yo\n0\n\n")),
        (
            "chunks with extensions and trailers",
            of("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nTrailer: X-T\n\n2;a=b\nok\n0\nX-T: 1\n\n"),
        ),
        ("empty chunks", of("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n0\n\n")),
        ("a body until the end", vec![send("HTTP/1.1 200 OK\r\n\r\nuntil the end"), Step::Close]),
        ("an upstream of HTTP/1.0", vec![send("HTTP/1.0 200 OK\r\n\r\nold"), Step::Close]),
        ("201", of("HTTP/1.1 201 Created\nLocation: http://127.0.0.1:9/internal\nContent-Length: 0\n\n")),
        ("204", of("HTTP/1.1 204 No Content\nETag: \"a\"\n\n")),
        (
            "206 and its range",
            of(
                "HTTP/1.1 206 Partial Content\nContent-Range: bytes 0-1/9\nAccept-Ranges: bytes\nContent-Length: 2\n\nok",
            ),
        ),
        (
            "several ranges",
            of(
                "HTTP/1.1 206 Partial Content\nContent-Type: multipart/byteranges; boundary=x\nContent-Length: 7\n\n--x--\n",
            ),
        ),
        ("301", of("HTTP/1.1 301 Moved Permanently\nLocation: /x?%20\nContent-Length: 0\n\n")),
        ("304", of("HTTP/1.1 304 Not Modified\nETag: W/\"a\"\nCache-Control: no-cache\n\n")),
        (
            "401 and how to",
            of(
                "HTTP/1.1 401 Unauthorized\nWWW-Authenticate: Basic realm=\"a, b\"\nWWW-Authenticate: Bearer\nContent-Length: 0\n\n",
            ),
        ),
        ("404", of("HTTP/1.1 404 Not Found\nContent-Length: 4\n\nnone")),
        ("405", of("HTTP/1.1 405 Method Not Allowed\nAllow: GET, HEAD\nContent-Length: 0\n\n")),
        ("416", of("HTTP/1.1 416 Range Not Satisfiable\nContent-Range: bytes */9\nContent-Length: 0\n\n")),
        ("418 with words of its own", of("HTTP/1.1 418 Short and stout\nContent-Length: 0\n\n")),
        ("429 of the upstream", of("HTTP/1.1 429 Too Many Requests\nRetry-After: 7\nContent-Length: 0\n\n")),
        ("500", of("HTTP/1.1 500 Internal Server Error\nContent-Length: 4\n\noops")),
        ("503", of("HTTP/1.1 503 Service Unavailable\nRetry-After: 1\nContent-Length: 0\n\n")),
        ("599", of("HTTP/1.1 599 What\nContent-Length: 0\n\n")),
        ("an odd status", of("HTTP/1.1 299 Almost\nContent-Length: 0\n\n")),
        (
            "cookies",
            of(
                "HTTP/1.1 200 OK\nSet-Cookie: a=1; Path=/\nSet-Cookie: b=\"2\"; HttpOnly\nset-cookie: a=1; Path=/\nContent-Length: 0\n\n",
            ),
        ),
        (
            "repeated headers",
            of(
                "HTTP/1.1 200 OK\nX-A: 2\nX-B: 1\nX-A: 1\nLink: <a>; rel=x, <b>\nLink: <c>\nContent-Length: 0\n\n",
            ),
        ),
        ("an empty header", of("HTTP/1.1 200 OK\nX-Empty:\nContent-Length: 0\n\n")),
        ("80 headers", vec![send(format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 0\r\n\r\n"))]),
        ("bytes beyond ASCII in a header", vec![send(latin)]),
        ("a compressed body", vec![send(gzip)]),
        ("a megabyte", vec![send(big)]),
        (
            "what a browser reads",
            of(
                "HTTP/1.1 200 OK\nContent-Security-Policy: default-src 'self'\nStrict-Transport-Security: max-age=1\nAccess-Control-Allow-Origin: *\nContent-Disposition: attachment; filename*=UTF-8''a%20b\nAge: 3\nVia: 1.1 other\nAlt-Svc: h3=\":443\"\nContent-Length: 0\n\n",
            ),
        ),
        (
            "early hints first",
            of("HTTP/1.1 103 Early Hints\nLink: </a.css>\n\nHTTP/1.1 200 OK\nContent-Length: 2\n\nok"),
        ),
        (
            "100 that nobody asked for",
            of("HTTP/1.1 100 Continue\n\nHTTP/1.1 200 OK\nContent-Length: 2\n\nok"),
        ),
        (
            "several interim answers",
            of(
                "HTTP/1.1 102 Processing\n\nHTTP/1.1 103 Early Hints\nX-A: 1\n\nHTTP/1.1 404 Not Found\nContent-Length: 2\n\nno",
            ),
        ),
        (
            "an event stream",
            vec![send(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n\
                 Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n0\r\n\r\n",
            )],
        ),
    ]
}

#[tokio::test]
async fn an_answer_reaches_the_client_as_it_would_without_the_gateway() {
    let upstream = RawUpstream::start(|request, _| {
        let number: usize = request.target().trim_start_matches('/').parse().unwrap();
        let steps = answers().swap_remove(number).1;
        if !request.line.starts_with(b"HEAD") {
            return steps;
        }
        // Heads only.
        let bodiless = |step| match step {
            Step::Send(bytes) => {
                let interim = bytes.starts_with(b"HTTP/1.1 10");
                let end = match interim {
                    true => bytes.windows(4).rposition(|four| four == b"\r\n\r\n"),
                    false => bytes.windows(4).position(|four| four == b"\r\n\r\n"),
                };
                send(&bytes[..end.unwrap() + 4])
            }
            other => other,
        };
        steps.into_iter().map(bodiless).collect()
    })
    .await;
    let tidegate = before(&upstream.url(), &[]).await;
    let mut faults = Vec::new();
    for (number, (name, _)) in answers().iter().enumerate() {
        for method in ["GET", "HEAD"] {
            let request = head(&[&format!("{method} /{number} HTTP/1.1"), "Host: h", "Connection: close"]);
            let (_, direct) = ask(upstream.address, &request).await;
            let (interim, through) = ask(tidegate.main, &request).await;
            let mut check = |what: &str,
                             same: bool,
                             one: &dyn std::fmt::Debug,
                             other: &dyn std::fmt::Debug| {
                if !same {
                    faults.push(format!("{method} {name}: {what}\n  direct:  {one:?}\n  through: {other:?}"));
                }
            };
            check("the status", direct.status() == through.status(), &direct.status(), &through.status());
            let told: &[&str] = if direct.header("date").is_some() { &TOLD[1..] } else { &TOLD };
            let (one, other) = (comparable(&direct, &[&HOP]), comparable(&through, &[&HOP, told]));
            check("the headers", one == other, &one, &other);
            check("the body", direct.body == through.body, &direct.body.len(), &through.body.len());
            check("its end", through.complete, &direct.complete, &through.complete);
            let length = direct.header("content-length");
            if length.is_some() {
                check(
                    "the length",
                    through.header("content-length") == length,
                    &length,
                    &through.header("content-length"),
                );
            }
            check("interim answers", interim.is_empty(), &"none can be passed on", &interim);
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[tokio::test]
async fn absolute_form_is_taken_apart_and_headers_of_a_hop_reach_neither_side() {
    let upstream = RawUpstream::start(|_, _| {
        vec![send("HTTP/1.1 200 OK\r\nConnection: x-drop, keep-alive\r\nX-Drop: 1\r\nX-Kept: 1\r\nKeep-Alive: timeout=9\r\nProxy-Authenticate: b\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n")]
    })
    .await;
    let tidegate = before(&upstream.url(), &[]).await;
    let request = head(&[
        "GET http://other.example:81/a%2F?b HTTP/1.1",
        "Host: h",
        "Connection: X-Secret, te, close",
        "X-Secret: 1",
        "TE: trailers",
        "Keep-Alive: 5",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic x",
        "X-Kept: 1",
    ]);
    let (_, answer) = ask(tidegate.main, &request).await;
    let seen = upstream.seen.lock()[0].clone();
    assert_eq!(seen.line, b"GET /a%2F?b HTTP/1.1");
    assert_eq!(seen.header("host").as_deref(), Some("other.example:81"));
    assert_eq!(seen.header("via").as_deref(), Some("1.1 tidegate"));
    for name in ["connection", "x-secret", "te", "keep-alive", "proxy-connection", "proxy-authorization"] {
        assert_eq!(seen.header(name), None, "{name}");
    }
    assert_eq!((answer.status(), answer.header("connection").as_deref()), (200, Some("close")));
    for name in ["x-drop", "keep-alive", "proxy-authenticate", "upgrade"] {
        assert_eq!(answer.header(name), None, "{name}");
    }
    assert_eq!((seen.header("x-kept"), answer.header("x-kept")), (Some("1".into()), Some("1".into())));
}
