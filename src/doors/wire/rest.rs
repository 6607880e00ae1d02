//! The rest of a body of HTTP/2 whose answer does not need it.
//!
//! The server library resets a stream that was answered before the client's end of it came, even when only the empty last
//! frame is missing. RFC 9113 (8.1) permits that, but clients that still write (Python's h2 and httpx) report the reset in
//! the place of the answer. So the rest is read and dropped, for a while.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_http::error::PayloadError;
use actix_http::{Payload, Request, Version, h2};
use actix_web::http::Method;
use actix_web::http::header::CONTENT_LENGTH;
use actix_web::web::Bytes;
use futures_util::Stream;
use tokio::time::timeout;

/// How long the rest of a body is read, and how many bytes of it. A stream whose rest is longer is reset.
const LONGEST: Duration = Duration::from_secs(1);
const MOST: usize = 64 * 1024;

/// Has the rest of a request's body read when the application drops it. Requests without a body are left as they are, and
/// so is HTTP/1, where the connection reads it.
pub(super) fn read_on(request: &mut Request) {
    let head = request.head();
    let is_bodiless =
        matches!(head.method, Method::GET | Method::HEAD) && !head.headers.contains_key(CONTENT_LENGTH);
    if head.version != Version::HTTP_2 || is_bodiless {
        return;
    }
    *request.payload() = match request.take_payload() {
        Payload::H2 { payload } => Payload::Stream { payload: Box::pin(Body(Some(payload))) },
        other => other,
    };
}

/// A body; `None` after its end.
struct Body(Option<h2::Payload>);

impl Stream for Body {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let piece = ready!(Pin::new(body).poll_next(context));
        if !matches!(piece, Some(Ok(_))) {
            self.0 = None;
        }
        Poll::Ready(piece)
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some(rest) = self.0.take() {
            // On the worker's own thread, as everything of its connections.
            tokio::task::spawn_local(timeout(LONGEST, drop_all_of(rest)));
        }
    }
}

async fn drop_all_of(mut body: h2::Payload) {
    let mut read = 0;
    while read < MOST
        && let Some(Ok(piece)) = poll_fn(|context| Pin::new(&mut body).poll_next(context)).await
    {
        read += piece.len();
    }
}
