//! What is told to whoever watches: live scrapes against docs, dashboard and rules, and a real Prometheus.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use serde_json::Value;
use std::io::Write as _;

use crate::support::process::Tidegate;
use crate::support::redis_server::{RedisServer, free_port};

fn file(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// One with everything that makes metrics appear, and some traffic.
async fn start(redis: &RedisServer) -> Tidegate {
    let url = redis.url();
    let variables = [
        ("REDIS_URL", &*url),
        ("TIDEGATE__REDIS__COMMANDS_PER_DAY", "10000"),
        ("TIDEGATE__REDIS__RECONNECT_INTERVAL_S", "1"),
        ("TIDEGATE__REDIS__WARM_UP_S", "1"),
    ];
    let tidegate = Tidegate::start(None, &variables).await;
    tidegate.connected().await;
    for _ in 0..5 {
        tidegate.get("/x").await;
    }
    tidegate
}

/// One whose listener shows a certificate.
async fn start_secure() -> Tidegate {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let paths = ["cert.pem", "key.pem"].map(|name| directory.path().join(name).display().to_string());
    std::fs::write(&paths[0], made.cert.pem()).unwrap();
    std::fs::write(&paths[1], made.signing_key.serialize_pem()).unwrap();
    let variables = [("TIDEGATE__SERVER__TLS_CERT", &*paths[0]), ("TIDEGATE__SERVER__TLS_KEY", &*paths[1])];
    Tidegate::start(None, &variables).await
}

/// The names and types that a scrape in the text format tells.
fn told(metrics: &str) -> BTreeSet<(String, String)> {
    let types = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

/// Every word that begins with `tidegate_`, as a family: without what a histogram adds.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let names = words.filter(|word| word.starts_with("tidegate_"));
    names.map(|name| name.strip_suffix("_bucket").unwrap_or(name).to_owned()).collect()
}

#[tokio::test]
async fn documentation_dashboard_and_rules_name_what_a_live_server_tells() {
    let redis = RedisServer::start();
    let (tidegate, secure) = (start(&redis).await, start_secure().await);
    let secure = secure.metrics().await;
    let end = "\ntidegate_tls_certificate_expiry_timestamp_seconds ";
    let end: u64 = secure.split(end).nth(1).unwrap().lines().next().unwrap().parse().unwrap();
    assert!(end > chrono::Utc::now().timestamp() as u64, "{end}");

    let mut live = told(&tidegate.metrics().await);
    live.extend(told(&secure));
    let documented: BTreeSet<(String, String)> = file("docs/metrics.md")
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `tidegate_")?.split(" | ");
            let name = format!("tidegate_{}", cells.next()?.trim_end_matches('`'));
            Some((name, cells.next()?.to_owned()))
        })
        .collect();
    assert_eq!(documented, live, "docs/metrics.md and a live scrape differ");

    let names: BTreeSet<String> = live.into_iter().map(|(name, _)| name).collect();
    let dashboard: Value = serde_json::from_str(&file("deploy/grafana/tidegate.json")).unwrap();
    let targets =
        dashboard["panels"].as_array().unwrap().iter().filter_map(|panel| panel["targets"].as_array());
    let queries: Vec<&str> = targets.flatten().map(|target| target["expr"].as_str().unwrap()).collect();
    assert!(queries.len() > 20);
    let rules = file("deploy/prometheus/alerts.yml");
    for text in queries.into_iter().chain([&*rules]) {
        let used = metrics_in(text);
        assert!(!used.is_empty(), "{text}");
        assert!(used.is_subset(&names), "not told: {:?} in {text}", used.difference(&names));
    }
}

#[test]
fn every_alert_has_a_chapter_in_the_runbook_and_cases_that_show_it_firing_and_silent() {
    let (rules, cases, book) = (
        file("deploy/prometheus/alerts.yml"),
        file("deploy/prometheus/alerts_test.yml"),
        file("docs/alerts.md"),
    );
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 12);
    for alert in &alerts {
        assert!(book.lines().any(|line| line == format!("## {alert}")), "docs/alerts.md has no ## {alert}");
        let link = format!("runbook_url: docs/alerts.md#{}", alert.to_lowercase());
        assert!(rules.lines().any(|line| line.trim() == link), "no {link}");
        assert!(cases.contains(&format!("name: {alert} fires")), "{alert} is not shown firing");
        assert!(cases.contains(&format!("name: {alert} stays silent")), "{alert} is not shown silent");
    }
    let chapters = book.lines().filter(|line| line.starts_with("## ")).count();
    assert_eq!(chapters, alerts.len(), "a chapter of an alert that is gone");
}

#[tokio::test]
async fn promtool_finds_nothing_in_a_live_scrape_and_openmetrics_is_given_to_who_asks() {
    let redis = RedisServer::start();
    let tidegate = start(&redis).await;
    let url = format!("http://{}/metrics", tidegate.admin);
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(tidegate.metrics().await.as_bytes()).unwrap();
    let said = promtool.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&said.stdout) + String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success() && words.trim().is_empty(), "{words}");

    for (accept, open) in [
        ("text/plain", false),
        ("*/*", false),
        ("application/openmetrics-text;q=0,text/plain", false),
        ("application/openmetrics-text; version=1.0.0,text/plain;q=0.5", true),
    ] {
        let answer = tidegate.http.get(&url).header("accept", accept).send().await.unwrap();
        let form = answer.headers()["content-type"].to_str().unwrap().to_owned();
        assert_eq!(form.starts_with("application/openmetrics-text; version=1.0.0"), open, "{accept}: {form}");
        assert_eq!(form.starts_with("text/plain; version=0.0.4"), !open, "{accept}: {form}");
        assert_eq!(answer.text().await.unwrap().ends_with("# EOF\n"), open, "{accept}");
    }
}

/// Sends so many requests, each of another client, path and method, and returns how many series there are more.
async fn series_by(requests: usize) -> isize {
    const BY_KEY: &str = "[[rule]]\nname = \"r\"\n[[rule.policy]]\nname = \"p\"\nby = \"header:x-api-key\"\nlimit = \"9/minute\"\n";
    let tidegate = Tidegate::start(Some(BY_KEY), &[("TIDEGATE__LOGGING__REQUESTS", "false")]).await;
    let count =
        async || tidegate.metrics().await.lines().filter(|line| !line.starts_with('#')).count() as isize;
    let before = count().await;
    let sent =
        stream::iter(0..requests).map(|n| {
            // Of letters: a digit in a method is refused before anything is judged.
            let method: Vec<u8> = format!("{n}").bytes().map(|digit| digit - b'0' + b'A').collect();
            let method = reqwest::Method::from_bytes(&method).unwrap();
            let request = tidegate.http.request(method, tidegate.url(&format!("/path/{n}")));
            async move {
                request.header("x-api-key", format!("client-{n}")).send().await.unwrap().status().as_u16()
            }
        });
    let statuses: BTreeSet<u16> = sent.buffer_unordered(32).collect().await;
    assert!(statuses.iter().all(|status| *status < 500), "{statuses:?}");
    let text = tidegate.metrics().await;
    let judged = r#"tidegate_requests_total{backend="memory",state="allow",policy="p",arm="control"} "#;
    assert!(text.contains(&format!("{judged}{requests}\n")), "all were judged\n{text}");
    count().await - before
}

#[tokio::test]
async fn distinct_clients_paths_and_methods_add_no_series() {
    assert_eq!(series_by(2_000).await, 0);
}

mod soak {
    #[tokio::test]
    async fn a_hundred_thousand_distinct_clients_paths_and_methods_add_no_series() {
        if std::env::var_os("TIDEGATE_SOAK").is_some() {
            assert_eq!(super::series_by(100_000).await, 0);
        }
    }
}

/// A real Prometheus, ended with its test.
struct Prometheus {
    child: Child,
    port: u16,
    http: reqwest::Client,
    _directory: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// Scrapes `target` each second and judges our rules, which wait for nothing.
    fn start(target: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let rules: Vec<String> = file("deploy/prometheus/alerts.yml")
            .lines()
            .map(|line| match line.trim().strip_prefix("for: ") {
                Some(wait) => line.replace(wait, "0s"),
                None => line.to_owned(),
            })
            .collect();
        std::fs::write(directory.path().join("alerts.yml"), rules.join("\n")).unwrap();
        let config = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\nrule_files: [alerts.yml]\n\
             scrape_configs:\n  - job_name: tidegate\n    static_configs: [{{ targets: [\"{target}\"] }}]\n"
        );
        let config_file = directory.path().join("prometheus.yml");
        std::fs::write(&config_file, config).unwrap();
        let port = free_port();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config_file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, port, http: reqwest::Client::new(), _directory: directory }
    }

    async fn asked(&self, path: &str) -> Option<Value> {
        let answer = self.http.get(format!("http://127.0.0.1:{}{path}", self.port)).send().await.ok()?;
        serde_json::from_str(&answer.text().await.ok()?).ok()
    }

    async fn scrapes(&self) -> bool {
        let up = self.asked("/api/v1/query?query=tidegate_backend_up").await;
        up.is_some_and(|up| up["data"]["result"].as_array().is_some_and(|found| found.len() == 2))
    }

    async fn fires(&self, alert: &str) -> bool {
        let alerts = self.asked("/api/v1/alerts").await.unwrap_or_default();
        let alerts = alerts["data"]["alerts"].as_array().cloned().unwrap_or_default();
        alerts.iter().any(|one| one["labels"]["alertname"] == alert && one["state"] == "firing")
    }
}

async fn within_a_minute(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done().await {
        assert!(Instant::now() < deadline, "waited a minute in vain: {what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_real_prometheus_sees_redis_lost_and_sees_it_come_back() {
    let mut redis = RedisServer::start();
    let tidegate = start(&redis).await;
    let prometheus = Prometheus::start(&tidegate.admin.to_string());
    within_a_minute("it scrapes", async || prometheus.scrapes().await).await;
    assert!(!prometheus.fires("TidegateRedisLost").await);
    redis.kill();
    within_a_minute("the alert fires", async || prometheus.fires("TidegateRedisLost").await).await;
    redis.restart();
    within_a_minute("it resolves", async || !prometheus.fires("TidegateRedisLost").await).await;
}
