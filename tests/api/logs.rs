//! The request log, and the guide's own commands on it.

use std::process::Command;

use serde_json::Value;

use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;
use crate::support::until;

/// Runs a shell command of the guide with FILE in place of its log files.
fn shell(command: &str, file: &std::path::Path) -> String {
    let command = command.replace("/tmp/logs/FastAPI_Server_*.log", &file.display().to_string());
    let output = Command::new("sh").arg("-c").arg(command).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn the_guides_own_commands_work_on_a_real_log() {
    let redis = RedisServer::start();
    let url = redis.url();
    let variables =
        [("REDIS_URL", url.as_str()), ("RATE_LIMIT_BACKEND", "redis"), ("REDIS_TIMEOUT_MS", "5000")];
    let tidegate = Tidegate::start(None, &variables).await;
    tidegate.connected().await;
    for _ in 0..100 {
        tidegate.get("/").await;
    }
    tidegate.request_lines(100).await;
    let file = tidegate.directory.path().join("tidegate.log");
    std::fs::write(&file, tidegate.output()).unwrap();

    let connected =
        shell(r#"grep "Redis rate limiting backend connected" /tmp/logs/FastAPI_Server_*.log"#, &file);
    assert!(connected.trim_end().ends_with("✅ Redis rate limiting backend connected"), "{connected}");
    let counted = shell(
        r#"grep "REQUEST_LOG:" /tmp/logs/FastAPI_Server_*.log | \
  sed 's/.*REQUEST_LOG: //' | \
  jq '.rl_backend' | \
  sort | uniq -c"#,
        &file,
    );
    assert_eq!(counted, "    100 \"redis\"\n");
    let tail = shell(r#"grep "rl_backend" /tmp/logs/FastAPI_Server_*.log | tail -20"#, &file);
    assert_eq!(tail.lines().count(), 20);
}

#[tokio::test]
async fn every_request_has_one_line_with_the_fields_of_the_contract_and_no_identity() {
    let tidegate = Tidegate::start(None, &[]).await;
    tidegate
        .http
        .get(tidegate.url("/a/b?secret=query"))
        .header("x-api-key", "a-client-key")
        .send()
        .await
        .unwrap();
    tidegate.get("/healthz").await;
    tidegate.get("/readyz").await;
    let lines = tidegate.request_lines(1).await;
    assert_eq!(lines.len(), 1, "probes are not told");
    let line = lines[0].as_object().unwrap();
    let names: Vec<&str> = line.keys().map(String::as_str).collect();
    for name in [
        "ts",
        "request_id",
        "method",
        "path",
        "status",
        "latency_ms",
        "client",
        "policy",
        "rl_backend",
        "rate_limit_state",
        "limit",
        "remaining",
        "retry_after_ms",
        "arm",
        "fallback",
        "rollout_revision",
    ] {
        assert!(names.contains(&name), "{name} is missing in {names:?}");
    }
    assert_eq!((line["method"].as_str(), line["path"].as_str()), (Some("GET"), Some("/a/b")));
    assert_eq!((line["status"].as_u64(), line["limit"].as_u64()), (Some(404), Some(100)));
    assert_eq!((line["rl_backend"].as_str(), line["arm"].as_str()), (Some("memory"), Some("control")));
    assert_eq!(line["rollout_revision"], 1, "the record's first revision, in memory as well");
    let ts = line["ts"].as_str().unwrap();
    assert!(chrono::DateTime::parse_from_rfc3339(ts).is_ok() && ts.len() == 24, "{ts}");
    let output = tidegate.output();
    for never in ["secret=query", "a-client-key", "127.0.0.1\",\"policy"] {
        assert!(!output.contains(never), "{never} in\n{output}");
    }
}

#[tokio::test]
async fn raw_keys_are_an_option_and_json_has_nothing_but_json() {
    let variables = [("LOG_FORMAT", "json"), ("TIDEGATE__LOGGING__RAW_KEYS", "true")];
    let tidegate = Tidegate::start(None, &variables).await;
    tidegate.get("/x").await;
    until("the line is written", async || tidegate.output().contains("\"/x\"")).await;
    let lines: Vec<Value> =
        tidegate.output().lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let request = lines.iter().find(|line| line["path"] == "/x").unwrap();
    assert_eq!(request["client"], "127.0.0.1");
    assert!(lines.iter().any(|line| line["message"].as_str().is_some_and(|m| m.contains("listening: API"))));
}

#[tokio::test]
async fn a_reader_that_stops_reading_delays_no_request_and_lost_lines_are_counted() {
    use crate::support::process::{ADMIN_TOKEN, command};
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;

    let directory = tempfile::tempdir().unwrap();
    let mut child = command(directory.path())
        .envs([
            ("PORT", "0"),
            ("HOST", "127.0.0.1"),
            ("ADMIN_ADDR", "127.0.0.1:0"),
            ("ADMIN_TOKEN", ADMIN_TOKEN),
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut address = |which: &str| {
        let line = lines.by_ref().find(|line| line.contains(&format!("listening: {which} on"))).unwrap();
        line.rsplit_once("http://").unwrap().1.to_owned()
    };
    let (main, admin) = (address("API"), address("admin"));
    // Nobody reads from here on; the pipe holds 64 KiB, the queue some 65 000 lines.
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let metrics =
        async || http.get(format!("http://{admin}/metrics")).send().await.unwrap().text().await.unwrap();
    let dropped = |metrics: &str| {
        let line =
            metrics.lines().find(|line| line.starts_with("tidegate_log_lines_dropped_total ")).unwrap();
        line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()
    };
    assert_eq!(dropped(&metrics().await), 0);
    // Long paths fill the pipe sooner.
    let url = format!("http://{main}/{}", "p".repeat(3000));
    use futures_util::StreamExt as _;
    let mut sent = 0;
    while dropped(&metrics().await) == 0 {
        assert!(sent < 200_000, "{sent} requests and not one line was dropped");
        let batch = futures_util::stream::iter(0..10_000).map(|_| http.get(&url).send()).buffer_unordered(64);
        batch.for_each(async |answer| assert!(answer.is_ok())).await;
        sent += 10_000;
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
