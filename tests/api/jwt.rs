//! Clients known by a claim of their token: who is believed, and what becomes of everybody else.

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use serde_json::{Value, json};

use crate::support::process::Tidegate;
use crate::support::until;
use crate::support::upstream::Upstream;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/jwt");

/// One rule for each consequence, each with a budget that no test's time refills.
const POLICIES: &str = r#"
[[rule]]
name = "ip"
match = { path = "/ip/**" }
  [[rule.policy]]
  name = "ip"
  by = "jwt:sub"
  limit = "1000/week"

[[rule]]
name = "skip"
match = { path = "/skip/**" }
  [[rule.policy]]
  name = "skip"
  by = "jwt:sub"
  limit = "1000/week"
  on_missing = "skip"

[[rule]]
name = "deny"
match = { path = "/deny/**" }
  [[rule.policy]]
  name = "deny"
  by = "jwt:sub"
  limit = "1000/week"
  on_missing = "deny"

[[rule]]
name = "tenants"
match = { path = "/tenants/**" }
  [[rule.policy]]
  name = "tenants"
  by = ["jwt:https://example.com/tenant", "jwt:app.role"]
  limit = "1000/week"
  on_missing = "deny"
"#;

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{FIXTURES}/{name}")).unwrap()
}

fn path_of(name: &str) -> String {
    format!("{FIXTURES}/{name}")
}

fn signing_key(algorithm: Algorithm) -> EncodingKey {
    match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
            EncodingKey::from_secret(fixture("secret.txt").trim_ascii_end())
        }
        Algorithm::ES256 => EncodingKey::from_ec_pem(&fixture("p256.pem")).unwrap(),
        Algorithm::ES384 => EncodingKey::from_ec_pem(&fixture("p384.pem")).unwrap(),
        Algorithm::EdDSA => EncodingKey::from_ed_pem(&fixture("ed25519.pem")).unwrap(),
        _ => EncodingKey::from_rsa_pem(&fixture("rsa.pem")).unwrap(),
    }
}

/// A token that is good but for what `change` does to its claims.
fn token(algorithm: Algorithm, change: impl FnOnce(&mut Value)) -> String {
    signed(&Header::new(algorithm), &signing_key(algorithm), change)
}

fn signed(header: &Header, key: &EncodingKey, change: impl FnOnce(&mut Value)) -> String {
    let now = get_current_timestamp();
    let mut claims = json!({
        "sub": "ana", "iss": "https://issuer.example", "aud": ["api", "web"], "exp": now + 3_600, "nbf": now - 5,
    });
    change(&mut claims);
    encode(header, &claims, key).unwrap()
}

fn without(claims: &mut Value, name: &str) {
    claims.as_object_mut().unwrap().remove(name);
}

/// Status, what is left, and the body, of a request with these values of `authorization`.
async fn ask(tidegate: &Tidegate, path: &str, authorization: &[String]) -> (u16, Option<u32>, String) {
    let request = tidegate.http.get(tidegate.url(path));
    let request = authorization.iter().fold(request, |request, value| request.header("authorization", value));
    let answer = request.send().await.unwrap();
    let left = answer.headers().get("x-ratelimit-remaining");
    let left = left.map(|left| left.to_str().unwrap().parse().unwrap());
    (answer.status().as_u16(), left, answer.text().await.unwrap())
}

/// Of those, what carries no token, or a valid one without the claim.
const WITHOUT_A_REFUSED_TOKEN: [&str; 7] =
    ["empty", "no sub", "an empty sub", "a sub of another type", "another scheme", "no scheme", "no token"];

/// Every token that is not to be believed, by what is wrong with it: as the values of its header.
fn not_to_be_believed(algorithm: Algorithm) -> Vec<(&'static str, Vec<String>)> {
    let now = get_current_timestamp();
    let good = token(algorithm, |_| {});
    let parts: Vec<&str> = good.split('.').collect();
    let other = token(algorithm, |claims| claims["sub"] = json!("eve"));
    let tampered = [parts[0], other.split('.').nth(1).unwrap(), parts[2]].join(".");
    // {"alg":"none","typ":"JWT"}
    let none = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{}.", parts[1]);
    let none_signed = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{}.{}", parts[1], parts[2]);
    let confused = |file: &str| {
        let key = EncodingKey::from_secret(&fixture(file));
        signed(&Header::new(Algorithm::HS256), &key, |_| {})
    };
    let stranger = EncodingKey::from_rsa_pem(&fixture("other-rsa.pem")).unwrap();
    let mut cases = vec![
        ("expired", token(algorithm, |claims| claims["exp"] = json!(now - 3_600))),
        ("not yet valid", token(algorithm, |claims| claims["nbf"] = json!(now + 3_600))),
        ("without exp", token(algorithm, |claims| without(claims, "exp"))),
        ("another issuer", token(algorithm, |claims| claims["iss"] = json!("https://evil.example"))),
        ("no issuer", token(algorithm, |claims| without(claims, "iss"))),
        ("another audience", token(algorithm, |claims| claims["aud"] = json!("admin"))),
        ("no audience", token(algorithm, |claims| without(claims, "aud"))),
        ("alg none", none),
        ("alg none with a signature", none_signed),
        ("tampered", tampered),
        ("without its signature", format!("{}.{}.", parts[0], parts[1])),
        ("a public key as secret", confused("rsa.pub.pem")),
        ("a set as secret", confused("jwks.json")),
        ("another's key under our kid", signed(&named("rsa"), &stranger, |_| {})),
        ("another's key under no kid of ours", signed(&named("nobody"), &stranger, |_| {})),
        ("oversized", token(algorithm, |claims| claims["pad"] = json!("x".repeat(16_384)))),
        ("garbage", "garbage".into()),
        ("empty", String::new()),
        ("no sub", token(algorithm, |claims| without(claims, "sub"))),
        ("an empty sub", token(algorithm, |claims| claims["sub"] = json!(""))),
        ("a sub of another type", token(algorithm, |claims| claims["sub"] = json!(["ana"]))),
    ];
    if algorithm == Algorithm::RS256 {
        cases.push(("the kid of another key", signed(&named("other-rsa"), &signing_key(algorithm), |_| {})));
    }
    let mut values: Vec<(&str, Vec<String>)> =
        cases.into_iter().map(|(what, token)| (what, vec![format!("Bearer {token}")])).collect();
    values.push(("two headers", vec![format!("Bearer {good}"), format!("Bearer {good}")]));
    values.push(("a header beside it", vec![format!("Bearer {good}"), "Basic YTpi".into()]));
    values.push(("two in one header", vec![format!("Bearer {good}, Bearer {good}")]));
    values.push(("another scheme", vec![format!("Basic {good}")]));
    values.push(("no scheme", vec![good]));
    values.push(("no token", vec![]));
    values
}

/// The header of a token that names this key.
fn named(kid: &str) -> Header {
    Header { kid: Some(kid.into()), ..Header::new(Algorithm::RS256) }
}

#[tokio::test]
async fn a_token_is_believed_or_has_exactly_the_consequence_that_on_missing_states() {
    let set = ("TIDEGATE__JWT__JWKS_FILE", "jwks.json");
    let one = |name| ("TIDEGATE__JWT__KEY_FILE", name);
    for ((variable, file), algorithm) in [
        (one("secret.txt"), Algorithm::HS256),
        (one("secret.txt"), Algorithm::HS512),
        (one("rsa.pub.pem"), Algorithm::RS384),
        (one("rsa.pub.pem"), Algorithm::PS256),
        (one("p256.pub.pem"), Algorithm::ES256),
        (one("p384.pub.pem"), Algorithm::ES384),
        (one("ed25519.pub.pem"), Algorithm::EdDSA),
        (set, Algorithm::RS256),
        (set, Algorithm::ES256),
        (set, Algorithm::EdDSA),
    ] {
        let path = path_of(file);
        let variables = [
            (variable, path.as_str()),
            ("TIDEGATE__JWT__ISSUER", "https://issuer.example"),
            ("TIDEGATE__JWT__AUDIENCE", "api,other"),
        ];
        let tidegate = Tidegate::start(Some(POLICIES), &variables).await;
        let good =
            |sub: &str| vec![format!("Bearer {}", token(algorithm, |claims| claims["sub"] = json!(sub)))];
        let mut by_address = 1_000;
        for (what, values) in not_to_be_believed(algorithm) {
            let what = format!("{what} ({algorithm:?}, {file})");
            // By address: all of them share the budget of the one address.
            by_address -= 1;
            let (status, left, _) = ask(&tidegate, "/ip/x", &values).await;
            assert_eq!((status, left), (404, Some(by_address)), "{what}");
            let (status, left, _) = ask(&tidegate, "/skip/x", &values).await;
            assert_eq!((status, left), (404, None), "{what}");
            let (status, left, body) = ask(&tidegate, "/deny/x", &values).await;
            let (wanted, kind) = match WITHOUT_A_REFUSED_TOKEN.iter().any(|one| what.starts_with(one)) {
                true => (403, "urn:tidegate:subject-missing"),
                false => (401, "urn:tidegate:token-refused"),
            };
            assert_eq!((status, left), (wanted, None), "{what}");
            let problem: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(problem["type"], kind, "{what}");
            assert_eq!(problem["missing"], "jwt:sub", "{what}");
        }
        for path in ["/ip/x", "/skip/x", "/deny/x"] {
            for (sub, wanted) in [("ana", 999), ("ben", 999), ("ana", 998), ("127.0.0.1", 999)] {
                let (status, left, _) = ask(&tidegate, path, &good(sub)).await;
                assert_eq!((status, left), (404, Some(wanted)), "{path} {sub} ({algorithm:?}, {file})");
            }
        }
    }
}

#[tokio::test]
async fn a_claim_with_dots_in_its_name_and_one_inside_an_object_tell_clients_apart() {
    let path = path_of("ed25519.pub.pem");
    let tidegate = Tidegate::start(Some(POLICIES), &[("TIDEGATE__JWT__KEY_FILE", &path)]).await;
    let elsewhere = String::from_utf8(fixture("signed-elsewhere.txt")).unwrap();
    let elsewhere = elsewhere.lines().find_map(|line| line.strip_prefix("EdDSA ")).unwrap();
    let answer = ask(&tidegate, "/deny/x", &[format!("Bearer {elsewhere}")]).await;
    assert_eq!((answer.0, answer.1), (404, Some(999)), "signed by another implementation");
    let get = async |tenant: Value, role: Value| {
        let token = token(Algorithm::EdDSA, |claims| {
            claims["https://example.com/tenant"] = tenant;
            claims["app"] = json!({ "role": role });
        });
        let (status, left, _) = ask(&tidegate, "/tenants/x", &[format!("Bearer {token}")]).await;
        (status, left)
    };
    assert_eq!(get(json!("acme"), json!("admin")).await, (404, Some(999)));
    assert_eq!(get(json!("acme"), json!("admin")).await, (404, Some(998)));
    assert_eq!(get(json!("acme"), json!("user")).await, (404, Some(999)));
    assert_eq!(get(json!("acmea"), json!("dmin")).await, (404, Some(999)), "where one ends tells");
    assert_eq!(get(json!(7), json!("admin")).await, (404, Some(999)));
    assert_eq!(get(json!("7"), json!("admin")).await, (404, Some(998)), "a number is its digits");
    assert_eq!(get(json!(7.5), json!("admin")).await, (403, None));
    assert_eq!(get(json!("acme"), json!(null)).await, (403, None));
}

#[tokio::test]
async fn a_token_is_taken_from_the_place_that_is_set_and_without_an_end_only_where_that_is_allowed() {
    let path = path_of("secret.txt");
    let key = ("TIDEGATE__JWT__KEY_FILE", path.as_str());
    let endless = token(Algorithm::HS256, |claims| without(claims, "exp"));
    for (place, header, value) in [
        ("x-token", "x-token", endless.clone()),
        ("X-Token", "x-token", format!("bearer {endless}")),
        ("cookie:session", "cookie", format!("a=b; session={endless}")),
    ] {
        let variables = [key, ("TIDEGATE__JWT__HEADER", place), ("TIDEGATE__JWT__REQUIRE_EXP", "false")];
        let tidegate = Tidegate::start(Some(POLICIES), &variables).await;
        let get = async |header: &str, value: &str| {
            let request = tidegate.http.get(tidegate.url("/deny/x")).header(header, value);
            request.send().await.unwrap().status().as_u16()
        };
        assert_eq!(get(header, &value).await, 404, "{place}");
        assert_eq!(get("authorization", &format!("Bearer {endless}")).await, 403, "{place}");
    }
}

#[tokio::test]
async fn attributes_are_verified_as_a_request_is_and_a_trusted_caller_may_name_a_claim() {
    let path = path_of("p256.pub.pem");
    let tidegate = Tidegate::start(Some(POLICIES), &[("TIDEGATE__JWT__KEY_FILE", &path)]).await;
    let good = format!("Bearer {}", token(Algorithm::ES256, |_| {}));
    assert_eq!(ask(&tidegate, "/ip/x", std::slice::from_ref(&good)).await.1, Some(999));
    let check = async |attributes: Value| tidegate.check(json!({ "attributes": attributes })).await;

    let by_token = check(json!({ "path": "/ip/x", "header:authorization": good })).await;
    assert_eq!(by_token["remaining"], 998, "the bucket of the same token in a request");
    let by_name = check(json!({ "path": "/ip/x", "jwt:sub": "ana" })).await;
    assert_eq!(by_name["remaining"], 997, "and of the claim that the caller names");
    let named = check(json!({ "path": "/ip/x", "jwt:sub": "ben", "header:authorization": good })).await;
    assert_eq!(named["remaining"], 999, "the caller's word goes before the token's");

    // Not the last character: some of its bits are padding, and a change of those alone is another spelling.
    let at = good.len() - 20;
    let other = if &good[at..=at] == "A" { "B" } else { "A" };
    let bad = format!("{}{other}{}", &good[..at], &good[at + 1..]);
    for attributes in [
        json!({ "path": "/deny/x", "header:authorization": bad }),
        json!({ "path": "/deny/x", "jwt:sub": "" }),
        json!({ "path": "/deny/x", "jwt:sub": "", "header:authorization": good }),
        json!({ "path": "/deny/x", "jwt:other": "ana" }),
        json!({ "path": "/deny/x" }),
    ] {
        assert_eq!(check(attributes.clone()).await["state"], "block", "{attributes}");
        let mut skipped = attributes.clone();
        skipped["path"] = json!("/skip/x");
        assert_eq!(check(skipped).await["policy"], Value::Null, "{attributes}");
        let mut counted = attributes.clone();
        counted["path"] = json!("/ip/x");
        counted["ip"] = json!("192.0.2.1");
        assert_eq!(check(counted).await["policy"], "ip", "{attributes}");
    }
    let left = check(json!({ "path": "/ip/x", "ip": "192.0.2.1" })).await["remaining"].clone();
    assert_eq!(left, 994, "five bad ones and this one, all from one address");
}

#[tokio::test]
async fn keys_that_are_rotated_are_taken_by_themselves_and_said_and_bad_ones_change_nothing() {
    let secret = |letter: &str| letter.repeat(40);
    let files = [("key.txt", &*secret("a"))];
    let variables = [("TIDEGATE__JWT__KEY_FILE", "key.txt")];
    let tidegate = Tidegate::start_with_files(POLICIES, &files, &variables).await;
    let write = |text: &str| std::fs::write(tidegate.directory.path().join("key.txt"), text).unwrap();
    let status = async |letter: &str| {
        let key = EncodingKey::from_secret(secret(letter).as_bytes());
        let token = format!("Bearer {}", signed(&Header::new(Algorithm::HS256), &key, |_| {}));
        ask(&tidegate, "/deny/x", &[token]).await.0
    };
    assert_eq!((status("a").await, status("b").await), (404, 401));
    write(&secret("b"));
    until("the other key is taken", async || status("b").await == 404).await;
    assert_eq!(status("a").await, 401);
    tidegate.says("reloaded: keys of tokens in key.txt, since ", 1).await;
    assert_eq!(tidegate.lines_with("reloaded: policies of"), 0, "they have not changed");
    write("short");
    tidegate.says("reload: key.txt: the secret has 5 bytes", 1).await;
    assert_eq!((status("a").await, status("b").await), (401, 404));
    let output = tidegate.output();
    assert!(!output.contains("short") && !output.contains("aaaa") && !output.contains("bbbb"), "{output}");
}

#[tokio::test]
async fn a_token_stands_in_no_log_no_metric_and_no_answer_and_reaches_the_upstream_as_it_was() {
    let upstream = Upstream::start();
    let (url, path) = (upstream.url(), path_of("rsa.pub.pem"));
    let variables =
        [("TIDEGATE__JWT__KEY_FILE", path.as_str()), ("UPSTREAM_URL", &url), ("RUST_LOG", "trace")];
    let tidegate = Tidegate::start(Some(POLICIES), &variables).await;
    let good =
        format!("Bearer {}", token(Algorithm::RS256, |claims| claims["sub"] = json!("ana-the-client")));
    let bad = format!("{}AAAA", &good[..good.len() - 4]);
    let mut said = String::new();
    for value in [&good, &bad] {
        for path in ["/ip/x", "/skip/x"] {
            let (status, _, body) = ask(&tidegate, path, std::slice::from_ref(value)).await;
            let echoed: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(status, 200);
            let headers = echoed["headers"].as_array().unwrap();
            assert!(headers.contains(&json!(["authorization", value])), "{headers:?}");
        }
    }
    said += &ask(&tidegate, "/deny/x", std::slice::from_ref(&bad)).await.2;
    let attributes = json!({ "attributes": { "path": "/deny/x", "header:authorization": bad } });
    said += &tidegate.check(attributes).await.to_string();
    said += &tidegate.metrics().await;
    tidegate.request_lines(6).await;
    said += &tidegate.output();
    let pieces = good.split(['.', ' ']).chain(bad.split('.')).filter(|piece| *piece != "Bearer");
    for piece in pieces.chain(["ana-the-client"]) {
        let piece = &piece[piece.len().saturating_sub(12)..];
        assert!(!said.contains(piece), "{piece}");
    }
}

#[tokio::test]
async fn keys_that_change_are_taken_over_while_running_and_bad_ones_change_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key.pem");
    let put = |name: &str| std::fs::write(&path, fixture(name)).unwrap();
    put("rsa.pub.pem");
    let variables = [("TIDEGATE__JWT__KEY_FILE", path.to_str().unwrap())];
    let tidegate = Tidegate::start(Some(POLICIES), &variables).await;
    let status = async |algorithm: Algorithm| {
        ask(&tidegate, "/deny/", &[format!("Bearer {}", token(algorithm, |_| {}))]).await.0
    };
    assert_eq!((status(Algorithm::RS256).await, status(Algorithm::ES256).await), (404, 401));
    put("p256.pub.pem");
    until("the other key is in use", async || status(Algorithm::ES256).await == 404).await;
    assert_eq!(status(Algorithm::RS256).await, 401);
    // A private key has no place on a server that only verifies.
    put("rsa.pem");
    let (asked, answer) = tidegate.reload().await;
    assert_eq!(asked, 422, "{answer}");
    let errors = answer["errors"].to_string();
    assert!(errors.contains("key.pem") && !errors.contains("BEGIN"), "{errors}");
    assert_eq!((status(Algorithm::RS256).await, status(Algorithm::ES256).await), (401, 404));
}
