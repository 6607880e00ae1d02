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
    /// Whether there is a key to verify tokens with.
    verifies: bool,
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
    Sound(Box<Rules>),
}

impl Source {
    /// The file at `path`, `chosen` by `policies.file`: then it has to be there.
    pub(in crate::config) fn new(path: PathBuf, chosen: bool, verifies: bool) -> Self {
        Self { path, chosen, verifies }
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
                let name = self.path.display().to_string();
                let rules = super::parse_with(&name, &text, &mut |path| seen.text(path));
                let unverified = |rules: &Rules| match self.verifies {
                    true => Vec::new(),
                    false => super::without_key(&name, rules),
                };
                match rules.map(|rules| (unverified(&rules), rules)) {
                    Ok((problems, rules)) if problems.is_empty() => Found::Sound(Box::new(rules)),
                    Ok((problems, _)) => Found::Bad(Errors(problems)),
                    Err(errors) => Found::Bad(errors),
                }
            }
        };
        (found, seen)
    }
}
