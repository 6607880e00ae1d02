//! Keys of tokens that an issuer publishes at a URL.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use actix_web::{App, HttpResponse, HttpServer, rt, web};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use serde_json::{Value, json};

use crate::support::process::Tidegate;
use crate::support::until;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/jwt");

const POLICIES: &str = r#"
[[rule]]
name = "strict"
  [[rule.policy]]
  name = "strict"
  by = "jwt:sub"
  limit = "1000/week"
  on_missing = "deny"
"#;

/// What an issuer answers: a status and a body.
type Answer = Arc<Mutex<(u16, String)>>;

/// An issuer on a thread of its own.
struct Issuer {
    port: u16,
    answer: Answer,
    fetched: Arc<AtomicUsize>,
    handle: actix_web::dev::ServerHandle,
}

impl Issuer {
    fn start(set: &Value) -> Self {
        let answer: Answer = Arc::new(Mutex::new((200, set.to_string())));
        let fetched = Arc::new(AtomicUsize::new(0));
        let (body_now, count) = (Arc::clone(&answer), Arc::clone(&fetched));
        let (started, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            rt::System::new().block_on(async move {
                let server = HttpServer::new(move || {
                    let (body_now, count) = (Arc::clone(&body_now), Arc::clone(&count));
                    App::new().default_service(web::to(move || {
                        count.fetch_add(1, Ordering::SeqCst);
                        let (status, body) = body_now.lock().unwrap().clone();
                        let status = actix_web::http::StatusCode::from_u16(status).unwrap();
                        async move { HttpResponse::build(status).body(body) }
                    }))
                });
                let server = server.workers(1).disable_signals().bind(("127.0.0.1", 0)).unwrap();
                let port = server.addrs()[0].port();
                let server = server.run();
                started.send((port, server.handle())).unwrap();
                server.await.unwrap();
            });
        });
        let (port, handle) = wait.recv().unwrap();
        Self { port, answer, fetched, handle }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/.well-known/jwks.json?p=policy", self.port)
    }

    fn answers(&self, status: u16, body: impl ToString) {
        *self.answer.lock().unwrap() = (status, body.to_string());
    }

    fn fetched(&self) -> usize {
        self.fetched.load(Ordering::SeqCst)
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        drop(self.handle.stop(false));
    }
}

/// A set of the one key of this kid.
fn set(kid: &str) -> Value {
    let all: Value =
        serde_json::from_slice(&std::fs::read(format!("{FIXTURES}/jwks.json")).unwrap()).unwrap();
    let keys: Vec<&Value> = all["keys"].as_array().unwrap().iter().filter(|key| key["kid"] == kid).collect();
    json!({ "keys": keys })
}

/// A token by the key of this name, under this kid.
fn token(key: &str, kid: &str) -> String {
    let pem = std::fs::read(format!("{FIXTURES}/{key}.pem")).unwrap();
    let (algorithm, key) = match key {
        "p256" => (Algorithm::ES256, EncodingKey::from_ec_pem(&pem)),
        _ => (Algorithm::EdDSA, EncodingKey::from_ed_pem(&pem)),
    };
    let claims = json!({ "sub": "ana", "exp": get_current_timestamp() + 3_600 });
    encode(&Header { kid: Some(kid.into()), ..Header::new(algorithm) }, &claims, &key.unwrap()).unwrap()
}

async fn status(tidegate: &Tidegate, key: &str, kid: &str) -> u16 {
    let request = tidegate.http.get(tidegate.url("/"));
    let request = request.header("authorization", format!("Bearer {}", token(key, kid)));
    request.send().await.unwrap().status().as_u16()
}

#[tokio::test]
async fn fetched_keys_survive_a_restart_without_their_url() {
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("keys.json").display().to_string();
    let issuer = Issuer::start(&set("p256"));
    let url = issuer.url();
    let variables = [("TIDEGATE__JWT__JWKS_URL", url.as_str()), ("TIDEGATE__JWT__JWKS_FILE", copy.as_str())];
    let first = Tidegate::start(Some(POLICIES), &variables).await;
    until("the keys are there", async || status(&first, "p256", "p256").await == 404).await;
    until("they are kept", async || {
        std::fs::read_to_string(&copy).is_ok_and(|text| *text == *set("p256").to_string())
    })
    .await;
    let source = url.split_once('?').unwrap().0;
    first.says(&format!("reloaded: keys of tokens from {source}"), 1).await;
    assert!(!first.output().contains("p=policy"), "a query may hold a key");
    drop((first, issuer));

    let second = Tidegate::start(Some(POLICIES), &variables).await;
    assert_eq!(status(&second, "p256", "p256").await, 404, "by the copy");
    until("it has tried", async || second.lines_with("the keys of tokens could not be fetched") > 0).await;
    assert_eq!(status(&second, "p256", "p256").await, 404);
}

#[tokio::test]
async fn unknown_kid_causes_one_fetch_and_bad_sets_are_ignored() {
    let issuer = Issuer::start(&set("p256"));
    let url = issuer.url();
    let tidegate = Tidegate::start(Some(POLICIES), &[("TIDEGATE__JWT__JWKS_URL", &url)]).await;
    tidegate.says("reloaded: keys of tokens from", 1).await;
    assert_eq!((status(&tidegate, "p256", "p256").await, issuer.fetched()), (404, 1));
    // The issuer changes its key: the first token by it is refused, and has the new set fetched.
    issuer.answers(200, set("ed25519"));
    until("the other key is there", async || status(&tidegate, "ed25519", "ed25519").await == 404).await;
    assert_eq!((status(&tidegate, "p256", "p256").await, issuer.fetched()), (401, 2));
    issuer.answers(500, "no");
    for number in 0..50 {
        assert_eq!(status(&tidegate, "p256", &format!("stranger-{number}")).await, 401);
    }
    assert_eq!(status(&tidegate, "ed25519", "ed25519").await, 404);
    assert_eq!(issuer.fetched(), 2, "within a minute tokens lead to no other");
}

#[tokio::test]
async fn set_that_is_none_is_named_and_fetched_again() {
    let issuer = Issuer::start(&json!({ "keys": [] }));
    let url = issuer.url();
    let tidegate = Tidegate::start(Some(POLICIES), &[("TIDEGATE__JWT__JWKS_URL", &url)]).await;
    assert_eq!(status(&tidegate, "p256", "p256").await, 401, "no key yet, and the start waits for none");
    until("it is named", async || tidegate.lines_with("none of its 0 keys can verify a token") > 0).await;
    let mut odd = set("p256");
    odd["keys"].as_array_mut().unwrap().push(json!({ "kty": "RSA", "kid": "odd", "n": "AQAB", "e": "AQAB" }));
    issuer.answers(200, odd);
    until("the keys are there", async || status(&tidegate, "p256", "p256").await == 404).await;
    tidegate.says("ignored: key 2 of 2 (kid", 1).await;
}
