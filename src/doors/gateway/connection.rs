//! One connection to an upstream. Whoever has it drives it: no task of its own, no channel between tasks.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::web::Bytes;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, Sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::body::OutBody;
use super::capacity::Permit;
use super::peers::{Address, Health, Peer};

/// What a response's head may take, in bytes. nginx: `proxy_buffer_size`, 4 or 8 KiB.
const LONGEST_HEAD: usize = 64 * 1024;

/// A connection, idle or in use.
pub(super) struct Connection {
    sender: http1::SendRequest<OutBody>,
    http: http1::Connection<TokioIo<Metered>, OutBody>,
    meter: Rc<Meter>,
    /// hyper is through with it.
    done: bool,
    /// Which peer it leads to.
    pub(super) peer: usize,
    /// Whether it has carried a request before.
    pub(super) reused: bool,
    /// When it was opened.
    pub(super) opened: Instant,
    /// Counts it among those that carry a request; `None` while it is idle.
    pub(super) permit: Option<Permit>,
    /// When it became idle.
    pub(super) since: Instant,
    pub(super) timer: Option<Pin<Box<Sleep>>>,
}

/// What went over a connection since a request began, in bytes.
#[derive(Default)]
pub(super) struct Meter {
    read: Cell<u64>,
    written: Cell<u64>,
}

/// Why there is no answer, and how far it came.
pub(super) struct Unanswered {
    /// What hyper says.
    pub(super) error: hyper::Error,
    /// The request, when nothing of it was sent.
    pub(super) unsent: Option<hyper::Request<OutBody>>,
    /// Whether any byte of an answer came.
    pub(super) began: bool,
}

impl Connection {
    /// Connects to a peer, and to another address of its name where one can't be reached.
    pub(super) async fn open(
        index: usize,
        peer: &Peer,
        tls: Option<&TlsConnector>,
        patience: Duration,
        health: Health,
    ) -> io::Result<Self> {
        let connecting = timeout(patience, connect(peer, tls, patience, health));
        let io = connecting.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let meter = Rc::new(Meter::default());
        let io = TokioIo::new(Metered { io, meter: Rc::clone(&meter) });
        let mut builder = http1::Builder::new();
        builder.max_buf_size(LONGEST_HEAD);
        let (sender, http) = builder.handshake(io).await.map_err(io::Error::other)?;
        Ok(Self {
            sender,
            http,
            meter,
            done: false,
            peer: index,
            reused: false,
            opened: Instant::now(),
            permit: None,
            since: Instant::now(),
            timer: None,
        })
    }

    /// Lets it go on as far as it can.
    pub(super) fn drive(&mut self, context: &mut Context<'_>) {
        if !self.done {
            // What went wrong is told to whoever waits for the answer or its body.
            self.done = self.http.poll_without_shutdown(context).is_ready();
        }
    }

    /// Whether it can carry a request. One that the other side has closed cannot.
    pub(super) fn is_free(&mut self, context: &mut Context<'_>) -> bool {
        self.drive(context);
        !self.done && self.sender.is_ready()
    }

    /// How many bytes went either way since the request began.
    pub(super) fn moved(&self) -> (u64, u64) {
        (self.meter.read.get(), self.meter.written.get())
    }

    /// Sends a request and waits for the head of its answer. `patience` is asked whenever there is nothing to do and
    /// ends the wait with its own reason.
    pub(super) async fn send<E>(
        &mut self,
        request: hyper::Request<OutBody>,
        mut patience: impl FnMut(&mut Self, &mut Context<'_>) -> Poll<E>,
    ) -> Result<Result<hyper::Response<Incoming>, Unanswered>, E> {
        self.meter.read.set(0);
        self.meter.written.set(0);
        let mut answer = pin!(self.sender.try_send_request(request));
        let answer = poll_fn(|context| {
            self.drive(context);
            match answer.as_mut().poll(context) {
                Poll::Ready(answer) => Poll::Ready(Ok(answer)),
                Poll::Pending => patience(self, context).map(Err),
            }
        });
        Ok(answer.await?.map_err(|mut error| Unanswered {
            unsent: error.take_message(),
            began: self.meter.read.get() > 0,
            error: error.into_error(),
        }))
    }

    /// The bare connection and what was read of it beyond the answer's head, once it is upgraded.
    pub(super) async fn into_bare(mut self) -> (Metered, Bytes, Rc<Meter>) {
        poll_fn(|context| {
            self.drive(context);
            if self.done { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let parts = self.http.into_parts();
        (parts.io.into_inner(), parts.read_buf, self.meter)
    }
}

async fn connect(
    peer: &Peer,
    tls: Option<&TlsConnector>,
    patience: Duration,
    health: Health,
) -> io::Result<Io> {
    let (host, port) = match &peer.address {
        Address::Unix(path) => return UnixStream::connect(path).await.map(Io::Unix),
        Address::Host(host, port) => (host.as_str(), *port),
    };
    let mut addresses: Vec<_> = lookup_host((host, port)).await?.collect();
    if addresses.len() > 1 {
        let turn = peer.turn.fetch_add(1, Ordering::Relaxed) % addresses.len();
        addresses.rotate_left(turn);
        let mut unreachable = peer.unreachable.lock();
        unreachable.retain(|(_, at)| at.elapsed() < health.fail_timeout);
        addresses.sort_by_key(|address| unreachable.iter().any(|(other, _)| other == address));
    }
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    // Each gets its part of the time, or one that swallows packets would take all of it.
    let part = patience / addresses.len().max(1) as u32;
    for address in &addresses {
        let attempt = timeout(part, TcpStream::connect(address)).await;
        let io = match attempt.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(io) => io,
            Err(error) => {
                failure = error;
                if addresses.len() > 1 {
                    peer.note_unreachable(*address);
                }
                continue;
            }
        };
        io.set_nodelay(true)?;
        return match (tls, &peer.name) {
            (Some(tls), Some(name)) => {
                let io = tls.connect(name.clone(), io).await?;
                Ok(Io::Tls(Box::new(io)))
            }
            _ => Ok(Io::Tcp(io)),
        };
    }
    Err(failure)
}

enum Io {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

/// What carries the bytes, and counts them.
pub(super) struct Metered {
    io: Io,
    meter: Rc<Meter>,
}

impl Meter {
    /// How many bytes went either way.
    pub(super) fn total(&self) -> u64 {
        self.read.get() + self.written.get()
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { io, meter } = self.get_mut();
        let before = buffer.filled().len();
        let outcome = match io {
            Io::Tcp(io) => Pin::new(io).poll_read(context, buffer),
            Io::Tls(io) => Pin::new(io).poll_read(context, buffer),
            Io::Unix(io) => Pin::new(io).poll_read(context, buffer),
        };
        meter.read.set(meter.read.get() + (buffer.filled().len() - before) as u64);
        outcome
    }
}

impl AsyncWrite for Metered {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.count(|io| match io {
            Io::Tcp(io) => Pin::new(io).poll_write(context, bytes),
            Io::Tls(io) => Pin::new(io).poll_write(context, bytes),
            Io::Unix(io) => Pin::new(io).poll_write(context, bytes),
        })
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.count(|io| match io {
            Io::Tcp(io) => Pin::new(io).poll_write_vectored(context, slices),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(context, slices),
            Io::Unix(io) => Pin::new(io).poll_write_vectored(context, slices),
        })
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Tcp(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
            Io::Unix(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Tcp(io) => Pin::new(io).poll_flush(context),
            Io::Tls(io) => Pin::new(io).poll_flush(context),
            Io::Unix(io) => Pin::new(io).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Tcp(io) => Pin::new(io).poll_shutdown(context),
            Io::Tls(io) => Pin::new(io).poll_shutdown(context),
            Io::Unix(io) => Pin::new(io).poll_shutdown(context),
        }
    }
}

impl Metered {
    fn count(
        self: Pin<&mut Self>,
        write: impl FnOnce(&mut Io) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let Self { io, meter } = self.get_mut();
        let outcome = write(io);
        if let Poll::Ready(Ok(written)) = outcome {
            meter.written.set(meter.written.get() + written as u64);
        }
        outcome
    }
}
