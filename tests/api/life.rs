//! Start and end.

use std::time::Duration;

use crate::support::process::{Tidegate, command};
use crate::support::redis_server::free_port;
use crate::support::upstream::Upstream;

#[tokio::test]
async fn sigterm_lets_requests_under_way_finish_and_exits_0() {
    let upstream = Upstream::start();
    let url = upstream.url();
    let mut tidegate = Tidegate::start(None, &[("UPSTREAM_URL", &url)]).await;
    let slow = tokio::spawn(tidegate.http.get(tidegate.url("/slow/1200")).send());
    tokio::time::sleep(Duration::from_millis(300)).await;
    tidegate.terminate();
    let answer = slow.await.unwrap().unwrap();
    assert_eq!((answer.status().as_u16(), answer.text().await.unwrap().as_str()), (200, "slow\n"));
    let status = tidegate.wait(Duration::from_secs(10)).expect("it ends within the grace period");
    assert_eq!(status.code(), Some(0));
    assert_eq!(tidegate.request_lines(1).await[0]["status"], 200, "the last lines are written out");
    tidegate.says("tidegate: stopped", 1).await;
}

#[tokio::test]
async fn a_request_that_outlives_the_grace_period_does_not_hold_the_end() {
    let upstream = Upstream::start();
    let url = upstream.url();
    let variables = [("UPSTREAM_URL", url.as_str()), ("TIDEGATE__SERVER__GRACE_S", "1")];
    let mut tidegate = Tidegate::start(None, &variables).await;
    let slow = tokio::spawn(tidegate.http.get(tidegate.url("/slow/20000")).send());
    tokio::time::sleep(Duration::from_millis(300)).await;
    tidegate.terminate();
    let status = tidegate.wait(Duration::from_secs(8)).expect("it ends after the grace period");
    assert_eq!(status.code(), Some(0));
    assert!(slow.await.unwrap().is_err());
}

#[test]
fn an_address_that_is_taken_is_named_with_its_variable() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let directory = tempfile::tempdir().unwrap();
    let output = command(directory.path()).env("HOST", "127.0.0.1").env("PORT", &port).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("HOST, PORT") && text.contains(&port), "{text}");
    let admin = free_port().to_string();
    let output = command(directory.path())
        .envs([("HOST", "127.0.0.1"), ("PORT", admin.as_str())])
        .env("ADMIN_ADDR", format!("127.0.0.1:{port}"))
        .output()
        .unwrap();
    assert!(String::from_utf8(output.stderr).unwrap().contains("ADMIN_ADDR"));
}

#[test]
fn bad_configuration_is_told_whole_and_exits_64() {
    let directory = tempfile::tempdir().unwrap();
    for arguments in [&["serve"][..], &[], &["config", "check"], &["config", "show"]] {
        let output = command(directory.path())
            .args(arguments)
            .envs([("PORT", "eighty"), ("RATE_LIMIT_BACKEND", "disk"), ("REDIS_URL", "redis://:p@ss@h")])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {text}");
        for name in ["PORT", "RATE_LIMIT_BACKEND", "REDIS_URL"] {
            assert_eq!(text.lines().filter(|line| line.contains(name)).count(), 1, "{name} in\n{text}");
        }
        assert!(text.contains("%40") && !text.contains("p@ss"), "{text}");
    }
    let output = command(directory.path()).arg("srve").output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let output = command(directory.path()).arg("--help").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8(output.stdout).unwrap().contains("Example"));
}

#[test]
fn config_show_names_the_source_of_each_value_and_no_secret() {
    let directory = tempfile::tempdir().unwrap();
    let output = command(directory.path())
        .args(["config", "show", "--port", "9090"])
        .envs([("REDIS_URL", "rediss://u:hunter2hunter2@redis.example.com:6380"), ("REDIS_TIMEOUT_MS", "75")])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let line = |words: &str| text.lines().find(|line| line.contains(words)).expect(words).to_owned();
    assert!(line("server.port").contains("9090") && line("server.port").contains("--port"));
    assert!(line("redis.timeout_ms").contains("75") && line("redis.timeout_ms").contains("REDIS_TIMEOUT_MS"));
    assert!(line("redis.url").contains("[redacted]"));
    assert!(line("memory.max_keys").contains("default"));
    assert!(!text.contains("hunter2"));
}
