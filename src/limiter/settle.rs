//! After the fact: what a request cost is known only with its answer. Then the difference to what it was charged is
//! charged as well, or given back.
//!
//! What is charged after the fact is not judged, since the work is done: a bucket takes it beyond what was left, but
//! never more than a full bucket, so that nobody waits longer than one refill. What is given back never exceeds what
//! the bucket would hold less had the request cost so much from the start. So where a part has drained from a bucket
//! that would have stood empty, it is not given back: nobody saves up more than a full bucket. Whether it would have is
//! known but for other requests whose cost is open as well; then it is rather too little that comes back.
//!
//! In the shared store the same happens in a call of its own, for which nobody waits. While it is under way, the
//! passage tells those who are decided here (see [`super::passage`]). Where it fails, this process' note takes it.

mod here;
mod open;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use smallvec::SmallVec;

use super::Limiter;
use super::bill::{self, Bill, Charges};
use super::charge::Charge;
use super::clock::Micros;
use super::decision::{Backend, Decision, Verdict, Verdicts};
use super::gcra::{Quota, Reading};
use super::places;
use super::policy::{Policy, PolicyId, Rules};
use super::share::Share;
use super::store::{SharedCharge, Store};
use super::subject::{Key, SubjectHash};
use here::{Change, Due, SettlingCall};
pub(super) use open::OpenTabs;

/// What a request was charged: which buckets, how much, and when. Empty until [`Limiter::check_on`] fills it, open
/// until it is dropped.
#[derive(Default)]
pub struct Tab {
    items: SmallVec<[Item; 2]>,
    cost: u32,
    opened_at: Micros,
    open_tabs: Option<Arc<OpenTabs>>,
}

#[derive(Clone, Copy)]
struct Item {
    policy: PolicyId,
    key: Key,
    shared: Option<SubjectHash>,
    /// What it was judged by.
    quota: Quota,
    charged: Micros,
    /// What was charged on other open tabs of the bucket: some of it may be given back yet.
    open_before: Micros,
}

impl Item {
    /// What a cost comes to where this share of the quota is served.
    fn stretched(&self, share: Share, cost: u32) -> Micros {
        share.stretch(self.quota.charge(cost), self.quota.tolerance())
    }
}

impl Tab {
    pub(super) fn open(
        &mut self,
        bill: &Bill,
        cost: u32,
        rules: &Rules,
        open_tabs: &Arc<OpenTabs>,
        now: Micros,
    ) {
        let item = |item: &bill::Item| {
            let quota = item.own.unwrap_or(rules.policy(item.policy).quota);
            let charged = quota.charge(cost);
            let open_before = open_tabs.open(item.key, charged);
            Item { policy: item.policy, key: item.key, shared: item.shared, quota, charged, open_before }
        };
        let items = bill.items.iter().map(item).collect();
        *self = Self { items, cost, opened_at: now, open_tabs: Some(Arc::clone(open_tabs)) };
    }
}

impl Drop for Tab {
    fn drop(&mut self) {
        if let Some(open_tabs) = &self.open_tabs {
            self.items.iter().for_each(|item| open_tabs.close(item.key, item.charged));
        }
    }
}

/// What a settlement came to.
pub struct Settlement {
    /// The decision as it would have been had the request cost so much from the start: for telling the client.
    pub decision: Decision,
    /// Where it was settled, or is being settled.
    pub outcome: Settling,
}

/// A settlement that is done, or under way to the shared store. Nobody needs to wait for it, but it must be polled.
pub enum Settling {
    /// Done.
    Done(Outcome),
    /// Under way.
    Asking(Pin<Box<dyn Future<Output = Outcome> + Send>>),
}

/// Where a difference was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// In this process, which decides these buckets.
    Memory,
    /// In the shared store.
    Redis,
    /// In this process' note, because the shared store did not answer or was not to be asked.
    Noted,
}

impl Outcome {
    /// Every outcome, in the order of their declaration.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Redis, Self::Noted];

    /// The word of the metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Redis => "redis",
            Self::Noted => "noted",
        }
    }
}

impl<S: Store> Limiter<S> {
    /// Settles that a request, which was admitted and whose charges are on `tab`, cost `actual` units. `None` when
    /// nothing is due. With `may_ask` unset the shared store is not asked.
    ///
    /// A policy that had no room charged nothing and is due nothing: in shadow, since enforced it would have let nothing
    /// run; and where it admits while Redis is away.
    pub fn settle(
        self: &Arc<Self>,
        tab: &Tab,
        decision: &Decision,
        actual: u32,
        may_ask: bool,
    ) -> Option<Settlement> {
        if actual == tab.cost || !decision.allowed() {
            return None;
        }
        let (now, rules) = (self.clock.now(), decision.rules());
        let mut there: SmallVec<[Due; 2]> = SmallVec::new();
        let mut outcome = None;
        let mut verdicts: Verdicts = decision.verdicts().map(|(_, verdict)| *verdict).collect();
        for verdict in verdicts.iter_mut().filter(|verdict| verdict.reading.allowed && !verdict.waived) {
            let Some(item) = tab.items.iter().find(|item| item.policy == verdict.policy) else { continue };
            let policy = rules.policy(item.policy);
            let due = self.due(item, policy, verdict, (tab, actual, now));
            verdict.reading = adjusted(policy, item, verdict, (tab.cost, actual));
            if verdict.fallback.is_some() {
                self.settle_fallback(item, policy, verdict.share, (tab, actual, now));
            }
            let Some(due) = due else { continue };
            if verdict.backend == Backend::Redis && may_ask {
                there.push(due);
                continue;
            }
            self.memory.take(due, now);
            let noted = verdict.backend == Backend::Redis;
            outcome = Some(if noted { Outcome::Noted } else { outcome.unwrap_or(Outcome::Memory) });
        }
        let outcome = if there.is_empty() {
            Settling::Done(outcome?)
        } else {
            Settling::Asking(Box::pin(Arc::clone(self).settle_everywhere(Arc::clone(rules), there)))
        };
        let overridden = decision.by_override();
        let decision = Decision::of(Arc::clone(rules), decision.revision, verdicts).overridden(overridden);
        Some(Settlement { decision, outcome })
    }

    /// What one bucket is due, if anything.
    fn due(
        &self,
        item: &Item,
        policy: &Policy,
        verdict: &Verdict,
        (tab, actual, now): (&Tab, u32, Micros),
    ) -> Option<Due> {
        let quota = item.quota;
        let span = policy.calendar.as_ref().map(|calendar| calendar.span(now, self.ahead(item.shared)));
        let units = actual.abs_diff(tab.cost);
        let share = verdict.share;
        let charge = Charge { key: item.key, quota, span, cost: units, share, enforce: false };
        // Both are cut to a full bucket, which the difference of two costs is not.
        let amount = match share {
            Share::WHOLE => charge.amount(),
            part => item.stretched(part, actual).abs_diff(item.stretched(part, tab.cost)),
        };
        let amount = amount.min(quota.tolerance());
        let change = if actual > tab.cost {
            Change::More(amount)
        } else if let Some(span) = span {
            // Of a window that is over nothing is left. The store's clock may have been in another one than ours.
            let rest = span.end.checked_sub(span.wall(tab.opened_at))?;
            let began = span.wall(tab.opened_at) >= span.start;
            let same = rest.abs_diff(verdict.reading.reset_after) < (span.end - span.start) / 2;
            Change::Less(if began && same { amount } else { 0 }, tab.opened_at)
        } else {
            // What would have been owed, had the request cost no more from the start: at least so much. For as long as
            // that has been drained, the bucket would have stood empty.
            let owed = verdict.reading.debt.saturating_sub(amount + share.scale(item.open_before));
            let owed = owed.max(item.stretched(share, actual));
            let idle = now.saturating_sub(tab.opened_at).saturating_sub(owed);
            Change::Less(amount.saturating_sub(idle), now)
        };
        let nothing = matches!(change, Change::More(0) | Change::Less(0, _));
        (!nothing).then_some(Due { policy: item.policy, shared: item.shared, charge, change })
    }

    /// Settles the fallback bucket of a request that was decided in the shared store's place.
    fn settle_fallback(
        &self,
        item: &Item,
        policy: &Policy,
        share: Share,
        (tab, actual, now): (&Tab, u32, Micros),
    ) {
        let span = policy.calendar.as_ref().map(|calendar| calendar.span(now, self.ahead(item.shared)));
        let (quota, cost) = (item.quota, actual.abs_diff(tab.cost));
        let charge = Charge { key: item.key, quota, span, cost, share, enforce: false };
        if actual > tab.cost {
            self.memory.charge_fallback_more(&charge, now);
        } else {
            // What it cost in any case has drained first.
            let owed = if span.is_none() { share.scale(quota.charge(actual)) } else { 0 };
            self.memory.refund_fallback(&charge, tab.opened_at.saturating_add(owed), now);
        }
    }

    /// Gives back what these buckets of one place were charged for a request that was then denied elsewhere: as if it had
    /// turned out to cost nothing.
    pub(super) fn give_back<'i>(
        self: &Arc<Self>,
        rules: &Arc<Rules>,
        charged: impl Iterator<Item = (&'i bill::Item, Reading)>,
        cost: u32,
        charged_at: Micros,
    ) {
        let now = self.clock.now();
        let mut tab = Tab::default();
        (tab.cost, tab.opened_at) = (cost, charged_at);
        let dues: SmallVec<[Due; 2]> = charged
            .filter_map(|(item, reading)| {
                let policy = rules.policy(item.policy);
                let verdict = item.verdict(Backend::Redis, None, reading);
                let bill::Item { policy: id, key, shared, own, .. } = *item;
                let quota = own.unwrap_or(policy.quota);
                let item =
                    Item { policy: id, key, shared, quota, charged: quota.charge(cost), open_before: 0 };
                self.due(&item, policy, &verdict, (&tab, 0, now))
            })
            .collect();
        let Some(store) = self.store.as_ref().filter(|_| !dues.is_empty()) else { return };
        let refund = Arc::clone(self).settle_there(Arc::clone(rules), dues.clone());
        if !store.behind(refund) {
            dues.into_iter().for_each(|due| self.memory.take(due, now));
        }
    }

    /// Settles in each place of the shared store at the same time.
    async fn settle_everywhere(self: Arc<Self>, rules: Arc<Rules>, dues: SmallVec<[Due; 2]>) -> Outcome {
        let place = |due: &Due| Some(self.store.as_ref()?.place(due.shared?));
        let mut places: Vec<(Option<u16>, SmallVec<[Due; 2]>)> = Vec::new();
        for due in dues {
            let place = place(&due);
            match places.iter_mut().find(|(other, _)| *other == place) {
                Some((_, dues)) => dues.push(due),
                None => places.push((place, SmallVec::from_iter([due]))),
            }
        }
        let settled =
            places.into_iter().map(|(_, dues)| Arc::clone(&self).settle_there(Arc::clone(&rules), dues));
        // What was noted here alone is the greatest.
        places::all(settled).await.into_iter().max_by_key(|outcome| *outcome as u8).unwrap_or(Outcome::Noted)
    }

    /// Settles in one place of the shared store. The whole request is due more, or all of it less.
    async fn settle_there(self: Arc<Self>, rules: Arc<Rules>, mut dues: SmallVec<[Due; 2]>) -> Outcome {
        let now = self.clock.now();
        dues.iter_mut().for_each(|due| due.age(now));
        let charges: Charges = dues.iter().map(|due| due.charge).collect();
        let back = dues.iter().all(|due| matches!(due.change, Change::Less(..)));
        let passage = self.memory.depart(&charges, back, now);
        let call = SettlingCall::of(&self.memory, &self.clock, passage, &dues, back);
        let shared: Option<SmallVec<[SharedCharge<'_>; 2]>> = dues
            .iter()
            .zip(call.notes())
            .map(|(due, (note, span))| {
                let (note, change) = match due.change {
                    Change::More(amount) => (note, amount as i64),
                    // The note holds what is given back here, and would undo it there.
                    Change::Less(amount, _) => (0, -(amount as i64)),
                };
                Some(SharedCharge {
                    policy: &rules.policy(due.policy).name,
                    subject: due.shared?,
                    quota: due.charge.quota,
                    span,
                    cost: due.charge.cost,
                    enforce: false,
                    note,
                    change: Some(change),
                })
            })
            .collect();
        let charged = match (&self.store, &shared) {
            (Some(store), Some(shared)) => store.charge(shared, false, now).await.ok(),
            _ => None,
        };
        call.end(charged)
    }
}

/// What a bucket would have said of a request that cost `actual` rather than `cost`.
fn adjusted(policy: &Policy, item: &Item, verdict: &Verdict, (cost, actual): (u32, u32)) -> Reading {
    let (reading, share) = (verdict.reading, verdict.share);
    let (before, after) = (item.stretched(share, cost), item.stretched(share, actual));
    let debt = reading.debt.saturating_add(after).saturating_sub(before);
    let mut said = item.quota.reading(debt, actual, true);
    if share != Share::WHOLE {
        // What is left of the share is known in whole units only.
        let left = reading.remaining.saturating_add(cost).saturating_sub(actual);
        said.remaining = said.remaining.min(left);
    }
    if policy.calendar.is_some() { said.ending_in(reading.reset_after) } else { said }
}

#[cfg(test)]
mod tests;
