//! Where to look for changes of files: in which directories, and for which names there.
//!
//! Not the file itself is watched but the directories on the way to it: editors and deployments put another file, or
//! another link, in its place. Kubernetes mounts `policies.toml → ..data/policies.toml` and `..data → ..2026_11/`, and
//! an update is another `..data`, renamed over the old one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

/// How many links are followed from one file, as in the kernel.
const MOST_LINKS: usize = 40;

/// Directories, without links in their paths, each with the names in it that matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Places(BTreeMap<PathBuf, Place>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// Which directory it is: another one may take its path.
    id: Option<(u64, u64)>,
    names: BTreeSet<OsString>,
}

impl Places {
    /// Where these files stand, or where the first missing directory on the way to them is to appear.
    pub(super) fn of(files: &[PathBuf]) -> Self {
        let mut places = Self::default();
        for file in files {
            places.walk(file);
        }
        places
    }

    /// The directories.
    pub(super) fn directories(&self) -> impl Iterator<Item = &Path> {
        self.0.keys().map(PathBuf::as_path)
    }

    /// Whether `path` is one of the directories.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.0.contains_key(path)
    }

    /// Whether `directory` is here, and the same as there.
    pub(super) fn shares(&self, other: &Self, directory: &Path) -> bool {
        let id = |places: &Self| places.0.get(directory).map(|place| place.id);
        id(self).is_some_and(|here| Some(here) == id(other))
    }

    /// Without `directory`.
    pub(super) fn remove(&mut self, directory: &Path) {
        self.0.remove(directory);
    }

    /// Whether a change of what stands at `path` matters.
    pub(super) fn concern(&self, path: &Path) -> bool {
        let named = |name: &OsStr, place: &Place| place.names.contains(name);
        let in_it =
            || self.0.get(path.parent()?).zip(path.file_name()).map(|(place, name)| named(name, place));
        // A directory that is moved or removed tells of itself.
        self.has(path) || in_it().unwrap_or(false)
    }

    fn walk(&mut self, file: &Path) {
        let mut rest: VecDeque<OsString> = VecDeque::new();
        let mut here = match std::path::absolute(file) {
            Ok(absolute) => {
                rest.extend(absolute.components().map(|part| part.as_os_str().to_owned()));
                PathBuf::from("/")
            }
            // Without a working directory there is nothing to be found.
            Err(_) => return,
        };
        let mut links = 0;
        while let Some(part) = rest.pop_front() {
            match Path::new(&part).components().next() {
                Some(Component::RootDir) => here = PathBuf::from("/"),
                Some(Component::ParentDir) => {
                    here.pop();
                }
                Some(Component::Normal(name)) => {
                    let entry = here.join(name);
                    let link = fs::read_link(&entry);
                    let is_way = rest.is_empty() || link.is_ok() || !entry.is_dir();
                    if is_way {
                        self.note(&here, name);
                    }
                    match link {
                        Ok(target) if links < MOST_LINKS => {
                            links += 1;
                            for part in target.components().rev() {
                                rest.push_front(part.as_os_str().to_owned());
                            }
                        }
                        Ok(_) => return,
                        Err(_) if !rest.is_empty() && !entry.is_dir() => return,
                        Err(_) => here = entry,
                    }
                }
                Some(Component::CurDir | Component::Prefix(_)) | None => {}
            }
        }
    }

    fn note(&mut self, directory: &Path, name: &OsStr) {
        let place = self.0.entry(directory.to_owned()).or_insert_with(|| Place {
            id: fs::metadata(directory).ok().map(|metadata| (metadata.dev(), metadata.ino())),
            names: BTreeSet::new(),
        });
        place.names.insert(name.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn of(file: &Path) -> Places {
        Places::of(&[file.to_owned()])
    }

    /// A directory whose own path has no link in it.
    fn directory() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap();
        (directory, path)
    }

    fn directories(places: &Places) -> Vec<&Path> {
        places.directories().collect()
    }

    #[test]
    fn a_plain_file_is_looked_for_in_its_directory_there_or_not() {
        let (_keep, root) = directory();
        let file = root.join("policies.toml");
        for _ in 0..2 {
            let places = of(&file);
            assert_eq!(directories(&places), [&root]);
            assert!(places.concern(&file) && places.concern(&root));
            assert!(!places.concern(&root.join("other")), "neighbours do not matter");
            std::fs::write(&file, "").unwrap();
        }
    }

    #[test]
    fn every_link_on_the_way_is_looked_at_where_it_stands() {
        let (_keep, root) = directory();
        let (mount, real) = (root.join("mount"), root.join("mount/..2026_11"));
        std::fs::create_dir_all(&real).unwrap();
        std::fs::write(real.join("policies.toml"), "").unwrap();
        symlink("..2026_11", mount.join("..data")).unwrap();
        symlink("..data/policies.toml", mount.join("policies.toml")).unwrap();
        symlink(&mount, root.join("current")).unwrap();
        let places = of(&root.join("current/policies.toml"));
        assert_eq!(directories(&places), [&root, &mount, &real]);
        for concerned in ["current", "mount/policies.toml", "mount/..data", "mount/..2026_11/policies.toml"] {
            assert!(places.concern(&root.join(concerned)), "{concerned}");
        }
        assert!(!places.concern(&mount.join("..data_tmp")));
    }

    #[test]
    fn a_directory_that_is_not_there_is_waited_for_in_the_last_one_that_is() {
        let (_keep, root) = directory();
        let file = root.join("config/sub/../policies.toml");
        assert_eq!(directories(&of(&file)), [&root]);
        assert!(of(&file).concern(&root.join("config")));
        std::fs::create_dir_all(root.join("config/sub")).unwrap();
        assert_eq!(directories(&of(&file)), [&root.join("config")]);
    }

    #[test]
    fn a_directory_that_took_the_place_of_another_is_another() {
        let (_keep, root) = directory();
        let config = root.join("config");
        std::fs::create_dir(&config).unwrap();
        let before = of(&config.join("policies.toml"));
        assert!(before.shares(&of(&config.join("else.toml")), &config));
        std::fs::rename(&config, root.join("old")).unwrap();
        std::fs::create_dir(&config).unwrap();
        assert!(!before.shares(&of(&config.join("policies.toml")), &config));
    }

    #[test]
    fn links_in_a_circle_end() {
        let (_keep, root) = directory();
        symlink("b", root.join("a")).unwrap();
        symlink("a", root.join("b")).unwrap();
        assert_eq!(directories(&of(&root.join("a"))), [&root]);
    }
}
