//! Overrides where Redis is another than before: with what an older version left there, with another master, and with a user
//! who may not write them.

use std::time::Duration;

use redis::Commands as _;
use serde_json::{Value, json};

use super::overrides::{TWO_A_DAY, ask, of, put, status};
use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;
use crate::support::sentinel::Trio;
use crate::support::until;

const ENTRIES: &str = "tidegate:{overrides}:entries";
const CHANGES: &str = "tidegate:{overrides}:changes";
const OLDER: &str = "tidegate:overrides";

async fn start(redis: &[(&str, &str)]) -> Tidegate {
    let mut variables = vec![
        ("TIDEGATE__FLEET__HEARTBEAT_S", "1"),
        ("TIDEGATE__REDIS__RECONNECT_INTERVAL_S", "1"),
        ("TIDEGATE_SECRET", "the fleet's secret, for tests"),
        ("REDIS_TIMEOUT_MS", "5000"),
        ("RATE_LIMIT_CANARY_PERCENT", "100"),
    ];
    variables.extend_from_slice(redis);
    let tidegate = Tidegate::start(Some(TWO_A_DAY), &variables).await;
    tidegate.connected().await;
    tidegate
}

/// What `/admin/overrides` shows of each, without what an instance says of itself.
async fn listed(tidegate: &Tidegate) -> Vec<Value> {
    let answer = ask(tidegate, "GET", "/admin/overrides").await.1;
    let mut all = answer["overrides"].as_array().unwrap_or_else(|| panic!("{answer}")).clone();
    all.sort_by_key(|one| one["id"].to_string());
    all
}

async fn has(tidegate: &Tidegate, count: usize) {
    until(&format!("{count} overrides"), async || {
        ask(tidegate, "GET", "/admin/overrides").await.1["total"] == count
    })
    .await;
}

/// The text that the version before wrote, with the same entries: a line of its history, then a line for each, the last word
/// of which is sealed.
fn text_of_older_version(redis: &RedisServer) -> String {
    let entries: std::collections::BTreeMap<String, String> = redis.connection().hgetall(ENTRIES).unwrap();
    let fronts = entries.iter().filter(|(name, _)| !name.ends_with(':') && *name != "#");
    let lines: Vec<String> = fronts
        .enumerate()
        .map(|(at, (name, front))| {
            let words: Vec<&str> = front.split(' ').collect();
            let sealed = &entries[&format!("{name}:")];
            format!("{} {} {sealed}\n", words[..6].join(" "), at + 1)
        })
        .collect();
    format!("00000000000000ab {}\n{}", lines.len(), lines.concat())
}

#[tokio::test]
async fn overrides_of_older_version_are_all_taken_over() {
    const COUNT: usize = 60;
    let redis = RedisServer::start();
    let url = redis.url();
    let first = start(&[("REDIS_URL", &url)]).await;
    for number in 0..COUNT {
        let effect =
            [json!("block"), json!("exempt"), json!({"limit": "5/day", "burst": 5})][number % 3].clone();
        let id = format!("k-{number:03}");
        assert_eq!(put(&first, &id, of(&format!("key-{number}"), effect), None).await.0, 201);
    }
    assert_eq!(ask(&first, "DELETE", "/admin/overrides/k-000").await.0, 200);
    until("Redis has all", async || redis.run::<usize>(&["ZCARD", CHANGES]) == COUNT).await;
    let (before, older) = (listed(&first).await, text_of_older_version(&redis));
    drop(first);
    // As an instance of the version before would have left it, and nothing of this one.
    let _: String = redis.run(&["FLUSHALL"]);
    let _: String = redis.run(&["SET", OLDER, &older]);
    let _: String = redis.run(&["CONFIG", "RESETSTAT"]);
    let _: String = redis.run(&["CONFIG", "SET", "slowlog-log-slower-than", "1000"]);
    let next = [start(&[("REDIS_URL", &url)]).await, start(&[("REDIS_URL", &url)]).await];
    for tidegate in &next {
        has(tidegate, COUNT - 1).await;
        assert_eq!(listed(tidegate).await, before, "nothing is lost, and nothing is another");
        assert_eq!([status(tidegate, "key-3").await, status(tidegate, "key-0").await], [403, 404]);
        for _ in 0..4 {
            assert_eq!(status(tidegate, "key-1").await, 404, "exempt");
        }
    }
    until("they are where this version looks", async || redis.run::<usize>(&["ZCARD", CHANGES]) == COUNT)
        .await;
    until("what the version before left is removed", async || !redis.run::<bool>(&["EXISTS", OLDER])).await;
    // A key that was never overridden keeps its limit.
    let allowed = async |tidegate: &Tidegate| status(tidegate, "a stranger").await;
    assert_eq!([allowed(&next[0]).await, allowed(&next[0]).await, allowed(&next[1]).await], [404, 404, 429]);
    let slow: usize = redis.run(&["SLOWLOG", "LEN"]);
    assert!(
        slow <= 2,
        "{slow} commands held Redis for more than 1 ms: {}",
        redis.run::<String>(&["INFO", "commandstats"])
    );
    let third = start(&[("REDIS_URL", &url)]).await;
    has(&third, COUNT - 1).await;
}

#[tokio::test]
async fn overrides_survive_a_failover_by_sentinels() {
    let mut trio = Trio::start();
    trio.ready().await;
    let own = trio.variables();
    let own: Vec<(&str, &str)> = own.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let fleet = [start(&own).await, start(&own).await];
    for tidegate in &fleet {
        until("they know each other", async || tidegate.status().await["fleet"]["instances"] == 2).await;
    }
    let is_on = async |tidegate: &Tidegate, port: u16| {
        let master = tidegate.status().await["redis"]["master"].as_str().unwrap_or_default().to_owned();
        master.ends_with(&format!(":{port}"))
    };
    for (turn, planned) in [true, false].into_iter().enumerate() {
        let (id, key) = (format!("k-{turn}"), format!("key-{turn}"));
        assert_eq!(put(&fleet[0], &id, of(&key, json!("block")), None).await.0, 201);
        let old = trio.master_port().unwrap();
        match planned {
            true => trio.fail_over(),
            // What was not copied yet is lost with it.
            false => trio.servers.iter_mut().find(|server| server.port == old).unwrap().kill(),
        }
        until("another is the master", async || trio.master_port().is_some_and(|port| port != old)).await;
        let new = trio.master_port().unwrap();
        for tidegate in &fleet {
            until("the new master is in use", async || {
                is_on(tidegate, new).await && tidegate.status().await["redis"]["state"] == "closed"
            })
            .await;
            for seen in 0..=turn {
                assert_eq!(status(tidegate, &format!("key-{seen}")).await, 403, "it holds on all the time");
            }
        }
        until("the new master has all of them", async || {
            trio.server_on(new).run::<usize>(&["ZCARD", CHANGES]) == turn + 1
        })
        .await;
    }
    assert_eq!(put(&fleet[1], "after", of("after", json!("block")), None).await.0, 201);
    let late = start(&own).await;
    has(&late, 3).await;
    assert_eq!([status(&late, "key-0").await, status(&late, "after").await], [403, 403]);
}

#[tokio::test]
async fn overrides_without_permission_are_logged_once() {
    const WORDS: &str = "does not let this instance share overrides";
    let redis = RedisServer::start();
    // Members may be written, overrides not.
    let rules = ["ACL", "SETUSER", "limited", "on", ">word", "~*", "&*", "+@all", "-hset"];
    let _: String = redis.run(&[&rules[..], &["(~tidegate:members +hset)"]].concat());
    let url = format!("redis://limited:word@127.0.0.1:{}", redis.port);
    let tidegate = start(&[("REDIS_URL", &url)]).await;
    assert_eq!(put(&tidegate, "k", of("key", json!("block")), None).await.0, 201);
    assert_eq!(status(&tidegate, "key").await, 403, "here it is in force");
    until("it is logged", async || tidegate.lines_with(WORDS) >= 1).await;
    let output = tidegate.output();
    let line = output.lines().find(|line| line.contains(WORDS)).unwrap();
    assert!(line.contains("ACL SETUSER") && line.contains("+hset"), "{line}");
    let second = start(&[("REDIS_URL", &url)]).await;
    let beats = redis.calls("hset");
    until("each has beaten three times more", async || redis.calls("hset") >= beats + 6).await;
    tidegate.says(WORDS, 1).await;
    assert_eq!(tidegate.check(json!({"key": "another"})).await["backend"], "redis", "decisions go on");
    let _: String = redis.run(&["ACL", "SETUSER", "limited", "+hset"]);
    until("it is shared", async || redis.run::<usize>(&["ZCARD", CHANGES]) == 1).await;
    has(&second, 1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    tidegate.says(WORDS, 1).await;
}
