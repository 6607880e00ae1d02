//! Reading of HTTP/1: the server library gets one request at a time, and of each the whole head at once.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;

use super::framer::{Framer, HeadLimits};
use super::handover::{MOST_ASIDE, take_front};
use super::rejection::Rejection;
use super::{LINGER, Wire, wait_until};

/// How often what a client still sends is read before others have their turn.
const READS_AT_ONCE: usize = 16;

/// Where the reading of a connection is.
pub(super) struct Http1 {
    framer: Framer,
    /// How many heads the server library got.
    heads: u64,
    /// How many bytes, from the first that is not read, may be handed on.
    cleared: usize,
    /// When the first byte of a head came of which there is a part.
    head_since: Option<Instant>,
    may_half_close: bool,
    /// The client has closed its sending side, and there is a request that it sent before.
    half_closed: bool,
}

impl Http1 {
    pub(super) fn new(heads: HeadLimits) -> Self {
        let framer = Framer::new(heads);
        Self { framer, heads: 0, cleared: 0, head_since: None, may_half_close: false, half_closed: false }
    }

    pub(super) fn may_half_close(&mut self, may: bool) {
        self.may_half_close = may;
    }

    /// How many of `bytes` may be handed on.
    fn admit(&mut self, bytes: &[u8]) -> Result<usize, Rejection> {
        let in_head = self.framer.is_in_head();
        let count = self.framer.advance(bytes)?;
        if in_head && !self.framer.is_in_head() {
            self.heads += 1;
            self.head_since = None;
        }
        Ok(count)
    }
}

impl Wire {
    /// What the server library reads. The bytes behind the request under way wait until its answer is out; meanwhile the
    /// client is watched, so that one that leaves ends its request.
    pub(super) fn poll_read_http1(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        loop {
            if self.http1.cleared > 0 {
                let count = self.http1.cleared.min(buffer.remaining());
                take_front(&mut self.line.unread.borrow_mut(), count, buffer);
                self.http1.cleared -= count;
                return Poll::Ready(Ok(()));
            }
            let waits = self.http1.framer.is_done();
            if self.http1.framer.is_broken() || waits && self.is_closed_behind_answer() {
                return Poll::Ready(Ok(()));
            }
            let held = self.line.unread.borrow().len();
            if !waits && held > 0 {
                let admitted = self.http1.admit(&self.line.unread.borrow());
                match admitted {
                    Ok(0) => _ = self.http1.head_since.get_or_insert_with(Instant::now),
                    Ok(count) => {
                        self.http1.cleared = count;
                        continue;
                    }
                    Err(rejection) => return self.rejects(context, rejection),
                }
            }
            if self.http1.half_closed && !waits {
                return self.is_left();
            }
            if self.http1.half_closed || waits && held >= MOST_ASIDE {
                return self.poll_deadline(context);
            }
            let outcome = Pin::new(&mut *self.line.io.borrow_mut()).poll_read(context, buffer);
            let got = &buffer.filled()[before..];
            match outcome {
                Poll::Pending => return self.poll_deadline(context),
                Poll::Ready(Err(error)) => {
                    self.line.doubt.ended.set(true);
                    return Poll::Ready(Err(error));
                }
                Poll::Ready(Ok(())) if got.is_empty() => {
                    if waits && held > 0 && self.http1.may_half_close {
                        self.http1.half_closed = true;
                        continue;
                    }
                    return self.is_left();
                }
                Poll::Ready(Ok(())) => {}
            }
            // Straight into the buffer of the server library, where nothing is held.
            let admitted = if waits || held > 0 { Ok(0) } else { self.http1.admit(got) };
            match admitted {
                Ok(count) if count == got.len() => return Poll::Ready(Ok(())),
                Ok(count) => {
                    self.line.unread.borrow_mut().extend_from_slice(&got[count..]);
                    buffer.set_filled(before + count);
                    if count > 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
                Err(rejection) => {
                    buffer.set_filled(before);
                    return self.rejects(context, rejection);
                }
            }
        }
    }

    /// What was written is out: when it was the end of an answer, the next request may be read.
    pub(super) fn answers_are_out(&mut self, context: &mut Context<'_>) {
        if self.line.busy.get() > 0 || self.line.over.get() < self.http1.heads || self.line.closing.get() {
            return;
        }
        if self.http1.framer.is_done() {
            self.http1.framer.next();
            if !self.line.unread.borrow().is_empty() {
                self.http1.head_since = Some(Instant::now());
                context.waker().wake_by_ref();
                return;
            }
        }
        // The server library reads on only when there is something to be read.
        if self.is_overdue(context) {
            context.waker().wake_by_ref();
        }
    }

    /// The last answer of the connection has gone to the server library.
    fn is_closed_behind_answer(&self) -> bool {
        self.line.closing.get() && self.line.busy.get() == 0
    }

    /// The end of the connection, as the server library sees it.
    fn is_left(&self) -> Poll<io::Result<()>> {
        self.line.doubt.ended.set(true);
        Poll::Ready(Ok(()))
    }

    fn rejects(&mut self, context: &mut Context<'_>, rejection: Rejection) -> Poll<io::Result<()>> {
        self.reject(context, rejection);
        self.is_left()
    }

    /// Nothing comes at the moment.
    fn poll_deadline(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_overdue(context) {
            return Poll::Pending;
        }
        if self.http1.framer.is_in_head() && self.http1.head_since.is_some() {
            return self.rejects(context, Rejection::HeadTooSlow);
        }
        self.is_left()
    }

    /// Whether the client has taken too long over a head, over its next request, or over the rest of a body whose request
    /// is answered. Else the task is woken when it has. Bodies that are read have a deadline with their readers.
    fn is_overdue(&mut self, context: &mut Context<'_>) -> bool {
        if self.line.busy.get() > 0 || self.line.over.get() < self.http1.heads {
            return false;
        }
        // The rest of an answer has a deadline where it is written.
        if self.http1.framer.is_done() || self.stalled_since.is_some() {
            return false;
        }
        let (patience, rested) = (self.line.patience, self.line.rested.get());
        let deadline = match (self.http1.framer.is_in_head(), self.http1.head_since) {
            (true, None) => rested + patience.idle,
            (true, Some(since)) => since + patience.head,
            (false, _) => rested + patience.head,
        };
        wait_until(&mut self.timer, deadline, context)
    }

    /// Reads what the client still sends, for a while, where it was not all read: see [`LINGER`].
    pub(super) fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let is_all_read = self.line.unread.borrow().is_empty()
            && (self.http1.framer.is_done() || self.http1.framer.is_in_head());
        let begun = self.lingers_since.is_some();
        if !begun && (self.line.http2 || !self.lingers && (is_all_read || self.line.doubt.ended.get())) {
            return Poll::Ready(());
        }
        let since = *self.lingers_since.get_or_insert_with(Instant::now);
        let mut chunk = [0; 4096];
        for _ in 0..READS_AT_ONCE {
            let mut buffer = ReadBuf::new(&mut chunk);
            match Pin::new(&mut *self.line.io.borrow_mut()).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending if wait_until(&mut self.timer, since + LINGER, context) => {
                    return Poll::Ready(());
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        if since.elapsed() > LINGER {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}
