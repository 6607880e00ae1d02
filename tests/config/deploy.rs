//! What stands under deploy/ names only variables that are known, with values that are accepted.

use std::path::{Path, PathBuf};
use std::process::Command;

use tidegate::config::load;

use super::{Setup, installed};

/// Files and the variables in them that are somebody else's: the container's, Grafana's, nixpkgs'.
const OTHERS: &[&str] = &["GF_", "PATH", "TIDEGATE_COMMIT", "CARGO_"];

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

/// `NAME=value`, `NAME: value`, `NAME = "value"`, with whatever a format puts before and around it.
fn variable(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let line = ["- ", "Environment=", "ENV "]
        .iter()
        .fold(line, |line, head| line.strip_prefix(head).unwrap_or(line));
    let (name, value) = line.split_once(['=', ':'])?;
    let name = name.trim().trim_matches('"');
    let is_name =
        name.len() > 3 && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    is_name.then(|| (name, value.trim().trim_matches(['"', '\''])))
}

#[test]
fn every_variable_under_deploy_is_known_and_its_value_accepted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let mut found = Vec::new();
    files(&root, &mut found);
    let mut seen = 0;
    for path in found {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        for (name, value) in text.lines().filter_map(variable) {
            if OTHERS.iter().any(|other| name.starts_with(other)) {
                continue;
            }
            seen += 1;
            // A value of its own each: what belongs together is checked by starting it.
            let mut setup = Setup::new().env(name, value);
            if name == "ADMIN_ADDR" {
                setup = setup.env("ADMIN_TOKEN", "a-token-of-at-least-16-characters");
            }
            let outcome = load(&setup.sources);
            assert!(outcome.is_ok(), "{}: {name}={value}: {:?}", path.display(), outcome.err());
            let known = include_str!("../../src/config/keys.rs");
            let section = name.strip_prefix("TIDEGATE__").map(|key| key.to_lowercase().replace("__", "."));
            let wanted = format!("\"{}\"", section.as_deref().unwrap_or(name));
            assert!(known.contains(&wanted), "{}: nothing reads {name}", path.display());
        }
    }
    assert!(seen > 20, "only {seen} variables were found");
}

/// One of the tools that `make test` installs, on files under deploy/.
fn passes(tool: &str, arguments: &[&str]) {
    let root = env!("CARGO_MANIFEST_DIR");
    let ran = Command::new(installed::tool(tool)).args(arguments).current_dir(root).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{tool}: {out}{err}");
}

#[test]
fn the_linters_of_each_format_find_nothing_under_deploy() {
    passes("hadolint", &["--no-color", "deploy/Dockerfile"]);
    // Long lines are comments and expressions.
    passes("yamllint", &["-d", "{extends: relaxed, rules: {line-length: disable}}", "-s", "deploy"]);
    let manifests = ["deploy/kubernetes/tidegate.yaml", "deploy/kubernetes/secret.example.yaml"];
    passes("kubernetes-validate", &[&["--strict", "-k", "1.31"], &manifests[..]].concat());
    passes("compose-lint", &["deploy/compose.yaml"]);
}

#[test]
fn systemd_finds_nothing_in_the_unit() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let unit = std::fs::read_to_string(root.join("deploy/systemd/tidegate.service")).unwrap();
    // Where the binary is here, and not where it is to be.
    let unit = unit.replace("/usr/local/bin/tidegate", env!("CARGO_BIN_EXE_tidegate"));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tidegate.service");
    std::fs::write(&file, unit).unwrap();
    match Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output() {
        Ok(ran) => {
            let said = String::from_utf8_lossy(&ran.stderr).into_owned();
            let ours: Vec<&str> = said.lines().filter(|line| line.contains("tidegate")).collect();
            assert!(ours.is_empty(), "{ours:?}");
        }
        Err(_) => eprintln!("not tested: there is no systemd-analyze"),
    }
}
