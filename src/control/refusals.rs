//! Wrong, missing and too narrow tokens in the audit trail: how many, a row a minute at most, however many there are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::sync::Notify;

use super::audit::{Audit, AuditRow};

/// How long the first row waits for more of its kind.
const GATHERED: Duration = Duration::from_secs(1);
/// From one row to the next at least.
const BETWEEN: Duration = Duration::from_secs(60);

/// Counts them until they are told. Never by whom or with what: a typo in a token is most of the token.
#[derive(Default)]
pub struct Refusals {
    wrong: AtomicU64,
    unheard: AtomicU64,
    narrow: AtomicU64,
    more: Notify,
}

impl Refusals {
    /// A token was wrong or missing.
    pub fn wrong(&self) {
        self.wrong.fetch_add(1, Ordering::Relaxed);
        self.more.notify_one();
    }

    /// Somebody had guessed too often, and what they sent was not looked at.
    pub fn unheard(&self) {
        self.unheard.fetch_add(1, Ordering::Relaxed);
        self.more.notify_one();
    }

    /// A token was known, and not good for what it was used for.
    pub fn narrow(&self) {
        self.narrow.fetch_add(1, Ordering::Relaxed);
        self.more.notify_one();
    }

    /// Tells `audit`. Runs until it is dropped.
    pub async fn tell(self: Arc<Self>, audit: Arc<Audit>) {
        self.tell_every(GATHERED, BETWEEN, &audit).await;
    }

    async fn tell_every(&self, gathered: Duration, between: Duration, audit: &Audit) {
        loop {
            self.more.notified().await;
            tokio::time::sleep(gathered).await;
            if let Some(row) = self.row() {
                audit.append(row);
                tokio::time::sleep(between.saturating_sub(gathered)).await;
            }
        }
    }

    /// What came since the last row.
    fn row(&self) -> Option<AuditRow> {
        let taken = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        let (wrong, unheard, narrow) = (taken(&self.wrong), taken(&self.unheard), taken(&self.narrow));
        (wrong + unheard + narrow > 0).then(|| AuditRow {
            result: "refused".to_owned(),
            figures: json!({
                "wrong_or_missing": wrong,
                "turned_away_unheard": unheard,
                "scope_too_narrow": narrow,
            }),
            ..AuditRow::done("unknown", "admin.refused", "no token of ours, or one that is not good for it")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::database::{Database, Place};
    use crate::limiter::event::Silent;

    #[tokio::test]
    async fn a_thousand_refusals_are_a_row_an_interval_at_most_and_none_is_left_out() {
        let audit = Audit::new(Database::new(Place::Memory, 100, Arc::new(Silent)));
        let refusals = Arc::new(Refusals::default());
        let (told, trail, between) = (Arc::clone(&refusals), Arc::clone(&audit), Duration::from_millis(400));
        let telling =
            tokio::spawn(async move { told.tell_every(Duration::from_millis(20), between, &trail).await });
        let start = std::time::Instant::now();
        for _ in 0..100 {
            (0..10).for_each(|_| refusals.wrong());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        loop {
            let rows = audit.page(None, 100).await.rows;
            let told = rows.iter().map(|(row, _)| row.figures["wrong_or_missing"].as_u64().unwrap());
            let most = start.elapsed().as_millis() / between.as_millis() + 1;
            assert!(rows.len() as u128 <= most, "{} rows", rows.len());
            if told.sum::<u64>() == 1000 {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "they are told");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        telling.abort();
    }
}
