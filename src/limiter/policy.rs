//! What is limited and how much: policies say by whom and how many. Which of them a request meets, [`Rules`] say.
//!
//! The next parts of the policy language (tokens, allow and deny lists, the penalty box, fixed windows) join
//! [`Policy`] and [`Subject`] here.

use super::gcra::Quota;
pub use super::rules::{Rule, Rules};
use super::subject::{PolicyTag, Subject};

/// A policy's place among all policies of a [`Rules`].
pub type PolicyId = usize;

/// What happens when the subject of a policy is absent from a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnMissing {
    /// The client's address stands in for it.
    Ip,
    /// The policy does not apply.
    Skip,
    /// The request is refused.
    Deny,
}

/// Whether a policy's denial counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It denies the request.
    Enforce,
    /// It is judged, logged and counted, and denies nothing.
    Shadow,
}

/// By whom, how many, and what else.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Unique in the file: the label in metrics, logs and headers.
    pub name: Box<str>,
    /// Whom it tells apart.
    pub by: Subject,
    /// How many each of them gets.
    pub quota: Quota,
    /// What happens to a request without the subject.
    pub on_missing: OnMissing,
    /// Whether its denial counts.
    pub mode: Mode,
    /// Its mark on keys, made from the name.
    pub tag: PolicyTag,
}

impl Policy {
    /// An enforced policy; a missing subject is counted by address.
    pub fn new(name: impl Into<Box<str>>, by: Subject, quota: Quota) -> Self {
        let name = name.into();
        Self { tag: PolicyTag::of(&name), name, by, quota, on_missing: OnMissing::Ip, mode: Mode::Enforce }
    }
}
