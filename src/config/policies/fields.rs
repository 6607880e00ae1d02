//! The values of the policy file, one by one. An error says what is accepted.

use std::num::NonZeroU32;

use toml::Value;

use crate::config::parse;
use crate::limiter::calendar::{Calendar, Unit};
use crate::limiter::clock::{Micros, SECOND};
use crate::limiter::gcra::LONGEST_TOLERANCE;
use crate::limiter::subject::{Ipv6Prefix, Part, Subject};

/// What `by` may be.
pub(super) const SUBJECT: &str = "\"ip\", \"header:NAME\", \"query:NAME\", \"cookie:NAME\", \"jwt:CLAIM\", \"everyone\", or a list of the first five";

/// What `limit` may be.
pub(super) const LIMIT: &str = "\"N/second\", \"N/minute\", \"N/hour\", \"N/day\", \"N/week\" (or N/s, N/m, N/h, \
                                N/d), or a period such as \"N/30s\", \"N/5m\", \"N/2h\", \"N/7d\"";

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
    let read = |text: &str| {
        let (count, period) = text.split_once('/')?;
        Some((NonZeroU32::new(number(count.trim())?)?, self::period(period.trim())?))
    };
    value.as_str().and_then(read).ok_or_else(|| format!("accepted: {LIMIT}, N from 1 to {}", u32::MAX))
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
        Some((NonZeroU32::new(number(count.trim())?)?, unit))
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

fn period(text: &str) -> Option<Micros> {
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

/// So long, at most a year.
pub(super) fn duration(value: &Value) -> Result<Micros, String> {
    let read = |text: &str| period(text.trim()).filter(|&long| long <= LONGEST_TOLERANCE);
    value
        .as_str()
        .filter(|text| text.trim().starts_with(|first: char| first.is_ascii_digit()))
        .and_then(read)
        .ok_or_else(|| "accepted: a time such as \"30s\", \"10m\", \"2h\" or \"7d\", at most 365d".to_owned())
}

/// Digits only: Rust would also read "+5".
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// The size of an IPv6 client.
pub(super) fn ipv6_prefix(value: &Value) -> Result<Ipv6Prefix, String> {
    let bits = value.as_integer().and_then(|bits| u8::try_from(bits).ok());
    bits.and_then(Ipv6Prefix::new).ok_or_else(|| "accepted: a whole number from 1 to 128".to_owned())
}

/// By whom: one part, or several taken together.
pub(super) fn subject(value: &Value) -> Result<Subject, String> {
    let names = match value {
        Value::Array(_) => texts(value).map_err(|_| format!("accepted: {SUBJECT}"))?,
        one => vec![one.as_str().map(str::to_owned).ok_or_else(|| format!("accepted: {SUBJECT}"))?],
    };
    let mut parts: Vec<Part> = Vec::new();
    for name in &names {
        let part = part(name)?;
        if part == Part::Everyone && names.len() > 1 {
            return Err(format!("\"everyone\" tells nobody apart in a list; accepted: {SUBJECT}"));
        }
        if parts.contains(&part) {
            return Err(format!("\"{part}\" stands there twice; accepted: each part once"));
        }
        parts.push(part);
    }
    if parts.is_empty() {
        return Err(format!("the list is empty; accepted: {SUBJECT}"));
    }
    Ok(Subject::new(parts))
}

pub(super) fn part(text: &str) -> Result<Part, String> {
    let (kind, name) = text.split_once(':').unwrap_or((text, ""));
    match kind {
        "ip" if text == "ip" => Ok(Part::Ip),
        "everyone" if text == "everyone" => Ok(Part::Everyone),
        // Names of headers are the same in any case; ours are compared in lower case.
        "header" if parse::is_token(name) => Ok(Part::Header(name.to_ascii_lowercase().into())),
        "cookie" if parse::is_token(name) => Ok(Part::Cookie(name.into())),
        "query" if !name.is_empty() => Ok(Part::Query(name.into())),
        "jwt" if !name.is_empty() => Ok(Part::Jwt(name.into())),
        "header" | "cookie" => Err(format!(
            "\"{kind}:\" wants a name of letters, digits and !#$%&'*+-.^_`|~; accepted: {SUBJECT}"
        )),
        "descriptor" => Err(format!("\"descriptor:\" is not in this version; accepted: {SUBJECT}")),
        _ => Err(format!("accepted: {SUBJECT}")),
    }
}
