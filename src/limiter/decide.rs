//! From a bill to a decision: memory at once, the shared store within its deadline, memory in its place.

use std::sync::Arc;

use smallvec::SmallVec;

use super::bill::{Bill, Charges, Item, denied};
use super::charge::Charge;
use super::check::Check;
use super::clock::Micros;
use super::decision::{Backend, Decision};
use super::policy::{Mode, Rules};
use super::rollout::Arm;
use super::store::{Fault, FaultKind, Readings, SharedCharge, Store};
use super::{Hit, Limiter};

impl<S: Store> Limiter<S> {
    pub(super) fn decide(self: &Arc<Self>, rules: Arc<Rules>, bill: Bill, cost: u32, hit: Hit) -> Check {
        if let Some(ruling) = bill.ruling {
            return Check::Decided(Some(Decision::ruled(rules, bill.revision, ruling)));
        }
        if bill.wants_redis() {
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

    /// Holds a throttled request against its client, under each policy that denied it and shuts out whoever goes on.
    fn penalise(&self, bill: &Bill, decision: &Decision, peek: bool, now: Micros) {
        if decision.allowed() || peek {
            return;
        }
        for (policy, verdict) in decision.verdicts() {
            let denied = !verdict.reading.allowed && policy.mode == Mode::Enforce;
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
        let (there_readings, fault) = self.charge_there(&rules, &bill, &there, peek).await;
        if denied(&there, &there_readings) && !peek && !here.is_empty() {
            self.memory.refund(&here, &here_readings, charged_at, self.clock.now());
        }
        let backend = if fault.is_some() { Backend::Memory } else { Backend::Redis };
        let mut verdicts = bill.verdicts(Arm::Control, Backend::Memory, None, &here_readings);
        verdicts.extend(bill.verdicts(Arm::Canary, backend, fault, &there_readings));
        let decision = Decision::of(rules, bill.revision, verdicts);
        self.penalise(&bill, &decision, peek, charged_at);
        decision
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
            .map(|(item, (charge, (note, span)))| {
                Some(SharedCharge {
                    policy: &rules.policy(item.policy).name,
                    subject: item.shared?,
                    quota: charge.quota,
                    span,
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
            Ok(charged) if charged.readings.len() == charges.len() && charged.from.len() == charges.len() => {
                (passage.answered(charged, self.clock.now()), None)
            }
            Ok(_) => (passage.decide_here(self.clock.now()), Some(FaultKind::Protocol)),
            Err(fault) => (passage.decide_here(self.clock.now()), Some(fault.kind)),
        }
    }

    #[inline]
    fn charge(&self, item: &Item, rules: &Rules, cost: u32, now: Micros) -> Charge {
        let policy = rules.policy(item.policy);
        let span = policy.calendar.as_ref().map(|calendar| calendar.span(now, self.clock.behind_the_wall()));
        Charge { key: item.key, quota: policy.quota, span, cost, enforce: policy.mode == Mode::Enforce }
    }
}
