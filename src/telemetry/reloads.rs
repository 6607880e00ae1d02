//! What is told of a reload: lines that say what was put in force, what is wrong, what stays; and its metrics.

use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::metrics::{Labels, one};
use crate::limiter::event::{Reload, Reloaded};
use crate::limiter::token::KeysFetch;

/// Errors beyond these are counted, not written: a log is no place for a whole file. The status has them all.
const MOST_ERRORS: usize = 100;

/// The metrics of reloads. The names beside `reloads` are those that Prometheus gives to its own.
pub(super) struct Reloads {
    /// Applied, unchanged, failed.
    outcomes: [Counter; 3],
    successful: Gauge,
    succeeded_at: Gauge<f64, AtomicU64>,
}

impl Reloads {
    /// Registers them; the start was the first success.
    pub(super) fn registered_in(registry: &mut Registry) -> Self {
        let outcomes = Family::<Labels, Counter>::default();
        registry.register("reloads", "Readings of the policies while running, by outcome", outcomes.clone());
        let successful = Gauge::default();
        registry.register(
            "config_last_reload_successful",
            "Whether the policies were sound when they were last read, at the start or since",
            successful.clone(),
        );
        let succeeded_at = Gauge::default();
        registry.register(
            "config_last_reload_success_timestamp_seconds",
            "When the policies were last read and sound, in seconds since the epoch",
            succeeded_at.clone(),
        );
        let outcomes = ["applied", "unchanged", "failed"]
            .map(|outcome| outcomes.get_or_create_owned(&one("outcome", outcome)));
        let reloads = Self { outcomes, successful, succeeded_at };
        reloads.succeed();
        reloads
    }

    /// Counts one.
    pub(super) fn count(&self, reload: &Reload<'_>) {
        let place = match reload.outcome {
            Reloaded::Applied(_) => 0,
            Reloaded::Unchanged(_) => 1,
            Reloaded::Failed { .. } => 2,
        };
        self.outcomes[place].inc();
        match reload.outcome {
            Reloaded::Failed { .. } => {
                self.successful.set(0);
            }
            Reloaded::Applied(_) | Reloaded::Unchanged(_) => self.succeed(),
        }
    }

    fn succeed(&self) {
        self.successful.set(1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        self.succeeded_at.set(now.map_or(0.0, |since| since.as_secs_f64()));
    }
}

/// Says what came of a reload.
pub(super) fn tell(reload: &Reload<'_>) {
    let Reload { cause, actor, asked, .. } = *reload;
    match reload.outcome {
        Reloaded::Applied(sources) => {
            for source in sources {
                tracing::info!(target: "tidegate", cause, actor, "reloaded: {source}");
            }
        }
        Reloaded::Unchanged(sources) => {
            for source in sources {
                tracing::info!(target: "tidegate", cause, actor, "reloaded, unchanged: {source}");
            }
        }
        Reloaded::Failed { errors, again: true, .. } => {
            // Whoever sends a signal has nothing but the log to tell that it came to nothing.
            if asked {
                let errors = errors.len();
                tracing::error!(
                    target: "tidegate", cause, actor, errors,
                    "reload failed again, on the same contents; the errors were logged before"
                );
            }
        }
        Reloaded::Failed { errors, still, changed, again: false } => {
            for line in changed {
                tracing::info!(target: "tidegate", cause, actor, "reloaded: {line}, although other files are bad");
            }
            let still = still.join("; ");
            tracing::error!(
                target: "tidegate", cause, actor, errors = errors.len(),
                "reload failed, nothing was changed; still in force: {still}"
            );
            for error in errors.iter().take(MOST_ERRORS) {
                tracing::error!(target: "tidegate", "reload: {error}");
            }
            if let Some(more) = errors.len().checked_sub(MOST_ERRORS).filter(|&more| more > 0) {
                tracing::error!(target: "tidegate", "reload: and {more} errors more, all of them in GET /admin/status");
            }
        }
    }
    for warning in reload.warnings {
        tracing::warn!(target: "tidegate", cause, "reload: {warning}");
    }
}
/// Tells of the keys of tokens that were fetched, or were not.
pub(super) fn keys(fetch: &KeysFetch<'_>) {
    match fetch {
        KeysFetch::Changed { source, warning } => {
            tracing::info!(target: "tidegate", "reloaded: keys of tokens from {source}");
            if let Some(warning) = warning {
                tracing::warn!(target: "tidegate", "keys of tokens from {source}: {warning}");
            }
        }
        KeysFetch::Failed { source, detail, again } => {
            let again_s = again.as_secs();
            tracing::warn!(
                target: "tidegate", source, detail, again_s,
                "the keys of tokens could not be fetched (jwt.jwks_url); the last ones stay in use"
            );
        }
        KeysFetch::NotKept { detail } => tracing::warn!(
            target: "tidegate", detail,
            "the fetched keys of tokens could not be written to jwt.jwks_file: a restart begins without them"
        ),
    }
}
