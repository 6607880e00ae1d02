//! What was decided about a request, kept for whoever tells of it later, even when the request is given up.

use std::cell::OnceCell;
use std::rc::Rc;
use std::time::Duration;

use actix_web::HttpMessage;

use crate::limiter::decision::Decision;
use crate::limiter::token::TokenOutcome;

/// A place for one decision. Whoever wants to know it puts an empty one among the request's extensions and keeps a
/// clone; where nobody did, keeping it costs nothing.
#[derive(Clone, Debug, Default)]
pub struct Judged(Rc<OnceCell<Kept>>);

#[derive(Debug)]
struct Kept {
    decision: Rc<Decision>,
    took: Duration,
    token: Option<TokenOutcome>,
}

impl Judged {
    /// The place that somebody put among a request's extensions.
    pub fn place(request: &impl HttpMessage) -> Option<Self> {
        request.extensions().get::<Self>().cloned()
    }

    /// Keeps a decision, how long it took, and what became of the request's token if that was looked at. The first one
    /// of a request stays.
    pub fn keep(&self, decision: Rc<Decision>, took: Duration, token: Option<TokenOutcome>) {
        let _ = self.0.set(Kept { decision, took, token });
    }

    /// The decision, once made.
    pub fn decision(&self) -> Option<&Decision> {
        self.0.get().map(|kept| &*kept.decision)
    }

    /// How long it took to decide.
    pub fn took(&self) -> Duration {
        self.0.get().map_or(Duration::ZERO, |kept| kept.took)
    }

    /// What became of the request's token; `None` where it was not looked at.
    pub fn token(&self) -> Option<TokenOutcome> {
        self.0.get().and_then(|kept| kept.token)
    }
}
