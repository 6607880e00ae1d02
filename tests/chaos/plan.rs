//! All that a seed decides: a fleet, and the steps of one run.

use std::fmt;

use crate::support::shrink::Parts;

/// What a run dwells on. Seeds take turns, so that five in a row cover all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Theme {
    /// Instances are cut off, change the record meanwhile, and return.
    Partitions,
    /// Deploys with other environments, crashes, plain restarts.
    Deploys,
    /// Wall clocks step; overrides and raises have their moments.
    Clocks,
    /// Redis loses its data, disks are removed and full.
    Losses,
    /// All of it.
    Mixed,
    /// A schedule that was written by hand.
    Directed,
}

/// A connection of one instance that a relay carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Of this instance to Redis.
    Redis(usize),
    /// Of the first instance to the admin listener of the second.
    Peer(usize, usize),
}

/// How a way is spoilt until it is mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoil {
    /// Connections are reset, and new ones as well.
    Cut,
    /// Connections stay open and carry nothing.
    Freeze,
    /// Each answer is late by so many milliseconds.
    Delay(u64),
}

/// The flag of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    Memory,
    Redis,
}

/// Which state a change is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// To none: no `If-Match`.
    None,
    /// To the one that the instance shows right before.
    Fresh,
    /// To the one that the client read last, from whichever instance.
    Kept,
}

/// One change of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set {
    pub percent: u8,
    /// The flag, where it is to change.
    pub flag: Option<Flag>,
    pub tag: Tag,
    /// Sent again after the answer, with the same idempotency key.
    pub twice: bool,
}

/// What a client asks of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads the record and keeps its tag.
    Read,
    Set(Set),
    Rollback,
    /// Blocks the key of this number, for so many milliseconds or until it is deleted.
    Block(usize, Option<u64>),
    /// Deletes the override of this number.
    Lift(usize),
}

/// What happens during a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A client asks an instance; `wait`: the next step begins after the answer.
    Ask { client: usize, at: usize, op: Op, wait: bool },
    /// SIGKILL.
    Kill(usize),
    /// Starts an instance that does not run, with the environment that it had.
    Start(usize),
    /// SIGTERM, and a start with this percentage in the environment.
    Deploy(usize, u8),
    /// SIGSTOP.
    Stop(usize),
    /// SIGCONT.
    Continue(usize),
    /// Spoils one way.
    Spoil(Way, Spoil),
    /// Mends one way.
    Mend(Way),
    /// Spoils all ways of an instance.
    Isolate(usize, Spoil),
    /// Mends all ways of an instance.
    Join(usize),
    /// FLUSHALL.
    Flush,
    /// Redis ends.
    KillRedis,
    /// Redis starts again, empty.
    StartRedis,
    /// The wall clock of an instance is ahead by so many seconds from now on (negative: behind).
    Clock(usize, i64),
    /// The files of an instance's database are deleted.
    RemoveDisk(usize),
    /// The disk of an instance is full.
    FillDisk(usize),
    /// The disk of an instance has room again.
    FreeDisk(usize),
    /// All instances run, all ways are whole, Redis is there, disks have room; then they must agree. Clocks stay wrong.
    Heal,
}

/// All that a seed decides.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub theme: Theme,
    /// Percentage in the environment of each instance at its first start.
    pub percents: Vec<u8>,
    /// So many instances run from the beginning; the others start by a step.
    pub running: usize,
    /// Each with its number, and milliseconds after the step before it. A shorter plan keeps the numbers of what is left.
    pub steps: Vec<(usize, u64, Step)>,
}

/// Overrides that there can be.
pub const KEYS: usize = 3;

impl Plan {
    pub fn instances(&self) -> usize {
        self.percents.len()
    }

    /// A plan of these steps, each with the milliseconds after the one before it.
    pub fn directed(percents: &[u8], steps: Vec<(u64, Step)>) -> Self {
        let steps = steps.into_iter().enumerate().map(|(number, (after, step))| (number, after, step));
        Self {
            seed: 0,
            theme: Theme::Directed,
            percents: percents.to_vec(),
            running: percents.len(),
            steps: steps.collect(),
        }
    }

    /// The steps as TIDEGATE_CHAOS_KEEP names them: `s0,s3`.
    pub fn names(&self) -> String {
        self.steps.iter().map(|(number, ..)| format!("s{number}")).collect::<Vec<_>>().join(",")
    }

    /// The plan reduced to the steps that are named.
    pub fn keep(mut self, names: &str) -> Self {
        self.steps.retain(|(number, ..)| names.split(',').any(|name| name.trim() == format!("s{number}")));
        self
    }
}

impl Parts for Plan {
    fn parts(&self) -> usize {
        self.steps.len()
    }

    fn without(&self, at: usize, size: usize) -> Self {
        let steps = self.steps.iter().enumerate().filter(|(part, _)| !(at..at + size).contains(part));
        Self { steps: steps.map(|(_, step)| step.clone()).collect(), ..self.clone() }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, theme, percents, running, steps } = self;
        writeln!(to, "seed {seed} ({theme:?}): {running} of {} instances, {percents:?} %", percents.len())?;
        for (number, after, step) in steps {
            writeln!(to, "  s{number}: after {after} ms {step:?}")?;
        }
        Ok(())
    }
}
