//! The connection to a client: its deadlines, its end, and its hand-over when a request upgrades it.
//!
//! The server below reads and writes through a [`Wire`]; what it does not know of is kept here: that it gets one request
//! of HTTP/1 at a time, that the head of a later request has a deadline too, that a client which takes nothing is let go,
//! that an idle HTTP/2 connection must not hold up the end. Both ends of a tunnel get the bare connection.

pub mod accept;
mod doubt;
pub mod expect;
mod flow;
pub mod framer;
mod frames;
mod handover;
mod http1;
mod http2;
pub mod in_flight;
mod rejection;
mod rest;
pub mod tls;

use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use actix_web::web::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_rustls::server::TlsStream;

use super::health::Leaving;
use doubt::Doubt;
use framer::HeadLimits;
pub(super) use frames::MOST_STREAMS;
use handover::Hold;
use http1::Http1;
use http2::Http2;

/// How long a client may take over what it owes.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the head of a request, from its first byte; of the first one, and for the TLS handshake, from the connection.
    pub head: Duration,
    /// Between requests.
    pub idle: Duration,
    /// Between two pieces of a body that a page of ours reads.
    pub body: Duration,
    /// Without taking a byte of its answer.
    pub write: Duration,
    /// How long a head may be.
    pub heads: HeadLimits,
}

/// How long what a client still sends behind its last answer is read: a connection that is closed with unread bytes is
/// reset, and the reset may overtake the answer. nginx: `lingering_timeout`, 5 s.
const LINGER: Duration = Duration::from_secs(5);

/// What carries the bytes.
pub(super) enum Io {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

/// What is known of a client's connection, shared by the server that reads it and the requests that came by it.
pub struct Line {
    io: RefCell<Io>,
    secure: bool,
    http2: bool,
    patience: Patience,
    /// Requests under way.
    busy: Cell<u32>,
    /// How many are over.
    over: Cell<u64>,
    /// When the last one ended; before the first, when the connection came.
    rested: Cell<Instant>,
    hold: RefCell<Hold>,
    /// The last answer is on its way: nothing behind its request is served.
    closing: Cell<bool>,
    /// What was read and is not handed on: the beginning of a head, the requests behind the one under way.
    unread: RefCell<BytesMut>,
    reader: RefCell<Option<Waker>>,
    doubt: Doubt,
    /// How the peer is named to the upstream: the same for all requests.
    pub(super) named: OnceCell<hyper::header::HeaderValue>,
}

impl Line {
    /// Whether it is encrypted.
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// Whether HTTP/2 is spoken.
    pub fn is_http2(&self) -> bool {
        self.http2
    }

    /// The longest pause between two pieces of a body.
    pub(super) fn body_timeout(&self) -> Duration {
        self.patience.body
    }

    /// A request came: until it ends, this connection is not idle.
    fn begins(&self) {
        self.busy.set(self.busy.get() + 1);
        self.doubt.owed.set(true);
    }

    /// The answer under way is the last one. Frames of HTTP/2 tell one request from another, whatever is in them.
    fn closes(&self) {
        self.closing.set(!self.http2);
    }

    /// Whether more requests are under way than a client of HTTP/2 may have.
    pub(super) fn is_crowded(&self) -> bool {
        self.http2 && self.busy.get() > MOST_STREAMS
    }

    /// A request ended.
    fn ends(&self) {
        let busy = self.busy.get().saturating_sub(1);
        self.busy.set(busy);
        self.over.set(self.over.get() + 1);
        if busy == 0 {
            self.rested.set(Instant::now());
            // An idle connection has deadlines that a busy one has not.
            if self.http2
                && let Some(reader) = self.reader.borrow_mut().take()
            {
                reader.wake();
            }
        }
    }
}

/// A client's connection as the server below sees it.
pub struct Wire {
    line: Rc<Line>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Of HTTP/1.
    http1: Http1,
    /// Since when the client has taken nothing of what is there for it.
    stalled_since: Option<Instant>,
    /// Resolves when the process is to end.
    ending: Option<Pin<Box<dyn Future<Output = ()>>>>,
    /// Whether it is about to.
    leaving: Leaving,
    /// Of HTTP/2.
    frames: Option<Box<Http2>>,
    /// What the client still sends is read before the connection is closed.
    lingers: bool,
    /// Since when.
    lingers_since: Option<Instant>,
}

impl Wire {
    pub(super) fn new(io: Io, http2: bool, unread: BytesMut, patience: Patience) -> Self {
        let frames = http2.then(Box::default);
        let line = Line {
            secure: matches!(io, Io::Tls(_)),
            io: RefCell::new(io),
            http2,
            patience,
            busy: Cell::new(0),
            over: Cell::new(0),
            rested: Cell::new(Instant::now()),
            hold: RefCell::new(Hold::Free),
            closing: Cell::new(false),
            unread: RefCell::new(unread),
            reader: RefCell::new(None),
            doubt: Doubt::default(),
            named: OnceCell::new(),
        };
        Self {
            line: Rc::new(line),
            timer: None,
            http1: Http1::new(patience.heads),
            stalled_since: None,
            ending: None,
            leaving: Leaving::default(),
            frames,
            lingers: false,
            lingers_since: None,
        }
    }

    /// A client that closes its sending side still gets the answers to what it has sent.
    pub fn may_half_close(mut self, may: bool) -> Self {
        self.http1.may_half_close(may);
        self
    }

    /// A request that is given up because the process ends is no fault of the client's, who is not told of one.
    pub fn of_a_process(mut self, leaving: Leaving) -> Self {
        self.leaving = leaving;
        self
    }

    /// Closes when `ending` resolves and no request is under way. HTTP/1 needs no such word: the server below tells it.
    pub fn ends_with(mut self, ending: impl Future<Output = ()> + 'static) -> Self {
        self.ending = Some(Box::pin(ending));
        self
    }

    /// What is known of it, for the requests that come by it.
    pub fn line(&self) -> Rc<Line> {
        Rc::clone(&self.line)
    }
}

/// Whether `deadline` has passed; if not, the task is woken when it does, or earlier.
pub(super) fn wait_until(
    timer: &mut Option<Pin<Box<Sleep>>>,
    deadline: Instant,
    context: &mut Context<'_>,
) -> bool {
    let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
    loop {
        // One that is set too early is cheap: it fires once and is set anew. Too late would be wrong.
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        if timer.as_mut().poll(context).is_pending() {
            return false;
        }
        if deadline <= Instant::now() {
            return true;
        }
        timer.as_mut().reset(deadline);
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(outcome) = this.line.poll_held(context) {
            return outcome;
        }
        if this.line.http2 {
            this.poll_read_http2(context, buffer)
        } else {
            this.poll_read_http1(context, buffer)
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = {
            let mut io = this.line.io.borrow_mut();
            match &mut this.frames {
                Some(frames) => frames.poll_write(&mut *io, context, bytes),
                None => Pin::new(&mut *io).poll_write(context, bytes),
            }
        };
        if let Poll::Ready(outcome) = outcome {
            this.stalled_since = None;
            this.line.doubt.owed.set(false);
            if outcome.is_err() {
                this.line.doubt.ended.set(true);
            }
            return Poll::Ready(outcome);
        }
        let since = *this.stalled_since.get_or_insert_with(Instant::now);
        if wait_until(&mut this.timer, since + this.line.patience.write, context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut *this.line.io.borrow_mut()).poll_flush(context);
        if matches!(outcome, Poll::Ready(Ok(()))) {
            this.line.flushed();
            if this.line.http2 {
                this.watch_streams(context);
            } else {
                this.answers_are_out(context);
            }
        }
        outcome
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.line.is_taken() {
            return Poll::Ready(Ok(()));
        }
        if this.lingers_since.is_none() {
            this.tell_of_malformed();
            ready!(Pin::new(&mut *this.line.io.borrow_mut()).poll_shutdown(context))?;
        }
        this.poll_linger(context).map(Ok)
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_read(context, buffer),
            Self::Tls(io) => Pin::new(io).poll_read(context, buffer),
            Self::Unix(io) => Pin::new(io).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_write(context, bytes),
            Self::Tls(io) => Pin::new(io).poll_write(context, bytes),
            Self::Unix(io) => Pin::new(io).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_flush(context),
            Self::Tls(io) => Pin::new(io).poll_flush(context),
            Self::Unix(io) => Pin::new(io).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_shutdown(context),
            Self::Tls(io) => Pin::new(io).poll_shutdown(context),
            Self::Unix(io) => Pin::new(io).poll_shutdown(context),
        }
    }
}
