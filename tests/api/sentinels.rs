//! Redis behind Sentinel: the master dies, hangs, or makes way, and the next one decides.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::support::outage::{BACK, DEGRADED, ONE_KEY};
use crate::support::process::Tidegate;
use crate::support::redis_server::{RedisServer, free_port};
use crate::support::sentinel::{MASTER, Trio};
use crate::support::until;

const BURST: f64 = 20.0;
const TASKS: usize = 60;
/// Keys that are asked for by many tasks at once, for the count of what is admitted.
const HOT_KEYS: usize = 6;
/// After the sentinels have told of it.
const BACK_WITHIN: Duration = Duration::from_secs(2);

/// tidegate with all its defaults but the patience of requests, which a busy machine needs.
async fn start(trio: &Trio, more: &[(&str, &str)]) -> Arc<Tidegate> {
    let own = trio.variables();
    let mut variables: Vec<(&str, &str)> = own.iter().map(|(name, value)| (*name, value.as_str())).collect();
    variables.extend([("APP_ENV", "production"), ("REDIS_TIMEOUT_MS", "1000")]);
    variables.extend_from_slice(more);
    Arc::new(Tidegate::start(Some(ONE_KEY), &variables).await)
}

async fn master_in_use(tidegate: &Tidegate) -> String {
    tidegate.status().await["redis"]["master"].as_str().unwrap_or_default().to_owned()
}

fn is_on(master: &str, port: u16) -> bool {
    master.ends_with(&format!(":{port}"))
}

/// One request and its answer.
#[derive(Clone, Copy)]
struct Told {
    sent: Instant,
    /// Of a key that many ask for; else of a key of its own, which only Redis can know.
    hot: Option<usize>,
    allowed: bool,
    fallback: bool,
}

/// Sixty tasks, each with a request every ten milliseconds.
struct Traffic {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Vec<Told>>>,
}

impl Traffic {
    /// For keys of this name.
    fn start(tidegate: &Arc<Tidegate>, tasks: usize, name: &'static str) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let tasks = (0..tasks).map(|task| {
            let (tidegate, stop) = (Arc::clone(tidegate), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut told = Vec::new();
                let mut ticks = tokio::time::interval(Duration::from_millis(10));
                ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
                while !stop.load(Ordering::SeqCst) {
                    ticks.tick().await;
                    let hot = told.len().is_multiple_of(2).then_some(task % HOT_KEYS);
                    let key = match hot {
                        Some(hot) => format!("{name} {hot}"),
                        None => format!("{name} {} of {task}", told.len()),
                    };
                    let sent = Instant::now();
                    // It insists on a 200.
                    let answer = tidegate.check(json!({"key": key})).await;
                    told.push(Told {
                        sent,
                        hot,
                        allowed: answer["allowed"] == true,
                        fallback: answer["fallback"] == true,
                    });
                }
                told
            })
        });
        let tasks = tasks.collect();
        Self { stop, tasks }
    }

    /// Ends it. No key was admitted more often than one limiter would that never lost anything.
    async fn stop(self) -> Vec<Told> {
        self.stop.store(true, Ordering::SeqCst);
        let mut told = Vec::new();
        for task in self.tasks {
            told.extend(task.await.unwrap());
        }
        told.sort_by_key(|one| one.sent);
        let Some(first) = told.first() else { return told };
        let lasted = first.sent.elapsed();
        for hot in 0..HOT_KEYS {
            let of_key = || told.iter().filter(|one| one.hot == Some(hot));
            let admitted = of_key().filter(|one| one.allowed).count();
            let most = BURST + lasted.as_secs_f64();
            assert!(admitted as f64 <= most, "{admitted} of a key admitted, at most {most:.1}");
            assert!(admitted as f64 >= (BURST * 0.9).min(of_key().count() as f64), "{admitted} admitted");
        }
        told
    }
}

async fn is_in_use(tidegate: &Tidegate) -> bool {
    tidegate.status().await["redis"]["state"] == "closed"
}

/// What holds whatever happens to the master under load. Returns its port.
async fn fails_over(what: &str, trio: &mut Trio, harm: impl AsyncFnOnce(&mut Trio)) -> (Arc<Tidegate>, u16) {
    trio.ready().await;
    let tidegate = start(trio, &[]).await;
    tidegate.connected().await;
    let old = trio.master_port().unwrap();
    assert!(is_on(&master_in_use(&tidegate).await, old));
    let switches = trio.switches();
    let traffic = Traffic::start(&tidegate, TASKS, "during");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let harmed = Instant::now();
    harm(trio).await;
    until("the sentinels have made another server the master", async || !switches.at().is_empty()).await;
    let long_enough = || switches.at().last().unwrap().elapsed() > BACK_WITHIN + Duration::from_secs(1);
    until("it is in use", async || long_enough() && is_in_use(&tidegate).await).await;
    let told = traffic.stop().await;
    let fresh = || told.iter().filter(|one| one.hot.is_none());
    // On a busy machine the new master may seem dead to the sentinels as well.
    let switched = *switches.at().last().unwrap();
    let share_without = |from: Duration| {
        let after = || fresh().filter(|one| one.sent >= switched + from);
        after().filter(|one| one.fallback).count() as f64 / after().count().max(1) as f64
    };
    // A lone late answer is no outage.
    let step = Duration::from_millis(20);
    let back = (0..500).map(|steps| step * steps).find(|&from| share_without(from) < 0.01).unwrap();
    let first = fresh().find(|one| one.sent > switched && !one.fallback).unwrap().sent - switched;
    eprintln!(
        "{what}: {} requests; the sentinels took {:.2?}; first by the new master {first:.2?} after that, all keys {back:.2?} after",
        told.len(),
        switches.at()[0] - harmed,
    );
    let said = tidegate.output();
    for line in said.lines().filter(|line| !line.contains("REQUEST_LOG")) {
        eprintln!("  {line}");
    }
    assert!(back < BACK_WITHIN, "decided without Redis {back:?} after the last failover");
    let metrics = tidegate.metrics().await;
    for line in metrics.lines().filter(|line| line.starts_with("tidegate_http_responses_total")) {
        assert!(!line.contains(r#"class="5xx""#) || line.ends_with(" 0"), "{line}");
    }
    let master = master_in_use(&tidegate).await;
    assert!(!is_on(&master, old), "{master}");
    tidegate.says(DEGRADED, 1).await;
    tidegate.says(BACK, 1).await;
    tidegate.says("Redis: the sentinels name another master", switches.at().len()).await;
    (tidegate, old)
}

#[tokio::test]
async fn a_master_that_is_killed_under_load_is_replaced_within_two_seconds_of_the_failover() {
    let mut trio = Trio::start();
    fails_over("killed", &mut trio, async |trio| trio.servers[0].kill()).await;
}

/// Its connections stay open and carry nothing: whoever waited for them, or for what the sentinels say until they notice,
/// would wait for many seconds more.
#[tokio::test]
async fn a_master_that_hangs_under_load_is_replaced_and_counts_nothing_when_it_comes_back() {
    let mut trio = Trio::secure();
    let (tidegate, old) = fails_over("hung", &mut trio, async |trio| trio.servers[0].freeze()).await;
    trio.hasten();
    let old = trio.server_on(old);
    old.thaw();
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Whoever is made a replica throws out who is connected.
    let info = |section: &str| -> String {
        loop {
            let asked = redis::cmd("INFO").arg(section).query(&mut old.connection());
            if let Ok(text) = asked {
                return text;
            }
        }
    };
    let calls = || -> String {
        let stats = info("commandstats");
        let lines = stats.lines().filter(|line| line.starts_with("cmdstat_eval"));
        lines.map(|line| line.split(',').next().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    // What was on its way when it froze, and was counted here long ago.
    let before = calls();
    let traffic = Traffic::start(&tidegate, 2 * HOT_KEYS, "after");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let role = || -> String {
        let text = info("replication");
        text.lines().find_map(|line| line.strip_prefix("role:")).unwrap().trim().to_owned()
    };
    until("the sentinels have made it a replica", async || role() == "slave").await;
    let told = traffic.stop().await;
    assert_eq!(calls(), before, "nothing is charged where nobody reads it");
    let fallbacks = told.iter().filter(|one| one.fallback).count();
    assert!(fallbacks * 100 <= told.len(), "{fallbacks} of {} without Redis", told.len());
}

/// Nobody asks for anything, so no call could find out: only who listens to the sentinels knows.
#[tokio::test]
async fn a_planned_failover_moves_a_quiet_instance_to_the_new_master_without_an_outage() {
    let trio = Trio::start();
    trio.ready().await;
    let tidegate = start(&trio, &[]).await;
    tidegate.connected().await;
    let old = trio.master_port().unwrap();
    trio.fail_over();
    until("the new master is in use", async || {
        let master = master_in_use(&tidegate).await;
        !master.is_empty() && !is_on(&master, old)
    })
    .await;
    assert!(tidegate.metrics().await.contains(r#"connections_replaced_total{cause="failover"} 1"#));
    assert_eq!(tidegate.check(json!({"key": "k"})).await["backend"], "redis");
    tidegate.says("Redis: the new master is in use", 1).await;
    tidegate.says(DEGRADED, 0).await;
}

#[tokio::test]
async fn a_dead_and_a_frozen_sentinel_delay_no_connection_by_a_second() {
    let mut trio = Trio::without_replicas(false);
    trio.sentinels[0].kill();
    trio.sentinels[1].freeze();
    let began = Instant::now();
    let tidegate = start(&trio, &[]).await;
    tidegate.connected().await;
    assert!(began.elapsed() < Duration::from_millis(2_000), "{:?}", began.elapsed());
    assert!(is_on(&master_in_use(&tidegate).await, trio.servers[0].port));
}

/// A master that was demoted behind the sentinels' back.
#[tokio::test]
async fn a_server_that_the_sentinels_name_and_that_is_no_master_is_not_used() {
    let trio = Trio::without_replicas(true);
    let tidegate = start(&trio, &[]).await;
    tidegate.connected().await;
    let server = &trio.servers[0];
    let _: () = server.run(&["REPLICAOF", "127.0.0.1", &free_port().to_string()]);
    assert_eq!(tidegate.check(json!({"key": "k"})).await["fallback"], true);
    last_error(&tidegate, "readonly", &["by 3 of 3 sentinels", "is a slave"]).await;
    let _: () = server.run(&["REPLICAOF", "NO", "ONE"]);
    until("it is in use again", async || is_in_use(&tidegate).await).await;
}

/// A sentinel that names another master than the rest, and tells of a failover to it when it is asked to.
struct Dissenter {
    port: u16,
    tells: tokio::sync::watch::Sender<bool>,
}

impl Dissenter {
    async fn naming(master: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tells, _) = tokio::sync::watch::channel(false);
        let told = tells.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(Self::serve(client, master, told.subscribe()));
            }
        });
        Self { port, tells }
    }

    async fn serve(mut client: TcpStream, master: u16, mut told: tokio::sync::watch::Receiver<bool>) {
        let list = |sign: &str, words: &[&str]| {
            let items: String = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
            format!("*{}\r\n{items}{sign}", words.len() + usize::from(!sign.is_empty()))
        };
        let mut buffer = [0; 4_096];
        let mut listens = false;
        loop {
            let answer = tokio::select! {
                read = client.read(&mut buffer) => match read {
                    Ok(read) if read > 0 => {
                        let asked = String::from_utf8_lossy(&buffer[..read]).to_ascii_lowercase();
                        if asked.contains("subscribe") {
                            listens = true;
                            list(":1\r\n", &["subscribe", "+switch-master"])
                        } else if asked.contains("get-master-addr-by-name") {
                            list("", &["127.0.0.1", &master.to_string()])
                        } else {
                            "-ERR unknown command\r\n".to_owned()
                        }
                    }
                    _ => return,
                },
                Ok(()) = told.changed(), if listens => {
                    let switch = format!("{MASTER} 127.0.0.1 1 127.0.0.1 {master}");
                    list("", &["message", "+switch-master", &switch])
                }
            };
            if client.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// Two of these sentinels and the dissenter.
async fn start_with(trio: &Trio, dissenter: &Dissenter) -> Tidegate {
    let [one, two, _] = &trio.sentinels[..] else { panic!("there are three") };
    let url = format!(
        "redis+sentinel://127.0.0.1:{},127.0.0.1:{},127.0.0.1:{}/{MASTER}",
        one.port, two.port, dissenter.port
    );
    let variables = [("REDIS_URL", url.as_str()), ("APP_ENV", "production"), ("REDIS_TIMEOUT_MS", "1000")];
    Tidegate::start(Some(ONE_KEY), &variables).await
}

const DISAGREE: &str = "Redis: the sentinels disagree";

#[tokio::test]
async fn failover_told_by_a_minority_is_not_followed() {
    let trio = Trio::without_replicas(false);
    let other = RedisServer::start();
    let dissenter = Dissenter::naming(other.port).await;
    let tidegate = start_with(&trio, &dissenter).await;
    tidegate.connected().await;
    tidegate.says(DISAGREE, 1).await;
    assert!(tidegate.output().contains(&format!("names 127.0.0.1:{} instead of", other.port)));
    dissenter.tells.send(true).unwrap();
    tidegate.says("Redis: the sentinels name another master", 1).await;
    // For as long as such a word outweighs what the others said before it, and a moment more.
    let until = Instant::now() + Duration::from_secs(12);
    let (mut all, mut by_redis) = (0, 0);
    while Instant::now() < until {
        let answer = tidegate.check(json!({"key": format!("key {all}")})).await;
        all += 1;
        by_redis += usize::from(answer["fallback"] == false);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(is_on(&master_in_use(&tidegate).await, trio.servers[0].port));
    assert_eq!((by_redis, other.calls("evalsha") + other.calls("eval")), (all, 0));
    tidegate.says(DEGRADED, 0).await;
}

#[tokio::test]
async fn master_named_by_a_minority_is_not_used() {
    let mut trio = Trio::without_replicas(false);
    trio.servers[0].kill();
    let other = RedisServer::start();
    let dissenter = Dissenter::naming(other.port).await;
    let tidegate = start_with(&trio, &dissenter).await;
    let words = format!("names 127.0.0.1:{} instead of", other.port);
    let words = ["by 2 of 3 sentinels", &words, "it is not used until more than half of them name it"];
    last_error(&tidegate, "refused", &words).await;
    assert_eq!(tidegate.check(json!({"key": "k"})).await["fallback"], true);
    assert_eq!(other.calls("evalsha") + other.calls("eval"), 0);
    trio.servers[0].restart();
    tidegate.connected().await;
    assert!(is_on(&master_in_use(&tidegate).await, trio.servers[0].port));
}

async fn last_error(tidegate: &Tidegate, kind: &str, words: &[&str]) {
    let redis = async || tidegate.status().await["redis"].clone();
    let told = |redis: &Value| {
        let said = redis["last_error"].as_str().unwrap_or_default();
        redis["last_error_kind"] == kind && words.iter().all(|word| said.contains(word))
    };
    until(&format!("{kind}: {words:?}"), async || told(&redis().await)).await;
}

/// A start, what the log says of it, and what is to be done.
async fn is_said(url: &str, kind: &str, words: &[&str]) {
    let variables = [("REDIS_URL", url), ("APP_ENV", "production")];
    let tidegate = Tidegate::start(Some(ONE_KEY), &variables).await;
    last_error(&tidegate, kind, words).await;
    tidegate.says(DEGRADED, 1).await;
    let line = tidegate.output().lines().find(|line| line.contains(DEGRADED)).unwrap().to_owned();
    assert!(words.iter().all(|word| line.contains(word)), "{line}");
    assert_eq!(tidegate.check(json!({"key": "k"})).await["fallback"], true);
}

#[tokio::test]
async fn a_name_that_no_sentinel_knows_is_told_as_such() {
    let trio = Trio::without_replicas(false);
    is_said(&trio.url_for("another"), "other", &["none knows a master named another", "correct the name"])
        .await;
}

#[tokio::test]
async fn sentinels_that_are_away_are_told_as_such() {
    let url = format!("redis+sentinel://127.0.0.1:{},127.0.0.1:{}/{MASTER}", free_port(), free_port());
    is_said(&url, "refused", &["none of 2 sentinels tells where the master is"]).await;
}

/// Redis goes on deciding, and somebody should know that nobody would hear of a failover.
#[tokio::test]
async fn sentinels_that_die_while_redis_is_in_use_are_a_warning_and_heard_again_when_they_are_back() {
    let mut trio = Trio::start();
    trio.ready().await;
    let tidegate = start(&trio, &[]).await;
    tidegate.connected().await;
    for sentinel in &mut trio.sentinels {
        sentinel.kill();
    }
    tidegate.says("none of the sentinels can be listened to", 1).await;
    assert_eq!(tidegate.check(json!({"key": "k"})).await["backend"], "redis");
    for sentinel in &mut trio.sentinels {
        sentinel.restart();
    }
    // What they tell before they are listened to again is asked for then.
    trio.ready().await;
    let old = trio.servers[0].port;
    trio.fail_over();
    until("the new master is in use", async || {
        let master = master_in_use(&tidegate).await;
        !master.is_empty() && !is_on(&master, old)
    })
    .await;
    tidegate.says(DEGRADED, 0).await;
}

#[tokio::test]
async fn a_server_that_is_no_sentinel_is_told_as_such() {
    let trio = Trio::without_replicas(false);
    let url = format!("redis+sentinel://127.0.0.1:{}/{MASTER}", trio.servers[0].port);
    is_said(&url, "other", &["it is no sentinel"]).await;
}

#[tokio::test]
async fn a_password_that_the_sentinels_refuse_is_told_from_one_that_the_servers_refuse() {
    let trio = Trio::without_replicas(true);
    let variables = trio.variables();
    let (_, ca) = &variables[1];
    let url = trio.url();
    for (wrong, words) in [
        (url.replace("w%40tch-word", "hunter2"), ["sentinel_password in REDIS_URL", "WRONGPASS"]),
        (url.replace("p%40ss", "hunter2"), ["by 3 of 3 sentinels", "WRONGPASS"]),
    ] {
        let variables = [("REDIS_URL", wrong.as_str()), ("REDIS_CA_CERT", ca), ("APP_ENV", "production")];
        let tidegate = Tidegate::start(Some(ONE_KEY), &variables).await;
        last_error(&tidegate, "auth", &words).await;
        assert_eq!(tidegate.lines_with("hunter2"), 0);
    }
}

#[tokio::test]
async fn a_certificate_is_checked_against_what_the_sentinels_announce() {
    let trio = Trio::without_replicas(true);
    for sentinel in &trio.sentinels {
        let _: () = redis::cmd("SENTINEL")
            .arg(&["CONFIG", "SET", "announce-hostnames", "no"])
            .query(&mut sentinel.connection())
            .unwrap();
    }
    let tidegate = start(&trio, &[]).await;
    last_error(&tidegate, "tls", &["the master 127.0.0.1:", "not valid for name"]).await;
    for sentinel in &trio.sentinels {
        let _: () = redis::cmd("SENTINEL")
            .arg(&["CONFIG", "SET", "announce-hostnames", "yes"])
            .query(&mut sentinel.connection())
            .unwrap();
    }
}

#[tokio::test]
async fn sentinels_in_the_clear_lead_to_servers_over_tls_where_the_url_says_so() {
    let trio = Trio::half_secure();
    let tidegate = start(&trio, &[]).await;
    tidegate.connected().await;
    assert!(master_in_use(&tidegate).await.starts_with("rediss://localhost:"));
}

#[tokio::test]
async fn sentinels_that_are_too_few_to_replace_a_dead_master_are_told_as_such() {
    let mut trio = Trio::without_replicas(false);
    trio.servers[0].kill();
    trio.sentinels[1].kill();
    trio.sentinels[2].kill();
    let tidegate = start(&trio, &[]).await;
    last_error(&tidegate, "refused", &["by 1 of 3 sentinels", "no replica can take its place", "NOQUORUM"])
        .await;
}

#[tokio::test]
async fn a_changed_password_of_the_sentinels_is_taken_from_its_file() {
    let trio = Trio::without_replicas(true);
    let (url, _) = trio.url().split_once('?').map(|(url, rest)| (url.to_owned(), rest.to_owned())).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(file("user"), "watcher\n").unwrap();
    std::fs::write(file("password"), "not this one\n").unwrap();
    let (user, password) = (file("user"), file("password"));
    let more = [
        ("REDIS_URL", url.as_str()),
        ("REDIS_SENTINEL_USERNAME_FILE", &user),
        ("REDIS_SENTINEL_PASSWORD_FILE", &password),
    ];
    let tidegate = start(&trio, &more).await;
    last_error(&tidegate, "auth", &["REDIS_SENTINEL_PASSWORD_FILE"]).await;
    std::fs::write(file("new"), "w@tch-word\n").unwrap();
    std::fs::rename(file("new"), file("password")).unwrap();
    tidegate.connected().await;
    assert_eq!(tidegate.lines_with("w@tch-word"), 0);
}
