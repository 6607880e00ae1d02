//! From a seed to a plan. The same seed gives the same plan for as long as this file stays as it is.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::plan::{Flag, Op, Plan, Set, Spoil, Step, Tag, Theme};

/// Shares that clients and deploys set.
pub const PERCENTS: [u8; 8] = [0, 1, 5, 10, 20, 40, 60, 100];

impl Plan {
    /// The plan of this seed.
    pub fn of(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let themes = [Theme::Partitions, Theme::Deploys, Theme::Clocks, Theme::Losses, Theme::Mixed];
        let theme = themes[(seed % 5) as usize];
        let instances = [3, 3, 3, 3, 4, 5][random.random_range(0..6)];
        let percent = [10, 20, 60, 100][random.random_range(0..4)];
        let mut percents = vec![percent; instances];
        if random.random_range(0..4) == 0 {
            percents[instances - 1] = PERCENTS[random.random_range(1..8)];
        }
        let mut steps = Steps { random, instances, all: Vec::new() };
        if !steps.chance(3) {
            steps.common();
        }
        for _ in 0..steps.random.random_range(2..=3) {
            let scene = match theme {
                Theme::Partitions => [0, 0, 0, 1, 2][steps.below(5)],
                Theme::Deploys => [3, 3, 4, 2, 0][steps.below(5)],
                Theme::Clocks => [5, 5, 6, 6, 2][steps.below(5)],
                Theme::Losses => [7, 7, 8, 8, 9, 10, 10][steps.below(7)],
                _ => steps.below(11),
            };
            steps.scene(scene);
            if steps.chance(4) {
                steps.push(Step::Heal);
            }
        }
        let all = steps.all.into_iter().enumerate().map(|(number, (after, step))| (number, after, step));
        Self { seed, theme, percents, running: instances, steps: all.collect() }
    }
}

/// A schedule that grows.
pub struct Steps {
    random: StdRng,
    pub instances: usize,
    all: Vec<(u64, Step)>,
}

impl Steps {
    pub fn below(&mut self, end: usize) -> usize {
        self.random.random_range(0..end)
    }

    /// Once in so many times.
    pub fn chance(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    pub fn instance(&mut self) -> usize {
        self.below(self.instances)
    }

    pub fn other_than(&mut self, at: usize) -> usize {
        (at + 1 + self.below(self.instances - 1)) % self.instances
    }

    pub fn push(&mut self, step: Step) {
        let after = [10, 30, 80, 150, 300, 600][self.below(6)];
        self.push_after(after, step);
    }

    pub fn push_after(&mut self, after: u64, step: Step) {
        self.all.push((after, step));
    }

    pub fn spoil(&mut self) -> Spoil {
        [Spoil::Cut, Spoil::Cut, Spoil::Freeze][self.below(3)]
    }

    pub fn ask(&mut self, at: usize, op: Op) {
        let (client, wait) = (self.below(4), !self.chance(4));
        self.push(Step::Ask { client, at, op, wait });
    }

    pub fn set(&mut self, at: usize) {
        let percent = PERCENTS[self.below(8)];
        let flag = [None, None, None, None, None, None, Some(Flag::Redis), Some(Flag::Memory)][self.below(8)];
        let tag = if self.chance(6) { Tag::None } else { Tag::Fresh };
        let twice = self.chance(5);
        self.ask(at, Op::Set(Set { percent, flag, tag, twice }));
    }

    pub fn change(&mut self, at: usize) {
        match self.chance(4) {
            true => self.ask(at, Op::Rollback),
            false => self.set(at),
        }
    }

    /// Lowers and raises again, so many times, on instances other than this one.
    pub fn swing(&mut self, but: usize, times: usize) {
        for _ in 0..times {
            for percent in [[1, 5, 10][self.below(3)], [20, 40, 60][self.below(3)]] {
                let at = self.other_than(but);
                let op = Op::Set(Set { percent, flag: None, tag: Tag::Fresh, twice: false });
                self.push(Step::Ask { client: 0, at, op, wait: true });
            }
        }
    }

    /// Two changes on two instances: then each has had the record from another one, and the start of the fleet is over.
    pub fn common(&mut self) {
        for at in [0, 1] {
            let op =
                Op::Set(Set { percent: PERCENTS[self.below(8)], flag: None, tag: Tag::Fresh, twice: false });
            self.push(Step::Ask { client: 0, at, op, wait: true });
        }
    }

    pub fn crash(&mut self, at: usize) {
        self.push(Step::Kill(at));
        if self.chance(4) {
            self.push(Step::RemoveDisk(at));
        }
        self.push(Step::Start(at));
    }
}
