//! A client whose body turns out to be malformed while its request is under way: the server library would close the
//! connection without an answer.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Waker};

use tokio::io::AsyncWrite;

use super::rejection::Rejection;
use super::{Line, Wire};

/// How far it has come with a client.
#[derive(Default)]
pub(super) struct Doubt {
    /// The client has closed its side, or was let go.
    pub(super) ended: Cell<bool>,
    /// A request came, and nothing of its answer is out.
    pub(super) owed: Cell<bool>,
    /// The server below could not read on.
    malformed: Cell<bool>,
}

impl Line {
    /// Whether what is under way was given up because the client is at fault.
    pub(in crate::doors) fn is_at_fault(&self) -> bool {
        self.doubt.malformed.get()
    }

    /// Whether the client has closed its side, or was let go.
    pub(in crate::doors) fn has_ended(&self) -> bool {
        self.doubt.ended.get()
    }
}

impl Wire {
    /// A word to a client whose request ends because the server below could not read on. As far as it goes: nobody waits
    /// for such a client.
    pub(super) fn tell_of_malformed(&mut self) {
        let (line, doubt) = (&self.line, &self.line.doubt);
        let known = line.http2 || line.is_taken() || doubt.ended.get() || doubt.malformed.get();
        if known || !doubt.owed.get() || self.leaving.has_begun() {
            return;
        }
        doubt.malformed.set(true);
        self.reject(&mut Context::from_waker(Waker::noop()), Rejection::MalformedBody);
    }

    /// Writes an answer past the server below, as far as it goes, and reads what the client still sends.
    pub(super) fn reject(&mut self, context: &mut Context<'_>, rejection: Rejection) {
        self.lingers = true;
        let mut io = self.line.io.borrow_mut();
        let _ = Pin::new(&mut *io).poll_write(context, rejection.page());
        let _ = Pin::new(&mut *io).poll_flush(context);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.tell_of_malformed();
    }
}
