//! What came of the requests, by phase and by second.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest time that is told apart, in microseconds: whatever takes longer counts as so long.
const LONGEST: u64 = 3_600_000_000;

/// How one request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer with this status, body and all.
    Answered(u16),
    /// No answer, and why.
    Failed(Failure),
}

/// Why there was no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// No connection.
    Connect,
    /// No connection, because this machine had no file, port or memory left for it.
    Own,
    /// The connection ended before the answer did, or what came was no HTTP.
    Broken,
    /// It took longer than anybody would wait.
    Timeout,
    /// The generator was later with it than anybody would wait, and left it out.
    Unsent,
}

impl Failure {
    /// The word of the report.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "no connection",
            Self::Own => "no connection: this machine has no file or port left for it",
            Self::Broken => "broken off",
            Self::Timeout => "timed out",
            Self::Unsent => "never sent",
        }
    }
}

/// One request that is over.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// Its phase.
    pub phase: usize,
    /// When it was to be sent, from the beginning.
    pub planned: Duration,
    /// How much later it was sent, because the generator was late.
    pub late: Duration,
    /// How much later still, because every connection was busy.
    pub queued: Duration,
    /// From the planned moment to the answer's last byte: whoever waits does not care why.
    pub took: Duration,
    /// What came of it.
    pub outcome: Outcome,
}

/// Numbers of one phase or one second.
#[derive(Clone)]
pub struct Counts {
    /// Time from the planned moment to the last byte, in microseconds, of those that were answered and of those that were
    /// given up because they took too long: their clients have waited as well.
    pub latency: Histogram<u64>,
    /// How late requests were sent by the generator's own fault, in microseconds.
    pub lateness: Histogram<u64>,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests without an answer.
    pub failures: BTreeMap<Failure, u64>,
    /// Requests that found every connection busy.
    pub queued: u64,
}

impl Counts {
    fn new(blank: &Histogram<u64>) -> Self {
        Self {
            latency: blank.clone(),
            lateness: blank.clone(),
            statuses: BTreeMap::new(),
            failures: BTreeMap::new(),
            queued: 0,
        }
    }

    fn add(&mut self, done: &Done) {
        // They grow as they must: it cannot fail.
        let _ = self.lateness.record(micros(done.late));
        // Waiting for the runtime to get to it is no queue.
        self.queued += u64::from(done.queued > Duration::from_millis(1));
        match done.outcome {
            Outcome::Answered(status) => {
                let _ = self.latency.record(micros(done.took));
                *self.statuses.entry(status).or_default() += 1;
            }
            Outcome::Failed(failure) => {
                if failure == Failure::Timeout {
                    let _ = self.latency.record(micros(done.took));
                }
                *self.failures.entry(failure).or_default() += 1;
            }
        }
    }

    fn merge(&mut self, other: &Self) {
        // They grow as they must: it cannot fail.
        let _ = self.latency.add(&other.latency);
        let _ = self.lateness.add(&other.lateness);
        other.statuses.iter().for_each(|(&status, count)| *self.statuses.entry(status).or_default() += count);
        other.failures.iter().for_each(|(&why, count)| *self.failures.entry(why).or_default() += count);
        self.queued += other.queued;
    }

    /// Requests that were answered.
    pub fn answered(&self) -> u64 {
        self.statuses.values().sum()
    }

    /// Requests that were not.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// All of them.
    pub fn all(&self) -> u64 {
        self.answered() + self.failed()
    }

    /// Answers with a status in this range.
    pub fn with_status(&self, statuses: std::ops::RangeInclusive<u16>) -> u64 {
        self.statuses.range(statuses).map(|(_, count)| count).sum()
    }

    /// A share of all requests, 0 to 1.
    pub fn share(&self, of: u64) -> f64 {
        if self.all() == 0 { 0.0 } else { of as f64 / self.all() as f64 }
    }

    /// The time within which this share of the answers came, in milliseconds.
    pub fn percentile_ms(&self, percent: f64) -> f64 {
        self.latency.value_at_percentile(percent) as f64 / 1e3
    }

    /// By how much the generator was late, in milliseconds, for this share of the requests.
    pub fn lateness_ms(&self, percent: f64) -> f64 {
        self.lateness.value_at_percentile(percent) as f64 / 1e3
    }
}

/// Numbers of one second, small enough to keep hundreds of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Second {
    /// Requests that were to be sent in it.
    pub sent: u64,
    /// Answers below 400, of 429, of other 4xx, of 5xx; and none.
    pub ok: u64,
    /// 429.
    pub throttled: u64,
    /// Other 4xx.
    pub refused: u64,
    /// 5xx.
    pub errors: u64,
    /// No answer.
    pub failed: u64,
    /// Latency in milliseconds of half of them,
    pub p50_ms: f64,
    /// of 95 %,
    pub p95_ms: f64,
    /// of 99 %,
    pub p99_ms: f64,
}

/// Everything.
#[derive(Clone)]
pub struct Tally {
    /// By phase.
    pub phases: Vec<Counts>,
    /// By the second in which they were planned.
    seconds: BTreeMap<u64, (Second, Histogram<u64>)>,
    /// What a second begins with.
    blank: Histogram<u64>,
}

impl Tally {
    /// Nothing yet, of so many phases.
    ///
    /// # Errors
    /// Never: so many digits can be told apart.
    pub fn new(phases: usize) -> Result<Self, hdrhistogram::CreationError> {
        // Three digits; two for the seconds, of which there are many.
        let (precise, blank) = (Histogram::new(3)?, Histogram::new(2)?);
        let phases = (0..phases).map(|_| Counts::new(&precise)).collect();
        Ok(Self { phases, seconds: BTreeMap::new(), blank })
    }

    /// Takes a request in.
    pub fn add(&mut self, done: &Done) {
        if let Some(phase) = self.phases.get_mut(done.phase) {
            phase.add(done);
        }
        let begun = || (Second::default(), self.blank.clone());
        let (second, latency) = self.seconds.entry(done.planned.as_secs()).or_insert_with(begun);
        second.sent += 1;
        match done.outcome {
            Outcome::Answered(status) => {
                let _ = latency.record(micros(done.took));
                let counter = match status {
                    429 => &mut second.throttled,
                    500.. => &mut second.errors,
                    400.. => &mut second.refused,
                    _ => &mut second.ok,
                };
                *counter += 1;
            }
            Outcome::Failed(_) => second.failed += 1,
        }
    }

    /// Takes in what another has seen.
    pub fn merge(&mut self, other: &Self) {
        self.phases.iter_mut().zip(&other.phases).for_each(|(mine, theirs)| mine.merge(theirs));
        for (at, (second, latency)) in &other.seconds {
            let begun = || (Second::default(), self.blank.clone());
            let (mine, all) = self.seconds.entry(*at).or_insert_with(begun);
            mine.sent += second.sent;
            mine.ok += second.ok;
            mine.throttled += second.throttled;
            mine.refused += second.refused;
            mine.errors += second.errors;
            mine.failed += second.failed;
            let _ = all.add(latency);
        }
    }

    /// The seconds in their order, with the second they are.
    pub fn seconds(&self) -> impl Iterator<Item = (u64, Second)> {
        self.seconds.iter().map(|(&at, (second, latency))| {
            let of = |percent| latency.value_at_percentile(percent) as f64 / 1e3;
            (at, Second { p50_ms: of(50.0), p95_ms: of(95.0), p99_ms: of(99.0), ..*second })
        })
    }

    /// One of them.
    pub fn second(&self, at: u64) -> Option<Second> {
        self.seconds().find(|(second, _)| *second == at).map(|(_, second)| second)
    }
}

/// At most an hour, which is more than anybody waits for an answer.
fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).map_or(LONGEST, |micros| micros.min(LONGEST))
}
