//! The connection to a client: its deadlines, its end, and its hand-over when a request upgrades it.
//!
//! The server below reads and writes through a [`Wire`]; what it does not know of is kept here: that the head of a later
//! request has a deadline too, that a client which takes nothing is let go, that an idle HTTP/2 connection must not hold
//! up the end. Both ends of a tunnel get the bare connection.

pub mod accept;
mod doubt;
pub mod expect;
mod frames;
mod handover;
pub mod tls;

use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use actix_web::web::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_rustls::server::TlsStream;

use super::health::Leaving;
use doubt::Doubt;
pub(super) use frames::MOST_STREAMS;
use frames::{Greeting, Watched};
use handover::Hold;

/// How long a client may take over what it owes.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the head of a request, from its first byte; of the first one, and for the TLS handshake, from the connection.
    pub head: Duration,
    /// Between requests.
    pub idle: Duration,
    /// Without taking a byte of its answer.
    pub write: Duration,
}

/// What a client is told that does not come to the end of its request's head.
const HEAD_TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: \
    application/problem+json\r\ncontent-length: 123\r\n\r\n{\"type\":\"urn:tidegate:request-timeout\",\"title\":\"Request too \
    slow\",\"status\":408,\"detail\":\"The head did not arrive in time.\"}";

/// What a client of HTTP/2 is told of the longest list of headers, in bytes; what is really taken says the gateway.
const LONGEST_LIST: u32 = 64 * 1024;

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
    /// What was read before the server asked for it.
    unread: RefCell<Bytes>,
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

    /// A request came: until it ends, this connection is not idle. Returns how many are under way.
    pub(super) fn begins(&self) -> u32 {
        let busy = self.busy.get() + 1;
        self.busy.set(busy);
        self.doubt.owed.set(true);
        busy
    }

    /// Whether more requests are under way than a client of HTTP/2 may have.
    pub(super) fn is_crowded(&self) -> bool {
        self.http2 && self.busy.get() > MOST_STREAMS
    }

    /// A request ended.
    pub(super) fn ends(&self) {
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
    /// When the first bytes came since the last request.
    read_at: Option<Instant>,
    /// Since when the client has taken nothing of what is there for it.
    stalled_since: Option<Instant>,
    /// Resolves when the process is to end.
    ending: Option<Pin<Box<dyn Future<Output = ()>>>>,
    /// Whether it is about to.
    leaving: Leaving,
    /// Of HTTP/2.
    frames: Option<Box<(Watched, Greeting)>>,
}

impl Wire {
    pub(super) fn new(io: Io, http2: bool, unread: Bytes, patience: Patience) -> Self {
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
            unread: RefCell::new(unread),
            reader: RefCell::new(None),
            doubt: Doubt::default(),
            named: OnceCell::new(),
        };
        let (timer, read_at, stalled_since, ending) = (None, None, None, None);
        let leaving = Leaving::default();
        Self { line: Rc::new(line), timer, read_at, stalled_since, ending, leaving, frames }
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

    /// Whether the client has taken too long over what it owes.
    fn is_overdue(&mut self, context: &mut Context<'_>) -> bool {
        if self.line.busy.get() > 0 {
            return false;
        }
        let (patience, rested) = (self.line.patience, self.line.rested.get());
        // Frames of HTTP/2 may come at any time; only the rest of an idle connection is counted. And what came during the
        // last request may have been the beginning of the next one's head, or not: it counts as rest.
        match self.read_at.filter(|&read_at| read_at > rested && !self.line.http2) {
            Some(since) => {
                let overdue = wait_until(&mut self.timer, since + patience.head, context);
                if overdue {
                    // As far as it goes: nobody waits for such a client.
                    let _ = Pin::new(&mut *self.line.io.borrow_mut()).poll_write(context, HEAD_TOO_SLOW);
                }
                overdue
            }
            None => wait_until(&mut self.timer, rested + patience.idle, context),
        }
    }

    fn has_ended(&mut self, context: &mut Context<'_>) -> bool {
        let Some(ending) = &mut self.ending else { return false };
        self.line.busy.get() == 0 && ending.as_mut().poll(context).is_ready()
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
        if this.line.is_cut() {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        if let (Some(frames), 0) = (&this.frames, this.line.busy.get()) {
            // Streams that were reset before they were requests are over as well.
            this.line.over.set(frames.0.opened);
        }
        let outcome = this.line.poll_bytes(context, buffer);
        if let Some(frames) = &mut this.frames
            && (frames.0.is_too_much(&buffer.filled()[before..])
                || frames.0.opened.saturating_sub(this.line.over.get()) > frames::FAR_TOO_MANY)
        {
            buffer.set_filled(before);
            this.line.doubt.ended.set(true);
            return Poll::Ready(Ok(()));
        }
        match &outcome {
            Poll::Ready(Ok(())) if buffer.filled().len() > before => {
                if this.read_at.is_none_or(|at| at <= this.line.rested.get()) {
                    this.read_at = Some(Instant::now());
                }
            }
            Poll::Pending => {
                if this.line.http2 {
                    *this.line.reader.borrow_mut() = Some(context.waker().clone());
                    if this.has_ended(context) {
                        return Poll::Ready(Ok(()));
                    }
                }
                if this.is_overdue(context) {
                    this.line.doubt.ended.set(true);
                    // As if it had closed: the server below then lets go of it.
                    return Poll::Ready(Ok(()));
                }
            }
            Poll::Ready(_) => this.line.doubt.ended.set(true),
        }
        outcome
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = {
            let mut io = this.line.io.borrow_mut();
            let first = match &mut this.frames {
                Some(frames) => frames.1.poll_write(&mut *io, context, bytes, LONGEST_LIST),
                None => Poll::Ready(Ok(None)),
            };
            match first {
                Poll::Ready(Ok(None)) => Pin::new(&mut *io).poll_write(context, bytes),
                first => first.map_ok(Option::unwrap_or_default),
            }
        };
        if outcome.is_ready() {
            this.stalled_since = None;
            this.line.doubt.owed.set(false);
            return outcome;
        }
        let since = *this.stalled_since.get_or_insert_with(Instant::now);
        if wait_until(&mut this.timer, since + this.line.patience.write, context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut *self.line.io.borrow_mut()).poll_flush(context);
        if matches!(outcome, Poll::Ready(Ok(()))) {
            self.line.flushed();
        }
        outcome
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.line.is_taken() {
            return Poll::Ready(Ok(()));
        }
        self.tell_of_malformed();
        Pin::new(&mut *self.line.io.borrow_mut()).poll_shutdown(context)
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
