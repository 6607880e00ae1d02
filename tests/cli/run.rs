//! Runs a command to its end.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::process::command;

/// What a command said and how it ended.
pub(crate) struct Ran {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) code: i32,
    pub(crate) took: Duration,
}

impl Ran {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }

    /// A step of the doctor's JSON.
    pub(crate) fn step(&self, name: &str) -> Value {
        let report = self.json();
        let steps = report["steps"].as_array().unwrap();
        steps.iter().find(|step| step["step"] == name).unwrap_or_else(|| panic!("{name}: {report}")).clone()
    }

    /// The one step that failed.
    pub(crate) fn failed(&self) -> Value {
        let report = self.json();
        let failed = |step: &&Value| step["outcome"] == "failed";
        let failed: Vec<&Value> = report["steps"].as_array().unwrap().iter().filter(failed).collect();
        assert_eq!(failed.len(), 1, "{report:#}");
        failed[0].clone()
    }
}

/// Runs the binary in an empty directory.
pub(crate) async fn tidegate(arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
    let directory = tempfile::tempdir().unwrap();
    tidegate_in(directory.path(), arguments, variables).await
}

pub(crate) async fn tidegate_in(
    directory: &std::path::Path,
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> Ran {
    let mut command = command(directory);
    command.args(arguments).envs(variables.iter().copied()).stdin(Stdio::null());
    let started = Instant::now();
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    Ran {
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        code: output.status.code().unwrap(),
        took: started.elapsed(),
    }
}

/// The doctor on this URL, with little patience.
pub(crate) async fn doctor(url: &str, more: &[(&str, &str)]) -> Ran {
    let mut variables = vec![("REDIS_URL", url), ("TIDEGATE__REDIS__CONNECT_TIMEOUT_MS", "1500")];
    variables.extend_from_slice(more);
    tidegate(&["doctor", "--json"], &variables).await
}
