//! What the gateway speaks, and over what: HTTP/2 and TLS from clients, Unix sockets on both sides, several upstreams.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::conformance::before;
use crate::support::certificates::Certificates;
use crate::support::process::{ADMIN_TOKEN, Tidegate};
use crate::support::raw::{Message, Raw, RawUpstream, Step, ask, send};
use crate::support::redis_server::free_port;
use crate::support::until;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn http2() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap()
}

#[tokio::test]
async fn http2_without_tls_stands_beside_http1_on_one_port_and_carries_the_same() {
    let upstream = RawUpstream::start(|request, _| match request.target().as_str() {
        "/chunks" => vec![send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nConnection: close\r\n\r\n2\r\nok\r\n0\r\n\r\n"), Step::Close],
        "/empty" => vec![send("HTTP/1.1 204 No Content\r\n\r\n")],
        _ => vec![send(OK)],
    })
    .await;
    let tidegate = before(&upstream.url(), &[]).await;
    let http = http2();
    let answer = http
        .post(tidegate.url("/a%2Fb//c?x=%20&y"))
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("x-latin", reqwest::header::HeaderValue::from_bytes(b"a\xe9").unwrap())
        .body("hello")
        .send()
        .await
        .unwrap();
    assert_eq!((answer.version(), answer.status().as_u16()), (reqwest::Version::HTTP_2, 200));
    assert_eq!(answer.headers()["content-length"], "2");
    let seen = upstream.seen.lock()[0].clone();
    assert_eq!(seen.line, b"POST /a%2Fb//c?x=%20&y HTTP/1.1");
    assert_eq!(seen.header("host"), Some(tidegate.main.to_string()));
    assert_eq!(seen.all("cookie"), [b"a=1; b=2"]);
    assert_eq!(seen.all("x-latin"), [b"a\xe9"]);
    assert_eq!(seen.header("via").as_deref(), Some("2 tidegate"));
    assert_eq!((seen.body.as_slice(), seen.header("content-length").as_deref()), (&b"hello"[..], Some("5")));

    // A body whose length nobody knows, and none at all.
    let pieces = futures_util::stream::iter(["one ", "two"].map(Ok::<_, std::io::Error>));
    let body = reqwest::Body::wrap_stream(pieces);
    assert_eq!(http.put(tidegate.url("/x")).body(body).send().await.unwrap().status(), 200);
    let seen = upstream.seen.lock()[1].clone();
    assert_eq!((seen.body.as_slice(), seen.chunked), (&b"one two"[..], true));
    assert_eq!(http.get(tidegate.url("/x")).send().await.unwrap().status(), 200);
    let seen = upstream.seen.lock()[2].clone();
    assert_eq!((seen.chunked, seen.header("content-length")), (false, None));

    let answer = http.get(tidegate.url("/chunks")).send().await.unwrap();
    assert_eq!(answer.headers().get_all("set-cookie").iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
    assert!(!answer.headers().contains_key("connection"));
    assert_eq!(answer.text().await.unwrap(), "ok");
    let empty = http.get(tidegate.url("/empty")).send().await.unwrap();
    assert_eq!((empty.status().as_u16(), empty.bytes().await.unwrap().len()), (204, 0));
    let head = http.head(tidegate.url("/x")).send().await.unwrap();
    assert_eq!((head.status().as_u16(), &head.headers()["content-length"]), (200, &"2".parse().unwrap()));

    // HTTP/1.1 on the same port, and a preface that comes byte by byte.
    assert_eq!(tidegate.get("/").await.version(), reqwest::Version::HTTP_11);
    let mut slow = Raw::connect(tidegate.main).await;
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" {
        slow.write([*byte]).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // Its settings: a frame of type 4.
    assert_eq!(slow.exactly(9).await.unwrap()[3], 4);
}

#[tokio::test]
async fn a_hundred_requests_at_once_share_a_connection_of_http2() {
    let upstream = RawUpstream::start(|_, _| vec![Step::Wait(100), send(OK)]).await;
    let tidegate = before(&upstream.url(), &[]).await;
    let http = http2();
    assert_eq!(http.get(tidegate.url("/")).send().await.unwrap().status(), 200);
    let began = std::time::Instant::now();
    let all = (0..100).map(|number| http.get(tidegate.url(&format!("/{number}"))).send());
    for answer in futures_util::future::join_all(all).await {
        assert_eq!(answer.unwrap().text().await.unwrap(), "ok");
    }
    assert!(began.elapsed() < Duration::from_secs(5), "one after the other");
}

pub(crate) async fn secure(
    address: SocketAddr,
    ca: &[u8],
    protocol: &[u8],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca).unwrap()).unwrap();
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        rustls::ClientConfig::builder_with_provider(ring).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let io = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), io).await
}

/// Asks by TLS; an error when the certificate is not of that authority.
async fn ask_secure(address: SocketAddr, ca: &[u8]) -> std::io::Result<Message> {
    let mut raw = Raw::new(secure(address, ca, b"http/1.1").await?);
    raw.write("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    Ok(raw.answer("GET").await.1)
}

#[tokio::test]
async fn tls_speaks_both_protocols_and_takes_a_new_certificate_without_dropping_a_connection() {
    let upstream = RawUpstream::start(|_, _| vec![send(OK)]).await;
    let certificates = Certificates::new();
    let (cert, key) = (certificates.text("cert.pem"), certificates.text("key.pem"));
    let variables = [
        ("UPSTREAM_URL", upstream.url()),
        ("TIDEGATE__SERVER__TLS_CERT", cert),
        ("TIDEGATE__SERVER__TLS_KEY", key),
        ("TIDEGATE__SERVER__HEAD_TIMEOUT_MS", "1000".to_owned()),
        ("TIDEGATE__POLICIES__WATCH", "false".to_owned()),
    ];
    let variables: Vec<(&str, &str)> =
        variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let tidegate = Tidegate::start(None, &variables).await;
    let ca = certificates.bytes("ca.pem");
    assert_eq!(ask_secure(tidegate.main, &ca).await.unwrap().status(), 200);
    let seen = upstream.seen.lock()[0].clone();
    assert_eq!(seen.header("x-forwarded-proto").as_deref(), Some("https"));
    assert!(seen.header("forwarded").unwrap().ends_with(";proto=https"));

    // HTTP/2, by ALPN.
    let io = secure(tidegate.main, &ca, b"h2").await.unwrap();
    assert_eq!(io.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let io = hyper_util::rt::TokioIo::new(io);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, String>(hyper_util::rt::TokioExecutor::new(), io)
            .await
            .unwrap();
    tokio::spawn(connection);
    let request = || hyper::Request::get("https://localhost/two").body(String::new()).unwrap();
    assert_eq!(sender.send_request(request()).await.unwrap().status(), 200);

    // A bad file changes nothing, and is said; a good one is shown to whoever connects from then on.
    let mut kept = Raw::new(secure(tidegate.main, &ca, b"http/1.1").await.unwrap());
    let good = certificates.bytes("key.pem");
    std::fs::write(certificates.path("key.pem"), "-----BEGIN nothing").unwrap();
    tidegate.hang_up();
    until("it is said", async || tidegate.lines_with("reload failed, nothing was changed") == 1).await;
    assert!(tidegate.output().contains("key.pem"));
    assert_eq!(ask_secure(tidegate.main, &ca).await.unwrap().status(), 200);
    std::fs::write(certificates.path("key.pem"), good).unwrap();
    certificates.renew();
    let (status, _) = tidegate.reload().await;
    assert_eq!(status, 200);
    assert!(ask_secure(tidegate.main, &ca).await.is_err(), "the old one is still shown");
    assert_eq!(ask_secure(tidegate.main, &certificates.bytes("ca.pem")).await.unwrap().status(), 200);
    kept.write("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(kept.answer("GET").await.1.status(), 200, "it was there before");
    assert_eq!(sender.send_request(request()).await.unwrap().status(), 200, "so was that of HTTP/2");

    // Whoever speaks no TLS, or nothing at all, is let go.
    let mut plain = Raw::connect(tidegate.main).await;
    plain.write("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert!(plain.is_closed().await);
    assert!(Raw::connect(tidegate.main).await.is_closed().await);
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_stops_the_start() {
    let certificates = Certificates::new();
    let other = Certificates::new();
    let directory = tempfile::tempdir().unwrap();
    for (cert, key, words) in [
        (certificates.text("cert.pem"), other.text("key.pem"), "is not the key of the certificate"),
        (certificates.text("cert.pem"), String::new(), "server.tls_key is not set"),
        ("nowhere.pem".to_owned(), certificates.text("key.pem"), "there is no such file"),
    ] {
        let output = crate::support::process::command(directory.path())
            .envs([("PORT", "0"), ("ADMIN_ADDR", "127.0.0.1:0")])
            .env("TIDEGATE__SERVER__TLS_CERT", cert)
            .env("TIDEGATE__SERVER__TLS_KEY", key)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(words), "{words} in {text}");
    }
}

#[tokio::test]
async fn unix_sockets_carry_both_sides() {
    let directory = tempfile::tempdir().unwrap();
    let (theirs, ours) = (directory.path().join("app.sock"), directory.path().join("tidegate.sock"));
    let listener = UnixListener::bind(&theirs).unwrap();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut io = Raw::new(io);
                while let Ok(request) = io.head().await {
                    let told =
                        format!("{:?} {:?}", request.header("host"), request.header("x-forwarded-for"));
                    io.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{told}", told.len()))
                        .await;
                }
            });
        }
    });
    let url = format!("unix://{}", theirs.display());
    // Left behind by a process that was killed.
    drop(std::os::unix::net::UnixListener::bind(&ours).unwrap());
    let ours_text = ours.display().to_string();
    let tidegate = before(&url, &[("TIDEGATE__SERVER__UNIX_SOCKET", &ours_text)]).await;
    let by_tcp = ask(tidegate.main, "GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.1;
    assert_eq!(String::from_utf8_lossy(&by_tcp.body), r#"Some("h") Some("127.0.0.1")"#);
    let mut raw = Raw::new(UnixStream::connect(&ours).await.unwrap());
    for _ in 0..2 {
        raw.write("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
        let answer = raw.answer("GET").await.1;
        assert_eq!(String::from_utf8_lossy(&answer.body), r#"Some("h") None"#);
    }
    std::fs::remove_file(&theirs).unwrap();
}

#[tokio::test]
async fn a_unix_socket_caller_without_token_gets_401() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("tidegate.sock");
    let socket_text = socket.display().to_string();
    let variables = [("TIDEGATE__SERVER__UNIX_SOCKET", &*socket_text), ("ADMIN_ADDR", "main")];
    let tidegate = Tidegate::start(None, &variables).await;
    for (path, header, wanted) in [
        ("/_tidegate/admin/rollout", String::new(), 401),
        ("/_tidegate/metrics", String::new(), 401),
        (
            "/_tidegate/admin/rollout",
            "Authorization: Bearer a-wrong-token-of-32-characters-yy\r\n".into(),
            401,
        ),
        ("/_tidegate/admin/rollout", format!("Authorization: Bearer {ADMIN_TOKEN}\r\n"), 200),
    ] {
        let mut raw = Raw::new(UnixStream::connect(&socket).await.unwrap());
        raw.write(format!("GET {path} HTTP/1.1\r\nHost: h\r\n{header}\r\n")).await;
        assert_eq!(raw.answer("GET").await.1.status(), wanted, "{path} {header}");
    }
    // Guesses at the socket are counted like others.
    let mut statuses = Vec::new();
    for _ in 0..80 {
        let mut raw = Raw::new(UnixStream::connect(&socket).await.unwrap());
        raw.write("GET /_tidegate/admin/rollout HTTP/1.1\r\nHost: h\r\n\r\n").await;
        statuses.push(raw.answer("GET").await.1.status());
    }
    assert!(statuses.contains(&429), "{statuses:?}");
    drop(tidegate);
}

#[tokio::test]
async fn several_upstreams_take_turns_and_one_that_is_down_costs_no_request() {
    let (one, other) =
        (RawUpstream::start(|_, _| vec![send(OK)]).await, RawUpstream::start(|_, _| vec![send(OK)]).await);
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let urls = format!("{}, {nobody}, {}", one.url(), other.url());
    let tidegate = before(&urls, &[]).await;
    for number in 0..40 {
        // Nothing was sent to the one that is down, so what may not be repeated is safe as well.
        let method = if number % 2 == 0 { "GET" } else { "POST" };
        let request = format!("{method} /{number} HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(ask(tidegate.main, request).await.1.status(), 200);
    }
    assert_eq!(one.requests() + other.requests(), 40);
    assert!(one.requests() >= 12 && other.requests() >= 12, "{} and {}", one.requests(), other.requests());
    // Passed over, it is not asked each time.
    until("it is said once", async || tidegate.lines_with("the upstream failed") >= 1).await;
    assert!(tidegate.lines_with("the upstream failed") <= 3);
    // All of them away is 502, and back is back.
    drop((one, other));
    let answer = ask(tidegate.main, "GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.1;
    assert_eq!(answer.status(), 502);
    assert!(!String::from_utf8_lossy(&answer.body).contains("127.0.0.1"));
}

#[tokio::test]
async fn an_upstream_behind_tls_is_believed_by_its_certificate_and_a_name_by_any_of_its_addresses() {
    let upstream = RawUpstream::start(|_, _| vec![send(OK)]).await;
    let certificates = Certificates::new();
    let chain = CertificateDer::pem_file_iter(certificates.path("cert.pem")).unwrap().map(Result::unwrap);
    let key = rustls::pki_types::PrivateKeyDer::from_pem_file(certificates.path("key.pem")).unwrap();
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        rustls::ServerConfig::builder_with_provider(ring).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(chain.collect(), key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, plain) = (listener.local_addr().unwrap().port(), upstream.address);
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut io) = acceptor.accept(io).await else { return };
                let mut to = TcpStream::connect(plain).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut io, &mut to).await;
            });
        }
    });
    let ca = certificates.text("ca.pem");
    let stranger = Certificates::new();
    let other = stranger.text("ca.pem");
    for (url, authority, wanted) in [
        (format!("https://localhost:{port}"), &ca, 200),
        // The certificate is of another name, or of an authority that nobody knows.
        (format!("https://127.0.0.1:{port}"), &ca, 502),
        (format!("https://localhost:{port}"), &other, 502),
        // Without TLS: of the addresses of this name one is listened on.
        (format!("http://localhost:{}", plain.port()), &ca, 200),
    ] {
        let tidegate =
            before(&url, &[("SSL_CERT_FILE", authority), ("TIDEGATE__UPSTREAM__PRESERVE_HOST", "false")])
                .await;
        for _ in 0..2 {
            let answer = ask(tidegate.main, "GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.1;
            assert_eq!(answer.status(), wanted, "{url}");
        }
        if wanted == 200 {
            let host = url.split("//").nth(1).unwrap().to_owned();
            assert_eq!(upstream.seen.lock().last().unwrap().header("host"), Some(host));
        }
    }
    assert_eq!(upstream.requests(), 4);
}
