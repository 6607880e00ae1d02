//! Two instances and one Redis.

use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;
use crate::support::until;

const POLICIES: &str = r#"
[[rule]]
name = "default"
  [[rule.policy]]
  name = "per-client"
  by = "header:x-api-key"
  limit = "100/hour"
"#;

#[tokio::test]
async fn two_instances_with_one_redis_admit_together_what_one_would_and_use_the_same_keys() {
    let redis = RedisServer::start();
    let url = redis.url();
    let variables = [("REDIS_URL", url.as_str()), ("REDIS_TIMEOUT_MS", "5000")];
    let first = Tidegate::start(Some(POLICIES), &variables).await;
    first.connected().await;
    let mut admitted = 0;
    for _ in 0..30 {
        admitted += usize::from(first.get_as("/", "one client").await.status() != 429);
    }
    assert_eq!(admitted, 30);
    // Started later, with nothing on its disk: what they have in common comes from Redis.
    let second = Tidegate::start(Some(POLICIES), &variables).await;
    second.connected().await;
    for _ in 0..100 {
        admitted += usize::from(second.get_as("/", "one client").await.status() != 429);
        admitted += usize::from(first.get_as("/", "one client").await.status() != 429);
    }
    assert_eq!(admitted, 100);
    assert_eq!(redis.buckets().len(), 1, "{:?}", redis.buckets());
    for tidegate in [&first, &second] {
        let lines = tidegate.request_lines(100).await;
        assert!(lines.iter().all(|line| line["rl_backend"] == "redis" && line["fallback"] == false));
    }
}

#[tokio::test]
async fn instances_agree_on_the_keys_of_the_canary_without_being_given_a_secret() {
    let redis = RedisServer::start();
    let url = redis.url();
    let variables =
        [("REDIS_URL", url.as_str()), ("RATE_LIMIT_CANARY_PERCENT", "50"), ("REDIS_TIMEOUT_MS", "5000")];
    let first = Tidegate::start(Some(POLICIES), &variables).await;
    first.connected().await;
    let second = Tidegate::start(Some(POLICIES), &variables).await;
    second.connected().await;
    let mut redis_decided = 0;
    for key in 0..200 {
        let ask = serde_json::json!({"key": format!("key-{key}")});
        let (one, two) = (first.check(ask.clone()).await, second.check(ask).await);
        assert_eq!(one["backend"], two["backend"], "key-{key}");
        redis_decided += usize::from(one["backend"] == "redis");
    }
    assert!((60..=140).contains(&redis_decided), "{redis_decided} of 200");
}

#[tokio::test]
async fn a_key_that_is_forgiven_on_one_instance_is_forgiven_on_all_before_that_is_answered() {
    let redis = RedisServer::start();
    let url = redis.url();
    let policies = POLICIES.replace("100/hour", "1000/hour");
    let variables =
        [("REDIS_URL", url.as_str()), ("REDIS_TIMEOUT_MS", "5000"), ("TIDEGATE__LOGGING__REQUESTS", "false")];
    let mut fleet = Vec::new();
    for _ in 0..3 {
        fleet.push(std::sync::Arc::new(Tidegate::start(Some(&policies), &variables).await));
    }
    for tidegate in &fleet {
        tidegate.connected().await;
    }
    until("all of them listen", async || {
        redis.run::<(String, usize)>(&["PUBSUB", "NUMSUB", "tidegate:fleet"]).1 == 3
    })
    .await;
    let ask = || serde_json::json!({"key": "hasty"});
    for round in 0..3 {
        let all = serde_json::json!({"key": "hasty", "cost": 1000 - 400 * round.min(1)});
        fleet[0].check(all).await;
        for tidegate in &fleet {
            while tidegate.check(ask()).await["cached"] != true {}
        }
        // Nobody stops asking meanwhile.
        let hammering: Vec<_> = fleet
            .iter()
            .cycle()
            .take(9)
            .map(|tidegate| {
                let tidegate = std::sync::Arc::clone(tidegate);
                tokio::spawn(async move {
                    for _ in 0..40 {
                        tidegate.check(serde_json::json!({"key": "hasty"})).await;
                    }
                })
            })
            .collect();
        let forgiven = fleet[1].admin("DELETE", "/admin/keys?key=hasty").send().await.unwrap();
        let forgiven: serde_json::Value = forgiven.json().await.unwrap();
        assert_eq!(
            (&forgiven["applied"], &forgiven["complete"]),
            (&"3/3".into(), &true.into()),
            "{forgiven}"
        );
        for one in hammering {
            one.await.unwrap();
        }
        for tidegate in &fleet {
            let answer = tidegate.check(ask()).await;
            let left = answer["remaining"].as_u64().unwrap();
            assert!(answer["allowed"] == true && left > 1000 - 9 * 40 - 10, "round {round}: {answer}");
        }
    }
}

#[tokio::test]
async fn no_clients_key_is_readable_in_what_instances_tell_each_other() {
    let redis = RedisServer::start();
    let url = redis.url();
    let tidegate = Tidegate::start(Some(POLICIES), &[("REDIS_URL", url.as_str())]).await;
    tidegate.connected().await;
    let (told, heard) = std::sync::mpsc::channel();
    let mut connection = redis.connection();
    let listener = std::thread::spawn(move || {
        let mut channel = connection.as_pubsub();
        channel.subscribe("tidegate:fleet").unwrap();
        told.send(String::new()).unwrap();
        told.send(channel.get_message().unwrap().get_payload::<String>().unwrap()).unwrap();
    });
    heard.recv().unwrap();
    let answer = tidegate.admin("DELETE", "/admin/keys?key=ak_live_marker").send().await.unwrap();
    let answer: serde_json::Value = answer.json().await.unwrap();
    let message = heard.recv().unwrap();
    listener.join().unwrap();
    assert!(message.len() > 40 && message.bytes().all(|byte| byte.is_ascii_hexdigit()), "{message}");
    // Somebody listens who never answers: that is said.
    assert_eq!((&answer["applied"], &answer["complete"]), (&"1/2".into(), &false.into()), "{answer}");
    // What nobody of the fleet has sealed is passed over.
    for nonsense in ["", "zz", "00", &message, &"0".repeat(200)] {
        let _: usize = redis.run(&["PUBLISH", "tidegate:fleet", nonsense]);
    }
    assert_eq!(tidegate.get("/healthz").await.status(), 200);
}

#[tokio::test]
async fn an_instance_that_died_holds_up_who_forgives_a_key_once_and_not_once_for_each_rule() {
    let redis = RedisServer::start();
    let url = redis.url();
    let rule = |number: u32| {
        let policy = format!("name = \"p{number}\"\nby = \"header:x-api-key\"\nlimit = \"100/hour\"\n");
        format!(
            "[[rule]]\nname = \"r{number}\"\nmatch = {{ path = \"/{number}\" }}\n[[rule.policy]]\n{policy}"
        )
    };
    let policies: String = (0..12).map(rule).collect();
    let variables = [("REDIS_URL", url.as_str()), ("REDIS_TIMEOUT_MS", "5000")];
    let first = Tidegate::start(Some(&policies), &variables).await;
    let second = Tidegate::start(Some(&policies), &variables).await;
    for tidegate in [&first, &second] {
        until("both know of both", async || tidegate.status().await["fleet"]["instances"] == 2).await;
    }
    // Without a word.
    drop(second);
    let began = std::time::Instant::now();
    let answer = first.admin("DELETE", "/admin/keys?key=k").send().await.unwrap();
    let forgiven: serde_json::Value = answer.json().await.unwrap();
    assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(forgiven["policies"].as_array().unwrap().len(), 12);
    assert_eq!((&forgiven["applied"], &forgiven["complete"]), (&"1/2".into(), &false.into()), "{forgiven}");
}
