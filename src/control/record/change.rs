//! A change that somebody asks for, what came of it, and why it is not made.

use super::{Applied, Record};
use crate::limiter::decision::Backend;
use crate::limiter::rollout::Percent;

/// A change that somebody asks for.
#[derive(Clone, Debug)]
pub struct Change {
    /// The new share.
    pub percent: Percent,
    /// The new flag, if it is to change.
    pub backend: Option<Backend>,
    /// Who asks.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// The entity tags that the asker has seen, as in `If-Match`.
    pub seen: Option<String>,
    /// By which request.
    pub request_id: Option<String>,
    /// Whether they may raise. Judged with the record locked: what lowers when it is sent may raise when it arrives.
    pub may_raise: bool,
}

/// What came of a change.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The record now.
    pub record: Record,
    /// Who has it in force.
    pub applied: Applied,
    /// Whether it outlives every process: the disk or Redis keeps it.
    pub durable: bool,
}

/// What would come of a change.
#[derive(Clone, Debug, PartialEq)]
pub struct Foreseen {
    /// The record now.
    pub record: Record,
    /// The share in force here now.
    pub in_force: Percent,
    /// The record that would take its place.
    pub next: Record,
    /// The share that it would put in force here.
    pub then: Percent,
    /// Why nobody can keep a change at the moment; it refuses a raise only.
    pub unkept: Option<Refusal>,
    /// Everything that stands in the way, the reason that it would be refused for first.
    pub objections: Vec<Refusal>,
}

/// Why a change is not made.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// The environment rules out Redis; why.
    DisabledByEnv(&'static str),
    /// Only the environment may raise.
    PinnedByEnv,
    /// Whoever asks may only lower.
    MayNotRaise,
    /// Whoever raises must say which state they have seen.
    TagRequired,
    /// The state has changed since; what it is now.
    Stale(Box<Record>),
    /// Neither the disk nor Redis can keep a raise; why.
    NotDurable {
        /// What the disk says.
        disk: String,
        /// What the way to Redis says.
        redis: String,
    },
}

/// `If-Match` by RFC 9110, 13.1.1: a list of tags, or `*`.
pub(super) fn matches(seen: &str, etag: &str) -> bool {
    seen.split(',').map(str::trim).any(|tag| tag == "*" || tag == etag)
}
