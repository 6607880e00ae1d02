//! What a request owes: which buckets, and in which store each of them is.

use smallvec::SmallVec;

use super::charge::Charge;
use super::decision::{Backend, Ruling, Verdict, Verdicts};
use super::gcra::{Quota, Reading};
use super::overrides::Overridden;
use super::policy::PolicyId;
use super::rollout::Arm;
use super::share::Share;
use super::store::{FaultKind, Readings};
use super::subject::{Key, SubjectHash};

/// What a request owes.
pub(super) struct Bill {
    pub(super) items: SmallVec<[Item; 1]>,
    pub(super) revision: u64,
    /// What decides without a bucket.
    pub(super) ruling: Option<Ruling>,
    /// Shadow policies of which the same is true: they deny nothing.
    pub(super) missing_in_shadow: SmallVec<[(PolicyId, Quota); 0]>,
    /// By which override, if by any.
    pub(super) overridden: Option<Overridden>,
}

pub(super) struct Item {
    pub(super) policy: PolicyId,
    pub(super) key: Key,
    pub(super) arm: Arm,
    /// The subject's hash in the shared store, once the fleet's secret is known.
    pub(super) shared: Option<SubjectHash>,
    /// Who it is, where that may have to be told to an operator: under a policy that has lately throttled it and shuts
    /// out whoever goes on.
    pub(super) who: Option<Box<[u8]>>,
    /// A limit of its own.
    pub(super) own: Option<Quota>,
}

impl Item {
    #[inline]
    pub(super) fn verdict(&self, backend: Backend, fallback: Option<FaultKind>, reading: Reading) -> Verdict {
        Verdict {
            policy: self.policy,
            reading,
            backend,
            arm: self.arm,
            fallback,
            share: Share::WHOLE,
            own: self.own,
            missing: false,
            waived: false,
        }
    }
}

impl Bill {
    pub(super) fn wants_redis(&self) -> bool {
        self.items.iter().any(|item| item.arm == Arm::Canary)
    }

    pub(super) fn verdicts(
        &self,
        arm: Arm,
        backend: Backend,
        fallback: Option<FaultKind>,
        readings: &Readings,
    ) -> Verdicts {
        let judged = self.items.iter().filter(|item| item.arm == arm).zip(readings);
        let missing = self.missing_in_shadow.iter().filter(|_| arm == Arm::Control);
        judged
            .map(|(item, &reading)| item.verdict(backend, fallback, reading))
            .chain(missing.map(|&(policy, quota)| Verdict::missing(policy, quota)))
            .collect()
    }
}

pub(super) type Charges = SmallVec<[Charge; 2]>;

/// Whether an enforced bucket has no room.
pub(super) fn denied(charges: &[Charge], readings: &Readings) -> bool {
    charges.iter().zip(readings).any(|(charge, reading)| charge.enforce && !reading.allowed)
}
