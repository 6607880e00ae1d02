//! What scripts/install-test-deps puts beside the build.

use std::path::{Path, PathBuf};

/// A program of the Python environment.
pub fn tool(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let program = target.join("test-python/bin").join(name);
    assert!(program.exists(), "{} is missing; `make test` installs it", program.display());
    program
}
