//! Another wall clock for a process: ahead of the machine's by as much as a test says, at any moment.

use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

/// One clock, for any number of processes.
pub struct ShiftedClock {
    directory: TempDir,
    variables: [(&'static str, String); 2],
}

impl ShiftedClock {
    /// Ahead of the machine's by so many microseconds.
    pub fn ahead(micros: i64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let (library, shift) = (path("shift.so"), path("shift"));
        // Linking Rust takes a C compiler.
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/clock/shift.c");
        let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o", &library, source]).status();
        assert!(compiled.expect("there is no C compiler `cc`").success());
        std::fs::write(&shift, micros.to_ne_bytes()).unwrap();
        Self { directory, variables: [("LD_PRELOAD", library), ("SHIFTED_CLOCK", shift)] }
    }

    /// From now on it is ahead by so many microseconds.
    pub fn set_ahead(&self, micros: i64) {
        let file = std::fs::OpenOptions::new().write(true).open(self.directory.path().join("shift")).unwrap();
        file.write_all_at(&micros.to_ne_bytes(), 0).unwrap();
    }

    /// What a process that lives by it needs in its environment.
    pub fn variables(&self) -> Vec<(&str, &str)> {
        self.variables.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }
}

/// The machine's clock, in microseconds since the epoch.
pub fn machine_time() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64
}
