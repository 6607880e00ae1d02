//! What is said of a part of Redis that is away while the rest decides: of each node once an outage, and at most once an
//! interval. What was said at the beginning is said to the end.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::limiter::store::Fault;

/// By node.
pub(super) struct Parts {
    interval: Duration,
    nodes: Mutex<HashMap<Box<str>, Part>>,
}

struct Part {
    said: Instant,
    /// Whether the outage that lasts was.
    open: bool,
    /// Outages since then that were not.
    unsaid: u64,
}

impl Parts {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, nodes: Mutex::default() }
    }

    /// A node's share of the keys is decided by memory from now on.
    pub(super) fn lost(&self, node: &str, percent: f64, fault: &Fault) {
        let Some(unsaid) = self.begins(node, Instant::now()) else { return };
        let (error_kind, detail) = (fault.kind.as_str(), &*fault.detail);
        tracing::warn!(
            target: "tidegate", node, error_kind, detail, unsaid,
            "Redis Cluster: {node}, which serves {percent} % of the slots, is away: memory decides their keys"
        );
    }

    /// It is decided by Redis again.
    pub(super) fn back(&self, node: &str, percent: f64, lasted: Duration) {
        if self.ends(node) {
            let seconds = lasted.as_secs_f64();
            tracing::info!(
                target: "tidegate", node,
                "Redis Cluster: the {percent} % of the slots that {node} served are decided by Redis again, after {seconds:.1} s"
            );
        }
    }

    /// How many were not said since the last; `None`: neither is this one.
    fn begins(&self, node: &str, now: Instant) -> Option<u64> {
        let mut nodes = self.nodes.lock();
        // Addresses come and go with the machines.
        nodes.retain(|_, part| part.open || now.duration_since(part.said) < self.interval);
        match nodes.get_mut(node) {
            Some(part) if now.duration_since(part.said) < self.interval => {
                part.unsaid += 1;
                None
            }
            Some(part) => {
                (part.said, part.open) = (now, true);
                Some(std::mem::take(&mut part.unsaid))
            }
            None => {
                nodes.insert(node.into(), Part { said: now, open: true, unsaid: 0 });
                Some(0)
            }
        }
    }

    /// Whether its beginning was said.
    fn ends(&self, node: &str) -> bool {
        self.nodes.lock().get_mut(node).is_some_and(|part| std::mem::take(&mut part.open))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_has_one_line_an_interval_and_each_is_closed() {
        let parts = Parts::new(Duration::from_secs(300));
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        assert_eq!(parts.begins("a", at(0)), Some(0));
        assert_eq!(parts.begins("b", at(0)), Some(0), "another node is another outage");
        assert!(parts.ends("a"));
        assert_eq!(parts.begins("a", at(10)), None);
        assert!(!parts.ends("a"), "what was not said is not closed");
        assert!(parts.ends("b"));
        assert_eq!(parts.begins("a", at(300)), Some(0));
        assert!(parts.ends("a"));
    }
}
