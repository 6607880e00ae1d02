//! A disk that is full for one process, from and to any moment, and keeps what is on it when the process is killed.

use std::os::unix::fs::FileExt;
use std::process::Command;

use tempfile::TempDir;

/// One switch, for any number of processes.
pub struct FullDisk {
    directory: TempDir,
    variables: [(&'static str, String); 2],
}

impl FullDisk {
    /// One with room.
    pub fn with_room() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let (library, full) = (path("full.so"), path("full"));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/disk/full.c");
        let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o", &library, source]).status();
        assert!(compiled.expect("there is no C compiler `cc`").success());
        std::fs::write(&full, [0]).unwrap();
        Self { directory, variables: [("LD_PRELOAD", library), ("FULL_DISK", full)] }
    }

    /// From now on each write to a regular file fails with ENOSPC, or works again.
    pub fn set_full(&self, is_full: bool) {
        let file = std::fs::OpenOptions::new().write(true).open(self.directory.path().join("full")).unwrap();
        file.write_all_at(&[u8::from(is_full)], 0).unwrap();
    }

    /// What a process needs in its environment to have this disk.
    pub fn variables(&self) -> Vec<(&str, &str)> {
        self.variables.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }
}
