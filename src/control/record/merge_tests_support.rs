//! Changes as tests make them without a running instance.

use super::{Origin, Record, Register};
use crate::limiter::decision::Backend;
use crate::limiter::rollout::Percent;

/// A change of an instance as [`super::Steering`] makes it.
pub(super) fn changed(
    register: &Register,
    origin: Origin,
    (backend, percent): (Backend, Percent),
    rolls_back: bool,
) -> Register {
    let record = &register.record;
    let mut next = record.followed_by(backend, percent, "ana", "a test");
    if rolls_back {
        next.epoch = Record::after(record.epoch);
    }
    let lowers = next.epoch > record.epoch;
    let record = next.made_by(origin, register, lowers);
    let mut unheard = register.unheard.clone();
    unheard.keep_unknown_to(&record.follows());
    Register { record, unheard, seen: register.seen.clone() }
}
