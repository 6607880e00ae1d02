//! The charges of a request by the place of the shared store that they go to. A single server is one place; of a cluster
//! subjects of different slots are asked about at the same time, each in a call with an outcome of its own.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use smallvec::SmallVec;

use super::Limiter;
use super::bill::{Bill, Charges, Item, denied};
use super::charge::Charge;
use super::clock::{Clock, Micros};
use super::memory::Memory;
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

/// What memory charged for a request that the shared store has yet to admit. Refunded when it is dropped without
/// [`ChargedHere::keep`]: a place denied or refused, or the decision ends without an outcome.
pub(super) struct ChargedHere<'a> {
    memory: &'a Memory,
    clock: &'a Clock,
    charges: &'a [Charge],
    readings: &'a Readings,
    at: Micros,
    refunds: bool,
}

impl<'a> ChargedHere<'a> {
    /// The `charges` that memory answered with `readings` at this instant. A peek charged nothing.
    pub(super) fn of(
        memory: &'a Memory,
        clock: &'a Clock,
        (charges, readings): (&'a [Charge], &'a Readings),
        at: Micros,
        peek: bool,
    ) -> Self {
        Self { memory, clock, charges, readings, at, refunds: !peek }
    }

    /// The request is admitted: the charges stay.
    pub(super) fn keep(mut self) {
        self.refunds = false;
    }
}

impl Drop for ChargedHere<'_> {
    fn drop(&mut self) {
        if self.refunds && !self.charges.is_empty() {
            self.memory.refund(self.charges, self.readings, self.at, self.clock.now());
        }
    }
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
            Some(_) => {
                let now = self.clock.now();
                self.memory.refund(here, readings, charged_at, now);
                let charged = here.iter().zip(readings).filter(|(_, reading)| reading.allowed);
                charged.for_each(|(charge, _)| self.memory.refund_fallback(charge, charged_at, now));
            }
            None if denied(&part.charges, readings) => {}
            None => {
                let charged = part.items.iter().zip(readings).filter(|(_, reading)| reading.allowed);
                let charged = charged.map(|(item, reading)| (*item, *reading));
                self.give_back(rules, charged, cost, charged_at);
            }
        }
    }
}

/// One of several that are waited for.
enum Awaited<F: Future> {
    UnderWay(Pin<Box<F>>),
    Done(F::Output),
}

/// Waits for all of them at the same time.
pub(super) async fn all<F: Future>(futures: impl Iterator<Item = F>) -> SmallVec<[F::Output; 1]> {
    let mut awaited: Vec<Awaited<F>> = futures.map(|future| Awaited::UnderWay(Box::pin(future))).collect();
    poll_fn(|context| {
        let mut all = Poll::Ready(());
        for one in &mut awaited {
            if let Awaited::UnderWay(future) = one {
                match future.as_mut().poll(context) {
                    Poll::Ready(output) => *one = Awaited::Done(output),
                    Poll::Pending => all = Poll::Pending,
                }
            }
        }
        all
    })
    .await;
    let outputs = awaited.into_iter().filter_map(|one| match one {
        Awaited::Done(output) => Some(output),
        Awaited::UnderWay(_) => None,
    });
    outputs.collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn all_are_under_way_at_once_and_answer_in_their_order() {
        let (begun, open) = (Cell::new(0), Cell::new(false));
        let one = |number: u32| {
            let (begun, open) = (&begun, &open);
            async move {
                begun.set(begun.get() + 1);
                poll_fn(|_| if open.get() || number == 1 { Poll::Ready(()) } else { Poll::Pending }).await;
                number
            }
        };
        let mut waiting = Box::pin(all((0..4).map(one)));
        let mut context = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        assert_eq!(begun.get(), 4, "none waits for another");
        open.set(true);
        let Poll::Ready(numbers) = waiting.as_mut().poll(&mut context) else { panic!("all are done") };
        assert_eq!(numbers.as_slice(), [0, 1, 2, 3]);
    }
}
