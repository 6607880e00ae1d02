//! One row of the trail.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::control::record::{Record, short};

/// What somebody did, or tried. It holds no token, password, or client's key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AuditRow {
    /// Microseconds since the epoch, given by the trail: unique, and never before that of a row which was there already, so a
    /// clock that is set back changes no order.
    pub id: i64,
    /// Who: `token:…`, `env`.
    pub actor: String,
    /// What, as in `rollout.set`.
    pub action: String,
    /// What was; `Null` where there is no such thing.
    pub from: Value,
    /// What is.
    pub to: Value,
    /// Why.
    pub reason: String,
    /// What came of it: `done`, or why not.
    pub result: String,
    /// The request's id, as in the log.
    pub request_id: Option<String>,
    /// The record's epoch after it, where it is about the record.
    pub epoch: Option<u64>,
    /// The record's revision after it.
    pub revision: Option<u64>,
    /// What a decision was made by, or how many of its kind this row stands for; else `Null`.
    pub figures: Value,
}

impl AuditRow {
    /// Something that was done.
    pub fn done(actor: &str, action: &str, reason: &str) -> Self {
        Self {
            actor: actor.to_owned(),
            action: action.to_owned(),
            reason: short(reason),
            result: "done".to_owned(),
            ..Self::default()
        }
    }

    /// One record took another's place.
    pub(crate) fn of_change(from: &Record, to: &Record, action: &str, request_id: Option<String>) -> Self {
        let view =
            |record: &Record| json!({"backend": record.backend.as_str(), "percent": record.percent.as_f64()});
        Self {
            from: view(from),
            to: view(to),
            request_id,
            epoch: Some(to.epoch),
            revision: Some(to.revision),
            ..Self::done(&to.updated_by, action, &to.reason)
        }
    }

    /// When.
    pub fn at(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.id).unwrap_or_default()
    }
}
