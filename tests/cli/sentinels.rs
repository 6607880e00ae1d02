//! The doctor behind sentinels.

use serde_json::{Value, json};

use crate::run::{Ran, doctor, tidegate};
use crate::support::redis_server::{RedisServer, free_port};
use crate::support::sentinel::{MASTER, Trio};
use crate::support::until;

/// The doctor on this trio, with the patience that a busy machine needs.
async fn on(trio: &Trio, more: &[(&str, &str)]) -> Ran {
    let own = trio.variables();
    let mut variables: Vec<(&str, &str)> =
        own[1..].iter().map(|(name, value)| (*name, value.as_str())).collect();
    variables.push(("REDIS_TIMEOUT_MS", "5000"));
    variables.extend_from_slice(more);
    doctor(&own[0].1, &variables).await
}

#[track_caller]
fn is(ran: &Ran, step: &str, outcome: &str, found: &str, cure: &str) -> Value {
    let seen = ran.step(step);
    assert_eq!(seen["outcome"], outcome, "{seen:#}");
    assert!(seen["found"].as_str().unwrap().contains(found), "{seen:#}");
    assert!(seen["cure"].as_str().unwrap_or_default().contains(cure), "{seen:#}");
    seen
}

#[track_caller]
fn failed(ran: &Ran, step: &str, kind: &str, found: &str, cure: &str) {
    let failed = ran.failed();
    assert_eq!((&failed["step"], &failed["kind"]), (&json!(step), &json!(kind)), "{failed:#}");
    is(ran, step, "failed", found, cure);
    assert_eq!(ran.code, 2);
    let report = ran.json();
    let steps = report["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 17, "every step is shown: {report:#}");
    let at = steps.iter().position(|one| one["step"] == step).unwrap();
    assert!(steps[at + 1..].iter().all(|step| step["outcome"] == "skipped"), "{report:#}");
}

fn ask<T: redis::FromRedisValue>(trio: &Trio, sentinel: usize, words: &[&str]) -> T {
    let mut connection = trio.sentinels[sentinel].connection();
    redis::cmd("SENTINEL").arg(words).query(&mut connection).unwrap()
}

#[tokio::test]
async fn a_sound_trio_is_healthy_and_it_is_said_how_long_a_failover_takes() {
    let trio = Trio::start();
    trio.ready().await;
    let ran = on(&trio, &[]).await;
    assert_eq!((ran.code, &ran.json()["verdict"]), (0, &json!("healthy")), "{}", ran.stdout);
    let port = trio.servers[0].port;
    let seen =
        is(&ran, "sentinels", "ok", &format!("3 of 3 sentinels name 127.0.0.1:{port} as {MASTER}"), "");
    assert_eq!(seen["details"].as_array().unwrap().len(), 3);
    is(
        &ran,
        "quorum",
        "ok",
        "3 sentinels in all, 2 of them call the master down; a master that dies is missed for 1.0 s",
        "",
    );
    let seen = is(&ran, "replicas", "ok", "2 can take the master's place", "");
    assert!(seen["details"][0].as_str().unwrap().contains("bytes behind, heard of"), "{seen:#}");
    let names =
        ran.json()["steps"].as_array().unwrap().iter().map(|step| step["step"].clone()).collect::<Vec<_>>();
    assert_eq!(
        (&names[1], &names[2], &names[11]),
        (&json!("sentinels"), &json!("quorum"), &json!("replicas"))
    );
    let text = tidegate(&["doctor"], &[("REDIS_URL", &trio.url()), ("REDIS_TIMEOUT_MS", "5000")]).await;
    assert!(
        text.stdout.contains(&format!("· 127.0.0.1:{} names", trio.sentinels[1].port)),
        "{}",
        text.stdout
    );
}

#[tokio::test]
async fn a_trio_over_tls_with_two_logins_of_the_least_permissions_is_healthy() {
    let trio = Trio::secure();
    trio.ready().await;
    let ran = on(&trio, &[]).await;
    assert_eq!(ran.code, 0, "{}", ran.stdout);
    is(&ran, "quorum", "not_allowed", "SENTINEL CKQUORUM", "");
    is(&ran, "replicas", "ok", "2 can take the master's place", "");
    for secret in ["w@tch-word", "w%40tch-word", "p@ss"] {
        assert!(!ran.stdout.contains(secret) && !ran.stderr.contains(secret));
    }
    let wrong = trio.url().replace("w%40tch-word", "hunter2");
    let variables = trio.variables();
    let ran = doctor(&wrong, &[("REDIS_CA_CERT", &variables[1].1)]).await;
    failed(&ran, "sentinels", "auth", "WRONGPASS", "REDIS_SENTINEL_PASSWORD_FILE");
    assert!(!ran.stdout.contains("hunter2"));
}

#[tokio::test]
async fn a_dead_sentinel_is_named_and_too_few_of_them_are_a_warning() {
    let mut trio = Trio::start();
    trio.ready().await;
    trio.sentinels[1].kill();
    let ran = on(&trio, &[]).await;
    assert_eq!(ran.code, 1, "{}", ran.stdout);
    let seen = is(&ran, "sentinels", "warning", "2 of 3 sentinels name", "start it");
    assert!(seen["details"][1].as_str().unwrap().contains("[refused]"), "{seen:#}");
    trio.sentinels[2].kill();
    until("the last one has noticed", async || {
        let mut connection = trio.sentinels[0].connection();
        redis::cmd("SENTINEL").arg("CKQUORUM").arg(MASTER).query::<String>(&mut connection).is_err()
    })
    .await;
    let ran = on(&trio, &[]).await;
    is(
        &ran,
        "quorum",
        "warning",
        "when the master dies no other server takes its place",
        "start the other sentinels",
    );
    trio.sentinels[0].kill();
    let ran = on(&trio, &[]).await;
    failed(
        &ran,
        "sentinels",
        "refused",
        "none of 3 sentinels tells where the master is",
        "start the sentinels",
    );
}

#[tokio::test]
async fn a_name_that_no_sentinel_knows_and_a_server_that_is_none_are_told_apart() {
    let trio = Trio::without_replicas(false);
    let ran = doctor(&trio.url_for("another"), &[]).await;
    failed(
        &ran,
        "sentinels",
        "other",
        "3 of 3 sentinels answer, and none knows a master named another",
        "correct the name",
    );
    let url = format!("redis+sentinel://127.0.0.1:{}/{MASTER}", trio.servers[0].port);
    failed(&doctor(&url, &[]).await, "sentinels", "other", "it is no sentinel", "redis://");
}

#[tokio::test]
async fn sentinels_that_disagree_and_a_master_without_replicas_are_warnings() {
    let trio = Trio::without_replicas(false);
    let other = RedisServer::start();
    let _: () = ask(&trio, 2, &["REMOVE", MASTER]);
    let _: () = ask(&trio, 2, &["MONITOR", MASTER, "127.0.0.1", &other.port.to_string(), "2"]);
    let ran = on(&trio, &[]).await;
    assert_eq!(ran.code, 1, "{}", ran.stdout);
    is(&ran, "sentinels", "warning", "2 of 3 sentinels name", "config-epoch");
    is(&ran, "replicas", "warning", "there is no replica", "add a replica");
}

#[tokio::test]
async fn a_server_that_the_sentinels_name_and_that_is_a_replica_is_named() {
    let trio = Trio::without_replicas(false);
    let _: () = trio.servers[0].run(&["REPLICAOF", "127.0.0.1", &free_port().to_string()]);
    failed(&on(&trio, &[]).await, "script", "readonly", "READONLY", "SENTINEL MASTER");
}

#[tokio::test]
async fn a_replica_that_has_lost_its_master_is_named() {
    let trio = Trio::start();
    trio.ready().await;
    trio.servers[2].freeze();
    until("the sentinels have noticed", async || {
        (0..3).all(|sentinel| {
            let replicas: Vec<Vec<String>> = ask(&trio, sentinel, &["REPLICAS", MASTER]);
            replicas.iter().any(|replica| replica.iter().any(|word| word.contains("s_down")))
        })
    })
    .await;
    let ran = on(&trio, &[]).await;
    trio.servers[2].thaw();
    is(&ran, "replicas", "warning", &format!("127.0.0.1:{} is down", trio.servers[2].port), "start it");
}
