//! A fleet in simulation: real [`Memory`] instances around one store, requests that arrive at random, calls that take time.
//! The store keeps the last instance as `redis/charge.lua` does; `tests/differential.rs` holds that script to this rule.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::num::NonZeroU32;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use smallvec::SmallVec;

use super::*;
use crate::limiter::calendar::{Calendar, Unit};
use crate::limiter::charge::Charge;
use crate::limiter::clock::SECOND;
use crate::limiter::gcra::{Quota, admits};
use crate::limiter::memory::Memory;
use crate::limiter::passage::Passage;
use crate::limiter::store::{Charged, Readings};
use crate::limiter::subject::{Key, PolicyTag, ProcessKey, Subject};

const START: Micros = 1_764_000_000 * SECOND;
/// Requests a second of each key that its limit allows.
const RATE: f64 = 100.0;

/// The shared store.
#[derive(Default)]
struct Shared {
    /// When a bucket is full again, or a window's end plus its count, and the instance of its tag.
    buckets: HashMap<Key, (Micros, Option<usize>)>,
}

impl Shared {
    fn charge(&mut self, charge: &Charge, note: Micros, caller: usize, now: Micros) -> Charged {
        let bucket = self.buckets.entry(charge.key).or_default();
        let from = charge.from(bucket.0, now);
        let own = bucket.0.saturating_sub(from);
        let mut debt = own.max(note).min(charge.quota.tolerance());
        let amount = charge.quota.charge(charge.cost);
        let allowed = admits(debt, amount, charge.quota.tolerance());
        let mut last = None;
        if allowed {
            debt += amount;
            if own > 0 {
                last = bucket.1.map(|last| if last == caller { Charger::This } else { Charger::Other });
            }
            if own == 0 || bucket.1.is_none() || now.is_multiple_of(32) {
                bucket.1 = Some(caller);
            }
        }
        bucket.0 = from + debt;
        let mut charged = Charged {
            readings: Readings::new(),
            from: SmallVec::new(),
            judged_at: now,
            last: SmallVec::new(),
            ahead: 0,
        };
        charged.readings.push(charge.reading(debt, allowed, from, now));
        charged.from.push(from);
        charged.last.push(last);
        charged
    }
}

/// What a fleet is and what it gets to do.
struct Scene {
    /// How the traffic is spread over the instances.
    weights: Vec<f64>,
    keys: usize,
    /// Requests for each key, as a multiple of its limit.
    load: f64,
    burst: u32,
    /// Windows of a second in the place of buckets.
    windows: bool,
    /// How often a request reaches the instance of the one before, whatever the weights.
    sticky: f64,
    /// The longest that a call takes on the way there, and as long on the way back.
    latency: Micros,
}

impl Scene {
    fn even(instances: usize, load: f64) -> Self {
        Self {
            weights: vec![1.0; instances],
            keys: 20,
            load,
            burst: 20,
            windows: false,
            sticky: 0.0,
            latency: 1_000,
        }
    }

    /// What each instance has learned, beside the truth.
    fn learned(&self, seed: u64, answers: f64) -> Vec<(f64, f64)> {
        let sum: f64 = self.weights.iter().sum();
        let mut learned = Vec::new();
        self.run(seed, answers, |fleet| {
            let shares = fleet.iter().map(|memory| memory.share().unwrap().as_f64());
            learned.extend(shares.zip(self.weights.iter().map(|weight| weight / sum)));
        });
        learned
    }

    /// Runs until the instance with the least traffic was asked about so often, and shows the fleet.
    fn run(&self, seed: u64, answers: f64, show: impl FnOnce(&[Memory])) {
        let mut rng = StdRng::seed_from_u64(seed);
        let sum: f64 = self.weights.iter().sum();
        let fleet: Vec<Memory> = self.weights.iter().map(|_| Memory::new(10_000)).collect();
        let calendar = self.windows.then(|| Calendar::new(Unit::Second, "UTC").unwrap());
        let quota = match self.windows {
            false => Quota::new(
                NonZeroU32::new(RATE as u32).unwrap(),
                SECOND,
                NonZeroU32::new(self.burst).unwrap(),
            )
            .unwrap(),
            true => Quota::each(NonZeroU32::new(RATE as u32).unwrap(), Unit::Second).unwrap(),
        };
        let key = |number: usize| {
            let identity = Subject::ip().identity_of(&(number as u32).to_be_bytes());
            ProcessKey::new(&[1; 16]).hash(&identity).under(PolicyTag::of("p"))
        };
        let keys: Vec<Key> = (0..self.keys).map(key).collect();
        let charge = |number: usize, now: Micros| {
            let span = calendar.as_ref().map(|calendar| calendar.span(now, 0));
            [Charge { key: keys[number], quota, span, cost: 1, share: Share::WHOLE, enforce: true }]
        };
        let mut shared = Shared::default();
        let mut arena: Vec<(usize, Box<[Charge; 1]>)> = Vec::new();
        // Those under way: by the moment of their next step.
        let mut steps: BinaryHeap<Reverse<(Micros, usize)>> = BinaryHeap::new();
        let mut calls: HashMap<usize, (Passage<'_>, Option<Charged>)> = HashMap::new();
        let least = self.weights.iter().copied().fold(f64::MAX, f64::min) / sum;
        let requests = (answers / least / self.answered_of()) as usize;
        let mut now = START;
        let mut arrivals: Vec<(Micros, usize, usize)> = Vec::with_capacity(requests);
        for _ in 0..requests {
            let gap = -(1.0 - rng.random::<f64>()).ln() / (RATE * self.load * self.keys as f64);
            now += (gap * 1e6) as Micros + 1;
            let mut point = rng.random::<f64>() * sum;
            let at = self.weights.iter().position(|weight| {
                point -= weight;
                point < 0.0
            });
            let at = match arrivals.last() {
                Some(&(_, last, _)) if rng.random_bool(self.sticky) => last,
                _ => at.unwrap_or(0),
            };
            arrivals.push((now, at, rng.random_range(0..self.keys)));
        }
        arena.extend(arrivals.iter().map(|&(at, instance, key)| (instance, Box::new(charge(key, at)))));
        let on_the_way = |rng: &mut StdRng| rng.random_range(self.latency / 2..=self.latency);
        for (number, &(arrives, instance, _)) in arrivals.iter().enumerate() {
            while steps.peek().is_some_and(|Reverse((due, _))| *due <= arrives) {
                let Some(Reverse((due, number))) = steps.pop() else { break };
                let (instance, charges) = &arena[number];
                let Some((passage, told)) = calls.remove(&number) else { continue };
                match told {
                    Some(told) => _ = passage.answered(told, due),
                    None => {
                        let note = passage.notes().next().unwrap().0;
                        let told = shared.charge(&charges[0], note, *instance, due);
                        steps.push(Reverse((due + on_the_way(&mut rng), number)));
                        calls.insert(number, (passage, Some(told)));
                    }
                }
            }
            let charges = &arena[number].1[..];
            if fleet[instance].denies(charges, self.latency, arrives).is_some() {
                continue;
            }
            calls.insert(number, (fleet[instance].depart(charges, false, arrives), None));
            steps.push(Reverse((arrives + on_the_way(&mut rng), number)));
        }
        drop(calls);
        show(&fleet);
    }

    /// Which part of the requests is charged to a bucket that is not empty, by the theory of queues.
    fn answered_of(&self) -> f64 {
        let busy = self.load.min(1.0);
        if self.windows {
            busy / self.load
        } else {
            (1.0 - (-busy).exp()).max(busy * 0.6) / self.load.max(1.0)
        }
    }

    /// Whether every instance has learned the truth within 10 %, and all of them together within 5 %. A tag stays for 32
    /// charges of a bucket that is never empty, so that takes many requests: all of them are sent in a soak only, and with
    /// fewer four standard errors are allowed for each instance.
    fn is_learned(&self, what: &str) {
        let least = self.weights.iter().copied().fold(f64::MAX, f64::min) / self.weights.iter().sum::<f64>();
        let charges_a_tag = if self.load < 1.0 && self.keys > 1 { 6.0 } else { 32.0 };
        // As many answers, and as many tags that they are about, as make the standard error a fortieth of the share.
        let mut answers = 1_600.0 * (1.0 / least - 1.0) * f64::max(1.0, charges_a_tag * least);
        if std::env::var_os("TIDEGATE_SOAK").is_none() {
            answers = answers.min(40_000.0 * least);
        }
        let counted = answers.min(answers / least / charges_a_tag);
        let most = (4.0 * ((1.0 / least - 1.0) / counted).sqrt()).max(0.1);
        let learned = self.learned(1, answers);
        for (learned, truth) in &learned {
            assert!((learned / truth - 1.0).abs() <= most, "{what}: {learned:.4} for {truth:.4}");
        }
        let sum = learned.iter().map(|(learned, _)| learned).sum::<f64>();
        let most = (most * least.sqrt()).max(0.05);
        assert!((sum - 1.0).abs() <= most, "{what}: all together learned {sum:.4}");
    }
}

#[test]
fn share_is_learned_at_every_load_of_2_4_and_16_instances() {
    for instances in [2, 4, 16] {
        for load in [0.2, 0.5, 0.8, 1.5] {
            Scene::even(instances, load).is_learned(&format!("{instances} instances at {load}"));
        }
    }
}

#[test]
fn share_is_learned_from_one_hot_key_alone() {
    for instances in [2, 4, 16] {
        for load in [0.8, 1.5, 3.0] {
            // Several calls of each instance are under way at any moment.
            let scene = Scene { keys: 1, latency: 50_000, ..Scene::even(instances, load) };
            scene.is_learned(&format!("{instances} instances, one key at {load}"));
        }
    }
}

/// Four processes on two busy cores were seen to serve a hot key in batches like these.
#[test]
fn share_is_learned_from_a_hot_key_served_in_batches() {
    for instances in [2, 4] {
        let scene = Scene { keys: 1, latency: 20_000, sticky: 0.25, ..Scene::even(instances, 3.0) };
        scene.is_learned(&format!("{instances} instances, one key in batches"));
    }
}

#[test]
fn share_is_learned_where_the_traffic_is_uneven() {
    for load in [0.5, 1.5] {
        Scene { weights: vec![5.0, 3.0, 2.0], ..Scene::even(3, load) }.is_learned("5 : 3 : 2");
    }
}

#[test]
fn share_is_learned_from_calendar_windows() {
    for load in [0.5, 1.5] {
        Scene { windows: true, ..Scene::even(4, load) }.is_learned(&format!("windows at {load}"));
    }
}

#[test]
fn share_is_learned_of_bursts_of_two_and_unknown_of_one() {
    let of = |burst| Scene { burst, ..Scene::even(2, 1.5) };
    of(2).is_learned("a burst of two");
    // It has room only while it is empty, and nothing says who emptied it.
    let mut memory = None;
    of(1).run(1, 1_000.0, |fleet| memory = fleet[0].share());
    assert_eq!(memory, None);
}

mod soak {
    /// With as many answers as it takes to know a share within a tenth.
    #[test]
    fn share_is_learned_within_a_tenth_at_every_load() {
        if std::env::var_os("TIDEGATE_SOAK").is_some() {
            super::share_is_learned_at_every_load_of_2_4_and_16_instances();
            super::share_is_learned_from_one_hot_key_alone();
            super::share_is_learned_from_a_hot_key_served_in_batches();
        }
    }
}
