//! Spans of requests at a collector (`--features otel`).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::web::{self, Bytes};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, rt};
use parking_lot::Mutex;
use serde_json::Value;

use support::process::Tidegate;
use support::upstream::Upstream;
use support::{relay::Relay, until};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// An OTLP collector over HTTP on a port of its own.
struct Collector {
    port: u16,
    spans: Arc<Mutex<Vec<Span>>>,
    handle: actix_web::dev::ServerHandle,
}

#[derive(Clone, Debug, Default)]
struct Span {
    service: String,
    trace: String,
    id: String,
    parent: String,
    attributes: Vec<(String, String)>,
    took: Duration,
    status: u64,
}

impl Span {
    fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(one, _)| one == name).map(|(_, value)| value.as_str())
    }
}

impl Collector {
    fn start() -> Self {
        let spans = Arc::<Mutex<Vec<Span>>>::default();
        let seen = Arc::clone(&spans);
        let (started, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            rt::System::new().block_on(async move {
                let server = HttpServer::new(move || {
                    let seen = Arc::clone(&seen);
                    App::new().route(
                        "/v1/traces",
                        web::post().to(move |request: HttpRequest, body: Bytes| {
                            let kind = request.headers().get("content-type").unwrap();
                            assert_eq!(kind, "application/x-protobuf");
                            seen.lock().extend(spans_of(&body));
                            async { HttpResponse::Ok() }
                        }),
                    )
                });
                let server = server.workers(1).disable_signals().bind("127.0.0.1:0").unwrap();
                let port = server.addrs()[0].port();
                let server = server.run();
                started.send((port, server.handle())).unwrap();
                server.await.unwrap();
            });
        });
        let (port, handle) = wait.recv().unwrap();
        Self { port, spans, handle }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    async fn has(&self, count: usize) -> Vec<Span> {
        until("the spans are delivered", async || self.spans.lock().len() >= count).await;
        self.spans.lock().clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        drop(self.handle.stop(false));
    }
}

/// The spans of an `ExportTraceServiceRequest`, by the numbers of its fields.
fn spans_of(body: &[u8]) -> Vec<Span> {
    let mut spans = Vec::new();
    for of_resource in all(body, 1) {
        let attributes = all(of_resource, 1).flat_map(|resource| all(resource, 1)).map(pair);
        let service = attributes.filter(|(name, _)| name == "service.name").map(|(_, value)| value).last();
        for span in all(of_resource, 2).flat_map(|of_scope| all(of_scope, 2)) {
            let hex = |field| all(span, field).flatten().map(|byte| format!("{byte:02x}")).collect();
            let fixed = |field| {
                let bytes = all(span, field).next().unwrap();
                Duration::from_nanos(u64::from_le_bytes(bytes.try_into().unwrap()))
            };
            spans.push(Span {
                service: service.clone().unwrap_or_default(),
                trace: hex(1),
                id: hex(2),
                parent: hex(4),
                attributes: all(span, 9).map(pair).collect(),
                took: fixed(8) - fixed(7),
                status: all(span, 15)
                    .flat_map(|status| all(status, 3))
                    .map(number)
                    .next()
                    .unwrap_or_default(),
            });
        }
    }
    spans
}

/// An attribute in words.
fn pair(bytes: &[u8]) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let value = all(bytes, 2).next().unwrap();
    let strings = all(value, 1).map(text);
    let booleans = all(value, 2).map(|bytes| (number(bytes) == 1).to_string());
    let numbers = all(value, 3).map(|bytes| number(bytes).to_string());
    (text(all(bytes, 1).next().unwrap()), strings.chain(booleans).chain(numbers).next().unwrap())
}

/// A varint.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |sum, byte| sum << 7 | u64::from(byte & 0x7f))
}

/// Takes a varint's bytes.
fn varint<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let end = rest.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
    let bytes;
    (bytes, *rest) = rest.split_at(end);
    bytes
}

/// The contents of each field of this number in a protobuf message; of a varint its bytes.
fn all(message: &[u8], wanted: u64) -> impl Iterator<Item = &[u8]> {
    let mut rest = message;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let key = number(varint(&mut rest));
        let contents = match key & 7 {
            0 => varint(&mut rest),
            kind => {
                let length = match kind {
                    1 => 8,
                    5 => 4,
                    2 => number(varint(&mut rest)) as usize,
                    other => panic!("wire type {other}"),
                };
                let bytes;
                (bytes, rest) = rest.split_at(length);
                bytes
            }
        };
        if key >> 3 == wanted {
            found.push(contents);
        }
    }
    found.into_iter()
}

/// What the upstream was told, by the echo of its headers.
async fn asked(tidegate: &Tidegate, headers: &[(&str, &str)]) -> Value {
    let mut request = tidegate.http.get(tidegate.url("/echo?secret=1"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.json().await.unwrap()
}

fn told<'a>(echo: &'a Value, name: &str) -> Option<&'a str> {
    let headers = echo["headers"].as_array().unwrap();
    let mut values = headers.iter().filter(|pair| pair[0] == name);
    let value = values.next()?[1].as_str();
    assert!(values.next().is_none(), "one {name}");
    value
}

#[tokio::test]
async fn a_request_is_a_span_of_its_callers_trace_and_the_parent_of_what_the_upstream_does() {
    let (collector, upstream) = (Collector::start(), Upstream::start());
    let variables = [
        ("UPSTREAM_URL", &*upstream.url()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.url()),
        ("OTEL_SERVICE_NAME", "the-front"),
    ];
    let tidegate = Tidegate::start(None, &variables).await;
    let given = format!("00-{TRACE}-{PARENT}-01");
    let echo = asked(&tidegate, &[("traceparent", &given), ("tracestate", "vendor=x")]).await;
    let [span] = &collector.has(1).await[..] else { panic!("one span") };
    assert_eq!((&*span.service, &*span.trace, &*span.parent), ("the-front", TRACE, PARENT));
    assert_eq!(told(&echo, "traceparent").unwrap(), format!("00-{TRACE}-{}-01", span.id));
    assert_eq!(told(&echo, "tracestate"), Some("vendor=x"));
    for (name, value) in [
        ("http.request.method", "GET"),
        ("url.path", "/echo"),
        ("http.response.status_code", "200"),
        ("tidegate.rl_backend", "memory"),
        ("tidegate.rate_limit_state", "allow"),
        ("tidegate.policy", "default"),
        ("tidegate.origin", "upstream"),
        ("tidegate.fallback", "false"),
    ] {
        assert_eq!(span.attribute(name), Some(value), "{name} of {span:?}");
    }
    let line = tidegate.request_lines(1).await.remove(0);
    assert_eq!(span.attribute("tidegate.request_id"), line["request_id"].as_str());
    assert!(span.took > Duration::ZERO && span.took < Duration::from_secs(10) && span.status == 0);
    assert!(!format!("{span:?}").contains("secret") && !format!("{span:?}").contains("127.0.0.1"));

    // Without a trace one begins here, and the vendor's part of none is not passed on.
    let echo = asked(&tidegate, &[("traceparent", "nonsense"), ("tracestate", "vendor=x")]).await;
    let span = collector.has(2).await.remove(1);
    assert_eq!(told(&echo, "traceparent").unwrap(), format!("00-{}-{}-01", span.trace, span.id));
    assert_eq!((told(&echo, "tracestate"), &*span.parent), (None, ""));

    // Whose caller has decided against it is not recorded, and the upstream is told.
    let echo = asked(&tidegate, &[("traceparent", &given.replace("-01", "-00"))]).await;
    let outgoing = told(&echo, "traceparent").unwrap();
    assert!(outgoing.starts_with(&format!("00-{TRACE}-")) && outgoing.ends_with("-00"), "{outgoing}");
    assert_ne!(outgoing, given.replace("-01", "-00"));
    // A fault of ours or of the upstream is one of the span; a client's is none.
    assert_eq!(tidegate.get("/status/503").await.status(), 503);
    assert_eq!(tidegate.get("/status/404").await.status(), 404);
    let spans = collector.has(4).await;
    assert_eq!((spans.len(), spans[2].status, spans[3].status), (4, 2, 0), "{spans:?}");
}

#[tokio::test]
async fn a_collector_that_is_dead_or_hangs_costs_requests_nothing_and_is_said_once() {
    let collector = Collector::start();
    let relay = Relay::to(collector.port).await;
    let url = format!("http://{}", relay.address);
    relay.refuse();
    let mut tidegate = Tidegate::start(None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &url)]).await;
    let many = async |count: usize| {
        let begun = Instant::now();
        for _ in 0..count {
            tidegate.http.post(tidegate.url("/v1/check")).body(r#"{"key":"k"}"#).send().await.unwrap();
        }
        begun.elapsed()
    };
    many(50).await;
    tidegate.says("spans were not delivered to the collector", 1).await;
    relay.black_hole();
    relay.accept();
    // More than the queue holds.
    let took = many(5_000).await;
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert_eq!(tidegate.lines_with("spans were not delivered to the collector"), 1);
    // When it is back, so are the spans; and the end does not wait for it.
    relay.thaw();
    relay.cut();
    let known = collector.spans.lock().len();
    until("spans come again", async || {
        many(1).await;
        collector.spans.lock().len() > known
    })
    .await;
    relay.black_hole();
    many(1).await;
    tidegate.terminate();
    assert!(tidegate.wait(Duration::from_secs(10)).unwrap().success());
}
