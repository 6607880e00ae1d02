//! Three instances with separate disks and one Redis: one record, in force on all of them.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;
use crate::support::relay::Relay;
use crate::support::until;

/// A fleet whose instances speak every second.
async fn start(url: &str, name: &str) -> Tidegate {
    let variables = [
        ("REDIS_URL", url),
        ("TIDEGATE__FLEET__NAME", name),
        ("TIDEGATE__FLEET__HEARTBEAT_S", "1"),
        ("TIDEGATE__REDIS__RECONNECT_INTERVAL_S", "1"),
        ("TIDEGATE__REDIS__WARM_UP_S", "0"),
        ("REDIS_TIMEOUT_MS", "5000"),
        ("RATE_LIMIT_CANARY_PERCENT", "10"),
        ("TIDEGATE__LOGGING__REQUESTS", "false"),
    ];
    let tidegate = Tidegate::start(None, &variables).await;
    tidegate.connected().await;
    tidegate
}

async fn three(redis: &RedisServer, third: &str) -> [Tidegate; 3] {
    let url = redis.url();
    let fleet = [start(&url, "one").await, start(&url, "two").await, start(third, "three").await];
    for tidegate in &fleet {
        until("everybody knows of everybody", async || tidegate.status().await["fleet"]["instances"] == 3)
            .await;
    }
    until("everybody listens", async || {
        redis.run::<(String, usize)>(&["PUBSUB", "NUMSUB", "tidegate:fleet"]).1 == 3
    })
    .await;
    fleet
}

async fn in_force(tidegate: &Tidegate) -> (u64, u64, f64) {
    let status = tidegate.status().await;
    let own = &status["fleet"]["members"][0];
    assert_eq!(own["source"], "self");
    (own["epoch"].as_u64().unwrap(), own["revision"].as_u64().unwrap(), own["percent"].as_f64().unwrap())
}

async fn all_have(fleet: &[Tidegate], epoch: u64, percent: f64) {
    for tidegate in fleet {
        until(&format!("epoch {epoch}, {percent} %"), async || {
            let (there, _, share) = in_force(tidegate).await;
            (there, share) == (epoch, percent)
        })
        .await;
    }
}

/// When this machine's clock showed that a share came into force: by the line in the log.
fn flipped(tidegate: &Tidegate, words: &str) -> DateTime<Utc> {
    let output = tidegate.output();
    let line =
        output.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("{words}:\n{output}"));
    line.split_whitespace().next().unwrap().parse().unwrap()
}

async fn put(tidegate: &Tidegate, percent: f64, tag: &str) -> (u16, Value) {
    let answer = tidegate
        .admin("PUT", "/admin/rollout")
        .header("if-match", tag)
        .json(&json!({"percent": percent, "reason": "a test"}))
        .send()
        .await
        .unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn tag(tidegate: &Tidegate) -> String {
    let answer = tidegate.admin("GET", "/admin/rollout").send().await.unwrap();
    answer.headers()["etag"].to_str().unwrap().to_owned()
}

async fn roll_back(tidegate: &Tidegate) -> Value {
    let answer = tidegate.admin("POST", "/admin/rollout/rollback").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.json().await.unwrap()
}

#[tokio::test]
async fn a_raise_is_in_force_on_three_instances_at_its_moment_within_100_ms_of_each_other() {
    let redis = RedisServer::start();
    let fleet = three(&redis, &redis.url()).await;
    // A busy machine may hold up a process for longer than that: one of three raises has to show it.
    let mut apart = Vec::new();
    for (from, to) in [(10, 20), (20, 30), (30, 40)] {
        let answer = fleet[apart.len()].set_percent(f64::from(to)).await;
        assert_eq!(answer["applied"], "3/3", "{answer}");
        assert_eq!(in_force(&fleet[0]).await.2, f64::from(from), "announced, and not yet in force");
        all_have(&fleet, 0, f64::from(to)).await;
        let words = format!("rollout: {from} % → {to} %");
        let mut at = Vec::new();
        for tidegate in &fleet {
            tidegate.says(&words, 1).await;
            at.push(flipped(tidegate, &words));
        }
        let spread = *at.iter().max().unwrap() - *at.iter().min().unwrap();
        eprintln!("{to} %: {spread} apart");
        apart.push(spread.num_milliseconds());
        if *apart.last().unwrap() <= 100 {
            break;
        }
    }
    assert!(apart.last().is_some_and(|spread| *spread <= 100), "{apart:?} ms");

    // A fresh process with nothing on its disk, told of 10 % by its environment as the others were.
    let fourth = start(&redis.url(), "four").await;
    let (_, revision, percent) = in_force(&fleet[0]).await;
    until("it adopts the fleet's record", async || in_force(&fourth).await == (0, revision, percent)).await;
    until("all agree", async || {
        let fleet = fourth.status().await["fleet"].clone();
        fleet["instances"] == 4 && fleet["agreed"] == true && fleet["redis"] == "answers"
    })
    .await;
    let members = fourth.status().await["fleet"]["members"].clone();
    let members = members.as_array().unwrap();
    let names: Vec<&str> = members.iter().map(|member| member["name"].as_str().unwrap()).collect();
    assert_eq!(names[0], "four");
    for member in members {
        assert_eq!((&member["breaker"], &member["differs"]), (&json!("closed"), &json!(false)), "{member}");
        assert!(["self", "redis"].contains(&member["source"].as_str().unwrap()), "{member}");
    }
    // Redis forgets everything: they put it back.
    let _: String = redis.run(&["FLUSHALL"]);
    until("the record is back", async || {
        redis.run::<Option<String>>(&["GET", "tidegate:rollout"]).is_some_and(|text| {
            serde_json::from_str::<Value>(&text).unwrap()["revision"].as_u64() == Some(revision)
        })
    })
    .await;
    // Who ends is gone at once, and nobody waits for it.
    let mut fourth = fourth;
    fourth.terminate();
    assert!(fourth.wait(Duration::from_secs(10)).unwrap().success());
    let back = roll_back(&fleet[1]).await;
    assert_eq!(back["applied"], "3/3", "{back}");
    all_have(&fleet, 1, 0.0).await;
}

#[tokio::test]
async fn an_instance_that_was_cut_off_catches_up_and_its_own_rollback_wins_over_raises_it_did_not_see() {
    let redis = RedisServer::start();
    let relay = Relay::to(redis.port).await;
    let fleet = three(&redis, &redis.url_by(relay.address.port())).await;
    relay.refuse();
    until("it is cut off", async || fleet[2].status().await["redis"]["state"] == "open").await;
    let back = roll_back(&fleet[0]).await;
    assert_eq!((&back["applied"], &back["pending"]), (&json!("2/3"), &json!(["three"])), "{back}");
    all_have(&fleet[..2], 1, 0.0).await;
    assert_eq!(in_force(&fleet[2]).await.2, 10.0, "nobody could tell it");
    relay.accept();
    all_have(&fleet, 1, 0.0).await;

    relay.refuse();
    until("it is cut off again", async || fleet[2].status().await["redis"]["state"] == "open").await;
    until("it is gone for the others", async || fleet[0].status().await["fleet"]["instances"] == 2).await;
    let raised = fleet[0].set_percent(5.0).await;
    assert_eq!(raised["applied"], "2/2", "{raised}");
    all_have(&fleet[..2], 1, 5.0).await;
    let lowered = put(&fleet[2], 0.0, "*").await;
    assert_eq!(lowered.0, 200);
    // At 0 % already, a lowering changes nothing. A rollback is above all that was raised out of its sight.
    for percent in [20.0, 30.0] {
        fleet[0].set_percent(percent).await;
    }
    let back = roll_back(&fleet[2]).await;
    assert_eq!(back["percent"], 0.0);
    assert_eq!(in_force(&fleet[2]).await.2, 0.0, "at once");
    relay.accept();
    all_have(&fleet, 2, 0.0).await;
}

#[tokio::test]
async fn of_two_who_raise_at_once_on_different_instances_one_is_told_412() {
    let redis = RedisServer::start();
    let fleet = three(&redis, &redis.url()).await;
    let (one, other) = (tag(&fleet[0]).await, tag(&fleet[1]).await);
    assert_eq!(one, other);
    let (first, second) = tokio::join!(put(&fleet[0], 20.0, &one), put(&fleet[1], 30.0, &other));
    let mut statuses = [first.0, second.0];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 412], "{first:?} {second:?}");
    let won = if first.0 == 200 { 20.0 } else { 30.0 };
    all_have(&fleet, 0, won).await;
    // What somebody brings who knows less stays out, and what is no record is nobody's.
    for stale in [r#"{"epoch":0,"revision":1,"points":0,"record":{}}"#, "nonsense", r#"{"epoch":1e15}"#] {
        let _: String = redis.run(&["SET", "tidegate:rollout", stale]);
        until("the fleet's own is back", async || {
            redis.run::<String>(&["GET", "tidegate:rollout"]).contains(&format!("\"percent\":{won:.1}"))
        })
        .await;
    }
    all_have(&fleet, 0, won).await;
}

#[tokio::test]
async fn whatever_is_damaged_in_redis_is_made_anew_and_holds_nobody_up() {
    let redis = RedisServer::start();
    let fleet = three(&redis, &redis.url()).await;
    let set = |value: &str| {
        // Through a script: what is set may be no text.
        let script = format!("redis.call('DEL', KEYS[1]) return redis.call({value})");
        let _: redis::Value = redis.run(&["EVAL", &script, "1", "tidegate:rollout"]);
    };
    let record = r#""record":{"backend":"redis","percent":100.0,"epoch":9,"revision":9,"updated_by":"x","#;
    let higher = format!(r#"{{"epoch":9,"revision":9,"points":10000,{record}"#);
    for (what, value) in [
        ("another kind of value", "'LPUSH', KEYS[1], 'x'".to_owned()),
        ("no text", r"'SET', KEYS[1], '\255\254'".to_owned()),
        (
            "a higher order and no record",
            r#"'SET', KEYS[1], '{"epoch":9,"revision":9,"points":0}'"#.to_owned(),
        ),
        ("a higher order and half a record", format!("'SET', KEYS[1], '{higher}\"reason\":\"\\255\"}}}}'")),
        (
            "a higher order and no end of words",
            format!("'SET', KEYS[1], '{higher}\"reason\":\"' .. string.rep('x', 300000) .. '\"}}}}'"),
        ),
    ] {
        set(&value);
        until(what, async || {
            let kind: String = redis.run(&["TYPE", "tidegate:rollout"]);
            kind == "string" && {
                let text: Vec<u8> = redis.run(&["GET", "tidegate:rollout"]);
                String::from_utf8_lossy(&text).contains("\"percent\":10.0")
            }
        })
        .await;
    }
    // Who is there, and overrides.
    let [entries, changes] = ["tidegate:{overrides}:entries", "tidegate:{overrides}:changes"];
    let damaged = [
        ("tidegate:members", "return redis.call('LPUSH', KEYS[1], 'x')"),
        (
            "tidegate:members",
            "return redis.call('HSET', KEYS[1], '0123456789abcdef', '99999999999999999 \\255')",
        ),
        (entries, "return redis.call('LPUSH', KEYS[1], 'x')"),
        (entries, "return redis.call('HSET', KEYS[1], '#', 'ab 99999999999999999999 1 1')"),
        (entries, "return 0"),
        (changes, "return redis.call('LPUSH', KEYS[1], 'x')"),
        (changes, "return redis.call('ZADD', KEYS[1], 1, 'x')"),
        (changes, "return 0"),
    ];
    for (number, (key, script)) in damaged.into_iter().enumerate() {
        let script = format!("redis.call('DEL', KEYS[1]) {script}");
        let _: redis::Value = redis.run(&["EVAL", &script, "1", key]);
        let key_of_one = format!("192.0.2.{number}");
        let body = json!({"rule": "default", "key": key_of_one, "effect": "block", "reason": "a test"});
        let path = format!("/admin/overrides/o-{number}");
        assert_eq!(fleet[0].admin("PUT", &path).json(&body).send().await.unwrap().status(), 201);
        until(&format!("{key} is what they have: {script}"), async || {
            let kind: String = redis.run(&["TYPE", key]);
            match (kind.as_str(), key) {
                ("hash", "tidegate:members") => redis.run::<usize>(&["HLEN", key]) >= 3,
                ("hash" | "zset", _) => {
                    let fields = redis.run::<usize>(&["HLEN", entries]);
                    let line: Vec<String> = redis.run(&["HMGET", entries, "#"]);
                    fields == 2 * (number + 1) + 1
                        && redis.run::<usize>(&["ZCARD", changes]) == number + 1
                        && !line[0].contains("99999999999999999999")
                }
                _ => false,
            }
        })
        .await;
        let raised = fleet[0].set_percent(10.0).await;
        assert_eq!(raised["applied"], "3/3", "{raised}");
    }
    assert_eq!(fleet[1].status().await["fleet"]["redis"], "answers");
}

#[tokio::test]
async fn the_exposure_is_what_redis_really_decided_of_the_canary() {
    let mut redis = RedisServer::start();
    let tidegate = start(&redis.url(), "one").await;
    let metric = async || {
        let text = tidegate.metrics().await;
        let line = text.lines().find(|line| line.starts_with("tidegate_exposure_ratio ")).map(str::to_owned);
        line.unwrap().split_once(' ').unwrap().1.to_owned()
    };
    assert_eq!(metric().await, "NaN", "nobody asked");
    tidegate.set_percent(100.0).await;
    until("it is raised", async || tidegate.status().await["percent_in_force"] == 100.0).await;
    for _ in 0..10 {
        tidegate.get("/").await;
    }
    assert_eq!(metric().await, "1.0");
    redis.kill();
    for _ in 0..30 {
        tidegate.get("/").await;
    }
    assert_eq!(metric().await, "0.25");
    let own = tidegate.status().await["fleet"]["members"][0].clone();
    assert_eq!((&own["exposure"], &own["lag_ms"].is_u64()), (&json!(0.25), &true), "{own}");
}
