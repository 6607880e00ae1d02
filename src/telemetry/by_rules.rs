//! Tables that follow the rules: one for each set of rules by which something is still decided or told.
//!
//! Requests that were judged by the rules of yesterday end after new ones are in force. Each is counted by the table of
//! its own rules, so that a policy's place in one set is never taken for the same place in another.

use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::limiter::policy::Rules;

/// The tables, the newest first.
pub(super) struct ByRules<T> {
    tables: ArcSwap<Vec<Entry<T>>>,
    /// Held while `tables` is exchanged.
    changing: Mutex<()>,
}

struct Entry<T> {
    /// Weak, so that rules end with their last decision. It still keeps their place in memory from being given to
    /// others, which is why a pointer is enough to know them by.
    rules: Weak<Rules>,
    table: Arc<T>,
}

impl<T> Clone for Entry<T> {
    fn clone(&self) -> Self {
        Self { rules: Weak::clone(&self.rules), table: Arc::clone(&self.table) }
    }
}

impl<T> ByRules<T> {
    /// Follows `rules` from now on.
    pub(super) fn new(rules: &Arc<Rules>, table: T) -> Self {
        let first = Entry { rules: Arc::downgrade(rules), table: Arc::new(table) };
        Self { tables: ArcSwap::from_pointee(vec![first]), changing: Mutex::new(()) }
    }

    /// Uses the table of `rules`, by which somebody has decided. It is there unless they came unannounced.
    pub(super) fn with(&self, rules: &Arc<Rules>, make: impl FnOnce() -> T, job: impl FnOnce(&T)) {
        match self.tables.load().iter().find(|entry| entry.is_of(rules)) {
            Some(entry) => job(&entry.table),
            None => job(&self.add(rules, make, false)),
        }
    }

    /// Makes the table of `rules`, which are about to be in force.
    pub(super) fn announce(&self, rules: &Arc<Rules>, make: impl FnOnce() -> T) {
        self.add(rules, make, true);
    }

    /// The table of `rules`, made unless there is one; the newest if it is to be so.
    fn add(&self, rules: &Arc<Rules>, make: impl FnOnce() -> T, newest: bool) -> Arc<T> {
        let _changing = self.changing.lock();
        let mut tables = self.tables.load().to_vec();
        let entry = match tables.iter().position(|entry| entry.is_of(rules)) {
            Some(place) if newest => tables.remove(place),
            Some(place) => return Arc::clone(&tables[place].table),
            None => Entry { rules: Arc::downgrade(rules), table: Arc::new(make()) },
        };
        let table = Arc::clone(&entry.table);
        tables.insert(if newest { 0 } else { tables.len() }, entry);
        self.tables.store(Arc::new(tables));
        table
    }

    /// Drops the tables by whose rules nothing is decided or told any more. `forget` is given each of them, with those
    /// that stay, before anybody can make another.
    pub(super) fn drop_idle(&self, mut forget: impl FnMut(&T, &[&T])) {
        if self.tables.load().len() == 1 {
            return;
        }
        let _changing = self.changing.lock();
        let tables = self.tables.load();
        // The newest may have been announced and not be in force yet.
        let (kept, idle): (Vec<_>, Vec<_>) = tables
            .iter()
            .enumerate()
            .partition(|(place, entry)| *place == 0 || entry.rules.strong_count() > 0);
        if idle.is_empty() {
            return;
        }
        let staying: Vec<&T> = kept.iter().map(|(_, entry)| &*entry.table).collect();
        idle.iter().for_each(|(_, entry)| forget(&entry.table, &staying));
        self.tables.store(Arc::new(kept.into_iter().map(|(_, entry)| entry.clone()).collect()));
    }
}

impl<T> Entry<T> {
    fn is_of(&self, rules: &Arc<Rules>) -> bool {
        std::ptr::eq(self.rules.as_ptr(), Arc::as_ptr(rules))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lives_as_long_as_something_is_decided_by_its_rules() {
        let rules: [Arc<Rules>; 3] = std::array::from_fn(|_| Arc::default());
        let tables = ByRules::new(&rules[0], 0);
        let [old, middle, new] = rules;
        tables.announce(&middle, || 1);
        tables.announce(&new, || 2);
        let used = |rules: &Arc<Rules>| {
            let mut used = None;
            tables.with(rules, || 9, |&table| used = Some(table));
            used
        };
        assert_eq!((used(&old), used(&middle), used(&new)), (Some(0), Some(1), Some(2)));
        let mut dropped: Vec<i32> = Vec::new();
        tables.drop_idle(|&table, _| dropped.push(table));
        assert!(dropped.is_empty());
        drop(middle);
        tables.drop_idle(|&table, staying| {
            dropped.push(table);
            assert_eq!(staying, [&2, &0]);
        });
        assert_eq!(dropped, [1]);
        assert_eq!((used(&old), used(&new)), (Some(0), Some(2)));
        let unannounced = Arc::default();
        assert_eq!(used(&unannounced), Some(9), "rules that came unannounced have a table as well");
        drop((old, new, unannounced));
        tables.drop_idle(|_, _| {});
        assert_eq!(tables.tables.load().len(), 1, "the newest stays");
    }
}
