//! The admin API's tokens, read again when their file changes: two are valid at once, so rotating needs no restart.

use std::sync::Arc;

use super::reload::{Attempt, Change, Reloadable};
use super::tokens::Tokens;
use crate::config::{Errors, TokenFile};

/// The file of the tokens that are accepted.
pub struct AdminTokens {
    file: TokenFile,
    tokens: Tokens,
}

impl AdminTokens {
    /// `file`, which `tokens` were read from just now.
    pub fn new(file: TokenFile, tokens: Tokens) -> Self {
        Self { file, tokens }
    }
}

impl Reloadable for AdminTokens {
    fn read(self: Arc<Self>) -> Attempt {
        let (found, seen) = self.file.read();
        let outcome = match found {
            Err(problems) => Err(Errors(problems)),
            Ok(tokens) if self.tokens.are(&tokens) => Ok(Change::None),
            Ok(tokens) => Ok(Change::Put(Box::new(move || self.tokens.take(&tokens)))),
        };
        Attempt { seen, warnings: Vec::new(), outcome }
    }

    /// A token that is revoked must not be good for as long as somebody looks for a typo in the limits.
    fn stands_alone(&self) -> bool {
        true
    }

    fn in_force(&self) -> Option<String> {
        let (count, path) = (self.tokens.count(), self.file.path().display());
        Some(format!("{count} admin token(s) of {path}"))
    }
}
