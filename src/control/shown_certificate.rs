//! The certificate that clients are shown, read again when its files change.

use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use parking_lot::Mutex;

use super::reload::{Attempt, Change, Reloadable};
use crate::config::{Errors, Problem, Seen};
use crate::doors::wire::tls::Certificates;

/// The files of a certificate and its key.
pub struct ShownCertificate {
    certificates: Arc<Certificates>,
    since: Mutex<DateTime<Utc>>,
}

impl ShownCertificate {
    /// The files of `certificates`, which were read just now.
    pub fn new(certificates: Arc<Certificates>) -> (Self, Seen) {
        let seen = seen(&certificates);
        (Self { certificates, since: Mutex::new(Utc::now()) }, seen)
    }
}

impl Reloadable for ShownCertificate {
    fn read(self: Arc<Self>) -> Attempt {
        let seen = seen(&self.certificates);
        let outcome = match self.certificates.read_again() {
            Err(bad) => Err(Errors(vec![Problem { place: bad.file, message: bad.why }])),
            Ok(pair) if self.certificates.shows(&pair) => Ok(Change::None),
            Ok(pair) => Ok(Change::Put(Box::new(move || {
                self.certificates.show(pair);
                *self.since.lock() = Utc::now();
            }))),
        };
        Attempt { seen, warnings: Vec::new(), outcome }
    }

    fn in_force(&self) -> Option<String> {
        let since = self.since.lock().to_rfc3339_opts(SecondsFormat::Millis, true);
        let [cert, _] = self.certificates.files();
        Some(format!("the certificate in {}, since {since}", cert.display()))
    }
}

fn seen(certificates: &Certificates) -> Seen {
    let mut seen = Seen::default();
    certificates.files().into_iter().for_each(|path| seen.note(path));
    seen
}
