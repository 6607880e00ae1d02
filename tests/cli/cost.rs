//! The cost, and the figures that it reckons with, counted on a real server.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::run::{tidegate, tidegate_in};
use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;

/// Two policies of one subject: what one decision of a canary costs is one call.
const TWO_POLICIES: &str = r#"
[[rule]]
name = "default"
  [[rule.policy]]
  name = "minute"
  by = "header:x-api-key"
  limit = "100/minute"
  [[rule.policy]]
  name = "a-day-with-a-longer-name"
  by = "header:x-api-key"
  limit = "1000/day"
"#;

/// Nobody says that it is there.
const NO_BEAT: (&str, &str) = ("TIDEGATE__FLEET__HEARTBEAT_S", "0");

fn figure(redis: &RedisServer, section: &str, name: &str) -> f64 {
    let info: String = redis.run(&["INFO", section]);
    let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap().trim().parse().unwrap()
}

async fn needs(policies: &str, arguments: &[&str]) -> Value {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("config")).unwrap();
    std::fs::write(directory.path().join("config/policies.toml"), policies).unwrap();
    let ran = tidegate_in(directory.path(), &[&["cost", "--json"], arguments].concat(), &[]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    ran.json()["needs"].clone()
}

#[tokio::test]
async fn a_decision_costs_the_commands_the_bytes_and_the_memory_that_the_cost_command_says() {
    const DECISIONS: u64 = 2_000;
    let redis = RedisServer::start();
    let url = redis.url();
    let variables = [
        ("REDIS_URL", url.as_str()),
        ("REDIS_TIMEOUT_MS", "5000"),
        // The background has no business of its own then.
        ("TIDEGATE_SECRET", "0123456789abcdef"),
        NO_BEAT,
    ];
    let tidegate = Tidegate::start(Some(TWO_POLICIES), &variables).await;
    tidegate.connected().await;
    let _: String = redis.run(&["CONFIG", "RESETSTAT"]);
    let memory = figure(&redis, "memory", "used_memory");
    let (sent, told) =
        (figure(&redis, "stats", "total_net_input_bytes"), figure(&redis, "stats", "total_net_output_bytes"));
    for key in 0..DECISIONS {
        let answer = tidegate.check(json!({"key": format!("key-{key}")})).await;
        assert_eq!(answer["backend"], "redis");
    }
    let wire = figure(&redis, "stats", "total_net_input_bytes") - sent
        + figure(&redis, "stats", "total_net_output_bytes")
        - told;
    let counted = ["evalsha", "eval", "time", "mget", "set"].map(|command| redis.calls(command));
    assert_eq!(counted, [DECISIONS, 0, DECISIONS, DECISIONS, 2 * DECISIONS]);
    let said = needs(TWO_POLICIES, &["--rpm", "100"]).await;
    assert_eq!(said["calls_a_decision"], 1);
    let commands = counted.iter().sum::<u64>() / DECISIONS;
    assert_eq!(said["commands_a_decision"], commands, "those inside the script included");
    // No more than was said, and not half of it. INFO's own answers are among the bytes: a few thousand.
    let calls_a_month = 144_000.0 * 31.0;
    let bytes_a_call = said["bandwidth_bytes_a_month"].as_f64().unwrap() / calls_a_month;
    let measured = (wire - 20_000.0) / DECISIONS as f64;
    eprintln!("bytes a call: said {bytes_a_call:.0}, measured {measured:.0}");
    assert!((bytes_a_call / 2.0..=bytes_a_call).contains(&measured), "{measured} of {bytes_a_call}");

    // Only the buckets of the day still live, or all of them.
    let keys: u64 = redis.run(&["DBSIZE"]);
    let bytes_a_key = (figure(&redis, "memory", "used_memory") - memory) / keys as f64;
    let said = needs(&TWO_POLICIES.replace("100/minute", "100/day"), &["--rpm", "10000"]).await;
    let said = said["memory_bytes"].as_f64().unwrap() / said["keys"].as_f64().unwrap();
    eprintln!("bytes a key: said {said:.0}, measured {bytes_a_key:.0} of {keys} keys");
    assert!((said / 3.0..=said).contains(&bytes_a_key), "{bytes_a_key} of {said}");
}

/// The commands of a beat, and those that a beat has no business with.
const COUNTED: [&str; 8] = ["hset", "hgetall", "get", "hmget", "eval", "evalsha", "set", "time"];

/// What two instances have cost so far.
#[derive(Debug, PartialEq)]
struct Spent {
    /// Of [`COUNTED`].
    calls: [u64; 8],
    /// By what each instance says.
    spent: [u64; 2],
    /// Without those of the questions here.
    bytes: f64,
}

/// Counts what two instances cost, over a connection of its own.
struct Bill<'a> {
    connection: redis::Connection,
    instances: [&'a Tidegate; 2],
    /// The bytes of its own questions and their answers.
    asked: f64,
}

impl Bill<'_> {
    /// While no beat is under way: twice in a row the same.
    async fn between_beats(&mut self) -> Spent {
        let mut last = self.now().await;
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = self.now().await;
            if now == last {
                return now;
            }
            last = now;
        }
    }

    async fn now(&mut self) -> Spent {
        let mut question = redis::cmd("INFO");
        question.arg("stats").arg("commandstats");
        self.asked += question.get_packed_command().len() as f64;
        let answer: String = question.query(&mut self.connection).unwrap();
        let of = |name: &str| answer.lines().find_map(|line| line.strip_prefix(name));
        let calls = |command: &str| {
            let calls = of(&format!("cmdstat_{command}:calls="));
            calls.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
        };
        let net = |way: &str| -> f64 { of(&format!("total_net_{way}_bytes:")).unwrap().parse().unwrap() };
        let bytes = net("input") + net("output") - self.asked;
        // It is counted when it has gone out: by the next one.
        self.asked += format!("${}\r\n{answer}\r\n", answer.len()).len() as f64;
        let mut spent = [0; 2];
        for (spent, instance) in spent.iter_mut().zip(self.instances) {
            *spent = instance.status().await["redis"]["commands"]["today"].as_u64().unwrap();
        }
        Spent { calls: COUNTED.map(calls), spent, bytes }
    }
}

#[tokio::test]
async fn an_instance_that_is_there_costs_the_commands_and_the_bytes_that_the_cost_command_says() {
    a_heartbeat_costs(Some("0123456789abcdef")).await;
}

#[tokio::test]
async fn secret_in_redis_costs_one_get_a_heartbeat_more() {
    a_heartbeat_costs(None).await;
}

async fn a_heartbeat_costs(secret: Option<&str>) {
    let redis = RedisServer::start();
    let url = redis.url();
    let secret = secret.map(|secret| ("TIDEGATE_SECRET", secret));
    let mut variables = vec![
        ("REDIS_URL", url.as_str()),
        ("TIDEGATE__REDIS__BILLED_PER_CALL", "4"),
        ("TIDEGATE__FLEET__HEARTBEAT_S", "1"),
    ];
    variables.extend(secret);
    // The secret, where Redis keeps it.
    let looks = u64::from(secret.is_none());
    let commands = 4 + looks;
    let one = Tidegate::start(None, &variables).await;
    one.connected().await;
    let two = Tidegate::start(None, &variables).await;
    two.connected().await;
    crate::support::until("they know each other", async || {
        one.status().await["fleet"]["instances"] == 2 && two.status().await["fleet"]["instances"] == 2
    })
    .await;
    let mut bill = Bill { connection: redis.connection(), instances: [&one, &two], asked: 0.0 };
    let before = bill.between_beats().await;
    let began = Instant::now();
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    let after = bill.between_beats().await;
    let expected = 2.0 * began.elapsed().as_secs_f64();
    let counted: Vec<u64> =
        after.calls.iter().zip(before.calls).map(|(after, before)| after - before).collect();
    let beats = counted[0];
    assert!((beats as f64 - expected).abs() <= 2.0, "{beats} of two instances, {expected:.1} expected");
    assert_eq!(counted, [beats, beats, (1 + looks) * beats, beats, 0, 0, 0, 0]);
    // Each its own: four commands a beat without a script, and one for the secret.
    let spent: Vec<u64> =
        after.spent.iter().zip(before.spent).map(|(after, before)| after - before).collect();
    let is_half =
        |spent: u64| spent.is_multiple_of(commands) && spent > 0 && spent / commands <= beats / 2 + 1;
    assert!(spent.iter().all(|&spent| is_half(spent)), "{spent:?}");
    assert_eq!(spent.iter().sum::<u64>(), commands * beats);
    let wire = after.bytes - before.bytes;
    // No more than was said, and not half of it.
    let load = async |heartbeat: &str| {
        let directory = tempfile::tempdir().unwrap();
        let mut variables = vec![("TIDEGATE__FLEET__HEARTBEAT_S", heartbeat)];
        variables.extend(secret);
        let arguments = ["cost", "--json", "--rpm", "1", "--instances", "2"];
        tidegate_in(directory.path(), &arguments, &variables).await.json()["needs"].clone()
    };
    let (with, without) = (load("10").await, load("0").await);
    let more = |name: &str| with[name].as_f64().unwrap() - without[name].as_f64().unwrap();
    let a_day = |a_beat: u64| a_beat as f64 * 17_280.0;
    assert_eq!((more("calls_a_day"), more("commands_a_day")), (a_day(commands), a_day(commands)));
    let said = more("bandwidth_bytes_a_month") / 31.0 / 17_280.0;
    let measured = wire / beats as f64;
    eprintln!("bytes a beat: said {said:.0}, measured {measured:.0}");
    assert!((said / 2.0..=said).contains(&measured), "{measured} of {said}");
}

#[tokio::test]
async fn a_denied_request_that_this_process_knows_of_costs_no_command() {
    let redis = RedisServer::start();
    let url = redis.url();
    let variables = [
        ("REDIS_URL", url.as_str()),
        ("REDIS_TIMEOUT_MS", "5000"),
        ("TIDEGATE_SECRET", "0123456789abcdef"),
        NO_BEAT,
    ];
    let policies = TWO_POLICIES.replace("100/minute", "1/hour");
    let tidegate = Tidegate::start(Some(&policies), &variables).await;
    tidegate.connected().await;
    let _: String = redis.run(&["CONFIG", "RESETSTAT"]);
    for _ in 0..50 {
        tidegate.check(json!({"key": "an attacker"})).await;
    }
    assert_eq!(redis.calls("evalsha"), 1);
}

#[tokio::test]
async fn the_cost_is_shown_for_each_plan_with_the_date_of_its_figures() {
    let ran = tidegate(&["cost", "--rpm", "100"], &[]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for words in [
        "100 requests a minute, 100 % of the keys in Redis, 1 instance(s)",
        "151 344  calls a day",
        "583 344  commands a day",
        "❌ Upstash: Free",
        "commands a month: 18 083 664 of 500 000",
        "Upstash: Pay as you go",
        "$36.17 a month",
        "Redis Cloud: Essentials, free",
        "Amazon ElastiCache: cache.t3.micro, one node",
        "The providers' figures are of 20",
    ] {
        assert!(ran.stdout.contains(words), "{words:?} is missing:\n{}", ran.stdout);
    }
    let ran = tidegate(&["cost", "--json", "--rpm", "60", "--percent", "10", "--instances", "4"], &[]).await;
    let said = ran.json();
    assert_eq!(said["load"], json!({"rpm": 60.0, "percent": 10.0, "instances": 4}));
    assert_eq!(said["needs"]["calls_a_day"], 8_640.0 + 4.0 * (144.0 + 5.0 * 8_640.0));
    assert!(said["plans"].as_array().unwrap().len() >= 7);
}

#[tokio::test]
async fn other_figures_for_the_providers_take_the_place_of_those_compiled_in() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("config")).unwrap();
    let own = "as_of = \"2027-01-01\"\n[[provider]]\nname = \"Ours\"\nbills_inside_scripts = false\n\
               [[provider.plan]]\nname = \"Tiny\"\ncommands_per_day = 10\nmemory_mb = 1\nconnections = 9\n\
               bandwidth_gb_month = \"unlimited\"\n";
    std::fs::write(directory.path().join("config/providers.toml"), own).unwrap();
    let ran = tidegate_in(directory.path(), &["cost"], &[]).await;
    assert!(ran.stdout.contains("❌ Ours: Tiny") && !ran.stdout.contains("Upstash"), "{}", ran.stdout);
    std::fs::write(directory.path().join("other.toml"), own.replace("= 10", "= \"unlimited\"")).unwrap();
    let ran = tidegate_in(directory.path(), &["cost", "--providers", "other.toml"], &[]).await;
    assert!(ran.stdout.contains("✅ Ours: Tiny"), "{}", ran.stdout);
    for (arguments, said) in [
        (&["cost", "--providers", "gone.toml"][..], "gone.toml: can't be read"),
        (&["cost", "--percent", "101"], "--percent: read \"101\""),
        (&["cost", "--rpm", "0"], "--rpm"),
    ] {
        let ran = tidegate_in(directory.path(), arguments, &[]).await;
        assert_eq!(ran.code, 64, "{}", ran.stderr);
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
    }
}

#[tokio::test]
async fn what_is_spent_of_the_plan_is_in_the_status_and_said_once_at_80_percent() {
    const WARNED: &str = "most of the Redis commands that redis.commands_per_day allows today are spent";
    let redis = RedisServer::start();
    let url = redis.url();
    let variables = [
        ("REDIS_URL", url.as_str()),
        ("REDIS_TIMEOUT_MS", "5000"),
        ("TIDEGATE_SECRET", "0123456789abcdef"),
        ("TIDEGATE__REDIS__COMMANDS_PER_DAY", "1000"),
        ("TIDEGATE__REDIS__BILLED_PER_CALL", "5"),
        NO_BEAT,
    ];
    let tidegate = Tidegate::start(Some(TWO_POLICIES), &variables).await;
    tidegate.connected().await;
    let commands = async || tidegate.status().await["redis"]["commands"].clone();
    let at_start = commands().await;
    assert_eq!((&at_start["per_day"], &at_start["exhausted_at"]), (&json!(1_000), &Value::Null));
    // The proof of the connection was a call as well, or two where the script had to be taught; and it was asked whether it
    // is a cluster.
    let proof = at_start["today"].as_u64().unwrap();
    assert!([6, 11].contains(&proof), "{at_start}");
    for key in 0..150 {
        tidegate.check(json!({"key": format!("key-{key}")})).await;
    }
    assert_eq!(commands().await["today"], proof + 750);
    tidegate.says(WARNED, 0).await;
    for key in 150..190 {
        tidegate.check(json!({"key": format!("key-{key}")})).await;
    }
    tidegate.says(WARNED, 1).await;
    let metrics = tidegate.metrics().await;
    assert!(metrics.contains("tidegate_redis_commands_total{command=\"evalsha\"} 190"), "{metrics}");
    // Whatever is spent, the limiter goes on asking: the plan is the provider's to enforce.
    for key in 190..230 {
        assert_eq!(tidegate.check(json!({"key": format!("key-{key}")})).await["backend"], "redis");
    }
    tidegate.says(WARNED, 1).await;
    assert!(commands().await["exhausted_at"].is_string());
}
