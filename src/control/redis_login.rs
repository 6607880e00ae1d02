//! User, password and certificates of Redis, read again when their files change.

use std::sync::Arc;

use super::reload::{Attempt, Change, Reloadable};
use crate::config::{Errors, Problem, Seen};
use crate::redis::Logins;

/// The files of a login. What comes of it the link itself says: only Redis can tell whether it lets anybody in.
pub struct RedisLogin(Arc<Logins>);

impl RedisLogin {
    /// The login of a link, which was read just now.
    pub fn new(logins: Arc<Logins>) -> (Self, Seen) {
        let seen = seen(&logins);
        (Self(logins), seen)
    }
}

impl Reloadable for RedisLogin {
    fn read(self: Arc<Self>) -> Attempt {
        let seen = seen(&self.0);
        let outcome = match self.0.read_again() {
            Err(bad) => Err(Errors(vec![Problem { place: bad.file, message: bad.why }])),
            Ok(fresh) if fresh.is_same(&self.0.wanted()) => Ok(Change::None),
            Ok(fresh) => Ok(Change::Put(Box::new(move || self.0.take(fresh)))),
        };
        Attempt { seen, warnings: Vec::new(), outcome }
    }

    fn in_force(&self) -> Option<String> {
        None
    }
}

fn seen(logins: &Logins) -> Seen {
    let mut seen = Seen::default();
    logins.files().paths().for_each(|path| seen.note(path));
    seen
}
