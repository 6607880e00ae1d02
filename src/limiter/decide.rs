//! From a bill to a decision: memory at once, the shared store within its deadline, memory in its place.

use std::sync::Arc;

use smallvec::SmallVec;

use super::bill::{Bill, Charges, Item, denied};
use super::charge::Charge;
use super::check::Check;
use super::clock::Micros;
use super::decision::{Backend, Decision, Ruling};
use super::passage::Passage;
use super::policy::{Mode, OnRedisError, PolicyId, Rules};
use super::rollout::Arm;
use super::share::Share;
use super::store::{Fault, FaultKind, Readings, SharedCharge, Store};
use super::{Hit, Limiter};

impl<S: Store> Limiter<S> {
    pub(super) fn decide(self: &Arc<Self>, rules: Arc<Rules>, bill: Bill, cost: u32, hit: Hit) -> Check {
        if let Some(ruling) = bill.ruling {
            return Check::Decided(Some(Decision::ruled(rules, bill.revision, ruling)));
        }
        if bill.wants_redis() {
            if let Some(decision) = self.known_denial(&rules, &bill, cost, hit) {
                return Check::Decided(Some(decision));
            }
            return Check::Asking(Box::pin(Arc::clone(self).decide_with_redis(rules, bill, cost, hit)));
        }
        let (peek, now) = (hit.writes_nothing(), self.clock.now());
        // Nearly every request owes one bucket: then nothing is gathered.
        if let [item] = bill.items.as_slice()
            && bill.missing_in_shadow.is_empty()
        {
            let reading = self.memory.charge_one(&self.charge(item, &rules, cost, now), peek, now);
            let verdict = item.verdict(Backend::Memory, None, reading);
            let decision = Decision::of_one(rules, bill.revision, verdict);
            self.penalise(&bill, &decision, peek, now);
            return Check::Decided(Some(decision));
        }
        let charges: Charges = bill.items.iter().map(|item| self.charge(item, &rules, cost, now)).collect();
        let readings = self.memory.charge(&charges, peek, now);
        let verdicts = bill.verdicts(Arm::Control, Backend::Memory, None, &readings);
        let decision = Decision::of(rules, bill.revision, verdicts);
        self.penalise(&bill, &decision, peek, now);
        Check::Decided(Some(decision))
    }

    /// The denial that Redis would give, when what it told before is enough to know: an attack costs no commands.
    fn known_denial(&self, rules: &Arc<Rules>, bill: &Bill, cost: u32, hit: Hit) -> Option<Decision> {
        if hit.writes_nothing() {
            return None;
        }
        let store = self.store.as_ref()?;
        let (lag, now) = (store.lag()?, self.clock.now());
        let share = if store.is_recovering(now) { self.share() } else { Share::WHOLE };
        let charges = |arm: Arm, share: Share| -> Charges {
            let items = bill.items.iter().filter(|item| item.arm == arm);
            items.map(|item| Charge { share, ..self.charge(item, rules, cost, now) }).collect()
        };
        let readings = self.memory.denies(&charges(Arm::Canary, share), lag, now)?;
        // The others are told as they stand.
        let here = self.memory.charge(&charges(Arm::Control, Share::WHOLE), true, now);
        let mut verdicts = bill.verdicts(Arm::Control, Backend::Memory, None, &here);
        verdicts.extend(bill.verdicts(Arm::Canary, Backend::Redis, None, &readings));
        let decision = Decision::of_what_is_known(Arc::clone(rules), bill.revision, verdicts);
        // A share is a guess: nobody is shut out by it.
        if share == Share::WHOLE {
            self.penalise(bill, &decision, false, now);
        }
        Some(decision)
    }

    /// Which share of its subjects' traffic this instance sees: what it was taught, else an equal part of the fleet that it
    /// was told to be one of, else all of it.
    pub fn share(&self) -> Share {
        let told = || self.fleet_size.map(Share::one_of);
        self.memory.share().or_else(told).unwrap_or(Share::WHOLE)
    }

    /// Holds a throttled request against its client, under each policy that denied it and shuts out whoever goes on.
    fn penalise(&self, bill: &Bill, decision: &Decision, peek: bool, now: Micros) {
        if decision.allowed() || peek {
            return;
        }
        // A share is a guess: nobody is shut out by it.
        let guessed = |fallback: Option<FaultKind>| fallback.is_some() && self.share() != Share::WHOLE;
        for (policy, verdict) in decision.verdicts() {
            let denied = !verdict.reading.allowed
                && policy.mode == Mode::Enforce
                && !(policy.penalty.is_some() && guessed(verdict.fallback));
            if let (Some(penalty), true) = (&policy.penalty, denied)
                && let Some(item) = bill.items.iter().find(|item| item.policy == verdict.policy)
            {
                self.penalties.throttled(item.key, (&policy.name, penalty), item.who.as_deref(), now);
            }
        }
    }

    async fn decide_with_redis(
        self: Arc<Self>,
        rules: Arc<Rules>,
        bill: Bill,
        cost: u32,
        hit: Hit,
    ) -> Decision {
        let charged_at = self.clock.now();
        let charges = |arm: Arm| -> Charges {
            let items = bill.items.iter().filter(|item| item.arm == arm);
            items.map(|item| self.charge(item, &rules, cost, charged_at)).collect()
        };
        // Memory first: when it denies, Redis is not asked.
        let peek = hit.writes_nothing();
        let (here, there) = (charges(Arm::Control), charges(Arm::Canary));
        let here_readings = self.memory.charge(&here, peek, charged_at);
        if denied(&here, &here_readings) {
            let verdicts = bill.verdicts(Arm::Control, Backend::Memory, None, &here_readings);
            let decision = Decision::of(rules, bill.revision, verdicts);
            self.penalise(&bill, &decision, peek, charged_at);
            return decision;
        }
        let (there_readings, fault) = match self.charge_there(&rules, &bill, &there, peek).await {
            Ok(charged) => charged,
            Err((policy, fault)) => {
                if !peek {
                    self.memory.refund(&here, &here_readings, charged_at, self.clock.now());
                }
                return Decision::ruled(rules, bill.revision, Ruling::StoreAway(policy, fault));
            }
        };
        let backend = if fault.is_some() { Backend::Memory } else { Backend::Redis };
        let mut verdicts = bill.verdicts(Arm::Control, Backend::Memory, None, &here_readings);
        verdicts.extend(bill.verdicts(Arm::Canary, backend, fault, &there_readings));
        for verdict in verdicts.iter_mut().filter(|verdict| verdict.fallback.is_some()) {
            let policy = rules.policy(verdict.policy);
            if policy.on_redis_error == OnRedisError::Open && policy.mode == Mode::Enforce {
                verdict.waive();
            }
        }
        let decision = Decision::of(rules, bill.revision, verdicts);
        // Memory had room.
        if !decision.allowed() && !peek && !here.is_empty() {
            self.memory.refund(&here, &here_readings, charged_at, self.clock.now());
        }
        self.penalise(&bill, &decision, peek, charged_at);
        decision
    }

    /// Charges the shared store, or memory in its place. An error is the policy that refuses when that happens.
    async fn charge_there(
        &self,
        rules: &Rules,
        bill: &Bill,
        charges: &Charges,
        peek: bool,
    ) -> Result<(Readings, Option<FaultKind>), (PolicyId, FaultKind)> {
        let now = self.clock.now();
        let passage = self.memory.depart(charges, peek, now);
        let shared: Option<SmallVec<[SharedCharge<'_>; 2]>> = bill
            .items
            .iter()
            .filter(|item| item.arm == Arm::Canary)
            .zip(charges.iter().zip(passage.notes()))
            .map(|(item, (charge, (note, span)))| {
                Some(SharedCharge {
                    policy: &rules.policy(item.policy).name,
                    subject: item.shared?,
                    quota: charge.quota,
                    span,
                    cost: charge.cost,
                    enforce: charge.enforce,
                    note,
                    change: None,
                })
            })
            .collect();
        let charged = match (&self.store, &shared) {
            (Some(store), Some(shared)) => store.charge(shared, peek, now).await,
            // The fleet's secret is not known yet, so neither are the names of the keys.
            _ => Err(Fault::open()),
        };
        match charged {
            Ok(charged) if charged.readings.len() == charges.len() && charged.from.len() == charges.len() => {
                Ok((passage.answered(charged, self.clock.now()), None))
            }
            Ok(_) => self.decide_here(rules, bill, charges, passage, FaultKind::Protocol),
            Err(fault) => self.decide_here(rules, bill, charges, passage, fault.kind),
        }
    }

    /// Redis was to decide and cannot: each policy says what happens then.
    fn decide_here(
        &self,
        rules: &Rules,
        bill: &Bill,
        charges: &Charges,
        passage: Passage<'_>,
        fault: FaultKind,
    ) -> Result<(Readings, Option<FaultKind>), (PolicyId, FaultKind)> {
        let items = || bill.items.iter().filter(|item| item.arm == Arm::Canary);
        let policies = || items().map(|item| rules.policy(item.policy));
        let refuses = |item: &&Item| {
            let policy = rules.policy(item.policy);
            policy.on_redis_error == OnRedisError::Deny && policy.mode == Mode::Enforce
        };
        // Given up by being dropped: nothing is charged.
        if let Some(item) = items().find(refuses) {
            return Err((item.policy, fault));
        }
        let share = self.share();
        let here: Charges = charges
            .iter()
            .zip(policies())
            .map(|(charge, policy)| Charge {
                share,
                enforce: charge.enforce && policy.on_redis_error == OnRedisError::Local,
                ..*charge
            })
            .collect();
        let readings = passage.decide_here(&here, self.clock.now());
        Ok((readings, Some(fault)))
    }

    #[inline]
    fn charge(&self, item: &Item, rules: &Rules, cost: u32, now: Micros) -> Charge {
        let policy = rules.policy(item.policy);
        let span = policy.calendar.as_ref().map(|calendar| calendar.span(now, self.clock.behind_the_wall()));
        Charge {
            key: item.key,
            quota: policy.quota,
            span,
            cost,
            share: Share::WHOLE,
            enforce: policy.mode == Mode::Enforce,
        }
    }
}
