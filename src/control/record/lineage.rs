//! What the author of a record had seen: for each instance the last of its changes, and its last lowering. A lowering that
//! a record's lineage does not contain was made without the author's knowledge, whatever the epochs say.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde::{Deserialize, Serialize};

/// So many instances are listed; those whose last change is the oldest go first. An instance that never changed anything
/// is not listed.
const MOST: usize = 64;

/// Which process made a change: drawn at each start, so that a disk that was copied or put back repeats none.
pub type Origin = u64;

/// The epoch and the revision of a change. Of one origin each change has a higher one than the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    /// Of the record that the change made.
    pub epoch: u64,
    /// Of the record that the change made.
    pub revision: u64,
}

/// A change that lowered the share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lowering {
    /// Which change.
    pub at: Stamp,
    /// The share that it left, in hundredths of a percent.
    pub points: u16,
}

/// The changes of one origin, by the last of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// Its last change.
    pub last: Stamp,
    /// Its last change that lowered.
    pub lowered: Option<Lowering>,
}

/// Origins with their marks. Two of them join to one that contains what either does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Row>", into = "Vec<Row>")]
pub struct Marks(BTreeMap<Origin, Mark>);

/// The changes that a record follows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// Every change of an epoch below this one counts as contained: an older version wrote the record, or the origin is no
    /// longer listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub below: u64,
    /// The changes that are listed.
    pub marks: Marks,
}

/// A mark as it is written: the origin in hexadecimal digits, which no parser of JSON rounds; the last change; the last
/// lowering.
type Row = (String, u64, u64, Option<(u64, u64, u16)>);

impl Marks {
    /// Whether it contains the change `at` of an origin.
    pub fn contain(&self, origin: Origin, at: Stamp) -> bool {
        self.0.get(&origin).is_some_and(|mark| mark.last >= at)
    }

    /// Adds a mark: of two of one origin the later one stays, which contains the other.
    pub fn add(&mut self, origin: Origin, mark: Mark) {
        match self.0.entry(origin) {
            Entry::Vacant(place) => _ = place.insert(mark),
            Entry::Occupied(mut place) => _ = place.insert(mark.max(*place.get())),
        }
    }

    /// Adds all of the others.
    pub fn join(&mut self, others: &Self) {
        others.iter().for_each(|(origin, mark)| self.add(origin, mark));
    }

    /// Each origin with its mark.
    pub fn iter(&self) -> impl Iterator<Item = (Origin, Mark)> {
        self.0.iter().map(|(origin, mark)| (*origin, *mark))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The lowest share that a lowering among them left, in hundredths of a percent.
    pub fn lowest(&self) -> Option<u16> {
        self.iter().filter_map(|(_, mark)| Some(mark.lowered?.points)).min()
    }

    /// Keeps the lowerings that `lineage` does not contain, and of each mark only that: what its origin has done since is
    /// not a part of what is unheard.
    pub(super) fn keep_unknown_to(&mut self, lineage: &Lineage) {
        self.0.retain(|origin, mark| {
            let Some(lowered) = mark.lowered else { return false };
            mark.last = lowered.at;
            !lineage.contains(*origin, lowered.at)
        });
    }

    /// Removes the oldest until no more than [`MOST`] are left. The highest epoch of those removed.
    fn bound(&mut self) -> Option<u64> {
        let mut removed = None;
        while self.0.len() > MOST {
            let oldest = self.0.iter().min_by_key(|(origin, mark)| (mark.last, **origin));
            let Some(origin) = oldest.map(|(origin, _)| *origin) else { break };
            let mark = self.0.remove(&origin);
            removed = removed.max(mark.map(|mark| mark.last.epoch));
        }
        removed
    }
}

impl Lineage {
    /// That of a record of a version which wrote none: such a version compared epochs alone.
    pub(super) fn of_older_version(epoch: u64) -> Self {
        Self { below: epoch.saturating_add(1), marks: Marks::default() }
    }

    /// Whether the change `at` of an origin is one that the record follows.
    pub fn contains(&self, origin: Origin, at: Stamp) -> bool {
        at.epoch < self.below || self.marks.contain(origin, at)
    }

    /// Contains what either contains.
    pub(super) fn join(&mut self, other: &Self) {
        self.below = self.below.max(other.below);
        self.marks.join(&other.marks);
    }

    /// With one more change, and all of `unheard`.
    pub(super) fn with(mut self, unheard: &Marks, origin: Origin, mark: Mark) -> Self {
        self.marks.join(unheard);
        // An origin that lowered before has done so still.
        let before = self.marks.0.get(&origin).and_then(|known| known.lowered);
        self.marks.add(origin, Mark { lowered: mark.lowered.or(before), ..mark });
        if let Some(epoch) = self.marks.bound() {
            self.below = self.below.max(epoch.saturating_add(1));
        }
        self
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl From<Vec<Row>> for Marks {
    fn from(rows: Vec<Row>) -> Self {
        let mut marks = Self::default();
        for (origin, epoch, revision, lowered) in rows {
            // What is no origin was written by no instance.
            let Ok(origin) = Origin::from_str_radix(&origin, 16) else { continue };
            let lowered =
                lowered.map(|(epoch, revision, points)| Lowering { at: Stamp { epoch, revision }, points });
            marks.add(origin, Mark { last: Stamp { epoch, revision }, lowered });
        }
        marks.bound();
        marks
    }
}

impl From<Marks> for Vec<Row> {
    fn from(marks: Marks) -> Self {
        let lowered = |lowered: Lowering| (lowered.at.epoch, lowered.at.revision, lowered.points);
        marks
            .iter()
            .map(|(origin, mark)| {
                (format!("{origin:016x}"), mark.last.epoch, mark.last.revision, mark.lowered.map(lowered))
            })
            .collect()
    }
}
