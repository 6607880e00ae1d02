//! The claims of a verified token, and the conditions on them.

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use super::{Options, Refusal};

/// What a verified token states. Never printed.
pub struct Claims {
    members: Map<String, Value>,
    /// Seconds since 1970, the leeway included: the last at which the token is valid, and the first.
    until: Option<u64>,
    from: Option<u64>,
}

impl Claims {
    /// The claims of a token whose signature is right, if they meet the conditions that no time changes.
    pub(super) fn check(members: Map<String, Value>, options: &Options) -> Result<Self, Refusal> {
        let until = match members.get("exp").map(seconds) {
            Some(Some(exp)) => Some(exp.saturating_add(options.leeway.as_secs())),
            None | Some(None) if options.require_exp => return Err(Refusal::NoExpiry),
            Some(None) => return Err(Refusal::Malformed),
            None => None,
        };
        let from = match members.get("nbf").map(seconds) {
            Some(None) => return Err(Refusal::Malformed),
            nbf => nbf.flatten().map(|nbf| nbf.saturating_sub(options.leeway.as_secs())),
        };
        let names_one_of = |claim: &str, accepted: &[String]| {
            let is_accepted =
                |value: &Value| value.as_str().is_some_and(|text| accepted.iter().any(|one| one == text));
            accepted.is_empty()
                || match members.get(claim) {
                    Some(Value::Array(several)) => several.iter().any(is_accepted),
                    Some(one) => is_accepted(one),
                    None => false,
                }
        };
        if !names_one_of("iss", &options.issuers) {
            return Err(Refusal::Issuer);
        }
        // Without audiences of ours, the upstream checks the audience.
        if !names_one_of("aud", &options.audiences) {
            return Err(Refusal::Audience);
        }
        Ok(Self { members, until, from })
    }

    /// Whether the token is valid at the present time.
    pub(super) fn check_time(&self) -> Result<(), Refusal> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if self.until.is_some_and(|until| now > until) {
            return Err(Refusal::Expired);
        }
        if self.from.is_some_and(|from| now < from) {
            return Err(Refusal::NotYet);
        }
        Ok(())
    }

    /// The claim of this name: one at the top, else along the dots into the objects there. A text as it is, a whole
    /// number in decimal; a claim of any other type is as good as none.
    pub fn get(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        match find(&self.members, name)? {
            Value::String(text) if !text.is_empty() => Some(Cow::Borrowed(text.as_bytes())),
            // What does not fit 64 bits was rounded by the parser: two clients could become one.
            Value::Number(number) if number.is_u64() || number.is_i64() => {
                Some(Cow::Owned(number.to_string().into_bytes()))
            }
            _ => None,
        }
    }

    /// About how many bytes of memory they take.
    pub(super) fn weight(&self) -> usize {
        weight_of_members(&self.members) + size_of::<Self>()
    }
}

/// A NumericDate (RFC 7519, 2) in whole seconds; `None` when it is none that 64 bits hold.
fn seconds(value: &Value) -> Option<u64> {
    let rounded =
        || value.as_f64().map(f64::round).filter(|&seconds| seconds >= 0.0 && seconds < u64::MAX as f64);
    value.as_u64().or_else(|| Some(rounded()? as u64))
}

/// The whole name first: names such as `https://example.com/tenant` have dots of their own.
fn find<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    object.get(name).or_else(|| {
        name.match_indices('.').find_map(|(dot, _)| {
            let inner = object.get(&name[..dot])?.as_object()?;
            find(inner, &name[dot + 1..])
        })
    })
}

fn weight_of_members(members: &Map<String, Value>) -> usize {
    // With what a map keeps for itself for each.
    const MEMBER: usize = 32;
    members.iter().map(|(name, value)| name.len() + MEMBER + weight_of(value)).sum()
}

fn weight_of(value: &Value) -> usize {
    size_of::<Value>()
        + match value {
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().map(weight_of).sum(),
            Value::Object(members) => weight_of_members(members),
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
}

#[cfg(test)]
#[path = "claims_tests.rs"]
mod tests;
