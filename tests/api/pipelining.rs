//! Pipelined requests (RFC 9112, 9.3.2): the answers to requests that are sent in one go are those to the same requests sent
//! one by one, byte for byte, on every listener and transport.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::transport::secure;
use crate::support::certificates::Certificates;
use crate::support::nginx::Nginx;
use crate::support::process::{ADMIN_TOKEN, Tidegate};
use crate::support::raw::{Message, Raw, RawUpstream, Step, ask, send};
use crate::support::redis_server::RedisServer;

/// As our gateway forwards.
const NGINX: &str = "proxy_http_version 1.1; proxy_set_header Connection ''; proxy_buffering off;";
const LONGEST: Duration = Duration::from_secs(20);

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// How a listener is reached.
enum Link {
    Tcp(SocketAddr),
    Tls(SocketAddr, Vec<u8>),
    Unix(PathBuf),
}

impl Link {
    async fn connect(&self) -> Box<dyn Stream> {
        match self {
            Self::Tcp(address) => {
                let io = TcpStream::connect(address).await.unwrap();
                io.set_nodelay(true).unwrap();
                Box::new(io)
            }
            Self::Tls(address, ca) => Box::new(secure(*address, ca, b"http/1.1").await.unwrap()),
            Self::Unix(path) => Box::new(UnixStream::connect(path).await.unwrap()),
        }
    }
}

/// A request, and whether its answer is the last of its connection.
#[derive(Clone, Debug)]
struct Case {
    name: &'static str,
    bytes: String,
    closes: bool,
}

impl Case {
    fn method(&self) -> &str {
        self.bytes.split(' ').next().unwrap()
    }
}

fn case(name: &'static str, lines: &str) -> Case {
    let bytes = lines.replace('|', "\r\n");
    let old = bytes.contains(" HTTP/1.0\r\n") && !bytes.contains("keep-alive");
    Case { name, closes: old || bytes.contains("Connection: close") || bytes.contains("Upgrade"), bytes }
}

fn end() -> Case {
    case("end", "GET /healthz HTTP/1.1|Host: h|Connection: close||")
}

/// One answer, as its bytes are.
async fn one_answer(io: &mut dyn Stream, method: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(io.read_u8().await.unwrap_or_else(|error| {
            panic!("{error} behind {:?}", String::from_utf8_lossy(&bytes));
        }));
    }
    let head = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
    if method == "HEAD" || ["204", "304"].contains(&&head[9..12]) {
        return bytes;
    }
    if head.contains("transfer-encoding: chunked") {
        while !bytes.ends_with(b"\r\n0\r\n\r\n") {
            bytes.push(io.read_u8().await.unwrap());
        }
    } else if let Some((_, length)) = head.split_once("content-length: ") {
        let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
        let from = bytes.len();
        bytes.resize(from + length, 0);
        io.read_exact(&mut bytes[from..]).await.unwrap();
    } else {
        io.read_to_end(&mut bytes).await.unwrap();
    }
    bytes
}

/// Answers with their headers sorted, since each map of headers has an order of its own, and without what changes from
/// second to second: the date, and what is left of a budget.
fn comparable(bytes: &[u8]) -> String {
    let varies = ["date:", "ratelimit", "x-ratelimit-", "retry-after:"];
    let (mut text, mut all) = (&*String::from_utf8_lossy(bytes), String::new());
    // No body of these tests holds these bytes.
    while let Some(at) = text.find("HTTP/1.") {
        let end = text[at..].find("\r\n\r\n").map_or(text.len(), |end| at + end);
        let (body, head) = (&text[..at], &text[at..end]);
        let mut lines: Vec<&str> = head.split("\r\n").collect();
        lines.retain(|line| !varies.iter().any(|name| line.to_ascii_lowercase().starts_with(name)));
        lines[1..].sort_unstable();
        all = all + body + &lines.join("\r\n");
        text = &text[end..];
    }
    all + text
}

/// The answers to requests that are sent one by one, on one connection.
async fn one_by_one(link: &Link, cases: &[&Case]) -> Vec<String> {
    let mut io = link.connect().await;
    let mut answers = Vec::new();
    for case in cases {
        io.write_all(case.bytes.as_bytes()).await.unwrap();
        io.flush().await.unwrap();
        let answer = timeout(LONGEST, one_answer(&mut *io, case.method())).await;
        answers.push(comparable(&answer.unwrap_or_else(|_| panic!("no answer to {case:?}"))));
        if case.closes {
            break;
        }
    }
    answers
}

/// All that comes on requests that are sent in one go, until the connection ends.
async fn in_one_go(link: &Link, bytes: &[u8]) -> String {
    let (mut reader, mut writer) = tokio::io::split(link.connect().await);
    // Requests behind the last answer may meet a closed connection.
    let _ = writer.write_all(bytes).await;
    let _ = writer.flush().await;
    let mut got = Vec::new();
    let read = timeout(LONGEST, reader.read_to_end(&mut got)).await;
    let ended = if read.is_ok() { "" } else { "<not closed>" };
    comparable(&got) + ended
}

/// Sends every pair, and every triple where asked for, and reports what differs from the same one by one.
async fn matrix(link: &Link, cases: &[Case], triples: bool) {
    let end = end();
    let mut alone = Vec::new();
    for case in cases {
        alone.push(one_by_one(link, &[case]).await.remove(0));
    }
    let last = one_by_one(link, &[&end]).await.remove(0);
    // An answer does not depend on those before it.
    let open: Vec<&Case> = cases.iter().filter(|case| !case.closes).collect();
    let again = one_by_one(link, &open).await;
    let single: Vec<&String> =
        alone.iter().zip(cases).filter(|(_, case)| !case.closes).map(|(one, _)| one).collect();
    assert_eq!(again.iter().collect::<Vec<_>>(), single);

    let numbers = || 0..cases.len();
    let mut rows: Vec<Vec<usize>> =
        numbers().flat_map(|one| numbers().map(move |other| vec![one, other])).collect();
    if triples {
        let pairs = rows.clone();
        rows.extend(pairs.iter().flat_map(|pair| numbers().map(move |third| vec![pair[0], pair[1], third])));
    }
    let mut wrong = Vec::new();
    for row in &rows {
        let (mut bytes, mut wanted, mut open) = (String::new(), String::new(), true);
        for &number in row {
            bytes += &cases[number].bytes;
            if open {
                wanted += &alone[number];
            }
            open &= !cases[number].closes;
        }
        bytes += &end.bytes;
        if open {
            wanted += &last;
        }
        let got = in_one_go(link, bytes.as_bytes()).await;
        if got != wanted {
            let names: Vec<&str> = row.iter().map(|&number| cases[number].name).collect();
            wrong.push(format!("{names:?}:\n{got:?}\nfor\n{wanted:?}"));
            assert!(wrong.len() < 5, "of {} these are wrong, and more:\n{}", rows.len(), wrong.join("\n"));
        }
    }
    assert!(wrong.is_empty(), "of {} these are wrong:\n{}", rows.len(), wrong.join("\n"));
}

fn script(request: &Message, _: usize) -> Vec<Step> {
    let head = request.line.starts_with(b"HEAD ");
    match request.target().as_str() {
        "/204" => vec![send("HTTP/1.1 204 No Content\r\n\r\n")],
        "/304" => vec![send("HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n")],
        "/500" => vec![send("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 5\r\n\r\nwrong")],
        "/chunks" if head => vec![send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")],
        "/chunks" => vec![
            send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n"),
            send("3\r\ntwo\r\n0\r\n\r\n"),
        ],
        "/chat" => vec![
            send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
            Step::Echo,
        ],
        target => {
            let body = format!("{target}:{}", String::from_utf8_lossy(&request.body));
            let sent = if head { "" } else { &body };
            vec![send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{sent}", body.len()))]
        }
    }
}

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

fn front() -> Vec<Case> {
    vec![
        case("GET", "GET /a HTTP/1.1|Host: h||"),
        case("HEAD", "HEAD /b HTTP/1.1|Host: h||"),
        case("POST", "POST /c HTTP/1.1|Host: h|Content-Length: 5||hello"),
        case("chunked POST", "POST /d HTTP/1.1|Host: h|Transfer-Encoding: chunked||5|hello|0|X: y||"),
        case("chunks", "GET /chunks HTTP/1.1|Host: h||"),
        case("204", "GET /204 HTTP/1.1|Host: h||"),
        case("304", "GET /304 HTTP/1.1|Host: h||"),
        case("error page", "GET /500 HTTP/1.1|Host: h||"),
        case("denied", "GET /denied HTTP/1.1|Host: h||"),
        case("our page", "GET /healthz HTTP/1.1|Host: h||"),
        case("upgrade", "GET /e HTTP/1.1|Host: h|Connection: Upgrade|Upgrade: h2c||"),
        case("1.0", "GET /chunks HTTP/1.0|Host: h||"),
        case("1.0 keep-alive", "GET /f HTTP/1.0|Host: h|Connection: keep-alive||"),
        case("close", "GET /g HTTP/1.1|Host: h|Connection: close||"),
        case("keep-alive", "GET /i HTTP/1.1|Host: h|Connection: keep-alive||"),
    ]
}

async fn gateway(more: &[(&str, &str)]) -> (RawUpstream, Tidegate) {
    let upstream = RawUpstream::start(script).await;
    let url = upstream.url();
    let mut variables = vec![("UPSTREAM_URL", url.as_str()), ("TIDEGATE__LOGGING__REQUESTS", "false")];
    variables.extend_from_slice(more);
    let tidegate = Tidegate::start(Some(POLICIES), &variables).await;
    (upstream, tidegate)
}

#[tokio::test]
async fn pairs_and_triples_are_answered_as_one_by_one() {
    let (_upstream, tidegate) = gateway(&[]).await;
    matrix(&Link::Tcp(tidegate.main), &front(), true).await;
}

#[tokio::test]
async fn pairs_over_a_unix_socket_are_answered_as_one_by_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tidegate.sock");
    let (_upstream, _tidegate) =
        gateway(&[("TIDEGATE__SERVER__UNIX_SOCKET", &path.display().to_string())]).await;
    matrix(&Link::Unix(path), &front(), false).await;
}

#[tokio::test]
async fn pairs_over_tls_are_answered_as_one_by_one() {
    let certificates = Certificates::new();
    let (cert, key) = (certificates.text("cert.pem"), certificates.text("key.pem"));
    let (_upstream, tidegate) =
        gateway(&[("TIDEGATE__SERVER__TLS_CERT", &cert), ("TIDEGATE__SERVER__TLS_KEY", &key)]).await;
    matrix(&Link::Tls(tidegate.main, certificates.bytes("ca.pem")), &front(), false).await;
}

#[tokio::test]
async fn pairs_of_decisions_are_answered_as_one_by_one() {
    let redis = RedisServer::start();
    let url = redis.url();
    let by_redis =
        [("REDIS_URL", url.as_str()), ("REDIS_TIMEOUT_MS", "5000"), ("RATE_LIMIT_CANARY_PERCENT", "100")];
    for variables in [&[][..], &by_redis] {
        let tidegate = Tidegate::start(Some(POLICIES), variables).await;
        if !variables.is_empty() {
            tidegate.connected().await;
        }
        let question = |body: &str, more: &str| {
            let length = body.len();
            format!("POST /v1/check HTTP/1.1|Host: h|{more}Content-Length: {length}||{body}")
        };
        let peek = r#"{"key":"k","peek":true}"#;
        let cases = [
            case("peek", &question(peek, "")),
            case("no JSON", &question("{", "")),
            case("no rule", &question(r#"{"key":"k","rule":"none"}"#, "")),
            case("GET", "GET /v1/check HTTP/1.1|Host: h||"),
            case("HEAD", "HEAD /healthz HTTP/1.1|Host: h||"),
            case("404", "GET /nothing HTTP/1.1|Host: h||"),
            case("close", &question(peek, "Connection: close|")),
        ];
        matrix(&Link::Tcp(tidegate.main), &cases, true).await;
    }
}

#[tokio::test]
async fn pairs_on_the_admin_listener_are_answered_as_one_by_one() {
    let tidegate = Tidegate::start(Some(POLICIES), &[]).await;
    let with = format!("Host: h|Authorization: Bearer {ADMIN_TOKEN}|");
    let cases = [
        case("GET", &format!("GET /admin/rollout HTTP/1.1|{with}|")),
        case("list", &format!("GET /admin/overrides HTTP/1.1|{with}|")),
        case("PUT", &format!("PUT /admin/rollout HTTP/1.1|{with}Content-Length: 2||[]")),
        case("404", &format!("GET /admin/nothing HTTP/1.1|{with}|")),
        case("HEAD", "HEAD /readyz HTTP/1.1|Host: h||"),
        case("page", "HEAD / HTTP/1.1|Host: h||"),
        case("1.0", &format!("GET /admin/rollout HTTP/1.0|{with}|")),
        case("close", "GET /healthz HTTP/1.1|Host: h|Connection: close||"),
    ];
    matrix(&Link::Tcp(tidegate.admin), &cases, false).await;
}

#[tokio::test]
async fn an_upgrade_behind_another_request_gets_what_follows_it() {
    let (_upstream, tidegate) = gateway(&[]).await;
    let upgrade = "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    for before in front().iter().filter(|case| !case.closes) {
        let mut raw = Raw::connect(tidegate.main).await;
        raw.write(format!("{}{upgrade}GET /inner HTTP/1.1\r\n\r\n", before.bytes)).await;
        assert!(raw.answer(before.method()).await.1.complete, "{before:?}");
        let (_, answer) = timeout(LONGEST, raw.answer("GET")).await.expect("an answer to the upgrade");
        assert_eq!(answer.status(), 101, "behind {before:?}");
        let echo = timeout(LONGEST, raw.exactly(23)).await.expect("the echo");
        assert_eq!(echo.unwrap(), b"GET /inner HTTP/1.1\r\n\r\n");
    }
}

#[tokio::test]
async fn what_follows_another_upgrade_reaches_its_tunnel() {
    let (_upstream, tidegate) = gateway(&[("TIDEGATE__UPSTREAM__UPGRADES", "*")]).await;
    let upgrade = "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n";
    for _ in 0..5 {
        let mut raw = Raw::connect(tidegate.main).await;
        raw.write(format!("{upgrade}at once")).await;
        assert_eq!(timeout(LONGEST, raw.answer("GET")).await.expect("an answer").1.status(), 101);
        let echo = timeout(LONGEST, raw.exactly(7)).await.expect("the echo");
        assert_eq!(echo.unwrap(), b"at once");
    }
}

#[tokio::test]
async fn a_pipeline_of_hundreds_is_answered_in_order_whatever_its_cuts() {
    let (upstream, tidegate) = gateway(&[]).await;
    let requests: String = (1000..1300)
        .map(|number| match number % 3 {
            0 => format!("GET /{number} HTTP/1.1\r\nHost: h\r\n\r\n"),
            1 => format!("HEAD /{number} HTTP/1.1\r\nHost: h\r\n\r\n"),
            _ => format!("POST /{number} HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"),
        })
        .collect();
    for piece in [requests.len(), 1000, 61] {
        let mut raw = Raw::connect(tidegate.main).await;
        let (seen, answers) = (upstream.requests(), raw.io.peer_addr().unwrap());
        assert_eq!(answers, tidegate.main);
        let (bytes, io) = (requests.clone().into_bytes(), &mut raw);
        for part in bytes.chunks(piece) {
            io.write(part).await;
        }
        for number in 1000..1300 {
            let method = ["GET", "HEAD", "POST"][number % 3];
            let (_, answer) = timeout(LONGEST, raw.answer(method)).await.expect("each is answered");
            let body = match method {
                "HEAD" => String::new(),
                "POST" => format!("/{number}:abc"),
                _ => format!("/{number}:"),
            };
            assert_eq!((answer.status(), String::from_utf8_lossy(&answer.body).into_owned()), (200, body));
        }
        assert_eq!(upstream.requests(), seen + 300);
    }
}

#[tokio::test]
async fn a_client_that_leaves_a_pipeline_ends_the_request_under_way() {
    let upstream = RawUpstream::start(|_, _| vec![Step::Wait(60_000)]).await;
    let tidegate = super::conformance::before(&upstream.url(), &[]).await;
    let mut raw = Raw::connect(tidegate.main).await;
    raw.write("GET /a HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n").await;
    crate::support::until("it is there", async || upstream.requests() == 1).await;
    drop(raw);
    let closed = || upstream.closed.load(std::sync::atomic::Ordering::SeqCst);
    crate::support::until("the upstream is left", async || closed() == 1).await;
    assert_eq!(upstream.requests(), 1, "the second request was never begun");
}

#[tokio::test]
async fn statuses_and_bodies_of_pairs_are_those_of_nginx() {
    let (upstream, tidegate) = gateway(&[]).await;
    let nginx = Nginx::before(upstream.address, NGINX);
    // Our own pages, and what nginx answers with HTTP/1.0 or another protocol, are not compared.
    let names =
        ["GET", "HEAD", "POST", "chunked POST", "chunks", "204", "304", "error page", "close", "keep-alive"];
    let cases: Vec<Case> = front().into_iter().filter(|case| names.contains(&case.name)).collect();
    let mut wrong = Vec::new();
    for one in &cases {
        for other in &cases {
            let bytes =
                [&one.bytes, &other.bytes, &case("end", "GET /z HTTP/1.1|Host: h|Connection: close||").bytes]
                    .map(String::as_str)
                    .concat();
            let mut seen = Vec::new();
            for address in [tidegate.main, nginx.address] {
                let mut raw = Raw::connect(address).await;
                raw.write(&bytes).await;
                let mut answers = Vec::new();
                for method in [one.method(), other.method(), "GET"] {
                    let (_, answer) =
                        timeout(LONGEST, raw.answer(method)).await.expect("an answer or an end");
                    answers.push((answer.status(), String::from_utf8_lossy(&answer.body).into_owned()));
                }
                answers.push((u16::from(raw.is_closed().await), String::new()));
                seen.push(answers);
            }
            if seen[0] != seen[1] {
                wrong.push(format!("{} {}: {:?}, nginx {:?}", one.name, other.name, seen[0], seen[1]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn nothing_behind_a_refused_request_is_served() {
    let (upstream, tidegate) = gateway(&[]).await;
    let answer =
        ask(tidegate.main, "get /a HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n").await.1;
    assert_eq!(answer.status(), 400);
    assert_eq!(upstream.requests(), 0);
}
