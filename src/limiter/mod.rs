//! Decides. From the facts of a request to a decision, in one straight line: [`Limiter::check`].
//!
//! Pure but for one await, on the shared store. It names no server, no client library, no log and no metric.

pub mod breaker;
mod check;
pub mod clock;
pub mod decision;
pub mod event;
pub mod gcra;
pub mod memory;
pub mod passage;
pub mod policy;
pub mod rollout;
pub mod route;
pub mod rules;
pub mod store;
pub mod subject;
mod table;

use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;
use smallvec::SmallVec;

pub use check::Check;
use clock::Clock;
use decision::{Backend, Decision, Verdict, Verdicts};
use gcra::Reading;
use memory::{Charge, Memory};
use policy::{Mode, OnMissing, Policy, PolicyId, Rule, Rules};
use rollout::{Arm, Percent, Rollout};
use store::{Fault, FaultKind, NoStore, Readings, SharedCharge, Store};
use subject::{Facts, Identity, ProcessKey, Subject, SubjectHash};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Multiplies the rule's cost; 0 asks what is left and charges nothing.
    pub cost: u32,
    /// Judge and charge nothing.
    pub peek: bool,
}

impl Hit {
    /// An ordinary request.
    pub const ONE: Self = Self { cost: 1, peek: false };

    fn writes_nothing(self) -> bool {
        self.peek || self.cost == 0
    }
}

/// The limiter: one for the whole process, shared by its threads.
pub struct Limiter<S: Store = NoStore> {
    rules: ArcSwap<Rules>,
    memory: Memory,
    process_key: ProcessKey,
    rollout: Arc<Rollout>,
    store: Option<S>,
    clock: Clock,
}

/// The most keys that memory holds unless told otherwise. At 24 bytes and the table's slack, some 50 MiB.
pub const DEFAULT_MAX_KEYS: usize = 1_000_000;

impl Limiter<NoStore> {
    /// A limiter that keeps its counts in this process and needs nothing else.
    ///
    /// `seed` keys the hashes of the counters: sixteen random bytes, so that nobody outside can aim at a bucket.
    pub fn in_memory(rules: Rules, seed: &[u8; 16]) -> Self {
        Self::new(rules, Memory::new(DEFAULT_MAX_KEYS), seed, Clock::system())
    }
}

impl<S: Store> Limiter<S> {
    /// A limiter without a shared store so far.
    pub fn new(rules: Rules, memory: Memory, seed: &[u8; 16], clock: Clock) -> Self {
        Self {
            rules: ArcSwap::from_pointee(rules),
            memory,
            process_key: ProcessKey::new(seed),
            rollout: Arc::default(),
            store: None,
            clock,
        }
    }

    /// Following this rollout.
    pub fn with_rollout(mut self, rollout: Arc<Rollout>) -> Self {
        self.rollout = rollout;
        self
    }

    /// With a shared store for the subjects that the rollout picks.
    pub fn with_store(mut self, store: S) -> Self {
        self.store = Some(store);
        self
    }

    /// Judges a request and charges it. It cannot fail: when the store does, memory decides.
    ///
    /// The facts are read, and what memory decides is decided, before this returns: then it is
    /// [`Check::Decided`] already. The future waits for the shared store only.
    pub fn check(self: &Arc<Self>, facts: &dyn Facts, hit: Hit) -> Check {
        let rules = self.rules.load_full();
        let Some(rule) = rules.matching(facts) else {
            let revision = self.rollout.in_force().revision;
            return Check::Decided(Some(Decision::unlimited(rules, revision)));
        };
        let bill = self.bill(&rules, rule, |subject| subject.identify(facts), facts);
        let cost = rule.cost.saturating_mul(hit.cost);
        self.decide(rules, bill, cost, hit)
    }

    /// Judges `key`, which stands in for the subject of each policy of the rule `name`. `None` when there is no
    /// such rule.
    pub fn check_key(self: &Arc<Self>, name: &str, key: &[u8], hit: Hit) -> Option<Check> {
        let rules = self.rules.load_full();
        let rule = rules.named(name)?;
        let bill = self.bill(&rules, rule, |subject| Some(subject.standing_in(key)), &Nothing);
        let cost = rule.cost.saturating_mul(hit.cost);
        Some(self.decide(rules, bill, cost, hit))
    }

    /// Which buckets a request owes, and in which store each of them is.
    fn bill(
        &self,
        rules: &Rules,
        rule: &Rule,
        identify: impl Fn(&Subject) -> Option<Identity>,
        facts: &dyn Facts,
    ) -> Bill {
        let in_force = self.rollout.in_force();
        let mut bill = Bill { items: SmallVec::new(), revision: in_force.revision, missing: None };
        for &id in &rule.policies {
            let policy = rules.policy(id);
            let identity = match identify(&policy.by) {
                Some(identity) => identity,
                None => match policy.on_missing {
                    OnMissing::Skip if policy.by.is_absent(facts) => continue,
                    // Without an address either (a unix socket), all such requests share one bucket.
                    OnMissing::Ip | OnMissing::Skip => {
                        IP.identify(facts).unwrap_or_else(|| IP.identity_of(b"unknown"))
                    }
                    OnMissing::Deny => {
                        bill.missing = Some(id);
                        return bill;
                    }
                },
            };
            bill.items.push(self.item(in_force.percent, id, policy, &identity));
        }
        bill
    }

    #[inline]
    fn item(&self, percent: Percent, id: PolicyId, policy: &Policy, identity: &Identity) -> Item {
        let arm = match &self.store {
            None => Arm::Control,
            Some(_) => self.rollout.arm(percent, policy.by.is_everyone(), identity),
        };
        let shared = (arm == Arm::Canary).then(|| Some(self.rollout.keys()?.as_ref()?.subject(identity)));
        let key = self.process_key.hash(identity).under(policy.tag);
        Item { policy: id, key, arm, shared: shared.flatten() }
    }

    fn decide(self: &Arc<Self>, rules: Arc<Rules>, bill: Bill, cost: u32, hit: Hit) -> Check {
        if let Some(policy) = bill.missing {
            return Check::Decided(Some(Decision::missing_subject(rules, bill.revision, policy)));
        }
        if bill.wants_redis() {
            return Check::Asking(Box::pin(Arc::clone(self).decide_with_redis(rules, bill, cost, hit)));
        }
        let (peek, now) = (hit.writes_nothing(), self.clock.now());
        // Nearly every request owes one bucket: then nothing is gathered.
        if let [item] = bill.items.as_slice() {
            let reading = self.memory.charge_one(&item.charge(&rules, cost), peek, now);
            let verdict = item.verdict(Backend::Memory, None, reading);
            return Check::Decided(Some(Decision::of_one(rules, bill.revision, verdict)));
        }
        let charges: Charges = bill.items.iter().map(|item| item.charge(&rules, cost)).collect();
        let readings = self.memory.charge(&charges, peek, now);
        let verdicts = bill.verdicts(Arm::Control, Backend::Memory, None, &readings);
        Check::Decided(Some(Decision::of(rules, bill.revision, verdicts)))
    }

    async fn decide_with_redis(
        self: Arc<Self>,
        rules: Arc<Rules>,
        bill: Bill,
        cost: u32,
        hit: Hit,
    ) -> Decision {
        let charges = |arm: Arm| -> Charges {
            bill.items.iter().filter(|item| item.arm == arm).map(|item| item.charge(&rules, cost)).collect()
        };
        // Memory first: when it denies, Redis is not asked.
        let peek = hit.writes_nothing();
        let (here, there) = (charges(Arm::Control), charges(Arm::Canary));
        let charged_at = self.clock.now();
        let here_readings = self.memory.charge(&here, peek, charged_at);
        if denied(&here, &here_readings) {
            let verdicts = bill.verdicts(Arm::Control, Backend::Memory, None, &here_readings);
            return Decision::of(rules, bill.revision, verdicts);
        }
        let (there_readings, fault) = self.charge_there(&rules, &bill, &there, peek).await;
        if denied(&there, &there_readings) && !peek && !here.is_empty() {
            self.memory.refund(&here, &here_readings, charged_at, self.clock.now());
        }
        let backend = if fault.is_some() { Backend::Memory } else { Backend::Redis };
        let mut verdicts = bill.verdicts(Arm::Control, Backend::Memory, None, &here_readings);
        verdicts.extend(bill.verdicts(Arm::Canary, backend, fault, &there_readings));
        Decision::of(rules, bill.revision, verdicts)
    }

    /// Charges the shared store, or memory in its place.
    async fn charge_there(
        &self,
        rules: &Rules,
        bill: &Bill,
        charges: &Charges,
        peek: bool,
    ) -> (Readings, Option<FaultKind>) {
        let now = self.clock.now();
        let passage = self.memory.depart(charges, peek, now);
        let shared: Option<SmallVec<[SharedCharge<'_>; 2]>> = bill
            .items
            .iter()
            .filter(|item| item.arm == Arm::Canary)
            .zip(charges.iter().zip(passage.notes()))
            .map(|(item, (charge, note))| {
                Some(SharedCharge {
                    policy: &rules.policy(item.policy).name,
                    subject: item.shared?,
                    quota: charge.quota,
                    cost: charge.cost,
                    enforce: charge.enforce,
                    note,
                })
            })
            .collect();
        let charged = match (&self.store, &shared) {
            (Some(store), Some(shared)) => store.charge(shared, peek, now).await,
            // The fleet's secret is not known yet, so neither are the names of the keys.
            _ => Err(Fault::open()),
        };
        match charged {
            Ok(charged) if charged.readings.len() == charges.len() => {
                let now = self.clock.now();
                (passage.answered(charged.readings, charged.judged_at, now), None)
            }
            Ok(_) => (passage.decide_here(self.clock.now()), Some(FaultKind::Protocol)),
            Err(fault) => (passage.decide_here(self.clock.now()), Some(fault.kind)),
        }
    }

    /// Puts other rules in force: the next request is judged by them. Debts stay, under the policies' names.
    pub fn replace_rules(&self, rules: Rules) {
        self.rules.store(Arc::new(rules));
    }

    /// The rules in force.
    pub fn rules(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    /// The store in this process.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The shared store, if there is one.
    pub fn store(&self) -> Option<&S> {
        self.store.as_ref()
    }

    /// The rollout that requests see.
    pub fn rollout(&self) -> &Arc<Rollout> {
        &self.rollout
    }

    /// The key of this process' hashes.
    pub fn process_key(&self) -> &ProcessKey {
        &self.process_key
    }

    /// Forgets drained keys of one shard; call it in turn for `0..memory().shards()`, each every few seconds.
    pub fn sweep(&self, shard: usize) {
        self.memory.sweep(shard, self.clock.now());
    }
}

/// What stands in for a subject that is missing.
static IP: LazyLock<Subject> = LazyLock::new(Subject::ip);

type Charges = SmallVec<[Charge; 2]>;

/// Whether an enforced bucket has no room.
fn denied(charges: &[Charge], readings: &Readings) -> bool {
    charges.iter().zip(readings).any(|(charge, reading)| charge.enforce && !reading.allowed)
}

/// What a request owes.
struct Bill {
    items: SmallVec<[Item; 1]>,
    revision: u64,
    /// The policy whose subject must be there and is not.
    missing: Option<PolicyId>,
}

#[derive(Clone, Copy)]
struct Item {
    policy: PolicyId,
    key: subject::Key,
    arm: Arm,
    /// The subject's hash in the shared store, once the fleet's secret is known.
    shared: Option<SubjectHash>,
}

impl Item {
    #[inline]
    fn verdict(&self, backend: Backend, fallback: Option<FaultKind>, reading: Reading) -> Verdict {
        Verdict { policy: self.policy, reading, backend, arm: self.arm, fallback }
    }

    #[inline]
    fn charge(&self, rules: &Rules, cost: u32) -> Charge {
        let policy = rules.policy(self.policy);
        Charge { key: self.key, quota: policy.quota, cost, enforce: policy.mode == Mode::Enforce }
    }
}

impl Bill {
    fn wants_redis(&self) -> bool {
        self.items.iter().any(|item| item.arm == Arm::Canary)
    }

    fn verdicts(
        &self,
        arm: Arm,
        backend: Backend,
        fallback: Option<FaultKind>,
        readings: &Readings,
    ) -> Verdicts {
        self.items
            .iter()
            .filter(|item| item.arm == arm)
            .zip(readings)
            .map(|(item, &reading)| item.verdict(backend, fallback, reading))
            .collect()
    }
}

/// The facts of a bare key.
struct Nothing;

impl Facts for Nothing {
    fn ip(&self) -> Option<std::net::IpAddr> {
        None
    }
    fn method(&self) -> &str {
        ""
    }
    fn host(&self) -> &str {
        ""
    }
    fn path(&self) -> &str {
        ""
    }
    fn header(&self, _: &str) -> Option<&[u8]> {
        None
    }
    fn query(&self, _: &str) -> Option<std::borrow::Cow<'_, [u8]>> {
        None
    }
    fn cookie(&self, _: &str) -> Option<std::borrow::Cow<'_, [u8]>> {
        None
    }
    fn carries(&self, _: &subject::Part) -> bool {
        false
    }
}
