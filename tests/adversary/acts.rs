//! Performs the acts of a plan and writes down from when to when each may have had its effect.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::limits::{By, Quota};
use crate::plan::{Act, Client, Redis};
use crate::support::redis_server::signal;
use crate::world::World;

/// An act that was performed. Times are seconds since the run began.
#[derive(Clone, Debug)]
pub struct Event {
    pub act: Act,
    pub began: f64,
    /// From here on it has its effect on every instance; infinite where one of them may not have heard of it.
    pub settled: f64,
}

/// Performs all acts, one after the other.
pub async fn perform(world: &Arc<World>) -> Vec<Event> {
    let mut events = Vec::new();
    for (_, after, act) in world.plan.acts.clone() {
        pause(after).await;
        let began = world.now();
        let complete = one(world, &act).await;
        let settled = if complete { world.now() } else { f64::INFINITY };
        events.push(Event { act, began, settled });
    }
    events
}

async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

/// Whether every instance has it in force.
async fn one(world: &Arc<World>, act: &Act) -> bool {
    let client =
        |at: &usize| world.plan.clients.iter().find(|(number, _)| number == at).map(|(_, client)| client);
    match act {
        Act::Percent(percent) => set_percent(world, *percent).await,
        Act::Rollback => {
            let Some(process) = world.responsive().first().cloned() else { return true };
            send(process.admin("POST", "/admin/rollout/rollback")).await.is_some()
        }
        Act::Reload { rule, policy, quota } => reload(world, *rule, *policy, *quota).await,
        Act::Reset { client: at } => {
            let Some(client) = client(at) else { return true };
            let path = format!("/admin/keys?key={}&rule=r{}", client.key, client.rule);
            let Some(process) = world.responsive().first().cloned() else { return true };
            let answer = send(process.admin("DELETE", &path)).await;
            answer.is_some_and(|(_, answer)| answer["complete"] == true)
        }
        Act::Limit { client: at, policy, quota } => {
            let Some(client) = client(at) else { return true };
            let effect = match quota.window {
                true => json!({"limit": quota.text()}),
                false => json!({"limit": quota.text(), "burst": quota.burst}),
            };
            put_override(world, client, effect, Some(*policy)).await
        }
        Act::Exempt { client: at } => match client(at) {
            Some(client) => put_override(world, client, json!("exempt"), None).await,
            None => true,
        },
        Act::Block { client: at } => match client(at) {
            Some(client) => put_override(world, client, json!("block"), None).await,
            None => true,
        },
        Act::Lift { client: at } => {
            let Some(client) = client(at) else { return true };
            let Some(process) = world.responsive().first().cloned() else { return true };
            let path = format!("/admin/overrides/{}-r{}", client.key, client.rule);
            applied(send(process.admin("DELETE", &path)).await)
        }
        Act::FreezeInstance(at, lasts) => {
            let Some(process) = world.process(*at) else { return true };
            world.set_frozen(*at, true);
            signal(process.pid(), "STOP");
            pause(*lasts).await;
            signal(process.pid(), "CONT");
            world.set_frozen(*at, false);
            true
        }
        Act::KillInstance(at, away) => {
            let Some(process) = world.take(*at) else { return true };
            signal(process.pid(), "KILL");
            drop(process);
            pause(*away).await;
            world.start_instance(*at).await;
            true
        }
        Act::Leave(at) => {
            let Some(process) = world.take(*at) else { return true };
            process.terminate();
            pause(150).await;
            true
        }
        Act::Join => {
            if let Some(at) = world.vacant() {
                world.start_instance(at).await;
            }
            true
        }
        Act::InstanceClock(at, seconds) => {
            world.set_clock(*at, *seconds);
            true
        }
        of_redis => {
            disturb(world, of_redis).await;
            true
        }
    }
}

async fn disturb(world: &Arc<World>, act: &Act) {
    let relay = world.relay.as_ref();
    match act {
        Act::Flush => on_masters(world, &["FLUSHALL"]),
        Act::ScriptFlush => on_masters(world, &["SCRIPT", "FLUSH"]),
        Act::FreezeRedis(lasts) => {
            world.redis.lock()[0].freeze();
            pause(*lasts).await;
            world.redis.lock()[0].thaw();
        }
        Act::KillRedis(away) => {
            world.redis.lock()[0].kill();
            pause(*away).await;
            world.redis.lock()[0].restart();
        }
        Act::Failover => {
            let masters = 3;
            let mut servers = world.redis.lock();
            servers[1].kill();
            if world.plan.redis == Redis::Replicated {
                servers[masters + 1].run::<()>(&["CLUSTER", "FAILOVER", "TAKEOVER"]);
            }
        }
        Act::ClockStep(seconds) => on_masters(world, &["EVAL", STEP, "0", &seconds.to_string()]),
        Act::Cut => relay.into_iter().for_each(|relay| relay.cut()),
        Act::Refuse(lasts) => {
            let Some(relay) = relay else { return };
            relay.refuse();
            pause(*lasts).await;
            relay.accept();
        }
        Act::BlackHole(lasts) => {
            let Some(relay) = relay else { return };
            relay.black_hole();
            pause(*lasts).await;
            relay.thaw();
        }
        Act::Delay(by, lasts) => {
            let Some(relay) = relay else { return };
            relay.delay(Duration::from_millis(*by));
            pause(*lasts).await;
            relay.delay(Duration::from_millis(world.plan.latency));
        }
        other => unreachable!("{other:?} is no act on Redis"),
    }
}

/// How [`STEP`] begins, as SLOWLOG shows it.
pub const STEP_BEGINS: &str = "for _, key in ipairs(";

/// A step of the server's clock by ARGV[1] seconds, seen from the arrival times that it stores: each lies as much nearer
/// or further. A faked clock would do the same, but a redis-server with jemalloc does not start under libfaketime.
const STEP: &str = "for _, key in ipairs(redis.call('KEYS', '*:{*')) do \
    local full = redis.call('TYPE', key).ok == 'string' and tonumber(redis.call('GET', key)) \
    local lives = redis.call('PTTL', key) - ARGV[1] * 1000 \
    if full and lives > 0 then \
      redis.call('SET', key, string.format('%.0f', full - ARGV[1] * 1000000), 'PX', lives) \
    elseif full then redis.call('DEL', key) end \
  end";

fn on_masters(world: &World, words: &[&str]) {
    for server in world.redis.lock().iter() {
        // A replica and a server that was killed by an act refuse.
        if let Ok(mut connection) = server.client().get_connection_with_timeout(Duration::from_millis(500)) {
            let _ = redis::cmd(words[0]).arg(&words[1..]).query::<redis::Value>(&mut connection);
        }
    }
}

async fn set_percent(world: &Arc<World>, percent: u8) -> bool {
    let Some(process) = world.responsive().first().cloned() else { return true };
    let seen = process.admin("GET", "/admin/rollout").timeout(PATIENCE).send().await;
    let Ok(seen) = seen else { return false };
    let tag = seen.headers()["etag"].to_str().unwrap().to_owned();
    let wanted = json!({"percent": percent, "reason": "an act"});
    // Refused where Redis and another instance are away: then nothing changes.
    send(process.admin("PUT", "/admin/rollout").header("if-match", tag).json(&wanted)).await.is_some()
}

async fn reload(world: &Arc<World>, rule: usize, policy: usize, quota: Quota) -> bool {
    // The files first: an instance that starts meanwhile reads them.
    world.change_limit(rule, policy, quota);
    let mut complete = true;
    for process in world.responsive() {
        let answer = send(process.admin("POST", "/admin/reload")).await;
        complete &= answer.is_some_and(|(status, _)| status == 200);
    }
    complete
}

async fn put_override(world: &Arc<World>, client: &Client, effect: Value, policy: Option<usize>) -> bool {
    let Some(process) = world.responsive().first().cloned() else { return true };
    let rule = &world.plan.rules[client.rule];
    let mut body = json!({"rule": rule.name, "key": client.key, "by": "header:x-api-key", "effect": effect, "reason": "an act"});
    if let Some(policy) = policy.map(|policy| &rule.policies[policy]) {
        debug_assert_eq!(policy.by, By::Key);
        body["policy"] = json!(policy.name);
    }
    let path = format!("/admin/overrides/{}-r{}", client.key, client.rule);
    let tag = process.admin("GET", &path).timeout(PATIENCE).send().await;
    let tag = tag.ok().and_then(|seen| seen.headers().get("etag").cloned());
    let request = process.admin("PUT", &path).json(&body);
    applied(
        send(match tag {
            Some(tag) => request.header("if-match", tag),
            None => request,
        })
        .await,
    )
}

/// Whether the answer names every instance.
fn applied(answer: Option<(u16, Value)>) -> bool {
    let Some((_, answer)) = answer else { return false };
    let all = answer["applied"].as_str().and_then(|applied| applied.split_once('/'));
    all.is_some_and(|(some, all)| some == all)
}

const PATIENCE: Duration = Duration::from_secs(5);

/// The answer, if there is one: an instance may be killed meanwhile.
async fn send(request: reqwest::RequestBuilder) -> Option<(u16, Value)> {
    let answer = request.timeout(PATIENCE).send().await.ok()?;
    Some((answer.status().as_u16(), answer.json().await.unwrap_or_default()))
}
