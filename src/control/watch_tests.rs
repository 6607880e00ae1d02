//! Tests of `watch.rs`: real files in real directories.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;

use parking_lot::Mutex;

use super::*;
use crate::config::Seen;
use crate::control::reload::{Attempt, Change, Reloadable};

/// Reads a file, and the files that its lines name. What they hold together is in force.
struct Listing {
    file: PathBuf,
    in_force: Mutex<String>,
    /// Everything that was ever put in force.
    history: Mutex<Vec<String>>,
}

impl Listing {
    fn look(&self) -> (String, Seen) {
        let mut seen = Seen::default();
        let mut text = seen.text(&self.file).unwrap().unwrap_or_default();
        for name in text.clone().lines().filter(|line| line.starts_with('/')) {
            text += &seen.text(name.as_ref()).unwrap().unwrap_or_default();
        }
        (text, seen)
    }
}

impl Reloadable for Listing {
    fn read(self: Arc<Self>) -> Attempt {
        let (text, seen) = self.look();
        let same = *self.in_force.lock() == text;
        let change = match same {
            true => Change::None,
            false => Change::Put(Box::new(move || {
                self.history.lock().push(text.clone());
                *self.in_force.lock() = text;
            })),
        };
        Attempt { seen, warnings: Vec::new(), outcome: Ok(change) }
    }

    fn in_force(&self) -> Option<String> {
        None
    }
}

/// A watched file in a directory of its own.
struct Watched {
    root: PathBuf,
    listing: Arc<Listing>,
    reloader: Arc<Reloader>,
    watching: tokio::task::JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl Watched {
    /// Watches `file`, after `prepare` was given the directory.
    async fn new(file: &str, prepare: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        prepare(&root);
        let listing =
            Listing { file: root.join(file), in_force: Mutex::default(), history: Mutex::default() };
        let listing = Arc::new(listing);
        let (text, seen) = listing.look();
        *listing.in_force.lock() = text;
        let observer: Arc<dyn Observer> = Arc::new(crate::limiter::event::Silent);
        let source: Arc<dyn Reloadable> = listing.clone();
        let reloader = Arc::new(Reloader::new(vec![(source, seen)], Arc::clone(&observer)));
        let watching = tokio::spawn(keep_watch(Arc::clone(&reloader), observer));
        let watched = Self { root, listing, reloader, watching, _directory: directory };
        // Until the directories stand still and are watched.
        sleep(3 * QUIET).await;
        watched
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.root.join(file), text).unwrap();
    }

    /// Waits until this is in force.
    async fn holds(&self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while *self.listing.in_force.lock() != text {
            assert!(
                Instant::now() < deadline,
                "{text:?} is not noticed, {:?} is in force",
                self.listing.in_force.lock()
            );
            sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn a_file_that_is_written_renamed_over_removed_and_made_again_is_noticed() {
    let watched = Watched::new("file", |root| fs::write(root.join("file"), "1").unwrap()).await;
    watched.write("file", "2");
    watched.holds("2").await;
    watched.write("file.new", "3");
    fs::rename(watched.root.join("file.new"), watched.root.join("file")).unwrap();
    watched.holds("3").await;
    fs::remove_file(watched.root.join("file")).unwrap();
    watched.holds("").await;
    watched.write("file", "4");
    watched.holds("4").await;
}

#[tokio::test]
async fn an_editors_gap_between_moving_the_old_file_away_and_writing_the_new_one_is_bridged() {
    let watched = Watched::new("file", |root| fs::write(root.join("file"), "1").unwrap()).await;
    fs::rename(watched.root.join("file"), watched.root.join("file~")).unwrap();
    sleep(QUIET / 10).await;
    watched.write("file", "2");
    watched.holds("2").await;
    assert_eq!(*watched.listing.history.lock(), ["2"], "the gap was never in force");
}

#[tokio::test]
async fn a_file_that_is_still_being_written_is_waited_for() {
    let watched = Watched::new("file", |root| fs::write(root.join("file"), "1").unwrap()).await;
    let mut file = fs::File::create(watched.root.join("file")).unwrap();
    for piece in ["a", "b", "c"] {
        file.write_all(piece.as_bytes()).unwrap();
        sleep(2 * QUIET).await;
    }
    drop(file);
    watched.holds("abc").await;
    assert_eq!(*watched.listing.history.lock(), ["abc"], "no half of it was ever in force");
}

#[tokio::test]
async fn a_link_to_another_directory_is_noticed_as_kubernetes_swaps_it() {
    let version = |root: &Path, name: &str| {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join("file"), name).unwrap();
    };
    let watched = Watched::new("file", |root| {
        version(root, "..v1");
        symlink("..v1", root.join("..data")).unwrap();
        symlink("..data/file", root.join("file")).unwrap();
    })
    .await;
    for (old, new) in [("..v1", "..v2"), ("..v2", "..v3")] {
        version(&watched.root, new);
        symlink(new, watched.root.join("..data_tmp")).unwrap();
        fs::rename(watched.root.join("..data_tmp"), watched.root.join("..data")).unwrap();
        fs::remove_dir_all(watched.root.join(old)).unwrap();
        watched.holds(new).await;
    }
    watched.write("..v3/file", "written in place");
    watched.holds("written in place").await;
}

#[tokio::test]
async fn a_directory_that_appears_or_is_exchanged_is_looked_into() {
    let watched = Watched::new("config/file", |_| {}).await;
    fs::create_dir(watched.root.join("config")).unwrap();
    watched.write("config/file", "1");
    watched.holds("1").await;
    watched.write("config/file", "2");
    watched.holds("2").await;
    fs::rename(watched.root.join("config"), watched.root.join("old")).unwrap();
    fs::create_dir(watched.root.join("config")).unwrap();
    watched.write("config/file", "3");
    watched.holds("3").await;
    sleep(3 * QUIET).await;
    watched.write("config/file", "4");
    watched.holds("4").await;
    for text in ["5", "6"] {
        fs::remove_dir_all(watched.root.join("config")).unwrap();
        fs::create_dir(watched.root.join("config")).unwrap();
        watched.write("config/file", text);
        watched.holds(text).await;
    }
}

#[tokio::test]
async fn files_that_the_file_names_are_followed_as_it_changes_whoever_reads_it() {
    let watched = Watched::new("file", |root| {
        for name in ["a", "b"] {
            fs::create_dir(root.join(name)).unwrap();
            fs::write(root.join(name).join("list"), "1").unwrap();
        }
        fs::write(root.join("file"), format!("{}\n", root.join("a/list").display())).unwrap();
    })
    .await;
    let naming = |name: &str| format!("{}\n", watched.root.join(name).display());
    watched.write("a/list", "2");
    watched.holds(&(naming("a/list") + "2")).await;
    watched.write("file", &naming("b/list"));
    // Somebody else is faster than the watcher.
    watched.reloader.reload(Cause::Signal).await;
    watched.holds(&(naming("b/list") + "1")).await;
    sleep(3 * QUIET).await;
    watched.write("b/list", "3");
    watched.holds(&(naming("b/list") + "3")).await;
}

#[tokio::test]
async fn neighbours_and_readers_of_the_file_wake_nobody() {
    let watched = Watched::new("file", |root| fs::write(root.join("file"), "1").unwrap()).await;
    let hints = Arc::new(Hints::default());
    let mut armed = Armed::new(&hints).unwrap();
    assert!(armed.look_at(&[watched.root.join("file")]));
    assert!(!armed.look_at(&[watched.root.join("file")]), "it stands where it stood");
    watched.write("neighbour", "x");
    let _ = fs::read(watched.root.join("file")).unwrap();
    let woken = timeout_at(Instant::now() + 2 * QUIET, hints.changed.notified()).await;
    assert!(woken.is_err());
    watched.write("file", "1");
    timeout_at(Instant::now() + Duration::from_secs(10), hints.changed.notified())
        .await
        .expect("it was written");
}

#[test]
fn a_limit_of_the_kernel_is_named_with_its_switch() {
    let full = notify::Error::new(ErrorKind::MaxFilesWatch).add_path("/etc/tidegate".into());
    assert!(in_words(&full).starts_with("/etc/tidegate: all inotify watches of this user are taken"));
    let open = notify::Error::io(io::Error::from_raw_os_error(TOO_MANY_OPEN));
    assert!(in_words(&open).contains("fs.inotify.max_user_instances"), "{}", in_words(&open));
    let else_ = notify::Error::io(io::Error::from(io::ErrorKind::PermissionDenied));
    assert_eq!(in_words(&else_), "permission denied");
}
