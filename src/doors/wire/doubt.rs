//! A client whose bytes are in doubt: it is told so, and nothing that it sent behind them is served.
//!
//! The server below reads on for the next request as long as there is something in its buffer, whatever was answered; and
//! where a body turns out to be malformed while its request is under way, it closes without a word.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Waker};

use tokio::io::AsyncWrite;

use super::{Line, Wire};

/// What a client is told whose body is malformed, or what it sent behind its request.
const MALFORMED: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: application/problem+json\r\n\
    content-length: 133\r\n\r\n{\"type\":\"urn:tidegate:bad-request\",\"title\":\"Bad request\",\"status\":400,\"detail\":\"The \
    body is malformed, or what follows the request.\"}";

/// How far it has come with a client.
#[derive(Default)]
pub(super) struct Doubt {
    /// A request was refused: what follows is not served.
    refused: Cell<bool>,
    /// Something followed.
    cut: Cell<bool>,
    /// The client has closed its side, or was let go.
    pub(super) ended: Cell<bool>,
    /// A request came, and nothing of its answer is out.
    pub(super) owed: Cell<bool>,
    /// The server below could not read on.
    malformed: Cell<bool>,
}

impl Line {
    /// Serves nothing that comes after the request under way.
    pub(in crate::doors) fn refuse(&self) {
        // Frames of HTTP/2 tell one request from another, whatever is in them.
        self.doubt.refused.set(!self.http2);
    }

    /// Whether an earlier request was refused. The connection then ends as soon as its answer is out.
    pub(in crate::doors) fn is_refused(&self) -> bool {
        let refused = self.doubt.refused.get();
        if refused {
            self.doubt.cut.set(true);
        }
        refused
    }

    /// Whether what is under way was given up because the client is at fault.
    pub(in crate::doors) fn is_at_fault(&self) -> bool {
        self.doubt.malformed.get() || self.doubt.cut.get()
    }

    pub(super) fn is_cut(&self) -> bool {
        self.doubt.cut.get()
    }
}

impl Wire {
    /// A word to a client whose request ends because the server below could not read on. As far as it goes: nobody waits
    /// for such a client.
    pub(super) fn tell_of_malformed(&self) {
        let (line, doubt) = (&self.line, &self.line.doubt);
        let known =
            line.http2 || line.is_taken() || doubt.ended.get() || doubt.cut.get() || doubt.malformed.get();
        if known || !doubt.owed.get() || self.leaving.has_begun() {
            return;
        }
        doubt.malformed.set(true);
        let mut context = Context::from_waker(Waker::noop());
        let mut io = line.io.borrow_mut();
        let _ = Pin::new(&mut *io).poll_write(&mut context, MALFORMED);
        let _ = Pin::new(&mut *io).poll_flush(&mut context);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.tell_of_malformed();
    }
}
