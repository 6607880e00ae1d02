//! One request and its answer, told to the observer when the answer's last byte is out or its client is gone.

use std::future::{Future, Ready, ready};
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::body::{BodySize, MessageBody};
use actix_web::dev::{Service, ServiceRequest, ServiceResponse, Transform, forward_ready};
use actix_web::http::{ConnectionType, Method, StatusCode, Uri};
use actix_web::web::Bytes;
use actix_web::{Error, HttpMessage, HttpRequest};
use pin_project_lite::pin_project;
use quanta::Instant;
use tracing_actix_web::RequestId;

use super::client_ip::TrustedProxies;
use super::health::Leaving;
use super::judged::Judged;
use super::trace::Tracing;
use super::wire::Line;
use super::wire::framer::LONGEST_METHOD;
use crate::limiter::event::{Event, Exchange, Observer, Origin, Trace};

/// The status under which a request is told whose client left before there was an answer, as nginx does.
const CLIENT_LEFT: u16 = 499;
/// That of one whose body was malformed.
const MALFORMED: u16 = 400;
/// That of one that was cut at the end of the process.
const CUT: u16 = 503;
/// There is no answer.
const UNANSWERED: u16 = 0;

/// Put among a response's extensions, it keeps the exchange untold: probes would drown the log.
pub(crate) struct Untold;

/// Held by every exchange that is not logged yet, and by everything that can begin one.
#[derive(Clone, Debug)]
pub struct UnderWay(Arc<Leaving>);

/// How often [`UnderWay::drained`] looks.
const DRAIN_LOOK: Duration = Duration::from_millis(5);

impl UnderWay {
    /// Of a process that may be `leaving`.
    pub fn new(leaving: Leaving) -> Self {
        Self(Arc::new(leaving))
    }

    /// Waits until this is the last clone, at most `longest`. A server that has ended leaves its workers to drop what they cut
    /// off, each on its own thread: a process that ends before loses their lines in the log.
    pub async fn drained(self, longest: Duration) {
        let last = async {
            while Arc::strong_count(&self.0) > 1 {
                tokio::time::sleep(DRAIN_LOOK).await;
            }
        };
        // Whatever is still there is hung, and the process ends without its line.
        let _ = tokio::time::timeout(longest, last).await;
    }
}

/// Tells of every exchange that passes.
#[derive(Clone)]
pub struct Exchanges {
    observer: Arc<dyn Observer>,
    proxies: Arc<TrustedProxies>,
    under_way: UnderWay,
    tracing: Option<Tracing>,
}

impl Exchanges {
    /// Tells `observer`, naming clients as `proxies` vouch for them. Once the process leaves, every answer is the last of its
    /// connection.
    pub fn told_to(observer: Arc<dyn Observer>, proxies: Arc<TrustedProxies>, under_way: UnderWay) -> Self {
        Self { observer, proxies, under_way, tracing: None }
    }

    /// With a place in a distributed trace for each, which the gateway tells the upstream.
    pub fn traced(mut self, tracing: Option<Tracing>) -> Self {
        self.tracing = tracing;
        self
    }
}

impl<T, B> Transform<T, ServiceRequest> for Exchanges
where
    T: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
    T::Future: 'static,
    B: MessageBody,
{
    type Response = ServiceResponse<Told<B>>;
    type Error = Error;
    type Transform = ExchangesService<T>;
    type InitError = ();
    type Future = Ready<Result<Self::Transform, ()>>;

    fn new_transform(&self, service: T) -> Self::Future {
        ready(Ok(ExchangesService { told: self.clone(), service }))
    }
}

/// [`Exchanges`] around one service.
pub struct ExchangesService<T> {
    told: Exchanges,
    service: T,
}

impl<T, B> Service<ServiceRequest> for ExchangesService<T>
where
    T: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
    T::Future: 'static,
    B: MessageBody,
{
    type Response = ServiceResponse<Told<B>>;
    type Error = Error;
    type Future = Telling<T::Future>;

    forward_ready!(service);

    fn call(&self, request: ServiceRequest) -> Self::Future {
        let judged = Judged::default();
        let changing = request.head().connection_type() == ConnectionType::Upgrade;
        let line = request.conn_data::<Rc<Line>>().map(Rc::clone);
        let trace = self.told.tracing.map(|tracing| tracing.begin(request.headers()));
        let request_id = {
            let mut extensions = request.extensions_mut();
            extensions.insert(judged.clone());
            if let Some(trace) = trace {
                extensions.insert(trace);
            }
            extensions.get::<RequestId>().copied()
        };
        let proxies = &self.told.proxies;
        let client = request.request().peer_addr().map(|peer| proxies.client(peer.ip(), request.headers()));
        let client = client.map(|client| {
            if client.is_disputed() {
                self.told.observer.observe(&Event::ClientDisputed { counted: client.address() });
            }
            client.address()
        });
        let record = Record {
            observer: Arc::clone(&self.told.observer),
            started: Instant::now(),
            request_id,
            method: request.method().clone(),
            uri: request.uri().clone(),
            client,
            status: UNANSWERED,
            origin: Origin::Gateway,
            judged,
            untold: false,
            trace,
            line,
            under_way: self.told.under_way.clone(),
        };
        Telling { answer: self.service.call(request), record: Some(Box::new(record)), changing }
    }
}

/// The id of a request, as in the log.
pub fn request_id(request: &HttpRequest) -> Option<String> {
    request.extensions().get::<RequestId>().map(ToString::to_string)
}

pin_project! {
    /// An exchange whose answer is still being made.
    pub struct Telling<F> {
        #[pin]
        answer: F,
        record: Option<Box<Record>>,
        changing: bool,
    }
}

impl<F, B> Future for Telling<F>
where
    F: Future<Output = Result<ServiceResponse<B>, Error>>,
    B: MessageBody,
{
    type Output = Result<ServiceResponse<Told<B>>, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let outcome = std::task::ready!(this.answer.poll(context));
        let mut record = this.record.take();
        Poll::Ready(match outcome {
            Ok(mut response) => {
                // The server below would call any answer to a wish for another protocol a change to it, and close the
                // connection: that much is to be said.
                let is_leaving = record.as_ref().is_some_and(|record| record.under_way.0.has_begun());
                let is_last = is_leaving || *this.changing;
                if is_last && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
                }
                if let Some(record) = &mut record {
                    record.status = response.status().as_u16();
                    let extensions = response.response().extensions();
                    record.origin = extensions.get::<Origin>().copied().unwrap_or(Origin::Gateway);
                    record.untold = extensions.get::<Untold>().is_some();
                }
                Ok(response.map_body(|_, body| Told { body, record }))
            }
            Err(error) => {
                if let Some(record) = &mut record {
                    record.status = error.as_response_error().status_code().as_u16();
                }
                Err(error)
            }
        })
    }
}

pin_project! {
    /// A body that tells of its exchange when it is dropped.
    pub struct Told<B> {
        #[pin]
        body: B,
        record: Option<Box<Record>>,
    }
}

impl<B: MessageBody> MessageBody for Told<B> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        self.project().body.poll_next(context)
    }

    fn try_into_bytes(mut self) -> Result<Bytes, Self> {
        let record = self.record.take();
        match self.body.try_into_bytes() {
            // The record is dropped, and so told, here: the whole body is known.
            Ok(bytes) => Ok(bytes),
            Err(body) => Err(Self { body, record }),
        }
    }
}

struct Record {
    observer: Arc<dyn Observer>,
    started: Instant,
    request_id: Option<RequestId>,
    method: Method,
    uri: Uri,
    client: Option<IpAddr>,
    status: u16,
    origin: Origin,
    judged: Judged,
    untold: bool,
    trace: Option<Trace>,
    line: Option<Rc<Line>>,
    under_way: UnderWay,
}

impl Record {
    /// The status of a request that ends without an answer.
    fn unanswered(&self) -> u16 {
        match &self.line {
            Some(line) if line.is_at_fault() => MALFORMED,
            Some(line) if self.under_way.0.has_begun() && !line.has_ended() => CUT,
            _ => CLIENT_LEFT,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.untold {
            return;
        }
        let status = if self.status == UNANSWERED { self.unanswered() } else { self.status };
        let mut buffer = [0; uuid::fmt::Hyphenated::LENGTH];
        let request_id = match &self.request_id {
            Some(id) => &*id.as_hyphenated().encode_lower(&mut buffer),
            None => "",
        };
        self.observer.observe(&Event::Answered(&Exchange {
            request_id,
            method: self.method.as_str().get(..LONGEST_METHOD).unwrap_or(self.method.as_str()),
            path: self.uri.path(),
            client: self.client,
            status,
            took: self.started.elapsed(),
            origin: self.origin,
            decision: self.judged.decision(),
            deciding_took: self.judged.took(),
            token: self.judged.token(),
            trace: self.trace,
        }));
    }
}
