//! Reads files again while requests flow: all of them are sound and put in force together, or nothing is changed. Only what
//! stands alone, as a token that is revoked, waits for no other file.
//!
//! SIGHUP, `POST /admin/reload` and the watcher come here, one at a time. Reading is done off the request threads.

use std::path::PathBuf;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use parking_lot::Mutex;
use serde::{Serialize, Serializer};
use tokio::sync::{Mutex as Turn, watch};

use crate::config::{Errors, Problem, Seen};
use crate::limiter::event::{Event, Observer, Reload, Reloaded};

/// Something that is read from files, and can be read again.
pub trait Reloadable: Send + Sync + 'static {
    /// Reads its files. Blocking, and changes nothing: that is for [`Change::Put`].
    fn read(self: Arc<Self>) -> Attempt;

    /// Whether it is put in force although another source is bad: nothing else builds on it, and it must not wait.
    fn stands_alone(&self) -> bool {
        false
    }

    /// What it has in force, in words: what, from which file, since when. `None` when there is nothing to say.
    fn in_force(&self) -> Option<String>;
}

/// What reading came to.
pub struct Attempt {
    /// The files that it took; the watcher follows them.
    pub seen: Seen,
    /// What is allowed and still worth a word, one line each.
    pub warnings: Vec<String>,
    /// What is to be done, or everything that is wrong.
    pub outcome: Result<Change, Errors>,
}

/// What is to be done after reading.
pub enum Change {
    /// Nothing: the files hold what is in force.
    None,
    /// Put something else in force, once every other source was read and is sound as well. It cannot fail.
    Put(Box<dyn FnOnce() + Send>),
}

/// What led to a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// SIGHUP.
    Signal,
    /// `POST /admin/reload`.
    Admin {
        /// Who asked.
        actor: String,
    },
    /// A file has changed.
    Watch,
}

/// A reload and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// When.
    #[serde(serialize_with = "rfc3339")]
    pub at: DateTime<Utc>,
    /// `signal`, `admin` or `watch`.
    pub cause: &'static str,
    /// Who asked, where that is known.
    pub actor: Option<String>,
    /// What came of it.
    pub outcome: Outcome,
    /// Everything that is wrong, when it failed.
    pub errors: Vec<Problem>,
    /// What is allowed and still worth a word.
    pub warnings: Vec<String>,
    /// What was put in force although it failed, in words: what stands alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changed_all_the_same: Vec<String>,
}

/// What came of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Something else is in force.
    Applied,
    /// The files hold what is in force.
    Unchanged,
    /// Something is wrong, and nothing was changed but what stands alone.
    Failed,
}

/// Reloads every source.
pub struct Reloader {
    sources: Vec<Arc<dyn Reloadable>>,
    observer: Arc<dyn Observer>,
    turn: Arc<Turn<()>>,
    state: Mutex<State>,
    files: watch::Sender<Vec<PathBuf>>,
}

struct State {
    last: Option<Report>,
    sight: Sight,
    /// The last failure of which everything was said.
    told: Option<Sight>,
}

/// What a run saw: the same again is no news.
#[derive(Clone, PartialEq)]
struct Sight {
    seen: Vec<Seen>,
    errors: Vec<Problem>,
}

impl Reloader {
    /// Reloads `sources`, each given with the files that the start has read for it.
    pub fn new(sources: Vec<(Arc<dyn Reloadable>, Seen)>, observer: Arc<dyn Observer>) -> Self {
        let (sources, seen): (Vec<_>, Vec<_>) = sources.into_iter().unzip();
        let files = watch::Sender::new(files_of(&seen));
        let state = State { last: None, sight: Sight { seen, errors: Vec::new() }, told: None };
        Self { sources, observer, turn: Arc::default(), state: Mutex::new(state), files }
    }

    /// Reads every source and puts in force what has changed, or nothing when anything is wrong. When it returns, the
    /// next request is judged by it. Once begun it is carried through, even if nobody waits for it any more.
    pub async fn reload(self: &Arc<Self>, cause: Cause) -> Report {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let (this, why) = (Arc::clone(self), cause.clone());
        let run = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            this.run(&why)
        });
        // It only fails with the process.
        run.await.unwrap_or_else(|error| {
            let problem = Problem { place: "reload".to_owned(), message: error.to_string() };
            Report::new(&cause, Outcome::Failed, vec![problem], Vec::new())
        })
    }

    /// The last reload. One of the watcher's that found nothing new is none.
    pub fn last(&self) -> Option<Report> {
        self.state.lock().last.clone()
    }

    /// The files to watch, now and as they change.
    pub fn files(&self) -> watch::Receiver<Vec<PathBuf>> {
        self.files.subscribe()
    }

    fn run(&self, cause: &Cause) -> Report {
        let (mut seen, mut warnings, mut errors, mut changes) = (vec![], vec![], vec![], vec![]);
        for source in &self.sources {
            let attempt = Arc::clone(source).read();
            seen.push(attempt.seen);
            warnings.extend(attempt.warnings);
            match attempt.outcome {
                Ok(Change::None) => {}
                Ok(Change::Put(put)) => changes.push((source, put)),
                Err(Errors(problems)) => errors.extend(problems),
            }
        }
        self.files.send_if_modified(|files| {
            let now = files_of(&seen);
            let differ = *files != now;
            *files = now;
            differ
        });
        let outcome = match (errors.is_empty(), changes.is_empty()) {
            (false, _) => Outcome::Failed,
            (true, true) => Outcome::Unchanged,
            (true, false) => Outcome::Applied,
        };
        let changed: Vec<&Arc<dyn Reloadable>> = changes
            .into_iter()
            .filter(|(source, _)| outcome == Outcome::Applied || source.stands_alone())
            .map(|(source, put)| {
                put();
                source
            })
            .collect();
        let mut report = Report::new(cause, outcome, errors, warnings);
        if outcome == Outcome::Failed {
            report.changed_all_the_same = changed.iter().filter_map(|source| source.in_force()).collect();
        }
        self.tell(cause, &report, &changed, Sight { seen, errors: report.errors.clone() });
        report
    }

    /// Remembers a run, and tells of it.
    fn tell(&self, cause: &Cause, report: &Report, changed: &[&Arc<dyn Reloadable>], sight: Sight) {
        let mut state = self.state.lock();
        // A file that was touched, or rewritten as it was, is no news. Somebody who asked gets a word all the same.
        if *cause == Cause::Watch && report.outcome != Outcome::Applied && state.sight == sight {
            return;
        }
        let again = state.told.as_ref() == Some(&sight);
        state.told = (report.outcome == Outcome::Failed).then(|| sight.clone());
        state.sight = sight;
        state.last = Some(report.clone());
        drop(state);

        let lines = |sources: &[Arc<dyn Reloadable>]| -> Vec<String> {
            sources.iter().filter_map(|source| source.in_force()).collect()
        };
        let errors: Vec<String> = report.errors.iter().map(Problem::to_string).collect();
        let (all, changed) = (lines(&self.sources), changed.iter().filter_map(|source| source.in_force()));
        let changed: Vec<String> = changed.collect();
        let outcome = match report.outcome {
            Outcome::Applied => Reloaded::Applied(&changed),
            Outcome::Unchanged => Reloaded::Unchanged(&all),
            Outcome::Failed => Reloaded::Failed { errors: &errors, still: &all, changed: &changed, again },
        };
        self.observer.observe(&Event::Reloaded(&Reload {
            cause: cause.in_words(),
            actor: report.actor.as_deref(),
            asked: *cause != Cause::Watch,
            outcome,
            warnings: &report.warnings,
        }));
    }
}

impl Cause {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::Admin { .. } => "admin",
            Self::Watch => "watch",
        }
    }

    fn in_words(&self) -> &'static str {
        match self {
            Self::Signal => "SIGHUP",
            Self::Admin { .. } => "POST /admin/reload",
            Self::Watch => "a file changed",
        }
    }
}

impl Report {
    fn new(cause: &Cause, outcome: Outcome, errors: Vec<Problem>, warnings: Vec<String>) -> Self {
        let actor = match cause {
            Cause::Admin { actor } => Some(actor.clone()),
            Cause::Signal | Cause::Watch => None,
        };
        Self {
            at: Utc::now(),
            cause: cause.as_str(),
            actor,
            outcome,
            errors,
            warnings,
            changed_all_the_same: Vec::new(),
        }
    }
}

fn files_of(seen: &[Seen]) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = seen.iter().flat_map(Seen::files).map(PathBuf::from).collect();
    files.sort_unstable();
    files.dedup();
    files
}

/// Milliseconds, as every time of ours.
pub(super) fn rfc3339<S: Serializer>(at: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&at.to_rfc3339_opts(SecondsFormat::Millis, true))
}

#[cfg(test)]
#[path = "reload_tests.rs"]
mod tests;
