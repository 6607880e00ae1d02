//! The values of the policy file, one by one. An error says what is accepted.

use std::num::NonZeroU32;

use toml::Value;

use crate::limiter::calendar::{Calendar, Unit};
use crate::limiter::clock::Micros;
use crate::limiter::gcra::LONGEST_TOLERANCE;
use crate::limiter::subject::{Ipv6Prefix, Subject};
use crate::limiter::text;

/// What `limit` may be with a fixed window.
const WINDOW: &str = "\"N/second\", \"N/minute\", \"N/hour\", \"N/day\", \"N/week\" or \"N/month\"";

/// A key with what was read, for errors.
pub(super) fn said(key: &str, value: Option<&Value>) -> String {
    let text = value.map(Value::to_string).unwrap_or_default();
    match text.char_indices().nth(80) {
        Some((cut, _)) => format!("{key} = {}…", &text[..cut]),
        None => format!("{key} = {text}"),
    }
}

pub(super) fn text(value: &Value) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| "accepted: a text in quotes".to_owned())
}

/// One text, or a list of them.
pub(super) fn texts(value: &Value) -> Result<Vec<String>, String> {
    let list = match value {
        Value::Array(items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        one => one.as_str().map(|one| vec![one.to_owned()]),
    };
    list.ok_or_else(|| "accepted: a list of texts such as [\"GET\", \"HEAD\"]".to_owned())
}

pub(super) fn count(value: &Value) -> Result<NonZeroU32, String> {
    value
        .as_integer()
        .and_then(|number| u32::try_from(number).ok())
        .and_then(NonZeroU32::new)
        .ok_or_else(|| format!("accepted: a whole number from 1 to {}", u32::MAX))
}

/// So many in such a period.
pub(super) fn limit(value: &Value) -> Result<(NonZeroU32, Micros), String> {
    value
        .as_str()
        .and_then(text::rate)
        .ok_or_else(|| format!("accepted: {}, N from 1 to {}", text::RATE_FORMS, u32::MAX))
}

/// So many in each calendar window.
pub(super) fn window(value: &Value) -> Result<(NonZeroU32, Unit), String> {
    let read = |text: &str| {
        let (count, unit) = text.split_once('/')?;
        let unit = match unit.trim() {
            "s" => Unit::Second,
            "m" => Unit::Minute,
            "h" => Unit::Hour,
            "d" => Unit::Day,
            word => *Unit::ALL.iter().find(|unit| unit.as_str() == word)?,
        };
        Some((NonZeroU32::new(text::number(count.trim())?)?, unit))
    };
    value
        .as_str()
        .and_then(read)
        .ok_or_else(|| format!("with a fixed_window, accepted: {WINDOW}, N from 1 to {}", u32::MAX))
}

/// The time zone of calendar windows of this unit.
pub(super) fn calendar(unit: Unit, zone: &str) -> Result<Calendar, String> {
    Calendar::new(unit, zone).ok_or_else(|| {
        "there is no such time zone; accepted: a name of the IANA database such as \"Europe/Berlin\" or \"UTC\"".to_owned()
    })
}

/// So long, at most a year.
pub(super) fn duration(value: &Value) -> Result<Micros, String> {
    let read = |text: &str| text::period(text.trim()).filter(|&long| long <= LONGEST_TOLERANCE);
    value
        .as_str()
        .filter(|text| text.trim().starts_with(|first: char| first.is_ascii_digit()))
        .and_then(read)
        .ok_or_else(|| "accepted: a time such as \"30s\", \"10m\", \"2h\" or \"7d\", at most 365d".to_owned())
}

/// The size of an IPv6 client.
pub(super) fn ipv6_prefix(value: &Value) -> Result<Ipv6Prefix, String> {
    let bits = value.as_integer().and_then(|bits| u8::try_from(bits).ok());
    bits.and_then(Ipv6Prefix::new).ok_or_else(|| "accepted: a whole number from 1 to 128".to_owned())
}

/// By whom: one part, or several taken together.
pub(super) fn subject(value: &Value) -> Result<Subject, String> {
    let accepted = || format!("accepted: {}", text::SUBJECT_FORMS);
    let names = match value {
        Value::Array(_) => texts(value).map_err(|_| accepted())?,
        one => vec![one.as_str().map(str::to_owned).ok_or_else(accepted)?],
    };
    Subject::from_texts(names.iter().map(String::as_str)).map_err(|error| error.to_string())
}
