//! The line of one request, written by hand: through the general log machinery it would cost ten times as much.

use std::cell::RefCell;
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};

use super::output::{Format, Output};
use crate::limiter::decision::{Ruling, ShadowDenial};
use crate::limiter::event::Exchange;
use crate::limiter::subject::ProcessKey;
use crate::limiter::token::TokenOutcome;

/// How request lines are written.
#[derive(Clone, Debug)]
pub struct RequestLines {
    /// In which form.
    pub format: Format,
    /// Whether clients appear by address instead of by pseudonym.
    pub raw_keys: bool,
    /// What pseudonyms are made with.
    pub key: ProcessKey,
}

/// The fields of the contract, in its order.
#[derive(Serialize)]
struct Line<'a> {
    ts: &'a str,
    request_id: &'a str,
    method: &'a str,
    path: &'a str,
    status: u16,
    #[serde(serialize_with = "milliseconds")]
    latency_ms: u64,
    client: Option<&'a str>,
    policy: Option<&'a str>,
    rl_backend: &'a str,
    rate_limit_state: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    listed: Option<&'a str>,
    /// The id of the override that took part.
    #[serde(rename = "override", skip_serializing_if = "Option::is_none")]
    overridden: Option<&'a str>,
    limit: Option<u32>,
    remaining: Option<u32>,
    retry_after_ms: u64,
    arm: &'a str,
    fallback: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cached: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    by_share: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    mixed: bool,
    rollout_revision: u64,
    /// What became of the request's token, where deciding took a claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
    /// Of a 5xx: whose it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    shadow: Vec<ShadowDenial<'a>>,
}

/// Microseconds, told in milliseconds.
fn milliseconds<S: Serializer>(micros: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(*micros as f64 / 1000.0)
}

thread_local! {
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static STAMP: RefCell<Stamp> = const { RefCell::new(Stamp { second: 0, text: String::new() }) };
}

impl RequestLines {
    /// Writes the line of one exchange.
    pub fn write(&self, exchange: &Exchange<'_>, output: &Output) {
        LINE.with_borrow_mut(|line| {
            line.clear();
            if self.append(exchange, line).is_ok() {
                output.line(line);
            }
            // One request with a huge path must not keep its memory for ever.
            line.shrink_to(4096);
        });
    }

    fn append(&self, exchange: &Exchange<'_>, line: &mut Vec<u8>) -> std::io::Result<()> {
        STAMP.with_borrow_mut(|stamp| {
            let ts = stamp.now();
            if self.format == Format::Text {
                write!(line, "{ts}  INFO tidegate: REQUEST_LOG: ")?;
            }
            let decision = exchange.decision;
            let bound = decision.and_then(|decision| decision.binding());
            let client = exchange.client.map(|client| match self.raw_keys {
                true => client.to_string(),
                false => format!("{:016x}", self.key.pseudonym(client)),
            });
            serde_json::to_writer(
                &mut *line,
                &Line {
                    ts,
                    request_id: exchange.request_id,
                    method: exchange.method,
                    path: exchange.path,
                    status: exchange.status,
                    latency_ms: exchange.took.as_micros() as u64,
                    client: client.as_deref(),
                    policy: decision.and_then(|decision| decision.policy()),
                    // What no policy judges was let through here, without asking any store.
                    rl_backend: decision.map_or("memory", |decision| decision.backend().as_str()),
                    rate_limit_state: decision.map_or("allow", |decision| decision.state.as_str()),
                    listed: match decision.and_then(|decision| decision.ruling()) {
                        Some(Ruling::Listed(access)) => Some(access.as_str()),
                        _ => None,
                    },
                    overridden: decision.and_then(|decision| decision.override_id()),
                    limit: bound.map(|(policy, verdict)| verdict.quota(policy).limit()),
                    remaining: bound.map(|(_, verdict)| verdict.reading.remaining),
                    retry_after_ms: decision
                        .and_then(|decision| decision.retry_after())
                        .unwrap_or(0)
                        .div_ceil(1000),
                    arm: decision.map_or("control", |decision| decision.arm().as_str()),
                    fallback: decision.is_some_and(|decision| decision.fallback().is_some()),
                    cached: decision.is_some_and(|decision| decision.cached),
                    by_share: decision.is_some_and(|decision| decision.is_by_share()),
                    mixed: decision.is_some_and(|decision| decision.mixed),
                    rollout_revision: decision.map_or(0, |decision| decision.revision),
                    token: exchange.token.map(TokenOutcome::as_str),
                    origin: (exchange.status >= 500).then(|| exchange.origin.as_str()),
                    shadow: decision.map(|decision| decision.shadow_denials().collect()).unwrap_or_default(),
                },
            )?;
            line.push(b'\n');
            Ok(())
        })
    }
}

/// The present time as text. Most of it stays the same for a second.
struct Stamp {
    second: u64,
    text: String,
}

impl Stamp {
    fn now(&mut self) -> &str {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if now.as_secs() != self.second || self.text.is_empty() {
            self.second = now.as_secs();
            let time = DateTime::<Utc>::from_timestamp(now.as_secs() as i64, 0).unwrap_or_default();
            self.text = time.format("%Y-%m-%dT%H:%M:%S.").to_string();
        }
        self.text.truncate("2026-11-22T20:04:05.".len());
        use std::fmt::Write as _;
        let _ = write!(self.text, "{:03}Z", now.subsec_millis());
        &self.text
    }
}
