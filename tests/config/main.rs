//! What the configuration accepts, refuses and shows.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod bad;
mod deploy;
mod documents;
mod files;
#[allow(unreachable_pub, reason = "shared by path, not exported")]
#[path = "../support/installed.rs"]
mod installed;
mod layers;
mod policies;
mod secrets;
mod warnings;

use std::path::Path;

use tempfile::TempDir;
use tidegate::config::{Effective, Errors, Loaded, Sources, load};

/// A configuration directory of its own, an environment and flags.
struct Setup {
    dir: TempDir,
    sources: Sources,
}

impl Setup {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sources = Sources { config_dir: dir.path().to_owned(), ..Sources::default() };
        Self { dir, sources }
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.sources.env.insert(name.into(), value.into());
        self
    }

    fn flag(mut self, key: &str, value: &str) -> Self {
        self.sources.flags.push((key.into(), value.into()));
        self
    }

    fn file(self, name: &str, text: &str) -> Self {
        std::fs::write(self.dir.path().join(name), text).unwrap();
        self
    }

    /// `--config`.
    fn given(mut self, name: &str) -> Self {
        self.sources.file = Some(self.dir.path().join(name));
        self
    }

    fn path(&self, name: &str) -> String {
        Path::join(self.dir.path(), name).display().to_string()
    }

    fn load(&self) -> Result<Loaded, Errors> {
        load(&self.sources)
    }

    fn loaded(&self) -> Loaded {
        self.load().unwrap_or_else(|errors| panic!("{errors}"))
    }

    /// Every problem, one line each.
    fn lines(&self) -> Vec<String> {
        let errors = self.load().expect_err("it should be refused");
        tidegate::config::report::errors_text(&errors).lines().map(str::to_owned).collect()
    }
}

fn effective<'a>(loaded: &'a Loaded, key: &str) -> &'a Effective {
    loaded.effective.iter().find(|one| one.key == key).unwrap()
}
