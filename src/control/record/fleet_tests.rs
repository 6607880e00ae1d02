//! The wheel in a fleet: what is raised, lowered and rolled back while others do so as well, out of sight or slowly.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::tests::{points, stored, to, wheel, wheel_at};
use super::*;
use crate::control::database::Place;

#[tokio::test]
async fn unheard_rollback_stands_above_any_epoch() {
    for cut_off in [true, false] {
        let wheel = wheel(50, Environment::default()).await;
        wheel.steering.disk_says(Some(stored(3, 30, 50, None)));
        let fleet = Arc::new(Made { cut_off, ..Arc::into_inner(Made::new(None)).unwrap() });
        wheel.steering.carried_by(fleet);
        let back = wheel.steering.roll_back("ana", "5xx", None).await;
        // Another instance that took it may have been cut off as well. The others lowered more often than this one knew of, and raised.
        assert!(wheel.steering.meet(&stored(9, 90, 100, None).register, Source::Redis));
        assert_eq!(wheel.stands(), (Percent::NONE, 10, 91), "cut off: {cut_off}");
        assert_eq!(wheel.steering.record().updated_by, "ana");
        // Nor does one of the same epoch that did not follow it.
        let wheel = self::wheel(50, Environment::default()).await;
        wheel.steering.disk_says(Some(stored(3, 30, 50, None)));
        wheel.steering.roll_back("ana", "5xx", None).await;
        assert!(wheel.steering.meet(&stored(4, 32, 100, None).register, Source::Redis));
        assert_eq!(wheel.stands(), (Percent::NONE, 5, 33));
        // A raise from it has seen it.
        let seen = wheel.steering.register();
        let raise = seen.record.followed_by(Backend::Redis, points(70), "ben", "up");
        let raise = Register::new(raise.made_by(1, &seen, false));
        assert!(wheel.steering.meet(&raise, Source::Redis));
        assert_eq!(wheel.stands(), (points(70), 5, 34));
        assert!(back.durable);
    }
}

#[tokio::test]
async fn lost_raise_of_a_partition_is_noted_where_it_was_made() {
    let wheel = wheel(10, Environment::default()).await;
    wheel.steering.disk_says(Some(stored(0, 3, 10, None)));
    wheel.steering.found_nothing();
    wheel.steering.change(to(60, Some("*"))).await.unwrap();
    assert!(wheel.steering.meet(&stored(0, 4, 30, None).register, Source::Redis));
    assert_eq!(wheel.stands(), (points(30), 0, 4));
    let lost = wheel.steering.lost().unwrap();
    assert_eq!((lost.lost.percent, lost.won.percent), (points(60), points(30)));
    let trail = wheel.audit.page(None, 10).await.rows;
    assert_eq!((trail[0].0.action.as_str(), trail[0].0.result.as_str()), ("rollout.lost", "lost"));
    // One that was changed by an instance that has seen it is not lost.
    wheel.steering.change(to(70, Some("*"))).await.unwrap();
    assert_eq!(wheel.steering.lost(), None);
    let seen = wheel.steering.register();
    let next = seen.record.followed_by(Backend::Redis, points(80), "ben", "up").made_by(1, &seen, false);
    assert!(wheel.steering.meet(&Register::new(next), Source::Redis));
    assert_eq!(wheel.steering.lost(), None);
}

#[tokio::test]
async fn until_the_moment_of_a_raise_comes_what_was_in_force_is_whatever_was_announced_before() {
    let wheel = wheel(10, Environment::default()).await;
    let fleet = Made::new(Some(300_000));
    wheel.steering.carried_by(fleet.clone());
    for percent in [50, 80, 20] {
        wheel.steering.change(to(percent, Some("*"))).await.unwrap();
        assert_eq!(wheel.rollout.in_force().percent, points(10), "{percent} is announced");
    }
    *fleet.clock.lock() += 400_000;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(wheel.rollout.in_force().percent, points(20));
}

#[tokio::test]
async fn a_moment_that_no_raise_announces_holds_one_up_for_hours_at_most() {
    let wheel = wheel(10, Environment::default()).await;
    let fleet = Made::new(None);
    wheel.steering.carried_by(fleet.clone());
    let far = Record { effective_at: Some(Micros::MAX), ..stored(0, 9, 50, None).register.record };
    let far = Register::new(Record { previous: points(10), ..far });
    wheel.steering.found_nothing();
    assert!(wheel.steering.meet(&far, Source::Redis));
    assert_eq!(wheel.rollout.in_force().percent, points(10), "announced");
    let at = wheel.steering.record().effective_at.unwrap();
    assert!(at <= fleet.now() + 3 * 3_600 * 1_000_000, "{at}");
}

/// A fleet as a test wants it.
struct Made {
    clock: Mutex<Micros>,
    lead: Option<Micros>,
    hangs: bool,
    /// Nobody hears what is announced.
    cut_off: bool,
    /// A raise is asked for, and then its answer is let go.
    asked: Notify,
    let_go: Notify,
    holds: bool,
    answers: Mutex<Vec<Result<Raised, CarrierFault>>>,
}

impl Carrier for Made {
    fn raise<'a>(&'a self, _: &'a Record, next: &'a Record) -> BoxFuture<'a, Result<Raised, CarrierFault>> {
        let effective_at = self.lead.map(|lead| self.now() + lead);
        let won = Ok(Raised::Won(Box::new(Record { effective_at, ..next.clone() })));
        let answer = self.answers.lock().pop().unwrap_or(won);
        Box::pin(async move {
            self.asked.notify_one();
            if self.holds {
                self.let_go.notified().await;
            }
            answer
        })
    }

    fn can_keep(&self) -> Result<(), CarrierFault> {
        Ok(())
    }

    fn announce<'a>(&'a self, _: &'a Record) -> BoxFuture<'a, Applied> {
        Box::pin(async move {
            if self.hangs {
                std::future::pending::<()>().await;
            }
            if self.cut_off {
                return Applied { done: 1, of: 3, pending: vec!["two".into(), "three".into()], kept: false };
            }
            Applied { done: 2, of: 3, pending: vec!["three".into()], kept: true }
        })
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn now(&self) -> Micros {
        *self.clock.lock()
    }
}

impl Made {
    fn new(lead: Option<Micros>) -> Arc<Self> {
        Arc::new(Self {
            clock: Mutex::new(1_000),
            lead,
            hangs: false,
            cut_off: false,
            asked: Notify::new(),
            let_go: Notify::new(),
            holds: false,
            answers: Mutex::default(),
        })
    }
}

#[tokio::test]
async fn an_announced_raise_comes_at_its_moment_unless_a_lowering_comes_first() {
    for rolled_back in [false, true] {
        let wheel = wheel(10, Environment::default()).await;
        let fleet = Made::new(Some(300_000));
        wheel.steering.carried_by(fleet.clone());
        let raised = wheel.steering.change(to(50, Some("*"))).await.unwrap();
        assert_eq!((raised.durable, raised.applied.done, raised.applied.of), (true, 2, 3));
        assert_eq!(wheel.stands(), (points(10), 0, 2), "announced");
        let tag = wheel.steering.record().etag();
        assert_eq!(
            wheel.steering.change(to(20, None)).await,
            Err(Refusal::TagRequired),
            "above what is in force"
        );
        if rolled_back {
            wheel.steering.roll_back("ana", "no", None).await;
        }
        *fleet.clock.lock() += 400_000;
        tokio::time::sleep(Duration::from_millis(700)).await;
        let stands = if rolled_back { (Percent::NONE, 1, 3) } else { (points(50), 0, 2) };
        assert_eq!(wheel.stands(), stands);
        assert_eq!(wheel.steering.record().etag() == tag, !rolled_back);
    }
}

#[tokio::test]
async fn a_rollback_at_no_percent_wins_over_the_raise_that_is_under_way() {
    let wheel = wheel(0, Environment::default()).await;
    let fleet = Arc::new(Made { holds: true, ..Arc::into_inner(Made::new(None)).unwrap() });
    wheel.steering.carried_by(fleet.clone());
    let steering = Arc::clone(&wheel.steering);
    let raise = tokio::spawn(async move { steering.change(to(50, Some("*"))).await });
    fleet.asked.notified().await;
    let back = wheel.steering.roll_back("ana", "a mistake", None).await;
    assert_eq!((back.record.percent, back.record.epoch), (Percent::NONE, 1));
    fleet.let_go.notify_one();
    assert!(matches!(raise.await.unwrap(), Err(Refusal::Stale(_))));
    assert_eq!(wheel.stands(), (Percent::NONE, 1, 2));
    // Where Redis has the very record that is here, nothing changes.
    let again = wheel.steering.roll_back("ana", "to be sure", None).await.record;
    assert_eq!(again, back.record);
    // Out of reach another instance may be raising from it.
    let cut_off = Made { cut_off: true, ..Arc::into_inner(Made::new(None)).unwrap() };
    let wheel = self::wheel(0, Environment::default()).await;
    wheel.steering.carried_by(Arc::new(cut_off));
    let back = wheel.steering.roll_back("ana", "a mistake", None).await.record;
    let again = wheel.steering.roll_back("ana", "to be sure", None).await.record;
    let unseen = back.followed_by(Backend::Redis, points(80), "ben", "up");
    assert!(again.supersedes(&unseen) && again.percent == Percent::NONE);
}

#[tokio::test]
async fn who_asks_for_what_is_in_force_while_a_raise_is_under_way_gets_that_and_not_the_raise() {
    let wheel = wheel(10, Environment::default()).await;
    let fleet = Arc::new(Made { holds: true, ..Arc::into_inner(Made::new(None)).unwrap() });
    wheel.steering.carried_by(fleet.clone());
    let steering = Arc::clone(&wheel.steering);
    let raise = tokio::spawn(async move { steering.change(to(50, Some("*"))).await });
    fleet.asked.notified().await;
    assert_eq!(wheel.steering.change(to(10, None)).await.unwrap().record.percent, points(10));
    fleet.let_go.notify_one();
    assert!(matches!(raise.await.unwrap(), Err(Refusal::Stale(_))));
    assert_eq!(wheel.stands().0, points(10));
    // What is announced already comes no sooner for being asked for again, while its first answer is waited for.
    let wheel = self::wheel(10, Environment::default()).await;
    let fleet = Made { hangs: true, ..Arc::into_inner(Made::new(Some(5_000_000))).unwrap() };
    wheel.steering.carried_by(Arc::new(fleet));
    let steering = Arc::clone(&wheel.steering);
    let raise = tokio::spawn(async move { steering.change(to(50, Some("*"))).await });
    while wheel.steering.record().percent != points(50) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(wheel.steering.change(to(50, Some("*"))).await.unwrap().record.revision, 2);
    assert_eq!(wheel.stands().0, points(10), "announced");
    raise.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_lost_race_is_told_with_what_won_it() {
    let wheel = wheel(10, Environment::default()).await;
    let fleet = Made::new(None);
    let theirs = stored(0, 2, 30, None).register.record;
    wheel.steering.found_nothing();
    fleet.answers.lock().push(Ok(Raised::Lost(Box::new(theirs.clone()))));
    wheel.steering.carried_by(fleet);
    let lost = wheel.steering.change(to(50, Some("*"))).await;
    assert_eq!(lost, Err(Refusal::Stale(Box::new(theirs))));
    assert_eq!(wheel.stands(), (points(30), 0, 2));
}

#[tokio::test]
async fn a_refused_raise_that_may_turn_up_yet_is_superseded_by_what_is_in_force() {
    let directory = tempfile::tempdir().unwrap();
    let wheel = wheel_at(10, Environment::default(), Place::Memory, directory).await;
    wheel.steering.found_nothing();
    let fleet = Made::new(None);
    fleet.answers.lock().push(Err(CarrierFault("no answer in time".into())));
    wheel.steering.carried_by(fleet);
    let refused = wheel.steering.change(to(50, Some("*"))).await;
    assert!(matches!(refused, Err(Refusal::NotDurable { .. })), "{refused:?}");
    assert_eq!(wheel.stands(), (points(10), 0, 3));
    let late = stored(0, 2, 50, None);
    assert!(!wheel.steering.meet(&late.register, Source::Redis));
}

#[tokio::test]
async fn no_peer_holds_the_answer_of_a_rollback_for_long() {
    let wheel = wheel(10, Environment::default()).await;
    let fleet = Made { hangs: true, ..Arc::into_inner(Made::new(None)).unwrap() };
    wheel.steering.carried_by(Arc::new(fleet));
    let began = Instant::now();
    let back = wheel.steering.roll_back("ana", "5xx", None).await;
    assert!(began.elapsed() < Duration::from_millis(2_500), "{:?}", began.elapsed());
    assert_eq!((back.applied.done, back.durable), (1, true), "{back:?}");
}
