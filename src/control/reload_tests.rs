//! Tests of `reload.rs`, with sources that say what a test wants.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::*;

/// A source whose file holds what a test puts there: `bad…` is refused, `slow…` takes its time, all the rest is put in
/// force.
struct Fake {
    directory: tempfile::TempDir,
    in_force: Mutex<String>,
    reading: AtomicBool,
    alone: bool,
}

impl Fake {
    fn holding(text: &str) -> Arc<Self> {
        let fake = Self {
            directory: tempfile::tempdir().unwrap(),
            in_force: Mutex::new(text.to_owned()),
            reading: AtomicBool::new(false),
            alone: text.starts_with("alone"),
        };
        fake.write(text);
        Arc::new(fake)
    }

    fn write(&self, text: &str) {
        std::fs::write(self.directory.path().join("file"), text).unwrap();
    }

    fn look(&self) -> (String, Seen) {
        let mut seen = Seen::default();
        let text = seen.text(&self.directory.path().join("file"));
        (text.unwrap().unwrap(), seen)
    }
}

impl Reloadable for Fake {
    fn read(self: Arc<Self>) -> Attempt {
        assert!(!self.reading.swap(true, Ordering::SeqCst), "two runs at once");
        let (text, seen) = self.look();
        let slow = text.starts_with("slow");
        let outcome = if text.starts_with("bad") {
            Err(Errors(vec![Problem { place: "file".into(), message: text }]))
        } else if *self.in_force.lock() == text {
            Ok(Change::None)
        } else {
            let this = Arc::clone(&self);
            Ok(Change::Put(Box::new(move || *this.in_force.lock() = text)))
        };
        std::thread::sleep(Duration::from_millis(if slow { 300 } else { 2 }));
        self.reading.store(false, Ordering::SeqCst);
        Attempt { seen, warnings: Vec::new(), outcome }
    }

    fn stands_alone(&self) -> bool {
        self.alone
    }

    fn in_force(&self) -> Option<String> {
        Some(self.in_force.lock().clone())
    }
}

/// What was told, one word or two each.
#[derive(Default)]
struct Ear(Mutex<VecDeque<String>>, AtomicUsize);

impl Observer for Ear {
    fn observe(&self, event: &Event<'_>) {
        let Event::Reloaded(reload) = event else { return };
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.lock().push_back(match reload.outcome {
            Reloaded::Applied(lines) => format!("applied {}", lines.join(" ")),
            Reloaded::Unchanged(lines) => format!("unchanged {}", lines.join(" ")),
            Reloaded::Failed { errors, again: false, .. } => format!("failed {}", errors.join(" ")),
            Reloaded::Failed { again: true, .. } => "failed again".to_owned(),
        });
    }
}

fn reloader(sources: &[&Arc<Fake>]) -> (Arc<Reloader>, Arc<Ear>) {
    let ear = Arc::new(Ear::default());
    let source = |fake: &&Arc<Fake>| -> (Arc<dyn Reloadable>, Seen) { ((*fake).clone(), fake.look().1) };
    (Arc::new(Reloader::new(sources.iter().map(source).collect(), ear.clone())), ear)
}

fn admin() -> Cause {
    Cause::Admin { actor: "ana".into() }
}

#[tokio::test]
async fn a_bad_source_keeps_every_other_one_from_being_put_in_force() {
    let (one, other) = (Fake::holding("1"), Fake::holding("1"));
    let (reloader, ear) = reloader(&[&one, &other]);
    one.write("2");
    other.write("bad");
    let report = reloader.reload(admin()).await;
    assert_eq!((report.outcome, report.errors.len()), (Outcome::Failed, 1));
    assert_eq!((&**one.in_force.lock(), &**other.in_force.lock()), ("1", "1"));
    other.write("3");
    assert_eq!(reloader.reload(admin()).await.outcome, Outcome::Applied);
    assert_eq!((&**one.in_force.lock(), &**other.in_force.lock()), ("2", "3"));
    assert_eq!(reloader.reload(admin()).await.outcome, Outcome::Unchanged);
    assert_eq!(Vec::from(ear.0.lock().clone()), ["failed file: bad", "applied 2 3", "unchanged 2 3"]);
}

#[tokio::test]
async fn what_stands_alone_waits_for_no_other_source_and_no_bad_file_of_its_own_is_put_in_force() {
    let (alone, other) = (Fake::holding("alone 1"), Fake::holding("1"));
    let (reloader, _) = reloader(&[&alone, &other]);
    alone.write("alone 2");
    other.write("bad");
    let report = reloader.reload(Cause::Watch).await;
    assert_eq!(
        (report.outcome, &report.changed_all_the_same[..]),
        (Outcome::Failed, &["alone 2".to_owned()][..])
    );
    assert_eq!((&**alone.in_force.lock(), &**other.in_force.lock()), ("alone 2", "1"));
    alone.write("bad as well");
    let report = reloader.reload(Cause::Watch).await;
    assert_eq!((report.errors.len(), report.changed_all_the_same.len()), (2, 0));
    assert_eq!(&**alone.in_force.lock(), "alone 2");
}

#[tokio::test]
async fn the_watcher_tells_what_is_new_and_nothing_twice() {
    let fake = Fake::holding("1");
    let (reloader, ear) = reloader(&[&fake]);
    let told = || ear.0.lock().pop_front();
    reloader.reload(Cause::Watch).await;
    assert_eq!((told(), reloader.last()), (None, None), "a touched file is no reload");
    fake.write("bad");
    for _ in 0..2 {
        reloader.reload(Cause::Watch).await;
    }
    assert_eq!((told(), told()), (Some("failed file: bad".into()), None));
    fake.write("bad as well");
    reloader.reload(Cause::Watch).await;
    assert_eq!(told(), Some("failed file: bad as well".into()));
    fake.write("1");
    reloader.reload(Cause::Watch).await;
    assert_eq!(told(), Some("unchanged 1".into()), "what was in force is sound again: that is news");
    fake.write("bad");
    reloader.reload(Cause::Watch).await;
    assert_eq!(told(), Some("failed file: bad".into()), "so is what went wrong once before");
}

#[tokio::test]
async fn whoever_asks_gets_a_word_each_time_and_the_errors_once() {
    let fake = Fake::holding("1");
    let (reloader, ear) = reloader(&[&fake]);
    fake.write("bad");
    for cause in [Cause::Watch, Cause::Signal, admin()] {
        let report = reloader.reload(cause).await;
        assert_eq!(report.errors.len(), 1, "the answer has them all, each time");
        assert_eq!(reloader.last(), Some(report));
    }
    assert_eq!(Vec::from(ear.0.lock().clone()), ["failed file: bad", "failed again", "failed again"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_are_serialised_and_carried_through_when_nobody_waits() {
    let fake = Fake::holding("1");
    let (reloader, ear) = reloader(&[&fake]);
    fake.write("2");
    let mut runs = Vec::new();
    for _ in 0..20 {
        let reloader = Arc::clone(&reloader);
        runs.push(tokio::spawn(async move { reloader.reload(Cause::Signal).await }));
    }
    for run in runs {
        run.await.expect("no two read at once");
    }
    assert_eq!(ear.1.load(Ordering::SeqCst), 20);
    fake.write("slow");
    let given_up = tokio::time::timeout(Duration::from_millis(50), reloader.reload(Cause::Signal));
    assert!(given_up.await.is_err());
    drop(reloader.turn.lock().await);
    assert_eq!(&**fake.in_force.lock(), "slow");
}
