//! The operator's page in a real Chromium, against the real server: tests/fixtures/browser/page.py is the operator.

use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use tokio::sync::mpsc;

use crate::support::installed::tool;
use crate::support::outage::CONNECTED;
use crate::support::process::{ADMIN_TOKEN, Tidegate};
use crate::support::redis_server::RedisServer;
use crate::support::relay::Relay;
use crate::support::upstream::Upstream;

const READER: &str = "read grafana read-token-of-24-characters\n";

/// A file without the one who may only read.
fn tokens() -> String {
    format!("operate on-call operate-token-24-letters\nadmin ana {ADMIN_TOKEN}\n")
}

/// An operator at work. Killed when it is dropped.
struct Operator {
    child: Child,
    input: ChildStdin,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Operator {
    fn starts(scenario: &str, page: &str, admin: &str) -> Self {
        use std::io::BufRead as _;
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut child = Command::new(tool("python"))
            .arg(root.join("tests/fixtures/browser/page.py"))
            .args([scenario, page, admin])
            .env("READ_TOKEN", "read-token-of-24-characters")
            .env("OPERATE_TOKEN", "operate-token-24-letters")
            .env("ADMIN_TOKEN", ADMIN_TOKEN)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let (say, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in std::io::BufReader::new(output).lines().map_while(Result::ok) {
                let _ = say.send(line);
            }
        });
        Self { input: child.stdin.take().unwrap(), child, lines }
    }

    /// Does what the operator can't, until they are done.
    async fn helped_by(mut self, mut help: impl AsyncFnMut(&str)) {
        use std::io::Write as _;
        let mut is_done = false;
        while let Some(line) = self.lines.recv().await {
            match line.strip_prefix("do: ") {
                Some(what) => {
                    help(what).await;
                    writeln!(self.input, "done").unwrap();
                }
                None => is_done |= line == "done",
            }
        }
        let status = self.child.wait().unwrap();
        assert!(status.success() && is_done, "the operator stopped: {status}");
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn nothing(what: &str) {
    panic!("{what}");
}

/// With three tokens, and the percentage that is given.
async fn started(redis: &RedisServer, percent: &str, policies: &str, more: &[(&str, &str)]) -> Tidegate {
    let url = redis.url();
    let mut variables = vec![
        ("ADMIN_TOKEN", ""),
        ("ADMIN_TOKEN_FILE", "tokens"),
        ("REDIS_URL", url.as_str()),
        ("RATE_LIMIT_CANARY_PERCENT", percent),
    ];
    variables.extend_from_slice(more);
    let tidegate =
        Tidegate::start_with_files(policies, &[("tokens", &format!("{READER}{}", tokens()))], &variables)
            .await;
    tidegate.says(CONNECTED, 1).await;
    tidegate
}

const BY_KEY: &str = r#"
    [[rule]]
    name = "default"
      [[rule.policy]]
      name = "one"
      by = "header:x-api-key"
      limit = "3/hour"
      [[rule.policy]]
      name = "two"
      by = "header:x-api-key"
      limit = "1000/hour"
"#;

fn page_of(tidegate: &Tidegate) -> (String, String) {
    (format!("http://{}/", tidegate.admin), format!("http://{}", tidegate.admin))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_figures_are_those_of_metrics_and_everybody_can_use_the_page_on_a_phone_too() {
    let redis = RedisServer::start();
    let upstream = Upstream::start();
    let tidegate = started(&redis, "50", BY_KEY, &[("UPSTREAM_URL", &upstream.url())]).await;
    for key in 0..40 {
        for path in ["/status/200", "/status/500", "/status/401", "/status/403"] {
            tidegate.get_as(path, &format!("client-{key}")).await;
        }
    }
    let (page, admin) = page_of(&tidegate);
    Operator::starts("figures", &page, &admin).helped_by(nothing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raise_wants_a_reason_a_preview_and_the_typed_percentage_and_a_lost_race_is_shown() {
    let redis = RedisServer::start();
    let tidegate = started(&redis, "10", BY_KEY, &[]).await;
    let (page, admin) = page_of(&tidegate);
    Operator::starts("raising", &page, &admin).helped_by(nothing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_takes_a_few_keys_with_redis_dead_and_its_absence_is_told_with_cause_and_cure() {
    let mut redis = RedisServer::start();
    let tidegate = started(&redis, "10", BY_KEY, &[]).await;
    let (page, admin) = page_of(&tidegate);
    let operator = Operator::starts("rollback", &page, &admin);
    operator.helped_by(async |_: &str| redis.kill()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_cut_off_says_so_and_since_when_and_comes_back_by_itself() {
    let redis = RedisServer::start();
    let tidegate = started(&redis, "10", BY_KEY, &[]).await;
    let relay = Relay::to(tidegate.admin.port()).await;
    let (page, admin) = (format!("http://{}/", relay.address), page_of(&tidegate).1);
    let operator = Operator::starts("cut", &page, &admin);
    operator
        .helped_by(async |what: &str| match what {
            "cut" => {
                relay.refuse();
                relay.cut();
            }
            "break" => relay.cut(),
            "freeze" => relay.black_hole(),
            "mend" => {
                relay.thaw();
                relay.accept();
                relay.cut();
            }
            other => panic!("{other}"),
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_only_read_is_told_so_and_a_token_that_is_wrong_or_revoked_is_said_to_be() {
    let redis = RedisServer::start();
    let tidegate = started(&redis, "10", BY_KEY, &[]).await;
    let (page, admin) = page_of(&tidegate);
    let file = tidegate.directory.path().join("tokens");
    let operator = Operator::starts("reading", &page, &admin);
    operator
        .helped_by(async |_: &str| {
            std::fs::write(&file, tokens()).unwrap();
            tidegate.hang_up();
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_single_port_the_page_stands_under_the_prefix() {
    let redis = RedisServer::start();
    let tidegate =
        started(&redis, "10", BY_KEY, &[("ADMIN_ADDR", "main"), ("TIDEGATE__ADMIN__PAGE", "true")]).await;
    let page = tidegate.url("/_tidegate");
    Operator::starts("prefix", &page, &page).helped_by(nothing).await;
    // The upstream's own root is not hidden: here there is none.
    let root = tidegate.get("/").await;
    assert_eq!((root.status().as_u16(), root.text().await.unwrap().contains("problem")), (404, false));
}
