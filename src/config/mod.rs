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
mod tokens;

pub use error::{Errors, Problem};
pub use keys::{KEYS, Known, flag_name};
pub use layers::{COMPILED_IN, Sources};
pub use secret::Secret;
pub use seen::{Digest, Seen};
pub use settings::*;
pub use tokens::{AdminToken, Scope, TokenFile};

use std::num::NonZeroU32;
use std::time::Duration;

use crate::limiter::calendar::Unit;
use crate::limiter::clock::Micros;
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

/// A limit as it is written in policies, `"100/minute"`: so many, in so many microseconds.
///
/// # Errors
/// What was read and what is accepted.
pub fn limit(text: &str) -> Result<(NonZeroU32, Micros), String> {
    policies::limit(text).map_err(|message| format!("read {}; {message}", error::quoted(text)))
}

/// A limit in windows of the calendar as it is written in policies, `"100/month"`.
///
/// # Errors
/// What was read and what is accepted.
pub fn window(text: &str) -> Result<(NonZeroU32, Unit), String> {
    policies::window(text).map_err(|message| format!("read {}; {message}", error::quoted(text)))
}

/// A time as it is written in policies, `"30s"`.
///
/// # Errors
/// What was read and what is accepted.
pub fn duration(text: &str) -> Result<Duration, String> {
    let read = policies::duration(text).map(Duration::from_micros);
    read.map_err(|message| format!("read {}; {message}", error::quoted(text)))
}

/// Reads everything and returns what it means.
///
/// # Errors
/// Every problem that there is, not only the first.
pub fn load(sources: &Sources) -> Result<Loaded, Errors> {
    let merged = layers::merge(sources);
    read::read(sources, merged)
}
