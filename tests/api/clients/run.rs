//! A mixed run of requests: what is asked, what the upstream answers, and what is right.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::support::process::Tidegate;
use crate::support::raw::{Message, RawUpstream, Step, send};
use crate::support::redis_server::signal;

pub(super) const LONGEST: Duration = Duration::from_secs(240);

const POLICIES: &str = r#"
[[rule]]
name = "denied"
match = { path = "/denied/**" }
  [[rule.policy]]
  name = "denied"
  by = "header:x-api-key"
  limit = "1/second"
  on_missing = "deny"

[[rule]]
name = "spent"
match = { path = "/spent/**" }
  [[rule.policy]]
  name = "spent"
  by = "ip"
  limit = "1/day"

[[rule]]
name = "default"
  [[rule.policy]]
  name = "default"
  by = "ip"
  limit = "1000000/second"
"#;

/// What a request is to show, and so what its path begins with.
const KINDS: [&str; 16] = [
    "get", "head", "post", "chunked", "chunks", "large", "204", "304", "500", "denied", "spent", "page",
    "wrong", "upgrade", "old", "close",
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
    /// Of an answer to HEAD: else the body has it.
    pub(super) length: Option<usize>,
}

/// One request, as the fixtures read it.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) id: usize,
    pub(super) kind: &'static str,
    pub(super) path: String,
}

impl Request {
    pub(super) fn method(&self) -> &'static str {
        match self.kind {
            "head" => "HEAD",
            "post" | "chunked" => "POST",
            _ => "GET",
        }
    }

    pub(super) fn body(&self) -> Option<String> {
        (self.method() == "POST").then(|| format!("body of {}", self.id))
    }

    fn line(&self) -> String {
        json!({
            "id": self.id,
            "method": self.method(),
            "path": self.path,
            "body": self.body(),
            "chunked": self.kind == "chunked",
            "version": if self.kind == "old" { "1.0" } else { "1.1" },
            "close": self.kind == "close",
            "upgrade": self.kind == "upgrade",
        })
        .to_string()
    }

    fn reaches_the_upstream(&self) -> bool {
        !["denied", "spent", "page", "wrong"].contains(&self.kind)
    }

    fn is_answered_right(&self, answer: &Answer) -> bool {
        let echo = format!("{}:{}", self.path, self.body().unwrap_or_default());
        let (status, body) = match self.kind {
            "head" => {
                return *answer == Answer { status: 200, body: String::new(), length: Some(echo.len()) };
            }
            "204" => (204, String::new()),
            "304" => (304, String::new()),
            "500" => (500, format!("wrong: {}", self.path)),
            "large" => (200, large(&self.path)),
            "upgrade" => (101, self.path.clone()),
            // Our own pages.
            "denied" | "spent" => {
                let status = if self.kind == "spent" { 429 } else { 403 };
                let names_policy = answer.body.contains(&format!(r#""policy":"{}""#, self.kind));
                return answer.status == status && names_policy;
            }
            "page" => (200, "ok\n".to_owned()),
            "wrong" => return answer.status == 405 && answer.body.contains("accepted: POST"),
            _ => (200, echo),
        };
        answer.status == status && answer.body == body
    }
}

/// Of more than one write, and of another length for each path.
fn large(path: &str) -> String {
    path.repeat(5_000)
}

fn script(request: &Message, _: usize) -> Vec<Step> {
    let target = request.target();
    let body = format!("{target}:{}", String::from_utf8_lossy(&request.body));
    let framed = |head: &str, body: &str| {
        send(format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
    };
    match target.split('/').nth(1).unwrap_or_default() {
        "head" => vec![send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()))],
        "204" => vec![send("HTTP/1.1 204 No Content\r\n\r\n")],
        "304" => vec![send("HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n")],
        "500" => vec![framed("500 Internal Server Error", &format!("wrong: {target}"))],
        "large" => vec![framed("200 OK", &large(&target))],
        "chunks" | "old" => {
            let (one, two) = body.split_at(3);
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            let last = format!("{:x}\r\n{two}\r\n0\r\n\r\n", two.len());
            vec![send(format!("{head}3\r\n{one}\r\n")), send(last)]
        }
        "upgrade" => vec![
            send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
            Step::Echo,
        ],
        _ => vec![framed("200 OK", &body)],
    }
}

/// A run of one client.
pub(super) struct Run {
    pub(super) upstream: RawUpstream,
    pub(super) tidegate: Tidegate,
    pub(super) plan: Vec<Request>,
}

impl Run {
    /// With `count` requests of all kinds but some that the client cannot make, in an order that is always the same.
    pub(super) async fn of(count: usize, without: &[&str]) -> Self {
        let upstream = RawUpstream::start(script).await;
        let url = upstream.url();
        let variables = [("UPSTREAM_URL", &*url), ("TIDEGATE__LOGGING__REQUESTS", "false")];
        let tidegate = Tidegate::start(Some(POLICIES), &variables).await;
        assert_eq!(tidegate.get("/spent/first").await.status(), 200);
        upstream.seen.lock().clear();
        let kinds: Vec<&'static str> = KINDS.into_iter().filter(|kind| !without.contains(kind)).collect();
        let mut state = 17_u64;
        let plan = (0..count).map(|id| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let kind = kinds[(state >> 33) as usize % kinds.len()];
            let path = match kind {
                "page" => format!("/healthz?{id}"),
                "wrong" => format!("/v1/check?{id}"),
                _ => format!("/{kind}/{id}"),
            };
            Request { id, kind, path }
        });
        Self { plan: plan.collect(), upstream, tidegate }
    }

    /// Runs a program that reads the plan and writes lines of answers.
    pub(super) async fn by_lines(&self, program: &mut Command) -> HashMap<usize, Answer> {
        let plan: String = self.plan.iter().map(|request| request.line() + "\n").collect();
        let answer = |line: &str| {
            let line: Value = serde_json::from_str(line).expect("a line of JSON");
            let answer = Answer {
                status: line["status"].as_u64().unwrap() as u16,
                body: line["body"].as_str().unwrap().to_owned(),
                length: line["length"].as_u64().map(|length| length as usize),
            };
            (line["id"].as_u64().unwrap() as usize, answer)
        };
        output(program, plan).await.lines().map(answer).collect()
    }

    /// Each request has its answer, and was made once.
    pub(super) fn is_right(&self, answers: &HashMap<usize, Answer>) {
        let mut wrong: Vec<String> = Vec::new();
        for request in &self.plan {
            match answers.get(&request.id) {
                Some(answer) if request.is_answered_right(answer) => {}
                other => wrong.push(format!("{request:?}: {:.300}", format!("{other:?}"))),
            }
        }
        let shown = wrong.iter().take(5).map(String::as_str).collect::<Vec<_>>().join("\n");
        assert!(wrong.is_empty(), "{} of {} are wrong:\n{shown}", wrong.len(), self.plan.len());
        let mut seen: Vec<String> = self.upstream.seen.lock().iter().map(Message::target).collect();
        let forwarded = self.plan.iter().filter(|request| request.reaches_the_upstream());
        let mut sent: Vec<String> = forwarded.map(|request| request.path.clone()).collect();
        seen.sort_unstable();
        sent.sort_unstable();
        assert!(seen == sent, "{} requests reached the upstream, of {}", seen.len(), sent.len());
        assert_eq!(self.tidegate.lines_with("panicked"), 0);
    }
}

/// What a program prints, given this.
pub(super) async fn output(program: &mut Command, input: String) -> String {
    let program = program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = program.spawn().expect("`make test` installs it");
    let (pid, mut stdin) = (child.id(), child.stdin.take().unwrap());
    let feeding = spawn_blocking(move || {
        // A program that needs none of it may end before.
        let _ = stdin.write_all(input.as_bytes());
    });
    let ended = timeout(LONGEST, spawn_blocking(move || child.wait_with_output())).await;
    if ended.is_err() {
        signal(pid, "KILL");
    }
    let done = ended.expect("it ends").unwrap().unwrap();
    feeding.await.unwrap();
    let errors = String::from_utf8_lossy(&done.stderr);
    let last: Vec<&str> = errors.lines().rev().take(20).collect();
    assert!(done.status.success(), "{}, its last lines, newest first:\n{}", done.status, last.join("\n"));
    String::from_utf8(done.stdout).unwrap()
}

pub(super) fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/clients").join(name)
}
