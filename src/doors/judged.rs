//! What was decided about a request, kept among its extensions for whoever comes later: the handler, the log line.

use std::cell::OnceCell;
use std::rc::Rc;
use std::time::Duration;

use actix_web::dev::Extensions;

use crate::limiter::decision::Decision;

/// A place for one decision. Whoever wants to read it, even of a request that is given up, puts an empty one
/// among the extensions first and keeps a clone.
#[derive(Clone, Debug, Default)]
pub struct Judged(Rc<OnceCell<(Decision, Duration)>>);

impl Judged {
    /// Keeps a decision and how long it took. The first one of a request stays.
    pub fn note(extensions: &mut Extensions, decision: Decision, took: Duration) -> Self {
        let judged = match extensions.get::<Self>() {
            Some(place) => place.clone(),
            None => {
                let place = Self::default();
                extensions.insert(place.clone());
                place
            }
        };
        let _ = judged.0.set((decision, took));
        judged
    }

    /// The decision, once made.
    pub fn decision(&self) -> Option<&Decision> {
        self.0.get().map(|(decision, _)| decision)
    }

    /// How long it took to decide.
    pub fn took(&self) -> Duration {
        self.0.get().map_or(Duration::ZERO, |&(_, took)| took)
    }
}
