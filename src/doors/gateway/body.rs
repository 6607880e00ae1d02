//! The body of a request on its way to the upstream, as it comes in.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use actix_web::dev::Payload;
use actix_web::http::Version;
use actix_web::web::Bytes;
use actix_web::{HttpMessage as _, HttpRequest};
use futures_util::Stream;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use crate::doors::wire::expect::EarlyBody;

/// What the client sends, seen from both ends: by the connection that sends it on, and by whoever waits for the answer.
pub(super) struct Client {
    payload: RefCell<Payload>,
    /// Of a request that expects "100 Continue": whether its body has begun to arrive.
    early: Option<EarlyBody>,
    /// What was read to find out whether there is a body at all.
    first: RefCell<Option<Bytes>>,
    /// `None`: nobody announced it.
    length: Option<u64>,
    pub(super) has_body: bool,
    http2: bool,
    most: Option<u64>,
    state: Cell<State>,
    /// When the client last sent something, or was last asked for more.
    asked: Cell<Instant>,
    passed: Cell<u64>,
    /// Not before the upstream wants it.
    held: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// For whom a body waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The upstream is to take what is there.
    Upstream,
    /// The client is to send more.
    Client,
    /// Nobody: it is complete.
    Complete,
    /// Nobody: the client did not send it to the end, or not as it should.
    Broken,
    /// Nobody: it is longer than accepted.
    TooLong,
}

/// The client did not send its body to the end.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the client's body broke off")]
pub(super) struct BrokenOff;

impl Client {
    /// The client of this request. `most` is the longest body that is accepted.
    pub(super) async fn of(request: &HttpRequest, mut payload: Payload, most: Option<u64>) -> Rc<Self> {
        let headers = request.headers();
        let length = headers.get("content-length").and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let http2 = request.version() == Version::HTTP_2;
        let mut first = None;
        let mut has_body =
            headers.contains_key("transfer-encoding") || length.is_some_and(|length| length > 0);
        let mut state = if has_body { State::Upstream } else { State::Complete };
        if http2 && length.is_none() {
            // Only its end tells that there is none.
            match poll_fn(|context| Poll::Ready(Pin::new(&mut payload).poll_next(context))).await {
                Poll::Ready(None) => {}
                Poll::Ready(Some(Ok(bytes))) => {
                    (has_body, first, state) = (true, Some(bytes), State::Upstream)
                }
                Poll::Ready(Some(Err(_))) => (has_body, state) = (true, State::Broken),
                Poll::Pending => (has_body, state) = (true, State::Upstream),
            }
        }
        Rc::new(Self {
            payload: RefCell::new(payload),
            early: request.extensions().get::<EarlyBody>().cloned(),
            first: RefCell::new(first),
            length: length.filter(|_| has_body),
            has_body,
            http2,
            most,
            state: Cell::new(state),
            asked: Cell::new(Instant::now()),
            passed: Cell::new(0),
            held: Cell::new(false),
            waker: RefCell::new(None),
        })
    }

    /// For whom the body waits.
    pub(super) fn state(&self) -> State {
        self.state.get()
    }

    /// Since when the client owes something.
    pub(super) fn asked(&self) -> Instant {
        self.asked.get()
    }

    /// Whether anything of the body has been taken.
    pub(super) fn was_asked(&self) -> bool {
        self.passed.get() > 0 || !matches!(self.state.get(), State::Upstream | State::Complete)
    }

    /// Keeps the body back until [`go_on`](Self::go_on).
    pub(super) fn hold(&self) {
        self.held.set(true);
    }

    /// Whether the client sent some of the body although it may wait for a word. Wakes the task once it does.
    pub(super) fn has_arrived(&self, context: &mut Context<'_>) -> bool {
        self.early.as_ref().is_some_and(|early| early.poll_arrived(context).is_ready())
    }

    /// The upstream wants the body.
    pub(super) fn go_on(&self) {
        if self.held.replace(false)
            && let Some(waker) = self.waker.borrow_mut().take()
        {
            waker.wake();
        }
    }

    /// The body, for the connection that sends it on.
    pub(super) fn body(self: &Rc<Self>) -> OutBody {
        OutBody(self.has_body.then(|| Rc::clone(self)))
    }

    /// Whether the client has given up a request that it had sent to its end. Only HTTP/2 needs to be asked, every now and
    /// then: it wakes nobody. Of HTTP/1.1 the connection itself ends.
    pub(super) fn is_gone(&self, context: &mut Context<'_>) -> bool {
        self.http2
            && self.state.get() == State::Complete
            && matches!(
                Pin::new(&mut *self.payload.borrow_mut()).poll_next(context),
                Poll::Ready(Some(Err(_)))
            )
    }

    /// What the server below has read behind the head of a request that is upgraded.
    pub(super) fn take_early(&self) -> Bytes {
        let mut early = Vec::new();
        let mut context = Context::from_waker(Waker::noop());
        let mut payload = self.payload.borrow_mut();
        while let Poll::Ready(Some(Ok(bytes))) = Pin::new(&mut *payload).poll_next(&mut context) {
            early.extend_from_slice(&bytes);
        }
        early.into()
    }

    pub(super) fn is_http2(&self) -> bool {
        self.http2
    }

    fn poll_body(&self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, BrokenOff>>> {
        if self.held.get() {
            *self.waker.borrow_mut() = Some(context.waker().clone());
            return Poll::Pending;
        }
        let left = self.length.map(|length| length - self.passed.get().min(length));
        if left == Some(0) {
            self.state.set(State::Complete);
            return Poll::Ready(None);
        }
        let chunk = match self.first.borrow_mut().take() {
            Some(first) => Poll::Ready(Some(Ok(first))),
            None => Pin::new(&mut *self.payload.borrow_mut()).poll_next(context),
        };
        match chunk {
            Poll::Pending => {
                if self.state.replace(State::Client) != State::Client {
                    self.asked.set(Instant::now());
                }
                Poll::Pending
            }
            Poll::Ready(Some(Ok(mut chunk))) => {
                // Beyond the announced length nothing is of this request.
                chunk.truncate(left.map_or(chunk.len(), |left| left.min(chunk.len() as u64) as usize));
                let passed = self.passed.get() + chunk.len() as u64;
                self.passed.set(passed);
                if self.most.is_some_and(|most| passed > most) {
                    self.state.set(State::TooLong);
                    return Poll::Ready(Some(Err(BrokenOff)));
                }
                let complete = self.length == Some(passed);
                self.state.set(if complete { State::Complete } else { State::Upstream });
                Poll::Ready(Some(Ok(chunk)))
            }
            Poll::Ready(None) if left.is_none() => {
                self.state.set(State::Complete);
                Poll::Ready(None)
            }
            Poll::Ready(None | Some(Err(_))) => {
                self.state.set(State::Broken);
                Poll::Ready(Some(Err(BrokenOff)))
            }
        }
    }
}

/// The body as the upstream's connection takes it.
pub(super) struct OutBody(Option<Rc<Client>>);

impl Body for OutBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match &self.0 {
            None => Poll::Ready(None),
            Some(client) => client.poll_body(context).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|client| client.state.get() == State::Complete)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            None => SizeHint::with_exact(0),
            Some(client) => client.length.map_or_else(SizeHint::new, |length| {
                SizeHint::with_exact(length - client.passed.get().min(length))
            }),
        }
    }
}
