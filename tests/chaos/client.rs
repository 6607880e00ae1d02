//! What clients ask, and how an answer is read.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use crate::history::{Call, Done, Outcome, Seen};
use crate::plan::{Flag, KEYS, Op, Set, Tag};
use crate::support::process::{ADMIN_TOKEN, Tidegate};
use crate::world::World;

/// Longer than an instance waits for Redis and its disk.
const PATIENCE: Duration = Duration::from_secs(12);

/// What a client read last: a tag and the record that it belongs to.
pub type Kept = Mutex<Option<(String, Seen)>>;

/// The key of an override.
pub fn key(number: usize) -> String {
    format!("blocked-{number}")
}

/// Asks, and writes down what came of it. A request for which nothing is there is none.
pub async fn ask(world: &Arc<World>, kept: &Kept, number: usize, at: usize, op: Op) -> Option<Call> {
    let start = world.now();
    let Some((process, life)) = world.alive(at) else {
        return Some(unsent(number, at, op, start));
    };
    if op == Op::Read {
        if let Some(read) = read(world, &process).await {
            *kept.lock() = Some(read);
        }
        return None;
    }
    let (tag, parent) = match op {
        Op::Set(Set { tag: Tag::Fresh, .. }) => read(world, &process).await?,
        Op::Set(Set { tag: Tag::Kept, .. }) => kept.lock().clone()?,
        Op::Block(id, _) | Op::Lift(id) => {
            let tag = override_tag(world, &process, id).await;
            let call = Call { tag: tag.clone(), ..unsent(number, at, op, start) };
            return Some(send(world, &process, Call { life, ..call }, tag).await);
        }
        _ => return Some(send(world, &process, Call { life, ..unsent(number, at, op, start) }, None).await),
    };
    let call = Call { life, parent: Some(parent), tag: Some(tag.clone()), ..unsent(number, at, op, start) };
    Some(send(world, &process, call, Some(tag)).await)
}

fn unsent(number: usize, at: usize, op: Op, start: f64) -> Call {
    let (life, end, outcome) = (0, start, Outcome::Unsent);
    Call { number, at, life, op, start, end, parent: None, tag: None, outcome, again: None }
}

async fn send(world: &Arc<World>, process: &Tidegate, mut call: Call, tag: Option<String>) -> Call {
    let reason = format!("op-{}", call.number);
    let admin = |method: &str, path: &str| {
        let url = format!("http://{}{path}", process.admin);
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let request = world.http.request(method, url).bearer_auth(ADMIN_TOKEN).timeout(PATIENCE);
        match &tag {
            Some(tag) => request.header("if-match", tag),
            None => request,
        }
    };
    let (request, twice) = match call.op {
        Op::Read => return call,
        Op::Set(Set { percent, flag, twice, .. }) => {
            let mut body = json!({"percent": percent, "reason": reason});
            if let Some(flag) = flag {
                body["backend"] = json!(if flag == Flag::Memory { "memory" } else { "redis" });
            }
            let request = admin("PUT", "/admin/rollout").json(&body);
            (request.header("idempotency-key", &reason), twice)
        }
        Op::Rollback => (admin("POST", "/admin/rollout/rollback").json(&json!({"reason": reason})), false),
        Op::Block(id, lasts) => {
            let mut body = json!({"rule": "default", "key": key(id), "by": "header:x-api-key", "effect": "block", "reason": reason});
            match lasts {
                // The instance reckons the moment.
                Some(lasts @ 3_000) => body["expires_in"] = json!(format!("{}s", lasts / 1_000)),
                Some(lasts) => {
                    let ends = chrono::Utc::now() + Duration::from_millis(lasts);
                    body["expires_at"] = json!(ends.to_rfc3339_opts(chrono::SecondsFormat::Millis, true));
                }
                None => {}
            }
            (admin("PUT", &format!("/admin/overrides/o{id}")).json(&body), false)
        }
        Op::Lift(id) => (admin("DELETE", &format!("/admin/overrides/o{id}")), false),
    };
    let again = request.try_clone();
    call.start = world.now();
    call.outcome = outcome(world, request).await.0;
    call.end = if matches!(call.outcome, Outcome::Unknown) { f64::INFINITY } else { world.now() };
    if let (true, Some(again), Some(done)) = (twice, again, call.done()) {
        let first = done.record.clone();
        let (Outcome::Done(second), headers) = outcome(world, again).await else { return call };
        let same = second.record.zip(first).is_some_and(|(second, first)| second.is_same(&first));
        call.again = Some(same && headers.contains_key("idempotency-replayed"));
    }
    call
}

async fn outcome(world: &World, request: reqwest::RequestBuilder) -> (Outcome, HeaderMap) {
    let answer = match request.send().await {
        Ok(answer) => answer,
        Err(error) if error.is_connect() => return (Outcome::Unsent, HeaderMap::new()),
        Err(_) => return (Outcome::Unknown, HeaderMap::new()),
    };
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let Ok(body) = answer.json::<Value>().await else { return (Outcome::Unknown, headers) };
    if !(200..300).contains(&status) {
        let code = body["code"].as_str().unwrap_or_default().to_owned();
        return (Outcome::Refused(status, code), headers);
    }
    let count = |at| body["applied"].as_str().and_then(|text: &str| text.split('/').nth(at)?.parse().ok());
    let done = Done {
        status,
        record: seen(world, &body),
        durable: body["durable"] == true,
        applied: (count(0).unwrap_or(0), count(1).unwrap_or(0)),
        expires: body["expires_at"].as_str().and_then(|moment| world.since_began(moment)),
    };
    (Outcome::Done(Box::new(done)), headers)
}

/// The record in an answer; `None` where there is none.
pub fn seen(world: &World, body: &Value) -> Option<Seen> {
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    Some(Seen {
        epoch: body["epoch"].as_u64()?,
        revision: body["revision"].as_u64()?,
        percent: body["percent"].as_f64()?,
        memory: body["backend"] == "memory",
        by: text("updated_by"),
        reason: text("reason"),
        updated_at: text("updated_at"),
        effective_at: body["effective_at"].as_str().and_then(|moment| world.since_began(moment)),
        in_force: body["percent_in_force"].as_f64()?,
    })
}

/// The record that an instance shows, and its tag.
pub async fn read(world: &World, process: &Tidegate) -> Option<(String, Seen)> {
    let url = format!("http://{}/admin/rollout", process.admin);
    let answer =
        world.http.get(url).bearer_auth(ADMIN_TOKEN).timeout(Duration::from_secs(2)).send().await.ok()?;
    let tag = answer.headers().get("etag")?.to_str().ok()?.to_owned();
    Some((tag, seen(world, &answer.json().await.ok()?)?))
}

async fn override_tag(world: &World, process: &Tidegate, id: usize) -> Option<String> {
    debug_assert!(id < KEYS);
    let url = format!("http://{}/admin/overrides/o{id}", process.admin);
    let answer =
        world.http.get(url).bearer_auth(ADMIN_TOKEN).timeout(Duration::from_secs(2)).send().await.ok()?;
    Some(answer.headers().get("etag")?.to_str().ok()?.to_owned())
}
