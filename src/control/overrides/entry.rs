//! One override as it is kept and handed on, and which of two versions of it is the newer.

use std::num::NonZeroU32;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config;
use crate::limiter::overrides::{Effect as Does, Override, OwnLimit};

/// Nobody makes so many changes: what says so is no override, and the next change would have no number.
const MOST_VERSIONS: u64 = 1 << 46;
/// For how long it is known that one is over: who was away for longer must not bring it back, and is told not to.
const REMEMBERED_MS: i64 = 30 * 24 * 3_600 * 1_000;
/// What has run out stays as it is elsewhere for so long.
const KEPT_AFTER_END_MS: i64 = 3_600 * 1_000;
/// The longest id, and the most bytes of a key in all.
const LONGEST_ID: usize = 64;
pub(super) const LONGEST_KEY: usize = 1_024;
/// The most values of a key.
pub(super) const MOST_PARTS: usize = 16;

/// One version of one override. As it stands on the disk, in Redis (sealed), and between instances.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// What it is called.
    pub id: String,
    /// Counts its changes.
    pub version: u64,
    /// When it was changed last, in microseconds since the epoch.
    pub updated_at: u64,
    /// Drawn for each change, so that no two have the same order.
    pub draw: u32,
    /// What it is; `None` when it is over, and for whom it was is forgotten.
    pub body: Option<Body>,
    /// When it was over, in milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<i64>,
    /// It is over because its time has come: each instance finds that out for itself, and it is the same version as before.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ran_out: bool,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// What an override is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Body {
    /// Under which rule,
    pub rule: String,
    /// and which policy of it; `None`: all that count the subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// As whom it is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Whose: a value for each part of the subject, or one in the place of all.
    pub key: Vec<String>,
    /// What it does.
    pub effect: Effect,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<DateTime<Utc>>,
    /// Why.
    pub reason: String,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_at: DateTime<Utc>,
}

/// What it does, as people write it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Nothing is charged.
    Exempt,
    /// Every request is refused.
    Block,
    /// Another limit.
    #[serde(untagged)]
    Limit(Limit),
}

/// A limit as the policy file has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// So many in such a time: `1000/minute`.
    pub limit: String,
    /// How many at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<NonZeroU32>,
}

impl Limit {
    /// What is written.
    ///
    /// # Errors
    /// What was read and what is accepted.
    pub fn read(&self) -> Result<OwnLimit, String> {
        let (plain, window) = (config::limit(&self.limit), config::window(&self.limit));
        let unit = window.as_ref().ok().map(|&(_, unit)| unit);
        let (limit, period) = match (plain, window) {
            (Ok((limit, period)), _) => (limit, Some(period)),
            // A month.
            (Err(_), Ok((limit, _))) => (limit, None),
            (Err(message), Err(_)) => return Err(message),
        };
        Ok(OwnLimit { limit, period, unit, burst: self.burst })
    }
}

impl Body {
    /// As the limiter takes it. `None` for what a later version has written.
    pub fn spec(&self, id: &str) -> Option<Override> {
        let effect = match &self.effect {
            Effect::Exempt => Does::Exempt,
            Effect::Block => Does::Block,
            Effect::Limit(limit) => Does::Limit(limit.read().ok()?),
        };
        let text = |text: &Option<String>| text.as_deref().map(Into::into);
        Some(Override {
            id: id.into(),
            rule: self.rule.as_str().into(),
            policy: text(&self.policy),
            by: text(&self.by),
            key: self.key.iter().map(|value| value.as_bytes().into()).collect(),
            effect,
            expires_at: self.expires_at.map(|at| u64::try_from(at.timestamp_micros()).unwrap_or(0)),
        })
    }

    pub(super) fn is_over(&self, now: DateTime<Utc>) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// For the trail, without the reason, which has a place of its own there. Whose it is, only if that may be told.
    pub fn told(&self, id: &str, raw_keys: bool) -> Value {
        let mut told = json!({"id": id, "rule": self.rule, "effect": self.effect});
        if let Some(policy) = &self.policy {
            told["policy"] = json!(policy);
        }
        if let Some(at) = self.expires_at {
            told["expires_at"] = json!(time(at));
        }
        if raw_keys {
            told["keys"] = json!(self.key);
        }
        told
    }
}

impl Entry {
    /// Whether this version is newer than that one. A total order: versions meet in any order and any number of times
    /// with one outcome.
    pub fn supersedes(&self, other: &Self) -> bool {
        self.order() > other.order()
    }

    /// What it is ordered by: the version; of changes made at once the later one; of two in the same microsecond what was
    /// drawn; and of one version the one that is over for more than an hour, or that an older version has ended.
    pub fn order(&self) -> [u64; 4] {
        let is_over = self.body.is_none() && !self.ran_out;
        [self.version, self.updated_at, u64::from(self.draw), u64::from(is_over)]
    }

    /// The entity tag.
    pub fn etag(&self) -> String {
        format!("\"{}-{:08x}\"", self.version, self.draw)
    }

    /// Until when it has to be known, in milliseconds since the epoch; `None`: as long as it is in force.
    pub fn kept_till(&self) -> Option<u64> {
        let ended = self.ended_at.unwrap_or((self.updated_at / 1_000) as i64);
        self.body.is_none().then(|| u64::try_from(ended.saturating_add(REMEMBERED_MS)).unwrap_or(0))
    }

    /// The same, over since `at` because its time has come.
    pub(super) fn ran_out(self, at: DateTime<Utc>) -> Self {
        Self { body: None, ended_at: Some(at.timestamp_millis()), ran_out: true, ..self }
    }

    /// Whether its time came so long ago that it has on every instance, whatever their clocks.
    pub(super) fn ran_out_long_ago(&self, now: DateTime<Utc>) -> bool {
        let ended = self.ended_at.unwrap_or(i64::MAX);
        self.ran_out && ended.saturating_add(KEPT_AFTER_END_MS) < now.timestamp_millis()
    }

    /// Itself, unless no instance can have written it.
    pub(super) fn sound(self) -> Option<Self> {
        let numbers = self.version < MOST_VERSIONS && self.updated_at < 1 << 52;
        let body = self.body.as_ref().is_none_or(|body| {
            let bytes: usize = body.key.iter().map(String::len).sum();
            (1..=MOST_PARTS).contains(&body.key.len()) && bytes <= LONGEST_KEY
        });
        (numbers && body && is_id(&self.id)).then_some(self)
    }
}

/// Whether this may be an id: a plain token.
pub(super) fn is_id(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=LONGEST_ID).contains(&text.len()) && text.bytes().all(plain)
}

pub(super) fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}
