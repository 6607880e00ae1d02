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

/// Replaces a value that may hold a secret.
const NOT_SHOWN: &str = "the value (not shown, it may hold a password)";

/// What was read, for an error: in quotes, cut short. A value that may hold a secret (a `REDIS_URL` in the wrong
/// variable) is not repeated at all.
pub(super) fn quoted(text: &str) -> String {
    quoted_of(text, text)
}

/// [`quoted`] for an item of a list. The whole value decides whether the item is repeated: a password with a comma in it
/// is cut into items that look harmless.
pub(super) fn quoted_of(item: &str, whole: &str) -> String {
    if may_hold_secret(whole) {
        return NOT_SHOWN.to_owned();
    }
    match item.char_indices().nth(LONGEST_QUOTE) {
        Some((cut, _)) => format!("\"{}…\"", &item[..cut]),
        None => format!("\"{item}\""),
    }
}

/// Whether a value looks as if it held a secret: the `@` behind a user or password; a query with a value; a URL whose port is
/// no number, as a password without its `@` is read; a word for a secret that is given a value. Rather too often: what is
/// not repeated costs its reader a look into their own configuration.
pub(super) fn may_hold_secret(text: &str) -> bool {
    const WORDS: [&str; 8] =
        ["password", "passwd", "secret", "token", "apikey", "api_key", "api-key", "credential"];
    let has_query = || text.split_once('?').is_some_and(|(_, query)| query.contains('='));
    let has_odd_port = || {
        text.split("://").skip(1).any(|rest| {
            let authority = rest.split(['/', '?', '#', ',']).next().unwrap_or_default();
            let port = authority.rsplit_once(':').map(|(_, port)| port);
            port.is_some_and(|port| !port.ends_with(']') && port.bytes().any(|byte| !byte.is_ascii_digit()))
        })
    };
    let names_secret = || {
        let lower = text.to_ascii_lowercase();
        WORDS.iter().any(|word| {
            lower
                .split(word)
                .skip(1)
                .any(|rest| rest.trim_start_matches([' ', '"', '\'']).starts_with(['=', ':']))
        })
    };
    text.contains('@') || has_query() || has_odd_port() || names_secret()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_that_may_hold_a_secret_is_not_repeated() {
        for text in [
            "http://u:PW,x@h",
            "u:PW@h",
            "http://h/?token=PW",
            "h?PW=1",
            "http://u:PW",
            "http://h:80,http://u:PW",
            "tidegate[{password=PW}]=debug",
            "PASSWORD: PW",
            "redis://u:PW@h",
        ] {
            assert_eq!(quoted(text), NOT_SHOWN, "{text}");
            for item in text.split(',') {
                assert_eq!(quoted_of(item, text), NOT_SHOWN, "{item} of {text}");
            }
        }
        for text in [
            "80a",
            "ftp://h",
            "http://h:99999",
            "http://[::1]:80/",
            "http://[::1]",
            "localhost:8081",
            "info,tidegate=debug",
            "fe80::1%eth0",
            "query:token",
            "tokens",
        ] {
            assert_eq!(quoted(text), format!("\"{text}\""));
        }
    }
}
