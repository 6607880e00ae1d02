//! `Expect: 100-continue`: the client is told to go on when somebody wants its body, and not before.
//!
//! The server below would say "100 Continue" before anybody has looked at the request. So the application answers such a
//! request where the server expects no more than a word on whether to go on: an answer that needs no body goes out without
//! it, and the first look at the body is that word. The answer then follows from where the server wants it.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use actix_http::body::{BoxBody, EitherBody, MessageBody};
use actix_http::error::PayloadError;
use actix_http::{HttpMessage as _, Payload, Request, Response};
use actix_service::{Service, ServiceFactory};
use actix_web::web::Bytes;
use futures_util::Stream;
use futures_util::future::LocalBoxFuture;
use pin_project_lite::pin_project;

type Answer = Pin<Box<dyn Future<Output = Response<BoxBody>>>>;

/// An answer that waits for its body, on its way from one service to the other.
struct UnderWay(Answer);

/// Answers requests that expect a word before they send their body.
pub struct Expecting<A>(pub A);

/// Answers all the others, and goes on with those.
pub struct Answering<A>(pub A);

impl<A, B> ServiceFactory<Request> for Expecting<A>
where
    A: ServiceFactory<Request, Config = (), Response = Response<B>, Error = Response<BoxBody>>,
    A::Future: 'static,
    A::Service: 'static,
    <A::Service as Service<Request>>::Future: 'static,
    B: MessageBody + 'static,
{
    type Response = Request;
    type Error = Response<BoxBody>;
    type Config = ();
    type Service = Expecting<A::Service>;
    type InitError = A::InitError;
    type Future = LocalBoxFuture<'static, Result<Self::Service, Self::InitError>>;

    fn new_service(&self, (): ()) -> Self::Future {
        let service = self.0.new_service(());
        Box::pin(async { service.await.map(Expecting) })
    }
}

impl<S, B> Service<Request> for Expecting<S>
where
    S: Service<Request, Response = Response<B>, Error = Response<BoxBody>>,
    S::Future: 'static,
    B: MessageBody + 'static,
{
    type Response = Request;
    type Error = Response<BoxBody>;
    type Future = LocalBoxFuture<'static, Result<Request, Response<BoxBody>>>;

    fn poll_ready(&self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&self, mut request: Request) -> Self::Future {
        let wanted = Rc::new(Cell::new(false));
        let source = Rc::new(RefCell::new(Source { body: request.take_payload(), first: None }));
        request.extensions_mut().insert(EarlyBody(Rc::clone(&source)));
        let body = WantedBody { source, wanted: Rc::clone(&wanted) };
        *request.payload() = Payload::Stream { payload: Box::pin(body) };
        let answer = self.0.call(request);
        let mut answer: Answer = Box::pin(async {
            answer.await.map_or_else(|error| error, |answer| answer.map_body(|_, body| BoxBody::new(body)))
        });
        Box::pin(async move {
            let early = poll_fn(|context| match answer.as_mut().poll(context) {
                Poll::Ready(answer) => Poll::Ready(Some(answer)),
                Poll::Pending if wanted.get() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            });
            match early.await {
                Some(answer) => Err(answer),
                None => {
                    let request = Request::new();
                    request.extensions_mut().insert(UnderWay(answer));
                    Ok(request)
                }
            }
        })
    }
}

/// A body that tells when somebody first looks at it.
struct WantedBody {
    source: Rc<RefCell<Source>>,
    wanted: Rc<Cell<bool>>,
}

/// The body as it comes from the connection.
struct Source {
    body: Payload,
    /// What was read to find out whether anything has arrived.
    first: Option<Option<Result<Bytes, PayloadError>>>,
}

/// Reports whether the body of a request that expects "100 Continue" has begun to arrive, without asking the client for it.
#[derive(Clone)]
pub struct EarlyBody(Rc<RefCell<Source>>);

impl EarlyBody {
    /// Ready once the client has sent some of the body, or its end.
    pub fn poll_arrived(&self, context: &mut Context<'_>) -> Poll<()> {
        let source = &mut *self.0.borrow_mut();
        if source.first.is_none() {
            source.first = Some(ready!(Pin::new(&mut source.body).poll_next(context)));
        }
        Poll::Ready(())
    }
}

impl Stream for WantedBody {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        this.wanted.set(true);
        let source = &mut *this.source.borrow_mut();
        match source.first.take() {
            Some(first) => Poll::Ready(first),
            None => Pin::new(&mut source.body).poll_next(context),
        }
    }
}

impl<A, B> ServiceFactory<Request> for Answering<A>
where
    A: ServiceFactory<Request, Config = (), Response = Response<B>, Error = Response<BoxBody>>,
    A::Future: 'static,
    B: MessageBody,
{
    type Response = Response<EitherBody<B>>;
    type Error = Response<BoxBody>;
    type Config = ();
    type Service = Answering<A::Service>;
    type InitError = A::InitError;
    type Future = LocalBoxFuture<'static, Result<Self::Service, Self::InitError>>;

    fn new_service(&self, (): ()) -> Self::Future {
        let service = self.0.new_service(());
        Box::pin(async { service.await.map(Answering) })
    }
}

impl<S, B> Service<Request> for Answering<S>
where
    S: Service<Request, Response = Response<B>, Error = Response<BoxBody>>,
    B: MessageBody,
{
    type Response = Response<EitherBody<B>>;
    type Error = Response<BoxBody>;
    type Future = Either<S::Future>;

    fn poll_ready(&self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&self, request: Request) -> Self::Future {
        let under_way = request.extensions_mut().remove::<UnderWay>();
        match under_way {
            Some(UnderWay(answer)) => Either::UnderWay { answer },
            None => Either::Fresh { answer: self.0.call(request) },
        }
    }
}

pin_project! {
    /// An answer from its beginning, or one that goes on.
    #[project = EitherNow]
    #[doc(hidden)]
    pub enum Either<F> {
        /// From its beginning.
        Fresh { #[pin] answer: F },
        /// It goes on.
        UnderWay { answer: Pin<Box<dyn Future<Output = Response<BoxBody>>>> },
    }
}

impl<F, B> Future for Either<F>
where
    F: Future<Output = Result<Response<B>, Response<BoxBody>>>,
    B: MessageBody,
{
    type Output = Result<Response<EitherBody<B>>, Response<BoxBody>>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match self.project() {
            EitherNow::Fresh { answer } => {
                ready!(answer.poll(context)).map(|answer| answer.map_body(|_, body| EitherBody::left(body)))
            }
            EitherNow::UnderWay { answer } => {
                Ok(ready!(answer.as_mut().poll(context)).map_body(|_, body| EitherBody::right(body)))
            }
        })
    }
}
