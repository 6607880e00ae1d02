//! Clients that others wrote, each with a mixed run of requests over as few connections as it likes: undici with pipelining,
//! curl, Python's http.client and httpx, nghttp, and a client that keeps its connections as Go's does.

mod run;

use std::collections::{HashMap, VecDeque};
use std::process::Command;

use tokio::time::timeout;

use crate::support::installed::{node_modules, tool};
use crate::support::raw::Raw;
use run::{Answer, LONGEST, Request, Run, fixture, output};

async fn undici(count: usize) {
    // It does not speak HTTP/1.0.
    let run = Run::of(count, &["old", "upgrade"]).await;
    let mut node = Command::new("node");
    node.env("NODE_PATH", node_modules()).arg(fixture("client.cjs"));
    node.args([run.tidegate.main.ip().to_string(), run.tidegate.main.port().to_string()]);
    run.is_right(&run.by_lines(&mut node).await);
}

async fn python(client: &str, count: usize, without: &[&str]) {
    let run = Run::of(count, without).await;
    let mut python = Command::new(tool("python"));
    python.env("PYTHONDONTWRITEBYTECODE", "1").arg(fixture("client.py")).arg(client);
    python.args([run.tidegate.main.ip().to_string(), run.tidegate.main.port().to_string()]);
    run.is_right(&run.by_lines(&mut python).await);
}

async fn curl(count: usize) {
    // What it makes of a 101 that is no HTTP/2 is of no use. `old` and `upgrade` are its own: `Upgrade: h2c`.
    let run = Run::of(count, &["upgrade"]).await;
    let mut config = String::new();
    for request in &run.plan {
        let (url, id) = (run.tidegate.url(&request.path), request.id);
        // Of an answer to HEAD it would print the headers.
        let place = if request.kind == "head" { "/dev/null" } else { "-" };
        config += &format!("next\nsilent\nurl = \"{url}\"\noutput = \"{place}\"\n");
        config += &format!("write-out = \"\\n@@ {id} %{{http_code}} %header{{content-length}}\\n\"\n");
        if let Some(body) = request.body() {
            config += &format!("data = \"{body}\"\n");
        }
        config += match request.kind {
            "head" => "head\n",
            "chunked" => "header = \"Transfer-Encoding: chunked\"\n",
            "close" => "header = \"Connection: close\"\n",
            "old" => "http1.0\n",
            // Offers HTTP/2 by an upgrade, which is not taken up.
            "get" if id % 2 == 0 => "http2\n",
            _ => "",
        };
    }
    let config = config.replacen("next\n", "", 1);
    let printed = output(Command::new("curl").args(["-q", "-K", "-"]), config).await;
    let mut answers = HashMap::new();
    let mut body = String::new();
    for line in printed.split_inclusive('\n') {
        let Some(facts) = line.strip_prefix("@@ ") else {
            body += line;
            continue;
        };
        let facts: Vec<&str> = facts.trim_end().split(' ').collect();
        // One end of a line is ours.
        body.pop();
        let length = facts.get(2).and_then(|length| length.parse().ok());
        let answer = Answer { status: facts[1].parse().unwrap(), body: std::mem::take(&mut body), length };
        answers.insert(facts[0].parse().unwrap(), answer);
    }
    run.is_right(&answers);
}

/// As Go's transport does: connections that are idle wait in a pool, the newest is taken first, two are kept, and bytes that
/// no request asked for end one. Unlike Go, nothing is sent twice.
async fn pooled(count: usize) {
    let run = Run::of(count, &[]).await;
    let (mut idle, mut answers) = (VecDeque::<Raw<_>>::new(), HashMap::new());
    for (number, request) in run.plan.iter().enumerate() {
        // Three at once now and then.
        let newest = if number % 7 < 3 { None } else { idle.pop_back() };
        let mut raw = match newest {
            Some(raw) => raw,
            None => Raw::connect(run.tidegate.main).await,
        };
        let (method, path) = (request.method(), &request.path);
        let version = if request.kind == "old" { "1.0" } else { "1.1" };
        let mut text =
            format!("{method} {path} HTTP/{version}\r\nHost: h\r\nUser-Agent: Go-http-client/1.1\r\n");
        match (request.kind, request.body()) {
            ("chunked", Some(body)) => {
                text += &format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
            }
            (_, Some(body)) => text += &format!("Content-Length: {}\r\n\r\n{body}", body.len()),
            ("close", _) => text += "Connection: close\r\n\r\n",
            ("upgrade", _) => text += "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            _ => text += "Accept-Encoding: gzip\r\n\r\n",
        }
        let none = raw.unasked();
        assert!(none.is_empty(), "before {request:?}: {:?}", String::from_utf8_lossy(&none));
        raw.write(&text).await;
        let (_, answer) = timeout(LONGEST, raw.answer(method)).await.expect("an answer");
        let mut body = answer.body.clone();
        if answer.status() == 101 {
            raw.write(path).await;
            body = raw.exactly(path.len()).await.unwrap();
        }
        let length = answer.header("content-length").map(|length| length.parse().unwrap());
        answers.insert(
            request.id,
            Answer { status: answer.status(), body: String::from_utf8(body).unwrap(), length },
        );
        assert!(answer.complete, "{request:?}: {answer:?}");
        let says = answer.header("connection").unwrap_or_default().to_ascii_lowercase();
        if ["close", "old", "upgrade"].contains(&request.kind) {
            assert!(request.kind == "upgrade" || raw.is_closed().await, "{request:?}");
        } else {
            assert_eq!(says, "", "{request:?}: nothing says that the connection ends");
            idle.push_back(raw);
            if idle.len() > 2 {
                idle.pop_front();
            }
        }
    }
    run.is_right(&answers);
}

async fn nghttp(count: usize) {
    // HTTP/2 has no versions, no end of a connection by a header, and no chunks.
    let run = Run::of(count, &["chunked", "close", "old", "upgrade"]).await;
    let mut answers = HashMap::new();
    for method in ["GET", "HEAD", "POST"] {
        let all: Vec<&Request> = run.plan.iter().filter(|request| request.method() == method).collect();
        // So many streams of one connection. One body is for all of a command.
        for some in all.chunks(if method == "POST" { 1 } else { 100 }) {
            let mut program = Command::new("nghttp");
            program.args(["-v", "--no-dep"]).arg("-H").arg(format!(":method: {method}"));
            let body = some[0].body().unwrap_or_default();
            if method == "POST" {
                program.args(["-d", "-"]);
            }
            program.args(some.iter().map(|request| run.tidegate.url(&request.path)));
            let printed = output(&mut program, body).await;
            answers.extend(streams(&printed, some));
        }
    }
    run.is_right(&answers);
}

/// What came on each stream, from what `nghttp -v` prints: frames, and bodies as they are.
fn streams(printed: &str, requests: &[&Request]) -> HashMap<usize, Answer> {
    let (mut by_stream, mut answers) = (HashMap::new(), HashMap::new());
    let empty = Answer { status: 0, body: String::new(), length: None };
    let (mut stream, mut held) = (0_usize, String::new());
    let number = |line: &str| -> usize {
        let rest = line.split_once("stream_id=").map_or("0", |(_, rest)| rest);
        rest.split(['>', ')', ',']).next().unwrap().parse().unwrap()
    };
    for line in printed.split_inclusive('\n') {
        let (before, frame) = match line.find("[  ") {
            Some(at) => (&line[..at], line[at..].trim_end()),
            None => (line, ""),
        };
        if frame.is_empty() && line.starts_with("          ") {
            if let Some(path) = line.trim().strip_prefix(":path: ") {
                let request = requests.iter().find(|request| request.path == path).expect("one of them");
                by_stream.insert(stream, request.id);
            }
            continue;
        }
        held += before;
        if frame.is_empty() {
            continue;
        }
        stream = number(frame);
        let Some(id) = by_stream.get(&stream) else { continue };
        let answer = answers.entry(*id).or_insert_with(|| empty.clone());
        if frame.contains("recv DATA frame") {
            answer.body += &std::mem::take(&mut held);
        } else if let Some((_, status)) = frame.split_once(") :status: ") {
            answer.status = status.parse().unwrap();
        } else if let Some((_, length)) = frame.split_once(") content-length: ") {
            answer.length = Some(length.parse().unwrap());
        }
    }
    answers
}

#[tokio::test]
async fn undici_reads_a_mixed_run_by_pipelines() {
    undici(600).await;
}

#[tokio::test]
async fn curl_reads_a_mixed_run() {
    curl(300).await;
}

#[tokio::test]
async fn http_client_reads_a_mixed_run() {
    python("http.client", 400, &[]).await;
}

#[tokio::test]
async fn httpx_reads_a_mixed_run() {
    python("httpx", 300, &["old", "upgrade"]).await;
}

#[tokio::test]
async fn httpx_reads_a_mixed_run_of_streams() {
    python("httpx-h2", 300, &["old", "upgrade", "close"]).await;
}

#[tokio::test]
async fn pooled_connections_carry_a_mixed_run() {
    pooled(500).await;
}

#[tokio::test]
async fn nghttp_reads_a_mixed_run_of_streams() {
    nghttp(300).await;
}

mod soak {
    /// Ten thousand requests in all.
    #[tokio::test]
    async fn clients_read_ten_thousand_answers() {
        if std::env::var_os("TIDEGATE_SOAK").is_none() {
            return;
        }
        super::undici(3_000).await;
        super::curl(1_000).await;
        super::python("http.client", 2_000, &[]).await;
        super::python("httpx", 1_000, &["old", "upgrade"]).await;
        super::python("httpx-h2", 1_000, &["old", "upgrade", "close"]).await;
        super::pooled(1_000).await;
        super::nghttp(1_000).await;
    }
}
