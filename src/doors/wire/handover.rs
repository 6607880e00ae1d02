//! The hand-over of a client's connection to a tunnel.
//!
//! From the moment when a request asks for an upgrade, what the client sends is kept aside: the server below would take
//! it for the next request. When the upstream agrees and the 101 is out, the tunnel gets the bare connection and those
//! bytes; when it does not, the server goes on with them.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use actix_web::web::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Line;

/// The most that a client can say before its upgrade is answered, in bytes.
pub(super) const MOST_ASIDE: usize = 16 * 1024;

/// Who reads what the client sends.
pub(super) enum Hold {
    /// The server below.
    Free,
    /// Nobody: it is kept aside.
    Aside(BytesMut),
    /// The same, and the answer to the upgrade is on its way out: whoever waits for that is woken then.
    Flushing(BytesMut, Waker),
    /// The tunnel.
    Taken,
    /// Nobody any more: the tunnel has ended.
    Over,
}

impl Line {
    /// Keeps what the client sends aside, until [`release`](Self::release) or the hand-over.
    pub(in crate::doors) fn hold(&self) {
        *self.hold.borrow_mut() = Hold::Aside(BytesMut::new());
    }

    /// There is no upgrade: the server below reads on.
    pub(in crate::doors) fn release(&self) {
        let mut hold = self.hold.borrow_mut();
        if let Hold::Aside(aside) | Hold::Flushing(aside, _) = &mut *hold {
            self.put_back(std::mem::take(aside));
            *hold = Hold::Free;
            if let Some(reader) = self.reader.borrow_mut().take() {
                reader.wake();
            }
        }
    }

    /// The connection itself, once everything that was written by way of the server is out. To be polled by the body of
    /// that answer.
    pub(in crate::doors) fn poll_taken(self: &Rc<Self>, context: &mut Context<'_>) -> Poll<Taken> {
        let mut hold = self.hold.borrow_mut();
        match std::mem::replace(&mut *hold, Hold::Taken) {
            Hold::Aside(aside) => {
                *hold = Hold::Flushing(aside, context.waker().clone());
                Poll::Pending
            }
            Hold::Flushing(aside, waker) => {
                *hold = Hold::Flushing(aside, waker);
                Poll::Pending
            }
            _ => Poll::Ready(Taken(Rc::clone(self))),
        }
    }

    /// What the server below learns while the connection is not its own; `None`: it is.
    pub(super) fn poll_held(&self, context: &mut Context<'_>) -> Option<Poll<io::Result<()>>> {
        let mut hold = self.hold.borrow_mut();
        let aside = match &mut *hold {
            Hold::Free => return None,
            Hold::Taken => return Some(Poll::Pending),
            // The end of the connection.
            Hold::Over => return Some(Poll::Ready(Ok(()))),
            Hold::Aside(aside) | Hold::Flushing(aside, _) => aside,
        };
        *self.reader.borrow_mut() = Some(context.waker().clone());
        let mut chunk = [0; 2048];
        while aside.len() < MOST_ASIDE {
            let mut buffer = ReadBuf::new(&mut chunk);
            match self.poll_bytes(context, &mut buffer) {
                Poll::Pending => return Some(Poll::Pending),
                Poll::Ready(Err(error)) => return Some(Poll::Ready(Err(error))),
                // It left before it was answered.
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Some(Poll::Ready(Ok(()))),
                Poll::Ready(Ok(())) => aside.extend_from_slice(buffer.filled()),
            }
        }
        Some(Poll::Pending)
    }

    pub(super) fn flushed(&self) {
        let mut hold = self.hold.borrow_mut();
        if let Hold::Flushing(aside, waker) = &mut *hold {
            self.put_back(std::mem::take(aside));
            waker.wake_by_ref();
            *hold = Hold::Taken;
        }
    }

    pub(super) fn is_taken(&self) -> bool {
        matches!(*self.hold.borrow(), Hold::Taken | Hold::Over)
    }

    /// Bytes of the client: those that were read early, then those of the connection.
    pub(super) fn poll_bytes(
        &self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut unread = self.unread.borrow_mut();
        if unread.is_empty() {
            drop(unread);
            return Pin::new(&mut *self.io.borrow_mut()).poll_read(context, buffer);
        }
        let length = unread.len().min(buffer.remaining());
        take_front(&mut unread, length, buffer);
        Poll::Ready(Ok(()))
    }

    /// Puts bytes in front of those that are not read.
    fn put_back(&self, mut early: BytesMut) {
        let mut unread = self.unread.borrow_mut();
        early.extend_from_slice(&unread);
        *unread = early;
    }
}

/// Moves so many bytes. An empty `unread` gives its memory back: most connections never need it again.
pub(super) fn take_front(unread: &mut BytesMut, length: usize, buffer: &mut ReadBuf<'_>) {
    buffer.put_slice(&unread[..length]);
    unread.advance(length);
    if unread.is_empty() {
        *unread = BytesMut::new();
    }
}

/// The bare connection to a client, in the hands of a tunnel. Dropped, it lets the server below end.
pub(in crate::doors) struct Taken(Rc<Line>);

impl Taken {
    /// What the server below had read before the connection was held.
    pub(in crate::doors) fn unread(&self, early: Bytes) {
        self.0.put_back(BytesMut::from(&early[..]));
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        *self.0.hold.borrow_mut() = Hold::Over;
        if let Some(reader) = self.0.reader.borrow_mut().take() {
            reader.wake();
        }
    }
}

impl AsyncRead for Taken {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.poll_bytes(context, buffer)
    }
}

impl AsyncWrite for Taken {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.io.borrow_mut()).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.io.borrow_mut()).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.io.borrow_mut()).poll_shutdown(context)
    }
}
