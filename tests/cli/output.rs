//! Results that can't be written are no success.

use std::fs::OpenOptions;
use std::process::Stdio;

use crate::support::process::{ADMIN_TOKEN, Tidegate, command};

/// The exit code and what is said of it, with a standard output that is full.
async fn onto_a_full_disk(arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String) {
    let directory = tempfile::tempdir().unwrap();
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = command(directory.path());
    command.args(arguments).envs(variables.iter().copied()).stdin(Stdio::null()).stdout(full);
    let output = tokio::task::spawn_blocking(move || {
        command.stderr(Stdio::piped()).spawn().unwrap().wait_with_output()
    });
    let output = output.await.unwrap().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn every_command_that_cannot_print_says_so_and_fails() {
    let service = Tidegate::start(None, &[]).await;
    let admin = format!("http://{}", service.admin);
    let front = service.url("/");
    for arguments in [
        &["config", "show"][..],
        &["config", "show", "--json"],
        &["config", "check"],
        &["config", "check", "--json"],
        &["cost"],
        &["cost", "--json"],
        &["doctor"],
        &["doctor", "--json"],
        &["--help"],
        &["--version"],
        &["config", "--help"],
        &["rollout", "status", "--admin-url", &admin],
        &["rollout", "status", "--json", "--admin-url", &admin],
        &["rollout", "rollback", "--admin-url", &admin],
        &[
            "load-test",
            "--url",
            &front,
            "--admin-url",
            &admin,
            "--target",
            "1x",
            "--burst",
            "1s",
            "--warm-up",
            "0s",
        ],
        &[
            "load-test",
            "--url",
            &front,
            "--admin-url",
            &admin,
            "--target",
            "1x",
            "--burst",
            "1s",
            "--json",
            "-",
        ],
    ] {
        let (code, said) = onto_a_full_disk(arguments, &[("ADMIN_TOKEN", ADMIN_TOKEN)]).await;
        assert_ne!(code, 0, "{arguments:?}: {said}");
        assert!(said.contains("can't write to standard output"), "{arguments:?}: {said}");
    }
}

#[tokio::test]
async fn a_reader_that_closes_early_is_no_failure() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = command(directory.path())
        .args(["config", "show"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[tokio::test]
async fn a_token_that_goes_out_in_clear_text_is_warned_of() {
    for (url, warned) in [
        ("http://tidegate.invalid:9", true),
        ("http://localhost.invalid:9", true),
        ("https://tidegate.invalid:9", false),
        ("http://127.0.0.1:1", false),
        ("http://localhost:1", false),
        ("http://[::1]:1", false),
    ] {
        let arguments = ["rollout", "status", "--admin-url", url];
        let ran = super::run::tidegate(&arguments, &[("ADMIN_TOKEN", ADMIN_TOKEN)]).await;
        let said = ran.stderr.contains("goes to") && ran.stderr.contains("in clear text");
        assert_eq!((said, ran.code), (warned, 1), "{url}: {}", ran.stderr);
        assert!(!ran.stderr.contains(ADMIN_TOKEN));
    }
}
