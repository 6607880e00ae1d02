//! Counts the requests under way of each connection, on every listener: a connection is idle, and its next request may be
//! read, once the last byte of an answer has gone to the server library.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use actix_http::body::{BodySize, BoxBody, EitherBody, MessageBody};
use actix_http::{ConnectionType, Request, Response, Version};
use actix_service::{Service, ServiceFactory};
use actix_web::web::Bytes;
use futures_util::future::LocalBoxFuture;
use pin_project_lite::pin_project;

use super::{Line, rest};

/// Counts what passes to the service inside.
pub struct CountRequests<A>(pub A);

impl<A, B> ServiceFactory<Request> for CountRequests<A>
where
    A: ServiceFactory<Request, Config = (), Response = Response<B>, Error = Response<BoxBody>>,
    A::Future: 'static,
    B: MessageBody,
{
    type Response = Response<Counted<EitherBody<B>>>;
    type Error = Response<BoxBody>;
    type Config = ();
    type Service = CountRequests<A::Service>;
    type InitError = A::InitError;
    type Future = LocalBoxFuture<'static, Result<Self::Service, Self::InitError>>;

    fn new_service(&self, (): ()) -> Self::Future {
        let service = self.0.new_service(());
        Box::pin(async { service.await.map(CountRequests) })
    }
}

impl<S, B> Service<Request> for CountRequests<S>
where
    S: Service<Request, Response = Response<B>, Error = Response<BoxBody>>,
    B: MessageBody,
{
    type Response = Response<Counted<EitherBody<B>>>;
    type Error = Response<BoxBody>;
    type Future = Counting<S::Future>;

    fn poll_ready(&self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&self, mut request: Request) -> Self::Future {
        rest::read_on(&mut request);
        let keep_alive = request.head().connection_type() == ConnectionType::KeepAlive;
        let guard = request.conn_data::<Rc<Line>>().map(InFlight::on);
        Counting { answer: self.0.call(request), guard, keep_alive }
    }
}

/// One request under way.
struct InFlight(Rc<Line>);

impl InFlight {
    fn on(line: &Rc<Line>) -> Self {
        line.begins();
        Self(Rc::clone(line))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.ends();
    }
}

pin_project! {
    /// An answer under way.
    pub struct Counting<F> {
        #[pin]
        answer: F,
        guard: Option<InFlight>,
        keep_alive: bool,
    }
}

impl<F, B> Future for Counting<F>
where
    F: Future<Output = Result<Response<B>, Response<BoxBody>>>,
    B: MessageBody,
{
    type Output = Result<Response<Counted<EitherBody<B>>>, Response<BoxBody>>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let outcome = ready!(this.answer.poll(context));
        let mut answer = outcome.map_or_else(
            |error| error.map_body(|_, body| EitherBody::right(body)),
            |answer| answer.map_body(|_, body| EitherBody::left(body)),
        );
        // Heads are reused, with the version of the answer before; the one that counts is written with the answer.
        answer.head_mut().version = Version::HTTP_11;
        let guard = this.guard.take();
        // The server library ends the connection behind the answer in the same case.
        if let Some(InFlight(line)) = &guard
            && !(*this.keep_alive && answer.head().connection_type() == ConnectionType::KeepAlive)
        {
            line.closes();
        }
        Poll::Ready(Ok(answer.map_body(|_, body| Counted { body, guard })))
    }
}

pin_project! {
    /// A body whose request is under way until the body is dropped.
    pub struct Counted<B> {
        #[pin]
        body: B,
        // Last: what the body reports when it is dropped still belongs to the request.
        guard: Option<InFlight>,
    }
}

impl<B: MessageBody> MessageBody for Counted<B> {
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
}
