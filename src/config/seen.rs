//! Which files were read, and what they held: to tell later whether anything has changed.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use super::file;

/// The SHA-256 of what was read, in hexadecimal as `sha256sum` prints it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Files in the order in which they were looked for, each with the digest of its text; without one when there was no
/// such file, or none that could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen(Vec<(PathBuf, Option<Digest>)>);

impl Seen {
    /// The text of a file, `None` when there is none, and a note of it either way.
    ///
    /// The error says what is wrong and what is accepted, not which file.
    pub(crate) fn text(&mut self, path: &Path) -> Result<Option<String>, String> {
        let text = file::text(path);
        let digest = text.as_ref().ok().and_then(Option::as_ref).map(|text| Digest::of(text.as_bytes()));
        self.0.push((path.to_owned(), digest));
        text
    }

    /// A note of a file that is read elsewhere, and need not be text.
    pub(crate) fn note(&mut self, path: &Path) {
        let bytes = file::bytes(path);
        self.0.push((path.to_owned(), bytes.ok().map(|bytes| Digest::of(&bytes))));
    }

    /// Every file that was looked for, whether it was there or not.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|(path, _)| path.as_path())
    }

    /// Of one file the digest of its text; of several that of their lines as `sha256sum` prints them. `None` when
    /// nothing could be read.
    pub fn digest(&self) -> Option<Digest> {
        match self.0.as_slice() {
            [(_, digest)] => *digest,
            several => {
                let line = |(path, digest): &(PathBuf, Option<Digest>)| {
                    Some(format!("{}  {}\n", (*digest)?, path.display()))
                };
                let lines: String = several.iter().filter_map(line).collect();
                (!lines.is_empty()).then(|| Digest::of(lines.as_bytes()))
            }
        }
    }

    /// Reads the files again and returns those that hold something else by now.
    pub fn changed(&self) -> Vec<&Path> {
        let mut now = Self::default();
        for path in self.files() {
            // What is wrong with it is for whoever wants its text.
            let _ = now.text(path);
        }
        let pairs = self.0.iter().zip(&now.0);
        pairs.filter(|(then, now)| then.1 != now.1).map(|(then, _)| then.0.as_path()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_one_file_is_what_sha256sum_prints_and_of_several_that_of_its_lines() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = (directory.path().join("one"), directory.path().join("other"));
        std::fs::write(&one, "abc").unwrap();
        let mut seen = Seen::default();
        assert_eq!(seen.digest(), None);
        assert_eq!(seen.text(&one).unwrap().as_deref(), Some("abc"));
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(seen.digest().unwrap().to_string(), abc);
        assert_eq!(seen.text(&other), Ok(None));
        let line = format!("{abc}  {}\n", one.display());
        assert_eq!(seen.digest(), Some(Digest::of(line.as_bytes())));
        assert_eq!(seen.files().collect::<Vec<_>>(), [&one, &other]);
    }

    #[test]
    fn a_file_that_changed_appeared_or_went_is_told_from_one_that_was_only_touched() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let mut seen = Seen::default();
        for name in ["changed", "gone", "touched"] {
            std::fs::write(path(name), name).unwrap();
        }
        for name in ["changed", "gone", "touched", "appeared", "never there"] {
            let _ = seen.text(&path(name));
        }
        assert_eq!(seen.changed(), Vec::<&Path>::new());
        std::fs::write(path("changed"), "else").unwrap();
        std::fs::write(path("touched"), "touched").unwrap();
        std::fs::write(path("appeared"), "").unwrap();
        std::fs::remove_file(path("gone")).unwrap();
        assert_eq!(seen.changed(), [path("changed"), path("gone"), path("appeared")]);
    }
}
