//! A span for each recorded request, sent to a collector over OTLP (HTTP, protobuf).
//!
//! Whoever collects is not waited for: spans wait in a queue of bounded length, and what finds it full is dropped and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{Protocol, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use tokio::sync::{mpsc, oneshot};

use crate::limiter::event::{Exchange, Trace};

/// Spans that wait at most: some 2 MiB.
const QUEUE: usize = 4_096;
/// Spans of one request to the collector at most,
const BATCH: usize = 512;
/// and how long the first of them waits for company.
const WAIT: Duration = Duration::from_millis(500);
/// How long the collector may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// From one line about a collector that fails to the next.
const TELL_EVERY: Duration = Duration::from_secs(300);

enum Item {
    Span(Box<SpanData>),
    Flush(oneshot::Sender<()>),
}

/// Where spans are put.
#[derive(Debug)]
pub struct Spans {
    queue: mpsc::Sender<Item>,
    dropped: Arc<AtomicU64>,
    scope: InstrumentationScope,
}

/// Takes them to the collector.
pub struct Export {
    exporter: opentelemetry_otlp::SpanExporter,
    queue: mpsc::Receiver<Item>,
    dropped: Arc<AtomicU64>,
}

impl Spans {
    /// For the collector at `endpoint`, `http://HOST:4318` for instance; without a path its `/v1/traces`.
    ///
    /// # Errors
    /// When the way to it can't be made.
    pub fn to(endpoint: &str, service: &str) -> Result<(Self, Export), String> {
        let connector = hyper_rustls::HttpsConnectorBuilder::new().with_native_roots();
        let connector = connector.map_err(|error| format!("this machine's certificates: {error}"))?;
        let client = HyperClient::new(connector.https_or_http().enable_http1().build(), PATIENCE, None);
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_http_client(client)
            .with_endpoint(traces_of(endpoint))
            .build();
        let mut exporter = exporter.map_err(|error| error.to_string())?;
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder().with_service_name(service.to_owned()).with_attribute(version);
        exporter.set_resource(&resource.build());
        let (sender, queue) = mpsc::channel(QUEUE);
        let dropped = Arc::<AtomicU64>::default();
        let scope = InstrumentationScope::builder("tidegate").with_version(env!("CARGO_PKG_VERSION")).build();
        let spans = Self { queue: sender, dropped: Arc::clone(&dropped), scope };
        Ok((spans, Export { exporter, queue, dropped }))
    }

    /// Puts the span of an exchange into the queue, if its trace is recorded.
    pub(super) fn tell(&self, exchange: &Exchange<'_>) {
        let Some(trace) = exchange.trace.filter(|trace| trace.is_sampled) else { return };
        let Ok(place) = self.queue.try_reserve() else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        place.send(Item::Span(Box::new(span(exchange, trace, self.scope.clone()))));
    }

    /// Waits until what is in the queue was taken to the collector.
    pub async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        if self.queue.send(Item::Flush(done)).await.is_ok() {
            let _ = wait.await;
        }
    }
}

impl Export {
    /// Takes them there, until nobody puts any into the queue.
    pub async fn run(mut self) {
        let (mut told, mut untold): (Option<Instant>, u64) = (None, 0);
        let mut items = Vec::with_capacity(BATCH);
        while self.queue.recv_many(&mut items, BATCH).await > 0 {
            let until = tokio::time::Instant::now() + WAIT;
            while items.len() < BATCH && items.iter().all(|item| matches!(item, Item::Span(_))) {
                let room = BATCH - items.len();
                match tokio::time::timeout_at(until, self.queue.recv_many(&mut items, room)).await {
                    Ok(1..) => {}
                    _ => break,
                }
            }
            let mut flushed = Vec::new();
            let mut spans = Vec::with_capacity(items.len());
            for item in items.drain(..) {
                match item {
                    Item::Span(span) => spans.push(*span),
                    Item::Flush(done) => flushed.push(done),
                }
            }
            let count = spans.len() as u64;
            let sent = if spans.is_empty() { Ok(()) } else { self.exporter.export(spans).await };
            drop(flushed);
            let fault = sent.err();
            untold += self.dropped.swap(0, Ordering::Relaxed) + fault.as_ref().map_or(0, |_| count);
            if untold > 0 && told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                let detail = fault.map_or("the queue was full".to_owned(), |fault| fault.to_string());
                tracing::warn!(target: "tidegate", spans = untold, detail, "spans were not delivered to the collector (tracing.endpoint) and are lost");
                (told, untold) = (Some(Instant::now()), 0);
            }
        }
    }
}

/// The collector's place for traces.
fn traces_of(endpoint: &str) -> String {
    let path = endpoint.split_once("://").and_then(|(_, rest)| rest.split_once('/'));
    match path {
        Some((_, path)) if !path.is_empty() => endpoint.to_owned(),
        _ => format!("{}/v1/traces", endpoint.trim_end_matches('/')),
    }
}

/// By the names of OpenTelemetry's semantic conventions for HTTP servers, and ours. No client is named.
fn span(exchange: &Exchange<'_>, trace: Trace, scope: InstrumentationScope) -> SpanData {
    let method = exchange.method.to_owned();
    let mut attributes = vec![
        KeyValue::new("http.request.method", method.clone()),
        KeyValue::new("url.path", exchange.path.to_owned()),
        KeyValue::new("http.response.status_code", i64::from(exchange.status)),
        KeyValue::new("tidegate.request_id", exchange.request_id.to_owned()),
        KeyValue::new("tidegate.origin", exchange.origin.as_str()),
    ];
    if let Some(decision) = exchange.decision {
        attributes.extend([
            KeyValue::new("tidegate.rl_backend", decision.backend().as_str()),
            KeyValue::new("tidegate.rate_limit_state", decision.state.as_str()),
            KeyValue::new("tidegate.arm", decision.arm().as_str()),
            KeyValue::new("tidegate.fallback", decision.fallback().is_some()),
            KeyValue::new("tidegate.decision_us", exchange.deciding_took.as_micros() as i64),
        ]);
        if let Some(policy) = decision.policy() {
            attributes.push(KeyValue::new("tidegate.policy", policy.to_owned()));
        }
    }
    let end_time = SystemTime::now();
    let flags = TraceFlags::SAMPLED;
    let (trace_id, span_id) = (TraceId::from(trace.trace_id), SpanId::from(trace.span_id));
    SpanData {
        span_context: SpanContext::new(trace_id, span_id, flags, false, TraceState::default()),
        parent_span_id: trace.parent_id.map_or(SpanId::INVALID, SpanId::from),
        parent_span_is_remote: trace.parent_id.is_some(),
        span_kind: SpanKind::Server,
        name: method.into(),
        start_time: end_time.checked_sub(exchange.took).unwrap_or(end_time),
        end_time,
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        // Of a client's own fault the conventions say: unset.
        status: if exchange.status >= 500 { Status::error("") } else { Status::Unset },
        instrumentation_scope: scope,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_without_a_path_takes_traces_at_its_usual_one() {
        assert_eq!(traces_of("http://127.0.0.1:4318"), "http://127.0.0.1:4318/v1/traces");
        assert_eq!(traces_of("https://c.example/"), "https://c.example/v1/traces");
        assert_eq!(traces_of("https://c.example/otlp/v1/traces"), "https://c.example/otlp/v1/traces");
    }
}
