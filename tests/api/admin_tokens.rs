//! Who may do what at the admin API: scopes, guesses, and tokens that change while it runs.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::Value;
use tidegate::config::Scope;
use tidegate::control::routes::{BASE, ROUTES};

use crate::support::process::Tidegate;
use crate::support::redis_server::signal;
use crate::support::until;

const READ: &str = "a-token-that-may-only-read";
const OPERATE: &str = "a-token-that-may-operate";
const ADMIN: &str = "a-token-that-may-do-all";

fn file() -> String {
    format!("# who may do what\nread grafana {READ}\noperate on-call {OPERATE}\nadmin ana {ADMIN}\n")
}

async fn start(variables: &[(&str, &str)]) -> Tidegate {
    let policies =
        "[[rule]]\nname = \"default\"\n[[rule.policy]]\nname = \"p\"\nby = \"ip\"\nlimit = \"1000/minute\"\n";
    let given = [("ADMIN_TOKEN", ""), ("ADMIN_TOKEN_FILE", "tokens")];
    let variables: Vec<(&str, &str)> = given.iter().chain(variables).copied().collect();
    Tidegate::start_with_files(policies, &[("tokens", &file())], &variables).await
}

impl Tidegate {
    async fn ask(&self, method: &str, path: &str, token: Option<&str>) -> reqwest::Response {
        let mut request = self.http.request(method.parse().unwrap(), format!("http://{}{path}", self.admin));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        // A bad body must not be answered before a missing token.
        request.body("{").send().await.unwrap()
    }

    async fn knows(&self, token: &str) -> bool {
        self.ask("GET", "/admin/status", Some(token)).await.status() == StatusCode::OK
    }

    /// As a secret is mounted: the new file takes the old one's place at once.
    fn put_tokens(&self, text: &str) {
        let path = |name: &str| self.directory.path().join(name);
        std::fs::write(path("tokens.new"), text).unwrap();
        std::fs::rename(path("tokens.new"), path("tokens")).unwrap();
    }
}

#[tokio::test]
async fn every_admin_route_wants_a_token_of_its_scope_on_either_listener() {
    for (variables, prefix) in [(&[][..], ""), (&[("ADMIN_ADDR", "main")][..], "/_tidegate")] {
        let tidegate = start(variables).await;
        for route in &ROUTES {
            let path = format!("{prefix}{BASE}{}", route.path);
            let what = format!("{} {path}", route.method);
            for token in [None, Some("a-wrong-token-of-24-char")] {
                let answer = tidegate.ask(route.method.as_str(), &path, token).await;
                assert_eq!(answer.status(), 401, "{what} {token:?}");
                assert_eq!(answer.headers()["www-authenticate"], "Bearer realm=\"tidegate\"");
                assert_eq!(answer.headers()["content-type"], "application/problem+json");
            }
            for (token, scope) in [(READ, Scope::Read), (OPERATE, Scope::Operate), (ADMIN, Scope::Admin)] {
                let answer = tidegate.ask(route.method.as_str(), &path, Some(token)).await;
                let status = answer.status().as_u16();
                if scope >= route.needs {
                    assert!(![401, 403, 404, 405].contains(&status), "{what} {scope:?}: {status}");
                    assert!(status < 500, "{what} {scope:?}: {status}");
                    continue;
                }
                assert_eq!(status, 403, "{what} {scope:?}");
                let problem: Value = answer.json().await.unwrap();
                assert_eq!(problem["code"], "scope_too_narrow", "{what}");
                assert!(problem["detail"].as_str().unwrap().contains(route.needs.as_str()), "{problem}");
            }
        }
        let wrong = tidegate.ask("PATCH", &format!("{prefix}/admin/rollout"), Some(READ)).await;
        assert_eq!((wrong.status().as_u16(), &wrong.headers()["allow"]), (405, &"GET, PUT".parse().unwrap()));
        let none = tidegate.ask("GET", &format!("{prefix}/admin/none"), Some(READ)).await;
        assert_eq!(none.status(), 404);
        assert_eq!(none.headers()["content-type"], "application/problem+json");
        let unknown = tidegate.ask("GET", &format!("{prefix}/admin/none"), None).await;
        assert_eq!(unknown.status(), 401, "nobody without a token learns what there is");
    }
}

#[tokio::test]
async fn who_may_operate_lowers_and_rolls_back_and_only_who_may_do_all_raises() {
    let redis = crate::support::redis_server::RedisServer::start();
    let url = redis.url();
    let tidegate = start(&[("REDIS_URL", &url), ("RATE_LIMIT_CANARY_PERCENT", "50")]).await;
    let put = async |token: &str, percent: u32| {
        let url = format!("http://{}/admin/rollout", tidegate.admin);
        let body = serde_json::json!({"percent": percent, "reason": "a test"});
        let request = tidegate.http.put(url).bearer_auth(token).header("if-match", "*").json(&body);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    assert_eq!(put(READ, 10).await.0, 403);
    let (status, problem) = put(OPERATE, 60).await;
    assert_eq!((status, problem["code"].as_str().unwrap()), (403, "scope_too_narrow"));
    let (status, lowered) = put(OPERATE, 10).await;
    assert_eq!((status, lowered["updated_by"].as_str().unwrap()), (200, "token:on-call"));
    assert_eq!(put(OPERATE, 50).await.0, 403, "what it lowered it does not raise again");
    let (status, raised) = put(ADMIN, 60).await;
    assert_eq!((status, raised["updated_by"].as_str().unwrap()), (200, "token:ana"));
    let back = tidegate.ask("POST", "/admin/rollout/rollback", Some(OPERATE)).await;
    assert_eq!(back.status(), 200);
}

#[tokio::test]
async fn tokens_rotate_without_a_restart_two_are_valid_at_once_and_a_bad_file_changes_nothing() {
    let tidegate = start(&[]).await;
    assert!(tidegate.knows(ADMIN).await);
    let new = "the-token-that-comes-next";
    tidegate.put_tokens(&format!("{}admin ana {new}\n", file()));
    until("the new token is known", async || tidegate.knows(new).await).await;
    assert!(tidegate.knows(ADMIN).await, "both, while one replaces the other");
    tidegate.put_tokens(&format!("admin ana {new}\n"));
    until("the old token is gone", async || !tidegate.knows(ADMIN).await).await;
    assert!(!tidegate.knows(READ).await);
    for bad in ["owner ana hunter2marker-of-24-ch\n", "", "# nobody\n"] {
        tidegate.put_tokens(bad);
        let report = tidegate.http.post(format!("http://{}/admin/reload", tidegate.admin)).bearer_auth(new);
        let report = report.send().await.unwrap();
        assert_eq!(report.status(), 422, "{bad:?}");
        let problem: Value = report.json().await.unwrap();
        assert!(problem["errors"][0]["place"].as_str().unwrap().starts_with("tokens"), "{problem}");
        assert!(tidegate.knows(new).await, "{bad:?} changes nothing");
    }
    std::fs::remove_file(tidegate.directory.path().join("tokens")).unwrap();
    assert!(tidegate.knows(new).await, "nobody is locked out by a file that is gone");
    tidegate.says("reload: tokens:1: ", 1).await;
    let output = tidegate.output();
    assert!(!output.contains("hunter2marker") && !output.contains(new), "{output}");
}

#[tokio::test]
async fn of_a_thousand_guesses_most_are_turned_away_unheard_and_lock_nobody_else_out() {
    let tidegate = start(&[]).await;
    let url = format!("http://{}/admin/status", tidegate.admin);
    let mut counts = [0, 0];
    for round in 0..20 {
        let guesses = (0..50).map(|guess| {
            let guess = format!("guess-number-{round:04}-{guess:04}");
            tidegate.http.get(&url).bearer_auth(guess).send()
        });
        for answer in futures_util::future::join_all(guesses).await {
            match answer.unwrap().status().as_u16() {
                401 => counts[0] += 1,
                429 => counts[1] += 1,
                other => panic!("{other}"),
            }
        }
    }
    assert_eq!(counts[0] + counts[1], 1000);
    assert!(counts[1] > 500, "{counts:?}");
    assert!(tidegate.knows(READ).await, "from the same address");
    let elsewhere =
        reqwest::Client::builder().no_proxy().local_address(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)));
    let elsewhere = elsewhere.build().unwrap();
    let from_there =
        async |token: &str| elsewhere.get(&url).bearer_auth(token).send().await.unwrap().status();
    assert_eq!(from_there(READ).await, 200);
    assert_eq!(from_there("a-wrong-token-of-24-char").await, 401, "another address has guesses of its own");
    assert!(!tidegate.output().contains("guess-number"));
    let rows = async || {
        let answer = tidegate.ask("GET", "/admin/audit", Some(READ)).await;
        let trail: Value = answer.json().await.unwrap();
        let all = trail["rows"].as_array().unwrap_or_else(|| panic!("{trail}")).clone();
        all.into_iter().filter(|row| row["action"] == "admin.refused").collect::<Vec<_>>()
    };
    until("the guesses are in the trail", async || !rows().await.is_empty()).await;
    let rows = rows().await;
    assert_eq!(rows.len(), 1, "a row a minute: {rows:?}");
    assert!(rows[0]["figures"]["wrong_or_missing"].as_u64().unwrap() >= 50, "{rows:?}");
}

#[tokio::test]
async fn a_change_that_is_asked_for_again_is_answered_as_the_first_time_and_not_made_twice() {
    let redis = crate::support::redis_server::RedisServer::start();
    let url = redis.url();
    let tidegate = start(&[("REDIS_URL", &url), ("RATE_LIMIT_CANARY_PERCENT", "50")]).await;
    let put = async |token: &str, key: &str, percent: u32| {
        let url = format!("http://{}/admin/rollout", tidegate.admin);
        let body = serde_json::json!({"percent": percent, "reason": "a test"});
        let request = tidegate.http.put(url).bearer_auth(token).header("idempotency-key", key).json(&body);
        let answer = request.send().await.unwrap();
        let replayed = answer.headers().contains_key("idempotency-replayed");
        (answer.status().as_u16(), replayed, answer.json::<Value>().await.unwrap())
    };
    let first = put(ADMIN, "one", 10).await;
    assert_eq!((first.0, first.1, &first.2["revision"]), (200, false, &2.into()));
    assert_eq!(put(ADMIN, "two", 5).await.2["revision"], 3);
    let again = put(ADMIN, "one", 10).await;
    assert_eq!(
        (again.0, again.1, &again.2),
        (200, true, &first.2),
        "the first answer, and 5 % stay in force"
    );
    let (status, _, other) = put(ADMIN, "one", 4).await;
    assert_eq!((status, other["code"].as_str().unwrap()), (422, "idempotency_key_reused"));
    assert_eq!(put(OPERATE, "one", 4).await.2["revision"], 4, "another's key");
    assert_eq!(put(ADMIN, "three", 50).await.0, 428, "a refusal is not kept");
    assert_eq!(put(ADMIN, "three", 3).await.0, 200);
    assert_eq!(put(ADMIN, &"k".repeat(129), 2).await.2["code"], "bad_idempotency_key");
    let back = async || {
        let request = tidegate.http.post(format!("http://{}/admin/rollout/rollback", tidegate.admin));
        let request = request.bearer_auth(OPERATE).header("idempotency-key", "back");
        request.send().await.unwrap().json::<Value>().await.unwrap()
    };
    assert_eq!(back().await["percent"], 0.0);
    let raise = tidegate.http.put(format!("http://{}/admin/rollout", tidegate.admin)).bearer_auth(ADMIN);
    let raise = raise.header("if-match", "*").json(&serde_json::json!({"percent": 9, "reason": "a test"}));
    assert_eq!(raise.send().await.unwrap().status(), 200);
    assert_eq!(back().await["percent"], 0.0, "a rollback always acts");
}

#[tokio::test]
async fn a_change_whose_client_has_left_is_made_to_its_end_kept_for_its_key_and_in_the_trail() {
    let redis = crate::support::redis_server::RedisServer::start();
    let url = redis.url();
    let tidegate = start(&[("REDIS_URL", &url)]).await;
    tidegate.says("Redis rate limiting backend connected", 1).await;
    let body =
        serde_json::json!({"rule": "default", "key": "192.0.2.7", "effect": "block", "reason": "a test"});
    // The others are told through it, so an answer takes about a second.
    redis.freeze();
    for request in [
        format!(
            "PUT /admin/overrides/o HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\nIdempotency-Key: one\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.to_string().len()
        ),
        format!(
            "DELETE /admin/keys?key=192.0.2.8 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\n\r\n"
        ),
    ] {
        let mut stream = tokio::net::TcpStream::connect(tidegate.admin).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        // It is killed, or a proxy has lost its patience: the connection is reset.
        socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(stream);
    }
    let mut first = (0, false);
    until("the first is done", async || {
        let request = tidegate.http.put(format!("http://{}/admin/overrides/o", tidegate.admin));
        let answer =
            request.bearer_auth(ADMIN).header("idempotency-key", "one").json(&body).send().await.unwrap();
        let replayed = answer.headers().contains_key("idempotency-replayed");
        let status = answer.status().as_u16();
        let problem: Value = answer.json().await.unwrap();
        first = (status, replayed);
        problem["code"] != "under_way"
    })
    .await;
    redis.thaw();
    assert_eq!(first, (201, true), "answered as the first time");
    until("the other is in the trail", async || {
        let trail: Value = tidegate.ask("GET", "/admin/audit", Some(READ)).await.json().await.unwrap();
        trail["rows"].as_array().unwrap().iter().any(|row| row["action"] == "keys.forgive")
    })
    .await;
}

#[tokio::test]
async fn a_token_that_is_taken_out_of_the_file_is_gone_although_the_limits_are_bad() {
    let tidegate = start(&[]).await;
    assert!(tidegate.knows(READ).await);
    tidegate.put_policies("[[rule]]\n");
    tidegate.put_tokens(&format!("admin ana {ADMIN}\n"));
    let (status, problem) = {
        let request =
            tidegate.http.post(format!("http://{}/admin/reload", tidegate.admin)).bearer_auth(ADMIN);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    assert_eq!((status, &problem["code"]), (422, &"bad_file".into()), "{problem}");
    assert!(!tidegate.knows(READ).await && tidegate.knows(ADMIN).await);
    tidegate.says("reloaded: 1 admin token(s) of tokens, although other files are bad", 1).await;
}

#[tokio::test]
async fn a_token_that_is_used_for_more_than_it_is_good_for_is_in_the_log_and_in_the_trail() {
    let tidegate = start(&[]).await;
    for _ in 0..3 {
        assert_eq!(tidegate.ask("POST", "/admin/reload", Some(READ)).await.status(), 403);
    }
    tidegate.says("a token of the admin listener is not good for what it was used for", 1).await;
    assert!(tidegate.output().contains("token:grafana"));
    until("it is in the trail", async || {
        let trail: Value = tidegate.ask("GET", "/admin/audit", Some(READ)).await.json().await.unwrap();
        let rows = trail["rows"].as_array().unwrap().iter();
        rows.filter(|row| row["action"] == "admin.refused").any(|row| row["figures"]["scope_too_narrow"] == 3)
    })
    .await;
}

#[tokio::test]
async fn a_token_that_is_made_is_told_to_a_terminal_with_the_page_that_wants_it_and_to_no_log() {
    let by_a_terminal = |directory: &Path| {
        let mut command = Command::new("script");
        command.args(["-qefc", concat!("exec ", env!("CARGO_BIN_EXE_tidegate")), "/dev/null"]);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).current_dir(directory);
        command
    };
    let directory = tempfile::tempdir().unwrap();
    let mut tidegate = Tidegate::start_by(by_a_terminal, directory, &[("ADMIN_TOKEN", "")]).await;
    tidegate.says("ADMIN_TOKEN is not set. For this run: ", 1).await;
    tidegate.says(&format!("The operator's page: http://{}/", tidegate.admin), 1).await;
    let output = tidegate.output();
    let told = output.split("For this run: ").nth(1).unwrap();
    let token = told.split(' ').next().unwrap();
    assert_eq!(token.len(), 64, "{told}");
    let status = tidegate.ask("GET", "/admin/status", Some(token)).await;
    assert_eq!(status.status(), 200);
    assert_eq!(output.matches(token).count(), 1);
    // `script` would leave it running when it is killed itself.
    let children = format!("/proc/{0}/task/{0}/children", tidegate.pid());
    let child = std::fs::read_to_string(children).unwrap();
    signal(child.trim().parse().unwrap(), "TERM");
    assert!(tidegate.wait(Duration::from_secs(10)).is_some());

    let mut collected = Tidegate::start(None, &[("ADMIN_TOKEN", "")]).await;
    collected.says("standard error is no terminal: the admin API takes no token in this run", 1).await;
    assert_eq!(collected.lines_with("For this run"), 0);
    collected.terminate();
    assert!(collected.wait(Duration::from_secs(10)).is_some());
}
