//! What is sent when, and by whom: fixed by a seed before the test begins, so that it can be foretold and repeated.

use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand_distr::{Distribution as _, Exp1, Zipf};

/// A part of the test at one rate.
#[derive(Clone, Debug)]
pub struct Phase {
    /// Its name in the report.
    pub name: &'static str,
    /// Requests a second, above 0.
    pub rate: f64,
    /// How long it lasts.
    pub lasts: Duration,
    /// Whether it is judged; a warm-up is not.
    pub judged: bool,
}

/// How requests are spaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Spacing {
    /// One every so often.
    Even,
    /// As from many clients that know nothing of each other: a Poisson process.
    Poisson,
}

/// The whole test.
#[derive(Clone, Debug)]
pub struct Plan {
    /// One after the other.
    pub phases: Vec<Phase>,
    /// How requests are spaced.
    pub spacing: Spacing,
    /// How many clients there are, at least 1.
    pub keys: u32,
    /// How unevenly they ask: the exponent of Zipf's law; 0 is evenly.
    pub skew: f64,
    /// Where the draws begin.
    pub seed: u64,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// When it is to be sent, from the beginning of the test.
    pub at: Duration,
    /// In which phase.
    pub phase: usize,
    /// Of which client, from 0 to one less than there are.
    pub key: u32,
}

impl Plan {
    /// The requests in the order of their times. The same each time that it is asked.
    pub fn arrivals(&self) -> Arrivals<'_> {
        let zipf = Zipf::new(f64::from(self.keys.max(1)), self.skew.max(0.0)).ok();
        Arrivals {
            plan: self,
            random: StdRng::seed_from_u64(self.seed),
            zipf,
            phase: 0,
            began: 0.0,
            sent: 0,
            next: 0.0,
        }
    }

    /// How long it lasts.
    pub fn lasts(&self) -> Duration {
        self.phases.iter().map(|phase| phase.lasts).sum()
    }

    /// The highest rate, in requests a second.
    pub fn peak(&self) -> f64 {
        self.phases.iter().map(|phase| phase.rate).fold(0.0, f64::max)
    }

    /// How many clients that ask alike would spread a draw by client as these do: fewer than there are where some ask more
    /// often than others.
    pub fn effective_keys(&self) -> f64 {
        let mut counts = std::collections::HashMap::<u32, f64>::new();
        self.arrivals().for_each(|arrival| *counts.entry(arrival.key).or_default() += 1.0);
        let (sum, squares) =
            counts.values().fold((0.0, 0.0), |(sum, squares), count| (sum + count, squares + count * count));
        if squares == 0.0 { 1.0 } else { sum * sum / squares }
    }

    /// When each phase begins and ends.
    pub fn spans(&self) -> impl Iterator<Item = (&Phase, Duration, Duration)> {
        let mut from = Duration::ZERO;
        self.phases.iter().map(move |phase| {
            let began = from;
            from += phase.lasts;
            (phase, began, from)
        })
    }
}

/// [`Plan::arrivals`].
pub struct Arrivals<'a> {
    plan: &'a Plan,
    random: StdRng,
    zipf: Option<Zipf<f64>>,
    phase: usize,
    /// When the phase began, in seconds.
    began: f64,
    /// How many it has had.
    sent: u64,
    /// When the next request is due.
    next: f64,
}

impl Iterator for Arrivals<'_> {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        let phase = loop {
            let phase = self.plan.phases.get(self.phase)?;
            let end = self.began + phase.lasts.as_secs_f64();
            // A billionth of a second is what additions are off by.
            if self.next + 1e-9 < end {
                break phase;
            }
            (self.phase, self.began, self.sent, self.next) = (self.phase + 1, end, 0, end);
        };
        let at = self.next;
        self.sent += 1;
        self.next = match self.plan.spacing {
            Spacing::Even => self.began + self.sent as f64 / phase.rate,
            Spacing::Poisson => {
                let gap: f64 = Exp1.sample(&mut self.random);
                at + gap / phase.rate
            }
        };
        let place = self.zipf.map_or(1.0, |zipf| zipf.sample(&mut self.random));
        let key = (place as u32).clamp(1, self.plan.keys.max(1)) - 1;
        Some(Arrival { at: Duration::from_secs_f64(at), phase: self.phase, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(spacing: Spacing, skew: f64) -> Plan {
        let phase =
            |name, rate, seconds| Phase { name, rate, lasts: Duration::from_secs(seconds), judged: true };
        Plan { phases: vec![phase("a", 100.0, 10), phase("b", 20.0, 5)], spacing, keys: 50, skew, seed: 7 }
    }

    #[test]
    fn even_arrivals_are_as_many_and_as_far_apart_as_the_rate_says() {
        let all: Vec<Arrival> = plan(Spacing::Even, 0.0).arrivals().collect();
        let (a, b): (Vec<Arrival>, Vec<Arrival>) = all.iter().partition(|arrival| arrival.phase == 0);
        assert_eq!((a.len(), b.len()), (1_000, 100));
        let gap = a[501].at - a[500].at;
        assert!(gap.abs_diff(Duration::from_millis(10)) < Duration::from_micros(1));
        assert!(b[0].at >= Duration::from_secs(10) && b[99].at < Duration::from_secs(15));
    }

    #[test]
    fn poisson_arrivals_keep_the_rate_and_the_spread_of_a_poisson_process() {
        let mut plan = plan(Spacing::Poisson, 0.0);
        plan.phases[0].lasts = Duration::from_secs(1_000);
        let at: Vec<f64> = plan
            .arrivals()
            .filter(|arrival| arrival.phase == 0)
            .map(|arrival| arrival.at.as_secs_f64())
            .collect();
        let gaps: Vec<f64> = at.windows(2).map(|two| two[1] - two[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean * 100.0 - 1.0).abs() < 0.02, "{mean}");
        // Of an exponential distribution the standard deviation is the mean.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.03, "{variance}");
    }

    #[test]
    fn without_skew_all_clients_ask_alike_and_with_it_the_first_asks_most() {
        let shares = |skew: f64| {
            let mut plan = plan(Spacing::Even, skew);
            plan.phases[0].lasts = Duration::from_secs(1_000);
            let mut counts = [0_u32; 50];
            plan.arrivals().for_each(|arrival| counts[arrival.key as usize] += 1);
            let all: u32 = counts.iter().sum();
            counts.iter().map(|&count| f64::from(count) / f64::from(all)).collect::<Vec<_>>()
        };
        assert!(shares(0.0).iter().all(|share| (0.015..0.025).contains(share)));
        // Zipf's law with exponent 1 over 50: the first has 1/H(50) = 22.2 %, the second half of that.
        let skewed = shares(1.0);
        assert!((0.21..0.235).contains(&skewed[0]) && (0.10..0.12).contains(&skewed[1]), "{skewed:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_requests_and_another_gives_others() {
        let plan = plan(Spacing::Poisson, 1.0);
        let other = Plan { seed: 8, ..plan.clone() };
        assert!(plan.arrivals().eq(plan.arrivals()));
        assert!(!plan.arrivals().eq(other.arrivals()));
    }
}
