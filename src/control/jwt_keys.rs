//! The keys of tokens, read again when their file changes.

use std::sync::Arc;

use parking_lot::Mutex;

use super::reload::{Attempt, Change, Reloadable};
use crate::config::{Digest, Errors, Problem, Seen};
use crate::doors::jwt::Verifier;

/// The file of keys that a verifier uses.
pub struct JwtKeys {
    verifier: Arc<Verifier>,
    in_force: Mutex<Option<Digest>>,
}

impl JwtKeys {
    /// The keys of `verifier`, which were read just now.
    pub fn new(verifier: Arc<Verifier>) -> (Self, Seen) {
        let seen = seen(&verifier);
        (Self { verifier, in_force: Mutex::new(seen.digest()) }, seen)
    }
}

impl Reloadable for JwtKeys {
    fn read(self: Arc<Self>) -> Attempt {
        let seen = seen(&self.verifier);
        let digest = seen.digest();
        let outcome = match self.verifier.read_again() {
            Err(bad) => Err(Errors(vec![Problem { place: bad.file, message: bad.why }])),
            Ok(_) if digest.is_some() && digest == *self.in_force.lock() => Ok(Change::None),
            Ok(fresh) => Ok(Change::Put(Box::new(move || {
                self.verifier.take(fresh);
                *self.in_force.lock() = digest;
            }))),
        };
        Attempt { seen, warnings: Vec::new(), outcome }
    }

    fn in_force(&self) -> Option<String> {
        None
    }
}

fn seen(verifier: &Verifier) -> Seen {
    let mut seen = Seen::default();
    verifier.files().for_each(|path| seen.note(path));
    seen
}
