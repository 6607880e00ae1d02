//! Notices that files have changed, and has them read again once it is quiet.
//!
//! A change is a hint and no more: what the files hold decides. So hints may be many, or of neighbours, and a touched
//! file changes nothing.

mod places;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{ErrorKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout_at};

use super::reload::{Cause, Reloader};
use crate::limiter::event::{Event, Observer};
use places::Places;

/// How long no change must come before files are read: an editor's save is several.
const QUIET: Duration = Duration::from_millis(200);
/// The same while somebody has written to a file and not closed it.
const UNFINISHED: Duration = Duration::from_secs(2);
/// How long it waits for quiet at most.
const LONGEST: Duration = Duration::from_secs(5);

/// `EMFILE`, which is also what the kernel says when a user has no inotify instance left.
const TOO_MANY_OPEN: i32 = 24;

/// Has `reloader` read its files again whenever they change. Returns only when nothing can be watched at all.
pub async fn keep_watch(reloader: Arc<Reloader>, observer: Arc<dyn Observer>) {
    let mut files = reloader.files();
    let hints = Arc::new(Hints::default());
    let mut armed = match Armed::new(&hints) {
        Ok(armed) => armed,
        Err(error) => return not_watching(&observer, &error),
    };
    let mut told = false;
    loop {
        let wanted = files.borrow_and_update().clone();
        let looked = tokio::task::spawn_blocking(move || {
            let moved = armed.look_at(&wanted);
            (armed, moved)
        });
        let moved;
        (armed, moved) = match looked.await {
            Ok(looked) => looked,
            // The process ends.
            Err(_) => return,
        };
        let failure = armed.failure.take();
        if let Some(error) = failure.as_ref().filter(|_| !told) {
            not_watching(&observer, error);
        }
        told = failure.is_some();
        reloader.reload(Cause::Watch).await;
        // What changed before the directories were watched has given no hint: so once more, until they stand still.
        if moved || files.has_changed().unwrap_or(false) {
            sleep(QUIET).await;
            continue;
        }
        hints.wait(&mut files).await;
    }
}

fn not_watching(observer: &Arc<dyn Observer>, error: &notify::Error) {
    observer.observe(&Event::NotWatching { detail: &in_words(error) });
}

fn in_words(error: &notify::Error) -> String {
    let paths: Vec<String> = error.paths.iter().map(|path| path.display().to_string()).collect();
    let place = if paths.is_empty() { String::new() } else { format!("{}: ", paths.join(", ")) };
    let full = |error: &io::Error| error.raw_os_error() == Some(TOO_MANY_OPEN);
    let why = match &error.kind {
        ErrorKind::MaxFilesWatch => {
            "all inotify watches of this user are taken (fs.inotify.max_user_watches)".to_owned()
        }
        ErrorKind::Io(error) if full(error) => {
            format!(
                "{error} (all inotify instances of this user may be taken: fs.inotify.max_user_instances)"
            )
        }
        _ => error.to_string(),
    };
    format!("{place}{why}")
}

/// What came from the watched directories. Filled on the watcher's own thread.
#[derive(Default)]
struct Hints {
    places: ArcSwap<Places>,
    changed: Notify,
    /// Somebody has written to a file and not closed it since.
    unfinished: AtomicBool,
    /// A watched directory was moved or removed. What stands at its path now is another, were it with its number.
    lost: AtomicBool,
}

impl Hints {
    fn take(&self, event: notify::Result<notify::Event>) {
        let Ok(event) = event else { return self.changed.notify_one() };
        let places = self.places.load();
        if !event.need_rescan() && !event.paths.iter().any(|path| places.concern(path)) {
            return;
        }
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                self.unfinished.store(false, Ordering::Relaxed);
            }
            // Our own reading among them.
            EventKind::Access(_) => return,
            EventKind::Modify(ModifyKind::Data(_)) => self.unfinished.store(true, Ordering::Relaxed),
            EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(_)
                if event.paths.iter().any(|path| places.has(path)) =>
            {
                self.lost.store(true, Ordering::Relaxed);
            }
            _ => {}
        }
        self.changed.notify_one();
    }

    /// Waits for a change of what is watched, or of what is to be, and then for quiet.
    async fn wait(&self, files: &mut watch::Receiver<Vec<PathBuf>>) {
        tokio::select! {
            () = self.changed.notified() => {}
            // The sender lives as long as the reloader, which we hold.
            _ = files.changed() => return,
        }
        let latest = Instant::now() + LONGEST;
        loop {
            if Instant::now() >= latest {
                return;
            }
            let quiet = if self.unfinished.load(Ordering::Relaxed) { UNFINISHED } else { QUIET };
            let until = latest.min(Instant::now() + quiet);
            if timeout_at(until, self.changed.notified()).await.is_err() {
                // A file that is never closed must not slow down the next change.
                self.unfinished.store(false, Ordering::Relaxed);
                return;
            }
        }
    }
}

/// The watched directories.
struct Armed {
    watcher: RecommendedWatcher,
    hints: Arc<Hints>,
    places: Places,
    /// Why a directory could not be watched, when there was one.
    failure: Option<notify::Error>,
}

impl Armed {
    fn new(hints: &Arc<Hints>) -> notify::Result<Self> {
        let told = Arc::clone(hints);
        let watcher = notify::recommended_watcher(move |event| told.take(event))?;
        Ok(Self { watcher, hints: Arc::clone(hints), places: Places::default(), failure: None })
    }

    /// Watches where these files stand now, and nowhere else. Whether that is another place than before.
    fn look_at(&mut self, files: &[PathBuf]) -> bool {
        let mut places = Places::of(files);
        // Before anything is watched: a hint must find the names that it is held against.
        self.hints.places.store(Arc::new(places.clone()));
        let mut moved = false;
        let all_anew = self.hints.lost.swap(false, Ordering::Relaxed);
        let stays = |directory: &Path| !all_anew && self.places.shares(&places, directory);
        let (missing, left): (Vec<PathBuf>, Vec<PathBuf>) = (
            places.directories().filter(|directory| !stays(directory)).map(PathBuf::from).collect(),
            self.places.directories().filter(|directory| !stays(directory)).map(PathBuf::from).collect(),
        );
        for directory in left {
            // One that was removed is not watched any more already.
            let _ = self.watcher.unwatch(&directory);
            moved = true;
        }
        for directory in missing {
            match self.watcher.watch(&directory, RecursiveMode::NonRecursive) {
                Ok(()) => moved = true,
                // It went just now: the next look finds out where to wait for it.
                Err(error) if matches!(error.kind, ErrorKind::PathNotFound) => {
                    places.remove(&directory);
                    moved = true;
                }
                Err(error) => {
                    places.remove(&directory);
                    self.failure = Some(error);
                }
            }
        }
        self.places = places;
        moved
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
