//! Reading and writing of HTTP/2: frames pass as they are, but for our first one and the resets of streams whose client
//! takes nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncWrite, ReadBuf};

use super::flow::{self, Flow, Overdue};
use super::frames::{self, Greeting, Watched};
use super::{Wire, wait_until};

/// What a client of HTTP/2 is told of the longest list of headers, in bytes; what is really taken says the gateway.
const LONGEST_LIST: u32 = 64 * 1024;

/// What is followed of HTTP/2.
#[derive(Default)]
pub(super) struct Http2 {
    watched: Watched,
    greeting: Greeting,
    flow: Flow,
}

impl Http2 {
    pub(super) fn poll_write(
        &mut self,
        io: &mut (impl AsyncWrite + Unpin),
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.flow.poll_resets(io, context))?;
        let written = match ready!(self.greeting.poll_write(io, context, bytes, LONGEST_LIST))? {
            Some(written) => written,
            None => ready!(Pin::new(io).poll_write(context, bytes))?,
        };
        self.flow.sent(&bytes[..written]);
        Poll::Ready(Ok(written))
    }
}

impl Wire {
    pub(super) fn poll_read_http2(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if let (Some(frames), 0) = (&self.frames, self.line.busy.get()) {
            // Streams that were reset before they were requests are over as well.
            self.line.over.set(frames.watched.opened);
        }
        if self.reset_overdue(buffer) {
            return Poll::Ready(Ok(()));
        }
        let outcome = self.line.poll_bytes(context, buffer);
        if let Some(frames) = &mut self.frames
            && (frames.watched.is_too_much(&buffer.filled()[before..])
                || frames.watched.opened.saturating_sub(self.line.over.get()) > frames::FAR_TOO_MANY)
        {
            buffer.set_filled(before);
            self.line.doubt.ended.set(true);
            return Poll::Ready(Ok(()));
        }
        if let Some(frames) = &mut self.frames {
            frames.flow.received(&buffer.filled()[before..]);
        }
        match &outcome {
            Poll::Ready(Ok(())) if buffer.filled().len() > before => {}
            Poll::Pending => {
                *self.line.reader.borrow_mut() = Some(context.waker().clone());
                // Frames may come at any time; only the rest of an idle connection is counted.
                let idle_until = self.line.rested.get() + self.line.patience.idle;
                let idle = self.line.busy.get() == 0 && wait_until(&mut self.timer, idle_until, context);
                let expired = self.expire_streams(context);
                if idle || expired == Overdue::Connection || self.has_ended(context) {
                    self.line.doubt.ended.set(true);
                    // As if it had closed: the server below then lets go of it.
                    return Poll::Ready(Ok(()));
                }
                if expired == Overdue::Streams && self.reset_overdue(buffer) {
                    return Poll::Ready(Ok(()));
                }
            }
            Poll::Ready(_) => self.line.doubt.ended.set(true),
        }
        outcome
    }

    /// Whether the server library gets the reset of a stream, as if the client had sent it.
    fn reset_overdue(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let Some(frames) = self.frames.as_mut().filter(|_| buffer.remaining() >= flow::RESET) else {
            return false;
        };
        let reset = frames.flow.reset_to_library();
        reset.inspect(|reset| buffer.put_slice(reset)).is_some()
    }

    /// Looks for streams whose client takes nothing. Else the task is woken when one is overdue.
    fn expire_streams(&mut self, context: &mut Context<'_>) -> Overdue {
        let Some(frames) = &mut self.frames else { return Overdue::None };
        let longest = self.line.patience.write;
        let Some(since) = frames.flow.blocked_since() else { return Overdue::None };
        if !wait_until(&mut self.timer, since + longest, context) {
            return Overdue::None;
        }
        let expired = frames.flow.expire(longest);
        // What is not written now is written in front of the next frame.
        let _ = frames.flow.poll_resets(&mut *self.line.io.borrow_mut(), context);
        expired
    }

    /// What was written may have used up a window: the task is woken when its deadline has passed.
    pub(super) fn watch_streams(&mut self, context: &mut Context<'_>) {
        if let Some(since) = self.frames.as_ref().and_then(|frames| frames.flow.blocked_since())
            && wait_until(&mut self.timer, since + self.line.patience.write, context)
        {
            // They are looked for where the server library reads.
            context.waker().wake_by_ref();
        }
    }

    fn has_ended(&mut self, context: &mut Context<'_>) -> bool {
        let Some(ending) = &mut self.ending else { return false };
        self.line.busy.get() == 0 && ending.as_mut().poll(context).is_ready()
    }
}
