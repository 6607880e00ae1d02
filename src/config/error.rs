//! What is wrong with a configuration: one line each, with its place, and never with a secret.

use std::fmt;

use serde::Serialize;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The variable, the flag, or `file:key`.
    pub place: String,
    /// What was read, what is wrong with it, and what is accepted or to be done.
    pub message: String,
}

impl Problem {
    pub(super) fn new(place: impl AsRef<str>, message: impl AsRef<str>) -> Self {
        Self { place: one_line(place.as_ref()), message: one_line(message.as_ref()) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Everything that is wrong, in the order in which it was read. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors(pub Vec<Problem>);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// Control characters escaped: a value cannot break the line, or write to the terminal.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// The longest piece of a value that an error repeats, in characters.
const LONGEST_QUOTE: usize = 80;

/// What was read, for an error: in quotes, cut short. A URL with user-info in it (a `REDIS_URL` in the wrong
/// variable) is not repeated at all.
pub(super) fn quoted(text: &str) -> String {
    if text.contains("://") && text.contains('@') {
        return "the value (not shown, it may hold a password)".to_owned();
    }
    match text.char_indices().nth(LONGEST_QUOTE) {
        Some((cut, _)) => format!("\"{}…\"", &text[..cut]),
        None => format!("\"{text}\""),
    }
}
