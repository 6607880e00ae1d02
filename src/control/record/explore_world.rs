//! Three instances with disks and a Redis that may lose everything, for `explore_tests.rs`: what they do at each step, by the
//! functions that decide for a running instance, and beside that, as plain sets, which changes the author of each record knew.

use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use super::merge_tests_support::changed;
use super::tests::points;
use super::*;

pub(super) const NODES: usize = 3;

/// A change: of which origin, and its stamp.
pub(super) type Id = (Origin, u64, u64);

#[derive(Clone)]
pub(super) struct Node {
    pub(super) register: Register,
    /// What its author's record knew, by the record; and what this instance knows.
    pub(super) knows: BTreeSet<Id>,
    pub(super) author_knew: BTreeSet<Id>,
    /// What the disk keeps of both, and the variables of the last start.
    own: RememberedEnv,
    unasked: Option<RememberedEnv>,
    settled: bool,
    has_memory: bool,
    seen_before: Option<Seen>,
    env: u16,
    is_cut: bool,
    origin: Origin,
}

#[derive(Clone)]
pub(super) struct Shared {
    pub(super) register: Register,
    pub(super) knows: BTreeSet<Id>,
    pub(super) author_knew: BTreeSet<Id>,
}

#[derive(Clone)]
pub(super) struct World {
    pub(super) nodes: Vec<Node>,
    pub(super) redis: Option<Shared>,
    lowerings: BTreeSet<(Id, u16)>,
    starts: u64,
    /// Values of the environment that the author of a lowering had seen.
    lowered_from: BTreeSet<(Id, u16)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Step {
    Raise(usize),
    Lower(usize),
    RollBack(usize),
    /// With Redis.
    Beat(usize),
    /// Two by themselves.
    Meet(usize, usize),
    Cut(usize),
    Restart(usize),
    Redeploy(usize),
    LoseDisk(usize),
    Flush,
}

impl Node {
    fn environment(&self) -> Environment {
        Environment { percent: Some(points(self.env)), ..Environment::default() }
    }

    pub(super) fn shared(&self) -> Shared {
        let Self { register, knows, author_knew, .. } = self.clone();
        Shared { register, knows, author_knew }
    }
}

impl World {
    pub(super) fn new() -> Self {
        let mut record = Record::initial(points(50), "start");
        record.updated_at = DateTime::UNIX_EPOCH;
        let mut register = Register::new(record);
        register.seen.add(Value::Percent(points(50)), 0);
        let own = RememberedEnv { backend: None, percent: Some(points(50)) };
        let node = |origin: usize| Node {
            register: register.clone(),
            knows: BTreeSet::new(),
            author_knew: BTreeSet::new(),
            own,
            unasked: None,
            settled: true,
            has_memory: true,
            seen_before: None,
            env: 50,
            is_cut: false,
            origin: origin as Origin,
        };
        let nodes: Vec<Node> = (0..NODES).map(node).collect();
        let redis = Some(nodes[0].shared());
        Self { nodes, redis, lowerings: BTreeSet::new(), starts: 0, lowered_from: BTreeSet::new() }
    }

    /// Node `at` makes a change of its register.
    fn made(&mut self, at: usize, next: Register) {
        let node = &mut self.nodes[at];
        let before = node.register.record.stamp();
        node.register = next;
        node.register.record.updated_at = DateTime::UNIX_EPOCH;
        let record = &node.register.record;
        assert!(record.stamp() > before, "it went back: {before:?} {record:?}");
        let id = (node.origin, record.epoch, record.revision);
        node.knows.insert(id);
        node.author_knew.clone_from(&node.knows);
        let follows = record.follows();
        let (origin, lowered) =
            (node.origin, follows.marks.iter().find(|(origin, _)| *origin == node.origin));
        assert_eq!(lowered.map(|(_, mark)| mark.last), Some(record.stamp()), "{origin}");
        node.settled = true;
    }

    fn change(&mut self, at: usize, percent: u16, rolls_back: bool) {
        let node = &self.nodes[at];
        let before = node.register.record.clone();
        let mut next = changed(&node.register, node.origin, (Backend::Redis, points(percent)), rolls_back);
        next.record.reason = format!("{:?}", node.knows);
        let lowers = next.record.epoch > before.epoch;
        let raises = next.record.wanted() > before.wanted();
        if raises && !node.is_cut {
            // Compare and set: no raise over a record that was not seen.
            if let Some(redis) = &self.redis {
                let unseen = redis.register.record.supersedes(&before);
                if unseen || !next.merge(&redis.register).unheard.is_empty() {
                    return self.beat(at);
                }
            }
            self.made(at, next);
            self.redis = Some(self.nodes[at].shared());
            return;
        }
        if lowers {
            let origin = node.origin;
            let record = &next.record;
            self.lowerings.insert(((origin, record.epoch, record.revision), percent * 100));
            let id = (origin, record.epoch, record.revision);
            self.lowered_from.extend(node.register.seen_percents().into_iter().map(|value| (id, value)));
        }
        self.made(at, next);
    }

    /// Node `at` meets a register, as [`Steering::meet`] does.
    fn meet(&mut self, at: usize, theirs: &Shared) {
        let node = &mut self.nodes[at];
        let (ours, before) = (node.register.clone(), node.register.record.stamp());
        let first = !node.settled;
        if let Some(seen) = node.seen_before.take().filter(|_| first) {
            node.register.seen = seen;
        }
        let ours = Register { seen: node.register.seen.clone(), ..ours };
        let unknown = first && !node.has_memory;
        let merged = if unknown { theirs.register.clone() } else { ours.merge(&theirs.register) };
        let took_theirs = !merged.record.is_same(&ours.record);
        if took_theirs {
            node.author_knew.clone_from(&theirs.author_knew);
        } else if merged.record.is_same(&theirs.register.record) {
            node.author_knew.extend(theirs.author_knew.iter().copied());
        }
        node.knows.extend(theirs.knows.iter().copied());
        node.register = merged;
        node.settled = true;
        let older = if took_theirs { &ours.record } else { &theirs.register.record };
        if let Some(next) = node.register.standing(older) {
            let mut next = next.made_by(node.origin, &node.register, true);
            next.reason = format!("{:?}", node.knows);
            let percent = next.wanted().basis_points();
            let id = (node.origin, next.epoch, next.revision);
            self.lowerings.insert((id, percent));
            let register =
                Register { record: next, unheard: Marks::default(), seen: node.register.seen.clone() };
            self.made(at, register);
        }
        let node = &self.nodes[at];
        assert!(unknown || node.register.record.stamp() >= before, "{at} went back");
        if first {
            let memory = node.has_memory.then(|| node.unasked.unwrap_or(node.own));
            self.ask_environment(at, memory);
        }
        let node = &mut self.nodes[at];
        (node.has_memory, node.unasked) = (true, None);
    }

    fn ask_environment(&mut self, at: usize, memory: Option<RememberedEnv>) {
        let node = &self.nodes[at];
        let considered = node.environment().consider(&node.register, memory);
        let register = node.register.clone();
        self.nodes[at].register.seen = considered.seen.clone();
        let Some(next) = considered.next else { return };
        let node = &self.nodes[at];
        if next.wanted() > register.record.wanted() {
            let lowered = self.lowered_from.iter();
            let known = lowered.filter(|(id, value)| *value == node.env && node.knows.contains(id)).count();
            assert_eq!(known, 0, "{} % raised again", node.env);
        }
        let mut record = next.made_by(node.origin, &register, false);
        record.reason = format!("{:?}", node.knows);
        self.made(at, Register { record, unheard: Marks::default(), seen: considered.seen });
    }

    /// As a heartbeat: reads Redis, and brings what it lacks.
    fn beat(&mut self, at: usize) {
        if self.nodes[at].is_cut {
            return;
        }
        match self.redis.clone() {
            Some(theirs) => self.meet(at, &theirs),
            None => self.nodes[at].settled = true,
        }
        self.redis = Some(self.nodes[at].shared());
    }

    fn start(&mut self, at: usize, env: u16, keeps_disk: bool) {
        self.starts += 1;
        let origin = (NODES as u64 + self.starts) as Origin;
        let node = &mut self.nodes[at];
        (node.env, node.origin, node.settled) = (env, origin, false);
        let environment = node.environment();
        if keeps_disk {
            let own = node.own;
            node.unasked = Some(node.unasked.unwrap_or(own));
            node.own = environment.remember(own);
            node.seen_before = Some(node.register.seen.clone());
            node.has_memory = true;
            self.ask_environment(at, Some(own));
            self.nodes[at].settled = false;
        } else {
            let mut record = Record::initial(points(env), "start");
            record.updated_at = DateTime::UNIX_EPOCH;
            node.register = Register::new(record);
            node.register.seen.add(Value::Percent(points(env)), 0);
            (node.knows, node.author_knew) = (BTreeSet::new(), BTreeSet::new());
            (node.own, node.unasked, node.has_memory) =
                (environment.remember(RememberedEnv::default()), None, false);
        }
    }

    pub(super) fn step(&mut self, step: Step) {
        match step {
            Step::Raise(at) if self.nodes[at].register.record.percent < points(80) => {
                self.change(at, 80, false)
            }
            Step::Raise(_) => {}
            Step::Lower(at) => {
                let to = match self.nodes[at].register.record.percent.basis_points() {
                    0..=3_000 => return,
                    3_001..=4_000 => 30,
                    _ => 40,
                };
                self.change(at, to, false);
            }
            Step::RollBack(at) => self.change(at, 0, true),
            Step::Beat(at) => self.beat(at),
            Step::Meet(one, other) => {
                let (ours, theirs) = (self.nodes[one].shared(), self.nodes[other].shared());
                self.meet(one, &theirs);
                self.meet(other, &ours);
            }
            Step::Cut(at) => self.nodes[at].is_cut = true,
            Step::Restart(at) => self.start(at, self.nodes[at].env, true),
            Step::Redeploy(at) => self.start(at, 60, true),
            Step::LoseDisk(at) => self.start(at, self.nodes[at].env, false),
            Step::Flush => self.redis = None,
        }
    }

    /// Everything is healed, and all instances beat until nothing changes.
    pub(super) fn heal_and_check(mut self, steps: &[Step]) {
        self.nodes.iter_mut().for_each(|node| node.is_cut = false);
        let survives = |world: &Self, id: &Id| {
            let disks = world.nodes.iter().map(|node| &node.knows);
            disks.chain(world.redis.iter().map(|redis| &redis.knows)).any(|knows| knows.contains(id))
        };
        let kept: Vec<(Id, u16)> =
            self.lowerings.iter().filter(|(id, _)| survives(&self, id)).copied().collect();
        for _ in 0..3 {
            for at in (0..NODES).chain((0..NODES).rev()) {
                self.beat(at);
            }
        }
        let last = &self.nodes[0];
        for node in &self.nodes {
            assert!(node.register.record.is_same(&last.register.record), "they differ after {steps:?}");
            assert_eq!(node.register.unheard_share(), None, "{steps:?}");
        }
        let wanted = last.register.record.wanted().basis_points();
        for (id, share) in kept {
            assert!(
                last.author_knew.contains(&id) || wanted <= share,
                "{steps:?}: a lowering to {share} of {id:?} is undone by {:?}",
                last.register.record
            );
        }
    }

    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let mut add = |register: &Register, more: &dyn Fn(&mut DefaultHasher)| {
            let Record { epoch, revision, percent, reason, .. } = &register.record;
            (epoch, revision, percent.basis_points(), reason).hash(&mut hasher);
            for (origin, mark) in register.unheard.iter().chain(register.record.follows().marks.iter()) {
                (origin, mark.last.epoch, mark.last.revision).hash(&mut hasher);
            }
            more(&mut hasher);
        };
        for node in &self.nodes {
            add(&node.register, &|hasher| {
                let own = node.own.percent.map(Percent::basis_points);
                let unasked = node.unasked.map(|env| env.percent.map(Percent::basis_points));
                (node.settled, node.has_memory, node.env, node.is_cut, node.origin, own, unasked)
                    .hash(hasher);
                (&node.knows, &node.author_knew).hash(hasher);
            });
        }
        if let Some(redis) = &self.redis {
            add(&redis.register, &|hasher| redis.knows.hash(hasher));
        }
        hasher.finish()
    }
}

impl Register {
    fn seen_percents(&self) -> Vec<u16> {
        [50, 60]
            .into_iter()
            .filter(|percent| self.seen.first(Value::Percent(points(*percent))).is_some())
            .collect()
    }
}
