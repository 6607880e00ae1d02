//! What was decided, by whom, and everything a client or a log line is told about it.

use std::sync::Arc;

use serde::{Serialize, Serializer};
use smallvec::SmallVec;

use super::access::Access;
use super::clock::{Micros, SECOND};
use super::gcra::{Quota, Reading};
use super::overrides::Overridden;
use super::policy::{Mode, Policy, PolicyId, Rules};
use super::rollout::Arm;
use super::share::Share;
use super::store::FaultKind;

/// The three words of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Within every policy.
    Allow,
    /// Over a limit: come back later.
    Throttle,
    /// Refused outright.
    Block,
}

impl State {
    /// The word of the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Throttle => "throttle",
            Self::Block => "block",
        }
    }
}

/// Who decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// This process.
    Memory,
    /// The shared store.
    Redis,
}

impl Backend {
    /// The word of the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Redis => "redis",
        }
    }
}

/// What one policy said.
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    /// Which policy.
    pub policy: PolicyId,
    /// What its bucket says.
    pub reading: Reading,
    /// Which store it is in.
    pub backend: Backend,
    /// What the rollout wanted for its subject.
    pub arm: Arm,
    /// Why memory decided although Redis was wanted.
    pub fallback: Option<FaultKind>,
    /// The part of the quota that was served: what the request turns out to cost is settled on the same scale.
    pub share: Share,
    /// A limit of the subject's own, in the place of the policy's.
    pub own: Option<Quota>,
    /// A shadow policy's subject, which must be there, is missing: no bucket was judged. (Of an enforced policy that
    /// ends the request before any verdict.)
    pub missing: bool,
    /// Admitted without room for it, because Redis is away and the policy says so: nothing was charged.
    pub waived: bool,
}

impl Verdict {
    /// What it was judged by: the subject's own limit, else the policy's.
    #[inline]
    pub fn quota<'q>(&'q self, policy: &'q Policy) -> &'q Quota {
        self.own.as_ref().unwrap_or(&policy.quota)
    }

    /// Admits what the bucket may have had no room for.
    pub(super) fn waive(&mut self) {
        self.waived = !self.reading.allowed;
        (self.reading.allowed, self.reading.retry_after) = (true, Some(0));
    }

    /// Of a shadow policy whose subject must be there and is missing.
    pub(super) fn missing(policy: PolicyId, quota: Quota) -> Self {
        let reading = Reading { retry_after: None, ..quota.reading(0, 0, false) };
        let (backend, arm, share) = (Backend::Memory, Arm::Control, Share::WHOLE);
        Self { policy, reading, backend, arm, fallback: None, share, own: None, missing: true, waived: false }
    }

    /// What this policy by itself would have come to.
    #[inline]
    pub fn state(&self) -> State {
        match self.reading.allowed {
            true => State::Allow,
            false if self.missing => State::Block,
            false => State::Throttle,
        }
    }
}

/// What a shadow policy would have done to a request, had it been enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ShadowDenial<'a> {
    /// The policy's name.
    pub policy: &'a str,
    /// `throttle` or `block`.
    #[serde(serialize_with = "word")]
    pub state: State,
    /// Time until it would have admitted the same hit; `None` when it never would. Written in milliseconds.
    #[serde(rename = "retry_after_ms", serialize_with = "milliseconds")]
    pub retry_after: Option<Micros>,
}

/// One per policy. Nearly every request has one.
pub type Verdicts = SmallVec<[Verdict; 1]>;

/// What decided before any bucket was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// Its place on a list.
    Listed(Access),
    /// An override of one of its subjects.
    Overridden(Access),
    /// The subject of this policy must be there and is not.
    SubjectMissing(PolicyId),
    /// Under this policy the client is shut out for so many microseconds more.
    Blocked(PolicyId, Micros),
    /// Redis cannot decide, and this policy refuses then.
    StoreAway(PolicyId, FaultKind),
}

/// When a client that was refused because Redis is away is told to come back, in microseconds. Nobody knows; often
/// enough to notice, and no hammering.
pub const COME_BACK_TO_A_STORE: Micros = 5 * SECOND;

/// The outcome for one request.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The verdict.
    pub state: State,
    /// Whether buckets of both stores were charged; such a request stays out of arm statistics.
    pub mixed: bool,
    /// Whether what Redis told before was enough to deny: it was not asked. Such a request counts for no exposure.
    pub cached: bool,
    /// The revision of the rollout that chose the stores.
    pub revision: u64,
    rules: Arc<Rules>,
    verdicts: Verdicts,
    binding: usize,
    ruling: Option<Ruling>,
    overridden: Option<Overridden>,
}

impl Decision {
    /// No policy applies.
    pub(super) fn unlimited(rules: Arc<Rules>, revision: u64) -> Self {
        Self {
            state: State::Allow,
            mixed: false,
            cached: false,
            revision,
            rules,
            verdicts: SmallVec::new(),
            binding: 0,
            ruling: None,
            overridden: None,
        }
    }

    /// No bucket was asked.
    pub(super) fn ruled(rules: Arc<Rules>, revision: u64, ruling: Ruling) -> Self {
        let state = match ruling {
            Ruling::Listed(Access::Allow) | Ruling::Overridden(Access::Allow) => State::Allow,
            Ruling::Listed(Access::Deny) | Ruling::Overridden(Access::Deny) => State::Block,
            Ruling::SubjectMissing(_) | Ruling::Blocked(..) => State::Block,
            Ruling::StoreAway(..) => State::Throttle,
        };
        Self { state, ruling: Some(ruling), ..Self::unlimited(rules, revision) }
    }

    /// What the one policy of a request comes to.
    #[inline]
    pub(super) fn of_one(rules: Arc<Rules>, revision: u64, verdict: Verdict) -> Self {
        let denied = !verdict.reading.allowed && rules.policy(verdict.policy).mode == Mode::Enforce;
        let mut verdicts = SmallVec::new();
        verdicts.push(verdict);
        Self {
            state: if denied { State::Throttle } else { State::Allow },
            mixed: false,
            cached: false,
            revision,
            rules,
            verdicts,
            binding: 0,
            ruling: None,
            overridden: None,
        }
    }

    /// What Redis told before is enough to deny.
    pub(super) fn of_what_is_known(rules: Arc<Rules>, revision: u64, verdicts: Verdicts) -> Self {
        Self { cached: true, ..Self::of(rules, revision, verdicts) }
    }

    /// What these verdicts come to: the longest denial binds, else the least remaining.
    pub(super) fn of(rules: Arc<Rules>, revision: u64, verdicts: Verdicts) -> Self {
        let enforced = |verdict: &Verdict| rules.policy(verdict.policy).mode == Mode::Enforce;
        let never = Micros::MAX;
        let mut binding = 0;
        for (at, verdict) in verdicts.iter().enumerate().skip(1) {
            let best = &verdicts[binding];
            // An enforced policy before a shadow one; then a denial, the longer the worse; then what is left.
            let rank = |verdict: &Verdict| {
                let wait = verdict.reading.retry_after.unwrap_or(never);
                (enforced(verdict), !verdict.reading.allowed, wait, u32::MAX - verdict.reading.remaining)
            };
            if rank(verdict) > rank(best) {
                binding = at;
            }
        }
        let denied = verdicts.get(binding).is_some_and(|bound| enforced(bound) && !bound.reading.allowed);
        let mut stores = verdicts.iter().filter(|one| !one.missing).map(|one| one.backend);
        let first = stores.next();
        let mixed = stores.any(|store| Some(store) != first);
        Self {
            state: if denied { State::Throttle } else { State::Allow },
            mixed,
            cached: false,
            revision,
            rules,
            verdicts,
            binding,
            ruling: None,
            overridden: None,
        }
    }

    /// The same, by this override.
    #[inline]
    pub(super) fn overridden(mut self, by: Option<Overridden>) -> Self {
        self.overridden = by;
        self
    }

    pub(super) fn by_override(&self) -> Option<Overridden> {
        self.overridden.clone()
    }

    /// The id of the override that took part: of several the first in the order of the rule's policies.
    pub fn override_id(&self) -> Option<&str> {
        let by = self.overridden.as_ref()?;
        Some(&by.overrides.at(by.place).id)
    }

    /// Whether the request may pass.
    pub fn allowed(&self) -> bool {
        self.state == State::Allow
    }

    /// Every policy that was judged, with what it said.
    pub fn verdicts(&self) -> impl Iterator<Item = (&Policy, &Verdict)> + Clone {
        self.verdicts.iter().map(|verdict| (self.rules.policy(verdict.policy), verdict))
    }

    /// The policies that may deny, with what they said.
    pub fn enforced(&self) -> impl Iterator<Item = (&Policy, &Verdict)> + Clone {
        self.verdicts().filter(|(policy, _)| policy.mode == Mode::Enforce)
    }

    /// The shadow policies that would have denied.
    pub fn shadow_denials(&self) -> impl Iterator<Item = ShadowDenial<'_>> {
        let shadow =
            |(policy, verdict): &(&Policy, &Verdict)| policy.mode == Mode::Shadow && !verdict.reading.allowed;
        self.verdicts().filter(shadow).map(|(policy, verdict)| ShadowDenial {
            policy: &policy.name,
            state: verdict.state(),
            retry_after: verdict.reading.retry_after,
        })
    }

    /// [`Decision::binding`], but for a shadow policy, of which nobody is to be told as if it bound.
    pub fn bound_by(&self) -> Option<(&Policy, &Verdict)> {
        // A shadow policy binds only where there is no other.
        self.binding().filter(|(policy, _)| policy.mode == Mode::Enforce)
    }

    /// The policy that binds, with what it said; `None` when no policy applies.
    pub fn binding(&self) -> Option<(&Policy, &Verdict)> {
        let verdict = self.verdicts.get(self.binding)?;
        Some((self.rules.policy(verdict.policy), verdict))
    }

    /// The name of the policy that decided, be it without its bucket.
    pub fn policy(&self) -> Option<&str> {
        Some(&self.rules.policy(self.policy_id()?).name)
    }

    /// The place of [`Decision::policy`] among the policies, for tables indexed by it.
    pub fn policy_id(&self) -> Option<PolicyId> {
        match self.ruling {
            None => Some(self.verdicts.get(self.binding)?.policy),
            Some(Ruling::Listed(_) | Ruling::Overridden(_)) => None,
            Some(Ruling::SubjectMissing(id) | Ruling::Blocked(id, _) | Ruling::StoreAway(id, _)) => Some(id),
        }
    }

    /// What decided before any bucket was asked.
    pub fn ruling(&self) -> Option<Ruling> {
        self.ruling
    }

    /// The subject of the policy that decided, as in `header:x-api-key`.
    pub fn subject_kind(&self) -> Option<&str> {
        Some(self.rules.policy(self.policy_id()?).by.kind())
    }

    /// Whether it is a refusal because a subject is missing that takes a claim.
    pub fn misses_claim(&self) -> bool {
        matches!(self.ruling, Some(Ruling::SubjectMissing(id)) if self.rules.policy(id).by.reads_claims())
    }

    /// The store of the deciding hit.
    pub fn backend(&self) -> Backend {
        self.verdicts.get(self.binding).map_or(Backend::Memory, |verdict| verdict.backend)
    }

    /// What the rollout wanted for the deciding hit.
    pub fn arm(&self) -> Arm {
        match self.ruling {
            Some(Ruling::StoreAway(..)) => Arm::Canary,
            _ => self.verdicts.get(self.binding).map_or(Arm::Control, |verdict| verdict.arm),
        }
    }

    /// Whether Redis decided all that the canary has of this request; `None` where the canary has nothing of it, or nothing
    /// was asked.
    pub fn canary_was_decided_by_redis(&self) -> Option<bool> {
        if matches!(self.ruling, Some(Ruling::StoreAway(..))) {
            return Some(false);
        }
        let canary = self.verdicts.iter().filter(|verdict| verdict.arm == Arm::Canary);
        canary.map(|verdict| verdict.fallback.is_none()).reduce(|one, other| one && other)
    }

    /// Why memory decided although Redis was wanted.
    pub fn fallback(&self) -> Option<FaultKind> {
        match self.ruling {
            Some(Ruling::StoreAway(_, fault)) => Some(fault),
            _ => self.verdicts.iter().find_map(|verdict| verdict.fallback),
        }
    }

    /// Whether Redis is only just back, and the request was denied because this instance has used up its share of the limit.
    pub fn is_by_share(&self) -> bool {
        !self.allowed() && self.bound_by().is_some_and(|(_, bound)| bound.fallback == Some(FaultKind::Share))
    }

    /// Time until the same request is admitted, or its client no longer shut out: 0 when it was, `None` when it never
    /// will be.
    pub fn retry_after(&self) -> Option<Micros> {
        match (self.ruling, self.binding()) {
            (Some(Ruling::Blocked(_, rest)), _) => Some(rest),
            (Some(Ruling::StoreAway(..)), _) => Some(COME_BACK_TO_A_STORE),
            (None, Some((_, verdict))) if !self.allowed() => verdict.reading.retry_after,
            _ => Some(0),
        }
    }

    /// The rules that it was made by.
    pub fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }
}

fn word<S: Serializer>(state: &State, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(state.as_str())
}

fn milliseconds<S: Serializer>(time: &Option<Micros>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.div_ceil(1000)).serialize(serializer)
}
