//! What random schedules are made of: each scene is a kind of misfortune with changes before, in and after it.

use crate::generate::{PERCENTS, Steps};
use crate::plan::{Flag, KEYS, Op, Set, Spoil, Step, Tag, Way};

/// Seconds by which clocks step.
const AHEAD: [i64; 8] = [-3_600, -90, -30, -4, 4, 30, 90, 3_600];

impl Steps {
    /// The scene of this number.
    pub fn scene(&mut self, scene: usize) {
        match scene {
            0 => self.cut_off(),
            1 => self.one_way(),
            2 => self.race(),
            3 => self.deploy(),
            4 => self.crashes(),
            5 => self.blocks(),
            6 => self.clocks(),
            7 => self.disks(),
            8 => self.redis(),
            9 => self.pause(),
            _ => self.empty_start(),
        }
    }

    /// One instance, or two together, change the record apart from the others.
    fn cut_off(&mut self) {
        let (at, how) = (self.instance(), self.spoil());
        self.push(Step::Isolate(at, how));
        let together = self.chance(4).then(|| self.other_than(at));
        if let Some(other) = together {
            self.push_after(0, Step::Isolate(other, how));
            for way in [Way::Peer(at, other), Way::Peer(other, at)] {
                self.push_after(0, Step::Mend(way));
            }
            // Until the breaker of both has noticed.
            self.push_after(1_200, Step::Ask { client: 0, at: other, op: Op::Read, wait: true });
        }
        match self.chance(2) {
            true => self.push(Step::Ask { client: 1, at, op: Op::Rollback, wait: true }),
            false => self.change(at),
        }
        if self.chance(4) {
            self.change(at);
        }
        let times = [0, 1, 1, 2][self.below(4)];
        if together.is_none() || self.instances > 3 {
            self.swing(at, times);
        }
        match self.below(5) {
            0 => {
                self.push(Step::Kill(at));
                self.push(Step::Start(at));
            }
            1 => {
                // It alone finds an empty Redis.
                for other in (0..self.instances).filter(|other| *other != at) {
                    self.push_after(0, Step::Spoil(Way::Redis(other), how));
                }
                self.push(Step::Flush);
                self.push_after(0, Step::Mend(Way::Redis(at)));
                self.push_after(2_500, Step::Mend(Way::Redis(at)));
            }
            2 => {
                let from = self.other_than(at);
                self.push(Step::Mend(Way::Peer(from, at)));
                self.push_after(2_200, Step::Mend(Way::Peer(from, at)));
            }
            _ => {}
        }
        self.push(Step::Join(at));
        if let Some(other) = together {
            self.push(Step::Join(other));
        }
    }

    /// Single ways are cut, frozen or slow while the record changes.
    fn one_way(&mut self) {
        let mut ways = Vec::new();
        for _ in 0..=self.below(3) {
            let at = self.instance();
            let way = match self.chance(2) {
                true => Way::Redis(at),
                false => Way::Peer(at, self.other_than(at)),
            };
            let how = match self.below(3) {
                0 => Spoil::Delay([50, 400, 1_500][self.below(3)]),
                _ => self.spoil(),
            };
            self.push(Step::Spoil(way, how));
            ways.push(way);
        }
        for _ in 0..=self.below(3) {
            let at = self.instance();
            self.change(at);
        }
        ways.into_iter().for_each(|way| self.push(Step::Mend(way)));
    }

    /// Two clients have read one state and change it at once, on two instances.
    fn race(&mut self) {
        let one = self.instance();
        let other = self.other_than(one);
        if self.chance(3) {
            let (percent, flag) = (PERCENTS[self.below(8)], Some(Flag::Memory));
            let op = Op::Set(Set { percent, flag, tag: Tag::Fresh, twice: false });
            self.push(Step::Ask { client: 0, at: one, op, wait: true });
            self.push_after(2_500, Step::Ask { client: 0, at: one, op: Op::Read, wait: true });
        } else {
            self.push(Step::Ask { client: 0, at: one, op: Op::Read, wait: true });
        }
        self.push_after(0, Step::Ask { client: 1, at: other, op: Op::Read, wait: true });
        for (client, at) in [(0, one), (1, other)] {
            let percent = PERCENTS[self.below(8)];
            let op = Op::Set(Set { percent, flag: None, tag: Tag::Kept, twice: false });
            self.push_after(0, Step::Ask { client, at, op, wait: false });
        }
        self.push_after(500, Step::Ask { client: 0, at: one, op: Op::Read, wait: true });
    }

    /// Instances get another environment, one after the other, and the record changes meanwhile.
    fn deploy(&mut self) {
        let (percent, first) = (PERCENTS[self.below(8)], self.instance());
        let how_many = self.below(self.instances) + 1;
        for add in 0..how_many {
            let at = (first + add) % self.instances;
            self.push(Step::Deploy(at, percent));
            if self.chance(2) {
                let at = self.instance();
                self.push_after(1_500, Step::Ask { client: 0, at, op: Op::Read, wait: true });
            }
            if self.chance(2) {
                let at = self.instance();
                self.change(at);
            }
        }
        if self.chance(2) {
            let at = self.instance();
            self.ask(at, Op::Rollback);
            let crashed = self.other_than(at);
            self.push_after(500, Step::Kill(crashed));
            self.push(Step::Start(crashed));
        }
    }

    /// Instances are killed around changes.
    fn crashes(&mut self) {
        for _ in 0..=self.below(3) {
            let at = self.instance();
            match self.chance(2) {
                true => self.change(at),
                false => {
                    // Inside of the change.
                    let op = Op::Set(Set {
                        percent: PERCENTS[self.below(8)],
                        flag: None,
                        tag: Tag::Fresh,
                        twice: false,
                    });
                    self.push(Step::Ask { client: 1, at, op, wait: false });
                }
            }
            let crashed = if self.chance(2) { at } else { self.other_than(at) };
            self.crash(crashed);
        }
    }

    /// Overrides that end, are replaced and deleted.
    fn blocks(&mut self) {
        if self.chance(2) {
            let (at, ahead) = (self.instance(), AHEAD[self.below(8)]);
            self.push(Step::Clock(at, ahead));
        }
        let apart = self.chance(3).then(|| self.instance());
        if let Some(at) = apart {
            let how = self.spoil();
            self.push(Step::Isolate(at, how));
        }
        for _ in 0..2 + self.below(4) {
            let (at, id) = (self.instance(), self.below(KEYS));
            let lasts = [None, Some(1_500), Some(3_000), Some(30_000), Some(1_800_000)][self.below(5)];
            let op = if self.chance(3) { Op::Lift(id) } else { Op::Block(id, lasts) };
            self.ask(at, op);
        }
        if let Some(at) = apart {
            self.push(Step::Join(at));
        }
        if self.chance(3) {
            let at = self.instance();
            self.crash(at);
        }
    }

    /// Clocks step while raises are announced and blocks run.
    fn clocks(&mut self) {
        let (at, ahead) = (self.instance(), AHEAD[self.below(8)]);
        let (asked, id) = (self.instance(), self.below(KEYS));
        let lasts = Some([2_000, 4_000, 1_800_000][self.below(3)]);
        self.ask(asked, Op::Block(id, lasts));
        if self.chance(2) {
            self.ask(asked, Op::Rollback);
        }
        let percent = PERCENTS[self.below(8)];
        let raise = Op::Set(Set { percent, flag: None, tag: Tag::Fresh, twice: false });
        self.ask(asked, raise);
        self.push(Step::Clock(at, ahead));
        if self.chance(2) {
            self.push_after(2_500, Step::Kill(at));
            self.push(Step::Start(at));
        }
        self.set(at);
    }

    /// A disk is removed or full while the record changes.
    fn disks(&mut self) {
        let at = self.instance();
        let full = self.chance(2);
        self.push(if full { Step::FillDisk(at) } else { Step::RemoveDisk(at) });
        self.change(at);
        let (other, id) = (self.instance(), self.below(KEYS));
        self.ask(other, Op::Block(id, None));
        if self.chance(2) {
            self.push(Step::Kill(at));
            self.push(Step::Start(at));
        }
        self.change(at);
        if full {
            self.push(Step::FreeDisk(at));
        }
    }

    /// An instance starts with an empty disk after a rollback, of which it can read in Redis alone, or from the others too.
    fn empty_start(&mut self) {
        let at = self.instance();
        let asked = self.other_than(at);
        self.push(Step::Ask { client: 0, at: asked, op: Op::Rollback, wait: true });
        self.push_after(1_000, Step::Kill(at));
        self.push(Step::RemoveDisk(at));
        let alone = self.chance(2);
        for other in (0..self.instances).filter(|other| alone && *other != at) {
            for way in [Way::Peer(at, other), Way::Peer(other, at)] {
                self.push_after(0, Step::Spoil(way, Spoil::Cut));
            }
        }
        self.push(Step::Start(at));
        self.push_after(800, Step::Ask { client: 0, at, op: Op::Read, wait: true });
        if alone {
            self.push(Step::Join(at));
        }
    }

    /// Redis loses everything, or is away and comes back empty.
    fn redis(&mut self) {
        let (at, id) = (self.instance(), self.below(KEYS));
        self.change(at);
        self.ask(at, Op::Block(id, None));
        let away = self.chance(2);
        self.push(if away { Step::KillRedis } else { Step::Flush });
        let other = self.instance();
        self.change(other);
        if self.chance(2) {
            self.ask(other, Op::Lift(id));
        }
        if self.chance(2) {
            self.crash(at);
        }
        if away {
            self.push(Step::StartRedis);
        }
        self.change(at);
    }

    /// An instance is stopped while the record changes.
    fn pause(&mut self) {
        let at = self.instance();
        self.push(Step::Stop(at));
        let other = self.other_than(at);
        self.change(other);
        if self.chance(3) {
            self.ask(at, Op::Rollback);
        }
        self.change(other);
        let after = [200, 1_200, 4_000][self.below(3)];
        self.push_after(after, Step::Continue(at));
        self.change(at);
    }
}
