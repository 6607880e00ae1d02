//! The doctor, against real servers with one thing the matter: what it names, what it advises, how it ends.

use serde_json::{Value, json};

use crate::run::{Ran, doctor, tidegate};
use crate::servers::{Shown, TlsRedis, that_says};
use crate::support::redis_server::{RedisServer, ask, free_port};
use crate::support::relay::Relay;

/// The permissions of the documentation, and a user who has no others.
fn add_user(server: &RedisServer, permissions: &str) {
    let mut words = vec!["ACL", "SETUSER", "tide", "on", ">s3cret-word", "~tidegate:*"];
    words.extend(permissions.split_whitespace());
    let _: () = server.run(&words);
}

const LEAST: &str = "+evalsha +eval +get +set +mget +time";
/// Of the fleet, those whose lack the doctor finds: what the channel needs cannot be tried without using it.
const FLEET: &str =
    "+del +hset +hmget +hgetall +hlen +hdel +zadd +zrem +zcard +zrangebyscore +unlink +getrange";

#[track_caller]
fn failed(ran: &Ran, step: &str, kind: &str, found: &str, cure: &str) -> Value {
    let failed = ran.failed();
    assert_eq!((&failed["step"], &failed["kind"]), (&json!(step), &json!(kind)), "{failed:#}");
    assert!(failed["found"].as_str().unwrap().contains(found), "{failed:#}");
    assert!(failed["cure"].as_str().unwrap().contains(cure), "{failed:#}");
    assert_eq!((ran.code, &ran.json()["exit_code"]), (2, &json!(2)));
    let report = ran.json();
    let steps = report["steps"].as_array().unwrap();
    let at = steps.iter().position(|one| one["step"] == step).unwrap();
    assert!(steps[at + 1..].iter().all(|step| step["outcome"] == "skipped"), "{report:#}");
    assert_eq!(steps.len(), 14, "every step is shown");
    assert!(
        steps[..at]
            .iter()
            .all(|step| ["ok", "skipped", "warning"].contains(&step["outcome"].as_str().unwrap()))
    );
    failed
}

#[tokio::test]
async fn without_redis_it_says_that_memory_decides_and_why() {
    let ran = tidegate(&["doctor"], &[]).await;
    assert_eq!(ran.code, 0);
    assert!(ran.stdout.contains("decided in memory, because REDIS_URL is not set"), "{}", ran.stdout);
    let ran = tidegate(&["doctor"], &[("RATE_LIMIT_BACKEND", "redis")]).await;
    assert_eq!(ran.code, 1, "it is wanted and not there: {}", ran.stdout);
}

#[tokio::test]
async fn a_sound_redis_is_healthy_and_only_the_reserved_key_was_touched() {
    let redis = RedisServer::start();
    let variables = [("REDIS_TIMEOUT_MS", "5000"), ("TIDEGATE__REDIS__COMMANDS_PER_DAY", "10000")];
    let ran = doctor(&redis.url(), &variables).await;
    assert_eq!((ran.code, &ran.json()["verdict"]), (0, &json!("healthy")), "{}", ran.stdout);
    assert!(ran.step("plan")["found"].as_str().unwrap().contains("6.9 decisions a minute"), "{}", ran.stdout);
    assert_eq!(ran.json()["latency"]["calls"], 50);
    assert_eq!(ran.json()["key_locking"], false, "real Redis refuses the flag");
    let keys: Vec<String> = redis.run(&["KEYS", "*"]);
    assert!(keys.iter().all(|key| key.starts_with("tidegate:probe:{")), "{keys:?}");
}

#[tokio::test]
async fn results_go_to_stdout_progress_to_stderr_and_colours_to_neither_when_they_are_no_terminal() {
    let redis = RedisServer::start();
    let ran = tidegate(&["doctor"], &[("REDIS_URL", &redis.url()), ("REDIS_TIMEOUT_MS", "5000")]).await;
    assert_eq!(ran.code, 0, "{}", ran.stdout);
    assert!(ran.stdout.contains("✅ script") && ran.stdout.contains("healthy: "), "{}", ran.stdout);
    assert!(
        ran.stdout.lines().filter(|line| line.starts_with('✅')).all(|line| line.ends_with(')')),
        "times"
    );
    assert!(ran.stderr.contains("doctor: script …") && !ran.stderr.contains('✅'), "{}", ran.stderr);
    assert!(!ran.stdout.contains('\u{1b}') && !ran.stderr.contains('\u{1b}'));
    let help = tidegate(&["doctor", "--help"], &[]).await;
    assert!(help.code == 0 && help.stdout.contains("Example:"));
}

#[tokio::test]
async fn a_tls_only_redis_with_our_own_authority_and_a_user_with_the_least_permissions_is_healthy() {
    let redis = TlsRedis::start(Shown::default());
    add_user(&redis.server, &format!("{LEAST} {FLEET}"));
    let url = format!("rediss://tide:s3cret-word@localhost:{}", redis.port);
    let ran = doctor(&url, &[("REDIS_CA_CERT", &redis.file("ca.pem")), ("REDIS_TIMEOUT_MS", "5000")]).await;
    assert_eq!(ran.code, 0, "{}", ran.stdout);
    let tls = ran.step("tls")["found"].as_str().unwrap().to_owned();
    assert!(
        tls.contains("TLS 1.3") && tls.contains("for localhost") && tls.contains("days from now"),
        "{tls}"
    );
    // Such a user sees no INFO and no CONFIG: that is no failure.
    for step in ["role", "eviction", "memory"] {
        assert_eq!(ran.step(step)["outcome"], "not_allowed");
    }
    assert!(!ran.stdout.contains("s3cret-word") && !ran.stderr.contains("s3cret-word"));
}

#[tokio::test]
async fn a_redis_that_wants_our_certificate_is_healthy_with_it_and_named_without() {
    let redis = TlsRedis::start(Shown { mutual: true, ..Shown::default() });
    let (ca, cert, key) = (redis.file("ca.pem"), redis.file("cert.pem"), redis.file("key.pem"));
    let with = [
        ("REDIS_CA_CERT", ca.as_str()),
        ("REDIS_CLIENT_CERT", &cert),
        ("REDIS_CLIENT_KEY", &key),
        ("REDIS_TIMEOUT_MS", "5000"),
    ];
    let with = doctor(&redis.url(), &with).await;
    let without = doctor(&redis.url(), &[("REDIS_CA_CERT", &ca)]).await;
    assert_eq!(with.code, 0, "{}", with.stdout);
    failed(&without, "tls", "tls", "ertificate", "REDIS_CLIENT_CERT");
}

#[tokio::test]
async fn a_wrong_authority_is_named_with_the_one_that_signed() {
    let redis = TlsRedis::start(Shown::default());
    let ran = doctor(&redis.url(), &[("REDIS_CA_CERT", &redis.file("other-ca.pem"))]).await;
    failed(&ran, "tls", "tls", "signed by \"CN=test authority\"", "REDIS_CA_CERT");
}

#[tokio::test]
async fn an_expired_certificate_is_named_and_one_that_soon_will_be_is_a_warning() {
    let expired = TlsRedis::start(Shown { expired: true, ..Shown::default() });
    let ran = doctor(&expired.url(), &[("REDIS_CA_CERT", &expired.file("ca.pem"))]).await;
    failed(&ran, "tls", "tls", "good until 2021-01-01", "renew");
    let soon = TlsRedis::start(Shown { soon: true, ..Shown::default() });
    let ran =
        doctor(&soon.url(), &[("REDIS_CA_CERT", &soon.file("ca.pem")), ("REDIS_TIMEOUT_MS", "5000")]).await;
    assert_eq!((ran.code, &ran.step("tls")["outcome"]), (1, &json!("warning")), "{}", ran.stdout);
}

#[tokio::test]
async fn a_certificate_for_another_name_is_named_with_the_names_that_it_holds() {
    let redis = TlsRedis::start(Shown { other_name: true, ..Shown::default() });
    let ran = doctor(&redis.url(), &[("REDIS_CA_CERT", &redis.file("ca.pem"))]).await;
    failed(&ran, "tls", "tls", "for cache.example", "host name that the certificate holds");
}

#[tokio::test]
async fn tls_to_a_plain_port_and_plain_to_a_tls_port_are_told_from_silence() {
    let redis = TlsRedis::start(Shown::default());
    let (ca, plain) = (redis.file("ca.pem"), redis.server.port);
    let (tls_url, plain_url) =
        (format!("rediss://localhost:{plain}"), format!("redis://localhost:{}", redis.port));
    let variables = [("REDIS_CA_CERT", ca.as_str())];
    let (to_plain, to_tls) = tokio::join!(doctor(&tls_url, &variables), doctor(&plain_url, &[]));
    let step = to_plain.failed();
    assert!(step["found"].as_str().unwrap().contains("does not speak TLS"), "{step:#}");
    assert!(step["cure"].as_str().unwrap().contains("use redis://"), "{step:#}");
    assert_eq!((to_plain.code, &step["step"]), (2, &json!("tls")));
    let step = to_tls.failed();
    assert!(step["cure"].as_str().unwrap().contains("use rediss://"), "{step:#}");
    assert_eq!((to_tls.code, &step["step"]), (2, &json!("auth")));
}

#[tokio::test]
async fn passwords_wrong_missing_and_unwanted_are_told_apart_and_never_shown() {
    let redis = RedisServer::with_password("the right one");
    let open = RedisServer::start();
    let at = |port: u16| format!("redis://:hunter2-word@127.0.0.1:{port}");
    let wrong = doctor(&at(redis.port), &[]).await;
    failed(&wrong, "auth", "auth", "WRONGPASS", "user and password");
    let missing = doctor(&redis.url(), &[]).await;
    failed(&missing, "auth", "auth", "NOAUTH", "wants a password");
    let unwanted = doctor(&at(open.port), &[]).await;
    failed(&unwanted, "auth", "auth", "without any password configured", "wants no password");
    let user = format!("redis://somebody:hunter2-word@127.0.0.1:{}", open.port);
    let nobody = doctor(&user, &[]).await;
    failed(&nobody, "auth", "auth", "WRONGPASS", "user and password");
    let resp3 = doctor(&format!("{user}/?protocol=resp3"), &[]).await;
    failed(&resp3, "auth", "auth", "WRONGPASS", "user and password");
    for ran in [&wrong, &unwanted, &nobody, &resp3] {
        assert!(!ran.stdout.contains("hunter2") && !ran.stderr.contains("hunter2"), "{}", ran.stdout);
    }
}

#[tokio::test]
async fn a_server_that_repeats_the_password_is_not_quoted() {
    let address = that_says("-ERR 'hunter2-word' is not the password\r\n").await;
    let ran = doctor(&format!("redis://:hunter2-word@{address}"), &[]).await;
    failed(&ran, "auth", "auth", "not shown here", "user and password");
    assert!(!ran.stdout.contains("hunter2"));
}

#[tokio::test]
async fn each_permission_that_is_missing_is_named() {
    let redis = RedisServer::start();
    for permission in LEAST.split_whitespace() {
        let rest: Vec<&str> = LEAST.split_whitespace().filter(|one| *one != permission).collect();
        let _: i64 = redis.run(&["ACL", "DELUSER", "tide"]);
        add_user(&redis, &rest.join(" "));
        let url = format!("redis://tide:s3cret-word@127.0.0.1:{}", redis.port);
        let ran = doctor(&url, &[]).await;
        failed(
            &ran,
            "permissions",
            "permission",
            &format!("missing: {permission} "),
            "ACL SETUSER … ~tidegate:*",
        );
    }
}

#[tokio::test]
async fn missing_permission_of_the_fleet_is_a_warning() {
    let redis = RedisServer::start();
    let url = format!("redis://tide:s3cret-word@127.0.0.1:{}", redis.port);
    for permission in FLEET.split_whitespace() {
        let rest: Vec<&str> = FLEET.split_whitespace().filter(|one| *one != permission).collect();
        let _: i64 = redis.run(&["ACL", "DELUSER", "tide"]);
        add_user(&redis, &format!("{LEAST} {}", rest.join(" ")));
        let ran = doctor(&url, &[("REDIS_TIMEOUT_MS", "5000")]).await;
        let step = ran.step("permissions");
        assert_eq!((ran.code, &step["outcome"]), (1, &json!("warning")), "{step:#}");
        assert!(step["found"].as_str().unwrap().contains(&format!("missing: {permission}:")), "{step:#}");
        assert_eq!(step["cure"], format!("ACL SETUSER … {permission}"));
        assert_eq!(ran.step("script")["outcome"], "ok", "decisions do without: {}", ran.stdout);
    }
}

#[tokio::test]
async fn nobody_there_and_somebody_who_says_nothing_are_told_apart() {
    let silent = that_says("").await;
    let redis = RedisServer::start();
    let relay = Relay::to(redis.port).await;
    relay.black_hole();
    let refused = format!("redis://127.0.0.1:{}", free_port());
    let (silent, black_hole) = (format!("redis://{silent}"), format!("redis://{}", relay.address));
    let (refused, silent, black_hole, dns) = tokio::join!(
        doctor(&refused, &[]),
        doctor(&silent, &[]),
        doctor(&black_hole, &[]),
        doctor("redis://no-such-host.invalid", &[])
    );
    failed(&refused, "tcp", "refused", "refused", "start Redis");
    failed(&silent, "auth", "timeout", "no answer within 1500 ms", "firewalls");
    failed(&black_hole, "auth", "timeout", "no answer within 1500 ms", "firewalls");
    failed(&dns, "dns", "dns", "lookup", "host in REDIS_URL");
    for ran in [&refused, &silent, &black_hole, &dns] {
        assert!(ran.took.as_secs() < 10, "{:?}", ran.took);
    }
}

#[tokio::test]
async fn a_database_that_is_not_there_and_a_url_that_makes_no_sense_are_named() {
    let redis = RedisServer::start();
    let ran = doctor(&format!("{}/99", redis.url()), &[]).await;
    failed(&ran, "session", "other", "DB index is out of range", "database number");
    let ran = doctor("redis://:pa@ss@h", &[]).await;
    assert_eq!((ran.code, &ran.failed()["step"]), (2, &json!("configuration")));
    assert!(ran.failed()["found"].as_str().unwrap().contains("%40"), "{}", ran.stdout);
    assert!(!ran.stdout.contains("pa@ss"));
    let ran = doctor("rediss://h", &[("REDIS_CA_CERT", "/nowhere/ca.pem")]).await;
    assert_eq!((ran.code, &ran.failed()["step"]), (2, &json!("configuration")), "{}", ran.stdout);
}

#[tokio::test]
async fn a_full_server_a_full_memory_and_a_replica_are_named() {
    let redis = RedisServer::start();
    let _: () = redis.run(&["CONFIG", "SET", "maxmemory", "1"]);
    failed(&doctor(&redis.url(), &[]).await, "script", "oom", "OOM", "give it memory");
    let _: () = redis.run(&["CONFIG", "SET", "maxmemory", "0"]);
    let _: () = redis.run(&["REPLICAOF", "127.0.0.1", &free_port().to_string()]);
    failed(&doctor(&redis.url(), &[]).await, "script", "readonly", "READONLY", "primary");
    let _: () = redis.run(&["REPLICAOF", "NO", "ONE"]);
    let mut owner = redis.connection();
    let _: () = ask(&mut owner, &["CONFIG", "SET", "maxclients", "1"]);
    failed(&doctor(&redis.url(), &[]).await, "auth", "maxclients", "max number of clients", "maxclients");
}

#[tokio::test]
async fn what_a_provider_says_of_its_quota_and_its_connections_is_understood() {
    for (said, kind, cure) in [
        ("-ERR max daily request limit exceeded. Limit: 10000, Usage: 10001.\r\n", "quota", "tidegate cost"),
        ("-ERR max requests limit exceeded. \r\n", "quota", "another plan"),
        ("-ERR max concurrent connections exceeded\r\n", "maxclients", "connection"),
    ] {
        let address = that_says(said).await;
        failed(&doctor(&format!("redis://{address}"), &[]).await, "auth", kind, "exceeded", cure);
    }
}

#[tokio::test]
async fn eviction_that_deletes_counters_and_memory_that_is_nearly_full_are_warnings() {
    let redis = RedisServer::start();
    let generous = [("REDIS_TIMEOUT_MS", "5000")];
    for (policy, outcome) in [
        ("allkeys-lru", "warning"),
        ("volatile-ttl", "warning"),
        ("volatile-lru", "ok"),
        ("noeviction", "ok"),
    ] {
        let _: () = redis.run(&["CONFIG", "SET", "maxmemory-policy", policy]);
        let ran = doctor(&redis.url(), &generous).await;
        let step = ran.step("eviction");
        assert_eq!(step["outcome"], outcome, "{step:#}");
        assert!(step["found"].as_str().unwrap().starts_with(policy));
        assert_eq!(ran.code, i32::from(outcome == "warning"), "{}", ran.stdout);
    }
    let info: String = redis.run(&["INFO", "memory"]);
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
    let nearly = used.trim().parse::<u64>().unwrap() * 115 / 100;
    let _: () = redis.run(&["CONFIG", "SET", "maxmemory", &nearly.to_string()]);
    let ran = doctor(&redis.url(), &generous).await;
    assert_eq!((ran.code, &ran.step("memory")["outcome"]), (1, &json!("warning")), "{}", ran.stdout);
}

#[tokio::test]
async fn a_latency_above_the_timeout_is_measured_and_the_timeout_to_set_is_named() {
    let redis = RedisServer::start();
    let relay = Relay::to(redis.port).await;
    relay.delay(std::time::Duration::from_millis(55));
    let ran = doctor(&format!("redis://{}", relay.address), &[("REDIS_TIMEOUT_MS", "50")]).await;
    let step = ran.step("latency");
    assert_eq!((ran.code, &step["outcome"]), (1, &json!("warning")), "{}", ran.stdout);
    let cure = step["cure"].as_str().unwrap();
    assert!(cure.starts_with("measured ") && cure.contains("REDIS_TIMEOUT_MS is 50: set "), "{cure}");
    assert!(ran.json()["latency"]["p95_ms"].as_f64().unwrap() >= 55.0);
}

#[tokio::test]
async fn a_script_that_denies_where_there_is_room_is_no_working_limiter() {
    let address = that_says("*4\r\n:1000000\r\n:0\r\n:1000000\r\n:1000000\r\n").await;
    let ran = doctor(&format!("redis://{address}"), &[]).await;
    failed(&ran, "script", "protocol", "denied a hit that has room", "NAMESPACE");
}

#[tokio::test]
async fn a_clock_that_is_off_is_a_warning() {
    // A server whose clock says 1970, and which otherwise answers as the script does.
    let address = that_says("*4\r\n:1000000\r\n:1\r\n:1000\r\n:1000000\r\n").await;
    let ran = doctor(&format!("redis://{address}"), &[("REDIS_TIMEOUT_MS", "5000")]).await;
    let step = ran.step("clock");
    assert_eq!(step["outcome"], "warning", "{}", ran.stdout);
    assert!(step["found"].as_str().unwrap().contains("behind"), "{step:#}");
}

/// The line that the tests use is the line that people copy.
#[test]
fn every_page_has_the_permissions_that_the_tests_use() {
    assert_eq!(tidegate::tools::doctor::LEAST_PERMISSIONS, LEAST);
    let of_the_fleet = tidegate::tools::doctor::FLEET_PERMISSIONS;
    assert_eq!(of_the_fleet.replace(" +publish +subscribe", ""), FLEET);
    for (page, text) in [
        ("when-redis-is-away.md", include_str!("../../docs/when-redis-is-away.md")),
        ("upstash.md", include_str!("../../docs/providers/upstash.md")),
        ("redis-cloud.md", include_str!("../../docs/providers/redis-cloud.md")),
        ("elasticache.md", include_str!("../../docs/providers/elasticache.md")),
        ("cluster.md", include_str!("../../docs/cluster.md")),
        ("sentinel.md", include_str!("../../docs/sentinel.md")),
    ] {
        assert!(text.contains(LEAST) && text.contains("~tidegate:*"), "{page}");
        assert!(text.contains(of_the_fleet), "{page}");
    }
}

#[tokio::test]
async fn the_newer_protocol_and_a_unix_socket_are_examined_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("redis.sock").display().to_string();
    let redis = RedisServer::start_with(&["--unixsocket", &socket]);
    let generous = [("REDIS_TIMEOUT_MS", "5000")];
    for url in [format!("{}?protocol=resp3", redis.url()), format!("unix://{socket}?db=3")] {
        let ran = doctor(&url, &generous).await;
        assert_eq!(ran.code, 0, "{url}: {}", ran.stdout);
        assert_eq!(ran.step("eviction")["outcome"], "ok");
        assert_eq!(ran.step("role")["outcome"], "ok");
    }
    let gone = doctor(&format!("unix://{socket}.gone"), &[]).await;
    assert_eq!((gone.code, &gone.failed()["step"]), (2, &json!("tcp")), "{}", gone.stdout);
}

#[tokio::test]
async fn colours_are_for_a_terminal_and_not_with_no_color() {
    // `script` gives a command a terminal; Debian has it everywhere.
    let in_a_terminal = |no_color: &'static str| async move {
        let line = format!("{} doctor", env!("CARGO_BIN_EXE_tidegate"));
        let directory = tempfile::tempdir().unwrap();
        let mut command = std::process::Command::new("script");
        command.args(["-qec", &line, "/dev/null"]).env("NO_COLOR", no_color).current_dir(directory.path());
        let redis = RedisServer::start();
        command.env("REDIS_URL", redis.url());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let (with, without) = (in_a_terminal("").await, in_a_terminal("1").await);
    assert!(with.contains("\u{1b}[32mscript"), "{with}");
    assert!(without.contains("✅ script") && !without.contains("\u{1b}[32m"), "{without}");
}
