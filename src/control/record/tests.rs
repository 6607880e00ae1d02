//! The wheel, and the environment as one who writes.

use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::control::audit::{Audit, Stored};
use crate::control::database::{Database, Place};
use crate::limiter::event::{Event, Observer, RollbackCause, Silent};
use crate::limiter::rollout::{InForce, Rollout};

pub(super) fn points(percent: u16) -> Percent {
    Percent::from_basis_points(percent * 100).unwrap()
}

/// Counts rollbacks, by cause.
#[derive(Default)]
struct Rolled(Mutex<Vec<RollbackCause>>);

impl Observer for Rolled {
    fn observe(&self, event: &Event<'_>) {
        if let Event::RolledBack(cause) = event {
            self.0.lock().push(*cause);
        }
    }
}

pub(super) struct Wheel {
    pub(super) steering: Arc<Steering>,
    pub(super) rollout: Arc<Rollout>,
    pub(super) audit: Arc<Audit>,
    rolled: Arc<Rolled>,
    _directory: tempfile::TempDir,
}

pub(super) async fn wheel(percent: u16, environment: Environment) -> Wheel {
    let directory = tempfile::tempdir().unwrap();
    wheel_at(percent, environment, Place::File(directory.path().join("t.db")), directory).await
}

pub(super) async fn wheel_at(
    percent: u16,
    environment: Environment,
    place: Place,
    directory: tempfile::TempDir,
) -> Wheel {
    let audit = Audit::new(Database::new(place, 100, Arc::new(Silent)));
    let rollout = Arc::new(Rollout::default());
    let record = Record::initial(points(percent), "start");
    let rolled = Arc::<Rolled>::default();
    let steering =
        Steering::new(record, environment, Arc::clone(&audit), Arc::clone(&rollout), rolled.clone());
    let _ = audit.database().open().await;
    Wheel { steering, rollout, audit, rolled, _directory: directory }
}

pub(super) fn to(percent: u16, seen: Option<&str>) -> Change {
    Change {
        percent: points(percent),
        backend: None,
        actor: "ana".into(),
        reason: "a test".into(),
        seen: seen.map(str::to_owned),
        request_id: None,
        may_raise: true,
    }
}

pub(super) fn stored(epoch: u64, revision: u64, percent: u16, remembered: Option<u16>) -> Stored {
    let own = RememberedEnv { backend: None, percent: remembered.map(points) };
    let record = Record { epoch, revision, ..Record::initial(points(percent), "before") };
    let register = Register { seen: Seen::of_older_version(own), ..Register::new(record) };
    Stored { register, own, unasked: None, made_here: false }
}

pub(super) fn env(percent: u16) -> Environment {
    Environment { percent: Some(points(percent)), ..Environment::default() }
}

impl Wheel {
    /// The share in force, the epoch, the revision.
    pub(super) fn stands(&self) -> (Percent, u64, u64) {
        let record = self.steering.record();
        (self.rollout.in_force().percent, record.epoch, record.revision)
    }
}

#[tokio::test]
async fn raising_needs_the_present_tag_and_lowering_needs_none() {
    let wheel = wheel(10, Environment::default()).await;
    let steering = &wheel.steering;
    assert_eq!(steering.change(to(50, None)).await, Err(Refusal::TagRequired));
    assert!(matches!(steering.change(to(50, Some("\"9-9\""))).await, Err(Refusal::Stale(_))));
    let tag = steering.record().etag();
    let raised = steering.change(to(50, Some(&tag))).await.unwrap();
    assert!(raised.durable);
    assert_eq!(wheel.stands(), (points(50), 0, 2));
    assert!(matches!(steering.change(to(60, Some(&tag))).await, Err(Refusal::Stale(_))), "the tag is spent");
    assert!(steering.change(to(5, None)).await.unwrap().durable);
    assert_eq!(wheel.stands(), (points(5), 1, 3));
    assert_eq!(wheel.rollout.in_force(), InForce { percent: points(5), revision: 3 });
    assert_eq!(wheel.audit.database().load().await.unwrap().unwrap().register, steering.register());
}

#[tokio::test]
async fn rollback_is_in_force_at_once_and_idempotent_and_needs_no_disk() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("file"), "").unwrap();
    let place = Place::File(directory.path().join("file/t.db"));
    let wheel = wheel_at(10, Environment { pinned: true, ..Environment::default() }, place, directory).await;
    let first = wheel.steering.roll_back("ana", "5xx", None).await;
    assert_eq!((first.record.percent, first.record.revision, first.durable), (Percent::NONE, 2, false));
    assert_eq!(wheel.rollout.in_force().percent, Percent::NONE);
    assert_eq!(wheel.steering.roll_back("ana", "again", None).await, first);
    let refused = wheel.steering.change(to(20, Some("*"))).await;
    assert_eq!(refused, Err(Refusal::PinnedByEnv));
}

#[tokio::test]
async fn a_raise_that_nobody_can_keep_is_refused_and_nothing_is_in_force_or_left_over_of_it() {
    for place in [Place::Memory, Place::File("/proc/no/such.db".into())] {
        let directory = tempfile::tempdir().unwrap();
        let wheel = wheel_at(10, Environment::default(), place, directory).await;
        let refused = wheel.steering.change(to(20, Some("*"))).await;
        assert!(matches!(refused, Err(Refusal::NotDurable { .. })), "{refused:?}");
        assert_eq!(wheel.stands(), (points(10), 0, 1));
    }
}

#[tokio::test]
async fn a_pinned_percentage_is_raised_by_nobody_here_but_lowered_by_anybody() {
    let wheel = wheel(10, Environment { pinned: true, ..Environment::default() }).await;
    let steering = &wheel.steering;
    assert_eq!(steering.change(to(20, Some("*"))).await, Err(Refusal::PinnedByEnv));
    assert!(steering.change(to(5, None)).await.is_ok());
    assert_eq!(steering.change(to(10, Some("*"))).await, Err(Refusal::PinnedByEnv), "back up is a raise");
}

#[tokio::test]
async fn without_redis_nothing_can_be_raised_and_memory_decides_whatever_the_record_says() {
    let hard_off = Environment { hard_off: Some("REDIS_URL is not set"), ..env(50) };
    let wheel = wheel(50, hard_off).await;
    wheel.steering.disk_says(Some(stored(2, 7, 30, Some(10))));
    assert_eq!(wheel.stands(), (Percent::NONE, 2, 7), "the record is kept, and the variable passed over");
    assert_eq!(wheel.steering.own_environment().percent, Some(points(10)), "put back, it is compared then");
    assert!(matches!(wheel.steering.change(to(40, Some("*"))).await, Err(Refusal::DisabledByEnv(_))));
    assert!(wheel.steering.change(to(0, None)).await.is_ok());
}

#[tokio::test]
async fn switching_the_flag_to_redis_is_a_raise() {
    let wheel = wheel(100, Environment::default()).await;
    let flag = |backend, seen| Change { backend: Some(backend), ..to(100, seen) };
    wheel.steering.change(flag(Backend::Memory, None)).await.unwrap();
    assert_eq!(wheel.stands(), (Percent::NONE, 1, 2));
    assert_eq!(wheel.steering.change(flag(Backend::Redis, None)).await, Err(Refusal::TagRequired));
    wheel.steering.change(flag(Backend::Redis, Some("*"))).await.unwrap();
    assert_eq!(wheel.stands(), (Percent::ALL, 1, 3));
}

#[tokio::test]
async fn what_was_kept_stands_unless_a_variable_that_is_set_differs_from_the_remembered_one() {
    for (set, kept, stands) in [
        (Some(10), stored(1, 7, 30, Some(10)), (30, 1, 7)),
        (None, stored(1, 7, 30, Some(10)), (30, 1, 7)),
        (Some(50), stored(1, 7, 30, Some(10)), (50, 1, 8)),
        (Some(20), stored(1, 7, 30, Some(10)), (20, 2, 8)),
        (Some(20), stored(1, 7, 30, None), (20, 2, 8)),
        (Some(30), stored(1, 7, 30, Some(10)), (30, 1, 7)),
        (Some(10), stored(4, 9, 0, Some(10)), (0, 4, 9)),
        (Some(100), stored(0, 1, 100, Some(100)), (100, 0, 1)),
    ] {
        let environment = set.map_or_else(Environment::default, env);
        let wheel = wheel(set.unwrap_or(100), environment).await;
        wheel.steering.disk_says(Some(kept.clone()));
        let (percent, epoch, revision) = stands;
        assert_eq!(wheel.stands(), (points(percent), epoch, revision), "{set:?} {kept:?}");
        let remembered = wheel.steering.own_environment().percent;
        assert_eq!(remembered, set.map(points).or(kept.own.percent));
    }
}

#[tokio::test]
async fn the_fleets_record_that_comes_after_the_start_is_held_against_the_environment_once() {
    let met = |wheel: &Wheel, kept: Stored| wheel.steering.meet(&kept.register, Source::Redis);
    // An empty disk: what the fleet remembers is what counts.
    let fresh = wheel(10, env(10)).await;
    assert!(met(&fresh, stored(3, 40, 60, Some(10))));
    assert_eq!(fresh.stands(), (points(60), 3, 40));
    let deployed = wheel(20, env(20)).await;
    assert!(met(&deployed, stored(3, 40, 60, Some(10))));
    assert_eq!(deployed.stands(), (points(20), 4, 41));
    assert!(met(&deployed, stored(5, 42, 80, Some(10))), "and once only");
    assert_eq!(deployed.stands(), (points(80), 5, 42));
    // A disk that knew this environment: others have deployed since, and this is not a deploy.
    let back = wheel(10, env(10)).await;
    back.steering.disk_says(Some(stored(1, 7, 30, Some(10))));
    assert!(met(&back, stored(3, 40, 60, Some(60))));
    assert_eq!(back.stands(), (points(60), 3, 40));
    // A disk that did not: a deploy, of a value that the fleet had before a lowering, or of a new one.
    for (fleet_remembers, stands) in [(20, (points(0), 3, 40)), (10, (points(20), 3, 41))] {
        let deployed = wheel(20, env(20)).await;
        deployed.steering.disk_says(Some(stored(1, 7, 10, Some(10))));
        assert_eq!(deployed.stands(), (points(20), 1, 8));
        assert!(met(&deployed, stored(3, 40, 0, Some(fleet_remembers))));
        assert_eq!(deployed.stands(), stands);
    }
    // Once the fleet was met, and be it that there is none, the environment has no say.
    let running = wheel(60, env(60)).await;
    running.steering.found_nothing();
    assert!(met(&running, stored(3, 40, 0, Some(20))));
    assert_eq!(running.stands(), (points(0), 3, 40));
}

#[tokio::test]
async fn a_rollback_made_before_anything_was_known_stands_above_what_comes_to_be_known() {
    for source in [Source::Disk, Source::Redis] {
        let wheel = wheel(50, Environment::default()).await;
        wheel.steering.roll_back("ana", "5xx", None).await;
        let kept = stored(9, 90, 70, None);
        match source {
            Source::Disk => wheel.steering.disk_says(Some(kept)),
            _ => assert!(wheel.steering.meet(&kept.register, source)),
        }
        assert_eq!(wheel.stands(), (Percent::NONE, 10, 91));
        assert_eq!(wheel.steering.record().updated_by, "ana");
    }
}

#[tokio::test]
async fn at_the_end_of_all_numbers_a_rollback_still_wins() {
    let wheel = wheel(10, Environment::default()).await;
    let last = stored(Record::LAST, Record::LAST, 100, None);
    assert!(wheel.steering.meet(&last.register, Source::Redis));
    let back = wheel.steering.roll_back("ana", "5xx", None).await;
    assert!(back.record.supersedes(&last.register.record), "{:?}", back.record);
    assert!(back.record.epoch <= Record::LAST && back.record.revision <= Record::LAST);
    assert_eq!(wheel.rollout.in_force().percent, Percent::NONE);
}

#[tokio::test]
async fn what_is_kept_only_in_a_file_that_was_moved_away_is_not_durable() {
    let wheel = wheel(10, Environment::default()).await;
    assert!(wheel.steering.roll_back("ana", "5xx", None).await.durable);
    let path = wheel.audit.database().name();
    std::fs::rename(&path, format!("{path}.away")).unwrap();
    assert!(!wheel.steering.roll_back("ana", "again", None).await.durable);
}

#[tokio::test]
async fn a_rollback_is_counted_once_and_by_its_cause() {
    let by_hand = wheel(10, Environment::default()).await;
    by_hand.steering.roll_back("ana", "5xx", None).await;
    by_hand.steering.roll_back("ana", "again", None).await;
    assert_eq!(*by_hand.rolled.0.lock(), [RollbackCause::Operator]);
    // What came to be known raised, and the rollback stands above it.
    let kept = stored(9, 90, 70, None);
    by_hand.steering.meet(&kept.register, Source::Redis);
    assert_eq!(*by_hand.rolled.0.lock(), [RollbackCause::Operator, RollbackCause::Stands]);
    let deployed = wheel(0, env(0)).await;
    deployed.steering.disk_says(Some(stored(3, 40, 60, Some(60))));
    assert_eq!(
        (deployed.stands().0, deployed.rolled.0.lock().clone()),
        (Percent::NONE, vec![RollbackCause::Environment])
    );
    // Taken from another instance it is counted there.
    let told = wheel(10, Environment::default()).await;
    told.steering.meet(&stored(1, 2, 0, None).register, Source::Fleet);
    assert_eq!(told.rolled.0.lock().len(), 0);
}

#[test]
fn of_two_changes_made_at_once_the_tag_of_one_is_not_that_of_the_other() {
    let (one, other) = (stored(1, 2, 20, None).register.record, stored(1, 2, 10, None).register.record);
    assert_ne!(one.etag(), other.etag());
    let off = Record { backend: Backend::Memory, ..one.clone() };
    assert_ne!(one.etag(), off.etag());
}

#[test]
fn a_reason_is_one_line_that_moves_no_cursor() {
    let reason = "first\r\nsecond\u{1b}[2J\u{9b}31m\u{202e}x\u{0}";
    let kept = stored(1, 2, 20, None).register.record.followed_by(Backend::Redis, points(5), "a\nb", reason);
    for text in [&kept.reason, &kept.updated_by] {
        assert!(!text.chars().any(|c| c.is_control() || c == '\u{202e}'), "{text:?}");
    }
    assert!(kept.reason.starts_with("first") && kept.reason.contains("second"), "{:?}", kept.reason);
}

#[tokio::test]
async fn the_trail_is_read_newest_first_page_by_page_and_holds_no_more_than_was_asked_for() {
    let wheel = wheel(100, Environment::default()).await;
    for percent in (1..100).rev() {
        wheel.steering.change(to(percent, None)).await.unwrap();
    }
    let first = wheel.audit.page(None, 60).await;
    assert!(first.more && first.fault.is_none() && first.rows.iter().all(|(_, kept)| *kept));
    let cursor = first.rows.last().unwrap().0.id;
    let second = wheel.audit.page(Some(cursor), 60).await;
    assert!(!second.more);
    let percents: Vec<f64> =
        first.rows.iter().chain(&second.rows).map(|(row, _)| row.to["percent"].as_f64().unwrap()).collect();
    assert_eq!(percents, (1..100).map(f64::from).collect::<Vec<_>>());
    for _ in 0..20 {
        wheel.audit.append(crate::control::audit::AuditRow::done("guard", "token.refused", "wrong"));
    }
    wheel.audit.flush().await.unwrap();
    let all = wheel.audit.page(None, 500).await;
    assert_eq!(all.rows.len(), 100, "the bound of this trail");
}

#[tokio::test]
async fn whoever_may_not_raise_may_lower_whatever_they_have_seen() {
    let wheel = wheel(50, Environment::default()).await;
    let lower = |percent, seen| Change { may_raise: false, ..to(percent, seen) };
    assert_eq!(wheel.steering.change(lower(60, Some("*"))).await, Err(Refusal::MayNotRaise));
    assert!(wheel.steering.change(lower(10, None)).await.is_ok());
    assert_eq!(
        wheel.steering.change(lower(40, Some("*"))).await,
        Err(Refusal::MayNotRaise),
        "it was lower before"
    );
}
