//! `GET /admin/events`: how things stand, each second, to whom may know it, for as long as they may.

use std::time::Duration;

use serde_json::Value;

use crate::support::process::{ADMIN_TOKEN, Tidegate};
use crate::support::until;

struct Stream {
    answer: reqwest::Response,
    text: String,
}

impl Stream {
    async fn open(tidegate: &Tidegate, token: &str) -> Self {
        let url = format!("http://{}/admin/events", tidegate.admin);
        let answer = tidegate.http.get(url).bearer_auth(token).send().await.unwrap();
        Self { answer, text: String::new() }
    }

    /// The next event's name and data; `None`: the stream has ended.
    async fn next(&mut self) -> Option<(String, String)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (name, data) = event.split_once('\n').unwrap();
                let name = name.strip_prefix("event: ").unwrap().to_owned();
                let data = data.strip_prefix("data: ").unwrap().to_owned();
                self.text = rest.to_owned();
                return Some((name, data));
            }
            let chunk = tokio::time::timeout(Duration::from_secs(10), self.answer.chunk());
            match chunk.await.expect("an event a second") {
                Ok(Some(chunk)) => self.text.push_str(std::str::from_utf8(&chunk).unwrap()),
                _ => return None,
            }
        }
    }
}

#[tokio::test]
async fn each_event_is_what_the_status_says_and_a_change_is_in_the_next() {
    let tidegate = Tidegate::start(None, &[]).await;
    let mut stream = Stream::open(&tidegate, ADMIN_TOKEN).await;
    let headers = stream.answer.headers();
    assert_eq!(headers["content-type"], "text/event-stream; charset=utf-8");
    assert_eq!(
        (headers["cache-control"].as_bytes(), headers["x-accel-buffering"].as_bytes()),
        (&b"no-store"[..], &b"no"[..])
    );
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let (name, data) = stream.next().await.unwrap();
    let event: Value = serde_json::from_str(&data).unwrap();
    assert_eq!((name.as_str(), keys(&event)), ("status", keys(&tidegate.status().await)));
    assert_eq!(event["caller"]["scope"], "admin");
    assert_eq!(event["standing"]["headline"], "Memory decides every request.");

    for _ in 0..3 {
        tidegate.get("/").await;
    }
    until("it counts", async || {
        let (_, data) = stream.next().await.unwrap();
        let event: Value = serde_json::from_str(&data).unwrap();
        let allowed = "tidegate_requests_total{arm=\"control\",backend=\"memory\",state=\"allow\"}";
        event["figures"][allowed] == 3.0
    })
    .await;
}

#[tokio::test]
async fn a_stream_ends_with_its_token_and_with_the_process_and_says_why() {
    let tokens = "admin ana admin-token-24-characters\nread grafana read-token-of-24-characters\n";
    let variables = [("ADMIN_TOKEN", ""), ("ADMIN_TOKEN_FILE", "tokens")];
    let mut tidegate = Tidegate::start_with_files(ANYTHING, &[("tokens", tokens)], &variables).await;
    let mut reader = Stream::open(&tidegate, "read-token-of-24-characters").await;
    let mut admin = Stream::open(&tidegate, "admin-token-24-characters").await;
    assert_eq!(reader.next().await.unwrap().0, "status");

    std::fs::write(tidegate.directory.path().join("tokens"), "admin ana admin-token-24-characters\n")
        .unwrap();
    tidegate.hang_up();
    let last = async |stream: &mut Stream| {
        let mut last = None;
        while let Some((name, _)) = stream.next().await {
            last = Some(name);
        }
        last
    };
    assert_eq!(last(&mut reader).await.as_deref(), Some("revoked"));
    assert_eq!(admin.next().await.unwrap().0, "status");

    tidegate.terminate();
    assert_eq!(last(&mut admin).await.as_deref(), Some("leaving"));
    // Nobody who only listens keeps it from ending.
    assert!(tidegate.wait(Duration::from_secs(10)).unwrap().success());
}

const ANYTHING: &str =
    "[[rule]]\nname = \"default\"\n[[rule.policy]]\nname = \"p\"\nby = \"ip\"\nlimit = \"9/minute\"\n";

#[tokio::test]
async fn so_many_listen_and_no_more_until_one_has_left() {
    let tidegate = Tidegate::start(None, &[]).await;
    let mut all = Vec::new();
    for _ in 0..32 {
        let stream = Stream::open(&tidegate, ADMIN_TOKEN).await;
        assert_eq!(stream.answer.status(), 200);
        all.push(stream);
    }
    let refused = Stream::open(&tidegate, ADMIN_TOKEN).await;
    assert_eq!(refused.answer.status(), 429);
    let problem: Value = refused.answer.json().await.unwrap();
    assert_eq!(problem["code"], "too_many_listeners", "{problem}");
    assert_eq!(tidegate.admin("GET", "/admin/status").send().await.unwrap().status(), 200);
    all.pop();
    until("there is room again", async || Stream::open(&tidegate, ADMIN_TOKEN).await.answer.status() == 200)
        .await;
}

#[tokio::test]
async fn eight_listeners_share_one_snapshot_a_second() {
    let tidegate = Tidegate::start(None, &[]).await;
    let mut streams = Vec::new();
    for _ in 0..8 {
        streams.push(Stream::open(&tidegate, ADMIN_TOKEN).await);
    }
    // Traffic moves the figures: two statuses that were gathered apart differ.
    let load = async {
        loop {
            tidegate.get("/").await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let began = std::time::Instant::now();
    let collect = futures_util::future::join_all(streams.iter_mut().map(async |stream| {
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(stream.next().await.unwrap().1);
        }
        seen
    }));
    let seen = tokio::select! {
        seen = collect => seen,
        () = load => unreachable!(),
    };
    let seconds = began.elapsed().as_secs() as usize + 2;
    let distinct: std::collections::HashSet<String> = seen.into_iter().flatten().collect();
    assert!(distinct.len() <= seconds, "{} snapshots of 32 events in {seconds} s", distinct.len());
    assert!(distinct.len() >= 2, "the figures move");
}
