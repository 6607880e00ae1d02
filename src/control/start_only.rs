//! Settings that are read at the start only: a reload says when their files have changed since, and leaves them alone.

use std::sync::Arc;

use super::reload::{Attempt, Change, Reloadable};
use crate::config::Seen;

/// The files of settings, as the start read them.
pub struct StartOnly(pub Seen);

impl Reloadable for StartOnly {
    fn read(self: Arc<Self>) -> Attempt {
        let warning = |path: &std::path::Path| {
            format!(
                "{} has changed since the start, and is read at the start only: restart to put it in force",
                path.display()
            )
        };
        Attempt {
            // Nothing to watch: a change here is for the next restart.
            seen: Seen::default(),
            warnings: self.0.changed().into_iter().map(warning).collect(),
            outcome: Ok(Change::None),
        }
    }

    fn in_force(&self) -> Option<String> {
        None
    }
}
