//! The admin listener.

use serde_json::{Value, json};

use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;
use crate::support::until;

#[tokio::test]
async fn every_route_that_reads_or_changes_wants_the_token_and_metrics_on_loopback_do_not() {
    let tidegate = Tidegate::start(None, &[]).await;
    let bare = |method: &str, path: &str| {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        tidegate.http.request(method, format!("http://{}{path}", tidegate.admin))
    };
    for (method, path) in [
        ("GET", "/admin/rollout"),
        ("PUT", "/admin/rollout"),
        ("POST", "/admin/rollout/rollback"),
        ("GET", "/admin/status"),
        ("GET", "/admin/policies"),
        ("POST", "/admin/reload"),
        ("GET", "/admin/none"),
    ] {
        // A bad body must not be answered before a missing token.
        let none = bare(method, path).body("{").send().await.unwrap();
        assert_eq!(none.status(), 401, "{method} {path}");
        assert_eq!(none.headers()["www-authenticate"], "Bearer realm=\"tidegate\"");
        let wrong = bare(method, path).bearer_auth("wrong-token-of-20-ch").send().await.unwrap();
        assert_eq!(wrong.status(), 401, "{method} {path}");
        assert_eq!(wrong.headers()["content-type"], "application/problem+json");
    }
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(bare("GET", path).send().await.unwrap().status(), 200, "{path}");
    }
    assert_eq!(bare("DELETE", "/metrics").send().await.unwrap().status(), 405);
    assert_eq!(bare("GET", "/none").send().await.unwrap().status(), 404);
    assert_eq!(tidegate.get("/admin/status").await.status(), 404, "not on the front");
}

#[tokio::test]
async fn guesses_are_limited_and_logged_without_the_guess() {
    let tidegate = Tidegate::start(None, &[]).await;
    let mut limited = 0;
    for guess in 0..200 {
        let url = format!("http://{}/admin/status", tidegate.admin);
        let answer =
            tidegate.http.get(url).bearer_auth(format!("guess-number-{guess:08}")).send().await.unwrap();
        match answer.status().as_u16() {
            401 => {}
            429 => {
                limited += 1;
                assert!(answer.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
            }
            other => panic!("{other}"),
        }
    }
    assert!(limited > 50, "{limited} of 200 guesses were turned away unheard");
    assert!(!tidegate.output().contains("guess-number"));
    let operator = tidegate.admin("POST", "/admin/rollout/rollback").send().await.unwrap();
    assert_eq!(operator.status(), 200, "whoever guesses from the operator's address locks nobody out");
}

#[tokio::test]
async fn a_rollback_does_not_wait_for_a_reason_that_does_not_come() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let tidegate = Tidegate::start(None, &[]).await;
    let mut client = tokio::net::TcpStream::connect(tidegate.admin).await.unwrap();
    let token = crate::support::process::ADMIN_TOKEN;
    let head = format!(
        "POST /admin/rollout/rollback HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 50\r\n\r\n{{"
    );
    client.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    let read = client.read_exact(&mut answer);
    tokio::time::timeout(std::time::Duration::from_secs(10), read).await.expect("it is answered").unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 200");
}

#[tokio::test]
async fn the_rollout_is_read_raised_lowered_and_rolled_back_as_the_contract_has_it() {
    let redis = RedisServer::start();
    let url = redis.url();
    let tidegate = Tidegate::start(None, &[("REDIS_URL", &url), ("RATE_LIMIT_CANARY_PERCENT", "10")]).await;
    tidegate.connected().await;
    let read = tidegate.admin("GET", "/admin/rollout").send().await.unwrap();
    let tag = read.headers()["etag"].to_str().unwrap().to_owned();
    let record: Value = read.json().await.unwrap();
    assert_eq!((&record["backend"], &record["percent"]), (&json!("redis"), &json!(10.0)));
    assert_eq!((&record["revision"], &record["updated_by"]), (&json!(1), &json!("env")));
    assert_eq!(record["redis"]["configured"], true);
    assert_eq!(
        (&record["redis"]["state"], &record["effective_backend"]),
        (&json!("closed"), &json!("redis"))
    );
    for name in ["updated_at", "reason", "plan"] {
        assert!(record.as_object().unwrap().contains_key(name), "{name}");
    }

    let put = async |body: Value, tag: Option<&str>| {
        let mut request = tidegate.admin("PUT", "/admin/rollout").json(&body);
        if let Some(tag) = tag {
            request = request.header("if-match", tag);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let raise = json!({"percent": 25, "reason": "looks good"});
    assert_eq!(put(raise.clone(), None).await.0, 428);
    let (status, stale) = put(raise.clone(), Some("\"0-99\"")).await;
    assert_eq!((status, &stale["code"]), (412, &json!("stale")));
    let (status, raised) = put(raise.clone(), Some(&tag)).await;
    assert_eq!((status, &raised["percent"], &raised["revision"]), (200, &json!(25.0), &json!(2)));
    assert_eq!((&raised["applied"], &raised["reason"]), (&json!("1/1"), &json!("looks good")));
    assert!(raised["updated_by"].as_str().unwrap().starts_with("token:"));
    assert_eq!(put(raise, Some(&tag)).await.0, 412, "the tag is spent");
    let (status, lowered) = put(json!({"percent": 5.5, "reason": "careful"}), None).await;
    assert_eq!((status, &lowered["percent"]), (200, &json!(5.5)));
    for (body, code) in [
        (json!({"percent": 101, "reason": "r"}), "bad_percent"),
        (json!({"percent": -1, "reason": "r"}), "bad_percent"),
        (json!({"percent": 1.005, "reason": "r"}), "bad_percent"),
        (json!({"percent": "ten", "reason": "r"}), "bad_body"),
        (json!({"percent": 1}), "bad_body"),
        (json!({"percent": 1, "reason": "r", "percnt": 2}), "bad_body"),
        (json!({"percent": 1, "reason": "  "}), "no_reason"),
        (json!({"percent": 1, "reason": "r", "backend": "disk"}), "bad_backend"),
    ] {
        let (status, problem) = put(body.clone(), Some("*")).await;
        assert_eq!((status, &problem["code"]), (422, &json!(code)), "{body}");
    }

    // Until it knows that it is alone, another might be raising out of its sight: then each rollback is a new record.
    until("it is alone", async || tidegate.status().await["fleet"]["redis"] == "answers").await;
    let back = async |body: &'static str| {
        let answer = tidegate.admin("POST", "/admin/rollout/rollback").body(body).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.json::<Value>().await.unwrap()
    };
    let first = back(r#"{"reason": "5xx on the canary"}"#).await;
    assert_eq!((&first["percent"], &first["effective_backend"]), (&json!(0.0), &json!("memory")));
    assert_eq!((&first["reason"], &first["applied"]), (&json!("5xx on the canary"), &json!("1/1")));
    assert_eq!(back("").await["revision"], first["revision"], "asked for twice, it changes nothing more");
    back("not even JSON").await;
    tidegate.says("rollout: 5.5 % → 0 % of the keys in Redis", 1).await;
}

#[tokio::test]
async fn a_pin_leaves_raising_to_the_environment_and_rollback_to_everybody() {
    let redis = RedisServer::start();
    let url = redis.url();
    let variables =
        [("REDIS_URL", url.as_str()), ("RATE_LIMIT_CANARY_PERCENT", "10"), ("RATE_LIMIT_CANARY_PIN", "true")];
    let tidegate = Tidegate::start(None, &variables).await;
    let raise = tidegate.admin("PUT", "/admin/rollout").header("if-match", "*");
    let answer = raise.json(&json!({"percent": 20, "reason": "try"})).send().await.unwrap();
    assert_eq!(answer.status(), 409);
    assert_eq!(answer.json::<Value>().await.unwrap()["code"], "pinned_by_env");
    let back = tidegate.admin("POST", "/admin/rollout/rollback").send().await.unwrap();
    assert_eq!(back.status(), 200);
}

#[tokio::test]
async fn on_a_single_port_host_all_own_paths_stand_under_the_prefix() {
    let tidegate = Tidegate::start_on_one_port().await;
    let own = async |path: &str| tidegate.get(path).await.status().as_u16();
    assert_eq!(own("/_tidegate/healthz").await, 200);
    assert_eq!(own("/_tidegate/admin/status").await, 401);
    assert_eq!(own("/_tidegate/metrics").await, 401, "who can reach the front must not read them");
    assert_eq!(own("/healthz").await, 404, "the upstream's own");
    let answer = tidegate
        .http
        .get(tidegate.url("/_tidegate/admin/status"))
        .bearer_auth(crate::support::process::ADMIN_TOKEN)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn a_body_that_says_it_is_something_else_is_refused_and_what_curl_says_is_accepted() {
    let tidegate = Tidegate::start(None, &[]).await;
    let put = async |kind: Option<&str>| {
        let body = r#"{"percent": 0, "reason": "r"}"#;
        let request = tidegate.admin("PUT", "/admin/rollout").body(body);
        let request = kind.into_iter().fold(request, |request, kind| request.header("content-type", kind));
        request.send().await.unwrap().status().as_u16()
    };
    for kind in [
        "application/x-www-form-urlencoded",
        "Application/JSON; charset=utf-8",
        "text/plain",
        "application/x+json",
    ] {
        assert_eq!(put(Some(kind)).await, 200, "{kind}");
    }
    assert_eq!(put(None).await, 200);
    for kind in ["multipart/form-data; boundary=x", "text/xml", "application/xml", "image/png"] {
        assert_eq!(put(Some(kind)).await, 415, "{kind}");
    }
    let back =
        tidegate.admin("POST", "/admin/rollout/rollback").header("content-type", "text/xml").body("<a/>");
    assert_eq!(back.send().await.unwrap().status(), 200, "a rollback is a rollback");
}

#[tokio::test]
async fn the_admin_listener_has_the_deadlines_of_the_front_and_answers_who_leaves_after_asking() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let tidegate = Tidegate::start(None, &[("TIDEGATE__SERVER__HEAD_TIMEOUT_MS", "300")]).await;
    let mut idle = tokio::net::TcpStream::connect(tidegate.admin).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n").await.unwrap();
    let mut said = Vec::new();
    let read = idle.read_to_end(&mut said);
    tokio::time::timeout(std::time::Duration::from_secs(10), read).await.expect("it is closed").unwrap();

    let mut client = tokio::net::TcpStream::connect(tidegate.admin).await.unwrap();
    let token = crate::support::process::ADMIN_TOKEN;
    let head = format!(
        "POST /admin/rollout/rollback HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    client.write_all(head.as_bytes()).await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let read = client.read_to_end(&mut answer);
    tokio::time::timeout(std::time::Duration::from_secs(10), read).await.expect("it is answered").unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));

    let mut garbled = tokio::net::TcpStream::connect(tidegate.admin).await.unwrap();
    garbled.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 12];
    let read = garbled.read_exact(&mut answer);
    tokio::time::timeout(std::time::Duration::from_secs(10), read).await.expect("it is answered").unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 400");
}
