//! Reads. From what was written (files, environment, flags) to what it means: [`Settings`], typed, which
//! cannot be wrong; or to every error at once, each of which names its variable or file and key.
//!
//! The way of a value: [`Sources`] say where to look, the `config` crate lets the strongest layer win, a
//! reader gives it its type. Nothing here knows a server; nothing else reads the environment.

mod error;
mod file;
mod gateway;
mod keys;
mod layers;
mod parse;
pub mod policies;
mod read;
pub mod report;
mod secret;
mod seen;
mod settings;
mod take;

pub use error::{Errors, Problem};
pub use keys::{KEYS, Known, flag_name};
pub use layers::{COMPILED_IN, Sources};
pub use secret::Secret;
pub use seen::{Digest, Seen};
pub use settings::*;

use crate::limiter::rollout::Percent;

/// A value in force, as it may be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The dotted key.
    pub key: &'static str,
    /// The value, secrets replaced by `[redacted]`; empty when it is not set.
    pub value: String,
    /// Where it comes from: `default (compiled in)`, a file, `environment: PORT`, `flag --port`.
    pub source: String,
}

/// What was read.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What it means.
    pub settings: Settings,
    /// Every option with its value and source, in the order of the default file.
    pub effective: Vec<Effective>,
    /// What is allowed and still worth a word, one line each.
    pub warnings: Vec<String>,
}

/// A percentage as it is written in settings: 0 to 100, at most two decimals.
///
/// # Errors
/// What was read and what is accepted.
pub fn percent(text: &str) -> Result<Percent, String> {
    parse::percent(text).map_err(|message| format!("read {}; {message}", error::quoted(text)))
}

/// Reads everything and returns what it means.
///
/// # Errors
/// Every problem that there is, not only the first.
pub fn load(sources: &Sources) -> Result<Loaded, Errors> {
    let merged = layers::merge(sources);
    read::read(sources, merged)
}
