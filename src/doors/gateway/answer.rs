//! The upstream's answer as ours, its body as it comes.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::http::{ConnectionType, Method, StatusCode, Version};
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse};
use hyper::body::{Body as _, Incoming};
use tokio::time::Instant;

use super::Worker;
use super::ask::{GLANCE, innermost};
use super::body::{Client, State};
use super::connection::Connection;
use super::{forwarding, stalled};
use crate::doors::wire::wait_until;
use crate::limiter::event::{Event, Origin};

/// Turns an answer into ours. Its body keeps the connection until it is over.
pub(super) async fn answer(
    worker: &Rc<Worker>,
    response: hyper::Response<Incoming>,
    connection: Connection,
    request: &HttpRequest,
    client: Rc<Client>,
) -> HttpResponse {
    let (parts, body) = response.into_parts();
    let status = StatusCode::from_u16(parts.status.as_u16()).unwrap_or(StatusCode::BAD_GATEWAY);
    let mut answer = HttpResponse::new(status);
    forwarding::copy_response_headers(&parts.headers, answer.headers_mut());
    answer.extensions_mut().insert(Origin::Upstream);
    if client.has_body && client.state() != State::Complete && status.as_u16() >= 300 {
        // It has made up its mind. Sent on, the rest could only break the connection before its answer is read.
        client.hold();
    }
    let told = parts.headers.get("content-length").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let bodiless = match parts.status.as_u16() {
        _ if request.method() == Method::HEAD => Some(told.map_or(BodySize::Stream, BodySize::Sized)),
        // Whatever length they tell, the server would wait for so many bytes and break off.
        204 | 304 => Some(BodySize::None),
        _ if body.is_end_stream() => Some(BodySize::Sized(0)),
        _ => None,
    };
    if let Some(size) = bodiless {
        give_back(worker, connection, &client).await;
        return answer.set_body(BoxBody::new(Bodiless(size)));
    }
    // What the client library counted on, not what a header said beside another framing.
    let length = body.size_hint().exact();
    if length.is_none() && request.version() < Version::HTTP_11 {
        // Chunks came with HTTP/1.1. Before, the end of the connection is the end of a body of unknown length.
        answer.head_mut().no_chunking(true);
        answer.head_mut().set_connection_type(ConnectionType::Close);
    }
    let now = Instant::now();
    let written = connection.moved().1;
    let source = Rc::new(RefCell::new(Source { connection: Some(connection), handed: None }));
    let watched = client.is_http2() || length.is_none_or(|length| length > stalled::SHORT);
    if watched {
        stalled::watch(worker, &source);
    }
    let flow = Flow {
        body,
        source,
        worker: Rc::clone(worker),
        client,
        length,
        waiting: None,
        written,
        started: now,
        glance: now + GLANCE,
        watched,
        broken: false,
    };
    answer.set_body(BoxBody::new(flow))
}

/// Keeps the connection of an answer that had no body.
async fn give_back(worker: &Worker, mut connection: Connection, client: &Client) {
    let free = poll_fn(|context| Poll::Ready(connection.is_free(context))).await;
    if free && client.state() == State::Complete {
        worker.pool.put(connection);
    }
}

/// No body, and what is told of the one that there would have been. Where its length is not known, 0 in its place
/// would be believed.
struct Bodiless(BodySize);

impl MessageBody for Bodiless {
    type Error = std::convert::Infallible;

    fn size(&self) -> BodySize {
        self.0
    }

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Poll::Ready(None)
    }
}

/// The upstream did not send its answer to the end. The server below breaks the client's off as well.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the upstream's answer broke off")]
struct Broken;

/// A body on its way to the client.
struct Flow {
    body: Incoming,
    source: Rc<RefCell<Source>>,
    worker: Rc<Worker>,
    client: Rc<Client>,
    length: Option<u64>,
    /// Since when the upstream owes something.
    waiting: Option<Instant>,
    /// What of the request had gone to it when that was last looked at.
    written: u64,
    started: Instant,
    glance: Instant,
    /// Whether it is noted when a piece was handed over.
    watched: bool,
    broken: bool,
}

/// Where it comes from.
pub(super) struct Source {
    pub(super) connection: Option<Connection>,
    /// When the client was handed a piece, after which nobody has asked for the next.
    pub(super) handed: Option<Instant>,
}

impl Flow {
    /// It breaks off here. What was there of it goes out first: the server below drops what it holds with the connection.
    fn break_off(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        self.source.borrow_mut().connection = None;
        self.broken = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// What the upstream has sent of it, once the connection was driven.
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, hyper::Error>>> {
        let mut driven = false;
        loop {
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => {
                    // Trailers have no place in the server's answers.
                    if let Ok(bytes) = frame.into_data() {
                        return Poll::Ready(Some(Ok(bytes)));
                    }
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending if driven => return Poll::Pending,
                Poll::Pending => {
                    driven = true;
                    if let Some(connection) = &mut self.source.borrow_mut().connection {
                        connection.drive(context);
                    }
                }
            }
        }
    }

    /// Whether somebody has taken too long.
    fn is_overdue(&mut self, context: &mut Context<'_>) -> bool {
        let upstream = &self.worker.shared.upstream;
        let mut source = self.source.borrow_mut();
        let Some(connection) = &mut source.connection else { return true };
        loop {
            let now = Instant::now();
            let mut deadline = *self.waiting.get_or_insert(now) + upstream.idle_timeout;
            if let Some(total) = upstream.total_timeout {
                deadline = deadline.min(self.started + total);
            }
            let next = if self.client.is_http2() { deadline.min(self.glance) } else { deadline };
            if !wait_until(&mut connection.timer, next, context) {
                return false;
            }
            let written = connection.moved().1;
            if written != self.written
                && self.started.elapsed() < upstream.total_timeout.unwrap_or(Duration::MAX)
            {
                // An upstream that answers first and listens then owes nothing while it is still told.
                (self.written, self.waiting) = (written, None);
                continue;
            }
            if Instant::now() >= deadline {
                self.worker
                    .shared
                    .observer
                    .observe(&Event::UpstreamFailed { detail: "its answer came to a stop" });
                return true;
            }
            self.glance = Instant::now() + GLANCE;
            if self.client.is_gone(context) {
                return true;
            }
        }
    }
}

impl MessageBody for Flow {
    type Error = Broken;

    fn size(&self) -> BodySize {
        self.length.map_or(BodySize::Stream, BodySize::Sized)
    }

    fn poll_next(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let this = self.get_mut();
        if this.broken {
            return Poll::Ready(Some(Err(Broken)));
        }
        this.source.borrow_mut().handed = None;
        match this.poll_piece(context) {
            Poll::Ready(Some(Ok(bytes))) => {
                this.waiting = None;
                if this.watched {
                    this.source.borrow_mut().handed = Some(Instant::now());
                }
                Poll::Ready(Some(Ok(bytes)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.worker.shared.observer.observe(&Event::UpstreamFailed { detail: &innermost(&error) });
                this.break_off(context)
            }
            Poll::Ready(None) => {
                let connection = this.source.borrow_mut().connection.take();
                if let Some(mut connection) = connection
                    && connection.is_free(context)
                    && this.client.state() == State::Complete
                {
                    this.worker.pool.put(connection);
                }
                Poll::Ready(None)
            }
            Poll::Pending if this.is_overdue(context) => this.break_off(context),
            Poll::Pending => Poll::Pending,
        }
    }
}
