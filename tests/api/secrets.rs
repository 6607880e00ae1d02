//! A password appears nowhere, however hard one looks.

use std::time::Duration;

use serde_json::json;

use crate::support::process::{Tidegate, command};
use crate::support::redis_server::{RedisServer, free_port};

/// As a password, and as it stands in a URL.
const PASSWORD: &str = "hunter2/Tr0ub4dor@3#x";
const ENCODED: &str = "hunter2%2FTr0ub4dor%403%23x";
/// Pieces that would betray either form.
const TRACES: [&str; 3] = ["hunter2", "Tr0ub4dor", "another-secret"];

async fn everything_it_says(url: &str, connects: bool) -> String {
    let variables = [
        ("REDIS_URL", url),
        ("RUST_LOG", "trace"),
        ("APP_ENV", "production"),
        ("TIDEGATE_SECRET", "another-secret-of-the-fleet"),
        ("TIDEGATE__REDIS__CONNECT_TIMEOUT_MS", "700"),
        ("REDIS_TIMEOUT_MS", "5000"),
    ];
    let mut tidegate = Tidegate::start(None, &variables).await;
    if connects {
        tidegate.connected().await;
    } else {
        crate::support::until("it has failed", async || tidegate.lines_with("PRODUCTION DEGRADED") == 1)
            .await;
    }
    let mut said = String::new();
    for path in ["/readyz", "/anything"] {
        said += &tidegate.get(path).await.text().await.unwrap();
    }
    assert_eq!(
        tidegate.check(json!({"key": "k"})).await["backend"],
        if connects { "redis" } else { "memory" }
    );
    for path in ["/admin/status", "/admin/rollout"] {
        said += &tidegate.admin("GET", path).send().await.unwrap().text().await.unwrap();
    }
    said += &tidegate.metrics().await;
    tidegate.terminate();
    tidegate.wait(Duration::from_secs(10)).expect("it ends");
    said + &tidegate.output()
}

#[tokio::test]
async fn a_password_in_redis_url_appears_nowhere_at_trace_whether_connecting_works_or_fails() {
    let redis = RedisServer::with_password(PASSWORD);
    let open = RedisServer::start();
    let port = redis.port;
    let closed = free_port();
    let cases = [
        (format!("redis://:{ENCODED}@127.0.0.1:{port}"), true),
        (format!("redis://default:{ENCODED}@127.0.0.1:{port}"), true),
        (format!("redis://:{ENCODED}wrong@127.0.0.1:{port}"), false),
        (format!("redis://hunter2user:{ENCODED}@127.0.0.1:{port}"), false),
        (format!("redis://:{ENCODED}@127.0.0.1:{}", open.port), false),
        (format!("redis://:{ENCODED}@127.0.0.1:{closed}"), false),
        (format!("redis://:{ENCODED}@no-such-host.invalid:6379"), false),
        (format!("rediss://:{ENCODED}@127.0.0.1:{port}"), false),
    ];
    for (url, connects) in cases {
        let said = everything_it_says(&url, connects).await;
        assert!(said.contains("TRACE") || said.contains("DEBUG"), "it logs at trace");
        for trace in TRACES {
            let line = said.lines().find(|line| line.contains(trace));
            assert_eq!(line, None, "{trace} was said with {url}");
        }
    }
}

#[test]
fn a_malformed_url_is_refused_without_being_repeated() {
    let directory = tempfile::tempdir().unwrap();
    for url in [
        format!("redis://:{PASSWORD}@127.0.0.1:1"),
        format!("redis://:{ENCODED}@127.0.0.1:port"),
        format!("redis://:{ENCODED}%zz@127.0.0.1"),
        format!("http://:{ENCODED}@127.0.0.1"),
        ENCODED.to_owned(),
        format!("redis+sentinel://:{ENCODED}@127.0.0.1:26379"),
    ] {
        for arguments in
            [&["serve"][..], &["config", "check"], &["config", "show"], &["config", "check", "--json"]]
        {
            let output = command(directory.path()).args(arguments).env("REDIS_URL", &url).output().unwrap();
            assert_eq!(output.status.code(), Some(64), "{url}");
            let text = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            assert!(text.contains("REDIS_URL"), "{text}");
            for trace in TRACES {
                assert!(!text.contains(trace), "{arguments:?} with {url}:\n{text}");
            }
        }
    }
}
