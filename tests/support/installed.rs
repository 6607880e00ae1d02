//! What scripts/install-test-deps puts beside the build.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::{Path, PathBuf};

/// A program of the Python environment.
pub fn tool(name: &str) -> PathBuf {
    installed(&format!("test-python/bin/{name}"))
}

/// The packages of Node.js.
pub fn node_modules() -> PathBuf {
    installed("test-node/node_modules")
}

fn installed(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let path = target.join(name);
    assert!(path.exists(), "{} is missing; `make test` installs it", path.display());
    path
}
