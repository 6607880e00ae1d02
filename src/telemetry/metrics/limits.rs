//! What comes to an end by a day or a count: the provider's commands of a day, the certificate of our own listener.

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Handles. What is not configured is not printed, so that no alert divides by a 0 or waits for the year 1970.
pub(super) struct Limits {
    today: Gauge,
    per_day: Gauge,
    certificate: Gauge,
}

impl Limits {
    /// Registers what applies: `redis`, whether there is a store; `per_day`, whether its plan is known;
    /// `tls`, whether the listener has one.
    pub(super) fn registered_in(registry: &mut Registry, redis: bool, per_day: bool, tls: bool) -> Self {
        let (today, allowed, certificate) = (Gauge::default(), Gauge::default(), Gauge::default());
        if redis {
            registry.register(
                "redis_commands_today",
                "Commands to Redis of this instance since midnight UTC, as the provider counts them",
                today.clone(),
            );
        }
        if redis && per_day {
            registry.register(
                "redis_commands_allowed_per_day",
                "Commands a day that redis.commands_per_day allows this instance",
                allowed.clone(),
            );
        }
        if tls {
            registry.register(
                "tls_certificate_expiry_timestamp_seconds",
                "When the first certificate of server.tls_cert that ends does so, in seconds since the epoch",
                certificate.clone(),
            );
        }
        Self { today, per_day: allowed, certificate }
    }

    /// Notes what is spent, and of how much.
    pub(super) fn spent(&self, (today, per_day): (u64, Option<u64>)) {
        self.today.set(i64::try_from(today).unwrap_or(i64::MAX));
        self.per_day.set(i64::try_from(per_day.unwrap_or(0)).unwrap_or(i64::MAX));
    }

    /// Notes when the certificate that is shown ends. They are exchanged while running.
    pub(super) fn certificate_ends(&self, at: Option<u64>) {
        self.certificate.set(i64::try_from(at.unwrap_or(0)).unwrap_or(i64::MAX));
    }
}
