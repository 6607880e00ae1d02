//! The span of one request: whatever is logged within it names the request.

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::{Error, HttpMessage as _};
use tracing::Span;
use tracing_actix_web::{RequestId, RootSpanBuilder};

/// Builds the root span. Few fields: each is formatted once a request.
pub struct RootSpan;

impl RootSpanBuilder for RootSpan {
    fn on_request_start(request: &ServiceRequest) -> Span {
        let id = request.extensions().get::<RequestId>().copied();
        tracing::info_span!(
            // A target of its own: RUST_LOG="info,tidegate::request=off" saves its cost.
            target: "tidegate::request",
            "request",
            request_id = id.map(tracing::field::display),
            method = request.method().as_str(),
            path = request.path(),
        )
    }

    fn on_request_end<B: MessageBody>(_: Span, _: &Result<ServiceResponse<B>, Error>) {
        // The request line tells the outcome.
    }
}
