//! Watchers: each looks at one instance all the time, as a client of its front and as an operator.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{key, read};
use crate::history::{Look, Overrides, Probe, op_of};
use crate::plan::KEYS;
use crate::support::process::{ADMIN_TOKEN, Tidegate};
use crate::world::World;

/// What one watcher has seen.
#[derive(Default)]
pub struct Watched {
    pub looks: Vec<Look>,
    pub overrides: Vec<Overrides>,
    pub probes: Vec<Probe>,
    pub requests: usize,
}

/// How long an answer may take: an instance that is stopped is asked again.
const PATIENCE: Duration = Duration::from_millis(2_500);

/// Asks the front of an instance for decisions about keys that never came before, until the run is over. Only decisions by
/// Redis and failures are written down.
pub async fn probe(world: Arc<World>, at: usize, over: Arc<AtomicBool>) -> Watched {
    let mut watched = Watched::default();
    while !over.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(15)).await;
        let Some((process, life)) = world.alive(at) else { continue };
        let (sent, body) = (world.now(), json!({"key": format!("key-{at}-{}", watched.requests)}));
        let Some((status, answer)) = check(&world, &process, &body).await else { continue };
        watched.requests += 1;
        let redis = answer["backend"] == "redis";
        if redis || status >= 500 {
            watched.probes.push(Probe { at, life, sent, got: world.now(), redis, status });
        }
    }
    watched
}

/// Looks at the record and the overrides of an instance until the run is over.
pub async fn look(world: Arc<World>, at: usize, over: Arc<AtomicBool>) -> Watched {
    let mut watched = Watched::default();
    while !over.load(Ordering::SeqCst) {
        for round in 0..3 {
            tokio::time::sleep(Duration::from_millis(30)).await;
            let Some((process, life)) = world.alive(at) else { continue };
            let sent = world.now();
            if let Some((_, record)) = read(&world, &process).await {
                watched.looks.push(Look { at, life, sent, got: world.now(), record });
            }
            if round == 0
                && let Some(overrides) = overrides(&world, &process).await
            {
                watched.overrides.push(Overrides { at, life, ..overrides });
            }
        }
    }
    watched
}

/// The overrides that an instance lists, and the keys that it blocks.
pub async fn overrides(world: &World, process: &Tidegate) -> Option<Overrides> {
    let mut all = Overrides { sent: world.now(), ..Overrides::default() };
    for number in 0..KEYS {
        let (_, answer) = check(world, process, &json!({"key": key(number)})).await?;
        if answer["state"] == "block" {
            all.blocked.push(number);
        }
    }
    let url = format!("http://{}/admin/overrides", process.admin);
    let answer = world.http.get(url).bearer_auth(ADMIN_TOKEN).timeout(PATIENCE).send().await.ok()?;
    all.listed = listed(world, &answer.json::<Value>().await.ok()?);
    all.got = world.now();
    Some(all)
}

fn listed(world: &World, answer: &Value) -> BTreeMap<usize, (Option<usize>, Option<f64>)> {
    let entries = answer["overrides"].as_array().into_iter().flatten();
    entries
        .filter_map(|entry| {
            let number = entry["id"].as_str()?.strip_prefix('o')?.parse().ok()?;
            let ends = entry["expires_at"].as_str().and_then(|moment| world.since_began(moment));
            Some((number, (op_of(entry["reason"].as_str()?), ends)))
        })
        .collect()
}

async fn check(world: &World, process: &Tidegate, body: &Value) -> Option<(u16, Value)> {
    let request = world.http.post(process.url("/v1/check")).json(body).timeout(PATIENCE);
    let answer = request.send().await.ok()?;
    let status = answer.status().as_u16();
    Some((status, answer.json().await.unwrap_or_default()))
}

/// The whole audit trail of an instance, newest first; `None` when its disk could not be asked.
pub async fn trail(world: &World, process: &Tidegate) -> Option<Vec<Value>> {
    let (mut rows, mut cursor) = (Vec::new(), String::new());
    loop {
        let url = format!("http://{}/admin/audit?limit=500{cursor}", process.admin);
        let answer = world.http.get(url).bearer_auth(ADMIN_TOKEN).timeout(PATIENCE).send().await.ok()?;
        let page: Value = answer.json().await.ok()?;
        if page["complete"] != true {
            return None;
        }
        rows.extend(page["rows"].as_array()?.iter().cloned());
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Some(rows),
        }
    }
}
