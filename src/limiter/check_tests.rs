//! Decisions whose clients leave, on a store that answers on command and a clock that does not move.

use std::borrow::Cow;
use std::future::poll_fn;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

use parking_lot::Mutex;
use smallvec::smallvec;

use super::*;
use crate::limiter::Hit;
use crate::limiter::calendar::{Calendar, Unit};
use crate::limiter::clock::{Clock, Micros, SECOND};
use crate::limiter::decision::Ruling;
use crate::limiter::gcra::Quota;
use crate::limiter::memory::Memory;
use crate::limiter::penalty::Penalty;
use crate::limiter::policy::{Policy, Rules};
use crate::limiter::rollout::{InForce, Percent, Rollout};
use crate::limiter::route::Route;
use crate::limiter::settle::{Outcome, Settling, Tab};
use crate::limiter::store::{Charged, Fault, FaultKind, SharedCharge};
use crate::limiter::subject::{Facts, FleetKeys, Part, Subject, SubjectHash};

const NOW: Micros = 1_800_000_000 * SECOND;

/// What the store does with calls.
#[derive(Clone, Copy, PartialEq)]
enum Does {
    Hangs,
    Admits,
    Denies,
    Fails,
}

struct LateStore {
    client: Mutex<Does>,
    all: Mutex<Does>,
    calls: AtomicUsize,
    /// The decisions that it was given to complete, and how many it takes.
    background: Mutex<Vec<DecisionFuture>>,
    most: usize,
}

impl LateStore {
    fn does(&self, charge: &SharedCharge<'_>) -> Does {
        *if charge.policy == "all" { self.all.lock() } else { self.client.lock() }
    }
}

impl Store for LateStore {
    async fn charge(&self, charges: &[SharedCharge<'_>], _: bool, now: Micros) -> Result<Charged, Fault> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let one = &charges[0];
        poll_fn(|_| if self.does(one) == Does::Hangs { Poll::Pending } else { Poll::Ready(()) }).await;
        let reading = match self.does(one) {
            Does::Fails | Does::Hangs => return Err(Fault::unasked(FaultKind::Timeout)),
            Does::Admits => one.quota.reading(one.note + one.quota.charge(one.cost), one.cost, true),
            Does::Denies => one.quota.reading(one.quota.tolerance(), one.cost, false),
        };
        Ok(Charged {
            readings: smallvec![reading],
            from: smallvec![now],
            judged_at: now,
            last: smallvec![None],
            ahead: 0,
        })
    }

    /// Each policy has a place of its own.
    fn place(&self, subject: SubjectHash) -> u16 {
        u16::from_be_bytes([subject.0[0], subject.0[1]])
    }

    fn lag(&self, _: SubjectHash) -> Option<Micros> {
        Some(0)
    }

    fn ahead(&self, _: SubjectHash) -> Option<i64> {
        Some(0)
    }

    fn least_ahead(&self) -> Option<i64> {
        Some(0)
    }

    fn is_recovering(&self, _: SubjectHash, _: Micros) -> bool {
        false
    }

    async fn forget(&self, _: &[&str], _: SubjectHash) -> Result<(), Fault> {
        Ok(())
    }

    fn behind(&self, _: impl Future<Output = Outcome> + Send + 'static) -> bool {
        false
    }

    fn complete(&self, decision: DecisionFuture) {
        let mut background = self.background.lock();
        if background.len() < self.most {
            background.push(decision);
        }
    }
}

struct Client(u64);

impl Facts for Client {
    fn claim(&self, _: &str) -> Option<Cow<'_, [u8]>> {
        Some(self.0.to_string().into_bytes().into())
    }
}

const ME: Client = Client(1);
const BYSTANDER: Client = Client(2);

fn hourly(limit: u32) -> Quota {
    let limit = NonZeroU32::new(limit).unwrap();
    Quota::new(limit, 3_600 * SECOND, limit).unwrap()
}

/// Each client ten an hour, and all of them 300: below 100 percent memory keeps the latter.
struct Stage(Arc<Limiter<LateStore>>);

impl Stage {
    /// Whose store completes so many decisions at once.
    fn new(percent: Percent, most: usize) -> Self {
        Self::with_keys(1_000, percent, most)
    }

    fn with_keys(keys: usize, percent: Percent, most: usize) -> Self {
        let mut client = Policy::new("client", Subject::new([Part::Jwt("sub".into())]), hourly(10));
        let after = NonZeroU32::new(3).unwrap();
        client.penalty = Some(Penalty { after, within: SECOND, lasts: SECOND });
        let all = Policy::new("all", Subject::new([]), hourly(300));
        Self::with_policies([client, all], (keys, most), percent, None)
    }

    fn with_policies(
        policies: [Policy; 2],
        (keys, most): (usize, usize),
        percent: Percent,
        fleet: Option<NonZeroU32>,
    ) -> Self {
        let mut rules = Rules::none();
        rules.add("rule", Route::any(), 1, policies);
        let rollout = Arc::new(Rollout::default());
        rollout.learn_keys(FleetKeys::new([1; 16], [2; 16]));
        rollout.put(InForce { percent, revision: 1 });
        let (client, all) = (Mutex::new(Does::Hangs), Mutex::new(Does::Hangs));
        let store = LateStore { client, all, calls: AtomicUsize::new(0), background: Mutex::default(), most };
        let limiter = Limiter::new(rules, Memory::new(keys), &[7; 16], Clock::manual(NOW));
        Self(Arc::new(limiter.with_rollout(rollout).with_store(store).in_a_fleet_of(fleet)))
    }

    fn store(&self) -> &LateStore {
        self.0.store().unwrap()
    }

    fn does(&self, client: Does, all: Does) {
        (*self.store().client.lock(), *self.store().all.lock()) = (client, all);
    }

    /// A request whose client leaves while the store is asked.
    fn hang_up(&self, client: &Client) {
        let mut check = self.0.check(client, Hit::ONE);
        assert!(poll(Pin::new(&mut check)).is_pending());
    }

    fn completes(&self) {
        for mut decision in std::mem::take(&mut *self.store().background.lock()) {
            assert!(poll(decision.as_mut()).is_ready());
        }
    }

    /// What is left of both policies, as memory has it.
    fn left(&self, client: &Client) -> [u32; 2] {
        self.does(Does::Fails, Does::Fails);
        let Poll::Ready(decision) = poll(pin!(self.0.check(client, PEEK))) else { panic!("it waits") };
        assert_eq!(decision.ruling(), None);
        ["client", "all"].map(|policy| {
            let verdict = decision.verdicts().find(|(one, _)| &*one.name == policy);
            verdict.unwrap().1.reading.remaining
        })
    }
}

const PEEK: Hit = Hit { cost: 0, peek: true };

fn poll<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn most() -> Percent {
    Percent::from_basis_points(9_999).unwrap()
}

#[test]
fn hangup_is_refunded_and_counts_for_the_penalty() {
    let stage = Stage::new(most(), usize::MAX);
    for _ in 0..3 {
        stage.hang_up(&ME);
    }
    assert_eq!(stage.left(&BYSTANDER), [10, 297], "not known yet");
    stage.does(Does::Denies, Does::Denies);
    stage.completes();
    let Poll::Ready(decision) = poll(pin!(stage.0.check(&ME, Hit::ONE))) else { panic!("it is asked") };
    assert!(matches!(decision.ruling(), Some(Ruling::Blocked(..))), "{:?}", decision.ruling());
    assert_eq!(stage.left(&BYSTANDER), [10, 300]);
}

#[test]
fn hangup_that_is_admitted_is_charged_as_if_it_had_waited() {
    let stage = Stage::new(most(), usize::MAX);
    stage.hang_up(&ME);
    stage.does(Does::Admits, Does::Admits);
    stage.completes();
    assert_eq!(stage.left(&ME), [9, 299]);
}

#[test]
fn hangups_beyond_the_bound_leave_local_debt_and_no_charge() {
    let stage = Stage::new(most(), 0);
    for hangup in 1..=10 {
        stage.hang_up(&ME);
        assert_eq!(stage.left(&ME), [10 - hangup, 300], "{hangup}");
        stage.does(Does::Hangs, Does::Hangs);
    }
    let calls = stage.store().calls.load(Ordering::Relaxed);
    let Poll::Ready(decision) = poll(pin!(stage.0.check(&ME, Hit::ONE))) else { panic!("it is asked") };
    assert!(decision.cached && !decision.allowed());
    assert_eq!(stage.store().calls.load(Ordering::Relaxed), calls);
}

#[test]
fn hangups_at_once_beyond_the_bound_leave_the_debt_of_each() {
    let stage = Stage::new(most(), 0);
    let mut checks: Vec<Check> = (0..7).map(|_| stage.0.check(&ME, Hit::ONE)).collect();
    for check in &mut checks {
        assert!(poll(Pin::new(check)).is_pending());
    }
    // The last leaves first.
    while let Some(check) = checks.pop() {
        drop(check);
    }
    assert_eq!(stage.left(&ME), [3, 300]);
}

#[test]
fn hangup_while_one_place_answered_is_settled_in_both() {
    for (all, left) in [(Does::Denies, [10, 0]), (Does::Admits, [9, 299])] {
        let stage = Stage::new(Percent::ALL, usize::MAX);
        stage.does(Does::Admits, Does::Hangs);
        stage.hang_up(&ME);
        stage.does(Does::Admits, all);
        stage.completes();
        assert_eq!(stage.left(&ME), left);
    }
    let stage = Stage::new(Percent::ALL, 0);
    stage.does(Does::Admits, Does::Hangs);
    stage.hang_up(&ME);
    assert_eq!(stage.left(&ME), [9, 299], "dropped: both are kept as local debt");
}

#[test]
fn check_dropped_before_it_began_or_a_peek_leaves_nothing() {
    let stage = Stage::new(most(), usize::MAX);
    drop(stage.0.check(&ME, Hit::ONE));
    let mut peek = stage.0.check(&ME, PEEK);
    assert!(poll(Pin::new(&mut peek)).is_pending());
    drop(peek);
    assert_eq!(stage.store().background.lock().len(), 0);
    assert_eq!(stage.left(&ME), [10, 300]);
}

#[test]
fn hundred_thousand_hangups_leave_no_call_and_no_future() {
    let stage = Stage::with_keys(200_000, most(), 16);
    // One in ten thousand clients is memory's, and is admitted there.
    let mut admitted = 0;
    for number in 0..100_000 {
        admitted += u32::from(poll(pin!(stage.0.check(&Client(number), Hit::ONE))).is_ready());
    }
    assert_eq!(stage.store().background.lock().len(), 16);
    stage.does(Does::Denies, Does::Denies);
    stage.completes();
    let memory = stage.0.memory();
    let in_flight = (0..memory.shards()).map(|at| memory.shard(at).voyages.len()).sum::<usize>();
    assert_eq!((in_flight, Arc::strong_count(&stage.0)), (0, 1));
    assert_eq!(stage.left(&Client(200_000)), [10, 300 - admitted]);
}

#[test]
fn dropped_cost_adjustment_is_kept_in_memory() {
    for (actual, left) in [(5, 5), (0, 10)] {
        let stage = Stage::new(most(), 0);
        stage.does(Does::Admits, Does::Admits);
        let mut tab = Tab::default();
        let check = poll(pin!(stage.0.check_on(&ME, Hit::ONE, Some(&mut tab))));
        let Poll::Ready(decision) = check else { panic!("it is answered") };
        let settlement = stage.0.settle(&tab, &decision, actual, true).unwrap();
        let Settling::Asking(mut asking) = settlement.outcome else { panic!("the store is asked") };
        stage.does(Does::Hangs, Does::Hangs);
        assert!(poll(asking.as_mut()).is_pending());
        drop(asking);
        assert_eq!(stage.left(&ME)[0], left, "cost {actual}");
        let memory = stage.0.memory();
        assert!((0..memory.shards()).all(|at| memory.shard(at).voyages.is_empty()));
    }
}

/// A request in Redis' place that turns out to cost more or less leaves each bucket of its key as one that cost so much from
/// the start: at a share of a quarter each unit counts as four.
#[test]
fn adjustment_in_fallback_is_charged_at_the_share() {
    let quarter = || {
        let minutes = Quota::each(NonZeroU32::new(40).unwrap(), Unit::Minute).unwrap();
        let window = Policy::new("all", Subject::new([]), minutes);
        let window = window.in_windows_of(Calendar::new(Unit::Minute, "UTC").unwrap());
        let client = Policy::new("client", Subject::new([Part::Jwt("sub".into())]), hourly(40));
        let stage = Stage::with_policies([client, window], (1_000, 0), Percent::ALL, NonZeroU32::new(4));
        stage.does(Does::Fails, Does::Fails);
        stage
    };
    let ask = |stage: &Stage, cost: u32, tab: Option<&mut Tab>| {
        let check = poll(pin!(stage.0.check_on(&ME, Hit { cost, peek: false }, tab)));
        let Poll::Ready(decision) = check else { panic!("it waits") };
        decision
    };
    let readings = |decision: Decision| -> Vec<_> {
        decision.verdicts().map(|(_, verdict)| (verdict.reading.remaining, verdict.reading.debt)).collect()
    };
    for (cost, actual, after) in [
        (1, 2, 0),
        (1, 9, 0),
        (3, 1, 0),
        (2, 0, 0),
        (12, 4, 0),
        (4, 1, 60),
        (1, 3, 2),
        (2, 0, 400),
        (4, 1, 500),
    ] {
        let (adjusted, plain) = (quarter(), quarter());
        let mut tab = Tab::default();
        let decision = ask(&adjusted, cost, Some(&mut tab));
        assert!(decision.allowed() && decision.verdicts().all(|(_, verdict)| verdict.share.as_f64() == 0.25));
        assert!(ask(&plain, actual, None).allowed());
        let later = after * 90 * SECOND / 100;
        adjusted.0.clock.advance(later);
        let settlement = adjusted.0.settle(&tab, &decision, actual, true).unwrap();
        assert!(matches!(settlement.outcome, Settling::Done(Outcome::Memory)));
        plain.0.clock.advance(later);
        let [of_adjusted, of_plain] = [&adjusted, &plain].map(|stage| readings(ask(stage, 0, None)));
        assert_eq!(of_adjusted, of_plain, "{cost} became {actual} after {later} µs");
        let [of_adjusted, of_plain] = [&adjusted, &plain].map(|stage| ask(stage, 10, None).allowed());
        assert_eq!(of_adjusted, of_plain, "{cost} became {actual}");
    }
}

#[test]
fn members_count_once_their_list_is_complete() {
    let all = || Policy::new("all", Subject::new([]), hourly(300));
    let of = |size| {
        Stage::with_policies(
            [all(), Policy::new("other", Subject::new([]), hourly(300))],
            (1_000, 0),
            most(),
            size,
        )
    };
    let fleet = of(NonZeroU32::new(4));
    let share = |stage: &Stage| {
        let (share, source) = stage.0.share_and_source();
        (share.as_f64(), source.as_str())
    };
    fleet.0.fleet_has(1, false);
    assert_eq!(share(&fleet), (0.25, "fleet_size"), "the others have not spoken yet");
    fleet.0.fleet_has(5, false);
    assert_eq!(share(&fleet), (0.2, "members"));
    fleet.0.fleet_has(2, true);
    assert_eq!(share(&fleet), (0.5, "members"));
    let unconfigured = of(None);
    unconfigured.0.fleet_has(2, false);
    assert_eq!(share(&unconfigured), (0.5, "members"));
}
