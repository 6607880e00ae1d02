//! From a bill to a decision: memory at once, the shared store within its deadline, memory in its place.

use std::sync::Arc;

use smallvec::SmallVec;

use super::bill::{Bill, Charges, Item, denied};
use super::charge::Charge;
use super::check::{Background, Check, PendingDecision};
use super::clock::Micros;
use super::decision::{Backend, Decision, Ruling, State, Verdict};
use super::passage::Passage;
use super::places::{self, Answered, ChargedHere, Part, Payment};
use super::policy::{Mode, OnRedisError, PolicyId, Rules};
use super::rollout::Arm;
use super::share::{Share, ShareSource};
use super::store::{Fault, FaultKind, SharedCharge, Store};
use super::subject::SubjectHash;
use super::{Hit, Limiter};

impl<S: Store> Limiter<S> {
    pub(super) fn decide(self: &Arc<Self>, rules: Arc<Rules>, bill: Bill, cost: u32, hit: Hit) -> Check {
        if let Some(ruling) = bill.ruling {
            let decision = Decision::ruled(rules, bill.revision, ruling);
            return Check::Decided(Some(decision.overridden(bill.overridden)));
        }
        if bill.wants_redis() {
            if let Some(decision) = self.known_denial(&rules, &bill, cost, hit) {
                return Check::Decided(Some(decision));
            }
            let background = (!hit.writes_nothing()).then(|| Arc::clone(self) as Arc<dyn Background>);
            let steps = Box::pin(Arc::clone(self).decide_with_redis(rules, bill, cost, hit));
            return Check::Asking(PendingDecision::new(steps, background));
        }
        let (peek, now) = (hit.writes_nothing(), self.clock.now());
        // Nearly every request owes one bucket: then nothing is gathered.
        if let [item] = bill.items.as_slice()
            && bill.missing_in_shadow.is_empty()
        {
            let reading = self.memory.charge_one(&self.charge(item, &rules, cost, now), peek, now);
            let verdict = item.verdict(Backend::Memory, None, reading);
            let mut decision = Decision::of_one(rules, bill.revision, verdict);
            if decision.state != State::Allow {
                self.penalise(&bill, &decision, peek, now);
            }
            if bill.overridden.is_some() {
                decision = decision.overridden(bill.overridden);
            }
            return Check::Decided(Some(decision));
        }
        let charges: Charges = bill.items.iter().map(|item| self.charge(item, &rules, cost, now)).collect();
        let readings = self.memory.charge(&charges, peek, now);
        let verdicts = bill.verdicts(Arm::Control, Backend::Memory, None, &readings);
        let decision = Decision::of(rules, bill.revision, verdicts);
        self.penalise(&bill, &decision, peek, now);
        Check::Decided(Some(decision.overridden(bill.overridden)))
    }

    /// The denial that Redis would give, when what it told before is enough to know: an attack costs no commands.
    pub(super) fn known_denial(
        &self,
        rules: &Arc<Rules>,
        bill: &Bill,
        cost: u32,
        hit: Hit,
    ) -> Option<Decision> {
        if hit.writes_nothing() {
            return None;
        }
        let store = self.store.as_ref()?;
        let now = self.clock.now();
        let (mut lag, mut recovering) = (0, false);
        for item in bill.items.iter().filter(|item| item.arm == Arm::Canary) {
            let subject = item.shared?;
            lag = store.lag(subject)?.max(lag);
            recovering |= store.is_recovering(subject, now);
        }
        let charges = |arm: Arm, share: Share| -> Charges {
            let items = bill.items.iter().filter(|item| item.arm == arm);
            items.map(|item| Charge { share, ..self.charge(item, rules, cost, now) }).collect()
        };
        let share = if recovering { self.share() } else { Share::WHOLE };
        let by_share = || self.memory.denies_by_share(&charges(Arm::Canary, share), now);
        let by_share = if share == Share::WHOLE { None } else { by_share() };
        let there = charges(Arm::Canary, Share::WHOLE);
        let readings = by_share.or_else(|| self.memory.denies(&there, lag, now))?;
        // The others are told as they stand.
        let here = self.memory.charge(&charges(Arm::Control, Share::WHOLE), true, now);
        let mut verdicts = bill.verdicts(Arm::Control, Backend::Memory, None, &here);
        let items = bill.items.iter().filter(|item| item.arm == Arm::Canary);
        verdicts.extend(items.zip(&there).zip(&readings).map(|((item, charge), &reading)| {
            match self.memory.is_unconfirmed(charge, now) {
                true => item.verdict(Backend::Memory, Some(FaultKind::Share), reading),
                false => item.verdict(Backend::Redis, None, reading),
            }
        }));
        let decision = Decision::of_what_is_known(Arc::clone(rules), bill.revision, verdicts);
        self.penalise(bill, &decision, false, now);
        Some(decision.overridden(bill.overridden.clone()))
    }

    /// Which share of its subjects' traffic this instance sees.
    pub fn share(&self) -> Share {
        self.share_and_source().0
    }

    /// The share and where it comes from: learned from the charges in Redis, else an equal part of the members that the
    /// heartbeats name, else of the configured fleet size, else all of it.
    pub fn share_and_source(&self) -> (Share, ShareSource) {
        let learned = || Some((self.memory.share()?, ShareSource::Learned));
        let members = || Some((Share::one_of(self.memory.sight.members()?), ShareSource::Members));
        let configured = || Some((Share::one_of(self.fleet_size?), ShareSource::FleetSize));
        learned().or_else(members).or_else(configured).unwrap_or((Share::WHOLE, ShareSource::Unknown))
    }

    /// Holds a throttled request against its client, under each policy that denied it and shuts out whoever goes on.
    pub(super) fn penalise(&self, bill: &Bill, decision: &Decision, peek: bool, now: Micros) {
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
        let payment = Payment { rules: &rules, cost, charged_at };
        // Memory first: when it denies, Redis is not asked.
        let peek = hit.writes_nothing();
        let here = bill.items.iter().filter(|item| item.arm == Arm::Control);
        let here: Charges = here.map(|item| self.charge(item, &rules, cost, charged_at)).collect();
        let here_readings = self.memory.charge(&here, peek, charged_at);
        if denied(&here, &here_readings) {
            let verdicts = bill.verdicts(Arm::Control, Backend::Memory, None, &here_readings);
            let decision = Decision::of(rules, bill.revision, verdicts);
            self.penalise(&bill, &decision, peek, charged_at);
            return decision.overridden(bill.overridden);
        }
        let held_here = ChargedHere::of(&self.memory, &self.clock, (&here, &here_readings), charged_at, peek);
        let parts = self.parts(&bill, payment);
        let asked = |part| self.charge_there(&rules, part, peek);
        let answers = match parts.as_slice() {
            [one] => SmallVec::from_iter([asked(one).await]),
            several => places::all(several.iter().map(asked)).await,
        };
        // What was charged in one place although another denies or refuses. Of one place the store itself charges all or
        // nothing; memory is refunded by `held_here`.
        let take_back = || {
            if peek {
                return;
            }
            let charged = parts.iter().zip(&answers).filter(|_| parts.len() > 1);
            let charged = charged.filter_map(|(part, answer)| Some((part, answer.as_ref().ok()?)));
            charged.for_each(|(part, answered)| self.take_back(part, answered, payment));
        };
        let refused = answers.iter().find_map(|answer| answer.as_ref().err());
        if let Some(&(policy, fault)) = refused {
            take_back();
            let decision = Decision::ruled(rules, bill.revision, Ruling::StoreAway(policy, fault));
            return decision.overridden(bill.overridden.clone());
        }
        let mut verdicts = bill.verdicts(Arm::Control, Backend::Memory, None, &here_readings);
        for (part, answered) in parts.iter().zip(&answers) {
            let Ok(Answered { readings, fault, here }) = answered else { continue };
            let backend = if fault.is_some() { Backend::Memory } else { Backend::Redis };
            let share = here.first().map_or(Share::WHOLE, |charge| charge.share);
            let judged = part.items.iter().zip(readings);
            verdicts.extend(
                judged.map(|(item, &reading)| Verdict { share, ..item.verdict(backend, *fault, reading) }),
            );
        }
        for verdict in verdicts.iter_mut().filter(|verdict| verdict.fallback.is_some()) {
            let policy = rules.policy(verdict.policy);
            if policy.on_redis_error == OnRedisError::Open && policy.mode == Mode::Enforce {
                verdict.waive();
            }
        }
        let decision = Decision::of(Arc::clone(&rules), bill.revision, verdicts);
        match decision.allowed() {
            true => held_here.keep(),
            false => take_back(),
        }
        self.penalise(&bill, &decision, peek, charged_at);
        decision.overridden(bill.overridden.clone())
    }

    /// Charges one place of the shared store, or memory in its place. An error is the policy that refuses when that happens.
    async fn charge_there(
        &self,
        rules: &Rules,
        part: &Part<'_>,
        peek: bool,
    ) -> Result<Answered, (PolicyId, FaultKind)> {
        let now = self.clock.now();
        let charges = &part.charges;
        let passage = self.memory.depart(charges, peek, now);
        let shared: Option<SmallVec<[SharedCharge<'_>; 2]>> = part
            .items
            .iter()
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
                let readings = passage.answered(charged, self.clock.now());
                Ok(Answered { readings, fault: None, here: Charges::new() })
            }
            Ok(_) => self.decide_here(rules, part, passage, FaultKind::Protocol),
            Err(fault) => self.decide_here(rules, part, passage, fault.kind),
        }
    }

    /// Redis was to decide and cannot: each policy says what happens then.
    fn decide_here(
        &self,
        rules: &Rules,
        part: &Part<'_>,
        passage: Passage<'_>,
        fault: FaultKind,
    ) -> Result<Answered, (PolicyId, FaultKind)> {
        let policies = || part.items.iter().map(|item| rules.policy(item.policy));
        let refuses = |item: &&&Item| {
            let policy = rules.policy(item.policy);
            policy.on_redis_error == OnRedisError::Deny && policy.mode == Mode::Enforce
        };
        if let Some(item) = part.items.iter().find(refuses) {
            passage.give_up();
            return Err((item.policy, fault));
        }
        let share = self.share();
        let here: Charges = part
            .charges
            .iter()
            .zip(policies())
            .map(|(charge, policy)| Charge {
                share,
                enforce: charge.enforce && policy.on_redis_error == OnRedisError::Local,
                ..*charge
            })
            .collect();
        let readings = passage.decide_here(&here, self.clock.now());
        Ok(Answered { readings, fault: Some(fault), here })
    }

    /// By how many microseconds the clock of calendar windows is ahead of the clock of decisions: the shared store's for
    /// the subjects that it decides, since that clock admits a client that waited for `Retry-After`; else the wall's.
    pub(super) fn ahead(&self, shared: Option<SubjectHash>) -> i64 {
        let theirs = || self.store.as_ref()?.ahead(shared?);
        theirs().unwrap_or_else(|| self.clock.behind_the_wall())
    }

    #[inline]
    pub(super) fn charge(&self, item: &Item, rules: &Rules, cost: u32, now: Micros) -> Charge {
        let policy = rules.policy(item.policy);
        let span = policy.calendar.as_ref().map(|calendar| calendar.span(now, self.ahead(item.shared)));
        Charge {
            key: item.key,
            quota: item.own.unwrap_or(policy.quota),
            span,
            cost,
            share: Share::WHOLE,
            enforce: policy.mode == Mode::Enforce,
        }
    }
}
