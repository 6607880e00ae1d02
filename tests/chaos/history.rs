//! What a run leaves: all that clients asked and were answered, what each instance showed, and what was done to it. Times are
//! seconds since the run began, by the machine's monotonic clock.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::plan::{Op, Plan, Spoil, Step};

/// From where the content of a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From the change of this number.
    Op(usize),
    /// From the environment of an instance, or from before the first change.
    Env,
    /// A lowering that an instance made once more, above a record that did not follow it; its author is not known.
    Stands,
    Other,
}

/// A record as an instance showed it.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub epoch: u64,
    pub revision: u64,
    pub percent: f64,
    pub memory: bool,
    pub by: String,
    pub reason: String,
    pub updated_at: String,
    /// Of a raise that is announced, in seconds since the run began.
    pub effective_at: Option<f64>,
    /// The share that is in force on the instance.
    pub in_force: f64,
}

/// The number of the change of which a reason speaks; the last one where there are several: a record that repeats an
/// older one ends with the older reason.
pub fn op_of(reason: &str) -> Option<usize> {
    let (_, rest) = reason.rsplit_once("op-")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse().ok()
}

impl Seen {
    /// The share that the record asks for.
    pub fn wanted(&self) -> f64 {
        if self.memory { 0.0 } else { self.percent }
    }

    pub fn order(&self) -> (u64, u64) {
        (self.epoch, self.revision)
    }

    pub fn origin(&self) -> Origin {
        match op_of(&self.reason) {
            Some(op) => Origin::Op(op),
            None if self.by == "env" => Origin::Env,
            None if self.by == "fleet" => Origin::Stands,
            None => Origin::Other,
        }
    }

    /// Whether no change was made before it.
    pub fn is_initial(&self) -> bool {
        self.origin() == Origin::Env && self.order() <= (0, 1)
    }

    /// Whether both are one record. What is in force differs while a raise is announced, and each instance has begun at a
    /// time of its own.
    pub fn is_same(&self, other: &Self) -> bool {
        let of = |seen: &Self| {
            let Self { epoch, revision, memory, by, reason, updated_at, .. } = seen.clone();
            let updated_at = if seen.is_initial() { String::new() } else { updated_at };
            (epoch, revision, seen.percent.to_bits(), memory, by, reason, updated_at)
        };
        of(self) == of(other)
    }

    pub fn short(&self) -> String {
        let Self { epoch, revision, percent, by, reason, in_force, .. } = self;
        let flag = if self.memory { " flag memory" } else { "" };
        format!("{epoch}/{revision} {percent} %{flag} by {by} ({reason}), {in_force} % in force")
    }
}

/// What an instance answered to a change that it made.
#[derive(Clone, Debug)]
pub struct Done {
    pub status: u16,
    /// The record; `None` for overrides.
    pub record: Option<Seen>,
    pub durable: bool,
    /// How many have it in force, of how many.
    pub applied: (u64, u64),
    /// When the override ends.
    pub expires: Option<f64>,
}

/// What came of a request.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The instance was not there: no connection was made.
    Unsent,
    /// There was no answer: it may have been done, and may yet be.
    Unknown,
    Refused(u16, String),
    Done(Box<Done>),
}

/// One request of a client.
#[derive(Clone, Debug)]
pub struct Call {
    /// The number of its step, by which its reason names it.
    pub number: usize,
    pub at: usize,
    pub life: usize,
    pub op: Op,
    pub start: f64,
    /// Infinite where there was no answer.
    pub end: f64,
    /// The record to whose tag it was bound.
    pub parent: Option<Seen>,
    /// That tag.
    pub tag: Option<String>,
    pub outcome: Outcome,
    /// What came of sending it again: whether the answer was the same and marked as repeated.
    pub again: Option<bool>,
}

impl Call {
    pub fn done(&self) -> Option<&Done> {
        match &self.outcome {
            Outcome::Done(done) => Some(done),
            _ => None,
        }
    }

    /// The record that it made; `None` when it left the record as it was, or made none.
    pub fn made(&self) -> Option<&Seen> {
        self.done()?.record.as_ref().filter(|record| record.origin() == Origin::Op(self.number))
    }

    /// Whether it may have had an effect.
    pub fn may_count(&self) -> bool {
        matches!(self.outcome, Outcome::Done(_) | Outcome::Unknown)
    }
}

/// One look at an instance.
#[derive(Clone, Debug)]
pub struct Look {
    pub at: usize,
    pub life: usize,
    pub sent: f64,
    pub got: f64,
    pub record: Seen,
}

/// One look at the overrides of an instance.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub at: usize,
    pub life: usize,
    pub sent: f64,
    pub got: f64,
    /// By number: the change that made it, and when it ends.
    pub listed: BTreeMap<usize, (Option<usize>, Option<f64>)>,
    /// Keys that were blocked.
    pub blocked: Vec<usize>,
}

/// One decision that Redis made, or one answer of the front that it must never give.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    pub at: usize,
    pub life: usize,
    pub sent: f64,
    pub got: f64,
    pub redis: bool,
    pub status: u16,
}

/// What something bad was done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The way of an instance to Redis.
    ToRedis(usize),
    /// A way between two instances.
    Between(usize, usize),
    /// The process itself: it is stopped.
    Process(usize),
    Disk(usize),
    Redis,
}

/// From when to when.
#[derive(Clone, Copy, Debug)]
pub struct Trouble {
    pub victim: Victim,
    pub from: f64,
    pub to: f64,
}

/// The life of a process.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    pub at: usize,
    pub life: usize,
    pub from: f64,
    /// Infinite while it lives.
    pub to: f64,
    /// `RATE_LIMIT_CANARY_PERCENT`.
    pub percent: u8,
    /// It started with nothing on its disk.
    pub fresh: bool,
}

/// What all instances showed after a healing.
#[derive(Clone, Debug)]
pub struct Settled {
    /// When all was whole again.
    pub healed: f64,
    /// When they were looked at last.
    pub at: f64,
    /// Whether they agreed in time, and on it for two heartbeats.
    pub agreed: bool,
    /// Since when they agree.
    pub since: f64,
    pub records: Vec<Seen>,
    pub overrides: Vec<Overrides>,
}

/// What became of a plan.
#[derive(Clone, Debug)]
pub struct History {
    pub plan: Plan,
    pub calls: Vec<Call>,
    pub looks: Vec<Look>,
    pub overrides: Vec<Overrides>,
    pub probes: Vec<Probe>,
    /// Requests that the front answered.
    pub requests: usize,
    pub troubles: Vec<Trouble>,
    pub lives: Vec<Life>,
    /// When Redis lost its data.
    pub losses: Vec<f64>,
    /// When and on which instance the wall clock stepped.
    pub steps: Vec<(usize, f64)>,
    pub settled: Vec<Settled>,
    /// The audit trail of each instance at the end, newest first; `None` where it could not be read in full.
    pub trails: Vec<Option<Vec<Value>>>,
    /// By the machine's wall clock.
    pub began_at: DateTime<Utc>,
    /// When all instances of the beginning knew Redis and one another.
    pub began: f64,
    pub ended: f64,
}

impl History {
    pub fn call(&self, number: usize) -> Option<&Call> {
        self.calls.iter().find(|call| call.number == number)
    }

    /// A moment of the machine's wall clock as seconds since the run began.
    pub fn since_began(&self, moment: &str) -> Option<f64> {
        let moment = DateTime::parse_from_rfc3339(moment).ok()?;
        Some((moment.with_timezone(&Utc) - self.began_at).as_seconds_f64())
    }

    /// Whether nothing was wrong with what matches at any moment of this time.
    pub fn sound(&self, from: f64, to: f64, matters: impl Fn(Victim) -> bool) -> bool {
        let meets = |trouble: &&Trouble| trouble.from <= to && trouble.to >= from && matters(trouble.victim);
        !self.troubles.iter().any(|trouble| meets(&trouble))
    }

    /// Whether an instance ran and reached Redis, without a pause.
    pub fn reaches_redis(&self, at: usize, from: f64, to: f64) -> bool {
        self.sound(from, to, |victim| {
            [Victim::ToRedis(at), Victim::Process(at), Victim::Redis].contains(&victim)
        })
    }

    /// Whether one process of an instance ran and reached Redis and all others, and they it. One that has just started reaches
    /// nothing yet.
    pub fn whole(&self, at: usize, from: f64, to: f64) -> bool {
        let first = from.max(self.began);
        let of_time = |life: &&Life| life.at == at && life.from <= first && life.to >= to;
        if !self.lives.iter().any(|life| of_time(&life)) {
            return false;
        }
        let between = |victim| matches!(victim, Victim::Between(one, other) if one == at || other == at);
        self.reaches_redis(at, from, to) && self.sound(from, to, between)
    }

    /// Whether anything ever happened to the disk of an instance.
    pub fn disk_is_sound(&self, at: usize) -> bool {
        self.sound(0.0, f64::INFINITY, |victim| victim == Victim::Disk(at))
    }

    pub fn life(&self, at: usize, life: usize) -> Option<&Life> {
        self.lives.iter().find(|one| (one.at, one.life) == (at, life))
    }

    /// Whether what was answered cannot have been lost until `moment`: a disk that was always sound has it, or Redis, or the
    /// process that made it still lives.
    pub fn is_kept(&self, call: &Call, moment: f64) -> bool {
        let Some(done) = call.done() else { return false };
        let lives = self.life(call.at, call.life).is_some_and(|life| life.to > moment);
        let in_redis = self.reaches_redis(call.at, call.start - 2.0, call.end)
            && !self.losses.iter().any(|loss| (call.start - 2.0..=moment).contains(loss));
        lives || done.durable && (self.disk_is_sound(call.at) || in_redis)
    }

    /// By when a process certainly had its first contact after its start: after three seconds in which it reached Redis, and
    /// those of the beginning when the run began. Infinite where that is not certain.
    pub fn contact(&self, life: &Life) -> f64 {
        if life.life == 1 && life.at < self.plan.running {
            return self.began;
        }
        let ends = self.troubles.iter().map(|trouble| trouble.to);
        let mut from: Vec<f64> = ends.filter(|end| *end > life.from).chain([life.from]).collect();
        from.sort_by(f64::total_cmp);
        let whole =
            |from: &&f64| life.to >= **from + 3.0 && self.reaches_redis(life.at, **from + 1e-9, **from + 3.0);
        from.iter().find(whole).map_or(f64::INFINITY, |from| *from + 3.0)
    }

    /// How far a moment of the fleet's clock may be missed, in seconds: its distance is known as well as answers are fast, of
    /// slow ways and of a busy machine.
    pub fn slack(&self) -> f64 {
        let runs =
            |look: &&Look| self.sound(look.sent, look.got, |victim| victim == Victim::Process(look.at));
        let busy = self.looks.iter().filter(runs).map(|look| look.got - look.sent).fold(0.0, f64::max);
        let delays = self.plan.steps.iter().map(|(_, _, step)| match step {
            Step::Spoil(_, Spoil::Delay(by)) | Step::Isolate(_, Spoil::Delay(by)) => *by,
            _ => 0,
        });
        busy + delays.max().unwrap_or(0) as f64 / 1_000.0
    }

    /// Whether a process can know the fleet's clock at a moment: its own was never wrong, or it has reached Redis before.
    pub fn knows_the_time(&self, at: usize, life: usize, moment: f64) -> bool {
        let right = !self.steps.iter().any(|(of, when)| *of == at && *when <= moment);
        right || self.life(at, life).is_some_and(|life| self.contact(life) <= moment)
    }

    /// When a record was shown first by any instance; infinite when it never was.
    pub fn first_shown(&self, record: &Seen) -> f64 {
        let looks = self.looks.iter().filter(|look| look.record.is_same(record));
        looks.map(|look| look.got).fold(f64::INFINITY, f64::min)
    }
}
