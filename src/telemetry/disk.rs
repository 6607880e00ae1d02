//! What is said of the disk that keeps the rollout's record.

use std::time::Duration;

pub(super) fn failed(detail: &str) {
    tracing::warn!(
        target: "tidegate",
        "the database can't be used, the service goes on without it: {detail}. Until then the rollout's record is kept in memory \
         (and in Redis, where there is one), rollback works, and it is tried again by itself"
    );
}

pub(super) fn back(place: &str, after: Duration) {
    let seconds = after.as_secs_f64();
    tracing::info!(
        target: "tidegate",
        "the database works again: {place}, after {seconds:.1} s; what was kept in memory is written"
    );
}

pub(super) fn shared(place: &str) {
    tracing::warn!(
        target: "tidegate",
        "the database is in use by another process as well: {place}. Both write to it and neither hears of the other until its \
         next start, unless Redis or TIDEGATE_PEERS tells. Give each instance a DATABASE_URL of its own"
    );
}

pub(super) fn lost(rows: u64) {
    tracing::warn!(
        target: "tidegate", rows,
        "rows of the audit trail were given up: the database was away for too long"
    );
}

pub(super) fn unreadable(place: &str, count: usize) {
    tracing::error!(
        target: "tidegate", overrides = count,
        "{place}: overrides are sealed with another key than {place}.key holds, and have no effect: put back the key file that \
         belongs to the database and start again"
    );
}
