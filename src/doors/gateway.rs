//! The reverse proxy: a request that was let through goes to the upstream, and its answer comes back, both as they
//! flow.

use std::sync::Arc;
use std::time::Duration;

use actix_web::body::{BodySize, BodyStream, BoxBody, SizedStream};
use actix_web::http::{ConnectionType, Method, StatusCode, Version};
use actix_web::web::{Bytes, Payload};
use actix_web::{HttpRequest, HttpResponse};
use futures_util::StreamExt;
use http_body_util::channel::Channel;
use http_body_util::combinators::BoxBody as UpstreamBody;
use http_body_util::{BodyExt, BodyStream as Frames, Empty};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::client_ip::TrustedProxies;
use super::problem::{Cause, Problem};
use super::{forwarding, framing};
use crate::limiter::event::{Event, Observer, Origin};

type Connector = HttpsConnector<HttpConnector>;
pub(super) type OutBody = UpstreamBody<Bytes, BrokenOff>;

/// The client did not send its body to the end.
#[derive(Debug, thiserror::Error)]
#[error("the client's body broke off")]
pub(super) struct BrokenOff;

/// Where requests go and how long they may take.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Scheme, authority and a path that is put before every request's.
    pub base: hyper::Uri,
    /// From sending the request to the head of the answer.
    pub timeout: Duration,
    /// For making a connection.
    pub connect_timeout: Duration,
    /// Whether the upstream sees the host that the client asked for, rather than its own.
    pub preserve_host: bool,
    /// The header in which it tells what a request cost, in lower case. A client's own does not reach it: it may hand
    /// on what it was sent.
    pub cost_header: Option<String>,
}

/// The gateway of one worker: its pool of connections is its own, so that none crosses threads.
#[derive(Clone)]
pub struct Gateway {
    connector: Connector,
    client: Client<Connector, OutBody>,
    upstream: Upstream,
    proxies: Arc<TrustedProxies>,
    observer: Arc<dyn Observer>,
}

impl Gateway {
    /// A gateway to `upstream`.
    ///
    /// # Errors
    /// When the system's certificate authorities cannot be read, which an `https` upstream needs.
    pub fn new(
        upstream: Upstream,
        proxies: Arc<TrustedProxies>,
        observer: Arc<dyn Observer>,
    ) -> std::io::Result<Self> {
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(upstream.connect_timeout));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let tls = hyper_rustls::HttpsConnectorBuilder::new();
        let tls = match upstream.base.scheme_str() {
            Some("https") => tls.with_native_roots()?,
            _ => tls.with_tls_config(
                rustls::ClientConfig::builder()
                    .with_root_certificates(rustls::RootCertStore::empty())
                    .with_no_client_auth(),
            ),
        };
        let connector = tls.https_or_http().enable_http1().wrap_connector(tcp);
        Ok(Self { client: client(connector.clone()), connector, upstream, proxies, observer })
    }

    /// The same gateway with connections of its own.
    pub fn with_own_pool(&self) -> Self {
        Self { client: client(self.connector.clone()), ..self.clone() }
    }

    /// Forwards a request and returns the answer, or one that says why there is none.
    pub async fn forward(&self, request: HttpRequest, payload: Payload) -> HttpResponse {
        match self.exchange(&request, payload).await {
            Ok(response) => response,
            Err(problem) => problem.response(),
        }
    }

    async fn exchange(&self, request: &HttpRequest, payload: Payload) -> Result<HttpResponse, Problem> {
        let mut outgoing = forwarding::request(request, &self.upstream, &self.proxies)?;
        let pump = attach_body(&mut outgoing, request, payload);
        let answer = tokio::time::timeout(self.upstream.timeout, self.client.request(outgoing)).await;
        match answer {
            Ok(Ok(response)) => match framing::doubtful_answer(response.version(), response.headers()) {
                None => Ok(incoming(response, request)),
                Some(detail) => {
                    self.observer.observe(&Event::UpstreamFailed { detail });
                    Err(Problem::new(
                        Cause::UpstreamInvalid,
                        "The upstream's answer can be read in two ways.",
                    ))
                }
            },
            Ok(Err(_)) if pump.waits_for(Awaited::Nothing { broke: true }) => {
                Err(Problem::new(Cause::BadRequest, "The body broke off or was malformed."))
            }
            Ok(Err(error)) => Err(self.failure(&error)),
            // An upstream that still reads can't be blamed; otherwise anybody could make it look slow.
            Err(_) if pump.waits_for(Awaited::Client) => {
                Err(Problem::new(Cause::RequestTimeout, "The body did not arrive in time."))
            }
            Err(_) => {
                self.observer.observe(&Event::UpstreamFailed { detail: "no answer in time" });
                Err(Problem::new(Cause::UpstreamTimeout, "The upstream did not answer in time."))
            }
        }
    }

    fn failure(&self, error: &hyper_util::client::legacy::Error) -> Problem {
        let cause = innermost(error);
        self.observer.observe(&Event::UpstreamFailed { detail: &cause });
        if error.is_connect() {
            let timed_out = cause.contains("timed out") || cause.contains("deadline");
            return match timed_out {
                true => Problem::new(Cause::UpstreamTimeout, "The upstream could not be reached in time."),
                false => Problem::new(Cause::UpstreamUnreachable, "The upstream can't be reached."),
            };
        }
        Problem::new(Cause::UpstreamInvalid, "The upstream broke off or did not answer in HTTP.")
    }
}

fn client(connector: Connector) -> Client<Connector, OutBody> {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        // The host is set with the other headers, by our own rule.
        .set_host(false)
        .build(connector)
}

/// The words at the bottom of an error, which name no address.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// For what the body of a request waits, known to both ends of the pump.
#[derive(Clone)]
struct Pump(std::rc::Rc<std::cell::Cell<Awaited>>);

/// For whom a body waits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaited {
    /// The client is to send more.
    Client,
    /// The upstream is to take what is there.
    Upstream,
    /// It is over.
    Nothing {
        /// Because the client did not send it to the end.
        broke: bool,
    },
}

impl Pump {
    fn waits_for(&self, awaited: Awaited) -> bool {
        self.0.get() == awaited
    }
}

/// Gives the request its body: none, or the client's as it comes in.
fn attach_body(outgoing: &mut hyper::Request<OutBody>, request: &HttpRequest, mut payload: Payload) -> Pump {
    let pump = Pump(std::rc::Rc::new(std::cell::Cell::new(Awaited::Nothing { broke: false })));
    let headers = request.headers();
    let length = headers.get("content-length").and_then(|value| value.to_str().ok());
    if !headers.contains_key("transfer-encoding") && length.is_none_or(|length| length == "0") {
        return pump;
    }
    // The server's payload belongs to its thread and the client wants one that may move: a pump between them.
    let (mut sender, body) = Channel::<Bytes, BrokenOff>::new(4);
    *outgoing.body_mut() = body.boxed();
    pump.0.set(Awaited::Client);
    let told = pump.clone();
    actix_web::rt::spawn(async move {
        while let Some(chunk) = payload.next().await {
            match chunk {
                Ok(chunk) => {
                    told.0.set(Awaited::Upstream);
                    if sender.send_data(chunk).await.is_err() {
                        return;
                    }
                    told.0.set(Awaited::Client);
                }
                Err(_) => {
                    told.0.set(Awaited::Nothing { broke: true });
                    sender.abort(BrokenOff);
                    return;
                }
            }
        }
        told.0.set(Awaited::Nothing { broke: false });
    });
    pump
}

/// The upstream's answer as ours.
fn incoming(response: hyper::Response<Incoming>, request: &HttpRequest) -> HttpResponse {
    let (parts, body) = response.into_parts();
    let status = StatusCode::from_u16(parts.status.as_u16()).unwrap_or(StatusCode::BAD_GATEWAY);
    let length =
        parts.headers.get("content-length").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let mut answer = HttpResponse::new(status);
    forwarding::copy_response_headers(&parts.headers, answer.headers_mut());
    answer.extensions_mut().insert(Origin::Upstream);
    let bodiless = match parts.status.as_u16() {
        _ if request.method() == Method::HEAD => {
            Some(Bodiless(length.map_or(BodySize::Stream, BodySize::Sized)))
        }
        // Whatever length they tell, the server would wait for so many bytes and break off.
        204 | 304 => Some(Bodiless(BodySize::None)),
        _ => None,
    };
    // What the client library counted on, not what a header said beside another framing.
    let length = hyper::body::Body::size_hint(&body).exact();
    let stream = Frames::new(body).filter_map(|frame| async {
        match frame {
            // Trailers have no place in actix's answers.
            Ok(frame) => frame.into_data().ok().map(Ok),
            Err(error) => Some(Err(error)),
        }
    });
    if length.is_none() && request.version() < Version::HTTP_11 {
        // Chunks came with HTTP/1.1. Before, the end of the connection is the end of a body of unknown length.
        answer.head_mut().no_chunking(true);
        answer.head_mut().set_connection_type(ConnectionType::Close);
    }
    answer.set_body(match (bodiless, length) {
        (Some(bodiless), _) => BoxBody::new(bodiless),
        (None, Some(length)) => BoxBody::new(SizedStream::new(length, Box::pin(stream))),
        (None, None) => BoxBody::new(BodyStream::new(Box::pin(stream))),
    })
}

/// No body, and what is told of the one that there would have been. Where its length is not known, 0 in its place
/// would be believed.
struct Bodiless(BodySize);

impl actix_web::body::MessageBody for Bodiless {
    type Error = std::convert::Infallible;

    fn size(&self) -> BodySize {
        self.0
    }

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Bytes, Self::Error>>> {
        std::task::Poll::Ready(None)
    }
}

/// An empty body of the client's kind.
pub(super) fn no_body() -> OutBody {
    Empty::new().map_err(|never| match never {}).boxed()
}
