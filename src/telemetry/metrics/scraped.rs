//! What is read at the moment of a scrape, and the formats of its answer.

use crate::limiter::Held;

/// What is read at the moment of a scrape.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scraped {
    /// What the limiter holds and has lost.
    pub held: Held,
    /// Calls to Redis under way.
    pub redis_in_flight: u32,
    /// Log lines dropped since the start.
    pub lines_dropped: u64,
    /// Share of the canary's decisions of the last minute that Redis made; `None`: there were none.
    pub exposure: Option<f64>,
    /// Commands to Redis today, and how many its plan allows a day if that is known.
    pub redis_spent: (u64, Option<u64>),
    /// When the certificate that the listener shows ends, in seconds since the epoch.
    pub certificate_ends: Option<u64>,
    /// Signatures of tokens that were checked since the start.
    pub signature_checks: u64,
}

/// The formats that a scraper may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// The text format 0.0.4 of Prometheus.
    Text,
}
