//! What a request cost, when only the one who answers it knows: in a header of the answer.
//!
//! Whoever sets that header sets the price. So nobody is believed unless it is asked for, and only the service inside:
//! one that hands on headers of its clients would let them name their own.

use std::sync::Arc;

use actix_web::http::header::{HeaderMap, HeaderName};
use tokio::sync::Semaphore;

use crate::limiter::Limiter;
use crate::limiter::decision::Decision;
use crate::limiter::event::{Event, Observer};
use crate::limiter::settle::{Settling, Tab};
use crate::limiter::store::Store;

/// The most settlements that are under way to the shared store at once; beyond it this process' note takes them.
const MOST_UNDER_WAY: usize = 1_000;
/// How much of a malformed value is told, in characters.
const LONGEST_QUOTE: usize = 40;

/// Settles what answers say that they cost.
#[derive(Clone)]
pub struct Costs {
    header: HeaderName,
    observer: Arc<dyn Observer>,
    under_way: Arc<Semaphore>,
}

impl Costs {
    /// Told in this header of an answer, as whole units; `observer` hears what becomes of them.
    pub fn told_in(header: HeaderName, observer: Arc<dyn Observer>) -> Self {
        Self { header, observer, under_way: Arc::new(Semaphore::new(MOST_UNDER_WAY)) }
    }

    /// Takes the header off an answer and settles what it says. Returns the decision to tell the client of, when it is
    /// another.
    pub(super) fn settle<S: Store>(
        &self,
        limiter: &Arc<Limiter<S>>,
        tab: &Tab,
        decision: &Decision,
        headers: &mut HeaderMap,
    ) -> Option<Decision> {
        let cost = self.take(headers)?;
        let permit = Arc::clone(&self.under_way).try_acquire_owned().ok();
        let settlement = limiter.settle(tab, decision, cost, permit.is_some())?;
        let observer = Arc::clone(&self.observer);
        match settlement.outcome {
            Settling::Done(outcome) => observer.observe(&Event::CostSettled(outcome)),
            Settling::Asking(asking) => {
                actix_web::rt::spawn(async move {
                    let outcome = asking.await;
                    drop(permit);
                    observer.observe(&Event::CostSettled(outcome));
                });
            }
        }
        Some(settlement.decision)
    }

    /// The cost that an answer tells, without what tells it.
    fn take(&self, headers: &mut HeaderMap) -> Option<u32> {
        let mut values = headers.remove(&self.header);
        let (first, second) = (values.next()?, values.next());
        // Two costs are none: which of them counts is not ours to guess.
        let cost = if second.is_none() { units(first.as_bytes()) } else { None };
        if cost.is_none() {
            let text = String::from_utf8_lossy(second.as_ref().unwrap_or(&first).as_bytes());
            let value: String = text.chars().take(LONGEST_QUOTE).collect();
            self.observer.observe(&Event::CostMalformed { value: &value });
        }
        cost
    }
}

/// Whole units in digits, capped at the greatest that there is.
fn units(value: &[u8]) -> Option<u32> {
    let digits = value.trim_ascii();
    let number = digits.iter().try_fold(0u32, |number, &byte| {
        let digit = byte.is_ascii_digit().then(|| u32::from(byte - b'0'))?;
        Some(number.saturating_mul(10).saturating_add(digit))
    });
    number.filter(|_| !digits.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_digits_and_capped_and_nothing_else_is_one() {
        for (text, wanted) in [
            ("0", Some(0)),
            (" 7\t", Some(7)),
            ("007", Some(7)),
            ("4294967295", Some(u32::MAX)),
            ("4294967296", Some(u32::MAX)),
            ("99999999999999999999999999999999", Some(u32::MAX)),
            ("", None),
            (" ", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("1e3", None),
            ("0x10", None),
            ("1, 2", None),
            ("٣", None),
        ] {
            assert_eq!(units(text.as_bytes()), wanted, "{text:?}");
        }
    }
}
