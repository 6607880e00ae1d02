//! Whatever happens between this process and Redis, checked against a small model of Redis.

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::*;
use crate::limiter::passage::Passage;

/// What can happen. An index is taken modulo what there is.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Time passes.
    Wait(Micros),
    /// A request that this process decides.
    Local { policies: usize, cost: usize, peek: bool },
    /// A locally admitted request turns out to be denied elsewhere.
    Refund(usize),
    /// A call sets out; Redis may or may not be told what time it was sent.
    Depart { policies: usize, cost: usize, peek: bool, dated: bool },
    /// Redis executes a call, be it long given up.
    Execute(usize),
    /// The answer of an executed call arrives.
    Answer(usize),
    /// A call is given up, and its request decided here, at one of so many parts.
    GiveUp(usize, u32),
    /// A call's client leaves.
    Leave(usize),
    /// Redis loses everything.
    Flush,
    /// Another process charges Redis.
    Elsewhere { policies: usize, cost: usize },
    /// Drained keys are forgotten.
    Sweep,
}

fn step() -> impl Strategy<Value = Step> {
    let (policies, cost) = (0..3usize, 0..4usize);
    let peek = prop::bool::weighted(0.1);
    prop_oneof![
        4 => prop_oneof![0..3_000u64, Just(0), Just(1_000), 3_000..20_000u64].prop_map(Step::Wait),
        4 => (policies.clone(), cost.clone(), peek)
            .prop_map(|(policies, cost, peek)| Step::Local { policies, cost, peek }),
        1 => any::<usize>().prop_map(Step::Refund),
        6 => (policies.clone(), cost.clone(), peek, prop::bool::weighted(0.7))
            .prop_map(|(policies, cost, peek, dated)| Step::Depart { policies, cost, peek, dated }),
        6 => any::<usize>().prop_map(Step::Execute),
        5 => any::<usize>().prop_map(Step::Answer),
        3 => (any::<usize>(), 1..4u32).prop_map(|(index, parts)| Step::GiveUp(index, parts)),
        1 => any::<usize>().prop_map(Step::Leave),
        1 => Just(Step::Flush),
        1 => (policies, cost).prop_map(|(policies, cost)| Step::Elsewhere { policies, cost }),
        1 => Just(Step::Sweep),
    ]
}

/// The arithmetic of the store's script for two buckets. A window is kept as its end plus the count.
#[derive(Default)]
struct Redis([Micros; 2]);

impl Redis {
    fn execute(
        &mut self,
        charges: &[Charge],
        buckets: &[usize],
        notes: &[(Micros, Option<Span>)],
        underway: Micros,
        peek: bool,
        now: Micros,
    ) -> Charged {
        let from: SmallVec<[Micros; 2]> =
            (charges.iter().zip(buckets)).map(|(charge, &bucket)| charge.from(self.0[bucket], now)).collect();
        let debts: Vec<Micros> = (charges.iter().zip(buckets).zip(notes).zip(&from))
            .map(|(((charge, &bucket), &(note, span)), &from)| {
                let note = match span {
                    None => note.saturating_sub(underway),
                    Some(span) if from == span.end => note,
                    // Of another window.
                    Some(_) => 0,
                };
                self.0[bucket].saturating_sub(from).max(note).min(charge.quota.tolerance())
            })
            .collect();
        let fits: Vec<bool> = (charges.iter().zip(&debts))
            .map(|(charge, &debt)| gcra::admits(debt, charge.amount(), charge.quota.tolerance()))
            .collect();
        let granted = charges.iter().zip(&fits).all(|(charge, &fits)| fits || !charge.enforce);
        let mut readings = Readings::new();
        for (at, charge) in charges.iter().enumerate() {
            let grows = granted && fits[at] && !peek;
            let debt = debts[at] + if grows { charge.amount() } else { 0 };
            if !peek {
                // A note that is greater is kept even when the hit is denied.
                self.0[buckets[at]] = self.0[buckets[at]].max(from[at] + debt);
            }
            readings.push(charge.reading(debt, fits[at], from[at], now));
        }
        Charged { readings, from, judged_at: now, last: SmallVec::new(), ahead: 0 }
    }
}

struct Call<'a> {
    policies: usize,
    charges: &'a [Charge],
    peek: bool,
    sent: Option<Micros>,
    notes: Vec<(Micros, Option<Span>)>,
    passage: Option<Passage<'a>>,
    outcome: Option<Charged>,
}

/// A hit that was let through: when it was judged, under which policies, at what cost.
#[derive(Clone, Copy, Debug)]
struct Admitted {
    at: Micros,
    policies: usize,
    cost: u32,
}

const BUCKETS: [&[usize]; 3] = [&[0], &[1], &[0, 1]];

fn admitted(charges: &[Charge], readings: &Readings) -> bool {
    charges.iter().zip(readings).all(|(charge, reading)| reading.allowed || !charge.enforce)
}

fn holds(quotas: [Quota; 2], spans: [Option<Span>; 2], steps: &[Step]) -> TestCaseResult {
    let memory = Memory::new(1_000);
    let of = |bucket: usize, cost: u32| Charge {
        key: key(bucket as u64),
        quota: quotas[bucket],
        span: spans[bucket],
        cost,
        share: Share::WHOLE,
        enforce: true,
    };
    let bills: Vec<Vec<Vec<Charge>>> = BUCKETS
        .iter()
        .map(|buckets| (0..4).map(|cost| buckets.iter().map(|&bucket| of(bucket, cost)).collect()).collect())
        .collect();
    let mut now = NOW;
    let mut redis = Redis::default();
    let mut calls: Vec<Call<'_>> = Vec::new();
    let mut hits: Vec<Admitted> = Vec::new();
    let mut refundable: Vec<(usize, usize, Readings, Admitted)> = Vec::new();

    fn pick<'c, 'a>(
        calls: &'c mut [Call<'a>],
        index: usize,
        fit: impl Fn(&Call<'a>) -> bool,
    ) -> Option<&'c mut Call<'a>> {
        let mut fitting: Vec<&mut Call<'a>> = calls.iter_mut().filter(|call| fit(call)).collect();
        let count = fitting.len();
        (count > 0).then(|| fitting.swap_remove(index % count))
    }

    for &step in steps {
        match step {
            Step::Wait(by) => now += by,
            Step::Local { policies, cost, peek } => {
                let charges = &bills[policies][cost];
                let readings = memory.charge(charges, peek, now);
                if admitted(charges, &readings) && !peek {
                    let hit = Admitted { at: now, policies, cost: cost as u32 };
                    refundable.push((policies, cost, readings, hit));
                }
            }
            Step::Refund(index) => {
                if !refundable.is_empty() {
                    let index = index % refundable.len();
                    let (policies, cost, readings, hit) = refundable.swap_remove(index);
                    memory.refund(&bills[policies][cost], &readings, hit.at, now);
                }
            }
            Step::Depart { policies, cost, peek, dated } => {
                let charges = &bills[policies][cost];
                let passage = memory.depart(charges, peek, now);
                let notes = passage.notes().collect();
                let sent = dated.then_some(now);
                let passage = Some(passage);
                calls.push(Call { policies, charges, peek, sent, notes, passage, outcome: None });
            }
            Step::Execute(index) => {
                if let Some(call) = pick(&mut calls, index, |call| call.outcome.is_none()) {
                    let underway = call.sent.map_or(0, |sent| now - sent);
                    let buckets = BUCKETS[call.policies];
                    let charged = redis.execute(call.charges, buckets, &call.notes, underway, call.peek, now);
                    call.outcome = Some(charged);
                }
            }
            Step::Answer(index) => {
                let answerable = |call: &Call<'_>| call.outcome.is_some() && call.passage.is_some();
                if let Some(call) = pick(&mut calls, index, answerable)
                    && let (Some(passage), Some(told)) = (call.passage.take(), call.outcome.clone())
                {
                    let at = told.judged_at;
                    let readings = passage.answered(told, now);
                    if admitted(call.charges, &readings) && !call.peek {
                        hits.push(Admitted { at, policies: call.policies, cost: call.charges[0].cost });
                    }
                }
            }
            Step::GiveUp(index, parts) => {
                if let Some(call) = pick(&mut calls, index, |call| call.passage.is_some())
                    && let Some(passage) = call.passage.take()
                {
                    let share = Share::one_of(NonZeroU32::new(parts).unwrap());
                    let here: Vec<Charge> =
                        call.charges.iter().map(|charge| Charge { share, ..*charge }).collect();
                    let readings = passage.decide_here(&here, now);
                    if admitted(call.charges, &readings) && !call.peek {
                        hits.push(Admitted { at: now, policies: call.policies, cost: call.charges[0].cost });
                    }
                }
            }
            Step::Leave(index) => {
                if let Some(call) = pick(&mut calls, index, |call| call.passage.is_some()) {
                    call.passage = None;
                }
            }
            Step::Flush => redis = Redis::default(),
            Step::Elsewhere { policies, cost } => {
                let charges = &bills[policies][cost];
                redis.execute(charges, BUCKETS[policies], &[(0, None); 2], 0, false, now);
            }
            Step::Sweep => (0..memory.shards()).for_each(|shard| memory.sweep(shard, now)),
        }
    }
    hits.extend(refundable.into_iter().map(|(_, _, _, hit)| hit));
    for (bucket, quota) in quotas.iter().enumerate() {
        let mut own: Vec<Admitted> =
            hits.iter().copied().filter(|hit| BUCKETS[hit.policies].contains(&bucket)).collect();
        own.sort_by_key(|hit| hit.at);
        if let Some(span) = spans[bucket] {
            for hit in &own {
                let end = span.end_at(hit.at);
                let spent: Micros = (own.iter().filter(|other| span.end_at(other.at) == end))
                    .map(|other| quota.charge(other.cost))
                    .sum();
                prop_assert!(spent <= quota.tolerance(), "bucket {bucket}: {spent} in a window: {own:?}");
            }
            continue;
        }
        for first in 0..own.len() {
            let mut spent = 0;
            for hit in &own[first..] {
                spent += quota.charge(hit.cost);
                let span = hit.at - own[first].at;
                prop_assert!(
                    spent <= quota.tolerance() + span,
                    "bucket {bucket}: {spent} µs spent in {span} µs, tolerance {}: {:?}",
                    quota.tolerance(),
                    own
                );
            }
        }
    }
    Ok(())
}

fn quotas(first_burst: u32, second_burst: u32) -> [Quota; 2] {
    let of =
        |interval, burst| Quota::new(NonZeroU32::MIN, interval, NonZeroU32::new(burst).unwrap()).unwrap();
    [of(1_000, first_burst), of(1_700, second_burst)]
}

/// A bucket beside a window that lasts for some milliseconds.
fn bucket_and_window(burst: u32, limit: u32, length: Micros) -> ([Quota; 2], [Option<Span>; 2]) {
    let [bucket, _] = quotas(burst, 1);
    let window =
        Quota::each(NonZeroU32::new(limit).unwrap(), crate::limiter::calendar::Unit::Second).unwrap();
    let start = NOW + 700;
    let span = Span { start, end: start + length, next: start + 2 * length, ahead: 0 };
    ([bucket, window], [None, Some(span)])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]
    #[test]
    fn no_interleaving_with_redis_admits_more_than_burst_and_rate(
        first in 1u32..6, second in 1u32..6, steps in prop::collection::vec(step(), 1..80),
    ) {
        holds(quotas(first, second), [None; 2], &steps)?;
    }

    #[test]
    fn no_interleaving_with_redis_admits_more_than_its_limit_in_a_window(
        burst in 1u32..6, limit in 1u32..6, length in 2_000u64..15_000,
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let (quotas, spans) = bucket_and_window(burst, limit, length);
        holds(quotas, spans, &steps)?;
    }
}

mod soak {
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if std::env::var_os("TIDEGATE_SOAK").is_some() { 1_000_000 } else { 1 },
            ..ProptestConfig::default()
        })]
        #[test]
        fn nor_does_any_of_a_million_interleavings(
            first in 1u32..6, second in 1u32..6, steps in prop::collection::vec(step(), 1..120),
        ) {
            holds(quotas(first, second), [None; 2], &steps)?;
        }

        #[test]
        fn nor_does_any_of_a_million_beside_a_window(
            burst in 1u32..6, limit in 1u32..6, length in 2_000u64..15_000,
            steps in prop::collection::vec(step(), 1..120),
        ) {
            let (quotas, spans) = bucket_and_window(burst, limit, length);
            holds(quotas, spans, &steps)?;
        }
    }
}
