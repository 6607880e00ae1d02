//! The bucket on which connections are proven: one reserved key, and nothing that a client could spend.

use crate::limiter::clock::SECOND;
use crate::limiter::gcra::Quota;
use crate::limiter::store::SharedCharge;
use crate::limiter::subject::SubjectHash;

/// One hit on the reserved key. `None` never: the quota is a constant, and a test makes it.
pub(super) fn charge() -> Option<SharedCharge<'static>> {
    Some(SharedCharge {
        policy: "probe",
        subject: SubjectHash([0; 16]),
        quota: quota()?,
        span: None,
        cost: 1,
        enforce: false,
        note: 0,
        change: None,
    })
}

/// Another subject for the same: of a cluster each node has a reserved key of its own.
pub(super) fn subject(number: u64) -> SubjectHash {
    SubjectHash(u128::from(number).to_be_bytes())
}

/// The reserved key.
pub fn key(namespace: &str) -> String {
    super::charge::key(namespace, "probe", SubjectHash([0; 16]))
}

/// Soon forgotten, and wide enough that it is admitted, and so written, beside the probes of a whole fleet.
fn quota() -> Option<Quota> {
    let thousand = std::num::NonZeroU32::new(1_000)?;
    Quota::new(thousand, SECOND, thousand).ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_first_two_probes_lie_in_different_slots() {
        let slot = crate::redis::cluster::slot::of_subject;
        assert_ne!(slot(super::subject(0)), slot(super::subject(1)));
    }

    #[test]
    fn the_quota_of_the_probe_is_sound() {
        assert!(super::charge().is_some());
    }
}
