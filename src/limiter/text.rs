//! The text forms of quotas and subjects: `"100/minute"`, `"header:x-api-key"`. The policy file and library users write both.

use std::num::NonZeroU32;
use std::str::FromStr;

use super::clock::{Micros, SECOND};
use super::gcra::{Quota, QuotaError};
use super::subject::{Part, Subject};

/// The accepted forms of a quota's rate, for error messages.
pub const RATE_FORMS: &str = "\"N/second\", \"N/minute\", \"N/hour\", \"N/day\", \"N/week\" (or N/s, N/m, N/h, \
                              N/d), or a period such as \"N/30s\", \"N/5m\", \"N/2h\", \"N/7d\"";

/// The accepted forms of a subject, for error messages.
pub const SUBJECT_FORMS: &str = "\"ip\", \"header:NAME\", \"query:NAME\", \"cookie:NAME\", \"jwt:CLAIM\", \"everyone\", or a list of the first five";

/// The error of a text that is not a quota.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseQuotaError {
    /// The text has another form than `N/PERIOD`.
    #[error("\"{0}\" is not a rate; accepted: {RATE_FORMS}, N from 1 to {max}", max = u32::MAX)]
    Form(String),
    /// The rate cannot be represented.
    #[error("\"{0}\": {1}")]
    Quota(String, QuotaError),
}

/// The error of a text that is not a subject. Names the text and the accepted forms.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseSubjectError(String);

/// Parses `N/PERIOD` into units and microseconds. `None` when the text has another form.
pub fn rate(text: &str) -> Option<(NonZeroU32, Micros)> {
    let (count, name) = text.split_once('/')?;
    Some((NonZeroU32::new(number(count.trim())?)?, period(name.trim())?))
}

/// Parses a period such as `minute`, `30s` or `7d` into microseconds, greater than 0.
pub fn period(text: &str) -> Option<Micros> {
    let unit = |unit: &str| match unit {
        "s" => Some(SECOND),
        "m" => Some(60 * SECOND),
        "h" => Some(3_600 * SECOND),
        "d" => Some(24 * 3_600 * SECOND),
        _ => None,
    };
    match text {
        "second" => return unit("s"),
        "minute" => return unit("m"),
        "hour" => return unit("h"),
        "day" => return unit("d"),
        "week" => return Some(7 * 24 * 3_600 * SECOND),
        _ => {}
    }
    let (count, name) = text.split_at(text.find(|character: char| !character.is_ascii_digit())?);
    let count = if count.is_empty() { 1 } else { number(count)? };
    unit(name)?.checked_mul(u64::from(count)).filter(|&period| period > 0)
}

/// Parses digits only: Rust's own parser also accepts "+5".
pub fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Whether `text` is a token of RFC 9110, 5.6.2, as names of headers and cookies are.
pub fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

impl FromStr for Quota {
    type Err = ParseQuotaError;

    /// Parses `"100/minute"`; the burst is the limit. Set another with [`Quota::with_burst`].
    fn from_str(text: &str) -> Result<Self, ParseQuotaError> {
        let (limit, period) = rate(text).ok_or_else(|| ParseQuotaError::Form(text.to_owned()))?;
        Self::new(limit, period, limit).map_err(|error| ParseQuotaError::Quota(text.to_owned(), error))
    }
}

impl TryFrom<&str> for Quota {
    type Error = ParseQuotaError;

    fn try_from(text: &str) -> Result<Self, ParseQuotaError> {
        text.parse()
    }
}

impl FromStr for Part {
    type Err = ParseSubjectError;

    fn from_str(text: &str) -> Result<Self, ParseSubjectError> {
        let (kind, name) = text.split_once(':').unwrap_or((text, ""));
        let error = |why: String| Err(ParseSubjectError(why));
        match kind {
            "ip" if text == "ip" => Ok(Self::Ip),
            "everyone" if text == "everyone" => Ok(Self::Everyone),
            // Names of headers are case-insensitive; HTTP facts look them up in lower case.
            "header" if is_token(name) => Ok(Self::Header(name.to_ascii_lowercase().into())),
            "cookie" if is_token(name) => Ok(Self::Cookie(name.into())),
            "query" if !name.is_empty() => Ok(Self::Query(name.into())),
            "jwt" if !name.is_empty() => Ok(Self::Jwt(name.into())),
            "header" | "cookie" => error(format!(
                "\"{kind}:\" wants a name of letters, digits and !#$%&'*+-.^_`|~; accepted: {SUBJECT_FORMS}"
            )),
            "descriptor" => {
                error(format!("\"descriptor:\" is not in this version; accepted: {SUBJECT_FORMS}"))
            }
            _ => error(format!("accepted: {SUBJECT_FORMS}")),
        }
    }
}

impl FromStr for Subject {
    type Err = ParseSubjectError;

    /// Parses one part, such as `"header:x-api-key"`. Join several parts with [`Subject::from_texts`].
    fn from_str(text: &str) -> Result<Self, ParseSubjectError> {
        Self::from_texts([text])
    }
}

impl Subject {
    /// Parses a list of parts that together identify one client.
    ///
    /// # Errors
    /// When the list is empty, a part has an unknown form or is repeated, or `"everyone"` is one of several.
    pub fn from_texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, ParseSubjectError> {
        let parts: Vec<Part> = texts.into_iter().map(str::parse).collect::<Result<_, _>>()?;
        Self::distinct(parts)
    }

    /// A subject of these parts, of which there is at least one, none twice.
    ///
    /// # Errors
    /// When the list is empty, a part is repeated, or [`Part::Everyone`] is one of several.
    pub fn distinct(given: impl IntoIterator<Item = Part>) -> Result<Self, ParseSubjectError> {
        let mut parts: Vec<Part> = Vec::new();
        for part in given {
            if parts.contains(&part) {
                return Err(ParseSubjectError(format!(
                    "\"{part}\" is listed twice; accepted: each part once"
                )));
            }
            parts.push(part);
        }
        if parts.is_empty() {
            return Err(ParseSubjectError(format!("the list is empty; accepted: {SUBJECT_FORMS}")));
        }
        if parts.len() > 1 && parts.contains(&Part::Everyone) {
            return Err(ParseSubjectError(format!(
                "\"everyone\" distinguishes no clients in a list; accepted: {SUBJECT_FORMS}"
            )));
        }
        Ok(Self::new(parts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quota_texts_are_parsed_with_their_periods() {
        for (text, limit, seconds) in [
            ("100/minute", 100, 60),
            ("1/s", 1, 1),
            ("5/ 30s", 5, 30),
            ("7/2h", 7, 7_200),
            ("2/week", 2, 604_800),
            ("9/d", 9, 86_400),
        ] {
            let quota: Quota = text.parse().expect(text);
            assert_eq!((quota.limit(), quota.burst(), quota.period()), (limit, limit, seconds * SECOND));
        }
    }

    #[test]
    fn quota_text_of_another_form_is_named_in_the_error() {
        for text in ["", "100", "0/minute", "+5/minute", "-1/s", "1/fortnight", "1/0s", "4294967296/s", "ä/s"]
        {
            let error = text.parse::<Quota>().expect_err(text).to_string();
            assert!(error.starts_with(&format!("\"{text}\" is not a rate; accepted: ")), "{error}");
        }
        let error = "3000000/second".parse::<Quota>().expect_err("too fine").to_string();
        assert!(error.starts_with("\"3000000/second\": "), "{error}");
    }

    #[test]
    fn subject_texts_round_trip_and_refuse_what_is_ambiguous() {
        for text in ["ip", "header:x-api-key", "query:key", "cookie:Sid", "jwt:sub", "everyone"] {
            assert_eq!(text.parse::<Subject>().expect(text).kind(), text);
        }
        assert_eq!(
            Subject::from_texts(["header:X-Tenant", "ip"]).expect("both").kind(),
            "header:x-tenant+ip"
        );
        for texts in [
            &["ip", "ip"][..],
            &["everyone", "ip"],
            &["ip", "everyone"],
            &[],
            &["header:"],
            &["header:a b"],
            &["user"],
        ] {
            assert!(Subject::from_texts(texts.iter().copied()).is_err(), "{texts:?}");
        }
    }
}
