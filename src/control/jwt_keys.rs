//! The keys of tokens, read again when their file changes.

use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use parking_lot::Mutex;

use super::reload::{Attempt, Change, Reloadable};
use crate::config::{Digest, Errors, Problem, Seen};
use crate::doors::jwt::Verifier;

/// The file of keys that a verifier uses.
pub struct JwtKeys {
    verifier: Arc<Verifier>,
    in_force: Mutex<InForce>,
}

#[derive(Clone, Copy)]
struct InForce {
    /// Never told: it could be tried against secrets that people make up.
    digest: Option<Digest>,
    since: DateTime<Utc>,
}

impl JwtKeys {
    /// The keys of `verifier`, which were read just now.
    pub fn new(verifier: Arc<Verifier>) -> (Self, Seen) {
        let seen = seen(&verifier);
        let in_force = InForce { digest: seen.digest(), since: Utc::now() };
        (Self { verifier, in_force: Mutex::new(in_force) }, seen)
    }
}

impl Reloadable for JwtKeys {
    fn read(self: Arc<Self>) -> Attempt {
        let seen = seen(&self.verifier);
        let digest = seen.digest();
        let mut warnings = Vec::new();
        let files =
            || self.verifier.files().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        let outcome = match self.verifier.read_again().inspect(|fresh| {
            warnings.extend(fresh.warning().map(|warning| format!("{}: {warning}", files())));
        }) {
            Err(bad) => Err(Errors(vec![Problem { place: bad.file, message: bad.why }])),
            Ok(_) if digest.is_some() && digest == self.in_force.lock().digest => Ok(Change::None),
            Ok(fresh) => Ok(Change::Put(Box::new(move || {
                self.verifier.take(fresh);
                *self.in_force.lock() = InForce { digest, since: Utc::now() };
            }))),
        };
        Attempt { seen, warnings, outcome }
    }

    fn in_force(&self) -> Option<String> {
        let since = self.in_force.lock().since.to_rfc3339_opts(SecondsFormat::Millis, true);
        let files: Vec<String> = self.verifier.files().map(|path| path.display().to_string()).collect();
        Some(format!("keys of tokens in {}, since {since}", files.join(", ")))
    }
}

fn seen(verifier: &Verifier) -> Seen {
    let mut seen = Seen::default();
    verifier.files().for_each(|path| seen.note(path));
    seen
}
