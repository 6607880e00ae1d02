//! `tidegate rollout` against a running service.

use serde_json::{Value, json};

use super::run::tidegate;
use crate::support::process::{ADMIN_TOKEN, Tidegate};

async fn running() -> (Tidegate, String) {
    let variables = [("REDIS_URL", "redis://127.0.0.1:1"), ("RATE_LIMIT_CANARY_PERCENT", "10")];
    let service = Tidegate::start(None, &variables).await;
    let url = format!("http://{}", service.admin);
    (service, url)
}

const TOKEN: (&str, &str) = ("ADMIN_TOKEN", ADMIN_TOKEN);

#[tokio::test]
async fn the_rollout_is_read_raised_and_rolled_back_from_a_shell() {
    let (service, url) = running().await;
    let at = |words: &[&'static str]| -> Vec<String> {
        let words = words.iter().map(|word| (*word).to_owned());
        ["rollout".to_owned()]
            .into_iter()
            .chain(words)
            .chain(["--admin-url".to_owned(), url.clone()])
            .collect()
    };
    let run = async |words: &[&'static str]| {
        let words = at(words);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        tidegate(&words, &[TOKEN]).await
    };
    let status = run(&["status"]).await;
    assert_eq!(status.code, 0, "{}", status.stderr);
    assert!(
        status.stdout.starts_with("10.0 % of the keys in Redis\nin force here: 10.0 %"),
        "{}",
        status.stdout
    );
    assert_eq!(run(&["status", "--json"]).await.json()["revision"], 1);

    let dry = run(&["set", "25", "--dry-run"]).await;
    assert_eq!(dry.code, 0);
    assert!(
        dry.stdout.contains("10.0 % of the keys in Redis → 25.0 % of the keys in Redis"),
        "{}",
        dry.stdout
    );
    assert!(
        dry.stdout.contains("would be done: ") && dry.stdout.contains("keys that move: 15.00 %"),
        "{}",
        dry.stdout
    );
    assert!(dry.stdout.ends_with("nothing was changed\n"), "{}", dry.stdout);
    assert_eq!(run(&["set", "25", "--dry-run", "--json"]).await.json()["keys"]["share_moving"], 0.15);
    assert_eq!(run(&["status", "--json"]).await.json()["percent"], 10.0, "nothing was changed");

    let set = run(&["set", "25", "--reason", "P95 is fine"]).await;
    assert_eq!(set.code, 0, "{}", set.stderr);
    assert!(
        set.stderr.contains("rollout: 10.0 % of the keys in Redis → 25.0 % of the keys in Redis"),
        "{}",
        set.stderr
    );
    assert!(set.stdout.contains("revision 2; applied 1/1; it outlives a restart"), "{}", set.stdout);
    let seen = run(&["status", "--json"]).await.json();
    assert_eq!((&seen["percent"], &seen["reason"]), (&json!(25.0), &json!("P95 is fine")));

    let back = run(&["rollback", "--reason", "5xx", "--json"]).await;
    assert_eq!(
        (back.code, &back.json()["percent"], &back.json()["applied"]),
        (0, &json!(0.0), &json!("1/1"))
    );
    let flag = run(&["set", "5", "--backend", "memory"]).await;
    assert_eq!(flag.code, 0, "{}", flag.stderr);
    assert_eq!(run(&["status", "--json"]).await.json()["backend"], "memory");
    drop(service);
}

#[tokio::test]
async fn a_dry_run_of_what_would_be_refused_says_why_and_is_not_exit_code_0() {
    let variables = [
        ("REDIS_URL", "redis://127.0.0.1:1"),
        ("RATE_LIMIT_CANARY_PERCENT", "10"),
        ("RATE_LIMIT_CANARY_PIN", "true"),
    ];
    let service = Tidegate::start(None, &variables).await;
    let url = format!("http://{}", service.admin);
    let dry = tidegate(&["rollout", "set", "25", "--dry-run", "--admin-url", &url], &[TOKEN]).await;
    assert_eq!(dry.code, 1, "{}", dry.stdout);
    assert!(
        dry.stdout.contains("would be refused: ") && dry.stdout.contains("(pinned_by_env)"),
        "{}",
        dry.stdout
    );
}

#[tokio::test]
async fn what_is_not_done_is_said_and_never_exit_code_0() {
    let (service, url) = running().await;
    let run = async |words: &[&str], variables: &[(&str, &str)]| {
        let words: Vec<&str> = ["rollout"].iter().chain(words).copied().collect();
        tidegate(&words, variables).await
    };
    let at = ["--admin-url", url.as_str()];
    let wrong = run(&["status", at[0], at[1]], &[("ADMIN_TOKEN", "a-wrong-token-of-some-length")]).await;
    assert_eq!(wrong.code, 1);
    assert!(wrong.stderr.contains("the token is not accepted (401). Set ADMIN_TOKEN"), "{}", wrong.stderr);
    assert!(!wrong.stderr.contains("a-wrong-token"), "{}", wrong.stderr);
    let none = run(&["status", at[0], at[1]], &[]).await;
    assert_eq!(none.code, 1);
    assert!(none.stderr.contains("there is no token. Set ADMIN_TOKEN"), "{}", none.stderr);
    let nobody = run(&["rollback", "--json", "--admin-url", "http://127.0.0.1:1"], &[TOKEN]).await;
    assert_eq!(nobody.code, 1);
    assert!(nobody.stderr.contains("http://127.0.0.1:1 does not answer"), "{}", nobody.stderr);
    assert!(nobody.json()["detail"].as_str().unwrap().contains("does not answer"));
    for (words, said) in [
        (&["set", "101"][..], "0 to 100"),
        (&["set", "-1"], "0 to 100"),
        (&["set", "ten"], "0 to 100"),
        (&["plan"], "Stepwise plans are not in this version"),
        (&["plan", "start", "--file", "x"], "Stepwise plans are not in this version"),
        (&["set"], "PERCENT"),
    ] {
        let ran = run(words, &[TOKEN]).await;
        assert_eq!(ran.code, 64, "{words:?} {}", ran.stderr);
        assert!(ran.stderr.contains(said), "{words:?} {}", ran.stderr);
    }
    for url in ["ftp://x", "http://user:pw@x", "x y"] {
        let ran = run(&["status", "--admin-url", url], &[TOKEN]).await;
        assert_eq!(ran.code, 1);
        assert!(ran.stderr.contains("--admin-url: ") && !ran.stderr.contains("pw"), "{}", ran.stderr);
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{ADMIN_TOKEN}\n")).unwrap();
    let path = file.path().to_str().unwrap();
    let main = service.admin.to_string();
    let by_file = run(&["status"], &[("ADMIN_TOKEN_FILE", path), ("ADMIN_ADDR", &main)]).await;
    assert_eq!(by_file.code, 0, "{}", by_file.stderr);
}

/// Answers each request with the next of these heads and bodies.
async fn scripted(answers: Vec<(&'static str, Value)>) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        for (head, body) in answers {
            let (mut peer, _) = listener.accept().await.unwrap();
            let mut read = [0; 4096];
            let _ = peer.read(&mut read).await.unwrap();
            let body = body.to_string();
            let text = format!(
                "HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            peer.write_all(text.as_bytes()).await.unwrap();
        }
    });
    url
}

#[tokio::test]
async fn a_lost_race_says_who_changed_what_and_a_change_that_some_lack_names_them() {
    let seen = json!({"backend": "redis", "percent": 10.0, "revision": 3});
    let stale =
        json!({"code": "stale", "status": 412, "detail": "token:ben changed it to 20 % at noon (why not)."});
    let url =
        scripted(vec![("200 OK\r\nETag: \"0-3\"", seen.clone()), ("412 Precondition Failed", stale)]).await;
    let lost = tidegate(&["rollout", "set", "30", "--admin-url", &url], &[TOKEN]).await;
    assert_eq!(lost.code, 1);
    assert!(
        lost.stderr.contains("not done (stale): somebody else was quicker: token:ben changed it to 20 %"),
        "{}",
        lost.stderr
    );
    let some = json!({"revision": 4, "applied": "2/3", "pending": ["three"], "durable": false});
    let url = scripted(vec![("200 OK", some)]).await;
    let back = tidegate(&["rollout", "rollback", "--admin-url", &url], &[TOKEN]).await;
    assert_eq!(back.code, 2);
    assert!(back.stdout.contains("applied 2/3, not yet: three; NOT KEPT yet"), "{}", back.stdout);
}
