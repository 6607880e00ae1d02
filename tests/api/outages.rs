//! Every way in which Redis can be away, from its beginning to its end, under traffic that never stops.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::outage::{Answer, BACK, CONNECTED, DEGRADED, REPLACED, TIMEOUT, World, waited};
use crate::support::process::Tidegate;
use crate::support::redis_server::{RedisServer, ask, free_port};
use crate::support::sentinel::Trio;
use crate::support::until;

/// Sees an outage through, from Redis in use to Redis in use: no 5xx, one line when it begins and one when it ends, the
/// breaker from closed to open and by way of half-open back, no network and no waiting while it is open, and never more
/// admitted than one limiter would.
async fn see_through(
    what: &str,
    mut world: World,
    kinds: &[&str],
    harm: impl AsyncFnOnce(&mut World),
    mend: impl AsyncFnOnce(&mut World),
) {
    harm(&mut world).await;
    world.is("open").await;
    let state = || async { world.tidegate.status().await["redis"].clone() };
    until("the cause is known", async || kinds.contains(&state().await["last_error_kind"].as_str().unwrap()))
        .await;
    world.nothing_is_asked().await;
    let ready: Value = world.tidegate.get("/readyz").await.json().await.unwrap();
    assert_eq!((&ready["status"], &ready["backend"]), (&json!("ready"), &json!("memory")));
    mend(&mut world).await;
    let mended = Instant::now();
    let used_after = world.traffic.decided_by_redis(Duration::from_secs(10)).await;
    world.is("closed").await;
    let closed_after = mended.elapsed();
    until("the outage is closed", async || world.tidegate.lines_with(BACK) == 1).await;
    let (tidegate, states, answers) = world.account().await;
    // Closed, open, half-open, closed; more of them only where a warm-up failed.
    assert!(states.starts_with(&[0, 2]) && states.windows(3).any(|three| three == [2, 1, 0]), "{states:?}");
    tidegate.says(DEGRADED, 1).await;
    tidegate.says(BACK, 1).await;
    tidegate.says(CONNECTED, 2).await;
    let waited = waited(&tidegate).await;
    eprintln!(
        "{what}: {waited} of {} requests waited out the timeout; decided by Redis {used_after:.1?} after its return, \
         all keys {closed_after:.1?} after; breaker {states:?}",
        answers.len()
    );
    // Those that were under way when it began, and some of a warm-up that failed.
    assert!(waited <= 3 * 16, "{waited} of {} requests waited", answers.len());
}

/// A Redis that is not away, whatever is done to it.
async fn stays_in_use(world: World, harm: impl AsyncFnOnce(&World)) -> Vec<Answer> {
    harm(&world).await;
    world.traffic.decided_by_redis(Duration::from_secs(10)).await;
    let (tidegate, states, answers) = world.account().await;
    assert_eq!(states, [0], "the breaker stays closed");
    tidegate.says(DEGRADED, 0).await;
    answers
}

async fn world() -> World {
    World::with(RedisServer::start(), &[]).await
}

#[tokio::test]
async fn an_outage_by_a_killed_redis_ends_soon_after_its_restart() {
    let harm = async |world: &mut World| world.redis.kill();
    see_through("killed and restarted", world().await, &["lost"], harm, async |world| world.redis.restart())
        .await;
}

#[tokio::test]
async fn an_outage_by_a_hung_redis_ends_soon_after_it_goes_on() {
    let harm = async |world: &mut World| world.redis.freeze();
    let mend = async |world: &mut World| {
        let open = world.relay.open_connections();
        assert!(open <= 1, "{open} connections: a probe's at most, the old one is gone");
        world.redis.thaw();
    };
    see_through("stopped and continued", world().await, &["timeout"], harm, mend).await;
}

#[tokio::test]
async fn an_outage_by_a_network_that_swallows_everything_ends_soon_after_it_carries_again() {
    let harm = async |world: &mut World| world.relay.black_hole();
    see_through("black hole", world().await, &["timeout"], harm, async |world| world.relay.thaw()).await;
}

#[tokio::test]
async fn an_outage_by_a_network_that_resets_every_connection_ends_soon_after_it_accepts_again() {
    let harm = async |world: &mut World| world.relay.refuse();
    see_through("reset", world().await, &["lost"], harm, async |world| world.relay.accept()).await;
}

#[tokio::test]
async fn answers_later_than_the_timeout_are_an_outage_until_they_come_in_time() {
    let harm = async |world: &mut World| world.relay.delay(TIMEOUT * 3 / 2);
    let mend = async |world: &mut World| {
        // Probes are answered, and too late for a request: that closes nothing.
        let last_error = async || world.tidegate.status().await["redis"]["last_error"].clone();
        until("a probe was late", async || last_error().await.as_str().unwrap().contains("a probe took"))
            .await;
        world.relay.delay(Duration::ZERO);
    };
    see_through("late answers", world().await, &["timeout"], harm, mend).await;
}

#[tokio::test]
async fn answers_of_a_byte_each_400_ms_are_an_outage_until_they_come_whole() {
    let harm = async |world: &mut World| world.relay.drip(Duration::from_millis(400));
    let mend = async |world: &mut World| world.relay.drip(Duration::ZERO);
    see_through("a byte each 400 ms", world().await, &["timeout"], harm, mend).await;
}

#[tokio::test]
async fn an_outage_by_a_full_memory_ends_soon_after_there_is_room() {
    let set = |world: &World, bytes: &str| {
        let _: () = world.redis.run(&["CONFIG", "SET", "maxmemory", bytes]);
    };
    let harm = async |world: &mut World| set(world, "1");
    see_through("out of memory", world().await, &["oom"], harm, async |world| set(world, "0")).await;
}

#[tokio::test]
async fn an_outage_by_a_redis_that_became_a_replica_ends_soon_after_it_is_a_master() {
    let follow = |world: &World, host: &str, port: &str| {
        let _: () = world.redis.run(&["REPLICAOF", host, port]);
    };
    let nobody = free_port().to_string();
    let harm = async |world: &mut World| follow(world, "127.0.0.1", &nobody);
    let mend = async |world: &mut World| follow(world, "NO", "ONE");
    see_through("read-only replica", world().await, &["readonly"], harm, mend).await;
}

#[tokio::test]
async fn an_outage_by_a_redis_without_room_for_clients_ends_soon_after_there_is_some() {
    let world = world().await;
    let (mut owner, mut other) = (world.redis.connection(), world.redis.connection());
    let harm = async |_: &mut World| {
        let clients: String = ask(&mut owner, &["CLIENT", "LIST"]);
        // By what it asked last: a decision, or whether somebody else is there.
        let asks = ["cmd=eval", "cmd=get"];
        let ours = clients.lines().find(|line| asks.iter().any(|cmd| line.contains(cmd))).unwrap();
        let id = ours.split_whitespace().next().unwrap().strip_prefix("id=").unwrap();
        // These two, and nobody else.
        let _: () = ask(&mut owner, &["CONFIG", "SET", "maxclients", "2"]);
        let _: () = ask(&mut owner, &["CLIENT", "KILL", "ID", id]);
    };
    let mend = async |_: &mut World| {
        let _: () = ask(&mut other, &["CONFIG", "SET", "maxclients", "10000"]);
    };
    see_through("no room for clients", world, &["maxclients"], harm, mend).await;
}

#[tokio::test]
async fn an_outage_by_a_redis_that_loads_its_data_ends_soon_after_it_has() {
    let redis = RedisServer::start_with(&[
        "--enable-debug-command",
        "local",
        "--key-load-delay",
        "2000",
        "--loading-process-events-interval-bytes",
        "1024",
    ]);
    let _: () = redis.run(&["DEBUG", "POPULATE", "1500"]);
    let _: () = redis.run(&["SAVE"]);
    let world = World::with(redis, &[]).await;
    let harm = async |world: &mut World| {
        world.redis.kill();
        world.redis.restart();
    };
    let mend = async |world: &mut World| {
        let loaded = |info: String| info.contains("loading:0\r");
        until("it is loaded", async || loaded(world.redis.run(&["INFO", "persistence"]))).await;
    };
    see_through("loading its data", world, &["loading"], harm, mend).await;
}

#[tokio::test]
async fn an_outage_by_a_redis_busy_in_a_script_ends_soon_after_the_script_does() {
    let world = World::with(RedisServer::start_with(&["--busy-reply-threshold", "50"]), &[]).await;
    let harm = async |world: &mut World| {
        let mut connection = world.redis.connection();
        std::thread::spawn(move || {
            let endless = redis::cmd("EVAL").arg("while true do end").arg(0).exec(&mut connection);
            assert!(endless.is_err(), "it was killed");
        });
    };
    let mend = async |world: &mut World| world.redis.run(&["SCRIPT", "KILL"]);
    see_through("busy in a script", world, &["loading"], harm, mend).await;
}

#[tokio::test]
async fn a_rotated_password_is_not_tried_hot_and_redis_is_in_use_again_when_ours_is_right() {
    let redis = RedisServer::with_password("the old one");
    let mut owner = redis.connection();
    let mut run = |words: &[&str]| -> redis::Value { ask(&mut owner, words) };
    let world = World::with(redis, &[]).await;
    // Those that are in stay in until they are thrown out.
    run(&["CONFIG", "SET", "requirepass", "the new one"]);
    run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    world.is("open").await;
    world.last_error("auth").await;
    let status = world.tidegate.status().await;
    let next = status["redis"]["next_probe_in_ms"].as_u64().unwrap();
    assert!((10_000..=30_000).contains(&next), "next tried in {next} ms");
    let connections = world.relay.connections();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(world.relay.connections(), connections, "what needs a person is not tried hot");
    run(&["CONFIG", "SET", "requirepass", "the old one"]);
    let after = world.traffic.decided_by_redis(Duration::from_secs(40)).await;
    world.is("closed").await;
    let (tidegate, states, answers) = world.account().await;
    assert_eq!(states, [0, 2, 1, 0]);
    tidegate.says(DEGRADED, 1).await;
    tidegate.says(BACK, 1).await;
    eprintln!("password put back: decided by Redis {after:.1?} after, {} requests", answers.len());
    let told = tidegate.output();
    assert!(!told.contains("the old one") && !told.contains("the new one"));
}

#[tokio::test]
async fn a_permission_that_is_taken_away_opens_at_the_first_call_and_is_not_tried_hot() {
    let world = world().await;
    let before = errors(&world.tidegate, "permission").await;
    let _: () = world.redis.run(&["ACL", "SETUSER", "default", "-evalsha", "-eval"]);
    world.is("open").await;
    world.last_error("permission").await;
    let calls = errors(&world.tidegate, "permission").await - before;
    assert!(calls <= 16, "{calls} calls, at most those under way");
    world.nothing_is_asked().await;
    let connections = world.relay.connections();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.relay.connections(), connections);
    let (tidegate, states, _) = world.account().await;
    assert_eq!(states, [0, 2]);
    tidegate.says(DEGRADED, 1).await;
}

async fn errors(tidegate: &Tidegate, kind: &str) -> u32 {
    let name = format!("tidegate_redis_errors_total{{kind=\"{kind}\"}} ");
    let metrics = tidegate.metrics().await;
    metrics.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_script_flush_is_no_outage() {
    let answers = stays_in_use(world().await, async |world| {
        for _ in 0..10 {
            let _: () = world.redis.run(&["SCRIPT", "FLUSH"]);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    assert!(answers.iter().all(|answer| !answer.fallback));
}

#[tokio::test]
async fn a_flush_of_all_data_is_no_outage_and_gives_nobody_a_fresh_budget() {
    let answers = stays_in_use(world().await, async |world| {
        for _ in 0..10 {
            let _: () = world.redis.run(&["FLUSHALL"]);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    assert!(answers.iter().all(|answer| !answer.fallback));
}

/// Sixteen calls time out together. Either the second of them has the connection replaced before the fifth is counted,
/// or the fifth opens the breaker and the probe makes another.
#[tokio::test]
async fn a_frozen_connection_is_replaced_by_a_fresh_one_and_not_waited_for() {
    let world = world().await;
    world.relay.freeze_those_of_now();
    // From here on nothing that was sent before is answered. What is known here is denied without a call: the second call
    // that finds out may be a second away.
    until("there is a fresh one", async || world.relay.connections() >= 2).await;
    let after = world.traffic.decided_by_redis(Duration::from_secs(10)).await;
    world.is("closed").await;
    assert!((2..=3).contains(&world.relay.connections()), "{}", world.relay.connections());
    let (tidegate, states, _) = world.account().await;
    match states.as_slice() {
        [0] => tidegate.says(REPLACED, 1).await,
        opened => {
            assert_eq!(opened, [0, 2, 1, 0]);
            tidegate.says(DEGRADED, 1).await;
        }
    }
    let waited = waited(&tidegate).await;
    assert!(waited <= 2 * 16, "{waited} requests waited");
    eprintln!(
        "frozen connection: {waited} requests waited, Redis decides {after:.1?} after, breaker {states:?}"
    );
}

#[tokio::test]
async fn two_seconds_up_and_two_down_are_one_line_and_admit_no_more_than_the_limit() {
    let world = world().await;
    flaps(world, 2).await;
}

/// There is no replica to take its place: then it is the same Redis that comes back.
mod behind_sentinels {
    use super::{Trio, World, see_through};

    async fn world() -> World {
        World::with(Trio::without_replicas(false).into_master(), &[]).await
    }

    #[tokio::test]
    async fn an_outage_by_a_killed_redis_ends_soon_after_its_restart() {
        let harm = async |world: &mut World| world.redis.kill();
        let mend = async |world: &mut World| world.redis.restart();
        see_through("killed and restarted", world().await, &["lost", "refused"], harm, mend).await;
    }

    #[tokio::test]
    async fn an_outage_by_a_hung_redis_ends_soon_after_it_goes_on() {
        let harm = async |world: &mut World| world.redis.freeze();
        let mend = async |world: &mut World| world.redis.thaw();
        see_through("stopped and continued", world().await, &["timeout"], harm, mend).await;
    }
}

mod soak {
    use super::{RedisServer, World};

    /// With the intervals of the default: each up is shorter than a warm-up, and the waits between probes grow.
    #[tokio::test]
    async fn two_minutes_of_flapping_change_the_deciding_store_of_a_key_fewer_than_twenty_times() {
        if std::env::var_os("TIDEGATE_SOAK").is_some() {
            let intervals =
                [("TIDEGATE__REDIS__RECONNECT_INTERVAL_S", "30"), ("TIDEGATE__REDIS__WARM_UP_S", "5")];
            super::flaps(World::with(RedisServer::start(), &intervals).await, 30).await;
        }
    }
}

async fn flaps(world: World, times: usize) {
    for _ in 0..times {
        world.relay.refuse();
        tokio::time::sleep(Duration::from_secs(2)).await;
        world.relay.accept();
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let stopped = Instant::now();
    while world.tidegate.status().await["redis"]["state"] != "closed" {
        assert!(stopped.elapsed() < Duration::from_secs(60), "Redis is not in use again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (tidegate, states, answers) = world.account().await;
    tidegate.says(DEGRADED, 1).await;
    tidegate.says(BACK, 1).await;
    let by_redis = answers.iter().filter(|answer| answer.by_redis).count();
    let changes = changes_of_the_store(&answers);
    eprintln!(
        "2 s up, 2 s down, {times} times: {by_redis} of {} by Redis, {changes} changes of the store, breaker {states:?}",
        answers.len()
    );
    assert!(changes < 20, "{changes} changes of the deciding store");
    assert!(states.len() >= 4, "{states:?}");
}

/// How often the store that decides the key changed. Sixteen requests are under way at once, and at a change some of them
/// are answered by either: so it is what most of a tenth of a second's were decided by.
fn changes_of_the_store(answers: &[Answer]) -> usize {
    let began = answers.iter().map(|answer| answer.sent).min().unwrap();
    let mut tenths = std::collections::BTreeMap::<u128, i32>::new();
    for answer in answers {
        let tenth = answer.sent.duration_since(began).as_millis() / 100;
        *tenths.entry(tenth).or_default() += if answer.fallback { 1 } else { -1 };
    }
    let by_memory: Vec<bool> = tenths.values().map(|&balance| balance > 0).collect();
    by_memory.windows(2).filter(|two| two[0] != two[1]).count()
}

/// The measurement that docs/when-redis-is-away.md quotes: a hundred requests a second, whoever answers or not, and Redis
/// gone for six seconds of them; every setting but the port is the default.
async fn six_seconds_without(what: &str, go: fn(&mut RedisServer), come: fn(&mut RedisServer)) {
    let mut redis = RedisServer::start();
    let url = redis.url();
    let variables = [("REDIS_URL", url.as_str()), ("APP_ENV", "production")];
    let tidegate = Arc::new(Tidegate::start(None, &variables).await);
    tidegate.connected().await;
    let lines_before = tidegate.output().lines().count();
    go(&mut redis);
    let began = Instant::now();
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    let mut requests = Vec::new();
    while began.elapsed() < Duration::from_secs(6) {
        pace.tick().await;
        let tidegate = Arc::clone(&tidegate);
        requests.push(tokio::spawn(async move {
            let sent = Instant::now();
            // Beside each a page that asks no limiter: what it waits for is the machine.
            let (judged, unjudged) =
                tokio::join!(async { (tidegate.get("/").await.status(), sent.elapsed()) }, async {
                    (tidegate.get("/healthz").await.status(), sent.elapsed())
                });
            assert!(!judged.0.is_server_error(), "{}", judged.0);
            (judged.1, unjudged.1)
        }));
    }
    come(&mut redis);
    let back = Instant::now();
    let (mut took, mut beside) = (Vec::new(), Vec::new());
    for request in requests {
        let (judged, unjudged) = request.await.unwrap();
        took.push(judged);
        beside.push(unjudged);
    }
    took.sort();
    let within_a_second =
        |took: &[Duration]| took.iter().filter(|took| **took < Duration::from_secs(1)).count();
    let (in_time, machine) = (within_a_second(&took), within_a_second(&beside));
    let lines = tidegate.output().lines().count() - lines_before;
    until("it warms up", async || tidegate.status().await["redis"]["state"] != "open").await;
    let used_after = back.elapsed();
    eprintln!(
        "{what} for 6 s: {in_time} of {} answered within 1 s, P99 {:.1?}, longest {:.1?}, {:.2} log lines a request; \
         used again {used_after:.1?} after",
        took.len(),
        took[took.len() * 99 / 100],
        took[took.len() - 1],
        lines as f64 / took.len() as f64
    );
    assert!(
        in_time + took.len() / 100 >= machine,
        "{in_time} in time, {machine} of those that asked no limiter"
    );
    assert!(lines <= took.len() + 5, "{lines} lines for {} requests", took.len());
}

#[tokio::test]
async fn six_seconds_without_redis_at_100_requests_a_second_cost_nobody_a_second() {
    tokio::join!(
        six_seconds_without("killed", RedisServer::kill, RedisServer::restart),
        six_seconds_without("hung", |redis| redis.freeze(), |redis| redis.thaw()),
    );
}
