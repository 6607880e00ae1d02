//! What is limited and how much: policies say by whom and how many. Which of them a request meets, [`Rules`] say.

use super::calendar::Calendar;
use super::gcra::Quota;
use super::penalty::Penalty;
pub use super::rules::{Rule, Rules};
use super::subject::{Part, PolicyTag, Subject};

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

/// What a policy comes to when Redis was to decide and cannot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnRedisError {
    /// Memory decides, at this instance's share.
    #[default]
    Local,
    /// It admits. What it admits is counted as far as there is room.
    Open,
    /// It refuses.
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
    /// The calendar whose windows the quota is for ([`Quota::each`]); `None` for GCRA.
    pub calendar: Option<Calendar>,
    /// What happens to a request without the subject.
    pub on_missing: OnMissing,
    /// Whether its denial counts.
    pub mode: Mode,
    /// What happens when Redis was to decide and cannot.
    pub on_redis_error: OnRedisError,
    /// Who keeps on hammering is shut out, if this says so.
    pub penalty: Option<Penalty>,
    /// Its mark on keys, made from the name.
    pub tag: PolicyTag,
}

impl Policy {
    /// An enforced policy; a missing subject is counted by address.
    pub fn new(name: impl Into<Box<str>>, by: Subject, quota: Quota) -> Self {
        let name = name.into();
        Self {
            tag: PolicyTag::of(&name),
            name,
            by,
            quota,
            calendar: None,
            on_missing: OnMissing::Ip,
            mode: Mode::Enforce,
            on_redis_error: OnRedisError::Local,
            penalty: None,
        }
    }

    /// The penalty, if it is in force: a policy in shadow shuts nobody out.
    #[inline]
    pub(super) fn shuts_out(&self) -> Option<&Penalty> {
        self.penalty.as_ref().filter(|_| self.mode == Mode::Enforce)
    }

    /// Whether it counts addresses: as its subject, as a part of it, or in the place of one that is missing.
    pub fn counts_addresses(&self) -> bool {
        let instead = self.on_missing == OnMissing::Ip && !self.by.is_everyone();
        instead || self.by.parts().contains(&Part::Ip)
    }

    /// Counting in the windows of this calendar. What was counted by another algorithm, or in windows of another kind,
    /// means something else: the count begins at 0 then.
    pub fn in_windows_of(self, calendar: Calendar) -> Self {
        let tag = PolicyTag::of(&format!("{}\0{}\0{}", self.name, calendar.unit().as_str(), calendar.zone()));
        Self { tag, calendar: Some(calendar), ..self }
    }
}
