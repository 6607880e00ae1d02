//! A histogram without a lock: each request observes three. The library's own takes a lock for each, half as much time again,
//! and every worker would wait for the same one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Counts by upper bounds, and the sum. Its clones are one.
#[derive(Clone, Debug)]
pub(super) struct Histogram(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Upper bounds, ascending.
    edges: &'static [f64],
    /// One for each, and one for what is above.
    counts: Box<[AtomicU64]>,
    /// The bits of a float.
    sum: AtomicU64,
}

impl Histogram {
    /// With these upper bounds, ascending.
    pub(super) fn new(edges: &'static [f64]) -> Self {
        let counts = (0..=edges.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Inner { edges, counts, sum: AtomicU64::new(0f64.to_bits()) }))
    }

    /// Counts one value. A scrape at the same moment may have it in its bucket and not in the sum yet.
    #[inline]
    pub(super) fn observe(&self, value: f64) {
        let Inner { edges, counts, sum } = &*self.0;
        // From below: most are among the first.
        let place = edges.iter().position(|edge| value <= *edge).unwrap_or(edges.len());
        if let Some(count) = counts.get(place) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let mut known = sum.load(Ordering::Relaxed);
        loop {
            let next = (f64::from_bits(known) + value).to_bits();
            match sum.compare_exchange_weak(known, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(other) => known = other,
            }
        }
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Inner { edges, counts, sum } = &*self.0;
        // The encoder adds up, and writes the last as +Inf.
        let edges = edges.iter().copied().chain([f64::INFINITY]);
        let counts = counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = edges.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = f64::from_bits(sum.load(Ordering::Relaxed));
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// Seconds, 1 ms to 10 s: an API's answers.
pub(super) static REQUEST_BUCKETS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0];
/// Seconds, 1 µs to 1 s: a decision in memory takes less than the first, one in Redis a network's way.
pub(super) static DECISION_BUCKETS: [f64; 13] =
    [1e-6, 5e-6, 2.5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.25];

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::histogram::Histogram as Library;
    use prometheus_client::registry::Registry;

    const EDGES: [f64; 3] = [0.001, 0.01, 1.0];

    #[test]
    fn it_is_printed_as_the_librarys_own() {
        let (ours, library) = (Histogram::new(&EDGES), Library::new(EDGES));
        let printed = |register: &dyn Fn(&mut Registry)| {
            let mut registry = Registry::default();
            register(&mut registry);
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text
        };
        for value in [0.0, 0.001, 0.0011, 0.5, 1.0, 1.5, 1e9] {
            ours.observe(value);
            library.observe(value);
        }
        let text = printed(&|registry| registry.register("h", "x", ours.clone()));
        assert_eq!(text, printed(&|registry| registry.register("h", "x", library.clone())));
        assert!(
            text.contains("h_bucket{le=\"0.001\"} 2\n") && text.contains("h_bucket{le=\"+Inf\"} 7\n"),
            "{text}"
        );
    }

    #[test]
    fn nothing_is_lost_between_threads() {
        let histogram = Histogram::new(&EDGES);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| histogram.observe(0.5)));
            }
        });
        let inner = &*histogram.0;
        assert_eq!(inner.counts[2].load(Ordering::Relaxed), 40_000);
        assert_eq!(f64::from_bits(inner.sum.load(Ordering::Relaxed)), 20_000.0);
    }
}
