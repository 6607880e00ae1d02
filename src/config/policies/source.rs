//! Where the limits are read from: the start and every reload read them here, in the same way.

use std::path::{Path, PathBuf};

use crate::config::error::Errors;
use crate::config::seen::Seen;
use crate::limiter::policy::Rules;

/// The file of limits.
#[derive(Clone, Debug)]
pub struct Source {
    path: PathBuf,
    chosen: bool,
}

/// What stands in the file.
#[derive(Debug)]
pub enum Found {
    /// There is no such file.
    Nothing,
    /// There is one that can't be read; why, and what is accepted.
    Unreadable(String),
    /// Something that makes no sense.
    Bad(Errors),
    /// Limits.
    Sound(Rules),
}

impl Source {
    /// The file at `path`, `chosen` by `policies.file`: then it has to be there.
    pub(in crate::config) fn new(path: PathBuf, chosen: bool) -> Self {
        Self { path, chosen }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether `policies.file` names it; without, it may be missing at the start.
    pub fn is_chosen(&self) -> bool {
        self.chosen
    }

    /// Reads it, and notes which files that took.
    pub fn read(&self) -> (Found, Seen) {
        let mut seen = Seen::default();
        let found = match seen.text(&self.path) {
            Ok(None) => Found::Nothing,
            Err(message) => Found::Unreadable(message),
            Ok(Some(text)) => {
                match super::parse_with(&self.path.display().to_string(), &text, &mut |path| seen.text(path))
                {
                    Ok(rules) => Found::Sound(rules),
                    Err(errors) => Found::Bad(errors),
                }
            }
        };
        (found, seen)
    }
}
