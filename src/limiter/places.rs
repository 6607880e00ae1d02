//! The charges of a request by the place of the shared store that they go to. A single server is one place; of a cluster
//! subjects of different slots are asked about at the same time, each in a call with an outcome of its own.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use smallvec::SmallVec;

use super::Limiter;
use super::bill::{Bill, Charges, Item, denied};
use super::clock::Micros;
use super::policy::Rules;
use super::rollout::Arm;
use super::store::{FaultKind, Readings, Store};

/// What one place is charged.
pub(super) struct Part<'b> {
    pub(super) items: SmallVec<[&'b Item; 2]>,
    pub(super) charges: Charges,
}

/// What became of it.
pub(super) struct Answered {
    pub(super) readings: Readings,
    /// Why memory decided in its place,
    pub(super) fault: Option<FaultKind>,
    /// and what that was charged then.
    pub(super) here: Charges,
}

/// Who pays what for a request, and when.
#[derive(Clone, Copy)]
pub(super) struct Payment<'r> {
    pub(super) rules: &'r Arc<Rules>,
    pub(super) cost: u32,
    pub(super) charged_at: Micros,
}

impl<S: Store> Limiter<S> {
    /// The charges of the canary by their place; nearly always there is one.
    pub(super) fn parts<'b>(&self, bill: &'b Bill, payment: Payment<'_>) -> SmallVec<[Part<'b>; 1]> {
        let mut parts: SmallVec<[(u16, Part<'b>); 1]> = SmallVec::new();
        for item in bill.items.iter().filter(|item| item.arm == Arm::Canary) {
            let charge = self.charge(item, payment.rules, payment.cost, payment.charged_at);
            let place = self.store.as_ref().zip(item.shared).map(|(store, subject)| store.place(subject));
            let place = place.unwrap_or_default();
            match parts.iter_mut().find(|(other, _)| *other == place) {
                Some((_, part)) => {
                    part.items.push(item);
                    part.charges.push(charge);
                }
                None => {
                    let items = SmallVec::from_iter([item]);
                    parts.push((place, Part { items, charges: SmallVec::from_iter([charge]) }));
                }
            }
        }
        parts.into_iter().map(|(_, part)| part).collect()
    }

    /// Another part was denied, or refused to be decided: what this one was charged is given back, in the background where it
    /// was charged there.
    pub(super) fn take_back(
        self: &Arc<Self>,
        part: &Part<'_>,
        answered: &Answered,
        Payment { rules, cost, charged_at }: Payment<'_>,
    ) {
        let Answered { readings, fault, here } = answered;
        match fault {
            // All of it or nothing.
            Some(_) if denied(here, readings) => {}
            Some(_) => self.memory.refund(here, readings, charged_at, self.clock.now()),
            None if denied(&part.charges, readings) => {}
            None => {
                let charged = part.items.iter().zip(readings).filter(|(_, reading)| reading.allowed);
                let charged = charged.map(|(item, reading)| (*item, *reading));
                self.give_back(rules, charged, cost, charged_at);
            }
        }
    }
}

/// Waits for all of them at the same time.
pub(super) async fn all<F: Future>(futures: impl Iterator<Item = F>) -> SmallVec<[F::Output; 1]> {
    let mut waiting: SmallVec<[Result<F::Output, Pin<Box<F>>>; 4]> =
        futures.map(|future| Err(Box::pin(future))).collect();
    poll_fn(|context| {
        for one in &mut waiting {
            if let Err(future) = one
                && let Poll::Ready(output) = future.as_mut().poll(context)
            {
                *one = Ok(output);
            }
        }
        if waiting.iter().all(Result::is_ok) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    waiting.into_iter().filter_map(Result::ok).collect()
}
