//! One cause has one name: what the doctor says, its exit code, the metric's label, the log's field, the breaker's class and
//! the sentence of `/readyz`, each made by running into the fault itself.

use std::any::Any;
use std::sync::Arc;

use serde_json::json;
use tidegate::limiter::store::FaultKind;

use crate::run::doctor;
use crate::servers::{Shown, TlsRedis, that_hangs_up, that_says};
use crate::support::outage::DEGRADED;
use crate::support::process::Tidegate;
use crate::support::redis_server::{RedisServer, ask, free_port};
use crate::support::until;

/// A Redis with something the matter.
struct Broken {
    url: String,
    variables: Vec<(&'static str, String)>,
    /// At which of the doctor's steps it shows.
    step: &'static str,
    /// What has to live for the fault to last.
    _keep: Box<dyn Any>,
}

enum Row {
    Made(Broken),
    /// No call ever fails with it, and why.
    NoCall(&'static str),
}

impl Broken {
    fn at(url: impl Into<String>, step: &'static str, keep: impl Any) -> Row {
        Row::Made(Self { url: url.into(), variables: Vec::new(), step, _keep: Box::new(keep) })
    }
}

/// The table. A kind that is new has no row, and the test fails until it has one.
async fn row(kind: FaultKind) -> Row {
    match kind {
        FaultKind::Timeout => Broken::at(format!("redis://{}", that_says("").await), "auth", ()),
        FaultKind::Refused => Broken::at(format!("redis://127.0.0.1:{}", free_port()), "tcp", ()),
        FaultKind::Dns => Broken::at("redis://no-such-host.invalid", "dns", ()),
        FaultKind::Tls => {
            let redis = TlsRedis::start(Shown::default());
            let variables = vec![("REDIS_CA_CERT", redis.file("other-ca.pem"))];
            Row::Made(Broken { url: redis.url(), variables, step: "tls", _keep: Box::new(redis) })
        }
        FaultKind::Auth => {
            let redis = RedisServer::with_password("the right one");
            Broken::at(format!("redis://:wrong@127.0.0.1:{}", redis.port), "auth", redis)
        }
        FaultKind::Permission => {
            let redis = RedisServer::start();
            let least = ["~tidegate:*", "+evalsha", "+eval", "+get", "+set", "+time"];
            let _: () = redis.run(&[&["ACL", "SETUSER", "tide", "on", ">pass"], &least[..]].concat());
            Broken::at(format!("redis://tide:pass@127.0.0.1:{}", redis.port), "permissions", redis)
        }
        FaultKind::ReadOnly => {
            let redis = RedisServer::start();
            let _: () = redis.run(&["REPLICAOF", "127.0.0.1", &free_port().to_string()]);
            Broken::at(redis.url(), "script", redis)
        }
        FaultKind::Oom => {
            let redis = RedisServer::start();
            let _: () = redis.run(&["CONFIG", "SET", "maxmemory", "1"]);
            Broken::at(redis.url(), "script", redis)
        }
        FaultKind::Loading => {
            let redis = RedisServer::start_with(&["--busy-reply-threshold", "20"]);
            let mut connection = redis.connection();
            std::thread::spawn(move || {
                redis::cmd("EVAL").arg("while true do end").arg(0).exec(&mut connection)
            });
            std::thread::sleep(std::time::Duration::from_millis(200));
            Broken::at(redis.url(), "auth", redis)
        }
        FaultKind::MaxClients => {
            let redis = RedisServer::start();
            let mut owner = redis.connection();
            let _: () = ask(&mut owner, &["CONFIG", "SET", "maxclients", "1"]);
            Broken::at(redis.url(), "auth", (redis, owner))
        }
        FaultKind::Quota => {
            // No server of ours can be made to say this: the provider's own words.
            let said = "-ERR max daily request limit exceeded. Limit: 10000, Usage: 10001.\r\n";
            Broken::at(format!("redis://{}", that_says(said).await), "auth", ())
        }
        FaultKind::Cluster => {
            let bus = free_port().to_string();
            let redis = RedisServer::start_with(&["--cluster-enabled", "yes", "--cluster-port", &bus]);
            Broken::at(redis.url(), "cluster", redis)
        }
        FaultKind::Lost => {
            // A relay that resets may do so before the connection counts as made.
            Broken::at(format!("redis://{}", that_hangs_up().await), "auth", ())
        }
        FaultKind::Protocol => {
            let said = "HTTP/1.1 400 Bad Request\r\n\r\n";
            Broken::at(format!("redis://{}", that_says(said).await), "auth", ())
        }
        FaultKind::Other => {
            let redis = RedisServer::start();
            Broken::at(format!("{}/99", redis.url()), "session", redis)
        }
        FaultKind::Open => Row::NoCall("the breaker is open: nobody is asked"),
        FaultKind::Warming => Row::NoCall("the warm-up has not come to this key: nobody is asked"),
        FaultKind::Saturated => Row::NoCall("as many calls as may be are under way: nobody is asked"),
        FaultKind::Share => {
            Row::NoCall("the share is used up while Redis is only just back: nobody is asked")
        }
        new => panic!("{new} has no row: make one by running into it"),
    }
}

#[tokio::test]
async fn one_cause_has_one_name_in_doctor_metric_log_breaker_and_readiness() {
    tokio::task::LocalSet::new().run_until(every_kind()).await;
}

async fn every_kind() {
    // A few at a time: each starts servers.
    let turns = Arc::new(tokio::sync::Semaphore::new(4));
    let rows = FaultKind::ALL.map(|kind| {
        let turns = Arc::clone(&turns);
        tokio::task::spawn_local(async move {
            let _turn = turns.acquire_owned().await.unwrap();
            match row(kind).await {
                Row::Made(broken) => {
                    assert!(kind.is_of_the_store());
                    named_everywhere(kind, broken).await;
                }
                Row::NoCall(why) => assert!(!kind.is_of_the_store(), "{kind}: {why}"),
            }
        })
    });
    let mut wrong = Vec::new();
    for (kind, row) in FaultKind::ALL.into_iter().zip(rows) {
        if let Err(error) = row.await {
            let panic = error.into_panic();
            let words = panic.downcast_ref::<String>().cloned();
            wrong.push(format!("{kind}: {}", words.unwrap_or_else(|| "see above".into())));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

async fn named_everywhere(kind: FaultKind, broken: Broken) {
    let word = kind.as_str();
    let mut variables: Vec<(&str, &str)> =
        broken.variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let ran = doctor(&broken.url, &variables).await;
    let failed = ran.failed();
    assert_eq!((&failed["step"], &failed["kind"]), (&json!(broken.step), &json!(word)), "{failed:#}");
    assert!(failed["cure"].as_str().is_some_and(|cure| !cure.is_empty()), "{failed:#}");
    assert_eq!(ran.code, 2, "{word}: {}", ran.stdout);

    variables.extend([
        ("REDIS_URL", broken.url.as_str()),
        ("APP_ENV", "production"),
        ("TIDEGATE__REDIS__CONNECT_TIMEOUT_MS", "1500"),
    ]);
    let tidegate = Tidegate::start(None, &variables).await;
    until(&format!("{word} is the breaker's last fault"), async || {
        tidegate.status().await["redis"]["last_error_kind"] == word
    })
    .await;
    assert_eq!(tidegate.status().await["redis"]["state"], "open", "{word}");
    let counted = format!("tidegate_redis_errors_total{{kind=\"{word}\"}} ");
    let metrics = tidegate.metrics().await;
    let count = metrics.lines().find_map(|line| line.strip_prefix(&counted));
    assert!(count.is_some_and(|count| count != "0"), "{word} is counted: {count:?}");
    let others = metrics.lines().filter(|line| line.starts_with("tidegate_redis_errors_total{"));
    let others: Vec<&str> =
        others.filter(|line| !line.starts_with(&counted) && !line.ends_with(" 0")).collect();
    assert!(others.is_empty(), "{word} is counted as nothing else: {others:?}");
    tidegate.says(DEGRADED, 1).await;
    let line = tidegate.output().lines().find(|line| line.contains(DEGRADED)).unwrap().to_owned();
    let bare: String = line.chars().filter(|letter| *letter != '"').collect();
    assert!(bare.contains(&format!("error_kind={word} ")), "{word}: {line}");
    let ready = tidegate.get("/readyz").await.text().await.unwrap();
    assert!(ready.contains(&format!("Redis is away ({word})")), "{ready}");
}
