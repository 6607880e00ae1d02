//! Which change was made on top of which, as far as it can be known from outside. A change that is bound to a tag was made on
//! top of the record that had the tag. What a change without a tag was made on top of is one of the records that its
//! instance showed around that moment.

use crate::history::{Call, History, Origin, Seen, Victim};
use crate::plan::Op;

/// More steps than a chain of changes has.
const LONGEST: usize = 200;

impl History {
    /// Whether the change `later` may have been made on top of one that was made on top of `earlier`.
    pub fn may_have_seen(&self, later: usize, earlier: usize) -> bool {
        self.chain_may_hold(later, earlier, LONGEST)
    }

    fn chain_may_hold(&self, later: usize, earlier: usize, left: usize) -> bool {
        let (Some(call), Some(wanted)) = (self.call(later), self.call(earlier)) else { return true };
        if later == earlier || left == 0 {
            return true;
        }
        if wanted.start > call.end {
            return false;
        }
        let parents = match &call.parent {
            Some(parent) => vec![parent],
            None => match self.shown_around(call) {
                Some(parents) => parents,
                None => return true,
            },
        };
        parents.into_iter().any(|parent| {
            self.has_taken_in(parent, wanted)
                || match parent.origin() {
                    Origin::Op(op) if op == earlier => true,
                    // Made once more on top of something else, which cannot be seen: of anything that was there before.
                    Origin::Op(op) if self.is_repeated(op, parent) => {
                        wanted.start <= self.first_shown(parent)
                    }
                    Origin::Op(op) => self.chain_may_hold(op, earlier, left - 1),
                    Origin::Stands => wanted.start <= self.first_shown(parent),
                    Origin::Env => !parent.is_initial() && wanted.start <= self.first_shown(parent),
                    Origin::Other => true,
                }
        })
    }

    /// Whether an instance that had a lowering has taken this record for it, which is as low: from then on the lowering is
    /// known with it.
    fn has_taken_in(&self, record: &Seen, lowering: &Call) -> bool {
        let Some(made) = lowering.made().filter(|made| record.wanted() <= made.wanted()) else {
            return false;
        };
        let had_it = |at: usize, moment: f64| {
            let by_answer = at == lowering.at && lowering.end < moment;
            by_answer
                || self
                    .looks
                    .iter()
                    .any(|look| look.at == at && look.got < moment && look.record.is_same(made))
        };
        self.looks
            .iter()
            .any(|look| look.sent > lowering.end && look.record.is_same(record) && had_it(look.at, look.sent))
    }

    /// Whether a record has the content of a change and is not the one that the change made.
    pub fn is_repeated(&self, op: usize, record: &Seen) -> bool {
        self.call(op).and_then(Call::made).is_some_and(|made| made.order() != record.order())
    }

    /// The records that the instance of a change without a tag may have had at its moment; `None`: it may have had any.
    fn shown_around(&self, call: &Call) -> Option<Vec<&Seen>> {
        if call.end.is_infinite() {
            return None;
        }
        let looks = || self.looks.iter().filter(|look| (look.at, look.life) == (call.at, call.life));
        let before = looks().filter(|look| look.got < call.start).map(|look| look.sent).reduce(f64::max)?;
        let after = looks().filter(|look| look.sent > call.end).map(|look| look.got).reduce(f64::min)?;
        // Something that was held back arrives when a way is mended.
        let concerns = |victim| match victim {
            Victim::ToRedis(at) | Victim::Process(at) => at == call.at,
            Victim::Between(one, other) => one == call.at || other == call.at,
            Victim::Redis => true,
            Victim::Disk(_) => false,
        };
        let mended = |at: f64| (before - 1.5..=after).contains(&at);
        if self.troubles.iter().any(|trouble| concerns(trouble.victim) && mended(trouble.to)) {
            return None;
        }
        let mut shown: Vec<&Seen> = looks()
            .filter(|look| look.got >= before && look.sent <= after)
            .map(|look| &look.record)
            .filter(|record| record.origin() != Origin::Op(call.number))
            .collect();
        let others = self.calls.iter().filter(|other| other.number != call.number && other.may_count());
        for other in others.filter(|other| other.start <= after && other.end >= before) {
            match other.made() {
                Some(made) => shown.push(made),
                None if other.end.is_infinite() => return None,
                None => {}
            }
        }
        Some(shown)
    }

    /// Whether a change was certainly made on top of a record with this origin, or of one that was.
    pub fn has_surely_seen(&self, later: usize, origin: Origin) -> bool {
        let mut at = later;
        for _ in 0..LONGEST {
            let Some(parent) = self.call(at).and_then(|call| self.surely_on(call)) else { return false };
            if parent.origin() == origin {
                return true;
            }
            let Origin::Op(op) = parent.origin() else { return false };
            if op == at || self.is_repeated(op, parent) {
                return false;
            }
            at = op;
        }
        false
    }

    /// The record on top of which a change was certainly made: that of its tag, or the only one that its instance showed.
    fn surely_on<'a>(&'a self, call: &'a Call) -> Option<&'a Seen> {
        if let Some(parent) = &call.parent {
            return Some(parent);
        }
        let shown = self.shown_around(call)?;
        let first = *shown.first()?;
        shown.iter().all(|other| other.is_same(first)).then_some(first)
    }

    /// Whether a record is a lowering that was made once more, on top of another record than this one.
    pub fn stands_above_another(&self, record: &Seen, made: &Seen) -> bool {
        let once_more = match record.origin() {
            Origin::Op(op) => self.is_repeated(op, record),
            origin => origin == Origin::Stands,
        };
        let base =
            |other: &Seen| (other.epoch + 1, other.revision + 1) == record.order() && !other.is_same(made);
        once_more
            && (self.looks.iter().any(|look| base(&look.record))
                || self.calls.iter().filter_map(Call::made).any(base))
    }

    /// Whether a lowering to this share that a change did not certainly follow may have been made once more.
    pub fn may_stand_above(&self, share: f64, later: Option<usize>) -> bool {
        let lowers = |call: &&Call| match (call.made(), call.op) {
            (Some(made), _) => (made.wanted() - share).abs() < 1e-9,
            (None, Op::Rollback) => call.may_count() && share == 0.0,
            (None, Op::Set(set)) => {
                call.may_count() && (f64::from(set.percent) <= share || set.flag.is_some())
            }
            _ => false,
        };
        let unseen = |call: &Call| {
            later.is_none_or(|later| {
                later != call.number && !self.has_surely_seen(later, Origin::Op(call.number))
            })
        };
        // The environment lowers as well.
        self.lives.iter().any(|life| (f64::from(life.percent) - share).abs() < 1e-9)
            || self.calls.iter().filter(lowers).any(unseen)
    }

    /// The changes that lowered the share, were answered, and made the record.
    pub fn lowerings(&self) -> impl Iterator<Item = (&Call, &Seen)> {
        self.calls.iter().filter_map(|call| {
            let made = call.made()?;
            let lowers = match call.op {
                Op::Rollback => true,
                Op::Set(_) => call
                    .parent
                    .as_ref()
                    .is_some_and(|parent| made.wanted() < parent.wanted().min(parent.in_force)),
                _ => false,
            };
            lowers.then_some((call, made))
        })
    }

    /// Whether the environment may have set this share, on top of a change that began at `since`. It may when a process
    /// with that value had its first contact after that moment, with a value that is new to its own disk. To raise above a
    /// lowering, no process may have had contact with that value before.
    pub fn environment_may_set(&self, percent: f64, since: f64, raises: bool) -> bool {
        let of_value: Vec<_> =
            self.lives.iter().filter(|life| (f64::from(life.percent) - percent).abs() < 1e-9).collect();
        let contacts = || of_value.iter().map(|life| self.contact(life));
        if raises && contacts().any(|contact| contact < since) {
            return false;
        }
        of_value.iter().any(|life| self.is_news(life) && self.contact(life) >= since)
    }

    /// Whether the share may be this high after a lowering: some change on top of it, or a value of the environment that was
    /// new after it, raised as far. What lowered again later may have been made apart.
    pub fn may_be_raised_to(&self, share: f64, lowering: &Call) -> bool {
        let raised =
            self.calls.iter().filter(|call| call.may_count() && call.number != lowering.number).any(|call| {
                matches!(call.op, Op::Set(set) if f64::from(set.percent) >= share)
                    && self.may_have_seen(call.number, lowering.number)
            });
        let mut values =
            self.lives.iter().map(|life| f64::from(life.percent)).filter(|percent| *percent >= share);
        raised || values.any(|percent| self.environment_may_set(percent, lowering.start, true))
    }

    /// Whether a process was started with another percentage than the one before it on the same disk, as far as the disk
    /// can know.
    pub fn is_news(&self, life: &crate::history::Life) -> bool {
        let before = self.lives.iter().find(|one| one.at == life.at && one.life + 1 == life.life);
        let knows = |one: &crate::history::Life| one.to - one.from > 3.0 && self.disk_is_sound(one.at);
        before.is_none_or(|one| one.percent != life.percent || life.fresh || !knows(one))
    }
}
