//! User and password of Redis in files that change under a running process.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use crate::support::outage::{DEGRADED, Load, ONE_KEY};
use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;
use crate::support::until;

const IN_USE: &str = "Redis: the changed user, password or certificates are in use";
const REFUSED: &str = "Redis: a connection with the changed user, password or certificates failed";

/// A Redis with the users `tide` and `surf`, and the files in which tidegate finds whom it is.
struct World {
    redis: RedisServer,
    directory: TempDir,
    tidegate: Arc<Tidegate>,
}

impl World {
    async fn new() -> Self {
        let redis = RedisServer::start();
        for user in ["tide", "surf"] {
            let rule = format!(">old-of-{user}");
            let _: () = redis.run(&["ACL", "SETUSER", user, "on", &rule, "~*", "+@all"]);
        }
        let directory = tempfile::tempdir().unwrap();
        put(&directory, "user", "tide\n");
        put(&directory, "password", "old-of-tide\n");
        let path = |name: &str| directory.path().join(name).display().to_string();
        let (url, user, password) = (redis.url(), path("user"), path("password"));
        let variables = [
            ("REDIS_URL", url.as_str()),
            ("REDIS_USERNAME_FILE", &user),
            ("REDIS_PASSWORD_FILE", &password),
            ("REDIS_TIMEOUT_MS", "2000"),
            ("APP_ENV", "production"),
            ("TIDEGATE__REDIS__WARM_UP_S", "1"),
        ];
        let tidegate = Arc::new(Tidegate::start(Some(ONE_KEY), &variables).await);
        tidegate.connected().await;
        Self { redis, directory, tidegate }
    }

    fn put(&self, name: &str, text: &str) {
        put(&self.directory, name, text);
    }

    fn acl(&self, words: &[&str]) {
        let _: () = self.redis.run(&[&["ACL", "SETUSER", "tide"], words].concat());
    }

    fn throw_out(&self) {
        let _: () = self.redis.run(&["CLIENT", "KILL", "USER", "tide"]);
    }

    /// As whom it is connected.
    fn users(&self) -> Vec<String> {
        let clients: String = self.redis.run(&["CLIENT", "LIST"]);
        let user = |line: &str| Some(line.split_once(" user=")?.1.split(' ').next()?.to_owned());
        // But for the one that listens to the fleet.
        let asking = clients.lines().filter(|line| line.contains(" sub=0 "));
        asking.filter_map(user).filter(|user| user != "default").collect()
    }

    fn gives_nothing_away(&self) {
        for word in ["old-of", "new-of"] {
            assert_eq!(self.tidegate.lines_with(word), 0, "{word}");
        }
    }
}

/// As a deployment does: beside it first, then over it.
fn put(directory: &TempDir, name: &str, text: &str) {
    let at = |name: &str| -> PathBuf { directory.path().join(name) };
    std::fs::write(at("beside"), text).unwrap();
    std::fs::rename(at("beside"), at(name)).unwrap();
}

#[tokio::test]
async fn a_password_rotated_by_file_under_load_costs_no_request_its_decision_by_redis() {
    let world = World::new().await;
    let load = Load::start(&world.tidegate, 8);
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.acl(&[">new-of-tide"]);
    world.put("password", "new-of-tide\n");
    world.tidegate.says(IN_USE, 1).await;
    // Those who came with the old one stay; new ones need the new one.
    world.acl(&["<old-of-tide"]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.users(), ["tide"], "one connection, the old one is gone");
    // Another user as well: both files at once, or one after the other.
    world.put("password", "old-of-surf\n");
    world.put("user", "surf\n");
    until("it is another user", async || world.users() == ["surf"]).await;
    world.throw_out();
    tokio::time::sleep(Duration::from_millis(300)).await;
    // It insists on a 200 for each.
    let (requests, fallbacks) = load.stop().await;
    assert!(requests > 200 && fallbacks == 0, "{fallbacks} of {requests}");
    world.tidegate.says(DEGRADED, 0).await;
    let metrics = world.tidegate.metrics().await;
    assert!(metrics.contains(r#"tidegate_redis_connections_replaced_total{cause="login"} 2"#), "{metrics}");
    world.gives_nothing_away();
}

#[tokio::test]
async fn a_password_that_redis_changed_first_is_used_as_soon_as_its_file_has_it() {
    let world = World::new().await;
    let load = Load::start(&world.tidegate, 8);
    tokio::time::sleep(Duration::from_millis(200)).await;
    world.acl(&["resetpass", ">new-of-tide"]);
    world.throw_out();
    let kind = async || world.tidegate.status().await["redis"]["last_error_kind"] == "auth";
    until("it is refused", kind).await;
    let next = world.tidegate.status().await["redis"]["next_probe_in_ms"].as_u64().unwrap();
    assert!(next > 10_000, "else it would come by itself: {next} ms");
    world.put("password", "new-of-tide\n");
    let changed = Instant::now();
    world.tidegate.connected().await;
    let after = changed.elapsed();
    let (requests, fallbacks) = load.stop().await;
    eprintln!("all keys {after:.1?} after the file has it, {fallbacks} of {requests} decided from memory");
    assert!(after < Duration::from_secs(5), "a warm-up of one of them: {after:?}");
    world.tidegate.says(DEGRADED, 1).await;
    world.gives_nothing_away();
}

#[tokio::test]
async fn a_file_that_is_ahead_of_redis_or_wrong_costs_one_warning_and_the_old_password_stays_in_use() {
    let world = World::new().await;
    world.put("password", "new-of-tide\n");
    world.tidegate.says(REFUSED, 1).await;
    let decides = async |key: &str| {
        let answer = world.tidegate.check(json!({"key": key})).await;
        answer["backend"] == "redis"
    };
    assert!(decides("one").await);
    // Thrown out with the wrong one in the file: it comes back with the old.
    for round in 0..3 {
        tokio::time::sleep(Duration::from_millis(600)).await;
        world.throw_out();
        until("it is back", async || decides(&format!("key-{round}")).await).await;
    }
    world.put("password", "");
    world.tidegate.says("reload failed, nothing was changed", 1).await;
    until("why", async || world.tidegate.lines_with("password: the file is empty") >= 1).await;
    assert!(decides("two").await);
    // Redis follows.
    world.acl(&[">new-of-tide", "<old-of-tide"]);
    world.put("password", "new-of-tide");
    tokio::time::sleep(Duration::from_millis(600)).await;
    world.throw_out();
    until("it is back", async || decides("three").await).await;
    assert_eq!(world.users(), ["tide"]);
    world.tidegate.says(REFUSED, 1).await;
    world.tidegate.says(DEGRADED, 0).await;
    world.gives_nothing_away();
}

#[tokio::test]
async fn a_password_file_is_read_again_for_each_connection_even_when_nothing_is_watched() {
    let redis = RedisServer::with_password("old");
    let directory = tempfile::tempdir().unwrap();
    put(&directory, "password", "old");
    let (url, file) = (redis.url(), directory.path().join("password").display().to_string());
    let variables = [
        ("REDIS_URL", url.as_str()),
        ("REDIS_PASSWORD_FILE", &file),
        ("TIDEGATE__POLICIES__WATCH", "false"),
        ("REDIS_TIMEOUT_MS", "2000"),
    ];
    let tidegate = Tidegate::start(Some(ONE_KEY), &variables).await;
    tidegate.connected().await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    put(&directory, "password", "new");
    let mut owner = redis.connection();
    let mut run = |words: &[&str]| -> redis::Value { crate::support::redis_server::ask(&mut owner, words) };
    run(&["CONFIG", "SET", "requirepass", "new"]);
    run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    until("Redis decides", async || tidegate.check(json!({"key": "k"})).await["backend"] == "redis").await;
    tidegate.says("⚠️  Development", 0).await;
}
