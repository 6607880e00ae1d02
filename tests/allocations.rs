//! What a decision allocates, counted by door: each number is the most that it may be, and says what it is for.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use actix_web::dev::Service;
use actix_web::test::{TestRequest, init_service};
use actix_web::{App, web};
use parking_lot::Mutex;
use tidegate::doors::client_ip::TrustedProxies;
use tidegate::doors::headers::Sets;
use tidegate::doors::middleware::RateLimit;
use tidegate::limiter::clock::{Clock, Micros, SECOND};
use tidegate::limiter::decision::{Backend, Decision};
use tidegate::limiter::gcra::{Quota, Reading};
use tidegate::limiter::memory::Memory;
use tidegate::limiter::overrides::{Effect, Override, OwnLimit};
use tidegate::limiter::policy::{Policy, Rules};
use tidegate::limiter::rollout::{InForce, Percent, Rollout};
use tidegate::limiter::route::Route;
use tidegate::limiter::settle::Outcome;
use tidegate::limiter::store::{Charged, Charger, Fault, SharedCharge, Store};
use tidegate::limiter::subject::{Facts, FleetKeys, Part, Subject, SubjectHash};
use tidegate::limiter::{DecisionFuture, Hit, Limiter};

#[global_allocator]
static COUNTING: dhat::Alloc = dhat::Alloc;

/// There is one count for the whole process.
static ALONE: Mutex<()> = Mutex::new(());

const TIMES: u64 = 1_000;

/// Blocks that are allocated each time, the first few times left out: tables grow then, and names are learned. The least of
/// several rounds: the runner of the tests allocates now and then in a thread of its own, and counts along.
fn blocks(mut once: impl FnMut()) -> f64 {
    for _ in 0..100 {
        once();
    }
    let mut round = || {
        let before = dhat::HeapStats::get().total_blocks;
        for _ in 0..TIMES {
            once();
        }
        (dhat::HeapStats::get().total_blocks - before) as f64 / TIMES as f64
    };
    (0..5).map(|_| round()).fold(f64::INFINITY, f64::min)
}

struct Client;

impl Facts for Client {
    fn ip(&self) -> Option<IpAddr> {
        Some(Ipv4Addr::new(192, 0, 2, 17).into())
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        (name == "x-api-key").then_some(b"ak_live_0123456789")
    }
}

fn quota(limit: u32) -> Quota {
    let limit = NonZeroU32::new(limit).unwrap();
    Quota::new(limit, SECOND, limit).unwrap()
}

/// One rule with so many policies by address and by key.
fn rules(subjects: &[Part], limit: u32) -> Rules {
    let policy = |(at, part): (usize, &Part)| {
        Policy::new(format!("policy-{at}"), Subject::new([part.clone()]), quota(limit))
    };
    let mut rules = Rules::none();
    rules.add("default", Route::any(), 1, subjects.iter().enumerate().map(policy));
    rules
}

fn by_key() -> Part {
    Part::Header("x-api-key".into())
}

fn in_memory(subjects: &[Part], limit: u32) -> Arc<Limiter> {
    Arc::new(Limiter::new(rules(subjects, limit), Memory::new(1_000), &[7; 16], Clock::system()))
}

/// A store that has the answer at once: what is left is what the limiter allocates for asking.
struct AtOnce;

impl Store for AtOnce {
    async fn charge(&self, charges: &[SharedCharge<'_>], _: bool, now: Micros) -> Result<Charged, Fault> {
        let reading = Reading { allowed: true, remaining: 9, debt: 1, reset_after: 1, retry_after: Some(0) };
        let readings = charges.iter().map(|_| reading).collect();
        let last = charges.iter().map(|_| Some(Charger::This)).collect();
        Ok(Charged { readings, from: charges.iter().map(|_| now).collect(), judged_at: now, last, ahead: 0 })
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

    fn place(&self, _: SubjectHash) -> u16 {
        0
    }

    fn behind(&self, _: impl Future<Output = Outcome> + Send + 'static) -> bool {
        true
    }

    fn complete(&self, _: DecisionFuture) {}

    async fn forget(&self, _: &[&str], _: SubjectHash) -> Result<(), Fault> {
        Ok(())
    }
}

fn decided<S: Store>(limiter: &Arc<Limiter<S>>) -> Decision {
    let mut check = pin!(limiter.check(&Client, Hit::ONE));
    match check.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(decision) => decision,
        Poll::Pending => panic!("it waits"),
    }
}

#[test]
fn a_decision_in_memory_allocates_nothing_whether_it_admits_or_denies() {
    let _alone = ALONE.lock();
    let _counted = dhat::Profiler::builder().testing().build();
    for subject in [Part::Ip, by_key()] {
        for limit in [1_000_000, 1] {
            let limiter = in_memory(std::slice::from_ref(&subject), limit);
            let blocks = blocks(|| drop(decided(&limiter)));
            assert_eq!(blocks, 0.0, "{subject}, {limit} a second");
        }
    }
}

#[test]
fn a_decision_in_memory_allocates_nothing_for_overrides_of_others_nor_for_one_of_its_own() {
    let _alone = ALONE.lock();
    let _counted = dhat::Profiler::builder().testing().build();
    let more = OwnLimit { limit: NonZeroU32::MIN, period: Some(SECOND), unit: None, burst: None };
    for (key, effect) in [
        ("another", Effect::Block),
        ("ak_live_0123456789", Effect::Block),
        ("ak_live_0123456789", Effect::Exempt),
        ("ak_live_0123456789", Effect::Limit(more)),
    ] {
        let limiter = in_memory(&[by_key()], 1_000_000);
        limiter.put_overrides([Override {
            id: "one".into(),
            rule: "default".into(),
            policy: None,
            by: None,
            key: vec![key.as_bytes().into()],
            effect,
            expires_at: None,
        }]);
        assert_eq!(decided(&limiter).override_id().is_some(), key != "another");
        let blocks = blocks(|| drop(decided(&limiter)));
        assert_eq!(blocks, 0.0, "{key} {effect:?}");
    }
}

#[test]
fn each_further_policy_costs_a_decision_in_memory_no_more_than_a_few_blocks_in_all() {
    let _alone = ALONE.lock();
    let _counted = dhat::Profiler::builder().testing().build();
    let limiter = in_memory(&[Part::Ip, by_key()], 1_000_000);
    // What is owed and what was said, a list each; the third is of shards that are locked.
    let two = blocks(|| drop(decided(&limiter)));
    assert!(two <= 3.0, "{two}");
    let limiter = in_memory(&[Part::Ip, by_key(), Part::Ip, by_key()], 1_000_000);
    let four = blocks(|| drop(decided(&limiter)));
    assert!(four <= 8.0, "{four}");
}

#[test]
fn asking_the_shared_store_allocates_the_future_and_little_else() {
    let _alone = ALONE.lock();
    let _counted = dhat::Profiler::builder().testing().build();
    let rollout = Arc::new(Rollout::default());
    rollout.learn_keys(FleetKeys::new([1; 16], [2; 16]));
    rollout.put(InForce { percent: Percent::from_basis_points(10_000).unwrap(), revision: 1 });
    let limiter = Limiter::new(rules(&[by_key()], 1_000_000), Memory::new(1_000), &[7; 16], Clock::system());
    let limiter = Arc::new(limiter.with_rollout(rollout).with_store(AtOnce));
    let decision = decided(&limiter);
    assert_eq!((decision.backend(), decision.fallback()), (Backend::Redis, None));
    let blocks = blocks(|| drop(decided(&limiter)));
    assert!(blocks <= 1.0, "{blocks}");
}

/// Blocks that each request to this application costs.
macro_rules! blocks_of {
    ($app:expr) => {{
        let app = init_service($app.route("/", web::get().to(async || "hello"))).await;
        // The least of several rounds, as above; the first is for what is made once.
        let (rounds, times) = (6, 100);
        let mut counts = vec![0; rounds];
        for time in 0..rounds * times {
            let key = ("x-api-key", "ak_live_0123456789");
            let peer = "192.0.2.17:1234".parse().unwrap();
            let request = TestRequest::get().uri("/").insert_header(key).peer_addr(peer).to_request();
            let before = dhat::HeapStats::get().total_blocks;
            let answer = app.call(request).await.unwrap();
            counts[time / times] += dhat::HeapStats::get().total_blocks - before;
            assert_eq!(answer.status(), 200);
        }
        counts[1..].iter().min().map_or(0.0, |least| *least as f64 / times as f64)
    }};
}

fn limited(sets: Sets) -> RateLimit {
    RateLimit::with(in_memory(&[by_key()], 1_000_000), Arc::new(TrustedProxies::default()), sets)
}

#[test]
fn the_middleware_adds_two_blocks_to_a_request_and_its_headers_three_more() {
    let _alone = ALONE.lock();
    let _counted = dhat::Profiler::builder().testing().build();
    actix_web::rt::System::new().block_on(blocks_of_the_middleware());
}

async fn blocks_of_the_middleware() {
    let bare = blocks_of!(App::new());
    let silent = blocks_of!(App::new().wrap(limited(Sets::NONE))) - bare;
    let telling = blocks_of!(App::new().wrap(limited(Sets::default()))) - bare;
    // The decision outlives the request, for the log; an application that is wrapped boxes its future.
    assert!(silent <= 2.0, "{silent} beside {bare}");
    // One text of a structured field, a number that is not among those kept ready, and the map that grows for five names.
    assert!(telling - silent <= 3.0, "{telling} beside {silent}");
}
