//! What was decided about a request, kept for whoever tells of it later, even when the request is given up.

use std::cell::OnceCell;
use std::rc::Rc;
use std::time::Duration;

use actix_web::HttpMessage;

use crate::limiter::decision::Decision;

/// A place for one decision. Whoever wants to know it puts an empty one among the request's extensions and keeps a
/// clone; where nobody did, keeping it costs nothing.
#[derive(Clone, Debug, Default)]
pub struct Judged(Rc<OnceCell<(Rc<Decision>, Duration)>>);

impl Judged {
    /// The place that somebody put among a request's extensions.
    pub fn place(request: &impl HttpMessage) -> Option<Self> {
        request.extensions().get::<Self>().cloned()
    }

    /// Keeps a decision and how long it took. The first one of a request stays.
    pub fn keep(&self, decision: Rc<Decision>, took: Duration) {
        let _ = self.0.set((decision, took));
    }

    /// The decision, once made.
    pub fn decision(&self) -> Option<&Decision> {
        self.0.get().map(|(decision, _)| &**decision)
    }

    /// How long it took to decide.
    pub fn took(&self) -> Duration {
        self.0.get().map_or(Duration::ZERO, |&(_, took)| took)
    }
}
